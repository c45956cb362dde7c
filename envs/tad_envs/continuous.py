"""Continuous one-step games: every agent chooses a number, and all receive one payoff.

The table ``GAMES`` gives every game with its range, its equilibria and its source. Numbers outside
the range are clipped to it. Since no list of joint actions can be searched, the optimum is known in
closed form, and :func:`tad_envs.solve` tells it.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tad_envs import finite
from tad_envs.struct import struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

AGENTS = 2


class Game(NamedTuple):
    """A payoff over ``[low, high]²`` and what is known of it."""

    payoff: Callable[[Array, Array], Array]
    bounds: tuple[float, float]
    equilibria: tuple[tuple[tuple[float, float], float], ...]
    """Actions and payoff of the optimum and of traps, best first: no agent gains by moving a little."""
    source: str


def product(x: Array, y: Array) -> Array:
    """x y."""
    return x * y


def two_quadratics(x: Array, y: Array) -> Array:
    """The higher of a broad hill at (-5, -5) and a steep one at (5, 5)."""
    broad = -0.8 * (((x + 5) / 3) ** 2 + ((y + 5) / 3) ** 2)
    steep = 10 - (x - 5) ** 2 - (y - 5) ** 2
    return jnp.maximum(broad, steep)


def ridge(x: Array, y: Array) -> Array:
    """A bowl, and a ridge along x = y > 0 that pays x + y and more the nearer one is to its middle."""
    apart = jnp.abs(x - y)
    bonus = jnp.maximum(0.1, 1e-5 / (apart + 1e-5)) + x + y
    on = (x > 0) & (y > 0) & (apart < 0.01)
    return -0.1 * (x**2 + y**2) + jnp.where(on, bonus, 0.0)


GAMES: dict[str, Game] = {
    "product": Game(
        product,
        (-2.0, 2.0),
        (((2.0, 2.0), 4.0), ((-2.0, -2.0), 4.0)),
        "r = x y with a saddle at 0, near which exact simultaneous gradient steps can stay for ever.",
    ),
    "two_quadratics": Game(
        two_quadratics,
        (-10.0, 10.0),
        (((5.0, 5.0), 10.0), ((-5.0, -5.0), 0.0)),
        "Max of two quadratics (Wei et al. 2018): the broad hill of height 0 hides the one of 10.",
    ),
    "facmac": Game(
        ridge,
        (-1.0, 1.0),
        (((1.0, 1.0), 2.8), ((0.0, 0.0), 0.0)),
        "Continuous matrix game of FACMAC's published code (Peng et al. 2021).",
    ),
}


@struct
class OneShot:
    """A game of the table ``GAMES``: two agents, one number each, one step.

    Everybody sees the constant ``[1.]``. The state is the number of steps taken, 0 or 1.
    """

    game: Literal["product", "two_quadratics", "facmac"] = "product"
    name: str = ""

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(
            n_agents=AGENTS,
            obs_dim=1,
            state_dim=1,
            horizon=1,
            action_dim=1,
            discrete=False,
            one_hot=True,
            bounds=GAMES[self.game].bounds,
        )

    def observe(self, state: Int[Array, ""]) -> Observation:
        """Nothing but a 1."""
        del state
        return finite.common_view(jnp.ones(1), jnp.ones((AGENTS, 1), bool))

    def reset(self, key: Key) -> tuple[Int[Array, ""], Observation]:
        """Begin an episode. Draws nothing."""
        del key
        state = jnp.zeros((), jnp.int32)
        return state, self.observe(state)

    def step(self, key: Key, state: Int[Array, ""], action: Action) -> tuple[Array, TimeStep]:
        """Pay and end. Draws nothing."""
        del key
        following = jnp.minimum(state + 1, 1)
        ended, never = jnp.ones((), bool), jnp.zeros((), bool)
        return following, TimeStep(self.observe(following), self.payoff(action), ended, never, info={})

    def payoff(self, action: Float[Array, "N 1"]) -> Float[Array, ""]:
        """Reward of a joint action."""
        game = GAMES[self.game]
        x, y = jnp.clip(action[:, 0], *game.bounds)
        return game.payoff(x, y).astype(jnp.float32)

    def known(self) -> tuple[tuple[tuple[float, float], float], ...]:
        """The optimum in closed form, then traps: actions and payoffs, best first."""
        return GAMES[self.game].equilibria
