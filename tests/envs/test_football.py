"""Football: against a slow loop, ends read off the state, symmetry, and what scripted players reach."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tad_envs import check, football, leaf_fields, make, random_action
from tad_envs.football_scenarios import SCENARIOS
from tad_envs.scene import Drawable

THREE = "football/3_vs_1_with_keeper"
MOUTH = np.array([55.0, 0.0])


class Slow:
    """One step, one player at a time, in float64, from the same uniform numbers."""

    def __init__(self, env, state, action, noise):
        self.e = {name: float(getattr(env, name)) for name in leaf_fields(type(env))}
        self.n, self.m = env.sizes
        self.clears = not env.start.turnover
        for name, value in state._asdict().items():
            kind = float if value.dtype == np.float32 else value.dtype
            setattr(self, name, np.array(value, kind))
        self.action, kick, rest = action, noise[:2], noise[2:]
        self.before = self.position.copy()
        self.sticky()
        self.run()
        self.kick(*kick)
        self.tackle(rest[: self.m])
        self.roll(rest[self.m], rest[self.m + 1 :].reshape(4, -1))

    def sticky(self):
        for i, a in enumerate(self.action):
            self.direction[i] = a if 1 <= a <= 8 else 0 if a == 14 else self.direction[i]
            self.sprint[i] = a == 13 or (self.sprint[i] and a != 15)
            self.dribble[i] = a == 17 or (self.dribble[i] and a != 18)

    def run(self):
        e, n, p = self.e, self.n, self.position.copy()
        target = self.ball + e["lead"] * self.ball_velocity
        chaser = n + np.argmin([norm(p[k] - target) for k in range(n, len(p) - 1)])
        for k in range(len(p)):
            if k < n:
                speed = e["sprint_speed"] if self.sprint[k] else e["run_speed"]
                if k == self.owner:
                    speed = e["dribble_speed"] if self.dribble[k] else speed * e["carrying"]
                wanted = football.WAYS[self.direction[k]] * speed
                if self.direction[k]:
                    self.facing[k] = football.WAYS[self.direction[k]]
            elif k < len(p) - 1:
                near = p[np.argmin([norm(p[k] - p[i]) for i in range(n)])]
                post = target if k == chaser else near + e["mark"] * unit(MOUTH - near)
                wanted = towards(p[k], post, e["defender_speed"])
            elif self.shot:
                slope = self.ball_velocity[1] / max(self.ball_velocity[0], 1)
                crossing = np.clip(self.ball[1] + slope * (p[k, 0] - self.ball[0]), -4.7, 4.7)
                wanted = towards(p[k], np.array([p[k, 0], crossing]), e["keeper_speed"])
                wanted = wanted * (self.since >= e["react"])
            else:
                line = np.clip(0.15 * norm(self.ball - MOUTH), 0.7, 3.5) * unit(self.ball - MOUTH)
                rushes = 0 <= self.owner < n and norm(self.ball - p[k]) < e["rush"]
                wanted = towards(p[k], self.ball if rushes else MOUTH + line, e["keeper_speed"])
            self.velocity[k] += np.clip(
                wanted - self.velocity[k], *e["acceleration"] * np.array([-0.1, 0.1])
            )
            self.position[k] = np.clip(p[k] + 0.1 * self.velocity[k], [-56, -37], [56, 37])

    def kick(self, one, two):
        e, a = self.e, self.action[self.owner] if 0 <= self.owner < self.n else 0
        if self.owner >= self.n and self.clears:
            angle = 1.6 * one - 0.8
            self.leave(20 * np.array([-np.cos(angle), np.sin(angle)]), False, 0.0)
        if not 9 <= a <= 12 or (a < 12 and self.n == 1):
            return
        pressure = np.clip((3 - min(norm(p - self.ball) for p in self.position[self.n :])) / 2, 0, 1)
        error = np.sqrt(-2 * np.log(1 - one)) * np.cos(2 * np.pi * two) * (1 + 0.5 * pressure)
        if a == 12:
            side = self.facing[self.owner, 1]
            side = side if abs(side) > 0.3 else -self.position[-1, 1]
            aim = np.array([55, 3.0 if side >= 0 else -3.0])
            error *= (
                e["shot_sigma"]
                * (1 + 0.5 * pressure + 0.3 * self.sprint[self.owner])
                / (1 + 0.5 * pressure)
            )
            return self.leave(
                turned(unit(aim - self.ball), error) * (e["shot_speed"] - 3 * pressure), True, 0.0
            )
        ways = self.position[: self.n] - self.ball
        fit = [unit(w) @ self.facing[self.owner] - norm(w) / 90 * (a == 11) for w in ways]
        fit[self.owner] = -np.inf
        far = norm(ways[np.argmax(fit)])
        speed = min(36 * (1.8 * (far / 60) ** 1.4 + 0.3), 30)
        aim = ways[np.argmax(fit)] + self.velocity[np.argmax(fit)] * far / speed
        error *= e["pass_sigma"] * (1 + (a == 10))
        self.leave(turned(unit(aim), error) * speed, False, (a == 10) * 0.5 * far / speed)

    def leave(self, velocity, shot, air):
        self.ball_velocity, self.shot, self.air, self.tried = velocity, shot, air, False
        self.kicker, self.owner, self.since = self.owner, -1, 0.0

    def tackle(self, noise):
        e, winner = self.e, None
        if 0 <= self.owner < self.n:
            for k in range(self.m):
                keeper, apart = k == self.m - 1, norm(self.position[self.n + k] - self.ball)
                chance = e["tackle"] * (e["keeper_tackle"] if keeper else 1)
                chance *= e["guard"] if self.dribble[self.owner] else 1
                reach = e["keeper_tackle_reach"] if keeper else e["tackle_reach"]
                if apart < reach and noise[k] < chance and (winner is None or apart < winner[0]):
                    winner = apart, self.n + k
        self.owner = self.owner if winner is None else winner[1]

    def roll(self, luck, noise):
        e, start, heading = self.e, self.ball.copy(), unit(self.ball_velocity)
        locked = self.kicker if self.since < e["lock"] else -1
        for q in range(4 if self.owner < 0 and inside(self.ball) else 0):
            speed = norm(self.ball_velocity)
            speed = max(speed - 0.025 * (e["drag"] * speed**2 + e["friction"]), 0)
            self.ball_velocity = speed * heading
            if inside(self.ball):
                self.ball = self.ball + 0.025 * self.ball_velocity
            if self.ball[0] > 55:
                self.ball[1] = start[1] + heading[1] / heading[0] * (55 - start[0])
            if not inside(self.ball) or self.owner >= 0:
                continue
            takers = []
            for k, (a, b) in enumerate(zip(self.before, self.position, strict=True)):
                apart = norm(a + (q + 1) / 4 * (b - a) - self.ball)
                keeper = k == len(self.position) - 1
                if keeper and self.shot and not self.tried and apart < e["save_reach"]:
                    self.tried = True
                    if luck < np.clip(e["save"] - e["save_slope"] * speed, 0.3, 0.95):
                        takers.append((apart, k))
                chance = e["trap"] * (not self.shot) if k < self.n else e["trap_opponent"]
                slow = norm(self.ball_velocity - self.velocity[k]) < e["trap_speed"]
                able = k != locked and not (keeper and self.shot) and self.air <= 0.025 * (q + 1)
                if able and apart < e["control"] and (slow or noise[q, k] < chance):
                    takers.append((apart, k))
            self.owner = min(takers)[1] if takers else self.owner
        if self.owner >= 0:
            foot = 0.5 * self.facing[self.owner] if self.owner < self.n else 0
            self.ball = self.position[self.owner] + foot
            self.ball_velocity = self.velocity[self.owner]
            self.shot = self.tried = False
        self.since = min(self.since + 0.1, 10)
        self.air = max(self.air - 0.1, 0) * (self.owner < 0)


def norm(v):
    return float(np.sqrt(v @ v))


def unit(v):
    return v / max(norm(v), 1e-6)


def turned(v, angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ v


def towards(place, aim, speed):
    return unit(aim - place) * min(speed, 4 * norm(aim - place))


def inside(place):
    return abs(place[0]) <= 55 and abs(place[1]) <= 36


# --------------------------------------------------------------------------------------------------
# What is played


@functools.partial(jax.jit, static_argnums=(2,))
def play(env, key, episodes, mix):
    """Episodes ``[E, T]`` of players that act by chance, alone or together, with chances ``mix [3]``.

    Keys of the steps, states before and after, actions, what the step told, and whether it was still
    running. They run on after their ends.
    """

    def one(key):
        def advance(carry, key):
            state, seen, running = carry
            act_key, pick_key, step_key = jax.random.split(key, 3)
            by = (
                random_action(env.spec, act_key, seen),
                env.solo(key, state),
                env.heuristic(key, state),
            )
            which = jnp.sum(jax.random.uniform(pick_key) >= jnp.cumsum(mix)[:2])
            action = jnp.stack(by)[which]
            following, step = env.step(step_key, state, action)
            onward = running & ~(step.terminated | step.truncated)
            told = step._replace(observation=())
            row = (step_key, state, action, following, told, running)
            return (following, step.observation, onward), row

        begun = (*env.reset(key), jnp.ones((), bool))
        return jax.lax.scan(advance, begun, jax.random.split(key, env.spec.horizon))[1]

    return jax.vmap(one)(jax.random.split(key, episodes))


MIXED, RANDOM, SOLO, TEAM = np.array([[0.3, 0.2, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
EPISODES = 512
EVENTFUL = {"tackle": 0.3, "save": 0.8}
"""More tackles, and more shots that the keeper fails to stop."""


@functools.cache
def played(name, kind):
    mix = {"mixed": MIXED, "random": RANDOM, "solo": SOLO, "team": TEAM}[kind]
    env = make(name, reward="checkpoints", **(EVENTFUL if kind == "mixed" else {}))
    trace = play(env, jax.random.key(3), EPISODES, mix)
    keys, rest = trace[0], trace[1:]
    return keys, *jax.device_get(rest)


@functools.partial(jax.jit, static_argnums=1)
def draws(keys, count):
    return jax.vmap(lambda k: jax.random.uniform(k, (count,)))(keys)


def at(tree, where):
    return jax.tree.map(lambda x: x[where], tree)


def flat(name, kind="mixed", count=800):
    """Steps of running episodes: kicks, lost to a tackle, with a shot on its way, and any."""
    keys, state, action, following, told, running = played(name, kind)
    n, _ = make(name).sizes
    tackled = (state.owner >= 0) & (state.owner < n) & (following.owner >= n)
    mine = state.owner[..., None] == np.arange(n)
    kicks = (mine & (action >= football.LONG_PASS) & (action <= football.SHOT)).any(axis=-1)
    most = {"kick": count // 5, "tackle": count // 20, "shot": count // 10, "any": count * 13 // 20}
    kinds = {"kick": kicks, "tackle": tackled, "shot": state.shot, "any": running}
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.argwhere(kinds[k] & running))[: most[k]] for k in kinds]
    rows = tuple(np.concatenate(rows).T)
    return keys[rows], *(at(tree, rows) for tree in (state, action, following, told))


def follows_the_rules(name, count):
    env = make(name, **EVENTFUL)
    n, m = env.sizes
    keys, state, action, following, *_ = flat(name, count=count)
    noise = np.asarray(draws(keys, 3 + m + 4 * (n + m)), float)
    for t in range(len(action)):
        slow = Slow(env, at(state, t), action[t], noise[t])
        for field in set(football.Play._fields) - {"reached", "clock"}:
            got = getattr(following, field)[t]
            np.testing.assert_allclose(got, getattr(slow, field), atol=2e-4, err_msg=f"{t} {field}")
    return action, state, following


def test_every_step_follows_the_rules():
    action, state, following = follows_the_rules(THREE, 1500)
    began = (state.owner >= 0) & (state.owner < 3)
    chosen = action[np.arange(len(action)), np.clip(state.owner, 0, 2)]
    for kick in (football.LONG_PASS, football.HIGH_PASS, football.SHORT_PASS, football.SHOT):
        assert (began & (chosen == kick)).sum() > 5
    assert (began & (following.owner >= 3)).sum() > 20  # tackles
    assert ((state.owner < 0) & (following.owner >= 0) & (state.kicker >= 0)).sum() > 25  # passes taken
    assert (following.tried & ~state.tried).sum() > 3
    assert (state.shot & (following.owner == 4)).sum() > 3  # saves


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in SCENARIOS if key != "3_vs_1_with_keeper"])
def test_every_step_follows_the_rules_in_all_scenarios(key):
    follows_the_rules(f"football/{key}", 1000)


def test_ends_and_rewards_are_told_by_the_states():
    _, _, _, following, told, running = played(THREE, "mixed")
    ball, owner, place = following.ball, following.owner, following.position[:, :, :3]
    x, y = ball[..., 0], ball[..., 1]
    won = (x > 55) & (np.abs(y) < 3.7)
    out = ((np.abs(x) > 55) | (np.abs(y) > 36)) & ~won
    turnover = (owner >= 3) & ~won & ~out
    back = ((x < 0) | (place[..., 0] < 0).any(-1)) & ~won & ~out & ~turnover
    for name, ends in {"won": won, "out": out, "turnover": turnover, "back": back}.items():
        assert np.array_equal(told.info[name], ends), name
    for name in ("won", "out", "turnover"):
        assert told.info[name][running].sum() > 20, name
    over = won | out | turnover | back
    late = following.clock >= 150
    assert np.array_equal(told.terminated, over)
    assert np.array_equal(told.truncated, late & ~over)
    # Checkpoints, as upstream's wrapper counts them, in an episode until its end.
    apart = np.hypot((x - 55) / 54.4, y / 83.6)
    for e in range(64):
        passed = 0
        for t in np.flatnonzero(running[e]):
            expected = float(won[e, t])
            if won[e, t]:
                expected, passed = 1 + 0.1 * (10 - passed), 10
            while 0 <= owner[e, t] < 3 and passed < 10 and apart[e, t] <= 0.99 - 0.8 / 9 * passed:
                expected, passed = expected + 0.1, passed + 1
            assert told.reward[e, t] == pytest.approx(expected, abs=1e-5), (e, t)
    for kind, expected in (("sparse", won), ("cds", 100.0 * won - (told.terminated & ~won))):
        env = make(THREE, reward=kind)
        rewarded = jax.jit(jax.vmap(lambda *x, env=env: env._rewarded(*x)[1]))
        state = at(following, (slice(None), 30))
        got = rewarded(state, won[:, 30], (told.terminated | told.truncated)[:, 30])
        np.testing.assert_allclose(got, expected[:, 30])
        clock = rewarded(state, np.zeros(EPISODES, bool), np.ones(EPISODES, bool))[0]
        assert float(clock) == (-1 if kind == "cds" else 0)


@jax.jit
def stepped(env, keys, states, actions):
    return jax.vmap(env.step, in_axes=0)(keys, states, actions)


BATCH = 400


def test_the_pitch_reflected_plays_alike():
    env = make(THREE, pass_sigma=0.0, shot_sigma=0.0)
    keys, state, action, *_ = flat(THREE, count=BATCH)
    rng = np.random.default_rng(1)  # symmetric places have ties, which the lowest number wins
    state = state._replace(
        position=state.position + rng.normal(size=state.position.shape).astype(np.float32) / 10
    )
    other = np.array([0, 1, 8, 7, 6, 5, 4, 3, 2, *range(9, 19)], np.int32)
    down = np.array([1, -1], np.float32)
    turned = {
        f: getattr(state, f) * down for f in ("position", "velocity", "facing", "ball", "ball_velocity")
    }
    mirrored = state._replace(**turned, direction=other[state.direction])
    one, first = jax.device_get(stepped(env, keys, state, action))
    two, second = jax.device_get(stepped(env, keys, mirrored, other[action]))
    np.testing.assert_allclose(two.position, one.position * down, atol=1e-4)
    np.testing.assert_allclose(two.ball, one.ball * down, atol=1e-3)
    assert np.array_equal(two.owner, one.owner)
    assert np.array_equal(second.info["won"], first.info["won"])
    kicked = np.sum((one.owner < 0) & (state.owner >= 0))
    assert kicked > 20


def test_directions_sprint_and_dribble_stay_on():
    env = make(THREE)
    state, _ = env.reset(jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), BATCH)
    tiled = jax.tree.map(lambda x: jnp.broadcast_to(x, (BATCH, *x.shape)), state)

    def after(tiled, *actions):
        """The mates' velocity after these actions of theirs; player 0 stands still."""
        for action in actions:
            tiled, _ = stepped(
                env, keys, tiled, np.tile([0, action, action], (BATCH, 1)).astype(np.int32)
            )
        return tiled

    def speed(tiled):
        return np.asarray(tiled.velocity[0, 1])

    right = after(tiled, 5, 0, 0, 0, 0)
    np.testing.assert_allclose(speed(right), [5, 0], atol=1e-5)
    np.testing.assert_allclose(speed(after(right, 13, 0, 0)), [8, 0], atol=1e-5)
    np.testing.assert_allclose(speed(after(right, 13, 0, 0, 15, 0, 0, 0)), [5, 0], atol=1e-5)
    np.testing.assert_allclose(speed(after(right, 14, 0, 0, 0, 0)), [0, 0], atol=1e-5)
    np.testing.assert_allclose(speed(after(right, 6, 0, 0, 0, 0)), np.sqrt([12.5, 12.5]), atol=1e-5)
    mine = tiled._replace(owner=jnp.ones_like(tiled.owner), position=tiled.position.at[:, 3].set(0.0))
    np.testing.assert_allclose(speed(after(mine, 5, 13, 0, 0, 0, 0, 0)), [6.8, 0], atol=1e-5)
    dribbling = after(mine, 5, 17, 0, 0, 0)
    np.testing.assert_allclose(speed(dribbling), [3.5, 0], atol=1e-5)
    np.testing.assert_allclose(dribbling.ball, dribbling.position[:, 1] + np.array([0.5, 0]), atol=1e-5)


@pytest.mark.parametrize("view", ["all", "cone"])
def test_players_see_places_from_their_own(view):
    env = make(THREE, view=view, mask=True)
    _, state, *_ = flat(THREE, count=100)
    seen = jax.device_get(jax.jit(jax.vmap(env.observe))(state))
    soft = lambda v: v / (np.abs(v) + 10)  # noqa: E731
    hidden = 0
    for t in range(100):
        now = at(state, t)
        for i in range(3):
            things = [*np.delete(np.arange(5), i)]
            ways = np.array(
                [*(now.position[k] - now.position[i] for k in things), now.ball - now.position[i]]
            )
            paces = np.array([*now.velocity[things] / 10, now.ball_velocity / 30])
            shown = np.ones(5, bool)
            if view == "cone":
                far = np.linalg.norm(ways, axis=1)
                shown = (far < 25) & (ways @ now.facing[i] > far * np.cos(np.deg2rad(100)))
                hidden += (~shown).sum()
            owner = [now.owner < 0, 0 <= now.owner < 3, now.owner >= 3]
            expected = np.concatenate([
                now.position[i] / [55, 36], now.velocity[i] / 10, (soft(ways) * shown[:, None]).ravel(),
                (paces * shown[:, None]).ravel(), np.array(owner) * shown[-1], [now.owner == i],
                np.eye(9)[now.direction[i]], [now.sprint[i], now.dribble[i]],
                *([shown] * (view == "cone")),
            ])  # fmt: skip
            np.testing.assert_allclose(seen.agents[t, i], expected, atol=1e-5)
            legal = np.ones(19, bool)
            legal[16] = False
            legal[[9, 10, 11, 12, 17, 18]] = now.owner == i
            assert np.array_equal(seen.legal[t, i], legal)
    assert (hidden > 50) == (view == "cone")


def test_sizes_are_those_of_the_scenarios():
    expected = {
        "3_vs_1_with_keeper": (3, 39),
        "counterattack_easy": (4, 75),
        "counterattack_hard": (4, 75),
    }
    expected |= {
        "pass_and_shoot": (2, 35),
        "run_pass_and_shoot": (2, 35),
        "3_vs_2_with_keeper": (3, 43),
    }
    expected |= {"run_to_score_with_keeper": (1, 47), "corner": (11, 107)}
    assert set(expected) == set(SCENARIOS)
    for key, sizes in expected.items():
        env = make(f"football/{key}")
        assert (env.spec.n_agents, env.spec.obs_dim) == sizes
        assert isinstance(env, Drawable)
        assert env.rules == "football-v0"
        state, seen = jax.eval_shape(env.reset, jax.random.key(0))
        assert seen.state.shape == (env.spec.state_dim,)
        assert state.position.shape == (sum(env.sizes), 2)


def test_a_sweep_over_constants_is_one_program(stack):
    games = stack(
        *(make(THREE, tackle=x, rush=y, reward="checkpoints") for x, y in ((0, 5), (0.9, 25)))
    )
    assert len(jax.tree.leaves(games)) == len(leaf_fields(football.Football))
    seen = jax.jit(jax.vmap(lambda env: env._keeping(env.reset(jax.random.key(0))[0]._replace(
        owner=jnp.zeros((), jnp.int32), ball=jnp.array([38.0, 0.0])))))(games)  # fmt: skip
    assert seen[0, 0] == pytest.approx(-4 * 2.55, abs=1e-3) or seen[0, 0] == pytest.approx(-5.5)
    assert seen[1, 0] == pytest.approx(-5.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("football/3_vs_1", "3_vs_1_with_keeper"),
        (f"{THREE}/tackle=-0.1", r"tackle=-0\.1"),
        (f"{THREE}/trap=2", "trap=2"),
        (f"{THREE}/horizon=0", "horizon=0"),
        (f"{THREE}/tackel=0.1", "'tackle'"),
        (f"{THREE}/reward=dense", "reward"),
        (f"{THREE}/rules=football-v1", "football-v0"),
    ],
)
def test_wrong_parameters_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        make(name)


def test_every_constant_is_an_argument_by_name():
    assert set(inspect.signature(football.scenario("corner")).parameters) >= set(
        leaf_fields(football.Football)
    )
    env = make(THREE, tackle=0.2, view="cone")
    assert env.name == f"{THREE}/tackle=0.2/view=cone"
    assert float(make(env.name).tackle) == pytest.approx(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"view": "cone", "mask": True}, {"reward": "cds"}])
def test_other_settings_keep_their_promises(settings):
    check(make("football/run_pass_and_shoot", **settings))


REFERENCE = {
    "3_vs_1_with_keeper": (0.001, 0.084, 0.788),
    "3_vs_2_with_keeper": (0.008, 0.126, 0.618),
    "pass_and_shoot": (0.000, 0.017, 0.229),
    "run_pass_and_shoot": (0.002, 0.019, 0.787),
    "run_to_score_with_keeper": (0.000, 0.115, 0.115),
    "counterattack_easy": (0.000, 0.023, 0.479),
    "counterattack_hard": (0.000, 0.023, 0.197),
    "corner": (0.002, 0.251, 0.127),
}
"""Goal rates of 1024 episodes of random play, of the solo script and of the passing script."""


def scores_as_measured(key):
    measured = REFERENCE[key]
    got = []
    for kind in ("random", "solo", "team"):
        *_, told, running = played(f"football/{key}", kind)
        got.append(float(np.any(told.info["won"] * running, axis=1).mean()))
    for one, other in zip(got, measured, strict=True):
        error = np.sqrt(1.5 * max(other * (1 - other), 0.005) / EPISODES)  # of both
        assert one == pytest.approx(other, abs=4 * error), (key, got)


def test_scripted_players_score_as_measured_where_passing_pays():
    scores_as_measured("3_vs_1_with_keeper")
    random, solo, team = REFERENCE["3_vs_1_with_keeper"]
    assert random <= 0.01
    assert team > 2 * solo


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in SCENARIOS if key != "3_vs_1_with_keeper"])
def test_scripted_players_score_as_measured(key):
    scores_as_measured(key)
