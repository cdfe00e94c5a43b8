"""The rank that the others wait for is found; on a real job the choice and the numbers are HTA's."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.stragglers import EXCHANGES, STRAGGLERS, exchanges, stragglers

DATA = Path(__file__).parent / "data"
MODERN = "ncclDevKernel_AllReduce_Sum_f32_{}(ncclDevKernelArgsStorage<4096ul>)"
OLD = "ncclKernel_AllReduce_{}_Sum_float(ncclWorkElem)"


def event(cat: str, name: str, start: int, end: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": start, "dur": end - start, "args": args}


def job(folder: Path, late: list[list[int]], *, name: str = MODERN, clocks: list[int] | None = None) -> pl.DataFrame:
    """Steps of 1000 us; rank r computes `late[step][r]` us longer, and all leave the exchange together, at 900."""
    parts: list[pl.DataFrame] = []
    for rank in range(len(late[0])):
        events: list[dict[str, Any]] = []
        for step, lates in enumerate(late):
            begin = 1000 * step + (clocks or [0] * len(lates))[rank]
            events.append(event("user_annotation", f"ProfilerStep#{step}", begin, begin + 1000, 1))
            for turn, (start, end, what) in enumerate([(100 + lates[rank], 900, "RING_LL"), (930, 933, "TREE")]):
                number, start, end = 10 * step + turn + 1, begin + start, begin + end
                events.append(
                    event("cuda_runtime", "cudaLaunchKernelExC", start - 50, start - 45, 1, correlation=number)
                )
                on_device = {"stream": 9, "device": 0, "correlation": number}
                events.append(event("kernel", name.format(what), start, end, 9, **on_device))
        path = folder / f"rank-{rank}.json"
        path.write_text(json.dumps({"traceEvents": events}))
        trace = read_trace(path, num_threads=1)
        parts.append(exchanges(trace, compat=name == OLD).with_columns(rank=pl.lit(rank, pl.Int64)))
    return pl.concat(parts)


@pytest.mark.parametrize("name", [MODERN, OLD])
def test_the_rank_that_enters_the_exchange_last_is_the_straggler(tmp_path: Path, name: str) -> None:
    frame = job(tmp_path, [[0, 10, 300, 20], [5, 0, 250, 10], [0, 400, 100, 0], [0, 0, 0, 0]], name=name)
    table = stragglers(frame, num_latest=1)
    num_steps = 3 if name == OLD else 4  # HTA leaves out the last
    assert table["num_steps"].to_list() == [num_steps] * 4
    assert table["rank"][0] == 2
    assert table["mean_late_ns"][0] == round((300 + 250 + 100) * 1000 / num_steps)
    late = dict(table.select("rank", "num_late").rows())
    assert (late[2], late[1]) == ((2, 1) if name == OLD else (3, 2))  # in the last step all are equally late


def test_clocks_that_differ_are_taken_into_account(tmp_path: Path) -> None:
    frame = job(tmp_path, [[0, 10, 300]] * 3, clocks=[700, 0, 0])
    assert stragglers(frame, num_latest=1)["rank"][0] == 0
    assert stragglers(frame, num_latest=1, offsets_ns={0: 700_000})["rank"][0] == 2


def test_old_names_are_the_only_ones_that_hta_knows_and_algorithms_do_not_divide_an_exchange(tmp_path: Path) -> None:
    job(tmp_path, [[0, 10]])
    trace = read_trace(tmp_path / "rank-0.json", num_threads=1)
    assert exchanges(trace, compat=True).height == 0
    assert set(exchanges(trace)["name"]) == {"nccl AllReduce"}


def test_the_stragglers_of_a_real_job_are_htas() -> None:
    """Of its kernels HTA chose the last long one on stream 84: 47652 and 17614 us, the second 0.270 of a step later."""
    frame = pl.concat(
        exchanges(read_trace(DATA / "sampled_2rank" / f"rank-{rank}.json.gz", num_threads=1), compat=True).with_columns(
            rank=pl.lit(rank, pl.Int64)
        )
        for rank in (0, 1)
    )
    one, two = stragglers(frame, num_latest=1), stragglers(frame, num_latest=2)
    assert one.filter(pl.col("num_late") > 0)["rank"].to_list() == [1]
    assert set(two.filter(pl.col("num_late") > 0)["rank"]) == {0, 1}
    assert one["stream"].unique().to_list() == [84]
    step_ns = frame["step_end"].max() - frame["step_start"].min()  # pyright: ignore
    assert one["mean_late_ns"][0] / step_ns == pytest.approx(0.712708 - 0.442700, abs=1e-6)


@pytest.mark.parametrize("name", ["cpu_only", "amd_mi250_minitoy", "vllm_decode_graph", "h100_qwen_18k"])
def test_a_rank_alone_or_without_exchanges_has_no_straggler(name: str) -> None:
    for compat in (False, True):
        frame = exchanges(read_trace(DATA / name / "rank-0.json.gz", num_threads=1), compat=compat)
        assert dict(frame.schema) == EXCHANGES
        table = stragglers(frame.with_columns(rank=pl.lit(0, pl.Int64)))
        assert table.height == 0
        assert dict(table.schema) == STRAGGLERS
