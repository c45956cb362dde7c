"""A network as two pure functions and the memory it starts with.

Architectures are flax modules; how their parameters are drawn is decided here, for all of them:
variance scaling from *one* flat draw of normal numbers, sliced and reshaped. One draw per network
compiles several times faster than one per layer, and without orthogonal matrices no QR decomposition
is ever batched (jax's CPU runtime can hang for ever in one).
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad.types import Activation, Key, Memory, Params
from tad_envs import Spec, require

Kind = Literal["auto", "table", "mlp"]
Remember = Literal["none", "gru"]

LARGEST_TABLE = 65_536
"""Rows beyond which ``network="auto"`` no longer chooses a table."""


class Net(NamedTuple):
    """``apply(params, memory, x) -> (output, memory)`` for one input of one agent at one step."""

    init: Callable[[Key], Params]
    start: Callable[[], Memory]
    apply: Callable[[Params, Memory, Any], tuple[Array, Memory]]


def network(
    kind: Kind,
    *,
    inputs: int,
    outputs: int,
    hidden: tuple[int, ...] = (64, 64),
    memory: Remember = "none",
    activation: Activation = "relu",
    layer_norm: bool = True,
    gain: float = 1.0,
) -> Net:
    """A network with ``outputs`` outputs.

    ``kind="table"`` reads row ``x`` (an int below ``inputs``); otherwise ``x`` is ``[inputs]`` floats
    through hidden layers (linear, activation, layer norm), after which a GRU of the last hidden width
    remembers if ``memory="gru"``. ``gain`` scales the output layer's (or the table's) initial values.
    """
    if kind == "table":
        return table(inputs, outputs, scale=gain)
    from jaxmarl_tad.networks.modules import Torso

    recurrent = memory == "gru"
    module = Torso(
        hidden=hidden,
        outputs=outputs,
        recurrent=recurrent,
        activation=activation,
        layer_norm=layer_norm,
    )
    width = hidden[-1]

    def start() -> Memory:
        return jnp.zeros(width) if recurrent else ()

    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros(width) if recurrent else (), jnp.zeros(inputs))
    )
    return Net(
        init=lambda key: draw(key, shapes, gain),
        start=start,
        apply=lambda params, memory, x: module.apply(params, memory, x),  # type: ignore[return-value]
    )


def table(rows: int, outputs: int, scale: float = 0.01) -> Net:
    """One row of free parameters per distinct input: exact for a finite game."""
    return Net(
        init=lambda key: normal(key, (rows, outputs), scale),
        start=lambda: (),
        apply=lambda params, memory, index: (params[index], memory),
    )


def multilinear(rows: int, agents: int, actions: int) -> Net:
    """A table of a number for each joint action, fed ``(index, actions [..., N, A])``.

    Of mixtures of actions it gives the expectation, so that it is differentiable in them.
    """

    def apply(params: Params, memory: Memory, x: tuple[Array, Array]) -> tuple[Array, Memory]:
        index, chosen = x
        number = params[index]
        for agent in range(agents):
            number = number.reshape(*number.shape[:-1], actions, -1)
            number = jnp.einsum("...ar,...a->...r", number, chosen[..., agent, :])
        return number, memory

    return Net(lambda key: jnp.zeros((rows, actions**agents)), lambda: (), apply)


def with_spread(net: Net, dimensions: int, first: float) -> Net:
    """``net`` of the means, with ``dimensions`` free parameters behind them that nothing is fed to."""

    def apply(params: Params, memory: Memory, x: Array) -> tuple[Array, Memory]:
        mean, memory = net.apply(params["mean"], memory, x)
        return beside(mean, params["spread"]), memory

    return net._replace(
        init=lambda key: {"mean": net.init(key), "spread": jnp.full(dimensions, first, jnp.float32)},
        apply=apply,
    )


def beside(mean: Float[Array, "*batch D"], spread: Float[Array, "D"]) -> Float[Array, "*batch K"]:
    """Means, and behind each of them the same ``spread``."""
    return jnp.concatenate([mean, jnp.broadcast_to(spread, mean.shape)], axis=-1)


def normal(key: Key, shape: tuple[int, ...], scale: float) -> Array:
    """Normal numbers of this standard deviation; none are drawn where it is 0."""
    return scale * jax.random.normal(key, shape) if scale else jnp.zeros(shape)


def draw(key: Key, shapes: Params, out_gain: float) -> Params:
    """Parameters for ``shapes``: weights with variance gain²/fan-in, embeddings 1; biases 0, scales 1.

    The gain is √2 (for ReLU and tanh alike, as in the recipe) except in the module named ``out``, where
    it is ``out_gain``.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    sizes = [math.prod(leaf.shape) for _, leaf in leaves]
    numbers = jax.random.normal(key, (sum(sizes),))
    made, at = [], 0
    for (path, leaf), size in zip(leaves, sizes, strict=True):
        names = [str(getattr(part, "key", part)) for part in path]
        if names[-1] == "bias":
            made.append(jnp.zeros(leaf.shape))
        elif names[-1] == "scale":
            made.append(jnp.ones(leaf.shape))
        elif names[-1] == "embedding":  # selected, not summed over: each row has variance 1
            made.append(numbers[at : at + size].reshape(leaf.shape))
        else:
            turned = names[-1] == "weight"  # [outputs, inputs], and [..., inputs, outputs] else
            part = numbers[at : at + size].reshape(leaf.shape[::-1] if turned else leaf.shape)
            fan_in = part.shape[-2] if part.ndim > 1 else part.shape[-1]
            gain = out_gain if "out" in names else math.sqrt(2.0)
            part = part * (gain / math.sqrt(fan_in))
            made.append(part.T if turned else part)
        at += size
    return jax.tree.unflatten(structure, made)


def unroll(
    apply: Callable[[Memory, Any], tuple[Any, Memory]],
    start: Memory,
    memory: Memory,
    xs: Any,
    first: Bool[Array, "T E"],
    together: Callable[[Memory, Any, int], tuple[Any, Memory]] | None = None,
) -> tuple[Any, Memory]:
    """Apply a network along recorded time as it was applied while acting.

    ``xs`` has leaves ``[T, E, ...]``, ``memory`` ``[E, ...]`` is what was remembered before the first
    step, ``start`` what an episode starts with. Returns outputs and the memories after each step,
    both ``[T, E, ...]``. Memoryless networks are applied to all steps at once. ``apply`` is for one
    step of one environment; ``together(memory, x, axes)``, if given, does the same for leaves with
    that many leading axes.
    """
    if not jax.tree.leaves(start):
        if together is not None:
            return together(start, xs, 2)[0], start
        outputs, _ = jax.vmap(jax.vmap(lambda x: apply(start, x)))(xs)
        return outputs, start

    def step(memory: Memory, inputs: tuple[Any, Array]) -> tuple[Memory, tuple[Any, Memory]]:
        x, first = inputs
        memory = jax.tree.map(
            lambda m, s: jnp.where(first.reshape(first.shape + (1,) * (m.ndim - 1)), s, m),
            memory,
            jax.tree.map(lambda s: jnp.broadcast_to(s, (first.shape[0], *s.shape)), start),
        )
        output, memory = together(memory, x, 1) if together else jax.vmap(apply)(memory, x)
        return memory, (output, memory)

    _, (outputs, memories) = jax.lax.scan(step, memory, (xs, first))
    return outputs, memories


def agent_inputs(
    kind: Kind, spec: Spec, identity: bool
) -> tuple[Callable[[Float[Array, "O"], Int[Array, ""]], Array], int]:
    """What one agent's network is fed: ``view(own row, own index)``, and the input size.

    Tables get the index of the row's one, offset by the agent where ``identity``; other networks get
    the row, with the agent's index one-hot behind it where ``identity``.
    """
    if kind == "table":
        rows = spec.obs_dim * (spec.n_agents if identity else 1)

        def index(row: Array, agent: Array) -> Array:
            seen = jnp.argmax(row, axis=-1).astype(jnp.int32)
            return seen + agent * spec.obs_dim if identity else seen

        return index, rows

    def features(row: Array, agent: Array) -> Array:
        if not identity:
            return row
        return jnp.concatenate([row, jax.nn.one_hot(agent, spec.n_agents)], axis=-1)

    return features, spec.obs_dim + (spec.n_agents if identity else 0)


def state_inputs(kind: Kind, spec: Spec) -> tuple[Callable[[Float[Array, "S"]], Array], int]:
    """What a network over the global state is fed: the index of its one, or the state itself."""
    if kind == "table":
        return lambda state: jnp.argmax(state, axis=-1).astype(jnp.int32), spec.state_dim
    return lambda state: state, spec.state_dim


def resolve_kind(kind: Kind, memory: Remember, spec: Spec, rows: int) -> Kind:
    """Tables for finite games without memory, else multilayer perceptrons; refuses what cannot be."""
    fits = spec.one_hot and memory == "none"
    if kind == "table":
        require(
            spec.one_hot,
            "network='table' needs one-hot observations, and this environment's are "
            "not; use network='mlp'.",
        )
        require(memory == "none", f"network='table' has no memory={memory!r}; use network='mlp'.")
        require(
            rows <= LARGEST_TABLE,
            f"network='table' would have {rows} rows (at most {LARGEST_TABLE}); use network='mlp'.",
        )
    if kind == "auto":
        return "table" if fits and rows <= LARGEST_TABLE else "mlp"
    return kind
