"""Foraging: against a slow loop, against jumanji's own steps, starts, and known scores."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tad_envs import make
from tad_envs.lbf import Board

MOVES = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)]
CROWDED = {"size": 5, "n_agents": 4, "foods": 2}
FAR = {"size": 8, "n_agents": 3, "foods": 4, "sight": 2, "penalty": 0.1}


class Slow:
    """lb-foraging's rules, one agent at a time; its own units, -1 and 0 for what is not seen."""

    def __init__(self, env, board):
        self.env, self.level = env, board.level.tolist()
        self.at = [tuple(p) for p in board.position.tolist()]
        pieces = zip(board.food.tolist(), board.food_level.tolist(), board.eaten, strict=True)
        self.food = {tuple(p): level for p, level, eaten in pieces if not eaten}
        self.total = int(board.food_level.sum())

    def around(self, place):
        return [(place[0] + r, place[1] + c) for r, c in MOVES[1:5]]

    def legal(self, i):
        cells = self.around(self.at[i])
        inside = [all(0 <= x < self.env.size for x in cell) for cell in cells]
        moves = [ok and cell not in self.food for ok, cell in zip(inside, cells, strict=True)]
        return [True, *moves, any(cell in self.food for cell in cells)]

    def step(self, action):
        action = [a if self.legal(i)[a] else 0 for i, a in enumerate(action)]
        heading = {}
        for i, (a, (r, c)) in enumerate(zip(action, self.at, strict=True)):
            heading.setdefault((r + MOVES[a][0], c + MOVES[a][1]), []).append(i)
        for cell, who in heading.items():
            if len(who) == 1:
                self.at[who[0]] = cell
        reward, loaders = 0.0, {i for i, a in enumerate(action) if a == 5}
        while loaders:
            cell = next(c for c in self.around(self.at[min(loaders)]) if c in self.food)
            together = {i for i in loaders if self.at[i] in self.around(cell)}
            loaders -= together
            strength = sum(self.level[i] for i in together)
            if strength < self.food[cell]:
                reward -= float(self.env.penalty) * len(together)
            else:
                level = self.food.pop(cell)
                reward += sum(self.level[i] * level / (strength * self.total) for i in together)
        return reward

    def view(self, i):
        (row, column), sight, (n, f) = self.at[i], self.env.sight, (self.env.n_agents, self.env.foods)
        top, left = max(row - sight, 0), max(column - sight, 0)
        near = lambda r, c: abs(r - row) <= sight and abs(c - column) <= sight  # noqa: E731
        window = lambda r, c: max(r - top, c - left) <= 2 * sight and min(r - top, c - left) >= 0  # noqa: E731
        seen = [(r - top, c - left, level) for (r, c), level in sorted(self.food.items()) if near(r, c)]
        order = [i] + [j for j in range(n) if j != i and window(*self.at[j])]
        mates = [(self.at[j][0] - top, self.at[j][1] - left, self.level[j]) for j in order]
        empty = (-1, -1, 0)
        return seen + [empty] * (f - len(seen)) + mates + [empty] * (n - len(mates))


@jax.jit
def starts(env, keys):
    return jax.vmap(env.reset)(keys)[0]


def random_boards(env, count, seed):
    """Fresh boards, some of whose food is eaten, after any number of steps; ``[count]``."""
    boards = starts(env, jax.random.split(jax.random.key(seed), count))
    boards, rng = jax.device_get(boards), np.random.default_rng(seed)
    gone = rng.random(boards.eaten.shape) < rng.choice([0.1, 0.7], (count, 1))
    clock = rng.integers(env.horizon // 2, env.horizon, count).astype(np.int32)
    near = boards.food[:, :1] + rng.integers(-1, 2, boards.position.shape)  # mostly about some food
    place = np.where(rng.random((count, 1, 1)) < 0.5, near, boards.position)
    place = np.clip(place, 0, env.size - 1).astype(np.int32)
    cells = np.concatenate([place, boards.food], axis=1) @ [env.size, 1]
    apart = np.array([len(set(row)) == len(row) for row in cells])
    position = np.where(apart[:, None, None], place, boards.position)
    return boards._replace(position=position, eaten=boards.eaten | gone, clock=clock)


def stepped(env, boards, seed):
    """Random actions, illegal ones too, and what they lead to."""
    rng = np.random.default_rng(seed)
    shape = boards.position.shape[:2]
    action = np.where(rng.random(shape) < 0.4, 5, rng.integers(0, 6, shape)).astype(np.int32)
    return action, *jax.device_get(steps(env, boards, action))


@jax.jit
def steps(env, boards, action):
    return jax.vmap(lambda s, a: env.step(jax.random.key(0), s, a))(boards, action)


def upstream_units(env, agents):
    """Views ``[B, N, O]`` as whole numbers ``[B, N, things, 3]``, as both libraries show them."""
    rows = agents.reshape(*agents.shape[:2], -1, 3).copy()
    seen = rows[..., 2:] > 0
    food = env.max_level * min(3, env.n_agents)
    highest = np.where(np.arange(rows.shape[2]) < env.foods, food, env.max_level)
    rows[..., :2] = np.where(seen, rows[..., :2] * (env.size - 1), rows[..., :2])
    rows[..., 2] *= highest
    np.testing.assert_allclose(rows, np.round(rows), atol=1e-4)
    return np.round(rows).astype(int)


@pytest.mark.parametrize("parameters", [CROWDED, FAR], ids=["crowded", "far"])
def test_steps_are_those_of_a_slow_loop(parameters):
    env = make("lbf", **parameters)
    boards = random_boards(env, 1000, 0)
    action, after, step = stepped(env, boards, 1)
    views, paid = upstream_units(env, step.observation.agents), 0
    for b in range(len(action)):
        slow = Slow(env, jax.tree.map(lambda x, b=b: x[b], boards))
        reward = slow.step(action[b].tolist())
        paid += reward > 0
        assert after.position[b].tolist() == [list(p) for p in slow.at]
        left = {
            tuple(p) for p, gone in zip(after.food[b].tolist(), after.eaten[b], strict=True) if not gone
        }
        assert left == set(slow.food)
        assert step.reward[b] == pytest.approx(reward, abs=1e-6)
        assert step.terminated[b] == (not slow.food)
        agents = range(env.n_agents)
        assert step.observation.legal[b].tolist() == [slow.legal(i) for i in agents]
        assert [[tuple(row) for row in view] for view in views[b].tolist()] == [
            slow.view(i) for i in agents
        ]
    assert paid > 30


def jumanji_env(env):
    """The same game of jumanji's, whose import warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jumanji.environments.routing.lbf import env as module
        from jumanji.environments.routing.lbf import generator, types
    made = generator.RandomGenerator(
        env.size, env.n_agents, env.foods, env.sight, env.max_level, env.coop
    )
    upstream = module.LevelBasedForaging(made, time_limit=env.horizon, penalty=float(env.penalty))
    return upstream, types


def theirs(types, board):
    """One of our boards as a state of jumanji's."""
    n, f = board.position.shape[0], board.food.shape[0]
    return types.State(
        agents=types.Agent(
            id=jnp.arange(n),
            position=board.position,
            level=board.level,
            loading=jnp.zeros(n, bool),
        ),
        food_items=types.Food(
            id=jnp.arange(f), position=board.food, level=board.food_level, eaten=board.eaten
        ),
        step_count=board.clock,
        key=jnp.zeros(2, jnp.uint32),
    )


@pytest.mark.parametrize(
    "parameters", [FAR, {"size": 8, "n_agents": 2, "foods": 2, "coop": True}], ids=["far", "all"]
)
def test_steps_are_jumanjis(parameters):
    env = make("lbf", rules="jumanji", **parameters)
    upstream, types = jumanji_env(env)
    boards = random_boards(env, 1000, 2)
    action, after, step = stepped(env, boards, 3)
    run = jax.jit(jax.vmap(lambda board, action: upstream.step(theirs(types, board), action)))
    state, expected = jax.device_get(run(boards, action))
    np.testing.assert_array_equal(after.position, state.agents.position)
    np.testing.assert_array_equal(after.eaten, state.food_items.eaten)
    np.testing.assert_array_equal(after.clock, state.step_count)
    np.testing.assert_allclose(step.reward, expected.reward.sum(axis=1), atol=1e-6)
    np.testing.assert_array_equal(step.observation.legal, expected.observation.action_mask)
    views = upstream_units(env, step.observation.agents)
    np.testing.assert_array_equal(views.reshape(*views.shape[:2], -1), expected.observation.agents_view)
    np.testing.assert_array_equal(step.terminated | step.truncated, expected.step_type == 2)
    np.testing.assert_array_equal(step.terminated, expected.discount[:, 0] == 0)
    assert min(step.terminated.sum(), step.truncated.sum(), (step.reward > 0).sum()) > 5


def board(env, position, food, level=None, food_level=None):
    """A board laid by hand."""
    n, f = len(position), len(food)
    return Board(
        position=jnp.array(position, jnp.int32),
        level=jnp.array(level or [1] * n, jnp.int32),
        food=jnp.array(food, jnp.int32),
        food_level=jnp.array(food_level or [n] * f, jnp.int32),
        eaten=jnp.zeros(f, bool),
        clock=jnp.zeros((), jnp.int32),
    )


def test_who_may_enter_a_cell_that_is_left():
    """A queue moves on, two swap, and a third may enter where an owner fails to leave."""
    cases = {  # positions and moves, where lb-foraging and where jumanji lead
        "queue": ([[0, 0], [0, 1], [0, 2]], [4, 4, 4], [1, 2, 3], [0, 1, 3]),
        "swap": ([[0, 0], [0, 1], [0, 4]], [4, 3, 0], [1, 0, 4], [0, 1, 4]),
        "contest": ([[0, 0], [0, 1], [0, 3]], [4, 4, 3], [1, 1, 3], [0, 1, 3]),
        "wall": ([[0, 3], [0, 4], [0, 0]], [4, 4, 0], [3, 4, 0], [3, 4, 0]),
    }
    for rules, column in (("lbforaging", 2), ("jumanji", 3)):
        env = make("lbf", size=5, n_agents=3, foods=1, rules=rules)
        step = jax.jit(lambda s, a, env=env: env.step(jax.random.key(0), s, a)[0].position[:, 1])
        for name, case in cases.items():
            places = step(board(env, case[0], [[3, 3]]), jnp.array(case[1]))
            assert places.tolist() == case[column], (rules, name)


def test_a_load_counts_for_one_piece_or_for_every_piece_next_to_it():
    env = make("lbf", size=6, foods=2, rules="jumanji")
    state = board(env, [[2, 2], [0, 0]], [[1, 2], [2, 1]], food_level=[1, 1])
    _, step = env.step(jax.random.key(0), state, jnp.array([5, 0]))
    assert (float(step.reward), bool(step.terminated)) == (1.0, True)
    # Under the other rules no two pieces are near enough to each other.
    boards = random_boards(make("lbf", **FAR), 1000, 0)
    gaps = np.abs(boards.food[:, :, None] - boards.food[:, None]).sum(-1) + 9 * np.eye(4, dtype=int)
    assert gaps.min() == 3


@pytest.mark.parametrize("rules", ["lbforaging", "jumanji"])
def test_starts_are_uniform_over_what_is_free(rules):
    env = make("lbf", size=6, n_agents=3, foods=1, rules=rules)
    count = 10_000
    start = jax.device_get(starts(env, jax.random.split(jax.random.key(1), count)))
    food, agents = start.food[:, 0] @ [6, 1], start.position @ [6, 1]
    rng, cells = np.random.default_rng(0), np.arange(36)
    inner = (cells // 6 % 5 > 0) & (cells % 6 % 5 > 0)
    first = rules == "jumanji"  # food is laid first
    shares = []
    for place, earlier, open_cells in (
        (food, agents[:, :0] if first else agents, inner),
        (agents[:, 0], food[:, None] if first else agents[:, :0], inner | True),
        (agents[:, 2], np.c_[food, agents[:, :2]] if first else agents[:, :2], inner | True),
    ):
        free = open_cells & ~(earlier[:, None] == cells[:, None]).any(-1)
        assert free[np.arange(count), place].all()
        below = (free & (cells < place[:, None])).sum(1)
        shares.append((below + rng.random(count)) / free.sum(1))  # uniform if the cell is
        assert len(np.unique(place)) == open_cells.sum()
    for share in shares:
        assert scipy.stats.chisquare(np.bincount((16 * share).astype(int))).pvalue > 1e-3
    assert np.abs(np.corrcoef(shares) - np.eye(3)).max() < 0.04
    np.testing.assert_allclose(np.bincount(start.level.ravel())[1:] / (3 * count), 0.5, atol=0.015)
    highest = start.level.sum(1)
    assert scipy.stats.chisquare(np.bincount(start.food_level[highest == 5, 0])[1:]).pvalue > 1e-3
    assert start.food_level.max() == 6


def test_food_for_all_takes_the_three_weakest():
    env = make("lbf", size=12, n_agents=5, foods=3, coop=True, max_level=4)
    start = jax.device_get(starts(env, jax.random.split(jax.random.key(0), 100)))
    weakest = np.sort(start.level, axis=1)[:, :3].sum(axis=1)
    np.testing.assert_array_equal(start.food_level, np.stack([weakest] * 3, axis=1))


def test_food_without_a_place_is_left_out():
    env = make("lbf", size=5, foods=6)
    start, seen = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 200))
    there = np.asarray(start.food_level > 0)
    np.testing.assert_array_equal(start.eaten, ~there)
    assert set(there.sum(axis=1)) <= {1, 2}
    assert there[:, 0].all()
    rows = np.asarray(seen.agents).reshape(200, 2, 8, 3)
    np.testing.assert_array_equal(np.all(rows == [-1, -1, 0], axis=-1)[:, 0, :6], ~there)


# --------------------------------------------------------------------------------------------------
# Known scores


def at_random(key, env, state, legal):
    return jnp.argmax(jnp.where(legal, jax.random.uniform(key, legal.shape), -1), axis=1)


def together(key, env, state, legal):
    """All go to the piece that is nearest to all of them and load it; at times one steps aside."""
    gap = state.food - state.position[:, None]
    far = jnp.abs(gap).sum(-1)
    target = jnp.argmin(jnp.where(state.eaten, 1000, far.sum(0)))
    row, column = gap[:, target].T
    distance = far[:, target]
    noise = jax.random.uniform(key, legal.shape)
    closer = jnp.stack([row * 0, row < 0, row > 0, column < 0, column > 0, row * 0], axis=1)
    steps = state.position[:, None] + np.array(MOVES)
    taken = (steps[:, :, None] == state.position).all(-1).any(-1)
    prefer = noise + closer - taken
    wander = jnp.argmax(jnp.where(legal, noise, -1), axis=1)
    move = jnp.argmax(jnp.where(legal, prefer, -1).at[:, 5].set(-1), axis=1)
    move = jnp.where(jax.random.bernoulli(key, 0.1, row.shape), wander, move)
    return jnp.where(distance == 1, 5, move)


def scores(env, policy, count, seed):
    """Return, and whether all food was collected, of ``count`` episodes."""

    def episode(key):
        state, seen = env.reset(key)

        def advance(carry, t):
            state, legal, over = carry
            action = policy(jax.random.fold_in(key, t), env, state, legal)
            state, step = env.step(key, state, action)
            reward = jnp.where(over, 0.0, step.reward)
            return (state, step.observation.legal, over | step.terminated), (reward, step.info["won"])

        begun = (state, seen.legal, jnp.zeros((), bool))
        reward, won = jax.lax.scan(advance, begun, jnp.arange(env.spec.horizon))[1]
        return reward.sum(), won[-1]

    return jax.device_get(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(seed), count)))


KNOWN = {  # mean returns of 4096 episodes: at random, all together; under each library's rules
    "8x8-2p-2f-coop": ((0.008, 0.999), (0.016, 1.0)),
}


@pytest.mark.parametrize("name", ["8x8-2p-2f-coop"])
@pytest.mark.parametrize("rules", ["lbforaging", pytest.param("jumanji", marks=pytest.mark.slow)])
def test_known_policies_score_what_is_known_of_them(name, rules):
    env = make(f"lbf/{name}", rules=rules)
    for policy, known in zip((at_random, together), KNOWN[name][rules == "jumanji"], strict=True):
        reward, won = scores(env, policy, 1024, 1)
        # Returns lie between 0 and 1: five standard errors at most.
        assert reward.mean() == pytest.approx(known, abs=5 * (known * (1 - known) / 1024) ** 0.5 + 2e-3)
        assert reward.max() <= 1 + 1e-5
        np.testing.assert_array_equal(won, reward > 1 - 1e-5)


# --------------------------------------------------------------------------------------------------
# Promises


@pytest.mark.parametrize("rules", ["lbforaging", "jumanji"])
def test_time_runs_out_at_the_horizon_and_a_clear_in_the_last_step_is_the_task(rules):
    env = make("lbf", foods=1, rules=rules)
    state = board(env, [[2, 2], [2, 4]], [[2, 3]])
    step = jax.jit(lambda s, a: env.step(jax.random.key(0), s, a))
    for t in range(env.horizon + 2):
        last, (state, seen) = state, step(state, jnp.zeros(2, jnp.int32))
        assert (bool(seen.terminated), bool(seen.truncated)) == (False, t >= env.horizon - 1)
        if t == env.horizon - 1:
            _, cleared = step(last, jnp.array([5, 5]))
            assert (bool(cleared.terminated), bool(cleared.truncated)) == (True, False)
            assert float(cleared.reward) == 1.0


@pytest.mark.parametrize("rules", ["lbforaging", "jumanji"])
def test_the_board_has_no_preferred_side_and_agents_no_order(rules):
    env = make("lbf", **CROWDED, rules=rules, penalty=0.2)
    boards = random_boards(env, 1000, 0)
    action, after, step = stepped(env, boards, 5)
    turn = lambda x: np.stack([env.size - 1 - x[..., 1], x[..., 0]], axis=-1)  # noqa: E731
    turned = boards._replace(position=turn(boards.position), food=turn(boards.food))
    moves = np.array([0, 3, 4, 2, 1, 5])  # what was north is west
    swap = np.array([2, 0, 3, 1])
    permuted = boards._replace(position=boards.position[:, swap], level=boards.level[:, swap])
    for state, chosen, place in (
        (turned, moves[action], turn(after.position)),
        (permuted, action[:, swap], after.position[:, swap]),
    ):
        other, told = jax.device_get(steps(env, state, chosen.astype(np.int32)))
        np.testing.assert_array_equal(other.position, place)
        np.testing.assert_array_equal(other.eaten, after.eaten)
        np.testing.assert_allclose(told.reward, step.reward, atol=1e-6)


def test_what_is_not_legal_is_the_same_as_staying():
    for rules in ("lbforaging", "jumanji"):
        env = make("lbf", **CROWDED, rules=rules)
        boards = random_boards(env, 1000, 0)
        _, boards, step = stepped(env, boards, 0)
        legal = step.observation.legal
        action, after, _ = stepped(env, boards, 1)
        allowed = np.take_along_axis(legal, action[..., None], axis=2)[..., 0]
        other = jax.device_get(steps(env, boards, action * allowed)[0])
        assert 0.1 < allowed.mean() < 0.9
        jax.tree.map(np.testing.assert_array_equal, after, other)


def test_numbers_are_data_and_wrong_ones_are_refused():
    one, other = make("lbf/8x8-2p-2f-coop"), make("lbf/8x8-2p-2f-coop/penalty=0.1")
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert make("lbf/8x8-2p-2f-coop/rules=jumanji").spec.horizon == 100
    assert make("lbf/2s-8x8-2p-2f-coop").sight == 2
    for wrong, message in (
        ({"size": 4}, "size=4"),
        ({"penalty": -1.0}, "penalty=-1"),
        ({"n_agents": 30}, "at most 16"),
        ({"rules": "jumanj"}, "jumanji"),
        ({"sight": 0}, "sight=0"),
    ):
        with pytest.raises(ValueError, match=message):
            make("lbf", **wrong)
