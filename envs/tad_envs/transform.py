"""Transformation of a cooperative game into a single-agent one: TAD (arXiv 2207.11143).

Agents choose one after the other, each knowing what was chosen before. The decision process has
``N`` virtual steps per environment step (a block); the last one moves the game and is paid. Every
joint policy is a policy of it (chain rule), and its optimum is the optimum of the game.

Discounting, with ``V_M`` the value in the game and ``V`` that at the first virtual step of a block:

* ``"block"``: 1 inside a block and gamma at its end. ``V_M = V``.
* ``"fractional"``: ``gamma ** (1/N)`` at each virtual step. ``V_M = gamma ** ((1 - N) / N) V``.

Two forms give the same numbers: :class:`Sequential` is an environment for any single-agent learner,
:func:`unfold` rewrites trajectories of the game itself, which is then stepped once per block.
"""

import dataclasses
import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.struct import AnyArray, Nested, Real, lookup, require, struct
from tad_envs.types import (
    Action,
    Environment,
    FiniteEnvironment,
    Key,
    Observation,
    Spec,
    State,
    TimeStep,
)

Discount = Literal["block", "fractional"]
_NOT_YET = -1


class Turn(NamedTuple):
    """State of :class:`Sequential`."""

    inner: State
    """State of the game."""
    observation: Observation
    """What the game shows in that state."""
    prefix: Int[Array, "N"]
    """Action of each agent in this block, -1 where it has not chosen yet."""
    position: Int[Array, ""]
    """How many agents have chosen in this block."""
    order: Int[Array, "N"]
    """Index of the agent that chooses first, second, ..."""


@struct
class Sequential:
    """The game as a single-agent one of ``N`` times the horizon.

    The one agent sees the game's ``state``, the actions chosen in this block (``N * A``, one-hot by
    agent, zeros where not yet chosen) and who is to choose (``N``, one-hot). Legal actions are
    those of the agent to choose. The reward of a block is paid in its last step, and only there can
    the episode end. Finite if the game is.

    A learner discounts what follows a step by ``gamma ** info["discount_power"]`` (and its trace by
    ``lam`` to the same power).
    """

    env: Nested[Environment] = dataclasses.field(kw_only=False)
    order: str | tuple[int, ...] = "fixed"
    """``"fixed"``, ``"reversed"``, ``"random"`` (drawn at each reset), or a permutation."""
    discount: Discount = "block"
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.order, str):
            lookup(dict.fromkeys(("fixed", "reversed", "random")), self.order, "order")

    @property
    def spec(self) -> Spec:
        """Sizes of the single-agent game."""
        inner = self.env.spec
        require(inner.discrete, "only games of discrete actions can be made sequential.")
        width = inner.state_dim + inner.n_agents * (inner.n_actions + 1)
        return Spec(
            n_agents=1,
            obs_dim=width,
            state_dim=width,
            horizon=inner.horizon * inner.n_agents,
            n_actions=inner.n_actions,
            terminates=inner.terminates,
            state_markov=inner.state_markov,
        )

    @property
    def discount_powers(self) -> tuple[float, ...]:
        """Power of gamma that discounts what follows the step of the first, second, ... agent."""
        return _powers(self.env.spec.n_agents, self.discount)

    def turn(self, state: Turn) -> Int[Array, ""]:
        """Index into ``discount_powers``."""
        return state.position

    def orders(self) -> np.ndarray:
        """``[P, N]``: the orders that an episode may have, equally likely, int32."""
        agents = range(self.env.spec.n_agents)
        if self.order == "random":
            return np.asarray(list(itertools.permutations(agents)), np.int32)
        named = {"fixed": tuple(agents), "reversed": tuple(reversed(agents))}
        order = named.get(self.order, self.order) if isinstance(self.order, str) else self.order
        require(
            sorted(order) == list(agents),
            f"order={order} must be a permutation of 0..{len(agents) - 1}.",
        )
        return np.asarray([order], np.int32)

    def observe(self, state: Turn) -> Observation:
        """State, prefix and agent to choose."""
        spec = self.env.spec
        agent = state.order[state.position]
        feature = jnp.concatenate(
            [
                state.observation.state,
                finite.one_hot(state.prefix, spec.n_actions).reshape(-1),
                finite.one_hot(agent, spec.n_agents),
            ]
        )
        seen = state.observation
        return Observation(feature[None], feature, seen.legal[agent][None], seen.alive[agent][None])

    def reset(self, key: Key) -> tuple[Turn, Observation]:
        """Begin an episode of the game and, if the order is random, draw it."""
        env_key, order_key = jax.random.split(key)
        order = jnp.asarray(self.orders()[0])
        if self.order == "random":
            order = jax.random.permutation(order_key, order)
        state = self._first(*self.env.reset(env_key), order)
        return state, self.observe(state)

    def step(self, key: Key, state: Turn, action: Action) -> tuple[Turn, TimeStep]:
        """Choose for one agent; the last agent's choice moves the game."""
        chosen, last = self._choose(state, action)
        inner, moved = self.env.step(key, state.inner, jnp.maximum(chosen.prefix, 0))
        following = _where(last, self._first(inner, moved.observation, state.order), chosen)
        power = jnp.asarray(np.asarray(self.discount_powers, np.float32))[state.position]
        info = jax.tree.map(lambda x: jnp.where(last, x, jnp.zeros_like(x)), moved.info)
        return following, TimeStep(
            observation=self.observe(following),
            reward=jnp.where(last, moved.reward, 0.0).astype(jnp.float32),
            terminated=last & moved.terminated,
            truncated=last & moved.truncated,
            info={**info, "discount_power": power},
        )

    def starts(self) -> tuple[Float[Array, "K"], Turn]:
        """Starts of the game, times the possible orders."""
        env = self._finite()
        probability, inner = env.starts()
        orders = jnp.asarray(self.orders())
        start = jax.vmap(lambda s, order: self._first(s, env.observe(s), order), in_axes=(0, None))
        both = jax.vmap(start, in_axes=(None, 0))(inner, orders)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), both)
        return jnp.tile(probability / len(orders), len(orders)), flat

    def outcomes(
        self, state: Turn, action: Action
    ) -> tuple[Float[Array, "K"], Turn, Float[Array, "K"], Bool[Array, "K"]]:
        """Outcomes of the game at the end of a block; inside, the first of ``K`` is certain."""
        env = self._finite()
        chosen, last = self._choose(state, action)
        p, inner, reward, terminated = env.outcomes(state.inner, jnp.maximum(chosen.prefix, 0))
        moved = jax.vmap(lambda s: self._first(s, env.observe(s), state.order))(inner)
        following = jax.tree.map(lambda a, b: jnp.where(last, a, b), moved, chosen)
        certain = (jnp.arange(p.shape[0]) == 0).astype(p.dtype)
        reward = jnp.where(last, reward, 0.0).astype(jnp.float32)
        return jnp.where(last, p, certain), following, reward, last & terminated

    def _first(self, inner: State, observation: Observation, order: Int[Array, "N"]) -> Turn:
        """The first virtual step of a block."""
        prefix = jnp.full(self.env.spec.n_agents, _NOT_YET, jnp.int32)
        return Turn(inner, observation, prefix, jnp.zeros((), jnp.int32), order)

    def _choose(self, state: Turn, action: Action) -> tuple[Turn, Bool[Array, ""]]:
        """Append a choice; whether it completes the block. A complete block keeps its position."""
        agents = self.env.spec.n_agents
        mine = jnp.arange(agents) == state.order[state.position]
        prefix = jnp.where(mine, action[0], state.prefix).astype(jnp.int32)
        last = state.position == agents - 1
        position = jnp.minimum(state.position + 1, agents - 1)
        return state._replace(prefix=prefix, position=position), last

    def _finite(self) -> FiniteEnvironment:
        env = self.env
        if not isinstance(env, FiniteEnvironment):
            raise ValueError(f"{type(env).__name__} has no starts, outcomes and observe.")
        return env


def _where(condition: Bool[Array, ""], one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _powers(n: int, discount: Discount) -> tuple[float, ...]:
    powers = {"block": (*[0.0] * (n - 1), 1.0), "fractional": (1.0 / n,) * n}
    return lookup(powers, discount, "discount")


class Unfolded(NamedTuple):
    """A trajectory of virtual steps: ``T`` blocks of ``n``, any axes after the first are kept."""

    reward: Float[Array, "T*n ..."]
    terminated: Bool[Array, "T*n ..."]
    truncated: Bool[Array, "T*n ..."]
    gamma: Float[Array, "T*n ..."]
    """Discount of what follows each virtual step."""
    lam: Float[Array, "T*n ..."]
    """Trace parameter of each virtual step."""


def unfold(
    reward: Float[AnyArray, "T ..."],
    terminated: Bool[AnyArray, "T ..."],
    truncated: Bool[AnyArray, "T ..."],
    n: int,
    gamma: Real,
    lam: Real,
    discount: Discount = "block",
) -> Unfolded:
    """A time-major trajectory as one of virtual steps, ``[T, ...]`` to ``[T * n, ...]``.

    Reward and end of a block belong to its last virtual step. With ``"block"``, ``(gamma, lam)`` is
    ``(1, 1)`` inside a block and as given at its end, so that the advantage at the first virtual
    step is the ordinary one of the team; with ``"fractional"`` both are taken to the power ``1/n``.
    """
    powers = np.asarray(_powers(n, discount), np.float32)
    last = np.arange(n) == n - 1

    def at_end(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        where = last.reshape(1, n, *[1] * (x.ndim - 1))
        virtual = jnp.where(where, x[:, None], jnp.zeros((), x.dtype))
        return virtual.reshape(-1, *x.shape[1:])

    def per_step(x: Real) -> jax.Array:
        block = (jnp.asarray(x, jnp.float32) ** powers).reshape(1, n, *[1] * (np.ndim(reward) - 1))
        shape = np.shape(reward)
        return jnp.broadcast_to(block, (shape[0], n, *shape[1:])).reshape(-1, *shape[1:])

    return Unfolded(
        at_end(reward), at_end(terminated), at_end(truncated), per_step(gamma), per_step(lam)
    )
