"""Pareto-AC: actor-critic that hopes for the best from the others.

    repeat
        collect T steps in E environments with π = Π_i π(a_i | τ_i)
        Q⁺_i(s, a_i) = max over u_{−i} of Q(s, (a_i, u_{−i})),   V⁺_i(s) = Σ_a π_i(a | τ_i) Q⁺_i(s, a)
        y_t = Σ_{k<n} γ^k r_{t+k} + γ^n mean_i V̄⁺_i(s_{t+n}),   cut at the end of the episode
        ascend   mean_i E_{a ~ π_i}[(Q⁺_i(s, a) − V⁺_i(s)) log π_i(a | τ_i)] + c_H H(π_i),
                 where c_H falls from 20 to 0.01
        descend  (y − Q(s, u))²
        Q̄ ← Q̄ + τ (Q − Q̄)

Source: Christianos et al. 2022 (Pareto-AC; ``pac_ns`` of EPyMARL). What the others do now tells an
agent which of its actions pays now; the best that all could do is what the others want as well. The
bonus for entropy keeps everybody exploring until Q is known. The maximum is over all joint actions of
the others, so that only few agents with few actions can be trained.

Differs from EPyMARL in one critic for all agents rather than one for each, hence in the mean over
agents in y; in that expectations over the own action are sums rather than samples, so that no V has to
be learned; in that nothing is bootstrapped behind a terminated step and truncated episodes bootstrap
from their true final state; and in κ (``tie_break``): the policy's maximum is of Q + κ log π_{−i}.
With κ = 0, as published, agents that have several equally good equilibria to choose from have no
reason to choose the same one (as in the penalty game). A small κ lets each prefer, among equally good
plans for the others, what those do already.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_range, require, resolve_steps, struct
from jaxmarl_tad.factorisation import joint_actions, possible_plans
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.net import Kind, Remember, network, resolve_kind, state_inputs
from jaxmarl_tad.networks.tables import Logits
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.rollout import Actors, begin, keys, rollout, taken
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.targets import n_step_returns, next_values
from jaxmarl_tad.team import joint, team
from jaxmarl_tad.types import Activation, Algorithm, Key, Metrics, Policy
from tad_envs import Environment, Observation, Spec, finite

LARGEST_JOINT = 4096
"""Joint actions beyond which the maximum over what the others do is refused."""


@struct
class Config:
    """Settings of Pareto-AC."""

    total_steps: int = 76_800
    """Environment steps of one member, rounded to whole iterations."""
    envs: int = 64
    """Environments acted in at once."""
    steps: int | None = None
    """Rollout length; one episode (up to 128 steps) unless given."""
    n_step: int = 10
    """Rewards that are summed before the target critic takes over."""
    lr: Real | None = None
    """Adam's learning rate; 0.05 for tables and 5e-4 for other networks unless given."""
    critic_lr_scale: Real | None = None
    """The critic's learning rate in units of ``lr``; 10 for tables and 1 otherwise unless given."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    entropy_start: Real = 20.0
    """Weight of the entropy bonus in the first iteration, in units of return."""
    entropy_end: Real = 0.01
    """Weight of the entropy bonus once it has fallen."""
    entropy_fraction: Real = 0.8
    """Share of the run over which it falls linearly, in [0, 1]."""
    tie_break: Real = 0.1
    """κ, in units of return: the weight of what the others do already in the choice for them."""
    target_update: Real = 0.1
    """Share of the way that the target critic goes after each batch (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for policy and critic each."""
    memory: Remember = "none"
    """Of the policies; the critic has none."""
    sharing: Mode = "full_id"
    """Of the policies; the critic is the team's."""
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
        require(min(self.envs, self.n_step) >= 1, "pareto_ac: envs and n_step must be positive.")
        check_range(self, gamma=(0, 1), entropy_fraction=(0, 1), target_update=(0, 1))
        weights = ("entropy_start", "entropy_end", "tie_break", "critic_lr_scale")
        check_range(self, **dict.fromkeys(weights, (0, jnp.inf)))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    require(spec.discrete, "pareto_ac: actions must be discrete; this environment's are continuous.")
    number = spec.n_actions**spec.n_agents
    require(
        number <= LARGEST_JOINT,
        f"pareto_ac: {spec.n_agents} agents with {spec.n_actions} actions have {number} joint actions, "
        f"of which it values each; at most {LARGEST_JOINT}. Use maa2c, mappo or coma.",
    )
    rows = max(spec.obs_dim * spec.n_agents, spec.state_dim * number)
    kind = resolve_kind(config.network, config.memory, spec, rows)
    lr, scale = (0.05, 10.0) if kind == "table" else (5e-4, 1.0)
    return {
        "network": kind,
        "steps": resolve_steps(config.steps, spec),
        "lr": lr if config.lr is None else config.lr,
        "critic_lr_scale": scale if config.critic_lr_scale is None else config.critic_lr_scale,
    }


class Params(NamedTuple):
    """Parameter sets of the policy, and of the team's critic."""

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
    """The learner of Pareto-AC on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    assert config.steps is not None and config.lr is not None and config.critic_lr_scale is not None
    steps, lr, critic_lr = config.steps, config.lr, config.lr * config.critic_lr_scale
    actor = team(config, spec)
    optimiser = adam(config.max_grad_norm)
    plans = joint_actions(spec)
    view, inputs = state_inputs(config.network, spec)
    critic = network(
        config.network,
        inputs=inputs,
        outputs=len(plans),
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
        gain=0.0 if config.network == "table" else 1.0,
    )

    def values(params: Any, observation: Observation) -> Float[Array, "T E U"]:
        """Q(s, ·) of every joint action."""
        return critic.apply(params, (), view(observation.state))[0]

    def hoped_for(params: Any, observation: Observation, bonus: Array) -> Float[Array, "T E N A"]:
        """Q⁺_i of every agent's own actions; those of others earn a bonus."""
        possible = possible_plans(plans, observation.legal, observation.alive)
        bonus = jnp.where(observation.alive[..., None], bonus, 0.0)
        return optimistic(values(params, observation), plans, possible, bonus)

    def expected(log_probs: Array, q: Array) -> Float[Array, "T E N"]:
        """Σ_a π_i(a) Q_i(a), over possible actions."""
        return jnp.sum(jnp.exp(log_probs) * jnp.where(q > distributions.IMPOSSIBLE, q, 0.0), axis=-1)

    def actor_loss(
        params: Any, critic_params: Any, seen: Any, memory: Any, coefficient: Any
    ) -> tuple[Array, Metrics]:
        alive = seen.observation.alive
        log_probs, _ = actor.replay(params, memory, seen.observation, seen.first)
        plan_bonus = jnp.asarray(config.tie_break * jax.lax.stop_gradient(log_probs))
        q = hoped_for(critic_params, seen.observation, plan_bonus)
        entropy = masked_mean(distributions.entropy(log_probs), alive)
        loss = -masked_mean(expected(log_probs, q), alive) - coefficient * entropy
        log_prob = distributions.log_probability(log_probs, seen.action)
        ratio = masked_mean(jnp.exp(log_prob - seen.extras["log_prob"]), alive)
        return loss, {"entropy": entropy, "ratio": ratio, "policy_loss": loss}

    def critic_loss(params: Any, seen: Any, target: Array) -> Array:
        played = finite.joint_index(joint(seen.action, seen.observation.alive), spec.n_actions)
        value = jnp.take_along_axis(values(params, seen.observation), played[..., None], axis=-1)
        return masked_mean((target - value[..., 0]) ** 2, jnp.any(seen.observation.alive, -1))

    def init(key: Key) -> State:
        actor_key, critic_key = keys(key, 2)
        begin_key = jax.random.fold_in(key, 0)
        params = Params(actor.init(actor_key), critic.init(critic_key))
        return State(
            params=params,
            target=params.critic,
            optimiser=Params(*(optimiser.init(p) for p in params)),
            actors=begin(env, actor.policy(params.actor, greedy=False), begin_key, config.envs),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        fallen = jnp.minimum(progress / jnp.maximum(config.entropy_fraction, 1e-6), 1.0)
        coefficient = config.entropy_start + fallen * (config.entropy_end - config.entropy_start)
        params, memory = state.params, state.actors.memory
        behaviour = actor.policy(params.actor, greedy=False)
        actors, seen = rollout(env, behaviour, key, state.actors, steps)
        log_probs, memories = actor.replay(params.actor, memory, seen.observation, seen.first)

        def team_value(observation: Observation, log_probs: Array) -> Float[Array, "T E"]:
            """mean_i V̄⁺_i over living agents."""
            q = hoped_for(state.target, observation, jnp.zeros_like(log_probs))
            total = jnp.sum(jnp.where(observation.alive, expected(log_probs, q), 0.0), axis=-1)
            return total / jnp.maximum(jnp.sum(observation.alive, axis=-1), 1)

        def look_ahead(rows: Any) -> Array:
            """The team's value of what the steps in ``rows [C, E]`` led to; of all if None."""
            ahead = (memories, seen.next)
            m, observation = ahead if rows is None else taken(ahead, rows)
            return team_value(observation, actor.after(params.actor, m, observation))

        value = team_value(seen.observation, log_probs)
        next_value = next_values(value, seen.truncated, look_ahead, spec.horizon)
        ends = (seen.terminated, seen.truncated)
        target = n_step_returns(seen.reward, next_value, *ends, config.gamma, config.n_step)

        slope, report = jax.grad(actor_loss, has_aux=True)(
            params.actor, params.critic, seen, memory, coefficient
        )
        error, critic_slope = jax.value_and_grad(critic_loss)(params.critic, seen, target)
        better, actor_state = optimiser.update(slope, state.optimiser.actor, params.actor, lr)
        improved, critic_state = optimiser.update(
            critic_slope, state.optimiser.critic, params.critic, critic_lr
        )
        followed = jax.tree.map(lambda t, p: t + config.target_update * (p - t), state.target, improved)
        report |= {"value_loss": error, "entropy_coef": jnp.asarray(coefficient, jnp.float32)}
        optimisers = Params(actor_state, critic_state)
        return State(Params(better, improved), followed, optimisers, actors), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return actor.policy(state.params.actor, greedy=greedy)

    return Algorithm(init, step, policy)


def entry_played(spec: Spec, state: Float[Array, "S"], action: Int[Array, "N"]) -> tuple[Array, Array]:
    """Row and column of a table that hold Q(s, u), both ``[1]``."""
    row = state_inputs("table", spec)[0](state)
    return row[None], finite.joint_index(action, spec.n_actions)[None]


def optimistic(
    q: Float[Array, "*batch U"],
    plans: np.ndarray,
    possible: Bool[Array, "*batch U"],
    bonus: Float[Array, "*batch N A"],
) -> Float[Array, "*batch N A"]:
    """max over u_{−i} of Q(s, (a_i, u_{−i})) + Σ_{j≠i} bonus_j(u_j), for every agent and action."""
    agents, width = plans.shape[1], bonus.shape[-1]
    own = bonus[..., np.arange(agents), plans]  # [*batch, U, N]
    others = jnp.sum(own, axis=-1, keepdims=True) - own
    worth = jnp.where(possible[..., None], q[..., None] + others, distributions.IMPOSSIBLE)
    worth = worth.reshape(*q.shape[:-1], *(width,) * agents, agents)
    lead = q.ndim - 1
    best = [
        jnp.max(worth[..., i], axis=tuple(lead + j for j in range(agents) if j != i))
        for i in range(agents)
    ]
    return jnp.stack(best, axis=-2)
