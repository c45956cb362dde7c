"""IA2C and MAA2C, and IPPO and MAPPO as EPyMARL has them: n-step actor-critics.

    repeat
        collect T steps in E environments with π = Π_i π(a_i | τ_i)
        y_t = Σ_{k<n} γ^k r_{t+k} + γ^n V̄(s_{t+n}),   cut at the end of the episode
        for K epochs, on the whole batch:
            A_i = y − V                                     (of the V that the last epoch left)
            ascend   mean_i min(ρ_i A_i, clip(ρ_i, 1 ± ε) A_i) + c_H H(π_i),   ρ_i = π / π_collected
            descend  (y − V)²
        V̄ ← V̄ + τ (V − V̄)

Source: Mnih et al. 2016 (A2C); Papoudakis et al. 2021 (IA2C, MAA2C, and EPyMARL's dialect of IPPO and
MAPPO). IA2C and MAA2C are K = 1: then ρ is 1 and the objective's gradient is that of A log π. The
critic of IA2C and IPPO sees what the agent sees, that of MAA2C and MAPPO sees the global state and
gives one value to all: ``critic="local" | "state"``. Critics have no memory and advantages are not
standardised, as there. Differs from EPyMARL in that nothing is bootstrapped behind a terminated step,
that truncated episodes bootstrap from their true final observation, and that rewards are not
standardised.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_range, require, resolve_steps, struct
from jaxmarl_tad.losses import clipped_surrogate, masked_mean
from jaxmarl_tad.networks.net import (
    Kind,
    Remember,
    agent_inputs,
    network,
    resolve_kind,
    state_inputs,
)
from jaxmarl_tad.networks.tables import Logits
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.rollout import Actors, begin, keys, rollout, taken
from jaxmarl_tad.sharing import Mode, init_sets, over_rows, sharing
from jaxmarl_tad.targets import beyond_death, n_step_returns, next_values
from jaxmarl_tad.team import team
from jaxmarl_tad.types import Activation, Algorithm, Key, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of IA2C, MAA2C and EPyMARL's IPPO and MAPPO."""

    total_steps: int = 76_800
    """Environment steps of one member, rounded to whole iterations."""
    envs: int = 64
    """Environments acted in at once."""
    steps: int | None = None
    """Rollout length; one episode (up to 128 steps) unless given."""
    epochs: int = 4
    """Gradient steps on each batch; 1 in IA2C and MAA2C."""
    n_step: int = 5
    """Rewards that are summed before the target critic takes over."""
    lr: Real | None = None
    """Adam's learning rate; 0.05 for tables and 5e-4 for other networks unless given."""
    critic_lr_scale: Real | None = None
    """The critic's learning rate in units of ``lr``; 10 for tables and 1 otherwise unless given."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    clip: Real = 0.2
    """ε of the clipped ratio; without effect in one epoch."""
    entropy_coef: Real = 0.3
    """Weight of the entropy bonus, in units of return: advantages are not standardised."""
    target_update: Real = 0.1
    """Share of the way that the target critic goes after each batch (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for policy and critic each."""
    critic: Literal["local", "state"] = "local"
    """What the critic sees: each agent's own view or the global state."""
    memory: Remember = "none"
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = True
    """Whether a layer norm stands before and after every hidden layer, as in MAPPO's recipe."""
    initial_logits: Logits = 0.0
    """Added to a table's initial logits: ``[A]``, or ``[N, A]`` by agent."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = (self.envs, self.epochs, self.n_step)
        require(min(sizes) >= 1, "actor_critic: envs, epochs and n_step must be positive.")
        check_range(self, gamma=(0, 1), clip=(0, 1), target_update=(0, 1))
        check_range(self, entropy_coef=(0, jnp.inf), critic_lr_scale=(0, jnp.inf))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    require(spec.discrete, "actor_critic: actions must be discrete; this environment's are continuous.")
    kind = resolve_kind(config.network, config.memory, spec, spec.obs_dim * spec.n_agents)
    lr, scale = (0.05, 10.0) if kind == "table" else (5e-4, 1.0)
    return {
        "network": kind,
        "steps": resolve_steps(config.steps, spec),
        "lr": lr if config.lr is None else config.lr,
        "critic_lr_scale": scale if config.critic_lr_scale is None else config.critic_lr_scale,
    }


class Params(NamedTuple):
    """Parameter sets of the policy and of the critic."""

    actor: Any
    critic: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Any
    """The critic that targets are made with."""
    optimiser: Params
    actors: Actors


def make(config: Config, env: Environment) -> Algorithm:
    """The learner on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    agents = jnp.arange(spec.n_agents)
    assert config.steps is not None and config.lr is not None and config.critic_lr_scale is not None
    steps, lr, critic_lr = config.steps, config.lr, config.lr * config.critic_lr_scale
    actor = team(config, spec)
    optimiser = adam(config.max_grad_norm)

    # What the critic sees: every agent's row, or the state, once.
    local = config.critic == "local"
    share = sharing(config.sharing if local else "full", spec.n_agents if local else 1)
    view, view_size = agent_inputs(config.network, spec, share.identity)
    state_view, state_size = state_inputs(config.network, spec)
    critic = network(
        config.network,
        inputs=view_size if local else state_size,
        outputs=1,
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
        gain=0.0 if config.network == "table" else 1.0,
    )
    critic_rows = over_rows(critic.apply, share)

    def critic_views(observation: Observation) -> Any:
        if local:
            return jax.vmap(view)(observation.agents, agents)
        return state_view(observation.state)[None]

    def values(params: Any, observation: Observation) -> Float[Array, "T E K"]:
        """V of every critic, N of them or 1."""
        return critic_rows(params, (), jax.vmap(jax.vmap(critic_views))(observation), 2)[0][..., 0]

    def loss(params: Params, seen: Any, memory: Any, target: Array) -> tuple[Array, Metrics]:
        alive = seen.observation.alive
        log_probs, _ = actor.replay(params.actor, memory, seen.observation, seen.first)
        log_prob = distributions.log_probability(log_probs, seen.action)
        ratio = jnp.exp(log_prob - seen.extras["log_prob"])
        value = values(params.critic, seen.observation)
        advantage = jnp.broadcast_to(jax.lax.stop_gradient(target - value), alive.shape)
        objective = clipped_surrogate(ratio, advantage, config.clip)
        entropy = masked_mean(distributions.entropy(log_probs), alive)
        policy_loss = -masked_mean(objective, alive) - config.entropy_coef * entropy
        counted = alive if local else jnp.any(alive, -1, keepdims=True)
        value_loss = masked_mean((target - value) ** 2, counted)
        report = {"entropy": entropy, "ratio": masked_mean(ratio, alive)}
        report |= {"policy_loss": policy_loss, "value_loss": value_loss}
        return policy_loss + value_loss, report

    def init(key: Key) -> State:
        actor_key, critic_key = keys(key, 2)
        begin_key = jax.random.fold_in(key, 0)
        params = Params(actor.init(actor_key), init_sets(critic.init, critic_key, share))
        return State(
            params=params,
            target=params.critic,
            optimiser=Params(*(optimiser.init(p) for p in params)),
            actors=begin(env, actor.policy(params.actor, greedy=False), begin_key, config.envs),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        behaviour = actor.policy(state.params.actor, greedy=False)
        actors, seen = rollout(env, behaviour, key, state.actors, steps)

        def look_ahead(rows: Any) -> Array:
            """V̄ of what the steps in ``rows [C, E]`` led to; of all steps if None."""
            return values(state.target, seen.next if rows is None else taken(seen.next, rows))

        value = values(state.target, seen.observation)
        next_value = next_values(value, seen.truncated, look_ahead, spec.horizon)
        if local:
            next_value = beyond_death(next_value, seen.next.alive)
        ends = (seen.terminated, seen.truncated)
        target = n_step_returns(seen.reward, next_value, *ends, config.gamma, config.n_step)

        def epoch(carry: tuple[Params, Params], _: None) -> tuple[tuple[Params, Params], Metrics]:
            params, optimisers = carry
            memory = state.actors.memory
            gradient, report = jax.grad(loss, has_aux=True)(params, seen, memory, target)
            parts = zip(gradient, optimisers, params, (lr, critic_lr), strict=True)
            params, optimisers = zip(*(optimiser.update(*part) for part in parts), strict=True)
            return (Params(*params), Params(*optimisers)), report

        carry = (state.params, state.optimiser)
        (params, optimisers), reports = jax.lax.scan(epoch, carry, length=config.epochs)
        followed = jax.tree.map(
            lambda t, p: t + config.target_update * (p - t), state.target, params.critic
        )
        report = jax.tree.map(lambda x: x.mean(0), reports)
        return State(params, followed, optimisers, actors), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return actor.policy(state.params.actor, greedy=greedy)

    return Algorithm(init, step, policy)
