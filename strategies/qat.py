"""Quantization-aware training: linear layers compute as if they were integers already, so that they can become some.

Problem: a model that is rounded to 4-bit weights after its training answers worse than the one that was trained.
Mechanism: in every forward pass weights are rounded to `weight` bits with a scale for each group of input features,
and inputs to 8 bits with a scale and a zero point for each token; gradients pass through the rounding as if it were not
there (straight-through). Master weights stay what they were. torchao turns the trained layers into integer ones.
Saves: nothing while training; afterwards 4x to 8x smaller weights, at a fraction of the loss of rounding them at once.
Costs: some passes over each weight and each input: 10-50% of a step without strategies.compile, less with it.
When: the model is to be served in 8da4w or int8 and rounding it afterwards costs too much quality; in the last part of
a training, or in a finetuning.
When not: it is served in BF16 or FP8; rounding afterwards is good enough already.
Measure: held-out loss against the same run without, both rounded at the end; ms/step.
Source: Jacob et al. 2018, arXiv:1712.05877; torchao.quantization.qat (QATConfig).
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from . import low_precision
from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .errors import StrategyError
from .facts import Facts
from .limits import PositiveInt
from .mesh import Axis
from .names import canonical
from .refusal import Refusal
from .wins import COMPUTE, Wins


@dataclass(frozen=True, kw_only=True)
class QuantizationAware:
    """Rounds weights and inputs of linear layers in the forward pass as a quantized model will."""

    weight: Literal["int4", "int8"] = "int4"
    """To what weights are rounded: symmetric, 15 or 255 steps."""
    group_size: PositiveInt = 32
    """Input features that share a scale of the weight; layers whose inputs are no multiple of it stay as they are."""
    activations: Literal["int8", "none"] = "int8"
    """To what inputs are rounded, token by token; `none` is for weight-only formats."""
    skip: tuple[str, ...] = ()
    """Linear layers that stay as they are: patterns of their names, `layers.0.*` or `*.attention.*`."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.LOW_PRECISION)
    wins: ClassVar[Wins] = Wins(off=COMPUTE)
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="fp8",
            why="both swap the same linear layers, one for integers and the other for eight-bit floats",
            instead="keep the one in whose format the model will be served",
        ),
        Refusal(
            beside="mesh.tp",
            why="torchao's rounding takes no weights that are sliced DTensors",
            instead="use strategies.fsdp2, which gathers whole weights",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing: what is rounded keeps its dtype."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Refuse a missing library, and groups and patterns that no layer fits."""
        if importlib.util.find_spec("torchao") is None:
            yield "torchao is not installed; pip install 'stepladder[fp8]'"
        planned = low_precision.planned_layers(run.facts, 1)
        if planned and not self._chosen(planned, run.facts):
            yield self._nothing_to_round(len(planned))
        for pattern in self.skip if planned else ():
            if not any(fnmatchcase(canonical(layer.path), pattern) for layer in planned):
                yield f"skip = {pattern!r}: no linear layer of the model has such a name; remove it or correct it"

    def apply(self, program: Program, run: Run) -> Program:
        """Swap the layers, before anything shards them. Raises: StrategyError if there is none to swap."""
        import torch
        from torchao.quantization.qat import FakeQuantizedLinear

        model = program.model
        linears = low_precision.linear_layers(model, program.facts, 1)
        chosen = self._chosen(linears, program.facts)
        if not chosen and run.degrees[Axis.PP] == 1:  # a stage may have none of the layers that others round
            raise StrategyError(f"strategies.qat: {self._nothing_to_round(len(linears))}")
        weights, inputs = self._configs()
        for layer in chosen:
            old: Any = model.get_submodule(layer.path)
            with torch.device("meta"):
                new: Any = FakeQuantizedLinear(
                    old.in_features,
                    old.out_features,
                    bias=old.bias is not None,
                    activation_config=inputs,
                    weight_config=weights,
                )
            new.weight, new.bias = old.weight, old.bias
            new.train(old.training)
            model.set_submodule(layer.path, new)
        said = f"qat: {len(chosen)} linear layers rounded ({self._format}), {len(linears) - len(chosen)} as they were"
        return replace(program, reports=(*program.reports, lambda: [said]))

    @property
    def _format(self) -> str:
        inputs = "" if self.activations == "none" else f", inputs {self.activations} a token"
        return f"weights {self.weight} in groups of {self.group_size}{inputs}"

    def _configs(self) -> tuple[Any, Any]:
        """How torchao is to round weights and inputs."""
        import torch
        from torchao.quantization.qat import IntxFakeQuantizeConfig

        kinds: Any = torch  # whose annotations do not know int4
        weights = IntxFakeQuantizeConfig(getattr(kinds, self.weight), group_size=self.group_size, is_symmetric=True)
        if self.activations == "none":
            return weights, None
        return weights, IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)

    def _chosen(self, layers: "list[low_precision.Layer]", facts: Facts) -> "list[low_precision.Layer]":
        """Not those that the model wants precise: output projection and routers."""
        fits = [layer for layer in layers if layer.in_features % self.group_size == 0]
        return low_precision.chosen_layers(fits, facts, tp_degree=1, multiple_of=1, min_features=1, skip=self.skip)

    def _nothing_to_round(self, num_layers: int) -> str:
        return (
            f"group_size = {self.group_size}: none of the {num_layers} linear layers can be rounded (inputs a multiple "
            f"of it, not skipped); change group_size or skip, or remove the strategy"
        )
