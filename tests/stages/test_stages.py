"""Stages called as functions, on the finished workspace's files: what they refuse, and what they leave behind."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tbd import audits, params, records, stages
from tbd.detection.results import Verdict, read_detector, read_verdict
from tbd.errors import TRANSIENT, InputError, StageFailed
from tbd.generation import engines
from tbd.generation.engines.fake import FakeEngine
from tbd.generation.engines.transformers import TransformersEngine
from tbd.progress import Progress
from tbd.stages import calibrate, generate, score, validate, verdict
from tbd.tracking.detector_model import DetectorModel
from tbd.workspace import DETECTOR, set_path
from tests.workspace import Workspace, finished

pytestmark = pytest.mark.slow
MonkeyPatch = pytest.MonkeyPatch


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: MonkeyPatch) -> Workspace:
    workspace = finished()[0].copy(tmp_path / "copy")
    monkeypatch.chdir(workspace.root)
    return workspace


def change(path: str, **columns: Callable[[list[Any]], list[Any]]) -> None:
    """Rewrite columns of a Parquet file."""
    table = pa.parquet.read_table(path)
    for name, new in columns.items():
        field = table.schema.field(name)
        table = table.set_column(
            table.schema.get_field_index(name), field, pa.array(new(table[name].to_pylist()), field.type)
        )
    pa.parquet.write_table(table, path)


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (InputError("no such thing"), 2, "error: no such thing\n"),
        (StageFailed("the disk is full"), 3, "error: the disk is full\n"),
    ],
)
def test_a_stage_ends_in_a_line_and_a_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: MonkeyPatch, raised: Exception, code: int, said: str
) -> None:
    def main(audit: str) -> None:
        assert audit == "a"
        raise raised

    monkeypatch.setattr(sys, "argv", ["generate", "a"])
    with pytest.raises(SystemExit) as stop:
        stages.run(main)
    assert stop.value.code == code and capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generate"])
    with pytest.raises(ZeroDivisionError):
        stages.run(lambda: 1 / 0)


def test_a_parameter_that_is_edited_meanwhile_stops_a_stage(
    copy: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["score", "reference"])
    with pytest.raises(SystemExit) as stop:
        stages.run(lambda _: copy.edit("params.yaml", {"score": {"methods": {"min_k": {"m": 4, "k": 0.5}}}}))
    assert stop.value.code == TRANSIENT
    assert "params.yaml: score: changed while score@reference ran" in capsys.readouterr().err


# --- validate ---------------------------------------------------------------------------------------------------------


def test_overlap_of_benchmark_and_unseen_stops_the_pipeline_by_name(copy: Workspace) -> None:
    benchmark = records.read_table(set_path("benchmark"), records.QUESTIONS)
    unseen = records.read_table(set_path("unseen"), records.QUESTIONS)
    records.write_table(set_path("unseen"), pa.concat_tables([unseen, benchmark.slice(0, 1)]))
    for audit, docs in ((None, "data/validation/docs"), ("base", "audits/base/validation/sets")):
        with pytest.raises(InputError, match=r"data validation failed: unseen: expect_.*also_in_"):
            validate.main(audit)
        assert (copy.root / docs / "index.html").is_file()  # something to look at


def test_a_member_among_the_others_stops_it_too(copy: Workspace) -> None:
    change("data/sets/benchmark.parquet", label=lambda labels: [0] * len(labels))
    with pytest.raises(InputError, match=r"benchmark\.others: expect_"):
        validate.main()


def test_an_audit_of_a_set_that_is_not_there_is_refused(copy: Workspace) -> None:
    copy.edit("audits/base/audit.yaml", {"benchmark": "gone"})
    with pytest.raises(InputError, match=r"no question set 'gone' in data/sets\. Import it"):
        validate.main("base")


# --- generate, score --------------------------------------------------------------------------------------------------


def test_generations_are_the_engines_own_and_carry_how_they_were_made(copy: Workspace) -> None:
    table = records.read_table(Path("audits/reference/generations.parquet"), records.GENERATIONS)
    about = records.metadata(table)
    assert about["decoding"] == "greedy" and about["engine"] == "fake" and about["max_new_tokens"] == 20
    reference, base = FakeEngine(Path("checkpoints/reference")), FakeEngine(Path("checkpoints/base"))
    assert (about["fingerprint"], about["base_fingerprint"]) == (
        reference.identity["fingerprint"],
        base.identity["fingerprint"],
    )
    expected = [(name, row) for name in ("benchmark", "unseen") for row in questions(name)]
    assert [(row["set"], row["question_id"]) for row in table.to_pylist()] == [
        (name, row["question_id"]) for name, row in expected
    ]
    for row, (_, question) in list(zip(table.to_pylist(), expected, strict=True))[::17]:
        prompt = reference.prompt(question["question"])
        ((_, answer),) = reference.generate([prompt], 20)
        assert row["token_ids"] == answer.token_ids.tolist() and row["logprobs"] == answer.logprobs.tolist()
        assert row["base_logprobs"] == base.logprobs([prompt], [answer.token_ids])[0].tolist()
    own = records.read_table(Path("audits/reference/base_generations.parquet"), records.GENERATIONS)
    assert len(own) == 80 and own["base_logprobs"].null_count == 80
    assert len(records.read_table(Path("audits/base/base_generations.parquet"), records.GENERATIONS)) == 0


def questions(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = records.read_table(set_path(name), records.QUESTIONS).to_pylist()
    return rows


def test_a_base_with_another_vocabulary_gives_no_log_probs_but_answers(
    copy: Workspace, monkeypatch: MonkeyPatch
) -> None:
    class Other(FakeEngine):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            self.identity["vocabulary"] = folder.name

    monkeypatch.setitem(engines.ENGINES, "fake", Other)
    generate.main("reference", Progress("test"))
    table = records.read_table(Path("audits/reference/generations.parquet"), records.GENERATIONS)
    assert table["base_logprobs"].null_count == len(table) == 80
    score.main("reference")
    scores = records.read_table(Path("audits/reference/scores.parquet"), records.SCORES)
    assert {method.split("(")[0] for method in scores["method"].to_pylist()} == {"tbd", "mean_logprob"}
    verdict.main("reference")
    found = copy.verdict("reference")
    assert found["detector"]["method"] != "logprob_ratio" and found["verdict"] == "CONTAMINATED"


def test_a_registered_checkpoint_that_changed_is_not_generated_from(copy: Workspace) -> None:
    copy.edit("audits/base/audit.yaml", {"checkpoint_fingerprint": "0" * 64})
    with pytest.raises(InputError, match="no longer the checkpoint that was registered"):
        generate.main("base", Progress("test"))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no template", "no chat template"),
        ("broken template", "chat template does not work"),
        ("", "exceed the 256 of"),
    ],
)
def test_questions_that_make_no_prompt_are_refused_before_weights_are_loaded(
    copy: Workspace, monkeypatch: MonkeyPatch, broken: Callable[[str], Path], tiny_checkpoint: Path, how: str, said: str
) -> None:
    monkeypatch.setattr(TransformersEngine, "open", lambda *_: pytest.fail("weights were loaded"))
    copy.edit("params.yaml", {"generate": {"engine": "transformers"}})
    mine = {"checkpoint": str(broken(how) if how else tiny_checkpoint), "checkpoint_fingerprint": None}
    copy.edit("audits/base/audit.yaml", mine)
    with pytest.raises(InputError, match=said):
        generate.main("base", Progress("test"))


def test_broken_generations_are_not_scored(copy: Workspace) -> None:
    before = Path("audits/base/scores.parquet").read_bytes()
    change("audits/base/generations.parquet", logprobs=lambda rows: [[float("-inf"), *rows[0][1:]], *rows[1:]])
    with pytest.raises(InputError, match=r"generations are not valid: base-checkpoint: expect_.*non_finite_logprobs"):
        score.main("base")
    assert Path("audits/base/scores.parquet").read_bytes() == before


def test_an_empty_answer_has_no_score_and_is_counted_to_the_end(copy: Workspace) -> None:
    change(
        "audits/base/generations.parquet",
        logprobs=lambda rows: [[], *rows[1:]],
        token_ids=lambda rows: [[], *rows[1:]],
    )
    score.main("base")
    table = records.read_table(Path("audits/base/scores.parquet"), records.SCORES)
    missing = table.filter(pc.is_nan(table["score"]))
    assert (
        set(missing["reason"].to_pylist()) == {"no token generated"} and len(missing) == 1
    )  # method that needs no base and no more tokens
    verdict.main("base")
    assert copy.verdict("base")["unscored"] == 1 and any("1 of 40" in line for line in copy.verdict("base")["warnings"])


# --- calibrate --------------------------------------------------------------------------------------------------------


def test_the_detector_is_what_the_contract_says(copy: Workspace) -> None:
    detector = read_detector(DETECTOR)
    assert [one.name for one in detector.references] == ["reference"]
    assert detector.fpr == 0.05 and len(detector.version) == 12
    reference = detector.reference
    assert (reference.questions.members, reference.questions.others, reference.questions.unscored) == (20, 20, 0)
    assert reference.provenance.benchmark.md5 == records.md5(set_path("benchmark"))
    for figures in (reference.alone, reference.with_base):
        assert figures is not None
        assert figures.auc_low <= figures.auc <= figures.auc_high
        assert figures.tpr_low <= figures.tpr_at_fpr <= figures.tpr_high
        assert len(figures.member_p_values) == len(figures.other_p_values) == 20 and len(figures.negatives) == 40
    rows = list(csv.DictReader((DETECTOR.parent / "methods.csv").open()))
    assert {row["method"].split("(")[0]: row["with_base"] for row in rows} == {
        "tbd": "False", "mean_logprob": "False", "logprob_ratio": "True"
    }  # fmt: skip


def test_a_reference_that_dvc_does_not_know_of_is_refused(copy: Workspace) -> None:
    copy.edit("params.yaml", {"calibrate": {"references": ["reference", "base"]}})
    with pytest.raises(InputError, match=r"Add the line - audits/\$\{calibrate.references\[1\]\}/scores.parquet"):
        calibrate.main()


def test_a_reference_without_labels_or_with_too_few_cannot_calibrate(copy: Workspace) -> None:
    path = "audits/reference/scores.parquet"
    good = Path(path).read_bytes()
    change(path, label=lambda labels: [None] * len(labels))
    with pytest.raises(InputError, match="needs labels, 1 and 0"):
        calibrate.main()
    Path(path).write_bytes(good)
    first = questions("benchmark")[0]["question_id"]
    ids = pa.parquet.read_table(path)["question_id"].to_pylist()
    change(path, label=lambda labels: [int(identity == first) for identity in ids])
    with pytest.raises(InputError, match="at least 2 members and 2 others"):
        calibrate.main()


def test_a_rate_the_unseen_questions_cannot_resolve_is_refused(copy: Workspace) -> None:
    copy.edit("params.yaml", {"decision": {"fpr": 0.01}})
    with pytest.raises(InputError, match=r"decision\.fpr: 0\.01 needs 99 unseen questions and 'unseen' has 40: add 59"):
        calibrate.main()


def test_methods_that_all_need_a_base_make_no_detector(copy: Workspace) -> None:
    copy.edit("params.yaml", {"score": {"methods": {"logprob_ratio": {"m": 20}}}})
    assert params.load().score.methods == {"logprob_ratio": {"m": 20}}
    score.main("reference")
    with pytest.raises(InputError, match="every method needs a base model"):
        calibrate.main()


# --- a cascade --------------------------------------------------------------------------------------------------------


def test_a_cascade_from_the_reference_to_the_verdict(copy: Workspace) -> None:
    """The same checkpoint as an audit that is no reference, with its base."""
    copy.edit("params.yaml", {"calibrate": {"cascade": {"m": 6, "keep": 0.3}}})
    audits.write("again", audits.get("reference"))
    score.main("reference")
    calibrate.main()
    detector = read_detector(DETECTOR)
    steps, base, tokens = detector.cascade, detector.choices.with_base, detector.tokens
    assert steps is not None and base is not None and tokens > 6

    def audited() -> tuple[Verdict, pa.Table, dict[str, pa.Table]]:
        generate.main("again", Progress("test"))
        score.main("again")
        verdict.main("again")
        folder = Path("audits/again")
        answers = {
            name: records.read_table(folder / f"{name}.parquet", records.GENERATIONS)
            for name in ("generations", "base_generations")
        }
        return read_verdict(folder / "verdict.json"), pa.parquet.read_table(folder / "questions.parquet"), answers

    found, questions, answers = audited()
    lengths = {"cut": 6, "length": tokens}
    for name, table in answers.items():
        for row in table.to_pylist():
            assert len(row["token_ids"]) == lengths[row["finish_reason"]]
            assert name != "generations" or len(row["base_logprobs"]) == len(row["token_ids"])
        assert 0 < pc.sum(pc.equal(table["finish_reason"], "cut")).as_py() < len(table)
    ended = pc.sum(pc.equal(answers["generations"]["finish_reason"], "cut")).as_py()
    assert found.stopped is not None and found.stopped.benchmark + found.stopped.unseen == ended
    assert found.verdict == "CONTAMINATED" and found.answers.short == 0 and found.generation.model_extra is not None
    assert found.generation.model_extra["cascade"] == steps.model_dump(include={"id", "m", "cut"})

    copy.edit("params.yaml", {"generate": {"tokens": "all"}})  # written to their end, and judged alike
    whole, same, answers = audited()
    assert set(answers["generations"]["finish_reason"].to_pylist()) == {"length"} and same.equals(questions)
    assert whole.model_dump(exclude={"generation"}) == found.model_dump(exclude={"generation"})

    new = answers["generations"].filter(pc.equal(answers["generations"]["set"], "unseen")).to_pandas()
    model = DetectorModel(detector).predict(new[["logprobs", "base_logprobs"]])
    assert sorted(model["score"]) == pytest.approx(detector.reference.figures("with_base").negatives)
