"""The transformation into a single-agent game: optima, orders, and both forms agreeing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tad_envs import Sequential, check, make, solve, unfold

GAMMA, LAM = 0.9, 0.8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", ["fixed", "reversed", (1, 2, 0)])
def test_block_discounting_keeps_every_value(random_game, seed, order):
    game = random_game(seed)
    joint = solve(game, GAMMA)
    virtual = solve(Sequential(game, order=order, discount="block"), GAMMA)
    # Starts are the first states of both, in one order.
    assert virtual.values[0, :5] == pytest.approx(joint.values[0, :5], abs=1e-10)
    assert virtual.value == pytest.approx(joint.value, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_fractional_discounting_scales_every_value(random_game, seed):
    game = random_game(seed)
    joint = solve(game, GAMMA)
    virtual = solve(Sequential(game, discount="fractional"), GAMMA)
    scale = GAMMA ** ((1 - 3) / 3)
    assert scale * virtual.values[0, :5] == pytest.approx(joint.values[0, :5], abs=1e-10)


def test_a_random_order_starts_anywhere_and_changes_no_value(random_game):
    game = random_game(0)
    joint = solve(game, GAMMA)
    virtual = solve(Sequential(game, order="random"), GAMMA)
    orders = {tuple(int(i) for i in order) for order in virtual.states.order[:30]}
    assert orders == set(itertools.permutations(range(3)))
    assert virtual.value == pytest.approx(joint.value, abs=1e-10)


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_the_sequential_game_keeps_the_promises_of_an_environment(random_game, order):
    check(Sequential(random_game(0, states=3, agents=2, horizon=3), order=order))


def test_games_that_are_not_finite_are_transformed_too():
    env = Sequential(make("matrix/gaussian_squeeze", n_agents=2))
    check(env)
    with pytest.raises(ValueError, match="cannot be solved"):
        solve(env)


def test_the_agent_to_choose_sees_the_choices_before_it():
    env = Sequential(make("hallway/wait", length=2), order="reversed")
    state, first = env.reset(jax.random.key(0))
    state, step = env.step(jax.random.key(0), state, jnp.array([2]))
    # State (2), prefix of agents 0 and 1 (3 each), agent to choose (2).
    assert first.state.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert step.observation.state.tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    assert step.reward == 0.0
    assert not step.terminated
    state, step = env.step(jax.random.key(0), state, jnp.array([1]))
    assert step.reward == 3.0
    assert step.terminated


def test_padding_stays_illegal():
    env = Sequential(make("matrix/custom", payoff=[[1, 2], [3, 4], [5, 6]]))
    state, first = env.reset(jax.random.key(0))
    _, step = env.step(jax.random.key(0), state, jnp.array([2]))
    assert first.legal.tolist() == [[True, True, True]]
    assert step.observation.legal.tolist() == [[True, True, False]]
    assert solve(env).value == 6.0


def test_wrong_arguments_are_refused():
    env = make("matrix/tad")
    with pytest.raises(ValueError, match="permutation"):
        _ = Sequential(env, order=(0, 2)).orders()
    with pytest.raises(ValueError, match="'fixed'"):
        Sequential(env, order="fixd")
    with pytest.raises(ValueError, match="discount"):
        Sequential(env, discount="none")


# --------------------------------------------------------------------------------------------------
# Both forms


def advantages(reward, terminated, truncated, gamma, lam, values):
    """Generalised advantages by a plain loop; ``values`` has one entry more than ``reward``."""
    advantage, later = np.zeros(len(reward)), 0.0
    for t in reversed(range(len(reward))):
        delta = reward[t] + gamma[t] * (1 - terminated[t]) * values[t + 1] - values[t]
        goes_on = 1 - (terminated[t] | truncated[t])
        later = delta + gamma[t] * lam[t] * goes_on * later
        advantage[t] = later
    return advantage


def played(env, keys, actions):
    """Trajectory without resets from state 0: rewards, ends and discount powers."""

    def advance(state, inputs):
        key, action = inputs
        state, step = env.step(key, state, action)
        power = step.info.get("discount_power", jnp.ones(()))
        return state, (step.reward, step.terminated, step.truncated, power)

    start = jax.tree.map(lambda x: x[0], env.starts()[1])
    return jax.device_get(jax.lax.scan(advance, start, (keys, actions))[1])


@pytest.mark.parametrize("discount", ["block", "fractional"])
def test_both_forms_give_the_same_numbers(random_game, discount):
    game, steps, n = random_game(3, horizon=8), 8, 3
    rng = np.random.default_rng(0)
    actions = jnp.asarray(rng.integers(0, 3, (steps, n)), jnp.int32)
    keys = jax.random.split(jax.random.key(1), steps)
    reward, terminated, truncated, _ = played(game, keys, actions)
    virtual = unfold(reward, terminated, truncated, n, GAMMA, LAM, discount)
    # The game moves in the last virtual step of each block: only that step's key is of consequence.
    single = played(Sequential(game, discount=discount), jnp.repeat(keys, n), actions.reshape(-1, 1))
    for mine, theirs in zip(virtual[:3], single[:3], strict=True):
        assert np.array_equal(mine, theirs)
    power = single[3]
    assert np.asarray(virtual.gamma) == pytest.approx(GAMMA**power, abs=1e-6)
    assert np.asarray(virtual.lam) == pytest.approx(LAM**power, abs=1e-6)
    values = rng.normal(size=steps * n + 1)
    form_a = advantages(*single[:3], GAMMA**power, LAM**power, values)
    form_b = advantages(*(np.asarray(x) for x in virtual), values)
    assert form_b == pytest.approx(form_a, abs=1e-5)
    if discount == "block":
        gamma, lam = np.full(steps, GAMMA), np.full(steps, LAM)
        team = advantages(reward, terminated, truncated, gamma, lam, values[::n])
        assert form_b[::n] == pytest.approx(team, abs=1e-5)


def test_unfold_keeps_middle_axes_and_works_under_vmap():
    rng = np.random.default_rng(0)
    reward = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    terminated, truncated = reward > 1, reward < -1
    whole = unfold(reward, terminated, truncated, 3, GAMMA, LAM)
    each = jax.jit(jax.vmap(lambda r, a, b: unfold(r, a, b, 3, GAMMA, LAM), in_axes=1, out_axes=1))
    for one, other in zip(whole, each(reward, terminated, truncated), strict=True):
        assert one.shape == (15, 4)
        assert np.array_equal(one, other)
    assert np.array_equal(whole.reward[2::3], reward)
    assert not whole.terminated[0::3].any()
