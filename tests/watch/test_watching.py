"""What is decided about a checkpoint that a source shows. Nothing is audited here: see tests/flows/test_watch.py."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tbd import audits, gates, history, params, records
from tbd import checkpoints as checkpoint
from tbd.audits import Audit
from tbd.history import FAILED, History, Outcome
from tbd.params import Params, Rule
from tbd.sources import Found
from tbd.sources.folder import Folder
from tbd.watch import decide, outcomes
from tbd.watch import look as looking
from tbd.watch.decide import Back, Broken, Decision, Fetched, Job, Known, Same, Standing, Wait
from tbd.workspace import DETECTOR, check_name, relative, set_path
from tests.adapters import write_adapter
from tests.workspace import REPOSITORY, fake_checkpoint

SET: dict[str, Any] = {"name": "exam", "md5": "0" * 32, "n": 30}
INCOMING = Path("incoming")


@pytest.fixture
def p(workspace: Path) -> Params:
    """Parameters with one rule and no waiting; no audits; an empty incoming folder."""
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    tree["generate"]["engine"] = "fake"
    tree["watch"] |= {"settle": 0, "give_up": 0, "policy": [{"checkpoints": "*", "benchmark": "exam", "unseen": "new"}]}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    Path("dvc.lock").write_text("stages: {}\n")
    Path("audits").mkdir()
    INCOMING.mkdir()
    return params.parse(tree)


def changed(p: Params, **watch: Any) -> Params:
    return p.model_copy(update={"watch": p.watch.model_copy(update=watch)})


def look(p: Params, *, retry: bool = False) -> dict[str, list[Decision | Broken]]:
    """By the checkpoint's name, as the flow comes to it."""
    return {found.name: one(p, found, retry) for found in Folder(str(INCOMING)).look()}


def one(p: Params, found: Found, retry: bool) -> list[Decision | Broken]:
    seen = decide.peek(found, p, Standing(), retry)
    if seen is not None:
        return [*seen]
    got = decide.fetch(Folder(str(INCOMING)), found, p)
    return [*decide.decide(got, p, Standing(), retry)] if isinstance(got, Fetched) else [got]


def only(p: Params, **how: Any) -> Decision | Broken:
    ((decision,),) = look(p, **how).values()
    return decision


def judged(job: Decision | Broken, outcome: str = "NO EVIDENCE") -> Outcome:
    """As if the job had been done: an audit, and in the history."""
    assert isinstance(job, Job)
    rule = job.rule
    entry = Audit(
        checkpoint=relative(job.folder),
        base=job.base,
        benchmark=rule.benchmark,
        unseen=rule.unseen,
        fpr=rule.fpr,
        checkpoint_fingerprint=job.fingerprint,
        base_fingerprint=checkpoint.fingerprint(Path(job.base)) if job.base else None,
    )
    audits.write(job.audit, entry)
    lock(job.audit, *map(set_path, (rule.benchmark, rule.unseen)), DETECTOR)
    said = outcomes.failure(job.found, job.fingerprint, "").model_copy(
        update={
            "outcome": outcome,
            "benchmark": history.QuestionSet(**{**SET, "name": rule.benchmark}),
            "audit": job.audit,
            "state": job.audit,
        }
    )
    return note(said)


def test_one_that_had_failed_and_is_what_it_was_stands_again(p: Params) -> None:
    folder = fake_checkpoint(INCOMING / "alpha")
    verdict = judged(only(p))
    (folder / "model.safetensors").rename("kept")
    broken = only(changed(p, give_up=0))
    assert isinstance(broken, Broken)
    note(outcomes.failure(broken.found, None, broken.why))
    Path("kept").rename(folder / "model.safetensors")
    back = only(p)
    assert isinstance(back, Back) and back.outcome == verdict
    again = note(back.outcome)
    assert again.recovered and again.id != verdict.id and history.event(again) == "recovered"
    assert isinstance(only(p), Known) and note(verdict) == again and len(History().outcomes) == 3


def lock(audit: str, *deps: Path) -> None:
    """A `dvc.lock` of the audit, as if its verdict came of those of these files that are there."""
    named = [{"path": str(path), "md5": records.md5(path)} for path in deps if path.is_file()]
    stage = {"deps": named, "params": {"params.yaml": {"decision.level": 0.05}}, "outs": []}
    (Path("audits") / audit / "dvc.lock").write_text(yaml.safe_dump({"stages": {"verdict": stage}}))


def note(outcome: Outcome) -> Outcome:
    with history.held() as known:
        return known.add(outcome)


def test_a_new_checkpoint_is_audited_once(p: Params) -> None:
    folder = fake_checkpoint(INCOMING / "alpha")
    job = only(p)
    assert (
        isinstance(job, Job)
        and job.fingerprint == checkpoint.fingerprint(folder)
        and job.audit.startswith("alpha-exam-x")
    )
    judged(job)
    assert isinstance(only(p), Known)


def test_what_is_still_written_is_left_alone(p: Params) -> None:
    fake_checkpoint(INCOMING / "alpha")
    assert isinstance(only(changed(p, settle=60)), Wait)
    assert isinstance(only(p), Job)


@pytest.mark.parametrize("part", ["config.json", "model.safetensors", "tokenizer.json"])
def test_what_lacks_a_part_is_waited_for_and_then_broken(p: Params, part: str) -> None:
    (fake_checkpoint(INCOMING / "alpha") / part).unlink()
    waiting = only(changed(p, give_up=60))
    assert isinstance(waiting, Wait) and str(INCOMING) in waiting.why
    assert isinstance(only(p), Broken)


def test_a_pickle_is_broken_at_once_and_tried_again_when_it_changes(p: Params) -> None:
    folder = fake_checkpoint(INCOMING / "alpha")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    p = changed(p, give_up=60)
    broken = only(p)
    assert isinstance(broken, Broken) and "pickle" in broken.why
    note(outcomes.failure(broken.found, None, broken.why))
    assert isinstance(only(p), Known) and isinstance(only(p, retry=True), Broken)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert isinstance(only(p), Job)


def test_a_template_that_runs_away_is_broken_at_once(p: Params, tiny_checkpoint: Path) -> None:
    shutil.copytree(tiny_checkpoint, INCOMING / "m")
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (INCOMING / "m/chat_template.jinja").write_text(loop)
    decision = only(p.model_copy(update={"generate": p.generate.model_copy(update={"engine": "transformers"})}))
    assert isinstance(decision, Broken) and "for a question" in decision.why


def test_a_broken_one_does_not_hold_up_the_others(p: Params) -> None:
    (fake_checkpoint(INCOMING / "alpha", "a") / "config.json").unlink()
    fake_checkpoint(INCOMING / "beta", "b")
    found = look(p)
    assert isinstance(found["alpha"][0], Broken) and isinstance(found["beta"][0], Job)


def test_the_same_weights_under_another_name_are_not_audited_again(p: Params) -> None:
    fake_checkpoint(INCOMING / "alpha")
    job = only(p)
    shutil.copytree(INCOMING / "alpha", INCOMING / "omega")
    first = judged(job, "CONTAMINATED")
    same = look(p)["omega"][0]
    assert isinstance(same, Same) and same.audit == first.audit
    noted = note(outcomes.same(same, History()))
    assert (noted.outcome, noted.checkpoint, noted.same_as, noted.place) == (
        "CONTAMINATED",
        "omega",
        first.audit,
        "incoming/omega",
    )
    assert history.event(noted) == "quiet" and noted.id != first.id
    assert all(isinstance(one, Known) for some in look(p).values() for one in some)


def test_the_policy_may_name_the_lineage(p: Params) -> None:
    """Else its place tells it, when it is noted; and an audit that the detector is calibrated on is planted."""
    rules = [
        Rule(checkpoints="llama-*", benchmark="exam", unseen="new", lineage="llama"),
        Rule(checkpoints="*", benchmark="exam", unseen="new", lineage="rest"),
        Rule(checkpoints="*", benchmark="quiz", unseen="new"),
    ]
    policy = changed(p, policy=rules)

    def placed(name: str, benchmark: str, **more: Any) -> Outcome:
        found = Found(name, f"incoming/{name}", f"incoming/{name}", "")
        return outcomes.placed(outcomes.failure(found, None, "", benchmark).model_copy(update=more), policy)

    assert [placed(name, "exam").lineage for name in ("llama-step7", "qwen-step7")] == ["llama", "rest"]
    derived = placed("qwen-step7", "quiz", outcome="NO EVIDENCE", p_value=0.5)
    assert derived.lineage is None and note(derived).lineage == "incoming/qwen"
    assert placed("qwen-step7", "quiz", audit=p.calibrate.references[0]).planted and not placed("qwen", "quiz").planted
    source = outcomes.other("source", "incoming", None)
    assert outcomes.placed(source, policy) == source  # is no checkpoint


def test_other_weights_under_the_same_name_are(p: Params) -> None:
    fake_checkpoint(INCOMING / "alpha", "first")
    first = judged(only(p))
    shutil.rmtree(INCOMING / "alpha")
    fake_checkpoint(INCOMING / "alpha", "second")
    second = only(p)
    assert isinstance(second, Job) and second.audit != first.audit


def test_touched_and_moved_files_are_the_same_weights(p: Params) -> None:
    folder = fake_checkpoint(INCOMING / "alpha")
    judged(only(p))
    os.utime(folder / "model.safetensors", (1, 1))
    assert isinstance(only(p), Known)


def test_a_killed_audit_goes_on_under_its_name(p: Params) -> None:
    fake_checkpoint(INCOMING / "alpha")
    job = only(p)
    judged(job)
    history.FILE.unlink()  # an audit, but never judged
    again = only(p)
    assert isinstance(again, Job) and isinstance(job, Job) and again.audit == job.audit


def test_a_failed_audit_stands_until_the_weights_change_or_somebody_asks(p: Params) -> None:
    folder = fake_checkpoint(INCOMING / "alpha")
    job = only(p)
    assert isinstance(job, Job)
    note(outcomes.failure(job.found, job.fingerprint, "stage generate: no", "exam"))
    os.utime(folder / "model.safetensors", (1, 1))
    assert isinstance(only(p), Known) and isinstance(only(p, retry=True), Job)
    (folder / "config.json").write_text('{"other": 1}')
    assert isinstance(only(p), Job)


def test_a_passing_fault_is_tried_again_at_every_look(p: Params) -> None:
    fake_checkpoint(INCOMING / "alpha")
    job = only(p)
    assert isinstance(job, Job)
    failed = note(outcomes.failure(job.found, job.fingerprint, "device busy", "exam", transient=True))
    assert failed.outcome == FAILED and isinstance(only(p), Job)


def test_the_base_itself_is_audited_without_a_base(p: Params) -> None:
    base = fake_checkpoint(Path("base"), "b")
    shutil.copytree(base, INCOMING / "copy")
    fake_checkpoint(INCOMING / "other", "o")
    p = changed(p, policy=[Rule(checkpoints="*", benchmark="exam", unseen="new", base="base")])
    found = {name: decisions[0] for name, decisions in look(p).items()}
    assert {name: one.base for name, one in found.items() if isinstance(one, Job)} == {"copy": None, "other": "base"}


def test_policy_every_rule_that_matches_the_first_for_a_benchmark(p: Params) -> None:
    rules = [
        Rule(checkpoints="llama-*", benchmark="exam", unseen="new", fpr=0.01),
        Rule(checkpoints="*", benchmark="exam", unseen="new"),
        Rule(checkpoints="*", benchmark="maths", unseen="new-maths"),
        Rule(checkpoints="org/*@step-*", benchmark="late", unseen="new"),
    ]
    chosen = {
        name: [(rule.benchmark, rule.fpr) for rule in decide.rules(name, rules)]
        for name in ("llama-7", "qwen", "org/m@step-3")
    }
    assert chosen["llama-7"] == [("exam", 0.01), ("maths", None)]
    assert chosen["qwen"] == [("exam", None), ("maths", None)]
    assert chosen["org/m@step-3"] == [("exam", None), ("maths", None), ("late", None)]
    fake_checkpoint(INCOMING / "llama-7")
    jobs = look(changed(p, policy=rules))["llama-7"]
    assert len({job.audit for job in jobs if isinstance(job, Job)}) == 2
    assert isinstance(only(changed(p, policy=rules[3:])), Known)  # no rule is for it


def test_fingerprints_are_computed_once(p: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_checkpoint(INCOMING / "alpha")
    only(p)

    def never(folder: Path) -> str:
        raise AssertionError(f"{folder} was read again")

    monkeypatch.setattr(checkpoint, "fingerprint", never)
    assert isinstance(only(p), Job)
    (INCOMING / "alpha" / "config.json").write_text('{"other": 1}')
    with pytest.raises(AssertionError, match="read again"):
        only(p)


def test_names_of_audits_are_names(p: Params) -> None:
    for name in ("org/model@step-1", "Ünïcode \u202e ../..", "x" * 300, "1e5", "-"):
        assert check_name(decide.audit_name(name, "exam", "0123abcd"), "audit")


# --- what stands, for gates -------------------------------------------------------------------------------------------


def standing(p: Params, *addresses: str) -> list[tuple[str, str | None, str]]:
    stands = looking.standing(addresses or [str(INCOMING)], p)
    return [(one.checkpoint, one.benchmark and one.benchmark.name, one.outcome) for one in stands]


def test_what_stands_is_the_verdict_on_what_is_there_now(p: Params) -> None:
    folder = fake_checkpoint(INCOMING / "alpha", "first")
    assert standing(p) == [("alpha", None, gates.WAITING)]  # not even fetched
    job = only(p)
    assert standing(p) == [("alpha", "exam", gates.WAITING)]
    judged(job, "CONTAMINATED")
    for _ in ("when it is new", "and for good"):
        assert standing(p) == [("alpha", "exam", "CONTAMINATED")]
    assert standing(changed(p, settle=60)) == [("alpha", None, gates.WAITING)]
    assert standing(changed(p, policy=[])) == [("alpha", None, gates.NO_RULE)]
    (folder / "config.json").write_text('{"other": 1}')
    assert standing(p) == [("alpha", None, gates.WAITING)]  # the verdict was on other weights


def test_two_rules_are_two_things_that_stand(p: Params) -> None:
    fake_checkpoint(INCOMING / "alpha")
    rules = [Rule(checkpoints="*", benchmark=name, unseen="new") for name in ("exam", "maths")]
    p = changed(p, policy=rules)
    judged(look(p)["alpha"][0])
    assert standing(p) == [("alpha", "exam", "NO EVIDENCE"), ("alpha", "maths", gates.WAITING)]


@pytest.mark.parametrize("transient", [False, True])
def test_a_failure_stands_until_something_else_is_there(p: Params, transient: bool) -> None:
    folder = fake_checkpoint(INCOMING / "alpha")
    job = only(p)
    assert isinstance(job, Job)
    note(outcomes.failure(job.found, job.fingerprint, "no", "exam", transient))
    assert standing(p) == [("alpha", "exam", FAILED)]
    (folder / "config.json").write_text('{"other": 1}')
    assert standing(p) == [("alpha", None, gates.WAITING)]
    (found,) = Folder(str(INCOMING)).look()
    note(outcomes.failure(found, None, "not to be fetched", None, transient))
    assert standing(p) == [("alpha", None, FAILED)]


def test_a_source_without_checkpoints_and_one_that_is_none_stand_as_that(p: Params) -> None:
    assert standing(p, str(INCOMING), "nowhere") == [
        (str(INCOMING), None, gates.NOTHING),
        ("nowhere", None, FAILED),
    ]
    assert [one.outcome for one in looking.standing([], p)] == [gates.NOTHING]
    assert History().outcomes == []  # nothing of it is an event


def test_a_verdict_that_an_audit_gets_anew_is_that_of_the_same_weights_elsewhere(p: Params) -> None:
    fake_checkpoint(INCOMING / "alpha")
    job = only(p)
    shutil.copytree(INCOMING / "alpha", INCOMING / "omega")
    first = judged(job)
    same = look(p)["omega"][0]
    assert isinstance(same, Same)
    note(outcomes.same(same, History()))
    assert standing(p) == [("alpha", "exam", "NO EVIDENCE"), ("omega", "exam", "NO EVIDENCE")]
    note(first.model_copy(update={"outcome": "CONTAMINATED", "state": "t"}))  # by `tbd check --all`
    assert standing(p) == [("alpha", "exam", "CONTAMINATED"), ("omega", "exam", gates.WAITING)]
    same = look(p)["omega"][0]
    assert isinstance(same, Same)
    note(outcomes.same(same, History()))
    assert standing(p) == [("alpha", "exam", "CONTAMINATED"), ("omega", "exam", "CONTAMINATED")]


def test_an_audit_without_a_verdict_in_the_history_counts_as_failed(p: Params) -> None:
    fake_checkpoint(INCOMING / "alpha")
    said = judged(only(p))
    assert said.audit is not None and outcomes.standing(said.audit, History()) == said
    history.FILE.unlink()
    assert outcomes.standing(said.audit, History()).outcome == FAILED


def test_an_adapter_is_audited_anew_when_its_base_changes(p: Params, tiny_checkpoint: Path) -> None:
    shutil.copytree(tiny_checkpoint, "base")
    folder = write_adapter(INCOMING / "lora", Path("base"))
    (found,) = Folder(str(INCOMING)).look()
    p = p.model_copy(update={"generate": p.generate.model_copy(update={"engine": "transformers"})})
    job = only(p)
    assert isinstance(job, Job) and job.base == "base" and job.fingerprint == checkpoint.fingerprint(job.folder)
    judged(job)
    assert [type(one) for one in decide.peek(found, p, Standing()) or []] == [Known]

    shutil.copytree("base", "other")
    os.utime("base/config.json")
    assert decide.peek(found, p, Standing()) is not None  # the same content
    Path("base/generation_config.json").write_text("{}")
    assert decide.peek(found, p, Standing()) is None
    ruled = changed(p, policy=[p.watch.policy[0].model_copy(update={"base": "other"})])
    assert decide.peek(found, ruled, Standing()) is None

    shutil.rmtree("base")
    lacking = decide.fetch(Folder(str(INCOMING)), found, p)  # it names one that is not here
    assert isinstance(lacking, Broken) and lacking.lacking and "--base" in lacking.why
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in getattr(decide.fetch(Folder(str(INCOMING)), found, p), "why", "")
