"""Random games with a trap, none of which anything was tuned on, at the registered defaults.

Tables are drawn until their optimum is unique and another strict equilibrium pays less: there,
learners that improve one agent at a time may stop.
"""

import itertools

import numpy as np
import pytest

import jaxmarl_tad as jt
from tad_envs import optimal

SEEDS = 4
KINDS = {"3x3": (3, 3), "4x4": (4, 4), "3x3x3": (3, 3, 3)}


def strict_equilibria(table):
    """Joint actions from which every agent loses by deviating alone, by trying all deviations."""
    found = []
    for joint in itertools.product(*map(range, table.shape)):
        deviations = [
            table[(*joint[:i], a, *joint[i + 1 :])]
            for i, actions in enumerate(table.shape)
            for a in range(actions)
            if a != joint[i]
        ]
        if max(deviations) < table[joint]:
            found.append(joint)
    return found


def trapping_tables(kind, count):
    rng = np.random.default_rng([*b"unseen", *KINDS[kind]])
    tables = []
    while len(tables) < count:
        table = rng.integers(-20, 11, KINDS[kind])
        if (table == table.max()).sum() == 1 and len(strict_equilibria(table)) >= 2:
            tables.append(table.astype(np.float32))
    return tables


def test_traps_are_drawn_as_described():
    for kind in KINDS:
        for table in trapping_tables(kind, 8):
            found = jt.solve(jt.make("matrix/custom", payoff=table)).equilibria
            assert [joint for joint, _ in found] == sorted(
                strict_equilibria(table), key=lambda joint: -table[joint]
            )
            assert found[0][1] == table.max() > found[1][1]


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (next(iter(KINDS)), 8),
        *(pytest.param(kind, 32, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_transformation_and_distillation_find_the_optimum(kind, count):
    tables = trapping_tables(kind, count)
    games = [jt.make("matrix/custom", payoff=table) for table in tables]
    student = jt.distill(jt.run("tad_ppo", games, seeds=SEEDS))
    hits = []
    for i, game in enumerate(games):
        own = slice(i * SEEDS, (i + 1) * SEEDS)  # environments outermost
        returns = jt.evaluate(student, game, episodes=1)["return"][own]
        assert jt.solve(game).value == pytest.approx(tables[i].max())
        hits.append(optimal(returns, jt.solve(game).value))
    missed = [
        (i, table.tolist())
        for i, (table, h) in enumerate(zip(tables, hits, strict=True))
        if not h.all()
    ]
    assert np.mean(hits) >= 0.95, missed
