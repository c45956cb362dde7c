"""Loss terms and masked statistics against closed forms, SciPy and NumPy in float64."""

import jax
import numpy as np
import pytest
import scipy.special

from jaxmarl_tad import losses
from jaxmarl_tad.losses import clipped_surrogate, clipped_value_loss

SHAPE = (4, 3, 2)
masked_mean, standardise, huber = map(jax.jit, (losses.masked_mean, losses.standardise, losses.huber))


def sample(seed, scale=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    x = (offset + scale * rng.normal(size=SHAPE)).astype(np.float32)
    return x, rng.random(SHAPE) < 0.6


# min(ρ Â, clip(ρ, 0.8, 1.2) Â) and its slope in ρ. Beyond the clip in the direction that Â wants, the
# objective is flat; beyond it in the other direction the unclipped term is smaller and pulls back.
SURROGATE = [
    # ρ, Â, objective, slope
    (1.0, 2.0, 2.0, 2.0),
    (1.5, 1.0, 1.2, 0.0),
    (0.5, 1.0, 0.5, 1.0),
    (1.5, -1.0, -1.5, -1.0),
    (0.5, -1.0, -0.8, 0.0),
    (1.1, -3.0, -3.3, -3.0),
    (7.0, 0.0, 0.0, 0.0),
]


def test_clipped_surrogate_in_every_corner():
    ratio, advantage, objective, slope = np.float32(SURROGATE).T
    value, gradient = jax.vmap(jax.value_and_grad(clipped_surrogate), (0, 0, None))(
        ratio, advantage, 0.2
    )
    np.testing.assert_allclose(value, objective, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6)


@pytest.mark.parametrize("delta", [0.5, 10.0])
def test_huber_equals_scipy(delta):
    error = np.linspace(-30, 30, 121, dtype=np.float32)
    np.testing.assert_allclose(huber(error, delta), scipy.special.huber(delta, error), rtol=1e-6)
    slope = jax.vmap(jax.grad(huber), (0, None))(error, delta)
    np.testing.assert_allclose(slope, np.clip(error, -delta, delta), rtol=1e-6)


# max(l(G − V), l(G − V_clip)) with V_clip = V_old + clip(V − V_old, ±0.2) and l(e) = ½e² (δ = 10).
VALUE = [
    # V, V_old, G, loss, slope in V
    (0.1, 0.0, 1.0, 0.5 * 0.9**2, -0.9),  # within the clip: the plain loss
    (0.5, 0.0, 1.0, 0.5 * 0.8**2, 0.0),  # moved too far towards G: held at 0.2, no slope
    (-0.5, 0.0, 1.0, 0.5 * 1.5**2, -1.5),  # moved away from G: the plain loss is worse and pulls
    (0.5, 0.0, 20.0, 10 * (19.8 - 5), 0.0),  # held, and the error 19.8 is beyond δ: 10 (19.8 − 10/2)
]


def test_clipped_value_loss_in_every_corner():
    value, old, target, loss, slope = np.float32(VALUE).T
    ours, gradient = jax.vmap(jax.value_and_grad(clipped_value_loss), (0, 0, 0, None, None))(
        value, old, target, 0.2, 10.0
    )
    np.testing.assert_allclose(ours, loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6)


def test_masked_mean_is_the_mean_of_what_counts():
    x, mask = sample(0)
    expected = 3.0 * x[mask].astype(np.float64).mean()
    assert float(masked_mean(x, mask, 3.0)) == pytest.approx(expected, rel=1e-6)


def test_standardise_is_z_scores_of_what_counts():
    x, mask = sample(1, scale=5, offset=-3)
    kept = x[mask].astype(np.float64)
    expected = np.where(mask, (x - kept.mean()) / (kept.std() + 1e-5), 0)
    np.testing.assert_allclose(standardise(x, mask), expected, rtol=1e-5, atol=1e-6)


def test_standardise_survives_a_large_mean():
    # E[x²] − E[x]² in float32 would have an error of about 1e8 · 6e-8 = 6 in a variance of 1.
    x, mask = sample(2, offset=1e4)
    kept = x[mask].astype(np.float64)
    expected = np.where(mask, (x - kept.mean()) / kept.std(), 0)
    np.testing.assert_allclose(standardise(x, mask), expected, rtol=1e-2, atol=1e-2)


def test_standardise_of_a_constant_is_zero():
    _, mask = sample(3)
    np.testing.assert_array_equal(standardise(np.full(SHAPE, 0.5, np.float32), mask), 0)


@pytest.mark.parametrize("filling", [1e30, -7.0, np.nan, np.inf])
@pytest.mark.parametrize("function", [masked_mean, standardise], ids=["mean", "standardise"])
def test_masked_entries_have_no_influence(function, filling):
    x, mask = sample(4)
    other = np.where(mask, x, np.float32(filling))
    np.testing.assert_array_equal(function(x, mask), function(other, mask))


@pytest.mark.parametrize("function", [masked_mean, standardise], ids=["mean", "standardise"])
def test_masked_entries_have_no_gradient(function):
    x, mask = sample(5)
    direction = np.random.default_rng(6).normal(size=SHAPE).astype(np.float32)
    gradient = jax.grad(lambda x: (function(x, mask) * direction).sum())(x)
    np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0)
    assert np.all(np.asarray(gradient)[mask] != 0)


def test_nothing_that_counts_gives_zero_and_finite_gradients():
    x, nobody = sample(7)[0], np.zeros(SHAPE, bool)
    assert float(masked_mean(x, nobody)) == 0
    np.testing.assert_array_equal(standardise(x, nobody), 0)
    np.testing.assert_array_equal(jax.grad(lambda x: masked_mean(x, nobody))(x), 0)


def test_statistics_do_not_depend_on_the_number_of_masked_agents():
    x, mask = sample(8)
    wider = np.concatenate([x, np.ones_like(x)], -1), np.concatenate([mask, np.zeros_like(mask)], -1)
    np.testing.assert_allclose(masked_mean(*wider), masked_mean(x, mask), rtol=1e-6)
    np.testing.assert_allclose(standardise(*wider)[..., :2], standardise(x, mask), rtol=1e-5)
