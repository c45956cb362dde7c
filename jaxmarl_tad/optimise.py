"""Gradient steps: one optimiser, and the loop over epochs and minibatches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int

from jaxmarl_tad.types import Key, Params
from tad_envs import Real


class Optimiser(NamedTuple):
    """``update(gradient, state, params, lr) -> (params, state)``; the learning rate may be traced."""

    init: Callable[[Params], Any]
    update: Callable[[Params, Any, Params, Real], tuple[Params, Any]]


def adam(max_grad_norm: Real, eps: float = 1e-5) -> Optimiser:
    """Adam (Kingma & Ba 2015) on gradients clipped to a global norm."""
    import optax  # it takes a tenth of a second, which a listing or a plan does without

    return _clipped(optax.scale_by_adam(eps=eps), max_grad_norm)


def rmsprop(max_grad_norm: Real, decay: float = 0.99, eps: float = 1e-5) -> Optimiser:
    """RMSprop (Hinton 2012) on gradients clipped to a global norm, as the PyMARL family has it.

    Its scale forgets large gradients within a hundred steps, and Adam's within a thousand.
    """
    import optax

    return _clipped(optax.scale_by_rms(decay=decay, eps=eps), max_grad_norm)


def _clipped(rule: Any, max_grad_norm: Real) -> Optimiser:
    """Steps in the direction that ``rule`` makes of clipped gradients.

    Parameters are laid end to end: the whole vector takes three kernels, each layer's weights would
    take four, and for a small network compiling those takes as long as compiling its loss.
    """

    def init(params: Params) -> Any:
        return rule.init(ravel_pytree(params)[0])

    def update(gradient: Params, state: Any, params: Params, lr: Real) -> tuple[Params, Any]:
        vector, shaped = ravel_pytree(params)
        slope = ravel_pytree(gradient)[0]
        norm = jnp.sqrt(jnp.sum(slope**2))
        slope = slope * jnp.minimum(1.0, max_grad_norm / jnp.maximum(norm, 1e-12))
        direction: Any
        direction, state = rule.update(slope, state)
        return shaped(vector - lr * direction), state

    return Optimiser(init, update)


def epochs(
    update: Callable[[Any, Int[Array, "B"] | None], tuple[Any, Any]],
    carry: Any,
    key: Key,
    *,
    count: int,
    minibatches: int,
    size: int,
) -> tuple[Any, Any]:
    """Run ``update(carry, rows)`` over ``count`` shuffled passes of ``minibatches`` each.

    ``rows`` are the indices, of ``size`` in all, that belong to the minibatch; with one minibatch they
    are None, for everything in its order. Returns the carry and the mean of what ``update`` reported.
    """

    def epoch(carry: Any, i: Array) -> tuple[Any, Any]:
        if minibatches == 1:
            return update(carry, None)
        order = jax.random.permutation(jax.random.fold_in(key, i), size)
        return scan_mean(update, carry, order.reshape(minibatches, -1))

    return scan_mean(epoch, carry, jnp.arange(count))


def scan_mean(
    step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any
) -> tuple[Any, dict[str, Array]]:
    """``jax.lax.scan`` that returns the mean of what the steps report, numbers by name.

    They leave the loop as one vector: each number that left it by itself would cost kernels to
    compile.
    """
    names: list[str] = []

    def vector(carry: Any, x: Any) -> tuple[Any, Array]:
        carry, report = step(carry, x)
        names[:] = report
        return carry, jnp.array([jnp.mean(number) for number in report.values()])

    carry, reports = jax.lax.scan(vector, carry, xs)
    return carry, dict(zip(names, reports.mean(0), strict=True))


class Alone(NamedTuple):
    """Parameters of one part, for :func:`improve`."""

    part: Params


def improve(
    loss: Callable[[Any, Any, Any], tuple[Array, Any]],
    optimiser: Optimiser,
    params: Any,
    states: Any,
    batch: Any,
    memory: Any,
    key: Key,
    *,
    lr: Real,
    count: int,
    minibatches: int,
) -> tuple[Any, Any, Any]:
    """Descend ``loss(params, batch, memory) -> (loss, report)`` over epochs of minibatches.

    ``params`` is a tuple of parts, each with its own optimiser state in ``states`` and its own
    gradient clipping. ``batch`` has leaves ``[T, E, ...]`` and ``memory`` ``[E, ...]``; a minibatch is
    a part of the environments with their whole recorded time, so that memories unroll as they were
    collected. Returns parts, optimiser states and the mean report.
    """
    # A loop carries one vector per part: every leaf that it carries costs kernels to compile.
    vectors, shaped = zip(*map(ravel_pytree, params), strict=True)

    def parts(vectors: tuple[Array, ...]) -> Any:
        return type(params)(*(shape(v) for shape, v in zip(shaped, vectors, strict=True)))

    def update(carry: tuple[Any, Any], rows: Array | None) -> tuple[tuple[Any, Any], Any]:
        vectors, states = carry
        part, part_memory = _rows(batch, rows, axis=1), _rows(memory, rows, axis=0)
        descent = jax.grad(lambda v: loss(parts(v), part, part_memory), has_aux=True)
        slopes, report = descent(vectors)
        stepped = [
            optimiser.update(g, s, v, lr) for g, s, v in zip(slopes, states, vectors, strict=True)
        ]
        vectors, new_states = zip(*stepped, strict=True)
        return (vectors, type(states)(*new_states)), report

    size = jax.tree.leaves(batch)[0].shape[1]
    (vectors, states), report = epochs(
        update, (vectors, states), key, count=count, minibatches=minibatches, size=size
    )
    return parts(vectors), states, report


def _rows(tree: Any, rows: Int[Array, "B"] | None, axis: int) -> Any:
    if rows is None:
        return tree
    # They lie within bounds: a check would be a kernel for each leaf.
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=axis, mode="clip"), tree)
