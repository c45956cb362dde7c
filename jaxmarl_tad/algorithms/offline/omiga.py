"""OMIGA: offline multi-agent learning with implicit global-to-local value regularisation.

    repeat, with B recorded steps (o, a, r, o')
        z_i = w̄_i(s) (Q̄_i(τ_i, a_i) − V_i(τ_i)) / α                      (barred: target networks)
        descend ½ (r + γ (Σ_i w̄_i(s') V̄_i(τ'_i) + b̄(s')) − Σ_i w_i(s) Q_i(τ_i, a_i) − b(s))²   (14)
        descend Σ_i exp z_i + w̄_i(s) V_i(τ_i) / α                                              (13)
        descend −Σ_i exp(z_i) log π_i(a_i | τ_i)                                               (15)
        Q̄, w̄, b̄, V̄ ← the same + τ (Q, w, b, V − …)

Source: Wang et al. 2023 (equations numbered as there). A team that maximises r − α log π/μ has
π_i ∝ μ_i exp(w_i Q_i / α): every agent's own temperature is α / w_i(s), which is all that it learns of
the others. E_μ exp z_i = 1 at the solution of (13), which ``exp_z`` reports, and V_i is then the
soft-max of w_i Q_i / α under the data's policy; nothing is ever asked of actions that no one took.

Differs from the authors' code in that illegal actions have no probability, that dead agents enter no
sum, that truncated episodes bootstrap from their true final observation, that rewards are rewards (the
code for StarCraft replaces them by returns), and above ``largest_z`` (``extrapolation="linear"``): the
authors' clamp passes a gradient of the wrong sign there. Weights begin at 1.

``global_information=False`` is the paper's ablation: w_i = 1 in (13) and (15).
"""

from typing import Any, Literal, NamedTuple

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
    resolve_common,
    rows_of,
)
from jaxmarl_tad.offline.diagnostics import of_weights, watch
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.types import Activation, Algorithm, Key, Metrics, Policy
from tad_envs import Spec


@struct
class Config:
    """Settings of OMIGA."""

    total_steps: int = 2_000
    """Gradient steps of one member."""
    batch: int = 128
    """Recorded stretches in each gradient step; all steps if there are no more."""
    window: int | None = None
    """Steps of a stretch; 20 with memory and 1 without unless given."""
    alpha: Real = 1.0
    """Weight of staying near the data, in units of reward; positive."""
    lr: Real | None = None
    """Adam's learning rate; 0.05 for tables and 1e-3 for other networks unless given."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    target_update: Real = 0.05
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 1.0
    """Largest global norm of a gradient, for policy, Q with mixer, and V each."""
    largest_z: Real = 10.0
    """Where the exponential of z ends."""
    extrapolation: Literal["linear", "clamp"] = "linear"
    """What follows there: its tangent, or nothing."""
    global_information: bool = True
    """Whether agents' temperatures follow w_i(s)."""
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
        require(min(self.batch, self.mix_hidden) >= 1, "omiga: sizes must be positive.")
        check_range(self, gamma=(0, 1), target_update=(0, 1), alpha=(1e-6, float("inf")))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    return resolve_common(config, spec)


class Params(NamedTuple):
    """Parameters: of the policies, of Q with the mixer, and of V."""

    policy: Any
    q: Any
    v: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Params
    optimiser: Params


def make(config: Config, data: Dataset) -> Algorithm:
    """The learner of OMIGA on ``data``; ``config`` as returned by :func:`resolve`."""
    spec = data.spec
    assert config.lr is not None and config.window is not None
    base, window = config.lr, config.window
    policies, own, mixing = actor(config, spec), critic(config, spec), linear_mixer(config, spec)
    baseline = rows_of(config, spec, 1)
    optimiser, compared = adam(config.max_grad_norm), watch(data, config.gamma)

    def v(params: Any, seen: Lesson) -> Array:
        """V_i of every row, ``[T + 1, B, N]``."""
        return baseline.apply(params, seen.seen, seen.first)[..., 0]

    def loss(params: Params, target: Params, seen: Lesson) -> tuple[Array, Metrics]:
        last = jax.lax.stop_gradient
        # (14): both sides of the Bellman equation of the team.
        q = own.taken(params.q["own"], seen)
        total = mixed(mixing.weights(params.q["mixer"], seen.now), q)
        weights, bias = last(mixing.weights(target.q["mixer"], seen.seen))
        beyond = mixed((weights[1:], bias[1:]), last(v(target.v, seen))[1:])
        goal = seen.reward + jnp.where(seen.terminated, 0.0, config.gamma * beyond)
        q_loss = masked_mean(0.5 * (goal - total) ** 2, seen.valid)
        # (13): w V / α + exp z has its minimum where E exp z = 1.
        w = weights[:-1] if config.global_information else jnp.ones_like(weights[:-1])
        value = v(params.v, seen)[:-1]
        z = w * (last(own.taken(target.q["own"], seen)) - value) / config.alpha
        v_loss = masked_mean(exponential(config, z) + w * value / config.alpha, seen.counts)
        # (15): imitate what was better than the data's policy.
        weight = last(exponential(config, z))
        log_prob = policies.log_prob(params.policy, seen)
        policy_loss = masked_mean(-weight * log_prob, seen.counts)
        report = {
            "q_loss": q_loss,
            "q": masked_mean(total, seen.valid),
            "v": masked_mean(value, seen.counts),
            "exp_z": masked_mean(weight, seen.counts),
            "clamped": masked_mean((z > config.largest_z).astype(jnp.float32), seen.counts),
            **of_weights(weight, seen.counts),
            **compared.of_value(seen, total),
            **compared.of_policy(seen, log_prob),
        }
        return q_loss + v_loss + policy_loss, report

    def init(key: Key) -> State:
        policy_key, q_key, mixer_key, v_key = jax.random.split(key, 4)
        q = {"own": own.init(q_key), "mixer": mixing.init(mixer_key)}
        params = Params(policies.init(policy_key), q, baseline.init(v_key))
        return State(params, params, Params(*map(optimiser.init, params)))

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        seen = lesson(data, key, config.batch, window)
        slopes, report = jax.grad(loss, has_aux=True)(state.params, state.target, seen)
        lr = base * (1 - (1 - config.lr_end) * progress)
        rates = (lr, lr, lr)
        params, optimisers = descended(optimiser, slopes, state.optimiser, state.params, rates)
        target = followed(state.target, params, config.target_update)
        return State(params, target, optimisers), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return policies.policy(state.params.policy, greedy=greedy)

    return Algorithm(init, step, policy)


def exponential(config: Config, z: Array) -> Array:
    """exp z, and beyond ``largest_z`` its tangent or its value there."""
    top = jnp.asarray(config.largest_z, jnp.float32)
    inside = jnp.exp(jnp.minimum(z, top))
    return inside if config.extrapolation == "clamp" else inside * (1 + jnp.maximum(z - top, 0.0))
