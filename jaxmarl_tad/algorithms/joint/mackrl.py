"""MACKRL: agents act as one on what is common knowledge, and on their own otherwise.

    repeat
        collect T steps in E environments; each agent, from its own view and seeds that all share:
            z = π_1(· | k): a partition of the team into pairs                  k: common knowledge
            x = π_2^ab(· | k) for its pair ab: joint actions of the pair, or to delegate
            u_a = what x says; its own π_3(· | τ_a) if x delegates, a is in no pair, or x is not legal
        p_ab(u_a, u_b) = Σ_x π_2^ab(x) ρ_a(u_a | x) ρ_b(u_b | x),   ρ: what an agent does when told x
        p(u) = Σ_z π_1(z) Π_{ab in z} p_ab(u_a, u_b) Π_{a alone in z} π_3(u_a)
        Â = r + γ V̄(s') − V(s), or the return of another λ in the place of the one-step return
        ascend   log p(u) Â / N + c_H H;   descend (G − V(s))², G the λ-return of V̄
        V̄ ← V̄ + τ (V − V̄)

Source: Schroeder de Witt et al. 2019 (multi-agent common knowledge reinforcement learning, pairwise),
and their code for the advantage. Each level is mixed with the uniform choice, ε of it. What is common
knowledge the environment says (:mod:`tad_envs.knowledge`); where it says nothing, the upper levels know
nothing but may still find a joint action that is good anyway, or delegate.

It is decentralised by construction: every agent reads the common knowledge off its own row and draws
the upper levels itself, with numbers that all draw alike. What is legal for another is its own
business: an agent that is told an illegal action decides for itself, so that ρ_a(u | x) is [u = x]
where x is legal and π_3(u | τ_a) elsewhere. Where all is legal, p_ab is the published
π_2(delegate) π_3(u_a) π_3(u_b) + π_2(u_a, u_b).

Differs from the published code in that π_1 and π_2 of all pairs are heads of one network over k, that
the critic is updated once per batch, and in Adam.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_range, require, resolve_steps, struct
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.net import (
    Kind,
    Remember,
    network,
    resolve_kind,
    state_inputs,
    unroll,
)
from jaxmarl_tad.networks.tables import Logits
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.rollout import Actors, begin, keys, rollout, taken
from jaxmarl_tad.sharing import Mode, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.targets import lambda_returns, next_values
from jaxmarl_tad.team import mixed, team
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec, common_knowledge

MOST_AGENTS = 8
"""Beyond these there are more than the 105 partitions into pairs that are listed."""


@struct
class Config:
    """Settings of MACKRL."""

    total_steps: int = 76_800
    """Environment steps of one member, rounded to whole iterations."""
    envs: int = 64
    """Environments acted in at once."""
    steps: int | None = None
    """Rollout length; one episode (up to 128 steps) unless given."""
    lr: Real | None = None
    """Adam's learning rate; 0.05 for tables and 5e-4 for other networks unless given."""
    critic_lr_scale: Real | None = None
    """The critic's learning rate in units of ``lr``; 10 for tables and 1 otherwise unless given."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.8
    """λ of the critic's targets, in [0, 1]."""
    advantage_lam: Real = 0.0
    """λ of the return that actions are judged by, in [0, 1]; 0, one step, as published."""
    delegation: Real = 0.0
    """Added to the logits of delegating. With A actions, 2 log A makes it as likely at first as all
    joint actions of a pair together; 0, as published, as likely as each."""
    entropy_coef: Real = 0.03
    """Weight of the entropy bonus, in units of return: advantages are not standardised."""
    epsilon_start: Real = 0.5
    """Weight of the uniform choice on each level, in the first iteration."""
    epsilon_end: Real = 0.01
    """Weight of the uniform choice once it has fallen."""
    epsilon_fraction: Real = 0.5
    """Share of the run over which it falls linearly, in [0, 1]."""
    target_update: Real = 0.1
    """Share of the way that the target critic goes after each batch (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for policy and critic each."""
    memory: Remember = "none"
    """Of what an agent has seen, and of what was common knowledge; the critic has none."""
    sharing: Mode = "full_id"
    """Of the agents' own policies; what acts on common knowledge is the team's."""
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = True
    """Whether a layer norm stands before and after every hidden layer, as in MAPPO's recipe."""
    initial_logits: Logits = 0.0
    """Added to initial logits of the agents' own tables: ``[A]``, or ``[N, A]`` by agent."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        require(self.envs >= 1, "mackrl: envs must be positive.")
        shares = (
            "gamma",
            "lam",
            "advantage_lam",
            "epsilon_start",
            "epsilon_end",
            "epsilon_fraction",
            "target_update",
        )
        check_range(self, **dict.fromkeys(shares, (0, 1)))
        check_range(self, entropy_coef=(0, jnp.inf), critic_lr_scale=(0, jnp.inf))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    require(spec.discrete, "mackrl: actions must be discrete; this environment's are continuous.")
    require(
        2 <= spec.n_agents <= MOST_AGENTS,
        f"mackrl: it pairs 2 to {MOST_AGENTS} agents, and this environment has {spec.n_agents}.",
    )
    rows = max(spec.obs_dim * spec.n_agents, spec.state_dim)
    kind = resolve_kind(config.network, config.memory, spec, rows)
    lr, scale = (0.05, 10.0) if kind == "table" else (5e-4, 1.0)
    return {
        "network": kind,
        "steps": resolve_steps(config.steps, spec),
        "lr": lr if config.lr is None else config.lr,
        "critic_lr_scale": scale if config.critic_lr_scale is None else config.critic_lr_scale,
    }


class Pairing(NamedTuple):
    """All ways to pair up N agents, one being left alone where N is odd: Z partitions of P pairs."""

    pairs: Int[np.ndarray, "P 2"]
    formed: Bool[np.ndarray, "Z P"]
    """Which pairs a partition forms."""
    alone: Bool[np.ndarray, "Z N"]
    """Who is in no pair."""
    pair_of: Int[np.ndarray, "Z N"]
    """The pair that an agent is in; 0 if none."""


def pairing(agents: int) -> Pairing:
    """The partitions of ``agents`` agents into pairs."""
    pairs = [(a, b) for a in range(agents) for b in range(a + 1, agents)]

    def matched(rest: tuple[int, ...]) -> list[list[tuple[int, int]]]:
        if len(rest) < 2:
            return [[]]
        first, others = rest[0], rest[1:]
        found = [
            [(first, other), *more]
            for other in others
            for more in matched(tuple(x for x in others if x != other))
        ]
        return found + (matched(others) if len(rest) % 2 else [])

    partitions = matched(tuple(range(agents)))
    formed = np.asarray([[pair in partition for pair in pairs] for partition in partitions])
    members = np.asarray([[agent in pair for agent in range(agents)] for pair in pairs])
    within = formed[:, :, None] & members
    alone = np.logical_not(np.any(within, axis=1))
    return Pairing(np.asarray(pairs), formed, np.asarray(alone), within.argmax(1))


class Levels(NamedTuple):
    """Log-probabilities of what is decided on common knowledge."""

    partition: Float[Array, "*batch Z"]
    pair: Float[Array, "*batch P C"]
    """To delegate, and each joint action of the pair in row-major order."""


def log_probability(
    pairing: Pairing,
    levels: Levels,
    own: Float[Array, "*batch N A"],
    legal: Bool[Array, "*batch N A"],
    alive: Bool[Array, "*batch N"],
    action: Int[Array, "*batch N"],
) -> Float[Array, "*batch"]:
    """log p(u) of joint actions; what dead agents do is certain."""
    width = own.shape[-1]
    log_own = jnp.where(alive, distributions.log_probability(own, action), 0.0)
    alone = jnp.exp(log_own)
    # ρ(u | x) for every x that an agent may be told.
    obeyed = jnp.where(legal, jnp.arange(width) == action[..., None], alone[..., None])
    obeyed = jnp.where(alive[..., None], obeyed, 1.0)
    one, other = pairing.pairs.T
    told = jnp.exp(levels.pair[..., 1:])
    told = told.reshape(*told.shape[:-1], width, width)
    together = jnp.einsum("...xy,...x,...y->...", told, obeyed[..., one, :], obeyed[..., other, :])
    p_pair = jnp.exp(levels.pair[..., 0]) * alone[..., one] * alone[..., other] + together
    log_pair = jnp.log(jnp.maximum(p_pair, np.finfo(np.float32).tiny))
    each = log_pair @ pairing.formed.T.astype(np.float32) + log_own @ pairing.alone.T.astype(np.float32)
    return jax.nn.logsumexp(levels.partition + each, axis=-1)


def heard(pairing: Pairing, levels: Levels, alive: Bool[Array, "*batch N"]) -> Levels:
    """Of every agent's reading of the upper levels, leaves ``[*batch, N, ...]``, those that count.

    The living all read the same; what a dead one reads means nothing.
    """
    agents = np.arange(alive.shape[-1])
    first = agents == jnp.argmax(alive, axis=-1)[..., None]
    one, other = pairing.pairs.T
    speaker = agents[:, None] == jnp.where(alive[..., one], one, other)[..., None, :]  # [*batch, N, P]
    return Levels(
        jnp.sum(jnp.where(first[..., None], levels.partition, 0.0), axis=-2),
        jnp.sum(jnp.where(speaker[..., None], levels.pair, 0.0), axis=-3),
    )


def told(
    pairing: Pairing,
    levels: Levels,
    noise: Float[Array, "K"],
    legal: Bool[Array, "A"],
    own: Int[Array, ""],
    agent: Int[Array, ""],
    greedy: bool,
) -> Int[Array, ""]:
    """What one agent does, given its reading of the upper levels and its own decision ``own``."""
    z = _decided(noise[0], levels.partition, greedy)
    pair = jnp.asarray(pairing.pair_of)[z, agent]
    x = _decided(noise[1 + pair], levels.pair[pair], greedy)
    row, column = jnp.divmod(jnp.maximum(x - 1, 0), legal.shape[-1])
    part = jnp.where(jnp.asarray(pairing.pairs)[pair, 0] == agent, row, column).astype(jnp.int32)
    obeys = ~jnp.asarray(pairing.alone)[z, agent] & (x > 0) & legal[part]
    return jnp.where(obeys, part, own)


def _decided(noise: Array, log_probs: Array, greedy: bool) -> Array:
    return distributions.mode(log_probs) if greedy else distributions.sample(noise, log_probs)


class Actor(NamedTuple):
    """Parameters of the agents' own policies, and of the upper levels."""

    own: Any
    common: Any


class Params(NamedTuple):
    """Parameters of the policy and of the critic."""

    actor: Actor
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
    n, width = spec.n_agents, spec.n_actions
    agents = jnp.arange(n)
    assert config.steps is not None and config.lr is not None and config.critic_lr_scale is not None
    steps, lr, critic_lr = config.steps, config.lr, config.lr * config.critic_lr_scale
    ways = pairing(n)
    z, pairs = len(ways.formed), len(ways.pairs)
    optimiser = adam(config.max_grad_norm)
    kind = {
        "kind": config.network,
        "hidden": config.hidden,
        "activation": config.activation,
        "layer_norm": config.layer_norm,
    }

    # The agents' own policies; and the upper levels, which each agent reads off its own row.
    apart = team(config, spec)
    common, known = common_knowledge(env)
    outputs = z + pairs * (1 + width * width)
    net = network(inputs=known, outputs=outputs, memory=config.memory, gain=0.01, **kind)
    one_copy = sharing("full", n)
    read_all, read_rows = over_agents(net.apply, one_copy), over_rows(net.apply, one_copy)

    def views(observation: Observation) -> Any:
        knowledge = jax.vmap(common)(observation.agents, agents)
        if config.network == "table":
            return jnp.argmax(knowledge, axis=-1).astype(jnp.int32)
        return knowledge

    def reader_start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (n, 1)), net.start())

    def levels(logits: Float[Array, "*batch K"], epsilon: Real) -> Levels:
        """Both upper levels from the network's outputs, ε of each uniform."""
        pair = logits[..., z:].reshape(*logits.shape[:-1], pairs, -1)
        pair = pair.at[..., 0].add(config.delegation)
        return Levels(*(mixed(x, jnp.ones(x.shape, bool), epsilon) for x in (logits[..., :z], pair)))

    # What the critic sees: the state, once.
    view, inputs = state_inputs(config.network, spec)
    critic_share = sharing("full", 1)
    first_gain = 0.0 if config.network == "table" else 1.0
    critic = network(inputs=inputs, outputs=1, gain=first_gain, **kind)
    critic_rows = over_rows(critic.apply, critic_share)

    def values(params: Any, state: Any) -> Float[Array, "T E"]:
        """V(s)."""
        seen = jax.tree.map(lambda x: x[:, :, None], jax.vmap(jax.vmap(view))(state))
        return critic_rows(params, (), seen, 2)[0][..., 0, 0]

    def loss(
        params: Params, seen: Any, memory: Any, epsilon: Any, earned: Array, target: Array
    ) -> tuple[Array, Metrics]:
        observation, alive = seen.observation, seen.observation.alive
        counts = jnp.any(alive, -1)
        own, _ = apart.replay(params.actor.own, memory["own"], observation, seen.first, epsilon)
        logits, _ = unroll(
            lambda m, x: read_all(params.actor.common, m, x),
            reader_start(),
            memory["common"],
            jax.vmap(jax.vmap(views))(observation),
            seen.first,
            lambda m, x, axes: read_rows(params.actor.common, m, x, axes),
        )
        upper = heard(ways, levels(logits, epsilon), alive)
        judged = (observation.legal, alive, seen.action)
        log_prob = log_probability(ways, upper, own, *judged)
        acted = heard(ways, seen.extras["levels"], alive)
        ratio = jnp.exp(log_prob - log_probability(ways, acted, seen.extras["log_probs"], *judged))

        value = values(params.critic, observation.state)
        advantage = jax.lax.stop_gradient(earned - value)
        above = jnp.mean(distributions.entropy(upper.pair), axis=-1)
        above = above + distributions.entropy(upper.partition)
        entropy = masked_mean(above, counts) + masked_mean(distributions.entropy(own), alive)
        policy_loss = -masked_mean(log_prob * advantage, counts) / n - config.entropy_coef * entropy
        value_loss = masked_mean((target - value) ** 2, counts)
        delegates = masked_mean(jnp.mean(jnp.exp(upper.pair[..., 0]), axis=-1), counts)
        report = {"entropy": entropy, "ratio": masked_mean(ratio, counts), "delegates": delegates}
        report |= {"policy_loss": policy_loss, "value_loss": value_loss}
        return policy_loss + value_loss, report

    def init(key: Key) -> State:
        own_key, common_key, critic_key = keys(key, 3)
        begin_key = jax.random.fold_in(key, 0)
        actor = Actor(apart.init(own_key), init_sets(net.init, common_key, one_copy))
        params = Params(actor, init_sets(critic.init, critic_key, critic_share))
        acting = policy_of(actor, config.epsilon_start, greedy=False)
        return State(
            params=params,
            target=params.critic,
            optimiser=Params(*(optimiser.init(p) for p in params)),
            actors=begin(env, acting, begin_key, config.envs),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        fallen = jnp.minimum(progress / jnp.maximum(config.epsilon_fraction, 1e-6), 1.0)
        epsilon = config.epsilon_start + fallen * (config.epsilon_end - config.epsilon_start)
        acting = policy_of(state.params.actor, epsilon, greedy=False)
        actors, seen = rollout(env, acting, key, state.actors, steps)

        def look_ahead(rows: Any) -> Array:
            """V̄ of what the steps in ``rows [C, E]`` led to; of all steps if None."""
            ahead = seen.next.state if rows is None else taken(seen.next.state, rows)
            return values(state.target, ahead)

        value = values(state.target, seen.observation.state)
        next_value = next_values(value, seen.truncated, look_ahead, spec.horizon)
        ends = (seen.terminated, seen.truncated)
        earned = lambda_returns(seen.reward, next_value, *ends, config.gamma, config.advantage_lam)
        target = lambda_returns(seen.reward, next_value, *ends, config.gamma, config.lam)

        slopes, report = jax.grad(loss, has_aux=True)(
            state.params, seen, state.actors.memory, epsilon, earned, target
        )
        parts = zip(slopes, state.optimiser, state.params, (lr, critic_lr), strict=True)
        params, optimisers = zip(*(optimiser.update(*part) for part in parts), strict=True)
        params = Params(*params)
        followed = jax.tree.map(
            lambda t, p: t + config.target_update * (p - t), state.target, params.critic
        )
        report |= {"epsilon": jnp.asarray(epsilon, jnp.float32)}
        return State(params, followed, Params(*optimisers), actors), report

    def policy_of(params: Actor, epsilon: Real, *, greedy: bool) -> Policy:
        alone = apart.policy(params.own, greedy=greedy, epsilon=epsilon)

        def act(key: Key, memory: Any, observation: Observation) -> tuple[Any, Any, Any]:
            own, own_memory, extras = alone.act(key, memory["own"], observation)
            logits, common_memory = read_all(params.common, memory["common"], views(observation))
            upper = levels(logits, epsilon)
            # All draw these alike: the seed is shared.
            noise = jax.random.uniform(jax.random.fold_in(key, 1), (1 + pairs,))

            def decide(upper: Levels, legal: Array, own: Array, agent: Array) -> Array:
                return told(ways, upper, noise, legal, own, agent, greedy)

            action = jax.vmap(decide)(upper, observation.legal, own, agents)
            memory = {"own": own_memory, "common": common_memory}
            return action, memory, {"log_probs": extras["log_probs"], "levels": upper}

        return Policy(
            start=lambda: {"own": alone.start(), "common": reader_start()},
            act=act,
            execution="decentralised",
        )

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params.actor, config.epsilon_end, greedy=greedy)

    return Algorithm(init, step, policy)
