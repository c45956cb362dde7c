"""Selective parameter sharing: agents that would learn the same share a set of parameters.

    collect transitions (o, a, o', r) of random play
    for minibatches of (agent i, o_i, a_i, o_i', r):
        z ~ N(μ_i, σ_i²) with (μ_i, σ_i) = encoder(i);   (ô', r̂) = decoder(z, o_i, a_i)
        descend  |(o_i', r) − (ô', r̂)|² + β KL(N(μ_i, σ_i²) || N(0, 1))
    for K = 2 … N − 1: k-means on the μ_i
    keep the K with the least Davies-Bouldin index of the clouds N(μ_i, σ_i²)

Source: Christianos et al. 2021 (Scaling Multi-Agent Reinforcement Learning with Selective Parameter
Sharing), section 4. The encoder is told nothing but who the agent is, so that agents come to lie at one
place if the same things happen to them. Differs in that each feature of (o', r) is standardised, so
that a reward counts beside large observations; that the reward is the team's; that the encoder
begins with all agents in one place; that β is 3e-4 and not 1e-4; and in the index. That of the means
alone takes a set of one agent for infinitely narrow, and so finds nearly as many sets as agents: here
an agent is the cloud that the decoder is given, and a set of one has a width as well. One set for all
and one set each are ``sharing="full"`` and ``"none"``: the index does not value them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmarl_tad import programs
from jaxmarl_tad.config import require
from jaxmarl_tad.networks.net import network
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.rollout import begin, keys, rollout
from jaxmarl_tad.sharing import numbered
from jaxmarl_tad.types import Key, Memory, Policy
from tad_envs import Environment, Observation, Spec, random_action

_RESTARTS, _MOST_ROUNDS = 20, 100


class Settings(NamedTuple):
    """Sizes and rates of the search for an assignment."""

    steps: int = 512
    """Steps of random play in each environment."""
    envs: int = 16
    """Environments played in at once."""
    updates: int = 2000
    """Gradient steps of encoder and decoder."""
    batch: int = 128
    """Pairs of an agent and a step in each of them."""
    features: int = 10
    """Size of z."""
    hidden: int = 64
    """Width of the hidden layers: one of the encoder's, two of the decoder's."""
    lr: float = 3e-3
    """Adam's learning rate at first; it falls linearly to 0."""
    beta: float = 3e-4
    """β, the weight of the divergence from N(0, 1)."""


def selective(
    env: Environment | str, *, seed: int = 0, sets: int | None = None, **settings: Any
) -> tuple[int, ...]:
    """The parameter set of each agent, for ``run(..., sharing=selective(env))``.

    ``run(..., sharing="selective")`` is the same with seed 0. The answer depends on the arguments
    alone; a run keeps it among its settings, so that to resume or load it finds nothing anew.

    Args:
        env: The game, or its name.
        seed: Of random play and of the encoder.
        sets: How many parameter sets; chosen between 2 and N − 1 unless given.
        **settings: Fields of :class:`Settings`.

    Raises:
        ValueError: ``sets`` cannot be, or is not given for fewer than three agents.
    """
    if isinstance(env, str):
        from tad_envs import make

        env = make(env)
    n = env.spec.n_agents
    require(
        n >= 3 or sets is not None,
        f"sharing='selective' chooses between 2 and N − 1 sets, and {env.name!r} has {n} agents; use "
        "sharing='none' or 'full'.",
    )
    require(sets is None or 1 <= sets <= n, f"sets={sets} must lie between 1 and {n}, one per agent.")
    known = Settings(**settings)
    program, _ = programs.compiled(_encode, known, env, np.asarray(seed, np.int32))
    means, deviations = np.asarray(program.call(env, np.asarray(seed, np.int32)), np.float64)
    if sets is not None:
        return numbered(kmeans(means, sets, seed))
    return numbered(best_groups(means, deviations, range(2, n), seed))


def _encode(settings: Settings, env: Environment, seed: Any) -> Array:
    return encode(env, jax.random.key(seed), settings)


# --- encoding who agents are ------------------------------------------------------------------------


def encode(
    env: Environment,
    key: Key,
    settings: Settings = Settings(),  # noqa: B008
) -> Float[Array, "2 N Z"]:
    """μ_i and σ_i of every agent, learned from random play."""
    spec, n = env.spec, env.spec.n_agents
    play_key, init_key, learn_key = keys(key, 3)
    policy = _random_play(spec)
    actors = begin(env, policy, jax.random.fold_in(key, 0), settings.envs)
    _, seen = rollout(env, policy, play_key, actors, settings.steps)

    rows = settings.steps * settings.envs
    flat = lambda x: x.reshape(rows, *x.shape[2:])  # noqa: E731
    acted = jax.nn.one_hot(seen.action, spec.n_actions) if spec.discrete else seen.action
    reward = jnp.broadcast_to(seen.reward[..., None, None], (*seen.observation.alive.shape, 1))
    given = flat(jnp.concatenate([seen.observation.agents, acted], -1))
    alive = flat(seen.observation.alive).astype(jnp.float32)
    target = flat(jnp.concatenate([seen.next.agents, reward], -1))
    target = _standardised(target, alive[..., None])

    z = settings.features
    kind = {"activation": "relu", "layer_norm": False}
    encoder = network("mlp", inputs=n, outputs=2 * z, hidden=(settings.hidden,), gain=0.01, **kind)
    inputs = z + given.shape[-1]
    width = (settings.hidden, settings.hidden)
    decoder = network("mlp", inputs=inputs, outputs=target.shape[-1], hidden=width, **kind)
    optimiser = adam(10.0)

    def gaussians(params: Any) -> tuple[Array, Array]:
        """μ and log σ² of all agents, ``[N, Z]`` each."""
        mean, log_variance = jnp.split(encoder.apply(params["encoder"], (), jnp.eye(n))[0], 2, axis=-1)
        return mean, log_variance

    def loss(params: Any, row: Array, agent: Array, noise: Array) -> Array:
        mean, log_variance = gaussians(params)
        code = mean[agent] + jnp.exp(0.5 * log_variance[agent]) * noise
        told = decoder.apply(params["decoder"], (), jnp.concatenate([code, given[row, agent]], -1))[0]
        error = jnp.sum((target[row, agent] - told) ** 2, -1)
        kl = 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance, -1)
        return jnp.mean(alive[row, agent] * (error + settings.beta * kl[agent]))

    def update(carry: tuple[Any, Any], i: Array) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        drawn_key = jax.random.fold_in(learn_key, i)
        drawn = jax.random.normal(drawn_key, (settings.batch, z + 1))
        # One flat draw: the last number of each line tells which row and which agent.
        place = jax.scipy.stats.norm.cdf(drawn[:, -1])
        pair = jnp.minimum((place * (rows * n)).astype(jnp.int32), rows * n - 1)
        slope = jax.grad(loss)(params, pair // n, pair % n, drawn[:, :-1])
        rate = settings.lr * (1 - i / settings.updates)
        return optimiser.update(slope, state, params, rate), None

    encoder_key, decoder_key = keys(init_key, 2)
    params = {"encoder": encoder.init(encoder_key), "decoder": decoder.init(decoder_key)}
    started = (params, optimiser.init(params))
    (params, _), _ = jax.lax.scan(update, started, jnp.arange(settings.updates))
    mean, log_variance = gaussians(params)
    return jnp.stack([mean, jnp.exp(0.5 * log_variance)])


def _random_play(spec: Spec) -> Policy:
    """Uniform play over legal actions, or over the range of continuous ones."""

    def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
        return random_action(spec, key, observation), memory, {}

    return Policy(start=lambda: (), act=act, execution="decentralised")


def _standardised(x: Float[Array, "R N F"], weight: Float[Array, "R N 1"]) -> Float[Array, "R N F"]:
    """Each feature with mean 0 and deviation 1 over all agents' rows; a constant one becomes 0."""
    total = jnp.maximum(jnp.sum(weight), 1)
    centred = x - jnp.sum(weight * x, (0, 1)) / total
    deviation = jnp.sqrt(jnp.sum(weight * centred**2, (0, 1)) / total)
    return centred / jnp.maximum(deviation, 1e-4)


# --- grouping them ----------------------------------------------------------------------------------


def best_groups(
    means: Float[np.ndarray, "N Z"],
    deviations: Float[np.ndarray, "N Z"],
    counts: Sequence[int],
    seed: int = 0,
) -> tuple[int, ...]:
    """The groups of the number of sets, out of ``counts``, with the least Davies-Bouldin index."""
    found = [kmeans(means, count, seed) for count in counts]
    return min(found, key=lambda groups: davies_bouldin(means, deviations, groups))


def kmeans(points: Float[np.ndarray, "N Z"], sets: int, seed: int = 0) -> tuple[int, ...]:
    """The group of each point: k-means (Lloyd 1982) from the starts of k-means++, the best of many."""
    draw = np.random.default_rng(seed)
    runs = [_lloyd(points, _spread_out(points, sets, draw)) for _ in range(_RESTARTS)]
    return min(runs, key=lambda run: run[0])[1]


def _spread_out(points: np.ndarray, sets: int, draw: np.random.Generator) -> np.ndarray:
    """First centres: each next one a point drawn in proportion to its squared distance to them."""
    centres = points[draw.integers(len(points))][None]
    while len(centres) < sets:
        distance = ((points[:, None] - centres) ** 2).sum(-1).min(1)
        total = distance.sum()
        share = distance / total if total > 0 else np.full(len(points), 1 / len(points))
        centres = np.concatenate([centres, points[draw.choice(len(points), p=share)][None]])
    return centres


def _lloyd(points: np.ndarray, centres: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """The sum of squared distances that rounds of assigning and averaging end with, and the groups."""
    groups = np.full(len(points), -1)
    for _ in range(_MOST_ROUNDS):
        distance = ((points[:, None] - centres) ** 2).sum(-1)
        new = distance.argmin(1)
        for empty in set(range(len(centres))) - set(new.tolist()):
            counts = np.bincount(new, minlength=len(centres))
            own = np.where(counts[new] > 1, distance[np.arange(len(points)), new], -1.0)
            new[own.argmax()] = empty  # the point that fits worst, of a group that can spare it
        if (new == groups).all():
            break
        groups = new
        centres = np.stack([points[groups == k].mean(0) for k in range(len(centres))])
    error = float(((points - centres[groups]) ** 2).sum())
    return error, tuple(groups.tolist())


def davies_bouldin(
    means: Float[np.ndarray, "N Z"], deviations: Float[np.ndarray, "N Z"], groups: tuple[int, ...]
) -> float:
    """Mean over groups i of max_j (S_i + S_j) / M_ij (Davies and Bouldin 1979, q = 2); less is better.

    M is the distance of two groups' centres, S the root mean square distance of what is drawn from a
    group's clouds N(μ, σ²) to its centre.
    """
    members = [np.flatnonzero(np.asarray(groups) == k) for k in sorted(set(groups))]
    centres = np.stack([means[own].mean(0) for own in members])
    square = lambda own: ((means[own] - means[own].mean(0)) ** 2 + deviations[own] ** 2).sum(-1)  # noqa: E731
    widths = np.sqrt([square(own).mean() for own in members])
    apart = np.linalg.norm(centres[:, None] - centres, axis=-1)
    np.fill_diagonal(apart, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num((widths[:, None] + widths) / apart, nan=np.inf, posinf=np.inf)
    return float(ratio.max(1).mean())
