"""A joint policy and a product of agents' policies: how far apart they are, and how to join them.

KL(π_jt ‖ Π_i π_i) = E_{a ~ π_jt}[log π_jt(a) − Σ_i log π_i(a_i)]. Where the π_i are the marginals of
π_jt it is the mutual information of the agents' actions (for more than two, their total correlation):
what no product can express. A gradient through both sides moves the π_i towards π_jt, and π_jt towards
what a product can express.

Joint actions are listed in row-major order, that of :func:`tad_envs.finite.joint_index`. A dead agent
takes action 0 with certainty and adds nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxmarl_tad.distributions import IMPOSSIBLE, log_sum
from jaxmarl_tad.losses import masked_mean
from tad_envs import Real, Spec


def joint_actions(spec: Spec) -> np.ndarray:
    """Every joint action, ``[U, N]``."""
    return np.indices((spec.n_actions,) * spec.n_agents).reshape(spec.n_agents, -1).T


def possible_plans(
    plans: np.ndarray, legal: Bool[Array, "*batch N A"], alive: Bool[Array, "*batch N"]
) -> Bool[Array, "*batch U"]:
    """Joint actions in which every living agent's action is legal and every dead one's is 0."""
    agents = np.arange(plans.shape[1])
    allowed = jnp.where(alive[..., None], legal, jnp.arange(legal.shape[-1]) == 0)
    return jnp.all(allowed[..., agents, plans], axis=-1)


def certain_if_dead(
    log_probs: Float[Array, "*batch N A"], alive: Bool[Array, "*batch N"]
) -> Float[Array, "*batch N A"]:
    """Each agent's log-probabilities, those of a dead agent all on action 0."""
    nothing = jnp.where(jnp.arange(log_probs.shape[-1]) == 0, 0.0, IMPOSSIBLE)
    return jnp.where(alive[..., None], log_probs, nothing)


def product_log_probs(log_probs: Float[Array, "*batch N A"]) -> Float[Array, "*batch U"]:
    """Σ_i log π_i(a_i) of every joint action."""
    total = log_probs[..., 0, :]
    for agent in range(1, log_probs.shape[-2]):  # one axis per agent, added by broadcasting
        pairs = total[..., :, None] + log_probs[..., agent, None, :]
        total = pairs.reshape(*total.shape[:-1], -1)
    return jnp.maximum(total, IMPOSSIBLE)


def marginal_log_probs(joint: Float[Array, "*batch U"], agents: int) -> Float[Array, "*batch N A"]:
    """log Σ_{a_−i} π_jt(a) of every agent and action."""
    width = round(joint.shape[-1] ** (1 / agents))
    lead = joint.ndim - 1
    table = joint.reshape(*joint.shape[:-1], *(width,) * agents)
    axes = range(lead, lead + agents)
    summed = [
        jax.nn.logsumexp(table, axis=tuple(a for a in axes if a != lead + i)) for i in range(agents)
    ]
    return jnp.maximum(jnp.stack(summed, axis=-2), IMPOSSIBLE)


def mixture_log_prob(
    mixture: Real, joint: Float[Array, "*batch"], product: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """log π_c = log(c π_jt + (1 − c) Π_i π_i), with c = ``mixture`` in [0, 1]."""
    c, least = jnp.asarray(mixture, jnp.float32), np.finfo(np.float32).tiny
    log_c, log_rest = jnp.log(jnp.maximum(c, least)), jnp.log(jnp.maximum(1 - c, least))
    return log_sum(log_c + joint, log_rest + product)


def kl_joint_product(
    joint: Float[Array, "*batch U"], log_probs: Float[Array, "*batch N A"]
) -> Float[Array, "*batch"]:
    """KL(π_jt ‖ Π_i π_i) in nats, by enumeration, from log-probabilities of both sides."""
    gap = jnp.where(joint > IMPOSSIBLE, joint - product_log_probs(log_probs), 0.0)
    return jnp.sum(jnp.exp(joint) * gap, axis=-1)


def total_correlation(joint: Float[Array, "*batch U"], agents: int) -> Float[Array, "*batch"]:
    """KL of π_jt to the product of its own marginals: of two agents, their mutual information."""
    return kl_joint_product(joint, marginal_log_probs(joint, agents))


def sampled_kl(
    joint: Float[Array, "*batch"],
    product: Float[Array, "*batch"],
    drawn_with: Float[Array, "*batch"],
    mask: Bool[Array, "*batch"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """A loss whose gradient is that of KL(π_jt ‖ Π_i π_i) in expectation, and an estimate of its value.

    Of samples a ~ π_jt come log π_jt(a), Σ_i log π_i(a_i), and log π_jt(a) when they were drawn, by
    which they are weighted (ρ). With k = log π_jt − Σ_i log π_i, held fixed, and its mean b::

        mean  ρ (k − b) − sg(ρ) Σ_i log π_i(a_i)

    The first term is the score function's, and E ∇ log π_jt = 0 leaves nothing else for π_jt.
    """
    ratio = jnp.exp(joint - drawn_with)
    gap = jax.lax.stop_gradient(joint - product)
    still = jax.lax.stop_gradient(ratio)
    value = masked_mean(still * gap, mask)
    return masked_mean(ratio * (gap - value) - still * product, mask), value
