"""Strategies are applied in the order of their fields and leave the parameters' names alone."""

from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from stepladder.strategies import Strategies, active
from stepladder.strategies.ac import ActivationCheckpointing
from stepladder.strategies.accumulation import Accumulation
from stepladder.strategies.adamw import AdamW
from stepladder.strategies.amp import Amp
from stepladder.strategies.assemble import ContractError, apply_all, assemble
from stepladder.strategies.base import Program, Run
from stepladder.strategies.catalogue import strategy_class
from stepladder.strategies.chunked_loss import ChunkedLoss
from stepladder.strategies.clip import Clip
from stepladder.strategies.compile import Compile
from stepladder.strategies.matmul_precision import MatmulPrecision
from stepladder.strategies.names import canonical_names
from stepladder.strategies.nccl import NCCL
from stepladder.strategies.qat import QuantizationAware
from stepladder.strategies.schedule import Schedule


@dataclass(frozen=True)
class Does:
    """A strategy that does what it is told."""

    act: Callable[[nn.Module], Any]
    conflicts = ()
    owns = frozenset()

    def check(self, run: Run) -> Any:
        return iter(())

    def apply(self, program: Program, run: Run) -> Program:
        changed = self.act(program.model)
        return replace(program, model=changed) if isinstance(changed, nn.Module) else program


def strategies(**each: Any) -> Any:
    return make_dataclass("Some", list(each), frozen=True)(**each)


def rename(model: nn.Module) -> None:
    model.outlet = model.head
    del model.head


def drop(model: nn.Module) -> None:
    model.norm = nn.Identity()


def add(model: nn.Module) -> None:
    model.extra = nn.Linear(1, 1)


def reorder(model: nn.Module) -> None:
    embedding = model.embedding
    del model.embedding
    model.embedding = embedding


def wrap(model: nn.Module) -> nn.Module:
    return nn.Sequential(model)


FAULTS = {
    rename: ("head.weight", "outlet.weight"),
    drop: ("norm.weight",),
    add: ("extra.bias", "extra.weight"),
    reorder: ("their order",),
    wrap: ("0.embedding.weight",),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_strategy_that_touches_the_names_is_stopped_and_named(
    fault: Callable[[nn.Module], Any], make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    some = strategies(innocent=Does(lambda model: None), guilty=Does(fault))
    with pytest.raises(ContractError, match=r"strategies\.guilty changed the parameter names") as caught:
        apply_all(make_program(device="meta"), some, make_run())
    for name in FAULTS[fault]:
        assert name in str(caught.value)


VARIANTS: dict[str, list[Any]] = {
    "matmul_precision": [MatmulPrecision(precision="highest")],
    "ac": [
        ActivationCheckpointing(),
        ActivationCheckpointing(every=2),
        ActivationCheckpointing(mode="selective"),
    ],
    "compile": [Compile(), Compile(scope="model", loss=False)],
    "nccl": [NCCL(nvls=False)],
    "qat": [QuantizationAware(group_size=16)],
    "chunked_loss": [ChunkedLoss()],
    "adamw": [AdamW()],
    "amp": [Amp(), Amp(dtype="fp16")],
    "accumulation": [Accumulation()],
    "clip": [Clip()],
    "schedule": [Schedule()],
}
# Their own tests, and those of parity, hold them to it: on several ranks, with another strategy, or on a GPU.
NEED_MORE = {"pp", "fp8", "tp", "cp", "ep", "ddp", "fsdp2", "local_sgd", "distill"}
NEED_MORE |= {"optimizer_in_backward", "cuda_graph"}


@pytest.mark.parametrize("tied", [False, True])
def test_every_strategy_keeps_the_names_on_the_meta_device(
    tied: bool, make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    assert VARIANTS.keys() | NEED_MORE == {each.name for each in fields(Strategies)}
    for name, variants in VARIANTS.items():
        for strategy in variants:
            program = make_program(device="meta", tie_embeddings=tied)
            before = canonical_names(program.model)
            assert len(before) > 30
            after = apply_all(program, Strategies(**{name: strategy}), make_run())
            assert canonical_names(after.model) == before
            assert all(parameter.is_meta for parameter in after.model.parameters())


def test_ac_and_compile_together_keep_the_names(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program = make_program(device="meta")
    before = canonical_names(program.model)
    whole = Compile(scope="model")
    after = apply_all(program, Strategies(ac=ActivationCheckpointing(), compile=whole), make_run())
    assert canonical_names(after.model) == before
    assert [name for name, _ in after.model.named_parameters()] != before  # so the wrappers were really there


def test_strategies_are_applied_in_the_order_of_their_fields(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    applied: list[str] = []
    names = [each.name for each in fields(Strategies)]
    doing = {name: Does(lambda model, name=name: applied.append(name)) for name in reversed(names)}

    apply_all(make_program(device="meta"), Strategies(**doing), make_run())

    assert applied == names
    assert [name for name, _ in active(Strategies(**doing))] == names


def test_the_order_is_the_documented_one() -> None:
    order = [each.name for each in fields(Strategies)]
    assert order == [
        "matmul_precision", "nccl", "pp", "fp8", "qat", "tp", "chunked_loss", "cp", "ep", "ac", "compile", "ddp",
        "fsdp2", "local_sgd", "distill", "adamw", "optimizer_in_backward", "amp", "accumulation", "clip", "schedule",
        "cuda_graph",
    ]  # fmt: skip


def test_assemble_leaves_no_weight_on_the_meta_device(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program = assemble(make_program(device="meta"), Strategies(clip=Clip()), make_run())
    assert not [name for name, parameter in program.model.named_parameters() if parameter.is_meta]
    norms = [p for name, p in program.model.named_parameters() if name.endswith("norm.weight")]
    assert len(norms) == 9
    assert all(torch.equal(norm, torch.ones_like(norm)) for norm in norms)


def test_every_field_holds_a_frozen_class_of_its_own_file() -> None:
    kinds = [strategy_class(each.type) for each in fields(Strategies)]
    assert len({kind.__module__ for kind in kinds}) == len(kinds)
    assert all(kind.__dataclass_params__.frozen for kind in kinds)
