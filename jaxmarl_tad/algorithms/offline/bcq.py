"""BCQ-MA: batch-constrained Q-learning of a team with discrete actions.

    repeat, with B recorded steps (o, a, r, o')
        descend −Σ_i log β_i(a_i | τ_i)                                              (what was done)
        a'_i = argmax Q_i(τ'_i, ·) over {a: β_i(a | τ'_i) ≥ f · max β_i(· | τ'_i)}
        Q_tot = Σ_i w_i(s) Q_i(τ_i, a_i) + b(s)
        descend ½ (r + γ Q̄_tot(s', a') − Q_tot(s, a))²
        Q̄, w̄, b̄ ← the same + τ (Q, w, b − …)
    act: the best Q_i among the actions that β_i has by the same rule

Source: Fujimoto et al. 2019 (the discrete form), Formanek et al. 2024 (for a team, f = 0.4), Wang et
al. 2023 (with this mixer, as a baseline of OMIGA). With f = 0 it is Q-learning, with f = 1 it does what
was done most. Acting without greed draws from β_i among those actions. Differs from the published code
in that illegal actions have no probability, that target networks start as copies, and that truncated
episodes bootstrap from their true final observation.
"""

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
    lr: Real | None = None
    """Adam's learning rate; 0.05 for tables and 1e-3 for other networks unless given."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    target_update: Real = 0.05
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for β and for Q with mixer each."""
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
        require(min(self.batch, self.mix_hidden) >= 1, "bcq: sizes must be positive.")
        check_range(self, gamma=(0, 1), target_update=(0, 1), threshold=(0, 1))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    return resolve_common(config, spec)


class Params(NamedTuple):
    """Parameters: of β, and of Q with the mixer."""

    behaviour: Any
    q: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Any
    """Of Q with the mixer."""
    optimiser: Params


def make(config: Config, data: Dataset) -> Algorithm:
    """The learner of BCQ-MA on ``data``; ``config`` as returned by :func:`resolve`."""
    spec = data.spec
    assert config.lr is not None and config.window is not None
    base, window = config.lr, config.window
    # β's network acts by itself beside that of Q, and imitates as a policy does.
    own = imitation = rows_of(config, spec, spec.n_actions)
    cloning, mixing = actor(config, spec), linear_mixer(config, spec)
    optimiser = adam(config.max_grad_norm)
    last = jax.lax.stop_gradient

    def loss(params: Params, target: Any, seen: Lesson) -> tuple[Array, Metrics]:
        log_prob = masked_mean(cloning.log_prob(params.behaviour, seen), seen.counts)
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
            "log_prob": log_prob,
        }
        return q_loss - log_prob, report

    def init(key: Key) -> State:
        behaviour_key, q_key, mixer_key = jax.random.split(key, 3)
        q = {"own": own.init(q_key), "mixer": mixing.init(mixer_key)}
        params = Params(imitation.init(behaviour_key), q)
        return State(params, q, Params(*map(optimiser.init, params)))

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        seen = lesson(data, key, config.batch, window)
        slopes, report = jax.grad(loss, has_aux=True)(state.params, state.target, seen)
        lr = base * (1 - (1 - config.lr_end) * progress)
        params, optimisers = descended(optimiser, slopes, state.optimiser, state.params, (lr, lr))
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
