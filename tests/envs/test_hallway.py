"""Hallways: rules against a slow loop, optima, traps, and one program for all lengths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tad_envs import equilibrium_values, make, optimal, solve


def slow_return(plan, length, penalty, waiting):
    """Return of a fixed sequence of joint actions, in plain Python."""
    place = 0
    for joint in plan:
        if all(a == 0 for a in joint):
            if place == length - 1:
                return 5.0
            place += 1
        elif any(a == 0 for a in joint):
            return -penalty
        else:
            return 3.0 if waiting and 2 in joint else 4.0
    return 0.0


def play(env, plan):
    """Return of the same sequence in the environment."""

    def advance(carry, action):
        state, over = carry
        state, step = env.step(jax.random.key(0), state, action)
        reward = jnp.where(over, 0.0, step.reward)
        return (state, over | step.terminated | step.truncated), reward

    state, _ = env.reset(jax.random.key(0))
    _, rewards = jax.lax.scan(advance, (state, jnp.zeros((), bool)), plan)
    return rewards.sum()


@pytest.mark.parametrize(("length", "penalty", "waiting"), [(1, 2.0, 1), (2, 0.0, 0), (2, 5.0, 1)])
def test_every_plan_earns_what_the_rules_say(length, penalty, waiting):
    name = "hallway/wait" if waiting else "hallway"
    extra = {} if waiting else {"n_actions": 3}
    env = make(name, length=length, max_length=2, penalty=penalty, **extra)
    joint = list(itertools.product(range(3), repeat=2))
    plans = np.array(list(itertools.product(joint, repeat=2)), np.int32)
    earned = jax.jit(jax.vmap(play, in_axes=(None, 0)))(env, plans)
    expected = [slow_return(plan, length, penalty, waiting) for plan in plans.tolist()]
    assert np.asarray(earned).tolist() == expected


@pytest.mark.parametrize("length", [1, 2, 3, 10])
def test_the_optimum_is_five_and_the_trap_four(length):
    env = make("hallway", length=length, max_length=10)
    assert solve(env).value == 5.0
    assert equilibrium_values(env) == [5.0, 4.0]
    assert equilibrium_values(make("hallway/wait", length=length, max_length=10)) == [5.0, 4.0]


def test_discounting_shrinks_the_optimum_alone():
    # From cell 0 of three, 5 is two steps away and 4 none.
    solution = solve(make("hallway", length=3, max_length=10), gamma=0.9)
    assert solution.value == pytest.approx(5 * 0.9**2)


def test_three_agents():
    assert equilibrium_values(make("hallway", n_agents=3, length=2)) == [5.0, 4.0]


def test_a_shorter_hallway_with_waiting_shares_the_program(stack):
    plain = make("hallway", length=2, max_length=2, n_actions=3)
    wait = make("hallway/wait", length=1, max_length=2)
    assert plain.spec == wait.spec
    assert jax.tree.structure(plain) == jax.tree.structure(wait)
    legal = [env.reset(jax.random.key(0))[1].legal[0].tolist() for env in (plain, wait)]
    assert legal == [[True, True, False], [True, True, True]]
    both = stack(plain, wait)
    plan = jnp.array([[0, 0], [1, 1]])
    earned = jax.jit(jax.vmap(play, in_axes=(0, None)))(both, plan)
    assert earned.tolist() == [4.0, 5.0]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"length": 2.5}, "length=2.5"),
        ({"length": 3, "max_length": 2}, "max_length=2"),
        ({"length": float("nan")}, "finite"),
        ({"penalty": -1.0}, "penalty=-1"),
        ({"n_agents": 1}, "n_agents=1"),
        ({"n_actions": 4}, "n_actions=4"),
        ({"length": "2"}, "not a str"),
    ],
)
def test_a_wrong_hallway_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        make("hallway", **parameters)


# --------------------------------------------------------------------------------------------------
# Meet


def synchronised(position, clock, longest):
    """Walk to cell 1, wait until everybody has had time to, step together."""
    return jnp.where(position > 1, 1, jnp.where(clock >= longest - 1, 1, 0))


def meeting(env, key, timed):
    """Return of agents that share a clock, or of agents that walk on at once."""
    longest = env.max_length
    key, reset_key = jax.random.split(key)
    state, _ = env.reset(reset_key)

    def advance(carry, _):
        state, over = carry
        action = synchronised(state.position, state.clock, longest if timed else 0)
        state, step = env.step(key, state, action)
        reward = jnp.where(over, 0.0, step.reward)
        return (state, over | step.terminated | step.truncated), (reward, step.truncated)

    start = (state, jnp.zeros((), bool))
    _, (rewards, truncated) = jax.lax.scan(advance, start, length=env.spec.horizon)
    return rewards.sum(), state.position, truncated


def test_agents_with_a_clock_always_meet():
    env = make("hallway/meet")
    keys = jax.random.split(jax.random.key(0), 256)
    returns, starts, _ = jax.vmap(lambda k: meeting(env, k, timed=True))(keys)
    assert optimal(returns, solve(env).value).all()
    assert np.array_equal(starts.min(axis=0), [1, 1, 1])
    assert np.array_equal(starts.max(axis=0), [2, 6, 10])


def test_agents_that_walk_on_meet_only_from_equal_distances():
    env = make("hallway/meet", lengths=(3, 3))
    keys = jax.random.split(jax.random.key(0), 256)
    returns, starts, _ = jax.vmap(lambda k: meeting(env, k, timed=False))(keys)
    together = np.asarray(starts[:, 0] == starts[:, 1])
    assert np.array_equal(np.asarray(returns), np.where(together, 10.0, 0.0))


def test_time_runs_out_without_ending_the_task():
    env = make("hallway/meet", lengths=(3, 3), clock=True)
    state, observation = env.reset(jax.random.key(0))
    assert observation.agents.shape == (2, 4 + 13)
    for t in range(13):
        state, step = env.step(jax.random.key(0), state, jnp.zeros(2, jnp.int32))
        assert bool(step.truncated) == (t == 12)
        assert not step.terminated


def test_an_agent_sees_its_own_position_only():
    env = make("hallway/meet", lengths=(3, 3))
    state, _ = env.reset(jax.random.key(0))
    here = env.observe(state._replace(position=jnp.array([1, 2])))
    there = env.observe(state._replace(position=jnp.array([1, 3])))
    assert np.array_equal(here.agents[0], there.agents[0])
    assert not np.array_equal(here.state, there.state)
