"""Numbers and foreign texts in words, the same wherever people read them."""

import math

from tbd.foreign import plain as plain

SHORT = 200
"""characters of a question shown"""
MISSING = "not available"


def shorten(text: str) -> str:
    """The first SHORT characters of `plain(text)`, with an ellipsis where more followed."""
    text = plain(text)
    return text if len(text) <= SHORT else text[: SHORT - 1].rstrip() + "…"


def code(text: str) -> str:
    """Text from outside as Markdown code: nothing in it is a link, an image or markup, or ends the cell of a table.

    >>> code("a`b")
    "`a'b`"
    """
    return "`" + plain(text).replace("`", "'").replace("|", "¦") + "`"


def missing(value: float | None) -> bool:
    """True for None and NaN."""
    return value is None or math.isnan(value)


def number(value: float | None, absent: str = MISSING) -> str:
    """Three significant digits, with a true minus sign."""
    return absent if value is None or missing(value) else f"{value:.3g}".replace("-", "−")


def score(value: float | None, absent: str = MISSING) -> str:
    """A score with three significant digits, zeros kept, so that a column of them lines up."""
    return absent if value is None or missing(value) else f"{value:#.3g}".rstrip(".").replace("-", "−")


def p_value(value: float | None, absent: str = MISSING) -> str:
    """A p-value: three significant digits, below 0.001 two and a power of ten.

    >>> p_value(0.0123), p_value(4.2e-9), p_value(0.0)
    ('0.0123', '4.2 × 10⁻⁹', 'below 10⁻³⁰⁰')
    """
    if value is None or missing(value):
        return absent
    if value >= 0.001:
        return f"{value:.3g}"
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    if value < 1e-300:
        return "below 10" + "-300".translate(raised)
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} × 10{str(int(exponent)).translate(raised)}"


def percent(share: float | None) -> str:
    """An estimated share in [0, 1] in percent: whole between 10 % and 99 %, else to a tenth.

    >>> percent(0.4875), percent(0.025), percent(0.996), percent(0.0)
    ('49%', '2.5%', '99.6%', '0%')
    """
    if share is None or missing(share):
        return MISSING
    return f"{round(100 * share, 0 if 0.0995 <= share <= 0.9905 else 1):g}%"


def level(share: float) -> str:
    """A chosen share, such as an error rate, in percent and not rounded.

    >>> level(0.125), level(0.07)
    ('12.5%', '7%')
    """
    return f"{100 * share:.9g}%"


def count(expected: float) -> str:
    """An expected number of questions: whole from 10 on, else to a tenth."""
    return f"{expected:.0f}" if expected >= 10 else f"{round(expected, 1):g}"


def interval(estimate: float, low: float, high: float, form: str = ".2f") -> str:
    """A number with its interval.

    >>> interval(0.9412, 0.88, 0.98)
    '0.94 [0.88, 0.98]'
    """
    return f"{estimate:{form}} [{low:{form}}, {high:{form}}]"


def span(low: float | None, high: float | None, as_percent: bool = True) -> str:
    """An interval in words, "35% to 60%"."""
    if low is None or high is None or missing(low) or missing(high):
        return "interval not available"
    return f"{percent(low)} to {percent(high)}" if as_percent else f"{low:.3f} to {high:.3f}"
