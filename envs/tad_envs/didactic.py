"""Small sequential games from the papers on value decomposition, each with a known optimum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.struct import AnyArray, Real, concrete, require, struct
from tad_envs.types import Action, Key, Observation, Spec, State, TimeStep

Payoffs = Any
"""A table of payoffs: a host or traced array, or nested sequences of numbers."""


@struct
class GaussianSqueeze:
    """``K`` agents with weights ``s_i`` aim for a total: QTRAN (Son et al. 2019), section 5.2.

    ``s_i ~ U(0, 2)``, seen by agent i alone; actions ``a_i`` in 0..10; one step that pays
    ``x exp(-(x - target)^2 / width)`` with ``x = sum_i s_i a_i / K``, plus, with ``multi_domain``,
    ``x exp(-(x - 5)^2)``. With the defaults no episode pays more than 8.008. Not finite: the
    weights are continuous.
    """

    target: Real = 8.0
    width: Real = 0.25
    n_agents: int = 10
    multi_domain: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        require(self.n_agents >= 1, f"n_agents={self.n_agents} must be at least 1.")
        if finite.scalar_check(self.width):
            require(float(self.width) > 0, f"width={float(self.width):g} must be positive.")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(n_agents=self.n_agents, obs_dim=1, state_dim=self.n_agents, horizon=1, n_actions=11)

    def reset(self, key: Key) -> tuple[Float[Array, "N"], Observation]:
        """Draw the weights."""
        weights = jax.random.uniform(key, (self.n_agents,), maxval=2.0)
        return weights, self.observe(weights)

    def observe(self, state: Float[Array, "N"]) -> Observation:
        """Own weight; all weights as the state."""
        n = self.n_agents
        return Observation(state[:, None], state, jnp.ones((n, 11), bool), jnp.ones(n, bool))

    def step(
        self, key: Key, state: Float[Array, "N"], action: Action
    ) -> tuple[Float[Array, "N"], TimeStep]:
        """Pay and end. Draws nothing."""
        del key
        x = jnp.sum(state * action) / self.n_agents
        reward = x * jnp.exp(-((x - self.target) ** 2) / self.width)
        if self.multi_domain:
            reward += x * jnp.exp(-((x - 5.0) ** 2))
        ended, clock = jnp.ones((), bool), jnp.zeros((), bool)
        reward = reward.astype(jnp.float32)
        return state, TimeStep(self.observe(state), reward, ended, clock, info={})


@struct
class TwoStep:
    """Two-step game of QMIX (Rashid et al. 2018): the first agent chooses the stage game.

    In the first step agent 0's action picks ``payoffs[0]`` (published: all 7) or ``payoffs[1]``
    (``[[0, 1], [1, 8]]``) and nothing is paid; the second step pays and ends. Optimum 8; additive
    values choose the safe 7. The state is the index of three, one-hot for everybody.
    """

    payoffs: Float[AnyArray, "2 2 2"]
    name: str = ""

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(n_agents=2, obs_dim=3, state_dim=3, horizon=2, n_actions=2, one_hot=True)

    def starts(self) -> tuple[Float[Array, "1"], State]:
        """The choice, with certainty."""
        return finite.certain(jnp.zeros((), jnp.int32))

    def observe(self, state: State) -> Observation:
        """The state."""
        return finite.common_view(finite.one_hot(state, 3), jnp.ones((2, 2), bool))

    common_knowledge = finite.all_common

    def outcomes(
        self, state: State, action: Action
    ) -> tuple[Float[Array, "1"], State, Float[Array, "1"], Bool[Array, "1"]]:
        """Choose, or pay and end."""
        second = state > 0
        game = jnp.maximum(state - 1, 0)
        paid = jnp.asarray(self.payoffs, jnp.float32)[game, action[0], action[1]]
        reward = jnp.where(second, paid, 0.0)
        following = jnp.where(second, state, 1 + action[0]).astype(jnp.int32)
        p, stacked = finite.certain((following, reward, second))
        return p, *stacked

    def reset(self, key: Key) -> tuple[State, Observation]:
        """Begin at the choice. Draws nothing."""
        return finite.begin(self, key)

    def step(self, key: Key, state: State, action: Action) -> tuple[State, TimeStep]:
        """Choose, or pay and end. Draws nothing."""
        return finite.advance(self, key, state, action)


class Place(NamedTuple):
    """Where a game with few places stands, and since when."""

    place: Int[Array, ""]
    clock: Int[Array, ""]
    """Steps taken."""


@struct
class Mmdp:
    """Two-state game of QPLEX (Wang et al. 2021) on which linear and monotone values diverge.

    In the start state the joint action (0, 0) pays 1, and (1, 1) leads to an absorbing state that
    pays nothing. Optimum: one per step. It ends by the clock alone (truncated after ``horizon``).
    Everybody sees the one-hot place; place 0 is absorbing, place 1 the start.
    """

    horizon: int = 100
    name: str = ""

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(
            n_agents=2,
            obs_dim=2,
            state_dim=2,
            horizon=self.horizon,
            n_actions=2,
            one_hot=True,
            terminates=False,
        )

    def starts(self) -> tuple[Float[Array, "1"], Place]:
        """Place 1, with certainty."""
        return finite.certain(Place(jnp.ones((), jnp.int32), jnp.zeros((), jnp.int32)))

    def observe(self, state: Place) -> Observation:
        """The place."""
        return finite.common_view(finite.one_hot(state.place, 2), jnp.ones((2, 2), bool))

    common_knowledge = finite.all_common

    def outcomes(
        self, state: Place, action: Action
    ) -> tuple[Float[Array, "1"], Place, Float[Array, "1"], Bool[Array, "1"]]:
        """Pay for (0, 0), fall for (1, 1)."""
        up = state.place == 1
        reward = (up & jnp.all(action == 0)).astype(jnp.float32)
        place = (up & ~jnp.all(action == 1)).astype(jnp.int32)
        following = Place(place, jnp.minimum(state.clock + 1, self.horizon))
        p, stacked = finite.certain((following, reward, jnp.zeros((), bool)))
        return p, *stacked

    def reset(self, key: Key) -> tuple[Place, Observation]:
        """Begin at place 1. Draws nothing."""
        return finite.begin(self, key)

    def step(self, key: Key, state: Place, action: Action) -> tuple[Place, TimeStep]:
        """Pay or fall; truncated at the horizon. Draws nothing."""
        return finite.advance(self, key, state, action, lambda s: s.clock >= self.horizon)


@struct
class MStep:
    """m-step game of MAVEN (Mahajan et al. 2019): commit to a joint action, then repeat it.

    The first joint action selects a branch: (0, 0) or (1, 1); it and each repetition pay 1,
    anything else pays 0 and ends. After (0, 0) the last step is a stage game, ``last``, whose
    ``(1, 1)`` pays 4. Optimum ``steps + 3``; staying with (1, 1) earns ``steps``. Everybody sees
    the one-hot of branch and step.
    """

    last: Float[AnyArray, "2 2"]
    """Payoff of the last step of branch (0, 0)."""
    steps: int = 10
    name: str = ""

    def __post_init__(self) -> None:
        require(self.steps >= 2, f"steps={self.steps} must be at least 2.")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        codes = 2 * self.steps - 1
        return Spec(
            n_agents=2,
            obs_dim=codes,
            state_dim=codes,
            horizon=self.steps,
            n_actions=2,
            one_hot=True,
        )

    def starts(self) -> tuple[Float[Array, "1"], Place]:
        """Step 0, with certainty."""
        return finite.certain(Place(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)))

    def observe(self, state: Place) -> Observation:
        """Code 0 at the start, then ``2 clock - 1`` in branch 0 and ``2 clock`` in branch 1."""
        clock = jnp.minimum(state.clock, self.steps - 1)
        code = jnp.maximum(2 * clock - 1 + state.place, 0)
        return finite.common_view(finite.one_hot(code, 2 * self.steps - 1), jnp.ones((2, 2), bool))

    common_knowledge = finite.all_common

    def outcomes(
        self, state: Place, action: Action
    ) -> tuple[Float[Array, "1"], Place, Float[Array, "1"], Bool[Array, "1"]]:
        """Commit, repeat, or play the last step."""
        agreed = action[0] == action[1]
        branch = jnp.where(state.clock == 0, action[0], state.place).astype(jnp.int32)
        final = state.clock >= self.steps - 1
        repeated = (agreed & (action[0] == branch)).astype(jnp.float32)
        bonus = jnp.asarray(self.last, jnp.float32)[action[0], action[1]]
        reward = jnp.where(final & (branch == 0), bonus, repeated)
        # The start has no branch yet; a step that ends the episode leaves the place as it was.
        following = Place(
            jnp.where(agreed, branch, state.place), jnp.minimum(state.clock + 1, self.steps)
        )
        p, stacked = finite.certain((following, reward, final | (repeated == 0)))
        return p, *stacked

    def reset(self, key: Key) -> tuple[Place, Observation]:
        """Begin at step 0. Draws nothing."""
        return finite.begin(self, key)

    def step(self, key: Key, state: Place, action: Action) -> tuple[Place, TimeStep]:
        """Commit, repeat, or play the last step. Draws nothing."""
        return finite.advance(self, key, state, action)


# --------------------------------------------------------------------------------------------------
# Construction


def gaussian_squeeze(
    *,
    n_agents: int = 10,
    target: Real = 8.0,
    width: Real = 0.25,
    multi_domain: bool = False,
) -> GaussianSqueeze:
    """Gaussian squeeze; ``multi_domain=True`` adds the broad second peak at 5."""
    return GaussianSqueeze(
        target=finite.number(target, "target"),
        width=finite.number(width, "width"),
        n_agents=n_agents,
        multi_domain=multi_domain,
    )


def two_step(*, payoffs: Payoffs = (((7, 7), (7, 7)), ((0, 1), (1, 8)))) -> TwoStep:
    """The two-step game; ``payoffs`` holds the two stage games, by default the published ones."""
    return TwoStep(payoffs=_payoffs(payoffs, (2, 2, 2)))


def mmdp_qplex(*, horizon: int = 100) -> Mmdp:
    """The two-state game of QPLEX."""
    return Mmdp(horizon=horizon)


def maven_mstep(*, steps: int = 10, last: Payoffs = ((1, 1), (1, 4))) -> MStep:
    """The m-step game of ``steps`` steps; ``last`` is the stage game that ends the first branch."""
    return MStep(last=_payoffs(last, (2, 2)), steps=steps)


def _payoffs(value: Payoffs, shape: tuple[int, ...]) -> Any:
    """A host table of that shape; what is traced is left as it is."""
    if not concrete(value) and not isinstance(value, (list, tuple)):
        return value
    try:
        table = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        raise ValueError(f"payoffs {value!r} are not a table of numbers.") from None
    require(table.shape == shape, f"payoffs have shape {table.shape}; expected {shape}.")
    require(bool(np.isfinite(table).all()), f"payoffs {value!r} must be finite.")
    return table
