"""One arm of `overhead.py`: trains one workload with one framework, a turn at a time.

All arms train the same model on the same samples with the same optimizer and clipping; they differ in who runs the
loop. The driver starts this file once for every rank, with torchrun's environment variables. Without turns it is a
plain script that trains for `--steps`.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from overhead_turns import Turns
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
    step_begins: Callable[[], None]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitems__(self, indices: "Sequence[int] | Tensor") -> tuple[Tensor, Tensor]:
        """A batch from its indices; torch's DataLoader calls this with the list that its sampler drew."""
        self.step_begins()
        rows = torch.as_tensor(indices)
        return self.inputs[rows], self.labels[rows]


@dataclass(kw_only=True)
class Task:
    """What an arm is to do."""

    workload: str
    batch_size: int
    rank: int
    num_ranks: int
    samples: Samples
    out: Path
    """Folder for what an arm may write."""
    log: TextIO
    """Where the loops that log by hand write."""
    borrowed_s: float = 0.0
    """Time for the import of stepladder's decoder, which a script with a model of its own would not spend."""

    def model(self) -> nn.Module:
        """The workload's model, with torch's own initial weights."""
        torch.manual_seed(0)
        if self.workload == "mlp":
            return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        begun = time.perf_counter()
        from stepladder.trainer.models.config import DecoderConfig
        from stepladder.trainer.models.decoder import Decoder  # noqa: F401  (`build` imports it)

        self.borrowed_s = time.perf_counter() - begun
        return DecoderConfig(dim=256, num_layers=4, num_heads=4, ffn_dim=704, vocab_size=256).build()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy."""
        if self.workload == "mlp":
            return F.cross_entropy(logits, labels)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    def loader(self) -> "DataLoader[Any]":
        """A DataLoader as frameworks are handed it: shuffled, its shares left to them."""
        return DataLoader(self.samples, batch_size=self.batch_size, shuffle=True, collate_fn=_as_is)

    def report(self, step: int, loss: Tensor) -> None:
        """Log the loss in the first step and in every tenth."""
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
    starts = range(0, len(order), task.batch_size)
    _by_hand(task, (task.samples.__getitems__(order[at : at + task.batch_size]) for at in starts))


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
    """A whole worker, loop and all."""
    from overhead_stepladder import train

    mlp = task.model() if task.workload == "mlp" else None
    train(task.samples, mlp=mlp, batch_size=task.batch_size, num_ranks=task.num_ranks, folder=task.out)


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


def make_samples(workload: str, num_steps: int, step_begins: Callable[[], None]) -> tuple[Samples, int]:
    """Random samples and the batch size: 64 numbers and one of 10 classes, or 256 bytes and their successors."""
    generator = torch.Generator().manual_seed(0)
    if workload == "mlp":
        inputs = torch.randn(num_steps * 32, 64, generator=generator)
        return Samples(inputs, torch.randint(10, (len(inputs),), generator=generator), step_begins), 32
    tokens = torch.randint(256, (num_steps * 8, 257), generator=generator)
    return Samples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), step_begins), 8


def main() -> None:
    """Train one epoch of `--steps` steps, or until the driver has had all its turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("workload", choices=("mlp", "decoder"))
    parser.add_argument("--steps", type=int, required=True, help="steps for which there are samples")
    parser.add_argument("--turns", type=json.loads, help="when to stop and wait, as JSON: the fields of Turns")
    parser.add_argument("--started", type=float, default=0.0, help="time.time() at which this was started")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for what an arm may write")
    parser.add_argument("--loss-file", default=os.devnull, help="file for the log lines of the hand-written loops")
    options = parser.parse_args()
    turns = Turns(**options.turns) if options.turns else None
    rank, num_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    samples, batch_size = make_samples(
        options.workload, options.steps * num_ranks, turns.step_begins if turns else lambda: None
    )
    task = Task(
        workload=options.workload,
        batch_size=batch_size,
        rank=rank,
        num_ranks=num_ranks,
        samples=samples,
        out=options.out,
        log=open(options.loss_file if rank == 0 else os.devnull, "w"),  # noqa: SIM115  (open to the end)
    )

    def first_step_done(*about: Any) -> None:
        hook.remove()
        if turns:
            turns.about["start_s"] = time.time() - options.started

    hook = register_optimizer_step_post_hook(first_step_done)
    ARMS[options.arm](task)
    if rank == 0:
        print(json.dumps({"borrowed_s": task.borrowed_s}), flush=True)


if __name__ == "__main__":
    main()
