"""Whether two ways to ask a server for the same log-probs agree: what is asked at the start, and what is too far apart.

Only tokens of which the model is not certain tell anything: the log-prob of a certain one is about 0 however it is
garbled. Pure functions on arrays; who asks is `tbd.generation.engines.openai`.
"""

import numpy as np
from numpy.typing import NDArray

QUESTIONS = (
    "Say it again and again: " + "one two three, " * 8 + "one two",
    "Tell a story that nobody has told before.",
    "Make up the names of ten people, and say what each of them likes.",
)
"""an answer that repeats words, which penalties would show, and two of which no model is certain"""
TOKENS = 32
"""of an answer, at most"""
STEP = 3
"""of the places of an answer, each such one is asked for by itself"""
CERTAIN = -0.2
"""nats; a token with a lower log-prob is an uncertain one"""
FEW = 8
"""uncertain tokens; fewer prove little"""
MEDIAN, TENTH = 0.1, 0.3
"""nats; so far the log-probs of uncertain tokens may be apart at the median, and of all but one in ten. SmolLM2-135M in
bfloat16, batched or not, or against float32: 0.03 and 0.09. Temperatures 0.5 and 0.7, renormalised after two tokens,
decimal or doubled logarithms, another token's: 0.3 and more at the median; renormalised after 20: 0.06 and 0.57. After
two against five epochs of fine-tuning: 0.2 and 0.54"""


def uncertain(one: NDArray[np.float32], other: NDArray[np.float32]) -> int:
    """How many tokens are uncertain by either of two measurements (nats) of their log-probs."""
    return int((np.minimum(one, other) < CERTAIN).sum())


def apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> str | None:
    """How far apart two measurements (nats) of the same log-probs are, if by more than rounding makes them; or None."""
    differences = np.abs(one - other)[np.minimum(one, other) < CERTAIN]
    if not len(differences):
        return None
    median, tenth = np.quantile(differences, (0.5, 0.9))
    if median > MEDIAN:
        return f"{median:.2g} nats apart"
    return f"{tenth:.2g} nats apart for one in ten" if tenth > TENTH else None
