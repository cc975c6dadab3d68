"""What a look costs with many audits: `python -m benchmarks.audits`.

Two workspaces on the fake engine, in which generating costs nothing: one where few audits were judged before, one where
many were. In each, alternating: `tbd watch` with nothing new, and with one new checkpoint. What counts is the
difference between the workspaces. The old audits are one real audit, repeated under other names in the history and in
folders of its own.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from contextlib import chdir
from pathlib import Path

from tbd import audits, history, params
from tbd.pipeline import templates
from tbd.sources.folder import Folder
from tbd.watch import decide
from tbd.workspace import AUDITS
from tests.workspace import Workspace, create, fake_checkpoint

INCOMING = Path("checkpoints/incoming")


def filled(root: Path, count: int) -> Workspace:
    """A workspace whose pipeline has run, with that many audits."""
    workspace = create(root)
    workspace.repro()
    fake_checkpoint(root / INCOMING / "first", "something")
    workspace.tbd("watch")
    with chdir(root):
        repeat(count - len(audits.names()))
    workspace.tbd("watch")  # settles what is told of them: the page, the history in MLflow
    workspace.commit()
    return workspace


def repeat(count: int) -> None:
    """The audit of the one checkpoint that was found, that many times more."""
    (first,) = history.History().outcomes
    assert first.audit is not None and first.fingerprint is not None
    entry, lock = audits.get(first.audit), (AUDITS / first.audit / "dvc.lock").read_text()
    for number in range(count):
        fake_checkpoint(INCOMING / f"old-{number:03}", f"something else {number}")
    p = params.load()
    time.sleep(p.watch.settle + 0.5)
    source, standing, lines = Folder(str(INCOMING)), decide.Standing(), []
    for found in source.look():
        if found.place == first.place:
            continue
        fetched = decide.fetch(source, found, p)
        assert isinstance(fetched, decide.Fetched)
        for job in decide.decide(fetched, p, standing):
            assert isinstance(job, decide.Job)
            own = {"checkpoint": str(job.folder), "checkpoint_fingerprint": job.fingerprint}
            shutil.copytree(AUDITS / first.audit, AUDITS / job.audit)
            templates.add(job.audit, entry.model_copy(update=own))
            names = {first.audit: job.audit, entry.checkpoint: str(job.folder), first.fingerprint: job.fingerprint}
            (AUDITS / job.audit / "dvc.lock").write_text(replaced(lock, names))
            seen = {"checkpoint": found.name, "place": found.place, "origin": found.origin, "version": found.version}
            made = {"id": found.name, "state": found.name, "audit": job.audit, "fingerprint": job.fingerprint}
            lines.append(first.model_copy(update=seen | made).model_dump_json(exclude_none=True) + "\n")
    with history.FILE.open("a") as file:
        file.writelines(lines)


def replaced(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text


def timed(workspace: Workspace) -> float:
    """Seconds of one `tbd watch`."""
    start = time.perf_counter()
    workspace.tbd("watch")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=4, help="default: 4")
    parser.add_argument("--many", type=int, default=200, help="default: 200")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    options = parser.parse_args()
    more = []
    with tempfile.TemporaryDirectory(prefix="tbd-audits-") as folder:
        workspaces = {count: filled(Path(folder) / str(count), count) for count in (options.few, options.many)}
        for number in range(1, options.rounds + 1):
            took = {}
            for count, workspace in workspaces.items():
                nothing = timed(workspace)
                fake_checkpoint(workspace.root / INCOMING / f"new-{number}", f"something new {number}")
                time.sleep(2)  # it has settled
                took[count] = timed(workspace)
                print(
                    f"round {number}, {count} audits: nothing new {nothing:.1f} s, one new {took[count]:.1f} s",
                    flush=True,
                )
            more.append(took[options.many] - took[options.few])
    spread = f"{min(more):.1f} to {max(more):.1f}"
    print(
        f"one new takes {statistics.median(more):.1f} s more with {options.many} audits than with "
        f"{options.few} ({spread})"
    )


if __name__ == "__main__":
    main()
