"""Recording: a policy's episodes as a dataset, in memory or in a folder.

Whole episodes of many environments at once make a *block*, by one compiled program. The key of block i
is ``fold_in(key(seed), i)``, so a recording that was killed goes on where its last whole shard ends and
leaves the same bits.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarl_tad import devices, distributions, programs
from jaxmarl_tad.config import require
from jaxmarl_tad.dataset import Dataset, as_scale, from_leaves
from jaxmarl_tad.job import Game, as_game
from jaxmarl_tad.rollout import episodes as whole_episodes
from jaxmarl_tad.run import Trained, same_sizes
from jaxmarl_tad.storage import MANIFEST, Writer, load_data, manifest
from jaxmarl_tad.sweep import Make
from jaxmarl_tad.types import Key, Memory, Policy
from tad_envs import Environment, Observation, Spec, make, random_action
from tad_envs.struct import to_plain

_BLOCK = 65_536
"""About so many rows are recorded by one call of the program."""
_MOST_ENVS = 1_024

Behaviour = Policy | Trained | str
"""Who acts: ``"random"`` is the only one known by name."""


def record(
    policy: Behaviour | Sequence[Behaviour],
    env: Game | None = None,
    *,
    episodes: int = 1_000,
    path: str | os.PathLike[str] | None = None,
    explore: str | float = "greedy",
    member: int | str = "best",
    seed: int = 0,
    label: str = "",
    scale: tuple[float, float] | None = None,
) -> Dataset:
    """Act on ``episodes`` whole episodes of ``env`` and keep all that happened.

    Args:
        policy: What :func:`jaxmarl_tad.run` returned, a policy, or ``"random"`` for uniform legal
            actions. Several of them act for equal shares of the episodes, one after the other:
            ``[jt.load(path, checkpoint=i) for i in jt.checkpoints(path)]`` is what a learner went
            through.
        env: Where to act; where it was trained, unless given.
        episodes: How many episodes in all.
        path: A folder to write to. If an unfinished recording of the same lies there, it goes on; a
            finished one of the same is only read; anything else there is refused.
        explore: ``"greedy"``; ``"sample"``, as it explored while it learned; or a number added to
            greedy actions: the chance of a random legal action for each agent, or the deviation of
            normal noise as a share of half the actions' range. A lone policy acts as it is.
        member: Which member of a run: a number, the one of the highest final return, or all of them
            for equal shares.
        seed: Of all that is drawn.
        label: What quality the data is of, kept with it.
        scale: Mean returns of random play and of a reference, such as the best policy that is known,
            kept with it: what :func:`jaxmarl_tad.dataset.normalised` calls 0 and 100.

    Returns:
        The dataset. ``log_prob`` is there if it is known for every policy: ``"random"``, ``"sample"``
        where the policy tells it (of clipped normal actions the density before clipping), and random
        actions in place of a decentralised policy's greedy ones.
    """
    whole = isinstance(episodes, int) and not isinstance(episodes, bool)
    require(whole and episodes >= 1, f"episodes={episodes!r} must be a positive integer.")
    given: list[Any] = [policy] if isinstance(policy, (str, Policy, Trained)) else list(policy)
    require(bool(given), "policy=[] holds no policy; give at least one.")
    actors = [actor for each in given for actor in _actors(each, member)]
    game = _game(actors, env)
    actors = [a._replace(make=_random(game.spec)) if a.make is None else a for a in actors]
    kind, amount = _exploration(explore, game.spec)
    require(episodes >= len(actors), f"episodes={episodes} must be at least 1 for each policy.")
    there = None if path is None else pathlib.Path(path).expanduser().resolve()
    if there is not None and (there / MANIFEST).exists():
        manifest(there)  # a damaged one is told before anything is recorded
    shares = [episodes // len(actors) + (i < episodes % len(actors)) for i in range(len(actors))]
    envs = min(max(shares), _MOST_ENVS, max(1, _BLOCK // (game.spec.horizon + 1)))
    blocks = [
        _Block(actor, min(envs, share - done))
        for actor, share in zip(actors, shares, strict=True)
        for done in range(0, share, envs)
    ]

    def begun(number: int) -> Any:
        actor = blocks[number].actor
        static = (actor.make, actor.fixed, explore != "sample", kind, envs)
        arguments = (actor.config, actor.source, actor.state, game)
        numbers = (np.float32(amount), np.asarray(seed, np.int32), np.asarray(number, np.int32))
        program, _ = programs.compiled(_block, static, *arguments, *numbers)
        return program.call(*arguments, *numbers)

    firsts = {block.actor.make: number for number, block in reversed(list(enumerate(blocks)))}
    begins = {number: begun(number) for number in firsts.values()}
    known = all("log_prob" in happened for happened in begins.values())

    def rows(number: int, happened: Any) -> dict[str, np.ndarray]:
        """The block's rows, episode after episode."""
        found = jax.device_get(happened)
        kept = np.arange(found["valid"].shape[1]) <= found["valid"].sum(axis=1)[:, None]
        kept &= np.arange(envs)[:, None] < blocks[number].episodes
        if not known:
            found.pop("log_prob", None)
        return {name: x[kept] for name, x in found.items()}

    first = rows(0, begins[0])
    name = (label or actors[0].about["policy"]) if there is None else there.name
    about = {
        "env": _made_by_name(game),
        "name": name,
        "label": label,
        "spec": game.spec._asdict(),
        "scale": as_scale(scale),
        "recipe": {
            "policies": [actor.about for actor in actors],
            "explore": explore,
            "episodes": episodes,
            "envs": envs,
            "seed": seed,
            "first_episodes": _digest(first),
        },
    }
    spec = {"spec": game.spec, **{key: about[key] for key in ("env", "name", "label", "scale")}}
    if there is None:
        parts = [first, *(rows(i, x) for i, x in _ahead(begun, 1, len(blocks)))]
        return from_leaves({n: np.concatenate([p[n] for p in parts]) for n in first}, **spec)
    if (there / MANIFEST).exists():
        same = manifest(there)["recipe"] == about["recipe"]
        require(same, f"path={str(path)!r} holds another dataset, which is never written over.")
        return load_data(there)
    empty = {leaf: x[:0] for leaf, x in first.items()}
    writer = Writer(there, empty, episodes * (game.spec.horizon + 1), about)
    if writer.block == 0:
        writer.add(0, first)
    for number, happened in _ahead(begun, max(1, writer.block), len(blocks)):
        writer.add(number, rows(number, happened))
    writer.finish()
    return load_data(there, verify=False)


class _Actor(NamedTuple):
    """One policy: as it is, or how it is made of what a run learned."""

    make: Make | None
    config: Any
    source: Any
    state: Any
    fixed: bool
    """Whether ``make`` is the policy itself."""
    about: dict[str, Any]
    home: Environment | None
    trained: Trained | None


class _Block(NamedTuple):
    """Who acts, and how many of the block's episodes are kept."""

    actor: _Actor
    episodes: int


def _actors(policy: Any, member: Any) -> list[_Actor]:
    """The policies that one entry of the list stands for."""
    if isinstance(policy, Policy):
        return [_Actor(policy, (), (), (), True, {"policy": "given"}, None, None)]  # type: ignore[arg-type]
    if isinstance(policy, str):
        require(policy == "random", f"policy={policy!r} is not known by name; did you mean 'random'?")
        return [_Actor(None, (), (), (), True, {"policy": "random"}, None, None)]
    require(
        isinstance(policy, Trained),
        f"policy must be what run() returned, a Policy or 'random', not a {type(policy).__name__}.",
    )
    final, count = policy.final["return"], len(policy.members)
    valid = member in ("best", "all") or (isinstance(member, int) and 0 <= member < count)
    require(valid, f"member={member!r} does not exist; expected best, all or 0..{count - 1}.")
    best = int(np.argmax(final))
    chosen = range(count) if member == "all" else [best if member == "best" else int(member)]
    found = []
    for number in chosen:
        own = devices.pick(policy.stacked, number)
        name = policy.members[number]["env"]
        home = dataclasses.replace(jax.tree.map(np.asarray, own.env), name=name)
        about = {
            "policy": policy.name,
            "run": None if policy.folder is None else str(policy.folder),
            "member": policy.members[number],
            "steps": int(policy.steps[-1]),
            "return": float(final[number]),
        }
        state = devices.pick(policy.state, number)
        arguments = policy.plan.make, own.config, own.source, state
        found.append(_Actor(*arguments, False, about, home, policy))
    return found


def _game(actors: Sequence[_Actor], env: Game | None) -> Environment:
    """Where to act; refuses what does not fit the policies."""
    homes = [actor.home for actor in actors if actor.home is not None]
    names = {home.name for home in homes}
    require(
        env is not None or len(names) == 1,
        f"policies were trained in {', '.join(sorted(names)) or 'no environment'}; give one as env.",
    )
    game = homes[0] if env is None else as_game(env)[0]
    for actor in actors:
        if actor.trained is not None:
            same_sizes(actor.trained, game)
    return game


def _made_by_name(game: Environment) -> str:
    """The environment's name if that is enough to make it again, else nothing."""
    try:
        return game.name if _plain(make(game.name)) == _plain(game) else ""
    except ValueError:
        return ""


def _plain(game: Environment) -> Any:
    """What the environment is made of, numbers as 32-bit floats as a run keeps them."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            if "array" in value:
                return np.asarray(value["array"], np.float32).tolist()
            return {key: rounded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return float(np.float32(value)) if isinstance(value, (int, float)) else value

    return rounded(to_plain(game))


def _exploration(explore: Any, spec: Spec) -> tuple[str, float]:
    """The kind of noise and its amount."""
    if explore in ("greedy", "sample"):
        return "none", 0.0
    number = isinstance(explore, (int, float)) and not isinstance(explore, bool)
    require(number, f"explore={explore!r} is not valid; expected greedy, sample or a number.")
    require(
        0 <= explore <= 1 or (explore > 1 and not spec.discrete),
        f"explore={explore} must be a share in [0, 1].",
    )
    return ("random" if spec.discrete else "normal"), float(explore)


def _ahead(begun: Callable[[int], Any], first: int, end: int) -> Iterator[tuple[int, Any]]:
    """Numbers and results of the blocks, the next one computed while the last is looked at."""
    coming = begun(first) if first < end else None
    for number in range(first, end):
        now, coming = coming, begun(number + 1) if number + 1 < end else None
        yield number, now


def _digest(rows: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(rows):
        digest.update(name.encode() + np.ascontiguousarray(rows[name]).tobytes())
    return digest.hexdigest()[:16]


# --- the program ----------------------------------------------------------------------------------


def _block(
    static: Any, config: Any, source: Any, state: Any, env: Any, amount: Any, seed: Any, number: Any
) -> dict[str, jax.Array]:
    """One episode in each environment: leaves ``[E, T + 1, ...]``, zero where there is no step."""
    made, fixed, greedy, kind, envs = static
    policy = made if fixed else made(config, source).policy(state, greedy=greedy)
    noisy = _noisy(policy, env.spec, kind, amount, sure=greedy and not fixed)
    tells = (fixed and made is _random(env.spec)) or noisy.tells or (not greedy and not fixed)
    key = jax.random.fold_in(jax.random.key(seed), number)
    seen = whole_episodes(env, noisy.policy, key, envs, env.spec.horizon)
    step = seen.transition

    def along(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x, 0, 1)

    def with_end(x: jax.Array, end: jax.Array) -> jax.Array:
        return along(jnp.concatenate([x, end[-1:]]))

    def steps(x: jax.Array) -> jax.Array:
        counted = seen.valid.reshape(seen.valid.shape + (1,) * (x.ndim - 2))
        x = jnp.where(counted, x, jnp.zeros((), x.dtype))
        return along(jnp.concatenate([x, jnp.zeros_like(x[:1])]))

    pairs = zip(Observation._fields, step.observation, step.next, strict=True)
    rows = {name: with_end(x, end) for name, x, end in pairs}
    rows |= {"action": steps(step.action), "reward": steps(step.reward.astype(jnp.float32))}
    rows |= {"terminated": steps(step.terminated), "truncated": steps(step.truncated)}
    valid = steps(seen.valid)
    rows |= {"valid": valid, "first": jnp.zeros_like(valid).at[:, 0].set(True)}
    log_prob = step.extras.get("log_prob") if isinstance(step.extras, dict) else None
    if tells and log_prob is not None and log_prob.shape == step.observation.alive.shape:
        rows["log_prob"] = steps(log_prob.astype(jnp.float32))
    return rows


class _Noisy(NamedTuple):
    """A policy with noise on its actions, and whether it tells their log-probabilities."""

    policy: Policy
    tells: bool


def _noisy(policy: Policy, spec: Spec, kind: str, amount: Any, *, sure: bool) -> _Noisy:
    """``sure``: given what its agent has seen, the policy's action is certain."""
    if kind == "none":
        return _Noisy(policy, False)

    def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
        own, other = jax.random.split(key)
        action, memory, _ = policy.act(own, memory, observation)
        if kind == "normal":
            low, high = spec.bounds or (-1.0, 1.0)
            noise = 0.5 * (high - low) * amount * jax.random.normal(other, action.shape)
            return jnp.clip(action + noise, low, high), memory, {}
        legal = observation.legal
        uniform = jax.random.uniform(other, action.shape)
        taken = distributions.explore(uniform, amount, legal, action).astype(action.dtype)
        chance = amount / jnp.maximum(jnp.sum(legal, axis=-1), 1)
        chance = chance + jnp.where(taken == action, 1.0 - amount, 0.0)
        return taken, memory, {"log_prob": jnp.log(chance)}

    tells = kind == "random" and sure and policy.execution == "decentralised"
    return _Noisy(policy._replace(act=act), tells)


_RANDOM: dict[Spec, Policy] = {}


def _random(spec: Spec) -> Any:
    """Uniform legal actions; the same object for the same sizes, since it names a program."""
    if spec not in _RANDOM:
        _RANDOM[spec] = _uniform(spec)
    return _RANDOM[spec]


def _uniform(spec: Spec) -> Policy:
    low, high = spec.bounds or (-1.0, 1.0)

    def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
        legal = jnp.sum(observation.legal, axis=-1)
        size = -jnp.log(jnp.maximum(legal, 1.0)) if spec.discrete else -np.log(high - low) * legal
        return random_action(spec, key, observation), memory, {"log_prob": size}

    return Policy(start=lambda: (), act=act, execution="decentralised")
