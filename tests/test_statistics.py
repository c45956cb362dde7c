"""Statistics against closed forms, hand-computed numbers, scipy and their laws."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxmarl_tad.statistics import (
    iqm,
    iqm_curve,
    modal,
    probability_of_improvement,
    reached,
    shares,
    stratified_bootstrap,
    wilson,
)

scores = arrays(float, st.integers(1, 40), elements=st.floats(-100, 100).map(lambda x: round(x, 3)))
tables = arrays(
    float,
    st.tuples(st.integers(1, 8), st.integers(1, 4)),
    elements=st.floats(-100, 100).map(lambda x: round(x, 3)),
)


# --- interquartile mean ---------------------------------------------------------------------------


def test_iqm_by_hand():
    assert iqm([-1000.0, 1, 2, 3, 4, 5, 6, 1000]) == (2 + 3 + 4 + 5) / 4
    assert iqm([0.0, 0.0, 0.0, 4.0, 8.0]) == 4 / 3  # ⌊5/4⌋ = 1 from either end
    assert iqm([5.0, 7.0, 0.0]) == 4.0  # nothing to cut from three


def test_iqm_pools_tasks():
    table = np.arange(8.0).reshape(4, 2)
    assert iqm(table) == iqm(table.ravel()) == 3.5
    assert iqm({"a": table[:, 0], "b": table[:, 1]}) == 3.5
    assert iqm([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0, 6.0, 7.0]]) == 3.5


@given(scores)
def test_iqm_is_scipys_trimmed_mean(x):
    np.testing.assert_allclose(iqm(x), scipy.stats.trim_mean(x, 0.25), rtol=1e-12, atol=1e-12)


@given(scores, st.floats(-50, 50), st.floats(0.1, 10))
def test_iqm_is_equivariant_and_inside_the_range(x, shift, scale):
    np.testing.assert_allclose(iqm(scale * x + shift), scale * iqm(x) + shift, atol=1e-8)
    assert x.min() - 1e-9 <= iqm(x) <= x.max() + 1e-9


# --- bootstrap ------------------------------------------------------------------------------------


def test_bootstrap_of_a_mean_is_the_normal_interval():
    x = np.random.default_rng(1).normal(3.0, 2.0, size=(400, 1))
    low, high = stratified_bootstrap(x, np.mean, reps=4000)
    half = 1.96 * x.std() / math.sqrt(400)
    np.testing.assert_allclose([low, high], [x.mean() - half, x.mean() + half], atol=0.02)


def test_bootstrap_of_bits_covers_exactly_as_a_binomial_does():
    # Redrawing 10 bits with 5 ones gives Binomial(10, 1/2) / 10, whose 95 % quantiles are 0.2, 0.8.
    bits = np.array([0.0, 1.0] * 5)
    expected = scipy.stats.binom(10, 0.5).ppf([0.025, 0.975]) / 10
    np.testing.assert_allclose(stratified_bootstrap(bits, np.mean, reps=20_000), expected)


def test_bootstrap_redraws_within_tasks():
    # All variance lies between the tasks, so a redraw within tasks changes nothing.
    table = np.array([[0.0, 10.0, 50.0]] * 6)
    low, high = stratified_bootstrap(table, np.mean)
    assert low == high == 20.0


def test_bootstrap_keeps_the_size_of_each_task():
    seen = set()
    stratified_bootstrap(
        {"a": np.arange(3.0), "b": np.arange(5.0)},
        lambda strata: seen.add(tuple(map(len, strata))) or 0.0,
        reps=20,
    )
    assert seen == {(3, 5)}


def test_bootstrap_fast_paths_equal_the_general_one():
    table = np.random.default_rng(2).normal(size=(12, 3))
    for statistic in (iqm, np.mean):
        fast = stratified_bootstrap(table, statistic, reps=200)

        def slow(strata, statistic=statistic):
            return statistic(np.concatenate(strata))

        np.testing.assert_allclose(fast, stratified_bootstrap(table, slow, reps=200), rtol=1e-12)


def test_bootstrap_is_repeatable_and_wider_with_confidence():
    x = np.random.default_rng(3).normal(size=(10, 4))
    assert stratified_bootstrap(x) == stratified_bootstrap(x)
    assert stratified_bootstrap(x) != stratified_bootstrap(x, seed=1)
    narrow, wide = stratified_bootstrap(x, confidence=0.5), stratified_bootstrap(x, confidence=0.99)
    assert wide[0] < narrow[0] < iqm(x) < narrow[1] < wide[1]


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    hits = 0
    for trial in range(200):
        low, high = stratified_bootstrap(rng.normal(size=(30, 2)), reps=300, seed=trial)
        hits += low <= 0.0 <= high
    assert 0.88 <= hits / 200 <= 0.99  # 0.95 within three binomial standard errors, minus its bias


def test_curve_is_the_iqm_at_every_point():
    values = np.random.default_rng(5).normal(size=(16, 7)).cumsum(axis=1)
    middle, low, high = iqm_curve(values, reps=300)
    np.testing.assert_allclose(middle, [iqm(column) for column in values.T], rtol=1e-12)
    assert (low < middle).all()
    assert (middle < high).all()
    at_two = stratified_bootstrap(values[:, 2], reps=300)
    np.testing.assert_allclose((low[2], high[2]), at_two, rtol=1e-12)


# --- probability of improvement -------------------------------------------------------------------


def test_improvement_by_hand():
    # Task 1: 3 > 2, 3 > 1, 1 < 2, 1 = 1: (2 + ½) / 4. Task 2: always better.
    x, y = np.array([[3.0, 9.0], [1.0, 8.0]]), np.array([[2.0, 0.0], [1.0, 1.0]])
    assert probability_of_improvement(x, y) == (2.5 / 4 + 1) / 2


@given(tables, st.data())
def test_improvement_is_the_mann_whitney_statistic(x, data):
    y = data.draw(arrays(float, (5, x.shape[1]), elements=st.integers(-3, 3).map(float)))
    u = [scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * 5) for a, b in zip(x.T, y.T)]  # noqa: B905
    np.testing.assert_allclose(probability_of_improvement(x, y), np.mean(u), atol=1e-12)
    np.testing.assert_allclose(
        probability_of_improvement(x, y) + probability_of_improvement(y, x), 1, atol=1e-12
    )
    assert probability_of_improvement(x, x) == pytest.approx(0.5)


def test_improvement_refuses_other_tasks():
    with pytest.raises(ValueError, match="2 tasks"):
        probability_of_improvement(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement({"a": [1.0]}, {"b": [1.0]})


# --- proportions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(0, 64), (1, 64), (32, 64), (64, 64), (3, 10), (1, 1)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_is_scipys(successes, n, confidence):
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    np.testing.assert_allclose(wilson(successes, n, confidence), theirs, rtol=1e-9, atol=1e-12)


def test_wilson_by_hand():
    # For p = 0 the interval is [0, z²/(n + z²)].
    z2 = scipy.stats.norm.ppf(0.975) ** 2
    np.testing.assert_allclose(wilson(0, 16), (0.0, z2 / (16 + z2)), rtol=1e-12)


@given(st.integers(1, 300), st.data())
def test_wilson_laws(n, data):
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    np.testing.assert_allclose(wilson(n - successes, n), (1 - high, 1 - low), atol=1e-12)


# --- outcomes -------------------------------------------------------------------------------------


def test_outcomes_by_hand():
    values = [5.0, 10.0, 4.99996, 10.0, 1.0, 5.0]
    outcomes, share = shares(values)
    np.testing.assert_array_equal(outcomes, [10, 5, 1])
    np.testing.assert_allclose(share, [2 / 6, 3 / 6, 1 / 6])
    assert modal(values) == 5
    assert modal([5.0, 10.0, 10.0, 5.0]) == 10  # a tie goes to the larger
    assert modal([-0.0001, 0.0001]) == 0
    assert str(modal([-0.0001])) == "0.0"
    assert modal([1.26, 1.34, 2.0], decimals=1) == 1.3


def test_reached_scales_its_tolerance():
    assert reached([10.0, 9.995, 9.98, 5.0], 10.0) == 2  # within 10 · 1e-3
    assert reached([0.0, 0.0009, 0.002], 0.0) == 2  # within 1e-3 near zero
    assert reached([-30.0, -30.02, -29.9], -30.0) == 2


@given(scores)
def test_shares_add_up(x):
    outcomes, share = shares(x)
    np.testing.assert_allclose(share.sum(), 1)
    assert (np.diff(outcomes) < 0).all()
    assert modal(x) in outcomes


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: iqm([]),
        lambda: iqm([1.0, math.nan]),
        lambda: iqm(np.zeros((2, 2, 2))),
        lambda: stratified_bootstrap([1.0], confidence=1.0),
        lambda: stratified_bootstrap([1.0], reps=0),
        lambda: iqm_curve(np.zeros(3)),
        lambda: wilson(3, 2),
        lambda: wilson(0, 0),
        lambda: shares([]),
        lambda: modal([math.inf]),
    ],
)
def test_refusals_say_what_is_wrong(call):
    with pytest.raises(ValueError, match=r".{20}"):
        call()
