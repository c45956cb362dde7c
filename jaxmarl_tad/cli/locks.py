"""Who may write to a run's folder, and which of many programs a process is to do.

The folder is locked by a file ``lock`` in it, which only one process can create. It says who that is.
A lock whose process ended without removing it is *stale*, and is taken over:

* on the same machine, when no process has that number any more, or one that began later has it;
* from another machine, which cannot be asked, when the file has not been touched for ten minutes.
  Its owner touches it every minute.
"""

import contextlib
import json
import os
import pathlib
import platform
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from jaxmarl_tad import folder
from tad_envs import require

_TOUCH_SECONDS, _STALE_SECONDS = 60.0, 600.0
_T = TypeVar("_T")


class Busy(Exception):
    """Another process is writing to the folder."""


def shard(items: Sequence[_T], text: str | None) -> list[_T]:
    """Every n-th of the items from the i-th on, for ``i/n``; all of them for None."""
    if text is None:
        return list(items)
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    inside = found is not None and int(found[1]) < int(found[2])
    require(inside, f"--shard {text} is not valid: expected i/n with i in 0..n-1, such as 0/4.")
    assert found is not None
    return list(items[int(found[1]) :: int(found[2])])


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
    """Be the only process that writes to the folder ``path``, which is made if it is missing.

    Raises :class:`Busy` if another process is, and ``ValueError`` if the folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        _take(path / folder.LOCK)
    except OSError as error:
        raise ValueError(f"out={str(path)!r} cannot be written: {error.strerror}.") from error
    done = threading.Event()
    threading.Thread(target=_touch, args=(path / folder.LOCK, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        with contextlib.suppress(OSError):
            (path / folder.LOCK).unlink()
            path.rmdir()  # left as it was found, where nothing was written


def _take(lock: pathlib.Path) -> None:
    """Create the file, in the place of a stale one if need be."""
    content = json.dumps(_owner() | {"token": uuid.uuid4().hex})
    if _create(lock, content):
        return
    there = _read(lock)
    if not _stale(lock, there):
        raise Busy(_shown(lock, there))
    # Moving it aside can be done once. Was it another's, who had been quicker, it is put back.
    aside = lock.with_name(f"{lock.name}.{uuid.uuid4().hex}")
    try:
        os.rename(lock, aside)
        if _read(aside) != there:
            os.link(aside, lock)
    except OSError as error:
        raise Busy(_shown(lock, _read(lock))) from error
    finally:
        aside.unlink(missing_ok=True)
    if not _create(lock, content):
        raise Busy(_shown(lock, _read(lock)))


def _create(lock: pathlib.Path, content: str) -> bool:
    try:
        number = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(number, "w") as file:
        file.write(content)
    return True


def _read(lock: pathlib.Path) -> dict[str, Any] | None:
    """What the lock says; None if it is gone, or being written."""
    try:
        return json.loads(lock.read_text())
    except (OSError, ValueError):
        return None


def _stale(lock: pathlib.Path, there: dict[str, Any] | None) -> bool:
    if there is not None and there.get("machine") == _machine():
        return there.get("began") != _began(there.get("pid", -1))
    probe = lock.with_name(f"{lock.name}.{uuid.uuid4().hex}")
    probe.touch()  # so that both times are the file server's
    try:
        return probe.stat().st_mtime - lock.stat().st_mtime > _STALE_SECONDS
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _owner() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
        "machine": _machine(),
    }


def _machine() -> str:
    """What all processes that can see each other's numbers share: containers differ in it."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _began(pid: int) -> str | None:
    """When the process began, as the system tells it; None if there is no such process."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        if isinstance(error, ProcessLookupError):
            return None  # any other error says that it exists and is another user's
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "unknown"


def _touch(lock: pathlib.Path, done: threading.Event) -> None:
    while not done.wait(_TOUCH_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(lock)


def _shown(lock: pathlib.Path, there: dict[str, Any] | None) -> str:
    if there is None:
        return f"{lock.parent} is being written by another process"
    age = time.strftime("%H:%M", time.localtime(lock.stat().st_mtime)) if lock.exists() else "now"
    who = f"process {there.get('pid')} on {there.get('host')}"
    return f"{lock.parent} is being written by {who} (seen {age})"
