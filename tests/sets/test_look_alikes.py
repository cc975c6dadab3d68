"""A question that reads the same is the same, whatever its letters are; honest texts are compared as ever."""

import pytest

from tbd.sets.near_duplicates import _as_seen, pairs

QUESTION = (
    "Every copy of the exam has one hidden price: what does a pack of 12 pens cost if each is sold for 3 dollars?"
)


def hidden(text: str, character: str) -> str:
    return "".join(c + character if c.isalpha() else c for c in text)


@pytest.mark.parametrize(
    "copied",
    [
        *(hidden(QUESTION, c) for c in "\u00ad\u200b\u200c\u200d\u2060\ufeff\u034f\ufe0f\u202e"),
        *(
            hidden(QUESTION, c)
            for c in "\U000e0100\u180b\u17b4\u3164\u1160\uffa0\u2065\ufff0\U000e0080\u2800\x00\x1b\x81\x0b\x0c\x1f\x85"
        ),
        QUESTION.translate(str.maketrans("aeopcxiyh", "аеорсхіуһ")),
        QUESTION.translate(str.maketrans("aeopcx", "аеорсх")).replace("price", "рriсе"),
        QUESTION.translate(str.maketrans("oEv", "οΕν")),
        QUESTION.translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")),
        "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in QUESTION),  # full width
    ],
)
def test_a_copy_that_reads_the_same_is_found(copied: str) -> None:
    assert copied != QUESTION and pairs([QUESTION], [copied], 3, 0.99) == [(0, 0)]


@pytest.mark.parametrize("character", "\x0b\x0c\x1c\x85")
def test_a_copy_with_other_breaks_between_words_is_found(character: str) -> None:
    assert pairs([QUESTION], [QUESTION.replace(" ", character)], 3, 0.99) == [(0, 0)]
    assert pairs([QUESTION, "Another one.", QUESTION.replace(" ", character)], None, 3, 0.99) == [(0, 2)]


@pytest.mark.parametrize(
    "honest",
    [
        QUESTION,
        "Find α + β if a rod is 5 μm long and νx = 3.",
        "Сколько яблок у Анны? В корзине их 12, и она не ест.",
        "Πόσα μήλα έχει η Άννα; Έχει 12 και αγοράζει 3.",
        "Käthe zählt 12 Äpfel, für je 3 €.",
    ],
)
def test_an_honest_text_stays_as_it_is(honest: str) -> None:
    assert _as_seen(honest) == honest.replace("νx", "vx")
