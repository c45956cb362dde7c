"""The switch riddle: its rules in plain Python, JaxMARL's own, and its optimum in closed form."""

import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest

from tad_envs import check, make, solve
from tad_envs.jaxmarl import jaxmarl_package
from tad_envs.riddle import NOTHING, SWITCH, TELL, Prison


def collected(agents, days):
    """Probability that so many days see everybody, by inclusion and exclusion."""
    terms = [
        (-1) ** k
        * len(list(itertools.combinations(range(agents), k)))
        * Fraction(agents - k, agents) ** days
        for k in range(agents)
    ]
    return sum(terms)


def told(visits, agents):
    """Return of the protocol for three prisoners on a sequence of visitors, in plain Python.

    The first day's visitor leaves the light off. Whoever comes for the first time later and finds it
    off switches it on, and who finds it on tells: each decides on what it saw itself.
    """
    light, been = False, set()
    for day, visitor in enumerate(visits):
        new = visitor not in been
        been.add(visitor)
        if day > 0 and new and light:
            return 1 if len(been) == agents else -1
        light = light or (day > 0 and new)
    return 0


def test_three_prisoners_reach_the_best_joint_value():
    env = make("switch_riddle")
    assert env.spec.horizon == 6
    best = collected(3, 6)
    assert best == Fraction(20, 27)
    assert solve(env).value == pytest.approx(float(best), abs=1e-6)
    every = list(itertools.product(range(3), repeat=6))
    assert Fraction(sum(told(visits, 3) for visits in every), len(every)) == best


def test_the_best_joint_value_of_four_is_that_of_ten_draws():
    assert solve(make("switch_riddle", n_agents=4)).value == pytest.approx(
        float(collected(4, 10)), abs=1e-5
    )


def test_every_step_is_jaxmarls():
    ours = make("switch_riddle", n_agents=4)
    theirs = jaxmarl_package().make("switch_riddle", num_agents=4)
    step, observe = jax.jit(ours.step), jax.jit(ours.observe)
    reset, upstream, views = map(jax.jit, (theirs.reset, theirs.step_env, theirs.get_obs))
    rng = np.random.default_rng(0)
    told_something = 0
    for seed in range(30):
        _, inner = reset(jax.random.key(seed))
        state, _ = ours.reset(jax.random.key(seed))
        for t in range(ours.spec.horizon):
            action = rng.choice([NOTHING, SWITCH, SWITCH, TELL], 4, p=[0.5, 0.2, 0.2, 0.1])
            state = Prison(
                np.int32(inner.bulb_state), np.int32(inner.agent_in_room),
                np.asarray(inner.has_been, np.int32), state.clock,
            )  # fmt: skip
            seen = observe(state)
            view = views(inner)
            rows = np.stack([view[agent] for agent in theirs.agents])
            np.testing.assert_array_equal(seen.agents.argmax(1), rows[:, 0] * (1 + rows[:, 1]))
            actions = {agent: action[i] for i, agent in enumerate(theirs.agents)}
            _, inner, rewards, dones, _ = upstream(jax.random.key(t), inner, actions)
            state, after = step(jax.random.key(t), state, action.astype(np.int32))
            assert float(after.reward) == float(rewards["agent_0"])
            assert bool(state.light) == bool(inner.bulb_state)
            assert state.been.tolist() == inner.has_been.tolist()
            assert bool(after.terminated | after.truncated) == bool(dones["__all__"])
            assert bool(after.terminated) == (float(after.reward) != 0)
            told_something += bool(after.terminated)
            if after.terminated:
                break
    assert told_something > 5


def test_the_scripted_team_wins_as_often_as_everybody_comes():
    env = make("switch_riddle")

    def episode(key):
        def advance(carry, key):
            state, over = carry
            state, step = env.step(key, state, env.heuristic(key, state))
            return (state, over | step.terminated), step.reward * ~over

        keys = jax.random.split(key, env.spec.horizon + 1)
        state, _ = env.reset(keys[0])
        return jax.lax.scan(advance, (state, False), keys[1:])[1].sum()

    returns = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 20_000))
    assert set(np.unique(returns)) == {0.0, 1.0}
    assert float(returns.mean()) == pytest.approx(20 / 27, abs=0.013)


def test_more_prisoners_are_told_side_by_side():
    env = make("switch_riddle", n_agents=7)
    assert (env.spec.one_hot, env.spec.state_dim) == (False, 15)
    check(env)
    with pytest.raises(ValueError, match="n_agents=2"):
        make("switch_riddle", n_agents=2)
