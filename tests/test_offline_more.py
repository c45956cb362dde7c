"""What runs on recorded experience report of themselves, and the methods of later years.

Reports are compared with slow loops over rows, methods with closed forms and convex programs.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import learners
from conformance.probes import Skirmish

import jaxmarl_tad as jt
from jaxmarl_tad import dataset
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.algorithms.offline import comadice, oryx
from jaxmarl_tad.distributions import log_probabilities
from jaxmarl_tad.offline import lesson, linear_mixer, rows_of
from jaxmarl_tad.offline.autoencoder import autoencoder
from jaxmarl_tad.offline.diagnostics import ages, of_weights, returns_to_go
from jaxmarl_tad.offline.numbers import critics, soft_value, spread_out
from jaxmarl_tad.train import train
from tad_envs import Observation


def learner(name, data, **fields):
    method = METHODS[name]
    return method.make(method.resolved(method.settings(**fields), data.spec), data)


# --- reports --------------------------------------------------------------------------------------


def slow_returns(data, gamma):
    """Row by row: the return to the end, None where it is not known."""
    found = []
    for row in range(len(data.reward)):
        total, factor, at = 0.0, 1.0, row
        while data.valid[at] and not data.terminated[at]:
            total, factor, at = total + factor * data.reward[at], factor * gamma, at + 1
        known = data.valid[at] and data.terminated[at]
        found.append(total + factor * data.reward[at] if known else None)
    return found


def test_returns_to_go_are_those_of_a_slow_loop():
    data = learners.recorded(Skirmish())
    assert data.truncated.any()
    expected = slow_returns(data, 0.9)
    total, known = map(np.asarray, jax.jit(returns_to_go)(data, 0.9))
    assert [x is not None for x in expected] == known.tolist()
    assert 0 < known.sum() < data.valid.sum()
    wanted = np.array([x or 0.0 for x in expected])
    np.testing.assert_allclose(np.where(known, total, 0.0), wanted, rtol=1e-5, atol=1e-6)
    since = [row - max(r for r in range(row + 1) if data.first[r]) for row in range(len(known))]
    assert np.asarray(ages(data)).tolist() == since


def test_what_has_lost_its_beginning_has_no_age():
    data = learners.recorded(Skirmish())
    rows = np.arange(len(data.reward), dtype=np.float32)
    numbered = dataclasses.replace(data, reward=rows)  # so that rows are told again in a window
    since = np.array(
        [row - max(r for r in range(row + 1) if data.first[r]) for row in range(len(rows))]
    )
    size = sum(value.nbytes for value in dataset.leaves(numbered).values())
    windows = dataset.Windows(dataclasses.replace(numbered, limit=size))
    part = windows(0)
    true = since[np.asarray(part.reward).astype(int)]
    held = np.arange(len(true)) % windows.block >= true  # the episode began within the stretch
    assert 0 < held.sum() < len(held)
    np.testing.assert_array_equal(np.asarray(ages(part)), np.where(held, true, -1))


def test_reports_are_those_of_a_slow_loop():
    """One more gradient step of OMIGA: what it holds of recorded actions, one step at a time."""
    data = learners.recorded(Skirmish(one_hot=True))
    source = np.random.default_rng(0)
    data = dataclasses.replace(
        data, log_prob=source.uniform(-2, 0, size=data.alive.shape).astype(np.float32)
    )
    made = learner("omiga", data, batch=64, window=1, gamma=0.9, largest_z=0.05)
    step = jax.jit(made.step)
    state = made.init(jax.random.key(0))
    for i in range(30):
        state, _ = step(jax.random.key(i), state, 0.0)
    _, told = step(jax.random.key(3), state, 0.0)
    params, target = jax.device_get((state.params, state.target))
    expected = slow_returns(data, 0.9)
    apart, ahead, weights, clamped = [], [], [[], [], []], []
    for row in data.rows:
        here = np.arange(3) * 10 + data.agents[row].argmax(-1)
        mixer = [p.q["mixer"][np.argmax(data.state[row])] for p in (params, target)]
        chosen = [p.q["own"][0, here, data.action[row]] for p in (params, target)]
        w, old = (np.where(data.alive[row], np.abs(1 + m[:3]), 0.0) for m in mixer)
        if expected[row] is not None:
            ahead.append(np.sum(w * chosen[0]) + mixer[0][3] - expected[row])
        z = old * (chosen[1] - params.v[0, here, 0])
        logits = np.where(data.legal[row], params.policy[0, here], -np.inf)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for i in np.flatnonzero(data.alive[row]):
            apart.append(data.log_prob[row, i] - log_probs[i, data.action[row, i]])
            weights[i].append(np.exp(min(z[i], 0.05)) * (1 + max(z[i] - 0.05, 0)))
            clamped.append(z[i] > 0.05)
    assert told["divergence"] == pytest.approx(np.mean(apart), rel=1e-4)
    assert told["optimism"] == pytest.approx(np.mean(ahead), rel=1e-4)
    for i in range(3):
        assert told[f"weight_{i}"] == pytest.approx(np.mean(weights[i]), rel=1e-4)
    every = np.concatenate(weights)
    effective = every.sum() ** 2 / (every**2).sum() / len(every)
    assert told["effective"] == pytest.approx(effective, rel=1e-4)
    assert told["clamped"] == pytest.approx(np.mean(clamped))
    assert 0 < told["clamped"] < 1


def test_equal_weights_are_fully_effective():
    counts = jnp.ones((2, 3, 2), bool).at[0, 0, 0].set(False)
    told = of_weights(jnp.full((2, 3, 2), 0.3), counts)
    assert told["effective"] == pytest.approx(1.0)
    assert told["weight_1"] == pytest.approx(0.3)


def recorded(payoff, actions):
    """Episodes of one step in a game of one state."""
    env = jt.make("matrix/custom", payoff=payoff)
    _, seen = env.reset(jax.random.key(0))
    shown = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 2), seen)
    ends = np.array([True]), np.array([False])
    gains = np.asarray(payoff)
    made = [dataset.Episode(shown, np.array([a]), np.array([gains[a]]), *ends) for a in actions]
    return env, dataset.from_episodes(made, env.spec)


# --- numbers: conservative and batch-constrained Q-learning ----------------------------------------


def numbers(reward, spread=2.0, centre=0.0, count=64):
    """Actions uniform around ``centre`` in a game of one state and numbers, paid by ``reward``."""
    env = jt.make("matrix/product")
    _, seen = env.reset(jax.random.key(0))
    shown = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 2), seen)
    actions = np.random.default_rng(0).uniform(-spread, spread, size=(count, 1, 2, 1)) + centre
    ends = np.array([True]), np.array([False])
    made = [dataset.Episode(shown, a, np.array([reward(a)]), *ends) for a in actions]
    return env, dataset.from_episodes(made, env.spec)


def settled(name, data, iterations, **fields):
    """State and curves after so many gradient steps, compiled as a whole."""

    @jax.jit
    def run(data):
        made = learner(name, data, **fields)
        return train(made, lambda p, k: {}, jax.random.key(0), iterations=iterations, evaluations=1)

    return run(data)


def test_the_soft_value_is_an_integral():
    """log ∫ exp Q of a hump over [−1, 1], from actions of three kinds, each by its density."""
    _, data = numbers(lambda a: 0.0)
    seen = lesson(data, jax.random.key(0), 64, 1)
    value = lambda a: jnp.stack([2 - 3 * (a[..., 0] - 0.3) ** 2, 0 * a[..., 0]])  # noqa: E731

    @jax.jit
    def estimated(seen):
        out = jnp.full((2, 64, 2, 1), 0.2)
        drawn = spread_out(jax.random.key(1), seen, out, 500, 0.1)
        return *drawn, soft_value(value, *drawn)

    actions, densities, found = map(np.asarray, estimated(seen))
    grid = np.linspace(-1, 1, 20_001)
    hump = np.log(np.mean(np.exp(2 - 3 * (grid - 0.3) ** 2)) * 2)
    slow = []
    for b, i in itertools.product(range(3), range(2)):
        a, p = np.asarray(actions[:, 0, b, i, 0], np.float64), np.asarray(densities[:, 0, b, i])
        slow.append(np.log(np.mean(np.exp(2 - 3 * (a - 0.3) ** 2 - p))))
    np.testing.assert_allclose(found[0, 0, :3].reshape(-1), slow, rtol=1e-4)
    uniform = np.exp(2 - 3 * (np.asarray(actions[:500, 0, :, :, 0]) - 0.3) ** 2).mean() * 2
    assert np.log(uniform) == pytest.approx(hump, abs=0.01)


@pytest.mark.slow
def test_the_penalty_of_numbers_is_that_of_a_slow_loop():
    """CQL-MA's of one more gradient step: each agent's log-sum-exp of w_i Q_i, less the data's."""
    _, data = numbers(lambda a: float(np.prod(a)), count=16)
    fields = {"samples": 3, "mix_hidden": 4, "hidden": (8,)}
    made = learner("cql_ma", data, **fields)
    step, key = jax.jit(made.step), jax.random.key(9)
    state = jax.jit(made.init)(jax.random.key(0))
    for i in range(20):
        state, _ = step(jax.random.key(i), state, 0.0)
    _, told = step(key, state, 0.0)
    lesson_key, sample_key = jax.random.split(key)
    seen = lesson(data, lesson_key, 64, 1)
    mu = np.tanh(np.asarray(state.params.policy).reshape(1, 1, 2, 1))
    out = jnp.broadcast_to(mu, (2, 16, 2, 1))
    draw = jax.jit(lambda key: spread_out(key, seen, out, 3, 0.2))
    actions, densities = map(np.asarray, draw(sample_key))
    w = np.abs(1 + np.asarray(state.params.q["mixer"])[0, :2])
    critics = jax.tree.map(np.asarray, jax.tree.map(lambda x: x[:, 0], state.params.q["own"]))
    layers = [critics["params"][name] for name in sorted(critics["params"])]
    shown = np.asarray(seen.now.agents[0, 0])

    def value(c, i, a):
        x = np.concatenate([shown[i], np.eye(2)[i], a])
        for layer, last in zip(layers, (False, True), strict=True):
            x = x @ layer["kernel"][c] + layer["bias"][c]
            x = x if last else np.maximum(x, 0)
        return x[0]

    gaps = []
    for c, b in itertools.product(range(2), range(16)):
        total = 0.0
        for i in range(2):
            each = [
                np.exp(w[i] * value(c, i, actions[k, 0, b, i]) - densities[k, 0, b, i])
                for k in range(9)
            ]
            total += np.log(np.mean(each)) - w[i] * value(c, i, np.asarray(seen.action[0, b, i]))
        gaps.append(total)
    assert told["penalty"] == pytest.approx(np.mean(gaps), rel=1e-3)


@pytest.mark.slow
def test_the_lower_critic_of_the_next_step_is_the_teams():
    """The error of one more gradient step, row by row: not the sum of each agent's lower critic."""
    data = learners.recorded(Skirmish(one_hot=False, continuous=True))
    fields = {"samples": 2, "mix_hidden": 4, "hidden": (8,), "gamma": 0.9, "batch": 64}
    method = METHODS["cql_ma"]
    config, made = (
        method.resolved(method.settings(**fields), data.spec),
        learner("cql_ma", data, **fields),
    )
    step, state, key = jax.jit(made.step), jax.jit(made.init)(jax.random.key(0)), jax.random.key(9)
    for i in range(30):
        state, _ = step(jax.random.key(i), state, 0.0)
    _, told = step(key, state, 0.0)
    seen = lesson(data, jax.random.split(key)[0], 64, 1)

    @jax.jit
    def parts(params, target):
        out = jnp.tanh(rows_of(config, data.spec, 3).apply(params.policy, seen.seen, seen.first))
        value, weights = critics(config, data.spec)[1], linear_mixer(config, data.spec).weights
        ahead = jax.tree.map(lambda x: x[1:], seen.seen)
        now = value(params.q["own"], seen.now, seen.first[:-1], seen.action)
        later = value(target["own"], ahead, seen.first[1:], out[1:])
        return (now, *weights(params.q["mixer"], seen.now)), (later, *weights(target["mixer"], ahead))

    (q, w, b), (later, w2, b2) = jax.tree.map(np.asarray, parts(state.params, state.target))
    errors, apart = [], 0.0
    for row in range(len(data.rows)):
        totals = [w2[0, row] @ later[c, 0, row] + b2[0, row] for c in range(2)]
        apart += min(totals) - (w2[0, row] @ later[:, 0, row].min(0) + b2[0, row])
        over = data.terminated[data.rows[row]]
        goal = data.reward[data.rows[row]] + (0.0 if over else 0.9 * min(totals))
        each = [goal - w[0, row] @ q[c, 0, row] - b[0, row] for c in range(2)]
        errors.append(0.5 * np.sum(np.square(each)))
    assert apart > 1e-3
    assert told["loss"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_imitation_loss_is_that_of_a_slow_loop():
    """Squared errors, and KL(N(m, v) ‖ N(0, 1)) by its integral, of BCQ's autoencoder."""
    _, data = numbers(lambda a: 0.0, count=16)
    method = METHODS["bcq_ma"]
    config = method.resolved(method.settings(hidden=(8,)), data.spec)
    cloning = autoencoder(config, data.spec)
    params = cloning.init(jax.random.key(0))
    seen = lesson(data, jax.random.key(0), 64, 1)
    noise = jax.random.normal(jax.random.key(1), (1, 16, 2, 2))
    error, apart = map(np.asarray, jax.jit(cloning.error)(params, seen, noise))
    nets = jax.tree.map(lambda x: np.asarray(x[0]), params)

    def through(net, x):
        layers = [net["params"][name] for name in sorted(net["params"])]
        x = np.maximum(x @ layers[0]["kernel"] + layers[0]["bias"], 0)
        return x @ layers[1]["weight"].T + layers[1]["bias"]

    z = np.linspace(-12, 12, 200_001)
    normal = lambda m, s: np.exp(-0.5 * ((z - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))  # noqa: E731
    for b, i in itertools.product(range(3), range(2)):
        row = np.concatenate([np.asarray(seen.now.agents[0, b, i]), np.eye(2)[i]])
        action = np.asarray(seen.action[0, b, i])
        mean, log_s = np.split(through(nets["encoder"], np.concatenate([row, action])), 2)
        drawn = mean + np.exp(log_s) * np.asarray(noise[0, b, i])
        made = np.tanh(through(nets["decoder"], np.concatenate([row, drawn])))
        np.testing.assert_allclose(error[0, b, i], (made - action) ** 2, rtol=1e-3, atol=1e-5)
        for k in range(2):
            p = normal(mean[k], np.exp(log_s[k]))
            ratio = np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(normal(0, 1), 1e-300))
            expected = np.sum(p * ratio) * (z[1] - z[0])
            assert apart[0, b, i, k] == pytest.approx(expected, abs=1e-3)


def chosen(name, data, iterations=400, **fields):
    state, curves = settled(name, data, iterations, **fields)
    made = learner(name, data, **fields)
    seen = jt.make("matrix/product").reset(jax.random.key(0))[1]
    policy = made.policy(state, greedy=True)
    act = jax.jit(jax.vmap(lambda k: policy.act(k, policy.start(), seen)[0]))
    return np.asarray(act(jax.random.split(jax.random.key(0), 16))), curves


@pytest.mark.slow
def test_numbers_that_pay_are_found_within_the_data():
    """r = Σ a. CQL-MA goes up to the end that the data reach, BCQ-MA to the best of what was done."""
    _, data = numbers(lambda a: float(a.sum()))
    assert chosen("cql_ma", data)[0].min() > 1.0
    _, narrow = numbers(lambda a: float(a.sum()), spread=0.4, centre=-0.5)
    fields = {"latent_weight": 0.01}
    found, _ = chosen("bcq_ma", narrow, 1_000, **fields)
    still, _ = chosen("bcq_ma", narrow, 1_000, reach=0.0, **fields)
    assert (found > -0.45).all()  # better than the mean
    assert found.max() < -0.1 + 2 * 0.05 + 0.05  # the data's end, and the reach
    assert still.max() < -0.05
    assert found.mean() > still.mean()


# --- stationary distributions ----------------------------------------------------------------------


def relative_entropy(x):
    return x * np.log(np.maximum(x, 1e-300)) - x + 1


DIVERGENCES = {
    "soft_chi2": lambda x: np.where(
        x < 1, x * np.log(np.maximum(x, 1e-300)) - x + 1, 0.5 * (x - 1) ** 2
    ),
    "chi2": lambda x: 0.5 * (x - 1) ** 2,
    "kl": lambda x: x * np.log(np.maximum(x, 1e-300)) - x + 1,
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_correction_is_where_the_conjugate_is_reached(name):
    """argmax over x ≥ 0 of x y − f(x), on a grid."""
    grid = np.linspace(0, 20, 200_001)
    config = comadice.Config(divergence=name)
    for y in (-3.0, -1.0, -0.2, 0.0, 0.5, 2.0):
        best = grid[np.argmax(grid * y - DIVERGENCES[name](grid))]
        assert float(comadice.correction(config, jnp.asarray(y))) == pytest.approx(best, abs=2e-4)


GAMMA = 0.8
STEPS = [
    # (times, [(state, action of the first agent, reward), …]); the second agent always does 0.
    (4, [(0, 0, 0.0), (1, 0, 1.0)]),
    (2, [(0, 0, 0.0), (1, 1, -1.0)]),
    (1, [(0, 0, 0.0), (2, 0, 0.0)]),
    (2, [(0, 0, 0.0), (2, 1, 2.0)]),
    (3, [(0, 1, 0.3)]),  # ends at once
]
"""Whole episodes that end by themselves; what follows action 0 in state 0 is chance."""


def three_states():
    """Those episodes as data, and their share per episode of each pair, rewards and next states."""
    spec = jt.make("matrix/custom", payoff=[[0.0, 0.0], [0.0, 0.0]]).spec
    spec = spec._replace(obs_dim=3, state_dim=3, horizon=2)
    episodes, share, reward, later = [], np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 2, 3))
    for times, told in STEPS:
        states = np.array([s for s, _, _ in told] + [0])  # the last is behind the end
        rows = np.eye(3, dtype=np.float32)[states]
        long = len(states)
        seen = Observation(
            np.stack([rows, rows], axis=1), rows, np.ones((long, 2, 2), bool), np.ones((long, 2), bool)
        )
        action = np.array([[a, 0] for _, a, _ in told])
        gains, over = np.array([r for _, _, r in told]), np.arange(long - 1) == long - 2
        episodes += [dataset.Episode(seen, action, gains, over, np.zeros_like(over))] * times
        for t, (s, a, r) in enumerate(told):
            share[s, a] += times * GAMMA**t
            reward[s, a] += times * GAMMA**t * r
            if t + 1 < len(told):
                later[s, a, told[t + 1][0]] += times * GAMMA**t
    total = np.where(share > 0, share, 1.0)
    count = sum(times for times, _ in STEPS)
    return (
        dataset.from_episodes(episodes, spec),
        share / count,
        reward / total,
        later / total[..., None],
    )


def solved_program(name, alpha, share, reward, later):
    """ν, W and the dual's value by gradient descent in double precision."""
    config, nu = comadice.Config(divergence=name, largest=50.0), np.zeros(3)

    def weights(nu):
        y = (reward + GAMMA * later @ nu - nu[:, None]) / alpha
        return y, np.asarray(comadice.correction(config, jnp.asarray(y)), np.float64)

    for _ in range(4_000):
        slope = np.eye(3)[0] + GAMMA * np.einsum("sa,sat->t", (flow := share * weights(nu)[1]), later)
        nu = nu - 0.2 * alpha * (slope - flow.sum(-1))
    y, w = weights(nu)
    dual = nu[0] + alpha * np.sum(share * (w * y - DIVERGENCES[name](w)))
    return nu, w, dual


@pytest.mark.parametrize(
    "name", ["soft_chi2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("chi2", "kl"))]
)
def test_comadice_is_the_convex_program(name):
    """States, W and policies of a game with chance and early ends; no policy does better than W."""
    data, share, reward, later = three_states()
    alphas = (0.5, 2.0)

    @jax.jit
    def learned(data):
        def one(alpha):
            made = learner("comadice", data, alpha=alpha, divergence=name, gamma=GAMMA)
            state, _ = train(made, lambda p, k: {}, jax.random.key(0), iterations=3_000, evaluations=1)
            return state.params

        return jax.vmap(one)(jnp.asarray(alphas))

    params = jax.device_get(learned(data))
    source = np.random.default_rng(0)
    for k, alpha in enumerate(alphas):
        nu, w, dual = solved_program(name, alpha, share, reward, later)
        flow = share * w
        into = np.eye(3)[0] + GAMMA * np.einsum("sa,sat->t", flow, later)
        np.testing.assert_allclose(flow.sum(-1), into, atol=1e-3)
        primal = np.sum(flow * reward) - alpha * np.sum(share * DIVERGENCES[name](w))
        assert primal == pytest.approx(dual, abs=2e-3)
        for _ in range(200):
            policy = source.dirichlet([0.5, 0.5], size=3)
            state = np.eye(3)[0]
            for _ in range(2):
                state = np.eye(3)[0] + GAMMA * np.einsum("s,sa,sat->t", state, policy, later)
            other = state[:, None] * policy
            value = np.sum(other * reward) - alpha * np.sum(share * DIVERGENCES[name](other / share))
            assert value <= primal + 1e-3
        mixer = params.q["mixer"][k]
        own = params.nu[k, 0, :, 0].reshape(2, 3)
        team = np.sum(np.abs(1 + mixer[:, :2]) * own.T, axis=-1) + mixer[:, 2]
        np.testing.assert_allclose(team, nu, atol=0.02)
        logits = params.policy[k, 0].reshape(2, 3, 2)[0]
        policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(policy, flow / flow.sum(-1, keepdims=True), atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVERGENCES)
def test_in_one_step_the_multiplier_makes_the_weights_average_one(name):
    """π_i is the share of each action in the data weighed by f'⁻¹((r − ν) / α), of mean one.

    From data without (1, 1) OMIGA is surer of it the smaller α is; here it stays as likely as not.
    """
    _, data = recorded([[0.0, 1.0], [1.0, -2.0]], [(0, 0), (0, 1), (1, 0)] * 4)
    alphas = (0.2, 1.0, 10.0)

    @jax.jit
    def learned(data):
        def one(alpha):
            made = learner("comadice", data, alpha=alpha, divergence=name)
            state, _ = train(made, lambda p, k: {}, jax.random.key(0), iterations=2_000, evaluations=1)
            return state.params.policy

        return jax.vmap(one)(jnp.asarray(alphas))

    logits = np.asarray(learned(data)).reshape(3, 2, 2)
    config = comadice.Config(divergence=name)
    for k, alpha in enumerate(alphas):
        low, high = -50.0, 50.0
        for _ in range(100):
            nu = (low + high) / 2
            y = jnp.asarray((np.array([0.0, 1.0, 1.0]) - nu) / alpha)
            w = np.asarray(comadice.correction(config, y))
            low, high = (nu, high) if w.mean() > 1 else (low, nu)
        policy = np.exp(logits[k]) / np.exp(logits[k]).sum(-1, keepdims=True)
        np.testing.assert_allclose(policy[:, 1], w[1] / 3, atol=5e-3)


# --- policies of joint actions ---------------------------------------------------------------------


def a_team(**fields):
    """Oryx's model of the skirmish with numbers that are not small, its data, and a lesson."""
    env = Skirmish(one_hot=False)
    data = learners.recorded(env)
    method = METHODS["oryx"]
    config = method.resolved(method.settings(embed=4, **fields), data.spec)
    team = oryx.model(config, data.spec)
    source = np.random.default_rng(0)
    large = lambda x: x + 0.5 * source.normal(size=x.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(large, jax.device_get(jax.jit(team.init)(jax.random.key(0))))
    return env, data, team, params, lesson(data, jax.random.key(2), 6, 5)


@pytest.mark.parametrize("memory", ["retention", pytest.param("none", marks=pytest.mark.slow)])
def test_what_is_judged_at_once_is_what_was_drawn_in_turn(memory):
    """Stretches that go on into other episodes, with dead agents: act through them, then judge that."""
    _, _, team, params, seen = a_team(memory=memory, heads=2)
    policy = team.policy(params, greedy=False)
    act = jax.jit(jax.vmap(policy.act))
    fresh = jax.tree.map(lambda x: jnp.broadcast_to(x, (6, *x.shape)), policy.start())
    remembered, drawn, told = fresh, [], []
    for t in range(5):
        begins = seen.first[t]
        remembered = jax.tree.map(
            lambda m, f, b=begins: jnp.where(b.reshape(-1, *[1] * (m.ndim - 1)), f, m),
            remembered,
            fresh,
        )
        shown = jax.tree.map(lambda x, t=t: x[t], seen.seen)
        keys = jax.random.split(jax.random.key(t), 6)
        action, remembered, extras = act(keys, remembered, shown)
        drawn.append(action)
        told.append(extras["log_prob"])
    seen = seen._replace(action=jnp.stack(drawn))
    out, _ = jax.jit(team.outputs)(params, seen, jnp.arange(3))
    log_probs = log_probabilities(out[:-1], seen.now.legal)
    found = np.take_along_axis(np.asarray(log_probs), np.asarray(seen.action)[..., None], -1)[..., 0]
    counts = np.asarray(seen.counts)
    assert not counts[np.asarray(seen.valid)].all()
    assert np.asarray(seen.first)[1:].any()
    assert np.ptp(found[counts]) > 1
    np.testing.assert_allclose(found[counts], np.stack(told)[counts], rtol=1e-4, atol=1e-5)


def test_agents_are_told_what_was_done_before_them_in_the_order():
    _, _, team, params, seen = a_team()
    order = jnp.asarray([2, 0, 1])
    outputs = jax.jit(team.outputs)
    before = outputs(params, seen, order)
    for agent, later in ((2, {0, 1}), (0, {1}), (1, set())):
        changed = seen.action.at[:, :, agent].set((seen.action[:, :, agent] + 1) % 3)
        after = outputs(params, seen._replace(action=changed), order)
        moved = np.asarray([(x != y).any(axis=(0, 1, 3)) for x, y in zip(before, after, strict=True)])
        assert set(np.flatnonzero(moved.any(0))) == later
        assert (moved[0] == moved[1]).all()


@pytest.mark.slow
def test_the_loss_of_oryx_is_that_of_a_slow_loop():
    """Ends, cuts and dead agents: one more gradient step, from outputs taken as they are."""
    data = learners.recorded(Skirmish(one_hot=False))
    fields = {"embed": 4, "window": 3, "gamma": 0.9, "policy_temperature": 0.5}
    fields |= {"value_temperature": 2.0, "batch": 64}
    method = METHODS["oryx"]
    made = learner("oryx", data, **fields)
    team = oryx.model(method.resolved(method.settings(**fields), data.spec), data.spec)
    step, state = jax.jit(made.step), jax.jit(made.init)(jax.random.key(0))
    for i in range(30):
        state, _ = step(jax.random.key(i), state, 0.0)
    key = jax.random.key(77)
    _, report = step(key, state, 0.0)
    lesson_key, order_key = jax.random.split(key)
    seen, order = lesson(data, lesson_key, 64, 3), jax.random.permutation(order_key, 3)
    outputs = jax.jit(team.outputs)
    out, q = map(np.asarray, outputs(state.params, seen, order))
    old = np.asarray(outputs(state.target, seen, order)[1])
    policy = np.exp(np.asarray(log_probabilities(jnp.asarray(out), seen.seen.legal)))
    seen, order = jax.device_get((seen, order))
    alive = seen.seen.alive
    goes_on = lambda t, b: t < 2 and not seen.last[t, b]  # noqa: E731
    used = {
        (t, b, i): old[t + 1, b, i, seen.action[t + 1, b, i]] / 2.0
        for t, b, i in np.ndindex(3, 64, 3)
        if seen.valid[t, b] and goes_on(t, b) and alive[t + 1, b, i]
    }
    top = np.mean(np.exp(list(used.values())))
    errors, advantages = [], [[], [], []]
    for t, b, i in np.ndindex(3, 64, 3):
        if not (seen.valid[t, b] and alive[t, b, i]):
            continue
        own = q[t, b, i, seen.action[t, b, i]]
        advantages[i].append(own - np.sum(policy[t, b, i] * q[t, b, i]))
        if not (goes_on(t, b) or seen.last[t, b]):
            continue
        beyond = 0.0
        if goes_on(t, b):
            following = {
                j: np.exp(used[t, b, j]) / top * 2.0 * used[t, b, j]
                for j in range(3)
                if alive[t + 1, b, j]
            }
            beyond = following.get(i, np.mean(list(following.values())))
        elif not seen.terminated[t, b]:
            leader = next(j for j in order if alive[t + 1, b, j])
            beyond = np.sum(policy[t + 1, b, leader] * old[t + 1, b, leader])
        errors.append(0.5 * (seen.reward[t, b] + 0.9 * beyond - own) ** 2)
    assert (seen.last & ~seen.terminated & seen.valid).any()
    assert seen.terminated[seen.valid].any()
    assert report["q_loss"] == pytest.approx(np.mean(errors), rel=1e-4)
    every = np.concatenate(advantages)
    assert report["advantage"] == pytest.approx(np.mean(every), rel=1e-3, abs=1e-6)
    scale = np.mean(np.exp(every / 0.5))
    for i in range(3):
        expected = np.mean(np.exp(np.asarray(advantages[i]) / 0.5)) / scale
        assert report[f"weight_{i}"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_what_agents_did_together_is_done_together():
    """From (0, 1) and (1, 0) alone, policies that choose each by itself have J = 0, and these J = 1."""
    env, data = recorded([[0.0, 1.0], [1.0, -2.0]], [(0, 1), (1, 0)] * 6)
    run = jt.run("oryx", data, eval_env=env, seeds=16, evaluations=1)
    np.testing.assert_array_equal(run.final["return"], 1.0)
    made = learner("oryx", data)
    seen = env.reset(jax.random.key(0))[1]

    @jax.jit
    @jax.vmap
    def drawn(network, key):
        policy = made.policy(run.state._replace(params=oryx.Params(network)), greedy=False)
        act = lambda k: policy.act(k, policy.start(), seen)[0]  # noqa: E731
        return jax.vmap(act)(jax.random.split(key, 256))

    joint = np.asarray(drawn(run.state.params.network, jax.random.split(jax.random.key(1), 16)))
    assert (joint.sum(-1) == 1).mean() > 0.99
    np.testing.assert_allclose(joint[..., 0].mean(-1), 0.5, atol=0.15)


# --- a joint behaviour, cloned and distilled ---------------------------------------------------------

TOLD_APART = [[0.0, 1.0], [2.0, 3.0]]
"""Returns that tell which joint action it was."""
TOGETHER = {
    "skewed": ([(0, 0)] * 6 + [(0, 1)] * 3 + [(1, 0)] * 2 + [(1, 1)], {0.0}),
    "apart": ([(0, 1), (1, 0)] * 6, {1.0, 2.0}),
    # The most frequent joint action, (1, 0), does not begin with the most frequent first action.
    "split": ([(0, 0)] * 4 + [(0, 1)] * 3 + [(1, 0)] * 5, {0.0}),
}
"""Recorded joint actions, and the returns of the likeliest ones when they are chosen in turn."""


@functools.cache
def cloned(name, order="fixed"):
    """Joint BC of that behaviour, four members; all with one order are one program."""
    env, data = recorded(TOLD_APART, TOGETHER[name][0])
    fields = {"order": order, "total_steps": 1_500 if order == "fixed" else 3_000}
    return jt.run("bc_joint", data, eval_env=env, seeds=4, evaluations=1, **fields)


@pytest.mark.parametrize(
    ("name", "order"),
    [("skewed", "fixed"), ("apart", "fixed"), pytest.param("skewed", "random", marks=pytest.mark.slow)],
)
def test_joint_imitation_is_the_share_of_each_joint_action(name, order):
    """Of every joint action that it draws; the product of imitations has (0, 0) and (1, 1) as well."""
    run, taken = cloned(name, order), np.asarray(TOGETHER[name][0])
    share = np.zeros((2, 2))
    np.add.at(share, tuple(taken.T), 1 / len(taken))
    policy, (_, seen) = run.policy(1, greedy=False), jt.make("matrix/xor").reset(jax.random.key(0))
    act = jax.jit(jax.vmap(lambda key: policy.act(key, policy.start(), seen)))
    joint, _, told = jax.device_get(act(jax.random.split(jax.random.key(0), 256)))
    law = np.exp(told["log_prob"].sum(-1))
    off = 3e-3 if order == "fixed" else 0.02  # orders are drawn anew for every gradient step
    np.testing.assert_allclose(law, share[tuple(joint.T)], atol=off)
    assert {tuple(a) for a in joint} == {tuple(a) for a in taken}


@pytest.mark.parametrize("name", TOGETHER)
def test_of_a_joint_behaviour_students_keep_the_likeliest_action_in_turn(name):
    """Ties are broken once for both: each student of "apart" has a partner for what it does."""
    student = jt.distill(cloned(name), evaluations=1, total_steps=1_600, episodes=8)
    assert set(student.final["return"].tolist()) <= TOGETHER[name][1]


@pytest.mark.slow
def test_of_a_drawn_joint_behaviour_students_keep_what_each_did():
    """As imitation does: the product of the marginals."""
    fields = {"teacher": "sample", "envs": 256, "total_steps": 128_000, "lr": 0.01}
    student = jt.distill(cloned("skewed"), evaluations=1, **fields)
    seen = jt.make("matrix/xor").reset(jax.random.key(0))[1]
    for member in range(4):
        policy = student.policy(member, greedy=False)
        told = policy.act(jax.random.key(0), policy.start(), seen)[2]
        marginals = [[9 / 12, 3 / 12], [8 / 12, 4 / 12]]
        np.testing.assert_allclose(np.exp(told["log_probs"]), marginals, atol=0.03)
