"""Value normalisation against the published recursion in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarl_tad import normalise
from jaxmarl_tad.normalise import init_scale, update_scale

UPDATE = jax.jit(normalise.update_scale)
normalised, restored = jax.jit(normalise.normalised), jax.jit(normalise.restored)
SHAPE = (16, 4)


def batches(count, scale=3.0, offset=-2.0):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield (offset + scale * rng.normal(size=SHAPE)).astype(np.float32), rng.random(SHAPE) < 0.7


def test_nothing_seen_is_the_identity():
    x = next(batches(1))[0]
    np.testing.assert_array_equal(normalised(init_scale(), x), x)
    np.testing.assert_array_equal(restored(init_scale(), x), x)


def test_equals_the_published_recursion():
    # ValueNorm of MAPPO's code: μ ← β μ + (1 − β) mean(x), likewise of x² and of the weight 1, with
    # β = 0.99999; both averages are divided by the weight; the variance is at least 1e-2.
    beta, mean, square, weight, scale = 0.99999, 0.0, 0.0, 0.0, init_scale()
    for x, mask in batches(5):
        kept = x[mask].astype(np.float64)
        mean = beta * mean + (1 - beta) * kept.mean()
        square = beta * square + (1 - beta) * (kept**2).mean()
        weight = beta * weight + (1 - beta)
        scale = UPDATE(scale, x, mask)
        mu = mean / weight
        sigma = np.sqrt(max(square / weight - mu**2, 1e-2))
        np.testing.assert_allclose(normalised(scale, x), (x - mu) / sigma, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(restored(scale, x), x * sigma + mu, rtol=1e-4, atol=1e-4)


def test_the_first_batch_is_normalised_exactly():
    x, mask = next(batches(1))
    kept = np.asarray(normalised(UPDATE(init_scale(), x, mask), x), np.float64)[mask]
    assert kept.mean() == pytest.approx(0, abs=1e-5)
    assert kept.std() == pytest.approx(1, abs=1e-4)


def test_restored_inverts_normalised():
    x, mask = next(batches(1))
    scale = UPDATE(init_scale(), x, mask)
    np.testing.assert_allclose(restored(scale, normalised(scale, x)), x, rtol=1e-5, atol=1e-5)


def test_masked_entries_have_no_influence():
    x, mask = next(batches(1))
    there = UPDATE(init_scale(), np.where(mask, x, np.float32(1e6)), mask)
    for a, b in zip(UPDATE(init_scale(), x, mask), there, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [0.0, 10.0, -500.0])
def test_a_constant_target_is_centred_and_not_blown_up(value):
    # Its variance is 0, of which the floor makes 0.01: deviations are multiplied by 10 at most. In
    # float32 the difference of squares of size 500² is off by up to 500² · 6e-8 · 2 = 0.03.
    x, mask = np.full(SHAPE, value, np.float32), np.ones(SHAPE, bool)
    scale = UPDATE(init_scale(), x, mask)
    np.testing.assert_allclose(normalised(scale, x), 0, atol=1e-3)
    slope = float(jax.grad(lambda y: normalised(scale, y))(0.0))
    assert 5 <= slope <= 10.01


def test_shift_and_scale_of_rewards_leave_normalised_targets_alone():
    x, mask = next(batches(1))
    there = 7 * x - 20
    a = normalised(UPDATE(init_scale(), x, mask), x)
    b = normalised(UPDATE(init_scale(), there, mask), there)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_batch_in_which_nothing_counts_changes_nothing():
    scale = update_scale(init_scale(), jnp.asarray([3.0, 5.0]), jnp.ones(2, bool))
    after = update_scale(scale, jnp.asarray([100.0, -100.0]), jnp.zeros(2, bool))
    np.testing.assert_array_equal(np.asarray(after), np.asarray(scale))
