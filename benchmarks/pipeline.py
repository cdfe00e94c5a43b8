"""How long the ranks of a pipeline wait: measured on real processes, beside the formula and the simulator.

Four ranks on gloo. A stage's forward and the two halves of its backward sleep for a fixed time instead of computing, so
that four ranks fit on two cores and the times are known; everything else is the pipeline that training uses: cuts,
torch's schedules, messages, meter. Takes about 4 minutes. Writes results/pipeline.json; the last line is the verdict.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RANKS = 4
MICROBATCHES = (4, 8, 16)
STAGES_PER_RANK = {
    "gpipe": 1,
    "1f1b": 1,
    "interleaved_1f1b": 2,
    "interleaved_zero_bubble": 2,
    "zbv": 2,
    "dualpipev": 2,
}
SLEEP_S = 0.1
"""Of a rank, for each microbatch: forward, gradients of inputs, gradients of weights; its stages share it."""
STEPS = 4
"""The first one opens connections and is not measured; of the others the shortest one counts."""
ALLOWED = 0.03
"""Share of the time by which a measured bubble may differ from the formula: what handing over and Python cost."""
RESULTS = Path(__file__).parent / "results" / "pipeline.json"


def cases() -> Iterator[tuple[str, int]]:
    """Schedules and numbers of microbatches; those that a schedule refuses are left out."""
    for schedule in STAGES_PER_RANK:
        for num_microbatches in MICROBATCHES:
            if not (schedule == "dualpipev" and num_microbatches < 2 * RANKS):
                yield schedule, num_microbatches


def sleeping_model(num_blocks: int, sleep_s: float) -> Any:
    """Blocks whose forward, and each half of whose backward, sleep."""
    import torch
    from torch import Tensor, nn

    class Sleep(torch.autograd.Function):
        """Identity whose backward sleeps."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            time.sleep(sleep_s)
            return grads[0]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            time.sleep(sleep_s)
            return Sleep.apply(x) + Sleep.apply(self.weight)

    class Sleeper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(1, 1, bias=False)  # gives the first block an input that needs a gradient
            self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))

        def forward(self, x: Tensor, positions: Tensor) -> Tensor:
            x = self.first(x.unsqueeze(-1) if x.ndim == 2 else x)
            for block in self.blocks:
                x = block(x)
            return x

    return Sleeper()


def measure(schedule: str, num_microbatches: int) -> float:
    """The bubble of the quietest step; every rank calls this."""
    import torch
    import torch.distributed as dist

    from stepladder.profiling.record import no_span
    from stepladder.strategies.base import Batch, Program, Run
    from stepladder.strategies.clip import measure_norm
    from stepladder.strategies.facts import Cuts, Facts
    from stepladder.strategies.mesh import Axis, build_mesh
    from stepladder.strategies.pipeline.meter import BusyMeter
    from stepladder.strategies.pp import PipelineParallel
    from stepladder.trainer.step import accumulate

    stages = STAGES_PER_RANK[schedule]
    num_blocks = RANKS * stages
    degrees = dict.fromkeys(Axis, 1) | {Axis.PP: RANKS}
    program = Program(
        model=sleeping_model(num_blocks, SLEEP_S / stages),
        facts=Facts(
            blocks=tuple(f"blocks.{i}" for i in range(num_blocks)),
            cuts=Cuts(before=("first",), block_costs=(1.0,) * num_blocks, width=1),
        ),
        loss=lambda output, batch: output.sum(),
        forward_backward=accumulate,
        clip_gradients=measure_norm,
    )
    run = Run(
        device_type="cpu",
        degrees=degrees,
        facts=program.facts,
        num_steps=STEPS,
        tokens_per_step=1,
        seed=0,
        active=frozenset({"pp"}),
        num_microbatches=num_microbatches,
        mesh=build_mesh("cpu", degrees),
        device=torch.device("cpu"),
    )
    strategy = PipelineParallel(schedule=schedule)  # pyright: ignore[reportArgumentType]
    pipeline = strategy.make(program.facts, run, BusyMeter(torch.device("cpu"), first_step=1))
    program = pipeline.install(program)
    batches = [Batch(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.long)) for _ in range(num_microbatches)]
    found: list[tuple[float, float]] = []
    for _ in range(STEPS):
        dist.barrier()  # as the optimizer step makes the ranks wait for each other
        began_s = time.perf_counter()
        program.forward_backward(program, batches, 1.0, no_span)
        took_s = torch.tensor(time.perf_counter() - began_s)
        dist.all_reduce(took_s, dist.ReduceOp.MAX)
        bubble = pipeline.measured_bubble()
        if bubble is not None:
            found.append((float(took_s), bubble))
        pipeline.meter.forget()
    return min(found)[1]


def work() -> None:
    """One rank: all cases; rank 0 prints what was measured."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for schedule, num_microbatches in cases():
        bubble = measure(schedule, num_microbatches)
        if dist.get_rank() == 0:
            print(json.dumps([schedule, num_microbatches, bubble]), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def start() -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-P", __file__, "rank"],
            env=os.environ | shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else None,
            text=True,
        )
        for rank in range(RANKS)
    ]


def row(schedule: str, num_microbatches: int, measured: float) -> dict[str, Any]:
    """A measurement with what was to be expected."""
    from stepladder.strategies.pipeline.bubble import formula, simulate
    from stepladder.strategies.pipeline.schedule import order_table

    stages = STAGES_PER_RANK[schedule]
    ones = [1.0] * RANKS * stages
    table = order_table(schedule, None, RANKS, stages, num_microbatches)
    return {
        "schedule": schedule,
        "num_microbatches": num_microbatches,
        "stages_per_rank": stages,
        "measured": round(measured, 4),
        "formula": formula(schedule, RANKS, stages, num_microbatches),
        "simulated": simulate(table, ones, ones, ones).bubble,
    }


def percent(value: float | None) -> str:
    return "      -" if value is None else f"{100 * value:6.1f}%"


def main() -> int:
    """Measure, print the table, write the results; 0 if every case is as close as allowed."""
    processes = start()
    rows: list[dict[str, Any]] = []
    print(f"bubble of {RANKS} ranks, {1000 * SLEEP_S:.0f} ms each for forward and the two halves of backward")
    print(f"{'schedule':<24} {'stages':>6} {'micro':>5} {'measured':>9} {'formula':>8} {'simulated':>9}", flush=True)
    try:
        assert processes[0].stdout is not None
        for line in processes[0].stdout:
            found = row(*json.loads(line))
            rows.append(found)
            print(
                f"{found['schedule']:<24} {found['stages_per_rank']:>6} {found['num_microbatches']:>5} "
                f"{percent(found['measured']):>9} {percent(found['formula']):>8} {percent(found['simulated']):>9}",
                flush=True,
            )
        failed = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(failed) or len(rows) != len(list(cases())):
        print("not measured: a rank failed")
        return 1
    worst = max(rows, key=lambda each: abs(each["measured"] - each["simulated"]))
    difference = worst["measured"] - worst["simulated"]
    passed = abs(difference) <= ALLOWED
    machine = f"{os.cpu_count()} x {platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}"
    RESULTS.write_text(
        json.dumps({"ranks": RANKS, "sleep_s": SLEEP_S, "steps": STEPS - 1, "machine": machine, "rows": rows}, indent=1)
        + "\n"
    )
    print(
        f"{'PASS' if passed else 'FAIL'}: {len(rows)} bubbles measured; the furthest from what is expected is "
        f"{worst['schedule']} with {worst['num_microbatches']} microbatches, by {100 * difference:+.1f} points of "
        f"{100 * ALLOWED:.0f} allowed"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["rank"]:
        work()
    else:
        sys.exit(main())
