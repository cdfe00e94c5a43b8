"""`stepladder data bench`: what the step uses up, what loaders of several settings give, and which to take."""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..trainer.data.config import LoaderConfig
from ..trainer.data.loader_advice import WAIT_LIMIT_PERCENT, settings
from .errors import ExitCode, UsageError
from .feeding import cores_of_a_rank
from .instruments import StepTimes
from .plan import Plan
from .recipe import PACKAGE

if TYPE_CHECKING:
    from ..trainer.data.trial import Trial, Tried

_STEPS = 14
_WARMUP_STEPS = 4
_DEPTHS = (2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting, all ranks of the machine together."""

    kind: str
    num_workers: int
    prefetch: int
    samples_per_s: float
    """As fast as they come."""
    wait_percent: float
    """At the pace of the step; of the rank that waits most."""
    make_ms: float
    """Work to make a microbatch."""

    @property
    def loader(self) -> str:
        """Its line of a recipe."""
        return settings(num_workers=self.num_workers, kind=self.kind, prefetch=self.prefetch)


def run(options: argparse.Namespace) -> int:
    """Measure, and say what to set. Raises: UsageError, DataError."""
    from ..trainer.data.check import check_data
    from . import recipe as recipes
    from .plan import plan_here

    plan = plan_here(recipes.read(options.recipe, options.overrides), num_ranks=options.ranks)
    if plan.recipe.data.chosen.num_ids == 0 and plan.recipe.data.name.startswith("synthetic"):
        raise UsageError(f"data.{plan.recipe.data.name}: is on the device already, so there is nothing to measure")
    for name in ("out", "json"):
        path = getattr(options, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"--{name} {path}: there is no such folder; make it first")
    check_data(plan.recipe.data, plan.recipe.batch.sequence_length, plan.held_out_sequences, print)
    step = step_alone(options.recipe, options.overrides, options.ranks)
    samples = plan.recipe.batch.microbatch_size * plan.recipe.num_microbatches * plan.num_data_ranks
    print(
        f"step        {1000 * step:,.1f} ms with its data there: {samples / step:,.0f} samples/s are used up by "
        f"{plan.num_ranks} rank{'s' if plan.num_ranks > 1 else ''}"
    )
    print("loader                       samples/s   of need   a step waits")
    rows: list[Row] = []
    with _pool(plan.num_data_ranks) as pool:
        for row in _measured(plan, pool, step, options):
            rows.append(row)
            need = row.samples_per_s * step / samples
            print(
                f"{_named(row):<26} {row.samples_per_s:>11,.0f} {need:>8.2f}x {row.wait_percent:>12.1f} %", flush=True
            )
    best = choose(rows)
    print(*_advice(best, rows, plan), sep="\n")
    if options.out is not None:
        write_recipe(options.out, options.recipe, best)
        print(f"recipe      {options.out}")
    if options.json is not None:
        told = {
            "step_s": step,
            "samples_per_step": samples,
            "rows": [asdict(row) for row in rows],
            "best": asdict(best),
        }
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    return ExitCode.DONE


def _named(row: Row) -> str:
    if not row.num_workers:
        return "no workers"
    several = ("es" if row.kind == "process" else "s") if row.num_workers > 1 else ""
    return f"{row.num_workers} {row.kind}{several}, prefetch {row.prefetch}"


def choose(rows: Sequence[Row]) -> Row:
    """The least effort with which the step does not wait; else what waits least."""
    enough = [row for row in rows if row.wait_percent < WAIT_LIMIT_PERCENT]
    if enough:
        return min(enough, key=lambda row: (row.num_workers, row.prefetch, row.wait_percent))
    return min(rows, key=lambda row: row.wait_percent)


def _advice(best: Row, rows: Sequence[Row], plan: Plan) -> list[str]:
    """What to set, and what else if that does not suffice."""
    now = plan.recipe.loader
    same = (best.num_workers, best.kind if best.num_workers else "process") == (now.num_workers, now.worker_kind)
    same = same and (not best.num_workers or best.prefetch == (now.prefetch_factor or 2))
    lines = [f"set         {best.loader}" + ("   (as the recipe has it)" if same else "")]
    if best.wait_percent >= WAIT_LIMIT_PERCENT:
        lines.append(
            f"            the step still waits {best.wait_percent:.0f} % of the time: a microbatch takes "
            f"{best.make_ms:,.1f} ms to make, on {cores_of_a_rank(plan.num_ranks)} cores a rank; do some of it before"
        )
    return lines


def step_alone(recipe: str, overrides: Sequence[str], num_ranks: int | None) -> float:
    """Seconds of a step that has its data: a short run that trains on one batch again and again. Raises: UsageError."""
    off = ["evaluation=false", "checkpoint=false", "profiler=false", "trackers=false"]
    sets = [part for each in (*overrides, *off) for part in ("--set", each)]
    ranks = [] if num_ranks is None else ["--ranks", str(num_ranks)]
    with tempfile.TemporaryDirectory() as name:
        times, out = Path(name) / "times.json", Path(name) / "run"
        command = [sys.executable, "-P", "-m", PACKAGE, "run", recipe, "--out", str(out), *sets, *ranks]
        command += ["--same-batch", "--stop-after", str(_STEPS), "--step-times", str(times)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            why = next((line for line in said if line.startswith("error:")), said[-1] if said else "it said nothing")
            raise UsageError(f"{recipe}: its step cannot be measured ({why.removeprefix('error: ')})")
        step_s = StepTimes.read(times).step_s
    return statistics.median(step_s[min(_WARMUP_STEPS, len(step_s) - 1) :])


@contextmanager
def _pool(num_ranks: int) -> Generator[ProcessPoolExecutor]:
    """A process for each data rank, fresh, as those of a run are."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(num_ranks, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def _measured(plan: Plan, pool: ProcessPoolExecutor, step_s: float, options: argparse.Namespace) -> Iterator[Row]:
    """Settings one after the other: more workers until the step no longer waits, deeper queues if it still does."""
    counts = _counts(options.workers, cores_of_a_rank(plan.num_ranks))
    for kind in ("process", "thread"):
        best: Row | None = None
        for count in counts if kind == "process" else [count for count in counts if count]:
            row = _row(plan, pool, step_s, kind, count, _DEPTHS[0], options.seconds)
            yield row
            best = row if best is None or row.wait_percent < best.wait_percent else best
            if options.workers is None and row.wait_percent < WAIT_LIMIT_PERCENT / 2:
                break
        if best is not None and best.num_workers and best.wait_percent >= WAIT_LIMIT_PERCENT:
            for depth in _DEPTHS[1:]:
                yield _row(plan, pool, step_s, kind, best.num_workers, depth, options.seconds)


def _counts(given: str | None, cores: int) -> list[int]:
    """Numbers of workers to try: none, and powers of two up to twice the cores. Raises: UsageError."""
    if given is None:
        most = max(4, 2 * cores)
        return [0, *(count for count in (1, 2, 4, 8, 16, 32, 64, 128) if count <= most)]
    try:
        counts = sorted({int(each) for each in given.split(",")})
    except ValueError:
        counts = [-1]
    if counts[0] < 0:
        raise UsageError(f"--workers {given}: must be numbers from 0 on, with commas between them")
    return counts


def _row(
    plan: Plan, pool: ProcessPoolExecutor, step_s: float, kind: str, count: int, depth: int, seconds: float
) -> Row:
    """One setting on all ranks at once."""
    from ..trainer.data.trial import try_loader

    loader = LoaderConfig(
        num_workers=count,
        worker_kind=cast(Any, kind if count else "process"),
        prefetch_factor=depth if count else None,
    )
    tried: list[Tried] = list(pool.map(try_loader, _trials(plan, loader, step_s, seconds)))
    return Row(
        kind=kind if count else "process",
        num_workers=count,
        prefetch=depth if count else 2,
        samples_per_s=sum(each.samples_per_s for each in tried),
        wait_percent=max(100 * each.waited_s / each.run_s for each in tried),
        make_ms=statistics.mean(each.make_ms for each in tried),
    )


def _trials(plan: Plan, loader: LoaderConfig, step_s: float, seconds: float) -> "list[Trial]":
    import torch

    from ..trainer.data.order import Share
    from ..trainer.data.trial import Trial
    from ..trainer.data.wanted import Wanted

    recipe = plan.recipe
    wanted = Wanted(
        sequence_length=recipe.batch.sequence_length,
        vocab_size=recipe.model.chosen.vocab_size,
        seed=recipe.run.seed,
        device=torch.device("cpu"),
    )
    share = Share(
        num_samples=1,
        microbatch_size=recipe.batch.microbatch_size,
        num_microbatches=recipe.num_microbatches,
        rank=0,
        num_ranks=plan.num_data_ranks,
        seed=recipe.run.seed,
    )
    computes = plan.device_type == "cpu"
    one = Trial(
        data=recipe.data, wanted=wanted, loader=loader, share=share, step_s=step_s, computes=computes, seconds=seconds
    )
    return [replace(one, share=replace(share, rank=rank)) for rank in range(plan.num_data_ranks)]


def write_recipe(out: Path, recipe: str, best: Row) -> None:
    """A recipe that extends another one by the best setting. Raises: UsageError."""
    from . import recipe as recipes

    base = recipe if recipe in recipes.shipped() and not Path(recipe).is_file() else None
    base = base or os.path.relpath(Path(recipe).resolve(), out.resolve().parent)
    lines = [f"extends = {json.dumps(base)}", "", "[loader]", f"num_workers = {best.num_workers}"]
    if best.num_workers:
        lines += [f'worker_kind = "{best.kind}"', f"prefetch_factor = {best.prefetch}"]
    try:
        out.write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror})") from error
