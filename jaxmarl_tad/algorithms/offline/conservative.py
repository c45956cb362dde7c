"""Conservative Q-learning of a team, with one mixer or another.

    repeat, with B recorded steps (o, a, r, o')
        a'_i = argmax Q_i(τ'_i, ·) over legal actions                           (double Q-learning)
        G = r + γ mix(Q̄_1(τ'_1, a'_1), …, Q̄_N(τ'_N, a'_N); s')
        descend ½ (G − mix(Q_1(τ_1, a_1), …, Q_N(τ_N, a_N); s))² + c · penalty
        Q̄ ← Q̄ + τ (Q − Q̄), and the mixer's copy likewise

The penalty lowers what the data do not support, over legal actions alone:

    own              Σ_i log Σ_a exp w_i(s) Q_i(τ_i, a) − w_i(s) Q_i(τ_i, a_i)
    sampled          log Σ_k exp Q_tot(s, a^k) − Q_tot(s, a), K random joint actions and a itself
    counterfactual   Σ_i λ_i(s) log Σ_a exp Q_tot(s, a, a_{−i}) − Q_tot(s, a)

==========  ========  ==============  ==================================================
name        mixer     penalty         Q_tot
==========  ========  ==============  ==================================================
iql_cql     none      own (w_i = 1)   none: every agent's Q is of its own
cql_ma      linear    own             Σ_i w_i(s) Q_i + b(s)
qmix_cql    qmix      sampled         monotone
cfcql       qmix      counterfactual  monotone; λ_i = softmax_i of T · KL(m_i ‖ β_i)
==========  ========  ==============  ==================================================

Source: Kumar et al. 2020 (CQL), Formanek et al. 2024 (the first and third for a team), Wang et al. 2023
(the second, as a baseline of OMIGA), Shao et al. 2023 (CFCQL). With a linear mixer the sum over agents
*is* the log-sum-exp over joint actions, because that of a sum is the sum; with one agent CFCQL is CQL.
In CFCQL m_i is the soft-max over a_i of those Q_tot, and β_i a policy that imitates the data, here
learned beside (theirs is learned before, and targets are TD(λ)); T = 0 needs none and weighs all alike.

CQL-MA also takes continuous actions, with a policy μ_i and two critics of an action, both mixed with
the same w and b:

        G = r + γ min (Σ_i w̄_i(s') Q̄_i(o'_i, μ_i(τ'_i)) + b̄(s'))
        descend ½ (G − Q_tot)²
              + c Σ_i (log mean_k exp(w_i Q_i(o_i, a^k) − log p(a^k)) − w_i Q_i(o_i, a_i))
        descend −Σ_i w_i min Q_i(o_i, μ_i(τ_i)) + d μ_i²

a^k are as many uniform actions as near μ_i(τ_i) and near μ_i(τ'_i). The policy's loss is that of
Formanek et al. 2024; the public copy of the baseline weighs log π by Q as it is, without a base. The
lower critic is that of the team: what each agent's lower one is short of adds up over agents and steps
until Q has no bound.
Critics have no memory.

Differs from the published code in that illegal actions enter neither sums nor samples, that target
networks start as copies and follow slowly, and that truncated episodes bootstrap from their true final
observation. Acting without greed draws from the soft-max of Q_i.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_range, require, struct
from jaxmarl_tad.dataset import Dataset
from jaxmarl_tad.distributions import best, log_probabilities, taken
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.net import Kind, Remember
from jaxmarl_tad.offline import (
    Lesson,
    actor,
    descended,
    followed,
    lesson,
    linear_mixer,
    mixed,
    resolve_common,
    rows_of,
)
from jaxmarl_tad.offline.diagnostics import team_of, watch
from jaxmarl_tad.offline.numbers import critics, deterministic, soft_value, spread_out
from jaxmarl_tad.offline.teams import team
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.targets import beyond_death
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Observation, Spec


@struct
class Config:
    """Settings of conservative Q-learning."""

    total_steps: int = 1_000
    """Gradient steps of one member."""
    batch: int = 64
    """Recorded stretches in each gradient step; all steps if there are no more."""
    window: int | None = None
    """Steps of a stretch; 20 with memory and 1 without unless given."""
    conservative: Real = 1.0
    """Weight c of the penalty."""
    mixer: Literal["none", "linear", "qmix"] = "linear"
    """How utilities make the team's value."""
    penalty: Literal["own", "sampled", "counterfactual"] = "own"
    """What is lowered."""
    samples: int = 10
    """Random joint actions of the sampled penalty. Continuous: actions of each of three kinds."""
    focus: Real = 0.0
    """Temperature T of λ in the counterfactual penalty, at least 0."""
    spread: Real = 0.2
    """Continuous: standard deviation around μ of CQL's actions, as a share of half the range."""
    action_coef: Real = 1e-3
    """Continuous: weight d of the mean square of μ."""
    lr: Real | None = None
    """Adam's learning rate; 0.1 for tables and 1e-3 for other networks unless given."""
    critic_lr: Real = 1e-2
    """Continuous: that of critics with their mixer, of which the former are perceptrons."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    target_update: Real = 0.05
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient."""
    mix_hidden: int = 64
    """Hidden width of the network that makes the mixer's weights."""
    embed: int = 32
    """Width of QMIX's mixing layer."""
    memory: Remember = "none"
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = (self.batch, self.mix_hidden, self.samples, self.embed)
        require(min(sizes) >= 1, "conservative: sizes must be positive.")
        require(
            (self.penalty == "own") == (self.mixer != "qmix"),
            f"conservative: penalty={self.penalty!r} is not for mixer={self.mixer!r}; QMIX takes "
            "'sampled' or 'counterfactual', and the others take 'own'.",
        )
        check_range(self, gamma=(0, 1), target_update=(0, 1))
        check_range(self, conservative=(0, float("inf")), focus=(0, float("inf")))
        check_range(self, critic_lr=(0, float("inf")), spread=(1e-3, float("inf")))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    return resolve_common(config, spec, for_tables=0.1)


class Params(NamedTuple):
    """Parameters: of the utilities with their mixer, of the imitation where λ needs one, and of μ."""

    q: Any
    behaviour: Any = ()
    policy: Any = ()


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Any
    """Of the utilities with their mixer."""
    optimiser: Params


def make(config: Config, data: Dataset) -> Algorithm:
    """The learner on ``data``; ``config`` as returned by :func:`resolve`."""
    return (of_choices if data.spec.discrete else of_numbers)(config, data)


def of_choices(config: Config, data: Dataset) -> Algorithm:
    """The learner of discrete actions."""
    spec = data.spec
    assert config.lr is not None and config.window is not None
    base, window = config.lr, config.window
    own, mixing, imitation = (
        rows_of(config, spec, spec.n_actions),
        team(config, spec),
        actor(config, spec),
    )
    imitates = config.penalty == "counterfactual"
    optimiser, compared = adam(config.max_grad_norm), watch(data, config.gamma)

    def utilities(params: Any, seen: Lesson) -> Array:
        """Q_i(τ_i, ·) in every row."""
        return own.apply(params["own"], seen.seen, seen.first)

    def total(params: Any, q: Array, action: Array, seen: Observation) -> Array:
        return mixing.total(params["mixer"], taken(q, action), seen)

    def beyond(params: Any, target: Any, q: Array, seen: Lesson) -> Array:
        """The target networks' value of the best actions in what followed."""
        ahead = jax.tree.map(lambda x: x[1:], seen.seen)
        following = best(q[1:], ahead.legal)
        value = total(target, utilities(target, seen)[1:], following, ahead)
        return beyond_death(value, ahead.alive) if config.mixer == "none" else value

    def each_own(params: Any, q: Array, seen: Lesson) -> Array:
        weighed = mixing.weighed(params["mixer"], q, seen.now)
        gap = soft_highest(weighed, seen.now.legal) - taken(weighed, seen.action)
        if config.mixer == "none":
            return masked_mean(gap, seen.counts)
        return masked_mean(jnp.sum(jnp.where(seen.counts, gap, 0.0), axis=-1), seen.valid)

    def sampled(params: Any, q: Array, value: Array, seen: Lesson, key: Key) -> Array:
        log_probs = log_probabilities(jnp.zeros_like(q), seen.now.legal)
        uniform = jax.random.uniform(key, (config.samples, *q.shape[:-1]))
        cdf = distributions.cumulative(log_probs)
        drawn = jax.vmap(lambda u: distributions.draw(u, cdf))(uniform)
        others = jax.vmap(lambda a: total(params, q, a, seen.now))(drawn)
        every = jax.nn.logsumexp(jnp.concatenate([others, value[None]]), axis=0)
        return masked_mean((every - value)[..., 0], seen.valid)

    def counterfactual(params: Params, q: Array, value: Array, seen: Lesson) -> Array:
        """What Q_tot is where one agent does anything else."""
        now, chosen = seen.now, taken(q, seen.action)

        # Agent i takes action a instead: [N, A, T, B, N] utilities. They are laid in one row, because
        # with an axis more XLA's runtime for CPUs crashes (jax 0.10.2).
        who = jnp.eye(spec.n_agents, dtype=bool)[:, None, None, None]
        changed = jnp.where(who, jnp.moveaxis(q, -1, 0), chosen)
        flat = changed.reshape(-1, *chosen.shape)
        grid = jax.vmap(lambda x: mixing.total(params.q["mixer"], x, now)[..., 0])(flat)
        grid = jnp.moveaxis(grid, 0, -1).reshape(*chosen.shape, -1)  # [T, B, N, A]
        counts = seen.counts
        told = imitation.outputs(params.behaviour, seen)[:-1]
        apart = distributions.kl(log_probabilities(grid, now.legal), log_probabilities(told, now.legal))
        apart = jnp.where(counts, config.focus * apart, distributions.IMPOSSIBLE)
        share = jnp.where(counts, jax.nn.softmax(apart, axis=-1), 0.0)
        every = jnp.where(counts, soft_highest(grid, now.legal), 0.0)
        lowered = jnp.sum(jax.lax.stop_gradient(share) * every, axis=-1)
        return masked_mean(lowered - value[..., 0], seen.valid)

    def loss(params: Params, target: Any, seen: Lesson, key: Key) -> tuple[Array, Metrics]:
        q = utilities(params.q, seen)
        value = total(params.q, q[:-1], seen.action, seen.now)
        next_value = jax.lax.stop_gradient(beyond(params.q, target, q, seen))
        over = seen.terminated[..., None]
        goal = seen.reward[..., None] + jnp.where(over, 0.0, config.gamma * next_value)
        counts = seen.counts if config.mixer == "none" else seen.valid[..., None]
        error = masked_mean(0.5 * (goal - value) ** 2, counts)
        report = {"loss": error, "q": masked_mean(value, counts)}
        report |= compared.of_value(seen, team_of(value, counts))
        if config.penalty == "own":
            penalty = each_own(params.q, q[:-1], seen)
        elif config.penalty == "sampled":
            penalty = sampled(params.q, q[:-1], value, seen, key)
        else:
            penalty = counterfactual(params, q[:-1], value, seen)
        slope = error + config.conservative * penalty
        if imitates:
            told = compared.of_policy(seen, imitation.log_prob(params.behaviour, seen))
            slope, report = slope - told["log_prob"], report | told
        return slope, report | {"penalty": penalty}

    def init(key: Key) -> State:
        q_key, mixer_key, behaviour_key = jax.random.split(key, 3)
        q = {"own": own.init(q_key), "mixer": mixing.init(mixer_key)}
        params = Params(q, imitation.init(behaviour_key) if imitates else ())
        return State(params, q, Params(*map(optimiser.init, params)))

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        lesson_key, sample_key = jax.random.split(key)
        seen = lesson(data, lesson_key, config.batch, window)
        slopes, report = jax.grad(loss, has_aux=True)(state.params, state.target, seen, sample_key)
        lr = base * (1 - (1 - config.lr_end) * progress)
        params, optimisers = descended(optimiser, slopes, state.optimiser, state.params, (lr, lr, lr))
        return State(params, followed(state.target, params.q, config.target_update), optimisers), report

    def policy(state: State, *, greedy: bool) -> Policy:
        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            q, memory = own.act(state.params.q["own"], memory, observation)
            uniform = jax.random.uniform(key, (spec.n_agents,))
            log_probs = log_probabilities(q, observation.legal)
            return distributions.decide(uniform, log_probs, greedy)[0], memory, {"q": q}

        return Policy(start=own.start, act=act, execution="decentralised")

    return Algorithm(init, step, policy)


def soft_highest(q: Array, legal: Array) -> Array:
    """log Σ exp over legal actions."""
    return jax.nn.logsumexp(jnp.where(legal, q, distributions.IMPOSSIBLE), axis=-1)


# --- continuous actions ---------------------------------------------------------------------------


def of_numbers(config: Config, data: Dataset) -> Algorithm:
    """The learner of continuous actions, with a linear mixer."""
    spec = data.spec
    assert config.lr is not None and config.window is not None
    lr, window = config.lr, config.window
    actors, mixing = rows_of(config, spec, spec.action_dim), linear_mixer(config, spec)
    acting = deterministic(actors, spec, config.spread)
    init_critics, value = critics(config, spec)
    optimiser, compared = adam(config.max_grad_norm), watch(data, config.gamma)
    last = jax.lax.stop_gradient

    def loss(params: Params, target: Any, seen: Lesson, key: Key) -> tuple[Array, Metrics]:
        now, ahead = seen.now, jax.tree.map(lambda x: x[1:], seen.seen)
        out = jnp.tanh(actors.apply(params.policy, seen.seen, seen.first))
        # Both critics to the value of what the policy would do next.
        later = value(target["own"], ahead, seen.first[1:], last(out)[1:])
        beyond = mixed(mixing.weights(target["mixer"], ahead), later).min(0)
        goal = last(seen.reward + jnp.where(seen.terminated, 0.0, config.gamma * beyond))
        w, b = mixing.weights(params.q["mixer"], now)
        q = value(params.q["own"], now, seen.first[:-1], seen.action)
        total = mixed((w, b), q)
        error = jnp.sum(jax.vmap(lambda x: masked_mean(0.5 * x**2, seen.valid))(goal - total))
        # What nobody did is held down, of each agent by itself.
        actions, densities = spread_out(key, seen, last(out), config.samples, config.spread)

        def weighed(action: Array) -> Array:
            return w * value(params.q["own"], now, seen.first[:-1], action)

        gap = jnp.where(seen.counts, soft_value(weighed, actions, densities) - w * q, 0.0)
        penalty = jnp.mean(jax.vmap(lambda x: masked_mean(x, seen.valid))(gap.sum(-1)))
        # The policy climbs what both critics grant.
        climbed = last(w) * value(last(params.q["own"]), now, seen.first[:-1], out[:-1]).min(0)
        dimensions = seen.counts[..., None] & now.legal
        size = masked_mean(out[:-1] ** 2, dimensions)
        policy_loss = config.action_coef * size - masked_mean(climbed, seen.counts)
        report = {
            "loss": error,
            "q": masked_mean(total[0], seen.valid),
            "penalty": penalty,
            "policy_q": masked_mean(climbed, seen.counts),
            **compared.of_value(seen, total[0]),
        }
        return error + config.conservative * penalty + policy_loss, report

    def init(key: Key) -> State:
        q_key, mixer_key, actor_key = jax.random.split(key, 3)
        q = {"own": init_critics(q_key), "mixer": mixing.init(mixer_key)}
        params = Params(q, policy=actors.init(actor_key))
        return State(params, q, Params(*map(optimiser.init, params)))

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        lesson_key, sample_key = jax.random.split(key)
        seen = lesson(data, lesson_key, config.batch, window)
        slopes, report = jax.grad(loss, has_aux=True)(state.params, state.target, seen, sample_key)
        left = 1 - (1 - config.lr_end) * progress
        rates = (config.critic_lr * left, lr * left, lr * left)
        params, optimisers = descended(optimiser, slopes, state.optimiser, state.params, rates)
        return State(params, followed(state.target, params.q, config.target_update), optimisers), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return acting(state.params.policy, greedy=greedy)

    return Algorithm(init, step, policy)
