"""How many tokens of an answer are wanted, and in how many steps."""

from tbd.detection.results import Cascade, read_detector
from tbd.params import Generate, Params
from tbd.workspace import DETECTOR


def needed(audit: str | None, p: Params) -> tuple[Generate, Cascade | None]:
    """`generate` of params.yaml with `max_new_tokens` as that audit needs them, and whether it asked for all; and the
    first step of its answers, None where they are made in one.

    Raises InputError where there is no detector yet to say so.
    """
    if p.generate.tokens == "all" or audit in p.calibrate.references:
        return p.generate.model_copy(update={"tokens": "all"}), None
    detector = read_detector(DETECTOR)
    tokens, steps = min(p.generate.max_new_tokens, detector.tokens), detector.cascade
    generate = p.generate.model_copy(update={"max_new_tokens": tokens})
    return generate, steps if steps is not None and steps.m < tokens else None
