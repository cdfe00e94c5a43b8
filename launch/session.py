"""One rank's training: everything that lives from the first step to the last, put together around the loop.

Takes the recipe apart and hands each part its own table; nothing below this floor sees a recipe.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..profiling.record import marker
from ..profiling.spans import Span
from ..strategies.base import Program
from ..strategies.mesh import Axis, coordinates, data_rank
from ..trainer.checkpoint.errors import CheckpointError
from ..trainer.checkpoint.manager import Checkpoints, last_checkpoint
from ..trainer.clock import StepClock
from ..trainer.data.order import Share
from ..trainer.evaluation import EvaluationRecord, evaluate
from ..trainer.loop import Watcher, train
from ..trainer.metrics import Meter, MetricsFile, Record, log_line, peak_flops
from . import recording, run_folder
from .build import build_program
from .console import Console, shown
from .errors import ExitCode
from .failures import written_down
from .feeding import Feeding, build_feeding, say_order
from .instruments import Instruments, write_step_times
from .plan import Plan
from .ranks import Ranks, StopRequest, Voice, agree, barrier, gather, sum_over_ranks
from .recipe import flatten, resolved
from .recording import paused
from .testimony import with_witness
from .trackers.follow import metrics_file

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

    from ..trainer.data.source import Source


@dataclass(kw_only=True)
class Session:
    """One rank's run: the pieces that live from the first step to the last."""

    plan: Plan
    ranks: Ranks
    device: "torch.device"
    folder: Path
    stop: StopRequest
    command: Sequence[str]
    """The command line, for the record in the run folder."""
    instruments: Instruments = field(default_factory=Instruments)

    def run(self, *, resume: bool) -> int:
        """Build, train, save, report."""
        with ExitStack() as stack:
            recording.remember_allocations(stack, self.plan.recipe.profiler, self.folder, self.ranks.rank)
            with written_down(self.folder, self.ranks.rank):
                return self._train(stack, resume=resume)

    def _train(self, stack: ExitStack, *, resume: bool) -> int:
        """Build everything around the loop, and run it."""
        import torch

        recipe = self.plan.recipe
        # Weights and data have generators of their own. Ranks that compute the same must draw the same.
        torch.manual_seed(recipe.run.seed + self.ranks.rank // self.plan.degrees[Axis.TP])
        program = self._program()
        assert program.make_optimizer is not None, "check has made sure that a strategy owns the optimizer"
        optimizer = program.make_optimizer(program.model)
        base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        source = self._source("train")
        checkpoints = self._checkpoints(program, optimizer, source)
        first_step = self._resume(checkpoints) if resume else 0
        feeding = self._feeding(source, first_step)
        console = Console(active=self.ranks.rank == 0, num_steps=self._num_steps, first_step=first_step)
        say_order(source, self.plan.num_data_ranks, console, self.folder)
        if first_step:
            console.say(f"continuing after step {first_step}")
        metrics = metrics_file(stack, recipe, self.folder, console, first_step)
        meter = self._meter(feeding, first_step, console, metrics)
        clock = StepClock(device=self.device)
        watchers = [Watcher(every=1, look=clock.look)] if self.instruments.step_times else []
        watchers.append(Watcher(every=recipe.run.log_every, look=meter.look, at_first=True, span=Span.LOGGING))
        watchers.append(Watcher(every=1, look=meter.ask))
        if recipe.evaluation:
            evaluate_after = self._evaluation(program, console, metrics)
            if first_step == 0:
                evaluate_after(0)
            look = paused(meter, self.device, lambda result: evaluate_after(result.step))
            watchers.append(Watcher(every=recipe.evaluation.every, look=look, span=Span.EVALUATION))
        if recipe.checkpoint:
            look = paused(meter, self.device, lambda result: self._save(checkpoints, result.step, console))
            watchers.append(Watcher(every=recipe.checkpoint.every, look=look, span=Span.CHECKPOINT))
        if console.draws:
            watchers.append(Watcher(every=1, look=console.look))
        profiler = recipe.profiler
        watchers.append(stack.enter_context(recording.collection_by_steps(recipe.run.gc_every)))
        with ExitStack() as window:
            watchers += recording.profilers(window, profiler, self.folder, self.ranks.rank, first_step)
            meter.start()
            clock.start()
            done = train(
                program,
                optimizer,
                feeding.feed,
                num_steps=self._num_steps,
                first_step=first_step,
                base_rates=base_rates,
                watchers=watchers,
                wants_norm=lambda step: step % recipe.run.log_every == 0 or step in (1, self._num_steps),
                mark=marker(record=bool(profiler and profiler.trace), nvtx=bool(profiler and profiler.nvtx)),
            )
        loading = self._measured(clock, feeding, meter)
        if recipe.checkpoint and done > first_step:
            self._save(checkpoints, done, console)
        return self._finish(done, program, console, loading)

    def _measured(self, clock: StepClock, feeding: Feeding, meter: Meter) -> Sequence[str]:
        """Leave the times of steps and loader while nothing else has been timed; what to say of the loader."""
        if path := self.instruments.step_times:
            waited_s = feeding.feed.waited_s
            write_step_times(path, clock, plan=self.plan, ranks=self.ranks, device=self.device, waited_s=waited_s)
        return feeding.report(self.ranks, self.folder, meter.paused_s)

    def _program(self) -> Program:
        """The recipe's program, with a witness in it if somebody wants its exact numbers."""
        program, path = build_program(self.plan, self.ranks, self.device), self.instruments.witness
        if path is None:
            return program
        steps, backwards = self._num_steps, self.instruments.backwards
        return with_witness(
            program, self.plan, self.ranks, num_steps=steps, backwards=backwards, leave=lambda told: told.write(path)
        )

    @property
    def _num_steps(self) -> int:
        return self.instruments.num_steps(self.plan.recipe.run.num_steps)

    def _source(self, split: str) -> "Source":
        from ..trainer.data.source import open_source

        recipe = self.plan.recipe
        return open_source(
            recipe.data,
            split,
            sequence_length=recipe.batch.sequence_length,
            vocab_size=recipe.model.chosen.vocab_size,
            seed=recipe.run.seed,
            device=self.device,
        )

    def _share(self, source: "Source", num_microbatches: int) -> Share:
        recipe = self.plan.recipe
        return Share(
            num_samples=len(source),
            microbatch_size=recipe.batch.microbatch_size,
            num_microbatches=num_microbatches,
            rank=data_rank(self.ranks.rank, self.plan.degrees),
            num_ranks=self.plan.num_data_ranks,
            seed=recipe.run.seed,
            by_epoch=getattr(source, "varies", False),
        )

    def _feeding(self, source: "Source", first_step: int) -> Feeding:
        share, same = self._share(source, self.plan.recipe.num_microbatches), self.instruments.same_batch
        add = self._sum_of_tokens()
        return build_feeding(self.plan, self.device, source, share, add, first_step=first_step, same_batch=same)

    def _meter(self, feeding: Feeding, first_step: int, console: Console, metrics: MetricsFile) -> Meter:
        import torch

        num_steps = self._num_steps
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""

        def write(record: Record) -> None:
            if self.ranks.rank == 0:
                metrics.write(record)
                console.say(log_line(record, num_steps, self.plan.facts.unit))
                console.say(*feeding.warning(record.data_wait_percent, meter.paused_s))
                if not math.isfinite(record.loss):
                    console.say("warning: the loss is not finite; a lower learning rate or strategies.clip may help")

        meter = Meter(
            num_steps=num_steps,
            first_step=first_step,
            tokens_per_step=self.plan.tokens_per_step,
            flops_per_token=self.plan.facts.flops_per_token,
            peak=peak_flops(name) if self.plan.facts.flops_per_token else None,
            num_ranks=self.ranks.num_ranks,
            device=self.device,
            reduce=sum_over_ranks(self.ranks),
            loss_counts=self._voice.loss,
            waited_s=lambda: feeding.feed.waited_s,
            stop_requested=self.stop.requested,
            write=write,
        )
        return meter

    @property
    def _voice(self) -> Voice:
        return Voice.of(self.ranks.rank, self.plan.degrees)

    def _sum_of_tokens(self) -> "Callable[[torch.Tensor], torch.Tensor]":
        reduce, counts = sum_over_ranks(self.ranks), self._voice.tokens
        return lambda tokens: reduce(tokens * counts)

    def _sum_of_losses_and_tokens(self, loss: "torch.Tensor", tokens: "torch.Tensor") -> list[float]:
        import torch

        own = torch.stack([loss * self._voice.loss, tokens * self._voice.tokens])
        return sum_over_ranks(self.ranks)(own).tolist()

    def _evaluation(self, program: Program, console: Console, metrics: MetricsFile) -> Callable[[int], None]:
        """Function that evaluates after so many steps."""
        from ..trainer.data.feed import held_out_batches

        recipe, facts = self.plan.recipe, self.plan.facts
        named = facts.unit != "sample"  # what the loss of a user's own model is, only the user knows
        assert recipe.evaluation is not None, "called only with an evaluation"
        source = self._source("held_out")
        # The share of a single step with that many microbatches: always the same samples, none of them twice.
        available = len(source) // (recipe.batch.microbatch_size * self.plan.num_data_ranks)
        share = self._share(source, min(recipe.evaluation.num_microbatches, max(1, available)))
        batches = held_out_batches(source, share, recipe.loader, self.device)

        def evaluate_after(step: int) -> None:
            loss, num_tokens = evaluate(program, batches(), self._sum_of_losses_and_tokens)
            if self.ranks.rank == 0:
                metrics.write(EvaluationRecord(step=step, held_out_loss=loss, num_tokens=num_tokens))
                told = f"{loss:.4f} {'nats ' * named}{facts.one_unit}, {num_tokens:,} {facts.unit}s"
                console.say(f"step {step}  held-out loss {told}")

        return evaluate_after

    def _checkpoints(self, program: Program, optimizer: "Optimizer", source: "Source") -> Checkpoints:
        recipe = self.plan.recipe
        return Checkpoints(
            folder=self.folder / "checkpoints",
            program=program,
            optimizer=optimizer,
            device=self.device,
            rank=self.ranks.rank,
            num_ranks=self.ranks.num_ranks,
            agree=lambda problem: agree(self.ranks, problem),
            position=lambda step: self._share(source, recipe.num_microbatches).position(step, source.fingerprint),
            identity={
                "seed": recipe.run.seed,
                "data": source.fingerprint,
                "tokens_per_step": self.plan.tokens_per_step,
                **{f"model.{key}": value for key, value in flatten(resolved(recipe)["model"])},
            },
        )

    def _save(self, checkpoints: Checkpoints, step: int, console: Console) -> None:
        config = self.plan.recipe.checkpoint
        assert config is not None, "called only with checkpoints"
        if path := checkpoints.save(step, config):
            console.say(f"step {step}  checkpoint {shown(path)}")

    def _resume(self, checkpoints: Checkpoints) -> int:
        path = last_checkpoint(checkpoints.folder)
        step = checkpoints.load(path)
        if step > self._num_steps:
            raise CheckpointError(f"run.num_steps = {self._num_steps}: {path} is further than that; ask for more")
        if self.ranks.rank == 0:
            run_folder.record(self.folder, self.plan.recipe, command=self.command)
        return step

    def _reports(self, program: Program) -> list[str]:
        """What strategies and model have to say, each line once: the stages of a pipeline know of different layers."""
        own = [line for report in program.reports for line in report()]
        at = coordinates(self.ranks.rank, self.plan.degrees)
        speaks = all(place == 0 for axis, place in at.items() if axis is not Axis.PP)
        return list(dict.fromkeys(line for each in gather(self.ranks, own if speaks else []) for line in each))

    def _finish(self, done: int, program: Program, console: Console, loading: Sequence[str]) -> int:
        """Say what there is to say and leave `exit.json`."""
        recipe = self.plan.recipe
        console.clear()
        console.say(*loading, *self._reports(program))
        barrier(self.ranks)  # every rank has written its trace
        if recipe.profiler and recipe.profiler.trace and console.active:
            from .trace_command import after_run

            console.say(*after_run(self.folder))
        stopped = done < self._num_steps
        code = self.stop.exit_code if stopped else ExitCode.DONE
        reason = f"stopped by a signal after step {done}" if stopped else "done"
        if self.ranks.rank == 0:
            run_folder.write_exit(self.folder, code=code, steps=done, reason=reason)
        console.say(f"{reason}: {done} of {self._num_steps} steps; {shown(self.folder)}")
        return code
