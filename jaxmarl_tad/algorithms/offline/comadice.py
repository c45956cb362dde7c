"""ComaDICE: offline learning of a team by correcting where the data's policy goes.

    repeat, with B recorded steps (o, a, r, o'), each the t-th of its episode
        e = Σ_i w̄_i(s) (Q̄_i(τ_i, a_i) − ν_i(τ_i))                       (barred: target networks)
        W = f'⁻¹(e / α), at least 0                      (how much more often than the data)
        descend ½ (r + γ (Σ_i w̄_i(s') ν̄_i(τ'_i) + b̄(s')) − Q_tot(s, a))²
        descend [t = 0] ν_tot(s) + γᵗ W (γ ν_tot(s') − ν_tot(s)), W held still
        descend −Σ_i W log π_i(a_i | τ_i)
        Q̄, w̄, b̄, ν̄ ← the same + τ (Q, w, b, ν − …)

Source: Bui et al. 2025, on Lee et al. 2021 (OptiDICE). Of all distributions d over pairs of state and
action that some policy visits, the team wants that with the largest E_d r − α D_f(d ‖ d_D). That what
flows into a state flows out of it has multipliers ν, with which the dual is

    min_ν  Σ_s p₀(s) ν(s) + E_D Σ_t γᵗ α f*(e / α),   e = r + γ (1 − terminated) ν(s') − ν(s)

whose slope is the fourth line, because f*' = f'⁻¹ = W = d / d_D. At its minimum what W says comes into
a state is what it says goes out. With Q for r + γ E ν(s') the slope is right where s' is random too,
which that of f* at a single s' would not be. f is one of

    soft_chi2   ½ (x − 1)² above 1, x log x − x + 1 below:   W = 1 + y above 0, eʸ below
    chi2        ½ (x − 1)²:                                  W = max(0, 1 + y)
    kl          x log x − x + 1:                             W = eʸ

Differs from the authors' code, whose loss has no such minimum:

- There Q, and e beside W, are held still in the loss of ν, whose slope is then much like that of a
  regression of ν on Q − λ; what flows into a state is left out. Here it is counted.
- There a number λ makes the mean of W one. Flow already says how much there is: Σ d = 1 − E γᴸ where
  episodes end by themselves after L steps. Both cannot hold, and a dual with λ then has no minimum: in
  a game of one step it falls for ever as ν rises and λ falls. Here there is no λ, and d_D is what the
  data visit with discount γᵗ, which has that size. In a game of one step ν is what λ would be.
- There agents' own weights are summed, and cut off at 2 if actions are discrete. Here all agents share
  the team's W, as in the paper.

Nothing shows where the flow into the last state of an episode that was cut off goes on: ν counts there
and is not moved. Steps whose t is not known, in a part of data that are larger than a device, do not
move ν. Dead agents enter no sum, and illegal actions have no probability.
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
from jaxmarl_tad.offline.diagnostics import ages, of_weights, watch
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.types import Activation, Algorithm, Key, Metrics, Policy
from tad_envs import Spec

Divergence = Literal["soft_chi2", "chi2", "kl"]


@struct
class Config:
    """Settings of ComaDICE."""

    total_steps: int = 2_000
    """Gradient steps of one member."""
    batch: int = 128
    """Recorded stretches in each gradient step; all steps if there are no more."""
    window: int | None = None
    """Steps of a stretch; 20 with memory and 1 without unless given."""
    alpha: Real = 1.0
    """Weight of staying near where the data are, in units of reward; positive."""
    divergence: Divergence = "soft_chi2"
    """f."""
    largest: Real = 10.0
    """Of e / α, from where on W stays as it is; for ``kl``."""
    lr: Real | None = None
    """Adam's learning rate; 0.05 for tables and 1e-3 for other networks unless given."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    target_update: Real = 0.05
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 1.0
    """Largest global norm of a gradient, for policy, Q with mixer, and ν each."""
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
        require(min(self.batch, self.mix_hidden) >= 1, "comadice: sizes must be positive.")
        check_range(self, gamma=(0, 1), target_update=(0, 1), alpha=(1e-6, float("inf")))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    return resolve_common(config, spec)


class Params(NamedTuple):
    """Parameters: of the policies, of Q with the mixer, and of ν."""

    policy: Any
    q: Any
    nu: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Params
    optimiser: Params


def make(config: Config, data: Dataset) -> Algorithm:
    """The learner of ComaDICE on ``data``; ``config`` as returned by :func:`resolve`."""
    spec = data.spec
    assert config.lr is not None and config.window is not None
    base, window = config.lr, config.window
    policies, own, mixing = actor(config, spec), critic(config, spec), linear_mixer(config, spec)
    multiplier = rows_of(config, spec, 1)
    optimiser, compared = adam(config.max_grad_norm), watch(data, config.gamma)
    age, last = ages(data), jax.lax.stop_gradient

    def nu(params: Any, seen: Lesson) -> Array:
        """ν_i of every row, ``[T + 1, B, N]``."""
        return multiplier.apply(params, seen.seen, seen.first)[..., 0]

    def loss(params: Params, target: Params, seen: Lesson) -> tuple[Array, Metrics]:
        # Q of a step is its reward and what ν holds of the next.
        q = own.taken(params.q["own"], seen)
        total = mixed(mixing.weights(params.q["mixer"], seen.now), q)
        w, b = last(mixing.weights(target.q["mixer"], seen.seen))
        beyond = mixed((w[1:], b[1:]), last(nu(target.nu, seen))[1:])
        goal = seen.reward + jnp.where(seen.terminated, 0.0, config.gamma * beyond)
        q_loss = masked_mean(0.5 * (goal - total) ** 2, seen.valid)
        # How much more often than the data the best distribution does this.
        each = nu(params.nu, seen)
        advantage = jnp.sum(w[:-1] * (last(own.taken(target.q["own"], seen)) - last(each)[:-1]), -1)
        weight = correction(config, advantage / config.alpha)
        # The slope of the dual: into each state from the beginning or from before, and out of it.
        team = mixed((w, b), each)
        here, there = team[:-1], jnp.where(seen.last, last(team[1:]), team[1:])
        flow = weight * (config.gamma * jnp.where(seen.terminated, 0.0, there) - here)
        steps = age[seen.row]
        dual = jnp.where(steps == 0, here, 0.0) + config.gamma ** jnp.maximum(steps, 0) * flow
        nu_loss = masked_mean(dual, seen.valid & (steps >= 0))
        # Imitate what it does.
        log_prob = policies.log_prob(params.policy, seen)
        policy_loss = masked_mean(-weight[..., None] * log_prob, seen.counts)
        shared = jnp.broadcast_to(weight[..., None], log_prob.shape)
        report = {
            "q_loss": q_loss,
            "q": masked_mean(total, seen.valid),
            "nu": masked_mean(here, seen.valid),
            **of_weights(shared, seen.counts),
            **compared.of_value(seen, total),
            **compared.of_policy(seen, log_prob),
        }
        return q_loss + nu_loss + policy_loss, report

    def init(key: Key) -> State:
        policy_key, q_key, mixer_key, nu_key = jax.random.split(key, 4)
        q = {"own": own.init(q_key), "mixer": mixing.init(mixer_key)}
        params = Params(policies.init(policy_key), q, multiplier.init(nu_key))
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


def correction(config: Config, y: Array) -> Array:
    """W = f'⁻¹(y), at least 0."""
    if config.divergence == "chi2":
        return jnp.maximum(1 + y, 0.0)
    if config.divergence == "kl":
        return jnp.exp(jnp.minimum(y, config.largest))
    return jnp.where(y < 0, jnp.exp(jnp.minimum(y, 0.0)), 1 + y)
