"""Value targets: one recursion that every learner in the library uses.

    G_t = r_t + γ (1 − terminated_t) [ (1 − l_t) V(next_t) + l_t G_{t+1} ]
    l_t = λ (1 − (terminated_t ∨ truncated_t))

γ may differ between steps, and so may λ. A terminated step has no value beyond it. A truncated step
keeps the value of its true final observation and cuts the trace, so that nothing flows back from the
next episode. λ=0 is TD(0), λ=1 Monte Carlo, and G − V(observation) is the generalised advantage
estimate (Schulman et al. 2016, eq. 16). Double Q and Peng's Q(λ) are the same recursion with another
V(next).

:func:`n_step_returns` stops after n steps instead of fading out by λ, with the same ends.
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


def corrected_returns(
    reward: Float[Array, "T ..."],
    value: Float[Array, "T ..."],
    next_value: Float[Array, "T ..."],
    terminated: Bool[Array, "T ..."],
    truncated: Bool[Array, "T ..."],
    gamma: Real,
    lam: Real,
) -> Float[Array, "T ..."]:
    """Q*(λ): G_t = Q(o_t, a_t) + Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V(next_t) − Q(o_t, a_t).

    ``value`` is Q of the actions taken and ``next_value`` the best in what followed. Unlike in
    :func:`lambda_returns`, what an exploring action at t + k gave away is not held against a_t
    (Harutyunyan et al. 2016, eq. 6). Traces are cut as there.
    """
    one_step = lambda_returns(reward, next_value, terminated, truncated, gamma, 0.0)
    nothing = jnp.zeros_like(next_value)
    return value + lambda_returns(one_step - value, nothing, terminated, truncated, gamma, lam)


def n_step_returns(
    reward: Float[Array, "T ..."],
    next_value: Float[Array, "T ..."],
    terminated: Bool[Array, "T ..."],
    truncated: Bool[Array, "T ..."],
    gamma: Real | Float[Array, "T ..."],
    steps: int,
) -> Float[Array, "T ..."]:
    """Σ_{k<n} γ^k r_{t+k} + γ^n V(next_{t+n−1}) with n = ``steps``, shaped like ``next_value``.

    A terminated step ends the sum; a truncated one, and the last that was recorded, end it with the
    value of what they led to. The return over k steps is one step of the return over k − 1::

        G⁽ᵏ⁾_t = r_t + γ (1 − terminated_t) (V(next_t) if cut_t or k = 1 else G⁽ᵏ⁻¹⁾_{t+1})
    """
    discount = jnp.where(_spread(terminated, next_value), 0.0, _spread(gamma, next_value))
    last = jnp.arange(reward.shape[0]) == reward.shape[0] - 1
    cut = _spread(truncated, next_value) | _spread(last, next_value)
    reward = _spread(reward, next_value)

    def longer(target: Array, _: None) -> tuple[Array, None]:
        following = jnp.where(cut, next_value, jnp.roll(target, -1, axis=0))
        return reward + discount * following, None

    return jax.lax.scan(longer, reward + discount * next_value, length=steps - 1)[0]


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


def of_next_living(
    values: Float[Array, "*batch N"],
    alive: Bool[Array, "*batch N"],
    beyond: Float[Array, "*batch"],
    discount: Real = 1.0,
) -> Float[Array, "*batch N"]:
    """Of agents that choose in this order, the value of the next living one; ``beyond`` after the last.

    A value is discounted once for each place between; ``beyond`` counts as it is for the last place.
    """

    def back(following: Array, own: tuple[Array, Array]) -> tuple[Array, Array]:
        value, living = own
        return jnp.asarray(discount * jnp.where(living, value, following)), following

    moved = (jnp.moveaxis(values, -1, 0), jnp.moveaxis(alive, -1, 0))
    _, following = jax.lax.scan(back, beyond, moved, reverse=True)
    return jnp.moveaxis(following, 0, -1)


def _spread(x: Real | Array, like: Array) -> Array:
    """``x`` with trailing unit axes broadcast to the shape of ``like``."""
    x = jnp.asarray(x)
    return jnp.broadcast_to(x.reshape(x.shape + (1,) * (like.ndim - x.ndim)), like.shape)
