"""The stages of an audit: one `dvc.yaml` in its folder, made from a template."""

from pathlib import Path

from tbd import audits
from tbd.audits import Audit
from tbd.records import atomic
from tbd.workspace import AUDITS

TEMPLATE = Path(__file__).with_name("audit.dvc.yaml")


def add(name: str, audit: Audit) -> None:
    """Write `audit.yaml` and `dvc.yaml`. Raises InputError for a name that cannot be one."""
    audits.write(name, audit)
    with atomic(AUDITS / name / "dvc.yaml") as temporary:
        temporary.write_text(TEMPLATE.read_text("utf-8").replace("audit: NAME", f'audit: "{name}"'), "utf-8")
