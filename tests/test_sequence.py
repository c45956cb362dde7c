"""Sequence models over agents: slow loops, all tokens at once and one at a time, where games end."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_value import Recall

import jaxmarl_tad as jt
from jaxmarl_tad import distributions
from jaxmarl_tad.networks import attention, retention
from jaxmarl_tad.networks.net import draw
from jaxmarl_tad.networks.sequence import (
    choose_in_turn,
    counted,
    decode,
    encode,
    init_decoder,
    init_encoder,
    said,
    seen,
)
from tad_envs import Spec, optimal

O1 = {"compiler_options": {"xla_backend_optimization_level": 1}}
N, A, O, W, HEADS, LAYERS = 4, 3, 5, 8, 2, 2
ENVS, STEPS = 3, 6
DECAY = retention.decays(HEADS, 0.7)
MIXING = {"attention": attention.attention_shapes(W), "retention": retention.retention_shapes(W)}
SPEC = Spec(n_agents=N, obs_dim=O, state_dim=1, horizon=9, n_actions=A)
SEEDS = 16
LAST = {"evaluations": 1, "episodes": 1}  # deterministic games, greedy policies


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def drawn(kind, seed=0):
    """Parameters of one mixing."""
    return draw(jax.random.key(seed), MIXING[kind], 1.0)


@functools.cache
def models(kind):
    """Parameters of encoder and decoder, the last layer as large as the others."""
    sizes = {"width": W, "layers": LAYERS}
    with jax.ensure_compile_time_eval():
        encoder = init_encoder(jax.random.key(0), MIXING[kind], inputs=O + N, **sizes)
        sizes |= {"inputs": 1 + A + N, "outputs": A}
        decoder = init_decoder(jax.random.key(1), MIXING[kind], **sizes)
        decoder["out"]["kernel"] = decoder["out"]["kernel"] * 100
    return encoder, decoder


# --- against slow loops ---------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_attention_is_a_slow_loop():
    query, key, value = numbers(3, N, W)
    mask = np.asarray([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 0, 1]], bool)
    size = W // HEADS
    expected = np.zeros((N, W))
    for h, i in itertools.product(range(HEADS), range(N)):
        part = slice(h * size, (h + 1) * size)
        to = np.flatnonzero(mask[i])
        weight = softmax(np.asarray([query[i, part] @ key[j, part] / np.sqrt(size) for j in to]))
        expected[i, part] = sum(w * value[j, part] for w, j in zip(weight, to, strict=True))
    found = attention.attend(query, key, value, jnp.asarray(mask), HEADS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def slow_retention(params, query, key, counts, first, causal, state):
    """Token after token, S as it is written; one environment ``[T, N, W]``."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    query, key, state = (np.asarray(x, np.float64) for x in (query, key, state))
    size, out = W // HEADS, np.zeros(query.shape)
    for t in range(len(query)):
        state = np.asarray(DECAY)[:, None, None] * np.where(first[t], 0.0, state)
        q_g = query[t] @ p["query_gate"]["kernel"]
        k_v = key[t] @ p["key_value"]["kernel"]

        def add(state, i, k_v=k_v, t=t):
            if not counts[t, i]:
                return state
            k, v = (x.reshape(HEADS, size) for x in np.split(k_v[i], 2))
            return state + k[:, :, None] * v[:, None, :] / np.sqrt(size)

        for i in range(N):
            if causal:
                state = add(state, i)
            elif i == 0:
                for j in range(N):
                    state = add(state, j)
            q, gate = np.split(q_g[i], 2)
            kept = np.stack([q.reshape(HEADS, size)[h] @ state[h] for h in range(HEADS)])
            kept = kept - kept.mean(1, keepdims=True)
            kept = (kept / np.sqrt((kept**2).mean(1, keepdims=True) + 1e-3)).reshape(-1)
            out[t, i] = (gate / (1 + np.exp(-gate)) * kept) @ p["mixed"]["kernel"]
    return out, state


@functools.cache
def recorded():
    """Random tokens, deaths and episode ends; ``S`` before the first step is not 0."""
    rng = np.random.default_rng(3)
    counts = rng.random((STEPS, ENVS, N)) < 0.7
    first = np.zeros((STEPS, ENVS), bool)
    first[0, 1] = first[2, 0] = first[3, 1] = first[4, 1] = first[5, 2] = True
    state = numbers(ENVS, HEADS, W // HEADS, W // HEADS, seed=4)
    return jnp.asarray(counts), jnp.asarray(first), state


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_retention_in_chunks_is_a_slow_loop(chunk, causal):
    counts, first, state = recorded()
    params = drawn("retention")
    query, key = numbers(2, STEPS, ENVS, N, W)
    mix = retention.chunkwise(counts, first, DECAY, causal=causal, chunk=chunk)
    found, after = jax.jit(mix, **O1)(params, state, query, key)
    for e in range(ENVS):
        expected, left = slow_retention(
            params, query[:, e], key[:, e], counts[:, e], first[:, e], causal, state[e]
        )
        np.testing.assert_allclose(found[:, e], expected, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(after[e], left, rtol=1e-4, atol=1e-5)


# --- all tokens at once, and one at a time --------------------------------------------------------


def acting(kind, noise, rows, alive, legal, memory):
    """One step of one environment: actions in turn, and what is retained."""
    encoder, decoder = models(kind)
    family = distributions.head("gaussian", SPEC)
    if kind == "attention":
        among = attention.among(alive, HEADS)
        past, before = (), (attention.empty_cache(LAYERS, N, W),) * 2
        one = lambda counts, i: attention.cached(i, counts, HEADS)  # noqa: E731
    else:
        among = retention.one_step(alive, DECAY)
        past, before = memory[0], jax.tree.map(lambda s: DECAY[:, None, None] * s, memory[1])
        one = lambda counts, i: retention.one_token(counts, HEADS)  # noqa: E731
    h, value, past = encode(encoder, among, past, seen(rows, alive, True))

    def read(memory, token, counts, agent):
        return decode(decoder, one(counts, agent), memory, token, h[agent])

    def choose(noise, outputs, legal):
        action, told = family.decide(noise, outputs, legal, False)
        return action, told | {"outputs": outputs}, jax.nn.one_hot(action, A)

    action, told, after = choose_in_turn(read, before, choose, noise, legal, alive, A, True)
    return action, told, value, (past, after) if kind == "retention" else ()


def learning(kind, rows, action, alive, first, memory, chunk=3):
    """Outputs and values of recorded steps ``[T, E, N, ...]``, in one pass."""
    encoder, decoder = models(kind)
    tokens = said(jax.nn.one_hot(action, A), alive, True)
    if kind == "attention":
        everybody, forced = attention.among(alive, HEADS), attention.causal(counted(alive), HEADS)
        past, before = (), ((), ())
    else:
        in_chunks = functools.partial(retention.chunkwise, chunk=chunk)
        everybody = in_chunks(alive, first, DECAY, causal=False)
        forced = in_chunks(counted(alive), first, DECAY, causal=True)
        past, before = jax.tree.map(lambda s: jnp.moveaxis(s, 0, 1), memory)
    h, value, _ = encode(encoder, everybody, past, seen(rows, alive, True))
    outputs, _ = decode(decoder, forced, before, tokens, h)
    return outputs, value


@functools.cache
def acted(kind):
    """Steps acted one after the other, with resets, deaths and illegal actions."""
    _, first, _ = recorded()
    alive = np.random.default_rng(5).random((STEPS, ENVS, N)) < 0.75
    legal = np.random.default_rng(6).random((STEPS, ENVS, N, A)) < 0.7
    legal[..., 0] |= ~legal.any(-1)
    rows = numbers(STEPS, ENVS, N, O, seed=7)
    noise = np.random.default_rng(8).random((STEPS, ENVS, N)).astype(np.float32)
    size = (ENVS, LAYERS, HEADS, W // HEADS, W // HEADS)
    begun = tuple(0.3 * numbers(*size, seed=s) for s in (9, 10, 11))
    begun = (begun[0], begun[1:]) if kind == "retention" else ()

    @jax.jit
    def collect(memory):
        def step(memory, own):
            first, *given = own
            kept = jax.tree.map(lambda m: jnp.where(first[:, None, None, None, None], 0.0, m), memory)
            act = jax.vmap(functools.partial(acting, kind))
            *told, kept = act(given[0], *given[1:], kept)
            return kept, told

        return jax.lax.scan(
            step, memory, (first, jnp.asarray(noise), rows, *map(jnp.asarray, (alive, legal)))
        )[1]

    return (*map(jnp.asarray, (rows, alive, legal, first)), begun, collect(begun))


def living(one, other, alive, **tolerance):
    one, other, alive = (np.asarray(x) for x in (one, other, alive))
    np.testing.assert_allclose(one[alive], other[alive], **tolerance)


@pytest.mark.parametrize("kind", MIXING)
def test_teacher_forcing_gives_the_log_probabilities_acted_with(kind):
    rows, alive, legal, first, begun, (action, told, value) = acted(kind)
    outputs, learned = jax.jit(functools.partial(learning, kind), **O1)(
        rows, action, alive, first, begun
    )
    log_prob, _ = distributions.head("gaussian", SPEC).judge(outputs, legal, action)
    near = {"rtol": 1e-4, "atol": 1e-4}  # outputs are a hundred times those of first policies
    living(outputs, told["outputs"], alive, **near)
    living(log_prob, told["log_prob"], alive, **near)
    living(learned, value, alive, **near)
    assert np.ptp(told["outputs"][alive]) > 1  # they say something


@pytest.mark.parametrize("kind", MIXING)
def test_nobody_depends_on_successors_or_on_the_dead(kind):
    rows, alive, _, first, begun, (action, *_) = acted(kind)
    run = jax.jit(functools.partial(learning, kind), **O1)
    before, values = run(rows, action, alive, first, begun)
    for i in range(N):
        # What i and its successors do in the last step (and what is done later) is nothing to i.
        changed = np.array(action)
        changed[-1, :, i:] = (changed[-1, :, i:] + 1) % A
        after, same = run(rows, jnp.asarray(changed), alive, first, begun)
        np.testing.assert_array_equal(after[-1, :, : i + 1], before[-1, :, : i + 1])
        np.testing.assert_array_equal(same, values)
        heard = np.asarray(alive[-1, :, i : i + 1] & (i + 1 < N))[:, 0]
        moved = np.abs(after[-1] - before[-1]).max(-1)[:, i + 1 :].sum(1)
        assert (moved[heard] > 1e-4).all()
    ghosts = jnp.where(alive[..., None], rows, 9.0)
    done = jnp.where(alive, action, (action + 1) % A)
    after, same = run(ghosts, done, alive, first, begun)
    living(after, before, alive, rtol=0, atol=0)
    living(same, values, alive, rtol=0, atol=0)


@pytest.mark.parametrize("kind", MIXING)
def test_conditionals_make_one_joint_distribution(kind):
    joint = jnp.asarray(list(itertools.product(range(A), repeat=N)), jnp.int32)[None]
    alive = jnp.ones(joint.shape, bool)
    rows = jnp.broadcast_to(numbers(N, O), (*joint.shape, O))
    size = (joint.shape[1], LAYERS, HEADS, W // HEADS, W // HEADS)
    begun = (jnp.zeros(size), (jnp.zeros(size),) * 2)
    first = jnp.ones(joint.shape[:2], bool)
    outputs, _ = learning(kind, rows, joint, alive, first, begun, chunk=1)
    legal = jnp.ones((*joint.shape, A), bool)
    log_prob, _ = distributions.head("gaussian", SPEC).judge(outputs, legal, joint)
    probability = np.exp(log_prob.sum(-1))
    np.testing.assert_allclose(probability.sum(), 1.0, rtol=1e-5)
    assert probability.max() > 3 * probability.min()


# --- learners -------------------------------------------------------------------------------------


def test_agents_of_mat_dec_decide_alone():
    env = jt.make("mpe/spread")
    method = jt.algorithm("mat_dec")
    learner = method.make(method.resolved(method.settings(envs=2), env.spec), env)
    state, own, other = jax.jit(
        lambda key: (learner.init(key), env.reset(key)[1], env.reset(jax.random.fold_in(key, 1))[1])
    )(jax.random.key(0))
    policy = learner.policy(state, greedy=False)
    act = jax.jit(lambda o: policy.act(jax.random.key(3), policy.start(), o)[2]["log_probs"], **O1)
    alone = act(own)
    for i in range(env.spec.n_agents):
        rows = jnp.where(jnp.arange(env.spec.n_agents)[:, None] == i, own.agents, other.agents)
        changed = act(own._replace(agents=rows))
        np.testing.assert_array_equal(changed[i], alone[i])
        assert (np.delete(changed, i, 0) != np.delete(alone, i, 0)).any()
    assert policy.execution == "decentralised"


ENDS = {"matrix/climbing": (7, 11), "matrix/penalty": (2, 10), "matrix/qtran": (0, 8)}


def ends(method, games=tuple(ENDS), **fields):
    """Shares of seeds that find the optimum, by game."""
    run = jt.run(method, list(games), seeds=SEEDS, **LAST, **fields)
    returns = run.final["return"].reshape(len(games), SEEDS)
    return {g: int(optimal(r, ENDS[g][1]).sum()) for g, r in zip(games, returns, strict=True)}


@pytest.mark.parametrize(
    "method",
    [pytest.param("mat", marks=pytest.mark.slow), pytest.param("sable", marks=pytest.mark.slow)],
)
def test_who_knows_what_came_before_finds_the_optimum(method):
    found = ends(method)
    assert min(found.values()) >= 15, found


@pytest.mark.slow
def test_agents_that_decide_alone_do_not():
    found = ends("mat_dec")
    assert max(found.values()) <= 1, found


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "least", "most"), [("retention", 15, 16), ("none", 0, 0)])
def test_sable_remembers_through_what_it_retains(memory, least, most):
    """What pays was seen steps ago, and without memory nobody can know."""
    run = jt.run(
        "sable", Recall(), memory=memory, seeds=SEEDS, evaluations=1, episodes=64, total_steps=30_000
    )
    found = (run.final["return"] > 0.95).sum()
    assert least <= found <= most, run.final["return"]


def test_misfit_settings_are_refused():
    with pytest.raises(ValueError, match="expected one of: full, full_id"):
        jt.run("mat", "matrix/climbing", sharing="none")
    with pytest.raises(ValueError, match="heads=3 must divide embed=16"):
        jt.run("sable", "matrix/climbing", heads=3)
    with pytest.raises(ValueError, match="chunk=2 must divide steps=5"):
        jt.run("sable", "hallway", steps=5, chunk=2)
