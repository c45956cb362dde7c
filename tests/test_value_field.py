"""QPLEX, weighted QMIX, QTRAN and PQN-VDN: what they hold and what they then play, in known games."""

import functools
import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmarl_tad as jt
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.networks import mixers
from jaxmarl_tad.networks.joint import joint_actions, joint_index, joint_value
from jaxmarl_tad.networks.mixers import Choice, mixer
from jaxmarl_tad.targets import corrected_returns, lambda_returns
from tad_envs import Spec

SEEDS, ENOUGH = 16, 15
FIELD = ("iql", "vdn", "qmix", "qplex", "ow_qmix", "cw_qmix", "qtran", "qtran_alt", "pqn_vdn")
EXPRESSIVE = ("qplex", "ow_qmix", "cw_qmix", "qtran", "qtran_alt")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@functools.cache
def learned(method, *games, seeds=SEEDS, **fields):
    return jt.run(method, list(games), seeds=seeds, episodes=1, evaluations=1, progress=False, **fields)


def hits(run, game, value):
    """How many seeds end on this return."""
    rows = [row["env"] == game for row in run.members]
    return int((np.abs(run.final["return"][rows] - value) < 1e-3).sum())


# --- returns against a slow loop ------------------------------------------------------------------


def slow_returns(kind, reward, value, following, terminated, truncated, gamma, lam):
    """One episode after the other, backwards; the last recorded step cuts the trace where it stands."""
    steps, out = len(reward), np.zeros(len(reward))
    for t in reversed(range(steps)):
        if terminated[t]:
            out[t] = reward[t]
            continue
        out[t] = reward[t] + gamma * following[t]
        if truncated[t] or t == steps - 1:
            continue
        if kind == "peng":  # (1 - λ) of the best value there, and λ of the return from there
            out[t] = reward[t] + gamma * ((1 - lam) * following[t] + lam * out[t + 1])
        else:  # the best value there, and λ of what came out better than the value of what was done
            out[t] += gamma * lam * (out[t + 1] - value[t + 1])
    return out


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("kind", ["peng", "corrected"])
def test_both_forms_of_q_lambda_equal_a_slow_loop(kind, lam):
    rng = np.random.default_rng(0)
    steps, envs, gamma = 12, 20, 0.9
    reward, value, following = rng.normal(size=(3, steps, envs))
    ends = rng.random((2, steps, envs)) < 0.15
    terminated, truncated = ends[0], ends[1] & ~ends[0]
    own = [jnp.asarray(x, jnp.float32) for x in (reward, value, following)]
    over = jnp.asarray(terminated), jnp.asarray(truncated)
    if kind == "peng":
        found = lambda_returns(own[0], own[2], *over, gamma, lam)
    else:
        found = corrected_returns(*own, *over, gamma, lam)
    for e in range(envs):
        column = (x[:, e] for x in (reward, value, following, terminated, truncated))
        expected = slow_returns(kind, *column, gamma, lam)
        np.testing.assert_allclose(found[:, e], expected, rtol=1e-4, atol=1e-5)


def test_with_the_true_values_a_corrected_return_is_their_value_whatever_was_played():
    """Where Q is exact every δ is 0; Peng's return does hold what was explored against an action."""
    gamma, steps = 0.9, 6
    best = np.asarray([sum(gamma**k for k in range(steps - t)) for t in range(steps)])
    reward = np.asarray([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])  # 1 for the best action, 0 for the other
    following = np.append(best[1:], 0.0)
    value = reward + gamma * following
    given = jnp.arange(steps) == steps - 1, jnp.zeros(steps, bool), gamma, 0.8
    reward, value, following = (jnp.asarray(x, jnp.float32) for x in (reward, value, following))
    np.testing.assert_allclose(corrected_returns(reward, value, following, *given), value, rtol=1e-5)
    assert (lambda_returns(reward, following, *given)[:3] < value[:3] - 0.1).all()


@pytest.mark.parametrize(("returns", "end"), [("corrected", 8), slow("peng", 7)])
def test_what_exploration_loses_is_taken_back(returns, end):
    """Random play earns 4 of the 8 in the second stage game, so that Peng's return prefers the 7.

    All payoffs are sums, which VDN can express: 0.2 * 8 + 0.8 * 4 = 4.8 < 7 < 8.
    """
    game = jt.make("two_step", payoffs=[[[7, 7], [7, 7]], [[0, 4], [4, 8]]])
    run = jt.run(
        "vdn",
        game,
        seeds=SEEDS,
        total_steps=32_000,
        returns=returns,
        lam=0.8,
        episodes=1,
        evaluations=1,
        progress=False,
    )
    assert (np.abs(run.final["return"] - end) < 1e-3).sum() >= ENOUGH, run.final["return"]


# --- mixers and joint values ----------------------------------------------------------------------

N, A, S = 3, 3, 2
SPEC = Spec(n_agents=N, obs_dim=4, state_dim=S, horizon=1, n_actions=A, one_hot=True)
STATES = {"table": np.arange(S), "mlp": np.eye(S, dtype=np.float32)}
JOINT = np.asarray(list(itertools.product(range(A), repeat=N)))


@functools.cache
def team(name, kind):
    """A mixer's values and gradients by utilities, for many parameters and every joint action."""
    made = mixer(name, kind, SPEC, embed=5, hidden=7, heads=3, layers=3)

    def value(params, own, state, best, action):
        return made.mix(params, own, state, Choice(best, jax.nn.one_hot(action, A)))[..., 0]

    def every(key, tables):
        params = made.init(key)
        flat, shaped = jax.flatten_util.ravel_pytree(params)
        params = shaped(flat + 2 * jax.random.normal(jax.random.fold_in(key, 1), flat.shape))
        own = tables[jnp.arange(N), JOINT]
        best = jnp.broadcast_to(tables.max(1), own.shape)
        one = jax.value_and_grad(value, argnums=1)
        by_action = jax.vmap(one, (None, 0, None, 0, 0))
        return jax.vmap(by_action, (None, None, 0, None, None))(
            params, own, jnp.asarray(STATES[kind]), best, jnp.asarray(JOINT)
        )

    return jax.jit(jax.vmap(every))


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("name", ["vdn", "qmix", "qplex"])
def test_the_best_joint_action_is_everybodys_best(name, kind):
    """On 200 draws of wild parameters, by enumeration; and no utility counts against the team."""
    draws = 200
    tables = np.random.default_rng(0).normal(size=(draws, N, A)).astype(np.float32)
    values, gradients = team(name, kind)(jax.random.split(jax.random.key(0), draws), tables)
    apart = np.ravel_multi_index(tuple(tables.argmax(2).T), (A,) * N)
    values = np.asarray(values)  # [draws, S, A^N]
    chosen = np.take_along_axis(values, np.broadcast_to(apart[:, None, None], (draws, S, 1)), 2)[..., 0]
    assert (chosen >= values.max(2) - 1e-4 * np.abs(values).max(2)).all()
    assert (np.asarray(gradients) >= 0).all()
    if name == "qplex":  # λ weighs what is given away: nothing else is as good as the best
        others = np.delete(values[0, 0], apart[0])
        assert others.max() < chosen[0, 0]


def test_the_best_joint_action_of_the_sum_that_qtran_plays():
    tables = np.random.default_rng(0).normal(size=(50, N, A))
    factored = tables[:, np.arange(N), JOINT].sum(2)
    np.testing.assert_array_equal(
        factored.argmax(1), np.ravel_multi_index(tuple(tables.argmax(2).T), (A,) * N)
    )


def qplex_in_numpy(params, own, best, state, action, hidden_layers):
    """Wang et al. 2021, eqs. 9-11, one sample and one head at a time, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def net(name, head, x):
        x = np.append(x, 1.0)
        for i in range(hidden_layers):
            layer = params[name][f"layer_{i}"]
            x = np.maximum(x @ layer["kernel"][head] + layer["bias"][head], 0)
        return x @ params[name]["out"]["kernel"][head] + params[name]["out"]["bias"][head]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    seen = np.eye(S)[state]
    both = np.append(seen, np.eye(A)[action].ravel())
    row = params["table"][state]
    weight, value = np.exp(row[:N]), row[N]
    importance = np.zeros(N)
    for head in range(params["key"]["out"]["bias"].shape[0]):
        key = np.abs(net("key", head, seen)[0]) + 1e-10
        importance += key * sigmoid(net("agents", head, seen)) * sigmoid(net("action", head, both))
    v, advantage = weight * best, weight * (own - best)
    return v.sum() + value + (importance * advantage).sum()


@pytest.mark.parametrize("few", [0, 1000])
def test_qplex_is_its_equations(monkeypatch, few):
    """Whether λ is computed for all pairs of state and joint action first, or for each sample."""
    monkeypatch.setattr(mixers, "_FEW_PAIRS", few)
    made = mixer("qplex", "table", SPEC, hidden=7, heads=3, layers=3)
    params = made.init(jax.random.key(1))
    rng = np.random.default_rng(1)
    params["table"] = jnp.asarray(rng.normal(size=params["table"].shape), jnp.float32)
    own, state = rng.normal(size=(20, N)), rng.integers(0, S, 20)
    best, action = own + rng.random((20, N)), rng.integers(0, A, (20, N))
    found = jax.jit(made.mix)(
        params,
        jnp.asarray(own, jnp.float32),
        jnp.asarray(state),
        Choice(jnp.asarray(best, jnp.float32), jax.nn.one_hot(action, A)),
    )[..., 0]
    rows = zip(own, best, state, action, strict=True)
    np.testing.assert_allclose(found, [qplex_in_numpy(params, *r, 2) for r in rows], rtol=1e-4)
    greedy = made.mix(params, jnp.asarray(best, jnp.float32), jnp.asarray(state))[..., 0]
    rows = zip(best, best, state, action, strict=True)
    np.testing.assert_allclose(greedy, [qplex_in_numpy(params, *r, 2) for r in rows], rtol=1e-4)


def test_joint_actions_are_numbered_in_their_order():
    every = joint_actions(SPEC)
    np.testing.assert_array_equal(every.argmax(2), JOINT)
    index = joint_index(SPEC, jnp.ones(len(every), jnp.int32), jnp.asarray(every))
    np.testing.assert_array_equal(index, A**N + np.arange(A**N))


def test_a_free_value_tells_who_did_what():
    """Exchanging two agents' actions changes it, in the form of a network too."""
    joint = joint_value("mlp", SPEC, features=0, hidden=(16,))
    params = joint.init(jax.random.key(0))
    one, other = jnp.eye(A)[jnp.asarray([[0, 1, 2], [1, 0, 2]])]
    state = jnp.asarray([1.0, 0.0])
    assert abs(joint.value(params, state, one, None) - joint.value(params, state, other, None)) > 1e-3


# --- matrix games ---------------------------------------------------------------------------------

HARD = {"matrix/qtran": 8, "matrix/climbing": 11}


@pytest.mark.parametrize("method", ["qtran", "qtran_alt"])
def test_qtran_is_optimal(method):
    run = learned(method, *HARD)
    assert {game: hits(run, game, best) for game, best in HARD.items()} == dict.fromkeys(HARD, SEEDS)


def test_the_joint_value_of_qtran_is_the_payoff():
    """Of every cell, in every seed: the published table of Son et al. 2019."""
    run = learned("qtran", *HARD)
    rows = [row["env"] == "matrix/qtran" for row in run.members]
    found = np.asarray(run.state.params.joint)[rows].reshape(-1, 3, 3)
    payoff = np.asarray(jt.make("matrix/qtran").payoff)
    assert np.abs(found - payoff)[:, 0, 0].max() < 0.3
    assert np.abs(found - payoff).mean() < 0.3


@pytest.mark.parametrize("method", ["ow_qmix", slow("cw_qmix")])
def test_weighted_qmix_is_optimal_where_qmix_never_is(method):
    assert hits(learned(method, "matrix/qtran"), "matrix/qtran", 8) >= ENOUGH


def test_qmix_is_never_optimal_in_the_game_of_qtran():
    assert hits(learned("qmix", "matrix/qtran", seeds=32), "matrix/qtran", 8) == 0


@pytest.mark.slow
def test_qplex_is_optimal_in_the_game_of_qtran():
    assert hits(learned("qplex", "matrix/qtran"), "matrix/qtran", 8) >= ENOUGH


# --- games of several steps -----------------------------------------------------------------------

TWO_STEP = {"vdn": 7, "qmix": 8, "qplex": 8, "ow_qmix": 8, "cw_qmix": 8, "qtran": 8, "qtran_alt": 8}


@pytest.mark.parametrize("method", [m if m in ("vdn", "qmix", "qtran") else slow(m) for m in TWO_STEP])
def test_who_takes_the_better_game_of_two(method):
    """By their defaults."""
    run = learned(method, "two_step")
    assert hits(run, "two_step", TWO_STEP[method]) >= ENOUGH, run.final["return"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vdn", "qmix"])
def test_teams_split_between_the_two_good_branches(method):
    """By their defaults: 13, or 10 where the first branch was met first. Nobody comes back from it."""
    ends = np.round(learned(method, "m_step").final["return"], 3)
    assert np.isin(ends, (10, 13)).sum() >= ENOUGH, ends
    assert min((ends == 10).sum(), (ends == 13).sum()) >= 2, ends


@pytest.mark.parametrize(
    "method", ["qtran", *map(slow, ("qplex", "cw_qmix", "qmix", "vdn", "pqn_vdn"))]
)
def test_the_game_that_never_ends_is_played_for_its_reward(method):
    """Also by sums and monotone values: what they cannot do is to be right about its value."""
    assert hits(learned(method, "mmdp", total_steps=192_000), "mmdp", 100) >= ENOUGH


def test_every_method_of_the_family_is_here():
    own = [row for row in METHODS.values() if row.family == "value"]
    apart = {"ctds"}  # students, which are tested with their teacher
    assert {row.name for row in own if row.execution == "decentralised"} - apart == set(FIELD)
