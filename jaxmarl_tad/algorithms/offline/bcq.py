"""BCQ-MA: batch-constrained Q-learning of a team.

Of discrete actions:

    repeat, with B recorded steps (o, a, r, o')
        descend −Σ_i log β_i(a_i | τ_i)                                              (what was done)
        a'_i = argmax Q_i(τ'_i, ·) over {a: β_i(a | τ'_i) ≥ f · max β_i(· | τ'_i)}
        Q_tot = Σ_i w_i(s) Q_i(τ_i, a_i) + b(s)
        descend ½ (r + γ Q̄_tot(s', a') − Q_tot(s, a))²
        Q̄, w̄, b̄ ← the same + τ (Q, w, b − …)
    act: the best Q_i among the actions that β_i has by the same rule

Of continuous actions, where x_i(z) = clip(a + ξ_i(o_i, a)), |ξ| ≤ e, is a changed draw a of D_i:

        m, v = encoder(o_i, a_i), z = m + √v ε
        descend (D_i(τ_i, z) − a_i)² + ½ κ (m² + v − 1 − log v)                      (what was done)
        Q̄'_i = max over K draws z of ¾ min Q̄_i(o'_i, x̄_i(z)) + ¼ max Q̄_i(o'_i, x̄_i(z)), of two critics
        descend ½ (r + γ (Σ_i w̄_i(s') Q̄'_i + b̄(s')) − Q_tot(s, a))² of both
        descend −Q_i(o_i, x_i(z))                                                    (ξ, by the first)
    act: the best of ``tries`` draws, by the first critic

Source: Fujimoto et al. 2019 (both forms), Formanek et al. 2024 (for a team, f = 0.4), Wang et al. 2023
(with this mixer, as a baseline of OMIGA). With f = 0 it is Q-learning, with f = 1 it does what was done
most. Acting without greed draws from β_i among those actions, or takes one draw of D_i. Draws of z are
cut off at ±½. D_i may have memory, which holds its own z too; encoder, ξ and critics have none. Differs
from the published code in that illegal actions have no probability, that target networks start as
copies, that encoder and decoder are used as they were trained, and that truncated episodes bootstrap
from their true final observation.
"""

import dataclasses
from typing import Any, NamedTuple

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
from jaxmarl_tad.offline.autoencoder import autoencoder
from jaxmarl_tad.offline.diagnostics import watch
from jaxmarl_tad.offline.numbers import critics
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Observation, Spec


@struct
class Config:
    """Settings of BCQ-MA."""

    total_steps: int = 2_000
    """Gradient steps of one member."""
    batch: int = 128
    """Recorded stretches in each gradient step; all steps if there are no more."""
    window: int | None = None
    """Steps of a stretch; 20 with memory and 1 without unless given."""
    threshold: Real = 0.4
    """f, in [0, 1]: how likely an action must be, as a share of the likeliest."""
    candidates: int = 10
    """Continuous: draws K of which a target takes the best."""
    tries: int = 32
    """Continuous: draws of which the best is done."""
    reach: Real = 0.05
    """Continuous: how far e a draw is changed, as a share of half the range."""
    latent_weight: Real = 0.5
    """Continuous: weight κ of the distance of z from a standard normal number."""
    lr: Real | None = None
    """Adam's learning rate; 0.05 for tables, 1e-3 for other networks and 3e-3 for those of continuous
    actions unless given."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    target_update: Real = 0.05
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    critic_lr: Real = 1e-2
    """Continuous: that of critics with their mixer, of which the former are perceptrons."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for what imitates, Q with mixer, and ξ each."""
    mix_hidden: int = 64
    """Hidden width of the network that makes w and b."""
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
        sizes = (self.batch, self.mix_hidden, self.candidates, self.tries)
        require(min(sizes) >= 1, "bcq: sizes must be positive.")
        check_range(self, reach=(0, 1), latent_weight=(0, float("inf")), critic_lr=(0, float("inf")))
        check_range(self, gamma=(0, 1), target_update=(0, 1), threshold=(0, 1))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    found = resolve_common(config, spec)
    numbers = not spec.discrete and config.lr is None
    return found | ({"lr": 3e-3} if numbers else {})


class Params(NamedTuple):
    """Parameters: of β or of encoder and decoder, of Q with the mixer, and of ξ."""

    behaviour: Any
    q: Any
    change: Any = ()


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Any
    """Of Q with the mixer, and of ξ."""
    optimiser: Params


def make(config: Config, data: Dataset) -> Algorithm:
    """The learner of BCQ-MA on ``data``; ``config`` as returned by :func:`resolve`."""
    return (of_choices if data.spec.discrete else of_numbers)(config, data)


def of_choices(config: Config, data: Dataset) -> Algorithm:
    """The learner of discrete actions."""
    spec = data.spec
    assert config.lr is not None and config.window is not None
    base, window = config.lr, config.window
    # β's network acts by itself beside that of Q, and imitates as a policy does.
    own = imitation = rows_of(config, spec, spec.n_actions)
    cloning, mixing = actor(config, spec), linear_mixer(config, spec)
    optimiser, compared = adam(config.max_grad_norm), watch(data, config.gamma)
    last = jax.lax.stop_gradient

    def loss(params: Params, target: Any, seen: Lesson) -> tuple[Array, Metrics]:
        told = compared.of_policy(seen, cloning.log_prob(params.behaviour, seen))
        q = own.apply(params.q["own"], seen.seen, seen.first)
        delayed = own.apply(target["own"], seen.seen, seen.first)[1:]
        total = mixed(mixing.weights(params.q["mixer"], seen.now), taken(q[:-1], seen.action))
        ahead = jax.tree.map(lambda x: x[1:], seen.seen)
        logits = cloning.outputs(params.behaviour, seen)
        following = best(q[1:], supported(config, logits[1:], ahead.legal))
        beyond = mixed(mixing.weights(target["mixer"], ahead), taken(delayed, following))
        goal = last(seen.reward + jnp.where(seen.terminated, 0.0, config.gamma * beyond))
        q_loss = masked_mean(0.5 * (goal - total) ** 2, seen.valid)
        choices = supported(config, logits[:-1], seen.now.legal)
        report = {
            "q_loss": q_loss,
            "q": masked_mean(total, seen.valid),
            "choices": masked_mean(jnp.sum(choices, axis=-1).astype(jnp.float32), seen.counts),
            **compared.of_value(seen, total),
            **told,
        }
        return q_loss - told["log_prob"], report

    def init(key: Key) -> State:
        behaviour_key, q_key, mixer_key = jax.random.split(key, 3)
        q = {"own": own.init(q_key), "mixer": mixing.init(mixer_key)}
        params = Params(imitation.init(behaviour_key), q)
        return State(params, q, Params(*map(optimiser.init, params)))

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        seen = lesson(data, key, config.batch, window)
        slopes, report = jax.grad(loss, has_aux=True)(state.params, state.target, seen)
        lr = base * (1 - (1 - config.lr_end) * progress)
        params, optimisers = descended(optimiser, slopes, state.optimiser, state.params, (lr, lr, lr))
        return State(params, followed(state.target, params.q, config.target_update), optimisers), report

    def policy(state: State, *, greedy: bool) -> Policy:
        def start() -> Memory:
            return imitation.start(), own.start()

        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            logits, remembered = imitation.act(state.params.behaviour, memory[0], observation)
            q, valued = own.act(state.params.q["own"], memory[1], observation)
            allowed = supported(config, logits, observation.legal)
            uniform = jax.random.uniform(key, (spec.n_agents,))
            drawn = distributions.sample(uniform, log_probabilities(logits, allowed))
            action = best(q, allowed) if greedy else drawn
            return action, (remembered, valued), {"q": q, "logits": logits}

        return Policy(start=start, act=act, execution="decentralised")

    return Algorithm(init, step, policy)


def supported(config: Config, logits: Array, legal: Array) -> Array:
    """Which legal actions are likely enough; the likeliest always is."""
    log_probs = log_probabilities(logits, legal)
    share = jnp.exp(log_probs - jnp.max(log_probs, axis=-1, keepdims=True))
    return legal & (share >= config.threshold)


# --- continuous actions ---------------------------------------------------------------------------

CUT = 0.5
"""Beyond which no z is drawn."""


def of_numbers(config: Config, data: Dataset) -> Algorithm:
    """The learner of continuous actions."""
    spec = data.spec
    assert config.lr is not None and config.window is not None
    lr, window, n, width = config.lr, config.window, spec.n_agents, spec.action_dim
    low, high = spec.bounds or (-1.0, 1.0)
    middle, half = (low + high) / 2, (high - low) / 2
    cloning, mixing = autoencoder(config, spec), linear_mixer(config, spec)
    init_critics, value = critics(config, spec)
    plain = dataclasses.replace(config, memory="none", network="mlp", layer_norm=False)
    changing = rows_of(plain, spec, width, fed=width)
    optimiser, compared = adam(config.max_grad_norm), watch(data, config.gamma)
    last = jax.lax.stop_gradient

    def changed(params: Any, seen: Observation, first: Array, action: Array) -> Array:
        told = changing.apply(params, seen, first, jnp.where(seen.legal, action, 0.0))
        return jnp.clip(action + config.reach * jnp.tanh(told), -1.0, 1.0)

    def draws(key: Key, *shape: int) -> Array:
        z = jax.random.normal(key, (*shape, n, 2 * width))
        return jnp.clip(z, -CUT, CUT)

    def loss(params: Params, target: Any, seen: Lesson, key: Key) -> tuple[Array, Metrics]:
        noise_key, next_key, now_key = jax.random.split(key, 3)
        now, ahead = seen.now, jax.tree.map(lambda x: x[1:], seen.seen)
        rows = seen.first.shape
        # What was done.
        noise = jax.random.normal(noise_key, (*seen.action.shape[:-1], 2 * width))
        error, apart = cloning.error(params.behaviour, seen, noise)
        counts = seen.counts[..., None]
        distance = masked_mean(apart, jnp.broadcast_to(counts, apart.shape))
        error = masked_mean(error, counts & now.legal)

        # What the best of some draws would be worth.
        def judged(z: Array) -> Array:
            action = cloning.decoded(params.behaviour, seen, z)[1:]
            action = changed(target["change"], ahead, seen.first[1:], action)
            q = value(target["own"], ahead, seen.first[1:], action)
            return 0.75 * q.min(0) + 0.25 * q.max(0)

        best_of = jax.vmap(judged)(draws(next_key, config.candidates, *rows)).max(0)
        beyond = mixed(mixing.weights(target["mixer"], ahead), best_of)
        goal = last(seen.reward + jnp.where(seen.terminated, 0.0, config.gamma * beyond))
        q = value(params.q["own"], now, seen.first[:-1], seen.action)
        total = mixed(mixing.weights(params.q["mixer"], now), q)
        q_loss = jnp.sum(jax.vmap(lambda x: masked_mean(0.5 * x**2, seen.valid))(goal - total))

        drawn = last(cloning.decoded(params.behaviour, seen, draws(now_key, *rows)))[:-1]
        action = changed(params.change, now, seen.first[:-1], drawn)
        climbed = value(last(params.q["own"]), now, seen.first[:-1], action)[0]
        ascent = masked_mean(climbed, seen.counts)
        report = {
            "q_loss": q_loss,
            "q": masked_mean(total[0], seen.valid),
            "imitation": error,
            "latent": distance,
            "policy_q": ascent,
            **compared.of_value(seen, total[0]),
        }
        return q_loss + error + config.latent_weight * distance - ascent, report

    def init(key: Key) -> State:
        behaviour_key, q_key, mixer_key, change_key = jax.random.split(key, 4)
        q = {"own": init_critics(q_key), "mixer": mixing.init(mixer_key)}
        params = Params(cloning.init(behaviour_key), q, changing.init(change_key))
        return State(params, q | {"change": params.change}, Params(*map(optimiser.init, params)))

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        lesson_key, loss_key = jax.random.split(key)
        seen = lesson(data, lesson_key, config.batch, window)
        slopes, report = jax.grad(loss, has_aux=True)(state.params, state.target, seen, loss_key)
        left = 1 - (1 - config.lr_end) * progress
        rates = (lr * left, config.critic_lr * left, lr * left)
        params, optimisers = descended(optimiser, slopes, state.optimiser, state.params, rates)
        online = params.q | {"change": params.change}
        return State(params, followed(state.target, online, config.target_update), optimisers), report

    def policy(state: State, *, greedy: bool) -> Policy:
        params = state.params

        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            lone = jax.tree.map(lambda x: x[None, None], observation)
            first = jnp.ones((1, 1), bool)

            def tried(z: Array) -> tuple[Array, Memory, Array]:
                action, after = cloning.decode(params.behaviour, memory, observation, z)
                action = changed(params.change, lone, first, action[None, None])
                return action[0, 0], after, value(params.q["own"], lone, first, action)[0, 0, 0]

            action, after, q = jax.vmap(tried)(draws(key, config.tries if greedy else 1))
            which = jnp.argmax(q, axis=0)

            def of_best(x: Array) -> Array:
                return jax.vmap(lambda own, i: own[i], in_axes=(1, 0))(x, which)

            chosen, after = jax.tree.map(of_best, (action, after))
            told = {"q": q.max(0), "chosen": chosen}
            return middle + half * chosen, after, told

        return Policy(start=cloning.start, act=act, execution="decentralised")

    return Algorithm(init, step, policy)
