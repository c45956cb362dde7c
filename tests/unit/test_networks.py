"""Networks against NumPy in float64, stepwise acting, and the statistics of their initial values."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarl_tad.networks import joint, mixers, net, prefix
from jaxmarl_tad.networks.tables import biased, by_agent
from jaxmarl_tad.sharing import sharing
from tad_envs import Spec

I, H, OUT = 5, 8, 3
T, E = 6, 4


def layer_norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * p["scale"] + p["bias"]


def dense(x, p):
    kernel = p["kernel"] if "kernel" in p else p["weight"].T
    return x @ kernel + p.get("bias", 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(h, x, p):
    """Cho et al. 2014, the variant whose reset gate multiplies W h + b."""
    reset = sigmoid(dense(x, p["ir"]) + dense(h, p["hr"]))
    update = sigmoid(dense(x, p["iz"]) + dense(h, p["hz"]))
    new = np.tanh(dense(x, p["in"]) + reset * dense(h, p["hn"]))
    return (1 - update) * new + update * h


def forward(params, h, x):
    """Layer norm; twice linear, ReLU, layer norm; maybe a GRU and layer norm; linear."""
    p = params["params"]
    x = layer_norm(x, p["LayerNorm_0"])
    for i in range(2):
        x = layer_norm(np.maximum(dense(x, p[f"Dense_{i}"]), 0), p[f"LayerNorm_{i + 1}"])
    if "GRUCell_0" in p:
        h = gru(h, x, p["GRUCell_0"])
        x = layer_norm(h, p["LayerNorm_3"])
    return dense(x, p["out"]), h


def perturbed(params, seed=0):
    """Parameters away from their initial zeros and ones, so that every one of them matters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32), params)


@pytest.fixture(scope="module", params=["none", "gru"])
def torso(request):
    made = net.network("mlp", inputs=I, outputs=OUT, hidden=(H, H), memory=request.param)
    return made, perturbed(jax.jit(made.init)(jax.random.key(0))), request.param == "gru"


def inputs():
    rng = np.random.default_rng(1)
    return rng.normal(size=(T, E, I)).astype(np.float32), rng.random((T, E)) < 0.4


def test_forward_equals_numpy(torso):
    network, params, recurrent = torso
    exact = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    x = inputs()[0][:, 0]
    apply = jax.jit(network.apply)
    memory, expected_memory = network.start(), np.zeros(H)
    for row in x:
        output, memory = apply(params, memory, row)
        expected, expected_memory = forward(exact, expected_memory, row.astype(np.float64))
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    if recurrent:
        np.testing.assert_allclose(memory, expected_memory, rtol=1e-4, atol=1e-5)
    else:
        assert memory == ()


def test_unrolled_with_resets_equals_step_by_step(torso):
    network, params, recurrent = torso
    xs, first = map(jnp.asarray, inputs())
    begin = jnp.asarray(np.random.default_rng(2).normal(size=(E, H)), jnp.float32)
    begin = begin if recurrent else ()
    apply = functools.partial(network.apply, params)
    unroll = jax.jit(lambda memory: net.unroll(apply, network.start(), memory, xs, first))
    outputs, memories = unroll(begin)
    one = jax.jit(network.apply)
    for e in range(E):
        memory = begin[e] if recurrent else ()
        for t in range(T):
            memory = network.start() if first[t, e] else memory
            output, memory = one(params, memory, xs[t, e])
            np.testing.assert_allclose(outputs[t, e], output, rtol=1e-5, atol=1e-6)
            if recurrent:
                np.testing.assert_allclose(memories[t, e], memory, rtol=1e-5, atol=1e-6)


def test_a_reset_cuts_the_past_off():
    made = net.network("mlp", inputs=I, outputs=OUT, hidden=(H, H), memory="gru")
    params = perturbed(jax.jit(made.init)(jax.random.key(0)))
    xs, _ = inputs()
    first = jnp.arange(T)[:, None] == jnp.array([3, 3, 3, T])  # the last environment is not reset
    apply = functools.partial(made.apply, params)
    unroll = jax.jit(lambda xs: net.unroll(apply, made.start(), jnp.zeros((E, H)), xs, first)[0])
    changed = xs + (np.arange(T) < 3)[:, None, None].astype(np.float32)
    differs = np.any(np.asarray(unroll(xs)) != np.asarray(unroll(changed)), axis=-1)
    np.testing.assert_array_equal(differs, (np.arange(T) < 3)[:, None] | (np.arange(E) == 3))


def test_table_reads_its_row():
    made = net.network("table", inputs=7, outputs=OUT)
    params = made.init(jax.random.key(0))
    assert params.shape == (7, OUT)
    for row in range(7):
        np.testing.assert_array_equal(made.apply(params, (), jnp.int32(row))[0], params[row])


# Initial values


def kernels(params):
    """Path and value of every parameter."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return [("/".join(part.key for part in path), np.asarray(p)) for path, p in flat]


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_initial_values_have_the_stated_scales(memory):
    # Variance 2 / fan-in for hidden kernels (He et al. 2015) and gain² / fan-in for the output; biases
    # 0, scales 1. The smallest kernel has 8 · 4 · 3200 numbers: its estimated standard deviation is
    # within 1 / √(2 · 10⁵) = 0.2 %, its mean within 0.3 % of it; bounds are 5 of those.
    gain, width, members = 0.01, 16, 1600
    made = net.network("mlp", inputs=4, outputs=4, hidden=(width, width), memory=memory, gain=gain)
    params = jax.jit(jax.vmap(made.init))(jax.random.split(jax.random.key(0), members))
    checked = 0
    for name, value in kernels(params):
        if name.endswith("bias"):
            np.testing.assert_array_equal(value, 0)
        elif name.endswith("scale"):
            np.testing.assert_array_equal(value, 1)
        else:
            fan_in = value.shape[-1 if name.endswith("weight") else -2]
            expected = (gain if "/out/" in name else math.sqrt(2)) / math.sqrt(fan_in)
            assert value.std() == pytest.approx(expected, rel=0.012), name
            assert abs(value.mean()) < 0.016 * expected, name
            checked += 1
    assert checked == (3 if memory == "none" else 9)


def test_initial_kernels_are_independent_of_one_another_and_of_other_seeds():
    made = net.network("mlp", inputs=16, outputs=16, hidden=(16, 16), gain=1.0)
    params = jax.jit(jax.vmap(made.init))(jax.random.split(jax.random.key(0), 2))
    weights = [p for name, p in kernels(params) if name.endswith(("kernel", "weight"))]
    flat = [row for p in weights for row in p.reshape(2, -1)]
    # 256 numbers each: correlations of independent ones are within 5 / √256.
    correlations = np.corrcoef(np.stack(flat)) - np.eye(len(flat))
    assert np.abs(correlations).max() < 5 / 16


def test_embeddings_have_variance_one():
    joint = prefix.head("mlp", "sum", inputs=4, outputs=3, agents=10, actions=10, identity=True)
    embedding = np.asarray(jax.jit(joint.init)(jax.random.key(0))["params"]["embed"]["embedding"])
    assert embedding.shape == (100, 64)
    assert embedding.std() == pytest.approx(1, rel=5 / math.sqrt(2 * 6400))


def test_table_of_normal_numbers_times_the_gain():
    made = net.network("table", inputs=1000, outputs=10, gain=0.01)
    values = np.asarray(made.init(jax.random.key(0)))
    assert values.std() == pytest.approx(0.01, rel=5 / math.sqrt(2 * 10_000))


# The programs that make them


def primitives(jaxpr):
    """Names of all primitives of a jaxpr and of the jaxprs inside its equations."""
    names = []
    for equation in jaxpr.eqns:
        names.append(equation.primitive.name)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    names += primitives(inner)
    return names


def of_init(init):
    return primitives(jax.make_jaxpr(jax.vmap(init))(jax.random.split(jax.random.key(0), 3)).jaxpr)


HEAD = {"inputs": I, "outputs": OUT, "agents": 3, "actions": 3, "identity": True}
INITS = {
    "table": lambda: net.network("table", inputs=I, outputs=OUT).init,
    "mlp": lambda: net.network("mlp", inputs=I, outputs=OUT).init,
    "gru": lambda: net.network("mlp", inputs=I, outputs=OUT, memory="gru").init,
    "prefix table": lambda: prefix.head("table", "sum", **HEAD).init,
    "prefix sum": lambda: prefix.head("mlp", "sum", **HEAD).init,
    "prefix attention": lambda: prefix.head("mlp", "attention", **HEAD).init,
    "qmix": lambda: mixers.mixer("qmix", "mlp", spec()).init,
    "qplex": lambda: mixers.mixer("qplex", "mlp", spec()).init,
    "joint": lambda: joint.joint_value("mlp", spec(), features=2, hidden=(8,)).init,
}


def test_the_search_for_qr_finds_one():
    orthogonal = jax.nn.initializers.orthogonal()
    assert any(
        "qr" in name or "householder" in name for name in of_init(lambda k: orthogonal(k, (4, 4)))
    )
    cell = nn.GRUCell(4)
    by_default = of_init(lambda k: cell.init(k, jnp.zeros(4), jnp.zeros(4)))
    assert any("qr" in name or "householder" in name for name in by_default)


@pytest.mark.parametrize("name", INITS)
def test_no_orthogonal_matrix_and_one_draw(name):
    names = of_init(INITS[name]())
    assert not any("qr" in p or "householder" in p for p in names)
    assert names.count("random_bits") == 1


# What networks are fed


def spec(**changes):
    return Spec(
        **{"n_agents": 3, "obs_dim": 4, "state_dim": 4, "horizon": 1, "n_actions": 2, "one_hot": True}
        | changes
    )


@pytest.mark.parametrize("identity", [False, True])
def test_tables_are_fed_the_index_of_agent_and_observation(identity):
    view, rows = net.agent_inputs("table", spec(), identity)
    seen = [[int(view(jnp.eye(4)[o], jnp.int32(i))) for o in range(4)] for i in range(3)]
    assert rows == (12 if identity else 4)
    assert seen == [[4 * i * identity + o for o in range(4)] for i in range(3)]


@pytest.mark.parametrize("identity", [False, True])
def test_networks_are_fed_the_row_and_who_reads_it(identity):
    view, size = net.agent_inputs("mlp", spec(), identity)
    row = jnp.arange(4.0)
    expected = [0, 1, 2, 3, 0, 0, 1] if identity else [0, 1, 2, 3]
    np.testing.assert_array_equal(view(row, jnp.int32(2)), expected)
    assert size == len(expected)


def test_tables_are_the_default_of_finite_games_without_memory():
    assert net.resolve_kind("auto", "none", spec(), 12) == "table"
    assert net.resolve_kind("auto", "gru", spec(), 12) == "mlp"
    assert net.resolve_kind("auto", "none", spec(one_hot=False), 12) == "mlp"
    assert net.resolve_kind("auto", "none", spec(), net.LARGEST_TABLE + 1) == "mlp"


@pytest.mark.parametrize(
    ("memory", "changes", "rows", "word"),
    [
        ("none", {"one_hot": False}, 12, "one-hot"),
        ("gru", {}, 12, "memory"),
        ("none", {}, net.LARGEST_TABLE + 1, "rows"),
    ],
)
def test_tables_that_cannot_be_are_refused(memory, changes, rows, word):
    with pytest.raises(ValueError, match=f"{word}.*use network='mlp'"):
        net.resolve_kind("table", memory, spec(**changes), rows)


@pytest.mark.parametrize("mode", ["full", "full_id", "none"])
def test_initial_logits_are_those_of_each_agent(mode):
    share = sharing(mode, 3)
    rows = 4 * (3 if share.identity else 1)
    table = jax.random.normal(jax.random.key(0), (share.sets, rows, 2))
    bias = np.float32([[1, 2], [3, 4], [5, 9]])
    move = jax.jit(lambda t, b: by_agent(biased(t, b, "table", spec(), share), share, 3))
    moved, unmoved = move(table, bias), move(table, 0 * bias)
    np.testing.assert_array_equal(unmoved, by_agent(table, share, 3))
    expected = np.broadcast_to(bias.mean(0), (3, 2)) if mode == "full" else bias
    added = np.asarray(moved) - np.asarray(unmoved)
    np.testing.assert_allclose(added, np.broadcast_to(expected[:, None], (3, 4, 2)), atol=1e-6)
