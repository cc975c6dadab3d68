"""detector.json and verdict.json: what is written is read, and nothing else is."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tbd.detection import results
from tbd.detection.results import Verdict, read_detector, read_verdict
from tbd.errors import InputError
from tests.results import LABELLED, WITH_BASE, choice, detector, figures, reference, verdict
from tests.workspace import REPOSITORY


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    less = {"power": None, "base": None, "base_fingerprint": None, "threshold": None, "members_at_least": None}
    for each in (verdict(), verdict(labelled=LABELLED), verdict("INCONCLUSIVE", **less)):
        results.write(path, each)
        assert read_verdict(path) == each
    for made in (detector(), detector(choices={"alone": choice(), "with_base": choice(WITH_BASE)})):
        results.write(path, made)
        assert read_detector(path) == made


def test_what_an_engine_adds_is_kept(tmp_path: Path) -> None:
    found = verdict(generation=verdict().generation.model_dump() | {"attention": "eager"})
    results.write(tmp_path / "v.json", found)
    assert read_verdict(tmp_path / "v.json").generation.model_dump()["attention"] == "eager"


def test_a_file_says_which_schema_it_has_and_sorts_its_keys(tmp_path: Path) -> None:
    for each in (verdict(), detector()):
        results.write(tmp_path / "r.json", each)
        tree = json.loads((tmp_path / "r.json").read_text())
        assert tree["schema_version"] == 3 and list(tree) == sorted(tree)
        assert set(type(each).model_fields) - set(tree) <= {"stopped"}  # only where there is a cascade


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"more": 1}, "more: Extra inputs are not permitted."),
        ({"power": {**verdict().model_dump()["power"], "more": 1}}, "power.more: Extra inputs are not permitted."),
        ({"p_value": math.nan}, "p_value: Input should be a finite number."),
        ({"threshold": math.inf}, "threshold: Input should be a finite number."),
        ({"verdict": "CLEAN"}, "verdict: Input should be 'CONTAMINATED', 'NO EVIDENCE' or 'INCONCLUSIVE'."),
        ({"schema_version": 2}, "schema_version: made by an older tbd. Run `tbd calibrate`, then `tbd check --all`."),
        (
            {"schema_version": 4},
            "schema_version: made by a newer tbd (schema 4). Update the one here.",
        ),
    ],
)
def test_what_is_no_verdict_is_refused_in_a_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "verdict.json"
    path.write_text(json.dumps(verdict().model_dump() | changes))
    with pytest.raises(InputError) as refused:
        read_verdict(path)
    assert str(refused.value) == f"{path}: {said}"


@pytest.mark.parametrize("read", [read_verdict, read_detector])
def test_a_file_of_an_older_tbd_says_so(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"version": "0123456789ab", "rate": {"estimate": 0.1}}')
    with pytest.raises(InputError, match="made by an older tbd"):
        read(path)


@pytest.mark.parametrize("p_value", [0.0, -1, 1.5, 1e30, "x"])
def test_a_p_value_that_is_none_is_refused(tmp_path: Path, p_value: object) -> None:
    tree = detector().model_dump(mode="json")
    tree["references"][0]["alone"]["member_p_values"][0] = p_value
    (tmp_path / "d.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"references\.0\.alone\.member_p_values\.0: "):
        read_detector(tmp_path / "d.json")


@pytest.mark.parametrize("text", ["[]", "null", '{"schema_version": 1}', '{"schema_version": "one"}', "{", ""])
def test_junk_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(InputError, match=r"d\.json: "):
        read_detector(tmp_path / "d.json")
    with pytest.raises(InputError, match=r"none\.json: not found"):
        read_detector(tmp_path / "none.json")


def test_nan_makes_no_result() -> None:
    with pytest.raises(ValidationError, match="finite number"):
        verdict(p_value=math.nan)
    with pytest.raises(ValidationError, match="finite number"):
        detector(references=[reference(alone=figures(negatives=[math.nan]))])


def test_the_schema_in_the_docs_is_that_of_the_model() -> None:
    """After a change: python -m tbd.detection.results > docs/verdict.schema.json"""
    assert json.loads((REPOSITORY / "docs/verdict.schema.json").read_text()) == Verdict.model_json_schema()


def test_every_field_says_what_it_is() -> None:
    models = [each for each in vars(results).values() if isinstance(each, type) and issubclass(each, results.Result)]
    assert len(models) > 10
    fields = {f"{model.__name__}.{key}": field for model in models for key, field in model.model_fields.items()}
    assert [name for name, field in fields.items() if not field.description] == []
