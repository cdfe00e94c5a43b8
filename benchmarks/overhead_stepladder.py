"""The stepladder arm of `overhead.py`: `stepladder run` under torchrun's environment, with its source exchanged.

A recipe's source cannot show when a step begins, and a recipe has no name for an MLP. So two functions of the session
are replaced: the one that opens the source, and for the MLP the one that makes the program. All else is what the
command does: the strategies of the recipe, feed, loop, a meter that writes `metrics.jsonl` and a log line, a checkpoint
watcher, garbage collection by step, a stop handler.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, device, nn

    from stepladder.launch.plan import Plan
    from stepladder.launch.ranks import Ranks
    from stepladder.strategies.base import Batch, Program
    from stepladder.trainer.data.source import Source

_RECIPE = """\
name = "overhead"
checkpoint = {checkpoint}

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
_ENDLESS = 10**9
"""Steps of a run that the driver ends; none is the last, which would write a checkpoint."""


def one_step_recipe(ranks: int) -> str:
    """A recipe that trains the decoder for one step, as TOML."""
    return _recipe(num_steps=1, ranks=ranks, checkpoint="false")


def _recipe(
    *, num_steps: int, ranks: int, microbatch_size: int = 8, sequence_length: int = 256, checkpoint: str
) -> str:
    return _RECIPE.format(
        num_steps=num_steps,
        ranks=ranks,
        microbatch_size=microbatch_size,
        sequence_length=sequence_length,
        checkpoint=checkpoint,
        ddp="{}" if ranks > 1 else "false",
    )


def train(samples: Any, *, mlp: "nn.Module | None", batch_size: int, num_ranks: int, folder: Path) -> None:
    """Train on `samples` without end: the recipe's decoder, or a module in its place."""
    from stepladder.launch import session
    from stepladder.launch.cli import main

    def source_of(self: session.Session, split: str) -> "Source":
        return _as_source(samples)

    session.Session._source = source_of
    if mlp is not None:
        session.build_program = _program_of(mlp)
    recipe = folder / "overhead.toml"
    recipe.write_text(
        _recipe(
            num_steps=_ENDLESS,
            ranks=num_ranks,
            microbatch_size=batch_size,
            sequence_length=1 if mlp else 256,
            checkpoint=f"{{ every = {_ENDLESS} }}",
        )
    )
    code = main(["run", str(recipe), "--out", str(folder / "run")])
    raise SystemExit(f"a run without end has ended with code {code}")


def _program_of(model: "nn.Module") -> Callable[["Plan", "Ranks", "device"], "Program"]:
    """A stand-in for the worker's `build_program`: the plan's strategies around a classifier without facts."""
    import torch.nn.functional as F

    from stepladder.strategies.assemble import assemble
    from stepladder.strategies.base import Facts, Program
    from stepladder.strategies.clip import measure_norm
    from stepladder.strategies.mesh import build_mesh
    from stepladder.trainer.step import accumulate

    def loss(logits: "Tensor", batch: "Batch") -> "Tensor":
        return F.cross_entropy(logits, batch.labels, reduction="sum")

    def build_program(plan: "Plan", ranks: "Ranks", device: "device") -> "Program":
        facts = Facts()
        program = Program(model=model, facts=facts, loss=loss, forward_backward=accumulate, clip_gradients=measure_norm)
        mesh = build_mesh(plan.device_type, plan.degrees) if ranks.num_ranks > 1 else None
        return assemble(program, plan.recipe.strategies, replace(plan.run(), facts=facts, mesh=mesh, device=device))

    return build_program


def _as_source(samples: Any) -> "Source":
    """The samples of all arms: the same gather, its answer in the type that the loop takes."""
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
