"""The blind control: it fires on sets of another style, and not on halves of one."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tbd import records
from tbd.params import Blind
from tbd.reference import world
from tbd.sets import blind

RULE = Blind(folds=5, permutations=500, questions=2000)


@pytest.fixture(scope="module")
def questions() -> list[str]:
    sets = world.question_sets(7, 40, 40, 80, 3, 0.8)
    return [*sets["benchmark"]["question"], *sets["unseen"]["question"]]


def test_halves_of_one_set_are_not_told_apart(questions: list[str]) -> None:
    rng, fired = np.random.default_rng(0), 0
    for seed in range(10):
        mixed = rng.permutation(questions).tolist()
        auc, p_value = blind.control(mixed[:80], mixed[80:], RULE, seed)
        fired += p_value <= 0.05
        assert 0.2 < auc < 0.8
    assert fired <= 3  # of 10 at 5%: more than 3 has a probability of 0.1%


def test_another_style_is_told_apart(questions: list[str]) -> None:
    polite = [f"Could you please tell me: {question}" for question in questions[:60]]
    auc, p_value = blind.control(questions[60:], polite, RULE, 0)
    assert auc > 0.95 and p_value == pytest.approx(1 / (1 + RULE.permutations))


def test_it_is_the_same_every_time(questions: list[str]) -> None:
    assert blind.control(questions[:50], questions[50:], RULE, 3) == blind.control(
        questions[:50], questions[50:], RULE, 3
    )


def test_of_large_sets_a_sample_is_read(questions: list[str]) -> None:
    polite = [f"Could you please tell me: {question}" for question in questions[:60]]
    few = RULE.model_copy(update={"questions": 30})
    found = blind.control(questions[60:], polite, few, 0)
    assert found is not None and found[0] > 0.7
    assert found == blind.control(questions[60:], polite, few, 0) != blind.control(questions[60:], polite, RULE, 0)


def test_too_few_questions_or_no_common_word_say_nothing() -> None:
    assert blind.control(["a b"] * 4, ["c d"] * 9, RULE, 0) is None
    assert blind.control([f"one{i}" for i in range(9)], [f"two{i}" for i in range(9)], RULE, 0) is None


def test_texts_hold_sources_and_the_control(questions: list[str]) -> None:
    def table(texts: list[str]) -> pa.Table:
        rows = [
            {"question_id": records.question_id(text), "question": text, "source": f"row {i % 3}"}
            for i, text in enumerate(texts)
        ]
        frame = pd.DataFrame(rows, columns=records.QUESTIONS.names)
        return pa.Table.from_pandas(frame, records.QUESTIONS, preserve_index=False)

    found = blind.texts(table(questions[:20]), table(questions[20:45]), RULE, 0)
    assert found.sources[0][:4].tolist() == [1, 2, 3, 1] and len(found.sources[1]) == 25
    assert found.blind is not None and 0 <= found.blind.auc <= 1
    assert blind.texts(table(["a"]), table(["b"]), RULE, 0).blind is None
