"""HAPPO, HAA2C and HATRPO against PPO, slow loops, explicit Fisher matrices, and where they end."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import learners
from conformance.probes import Probe
from test_actor_critic import adam_in_numpy

import jaxmarl_tad as jt
from experiments import trust_region as experiment
from jaxmarl_tad import distributions
from jaxmarl_tad.algorithms.policy.hatrpo import conjugate_gradients, curvature
from jaxmarl_tad.rollout import keys, rollout
from jaxmarl_tad.team import Turn, order_of_turns, soloists
from tad_envs import Spec

METHODS = ("happo", "haa2c", "hatrpo")
O1 = {"compiler_options": {"xla_backend_optimization_level": 1}}
GAME = "matrix/climbing_3p"
LAST = {"evaluations": 1, "episodes": 1, "progress": False}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# --- one agent ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{}, slow({"memory": "gru", "hidden": (8,)}), slow({"network": "mlp", "hidden": (8,)})],
    ids=lambda fields: "-".join(map(str, fields.values())) or "table",
)
def test_happo_of_one_agent_is_ppo(fields):
    """Whose turn it is makes no difference, M is 1, and parameters of a part do not mix."""
    env = Probe(n_agents=1, both=1.0, delayed=0.5)
    fields = {"envs": 16, "steps": 3, "epochs": 3, "lr": 0.02, "sharing": "none", **fields}
    states = []
    for name in ("mappo", "happo"):
        row = jt.algorithm(name)
        made = row.make(row.resolved(row.settings(**fields), env.spec), env)
        step = jax.jit(made.step, **O1)
        state = jax.jit(made.init, **O1)(jax.random.key(1))
        for i in range(4):
            state, report = step(jax.random.key(i), state, 0.0)
        states.append((*state.params, state.critic_memory, state.scale, report["value_loss"]))
    learners.assert_close(*states, rtol=1e-4, atol=1e-5)


# --- one step of the learner, by hand -------------------------------------------------------------


@functools.cache
def learner(name, game=GAME, **fields):
    """A resolved config, the algorithm, and init and step compiled."""
    row, env = jt.algorithm(name), jt.make(game)
    config = row.resolved(row.settings(**fields), env.spec)
    made = row.make(config, env)
    step = jax.jit(lambda config, *rest: row.make(config, env).step(*rest), **O1)
    return config, made, jax.jit(made.init, **O1), step


def collected(made, state, key):
    """Actions ``[E, N]`` and standardised advantages ``[E]`` of one step, in which V is 0."""
    behaviour = made.policy(state, greedy=False)
    _, seen = rollout(jt.make(GAME), behaviour, key, state.actors, 1)
    reward = np.asarray(seen.reward[0], np.float64)
    return np.asarray(seen.action[0]), (reward - reward.mean()) / (reward.std() + 1e-5)


def log_softmax(x):
    return x - np.log(np.exp(x).sum())


def drawn_logits(state):
    """The state with each agent's table drawn from N(0, 1), and the tables ``[N, A]``."""
    logits = np.random.default_rng(3).normal(size=(3, 3)).astype(np.float32)
    actor = jnp.asarray(logits)[:, None]
    return state._replace(params=state.params._replace(actor=actor)), logits.astype(np.float64)


@pytest.mark.parametrize(
    ("name", "order"), [("happo", "random"), slow("happo", "fixed"), ("haa2c", "random")]
)
def test_turns_equal_a_slow_loop(name, order):
    """Three agents: the last is told by M what the first two have become."""
    fields = {"envs": 24, "epochs": 3, "lr": 0.3, "entropy_coef": 0.05, "max_grad_norm": 1e9}
    config, made, init, step = learner(name, order=order, **fields)
    state, logits = drawn_logits(init(jax.random.key(0)))
    key = jax.random.key(5)
    after, report = step(config, key, state, 0.0)
    action, advantage = collected(made, state, key)

    turns = np.arange(3)
    if order == "random":
        turns = np.asarray(order_of_turns(keys(key, 4)[3], 3, order))
        assert sorted(turns) == [0, 1, 2]
        assert list(turns) != [0, 1, 2]
    m, envs = np.ones(24), 24
    for i in turns:
        old, moments = log_softmax(logits[i]), (0, np.zeros(3), np.zeros(3))
        for _ in range(3):
            log_probs = log_softmax(logits[i])
            p = np.exp(log_probs)
            slope = 0.05 * p * (log_probs - p @ log_probs)  # of minus the entropy
            for e in range(envs):
                ratio, worth = np.exp(log_probs - old)[action[e, i]], m[e] * advantage[e]
                outside = ratio > 1.2 if worth > 0 else ratio < 0.8
                if name == "haa2c" or not outside:
                    slope -= ratio * worth * (np.eye(3)[action[e, i]] - p) / envs
            logits[i], moments = adam_in_numpy(logits[i], slope, moments, 0.3)
        for e in range(envs):
            m[e] *= np.exp(log_softmax(logits[i]) - old)[action[e, i]]
    np.testing.assert_allclose(after.params.actor[:, 0], logits, rtol=1e-3, atol=1e-4)
    assert report["importance"] == pytest.approx(m.mean(), rel=1e-3)
    assert np.abs(m - 1).max() > 0.1


def searched(logits, i, action, worth, delta, damping):
    """HATRPO's turn of agent ``i`` with a dense solve: its new logits, and the size of step taken."""
    old = log_softmax(logits[i])
    p = np.exp(old)
    ratio = lambda x: np.exp(log_softmax(x) - old)[action[:, i]]  # noqa: E731
    slope = np.mean([w * (np.eye(3)[a] - p) for w, a in zip(worth, action[:, i], strict=True)], 0)
    h = np.diag(p) - np.outer(p, p) + damping * np.eye(3)
    x = np.linalg.solve(h, slope)
    full = x * np.sqrt(2 * delta / (x @ h @ x))
    for j in range(10):
        tried = logits[i] + 0.8**j * full
        rise = np.mean(ratio(tried) * worth) - np.mean(worth)
        kl = p @ (old - log_softmax(tried))
        if kl < delta and rise > 0 and rise > 0.5 * 0.8**j * (slope @ full):
            return tried, j
    return logits[i], None


@pytest.mark.parametrize("delta", [0.01, 1.0])
def test_trust_region_steps_equal_dense_solves(delta):
    config, made, init, step = learner("hatrpo", envs=24)
    config = dataclasses.replace(config, max_kl=delta)
    state, logits = drawn_logits(init(jax.random.key(0)))
    sizes = []
    for seed in range(4):
        key = jax.random.key(seed)
        own = logits.copy()
        after, report = step(config, key, state, 0.0)
        action, advantage = collected(made, state, key)
        m, kls = np.ones(24), []
        for i in np.asarray(order_of_turns(keys(key, 3)[2], 3, "random")):
            old = log_softmax(own[i])
            own[i], size = searched(own, i, action, m * advantage, delta, 0.1)
            sizes.append(size)
            kls.append(np.exp(old) @ (old - log_softmax(own[i])))
            m *= np.exp(log_softmax(own[i]) - old)[action[:, i]]
        np.testing.assert_allclose(after.params.actor[:, 0], own, rtol=1e-3, atol=2e-3)
        assert report["importance"] == pytest.approx(m.mean(), rel=1e-3)
        assert report["largest_kl"] == pytest.approx(max(kls), rel=2e-2)
    assert set(sizes) - {0, None} or delta < 1  # large steps are shortened, or given up


def test_the_ratio_of_what_a_dead_agent_did_is_one():
    from jaxmarl_tad.team import moved

    alive = jnp.asarray([True, False, True])
    found = moved(jnp.log(jnp.asarray([0.5, 0.9, 0.1])), jnp.log(jnp.asarray([0.25, 0.1, 0.2])), alive)
    np.testing.assert_allclose(found, [2.0, 1.0, 0.5], rtol=1e-6)


def test_orders_are_permutations_and_all_occur():
    many = jax.vmap(lambda key: order_of_turns(key, 3, "random"))
    found = np.asarray(jax.jit(many)(jax.random.split(jax.random.key(0), 600)))
    seen, counts = np.unique(found, axis=0, return_counts=True)
    assert [tuple(row) for row in seen] == list(itertools.permutations(range(3)))
    assert counts.min() > 60
    assert order_of_turns(jax.random.key(0), 3, "fixed").tolist() == [0, 1, 2]


# --- the trust region -----------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.3, 0.01])
def test_no_accepted_step_leaves_the_trust_region(delta):
    """KL(old || new) from the tables before and after, in float64; who is not accepted stays put."""
    config, _, init, step = learner("hatrpo", envs=24)
    config = dataclasses.replace(config, max_kl=delta, accept=0.9)
    state, shares = init(jax.random.key(1)), []
    for i in range(30):
        before = np.asarray(state.params.actor, np.float64)[:, 0]
        state, report = step(config, jax.random.key(i), state, 0.0)
        after = np.asarray(state.params.actor, np.float64)[:, 0]
        kls = [
            np.exp(log_softmax(x)) @ (log_softmax(x) - log_softmax(y))
            for x, y in zip(before, after, strict=True)
        ]
        assert max(kls) <= delta * (1 + 1e-3)
        assert report["largest_kl"] == pytest.approx(max(kls), rel=1e-2, abs=1e-6)
        moved = (before != after).any(1)
        assert report["accepted"] == pytest.approx(moved.mean())
        shares.append(moved.mean())
    assert 0 < np.mean(shares) < 1


@pytest.mark.slow
def test_no_accepted_step_of_a_gaussian_leaves_the_trust_region():
    config, _, init, step = learner("hatrpo", "matrix/product", envs=64)
    state = init(jax.random.key(1))
    for i in range(30):
        before = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params.actor)
        state, report = step(config, jax.random.key(i), state, 0.0)
        after = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params.actor)
        old, new = (0.5 / (1 + np.exp(-p["spread"][:, 0])) for p in (before, after))
        apart = (before["mean"] - after["mean"])[:, 0, 0]
        kl = np.log(new / old) + (old**2 + apart**2) / (2 * new**2) - 0.5
        assert kl.max() <= 0.01 * (1 + 1e-3)
        assert report["largest_kl"] == pytest.approx(kl.max(), rel=1e-2, abs=1e-6)


SEEN = Spec(n_agents=2, obs_dim=3, state_dim=3, horizon=4, n_actions=3)
PUSHED = SEEN._replace(n_actions=0, action_dim=3, discrete=False, bounds=(-1.0, 1.0))


@functools.cache
def solo(spec):
    """A small policy, steps of an agent that is dead at times, its Fisher matrix, a slope."""
    row = jt.algorithm("hatrpo")
    settings = row.settings(network="mlp", hidden=(4,), activation="tanh", layer_norm=False)
    team = soloists(row.resolved(settings, spec), spec)
    rng = np.random.default_rng(0)
    legal = rng.random((5, 4, 3)) < 0.8
    legal[..., 0] = True
    alive, nothing = rng.random((5, 4)) < 0.8, jnp.zeros((5, 4))
    views = jnp.asarray(rng.normal(size=(5, 4, 3)), jnp.float32)
    first = jnp.zeros((5, 4), bool)
    turn = Turn(views, jnp.asarray(legal), jnp.asarray(alive), nothing, nothing, nothing, first)
    own = team.vectors(team.init(jax.random.key(0)))[0]
    own = own + jnp.asarray(rng.normal(size=own.shape) * 0.3, jnp.float32)
    outputs = lambda vector: team.outputs(vector, turn, ())  # noqa: E731

    if spec.discrete:
        logs = lambda vector: distributions.log_probabilities(outputs(vector), turn.legal)  # noqa: E731
        weight = np.exp(np.asarray(logs(own), np.float64)) * legal
        score = np.asarray(jax.jit(jax.jacrev(logs))(own), np.float64) * legal[..., None]
    else:
        both = lambda vector: jnp.stack(distributions.mean_and_deviation(outputs(vector)))  # noqa: E731
        deviation = np.asarray(both(own)[1], np.float64)
        weight = np.stack([1 / deviation**2, 2 / deviation**2]) * legal
        score = np.asarray(jax.jit(jax.jacrev(both))(own), np.float64)
    weight = weight * alive[..., None] / alive.sum()
    score = score.reshape(-1, own.size)
    fisher = (weight.reshape(-1, 1) * score).T @ score
    divergence = jax.jit(lambda vector: team.divergence(outputs(own), outputs(vector), turn))
    return own, divergence, fisher, rng.normal(size=own.shape).astype(np.float32)


@pytest.mark.parametrize("spec", [SEEN, PUSHED], ids=["categorical", "gaussian"])
def test_curvature_is_the_fisher_information(spec):
    """Against E[∇log π ∇log πᵀ] over all actions, and against differences of gradients."""
    own, divergence, fisher, _ = solo(spec)
    product = jax.jit(curvature(divergence, own, 0.1))
    found = jax.vmap(product)(jnp.eye(own.size))
    np.testing.assert_allclose(found, fisher + 0.1 * np.eye(own.size), rtol=1e-3, atol=2e-4)
    gradient = jax.jit(jax.grad(divergence))
    np.testing.assert_allclose(gradient(own), np.zeros(own.size), atol=1e-5)
    for v in np.eye(own.size, dtype=np.float32)[::5]:
        slow = (gradient(own + 0.01 * v) - gradient(own - 0.01 * v)) / 0.02
        np.testing.assert_allclose(product(v) - 0.1 * v, slow, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("spec", [SEEN, PUSHED], ids=["categorical", "gaussian"])
def test_conjugate_gradients_solve(spec):
    own, divergence, fisher, slope = solo(spec)
    dense = fisher + 0.1 * np.eye(own.size)
    exact = np.linalg.solve(dense, slope)
    for steps, tolerance in ((10, 0.05), (40, 1e-5)):
        solve = functools.partial(conjugate_gradients, curvature(divergence, own, 0.1), steps=steps)
        x, left = jax.jit(solve)(jnp.asarray(slope))
        error = x - exact  # in the metric in which every step comes nearer
        assert error @ dense @ error < tolerance * (exact @ dense @ exact)
        np.testing.assert_allclose(left, slope - dense @ x, atol=0.02)


def test_conjugate_gradients_leave_a_slope_of_zero_alone():
    x, left = conjugate_gradients(lambda v: 2 * v, jnp.zeros(3), 10)
    np.testing.assert_array_equal(x, np.zeros(3))
    np.testing.assert_array_equal(left, np.zeros(3))


def test_divergences_of_heads_are_closed_forms():
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 50, 3))
    legal = rng.random((50, 3)) < 0.7
    legal[:, 0] = True
    found = distributions.head("gaussian", SEEN).divergence(*map(jnp.asarray, (old, new, legal)))
    p, q = (np.where(legal, np.exp(x), 0) for x in (old, new))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    expected = np.where(legal, p * np.log(np.where(legal, p / np.where(legal, q, 1), 1)), 0).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    def normal(old, new):
        (m, s), (k, t) = ((x[:, :3], 0.5 / (1 + np.exp(-x[:, 3:]))) for x in (old, new))
        return np.where(legal, np.log(t / s) + (s**2 + (m - k) ** 2) / (2 * t**2) - 0.5, 0).sum(1)

    old, step = rng.normal(size=(2, 50, 6))
    for size in (1.0, 0.02):  # the second is as far as a trust region of 1e-3 or so reaches
        new = (old + size * step).astype(np.float32)
        kept = old.astype(np.float32)
        for family in ("gaussian", "tanh_gaussian"):
            head = distributions.head(family, PUSHED)
            found = head.divergence(jnp.asarray(kept), jnp.asarray(new), jnp.asarray(legal))
            expected = normal(kept.astype(np.float64), new.astype(np.float64))
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)


# --- r = a₁ a₂, exactly ---------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.005, 0.01, 0.05, 0.3])
def test_only_sequential_trust_region_steps_improve(delta):
    """η = σ √(2δ) from (-¼, ¼). The gradient of each mean is the other mean."""
    size = experiment.SIGMA * np.sqrt(2 * delta)
    assert experiment.exact(size, sequential=False).max() <= 1e-12
    path = experiment.exact(size, sequential=True)
    assert np.diff(path).min() >= 0
    assert path[-1] == 4


def test_the_importance_of_moves_tells_the_second_agent_the_new_mean_of_the_first():
    """By quadrature over the old policies: E[M r ∇log π₂] is the new μ₁, and without M the old."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    noise = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    weight = np.outer(weights, weights).reshape(-1) / weights.sum() ** 2 * len(noise)
    old, sigma = np.array(experiment.START), experiment.SIGMA
    action = jnp.asarray(old + sigma * noise)
    slope = lambda m: experiment.weighted_slope(action, weight * m, old, sigma, 1)  # noqa: E731
    assert float(slope(1.0)) == pytest.approx(old[0], abs=1e-4)
    for new in (-0.2, 0.0, 0.3):
        m = experiment.density_ratio(action[:, 0], new, old[0], sigma)
        assert float(slope(m)) == pytest.approx(new, abs=1e-3)


# --- where they end -------------------------------------------------------------------------------

GAMES = ("matrix/climbing", "matrix/penalty", "matrix/qtran")


@functools.cache
def ends(method):
    found = jt.run(method, list(GAMES), seeds=16, **LAST).final["return"]
    return np.round(found.reshape(len(GAMES), 16), 3)


@pytest.mark.parametrize("method", [slow("happo"), slow("haa2c")])
def test_turns_do_not_leave_the_local_optima(method):
    """Each agent improves given the others: nobody leaves an equilibrium alone, whoever moves first."""
    found = (ends(method) == np.asarray([7, 2, 0])[:, None]).sum(1)
    assert (found >= 14).all(), ends(method)


@pytest.mark.slow
def test_trust_regions_do_not_leave_the_local_optima():
    """On climbing some stay at 6 on the way to 7: a batch no longer holds the action that leads on."""
    climbing, penalty, qtran = ends("hatrpo")
    assert set(climbing) <= {6.0, 7.0}, climbing
    assert (penalty == 2).sum() >= 15, penalty
    assert (qtran == 0).sum() >= 11, qtran
    assert set(qtran) <= {0.0, 8.0}, qtran


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_sharing_parameters_costs_what_the_theorem_says(method):
    """2 agents of 2, or 4: the best common policy earns 2 / 2ⁿ, and separate ones earn 1."""
    for n in (2, 4):
        game, each = f"matrix/hatrpo/n={n}", {}
        for mode in ("full", "none"):
            run = jt.run(method, game, seeds=16, sharing=mode, **LAST)
            each[mode] = run.final["return"]
            if mode == "full":
                assert (each[mode] == 0).all()  # greedily, all do the same
                p = np.asarray(jax.nn.softmax(run.state.params.actor, -1))[:, 0, 0]
                value = 2 * p.prod(-1) ** (n // 2)
                assert value.max() <= 2 / 2**n + 1e-6
                assert value.mean() > 0.8 * 2 / 2**n
        assert (each["none"] == 1).sum() >= 15, each


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_sampled_gradients_leave_the_saddle(method):
    run = jt.run(method, "matrix/product", seeds=16, **LAST)
    assert run.final["return"].min() > 3.99


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fields", [{"network": "mlp"}, {"memory": "gru"}], ids=["mlp", "gru"])
def test_networks_end_where_tables_do(method, fields):
    given = {"hidden": (32,), "lr": 2e-3, "total_steps": 19_200} | fields
    run = jt.run(method, "matrix/penalty", seeds=8, **LAST, **given)
    assert (np.round(run.final["return"], 3) == 2).sum() >= 7, run.final["return"]


@pytest.mark.parametrize(
    ("method", "fields", "sentence"),
    [
        ("happo", {"objective": "plain"}, "happo means objective='clipped'"),
        ("haa2c", {"minibatches": 3}, "minibatches=3 must divide"),
        ("hatrpo", {"max_kl": -1.0}, "max_kl=-1.0 must lie in"),
        ("hatrpo", {"tries": 0}, "sizes must be positive"),
    ],
)
def test_impossible_settings_are_refused(method, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        jt.run(method, "matrix/tad", **fields)
