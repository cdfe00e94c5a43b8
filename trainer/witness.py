"""Notes what two runs of the same training must have in common: losses, gradients and weights, to the last bit.

[Note: sketches]
Tensors of two runs are compared without keeping them. A hash tells whether they are the same; how far apart they are is
told by sketches: each element is given a sign that depends on its place and the tensor's name only, and 32 interleaved
sums of the signed elements are kept. Sketches are linear, and the squared length of one is the squared length of its
tensor on average, with a deviation of a quarter; so the difference of two sketches tells the distance of the tensors to
an eighth. Source: Charikar et al. 2002, "Finding frequent items in data streams"; Thorup and Zhang 2004.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..profiling.record import Marker
from ..strategies.base import Batch, Program
from ..strategies.materialise import seed_of
from ..strategies.names import canonical
from ..strategies.norms import whole_norm

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NUM_SUMS = 32
_PIECE = 1 << 22
"""Elements of which the signs are made at once; a multiple of `NUM_SUMS`."""

Fingerprint = tuple[str, list[float]]
"""Hash and sketch of a tensor."""


@dataclass(kw_only=True)
class Witness:
    """What this rank sees of a run: tensors of its own part whole, losses as its own share of the sum."""

    loss_sums: "list[Tensor]" = field(default_factory=list, init=False)
    """This rank's sum of losses in each step."""
    num_tokens: list[float] = field(default_factory=list[float], init=False)
    """Valid tokens of each step on all ranks."""
    grad_norms: "list[Tensor | None]" = field(default_factory=list, init=False)
    """Before clipping; None where nobody could know it."""
    initial: dict[str, Fingerprint] = field(default_factory=dict[str, Fingerprint], init=False)
    """Weights before the first step, by canonical name."""
    gradients: dict[str, Fingerprint] = field(default_factory=dict[str, Fingerprint], init=False)
    """Of the first step, before clipping; empty if they are gone by then."""
    final: dict[str, Fingerprint] = field(default_factory=dict[str, Fingerprint], init=False)
    """Weights after the last step."""


def witnessed(program: Program, *, num_steps: int, backwards: bool, testify: Callable[[Witness], None]) -> Program:
    """The program with a witness in it, who testifies on every rank when so many steps are done.

    `backwards` hands it the samples of each step in the opposite order: the same mathematics, rounded elsewhere.
    """
    witness = Witness()
    forward_backward, clip = program.forward_backward, program.clip_gradients

    def step(program: Program, microbatches: Sequence[Batch], scale: "float | Tensor", mark: Marker) -> "Tensor":
        if not witness.loss_sums:
            witness.initial = fingerprints(_parameters(program.model))
        given = [_reversed(batch) for batch in reversed(microbatches)] if backwards else microbatches
        loss_sum = forward_backward(program, given, scale, mark)
        witness.loss_sums.append(loss_sum.detach().clone())
        witness.num_tokens.append(round(program.gradient_divisor / float(scale)))
        return loss_sum

    def look_at_gradients(
        program: Program, parameters: "Sequence[nn.Parameter]", *, want_norm: bool
    ) -> "Tensor | None":
        if len(witness.loss_sums) == 1:
            found = ((name, each.grad) for name, each in _parameters(program.model))
            witness.gradients = fingerprints((name, grad) for name, grad in found if grad is not None)
        norm = clip(program, parameters, want_norm=True)
        witness.grad_norms.append(None if norm is None else whole_norm(norm).detach().clone())
        return norm

    def follow() -> None:
        if len(witness.loss_sums) == num_steps:
            witness.final = fingerprints(_parameters(program.model))
            testify(witness)

    return replace(
        program, forward_backward=step, clip_gradients=look_at_gradients, after_step=(*program.after_step, follow)
    )


def _reversed(batch: Batch) -> Batch:
    return batch._replace(inputs=batch.inputs.flip(0), labels=batch.labels.flip(0))


def _parameters(model: "nn.Module") -> "list[tuple[str, nn.Parameter]]":
    """Parameters of this rank by canonical name, a tied one once."""
    from torch.nn.parallel import DistributedDataParallel

    bare = model.module if isinstance(model, DistributedDataParallel) else model
    return [(canonical(name), each) for name, each in bare.named_parameters()]


def fingerprints(tensors: "Iterable[tuple[str, Tensor]]") -> dict[str, Fingerprint]:
    """Hash and sketch of each tensor; of a sharded one those of the whole, which takes all of its ranks."""
    import torch

    with torch.no_grad():
        return {name: _fingerprint(name, _whole(tensor)) for name, tensor in tensors}


def _whole(tensor: Any) -> "Tensor":
    if not hasattr(tensor, "full_tensor"):
        return tensor.detach()
    return tensor.detach().to(tensor.device_mesh.device_type).full_tensor()  # offloaded shards travel by the device


def _fingerprint(name: str, tensor: "Tensor") -> Fingerprint:
    import torch

    raw: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(memoryview(raw)).hexdigest(), sketch(name, tensor)


def sketch(name: str, tensor: "Tensor") -> list[float]:
    """Sums of the elements of a tensor of this name with random signs: see the note above."""
    import torch

    flat = tensor.detach().reshape(-1)
    sums = torch.zeros(NUM_SUMS, dtype=torch.float64, device=flat.device)
    for first in range(0, flat.numel(), _PIECE):
        piece = flat[first : first + _PIECE].double()
        signed = piece * _signs(name, first, piece.numel(), flat.device)
        missing = -signed.numel() % NUM_SUMS
        sums += torch.nn.functional.pad(signed, (0, missing)).view(-1, NUM_SUMS).sum(0)
    return sums.tolist()


def _signs(name: str, first: int, number: int, device: "torch.device") -> "Tensor":
    """A sign for each place of a tensor: the middle bit of a mixed-up number, the same on every device."""
    import torch

    place = torch.arange(first, first + number, dtype=torch.int64, device=device)
    mixed = (place + seed_of(0, name)) * -7046029254386353131  # wraps around, as is meant
    mixed = (mixed ^ (mixed >> 31)) * -4658895280553007687
    return 1.0 - 2.0 * ((mixed >> 37) & 1).double()
