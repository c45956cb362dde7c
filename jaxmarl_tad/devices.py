"""How the members of a sweep, or the environments of one run, lie on the devices.

Members need nothing of one another, so by default they are spread over all devices of all processes
without any communication. ``shard="envs"`` spreads the environments of each run instead: every device
collects and learns from its part of the batch, and the compiler sums the gradients.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmarl_tad.config import require
from jaxmarl_tad.rollout import ENVS
from tad_envs.struct import held_once

Shard = Literal["members", "envs"]
MEMBERS = "members"


def layout(members: int, envs: int, shard: Shard = "members") -> Mesh | None:
    """The mesh ``[members, envs]`` for a run of these sizes; None where one device does it all.

    As many devices are used as divide what is spread. What is left over of them is idle.
    """
    require(
        shard in (MEMBERS, ENVS),
        f"shard={shard!r} is not valid; expected 'members' or 'envs'.",
    )
    devices = np.asarray(jax.devices())
    first = _most(members if shard == MEMBERS else envs, len(devices))
    if jax.process_count() > 1:
        require(
            first == len(devices),
            f"{len(devices)} devices of {jax.process_count()} processes must divide the {shard}; "
            f"{members if shard == MEMBERS else envs} {shard} would use {first} of them.",
        )
    if first == 1:
        return None
    shape = (first, 1) if shard == MEMBERS else (1, first)
    return Mesh(devices[:first].reshape(shape), (MEMBERS, ENVS), axis_types=(AxisType.Auto,) * 2)


def axes(members: Any) -> Any:
    """The axis of members in each part of ``members``: 0, or None for what is held once.

    Parts are told apart by the named tuples that hold them, so this is what ``vmap`` takes.
    """
    if held_once(members):
        return None
    if isinstance(members, tuple) and hasattr(members, "_fields"):
        return type(members)(*map(axes, members))
    return 0


def parts(each: Callable[[Any], Any], once: Callable[[Any], Any], *members: Any) -> Any:
    """``each`` of the parts with an axis of members, ``once`` of those without."""

    def apply(axis: int | None, *part: Any) -> Any:
        return once(*part) if axis is None else each(*part)

    return jax.tree.map(apply, axes(members[0]), *members, is_leaf=lambda axis: axis is None)


def pick(members: Any, index: int) -> Any:
    """One member of leaves ``[M, ...]``."""
    return parts(lambda part: jax.tree.map(lambda x: x[index], part), lambda part: part, members)


def place(members: Any, mesh: Mesh | None) -> Any:
    """Put leaves ``[M, ...]`` on the devices, members spread over the mesh."""
    if mesh is None:
        return jax.device_put(members)

    def put(x: Any, spread: bool) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return x
        x = np.asarray(x)
        sharding = by_member(mesh) if spread and x.ndim else everywhere(mesh)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return parts(
        lambda part: jax.tree.map(lambda x: put(x, True), part),
        lambda part: jax.tree.map(lambda x: put(x, False), part),
        members,
    )


def host(x: Any) -> np.ndarray:
    """The whole array in this process's memory, whoever holds its parts."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental import multihost_utils

        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def agreed(value: bool) -> bool:
    """What the first process says, in every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def by_member(mesh: Mesh) -> NamedSharding:
    """Leaves ``[M, ...]``, members spread over the mesh."""
    return NamedSharding(mesh, PartitionSpec(MEMBERS))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _most(parts: int, devices: int) -> int:
    """The largest number of devices that divides ``parts``."""
    return max(count for count in range(1, devices + 1) if parts % count == 0)
