"""Distillation: decentralised students that imitate a teacher who needs more than they see.

    repeat
        collect T steps in E environments with the teacher's most likely actions
        for K epochs, for each minibatch of environments:
            descend  −Σ_i log π_i(a_i | τ_i)

Source: Ye et al. 2022, eq. 6: min KL(π_teacher ‖ Π_i π_i), whose entropy term is constant. Its
minimiser is the product of the teacher's marginals given each agent's own history, which loses
nothing if the teacher is deterministic and its action can be inferred from that history. So the
teacher acts greedily unless ``teacher="sample"``. Options beyond the paper: ``labels="soft"`` fits
the teacher's distributions (given the actions it chose before) instead of its actions; ``dagger``
lets the student act in a growing share of steps while the teacher still labels them (Ross et al.
2011). Continuous actions are fitted by least squares in units of their range, which is the same with
normal distributions of variance 1; such students are deterministic.

A teacher whose agents are told z_i of the global state teaches z_i instead of actions (Chen et al.
2024, PTDE, stage 2)::

            descend  Σ_i ‖μ_i − ẑ_i(τ_i)‖²

with μ_i the mean of the teacher's z_i. What then acts is all of the teacher but who tells it: its
agents, whose parameters stay what they are, are told ẑ_i(τ_i) by a student that sees what they see.
Differs from the authors' in that ẑ_i is not drawn, and that whole episodes are played by the greedy
policy while students learn.
"""

import dataclasses
import functools
import math
import os
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarl_tad import devices, distributions
from jaxmarl_tad.config import Real, check_divides, config_of, require, resolve_steps, struct
from jaxmarl_tad.devices import Shard
from jaxmarl_tad.job import Game, Job, as_game, as_job, grouped
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.net import Kind, Remember, agent_inputs, network, resolve_kind, unroll
from jaxmarl_tad.optimise import adam, improve
from jaxmarl_tad.prng import Generator
from jaxmarl_tad.rollout import Actors, begin, keys, rollout
from jaxmarl_tad.run import AfterChunk, Trained, evaluate, execute, same_sizes
from jaxmarl_tad.sharing import Mode, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.statistics import ratio_curve
from jaxmarl_tad.sweep import Make, Member
from jaxmarl_tad.types import Algorithm, Informed, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec
from tad_envs.struct import held_once

_AGREED = 0.02
"""Distance, as a share of half the range, up to which two continuous actions are the same."""


@struct
class Config:
    """Settings of distillation."""

    total_steps: int | None = None
    """Environment steps of the teacher per member, rounded to whole iterations; 3,200, or of a teacher
    that is told of the state 6,400 times the horizon, unless given."""
    envs: int = 32
    """Environments acted in at once."""
    steps: int | None = None
    """Rollout length; one episode (up to 128 steps) unless given."""
    epochs: int = 1
    """Passes over each batch."""
    minibatches: int = 1
    """Parts of each pass; divides ``envs``."""
    lr: Real | None = None
    """Adam's learning rate; 0.1 for tables and 1e-3 for other networks, 3e-3 where these learn what
    agents are told, unless given."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient."""
    teacher: Literal["argmax", "sample"] = "argmax"
    """Whether the teacher takes its most likely action or draws one."""
    labels: Literal["hard", "soft"] = "hard"
    """Fit the teacher's actions, or its distributions given the actions chosen before."""
    dagger: bool = False
    """Whether the student acts in a share of the steps that grows from 0 to 1."""
    memory: Remember = "none"
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    layer_norm: bool = True
    """Whether a layer norm stands before and after every hidden layer: of one feature it
    leaves nothing."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        sizes = min(self.envs, self.epochs, self.minibatches)
        require(sizes >= 1, "distill: envs, epochs and minibatches must be positive.")
        check_divides(self, "minibatches", "envs")


def resolve(config: Config, spec: Spec, *, told: bool = False) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes, and on what is taught.

    ``told`` says whether the teacher's agents are told of the state.
    """
    require(
        not told or config.labels == "hard",
        "labels='soft' fits distributions of actions, and this teacher teaches what its agents are "
        "told; use labels='hard'.",
    )
    require(
        spec.discrete or config.labels == "hard",
        "labels='soft' needs probabilities of discrete actions, and this environment's actions are "
        "continuous; use labels='hard'.",
    )
    kind = resolve_kind(config.network, config.memory, spec, spec.obs_dim * spec.n_agents)
    for_others = 3e-3 if told else 1e-3
    return {
        "total_steps": config.total_steps or (6_400 * spec.horizon if told else 3_200),
        "network": kind,
        "steps": resolve_steps(config.steps, spec),
        "lr": (0.1 if kind == "table" else for_others) if config.lr is None else config.lr,
    }


def distill(
    teacher: Trained | Policy,
    /,
    env: Game | None = None,
    *,
    config: Config | None = None,
    seed: int = 0,
    evaluations: int = 5,
    episodes: int = 32,
    prng: Generator = "threefry",
    out: str | os.PathLike[str] | None = None,
    shard: Shard = "members",
    save_seconds: float = 30.0,
    progress: bool | None = None,
    after_chunk: AfterChunk | None = None,
    **fields: Any,
) -> Trained:
    """Distil every member of ``teacher`` (or one policy) into decentralised students.

    Args:
        teacher: A run, or one policy (which acts as it is, whatever ``config.teacher`` says).
        env: Where the teacher shows what it does; by default where each member was trained.
        config: Settings to start from.
        seed: Added to the seed of each teacher's member.
        evaluations: How often the students are evaluated.
        episodes: Episodes of each evaluation.
        prng: As in :func:`run`, and so are the following four.
        out: A folder for results and checkpoints. If it holds the same students, they are continued.
        shard: What is spread over the devices: members, or the environments of each.
        save_seconds: Least time between two checkpoints.
        progress: Print a progress line; by default where there is a terminal.
        after_chunk: Called on the host after each evaluation.
        **fields: Fields of :class:`Config`.

    Returns:
        The students, one per member of ``teacher``. Besides ``return``, their curves hold ``agreement``
        (share of decisions in which the student's most likely action is the teacher's, or, if actions
        are continuous, differs by at most 1 % of the range), ``kl`` (from
        the teacher's labels to the student, summed over agents, in nats), ``teacher_return`` and
        ``retention`` (student's over teacher's return; NaN where that is 0). Where students learn what
        agents are told, ``loss`` stands in the place of ``kl``: the squared error, summed over the
        numbers that one agent is told. ``retained`` is the ratio of the mean returns of all members of
        one setting, and ``retained_low`` to ``retained_high`` its 95 % bootstrap interval over members.
    """
    job = students(
        teacher,
        env,
        config=config,
        seed=seed,
        evaluations=evaluations,
        episodes=episodes,
        prng=prng,
        **fields,
    )
    student = execute(
        job,
        out=out,
        shard=shard,
        save_seconds=save_seconds,
        progress=progress,
        after_chunk=after_chunk,
    )
    return judged(student, teacher, env)


def students(
    teacher: Trained | Policy,
    /,
    env: Game | None = None,
    *,
    config: Config | None = None,
    seed: int = 0,
    evaluations: int = 5,
    episodes: int = 32,
    prng: Generator = "threefry",
    **fields: Any,
) -> Job:
    """What :func:`distill` would run, resolved and checked."""
    require(
        isinstance(teacher, (Trained, Policy)),
        f"teacher must be what run() returned or a Policy, not a {type(teacher).__name__}.",
    )
    require(env is not None or isinstance(teacher, Trained), "a lone Policy needs an env.")
    if config is not None:
        require(
            isinstance(config, Config),
            f"config must be a distill.Config, not a {type(config).__name__}.",
        )
        given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        fields = given | fields
    if fields.get("sharing") == "selective":
        own: Any = env
        if own is None:
            assert isinstance(teacher, Trained)
            own = jax.tree.map(np.asarray, devices.pick(teacher.stacked.env, 0))
        fields = grouped(fields, [as_game(own)[0]])
    settings = config_of(Config, fields)

    if isinstance(teacher, Trained):
        count, name, rows = len(teacher.members), f"distill({teacher.name})", teacher.members
        game = None if env is None else as_game(env)[0]
        if game is not None:
            same_sizes(teacher, game)
        games = teacher.stacked.env if game is None else _tile(game, count)
        spec = teacher.spec
        make_teacher: Make = teacher.plan.make
        member = teacher.stacked
        first = jax.tree.map(np.asarray, devices.pick(member, 0))
        told = make_teacher(first.config, first.source).informed is not None
        lesson = Lesson(games, member.config, member.source, teacher.state)
        seeds = np.asarray(member.seed) + seed
    else:
        assert env is not None
        game = as_game(env)[0]
        count, name, spec = 1, "distill(policy)", game.spec
        rows = [{"env": game.name, "seed": seed}]
        games = _tile(game, 1)
        make_teacher, told = _Lone(teacher), False
        lesson = Lesson(games, (), (), ())
        seeds = np.asarray([seed])
    settings = dataclasses.replace(settings, **resolve(settings, spec, told=told))
    assert settings.steps is not None

    recipe = None
    if isinstance(teacher, Trained) and teacher.folder is not None:
        recipe = {
            "stage": "distill",
            "teacher": str(teacher.folder),
            "env": game,
            "seed": seed,
            "fields": fields,
        }
    return as_job(
        name,
        _Distiller(make_teacher),
        Member(_tile(settings, count), lesson, games, seeds.astype(np.int32)),
        rows,
        settings,
        evaluations=evaluations,
        episodes=episodes,
        prng=prng,
        recipe=recipe,
    )


def judged(student: Trained, teacher: Trained | Policy, env: Game | None = None) -> Trained:
    """``student`` with the curves ``teacher_return``, ``retention`` and ``retained``."""
    if isinstance(teacher, Trained) and env is None:
        scored = teacher.final["return"]
    else:
        assert env is not None
        scored = evaluate(teacher, env, episodes=student.plan.episodes)["return"]
    best = np.broadcast_to(scored[:, None], student.curves["return"].shape)
    retention = np.where(best == 0, np.nan, student.curves["return"] / np.where(best == 0, 1, best))
    curves = student.curves | {"teacher_return": best, "retention": retention}
    # Seeds of one setting are redrawn together; each of them is given what was found for all.
    settings = [
        tuple(sorted((k, str(v)) for k, v in m.items() if k != "seed")) for m in student.members
    ]
    retained = np.zeros((3, *retention.shape))
    for setting in set(settings):
        rows = [i for i, own in enumerate(settings) if own == setting]
        retained[:, rows] = np.stack(ratio_curve(student.curves["return"][rows], best[rows]))[:, None]
    names = ("retained", "retained_low", "retained_high")
    curves |= dict(zip(names, retained.astype(np.float32), strict=True))
    return dataclasses.replace(student, curves=curves)


def _tile(tree: Any, count: int) -> Any:
    """Every number or array of ``tree`` repeated on a new axis ``M``."""
    if held_once(tree):
        return tree

    def repeat(x: Any) -> Any:
        x = np.asarray(x)
        kind = np.float32 if np.issubdtype(x.dtype, np.floating) else np.int32
        return np.broadcast_to(x.astype(kind), (count, *x.shape))

    return jax.tree.map(repeat, tree)


class Lesson(NamedTuple):
    """What a student learns from: a teacher and the environment it acts in."""

    env: Environment
    config: Any
    source: Any
    state: Any


class _Distiller(NamedTuple):
    """The factory of students of the policies that ``teacher`` makes; equal teachers, one program."""

    teacher: Make

    def __call__(self, config: Config, lesson: Lesson) -> Algorithm:
        algorithm = self.teacher(lesson.config, lesson.source)
        policy = algorithm.policy(lesson.state, greedy=config.teacher == "argmax")
        informed = algorithm.informed
        return make(config, lesson.env, policy, informed and informed(lesson.state))


class _Lone(NamedTuple):
    """The factory of one given policy."""

    policy: Policy

    def __call__(self, config: Any, source: Any) -> Algorithm:
        def constant(state: Any, *, greedy: bool) -> Policy:
            return self.policy

        return Algorithm(lambda key: (), lambda key, state, progress: (state, {}), constant)


class Params(NamedTuple):
    """The student's parameter sets."""

    actor: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    optimiser: Params
    actors: Actors


class Batch(NamedTuple):
    """What the epochs learn from; leaves ``[T, E, ...]``."""

    views: Any
    legal: Any
    alive: Any
    label: Any
    log_target: Any
    first: Any


def make(
    config: Config, env: Environment, teacher: Policy, informed: Informed | None = None
) -> Algorithm:
    """The learner of students that imitate ``teacher`` in ``env``; or that tell ``informed`` agents."""
    spec = env.spec
    agents = jnp.arange(spec.n_agents)
    share = sharing(config.sharing, spec.n_agents)
    assert config.steps is not None and config.lr is not None
    steps, lr = config.steps, config.lr

    view, inputs = agent_inputs(config.network, spec, share.identity)
    actor = network(
        config.network,
        inputs=inputs,
        outputs=informed.size if informed else spec.n_actions or spec.action_dim,
        hidden=config.hidden,
        layer_norm=config.layer_norm,
        memory=config.memory,
        gain=0.01,
    )
    low, high = spec.bounds or (-1.0, 1.0)
    middle, half = (low + high) / 2, (high - low) / 2  # of continuous actions
    act_all, act_rows = over_agents(actor.apply, share), over_rows(actor.apply, share)

    def start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), actor.start())

    def begun() -> Memory:
        """What a student's policy remembers at first: its own, and that of whom it tells."""
        return (start(), informed.start()) if informed else start()

    def views(observation: Observation) -> Any:
        return jax.vmap(view)(observation.agents, agents)

    optimiser = adam(config.max_grad_norm)

    def loss(params: Params, batch: Batch, memory: Memory) -> tuple[Any, Metrics]:
        one, many = (functools.partial(f, params.actor) for f in (act_all, act_rows))
        outputs, _ = unroll(one, start(), memory, batch.views, batch.first, many)
        if informed:
            error = jnp.sum((outputs - batch.log_target) ** 2, axis=-1)
            report = {"loss": masked_mean(error, batch.alive)}
            return report["loss"], report | {"agreement": masked_mean(batch.label, batch.alive)}
        if spec.discrete:
            log_probs = distributions.log_probabilities(outputs, batch.legal)
            chosen = distributions.log_probability(log_probs, batch.label)  # log π_i(a_i | τ_i)
            kl = distributions.kl(batch.log_target, log_probs) if soft else -chosen
            agreement = distributions.mode(log_probs) == batch.label
        else:
            wanted = jnp.clip((batch.label - middle) / half, -1.0, 1.0)
            error = jnp.where(batch.legal, outputs - wanted, 0.0)
            kl = 0.5 * jnp.sum(error**2, axis=-1)
            chosen = -kl - 0.5 * math.log(2 * math.pi) * jnp.sum(batch.legal, axis=-1)
            agreement = jnp.all(jnp.abs(error) <= _AGREED, axis=-1)
        report = {
            "cross_entropy": masked_mean(-chosen, batch.alive) * spec.n_agents,
            "kl": masked_mean(kl, batch.alive) * spec.n_agents,
            "agreement": masked_mean(agreement.astype(jnp.float32), batch.alive),
        }
        return report["kl"], report

    soft = config.labels == "soft"

    def both(params: Params, student_acts: Real) -> Policy:
        """The teacher labels; the student acts instead with probability ``student_acts``."""
        student = policy_of(params, greedy=informed is not None)

        def act(key: Key, memory: Any, observation: Observation) -> tuple[Any, Any, Any]:
            teacher_key, student_key, who_key = jax.random.split(key, 3)
            label, teachers, extras = teacher.act(teacher_key, memory[0], observation)
            own, students, _ = student.act(student_key, memory[1], observation)
            told = {"label": label}
            if informed:
                told = {"label": (own == label).astype(jnp.float32), "log_target": extras["z"]}
            if soft:
                require(
                    "log_probs" in extras,
                    "labels='soft' needs a teacher with action probabilities; use labels='hard'.",
                )
                told["log_target"] = extras["log_probs"]
            action = label
            if config.dagger:
                action = jnp.where(jax.random.uniform(who_key) < student_acts, own, label)
            return action, (teachers, students), told

        return Policy(lambda: (teacher.start(), begun()), act, "centralised")

    def init(key: Key) -> State:
        params_key, begin_key = key, jax.random.fold_in(key, 0)
        params = Params(init_sets(actor.init, params_key, share))
        actors = begin(env, both(params, 0.0), begin_key, config.envs)
        return State(params, Params(optimiser.init(params.actor)), actors)

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        memory = state.actors.memory[1]
        memory = memory[0] if informed else memory
        actors, seen = rollout(env, both(state.params, progress), collect_key, state.actors, steps)
        batch = Batch(
            views=jax.vmap(jax.vmap(views))(seen.observation),
            legal=seen.observation.legal,
            alive=seen.observation.alive,
            label=seen.extras["label"],
            log_target=seen.extras.get("log_target"),
            first=seen.first,
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
        return State(params, optimisers, actors), report

    def telling(params: Params, informed: Informed) -> Policy:
        """``informed`` agents, each told by a student that sees what it sees."""

        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            own, agents_memory = memory
            z, own = act_all(params.actor, own, views(observation))
            action, agents_memory, extras = informed.act(key, agents_memory, observation, z)
            return action, (own, agents_memory), extras | {"z": z}

        return Policy(begun, act, "decentralised")

    def policy_of(params: Params, *, greedy: bool) -> Policy:
        if informed:
            return telling(params, informed)

        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            outputs, memory = act_all(params.actor, memory, views(observation))
            if not spec.discrete:
                return middle + half * jnp.clip(outputs, -1.0, 1.0), memory, {"mean": outputs}
            log_probs = distributions.log_probabilities(outputs, observation.legal)
            uniform = jax.random.uniform(key, (spec.n_agents,))
            action, extras = distributions.decide(uniform, log_probs, greedy)
            return action, memory, extras

        return Policy(start=start, act=act, execution="decentralised")

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params, greedy=greedy)

    return Algorithm(init, step, policy, fixed=informed)
