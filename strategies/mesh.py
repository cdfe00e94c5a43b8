"""The axes along which ranks work together, and how many ranks lie along each."""

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING

from .limits import PositiveInt

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Axis(StrEnum):
    """A mesh axis, outermost first: neighbours along the last axis have neighbouring global ranks."""

    PP = "pp"
    """Ranks that hold consecutive layers and hand activations on."""
    DP_REPLICATE = "dp_replicate"
    """Ranks that hold equal copies of the parameters and see other data."""
    DP_SHARD = "dp_shard"
    """Ranks that share one copy of the parameters, each a part, and see other data."""
    CP = "cp"
    """Ranks that see parts of the same sequences."""
    EP = "ep"
    """Ranks that hold other experts and see other data; all else is shared as along dp_shard."""
    TP = "tp"
    """Ranks that hold slices of every matrix and see the same data."""


class Joint(StrEnum):
    """Neighbouring axes that serve as one."""

    SHARD = "shard"
    """All ranks that share one copy of a dense parameter: dp_shard x cp x ep."""
    EXPERT_SHARD = "expert_shard"
    """All ranks that share one copy of an expert: dp_shard x cp."""
    REDUCE = "reduce"
    """All ranks whose gradients of a dense parameter are summed: dp_replicate x dp_shard x cp x ep."""


AXES_OF = {
    Joint.SHARD: (Axis.DP_SHARD, Axis.CP, Axis.EP),
    Joint.EXPERT_SHARD: (Axis.DP_SHARD, Axis.CP),
    Joint.REDUCE: (Axis.DP_REPLICATE, Axis.DP_SHARD, Axis.CP, Axis.EP),
}
DATA_AXES = (Axis.DP_REPLICATE, Axis.DP_SHARD, Axis.EP)
"""The axes whose ranks see different samples."""
_TAKES_THE_REST = (Axis.DP_SHARD, Axis.DP_REPLICATE)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Degrees of the axes. A data-parallel one that is left out and owned by a strategy takes the ranks that remain."""

    pp: PositiveInt | None = None
    """Pipeline stages of ranks (pp)."""
    dp_replicate: PositiveInt | None = None
    """Ranks with equal copies (ddp, or fsdp2 as HSDP)."""
    dp_shard: PositiveInt | None = None
    """Ranks that share one copy (fsdp2)."""
    cp: PositiveInt | None = None
    """Ranks that share a sequence (cp)."""
    ep: PositiveInt | None = None
    """Ranks that share the experts (ep); of all else, dp_shard x cp x ep ranks share one copy."""
    tp: PositiveInt | None = None
    """Ranks that share every matrix (tp)."""

    def given(self) -> dict[Axis, int]:
        """The degrees that the recipe states."""
        return {Axis(f.name): getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @property
    def least_ranks(self) -> int:
        """World size that the stated degrees need, if no other axis is longer than 1."""
        return math.prod(self.given().values())

    def required_ranks(self, owned: Collection[Axis]) -> int | None:
        """World size that the stated degrees need, or None if an owned axis is free to take any number."""
        given = self.given()
        if any(axis in owned and axis not in given for axis in _TAKES_THE_REST):
            return None
        return self.least_ranks if given else None


def resolve_degrees(mesh: MeshConfig, world_size: int, owned: Collection[Axis]) -> tuple[dict[Axis, int], list[str]]:
    """Degree of every axis for a world, and every reason why there is none.

    An axis that the recipe leaves out has degree 1, but for dp_shard, or else dp_replicate, if it has an owner: it
    takes what remains.
    """
    given = mesh.given()
    stated = math.prod(given.values())
    free = [axis for axis in _TAKES_THE_REST if axis in owned and axis not in given]
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
    name = {Axis.DP_REPLICATE: "ddp", Axis.DP_SHARD: "fsdp2"}.get(axis, str(axis))
    return f"so its ranks would drift apart; add strategies.{name} = {{}} or set the degree to 1"


def data_ranks(degrees: Mapping[Axis, int]) -> int:
    """Number of ranks that see different samples."""
    return math.prod(degrees[axis] for axis in DATA_AXES)


def coordinates(rank: int, degrees: Mapping[Axis, int]) -> dict[Axis, int]:
    """Where a global rank lies along each axis: the last axis varies fastest."""
    found: dict[Axis, int] = {}
    for axis in reversed(Axis):
        rank, found[axis] = divmod(rank, degrees[axis])
    return {axis: found[axis] for axis in Axis}


def data_rank(rank: int, degrees: Mapping[Axis, int]) -> int:
    """Which of the `data_ranks` shares of the samples a global rank sees."""
    at, place = coordinates(rank, degrees), 0
    for axis in DATA_AXES:
        place = place * degrees[axis] + at[axis]
    return place


def build_mesh(device_type: str, degrees: Mapping[Axis, int]) -> "DeviceMesh":
    """The device mesh of all axes and joints, in the natural order of the global ranks; the process group must exist.

    A part is had by its name: `mesh["tp"]`, `mesh["shard"]`.
    """
    from torch.distributed.device_mesh import init_device_mesh

    axes = list(Axis)
    # Torch means to end the slicing of joints some day, and says so to users, who can do nothing about it.
    warnings.filterwarnings("ignore", message="Slicing a flattened dim", module="torch")
    mesh = init_device_mesh(device_type, tuple(degrees[axis] for axis in axes), mesh_dim_names=tuple(axes))
    for joint, joined in AXES_OF.items():
        mesh[tuple(joined)]._flatten(str(joint))  # pyright: ignore[reportPrivateUsage]
    return mesh


def side_by_side(mesh: "DeviceMesh", *names: str) -> "DeviceMesh":
    """One mesh with the named parts as its dimensions, outermost first: `("dp_replicate", "shard")` for HSDP."""
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh._concatenate([mesh[name] for name in names])  # pyright: ignore[reportPrivateUsage]
