"""Recorded experience: whole episodes on one flat time axis, and how batches are drawn from it.

An episode of ``L`` steps takes ``L + 1`` rows: each step's observation with the action taken in it,
and at last the observation that the last action led to, so that a truncated episode can bootstrap
from its true end. What an action led to therefore always lies in the next row, and the last row of an
episode is no step (``valid`` is False there).

A dataset is an argument of the program that learns from it, held once for all members.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmarl_tad.types import Key, Transition
from tad_envs import Observation, Spec, require, struct
from tad_envs.struct import AnyArray

SIZES = ("n_agents", "n_actions", "action_dim", "discrete", "obs_dim", "state_dim")
"""What of an environment's spec its data must agree with."""

LEAVES = {
    "agents": "what each agent sees [row, agent, feature]",
    "state": "the global state [row, feature]",
    "legal": "what each agent may do [row, agent, action or dimension]",
    "alive": "whether each agent acts and counts [row, agent]",
    "action": "what each agent did [row, agent] or [row, agent, dimension]",
    "reward": "the team's reward [row]",
    "terminated": "whether the task ended: there is no value beyond [row]",
    "truncated": "whether the clock ran out: the next row is the true final observation [row]",
    "first": "whether the row begins an episode [row]",
    "valid": "whether the row is a step; the last row of an episode is an observation only [row]",
    "log_prob": "log-probability of each agent's action under the policy that acted [row, agent]",
}
"""What has a value in each row, and what it means."""


@struct
class Dataset:
    """``R`` rows of episodes of one environment; see the module and :func:`from_episodes`."""

    agents: Float[AnyArray, "R N O"]
    state: Float[AnyArray, "R S"]
    legal: Bool[AnyArray, "R N A"]
    alive: Bool[AnyArray, "R N"]
    action: Shaped[AnyArray, "R N *D"]
    """Anything in the last row of an episode."""
    reward: Float[AnyArray, "R"]
    terminated: Bool[AnyArray, "R"]
    truncated: Bool[AnyArray, "R"]
    first: Bool[AnyArray, "R"]
    """Whether the row begins an episode."""
    valid: Bool[AnyArray, "R"]
    """Whether the row is a step, i.e. not the last of its episode."""
    rows: Int[AnyArray, "T"]
    """The rows that are steps."""
    log_prob: Float[AnyArray, "R N"] | None = None
    """Of each agent's action under the policy that acted, where it is known; given the actions before
    it, where agents choose in turn."""
    spec: Spec
    """Of the environment."""
    env: str = ""
    """The environment's name, where :func:`tad_envs.make` makes it by that."""
    name: str = ""
    label: str = ""
    """What quality it is of: random, medium, expert, …"""
    path: str = ""
    """The folder that it was read from."""
    limit: int = 0
    """Bytes of it that a device holds at a time; 0: all. See :class:`Windows`."""
    scale: tuple[float, float] | None = None
    """Returns of random play and of a reference, which :func:`normalised` calls 0 and 100."""

    held_once = True
    host_fields = ("label", "path", "limit", "scale")

    @property
    def steps(self) -> int:
        """Steps in all episodes together."""
        return self.rows.shape[0]

    @property
    def episodes(self) -> int:
        """Whole episodes; on the host only."""
        return int(np.sum(np.asarray(self.first)))


def leaves(data: Dataset) -> dict[str, np.ndarray]:
    """Everything that has a value in each row, by name, on the host."""
    found = {name: getattr(data, name) for name in LEAVES}
    return {name: np.asarray(value) for name, value in found.items() if value is not None}


def from_leaves(found: dict[str, np.ndarray], spec: Spec, **about: Any) -> Dataset:
    """The inverse of :func:`leaves`; ``about`` is ``env``, ``name`` and what else is of the host."""
    rows = np.flatnonzero(found["valid"]).astype(np.int32)
    return Dataset(rows=rows, spec=spec, **found, **about)  # type: ignore[arg-type]


class Windows:
    """Parts of a dataset that is too large for a device, one after the other and all of one shape.

    A window is so many rows that two of them, the one learned from and the one that is fetched, stay
    within ``data.limit``. It is made of ``BLOCKS`` stretches of rows from anywhere: all stretches are
    shuffled, and the windows of an epoch take them in that order. What is lost to learning are the last
    row of each stretch, whose next row is elsewhere, less than a stretch at the end of the data, and
    from windows with more steps than others so many steps at random.
    """

    BLOCKS = 8

    def __init__(self, data: Dataset) -> None:
        self.data, count = data, len(data.reward)
        each = sum(value.nbytes for value in leaves(data).values()) / count
        self.block = int(data.limit / (2 * each)) // self.BLOCKS
        self.blocks = 0 if self.block < 2 else count // self.block
        require(
            self.blocks >= self.BLOCKS and self.block >= 2,
            f"limit={data.limit} is too small or too large for {data.name!r}, of {count} rows with "
            f"{each:.0f} bytes: two windows of it must fit.",
        )
        steps = np.asarray(data.valid)[: self.blocks * self.block].reshape(self.blocks, self.block)
        known = np.sort(steps[:, :-1].sum(axis=1))
        self.steps = int(known[: self.BLOCKS].sum())
        """Steps of each window: as many as the poorest could have."""
        require(self.steps > 0, f"limit={data.limit} is too small for {data.name!r}: no step fits.")

    def __call__(self, number: int) -> Dataset:
        """The window of this number, in the host's memory."""
        epoch, place = divmod(number, self.blocks // self.BLOCKS)
        source = np.random.default_rng([epoch, self.blocks])
        chosen = source.permutation(self.blocks)[place * self.BLOCKS :][: self.BLOCKS]
        parts = [slice(int(b) * self.block, (int(b) + 1) * self.block) for b in chosen]
        data = self.data
        found = {
            name: np.concatenate([value[part] for part in parts])
            for name, value in leaves(data).items()
        }
        found["valid"][self.block - 1 :: self.block] = False
        known = np.flatnonzero(found["valid"])
        kept = np.random.default_rng([number, self.blocks]).permutation(len(known))[: self.steps]
        rows = known[np.sort(kept)].astype(np.int32)
        about: Any = {"env": data.env, "name": data.name, "label": data.label, "path": data.path}
        return Dataset(rows=rows, spec=data.spec, limit=data.limit, **found, **about)


def returns(data: Dataset) -> np.ndarray:
    """The undiscounted return of each episode, on the host."""
    reward = np.where(np.asarray(data.valid), np.asarray(data.reward), 0.0)
    return np.add.reduceat(reward.astype(np.float64), np.flatnonzero(np.asarray(data.first)))


def lengths(data: Dataset) -> np.ndarray:
    """The number of steps of each episode, on the host."""
    begins = np.flatnonzero(np.asarray(data.first))
    return np.diff(np.append(begins, len(data.first))) - 1


def normalised(data: Dataset, values: Any) -> np.ndarray:
    """Returns as scores: 0 is random play, and 100 the reference of ``data.scale``."""
    require(data.scale is not None, f"{data.name!r} has no scale; give record(scale=(random, best)).")
    random, best = data.scale or (0.0, 1.0)
    return 100 * (np.asarray(values, np.float64) - random) / (best - random)


def as_scale(scale: Any) -> tuple[float, float] | None:
    """A pair of different finite numbers, or None."""
    if scale is None:
        return None
    low, high = (float(value) for value in scale)
    require(
        bool(np.isfinite([low, high]).all()) and low != high,
        f"scale=({low:g}, {high:g}) must be two different numbers.",
    )
    return low, high


class Episode(NamedTuple):
    """One whole episode of ``L`` steps, on the host."""

    observation: Observation
    """``[L + 1, ...]``: also what the last action led to."""
    action: np.ndarray
    """``[L, N]`` or ``[L, N, D]``."""
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    log_prob: np.ndarray | None = None
    """``[L, N]``; all episodes of a dataset have it, or none."""


def from_episodes(
    episodes: Sequence[Episode],
    spec: Spec,
    *,
    env: str = "",
    name: str = "data",
    label: str = "",
    path: str = "",
) -> Dataset:
    """A dataset of whole episodes of an environment with ``spec``."""
    require(len(episodes) > 0, "a dataset needs at least one episode.")
    lengths = np.array([len(episode.reward) for episode in episodes])
    require(bool(np.all(lengths > 0)), "every episode needs at least one step.")

    def joined(parts: Sequence[AnyArray]) -> np.ndarray:
        return np.concatenate([np.asarray(part) for part in parts])

    def padded(parts: Sequence[np.ndarray]) -> np.ndarray:
        return joined([np.concatenate([part, np.zeros_like(part[:1])]) for part in parts])

    seen = [episode.observation for episode in episodes]
    ends = np.cumsum(lengths + 1)
    first, valid = np.zeros(ends[-1], bool), np.ones(ends[-1], bool)
    first[ends - lengths - 1], valid[ends - 1] = True, False
    kind = np.int32 if spec.discrete else np.float32
    told = [e.log_prob for e in episodes if e.log_prob is not None]
    known = len(told) == len(episodes)
    return Dataset(
        agents=joined([o.agents for o in seen]).astype(np.float32),
        state=joined([o.state for o in seen]).astype(np.float32),
        legal=joined([o.legal for o in seen]).astype(bool),
        alive=joined([o.alive for o in seen]).astype(bool),
        action=padded([e.action for e in episodes]).astype(kind),
        reward=padded([e.reward for e in episodes]).astype(np.float32),
        terminated=padded([e.terminated for e in episodes]).astype(bool),
        truncated=padded([e.truncated for e in episodes]).astype(bool),
        first=first,
        valid=valid,
        rows=np.flatnonzero(valid).astype(np.int32),
        log_prob=padded(told).astype(np.float32) if known else None,
        spec=spec,
        env=env,
        name=name,
        label=label,
        path=path,
    )


def check_sizes(data: Dataset, spec: Spec, owner: str) -> None:
    """Refuse an environment of other sizes than those that ``data`` was recorded in."""
    told = [
        f"{name}={getattr(spec, name)} and not {getattr(data.spec, name)}"
        for name in SIZES
        if getattr(spec, name) != getattr(data.spec, name)
    ]
    require(not told, f"{owner!r} is not what {data.name!r} was recorded in; it has {', '.join(told)}.")


def at(data: Dataset, rows: Int[Array, "*B"]) -> Transition:
    """The steps in these rows, leaves ``[*B, ...]``."""

    def seen(rows: Int[Array, "*B"]) -> Observation:
        kept = (data.agents, data.state, data.legal, data.alive)
        return Observation(*(jnp.asarray(x)[rows] for x in kept))

    last = data.reward.shape[0] - 1
    return Transition(
        observation=seen(rows),
        action=jnp.asarray(data.action)[rows],
        reward=jnp.asarray(data.reward)[rows],
        terminated=jnp.asarray(data.terminated)[rows],
        truncated=jnp.asarray(data.truncated)[rows],
        first=jnp.asarray(data.first)[rows],
        next=seen(jnp.minimum(rows + 1, last)),
        extras={} if data.log_prob is None else {"log_prob": jnp.asarray(data.log_prob)[rows]},
    )


def draw(data: Dataset, key: Key, count: int) -> Transition:
    """``count`` steps, uniformly and with replacement: leaves ``[B, ...]``."""
    return at(data, jnp.asarray(data.rows)[jax.random.randint(key, (count,), 0, data.steps)])


def window_rows(
    data: Dataset, key: Key, count: int, length: int
) -> tuple[Int[Array, "T B"], Bool[Array, "T B"]]:
    """The rows of :func:`draw_windows`, and which of them lie within the data; 0 where they do not."""
    begin = jnp.asarray(data.rows)[jax.random.randint(key, (count,), 0, data.steps)]
    rows = begin + jnp.arange(length)[:, None]
    inside = rows < data.reward.shape[0]
    return jnp.where(inside, rows, 0), inside


def draw_windows(
    data: Dataset, key: Key, count: int, length: int
) -> tuple[Transition, Bool[Array, "T B"]]:
    """``count`` stretches of ``length`` rows, ``[T, B, ...]``, and which of their rows are steps.

    A stretch begins with a step drawn uniformly, where memory begins anew, and goes on into the
    episodes that follow; ``first`` says where memory is to be reset.
    """
    return window_at(data, *window_rows(data, key, count, length))


def window_at(
    data: Dataset, rows: Int[Array, "T B"], inside: Bool[Array, "T B"]
) -> tuple[Transition, Bool[Array, "T B"]]:
    """The stretches in these rows, as :func:`draw_windows` tells them."""
    drawn = at(data, rows)
    first = drawn.first.at[0].set(True)
    return drawn._replace(first=first), inside & jnp.asarray(data.valid)[rows]
