"""What a recipe means on a given machine: ranks, mesh, batch arithmetic; or every reason why it cannot run there."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..strategies import active
from ..strategies.base import DeviceType, Facts, Run
from ..strategies.check import environment, owned_axes, owners, problems
from ..strategies.mesh import Axis, data_ranks, resolve_degrees
from ..trainer.models.errors import ModelError
from ..trainer.own_file import OwnFileError
from . import devices
from .errors import UsageError
from .schema import Recipe
from .teacher import teacher_problems


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe that has been found fit to run."""

    recipe: Recipe
    device_type: DeviceType
    num_ranks: int
    degrees: Mapping[Axis, int]
    facts: Facts
    capability: tuple[int, int] | None = None
    """Compute capability of the GPUs, where they can be asked."""

    @property
    def num_data_ranks(self) -> int:
        """Ranks that see different samples."""
        return data_ranks(self.degrees)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of all ranks in one optimizer step."""
        return self.recipe.tokens_per_step(self.num_data_ranks)

    @property
    def held_out_sequences(self) -> int:
        """Held-out sequences that one microbatch on each data rank takes; an evaluation needs at least these."""
        return self.recipe.batch.microbatch_size * self.num_data_ranks if self.recipe.evaluation else 0

    def run(self) -> Run:
        """What strategies may know before there is a device or a mesh."""
        return Run(
            device_type=self.device_type,
            degrees=self.degrees,
            facts=self.facts,
            num_steps=self.recipe.run.num_steps,
            tokens_per_step=self.tokens_per_step,
            seed=self.recipe.run.seed,
            active=frozenset(name for name, _ in active(self.recipe.strategies)),
            owners=owners(self.recipe.strategies),
            strategies=self.recipe.strategies,
            num_microbatches=self.recipe.num_microbatches,
            microbatch_size=self.recipe.batch.microbatch_size,
            capability=self.capability,
            deterministic=self.recipe.run.deterministic,
            documents=getattr(self.recipe.data.chosen, "documents", False) or None,
        )

    def environment(self) -> dict[str, tuple[str, str]]:
        """Environment that strategies need: name -> (value, the strategy that wants it)."""
        return environment(self.recipe.strategies, self.run())

    def summary(self) -> list[str]:
        """The plan in a few lines: model, ranks, strategies and the batch arithmetic."""
        batch, micro, unit = self.recipe.batch, self.recipe.num_microbatches, self.facts.unit
        made = f"{batch.microbatch_size * micro * self.num_data_ranks} {'sequence' if unit == 'token' else unit}s"
        if unit == "token":
            made += f"; x {batch.sequence_length} tokens = {self.tokens_per_step:,} tokens"
        axes = ", ".join(f"{axis} {degree}" for axis, degree in self.degrees.items() if degree > 1) or "no axis"
        names = " > ".join(name for name, _ in active(self.recipe.strategies))
        known = self.facts.flops_per_token / 1e9
        flops = f", {known:,.3g} GFLOP {self.facts.one_unit}" if known else ""
        return [
            f"model       {self.facts.num_parameters / 1e6:,.1f} M parameters{flops}",
            f"ranks       {self.num_ranks} x {self.device_type} ({axes})",
            f"strategies  {names}",
            f"batch       microbatch {batch.microbatch_size} x accumulation {micro} x data ranks {self.num_data_ranks} "
            f"= {made} per step",
            *(
                f"environment {key} = {os.environ.get(key, value)} ({'set already' if key in os.environ else name})"
                for key, (value, name) in self.environment().items()
            ),
        ]


def make_plan(
    recipe: Recipe,
    *,
    num_gpus: int,
    num_ranks: int | None = None,
    started: bool = False,
    capability: tuple[int, int] | None = None,
) -> Plan:
    """The plan of a recipe on a machine with `num_gpus`; `num_ranks` overrides what would be started.

    `started` ranks exist already, perhaps on several hosts, so they are not compared with the GPUs of this one.
    Raises: UsageError with every problem.
    """
    device_type = _device_type(recipe, num_gpus)
    owned = owned_axes(recipe.strategies)
    present = max(1, num_gpus) if device_type == "cuda" else recipe.run.cpu_ranks
    ranks = num_ranks or recipe.mesh.required_ranks(owned) or max(present, recipe.mesh.least_ranks)
    degrees, found = resolve_degrees(recipe.mesh, max(ranks, 1), owned)
    plan = Plan(
        recipe=recipe,
        device_type=device_type,
        num_ranks=ranks,
        degrees=degrees,
        facts=_facts(recipe),
        capability=capability if device_type == "cuda" else None,
    )
    found += problems(recipe.strategies, plan.run())
    found += _machine_problems(plan, num_gpus=num_gpus, started=started)
    found += _batch_problems(plan)
    found += teacher_problems(recipe)
    if recipe.profiler:
        found += recipe.profiler.run_problems(num_steps=recipe.run.num_steps, num_ranks=ranks, device_type=device_type)
    if recipe.trackers:
        traces = recipe.profiler is not None and recipe.profiler.trace
        found += recipe.trackers.run_problems(traces=traces)
    found += recipe.loader.run_problems(device_type=device_type, synthetic=recipe.data.name.startswith("synthetic"))
    if found:
        raise UsageError(*found)
    return plan


def _facts(recipe: Recipe) -> Facts:
    """What the model says of itself. Raises: UsageError if it comes from files that are not as they must be."""
    try:
        return recipe.model.chosen.facts(recipe.batch.sequence_length)
    except (OwnFileError, ModelError) as error:
        raise UsageError(str(error)) from error


def plan_here(recipe: Recipe, *, num_ranks: int | None = None, started: bool = False) -> Plan:
    """The plan of a recipe on this machine. Raises: UsageError with every problem."""
    num_gpus = devices.count_gpus()
    # Asking the driver takes a second, so it is asked only on behalf of what depends on the answer.
    capability = devices.compute_capability() if num_gpus and recipe.strategies.fp8 is not None else None
    return make_plan(recipe, num_gpus=num_gpus, num_ranks=num_ranks, started=started, capability=capability)


def _device_type(recipe: Recipe, num_gpus: int) -> DeviceType:
    if recipe.run.device == "auto":
        return "cuda" if num_gpus else "cpu"
    return recipe.run.device


def _machine_problems(plan: Plan, *, num_gpus: int, started: bool) -> Iterator[str]:
    if plan.device_type != "cuda" or started:
        return
    if num_gpus == 0:
        yield "run.device = 'cuda': there is no GPU on this machine; use 'auto' or 'cpu'"
    elif plan.num_ranks > num_gpus:
        yield (
            f"ranks: {plan.num_ranks} are wanted, but this machine has {num_gpus} GPUs; start fewer (--ranks "
            f"{num_gpus}, mesh degrees), or start the hosts together with torchrun"
        )


def _batch_problems(plan: Plan) -> Iterator[str]:
    """A stated batch that the arithmetic does not give, and data that the model has no use for."""
    recipe, batch = plan.recipe, plan.recipe.batch
    length, stated = recipe.tokens_per_sample, batch.tokens_per_step
    if stated is not None and stated != plan.tokens_per_step:
        one = batch.microbatch_size * length * plan.num_data_ranks
        way_out = (
            f"set strategies.accumulation.num_microbatches = {stated // one}"
            if stated % one == 0
            else f"use a multiple of {one}"
        )
        yield (
            f"batch.tokens_per_step = {stated}: microbatch {batch.microbatch_size} x sequence {length} "
            f"x accumulation {recipe.num_microbatches} x data ranks {plan.num_data_ranks} = {plan.tokens_per_step}; "
            f"{way_out}"
        )
    model, data = recipe.model.chosen, recipe.data.chosen
    name, source = recipe.model.name, recipe.data.name
    if model.takes != data.gives and model.takes != "anything":
        yield f"data.{source}: gives {data.gives}, but model.{name} takes {model.takes}; change one of the two"
    elif data.gives == "images":
        yield from _image_problems(recipe)
    elif 0 < model.vocab_size < data.num_ids:
        what = "the data are bytes, 256 ids" if data.num_ids == 256 else f"the data have {data.num_ids:,} ids"
        yield f"model.{name}.vocab_size = {model.vocab_size}: {what}; use at least {data.num_ids}"
    if getattr(data, "streams", False) and recipe.loader.num_workers:
        yield f"loader.num_workers = {recipe.loader.num_workers}: a stream is read by the rank itself; remove it"
    if getattr(data, "documents", False) and not getattr(model, "takes_documents", False):
        yield (
            f"data.{source}.packing: puts several documents into a sample, and model.{name} cannot keep them apart; "
            f"use 'split'"
        )


def _image_problems(recipe: Recipe) -> Iterator[str]:
    """Images of another size than the model was made for, and classes that it has no name for."""
    model, data = recipe.model.chosen, recipe.data.chosen
    for key in ("image_size", "channels", "num_classes"):
        expected, given = getattr(model, key, None), getattr(data, key, None)
        fits = given is None or expected is None or (given <= expected if key == "num_classes" else given == expected)
        if not fits:
            where = f"data.{recipe.data.name}.{key} = {given}"
            yield f"{where}: but model.{recipe.model.name}.{key} = {expected}; make them equal"
