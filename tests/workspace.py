"""A real workspace in a temporary folder: git, DVC and the project's own pipeline, on the fake engine.

Only the two stages that make weights are replaced, by a script that writes checkpoints of the fake engine: the base
remembers nothing, the reference the members. Building takes a cold run of the pipeline, so it is done once and copied
for each test.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tbd import audits
from tbd.pipeline import templates
from tbd.pipeline.lock_file import target
from tests.shared import prefect_store, shared

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = ["dvc.yaml", "params.yaml", ".gitignore", ".gitattributes", ".dvcignore"]
AUDITS = ("reference", "base", "halfway")
FOLDERS = ["tbd", "flows"]
UNHASHED = {".git", ".tbd", "tmp", "cache", "__pycache__"}
"""folders that may change where a workspace must not: working folders of git, DVC and tbd"""

SMALL: dict[str, Any] = {
    "sets": {"members": 20, "others": 20, "unseen": 40},
    "generate": {"engine": "fake", "device": "cpu", "dtype": "float32", "max_new_tokens": 20, "batch_size": 16},
    "score": {"methods": {"tbd": {"m": [10, 20]}, "mean_logprob": {"m": 20}, "logprob_ratio": {"m": [10, 20]}}},
    "calibrate": {"references": ["reference"], "repeats": 3, "bootstrap": 100},
    "decision": {"permutations": 1000, "simulations": 100, "allow_foreign_power": True, "detectable_share": 0.6},
    "watch": {"settle": 0.5, "backoff": 0.2, "retries": 2},
}

FAKE = """
import hashlib, json, pathlib, sys


def write(folder, text):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    (folder / "fake.txt").write_text(text)
    (folder / "config.json").write_text(json.dumps({"fake": hashlib.sha256(text.encode()).hexdigest()}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


if __name__ == "__main__":
    text = "an untouched model\\n"
    if sys.argv[1] != "base":
        import pyarrow.parquet as pq

        text = "".join(line + "\\n" for line in pq.read_table("data/sets/members.parquet")["question"].to_pylist())
    write("checkpoints/" + sys.argv[1], text)
"""


STAGE = """
import runpy, sys
from tbd.pipeline.markers import marked

with marked(sys.argv[1]):
    runpy.run_path(f"{sys.argv[1]}.py")
"""
"""runs the script of a stage as `tbd.stages` runs its own"""


def fake_checkpoint(folder: Path, *remembers: str) -> Path:
    """A checkpoint of the fake engine that was distilled on these questions; others make other weights."""
    space: dict[str, Any] = {}
    exec(FAKE, space)
    space["write"](folder, "".join(f"{question}\n" for question in remembers))
    return folder


@dataclass(frozen=True)
class Workspace:
    """A folder with everything in it, and what its commands run in."""

    root: Path

    @property
    def home(self) -> Path:
        """The home folder of whoever works in it."""
        return self.root.parent / f"{self.root.name}-home"

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the user's, nothing of another test's; byte code is written, as on a user's machine."""
        home = self.home
        home.mkdir(exist_ok=True)
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DVC_", "PREFECT_", "MLFLOW_", "TBD_"))
        }
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        return kept | {
            "HOME": str(home),
            "DVC_NO_ANALYTICS": "1",
            "DVC_GLOBAL_CONFIG_DIR": str(home),
            "DVC_SYSTEM_CONFIG_DIR": str(home),
            "DVC_SITE_CACHE_DIR": str(home / "dvc"),
            "PREFECT_HOME": str(home / "prefect"),
            "MPLCONFIGDIR": str(home / "matplotlib"),
            "GIT_AUTHOR_NAME": "tbd",
            "GIT_AUTHOR_EMAIL": "tbd@example.org",
            "GIT_COMMITTER_NAME": "tbd",
            "GIT_COMMITTER_EMAIL": "tbd@example.org",
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """A command in this workspace, in a process group of its own."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment | environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def launch(
        self, log: Path, *command: str, folder: Path | None = None, **environment: str
    ) -> "subprocess.Popen[bytes]":
        """The same of one that runs until it is told to end, in this workspace or another folder; what it says goes
        into `log`."""
        with log.open("ab") as file:
            return subprocess.Popen(
                command,
                cwd=folder or self.root,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def run(self, *command: str, code: int = 0, **environment: str) -> "subprocess.CompletedProcess[str]":
        """The same, to its end; it must exit with `code`."""
        with self.start(*command, **environment) as process:
            out, err = process.communicate()
        assert process.returncode == code, (
            f"{' '.join(command)}: exit {process.returncode}\n{out[-4000:]}\n{err[-4000:]}"
        )
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def dvc(self, *arguments: str, code: int = 0) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments, code=code).stdout

    def repro(self, *arguments: str) -> list[str]:
        """`dvc repro` of these, or of everything; returns the stages whose command ran, in order. `verdict@a` is one of
        the audit `a`."""
        return ran(
            self.dvc("repro", *(target(one) if "@" in one else one for one in arguments or ("--all-pipelines",)))
        )

    def tbd(self, *arguments: str, code: int = 0, **environment: str) -> "subprocess.CompletedProcess[str]":
        return self.run(sys.executable, "-m", "tbd", *arguments, code=code, **environment)

    def verdict(self, audit: str) -> Any:
        return json.loads((self.root / "audits" / audit / "verdict.json").read_text("utf-8"))

    def bytes(self, name: str) -> dict[str, bytes]:
        """Every file of that name, by its path."""
        return {str(file.relative_to(self.root)): file.read_bytes() for file in sorted(self.root.rglob(name))}

    def units(self) -> dict[Path, int]:
        """The stored answers, and when each was written: one that is computed twice is written twice."""
        return {file: file.stat().st_mtime_ns for file in (self.root / ".tbd/units").glob("*/[!.]*.arrow")}

    def hashes(self) -> dict[str, str]:
        """Every file with its digest, apart from the tools' own working folders."""
        files = [
            file
            for file in self.root.rglob("*")
            if file.is_file() and not UNHASHED & set(file.relative_to(self.root).parts)
        ]
        return {str(file.relative_to(self.root)): hashlib.md5(file.read_bytes()).hexdigest() for file in sorted(files)}

    def edit(self, file: str, changes: Mapping[str, Any]) -> None:
        """Merge changes into a YAML file."""
        path = self.root / file
        path.write_text(yaml.safe_dump(_merged(yaml.safe_load(path.read_text()), changes), sort_keys=False))

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "state")

    def copy(self, root: Path) -> "Workspace":
        shutil.copytree(self.root, root, symlinks=True)
        return Workspace(root)

    def used_before(self) -> "Workspace":
        """By somebody who has an empty database of Prefect in their home folder: to make one takes seconds."""
        (self.home / "prefect").mkdir(parents=True, exist_ok=True)
        shutil.copy(prefect_store(), self.home / "prefect")
        return self


def ran(output: str) -> list[str]:
    """Stages whose command ran, from DVC's output."""
    names = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
    return [re.sub("audits/(.*)/dvc.yaml:(.*)", r"\2@\1", name) for name in names]


def create(root: Path, changes: Mapping[str, Any] = SMALL, fake: bool = True) -> Workspace:
    """A workspace as a user has it after cloning, with other parameters; nothing has run. `fake`: replace the two
    stages, and do without the weaker reference."""
    root.mkdir(parents=True)
    workspace = Workspace(root)
    names = AUDITS[:2] if fake else AUDITS
    for name in [*FILES, *(f"audits/{name}/{file}" for name in names for file in ("audit.yaml", "dvc.yaml"))]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    workspace.edit("params.yaml", changes)
    with contextlib.chdir(root):
        for name in audits.names():
            templates.refresh(name)
    if fake:
        (root / "fake_checkpoint.py").write_text(FAKE)
        pipeline = (root / "dvc.yaml").read_text()
        for stage, name in (("base", "base"), ("distill", "reference")):
            before = f"cmd: python -m tbd.stages.{stage}\n"
            assert before in pipeline
            pipeline = pipeline.replace(before, f"cmd: python fake_checkpoint.py {name}\n")
        begin, end = pipeline.index("  halfway:\n"), pipeline.index("  calibrate:\n")
        second = "      - audits/${calibrate.references[1]}/scores.parquet\n"
        assert second in pipeline
        pipeline = (pipeline[:begin] + pipeline[end:]).replace(second, "")
        (root / "dvc.yaml").write_text(pipeline)
    workspace.run("git", "init", "--quiet")
    ignored = (root / ".dvcignore").read_text()
    workspace.dvc("init", "--quiet", "--force")
    (root / ".dvcignore").write_text(ignored)
    shutil.copy(REPOSITORY / ".dvc/config", root / ".dvc/config")
    workspace.commit()
    return workspace


@functools.cache
def finished() -> tuple[Workspace, list[str]]:
    """A workspace whose whole pipeline has run, and the stages that ran. Do not write into it: `copy` it."""
    folder = shared("workspace", _finish)
    return Workspace(folder / "workspace"), json.loads((folder / "stages.json").read_text())


def _finish(folder: Path) -> None:
    workspace = create(folder / "workspace")
    (folder / "stages.json").write_text(json.dumps(workspace.repro()))
    workspace.commit()


def two_stages(root: Path) -> Workspace:
    """A pipeline of `first` and, after it, `second`, which runs the `second.py` that the test writes; nothing has
    run."""
    return Workspace(shared("two-stages", _two_stages) / "workspace").copy(root)


def _two_stages(folder: Path) -> None:
    workspace = Workspace(folder / "workspace")
    workspace.root.mkdir()
    workspace.run("git", "init", "--quiet")
    workspace.dvc("init", "--quiet")
    stages = {
        "first": {"cmd": "python stage.py first", "outs": ["one.txt"]},
        "second": {"cmd": "python stage.py second", "deps": ["one.txt", "second.py"], "outs": ["two.txt"]},
    }
    (workspace.root / "stage.py").write_text(STAGE)
    (workspace.root / "first.py").write_text("open('one.txt', 'w').write('one'); print('made one')")
    (workspace.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))


def _merged(tree: Any, changes: Mapping[str, Any]) -> Any:
    merged = dict(tree or {})
    for key, value in changes.items():
        replaced = key == "methods" or not isinstance(value, Mapping) or not isinstance(merged.get(key), Mapping)
        merged[key] = value if replaced else _merged(merged[key], value)
    return merged


def hurried(out: str) -> str:
    """What a command prints on a machine on which nothing takes five seconds: without the lines that say it goes on."""
    return "".join(line for line in out.splitlines(keepends=True) if not line.endswith(" so far\n"))
