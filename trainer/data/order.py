"""Which samples a rank sees in a step: a pure function of seed, step and rank.

Step s of a run takes the global samples [s*G, (s+1)*G), G = microbatch x accumulation x data ranks; rank r takes its
consecutive share. Sample g is entry g mod N of epoch g // N, and each epoch is a permutation of its own. So the order
does not depend on the number of ranks or workers, and a position is one number: the steps done.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from ...strategies.materialise import seed_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Share:
    """A rank's part of every global batch."""

    num_samples: int
    """Samples in an epoch, all ranks together."""
    microbatch_size: int
    num_microbatches: int
    rank: int
    num_ranks: int
    seed: int
    by_epoch: bool = False
    """Sample s of epoch e has the index s + e * num_samples: for sources that make another sample of it each time."""

    @property
    def samples_per_step(self) -> int:
        """Samples of a step on all ranks."""
        return self.microbatch_size * self.num_microbatches * self.num_ranks

    def position(self, step: int, fingerprint: str) -> dict[str, int | str]:
        """How far in the data a run is after so many steps, in what no number of ranks or workers changes."""
        samples = step * self.samples_per_step
        return {"epoch": samples // self.num_samples, "samples": samples, "fingerprint": fingerprint}

    def microbatches(self, first_step: int) -> "Iterator[Tensor]":
        """Sample indices of this rank's microbatches from `first_step` on, [microbatch_size] each, without end."""
        import torch

        epoch, order = -1, permutation(0, self.seed, 0)
        own = self.microbatch_size * self.num_microbatches
        for step in count(first_step):
            start = step * self.samples_per_step + self.rank * own
            for first in range(start, start + own, self.microbatch_size):
                parts: list[Tensor] = []
                sample, end = first, first + self.microbatch_size
                while sample < end:
                    if sample // self.num_samples != epoch:
                        epoch = sample // self.num_samples
                        order = permutation(self.num_samples, self.seed, epoch)
                        order = order + epoch * self.num_samples if self.by_epoch else order
                    at = sample % self.num_samples
                    parts.append(order[at : at + end - sample])
                    sample += len(parts[-1])
                # Nearly always a mere view of the epoch's order: more than one part only where an epoch ends.
                yield parts[0] if len(parts) == 1 else torch.cat(parts)


def permutation(num_samples: int, seed: int, epoch: int) -> "Tensor":
    """The order of the samples in an epoch, [num_samples] int64."""
    import torch

    generator = torch.Generator().manual_seed(seed_of(seed, f"epoch {epoch}"))
    return torch.randperm(num_samples, generator=generator)
