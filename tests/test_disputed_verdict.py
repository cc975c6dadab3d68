"""The page docs/disputed-verdict.md, followed to the letter."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.workspace import REPOSITORY, fake_checkpoint, finished

pytestmark = pytest.mark.slow
PAGE = REPOSITORY / "docs/disputed-verdict.md"


def test_the_page_as_it_stands(tmp_path: Path) -> None:
    """A look audits a checkpoint; whoever has the run, the repository and the DVC remote comes to the same verdict."""
    workspace = finished()[0].copy(tmp_path / "workspace").used_before()
    workspace.dvc("remote", "add", "--default", "store", str(tmp_path / "remote"))
    workspace.edit("params.yaml", {"watch": {"settle": 0, "sources": [str(tmp_path / "incoming")]}})
    workspace.commit()
    workspace.edit("params.yaml", {"decision": {"fpr": 0.1}})  # a state that no commit has
    fake_checkpoint(tmp_path / "incoming/model-7", "something else")
    workspace.tbd("watch")
    workspace.dvc("push", "--quiet")
    client = MlflowClient(f"sqlite:///{workspace.root}/mlflow.db")
    experiment = client.get_experiment_by_name("tbd checks")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["git_dirty"] == "false"

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    script = "set -e\n" + "\n".join(blocks).replace(".venv/bin/", f"{Path(sys.executable).parent}/").replace(
        "tbd verify", "python -m tbd verify"
    )
    told = {
        "RUN": run.info.run_id,
        "AUDIT": run.data.tags["audit"],
        "REPOSITORY": str(workspace.root),
        "MLFLOW_TRACKING_URI": f"sqlite:///{workspace.root}/mlflow.db",
    }
    done = workspace.run("bash", "-c", f"cd {elsewhere}\n{script}", **told)
    assert "recomputed, the same in every number" in done.stdout
    assert f"Running stage 'audits/{told['AUDIT']}/dvc.yaml:generate'" in done.stdout
    assert not re.search("from the store", done.stdout)

    # and it would notice: another checkpoint in that place is refused, a verdict that was touched is told
    shutil.rmtree(tmp_path / "incoming/model-7")
    fake_checkpoint(tmp_path / "incoming/model-7", "quite another")
    again = [
        "bash",
        "-c",
        f"cd {elsewhere}/dispute && dvc repro --force --single-item audits/{told['AUDIT']}/dvc.yaml:generate",
    ]
    assert "no longer the checkpoint that was registered" in workspace.run(*again, code=255).stderr
    verdict = elsewhere / "dispute/audits" / told["AUDIT"] / "verdict.json"
    verdict.write_text(verdict.read_text().replace('"flagged": ', '"flagged": 1'))
    touched = workspace.run("bash", "-c", f"cd {elsewhere}/dispute && python -m tbd verify {told['AUDIT']}", code=1)
    assert "verdict.json" in touched.stdout
