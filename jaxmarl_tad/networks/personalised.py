"""What each agent is told of the global state: z_i, a further input of its utility or its policy.

===============  ==========================================  ==========================================
information      encoding                                    z_i
===============  ==========================================  ==========================================
``local``        none                                        none: the agent as it is without
``unified``      e = s W + b, for all agents (GIU)           μ(e) + √v(e) ε_i
``personalised`` e_i = ELU(s W(x_i) + b(x_i)) (GIP)          μ(e_i) + √v(e_i) ε_i
``guided``       e_i as for ``personalised``                 e_i (CSRL: no distribution)
===============  ==========================================  ==========================================

x_i is what agent i sees, or the GRU's encoding of what it has seen. W(x_i) is made by a hyper-network
of one hidden layer, b(x_i) by a linear map; μ and log v are linear, leaky ReLU, linear; the variance v
is held within ``FLOOR`` and ``MOST``, and ε_i ~ N(0, 1) is every agent's own. The last layer of agent i
is fed h_i and z_i: Lin(h_i ⊕ z_i) = Lin(h_i) + z_i B, so that the agent's own network stays as it is
and z_i B is added to what it gives.

Source: Chen et al. 2024 (PTDE), eqs. 1-3, and the sizes of the authors' code; Chen et al. 2022 (CSRL).
Differs in that the first W(x_i) are scaled by the number of state features that are not one-hot, and
in that W may be a low-rank product: ``rank`` maps the state to so many features before W(x_i) does.
The authors bound v from below alone; where the numbers of a state have no bound, neither has v then.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmarl_tad.networks.net import draw, normal
from jaxmarl_tad.sharing import Sharing, over_agents, over_rows
from jaxmarl_tad.types import Key, Memory, Params
from tad_envs import Spec, require

Information = Literal["local", "unified", "personalised", "guided"]
Source = Literal["observation", "trajectory"]

FLOOR, MOST = 0.01, 100.0
"""Least and largest variance of z."""


class Normal(NamedTuple):
    """Independent normal numbers."""

    mean: Float[Array, "*batch Z"]
    variance: Float[Array, "*batch Z"]


class Seen(NamedTuple):
    """What is kept of an observation: rows for the agents' networks, and the state once."""

    rows: Float[Array, "*batch N I"]
    state: Float[Array, "*batch S"]


class Informant(NamedTuple):
    """What tells agents of the state, as pure functions; ``Z`` numbers for each agent."""

    size: int
    random: bool
    """Whether z has a distribution and not only a mean."""
    init: Callable[[Key], Params]
    tell: Callable[[Params, Seen, Memory], Normal]
    """The distribution of z ``[*lead, N, Z]``, given what is seen and the memories afterwards."""
    heard: Callable[[Params, Array], Array]
    """What z ``[N, Z]`` adds to the outputs of each agent's network, by rows of its own alone."""
    inform: Callable[..., tuple[Array, Array]]
    """``inform(params, outputs, seen, memory, noise)``: outputs given z, and the mean of z.

    ``noise`` stands for ε; without it z is its mean.
    """


def check(config: Any, spec: Spec) -> None:
    """Refuse settings of ``information`` that do not fit one another."""
    if config.information == "local":
        return
    require(spec.discrete, f"information={config.information!r} needs discrete actions.")
    require(
        config.network != "table",
        f"information={config.information!r} needs network='mlp': tables are told nothing.",
    )
    require(
        config.z_source == "observation" or config.memory == "gru",
        "z_source='trajectory' needs memory='gru'; without a memory there is the observation alone.",
    )
    sizes = (config.z_size, 1 if config.z_rank is None else config.z_rank)
    require(min(sizes) >= 1, f"z_size={sizes[0]} and z_rank={config.z_rank} must be positive.")


def informant(config: Any, spec: Spec, share: Sharing, inputs: int) -> Informant | None:
    """The informant of agents whose networks have ``inputs`` inputs; None if they are told nothing."""
    if config.information == "local":
        return None
    size, actions = config.z_size, spec.n_actions
    unified, source = config.information == "unified", config.z_source
    hidden = config.hidden[-1]
    inputs = hidden if source == "trajectory" else inputs
    features = config.z_rank or spec.state_dim
    # A state of many numbers would make the first encodings as large as it is long.
    scale = 1.0 if spec.one_hot and not config.z_rank else 1 / math.sqrt(features)

    shapes: dict[str, Any] = {}
    if unified:
        shapes["encoder"] = _dense(spec.state_dim, size)
    else:
        shapes |= {"hidden": _dense(inputs, hidden), "weights": _dense(hidden, features * size)}
        shapes["offset"] = _dense(inputs, size)
        if config.z_rank:
            shapes["rank"] = _dense(spec.state_dim, config.z_rank)
    random = config.information != "guided"
    if random:
        for name in ("mean", "log_variance"):
            shapes[name] = {"layer": _dense(size, size), "out": _dense(size, size)}

    def one_set(key: Key) -> Params:
        drawn = draw(key, shapes, 1.0)
        if not unified:
            drawn["weights"] = jax.tree.map(lambda w: w * scale, drawn["weights"])
        return drawn

    def init(key: Key) -> Params:
        keys = jax.random.split(key, 2 * share.sets)
        encoder = one_set(keys[0]) if unified else jax.vmap(one_set)(keys[: share.sets])
        out = jax.vmap(lambda k: normal(k, (size, actions), 0.01))(keys[share.sets :])
        return {"encoder": encoder, "out": out}

    def personal(params: Params, _: Any, fed: tuple[Array, Array]) -> Normal:
        state, x = fed
        if config.z_rank:
            state = linear(params["rank"], state)
        weights = linear(params["weights"], jax.nn.relu(linear(params["hidden"], x)))
        weights = weights.reshape(*x.shape[:-1], features, size)
        encoded = jnp.einsum("...s,...sz->...z", state, weights) + linear(params["offset"], x)
        return distribution(params, jax.nn.elu(encoded))

    def distribution(params: Params, encoded: Array) -> Normal:
        if not random:
            return Normal(encoded, jnp.zeros_like(encoded))
        variance = jnp.exp(jnp.minimum(_head(params["log_variance"], encoded), math.log(MOST)))
        return Normal(_head(params["mean"], encoded), jnp.maximum(variance, FLOOR))

    def tell(params: Params, seen: Seen, memory: Memory) -> Normal:
        sets, shape = params["encoder"], seen.rows.shape[:-1]
        if unified:
            alike = distribution(sets, linear(sets["encoder"], seen.state))
            return Normal(*(jnp.broadcast_to(y[..., None, :], (*shape, size)) for y in alike))
        state = jnp.broadcast_to(seen.state[..., None, :], (*shape, seen.state.shape[-1]))
        x = memory if source == "trajectory" else seen.rows
        return over_rows(personal, share)(sets, (), (state, x), len(shape) - 1)

    hear, hear_rows = (f(lambda out, _, z: z @ out, share) for f in (over_agents, over_rows))

    def inform(
        params: Params, outputs: Array, seen: Seen, memory: Memory, noise: Array | None
    ) -> tuple[Array, Array]:
        z = tell(params, seen, memory)
        drawn = z.mean if noise is None else z.mean + jnp.sqrt(z.variance) * noise
        return outputs + hear_rows(params["out"], (), drawn, drawn.ndim - 2), z.mean

    heard = lambda params, z: hear(params["out"], (), z)  # noqa: E731
    return Informant(size, random, init, tell, heard, inform)


def linear(params: Params, x: Float[Array, "*batch I"]) -> Float[Array, "*batch K"]:
    """``x W + b``."""
    return x @ params["kernel"] + params["bias"]


def _head(params: Params, x: Array) -> Array:
    return linear(params["out"], jax.nn.leaky_relu(linear(params["layer"], x)))


def _dense(inputs: int, outputs: int) -> dict[str, Any]:
    """Shapes of one linear layer."""
    kinds = {"kernel": (inputs, outputs), "bias": (outputs,)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in kinds.items()}
