"""Value targets against their definition, a slow loop in float64, rlax and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmarl_tad.targets import beyond_death, lambda_returns, next_values

T, E, N = 6, 6, 2  # as many environments as steps: an axis taken for another has the right size
RETURNS = jax.jit(lambda_returns)


def recursion(reward, next_value, terminated, truncated, gamma, lam):
    """G_t backwards in float64, one number at a time; ``next_value`` is ``[T, E, N]``."""
    steps, envs, agents = next_value.shape
    gamma, lam = (np.broadcast_to(x, next_value.shape) for x in (gamma, lam))
    targets = np.zeros(next_value.shape)
    for e in range(envs):
        for i in range(agents):
            following = next_value[-1, e, i]
            for t in reversed(range(steps)):
                value = float(next_value[t, e, i])
                if terminated[t, e]:
                    beyond = 0.0
                elif truncated[t, e]:
                    beyond = value
                else:
                    beyond = (1 - lam[t, e, i]) * value + lam[t, e, i] * following
                following = float(reward[t, e]) + gamma[t, e, i] * beyond
                targets[t, e, i] = following
    return targets


def n_step_mixture(reward, next_value, terminated, truncated, gamma, lam):
    """The λ-return by its definition, Σ_n (1 − λ) λ^{n−1} G^{(n)}, of one environment's ``[T]``."""
    steps = len(reward)
    targets = np.zeros(steps)
    for t in range(steps):
        ends = [s for s in range(t, steps) if terminated[s] or truncated[s] or s == steps - 1]
        longest = ends[0] - t + 1
        mixture = 0.0
        for n in range(1, longest + 1):
            last = t + n - 1
            rewards = sum(gamma**k * float(reward[t + k]) for k in range(n))
            tail = 0.0 if terminated[last] else gamma**n * float(next_value[last])
            weight = lam ** (n - 1) if n == longest else (1 - lam) * lam ** (n - 1)
            mixture += weight * (rewards + tail)
        targets[t] = mixture
    return targets


def trajectory(seed, ends=0.5):
    """Rewards ``[T, E]``, values ``[T, E, N]`` and exclusive ends."""
    rng = np.random.default_rng(seed)
    ended, by_clock = rng.random((T, E)) < ends, rng.random((T, E)) < 0.5
    reward = rng.normal(size=(T, E)).astype(np.float32)
    value = rng.normal(size=(T, E, N)).astype(np.float32)
    return reward, value, ended & ~by_clock, ended & by_clock


@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.0, 0.2, 0.6]))
def test_equals_the_mixture_of_n_step_returns(seed, gamma, lam, ends):
    reward, value, terminated, truncated = trajectory(seed, ends)
    ours = RETURNS(reward, value[..., 0], terminated, truncated, gamma, lam)
    expected = [
        n_step_mixture(reward[:, e], value[:, e, 0], terminated[:, e], truncated[:, e], gamma, lam)
        for e in range(E)
    ]
    np.testing.assert_allclose(ours, np.stack(expected, 1), rtol=1e-5, atol=1e-5)


def test_equals_rlax(rlax):
    reward, value, terminated, truncated = (x[:, 0] for x in trajectory(0))
    value, gamma, lam = value[:, 0], 0.97, 0.9
    discount = np.float32(gamma) * ~terminated
    trace = np.float32(lam) * ~(terminated | truncated)
    ours = RETURNS(reward, value, terminated, truncated, gamma, lam)
    np.testing.assert_allclose(
        ours, rlax.lambda_returns(reward, discount, value, trace), rtol=1e-6, atol=1e-6
    )


def per_step(rng):
    return rng.random(T).astype(np.float32), lambda x: x[:, None, None]


def per_step_and_env(rng):
    return rng.random((T, E)).astype(np.float32), lambda x: x[:, :, None]


def per_agent(rng):
    return rng.random((T, E, N)).astype(np.float32), lambda x: x


@pytest.mark.parametrize("shape", [per_step, per_step_and_env, per_agent])
def test_gamma_and_lam_differ_by_step_environment_or_agent(shape):
    reward, value, terminated, truncated = trajectory(1)
    rng = np.random.default_rng(2)
    (gamma, spread), (lam, _) = shape(rng), shape(rng)
    ours = RETURNS(reward, value, terminated, truncated, gamma, lam)
    expected = recursion(reward, value, terminated, truncated, spread(gamma), spread(lam))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_lam_zero_is_td_zero():
    reward, value, terminated, truncated = trajectory(3)
    ours = RETURNS(reward, value, terminated, truncated, 0.9, 0.0)
    expected = reward[..., None] + 0.9 * np.where(terminated[..., None], 0, value)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


def test_lam_one_is_monte_carlo_and_a_truncated_step_keeps_the_value_of_what_it_led_to():
    # One episode of 3 steps that terminates, one of 2 that the clock cuts, 1 step that goes on:
    #   G_2 = r_2, G_1 = r_1 + γ r_2, G_0 = r_0 + γ r_1 + γ² r_2
    #   G_4 = r_4 + γ V(next_4), G_3 = r_3 + γ r_4 + γ² V(next_4), G_5 = r_5 + γ V(next_5)
    r, v, gamma = np.float32([1, 2, 3, 4, 5, 6]), np.float32([70, 80, 90, 100, 110, 120]), 0.5
    terminated, truncated = np.arange(T) == 2, np.arange(T) == 4
    expected = [1 + 1 + 0.75, 2 + 1.5, 3, 4 + 2.5 + 0.25 * 110, 5 + 55, 6 + 60]
    np.testing.assert_array_equal(RETURNS(r, v, terminated, truncated, gamma, 1.0), expected)


@pytest.mark.parametrize("by_clock", [False, True])
def test_nothing_flows_back_over_a_reset(by_clock):
    reward, value, _, _ = trajectory(4)
    ended = np.broadcast_to(np.arange(T)[:, None] % 2 == 1, (T, E))  # episodes of two steps
    ends = (ended & (not by_clock), ended & by_clock)
    before = RETURNS(reward, value, *ends, 1.0, 1.0)
    later = np.arange(T) >= 2
    reward, value = reward + 1e3 * later[:, None], value - 1e3 * later[:, None, None]
    after = RETURNS(reward.astype(np.float32), value.astype(np.float32), *ends, 1.0, 1.0)
    np.testing.assert_array_equal(before[:2], after[:2])
    assert np.all(before[2:] != after[2:])


def test_target_minus_value_is_the_generalised_advantage_estimate():
    # PPO's form: δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γ λ A_{t+1}, where V_{t+1} is 0 beyond a
    # terminal step, and A_{t+1} is 0 beyond any end (Schulman et al. 2016, eq. 16).
    reward, _, terminated, truncated = trajectory(5)
    rng = np.random.default_rng(6)
    value = rng.normal(size=(T + 1, E)).astype(np.float32)
    final = rng.normal(size=(T, E)).astype(np.float32)
    ended = terminated | truncated
    next_value = np.where(ended, final, value[1:])
    gamma, lam, advantage = 0.95, 0.8, np.zeros((T + 1, E))
    for t in reversed(range(T)):
        delta = reward[t] + gamma * np.where(terminated[t], 0, next_value[t]) - value[t]
        advantage[t] = delta + gamma * lam * np.where(ended[t], 0, advantage[t + 1])
    ours = RETURNS(reward, next_value, terminated, truncated, gamma, lam) - value[:-1]
    np.testing.assert_allclose(ours, advantage[:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
def test_value_of_a_constant_reward_survives_a_time_limit(lam):
    # A reward of 1 for ever is worth 1 / (1 − γ) = 10, however often the clock starts a new episode
    # of 3 steps. Were its end a terminal one, λ = 1 would give the mean over the three steps of
    # (1 − γ^k) / (1 − γ), k = 3, 2, 1: (2.71 + 1.9 + 1) / 3 = 1.87.
    reward, gamma = np.ones(T, np.float32), 0.9
    limit, never = np.arange(T) % 3 == 2, np.zeros(T, bool)

    def fixed_point(terminated, truncated):
        value = np.float32(0)
        for _ in range(400):
            targets = RETURNS(reward, np.full(T, value), terminated, truncated, gamma, lam)
            value = np.float32(np.mean(targets))
        return value

    assert fixed_point(never, limit) == pytest.approx(10, rel=1e-4)
    if lam == 1:
        assert fixed_point(limit, never) == pytest.approx(1.87, rel=1e-4)


# --- values of what steps led to --------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "horizon"), [(128, 25), (40, 7), (25, 25), (30, 60), (3, 3), (4, 1)])
def test_next_values_are_those_of_what_each_step_led_to(steps, horizon):
    rng = np.random.default_rng(steps)
    envs, agents = 5, 2
    # Episodes of at most `horizon` steps, some of which end by themselves; clocks begin anywhere.
    clock = rng.integers(0, horizon, envs)
    terminated, truncated = np.zeros((2, steps, envs), bool)
    for t in range(steps):
        clock += 1
        terminated[t] = (rng.random(envs) < 0.05) & (clock < horizon)
        truncated[t] = clock == horizon
        clock[terminated[t] | truncated[t]] = 0
    led_to = rng.normal(size=(steps, envs, agents))
    begins = rng.normal(size=(envs, agents))
    value = np.zeros((steps, envs, agents))
    for t in range(steps):
        ended = terminated[t - 1] | truncated[t - 1] if t else np.ones(envs, bool)
        fresh = begins if t == 0 else rng.normal(size=(envs, agents))
        value[t] = np.where(ended[:, None], fresh, led_to[t - 1])
    looked = []

    def look(rows):
        looked.append(rows)
        x = jnp.asarray(led_to)
        return x if rows is None else jnp.take_along_axis(x, rows[..., None], axis=0)

    got = next_values(jnp.asarray(value), jnp.asarray(truncated), look, horizon)
    matters = ~terminated[..., None]
    np.testing.assert_allclose(np.where(matters, got, 0), np.where(matters, led_to, 0), rtol=1e-6)
    assert (looked[0] is None) == (2 * (-(-steps // horizon) + 1) >= steps)


def test_beyond_death_the_team_goes_on():
    value = jnp.asarray([[1.0, 5.0, 100.0], [2.0, 3.0, 4.0], [7.0, 8.0, 9.0]])
    alive = jnp.asarray([[True, True, False], [True, True, True], [False, False, False]])
    expected = [[1.0, 5.0, 3.0], [2.0, 3.0, 4.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(beyond_death(value, alive), expected)
