"""Returns of a policy on whole episodes, each counted once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmarl_tad.rollout import episodes
from jaxmarl_tad.types import Key, Policy
from tad_envs import Environment


def score(env: Environment, policy: Policy, key: Key, count: int) -> dict[str, Array]:
    """Means over ``count`` whole episodes: ``return`` (undiscounted, of the team), ``length``.

    Whatever the environment reports in ``info`` is added as it stood at the end of the episode.
    """
    seen = episodes(env, policy, key, count, env.spec.horizon)
    returns = jnp.sum(seen.transition.reward * seen.valid, axis=0)
    length = jnp.sum(seen.valid, axis=0)
    last = jax.tree.map(lambda x: x[length - 1, jnp.arange(count)].mean(), seen.info)
    return {**last, "return": returns.mean(), "length": length.mean()}
