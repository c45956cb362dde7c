"""The warehouse: who moves and what is seen against slow loops, and against jumanji's own steps."""

import importlib
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tad_envs import check, make, rware
from tad_envs.rware import Floor

AHEAD = [(-1, 0), (0, 1), (1, 0), (0, -1)]
BUSY = {"size": "tiny", "n_agents": 6, "requests": 8}


def movers(cells, targets):
    """Who moves, by walking from robot to robot: rings of three, and the longest queue to each cell."""
    owner, moving, queues = {cell: i for i, cell in enumerate(cells)}, set(), {}
    for i in range(len(cells)):
        path = [i]
        while owner.get(targets[path[-1]], path[-1]) not in path:
            path.append(owner[targets[path[-1]]])
        end = targets[path[-1]]
        if end not in owner:
            queues.setdefault(end, []).append(path)
        elif len(ring := path[path.index(owner[end]) :]) > 2:
            moving |= set(ring)
    for paths in queues.values():
        moving |= set(min(paths, key=lambda path: (-len(path), path[::-1])))
    return moving


class Slow:
    """robotic-warehouse's rules, one robot and shelf at a time; shelves have names here."""

    def __init__(self, env, floor):
        layout = env._layout
        self.shape, self.goals = layout.shape, [divmod(int(g), layout.shape[1]) for g in layout.goals]
        places = [divmod(int(p), layout.shape[1]) for p in layout.places]
        self.places = set(places)
        self.at = [tuple(p) for p in floor.position.tolist()]
        self.heading = floor.direction.tolist()
        self.shelf = {}  # name to cell
        self.load = [None] * len(self.at)
        self.requested = set()
        for place, stored, wanted in zip(places, floor.stored, floor.wanted, strict=True):
            if stored:
                self.shelf[place] = place
                self.requested |= {place} if wanted else set()
        for i, carries in enumerate(floor.carrying):
            if carries:
                self.load[i] = i
                self.shelf[i] = self.at[i]
                self.requested |= {i} if floor.carries_wanted[i] else set()

    def step(self, action):
        """Moves all; returns how many requested shelves are at the goals."""
        target = []
        for i, (r, c) in enumerate(self.at):
            ahead = (r + AHEAD[self.heading[i]][0], c + AHEAD[self.heading[i]][1])
            inside = all(0 <= x < size for x, size in zip(ahead, self.shape, strict=True))
            stands = ahead in [p for name, p in self.shelf.items() if name not in self.load]
            goes = action[i] == 1 and inside and not (self.load[i] is not None and stands)
            target.append(ahead if goes else (r, c))
        moving = movers(self.at, target)
        self.stuck = any(t != p and i not in moving for i, (t, p) in enumerate(zip(target, self.at)))  # noqa: B905
        for i, a in enumerate(action):
            if i in moving:
                self.at[i] = target[i]
                if self.load[i] is not None:
                    self.shelf[self.load[i]] = target[i]
            elif a in (2, 3):
                self.heading[i] = (self.heading[i] + (1 if a == 3 else -1)) % 4
            elif a == 4 and self.load[i] is None:
                above = [name for name, p in self.shelf.items() if p == self.at[i]]
                self.load[i] = above[0] if above else None
            elif a == 4 and self.at[i] in self.places:
                self.load[i] = None
        return sum(self.shelf[name] in self.goals for name in self.requested)

    def view(self, i):
        (row, column), height, width = self.at[i], self.shape[0] - 1, self.shape[1] - 1
        facing = lambda j: [float(self.heading[j] == d) for d in (0, 2, 3, 1)]  # noqa: E731
        highway = (row, column) not in self.places
        numbers = [column / width, row / height, self.load[i] is not None, *facing(i), highway]
        for cell in itertools.product((row - 1, row, row + 1), (column - 1, column, column + 1)):
            here = [j for j, p in enumerate(self.at) if p == cell]
            shelves = [name for name, p in self.shelf.items() if p == cell]
            numbers += [bool(here), *(facing(here[0]) if here else [1, 0, 0, 0])]
            numbers += [bool(shelves), any(name in self.requested for name in shelves)]
        return np.array(numbers, np.float32)


def random_floors(env, count, seed):
    """Possible floors ``[count]``: crowds, half of the robots with loads, many near the goals."""
    rng, layout = np.random.default_rng(seed), env._layout
    n, shelves, cells = env.n_agents, len(layout.places), len(layout.place)
    floors = []
    for _ in range(count):
        rows, columns = layout.shape
        corner = rng.integers(0, rows - 3), rng.integers(0, columns - 3)
        corner = [(rows - 4, columns // 2 - 2), corner][rng.integers(2)]
        region = (np.arange(4)[:, None] + corner[0]) * columns + np.arange(4) + corner[1]
        cell = rng.permutation(region.ravel() if rng.random() < 0.7 else cells)[:n]
        stored, load = np.ones(shelves, bool), np.full(n, -1)
        for i in rng.permutation(n):
            place = layout.place[cell[i]]
            if rng.random() < 0.5 and (place == shelves or stored[place]):
                # From its own cell, or from one where nobody is.
                choice = (
                    np.flatnonzero(stored & ~np.isin(layout.places, cell))
                    if place == shelves
                    else [place]
                )
                load[i] = rng.choice(choice)
                stored[load[i]] = False
        asked = np.zeros(shelves + 1, bool)
        first = load[(load >= 0) & (rng.random(n) < 0.7)][: env.requests]  # loads are often requested
        rest = rng.permutation(np.setdiff1d(np.arange(shelves), first))[: env.requests - len(first)]
        asked[np.r_[first, rest].astype(int)] = True
        floor = Floor(
            position=np.stack(np.divmod(cell, columns), axis=1).astype(np.int32),
            direction=rng.integers(0, 4, n).astype(np.int32),
            carrying=load >= 0,
            carries_wanted=asked[load] & (load >= 0),
            stored=stored,
            wanted=asked[:-1] & stored,
            clock=np.int32(rng.integers(0, env.horizon)),
        )
        floors.append(floor)
    return jax.tree.map(lambda *x: np.stack(x), *floors)


@jax.jit
def steps(env, keys, floors, action):
    return jax.vmap(env.step)(keys, floors, action)


def stepped(env, floors, seed):
    """Random actions, forward ones most often, and what they lead to."""
    rng = np.random.default_rng(seed)
    action = rng.choice(5, floors.direction.shape, p=[0.1, 0.5, 0.1, 0.1, 0.2]).astype(np.int32)
    keys = jax.random.split(jax.random.key(seed), len(action))
    return action, *jax.device_get(steps(env, keys, floors, action))


def requested(floor):
    return np.concatenate([floor.wanted, floor.carries_wanted], axis=-1)


@pytest.mark.parametrize("rules", ["rware", "terminate"])
def test_steps_are_those_of_a_slow_loop(rules):
    env = make("rware", **BUSY, rules=rules)
    floors = random_floors(env, 1000, 0)
    action, after, step = stepped(env, floors, 1)
    asked = requested(after)
    for b in range(len(action)):
        slow = Slow(env, jax.tree.map(lambda x, b=b: x[b], floors))
        paid = slow.step(action[b].tolist())
        assert after.position[b].tolist() == [list(p) for p in slow.at]
        assert after.direction[b].tolist() == slow.heading
        assert after.carrying[b].tolist() == [load is not None for load in slow.load]
        standing = {p for name, p in slow.shelf.items() if name not in slow.load}
        places = zip(env._layout.places, after.stored[b], strict=True)
        assert {divmod(int(p), slow.shape[1]) for p, stored in places if stored} == standing
        assert step.reward[b] == paid
        assert step.terminated[b] == (slow.stuck and rules == "terminate")
        assert asked[b].sum() == env.requests
        if not paid:
            views = np.stack([slow.view(i) for i in range(env.n_agents)])
            np.testing.assert_allclose(step.observation.agents[b], views, atol=1e-6)
    assert (step.reward > 0).sum() > 50
    assert (step.reward > 1).sum() > 3


def test_who_moves_is_what_a_walk_along_the_queues_says():
    """In a crowd on nine cells nearly every form of ring and queue comes up."""
    rng = np.random.default_rng(0)
    cells = np.stack([rng.permutation(9)[:6] for _ in range(3000)])
    offset = np.array([0, -3, 3, -1, 1])[rng.integers(0, 5, cells.shape)]
    sideways = np.abs(offset) == 1
    inside = (cells + offset >= 0) & (cells + offset < 9)
    inside &= ~sideways | ((cells + offset) // 3 == cells // 3)
    target = np.where(inside, cells + offset, cells)
    round_about = np.array([1, 4, 2, 0, 3, 5, 6, 7, 8])  # a ring of four, often taken
    target = np.where((rng.random(cells.shape) < 0.7) & (cells % 3 < 2), round_about[cells], target)
    ours = np.asarray(jax.jit(jax.vmap(rware.resolve))(cells, target))
    rings = 0
    for cell, to, moves in zip(cells.tolist(), target.tolist(), ours, strict=True):
        moving = movers(cell, to)
        assert set(np.flatnonzero(moves)) == moving
        rings += all(cell[i] in {to[j] for j in moving} for i in moving) and len(moving) > 0
    assert rings > 20


@pytest.mark.parametrize(
    ("cells", "targets", "moving"),
    [
        ([0, 1, 2], [1, 2, 3], {0, 1, 2}),  # a queue moves up
        ([0, 1, 2], [1, 2, 2], set()),  # unless its front stays
        ([0, 1], [1, 0], set()),  # no swap
        ([0, 1, 2], [1, 0, 1], set()),  # nor with somebody behind
        ([0, 1, 11, 10], [1, 11, 10, 0], {0, 1, 2, 3}),  # a ring turns
        ([0, 1, 11, 10, 2], [1, 11, 10, 0, 1], {0, 1, 2, 3}),  # and nobody else enters it
        ([0, 2, 3], [1, 1, 2], {1, 2}),  # the longer queue goes first
        ([2, 0], [1, 1], {0}),  # of equals the lower index
        ([0, 2, 12, 22], [1, 1, 2, 12], {1, 2, 3}),
        ([0, 10, 2], [1, 0, 1], {0, 1}),
    ],
)
def test_rings_queues_and_swaps(cells, targets, moving):
    moves = rware.resolve(jnp.array(cells), jnp.array(targets))
    assert set(np.flatnonzero(moves)) == moving == movers(cells, targets)


# --------------------------------------------------------------------------------------------------
# jumanji


def package():
    """The parts of jumanji that are used; its import warns."""
    base = "jumanji.environments.routing.robot_warehouse."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [importlib.import_module(base + part) for part in ("env", "generator", "types", "utils")]


def theirs(env, floors):
    """Our floors as states of jumanji's, without masks: shelves have numbers, and a grid holds them."""
    types, layout = package()[2], env._layout
    count, n = floors.direction.shape
    shelf = np.zeros((count, len(layout.places), 2), np.int32)
    asked = np.zeros(shelf.shape[:2], np.int32)
    grid = np.zeros((count, 2, *layout.shape), np.int32)
    queue = np.zeros((count, env.requests), np.int32)
    places = np.stack(np.divmod(layout.places, layout.shape[1]), axis=1)
    for b in range(count):
        robots = np.flatnonzero(floors.carrying[b])
        shelf[b] = np.r_[places[floors.stored[b]], floors.position[b][robots]]
        asked[b] = np.r_[floors.wanted[b][floors.stored[b]], floors.carries_wanted[b][robots]]
        queue[b] = np.flatnonzero(asked[b])
        grid[b][0][tuple(shelf[b].T)] = 1 + np.arange(len(places))
        grid[b][1][tuple(floors.position[b].T)] = 1 + np.arange(n)
    place = lambda x: types.Position(x=jnp.asarray(x[..., 0]), y=jnp.asarray(x[..., 1]))  # noqa: E731
    return types.State(
        grid=jnp.asarray(grid),
        agents=types.Agent(
            position=place(floors.position),
            direction=jnp.asarray(floors.direction),
            is_carrying=jnp.asarray(floors.carrying, jnp.int32),
        ),
        shelves=types.Shelf(position=place(shelf), is_requested=jnp.asarray(asked)),
        request_queue=jnp.asarray(queue),
        step_count=jnp.asarray(floors.clock),
        action_mask=jnp.zeros((count, n, 5), bool),
        key=jax.random.key_data(jax.random.split(jax.random.key(0), count)),
    )


def test_steps_are_jumanjis():
    """Also at a collision, but for the view: there upstream's loses its order."""
    env = make("rware", size="tiny", n_agents=4, requests=6, rules="jumanji")
    module, generator, _, utils = package()
    upstream = module.RobotWarehouse(generator.RandomGenerator(1, 3, 8, 4, 1, 6), time_limit=500)

    @jax.jit
    @jax.vmap
    def run(state, action):
        state.action_mask = utils.compute_action_mask(state.grid, state.agents)
        return upstream.step(state, action)

    floors = random_floors(env, 1000, 2)
    action, after, step = stepped(env, floors, 3)
    state, expected = jax.device_get(run(theirs(env, floors), action))
    np.testing.assert_array_equal(after.position, np.stack(state.agents.position, axis=-1))
    np.testing.assert_array_equal(after.direction, state.agents.direction)
    np.testing.assert_array_equal(step.terminated | step.truncated, expected.step_type == 2)
    crashed = step.info["collided"]
    np.testing.assert_array_equal(step.terminated, crashed)
    apart = ~crashed
    np.testing.assert_array_equal(step.reward[apart], expected.reward[apart])
    np.testing.assert_array_equal(after.carrying[apart], state.agents.is_carrying[apart] > 0)
    np.testing.assert_array_equal(
        step.observation.legal[apart], expected.observation.action_mask[apart]
    )
    quiet = apart & (step.reward == 0)
    views = step.observation.agents.copy()
    views[..., :2] *= np.array(env._layout.shape) - 1
    np.testing.assert_allclose(views[quiet], expected.observation.agents_view[quiet], atol=1e-4)
    assert min(quiet.sum(), crashed.sum(), (step.reward[apart] > 0).sum()) > 50


# --------------------------------------------------------------------------------------------------
# Starts, requests, and promises


def test_starts_are_uniform_and_no_two_robots_share_a_cell():
    env = make("rware", size="tiny", n_agents=3, requests=4)
    reset = jax.jit(jax.vmap(env.reset))
    start = jax.device_get(reset(jax.random.split(jax.random.key(0), 10_000))[0])
    cell = start.position @ [env._layout.shape[1], 1]
    assert all(np.all(cell[:, i] != cell[:, j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    for counts in (
        np.bincount(cell[:, 0], minlength=110),
        np.bincount(cell[:, 2], minlength=110),
        np.bincount(start.direction.ravel(), minlength=4),
    ):
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert np.all(start.wanted.sum(axis=1) == 4)
    np.testing.assert_allclose(start.wanted.mean(axis=0), 4 / 32, atol=0.015)


def test_a_delivery_requests_any_shelf_that_is_not_requested():
    env = make("rware", size="tiny", n_agents=2, requests=3)
    floor = jax.tree.map(lambda x: x[0], random_floors(env, 1, 0))
    row, column = divmod(int(env._layout.goals[0]), env._layout.shape[1])
    stored, wanted = np.ones(32, bool), np.zeros(32, bool)
    stored[[5, 9]], wanted[[0, 20]] = False, True
    floor = floor._replace(
        position=np.array([[row, column], [0, 0]], np.int32),
        carrying=np.array([True, True]),
        carries_wanted=np.array([True, False]),
        stored=stored,
        wanted=wanted,
    )
    keys = jax.random.split(jax.random.key(0), 6000)
    many = jax.tree.map(lambda x: np.stack([x] * 6000), floor)
    after, step = jax.device_get(steps(env, keys, many, np.zeros((6000, 2), np.int32)))
    assert np.all(step.reward == 1)
    asked = requested(after)
    assert np.all(asked.sum(axis=1) == 3)
    counts = asked.sum(axis=0)
    assert counts[[0, 20]].tolist() == [6000] * 2
    assert counts[[5, 9, 32]].tolist() == [0] * 3  # empty places, and what was just delivered
    others = np.delete(counts, [0, 20, 5, 9, 32])
    assert len(others) == 29
    assert scipy.stats.chisquare(others).pvalue > 1e-3


@pytest.mark.parametrize("rules", ["rware", "jumanji", "terminate"])
def test_shelves_and_requests_are_conserved(rules):
    env = make("rware", **BUSY, rules=rules, horizon=60)

    def run(key):
        state, _ = env.reset(key)

        def advance(carry, key):
            state, over = carry
            action = jax.random.choice(key, 5, (6,), p=jnp.array([0.1, 0.5, 0.1, 0.1, 0.2]))
            state, step = env.step(key, state, action)
            over |= step.terminated
            return (state, over), (state, over, step.truncated)

        return jax.lax.scan(advance, (state, jnp.zeros((), bool)), jax.random.split(key, 62))[1]

    state, over, truncated = jax.device_get(
        jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 32))
    )
    shelves = state.stored.sum(-1) + state.carrying.sum(-1)
    assert np.all((shelves == 32) | over)
    assert np.all((requested(state).sum(-1) == 8) | over)
    assert not np.any(state.carries_wanted & ~state.carrying & ~over[..., None])
    cells = np.sort(state.position @ [10, 1], axis=-1)
    assert np.all((np.diff(cells) > 0).all(-1) | over)
    if rules == "rware":
        np.testing.assert_array_equal(truncated, np.arange(62)[None] >= 59 + 0 * truncated)
    else:
        assert over[:, -1].mean() > 0.9


def test_names_are_upstreams_and_wrong_ones_are_refused():
    assert make("rware/tiny-4ag-easy").requests == 8
    assert make("rware/small-2ag-hard").requests == 1
    assert make("rware/large-8ag").spec.state_dim == 64 + 2 * 224
    sizes = [len(make(f"rware/{size}-2ag")._layout.places) for size in rware.SIZES]
    assert sizes == [32, 80, 144, 224]
    assert make("rware/tiny-2ag").spec.obs_dim == 71
    assert make("rware/tiny-2ag/rules=jumanji").spec.obs_dim == 66
    for wrong, message in (
        ({"size": "smal"}, "small"),
        ({"requests": 32}, "below the 32 shelves"),
        ({"n_agents": 0}, "n_agents=0"),
        ({"rules": "jumanj"}, "jumanji"),
    ):
        with pytest.raises(ValueError, match=message):
            make("rware", **wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters",
    [{"sight": 2}, {"rules": "jumanji"}, {"rules": "terminate"}, {"n_agents": 1, "requests": 1}],
)
def test_other_sizes_keep_their_promises(parameters):
    check(make("rware", **parameters, horizon=30))
