"""What a step of a recipe communicates: bytes and number of collectives along each axis, and what hides them.

Of one rank, the mean over the stages of a pipeline. Letters: b microbatch, T positions of a rank (after cp), D width,
L blocks of a stage, m microbatches, P parameters of a stage. Norms of gradients, losses and token counts are left out:
some bytes each.

| axis | in a step | source |
| --- | --- | --- |
| tp | m (2 L + 1) gathers and as many reduce-scatters of b T D forward, as many backward; gathers again under ac | Korthikanti et al. 2022, arXiv:2205.05198 (4.2) |
| cp | m L times the keys and values, 2 b T G K, to every other rank, twice, and their gradients home | Liu et al. 2023, arXiv:2310.01889 |
| ep | m L_moe times top_k b T D there and back, forward and backward | Lepikhin et al. 2020, arXiv:2006.16668 |
| shard | m times P forward and P backward gathered, P reduced | Rajbhandari et al. 2019, arXiv:1910.02054 (7) |
| dp_replicate | P over the shards, all-reduced once | Li et al. 2020, arXiv:2006.15704 |
| pp | m times b T D forward and as much backward, to each neighbour | Narayanan et al. 2021, arXiv:2104.04473 (4.1) |
"""  # noqa: E501

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ...strategies.context_parallel.balance import Balance
from ...strategies.facts import Slicing
from ...strategies.mesh import AXES_OF, Axis, Joint
from ...strategies.pipeline import DEFAULT_STAGES_PER_RANK, V_SHAPED
from ..plan import Plan
from ..topology.demand import Mesh, Pattern, Traffic

_F32, _HALF, _INT64 = 4, 2, 8
_MIB = 2**20
_FIRST_BUCKET_MIB = 25


class Overlap(Enum):
    """The part of an exchange that the step waits for. Conventions, not measurements: `stepladder trace` measures."""

    EXPOSED = 1.0
    """What comes next needs the result: tp, ep, pp, whatever is told not to overlap."""
    BESIDE_COMPUTE = 0.3
    """Gathered ahead, reduced behind or passed round a ring while blocks compute; ends and stragglers show."""


def mesh_of(plan: Plan) -> Mesh:
    """The axes that are longer than 1, outermost first; a single rank has one of length 1."""
    longer = {str(axis): degree for axis, degree in plan.degrees.items() if degree > 1}
    return Mesh.of(longer or {str(Axis.DP_SHARD): 1})


def traffic_of(plan: Plan) -> tuple[Traffic, ...]:
    """Everything that the groups of ranks exchange in one step."""
    step = _Step(plan)
    made = (*step.tensor(), *step.context(), *step.experts(), *step.shards(), *step.replicas(), *step.pipeline())
    return tuple(each for each in made if each.payload_bytes > 0)


@dataclass(frozen=True)
class _Recomputed:
    """How often the blocks run forward, by what ac keeps: 1 where it keeps the results of an exchange."""

    gathers: float
    sums: float
    attention: float
    rows: float

    @staticmethod
    def of(ac: Any) -> "_Recomputed":
        if ac is None or ac.mode in ("budget", "offload"):  # what a budget recomputes the compiler decides
            return _Recomputed(1.0, 1.0, 1.0, 1.0)
        again = 1.0 + 1.0 / ac.every
        if ac.mode == "full":
            return _Recomputed(again, again, again, again)
        kept = ac.save or ("_c10d_functional.reduce_scatter_tensor", "context_parallel.attention",
                           "_c10d_functional.all_to_all_single")  # fmt: skip

        def times(name: str) -> float:
            return 1.0 if any(each.startswith(name) for each in kept) else again

        return _Recomputed(
            times("_c10d_functional.all_gather_into_tensor"),
            times("_c10d_functional.reduce_scatter_tensor"),
            times("context_parallel.attention"),
            times("_c10d_functional.all_to_all_single"),
        )


class _Step:
    """Sizes of a step, and the exchanges that they make."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.facts, self.strategies = plan, plan.facts, plan.recipe.strategies
        self.degrees = {str(axis): degree for axis, degree in plan.degrees.items()}
        self.model: Any = plan.recipe.model.chosen
        """Of its sizes only those are asked that an axis cuts."""
        self.width = getattr(self.model, "dim", 0)
        self.pp, self.tp, self.cp = (self.degrees[axis] for axis in (Axis.PP, Axis.TP, Axis.CP))
        self.micro = plan.recipe.num_microbatches
        self.blocks = len(self.facts.blocks) / self.pp
        modules = self.facts.experts.modules if self.facts.experts else ()
        self.moe_blocks = len(modules) / self.pp
        self.tokens = plan.recipe.batch.microbatch_size * self.facts.sequence_length // self.cp
        fsdp2, amp = self.strategies.fsdp2, self.strategies.amp
        self.fsdp2 = fsdp2
        self.stored = _HALF if fsdp2 is not None and fsdp2.param_dtype != "float32" else _F32
        """Bytes of a value of the residual stream."""
        self.computed = _HALF if amp is not None else self.stored
        """Bytes of what a matrix product returns."""
        self.hidden = self.tokens * self.width
        self.again = _Recomputed.of(self.strategies.ac)

    def _made(self, axes: Sequence[str], pattern: Pattern, bytes_: float, number: float, how: Overlap) -> Traffic:
        return Traffic(
            axes=tuple(map(str, axes)),
            pattern=pattern,
            payload_bytes=bytes_,
            num_collectives=number,
            weight=how.value,
        )

    def _longer(self, axes: Sequence[str]) -> tuple[str, ...]:
        return tuple(axis for axis in axes if self.degrees[axis] > 1)

    def tensor(self) -> Iterator[Traffic]:
        """Regions gather their input and add up their output; so do embedding, head, loss, and whole parameters."""
        tp = self.strategies.tp
        if tp is None or self.tp == 1:
            return
        regions, entered, left = 2 * self.blocks, self.stored, self.computed
        ends = 1 / self.pp  # the embedding is on the first stage, the head on the last
        # Entered and left by each region: forward as often as ac has it computed, and once backward.
        mixed = self.moe_blocks * (self.stored - left)  # experts return the dtype of their input
        gathered = regions * (self.again.gathers * entered + left) + mixed
        summed = regions * (self.again.sums * left + entered) + self.again.sums * mixed
        num_gathers, num_sums = regions * (self.again.gathers + 1), regions * (self.again.sums + 1)
        gathered, summed = gathered + 2 * ends * entered, summed + 2 * ends * entered
        num_gathers, num_sums = num_gathers + 2 * ends, num_sums + 2 * ends
        if not tp.loss_parallel:
            gathered += ends * self.model.vocab_size / self.width * left
            num_gathers += ends
        how = Overlap.BESIDE_COMPUTE if tp.async_tp else Overlap.EXPOSED
        scale, axes = self.micro * self.hidden, (Axis.TP,)
        if tp.sequence_parallel:
            yield self._made(axes, Pattern.ALL_GATHER, scale * gathered, self.micro * num_gathers, how)
            yield self._made(axes, Pattern.REDUCE_SCATTER, scale * summed, self.micro * num_sums, how)
        else:  # an all-reduce where there was a reduce-scatter, and nothing where there was a gather
            yield self._made(axes, Pattern.ALL_REDUCE, scale * summed, self.micro * num_sums, how)
        yield self._sums_of_tensor(tp, ends)

    def _sums_of_tensor(self, tp: Any, ends: float) -> Traffic:
        """The loss of slices, three numbers a token; gradients of parameters that every rank has whole."""
        chunks = self.strategies.chunked_loss.num_chunks if self.strategies.chunked_loss is not None else 1
        bytes_ = self.micro * ends * 3 * self.tokens * _F32 if tp.loss_parallel else 0.0
        number = 2 * chunks * self.micro * ends if tp.loss_parallel else 0.0
        if tp.sequence_parallel:
            experts = self.facts.experts.num_experts if self.facts.experts else 0
            norms = 2 * self.blocks + ends
            whole = (norms + self.moe_blocks * experts) * self.width
            bytes_ += self._reductions * whole * self.stored
            number += self._reductions * (norms + self.moe_blocks)
        return self._made((Axis.TP,), Pattern.ALL_REDUCE, bytes_, number, Overlap.EXPOSED)

    @property
    def _reductions(self) -> int:
        """How often gradients are reduced over the shards in a step."""
        fsdp2 = self.fsdp2
        if fsdp2 is None or self.pp > 1 or not fsdp2.reduce_every_microbatch:
            return 1
        return self.micro

    def context(self) -> Iterator[Traffic]:
        """Keys and values to all others, forward and in backward once more; their gradients straight home."""
        cp = self.strategies.cp
        if cp is None or self.cp == 1:
            return
        held = 2 * self.tokens * self.model.kv_heads * self.model.head_dim // self.tp * self.computed
        times, others = self.micro * self.blocks * (self.again.attention + 1), self.cp - 1
        how = Overlap.BESIDE_COMPUTE if cp.method == "ring" and cp.overlap else Overlap.EXPOSED
        if cp.method == "ring":
            yield self._made((Axis.CP,), Pattern.RING, times * others * held, times * others, how)
        else:
            yield self._made((Axis.CP,), Pattern.ALL_GATHER, times * self.cp * held, times, how)
        balance, length = Balance(kind=cp.balance, num_ranks=self.cp), self.facts.sequence_length // self.cp
        pairs = [(i, j) for i in range(self.cp) for j in range(self.cp) if i != j]
        sent = sum(block.keys_to for i, j in pairs if (block := balance.block(i, j, length)))
        part = sent / len(pairs) / length  # of the keys that another rank has, how many have a gradient here
        number = self.micro * self.blocks
        yield self._made((Axis.CP,), Pattern.ALL_TO_ALL, number * self.cp * held * part, number, how)

    def experts(self) -> Iterator[Traffic]:
        """Rows to their experts and results back, the same for gradients; before that how many."""
        degree = self.degrees[Axis.EP]
        if degree == 1 or self.facts.experts is None or self.model.moe is None:
            return
        rows = self.tokens * self.model.moe.top_k * self.width
        passes = self.micro * self.moe_blocks
        bytes_ = passes * rows * (self.again.rows + 1) * (self.stored + self.computed)
        ac = self.strategies.ac
        counts = passes * (1 + 1 / ac.every if ac is not None and ac.mode in ("full", "selective") else 1)
        bytes_ += counts * self.facts.experts.num_experts * _INT64
        number = 2 * passes * (self.again.rows + 1) + counts
        yield self._made((Axis.EP,), Pattern.ALL_TO_ALL, bytes_, number, Overlap.EXPOSED)

    def _parameters(self) -> tuple[float, float, float, float]:
        """Of a rank before it is sharded: dense ones of the blocks, of the embedding, of norm and head; experts."""
        facts, experts = self.facts, self.facts.experts
        whole = (Slicing.ROUTER, Slicing.POSITIONWISE)
        in_blocks = tuple(f"{block}." for block in facts.blocks)
        linears = {name: size for name, size in facts.linears.items() if facts.slicing.get(name) not in whole}
        inside = sum(i * o for name, (i, o) in linears.items() if name.startswith(in_blocks))
        of_experts = len(experts.modules) * 3 * experts.num_experts * experts.dim * experts.ffn_dim if experts else 0
        vocabulary = self.model.vocab_size * self.width
        num_ends = 1 if facts.tied else 2
        rest = facts.num_parameters - inside - of_experts - num_ends * vocabulary - self.width  # norms, routers
        ep = self.degrees[Axis.EP]
        return (
            (inside / self.tp + rest) / self.pp,
            vocabulary / self.tp / self.pp,
            (self.width + (0 if facts.tied else vocabulary / self.tp)) / self.pp,
            of_experts / self.tp / ep / self.pp,
        )

    def shards(self) -> Iterator[Traffic]:
        """Gathered for forward and for backward, reduced after it. What lies last is gathered once."""
        if self.fsdp2 is None:
            return
        blocks, embedding, last, experts = self._parameters()
        in_pipeline = self.pp > 1
        reshards = not in_pipeline if self.fsdp2.reshard_after_forward is None else self.fsdp2.reshard_after_forward
        times, rounds = (2 if reshards else 1), (1 if in_pipeline else self.micro)
        dense_axes = self._longer(AXES_OF[Joint.SHARD])
        apart = self.degrees[Axis.EP] > 1
        expert_axes = self._longer(AXES_OF[Joint.EXPERT_SHARD]) if apart else dense_axes
        how = Overlap.BESIDE_COMPUTE if self.fsdp2.overlap else Overlap.EXPOSED
        reduced = _HALF if self.fsdp2.reduce_dtype != "float32" else _F32
        ends = 2 / self.pp
        dense = blocks + (0 if apart else experts)
        for axes, again, once, number in (
            (dense_axes, dense + (0 if self.facts.tied else embedding), last + (embedding if self.facts.tied else 0),
             self.blocks + ends),
            (expert_axes if apart else (), experts, 0.0, self.moe_blocks),
        ):  # fmt: skip
            if not axes:
                continue
            kept = 1 / self.pp if once else 0.0
            gathered = rounds * self.stored * (times * again + once)
            yield self._made(axes, Pattern.ALL_GATHER, gathered, rounds * (times * number - (times - 1) * kept), how)
            bytes_ = self._reductions * reduced * (again + once)
            yield self._made(axes, Pattern.REDUCE_SCATTER, bytes_, self._reductions * number, how)

    def replicas(self) -> Iterator[Traffic]:
        """Gradients of a shard between the copies, once a step; or weights, now and then."""
        blocks, embedding, last, experts = self._parameters()
        dense_shards = math.prod(self.degrees[axis] for axis in AXES_OF[Joint.SHARD])
        expert_shards = math.prod(self.degrees[axis] for axis in AXES_OF[Joint.EXPERT_SHARD])
        held = (blocks + embedding + last) / dense_shards + experts / (
            expert_shards if self.degrees[Axis.EP] > 1 else dense_shards
        )
        ddp, local_sgd = self.strategies.ddp, self.strategies.local_sgd
        if ddp is not None:
            axes = self._longer(AXES_OF[Joint.REDUCE])
            bytes_ = (blocks + embedding + last + experts) * (
                _F32 if ddp.compression in ("none", "powersgd") else _HALF
            )
            number = math.ceil(bytes_ / ((ddp.bucket_mib or _FIRST_BUCKET_MIB) * _MIB)) if ddp.overlap else 1
            how = Overlap.BESIDE_COMPUTE if ddp.overlap else Overlap.EXPOSED
            if axes:
                yield self._made(axes, Pattern.ALL_REDUCE, bytes_, number, how)
        elif self.degrees[Axis.DP_REPLICATE] == 1:
            return
        elif local_sgd is not None:
            bytes_ = held * _F32 / local_sgd.every
            yield self._made((Axis.DP_REPLICATE,), Pattern.ALL_REDUCE, bytes_, 1 / local_sgd.every, Overlap.EXPOSED)
        elif self.fsdp2 is not None:
            times = 1 if self.fsdp2.defer_all_reduce else self._reductions
            reduced = _HALF if self.fsdp2.reduce_dtype != "float32" else _F32
            number = times * (self.blocks + 2 / self.pp + (self.moe_blocks if self.degrees[Axis.EP] > 1 else 0))
            how = Overlap.BESIDE_COMPUTE if self.fsdp2.overlap else Overlap.EXPOSED
            yield self._made((Axis.DP_REPLICATE,), Pattern.ALL_REDUCE, times * held * reduced, number, how)

    def pipeline(self) -> Iterator[Traffic]:
        """Hidden states forward and their gradients back, across each cut."""
        pp = self.strategies.pp
        if pp is None or self.pp == 1:
            return
        tp = self.strategies.tp
        split = self.tp if tp is not None and tp.sequence_parallel else 1
        stages = pp.stages_per_rank or DEFAULT_STAGES_PER_RANK.get(pp.schedule, 1)
        # Interleaved stages go round and round, a V down and up again between the same neighbours.
        pattern = Pattern.RING if stages > 1 and pp.schedule not in V_SHAPED else Pattern.NEIGHBOURS
        number = self.micro * stages
        yield self._made((Axis.PP,), pattern, number * self.hidden / split * self.stored, number, Overlap.EXPOSED)
