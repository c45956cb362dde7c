"""Relay: what clues are worth, in closed form, by search, and by plain enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tad_envs import check, make, solve, solve_decentralised


def brute_force(clue, delay, targets, steps):
    """Best value of two agents by enumeration of all deterministic policies, in plain Python.

    A policy says what to pick in each step: before the clue and after it, by the clue.
    """
    own = list(itertools.product(range(targets), repeat=delay + (steps - delay) * targets))

    def picks(policy, told):
        before = list(policy[:delay])
        return before + [policy[delay + t * targets + told] for t in range(steps - delay)]

    right = [
        # [target, clue] to the probability of both and the steps in which the policy is right
        [
            ((clue * (g == c) + (1 - clue) / targets) / targets, np.equal(picks(policy, c), g))
            for g in range(targets)
            for c in range(targets)
        ]
        for policy in own
    ]
    best = 0.0
    for one, other in itertools.product(right, repeat=2):
        value = sum(p * q * np.sum(a & b) for p, a in one for q, b in other)
        best = max(best, value)
    return best


@pytest.mark.parametrize("clue", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("delay", [0, 1, 2])
def test_closed_form_search_and_enumeration_agree(clue, delay):
    env = make("relay", clue=clue, delay=delay, n_targets=2, steps=2, names=1)
    closed = env.decentralised_value()
    assert closed == pytest.approx(brute_force(clue, delay, targets=2, steps=2), abs=1e-6)
    assert closed == pytest.approx(solve_decentralised(env).value, abs=1e-6)
    assert solve(env).value == pytest.approx(2.0)


@pytest.mark.parametrize(
    "parameters",
    [
        {"clue": 0.6, "steps": 2},
        {"clue": 0.6, "delay": 2},
        {"clue": 0.3, "delay": 1, "n_agents": 3, "n_targets": 2, "steps": 2},
        {"clue": 0.5, "delay": 1, "n_agents": 1, "n_targets": 4, "steps": 3},
    ],
)
def test_closed_form_and_search_agree_at_larger_sizes(parameters):
    env = make("relay", **{"names": 1} | parameters)
    for gamma in (1.0, 0.7):
        found = solve_decentralised(env, gamma).value
        assert found == pytest.approx(env.decentralised_value(gamma), abs=1e-6)


def test_by_default_everything_can_be_inferred():
    env = make("relay")
    best = solve(env).value
    assert best == pytest.approx(4.0, rel=1e-12)
    assert solve(make("relay", names=1)).value == 4.0
    assert env.decentralised_value() >= 0.95 * best
    # Without memory only the step of the clue is better than a guess.
    assert env.decentralised_value(memory=False) == pytest.approx(1 + 3 / 9)


def test_the_value_falls_with_the_clue_and_with_the_delay():
    clues = [make("relay", clue=c).decentralised_value() for c in np.linspace(0, 1, 11)]
    delays = [make("relay", delay=d).decentralised_value() for d in range(5)]
    assert np.all(np.diff(clues) > 0)
    assert np.all(np.diff(delays) < 0)
    guess = 4 / 3**2
    assert clues[0] == pytest.approx(guess)
    assert delays[4] == pytest.approx(guess)
    assert clues[-1] == delays[0] == 4.0
    # The team that sees the state does not need clues.
    assert solve(make("relay", clue=0.0, delay=4, names=1)).value == 4.0


@pytest.mark.parametrize("clue", [0.0, 0.7])
def test_drawn_episodes_follow_the_listed_starts(clue):
    env = make("relay", clue=clue, delay=1, names=1)
    keys = jax.random.split(jax.random.key(0), 20_000)
    state = jax.vmap(lambda k: env.reset(k)[0])(keys)
    codes = [np.asarray(x).dot([3, 1]) for x in (state.target, state.clue)]
    share = np.bincount(9 * codes[0] + codes[1], minlength=81) / len(keys)
    probability, listed = env.starts()
    order = 9 * np.asarray(listed.target).dot([3, 1]) + np.asarray(listed.clue).dot([3, 1])
    assert share[order] == pytest.approx(np.asarray(probability), abs=0.01)


def test_a_clue_is_seen_once_and_by_its_agent_alone():
    env = make("relay", delay=2, n_agents=3, names=1)
    state, seen = env.reset(jax.random.key(1))
    shown = []
    for _ in range(4):
        shown.append(np.asarray(seen.agents).argmax(1))
        assert seen.state.shape == (27,)
        state, step = env.step(jax.random.key(0), state, state.target)
        seen = step.observation
        assert step.reward == 1.0
    assert step.terminated
    assert np.array_equal(shown[2], 1 + np.asarray(state.clue))
    assert not np.any([shown[t] for t in (0, 1, 3)])
    _, step = env.step(jax.random.key(0), state, state.target.at[0].add(1) % 3)
    assert step.reward == 0.0


def test_clues_and_delays_run_in_one_program(stack):
    games = [make("relay", clue=c, delay=d, names=1) for c, d in ((1.0, 0), (0.5, 1), (0.0, 4))]
    assert len({game.spec for game in games}) == 1
    assert len({jax.tree.structure(game) for game in games}) == 1
    stacked = stack(*games)
    axes = jax.tree.map(lambda _: 0, stacked)
    seen = jax.vmap(lambda env: env.reset(jax.random.key(0))[1].agents, in_axes=(axes,))(stacked)
    assert np.asarray(seen[0])[:, 1:].sum() == 2
    assert np.asarray(seen[1:])[..., 0].sum() == 4


def test_every_name_of_a_target_is_as_likely_and_means_that_target():
    env = make("relay", clue=0.6, n_targets=2, names=3)
    probability, listed = env.starts()
    target, told = (np.asarray(x)[:, 0] for x in (listed.target, listed.clue))
    table = np.zeros((2, 6))
    np.add.at(table, (target, told), np.asarray(probability, float))
    expected = (0.6 * np.repeat(np.eye(2), 3, axis=1) + 0.4 / 2) / 6
    np.testing.assert_allclose(table, expected, atol=1e-6)
    drawn = jax.vmap(lambda k: env.reset(k)[0])(jax.random.split(jax.random.key(1), 20_000))
    counted = np.zeros((2, 6))
    np.add.at(counted, (np.asarray(drawn.target).ravel(), np.asarray(drawn.clue).ravel()), 1 / 40_000)
    np.testing.assert_allclose(counted, expected, atol=0.01)
    # A name is seen as itself, and changes no value.
    state, seen = env.reset(jax.random.key(2))
    np.testing.assert_array_equal(seen.agents.argmax(1), 1 + np.asarray(state.clue))
    assert seen.agents.shape == (2, 7)
    few = make("relay", clue=0.6, delay=1, n_targets=2, steps=2, names=2)
    assert solve_decentralised(few).value == pytest.approx(few.decentralised_value(), abs=1e-6)
    assert solve(env).value == pytest.approx(4.0)


@pytest.mark.parametrize(("n_agents", "names"), [(3, 1), (2, 2)])
def test_other_sizes_keep_their_promises(n_agents, names):
    check(make("relay", clue=0.3, delay=1, n_agents=n_agents, n_targets=2, steps=2, names=names))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"clue": 1.5}, r"clue=1\.5"),
        ({"delay": 5}, "delay=5 must be"),
        ({"delay": 0.5}, r"delay=0\.5 must be"),
        ({"n_targets": 1}, "n_targets=1"),
        ({"steps": 0}, "steps=0"),
        ({"names": 0}, "names=0"),
    ],
)
def test_wrong_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        make("relay", **parameters)


def test_too_many_starts_are_refused_only_where_they_are_listed():
    env = make("relay", n_agents=6, names=1)
    state, _ = env.reset(jax.random.key(0))
    assert jnp.shape(state.target) == (6,)
    with pytest.raises(ValueError, match="531441 starts"):
        solve(env)
