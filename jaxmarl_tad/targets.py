"""Value targets: one recursion that every learner in the library uses.

    G_t = r_t + γ (1 − terminated_t) [ (1 − l_t) V(next_t) + l_t G_{t+1} ]
    l_t = λ (1 − (terminated_t ∨ truncated_t))

γ may differ between steps, and so may λ. A terminated step has no value beyond it. A truncated step
keeps the value of its true final observation and cuts the trace, so that nothing flows back from the
next episode. λ=0 is TD(0), λ=1 Monte Carlo, and G − V(observation) is the generalised advantage
estimate (Schulman et al. 2016, eq. 16). Double Q and Peng's Q(λ) are the same recursion with another
V(next).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tad_envs import Real


def lambda_returns(
    reward: Float[Array, "T ..."],
    next_value: Float[Array, "T ..."],
    terminated: Bool[Array, "T ..."],
    truncated: Bool[Array, "T ..."],
    gamma: Real | Float[Array, "T ..."],
    lam: Real | Float[Array, "T ..."],
) -> Float[Array, "T ..."]:
    """G_t for every step, shaped like ``next_value``.

    ``reward``, ``terminated`` and ``truncated`` may lack trailing axes of ``next_value`` (one reward
    for several agents' values); so may ``gamma`` and ``lam``, which are numbers or have axis ``T``.
    """
    goes_on = ~_spread(terminated, next_value)
    uncut = ~_spread(terminated | truncated, next_value)
    discount = jnp.where(goes_on, _spread(gamma, next_value), 0.0)
    trace = jnp.where(uncut, _spread(lam, next_value), 0.0)
    fixed = _spread(reward, next_value) + discount * (1 - trace) * next_value
    carried = discount * trace

    def back(following: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        target = step[0] + step[1] * following
        return target, target

    # Beyond the last recorded step the best estimate of G is the value of what it led to.
    _, targets = jax.lax.scan(back, next_value[-1], (fixed, carried), reverse=True)
    return targets


def next_values(
    value: Float[Array, "T E ..."],
    truncated: Bool[Array, "T E"],
    look: Callable[[Int[Array, "C E"] | None], Float[Array, "C E ..."]],
    horizon: int,
) -> Float[Array, "T E ..."]:
    """V(next_t): the value of the row after, or, where an episode was cut off, of what step t led to.

    Looking at every ``next`` would double the work, and only cut-off steps and the last row need it.
    A clock that runs out after ``horizon`` steps cuts at most ⌈T / horizon⌉ of T steps, so their
    number is known beforehand. Behind a terminated step stands any finite number.

    Args:
        value: V of every row.
        truncated: Where the clock ran out.
        look: ``look(rows)`` is V of what the steps in ``rows`` led to, ``look(None)`` of all steps.
        horizon: Least number of steps between two cuts of one environment.
    """
    steps = truncated.shape[0]
    most = -(-steps // horizon) + 1
    if 2 * most >= steps:
        return look(None)
    apart = truncated | (jnp.arange(steps) == steps - 1)[:, None]
    number = jnp.cumsum(apart, axis=0)
    rows = jnp.sum(number <= jnp.arange(most)[:, None, None], axis=1)  # of the k-th step apart
    ahead = look(jnp.minimum(rows, steps - 1))
    slot = jnp.maximum(number - 1, 0).reshape(apart.shape + (1,) * (value.ndim - 2))
    following = jnp.concatenate([value[1:], value[-1:]])
    return jnp.where(_spread(apart, value), jnp.take_along_axis(ahead, slot, axis=0), following)


def beyond_death(
    value: Float[Array, "*batch N"], alive: Bool[Array, "*batch N"]
) -> Float[Array, "*batch N"]:
    """Values of what follows, the living team's mean in the place of a dead agent's.

    A dead agent's view says nothing, and it still earns what the team earns.
    """
    team = jnp.sum(jnp.where(alive, value, 0.0), -1, keepdims=True)
    team = team / jnp.maximum(jnp.sum(alive, -1, keepdims=True), 1)
    return jnp.where(alive, value, team)


def _spread(x: Real | Array, like: Array) -> Array:
    """``x`` with trailing unit axes broadcast to the shape of ``like``."""
    x = jnp.asarray(x)
    return jnp.broadcast_to(x.reshape(x.shape + (1,) * (like.ndim - x.ndim)), like.shape)
