"""`tad play`: pictures of episodes, and what is refused before any backend is started."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from catalogue import kept
from PIL import Image

import jaxmarl_tad as jt
from jaxmarl_tad import render
from jaxmarl_tad.cli import main
from tad_envs import environments, make
from tad_envs.scene import Drawable, Point, Scene

ROOT = Path(__file__).resolve().parent.parent
MEET = "hallway/meet/lengths=(2,3)"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Every command runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def frames(path):
    """The pictures of a GIF as arrays."""
    with Image.open(path) as image:
        count = image.n_frames
        found = []
        for i in range(count):
            image.seek(i)
            found.append(np.asarray(image.convert("RGB")))
    return found


def test_a_scripted_episode_is_drawn_to_its_end(capsys):
    assert main(["play", MEET, "--policy", "heuristic", "out=made/meet.gif"]) == 0
    told = capsys.readouterr().out
    assert "made/meet.gif" in told
    assert "3 steps, return 10" in told
    pictures = frames("made/meet.gif")
    assert len(pictures) == 4  # the first state too
    assert all((one != other).any() for one, other in itertools.pairwise(pictures))
    blue = np.all(np.abs(pictures[0].astype(int) - [0x1F, 0x5F, 0xA8]) < 24, axis=-1)
    assert blue.mean() > 0.01  # the agents


def test_a_run_in_a_folder_plays(capsys):
    jt.run("ippo", MEET, seeds=2, total_steps=64, envs=8, evaluations=1, episodes=2, out="runs/one")
    assert main(["play", MEET, "--policy", "runs/one", "member=1", "seed=3"]) == 0
    assert "return" in capsys.readouterr().out
    (made,) = Path.cwd().glob("*.gif")
    assert len(frames(made)) >= 2
    assert main(["play", "hallway", "--policy", "runs/one"]) == 2
    assert "hallway" in capsys.readouterr().err
    assert main(["play", MEET, "--policy", "runs/on"]) == 2
    assert "runs/one" in capsys.readouterr().err


def test_the_same_seed_plays_the_same_episode():
    env = make("predator_prey/stag_hunt/size=4/n_agents=2/n_prey=1/horizon=12")
    who = render.actor(env, "random")
    one, other = (render.episode(env, who, jax.random.key(5)) for _ in range(2))
    assert one.rewards == other.rewards
    assert jax.tree.all(jax.tree.map(np.array_equal, one.states, other.states))
    assert len(one.states) == len(one.rewards) + 1 <= 13


MISTAKES = {
    "environment": (["smax/3n"], ["'smax/3n'", "'smax/3m'"]),
    "policy": (["hallway", "--policy", "heurstic"], ["'heurstic'", "'heuristic'"]),
    "no policy": (["hallway", "--policy"], ["--policy"]),
    "no environment": ([], ["tad play smax/3m"]),
    "no picture": (["matrix/climbing"], ["matrix/climbing", "no scene"]),
    "no script": (["mpe/spread", "--policy", "heuristic"], ["mpe/spread", "no heuristic", "random"]),
    "kind of file": (["hallway", "out=x.mp4"], ["x.mp4", ".gif"]),
    "key": (["hallway", "sed=1"], ["'sed'", "'seed'"]),
    "number": (["hallway", "seed=1.0"], ["seed=1.0", "int"]),
    "speed": (["hallway", "fps=0"], ["fps=0"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_leaves_nothing(name, capsys, tmp_path):
    arguments, expected = MISTAKES[name]
    assert main(["play", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert not [part for part in expected if part not in told.err], told.err
    assert list(tmp_path.iterdir()) == []


def test_help_and_mistakes_start_no_backend():
    code = (
        "from jaxmarl_tad.cli import main\n"
        "assert main(['play', '--help']) == 0\n"
        "assert main(['play', 'smax/3m', '--policy', 'heurstic']) == 2\n"
        "import sys\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends\n"
        "assert 'jaxmarl' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    path = f"{ROOT}{os.pathsep}{ROOT / 'envs'}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "tad play ENV" in done.stdout


def test_grids_and_fields_say_what_they_look_like():
    drawn = [name for name in environments() if isinstance(kept(name), Drawable)]
    families = {name.split("/")[0] for name in drawn}
    assert {"lbf", "rware", "mpe", "hallway", "predator_prey", "smax"} <= families
    for name in ("hallway", "mpe/speaker_listener", "predator_prey/qtran", "lbf", "rware"):
        env = make(name)
        scene = env.scene(jax.device_get(env.reset(jax.random.key(0))[0]))
        (left, low), (right, high) = scene.low, scene.high
        assert scene.points
        assert all(left <= p.x <= right and low <= p.y <= high for p in scene.points)


def test_what_is_dead_is_faint_and_health_is_a_bar():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    points = (Point("enemy", 1, 1, "z", value=0.5), Point("agent", 2, 1, alive=False, value=0.0))
    render.draw(axes, Scene((0, 0), (4, 4), points))
    circles = [patch for patch in axes.patches if hasattr(patch, "radius")]
    assert [circle.get_alpha() for circle in circles] == [1.0, 0.2]
    bars = [patch.get_width() for patch in axes.patches if not hasattr(patch, "radius")]
    assert bars == pytest.approx([0.7, 0.35])
