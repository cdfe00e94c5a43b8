"""Context parallel: ranks share a sequence, and the keys and values travel between them.

Problem: activations of a long sequence do not fit on one device, even at microbatch 1.
Mechanism: each of C ranks holds 1/C of the positions; only attention needs the others' keys and values. `ring` passes
them on from rank to rank while the last ones are attended to, and merges the results by their log-sum-exp; `all_gather`
fetches all at once. Head and tail of the sequence go to the same rank, so that the causal mask leaves all equal work.
Saves: activation memory and attention time by C; all else is as along a data-parallel axis.
Costs: in each layer a rank sends 4 B T G K (C-1)/C bytes forward in BF16 (keys and values of G heads of width K), up to
twice that in backward (keys and values again, their gradients home), and the forward ones again if ac recomputes the
attention. `all_gather` also holds the whole sequence's keys and values, one layer at a time.
When: sequences of about 16k tokens and more; the ring hides if a block's attention takes longer than its transfer.
`all_gather` for short parts (few large messages), few KV heads, and links that the ring cannot fill.
When not: microbatch 1 fits; then a data-parallel axis needs no communication inside attention.
Measure: peak memory, ms/step, send and receive (or all_gather) that nothing hides, against a data-parallel axis.
Source: Liu et al. 2023, arXiv:2310.01889 (ring); Grattafiori et al. 2024, arXiv:2407.21783, section 3.3.2 (all-gather).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from .base import Batch, Owns, Program, Run
from .changes import Changes, MayChange
from .context_parallel.balance import Balance, BalanceKind
from .mesh import Axis
from .refusal import Refusal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ContextParallel:
    """Splits sequences over `mesh.cp`."""

    method: Literal["ring", "all_gather"] = "ring"
    """How keys and values reach the other ranks: `ring` one block after the other, `all_gather` all at once."""
    balance: BalanceKind = "head_tail"
    """`head_tail` gives each rank a part from both ends, which is equal work; `none` one piece each (for an A/B)."""
    overlap: bool = True
    """Ring: the next keys and values travel while these are used; false waits first (for an A/B of the overlap)."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.REDUCTION_ORDER, keys={"overlap": Changes.NOTHING})
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="data documents",
            why="keys and values travel between ranks without saying which document they belong to",
            instead="use packing = 'split', which lets attention see across documents",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """The cp axis."""
        return frozenset({Owns.CP})

    def check(self, run: Run) -> Iterator[str]:
        """Refuse sequences that cannot be cut, models without attentions, and options that do nothing."""
        if not run.facts.attentions:
            yield "the model names no attention whose keys could travel; use strategies.fsdp2 or ddp over these ranks"
        if not self.overlap and self.method == "all_gather":
            yield "overlap = false: has no effect with method = 'all_gather', which never overlaps; remove it"
        length, degree = run.facts.sequence_length, run.degrees[Axis.CP]
        num_chunks = Balance(kind=self.balance, num_ranks=degree).num_chunks
        if length % num_chunks:
            # What tensor parallelism asks for as well, so that one change satisfies both.
            tp = run.degrees[Axis.TP] if run.setting("tp", "sequence_parallel") else 1
            whole = math.lcm(num_chunks, degree * tp)
            nearest = " or ".join(
                str(each) for each in (length // whole * whole, (length // whole + 1) * whole) if each
            )
            yield (
                f"balance = {self.balance!r}: cuts sequences into {num_chunks} equal chunks with mesh.cp = {degree}, "
                f"but batch.sequence_length = {length}; use {nearest}"
            )

    def apply(self, program: Program, run: Run) -> Program:
        """Put attention across ranks in the place of the model's, and cut inputs, labels and positions alike."""
        from .context_parallel.attention import ContextParallelAttention

        assert run.mesh is not None, "cp needs the device mesh"
        group = run.mesh[Axis.CP].get_group()
        for name in program.facts.attentions:
            attention = ContextParallelAttention(group, self.method, self.balance, self.overlap)
            program.model.set_submodule(name, attention)
        cut = _cutter(Balance(kind=self.balance, num_ranks=group.size()), group.rank())
        shard = program.shard_batch

        def shard_batch(batch: Batch) -> Batch:
            return cut(shard(batch))

        return replace(program, shard_batch=shard_batch, sequence_split=program.sequence_split * group.size())


def _cutter(balance: Balance, rank: int) -> Callable[[Batch], Batch]:
    """Function that selects a rank's positions of whole sequences.

    Labels stand beside the position that predicts them, so they are selected like the inputs.
    """
    known: dict[tuple[int, torch.device], torch.Tensor] = {}

    def cut(batch: Batch) -> Batch:
        length, device = batch.inputs.shape[1], batch.inputs.device
        if (length, device) not in known:
            known[length, device] = balance.positions(length, rank).to(device)
        own = known[length, device]
        return Batch(
            inputs=batch.inputs.index_select(1, own),
            labels=batch.labels.index_select(1, own),
            positions=own if batch.positions is None else batch.positions.index_select(0, own),
        )

    return cut
