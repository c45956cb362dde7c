"""The exact oracles of one-step games, against published values and against each other."""

import itertools

import numpy as np
import pytest

from experiments import oracle_table as oracles

PAYOFFS = {name: oracles.payoff_of(env) for name, env in oracles.games().items()}


@pytest.mark.parametrize(
    ("game", "alone", "mse", "sums", "sse", "ordered"),
    [
        ("climbing", [5], 175.09, [5], 997.42, [5]),
        ("penalty/k=0", [0, 10], 13.53, [0, 10], 69.87, [10]),
        ("penalty/k=-100", [2], 1435.75, [2], 8066.67, [2]),
        ("qtran", [0], 50.57, [0], 288.0, [8]),
        ("qplex1", [10], 12.75, [10], 66.79, [10, 10.4]),
        ("pymarl2_b", [-12, 0, 12], 64.0, [-12, 0, 12], 288.0, [12]),
        ("note001", [10], 25.0, [10], 16.67, [10]),
        ("qmix_2b", [8], 2.25, [8], 0.0, [8]),
    ],
)
def test_the_fits_are_the_known_ones(game, alone, mse, sums, sse, ordered):
    payoff = PAYOFFS[game]
    assert oracles.independent(payoff) == alone
    error, found = oracles.additive(payoff)
    assert (round(error, 2), found) == (mse, sums)
    error, found = oracles.monotone(payoff)
    assert (round(error, 2), found) == (sse, ordered)


def test_the_additive_fit_is_least_squares():
    for payoff in PAYOFFS.values():
        rows, columns = payoff.shape
        cells = list(itertools.product(range(rows), range(columns)))
        design = np.zeros((rows * columns, rows + columns))
        for number, (row, column) in enumerate(cells):
            design[number, [row, rows + column]] = 1.0
        fitted = design @ np.linalg.lstsq(design, payoff.ravel(), rcond=None)[0]
        error = np.mean((fitted - payoff.ravel()) ** 2)
        assert oracles.additive(payoff)[0] == pytest.approx(error, abs=1e-9)


def test_no_increasing_table_is_nearer():
    """Against random increasing tables, and mixtures of them with the fit, which are increasing too."""
    draw = np.random.default_rng(0)
    for _ in range(5):
        table = draw.normal(size=(3, 3))
        fit = oracles.increasing(table)
        assert np.all(np.diff(fit, axis=0) >= -1e-12)
        assert np.all(np.diff(fit, axis=1) >= -1e-12)
        least = ((fit - table) ** 2).sum()
        for _ in range(200):
            other = draw.exponential(size=(3, 3)).cumsum(0).cumsum(1) + draw.normal()
            for share in (1.0, 0.1, 0.01):
                mixed = (1 - share) * fit + share * other
                assert ((mixed - table) ** 2).sum() >= least - 1e-12


def test_the_exact_gradient_ends_where_it_is_known_to():
    """From nearly uniform logits always in the trap; with fewer steps than the study takes."""
    for game, end in {"qtran": 0.0, "penalty/k=-100": 2.0, "note001": 10.0}.items():
        assert oracles.gradient(PAYOFFS[game], 0.01, steps=2_000) == {end: 1.0}
    wide = oracles.gradient(PAYOFFS["note001"], 1.0, steps=2_000)
    assert wide[10.0] == pytest.approx(0.85, abs=0.05)


def test_every_expectation_names_an_oracle():
    kinds = {"independent", "additive", "monotone", "gradient", "optimum"}
    assert set(oracles.EXPECTED.values()) == kinds
