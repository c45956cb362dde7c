"""Distributions over an agent's actions: categorical over legal actions, or Gaussian, in closed form.

Categorical: a row of log-probabilities is the distribution. Illegal actions have probability zero:
they are never drawn, add nothing to the entropy and receive no gradient. One uniform number is one
draw (inverse CDF), because generating random bits is most of the compile time of a small program.

Gaussian: ``D`` means and ``D`` numbers s make the distribution of D independent dimensions, in units in
which the actions' range is [-1, 1]: z ~ N(μ, σ²) with σ = ½ sigmoid(s), as in HARL and MAT. The action
is z cut off at the range, whose density is nevertheless that of z, or tanh z. Dimensions that an agent
lacks are not counted.

ε-greedy choice by value is here as well.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad.types import Key
from tad_envs import Real, Spec

IMPOSSIBLE = float(np.finfo(np.float32).min) / 4
"""Log-probability of an illegal action: finite, so that 0 times it is 0 and not NaN."""


def log_probabilities(
    logits: Float[Array, "*batch A"], legal: Bool[Array, "*batch A"]
) -> Float[Array, "*batch A"]:
    """Log of the softmax over legal actions."""
    masked = jnp.where(legal, logits, IMPOSSIBLE)
    return jnp.where(legal, jax.nn.log_softmax(masked), IMPOSSIBLE)


def cumulative(log_probs: Float[Array, "*batch A"]) -> Float[Array, "*batch A"]:
    """The distribution function over actions, for :func:`draw`."""
    return jnp.cumsum(jnp.exp(log_probs), axis=-1)


def draw(uniform: Float[Array, "*batch"], cdf: Float[Array, "*batch A"]) -> Int[Array, "*batch"]:
    """Actions by inverse CDF from numbers uniform in [0, 1)."""
    # Rounding must not lift the threshold to the total, where no action would be left to choose.
    threshold = jnp.minimum(uniform, 1 - 2.0**-20) * cdf[..., -1]
    drawn = jnp.sum(cdf <= threshold[..., None], axis=-1).astype(jnp.int32)
    # An agent without any legal action (a dead one) takes action 0, as the mode does.
    return jnp.where(drawn < cdf.shape[-1], drawn, 0)


def sample(
    uniform: Float[Array, "*batch"], log_probs: Float[Array, "*batch A"]
) -> Int[Array, "*batch"]:
    """Actions drawn by inverse CDF from numbers uniform in [0, 1)."""
    return draw(uniform, cumulative(log_probs))


def mode(log_probs: Float[Array, "*batch A"]) -> Int[Array, "*batch"]:
    """The most likely action; the lowest index among equals."""
    return jnp.argmax(log_probs, axis=-1).astype(jnp.int32)


def log_probability(
    log_probs: Float[Array, "*batch A"], action: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Log-probability of the actions that were taken."""
    # By comparison rather than by a gather, whose gradient would be a scatter.
    taken = jnp.arange(log_probs.shape[-1]) == action[..., None]
    return jnp.sum(jnp.where(taken, log_probs, 0.0), axis=-1)


def log_sum(a: Float[Array, "*#batch"], b: Float[Array, "*#batch"]) -> Float[Array, "*batch"]:
    """log(eᵃ + eᵇ) of two numbers that are not both −∞.

    To the last bits of a log-probability, unlike ``jnp.logaddexp``, whose ``log1p`` is exact relative
    to the smaller of both and takes several times as long.
    """
    larger, smaller = jnp.maximum(a, b), jnp.minimum(a, b)
    return larger + jnp.log(1 + jnp.exp(smaller - larger))


def entropy(log_probs: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
    """Entropy in nats; impossible actions add nothing."""
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def kl(p: Float[Array, "*batch A"], q: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
    """KL(p || q) in nats, from log-probabilities over the same legal actions."""
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def decide(
    uniform: Float[Array, "*batch"], log_probs: Float[Array, "*batch A"], greedy: bool
) -> tuple[Int[Array, "*batch"], dict[str, Array]]:
    """Actions, drawn or most likely, and what a policy tells the learner about them."""
    action = mode(log_probs) if greedy else sample(uniform, log_probs)
    return action, {"log_prob": log_probability(log_probs, action), "log_probs": log_probs}


def best(q: Float[Array, "*batch A"], legal: Bool[Array, "*batch A"]) -> Int[Array, "*batch"]:
    """The legal action of the highest value; the lowest index among equals."""
    return jnp.argmax(jnp.where(legal, q, IMPOSSIBLE), axis=-1).astype(jnp.int32)


def taken(q: Float[Array, "*batch A"], action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The values of the actions taken."""
    return jnp.take_along_axis(q, action[..., None], axis=-1)[..., 0]


def highest(q: Float[Array, "*batch A"], legal: Bool[Array, "*batch A"]) -> Float[Array, "*batch"]:
    """The highest value of a legal action."""
    return jnp.max(jnp.where(legal, q, IMPOSSIBLE), axis=-1)


def explore(
    uniform: Float[Array, "*batch"],
    epsilon: Real,
    legal: Bool[Array, "*batch A"],
    otherwise: Int[Array, "*batch"],
) -> Int[Array, "*batch"]:
    """With probability ε a random legal action; one uniform number decides both whether and which."""
    upto = jnp.cumsum(legal, axis=-1)
    count = upto[..., -1]
    rank = (uniform / jnp.maximum(epsilon, 1e-6) * count).astype(jnp.int32)
    rank = jnp.minimum(rank, count - 1)
    chosen = jnp.sum(upto <= rank[..., None], axis=-1).astype(jnp.int32)
    return jnp.where(uniform < epsilon, chosen, otherwise)


# --- Gaussian -------------------------------------------------------------------------------------

Family = Literal["gaussian", "tanh_gaussian"]
"""How continuous actions are distributed."""

FIRST_SPREAD = 1.0
"""s at the beginning: σ = ½ sigmoid(1) = 0.37."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(16)
"""Points and weights of Gauss and Hermite's quadrature over a standard normal number."""
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def mean_and_deviation(
    outputs: Float[Array, "*batch K"],
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch D"]]:
    """μ and σ = ½ sigmoid(s) from ``K = 2 D`` outputs, means first."""
    mean, spread = jnp.split(outputs, 2, axis=-1)
    return mean, 0.5 * jax.nn.sigmoid(spread)


def normal_log_density(
    z: Float[Array, "*batch D"], mean: Float[Array, "*batch D"], deviation: Float[Array, "*batch D"]
) -> Float[Array, "*batch D"]:
    """log N(z; μ, σ²) of each dimension."""
    return -0.5 * ((z - mean) / deviation) ** 2 - jnp.log(deviation) - 0.5 * np.log(2 * np.pi)


def log_slope(z: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """log tanh'(z) = log(1 − tanh² z), also where tanh z is 1 to the last bit."""
    return 2 * (np.log(2) - z - jax.nn.softplus(-2 * z))


def normal_divergence(
    old: Float[Array, "*batch K"], new: Float[Array, "*batch K"], legal: Bool[Array, "*batch D"]
) -> Float[Array, "*batch"]:
    """KL(old || new) of Gaussians over the dimensions that count; tanh on top does not change it.

    Written so that nearly equal distributions do not cancel to noise in single precision.
    """
    (mean, deviation), (new_mean, new_deviation) = mean_and_deviation(old), mean_and_deviation(new)
    shrunk = 2 * (jnp.log(deviation) - jnp.log(new_deviation))
    moved = ((mean - new_mean) / new_deviation) ** 2
    each = 0.5 * (jnp.expm1(shrunk) - shrunk + moved)
    return jnp.sum(jnp.where(legal, each, 0.0), axis=-1)


# --- what a learner uses --------------------------------------------------------------------------


class Head(NamedTuple):
    """A family of distributions over one agent's actions, made from a network's outputs ``[..., K]``.

    ``chosen`` is what is kept of a decision to tell its log-probability later: the index of a discrete
    action, and otherwise ``z``, from which it is exact even where tanh has rounded to 1.
    """

    outputs: int
    """How many numbers the network gives, besides the spreads that do not depend on what is seen."""
    noise: Callable[[Key, int], Array]
    """``(key, agents)``: all that one decision of each draws, ``[N, ...]``."""
    decide: Callable[[Array, Array, Array, bool], tuple[Array, dict[str, Array]]]
    """``(noise, outputs, legal, greedy)``: actions, and what a policy tells the learner of them."""
    judge: Callable[[Array, Array, Array], tuple[Array, Array]]
    """``(outputs, legal, chosen)``: log-probabilities of what was chosen, and entropies."""
    shown: Callable[[Array], Array]
    """What others are shown of ``chosen``: the index, or the action in units of its range."""
    divergence: Callable[[Array, Array, Array], Array]
    """``(old outputs, new outputs, legal)``: KL(old || new) in nats."""


def head(family: Family, spec: Spec) -> Head:
    """The distributions of the actions that ``spec`` describes; ``family`` if they are continuous."""
    if spec.discrete:
        return Head(spec.n_actions, _uniform, _decide, _judge, lambda chosen: chosen, _divergence)
    low, high = spec.bounds or (-1.0, 1.0)
    middle, half = (low + high) / 2, (high - low) / 2
    bounded = family == "tanh_gaussian"

    def shown(z: Array) -> Array:
        return jnp.tanh(z) if bounded else jnp.clip(z, -1.0, 1.0)

    def log_prob_of(mean: Array, deviation: Array, legal: Array, z: Array) -> Array:
        density = normal_log_density(z, mean, deviation) - np.log(half)
        if bounded:
            density = density - log_slope(z)
        return jnp.sum(jnp.where(legal, density, 0.0), axis=-1)

    def decide(noise: Array, outputs: Array, legal: Array, greedy: bool) -> tuple[Array, Any]:
        mean, deviation = mean_and_deviation(outputs)
        z = mean if greedy else mean + deviation * noise
        told = {"log_prob": log_prob_of(mean, deviation, legal, z), "chosen": z, "mean": mean}
        return middle + half * shown(z), told

    def judge(outputs: Array, legal: Array, z: Array) -> tuple[Array, Array]:
        mean, deviation = mean_and_deviation(outputs)
        entropy = jnp.log(deviation * half) + 0.5 * np.log(2 * np.pi * np.e)
        if bounded:  # E log tanh'(z), which has no closed form
            points = mean[..., None] + deviation[..., None] * _NODES.astype(np.float32)
            entropy = entropy + log_slope(points) @ _WEIGHTS.astype(np.float32)
        entropy = jnp.sum(jnp.where(legal, entropy, 0.0), axis=-1)
        return log_prob_of(mean, deviation, legal, z), entropy

    def normal(key: Key, agents: int) -> Array:
        return jax.random.normal(key, (agents, spec.action_dim))

    return Head(spec.action_dim, normal, decide, judge, shown, normal_divergence)


def _uniform(key: Key, agents: int) -> Array:
    return jax.random.uniform(key, (agents,))


def _decide(
    uniform: Array, logits: Array, legal: Array, greedy: bool
) -> tuple[Array, dict[str, Array]]:
    return decide(uniform, log_probabilities(logits, legal), greedy)


def _judge(logits: Array, legal: Array, action: Array) -> tuple[Array, Array]:
    log_probs = log_probabilities(logits, legal)
    return log_probability(log_probs, action), entropy(log_probs)


def _divergence(old: Array, new: Array, legal: Array) -> Array:
    return kl(log_probabilities(old, legal), log_probabilities(new, legal))
