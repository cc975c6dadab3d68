"""Metrics against scikit-learn, and both ways of reading a rate off a ROC curve."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from tbd.detection.metrics import auc, roc, tpr_at_fpr


def samples(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels of both kinds."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rng.integers(4, 60)) % rng.integers(2, 4) == 0).astype(int)
    return np.round(rng.normal(size=len(labels)) + labels, 1 if seed % 2 else 0), labels


@pytest.mark.parametrize("seed", range(20))
def test_auc_and_roc_are_scikit_learns(seed: int) -> None:
    scores, labels = samples(seed)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    for mine, theirs in zip(roc(scores, labels), roc_curve(labels, scores, drop_intermediate=False), strict=True):
        np.testing.assert_allclose(mine, theirs)


@pytest.mark.parametrize("seed", range(20))
def test_tpr_is_what_the_strictest_reading_of_the_curve_gives(seed: int) -> None:
    scores, labels = samples(seed)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    for target in (0.01, 0.05, 0.2, 0.5):
        assert tpr_at_fpr(scores, labels, target) == tpr[fpr <= target][-1]
        assert tpr_at_fpr(scores, labels, target, "first above") == tpr[fpr >= target][0]
        if target not in fpr:
            assert tpr_at_fpr(scores, labels, target) <= tpr_at_fpr(scores, labels, target, "first above")


def test_the_two_conventions_differ() -> None:
    # Thresholds from the top: 9 -> FPR 0, TPR 1/4; 8 -> 1/2, 1/4 (a false one); 7 -> 1/2, 3/4 (two true ones); ...
    scores, labels = [9, 8, 7, 7, 2, 1], [1, 0, 1, 1, 0, 1]
    assert tpr_at_fpr(scores, labels, 0.1) == 0.25
    # A tie of a member with a non-member: no threshold takes one without the other.
    scores, labels = [9, 8, 8, 2, 1], [1, 1, 0, 1, 0]
    assert tpr_at_fpr(scores, labels, 0.1) == pytest.approx(1 / 3)
    assert tpr_at_fpr(scores, labels, 0.1, "first above") == pytest.approx(2 / 3)


def test_at_a_target_reached_exactly_the_papers_convention_is_the_lower_one() -> None:
    # ROC points with FPR 1/2: TPR 1/3, 2/3 and 1.
    scores, labels = [5, 4, 3, 2, 1], [1, 0, 1, 1, 0]
    assert tpr_at_fpr(scores, labels, 0.5) == 1.0
    assert tpr_at_fpr(scores, labels, 0.5, "first above") == pytest.approx(1 / 3)


def test_a_rate_exactly_at_the_target_counts() -> None:
    scores, labels = np.arange(40), np.repeat([0, 1], 20)
    flipped = -scores  # every non-member above every member
    assert tpr_at_fpr(flipped, labels, 0.05) == 0
    one_false = np.where(scores == 0, 100, scores)  # one non-member of 20 above all: FPR 1/20 finds every member
    assert tpr_at_fpr(one_false, labels, 0.05) == 1.0
    assert tpr_at_fpr(one_false, labels, 0.049) == 0.0


def test_order_and_units_of_scores_do_not_matter() -> None:
    scores, labels = samples(3)
    order = np.random.default_rng(0).permutation(len(scores))
    assert auc(scores[order], labels[order]) == auc(scores, labels) == auc(np.exp(scores), labels)
    assert auc(-scores, labels) == pytest.approx(1 - auc(scores, labels))


def test_no_signal_is_one_half() -> None:
    assert auc([1, 1, 1, 1], [1, 0, 1, 0]) == 0.5


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([1.0, np.nan], [1, 0]),
        ([1.0, 2.0], [1, 1]),
        ([1.0, 2.0], [0, 0]),
        ([1.0, 2.0, 3.0], [1, 0, np.nan]),
        ([1.0, 2.0], [-1, 1]),
    ],
)
def test_nan_one_class_and_unknown_labels_are_refused(scores: list[float], labels: list[float]) -> None:
    for metric in (auc, roc):
        with pytest.raises(ValueError, match=r"leave|needed"):
            metric(scores, labels)


def test_unknown_convention() -> None:
    with pytest.raises(ValueError, match="at most"):
        tpr_at_fpr([1, 2], [0, 1], 0.1, "nearest")
