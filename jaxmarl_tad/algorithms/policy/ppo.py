"""IPPO and MAPPO: independent and multi-agent proximal policy optimisation.

    repeat
        collect T steps in E environments with π_old = Π_i π(a_i | τ_i)
        G_t = λ-return of V;   Â = G − V, standardised over living agents
        for K epochs, for each minibatch of environments:
            ρ_i = π(a_i | τ_i) / π_old(a_i | τ_i)
            ascend   mean_i min(ρ_i Â_i, clip(ρ_i, 1 ± ε) Â_i) + c_H H(π_i)
            descend  the clipped Huber loss of V on normalised G

Source: Schulman et al. 2017, eq. 7 (the objective); de Witt et al. 2020 (IPPO); Yu et al. 2022
(MAPPO, its value normalisation and its recipe). The critic of IPPO sees what the agent sees, that of
MAPPO sees the global state and gives one value to all: ``critic="local" | "state"``. Differs from
MAPPO's recipe in that truncated episodes bootstrap from their true final observation, and in that
minibatches are drawn over environments. Continuous actions are Gaussian with a deviation that does not
depend on what is seen, as in HARL.

With ``information`` other than ``local`` actors are told z_i of the global state, so that they act
centrally (Chen et al. 2024, PTDE, stage 1; :mod:`networks.personalised`): π(a_i | τ_i, z_i). What was
drawn for z_i is recorded, so that ρ_i is 1 before anything is learned. ``distill`` turns the result
into decentralised policies.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_steps, struct
from jaxmarl_tad.critics import critic as critic_of
from jaxmarl_tad.losses import (
    clipped_surrogate,
    clipped_value_loss,
    masked_mean,
    standardise,
)
from jaxmarl_tad.networks import personalised
from jaxmarl_tad.networks.net import (
    Kind,
    Remember,
    agent_inputs,
    network,
    resolve_kind,
    unroll,
    with_spread,
)
from jaxmarl_tad.networks.tables import Logits, biased, choices, legal_actions
from jaxmarl_tad.normalise import Scale, init_scale
from jaxmarl_tad.optimise import adam, improve
from jaxmarl_tad.rollout import Actors, begin, keys, rollout
from jaxmarl_tad.sharing import Mode, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.types import Activation, Algorithm, Informed, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of IPPO and MAPPO."""

    total_steps: int = 38_400
    """Environment steps of one member, rounded to whole iterations."""
    envs: int = 128
    """Environments acted in at once."""
    steps: int | None = None
    """Rollout length; one episode (up to 128 steps) unless given."""
    epochs: int = 4
    """Passes over each batch."""
    minibatches: int = 1
    """Parts of each pass; divides ``envs``."""
    lr: Real | None = None
    """Adam's learning rate; 0.02 for tables and 5e-4 for other networks, 2e-3 if these are told of
    the state, unless given."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.95
    """λ of the λ-return, in [0, 1]."""
    clip: Real = 0.2
    """ε of the clipped ratio and of the clipped value."""
    entropy_coef: Real = 0.01
    """Weight of the entropy bonus."""
    huber_delta: Real = 10.0
    """Error beyond which the value loss is linear, in units of normalised return."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for policy and critic each."""
    critic: Literal["local", "state"] = "local"
    """What the critic sees: each agent's own view (IPPO) or the global state (MAPPO)."""
    information: personalised.Information = "local"
    """What actors are told of the global state: see :mod:`jaxmarl_tad.networks.personalised`."""
    z_size: int = 64
    """How many numbers an agent is told."""
    z_source: personalised.Source = "observation"
    """What personalises them: what the agent sees, or (with a memory) has seen."""
    z_rank: int | None = None
    """Features to which the state is mapped before it is personalised: none, unless given."""
    z_noise: Real = 1.0
    """What the deviation of z is multiplied by while learning; 0 leaves its mean."""
    memory: Remember = "none"
    sharing: Mode = "full_id"
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
        require(min(self.envs, self.epochs, self.minibatches) >= 1, "ppo: sizes must be positive.")
        check_divides(self, "minibatches", "envs")
        check_range(self, gamma=(0, 1), lam=(0, 1), clip=(0, 1), entropy_coef=(0, jnp.inf))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    personalised.check(config, spec)
    told = config.information != "local"
    rows = spec.obs_dim * spec.n_agents
    kind = resolve_kind("mlp" if told else config.network, config.memory, spec, rows)
    for_others = 2e-3 if told else 5e-4
    lr = (0.02 if kind == "table" else for_others) if config.lr is None else config.lr
    return {"network": kind, "steps": resolve_steps(config.steps, spec), "lr": lr}


class Params(NamedTuple):
    """Parameter sets of the policy and of the critic."""

    actor: Any
    critic: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    optimiser: Params
    scale: Scale
    actors: Actors
    critic_memory: Memory


class Batch(NamedTuple):
    """What the epochs learn from; leaves ``[T, E, ...]``."""

    views: Any
    critic_views: Any
    legal: Any
    alive: Any
    action: Any
    log_prob: Any
    advantage: Any
    value: Any
    target: Any
    first: Any
    noise: Any
    """What was drawn for what the actors were told; None where they are told nothing."""


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of IPPO or MAPPO on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    agents = jnp.arange(spec.n_agents)
    share = sharing(config.sharing, spec.n_agents)
    assert config.steps is not None and config.lr is not None
    steps, lr = config.steps, config.lr

    # In a finite game every agent reads rows of its own table of distributions.
    tabular = config.network == "table"
    gathered = tabular and spec.discrete
    legal: Any = legal_actions(env) if gathered else None
    head = distributions.head(config.head, spec)

    # What the policy sees: its own row, one agent at a time.
    view, inputs = agent_inputs(config.network, spec, share.identity)
    actor = network(
        config.network,
        inputs=inputs,
        outputs=head.outputs,
        hidden=config.hidden,
        memory=config.memory,
        activation=config.activation,
        layer_norm=config.layer_norm,
        gain=0.01,
    )
    if not spec.discrete:
        actor = with_spread(actor, head.outputs, distributions.FIRST_SPREAD)
    act_all, act_rows = over_agents(actor.apply, share), over_rows(actor.apply, share)
    # Who tells the actors of the state, if they are told: their parameters lie beside the actors'.
    informant = personalised.informant(config, spec, share, inputs)

    def actor_start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), actor.start())

    # What the critic sees: the same rows, or the state, once.
    critic = critic_of(config, spec, config.critic)
    # Policy and critic may be fed the same, which is kept once.
    alike = config.critic == "local" and not gathered and informant is None

    def views(observation: Observation) -> Any:
        if gathered:
            return jnp.argmax(observation.agents, -1)
        rows = jax.vmap(view)(observation.agents, agents)
        return rows if informant is None else personalised.Seen(rows, observation.state)

    batched = lambda function: jax.vmap(jax.vmap(function))  # over [T, E]  # noqa: E731
    optimiser = adam(config.max_grad_norm)

    def decide(params: Any, memory: Memory, batch: Batch) -> tuple[Any, Any]:
        """log π(a_i | τ_i) of the actions taken ``[T, E, N]``, and the mean entropy of π(· | τ_i)."""
        if gathered:
            table = choices(params, share, legal)
            return table.taken(agents, batch.views, batch.action, batch.alive)
        own = params if informant is None else params["own"]
        seen = batch.views if informant is None else batch.views.rows
        one, many = (functools.partial(f, own) for f in (act_all, act_rows))
        outputs, memories = unroll(one, actor_start(), memory, seen, batch.first, many)
        if informant is not None:
            told = params["told"]
            outputs, _ = informant.inform(told, outputs, batch.views, memories, batch.noise)
        if spec.discrete:
            log_probs = distributions.log_probabilities(outputs, batch.legal)
            log_prob = distributions.log_probability(log_probs, batch.action)
            return log_prob, masked_mean(distributions.entropy(log_probs), batch.alive)
        log_prob, entropy = head.judge(outputs, batch.legal, batch.action)
        return log_prob, masked_mean(entropy, batch.alive)

    def loss(params: Params, batch: Batch, memory: Params) -> tuple[Any, Metrics]:
        log_prob, entropy = decide(params.actor, memory.actor, batch)
        ratio = jnp.exp(log_prob - batch.log_prob)
        objective = clipped_surrogate(ratio, batch.advantage, config.clip)
        policy_loss = -masked_mean(objective, batch.alive) - config.entropy_coef * entropy

        fed = batch.views if alike else batch.critic_views
        value, _ = critic.values(params.critic, memory.critic, fed, batch.first)
        error = clipped_value_loss(value, batch.value, batch.target, config.clip, config.huber_delta)
        value_loss = masked_mean(error, critic.counted(batch.alive))
        report = {"entropy": entropy, "ratio": masked_mean(ratio, batch.alive)}
        report |= {"policy_loss": policy_loss, "value_loss": value_loss}
        return policy_loss + value_loss, report

    def init(key: Key) -> State:
        actor_key, critic_key = keys(key, 2)
        begin_key = jax.random.fold_in(key, 0)
        drawn = init_sets(actor.init, actor_key, share)
        bias = lambda table: biased(table, config.initial_logits, config.network, spec, share)  # noqa: E731
        own = bias(drawn) if spec.discrete else drawn | {"mean": bias(drawn["mean"])}
        if informant is not None:
            own = {"own": own, "told": informant.init(jax.random.fold_in(key, 1))}
        params = Params(actor=own, critic=critic.init(critic_key))
        return State(
            params=params,
            optimiser=Params(*(optimiser.init(p) for p in params)),
            scale=init_scale(),
            actors=begin(env, policy_of(params, greedy=False), begin_key, config.envs),
            critic_memory=critic.start(config.envs),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        memory = Params(actor=state.actors.memory, critic=state.critic_memory)
        behaviour = policy_of(state.params, greedy=False)
        actors, seen = rollout(env, behaviour, collect_key, state.actors, steps)

        judged = critic.assess(
            state.params.critic, memory.critic, seen, state.scale, config.gamma, config.lam
        )
        alive = seen.observation.alive
        batch = Batch(
            views=judged.views if alike else batched(views)(seen.observation),
            critic_views=None if alike else judged.views,
            legal=seen.observation.legal,
            alive=alive,
            action=seen.extras.get("chosen", seen.action),
            log_prob=seen.extras["log_prob"],
            advantage=standardise(judged.advantage, alive),
            value=judged.value,
            target=judged.target,
            first=seen.first,
            noise=seen.extras.get("noise"),
        )

        params, optimisers, report = improve(
            loss,
            optimiser,
            state.params,
            state.optimiser,
            batch,
            memory,
            learn_key,
            lr=lr,
            count=config.epochs,
            minibatches=config.minibatches,
        )
        return State(params, optimisers, judged.scale, actors, judged.memory), report

    def policy_of(params: Params, *, greedy: bool) -> Policy:
        if informant is not None:
            return central_policy(params.actor, greedy=greedy)
        table = choices(params.actor, share, legal) if gathered else None

        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            noise = head.noise(key, spec.n_agents)
            if table is not None:
                action, extras = table.act(noise, agents, views(observation), observation.legal, greedy)
                return action, memory, extras
            outputs, memory = act_all(params.actor, memory, views(observation))
            action, extras = head.decide(noise, outputs, observation.legal, greedy)
            return action, memory, extras

        return Policy(start=actor_start, act=act, execution="decentralised")

    def central_policy(params: Any, *, greedy: bool) -> Policy:
        """The policy of actors that are told of the state."""
        assert informant is not None
        teller = informant

        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            key, noise_key = jax.random.split(key)
            seen, drawn = views(observation), {}
            if teller.random and not greedy:
                noise = jax.random.normal(noise_key, (spec.n_agents, teller.size))
                drawn = {"noise": config.z_noise * noise}
            outputs, memory = act_all(params["own"], memory, seen.rows)
            outputs, z = teller.inform(params["told"], outputs, seen, memory, drawn.get("noise"))
            uniform = head.noise(key, spec.n_agents)
            action, extras = head.decide(uniform, outputs, observation.legal, greedy)
            return action, memory, extras | drawn | {"z": z}

        return Policy(actor_start, act, "centralised")

    def informed(state: State) -> Informed:
        assert informant is not None
        size, heard, params = informant.size, informant.heard, state.params.actor

        def act(key: Key, memory: Memory, observation: Observation, z: Array) -> tuple[Any, Any, Any]:
            rows = jax.vmap(view)(observation.agents, agents)
            outputs, memory = act_all(params["own"], memory, rows)
            outputs = outputs + heard(params["told"], z)
            uniform = head.noise(key, spec.n_agents)
            action, extras = head.decide(uniform, outputs, observation.legal, True)
            return action, memory, extras

        acting = {"own": params["own"], "heard": params["told"]["out"]}
        return Informed(size, actor_start, act, acting, share.assignment)

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params, greedy=greedy)

    return Algorithm(init, step, policy, None if informant is None else informed)
