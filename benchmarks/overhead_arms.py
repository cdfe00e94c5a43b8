"""One arm of `overhead.py`: trains one workload with one framework and prints what it took, as JSON on the last line.

All arms train the same model on the same samples with the same optimizer and clipping. They differ in who runs the loop.
The driver starts this file once for every rank, with torchrun's environment variables.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset, DistributedSampler

LOG_EVERY = 10


@dataclass
class Samples(Dataset[Any]):
    """Samples in memory; a batch is one gather, and its beginning is the beginning of a step in every arm."""

    inputs: Tensor
    labels: Tensor
    starts_ns: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitems__(self, indices: "Sequence[int] | Tensor") -> tuple[Tensor, Tensor]:
        """A batch from its indices; torch's DataLoader calls this with the list that its sampler drew."""
        self.starts_ns.append(time.perf_counter_ns())
        rows = torch.as_tensor(indices)
        return self.inputs[rows], self.labels[rows]


@dataclass(kw_only=True)
class Task:
    """What an arm is to do."""

    workload: str
    batch_size: int
    num_steps: int
    rank: int
    num_ranks: int
    samples: Samples
    out: Path
    """Folder for what an arm may write."""
    log: TextIO
    """Where the loops that log by hand write."""

    def model(self) -> nn.Module:
        """The workload's model, with torch's own initial weights."""
        torch.manual_seed(0)
        if self.workload == "mlp":
            return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        from stepladder.trainer.models.config import DecoderConfig

        return DecoderConfig(dim=256, num_layers=4, num_heads=4, ffn_dim=704, vocab_size=256).build()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy."""
        if self.workload == "mlp":
            return F.cross_entropy(logits, labels)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    def loader(self) -> "DataLoader[Any]":
        """torch's DataLoader as frameworks are handed it: shuffled, its shares left to them."""
        return DataLoader(self.samples, batch_size=self.batch_size, shuffle=True, collate_fn=_as_is)

    def report(self, step: int, loss: Tensor) -> None:
        """Log a loss in the first step and in every tenth."""
        if step % LOG_EVERY == 0 or step == 1:
            print(f"step {step} loss {loss.item():.4f}", file=self.log, flush=True)


def _as_is(batch: Any) -> Any:
    return batch


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """The optimizer of all arms; stepladder's recipe says the same."""
    return torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)


def bare(task: Task) -> None:
    """A hand-written loop that gathers its batches itself."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(task.samples), generator=generator)[task.rank :: task.num_ranks]
    _by_hand(task, (task.samples.__getitems__(rows) for rows in order.split(task.batch_size)))


def bare_loader(task: Task) -> None:
    """The same loop over a DataLoader, as the peers have to read their batches."""
    sampler = DistributedSampler(task.samples, task.num_ranks, task.rank) if task.num_ranks > 1 else None
    loader = DataLoader(
        task.samples, batch_size=task.batch_size, shuffle=sampler is None, sampler=sampler, collate_fn=_as_is
    )
    _by_hand(task, iter(loader))


def _by_hand(task: Task, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    model = task.model()
    if task.num_ranks > 1:
        torch.distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = make_optimizer(model)
    for step, (inputs, labels) in enumerate(batches, start=1):
        optimizer.zero_grad()
        loss = task.loss(model(inputs), labels)
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        task.report(step, loss)


def stepladder(task: Task) -> None:
    """The real loop with what the worker puts around it."""
    from overhead_stepladder import as_source, train_decoder, train_mlp

    source = as_source(task.samples)
    if task.workload == "decoder":
        train_decoder(source, ranks=task.num_ranks, num_steps=task.num_steps, out=task.out)
        return
    train_mlp(
        task.model(),
        source,
        ranks=task.num_ranks,
        batch_size=task.batch_size,
        num_steps=task.num_steps,
        out=task.out,
    )


def accelerate(task: Task) -> None:
    """Hugging Face Accelerate without trackers."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)])
    assert accelerator.num_processes == task.num_ranks
    model = task.model()
    model, optimizer, loader = accelerator.prepare(model, make_optimizer(model), task.loader())
    for step, (inputs, labels) in enumerate(loader, start=1):
        optimizer.zero_grad()
        loss = task.loss(model(inputs), labels)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        task.report(step, loss)


def fabric(task: Task) -> None:
    """Lightning Fabric, which leaves the loop to its user."""
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    strategy: Any = DDPStrategy(gradient_as_bucket_view=True) if task.num_ranks > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=task.num_ranks, strategy=strategy)
    fabric.launch()
    assert fabric.world_size == task.num_ranks
    model = task.model()
    model, optimizer = fabric.setup(model, make_optimizer(model))
    loader = fabric.setup_dataloaders(task.loader())
    for step, (inputs, labels) in enumerate(loader, start=1):
        optimizer.zero_grad()
        loss = task.loss(model(inputs), labels)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        task.report(step, loss)


def lightning(task: Task) -> None:
    """Lightning's Trainer with everything off that its options can switch off."""
    from lightning import LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model()

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            inputs, labels = batch
            loss = task.loss(self.model(inputs), labels)
            task.report(batch_idx + 1, loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self.model)

    strategy: Any = DDPStrategy(gradient_as_bucket_view=True) if task.num_ranks > 1 else "auto"
    trainer = Trainer(
        accelerator="cpu",
        devices=task.num_ranks,
        strategy=strategy,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY,
    )
    assert trainer.world_size == task.num_ranks
    trainer.fit(Module(), task.loader())


ARMS: dict[str, Callable[[Task], None]] = {
    "bare": bare,
    "bare-loader": bare_loader,
    "stepladder": stepladder,
    "accelerate": accelerate,
    "fabric": fabric,
    "lightning": lightning,
}


def make_samples(workload: str, num_samples: int) -> tuple[Samples, int]:
    """Random samples and the batch size: 64 numbers and one of 10 classes, or 256 bytes and their successors."""
    generator = torch.Generator().manual_seed(0)
    if workload == "mlp":
        inputs = torch.randn(num_samples * 32, 64, generator=generator)
        return Samples(inputs, torch.randint(10, (len(inputs),), generator=generator)), 32
    tokens = torch.randint(256, (num_samples * 8, 257), generator=generator)
    return Samples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()), 8


def main() -> None:
    """Train one epoch of exactly the steps that are wanted; rank 0 prints the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("workload", choices=("mlp", "decoder"))
    parser.add_argument("--warmup", type=int, default=0, help="steps before the measured ones")
    parser.add_argument("--steps", type=int, required=True, help="measured steps")
    parser.add_argument("--block", type=int, default=1, help="steps that are timed together")
    parser.add_argument("--started", type=float, default=time.time(), help="time.time() at which this was started")
    parser.add_argument("--out", type=Path, required=True, help="folder for what an arm may write")
    parser.add_argument("--log", default=os.devnull, help="file for the log lines of the hand-written loops")
    options = parser.parse_args()
    rank, num_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    num_steps = options.warmup + options.steps + 1  # the beginning of one more ends the last measured one
    samples, batch_size = make_samples(options.workload, num_steps * num_ranks)
    task = Task(
        workload=options.workload,
        batch_size=batch_size,
        num_steps=num_steps,
        rank=rank,
        num_ranks=num_ranks,
        samples=samples,
        out=options.out,
        log=open(options.log if rank == 0 else os.devnull, "w"),  # noqa: SIM115  (open to the end)
    )
    first_steps: list[float] = []

    def first_step_done(*about: Any) -> None:
        first_steps.append(time.time())
        hook.remove()

    hook = register_optimizer_step_post_hook(first_step_done)
    ARMS[options.arm](task)
    if rank == 0:
        starts = samples.starts_ns[options.warmup : num_steps]
        print(
            json.dumps(
                {
                    "step_us": statistics.median(_intervals_us(starts, options.block)),
                    "plain_us": statistics.median(_intervals_us(starts, 1)),
                    "start_s": first_steps[0] - options.started,
                    "steps": len(starts) - 1,
                }
            )
        )
    sys.stdout.flush()
    os._exit(0)  # gloo's threads sometimes abort while the interpreter tears them down


def _intervals_us(starts_ns: Sequence[int], block: int) -> list[float]:
    """Time of a step in microseconds, from each `block` consecutive ones."""
    marks = starts_ns[::block]
    return [(after - before) / block / 1000 for before, after in zip(marks, marks[1:], strict=False)]


if __name__ == "__main__":
    main()
