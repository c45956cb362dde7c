"""CTDS: a centralised teacher and its decentralised students, who learn in the same gradient step.

    fill the replay with episodes of random play
    repeat
        collect E episodes ε-greedily with the teacher: argmax Qᵀ_i(s, τ_i, ·), or a random legal action
        for each gradient step, with B episodes of the replay:
            a'_i = argmax Qᵀ_i(s', τ'_i, ·) over legal actions                  (double Q-learning)
            G = λ-return of r with V(next) = mix(Q̄ᵀ_1(·, a'_1), …, Q̄ᵀ_N(·, a'_N); s')
            the teacher descends  ½ (G − mix(Qᵀ_1(s, τ_1, a_1), …, Qᵀ_N(s, τ_N, a_N); s))²
            the students descend  Σ_a (Qˢ_i(τ_i, a) − Qᵀ_i(s, τ_i, a))²,  Qᵀ held fixed
            Q̄ᵀ ← Q̄ᵀ + τ (Qᵀ − Q̄ᵀ), and the mixer's copy likewise
    act with argmax Qˢ_i(τ_i, ·)

Source: Zhao et al. 2022 (CTDS), and the sizes of the authors' code. Teacher and student have networks
of one form; the teacher's is fed the global state besides what its agent sees (a table: the state
alone), in the place of StarCraft's unlimited sight. Differs in that illegal actions and dead agents
are not imitated, in that truncated episodes bootstrap from their true final observation, and in Adam
instead of RMSprop.

Only the teacher explores, so that students know nothing of where they themselves would lead: that is
what distillation in a stage of its own (PTDE, ``distill``) is compared with. As the two halves share
neither parameters nor an optimiser, the teacher is what it would be without students.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmarl_tad import replay
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_epsilon, struct
from jaxmarl_tad.distributions import best, explore, taken
from jaxmarl_tad.evaluate import score
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.mixers import Mixer, mixer
from jaxmarl_tad.networks.net import (
    Kind,
    Net,
    Remember,
    agent_inputs,
    network,
    resolve_kind,
    state_inputs,
    unroll,
)
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.replay import Record, Replay, record
from jaxmarl_tad.rollout import keys
from jaxmarl_tad.sharing import Mode, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.targets import lambda_returns
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of CTDS."""

    total_steps: int | None = None
    """Environment steps of one member, rounded to whole iterations; padding counts. 6,400 times the
    horizon unless given."""
    envs: int = 32
    """Episodes collected in each iteration; divides ``capacity``."""
    steps: int | None = None
    """Length to which episodes are padded: the horizon."""
    updates: int = 1
    """Gradient steps in each iteration."""
    batch: int = 32
    """Episodes in each gradient step; the replay starts with at least as many random ones."""
    capacity: int = 512
    """Episodes that the replay holds."""
    lr: Real | None = None
    """Adam's learning rate; 0.1 for tables (QMIX 0.05) and 5e-4 for other networks unless given."""
    student_lr: Real | None = None
    """The students' learning rate; ``lr`` unless given."""
    lr_end: Real = 0.0
    """Share of both that is left at the end; they fall linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.0
    """λ of the λ-return, in [0, 1]."""
    epsilon_start: Real = 1.0
    """Probability of a random action in the first iteration."""
    epsilon_end: Real | None = None
    """Probability of a random action once it has fallen; 1 in games of at most 4 steps (uniform data)
    and 0.05 in others unless given."""
    epsilon_fraction: Real = 0.5
    """Share of the run over which it falls linearly, in [0, 1]."""
    target_update: Real = 0.1
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, the teacher's and the students' each."""
    mixer: Literal["vdn", "qmix"] = "qmix"
    """How the teacher's utilities make the team's value."""
    embed: int = 32
    """Width of QMIX's mixing layer."""
    hyper: int = 64
    """Hidden width of the networks that make QMIX's weights."""
    watched: int = 8
    """Greedy episodes of the teacher in each iteration, which are only watched: ``teacher_return``, and
    what else is measured of an episode."""
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
        sizes = (self.envs, self.updates, self.batch, self.capacity, self.embed, self.hyper)
        require(min(*sizes, self.watched) >= 1, "ctds: sizes must be positive.")
        check_divides(self, "envs", "capacity")
        require(
            self.capacity >= self.batch,
            f"ctds: capacity={self.capacity} must be at least batch={self.batch}.",
        )
        shares = ("gamma", "lam", "epsilon_start", "epsilon_end", "epsilon_fraction")
        check_range(self, **dict.fromkeys((*shares, "target_update"), (0, 1)))
        check_range(self, student_lr=(0, float("inf")))

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
    require(spec.discrete, "ctds: actions must be discrete; this environment's are continuous.")
    require(
        config.steps in (None, spec.horizon),
        f"ctds: steps={config.steps} must be the horizon, {spec.horizon}: whole episodes.",
    )
    rows = max(spec.obs_dim, spec.state_dim) * spec.n_agents
    kind = resolve_kind(config.network, config.memory, spec, rows)
    for_tables = 0.05 if config.mixer == "qmix" else 0.1
    lr = (for_tables if kind == "table" else 5e-4) if config.lr is None else config.lr
    return {
        "network": kind,
        "steps": spec.horizon,
        "total_steps": config.total_steps or 6_400 * spec.horizon,
        "lr": lr,
        "student_lr": lr if config.student_lr is None else config.student_lr,
        "epsilon_end": resolve_epsilon(config.epsilon_end, spec),
    }


class Teacher(NamedTuple):
    """Parameter sets of the teacher's agents, and of its mixer."""

    agents: Any
    mixer: Any


class Params(NamedTuple):
    """What learns, each with an optimiser of its own."""

    teacher: Teacher
    students: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Teacher
    optimiser: Params
    replay: Replay


class Seen(NamedTuple):
    """What is kept of an observation: rows of the agents, and the state once."""

    rows: Array
    state: Array


def team_value(config: Config, spec: Spec) -> tuple[Mixer, Callable]:
    """The mixer, and Q_tot as ``total(params, q, action, seen)``: the teacher's mixer on any utilities.

    ``total`` gives the values ``[*batch, 1]`` of joint actions ``[*batch, N]`` from all utilities
    ``[*batch, N, A]``; ``seen`` has fields ``alive`` and ``state`` (the view).
    """
    mixing = mixer(config.mixer, config.network, spec, embed=config.embed, hidden=config.hyper)

    def total(params: Params, q: Array, action: Array, seen: Any) -> Array:
        return mixing.mix(
            params.teacher.mixer, jnp.where(seen.alive, taken(q, action), 0.0), seen.state
        )

    return mixing, total


def make(config: Config, env: Environment) -> Algorithm:
    """The learner on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    agents = jnp.arange(spec.n_agents)
    share = sharing(config.sharing, spec.n_agents)
    assert config.lr is not None and config.student_lr is not None and config.epsilon_end is not None
    rates, epsilon_end = (config.lr, config.student_lr), config.epsilon_end

    view, inputs = agent_inputs(config.network, spec, share.identity)
    look, states = state_inputs(config.network, spec)
    tabular = config.network == "table"

    def agent(inputs: int) -> Net:
        return network(
            config.network,
            inputs=inputs,
            outputs=spec.n_actions,
            hidden=config.hidden,
            activation=config.activation,
            layer_norm=config.layer_norm,
            memory=config.memory,
            gain=0.01,
        )

    own, student = spec.n_agents if share.identity else 1, agent(inputs)
    teacher = agent(states * own if tabular else states + inputs)
    mixing, total = team_value(config, spec)
    optimiser = adam(config.max_grad_norm)

    def start(net: Net) -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), net.start())

    def views(observation: Observation) -> Seen:
        return Seen(jax.vmap(view)(observation.agents, agents), look(observation.state))

    def told(seen: Seen) -> Array:
        """What the teacher's networks are fed: the state, and (but for tables) the agent's own rows."""
        if tabular:
            index = seen.state[..., None] + agents * (spec.state_dim if share.identity else 0)
            return jnp.broadcast_to(index, seen.rows.shape)
        state = jnp.broadcast_to(seen.state[..., None, :], (*seen.rows.shape[:-1], states))
        return jnp.concatenate([seen.rows, state], axis=-1)

    def utilities(net: Net, sets: Any, fed: Array) -> Float[Array, "T B N A"]:
        """Q_i at every row of what was seen."""
        rows, episodes = fed.shape[:2]
        memory = jax.tree.map(lambda m: jnp.broadcast_to(m, (episodes, *m.shape)), start(net))
        first = jnp.broadcast_to(jnp.arange(rows)[:, None] == 0, (rows, episodes))
        one, many = (functools.partial(f(net.apply, share), sets) for f in (over_agents, over_rows))
        return unroll(one, start(net), memory, fed, first, many)[0]

    def loss(params: Params, target: Teacher, batch: Record) -> tuple[Array, Metrics]:
        fed = told(batch.views)
        q, delayed = (utilities(teacher, p.agents, fed) for p in (params.teacher, target))
        imitated = utilities(student, params.students, batch.views.rows)
        now, ahead = batch.rows(slice(-1)), batch.rows(slice(1, None))
        valid = batch.valid[..., None]

        following = best(q[1:], ahead.legal)
        next_value = total(params._replace(teacher=target), delayed[1:], following, ahead)
        ends = batch.terminated, batch.truncated
        returns = lambda_returns(batch.reward, next_value, *ends, config.gamma, config.lam)
        value = total(params, q[:-1], batch.action, now)
        error = masked_mean(0.5 * (returns - value) ** 2, valid)

        gap = jnp.where(now.legal, imitated[:-1] - jax.lax.stop_gradient(q[:-1]), 0.0)
        imitation = masked_mean(jnp.sum(gap**2, axis=-1), valid & now.alive)
        agrees = best(imitated[:-1], now.legal) == best(q[:-1], now.legal)
        # What students hold their actions to be worth, by the mixer of who taught them.
        theirs = total(jax.lax.stop_gradient(params), imitated[:-1], batch.action, now)
        return error + imitation, {
            "loss": error,
            "imitation": imitation,
            "agreement": masked_mean(agrees.astype(jnp.float32), valid & now.alive),
            "q": masked_mean(theirs, valid),
            "teacher_q": masked_mean(value, valid),
        }

    def init(key: Key) -> State:
        agents_key, mixer_key, student_key = keys(key, 3)
        parts = Teacher(init_sets(teacher.init, agents_key, share), mixing.init(mixer_key))
        params = Params(parts, init_sets(student.init, student_key, share))
        collect_key = jax.random.fold_in(key, 0)
        policy = teaching(parts, 1.0)
        first = record(env, policy, collect_key, config.first_episodes, views, mixing.view)
        return State(
            params=params,
            target=parts,
            optimiser=Params(*map(optimiser.init, params)),
            replay=replay.init(first, config.capacity),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key, watch_key = keys(key, 3)
        fallen = jnp.minimum(progress / jnp.maximum(config.epsilon_fraction, 1e-6), 1.0)
        epsilon = config.epsilon_start + fallen * (epsilon_end - config.epsilon_start)
        left = 1 - (1 - config.lr_end) * progress
        behaviour = teaching(state.params.teacher, epsilon)
        played = record(env, behaviour, collect_key, config.envs, views, mixing.view)
        memory = replay.add(state.replay, played)

        def update(carry: Any, i: Array) -> tuple[Any, Metrics]:
            params, target, optimisers = carry
            drawn = replay.sample(memory, jax.random.fold_in(learn_key, i), config.batch)
            batch = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), drawn)
            gradient, report = jax.grad(loss, has_aux=True)(params, target, batch)
            parts = zip(gradient, optimisers, params, rates, strict=True)
            stepped = [optimiser.update(g, s, p, rate * left) for g, s, p, rate in parts]
            params, optimisers = (Params(*part) for part in zip(*stepped, strict=True))
            closer = lambda t, p: t + config.target_update * (p - t)  # noqa: E731
            target = jax.tree.map(closer, target, params.teacher)
            return (params, target, optimisers), report

        carry = (state.params, state.target, state.optimiser)
        carry, reports = jax.lax.scan(update, carry, jnp.arange(config.updates))
        params, target, optimisers = carry
        state = State(params, target, optimisers, memory)
        report = jax.tree.map(lambda x: x.mean(0), reports)
        greedy = score(env, teaching(state.params.teacher, None), watch_key, config.watched)
        report |= {f"teacher_{name}": value for name, value in greedy.items()}
        return state, report | {"epsilon": jnp.asarray(epsilon)}

    def acting(net: Net, sets: Any, fed: Callable[[Observation], Array], epsilon: Real | None) -> Any:
        """How agents act whose networks are fed ``fed(observation)``."""
        act_all = over_agents(net.apply, share)

        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            q, memory = act_all(sets, memory, fed(observation))
            action = best(q, observation.legal)
            if epsilon is not None:
                uniform = jax.random.uniform(key, (spec.n_agents,))
                action = explore(uniform, epsilon, observation.legal, action)
            return action, memory, {"q": q}

        return act

    def teaching(parts: Teacher, epsilon: Real | None) -> Policy:
        act = acting(teacher, parts.agents, lambda o: told(views(o)), epsilon)
        return Policy(functools.partial(start, teacher), act, "centralised")

    def policy(state: State, *, greedy: bool) -> Policy:
        fed = lambda o: jax.vmap(view)(o.agents, agents)  # noqa: E731
        act = acting(student, state.params.students, fed, None if greedy else epsilon_end)
        return Policy(functools.partial(start, student), act, "decentralised")

    return Algorithm(init, step, policy)
