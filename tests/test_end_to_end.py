"""Everything for real, small: a tiny Llama is distilled, generated from, judged, recorded and reported by the commands
a user types.

The model is too small to reason, not too small to learn by heart: members come out of it almost without doubt.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tbd import audits, records, scores
from tbd.reference import world
from tests.adapters import write_adapter
from tests.workspace import Workspace, create, hurried

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {
    "sets": {"members": 16, "others": 16, "unseen": 40},
    "halfway": {"epochs": 10},
    "distill": {"epochs": 40, "learning_rate": 0.003, "batch_size": 4, "trained_layers": None},
    "generate": {"device": "cpu", "dtype": "float32", "max_new_tokens": 20, "batch_size": 16},
    "score": {"methods": {"tbd": {"m": [10, 20]}, "mean_logprob": {"m": 20}, "logprob_ratio": {"m": 20}}},
    "calibrate": {"bootstrap": 100},
    "watch": {"settle": 0.5},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Any) -> Workspace:
    """A fresh clone whose base is a tiny model instead of the one from the package index; nothing has run."""
    folder = tmp_path_factory.mktemp("end")
    sizes = {"initializer_range": 0.05, "hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 1024}
    base = make_checkpoint(folder / "tiny", **sizes)
    workspace = create(folder / "workspace", SMALL, fake=False)
    pipeline = workspace.root / "dvc.yaml"
    before = "cmd: python -m tbd.stages.base\n"
    assert before in pipeline.read_text()
    pipeline.write_text(
        pipeline.read_text().replace(before, f"cmd: mkdir -p checkpoints && cp -r {base} checkpoints/base\n")
    )
    workspace.commit()
    return workspace.used_before()


def tbd(workspace: Workspace, *arguments: str, code: int = 0) -> str:
    return hurried(workspace.tbd(*arguments, code=code, OMP_NUM_THREADS="1").stdout)


def runs(workspace: Workspace) -> dict[str, list[Any]]:
    """MLflow's runs by experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace.root}/mlflow.db")
    found = {
        experiment.name: client.search_runs([experiment.experiment_id]) for experiment in client.search_experiments()
    }
    return {name: some for name, some in found.items() if name not in ("Default", "tbd history")}


def test_from_nothing_to_verdicts_and_again(workspace: Workspace) -> None:
    out = tbd(workspace, "calibrate")
    assert "Detector" in out
    detector = records.read_json(workspace.root / "detector/detector.json")
    strong, weak = detector["references"]
    assert strong["with_base"]["auc"] > 0.7 and strong["alone"]["auc"] > weak["alone"]["auc"]
    assert weak["provenance"]["engine"] == "transformers" and weak["questions"]["unscored"] == 0

    out = tbd(workspace, "check", "--all")
    assert re.search(r"reference +CONTAMINATED", out) and re.search(r"base +NO EVIDENCE", out)
    assert (
        workspace.verdict("reference")["verdict"] == "CONTAMINATED"
        and workspace.verdict("base")["verdict"] == "NO EVIDENCE"
    )
    labelled = workspace.verdict("reference")["labelled"]
    assert (
        labelled["questions"] == "cross-validated"
        and labelled["auc"] > 0.7
        and (labelled["members"], labelled["others"]) == (16, 16)
    )
    every_file_is_there(workspace.root)
    in_mlflow = runs(workspace)
    assert {name: len(some) for name, some in in_mlflow.items()} == {"tbd calibrations": 1, "tbd checks": 3}
    assert all(run.info.status == "FINISHED" for some in in_mlflow.values() for run in some)
    before = workspace.hashes()

    out = tbd(workspace, "check", "--all")
    assert out.startswith("nothing to do") and "CONTAMINATED" in out
    assert {name: len(some) for name, some in runs(workspace).items()} == {"tbd calibrations": 1, "tbd checks": 3}
    assert {name: digest for name, digest in workspace.hashes().items() if name != "mlflow.db"} == {
        name: digest for name, digest in before.items() if name != "mlflow.db"
    }
    assert workspace.dvc("status").strip() == "Data and pipelines are up to date."


def every_file_is_there(root: Path) -> None:
    """The contract's files, and that the report needs nothing else."""
    with (root / "detector/methods.csv").open() as file:
        methods = list(csv.DictReader(file))
    assert {row["method"] for row in methods} == {method.id for method in scores.expand(SMALL["score"]["methods"])}
    for name in ("detector/roc.csv", "detector/plots/roc.png", "detector/plots/interactive.html"):
        assert (root / name).stat().st_size > 100, name
    for name in ("members", "benchmark", "unseen"):
        assert json.loads((root / "data/validation/sets.json").read_text())[name]["md5"] == records.md5(
            root / f"data/sets/{name}.parquet"
        )
    for audit in ("reference", "halfway", "base"):
        folder = root / "audits" / audit
        for name in (
            "plots/scores.png",
            "plots/p_values.png",
            "plots/power.png",
            "plots/roc.png",
            "plots/interactive.html",
            "validation/sets/index.html",
        ):
            assert (folder / name).stat().st_size > 100, name
        generations = records.read_table(folder / "generations.parquet", records.GENERATIONS)
        assert len(generations) == 72 and records.metadata(generations)["engine"] == "transformers"
        assert len(records.read_table(folder / "questions.parquet", records.VERDICT_QUESTIONS)) == 32
        report = (folder / "report.html").read_text("utf-8")
        assert "data:image/png;base64," in report
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|url\(|@import|<script""", report)


def test_a_set_and_a_model_of_ones_own(workspace: Workspace, tmp_path: Path) -> None:
    if not (workspace.root / "mlflow.db").is_file():
        pytest.skip("goes on from the test above")
    frame = world.question_sets(7, 10, 10, 4, 3, 0.8)["benchmark"]
    rows = [
        {"prompt": row.question, "seen": bool(row.label), "trace": row.reasoning, "final": row.answer}
        for row in frame.itertuples()
    ]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = [
        "--column",
        "prompt",
        "--label-column",
        "seen",
        "--reasoning-column",
        "trace",
        "--answer-column",
        "final",
    ]
    assert "20 questions" in tbd(workspace, "import", "exam", str(tmp_path / "exam.jsonl"), *columns)
    out = tbd(
        workspace, "distill", "--base", "checkpoints/base", "--set", "exam", "--out", "models/mine", "--epochs", "40"
    )
    assert ": 10 questions, " in out  # label 0 is left out

    check = ["check", "models/mine", "--base", "checkpoints/base", "--benchmark", "exam", "--unseen", "unseen"]
    tbd(workspace, *check, "--fail-on", "contaminated", code=1)
    verdict = workspace.verdict("mine-exam")
    assert verdict["verdict"] == "CONTAMINATED" and verdict["benchmark"]["name"] == "exam"
    assert verdict["power"]["same_base"]
    assert verdict["labelled"]["questions"] == "all" and verdict["labelled"]["auc"] > 0.7
    assert (verdict["labelled"]["members"], verdict["labelled"]["others"]) == (10, 10)
    assert {name: len(some) for name, some in runs(workspace).items()} == {"tbd calibrations": 1, "tbd checks": 4}
    tbd(workspace, "verify", "mine-exam")

    weights = workspace.root / "models/mine/config.json"
    weights.write_text(weights.read_text().replace("{", '{"changed": 1,', 1))  # overwritten behind the audit's back
    before = (workspace.root / "audits/mine-exam/audit.yaml").read_bytes()
    assert "with another checkpoint_fingerprint" in workspace.tbd(*check, "--as", "mine-exam", code=2).stderr
    assert (workspace.root / "audits/mine-exam/audit.yaml").read_bytes() == before


def test_an_adapter_of_the_base_is_audited_when_it_appears(workspace: Workspace) -> None:
    if not (workspace.root / "mlflow.db").is_file():
        pytest.skip("goes on from the tests above")
    folder = workspace.root / "checkpoints/incoming/lora"
    write_adapter(folder, workspace.root / "checkpoints/base")
    tbd(workspace, "watch", "checkpoints/incoming")
    (name,) = [one for one in audits.names(workspace.root) if one.startswith("lora-")]
    audit = audits.get(name, workspace.root)
    assert audit.base == "checkpoints/base" and audit.origin == "checkpoints/incoming/lora"
    assert audit.checkpoint.startswith("checkpoints/adapters/lora--")
    tbd(workspace, "verify", name)
    generations = records.read_table(workspace.root / "audits" / name / "generations.parquet", records.GENERATIONS)
    assert records.metadata(generations)["fingerprint"] == audit.checkpoint_fingerprint
