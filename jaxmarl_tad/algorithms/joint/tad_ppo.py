"""TAD-PPO, the transformation stage: PPO on the sequential single-agent MDP Γ(M).

    Γ turns one step of the team into N virtual steps: state (s, a_{<i}), agent i chooses a_i;
    reward and transition happen after the last, the discount is 1 inside the block and γ at its end
    repeat
        collect T steps in E environments with π(a|s) = Π_i π(a_i | s, a_{<i}), one agent at a time
        G = λ-return over virtual steps, λ likewise 1 inside a block;   Â_i = G − V(s, a_{<i}, i)
        for K epochs, for each minibatch of environments:
            ρ_i = π(a_i | s, a_{<i}) / π_old(a_i | s, a_{<i})
            ascend   mean_i min(ρ_i Â_i, clip(ρ_i, 1 ± ε) Â_i) + c_H H(π(·| s, a_{<i}))
            descend  the clipped Huber loss of V on normalised G

Source: Ye et al. 2022 (arXiv 2207.11143), transformation-and-distillation; network sizes and recipe
are those of MAPPO here, the paper's own are not public. Every joint policy is such a product of
conditionals, so gradient ascent meets no local optimum that the factorisation put there. The result
needs its predecessors' actions to act: ``distill`` turns it into decentralised policies. Continuous
actions are Gaussian given what the predecessors chose, which is read in units of the actions' range.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_steps, struct
from jaxmarl_tad.losses import clipped_surrogate, clipped_value_loss, masked_mean, standardise
from jaxmarl_tad.networks.net import Kind, Remember, network, resolve_kind, unroll
from jaxmarl_tad.networks.prefix import Read, head, prefixes, table_row, table_rows, with_spread
from jaxmarl_tad.networks.tables import Logits, biased, by_agent, choices, legal_actions
from jaxmarl_tad.normalise import Scale, init_scale, normalised, restored, update_scale
from jaxmarl_tad.optimise import adam, improve
from jaxmarl_tad.rollout import Actors, begin, keys, rollout
from jaxmarl_tad.sharing import Mode, init_sets, of_agent, sharing
from jaxmarl_tad.targets import lambda_returns, of_next_living
from jaxmarl_tad.types import Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec
from tad_envs.transform import unfold


@struct
class Config:
    """Settings of TAD-PPO."""

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
    """λ of the λ-return per environment step, in [0, 1]."""
    clip: Real = 0.2
    """ε of the clipped ratio and of the clipped value."""
    entropy_coef: Real = 0.01
    """Weight of the entropy bonus."""
    huber_delta: Real = 10.0
    """Error beyond which the value loss is linear, in units of normalised return."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for policy and critic each."""
    order: Literal["fixed", "reversed", "random"] | tuple[int, ...] = "fixed"
    """Who chooses first: a permutation of the agents; ``random`` draws one per episode."""
    discount: Literal["block", "fractional"] = "block"
    """γ at the end of each block of N virtual steps, or γ^(1/N) at each of them."""
    information: Literal["state", "local"] = "state"
    """What the sequential policy sees: the global state, or all agents' observation histories."""
    prefix: Read = "sum"
    """How networks other than tables read a_{<i}."""
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
        require(sizes >= 1, "tad_ppo: envs, epochs and minibatches must be positive.")
        check_divides(self, "minibatches", "envs")
        check_range(self, gamma=(0, 1), lam=(0, 1), clip=(0, 1), entropy_coef=(0, jnp.inf))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    if isinstance(config.order, tuple):
        require(
            sorted(config.order) == list(range(spec.n_agents)),
            f"tad_ppo: order={config.order} must be a permutation of 0..{spec.n_agents - 1}.",
        )
    rows = table_rows(
        _states(config, spec), spec.n_agents, spec.n_actions, identity=config.sharing == "full_id"
    )
    require(
        spec.discrete or config.network != "table",
        "tad_ppo: network='table' has a row for every choice of those before, and continuous actions "
        "cannot be listed; use network='mlp'.",
    )
    kind = resolve_kind(config.network, config.memory, spec, rows) if spec.discrete else "mlp"
    lr = (0.02 if kind == "table" else 5e-4) if config.lr is None else config.lr
    return {"network": kind, "steps": resolve_steps(config.steps, spec), "lr": lr}


def _states(config: Config, spec: Spec) -> int:
    """Distinct inputs of a table, or combinations of them where it sees every agent's view."""
    local = config.information == "local"
    return spec.obs_dim**spec.n_agents if local else spec.state_dim


class Params(NamedTuple):
    """Parameters of policy and critic: each the memory's trunk (if any) and the heads' sets."""

    actor: Any
    critic: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    optimiser: Params
    scale: Scale
    actors: Actors
    critic_memory: Memory


class Turn(NamedTuple):
    """What the sequential policy remembers within an episode."""

    order: Any
    """``[N]``: who chooses at each position; ``()`` unless the order is random."""
    fresh: Any
    """Whether the episode has just begun, so that a random order is still to be drawn."""
    trunk: Memory


class Batch(NamedTuple):
    """What the epochs learn from; leaves ``[T, E, ...]``."""

    view: Any
    before: Any
    legal: Any
    alive: Any
    action: Any
    log_prob: Any
    advantage: Any
    value: Any
    target: Any
    first: Any


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of the sequential joint policy; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    n = spec.n_agents
    agents = jnp.arange(n)
    share = sharing(config.sharing, n)
    assert config.steps is not None and config.lr is not None
    steps, lr = config.steps, config.lr

    # Who chooses first, second, ...: known beforehand unless it is drawn for each episode.
    random = config.order == "random"
    named = {"fixed": range(n), "random": range(n), "reversed": reversed(range(n))}
    chosen_order = named[config.order] if isinstance(config.order, str) else config.order
    line = np.asarray(tuple(chosen_order), np.int32)

    # In a finite game every agent reads rows of its own table of distributions.
    legal: Any = legal_actions(env) if config.network == "table" else None

    # What policy and critic see before anybody has chosen: one input for the whole team.
    tabular, recurrent = config.network == "table", config.memory == "gru"
    local = config.information == "local"

    def view(observation: Observation) -> Any:
        if tabular and local:
            places = spec.obs_dim ** jnp.arange(n)
            return (jnp.argmax(observation.agents, -1) * places).sum().astype(jnp.int32)
        if tabular:
            return jnp.argmax(observation.state, -1).astype(jnp.int32)
        return observation.agents.reshape(-1) if local else observation.state

    inputs = n * spec.obs_dim if local else spec.state_dim
    width = config.hidden[-1]
    trunk = network("mlp", inputs=inputs, outputs=width, hidden=config.hidden, memory="gru", gain=1.0)
    family = distributions.head(config.head, spec)
    shape = {"agents": n, "actions": spec.n_actions, "identity": share.identity}
    shape |= {"hidden": config.hidden, "dimensions": spec.action_dim}
    shape |= {"inputs": _states(config, spec) if tabular else width if recurrent else inputs}
    actor = head(config.network, config.prefix, outputs=family.outputs, gain=0.01, **shape)
    if not spec.discrete:
        actor = with_spread(actor, family.outputs, distributions.FIRST_SPREAD)
    first_gain = 0.0 if tabular else 1.0  # a table of values starts at 0
    critic = head(config.network, config.prefix, outputs=1, gain=first_gain, **shape)

    def trunk_start() -> Memory:
        return trunk.start() if recurrent else ()

    def features(params: Any, memory: Memory, x: Any) -> tuple[Any, Memory]:
        return trunk.apply(params["trunk"], memory, x) if recurrent else (x, memory)

    def init_part(part: Any, key: Key) -> dict[str, Any]:
        made = {"head": init_sets(part.init, key, share)}
        return made | {"trunk": trunk.init(jax.random.fold_in(key, 1))} if recurrent else made

    # Teacher forcing: all agents' outputs in one pass, each given the choices made before its own.
    def read_all(part: Any, params: Any, memory: Memory, batch: Batch) -> tuple[Any, Memory]:
        x, memory = features(params, memory, batch.view)
        own = lambda agent: of_agent(params["head"], share, agent)  # noqa: E731
        shown = family.shown(batch.action)
        tokens = jax.vmap(lambda i, a: part.token(own(i), x, i, a))(agents, shown)
        prefix = prefixes(tokens, batch.before & batch.alive[None, :])
        return jax.vmap(lambda i, p: part.read(own(i), x, i, p))(agents, prefix), memory

    def rows(observation: Observation, action: Any, before: Any) -> Any:
        """The row that each agent's choice was read from: what tables learn from ``[N]``."""
        state = view(observation)
        tokens = jax.vmap(lambda i, a: actor.token(None, state, i, a))(agents, action)
        code = prefixes(tokens, before & observation.alive[None, :])
        return jax.vmap(lambda i, c: table_row(state, i, c, n, spec.n_actions, share.identity))(
            agents, code
        )

    def first_value(params: Any, memory: Memory, observation: Observation, order: Any) -> Any:
        """V(s, ∅) of the first living agent in line."""
        x, _ = features(params, memory, view(observation))
        agent = order[jnp.argmax(observation.alive[order])]
        return critic.read(of_agent(params["head"], share, agent), x, agent, critic.empty())[0]

    def values(params: Any, memory: Memory, batch: Batch) -> tuple[Any, Memory]:
        """V(s, a_{<i}, i) of every agent ``[T, E, N]``, and the memories after each step."""
        if tabular:
            return by_agent(params["head"], share, n)[agents, batch.view, 0], memory
        value, memories = unroll(
            lambda m, b: read_all(critic, params, m, b), trunk_start(), memory, batch, batch.first
        )
        return value[..., 0], memories

    def decide(params: Any, memory: Memory, batch: Batch) -> tuple[Any, Any]:
        """log π(a_i | s, a_{<i}) of the actions taken ``[T, E, N]``, and the mean entropy."""
        if tabular:
            table = choices(params["head"], share, legal)
            return table.taken(agents, batch.view, batch.action, batch.alive)
        outputs, _ = unroll(
            lambda m, b: read_all(actor, params, m, b), trunk_start(), memory, batch, batch.first
        )
        log_prob, entropy = family.judge(outputs, batch.legal, batch.action)
        return log_prob, masked_mean(entropy, batch.alive)

    optimiser = adam(config.max_grad_norm)

    def loss(params: Params, batch: Batch, memory: Params) -> tuple[Any, Metrics]:
        log_prob, entropy = decide(params.actor, memory.actor, batch)
        ratio = jnp.exp(log_prob - batch.log_prob)
        objective = clipped_surrogate(ratio, batch.advantage, config.clip)
        policy_loss = -masked_mean(objective, batch.alive) - config.entropy_coef * entropy

        value, _ = values(params.critic, memory.critic, batch)
        error = clipped_value_loss(value, batch.value, batch.target, config.clip, config.huber_delta)
        value_loss = masked_mean(error, batch.alive)
        report = {"entropy": entropy, "ratio": masked_mean(ratio, batch.alive)}
        report |= {"policy_loss": policy_loss, "value_loss": value_loss}
        return policy_loss + value_loss, report

    def init(key: Key) -> State:
        actor_key, critic_key = keys(key, 2)
        begin_key = jax.random.fold_in(key, 0)
        params = Params(init_part(actor, actor_key), init_part(critic, critic_key))
        biased_head = biased(params.actor["head"], config.initial_logits, config.network, spec, share)
        params = params._replace(actor=params.actor | {"head": biased_head})
        return State(
            params=params,
            optimiser=Params(*(optimiser.init(p) for p in params)),
            scale=init_scale(),
            actors=begin(env, policy_of(params, greedy=False), begin_key, config.envs),
            critic_memory=jax.tree.map(lambda m: jnp.tile(m, (config.envs, 1)), trunk_start()),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        memory = Params(actor=state.actors.memory.trunk, critic=state.critic_memory)
        behaviour = policy_of(state.params, greedy=False)
        actors, seen = rollout(env, behaviour, collect_key, state.actors, steps)

        # Who chose at each position, and at which position each agent chose; ``[T, E, N]``.
        alive = seen.observation.alive
        order = seen.extras["order"] if random else jnp.broadcast_to(line, alive.shape)
        position = jnp.argsort(order, axis=-1) if random else line.argsort()
        reorder = jnp.take_along_axis if random else jnp.take
        before = position[..., None, :] < position[..., :, None]
        before = jnp.broadcast_to(before, (*alive.shape, n))
        if tabular:
            seen_view = jax.vmap(jax.vmap(rows))(seen.observation, seen.action, before)
        else:
            seen_view = jax.vmap(jax.vmap(view))(seen.observation)
        batch = Batch(
            view=seen_view,
            before=before,
            legal=seen.observation.legal,
            alive=alive,
            action=seen.extras.get("chosen", seen.action),
            log_prob=seen.extras["log_prob"],
            advantage=None,
            value=None,
            target=None,
            first=seen.first,
        )
        value, memories = values(state.params.critic, memory.critic, batch)
        look_ahead = lambda m, o, order: first_value(state.params.critic, m, o, order)  # noqa: E731
        in_axes = (0, 0, 0) if recurrent else (None, 0, 0)
        next_value = jax.vmap(jax.vmap(look_ahead, in_axes), in_axes)(memories, seen.next, order)

        # The block of N virtual steps, in the order in which the agents chose.
        in_order = lambda x: reorder(x, order if random else line, -1)  # noqa: E731
        following = of_next_living(
            in_order(restored(state.scale, value)),
            in_order(alive),
            restored(state.scale, next_value),
        )
        virtual = unfold(
            seen.reward,
            seen.terminated,
            seen.truncated,
            n,
            config.gamma,
            config.lam,
            config.discount,
        )
        target = lambda_returns(
            virtual.reward,
            jnp.moveaxis(following, -1, 1).reshape(steps * n, config.envs),
            virtual.terminated,
            virtual.truncated,
            virtual.gamma,
            virtual.lam,
        )
        target = jnp.moveaxis(target.reshape(steps, n, config.envs), 1, -1)
        target = reorder(target, position, -1)

        scale = update_scale(state.scale, target, alive)
        batch = batch._replace(
            value=value,
            target=normalised(scale, target),
            advantage=standardise(target - restored(state.scale, value), alive),
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
        critic_memory = jax.tree.map(lambda m: m[-1], memories)
        return State(params, optimisers, scale, actors, critic_memory), report

    def start() -> Turn:
        return Turn(jnp.asarray(line, jnp.int32) if random else (), jnp.ones((), bool), trunk_start())

    def policy_of(params: Params, *, greedy: bool) -> Policy:
        table = choices(params.actor["head"], share, legal) if tabular else None

        def act(key: Key, memory: Turn, observation: Observation) -> tuple[Any, Turn, Any]:
            noise, order = family.noise(key, n), line
            if random:
                drawn = jax.random.permutation(jax.random.fold_in(key, 1), n).astype(jnp.int32)
                order = jnp.where(memory.fresh, drawn, memory.order)
            x, trunk_memory = features(params.actor, memory.trunk, view(observation))

            def choose(prefix: Any, turn: tuple[Any, Any]) -> tuple[Any, Any]:
                agent, noise = turn
                own = None if tabular else of_agent(params.actor["head"], share, agent)
                if table is not None:
                    row = table_row(x, agent, prefix, n, spec.n_actions, share.identity)
                    action, told = table.act(noise, agent, row, observation.legal[agent], greedy)
                else:
                    outputs = actor.read(own, x, agent, prefix)
                    action, told = family.decide(noise, outputs, observation.legal[agent], greedy)
                token = actor.token(own, x, agent, family.shown(told.get("chosen", action)))
                prefix = jax.tree.map(
                    lambda p, t: p + jnp.where(observation.alive[agent], t, 0), prefix, token
                )
                return prefix, (action, told)

            _, chosen = jax.lax.scan(choose, actor.empty(), (jnp.asarray(order), noise))
            by_index = jnp.argsort(order) if random else line.argsort()
            action, extras = jax.tree.map(lambda x: x[by_index], chosen)
            memory = Turn((), memory.fresh, trunk_memory)
            if random:
                extras = extras | {"order": order}
                memory = Turn(order, jnp.zeros((), bool), trunk_memory)
            return action, memory, extras

        return Policy(start=start, act=act, execution="centralised")

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params, greedy=greedy)

    return Algorithm(init, step, policy)
