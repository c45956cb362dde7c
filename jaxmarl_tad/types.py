"""The two records everything is built from, a policy and an algorithm, and what collection records.

Axis letters, here and everywhere: ``M`` member, ``T`` time, ``E`` environment, ``B`` minibatch,
``N`` agent, ``A`` action, ``O`` observation feature, ``S`` state feature, ``H`` hidden unit. They
stand in that order, and members are only ever made by ``vmap``.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
from jaxtyping import Array, Bool, Float, Shaped

from tad_envs import Observation, Real

Key = jax.Array
"""A typed PRNG key; whoever is passed one consumes it."""

Activation = Literal["relu", "tanh"]
"""What bends the hidden layers of a network."""

Params = Any
Memory = Any
"""What a policy remembers within an episode: a pytree, ``()`` if it remembers nothing."""
Extras = dict[str, Any]
"""What a policy tells the learner about one decision, e.g. its log-probability."""
State = Any
"""Everything an algorithm carries from one iteration to the next."""
Metrics = dict[str, Array]
"""Scalars that describe one iteration."""


class Policy(NamedTuple):
    """How a team acts in one environment; every stage consumes and produces one of these."""

    start: Callable[[], Memory]
    """Memory before the first step of an episode."""
    act: Callable[[Key, Memory, Observation], tuple[Shaped[Array, "N ..."], Memory, Extras]]
    """One joint action from one observation; consumes the key."""
    execution: Literal["decentralised", "centralised"]
    """Whether each agent's action is a function of its own observation history alone."""


class Informed(NamedTuple):
    """A policy whose agents are told ``z_i``, a vector each, by whoever knows it."""

    size: int
    """How many numbers an agent is told."""
    start: Callable[[], Memory]
    """Memory before the first step of an episode, one row per agent."""
    act: Callable[
        [Key, Memory, Observation, Float[Array, "N Z"]], tuple[Shaped[Array, "N ..."], Memory, Extras]
    ]
    """As :class:`Policy` acts, given what the agents are told; agent i hears ``z_i`` alone."""
    params: Params
    """What they act with, in parameter sets; who tells them has no part in it."""
    assignment: tuple[int, ...]
    """Which set is each agent's."""


class Algorithm(NamedTuple):
    """A learner as three pure functions, made by a factory ``make(config, source)``."""

    init: Callable[[Key], State]
    step: Callable[[Key, State, Real], tuple[State, Metrics]]
    """One iteration, collect and learn: ``(key, state, progress)``, progress in [0, 1)."""
    policy: "PolicyOf"
    """The policy that ``state`` has learned so far."""
    informed: Callable[[State], Informed] | None = None
    """Where agents are told of the global state: the greedy policy apart from who tells them.

    The mean of what they are told is then among the policy's extras, as ``z``."""
    fixed: Informed | None = None
    """Where what is learned tells agents that do not learn any more: these."""


class PolicyOf(Protocol):
    """``policy(state, *, greedy)``: greedy policies take the most likely or best valued action."""

    def __call__(self, state: State, *, greedy: bool) -> Policy:
        """The policy in ``state``."""
        ...


class Transition(NamedTuple):
    """One recorded step, usually with leading axes ``[T, E]``."""

    observation: Observation
    """What was acted on."""
    action: Shaped[Array, "*batch N"]
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    first: Bool[Array, "*batch"]
    """Whether this step begins an episode, so that memory was reset before it."""
    next: Observation
    """What the action led to, before any reset."""
    extras: Extras
