"""ICQ-MA: implicit constraint Q-learning, which asks for no action that is not in the data.

    repeat, with B recorded steps (o, a, r, o', a')
        ρ = softmax over the batch of Q̄_tot(s', a') / α, times B
        descend ½ (r + γ ρ Q̄_tot(s', a') − Q_tot(s, a))²,   Q_tot = Σ_i k_i(s) Q_i + b(s), Σ_i k_i = 1
        A_i = Q_i(τ_i, a_i) − Σ_a π_i(a | τ_i) Q_i(τ_i, a)
        descend −Σ_i k_i(s) [softmax over the batch of A_i / β, times B] log π_i(a_i | τ_i)
        Q̄, k̄, b̄ ← the same + τ (Q, k, b − …)

Source: Yang et al. 2021. The weights ought to be normalised in every state by itself; by the batch's
soft-max they are on average, which is the paper's approximation. With β → ∞ the policy is that of
behavioural cloning, with steps weighed by k_i.

Differs from the authors' code: targets are of one step and not TD(λ), critics and policies make one
gradient step together, target networks follow slowly, and Q_i sees what its agent sees. No action is
recorded behind the end of an episode that was cut off: there Q̄ is of what the policy would do, in its
mean, so that the true final observation counts. For continuous actions this, and the base of A_i, is
the value of the policy's likeliest action.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmarl_tad.config import Real, check_range, require, struct
from jaxmarl_tad.dataset import Dataset
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.net import Kind, Remember
from jaxmarl_tad.offline import (
    Lesson,
    actor,
    critic,
    descended,
    followed,
    lesson,
    linear_mixer,
    mixed,
    relative,
    resolve_common,
)
from jaxmarl_tad.offline.diagnostics import of_weights, watch
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.types import Activation, Algorithm, Key, Metrics, Policy
from tad_envs import Observation, Spec


@struct
class Config:
    """Settings of ICQ-MA."""

    total_steps: int = 2_000
    """Gradient steps of one member."""
    batch: int = 128
    """Recorded stretches in each gradient step; all steps if there are no more."""
    window: int | None = None
    """Steps of a stretch; 20 with memory and 2 without unless given, for the action that came next."""
    policy_temperature: Real = 0.1
    """β, in units of reward; positive."""
    value_temperature: Real = 1_000.0
    """α, in units of reward; positive."""
    lr: Real | None = None
    """Adam's learning rate; 0.05 for tables and 1e-3 for other networks unless given."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    target_update: Real = 0.05
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for the policy and for Q with mixer each."""
    mix_hidden: int = 64
    """Hidden width of the network that makes k and b."""
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
        require(min(self.batch, self.mix_hidden) >= 1, "icq: sizes must be positive.")
        check_range(self, gamma=(0, 1), target_update=(0, 1))
        check_range(self, policy_temperature=(1e-6, float("inf")))
        check_range(self, value_temperature=(1e-6, float("inf")))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    least = 1 if spec.horizon == 1 else 2
    require(
        config.window is None or config.window >= least,
        f"icq: window={config.window} must be at least {least}, to hold the action that came next.",
    )
    found = resolve_common(config, spec)
    return found | {"window": max(found["window"], least)}


class Params(NamedTuple):
    """Parameters: of the policies, and of Q with the mixer."""

    policy: Any
    q: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Any
    """Of Q with the mixer."""
    optimiser: Params


def make(config: Config, data: Dataset) -> Algorithm:
    """The learner of ICQ-MA on ``data``; ``config`` as returned by :func:`resolve`."""
    spec = data.spec
    assert config.lr is not None and config.window is not None
    base, window = config.lr, config.window
    policies, own, mixing = actor(config, spec), critic(config, spec), linear_mixer(config, spec)
    optimiser, compared = adam(config.max_grad_norm), watch(data, config.gamma)
    last = jax.lax.stop_gradient

    def weights(params: Any, seen: Observation) -> tuple[Array, Array]:
        """k and b: shares of what each agent counts, 0 for the dead."""
        w, b = mixing.weights(params["mixer"], seen)
        return w / jnp.maximum(jnp.sum(w, axis=-1, keepdims=True), 1e-6), b

    def loss(params: Params, target: Any, seen: Lesson) -> tuple[Array, Metrics]:
        share, bias = weights(params.q, seen.now)
        q = own.taken(params.q["own"], seen)
        total = mixed((share, bias), q)
        out = policies.outputs(params.policy, seen)
        # The value of the action that came next, or of the policy's where none is recorded.
        later, offset = weights(target, seen.seen)
        of_taken = mixed((later[:-1], offset[:-1]), own.taken(target["own"], seen))
        of_taken = jnp.concatenate([of_taken, of_taken[-1:]])[1:]
        of_policy = mixed((later, offset), own.mean(target["own"], seen, out))[1:]
        recorded = jnp.concatenate([~seen.last[:-1], jnp.zeros_like(seen.last[:1])])
        used = recorded & seen.valid & ~seen.terminated
        ratio = relative(of_taken / config.value_temperature, used)
        beyond = last(jnp.where(recorded, ratio * of_taken, of_policy))
        goal = seen.reward + jnp.where(seen.terminated, 0.0, config.gamma * beyond)
        told = seen.valid & (recorded | seen.last)  # the stretch may end before the next action
        q_loss = masked_mean(0.5 * (goal - total) ** 2, told)

        advantage = last(q - own.mean(params.q["own"], seen, out)[:-1])
        weight = last(relative(advantage / config.policy_temperature, seen.counts))
        log_prob = policies.log_prob(params.policy, seen)
        policy_loss = masked_mean(-last(share) * weight * log_prob, seen.counts)
        report = {
            "q_loss": q_loss,
            "q": masked_mean(total, seen.valid),
            "advantage": masked_mean(advantage, seen.counts),
            **of_weights(weight, seen.counts),
            **compared.of_value(seen, total),
            **compared.of_policy(seen, log_prob),
        }
        return q_loss + policy_loss, report

    def init(key: Key) -> State:
        policy_key, q_key, mixer_key = jax.random.split(key, 3)
        q = {"own": own.init(q_key), "mixer": mixing.init(mixer_key)}
        params = Params(policies.init(policy_key), q)
        return State(params, q, Params(*map(optimiser.init, params)))

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        seen = lesson(data, key, config.batch, window)
        slopes, report = jax.grad(loss, has_aux=True)(state.params, state.target, seen)
        lr = base * (1 - (1 - config.lr_end) * progress)
        params, optimisers = descended(optimiser, slopes, state.optimiser, state.params, (lr, lr))
        return State(params, followed(state.target, params.q, config.target_update), optimisers), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return policies.policy(state.params.policy, greedy=greedy)

    return Algorithm(init, step, policy)
