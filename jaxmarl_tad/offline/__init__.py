"""What methods that learn from a dataset share: their batches, and networks of agents and mixer.

A batch is stretches of ``T`` steps and the row after them, so that what an action led to is always the
next row, for networks with memory as for those without. Without memory ``T`` is 1.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmarl_tad import distributions
from jaxmarl_tad.dataset import Dataset, at, window_at, window_rows
from jaxmarl_tad.networks.net import agent_inputs, network, resolve_kind, state_inputs, unroll
from jaxmarl_tad.optimise import Optimiser
from jaxmarl_tad.sharing import init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.types import Key, Memory, Params, Policy
from tad_envs import Observation, Real, Spec

WINDOW = 20
"""Steps of a stretch for networks with memory, unless given."""


def resolve_common(config: Any, spec: Spec, for_tables: float = 0.05) -> dict[str, Any]:
    """Network, learning rate and window, unless given: tables where they fit."""
    kind = resolve_kind(config.network, config.memory, spec, spec.obs_dim * spec.n_agents)
    lr = (for_tables if kind == "table" else 1e-3) if config.lr is None else config.lr
    window = (1 if config.memory == "none" else WINDOW) if config.window is None else config.window
    return {"network": kind, "lr": lr, "window": window}


class Lesson(NamedTuple):
    """Recorded steps to learn from."""

    seen: Observation
    """``[T + 1, B, ...]``: the last row shows what the last step led to."""
    first: Bool[Array, "T+1 B"]
    """Where memory is reset before a row."""
    action: Shaped[Array, "T B N *D"]
    """Discrete actions, or continuous ones in units of half their range, within (-1, 1)."""
    reward: Float[Array, "T B"]
    terminated: Bool[Array, "T B"]
    valid: Bool[Array, "T B"]
    """Whether the row is a step."""
    last: Bool[Array, "T B"]
    """Whether no action is recorded of what the step led to."""
    row: Int[Array, "T B"]
    """Of the dataset."""

    @property
    def now(self) -> Observation:
        """What was acted on, ``[T, B, ...]``."""
        return jax.tree.map(lambda x: x[:-1], self.seen)

    @property
    def counts(self) -> Bool[Array, "T B N"]:
        """Steps of living agents."""
        return self.valid[..., None] & self.seen.alive[:-1]


def lesson(data: Dataset, key: Key, batch: int, length: int, margin: float = 1e-4) -> Lesson:
    """``batch`` stretches of ``length`` steps; all steps in their order if there are no more of them.

    Continuous actions are held ``margin`` away from the ends of their range, where the density of a
    squashed normal number is infinite.
    """
    if length == 1 and data.steps <= batch:
        rows = jnp.asarray(data.rows)[None] + jnp.arange(2)[:, None]
        drawn, valid = at(data, rows), jnp.ones(rows.shape, bool)
        first = jnp.zeros(rows.shape, bool).at[0].set(True)
    else:
        rows, inside = window_rows(data, key, batch, length + 1)
        drawn, valid = window_at(data, rows, inside)
        first = drawn.first
    action = drawn.action[:-1]
    if not data.spec.discrete:
        low, high = data.spec.bounds or (-1.0, 1.0)
        action = jnp.clip(2 * (action - low) / (high - low) - 1, -1 + margin, 1 - margin)
    return Lesson(
        seen=drawn.observation,
        first=first,
        action=action,
        reward=drawn.reward[:-1],
        terminated=drawn.terminated[:-1],
        valid=valid[:-1],
        last=(drawn.terminated | drawn.truncated)[:-1],
        row=rows[:-1],
    )


class Rows(NamedTuple):
    """A network that every agent has."""

    init: Callable[[Key], Params]
    apply: Callable[..., Float[Array, "T+1 B N K"]]
    """``apply(params, seen, first)`` on recorded rows; actions go behind it where they are fed in."""
    start: Callable[[], Memory]
    act: Callable[..., tuple[Float[Array, "N K"], Memory]]
    """``act(params, memory, observation)``: what each agent's network says of its own row; actions go
    behind it as well."""


def rows_of(config: Any, spec: Spec, outputs: int, *, fed: int = 0, gain: float = 0.01) -> Rows:
    """A network of each agent's own history with ``outputs``; ``fed`` numbers of the action go in too.

    A table stands where ``config.network`` says so, unless actions are fed in.
    """
    agents, share = jnp.arange(spec.n_agents), sharing(config.sharing, spec.n_agents)
    kind = "mlp" if fed else config.network
    view, inputs = agent_inputs(kind, spec, share.identity)
    net = network(
        kind,
        inputs=inputs + fed,
        outputs=outputs,
        hidden=config.hidden,
        memory=config.memory,
        activation=config.activation,
        layer_norm=config.layer_norm,
        gain=0.0 if kind == "table" else gain,
    )
    one, many = over_agents(net.apply, share), over_rows(net.apply, share)

    def start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), net.start())

    def apply(params: Params, seen: Observation, first: Array, action: Array | None = None) -> Array:
        views = jax.vmap(jax.vmap(lambda rows: jax.vmap(view)(rows, agents)))(seen.agents)
        if action is not None:
            views = jnp.concatenate([views, action], axis=-1)
        memory = jax.tree.map(lambda m: jnp.broadcast_to(m, (first.shape[1], *m.shape)), start())
        lone, together = (functools.partial(f, params) for f in (one, many))
        return unroll(lone, start(), memory, views, first, together)[0]

    def act(
        params: Params, memory: Memory, observation: Observation, action: Array | None = None
    ) -> tuple[Array, Memory]:
        views = jax.vmap(view)(observation.agents, agents)
        if action is not None:
            views = jnp.concatenate([views, action], axis=-1)
        return one(params, memory, views)

    return Rows(lambda key: init_sets(net.init, key, share), apply, start, act)


class Actor(NamedTuple):
    """π_i as pure functions of stacked parameter sets."""

    init: Callable[[Key], Params]
    log_prob: Callable[..., Float[Array, "T B N"]]
    """``log_prob(params, lesson)`` of the recorded actions."""
    outputs: Callable[..., Float[Array, "T+1 B N K"]]
    """``outputs(params, lesson)``: the numbers that make the distribution, in every row."""
    policy: Callable[..., Policy]
    """``policy(params, *, greedy)``."""


def actor(config: Any, spec: Spec) -> Actor:
    """Decentralised policies as ``config`` describes them: softmax of legal actions, or tanh-normal."""
    head = distributions.head("tanh_gaussian", spec)
    numbers = head.outputs if spec.discrete else 2 * head.outputs  # a deviation for each mean
    rows = rows_of(config, spec, numbers)

    def outputs(params: Params, lesson: Lesson) -> Array:
        return rows.apply(params, lesson.seen, lesson.first)

    def log_prob(params: Params, lesson: Lesson) -> Array:
        out = outputs(params, lesson)[:-1]
        chosen = lesson.action if spec.discrete else jnp.arctanh(lesson.action)
        return head.judge(out, lesson.seen.legal[:-1], chosen)[0]

    def policy(params: Params, *, greedy: bool) -> Policy:
        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            noise = head.noise(key, spec.n_agents)
            out, memory = rows.act(params, memory, observation)
            action, extras = head.decide(noise, out, observation.legal, greedy)
            return action, memory, extras

        return Policy(start=rows.start, act=act, execution="decentralised")

    return Actor(rows.init, log_prob, outputs, policy)


class Critic(NamedTuple):
    """Q_i as pure functions of stacked parameter sets."""

    init: Callable[[Key], Params]
    taken: Callable[..., Float[Array, "T B N"]]
    """``taken(params, lesson)``: Q_i of the recorded actions."""
    mean: Callable[..., Float[Array, "T+1 B N"]]
    """``mean(params, lesson, out)``: of what a policy with outputs ``out`` would do, in every row: the
    mean over discrete actions, and of continuous ones the value of the likeliest."""


def critic(config: Any, spec: Spec) -> Critic:
    """Every agent's own Q_i: of all its actions at once if they are discrete."""
    if spec.discrete:
        rows = rows_of(config, spec, spec.n_actions)

        def taken(params: Params, lesson: Lesson) -> Array:
            every = rows.apply(params, lesson.seen, lesson.first)[:-1]
            return distributions.taken(every, lesson.action)

        def mean(params: Params, lesson: Lesson, out: Array) -> Array:
            every = rows.apply(params, lesson.seen, lesson.first)
            share = jnp.exp(distributions.log_probabilities(out, lesson.seen.legal))
            return jnp.sum(share * every, axis=-1)

        return Critic(rows.init, taken, mean)
    rows = rows_of(config, spec, 1, fed=spec.action_dim, gain=1.0)

    def of_action(params: Params, lesson: Lesson) -> Array:
        told = jnp.where(lesson.seen.legal[:-1], lesson.action, 0.0)
        last = jnp.zeros_like(told[:1])  # nothing was done in the row behind the last step
        told = jnp.concatenate([told, last])
        return rows.apply(params, lesson.seen, lesson.first, told)[:-1, ..., 0]

    def of_mode(params: Params, lesson: Lesson, out: Array) -> Array:
        likeliest = jnp.tanh(distributions.mean_and_deviation(out)[0])
        told = jnp.where(lesson.seen.legal, likeliest, 0.0)
        return rows.apply(params, lesson.seen, lesson.first, told)[..., 0]

    return Critic(rows.init, of_action, of_mode)


class Linear(NamedTuple):
    """A mixer with weights that are functions of the state: Q_tot = Σ_i w_i(s) Q_i + b(s)."""

    init: Callable[[Key], Params]
    weights: Callable[..., tuple[Float[Array, "*batch N"], Float[Array, "*batch"]]]
    """``weights(params, seen)``: w ≥ 0, 0 for the dead, and b."""


def linear_mixer(config: Any, spec: Spec) -> Linear:
    """w = |1 + f(s)| and b, from one network with a hidden layer of ``config.mix_hidden``.

    Weights begin near 1, as of a plain sum.
    """
    view, inputs = state_inputs(config.network, spec)
    net = network(
        config.network,
        inputs=inputs,
        outputs=spec.n_agents + 1,
        hidden=(config.mix_hidden,),
        layer_norm=False,
        gain=0.01,
    )

    def weights(params: Params, seen: Observation) -> tuple[Array, Array]:
        lead = seen.state.shape[:-1]
        flat = view(seen.state.reshape(-1, spec.state_dim))
        out = jax.vmap(lambda x: net.apply(params, (), x)[0])(flat).reshape(*lead, -1)
        return jnp.where(seen.alive, jnp.abs(1 + out[..., :-1]), 0.0), out[..., -1]

    return Linear(net.init, weights)


def mixed(
    weights: tuple[Float[Array, "*batch N"], Float[Array, "*batch"]], x: Float[Array, "*more N"]
) -> Float[Array, "*more"]:
    """Σ_i w_i x_i + b, where ``x`` may have axes more in front."""
    return jnp.sum(weights[0] * x, axis=-1) + weights[1]


def descended(
    optimiser: Optimiser, slopes: Any, states: Any, params: Any, rates: Any
) -> tuple[Any, Any]:
    """One step of each part of ``params``, a named tuple, by itself: parts, and optimiser states.

    ``rates`` is a learning rate for each part.
    """
    parts = zip(slopes, states, params, rates, strict=True)
    stepped = [optimiser.update(*part) for part in parts]
    params, states = (type(params)(*part) for part in zip(*stepped, strict=True))
    return params, states


def followed(target: Params, params: Params, share: Real) -> Params:
    """Target networks after they went this share of the way (Polyak's rate)."""
    return jax.tree.map(lambda t, p: t + share * (p - t), target, params)


def relative(x: Float[Array, "*batch"], counts: Bool[Array, "*batch"]) -> Float[Array, "*batch"]:
    """exp x divided by its mean over entries that count: the batch's soft-max times its size."""
    top = jnp.max(jnp.where(counts, x, -jnp.inf))
    grown = jnp.exp(jnp.where(counts, x - top, 0.0))
    mean = jnp.sum(jnp.where(counts, grown, 0.0)) / jnp.maximum(jnp.sum(counts), 1)
    return jnp.where(counts, grown / jnp.maximum(mean, 1e-12), 0.0)
