"""The switch riddle: who has been in the room, told through one light (Foerster et al. 2016, DIAL).

Each day one of ``N`` prisoners, drawn uniformly, is in a room with a light. It may switch the light, or
tell that everybody has been there: +1 if that is true, -1 if not, and the game ends. Time is up after
4 N - 6 days.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.struct import Real, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

NOTHING, SWITCH, TELL = 0, 1, 2

_JOINT_FEATURES = 512


class Prison(NamedTuple):
    """State of :class:`SwitchRiddle`."""

    light: Int[Array, ""]
    """0 or 1."""
    inside: Int[Array, ""]
    """Who is in the room."""
    been: Int[Array, "N"]
    """1 for who has acted in it before."""
    clock: Int[Array, ""]
    """Days gone."""


@struct
class SwitchRiddle:
    """One prisoner at a time acts in a room with a light; see the module.

    Actions: nothing, switch the light, tell; only what the one inside does counts. An agent sees one of
    three things, as a one-hot: that it is elsewhere, inside with the light off, or inside with it on.
    The state is the one-hot of light, who is inside and who has been there, or these side by side for
    7 agents and more. Rules are JaxMARL 0.2.0's, where the clock's end is an end like any other; here
    it truncates.

    With ``reward_wrong`` below 0 the best joint policy tells as soon as everybody has been there. For 3
    agents that is also what agents reach that remember whether they have been inside and which day it
    is: the light off says that one has been there, on that two have; its expected return is
    the probability that three coupons are collected in six draws, 20/27.
    """

    reward_right: Real = 1.0
    reward_wrong: Real = -1.0
    n_agents: int = 3
    name: str = ""

    def __post_init__(self) -> None:
        require(self.n_agents >= 3, f"n_agents={self.n_agents} must be at least 3.")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(
            n_agents=self.n_agents,
            obs_dim=3,
            state_dim=self._codes if self._joint_code else 1 + 2 * self.n_agents,
            horizon=4 * self.n_agents - 6,
            n_actions=3,
            one_hot=self._joint_code,
        )

    @property
    def _codes(self) -> int:
        return 2 * self.n_agents * 2**self.n_agents

    @property
    def _joint_code(self) -> bool:
        return self._codes <= _JOINT_FEATURES

    def starts(self) -> tuple[Float[Array, "K"], Prison]:
        """Light off, anybody inside."""
        n = self.n_agents
        inside = jnp.arange(n, dtype=jnp.int32)
        none = jnp.zeros(n, jnp.int32)
        return jnp.full(n, 1 / n), Prison(none, inside, jnp.zeros((n, n), jnp.int32), none)

    def observe(self, state: Prison) -> Observation:
        """The light, for the one inside; everything as the state."""
        n = self.n_agents
        here = jnp.arange(n) == state.inside
        if self._joint_code:
            been = finite.joint_index(state.been, 2)
            code = (state.light * n + state.inside) * 2**n + been
            whole = finite.one_hot(code, self._codes)
        else:
            parts = [state.light[None], here, state.been]
            whole = jnp.concatenate([part.astype(jnp.float32) for part in parts])
        agents = finite.one_hot(jnp.where(here, 1 + state.light, 0), 3)
        return Observation(agents, whole, jnp.ones((n, 3), bool), jnp.ones(n, bool))

    def outcomes(
        self, state: Prison, action: Action
    ) -> tuple[Float[Array, "K"], Prison, Float[Array, "K"], Bool[Array, "K"]]:
        """The one inside acts; then anybody is as likely to be next."""
        n = self.n_agents
        here = jnp.arange(n) == state.inside
        chosen = jnp.sum(jnp.where(here, action, 0))
        been = jnp.maximum(state.been, here.astype(jnp.int32))
        right = jnp.where(jnp.all(been == 1), self.reward_right, self.reward_wrong)
        reward = jnp.where(chosen == TELL, right, 0.0).astype(jnp.float32)
        light = jnp.where(chosen == SWITCH, 1 - state.light, state.light)
        clock = jnp.minimum(state.clock + 1, self.spec.horizon)
        next_in = jnp.arange(n, dtype=jnp.int32)
        following = Prison(
            jnp.full(n, light), next_in, jnp.broadcast_to(been, (n, n)), jnp.full(n, clock)
        )
        return jnp.full(n, 1 / n), following, jnp.full(n, reward), jnp.full(n, chosen == TELL)

    def reset(self, key: Key) -> tuple[Prison, Observation]:
        """Draw who is inside first."""
        return finite.begin(self, key)

    def step(self, key: Key, state: Prison, action: Action) -> tuple[Prison, TimeStep]:
        """Act and draw who is next; truncated when time is up."""
        state, step = finite.advance(self, key, state, action, lambda s: s.clock >= self.spec.horizon)
        return state, step._replace(info={"won": (step.reward > 0).astype(jnp.float32)})

    def heuristic(self, key: Key, state: Prison) -> Action:
        """Tell as soon as everybody has been inside, as only the state shows: the best joint policy."""
        del key
        here = np.arange(self.n_agents) == state.inside
        return jnp.where(here & jnp.all((state.been == 1) | here), TELL, NOTHING).astype(jnp.int32)


def switch_riddle(
    *, n_agents: int = 3, reward_right: Real = 1.0, reward_wrong: Real = -1.0
) -> SwitchRiddle:
    """Find out, through one light, when everybody has been in the room (DIAL)."""
    return SwitchRiddle(
        reward_right=finite.number(reward_right, "reward_right"),
        reward_wrong=finite.number(reward_wrong, "reward_wrong"),
        n_agents=n_agents,
    )
