"""Sharing equals explicit loops over agents, and an agent's output depends on its own row alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarl_tad.sharing import init_sets, of_agent, over_agents, sharing

N, I, H = 4, 3, 2
MODES = ["full", "full_id", "none"]
SETS = {"full": 1, "full_id": 1, "none": N}


def layer(params, x, scale):
    return {"out": jnp.tanh(params["w"] @ x + params["b"]) * scale}


def init(key):
    return {"w": jax.random.normal(key, (H, I)), "b": jax.random.uniform(key, (H,))}


def case(mode):
    rng = np.random.default_rng(0)
    share = sharing(mode, N)
    params = jax.jit(init_sets, static_argnums=(0, 2))(init, jax.random.key(1), share)
    x = jnp.asarray(rng.normal(size=(N, I)), jnp.float32)
    scale = jnp.asarray(rng.normal(size=N), jnp.float32)
    return share, params, x, scale


@pytest.mark.parametrize("mode", MODES)
def test_assignment(mode):
    share = sharing(mode, N)
    assert share.sets == SETS[mode]
    assert share.assignment == ((0, 1, 2, 3) if mode == "none" else (0, 0, 0, 0))
    assert share.identity == (mode == "full_id")


@pytest.mark.parametrize("mode", MODES)
def test_equals_a_loop_over_agents(mode):
    share, params, x, scale = case(mode)
    lifted = jax.jit(over_agents(layer, share))(params, x, scale)["out"]
    w, b = (np.asarray(params[name], np.float64) for name in ("w", "b"))
    for i in range(N):
        k = i if mode == "none" else 0
        expected = np.tanh(w[k] @ np.asarray(x[i], np.float64) + b[k]) * float(scale[i])
        np.testing.assert_allclose(lifted[i], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_an_agent_depends_on_its_own_row_alone(mode):
    share, params, x, scale = case(mode)
    jacobian = jax.jit(jax.jacobian(lambda x: over_agents(layer, share)(params, x, scale)["out"]))(x)
    others = ~np.eye(N, dtype=bool)[:, None, :, None] & np.ones(jacobian.shape, bool)
    np.testing.assert_array_equal(np.asarray(jacobian)[others], 0)
    assert np.all(np.asarray(jacobian)[~others] != 0)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_of_shared_parameters_is_the_sum_over_agents(mode):
    share, params, x, scale = case(mode)

    def total(params):
        return over_agents(layer, share)(params, x, scale)["out"].sum()

    def own(params, i):
        return layer(params, x[i], scale[i])["out"].sum()

    gradient = jax.jit(jax.grad(total))(params)
    slope = jax.jit(jax.grad(own))
    by_agent = [slope(of_agent(params, share, i), i) for i in range(N)]
    for name, value in gradient.items():
        each = np.stack([g[name] for g in by_agent])
        expected = each if mode == "none" else each.sum(0, keepdims=True)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_parameters_of_one_agent_also_by_a_traced_index(mode):
    share, params, _, _ = case(mode)
    traced = jax.jit(lambda i: of_agent(params, share, i)["w"])
    for i in range(N):
        expected = params["w"][i if mode == "none" else 0]
        np.testing.assert_array_equal(of_agent(params, share, i)["w"], expected)
        np.testing.assert_array_equal(traced(i), expected)


def test_sets_start_differently():
    weights = np.asarray(case("none")[1]["w"]).reshape(N, -1)
    assert len(np.unique(weights, axis=0)) == N


def test_renumbering_agents_renumbers_outputs_where_everything_is_shared():
    share, params, x, scale = case("full")
    order = np.array([2, 0, 3, 1])
    lifted = jax.jit(over_agents(layer, share))
    there = lifted(params, x[order], scale[order])["out"]
    np.testing.assert_array_equal(there, lifted(params, x, scale)["out"][order])


def test_parameters_of_other_agents_have_no_influence_without_sharing():
    share, params, x, scale = case("none")
    changed = jax.tree.map(lambda p: p.at[2].add(1.0), params)
    lifted = jax.jit(over_agents(layer, share))
    before, after = (lifted(p, x, scale)["out"] for p in (params, changed))
    differs = np.any(np.asarray(before) != np.asarray(after), axis=-1)
    np.testing.assert_array_equal(differs, np.arange(N) == 2)
