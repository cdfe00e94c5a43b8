"""What `stepladder run` does for whoever measures it: end early, and leave the time and the loss of every step."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..profiling.capture import publish
from ..trainer.metrics import device_memory_gib, peak_flops
from .errors import UsageError
from .plan import Plan
from .ranks import Ranks, Voice, gather, sum_over_ranks

if TYPE_CHECKING:
    import torch

    from ..trainer.clock import StepClock


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What the command asks for beside the recipe."""

    stop_after: int | None = None
    """Steps after which the run is complete, while schedules count on all that the recipe names."""
    step_times: Path | None = None
    """Where to leave `StepTimes`."""
    witness: Path | None = None
    """Where to leave the `Testimony`: exact losses, gradients and weights."""
    backwards: bool = False
    """Take the samples of each step in the opposite order: the same mathematics, rounded elsewhere."""
    same_batch: bool = False
    """Train on the first step's data again and again: the time of a step that never waits for its data."""

    def check(self) -> None:
        """Find what cannot be before anything is started. Raises: UsageError."""
        if self.stop_after is not None and self.stop_after < 1:
            raise UsageError(f"--stop-after {self.stop_after}: a run has at least 1 step")
        for option, path in (("--step-times", self.step_times), ("--witness", self.witness)):
            if path is not None and not path.absolute().parent.is_dir():
                raise UsageError(f"{option} {path}: there is no such folder; make it first")

    def num_steps(self, of_recipe: int) -> int:
        """Steps to be trained."""
        return min(of_recipe, self.stop_after or of_recipe)


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """What one run leaves. Times are the longest over the ranks."""

    step_s: tuple[float, ...]
    losses: tuple[float, ...]
    """Nats a token, over all ranks."""
    began_at: float
    """When rank 0 began its first step, in seconds since 1970."""
    memory_gib: float
    """Largest peak of a rank: reserved by the allocator on CUDA, resident set of the process on CPU."""
    waited_s: float
    """Time that rank 0 waited for data, over all steps."""
    num_ranks: int
    device: str
    tokens_per_step: int
    flops_per_token: float
    peak_flops: float | None
    """Of one device, dense BF16; None if it is not known."""

    def mfu(self, step_s: float) -> float | None:
        """Model FLOPs utilisation at this time of a step."""
        if self.peak_flops is None:
            return None
        return self.tokens_per_step * self.flops_per_token / (step_s * self.num_ranks * self.peak_flops)

    @staticmethod
    def read(path: Path) -> "StepTimes":
        """What a run has left. Raises: OSError, ValueError, TypeError."""
        told = json.loads(path.read_text())
        return StepTimes(**told | {"step_s": tuple(told["step_s"]), "losses": tuple(map(float, told["losses"]))})


def write_step_times(
    path: Path, clock: "StepClock", *, plan: Plan, ranks: Ranks, device: "torch.device", waited_s: float
) -> None:
    """Bring the clocks of all ranks together and leave the file; called by all of them, after the last step."""
    import torch

    own: tuple[Sequence[float], float] = (clock.step_s(), device_memory_gib(device))
    everywhere = gather(ranks, own)
    sums = clock.loss_sums() * Voice.of(ranks.rank, plan.degrees).loss
    totals: list[float] = sum_over_ranks(ranks)(sums).tolist()
    if ranks.rank:
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    losses = [total / max(1.0, tokens) for total, tokens in zip(totals, clock.num_tokens(), strict=True)]
    told = StepTimes(
        step_s=tuple(max(each) for each in zip(*(times for times, _ in everywhere), strict=True)),
        losses=tuple(losses),
        began_at=clock.began_at,
        memory_gib=max(memory for _, memory in everywhere),
        waited_s=waited_s,
        num_ranks=ranks.num_ranks,
        device=name,
        tokens_per_step=plan.tokens_per_step,
        flops_per_token=plan.facts.flops_per_token,
        peak_flops=peak_flops(name),
    )
    values = asdict(told) | {"losses": [each if abs(each) < float("inf") else str(each) for each in losses]}
    publish(path, lambda partial: partial.write_text(json.dumps(values) + "\n"))
