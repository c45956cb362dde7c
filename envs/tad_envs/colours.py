"""A game of agents of several kinds, which none of them is told: who should share parameters?

Every step shows all agents the same signal. Each agent has a *colour*, which decides what the right
answer to a signal is, and the team is paid by how many agents answer rightly. Agents of one colour
should do the same and agents of two colours should not, so that one policy for all that is not told
who it acts for pays at most what it pays to answer for the best colour alone; a set of parameters for
each colour learns from all of its agents. The idea is that of the particles of Christianos et al.
2021 (selective parameter sharing), in a form that can be solved exactly.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.struct import AnyArray, require, struct
from tad_envs.types import Action, Key, Observation, Spec, State, TimeStep


class Shown(NamedTuple):
    """State of :class:`Colours`."""

    signal: Int[Array, ""]
    clock: Int[Array, ""]
    """Steps taken."""


@struct
class Colours:
    """``reward = mean_i payoff[colour_i, signal, a_i]``; signals are drawn anew for every step.

    The episode ends by itself after ``steps`` steps. Everybody sees the one-hot signal, or, if
    ``shown``, the one-hot pair of its own colour and the signal.
    """

    payoff: Float[AnyArray, "C S A"]
    """What each colour's answer to each signal is worth; actions are the answers."""
    colours: tuple[int, ...]
    """The colour of each agent."""
    steps: int = 1
    shown: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps={self.steps} must be at least 1.")
        payoff = self.payoff
        if isinstance(payoff, np.ndarray) and payoff.ndim == 3:
            known = range(payoff.shape[0])
            require(
                set(self.colours) <= set(known),
                f"colours={self.colours} must lie in 0..{payoff.shape[0] - 1}, as payoff has "
                f"{payoff.shape[0]} colours.",
            )

    @property
    def spec(self) -> Spec:
        """Sizes."""
        kinds, signals, actions = self.payoff.shape
        return Spec(
            n_agents=len(self.colours),
            obs_dim=kinds * signals if self.shown else signals,
            state_dim=signals,
            horizon=self.steps,
            n_actions=actions,
            one_hot=True,
            order_dependent=True,
        )

    def starts(self) -> tuple[Float[Array, "S"], State]:
        """A signal, all alike."""
        signals = self.payoff.shape[1]
        return jnp.full(signals, 1 / signals), self._signals(jnp.zeros((), jnp.int32))

    def observe(self, state: State) -> Observation:
        """The signal, and one's own colour if that is shown."""
        signals, spec = self.payoff.shape[1], self.spec
        index = jnp.broadcast_to(state.signal, spec.n_agents)
        if self.shown:
            index = index + signals * jnp.asarray(self.colours)
        return Observation(
            agents=finite.one_hot(index, spec.obs_dim),
            state=finite.one_hot(state.signal, signals),
            legal=jnp.ones((spec.n_agents, spec.n_actions), bool),
            alive=jnp.ones(spec.n_agents, bool),
        )

    def outcomes(
        self, state: State, action: Action
    ) -> tuple[Float[Array, "S"], State, Float[Array, "S"], Bool[Array, "S"]]:
        """Pay, and draw the next signal."""
        p, _ = self.starts()
        paid = jnp.asarray(self.payoff, jnp.float32)[jnp.asarray(self.colours), state.signal, action]
        clock = jnp.minimum(state.clock + 1, self.steps)
        over = jnp.broadcast_to(clock >= self.steps, p.shape)
        return p, self._signals(clock), jnp.broadcast_to(jnp.mean(paid), p.shape), over

    def _signals(self, clock: Int[Array, ""]) -> State:
        signals = self.payoff.shape[1]
        return Shown(jnp.arange(signals, dtype=jnp.int32), jnp.broadcast_to(clock, signals))

    def reset(self, key: Key) -> tuple[State, Observation]:
        """Draw a signal."""
        return finite.begin(self, key)

    def step(self, key: Key, state: State, action: Action) -> tuple[State, TimeStep]:
        """Pay, and draw the next signal."""
        return finite.advance(self, key, state, action)


def colours(
    *,
    n: int = 6,
    colours: int = 2,
    signals: int = 3,
    payoff: Any = None,
    steps: int = 1,
    shown: bool = False,
) -> Colours:
    """``n`` agents whose colours take turns; colour c answers signal s with action (s + c) mod A.

    There are as many actions as signals or as colours, whichever is more; right answers pay 1. A
    ``payoff [colours, signals, actions]`` of one's own takes the place of all that.
    """
    require(n >= 1, f"n={n} must be at least 1.")
    require(1 <= colours <= n, f"colours={colours} must lie between 1 and n={n}.")
    require(signals >= 1, f"signals={signals} must be at least 1.")
    if payoff is None:
        actions = max(signals, colours, 2)
        right = (np.arange(colours)[:, None] + np.arange(signals)) % actions
        payoff = np.eye(actions, dtype=np.float32)[right]
    table = np.asarray(payoff, np.float32)
    require(
        table.ndim == 3 and table.shape[:2] == (colours, signals),
        f"payoff of shape {table.shape} must be [colours, signals, actions] = "
        f"[{colours}, {signals}, …].",
    )
    kinds = tuple(i % colours for i in range(n))
    return Colours(payoff=table, colours=kinds, steps=steps, shown=shown)
