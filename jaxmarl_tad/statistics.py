"""Statistics over seeds and tasks, after Agarwal et al. (2021) and Gorsane et al. (2022).

Seeds of a task are exchangeable and tasks are not, so scores come grouped by task: an array
``[runs, tasks]``, or a dict or list with one array ``[runs]`` per task (their lengths may differ).
The interquartile mean ignores the best and the worst quarter of all runs; its interval is a
percentile bootstrap that draws runs with replacement *within* each task. Where the question is
which optimum a seed ended on, the share of seeds and its Wilson interval say it, not a mean.

Everything is NumPy on the host.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from tad_envs.struct import require

Scores = ArrayLike | Mapping[str, ArrayLike]
"""``[runs, tasks]``, or one array ``[runs]`` per task."""


def iqm(scores: Scores) -> float:
    """Interquartile mean: the mean of what is left when ⌊n/4⌋ scores are cut from either end."""
    return float(_trimmed_mean(np.concatenate(_strata(scores))))


def stratified_bootstrap(
    scores: Scores,
    statistic: Callable[..., object] = iqm,
    *,
    reps: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval ``(low, high)`` of ``statistic`` when the runs of each task are redrawn.

    Args:
        scores: ``[runs, tasks]``, or one array ``[runs]`` per task.
        statistic: A function of such scores; it is given a list with one array per task. ``iqm``
            and ``np.mean`` (of all scores together) are evaluated on all redraws at once.
        reps: Number of redraws.
        confidence: Mass inside the interval.
        seed: Of the redraws: the same scores always give the same interval.
    """
    _require_confidence(confidence)
    require(reps >= 1, f"stratified_bootstrap: reps={reps} must be at least 1.")
    strata, rng = _strata(scores), np.random.default_rng(seed)
    redrawn = [runs[rng.integers(len(runs), size=(reps, len(runs)))] for runs in strata]
    if statistic is iqm:
        values = _trimmed_mean(np.concatenate(redrawn, axis=-1))
    elif statistic is np.mean:
        values = np.concatenate(redrawn, axis=-1).mean(axis=-1)
    else:
        values = np.array([statistic([runs[rep] for runs in redrawn]) for rep in range(reps)])
    low, high = np.quantile(values, _tails(confidence))
    return float(low), float(high)


def iqm_curve(
    values: ArrayLike,
    *,
    reps: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """``(iqm, low, high)`` at every point of a curve, each ``[points]``.

    Args:
        values: ``[runs, points]``. A redraw takes whole runs, so its points belong together.
        reps: Number of redraws.
        confidence: Mass inside the interval at each point (pointwise, not of the whole curve).
        seed: Of the redraws.
    """
    _require_confidence(confidence)
    curves = np.asarray(values, float)
    require(
        curves.ndim == 2 and curves.size > 0,
        f"iqm_curve: values has shape {curves.shape}; it must be [runs, points], neither empty.",
    )
    rows = np.random.default_rng(seed).integers(len(curves), size=(reps, len(curves)))
    redrawn = np.stack([_trimmed_mean(point[rows]) for point in curves.T], axis=-1)
    low, high = np.quantile(redrawn, _tails(confidence), axis=0)
    return _trimmed_mean(curves.T), low, high


def ratio_curve(
    values: ArrayLike,
    reference: ArrayLike,
    *,
    reps: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """``(ratio, low, high)`` of mean values over mean reference values, at every point of a curve.

    A run keeps its reference: a redraw takes both. NaN where the references' mean is 0, and an end of
    the interval that any redraw leaves undefined.

    Args:
        values: ``[runs, points]``.
        reference: As many, or what broadcasts to it.
        reps: Number of redraws.
        confidence: Mass inside the interval at each point.
        seed: Of the redraws.
    """
    _require_confidence(confidence)
    curves = np.asarray(values, float)
    require(
        curves.ndim == 2 and curves.size > 0,
        f"ratio_curve: values has shape {curves.shape}; it must be [runs, points], neither empty.",
    )
    best = np.broadcast_to(np.asarray(reference, float), curves.shape)
    rows = np.random.default_rng(seed).integers(len(curves), size=(reps, len(curves)))

    def ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
        return np.where(under == 0, np.nan, over / np.where(under == 0, 1, under))

    redrawn = ratio(curves[rows].mean(axis=1), best[rows].mean(axis=1))
    low, high = np.quantile(redrawn, _tails(confidence), axis=0)
    return ratio(curves.mean(axis=0), best.mean(axis=0)), low, high


def probability_of_improvement(x: Scores, y: Scores) -> float:
    """How likely a run of X beats a run of Y: the mean over tasks of P(X>Y) + ½P(X=Y)."""
    xs, ys = _strata(x), _strata(y)
    require(
        len(xs) == len(ys),
        f"probability_of_improvement: x has {len(xs)} tasks and y has {len(ys)}; "
        "they must be the same tasks in the same order.",
    )
    if isinstance(x, Mapping) and isinstance(y, Mapping):
        require(
            list(x) == list(y),
            "probability_of_improvement: x and y must name the same tasks in the same order; "
            f"x has {list(x)} and y has {list(y)}.",
        )
    pairs = [a[:, None] - b[None, :] for a, b in zip(xs, ys, strict=True)]
    return float(np.mean([np.mean((gap > 0) + 0.5 * (gap == 0)) for gap in pairs]))


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval ``(low, high)`` of a proportion, from ``successes`` out of ``n``.

    It holds its level for small ``n`` and for shares near 0 and 1, where mean ± 2 s.e. does not.
    """
    _require_confidence(confidence)
    require(0 <= successes <= n and n >= 1, f"wilson: {successes} of {n} is not a proportion.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, weight = successes / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z * np.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return low, high


def reached(values: ArrayLike, target: float, tolerance: float = 1e-3) -> int:
    """Number of runs whose value is ``target`` within ``tolerance`` · max(1, ``|target|``)."""
    gap = np.abs(np.asarray(values, float) - target)
    return int(np.sum(gap <= tolerance * max(1.0, abs(target))))


def shares(
    values: ArrayLike, decimals: int = 3
) -> tuple[Float[np.ndarray, " outcomes"], Float[np.ndarray, " outcomes"]]:
    """``(outcomes, share)``: the distinct rounded values, largest first, and the share of each."""
    outcomes, counts = np.unique(_rounded(values, decimals), return_counts=True)
    return outcomes[::-1], counts[::-1] / counts.sum()


def modal(values: ArrayLike, decimals: int = 3) -> float:
    """The most frequent value after rounding; of equally frequent ones the largest."""
    outcomes, share = shares(values, decimals)
    return float(outcomes[np.argmax(share)])


def _rounded(values: ArrayLike, decimals: int) -> np.ndarray:
    runs = np.asarray(values, float)
    require(
        runs.ndim == 1 and runs.size > 0 and bool(np.isfinite(runs).all()),
        "values must be [runs]: one axis, not empty, all finite.",
    )
    return np.round(runs, decimals) + 0.0  # a rounded -0.0 is 0.0


def _trimmed_mean(values: np.ndarray) -> Any:
    """Mean over the last axis without its ⌊n/4⌋ smallest and largest entries."""
    n = values.shape[-1]
    cut = n // 4
    if cut == 0:
        return values.mean(axis=-1)
    # a full sort: NumPy's partition is ten times slower on many short rows
    return np.sort(values, axis=-1)[..., cut : n - cut].mean(axis=-1)


def _strata(scores: Scores) -> list[np.ndarray]:
    """One array ``[runs]`` per task."""
    if isinstance(scores, Mapping):
        groups = list(scores.values())
    elif isinstance(scores, Sequence) and len(scores) > 0 and np.ndim(scores[0]) > 0:
        groups = list(scores)
    else:
        table = np.asarray(scores, float)
        require(table.ndim in (1, 2), f"scores has shape {table.shape}; expected [runs, tasks].")
        groups = list(table.T) if table.ndim == 2 else [table]
    strata = [np.asarray(runs, float) for runs in groups]
    require(
        len(strata) > 0 and all(runs.ndim == 1 and runs.size > 0 for runs in strata),
        "scores must hold at least one task, and at least one run of every task.",
    )
    require(
        all(bool(np.isfinite(runs).all()) for runs in strata),
        "scores must be finite; leave out or replace runs that failed, and say so.",
    )
    return strata


def _tails(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _require_confidence(confidence: float) -> None:
    require(0 < confidence < 1, f"confidence={confidence} must lie strictly between 0 and 1.")
