"""How many tokens of an answer are wanted, and in how many steps."""

from tbd.detection.results import Cascade, read_detector
from tbd.params import Generate, Params
from tbd.workspace import DETECTOR


def needed(audit: str | None, p: Params) -> Generate:
    """`generate` of params.yaml with `max_new_tokens` as that audit needs them, and whether it asked for all.

    Raises InputError where there is no detector yet to say so.
    """
    if p.generate.tokens == "all" or audit in p.calibrate.references:
        return p.generate.model_copy(update={"tokens": "all"})
    tokens = min(p.generate.max_new_tokens, read_detector(DETECTOR).tokens)
    return p.generate.model_copy(update={"max_new_tokens": tokens})


def cascade(audit: str | None, p: Params) -> Cascade | None:
    """The first step of that audit's answers; None: they are made in one."""
    wanted = needed(audit, p)
    found = None if wanted.tokens == "all" else read_detector(DETECTOR).cascade
    return found if found is not None and found.m < wanted.max_new_tokens else None
