"""Runs that are stopped, killed or damaged, and go on as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

import jaxmarl_tad as jt
from jaxmarl_tad import folder

SMALL = {"seeds": 3, "envs": 8, "total_steps": 144, "evaluations": 6, "episodes": 4}
METHODS = ["ippo", "tad_ppo", "qmix"]


class Stopped(Exception):
    """Raised in the middle of a run, in place of whatever may end a process."""


def train(method, out, stop_after=None, **options):
    def after_chunk(number, state, metrics):
        if number == stop_after:
            raise Stopped

    settings = SMALL | {"save_seconds": 0, "after_chunk": after_chunk} | options
    return jt.run(method, "hallway", out=out, **settings)


def interrupted(method, out, after):
    with pytest.raises(Stopped):
        train(method, out, stop_after=after)


def assert_same(one, other):
    """Equal files, and equal states to the last bit."""
    for name in ("metrics.npz", "curves.csv", "members.csv"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    a, b = (jax.tree.leaves(run.state) for run in (one, other))
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, by method."""
    made = {}

    def get(method):
        if method not in made:
            made[method] = train(method, tmp_path_factory.mktemp("whole") / method)
        return made[method]

    return get


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_bit_for_bit(whole, tmp_path, method):
    interrupted(method, tmp_path, after=3)
    assert 0 < len(jt.load(tmp_path).steps) < 6
    resumed = jt.resume(tmp_path)
    assert_same(resumed, whole(method))
    assert {e["event"] for e in folder.events(tmp_path)} >= {"start", "resume", "checkpoint", "finish"}


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(whole, tmp_path):
    interrupted("ippo", tmp_path, after=0)
    assert_same(jt.resume(tmp_path), whole("ippo"))


def test_the_same_call_goes_on(whole, tmp_path):
    interrupted("ippo", tmp_path, after=2)
    assert_same(train("ippo", tmp_path), whole("ippo"))


def test_a_finished_run_is_left_alone(whole):
    before = {p: p.stat().st_mtime_ns for p in whole("ippo").folder.rglob("*") if p.is_file()}
    again = jt.resume(whole("ippo").folder)
    np.testing.assert_array_equal(again.final["return"], whole("ippo").final["return"])
    assert before == {p: p.stat().st_mtime_ns for p in whole("ippo").folder.rglob("*") if p.is_file()}


def test_files_and_memory_agree(whole):
    run = whole("ippo")
    kept = np.load(run.folder / "metrics.npz")
    np.testing.assert_array_equal(kept["steps"], run.steps)
    for name, values in run.curves.items():
        np.testing.assert_array_equal(kept[name], values)
    lines = (run.folder / "curves.csv").read_text().splitlines()
    assert len(lines) == 1 + sum(values.size for values in run.curves.values())
    assert len((run.folder / "members.csv").read_text().splitlines()) == 1 + len(run.members)


def test_a_saved_run_is_loaded(whole, tmp_path):
    run = jt.run("ippo", "hallway", **SMALL)
    loaded = jt.load(run.save(tmp_path / "saved"))
    np.testing.assert_array_equal(loaded.curves["return"], run.curves["return"])
    assert_same(loaded, whole("ippo"))


def test_students_go_on_with_their_teacher(whole, tmp_path):
    teacher = whole("tad_ppo")
    settings = {"envs": 8, "total_steps": 64, "evaluations": 4, "save_seconds": 0}
    one = jt.distill(teacher, out=tmp_path / "one", **settings)

    def stop(number, state, metrics):
        if number == 2:
            raise Stopped

    with pytest.raises(Stopped):
        jt.distill(teacher, out=tmp_path / "two", after_chunk=stop, **settings)
    two = jt.resume(tmp_path / "two")
    assert_same(two, one)
    np.testing.assert_array_equal(two.curves["retention"], one.curves["retention"])


def test_an_environment_with_arrays_is_written_down(tmp_path):
    game = jt.make("matrix/custom", payoff=np.asarray([[3.0, 0.0], [0.0, 2.0]]))
    settings = {"envs": 8, "total_steps": 32, "evaluations": 2, "out": tmp_path}
    run = jt.run("ippo", [game, (jt.make("matrix/custom", payoff=np.eye(2)), {"lr": 0.5})], **settings)
    again = jt.load(tmp_path)
    assert again.members == run.members
    np.testing.assert_array_equal(again.stacked.config.lr, run.stacked.config.lr)


# --- what is refused ------------------------------------------------------------------------------


def test_another_run_is_refused_with_a_diff(whole, tmp_path):
    shutil.copytree(whole("ippo").folder, tmp_path / "copy")
    before = sorted(str(p) for p in (tmp_path / "copy").rglob("*"))
    cases = {
        "network: table there, mlp here": {"network": "mlp"},
        "seed": {"seeds": [0, 1, 5]},
        "members: 3 there, 2 here": {"seeds": 2},
        "gamma: 0.99 there, 0.9 here": {"gamma": 0.9},
        "iterations: 9 there, 18 here": {"total_steps": 288, "evaluations": 3},
    }
    for told, change in cases.items():
        with pytest.raises(ValueError, match="holds another run") as error:
            train("ippo", tmp_path / "copy", **change)
        if "iterations" not in told:
            assert told in str(error.value)
    with pytest.raises(ValueError, match="algorithm: ippo there, mappo here"):
        train("mappo", tmp_path / "copy")
    with pytest.raises(ValueError, match=r"other numbers in the environment|members"):
        jt.run("ippo", jt.make("hallway", penalty=0.5), out=tmp_path / "copy", **SMALL)
    assert before == sorted(str(p) for p in (tmp_path / "copy").rglob("*"))


def test_folders_that_are_not_runs(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        train("ippo", tmp_path / "file")
    with pytest.raises(ValueError, match="holds files but no run"):
        train("ippo", tmp_path / "full")
    with pytest.raises(ValueError, match="cannot be written"):
        train("ippo", tmp_path / "file" / "below")
    with pytest.raises(ValueError, match=r"there is no folder .*did you mean .*full"):
        jt.load(tmp_path / "ful")
    with pytest.raises(ValueError, match="not a run's folder"):
        jt.resume(tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_damaged_settings_are_named(whole, tmp_path):
    shutil.copytree(whole("ippo").folder, tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text()[:100])
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        jt.load(tmp_path / "copy")


def test_what_cannot_be_written_down_needs_its_script(whole, tmp_path):
    shutil.copytree(whole("ippo").folder, tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"recipe": None}))
    with pytest.raises(ValueError, match="run the script that made it again"):
        jt.load(tmp_path / "copy")
    train("ippo", tmp_path / "copy")  # which it is


# --- damage ---------------------------------------------------------------------------------------


def data_files(checkpoint):
    files = [p for p in checkpoint.rglob("*") if p.is_file() and p.stat().st_size > 0]
    return [p for p in files if p.parent.name == "d"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, tmp_path, damage):
    interrupted("ippo", tmp_path, after=4)
    newest = max(
        (p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
    )
    for file in data_files(newest):
        content = bytearray(file.read_bytes())
        if damage == "flipped":
            for i in range(len(content) // 3, len(content), 7):
                content[i] ^= 0x55
        file.write_bytes(
            {"truncated": content[: len(content) // 2], "emptied": b""}.get(damage, content)
        )
    with pytest.warns(UserWarning, match=f"checkpoint {newest.name} is damaged"):
        resumed = jt.resume(tmp_path)
    assert_same(resumed, whole("ippo"))
    assert (tmp_path / "checkpoints" / f"damaged-{newest.name}").is_dir()  # nothing is lost
    assert "damaged" in {e["event"] for e in folder.events(tmp_path)}


def test_without_a_readable_checkpoint_it_begins_anew(whole, tmp_path):
    interrupted("ippo", tmp_path, after=3)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        for file in data_files(checkpoint):
            file.write_bytes(b"")
    with pytest.warns(UserWarning, match="going on at the start"):
        assert_same(jt.resume(tmp_path), whole("ippo"))


# --- processes that end ---------------------------------------------------------------------------

PROGRAM = textwrap.dedent(
    """
    import sys
    import jaxmarl_tad as jt
    method, out, total, evaluations = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    jt.run(method, "hallway/length=3", seeds=8, envs=8, total_steps=total, evaluations=evaluations,
           episodes=4, out=out, save_seconds=0)
    """
)


def start(method, out, total=4800, evaluations=40, before=""):
    arguments = [sys.executable, "-c", before + PROGRAM, method, str(out), str(total), str(evaluations)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)


def wait_for(out, evaluations, process):
    """Until that many evaluations are written."""
    until = time.monotonic() + 300
    while sum(e["event"] == "evaluation" for e in folder.events(out)) < evaluations:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Uninterrupted runs of the program, by method."""
    made = {}

    def get(method):
        if method not in made:
            out = tmp_path_factory.mktemp("long") / method
            process = start(method, out)
            _, said = process.communicate(timeout=600)
            assert process.returncode == 0, said
            made[method] = jt.load(out)
        return made[method]

    return get


def kill_at_random(method, out, number):
    process = start(method, out)
    draw = random.Random(f"{method} {number}")
    wait_for(out, draw.randrange(1, 35), process)
    time.sleep(draw.uniform(0, 0.05))
    process.kill()
    process.communicate()
    assert not any(e["event"] == "finish" for e in folder.events(out))


def test_a_killed_run_goes_on_bit_for_bit(long, tmp_path):
    kill_at_random("ippo", tmp_path, 0)
    assert_same(jt.resume(tmp_path, save_seconds=0), long("ippo"))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 21))
@pytest.mark.parametrize("method", ["ippo", "qmix"])
def test_killed_at_twenty_moments(long, tmp_path, method, number):
    kill_at_random(method, tmp_path, number)
    assert_same(jt.resume(tmp_path, save_seconds=0), long(method))


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_signals_finish_the_chunk_and_save(long, tmp_path, number, status):
    process = start("ippo", tmp_path)
    wait_for(tmp_path, 3, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert f"tad resume {tmp_path}" in said
    assert process.returncode in (status, 128 + number, 1)
    events = folder.events(tmp_path)
    assert events[-1]["event"] == "stop"
    assert_same(jt.resume(tmp_path), long("ippo"))


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(long, tmp_path):
    # No file may grow beyond 6 kB: the first checkpoints fit, the growing curves do not.
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
    environment = "import os\nos.environ['JAXMARL_TAD_CACHE'] = '0'\n"
    process = start("ippo", tmp_path, before=environment + limit)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    last = said.strip().splitlines()[-2:]
    assert "could not be written" in " ".join(last), said
    assert "is intact" in last[-1]
    assert "tad resume" in last[-1]
    assert_same(jt.resume(tmp_path), long("ippo"))


# --- devices and hosts ----------------------------------------------------------------------------

SPREAD = textwrap.dedent(
    """
    import json, sys
    import jax
    out, shard, processes, number, port = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)
    import numpy as np
    import jaxmarl_tad as jt
    run = jt.run("ippo", "hallway", seeds=2, envs=8, total_steps=64, evaluations=2, episodes=4,
                 network="mlp", hidden=(8,), shard=shard, out=out, save_seconds=0)
    used = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(run.state)}
    assert used == {len(jax.devices())}, used
    """
)


def spread(out, shard="members", devices=2, processes=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    port = random.randrange(20000, 50000)
    arguments = [sys.executable, "-c", SPREAD, str(out), shard, str(processes)]
    started = [
        subprocess.Popen(
            [*arguments, str(number), str(port)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for number in range(processes)
    ]
    for process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return out


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    return spread(tmp_path_factory.mktemp("two") / "devices")


@pytest.mark.filterwarnings("ignore:resumed elsewhere")
def test_members_spread_over_devices_agree_with_one_device(two_devices, tmp_path):
    one = jt.load(spread(tmp_path / "one", devices=1))
    several = jt.load(two_devices)
    for a, b in zip(
        jax.tree.leaves(one.state.params), jax.tree.leaves(several.state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_environments_spread_over_devices_agree_with_one_device(two_devices, tmp_path):
    shared = jt.load(spread(tmp_path / "envs", shard="envs"))
    several = jt.load(two_devices)
    leaves = (jax.tree.leaves(run.state.params) for run in (shared, several))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert json.loads((tmp_path / "envs" / "config.json").read_text())["devices"] == 2


def test_two_processes_agree_with_one_process_on_two_devices(two_devices, tmp_path):
    both = jt.load(spread(tmp_path / "both", devices=1, processes=2))
    several = jt.load(two_devices)
    for a, b in zip(jax.tree.leaves(both.state), jax.tree.leaves(several.state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    for name, values in several.curves.items():
        np.testing.assert_array_equal(both.curves[name], values)
