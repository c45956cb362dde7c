"""What this machine offers, and whether jax can use it."""

import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time


def examine() -> str:
    """Versions, devices, cache and speed, one line each."""
    import flax
    import jax

    from jaxmarl_tad import __name__ as package

    lines = [
        ("python", f"{platform.python_version()}  {sys.executable}"),
        (package, _version(package)),
        ("jax", f"{jax.__version__}   flax {flax.__version__}"),
        ("machine", f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"),
        ("devices", ", ".join(f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices())),
        ("cache", _cache()),
        ("matmul", _speed()),
    ]
    texts = [f"{name:<12}{text}" for name, text in lines]
    if jax.default_backend() == "cpu" and _nvidia():
        texts.append("There is an NVIDIA GPU, but this jax runs on the CPU: ACCEL=cuda13 make venv")
    return "\n".join(texts)


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cache() -> str:
    """Where compiled programs are kept, and how much there is."""
    from jaxmarl_tad.programs import use_compilation_cache

    executables = use_compilation_cache()
    if executables is None:
        return "off: programs are compiled anew in every process"
    there = executables.parent
    if not there.is_dir():
        return f"{there}  empty"
    sizes = [_size(pathlib.Path(root) / f) for root, _, files in os.walk(there) for f in files]
    return f"{there}  {len(sizes)} files, {sum(sizes) / 1e6:.0f} MB"


def _size(file: pathlib.Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # another process has removed it
        return 0


def _speed(seconds: float = 1.0) -> str:
    """Products of two large matrices: whether they are right, and how many operations a second."""
    import jax
    import jax.numpy as jnp

    size = 1024
    x = jnp.ones((size, size))
    product = jax.jit(lambda x: x @ x)
    exact = bool((product(x) == size).all())
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        product(x).block_until_ready()
        count += 1
    rate = count * 2 * size**3 / (time.perf_counter() - began) / 1e9
    return f"{'exact' if exact else 'WRONG'}, {rate:.0f} GFLOP/s"


def _nvidia() -> bool:
    """Whether there is an NVIDIA GPU that its driver can see."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    done = subprocess.run([program, "-L"], capture_output=True, check=False, timeout=30)
    return done.returncode == 0 and b"GPU" in done.stdout
