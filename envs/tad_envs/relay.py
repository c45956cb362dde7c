"""Relay: everybody must do what only the state tells, and clues say part of it.

The team's state names one of ``K`` targets for each of ``N`` agents. A step pays 1 if every agent
picks its own target. An agent is told nothing but a clue, once: in step ``delay`` it sees one of the
``names`` names of a target that is its own with probability

    q = clue + (1 - clue) / K

and any of the others with equal probability: with probability ``clue`` the clue is the target, else
it is drawn from all targets. What a teacher does who sees the state can therefore be inferred from
an agent's own history to a degree that ``clue`` and ``delay`` set, between everything (1 and 0) and
nothing (0, or a delay beyond the last step). A decentralised policy has to remember the clue.

Every target has as many names, each as likely; what they mean has to be learned one by one. They
change no value below, but who sees the state has no need of them: ``names`` sets how much longer it
takes to learn from a team's payments what is plain to a teacher who could teach it.

Values of an episode of ``T`` steps, with agents' targets and clues independent of one another:

    best joint policy          sum_t gamma^t                                      = T at gamma = 1
    best decentralised policy  sum_{t < delay} gamma^t K^-N + sum_{t >= delay} gamma^t q^N
    best without memory        gamma^delay q^N + sum_{t != delay} gamma^t K^-N
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.struct import Real, concrete, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

_MAX_STARTS = 100_000


class Task(NamedTuple):
    """State of :class:`Relay`."""

    target: Int[Array, "N"]
    """What each agent must pick."""
    clue: Int[Array, "N"]
    """The name that each agent is told, of ``names * K``: name c is one of target ``c // names``."""
    clock: Int[Array, ""]
    """Steps taken."""


@struct
class Relay:
    """Pick your target from a clue seen once; see the module.

    Agents see one-hot codes of ``1 + names * K``: nothing, or the name that is the clue. The state is
    the one-hot code of all targets, of ``K ** N``. The last step terminates. ``clue`` and ``delay``
    are leaves, so that one program runs all degrees of what can be inferred.
    """

    clue: Real = 1.0
    """Probability that the clue is the target for sure, in [0, 1]."""
    delay: Real = 0.0
    """The step in which the clue is seen, a whole number in ``[0, steps]``; ``steps`` is never."""
    n_agents: int = 2
    n_targets: int = 3
    steps: int = 4
    names: int = 16
    name: str = ""

    def __post_init__(self) -> None:
        require(self.n_agents >= 1, f"n_agents={self.n_agents} must be at least 1.")
        require(self.n_targets >= 2, f"n_targets={self.n_targets} must be at least 2.")
        require(self.steps >= 1, f"steps={self.steps} must be at least 1.")
        require(self.names >= 1, f"names={self.names} must be at least 1.")
        if finite.scalar_check(self.clue):
            require(0 <= float(self.clue) <= 1, f"clue={float(self.clue):g} must lie in [0, 1].")
        if finite.scalar_check(self.delay):
            require(
                float(self.delay).is_integer() and 0 <= float(self.delay) <= self.steps,
                f"delay={float(self.delay):g} must be a whole number from 0 to steps={self.steps}.",
            )

    @property
    def spec(self) -> Spec:
        """Sizes; equal for all clues and delays."""
        return Spec(
            n_agents=self.n_agents,
            obs_dim=1 + self.names * self.n_targets,
            state_dim=self.n_targets**self.n_agents,
            horizon=self.steps,
            n_actions=self.n_targets,
            one_hot=True,
        )

    def starts(self) -> tuple[Float[Array, "K"], Task]:
        """All targets with all clues."""
        n, k, names = self.n_agents, self.n_targets, self.names
        count = (k * k * names) ** n
        require(
            count <= _MAX_STARTS,
            f"{count} starts ((names * n_targets ** 2) ** n_agents) are more than the {_MAX_STARTS} "
            "listed.",
        )
        grid = np.indices((k,) * n + (k * names,) * n).reshape(2, n, count)
        target, told = jnp.moveaxis(jnp.asarray(grid, jnp.int32), -1, 1)
        clue = jnp.asarray(self.clue, jnp.float32)
        each = (clue * (told // names == target) + (1 - clue) / k) / names
        probability = jnp.prod(each, axis=1) / k**n
        return probability, Task(target, told, jnp.zeros(count, jnp.int32))

    def observe(self, state: Task) -> Observation:
        """The clue, in its step alone; all targets as the state."""
        n, k = self.n_agents, self.n_targets
        shown = (state.clock == jnp.asarray(self.delay)) & (state.clock < self.steps)
        return Observation(
            agents=finite.one_hot(jnp.where(shown, 1 + state.clue, 0), 1 + self.names * k),
            state=finite.one_hot(finite.joint_index(state.target, k), k**n),
            legal=jnp.ones((n, k), bool),
            alive=jnp.ones(n, bool),
        )

    def outcomes(
        self, state: Task, action: Action
    ) -> tuple[Float[Array, "1"], Task, Float[Array, "1"], Bool[Array, "1"]]:
        """Pay if everybody picks its own target; nothing else changes."""
        reward = jnp.all(action == state.target).astype(jnp.float32)
        following = state._replace(clock=jnp.minimum(state.clock + 1, self.steps))
        p, stacked = finite.certain((following, reward, following.clock >= self.steps))
        return p, *stacked

    def reset(self, key: Key) -> tuple[Task, Observation]:
        """Draw targets and clues: three uniform numbers per agent."""
        sure, *drawn = jax.random.uniform(key, (3, self.n_agents))

        def whole(uniform: Array, count: int) -> Array:
            # The product may round up to the count itself.
            return jnp.minimum(uniform * count, count - 1).astype(jnp.int32)

        target, other = whole(drawn[0], self.n_targets), whole(drawn[1], self.names * self.n_targets)
        # Any name of the target: which of its names the other one is.
        told = jnp.where(sure < jnp.asarray(self.clue), target * self.names + other % self.names, other)
        state = Task(target, told, jnp.zeros((), jnp.int32))
        return state, self.observe(state)

    def step(self, key: Key, state: Task, action: Action) -> tuple[Task, TimeStep]:
        """Pay and move on. Draws nothing."""
        return finite.advance(self, key, state, action)

    def decentralised_value(self, gamma: float = 1.0, *, memory: bool = True) -> float:
        """Best expected return of agents that see their own observations alone.

        No action changes what anybody sees, so that agents' guesses are independent, and the best
        one is the clue. ``memory=False``: of agents that see the present observation alone.
        """
        require(concrete(self.clue, self.delay), "decentralised_value needs numbers, not tracers.")
        guess = 1 / self.n_targets
        told = float(self.clue) + (1 - float(self.clue)) * guess
        t = np.arange(self.steps)
        knows = t >= float(self.delay) if memory else t == float(self.delay)
        return float(np.sum(gamma**t * np.where(knows, told, guess) ** self.n_agents))


def relay(
    *,
    clue: Real = 1.0,
    delay: Real = 0,
    n_agents: int = 2,
    n_targets: int = 3,
    steps: int = 4,
    names: int = 16,
) -> Relay:
    """The relay; by default a clue of 48 says everything in the first of four steps."""
    return Relay(
        clue=finite.number(clue, "clue"),
        delay=finite.number(delay, "delay"),
        n_agents=n_agents,
        n_targets=n_targets,
        steps=steps,
        names=names,
    )
