"""The environment protocol: two pure functions over a state, agents as a stacked axis.

Axis letters: ``N`` agents, ``A`` actions, ``O`` observation features, ``S`` state features,
``D`` action dimensions, ``K`` possible outcomes.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Shaped

Key = jax.Array
"""A typed PRNG key; whoever is passed one consumes it."""

State = Any
"""An environment's own state: a pytree of arrays with shapes that never change."""

Action = Shaped[Array, "N ..."]
"""``[N]`` int32 (discrete) or ``[N, D]`` float32 (continuous)."""


class Observation(NamedTuple):
    """What an environment shows after ``reset`` or ``step``."""

    agents: Float[Array, "N O"]
    """Each agent's own view."""
    state: Float[Array, "S"]
    """The global state, for training only."""
    legal: Bool[Array, "N A"]
    """Actions that may be taken; ``[N, D]``, the dimensions an agent has, if actions are continuous."""
    alive: Bool[Array, "N"]
    """Agents that act and are counted in losses and statistics."""


class TimeStep(NamedTuple):
    """What a step led to."""

    observation: Observation
    reward: Float[Array, ""]
    """The team's reward."""
    terminated: Bool[Array, ""]
    """The task ended: there is no value beyond here."""
    truncated: Bool[Array, ""]
    """The clock ran out: the value beyond here still counts. Never True with ``terminated``."""
    info: dict[str, Array]
    """Scalars, e.g. ``{"won": ...}``."""


class Spec(NamedTuple):
    """Static sizes and kinds: all of an environment that enters the key of a program."""

    n_agents: int
    obs_dim: int
    state_dim: int
    horizon: int
    """The longest possible episode in environment steps; the clock runs out after these, not before."""
    n_actions: int = 0
    """Actions per agent (padded to the largest); 0 if actions are continuous."""
    action_dim: int = 0
    """Action dimensions per agent; 0 if actions are discrete."""
    discrete: bool = True
    one_hot: bool = False
    """Every row of ``agents`` and the ``state`` are one-hot, so that tables are gathered at the argmax,
    and what is legal depends on the agent alone."""
    terminates: bool = True
    """Whether an episode can end by itself, rather than only by the clock."""
    order_dependent: bool = False
    """Whether the outcome depends on which agent has which index."""
    state_markov: bool = True
    """Whether ``observation.state`` (with the clock where there is one) determines the future."""
    bounds: tuple[float, float] | None = None
    """Lowest and highest action if continuous."""
    reset_pool: int = 0
    """How many steps short episodes last, where a reset costs more than 1.5 steps: a rollout then draws
    in advance one fresh episode for so many steps of each environment. 0: it draws a reset in every
    step."""


@runtime_checkable
class Environment(Protocol):
    """A cooperative game. Numbers that a study varies are pytree leaves, sizes are static."""

    @property
    def name(self) -> str:
        """Host-side name, e.g. ``matrix/penalty/k=-100``; empty inside a compiled program."""
        ...

    @property
    def spec(self) -> Spec:
        """Static sizes and kinds."""
        ...

    def reset(self, key: Key) -> tuple[State, Observation]:
        """Begin an episode. Consumes ``key``."""
        ...

    def step(self, key: Key, state: State, action: Action) -> tuple[State, TimeStep]:
        """Advance by one joint action. Consumes ``key``.

        Never resets; stepping past the end is finite.
        """
        ...


@runtime_checkable
class FiniteEnvironment(Environment, Protocol):
    """A game whose states can be enumerated, so that :func:`tad_envs.solve` is exact.

    The state holds the clock that cuts the episode off, where there is one.
    """

    def observe(self, state: State) -> Observation:
        """What is seen in ``state``; in particular, which actions are legal there."""
        ...

    def starts(self) -> tuple[Float[Array, "K"], State]:
        """Start distribution: probabilities ``[K]`` and states stacked on a leading axis ``K``."""
        ...

    def outcomes(
        self, state: State, action: Action
    ) -> tuple[Float[Array, "K"], State, Float[Array, "K"], Bool[Array, "K"]]:
        """What may follow: probabilities, next states, rewards, terminated; all ``[K]``."""
        ...
