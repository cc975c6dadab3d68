"""Carrying a workspace of tbd 0.2.0 over: one register of audits becomes a folder an audit.

Generates nothing anew but what a new reference needs, deletes nothing.

What 0.2.0 made is kept where its `dvc.lock` still vouches for it: the outputs, the data they came from and the
parameters are what they were. That the code moved to other modules does not make answers others.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tbd import audits, params
from tbd.audits import Audit
from tbd.errors import InputError
from tbd.params import load_yaml
from tbd.pipeline import templates
from tbd.pipeline.lock_file import digest, lookup, same, target
from tbd.pipeline.repro import dvc
from tbd.records import atomic
from tbd.workspace import AUDITS, STATE

REGISTER = AUDITS / "register.yaml"
LOCK = Path("dvc.lock")
KEPT = STATE / "0.2.0"
"""where the register and the lock of 0.2.0 go"""
SINCE: dict[str, dict[str, Any]] = {"distill": {"dtype": "bfloat16", "trained_layers": None, "lora": None}}
"""parameters that 0.2.0 did not have and that would make other models, with what it did"""


def migrate() -> Iterator[str]:
    """Carry the current folder over; yields a line a step. Killed, it goes on at the next call. Raises InputError."""
    found = next((file for file in (REGISTER, KEPT / REGISTER.name) if file.is_file()), None)
    if found is None:
        raise InputError(f"{REGISTER}: not found, so this is no workspace of tbd 0.2.0. Nothing was changed.")
    references = params.load().calibrate.references  # loading names a parameter that 0.2.0 did not have
    register = _register(found)
    for name, entry in register.items():
        if not audits.path(name).is_file():
            templates.add(name, entry)
    if found == REGISTER:
        _keep()
    old = (load_yaml(KEPT / LOCK) or {}).get("stages", {})
    tree = load_yaml(KEPT / REGISTER.name)
    for stage in ("base", "sets"):
        yield _carry(stage, old, tree)
    dvc("repro", "validate")
    yield _carry("distill", old, tree)
    for name in sorted(register.keys() & set(references)):
        yield _carry_answers(name, old, tree)
    dvc("repro", "calibrate")  # answers of other audits are as long as the detector needs them
    yield "calibrate: made anew"
    for name in sorted(register.keys() - set(references)):
        yield _carry_answers(name, old, tree)
    yield f"{len(register)} audits carried over. Next: tbd check --all, which scores and judges them."


def _register(file: Path) -> dict[str, Audit]:
    try:
        return {str(name): Audit.model_validate(entry) for name, entry in load_yaml(file)["audits"].items()}
    except (ValidationError, LookupError, TypeError, AttributeError):
        raise InputError(f"{file}: not a register of audits of tbd 0.2.0. Restore it from git.") from None


def _keep() -> None:
    """Put the register and the lock of 0.2.0 aside; the new lock begins with the stages that are still of this name."""
    KEPT.mkdir(parents=True, exist_ok=True)
    stages = {}
    if LOCK.is_file():
        shutil.copy(LOCK, KEPT)
        stages = load_yaml(LOCK).get("stages", {})
    with atomic(LOCK) as temporary:
        ours = {name: entry for name, entry in stages.items() if "@" not in name}
        temporary.write_text(yaml.safe_dump({"schema": "2.0", "stages": ours}, sort_keys=False), "utf-8")
    REGISTER.rename(KEPT / REGISTER.name)  # last: what is not done is done at the next call


def _carry_answers(audit: str, old: dict[str, Any], register: Any) -> str:
    dvc("repro", target(f"validate@{audit}"))
    return _carry(f"generate@{audit}", old, register)


def _carry(stage: str, old: dict[str, Any], register: Any) -> str:
    """Have DVC take the outputs of a stage as they are; says what was done."""
    if stage not in old or (why := _differs(old[stage], register)):
        return f"{stage}: to be made anew ({why if stage in old else 'never ran'})"
    dvc("commit", "--quiet", "--force", target(stage))
    return f"{stage}: kept"


def _differs(entry: dict[str, Any], register: Any) -> str | None:
    """What is no longer as the old lock says; None if all is."""
    data = [dep for dep in entry.get("deps", []) if not dep["path"].startswith(("tbd/", "data/validation"))]
    for one in (*entry.get("outs", []), *data):
        path = Path(one["path"])
        if not path.exists() or digest(path) != one["md5"]:
            return f"{path} is not what dvc.lock says"
    for file, values in entry.get("params", {}).items():
        tree = register if Path(file) == REGISTER else load_yaml(Path(file))
        for key, value in values.items():
            now = lookup(tree, key)
            if isinstance(value, dict):  # a section, whose other keys came later
                value = SINCE.get(key, {}) | value
                now = {name: now.get(name, SINCE.get(key, {}).get(name)) for name in value}
            if not same(now, value):
                return f"{file}: {key} has changed"
    return None
