"""What made the step of one run longer or shorter than that of another; the parts add up exactly to the whole.

Both runs are given as `attribute` returns them: one frame, or those of several ranks under each other with `rank`. The
step time of a run is the mean over its windows (steps, ranks, devices), rounded down to a nanosecond. Each row's share
of it is rounded so that the running sum is right: a share is off by less than a nanosecond, their sum not at all.

Kernels are matched by the first of these that finds a partner; what is left was added or removed:

1. `name`: the same name, in the same phase, launched by the same operator on the same shapes; then on any shapes.
2. `normal form`: likewise, without sizes, types, architectures and hashes of a build (`kernel_names`).
3. `operator`: whatever the same operator launches on the same shapes, then on any, in the order in which it runs.
4. `name elsewhere`, `normal form elsewhere`: the same kernel, launched by another operator or in another phase.
5. `similar`: at least half of the words in both names are common.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from .kernel_names import normal_form, similarity, words_of

_SIDES = ("before", "after")
_KERNEL_PARTS = ("compute", "communication", "memory")
_LEVELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("name", ("part", "phase", "name", "operator", "shapes")),
    ("name", ("part", "phase", "name", "operator")),
    ("normal form", ("part", "phase", "normal", "operator", "shapes")),
    ("normal form", ("part", "phase", "normal", "operator")),
    ("operator", ("part", "phase", "operator", "shapes")),
    ("operator", ("part", "phase", "operator")),
    ("name elsewhere", ("part", "name")),
    ("normal form elsewhere", ("part", "normal")),
)
_MIN_SIMILARITY = 0.5
_MAX_COMPARED = 500
"""Kernels without a partner, on each side, whose names are compared with each other; the longest ones."""


def difference(
    before: pl.DataFrame, after: pl.DataFrame, *, tolerance: float = 0.02, matched: bool = True
) -> pl.DataFrame:
    """One row for each pair of kernels, added or removed kernel, and reason to be idle, by the size of the change.

    Columns: phase, part, name_before, name_after, operator, matched_by, verdict; for both sides count (in a step),
    busy_ns (of one kernel, on average) and step_ns (its share of the step); change_ns, which is by_count_ns +
    by_duration_ns. `verdict`: added, removed, more often, less often, slower, faster, same; for idle times longer,
    shorter. Changes of up to `tolerance` of a count or a duration are none. Not `matched`, no kernel has a partner: for
    runs of which one has a device and one has none.
    """
    sides = [_per_step(frame) for frame in (before, after)]
    pairs = _matched(sides[0], sides[1], _LEVELS if matched else ())
    table = pairs
    for side, frame in zip(_SIDES, sides, strict=True):
        columns = frame.select(pl.all().name.suffix(f"_{side}"))
        table = table.join(columns, on=f"place_{side}", how="left", nulls_equal=False, maintain_order="left")
    table = table.with_columns(pl.col("count_before", "count_after").fill_null(0.0))
    table = table.with_columns(pl.col("step_ns_before", "step_ns_after").fill_null(0))
    change = pl.col("step_ns_after") - pl.col("step_ns_before")
    table = table.with_columns(
        pl.coalesce("phase_after", "phase_before").alias("phase"),
        pl.coalesce("part_after", "part_before").alias("part"),
        pl.coalesce("operator_after", "operator_before").alias("operator"),
        change_ns=change,
        verdict=_verdict(tolerance),
    )
    more = pl.col("count_after") - pl.col("count_before")
    by_count = (
        pl.when(pl.col("verdict").is_in(["added", "removed"]))
        .then(change)
        .when((pl.col("count_before") > 0) & (pl.col("count_after") > 0))
        .then((more * pl.col("step_ns_before") / pl.col("count_before")).round().cast(pl.Int64))
        .otherwise(0)
    )
    table = table.with_columns(by_count_ns=by_count).with_columns(by_duration_ns=change - pl.col("by_count_ns"))
    kept = ["phase", "part", "name_before", "name_after", "operator", "matched_by", "verdict"]
    kept += [f"{column}_{side}" for column in ("count", "busy_ns", "step_ns") for side in _SIDES]
    kept += ["change_ns", "by_count_ns", "by_duration_ns"]
    return table.sort(pl.col("change_ns").abs(), "part", "phase", descending=[True, False, False]).select(kept)


def by_rank(before: pl.DataFrame, after: pl.DataFrame, *, tolerance: float = 0.02) -> pl.DataFrame:
    """`difference` of each rank that both runs have, with a column `rank`."""
    ranks = sorted(set(before["rank"].unique()) & set(after["rank"].unique()))
    parts = [
        difference(before.filter(pl.col("rank") == rank), after.filter(pl.col("rank") == rank), tolerance=tolerance)
        .with_columns(rank=pl.lit(rank, pl.Int64))
        .select("rank", pl.exclude("rank"))
        for rank in ranks
    ]
    if parts:
        return pl.concat(parts)
    return (
        difference(before.clear(), after.clear())
        .with_columns(rank=pl.lit(0, pl.Int64))
        .select("rank", pl.exclude("rank"))
    )


def summed(table: pl.DataFrame, keys: Sequence[str] = ("part",)) -> pl.DataFrame:
    """The rows of `difference` by phase, part, verdict, or several of these: step_ns_before, step_ns_after, change_ns.

    Without keys it is the whole: the two step times.
    """
    columns = pl.col("step_ns_before", "step_ns_after", "change_ns").sum()
    if not keys:
        return table.select(columns)
    return (
        table.group_by(*keys)
        .agg(columns)
        .sort(pl.col("change_ns").abs(), *keys, descending=[True] + [False] * len(keys))
    )


def _per_step(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of a run, of all its ranks together, for one step."""
    keys = ["phase", "part", "name", "operator", "shapes"]
    if "rank" in frame.columns:
        num_windows = frame.group_by("rank").agg(pl.col("num_windows").first())["num_windows"].sum()
    else:
        num_windows = frame["num_windows"][0] if frame.height else 0
    table = frame.group_by(keys).agg(pl.col("count", "busy_ns", "owned_ns").sum(), pl.col("position").mean()).sort(keys)
    reached = table["owned_ns"].cum_sum().to_numpy() // max(1, num_windows)
    return table.select(
        *keys,
        "position",
        normal=pl.col("name").map_elements(normal_form, return_dtype=pl.String),
        count=pl.col("count") / max(1, num_windows),
        busy_ns=pl.when(pl.col("count") > 0).then((pl.col("busy_ns") / pl.col("count")).round().cast(pl.Int64)),
        step_ns=pl.Series(np.diff(reached, prepend=0), dtype=pl.Int64),
    ).with_row_index("place")


def _matched(before: pl.DataFrame, after: pl.DataFrame, levels: Sequence[tuple[str, tuple[str, ...]]]) -> pl.DataFrame:
    """Pairs of places, and how they were found; null where there is no partner."""
    pairs: list[pl.DataFrame] = []
    rest = [frame.filter(pl.col("part").is_in(_KERNEL_PARTS)) for frame in (before, after)]
    for label, keys in levels:
        there = [frame.filter(pl.col("operator") != "") if label == "operator" else frame for frame in rest]
        sides = [
            _numbered(frame, keys).rename({"place": f"place_{side}"}) for side, frame in zip(_SIDES, there, strict=True)
        ]
        found = (
            sides[0].join(sides[1], on=[*keys, "turn"]).select("place_before", "place_after", matched_by=pl.lit(label))
        )
        pairs.append(found)
        rest = [
            frame.filter(~pl.col("place").is_in(found[f"place_{side}"].implode()))
            for side, frame in zip(_SIDES, rest, strict=True)
        ]
    pairs.append(_similar(*(rest if levels else (frame.clear() for frame in rest))))
    rest = [
        frame.filter(~pl.col("place").is_in(pairs[-1][f"place_{side}"].implode()))
        for side, frame in zip(_SIDES, rest, strict=True)
    ]
    keys = ["part", "phase", "name"]
    empty = [
        frame.filter(~pl.col("part").is_in(_KERNEL_PARTS)).select(*keys, pl.col("place").alias(f"place_{side}"))
        for side, frame in zip(_SIDES, (before, after), strict=True)
    ]
    pairs.append(empty[0].join(empty[1], on=keys, how="full").select("place_before", "place_after"))
    pairs += [frame.select(pl.col("place").alias(f"place_{side}")) for side, frame in zip(_SIDES, rest, strict=True)]
    return pl.concat(pairs, how="diagonal")


def _numbered(frame: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Rows with the turn that each has among those of the same key, by when they run."""
    turn = pl.int_range(pl.len()).over(keys)
    return frame.sort("position", "place", nulls_last=True).with_columns(turn=turn).select(*keys, "turn", "place")


def _similar(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Pairs of kernels of one part whose names have half of their words in common, the most similar first."""
    candidates: list[tuple[float, bool, int, int]] = []
    compared = [frame.sort("step_ns", descending=True).head(_MAX_COMPARED) for frame in (before, after)]
    rows = [frame.select("place", "part", "phase", "name").rows() for frame in compared]
    words = {name: words_of(name) for side in rows for *_, name in side}
    for place, part, phase, name in rows[0]:
        for other, other_part, other_phase, other_name in rows[1]:
            if part == other_part:
                alike = similarity(words[name], words[other_name])
                if alike >= _MIN_SIMILARITY:
                    candidates.append((-alike, phase != other_phase, place, other))
    found: dict[int, int] = {}
    taken: set[int] = set()
    for *_, place, other in sorted(candidates):
        if place not in found and other not in taken:
            found[place] = other
            taken.add(other)
    return pl.DataFrame(
        {"place_before": list(found), "place_after": list(found.values()), "matched_by": ["similar"] * len(found)},
        schema={"place_before": pl.UInt32, "place_after": pl.UInt32, "matched_by": pl.String},
    )


def _verdict(tolerance: float) -> pl.Expr:
    """What happened to a kernel, in a word or two."""
    counts = pl.col("count_after") / pl.col("count_before")
    durations = pl.col("busy_ns_after") / pl.col("busy_ns_before")
    kernel = pl.coalesce("part_after", "part_before").is_in(_KERNEL_PARTS)
    more = pl.col("step_ns_after") - pl.col("step_ns_before")
    least = tolerance * pl.max_horizontal("step_ns_before", "step_ns_after")
    return (
        pl.when(~kernel & (more.abs() <= least))
        .then(pl.lit("same"))
        .when(~kernel)
        .then(pl.when(more > 0).then(pl.lit("longer")).otherwise(pl.lit("shorter")))
        .when(pl.col("place_before").is_null())
        .then(pl.lit("added"))
        .when(pl.col("place_after").is_null())
        .then(pl.lit("removed"))
        .when(counts > 1 + tolerance)
        .then(pl.lit("more often"))
        .when(counts < 1 - tolerance)
        .then(pl.lit("less often"))
        .when(durations > 1 + tolerance)
        .then(pl.lit("slower"))
        .when(durations < 1 - tolerance)
        .then(pl.lit("faster"))
        .otherwise(pl.lit("same"))
    )
