"""In HTA's reading every number is HTA's own, as recorded from traceinsight 0.6.1 on real traces."""

import json
import math
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stepladder.profiling.trace import hta
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.tables import Trace

DATA = Path(__file__).parent / "data"
SMALL = ("amd_mi250_minitoy", "cpu_only", "h100_qwen_18k", "sampled_2rank", "vllm_decode_graph")
LARGE = (
    "a100_16rank_109k",
    "a100_control_109k",
    "a100_nccl_meta_41k",
    "b200_eager_25k",
    "mi300_ddp8_resnet_56k",
    "v100_ddp2_216k",
    "v100_ns_69k",
)
SETTINGS: dict[str, dict[str, bool]] = {
    "default": {},
    "no_ns_rounding": {"rounding": False},
    "include_last_step": {"include_last_step": True},
}
KINDS = {"COMPUTATION": "compute", "COMMUNICATION": "communication", "MEMORY": "memory"}
SPREAD = {"mean": "mean", "std": "std", "min": "min", "25%": "p25", "50%": "p50", "75%": "p75", "max": "max"}
TOTALS = {"sum (us)": "total", "max (us)": "max", "min (us)": "min", "stddev": "std", "mean (us)": "mean"}
Numbers = dict[Any, dict[str, Any]]
"""By the key of a row and the name of a column; rows of all ranks, with the rank in front of the key."""


def folder_of(name: str) -> Path:
    """Where a trace and its recorded numbers are: in the tree, or where the environment says."""
    if name in SMALL:
        return DATA
    where = os.environ.get("STEPLADDER_TRACES")
    if where is None:
        pytest.skip(f"{name} is too large for the tree; STEPLADDER_TRACES names a folder that has it")
    return Path(where)


@cache
def ranks(name: str) -> list[Trace]:
    return [read_trace(path) for path in sorted((folder_of(name) / name).glob("rank-*.json.gz"))]


@cache
def rows(name: str, setting: str) -> list[hta.Rows]:
    return [hta.compat_rows(trace, **SETTINGS[setting]) for trace in ranks(name)]


@cache
def recorded(name: str) -> Any:
    """By setting: what HTA returned, and its errors. Rounding does nothing to whole microseconds: no such setting."""
    found = json.loads((folder_of(name) / "oracles" / f"{name}.json").read_text())
    return found | {"no_ns_rounding": found.get("no_ns_rounding", found["default"])}


@cache
def more() -> Any:
    return json.loads((DATA / "hta_more.json").read_text())


def theirs(name: str, setting: str, key: str) -> Any:
    if key in recorded(name)[setting]["errors"]:
        pytest.skip(f"HTA has no answer: {recorded(name)[setting]['errors'][key]}")
    return recorded(name)[setting]["results"][key]


def table(
    name: str, setting: str, analysis: Callable[[hta.Rows], pl.DataFrame], keys: list[str], columns: Mapping[str, str]
) -> Numbers:
    """Our numbers by HTA's names of columns, times in microseconds."""
    return {
        (rank, *(row[key] for key in keys)): {
            said: None if row[mine] is None else row[mine] / 1000 if mine.endswith("_ns") else row[mine]
            for said, mine in columns.items()
        }
        for rank, mine in enumerate(rows(name, setting))
        for row in analysis(mine).iter_rows(named=True)
    }


def agree(mine: Numbers, other: Numbers, *, within: float = 1.001e-3) -> None:
    """Numbers as near as 0.001 µs or 0.01 %; a row or a number that one side lacks is zero or missing on the other."""
    for key in {*mine, *other}:
        for column in {*mine.get(key, {}), *other.get(key, {})}:
            one, two = (side.get(key, {}).get(column) for side in (mine, other))
            one, two = (0.0 if value is None or math.isnan(value) else value for value in (one, two))
            assert math.isclose(one, two, rel_tol=1e-4, abs_tol=within), (key, column, one, two)


all_of_them = [
    pytest.mark.parametrize("setting", SETTINGS),
    pytest.mark.parametrize("name", [*SMALL, *LARGE]),
]


def on_every_trace(test: Callable[..., None]) -> Callable[..., None]:
    for mark in all_of_them:
        test = mark(test)
    return test


@on_every_trace
def test_the_temporal_breakdown_is_htas(name: str, setting: str) -> None:
    other = theirs(name, setting, "temporal_breakdown")
    times = {"kernel_time(us)": "span_ns", "idle_time(us)": "idle_ns", "compute_time(us)": "compute_ns"}
    times["non_compute_time(us)"] = "non_compute_ns"
    shares = {f"{part}_time_pctg": f"{part}_share" for part in ("idle", "compute", "non_compute")}
    agree(
        table(name, setting, hta.temporal_breakdown, [], times),
        {(row["rank"],): {key: row[key] for key in times} for row in other},
    )
    agree(
        table(name, setting, hta.temporal_breakdown, [], shares),
        {(row["rank"],): {key: row[key] / 100 for key in shares} for row in other},
        within=5.1e-5,
    )


@on_every_trace
def test_the_overlap_of_communication_is_htas(name: str, setting: str) -> None:
    mine = table(name, setting, hta.communication_overlap, [], {"share": "overlapped_share"})
    other = theirs(name, setting, "comm_comp_overlap")
    shares = {(row["rank"],): row["comp_comm_overlap_pctg"] for row in other}
    agree(
        mine, {key: {"share": None if share is None else share / 100} for key, share in shares.items()}, within=5.1e-5
    )


@on_every_trace
def test_the_kinds_of_kernels_are_htas(name: str, setting: str) -> None:
    mine: Numbers = {}
    for (_, kinds), row in table(name, setting, hta.kernel_kinds, ["kinds"], {"sum": "time_ns"}).items():
        mine[kinds] = {"sum": mine.get(kinds, {"sum": 0})["sum"] + row["sum"]}
    other: Numbers = {}
    for row in theirs(name, setting, "gpu_kernel_breakdown")[0]:
        kinds = row["kernel_type"]
        for said, kind in KINDS.items():
            kinds = kinds.replace(said, kind)
        other[kinds] = {"sum": row["sum"]}
    agree(mine, other)


@on_every_trace
def test_the_names_of_kernels_are_htas(name: str, setting: str) -> None:
    columns = {said: f"{mine}_ns" for said, mine in TOTALS.items()}
    agree(
        table(name, setting, hta.kernel_names, ["kind", "name"], columns),
        {
            (row["rank"], KINDS[row["kernel_type"]], row["name"]): {key: row[key] for key in columns}
            for row in theirs(name, setting, "gpu_kernel_breakdown")[1]
        },
    )


@pytest.mark.parametrize("name", ["h100_qwen_18k", "vllm_decode_graph"])
def test_names_are_folded_as_hta_folds_them(name: str) -> None:
    columns = {said: f"{mine}_ns" for said, mine in TOTALS.items()}

    def folded(mine: hta.Rows) -> pl.DataFrame:
        return hta.kernel_names(mine, num_names=10)

    mine = table(name, "default", folded, ["kind", "name"], columns)
    assert any(key[-1] == "others" for key in mine)
    other = [row for row in more()["folded"][name] if row["kernel_type"] in ("COMPUTATION", "COMMUNICATION")]
    agree(
        {key: row for key, row in mine.items() if key[1] != "memory"},
        {(row["rank"], KINDS[row["kernel_type"]], row["name"]): {key: row[key] for key in columns} for row in other},
    )


@pytest.mark.parametrize(("key", "on_device"), [("user_annotation_gpu", True), ("user_annotation_cpu", False)])
@on_every_trace
def test_annotations_are_htas(name: str, setting: str, key: str, on_device: bool) -> None:
    columns = {said: f"{mine}_ns" for said, mine in TOTALS.items()}

    def analysis(mine: hta.Rows) -> pl.DataFrame:
        return hta.annotation_names(mine, on_device=on_device)

    agree(
        table(name, setting, analysis, ["name"], columns),
        {(row["rank"], row["name"]): {key: row[key] for key in columns} for row in theirs(name, setting, key) or []},
    )


@on_every_trace
def test_idle_time_is_htas(name: str, setting: str) -> None:
    sums, spreads = theirs(name, setting, "idle_time_breakdown")
    columns = {"idle_time": "idle_ns", "idle_time_ratio": "share"}
    keys = ["stream", "cause"]
    agree(  # which are rounded to two digits
        table(name, setting, hta.idle_breakdown, keys, columns),
        {(row["rank"], row["stream"], row["idle_category"]): {key: row[key] for key in columns} for row in sums},
        within=5.1e-3,
    )
    spread = {said: f"{mine}_ns" for said, mine in SPREAD.items()} | {"count": "count"}
    agree(
        table(name, setting, hta.idle_breakdown, keys, spread),
        {(row["rank"], row["stream"], row["idle_category"]): {key: row[key] for key in spread} for row in spreads},
        within=5.1e-3,
    )


@on_every_trace
def test_statistics_of_launches_are_htas(name: str, setting: str) -> None:
    counts = {"n": "num_launches", "short_kernels": "short_kernels", "runtime_outliers": "slow_calls"}
    counts["launch_delay_outliers"] = "late_starts"
    measures = {"call": "cpu_duration", "device": "gpu_duration", "delay": "launch_delay"}
    for rank, other in theirs(name, setting, "cuda_kernel_launch_stats").items():
        mine = rows(name, setting)[int(rank)]
        sums = hta.launch_statistics(mine).sum().row(0, named=True)
        assert {key: sums[column] or 0 for key, column in counts.items()} == {key: other[key] for key in counts}
        agree({0: {said: (sums[f"{measure}_ns"] or 0) / 1000 for measure, said in measures.items()}}, {0: other["sum"]})
        spread = {
            (measures[row["measure"]], said): {"value": row[f"{column}_ns"] / 1000}
            for row in hta.launch_distribution(mine).iter_rows(named=True)
            for said, column in SPREAD.items()
        }
        described = {row["index"]: row for row in other["describe"] or [] if row["index"] != "count"}
        agree(
            spread, {(one, said): {"value": row[one]} for said, row in described.items() for one in measures.values()}
        )


def changes_agree(name: str, setting: str, key: str, analysis: Callable[[hta.Rows], pl.DataFrame], by: str) -> None:
    """HTA leaves the order of equal times to an unstable sort: its numbers differ between machines, within a few %.

    So with a stable sort they must be the same, and as recorded without, near.
    """
    value, unit = {"stream": ("queue_length", ""), "name": ("memory_bw_gbps", "_gb_per_s")}[by]
    columns = {said: f"{mine}{unit}" for said, mine in SPREAD.items()} | {"count": "count"}
    mine = table(name, setting, analysis, [by], columns)

    def numbers(found: Any) -> Numbers:
        return {(row["rank|"], row[f"{by}|"]): {one: row[f"{value}|{one}"] for one in columns} for row in found or []}

    recording = numbers(theirs(name, setting, key))
    stable = more()["stable_order"].get(name, {}).get(setting)
    agree(mine, numbers(stable[key]) if stable else recording)
    for row, other in recording.items():
        for one in ("count", "mean", "std", "max"):
            assert math.isclose(mine[row][one] or 0, other[one] or 0, rel_tol=0.02), (row, one)


@on_every_trace
def test_lengths_of_queues_are_htas(name: str, setting: str) -> None:
    changes_agree(name, setting, "queue_length_summary", hta.queue_lengths, "stream")


@on_every_trace
def test_bandwidths_of_memory_are_htas(name: str, setting: str) -> None:
    changes_agree(name, setting, "memory_bw_summary", hta.memory_bandwidth, "name")


@on_every_trace
def test_time_blocked_on_a_full_queue_is_htas(name: str, setting: str) -> None:
    columns = {"duration_at_max_queue_length": "blocked_ns", "relative_duration_at_max_queue_length": "share"}
    agree(
        table(name, setting, hta.blocked_on_full_queue, ["stream"], columns),
        {
            (row["rank"], row["stream"]): {key: row[key] for key in columns}
            for row in theirs(name, setting, "blocked_on_full_queue")
        },
    )
