"""What a run on recorded experience reports of itself, besides its losses.

==============  ==================================================================================
``weight_i``    mean weight of agent i's recorded actions: E exp z_i, 1 where V_i fits (OMIGA (13))
``clamped``     share of steps whose weight is beyond the end of its exponential
``effective``   (Σ w)² / Σ w² as a share of the number of weights: 1 if all are equal
``optimism``    mean of the team's value of what was done, less what it returned: Q_tot(s, a) − G
``divergence``  mean of log μ_i(a_i) − log π_i(a_i | τ_i) over recorded actions, in nats
==============  ==================================================================================

G is the discounted return from there to the episode's end, and counts only where the data hold all of
it: where an episode was cut off what would have followed is not known, and its steps are left out. G
is the return of the policy that acted, so that a little optimism is what learning is for; values far
above the largest return are not.

``divergence`` estimates KL(μ ‖ π) from draws of μ, of every agent, the mean over agents: of the data's
policy from the learned one and not the other way round, for which actions of π would be judged that
nobody took. It needs the log-probabilities of the policy that acted. Where they were not recorded it
is left out; ``log_prob``, the mean of log π_i(a_i | τ_i) that methods report, is −KL(μ ‖ π) − H(μ), so
that it differs from it by a number that is no learner's doing. Where agents acted in turn, μ_i is given
the actions before, and what agents' policies have in common counts as divergence.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad.dataset import Dataset
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.types import Metrics
from tad_envs import Real


def returns_to_go(data: Dataset, gamma: Real) -> tuple[Float[Array, "R"], Bool[Array, "R"]]:
    """G of every step, and whether the data hold all of it: its episode ended by itself."""
    valid, over = jnp.asarray(data.valid), jnp.asarray(data.terminated)
    follows = jnp.append(valid[1:], False)  # whether the next row is a step of the same episode
    goes_on = valid & ~over & follows
    reward = jnp.where(valid, jnp.asarray(data.reward), 0.0)
    unknown = (~valid | ~(over | follows)).astype(jnp.float32)
    ahead = jnp.where(goes_on, 1.0, 0.0)
    found = recursion(jnp.stack([reward, unknown]), jnp.stack([gamma * ahead, ahead]))
    return found[0], found[1] == 0


def recursion(fixed: Float[Array, "K R"], factor: Float[Array, "K R"]) -> Float[Array, "K R"]:
    """x_t = fixed_t + factor_t x_{t+1}, and 0 behind the end, in about 2 √R steps.

    Rows are laid in √R blocks, all of which are gone through at once as if nothing followed them; what
    follows each is then known from the last block to the first.
    """
    rows = fixed.shape[1]
    size = max(1, int(rows**0.5))
    blocks = -(-rows // size)
    grid = jnp.pad(jnp.stack([fixed, factor]), ((0, 0), (0, 0), (0, blocks * size - rows)))
    grid = jnp.moveaxis(grid.reshape(2, -1, blocks, size), -1, 0)  # [size, 2, K, blocks]

    def back(carry: tuple[Array, Array], own: Array) -> tuple[Any, Any]:
        value, share = own[0] + own[1] * carry[0], own[1] * carry[1]
        return (value, share), (value, share)

    nothing, whole = jnp.zeros(grid.shape[2:]), jnp.ones(grid.shape[2:])
    (first, left), (value, share) = jax.lax.scan(back, (nothing, whole), grid, reverse=True)

    def across(following: Array, own: tuple[Array, Array]) -> tuple[Array, Array]:
        return own[0] + own[1] * following, following

    _, following = jax.lax.scan(across, jnp.zeros(len(fixed)), (first.T, left.T), reverse=True)
    found = value + share * following.T  # [size, K, blocks]
    return jnp.moveaxis(found, 0, -1).reshape(len(fixed), -1)[:, :rows]


class Watch(NamedTuple):
    """What is looked up about recorded steps; see :func:`watch`."""

    to_go: Float[Array, "R"]
    known: Bool[Array, "R"]
    log_prob: Float[Array, "R N"] | None

    def of_value(self, seen: Any, total: Float[Array, "T B"]) -> Metrics:
        """``optimism`` of the team's value of the recorded actions in a lesson."""
        counts = seen.valid & self.known[seen.row]
        return {"optimism": masked_mean(total - self.to_go[seen.row], counts)}

    def of_policy(self, seen: Any, log_prob: Float[Array, "T B N"]) -> Metrics:
        """``log_prob``, and ``divergence`` where it can be told."""
        report = {"log_prob": masked_mean(log_prob, seen.counts)}
        if self.log_prob is None:
            return report
        gap = self.log_prob[seen.row] - log_prob
        return report | {"divergence": masked_mean(gap, seen.counts)}


def watch(data: Dataset, gamma: Real = 1.0) -> Watch:
    """What a learner's reports compare with; made once for all gradient steps of a chunk."""
    told = None if data.log_prob is None else jnp.asarray(data.log_prob)
    return Watch(*returns_to_go(data, gamma), told)


def team_of(
    value: Float[Array, "*batch K"], counts: Bool[Array, "*batch #K"]
) -> Float[Array, "*batch"]:
    """The team's value, where agents have values of their own: the mean of those that count.

    Every agent's is of what the team earns.
    """
    total = jnp.sum(jnp.where(counts, value, 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(counts, axis=-1), 1)


def of_weights(weight: Float[Array, "T B N"], counts: Bool[Array, "T B N"]) -> Metrics:
    """``weight_i`` of every agent, and ``effective``."""
    each = [masked_mean(weight[..., i], counts[..., i]) for i in range(weight.shape[-1])]
    report = {f"weight_{i}": mean for i, mean in enumerate(each)}
    return report | {"effective": effective_share(weight, counts)}


def effective_share(weight: Float[Array, "*batch"], counts: Bool[Array, "*batch"]) -> Float[Array, ""]:
    """(Σ w)² / Σ w² as a share of the number of weights."""
    mean = masked_mean(weight, counts)
    return mean**2 / jnp.maximum(masked_mean(weight**2, counts), 1e-12)


def ages(data: Dataset) -> Int[Array, "R"]:
    """Steps of the episode before each row; -1 where a part of larger data lacks its beginning."""
    row, begins = jnp.arange(len(data.valid)), jnp.asarray(data.first)
    stretches = begins | jnp.append(True, ~jnp.asarray(data.valid)[:-1])
    start = jax.lax.cummax(jnp.where(stretches, row, 0))
    return jnp.where(begins[start], row - start, -1)
