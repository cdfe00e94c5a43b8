"""One rank of a run with a planted fault: the fault is put in, then it is `stepladder` as it always is.

    rank.py FAULT run recipe.toml --out FOLDER

A fault is what users do to themselves, or what machines do to them, that no key of a recipe stands for.
"""

import gc
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

SLOW_SAMPLES_S = 0.25
"""To read a microbatch, of which the loop has not asked for one ahead."""
NUM_LIVE_OBJECTS = 2_000_000
PAGEABLE_MB = 128


def starved_loader() -> None:
    """Every read of a microbatch is slow, and there is no worker that would do it ahead."""
    from stepladder.trainer.data.source import PackedBytes

    read = PackedBytes.__getitems__

    def slowly(self: Any, indices: Any) -> Any:
        time.sleep(SLOW_SAMPLES_S)
        return read(self, indices)

    PackedBytes.__getitems__ = slowly


def sync_every_step() -> None:
    """A look at every block's output, as in a hunt for a NaN that was forgotten in the model."""

    def look(block: Any, output: Any) -> Any:
        assert output.detach().abs().max().item() < 1e6
        return output

    _after_each_block(look)


def straggler_rank() -> None:
    """Rank 1 computes every block twice: a device of half the speed."""
    import os

    from stepladder.trainer.models.decoder import Block

    if os.environ["RANK"] != "1":
        return
    forward = Block.forward

    def twice(self: Any, *inputs: Any) -> Any:
        import torch

        with torch.no_grad():
            forward(self, *inputs)
        return forward(self, *inputs)

    Block.forward = twice


def accumulation_without_no_sync() -> None:
    """DDP's `no_sync()` does nothing: gradients are reduced after each microbatch."""
    from torch.nn.parallel import DistributedDataParallel

    DistributedDataParallel.no_sync = lambda self: nullcontext()  # type: ignore[method-assign]


def recompilation_every_step() -> None:
    """The model asks a name that is another one in each step, which is a guard of the compiled graph."""
    from stepladder.trainer.models.decoder import Block

    forward, calls = Block.forward, iter(range(1_000_000))

    def named(self: Any, *inputs: Any) -> Any:
        if self.label.startswith("never"):
            return inputs[0]
        return forward(self, *inputs)

    Block.forward, Block.label = named, "block"

    def next_step() -> None:
        Block.label = f"block of step {next(calls)}"

    _after_each_step(next_step)


def gc_pauses() -> None:
    """A program with many live objects, which collects by itself after each step to save memory."""
    kept: list[Any] = []

    def collect() -> None:
        if not kept:
            kept.extend([each] for each in range(NUM_LIVE_OBJECTS))
        gc.collect()

    _after_each_step(collect)


def pageable_copies() -> None:
    """The batch's way to the device: a copy of pageable memory, which the host waits for. See `fake_device`."""
    import torch

    from stepladder.trainer.data.feed import DeviceFeed

    to_device = DeviceFeed.to_device
    staged = torch.zeros(PAGEABLE_MB << 18), torch.empty(PAGEABLE_MB << 18)

    def copied(self: Any, microbatches: Any) -> Any:
        staged[1].copy_(staged[0])
        return to_device(self, microbatches)

    DeviceFeed.to_device = copied  # type: ignore[method-assign]


def _after_each_block(look: Callable[[Any, Any], Any]) -> None:
    from stepladder.trainer.models.decoder import Block

    forward = Block.forward
    Block.forward = lambda self, *inputs: look(self, forward(self, *inputs))


def _after_each_step(follow: Callable[[], None]) -> None:
    """Have the optimizer step followed by a function, as a program of one's own would."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: follow())


PLANTS = {
    plant.__name__: plant
    for plant in (
        starved_loader, sync_every_step, straggler_rank, accumulation_without_no_sync, recompilation_every_step,
        gc_pauses, pageable_copies,
    )
}  # fmt: skip


def main() -> int:
    from stepladder.launch.cli import main as stepladder

    PLANTS.get(sys.argv[1], lambda: None)()
    return stepladder(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
