"""Where no trap is, every method must reach the optimum, with its defaults."""

import functools

import numpy as np
import pytest

import jaxmarl_tad as jt
from jaxmarl_tad.algorithms import METHODS

SEEDS, ENOUGH = 16, 15
FAST = ("ippo", "vdn", "qtran_alt")
EVERY = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name, row in METHODS.items()
    if "discrete" in row.actions and row.family != "offline"
]


@functools.cache
def games():
    """r = f(a_1) + g(a_2), up to 4 x 4, whose best cell leads by 0.1; padded to one program."""
    draw, made = np.random.default_rng(0), []
    for rows, columns in [(2, 2), (2, 3), (3, 3), (3, 4), (4, 4), (4, 4), (4, 4), (4, 4)]:
        gap = 0.0
        while gap < 0.1:
            parts = [draw.normal(size=size) for size in (rows, columns)]
            gap = min(float(np.diff(np.sort(part)[-2:])[0]) for part in parts)
        payoff = np.add.outer(*parts).tolist()
        made.append(jt.make("matrix/custom", payoff=payoff, pad_to=4))
    return made


@pytest.mark.parametrize("method", EVERY)
def test_additive_games_are_solved(method):
    run = jt.run(method, games(), seeds=SEEDS, episodes=1, evaluations=1, progress=False)
    best = np.asarray([jt.solve(game).value for game in games()])
    found = np.abs(run.final["return"].reshape(len(best), SEEDS) - best[:, None]) < 1e-3
    assert (found.sum(1) >= ENOUGH).all(), found.sum(1)
