"""The project as a user meets it: the wheel, the locks, the Makefile, and what an import costs."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

from jaxmarl_tad import statistics

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted(ROOT.glob("requirements*.lock"))
LAZY = [
    "jumanji",
    "jaxmarl",
    "wandb",
    "tensorflow_probability",
    "matplotlib",
    "distrax",
    "orbax",
    "rlax",
    "brax",
]


def run(code, *arguments, **kwargs):
    """What a fresh interpreter prints; its error, if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments, "-c", code], capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# --- what is installed ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by the backend of the environment: nothing is fetched."""
    folder = tmp_path_factory.mktemp("dist")
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    run(code, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_both_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        tops = {name.split("/")[0] for name in names}
        (metadata,) = [n for n in names if n.endswith("/METADATA")]
        requires = archive.read(metadata).decode()
    assert {t for t in tops if not t.endswith(".dist-info")} == {"jaxmarl_tad", "tad_envs"}
    assert {"jaxmarl_tad/py.typed", "tad_envs/py.typed"} <= set(names)
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert "Requires-Python: <3.15,>=3.11" in requires
    for folder, package in ((ROOT, "jaxmarl_tad"), (ROOT / "envs", "tad_envs")):
        modules = {str(p.relative_to(folder)) for p in (folder / package).rglob("*.py")}
        assert modules <= set(names)


def test_wheel_imports_from_an_empty_folder(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    # -S leaves the editable install out; the dependencies are put back behind the wheel.
    dependencies = next(p for p in sys.path if Path(p).name == "site-packages")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {dependencies!r}]\n"
        "import jaxmarl_tad, tad_envs\n"
        "print(jaxmarl_tad.__file__, tad_envs.__file__)"
    )
    assert run(code, "-S", "-P", cwd=tmp_path) == [
        str(tmp_path / "jaxmarl_tad" / "__init__.py"),
        str(tmp_path / "tad_envs" / "__init__.py"),
    ]


# --- locks ----------------------------------------------------------------------------------------


def test_there_is_a_lock_for_every_accelerator():
    assert [lock.name for lock in LOCKS] == [
        "requirements-cuda12.lock",
        "requirements-cuda13.lock",
        "requirements-tpu.lock",
        "requirements.lock",
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_lock_is_hashed_and_names_no_index(lock):
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, re.MULTILINE)  # no option, no path
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) > 80
    for block in blocks:
        assert re.match(r"[a-z0-9._-]+(\[[a-z0-9,_-]+\])?==\S+", block), block
        assert "--hash=sha256:" in block, block


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_lock_covers_the_project(lock):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.match(r"[A-Za-z0-9_-]+", line)[0].replace("_", "-").lower() for line in wanted}
    text = lock.read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9._-]+)(?=[=\[])", text, re.MULTILINE))
    assert names <= locked


def test_locks_agree_on_the_version_of_jax():
    pins = {re.search(r"^jax(?:\[.*\])?==(\S+)", k.read_text(), re.MULTILINE)[1] for k in LOCKS}
    assert len(pins) == 1


# --- make -----------------------------------------------------------------------------------------


def test_makefile_has_the_targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):.*##", text, re.MULTILINE))
    wanted = [
        "didactic",
        "test",
        "learn",
        "check",
        "bench",
        "lock",
        "doctor",
        "mutants",
        "clean",
        "venv",
    ]
    assert set(wanted) <= targets


# --- imports --------------------------------------------------------------------------------------

PROBE = f"""
import importlib, pkgutil, sys
import jax._src.xla_bridge as bridge

def probe():
    if bridge.backends_are_initialized():
        print("backend")
    print(*[name for name in {LAZY!r} if name in sys.modules])
"""
EVERYTHING = """
for name in ("jaxmarl_tad", "tad_envs"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
"""


@pytest.mark.parametrize("imports", ["import tad_envs\n", "import jaxmarl_tad\n", EVERYTHING])
def test_importing_starts_no_backend_and_stays_light(imports):
    assert run(PROBE + imports + "probe()", cwd=ROOT / "envs", env=None) == []


def test_games_import_without_the_library():
    code = "import sys, tad_envs; print('jaxmarl_tad' in sys.modules)"
    assert run(code, cwd=ROOT / "envs") == ["False"]


def test_annotations_are_checked_while_tests_run():
    with pytest.raises(TypeCheckError):
        statistics.wilson("three", 4)  # pyright: ignore
    assert statistics.wilson(3, 4, confidence=0.5) == statistics.wilson(3, 4, 0.5)
