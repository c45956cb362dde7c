"""The pure pieces of the experiment on transformation and distillation."""

import itertools
import math

import numpy as np
import pytest

from experiments import transform
from tad_envs import make, solve


@pytest.mark.parametrize("discount", ["fractional", "block"])
def test_the_sequential_game_has_the_value_of_the_game(discount):
    game = transform.random_game(0, agents=2, actions=2, places=3, horizon=3)
    assert transform.deviation(game, 0.9, discount) < 1e-12


def test_permuted_games_are_the_same_game_in_another_order():
    payoff = np.arange(27.0).reshape(3, 3, 3)
    games = transform.permuted(payoff)
    assert list(games) == list(itertools.permutations(range(3)))
    joint = (2, 0, 1)
    for order, table in games.items():
        assert table[tuple(joint[agent] for agent in order)] == payoff[joint]
        assert solve(make("matrix/custom", payoff=table)).value == 26.0


def test_all_games_of_the_study_of_orders_share_a_shape():
    assert {table.shape for table in transform.three_agents().values()} == {(3, 3, 3)}


def test_steps_until_is_the_first_evaluation_that_has_enough():
    steps = np.array([10, 20, 30])
    assert transform.steps_until(np.array([0.1, 0.6, 0.4]), steps) == 20
    assert transform.steps_until(np.array([0.1, 0.2, 0.4]), steps) == math.inf


def test_independent_halves_of_xor_pay_a_half():
    payoff = np.array([[0.0, 1.0], [1.0, 0.0]])
    halves = np.full((2, 2), 0.5)
    agreed = np.eye(2)
    paid = transform.product_return(np.stack([halves, agreed]), payoff)
    assert np.asarray(paid).tolist() == [0.5, 1.0]


@pytest.mark.parametrize(("clue", "delay"), [(1.0, 0), (0.4, 1), (0.0, 2), (1.0, 4)])
def test_the_least_cross_entropy_is_that_of_targets_given_clues(clue, delay):
    env = make("relay", clue=clue, delay=delay, names=1)
    probability, task = env.starts()
    table = np.zeros((3, 3))
    target, told = np.asarray(task.target)[:, 0], np.asarray(task.clue)[:, 0]
    np.add.at(table, (target, told), np.asarray(probability, float))
    given = table / table.sum(axis=0)
    known = -np.sum(table * np.log(np.where(given > 0, given, 1)))
    expected = 2 * (delay * math.log(3) + (4 - delay) * known) / 4
    assert transform.clue_entropy(env) == pytest.approx(expected, abs=1e-6)


def test_interleaved_functions_take_turns_in_beginning():
    called = []
    functions = [lambda i=i: called.append(i) for i in range(3)]
    seconds = transform.interleaved(functions, rounds=3)
    assert seconds.shape == (3, 3)
    assert np.all(seconds >= 0)
    assert called == [0, 1, 2, 2, 0, 1, 1, 2, 0]


def test_actors_act():
    method, fields = transform.ACTORS["in turn, sums (TAD)"]
    act = transform.actor(method, make("hallway", n_agents=3, length=2), batch=2, steps=3, **fields)
    act()
