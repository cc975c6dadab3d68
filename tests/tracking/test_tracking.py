"""Recording into a real MLflow: SQLite stores in a temporary folder, and one server on loopback."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from tbd import scores
from tbd.audits import Audit
from tbd.detection import results
from tbd.detection.decisions import conformal_p_values
from tbd.errors import InputError
from tbd.mlflow_store import TrackingDown, artifact_root, reaching, store
from tbd.pipeline import templates
from tbd.pipeline.lock_file import digest
from tbd.records import VERDICT_QUESTIONS, write_table
from tbd.report.explain import explain
from tbd.scores.tokens import Tokens, pad
from tbd.tracking import detector_model
from tbd.tracking import history as tracking_history
from tbd.tracking import runs as tracking
from tbd.watch import outcomes
from tests import results as made
from tests.outcomes import failure, verdict
from tests.results import ALONE, WITH_BASE
from tests.servers import Server
from tests.workspace import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mlflow_server")]
MonkeyPatch = pytest.MonkeyPatch
FINGERPRINT, TEMPLATE = "c" * 64, "7" * 16
BENCHMARK, UNSEEN = {"name": "benchmark", "md5": "b" * 32, "n": 160}, {"name": "unseen", "md5": "c" * 32, "n": 120}


def png(path: Path) -> None:
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(5, 4))
    figure.subplots().plot([0, 0.05, 1], [0, 0.7, 1])
    figure.savefig(path)


def write_detector(workspace: Path, version: str = "0123456789ab", auc: float = 0.94) -> None:
    choices = {"alone": made.choice(ALONE), "with_base": made.choice(WITH_BASE)}
    figures = {"alone": made.figures(0.9), "with_base": made.figures(auc)}
    provenance = made.provenance(fingerprint=FINGERPRINT, template=TEMPLATE)
    references = [made.reference(provenance=provenance, **figures)]
    results.write(
        workspace / "detector/detector.json", made.detector(version=version, choices=choices, references=references)
    )
    rows = [(ALONE, False, 0.91, 0.9), (WITH_BASE, True, 0.95, auc), ("min_k(m=50,k=0.2)", False, 0.8, 0.81)]
    table = pd.DataFrame(rows, columns=["method", "with_base", "auc_choice", "auc"])
    table.assign(auc_low=table.auc - 0.06, auc_high=table.auc + 0.04).to_csv(
        workspace / "detector/methods.csv", index=False
    )
    (workspace / "detector/roc.csv").write_text("reference,choice,fpr,tpr\nr,alone,0.0,0.0\nr,alone,1.0,1.0\n")


def write_verdict(workspace: Path, audit: str, verdict: str, rate: float) -> None:
    folder = workspace / "audits" / audit
    found = made.verdict(
        verdict,
        audit=audit,
        reasons=["The benchmark as a whole scores as it does."],
        warnings=["A warning."],
        checkpoint=f"checkpoints/{audit}",
        checkpoint_fingerprint=FINGERPRINT,
        base=None,
        base_fingerprint=None,
        same_kind=made.NO_BASE["same_kind"],
        contamination_rate=rate,
        p_value=1e-9,
        unscored=1,
        labelled=made.LABELLED,
    )
    results.write(folder / "verdict.json", found)
    rng = np.random.default_rng(0)
    score = np.append(rng.normal(-0.4, 0.2, 159), np.nan)
    p = conformal_p_values(score, np.linspace(-0.9, -0.1, 120))
    columns = [[f"{i:016x}" for i in range(160)], score, p, np.nan_to_num(p, nan=1) <= 0.05, [0] * 160, [1, 0] * 80]
    write_table(
        folder / "questions.parquet", pa.Table.from_arrays([pa.array(c) for c in columns], VERDICT_QUESTIONS.names)
    )
    (folder / "report.html").write_text(f"<html><body><h1>{verdict}</h1></body></html>")
    (folder / "plots").mkdir(exist_ok=True)
    (folder / "plots/interactive.html").write_text("<html><body><h1>interactive</h1></body></html>")
    png(folder / "plots/scores.png")
    (folder / "validation").mkdir(exist_ok=True)
    (folder / "validation/index.html").write_text("<html><body>all expectations met</body></html>")


def lock(workspace: Path) -> None:
    """Write the `dvc.lock` that DVC would have written of the files there are."""

    def entry(path: str) -> dict:
        file = workspace / path
        return {"path": path, "hash": "md5", "md5": digest(file)}

    stages = {
        "distill": {"cmd": "distill", "deps": [{"path": "data/sets/members.parquet", "md5": "a" * 32}],
                    "params": {"params.yaml": {"distill": {"learning_rate": 0.00001}}},
                    "outs": [{"path": "checkpoints/reference", "md5": "e" * 32 + ".dir"}]},
        "calibrate": {"cmd": "calibrate", "deps": [{"path": "checkpoints/reference/config.json", "md5": "f" * 32}],
                      "params": {"params.yaml": {"decision.fpr": 0.05}}, "outs": [entry("detector")]},
    }  # fmt: skip
    for audit in ("reference", "base"):
        outs = ("verdict.json", "questions.parquet", "report.html", "plots", "validation")
        of_audit = {"verdict": {"cmd": "judge", "deps": [{"path": "detector", "md5": "0" * 32}],
                                "outs": [entry(f"audits/{audit}/{name}") for name in outs]}}  # fmt: skip
        (workspace / "audits" / audit / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": of_audit}))
    text = yaml.safe_dump({"schema": "2.0", "stages": stages})
    (workspace / "dvc.lock").write_text(text.replace("1.0e-05", "1e-05"))  # as DVC writes it


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: MonkeyPatch) -> Path:
    """A finished pipeline's files in a git repository; the current folder; MLflow not configured."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "work space"
    root.mkdir()
    monkeypatch.chdir(root)
    (root / "params.yaml").write_text(
        "calibrate: {references: [reference]}\ndecision: {fpr: 0.05}\ngenerate: {engine: fake}\ndistill: "
        "{learning_rate: 0.00001}\nscore: {methods: {tbd: {m: [20, 50]}}}\n"
        + "many: {" + ", ".join(f"p{i}: {i}" for i in range(120)) + "}\n"
    )  # fmt: skip
    audit = {"checkpoint": "c", "base": None, "benchmark": "benchmark", "unseen": "unseen", "fpr": None,
             "checkpoint_fingerprint": None, "base_fingerprint": None}  # fmt: skip
    for name in ("reference", "base", "later"):
        templates.add(name, Audit.model_validate(audit))
    (root / "data/validation/docs").mkdir(parents=True)
    (root / "data/validation/docs/index.html").write_text("docs")
    png(root / "detector/plots/roc.png")
    write_detector(root)
    write_verdict(root, "reference", "CONTAMINATED", 0.48)
    write_verdict(root, "base", "NO EVIDENCE", 0.0)
    lock(root)
    (root / ".gitignore").write_text("/mlflow.db\n/mlartifacts/\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    return root


@pytest.fixture
def client(workspace: Path, empty_store: Path) -> MlflowClient:
    (workspace / "mlflow.db").write_bytes(empty_store.read_bytes())
    return MlflowClient(store())


def artifacts(client: MlflowClient, run_id: str, folder: str | None = None) -> set[str]:
    found = client.list_artifacts(run_id, folder)
    return {one.path for one in found if not one.is_dir}.union(
        *(artifacts(client, run_id, one.path) for one in found if one.is_dir)
    )


def read(client: MlflowClient, run: Run, table: str) -> pd.DataFrame:
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": table, "type": "table"}]  # shown as a table
    return pd.read_json(client.download_artifacts(run.info.run_id, table), orient="split")


def test_a_check_can_be_read_in_mlflow(workspace: Path, client: MlflowClient) -> None:
    run = client.get_run(tracking.record_check("reference"))
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "reference on benchmark: CONTAMINATED"
    assert run.data.metrics["contamination_rate"] == 0.48
    assert (run.data.metrics["members_at_least"], run.data.metrics["share_at_least"]) == (40, 0.25)
    assert (run.data.metrics["auc"], run.data.metrics["auc_low"], run.data.metrics["p_value"]) == (0.94, 0.88, 1e-9)
    metrics = run.data.metrics
    assert (metrics["mde80"], metrics["mde80_low"], metrics["threshold"]) == (0.16, 0.11, -0.12)
    assert (metrics["members_flagged"], metrics["others_flagged"]) == (0.7, 0.025)
    assert not {"base_p_value", "tpr_at_fpr"} & set(metrics)  # None is left out, and a ROC is the detector's
    assert (run.data.params["many.p119"], run.data.params["score.methods.tbd.m"]) == ("119", "[20, 50]")
    assert (run.data.params["detector"], run.data.params["engine"], run.data.params["fpr"]) == (
        ALONE,
        "transformers",
        "0.05",
    )
    tags = run.data.tags
    assert (tags["verdict"], tags["checkpoint_fingerprint"], tags["git_dirty"]) == (
        "CONTAMINATED",
        FINGERPRINT,
        "false",
    )
    assert (
        tags["git_commit"]
        == subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    )
    told = explain(results.read_verdict(Path("audits/reference/verdict.json"))).paragraphs
    assert tags["mlflow.note.content"] == "\n\n".join(["**CONTAMINATED**", *told]) + "\n- Warning: A warning."
    inputs = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert (inputs["benchmark"].digest, json.loads(inputs["unseen"].source)) == (
        "b" * 32,
        {"uri": "data/sets/unseen.parquet"},
    )
    assert artifacts(client, run.info.run_id) == {
        "plots/scores.png",
        "plots/interactive.html",
        "questions.json",
        "report.html",
        "verdict.json",
        "dvc.lock",
        "params.yaml",
        "validation/index.html",
        *(
            f"{of}/{name}"
            for of in ("audit", "references/reference")
            for name in ("audit.yaml", "dvc.yaml", "dvc.lock")
        ),
    }
    table = read(client, run, "questions.json")
    assert list(table.columns) == ["question_id", "score", "p_value", "flagged", "at_least", "label"]
    assert len(table) == 160
    assert table["p_value"].isna().sum() == 1
    assert Path(
        client.get_experiment(run.info.experiment_id).artifact_location.removeprefix("file://").replace("%20", " ")
    ).is_relative_to(workspace)


def test_a_calibration_carries_every_method_and_both_choices(workspace: Path, client: MlflowClient) -> None:
    run = client.get_run(tracking.record_calibration())
    assert run.info.run_name == "logprob_ratio(m=8) AUC 0.94 [0.88, 0.98]"
    assert run.data.metrics["tpr_at_fpr"] == 0.7 and run.data.metrics["others_flagged"] == 0.05
    assert run.data.params["fingerprint"] == FINGERPRINT and run.data.params["torch_version"] == "2.13.0"
    assert (run.data.metrics["auc"], run.data.metrics["with_base.auc"], run.data.metrics["alone.auc"]) == (
        0.94,
        0.94,
        0.9,
    )
    assert run.data.tags["mlflow.note.content"].startswith("**AUC 0.94 [0.88, 0.98]** for `logprob_ratio(m=8)`")
    assert {one.tags[0].value: one.dataset.name for one in run.inputs.dataset_inputs} == {
        name: name for name in ("benchmark", "unseen", "members")
    }
    table = read(client, run, "methods.json")
    assert list(table["method"]) == [ALONE, WITH_BASE, "min_k(m=50,k=0.2)"]
    assert {"detector.json", "roc.csv", "plots/roc.png", "validation/docs/index.html"} <= artifacts(
        client, run.info.run_id
    )


def test_the_same_state_is_recorded_once_and_a_new_one_again(workspace: Path, client: MlflowClient) -> None:
    first = tracking.record_check("base")
    assert tracking.record_check("base") == first
    write_verdict(workspace, "base", "NO EVIDENCE", 0.01)
    lock(workspace)
    second = tracking.record_check("base")
    assert second != first
    assert client.get_run(second).data.tags["git_dirty"] == "true"


def test_it_is_known_what_is_recorded(workspace: Path, client: MlflowClient, monkeypatch: MonkeyPatch) -> None:
    states = [outcomes.state(name) for name in ("base", "reference")]
    assert not tracking.recorded(states)
    tracking.record_check("base")
    assert tracking.recorded(states[:1]) and not tracking.recorded(states)
    tracking.record_check("reference")
    assert tracking.recorded(states) and not tracking.recorded([*states, "another"])
    (workspace / "elsewhere").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere/mlflow.db")
    assert not tracking.recorded(states) and not (workspace / "elsewhere/mlflow.db").exists()
    (workspace / "audits/base/verdict.json").unlink()
    with pytest.raises(InputError, match=r"audits/base/verdict\.json: not found"):
        outcomes.state("base")


def test_a_half_written_run_is_not_taken_for_the_record(
    workspace: Path, client: MlflowClient, monkeypatch: MonkeyPatch
) -> None:
    state = tracking._check("base", Path()).state
    experiment = tracking.open_experiment(client, tracking.CHECKS, store())
    killed = client.create_run(experiment, tags={"state": state}).info.run_id  # kill -9: RUNNING for ever

    def break_off(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", break_off)
        with pytest.raises(OSError, match="disk full"):
            tracking.record_check("base")
    assert {run.info.status for run in client.search_runs([experiment])} == {"KILLED", "FAILED"}
    whole = tracking.record_check("base")
    assert whole != killed
    assert client.get_run(whole).info.status == "FINISHED"
    assert "report.html" in artifacts(client, whole)


def test_what_differs_from_dvc_lock_is_refused(workspace: Path) -> None:
    (workspace / "audits/base/questions.parquet").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"audits/base/questions\.parquet: not what the pipeline made"):
        tracking.record_check("base")
    (workspace / "detector/plots/roc.png").write_bytes(b"junk")
    with pytest.raises(InputError, match="detector: not what the pipeline made"):
        tracking.record_calibration()
    with pytest.raises(InputError, match="no stage 'verdict@later'"):
        tracking.record_check("later")
    params = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(params.replace("0.05", "0.01"))
    with pytest.raises(InputError, match=r"params.yaml: decision.fpr is not what 'calibrate' ran with"):
        tracking.record_check("reference")
    (workspace / "dvc.lock").unlink()
    with pytest.raises(InputError, match=r"dvc.lock: not found"):
        tracking.record_check("reference")
    assert not (workspace / "mlflow.db").exists()


@pytest.mark.parametrize("value", ["Infinity", "NaN"])
def test_a_number_that_is_not_finite_is_refused(workspace: Path, value: str) -> None:
    path = workspace / "audits/base/verdict.json"
    path.write_text(path.read_text().replace('"threshold": -0.12', f'"threshold": {value}'))
    lock(workspace)
    with pytest.raises(InputError, match=r"audits/base/verdict.json: threshold: Input should be a finite number"):
        tracking.record_check("base")


def test_dvc_itself_digests_a_folder_the_same(workspace: Path, monkeypatch: MonkeyPatch) -> None:
    from dvc.cli import main

    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(workspace / "site"))
    for name in ("z.txt", "sub/ä.txt", "sub.txt"):
        (workspace / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / "folder" / name).write_text(name)
    assert main(["init", "-q"]) == 0
    assert main(["add", "-q", "folder"]) == 0
    assert digest(Path("folder")) == yaml.safe_load(Path("folder.dvc").read_text())["outs"][0]["md5"]


def test_the_registered_detector_scores_as_the_package_does(
    workspace: Path, client: MlflowClient, monkeypatch: MonkeyPatch
) -> None:
    run_id = tracking.record_calibration()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store())
    monkeypatch.setattr(sys, "path", sys.path)  # loading puts the model's code first
    model = mlflow.pyfunc.load_model("models:/tbd-detector@current")
    rng = np.random.default_rng(1)
    logprobs = [(-rng.exponential(0.3, n)).astype(np.float32) for n in (30, 120, 1, 0)]
    base = [each * np.float32(2) for each in logprobs]
    same = {"fingerprint": FINGERPRINT, "dtype": "bfloat16", "template": TEMPLATE}

    for identity, frame in (
        (ALONE, {"logprobs": logprobs}),
        (WITH_BASE, {"logprobs": logprobs, "base_logprobs": base}),
    ):
        found = model.predict(pd.DataFrame(frame), params=same)
        expected, _ = scores.parse(identity)(Tokens(pad(logprobs), pad(base)))
        np.testing.assert_array_equal(found["score"], expected)
        np.testing.assert_array_equal(found["p_value"], conformal_p_values(expected, np.linspace(-0.9, -0.1, 120)))
        assert math.isnan(found["score"].iloc[3])
        assert not found["flagged"].iloc[3]
    assert model.predict(pd.DataFrame({"logprobs": logprobs, "base_logprobs": [None] * 4}))["score"].notna().sum() == 3
    with pytest.raises(ValueError, match="base_logprobs: missing for 1 of 4 questions"):
        model.predict(pd.DataFrame({"logprobs": logprobs, "base_logprobs": [None, *base[1:]]}))
    for key in detector_model.PROVENANCE:
        with pytest.raises(ValueError, match=f"{key} 'other' is not the .* thresholds do not transfer"):
            model.predict(pd.DataFrame({"logprobs": logprobs}), params=same | {key: "other"})

    version = client.get_model_version_by_alias("tbd-detector", "current")
    assert (int(version.version), version.run_id, version.tags["method"]) == (1, run_id, WITH_BASE)
    assert version.tags["auc"] == "0.94 [0.88, 0.98]"


def test_a_new_version_only_for_a_new_detector_and_the_alias_follows(workspace: Path, client: MlflowClient) -> None:
    tracking.record_calibration()
    (workspace / "detector/roc.csv").write_text("reference,choice,fpr,tpr\n")  # another state, the same detector
    lock(workspace)
    tracking.record_calibration()

    def current() -> tuple[int, int]:
        versions = client.search_model_versions("name = 'tbd-detector'")
        return int(client.get_model_version_by_alias("tbd-detector", "current").version), len(versions)

    assert current() == (1, 1)
    write_detector(workspace, "ba9876543210", 0.97)
    lock(workspace)
    tracking.record_calibration()
    assert current() == (2, 2)
    write_detector(workspace)
    lock(workspace)
    tracking.record_calibration()  # back to the first detector, whose run is there
    assert current() == (1, 2)


ELSEWHERE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]  # tbd is not installed
import mlflow
model = mlflow.pyfunc.load_model("models:/tbd-detector@current")
import pandas, tbd
print(model.predict(pandas.DataFrame({"logprobs": [[-0.1]]})).p_value.iloc[0] <= 1, tbd.__file__)
"""


def test_the_model_brings_its_code(workspace: Path, client: MlflowClient) -> None:
    tracking.record_calibration()
    environment = os.environ | {"MLFLOW_TRACKING_URI": store()}
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, env=environment)
    assert done.stdout.startswith(f"True {workspace}/mlartifacts/"), done.stderr


def test_after_an_outage_everything_is_recorded_from_the_files(
    workspace: Path, client: MlflowClient, monkeypatch: MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
        start = time.monotonic()
        with pytest.raises(TrackingDown) as down:
            tracking.record_check("reference")
        assert time.monotonic() - start < 15
        assert "secret" not in str(down.value)
        assert "\n" not in str(down.value)
    (workspace / "audits/base/report.html").write_text("tampered")
    with pytest.raises(InputError, match=r"audits/base/report.html"):
        tracking.record_all()
    write_verdict(workspace, "base", "NO EVIDENCE", 0.0)
    made = tracking.record_all()  # the two good ones went in before
    assert [client.get_run(run_id).info.run_name for run_id in made] == ["base on benchmark: NO EVIDENCE"]
    assert tracking.record_all() == []


def test_the_store_is_absolute_and_a_mistyped_one_refused(workspace: Path, monkeypatch: MonkeyPatch) -> None:
    assert store() == f"sqlite:///{workspace}/mlflow.db"
    assert artifact_root(store()) == workspace / "mlartifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert store() == f"sqlite:///{workspace}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert store() == "https://mlflow.example.org"
    assert artifact_root(store()) is None
    for wrong in ("sqlite:///mistyped/mlflow.db", "./mlruns", "file:///tmp/mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", wrong)
        with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
            store()


def test_credentials_in_addresses_are_not_recorded() -> None:
    assert tracking.texts({"engine": "openai https://me:key@host/v1", "none": None}, 99) == {
        "engine": "openai https://host/v1"
    }


def test_a_new_store_is_made_quietly(workspace: Path) -> None:
    code = "from tbd.tracking import runs; print(runs.record_check('base'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (len(done.stdout.split()), done.stderr) == (1, "")


def test_a_real_server_takes_the_record(workspace: Path, mlflow_server: Server, monkeypatch: MonkeyPatch) -> None:
    server = mlflow_server.ready().url
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    made = tracking.record_all()
    assert len(made) == 3
    assert tracking.record_all() == []
    client = MlflowClient(server)
    assert {"report.html", "plots/scores.png", "questions.json"} <= artifacts(client, made[1])
    assert tracking_history.record_failure(failure(1)) == tracking_history.record_failure(failure(1))
    history = tracking_history.record_history([verdict(1), failure(2)])
    assert tracking_history.record_history([verdict(1), failure(2), verdict(3)]) == history
    assert len(client.get_metric_history(history, "contamination_rate.maths")) == 2
    assert artifacts(client, history) == {"history.html", "history.json"}
    tracking_history.tag_version("models:/tbd-detector/1", verdict(1), made[1])
    assert client.get_model_version("tbd-detector", "1").tags["tbd.run.maths"] == made[1]
    tracking_history.tag_version("models:/tbd-detector/2", verdict(1), made[1])  # not there
    monkeypatch.setattr(sys, "path", sys.path)
    model = mlflow.pyfunc.load_model("models:/tbd-detector@current")
    assert len(model.predict(pd.DataFrame({"logprobs": [[-0.1, -0.2]]}))) == 1
    assert not (workspace / "mlflow.db").exists()
    assert not (workspace / "mlruns").exists()


KILLED = """
import os, signal, sqlite3, sys, threading
from tbd.mlflow_store import reaching

def begun():
    try:  # of this table: a kill was seen to do harm there
        with sqlite3.connect("file:mlflow.db?mode=ro", uri=True) as database:
            return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'scorers'").fetchone()
    except sqlite3.Error:
        return None

def kill():
    while not begun():
        pass
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
with reaching(f"sqlite:///{os.getcwd()}/mlflow.db") as client:
    client.search_experiments()
    threading.Event().wait(30)
"""


def test_a_kill_while_the_tables_are_made_leaves_a_database_that_opens(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == -signal.SIGKILL and (tmp_path / "mlflow.db").is_file()
    with reaching(f"sqlite:///{tmp_path}/mlflow.db") as client:
        assert [one.name for one in client.search_experiments()] == ["Default"]
