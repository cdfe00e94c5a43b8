"""The axes along which ranks work together, and how many ranks lie along each."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING

from .limits import PositiveInt

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Axis(StrEnum):
    """A mesh axis, outermost first: neighbours along the last axis have neighbouring global ranks."""

    DP_REPLICATE = "dp_replicate"
    """Ranks that hold equal copies of the parameters and see other data."""
    DP_SHARD = "dp_shard"
    """Ranks that share one copy of the parameters, each a part, and see other data."""


DATA_AXES = (Axis.DP_REPLICATE, Axis.DP_SHARD)
"""The axes whose ranks see different samples."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Degrees of the axes. The one that is left out and owned by a strategy takes the ranks that remain."""

    dp_replicate: PositiveInt | None = None
    """Ranks with equal copies (DDP)."""
    dp_shard: PositiveInt | None = None
    """Ranks that share one copy (FSDP2)."""

    def given(self) -> dict[Axis, int]:
        """The degrees that the recipe states."""
        return {Axis(f.name): getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def required_ranks(self, owned: Collection[Axis]) -> int | None:
        """World size that the stated degrees need, or None if an owned axis is free to take any number."""
        given = self.given()
        if any(axis not in given for axis in owned):
            return None
        return math.prod(given.values()) if given else None


def resolve_degrees(mesh: MeshConfig, world_size: int, owned: Collection[Axis]) -> tuple[dict[Axis, int], list[str]]:
    """Degree of every axis for a world, and every reason why there is none.

    An axis that the recipe leaves out has degree 1, but for the first free one with an owner: it takes what remains.
    """
    given = mesh.given()
    stated = math.prod(given.values())
    free = [axis for axis in Axis if axis in owned and axis not in given]
    degrees = {axis: given.get(axis, 1) for axis in Axis}
    said = " x ".join(f"mesh.{axis} = {degree}" for axis, degree in given.items()) or "mesh"
    problems: list[str] = []
    if free and world_size % stated == 0:
        degrees[free[0]] = world_size // stated
    elif free:
        problems.append(f"{said}: {world_size} ranks cannot be divided by {stated}; start a multiple of {stated} ranks")
    elif given and stated != world_size:
        problems.append(
            f"{said}: needs {stated} ranks, but {world_size} are started; change the degrees or start {stated} ranks"
        )
    elif not given and world_size > 1:
        problems.append(
            f"mesh: {world_size} ranks are started, but no active strategy owns a data-parallel axis; "
            f"add strategies.ddp = {{}} or strategies.fsdp2 = {{}}, or start 1 rank"
        )
    for axis, degree in degrees.items():
        if degree > 1 and axis not in owned and not problems:
            problems.append(f"mesh.{axis} = {degree}: no active strategy owns this axis, {_remedy(axis)}")
    return degrees, problems


def _remedy(axis: Axis) -> str:
    name = {Axis.DP_REPLICATE: "ddp", Axis.DP_SHARD: "fsdp2"}[axis]
    return f"so its ranks would drift apart; add strategies.{name} = {{}} or set the degree to 1"


def data_ranks(degrees: Mapping[Axis, int]) -> int:
    """Number of ranks that see different samples."""
    return math.prod(degrees[axis] for axis in DATA_AXES)


def build_mesh(device_type: str, degrees: Mapping[Axis, int]) -> "DeviceMesh":
    """The device mesh of all axes, in the natural order of the global ranks; the process group must exist."""
    from torch.distributed.device_mesh import init_device_mesh

    axes = list(Axis)
    return init_device_mesh(device_type, tuple(degrees[axis] for axis in axes), mesh_dim_names=tuple(axes))
