"""Tables of many row groups: read, scored and compared some rows at a time, the same as at once."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import million
from tbd import records, scores
from tbd.commands import checks
from tbd.detection import power
from tbd.detection.global_test import GlobalTest
from tbd.params import load
from tbd.report import plots
from tbd.scores.scoring import LABELS, score
from tbd.scores.table import ScoreTable
from tbd.scores.tokens import tokens
from tbd.workspace import set_path
from tests.workspace import REPOSITORY


def test_scores_in_pieces_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "ROWS", 7)
    million.audit("a", {"asked": 30, "new": 20}, True, True, np.random.default_rng(0))
    path = Path("audits/a/generations.parquet")
    whole = records.read_table(path, records.GENERATIONS)
    assert pa.concat_tables(records.read_batches(path, records.GENERATIONS)).equals(whole)
    sets = {name: records.read_table(set_path(name), LABELS) for name in ("asked", "new")}
    methods = scores.expand(million.METHODS)
    score({"checkpoint": path}, sets, methods, Path("audits/a/scores.parquet"))
    found = ScoreTable("a")
    assert found.methods() == [method.id for method in methods]
    for method in methods:
        expected, _ = method(tokens(whole))
        pieces = [found.scores(method.id, name) for name in ("asked", "new")]
        np.testing.assert_allclose(np.concatenate(pieces), expected, rtol=1e-12)
    np.testing.assert_array_equal(found.labels("asked"), sets["asked"]["label"])
    assert set(found.lengths("new")) == {million.TOKENS}
    score({"checkpoint": path}, sets, methods, Path("again.parquet"))
    assert checks._same_rows(Path("again.parquet"), Path("audits/a/scores.parquet"))
    score({"checkpoint": path}, sets, methods[1:], Path("again.parquet"))
    assert not checks._same_rows(Path("again.parquet"), Path("audits/a/scores.parquet"))


def test_a_large_test_draws_fewer_labels_and_stays_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(size=40), rng.normal(size=40)
    whole = GlobalTest(40, 40, permutations=400, seed=0)
    monkeypatch.setattr("tbd.detection.global_test.CHUNK", 1000)
    assert (GlobalTest(40, 40, permutations=400, seed=0).labellings == whole.labellings).all()
    monkeypatch.setattr("tbd.detection.global_test.LABELS", 250 * 80)
    few = GlobalTest(40, 40, permutations=10_000, seed=0)
    assert len(few.labellings) == 251
    assert few.p_value(ours, theirs) == pytest.approx(whole.p_value(ours, theirs), abs=0.1)
    assert 0 < few.p_value(ours + 50, theirs) < 1e-9


def test_a_large_audit_is_simulated_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = load(REPOSITORY / "params.yaml").decision.model_copy(update={"simulations": 40})
    monkeypatch.setattr(power, "LARGEST", 300)
    strong = power.assumed(2.0)
    large, small = (
        power.curve(strong, *sizes, with_base=False, decision=decision, seed=0) for sizes in ((2000, 1000), (200, 100))
    )
    assert large.mde80 == small.mde80


def test_of_many_questions_some_are_drawn() -> None:
    assert plots.some(3).tolist() == [0, 1, 2] and len(plots.some(0)) == 0
    drawn = plots.some(1_000_000)
    assert len(drawn) == plots.POINTS and (drawn[0], drawn[-1]) == (0, 999_999) and len(np.unique(drawn)) == len(drawn)
