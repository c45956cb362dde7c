"""A transformer over agents: an encoder of what they see, and a decoder of what they choose.

Wen et al. 2022 (arXiv 2205.14953), figure 2. Each agent is one token. The encoder turns views into
representations, of which a head tells values; the decoder reads the predecessors' actions, and asks
them with the representation of whoever is to move::

    encoder block   h = LN(h + mix(h, h));  h = LN(h + MLP(h))
    decoder block   x = LN(x + mix(x, x));  x = LN(r + mix(r, x));  x = LN(x + MLP(x))

How tokens are mixed is a function, and the only thing in which attention (MAT) and retention (Sable)
differ, or learning, where all tokens are mixed at once, and acting, where one token is added to those
before it. Both give the same numbers, so that teacher-forced log-probabilities are those acted with.
Layers are matrix products over the last axis: any axes may stand before it. A scan runs over blocks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmarl_tad.networks.net import draw
from jaxmarl_tad.types import Key, Memory, Params

Mix = Callable[[Params, Memory, Array, Array], tuple[Array, Memory]]
"""``mix(params, memory, query [..., W], key [..., W]) -> ([..., W], memory)``."""
Shapes = dict[str, Any]


def dense_shapes(inputs: int, outputs: int, bias: bool = True) -> Shapes:
    """Shapes of the parameters of a linear layer."""
    kernel = {"kernel": jax.ShapeDtypeStruct((inputs, outputs), jnp.float32)}
    return kernel | ({"bias": jax.ShapeDtypeStruct((outputs,), jnp.float32)} if bias else {})


def norm_shapes(width: int) -> Shapes:
    """Shapes of the parameters of a layer norm."""
    return {name: jax.ShapeDtypeStruct((width,), jnp.float32) for name in ("scale", "bias")}


def dense(params: Params, x: Float[Array, "*batch I"]) -> Float[Array, "*batch J"]:
    """A linear layer."""
    y = x @ params["kernel"]
    return y + params["bias"] if "bias" in params else y


def norm(params: Params, x: Float[Array, "*batch W"]) -> Float[Array, "*batch W"]:
    """Layer norm."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def _mlp_shapes(width: int, outputs: int) -> Shapes:
    return {"first": dense_shapes(width, width), "second": dense_shapes(width, outputs)}


def _mlp(params: Params, x: Array) -> Array:
    return dense(params["second"], jax.nn.gelu(dense(params["first"], x)))


def _blocks(layers: int, one: Shapes) -> Shapes:
    """Shapes of ``layers`` blocks like this one, stacked for a scan."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((layers, *x.shape), x.dtype), one)


def init_encoder(key: Key, mix: Shapes, *, inputs: int, width: int, layers: int) -> Params:
    """Parameters of :func:`encode`; ``mix`` has the shapes of one mixing."""
    block = {"mix": mix, "mlp": _mlp_shapes(width, width)}
    block |= {name: norm_shapes(width) for name in ("norm_1", "norm_2")}
    shapes = {
        "norm_in": norm_shapes(inputs),
        "embed": dense_shapes(inputs, width),
        "norm": norm_shapes(width),
        "blocks": _blocks(layers, block),
        "value": dense_shapes(width, width),
        "value_norm": norm_shapes(width),
        "out": dense_shapes(width, 1),
    }
    return draw(key, shapes, 1.0)


def encode(
    params: Params, mix: Mix, memory: Memory, x: Float[Array, "*batch N I"]
) -> tuple[Float[Array, "*batch N W"], Float[Array, "*batch N"], Memory]:
    """Representations and values of all agents' views; ``memory`` has leaves ``[layers, ...]``."""
    h = norm(params["norm"], jax.nn.gelu(dense(params["embed"], norm(params["norm_in"], x))))

    def block(h: Array, own: tuple[Params, Memory]) -> tuple[Array, Memory]:
        layer, memory = own
        mixed, memory = mix(layer["mix"], memory, h, h)
        h = norm(layer["norm_1"], h + mixed)
        return norm(layer["norm_2"], h + _mlp(layer["mlp"], h)), memory

    h, memory = jax.lax.scan(block, h, (params["blocks"], memory))
    told = norm(params["value_norm"], jax.nn.gelu(dense(params["value"], h)))
    return h, dense(params["out"], told)[..., 0], memory


def init_decoder(
    key: Key, mix: Shapes, *, inputs: int, outputs: int, width: int, layers: int
) -> Params:
    """Parameters of :func:`decode`; the last layer is small, so that first choices are uniform."""
    block = {"self": mix, "cross": mix, "mlp": _mlp_shapes(width, width)}
    block |= {name: norm_shapes(width) for name in ("norm_1", "norm_2", "norm_3")}
    shapes = {
        "embed": dense_shapes(inputs, width, bias=False),
        "norm": norm_shapes(width),
        "blocks": _blocks(layers, block),
        "head": dense_shapes(width, width),
        "head_norm": norm_shapes(width),
        "out": dense_shapes(width, outputs),
    }
    return draw(key, shapes, 0.01)


def decode(
    params: Params,
    mix: Mix,
    memory: Memory,
    token: Float[Array, "*batch F"],
    representation: Float[Array, "*batch W"],
) -> tuple[Float[Array, "*batch K"], Memory]:
    """Outputs for the agents to move, of whom token i tells what i − 1 chose.

    ``memory`` is a pair, of the first and the second mixing of all blocks.
    """
    x = norm(params["norm"], jax.nn.gelu(dense(params["embed"], token)))

    def block(x: Array, own: tuple[Params, Memory]) -> tuple[Array, Memory]:
        layer, (chosen, asked) = own
        mixed, chosen = mix(layer["self"], chosen, x, x)
        x = norm(layer["norm_1"], x + mixed)
        mixed, asked = mix(layer["cross"], asked, representation, x)
        x = norm(layer["norm_2"], representation + mixed)
        return norm(layer["norm_3"], x + _mlp(layer["mlp"], x)), (chosen, asked)

    x, memory = jax.lax.scan(block, x, (params["blocks"], memory))
    told = norm(params["head_norm"], jax.nn.gelu(dense(params["head"], x)))
    return dense(params["out"], told), memory


# --- what is fed to them --------------------------------------------------------------------------


def seen(
    rows: Float[Array, "*batch N O"], alive: Bool[Array, "*batch N"], identity: bool
) -> Float[Array, "*batch N I"]:
    """The encoder's tokens: views, those of the dead blank; each with its index if ``identity``."""
    rows = jnp.where(alive[..., None], rows, 0.0)
    return _numbered(rows) if identity else rows


def counted(alive: Bool[Array, "*batch N"]) -> Bool[Array, "*batch N"]:
    """Which of the decoder's tokens tell something: the first, and those of living predecessors."""
    return jnp.concatenate([jnp.ones_like(alive[..., :1]), alive[..., :-1]], axis=-1)


def said(
    shown: Float[Array, "*batch N D"], alive: Bool[Array, "*batch N"], identity: bool
) -> Float[Array, "*batch N F"]:
    """The decoder's tokens: what i − 1 chose, behind a 1 for i = 0; nothing where it is dead."""
    shown = jnp.where(alive[..., None], shown, 0.0)
    before = jnp.concatenate([jnp.zeros_like(shown[..., :1, :]), shown[..., :-1, :]], axis=-2)
    begins = jnp.zeros_like(before[..., :1]).at[..., 0, :].set(1.0)
    tokens = jnp.concatenate([begins, before], axis=-1)
    return _numbered(tokens) if identity else tokens


def _numbered(rows: Array) -> Array:
    """Every agent's row with its index one-hot behind it."""
    index = jnp.broadcast_to(jnp.eye(rows.shape[-2]), (*rows.shape[:-1], rows.shape[-2]))
    return jnp.concatenate([rows, index], axis=-1)


def choose_in_turn(
    read: Callable[[Memory, Any, Any, Any], tuple[Array, Memory]],
    memory: Memory,
    choose: Callable[[Any, Any, Any], tuple[Any, dict[str, Any], Any]],
    noise: Any,
    legal: Bool[Array, "N A"],
    alive: Bool[Array, "N"],
    numbers: int,
    identity: bool,
) -> tuple[Any, dict[str, Any], Memory]:
    """One joint action, agent after agent: the tokens of :func:`said`, one at a time.

    Args:
        read: ``(memory, token, counts, agent) -> (outputs, memory)``.
        memory: Of the decoder, before anybody has chosen.
        choose: ``(noise, outputs, legal) -> (action, told, shown)``.
        noise: What each agent's draw takes, ``[N, ...]``.
        legal: What each agent may do.
        alive: Who is alive.
        numbers: How many numbers show an action.
        identity: Whether tokens have their index behind them.
    """
    agents = alive.shape[0]
    index = jnp.eye(agents)

    def turn(carry: tuple[Any, Any], own: Any) -> tuple[Any, Any]:
        memory, before = carry
        agent, noise, legal, alive, counts = own
        token = jnp.concatenate([(agent == 0).astype(jnp.float32)[None], before])
        token = jnp.concatenate([token, index[agent]]) if identity else token
        outputs, memory = read(memory, token, counts, agent)
        action, told, shown = choose(noise, outputs, legal)
        return (memory, jnp.where(alive, shown, 0.0)), (action, told)

    turns = (jnp.arange(agents), noise, legal, alive, counted(alive))
    (memory, _), (action, told) = jax.lax.scan(turn, (memory, jnp.zeros(numbers)), turns)
    return action, told, memory
