"""Where 64 seeds of each policy method end on games with known equilibria.

Every expected end has a derivation. A strict pure equilibrium of a common payoff is a local maximum of
the return over products of independent policies, and gradient ascent from uniform policies runs into
the one named here (exact policy gradients do so as well); the sequential policy of TAD-PPO can be any
joint policy and has no local maximum but the best. Settings are those of sampled tabular PPO for which
the ends do not depend on the seed: 128 episodes an iteration, 150 iterations.
"""

import collections
import math

import jax
import numpy as np
import pytest

import jaxmarl_tad as jt
from jaxmarl_tad.evaluate import score
from tad_envs import optimal

SEEDS = 64
PPO = {"envs": 128, "epochs": 4, "lr": 0.02, "entropy_coef": 0.01, "total_steps": 150 * 128}
LAST = {"evaluations": 1, "episodes": 1}  # deterministic games, greedy policies
SAFE = {"initial_logits": (math.log(9), 0.0, 0.0)}  # 9 : 1, i.e. p = q = 0.9, for the safe action

# game: where independent learners end, and the optimum
MATRIX = {
    "matrix/tad": (5, 10),
    "matrix/t2": (5, 10),
    "matrix/t3": (5, 10),
    "matrix/climbing": (7, 11),
    "matrix/qtran": (0, 8),
    # [[0, −5], [−5, 10]]: with q the other's probability of the safe action, safe is better by
    # 5 q − 15 (1 − q) > 0 for q > 3/4. At 0.9 both stay; from uniform (q = 1/2) they would reach 10.
    "matrix/note001/pad_to=3": (0, 10),
}
# Some but not all forward pays −penalty, all stop pays 4. At the last of 2 cells a uniform partner
# makes going forward worth (5 + 0) / 2 and the cell worth (5 + 0 + 0 + 4) / 4 < 4, so that everybody
# learns to stop before; with 1 cell forward leads to 5 at once, 5 + 0 > 0 + 4. Waiting (length 1,
# penalty 2): forward is worth (5 − 2 − 2) / 3, stopping (−2 + 4 + 3) / 3.
HALLWAY = {
    "hallway/length=1/max_length=2/n_actions=3": (5, 5),
    "hallway/length=2/max_length=2/n_actions=3": (4, 5),
    "hallway/wait/length=1/max_length=2": (4, 5),
}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def games(table):
    return [(jt.make(name), SAFE if "note001" in name else {}) for name in table]


def train(method, table, **fields):
    return jt.run(method, games(table), seeds=SEEDS, **LAST, **{**PPO, **fields})


def check(trained, expected, least, seeds=SEEDS):
    """At least ``least`` of the seeds of every game end where expected."""
    returns = trained.final["return"].reshape(len(expected), seeds)
    ends = {
        name: collections.Counter(np.round(row, 3).tolist())
        for name, row in zip(expected, returns, strict=True)
    }
    for row, end in zip(returns, expected.values(), strict=True):
        assert optimal(row, end).sum() >= least, ends


def stuck(table):
    return {name: end for name, (end, _) in table.items()}


def best(table):
    return {name: optimum for name, (_, optimum) in table.items()}


@pytest.mark.parametrize("name", [*MATRIX, *HALLWAY])
def test_optimum_of_the_table_is_the_solution(name):
    assert jt.solve(jt.make(name)).value == pytest.approx({**MATRIX, **HALLWAY}[name][1])


@pytest.mark.parametrize("method", ["ippo", slow("mappo")])
def test_independent_policies_end_on_inferior_equilibria(method):
    check(train(method, MATRIX), stuck(MATRIX), least=58)


def test_sequential_policies_and_their_students_are_optimal():
    teacher = train("tad_ppo", MATRIX)
    check(teacher, best(MATRIX), least=62)
    student = jt.distill(teacher, **LAST)
    check(student, best(MATRIX), least=62)
    assert student.policy(0).execution == "decentralised"
    np.testing.assert_array_equal(student.final["return"], teacher.final["return"])


@pytest.mark.parametrize("method", ["ippo", slow("mappo")])
def test_independent_policies_stop_in_the_hallway(method):
    check(train(method, HALLWAY, total_steps=2 * PPO["total_steps"]), stuck(HALLWAY), least=62)


def test_sequential_policies_and_their_students_walk_the_hallway():
    teacher = train("tad_ppo", HALLWAY, total_steps=2 * PPO["total_steps"])
    check(teacher, best(HALLWAY), least=59)  # 251 of 256 seeds: 98 %
    student = jt.distill(teacher, **LAST)
    np.testing.assert_array_equal(student.final["return"], teacher.final["return"])


# What sharing parameters costs


def sampled_return(trained, episodes):
    """Mean return of every member's policy with its actions drawn, ``[members]``."""

    def one(member, state):
        policy = trained.plan.make(member.config, member.source).policy(state, greedy=False)
        return score(member.env, policy, jax.random.key(member.seed), episodes)["return"]

    return np.asarray(jax.jit(jax.vmap(one))(trained.stacked, trained.state))


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        # max over p of 2 p (1 − p)
        ("matrix/xor", 1 / 2),
        # max over p of 3! p₁ p₂ p₃
        slow("matrix/permutation/n=3", 6 / 27),
        # max over p of 2 p² (1 − p)²: 2 / 2⁴
        slow("matrix/hatrpo/n=4", 2 / 16),
    ],
)
def test_one_policy_for_agents_that_cannot_be_told_apart_is_bounded(name, bound):
    episodes = 1024
    trained = train("ippo", [name], sharing="full")
    check(trained, {name: 0}, least=SEEDS)  # all do the same, which never pays
    returns = sampled_return(trained, episodes)
    error = math.sqrt(bound * (1 - bound) / episodes)
    assert returns.max() <= bound + 5 * error
    # The bound is a maximum of the return of one policy, so that ascent gets there.
    assert returns.mean() == pytest.approx(bound, abs=5 * error / math.sqrt(SEEDS) + 0.02 * bound)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["matrix/xor", "matrix/permutation/n=3", "matrix/hatrpo/n=4"])
@pytest.mark.parametrize(
    ("method", "sharing"), [("ippo", "none"), ("ippo", "full_id"), ("tad_ppo", "full_id")]
)
def test_agents_that_can_be_told_apart_break_the_symmetry(name, method, sharing):
    check(train(method, [name], sharing=sharing), {name: 1}, least=62)


# Variants of the sequential policy, and networks other than tables


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"order": "random", "information": "local", "discount": "fractional"},
        {"order": "reversed"},
        {"order": "random"},
        {"order": (1, 0)},
        {"information": "local"},
        {"discount": "fractional"},
        {"sharing": "none"},
    ],
    ids=lambda fields: "-".join(f"{k}={v}" for k, v in fields.items()),
)
def test_every_variant_of_the_sequential_policy_is_optimal(fields):
    check(train("tad_ppo", ["matrix/tad"], **fields), {"matrix/tad": 10}, least=62)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["fixed", (2, 0, 1), "random"])
def test_three_agents_in_any_order_are_optimal(order):
    # With the entropy coefficient of the other games 54 of 64 get there, the rest stop at 7: the first
    # in line commits before the last has learned to follow. With 0.2, 63 of 64 do.
    name = "matrix/climbing_3p"
    check(train("tad_ppo", [name], order=order, entropy_coef=0.2), {name: 11}, least=60)


NETWORKS = {"envs": 64, "lr": 1e-3, "total_steps": 150 * 64}
# Networks generalise over what was chosen before, so that followers learn later than in a table. With
# an entropy coefficient of 0.01, 3 of 16 seeds (attention, GRU) commit before and stop at 5.
LATER = {"entropy_coef": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "end", "fields"),
    [
        ("ippo", 5, {"network": "mlp"}),
        ("ippo", 5, {"memory": "gru"}),
        ("tad_ppo", 10, {"network": "mlp", **LATER}),
        ("tad_ppo", 10, {"network": "mlp", "prefix": "attention", **LATER}),
        ("tad_ppo", 10, {"memory": "gru", **LATER}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_networks_end_where_tables_do(method, end, fields):
    trained = jt.run(method, "matrix/tad", seeds=16, **LAST, **{**PPO, **NETWORKS, **fields})
    check(trained, {"matrix/tad": end}, least=15, seeds=16)
