"""Scores: token log-probs in, a membership score for each question out. Needs no model.

**Sign convention, here and everywhere: a higher score means member.** A question that cannot be scored gets NaN and a
reason, never 0.
"""

from tbd.scores.methods import METHODS, Method, expand, first_steps, parse
from tbd.scores.tokens import Tokens, tokens

__all__ = ["METHODS", "Method", "Tokens", "expand", "first_steps", "parse", "tokens"]
