"""Exact optima over decentralised policies, which see their own observation histories alone.

A deterministic decentralised policy is, for each step, a joint decision rule: one function per agent
from its history to an action. What matters of the rules so far is the occupancy: the (discounted)
probability of each state together with each agent's history. On it the game is deterministic,

    V_H = 0,   V_t(x) = max_d  E_{(s, h) ~ x}[r(s, d(h))] + V_{t+1}(x'(x, d))

with d over all joint decision rules (Dibangoye et al. 2016; Oliehoek et al. 2008). Enumeration is
cut in three ways that lose nothing: rules are tried in the order of the value they would have if
everything were revealed afterwards, until none can be better; an occupancy met before is not
searched again; and histories that say the same about states and about the other agents' histories
count as one (Oliehoek et al. 2009). It still grows doubly exponentially: for games of a few states,
steps and observations.
"""

import itertools
import math
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from tad_envs import finite
from tad_envs.oracle import Model, backup, backward, tabulate
from tad_envs.struct import require
from tad_envs.types import Environment, FiniteEnvironment

_DIGITS = 10
"""Decimals in which conditional probabilities must agree for histories to count as one."""
_TOLERANCE = 1e-12

Rules = tuple[np.ndarray, ...]
"""One array per agent: the action for each of its histories."""


class Decentralised(NamedTuple):
    """The optimum of a finite game, over decentralised policies."""

    value: float
    """Best expected discounted return of an episode."""
    policies: list[dict[tuple[int, ...], int]]
    """For each agent, the action after each history of its own observations that can occur."""
    observations: np.ndarray
    """``[K, O]``: what the numbers in those histories stand for, as seen in ``Observation.agents``."""
    examined: int
    """Joint decision rules that were tried."""


class _Occupancy(NamedTuple):
    """A measure over states and histories, as ``R`` rows of mass above 0."""

    mass: np.ndarray
    state: np.ndarray
    history: np.ndarray
    """``[R, N]``: numbers of histories, from 0 up for each agent."""


class _Game(NamedTuple):
    """What the search looks up."""

    model: Model
    factor: np.ndarray
    """``[S]``: discount of what follows a step from each state."""
    reward: np.ndarray
    """``[S, J]``: expected reward."""
    bounds: np.ndarray
    """``[H, S, J]``: action values if everything were known from then on."""
    seen: np.ndarray
    """``[S, N]``: number of what each agent sees."""
    legal: list[list[list[int]]]
    """Per state and agent, the actions it may take."""
    actions: int


def solve_decentralised(env: Environment, gamma: float = 1.0, *, limit: int = 200_000) -> Decentralised:
    """Best value that agents reach without telling one another what they see.

    Agents remember everything they have seen, and know the step; :func:`tad_envs.solve`, which lets
    the team see the state, is an upper bound.

    Args:
        env: a game that implements :class:`~tad_envs.types.FiniteEnvironment`, and is small.
        gamma: discount per step, in [0, 1].
        limit: joint decision rules to try at most; beyond, a ``ValueError``.
    """
    who = env.name or type(env).__name__
    require(
        finite.enumerable(env),
        f"{who} cannot be solved: it lacks starts, outcomes or observe.",
    )
    require(0.0 <= gamma <= 1.0, f"gamma={gamma} must lie in [0, 1].")
    game, observations = _tabulated(cast(FiniteEnvironment, env), gamma)
    search = _Search(game, who, limit)
    states = np.flatnonzero(game.model.starts)
    start, names = _merged(game.model.starts[states], states, game.seen[states])
    value, _ = search.best(0, start)
    policies = _policies(search, start, names)
    return Decentralised(value, policies, observations, search.examined)


def _tabulated(env: FiniteEnvironment, gamma: float) -> tuple[_Game, np.ndarray]:
    """The game as arrays, and what agents may see ``[K, O]``."""
    model = tabulate(env)
    horizon, spec = env.spec.horizon, env.spec
    values, _, _ = backward(model, horizon, gamma)
    factor = np.asarray(gamma, np.float64) ** model.power
    later = [*values[1:], np.zeros(len(model.starts))]
    bounds = np.stack([backup(model, factor, following) for following in later])
    seen = jax.tree.map(np.asarray, jax.jit(jax.vmap(env.observe))(model.states))
    whole = [seen.agents, seen.legal, seen.alive[..., None]]
    rows = np.concatenate([np.asarray(x, np.float32) for x in whole], axis=2)
    kinds, number = np.unique(rows.reshape(-1, rows.shape[2]), axis=0, return_inverse=True)
    legal = [[[int(a) for a in np.flatnonzero(row)] or [0] for row in rows] for rows in seen.legal]
    game = _Game(
        model=model,
        factor=factor,
        reward=np.sum(model.probability * model.reward, axis=2),
        bounds=bounds,
        seen=number.reshape(rows.shape[:2]),
        legal=legal,
        actions=spec.n_actions,
    )
    return game, kinds[:, : spec.obs_dim]


class _Search:
    """Best value and rules of every occupancy met."""

    def __init__(self, game: _Game, who: str, limit: int) -> None:
        self.game, self.who, self.limit = game, who, limit
        self.examined = 0
        self.known: dict[tuple[Any, ...], tuple[float, Rules]] = {}

    def best(self, t: int, x: _Occupancy) -> tuple[float, Rules]:
        """Value of the best rules from step ``t`` on, and those of step ``t``."""
        if t == len(self.game.bounds) or len(x.mass) == 0:
            return 0.0, ()
        key = (t, np.round(x.mass, _DIGITS).tobytes(), x.state.tobytes(), x.history.tobytes())
        if key not in self.known:
            self.known[key] = self._searched(t, x)
        return self.known[key]

    def _searched(self, t: int, x: _Occupancy) -> tuple[float, Rules]:
        if t == len(self.game.bounds) - 1:
            return self._last(t, x)
        bounds, candidates = self._bounded(t, x)
        best, found = -math.inf, ()
        for i in np.argsort(-bounds, kind="stable"):
            if bounds[i] <= best + _TOLERANCE:
                break
            rules = candidates(int(i))
            joint = _joint(x, rules, self.game.actions)
            following, _ = _advanced(self.game, x, joint)
            paid = float(x.mass @ self.game.reward[x.state, joint])
            value = paid + self.best(t + 1, following)[0]
            if value > best:
                best, found = value, rules
        return best, found

    def _last(self, t: int, x: _Occupancy) -> tuple[float, Rules]:
        """The last step: given the others' rules, the last agent's histories are independent."""
        *others, mine = self._choices(x)
        self._count(math.prod(len(rules) for rules in others))
        best, found = -math.inf, ()
        for rules in itertools.product(*others):
            values = self._values(t, x, rules)
            masked = np.where(mine[0], values, -np.inf)
            value = float(masked.max(axis=1).sum())
            if value > best:
                best, found = value, (*rules, masked.argmax(axis=1))
        return best, found

    def _bounded(self, t: int, x: _Occupancy) -> tuple[np.ndarray, Any]:
        """Upper bounds of all joint rules, and a function from place to joint rules."""
        *others, mine = self._choices(x)
        own = np.asarray(list(itertools.product(*(np.flatnonzero(row) for row in mine[0]))))
        firsts = list(itertools.product(*others))
        self._count(len(firsts) * len(own))
        places = np.arange(own.shape[1])
        bounds = [self._values(t, x, rules)[places, own].sum(axis=1) for rules in firsts]
        return np.concatenate(bounds), lambda i: (*firsts[i // len(own)], own[i % len(own)])

    def _choices(self, x: _Occupancy) -> list[list[np.ndarray]]:
        """Each agent's rules; for the last agent instead ``[[histories, A]]``, what is legal."""
        agents = x.history.shape[1]
        chosen: list[list[np.ndarray]] = []
        for agent in range(agents):
            _, example = np.unique(x.history[:, agent], return_index=True)
            allowed = [self.game.legal[s][agent] for s in x.state[example]]
            if agent == agents - 1:
                mask = np.zeros((len(allowed), self.game.actions), bool)
                for row, actions in zip(mask, allowed, strict=True):
                    row[actions] = True
                chosen.append([mask])
            else:
                self._count(math.prod(map(len, allowed)), only_look=True)
                chosen.append([np.asarray(rule) for rule in itertools.product(*allowed)])
        return chosen

    def _values(self, t: int, x: _Occupancy, others: Rules) -> np.ndarray:
        """``[histories, A]``: bound of each action of the last agent, given the others' rules."""
        mine = x.history[:, -1]
        joint = _joint(x, others, self.game.actions) * self.game.actions
        values = np.zeros((mine.max() + 1, self.game.actions))
        table = self.game.bounds[t][x.state[:, None], joint[:, None] + np.arange(self.game.actions)]
        # What is not legal is -inf, and stands in no rule.
        np.add.at(values, mine, x.mass[:, None] * np.where(np.isfinite(table), table, 0.0))
        return values

    def _count(self, rules: int, only_look: bool = False) -> None:
        total = self.examined + rules
        require(
            total <= self.limit,
            f"{self.who}: more than limit={self.limit} joint decision rules; take fewer steps, "
            "observations or actions.",
        )
        self.examined = self.examined if only_look else total


def _joint(x: _Occupancy, rules: Rules, actions: int) -> np.ndarray:
    """``[R]``: index of the joint action of the first agents, in row-major order."""
    joint = np.zeros(len(x.mass), np.int64)
    for agent, rule in enumerate(rules):
        joint = joint * actions + rule[x.history[:, agent]]
    return joint


def _advanced(
    game: _Game, x: _Occupancy, joint: np.ndarray
) -> tuple[_Occupancy, list[dict[tuple[int, int], int]]]:
    """The occupancy after a step; per agent, what (history, observation) is called there."""
    model = game.model
    mass = (x.mass * game.factor[x.state])[:, None] * model.probability[x.state, joint]
    mass = mass * model.goes_on[x.state, joint]
    row, outcome = np.nonzero(mass > 0)
    state = model.following[x.state[row], joint[row], outcome]
    return _merged(mass[row, outcome], state, game.seen[state], x.history[row])


def _merged(
    mass: np.ndarray, state: np.ndarray, seen: np.ndarray, before: np.ndarray | None = None
) -> tuple[_Occupancy, list[dict[tuple[int, int], int]]]:
    """Rows of equal content added up, and histories that say the same made one."""
    before = np.zeros_like(seen) if before is None else before
    pairs = np.stack([before, seen], axis=2)
    history = np.zeros_like(seen)
    kinds = []
    for agent in range(seen.shape[1]):
        kind, number = np.unique(pairs[:, agent], axis=0, return_inverse=True)
        history[:, agent] = number.reshape(-1)
        kinds.append(kind)
    names = [np.arange(len(kind)) for kind in kinds]
    merged = len(mass) > 0
    while merged:
        merged = False
        for agent in range(seen.shape[1]):
            alike = _alike(mass, state, history, agent)
            merged |= len(np.unique(alike)) < len(alike)
            names[agent] = alike[names[agent]]
            history[:, agent] = alike[history[:, agent]]
    content, place = np.unique(np.column_stack([state, history]), axis=0, return_inverse=True)
    total = np.bincount(place.reshape(-1), weights=mass, minlength=len(content))
    occupancy = _Occupancy(total, content[:, 0], content[:, 1:])
    lookup = [
        {(int(h), int(o)): int(name) for (h, o), name in zip(kind, names[agent], strict=True)}
        for agent, kind in enumerate(kinds)
    ]
    return occupancy, lookup


def _alike(mass: np.ndarray, state: np.ndarray, history: np.ndarray, agent: int) -> np.ndarray:
    """New numbers of an agent's histories: equal where they say the same about everything else."""
    rest = np.column_stack([state, np.delete(history, agent, axis=1)])
    _, place = np.unique(rest, axis=0, return_inverse=True)
    place = place.reshape(-1)
    table = np.zeros((history[:, agent].max() + 1, place.max() + 1))
    np.add.at(table, (history[:, agent], place), mass)
    conditional = np.round(table / table.sum(axis=1, keepdims=True), _DIGITS)
    _, first, same = np.unique(conditional, axis=0, return_index=True, return_inverse=True)
    # Numbered by first appearance, so that equal occupancies have equal numbers.
    rank = np.argsort(np.argsort(first))
    return rank[same.reshape(-1)]


def _policies(
    search: _Search, x: _Occupancy, names: list[dict[tuple[int, int], int]]
) -> list[dict[tuple[int, ...], int]]:
    """The best rules along the play that they lead to, over whole histories."""
    policies: list[dict[tuple[int, ...], int]] = [{} for _ in names]
    numbers: list[dict[tuple[int, ...], int]] = [
        {(o,): name for (_, o), name in own.items()} for own in names
    ]
    for t in range(len(search.game.bounds)):
        if len(x.mass) == 0:
            break
        _, rules = search.best(t, x)
        for policy, own, rule in zip(policies, numbers, rules, strict=True):
            policy.update({history: int(rule[name]) for history, name in own.items()})
        x, names = _advanced(search.game, x, _joint(x, rules, search.game.actions))
        numbers = [
            {
                (*history, o): new
                for history, name in own.items()
                for (before, o), new in called.items()
                if before == name
            }
            for own, called in zip(numbers, names, strict=True)
        ]
    return policies
