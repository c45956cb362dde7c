"""PPO with a plain autoregressive policy: agents choose one after the other, in random order.

    repeat
        collect T steps in E environments: draw an order i_1 … i_N for each step, and along it
            a_{i_k} ~ π(· | o_{i_k}, who of i_1 … i_{k−1} chose what)
        G = λ-return of V(s);   Â = G − V(s), standardised
        for K epochs, for each minibatch of environments:
            log π(a) = Σ_k log π(a_{i_k} | o_{i_k}, a_{i_1} … a_{i_{k−1}}), in the order of collection
            ρ = π(a) / π_old(a)
            ascend   mean min(ρ Â, clip(ρ, 1 ± ε) Â) + c_H mean_i H(π(· | o_i, a_{<i}))
            descend  the clipped Huber loss of V on normalised G

Source: Fu et al. 2022 (Revisiting Some Common Practices in Cooperative Multi-Agent Reinforcement
Learning), section 5: one network for all agents, fed its agent's observation beside the others' masked
one-hot actions. It represents every joint policy, so that it plays what no product of individual
policies can (XOR, permutations). Differs in that c_H falls linearly over the run: while it is high, the
joint policy is near exp(Â / c_H), in which the best joint action is the most likely one however badly
its neighbours pay. TAD-PPO differs from this by values V(s, a_{<i}) of its own for every agent in
line. Whoever acts needs to be told what others chose: execution is centralised.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmarl_tad import distributions
from jaxmarl_tad.autoregressive import Order, autoregressive, rows_needed
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_steps, struct
from jaxmarl_tad.critics import Lessons, critic_loss, lessons
from jaxmarl_tad.critics import critic as critic_of
from jaxmarl_tad.losses import clipped_surrogate, masked_mean, standardise
from jaxmarl_tad.networks.net import Kind, Remember, resolve_kind
from jaxmarl_tad.networks.prefix import Read
from jaxmarl_tad.networks.tables import Logits
from jaxmarl_tad.normalise import Scale, init_scale
from jaxmarl_tad.optimise import adam, improve
from jaxmarl_tad.rollout import Actors, begin, keys, rollout
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.types import Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of autoregressive PPO."""

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
    """ε of the clipped ratio, which is that of the joint action, and of the clipped value."""
    entropy_coef: Real = 1.0
    """Weight of the entropy bonus in the first iteration."""
    entropy_end: Real = 0.01
    """Share of it that is left once it has fallen."""
    entropy_fraction: Real = 0.5
    """Share of the run over which it falls linearly, in [0, 1]."""
    huber_delta: Real = 10.0
    """Error beyond which the value loss is linear, in units of normalised return."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for policy and critic each."""
    order: Order = "random"
    """Who chooses first: by index, or drawn for every step."""
    prefix: Read = "sum"
    """How networks other than tables read the choices before: as one-hot inputs, or by attention."""
    memory: Remember = "none"
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    head: distributions.Family = "gaussian"
    """How continuous actions are distributed: as drawn, or bounded by tanh."""
    initial_logits: Logits = 0.0
    """Added to a table's initial logits, whatever was chosen before: ``[A]``, or ``[N, A]``."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = min(self.envs, self.epochs, self.minibatches)
        require(sizes >= 1, "ar_ppo: envs, epochs and minibatches must be positive.")
        check_divides(self, "minibatches", "envs")
        shares = ("gamma", "lam", "clip", "entropy_end", "entropy_fraction")
        check_range(self, **dict.fromkeys(shares, (0, 1)))
        check_range(self, entropy_coef=(0, jnp.inf))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    require(
        spec.discrete or config.network != "table",
        "ar_ppo: network='table' has a row for every choice of those before, and continuous actions "
        "cannot be listed; use network='mlp'.",
    )
    rows = rows_needed("own", spec, config.sharing == "full_id")
    kind = resolve_kind(config.network, config.memory, spec, rows) if spec.discrete else "mlp"
    lr = (0.02 if kind == "table" else 5e-4) if config.lr is None else config.lr
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

    observation: Observation
    chosen: Any
    order: Any
    """Who chose at each position, ``[T, E, N]``; None if by index."""
    log_prob: Any
    """log π_old of the joint action ``[T, E]``."""
    advantage: Any
    lessons: Lessons
    first: Any
    entropy_coef: Any


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of the autoregressive policy; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    assert config.steps is not None and config.lr is not None
    steps, lr = config.steps, config.lr
    actor = autoregressive(config, spec, "own")
    critic = critic_of(config, spec, "state")
    family = distributions.head(config.head, spec)
    optimiser = adam(config.max_grad_norm)

    def loss(params: Params, batch: Batch, memory: Params) -> tuple[Any, Metrics]:
        seen, acting = batch.observation, jnp.any(batch.observation.alive, -1)
        told = (batch.chosen, batch.order, batch.first)
        outputs, _ = actor.replay(params.actor, memory.actor, seen, *told)
        log_prob, entropy = family.judge(outputs, seen.legal, batch.chosen)
        ratio = jnp.exp(jnp.sum(log_prob, -1, where=seen.alive) - batch.log_prob)
        objective = clipped_surrogate(ratio, batch.advantage, config.clip)
        mean_entropy = masked_mean(entropy, seen.alive)
        bonus = masked_mean(entropy, seen.alive, batch.entropy_coef[..., None])
        policy_loss = -masked_mean(objective, acting) - bonus

        known = (params.critic, memory.critic, batch.lessons)
        value_loss = critic_loss(critic, *known, config.clip, config.huber_delta)
        report = {"entropy": mean_entropy, "ratio": masked_mean(ratio, acting)}
        report |= {"policy_loss": policy_loss, "value_loss": value_loss}
        return policy_loss + value_loss, report

    def init(key: Key) -> State:
        actor_key, critic_key = keys(key, 2)
        begin_key = jax.random.fold_in(key, 0)
        params = Params(actor.init(actor_key), critic.init(critic_key))
        return State(
            params=params,
            optimiser=Params(*(optimiser.init(p) for p in params)),
            scale=init_scale(),
            actors=begin(env, actor.policy(params.actor, greedy=False), begin_key, config.envs),
            critic_memory=critic.start(config.envs),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        memory = Params(actor=state.actors.memory, critic=state.critic_memory)
        behaviour = actor.policy(state.params.actor, greedy=False)
        actors, seen = rollout(env, behaviour, collect_key, state.actors, steps)

        judged = critic.assess(
            state.params.critic, memory.critic, seen, state.scale, config.gamma, config.lam
        )
        alive = seen.observation.alive
        fallen = jnp.minimum(progress / jnp.maximum(config.entropy_fraction, 1e-6), 1.0)
        entropy_coef = config.entropy_coef * (1 - (1 - config.entropy_end) * fallen)
        batch = Batch(
            observation=seen.observation,
            chosen=seen.extras.get("chosen", seen.action),
            order=seen.extras.get("order"),
            log_prob=jnp.sum(seen.extras["log_prob"], -1, where=alive),
            advantage=standardise(judged.advantage[..., 0], jnp.any(alive, -1)),
            lessons=lessons(critic, judged, seen),
            first=seen.first,
            entropy_coef=jnp.broadcast_to(entropy_coef, seen.first.shape),
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

    def policy(state: State, *, greedy: bool) -> Policy:
        return actor.policy(state.params.actor, greedy=greedy)

    return Algorithm(init, step, policy)
