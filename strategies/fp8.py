"""FP8: matrix products of eight-bit floating-point numbers, with a scale beside them.

Problem: in BF16 the matrix products take most of a step, and the tensor cores do FP8 at twice the rate.
Mechanism: inputs, weights and gradients of linear layers are scaled and rounded to FP8 just before each product, which
sums in float32. Master weights, optimizer and everything between the products stay as they are. A scale serves a tensor
(tensorwise, delayed, current), a row (rowwise) or a block (block, mxfp8): finer is more exact and costs more.
Saves: 1.2-1.5x on large layers with torch.compile; with fsdp_all_gather half the bytes that FSDP2 gathers.
Costs: about two decimal digits: 3 bits of mantissa; a pass over each operand for its scale. Output projection and
routers stay precise; so do the grouped weights of experts, for which there is no stable library, and with mesh.tp the
shared experts, which then compute with their slices past their layers.
When: layers of some thousand features, on Ada, Hopper or Blackwell, with strategies.compile.
When not: without compile, where each scale and cast is a kernel of its own and FP8 is slower than BF16; small layers.
Measure: ms/step and held-out loss, both against BF16 with the same compile settings.
Source: Micikevicius et al. 2022, arXiv:2209.05433; torchao.float8; Rouhani et al. 2023, arXiv:2310.10537 (MX).
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from . import low_precision
from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .errors import StrategyError
from .facts import Facts
from .limits import PositiveInt
from .mesh import Axis, Joint
from .names import canonical
from .refusal import Refusal
from .wins import Part, Wins

_RECIPES = {
    "torchao": ("tensorwise", "rowwise", "rowwise_with_gw_hp", "mxfp8"),
    "te": ("delayed", "current", "block", "mxfp8"),
}
_PACKAGES = {
    "torchao": ("torchao", "torchao", "pip install 'stepladder[fp8]'"),
    "te": ("transformer_engine", "Transformer Engine", "pip install --no-build-isolation 'stepladder[te]'"),
}


def _is_te(fp8: Any, run: Any) -> bool:
    return fp8.backend == "te"


def _is_torchao_mxfp8(fp8: Any, run: Any) -> bool:
    return fp8.backend == "torchao" and fp8.recipe == "mxfp8"


@dataclass(frozen=True, kw_only=True)
class FP8:
    """Computes the large linear layers in FP8."""

    backend: Literal["torchao", "te"] = "torchao"
    """The library: torchao works with every axis and with compile; `te`, Transformer Engine, has its own kernels."""
    recipe: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp", "delayed", "current", "block", "mxfp8"] = (
        "tensorwise"
    )
    """What shares a scale. torchao: `tensorwise` (fastest), `rowwise` (more exact), `rowwise_with_gw_hp` (weight
    gradients in BF16: most exact), `mxfp8` (blocks of 32, Blackwell). te: `delayed` (a tensor, scaled by what it was in
    past steps), `current` (a tensor), `block` (128 values), `mxfp8`."""
    emulate: bool = False
    """The same roundings without the hardware, in slow float32 products: to try a recipe on a CPU (torchao)."""
    fsdp_all_gather: bool = False
    """Let FSDP2 gather weights that are FP8 already: half the bytes (torchao, tensorwise)."""
    skip: tuple[str, ...] = ()
    """Linear layers that stay as they are: patterns of their names, `layers.0.*` or `*.attention.*`."""
    min_features: PositiveInt = 16
    """Layers with fewer input or output features stay as they are; on an H100, FP8 gains from about 2048 on."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.LOW_PRECISION)
    wins: ClassVar[Wins] = Wins(on=frozenset({Part.MATRICES}))
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="device cpu",
            setting="emulate = false",
            holds=lambda fp8, run: fp8.backend == "torchao" and not fp8.emulate,
            why="a CPU has no FP8 products",
            instead="set emulate = true, which rounds the same way and is slow",
        ),
        Refusal(
            beside="device cpu",
            setting="backend = 'te'",
            holds=_is_te,
            why="Transformer Engine computes on GPUs only",
            instead="use backend = 'torchao' with emulate = true",
        ),
        *(
            Refusal(beside=name, setting="backend = 'te'", holds=_is_te, why=why, instead="use backend = 'torchao'")
            for name, why in (
                ("mesh.tp", "its layers do not take sliced weights that are DTensors"),
                ("mesh.pp", "in its FP8 context a layer may be called once, and a schedule calls it more often"),
                ("ac", "a recomputation runs outside of its FP8 context"),
                ("cuda_graph", "it changes its scales between the steps, outside of what is captured"),
            )
        ),
        Refusal(
            beside="fsdp2",
            setting="fsdp_all_gather = true, with strategies.fsdp2.cpu_offload, on GPUs",
            holds=lambda fp8, run: (
                fp8.fsdp_all_gather and run.device_type == "cuda" and bool(run.setting("fsdp2", "cpu_offload"))
            ),
            why="the scales are reduced where the shards are, and NCCL does not reach host memory",
            instead="remove one of the two",
        ),
        Refusal(
            beside="amp",
            setting="recipe = 'mxfp8'",
            holds=_is_torchao_mxfp8,
            why="torchao's MXFP8 layers take the weights as they are, and autocast leaves them in float32",
            instead="set strategies.fsdp2.param_dtype = 'bf16', on one rank too",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing: what stands between the products keeps its dtype, which amp or fsdp2 own."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Refuse pairs that do not exist, missing libraries and hardware, and sizes that no FP8 product takes."""
        if self.recipe not in _RECIPES[self.backend]:
            allowed = ", ".join(repr(each) for each in _RECIPES[self.backend])
            yield f"recipe = {self.recipe!r}: backend = {self.backend!r} does not have it; use one of {allowed}"
            return
        package, name, remedy = _PACKAGES[self.backend]
        if importlib.util.find_spec(package) is None:
            yield f"backend = {self.backend!r}: {name} is not installed; {remedy}"
        if self.emulate and self.backend == "te":
            yield "emulate = true: Transformer Engine cannot; remove it or use backend = 'torchao'"
        yield from self._gather_problems(run)
        yield from self._hardware_problems(run)
        yield from self._size_problems(run)

    def _gather_problems(self, run: Run) -> Iterator[str]:
        if not self.fsdp_all_gather:
            return
        if self.backend != "torchao" or self.recipe != "tensorwise":
            yield (
                "fsdp_all_gather = true: a shard can only be rounded with a scale of the whole tensor; "
                "use backend = 'torchao' with recipe = 'tensorwise'"
            )
        if "fsdp2" not in run.active:
            yield "fsdp_all_gather = true: has no effect without strategies.fsdp2; remove it"

    def _hardware_problems(self, run: Run) -> Iterator[str]:
        if self.emulate or run.device_type == "cpu":
            return
        if Owns.COMPUTE_DTYPE not in run.owners:
            yield (
                "activations stay in float32, whose casts cost more than FP8 products save; "
                "add strategies.amp = {} or set strategies.fsdp2.param_dtype = 'bf16'"
            )
        needed = self._needed_capability()
        if run.capability is not None and run.capability < needed:
            has, wants = (".".join(map(str, each)) for each in (run.capability, needed))
            yield (
                f"recipe = {self.recipe!r}: needs GPUs of compute capability {wants}, and these have {has}; "
                f"remove strategies.fp8" + (", or try it with emulate = true" if self.backend == "torchao" else "")
            )

    def _needed_capability(self) -> tuple[int, int]:
        return {"mxfp8": (10, 0), "block": (9, 0)}.get(self.recipe, (8, 9))

    def _size_problems(self, run: Run) -> Iterator[str]:
        tokens = run.microbatch_size * (run.facts.sequence_length // run.degrees[Axis.CP])
        if tokens % self._multiple_of and (self.recipe == "mxfp8" or not self.emulate):
            yield (
                f"recipe = {self.recipe!r}: a microbatch has {tokens} tokens on a rank, and an FP8 product takes "
                f"multiples of {self._multiple_of}; change batch.microbatch_size or batch.sequence_length"
            )
        planned = low_precision.planned_layers(run.facts, run.degrees[Axis.TP])
        if planned and not self._chosen(planned, run.facts, run, self.skip):
            yield self._nothing_to_convert(len(planned))
        for pattern in self.skip if planned else ():
            if not _matches(pattern, (layer.path for layer in planned)):
                yield f"skip = {pattern!r}: no linear layer of the model has such a name; remove it or correct it"
            elif not _matches(pattern, (layer.path for layer in self._chosen(planned, run.facts, run, ()))):
                yield f"skip = {pattern!r}: what it names stays as it is anyway; remove it"

    def _chosen(
        self, layers: "list[low_precision.Layer]", facts: Facts, run: Run, skip: tuple[str, ...]
    ) -> "list[low_precision.Layer]":
        return low_precision.chosen_layers(
            layers,
            facts,
            tp_degree=run.degrees[Axis.TP],
            multiple_of=self._multiple_of,
            min_features=self.min_features,
            skip=skip,
        )

    def _nothing_to_convert(self, num_layers: int) -> str:
        return (
            f"none of the {num_layers} linear layers can be converted (multiples of {self._multiple_of}, at least "
            f"{self.min_features} features, not skipped); change min_features or skip, or remove the strategy"
        )

    @property
    def _multiple_of(self) -> int:
        """What every size of a product must be a multiple of."""
        return 32 if self.recipe == "mxfp8" else 16

    def apply(self, program: Program, run: Run) -> Program:
        """Swap the layers, before anything slices or shards them. Raises: StrategyError if there is none to swap."""
        model, facts = program.model, program.facts
        linears = low_precision.linear_layers(model, facts, run.degrees[Axis.TP])
        layers = self._chosen(linears, facts, run, self.skip)
        num_left = len(linears) - len(layers)
        if not layers and run.degrees[Axis.PP] == 1:  # a stage may have none of the layers that others convert
            raise StrategyError(f"strategies.fp8: {self._nothing_to_convert(num_left)}")
        paths = [layer.path for layer in layers]
        if self.backend == "te":
            group = run.mesh[Joint.REDUCE].get_group() if run.mesh is not None else None
            low_precision.swap_for_transformer_engine(model, paths, recipe=self.recipe, parts=facts.parts, group=group)
        else:
            low_precision.swap_for_torchao(
                model, paths, recipe=self.recipe, emulate=self.emulate, fsdp_all_gather=self.fsdp_all_gather
            )
        if self.recipe.startswith("rowwise"):
            # Row scales are powers of two: a compiler must round between fused operators as eager kernels do.
            options = {**program.compiler_options, "emulate_precision_casts": True}
            program = replace(program, compiler_options=options)
        if self.fsdp_all_gather:
            program = low_precision.gather_in_float8(program)
        return replace(program, reports=(*program.reports, self._report(len(layers), num_left, run)))

    def _report(self, num_converted: int, num_left: int, run: Run) -> Any:
        lines = [f"fp8: {num_converted} linear layers in FP8 ({self.backend}, {self.recipe}), {num_left} as they were"]
        if self.emulate:
            lines.append("fp8: emulated, so the time of a step says nothing about FP8")
        elif "compile" not in run.active:
            lines.append("fp8: without strategies.compile FP8 is slower than BF16: each cast is a kernel of its own")
        return lambda: lines


def _matches(pattern: str, names: Any) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(canonical(name), pattern) for name in names)
