"""Categorical distributions over legal actions, in closed form.

A row of log-probabilities is the distribution. Illegal actions have probability zero: they are never
drawn, add nothing to the entropy and receive no gradient. One uniform number is one draw (inverse
CDF), because generating random bits is most of the compile time of a small program.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

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
