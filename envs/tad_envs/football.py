"""Football near the goal: a model of our own, with the starts and actions of GRF's academy.

A few players attack, scripted opponents and a keeper defend, and the episode ends with a goal, the
ball out of play or lost, or a retreat behind the half-way line. It asks what Google Research
Football's academy (Kurach et al. 2020) asks, that a team passes where going alone is a strong local
optimum, but it is not that engine: movement, ball, passes and opponents are the rules below. *Scores
here are never results on Google Research Football.* The rules and their constants are ``football-v0``.

One step takes 0.1 s. Metres; ``x`` to the opponents' goal, ``y`` down, the pitch is ±55 by ±36. Speeds,
ball friction and the speed of passes follow what is published of the engine; the height of the ball
is left out. In one step:

1. Actions set what stays on: a direction, sprinting, dribbling. Players accelerate towards their
   wanted speed, at most ``acceleration`` along each axis.
2. The opponent nearest to where the ball will be in ``lead`` seconds chases it; each other one covers
   the attacker nearest to him, ``mark`` metres towards the goal.
3. The keeper stands between ball and goal; he rushes an attacker who has the ball within ``rush``
   metres; after a shot he stays for ``react`` seconds and then runs to where it will pass him.
4. Who has the ball may kick it. Passes go to the mate who is best in line with where the player faces,
   at the engine's speed for the distance; shots to the corner that the player faces, or else to that
   away from the keeper. Directions err, more so with an opponent close.
5. Each opponent in reach takes the ball with probability ``tackle``.
6. A free ball rolls and is checked four times for who takes it: certainly if it is slow for him,
   else with a chance for each. The keeper has one try at a shot.

The constants were chosen (``experiments/football_calibration.py``) such that a keeper who comes out
mostly stops whoever comes alone, and leaves the goal to whom the ball is passed. In
``3_vs_1_with_keeper`` random play scores in less than 1 % of episodes, a script without passes in 8 %,
with passes in 79 %. What learners reach with a large budget has not been measured.

``P`` players, ``n`` of them own, ``m`` opponents with the keeper as the last and ``D`` without him,
besides the letters of :mod:`tad_envs.types`.
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tad_envs import finite
from tad_envs.football_pitch import (
    ACTIONS,
    DRIBBLE,
    GOAL,
    HIGH_PASS,
    LENGTH,
    LONG_PASS,
    MOUTH,
    RELEASE_DRIBBLE,
    SCALE,
    SHORT_PASS,
    SHOT,
    SLIDING,
    WAYS,
    WIDTH,
    Play,
    earlier,
    is_one,
    length,
    others,
    outside,
    receiver,
    soft,
    square,
    sticky,
    towards,
    turned,
    unit,
)
from tad_envs.football_scenarios import SCENARIOS, Name, Scenario
from tad_envs.football_scripts import scripted
from tad_envs.scene import Point, Scene
from tad_envs.struct import Real, leaf_fields, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

Reward = Literal["sparse", "checkpoints", "cds"]
View = Literal["all", "cone"]
Rules = Literal["football-v0"]
"""The version of the rules and of what their constants are by default; a static field of every game."""

_UNITS = np.array([54.4, 83.6], np.float32)
"""Metres per unit of the scenarios' places."""
_DT, _PARTS = 0.1, 4
_BEYOND = 1.0
"""Metres that players may leave the pitch by."""
_FOOT = 0.5
"""Metres between a player and the ball that he has."""
_LONGEST = 10.0
"""Seconds at which the clock of a kick stops."""
_CHECKPOINTS = 10


@struct
class Football:
    """A few attackers against scripted opponents (module docstring).

    Actions are those of :data:`ACTIONS`; all are always legal, and those that make no sense do nothing
    (neither does sliding: opponents with the ball end the episode). With ``mask``, passing, shooting
    and dribbling are legal for who has the ball only, and sliding never.

    The episode is terminated when the ball is beyond a line (a goal, or out), an opponent has it (but
    for ``corner``, where he clears it), or the ball or a player of ours is behind the half-way line;
    the clock truncates. ``reward``: ``sparse`` is 1 for a goal; ``checkpoints`` adds 0.1 for each of
    ten distances to the goal that the ball is first carried into, and the rest of them for a goal, as
    GRF's wrapper does; ``cds`` is 100 for a goal and -1 for any other end, the clock's too.

    A player sees the own place; mates, opponents and the ball relative to it, and their velocities;
    who has the ball (nobody, us, them), whether oneself, and what is on. 39 features in
    ``3_vs_1_with_keeper``. With ``view="cone"`` only what is within ``sight`` metres and an angle of
    ``cone`` degrees around where one faces is seen, the rest is zero, and a feature for each tells
    which. Relative places r are shown as r / (|r| + 10). The state is all of the game.
    ``info``: ``won``, ``out``, ``turnover``, ``back``.
    """

    tackle: Real = 0.15
    """Chance per step that an opponent in reach takes the ball."""
    tackle_reach: Real = 1.2
    keeper_tackle: Real = 3.0
    """How much likelier it is for the keeper."""
    keeper_tackle_reach: Real = 1.6
    guard: Real = 0.7
    """What dribbling multiplies these chances by."""
    pass_sigma: Real = 0.03
    """Deviation of a pass's direction, in radians; twice that of a high pass."""
    shot_sigma: Real = 0.07
    shot_speed: Real = 28.0
    run_speed: Real = 5.0
    """Metres per second, as all speeds."""
    sprint_speed: Real = 8.0
    dribble_speed: Real = 3.5
    carrying: Real = 0.85
    """Share of the speed that is left with the ball."""
    acceleration: Real = 12.0
    """Metres per second squared, along each axis."""
    defender_speed: Real = 5.5
    keeper_speed: Real = 5.5
    lead: Real = 0.3
    mark: Real = 2.5
    rush: Real = 20.0
    react: Real = 0.25
    save_reach: Real = 1.75
    """Metres within which the keeper has his try at a shot, and succeeds with chance ``save`` less
    ``save_slope`` times the ball's speed, at least 0.3 and at most 0.95."""
    save: Real = 1.25
    save_slope: Real = 0.02
    control: Real = 1.0
    """Metres within which a free ball is taken."""
    trap_speed: Real = 6.0
    """Relative speed up to which a ball is taken for certain."""
    trap: Real = 0.275
    """Chance of taking a faster ball, each quarter of a step; of an opponent, ``trap_opponent``."""
    trap_opponent: Real = 0.125
    lock: Real = 0.4
    """Seconds for which who kicked cannot take the ball again."""
    drag: Real = 0.055
    """A rolling ball loses drag v² + friction metres per second squared."""
    friction: Real = 1.6
    sight: Real = 25.0
    cone: Real = 200.0
    scenario: Name = "3_vs_1_with_keeper"
    reward: Reward = "sparse"
    view: View = "all"
    mask: bool = False
    rules: Rules = "football-v0"
    horizon: int = 150
    name: str = ""

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")
        for name in leaf_fields(type(self)):
            value = getattr(self, name)
            if finite.scalar_check(value):
                require(float(value) >= 0, f"{name}={float(value):g} must not be negative.")
        for name in ("tackle", "trap", "trap_opponent", "carrying"):
            value = getattr(self, name)
            if finite.scalar_check(value):
                require(float(value) <= 1, f"{name}={float(value):g} must lie in [0, 1].")

    @property
    def start(self) -> Scenario:
        """Where everybody starts."""
        return SCENARIOS[self.scenario]

    @property
    def sizes(self) -> tuple[int, int]:
        """Own players, and opponents with their keeper."""
        return len(self.start.own), len(self.start.opponents) + 1

    @property
    def spec(self) -> Spec:
        """Sizes."""
        n, m = self.sizes
        seen = (n + m) * (self.view == "cone")
        return Spec(
            n_agents=n,
            obs_dim=4 * (n + m) + len(WAYS) + 10 + seen,
            state_dim=6 * (n + m) + (len(WAYS) + 4) * n + 11,
            horizon=self.horizon,
            n_actions=ACTIONS,
        )

    def reset(self, key: Key) -> tuple[Play, Observation]:
        """The scenario's start, which is always the same, with nobody at the ball. Draws nothing."""
        del key
        n, m = self.sizes
        places = np.array([*self.start.own, *self.start.opponents, (1.0, 0.0)], np.float32)
        ahead = np.array([1.0, 0.0], np.float32)
        state = Play(
            position=jnp.asarray(places * _UNITS),
            velocity=jnp.zeros((n + m, 2)),
            facing=jnp.asarray(np.tile(ahead, (n, 1))),
            direction=jnp.zeros(n, jnp.int32),
            sprint=jnp.zeros(n, bool),
            dribble=jnp.zeros(n, bool),
            ball=jnp.asarray(np.array(self.start.ball, np.float32) * _UNITS),
            ball_velocity=jnp.zeros(2),
            owner=jnp.full((), -1, jnp.int32),
            kicker=jnp.full((), -1, jnp.int32),
            since=jnp.full((), _LONGEST, jnp.float32),
            air=jnp.zeros(()),
            shot=jnp.zeros((), bool),
            tried=jnp.zeros((), bool),
            reached=jnp.zeros((), jnp.int32),
            clock=jnp.zeros((), jnp.int32),
        )
        return state, self.observe(state)

    # ----------------------------------------------------------------------------------------------
    # One step

    def step(self, key: Key, state: Play, action: Action) -> tuple[Play, TimeStep]:
        """Run, kick, tackle, roll; one draw of uniform numbers.

        They are: two for a kick's error, one for each opponent's tackle, one for the keeper's try,
        and for each quarter of the step one for each player.
        """
        n, m = self.sizes
        noise = jax.random.uniform(key, (3 + m + _PARTS * (n + m),))
        state = sticky(state, action)
        before = state.position
        state = self._run(state)
        state = self._kick(state, action, noise[:2])
        state = self._tackled(state, noise[2 : 2 + m])
        state = self._roll(state, before, noise[2 + m], noise[3 + m :].reshape(_PARTS, n + m))
        state = state._replace(clock=jnp.minimum(state.clock + 1, self.horizon))
        ends = self.ends(state)
        terminated = ends["won"] | ends["out"] | ends["turnover"] | ends["back"]
        truncated = (state.clock >= self.horizon) & ~terminated
        state, reward = self._rewarded(state, ends["won"], terminated | truncated)
        info = {name: value.astype(jnp.float32) for name, value in ends.items()}
        return state, TimeStep(self.observe(state), reward, terminated, truncated, info)

    def ends(self, state: Play) -> dict[str, Bool[Array, ""]]:
        """Why the episode is over; at most one of them, the first that holds."""
        n, _ = self.sizes
        x, y = state.ball[0], state.ball[1]
        won = (x > LENGTH) & (jnp.abs(y) < GOAL)
        out = outside(state.ball) & ~won
        turnover = (state.owner >= n) & self.start.turnover & ~won & ~out
        line = self.start.line * _UNITS[0]
        counted = np.array([place[0] > self.start.line for place in self.start.own])
        behind = jnp.any((state.position[:n, 0] < line) & counted) | (x < line)
        return {"won": won, "out": out, "turnover": turnover, "back": behind & ~won & ~out & ~turnover}

    def _rewarded(
        self, state: Play, won: Bool[Array, ""], over: Bool[Array, ""]
    ) -> tuple[Play, Float[Array, ""]]:
        goal = won.astype(jnp.float32)
        if self.reward == "cds":
            return state, 100.0 * goal - (over & ~won).astype(jnp.float32)
        if self.reward == "sparse":
            return state, goal
        n, _ = self.sizes
        away = length((state.ball - MOUTH) / _UNITS)
        marks = 0.99 - 0.8 / (_CHECKPOINTS - 1) * np.arange(_CHECKPOINTS, dtype=np.float32)
        ours = (state.owner >= 0) & (state.owner < n)
        passed = jnp.where(ours, jnp.sum(away <= marks), 0)
        reached = jnp.where(won, _CHECKPOINTS, jnp.maximum(state.reached, passed)).astype(jnp.int32)
        gained = (reached - state.reached).astype(jnp.float32)
        return state._replace(reached=reached), goal + gained / _CHECKPOINTS

    def _run(self, state: Play) -> Play:
        """Where players are a step later."""
        n, _ = self.sizes
        mine = is_one(state.owner, n)
        speed = jnp.where(state.sprint, jnp.asarray(self.sprint_speed), self.run_speed)
        speed = jnp.where(mine, speed * self.carrying, speed)
        speed = jnp.where(mine & state.dribble, self.dribble_speed, speed)
        way = jnp.asarray(WAYS)[state.direction]
        wanted = [way * speed[:, None]]
        wanted.append(towards(state.position[n:-1], self._posts(state), self.defender_speed))
        wanted.append(self._keeping(state)[None])
        step = jnp.asarray(self.acceleration) * _DT
        velocity = state.velocity + jnp.clip(jnp.concatenate(wanted) - state.velocity, -step, step)
        position = jnp.clip(state.position + _DT * velocity, -SCALE - _BEYOND, SCALE + _BEYOND)
        facing = jnp.where((state.direction > 0)[:, None], way, state.facing)
        return state._replace(position=position, velocity=velocity, facing=facing)

    def _posts(self, state: Play) -> Float[Array, "D 2"]:
        """Where the field opponents want to be."""
        n, m = self.sizes
        own, theirs = state.position[:n], state.position[n:-1]
        target = state.ball + jnp.asarray(self.lead) * state.ball_velocity
        chases = is_one(jnp.argmin(square(theirs - target)), m - 1)
        nearest = jnp.argmin(square(theirs[:, None] - own), axis=1)
        attacker = own[nearest]
        post = attacker + jnp.asarray(self.mark) * unit(MOUTH - attacker)
        return jnp.where(chases[:, None], target, post)

    def _keeping(self, state: Play) -> Float[Array, "2"]:
        """The velocity that the keeper wants."""
        n, _ = self.sizes
        place, ball, moving = state.position[-1], state.ball, state.ball_velocity
        ours = (state.owner >= 0) & (state.owner < n)
        away = length(ball - MOUTH)
        line = MOUTH + unit(ball - MOUTH) * jnp.clip(0.15 * away, 0.7, 3.5)
        aim = jnp.where(ours & (length(ball - place) < self.rush), ball, line)
        crossing = ball[1] + moving[1] / jnp.maximum(moving[0], 1.0) * (place[0] - ball[0])
        crossing = jnp.clip(crossing, -GOAL - 1, GOAL + 1)
        aim = jnp.where(state.shot, jnp.stack([place[0], crossing]), aim)
        wanted = towards(place, aim, self.keeper_speed)
        return jnp.where(state.shot & (state.since < self.react), 0.0, wanted)

    def _kick(self, state: Play, action: Action, noise: Float[Array, "2"]) -> Play:
        """What who has the ball does with it."""
        n, _ = self.sizes
        mine = is_one(state.owner, n)
        chosen = jnp.sum(jnp.where(mine, action, 0))
        own = jnp.any(mine)
        facing = jnp.sum(jnp.where(mine[:, None], state.facing, 0.0), axis=0)
        near = jnp.sqrt(jnp.min(square(state.position[n:] - state.ball)))
        pressure = jnp.clip((3.0 - near) / 2, 0.0, 1.0)
        error = jnp.sqrt(-2 * jnp.log1p(-noise[0])) * jnp.cos(2 * np.pi * noise[1])
        passing = own & (chosen >= LONG_PASS) & (chosen <= SHORT_PASS) & (n > 1)
        shooting = own & (chosen == SHOT)
        high = passing & (chosen == HIGH_PASS)

        pick = receiver(state, mine, facing, chosen == SHORT_PASS)
        mate, running = (
            jnp.sum(jnp.where(pick[:, None], rows[:n], 0.0), axis=0)
            for rows in (state.position, state.velocity)
        )
        far = length(mate - state.ball)
        fast = jnp.minimum(36 * (1.8 * (far / 60) ** 1.4 + 0.3), 30.0)
        flight = far / fast
        faced = jnp.where(jnp.abs(facing[1]) > 0.3, facing[1], -state.position[-1, 1])
        corner = jnp.stack([jnp.full((), LENGTH), jnp.where(faced >= 0, 1.0, -1.0) * (GOAL - 0.7)])
        aim = jnp.where(shooting, corner, mate + running * flight)
        speed = jnp.where(shooting, jnp.asarray(self.shot_speed) - 3 * pressure, fast)
        sprinting = jnp.any(mine & state.sprint)
        pass_error = jnp.asarray(self.pass_sigma) * jnp.where(high, 2.0, 1.0)
        shot_error = jnp.asarray(self.shot_sigma) * (1 + 0.5 * pressure + 0.3 * sprinting)
        error *= jnp.where(shooting, shot_error, pass_error * (1 + 0.5 * pressure))
        velocity = speed * turned(unit(aim - state.ball), error)
        kicked = passing | shooting
        if not self.start.turnover:  # an opponent clears the ball, anywhere up the pitch
            clears = state.owner >= n
            angle = 1.6 * noise[0] - 0.8
            velocity = jnp.where(clears, 20 * jnp.stack([-jnp.cos(angle), jnp.sin(angle)]), velocity)
            kicked |= clears
        return state._replace(
            ball_velocity=jnp.where(kicked, velocity, state.ball_velocity),
            owner=jnp.where(kicked, -1, state.owner),
            kicker=jnp.where(kicked, state.owner, state.kicker),
            since=jnp.where(kicked, 0.0, state.since),
            air=jnp.where(kicked, jnp.where(high, 0.5 * flight, 0.0), state.air),
            shot=jnp.where(kicked, shooting, state.shot),
            tried=state.tried & ~kicked,
        )

    def _tackled(self, state: Play, noise: Float[Array, "m"]) -> Play:
        """The nearest of the opponents who succeed has the ball."""
        n, m = self.sizes
        keeper = np.arange(m) == m - 1
        apart = square(state.position[n:] - state.ball)
        reach = jnp.where(keeper, jnp.asarray(self.keeper_tackle_reach), self.tackle_reach)
        chance = jnp.asarray(self.tackle) * jnp.where(keeper, self.keeper_tackle, 1.0)
        guarded = jnp.any(is_one(state.owner, n) & state.dribble)
        chance *= jnp.where(guarded, jnp.asarray(self.guard), 1.0)
        ours = (state.owner >= 0) & (state.owner < n)
        taken = (apart < reach**2) & (noise < chance) & ours
        winner = n + jnp.argmin(jnp.where(taken, apart, jnp.inf)).astype(jnp.int32)
        return state._replace(owner=jnp.where(jnp.any(taken), winner, state.owner))

    def _roll(
        self,
        state: Play,
        before: Float[Array, "P 2"],
        luck: Float[Array, ""],
        noise: Float[Array, "4 P"],
    ) -> Play:
        """The ball goes with who has it; a free one rolls until somebody takes it or it is out."""
        n, m = self.sizes
        players, index = n + m, np.arange(n + m)
        quarter = _DT / _PARTS
        speeds = [length(state.ball_velocity)]
        for _ in range(_PARTS):
            loss = quarter * (jnp.asarray(self.drag) * speeds[-1] ** 2 + self.friction)
            speeds.append(jnp.maximum(speeds[-1] - loss, 0.0))
        speed = jnp.stack(speeds[1:])
        heading = unit(state.ball_velocity)
        free = (state.owner < 0) & ~outside(state.ball)
        path = state.ball + heading * (quarter * jnp.cumsum(speed))[:, None]  # [4, 2]
        share = np.arange(1, _PARTS + 1, dtype=np.float32)[:, None, None] / _PARTS
        places = before + share * (state.position - before)
        apart = square(places - path[:, None])  # [4, P]
        gone = outside(path)

        slow = (
            square(speed[:, None, None] * heading - state.velocity) < jnp.asarray(self.trap_speed) ** 2
        )
        chance = jnp.where(index < n, jnp.asarray(self.trap) * ~state.shot, self.trap_opponent)
        able = (index != state.kicker) | (state.since >= self.lock)
        able &= (index < players - 1) | ~state.shot
        aloft = state.air > quarter * np.arange(1, _PARTS + 1)
        takes = (apart < jnp.asarray(self.control) ** 2) & (slow | (noise < chance)) & able
        takes &= ~aloft[:, None]

        # The keeper's one try, in the first quarter in which the shot comes near.
        near = apart[:, -1] < jnp.asarray(self.save_reach) ** 2
        tries = near & ~earlier(near) & state.shot & ~state.tried
        chance = jnp.clip(jnp.asarray(self.save) - jnp.asarray(self.save_slope) * speed, 0.3, 0.95)
        saves = (tries & (luck < chance))[:, None] & (index == players - 1)
        takes = (takes | saves) & ~gone[:, None] & free

        # The first quarter in which anybody takes it; of several the nearest.
        order = jnp.where(takes, apart + 1e4 * np.arange(_PARTS)[:, None], jnp.inf)
        winner = (jnp.argmin(order) % players).astype(jnp.int32)
        taken = jnp.any(takes)
        owner = jnp.where(taken, winner, state.owner)

        held = is_one(owner, players)[:, None]
        at = jnp.sum(jnp.where(held, state.position + self._foot(state), 0.0), axis=0)
        moving = jnp.sum(jnp.where(held, state.velocity, 0.0), axis=0)
        last = jnp.where(jnp.any(gone), jnp.argmax(gone), _PARTS - 1)
        rolled = jnp.sum(jnp.where(is_one(last, _PARTS)[:, None], path, 0.0), axis=0)
        slope = heading[1] / jnp.maximum(heading[0], 1e-6)
        crossed = state.ball[1] + slope * (LENGTH - state.ball[0])  # where it passes the goal line
        rolled = jnp.where(rolled[0] > LENGTH, jnp.stack([rolled[0], crossed]), rolled)
        rolled = jnp.where(free, rolled, state.ball)
        has = owner >= 0
        shot = state.shot & ~has
        return state._replace(
            ball=jnp.where(has, at, rolled),
            ball_velocity=jnp.where(has, moving, jnp.where(free, speed[-1] * heading, 0.0)),
            owner=owner,
            since=jnp.minimum(state.since + _DT, _LONGEST),
            air=jnp.maximum(state.air - _DT, 0.0) * ~has,
            shot=shot,
            tried=(state.tried | jnp.any(tries & ~gone & free)) & shot,
        )

    def _foot(self, state: Play) -> Float[Array, "P 2"]:
        """Where a player's ball is, from himself."""
        _, m = self.sizes
        return jnp.concatenate([_FOOT * state.facing, jnp.zeros((m, 2))])

    # ----------------------------------------------------------------------------------------------
    # What is seen

    def observe(self, state: Play) -> Observation:
        """What every player sees, and all of the game."""
        n, m = self.sizes
        own, moving = state.position[:n], state.velocity / 10
        relative = state.position - own[:, None]  # [n, P, 2]
        to_ball = state.ball - own
        things = jnp.concatenate([others(relative, n), relative[:, n:], to_ball[:, None]], axis=1)
        pace = jnp.broadcast_to(moving, (n, n + m, 2))
        mine = is_one(state.owner, n)
        whose = jnp.stack([state.owner < 0, (state.owner >= 0) & (state.owner < n), state.owner >= n])
        rows = [
            soft(things),
            jnp.concatenate(
                [
                    others(pace, n),
                    pace[:, n:],
                    jnp.broadcast_to(state.ball_velocity / 30, (n, 1, 2)),
                ],
                axis=1,
            ),
        ]
        whose = jnp.broadcast_to(whose.astype(jnp.float32), (n, 3))
        seen = None
        if self.view == "cone":
            seen = self._visible(state, things).astype(jnp.float32)
            rows = [row * seen[..., None] for row in rows]
            whose = whose * seen[:, -1:]
        agents = [
            own / SCALE,
            moving[:n],
            *(row.reshape(n, -1) for row in rows),
            whose,
            mine[:, None],
            self._on(state),
        ]
        if seen is not None:
            agents.append(seen)
        return Observation(
            agents=jnp.concatenate(agents, axis=1, dtype=jnp.float32),
            state=self._everything(state),
            legal=self._legal(state, mine),
            alive=jnp.ones(n, bool),
        )

    def _on(self, state: Play) -> Float[Array, "n 11"]:
        """What every player has on."""
        on = [finite.one_hot(state.direction, len(WAYS)), state.sprint[:, None], state.dribble[:, None]]
        return jnp.concatenate(on, axis=1, dtype=jnp.float32)

    def _visible(self, state: Play, things: Float[Array, "n K 2"]) -> Bool[Array, "n K"]:
        apart = length(things)
        ahead = jnp.sum(things * state.facing[:, None], axis=2)
        inside = ahead >= apart * jnp.cos(jnp.deg2rad(jnp.asarray(self.cone) / 2))
        return (apart < self.sight) & inside

    def _legal(self, state: Play, mine: Bool[Array, "n"]) -> Bool[Array, "n 19"]:
        n, _ = self.sizes
        if not self.mask:
            return jnp.ones((n, ACTIONS), bool)
        owners = np.isin(
            np.arange(ACTIONS), [LONG_PASS, HIGH_PASS, SHORT_PASS, SHOT, DRIBBLE, RELEASE_DRIBBLE]
        )
        return (mine[:, None] | ~owners) & (np.arange(ACTIONS) != SLIDING)

    def _everything(self, state: Play) -> Float[Array, "S"]:
        """The game, and the time up to the last step that is acted in.

        A truncated episode bootstraps from the value of its last state, which no step begins in: the
        clock shown there must be one that a critic was taught.
        """
        n, m = self.sizes
        locked = jnp.where(state.since < self.lock, state.kicker, -1)
        parts = (
            state.position / SCALE,
            state.velocity / 10,
            state.facing,
            self._on(state),
            state.ball / SCALE,
            state.ball_velocity / 30,
            is_one(state.owner, n + m),
            is_one(locked, n + m),
            state.owner < 0,
            jnp.minimum(state.since, 1.0),
            state.air,
            state.shot,
            state.tried,
            state.reached / _CHECKPOINTS,
            jnp.minimum(state.clock, self.horizon - 1) / self.horizon,
        )
        return jnp.concatenate([jnp.asarray(part, jnp.float32).reshape(-1) for part in parts])

    # ----------------------------------------------------------------------------------------------
    # Scripts and pictures

    def heuristic(self, key: Key, state: Play) -> Action:
        """Carry the ball, pass when an opponent is close and a mate stands well, shoot when near."""
        del key
        return scripted(self.sizes[0], state, passes=True)

    def solo(self, key: Key, state: Play) -> Action:
        """The same without passes."""
        del key
        return scripted(self.sizes[0], state, passes=False)

    def scene(self, state: Play) -> Scene:
        """The part of the pitch that is played in: agents by number, the keeper a K, the ball black."""
        n, m = self.sizes
        labels = [*map(str, range(n)), *[""] * (m - 1), "K"]
        kinds = ["agent"] * n + ["enemy"] * m
        points = [
            Point(kind, float(x), -float(y), label, radius=1.1)
            for kind, label, (x, y) in zip(kinds, labels, np.asarray(state.position), strict=True)
        ]
        ball = np.asarray(state.ball)
        points.append(Point("ball", float(ball[0]), -float(ball[1]), radius=0.5))
        left = -LENGTH if self.scenario == "corner" else -4.0
        box = (left, -WIDTH, LENGTH, WIDTH)
        lines = (
            *((x, box[1], x, box[3]) for x in {left, 0.0, LENGTH}),
            *((box[0], y, box[2], y) for y in (box[1], box[3])),
            *((LENGTH, y, LENGTH + 2, y) for y in (-GOAL, GOAL)),
            (LENGTH + 2, -GOAL, LENGTH + 2, GOAL),
        )
        high = (LENGTH + 3, WIDTH + 1)
        title = f"step {int(state.clock)}"
        return Scene((left - 1, -WIDTH - 1), high, tuple(points), lines=lines, title=title)


# --------------------------------------------------------------------------------------------------
# By name


def scenario(key: Name) -> Callable[..., Football]:
    """What makes the game of one scenario; its arguments are all other fields of :class:`Football`."""
    leaves, given = leaf_fields(Football), inspect.signature(Football).parameters
    hints: dict[str, Any] = dict.fromkeys(leaves, Real)
    hints |= {"reward": Reward, "view": View, "mask": bool, "rules": Rules, "horizon": int}

    def game(**fields: Any) -> Football:
        values = {name: fields.get(name, given[name].default) for name in hints}
        numbers = {name: finite.number(values[name], name) for name in leaves}
        return Football(scenario=key, **{**values, **numbers})

    game.__doc__ = f"Football, a model of our own: {key}."
    game.__annotations__ = hints
    game.__signature__ = inspect.Signature([given[name] for name in hints])  # type: ignore[attr-defined]
    return game
