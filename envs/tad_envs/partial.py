"""Small games in which agents know less than the team: each with a known optimum.

:class:`DecTiger` hides the state behind noisy private observations, :class:`MackrlPair` decides at
random who knows which game is played, and :class:`CoordSum` forgets what its reward depends on.
:func:`tad_envs.solve` gives what a team could earn that sees the state;
:func:`tad_envs.solve_decentralised` what agents can earn that see their own observations alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite, matrix
from tad_envs.struct import AnyArray, Real, require, struct
from tad_envs.types import Action, Key, Observation, Spec, State, TimeStep

LISTEN, OPEN_LEFT, OPEN_RIGHT = 0, 1, 2
LEFT, RIGHT = 0, 1


def _check_share(value: Real, name: str) -> None:
    if finite.scalar_check(value):
        require(0 <= float(value) <= 1, f"{name}={float(value):g} must lie in [0, 1].")


class Den(NamedTuple):
    """State of :class:`DecTiger`."""

    tiger: Int[Array, ""]
    """Behind which door: ``LEFT`` or ``RIGHT``."""
    heard: Int[Array, "2"]
    """What each agent has just heard: 0 nothing yet, 1 left, 2 right."""
    clock: Int[Array, ""]
    """Steps taken."""


@struct
class DecTiger:
    """Decentralised tiger: two agents, two doors, a tiger behind one (Nair et al. 2003).

    Actions: listen, open left, open right. If both listen, the tiger stays and each agent hears its
    side, independently right with probability ``accuracy``; if any door is opened, the tiger is put
    behind either door anew and both hear a side at random. Rewards: both listen -2; both open the
    treasure +20, both the tiger -50, different doors -100; one listens while the other opens the
    treasure +9, the tiger -101. ``horizon`` steps; the last one terminates.

    An agent sees what it has just heard, one-hot (nothing, left, right), and the state is the
    tiger's side, so that memory is needed. Known best decentralised values at accuracy 0.85 for
    horizons 2, 3, 4, 5, 6 and 10: -4, 5.19, 4.80, 7.03, 10.38, 15.18. A team that sees the tiger
    earns 20 per step.
    """

    accuracy: Real = 0.85
    """Probability of hearing the right side, in [0, 1]."""
    horizon: int = 10
    name: str = ""

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")
        _check_share(self.accuracy, "accuracy")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(
            n_agents=2,
            obs_dim=3,
            state_dim=2,
            horizon=self.horizon,
            n_actions=3,
            one_hot=True,
        )

    def starts(self) -> tuple[Float[Array, "2"], Den]:
        """Either side, equally likely; nothing heard."""
        nothing = jnp.zeros((2, 2), jnp.int32)
        return jnp.full(2, 0.5), Den(jnp.arange(2, dtype=jnp.int32), nothing, jnp.zeros(2, jnp.int32))

    def observe(self, state: Den) -> Observation:
        """What each agent has heard; the tiger's side as the state."""
        return Observation(
            agents=finite.one_hot(state.heard, 3),
            state=finite.one_hot(state.tiger, 2),
            legal=jnp.ones((2, 3), bool),
            alive=jnp.ones(2, bool),
        )

    def outcomes(
        self, state: Den, action: Action
    ) -> tuple[Float[Array, "8"], Den, Float[Array, "8"], Bool[Array, "8"]]:
        """Either side of the tiger, times what either agent hears."""
        tiger, *heard = jnp.asarray(np.indices((2, 2, 2)).reshape(3, 8), jnp.int32)
        quiet = jnp.all(action == LISTEN)
        side = jnp.where(quiet, (tiger == state.tiger).astype(jnp.float32), 0.5)
        right = jnp.where(quiet, jnp.asarray(self.accuracy, jnp.float32), 0.5)
        probability = side
        for sound in heard:
            probability = probability * jnp.where(sound == tiger, right, 1 - right)
        clock = jnp.minimum(state.clock + 1, self.horizon)
        following = Den(tiger, jnp.stack(heard, axis=1) + 1, jnp.full(8, clock))
        reward = jnp.full(8, self._reward(state.tiger, action))
        return probability, following, reward, jnp.full(8, clock >= self.horizon)

    def _reward(self, tiger: Int[Array, ""], action: Action) -> Float[Array, ""]:
        treasure = jnp.sum(action == OPEN_LEFT + (1 - tiger))
        mauled = jnp.sum(action == OPEN_LEFT + tiger)
        # Rows: how many opened the treasure; columns: how many the tiger.
        table = jnp.array([[-2.0, -101.0, -50.0], [9.0, -100.0, 0.0], [20.0, 0.0, 0.0]], jnp.float32)
        return table[treasure, mauled]

    def reset(self, key: Key) -> tuple[Den, Observation]:
        """Draw the tiger's side."""
        return finite.begin(self, key)

    def step(self, key: Key, state: Den, action: Action) -> tuple[Den, TimeStep]:
        """Listen or open; draws the tiger's side and what is heard."""
        return finite.advance(self, key, state, action)


@struct
class MackrlPair:
    """A pair of payoffs, and chance decides who knows which is played (MACKRL).

    Schroeder de Witt et al. (2019): each of ``payoffs`` is played equally often. With probability
    ``common`` its index is common knowledge; otherwise each agent sees it with probability ``seen``,
    independently and without knowing whether the other does. One step.

    An agent sees one of five codes, one-hot: commonly known first or second payoff, nothing, seen
    first or second. The state, one-hot of ten, is the payoff's index times five cases: commonly
    known, or which of the agents see it. With the published payoffs and ``seen=0.5`` the best
    decentralised value is ``common + 0.75 (1 - common)``: where nothing is common, the first agent
    counts on the first payoff and the second switches if it sees the second. A team that sees all
    earns 1.
    """

    payoffs: Float[AnyArray, "2 A A"]
    common: Real = 0.5
    """Probability of common knowledge, in [0, 1]."""
    seen: Real = 0.5
    """Probability that an agent sees the index privately, in [0, 1]."""
    name: str = ""

    def __post_init__(self) -> None:
        _check_share(self.common, "common")
        _check_share(self.seen, "seen")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        actions = self.payoffs.shape[-1]
        return Spec(n_agents=2, obs_dim=5, state_dim=10, horizon=1, n_actions=actions, one_hot=True)

    def starts(self) -> tuple[Float[Array, "10"], State]:
        """The ten cases; case ``5 g + 1 + 2 i + j`` is payoff g, privately seen by agents as i, j."""
        common, seen = jnp.asarray(self.common, jnp.float32), jnp.asarray(self.seen, jnp.float32)
        each = jnp.stack([1 - seen, seen])
        private = (1 - common) * (each[:, None] * each).reshape(-1)
        probability = jnp.concatenate([common[None], private]) / 2
        return jnp.tile(probability, 2), jnp.arange(10, dtype=jnp.int32)

    def observe(self, state: State) -> Observation:
        """What each agent knows of the payoff, and the case as the state."""
        payoff, case = state // 5, state % 5
        sees = jnp.stack([(case - 1) // 2, (case - 1) % 2])
        code = jnp.where(case == 0, payoff, jnp.where(sees == 1, 3 + payoff, 2))
        return Observation(
            agents=finite.one_hot(code, 5),
            state=finite.one_hot(state, 10),
            legal=jnp.ones((2, self.spec.n_actions), bool),
            alive=jnp.ones(2, bool),
        )

    def common_knowledge(self, row: Float[Array, "5"], agent: Int[Array, ""]) -> Float[Array, "3"]:
        """The payoff, if its index is common knowledge; else that it is not."""
        del agent
        return jnp.concatenate([row[:2], jnp.sum(row[2:], keepdims=True)])

    def outcomes(
        self, state: State, action: Action
    ) -> tuple[Float[Array, "1"], State, Float[Array, "1"], Bool[Array, "1"]]:
        """Pay and end."""
        reward = jnp.asarray(self.payoffs, jnp.float32)[state // 5, action[0], action[1]]
        p, stacked = finite.certain((state, reward, jnp.ones((), bool)))
        return p, *stacked

    def reset(self, key: Key) -> tuple[State, Observation]:
        """Draw the payoff and who knows it."""
        return finite.begin(self, key)

    def step(self, key: Key, state: State, action: Action) -> tuple[State, TimeStep]:
        """Pay and end. Draws nothing."""
        return finite.advance(self, key, state, action)


class Round(NamedTuple):
    """State of :class:`CoordSum`."""

    target: Int[Array, ""]
    counts: Int[Array, "M A"]
    """How often the first agent has chosen each action at each target."""
    clock: Int[Array, ""]
    """Rounds played."""


@struct
class CoordSum:
    """Agents choose numbers that add up to a target, and the first must not be predictable.

    From MAGPO (Li et al. 2025): in each of ``horizon`` rounds a target is drawn from
    ``0..n_targets - 1`` and seen by all. The round pays 0 unless the actions (0 to ``n_actions - 1``)
    add up to it; then 2, or 1 if the first agent chose what it has chosen most often at this target
    so far (ties, and a target not met before, to the lowest action). At most 2 per round.

    The record of what was chosen is in no observation, nor in ``state``: both are the one-hot
    target. Differs from the published code, in which targets from ``n_actions`` on share a record.
    Finite; small sizes can be solved.
    """

    n_agents: int = 3
    n_actions: int = 10
    n_targets: int = 30
    horizon: int = 100
    name: str = ""

    def __post_init__(self) -> None:
        require(self.n_agents >= 2, f"n_agents={self.n_agents} must be at least 2.")
        sizes = {"n_actions": self.n_actions, "n_targets": self.n_targets, "horizon": self.horizon}
        for name, size in sizes.items():
            require(size >= 1, f"{name}={size} must be at least 1.")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(
            n_agents=self.n_agents,
            obs_dim=self.n_targets,
            state_dim=self.n_targets,
            horizon=self.horizon,
            n_actions=self.n_actions,
            one_hot=True,
            order_dependent=True,
            state_markov=False,
        )

    def starts(self) -> tuple[Float[Array, "M"], Round]:
        """Any target; nothing chosen so far."""
        m = self.n_targets
        counts = jnp.zeros((m, m, self.n_actions), jnp.int32)
        target = jnp.arange(m, dtype=jnp.int32)
        return jnp.full(m, 1 / m), Round(target, counts, jnp.zeros(m, jnp.int32))

    def observe(self, state: Round) -> Observation:
        """The target."""
        legal = jnp.ones((self.n_agents, self.n_actions), bool)
        return finite.common_view(finite.one_hot(state.target, self.n_targets), legal)

    common_knowledge = finite.all_common

    def outcomes(
        self, state: Round, action: Action
    ) -> tuple[Float[Array, "M"], Round, Float[Array, "M"], Bool[Array, "M"]]:
        """Pay, record the first agent's choice, and draw any target."""
        m = self.n_targets
        played, reward, ended = self._play(state, action)
        following = jax.tree.map(lambda x: jnp.broadcast_to(x, (m, *x.shape)), played)
        following = following._replace(target=jnp.arange(m, dtype=jnp.int32))
        return jnp.full(m, 1 / m), following, jnp.full(m, reward), jnp.full(m, ended)

    def _play(self, state: Round, action: Action) -> tuple[Round, Float[Array, ""], Bool[Array, ""]]:
        """The state before the next target is drawn, the reward, and whether this was the end."""
        hit = jnp.sum(action) == state.target
        expected = action[0] == jnp.argmax(state.counts[state.target])
        reward = jnp.where(hit, jnp.where(expected, 1.0, 2.0), 0.0).astype(jnp.float32)
        counts = state.counts.at[state.target, action[0]].add(1)
        clock = jnp.minimum(state.clock + 1, self.horizon)
        return Round(state.target, counts, clock), reward, clock >= self.horizon

    def reset(self, key: Key) -> tuple[Round, Observation]:
        """Draw the first target."""
        counts = jnp.zeros((self.n_targets, self.n_actions), jnp.int32)
        state = Round(self._draw(key), counts, jnp.zeros((), jnp.int32))
        return state, self.observe(state)

    def step(self, key: Key, state: Round, action: Action) -> tuple[Round, TimeStep]:
        """Play a round and draw the next target."""
        # Not sampled from outcomes, which would copy the record once per target.
        played, reward, ended = self._play(state, action)
        following = played._replace(target=self._draw(key))
        never = jnp.zeros((), bool)
        return following, TimeStep(self.observe(following), reward, ended, never, info={})

    def _draw(self, key: Key) -> Int[Array, ""]:
        return jax.random.randint(key, (), 0, self.n_targets, jnp.int32)


# --------------------------------------------------------------------------------------------------
# Construction


def dec_tiger(*, accuracy: Real = 0.85, horizon: int = 10) -> DecTiger:
    """The decentralised tiger of ``horizon`` steps."""
    return DecTiger(accuracy=finite.number(accuracy, "accuracy"), horizon=horizon)


def mackrl_pair(*, common: Real = 0.5, seen: Real = 0.5) -> MackrlPair:
    """The two payoffs of MACKRL, scaled to an optimum of 1."""
    pair = [matrix.PAYOFFS[key].payoff for key in ("mackrl_1", "mackrl_2")]
    return MackrlPair(
        payoffs=np.asarray(pair, np.float32),
        common=finite.number(common, "common"),
        seen=finite.number(seen, "seen"),
    )


def coordsum(
    *, n_agents: int = 3, n_actions: int = 10, n_targets: int = 30, horizon: int = 100
) -> CoordSum:
    """CoordSum; published sizes (agents x actions - targets): 3x10-30, 3x30-50, 5x20-80, 8x15-100."""
    return CoordSum(n_agents=n_agents, n_actions=n_actions, n_targets=n_targets, horizon=horizon)
