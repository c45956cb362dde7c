"""What collection records, checked row by row against a game that shows all there is to know."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmarl_tad.evaluate import score
from jaxmarl_tad.rollout import begin, episodes, keys, pool_size, rollout
from jaxmarl_tad.types import Policy
from tad_envs import Observation, Spec, TimeStep, make

T, E, N = 20, 6, 2
LONGEST = 4
TAG, CLOCK, LENGTH = 0, 1, 2
SPOIL = 1e6
FRESH = 100.0


class Place(NamedTuple):
    tag: Any
    clock: Any
    length: Any


class Shown:
    """Episodes of 1 to 4 steps; even lengths end by the task, odd ones by the clock.

    Everybody sees the episode's own random tag, the clock and the length. A step pays the sum of the
    actions; stepping past the end pays ``SPOIL``.
    """

    name = "shown"
    spec = Spec(n_agents=N, obs_dim=3, state_dim=3, horizon=LONGEST, n_actions=5)

    def reset(self, key):
        tag_key, length_key = jax.random.split(key)
        length = jax.random.randint(length_key, (), 1, LONGEST + 1)
        place = Place(jax.random.uniform(tag_key), jnp.zeros((), jnp.int32), length)
        return place, self.observe(place)

    def observe(self, place):
        row = jnp.stack([place.tag, place.clock.astype(float), place.length.astype(float)])
        return Observation(jnp.tile(row, (N, 1)), row, jnp.ones((N, 5), bool), jnp.ones(N, bool))

    def step(self, key, place, action):
        over = place.clock >= place.length
        place = place._replace(clock=place.clock + 1)
        ended = place.clock >= place.length
        by_task = place.length % 2 == 0
        reward = jnp.where(over, SPOIL, action.sum().astype(jnp.float32))
        info = {"clock": place.clock.astype(jnp.float32)}
        return place, TimeStep(self.observe(place), reward, ended & by_task, ended & ~by_task, info)


def start():
    return {"steps": jnp.full((N,), FRESH)}


def act(key, memory, observation):
    """Counts its steps within an episode, and acts at random."""
    memory = {"steps": memory["steps"] + 1}
    action = jax.random.randint(key, (N,), 0, 5)
    return action, memory, {"steps": memory["steps"], "saw": observation.state}


COUNTER = Policy(start=start, act=act, execution="decentralised")


@pytest.fixture(scope="module")
def recorded():
    """Two rollouts, the second going on where the first stopped, as one of twice the length."""
    env = Shown()
    actors = begin(env, COUNTER, jax.random.key(0), E)
    collect = jax.jit(lambda key, actors: rollout(env, COUNTER, key, actors, T))
    actors, early = collect(jax.random.key(1), actors)
    _, late = collect(jax.random.key(2), actors)
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), early, late)


def test_axes_are_time_then_environment(recorded):
    assert recorded.action.shape == (2 * T, E, N)
    assert recorded.reward.shape == recorded.first.shape == (2 * T, E)
    assert recorded.next.agents.shape == (2 * T, E, N, 3)


def test_an_episode_ends_at_its_length_in_its_own_way(recorded):
    reached, length = recorded.next.state[..., CLOCK], recorded.observation.state[..., LENGTH]
    ended = reached == length
    np.testing.assert_array_equal(recorded.terminated, ended & (length % 2 == 0))
    np.testing.assert_array_equal(recorded.truncated, ended & (length % 2 == 1))
    assert recorded.terminated.sum() > 10
    assert recorded.truncated.sum() > 10


def test_next_is_what_the_action_led_to_even_at_the_end(recorded):
    now, later = recorded.observation.state, recorded.next.state
    np.testing.assert_array_equal(later[..., TAG], now[..., TAG])
    np.testing.assert_array_equal(later[..., CLOCK], now[..., CLOCK] + 1)


def test_the_following_row_is_a_fresh_episode_after_an_end_and_the_next_step_otherwise(recorded):
    ended = (recorded.terminated | recorded.truncated)[:-1]
    now, later = recorded.observation.state[1:], recorded.next.state[:-1]
    np.testing.assert_array_equal(now[~ended], later[~ended])
    np.testing.assert_array_equal(now[ended][:, CLOCK], 0)
    tags = recorded.observation.state[..., TAG][recorded.first]
    assert len(np.unique(tags)) == len(tags)  # every reset draws anew, in every environment
    assert set(np.unique(recorded.observation.state[..., LENGTH])) == {1, 2, 3, 4}


def test_first_marks_the_beginning_of_every_episode(recorded):
    np.testing.assert_array_equal(recorded.first, recorded.observation.state[..., CLOCK] == 0)


def test_memory_begins_anew_with_every_episode(recorded):
    expected = FRESH + recorded.observation.state[..., CLOCK] + 1
    np.testing.assert_array_equal(recorded.extras["steps"], np.stack([expected] * N, -1))


def test_the_policy_acted_on_the_observation_that_is_recorded(recorded):
    np.testing.assert_array_equal(recorded.extras["saw"], recorded.observation.state)
    np.testing.assert_array_equal(recorded.reward, recorded.action.sum(-1))


def test_every_step_and_environment_draws_its_own_actions(recorded):
    joint = recorded.action @ np.array([5, 1])
    assert len(np.unique(joint[:, 0])) > 10
    assert all(np.any(joint[:, 0] != joint[:, e]) for e in range(1, E))


def test_keys_of_environments_differ_and_draw_independent_numbers():
    envs = 2**16
    of_step = jax.random.split(jax.random.key(4))  # e.g. one for acting, one for resets
    made = jax.jit(jax.vmap(lambda key: keys(key, envs)))(of_step)
    words = np.asarray(jax.random.key_data(made)).reshape(2 * envs, -1)
    assert len(np.unique(words, axis=0)) == 2 * envs
    drawn = jax.jit(jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (3,)))))(made)
    drawn = np.moveaxis(np.asarray(drawn), 1, 0).reshape(envs, 6)  # [E, (step, number)]
    for numbers in drawn.T:
        counts = np.bincount((16 * numbers).astype(int), minlength=16)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # Neighbours in the batch, and numbers of one environment: |correlation| < 5 / √E if independent.
    both = np.concatenate([drawn[:-1], drawn[1:]], axis=1)
    correlations = np.corrcoef(both, rowvar=False) - np.eye(12)
    assert np.abs(correlations).max() < 5 / np.sqrt(envs)


@pytest.fixture(scope="module")
def whole():
    return jax.jit(lambda key: episodes(Shown(), COUNTER, key, 64, LONGEST))(jax.random.key(3))


def test_valid_steps_are_those_up_to_the_end(whole):
    length = whole.transition.observation.state[0, :, LENGTH]
    np.testing.assert_array_equal(whole.valid, np.arange(LONGEST)[:, None] < length)
    np.testing.assert_array_equal(whole.transition.first[0], True)
    np.testing.assert_array_equal(whole.transition.first[1:], False)
    np.testing.assert_array_equal(
        whole.transition.observation.state[..., TAG],
        np.broadcast_to(whole.transition.observation.state[0, :, TAG], (LONGEST, 64)),
    )


def test_score_counts_each_episode_once_and_nothing_after_its_end(whole):
    scored = jax.jit(lambda key: score(Shown(), COUNTER, key, 64))(jax.random.key(3))
    length = np.asarray(whole.transition.observation.state[0, :, LENGTH])
    paid = np.asarray(whole.transition.action.sum(-1))
    returns = [paid[: int(n), e].sum() for e, n in enumerate(length)]
    assert np.max(whole.transition.reward) == SPOIL
    assert float(scored["return"]) == pytest.approx(np.mean(returns), rel=1e-6)
    assert float(scored["length"]) == pytest.approx(length.mean(), rel=1e-6)
    assert float(scored["clock"]) == pytest.approx(length.mean(), rel=1e-6)


# --------------------------------------------------------------------------------------------------
# Resets from a pool


class Pooled(Shown):
    """The same game, whose rollouts draw a fresh episode for so many steps in advance."""

    def __init__(self, steps):
        self.spec = Shown.spec._replace(reset_pool=steps)


def collected(env, seed=0):
    def both(key):
        return rollout(env, COUNTER, key, begin(env, COUNTER, jax.random.key(0), E), T)[1]

    return jax.device_get(jax.jit(both)(jax.random.key(seed)))


def tags(seen):
    """Of the episodes that began after the first step, ``[T, E]``; NaN where none did."""
    started = seen.first & (np.arange(T) > 0)[:, None]
    return np.where(started, seen.observation.state[..., TAG], np.nan)


def test_exact_resets_are_those_of_the_step():
    seen = collected(Shown())
    now = [jax.random.fold_in(jax.random.key(0), t) for t in range(T)]
    drawn = np.stack([jax.vmap(Shown().reset)(keys(key, 3, E)[2])[0].tag for key in now])
    expected = np.where(seen.first[1:], drawn[:-1], np.nan)
    np.testing.assert_array_equal(tags(seen)[1:], expected)


def test_a_pool_changes_nothing_before_the_first_reset():
    exact, pooled = collected(Shown()), collected(Pooled(2))
    episodes_before = np.cumsum(exact.first, axis=0) == 1
    for one, other in zip(jax.tree.leaves(exact), jax.tree.leaves(pooled), strict=True):
        np.testing.assert_array_equal(one[episodes_before], other[episodes_before])
    assert np.any(tags(exact) != tags(pooled))


def test_a_pool_that_is_large_enough_repeats_no_start():
    assert pool_size(Pooled(1), E, T) == T * E
    one, other = collected(Pooled(1)), collected(Pooled(1), seed=1)
    assert np.sum(one.first) > 2 * E
    starts = np.concatenate([tags(seen)[1:].ravel() for seen in (one, other)])
    starts = starts[~np.isnan(starts)]
    assert len(np.unique(starts)) == len(starts)  # neither within a call nor between calls
    ended = (one.terminated | one.truncated)[:-1]
    np.testing.assert_array_equal(one.first[1:], ended)
    np.testing.assert_array_equal(one.observation.state[1:][ended][:, CLOCK], 0)
    np.testing.assert_array_equal(one.observation.state[1:][~ended], one.next.state[:-1][~ended])


def test_a_small_pool_is_handed_out_in_turn_and_differs_within_a_step():
    assert pool_size(Pooled(10**6), E, T) == E
    seen = collected(Pooled(10**6))
    rows = [row[~np.isnan(row)] for row in tags(seen)]
    in_turn = np.concatenate(rows)
    assert max(map(len, rows)) > 2
    assert all(len(np.unique(row)) == len(row) for row in rows)
    np.testing.assert_array_equal(in_turn, np.resize(in_turn[:E], len(in_turn)))
    assert len(np.unique(in_turn[:E])) == E


def test_members_of_a_batch_hand_out_as_alone():
    def run(seed):
        env = Pooled(3)
        return rollout(env, COUNTER, jax.random.key(seed), begin(env, COUNTER, jax.random.key(0), E), T)

    batch = jax.device_get(jax.jit(jax.vmap(run))(jnp.arange(2)))
    for seed in range(2):
        alone = jax.device_get(jax.jit(run)(seed))
        for one, other in zip(jax.tree.leaves(batch), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(one[seed], other)


def test_starts_from_a_pool_cover_the_board():
    env = make("lbf", size=5, foods=1, horizon=4)
    waiting = Policy(
        start=tuple,
        act=lambda key, memory, seen: (jnp.zeros(2, jnp.int32), memory, ()),
        execution="decentralised",
    )
    assert env.spec.reset_pool > env.spec.horizon  # entries repeat: 4 steps an episode, 10 an entry

    def run(seed):
        actors = begin(env, waiting, jax.random.fold_in(seed, 1), 32)
        return rollout(env, waiting, seed, actors, 40)[1].observation.agents

    views = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 64))
    rows = np.asarray(views)[:, 4::4].reshape(-1, 2, 3, 3)  # of each episode's first step
    cells = (rows[:, 0, 1, :2] * 4).round().astype(int) @ [5, 1]
    counts = np.bincount(cells, minlength=25)
    # Each entry of the 64 pools of 128 is used 2.25 times.
    used = counts.sum() / (64 * pool_size(env, 32, 40))
    assert scipy.stats.chisquare(counts / used).pvalue > 1e-3
