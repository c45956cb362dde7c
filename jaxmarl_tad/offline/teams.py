"""What makes a team's value of its agents' utilities: nothing, a weighted sum, or QMIX."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxmarl_tad.networks.mixers import mixer
from jaxmarl_tad.offline import linear_mixer
from tad_envs import Observation, Spec


class Team(NamedTuple):
    """Q_tot, ``[*batch, K]``: one value, or each agent's own."""

    init: Any
    total: Any
    """``(params, utilities [*batch, N] of chosen actions, seen)``."""
    weighed: Any
    """``(params, utilities [*batch, N, A], seen)``: w_i Q_i, what each agent's own penalty is of."""


def team(config: Any, spec: Spec) -> Team:
    """The mixer that ``config`` means."""
    if config.mixer == "none":
        return Team(lambda key: (), lambda params, q, seen: q, lambda params, q, seen: q)
    if config.mixer == "linear":
        linear = linear_mixer(config, spec)

        def summed(params: Any, q: Array, seen: Observation) -> Array:
            w, b = linear.weights(params, seen)
            return jnp.sum(w * q, axis=-1, keepdims=True) + b[..., None]

        def weighed(params: Any, q: Array, seen: Observation) -> Array:
            return linear.weights(params, seen)[0][..., None] * q

        return Team(linear.init, summed, weighed)
    net = mixer("qmix", config.network, spec, embed=config.embed, hidden=config.mix_hidden)

    def monotone(params: Any, q: Array, seen: Observation) -> Array:
        state = net.view(seen.state)
        return net.mix(params, jnp.where(seen.alive, q, 0.0), state)

    return Team(net.init, monotone, lambda params, q, seen: q)
