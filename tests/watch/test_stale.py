"""A verdict stands for the questions, the base, the detector and the parameters it came of, not for their names."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from tbd import gates, records
from tbd.history import History, Outcome, event
from tbd.params import Params, Rule
from tbd.sources.folder import Folder
from tbd.watch import outcomes
from tbd.watch.decide import Job, Known, Same, asked
from tbd.workspace import DETECTOR, set_path
from tests.watch.test_watching import INCOMING, changed, judged, lock, look, note, one, only, p, standing
from tests.workspace import fake_checkpoint

__all__ = ["p"]

FILES = (set_path("exam"), set_path("new"), DETECTOR)


def fill(file: Path, text: str) -> None:
    """A question set of one question, or what stands for a detector."""
    row = {"question_id": "q", "question": text, "source": "s"}
    if file != DETECTOR:
        records.write_table(file, pa.Table.from_pylist([row], records.QUESTIONS))
    else:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


@pytest.fixture
def known(p: Params) -> str:
    """A checkpoint with a verdict; the name of its audit."""
    for file in FILES:
        fill(file, "first")
    fake_checkpoint(INCOMING / "alpha")
    audit = judged(only(p)).audit
    assert audit is not None and isinstance(only(p), Known)
    return audit


@pytest.mark.parametrize("file", FILES, ids=str)
def test_other_questions_or_another_detector_under_the_same_name(p: Params, known: str, file: Path) -> None:
    fill(file, "second")
    again = only(p)
    assert isinstance(again, Job) and again.audit == known
    assert standing(p) == [("alpha", "exam", gates.WAITING)]
    fill(file, "first")
    assert isinstance(only(p), Known)


def test_another_parameter(p: Params, known: str) -> None:
    tree = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(tree | {"decision": tree["decision"] | {"level": 0.01}}))
    again = only(p)
    assert isinstance(again, Job) and again.audit == known


def test_a_detector_that_is_not_here_is_the_one_that_dvc_would_bring(p: Params, known: str) -> None:
    made = {"stages": {"calibrate": {"outs": [{"path": str(DETECTOR), "md5": "0" * 32}]}}}
    DETECTOR.unlink()
    Path("dvc.lock").write_text(yaml.safe_dump(made))
    assert isinstance(only(p), Job)


def test_a_verdict_without_its_lock_is_none(p: Params, known: str) -> None:
    (Path("audits") / known / "dvc.lock").unlink()
    assert isinstance(only(p), Job)


def test_another_base_is_another_audit(p: Params, known: str) -> None:
    base = fake_checkpoint(Path("base"), "b")
    p = changed(p, policy=[Rule(checkpoints="*", benchmark="exam", unseen="new", base="base")])
    with_base = only(p)
    assert isinstance(with_base, Job) and with_base.audit != known
    judged(with_base)
    assert isinstance(only(p), Known)
    shutil.rmtree(base)
    fake_checkpoint(base, "another")
    other = only(p)
    assert isinstance(other, Job) and other.audit not in (known, with_base.audit)


def test_a_copy_does_not_repeat_a_stale_verdict_and_gets_the_new_one(p: Params, known: str) -> None:
    shutil.copytree(INCOMING / "alpha", INCOMING / "omega")
    same = look(p)["omega"][0]
    assert isinstance(same, Same)
    note(outcomes.same(same, History()))
    fill(set_path("new"), "second")
    alpha, omega = (look(p)[name][0] for name in ("alpha", "omega"))
    assert isinstance(alpha, Job) and isinstance(omega, Job) and omega.audit != alpha.audit
    lock(known, *FILES)
    stands = History().judged(known)
    assert stands is not None
    note(stands.model_copy(update={"state": "t", "p_value": 0.04}))  # the same outcome, of other numbers
    assert isinstance(look(p)["omega"][0], Same)


def test_where_the_judged_folder_is_gone_its_copy_is_an_audit_of_its_own(p: Params, known: str) -> None:
    """Even if both are called the same: one name is not asked for twice."""
    INCOMING.rename("moved")
    fill(set_path("new"), "second")
    (found,) = Folder("moved").look()
    (decision,) = one(p, found, False)
    assert isinstance(decision, Job) and decision.audit != known


@pytest.mark.parametrize("file", [*FILES, Path("params.yaml")], ids=str)
def test_a_failure_is_one_of_what_was_asked(p: Params, file: Path) -> None:
    for each in FILES:
        fill(each, "first")
    fake_checkpoint(INCOMING / "alpha")
    job = only(p)
    assert isinstance(job, Job)

    def fail(p: Params) -> Outcome:
        said = outcomes.failure(job.found, job.fingerprint, "question q: too long.", "exam")
        return note(said.model_copy(update={"state": asked(p, job.rule)}))

    assert event(fail(p)) == "failed" and isinstance(only(p), Known)
    if file in FILES:
        fill(file, "second")
    else:
        p = p.model_copy(update={"generate": p.generate.model_copy(update={"max_new_tokens": 9})})
    assert isinstance(only(p), Job)
    assert event(fail(p)) == "quiet" and isinstance(only(p), Known)


def test_a_trial_that_failed_is_made_again_with_other_parameters(p: Params) -> None:
    fake_checkpoint(INCOMING / "alpha")
    job = only(p)
    assert isinstance(job, Job)
    note(outcomes.failure(job.found, None, "too long.").model_copy(update={"state": asked(p)}))
    assert isinstance(only(p), Known)
    assert isinstance(only(p.model_copy(update={"generate": p.generate.model_copy(update={"batch_size": 3})})), Job)
