"""Which questions ask the same thing in nearly the same words.

Two questions are near-duplicates if they hold the same numbers, each equally often, and the Jaccard index
|A & B| / |A | B| of their sets of word n-grams is at least a given one. The numbers must agree because a template
filled in with other numbers is another question, although nearly all words are the same. Case, spacing and punctuation
between words do not matter. Operators do (`3 + 4` and `3 * 4` are two questions), except the minus sign, which is a
hyphen too. Characters that nobody sees (soft hyphens, zero-width ones) and letters of other scripts that look like
Latin ones do not make another question.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tbd.foreign import JOINERS

ROWS = 256
"""questions compared with all others at once: 256 x 20,000 pairs that all share an n-gram take about 200 MB"""

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_BREAKS = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
"""old marks of a line, a page or a field, which no screen shows and some programs take for spaces"""
_WORD = re.compile(r"\w+|(?<!\*)\*(?!\*)|[^\w\s*.,;:!?'\"()\[\]…–—“”‘’-]")
"""words, and signs that carry meaning in a formula; punctuation does not"""


def pairs(left: Sequence[str], right: Sequence[str] | None, ngram: int, max_overlap: float) -> list[tuple[int, int]]:
    """Index pairs (i, j), in ascending order, of near-duplicates `left[i]` and `right[j]`.

    Without `right`, pairs within `left`, i < j. `ngram` is the number of words in an n-gram; a question with fewer
    words is a near-duplicate of one with the same words in the same order alone. `max_overlap`, in (0, 1], is the
    smallest Jaccard index that counts. Time grows with the number of pairs that share numbers and an n-gram, memory
    with `ROWS` times the longer side. Raises ValueError on parameters out of range.

    >>> texts = ["Tom has 3 red apples.", "tom  has 3 RED apples", "Tom has 4 red apples."]
    >>> pairs(texts, None, ngram=2, max_overlap=0.5)
    [(0, 1)]
    """
    if ngram < 1 or not 0 < max_overlap <= 1:
        raise ValueError(f"ngram is {ngram}, at least 1 is needed; max_overlap is {max_overlap}, it must be in (0, 1]")
    texts = [*left, *(right or [])]
    if not left or len(texts) < 2:
        return []
    if any(map(_BREAKS.search, texts)):  # unseen inside a word, a space between two

        def read_as(character: str) -> list[tuple[int, int]]:
            one, other = ([_BREAKS.sub(character, text) for text in side] for side in (left, right or []))
            return pairs(one, None if right is None else other, ngram, max_overlap)

        return sorted({*read_as(""), *read_as(" ")})
    # where there is something to compare: the import takes more than a second
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(analyzer=lambda text: _features(text, ngram), binary=True, dtype=np.int32)
    features = vectorizer.fit_transform(texts).tocsr()
    sizes: NDArray[np.int64] = np.diff(features.indptr)
    start = 0 if right is None else len(left)
    columns = features[start:].T.tocsr()

    found: list[tuple[int, int]] = []
    for first in range(0, len(left), ROWS):
        shared = (features[first : min(first + ROWS, len(left))] @ columns).tocoo()
        i, j = shared.row + first, shared.col
        overlap = shared.data / (sizes[i] + sizes[start + j] - shared.data)
        near = overlap >= max_overlap
        if right is None:
            near &= i < j
        found += zip(i[near].tolist(), j[near].tolist(), strict=True)
    return sorted(found)


_LOOK_ALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХԚԜаԁеһіјӏорԛѕԝхусΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυχ", "ABESIJKMHOPCTYXQWadehijlopqswxycABEZHIKMNOPTYXaikvopux"
)
"""Cyrillic and Greek letters drawn as Latin ones, after the table of Unicode TR 39 (confusables.txt)"""
_IGNORED = [
    *((0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2065, 0x2065), (0x2800, 0x2800)),
    *((0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF)),
]
_UNSEEN = {chr(code) for first, last in _IGNORED for code in range(first, last + 1)}
"""default-ignorable by Unicode (DerivedCoreProperties.txt), and the empty Braille cell, beside all of Cf and Cc"""
_LATIN = 0.25
"""share of a text's letters from which it counts as written in Latin ones; a text in Russian or Greek stays as it is"""


def _as_seen(text: str) -> str:
    """Without what nobody sees, with the digits 0 to 9, and a word of Latin letters and look-alikes in Latin ones.

    Greek symbols stay.
    """
    letters = [c for c in text if c.isalpha()]
    latin = sum(c.isascii() for c in letters) >= _LATIN * len(letters)
    latin = latin or "".join(letters).translate(_LOOK_ALIKES).isascii()
    spelt = "" if latin else JOINERS  # other scripts are spelt with them
    text = "".join(c for c in text if c in spelt or c.isspace() or not _unseen(c))
    if text.isascii():
        return text
    text = "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in text)
    return re.sub(r"\w+", _latin, text) if latin else text


def _unseen(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Cc") or character in _UNSEEN


def _latin(word: re.Match[str]) -> str:
    folded = word[0].translate(_LOOK_ALIKES)
    symbol = len(word[0]) == 1 and "\u0370" <= word[0] <= "\u03ff"
    return folded if folded.isascii() and not symbol else word[0]


def _features(text: str, ngram: int) -> Iterator[str]:
    """The word n-grams, each behind all numbers of the text, so that texts with other numbers have none in common."""
    # Case folding can undo the normal form, so that comes first and last; "_" is punctuation, although \w matches it.
    text = unicodedata.normalize("NFKC", _as_seen(unicodedata.normalize("NFKC", text)).casefold()).replace("_", " ")
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    text = _NUMBER.sub(_one_spelling, text)
    numbers = " ".join(sorted(_NUMBER.findall(text)))
    words = _WORD.findall(text)
    grams = [words[k : k + ngram] for k in range(len(words) - ngram + 1)]
    # A text too short for an n-gram is its whole sequence of words or, where it has none, of signs.
    for gram in grams or [words or text.split()]:
        yield f"{numbers}|{' '.join(gram)}"


def _one_spelling(number: re.Match[str]) -> str:
    """`007.50` as `7.5`; not through float or Decimal, which round long numbers."""
    whole, _, fraction = number[0].partition(".")
    return f"{whole.lstrip('0') or '0'}.{fraction.rstrip('0')}".rstrip(".")
