"""`tbd import` and `tbd prune` wait for who works in the workspace."""

import shutil
import sys
from pathlib import Path

import pytest

from tbd import cli
from tbd.pipeline import workspace_lock
from tests.workspace import REPOSITORY, Workspace


@pytest.mark.parametrize("command", [["import", "exam", "questions.jsonl"], ["prune"]])
def test_nobody_writes_where_another_is_at_work(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    shutil.copy(REPOSITORY / "params.yaml", ".")
    monkeypatch.setattr(workspace_lock, "PATIENCE", 0.1)
    code = (
        "import time\nfrom tbd.pipeline.workspace_lock import workspace\nwith workspace():\n    print(1, flush=True)\n"
    )
    with Workspace(workspace).start(sys.executable, "-c", code + "    time.sleep(60)") as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "1\n"
        with pytest.raises(SystemExit) as stop:
            cli.main(command)
        holder.kill()
    assert stop.value.code == 2 and f"workspace busy: process {holder.pid}" in capsys.readouterr().err
