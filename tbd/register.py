"""The audit register: which checkpoint is audited on which benchmark, against which unseen questions.

`audits/register.yaml` is a parameter file of the pipeline: dvc.yaml makes stages of every entry. A checkpoint made outside the
pipeline is pinned by its fingerprint, so that a folder overwritten later is noticed, not audited under the old name.
"""

import os
import re
from pathlib import Path

import yaml
from pydantic import ValidationError

from tbd import checkpoint as checkpoints
from tbd.errors import InputError, unknown
from tbd.params import Section, load_yaml
from tbd.records import atomic

FILE = Path("audits/register.yaml")
SETS = Path("data/sets")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.IGNORECASE)
NUMBER = re.compile(r"\d[\d_]*e[\d_]+|0o[0-7_]+", re.IGNORECASE)
"""what DVC's YAML reader takes for a number and ours, which writes the register, for a text"""
HEADER = "# The audit register: one entry an audit, added by `tbd check`. dvc.yaml makes generate, score and verdict stages of each.\n"


class Audit(Section):
    """One entry."""

    checkpoint: str
    """folder, relative to the workspace where it lies inside"""
    base: str | None
    """the model the checkpoint was distilled from, if the auditor has it"""
    benchmark: str
    unseen: str
    fpr: float | None
    """None: `decision.fpr` of params.yaml"""
    checkpoint_fingerprint: str | None
    """None: the checkpoint is made by this pipeline, which tracks it"""
    base_fingerprint: str | None
    origin: str | None = None
    """where a checkpoint that came from afar can be had again: `models:/NAME/VERSION`, `hf://ORG/NAME@COMMIT`"""


def check_name(name: str, what: str) -> str:
    """`name`, if it is a plain name. Raises InputError for one that could leave its folder or break a stage name."""
    if not NAME.fullmatch(name):
        raise InputError(f"{what} {name!r}: use letters, digits, - and _ (at most 63, a letter or digit first).")
    if NUMBER.fullmatch(name):
        raise InputError(f"{what} {name!r}: reads as a number in a YAML file. Put a letter in front.")
    return name


def set_path(name: str) -> Path:
    """Where the question set `name` lies."""
    return SETS / f"{name}.parquet"


def load(file: Path = FILE) -> dict[str, Audit]:
    """Every audit by name, in the order of the file. Raises InputError."""
    tree = load_yaml(file)
    entries = tree.get("audits") if isinstance(tree, dict) else None
    if not isinstance(entries, dict):
        raise InputError(f"{file}: no audits. It should hold `audits:` with one entry an audit.")
    register = {}
    for name, entry in entries.items():
        try:
            register[check_name(str(name), "audit")] = Audit.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{file}: audits.{name}.{'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    return register


def get(name: str, file: Path = FILE) -> Audit:
    """One audit. Raises InputError, suggesting a name, if there is none such."""
    register = load(file)
    if name not in register:
        raise unknown("audit", name, register, str(file))
    return register[name]


def add(name: str, audit: Audit, file: Path = FILE) -> None:
    """Write one more entry."""
    _write({**load(file), check_name(name, "audit"): audit}, file)


def remove(name: str, file: Path = FILE) -> None:
    """Take an entry out again."""
    _write({key: audit for key, audit in load(file).items() if key != name}, file)


def _write(register: dict[str, Audit], file: Path) -> None:
    tree = {"audits": {key: entry.model_dump() for key, entry in register.items()}}
    with atomic(file) as temporary:
        temporary.write_text(HEADER + yaml.safe_dump(tree, sort_keys=False), "utf-8")


def workspace_path(folder: Path) -> str:
    """`folder` as it is written into the register: relative inside the workspace, absolute outside."""
    absolute, root = Path(os.path.abspath(folder)), Path.cwd()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()


def folder(path: str, fingerprint: str | None) -> Path:
    """The checkpoint folder of an entry, checked and, where it is pinned, still the one that was registered."""
    checkpoint = Path(path)
    checkpoints.inspect(checkpoint)
    if fingerprint is not None and checkpoints.fingerprint(checkpoint) != fingerprint:
        raise InputError(f"{checkpoint}: no longer the checkpoint that was registered. Audit the new one: tbd check {path} --as NAME.")
    return checkpoint
