"""Checkpointed blocks save less and compute again, exactly as much as the recipe says."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from stepladder.strategies.ac import ActivationCheckpointing
from stepladder.strategies.base import Facts, Program, Run
from stepladder.strategies.errors import StrategyError

NUM_LAYERS = 4
TOKENS = torch.arange(64).view(2, 32) % 32


class CountOperators(TorchDispatchMode):
    """How often each operator really ran."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **kwargs or {})


def step(program: Program) -> Counter[str]:
    """Operators of one forward and backward pass."""
    with CountOperators() as mode:
        program.model(TOKENS).square().sum().backward()
    return mode.counts


def saved_bytes(program: Program) -> int:
    """Bytes of the distinct tensors that autograd keeps of a forward pass, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in program.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = program.model(TOKENS)
    assert output.requires_grad
    return sum(kept.values())


@pytest.fixture
def checkpointed(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> Callable[..., Program]:
    def make(**keys: Any) -> Program:
        return ActivationCheckpointing(**keys).apply(make_program(num_layers=NUM_LAYERS), make_run())

    return make


def test_every_nth_block_is_computed_twice(
    checkpointed: Callable[..., Program], make_program: Callable[..., Program]
) -> None:
    for every, expected in [(1, [2, 2, 2, 2]), (2, [1, 2, 1, 2]), (3, [1, 1, 2, 1]), (4, [1, 1, 1, 2])]:
        program = checkpointed(every=every)
        calls = [0] * NUM_LAYERS
        for name, module in program.model.named_modules():
            if name.endswith("ffn.gate"):
                index = int(name.split(".")[1])
                module.register_forward_hook(
                    lambda *_, calls=calls, index=index: calls.__setitem__(index, calls[index] + 1)
                )
        step(program)
        assert calls == expected, f"every = {every}"


def test_full_repeats_every_operator_and_selective_only_those_it_did_not_save(
    checkpointed: Callable[..., Program], make_program: Callable[..., Program]
) -> None:
    plain, full, selective = step(make_program()), step(checkpointed()), step(checkpointed(mode="selective"))
    products_in_block, attention = 7, "aten._scaled_dot_product_flash_attention_for_cpu.default"
    assert plain["aten.silu.default"] == NUM_LAYERS
    assert plain[attention] == NUM_LAYERS

    assert full["aten.mm.default"] == plain["aten.mm.default"] + products_in_block * NUM_LAYERS
    assert full["aten.silu.default"] == 2 * NUM_LAYERS
    assert full[attention] == 2 * NUM_LAYERS

    assert selective["aten.mm.default"] == plain["aten.mm.default"]
    assert selective[attention] == NUM_LAYERS
    assert selective["aten.silu.default"] == 2 * NUM_LAYERS


@pytest.mark.parametrize("name", ["aten.silu", "aten.silu.default"])
def test_selective_saves_the_operators_it_is_given_and_no_others(
    name: str, checkpointed: Callable[..., Program]
) -> None:
    full, silu = step(checkpointed()), step(checkpointed(mode="selective", save=(name,)))
    assert silu["aten.silu.default"] == NUM_LAYERS
    assert silu["aten.mm.default"] == full["aten.mm.default"]


def test_full_keeps_only_the_inputs_of_its_blocks(
    checkpointed: Callable[..., Program], make_program: Callable[..., Program]
) -> None:
    plain, full, half = saved_bytes(make_program()), saved_bytes(checkpointed()), saved_bytes(checkpointed(every=2))
    one_block = (plain - full) / NUM_LAYERS
    assert full < 0.3 * plain
    assert half == pytest.approx(plain - NUM_LAYERS / 2 * one_block, rel=0.02)


def test_the_gradients_stay_what_they_were(
    checkpointed: Callable[..., Program], make_program: Callable[..., Program]
) -> None:
    plain = make_program()
    step(plain)
    truth = [p.grad for p in plain.model.parameters()]
    for keys in ({}, {"every": 2}, {"mode": "selective"}):
        program = checkpointed(**keys)
        step(program)
        for found, expected in zip([p.grad for p in program.model.parameters()], truth, strict=True):
            assert torch.equal(found, expected), keys


class Forgetful(nn.Module):
    """One block with dropout, the operator for which random numbers must be replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


def test_dropout_is_replayed_if_and_only_if_the_random_state_is_preserved(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    def gradient(strategy: ActivationCheckpointing | None) -> torch.Tensor:
        torch.manual_seed(0)
        model = Forgetful()
        program = make_program(model=model, facts=Facts(blocks=("block",)))
        if strategy:
            program = strategy.apply(program, make_run())
        torch.manual_seed(1)
        program.model(torch.ones(4, 64)).square().sum().backward()
        (weight, _) = program.model.parameters()
        assert weight.grad is not None
        return weight.grad

    truth = gradient(None)
    assert torch.equal(gradient(ActivationCheckpointing()), truth)
    assert not torch.equal(gradient(ActivationCheckpointing(preserve_rng_state=False)), truth)


@pytest.mark.parametrize("name", ["aten.no_such_operator", "nowhere.mm", "aten.mm.no_such_overload"])
def test_an_operator_that_torch_lacks_is_named(name: str, checkpointed: Callable[..., Program]) -> None:
    with pytest.raises(StrategyError, match=rf"strategies\.ac\.save = '{name}': torch .* has no such operator"):
        checkpointed(mode="selective", save=(name,))
