"""Datasets: written and read, recorded, mixed, read from other formats, and asked for by command."""

import dataclasses
import functools
import importlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmarl_tad as jt
from jaxmarl_tad import dataset, formats, quality, storage
from jaxmarl_tad.cli import main
from jaxmarl_tad.dataset import Episode, Windows, draw_windows, from_episodes, leaves, lengths, returns
from tad_envs import Observation, Spec

ROOT = Path(__file__).resolve().parent.parent
recorder = importlib.import_module("jaxmarl_tad.record")


@functools.cache
def random_data(episodes=300):
    return jt.record("random", "m_step", episodes=episodes, seed=1, label="random")


def files(there):
    return {p.relative_to(there): p.read_bytes() for p in sorted(there.rglob("*")) if p.is_file()}


def same(one, other):
    a, b = leaves(one), leaves(other)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def table_data(actions, rewards=None, states=None, name="table"):
    """One-step episodes of two agents with two actions each."""
    actions = np.asarray(actions)
    states = np.zeros(len(actions)) if states is None else np.asarray(states)
    rewards = np.zeros(len(actions)) if rewards is None else np.asarray(rewards)
    spec = Spec(n_agents=2, obs_dim=1, state_dim=1, horizon=1, n_actions=2)
    episodes = [
        Episode(
            Observation(
                np.full((2, 2, 1), s),
                np.full((2, 1), s),
                np.ones((2, 2, 2), bool),
                np.ones((2, 2), bool),
            ),
            a[None],
            np.array([r]),
            np.array([True]),
            np.array([False]),
        )
        for a, r, s in zip(actions, rewards, states, strict=True)
    ]
    return from_episodes(episodes, spec, name=name)


# --- folders --------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    data = random_data()
    jt.save_data(data, tmp_path / "a", recipe={"from": "a test"})
    read = jt.load_data(tmp_path / "a")
    same(data, read)
    assert (read.env, read.label, read.name) == ("m_step", "random", data.name)
    assert (read.spec, read.path) == (data.spec, str(tmp_path / "a"))
    about = storage.manifest(tmp_path / "a")
    assert about["returns"]["mean"] == pytest.approx(returns(data).mean())
    assert about["returns"]["max"] == returns(data).max()
    assert (about["episodes"], about["steps"]) == (300, data.steps)
    assert about["recipe"] == {"from": "a test"}
    assert not (tmp_path / "a" / storage.RECORDING).exists()


def test_a_dataset_is_never_written_over(tmp_path):
    jt.save_data(random_data(), tmp_path / "a")
    before = files(tmp_path / "a")
    with pytest.raises(ValueError, match="never written over"):
        jt.save_data(random_data(), tmp_path / "a")
    with pytest.raises(ValueError, match="another dataset, which is never written over"):
        jt.record("random", "m_step", episodes=20, path=tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        jt.record("random", "m_step", episodes=20, path=tmp_path / "b")
    assert files(tmp_path / "a") == before


def test_shards_are_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SHARD", 64)
    data = random_data()
    jt.save_data(data, tmp_path / "a")
    assert len(list((tmp_path / "a" / "agents" / "c").iterdir())) == math.ceil(len(data.reward) / 64)
    same(data, jt.load_data(tmp_path / "a"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    there = tmp_path_factory.mktemp("written") / "a"
    return jt.save_data(random_data(), there)


def shard(there, leaf="agents"):
    return next(p for p in sorted((there / leaf / "c").rglob("*")) if p.is_file())


def flip(there, leaf="agents"):
    content = bytearray(shard(there, leaf).read_bytes())
    content[len(content) // 2] ^= 1
    shard(there, leaf).write_bytes(content)


def truncate(there):
    os.truncate(shard(there), shard(there).stat().st_size - 1)


def other_manifest(there):
    file = there / storage.MANIFEST
    file.write_text(file.read_text().replace('"rows": ', '"rows": 1'))


def unfinished(there):
    (there / storage.MANIFEST).rename(there / storage.RECORDING)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda there: shard(there).unlink(), "'agents/c/0/0/0' is missing"),
        (truncate, "'agents/c/0/0/0' has .* bytes and not"),
        (flip, "'agents/c/0/0/0' is damaged: its checksum"),
        (other_manifest, "manifest.json is damaged"),
        (unfinished, "is an unfinished recording"),
        (lambda there: (there / storage.MANIFEST).unlink(), "manifest.json is missing"),
    ],
    ids=["missing", "truncated", "flipped", "manifest", "unfinished", "no dataset"],
)
def test_damage_is_named(written, tmp_path, damage, told):
    import shutil

    there = shutil.copytree(written, tmp_path / "a")
    damage(there)
    with pytest.raises(ValueError, match=told):
        jt.load_data(there)
    if damage in (truncate, other_manifest):  # seen without checksums too
        with pytest.raises(ValueError, match=told):
            jt.load_data(there, verify=False)


KILLED = """
import importlib, os, signal, sys
from jaxmarl_tad import storage
recorder = importlib.import_module("jaxmarl_tad.record")
storage.SHARD, recorder._BLOCK = 128, 100
told = storage.Writer._progress
def progress(self, where=0):
    told(self, where)
    if self.shards == 3:
        os.kill(os.getpid(), signal.SIGKILL)
storage.Writer._progress = progress
recorder.record("random", "m_step", episodes=300, seed=1, label="random", path=sys.argv[1])
"""


def test_a_killed_recording_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    there, whole = tmp_path / "killed" / "a", tmp_path / "whole" / "a"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}"}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(there)], env=environment)
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="unfinished recording"):
        jt.load_data(there)
    monkeypatch.setattr(storage, "SHARD", 128)
    monkeypatch.setattr(recorder, "_BLOCK", 100)
    how = {"episodes": 300, "seed": 1, "label": "random"}
    with pytest.raises(ValueError, match="unfinished recording with other seed, first_episodes"):
        jt.record("random", "m_step", path=there, **{**how, "seed": 2})
    known = json.loads((there / storage.RECORDING).read_text())
    assert known["shards"] == 3
    resumed = jt.record("random", "m_step", path=there, **how)
    same(resumed, jt.record("random", "m_step", path=whole, **how))
    assert files(there) == files(whole)


# --- recordings -----------------------------------------------------------------------------------


def test_rows_are_what_the_environment_did():
    """Every recorded episode, played again step by step."""
    data, env = random_data(), jt.make("m_step")
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    key, rows = jax.random.key(0), leaves(data)  # the game is deterministic
    assert data.episodes == 300
    t = 0
    for length in lengths(data)[:12]:
        state, seen = reset(key)
        for i in range(length + 1):
            assert rows["first"][t] == (i == 0)
            assert rows["valid"][t] == (i < length)
            for name in Observation._fields:
                np.testing.assert_array_equal(rows[name][t], getattr(seen, name), err_msg=name)
            if i < length:
                state, happened = step(key, state, rows["action"][t])
                seen = happened.observation
                assert rows["reward"][t] == pytest.approx(float(happened.reward))
                assert rows["terminated"][t] == happened.terminated
                assert rows["truncated"][t] == happened.truncated
                assert (i + 1 == length) == bool(happened.terminated | happened.truncated)
            t += 1


def test_an_episode_that_the_clock_ends_keeps_its_final_observation():
    data = jt.record("random", "mpe/spread", episodes=3)
    assert (lengths(data) == data.spec.horizon).all()
    ends = np.flatnonzero(np.asarray(data.truncated))
    assert len(ends) == 3
    assert not np.asarray(data.terminated).any()
    assert not np.asarray(data.valid)[ends + 1].any()
    moved = np.abs(np.asarray(data.agents)[ends + 1] - np.asarray(data.agents)[ends])
    assert 0 < moved.max() < 1  # the step after, not another episode


SETTINGS = {"seeds": 4, "total_steps": 2_000, "evaluations": 4}


@functools.cache
def trained():
    return jt.run("ippo", "matrix/climbing", **SETTINGS)


def test_log_probabilities_are_those_of_the_policy_that_acted():
    episodes, n = 4_000, 3
    for explore, epsilon in ((0.3, 0.3), (1.0, 1.0)):
        data = jt.record(trained(), episodes=episodes, explore=explore)
        step = np.asarray(data.rows)
        chance, action = np.exp(np.asarray(data.log_prob)[step]), np.asarray(data.action)[step]
        for agent in range(2):
            for a in range(n):
                told = chance[action[:, agent] == a, agent]
                assert np.ptp(told) < 1e-6
                share = len(told) / episodes
                assert share == pytest.approx(told[0], abs=4 * math.sqrt(0.25 / episodes))
        low = epsilon / n
        known = np.array([low, 1 - epsilon + low])
        assert np.abs(chance[..., None] - known).min(axis=-1).max() < 1e-6
    sampled = jt.record(trained(), episodes=episodes, explore="sample", member=1)
    step = np.asarray(sampled.rows)
    chance, action = np.exp(np.asarray(sampled.log_prob)[step]), np.asarray(sampled.action)[step]
    for a in range(n):
        mine = action[:, 0] == a
        if mine.any():
            assert mine.mean() == pytest.approx(chance[mine, 0][0], abs=0.03)
    assert jt.record(trained(), episodes=5).log_prob is None  # greedy actions tell nothing
    uniform = jt.record("random", "matrix/climbing", episodes=5)
    assert np.asarray(uniform.log_prob)[0, 0] == pytest.approx(-math.log(3))


def test_several_policies_share_the_episodes():
    data = jt.record(trained(), episodes=10, member="all")
    assert data.episodes == 10
    assert data.env == "matrix/climbing"
    both = jt.record([trained(), "random"], episodes=200)
    greedy = np.asarray(both.action)[np.asarray(both.rows)][:100]
    assert np.ptp(greedy, axis=0).max() == 0
    assert returns(both)[:100].max() == trained().final["return"].max()
    assert both.log_prob is None  # not known for all


def test_what_cannot_be_recorded_is_told():
    for arguments, told in [
        (("radnom", "m_step"), "did you mean 'random'"),
        (("random",), "give one as env"),
        ((trained(), "m_step"), "made for other sizes"),
    ]:
        with pytest.raises(ValueError, match=told):
            jt.record(*arguments)
    for keywords, told in [
        ({"explore": 1.5}, r"share in \[0, 1\]"),
        ({"explore": "gready"}, "expected greedy, sample or a number"),
        ({"member": 9}, "expected best, all or 0..3"),
        ({"episodes": 0}, "positive integer"),
    ]:
        with pytest.raises(ValueError, match=told):
            jt.record(trained(), **keywords)


def test_noise_on_continuous_actions_stays_in_their_range():
    env = "matrix/product"
    data = jt.record("random", env, episodes=50)
    low, high = data.spec.bounds
    action = np.asarray(data.action)[np.asarray(data.rows)]
    assert action.min() >= low
    assert action.max() <= high
    middle = jt.Policy(
        start=lambda: (),
        act=lambda key, memory, seen: (
            jax.numpy.full(seen.legal.shape, (low + high) / 2),
            memory,
            {},
        ),
        execution="decentralised",
    )
    noisy = jt.record(middle, env, episodes=2_000, explore=0.1)
    assert noisy.log_prob is None
    action = np.asarray(noisy.action)[np.asarray(noisy.rows)]
    assert action.std() == pytest.approx(0.1 * (high - low) / 2, rel=0.1)


# --- mixtures and measures ------------------------------------------------------------------------


def test_mixtures_hold_their_shares():
    poor = table_data([[0, 0]] * 30, np.arange(30.0), name="poor")
    good = table_data([[1, 1]] * 50, 100 + np.arange(50.0), name="good")
    both = jt.mix([poor, good])
    np.testing.assert_array_equal(returns(both), np.concatenate([returns(poor), returns(good)]))
    assert both.name == "poor+good"
    drawn = jt.mix([poor, good], shares=[3, 1], episodes=20, seed=3)
    assert (returns(drawn) < 100).sum() == 15
    assert len(set(returns(drawn))) == 20  # without replacement
    most = jt.mix([poor, good], shares=[1, 1])
    assert most.episodes == 60
    with pytest.raises(ValueError, match="'poor' has 30 episodes, and 45 are asked for"):
        jt.mix([poor, good], shares=[9, 1], episodes=50)
    with pytest.raises(ValueError, match="is not what 'poor' was recorded in"):
        jt.mix([poor, random_data()])


def test_episodes_are_chosen_by_return():
    data = table_data([[0, 1]] * 10, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    np.testing.assert_array_equal(returns(jt.by_return(data, 3, 5)), [3, 4, 5, 5, 3])
    thirds = quality.split(data, 3)
    assert [list(returns(part)) for part in thirds] == [[3, 1, 1, 2], [4, 5, 3], [9, 6, 5]]
    with pytest.raises(ValueError, match=r"they lie in \[1, 9\]"):
        jt.by_return(data, 10)


def test_measures_of_a_dataset_by_hand():
    # In state 0 agents act alike (a fair coin), in state 1 independently: half of log 2 in all.
    actions = [[0, 0], [1, 1]] * 10 + [[0, 0], [0, 1], [1, 0], [1, 1]] * 5
    data = table_data(actions, states=[0] * 20 + [1] * 20)
    assert quality.total_correlation(data) == pytest.approx(0.5 * math.log(2))
    found = quality.describe(data)
    assert found["coverage"] == pytest.approx(6 / 40)
    assert found["entropy"] == pytest.approx(math.log(2))
    assert found["illegal actions"] == 0
    few = table_data([[0, 1], [1, 1]])
    assert quality.total_correlation(few) is None  # chance would be counted
    uneven = jt.mix([random_data(), random_data()])
    np.testing.assert_array_equal(returns(uneven)[:300], returns(random_data()))
    assert lengths(uneven).sum() == uneven.steps


# --- other formats --------------------------------------------------------------------------------


def _vault(there, leaves, count):
    """As flashbax writes it: zarr on ocdbt, names that end in a dot, a time axis without end."""
    import tensorstore as ts

    there.mkdir(parents=True)
    shapes = {"infos": {}}
    for name, x in leaves.items():
        *_, leaf = name.split(".")
        (shapes["infos"] if name.startswith("infos.") else shapes)[leaf] = str(x.shape)
    about = {"version": 1.2, "structure_shape": shapes, "structure_dtype": {}}
    (there / "metadata.json").write_text(json.dumps(about))

    def store(name, shape, kind):
        base = {"driver": "ocdbt", "base": f"file://{there}", "path": name}
        metadata = {"compressor": {"id": "gzip", "level": 5}}
        spec = {"driver": "zarr", "kvstore": base, "metadata": metadata}
        return ts.open(spec, shape=shape, dtype=kind, create=True).result()

    for name, x in leaves.items():
        whole = store(f"{name}.", (1, int(10e12), *x.shape[2:]), x.dtype)
        whole[:, : x.shape[1]].write(x).result()
    store("vault_index", (1,), np.int32).write(count).result()


def test_a_vault_is_read_by_its_rows(tmp_path):
    rows, agents = 7, 2
    obs = np.arange(rows * agents * 3, dtype=np.float32).reshape(1, rows, agents, 3)
    reward = np.arange(rows, dtype=np.float32)[None, :, None] + np.array([0.0, 2.0], np.float32)
    terminals, truncations = (np.zeros((1, rows, agents), bool) for _ in range(2))
    terminals[0, 2] = True  # rows 0-2: a task that ended
    truncations[0, 5] = True  # rows 3-5: cut off, so that row 5 is the final observation
    leaves_ = {
        "observations": obs,
        "actions": np.tile(np.arange(rows)[None, :, None], (1, 1, agents)).astype(np.int32) % 4,
        "rewards": reward,
        "terminals": terminals,
        "truncations": truncations,
        "infos.state": obs[:, :, 0],
        "infos.legals": np.ones((1, rows, agents, 4), bool),
    }
    _vault(tmp_path / "v" / "Good", leaves_, rows)
    data = formats.read_vault(tmp_path / "v" / "Good", env="m_step", label="good")
    assert list(lengths(data)) == [3, 2]  # row 6, alone, is no step
    np.testing.assert_array_equal(np.asarray(data.reward)[np.asarray(data.rows)], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(np.asarray(data.agents)[4:], obs[0, 3:6])
    assert list(np.asarray(data.terminated)[np.asarray(data.rows)]) == [0, 0, 1, 0, 0]
    assert list(np.asarray(data.truncated)[np.asarray(data.rows)]) == [0, 0, 0, 0, 1]
    assert (data.spec.n_actions, data.spec.state_dim, data.label) == (4, 3, "good")


def test_a_vault_is_written_so_that_it_reads_the_same(tmp_path):
    played = random_data()
    data = jt.mix([quality.subset(played, range(20))])
    formats.write_vault(data, tmp_path / "v", source="a test")
    read = formats.read_vault(tmp_path / "v")
    valid = np.asarray(data.rows)
    assert (np.asarray(read.rows) == valid).all()
    for name in ("agents", "state", "legal", "action", "terminated", "truncated"):
        one, other = (np.asarray(getattr(d, name))[valid] for d in (data, read))
        np.testing.assert_array_equal(one, other, err_msg=name)
    np.testing.assert_allclose(read.reward, data.reward, rtol=1e-6)
    clock = jt.record("random", "mpe/spread", episodes=3)
    formats.write_vault(clock, tmp_path / "c")
    again = formats.read_vault(tmp_path / "c")
    np.testing.assert_array_equal(again.agents, clock.agents)  # final observations too
    np.testing.assert_array_equal(again.truncated, clock.truncated)


def _omiga():
    lengths_, agents = (3, 2), 2
    rows = sum(lengths_) + len(lengths_)
    ends = np.cumsum(np.array(lengths_) + 1) - 1
    d = np.zeros((rows, agents))
    d[ends] = 1
    o = np.random.default_rng(0).normal(size=(rows, agents, 4)).astype(np.float32)
    a = np.random.default_rng(1).normal(size=(rows, agents, 3)).astype(np.float32)
    r = np.tile(np.arange(rows, dtype=np.float32)[:, None], (1, agents))
    return {"s": o, "o": o, "a": a, "r": r, "d": d}


def check_omiga(data, there):
    assert list(lengths(data)) == [3, 2]
    np.testing.assert_array_equal(data.agents, there["o"])
    np.testing.assert_array_equal(np.asarray(data.reward)[data.rows], [0, 1, 2, 4, 5])
    np.testing.assert_array_equal(np.asarray(data.action)[data.rows], there["a"][[0, 1, 2, 4, 5]])
    assert list(np.flatnonzero(data.truncated)) == [2]
    assert list(np.flatnonzero(data.terminated)) == [5]


def test_omigas_files_are_read(tmp_path):
    there = _omiga()
    np.savez(tmp_path / "hopper.npz", **there)
    check_omiga(formats.read_omiga(tmp_path / "hopper.npz", limit=3), there)
    plain = formats.read_omiga(tmp_path / "hopper.npz")
    assert not np.asarray(plain.truncated).any()


def test_hdf5_is_read_where_h5py_is(tmp_path):
    (tmp_path / "hopper.hdf5").write_bytes(b"")
    try:
        import h5py
    except ImportError:
        with pytest.raises(ValueError, match=r"jaxmarl_tad\[hdf5\]"):
            formats.read_omiga(tmp_path / "hopper.hdf5")
        return
    there = _omiga()
    with h5py.File(tmp_path / "hopper.hdf5", "w") as file:
        for name, x in there.items():
            file[name] = x
    check_omiga(formats.read_omiga(tmp_path / "hopper.hdf5", limit=3), there)


def test_scores_are_shares_of_the_way_from_random_play_to_the_reference(tmp_path):
    data = dataclasses.replace(numbered_data(20), scale=(-2.0, 6.0))
    np.testing.assert_allclose(dataset.normalised(data, [-2, 6, 2]), [0, 100, 50])
    there = jt.save_data(data, tmp_path / "a")
    assert storage.manifest(there)["scale"] == [-2.0, 6.0]
    again = jt.load_data(there)
    assert again.scale == jt.by_return(again).scale == jt.mix([again, again]).scale == (-2.0, 6.0)
    plain = numbered_data(20)
    assert jt.mix([again, plain]).scale is None
    with pytest.raises(ValueError, match="has no scale"):
        dataset.normalised(plain, 1.0)
    with pytest.raises(ValueError, match="two different numbers"):
        jt.record("random", "matrix/climbing", episodes=2, scale=(1, 1))


def test_omigas_starcraft_pickles_are_refused_and_their_arrays_read(tmp_path):
    (tmp_path / "episode_0.pt").write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match=r"'episode_0.pt' is a pickle.*torch.load"):
        formats.read_omiga_smac(tmp_path)
    count, agents = 4, 2
    source = np.random.default_rng(0)
    np.savez(
        tmp_path / "e0.npz",
        state=source.normal(size=(count, agents, 5)),
        obs=source.normal(size=(count, agents, 3)),
        action=np.zeros((count, agents, 1), int),
        reward=np.ones((count, agents, 1)),
        done=np.zeros((count, agents, 1)),
        avail=np.ones((count, agents, 6)),
    )
    data = formats.read_omiga_smac(tmp_path)
    assert (data.steps, data.spec.n_actions, returns(data)[0]) == (4, 6, 4)
    assert np.asarray(data.terminated)[3]
    cut = formats.read_omiga_smac(tmp_path, limit=4)
    assert cut.steps == 3
    assert np.asarray(cut.truncated)[2]


def test_omars_folders_are_read(tmp_path):
    steps = 7  # 3 until the clock, 2 until the task ends, 2 that break off
    for agent, width in enumerate((4, 3)):
        seen = np.arange(steps * width, dtype=np.float32).reshape(steps, width)
        following = np.vstack([seen[1:], seen[:1]])
        following[[2, 4]] += 100
        done = np.zeros(steps)
        done[4] = 1
        for name, x in {
            "obs": seen, "next_obs": following, "acs": seen[:, :2] / 99,
            "rews": np.arange(steps) * (agent + 1.0), "dones": done,
        }.items():  # fmt: skip
            np.save(tmp_path / f"{name}_{agent}.npy", x)
    data = formats.read_omar(tmp_path, limit=3)
    assert list(lengths(data)) == [3, 2, 2]
    assert data.spec.obs_dim == 4
    np.testing.assert_array_equal(np.asarray(data.reward)[data.rows], np.arange(7) * 1.5)
    assert list(np.flatnonzero(np.asarray(data.terminated)[data.rows])) == [4]
    assert list(np.flatnonzero(np.asarray(data.truncated)[data.rows])) == [2, 6]
    np.testing.assert_array_equal(np.asarray(data.agents)[3, 0], np.arange(12, 16) + 100)


def test_padded_episodes_are_read(tmp_path):
    count, time, agents = 3, 4, 2  # of 3 steps until the clock, 2 and 3 until the end
    source = np.random.default_rng(0)
    filled, terminated = np.zeros((count, time, 1)), np.zeros((count, time, 1))
    filled[0], filled[1, :3], filled[2] = 1, 1, 1
    terminated[1, 1], terminated[2, 2] = 1, 1
    obs = source.normal(size=(count, time, agents, 3)).astype(np.float32)
    reward = source.normal(size=(count, time, 1)).astype(np.float32)
    np.savez(
        tmp_path / "3m.npz",
        obs=obs,
        state=source.normal(size=(count, time, 5)),
        actions=source.integers(0, 6, size=(count, time, agents, 1)),
        avail_actions=np.ones((count, time, agents, 6)),
        reward=reward,
        terminated=terminated,
        filled=filled,
    )
    data = formats.read_pymarl(tmp_path / "3m.npz")
    assert list(lengths(data)) == [3, 2, 3]
    np.testing.assert_array_equal(np.asarray(data.agents)[:4], obs[0])
    sums = [reward[e, :length].sum() for e, length in enumerate((3, 2, 3))]
    np.testing.assert_allclose(returns(data), sums, rtol=1e-5)
    assert list(np.flatnonzero(data.truncated)) == [2]
    assert list(np.flatnonzero(data.terminated)) == [5, 9]
    np.savez(tmp_path / "less.npz", obs=obs, state=obs)
    with pytest.raises(ValueError, match="has no 'actions'; it has obs, state"):
        formats.read_pymarl(tmp_path / "less.npz")


# --- runs that learn from folders -----------------------------------------------------------------


def test_what_a_learner_went_through_is_recorded_from_its_checkpoints(tmp_path):
    run = jt.run("ippo", "matrix/climbing", out=tmp_path / "run", save_seconds=0, keep=9, **SETTINGS)
    kept = jt.checkpoints(tmp_path / "run")
    assert len(kept) == 4
    early = jt.load(tmp_path / "run", checkpoint=kept[0])
    assert len(early.steps) == 1
    np.testing.assert_array_equal(early.final["return"], run.curves["return"][:, 0])
    with pytest.raises(ValueError, match="checkpoint=1 does not exist"):
        jt.load(tmp_path / "run", checkpoint=1)
    jt.record(
        [jt.load(tmp_path / "run", checkpoint=i) for i in kept],
        episodes=80, explore="sample", path=tmp_path / "replay", label="medium-replay",
    )  # fmt: skip
    recipe = storage.manifest(tmp_path / "replay")["recipe"]
    assert [each["steps"] for each in recipe["policies"]] == list(run.steps)


def numbered_data(count=120):
    """Episodes of 2 to 6 steps in which everything tells the number of its row."""
    spec = Spec(n_agents=2, obs_dim=1, state_dim=1, horizon=6, n_actions=2)
    episodes, row = [], 0
    for number in range(count):
        steps = 2 + number % 5
        rows = np.arange(row, row + steps + 1)
        row += steps + 1
        both = np.ones((steps + 1, 2), bool)
        seen = Observation(
            np.tile(rows[:, None, None], (1, 2, 1)), rows[:, None], np.stack([both, both], -1), both
        )
        end = np.arange(steps) == steps - 1
        action = np.tile(rows[:-1, None] % 2, (1, 2))
        episodes.append(Episode(seen, action, rows[:-1] / 1.0, end, ~end & False))
    return from_episodes(episodes, spec, name="numbered")


def test_a_dataset_above_the_limit_is_read_in_windows(tmp_path):
    jt.save_data(numbered_data(), tmp_path / "a")
    whole = jt.load_data(tmp_path / "a")
    held = sum(leaf.nbytes for leaf in leaves(whole).values())
    assert not isinstance(jt.load_data(tmp_path / "a", limit=held).reward, np.memmap)
    data = jt.load_data(tmp_path / "a", limit=held // 2)
    assert isinstance(data.reward, np.memmap)
    same(whole, data)
    windows = Windows(data)
    seen = [windows(number) for number in range(windows.blocks // Windows.BLOCKS)]
    assert len(seen) == 4
    for window in seen:
        assert 2 * sum(leaf.nbytes for leaf in leaves(window).values()) <= data.limit
        assert window.rows.shape == seen[0].rows.shape
        rows = np.asarray(window.rows)
        np.testing.assert_array_equal(window.state[rows, 0] + 1, window.state[rows + 1, 0])
        np.testing.assert_array_equal(window.reward[rows], window.state[rows, 0])
        drawn, valid = draw_windows(window, jax.random.key(0), 256, 4)
        step, after = drawn.reward, drawn.next.state[..., 0]
        assert bool(jax.numpy.all((after == step + 1) | ~valid))
    used = np.concatenate([window.state[:, 0] for window in seen])
    assert len(used) == len(set(used)) == 32 * windows.block  # each once in an epoch
    same(seen[3], Windows(data)(3))
    other = windows(4)  # of the next epoch: shuffled anew
    assert not np.array_equal(other.state, seen[0].state)
    with pytest.raises(ValueError, match="too small or too large"):
        Windows(jt.load_data(tmp_path / "a", limit=100))


@pytest.mark.slow
def test_a_run_learns_from_windows_and_goes_on(tmp_path):
    jt.record("random", "matrix/climbing", episodes=4_000, seed=1, path=tmp_path / "a")
    whole = jt.load_data(tmp_path / "a")
    limit = sum(leaf.nbytes for leaf in leaves(whole).values()) // 4
    data = jt.load_data(tmp_path / "a", limit=limit)
    how = {"seeds": 4, "total_steps": 2_000, "evaluations": 20, "alpha": 0.3}
    full = jt.run("omiga", whole, **how)
    traced = []
    parts = jt.run("omiga", data, out=tmp_path / "run", save_seconds=0,
                   after_chunk=lambda number, *_: traced.append(number), **how)  # fmt: skip
    assert parts.job.recipe["limit"] == limit
    np.testing.assert_allclose(parts.final["return"].mean(), full.final["return"].mean(), atol=2)

    class Stopped(Exception):
        pass

    def stop(number, *_):
        if number == 7:
            raise Stopped

    with pytest.raises(Stopped):
        jt.run("omiga", data, out=tmp_path / "cut", save_seconds=0, after_chunk=stop, **how)
    resumed = jt.resume(tmp_path / "cut")
    for a, b in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(parts.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_commands_record_describe_mix_split_and_learn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["record", "random", "matrix/climbing", "episodes=300", "out=data/r", "label=random"]
    assert main(asked) == 0
    assert "data/r: 300 episodes, 300 steps" in capsys.readouterr().out
    before = files(tmp_path / "data")
    assert main(asked) == 0  # the same: only read
    assert main([*asked, "seed=5"]) == 2
    assert "never written over" in capsys.readouterr().err
    assert files(tmp_path / "data") == before
    assert main(["data", "split", "data/r", "out=data/parts"]) == 0
    assert (
        main(["data", "mix", "data/parts/poor", "data/parts/good", "shares=0.25,0.75", "out=data/m"])
        == 0
    )
    mixed = jt.load_data("data/m")
    assert mixed.episodes == 133
    assert mixed.label == "poor+good"
    recipe = storage.manifest("data/m")["recipe"]
    assert recipe["mix"][0]["recipe"]["split"]["recipe"]["policies"] == [{"policy": "random"}]
    capsys.readouterr()
    assert main(["data", "info", "data/r", "data/m"]) == 0
    told = capsys.readouterr().out
    assert "correlation" in told
    assert "coverage" in told
    assert (tmp_path / "figures" / "returns.png").exists()
    assert (tmp_path / "figures" / "returns.csv").exists()
    learn = ["run", "omiga", "total_steps=4", "evaluations=2", "seeds=2", "alpha=0.1,1", "out=runs/a"]
    assert main([*learn, "data=data/r", "--plan"]) == 0
    assert "1 program, 4 members, 16 gradient steps" in capsys.readouterr().out
    assert main([*learn, "data=data/r"]) == 0
    monkeypatch.chdir(tmp_path / "data")
    capsys.readouterr()
    assert main(["resume", "../runs/a"]) == 0
    assert "results: " in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main(["run", "@runs/a/config.json", "seeds=1", "--plan"]) == 0
    assert "2 members" in capsys.readouterr().out
    assert main([*learn, "data=data/r,data/m", "limit=9000", "--plan"]) == 0
    told = capsys.readouterr().out
    assert "2 programs, 8 members" in told
    assert "data=m" in told
    learned = jt.load("runs/a")
    assert learned.job.recipe["data"] == str(tmp_path / "data" / "r")
    data = jt.load_data("data/r")
    assert jt.resume("runs/a").final["return"].shape == (4,)
    how = {"seeds": 2, "alpha": [0.1, 1.0], "total_steps": 4, "evaluations": 2, "out": "runs/a"}
    again = jt.run("omiga", data, **how)
    np.testing.assert_array_equal(again.final["return"], learned.final["return"])
    changed = dataclasses.replace(data, reward=np.asarray(data.reward) + 1)
    with pytest.raises(ValueError, match="holds another run"):
        jt.run("omiga", changed, **how)
    flip(tmp_path / "data" / "r", "reward")
    assert main(["eval", "runs/a"]) == 2
    assert "its file 'reward/c/0' is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("data", "needs an action; expected info, mix or split"),
        ("data infos d", "has no action 'infos'; did you mean 'info'?"),
        ("data info nowhere", "there is no folder 'nowhere'"),
        ("data info .", "is not a dataset: manifest.json is missing"),
        ("data mix d", "needs out=DIR"),
        ("data split d e out=x", "no use for 'e'"),
        ("record", "needs a run or 'random'"),
        ("record random", "name an environment"),
        ("record random hallwy", "did you mean 'hallway'"),
        ("record random hallway episode=3", "no key 'episode'; did you mean 'episodes'"),
        ("record random hallway explore=gready", "did you mean 'greedy'"),
        ("record nowhere", "there is no folder 'nowhere'"),
        ("run omiga hallway", "learns from a dataset: tad run omiga data=DIR"),
        ("run omiga data=nowhere", "there is no folder 'nowhere'"),
        ("run ippo hallway data=d", "ippo learns in an environment and takes no data=..."),
    ],
)
def test_commands_that_are_asked_wrongly_say_so(asked, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(asked.split()) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) <= 4
    assert not list(tmp_path.iterdir())


def test_help_and_plans_start_no_backend(written):
    code = (
        "import sys, jax._src.xla_bridge as bridge; from jaxmarl_tad.cli import main\n"
        f"asked = [['record', '--help'], ['data', '--help'], ['data', 'info', {str(written)!r}, "
        f"'out=/dev/null/x'], ['run', 'omiga', 'data={written}', '--plan']]\n"
        "for words in asked:\n    main(words)\n    assert not bridge.backends_are_initialized(), words"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "omiga: 1 program" in ended.stdout
