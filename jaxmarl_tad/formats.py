"""Datasets in other people's formats.

Those whose episodes end without a final observation lose the last step of every episode that was cut
off: what it led to is not known. A task that ended has no value beyond, so nothing is lost there.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmarl_tad.dataset import Dataset, Episode, from_episodes
from tad_envs import Observation, Spec, require

_VAULT_LENGTH = int(10e12)
"""What the time axis of a Vault is declared to be; how much of it is filled stands beside it."""
_VAULT_CHUNK = 65_536


# --- flashbax Vault -------------------------------------------------------------------------------


def read_vault(
    path: str | os.PathLike[str], *, env: str = "", label: str = "", reward: str = "mean"
) -> Dataset:
    """A Vault of OG-MARL's layout: the folder of one ``vault_uid``.

    Keys are ``observations``, ``actions``, ``rewards``, ``terminals``, ``truncations`` and, where they
    are there, ``infos.state`` and ``infos.legals``. The team's reward is the agents' ``"mean"`` or
    ``"sum"``. Episodes end where all agents' ``terminals`` or any ``truncations`` say so.
    """
    there = pathlib.Path(path).expanduser().resolve()
    require(
        (there / "metadata.json").exists() and (there / "manifest.ocdbt").exists(),
        f"{str(path)!r} is not a Vault: metadata.json or manifest.ocdbt is missing.",
    )
    known = _flat(json.loads((there / "metadata.json").read_text())["structure_shape"])
    for name in ("observations", "actions", "rewards", "terminals"):
        require(name in known, f"Vault {str(path)!r} has no {name!r}; it has {', '.join(known)}.")
    count = int(np.asarray(_vault_array(there, "vault_index").read().result())[0])
    require(count > 0, f"Vault {str(path)!r} is empty.")
    wanted = ["observations", "actions", "rewards", "terminals", "truncations", "infos.state"]
    pending = {
        name: _vault_array(there, f"{name}.")[:, :count].read()
        for name in [*wanted, "infos.legals"]
        if name in known
    }
    found = {name: np.asarray(future.result()) for name, future in pending.items()}
    episodes: list[Episode] = []
    for stream in range(found["rewards"].shape[0]):
        rows = {name: x[stream] for name, x in found.items()}
        ended = rows["terminals"].astype(bool).reshape(count, -1).all(axis=1)
        cut = rows.get("truncations", np.zeros(count)).astype(bool).reshape(count, -1).any(axis=1)
        episodes += _without_ends(
            agents=rows["observations"],
            state=rows.get("infos.state"),
            legal=rows.get("infos.legals"),
            action=rows["actions"],
            reward=_team(rows["rewards"], reward),
            terminated=ended,
            cut=cut & ~ended,
        )
    return _dataset(episodes, env=env, name=there.name, label=label)


def write_vault(data: Dataset, path: str | os.PathLike[str], **metadata: Any) -> pathlib.Path:
    """Write ``data`` as a Vault of OG-MARL's layout into the new folder ``path``.

    The layout has no final observations. An episode that the clock ended is written with one more row
    for its own, in which ``truncations`` holds; readers that bootstrap there are right to.
    """
    there = pathlib.Path(path).expanduser().resolve()
    require(not there.exists(), f"path={str(path)!r} exists; a dataset is never written over.")
    agents = data.spec.n_agents
    last = ~np.asarray(data.valid)
    begins = np.flatnonzero(np.asarray(data.first))
    ends = np.append(begins[1:], len(last)) - 1
    by_clock = np.zeros(len(last), bool)
    by_clock[ends] = ~np.asarray(data.terminated)[ends - 1]
    kept = ~last | by_clock
    each = (len(last), agents)
    rows = {
        "observations": np.asarray(data.agents),
        "actions": np.asarray(data.action),
        "rewards": np.broadcast_to(np.asarray(data.reward)[:, None], each),
        "terminals": np.broadcast_to(np.asarray(data.terminated)[:, None], each),
        "truncations": np.broadcast_to(by_clock[:, None], each),
        "infos.state": np.asarray(data.state),
        "infos.legals": np.asarray(data.legal),
    }
    rows = {name: np.ascontiguousarray(x[kept])[None] for name, x in rows.items() if x.size}
    there.mkdir(parents=True)
    shapes = _nested({name: str(x.shape) for name, x in rows.items()})
    kinds = _nested({name: x.dtype.name for name, x in rows.items()})
    about = {"version": 1.2, "structure_shape": shapes, "structure_dtype": kinds, **metadata}
    writes = []
    for name, x in rows.items():
        shape = (1, _VAULT_LENGTH, *x.shape[2:])
        chunk = (1, min(_VAULT_CHUNK, x.shape[1]), *x.shape[2:])
        store = _vault_array(there, f"{name}.", shape, x.dtype, chunk)
        writes.append(store[:, : x.shape[1]].write(x))
    for write in writes:
        write.result()
    index = _vault_array(there, "vault_index", (1,), np.dtype(np.int32), (1,))
    index.write(np.array([int(kept.sum())], np.int32)).result()
    (there / "metadata.json").write_text(json.dumps(about))
    return there


def _vault_array(
    there: pathlib.Path,
    name: str,
    shape: tuple[int, ...] | None = None,
    kind: Any = None,
    chunk: tuple[int, ...] | None = None,
) -> Any:
    """An array of a Vault, opened, or made if a shape is given."""
    import tensorstore as ts

    spec: dict[str, Any] = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": f"file://{there}/", "path": f"{name}/"},
    }
    if shape is None:
        return ts.open(spec).result()
    spec["metadata"] = {"compressor": {"id": "zstd", "level": 1}, "chunks": list(chunk or shape)}
    return ts.open(spec, create=True, shape=shape, dtype=kind).result()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split(".")
        place = found
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    return found


# --- OMIGA's releases -----------------------------------------------------------------------------


def read_omiga(
    path: str | os.PathLike[str],
    *,
    env: str = "",
    label: str = "",
    limit: int | None = None,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Dataset:
    """OMIGA's files of MuJoCo tasks: HDF5 or npz with ``s``, ``o``, ``a``, ``r``, ``d``.

    ``s`` and ``o`` are ``[T, N, …]``, and every episode carries a row for its final observation, where
    ``d`` is 1: that row is no step. The authors take the clock's end for a true one. With ``limit``,
    episodes of that many steps are truncated instead, and all shorter ones terminated.
    """
    found = _arrays(path, ["s", "o", "a", "r", "d"])
    count = len(found["o"])
    ends = np.flatnonzero(found["d"].reshape(count, -1).astype(bool).all(axis=1))
    require(len(ends) > 0, f"{str(path)!r} marks no end of an episode in 'd'.")
    state, reward = found["s"].reshape(count, -1, found["s"].shape[-1])[:, 0], found["r"]
    episodes = []
    for begin, end in zip(np.append(0, ends[:-1] + 1), ends, strict=True):
        if end == begin:
            continue
        step = slice(begin, end)
        cut = limit is not None and int(end - begin) >= limit
        episodes.append(
            _episode(
                found["o"][begin : end + 1],
                state[begin : end + 1],
                None,
                found["a"][step],
                _team(reward[step], "mean"),
                truncated=cut,
            )
        )
    name = pathlib.Path(path).stem
    return _dataset(episodes, env=env, name=name, label=label, bounds=bounds)


def read_omiga_smac(
    path: str | os.PathLike[str], *, env: str = "", label: str = "", limit: int | None = None
) -> Dataset:
    """A folder of OMIGA's StarCraft episodes, once converted: one npz for each episode.

    Its arrays are ``state [T, N, S]``, ``obs [T, N, O]``, ``action [T, N]``, ``reward [T, N]``,
    ``done [T, N]`` and ``avail [T, N, A]``, the parts of each step in the released files. Those are
    pickles that only torch reads, and reading a pickle runs what it holds: they are refused, with
    what converts one. There is no final observation, and ``limit`` is as in :func:`read_omiga`.
    """
    there = pathlib.Path(path).expanduser()
    require(there.is_dir(), f"there is no folder {str(path)!r}.")
    files = sorted(there.glob("*.npz"))
    pickles = [file.name for file in there.iterdir() if file.suffix in (".pt", ".pth", "")]
    told = (
        f"{pickles[0]!r} is a pickle, which is not read here; where torch is: e = torch.load(file); "
        if pickles
        else ""
    )
    require(
        bool(files),
        f"{str(path)!r} holds no npz file. {told}np.savez(f, **{{k: np.array([[s[i] for s in a] for a "
        "in e]).swapaxes(0, 1) for i, k in enumerate(('state', 'obs', 'action', 'reward', 'done', "
        "'avail'))})",
    )
    episodes: list[Episode] = []
    for file in files:
        found = _arrays(file, ["state", "obs", "action", "reward", "done", "avail"])
        count = len(found["obs"])
        last = np.arange(count) == count - 1
        cut = last & (limit is not None and count >= limit)
        episodes += _without_ends(
            agents=found["obs"],
            state=found["state"].reshape(count, -1, found["state"].shape[-1])[:, 0],
            legal=found["avail"],
            action=found["action"].reshape(count, found["obs"].shape[1]),
            reward=_team(found["reward"], "mean"),
            terminated=last & ~cut,
            cut=cut,
        )
    return _dataset(episodes, env=env, name=there.name, label=label)


# --- OMAR's folders -------------------------------------------------------------------------------


def read_omar(
    path: str | os.PathLike[str],
    *,
    env: str = "",
    label: str = "",
    limit: int | None = None,
    reward: str = "mean",
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Dataset:
    """A folder of OMAR's, with a file for each agent and field.

    Agent ``i`` has ``obs_i.npy``, ``acs_i.npy``, ``rews_i.npy``, ``next_obs_i.npy``, ``dones_i.npy``
    and perhaps ``states_i.npy``, all ``[T, …]``. An episode ends where ``dones`` holds for all agents,
    where what a step led to is not what the next one saw, and after ``limit`` steps; only the first,
    and only before ``limit`` steps, is an end of the task. Where observations are of several lengths,
    shorter ones are filled up with zeros.
    """
    there = pathlib.Path(path).expanduser()
    agents = 0
    while (there / f"obs_{agents}.npy").exists():
        agents += 1
    require(agents > 0, f"{str(path)!r} holds no 'obs_0.npy'.")

    def each(name: str) -> list[np.ndarray]:
        files = [there / f"{name}_{i}.npy" for i in range(agents)]
        missing = [file.name for file in files if not file.exists()]
        require(not missing, f"{str(path)!r} holds no {missing[0] if missing else ''!r}.")
        return [np.load(file, allow_pickle=False) for file in files]

    obs, following = _joined(each("obs")), _joined(each("next_obs"))
    action = _joined([a.reshape(len(a), -1) for a in each("acs")])
    rewards = np.stack([r.reshape(-1) for r in each("rews")], axis=1)
    done: np.ndarray = np.all(np.stack([d.reshape(-1) for d in each("dones")]).astype(bool), axis=0)
    states = np.load(there / "states_0.npy") if (there / "states_0.npy").exists() else None
    count = len(obs)
    breaks = np.ones(count, bool)
    breaks[:-1] = done[:-1] | ~np.all(following[:-1] == obs[1:], axis=(1, 2))
    episodes, begin = [], 0
    for t in range(count):
        long = t + 1 - begin
        if not breaks[t] and (limit is None or long < limit):
            continue
        step = slice(begin, t + 1)
        state = None if states is None else np.concatenate([states[step], states[t : t + 1]])
        terminated = bool(done[t]) and (limit is None or long < limit)
        seen = np.concatenate([obs[step], following[t : t + 1]])
        team = _team(rewards[step], reward)
        episodes.append(_episode(seen, state, None, action[step], team, truncated=not terminated))
        begin = t + 1
    return _dataset(episodes, env=env, name=there.name, label=label, bounds=bounds)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """``[T, K_i]`` of each agent as ``[T, N, K]``."""
    widest = max(part.shape[1] for part in parts)
    return np.stack([np.pad(p, ((0, 0), (0, widest - p.shape[1]))) for p in parts], axis=1)


# --- PyMARL's padded episodes ---------------------------------------------------------------------


def read_pymarl(path: str | os.PathLike[str], *, env: str = "", label: str = "") -> Dataset:
    """Padded episodes ``[E, L + 1, …]`` as PyMARL and its descendants store them, in HDF5 or npz.

    Keys are ``obs``, ``state``, ``actions``, ``avail_actions``, ``reward``, ``terminated`` and
    ``filled``. An episode that does not say ``terminated`` was cut off by the clock, and its last
    filled row is its final observation.
    """
    names = ["obs", "state", "actions", "avail_actions", "reward", "terminated", "filled"]
    found = _arrays(path, names)
    count, time, agents = found["obs"].shape[:3]
    actions = found["actions"].reshape(count, time, agents)
    legal = found["avail_actions"].astype(bool)
    ended = found["terminated"].reshape(count, time).astype(bool)
    filled = found["filled"].reshape(count, time).astype(bool)
    episodes = []
    for e in range(count):
        marks = np.flatnonzero(ended[e] & filled[e])
        steps = int(marks[0]) + 1 if len(marks) else int(filled[e].sum()) - 1
        if steps < 1:
            continue
        rows = np.minimum(np.arange(steps + 1), time - 1)
        allowed = legal[e, rows]
        if len(marks) and not allowed[-1].any():
            allowed[-1] = True  # padding: whatever is legal behind the end
        episodes.append(
            _episode(
                found["obs"][e, rows],
                found["state"][e, rows],
                allowed,
                actions[e, :steps],
                found["reward"][e, :steps].reshape(steps, -1)[:, 0],
                truncated=not len(marks),
            )
        )
    return _dataset(episodes, env=env, name=pathlib.Path(path).stem, label=label)


# --- what they share ------------------------------------------------------------------------------


def _arrays(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an npz or HDF5 file by name."""
    file = pathlib.Path(path).expanduser()
    require(file.is_file(), f"there is no file {str(path)!r}.")
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as content:
            found = {name: content[name] for name in names if name in content.files}
            there = sorted(content.files)
    else:
        try:
            import h5py  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                f"{str(path)!r} is read by h5py, which is not installed: pip install "
                "'jaxmarl_tad[hdf5]'."
            ) from error
        with h5py.File(file) as content:
            there = sorted(content)
            found = {name: np.asarray(content[name]) for name in names if name in content}
    missing = [name for name in names if name not in found]
    told = f"{str(path)!r} has no {missing[0] if missing else ''!r}; it has {', '.join(there)}."
    require(not missing, told)
    return found


def _team(reward: np.ndarray, how: str) -> np.ndarray:
    """One reward of ``[T, N, …]``."""
    require(how in ("mean", "sum"), f"reward={how!r} is not valid; expected 'mean' or 'sum'.")
    each = reward.reshape(len(reward), -1)
    return each.mean(axis=1) if how == "mean" else each.sum(axis=1)


def _without_ends(
    *,
    agents: np.ndarray,
    state: np.ndarray | None,
    legal: np.ndarray | None,
    action: np.ndarray,
    reward: np.ndarray,
    terminated: np.ndarray,
    cut: np.ndarray,
) -> list[Episode]:
    """Episodes of rows ``[T, …]`` without final observations.

    Behind the end of a task the last observation stands again, where no one looks. Where an episode was
    cut off, or the rows end within it, its last row becomes its final observation.
    """
    episodes, begin = [], 0
    ends = np.flatnonzero(terminated | cut)
    for end in dict.fromkeys([*ends.tolist(), len(reward) - 1]):
        rows = np.arange(begin, end + 1)
        step = rows if terminated[end] else rows[:-1]
        seen = np.append(rows, end) if terminated[end] else rows
        begin = end + 1
        if len(step):
            own = None if state is None else state[seen]
            allowed = None if legal is None else legal[seen]
            parts = agents[seen], own, allowed, action[step], reward[step]
            episodes.append(_episode(*parts, truncated=not bool(terminated[end])))
    return episodes


def _episode(
    agents: np.ndarray,
    state: np.ndarray | None,
    legal: np.ndarray | None,
    action: np.ndarray,
    reward: np.ndarray,
    *,
    truncated: bool,
) -> Episode:
    """One episode whose last step was its end; ``legal`` is None for continuous actions."""
    rows, count = agents.shape[:2]
    state = agents.reshape(rows, -1) if state is None else state.reshape(rows, -1)
    if legal is None:
        width = action.shape[-1] if action.ndim > 2 else int(action.max()) + 1
        legal = np.ones((rows, count, width), bool)
    end = np.arange(len(reward)) == len(reward) - 1
    parts: Any = agents, state, legal.astype(bool), np.ones((rows, count), bool)
    observation = Observation(*parts)
    return Episode(observation, action, reward, end & (not truncated), end & truncated)


def _dataset(
    episodes: Sequence[Episode],
    *,
    env: str,
    name: str,
    label: str,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Dataset:
    """The dataset of episodes whose sizes are read off them."""
    require(len(episodes) > 0, f"{name!r} holds no whole step.")
    widest = max(episode.observation.legal.shape[-1] for episode in episodes)
    seen, action = episodes[0].observation, episodes[0].action
    discrete = action.ndim == 2
    spec = Spec(
        n_agents=seen.agents.shape[1],
        obs_dim=seen.agents.shape[2],
        state_dim=seen.state.shape[1],
        horizon=max(len(episode.reward) for episode in episodes),
        n_actions=widest if discrete else 0,
        action_dim=0 if discrete else action.shape[2],
        discrete=discrete,
        terminates=any(bool(episode.terminated.any()) for episode in episodes),
        bounds=None if discrete else bounds,
    )
    filled = [_widened(episode, widest) for episode in episodes]
    return from_episodes(filled, spec, env=env, name=name, label=label)


def _widened(episode: Episode, width: int) -> Episode:
    """The episode with all actions that any has; those it does not tell of are legal."""
    legal = np.asarray(episode.observation.legal)
    more = [(0, 0), (0, 0), (0, width - legal.shape[-1])]
    wide: Any = np.pad(legal, more, constant_values=True)
    return episode._replace(observation=episode.observation._replace(legal=wide))
