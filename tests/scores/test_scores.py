"""Scores: values worked by hand, and properties that hold for any answers."""

import inspect
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tbd import params, records
from tbd.errors import InputError
from tbd.scores import METHODS, Method, Tokens, expand, parse, tokens
from tbd.scores.scoring import wanted
from tbd.scores.tokens import pad
from tests.workspace import REPOSITORY

EVERY = expand(
    {
        "tbd": {"m": [1, 3, 8], "tau": [1.0, 0.7], "alpha": [0.6, 1.0], "normalise": ["kept", "all"]},
        "mean_logprob": {"m": [1, 3, 8]},
        "min_k": {"m": 8, "k": [0.2, 0.5, 1.0]},
        "lowest_token": {"m": 8},
        "logprob_ratio": {"m": [1, 3, 8]},
    }
)
logprob = st.floats(-20, 0, allow_subnormal=False)
answers = st.lists(st.lists(st.tuples(logprob, logprob), max_size=10), min_size=1, max_size=6)


def score(method: Method, rows: list[list[float]], base: list[list[float]] | None = None) -> list[float]:
    found, _ = method(Tokens(pad(rows), None if base is None else pad(base)))
    return found.tolist()


def one(name: str, row: list[float], **parameters: Any) -> float:
    (method,) = expand({name: {"m": 100, **parameters}})
    return score(method, [row])[0]


def ln(*probabilities: float) -> list[float]:
    return [math.log(p) if p else -math.inf for p in probabilities]


def test_tbd_truncates_before_it_averages() -> None:
    # M = 3 cuts 0.19 away. (1 - 0.75)^0.5 = 0.5, (1 - 0.64)^0.5 = 0.6, (1 - 0.51)^0.5 = 0.7: mean 0.6, and minus that.
    assert one("tbd", ln(0.75, 0.64, 0.51, 0.19), m=3, alpha=0.5) == pytest.approx(-0.6)


def test_tbd_compares_probabilities_with_tau_not_log_probs() -> None:
    # tau = 0.8 drops 0.9 and 0.8 itself. Kept: (0.8 - 0.55)^0.5 = 0.5 and (0.8 - 0.79)^0.5 = 0.1; mean 0.3.
    assert one("tbd", [*ln(0.9, 0.55, 0.79), math.log(0.9)], tau=0.8, alpha=0.5) == pytest.approx(-0.3)


def test_tbd_raises_to_alpha_before_it_averages() -> None:
    # alpha = 2: (0.1^2 + 0.3^2) / 2 = 0.05, whereas the mean raised to alpha would be 0.04.
    assert one("tbd", ln(0.9, 0.7), alpha=2.0) == pytest.approx(-0.05)


def test_certain_tokens_leave_the_denominator_of_kept_and_stay_in_that_of_all() -> None:
    # Log-probs 0.0, 0.0 (p = 1, not below tau) and ln 0.64: deviation 0.36^0.5 = 0.6, over 1 token kept or 3 tokens.
    row = [0.0, 0.0, math.log(0.64)]
    assert one("tbd", row, alpha=0.5, normalise="kept") == pytest.approx(-0.6)
    assert one("tbd", row, alpha=0.5, normalise="all") == pytest.approx(-0.2)


@pytest.mark.parametrize("normalise", ["kept", "all"])
def test_no_token_kept_is_a_deviation_of_zero(normalise: str) -> None:
    assert one("tbd", [0.0, 0.0], normalise=normalise) == 0.0


def test_a_token_of_probability_zero_counts_in_full() -> None:
    assert one("tbd", ln(0.0, 0.36), alpha=0.5) == pytest.approx(-(1 + 0.8) / 2)


def test_mean_and_lowest() -> None:
    assert one("mean_logprob", [-1.0, -2.0, -6.0]) == -3.0
    assert one("mean_logprob", [-1.0, -2.0, -6.0], m=2) == -1.5
    assert one("lowest_token", [-1.0, -6.0, -2.0]) == -6.0
    assert one("lowest_token", [-1.0, -6.0, -2.0], m=1) == -1.0


@pytest.mark.parametrize(
    ("n", "k", "expected"),
    [
        (10, 0.2, -(10 + 9) / 2),  # the lowest 2 of -1 .. -10
        (9, 0.2, -9.0),  # 1.8 tokens: 1
        (3, 0.2, -3.0),  # 0.6 tokens: at least 1
        (4, 1.0, -2.5),  # all
        (10, 0.3, -(10 + 9 + 8) / 3),
    ],
)
def test_min_k_counts(n: int, k: float, expected: float) -> None:
    row = [-float(i) for i in range(1, n + 1)]
    assert one("min_k", row[::-1], k=k) == pytest.approx(expected)


def test_ratio_to_the_base() -> None:
    (method,) = expand({"logprob_ratio": {"m": 2}})
    rows, base = [[-1.0, -3.0, -99.0], [0.0], [-1.0]], [[-4.0, -4.0, 0.0], [-2.0], [0.0]]
    found, reasons = method(Tokens(pad(rows), pad(base)))
    assert found[:2].tolist() == [-0.5, 0.0]
    assert np.isnan(found[2])  # a base certain of every token leaves nothing to divide by
    assert reasons == [None, None, "not defined here"]


def test_ratio_without_a_base_says_so() -> None:
    (method,) = expand({"logprob_ratio": {"m": 2}})
    found, reasons = method(Tokens(pad([[-1.0], []])))
    assert np.isnan(found).all() and reasons == ["no base model"] * 2


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.id)
def test_no_tokens_is_nan_with_a_reason_never_zero(method: Method) -> None:
    for rows in ([[], [-1.0]], [[], []]):
        found, reasons = method(Tokens(pad(rows), pad(rows)))
        assert np.isnan(found[0]) and reasons[0] == "no token generated"
    assert method(Tokens(pad([]), pad([])))[1] == []


def test_an_infinite_mean_is_no_score() -> None:
    found, reasons = expand({"mean_logprob": {"m": 5}})[0](Tokens(pad([[-math.inf, -1.0]])))
    assert np.isnan(found[0]) and reasons == ["not defined here"]


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.id)
@settings(max_examples=10, deadline=None)
@given(rows=answers, data=st.data())
def test_a_question_scores_the_same_alone_in_a_batch_and_in_any_order(method: Method, rows: Any, data: Any) -> None:
    mine, base = ([[pair[i] for pair in row] for row in rows] for i in (0, 1))
    together = score(method, mine, base)
    alone = [score(method, [a], [b])[0] for a, b in zip(mine, base, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-12, atol=1e-15)
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = score(method, [mine[i] for i in order], [base[i] for i in order])
    np.testing.assert_allclose(shuffled, [together[i] for i in order], rtol=1e-12, atol=1e-15)


@settings(max_examples=50, deadline=None)
@given(row=st.lists(st.floats(-20, -0.5), min_size=1, max_size=10), at=st.integers(0, 9))
def test_a_surer_token_never_lowers_a_score(row: list[float], at: int) -> None:
    at %= len(row)
    surer = [*row[:at], row[at] / 2, *row[at + 1 :]]
    base = [[-1.0] * len(row)]
    for method in EVERY:
        if ("tau", 0.7) in method.parameters:
            continue  # there a token can pass tau and leave the mean, which is the authors' rule
        assert score(method, [surer], base)[0] >= score(method, [row], base)[0] - 1e-12
    assert one("mean_logprob", surer) > one("mean_logprob", row)


def test_ids_read_back() -> None:
    assert [parse(method.id) for method in EVERY] == EVERY
    assert len({method.id for method in EVERY}) == len(EVERY)
    assert parse("tbd(m=100,alpha=0.6,normalise=kept,tau=1.0)") == expand({"tbd": {"m": 100}})[0]


def test_one_method_has_one_id_however_it_is_written() -> None:
    (method,) = expand({"tbd": {"m": [100, 100], "tau": [1, 1.0]}})
    assert method.id == "tbd(m=100,alpha=0.6,normalise=kept,tau=1.0)"
    assert parse("tbd(m=100,tau=1)").id == method.id


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"tdb": {"m": 1}}, "unknown method 'tdb'. Did you mean 'tbd'? Available: logprob_ratio"),
        ({"tbd": {"m": 1, "alfa": 1}}, "score.methods.tbd: unknown parameter 'alfa'. Did you mean 'alpha'?"),
        (
            {"tbd": {"m": 1, "normalise": "keep"}},
            "score.methods.tbd: normalise: unknown value 'keep'. Did you mean 'kept'?",
        ),
        ({"tbd": {"m": 1, "alpha": "much"}}, "score.methods.tbd: "),
        ({"tbd": {"m": 1, "alpha": -1}}, "alpha = -1.0: both must be above 0"),
        ({"tbd": {"m": 1, "tau": math.nan}}, "tau = nan"),
        ({"tbd": {"alpha": 1.0}}, "score.methods.tbd: m is missing"),
        ({"tbd": {"m": 0}}, "tbd.m: 0: a whole number"),
        ({"tbd": {"m": 1.5}}, "tbd.m: 1.5"),
        ({"tbd": {"m": True}}, "tbd.m: True"),
        ({"tbd": {"m": []}, "min_k": {"m": 1}}, "tbd.m: an empty list"),
        ({"min_k": {"m": 1, "k": 0}}, "min_k: k = 0.0: must be above 0"),
        ({"min_k": {"m": 1, "k": [0.2, 1.5]}}, "k = 1.5"),
        ({}, "no method"),
    ],
)
def test_what_is_wrong_in_params_is_said(table: dict[str, dict[str, Any]], says: str) -> None:
    with pytest.raises(InputError) as error:
        expand(table)
    assert (
        says in str(error.value)
        and str(error.value).startswith("params.yaml: score.methods")
        and "\n" not in str(error.value)
    )


@pytest.mark.parametrize("identity", ["", "tbd", "tbd()", "tbd(100)", "tdb(m=1)", "tbd(m=x)"])
def test_what_is_no_id_is_refused(identity: str) -> None:
    with pytest.raises(InputError):
        parse(identity)


def test_every_method_has_its_formula() -> None:
    first = [(inspect.getdoc(function) or "").partition("\n")[0] for function in METHODS.values()]
    assert all(line.endswith((".", ":")) or len(line) > 30 for line in first)


def test_tokens_reads_lists_of_a_table_in_pieces() -> None:
    def table(logprobs: list[list[float]], base: list[list[float] | None]) -> pa.Table:
        n = len(logprobs)
        columns = {
            "set": ["s"] * n,
            "question_id": [f"{i}" for i in range(n)],
            "prompt_sha256": [""] * n,
            "token_ids": [[1] * len(row) for row in logprobs],
            "logprobs": logprobs,
            "base_logprobs": base,
            "finish_reason": ["stop"] * n,
        }
        return pa.table(columns, records.GENERATIONS)

    one, two = table([[-1.0], [-2.0, -3.0]], [[-4.0], [-5.0, -6.0]]), table([[-7.0]], [None])
    assert tokens(pa.concat_tables([one, two]).slice(1)).base_logprobs is None  # not every row has them
    cut = tokens(pa.concat_tables([one, one]).slice(1))
    assert cut.base_logprobs is not None
    np.testing.assert_array_equal(cut.logprobs, [[-2, -3], [-1, np.nan], [-2, -3]])
    np.testing.assert_array_equal(cut.base_logprobs, [[-5, -6], [-4, np.nan], [-5, -6]])
    assert tokens(one.slice(0, 0)).logprobs.shape == (0, 0)


def test_what_a_first_step_may_score_by_is_scored_too() -> None:
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    tree["score"]["methods"] = {"tbd": {"m": [8, 32]}, "min_k": {"m": 20}, "logprob_ratio": {"m": 32}}
    alone = wanted(params.parse(tree))
    tree["calibrate"]["cascade"] = {"m": 8, "keep": 0.3}
    both = wanted(params.parse(tree))  # tbd(m=8) is there, and a base has no part in a first step
    assert both[: len(alone)] == alone and [one.id for one in both[len(alone) :]] == ["min_k(m=8,k=0.2)"]
    tree["calibrate"]["cascade"]["m"] = 32
    with pytest.raises(InputError, match=r"calibrate\.cascade\.m: 32: a method in score\.methods"):
        wanted(params.parse(tree))
