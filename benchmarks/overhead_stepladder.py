"""The stepladder arm of `overhead.py`: the loop and everything around it, put together as `launch/worker.py` does.

The worker itself reads its data from a recipe, so it cannot train an MLP or show when a step begins; here the source and
the model are given, all else is the real thing: `assemble`, `DeviceFeed`, `train`, a `Meter` that writes `metrics.jsonl`
and a log line, a checkpoint watcher, garbage collection by step, a stop handler.
"""

import os
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepladder.launch.plan import Plan
    from stepladder.launch.ranks import Ranks
    from stepladder.strategies.base import Batch, Program
    from stepladder.trainer.data.source import Source
    from torch import Tensor, device, nn

RECIPE = """\
name = "overhead"

[run]
num_steps = {num_steps}
log_every = 10
device = "cpu"
cpu_ranks = {ranks}
threads_per_rank = 1

[model.decoder]
dim = 256
num_layers = 4
num_heads = 4
ffn_dim = 704
vocab_size = 256

[data.synthetic]

[batch]
microbatch_size = {microbatch_size}
sequence_length = {sequence_length}

[strategies]
ddp = {ddp}

[strategies.adamw]
learning_rate = 3e-4
beta1 = 0.9
beta2 = 0.95
weight_decay = 0.1
decay = "all"

[strategies.clip]
max_norm = 1.0
"""


def recipe(*, num_steps: int, ranks: int, microbatch_size: int = 8, sequence_length: int = 256) -> str:
    """The recipe that states what all arms do, as TOML."""
    return RECIPE.format(
        num_steps=num_steps,
        ranks=ranks,
        microbatch_size=microbatch_size,
        sequence_length=sequence_length,
        ddp="{}" if ranks > 1 else "false",
    )


def make_plan(text: str, ranks: int) -> "Plan":
    """The plan of a recipe on `ranks` ranks that exist already."""
    from stepladder.launch.plan import make_plan
    from stepladder.launch.recipe import parse

    return make_plan(parse(tomllib.loads(text), {}), num_gpus=0, num_ranks=ranks, started=True)


def train_mlp(model: "nn.Module", source: "Source", *, ranks: int, batch_size: int, num_steps: int, out: Path) -> None:
    """Train any module on class labels; a recipe has no name for it, so its program is made by hand."""
    import torch.nn.functional as F
    from stepladder.strategies.assemble import assemble
    from stepladder.strategies.base import Facts, Program
    from stepladder.strategies.clip import measure_norm
    from stepladder.strategies.mesh import build_mesh
    from stepladder.trainer.step import accumulate

    def loss(logits: "Tensor", batch: "Batch") -> "Tensor":
        return F.cross_entropy(logits, batch.labels, reduction="sum")

    def make_program(plan: "Plan", ranks: "Ranks", device: "device") -> "Program":
        program = Program(
            model=model, facts=Facts(), loss=loss, forward_backward=accumulate, clip_gradients=measure_norm
        )
        mesh = build_mesh(plan.device_type, plan.degrees) if ranks.num_ranks > 1 else None
        return assemble(program, plan.recipe.strategies, replace(plan.run(), facts=Facts(), mesh=mesh, device=device))

    text = recipe(num_steps=num_steps, ranks=ranks, microbatch_size=batch_size, sequence_length=1)
    _train(make_plan(text, ranks), make_program, source, num_steps=num_steps, out=out)


def train_decoder(source: "Source", *, ranks: int, num_steps: int, out: Path) -> None:
    """Train the recipe's decoder, its program made by the worker."""
    from stepladder.launch.worker import build_program

    text = recipe(num_steps=num_steps, ranks=ranks)
    _train(make_plan(text, ranks), build_program, source, num_steps=num_steps, out=out)


def _train(
    plan: "Plan",
    make_program: Callable[["Plan", "Ranks", "device"], "Program"],
    source: "Source",
    *,
    num_steps: int,
    out: Path,
) -> None:
    """What `launch/worker.py` sets up, around `source`; `out` takes metrics, log and checkpoints."""
    from contextlib import ExitStack

    import torch
    from stepladder.launch import worker
    from stepladder.launch.console import Console
    from stepladder.launch.ranks import Ranks, StopRequest, barrier, pick_device, process_group, sum_over_ranks
    from stepladder.profiling.record import marker
    from stepladder.profiling.spans import Span
    from stepladder.trainer.checkpoint.config import CheckpointConfig
    from stepladder.trainer.checkpoint.manager import Checkpoints
    from stepladder.trainer.data.feed import DeviceFeed, host_batches, token_counter
    from stepladder.trainer.data.order import Share
    from stepladder.trainer.loop import StepResult, Watcher, train
    from stepladder.trainer.metrics import Meter, MetricsFile, Record, log_line

    ranks = Ranks.from_environment()
    assert ranks is not None, "the driver says which rank this is"
    stop = StopRequest()
    stop.listen()
    device = pick_device(plan, ranks)
    batch, loader, run = plan.recipe.batch, plan.recipe.loader, plan.recipe.run
    with ExitStack() as stack:
        if ranks.num_ranks > 1:
            stack.enter_context(process_group(device, ranks))
        torch.manual_seed(run.seed + ranks.rank)
        program = make_program(plan, ranks, device)
        assert program.make_optimizer is not None, "the recipe has an optimizer"
        optimizer = program.make_optimizer(program.model)
        share = Share(
            num_samples=len(source),
            microbatch_size=batch.microbatch_size,
            num_microbatches=1,
            rank=ranks.rank,
            num_ranks=plan.num_data_ranks,
            seed=run.seed,
        )
        feed = DeviceFeed(
            batches=host_batches(source, share, loader, first_step=0, pin=False),
            num_microbatches=1,
            device=device,
            count_tokens=token_counter(source, plan.tokens_per_step, sum_over_ranks(ranks), device),
            non_blocking=loader.non_blocking,
            prefetch=loader.device_prefetch,
        )
        checkpoints = Checkpoints(
            folder=out / "checkpoints",
            program=program,
            optimizer=optimizer,
            device=device,
            rank=ranks.rank,
            num_ranks=ranks.num_ranks,
            barrier=lambda: barrier(ranks),
            identity={},
        )
        stream = stack.enter_context(open(os.devnull, "w"))
        console = Console(active=ranks.rank == 0, num_steps=num_steps, stream=stream)
        metrics = MetricsFile(path=out / "metrics.jsonl")

        def write(record: Record) -> None:
            if ranks.rank == 0:
                metrics.write(record)
                console.say(log_line(record, num_steps))

        def save(result: StepResult) -> None:
            checkpoints.save(result.step, CheckpointConfig(every=10**9))

        meter = Meter(
            num_steps=num_steps,
            first_step=0,
            tokens_per_step=plan.tokens_per_step,
            flops_per_token=plan.facts.flops_per_token,
            peak=None,
            num_ranks=ranks.num_ranks,
            device=device,
            reduce=sum_over_ranks(ranks),
            waited_s=lambda: feed.waited_s,
            stop_requested=stop.requested,
            write=write,
        )
        watchers = [
            Watcher(every=run.log_every, look=meter.look, at_first=True, span=Span.LOGGING),
            Watcher(every=10**9, look=save, span=Span.CHECKPOINT),
            # Ends the run early: the last step of all would write a checkpoint, which no other arm does.
            Watcher(every=num_steps, look=lambda result: True),
        ]
        stack.enter_context(worker._garbage_collection(run.gc_every, watchers))
        meter.start()
        train(
            program,
            optimizer,
            feed,
            num_steps=10**9,
            first_step=0,
            base_rates=[float(group["lr"]) for group in optimizer.param_groups],
            watchers=watchers,
            wants_norm=lambda step: step % run.log_every == 0 or step == 1,
            mark=marker(record=False, nvtx=False),
        )


def as_source(samples: Any) -> "Source":
    """`samples` as a source: the same gather, its answer in the type that the loop takes."""
    from stepladder.strategies.base import Batch

    class Adapted:
        fingerprint = "overhead"
        all_valid = True
        on_device = False

        def __len__(self) -> int:
            return len(samples)

        def __getitems__(self, indices: list[int]) -> Batch:
            return Batch(*samples.__getitems__(indices))

    return Adapted()
