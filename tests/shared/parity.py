"""Ten steps of training, by a plain loop in one process and by the trainer on any mesh, to be compared.

The reference knows nothing of the trainer: a module, an optimizer, whole batches, ten steps.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from stepladder.launch.build import build_program
from stepladder.launch.plan import Plan, make_plan
from stepladder.launch.ranks import Ranks, Voice
from stepladder.launch.recipe import parse
from stepladder.profiling.record import no_span
from stepladder.strategies.base import Program
from stepladder.strategies.materialise import seed_of
from stepladder.strategies.mesh import data_rank
from stepladder.strategies.names import canonical
from stepladder.trainer.data.feed import DeviceFeed, host_batches
from stepladder.trainer.data.order import Share
from stepladder.trainer.data.source import SyntheticSource
from stepladder.trainer.loop import Watcher, train
from stepladder.trainer.models.config import DecoderConfig

NUM_STEPS = 10
SEED = 3
LEARNING_RATE = 1e-2
MAX_NORM = 0.5  # below what the gradients have, so that every step is clipped
LOSS_TOLERANCE = 1e-5  # float32: only the order of sums differs
GRADIENT_TOLERANCE = 1e-5
BF16_TOLERANCE = 2e-2  # eight bits of mantissa
MODEL: dict[str, Any] = {
    "dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_dim": 64,
    "vocab_size": 64,
}

Outcome = tuple[list[float], dict[str, torch.Tensor]]
"""Loss of each step, and the gradients of step 1 by parameter; among these their norm, as it was measured."""
NORM = "(norm)"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training: what is the same for the reference and for the trainer, and how the latter does it."""

    num_ranks: int = 1
    strategies: dict[str, Any] = field(default_factory=dict[str, Any])
    mesh: dict[str, int] = field(default_factory=dict[str, int])
    model: dict[str, Any] = field(default_factory=lambda: dict(MODEL))
    global_batch: int = 8
    length: int = 32

    @property
    def same_training(self) -> tuple[Any, ...]:
        """Cases with equal values have the same reference."""
        return (repr(sorted(self.model.items(), key=str)), self.global_batch, self.length, self.clips)

    @property
    def keeps_gradients(self) -> bool:
        """False if a gradient is gone as soon as it is there: then the losses alone must tell."""
        return "optimizer_in_backward" not in self.strategies

    @property
    def clips(self) -> bool:
        return self.strategies.get("clip") is not False

    def recipe_tree(self) -> dict[str, Any]:
        accumulation = (self.strategies.get("accumulation") or {}).get("num_microbatches", 1)
        data_degrees = [self.mesh.get(axis, 1) for axis in ("dp_replicate", "dp_shard", "ep")]
        data_ranks = math.prod(data_degrees) if self.mesh else self.num_ranks
        size, rest = divmod(self.global_batch, data_ranks * accumulation)
        assert rest == 0, f"{self}: the batch does not divide"
        return {
            "run": {"num_steps": NUM_STEPS, "seed": SEED, "device": "cpu"},
            "model": {"decoder": self.model},
            "data": {"synthetic": {}},
            "mesh": self.mesh,
            "batch": {"microbatch_size": size, "sequence_length": self.length},
            "strategies": {"adamw": {"learning_rate": LEARNING_RATE}, "clip": {"max_norm": MAX_NORM}} | self.strategies,
        }

    def plan(self) -> Plan:
        """Raises: UsageError with every problem, if the combination is refused."""
        return make_plan(parse(self.recipe_tree(), {}), num_gpus=0, num_ranks=self.num_ranks, started=True)


def source(case: Case) -> SyntheticSource:
    """Sequences that count upwards from random beginnings: learnt in ten steps, so a fault shows in the losses."""
    vocab_size = case.model["vocab_size"]
    made = SyntheticSource(
        num_samples=64, sequence_length=case.length, vocab_size=vocab_size, seed=SEED, device=torch.device("cpu")
    )
    made.tokens = (made.tokens[:, :1] + torch.arange(case.length + 1)) % vocab_size
    return made


def reference(case: Case) -> Outcome:
    """Ten AdamW steps on whole batches, written out."""
    tree = parse(case.recipe_tree() | {"mesh": {}}, {}).model.chosen
    assert isinstance(tree, DecoderConfig)
    model, facts = tree.build(), tree.facts(case.length)
    assert facts.initialise is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            facts.initialise(name, parameter, torch.Generator().manual_seed(seed_of(SEED, name)))
    decay = [p for p in model.parameters() if p.ndim >= 2]
    spared = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)
    share = Share(num_samples=64, microbatch_size=case.global_batch, num_microbatches=1, rank=0, num_ranks=1, seed=SEED)
    samples = source(case)
    losses, norms, gradients = [], [], {}
    for step, indices in enumerate(itertools.islice(share.microbatches(0), NUM_STEPS)):
        batch = samples.__getitems__(indices)
        loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.labels.flatten())
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM if case.clips else torch.inf)))
        optimizer.step()
        optimizer.zero_grad()
        if facts.after_step is not None:
            facts.after_step(model, lambda counts: None)
        losses.append(float(loss.detach()))
    return losses, gradients | {NORM: torch.tensor(norms[0])}


def identity(program: Program) -> Program:
    return program


def outcome(case: Case, tamper: Callable[[Program], Program] = identity) -> Outcome:
    """The same ten steps by the trainer; `tamper` puts a fault into the program."""
    plan = case.plan()
    recipe = plan.recipe
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    ranks = Ranks(rank=rank, local_rank=rank, num_ranks=case.num_ranks)
    program = tamper(build_program(plan, ranks, torch.device("cpu")))
    gradients: dict[str, torch.Tensor] = {}
    inner = program.clip_gradients

    def keep_gradients(program: Program, parameters: Sequence[torch.nn.Parameter], *, want_norm: bool) -> Any:
        if not gradients and case.keeps_gradients:
            gradients.update(whole_gradients(program))
        return inner(program, parameters, want_norm=want_norm)

    program = replace(program, clip_gradients=keep_gradients)
    assert program.make_optimizer is not None
    optimizer = program.make_optimizer(program.model)
    share = Share(
        num_samples=64,
        microbatch_size=recipe.batch.microbatch_size,
        num_microbatches=recipe.num_microbatches,
        rank=data_rank(rank, plan.degrees),
        num_ranks=plan.num_data_ranks,
        seed=SEED,
    )
    num_tokens = float(case.global_batch * case.length)
    feed = DeviceFeed(
        batches=host_batches(source(case), share, recipe.loader, first_step=0, pin=False),
        num_microbatches=recipe.num_microbatches,
        device=torch.device("cpu"),
        count_tokens=lambda microbatches: num_tokens,
        on_device=True,
    )
    losses: list[float] = []
    norms: list[float] = []
    voice = Voice.of(rank, plan.degrees)

    def look(result: Any) -> None:
        total = result.loss_sum.double() * voice.loss
        if case.num_ranks > 1:
            torch.distributed.all_reduce(total)
        losses.append(float(total) / num_tokens)
        norms.append(float(result.grad_norm) if case.keeps_gradients else math.nan)

    train(
        program,
        optimizer,
        feed,
        num_steps=NUM_STEPS,
        first_step=0,
        base_rates=[group["lr"] for group in optimizer.param_groups],
        watchers=[Watcher(every=1, look=look)],
        wants_norm=lambda step: True,
        mark=no_span,
    )
    return losses, gradients | ({NORM: torch.tensor(norms[0])} if case.keeps_gradients else {})


def whole_gradients(program: Program) -> dict[str, torch.Tensor]:
    """Gradients of all parameters on every rank, put together from shards, slices and stages."""
    own: dict[str, torch.Tensor] = {}
    for name, parameter in program.model.named_parameters():
        grad = parameter.grad
        assert grad is not None, f"{name} has no gradient"
        whole: Any = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        own[canonical(name.removeprefix("module."))] = whole.clone()
    if program.norm_group is None:
        return own
    stages: list[Any] = [None] * torch.distributed.get_world_size(program.norm_group)
    torch.distributed.all_gather_object(stages, own, group=program.norm_group)
    return {name: gradient for stage in stages for name, gradient in stage.items()}


def differences(found: Outcome, expected: Outcome) -> tuple[float, float]:
    """Largest relative difference of a loss, and of a gradient (relative L2); infinite if anything is not finite."""
    (losses, gradients), (true_losses, true_gradients) = found, expected
    assert not gradients or gradients.keys() == true_gradients.keys()
    loss = [abs(a - b) / abs(b) for a, b in zip(losses, true_losses, strict=True)]
    gradient = [float((gradients[k] - true_gradients[k]).norm() / true_gradients[k].norm()) for k in gradients]
    return largest(loss), largest(gradient)


def largest(values: list[float]) -> float:
    """The largest, where NaN is larger than everything: `max` would pass over it."""
    return max((each if math.isfinite(each) else math.inf for each in values), default=0.0)


def differences_of(cases: list[Case]) -> list[tuple[float, float] | str]:
    """For each case the differences from its reference, or in words why there are none; on every rank alike.

    Several cases in one set of processes: starting a process costs more than a case.
    """
    references: dict[tuple[Any, ...], Outcome] = {}
    found: list[tuple[float, float] | str] = []
    for case in cases:
        torch._dynamo.reset()
        if case.same_training not in references:
            references[case.same_training] = reference(case)
        found.append(differences(outcome(case), references[case.same_training]))
    return found
