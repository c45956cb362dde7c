"""IQL, VDN, QMIX, QPLEX and weighted QMIX: deep Q-learning of a team, with one mixer or another.

    fill the replay with episodes of random play
    repeat
        collect E episodes ε-greedily: every agent takes argmax Q_i(τ_i, ·), or a random legal action
        for each gradient step, with B episodes of the replay:
            a'_i = argmax Q_i(τ'_i, ·) over legal actions                       (double Q-learning)
            G = λ-return of r with V(next) = mix(Q̄_1(τ'_1, a'_1), …, Q̄_N(τ'_N, a'_N); s')
            descend ½ w (G − mix(Q_1(τ_1, a_1), …, Q_N(τ_N, a_N); s))²
            Q̄ ← Q̄ + τ (Q − Q̄), and the mixer's copy likewise

Weighted QMIX learns a free Q̂*(τ, a; s) beside, which nothing makes factorise: V(next) is its copy's
value of a', it descends ½ (G − Q̂*)², and w, elsewhere 1, is

    optimistic   1 where Q_tot < G, else α
    central      1 where every a_i is argmax Q_i(τ_i, ·), or G > Q̂* of these; else α

Source: Tan 1993 (IQL: no mixer, every agent's Q has an error of its own on the common reward), Sunehag
et al. 2018 (VDN: a sum), Rashid et al. 2018, eqs. 5-6 (QMIX: a monotone network whose weights are made
from the state), Wang et al. 2021, eqs. 9-11 (QPLEX: duplex duelling, see :mod:`networks.mixers`),
Rashid et al. 2020 (OW- and CW-QMIX); van Hasselt et al. 2016 (double Q). Differs in that truncated
episodes bootstrap from their true final observation. Dead agents have utility 0 in every mixer, and no
error of their own. As a' is greedy, the λ-return is Peng's Q(λ) (Peng & Williams 1996), and
``returns="corrected"`` is Q*(λ) (Harutyunyan et al. 2016), which takes back what exploration lost.

With ``information`` other than ``local`` agents are told z_i of the global state, so that they act
centrally (Chen et al. 2024, PTDE, stage 1; :mod:`networks.personalised`): Q_i(τ_i, z_i, ·). ε_i of z_i
is drawn anew in every step of play and for every batch, where Q and Q̄ share it. What is greedy, the
policy that is evaluated included, takes the mean of z_i, while the authors draw it there as well.
``distill`` turns the result into decentralised policies. CSRL (Chen et al. 2022) is ``guided``, and
tells of the state as it was in each ``period``'s first step.

By default ε is 1 throughout, so that everything is learned from random play: what is then found in a
game is a property of the mixer and not of the exploration.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmarl_tad import replay
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_epsilon, struct
from jaxmarl_tad.distributions import best, explore, highest, taken
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks import personalised
from jaxmarl_tad.networks.joint import is_tabular, joint_value
from jaxmarl_tad.networks.mixers import Choice, Mixer, Name, mixer
from jaxmarl_tad.networks.net import (
    Kind,
    Remember,
    agent_inputs,
    network,
    resolve_kind,
    unroll,
)
from jaxmarl_tad.optimise import adam, rmsprop
from jaxmarl_tad.replay import Record, Replay, record
from jaxmarl_tad.rollout import keys
from jaxmarl_tad.sharing import Mode, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.targets import beyond_death, corrected_returns, lambda_returns
from jaxmarl_tad.types import Activation, Algorithm, Informed, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of IQL, VDN, QMIX, QPLEX and weighted QMIX."""

    total_steps: int | None = None
    """Environment steps of one member, rounded to whole iterations; padding counts. 6,400 times the
    horizon (IQL and weighted QMIX 12,800) unless given."""
    envs: int = 32
    """Episodes collected in each iteration; divides ``capacity``."""
    steps: int | None = None
    """Length to which episodes are padded: the horizon."""
    updates: int | None = None
    """Gradient steps in each iteration; 2 for QPLEX or with information, and else 1 unless given."""
    batch: int = 32
    """Episodes in each gradient step; the replay starts with at least as many random ones."""
    capacity: int = 512
    """Episodes that the replay holds."""
    lr: Real | None = None
    """Unless given 0.1 for tables (QMIX 0.05, weighted 0.2, QPLEX 0.01) and 5e-4 for other networks,
    2e-3 if these are told of the state."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real | None = None
    """λ of the λ-return, in [0, 1]; 0, or with information 0.6, unless given."""
    returns: Literal["peng", "corrected"] = "peng"
    """Peng's Q(λ), or Q*(λ), which corrects for actions that were not the best."""
    epsilon_start: Real = 1.0
    """Probability of a random action in the first iteration."""
    epsilon_end: Real | None = None
    """Probability of a random action once it has fallen; 1 in games of at most 4 steps (uniform data)
    and 0.05 in others unless given."""
    epsilon_fraction: Real = 0.5
    """Share of the run over which it falls linearly, in [0, 1]."""
    target_update: Real = 0.1
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    optimiser: Literal["adam", "rmsprop"] | None = None
    """RMSprop for QPLEX and else Adam unless given."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient."""
    double: bool = True
    """Whether the online networks, rather than the target networks, choose the next action."""
    mixer: Name = "qmix"
    """How utilities make the team's value."""
    embed: int = 32
    """Width of QMIX's mixing layer."""
    hyper: int | None = None
    """Hidden width of the networks that make a mixer's weights; 64, QPLEX 32, unless given."""
    heads: int = 10
    """QPLEX: heads over which λ is summed."""
    layers: int = 3
    """QPLEX: linear maps in each of the networks that make λ; StarCraft: ``heads=4, layers=1``."""
    weighting: Literal["none", "optimistic", "central"] = "none"
    """Which errors of Q_tot weigh ``alpha`` instead of 1; all but ``none`` learn Q̂* too."""
    alpha: Real = 0.1
    """Weight of an error that matters little, in [0, 1]."""
    central: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers of Q̂*; in a small finite game it is a table."""
    information: personalised.Information = "local"
    """What agents are told of the global state: see :mod:`jaxmarl_tad.networks.personalised`."""
    z_size: int = 64
    """How many numbers an agent is told."""
    z_source: personalised.Source = "observation"
    """What personalises them: what the agent sees, or (with a memory) has seen."""
    z_rank: int | None = None
    """Features to which the state is mapped before it is personalised: none, unless given."""
    z_noise: Real = 1.0
    """What the deviation of z is multiplied by while learning; 0 leaves its mean."""
    period: int = 1
    """Steps for which agents are told of one state, from an episode's first step on."""
    memory: Remember = "none"
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = True
    """Whether a layer norm stands before and after every hidden layer, as in MAPPO's recipe."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = (self.envs, self.updates or 1, self.batch, self.capacity, self.embed)
        sizes = (*sizes, self.hyper or 1, self.heads, self.layers, self.period)
        require(min(sizes) >= 1, "q_learning: sizes must be positive.")
        check_divides(self, "envs", "capacity")
        require(
            self.mixer != "none" or self.weighting == "none",
            f"q_learning: weighting={self.weighting!r} needs a mixer; without one there is no Q_tot.",
        )
        require(
            self.information == "local" or self.weighting == "none",
            "q_learning: agents of weighted QMIX are told nothing; use information='local'.",
        )
        require(
            self.capacity >= self.batch,
            f"q_learning: capacity={self.capacity} must be at least batch={self.batch}.",
        )
        shares = ("gamma", "lam", "epsilon_start", "epsilon_end", "epsilon_fraction")
        check_range(self, **dict.fromkeys((*shares, "target_update", "alpha"), (0, 1)))

    @property
    def first_episodes(self) -> int:
        """Episodes of random play with which the replay starts: a batch, in whole collections."""
        return -(-self.batch // self.envs) * self.envs

    @property
    def first_steps(self) -> int:
        """Environment steps that these take."""
        assert self.steps is not None, "resolve() fills this in"
        return self.first_episodes * self.steps


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    require(spec.discrete, "q_learning: actions must be discrete; this environment's are continuous.")
    require(
        config.steps in (None, spec.horizon),
        f"q_learning: steps={config.steps} must be the horizon, {spec.horizon}: whole episodes.",
    )
    personalised.check(config, spec)
    told = config.information != "local"
    asked = "mlp" if told else config.network
    kind = resolve_kind(asked, config.memory, spec, spec.obs_dim * spec.n_agents)
    for_tables = {"qmix": 0.05, "qplex": 0.01}.get(config.mixer, 0.1)
    for_tables = for_tables if config.weighting == "none" else 0.2  # rows of Q̂* are seen seldom
    for_others = 2e-3 if told else 5e-4
    lr = (for_tables if kind == "table" else for_others) if config.lr is None else config.lr
    # IQL's utilities are means over what the others do, which takes more samples to tell apart, and
    # weights that depend on Q̂* mean little before it is learned.
    each = 12_800 if config.mixer == "none" or config.weighting != "none" else 6_400
    qplex = config.mixer == "qplex"
    return {
        "network": kind,
        "steps": spec.horizon,
        "total_steps": config.total_steps or each * spec.horizon,
        "optimiser": config.optimiser or ("rmsprop" if qplex else "adam"),
        "updates": config.updates or (2 if qplex or told else 1),
        "hyper": config.hyper or (32 if qplex else 64),
        "lr": lr,
        "lam": (0.6 if told else 0.0) if config.lam is None else config.lam,
        "epsilon_end": resolve_epsilon(config.epsilon_end, spec),
    }


class Params(NamedTuple):
    """Parameter sets of the agents, of the mixer, and of Q̂* where there is one."""

    agents: Any
    mixer: Any
    central: Any = ()


class Central(NamedTuple):
    """Parameters of Q̂*: its own agents' networks, unless it is a table, and what joins them."""

    agents: Any
    joint: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Params
    optimiser: Any
    replay: Replay


def team_value(config: Config, spec: Spec) -> tuple[Mixer, Callable]:
    """The mixer, and Q_tot as ``total(params, q, action, seen)``.

    ``total`` gives the values ``[*batch, K]`` of joint actions ``[*batch, N]`` from all utilities
    ``[*batch, N, A]``; ``seen`` has fields ``legal``, ``alive`` and ``state`` (the view).
    """
    assert config.hyper is not None, "resolve() fills this in"
    mixing = mixer(
        config.mixer,
        config.network,
        spec,
        embed=config.embed,
        hidden=config.hyper,
        heads=config.heads,
        layers=config.layers,
    )

    def total(params: Params, q: Array, action: Array, seen: Any) -> Array:
        own, alive = taken(q, action), seen.alive
        choice = Choice(
            best=jnp.where(alive, highest(q, seen.legal), 0),
            action=jax.nn.one_hot(action, spec.n_actions) * alive[..., None],
        )
        return mixing.mix(params.mixer, jnp.where(alive, own, 0.0), seen.state, choice)

    return mixing, total


def make(config: Config, env: Environment) -> Algorithm:
    """The learner on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    agents = jnp.arange(spec.n_agents)
    share = sharing(config.sharing, spec.n_agents)
    assert config.lr is not None and config.updates is not None and config.epsilon_end is not None
    assert config.lam is not None
    updates, lr, lam, epsilon_end = config.updates, config.lr, config.lam, config.epsilon_end

    view, inputs = agent_inputs(config.network, spec, share.identity)
    agent = network(
        config.network,
        inputs=inputs,
        outputs=spec.n_actions,
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
        memory=config.memory,
        # λ multiplies what an action gives away: where that is next to nothing, only a λ without
        # measure can express a payoff, and the utilities learn it first and wrongly.
        gain=0.3 if config.mixer == "qplex" else 0.01,
    )
    act_all, act_rows = over_agents(agent.apply, share), over_rows(agent.apply, share)
    # Who tells the agents of the state, if they are told: their parameters lie beside the agents'.
    informant = personalised.informant(config, spec, share, inputs)
    mixing, total = team_value(config, spec)
    weighted, free_table = config.weighting != "none", is_tabular(config.network, spec)
    free = joint_value(config.network, spec, features=0 if free_table else 1, hidden=config.central)
    optimiser = (adam if config.optimiser == "adam" else rmsprop)(config.max_grad_norm)

    def start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), agent.start())

    def views(observation: Observation) -> Any:
        rows = jax.vmap(view)(observation.agents, agents)
        return rows if informant is None else personalised.Seen(rows, observation.state)

    def utilities(sets: Any, batch: Record, noise: Array | None = None) -> Float[Array, "T B N A"]:
        """Q_i(τ_i, ·), or Q_i(τ_i, z_i, ·), at every row of what was seen."""
        rows, episodes = batch.alive.shape[:2]
        memory = jax.tree.map(lambda m: jnp.broadcast_to(m, (episodes, *m.shape)), start())
        first = jnp.broadcast_to(jnp.arange(rows)[:, None] == 0, (rows, episodes))
        own = sets if informant is None else sets["own"]
        seen = batch.views if informant is None else batch.views.rows
        one, many = (functools.partial(f, own) for f in (act_all, act_rows))
        q, memories = unroll(one, start(), memory, seen, first, many)
        if informant is None:
            return q
        issued = jnp.arange(rows) // config.period * config.period
        held = batch.views._replace(state=batch.views.state[issued])
        return informant.inform(sets["told"], q, held, memories, noise)[0]

    def central(params: Central, batch: Record) -> Callable[[Record, slice, Array], Array]:
        """Q̂* as a function of what was seen, in which rows, and actions: ``[T, B, 1]``."""
        q = None if free_table else utilities(params.agents, batch)

        def value(seen: Record, rows: slice, action: Array) -> Array:
            alive = seen.alive[..., None]
            histories = None if q is None else taken(q[rows], action)[..., None] * alive
            chosen = jax.nn.one_hot(action, spec.n_actions) * alive
            return free.value(params.joint, seen.state, chosen, histories)[..., None]

        return value

    def loss(
        params: Params, target: Params, batch: Record, noise: Array | None = None
    ) -> tuple[Array, Metrics]:
        q, delayed = (utilities(p.agents, batch, noise) for p in (params, target))
        now, ahead = batch.rows(slice(-1)), batch.rows(slice(1, None))
        following = best((q if config.double else delayed)[1:], ahead.legal)
        value = total(params, q[:-1], batch.action, now)
        counts = batch.valid[..., None]
        if weighted:
            looked = central(target.central, batch)
            next_value = looked(ahead, slice(1, None), following)
        else:
            next_value = total(target, delayed[1:], following, ahead)
        if config.mixer == "none":
            next_value = beyond_death(next_value, ahead.alive)
            counts = counts & now.alive
        ends = batch.terminated, batch.truncated
        if config.returns == "peng":
            returns = lambda_returns(batch.reward, next_value, *ends, config.gamma, lam)
        else:
            if weighted:
                played = looked(now, slice(-1), batch.action)
            else:
                played = total(target, delayed[:-1], batch.action, now)
            returns = corrected_returns(batch.reward, played, next_value, *ends, config.gamma, lam)
        error = 0.5 * (returns - value) ** 2
        if not weighted:
            error = masked_mean(error, counts)
            return error, {"loss": error, "q": masked_mean(value, counts)}
        free_value = central(params.central, batch)
        greedy = best(q[:-1], now.legal)
        if config.weighting == "optimistic":
            matters = value < returns
        else:
            is_best = jnp.all((batch.action == greedy) | ~now.alive, axis=-1, keepdims=True)
            matters = is_best | (returns > free_value(now, slice(-1), greedy))
        error = masked_mean(error, counts, jnp.where(matters, 1.0, config.alpha))
        own = free_value(now, slice(-1), batch.action)
        free_error = masked_mean(0.5 * (returns - own) ** 2, counts)
        report = {"loss": error, "q": masked_mean(value, counts), "free_loss": free_error}
        return error + free_error, report

    def collect(key: Key, params: Params, epsilon: Real, envs: int) -> Record:
        return record(env, policy_of(params, epsilon), key, envs, views, mixing.view)

    def init(key: Key) -> State:
        agents_key, mixer_key, own_key, joint_key = keys(key, 4)
        collect_key = jax.random.fold_in(key, 0)
        extra: Any = ()
        if weighted:
            sets = () if free_table else init_sets(agent.init, own_key, share)
            extra = Central(sets, free.init(joint_key))
        sets: Any = init_sets(agent.init, agents_key, share)
        if informant is not None:
            sets = {"own": sets, "told": informant.init(jax.random.fold_in(key, 1))}
        params = Params(sets, mixing.init(mixer_key), extra)
        first = collect(collect_key, params, 1.0, config.first_episodes)
        return State(
            params=params,
            target=params,
            optimiser=optimiser.init(params),
            replay=replay.init(first, config.capacity),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        fallen = jnp.minimum(progress / jnp.maximum(config.epsilon_fraction, 1e-6), 1.0)
        epsilon = config.epsilon_start + fallen * (epsilon_end - config.epsilon_start)
        rate = lr * (1 - (1 - config.lr_end) * progress)
        memory = replay.add(state.replay, collect(collect_key, state.params, epsilon, config.envs))

        def update(carry: Any, i: Array) -> tuple[Any, Metrics]:
            params, target, optimiser_state = carry
            drawn = replay.sample(memory, jax.random.fold_in(learn_key, i), config.batch)
            batch = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), drawn)
            noise = None
            if informant is not None and informant.random:
                shape = (*batch.alive.shape, informant.size)
                noise_key = jax.random.fold_in(learn_key, updates + i)
                noise = config.z_noise * jax.random.normal(noise_key, shape)
            gradient, report = jax.grad(loss, has_aux=True)(params, target, batch, noise)
            params, optimiser_state = optimiser.update(gradient, optimiser_state, params, rate)
            target = jax.tree.map(lambda t, p: t + config.target_update * (p - t), target, params)
            return (params, target, optimiser_state), report

        carry = (state.params, state.target, state.optimiser)
        carry, reports = jax.lax.scan(update, carry, jnp.arange(updates))
        report = jax.tree.map(lambda x: x.mean(0), reports)
        params, target, optimiser_state = carry
        state = State(params, target, optimiser_state, memory)
        return state, report | {"epsilon": jnp.asarray(epsilon)}

    def policy_of(params: Params, epsilon: Real | None) -> Policy:
        if informant is not None:
            return central_policy(params, epsilon)

        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            q, memory = act_all(params.agents, memory, views(observation))
            action = best(q, observation.legal)
            if epsilon is not None:
                uniform = jax.random.uniform(key, (spec.n_agents,))
                action = explore(uniform, epsilon, observation.legal, action)
            return action, memory, {"q": q}

        return Policy(start=start, act=act, execution="decentralised")

    def central_policy(params: Params, epsilon: Real | None) -> Policy:
        """The policy of agents that are told of the state, as it was in each period's first step."""
        assert informant is not None
        teller, sets = informant, params.agents

        def act(key: Key, memory: Any, observation: Observation) -> tuple[Any, Any, Any]:
            own, held, clock = memory
            seen = views(observation)
            held = jnp.where(clock % config.period == 0, seen.state, held)
            q, own = act_all(sets["own"], own, seen.rows)
            noise, following = None, (held, clock + 1)
            if epsilon is not None and teller.random:
                key, noise_key = jax.random.split(key)
                noise = config.z_noise * jax.random.normal(noise_key, (spec.n_agents, teller.size))
            q, z = teller.inform(sets["told"], q, seen._replace(state=held), own, noise)
            action = best(q, observation.legal)
            if epsilon is not None:
                uniform = jax.random.uniform(key, (spec.n_agents,))
                action = explore(uniform, epsilon, observation.legal, action)
            return action, (own, *following), {"q": q, "z": z}

        def begin() -> Memory:
            return start(), jnp.zeros(spec.state_dim), jnp.zeros((), jnp.int32)

        return Policy(begin, act, "centralised")

    def informed(state: State) -> Informed:
        assert informant is not None
        size, heard, sets = informant.size, informant.heard, state.params.agents

        def act(key: Key, memory: Memory, observation: Observation, z: Array) -> tuple[Any, Any, Any]:
            q, memory = act_all(sets["own"], memory, jax.vmap(view)(observation.agents, agents))
            q = q + heard(sets["told"], z)
            return best(q, observation.legal), memory, {"q": q}

        acting = {"own": sets["own"], "heard": sets["told"]["out"]}
        return Informed(size, start, act, acting, share.assignment)

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params, None if greedy else epsilon_end)

    return Algorithm(init, step, policy, None if informant is None else informed)
