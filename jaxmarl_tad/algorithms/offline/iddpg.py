"""Deterministic policies of continuous actions from data: IDDPG+BC, IDDPG+CQL, OMAR and MADDPG+CQL.

    repeat, with B recorded steps (o, a, r, o')
        G = r + γ min over two critics of Q̄_i(τ'_i, μ̄_i(τ'_i))
        descend ½ (G − Q_i(τ_i, a_i))² for both critics                            (TD3)
              + c (log Σ_k exp(Q_i(τ_i, a^k) − log p(a^k)) − log K − Q_i(τ_i, a_i))   (CQL)
        descend −(1 − h) λ Q_i(τ_i, μ_i) + h (μ_i − â_i)² + b (μ_i − a_i)² + d μ_i²
        Q̄, μ̄ ← the same + τ (Q, μ − …)

==========  ========  ===  =====  ===  ===================  ========================================
name        critic    c    h      b    λ                    source
==========  ========  ===  =====  ===  ===================  ========================================
iddpg_bc    local     0    0      1    2.5 / mean of |Q|    Fujimoto & Gu 2021; Formanek et al. 2024
iddpg_cql   local     1    0      0    1                    Kumar et al. 2020
omar        local     1    0.5    0    1                    Pan et al. 2022
maddpg_cql  state     1    0      0    1                    Formanek et al. 2024
==========  ========  ===  =====  ===  ===================  ========================================

OMAR's â_i is the best action that a search finds: K draws of a normal distribution, which is refitted
to the best E of them, in a few rounds; then the best of all that were drawn and of μ_i, by the first
critic, and nothing of it passes a gradient. With h = 0 it is IDDPG+CQL. The a^k of CQL are as many
uniform ones as near μ_i(τ_i) and near μ_i(τ'_i), all valued in τ_i, each by its density. With
``critic="state"`` every agent's critic sees the state and all actions, of which the others' are the
recorded ones where its own is varied.

λ is held still. ``scaling="published"`` lets its gradient through, as the published code of IDDPG+BC
does: where all Q of a batch have one sign, λ Q is then constant, and what is left is imitation.
Differs besides in that target networks start as copies, and that truncated episodes bootstrap from
their true final observation. Critics have no memory.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmarl_tad.config import Real, check_range, require, struct
from jaxmarl_tad.dataset import Dataset
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.net import Kind, Remember
from jaxmarl_tad.offline import Lesson, descended, followed, lesson, resolve_common, rows_of
from jaxmarl_tad.offline.diagnostics import team_of, watch
from jaxmarl_tad.offline.numbers import critics, deterministic, soft_value, spread_out
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.targets import beyond_death
from jaxmarl_tad.types import Activation, Algorithm, Key, Metrics, Policy
from tad_envs import Spec


@struct
class Config:
    """Settings of deterministic policies from data."""

    total_steps: int = 500
    """Gradient steps of one member."""
    batch: int = 32
    """Recorded stretches in each gradient step; all steps if there are no more."""
    window: int | None = None
    """Steps of a stretch; 20 with memory and 1 without unless given."""
    form: Literal["bc", "cql", "omar"] = "cql"
    """What keeps the policy near the data: imitation, CQL's penalty, or that with a search."""
    imitation: Real = 1.0
    """``bc``: weight b of the squared distance to the recorded action."""
    conservative: Real = 1.0
    """``cql`` and ``omar``: weight c of CQL's penalty."""
    samples: int = 4
    """Actions of each of CQL's three kinds."""
    spread: Real = 0.2
    """Standard deviation around μ of CQL's actions, as a share of half the range; positive."""
    search: Real = 0.5
    """``omar``: share h of the distance to the searched action in the policy's loss, in [0, 1]."""
    rounds: int = 2
    """Of the search."""
    draws: int = 10
    """In each round."""
    elites: int = 5
    """Of these, to which the normal distribution is refitted."""
    first_spread: Real = 2.0
    """Its standard deviation at first, as a share of half the range."""
    scaling: Literal["none", "stopped", "published"] | None = None
    """Whether λ follows the size of Q, and whether as published; ``stopped`` for ``bc`` and else
    ``none`` unless given."""
    scale: Real = 2.5
    """λ times the mean of \\|Q\\|, where it does."""
    action_coef: Real = 1e-3
    """Weight d of the mean square of actions."""
    critic: Literal["local", "state"] = "local"
    """What critics see: their agent's row and action, or the state and all actions."""
    lr: Real | None = None
    """Adam's rate for the policies; 0.05 for tables and 1e-3 for other networks unless given."""
    critic_lr: Real = 1e-2
    """That of the critics, which are perceptrons."""
    lr_end: Real = 0.0
    """Share of both that is left at the end; they fall linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    target_update: Real = 0.05
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for policies and critics each."""
    memory: Remember = "none"
    """What the policies have."""
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Of the policies: tables for finite games without memory, else perceptrons, unless given."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = (self.batch, self.samples, self.rounds, self.draws, self.elites)
        require(min(sizes) >= 1, "iddpg: sizes must be positive.")
        require(
            self.elites <= self.draws,
            f"iddpg: elites={self.elites} must be at most draws={self.draws}.",
        )
        check_range(self, gamma=(0, 1), target_update=(0, 1), search=(0, 1))
        check_range(self, critic_lr=(0, float("inf")), conservative=(0, float("inf")))
        check_range(self, spread=(1e-3, float("inf")), imitation=(0, float("inf")))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    scaling = "stopped" if config.form == "bc" else "none"
    return resolve_common(config, spec) | {"scaling": config.scaling or scaling}


class Params(NamedTuple):
    """Parameters: of the policies, and of both critics."""

    policy: Any
    critic: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Params
    optimiser: Params


def make(config: Config, data: Dataset) -> Algorithm:
    """The learner on ``data``; ``config`` as returned by :func:`resolve`."""
    spec = data.spec
    assert config.lr is not None and config.window is not None
    lr, window = config.lr, config.window
    actors = rows_of(config, spec, spec.action_dim)
    acting = deterministic(actors, spec, config.spread)
    init_critics, value = critics(config, spec, joint=config.critic == "state")
    optimiser, compared = adam(config.max_grad_norm), watch(data, config.gamma)
    last = jax.lax.stop_gradient

    def mean(x: Array, seen: Lesson) -> Array:
        """Mean square over the dimensions that count."""
        counts = seen.counts[..., None] & seen.now.legal
        return masked_mean(x**2, jnp.broadcast_to(counts, x.shape))

    def conservative(params: Any, q: Array, out: Array, seen: Lesson, key: Key) -> Array:
        """What both critics hold of many actions, less what they hold of the recorded ones."""
        actions, densities = spread_out(key, seen, out, config.samples, config.spread)

        def held(action: Array) -> Array:
            return value(params, seen.now, seen.first[:-1], action, seen.action)

        every = soft_value(held, actions, densities)
        return jnp.mean(jax.vmap(lambda gap: masked_mean(gap, seen.counts))(every - q))

    def searched(params: Any, mu: Array, seen: Lesson, key: Key) -> Array:
        """The best actions that are found, of each agent by itself."""
        noise = jax.random.normal(key, (config.rounds, config.draws, *mu.shape))
        first = jax.tree.map(lambda x: x[:1], params)  # the first critic

        def judged(action: Array) -> Array:
            return value(first, seen.now, seen.first[:-1], action, seen.action)[0]

        def narrower(normal: tuple[Array, Array, Array, Array], noise: Array) -> tuple[Any, None]:
            centre, deviation, found, worth = normal
            drawn = jnp.clip(centre + deviation * noise, -1.0, 1.0)
            told = jax.vmap(judged)(drawn)
            rows = jax.lax.top_k(jnp.moveaxis(told, 0, -1), config.elites)[1]
            best = jnp.take_along_axis(drawn, jnp.moveaxis(rows, -1, 0)[..., None], axis=0)
            better = told.max(0) > worth
            found = jnp.where(better[..., None], best[0], found)
            return (best.mean(0), best.std(0), found, jnp.maximum(worth, told.max(0))), None

        start = (jnp.zeros_like(mu), jnp.full_like(mu, config.first_spread), mu, judged(mu))
        return jax.lax.scan(narrower, start, noise)[0][2]

    def loss(params: Params, target: Params, seen: Lesson, key: Key) -> tuple[Array, Metrics]:
        sample_key, search_key = jax.random.split(key)
        now, ahead = seen.now, jax.tree.map(lambda x: x[1:], seen.seen)
        following = jnp.tanh(actors.apply(target.policy, seen.seen, seen.first))[1:]
        later = value(target.critic, ahead, seen.first[1:], following, following).min(0)
        later = beyond_death(later, ahead.alive)
        over = seen.terminated[..., None]
        goal = last(seen.reward[..., None] + jnp.where(over, 0.0, config.gamma * later))
        q = value(params.critic, now, seen.first[:-1], seen.action, seen.action)
        error = jnp.sum(jax.vmap(lambda x: masked_mean(0.5 * x**2, seen.counts))(goal - q))

        out = jnp.tanh(actors.apply(params.policy, seen.seen, seen.first))
        mu, fixed = out[:-1], last(params.critic)
        climbed = value(fixed, now, seen.first[:-1], mu, seen.action)[0]
        size = masked_mean(jnp.abs(climbed), seen.counts)
        share = config.scale / jnp.maximum(size if config.scaling == "published" else last(size), 1e-6)
        share = share if config.scaling != "none" else 1.0
        report = {"loss": error, "q": masked_mean(q[0], seen.counts)}
        report |= compared.of_value(seen, team_of(q[0], seen.counts))
        ascent = share * masked_mean(climbed, seen.counts)
        policy_loss = config.action_coef * mean(mu, seen)
        if config.form == "bc":
            policy_loss = policy_loss + config.imitation * mean(mu - seen.action, seen)
        if config.form == "omar":
            aim = last(searched(fixed, mu, seen, search_key))
            ascent = (1 - config.search) * ascent
            policy_loss = policy_loss + config.search * mean(mu - aim, seen)
        if config.form != "bc":
            penalty = conservative(params.critic, q, last(out), seen, sample_key)
            error, report = error + config.conservative * penalty, report | {"penalty": penalty}
        report = report | {"policy_q": masked_mean(climbed, seen.counts)}
        return error + policy_loss - ascent, report

    def init(key: Key) -> State:
        actor_key, critic_key = jax.random.split(key)
        params = Params(actors.init(actor_key), init_critics(critic_key))
        return State(params, params, Params(*map(optimiser.init, params)))

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        lesson_key, loss_key = jax.random.split(key)
        seen = lesson(data, lesson_key, config.batch, window)
        slopes, report = jax.grad(loss, has_aux=True)(state.params, state.target, seen, loss_key)
        left = 1 - (1 - config.lr_end) * progress
        rates = (lr * left, config.critic_lr * left)
        params, optimisers = descended(optimiser, slopes, state.optimiser, state.params, rates)
        target = followed(state.target, params, config.target_update)
        return State(params, target, optimisers), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return acting(state.params.policy, greedy=greedy)

    return Algorithm(init, step, policy)
