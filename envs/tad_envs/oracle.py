"""Exact optima of finite games: dynamic programming over joint actions, in float64.

    V_H = 0,   V_t(s) = max_a sum_k p_k (r_k + gamma (1 - terminated_k) V_{t+1}(s'_k))

over all states reachable from the starts, for ``t`` from the horizon ``H`` down to 0. It needs no
assumption on cycles, and gives the value of an episode that is cut off at the horizon.
"""

import itertools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from tad_envs import finite
from tad_envs.struct import require
from tad_envs.types import Environment, FiniteEnvironment, State

_MAX_JOINT_ACTIONS = 100_000
_MAX_STATES = 200_000
_CELLS_PER_BATCH = 4096
"""Joint actions times states that one compiled call expands."""


class Solution(NamedTuple):
    """The optimum of a game, over joint policies. ``S`` reachable states, ``H`` horizon."""

    value: float
    """Optimal expected discounted return of an episode."""
    values: np.ndarray
    """``[H, S]``: optimal value in each state after each number of steps, float64."""
    policy: np.ndarray
    """``[H, S, N]``: an optimal joint action, ties to the lowest index, int32; ``[H, S, N, D]`` floats
    if actions are continuous."""
    states: State
    """The states, stacked on a leading axis ``S``; the first are the starts."""
    starts: np.ndarray
    """``[S]``: probability of starting there."""
    equilibria: list[tuple[tuple[Any, ...], float]]
    """Strict pure equilibria of the start's stage game: joint actions and values, best first. Those
    that are known, if actions are continuous.

    The stage game pays the reward plus the optimal value of what follows. Empty where the start is
    random. They are where learners that improve one agent at a time may end.
    """


class Model(NamedTuple):
    """A game as arrays over states ``S``, joint actions ``J`` and outcomes ``K``."""

    states: State
    starts: np.ndarray
    legal: np.ndarray
    probability: np.ndarray
    following: np.ndarray
    reward: np.ndarray
    goes_on: np.ndarray
    power: np.ndarray
    """``[S]``: what follows is discounted by gamma to this power."""


def solve(env: Environment, gamma: float = 1.0) -> Solution:
    """Optimal values and an optimal joint policy of a finite game, or of a continuous one-step game.

    Args:
        env: a game that implements :class:`~tad_envs.types.FiniteEnvironment`. If it has
            ``discount_powers``, what follows a step from a state is discounted by
            ``gamma ** discount_powers[env.turn(state)]`` instead of ``gamma`` (see
            :class:`~tad_envs.transform.Sequential`). Or a continuous game of one step that knows
            its optimum, ``known()``.
        gamma: discount per step, in [0, 1].
    """
    if hasattr(env, "known"):
        return _in_closed_form(env)
    require(
        finite.enumerable(env),
        f"{env.name or type(env).__name__} cannot be solved: it lacks starts, outcomes or observe.",
    )
    require(0.0 <= gamma <= 1.0, f"gamma={gamma} must lie in [0, 1].")
    model = tabulate(cast(FiniteEnvironment, env))
    values, choices, first = backward(model, env.spec.horizon, gamma)
    joint = joint_actions(env)
    return Solution(
        value=float(model.starts @ values[0]),
        values=values,
        policy=joint[choices],
        states=model.states,
        starts=model.starts,
        equilibria=_start_equilibria(model, first, env),
    )


def _in_closed_form(env: Any) -> Solution:
    """The solution of a continuous one-step game with one start."""
    known = list(env.known())
    actions, value = known[0]
    return Solution(
        value=value,
        values=np.full((1, 1), value),
        policy=np.asarray(actions, np.float32).reshape(1, 1, env.spec.n_agents, env.spec.action_dim),
        states=np.zeros(1, np.int32),
        starts=np.ones(1),
        equilibria=known,
    )


def optimal(returns: Any, value: float) -> np.ndarray:
    """Whether returns count as optimal: ``|return - V*| <= 1e-3 max(1, |V*|)``, elementwise."""
    return np.abs(np.asarray(returns) - value) <= 1e-3 * max(1.0, abs(value))


def strict_equilibria(payoff: Any) -> list[tuple[tuple[int, ...], float]]:
    """Strict pure equilibria of a common payoff ``[A] * N``: joint actions and payoffs, best first.

    At a strict equilibrium every agent loses by deviating alone. Entries of ``-inf`` cannot be
    played.
    """
    table = np.asarray(payoff, np.float64)
    strict = np.isfinite(table)
    for axis in range(table.ndim):
        best = table.max(axis=axis, keepdims=True)
        attained = (table == best).sum(axis=axis, keepdims=True)
        strict &= (table == best) & (attained == 1)
    found = [(tuple(int(i) for i in a), float(table[tuple(a)])) for a in np.argwhere(strict)]
    return sorted(found, key=lambda item: -item[1])


def equilibrium_values(env: Environment, gamma: float = 1.0) -> list[float]:
    """Values of :func:`solve`'s equilibria, best first: 5 and 4 for the hallway."""
    return [value for _, value in solve(env, gamma).equilibria]


def joint_actions(env: Environment) -> np.ndarray:
    """All joint actions ``[J, N]``, int32, in row-major order."""
    spec = env.spec
    require(spec.discrete, f"{type(env).__name__} has continuous actions, which cannot be listed.")
    count = spec.n_actions**spec.n_agents
    require(
        count <= _MAX_JOINT_ACTIONS,
        f"{count} joint actions are more than the {_MAX_JOINT_ACTIONS} that solve enumerates.",
    )
    joint = itertools.product(range(spec.n_actions), repeat=spec.n_agents)
    return np.asarray(list(joint), np.int32)


# --------------------------------------------------------------------------------------------------
# Enumeration


@jax.jit
def _starts(env: Any) -> Any:
    return env.starts()


@jax.jit
def _expand(env: Any, states: State, joint: jax.Array) -> Any:
    """Outcomes ``[S, J, K]`` of all joint actions, legal actions ``[S, N, A]``, turns ``[S]``."""
    turn = getattr(env, "turn", lambda state: jnp.zeros((), jnp.int32))
    each_action = jax.vmap(env.outcomes, in_axes=(None, 0))
    outcomes = jax.vmap(each_action, in_axes=(0, None))(states, joint)
    return outcomes, jax.vmap(lambda s: env.observe(s).legal)(states), jax.vmap(turn)(states)


def tabulate(env: FiniteEnvironment) -> Model:
    """Breadth-first search over the states that legal actions reach from the starts."""
    joint = joint_actions(env)
    batch = max(1, _CELLS_PER_BATCH // len(joint))
    probability, states = jax.tree.map(np.asarray, _starts(env))
    index: dict[bytes, int] = {}
    found: list[Any] = []
    keys, rows = _keys(states), _rows(states)
    for i in np.flatnonzero(probability > 0):
        _remember(keys[i], rows[i], index, found)
    start = np.zeros(len(found))
    for i in np.flatnonzero(probability > 0):
        start[index[keys[i]]] += float(probability[i])
    expanded = []
    expanded_to = 0
    while expanded_to < len(found):
        wave = found[expanded_to : expanded_to + batch]
        expanded.append(_expand_wave(env, wave, batch, joint, index, found))
        expanded_to += len(wave)
        require(len(found) <= _MAX_STATES, f"more than {_MAX_STATES} states are reachable.")
    legal, p, following, reward, goes_on, power = (
        np.concatenate(parts) for parts in zip(*expanded, strict=True)
    )
    starts = np.zeros(len(found))
    starts[: len(start)] = start / start.sum()
    return Model(_stack(found), starts, legal, p, following, reward, goes_on, power)


def _expand_wave(env, wave, batch, joint, index, found) -> tuple[np.ndarray, ...]:
    """Expand some states, padded to ``batch`` so that one program serves all; note new states."""
    size = len(wave)
    padded = _stack(wave + [wave[-1]] * (batch - size))
    (p, states, reward, terminated), legal, turn = jax.tree.map(
        lambda x: np.asarray(x)[:size], _expand(env, padded, joint)
    )
    allowed = _allowed(legal, joint)
    goes_on = allowed[..., None] & (p > 0) & ~terminated
    following = np.zeros(p.shape, np.int64)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), states)
    cells = np.flatnonzero(goes_on)
    reached = jax.tree.map(lambda x: x[cells], flat)
    keys, rows = _keys(reached), _rows(reached)
    places = [_remember(k, r, index, found) for k, r in zip(keys, rows, strict=True)]
    following.reshape(-1)[cells] = places
    # Kept on the host, because 1/3 in float32 would limit the precision of the whole solution.
    power = np.asarray(getattr(env, "discount_powers", (1.0,)), np.float64)[turn]
    # In float32 a distribution sums to 1 only up to rounding, which would scale the rewards.
    p = p.astype(np.float64) / p.astype(np.float64).sum(axis=-1, keepdims=True)
    return allowed, p, following, reward.astype(np.float64), goes_on, power


def _allowed(legal: np.ndarray, joint: np.ndarray) -> np.ndarray:
    """``[S, J]``: whether every agent may take its part of the joint action."""
    # An agent without any legal action (not alive) takes action 0, so that others may go on.
    stuck = ~legal.any(axis=2, keepdims=True)
    legal = legal | (stuck & (np.arange(legal.shape[2]) == 0))
    return np.all(legal[:, np.arange(legal.shape[1]), joint], axis=2)


def _remember(key: bytes, row: Any, index: dict[bytes, int], found: list[Any]) -> int:
    place = index.setdefault(key, len(found))
    if place == len(found):
        found.append(row)
    return place


def _keys(states: State) -> list[bytes]:
    """The content of each of the stacked states as bytes."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(states)]
    # Adding 0 turns -0.0, which equals 0.0 but has other bytes, into 0.0.
    flat = [
        np.ascontiguousarray(leaf if leaf.dtype == bool else leaf + leaf.dtype.type(0))
        for leaf in leaves
    ]
    return [b"".join(leaf[i].tobytes() for leaf in flat) for i in range(len(flat[0]))]


def _rows(states: State) -> list[Any]:
    """The stacked states one by one, as tuples of leaves held by their tree."""
    leaves, tree = jax.tree.flatten(states)
    return [tree.unflatten([leaf[i] for leaf in leaves]) for i in range(len(leaves[0]))]


def _stack(rows: list[Any]) -> State:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


# --------------------------------------------------------------------------------------------------
# Backward induction


def backward(model: Model, horizon: int, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values ``[H, S]``, greedy joint actions ``[H, S]`` and first action values ``[S, J]``."""
    factor = np.asarray(gamma, np.float64) ** model.power
    values, choices = [], []
    following, action_values = np.zeros(len(model.starts)), np.zeros(model.legal.shape)
    for _ in range(horizon):
        action_values = backup(model, factor, following)
        choices.append(action_values.argmax(axis=1))
        following = action_values.max(axis=1)
        values.append(following)
    return np.stack(values[::-1]), np.stack(choices[::-1]), action_values


def backup(model: Model, factor: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Action values ``[S, J]`` given the values ``[S]`` of what follows; ``-inf`` if not legal."""
    later = factor[:, None, None] * model.goes_on * following[model.following]
    expected = np.sum(model.probability * (model.reward + later), axis=2)
    return np.where(model.legal, expected, -np.inf)


def _start_equilibria(
    model: Model, action_values: np.ndarray, env: Environment
) -> list[tuple[tuple[int, ...], float]]:
    starts = np.flatnonzero(model.starts)
    if len(starts) != 1:
        return []
    stage = action_values[starts[0]].reshape((env.spec.n_actions,) * env.spec.n_agents)
    return strict_equilibria(stage)
