"""MAGPO, multi-agent guided policy optimisation: a joint guider and decentralised learners, together.

    repeat
        collect T steps in E environments with the guider μ_old(a|s) = Π_k μ(a_{i_k} | s, a_{i_1} …)
        G = λ-return of V(s);   Â = G − V(s), standardised
        for K epochs, for each minibatch of environments, for every agent i:
            ρ = μ(a_i | s, a_{<i}) / μ_old(a_i | s, a_{<i});   q = μ(a_i | s, a_{<i}) / π(a_i | τ_i)
            ρ̄ = clip(clip(q, 1/δ, δ) π(a_i | τ_i) / μ_old(a_i | s, a_{<i}), 1 ± ε)
            guider   ascend  mean min(ρ Â, ρ̄ Â) − 1[q outside (1/δ, δ)] KL(μ || sg π) + c_H H(μ)
            learner  ascend  α mean min(ρ' Â, clip(ρ', 1 ± ε) Â) − KL(sg μ || π)
                     with ρ' = π(a_i | τ_i) / μ_old(a_i | s, a_{<i})
            critic   descend the clipped Huber loss of V on normalised G

Source: Li et al. 2025 (arXiv 2507.18059), equations 9 to 12 in their practical form, and its code. The
guider acts and explores; δ bounds how far it may lead the learners, who are what is deployed. Differs
in the networks: prefix heads in the place of Sable, and the guider is shown the global state; in that
guider, learners and critic have optimisers of their own; and in that c_H falls linearly over the run.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmarl_tad import distributions
from jaxmarl_tad.autoregressive import Autoregressive, Order, autoregressive, rows_needed
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_steps, struct
from jaxmarl_tad.critics import Lessons, critic_loss, lessons
from jaxmarl_tad.critics import critic as critic_of
from jaxmarl_tad.losses import clipped_surrogate, masked_mean, standardise
from jaxmarl_tad.networks.net import (
    Kind,
    Remember,
    agent_inputs,
    network,
    resolve_kind,
    unroll,
    with_spread,
)
from jaxmarl_tad.networks.prefix import Read
from jaxmarl_tad.networks.tables import Logits, biased
from jaxmarl_tad.normalise import Scale, init_scale
from jaxmarl_tad.optimise import adam, improve
from jaxmarl_tad.rollout import Actors, begin, keys, rollout
from jaxmarl_tad.sharing import Mode, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.types import Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of MAGPO."""

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
    """Adam's learning rate; 0.02 for tables and 5e-4 for other networks unless given."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.95
    """λ of the λ-return, in [0, 1]."""
    clip: Real = 0.2
    """ε of the clipped ratios and of the clipped value."""
    delta: Real = 5.0
    """δ: how many times more or less likely than the learner the guider may make an action; above 1.
    The paper's lie between 1.2 and 3. Up to 2 the learners hold the guider in climbing's trap."""
    alpha: Real = 1.0
    """α: weight of the learners' own PPO beside their imitation of the guider."""
    entropy_coef: Real = 0.7
    """Weight of the guider's entropy bonus in the first iteration."""
    entropy_end: Real = 0.01
    """Share of it that is left once it has fallen."""
    entropy_fraction: Real = 0.4
    """Share of the run over which it falls linearly, in [0, 1]."""
    huber_delta: Real = 10.0
    """Error beyond which the value loss is linear, in units of normalised return."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for guider, learners and critic each."""
    order: Order = "fixed"
    """In which order the guider chooses: by index, or drawn for every step."""
    prefix: Read = "sum"
    """How networks other than tables read the choices before."""
    memory: Remember = "none"
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    head: distributions.Family = "gaussian"
    """How continuous actions are distributed: as drawn, or bounded by tanh."""
    initial_logits: Logits = 0.0
    """Added to the initial logits of tables, the guider's and the learners': ``[A]``, or ``[N, A]``."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = min(self.envs, self.epochs, self.minibatches)
        require(sizes >= 1, "magpo: envs, epochs and minibatches must be positive.")
        check_divides(self, "minibatches", "envs")
        shares = ("gamma", "lam", "clip", "entropy_end", "entropy_fraction")
        check_range(self, **dict.fromkeys(shares, (0, 1)))
        check_range(self, delta=(1, jnp.inf), alpha=(0, jnp.inf), entropy_coef=(0, jnp.inf))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    require(
        spec.discrete or config.network != "table",
        "magpo: network='table' has a row for every choice of those before, and continuous actions "
        "cannot be listed; use network='mlp'.",
    )
    rows = rows_needed("state", spec, config.sharing == "full_id")
    rows = max(rows, spec.obs_dim * spec.n_agents)
    kind = resolve_kind(config.network, config.memory, spec, rows) if spec.discrete else "mlp"
    lr = (0.02 if kind == "table" else 5e-4) if config.lr is None else config.lr
    return {"network": kind, "steps": resolve_steps(config.steps, spec), "lr": lr}


class Params(NamedTuple):
    """Parameter sets of the guider μ, of the learners π and of the critic V."""

    guider: Any
    learner: Any
    critic: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    optimiser: Params
    scale: Scale
    actors: Actors
    learner_memory: Memory
    critic_memory: Memory


class Batch(NamedTuple):
    """What the epochs learn from; leaves ``[T, E, ...]``."""

    observation: Observation
    chosen: Any
    order: Any
    """Who chose at each position, ``[T, E, N]``; None if by index."""
    log_prob: Any
    """log μ_old(a_i | s, a_{<i}) ``[T, E, N]``."""
    advantage: Any
    lessons: Lessons
    first: Any
    entropy_coef: Any


def guider_of(config: Config, spec: Spec) -> Autoregressive:
    """The guider μ that a resolved ``config`` means."""
    return autoregressive(config, spec, "state")


def double_clipped(
    log_guider: Float[Array, "*batch"],
    log_learner: Float[Array, "*batch"],
    log_old: Float[Array, "*batch"],
    advantage: Float[Array, "*batch"],
    clip: Real,
    delta: Real,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """min(ρ Â, ρ̄ Â) of the guider, to be maximised, and 1 where μ / π lies outside (1/δ, δ), else 0."""
    apart = log_guider - log_learner
    reach = jnp.log(jnp.asarray(delta, jnp.float32))
    held = jnp.exp(jnp.clip(apart, -reach, reach) + log_learner - log_old)
    held = jnp.clip(held, 1 - clip, 1 + clip)
    ratio = jnp.exp(log_guider - log_old)
    outside = (jnp.abs(apart) > reach).astype(jnp.float32)
    return jnp.minimum(ratio * advantage, held * advantage), outside


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of guider and learners; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    n, agents = spec.n_agents, jnp.arange(spec.n_agents)
    share = sharing(config.sharing, n)
    assert config.steps is not None and config.lr is not None
    steps, lr = config.steps, config.lr
    family = distributions.head(config.head, spec)
    guider, critic = guider_of(config, spec), critic_of(config, spec, "state")
    optimiser = adam(config.max_grad_norm)

    # What a learner sees: its own row, one agent at a time.
    view, inputs = agent_inputs(config.network, spec, share.identity)
    learner = network(
        config.network,
        inputs=inputs,
        outputs=family.outputs,
        hidden=config.hidden,
        memory=config.memory,
        gain=0.01,
    )
    if not spec.discrete:
        learner = with_spread(learner, family.outputs, distributions.FIRST_SPREAD)
    act_all, act_rows = over_agents(learner.apply, share), over_rows(learner.apply, share)

    def learner_start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (n, 1)), learner.start())

    def views(observation: Observation) -> Any:
        return jax.vmap(view)(observation.agents, agents)

    def of_learners(params: Any, memory: Memory, seen: Observation, first: Any) -> tuple[Array, Memory]:
        """What the learners' distributions are made from ``[T, E, N, K]``, and memories after."""
        rows = jax.vmap(jax.vmap(views))(seen)
        one, many = (functools.partial(f, params) for f in (act_all, act_rows))
        return unroll(one, learner_start(), memory, rows, first, many)

    def loss(params: Params, batch: Batch, memory: Params) -> tuple[Any, Metrics]:
        seen, chosen, alive = batch.observation, batch.chosen, batch.observation.alive
        told = (chosen, batch.order, batch.first)
        leads, _ = guider.replay(params.guider, memory.guider, seen, *told)
        follows, _ = of_learners(params.learner, memory.learner, seen, batch.first)
        leads_fixed, follows_fixed = jax.lax.stop_gradient((leads, follows))
        log_guider, entropy = family.judge(leads, seen.legal, chosen)
        log_learner, _ = family.judge(follows, seen.legal, chosen)
        advantage = jnp.broadcast_to(batch.advantage[..., None], alive.shape)

        objective, outside = double_clipped(
            log_guider,
            jax.lax.stop_gradient(log_learner),
            batch.log_prob,
            advantage,
            config.clip,
            config.delta,
        )
        back = outside * family.divergence(leads, follows_fixed, seen.legal)
        bonus = batch.entropy_coef[..., None] * entropy
        guider_loss = -masked_mean(objective - back + bonus, alive)

        own = clipped_surrogate(jnp.exp(log_learner - batch.log_prob), advantage, config.clip)
        imitation = family.divergence(leads_fixed, follows, seen.legal)
        learner_loss = masked_mean(imitation - config.alpha * own, alive)

        known = (params.critic, memory.critic, batch.lessons)
        value_loss = critic_loss(critic, *known, config.clip, config.huber_delta)
        report = {"ratio": masked_mean(jnp.exp(log_guider - batch.log_prob), alive)}
        report |= {"entropy": masked_mean(entropy, alive), "kl": masked_mean(imitation, alive)}
        report |= {"outside": masked_mean(outside, alive), "guider_loss": guider_loss}
        report |= {"learner_loss": learner_loss, "value_loss": value_loss}
        return guider_loss + learner_loss + value_loss, report

    def init(key: Key) -> State:
        guider_key, learner_key, critic_key = keys(key, 3)
        begin_key = jax.random.fold_in(key, 0)
        drawn = init_sets(learner.init, learner_key, share)
        params = Params(
            guider=guider.init(guider_key),
            learner=biased(drawn, config.initial_logits, config.network, spec, share),
            critic=critic.init(critic_key),
        )
        tiled = lambda m: jnp.tile(m, (config.envs, *[1] * m.ndim))  # noqa: E731
        return State(
            params=params,
            optimiser=Params(*(optimiser.init(p) for p in params)),
            scale=init_scale(),
            actors=begin(env, guider.policy(params.guider, greedy=False), begin_key, config.envs),
            learner_memory=jax.tree.map(tiled, learner_start()),
            critic_memory=critic.start(config.envs),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        params = state.params
        memory = Params(state.actors.memory, state.learner_memory, state.critic_memory)
        behaviour = guider.policy(params.guider, greedy=False)
        actors, seen = rollout(env, behaviour, collect_key, state.actors, steps)

        judged = critic.assess(
            params.critic, memory.critic, seen, state.scale, config.gamma, config.lam
        )
        _, memories = of_learners(params.learner, memory.learner, seen.observation, seen.first)
        acting = jnp.any(seen.observation.alive, -1)
        fallen = jnp.minimum(progress / jnp.maximum(config.entropy_fraction, 1e-6), 1.0)
        entropy_coef = config.entropy_coef * (1 - (1 - config.entropy_end) * fallen)
        batch = Batch(
            observation=seen.observation,
            chosen=seen.extras.get("chosen", seen.action),
            order=seen.extras.get("order"),
            log_prob=seen.extras["log_prob"],
            advantage=standardise(judged.advantage[..., 0], acting),
            lessons=lessons(critic, judged, seen),
            first=seen.first,
            entropy_coef=jnp.broadcast_to(entropy_coef, seen.first.shape),
        )
        params, optimisers, report = improve(
            loss,
            optimiser,
            params,
            state.optimiser,
            batch,
            memory,
            learn_key,
            lr=lr,
            count=config.epochs,
            minibatches=config.minibatches,
        )
        learner_memory = jax.tree.map(lambda m: m[-1], memories)
        return State(params, optimisers, judged.scale, actors, learner_memory, judged.memory), report

    def policy(state: State, *, greedy: bool) -> Policy:
        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            outputs, memory = act_all(state.params.learner, memory, views(observation))
            action, told = family.decide(family.noise(key, n), outputs, observation.legal, greedy)
            return action, memory, told

        return Policy(start=learner_start, act=act, execution="decentralised")

    return Algorithm(init, step, policy)
