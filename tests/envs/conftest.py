"""A random game that the tests of the oracle and of the transformation share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float

from tad_envs import Spec, TimeStep, finite, struct
from tad_envs.didactic import Place
from tad_envs.struct import AnyArray


@struct
class RandomGame:
    """S states, N agents, A actions, random transitions and rewards; the clock truncates."""

    transition: Float[AnyArray, "S J S"]
    payoff: Float[AnyArray, "S J"]
    ending: Float[AnyArray, "S J"]
    """1 where the joint action ends the episode."""
    agents: int
    actions: int
    horizon: int
    name: str = ""

    @property
    def spec(self):
        states = self.payoff.shape[0]
        return Spec(
            n_agents=self.agents,
            obs_dim=states,
            state_dim=states,
            horizon=self.horizon,
            n_actions=self.actions,
            one_hot=True,
        )

    def starts(self):
        states = self.payoff.shape[0]
        place = Place(jnp.arange(states, dtype=jnp.int32), jnp.zeros(states, jnp.int32))
        return jnp.full(states, 1 / states), place

    def observe(self, state):
        feature = finite.one_hot(state.place, self.payoff.shape[0])
        return finite.common_view(feature, jnp.ones((self.agents, self.actions), bool))

    def outcomes(self, state, action):
        states = self.payoff.shape[0]
        joint = finite.joint_index(action, self.actions)
        clock = jnp.minimum(state.clock + 1, self.horizon)
        following = Place(jnp.arange(states, dtype=jnp.int32), jnp.full(states, clock))
        reward = jnp.full(states, jnp.asarray(self.payoff)[state.place, joint])
        ends = jnp.full(states, jnp.asarray(self.ending)[state.place, joint] > 0)
        return jnp.asarray(self.transition)[state.place, joint], following, reward, ends

    def reset(self, key):
        return finite.begin(self, key)

    def step(self, key, state, action) -> tuple[Place, TimeStep]:
        return finite.advance(self, key, state, action, lambda s: s.clock >= self.horizon)


@pytest.fixture(scope="session")
def random_game():
    """Maker of random games: ``random_game(seed, states=5, agents=3, actions=3, horizon=8)``."""

    def make(seed, states=5, agents=3, actions=3, horizon=8):
        rng = np.random.default_rng(seed)
        joint = actions**agents
        return RandomGame(
            transition=rng.dirichlet(np.ones(states), (states, joint)).astype(np.float32),
            payoff=rng.normal(size=(states, joint)).astype(np.float32),
            ending=(rng.random((states, joint)) < 0.1).astype(np.float32),
            agents=agents,
            actions=actions,
            horizon=horizon,
        )

    return make


@pytest.fixture(scope="session")
def stack():
    """Stack environments leaf by leaf, as a sweep does."""
    return lambda *envs: jax.tree.map(lambda *leaves: np.stack(leaves), *envs)
