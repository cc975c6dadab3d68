"""The workspace's files compared with `dvc.lock`: only what was made with the parameters of now is recorded."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from tbd import __version__, audits
from tbd.checkpoints.served import SERVED
from tbd.errors import InputError
from tbd.params import load_yaml
from tbd.records import md5, sha256
from tbd.workspace import AUDITS, DETECTOR, SETS

DOCS_LIMIT = 20_000_000
"""bytes; larger Data Docs stay in the workspace"""
ATTACHED = (
    "dvc.lock",
    "params.yaml",
    *(f"{AUDITS}/{name}" for name in (f"*/{audits.FILE}", "*/dvc.yaml", "*/dvc.lock", "history.jsonl")),
    f"{SERVED}/*",
)
"""files that a run in MLflow holds, or that every audit changes: changes in them are not changes of the code"""


def target(stage: str) -> str:
    """What DVC calls a stage: `calibrate`; `verdict@NAME`, of an audit, is `audits/NAME/dvc.yaml:verdict`."""
    kind, _, name = stage.partition("@")
    return f"{AUDITS}/{name}/dvc.yaml:{kind}" if name else stage


class LockFile:
    """What the `dvc.lock` files say of a stage and of all upstream of it, and the files compared with that.

    A stage of the audit `a` is called `verdict@a` here.
    """

    def __init__(self, workspace: Path, stage: str) -> None:
        """Raises InputError: no such file or stage; or the stage, or one upstream, ran with other parameters than
        now."""
        self.workspace, self.stage = workspace, stage
        self.audit = stage.partition("@")[2]
        if not (workspace / "dvc.lock").is_file():
            raise InputError("dvc.lock: not found. Only what the pipeline made is recorded: run `dvc repro` first.")
        self.stages: dict[str, Any] = {}
        named = (_tree(workspace / "params.yaml") or {}).get("calibrate", {}).get("references", [])
        self.references = [str(name) for name in named]
        for name in dict.fromkeys(["", *self.references, self.audit]):
            file = workspace / self._file(name)
            if file.is_file():
                entries = _stages(file, md5(file))
                self.stages |= {f"{kind}@{name}" if name else kind: entry for kind, entry in entries.items()}
        if stage not in self.stages:
            raise InputError(f"{self._file(self.audit)}: no stage {stage!r}. {self._again()}")
        self.outs = {out["path"]: out["md5"] for entry in self.stages.values() for out in entry.get("outs", [])}
        self.lineage = self._lineage()
        self._good: set[str] = set()
        self._check_params()

    @staticmethod
    def _file(audit: str) -> Path:
        return AUDITS / audit / "dvc.lock" if audit else Path("dvc.lock")

    def _again(self) -> str:
        return f"Run `dvc repro {target(self.stage)}` first."

    def _lineage(self) -> list[str]:
        """The stage and every stage upstream of it."""
        makers: dict[str, str] = {}
        """by output"""
        below: dict[str, set[str]] = {}
        """by folder, the stages with an output in it"""
        for name, entry in self.stages.items():
            for out in entry.get("outs", []):
                makers[out["path"]] = name
                for folder in _upwards(out["path"]):
                    below.setdefault(folder, set()).add(name)
        found = [self.stage]
        for name in found:  # grows while it is walked
            for dep in self.stages[name].get("deps", []):
                above = {makers[folder] for folder in _upwards(dep["path"]) if folder in makers}
                found += sorted((above | below.get(dep["path"], set())).difference(found))
        return found

    def _check_params(self) -> None:
        """Refuse other parameters than those of the result, in `params.yaml` and in the audit's `audit.yaml`."""
        tree = cache(lambda file: _tree(self.workspace / file))
        for name in self.lineage:
            for file, values in self.stages[name].get("params", {}).items():
                for key, value in values.items():
                    if not same(lookup(tree(file), key), value):
                        raise InputError(f"{file}: {key} is not what {name!r} ran with. {self._again()}")

    def _out(self, path: str) -> str | None:
        """The output that is `path` or holds it."""
        return next((out for out in _upwards(path) if out in self.outs), None)

    def checked(self, path: str) -> str:
        """`path`, if it is an output (or lies in one) whose bytes are those of `dvc.lock`. Raises InputError."""
        out = self._out(path)
        if out is None:
            raise InputError(f"{path}: not an output in dvc.lock. {self._again()}")
        if out not in self._good:
            file = self.workspace / out
            if not file.exists():
                raise InputError(f"{out}: not found. Run `dvc checkout` first.")
            if digest(file) != self.outs[out]:
                raise InputError(f"{out}: not what the pipeline made (see dvc.lock). {self._again()}")
            self._good.add(out)
        return path

    def current(self) -> bool:
        """Whether the question sets and the detector that the stage came of, and those upstream, are those of now.

        What is not here counts as what the `dvc.lock` files say `dvc checkout` would bring.
        """
        read = [dep for name in self.lineage for dep in self.stages[name].get("deps", [])]
        for path, digest in ((Path(dep["path"]), dep.get("md5")) for dep in read):
            if path.parent == SETS or path == DETECTOR:
                file = self.workspace / path
                if (md5(file) if file.is_file() else self.outs.get(str(path), digest)) != digest:
                    return False
        return True

    def csv(self, path: str) -> Any:
        import pandas as pd

        return pd.read_csv(self.workspace / self.checked(path))

    def digests(self, *stages: str) -> dict[Path, str]:
        """The single-file outputs of some stages with the MD5 that dvc.lock holds for each."""
        outs = [out for stage in stages for out in self.stages[stage].get("outs", [])]
        return {Path(out["path"]): out["md5"] for out in outs if not out["md5"].endswith(".dir")}

    def files(self, paths: dict[str, str]) -> dict[str, Path]:
        """Artifact path -> checked file, for outputs of the stage; and the files that say how it was made."""
        how = {name: self.workspace / name for name in ("dvc.lock", "params.yaml")}
        for folder, name in (("audit", self.audit), *((f"references/{name}", name) for name in self.references)):
            own = self.workspace / AUDITS / name
            how |= {f"{folder}/{file}": own / file for file in (audits.FILE, "dvc.yaml", "dvc.lock") if name}
        how = {target: file for target, file in how.items() if file.is_file()}
        return {target: self.workspace / self.checked(path) for path, target in paths.items()} | how

    def optional(self, path: str, target: str) -> dict[str, Path]:
        """The same for what may be missing, be made outside of the pipeline, or be too large to send."""
        found = self.workspace / path
        if not found.exists():
            return {}
        if self._out(path) is not None:
            self.checked(path)
        size = sum(file.stat().st_size for file in found.rglob("*")) if found.is_dir() else 0
        return {target: found} if size <= DOCS_LIMIT else {}

    def members(self) -> list[tuple[str, str, str, int | None]]:
        """The question sets that the built-in reference was distilled on."""
        deps = self.stages["distill"].get("deps", []) if "distill" in self.lineage else []
        return [
            ("members", Path(dep["path"]).stem, dep["md5"], None) for dep in deps if Path(dep["path"]).parent == SETS
        ]

    def state(self, result: str) -> str:
        """Digest of the result and of every output of its stage. Each state is recorded once."""
        if not (self.workspace / result).is_file():
            raise InputError(f"{result}: not found. Run `dvc checkout` first.")
        outs = {out["path"]: out["md5"] for out in self.stages[self.stage]["outs"]}
        return sha256(json.dumps([self.stage, md5(self.workspace / result), outs], sort_keys=True))

    def params(self) -> dict[str, Any]:
        """`params.yaml`, flattened with dots."""
        return dict(_flat(_tree(self.workspace / "params.yaml")))

    def tags(self) -> dict[str, Any]:
        """What it was made by: version, lock and, in a git repository, commit."""
        locks = [self.workspace / self._file(name) for name in dict.fromkeys(["", *self.references, self.audit])]
        content = b"".join(file.read_bytes() for file in locks if file.is_file())
        tags = {"tbd_version": __version__, "dvc_lock_sha256": sha256(content)}
        commit = _git(self.workspace, "rev-parse", "HEAD")
        changes = _git(self.workspace, "status", "--porcelain", "--", ":/", *(f":(exclude){name}" for name in ATTACHED))
        if commit is None:
            return tags
        return tags | {
            "git_commit": commit,
            "mlflow.source.git.commit": commit,
            "git_dirty": str(bool(changes)).lower(),
        }


def _tree(file: Path) -> Any:
    """What a YAML file holds. Raises InputError if it is not there, or is none.

    Every audit needs some of them, so each is kept while it stays the same: do not change what is returned.
    """
    return _read(file, md5(file) if file.is_file() else "")


@lru_cache(maxsize=1024)
def _read(file: Path, _: str) -> Any:
    return load_yaml(file)


@lru_cache(maxsize=1024)
def _stages(file: Path, digest: str) -> dict[str, Any]:
    """The stages in a `dvc.lock` with that digest, kept in the same way. Raises InputError if it is none."""
    try:
        stages: dict[str, Any] = (_read(file, digest) or {}).get("stages", {})
        for entry in stages.values():
            for one in (*entry.get("deps", []), *entry.get("outs", [])):
                str(one["path"]), str(one["md5"])
            for values in entry.get("params", {}).values():
                values.items()
    except (AttributeError, LookupError, TypeError):
        raise InputError(f"{file}: not a lock file of DVC. Restore it from git.") from None
    return stages


def _upwards(path: str) -> list[str]:
    """`path` and every folder that it lies in."""
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _git(workspace: Path, *command: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *command], cwd=workspace, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def digest(path: Path) -> str:
    """MD5 as DVC has it: of a file's bytes; of a folder, of the JSON list of its files' digests, by path."""
    if not path.is_dir():
        return md5(path)
    files = sorted((str(file.relative_to(path)), file) for file in path.rglob("*") if file.is_file())
    listing = json.dumps([{"md5": md5(file), "relpath": name} for name, file in files], sort_keys=True)
    return hashlib.md5(listing.encode()).hexdigest() + ".dir"


def lookup(tree: Any, key: str) -> Any:
    """The parameter `key`, such as `decision.fpr`, of a parameter file; None if there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def same(one: Any, other: Any) -> bool:
    """Whether two values of a parameter are one, however written: PyYAML reads DVC's 1e-05 as text."""
    return bool(_plain(one) == _plain(other))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    with suppress(TypeError, ValueError):
        return float(value)
    return value


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, dict | list) else value
