"""`tbd plan` in a real workspace on the fake engine: with a detector and without, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from tbd.checkpoints import fingerprint
from tbd.commands import plan
from tbd.report.plan import Plan
from tests.test_cli import SETS, Command, enter
from tests.workspace import Workspace, fake_checkpoint, finished

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished one; planning changes nothing, so one serves all."""
    made = finished()[0].copy(tmp_path_factory.mktemp("plan") / "workspace")
    fake_checkpoint(made.root / "runs/model", "one question")
    return made


@pytest.fixture
def tbd(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return enter(workspace, monkeypatch, capsys)


def planned(tbd: Command, *arguments: Any) -> Plan:
    """What `--json` prints; nothing in the workspace has changed."""
    before = tbd.workspace.hashes()
    found = Plan.model_validate_json(tbd("plan", *arguments, "--json")[0])
    assert tbd.workspace.hashes() == before
    return found


def test_of_an_audit_with_a_detector(tbd: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = json.loads((tbd.root / "detector/detector.json").read_text())
    provenance = detector["references"][0]["provenance"]
    provenance["base_fingerprint"] = fingerprint(tbd.root / "checkpoints/base")  # as the real engine has it
    (tmp_path / "detector.json").write_text(json.dumps(detector))
    monkeypatch.setattr(plan, "DETECTOR", tmp_path / "detector.json")
    found = planned(tbd, "reference")
    assert (found.audit, found.checkpoint, found.with_base) == ("reference", "checkpoints/reference", True)
    assert found.reference and found.reference.same_base is True and found.reference.audit == "reference"
    # 40 questions, a byte a token, 20 new tokens each; the base reads them again, and answers too
    questions = found.benchmark.questions + found.unseen.questions
    assert questions == 80 and found.passes[0].written == 1600
    assert found.passes[1].read == found.passes[0].read + 1600 and found.passes[2].read == found.passes[0].read
    assert [one.model for one in found.speeds] == ["checkpoint", "base"] and found.seconds is not None
    measured, *assumed = found.strengths
    assert [cell.unseen for cell in measured.found] == [40, 60, 80, 200]
    assert all(cell.low is None and cell.high is None for one in assumed for cell in one.found)
    high = measured.found[0].high
    assert found.no_evidence is (high is not None and high <= 0.6)  # detectable_share of the small workspace
    # the members are easily told: what is planned is what the audit then says
    told = tbd.workspace.verdict("reference")["power"]
    cell = measured.found[0]
    assert (cell.mde80, cell.low, cell.high) == (told["mde80"], told["mde80_low"], told["mde80_high"])


def test_more_unseen_questions_and_a_stronger_trace_find_smaller_shares(tbd: Command) -> None:
    weak, middle, strong = planned(tbd, "--parameters", "7e9", *SETS).strengths[1:]
    for one in (middle, strong):
        shares = [cell.mde80 for cell in one.found if cell.mde80 is not None]
        assert shares and shares[-1] <= shares[0] + 0.02
    last = [one.found[-1].mde80 or 2.0 for one in (weak, middle, strong)]
    assert last == sorted(last, reverse=True)


def test_without_detector_and_checkpoint(tmp_path: Path, tbd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "DETECTOR", tmp_path / "detector.json")
    found = planned(tbd, "--parameters", "7e9", *SETS, "--base", "org/name@main")
    assert found.reference is None and found.no_evidence is None and len(found.strengths) == 3
    assert found.rough and found.seconds is None and found.speeds == []
    assert [(one.parameters, one.weights, one.cache) for one in found.memory] == [(7 * 10**9, 28 * 10**9, None)]
    assert len(found.passes) == 3


def test_what_longer_answers_buy_where_several_were_tried(tbd: Command) -> None:
    reference = planned(tbd, "base", "--no-burst").reference
    assert reference and [one.m for one in reference.tokens] == [10, 20]


def test_a_reference_with_another_base_is_told(tbd: Command) -> None:
    found = planned(tbd, "runs/model", *SETS, "--base", "runs/model", "--no-burst")
    assert found.reference and found.reference.same_base is False
    assert "distilled from another base" in found.notes[0]
    alone = planned(tbd, "runs/model", *SETS, "--no-burst")
    assert alone.reference and alone.reference.same_base is None


def test_the_table_and_the_page(tbd: Command, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    out, err = tbd("plan", "runs/model", *SETS, "--html", page)
    assert "assumed, d' = 2" in out and f"page: {page}" in out and "measuring the checkpoint" in err
    assert "Plan of an audit" in page.read_text() and "://" not in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name an AUDIT, or --benchmark and --unseen"),
        (["--parameters", "7e9"], "name an AUDIT"),
        (["bse"], "unknown audit 'bse'. Did you mean 'base'?"),
        (["base", "--base", "runs/model"], "an audit names its own base"),
        (["base", "--parameters", "7e9"], "is here and says its size itself"),
        (["--benchmark", "benchmark", "--parameters", "7e9"], "name an AUDIT"),
        (["--benchmark", "benchmrk", "--unseen", "unseen", "--parameters", "7e9"], "Did you mean 'benchmark'?"),
        (["--benchmark", "unseen", "--unseen", "unseen", "--parameters", "7e9"], "Name two different sets"),
        (SETS, "a checkpoint's folder or its size"),
        (["runs/none", *SETS], "runs/none: no such checkpoint folder"),
        (["runs/model", *SETS, "--base", "runs/none"], "--base runs/none: no such checkpoint folder"),
        (["runs/model", *SETS, "--parameters", "7e9"], "Leave --parameters out"),
        (["data", *SETS], "data: no config.json"),
        (["--parameters", "0", *SETS], "--parameters 0: a number of parameters"),
        (["--parameters", "nan", *SETS], "--parameters nan: a number of parameters"),
        (["--parameters", "inf", *SETS], "--parameters inf: a number of parameters"),
        (["--parameters", "seven", *SETS], "argument --parameters: invalid float value: 'seven'"),
        (["base", "--html", "."], "--html .: a folder"),
    ],
)
def test_refused_in_one_line(tbd: Command, arguments: list[str], said: str) -> None:
    assert said in tbd.refused("plan", *arguments)


def test_json_is_one_document_of_every_field(tbd: Command) -> None:
    out, _ = tbd("plan", "runs/model", *SETS, "--json")
    assert set(json.loads(out)) == set(Plan.model_fields)
