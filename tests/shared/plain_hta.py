"""HTA's analyses by the plainest reading of the events of a file, in Python without tables."""

import gzip
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from stepladder.profiling.trace import hta
from stepladder.profiling.trace.load import read_trace

WORK = ("kernel", "gpu_memcpy", "gpu_memset")
Event = dict[str, Any]


def ns(microseconds: Decimal | int) -> int:
    return int(Decimal(microseconds) * 1000)


class Truth:
    """The events of a file, with whole nanoseconds and what they are."""

    def __init__(self, path: Path) -> None:
        text = path.read_bytes()
        document = json.loads(gzip.decompress(text) if path.suffix == ".gz" else text, parse_float=Decimal)
        base = document.get("baseTimeNanoseconds", 0)
        self.events: list[Event] = []
        for event in document["traceEvents"]:
            if event["ph"] == "X" and "dur" in event:
                args = event.get("args", {})
                start = ns(event["ts"]) + base
                self.events.append(
                    {**event, "args": args, "start": start, "dur": ns(event["dur"]), "end": start + ns(event["dur"])}
                )
        self.work = sorted(
            (event for event in self.events if event.get("cat") in WORK), key=lambda one: (one["start"], -one["dur"])
        )
        self.calls: dict[int, Event] = {}
        for event in sorted(self.events, key=lambda one: (one["start"], -one["dur"])):
            if event.get("cat") in ("cuda_runtime", "cuda_driver") and event["args"].get("correlation", 0) > 0:
                self.calls.setdefault(event["args"]["correlation"], event)
        for event in self.work:
            event["kind"] = "memory" if event["cat"] != "kernel" else "compute"
            if "nccl" in event["name"]:
                event["kind"] = "communication"
            event["device"] = int(event["args"]["device"])
            event["stream"] = int(event["args"]["stream"])
            event["call"] = self.calls.get(event["args"].get("correlation", -1))

    def by(self, *keys: str) -> dict[Any, list[Event]]:
        """Work by some of its values, in the order of the starts."""
        groups: dict[Any, list[Event]] = defaultdict(list)
        for event in self.work:
            groups[tuple(event[key] for key in keys)].append(event)
        return groups


def running(events: Iterable[tuple[int, int, Any]]) -> Iterable[tuple[int, int, list[Any]]]:
    """Pieces of time between neighbouring starts and ends: begin, end, what runs in it."""
    changes = sorted(
        [(start, 1, i, what) for i, (start, end, what) in enumerate(events) if start < end]
        + [(end, 0, i, what) for i, (start, end, what) in enumerate(events) if start < end],
        key=lambda change: change[:3],
    )
    runs: dict[int, Any] = {}
    for (at, begins, i, what), (until, *_) in zip(changes, [*changes[1:], (0, 0, 0, 0)], strict=False):
        if begins:
            runs[i] = what
        else:
            del runs[i]
        if until > at and runs:
            yield at, until, list(runs.values())


def spread(values: list[tuple[float, int]]) -> dict[str, float]:
    """Of values that last so long."""
    values = sorted((value, lasts) for value, lasts in values if lasts)
    total = sum(lasts for _, lasts in values)
    mean = sum(value * lasts for value, lasts in values) / total
    found = {
        "mean": mean,
        "std": math.sqrt(sum((value - mean) ** 2 * lasts for value, lasts in values) / total),
        "min": values[0][0],
        "max": values[-1][0],
    }
    for percent in (25, 50, 75):
        so_far = 0
        for value, lasts in values:
            so_far += lasts
            if so_far >= percent / 100 * total:
                found[f"p{percent}"] = value
                break
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Whole numbers and words are the same, fractions as good as."""
    for key, value in other.items():
        if isinstance(value, float):
            assert math.isclose(one[key], value, rel_tol=1e-9, abs_tol=1e-9), (key, one[key], value)
        else:
            assert one[key] == value, key


def by_key(frame: pl.DataFrame, *keys: str) -> dict[Any, dict[str, Any]]:
    found = {tuple(row[key] for key in keys): row for row in frame.iter_rows(named=True)}
    assert len(found) == frame.height
    return found


def check_busy_times(truth: Truth, rows: hta.Rows) -> None:
    breakdown = by_key(hta.temporal_breakdown(rows), "device")
    overlap = by_key(hta.communication_overlap(rows), "device")
    kinds = by_key(hta.kernel_kinds(rows), "device", "kinds")
    assert breakdown.keys() == overlap.keys() == truth.by("device").keys()
    num_kinds = 0
    for (device,), work in truth.by("device").items():
        times: dict[str, int] = defaultdict(int)
        for begin, end, what in running([(one["start"], one["end"], one["kind"]) for one in work]):
            names = [kind for kind in ("compute", "communication", "memory") if kind in what]
            times[" overlapping ".join(names)] += end - begin
        span = max(one["end"] for one in work) - min(one["start"] for one in work)
        compute = sum(time for names, time in times.items() if "compute" in names)
        found = breakdown[device,]
        same(found, {"span_ns": span, "idle_ns": span - sum(times.values()), "compute_ns": compute})
        assert found["span_ns"] == found["idle_ns"] + found["compute_ns"] + found["non_compute_ns"]
        communication = sum(time for names, time in times.items() if "communication" in names)
        both = sum(time for names, time in times.items() if "communication" in names and "compute" in names)
        same(overlap[device,], {"communication_ns": communication, "overlapped_ns": both})
        assert overlap[device,]["overlapped_share"] == (both / communication if communication else None)
        num_kinds += len(times)
        for names, time in times.items():
            same(kinds[device, names], {"time_ns": time, "share": time / sum(times.values())})
    assert len(kinds) == num_kinds


def check_names(truth: Truth, rows: hta.Rows) -> None:
    names = by_key(hta.kernel_names(rows), "kind", "name")
    assert names.keys() == truth.by("kind", "name").keys()
    groups = [(names[key], work) for key, work in truth.by("kind", "name").items()]
    for on_device, category in ((True, "gpu_user_annotation"), (False, "user_annotation")):
        marks: dict[Any, list[Event]] = defaultdict(list)
        for event in truth.events:
            if event.get("cat") == category:
                marks[event["name"],].append(event)
        found = by_key(hta.annotation_names(rows, on_device=on_device), "name")
        assert found.keys() == marks.keys()
        groups += [(found[key], events) for key, events in marks.items()]
    for row, events in groups:
        durs = [event["dur"] for event in events]
        same(row, {"count": len(durs), "total_ns": sum(durs), "max_ns": max(durs), "min_ns": min(durs)})
        std = statistics.stdev(durs) if len(durs) > 1 else 0.0
        same(row, {"mean_ns": float(statistics.mean(durs)), "std_ns": std})


def check_idle_times(truth: Truth, rows: hta.Rows) -> None:
    for by_stream in (True, False):
        gaps: dict[Any, list[int]] = defaultdict(list)
        for key, work in truth.by(*(("device", "stream") if by_stream else ("device",))).items():
            stream = key[1] if by_stream else -1
            ended = work[0]["end"]
            for event in work:
                if event["start"] > ended:
                    late = event["call"] is not None and event["call"]["start"] > ended
                    short = event["start"] - ended < 30_000
                    cause = "host_wait" if late else "kernel_wait" if short else "other"
                    gaps[key[0], stream, cause].append(event["start"] - ended)
                ended = max(ended, event["end"])
        found = by_key(hta.idle_breakdown(rows, by_stream=by_stream), "device", "stream", "cause")
        assert found.keys() == gaps.keys()
        for key, lengths in gaps.items():
            total = sum(sum(other) for where, other in gaps.items() if where[:2] == key[:2])
            same(found[key], {"idle_ns": sum(lengths), "count": len(lengths), "share": sum(lengths) / total})
            same(found[key], {"mean_ns": float(statistics.mean(lengths)), "max_ns": float(max(lengths))})
            same(found[key], {"p50_ns": float(statistics.median(lengths)), "min_ns": float(min(lengths))})


def check_launches(truth: Truth, rows: hta.Rows) -> None:
    started: dict[int, list[Event]] = defaultdict(list)
    for event in truth.work:
        if event["call"] is not None:
            started[event["args"]["correlation"]].append(event)
    found = by_key(hta.launches(rows), "correlation")
    assert {key for (key,) in found} == started.keys()
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for correlation, work in started.items():
        call = work[0]["call"]
        times = {
            "call_ns": call["dur"],
            "device_ns": sum(event["dur"] for event in work),
            "delay_ns": max(0, work[0]["start"] - call["end"]),
        }
        same(found[correlation,], {"call": call["name"], "num_kernels": len(work), **times})
        short = call["dur"] <= 50_000 and times["device_ns"] < call["dur"]
        flags = (1, times["delay_ns"], short, call["dur"] > 50_000, times["delay_ns"] > 100_000)
        counts[call["name"]] = [one + int(other) for one, other in zip(counts[call["name"]], flags, strict=True)]
    columns = ("num_launches", "delay_ns", "short_kernels", "slow_calls", "late_starts")
    table = by_key(hta.launch_statistics(rows), "call")
    assert {key[0]: [row[column] for column in columns] for key, row in table.items()} == counts


def check_queues(truth: Truth, rows: hta.Rows, full_length: int) -> None:
    lengths, blocked = (
        by_key(table, "device", "stream")
        for table in (hta.queue_lengths(rows), hta.blocked_on_full_queue(rows, full_length=full_length))
    )
    num_blocked = 0
    for key, work in truth.by("device", "stream").items():
        waits = [(one["call"]["start"], one["start"], 1) for one in work if one["call"]]
        pieces = [(len(what), end - begin) for begin, end, what in running(waits)]
        if not pieces:
            assert key not in lengths
            continue
        first, last = min(wait[0] for wait in waits if wait[0] < wait[1]), max(w[1] for w in waits if w[0] < w[1])
        pieces.append((0, last - first - sum(lasts for _, lasts in pieces)))
        same(lengths.pop(key), {name: float(value) for name, value in spread(pieces).items()})
        full = sum(lasts for length, lasts in pieces if length >= full_length)
        num_blocked += full > 0
        if full:
            same(blocked[key], {"blocked_ns": full, "share": full / (last - first)})
    assert not lengths
    assert len(blocked) == num_blocked


def check_bandwidths(truth: Truth, rows: hta.Rows) -> None:
    copies: dict[Any, list[tuple[int, int, float]]] = defaultdict(list)
    for event in truth.work:
        if event["kind"] == "memory" and event["dur"] and "bytes" in event["args"]:
            name = event["name"].split(" (")[0]
            copies[event["device"], name].append(
                (event["start"], event["end"], int(event["args"]["bytes"]) / event["dur"])
            )
    found = by_key(hta.memory_bandwidth(rows), "device", "name")
    assert found.keys() == copies.keys()
    for key, each in copies.items():
        expected = spread([(sum(rates), end - begin) for begin, end, rates in running(each)])
        same(found[key], {f"{name}_gb_per_s": float(value) for name, value in expected.items()})


def check(path: Path, *, full_length: int) -> None:
    """Everything that the exact analyses say of a file."""
    truth, rows = Truth(path), hta.exact_rows(read_trace(path, num_threads=1))
    check_busy_times(truth, rows)
    check_names(truth, rows)
    check_idle_times(truth, rows)
    check_launches(truth, rows)
    check_queues(truth, rows, full_length)
    check_bandwidths(truth, rows)
