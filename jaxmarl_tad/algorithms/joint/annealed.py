"""The annealed joint policy: learn jointly first, become a product of agents' policies on the way.

    π_c = c π_jt(a | s) + (1 − c) Π_i π_i(a_i | τ_i);   c from 1 to 0, λ from 0, by a schedule
    repeat
        collect T steps in E environments with π_c: all agents act on a draw of π_jt, or each on its own
        G_t = λ-return of V;   Â = G − V, standardised
        for K epochs, for each minibatch of environments:
            ρ = π_c(a) / π_c,old(a)
            ascend   min(ρ Â, clip(ρ, 1 ± ε) Â) − λ KL(π_jt ‖ Π_i π_i)
                     + c_H (c H(π_jt) + (1 − c) Σ_i H(π_i))
            descend  the clipped Huber loss of V(s) on normalised G
    deploy Π_i π_i

Source: the note on early factorisation (factoring the joint policy before it is learned is what makes
independent gradients stop at 0 of [[0, −5], [−5, 10]]) proposes to learn π_jt and to drive it towards
its marginals; the mixture, the order of the two schedules and the PPO objective are this library's. The
gradient of the divergence reaches both sides: π_i imitate π_jt, and π_jt gives up what no product can
express. log π_c is a log-sum of both, and where c is 1 or 0 the other side has no part in it.

Schedules over the share f of the run; c goes from ``mixture_start`` to ``mixture_end``, λ from 0 to
``kl_end``:

    hold           c and λ at their start for f < .3; λ rises on [.3, .7], c falls on [.6, .9];
                   then the product alone, λ = 0
    linear         both all the way
    kl_only        λ all the way, c at its start
    mixture_only   c all the way, λ = 0
    constant       c at its start, λ at its end, from the beginning
    none           c = λ = 0: the policy gradient of the product

``hold``, ``linear`` and ``kl_only`` leave the trap of the note. The others do not: a large λ that is
there from the beginning ties π_jt to the bad product before it can leave, and without λ nothing tells
the π_i what π_jt has found.

π_jt lists all joint actions where these are few, and the divergence is a sum; otherwise its agents
choose one after the other (:mod:`networks.prefix`), and the divergence is estimated from draws of π_jt.
It sees the state and has no memory.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad import distributions, factorisation
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_steps, struct
from jaxmarl_tad.losses import clipped_surrogate, clipped_value_loss, masked_mean, standardise
from jaxmarl_tad.networks.net import Kind, Remember, network, resolve_kind, state_inputs
from jaxmarl_tad.networks.prefix import Read, head, prefixes, table_rows
from jaxmarl_tad.networks.tables import Logits, biased
from jaxmarl_tad.normalise import Scale, init_scale, normalised, restored, update_scale
from jaxmarl_tad.optimise import adam, improve
from jaxmarl_tad.rollout import Actors, begin, keys, rollout, taken
from jaxmarl_tad.sharing import Mode, init_sets, over_rows, sharing
from jaxmarl_tad.targets import lambda_returns, next_values
from jaxmarl_tad.team import joint, team
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Params, Policy
from tad_envs import Environment, Observation, Spec, finite

Schedule = Literal["hold", "linear", "kl_only", "mixture_only", "constant", "none"]
LARGEST_LISTED = 256
"""Joint actions beyond which ``joint="auto"`` has agents choose one after the other."""


@struct
class Config:
    """Settings of the annealed joint policy."""

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
    """ε of the clipped ratio and of the clipped value."""
    entropy_coef: Real = 0.01
    """Weight of the entropy bonus."""
    schedule: Schedule = "hold"
    """How the mixture and the weight of the divergence change over the run."""
    mixture_start: Real = 1.0
    """c at the beginning, in [0, 1]."""
    mixture_end: Real = 0.0
    """c once it has fallen, in [0, 1]."""
    kl_end: Real = 1.0
    """λ once it has risen, in units of standardised advantage."""
    huber_delta: Real = 10.0
    """Error beyond which the value loss is linear, in units of normalised return."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for joint policy, product and critic each."""
    joint: Literal["auto", "listed", "sequential"] = "auto"
    """Whether π_jt lists all joint actions, or its agents choose one after the other; by their number
    unless given."""
    prefix: Read = "sum"
    """How a sequential π_jt, unless a table, reads what was chosen before."""
    memory: Remember = "none"
    """Of the product; π_jt and the critic see the state and have none."""
    sharing: Mode = "full_id"
    """Of the product; π_jt and the critic are the team's."""
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = True
    """Whether a layer norm stands before and after every hidden layer, as in MAPPO's recipe."""
    initial_logits: Logits = 0.0
    """Added to a table's initial logits, π_jt's as well: ``[A]``, or ``[N, A]`` by agent."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = min(self.envs, self.epochs, self.minibatches)
        require(sizes >= 1, "annealed: envs, epochs and minibatches must be positive.")
        check_divides(self, "minibatches", "envs")
        shares = ("gamma", "lam", "clip", "mixture_start", "mixture_end")
        check_range(self, **dict.fromkeys(shares, (0, 1)))
        check_range(self, entropy_coef=(0, jnp.inf), kl_end=(0, jnp.inf))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    require(spec.discrete, "annealed: actions must be discrete; this environment's are continuous.")
    number = spec.n_actions**spec.n_agents
    form = config.joint
    if form == "auto":
        form = "listed" if number <= LARGEST_LISTED else "sequential"
    identity = table_rows(spec.state_dim, spec.n_agents, spec.n_actions, identity=True)
    rows = max(spec.obs_dim * spec.n_agents, spec.state_dim * number if form == "listed" else identity)
    kind = resolve_kind(config.network, config.memory, spec, rows)
    lr = (0.02 if kind == "table" else 5e-4) if config.lr is None else config.lr
    return {"joint": form, "network": kind, "steps": resolve_steps(config.steps, spec), "lr": lr}


def weights(config: Config, progress: Real) -> tuple[Array, Array]:
    """c and λ at this share of the run."""
    f = jnp.asarray(progress, jnp.float32)
    start, end, most = config.mixture_start, config.mixture_end, config.kl_end

    def ramp(begin: float, end: float) -> Array:
        return jnp.clip((f - begin) / (end - begin), 0.0, 1.0)

    fallen, risen = {
        "hold": (ramp(0.6, 0.9), ramp(0.3, 0.7) * (f < 0.9)),
        "linear": (f, f),
        "kl_only": (0.0, f),
        "mixture_only": (f, 0.0),
        "constant": (0.0, 1.0),
        "none": (0.0, 0.0),
    }[config.schedule]
    mixture = jnp.zeros(()) if config.schedule == "none" else start + fallen * (end - start)
    return jnp.asarray(mixture, jnp.float32), jnp.asarray(most * risen, jnp.float32)


class Judged(NamedTuple):
    """What π_jt holds of joint actions."""

    log_prob: Float[Array, "*batch"]
    entropy: Float[Array, "*batch"]
    """Of the joint policy; where agents choose one after the other, along the choices given."""
    listed: Any
    """log π_jt of every joint action ``[*batch, U]``, or None."""


class Together(NamedTuple):
    """π_jt as pure functions; ``view`` is what it is fed of the state."""

    init: Callable[[Key], Params]
    draw: Callable[[Params, Float[Array, "N"], Any, Observation], Int[Array, "N"]]
    """``draw(params, uniform, view, observation)``: one joint action; dead agents' are 0."""
    judge: Callable[[Params, Any, Observation, Int[Array, "*batch N"]], Judged]
    """``judge(params, view, observation, action)``, for any leading axes."""


class Parts(NamedTuple):
    """Parameters of π_jt, of the agents' policies, and of the critic."""

    joint: Any
    actor: Any
    critic: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Parts
    optimiser: Parts
    scale: Scale
    actors: Actors


class Batch(NamedTuple):
    """What the epochs learn from; leaves ``[T, E, ...]``."""

    view: Any
    observation: Any
    action: Any
    plan: Any
    """A draw of π_jt, whether or not it was acted on, and its log-probability then."""
    log_plan: Any
    log_prob: Any
    advantage: Any
    value: Any
    target: Any
    first: Any


def make(config: Config, env: Environment) -> Algorithm:
    """The learner on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    n = spec.n_agents
    assert config.steps is not None and config.lr is not None
    steps, lr = config.steps, config.lr
    actor = team(config, spec)
    together = (_listed if config.joint == "listed" else _sequential)(config, spec)
    optimiser = adam(config.max_grad_norm)

    # What π_jt and the critic see.
    view, inputs = state_inputs(config.network, spec)
    critic_share = sharing("full", 1)
    critic = network(
        config.network,
        inputs=inputs,
        outputs=1,
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
        gain=0.0 if config.network == "table" else 1.0,
    )
    critic_rows = over_rows(critic.apply, critic_share)
    batched = lambda function: jax.vmap(jax.vmap(function))  # over [T, E]  # noqa: E731

    def values(params: Any, state: Any) -> Float[Array, "T E 1"]:
        """V(s)."""
        seen = jax.tree.map(lambda x: x[:, :, None], batched(view)(state))
        return critic_rows(params, (), seen, 2)[0][..., 0]

    def product(log_probs: Array, action: Array, alive: Array) -> Array:
        """Σ_i log π_i(a_i | τ_i) of living agents."""
        own = distributions.log_probability(log_probs, action)
        return jnp.sum(jnp.where(alive, own, 0.0), axis=-1)

    def loss(
        params: Parts, batch: Batch, memory: Memory, mixture: Array, weight: Array
    ) -> tuple[Array, Metrics]:
        seen = batch.observation
        alive, counts = seen.alive, jnp.any(seen.alive, -1)
        log_probs, _ = actor.replay(params.actor, memory, seen, batch.first)
        judged = together.judge(params.joint, batch.view, seen, batch.action)
        own = product(log_probs, batch.action, alive)
        ratio = jnp.exp(factorisation.mixture_log_prob(mixture, judged.log_prob, own) - batch.log_prob)
        objective = masked_mean(clipped_surrogate(ratio, batch.advantage, config.clip), counts)
        if judged.listed is not None:
            living = factorisation.certain_if_dead(log_probs, alive)
            kl = masked_mean(factorisation.kl_joint_product(judged.listed, living), counts)
            divergence = kl
        else:
            planned = together.judge(params.joint, batch.view, seen, batch.plan)
            others = product(log_probs, batch.plan, alive)
            divergence, kl = factorisation.sampled_kl(planned.log_prob, others, batch.log_plan, counts)
        apart = jnp.sum(jnp.where(alive, distributions.entropy(log_probs), 0.0), axis=-1)
        entropy = masked_mean(mixture * judged.entropy + (1 - mixture) * apart, counts)
        policy_loss = weight * divergence - objective - config.entropy_coef * entropy

        value = values(params.critic, seen.state)
        error = clipped_value_loss(value, batch.value, batch.target, config.clip, config.huber_delta)
        value_loss = masked_mean(error, counts[..., None])
        report = {"entropy": entropy, "ratio": masked_mean(ratio, counts), "kl": kl}
        report |= {"policy_loss": policy_loss, "value_loss": value_loss}
        if judged.listed is not None:
            shared = factorisation.total_correlation(judged.listed, n)
            report |= {"total_correlation": masked_mean(shared, counts)}
        return policy_loss + value_loss, report

    def init(key: Key) -> State:
        joint_key, actor_key, critic_key = keys(key, 3)
        begin_key = jax.random.fold_in(key, 0)
        params = Parts(
            joint=together.init(joint_key),
            actor=actor.init(actor_key),
            critic=init_sets(critic.init, critic_key, critic_share),
        )
        return State(
            params=params,
            optimiser=Parts(*(optimiser.init(p) for p in params)),
            scale=init_scale(),
            actors=begin(env, behaviour(params, jnp.ones(())), begin_key, config.envs),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        mixture, weight = weights(config, progress)
        memory = state.actors.memory
        acting = behaviour(state.params, mixture)
        actors, seen = rollout(env, acting, collect_key, state.actors, steps)

        def look_ahead(rows: Any) -> Array:
            """V of what the steps in ``rows [C, E]`` led to; of all steps if None."""
            ahead = seen.next.state if rows is None else taken(seen.next.state, rows)
            return values(state.params.critic, ahead)

        value = values(state.params.critic, seen.observation.state)
        next_value = next_values(value, seen.truncated, look_ahead, spec.horizon)
        ends = (seen.terminated, seen.truncated)
        target = lambda_returns(
            seen.reward, restored(state.scale, next_value), *ends, config.gamma, config.lam
        )
        counts = jnp.any(seen.observation.alive, -1)
        scale = update_scale(state.scale, target, counts[..., None])
        advantage = (target - restored(state.scale, value))[..., 0]
        batch = Batch(
            view=batched(view)(seen.observation.state),
            observation=seen.observation,
            action=joint(seen.action, seen.observation.alive),
            plan=seen.extras["plan"],
            log_plan=seen.extras["log_plan"],
            log_prob=seen.extras["log_prob"],
            advantage=standardise(advantage, counts),
            value=value,
            target=normalised(scale, target),
            first=seen.first,
        )
        params, optimisers, report = improve(
            lambda params, batch, memory: loss(params, batch, memory, mixture, weight),
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
        report |= {"mixture": mixture, "kl_coef": weight}
        return State(params, optimisers, scale, actors), report

    def behaviour(params: Parts, mixture: Array) -> Policy:
        """π_c: a draw of π_jt for all with probability c, else every agent's own."""
        apart = actor.policy(params.actor, greedy=False)

        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            uniform = jax.random.uniform(jax.random.fold_in(key, 1), (n + 1,))
            own, memory, told = apart.act(key, memory, observation)
            seen, alive = view(observation.state), observation.alive
            plan = together.draw(params.joint, uniform[:n], seen, observation)
            action = jnp.where(uniform[n] < mixture, plan, joint(own, alive))
            judged = together.judge(params.joint, seen, observation, action)
            log_own = product(told["log_probs"], action, alive)
            log_prob = factorisation.mixture_log_prob(mixture, judged.log_prob, log_own)
            log_plan = together.judge(params.joint, seen, observation, plan).log_prob
            return action, memory, {"log_prob": log_prob, "plan": plan, "log_plan": log_plan}

        return Policy(start=apart.start, act=act, execution="centralised")

    def policy(state: State, *, greedy: bool) -> Policy:
        return actor.policy(state.params.actor, greedy=greedy)

    return Algorithm(init, step, policy)


def _listed(config: Config, spec: Spec) -> Together:
    """π_jt with a logit for every joint action."""
    plans = factorisation.joint_actions(spec)
    _, inputs = state_inputs(config.network, spec)
    net = network(
        config.network,
        inputs=inputs,
        outputs=len(plans),
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
        gain=0.01,
    )

    def init(key: Key) -> Params:
        params = net.init(key)
        if config.network != "table":
            return params
        own = jnp.broadcast_to(jnp.asarray(config.initial_logits), (spec.n_agents, spec.n_actions))
        return params + factorisation.product_log_probs(own)

    def listed(params: Params, view: Any, observation: Observation) -> Float[Array, "*batch U"]:
        possible = factorisation.possible_plans(plans, observation.legal, observation.alive)
        return distributions.log_probabilities(net.apply(params, (), view)[0], possible)

    def draw(params: Params, uniform: Array, view: Any, observation: Observation) -> Array:
        chosen = distributions.sample(uniform[0], listed(params, view, observation))
        return jnp.asarray(plans, jnp.int32)[chosen]

    def judge(params: Params, view: Any, observation: Observation, action: Array) -> Judged:
        log_probs = listed(params, view, observation)
        chosen = distributions.log_probability(log_probs, finite.joint_index(action, spec.n_actions))
        return Judged(chosen, distributions.entropy(log_probs), log_probs)

    return Together(init, draw, judge)


def _sequential(config: Config, spec: Spec) -> Together:
    """π_jt(a | s) = Π_i π(a_i | s, a_{<i}), agents in their order."""
    n = spec.n_agents
    agents, line = jnp.arange(n), sharing("full_id", n)
    _, inputs = state_inputs(config.network, spec)
    part = head(
        config.network,
        config.prefix,
        inputs=inputs,
        outputs=spec.n_actions,
        agents=n,
        actions=spec.n_actions,
        identity=True,
        hidden=config.hidden,
        gain=0.01,
    )
    earlier = np.tril(np.ones((n, n), bool), -1)

    def init(key: Key) -> Params:
        stacked = init_sets(part.init, key, line)
        stacked = biased(stacked, config.initial_logits, config.network, spec, line)
        return jax.tree.map(lambda p: p[0], stacked)

    def possible(observation: Observation) -> Bool[Array, "*batch N A"]:
        nothing = jnp.arange(spec.n_actions) == 0
        return jnp.where(observation.alive[..., None], observation.legal, nothing)

    def draw(params: Params, uniform: Array, view: Any, observation: Observation) -> Array:
        legal = possible(observation)

        def choose(before: Any, turn: tuple[Array, Array]) -> tuple[Any, Array]:
            agent, noise = turn
            logits = part.read(params, view, agent, before)
            log_probs = distributions.log_probabilities(logits, legal[agent])
            action = distributions.sample(noise, log_probs)
            token = part.token(params, view, agent, action)
            return jax.tree.map(lambda b, t: b + t, before, token), action

        return jax.lax.scan(choose, part.empty(), (agents, uniform))[1]

    def judge(params: Params, view: Any, observation: Observation, action: Array) -> Judged:
        def one(view: Any, legal: Array, action: Array) -> tuple[Array, Array]:
            tokens = jax.vmap(lambda i, a: part.token(params, view, i, a))(agents, action)
            before = prefixes(tokens, jnp.asarray(earlier))
            logits = jax.vmap(lambda i, b: part.read(params, view, i, b))(agents, before)
            log_probs = distributions.log_probabilities(logits, legal)
            chosen = distributions.log_probability(log_probs, action)
            return jnp.sum(chosen), jnp.sum(distributions.entropy(log_probs))

        for _ in range(action.ndim - 1):
            one = jax.vmap(one)
        log_prob, entropy = one(view, possible(observation), action)
        return Judged(log_prob, entropy, None)

    return Together(init, draw, judge)
