"""The oracle against recursion by hand, and the didactic games' optima."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tad_envs import finite, make, optimal, solve


def distribution(game, place, joint):
    """Float32 transition probabilities as a distribution in float64."""
    p = game.transition[place, joint].astype(np.float64)
    return p / p.sum()


def slow_value(game, place, remaining, gamma):
    """Optimal value by recursion over plain numbers."""
    if remaining == 0:
        return 0.0
    best = -np.inf
    for joint in range(game.payoff.shape[1]):
        value = float(game.payoff[place, joint])
        if not game.ending[place, joint]:
            for following, p in enumerate(distribution(game, place, joint)):
                value += gamma * p * slow_value(game, following, remaining - 1, gamma)
        best = max(best, value)
    return best


@pytest.mark.parametrize("seed", range(3))
def test_values_equal_those_of_the_recursion(random_game, seed):
    game = random_game(seed, states=3, agents=2, actions=2, horizon=4)
    solution = solve(game, gamma=0.9)
    slow = [slow_value(game, place, 4, 0.9) for place in range(3)]
    assert solution.values[0, :3] == pytest.approx(slow, abs=1e-12)
    assert solution.value == pytest.approx(np.mean(slow), abs=1e-6)
    assert solution.equilibria == []


def test_the_policy_attains_the_value(random_game):
    """Following ``policy`` by its own model gives ``values`` again."""
    game = random_game(7, states=3, agents=2, actions=2, horizon=4)
    solution = solve(game, gamma=0.9)
    clocks, places = np.asarray(solution.states.clock), np.asarray(solution.states.place)
    index = {(t, s): i for i, (t, s) in enumerate(zip(clocks, places, strict=True))}
    value = np.zeros(3)
    for t in reversed(range(4)):
        later, value = value, np.zeros(3)
        for s in range(3):
            if (t, s) not in index:
                continue
            a, b = solution.policy[t, index[t, s]]
            joint = 2 * a + b
            expected = distribution(game, s, joint) @ later
            value[s] = (
                float(game.payoff[s, joint]) + 0.9 * (1 - float(game.ending[s, joint])) * expected
            )
    assert value == pytest.approx(solution.values[0, :3], abs=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "equilibria"),
    [
        ("matrix/two_step", 8.0, []),
        ("matrix/mmdp_qplex", 100.0, [100.0]),
        ("matrix/mmdp_qplex/horizon=5", 5.0, [5.0]),
        ("matrix/maven_mstep", 13.0, [13.0, 10.0]),
        ("matrix/maven_mstep/steps=3", 6.0, [6.0, 3.0]),
        ("hallway/meet", 10.0, []),
    ],
)
def test_didactic_optima_are_the_published_ones(name, value, equilibria):
    solution = solve(make(name))
    assert solution.value == value
    assert [v for _, v in solution.equilibria] == equilibria


def test_no_total_squeezes_more_than_the_published_optimum():
    # max over x of x exp(-(x - 8)^2 / 0.25), at x close to 8.016.
    env = make("matrix/gaussian_squeeze", n_agents=2)
    reward = [
        float(env.step(jax.random.key(0), jnp.array([w, w]), jnp.array(a))[1].reward)
        for w in np.linspace(0.8, 1.05, 11)
        for a in itertools.product((8, 9, 10), repeat=2)
    ]
    assert 7.9 < max(reward) <= 8.008
    with pytest.raises(ValueError, match="cannot be solved"):
        solve(env)


def test_optimal_is_relative_above_one():
    assert optimal([9.991, 9.98, 10.009], 10.0).tolist() == [True, False, True]
    assert optimal([0.0009, 0.002], 0.0).tolist() == [True, False]


def test_gamma_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"gamma=1\.5"):
        solve(make("matrix/tad"), gamma=1.5)


def test_too_many_joint_actions_are_refused(random_game):
    with pytest.raises(ValueError, match="joint actions"):
        solve(make("matrix/permutation", n=7))


def test_a_draw_never_has_probability_zero():
    p = jnp.array([0.0, 0.3, 0.0, 0.7, 0.0], jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4096)
    drawn = np.asarray(jax.vmap(lambda k: finite.choose(k, p, jnp.arange(5)))(keys))
    assert set(drawn) == {1, 3}
    assert np.mean(drawn == 3) == pytest.approx(0.7, abs=0.03)
