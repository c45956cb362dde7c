"""JaxMARL's environments behind this package's protocol: ``jaxmarl_env("MPE_simple_spread_v3")``.

Written for JaxMARL 0.2.0. What its users have to know is put right here: episodes last exactly
``horizon`` steps and are then truncated (its particle games run one step longer), a task's end is
told from the end of time, nothing resets by itself, agents are a stacked axis, shorter observations
and action sets are padded, and states keep their types from step to step. Where a game exists in
:mod:`tad_envs.mpe`, that one is several times faster; this one is its oracle.
"""

import functools
import importlib
import io
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.struct import nearest, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

Reward = Literal["sum", "mean", "common"]

_GENERAL_SUM = ("tag", "adversary", "push", "crypto", "world_comm", "facmac", "coin_game", "storm")
_ONE_REWARD = ("speaker_listener", "SMAX", "hanabi", "overcooked", "switch_riddle")
"""Games, by a part of their names, whose agents all receive the same."""


class Wrapped(NamedTuple):
    """State of :class:`JaxMarl`."""

    inner: Any
    """Upstream's own state."""
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


class _Upstream(NamedTuple):
    """What is asked of an upstream environment once."""

    env: Any
    legal: np.ndarray
    """Actions that an agent has at all, ``[N, A]`` (``[N, D]``)."""
    masked: bool
    """Whether legality changes with the state."""
    spec: Spec


@struct
class JaxMarl:
    """An environment of JaxMARL, stacked and with a clock of its own; see :func:`jaxmarl_env`."""

    upstream: str
    """Upstream's name for it."""
    options: tuple
    """Upstream's keyword arguments, as pairs."""
    reward: Reward
    """How the agents' rewards make the team's."""
    horizon: int
    name: str = ""

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")

    @property
    def spec(self) -> Spec:
        """Sizes; observations and actions are padded to the largest agent's."""
        return self._inside.spec

    @property
    def _inside(self) -> _Upstream:
        return _upstream(self.upstream, self.options, self.horizon)

    def reset(self, key: Key) -> tuple[Wrapped, Observation]:
        """Begin an episode as upstream does."""
        views, inner = self._inside.env.reset(key)
        state = Wrapped(strong(inner), jnp.zeros((), jnp.int32))
        alive = jnp.ones(self.spec.n_agents, bool)
        return state, self._observation(state.inner, views, alive)

    def step(self, key: Key, state: Wrapped, action: Action) -> tuple[Wrapped, TimeStep]:
        """Advance as upstream's ``step_env`` does; truncated at the horizon."""
        env = self._inside.env
        views, inner, rewards, dones, _ = env.step_env(key, state.inner, self._actions(action))
        # Types may drift upstream, and a loop's state must keep them.
        inner = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), inner, state.inner)
        clock = jnp.minimum(state.clock + 1, self.horizon)
        # Past the end of time upstream's clock has run out too.
        terminated = jnp.asarray(dones["__all__"], bool) & (state.clock < self.horizon)
        gone = jnp.stack([jnp.asarray(dones[agent], bool) for agent in env.agents])
        observation = self._observation(inner, views, ~gone | terminated)
        own = jnp.stack([jnp.asarray(rewards[agent], jnp.float32) for agent in env.agents])
        team = own[0] if self.reward == "common" else jnp.sum(own)
        if self.reward == "mean":
            team = team / own.shape[0]
        over = (clock >= self.horizon) & ~terminated
        return Wrapped(inner, clock), TimeStep(observation, team, terminated, over, info={})

    def _actions(self, action: Action) -> dict[str, Any]:
        env = self._inside.env
        if self.spec.discrete:
            return {agent: action[i] for i, agent in enumerate(env.agents)}
        sizes = self._inside.legal.sum(axis=1)
        return {agent: action[i, : sizes[i]] for i, agent in enumerate(env.agents)}

    def _observation(self, inner: Any, views: Any, alive: Bool[Array, "N"]) -> Observation:
        inside = self._inside
        rows = [_padded(views[agent], inside.spec.obs_dim) for agent in inside.env.agents]
        legal = jnp.asarray(inside.legal)
        if inside.masked:
            open_now = inside.env.get_avail_actions(inner)
            width = inside.spec.n_actions
            legal &= jnp.stack([_padded(open_now[a], width) > 0 for a in inside.env.agents])
        state = _global_state(inside.env, inner, views)
        return Observation(agents=jnp.stack(rows), state=state, legal=legal, alive=alive)


def jaxmarl_env(
    upstream: str, *, horizon: int | None = None, reward: Reward | None = None, **options: Any
) -> JaxMarl:
    """The cooperative environment that JaxMARL calls ``upstream``.

    Args:
        upstream: e.g. ``MPE_simple_spread_v3``.
        horizon: Steps of an episode; upstream's ``max_steps`` where it has one.
        reward: ``"sum"`` where each agent has a reward of its own, ``"common"`` where all receive the
            same, unless given.
        **options: Upstream's own keyword arguments; hashable.

    Raises:
        ValueError: The name is unknown, the game is not cooperative, or a horizon is needed.
    """
    opponent = next((part for part in _GENERAL_SUM if part in upstream), None)
    require(opponent is None, f"{upstream!r} is not cooperative: its agents have opposed rewards.")
    require("max_steps" not in options, "give horizon=... instead of max_steps: it is exact.")
    pairs = tuple(sorted(options.items()))
    limit = getattr(_limited(_constructed(upstream, pairs)), "max_steps", None)
    horizon = limit if horizon is None else horizon
    require(horizon is not None, f"{upstream!r} has no time limit of its own; give horizon=...")
    if reward is None:
        reward = "common" if any(part in upstream for part in _ONE_REWARD) else "sum"
    return JaxMarl(
        upstream=upstream,
        options=pairs,
        reward=reward,
        horizon=int(horizon or 0),
        name=f"jaxmarl/{upstream}",
    )


def jaxmarl_package() -> Any:
    """JaxMARL, whose import starts the backend, prints, and puts the original streams back in place."""
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr", "__stdout__", "__stderr__")}
    try:
        sys.stdout = sys.__stdout__ = io.StringIO()  # type: ignore[misc]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("jaxmarl")
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)


def _constructed(name: str, options: tuple) -> Any:
    package = jaxmarl_package()
    known = package.registered_envs
    require(name in known, f"unknown JaxMARL environment {name!r}; {nearest(name, known)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return package.make(name, **dict(options))


def _limited(env: Any) -> Any:
    """The object that holds upstream's time limit, where there is one."""
    return getattr(env, "_env", env)


@functools.cache
def _upstream(name: str, options: tuple, horizon: int) -> _Upstream:
    """The upstream object, made once: jax compares programs by it."""
    with jax.ensure_compile_time_eval():  # its arrays must not belong to whatever is being traced
        env = _constructed(name, options)
        if hasattr(_limited(env), "max_steps"):
            # Upstream's `done` says not which end it was, so time must not run out there first.
            _limited(env).max_steps = horizon + 1
    key = jax.eval_shape(lambda: jax.random.key(0))
    views, inner = jax.eval_shape(env.reset, key)
    masked = _has_masks(env, inner)
    spaces = [env.action_space(agent) for agent in env.agents]
    discrete = all(hasattr(space, "n") for space in spaces)
    sizes = [int(space.n) if discrete else int(np.prod(space.shape)) for space in spaces]
    state = jax.eval_shape(functools.partial(_global_state, env), inner, views)
    spec = Spec(
        n_agents=len(env.agents),
        obs_dim=max(int(np.prod(views[agent].shape)) for agent in env.agents),
        state_dim=state.shape[0],
        horizon=horizon,
        n_actions=max(sizes) if discrete else 0,
        action_dim=0 if discrete else max(sizes),
        discrete=discrete,
        terminates=not _particles(inner),
        order_dependent=len(set(sizes)) > 1,
        state_markov=_particles(inner),
        bounds=None if discrete else (float(spaces[0].low), float(spaces[0].high)),
    )
    legal = np.arange(max(sizes)) < np.array(sizes)[:, None]
    return _Upstream(env, legal, masked, spec)


def _has_masks(env: Any, inner: Any) -> bool:
    masks: Callable = env.get_avail_actions
    try:
        jax.eval_shape(masks, inner)
    except NotImplementedError:
        return False
    return True


def _particles(inner: Any) -> bool:
    return hasattr(inner, "p_pos")


def _global_state(env: Any, inner: Any, views: Any) -> Float[Array, "S"]:
    """Upstream's own, or all of a particle world, or else all views."""
    if "world_state" in views:
        parts = [views["world_state"]]
    elif _particles(inner):
        parts = [inner.p_pos, inner.p_vel[: env.num_agents], inner.c]
        if inner.goal is not None:
            parts.append(finite.one_hot(jnp.atleast_1d(inner.goal), env.num_landmarks))
    else:
        parts = [views[agent] for agent in env.agents]
    return jnp.concatenate([jnp.asarray(part, jnp.float32).reshape(-1) for part in parts])


def _padded(view: Any, width: int) -> Float[Array, "width"]:
    flat = jnp.asarray(view, jnp.float32).reshape(-1)
    return jnp.pad(flat, (0, width - flat.shape[0]))


def strong(tree: Any) -> Any:
    """Without weak types, which the states of some resets have and those of steps have not."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), tree)
