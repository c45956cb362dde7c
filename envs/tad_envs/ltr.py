"""Learning to rank: every document is an agent, its action a score, and the team is paid the NDCG.

A query comes with ``N`` documents. Each sees its own features and says a whole number from 0 to
``scores - 1``; the list is sorted by them, and the one step of an episode pays NDCG@k: with ``g`` the
gain ``2^label - 1`` of a document and ``k`` the last rank that counts,

    DCG@k = sum_{r <= k} g(document at rank r) / log2(1 + r),    NDCG@k = DCG@k / largest DCG@k.

Ten scores for ten documents tie all the time. Sorting ties by index would pay for the order in which
a file lists its documents, so what is paid is the expectation over all orders of tied documents, in
closed form: a document tied with others at the ranks ``a..b`` receives the mean of the weights there.

:class:`Synthetic` draws queries of which every bound is known; :class:`Table` holds a data set (see
:mod:`tad_envs.letor`). The task is that of PTDE (Chen et al. 2022, section 4.3), which gives neither
``k`` nor a rule for ties. ``F`` features, ``Q`` queries, besides the letters of :mod:`tad_envs.types`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tad_envs import finite, letor
from tad_envs.struct import AnyArray, Real, concrete, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

_GRADES = (4, 2, 2, 1, 1, 0, 0, 0, 0, 0)
_LARGEST_LABEL = 30
"""Gains beyond 2^30 would leave float32's whole numbers far behind."""
_TRIALS = 500
"""Of the search for thresholds, from each start."""


class Query(NamedTuple):
    """State of both games."""

    feature: Float[Array, "N F"]
    label: Float[Array, "N"]
    """Relevance, a whole number from 0; -1 where there is no document."""


# --------------------------------------------------------------------------------------------------
# The measure


def expected_dcg(
    score: Array, gain: Float[Array, "N"], present: Bool[Array, "N"], weight: Float[Array, "N"]
) -> Float[Array, ""]:
    """DCG of documents sorted by descending ``score``, averaged over all orders of tied ones.

    Args:
        score: ``[N]``, of any type that compares.
        gain: of each document.
        present: documents that are in the list; others take no rank.
        weight: of ranks 1 to ``N``; 0 beyond the cut.
    """
    above = jnp.sum((score > score[:, None]) & present, axis=1)
    upto = jnp.sum((score >= score[:, None]) & present, axis=1)
    rank = jnp.arange(1, weight.shape[0] + 1)
    tied = (rank > above[:, None]) & (rank <= upto[:, None])
    mean = jnp.sum(jnp.where(tied, weight, 0.0), axis=1) / jnp.maximum(upto - above, 1)
    return jnp.sum(jnp.where(present, gain * mean, 0.0))


def expected_ndcg(score: Array, label: Float[Array, "N"], k: Real) -> Float[Array, ""]:
    """NDCG@k in [0, 1] of ``score``, over all orders of ties; 0 where no document is relevant.

    Args:
        score: ``[N]``, of any type that compares.
        label: as in :class:`Query`.
        k: the last rank that counts.
    """
    present = label >= 0
    gain = jnp.exp2(jnp.maximum(label, 0.0)) - 1
    rank = np.arange(1, label.shape[0] + 1)
    weight = jnp.where(rank <= jnp.asarray(k), (1 / np.log2(1 + rank)).astype(np.float32), 0.0)
    best = expected_dcg(label, gain, present, weight)
    return jnp.where(
        best > 0, expected_dcg(score, gain, present, weight) / jnp.maximum(best, 1e-9), 0.0
    )


# --------------------------------------------------------------------------------------------------
# What the games share


def _spec(documents: int, features: int, scores: int, markov: bool) -> Spec:
    return Spec(
        n_agents=documents,
        obs_dim=features,
        state_dim=documents * features,
        horizon=1,
        n_actions=scores,
        state_markov=markov,
    )


def _observe(query: Query, scores: int) -> Observation:
    """Own features as a row; all of them as the state. What is missing sees zeros and says 0."""
    present = query.label >= 0
    rows = jnp.where(present[:, None], query.feature, 0.0).astype(jnp.float32)
    legal = present[:, None] | (jnp.arange(scores) == 0)
    return Observation(agents=rows, state=rows.reshape(-1), legal=legal, alive=present)


def _pay(query: Query, action: Action, k: Real, scores: int) -> tuple[Query, TimeStep]:
    """The only step."""
    paid, first, fifth = (expected_ndcg(action, query.label, cut) for cut in (k, 1, 5))
    info = {"ndcg@1": first, "ndcg@5": fifth}
    over = jnp.ones((), bool)
    return query, TimeStep(_observe(query, scores), paid, over, ~over, info)


def _check_cut(k: Real, scores: int) -> None:
    require(scores >= 2, f"scores={scores} must be at least 2: with one, all documents tie.")
    if finite.scalar_check(k):
        whole = float(k).is_integer() and float(k) >= 1
        require(whole, f"k={float(k):g} must be a whole number, at least 1.")


# --------------------------------------------------------------------------------------------------
# The games


@struct
class Synthetic:
    """Queries drawn from a model in which an agent cannot know how far to trust what it sees.

    Document d of a query has relevance ``r_d ~ N(0, 1)`` and shows ``x_d = r_d + b`` with one offset
    ``b ~ N(0, sigma²)`` for all documents of the query, divided by ``sqrt(1 + sigma²)``. Its label is
    ``grades[rank of r_d]``. Who sees all documents ranks them perfectly, for the offset changes no
    order: the optimum is 1. Who sees its own cannot tell a good document from a good query, and how
    much that costs is set by ``sigma``; see :func:`decentralised_value`.
    """

    sigma: Real
    """Standard deviation of a query's offset, not negative."""
    grades: Float[AnyArray, "N"]
    """Labels by rank, the most relevant first."""
    k: Real
    """The last rank that counts."""
    noise: int = 0
    """Further features, which are N(0, 1) and say nothing."""
    scores: int = 10
    name: str = ""

    def __post_init__(self) -> None:
        _check_cut(self.k, self.scores)
        require(self.noise >= 0, f"noise={self.noise} must not be negative.")
        if finite.scalar_check(self.sigma):
            sigma = float(self.sigma)
            require(0 <= sigma < np.inf, f"sigma={sigma:g} must be finite and not negative.")
        grades = self.grades
        if isinstance(grades, np.ndarray) and grades.ndim == 1:
            valid = np.all((grades >= 0) & (grades <= _LARGEST_LABEL) & (grades % 1 == 0))
            require(
                bool(valid and len(grades) >= 2 and grades.max(initial=0) > 0),
                f"grades={grades.tolist()} must be two or more whole numbers from 0 to "
                f"{_LARGEST_LABEL}, not all 0.",
            )

    @property
    def spec(self) -> Spec:
        """Sizes; equal for all offsets."""
        return _spec(self.grades.shape[0], 1 + self.noise, self.scores, markov=True)

    def reset(self, key: Key) -> tuple[Query, Observation]:
        """Draw a query, at once."""
        n, width = self.grades.shape[0], 1 + self.noise
        sigma = jnp.asarray(self.sigma, jnp.float32)
        normal = jax.random.normal(key, (1 + n * width,))
        feature = normal[1:].reshape(n, width)
        relevance = feature[:, 0]
        rank = jnp.sum(relevance > relevance[:, None], axis=1)
        label = finite.one_hot(rank, n) @ jnp.asarray(self.grades, jnp.float32)
        shown = (relevance + sigma * normal[0]) / jnp.sqrt(1 + sigma**2)
        query = Query(feature.at[:, 0].set(shown), label)
        return query, _observe(query, self.scores)

    def step(self, key: Key, state: Query, action: Action) -> tuple[Query, TimeStep]:
        """Pay for the order. Draws nothing."""
        del key
        return _pay(state, action, self.k, self.scores)


@struct
class Table:
    """Queries of a data set; a reset draws one, and the order in which its documents are agents."""

    feature: Float[AnyArray, "Q N F"]
    """Scaled to about [-1, 1]."""
    label: Float[AnyArray, "Q N"]
    """Relevance, a whole number from 0; -1 where a query has no further document."""
    k: Real
    """The last rank that counts."""
    scores: int = 10
    name: str = ""

    def __post_init__(self) -> None:
        _check_cut(self.k, self.scores)
        label, feature = self.label, self.feature
        if isinstance(label, np.ndarray) and isinstance(feature, np.ndarray) and label.ndim == 2:
            require(
                feature.shape[:2] == label.shape and label.size > 0,
                f"feature of shape {feature.shape} and label of shape {label.shape} must be "
                "[Q, N, F] and [Q, N].",
            )
            top = label.max(initial=0)
            require(bool(top <= _LARGEST_LABEL), f"a label of {top:g} is above {_LARGEST_LABEL}.")
            require(
                bool((label.max(axis=1) > 0).all()),
                "every query needs a document with a label above 0: without, NDCG is 0 / 0.",
            )

    @property
    def spec(self) -> Spec:
        """Sizes. Labels are no function of the features, so that the state is not all that counts."""
        _, n, features = self.feature.shape
        return _spec(n, features, self.scores, markov=False)

    def reset(self, key: Key) -> tuple[Query, Observation]:
        """Draw a query and shuffle its documents: one draw."""
        count, n = self.label.shape
        uniform = jax.random.uniform(key, (1 + n,))
        # The product may round up to the number of queries itself.
        index = jnp.minimum((uniform[0] * count).astype(jnp.int32), count - 1)
        tag, place = uniform[1:], jnp.arange(n)
        before = (tag < tag[:, None]) | ((tag == tag[:, None]) & (place < place[:, None]))
        order = jnp.sum(before, axis=1)
        feature = jnp.asarray(self.feature)[index, order].astype(jnp.float32)
        query = Query(feature, jnp.asarray(self.label, jnp.float32)[index, order])
        return query, _observe(query, self.scores)

    def step(self, key: Key, state: Query, action: Action) -> tuple[Query, TimeStep]:
        """Pay for the order. Draws nothing."""
        del key
        return _pay(state, action, self.k, self.scores)


# --------------------------------------------------------------------------------------------------
# What documents that see only themselves can reach


def decentralised_value(env: Synthetic, *, queries: int = 5000, seed: int = 0) -> float:
    """NDCG of the best thresholds found for agents that score what they see, on fresh queries.

    All agents share ``scores - 1`` thresholds, at quantiles of ``x``. A random search moves some of
    them at a time and keeps what ranks ``queries`` queries better, from quantiles that are evenly
    spaced and from ones that are dense where the best documents are; the value is the better result's
    on as many other queries. Its standard error is about 0.002 for 5000 queries.
    """
    require(concrete(env.sigma, env.grades, env.k), "decentralised_value needs numbers, not tracers.")
    rng = np.random.default_rng(seed)
    train, test = (_drawn(env, rng, queries) for _ in range(2))
    shown = np.sort(train[0], axis=None)
    even = np.arange(1, env.scores) / env.scores
    found = [_searched(shown, at, train, rng) for at in (even, 1 - (1 - even) ** 2)]
    _, edges = max(found, key=lambda result: result[0])
    return _value(edges, *test)


def _searched(shown: np.ndarray, quantiles: np.ndarray, train: tuple, rng: Any) -> tuple:
    """Value and thresholds of a random search whose steps grow with success and shrink without."""
    edges, size = _quantile(shown, quantiles), 0.1
    best = _value(edges, *train)
    for _ in range(_TRIALS):
        moved = (rng.random(quantiles.shape) < 0.3) * rng.normal(size=quantiles.shape)
        tried = np.sort(np.clip(quantiles + size * moved, 0.0, 1.0))
        value = _value(_quantile(shown, tried), *train)
        size = max(size * 0.97, 0.005) if value <= best else min(size * 1.5, 0.3)
        if value > best:
            best, quantiles, edges = value, tried, _quantile(shown, tried)
    return best, edges


def _quantile(ordered: np.ndarray, share: np.ndarray) -> np.ndarray:
    return ordered[(share * (len(ordered) - 1)).astype(int)]


def _drawn(env: Synthetic, rng: np.random.Generator, queries: int) -> tuple[np.ndarray, ...]:
    """What is shown, gains over the best DCG, and weights of ranks up to 0, 1, …, N."""
    n = len(env.grades)
    relevance = rng.normal(size=(queries, n))
    shown = relevance + float(env.sigma) * rng.normal(size=(queries, 1))
    rank = np.argsort(np.argsort(-relevance, axis=1), axis=1)
    gain = np.exp2(np.asarray(env.grades, float)) - 1
    weight = 1 / np.log2(2 + np.arange(n)) * (np.arange(n) < float(env.k))
    best = np.sort(gain)[::-1] @ weight
    return shown, gain[rank] / best, np.concatenate([[0], np.cumsum(weight)])


def _value(edges: np.ndarray, shown: np.ndarray, gain: np.ndarray, upto: np.ndarray) -> float:
    """Mean NDCG of scores that count the thresholds below what is shown."""
    queries, scores = len(shown), len(edges) + 1
    said = np.searchsorted(edges, shown)
    cell = (said + scores * np.arange(queries)[:, None]).ravel()
    count = np.bincount(cell, minlength=queries * scores).reshape(queries, scores)
    last = np.cumsum(count[:, ::-1], axis=1)[:, ::-1]  # ranks taken by this score and all above it
    mean = (upto[last] - upto[last - count]) / np.maximum(count, 1)
    return float(gain.ravel() @ mean.ravel()[cell]) / queries


# --------------------------------------------------------------------------------------------------
# Construction


def synthetic(
    *,
    sigma: Real = 1.0,
    k: Real = 10,
    noise: int = 0,
    grades: tuple[int, ...] = _GRADES,
    scores: int = 10,
) -> Synthetic:
    """Documents that see their relevance plus an offset of their query; one document per grade."""
    return Synthetic(
        sigma=finite.number(sigma, "sigma"),
        grades=np.asarray(grades, np.float32),
        k=finite.number(k, "k"),
        noise=noise,
        scores=scores,
    )


def from_file(
    *,
    path: str,
    part: letor.Part = "train",
    documents: int = 10,
    shortest: int | None = None,
    queries: int = 10_000,
    share: float = 0.7,
    seed: int = 0,
    k: Real = 10,
    scores: int = 10,
    cache: str | None = None,
) -> Table:
    """Queries of a file in LETOR's format, e.g. of MSLR-WEB30K; see :func:`tad_envs.letor.sampled`."""
    feature, label = letor.sampled(
        path,
        part=part,
        documents=documents,
        shortest=shortest,
        queries=queries,
        share=share,
        seed=seed,
        cache=cache,
    )
    return Table(feature=feature, label=label, k=finite.number(k, "k"), scores=scores)
