"""Near-duplicates: golden pairs worked by hand, and what must hold for any texts."""

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbd.sets import near_duplicates
from tbd.sets.near_duplicates import pairs

TOM = "Tom buys 12 red apples and 3 green pears at the market on Monday."
WORDS = st.sampled_from(["tom", "Ann", "STRASSE", "apples", "has", "3", "12", "1.5", "1,000", "été", "x"])
TEXTS = st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=12)
few = settings(max_examples=60, deadline=None)


def near(one: str, other: str, ngram: int = 3, max_overlap: float = 0.5) -> bool:
    return pairs([one], [other], ngram, max_overlap) == [(0, 0)]


@pytest.mark.parametrize(
    "other",
    [
        TOM,
        TOM.upper(),
        "  Tom buys\t12 red apples\nand 3 green pears at the market on Monday ",
        "Tom buys 12 red apples, and 3 green pears, at the market -- on Monday!",
        "“Tom” buys **12** red apples _and_ 3 green pears (at the market) on Monday",
        "Tom buys １２ red apples and 3 green pears at the market on Monday.",  # full-width digits
        "Tom buys 12.0 red apples and 03 green pears at the market on Monday.",
        "Tom buys 12 red apples and 3 green pears at the market on Tuesday.",  # 10 of 12 trigrams: 10 / 12
    ],
)
def test_same_question(other: str) -> None:
    assert near(TOM, other)


@pytest.mark.parametrize(
    "other",
    [
        TOM.replace("12", "13"),
        TOM.replace("12", "1.2"),
        TOM.replace("12", "12 or 12"),  # a multiset: twice is not once
        TOM.replace("3", "12").replace("12", "3", 1).replace("pears", "12"),
        "On Monday 12 buyers of green apples met Tom, who had 3 pears.",  # the same numbers, other sentences
        "",
    ],
)
def test_other_question(other: str) -> None:
    assert not near(TOM, other)


def test_overlap_is_jaccard_of_distinct_ngrams_and_the_bound_is_included() -> None:
    one, other = "a b c d e", "a b c d f"  # bigrams: ab bc cd de | ab bc cd df: 3 shared of 5
    assert near(one, other, ngram=2, max_overlap=0.6)
    assert not near(one, other, ngram=2, max_overlap=0.61)
    assert near("a b a b a b", "a b a", ngram=2, max_overlap=1.0)  # sets {ab, ba}: repetition does not count


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1,000 apples for two", "1000 apples for two", True),
        ("1,234,567.50 apples for two", "1234567.5 apples for two", True),
        ("1,000 apples for two", "1 apples for two", False),
        ("1.5 apples + 2 pears", "1 apples + 5.2 pears", False),
        ("roll 1,2,3 apples now", "roll 1, 2, 3 apples now", True),  # a list, no thousands
        ("12345678901234567890123456789012 apples", "12345678901234567890123456789013 apples", False),
        ("0.10 apples for two", "0.1 apples for two", True),
    ],
)
def test_numbers(one: str, other: str, same: bool) -> None:
    assert near(one, other, ngram=2, max_overlap=0.6) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 3 + 4?", "what is 3+4", True),
        ("What is 3 + 4?", "What is 4 + 3?", False),  # the same numbers in another order
        ("Why?", "why", True),
        ("Why?", "What is 3 + 4?", False),
        ("∫ ?", "∫  ?", True),
        ("∫ ?", "∑ ?", False),
        ("是什么", "是什么？", True),
    ],
)
def test_shorter_than_an_ngram(one: str, other: str, same: bool) -> None:
    assert near(one, other, ngram=8, max_overlap=0.1) is same
    assert pairs([one, other], None, 8, 0.1) == ([(0, 1)] if same else [])


def test_short_is_not_part_of_long() -> None:
    assert not near("tom has apples", "tom has apples and pears", ngram=4, max_overlap=0.01)


def test_nothing_to_compare() -> None:
    assert (
        pairs([], None, 3, 0.5)
        == pairs([TOM], None, 3, 0.5)
        == pairs([], [TOM], 3, 0.5)
        == pairs([TOM], [], 3, 0.5)
        == []
    )


@pytest.mark.parametrize(("ngram", "max_overlap"), [(0, 0.5), (3, 0.0), (3, 1.1), (3, float("nan"))])
def test_parameters_out_of_range(ngram: int, max_overlap: float) -> None:
    with pytest.raises(ValueError, match="max_overlap"):
        pairs([TOM], [TOM], ngram, max_overlap)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{TOM} And then {word}." for word in ("one", "two", "three", "four", "five", "six", "seven")]
    whole = pairs(texts, None, 3, 0.7), pairs(texts, texts[::-1], 3, 0.7)
    monkeypatch.setattr(near_duplicates, "ROWS", 2)
    assert (pairs(texts, None, 3, 0.7), pairs(texts, texts[::-1], 3, 0.7)) == whole
    assert len(whole[0]) == 21


@few
@given(TEXTS, TEXTS, st.integers(1, 4))
def test_symmetric(left: list[str], right: list[str], ngram: int) -> None:
    assert sorted((j, i) for i, j in pairs(left, right, ngram, 0.4)) == pairs(right, left, ngram, 0.4)


@few
@given(TEXTS, st.integers(1, 4))
def test_within_is_across_with_itself(texts: list[str], ngram: int) -> None:
    assert pairs(texts, None, ngram, 0.4) == [(i, j) for i, j in pairs(texts, texts, ngram, 0.4) if i < j]


@few
@given(st.lists(st.text(max_size=30), min_size=1, max_size=6), st.integers(1, 4))
def test_every_text_is_its_own_copy(texts: list[str], ngram: int) -> None:
    assert {(i, i) for i in range(len(texts))} <= set(pairs(texts, texts, ngram, 1.0))


@few
@given(
    st.lists(WORDS, min_size=1, max_size=12),
    st.integers(1, 6),
    st.sampled_from(["  ", "\n", " ? ", " - ", " _ ", "; "]),
)
def test_copies_with_other_case_spacing_and_punctuation(words: list[str], ngram: int, gap: str) -> None:
    assert near(" ".join(words), f"({gap.join(words).upper()}!)", ngram, 1.0)


@few
@given(TEXTS, st.randoms(use_true_random=False), st.integers(1, 4))
def test_order_of_questions_changes_nothing(texts: list[str], random: Random, ngram: int) -> None:
    order = list(range(len(texts)))
    random.shuffle(order)
    shuffled = pairs([texts[k] for k in order], None, ngram, 0.4)
    assert sorted(tuple(sorted((order[i], order[j]))) for i, j in shuffled) == pairs(texts, None, ngram, 0.4)


@few
@given(TEXTS, st.integers(1, 4), st.floats(0.05, 1))
def test_agrees_with_plain_sets(texts: list[str], ngram: int, max_overlap: float) -> None:
    """The same rule without matrices, for texts whose numbers are plain."""

    def parts(text: str) -> tuple[list[str], set[tuple[str, ...]]]:
        folded = text.casefold().replace("1,000", "1000")
        words = re.findall(r"\w+", folded)
        grams = {tuple(words[k : k + ngram]) for k in range(len(words) - ngram + 1)}
        return sorted(re.findall(r"[\d.]+", folded)), grams or {tuple(words)}

    kept = [parts(text) for text in texts]
    expected = []
    for i, (numbers, grams) in enumerate(kept):
        for j in range(i + 1, len(kept)):
            their_numbers, theirs = kept[j]
            if numbers == their_numbers and len(grams & theirs) / len(grams | theirs) >= max_overlap:
                expected.append((i, j))
    assert pairs(texts, None, ngram, max_overlap) == expected
