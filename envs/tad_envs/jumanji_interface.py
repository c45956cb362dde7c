"""The other way round: an environment of this package behind jumanji's ``Environment``.

Written for jumanji 1.1.2, where specs are properties and a state carries the key of its future.
"""

import functools
import importlib
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import types


class View(NamedTuple):
    """jumanji's names for what agents see."""

    agents_view: Float[Array, "N O"]
    global_state: Float[Array, "S"]
    action_mask: Bool[Array, "N A"]
    """Actions that may be taken; ``[N, D]``, the dimensions an agent has, if actions are continuous."""
    alive: Bool[Array, "N"]
    step_count: Int[Array, ""]


class Carried(NamedTuple):
    """State of :func:`to_jumanji`."""

    inner: Any
    """The environment's own state."""
    key: jax.Array
    """Split in every step; in the form that ``reset`` was given, typed or raw words."""
    step_count: Int[Array, ""]


def to_jumanji(env: types.Environment) -> Any:
    """``env`` as a ``jumanji.Environment``, for libraries that take these.

    Episodes, rewards (one for the team) and views are ``env``'s. A task's end is a termination with
    discount 0, the end of time a truncation with discount 1, and ``info`` are the ``extras``, zero at
    the start. ``step`` splits the state's key, so that ``AutoResetWrapper`` draws new starts.
    """
    return _adapter()(env)


def _key(key: jax.Array) -> jax.Array:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if typed else jax.random.wrap_key_data(key)


def _split(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A typed key to be used now, and one to be kept, in the form of ``key``."""
    now, later = jax.random.split(_key(key))
    kept = later if key.dtype == later.dtype else jax.random.key_data(later)
    return now, kept


@functools.cache
def _adapter() -> type:
    """The class, which cannot be written down before jumanji is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jumanji = importlib.import_module("jumanji.env")
        specs = importlib.import_module("jumanji.specs")
        kinds = importlib.import_module("jumanji.types")

    class Adapter(jumanji.Environment):
        """An environment of ``tad_envs``."""

        def __init__(self, env: types.Environment) -> None:
            self.env = env
            super().__init__()

        def __repr__(self) -> str:
            return f"to_jumanji({self.env.name or type(self.env).__name__})"

        def reset(self, key: jax.Array) -> tuple[Carried, Any]:
            now, kept = _split(key)
            inner, seen = self.env.reset(now)
            state = Carried(inner, kept, jnp.zeros((), jnp.int32))
            extras = {name: jnp.zeros((), kind) for name, kind in self._info.items()}
            view = _view(seen, state.step_count)
            return state, kinds.restart(view, extras, shape=(), dtype=jnp.float32)

        def step(self, state: Carried, action: jax.Array) -> tuple[Carried, Any]:
            now, kept = _split(state.key)
            inner, step = self.env.step(now, state.inner, action)
            count = jnp.minimum(state.step_count + 1, self.env.spec.horizon)
            last = step.terminated | step.truncated
            return Carried(inner, kept, count), kinds.TimeStep(
                step_type=jnp.where(last, kinds.StepType.LAST, kinds.StepType.MID),
                reward=step.reward,
                discount=1 - step.terminated.astype(jnp.float32),
                observation=_view(step.observation, count),
                extras=dict(step.info),
            )

        @functools.cached_property
        def _info(self) -> dict[str, Any]:
            spec = self.env.spec
            shape = (spec.n_agents,) if spec.discrete else (spec.n_agents, spec.action_dim)

            def play(key: jax.Array) -> dict[str, Array]:
                state, _ = self.env.reset(key)
                action = jnp.zeros(shape, jnp.int32 if spec.discrete else jnp.float32)
                return self.env.step(key, state, action)[1].info

            key = jax.eval_shape(jax.random.key, 0)
            return {name: leaf.dtype for name, leaf in jax.eval_shape(play, key).items()}

        @functools.cached_property
        def observation_spec(self) -> Any:
            spec = self.env.spec
            actions = spec.n_actions or spec.action_dim

            def flags(shape: tuple[int, ...], name: str) -> Any:
                return specs.BoundedArray(shape, bool, False, True, name)

            return specs.Spec(
                View,
                "ObservationSpec",
                agents_view=specs.Array((spec.n_agents, spec.obs_dim), jnp.float32, "agents_view"),
                global_state=specs.Array((spec.state_dim,), jnp.float32, "global_state"),
                action_mask=flags((spec.n_agents, actions), "action_mask"),
                alive=flags((spec.n_agents,), "alive"),
                step_count=specs.BoundedArray((), jnp.int32, 0, spec.horizon, "step_count"),
            )

        @functools.cached_property
        def action_spec(self) -> Any:
            spec = self.env.spec
            if spec.discrete:
                choices = np.full(spec.n_agents, spec.n_actions, np.int32)
                return specs.MultiDiscreteArray(choices, jnp.int32, "action")
            low, high = spec.bounds or (-1.0, 1.0)
            shape = (spec.n_agents, spec.action_dim)
            return specs.BoundedArray(shape, jnp.float32, low, high, "action")

        @functools.cached_property
        def reward_spec(self) -> Any:
            return specs.Array((), jnp.float32, "reward")

        @functools.cached_property
        def discount_spec(self) -> Any:
            return specs.BoundedArray((), jnp.float32, 0.0, 1.0, "discount")

    return Adapter


def _view(seen: types.Observation, count: Int[Array, ""]) -> View:
    return View(seen.agents, seen.state, seen.legal, seen.alive, count)
