"""`audits/NAME/audit.yaml`, typed: which checkpoint is audited on which benchmark, against which unseen questions.

It is a parameter file of that audit's stages. A checkpoint made outside of the pipeline is pinned by its fingerprint,
so that a folder overwritten later is noticed, not audited under the old name.
"""

import json
import os
from pathlib import Path

import yaml
from pydantic import ValidationError

from tbd.errors import InputError, unknown
from tbd.foreign import deceives, plain
from tbd.params import Section, load_yaml
from tbd.records import atomic, sha256
from tbd.workspace import AUDITS, check_name

FILE = "audit.yaml"
HEADER = (
    "# An audit, written by `tbd check`: what is asked of which checkpoint. The stages that answer are in "
    "dvc.yaml beside it.\n"
)


class Audit(Section):
    """What `audit.yaml` says."""

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

    @property
    def asked(self) -> tuple[str | None, str | None, str, str, float | None]:
        """What is asked about which weights, wherever these are."""
        return self.checkpoint_fingerprint, self.base_fingerprint, self.benchmark, self.unseen, self.fpr


def digest(audit: Audit) -> str:
    """Of what is asked about which weights, and where they are: tells apart audits that would have one name."""
    return sha256(json.dumps([*audit.asked, audit.checkpoint]))[:8]


def path(name: str, workspace: Path = Path()) -> Path:
    """Where the audit `name` says what it is."""
    return workspace / AUDITS / name / FILE


def names(workspace: Path = Path()) -> list[str]:
    """Every audit, by name."""
    return sorted(file.parent.name for file in (workspace / AUDITS).glob(f"*/{FILE}"))


def load(workspace: Path = Path()) -> dict[str, Audit]:
    """Every audit by name. Raises InputError."""
    return {name: get(name, workspace) for name in names(workspace)}


def get(name: str, workspace: Path = Path()) -> Audit:
    """One audit. Raises InputError, suggesting a name, if there is none such."""
    file = path(name, workspace)
    if not os.path.isfile(file):  # False, too, for a name that no file can have
        raise unknown("audit", name, names(workspace), f"{AUDITS}/")
    check_name(name, "audit")
    try:
        return Audit.model_validate(load_yaml(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: {where + ': ' if where else ''}{first['msg']}.") from None


def write(name: str, audit: Audit) -> None:
    """Write its `audit.yaml`. Raises InputError for a name that cannot be one, and a folder that no YAML can hold."""
    if deceives(audit.checkpoint):
        raise InputError(f"{plain(audit.checkpoint)}: control characters in a name. Rename it.")
    with atomic(path(check_name(name, "audit"))) as temporary:
        temporary.write_text(HEADER + yaml.safe_dump(audit.model_dump(), sort_keys=False, allow_unicode=True), "utf-8")
