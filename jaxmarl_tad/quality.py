"""What a dataset is made of, and datasets made of others: mixtures, and episodes chosen by return."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmarl_tad.dataset import Dataset, check_sizes, from_leaves, leaves, lengths, returns
from tad_envs import require

_DECIMALS = 4
"""To which states are rounded before they are compared, as published measures do."""
_MOST_JOINT = 4_096
"""Joint actions up to which their distribution is counted."""


# --- datasets made of others ----------------------------------------------------------------------


def mix(
    parts: Sequence[Dataset],
    *,
    shares: Sequence[float] | None = None,
    episodes: int | None = None,
    seed: int = 0,
    name: str = "",
    label: str = "",
) -> Dataset:
    """The episodes of several datasets of one environment as one dataset.

    Args:
        parts: The datasets, whose sizes must agree.
        shares: What share of the episodes comes from each, positive; they are drawn without
            replacement, as many as the shares allow or ``episodes`` asks for. All episodes of every
            part unless given.
        episodes: How many in all; equal shares unless ``shares`` says otherwise.
        seed: Of the draw.
        name: The new dataset's name; the parts' names joined by ``+`` unless given.
        label: Its quality; the parts' labels joined by ``+`` unless given.

    Raises:
        ValueError: Sizes differ, or a part has too few episodes for its share.
    """
    require(len(parts) > 0, "mix([]) holds no dataset; give at least one.")
    for part in parts[1:]:
        check_sizes(parts[0], part.spec, part.name)
    if shares is not None or episodes is not None:
        weights = np.ones(len(parts)) if shares is None else np.asarray(shares, float)
        require(
            len(weights) == len(parts) and bool(np.all(weights > 0)),
            f"shares={list(weights)} must be a positive number for each of {len(parts)} datasets.",
        )
        weights = weights / weights.sum()
        there = np.array([part.episodes for part in parts])
        total = math.floor(np.min(there / weights) + 1e-9) if episodes is None else episodes
        wanted = _whole(weights * total, total)
        for part, count, known in zip(parts, wanted, there, strict=True):
            require(
                int(count) <= int(known),
                f"{part.name!r} has {known} episodes, and {count} are asked for.",
            )
        source = np.random.default_rng(seed)
        chosen = [np.sort(source.permutation(n)[:k]) for n, k in zip(there, wanted, strict=True)]
        parts = [subset(part, which) for part, which in zip(parts, chosen, strict=True)]
    found = [leaves(part) for part in parts]
    common = [leaf for leaf in found[0] if all(leaf in each for each in found)]
    longest = max(parts, key=lambda part: part.spec.horizon).spec
    return from_leaves(
        {leaf: np.concatenate([each[leaf] for each in found]) for leaf in common},
        longest,
        env=parts[0].env if len({part.env for part in parts}) == 1 else "",
        scale=parts[0].scale if len({part.scale for part in parts}) == 1 else None,
        name=name or "+".join(dict.fromkeys(part.name for part in parts)),
        label=label or "+".join(dict.fromkeys(part.label for part in parts if part.label)),
    )


def subset(data: Dataset, episodes: Any, *, label: str | None = None) -> Dataset:
    """The episodes with these numbers, in this order."""
    begins = np.flatnonzero(np.asarray(data.first))
    ends = np.append(begins[1:], len(data.first))
    chosen = np.asarray(episodes, int)
    require(len(chosen) > 0, f"no episode of {data.name!r} is chosen.")
    rows = np.concatenate([np.arange(int(begins[i]), int(ends[i])) for i in chosen])
    found = {leaf: value[rows] for leaf, value in leaves(data).items()}
    label = data.label if label is None else label
    about = {"env": data.env, "name": data.name, "label": label, "scale": data.scale}
    return from_leaves(found, data.spec, **about)


def by_return(
    data: Dataset, low: float = -math.inf, high: float = math.inf, *, label: str | None = None
) -> Dataset:
    """The episodes with ``low ≤ return ≤ high``, in their order."""
    sums = returns(data)
    chosen = np.flatnonzero((sums >= low) & (sums <= high))
    told = f"no episode of {data.name!r} has a return in [{low:g}, {high:g}]; "
    require(len(chosen) > 0, f"{told}they lie in [{sums.min():g}, {sums.max():g}].")
    return subset(data, chosen, label=label)


def split(data: Dataset, parts: int) -> list[Dataset]:
    """Equal numbers of episodes by return, the lowest first; equal returns stay in their order."""
    order = np.argsort(returns(data), kind="stable")
    require(1 <= parts <= len(order), f"parts={parts} must lie in 1..{len(order)}, the episodes.")
    return [subset(data, np.sort(each)) for each in np.array_split(order, parts)]


def _whole(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers with this sum, nearest to the shares."""
    found = np.floor(shares + 1e-9).astype(int)
    found[np.argsort(found - shares, kind="stable")[: total - found.sum()]] += 1
    return found


# --- what a dataset is made of --------------------------------------------------------------------


def describe(data: Dataset) -> dict[str, Any]:
    """Counts and measures of a dataset, those that are not known left out; on the host.

    ``coverage``: unique pairs of state (rounded) and joint action, as a share of the steps.
    ``duplicates``: the share of steps that repeat an earlier pair. ``entropy``: of each agent's actions
    given the state, in nats, mean over agents. ``correlation``: see :func:`total_correlation`.
    """
    sums, long, step = returns(data), lengths(data), np.asarray(data.rows)
    action, legal = np.asarray(data.action)[step], np.asarray(data.legal)[step]
    coverage = len(np.unique(_pairs(data), axis=0)) / len(step)
    found: dict[str, Any] = {
        "episodes": len(sums),
        "steps": len(step),
        "return mean": float(sums.mean()),
        "return std": float(sums.std()),
        "return min": float(sums.min()),
        "return median": float(np.median(sums)),
        "return max": float(sums.max()),
        "length mean": float(long.mean()),
        "truncated": float(np.asarray(data.truncated)[step].sum() / len(sums)),
        "coverage": coverage,
        "duplicates": 1.0 - coverage,
    }
    alive = np.asarray(data.alive)[step]
    if data.spec.discrete:
        allowed = np.take_along_axis(legal, action[..., None].astype(int), axis=-1)[..., 0]
        found["illegal actions"] = float((~allowed & alive).mean())
        entropies = conditional_entropies(data)
        if entropies is not None:
            found["entropy"] = float(entropies[0].mean())
            found["correlation"] = float(entropies[0].sum() - entropies[1])
    else:
        low, high = data.spec.bounds or (-1.0, 1.0)
        found["at the bounds"] = float(((action <= low) | (action >= high))[legal].mean())
    return found


def total_correlation(data: Dataset) -> float | None:
    """Σ_i H(a_i | s) − H(a | s) in nats, from counts: 0 where agents acted independently.

    None where actions are continuous, or too many to be counted: more joint actions than 4,096, or
    more pairs of a state and a joint action that could be than there are steps, so that what is
    counted would be chance.
    """
    found = conditional_entropies(data)
    return None if found is None else float(found[0].sum() - found[1])


def conditional_entropies(data: Dataset) -> tuple[np.ndarray, float] | None:
    """H(a_i | s) of each agent and H(a | s), in nats, from counts; None where they are too few."""
    spec = data.spec
    joint = float(spec.n_actions) ** spec.n_agents
    if not spec.discrete or joint > _MOST_JOINT:
        return None
    pairs = _pairs(data)
    states = np.unique(pairs[:, : -spec.n_agents], axis=0, return_inverse=True)[1].reshape(-1)
    if (states.max() + 1) * joint > len(pairs):
        return None
    actions = np.asarray(data.action)[np.asarray(data.rows)].astype(np.int64)
    place = spec.n_actions ** np.arange(spec.n_agents)
    each = [_conditional_entropy(states, actions[:, i]) for i in range(spec.n_agents)]
    return np.array(each), _conditional_entropy(states, actions @ place)


def _conditional_entropy(states: np.ndarray, actions: np.ndarray) -> float:
    """H(a | s) = H(a, s) − H(s)."""
    both = np.unique(np.stack([states, actions], axis=1), axis=0, return_counts=True)[1]
    return _entropy(both) - _entropy(np.bincount(states))


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def _pairs(data: Dataset) -> np.ndarray:
    """State, or all that agents see where there is none, and joint action of each step."""
    step = np.asarray(data.rows)
    seen = data.state if data.spec.state_dim else data.agents
    seen = np.round(np.asarray(seen)[step].reshape(len(step), -1), _DECIMALS) + 0.0
    return np.concatenate([seen, np.asarray(data.action)[step].reshape(len(step), -1)], axis=1)
