"""Masked categorical distributions against distrax, closed-form gradients and frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxmarl_tad import distributions
from jaxmarl_tad.networks.tables import choices
from jaxmarl_tad.sharing import sharing

ROWS, A = 64, 5
LOG_PROBABILITIES = jax.jit(distributions.log_probabilities)
LOG_PROBABILITY = jax.jit(distributions.log_probability)
SAMPLE = jax.jit(distributions.sample)
DECIDE = jax.jit(distributions.decide, static_argnums=2)


def rows(seed, scale=2.0):
    """Logits and masks ``[ROWS, A]``: the first 5 allow one action each, the next one all."""
    rng = np.random.default_rng(seed)
    legal = rng.random((ROWS, A)) < 0.5
    legal[np.arange(ROWS), rng.integers(A, size=ROWS)] = True
    legal[:A], legal[A] = np.eye(A, dtype=bool), True
    return (scale * rng.normal(size=(ROWS, A))).astype(np.float32), legal


def legal_actions(seed, legal):
    return (np.random.default_rng(seed).random(legal.shape) * legal).argmax(-1).astype(np.int32)


def exact(logits, legal):
    """Probabilities in float64."""
    weights = np.where(legal, np.exp(logits.astype(np.float64)), 0)
    return weights / weights.sum(-1, keepdims=True)


def test_values_equal_distrax(distrax):
    logits, legal = rows(0)
    other, _ = rows(1)
    action = legal_actions(2, legal)
    p, q = (distrax.Categorical(logits=np.where(legal, x, -np.inf)) for x in (logits, other))
    ours, theirs = LOG_PROBABILITIES(logits, legal), LOG_PROBABILITIES(other, legal)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(LOG_PROBABILITY(ours, action), p.log_prob(action), **close)
    np.testing.assert_allclose(distributions.entropy(ours), p.entropy(), **close)
    np.testing.assert_allclose(distributions.kl(ours, theirs), p.kl_divergence(q), **close)
    np.testing.assert_array_equal(distributions.mode(ours), p.mode())
    np.testing.assert_allclose(np.exp(ours), p.probs, **close)


def test_gradients_have_their_closed_forms():
    # With p = softmax over legal actions: ∂ log p_a / ∂ z_k = 1[k = a] − p_k,
    # ∂ H / ∂ z_k = −p_k (log p_k + H) and ∂ KL(p ‖ q) / ∂ z^q_k = q_k − p_k; all 0 where k is illegal.
    logits, legal = rows(3)
    other, _ = rows(4)
    action = legal_actions(5, legal)
    p, q = exact(logits, legal), exact(other, legal)
    log_p = np.log(np.where(legal, p, 1))
    entropy = -(p * log_p).sum(-1, keepdims=True)

    def slope(function):
        return jax.jit(
            jax.grad(lambda z: function(distributions.log_probabilities(z, jnp.asarray(legal))).sum())
        )

    target = LOG_PROBABILITIES(logits, legal)
    taken = slope(lambda lp: distributions.log_probability(lp, jnp.asarray(action)))(logits)
    spread = slope(distributions.entropy)(logits)
    divergence = slope(lambda lp: distributions.kl(target, lp))(other)
    np.testing.assert_allclose(taken, legal * (np.eye(A)[action] - p), atol=1e-6)
    np.testing.assert_allclose(spread, -p * (log_p + entropy), atol=1e-6)
    np.testing.assert_allclose(divergence, q - p, atol=1e-6)
    for gradient in (taken, spread, divergence):
        np.testing.assert_array_equal(np.asarray(gradient)[~legal], 0)
        np.testing.assert_array_equal(np.asarray(gradient)[:A], 0)  # one legal action: no choice


def test_the_sum_of_two_probabilities():
    """Values as in double precision, and gradients the shares of both, also where one is nothing."""
    a = np.asarray([0.0, 0.0, -1e-3, -80.0, -3.0, 0.0, -np.inf, distributions.IMPOSSIBLE], np.float32)
    b = np.asarray([0.0, -np.inf, -9.0, -1e-3, -200.0, -1e30, -2.0, -5.0], np.float32)
    sums, back = jax.vjp(distributions.log_sum, a, b)
    exact = np.logaddexp(a.astype(np.float64), b)
    np.testing.assert_allclose(sums, exact, rtol=1e-6, atol=1e-7)
    for slope, part in zip(back(jnp.ones(len(a))), (a, b), strict=True):
        np.testing.assert_allclose(slope, np.exp(part - exact), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_extreme_logits_stay_finite(scale):
    logits, legal = rows(6, scale)
    log_probs = LOG_PROBABILITIES(logits, legal)
    best = np.where(legal, logits, -np.inf).argmax(-1)
    np.testing.assert_array_equal(distributions.mode(log_probs), best)
    assert np.isfinite(distributions.entropy(log_probs)).all()
    gradient = jax.grad(lambda z: distributions.entropy(LOG_PROBABILITIES(z, legal)).sum())(logits)
    assert np.isfinite(gradient).all()


DRAWN = {
    "full": ([0.5, 0.0, 1.0, -1.0, 0.2], [1, 1, 1, 1, 1]),
    "masked": ([3.0, 0.0, 9.0, -1.0, 0.2], [0, 1, 0, 1, 1]),
    "peaked": ([6.0, 0.0, 0.0, 0.0, 0.0], [1, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("case", DRAWN)
def test_frequencies_follow_the_probabilities(case):
    draws = 100_000
    logits, legal = np.float32(DRAWN[case][0]), np.bool_(DRAWN[case][1])
    uniform = jax.random.uniform(jax.random.key(list(DRAWN).index(case)), (draws,))
    log_probs = jnp.broadcast_to(LOG_PROBABILITIES(logits, legal), (draws, A))
    counts = np.bincount(SAMPLE(uniform, log_probs), minlength=A)
    np.testing.assert_array_equal(counts[~legal], 0)
    expected = draws * exact(logits, legal)
    assert scipy.stats.chisquare(counts[legal], expected[legal]).pvalue > 1e-3


EDGES = np.float32([0, 2.0**-30, 0.25, 0.5, 0.75, 1 - 2.0**-20, 1 - 2.0**-23, 1 - 2.0**-24])


@given(st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 30.0, 200.0]))
def test_no_uniform_number_draws_an_illegal_action(seed, scale):
    logits, legal = rows(seed, scale)
    rng = np.random.default_rng(seed)
    log_probs = LOG_PROBABILITIES(logits, legal)
    for edge in [*EDGES, rng.random(ROWS, np.float32)]:
        action = np.asarray(SAMPLE(np.broadcast_to(edge, ROWS), log_probs))
        assert legal[np.arange(ROWS), action].all()


def test_edge_uniforms_draw_the_first_and_the_last_legal_action():
    _, legal = rows(7)
    log_probs = LOG_PROBABILITIES(np.zeros((ROWS, A), np.float32), legal)
    first, last = (np.broadcast_to(np.float32(u), ROWS) for u in (0, 1 - 2.0**-24))
    np.testing.assert_array_equal(SAMPLE(first, log_probs), legal.argmax(-1))
    np.testing.assert_array_equal(SAMPLE(last, log_probs), A - 1 - legal[:, ::-1].argmax(-1))


def test_the_uniform_number_decides_by_the_distribution_function():
    # Probabilities 1/2, 0 (illegal), 1/4, 1/8, 1/8 have the steps 1/2, 3/4, 7/8.
    p = np.log(np.float32([0.5, 1.0, 0.25, 0.125, 0.125]))
    log_probs = LOG_PROBABILITIES(p, np.bool_([1, 0, 1, 1, 1]))
    uniform = np.float32([0.0, 0.49, 0.51, 0.74, 0.76, 0.87, 0.88, 0.99])
    action = SAMPLE(uniform, jnp.broadcast_to(log_probs, (8, A)))
    np.testing.assert_array_equal(action, [0, 0, 2, 2, 3, 3, 4, 4])


def test_an_agent_without_legal_actions_does_nothing_harmful():
    # Environments may leave a dead agent no legal action; what it "does" is masked, not out of range.
    log_probs = LOG_PROBABILITIES(np.zeros((ROWS, A), np.float32), np.zeros((ROWS, A), bool))
    for greedy in (False, True):
        action, told = DECIDE(np.full(ROWS, 0.3, np.float32), log_probs, greedy)
        assert ((np.asarray(action) >= 0) & (np.asarray(action) < A)).all()
        assert np.isfinite(told["log_prob"]).all()
    assert np.isfinite(distributions.entropy(log_probs)).all()


def test_decide_tells_what_it_did():
    logits, legal = rows(8)
    log_probs = LOG_PROBABILITIES(logits, legal)
    uniform = np.random.default_rng(9).random(ROWS, np.float32)
    for greedy, expected in [
        (True, np.where(legal, logits, -np.inf).argmax(-1)),
        (False, SAMPLE(uniform, log_probs)),
    ]:
        action, told = DECIDE(uniform, log_probs, greedy)
        np.testing.assert_array_equal(action, expected)
        p = exact(logits, legal)[np.arange(ROWS), action]
        np.testing.assert_allclose(np.exp(told["log_prob"]), p, rtol=1e-5)
        np.testing.assert_array_equal(told["log_probs"], log_probs)


def test_mode_takes_the_lowest_of_equals():
    log_probs = LOG_PROBABILITIES(np.float32([1, 2, 2, 0, 2]), np.bool_([1, 0, 1, 1, 1]))
    assert int(distributions.mode(log_probs)) == 2


@pytest.mark.parametrize("mode", ["full", "full_id", "none"])
def test_distributions_of_a_table_are_those_of_its_rows(mode):
    agents, inputs = 3, 4
    share = sharing(mode, agents)
    rng = np.random.default_rng(10)
    size = inputs * (agents if share.identity else 1)
    table = rng.normal(size=(share.sets, size, A)).astype(np.float32)
    legal = rows(11)[1][A : A + agents]
    made = choices(jnp.asarray(table), share, jnp.asarray(legal))
    for agent in range(agents):
        for row in range(inputs):
            own = table[share.assignment[agent], row + (agent * inputs if share.identity else 0)]
            p = exact(own, legal[agent])
            np.testing.assert_allclose(np.exp(made.log_probs[agent, row]), p, atol=1e-6)
            np.testing.assert_allclose(made.cumulative[agent, row], p.cumsum(), atol=1e-6)
            expected = -(p * np.log(np.where(p > 0, p, 1))).sum()
            np.testing.assert_allclose(made.entropy[agent, row], expected, atol=1e-5)


def test_taken_is_what_each_sample_would_give():
    agents, inputs, steps, envs = 2, 4, 6, 5
    rng = np.random.default_rng(12)
    share, legal = sharing("full_id", agents), rows(13)[1][A : A + agents]
    table = rng.normal(size=(1, inputs * agents, A)).astype(np.float32)
    row = rng.integers(inputs, size=(steps, envs, agents)).astype(np.int32)
    action = legal_actions(14, np.broadcast_to(legal, (steps, envs, agents, A)))
    alive = rng.random((steps, envs, agents)) < 0.6

    def taken(table, alive):
        made = choices(table, share, jnp.asarray(legal))
        return made.taken(jnp.arange(agents), jnp.asarray(row), jnp.asarray(action), alive)

    log_prob, entropy = jax.jit(taken)(table, alive)
    p = exact(table[0].reshape(agents, inputs, A)[np.arange(agents), row], legal)
    each = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    expected = np.take_along_axis(np.log(np.where(p > 0, p, 1)), action[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-6)
    assert float(entropy) == pytest.approx(each[alive].mean(), rel=1e-5)
    assert float(jax.jit(taken)(table, np.zeros_like(alive))[1]) == 0
