"""COMA: counterfactual multi-agent policy gradients.

    repeat
        collect T steps in E environments with π = Π_i π(a_i | τ_i), π_i = (1 − ε) softmax + ε uniform
        y = TD(λ) target of Q̄(s, u), with the joint actions that were taken
        for K gradient steps, on the whole batch:
            descend  (y − Q_i(s, u_{−i}, u_i))²
        A_i = Q_i(s, u) − Σ_a π_i(a | τ_i) Q_i(s, (u_{−i}, a))                             (eq. 4)
        ascend  mean_i A_i log π_i(u_i | τ_i) + c_H H(π_i)                                 (eq. 5)
        Q̄ ← Q̄ + τ (Q − Q̄)

Source: Foerster et al. 2018. The critic is told the state and what the others do, and gives the
values of all of the agent's own actions in one pass. Its baseline does not depend on the own action,
hence Σ_a π_i(a) A_i(a) = 0: it lowers the variance of the policy gradient and leaves its mean, so that
COMA has the local optima of independent policy gradients.

Differs from the published code in that the critic takes K steps on the whole batch rather than one per
time step, the target critic follows at Polyak's rate, and truncated episodes bootstrap from their true
final state, with a joint action that is drawn there. ε is part of the policy wherever it is computed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_range, require, resolve_steps, struct
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.net import Kind, Remember, network, resolve_kind, state_inputs
from jaxmarl_tad.networks.tables import Logits
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.rollout import Actors, begin, keys, rollout, taken
from jaxmarl_tad.sharing import Mode, init_sets, over_rows, sharing
from jaxmarl_tad.targets import beyond_death, lambda_returns, next_values
from jaxmarl_tad.team import joint, team
from jaxmarl_tad.types import Activation, Algorithm, Key, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of COMA."""

    total_steps: int = 76_800
    """Environment steps of one member, rounded to whole iterations."""
    envs: int = 64
    """Environments acted in at once."""
    steps: int | None = None
    """Rollout length; one episode (up to 128 steps) unless given."""
    updates: int = 16
    """Gradient steps of the critic on each batch; the policy takes one."""
    lr: Real | None = None
    """Adam's learning rate; 0.05 for tables and 5e-4 for other networks unless given."""
    critic_lr_scale: Real | None = None
    """The critic's first learning rate in units of ``lr``; 40 for tables and 1 otherwise unless given.

    Where the critic is behind, the baseline is of no use, and what it misses most are large penalties.
    """
    critic_lr_end: Real = 0.0
    """Share of the critic's learning rate that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.8
    """λ of the critic's targets, in [0, 1]."""
    entropy_coef: Real = 0.3
    """Weight of the entropy bonus, in units of return: advantages are not standardised."""
    epsilon_start: Real = 0.0
    """Weight of the uniform policy in the mixture, in the first iteration."""
    epsilon_end: Real = 0.0
    """Weight of the uniform policy once it has fallen."""
    epsilon_fraction: Real = 0.5
    """Share of the run over which it falls linearly, in [0, 1]."""
    target_update: Real = 0.1
    """Share of the way that the target critic goes after each batch (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for policy and critic each."""
    memory: Remember = "none"
    """Of the policies; the critic has none."""
    sharing: Mode = "full_id"
    """Of the policies, and of the critics, which are always told whom they are asked about."""
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
        require(min(self.envs, self.updates) >= 1, "coma: envs and updates must be positive.")
        shares = ("gamma", "lam", "epsilon_start", "epsilon_end", "epsilon_fraction", "target_update")
        check_range(self, **dict.fromkeys(shares, (0, 1)))
        check_range(self, entropy_coef=(0, jnp.inf), critic_lr_scale=(0, jnp.inf))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    require(spec.discrete, "coma: actions must be discrete; this environment's are continuous.")
    agents, others = spec.n_agents, spec.n_actions ** (spec.n_agents - 1)
    rows = max(spec.obs_dim * agents, spec.state_dim * others * agents)
    kind = resolve_kind(config.network, config.memory, spec, rows)
    lr, scale = (0.05, 40.0) if kind == "table" else (5e-4, 1.0)
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
    """The learner of COMA on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    assert config.steps is not None and config.lr is not None and config.critic_lr_scale is not None
    steps, lr, critic_lr = config.steps, config.lr, config.lr * config.critic_lr_scale
    actor = team(config, spec)
    optimiser = adam(config.max_grad_norm)

    # What the critic of each agent sees: the state, what the others do, and which agent it is.
    share = sharing("none" if config.sharing == "none" else "full", spec.n_agents)
    view, inputs = critic_inputs(config.network, spec)
    critic = network(
        config.network,
        inputs=inputs,
        outputs=spec.n_actions,
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
        gain=0.0 if config.network == "table" else 1.0,
    )
    critic_rows = over_rows(critic.apply, share)

    def values(params: Any, observation: Observation, action: Array) -> Float[Array, "T E N A"]:
        """Q_i(s, (u_{−i}, ·)) of every agent."""
        seen = jax.vmap(jax.vmap(view))(observation.state, joint(action, observation.alive))
        return critic_rows(params, (), seen, 2)[0]

    def value_taken(params: Any, observation: Observation, action: Array) -> Float[Array, "T E N"]:
        """Q_i(s, u)."""
        return distributions.taken(values(params, observation, action), action)

    def critic_loss(params: Any, seen: Any, target: Array) -> Array:
        value = value_taken(params, seen.observation, seen.action)
        return masked_mean((target - value) ** 2, seen.observation.alive)

    def actor_loss(
        params: Any, critic_params: Any, seen: Any, memory: Any, epsilon: Any
    ) -> tuple[Array, Metrics]:
        alive = seen.observation.alive
        log_probs, _ = actor.replay(params, memory, seen.observation, seen.first, epsilon)
        log_prob = distributions.log_probability(log_probs, seen.action)
        q = values(critic_params, seen.observation, seen.action)
        advantage = counterfactual_advantage(q, jax.lax.stop_gradient(log_probs), seen.action)
        entropy = masked_mean(distributions.entropy(log_probs), alive)
        loss = -masked_mean(advantage * log_prob, alive) - config.entropy_coef * entropy
        ratio = masked_mean(jnp.exp(log_prob - seen.extras["log_prob"]), alive)
        return loss, {"entropy": entropy, "ratio": ratio, "policy_loss": loss}

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
        collect_key, draw_key = keys(key, 2)
        fallen = jnp.minimum(progress / jnp.maximum(config.epsilon_fraction, 1e-6), 1.0)
        epsilon = config.epsilon_start + fallen * (config.epsilon_end - config.epsilon_start)
        rate = critic_lr * (1 - (1 - config.critic_lr_end) * progress)
        params, memory = state.params, state.actors.memory
        behaviour = actor.policy(params.actor, greedy=False, epsilon=epsilon)
        actors, seen = rollout(env, behaviour, collect_key, state.actors, steps)

        # Where an episode was cut off, the joint action that would have followed is drawn.
        _, memories = actor.replay(params.actor, memory, seen.observation, seen.first)
        uniform = jax.random.uniform(draw_key, seen.action.shape)

        def look_ahead(rows: Any) -> Array:
            """Q̄_i of what the steps in ``rows [C, E]`` led to; of all steps if None."""
            ahead = (memories, seen.next, uniform)
            m, observation, u = ahead if rows is None else taken(ahead, rows)
            action = distributions.sample(u, actor.after(params.actor, m, observation, epsilon))
            return value_taken(state.target, observation, action)

        value = value_taken(state.target, seen.observation, seen.action)
        next_value = next_values(value, seen.truncated, look_ahead, spec.horizon)
        next_value = beyond_death(next_value, seen.next.alive)
        ends = (seen.terminated, seen.truncated)
        target = lambda_returns(seen.reward, next_value, *ends, config.gamma, config.lam)

        def update(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
            critic_params, optimiser_state = carry
            error, gradient = jax.value_and_grad(critic_loss)(critic_params, seen, target)
            return optimiser.update(gradient, optimiser_state, critic_params, rate), error

        carry = (params.critic, state.optimiser.critic)
        (improved, critic_state), errors = jax.lax.scan(update, carry, length=config.updates)
        gradient, report = jax.grad(actor_loss, has_aux=True)(
            params.actor, improved, seen, memory, epsilon
        )
        better, actor_state = optimiser.update(gradient, state.optimiser.actor, params.actor, lr)
        followed = jax.tree.map(lambda t, p: t + config.target_update * (p - t), state.target, improved)
        report |= {"value_loss": errors.mean(), "epsilon": jnp.asarray(epsilon, jnp.float32)}
        optimisers = Params(actor_state, critic_state)
        return State(Params(better, improved), followed, optimisers, actors), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return actor.policy(state.params.actor, greedy=greedy, epsilon=config.epsilon_end)

    return Algorithm(init, step, policy)


def counterfactual_advantage(
    q: Float[Array, "*batch A"], log_probs: Float[Array, "*batch A"], action: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Q(s, u) − Σ_a π(a) Q(s, (u_{−i}, a)) of one agent (Foerster et al. 2018, eq. 4)."""
    return distributions.taken(q, action) - jnp.sum(jnp.exp(log_probs) * q, axis=-1)


def critic_inputs(kind: Kind, spec: Spec) -> tuple[Any, int]:
    """What the critic of each agent is fed: ``view(state [S], joint action [N])``, and its size.

    Tables get an index ``[N]``, one row for every state, joint action of the others, and agent. Other
    networks get ``[N, inputs]``: the state, the others' actions one-hot with zeros in the agent's own
    place, and the agent's index one-hot.
    """
    n, width = spec.n_agents, spec.n_actions
    agents, (state_view, state_size) = jnp.arange(n), state_inputs(kind, spec)
    if kind == "table":
        # The others' actions are the digits of a number; the agent's own has weight 0.
        rank = np.arange(n)[None, :] - (np.arange(n)[None, :] > np.arange(n)[:, None])
        weight = np.where(np.eye(n, dtype=bool), 0, width**rank)

        def index(state: Array, action: Array) -> Array:
            others = jnp.sum(action * weight.astype(np.int32), axis=-1)
            return (state_view(state) * width ** (n - 1) + others) * n + agents

        return index, state_size * width ** (n - 1) * n

    def features(state: Array, action: Array) -> Array:
        chosen = jax.nn.one_hot(action, width)[None] * (1 - jnp.eye(n))[..., None]
        told = jnp.broadcast_to(state, (n, *state.shape))
        return jnp.concatenate([told, chosen.reshape(n, -1), jnp.eye(n)], axis=-1)

    return features, state_size + n * width + n


def entry_played(spec: Spec, state: Float[Array, "S"], action: Int[Array, "N"]) -> tuple[Array, Array]:
    """Rows and columns of a table that hold every Q_i(s, u), both ``[N]``."""
    return critic_inputs("table", spec)[0](state, action), action
