"""HAPPO and HAA2C: agents that improve one after the other, each knowing what the last ones became.

    repeat
        collect T steps in E environments with π_old = Π_i π_i(a_i | τ_i)
        G_t = λ-return of V(s);   Â = G − V, standardised over living agents
        M ← 1
        for each agent i, in a random order:
            for K epochs, for each minibatch of environments:
                ρ = π_i(a_i | τ_i) / π_old,i(a_i | τ_i)
                ascend  mean min(ρ M Â, clip(ρ, 1 ± ε) M Â) + c_H H(π_i)
            M ← M π_i(a_i | τ_i) / π_old,i(a_i | τ_i), on the whole batch
        descend  the clipped Huber loss of V on normalised G

Source: Kuba et al. 2022, algorithm 3 (HAPPO); Zhong et al. 2024 (HAA2C, which ascends ρ M Â without
clipping). M Â estimates what agent i's action is worth once the agents before it have moved (by the
advantage decomposition lemma), so that, unlike with simultaneous steps, no agent steps into a place
that another has just left. M is never clipped: with many agents and epochs its variance grows.

Agents share no parameters by default: where they do, each turn moves those that have had theirs, and
nothing is promised. Differs from HARL as PPO does here: truncated episodes bootstrap from their true
final observation, and minibatches are drawn over environments.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_steps, struct
from jaxmarl_tad.critics import critic as critic_of
from jaxmarl_tad.critics import improve_critic, lessons
from jaxmarl_tad.losses import clipped_surrogate, masked_mean, standardise
from jaxmarl_tad.networks.net import Kind, Remember, resolve_kind
from jaxmarl_tad.networks.tables import Logits
from jaxmarl_tad.normalise import Scale, init_scale
from jaxmarl_tad.optimise import Alone, adam, improve
from jaxmarl_tad.rollout import Actors, begin, keys, rollout
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.team import Turn, moved, order_of_turns, soloists
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Spec


@struct
class Config:
    """Settings of HAPPO and HAA2C."""

    total_steps: int = 38_400
    """Environment steps of one member, rounded to whole iterations."""
    envs: int = 128
    """Environments acted in at once."""
    steps: int | None = None
    """Rollout length; one episode (up to 128 steps) unless given."""
    epochs: int = 4
    """Passes of each agent, and of the critic, over each batch."""
    minibatches: int = 1
    """Parts of each pass; divides ``envs``."""
    lr: Real | None = None
    """Adam's learning rate; 0.02 for tables and 5e-4 for other networks unless given."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.95
    """λ of the λ-return, in [0, 1]."""
    objective: Literal["clipped", "plain"] = "clipped"
    """What agents ascend: PPO's surrogate (HAPPO) or ρ M Â itself (HAA2C)."""
    clip: Real = 0.2
    """ε of the clipped ratio and of the clipped value."""
    order: Literal["random", "fixed"] = "random"
    """Whose turn is next: another permutation in every iteration, or by index."""
    entropy_coef: Real = 0.01
    """Weight of the entropy bonus."""
    huber_delta: Real = 10.0
    """Error beyond which the value loss is linear, in units of normalised return."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for each policy and the critic."""
    memory: Remember = "none"
    sharing: Mode = "none"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = True
    """Whether a layer norm stands before and after every hidden layer, as in MAPPO's recipe."""
    head: distributions.Family = "gaussian"
    """How continuous actions are distributed: as drawn, or bounded by tanh."""
    initial_logits: Logits = 0.0
    """Added to a table's initial logits: ``[A]``, or ``[N, A]`` by agent. Means, if continuous."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        require(min(self.envs, self.epochs, self.minibatches) >= 1, "happo: sizes must be positive.")
        check_divides(self, "minibatches", "envs")
        check_range(self, gamma=(0, 1), lam=(0, 1), clip=(0, 1), entropy_coef=(0, jnp.inf))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    rows = max(spec.obs_dim * spec.n_agents, spec.state_dim)
    kind = resolve_kind(config.network, config.memory, spec, rows)
    lr = (0.02 if kind == "table" else 5e-4) if config.lr is None else config.lr
    return {"network": kind, "steps": resolve_steps(config.steps, spec), "lr": lr}


class Params(NamedTuple):
    """Parameter sets of the policies and of the critic."""

    actor: Any
    critic: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    optimiser: Params
    scale: Scale
    actors: Actors
    critic_memory: Memory


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of HAPPO or HAA2C on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    assert config.steps is not None and config.lr is not None
    steps, lr = config.steps, config.lr
    team, critic = soloists(config, spec), critic_of(config, spec, "state")
    optimiser = adam(config.max_grad_norm)
    passes = {"lr": lr, "count": config.epochs, "minibatches": config.minibatches}

    def loss(params: Alone, turn: Turn, memory: Memory) -> tuple[Any, Metrics]:
        """Of one agent, whose ``turn.advantage`` is M Â."""
        log_prob, entropy = team.judge(team.outputs(params.part, turn, memory), turn)
        ratio = jnp.exp(log_prob - turn.log_prob)
        objective = ratio * turn.advantage
        if config.objective == "clipped":
            objective = clipped_surrogate(ratio, turn.advantage, config.clip)
        policy_loss = -masked_mean(objective, turn.alive) - config.entropy_coef * entropy
        report = {"entropy": entropy, "ratio": masked_mean(ratio, turn.alive)}
        return policy_loss, report | {"policy_loss": policy_loss}

    def init(key: Key) -> State:
        actor_key, critic_key = keys(key, 2)
        begin_key = jax.random.fold_in(key, 0)
        params = Params(team.init(actor_key), critic.init(critic_key))
        return State(
            params=params,
            optimiser=Params(
                actor=jax.vmap(optimiser.init)(team.vectors(params.actor)),
                critic=optimiser.init(params.critic),
            ),
            scale=init_scale(),
            actors=begin(env, team.policy(params.actor, greedy=False), begin_key, config.envs),
            critic_memory=critic.start(config.envs),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key, turn_key, order_key = keys(key, 4)
        params = state.params
        behaviour = team.policy(params.actor, greedy=False)
        actors, seen = rollout(env, behaviour, collect_key, state.actors, steps)
        judged = critic.assess(
            params.critic, state.critic_memory, seen, state.scale, config.gamma, config.lam
        )
        alive = seen.observation.alive
        turns = team.turns(seen, state.actors.memory, standardise(judged.advantage, alive))

        def learn(carry: tuple[Any, Any, Any], agent: Any) -> tuple[tuple[Any, Any, Any], Metrics]:
            """The turn of one agent, and what it does to M ``[T, E]``."""
            vectors, optimisers, m = carry
            mine = team.set_of(agent)
            turn, memory = jax.tree.map(lambda x: x[agent], turns)
            (own,), (optimised,), report = improve(
                loss,
                optimiser,
                Alone(vectors[mine]),
                Alone(jax.tree.map(lambda x: x[mine], optimisers)),
                turn._replace(advantage=m * turn.advantage),
                memory,
                jax.random.fold_in(turn_key, agent),
                **passes,
            )
            log_prob, _ = team.judge(team.outputs(own, turn, memory), turn)
            m = m * moved(log_prob, turn.log_prob, turn.alive)
            optimisers = jax.tree.map(lambda x, new: x.at[mine].set(new), optimisers, optimised)
            return (vectors.at[mine].set(own), optimisers, m), report

        order = order_of_turns(order_key, spec.n_agents, config.order)
        start = (team.vectors(params.actor), state.optimiser.actor, jnp.ones(alive.shape[:2]))
        (vectors, optimisers, m), reports = jax.lax.scan(learn, start, order)

        valued, valued_state, report = improve_critic(
            critic,
            optimiser,
            params.critic,
            state.optimiser.critic,
            lessons(critic, judged, seen),
            state.critic_memory,
            learn_key,
            clip=config.clip,
            huber_delta=config.huber_delta,
            **passes,
        )
        report |= jax.tree.map(lambda x: x.mean(0), reports) | {"importance": m.mean()}
        learned = Params(team.sets(vectors), valued)
        optimised = Params(optimisers, valued_state)
        return State(learned, optimised, judged.scale, actors, judged.memory), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return team.policy(state.params.actor, greedy=greedy)

    return Algorithm(init, step, policy)
