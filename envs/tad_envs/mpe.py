"""Multi-particle environments: bodies that push themselves about a plane, and some that talk.

Three cooperative games after Lowe et al. 2017 (OpenAI's ``multiagent-particle-envs``), as maintained
in PettingZoo and ported to JAX in JaxMARL: :class:`Spread`, :class:`SpeakerListener`,
:class:`Reference`. Rewards, observations and actions are JaxMARL 0.2.0's; episodes last exactly
``horizon`` steps and are then truncated (JaxMARL's last one step more).

One step of 0.1 s: every moving body of mass 1 chooses one of five thrusts (none, -x, +x, -y, +y), and

    v' = (1 - damping) v + 0.1 (acceleration · thrust + contact forces)
    x' = x + 0.1 v      (``integrator="pettingzoo"``: JaxMARL, PettingZoo from 1.23)
    x' = x + 0.1 v'     (``integrator="openai"``: the original, and EPyMARL's and HARL's results)

With ``actions="continuous"`` a body chooses its thrust freely in [-1, 1]², each axis by itself, and who
talks says a vector of loudness (1 + action) / 2 in [0, 1] per word. These are the thrusts and words of
JaxMARL's and HARL's continuous games, whose five numbers in [0, 1] per body count only by the
differences of opposite pairs. Numbers outside the range are clipped.

``P`` moving bodies, ``L`` landmarks, ``G`` goals, ``C`` channels, ``W`` words, besides the letters of
:mod:`tad_envs.types`. No step draws anything, and a reset draws once.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tad_envs import finite
from tad_envs.scene import Point, Scene
from tad_envs.struct import Real, concrete, lookup, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

Integrator = Literal["pettingzoo", "openai"]
Actions = Literal["discrete", "continuous"]

_DT = 0.1
"""Seconds per step."""
_MARGIN = 1e-3
"""Softness of a contact: the distance over which its force sets in."""
_MOVES = 5
_AXES = 2
_COLOURS = 3
"""Landmarks of the games with goals; each has a colour of its own."""
_WORDS = 10
"""Vocabulary of :class:`Reference`."""


class World(NamedTuple):
    """State of every game here; parts that a game lacks have length 0."""

    position: Float[Array, "P 2"]
    velocity: Float[Array, "P 2"]
    landmark: Float[Array, "L 2"]
    goal: Float[Array, "G L"]
    """One-hot: the landmark that is the goal."""
    word: Float[Array, "C W"]
    """What was said in the last step, one-hot or loudness; zeros before the first."""
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


# --------------------------------------------------------------------------------------------------
# What the games share


def _begin(key: Key, bodies: int, landmarks: int, goals: int = 0, words: int = 0) -> World:
    """Everything uniform in [-1, 1]², at rest, with uniform goals; one draw. One channel per goal."""
    places = 2 * (bodies + landmarks)
    uniform = jax.random.uniform(key, (places + goals,))
    place = (2 * uniform[:places] - 1).reshape(-1, 2)
    # The product may round up to the number of landmarks itself.
    goal = jnp.minimum((uniform[places:] * landmarks).astype(jnp.int32), landmarks - 1)
    return World(
        position=place[:bodies],
        velocity=jnp.zeros((bodies, 2)),
        landmark=place[bodies:],
        goal=finite.one_hot(goal, landmarks),
        word=jnp.zeros((goals, words)),
        clock=jnp.zeros((), jnp.int32),
    )


def _thrust(move: Int[Array, "P"]) -> Float[Array, "P 2"]:
    """Unit thrusts of the moves none, -x, +x, -y, +y; none for any other number."""
    chosen = finite.one_hot(move, _MOVES)
    return jnp.stack([chosen[:, 2] - chosen[:, 1], chosen[:, 4] - chosen[:, 3]], axis=1)


def _sizes(actions: Actions, count: int, dimensions: int) -> dict[str, Any]:
    """What a spec says of the actions."""
    if actions == "discrete":
        return {"n_actions": count}
    return {"action_dim": dimensions, "discrete": False, "bounds": (-1.0, 1.0)}


def _loudness(action: Float[Array, "C W"]) -> Float[Array, "C W"]:
    return (1 + jnp.clip(action, -1.0, 1.0)) / 2


def _contacts(position: Float[Array, "P 2"], radius: Real, stiffness: Real) -> Float[Array, "P 2"]:
    """Forces that push bodies apart whose centres are nearer than two radii.

    Bodies at the very same place do not push each other: they have no direction to do it in.
    """
    away = position[:, None] - position
    distance = _length(away)
    overlap = _MARGIN * jnp.logaddexp(0.0, (2 * radius - distance) / _MARGIN)
    size = stiffness * overlap / jnp.maximum(distance, 1e-12)
    return jnp.sum(size[..., None] * away, axis=1)


def _moved(
    world: World, force: Float[Array, "P 2"], damping: Real, integrator: Integrator, horizon: int
) -> World:
    """A step later, nothing said."""
    velocity = world.velocity * (1 - damping) + force * _DT
    carrying = world.velocity if integrator == "pettingzoo" else velocity
    return world._replace(
        position=world.position + carrying * _DT,
        velocity=velocity,
        clock=jnp.minimum(world.clock + 1, horizon),
    )


def _time_step(observation: Observation, reward: Array, world: World, horizon: int) -> TimeStep:
    never = jnp.zeros((), bool)
    over = world.clock >= horizon
    return TimeStep(observation, reward.astype(jnp.float32), never, over, info={})


def _length(vector: Float[Array, "*batch 2"]) -> Float[Array, "*batch"]:
    return jnp.sqrt(jnp.sum(vector**2, axis=-1))


def _relative_landmarks(world: World) -> Float[Array, "P L 2"]:
    return world.landmark - world.position[:, None]


def _others(pairs: Float[Array, "N N ..."]) -> Float[Array, "N M ..."]:
    """Row i without its entry i: the ``M = N - 1`` others in their order.

    Without the very first entry, the flattened matrix has a diagonal entry after every ``N`` others.
    """
    n, rest = pairs.shape[0], pairs.shape[2:]
    return pairs.reshape(n * n, *rest)[1:].reshape(n - 1, n + 1, *rest)[:, :n].reshape(n, n - 1, *rest)


def _global_state(world: World) -> Float[Array, "S"]:
    """All of the world but the clock.

    A truncated episode bootstraps from the value of its last state. No step begins there, so a critic
    that saw the clock would be asked for a value that it was never taught.
    """
    parts = (world.position, world.velocity, world.landmark, world.goal, world.word)
    return jnp.concatenate([part.reshape(-1) for part in parts])


def _scene(world: World, radius: Real, names: tuple[str, ...], told: str = "") -> Scene:
    """Bodies, and landmarks by their numbers."""
    places, landmarks = np.asarray(world.position), np.asarray(world.landmark)
    size = max(1.2, float(np.abs(np.concatenate([places, landmarks])).max()) + float(radius))
    points = [
        Point("landmark", float(place[0]), float(place[1]), str(i), radius=0.08)
        for i, place in enumerate(landmarks)
    ]
    points += [
        Point("agent", float(place[0]), float(place[1]), name, radius=float(radius))
        for name, place in zip(names, places, strict=True)
    ]
    title = f"step {int(world.clock)} {told}".strip()
    return Scene((-size, -size), (size, size), tuple(points), title=title)


def _told(world: World) -> str:
    """Which landmarks are goals, and what was said last."""
    goals = ", ".join(str(int(np.argmax(row))) for row in np.asarray(world.goal))
    word = np.asarray(world.word)
    said = ", ".join(str(int(np.argmax(row))) if row.any() else "-" for row in word)
    return f"goal {goals} said {said}"


def _scaled(
    returns: Real, library: str, scales: Mapping[str, tuple[float, float]]
) -> float | np.ndarray:
    factor, shift = lookup(dict(scales), library, "scale")
    return factor * np.asarray(returns, np.float64) + shift


# --------------------------------------------------------------------------------------------------
# The games


@struct
class Spread:
    """``N`` agents cover ``N`` landmarks and keep apart: ``simple_spread``.

    Every agent receives ``(1 - local_ratio) G - local_ratio c_i`` with ``G`` minus the sum over
    landmarks of the distance to the nearest agent, and ``c_i`` the number of agents that touch agent
    i; the team's reward is the sum. An agent sees its velocity and position, where the landmarks and
    the other agents are from its own place, and ``2 (N - 1)`` zeros, for nobody can speak: 18 features
    for 3 agents. The state is all positions, velocities and landmarks.
    """

    damping: Real = 0.25
    """Share of the velocity that is lost in a step."""
    acceleration: Real = 5.0
    """Of a thrust, per second squared."""
    contact_force: Real = 100.0
    """Force per unit of overlap."""
    radius: Real = 0.15
    """Of an agent: two touch when their centres are nearer than two radii."""
    local_ratio: Real = 0.5
    """Weight of an agent's own collisions against the common part of its reward, in [0, 1]."""
    n_agents: int = 3
    horizon: int = 25
    integrator: Integrator = "pettingzoo"
    actions: Actions = "discrete"
    name: str = ""

    def __post_init__(self) -> None:
        require(self.n_agents >= 2, f"n_agents={self.n_agents} must be at least 2.")
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")
        if finite.scalar_check(self.local_ratio):
            ratio = float(self.local_ratio)
            require(0 <= ratio <= 1, f"local_ratio={ratio:g} must lie in [0, 1].")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        n = self.n_agents
        return Spec(
            n_agents=n,
            obs_dim=4 + 2 * n + 4 * (n - 1),
            state_dim=6 * n,
            horizon=self.horizon,
            terminates=False,
            reset_pool=self.horizon,  # every episode lasts so long: no start is ever used twice
            **_sizes(self.actions, _MOVES, _AXES),
        )

    def reset(self, key: Key) -> tuple[World, Observation]:
        """Draw all places."""
        world = _begin(key, self.n_agents, self.n_agents)
        return world, self.observe(world)

    def observe(self, state: World) -> Observation:
        """Own motion, and the places of all else from one's own."""
        n = self.n_agents
        others = _others(state.position - state.position[:, None])
        rows = [
            state.velocity,
            state.position,
            _relative_landmarks(state).reshape(n, -1),
            others.reshape(n, -1),
            jnp.zeros((n, 2 * (n - 1))),
        ]
        return Observation(
            agents=jnp.concatenate(rows, axis=1),
            state=_global_state(state),
            legal=jnp.ones((n, self.spec.n_actions or _AXES), bool),
            alive=jnp.ones(n, bool),
        )

    def common_knowledge(self, row: Float[Array, "O"], agent: Int[Array, ""]) -> Float[Array, "C"]:
        """Where all agents and landmarks are, which each can tell from its own place; no velocities."""
        n = self.n_agents
        own, landmarks = row[2:4], row[4 : 4 + 2 * n].reshape(n, 2)
        others = row[4 + 2 * n : 4 + 2 * n + 2 * (n - 1)].reshape(n - 1, 2)
        index = np.arange(n)
        relative = others[jnp.clip(index - (index > agent), 0, n - 2)]
        relative = jnp.where((index == agent)[:, None], 0.0, relative)
        return (own + jnp.concatenate([relative, landmarks])).reshape(-1)

    def step(self, key: Key, state: World, action: Action) -> tuple[World, TimeStep]:
        """Push and move; truncated at the horizon. Draws nothing."""
        del key
        thrust = _thrust(action) if self.actions == "discrete" else jnp.clip(action, -1.0, 1.0)
        force = jnp.asarray(self.acceleration) * thrust
        force += _contacts(state.position, self.radius, self.contact_force)
        world = _moved(state, force, self.damping, self.integrator, self.horizon)
        return world, _time_step(self.observe(world), self._reward(world), world, self.horizon)

    def _reward(self, world: World) -> Float[Array, ""]:
        nearest = jnp.min(_length(_relative_landmarks(world)), axis=0)
        apart = _length(world.position - world.position[:, None])
        touching = (apart < 2 * self.radius) & ~np.eye(self.n_agents, dtype=bool)
        common = -(1 - jnp.asarray(self.local_ratio)) * jnp.sum(nearest)
        return self.n_agents * common - jnp.asarray(self.local_ratio) * jnp.sum(touching)

    def scene(self, state: World) -> Scene:
        """Agents by their numbers, and landmarks."""
        return _scene(state, self.radius, tuple(map(str, range(self.n_agents))))

    def to_scale(self, returns: Real, library: str) -> float | np.ndarray:
        """Team returns of whole episodes in the units that another library reports.

        ``"jaxmarl"`` and ``"pettingzoo"`` (from 1.23): the mean over agents of their own returns.
        ``"harl"`` (PettingZoo up to 1.22, where every agent also collides with itself): the sum.
        ``"epymarl"``: as in the tables of Papoudakis et al. 2021, where an agent's reward is twice
        that of ``"harl"``'s environment. All take ``local_ratio`` to be 0.5.
        """
        require(
            concrete(self.local_ratio) and float(self.local_ratio) == 0.5,
            "other libraries' scales are known for local_ratio=0.5 only.",
        )
        n, ticks = self.n_agents, self.n_agents * self.horizon
        scales = {"jaxmarl": (1 / n, 0.0), "pettingzoo": (1 / n, 0.0)}
        scales |= {"harl": (1.0, -ticks / 2), "epymarl": (2.0, -float(ticks))}
        return _scaled(returns, library, scales)


@struct
class SpeakerListener:
    """A speaker knows the goal, a listener can go there: ``simple_speaker_listener``.

    Agent 0 sees the goal's colour (3 features, padded with zeros to 11) and says one of 3 words;
    agent 1 sees its velocity, where the 3 landmarks are from its own place, and the word said in the
    last step, and chooses one of 5 moves. The speaker's other two actions are illegal (it would say
    nothing); if actions are continuous, the speaker has 3 dimensions and the listener 2. Both receive
    minus the *squared* distance of the listener to the goal; the team's reward is this value, once.
    Bodies do not collide. The state is the listener's position and velocity, the landmarks, the goal
    and the word.
    """

    damping: Real = 0.25
    """Share of the velocity that is lost in a step."""
    acceleration: Real = 5.0
    """Of a thrust, per second squared."""
    horizon: int = 25
    integrator: Integrator = "pettingzoo"
    actions: Actions = "discrete"
    name: str = ""

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(
            n_agents=2,
            obs_dim=2 + 3 * _COLOURS,
            state_dim=4 + 4 * _COLOURS,
            horizon=self.horizon,
            terminates=False,
            reset_pool=self.horizon,  # every episode lasts so long: no start is ever used twice
            order_dependent=True,
            **_sizes(self.actions, _MOVES, _COLOURS),
        )

    def reset(self, key: Key) -> tuple[World, Observation]:
        """Draw the listener's place, the landmarks and the goal."""
        world = _begin(key, 1, _COLOURS, goals=1, words=_COLOURS)
        return world, self.observe(world)

    def observe(self, state: World) -> Observation:
        """The goal's colour for the speaker, all else for the listener."""
        speaker = jnp.concatenate([0.15 + 0.5 * state.goal[0], jnp.zeros(2 + 2 * _COLOURS)])
        landmarks = _relative_landmarks(state).reshape(-1)
        listener = jnp.concatenate([state.velocity[0], landmarks, state.word[0]])
        sizes = (_COLOURS, _MOVES if self.actions == "discrete" else _AXES)
        return Observation(
            agents=jnp.stack([speaker, listener]),
            state=_global_state(state),
            legal=jnp.asarray(np.arange(max(sizes)) < np.array(sizes)[:, None]),
            alive=jnp.ones(2, bool),
        )

    def step(self, key: Key, state: World, action: Action) -> tuple[World, TimeStep]:
        """Say and move; truncated at the horizon. Draws nothing."""
        del key
        if self.actions == "discrete":
            thrust, word = _thrust(action[1:]), finite.one_hot(action[:1], _COLOURS)
        else:
            thrust, word = jnp.clip(action[1:, :_AXES], -1.0, 1.0), _loudness(action[:1])
        force = jnp.asarray(self.acceleration) * thrust
        world = _moved(state, force, self.damping, self.integrator, self.horizon)
        world = world._replace(word=word)
        reward = -jnp.sum((world.position - world.goal @ world.landmark) ** 2)
        return world, _time_step(self.observe(world), reward, world, self.horizon)

    def scene(self, state: World) -> Scene:
        """The listener and the landmarks; the goal and the word in the title."""
        return _scene(state, 0.1, ("L",), _told(state))

    def to_scale(self, returns: Real, library: str) -> float | np.ndarray:
        """Team returns of whole episodes in the units that another library reports.

        ``"jaxmarl"`` and ``"pettingzoo"``: one agent's return. ``"harl"`` and ``"epymarl"``: the sum
        over the two.
        """
        scales = {"jaxmarl": 1.0, "pettingzoo": 1.0, "harl": 2.0, "epymarl": 2.0}
        return _scaled(returns, library, {name: (factor, 0.0) for name, factor in scales.items()})


@struct
class Reference:
    """Two agents that know each other's goal, and tell: ``simple_reference``.

    An action is a move and one of 10 words, ``move + 5 word``; or, if continuous, 2 thrusts and then 10
    words. An agent sees its velocity, where the
    3 landmarks are from its own place, the colour of its *partner's* goal, and what the partner said
    in the last step: 21 features. The team's reward is minus the sum of both agents' distances to
    their goals (the agents' own rewards share it between them). Bodies do not collide. The state is
    positions, velocities, landmarks, goals and words.
    """

    damping: Real = 0.25
    """Share of the velocity that is lost in a step."""
    acceleration: Real = 5.0
    """Of a thrust, per second squared."""
    horizon: int = 25
    integrator: Integrator = "pettingzoo"
    actions: Actions = "discrete"
    name: str = ""

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(
            n_agents=2,
            obs_dim=2 + 3 * _COLOURS + _WORDS,
            state_dim=8 + 4 * _COLOURS + 2 * _WORDS,
            horizon=self.horizon,
            terminates=False,
            reset_pool=self.horizon,  # every episode lasts so long: no start is ever used twice
            **_sizes(self.actions, _MOVES * _WORDS, _AXES + _WORDS),
        )

    def reset(self, key: Key) -> tuple[World, Observation]:
        """Draw all places and both goals, which may be the same landmark."""
        world = _begin(key, 2, _COLOURS, goals=2, words=_WORDS)
        return world, self.observe(world)

    def observe(self, state: World) -> Observation:
        """Own motion, the landmarks, the partner's goal and word."""
        rows = [
            state.velocity,
            _relative_landmarks(state).reshape(2, -1),
            0.25 + 0.5 * state.goal[::-1],
            state.word[::-1],
        ]
        return Observation(
            agents=jnp.concatenate(rows, axis=1),
            state=_global_state(state),
            legal=jnp.ones((2, self.spec.n_actions or self.spec.action_dim), bool),
            alive=jnp.ones(2, bool),
        )

    def step(self, key: Key, state: World, action: Action) -> tuple[World, TimeStep]:
        """Say and move; truncated at the horizon. Draws nothing."""
        del key
        if self.actions == "discrete":
            thrust, word = _thrust(action % _MOVES), finite.one_hot(action // _MOVES, _WORDS)
        else:
            thrust, word = jnp.clip(action[:, :_AXES], -1.0, 1.0), _loudness(action[:, _AXES:])
        force = jnp.asarray(self.acceleration) * thrust
        world = _moved(state, force, self.damping, self.integrator, self.horizon)
        world = world._replace(word=word)
        reward = -jnp.sum(_length(world.position - world.goal @ world.landmark))
        return world, _time_step(self.observe(world), reward, world, self.horizon)

    def scene(self, state: World) -> Scene:
        """Both agents and the landmarks; the goals and the words in the title."""
        return _scene(state, 0.1, ("0", "1"), _told(state))

    def to_scale(self, returns: Real, library: str) -> float | np.ndarray:
        """Team returns of whole episodes in the units that another library reports.

        ``"jaxmarl"`` and ``"pettingzoo"``: the mean over agents of their own returns. ``"harl"``: the
        sum. EPyMARL's environment pays squared distances, which no scale turns into these.
        """
        require(library != "epymarl", "EPyMARL's reference game pays squared distances: no scale fits.")
        scales = {"jaxmarl": (0.5, 0.0), "pettingzoo": (0.5, 0.0), "harl": (1.0, 0.0)}
        return _scaled(returns, library, scales)


# --------------------------------------------------------------------------------------------------
# Construction


def spread(
    *,
    n_agents: int = 3,
    damping: Real = 0.25,
    acceleration: Real = 5.0,
    contact_force: Real = 100.0,
    radius: Real = 0.15,
    local_ratio: Real = 0.5,
    horizon: int = 25,
    integrator: Integrator = "pettingzoo",
    actions: Actions = "discrete",
) -> Spread:
    """Cover as many landmarks as there are agents, without touching."""
    return Spread(
        damping=finite.number(damping, "damping"),
        acceleration=finite.number(acceleration, "acceleration"),
        contact_force=finite.number(contact_force, "contact_force"),
        radius=finite.number(radius, "radius"),
        local_ratio=finite.number(local_ratio, "local_ratio"),
        n_agents=n_agents,
        horizon=horizon,
        integrator=integrator,
        actions=actions,
    )


def speaker_listener(
    *,
    damping: Real = 0.25,
    acceleration: Real = 5.0,
    horizon: int = 25,
    integrator: Integrator = "pettingzoo",
    actions: Actions = "discrete",
) -> SpeakerListener:
    """A speaker that cannot move leads a listener that cannot see the goal."""
    return SpeakerListener(
        damping=finite.number(damping, "damping"),
        acceleration=finite.number(acceleration, "acceleration"),
        horizon=horizon,
        integrator=integrator,
        actions=actions,
    )


def reference(
    *,
    damping: Real = 0.25,
    acceleration: Real = 5.0,
    horizon: int = 25,
    integrator: Integrator = "pettingzoo",
    actions: Actions = "discrete",
) -> Reference:
    """Two agents lead each other."""
    return Reference(
        damping=finite.number(damping, "damping"),
        acceleration=finite.number(acceleration, "acceleration"),
        horizon=horizon,
        integrator=integrator,
        actions=actions,
    )
