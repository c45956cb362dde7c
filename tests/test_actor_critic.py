"""Actor-critics against slow loops, brute force and the exact policy gradient, and where they end."""

import dataclasses
import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_value import Recall

import jaxmarl_tad as jt
from jaxmarl_tad import distributions
from jaxmarl_tad.algorithms.policy import coma, pareto_ac
from jaxmarl_tad.rollout import rollout
from jaxmarl_tad.targets import n_step_returns
from jaxmarl_tad.team import mixed
from tad_envs import finite

METHODS = ("ia2c", "maa2c", "ippo_epymarl", "mappo_epymarl", "coma", "pareto_ac")
PAYOFF = np.asarray([[11.0, -30.0, 0.0], [-30.0, 7.0, 0.0], [0.0, 6.0, 5.0]])
O1 = {"compiler_options": {"xla_backend_optimization_level": 1}}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# --- targets --------------------------------------------------------------------------------------


def slow_n_step(reward, next_value, terminated, truncated, gamma, n):
    """One sum per step, term by term."""
    steps = len(reward)
    out = np.zeros(steps)
    for t in range(steps):
        for k in range(n):
            at = t + k
            out[t] += gamma**k * reward[at]
            if terminated[at]:
                break
            if truncated[at] or at == steps - 1 or k == n - 1:
                out[t] += gamma ** (k + 1) * next_value[at]
                break
    return out


@functools.cache
def compiled_n_step(n):
    return jax.jit(functools.partial(n_step_returns, steps=n), **O1)


@hypothesis.given(n=st.sampled_from([1, 2, 5, 9]), seed=st.integers(0, 10_000))
@hypothesis.settings(max_examples=40)
def test_n_step_returns_equal_a_slow_loop(n, seed):
    rng = np.random.default_rng(seed)
    reward, next_value = rng.normal(size=(2, 7))
    kind = rng.choice(4, size=7)  # 0: terminated, 1: truncated
    terminated, truncated = kind == 0, kind == 1
    found = compiled_n_step(n)(reward, next_value, terminated, truncated, 0.9)
    expected = slow_n_step(reward, next_value, terminated, truncated, 0.9, n)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_one_reward_serves_several_values():
    rng = np.random.default_rng(0)
    reward, next_value = rng.normal(size=(6, 2)), rng.normal(size=(6, 2, 3))
    terminated, truncated = rng.random((2, 6, 2)) < 0.25
    truncated &= ~terminated
    found = compiled_n_step(3)(reward, next_value, terminated, truncated, 0.8)
    for e, i in itertools.product(range(2), range(3)):
        own = (reward[:, e], next_value[:, e, i], terminated[:, e], truncated[:, e])
        np.testing.assert_allclose(found[:, e, i], slow_n_step(*own, 0.8, 3), rtol=1e-5, atol=1e-5)


# --- the pieces -----------------------------------------------------------------------------------

ROWS = st.integers(0, 10_000)


@hypothesis.given(seed=ROWS)
@hypothesis.settings(max_examples=20)
def test_the_counterfactual_advantage_of_a_policy_is_zero(seed):
    """Σ_a π(a) A(a) = 0, whatever Q is and whichever actions are legal."""
    rng = np.random.default_rng(seed)
    legal = jnp.asarray(rng.random((5, 4)) < 0.7).at[:, 0].set(True)
    log_probs = distributions.log_probabilities(jnp.asarray(rng.normal(size=(5, 4)) * 3), legal)
    q = jnp.asarray(rng.normal(size=(5, 4)) * 10)
    advantages = [
        coma.counterfactual_advantage(q, log_probs, jnp.full(5, a)) for a in range(4)
    ]  # one per action
    mean = jnp.sum(jnp.exp(log_probs) * jnp.stack(advantages, -1), -1)
    np.testing.assert_allclose(mean, np.zeros(5), atol=1e-5)


def value_of(logits):
    """The exact return of independent softmax policies, ``logits [2, 3]``."""
    one, two = jax.nn.softmax(logits, -1)
    return one @ jnp.asarray(PAYOFF) @ two


def test_the_expected_coma_gradient_is_the_policy_gradient():
    """Over all joint actions, with Q the payoff."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)))
    log_probs = jax.nn.log_softmax(logits)
    expected = jnp.zeros((2, 3))
    for u in itertools.product(range(3), repeat=2):
        probability = jnp.exp(log_probs[0, u[0]] + log_probs[1, u[1]])
        q = jnp.stack([PAYOFF[:, u[1]], PAYOFF[u[0], :]])  # [agent, own action]
        advantage = coma.counterfactual_advantage(q, log_probs, jnp.asarray(u))
        score = jax.nn.one_hot(jnp.asarray(u), 3) - jnp.exp(log_probs)  # ∇ log π_i(u_i)
        expected += probability * advantage[:, None] * score
    np.testing.assert_allclose(expected, jax.grad(value_of)(logits), rtol=1e-4, atol=1e-5)


@hypothesis.given(seed=ROWS)
@hypothesis.settings(max_examples=10)
def test_the_hoped_for_value_is_the_best_plan(seed):
    """Three agents, of which some are dead, by brute force over all joint actions."""
    rng = np.random.default_rng(seed)
    spec = jt.make("matrix/climbing_3p").spec
    plans = pareto_ac.joint_actions(spec)
    q, bonus = rng.normal(size=27), rng.normal(size=(3, 3))
    legal, alive = rng.random((3, 3)) < 0.7, rng.random(3) < 0.7
    legal[:, 1] = True
    possible = pareto_ac.possible_plans(plans, jnp.asarray(legal), jnp.asarray(alive))
    found = pareto_ac.optimistic(jnp.asarray(q), plans, possible, jnp.asarray(bonus))
    best = np.full((3, 3), -np.inf)
    for u in itertools.product(range(3), repeat=3):
        if all(legal[j, u[j]] if alive[j] else u[j] == 0 for j in range(3)):
            index = int(finite.joint_index(jnp.asarray(u), 3))
            assert plans[index].tolist() == list(u)
            for i in range(3):
                worth = q[index] + sum(bonus[j, u[j]] for j in range(3) if j != i)
                best[i, u[i]] = max(best[i, u[i]], worth)
    seen = np.isfinite(best)
    np.testing.assert_allclose(np.asarray(found)[seen], best[seen], rtol=1e-5, atol=1e-6)
    assert (np.asarray(found)[~seen] == distributions.IMPOSSIBLE).all()


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_exploration_is_part_of_the_policy(epsilon):
    logits = jnp.asarray([[50.0, 0.0, -50.0, 3.0]])
    legal = jnp.asarray([[True, True, True, False]])
    found = np.exp(mixed(logits, legal, epsilon))
    softmax = np.asarray([[1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(found, (1 - epsilon) * softmax + epsilon / 3 * legal, atol=1e-6)
    gradient = jax.grad(lambda x: mixed(x, legal, epsilon)[0, 2])(logits)
    assert np.isfinite(gradient).all()
    if epsilon == 0:
        np.testing.assert_array_equal(mixed(logits, legal, 0.0), mixed(logits, legal, None))


@pytest.mark.parametrize(("kind", "table"), [("table", True), ("mlp", False)])
def test_the_critic_of_coma_is_told_what_the_others_do(kind, table):
    """Own actions make no difference, all others do, and no two agents and joint actions look alike."""
    spec = jt.make("matrix/climbing_3p", repeats=2).spec
    view, size = coma.critic_inputs(kind, spec)
    told = {}
    for place, *u in itertools.product(range(2), *[range(3)] * 3):
        rows = np.asarray(view(jax.nn.one_hot(place, 2), jnp.asarray(u)))
        for i in range(3):
            own = tuple(np.atleast_1d(rows[i]).tolist())
            others = (place, i, *(u[:i] + u[i + 1 :]))
            assert told.setdefault(own, others) == others
        assert rows.max() < size if table else rows.shape == (3, size)
    assert len(told) == 2 * 3 * 9


# --- one step of the learner ----------------------------------------------------------------------


@functools.cache
def learner(method, **fields):
    """A resolved config, and init and step compiled, on climbing."""
    row, env = jt.algorithm(method), jt.make("matrix/climbing")
    config = row.resolved(row.settings(**fields), env.spec)
    made = row.make(config, env)
    step = jax.jit(lambda config, *rest: row.make(config, env).step(*rest), **O1)
    return config, made, jax.jit(made.init, **O1), step


def gradient_of(optimiser_state, shape):
    """What Adam's first average holds after one step: a tenth of the gradient."""
    return 10 * np.asarray(optimiser_state.mu).reshape(shape)


@pytest.mark.parametrize("method", ["ia2c", "maa2c", "coma"])
def test_the_step_is_along_the_exact_policy_gradient(method):
    """With exact critics, in climbing at random policies. The loss is a mean over two agents."""
    given = {"envs": 32_768, "entropy_coef": 0.0, "max_grad_norm": 1e9}
    given |= {"critic_lr_scale": 0.0} | ({} if method == "coma" else {"n_step": 1})
    config, _, init, step = learner(method, **given)
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3)), jnp.float32)
    state = init(jax.random.key(0))
    if method == "coma":
        rows = np.stack([PAYOFF.T, PAYOFF], axis=1)  # the other's action, agent, own action
        critic = jnp.asarray(rows, jnp.float32).reshape(state.params.critic.shape)
    else:
        critic = jnp.full_like(state.params.critic, value_of(logits))
    params = state.params._replace(actor=logits[None], critic=critic)
    state = state._replace(params=params, target=critic)
    after, report = step(config, jax.random.key(1), state, 0.0)
    exact = np.asarray(jax.grad(value_of)(logits)) / 2
    found = -gradient_of(after.optimiser.actor, (2, 3))
    np.testing.assert_allclose(found, exact, atol=0.03 * np.abs(exact).max())
    np.testing.assert_allclose(report["ratio"], 1.0, atol=1e-6)


def test_the_step_of_pareto_ac_is_along_its_own_gradient():
    """Q⁺ of climbing is the best of each row and of each column; nothing is sampled."""
    config, _, init, step = learner("pareto_ac", tie_break=0.0, entropy_start=0.0, max_grad_norm=1e9)
    config = dataclasses.replace(config, entropy_end=0.0)
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3)), jnp.float32)
    state = init(jax.random.key(0))
    critic = jnp.asarray(PAYOFF, jnp.float32).reshape(state.params.critic.shape)
    state = state._replace(params=state.params._replace(actor=logits[None], critic=critic))
    after, _ = step(config, jax.random.key(1), state, 0.0)
    best = jnp.asarray(np.stack([PAYOFF.max(1), PAYOFF.max(0)]), jnp.float32)
    exact = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * best) / 2)(logits)
    np.testing.assert_allclose(-gradient_of(after.optimiser.actor, (2, 3)), exact, rtol=1e-4, atol=1e-5)


def adam_in_numpy(x, gradient, moments, rate):
    """Kingma & Ba 2015, algorithm 1."""
    t, m, v = moments
    t, m, v = t + 1, 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    direction = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-5)
    return x - rate * direction, (t, m, v)


@pytest.mark.parametrize("epochs", [1, 4])
def test_epochs_equal_a_slow_loop(epochs):
    """The advantage of each epoch is with the critic that the last one left; ratios are clipped."""
    given = {"envs": 16, "epochs": epochs, "lr": 0.3, "entropy_coef": 0.0, "max_grad_norm": 1e9}
    config, made, init, step = learner("ippo_epymarl", **given)
    state = init(jax.random.key(0))
    after, _ = step(config, jax.random.key(5), state, 0.0)
    behaviour = made.policy(state, greedy=False)
    _, seen = rollout(jt.make("matrix/climbing"), behaviour, jax.random.key(5), state.actors, 1)
    action, reward = np.asarray(seen.action[0]), np.asarray(seen.reward[0], np.float64)

    logits = np.asarray(state.params.actor, np.float64)[0]
    value, envs = np.zeros(2), len(reward)
    log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))  # noqa: E731
    old = log_softmax(logits)
    moments = [(0, np.zeros_like(logits), np.zeros_like(logits)), (0, np.zeros(2), np.zeros(2))]
    for _ in range(epochs):
        slope, value_slope, log_probs = np.zeros_like(logits), np.zeros(2), log_softmax(logits)
        for e, i in itertools.product(range(envs), range(2)):
            advantage, a = reward[e] - value[i], action[e, i]
            ratio = np.exp(log_probs[i, a] - old[i, a])
            outside = ratio > 1.2 if advantage > 0 else ratio < 0.8
            score = np.eye(3)[a] - np.exp(log_probs[i])
            slope[i] -= 0.0 if outside else ratio * advantage * score / (2 * envs)
            value_slope[i] -= 2 * advantage / (2 * envs)
        logits, moments[0] = adam_in_numpy(logits, slope, moments[0], 0.3)
        value, moments[1] = adam_in_numpy(value, value_slope, moments[1], 3.0)
    np.testing.assert_allclose(after.params.actor[0], logits, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(after.params.critic[0, :, 0], value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(after.target, 0.1 * np.asarray(after.params.critic), rtol=1e-4)


def test_one_epoch_of_ippo_is_ia2c():
    given = {"envs": 16}
    results = []
    for method, more, clip in (
        ("ia2c", {}, 0.2), ("ippo_epymarl", {"epochs": 1}, 0.2), ("ippo_epymarl", {"epochs": 1}, 0.01),
    ):  # fmt: skip
        config, _, init, step = learner(method, **given, **more)
        state = init(jax.random.key(0))
        for i in range(3):
            state, report = step(dataclasses.replace(config, clip=clip), jax.random.key(i), state, 0.0)
            np.testing.assert_allclose(report["ratio"], 1.0, atol=1e-6)
        results.append(jax.tree.map(np.asarray, state.params))
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)


def test_weights_fall_linearly():
    config, _, init, step = learner("pareto_ac", envs=8)
    state = init(jax.random.key(0))
    found = [step(config, jax.random.key(0), state, t)[1]["entropy_coef"] for t in (0.0, 0.4, 0.8, 0.9)]
    np.testing.assert_allclose(found, [20.0, 10.005, 0.01, 0.01], rtol=1e-4)
    config, _, init, step = learner("coma", envs=8, updates=1)
    config = dataclasses.replace(config, epsilon_start=0.5, epsilon_end=0.1)
    state = init(jax.random.key(0))
    found = [step(config, jax.random.key(0), state, t)[1] for t in (0.0, 0.25, 0.5, 0.9)]
    np.testing.assert_allclose([r["epsilon"] for r in found], [0.5, 0.3, 0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose([r["ratio"] for r in found], 1.0, rtol=1e-5)


# --- where they end -------------------------------------------------------------------------------

GAMES = ("matrix/climbing", "matrix/penalty", "matrix/qtran")
STUCK, BEST = (7, 2, 0), (11, 10, 8)


@functools.cache
def ends(method, seeds=16):
    run = jt.run(method, list(GAMES), seeds=seeds, evaluations=1, episodes=1, progress=False)
    return np.round(run.final["return"].reshape(len(GAMES), seeds), 3)


@pytest.mark.parametrize(
    "method", ["ia2c", slow("maa2c"), slow("ippo_epymarl"), slow("mappo_epymarl"), "coma"]
)
def test_policy_gradients_end_where_the_exact_one_does(method):
    """From uniform policies: 7 by way of 6, the safe 2, and 0."""
    found = (ends(method) == np.asarray(STUCK)[:, None]).sum(1)
    assert (found >= 15).all(), ends(method)


def test_hoping_for_the_best_finds_it():
    found = (ends("pareto_ac") == np.asarray(BEST)[:, None]).sum(1)
    assert (found >= 15).all(), ends("pareto_ac")


@pytest.mark.slow
def test_without_a_common_preference_agents_miss_each_other():
    """Both optima of the penalty game are equally good, and half of what agents may hope for is not."""
    run = jt.run("pareto_ac", "matrix/penalty", seeds=32, tie_break=0.0, episodes=1, progress=False)
    assert (run.final["return"] == -100).sum() >= 4


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fields", [{"network": "mlp"}, {"memory": "gru"}], ids=["mlp", "gru"])
def test_networks_end_where_tables_do(method, fields):
    given = {"hidden": (32,), "lr": 2e-3, "critic_lr_scale": 5.0, "total_steps": 48_000} | fields
    run = jt.run(method, "matrix/penalty", seeds=8, evaluations=1, episodes=1, progress=False, **given)
    expected = 10 if method == "pareto_ac" else 2
    assert (np.round(run.final["return"], 3) == expected).sum() >= 7, run.final["return"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "mode"),
    [("ia2c", "full"), ("maa2c", "none"), ("coma", "full_id"), ("pareto_ac", "none")],
)
def test_memory_is_learned_with_every_sharing(method, mode):
    """Without memory half is the most; who shares everything cannot do the opposite of the other."""
    games = [Recall(name="same"), Recall(flip=1.0, name="opposite")]
    fields = {"hidden": (16,), "lr": 0.01, "critic_lr_scale": 1.0, "total_steps": 64_000, "envs": 64}
    fields |= {"entropy_start": 1.0} if method == "pareto_ac" else {"entropy_coef": 0.01}
    run = jt.run(method, games, seeds=4, memory="gru", sharing=mode, progress=False, **fields)
    same, opposite = run.final["return"].reshape(2, 4)
    assert (same > 0.95).all(), same
    if mode == "full":
        np.testing.assert_allclose(opposite, 0.5, atol=0.05)
    else:
        assert (opposite > 0.95).all(), opposite


# --- what is refused, and the games of the benchmark ----------------------------------------------


@pytest.mark.parametrize(
    ("method", "fields", "sentence"),
    [
        ("ia2c", {"epochs": 4}, "ia2c means epochs=1"),
        ("maa2c", {"critic": "local"}, "maa2c means critic='state'"),
        ("ippo_epymarl", {"n_step": 0}, "n_step must be positive"),
        ("coma", {"lam": 1.5}, "lam=1.5 must lie in"),
        ("pareto_ac", {"tie_break": -1.0}, "tie_break=-1.0 must lie in"),
    ],
)
def test_impossible_settings_are_refused(method, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        jt.run(method, "matrix/tad", **fields)


def test_large_joint_spaces_are_refused():
    with pytest.raises(ValueError, match="6 agents with 6 actions have 46656 joint actions"):
        jt.run("pareto_ac", jt.make("matrix/permutation", n=6))


def test_a_blind_game_is_played_alike_every_time():
    env = jt.make("matrix/climbing", repeats=25, blind=True)
    state, seen = env.reset(jax.random.key(0))
    _, step = env.step(jax.random.key(0), state, jnp.zeros(2, jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, seen, step.observation)
    assert (env.spec.obs_dim, env.spec.state_dim, env.spec.horizon) == (1, 1, 25)
    assert jt.solve(env).value == pytest.approx(275)
