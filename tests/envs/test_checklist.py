"""What holds for every registered environment in use: resets between episodes, starts, the state.

`check` looks at episodes that run on after their end; these are played as learners play them, with
the library's own rollout, and what a rollout cannot show is tried on the states that `check` saw.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import kept, steps, tiers

from jaxmarl_tad import rollout
from jaxmarl_tad.types import Policy
from tad_envs import environments, random_action
from tad_envs.checker import _episodes, _host

ENVS = 16
KEY = 7


@jax.jit
def _fresh(env, keys):
    return jax.vmap(env.reset)(keys)


@functools.partial(jax.jit, static_argnums=3)
def _play(env, key, actors, count):
    """Transitions ``[T, E]`` of random legal actions."""

    def act(key, memory, observation):
        return random_action(env.spec, key, observation), memory, {}

    policy = Policy(start=lambda: (), act=act, execution="decentralised")
    return rollout.rollout(env, policy, key, actors, count)[1]


@functools.cache
def played(name):
    """Transitions, what each step had in hand for an episode that ended, and starts; ``[T, E]`` all."""
    env, key = kept(name), jax.random.key(KEY)
    count = max(32, steps(env))
    now = jax.random.wrap_key_data(rollout._key_words(key, count))
    resets = jax.vmap(lambda k: rollout.keys(k, 3, ENVS)[2])(now).ravel()
    states, seen = _fresh(env, resets)
    first = jax.tree.map(lambda x: x[:ENVS], (states, seen))
    actors = rollout.Actors(*first, (), jnp.ones(ENVS, bool))
    transitions = jax.device_get(_play(env, key, actors, count))
    if env.spec.reset_pool:  # in hand is the next entry of the pool, in the order of ends
        size = rollout.pool_size(env, ENVS, count)
        _, pool = _fresh(env, rollout.keys(jax.random.fold_in(key, count), size))
        ends = np.cumsum((transitions.terminated | transitions.truncated).ravel())
        hand = jax.tree.map(lambda x: np.asarray(x)[(ends - 1) % size], pool)
        starts = jax.tree.map(lambda x: x.reshape(-1, ENVS, *x.shape[1:]), pool)
    else:
        hand = seen
        starts = jax.tree.map(lambda x: x.reshape(count, ENVS, *x.shape[1:]), seen)
    hand = jax.tree.map(lambda x: x.reshape(count, ENVS, *x.shape[1:]), hand)
    return transitions, *jax.device_get((hand, starts))


def alike(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def at(tree, where):
    return jax.tree.map(lambda x: x[where], tree)


@pytest.mark.parametrize("name", tiers())
def test_an_episode_ends_with_its_own_last_view_and_the_next_begins_afresh(name):
    transitions, fresh, _ = played(name)
    over = (transitions.terminated | transitions.truncated)[:-1]
    assert not (transitions.terminated & transitions.truncated).any()
    assert np.array_equal(transitions.first[1:], over)
    last, now, begun = (
        jax.tree.map(lambda x, rows=rows: x[rows], tree)
        for tree, rows in (
            (transitions.next, slice(-1)),
            (transitions.observation, slice(1, None)),
            (fresh, slice(-1)),
        )
    )
    assert alike(at(now, ~over), at(last, ~over))
    assert alike(at(now, over), at(begun, over))


@pytest.mark.parametrize("name", tiers())
def test_time_runs_out_after_the_horizon_and_not_before(name):
    transitions, _, _ = played(name)
    horizon, length = kept(name).spec.horizon, np.zeros(ENVS, int)
    over = transitions.terminated | transitions.truncated
    for t in range(len(over)):
        length += 1
        assert (length[transitions.truncated[t]] == horizon).all()
        assert (length <= horizon).all()
        assert over[t][length == horizon].all()
        length[over[t]] = 0
    if not kept(name).spec.terminates:
        assert not transitions.terminated.any()


@pytest.mark.parametrize("name", tiers())
def test_starts_differ_over_time_if_they_differ_between_environments(name):
    _, _, fresh = played(name)
    rows = np.concatenate([fresh.agents.reshape(*fresh.agents.shape[:2], -1), fresh.state], axis=2)
    if (rows == rows[0, 0]).all():
        return  # the start is always the same
    assert (rows[1:] != rows[:1]).any((0, 2)).all()
    assert (rows[:, 1:] != rows[:, :1]).any((0, 2)).all()


@pytest.mark.parametrize("name", tiers())
def test_the_dead_have_one_set_of_legal_actions(name):
    transitions, _, _ = played(name)
    for seen in (transitions.observation, transitions.next):
        legal = seen.legal[~seen.alive]
        assert (legal == legal[:1]).all()
        assert legal.any(axis=-1).all()


@jax.jit
def _again(env, states, actions):
    """Reward and next state vector of each step, with one and the same key for all."""
    step = jax.vmap(env.step, in_axes=(None, 0, 0))(jax.random.key(KEY), states, actions)[1]
    return step.reward, step.observation.state


@pytest.mark.slow
@pytest.mark.parametrize("name", environments())
def test_what_follows_is_told_by_the_state(name):
    """Where `spec.state_markov` says so: equal state vectors, actions and keys pay and lead alike."""
    env = kept(name)
    if not env.spec.state_markov:
        return
    trace = _episodes(env, jax.random.split(jax.random.key(0), 8), steps(env))
    seen = _host((trace.first.state, trace.step))
    over = seen[1].terminated | seen[1].truncated
    running = np.cumsum(np.pad(over[:, :-1], [(0, 0), (1, 0)]), axis=1) == 0
    before = np.concatenate([seen[0][:, None], seen[1].observation.state[:, :-1]], axis=1)[running]
    _, first, group = np.unique(before, axis=0, return_index=True, return_inverse=True)
    states, actions = (jax.tree.map(lambda x: x[running], tree) for tree in (trace.state, trace.action))
    same = jax.tree.map(lambda x: x[first][group.ravel()], actions)
    results = jax.device_get(_again(env, states, same))
    for result in results:
        np.testing.assert_allclose(result, result[first][group.ravel()], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", environments())
def test_compiled_steps_are_those_taken_one_operation_at_a_time(name):
    env, key = kept(name), jax.random.key(KEY)
    both = [_host(run(env, key)) for run in (jax.jit(_one), _one)]
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def _one(env, key):
    state, seen = env.reset(key)
    return state, seen, env.step(key, state, random_action(env.spec, key, seen))
