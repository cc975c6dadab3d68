"""The calibrated detector as an MLflow model: token log-probs in, score, p-value and flag out.

The model has no weights: it consists of `detector.json` and the code of this package. Its p-values compare with the
reference's unseen questions, and thresholds do not transfer. So it refuses log-probs of another checkpoint, which
`tbd check` audits against unseen questions on that checkpoint.
"""

import importlib.metadata
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tbd import scores
from tbd.detection.cascade import ranked
from tbd.detection.decisions import conformal_p_values
from tbd.detection.results import Detector, read_detector
from tbd.report.text import interval
from tbd.scores.tokens import Tokens, pad

MODEL = "tbd-detector"
ALIAS = "current"
PROVENANCE = ("fingerprint", "dtype", "template")
"""parameters of `predict`: what must be the same for a threshold to hold"""
DESCRIPTION = (
    "Token log-probs of the reference's answers in; score, p-value and flag out. `current` is the "
    "detector recorded last."
)
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "scipy")


class DetectorModel:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score answers of the checkpoint that the detector was calibrated on.

        `model_input`: the column `logprobs` with a list of the generated tokens' log-probs (nats, raw logits) for each
        question and, for the choice that compares with the base model, `base_logprobs` of the same tokens. `params`:
        the fingerprint, dtype and chat template behind the log-probs; what is left empty is not compared.

        Returns `score` (higher = member; NaN without a token), `p_value` in [1 / (n + 1), 1] and `flagged` (p_value <=
        fpr).

        Raises:
            ValueError: the detector was calibrated on another checkpoint, or some `base_logprobs` are missing.
        """
        for key in PROVENANCE:
            stated, own = (params or {}).get(key), getattr(self.detector.reference.provenance, key)
            if stated and stated != own:
                raise ValueError(
                    f"{key} {stated!r} is not the {own!r} this detector was calibrated on: thresholds do not transfer. "
                    "Audit the other checkpoint with `tbd check`."
                )
        base = _base_logprobs(model_input)
        choice = self.detector.best if base is not None else "alone"
        chosen = getattr(self.detector.choices, choice)
        answers, cascade = Tokens(pad(list(model_input["logprobs"])), base), self.detector.cascade
        score, _ = scores.parse(chosen.id)(answers)
        if cascade is not None:
            score = ranked(scores.parse(cascade.id)(answers)[0], score, cascade.cut)
        p_value = conformal_p_values(score, self.detector.reference.figures(choice).negatives)
        flagged = np.nan_to_num(p_value, nan=1.0) <= self.detector.fpr
        return pd.DataFrame({"score": score, "p_value": p_value, "flagged": flagged})


def _base_logprobs(model_input: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    if "base_logprobs" not in model_input:
        return None
    missing = int(model_input["base_logprobs"].isna().sum())
    if missing == len(model_input):
        return None
    if missing:
        raise ValueError(
            f"base_logprobs: missing for {missing} of {len(model_input)} questions. Give all of them, or leave "
            "the column out."
        )
    return pad(list(model_input["base_logprobs"]))


def _load_pyfunc(path: str) -> DetectorModel:
    """MLflow's entry point; `path` is the `detector.json` in the model."""
    return DetectorModel(read_detector(Path(path)))


def save(detector: Path, folder: Path, model_id: str, run_id: str) -> None:
    """Write `detector.json` as an MLflow model into the new `folder`, with the code of this package and no pickle."""
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    logprobs = Array(DataType.double)
    signature = ModelSignature(
        Schema([ColSpec(logprobs, "logprobs"), ColSpec(logprobs, "base_logprobs", required=False)]),
        Schema([ColSpec("double", "score"), ColSpec("double", "p_value"), ColSpec("boolean", "flagged")]),
        ParamSchema([ParamSpec(key, "string", "") for key in PROVENANCE]),
    )
    provenance = read_detector(detector).reference.provenance
    example = pd.DataFrame(
        {"logprobs": [[-0.01, -0.2, 0.0], [-1.5, -0.7]], "base_logprobs": [[-0.5, -0.9, -0.1], [-1.4, -0.8]]}
    )
    with tempfile.TemporaryDirectory() as temporary:
        code = Path(temporary) / "tbd"
        shutil.copytree(Path(__file__).parents[1], code, ignore=shutil.ignore_patterns("__pycache__"))
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=__name__,
            data_path=str(detector),
            code_paths=[str(code)],
            mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
            signature=signature,
            input_example=(example, {key: getattr(provenance, key) for key in PROVENANCE}),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
        )


def log(client: Any, experiment: str, run_id: str, detector: Path) -> str:
    """Log the model as an output of a run; returns the logged model's id."""
    from mlflow.entities import LoggedModelOutput

    tags = {"detector_version": read_detector(detector).version}
    model_id = str(client.create_logged_model(experiment, name="detector", source_run_id=run_id, tags=tags).model_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save(detector, folder, model_id, run_id)
        client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
    return model_id


def register(client: Any, run_id: str, detector: Path, description: str) -> None:
    """Make the run's detector a version of the registered model, unless it is one, and move the alias to it."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(MODEL, description=DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = read_detector(detector)
    versions = client.search_model_versions(f"name = '{MODEL}' and tags.detector_version = '{found.version}'")
    if versions:
        version = max(int(each.version) for each in versions)
    else:
        figures = found.reference.figures(found.best)
        auc = interval(figures.auc, figures.auc_low, figures.auc_high)
        tags = {"detector_version": found.version, "method": getattr(found.choices, found.best).id, "auc": auc}
        model_id = client.get_run(run_id).outputs.model_outputs[0].model_id
        # not models:/ID, which an SQL store looks up in the process's default store
        source = client.get_logged_model(model_id).artifact_location
        version = client.create_model_version(
            MODEL, source, run_id, tags, description=description, await_creation_for=0, model_id=model_id
        ).version
    client.set_registered_model_alias(MODEL, ALIAS, str(version))
