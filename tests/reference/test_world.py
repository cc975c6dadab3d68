"""The planted world's questions."""

import subprocess
import sys

import numpy as np
import pytest

from tbd.records import QUESTIONS, question_id
from tbd.reference.world import question_sets

pytest.importorskip("reasoning_gym", reason="the planted world needs the extra tbd[world]")


@pytest.fixture(scope="module")
def sets():
    return question_sets(seed=3, members=12, others=10, unseen=8, ngram=3, max_overlap=0.8)


def test_sizes_and_columns(sets) -> None:
    assert {name: len(frame) for name, frame in sets.items()} == {"members": 12, "benchmark": 22, "unseen": 8}
    for frame in sets.values():
        assert set(frame.columns) == set(QUESTIONS.names)
        assert (
            not frame.isna().any().any()
            and (frame["question"].str.len() > 20).all()
            and (frame["reasoning"].str.len() > 20).all()
        )
        assert [question_id(question) for question in frame["question"]] == frame["question_id"].tolist()
        assert frame["question_id"].is_unique


def test_the_benchmark_asks_the_members_again_among_others(sets) -> None:
    members, benchmark, unseen = (set(sets[name]["question_id"]) for name in ("members", "benchmark", "unseen"))
    assert members < benchmark and not unseen & benchmark
    labels = sets["benchmark"].set_index("question_id")["label"]
    assert labels.sum() == 12 and set(labels.index[labels == 1]) == members
    assert (sets["unseen"]["label"] == 0).all()


def test_the_order_of_the_benchmark_does_not_tell_the_members(sets) -> None:
    labels = sets["benchmark"]["label"].to_numpy()
    assert 0 < labels[:12].sum() < 12
    assert not np.array_equal(labels, np.sort(labels)) and not np.array_equal(labels, np.sort(labels)[::-1])


def test_the_same_seed_gives_the_same_questions_in_another_process(sets) -> None:
    code = (
        "from tbd.reference.world import question_sets\n"
        "made = question_sets(seed=3, members=12, others=10, unseen=8, ngram=3, max_overlap=0.8)\n"
        "for frame in made.values(): print(*frame['question_id'])"
    )
    lines = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    ).stdout.splitlines()
    assert lines == [" ".join(frame["question_id"]) for frame in sets.values()]


def test_another_seed_gives_other_questions(sets) -> None:
    other = question_sets(seed=1003, members=12, others=10, unseen=8, ngram=3, max_overlap=0.8)
    assert not set(other["benchmark"]["question_id"]) & set(sets["benchmark"]["question_id"])
