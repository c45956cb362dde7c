"""Tiny environments with known answers, generalised to n agents, that tell apart what can be wrong.

:class:`Probe` is five of them (and an endless one) in one shape, so that one program learns all:

========  ===============================================  ================  ==================
probe     reward                                           known             a failure blames
========  ===============================================  ================  ==================
constant  1                                                V = 1             the value's loss
seen      +1 or -1, as everybody's observation shows       V(o) = +1 or -1   what the value sees
delayed   0, and 1 one step later                          V = γ, then 1     discount, bootstrap
action    share of agents that choose action 1             all choose 1      credit, sign
both      share of agents that choose what they alone see  a_i = o_i         conditioning
endless   1 for ever, cut off by a clock nobody sees       V = 1 / (1 - γ)   truncation
========  ===============================================  ================  ==================

:class:`Skirmish` has all that is easily forgotten: agents that die, illegal actions, episodes that
end early or are cut off, rewards after the end. Its leaves vary what must have no influence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from tad_envs import Observation, Real, Spec, TimeStep, finite, struct

HORIZON = 2


class Place(NamedTuple):
    """State of :class:`Probe`."""

    bits: Int[Array, "N"]
    """What each agent sees."""
    clock: Int[Array, ""]
    """Steps taken, up to ``HORIZON``."""


@struct
class Probe:
    """The probes as weights of one reward; the clock is seen unless the probe is endless."""

    constant: Real = 0.0
    seen: Real = 0.0
    delayed: Real = 0.0
    action: Real = 0.0
    both: Real = 0.0
    endless: Real = 0.0
    n_agents: int = 3
    name: str = ""

    @property
    def spec(self):
        return Spec(
            n_agents=self.n_agents,
            obs_dim=2 * HORIZON,
            state_dim=2**self.n_agents * HORIZON,
            horizon=HORIZON,
            n_actions=2,
            one_hot=True,
        )

    def starts(self):
        grid = np.indices((2,) * self.n_agents).reshape(self.n_agents, -1).T.astype(np.int32)
        own = np.full(len(grid), 1 / len(grid))
        common, blank = np.zeros(len(grid)), np.zeros(len(grid))
        common[[0, -1]], blank[0] = 0.5, 1.0
        both, seen = jnp.asarray(self.both) != 0, jnp.asarray(self.seen) != 0
        p = jnp.where(both, own, jnp.where(seen, common, blank)).astype(jnp.float32)
        return p, Place(jnp.asarray(grid), jnp.zeros(len(grid), jnp.int32))

    def observe(self, state):
        shown = jnp.where(jnp.asarray(self.endless) != 0, 0, jnp.minimum(state.clock, HORIZON - 1))
        rows = finite.one_hot(state.bits + 2 * shown, 2 * HORIZON)
        code = finite.joint_index(state.bits, 2) + 2**self.n_agents * shown
        joint = finite.one_hot(code, self.spec.state_dim)
        n = self.n_agents
        return Observation(rows, joint, jnp.ones((n, 2), bool), jnp.ones(n, bool))

    def outcomes(self, state, action):
        late = (state.clock > 0).astype(jnp.float32)
        reward = (
            jnp.asarray(self.constant)
            + jnp.asarray(self.endless)
            + jnp.asarray(self.seen) * (2 * state.bits[0] - 1)
            + jnp.asarray(self.delayed) * late
            + jnp.asarray(self.action) * jnp.mean(action == 1)
            + jnp.asarray(self.both) * jnp.mean(action == state.bits)
        )
        once = (jnp.asarray(self.delayed) == 0) & (jnp.asarray(self.endless) == 0)
        over = (state.clock >= 1) & (jnp.asarray(self.delayed) != 0)
        following = Place(state.bits, jnp.minimum(state.clock + 1, HORIZON))
        p, stacked = finite.certain((following, jnp.asarray(reward, jnp.float32), once | over))
        return p, *stacked

    def reset(self, key):
        return finite.begin(self, key)

    def step(self, key, state, action):
        return finite.advance(self, key, state, action, lambda s: s.clock >= HORIZON)


NAMES = ("constant", "seen", "delayed", "action", "both", "endless")
PROBES = {name: Probe(**{name: 1.0}, name=f"probe/{name}") for name in NAMES}


class Fight(NamedTuple):
    """State of :class:`Skirmish`."""

    bits: Int[Array, "N"]
    clock: Int[Array, ""]
    over: Bool[Array, ""]


@struct
class Skirmish:
    """Three agents, three actions, at most four steps; agent 0 dies after two.

    The team earns the share of living agents that choose what they see (0 or 1). It may end the
    episode early, after the first step, if every living agent chooses 1; after four steps the clock
    cuts it off. Action 2 is never legal for agent 1, and in the second and fourth step action 1 is not
    legal for agent 2, unless ``one_hot``, where what is legal does not change.

    If ``continuous``, agents have three dimensions instead, or those that would be legal actions; a
    positive first number is action 1, anything else action 0, and with ``only`` all is action 0.
    """

    after: Real = 0.0
    """Reward of every step after the end."""
    ghost: Real = 0.0
    """What a dead agent sees (the scale of a view, or the index of a one-hot one): it means nothing."""
    ghost_action: Real = 0.0
    """The one action that dead agents may not take, though theirs do nothing (not if ``one_hot``)."""
    forbidden: Real = 0.0
    """Reward for an illegal action."""
    only: Real = 0.0
    """If not 0, action 0 is the only legal one of everybody."""
    still: Real = 0.0
    """If not 0, everybody always sees 0: with ``only``, episodes do not differ."""
    one_hot: bool = False
    continuous: bool = False
    name: str = ""

    @property
    def spec(self):
        return Spec(
            n_agents=3,
            obs_dim=10 if self.one_hot else 4,
            state_dim=40 if self.one_hot else 5,
            horizon=4,
            n_actions=0 if self.continuous else 3,
            action_dim=3 if self.continuous else 0,
            discrete=not self.continuous,
            one_hot=self.one_hot,
            bounds=(-2.0, 2.0) if self.continuous else None,
        )

    def _alive(self, state):
        return jnp.stack([state.clock < 2, jnp.asarray(True), jnp.asarray(True)])

    def _legal(self, state):
        base = jnp.asarray([[True, True, True], [True, True, False], [True, True, True]])
        if not self.one_hot:
            odd = (state.clock % 2 == 1)[None, None]
            base = base & ~(odd & jnp.asarray([[0, 0, 0], [0, 0, 0], [0, 1, 0]], bool))
            dead = jnp.arange(3) != jnp.asarray(self.ghost_action)
            base = jnp.where(self._alive(state)[:, None], base, dead)
        return jnp.where(jnp.asarray(self.only) != 0, jnp.arange(3) == 0, base)

    def observe(self, state):
        clock, alive, ghost = state.clock, self._alive(state), jnp.asarray(self.ghost)
        if self.one_hot:
            index = jnp.where(alive, state.bits + 2 * clock, ghost.astype(jnp.int32))
            rows = finite.one_hot(index, 10)
            joint = finite.one_hot(finite.joint_index(state.bits, 2) + 8 * clock, 40)
        else:
            # The step is seen by agent 0 alone, so that the others have something to remember.
            own = jnp.where(jnp.arange(3) == 0, clock.astype(jnp.float32), 0.0)
            flags = finite.one_hot(state.bits, 2) * (clock != 1)
            rows = jnp.concatenate([flags, own[:, None], jnp.ones((3, 1))], axis=1)
            rows = jnp.where(alive[:, None], rows, ghost * jnp.arange(1.0, 5.0) ** 2)
            joint = jnp.concatenate([state.bits.astype(jnp.float32), jnp.stack([clock * 0.5, 1.0])])
        return Observation(rows, joint, self._legal(state), alive)

    def reset(self, key):
        bits = (jax.random.uniform(key, (3,)) < 0.5) & (jnp.asarray(self.still) == 0)
        state = Fight(bits.astype(jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        return state, self.observe(state)

    def step(self, key, state, action):
        del key
        alive = self._alive(state)
        if self.continuous:
            action = ((action[:, 0] > 0) & (jnp.asarray(self.only) == 0)).astype(jnp.int32)
        illegal = alive & ~jnp.take_along_axis(self._legal(state), action[:, None], axis=1)[:, 0]
        illegal = illegal & (not self.continuous)  # a dimension that is lacking is not looked at
        right = jnp.sum((action == state.bits) & alive) / jnp.sum(alive)
        reward = right + jnp.asarray(self.forbidden) * jnp.any(illegal)
        reward = jnp.where(state.over, jnp.asarray(self.after), reward).astype(jnp.float32)
        terminated = (state.clock >= 1) & jnp.all((action == 1) | ~alive) & ~state.over
        clock = jnp.minimum(state.clock + 1, 4)
        truncated = (clock >= 4) & ~terminated
        following = Fight(state.bits, clock, state.over | terminated | truncated)
        return following, TimeStep(self.observe(following), reward, terminated, truncated, info={})
