"""Activation checkpointing: keep less of the forward pass on the device, and compute it again or fetch it in backward.

Problem: activations fill the memory, so the microbatch must be small.
Mechanism: a checkpointed block saves its inputs (full) or the results of chosen operators (selective) and recomputes;
budget leaves the choice to the compiler, which cuts each graph for a fraction of the memory; offload recomputes nothing
and sends what the block saves to pinned host memory.
Saves: memory; with `full`, a block's activations shrink to its input (about 34 to 2 bytes a token and width, BF16).
Costs: full: one more forward pass, about a third more compute; selective: the cheap operators only, a few percent;
offload: every byte twice over the host link, in the stream of the computation. The copies of weights that autocast
makes (strategies.amp) would travel too; fsdp2's param_dtype makes none.
When: out of memory, or when a larger microbatch pays for the recomputation. Offload: long sequences, a fast host link.
When not: memory is to spare; it only adds work.
Measure: peak memory and ms/step with and without; then tokens/s at the microbatch that the memory now allows.
Source: Chen et al. 2016, arXiv:1604.06174; Korthikanti et al. 2022, arXiv:2205.05198 (selective); Rhu et al. 2016
(vDNN), arXiv:1602.08124 (offload); torch._functorch.config.activation_memory_budget (budget).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from .base import Owns, Program, Run
from .changes import Changes, Depends, MayChange
from .errors import StrategyError
from .limits import Count, Fraction, PositiveInt
from .names import canonical
from .offload import offloading
from .refusal import Refusal
from .wins import COMPUTE, WAITING, Try, Wins

# The expensive operators: matrix products and attention. Recomputing the rest costs memory bandwidth only.
_PRODUCTS = (
    "aten.mm",
    "aten.addmm",
    "aten.bmm",
    "aten._scaled_mm",
    "aten._grouped_mm",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
)
# What the network has carried, and what decides where tokens go: a router that decides anew might decide otherwise.
# Not what it has gathered: that is as many times larger than what each rank has of it as there are ranks.
_DECISIONS = (
    "_c10d_functional.all_to_all_single",
    "_c10d_functional.reduce_scatter_tensor",
    "_c10d_functional.all_reduce",
    "aten.topk",
    "aten._local_scalar_dense",
)
# cp's attention: one operator, which exists only once cp is applied. Recomputing it would send all keys again.
_ACROSS_RANKS = "context_parallel.attention.default"
_OFFLOAD_MIN_KIB = 1024
_BUDGET = 0.5


def _offloads(ac: Any, run: Any) -> bool:
    return ac.mode == "offload" or ac.offload


@dataclass(frozen=True, kw_only=True)
class ActivationCheckpointing:
    """Checkpoints the blocks that the model names."""

    mode: Literal["full", "selective", "budget", "offload"] = "full"
    """`full` keeps a block's input only; `selective` also keeps the results of the operators in `save`; `budget` lets
    the compiler choose; `offload` keeps everything, in host memory."""
    every: PositiveInt = 1
    """Checkpoint every n-th block: 1 all of them, 2 every other."""
    save: tuple[str, ...] | None = None
    """Operators whose results `selective` keeps, as `aten.mm`. Default: matrix products, attention, collectives but for
    gathers, and what a router decides (topk, copies to the host)."""
    budget: Fraction | None = None
    """`budget`: the part of the activation memory that each compiled graph may keep (0.5); 0 keeps its inputs only."""
    offload: bool = False
    """`full`: what is kept, the inputs of the blocks, goes to host memory."""
    offload_min_kib: Count | None = None
    """Tensors smaller than this stay on the device (1024)."""
    preserve_rng_state: bool = True
    """Replay the random numbers in the recomputation; false is faster for a model without dropout."""

    changes: ClassVar[MayChange] = MayChange(
        # compiled, the recomputation is fused, and so rounded, in its own way
        switch=Depends(
            usually=Changes.NOTHING,
            sometimes=Changes.REDUCTION_ORDER,
            when="where blocks are compiled",
            holds=lambda ac, run: "compile" in run.active,
        )
    )
    wins: ClassVar[Wins] = Wins(
        off=COMPUTE | WAITING,
        keys={
            "mode": Try(values=("selective",), parts=COMPUTE),
            "every": Try(values=(2,), parts=COMPUTE),
            "preserve_rng_state": Try(values=(False,), parts=WAITING),
        },
    )
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="device cpu",
            setting="mode = 'offload' or offload = true",
            holds=_offloads,
            why="the activations are in host memory already",
            instead="use mode = 'full'",
        ),
        Refusal(
            beside="compile",
            setting="mode = 'offload' or offload = true",
            holds=_offloads,
            why="a compiled graph saves its tensors where the hooks that move them cannot tell weights from the rest",
            instead="use mode = 'budget' or 'selective', or remove strategies.compile",
        ),
        Refusal(
            beside="compile",
            setting="mode = 'budget', with strategies.compile.backend = 'eager'",
            holds=lambda ac, run: ac.mode == "budget" and run.setting("compile", "backend") == "eager",
            why="it cuts no graph into forward and backward, so that the budget has no effect",
            instead="use backend = 'inductor' or 'aot_eager'",
        ),
        Refusal(
            beside="mesh.tp",
            setting="mode = 'full', or save, with strategies.compile",
            holds=lambda ac, run: "compile" in run.active and (ac.mode == "full" or ac.save is not None),
            why="torch.compile (2.13) mistakes the mesh of a weight that a recomputation needs for a tensor",
            instead="use mode = 'selective' without save, or mode = 'budget'",
        ),
        Refusal(
            beside="pp",
            setting="mode = 'selective'",
            holds=lambda ac, run: ac.mode == "selective" and Owns.SPLIT_BACKWARD in run.owners,
            why="such a schedule passes a block backwards twice, and what selective keeps is given out once",
            instead="use mode = 'full', or a schedule that leaves backward whole: '1f1b' or 'interleaved_1f1b'",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing: it changes when tensors are computed, not which."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Refuse settings that touch no block, name no operator, or belong to another mode."""
        num_blocks = len(run.facts.blocks)
        if num_blocks == 0:
            yield "the model names no blocks, so there is nothing to checkpoint; remove strategies.ac"
        elif self.every > num_blocks:
            yield f"every = {self.every}: the model has {num_blocks} blocks, so none would be checkpointed; use fewer"
        if self.save is not None and self.mode != "selective":
            yield f"save: has no effect with mode = '{self.mode}'; set mode = 'selective' or remove it"
        if self.save is not None and not self.save:
            yield "save = []: keeps nothing, which is mode = 'full'; name operators or use that"
        for name in self.save or ():
            if len(name.split(".")) not in (2, 3):
                yield f"save = {name!r}: not an operator; write namespace.name, as aten.mm"
        yield from self._budget_problems(run)
        if self.offload and self.mode != "full":
            yield f"offload = true: goes with mode = 'full', not '{self.mode}'; remove it or use mode = 'offload'"
        if self.offload_min_kib is not None and not _offloads(self, run):
            yield "offload_min_kib: has no effect while nothing is offloaded; remove it"
        if not self.preserve_rng_state and self.mode in ("budget", "offload"):
            yield f"preserve_rng_state = false: has no effect with mode = '{self.mode}'; remove it"

    def _budget_problems(self, run: Run) -> Iterator[str]:
        if self.mode != "budget":
            if self.budget is not None:
                yield f"budget: has no effect with mode = '{self.mode}'; set mode = 'budget' or remove it"
            return
        if "compile" not in run.active:
            yield "mode = 'budget': the compiler spends it; add strategies.compile = {} or use mode = 'selective'"
        if self.every != 1:
            yield f"every = {self.every}: a budget holds for every compiled graph of the process; remove it"

    def apply(self, program: Program, run: Run) -> Program:
        """Wrap every n-th block in place; parameter names keep their canonical form."""
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        if self.mode == "budget":
            _set_budget(_BUDGET if self.budget is None else self.budget)
            return program
        options = self._wrapper_options(pin=run.device_type == "cuda")
        # Counted over the whole model, of which a pipeline has left this rank a part.
        chosen = set(run.facts.blocks[self.every - 1 :: self.every])
        for name in program.facts.blocks:
            if canonical(name) in chosen:
                block = program.model.get_submodule(name)
                program.model.set_submodule(name, checkpoint_wrapper(block, **options))
        return program

    def _wrapper_options(self, *, pin: bool) -> dict[str, Any]:
        """What the wrapper of a block is told."""
        min_kib = _OFFLOAD_MIN_KIB if self.offload_min_kib is None else self.offload_min_kib
        if self.mode == "offload":
            return {"checkpoint_fn": offloading(min_bytes=min_kib * 1024, pin=pin)}
        # early_stop would end the recomputation at the last tensor that backward needs; collectives inside a block
        # must run on every rank or on none.
        options: dict[str, Any] = {"preserve_rng_state": self.preserve_rng_state, "early_stop": False}
        if self.mode == "selective":
            options["context_fn"] = _selective(self.save)
        if self.offload:
            from torch.utils.checkpoint import checkpoint

            inner = partial(checkpoint, use_reentrant=False, **options)
            return {"checkpoint_fn": offloading(min_bytes=min_kib * 1024, pin=pin, inner=inner)}
        return options


def _set_budget(budget: float) -> None:
    """Tell the partitioner of compiled graphs; it is asked at the first call, so the setting stays with the process."""
    import torch._functorch.config as functorch  # pyright: ignore[reportMissingImports]

    config: Any = functorch
    config.activation_memory_budget = budget


def _selective(save: tuple[str, ...] | None) -> Any:
    """Context function that keeps the results of the named operators. Raises: StrategyError for an unknown one."""
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    if save is not None:
        operators = [operator for name in save for operator in _overloads(name)]
        return partial(create_selective_checkpoint_contexts, operators)
    kept = {operator for name in (*_PRODUCTS, *_DECISIONS) for operator in _overloads(name)}

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        keep = operator in kept or str(operator) == _ACROSS_RANKS or _copies_to_host(operator, args, kwargs)
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return partial(create_selective_checkpoint_contexts, policy)


def _copies_to_host(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the device would have to be waited for, as for the numbers of tokens that go to each expert."""
    import torch

    if operator is not torch.ops.aten._to_copy.default:
        return False
    device = kwargs.get("device")
    return device is not None and args[0].device.type != "cpu" and torch.device(device).type == "cpu"


def _overloads(name: str) -> list[Any]:
    """All overloads of an operator written `namespace.name`, or the one written `namespace.name.overload`."""
    import torch

    namespace, operator, *overload = name.split(".")
    packet = getattr(getattr(torch.ops, namespace), operator, None)
    found = [getattr(packet, each, None) for each in (overload or (packet.overloads() if packet else ()))]
    if not found or None in found:
        raise StrategyError(
            f"strategies.ac.save = {name!r}: torch {torch.__version__} has no such operator; write it as aten.mm"
        )
    return found
