"""The suites, run by Great Expectations itself: good data passes, each fault is named by exactly the expectations it
breaks."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tbd import records
from tbd.records import question_id, sha256
from tbd.sets.expectations import Outcome, check_generations, check_questions, write_docs

MARKER = "zyzzogeton"  # in every question; must never come out
NAMES = ["Ann", "Ben", "Cem", "Dora", "Emil", "Fay", "Gil", "Hana", "Ida", "Jon", "Kim", "Lea"]
UNSEEN = [
    f"{name} the {MARKER} rides {30 + k} miles to the coast and back on a borrowed bicycle."
    for k, name in enumerate(NAMES)
]
BETWEEN, NOT_NULL, IN_SET = (f"expect_column_values_to_{what}" for what in ("be_between", "not_be_null", "be_in_set"))
REGEX, UNIQUE = "expect_column_values_to_match_regex", "expect_column_values_to_be_unique"
ROWS = "expect_table_row_count_to_be_between (table)"


def questions(texts: list[str] | None = None, label: object = None) -> pd.DataFrame:
    texts = texts or [
        f"{name} the {MARKER} buys {k + 2} pears, eats one and gives the rest away." for k, name in enumerate(NAMES)
    ]
    rows = {"question_id": [question_id(text) for text in texts], "question": texts, "source": "made by hand"}
    return pd.DataFrame(rows).assign(reasoning=None, answer=None, label=label)


def named(outcome: Outcome) -> list[str]:
    """`type (column)` of each failure, after what holds for every outcome: a line each, no question text, a truthful
    result."""
    assert outcome.result.success is (not outcome.failures)
    assert not any(MARKER in line or "\n" in line for line in outcome.failures)
    return [line.split(":")[0] for line in outcome.failures]


def check(frame: pd.DataFrame, unseen: list[str] = UNSEEN) -> Outcome:
    return check_questions("benchmark", frame, {"unseen": unseen}, ngram=3, max_overlap=0.5)


@pytest.mark.parametrize(
    "label", [None, 0, 1, [0, 1] * 6, pd.array([0, 1] * 6, "Int8"), pd.array([None] * 12, "Int8")], ids=str
)
def test_good_questions(label: object) -> None:
    outcome = check(questions(label=label))
    assert outcome.result.success and not outcome.failures and len(outcome.result.results) == 13


def test_questions_as_stored(tmp_path: Path) -> None:
    frame = questions(label=pd.array([0, 1] * 6, "Int8"))
    records.write_table(
        tmp_path / "set.parquet", pa.Table.from_pandas(frame, preserve_index=False).select(records.QUESTIONS.names)
    )
    assert not check(records.read_table(tmp_path / "set.parquet", records.QUESTIONS).to_pandas()).failures
    nothing = records.QUESTIONS.empty_table().to_pandas()
    assert named(check(nothing)) == [ROWS]


def with_values(column: str, values: object, rows: slice = slice(None)) -> Callable[[], pd.DataFrame]:
    def build() -> pd.DataFrame:
        frame = questions().astype(object)
        frame.loc[frame.index[rows], column] = values
        return frame

    return build


FIRST = slice(0, 1)
BAD_QUESTIONS = {
    "empty": (lambda: questions().iloc[:0], [ROWS]),
    "all questions null": (with_values("question", None), [f"{NOT_NULL} (question_words)"]),
    "one question NaN": (with_values("question", np.nan, FIRST), [f"{NOT_NULL} (question_words)"]),
    "all questions blank": (with_values("question", " \n"), [f"{BETWEEN} (question_words)"]),
    "all ids null": (with_values("question_id", None), [f"{NOT_NULL} (question_id)", f"{IN_SET} (id_is_of_question)"]),
    "an id of another question": (with_values("question_id", "0" * 16, FIRST), [f"{IN_SET} (id_is_of_question)"]),
    "no hex in an id": (
        with_values("question_id", f"{MARKER}", FIRST),
        [f"{REGEX} (question_id)", f"{IN_SET} (id_is_of_question)"],
    ),
    "a question twice": (lambda: pd.concat([questions(), questions().iloc[:1]]), [f"{UNIQUE} (question_id)"]),
    "a near-duplicate inside": (
        lambda: questions(
            [*questions()["question"], f"ann, the {MARKER}, buys 2 pears; eats one and gives the rest back"]
        ),
        [f"{BETWEEN} (near_duplicates)"],
    ),
    "a near-duplicate in another set": (
        lambda: questions([*questions()["question"], UNSEEN[4].replace("coast", "lake")]),
        [f"{BETWEEN} (near_duplicates_in_unseen)"],
    ),
    "a question of another set": (
        lambda: questions([*questions()["question"], "  " + UNSEEN[4]]),
        [f"{BETWEEN} (also_in_unseen)"],
    ),
    "label 2": (lambda: questions(label=[0, 1, 2] * 4), [f"{IN_SET} (label)"]),
    "label inf": (lambda: questions(label=[0, 1, np.inf] * 4), [f"{IN_SET} (label)"]),
    "partly labelled": (
        lambda: questions(label=[0, 1, None] * 4),
        ["expect_column_unique_value_count_to_be_between (labelled)"],
    ),
    "all sources null": (with_values("source", None), [f"{NOT_NULL} (source)"]),
}


@pytest.mark.parametrize("fault", BAD_QUESTIONS)
def test_bad_questions(fault: str) -> None:
    build, expected = BAD_QUESTIONS[fault]
    assert named(check(build())) == expected


def test_other_numbers_are_another_question() -> None:
    assert not check(
        questions([text.replace("buys", "buys 700 plums and") for text in questions()["question"]])
    ).failures
    assert not check(questions(), [*UNSEEN, questions()["question"][0].replace("2", "99")]).failures


def test_faults_of_another_set_are_its_own() -> None:
    assert not check(questions(), [*UNSEEN, None, np.nan, "", " "]).failures  # type: ignore[list-item]


def test_failure_names_five_ids_and_counts_the_rest() -> None:
    frame = questions()
    outcome = check(frame, [*UNSEEN, *frame["question"][:7]])
    assert outcome.failures == [
        f"{BETWEEN} (also_in_unseen): failed. No question is also in unseen: remove it from one of the two. Found: "
        f"7 of 12 rows: {', '.join(frame['question_id'][:5])} and 2 more."
    ]


# Generations

IDS = {
    "benchmark": pa.array([question_id(text) for text in questions()["question"]]),
    "unseen": pa.array([question_id(text) for text in UNSEEN]),
}


def answers() -> list[dict[str, object]]:
    return [
        {
            "set": name,
            "question_id": key,
            "prompt_sha256": sha256(key),
            "token_ids": [5, 6, 7],
            "logprobs": [-0.5, 0.0, -2.0],
            "base_logprobs": [-0.7, 1e-7, -3.0],
            "finish_reason": "stop",
        }
        for name, keys in IDS.items()
        for key in keys
    ]


def generations(rows: list[dict[str, object]]) -> list[pa.Table]:
    """In pieces."""
    return [pa.Table.from_pylist(some, records.GENERATIONS) for some in (rows[:2], rows[2:])]


def changed(count: int = 1, **values: object) -> list[dict[str, object]]:
    return [row | values if place < count else row for place, row in enumerate(answers())]


def test_good_generations() -> None:
    outcome = check_generations("reference", generations(answers()), IDS)
    assert outcome.result.success and not outcome.failures and len(outcome.result.results) == 20


@pytest.mark.parametrize(
    "rows",
    [
        changed(99, base_logprobs=None),
        changed(1, base_logprobs=None),
        changed(2, token_ids=[], logprobs=[], base_logprobs=[], finish_reason="length"),
    ],
    ids=["no base", "one without base", "two empty answers"],
)
def test_legal_generations(rows: list[dict[str, object]]) -> None:
    assert check_generations("reference", generations(rows), IDS).failures == []


PAIR, COMPOUND = "expect_column_pair_values_to_be_equal", "expect_compound_columns_to_be_unique (set, question_id)"
MISSING = [f"{BETWEEN} (unanswered_in_benchmark)"]
BAD_GENERATIONS = {
    "an answer missing": (answers()[1:], MISSING),
    "a whole set missing": (answers()[12:], MISSING),
    "an answer twice": ([*answers(), answers()[0]], [COMPOUND]),
    "a question nobody asked": ([*answers(), answers()[0] | {"question_id": "0" * 16}], [f"{IN_SET} (expected)"]),
    "a set nobody asked": ([*answers(), answers()[0] | {"set": "other"}], [f"{IN_SET} (expected)"]),
    "one in the wrong set": (changed(set="unseen"), [f"{IN_SET} (expected)", *MISSING]),
    "-inf": (changed(logprobs=[-0.5, -np.inf, -1.0]), [f"{BETWEEN} (non_finite_logprobs)"]),
    "+inf": (changed(logprobs=[-0.5, np.inf, -1.0]), [f"{BETWEEN} (non_finite_logprobs)"]),
    "NaN": (changed(logprobs=[-0.5, np.nan, -1.0]), [f"{BETWEEN} (non_finite_logprobs)"]),
    "null in a list": (changed(logprobs=[-0.5, None, -1.0]), [f"{BETWEEN} (non_finite_logprobs)"]),
    "all NaN": (changed(99, logprobs=[np.nan] * 3), [f"{BETWEEN} (non_finite_logprobs)"]),
    "positive": (changed(logprobs=[-0.5, 1e-5, -1.0]), [f"{BETWEEN} (positive_logprobs)"]),
    "fewer log-probs": (changed(logprobs=[-0.5]), [f"{PAIR} (tokens, logprobs)"]),
    "more log-probs": (changed(logprobs=[-0.5] * 4), [f"{PAIR} (tokens, logprobs)"]),
    "fewer base log-probs": (changed(base_logprobs=[]), [f"{PAIR} (tokens, base_logprobs)"]),
    "base -inf": (changed(base_logprobs=[-0.5, -np.inf, -1.0]), [f"{BETWEEN} (non_finite_base_logprobs)"]),
    "base positive": (changed(base_logprobs=[-0.5, 0.1, -1.0]), [f"{BETWEEN} (positive_base_logprobs)"]),
    "all log-probs null": (changed(99, logprobs=None), [f"{NOT_NULL} (logprobs)"]),
    "all tokens null": (changed(99, token_ids=None), [f"{NOT_NULL} (tokens)"]),
    "too many empty answers": (changed(3, token_ids=[], logprobs=[], base_logprobs=[]), [f"{BETWEEN} (tokens)"]),
    "finish_reason": (changed(finish_reason="abort"), [f"{IN_SET} (finish_reason)"]),
    "all finish_reasons null": (changed(99, finish_reason=None), [f"{NOT_NULL} (finish_reason)"]),
    "prompt_sha256": (changed(prompt_sha256=MARKER), [f"{REGEX} (prompt_sha256)"]),
}


@pytest.mark.parametrize("fault", BAD_GENERATIONS)
def test_bad_generations(fault: str) -> None:
    rows, expected = BAD_GENERATIONS[fault]
    assert named(check_generations("reference", generations(rows), IDS)) == expected


def test_no_generations() -> None:
    found = named(check_generations("reference", generations([]), IDS))
    assert found == [ROWS]


def test_missing_answers_are_named() -> None:
    (failure,) = check_generations("reference", generations(answers()[7:]), IDS).failures
    assert failure.endswith(
        f"run the generation again. Found: 7 questions: {', '.join(IDS['benchmark'][:5].to_pylist())} and 2 more."
    )


# Data Docs


def make_outcomes() -> list[Outcome]:
    bad = questions([*questions()["question"], questions()["question"][0] + " Or not?", *UNSEEN[:2]])
    bad.loc[3, "question_id"] = MARKER
    return [
        check(questions()),
        check_questions("bad", bad, {"unseen": UNSEEN}, 3, 0.5),
        check_generations("answers", generations([]), IDS),
    ]


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return make_outcomes()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_docs_hold_every_outcome_and_no_question(outcomes: list[Outcome], tmp_path: Path) -> None:
    assert [bool(outcome.failures) for outcome in outcomes] == [False, True, True]
    write_docs(outcomes, tmp_path / "docs")
    pages = contents(tmp_path / "docs")
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]
    for outcome in outcomes:
        assert sum(name.startswith(f"validations/{outcome.name}/") for name in pages) == 1
        assert outcome.name in pages["index.html"].decode()
        assert MARKER not in json.dumps(outcome.result.to_json_dict())
    assert not any(MARKER.encode() in page for page in pages.values())
    assert sum(map(len, pages.values())) < 500_000


@pytest.fixture
def somewhere_else() -> Iterator[Callable[[], None]]:
    """Moves the clock to another time zone for the rest of the test."""
    with pytest.MonkeyPatch.context() as patch:

        def move() -> None:
            patch.setenv("TZ", "Asia/Tokyo")
            time.tzset()

        yield move
    time.tzset()


def test_docs_are_the_same_bytes_again(
    outcomes: list[Outcome], tmp_path: Path, somewhere_else: Callable[[], None]
) -> None:
    write_docs(outcomes, tmp_path / "one")
    somewhere_else()
    write_docs(outcomes[:1], tmp_path / "two")  # replaced whole by the next
    write_docs(make_outcomes(), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_docs_refuse_two_outcomes_of_one_name(outcomes: list[Outcome], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share a name"):
        write_docs([outcomes[0]] * 2, tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_nothing_is_drawn_or_left_behind(
    outcomes: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    check(questions())
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
