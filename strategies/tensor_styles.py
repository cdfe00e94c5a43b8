"""How each word of `Slicing` is carried out: parameters become DTensors, and hooks turn what flows between modules.

[Note: layouts around a slice]
Between modules there are plain local tensors: whole ones, or with sequence parallelism this rank's positions. A REGION
begins by gathering its input and ends in a sum over the ranks, of which each then keeps its positions. What a rank
computes inside is a part of the sum, and so is its gradient with respect to the region's input; the backward pass of
gathering adds the parts up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from .facts import Slicing, regions_with_experts

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_EXPERT_DIMS = {"gate": 1, "up": 1, "down": 2}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a plan's words mean in one run."""

    mesh: "DeviceMesh"
    """The ranks along tp, one-dimensional."""
    between: Placement
    """Hidden states [B, T, D] between modules: Shard(1) with sequence parallelism, else Replicate()."""
    logits: Placement | None
    """What the head leaves of [B, T, V]: Shard(-1), Replicate(); None leaves the multiplication to the loss."""
    spares_experts: bool
    """Leave experts' weights alone: ep distributes them over its own axis and this one."""

    def cut(self, model: nn.Module, slicing: Mapping[str, Slicing]) -> None:
        """Turn every parameter into a DTensor on the mesh, in place; names stay."""
        experts = [name for name, how in slicing.items() if how is Slicing.EXPERTS]
        mixtures = regions_with_experts(slicing)
        for name, how in slicing.items():
            module = model.get_submodule(name)
            if how is Slicing.EXPERTS:
                if not self.spares_experts:
                    for leaf, dim in _EXPERT_DIMS.items():
                        self._distribute(module, leaf, Shard(dim))
            elif name in mixtures:
                self._enter_local(module)
                self._leave(module)
            elif any(name.startswith(f"{mixture}.") for mixture in mixtures):
                self._make_local(module, how)
            else:
                self._slice(module, how)
        spared = [model.get_submodule(name) for name in experts] if self.spares_experts else []
        self._replicate_the_rest(model, {id(module) for each in spared for module in each.modules()})

    def _slice(self, module: nn.Module, how: Slicing) -> None:
        """Carry out a word for a module that is not among experts."""
        match how:
            case Slicing.REGION:
                self._enter(module)
            case Slicing.COLUMN:
                parallelize_module(module, self.mesh, ColwiseParallel(), src_data_rank=None)
            case Slicing.ROW:
                style = RowwiseParallel(output_layouts=self.between)
                parallelize_module(module, self.mesh, style, src_data_rank=None)
            case Slicing.POSITIONWISE:
                self._receive(module, self.between)
                self._return(module, self.between)
            case Slicing.HEADWISE:  # of which dimension the heads are does not matter: it works along the last one
                self._receive(module, Shard(1))
                self._return(module, Shard(1))
            # Not by the library's styles: their outputs are still on their way, which a compiled block after the
            # embedding takes for the result (torch 2.13), and a pipeline would send.
            case Slicing.EMBEDDING:
                self._distribute(module, "weight", Shard(0))
                self._receive(module, Replicate())
                self._return(module, self.between)
            case Slicing.HEAD:
                for leaf, _ in list(module.named_parameters(recurse=False)):
                    self._distribute(module, leaf, Shard(0))
                if self.logits is None:
                    self._enter_local(module)
                else:
                    self._enter(module)
                    self._return(module, self.logits)
            case _:
                raise AssertionError(f"{how} has a meaning among experts only")

    def _distribute(self, module: nn.Module, leaf: str, placement: Placement) -> None:
        """Each rank keeps its part of a parameter. No communication: weights are a function of seed and name."""
        whole = module.get_parameter(leaf)
        cut = distribute_tensor(whole, self.mesh, [placement], src_data_rank=None)
        module.register_parameter(leaf, nn.Parameter(cut, requires_grad=whole.requires_grad))

    def _replicate_the_rest(self, model: nn.Module, spared: set[int]) -> None:
        for module in model.modules():
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                if not isinstance(parameter, DTensor) and id(module) not in spared:
                    self._distribute(module, leaf, Replicate())

    def _whole(self, x: Tensor) -> DTensor:
        return DTensor.from_local(x, self.mesh, [self.between], run_check=False).redistribute(placements=[Replicate()])

    def _enter(self, region: nn.Module) -> None:
        """Gather the first input; what it is multiplied with next is sliced, so it stays a DTensor until then."""

        def gather(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if inputs:
                return (self._whole(inputs[0]), *inputs[1:]), named
            first = next(iter(named))  # handed over by name, as models of other houses do
            return inputs, {**named, first: self._whole(named[first])}

        region.register_forward_pre_hook(gather, with_kwargs=True)

    def _enter_local(self, region: nn.Module) -> None:
        """Gather the first input for a module that computes with plain tensors: each rank's gradient is a part."""

        def gather(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self._whole(inputs[0]).to_local(grad_placements=[Partial()]), *inputs[1:])

        region.register_forward_pre_hook(gather)

    def _leave(self, region: nn.Module) -> None:
        """Add up the outputs, of which each rank has computed a part."""

        def add_up(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            part = DTensor.from_local(output, self.mesh, [Partial()], run_check=False)
            return part.redistribute(placements=[self.between]).to_local()

        region.register_forward_hook(add_up)

    def _receive(self, module: nn.Module, given: Placement) -> None:
        """Tell the module how its plain first input lies on the mesh."""

        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (DTensor.from_local(inputs[0], self.mesh, [given], run_check=False), *inputs[1:])

        module.register_forward_pre_hook(enter)

    def _return(self, module: nn.Module, wanted: Placement) -> None:
        """Make the output a plain tensor that lies as wanted."""

        def leave(module: nn.Module, inputs: object, output: DTensor) -> Tensor:
            return output.redistribute(placements=[wanted]).to_local()

        module.register_forward_hook(leave)

    def _make_local(self, module: nn.Module, how: Slicing) -> None:
        """Slice a linear layer among experts: the model computes with its own part of it."""
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            dim = {Slicing.COLUMN: 0, Slicing.ROW: 1}.get(how)
            assert how is not Slicing.ROW or parameter.ndim > 1, "each rank would add the bias of a ROW among experts"
            self._distribute(module, leaf, Replicate() if dim is None else Shard(dim))


def settle_partial(model: nn.Module) -> Callable[[], None]:
    """Function that adds up, in one collective, the gradients of whole parameters that are still parts of a sum."""
    names = [name for name, p in model.named_parameters() if isinstance(p, DTensor) and p.placements[-1].is_replicate()]

    def settle() -> None:
        open_ones: list[tuple[Tensor, DTensor]] = []
        for name in names:
            parameter = model.get_parameter(name)
            gradient = parameter.grad
            if isinstance(gradient, DTensor) and any(p.is_partial() for p in gradient.placements):
                open_ones.append((parameter, gradient))
        by_layout: dict[Any, list[tuple[Tensor, DTensor]]] = {}
        for parameter, gradient in open_ones:
            by_layout.setdefault((gradient.device_mesh, gradient.placements, gradient.dtype), []).append(
                (parameter, gradient)
            )
        for (mesh, placements, _), group in by_layout.items():
            _add_up(group, mesh, placements)

    return settle


def _add_up(group: list[tuple[Tensor, DTensor]], mesh: "DeviceMesh", placements: tuple[Placement, ...]) -> None:
    parts = [gradient.to_local() for _, gradient in group]
    flat = DTensor.from_local(torch.cat([part.flatten() for part in parts]), mesh, placements, run_check=False)
    wanted = [Replicate() if p.is_partial() else p for p in placements]
    sums = flat.redistribute(placements=wanted).to_local().split([part.numel() for part in parts])
    for (parameter, _), part, summed in zip(group, parts, sums, strict=True):
        parameter.grad = DTensor.from_local(summed.view_as(part), mesh, wanted, run_check=False)
