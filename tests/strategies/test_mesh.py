"""The mesh is compared with counting, for every shape of up to eight ranks."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from stepladder.strategies.mesh import (
    AXES_OF,
    DATA_AXES,
    Axis,
    Joint,
    build_mesh,
    coordinates,
    data_rank,
    data_ranks,
    side_by_side,
)


def shapes(largest: int = 8) -> Iterator[dict[Axis, int]]:
    """Every tuple of degrees with a product of at most `largest`."""
    for degrees in itertools.product(range(1, largest + 1), repeat=len(Axis)):
        if math.prod(degrees) <= largest:
            yield dict(zip(Axis, degrees, strict=True))


def places(degrees: Mapping[Axis, int]) -> list[dict[Axis, int]]:
    """Where each global rank lies, by counting: the last axis varies fastest."""
    counted = itertools.product(*(range(degrees[axis]) for axis in Axis))
    return [dict(zip(Axis, at, strict=True)) for at in counted]


def test_coordinates_and_shares_of_the_data_are_counted_through() -> None:
    seen = 0
    for degrees in shapes():
        at = places(degrees)
        assert [coordinates(rank, degrees) for rank in range(len(at))] == at
        shares = [data_rank(rank, degrees) for rank in range(len(at))]
        assert set(shares) == set(range(data_ranks(degrees)))
        for one, other in itertools.combinations(range(len(at)), 2):
            same_data = all(at[one][axis] == at[other][axis] for axis in DATA_AXES)
            assert (shares[one] == shares[other]) == same_data, (degrees, one, other)
        seen += 1
    assert seen > 100


def neighbours(rank: int, degrees: Mapping[Axis, int], along: tuple[Axis, ...]) -> list[int]:
    """Ranks that differ from `rank` along these axes only."""
    at = places(degrees)
    return [r for r in range(len(at)) if all(at[r][axis] == at[rank][axis] for axis in Axis if axis not in along)]


def wrong_groups() -> tuple[int, list[Any]]:
    """Builds the mesh of every shape as seen from some ranks, without communication; what is not as counted."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.destroy_process_group()
    wrong: list[Any] = []
    seen = 0
    for degrees in shapes():
        size = math.prod(degrees.values())
        for rank in {0, size // 2, size - 1}:
            dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
            mesh = build_mesh("cpu", degrees)
            for name, along in [*((axis, (axis,)) for axis in Axis), *AXES_OF.items()]:
                expected = neighbours(rank, degrees, along)
                group = dist.get_process_group_ranks(mesh[name].get_group())
                if not (group == expected == mesh[name].mesh.tolist()):
                    wrong.append((degrees, rank, name, group, expected))
                seen += 1
            both = side_by_side(mesh, Axis.DP_REPLICATE, Joint.SHARD)
            rows = [neighbours(first, degrees, AXES_OF[Joint.SHARD]) for first in
                    neighbours(rank, degrees, (Axis.DP_REPLICATE,))]  # fmt: skip
            if sorted(map(sorted, both.mesh.tolist())) != sorted(map(sorted, rows)):
                wrong.append((degrees, rank, "side by side", both.mesh.tolist(), rows))
            for dim, name in enumerate((Axis.DP_REPLICATE, Joint.SHARD)):
                if both.get_group(dim).group_name != mesh[name].get_group().group_name:
                    wrong.append((degrees, rank, "another group", name))
            dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return seen, wrong


def test_groups_hold_exactly_the_ranks_that_differ_along_their_axes(run_ranks: Callable[..., Any]) -> None:
    seen, wrong = run_ranks(wrong_groups, 1)
    assert seen > 2000
    assert not wrong


def norms() -> list[tuple[Any, float, float]]:
    """Total norm of tensors on several meshes of four ranks, and the same in one process; each with its case."""
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from stepladder.strategies.norms import total_norm

    degrees = dict.fromkeys(Axis, 1) | {Axis.PP: 2, Axis.DP_SHARD: 2}
    mesh = build_mesh("cpu", degrees)
    stage = coordinates(dist.get_rank(), degrees)[Axis.PP]
    two = side_by_side(mesh, Axis.DP_REPLICATE, Joint.SHARD)
    generator = torch.Generator().manual_seed(5)
    whole = [torch.randn(size, 3, generator=generator) for size in (4, 5, 2, 1, 6, 3)]
    found: list[tuple[Any, float, float]] = []
    for norm_type in (2.0, 1.0, math.inf):
        layouts = [
            ("one mesh", [whole[0], whole[1]], lambda t: [distribute_tensor(x, mesh["shard"], [Shard(0)]) for x in t]),
            (
                "two meshes, and a plain tensor",
                whole[:4],
                lambda t: [
                    distribute_tensor(t[0], mesh["shard"], [Shard(0)]),
                    distribute_tensor(t[1], two, [Replicate(), Shard(0)]),
                    distribute_tensor(t[2], two, [Replicate(), Shard(1)]),
                    t[3],
                ],
            ),
            ("replicas count once", [whole[4]], lambda t: [distribute_tensor(t[0], mesh["shard"], [Replicate()])]),
        ]
        for name, tensors, spread in layouts:
            truth = float(torch.linalg.vector_norm(torch.cat([t.flatten() for t in tensors]), norm_type))
            found.append(((name, norm_type), float(total_norm(spread(tensors), norm_type, None)), truth))
        group = mesh["pp"].get_group()
        parts = [whole[:4], [whole[4]]]
        mine = layouts[1][2](parts[0]) if stage == 0 else layouts[2][2](parts[1])
        truth = float(torch.linalg.vector_norm(torch.cat([t.flatten() for t in whole[:5]]), norm_type))
        found.append((("over stages", norm_type), float(total_norm(mine, norm_type, group)), truth))
        empty = float(total_norm(mine if stage == 0 else [], norm_type, group, torch.device("cpu")))
        truth = float(torch.linalg.vector_norm(torch.cat([t.flatten() for t in whole[:4]]), norm_type))
        found.append((("a stage without parameters", norm_type), empty, truth))
    everybody: list[Any] = [None] * 4
    dist.all_gather_object(everybody, found)
    return [each for one in everybody for each in one]


def test_the_norm_over_layouts_and_stages_is_that_of_one_process(run_ranks: Callable[..., Any]) -> None:
    found = run_ranks(norms, 4)
    assert len(found) == 4 * 3 * 5
    for case, told, truth in found:
        assert abs(told - truth) <= 1e-6 * truth, (case, told, truth)
