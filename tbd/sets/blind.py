"""The blind control: can the wording alone, without any model, tell two sets of questions apart?

If it can, scores may differ between the sets because their questions do. Published benchmarks for this task failed it
(Duan et al., arXiv 2402.07841; Das et al., arXiv 2406.16201).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import rankdata

from tbd.detection.results import Blind
from tbd.detection.verdict import Texts
from tbd.params import Blind as Rule


def texts(benchmark: pa.Table, unseen: pa.Table, rule: Rule, seed: int) -> Texts:
    """What the questions of two sets, rows of `records.QUESTIONS`, say by themselves."""
    found = control(benchmark["question"], unseen["question"], rule, seed)
    both = pa.chunked_array([*benchmark["source"].chunks, *unseen["source"].chunks], pa.string())
    sources = pc.rank(both, tiebreaker="dense").to_numpy()  # numbers take a tenth of the memory of texts
    return Texts(
        sources=(sources[: len(benchmark)], sources[len(benchmark) :]),
        blind=Blind(auc=found[0], p_value=found[1]) if found else None,
    )


def control(benchmark: Sequence[str], unseen: Sequence[str], rule: Rule, seed: int) -> tuple[float, float] | None:
    """(AUC, p-value) of a ridge regression on words and pairs of words (tf-idf), cross-validated, by permutation.

    AUC in [0, 1]: how often a question of the benchmark is told from an unseen one, 0.5 = never better than by
    guessing. The p-value is of "their wording is exchangeable"; labels are permuted and everything is fitted again, one
    regression for all permutations. Of a larger set `rule.questions` are read. None with fewer questions than
    `rule.folds` in a set, or without a word in common between any two questions.
    """
    if min(len(benchmark), len(unseen)) < rule.folds:
        return None
    # only here: sklearn takes a second to import, and commands that judge nothing import this module too
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import KFold, cross_val_predict

    rng = np.random.default_rng(seed)
    benchmark, unseen = (
        [str(some[row]) for row in rng.choice(len(some), rule.questions, replace=False).tolist()]
        if len(some) > rule.questions
        else [*map(str, some)]
        for some in (benchmark, unseen)
    )
    try:
        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit_transform([*benchmark, *unseen])
    except ValueError:  # no word occurs twice
        return None
    labels = (np.arange(len(benchmark) + len(unseen)) < len(benchmark)).astype(float)
    permuted = np.column_stack([labels, *(rng.permutation(labels) for _ in range(rule.permutations))])
    folds = KFold(rule.folds, shuffle=True, random_state=seed)
    kernel = KernelRidge(kernel="linear", alpha=1.0)
    found = cross_val_predict(kernel, words, permuted - labels.mean(), cv=folds)
    sums = (rankdata(found, axis=0) * permuted).sum(axis=0)
    m, n = len(benchmark), len(unseen)
    auc = (sums - m * (m + 1) / 2) / (m * n)
    return float(auc[0]), float((auc >= auc[0] - 1e-12).mean())
