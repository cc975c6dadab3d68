"""A detector and a verdict as models, for those tests that read one; every field can be given otherwise."""

from typing import Any

import numpy as np

from tbd import scores
from tbd.detection.results import Detector, Verdict

ALONE, WITH_BASE = "tbd(m=100,alpha=0.6,normalise=kept,tau=1.0)", "logprob_ratio(m=8)"
GENERATION = {
    "engine": "transformers", "engine_version": "5.23.0", "torch_version": "2.13.0", "device": "cpu",
    "dtype": "bfloat16", "template": "7" * 16, "vocabulary": "8" * 16, "decoding": "greedy",
    "end_token": "included", "max_new_tokens": 100, "batch_size": 64,
}  # fmt: skip
BENCHMARK, UNSEEN = {"name": "benchmark", "md5": "b" * 32, "n": 160}, {"name": "unseen", "md5": "c" * 32, "n": 120}
LABELLED = {
    "questions": "cross-validated", "members": 40, "others": 40, "auc": 0.94, "auc_low": 0.88, "auc_high": 0.98,
    "members_flagged": 0.7, "members_flagged_low": 0.55, "members_flagged_high": 0.82, "others_flagged": 0.025,
}  # fmt: skip
CURVE = {0.05: 0.2, 0.1: 0.5, 0.2: 0.9, 0.5: 1.0, 1.0: 1.0}
POWER = {
    "reference": "reference", "same_base": True, "mde80": 0.16, "mde80_low": 0.11, "mde80_high": 0.22,
    "curve": [{"leaked": share, "estimate": power, "low": max(0, power - 0.1), "high": min(1, power + 0.1)}
              for share, power in CURVE.items()],
    "members_flagged": {"estimate": 0.7, "low": 0.53, "high": 0.83},
}  # fmt: skip
SAME_KIND = {
    "blind": {"auc": 0.53, "p_value": 0.23}, "base_p_value": 0.42, "base_shift_bound": 0.14,
    "shift_needed": 0.61,
}  # fmt: skip
ANSWERS = {"looked_at": 100, "short": 0.0, "unscored": 0.0, "odd_prompts": 0, "same_frame": True}
NO_BASE = {
    "base": None, "base_fingerprint": None,
    "same_kind": SAME_KIND | {"base_p_value": None, "base_shift_bound": None},
}  # fmt: skip


def choice(identity: str = ALONE) -> dict[str, Any]:
    method = scores.parse(identity)
    return {"method": method.name, "id": identity, "parameters": {"m": method.m, **dict(method.parameters)}}


def figures(auc: float = 0.94, **changes: Any) -> dict[str, Any]:
    return {
        "auc_choice": auc + 0.01, "agreement": 0.6, "auc": auc, "auc_low": auc - 0.06, "auc_high": auc + 0.04,
        "tpr_at_fpr": 0.7, "tpr_low": 0.54, "tpr_high": 0.83, "tpr_paper_convention": 0.72, "threshold": -0.12,
        "members_flagged": 0.72, "members_flagged_low": 0.56, "members_flagged_high": 0.85, "others_flagged": 0.05,
        "member_p_values": [0.01, 0.02], "other_p_values": [0.3, 0.8],
        "negatives": np.linspace(-0.9, -0.1, 120).tolist(),
    } | changes  # fmt: skip


def provenance(**changes: Any) -> dict[str, Any]:
    return {
        "checkpoint": "checkpoints/reference", "fingerprint": "c" * 64, "base": "checkpoints/base",
        "base_fingerprint": "d" * 64,
        "benchmark": BENCHMARK, "unseen": UNSEEN, **GENERATION,
    } | changes  # fmt: skip


def reference(**changes: Any) -> dict[str, Any]:
    return {
        "name": "reference", "provenance": provenance(), "questions": {"members": 40, "others": 40, "unscored": 0},
        "alone": figures(), "with_base": None,
    } | changes  # fmt: skip


def detector(**changes: Any) -> Detector:
    choices = changes.get("choices", {"alone": choice(), "with_base": None})
    tree = {
        "version": "0123456789ab", "fpr": 0.05, "confidence": 0.95, "choices": choices, "tokens": 100,
        "references": [reference(with_base=choices["with_base"] and figures())], "warnings": [],
    }  # fmt: skip
    return Detector.model_validate(tree | changes)


def verdict(kind: str = "CONTAMINATED", **changes: Any) -> Verdict:
    tree = {
        "audit": "release-7", "verdict": kind, "reasons": ["The first reason.", "The second reason."], "warnings": [],
        "checkpoint": "checkpoints/release-7", "checkpoint_fingerprint": "c" * 64,
        "base": "checkpoints/base", "base_fingerprint": "b" * 64, "benchmark": BENCHMARK, "unseen": UNSEEN,
        "detector": {"version": "0123456789ab", "choice": "alone", "method": "tbd", "id": ALONE,
                     "parameters": {"m": 100}},
        "fpr": 0.05, "level": 0.05, "exchangeability": 0.01, "confidence": 0.95, "p_value": 1.3e-9, "clusters": None,
        "members_at_least": 40, "share_at_least": 0.25, "contamination_rate": 0.4875,
        "threshold": -0.12, "flagged": 33, "flagged_by_chance": {"mean": 7.9, "high": 16}, "flagged_false": 0.12,
        "unscored": 0, "answers": ANSWERS, "power": POWER, "other_powers": [], "same_kind": SAME_KIND,
        "generation": GENERATION, "labelled": None,
    }  # fmt: skip
    return Verdict.model_validate(tree | changes)
