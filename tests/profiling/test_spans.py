"""Every span, and every foreign name that the analysis reads, in traces of real steps on the pinned torch."""

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stepladder.profiling import spans
from stepladder.profiling.capture import Schedule, torch_profiler, trace_name
from stepladder.profiling.record import marker
from stepladder.profiling.spans import Span
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.steps import host_phases

NUM_STEPS = 4
NUM_MICROBATCHES = 2
TINY = {"dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "vocab_size": 32}
Trace = list[dict[str, Any]]


def trace_of(layout: dict[str, Any]) -> Trace:
    """Rank 0's user annotations of two recorded steps, run by the loop as the worker runs it."""
    from stepladder.launch.build import build_program
    from stepladder.launch.plan import make_plan
    from stepladder.launch.ranks import Ranks
    from stepladder.launch.recipe import parse
    from stepladder.trainer.data.feed import DeviceFeed, host_batches
    from stepladder.trainer.data.order import Share
    from stepladder.trainer.data.source import SyntheticSource
    from stepladder.trainer.loop import Watcher, train

    num_ranks = torch.distributed.get_world_size()
    rank = torch.distributed.get_rank()
    strategies = {"adamw": {}, "clip": {}, "accumulation": {"num_microbatches": NUM_MICROBATCHES}} | layout
    recipe = parse(
        {
            "run": {"num_steps": NUM_STEPS, "device": "cpu"},
            "model": {"decoder": TINY},
            "data": {"synthetic": {}},
            "batch": {"microbatch_size": 1, "sequence_length": 8},
            "strategies": strategies,
        },
        {},
    )
    plan = make_plan(recipe, num_gpus=0, num_ranks=num_ranks, started=True)
    cpu = torch.device("cpu")
    program = build_program(plan, Ranks(rank=rank, local_rank=rank, num_ranks=num_ranks), cpu)
    assert program.make_optimizer is not None
    optimizer = program.make_optimizer(program.model)
    source = SyntheticSource(num_samples=8, sequence_length=8, vocab_size=32, seed=0, device=cpu)
    share = Share(
        num_samples=8, microbatch_size=1, num_microbatches=NUM_MICROBATCHES, rank=rank, num_ranks=num_ranks, seed=0
    )
    feed = DeviceFeed(
        batches=host_batches(source, share, recipe.loader, first_step=0, pin=False),
        num_microbatches=NUM_MICROBATCHES,
        device=cpu,
        count_tokens=lambda microbatches: 32.0,
        on_device=True,
    )
    watched = [Span.LOGGING, Span.EVALUATION, Span.CHECKPOINT]
    watchers = [Watcher(every=1, look=lambda result: None, span=span) for span in watched]
    with tempfile.TemporaryDirectory() as folder:
        schedule = Schedule(skip_first=1, wait=0, warmup=1, active=2, repeat=1)
        with torch_profiler(Path(folder), schedule=schedule, rank=rank) as tick:
            train(
                program,
                optimizer,
                feed,
                num_steps=NUM_STEPS,
                first_step=0,
                base_rates=[group["lr"] for group in optimizer.param_groups],
                watchers=[*watchers, Watcher(every=1, look=lambda result: tick())],
                wants_norm=lambda step: True,
                mark=marker(record=True, nvtx=False),
            )
        events = json.loads(gzip.decompress((Path(folder) / trace_name(rank, NUM_STEPS)).read_bytes()))["traceEvents"]
    torch.distributed.barrier()
    return [event for event in events if event.get("cat") == "user_annotation"]


def two_ranks() -> dict[str, Trace]:
    return {name: trace_of({name: {}}) for name in ("ddp", "fsdp2")}


@pytest.fixture(scope="module")
def traces(run_ranks: Callable[..., Any]) -> dict[str, Trace]:
    return run_ranks(two_ranks, 2) | {"one process": run_ranks(trace_of, 1, {})}


def intervals(trace: Trace, span: str) -> list[tuple[float, float]]:
    return sorted((e["ts"], e["ts"] + e["dur"]) for e in trace if e["name"] == span)


def test_every_span_occurs_as_often_as_its_phase(traces: dict[str, Trace]) -> None:
    per_microbatch = {Span.FORWARD, Span.BACKWARD, Span.GRADIENT_SYNC}
    for layout, trace in traces.items():
        for span in Span:
            expected = 2 * (NUM_MICROBATCHES if span in per_microbatch else 0 if span is Span.PIPELINE else 1)
            assert len(intervals(trace, span)) == expected, f"{layout}: {span}"


def test_the_foreign_names_are_those_of_this_torch(traces: dict[str, Trace]) -> None:
    names = {layout: {str(event["name"]) for event in trace} for layout, trace in traces.items()}
    for layout in names:
        assert sum(name.startswith(spans.PROFILER_STEP) for name in names[layout]) == 2
        assert any(name.startswith(spans.OPTIMIZER_STEP_PREFIX) for name in names[layout])
    assert spans.DDP_FORWARD in names["ddp"]
    assert {f"{spans.FSDP_PREFIX}all_gather", f"{spans.FSDP_PREFIX}post_backward_reduce"} <= {
        name.split(" ")[0] for name in names["fsdp2"]
    }
    assert any(name.startswith(spans.GLOO_PREFIX) for name in names["ddp"])


def test_gradient_synchronisation_ends_each_backward_pass(traces: dict[str, Trace]) -> None:
    """It marks every microbatch; under accumulation DDP has nothing to wait for in the earlier ones."""
    for layout, trace in traces.items():
        outer, inner = intervals(trace, Span.BACKWARD), intervals(trace, Span.GRADIENT_SYNC)
        for (begin, end), (sync_begin, sync_end) in zip(outer, inner, strict=True):
            assert begin < sync_begin <= sync_end <= end, layout
            assert end - sync_end < 0.5 * (end - begin), layout


def test_the_reductions_of_ddp_run_in_the_last_backward_only(traces: dict[str, Trace]) -> None:
    reductions = [start for start, _ in intervals(traces["ddp"], "gloo:all_reduce")]
    assert reductions
    last_ones = intervals(traces["ddp"], Span.BACKWARD)[NUM_MICROBATCHES - 1 :: NUM_MICROBATCHES]
    assert all(any(begin <= start <= end for begin, end in last_ones) for start in reductions)


def test_own_times_of_a_real_trace_add_up_to_the_step(traces: dict[str, Trace], tmp_path: Path) -> None:
    for layout, trace in traces.items():
        path = tmp_path / f"{layout}.json"
        path.write_text(json.dumps(trace))
        read = read_trace(path)
        found = host_phases(read)
        assert read.steps.height == 2
        assert found["own_ns"].sum() == read.steps["dur"].sum(), layout
        forward = found.filter(phase=Span.FORWARD.value)["own_ns"].sum()
        assert 0 < forward < read.steps["dur"].sum()


def test_labels_are_the_names_without_the_prefix() -> None:
    assert [span.label for span in Span][:2] == ["data_wait", "host_to_device"]
    assert all(span.value == spans.PREFIX + span.label for span in Span)
    assert len({span.value for span in Span}) == len(Span) == 11
