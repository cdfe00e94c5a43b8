"""Steps of any recipe by the trainer, on any mesh, and the same ones by a loop that knows nothing of the trainer.

`parity.py` is for the decoder and its many combinations; this is for what else may stand in `model` and `data`.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stepladder.launch.build import build_program
from stepladder.launch.plan import make_plan
from stepladder.launch.ranks import Ranks, Voice
from stepladder.launch.recipe import Recipe, parse
from stepladder.profiling.record import no_span
from stepladder.strategies.materialise import seed_of
from stepladder.strategies.mesh import data_rank
from stepladder.trainer.data.feed import DeviceFeed, host_batches
from stepladder.trainer.data.order import Share
from stepladder.trainer.data.source import Source, open_source
from stepladder.trainer.loop import Watcher, train

NUM_STEPS = 5
GLOBAL_BATCH = 8
CPU = torch.device("cpu")

Tree = dict[str, Any]


def recipe_tree(
    model: Tree, data: Tree, strategies: Tree | None = None, mesh: Tree | None = None, *, num_ranks: int = 1
) -> Tree:
    """A recipe whose global batch is the same however many ranks share it."""
    data_ranks = math.prod((mesh or {}).get(axis, 1) for axis in ("dp_replicate", "dp_shard")) if mesh else num_ranks
    micro = ((strategies or {}).get("accumulation") or {}).get("num_microbatches", 1)
    return {
        "run": {"num_steps": NUM_STEPS, "seed": 3, "device": "cpu"},
        "model": model,
        "data": data,
        "mesh": mesh or {},
        "batch": {"microbatch_size": GLOBAL_BATCH // data_ranks // micro, "sequence_length": 16},
        "strategies": {"adamw": {"learning_rate": 3e-3}, "clip": {"max_norm": 0.5}} | (strategies or {}),
    }


def samples(recipe: Recipe) -> Source:
    return open_source(
        recipe.data,
        "train",
        sequence_length=recipe.batch.sequence_length,
        vocab_size=recipe.model.chosen.vocab_size,
        seed=recipe.run.seed,
        device=CPU,
    )


def by_trainer(tree: Tree, num_ranks: int) -> list[float]:
    """Loss of each step, the mean over what counts."""
    torch._dynamo.reset()
    plan = make_plan(parse(tree, {}), num_gpus=0, num_ranks=num_ranks, started=True)
    recipe = plan.recipe
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    program = build_program(plan, Ranks(rank=rank, local_rank=rank, num_ranks=num_ranks), CPU)
    assert program.make_optimizer is not None
    optimizer = program.make_optimizer(program.model)
    source = samples(recipe)
    share = Share(
        num_samples=len(source),
        microbatch_size=recipe.batch.microbatch_size,
        num_microbatches=recipe.num_microbatches,
        rank=data_rank(rank, plan.degrees),
        num_ranks=plan.num_data_ranks,
        seed=recipe.run.seed,
    )
    counts = float(plan.tokens_per_step)
    feed = DeviceFeed(
        batches=host_batches(source, share, recipe.loader, first_step=0, pin=False),
        num_microbatches=recipe.num_microbatches,
        device=CPU,
        count_tokens=lambda microbatches: counts,
        on_device=True,
    )
    losses: list[float] = []
    voice = Voice.of(rank, plan.degrees)

    def look(result: Any) -> None:
        total = result.loss_sum.double() * voice.loss
        if num_ranks > 1:
            torch.distributed.all_reduce(total)
        losses.append(float(total) / counts)

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
    return losses


def by_hand(
    tree: Tree,
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    *,
    parts: int = 1,
    after_step: Callable[[nn.Module], None] = lambda model: None,
) -> list[float]:
    """The same by AdamW over whole batches; `loss` is the mean, of each of `parts` equal parts by itself."""
    recipe = parse(tree, {})
    source = samples(recipe)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)
    share = Share(
        num_samples=len(source), microbatch_size=GLOBAL_BATCH, num_microbatches=1, rank=0, num_ranks=1, seed=3
    )
    losses: list[float] = []
    for indices in itertools.islice(share.microbatches(0), NUM_STEPS):
        batch = source.__getitems__(indices)
        pieces = zip(batch.inputs.chunk(parts), batch.labels.chunk(parts), strict=True)
        total = sum((loss(model, *piece) / parts for piece in pieces), start=torch.zeros(()))
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        after_step(model)
        losses.append(float(total.detach()))
    return losses


def with_weights_of(recipe: Recipe) -> nn.Module:
    """The recipe's module with the weights that a run begins with: a function of seed and name."""
    chosen = recipe.model.chosen
    model, facts = chosen.build(), chosen.facts(recipe.batch.sequence_length)
    assert facts.initialise is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            facts.initialise(name, parameter, torch.Generator().manual_seed(seed_of(recipe.run.seed, name)))
    return model


def largest_difference(found: list[float], expected: list[float]) -> float:
    """Relative; infinite if a loss is not finite."""
    pairs = [abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)]
    return max(each if math.isfinite(each) else math.inf for each in pairs)
