"""Selective sharing: clustering against brute force, the groups it finds, and that runs keep them."""

import functools
import importlib
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmarl_tad as jt
from jaxmarl_tad.cli import words
from jaxmarl_tad.networks.tables import biased
from jaxmarl_tad.selective import Settings, best_groups, davies_bouldin, encode, kmeans
from jaxmarl_tad.sharing import init_sets, numbered, of_agent, over_agents, over_rows, sharing
from tad_envs import check, solve

SEEDS = 16
QUICK = {"total_steps": 512, "envs": 8, "evaluations": 4, "episodes": 2, "progress": False}


# --- the game ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"shown": True}, {"n": 3, "steps": 2}])
def test_the_game_of_colours_is_an_environment_with_a_known_optimum(given):
    env = jt.make("colours", **given)
    check(env)
    assert solve(env).value == pytest.approx(given.get("steps", 1))


def test_the_game_pays_the_share_of_right_answers():
    env = jt.make("colours", n=3, colours=2, signals=2, payoff=np.arange(8.0).reshape(2, 2, 2).tolist())
    _, starts = env.starts()
    for signal, actions in itertools.product(range(2), itertools.product(range(2), repeat=3)):
        state = jax.tree.map(lambda x, s=signal: x[s], starts)
        _, step = env.step(jax.random.key(0), state, jnp.asarray(actions))
        paid = [4 * colour + 2 * signal + a for colour, a in zip((0, 1, 0), actions, strict=True)]
        assert float(step.reward) == pytest.approx(sum(paid) / 3)
        assert bool(step.terminated)


# --- clustering ---------------------------------------------------------------------------------------


def error_of(points, groups):
    kinds = [points[np.asarray(groups) == k] for k in set(groups)]
    return sum(((own - own.mean(0)) ** 2).sum() for own in kinds)


@pytest.mark.parametrize("sets", [1, 2, 3, 6])
def test_kmeans_finds_the_best_of_all_partitions(sets):
    for seed in range(5):
        points = np.random.default_rng(seed).normal(size=(6, 2))
        every = [g for g in itertools.product(range(sets), repeat=6) if len(set(g)) == sets]
        best = min(error_of(points, groups) for groups in every)
        found = kmeans(points, sets, seed)
        assert len(set(found)) == sets
        assert error_of(points, found) == pytest.approx(best, abs=1e-9)


def test_points_that_coincide_are_still_given_as_many_groups():
    assert len(set(kmeans(np.zeros((4, 2)), 3))) == 3


def slow_davies_bouldin(means, deviations, groups, q_draws=None):
    """The index by its definition, loop by loop; widths from draws of the clouds if there are any."""
    kinds, centre, width = sorted(set(groups)), {}, {}
    for k in kinds:
        own = [i for i, group in enumerate(groups) if group == k]
        centre[k] = sum(means[i] for i in own) / len(own)
        points = [means[i] + (deviations[i] * q_draws if q_draws is not None else 0) for i in own]
        square = [np.sum((p - centre[k]) ** 2, axis=-1) for p in points]
        width[k] = np.sqrt(np.mean(square))
    worst = [
        max((width[i] + width[j]) / np.linalg.norm(centre[i] - centre[j]) for j in kinds if j != i)
        for i in kinds
    ]
    return sum(worst) / len(kinds)


def test_the_index_is_its_definition():
    draw = np.random.default_rng(0)
    means, groups = draw.normal(size=(7, 3)), (0, 1, 2, 0, 1, 1, 0)
    nothing = np.zeros_like(means)
    exact = davies_bouldin(means, nothing, groups)
    assert exact == pytest.approx(slow_davies_bouldin(means, nothing, groups))
    deviations = draw.uniform(0.1, 1, size=means.shape)
    clouds = draw.normal(size=(200_000, 3))
    known = slow_davies_bouldin(means, deviations, groups, clouds)
    assert davies_bouldin(means, deviations, groups) == pytest.approx(known, rel=0.01)


def test_clouds_keep_lone_agents_from_looking_infinitely_narrow():
    """Two clear groups of three: the index of the means alone parts all but the closest pair."""
    means = np.asarray([[0.0, 0], [0.1, 0], [0.5, 0], [3, 0], [3.3, 0], [3.6, 0]])
    counts, nothing = range(2, 6), np.zeros((6, 2))
    assert best_groups(means, nothing + 0.3, counts) in [(0, 0, 0, 1, 1, 1), (1, 1, 1, 0, 0, 0)]
    assert len(set(best_groups(means, nothing, counts))) == 5


def rand_index(one, other):
    """Adjusted Rand index (Hubert and Arabie 1985), by counting pairs."""
    pairs = list(itertools.combinations(range(len(one)), 2))
    a = np.asarray([one[i] == one[j] for i, j in pairs], float)
    b = np.asarray([other[i] == other[j] for i, j in pairs], float)
    expected = a.sum() * b.sum() / len(pairs)
    return ((a * b).sum() - expected) / ((a.sum() + b.sum()) / 2 - expected)


def groups_found(given):
    env = jt.make("colours", **given)
    encoded = jax.jit(jax.vmap(lambda seed: encode(env, jax.random.key(seed), Settings())))
    points = np.asarray(encoded(jnp.arange(SEEDS)), np.float64)
    return env.colours, [best_groups(*x, range(2, env.spec.n_agents)) for x in points]


@pytest.mark.parametrize(
    "given",
    [{"n": 6, "colours": 2}, pytest.param({"n": 9, "colours": 3}, marks=pytest.mark.slow)],
    ids=["two", "three"],
)
def test_the_colours_are_found_by_every_seed(given):
    colours, found = groups_found(given)
    assert rand_index(colours, colours) == 1
    assert [rand_index(groups, colours) for groups in found] == [1.0] * SEEDS


# --- assignments --------------------------------------------------------------------------------------


def test_agents_of_a_set_have_its_parameters():
    share = sharing((0, 1, 0, 2), 4)
    assert share == (3, (0, 1, 0, 2), False)
    params = init_sets(lambda key: jax.random.normal(key, (2,)), jax.random.key(0), share)
    for agent, own in enumerate((0, 1, 0, 2)):
        np.testing.assert_array_equal(of_agent(params, share, agent), params[own])
    rows = jnp.arange(4.0)
    lifted = over_agents(lambda p, x: p * x, share)(params, rows)
    np.testing.assert_allclose(lifted, params[jnp.asarray([0, 1, 0, 2])] * rows[:, None])
    learned = over_rows(lambda p, m, x: (p * x, m), share)(params, (), rows[None], 1)[0][0]
    np.testing.assert_allclose(learned, lifted)


def test_one_set_and_one_each_are_the_modes():
    assert sharing((0, 0, 0), 3) == sharing("full", 3)
    assert sharing((0, 1, 2), 3) == sharing("none", 3)


def test_initial_logits_of_a_set_are_the_mean_of_its_agents():
    env, share = jt.make("colours", n=3), sharing((0, 1, 0), 3)
    logits = np.asarray([[1.0, 0, 0], [0, 5, 0], [3, 0, 2]], np.float32)
    table = biased(jnp.zeros((2, 3, 3)), logits, "table", env.spec, share)
    np.testing.assert_allclose(table[:, 0], [[2, 0, 1], [0, 5, 0]])


def test_numbers_begin_at_0_in_the_order_of_agents():
    assert numbered((2, 0, 2, 5)) == (0, 1, 0, 2)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((0, 1), ["sharing=(0, 1)", "3", "(0, 0, 1)"]),
        ((0, 2, 2), ["sharing=(0, 2, 2)", "sharing=(0, 1, 1)"]),
        ((-1, 0, 0), ["sharing=(-1, 0, 0)", "sharing=(0, 1, 1)"]),
    ],
)
def test_impossible_assignments_are_refused(given, told):
    with pytest.raises(ValueError, match="sharing=") as error:
        jt.run("ippo", jt.make("colours", n=3), sharing=given)
    assert all(part in str(error.value) for part in told), str(error.value)


def test_two_agents_leave_nothing_to_choose():
    with pytest.raises(ValueError, match="has 2 agents; use sharing='none' or 'full'"):
        jt.run("ippo", "matrix/climbing", sharing="selective")
    with pytest.raises(ValueError, match="sets=4 must lie between 1 and 2"):
        jt.selective("matrix/climbing", sets=4)


def test_the_pure_layer_is_told_where_assignments_come_from():
    with pytest.raises(ValueError, match=r"jaxmarl_tad\.selective"):
        sharing("selective", 4)


def test_the_command_line_reads_assignments():
    line = words.split(["ippo", "colours", "sharing=selective,none,0x1x0x1x0x1"], {})
    found = [program.arguments["sharing"] for program in words.programs(line)]
    assert sorted(map(str, found)) == sorted(["selective", "none", "(0, 1, 0, 1, 0, 1)"])
    assert words.write((0, 1, 0)) == "0x1x0"


# --- runs ---------------------------------------------------------------------------------------------


@functools.cache
def run_once(folder):
    return jt.run("ippo", "colours", sharing="selective", out=folder, **QUICK)


def test_a_run_keeps_its_assignment(tmp_path, monkeypatch):
    run = run_once(tmp_path / "run")
    assert run.config.sharing == numbered(jt.make("colours").colours)
    assert jax.tree.leaves(run.state.params.actor)[0].shape[1] == 2
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["config"]["sharing"] == about["identity"]["config"]["sharing"] == [0, 1, 0, 1, 0, 1]
    kept = run.save(tmp_path / "kept")

    def refuse(*args, **kwargs):
        raise AssertionError("nothing is found anew")

    monkeypatch.setattr(importlib.import_module("jaxmarl_tad.job"), "selective", refuse)
    for folder in (tmp_path / "run", kept):
        for again in (jt.load(folder), jt.resume(folder)):
            assert again.config.sharing == run.config.sharing
            for one, other in zip(
                jax.tree.leaves(again.state), jax.tree.leaves(run.state), strict=True
            ):
                np.testing.assert_array_equal(one, other)
    # Another assignment is another run.
    with pytest.raises(ValueError, match="sharing"):
        jt.run("ippo", "colours", sharing="none", out=tmp_path / "run", **QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ippo", "vdn"])
def test_who_shares_decides_what_colours_pay(method):
    """Alike without names: at most the share of one colour. An assignment: everything."""
    games, fields = "colours", {"seeds": SEEDS, "evaluations": 1, "progress": False}
    alike = jt.run(method, games, sharing="full", **fields).final["return"]
    grouped = jt.run(method, games, sharing=(0, 1, 0, 1, 0, 1), **fields).final["return"]
    assert alike.max() <= 0.5 + 1e-6
    assert (grouped > 1 - 1e-3).sum() >= 15
