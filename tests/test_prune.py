"""`tbd prune`: what can be had again goes, oldest first, down to a bound; what a verdict needs stays."""

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from tbd import audits, history, params, records
from tbd.audits import Audit
from tbd.commands import checks, prune
from tbd.generation.store import Shelf, kept
from tbd.locks import locked
from tbd.params import Params, Rule
from tbd.sources import FETCHED, Found
from tbd.watch import decide, outcomes
from tbd.watch.decide import Fetched, Job, Known, Standing
from tests.watch.test_watching import lock
from tests.workspace import REPOSITORY, fake_checkpoint, two_stages

UNITS = Path(".tbd/units")
NAMES = ["judged", "second", "waiting", "base", "unknown"]


def found(name: str) -> Found:
    return Found(f"org/{name}@main", f"hf://org/{name}@main", f"hf://org/{name}@c", f"commit of {name}")


BASE = "b" * 64


class Here:
    """A source whose checkpoints are here already."""

    def look(self) -> list[Found]:
        return [found(name) for name in NAMES]

    def fetch(self, one: Found) -> Path:
        return FETCHED / "hub" / one.name.split("/")[1].removesuffix("@main")


@pytest.fixture
def p(workspace: Path) -> Params:
    """Five downloads, each a little older than the one before; two were judged; and each has stored answers."""
    tree: Any = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    rule = {"checkpoints": "*", "benchmark": "exam", "unseen": "new", "base": "hf://org/base@main"}
    tree["generate"]["engine"] = "fake"
    tree["watch"] |= {"settle": 0, "policy": [rule]}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    for name in ("dvc.yaml", "dvc.lock"):
        Path(name).write_text("stages: {}\n")
    for number, name in enumerate(NAMES):
        folder = fake_checkpoint(FETCHED / "hub" / name, name)
        (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        if name != "unknown":
            assert isinstance(decide.fetch(Here(), found(name), params.load()), Fetched)
        os.utime(folder, (1e9 - number, 1e9 - number))
    for name in ("judged", "second"):
        judge(name)
        shelf = Shelf(str(UNITS), {"fingerprint": decide.remembered()[found(name).place][1]})
        shelf.add("unit", 1, pa.table({"logprobs": list(range(1000))}))
        os.utime(f"{shelf.folder}/unit-1.arrow", (1e8, 1e8))
    return params.load()


def judge(name: str) -> None:
    folder = FETCHED / "hub" / name
    entry = Audit(
        checkpoint=str(folder),
        base="hf://org/base@main",
        benchmark="exam",
        unseen="new",
        fpr=None,
        checkpoint_fingerprint=decide.remembered()[found(name).place][1],
        base_fingerprint=BASE,
        origin=found(name).origin,
    )
    audits.write(name, entry)
    Path(f"audits/{name}/verdict.json").write_text("{}")
    lock(name)
    said = outcomes.failure(found(name), entry.checkpoint_fingerprint, "").model_copy(
        update={
            "outcome": "NO EVIDENCE",
            "benchmark": history.QuestionSet(name="exam", md5="", n=30),
            "audit": name,
        }
    )
    with history.held() as known:
        known.add(said)


def there() -> set[str]:
    prints = {decide.remembered()[found(name).place][1]: f"answers of {name}" for name in ("judged", "second")}
    answers = {prints[one.identity["fingerprint"]] for one in kept(str(UNITS))}
    return answers | {path.name for path in (FETCHED / "hub").iterdir() if path.suffix != ".lock"}


EVERYTHING = {*NAMES, "answers of judged", "answers of second"}


def test_what_would_go_is_said_and_stays(p: Params) -> None:
    lines = list(prune.prune(0, dry=True))
    assert there() == EVERYTHING
    assert all(line.startswith("would go: .tbd/units/") for line in lines[:2])
    assert [line.split(" (")[0] for line in lines[2:-1]] == [
        "would go: checkpoints/hub/unknown",
        "stays: checkpoints/hub/base",
        "stays: checkpoints/hub/waiting",
        "would go: checkpoints/hub/second",
        "would go: checkpoints/hub/judged",
    ]
    assert lines[3].endswith(": a base") and lines[4].endswith(": not judged yet")
    assert lines[-1].endswith("(bound 0 kB)")


def test_the_oldest_go_first_and_no_more_than_the_bound_asks(p: Params) -> None:
    assert len(list(prune.prune(1e9))) == 1 and there() == EVERYTHING
    total = sum(item.bytes for item, _ in [*prune._downloads(), *prune._answers()])
    list(prune.prune(total - 1))
    (gone,) = EVERYTHING - there()
    assert gone in ("answers of judged", "answers of second")


def test_answers_stay_while_their_audit_is_under_way_and_what_is_in_use_stays(p: Params) -> None:
    Path("audits/second/verdict.json").unlink()
    with locked(FETCHED / "hub/.judged.lock"):
        lines = list(prune.prune(0))
    assert there() == EVERYTHING - {"second", "unknown", "answers of judged"}
    assert sum("audit second has no verdict yet" in line for line in lines) == 1
    assert sum(line.startswith("stays: checkpoints/hub/judged") and line.endswith(": in use") for line in lines) == 1


def test_what_the_store_holds_and_what_can_go(p: Params) -> None:
    Path("audits/second/verdict.json").unlink()
    mark = decide.remembered()[found("second").place][1]
    lines = list(prune.stored(str(UNITS), remove=False))
    assert sorted(line.rpartition(": ")[2] for line in lines[:-1]) == ["audit second has no verdict yet", "can go"]
    (stays,) = (line for line in lines if line.startswith(f"checkpoint {mark[:12]}"))
    assert "1 units, " in stays and "stays: audit second" in stays and there() == EVERYTHING
    (UNITS / "thesis").mkdir()
    (UNITS / "thesis" / "chapter.txt").write_text("of somebody who has the folder too")
    list(prune.stored(str(UNITS), remove=True))
    assert there() == EVERYTHING - {"answers of judged"} and (UNITS / "thesis" / "chapter.txt").is_file()


def test_what_was_pruned_is_known_and_fetched_again_only_for_work(p: Params) -> None:
    list(prune.prune(0))
    assert there() == {"base", "waiting"} and Path("audits/judged/verdict.json").is_file()
    standing = Standing()
    standing.bases["hf://org/base@main"] = BASE  # as the hub would say
    (known,) = decide.peek(found("judged"), p, standing) or []
    assert isinstance(known, Known)
    more = [*p.watch.policy, Rule(checkpoints="*", benchmark="other", unseen="new")]
    asked = p.model_copy(update={"watch": p.watch.model_copy(update={"policy": more})})
    assert decide.peek(found("judged"), asked, standing) is None  # to be fetched
    (job,) = decide.peek(found("waiting"), p, standing) or []
    assert isinstance(job, Job)
    assert checks.present() == []  # `tbd check --all` fetches none of them again: their verdicts stand
    fake_checkpoint(FETCHED / "hub/judged", "judged")
    assert checks.present() == ["judged"]


def test_a_kill_leaves_no_half_download(p: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shutil.rmtree

    def killed(folder: Path) -> None:
        if folder.is_relative_to(UNITS):
            whole(folder)
            return
        (folder / "config.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            list(prune.prune(0))
    assert not (FETCHED / "hub/unknown").exists()
    (half,) = (FETCHED / "hub").glob(".unknown.*-*")
    os.utime(half, (1e9, 1e9))
    list(prune.prune(0))
    assert not half.exists() and records.known(prune.PRUNED).keys() >= {"checkpoints/hub/judged"}


@pytest.mark.slow
def test_dvcs_cache_loses_what_nothing_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = two_stages(tmp_path / "small")
    monkeypatch.chdir(workspace.root)
    for name, value in workspace.environment.items():
        monkeypatch.setenv(name, value)
    for content in ("committed", "of nothing", "of the workspace"):
        Path("data.txt").write_text(content)
        workspace.dvc("add", "--quiet", "data.txt")
        if content == "committed":
            workspace.commit()

    def cached() -> set[str]:
        return {file.read_text() for file in Path(".dvc/cache/files").rglob("*") if file.is_file()}

    prune.collect(dry=True)
    assert cached() == {"committed", "of nothing", "of the workspace"}
    assert prune.collect().startswith("DVC's cache: ")
    assert cached() == {"committed", "of the workspace"}
