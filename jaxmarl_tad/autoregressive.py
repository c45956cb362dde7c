"""A team that chooses one agent after the other: how it acts, and how it is replayed for learning.

    π(a | x) = Π_k π(a_{i_k} | x_{i_k}, who of i_1 … i_{k−1} chose what)      in the order i_1, …, i_N

What agent i sees, x_i, is its own observation or the global state, through a memory if there is one;
then comes a head of :mod:`jaxmarl_tad.networks.prefix`, which reads the choices made before. The order
is that of the agents' indices, or drawn anew for every step. With ``read="sum"`` the head is a
multilayer perceptron on x_i beside the others' one-hot choices, 0 for those who have not chosen
(Fu et al. 2022). An agent that is dead leaves no choice to be read.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad import distributions
from jaxmarl_tad.networks.net import network, unroll
from jaxmarl_tad.networks.prefix import head, prefixes, table_row, table_rows, with_spread
from jaxmarl_tad.networks.tables import biased, by_agent
from jaxmarl_tad.sharing import init_sets, of_agent, over_agents, over_rows, sharing
from jaxmarl_tad.types import Key, Memory, Params, Policy
from tad_envs import Observation, Spec

Order = Literal["fixed", "random"]
"""Who chooses first: always agent 0, then 1, …; or an order drawn for every step."""
Seen = Literal["own", "state"]


class Autoregressive(NamedTuple):
    """Sequential policies as pure functions of stacked parameter sets."""

    init: Callable[[Key], Params]
    start: Callable[[], Memory]
    policy: Callable[..., Policy]
    """``policy(params, *, greedy)``; tells ``log_prob [N]`` and, if it is random, the ``order [N]``."""
    replay: Callable[..., tuple[Float[Array, "T E N K"], Memory]]
    """``replay(params, memory, observation, chosen, order, first)``: the outputs from which each of the
    choices ``chosen`` was made, given those that came before it in ``order``; and the memories after
    each step. All leaves are ``[T, E, ...]``, memories before the first step ``[E, ...]``; an
    ``order`` of None is that of the indices."""


def rows_needed(seen: Seen, spec: Spec, identity: bool) -> int:
    """Rows of a table over all that may be seen and chosen before."""
    states = spec.obs_dim if seen == "own" else spec.state_dim
    return table_rows(states, spec.n_agents, spec.n_actions, identity)


def before(order: Int[Array, "*batch N"]) -> Bool[Array, "*batch N N"]:
    """``[..., i, j]``: whether j chose before i."""
    position = jnp.argsort(order, axis=-1)
    return position[..., None, :] < position[..., :, None]


def autoregressive(config: Any, spec: Spec, seen: Seen) -> Autoregressive:
    """The team that ``config`` describes: its order, network, memory, sharing and distribution."""
    n, agents = spec.n_agents, jnp.arange(spec.n_agents)
    share = sharing(config.sharing, n)
    tabular, recurrent = config.network == "table", config.memory == "gru"
    random = config.order == "random"
    family = distributions.head(config.head, spec)

    inputs = spec.obs_dim if seen == "own" else spec.state_dim
    width = config.hidden[-1]
    trunk = network("mlp", inputs=inputs, outputs=width, hidden=config.hidden, memory="gru", gain=1.0)
    choice = head(
        config.network,
        config.prefix,
        inputs=width if recurrent else inputs,
        outputs=family.outputs,
        agents=n,
        actions=spec.n_actions,
        identity=share.identity,
        dimensions=spec.action_dim,
        hidden=config.hidden,
        gain=0.01,
    )
    if not spec.discrete:
        choice = with_spread(choice, family.outputs, distributions.FIRST_SPREAD)
    trunk_all, trunk_rows = over_agents(trunk.apply, share), over_rows(trunk.apply, share)

    def init(key: Key) -> Params:
        drawn = init_sets(choice.init, key, share)
        made = {"head": biased(drawn, config.initial_logits, config.network, spec, share)}
        if not recurrent:
            return made
        return made | {"trunk": init_sets(trunk.init, jax.random.fold_in(key, 1), share)}

    def start() -> Memory:
        return jnp.tile(trunk.start(), (n, 1)) if recurrent else ()

    def views(observation: Observation) -> Any:
        rows = observation.agents
        if seen == "state":
            rows = jnp.broadcast_to(observation.state, (n, spec.state_dim))
        return jnp.argmax(rows, -1).astype(jnp.int32) if tabular else rows

    def reader(params: Params) -> Callable[[Any, Any, Any], Array]:
        """``read(x_i, i, prefix) -> [K]``."""
        if tabular:
            table = by_agent(params["head"], share, n)
            row = functools.partial(
                table_row, agents=n, actions=spec.n_actions, identity=share.identity
            )
            return lambda x, agent, prefix: table[agent, row(x, agent, prefix)]
        return lambda x, agent, prefix: choice.read(
            of_agent(params["head"], share, agent), x, agent, prefix
        )

    def token(params: Params, x: Any, agent: Any, chosen: Any) -> Any:
        own = None if tabular else of_agent(params["head"], share, agent)
        return choice.token(own, x, agent, family.shown(chosen))

    def policy(params: Params, *, greedy: bool) -> Policy:
        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            noise, order = family.noise(key, n), agents
            if random:
                drawn = jax.random.uniform(jax.random.fold_in(key, 1), (n,))
                order = jnp.argsort(drawn).astype(jnp.int32)
            x = views(observation)
            if recurrent:
                x, memory = trunk_all(params["trunk"], memory, x)
            read = reader(params)

            def choose(prefix: Any, turn: tuple[Any, Any]) -> tuple[Any, Any]:
                agent, noise = turn
                outputs = read(x[agent], agent, prefix)
                action, told = family.decide(noise, outputs, observation.legal[agent], greedy)
                left = token(params, x[agent], agent, told.get("chosen", action))
                alive = observation.alive[agent]
                prefix = jax.tree.map(lambda p, t: p + jnp.where(alive, t, 0), prefix, left)
                return prefix, (action, told)

            _, made = jax.lax.scan(choose, choice.empty(), (order, noise))
            if not random:
                return made[0], memory, made[1]
            position = jnp.argsort(order)
            action, told = jax.tree.map(lambda leaf: leaf[position], made)
            return action, memory, told | {"order": order}

        return Policy(start=start, act=act, execution="centralised")

    def replay(
        params: Params, memory: Memory, observation: Observation, chosen: Any, order: Any, first: Any
    ) -> tuple[Array, Memory]:
        x = jax.vmap(jax.vmap(views))(observation)
        if recurrent:
            one, many = (functools.partial(f, params["trunk"]) for f in (trunk_all, trunk_rows))
            x, memory = unroll(one, start(), memory, x, first, many)
        read = reader(params)

        def outputs(x: Any, chosen: Any, alive: Any, earlier: Any) -> Array:
            tokens = jax.vmap(functools.partial(token, params))(x, agents, chosen)
            return jax.vmap(read)(x, agents, prefixes(tokens, earlier & alive[None, :]))

        earlier = before(agents if order is None else order)
        axes = (0, 0, 0, None if order is None else 0)
        return jax.vmap(jax.vmap(outputs, axes), axes)(x, chosen, observation.alive, earlier), memory

    return Autoregressive(init, start, policy, replay)
