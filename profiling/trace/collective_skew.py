"""The same collective on several ranks: who came late, who waited for whom, and what the transfer itself took.

A kernel of a collective starts when its rank arrives and ends when all are served. So the shortest of a collective's
kernels is that of the rank that came last, and all transfer; the others spent the difference waiting.

[Note: clocks] Ranks on several machines do not share a clock. No rank leaves an all-reduce, all-gather, reduce-scatter
or all-to-all before the last has come, so their ends lie within microseconds of each other, and the median difference
of two ranks' ends is the difference of their clocks, whatever single collectives do. Ranks without a common group are
compared through others, by way of the pairs with the most collectives.
"""

import heapq
from collections import defaultdict

import polars as pl

from .collective_sizes import PAIRWISE, SYMMETRIC, Collective, ranks_of

_SAME_SIZE = (Collective.ALL_REDUCE, Collective.ALL_GATHER, Collective.REDUCE_SCATTER)
_GROUP = ["group", "ranks"]
_KEY = [*_GROUP, "lane", "place", "nth"]


def matched(rows: pl.DataFrame, *, all_read: bool = True) -> pl.DataFrame:
    """Collectives seen on more than one rank: the rows of `collectives` with `rank`, and what follows from comparing.

    Adds `collective` (the same number on all ranks), `num_ranks`, `is_whole` (whether these are all of its group; where
    the group's size is not told, `all_read`: whether all ranks of the job are here), `offset_ns` (this rank's clock
    minus that of the lowest rank it can be compared with), `late_ns` (its start after the earliest here),
    `transfer_ns` (the shortest of its kernels), `wait_ns` (the rest of this one), `is_last`, and `cost_ns`: on the last
    rank, how much earlier all would have begun with it in time, which is up to the one before it; 0 on others. What
    would be false if a rank that is not here came last is null, and nobody is last, unless it is whole. Matched by
    group and sequence number; else by type and order within a step, and within the whole trace if the ranks' steps
    differ.
    """
    same = _together(rows)
    same = same.join(clock_offsets(same).select("rank", "offset_ns"), on="rank", how="left", maintain_order="left")
    start = pl.col("ts") - pl.col("offset_ns")
    over = "collective"
    same = same.with_columns(
        num_ranks=pl.len().over(over).cast(pl.Int64),
        late_ns=start - start.min().over(over),
    )
    pairwise = pl.col("type").is_in([kind.value for kind in PAIRWISE])
    enough = pl.col("num_ranks") >= pl.col("size").max().over(over)
    same = same.with_columns(is_whole=pairwise | enough.fill_null(all_read))
    same = same.with_columns(
        transfer_ns=pl.when("is_whole").then(pl.col("dur_ns").min().over(over)),
        is_last=pl.col("is_whole") & (pl.col("late_ns").rank("ordinal", descending=True).over(over) == 1),
    )
    second = pl.col("late_ns").filter(~pl.col("is_last")).max().over(over)
    cost = pl.when("is_last").then(pl.col("late_ns") - second).otherwise(0).cast(pl.Int64)
    same = same.with_columns(wait_ns=pl.col("dur_ns") - pl.col("transfer_ns"), cost_ns=pl.when("is_whole").then(cost))
    return same.sort("collective", "rank").drop("lane", "place", "nth")


def _together(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with `collective`; without pairs that cannot be one, because of their sizes or of their times."""
    keyed = _keyed(rows)
    once = keyed.filter(pl.len().over([*_KEY, "rank"]) == 1)
    sizes = pl.col("message_bytes").drop_nulls().n_unique().over(_KEY)
    fits = (sizes <= 1) | ~pl.col("type").is_in([kind.value for kind in _SAME_SIZE])
    same = once.filter((pl.col("rank").n_unique().over(_KEY) > 1) & fits)
    number = pl.struct(_KEY).rank("dense").cast(pl.Int64) - 1
    same = same.with_columns(collective=number if len(same) else pl.lit(None, dtype=pl.Int64))
    # One rank cannot have left a collective when another enters it; where traces were cut, order alone pairs such.
    timed = same.join(clock_offsets(same), on="rank", how="left", maintain_order="left")
    start = pl.col("ts") - pl.col("offset_ns")
    meets = start.max().over("collective") < (start + pl.col("dur_ns")).min().over("collective")
    possible = timed.select(meets | ~pl.col("type").is_in([kind.value for kind in SYMMETRIC])).to_series()
    return same.filter(possible)


def _keyed(rows: pl.DataFrame) -> pl.DataFrame:
    """With what is equal on all ranks that take part: lane, place, nth."""
    rows = rows.filter(pl.col("type") != Collective.OTHER.value)
    pairwise = pl.col("type").is_in([kind.value for kind in PAIRWISE])
    lanes = [
        _lane(kind, rank, ranks) for kind, rank, ranks in zip(rows["type"], rows["rank"], rows["ranks"], strict=True)
    ]
    rows = rows.with_columns(pl.Series("lane", lanes, dtype=pl.String)).filter(pl.col("lane").is_not_null())
    steps = rows.group_by("rank").agg(pl.col("step").unique().sort()).select(pl.col("step").n_unique()).item()
    numbered = (pl.col("seq").min().over(_GROUP) >= 0) & ~pl.col("seq").is_null()
    by_step = pl.col("step").is_not_null() & pl.lit(steps == 1)
    at_the_end = pl.col("step_order") - pl.len().over(["rank", *_GROUP, "type", "step"])
    nth = pl.int_range(pl.len()).over(["rank", *_GROUP, "lane", "seq"])
    order = pl.int_range(pl.len()).over(["rank", *_GROUP, "lane"])
    return rows.with_columns(
        place=pl.when(numbered).then("seq").when(by_step).then("step").otherwise(-2).cast(pl.Int64),
        nth=pl.when(numbered)
        .then(nth)
        .when(~by_step | pairwise)
        .then(order)
        .when(pl.col("step") < 0)  # what was launched before the first step is cut off at its beginning
        .then(at_the_end)
        .otherwise("step_order")
        .cast(pl.Int64),
    )


def _lane(kind: str, rank: int, ranks: str) -> str | None:
    """What a kernel can be matched with: its type; of sends and receives their source, if it can be told."""
    if kind not in PAIRWISE:
        return kind
    pair = ranks_of(ranks)
    if pair is None or len(pair) != 2 or rank not in pair:
        return None
    if kind == Collective.SEND_RECV:
        return kind
    return f"from {rank if kind == Collective.SEND else pair[1 - pair.index(rank)]}"


def clock_offsets(same: pl.DataFrame) -> pl.DataFrame:
    """Clocks of the ranks in `matched`: rank, offset_ns, spread_ns, num_collectives, compared_with.

    `offset_ns` is this clock minus that of `compared_with`, the lowest rank that it can be compared with; `spread_ns`
    the median distance of single collectives from it: what the comparison may be wrong by.
    """
    ends = same.filter(pl.col("type").is_in([kind.value for kind in SYMMETRIC]))
    ends = ends.with_columns(end=pl.col("ts") + pl.col("dur_ns"))
    base = pl.col("rank") == pl.col("rank").min().over(_GROUP)
    first = ends.filter(base).select("collective", base="rank", base_end="end")
    apart = ends.filter(~base).join(first, on="collective").with_columns(apart=pl.col("end") - pl.col("base_end"))
    edges = apart.group_by("base", "rank", maintain_order=True).agg(
        offset=pl.col("apart").median().round().cast(pl.Int64),
        spread=(pl.col("apart") - pl.col("apart").median()).abs().median().cast(pl.Int64),
        count=pl.len().cast(pl.Int64),
    )
    around: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)
    for one, other, offset, spread, count in edges.iter_rows():
        around[one].append((count, other, offset, spread))
        around[other].append((count, one, -offset, spread))
    found: dict[int, tuple[int, int, int, int]] = {}
    for root in sorted(same["rank"].unique().to_list()):
        if root in found:
            continue
        heap = [(0, root, 0, 0)]
        while heap:
            count, rank, offset, spread = heapq.heappop(heap)
            if rank in found:
                continue
            found[rank] = (offset, spread, -count, root)
            for more, other, step, width in around[rank]:
                if other not in found:
                    heapq.heappush(heap, (-more, other, offset + step, spread + width))
    names = ["rank", "offset_ns", "spread_ns", "num_collectives", "compared_with"]
    columns = [[rank, *row] for rank, row in sorted(found.items())]
    table = pl.DataFrame(columns, schema=[(name, pl.Int64) for name in names], orient="row")
    return table.with_columns(pl.col("rank").cast(same.schema["rank"]))


def by_collective(same: pl.DataFrame) -> pl.DataFrame:
    """One row a collective of `matched`: its skew, transfer, waits and the rank that came last; the costliest first.

    `wait_ns` and `exposed_ns` are means over the ranks; `skew_ns` is the last start minus the first, of those here.
    `bus_gb_s` is what the transfer alone reached. Without all ranks of the group it is null, as are transfer_ns,
    wait_ns, last_rank and cost_ns.
    """
    table = same.group_by("collective", maintain_order=True).agg(
        pl.col("group", "ranks", "type", "step", "size", "num_ranks", "is_whole", "link_gb_s", "transfer_ns").first(),
        pl.col("message_bytes", "bus_bytes").max(),
        skew_ns=pl.col("late_ns").max(),
        wait_ns=pl.col("wait_ns").mean().cast(pl.Int64),
        exposed_ns=pl.col("exposed_ns").mean().cast(pl.Int64),
        last_rank=pl.col("rank").filter("is_last").first(),
        cost_ns=pl.col("cost_ns").max(),
    )
    rate = pl.when(pl.col("transfer_ns") > 0).then(pl.col("bus_bytes") / pl.col("transfer_ns"))
    return table.with_columns(bus_gb_s=rate).sort("wait_ns", descending=True, nulls_last=True, maintain_order=True)


def by_rank(same: pl.DataFrame) -> pl.DataFrame:
    """One row a rank of `matched`: how often it came last and what that cost, and what it waited for others.

    Of `count` collectives; num_last, cost_ns, wait_ns and transfer_ns are those of the `num_whole` whose ranks are all
    here.
    """
    return (
        same.group_by("rank")
        .agg(
            count=pl.len(),
            num_whole=pl.col("is_whole").sum(),
            num_last=pl.col("is_last").sum(),
            mean_late_ns=pl.col("late_ns").mean().cast(pl.Int64),
            cost_ns=pl.col("cost_ns").sum(),
            wait_ns=pl.col("wait_ns").sum(),
            transfer_ns=pl.col("transfer_ns").sum(),
            exposed_ns=pl.col("exposed_ns").sum(),
            offset_ns=pl.col("offset_ns").first(),
        )
        .sort("rank")
    )
