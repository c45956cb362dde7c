"""Matrix games: published optima and equilibria, padding, and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tad_envs import equilibrium_values, make, matrix, solve, strict_equilibria

# Optimum and the other strict equilibria, read off the published tables by hand.
PUBLISHED = {
    "matrix/tad": (10, [5]),
    "matrix/t2": (10, [5]),
    "matrix/t3": (10, [5, 1]),
    "matrix/t7": (10, [5]),
    "matrix/t8": (10, [5, 1]),
    "matrix/climbing": (11, [7]),
    "matrix/climbing_3p": (11, [7, 6]),
    "matrix/penalty": (10, [10, 2]),
    "matrix/penalty/k=-25": (10, [10, 2]),
    "matrix/qtran": (8, []),
    "matrix/qplex1": (10.4, []),
    "matrix/qplex3": (8, [6, 6]),
    "matrix/pymarl2_a": (12, []),
    "matrix/pymarl2_b": (12, []),
    "matrix/pymarl2_c": (12, []),
    "matrix/note001": (10, [0]),
    "matrix/trivial": (11, []),
    "matrix/linear": (5, []),
    "matrix/nonlinear": (6, []),
    "matrix/linear_2p": (9, []),
    "matrix/nonlinear_2p": (10, []),
    "matrix/qmix_2b": (8, []),
    "matrix/xor": (1, [1]),
    "matrix/identity": (1, [1]),
    "matrix/permutation": (1, [1] * 23),
    "matrix/permutation/n=3": (1, [1] * 5),
    "matrix/hatrpo": (1, [1]),
    "matrix/hatrpo/n=2": (1, [1]),
    "matrix/mackrl_1": (1, [0.8]),
    "matrix/mackrl_2": (1, [0.8]),
    "matrix/stag_hunt": (10, [0]),
    "matrix/stag_hunt/R=4/S=3/c=1": (4, [3]),
    "matrix/alberdice": (1, [1]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_optimum_and_equilibria_are_the_published_ones(name):
    best, others = PUBLISHED[name]
    solution = solve(make(name))
    assert solution.value == pytest.approx(best, abs=1e-6)
    values = [value for _, value in solution.equilibria]
    assert values == pytest.approx([best, *others], abs=1e-6)


def test_repeated_climbing_is_epymarls_scale():
    # EPyMARL plays climbing 25 times: 25 * 11 = 275, and 25 * 7 = 175 at the other equilibrium.
    solution = solve(make("matrix/climbing", repeats=25))
    assert solution.value == 275.0
    assert solution.values.shape == (25, 25)


def test_the_first_action_is_the_row():
    env = make("matrix/custom", payoff=[[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    state, _ = env.reset(jax.random.key(0))
    _, step = env.step(jax.random.key(0), state, jnp.array([1, 2]))
    assert step.reward == 6.0
    assert step.terminated
    assert not step.truncated


def test_padding_is_never_legal_and_never_paid():
    env = make("matrix/custom", payoff=[[-1, -2], [-3, -4], [-5, -6]], pad_to=4)
    state, observation = env.reset(jax.random.key(0))
    assert observation.legal.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert solve(env).value == -1.0
    for action in np.ndindex(4, 4):
        _, step = env.step(jax.random.key(0), state, jnp.array(action))
        assert step.reward < 0


def test_games_of_one_shape_run_in_one_program(stack):
    games = [make("matrix/tad"), make("matrix/climbing"), make("matrix/xor", pad_to=3)]
    assert len({game.spec for game in games}) == 1
    assert len({jax.tree.structure(game) for game in games}) == 1

    def paid(env):
        state, _ = env.reset(jax.random.key(0))
        return env.step(jax.random.key(0), state, jnp.array([0, 1]))[1].reward

    stacked = stack(*games)
    axes = jax.tree.map(lambda _: 0, stacked)
    assert jax.vmap(paid, in_axes=(axes,))(stacked).tolist() == [-30.0, -30.0, 1.0]


@pytest.mark.parametrize(
    ("payoff", "message"),
    [
        ([1, 2], "1 axes"),
        ([[1, 2], [3]], "equal length"),
        ([[1, 2], [3, np.nan]], r"payoff\[1, 1\] is nan"),
        ([[[1, 2]], [[-np.inf, 3]]], r"payoff\[1, 0, 0\] is -inf"),
        ([[], []], "at least one action"),
        ([["a", "b"]], "table of numbers"),
    ],
)
def test_a_wrong_payoff_is_refused(payoff, message):
    with pytest.raises(ValueError, match=message):
        make("matrix/custom", payoff=payoff)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="pad_to=1"):
        make("matrix/tad", pad_to=1)
    with pytest.raises(ValueError, match="n=3 must be even"):
        make("matrix/hatrpo", n=3)
    with pytest.raises(ValueError, match="repeats must be"):
        make("matrix/tad", repeats=0)
    with pytest.raises(ValueError, match="equal axes"):
        matrix.MatrixGame(payoff=np.zeros((2, 3), np.float32), actions=np.array([2, 3]))


payoffs = hnp.arrays(np.float32, (3, 3), elements=st.integers(-20, 20))


@given(payoff=payoffs, shift=st.integers(-50, 50))
@settings(max_examples=20)
def test_a_payoff_shift_moves_the_optimum_and_no_equilibrium(payoff, shift):
    before = solve(make("matrix/custom", payoff=payoff))
    after = solve(make("matrix/custom", payoff=payoff + shift))
    assert after.value == before.value + shift
    assert {a for a, _ in after.equilibria} == {a for a, _ in before.equilibria}


@given(payoff=payoffs)
@settings(max_examples=20)
def test_swapping_the_agents_swaps_the_equilibria(payoff):
    swapped = {(b, a): value for (a, b), value in strict_equilibria(payoff)}
    assert swapped == dict(strict_equilibria(payoff.T))
    assert solve(make("matrix/custom", payoff=payoff.T)).value == payoff.max()


@given(payoff=payoffs)
@settings(max_examples=50)
def test_strict_equilibria_agree_with_the_definition(payoff):
    def strict(i, j):
        rows = all(payoff[k, j] < payoff[i, j] for k in range(3) if k != i)
        return rows and all(payoff[i, k] < payoff[i, j] for k in range(3) if k != j)

    expected = {(i, j) for i in range(3) for j in range(3) if strict(i, j)}
    assert {action for action, _ in strict_equilibria(payoff)} == expected


def test_equilibrium_values_are_sorted():
    assert equilibrium_values(make("matrix/t8")) == [10.0, 5.0, 1.0]
