"""The command line: what it asks for, what it leaves behind, and what it says to those who mistype."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxmarl_tad import folder
from jaxmarl_tad.cli import locks, main, words
from jaxmarl_tad.job import prepare

ROOT = Path(__file__).resolve().parent.parent
TINY = ["total_steps=64", "envs=8", "evaluations=2", "episodes=2", "prng=hash"]
GAME = ["ippo", "matrix/climbing", *TINY]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Every command runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def tad(*arguments, **kwargs):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxmarl_tad", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}"},
        **kwargs,
    )


def asked(*arguments):
    """The programs that a command line asks for."""
    return words.programs(words.split(arguments, {}))


def job(program):
    arguments = dict(program.arguments)
    return prepare(arguments.pop("algorithm"), arguments.pop("env"), **arguments)


def files(there):
    """Every file and what is in it."""
    return {p.relative_to(there): p.read_bytes() for p in sorted(there.rglob("*")) if p.is_file()}


# --- what is asked for ----------------------------------------------------------------------------


def test_numbers_are_members_and_the_rest_is_programs():
    found = asked("ippo", "matrix/penalty", "k=-10,-50", "lr=0.1,0.2", "hidden=8x8,16", "seeds=3")
    assert [p.name for p in found] == ["hidden=16", "hidden=8x8"]
    rows = job(found[0]).rows
    assert len(rows) == 2 * 2 * 3
    assert {row["env"] for row in rows} == {"matrix/penalty/k=-10", "matrix/penalty/k=-50"}
    assert [p.arguments["hidden"] for p in found] == [(16,), (8, 8)]


def test_environments_of_equal_sizes_share_a_program():
    found = asked("ippo", "hallway", "length=2,3", "penalty=0,1")
    assert [p.name for p in found] == ["hallway-length=2-penalty=0+1", "hallway-length=3-penalty=0+1"]
    (one,) = asked("ippo", "hallway", "length=2,3", "max_length=3")
    assert len(job(one).rows) == 2
    (one,) = asked("ippo", "matrix/climbing,matrix/penalty/k=-50")
    assert [row["env"] for row in job(one).rows] == ["matrix/climbing", "matrix/penalty/k=-50"]


def test_the_order_of_keys_never_matters():
    keys = ["lr=0.1,0.2", "gamma=0.5,0.9", "seeds=2", "k=-10,-50", "envs=8,16"]
    one = asked("ippo", "matrix/penalty", *keys)
    other = asked(*keys[::-1], "ippo", "matrix/penalty")
    assert [job(p).identity for p in one] == [job(p).identity for p in other]


def test_values_are_read_by_the_type_of_the_field():
    (program,) = asked(
        "ippo", "hallway", "lr=1", "memory=gru", "steps=none", "hidden=8x16", "seeds=3,5"
    )
    given = program.arguments
    assert (given["memory"], given["steps"], given["hidden"]) == ("gru", None, (8, 16))
    assert given["lr"] == 1.0
    assert isinstance(given["lr"], float)
    assert [row["seed"] for row in job(program).rows] == [3, 5]
    (program,) = asked("vdn", "hallway", "double=false", "seeds=5,")
    assert program.arguments["double"] is False
    assert [row["seed"] for row in job(program).rows] == [5]


def test_a_key_of_both_is_the_configs_and_the_environments_is_prefixed():
    (program,) = asked("ippo", "m_step", "steps=5", "env.steps=4")
    resolved = job(program)
    assert resolved.config.steps == 5
    assert resolved.spec.horizon == 4


def test_payoffs_are_data():
    (program,) = asked("ippo", "matrix/custom", "payoff=[[1,0],[0,2]],[[3,0],[0,1]]", "lr=0.1,0.2")
    rows = job(program).rows
    assert len(rows) == 4
    assert len({row["env"] for row in rows}) == 2


def test_written_values_are_read_back():
    for hint, value in [(int, 3), (float, 0.1), (bool, True), (tuple[int, ...], (8, 16))]:
        assert words.read("x", words.write(value), hint) == value


def test_shards_are_disjoint_and_complete():
    items = list(range(7))
    parts = [locks.shard(items, f"{i}/3") for i in range(3)]
    assert sorted(item for part in parts for item in part) == items
    assert locks.shard(items, None) == items


# --- mistakes -------------------------------------------------------------------------------------

RUN = ["run", *GAME, "out=made"]
MISTAKES = {
    "command": (["rnu"], ["'rnu'", "'run'"]),
    "algorithm": (["run", "mapo", "hallway"], ["'mapo'", "'mappo'"]),
    "environment": (["run", "ippo", "halway"], ["'halway'", "'hallway'"]),
    "no environment": (["run", "ippo"], ["environment"]),
    "nothing": (["run"], ["method", "environment"]),
    "config field": ([*RUN, "gama=0.9"], ["'gama'", "'gamma'"]),
    "environment's parameter": (["run", "ippo", "hallway", "lenght=3"], ["'lenght'", "'length'"]),
    "driver's key": ([*RUN, "seds=3"], ["'seds'", "'seeds'"]),
    "option": ([*RUN, "--plam"], ["'--plam'", "'--plan'"]),
    "negative seeds": ([*RUN, "seeds=-1"], ["seeds=-1", "positive"]),
    "float for an int": (["run", "ippo", "hallway", "envs=8.0"], ["envs=8.0", "int", "envs=8?"]),
    "exponent for an int": (["run", "ippo", "hallway", "total_steps=1e4"], ["1e4", "int", "=10000"]),
    "float for a seed": ([*RUN, "seeds=1.5"], ["seeds=1.5", "int"]),
    "text for a number": ([*RUN, "lr=abc"], ["lr=abc", "number"]),
    "no value": ([*RUN, "lr="], ["lr="]),
    "choice": ([*RUN, "memory=lstm"], ["memory=lstm", "none or gru"]),
    "tuple": ([*RUN, "hidden=64x6.5"], ["hidden=64x6.5", "64x64"]),
    "yes for true": ([*RUN, "wandb_members=yes"], ["wandb_members=yes", "true or false"]),
    "the same twice": ([*RUN, "lr=0.1,0.1"], ["lr=0.1,0.1", "twice"]),
    "key twice": ([*RUN, "lr=0.1", "lr=0.2"], ["lr", "twice"]),
    "out of range": ([*RUN, "gamma=1.5"], ["gamma=1.5", "[0, 1]"]),
    "what the method fixes": ([*RUN, "critic=state"], ["critic='state'"]),
    "parameter of one of two": (
        ["run", "ippo", "matrix/climbing", "matrix/penalty", "k=-50"],
        ["k", "matrix/climbing", "NAME/k=-50"],
    ),
    "shard out of range": ([*RUN, "--shard", "2/2"], ["2/2", "0/4"]),
    "shard without a folder": (["run", *GAME, "--shard", "0/2"], ["--shard", "out=DIR"]),
    "plan of what": ([*RUN, "--plan=memry"], ["memry", "--plan=memory"]),
    "negative seconds": ([*RUN, "save_seconds=-1"], ["save_seconds=-1"]),
    "wandb into nothing": (["run", *GAME, "wandb=offline", "out=none"], ["wandb", "out=none"]),
    "missing folder": (["resume", "gone"], ["'gone'"]),
    "missing file": (["run", "@gone/config.json"], ["gone"]),
    "evaluation's key": (["eval", "gone", "episods=3"], ["'episods'", "'episodes'"]),
    "evaluation's kind": (["eval", "gone", "episodes=3.0"], ["episodes=3.0", "int"]),
    "distillation's key": (["distill", "gone"], ["'gone'"]),
    "pipeline's lesson": (
        ["run", "pipeline", "tad_ppo", "hallway", "distill.labels=sof", "out=made"],
        ["labels=sof", "'soft'"],
    ),
    "nothing to plot": (["plot"], ["tad plot DIR"]),
    "unknown to list": (["list", "hallwya"], ["'hallwya'", "'hallway'"]),
    "unwritable": (["run", *GAME, "out=/proc/nowhere/x"], ["/proc/nowhere/x"]),
    "a file for a folder": (["run", *GAME, f"out={__file__}"], ["test_cli.py", "file"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_leaves_nothing(name, capsys, tmp_path):
    arguments, expected = MISTAKES[name]
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") <= 4
    missing = [part for part in expected if part not in told.err]
    assert not missing, told.err
    assert list(tmp_path.iterdir()) == []


def test_an_error_below_the_library_is_not_taken_for_a_mistake(monkeypatch):
    monkeypatch.setattr("jaxmarl_tad.cli.listing.everything", lambda: np.zeros(2).reshape(3))
    with pytest.raises(ValueError, match="reshape"):
        main(["list"])


# --- listings and plans ---------------------------------------------------------------------------


def test_lists(capsys):
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    for name in ("tad_ppo", "centralised", "hallway/wait", "matrix/climbing"):
        assert name in everything
    assert main(["list", "ippo"]) == 0
    assert re.search(r"hidden +.*64x64 +programs", capsys.readouterr().out)
    assert main(["list", "hallway"]) == 0
    assert re.search(r"length +a number +2", capsys.readouterr().out)
    assert main(["list", "matrix"]) == 0
    assert "hallway" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["list", "run", "resume", "eval", "distill", "plot", "export", "doctor"]
)
def test_every_command_tells_what_it_does(name, capsys):
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"tad {name}")


def test_plan_tells_and_does_nothing(capsys, tmp_path):
    assert main(["run", *GAME, "lr=0.1,0.2", "memory=none,gru", "seeds=3", "out=made", "--plan"]) == 0
    told = capsys.readouterr().out
    assert "2 programs, 12 members" in told
    assert re.search(r"memory=gru +6 +1 env x 2 lr x 3 seed +8 +2 +64", told)
    assert "hidden=64x64" in told
    assert list(tmp_path.iterdir()) == []


def test_plan_tells_memory(capsys):
    assert main(["run", *GAME, "--plan=memory"]) == 0
    assert re.search(r"B at its peak, .*B per member; built in [\d.]+ CPU", capsys.readouterr().out)


LIGHT = """
import sys, time
from jaxmarl_tad.cli import main
assert main(sys.argv[1:]) == 0
if "jax" in sys.modules:
    import jax._src.xla_bridge as bridge
    assert not bridge.backends_are_initialized()
heavy = [n for n in ("flax", "optax", "orbax.checkpoint", "matplotlib") if n in sys.modules]
print("jax" in sys.modules, heavy, f"{time.process_time():.2f}")
"""


@pytest.mark.parametrize(
    ("arguments", "with_jax"),
    [(["--help"], "False"), (["list"], "True"), (["run", *GAME, "lr=0.1,0.2", "--plan"], "True")],
    ids=["help", "list", "plan"],
)
def test_no_backend_is_started_for_a_listing_or_a_plan(arguments, with_jax):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    used, heavy, seconds = done.stdout.splitlines()[-1].rsplit(maxsplit=2)
    print(arguments[0], seconds, "CPU-seconds")
    assert (used, heavy) == (with_jax, "[]")


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_its_table_its_figures_and_what_follows(capsys, tmp_path):
    command = ["run", "ippo", "matrix/penalty", "k=-10,-50", "lr=0.01,0.1", "seeds=2", *TINY, "out=one"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert len(re.findall(r"matrix/penalty/k=-\d+ +ippo +0\.\d+ +2 ", told)) == 4
    assert "optimal" in told
    assert {"config.json", "metrics.npz", "checkpoints", "figures"} <= set(os.listdir("one"))
    assert sorted(os.listdir("one/figures")) == ["learning_curves.csv", "learning_curves.png"]

    before = files(tmp_path)
    for again in (command, ["resume", "one"]):  # finished: read, not written
        assert main(again) == 0
        assert files(tmp_path) == before
        assert "k=-50" in capsys.readouterr().out

    assert main(["run", *GAME, "out=one"]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert main(["run", *GAME, "envs=8,16", "out=one"]) == 2  # several programs where one is
    assert main(["eval", "one", "episodes=4", "seed=1"]) == 0
    assert "k=-10" in capsys.readouterr().out
    assert files(tmp_path) == before

    assert main(["plot", "one", "metric=length"]) == 0
    assert Path("one/figures/learning_curves_length.csv").exists()
    assert main(["export", "one", "path=policy", "formats=safetensors"]) == 0
    assert os.listdir("policy")
    capsys.readouterr()
    assert main(["run", "@one/config.json", "lr=0.5", "--plan"]) == 0
    assert "2 env x 2 seed" in capsys.readouterr().out
    assert main(["run", "@one/config.json", "k=-20", "seeds=5", "--plan"]) == 0
    assert "1 env x 2 lr x 5 seed" in capsys.readouterr().out


def test_defaults_and_what_is_not_written(capsys, tmp_path):
    assert main(["run", *GAME, "out=none"]) == 0
    assert list(tmp_path.iterdir()) == []
    for number in (1, 2):
        assert main(["run", *GAME]) == 0
        assert (tmp_path / f"runs/ippo-matrix-climbing-{number}/config.json").exists()
    capsys.readouterr()
    assert main(["plot", "runs", "out=all"]) == 0
    assert capsys.readouterr().out.split() == ["all/learning_curves.png", "all/learning_curves.csv"]
    assert "ippo (2)" in Path("all/learning_curves.csv").read_text()


def test_pipeline_and_distillation(capsys, tmp_path):
    lesson = ["distill.total_steps=64", "distill.envs=8", "distill.episodes=2"]
    command = ["run", "pipeline", "tad_ppo", "matrix/climbing", *TINY, *lesson, "out=both"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert re.search(r"climbing +tad_ppo .*\n.*climbing +distill\(tad_ppo\)", told)
    before = files(tmp_path)
    assert main(command) == 0
    assert main(["resume", "both"]) == 0
    assert files(tmp_path) == before
    assert main([*command, "distill.labels=soft"]) == 2
    assert "labels" in capsys.readouterr().err

    small = ["total_steps=64", "envs=8", "episodes=2"]
    assert main(["distill", "both/teacher", "labels=hard,soft", *small, "out=more"]) == 0
    assert re.search(r"labels.*\n.*\n.* hard .*\n.* soft ", capsys.readouterr().out)
    assert sorted(p for p in os.listdir("more") if "=" in p) == ["labels=hard", "labels=soft"]


def test_a_checkpoint_of_another_config_is_refused(capsys):
    for name, seeds in (("a", 1), ("b", 2)):
        assert main(["run", *GAME, f"seeds={seeds}", f"out={name}"]) == 0
    os.rename("b/checkpoints", "b/own")
    os.rename("a/checkpoints", "b/checkpoints")
    capsys.readouterr()
    assert main(["eval", "b", "episodes=2"]) == 2
    assert "another state" in capsys.readouterr().err


def test_shards_do_everything_once_and_a_rerun_nothing(tmp_path):
    command = ["run", *GAME, "epochs=1,2", "out=shared"]
    names = [f"epochs={n}" for n in (1, 2)]
    both = [tad(*command, "--shard", f"{i}/2", cwd=tmp_path) for i in range(2)]
    for process in both:
        told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    begun = [[e["event"] for e in folder.events(f"shared/{name}")] for name in names]
    assert all(events.count("start") == 1 and events[-1] == "finish" for events in begun)
    assert sorted(p for p in os.listdir("shared") if "=" in p) == names
    recorded = json.loads(Path("shared/command.json").read_text())["words"]
    assert recorded == [*GAME[:2], *TINY, "epochs=1,2"]

    before = files(tmp_path)
    for shard in ([], ["--shard", "0/2"], ["--shard", "1/2"]):
        assert main([*command, *shard]) == 0
    assert main(["resume", "shared"]) == 0
    assert files(tmp_path) == before


def test_resume_does_what_a_folder_of_programs_lacks(capsys):
    assert main(["run", *GAME, "epochs=1,2", "out=some", "--shard", "0/2"]) == 0
    assert not Path("some/epochs=2").exists()
    assert main(["resume", "some"]) == 0
    assert folder.events("some/epochs=2")[-1]["event"] == "finish"
    assert "is finished" in capsys.readouterr().err


# --- locks ----------------------------------------------------------------------------------------


def test_a_locked_folder_is_left_alone(capsys, tmp_path):
    with locks.held(tmp_path / "held"):
        before = files(tmp_path)
        assert main(["run", *GAME, "out=held"]) == 1
        told = capsys.readouterr().err
        assert f"process {os.getpid()}" in told
        assert files(tmp_path) == before
    assert not Path("held").exists()
    assert main(["run", *GAME, "out=held"]) == 0
    assert not Path("held/lock").exists()


@pytest.mark.parametrize(
    ("change", "old", "stale"),
    [
        ({"pid": 2**22 + 1}, False, True),  # no such process
        ({"began": "1"}, False, True),  # another process has its number by now
        ({}, True, False),  # lives, however long ago it touched the file
        ({"machine": "another"}, False, False),
        ({"machine": "another"}, True, True),
        (None, False, False),  # being written just now
        (None, True, True),  # its process ended before it could write
    ],
)
def test_stale_locks_are_taken_over(tmp_path, change, old, stale):
    lock = tmp_path / folder.LOCK
    with locks.held(tmp_path):
        there = json.loads(lock.read_text())
    tmp_path.mkdir(exist_ok=True)
    lock.write_text("" if change is None else json.dumps(there | change))
    if old:
        os.utime(lock, (time.time() - 3600,) * 2)
    if stale:
        with locks.held(tmp_path):
            assert json.loads(lock.read_text())["pid"] == os.getpid()
            assert os.listdir(tmp_path) == [folder.LOCK]
    else:
        with pytest.raises(locks.Busy), locks.held(tmp_path):
            pass
        assert lock.exists()


def test_what_a_killed_process_leaves_is_no_obstacle():
    with locks.held(Path("killed")):
        there = json.loads(Path("killed/lock").read_text())
    Path("killed/checkpoints").mkdir(parents=True)
    Path("killed/lock").write_text(json.dumps(there | {"pid": 2**22 + 1}))
    assert main(["run", *GAME, "out=killed"]) == 0
    assert not Path("killed/lock").exists()


# --- signals and failures -------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_rest_is_done_later(number, code, tmp_path):
    many = ["total_steps=4000000", "evaluations=500", "envs=8", "prng=hash"]
    command = ["run", *GAME[:2], *many, "out=long"]
    process = tad(*command, cwd=tmp_path)
    events = tmp_path / "long/events.jsonl"
    for _ in range(3000):
        if events.exists() and "evaluation" in events.read_text():
            break
        time.sleep(0.02)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == code, told
    assert "tad resume long" in told
    assert "Traceback" not in told
    assert not (tmp_path / "long/lock").exists()
    assert folder.events("long")[-1]["event"] == "stop"


def test_a_full_disk_is_told_in_a_line(monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxmarl_tad.folder.Files.begin", full)
    assert main(["run", *GAME, "out=full"]) == 1
    told = capsys.readouterr().err
    assert "No space left" in told
    assert "Traceback" not in told


def test_doctor(capsys, monkeypatch):
    monkeypatch.setattr("jaxmarl_tad.cli.doctor._nvidia", lambda: True)
    monkeypatch.setattr("jaxmarl_tad.cli.doctor._speed", lambda: "exact")
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for name in ("python", "jax", "flax", "devices", "cache"):
        assert name in told
