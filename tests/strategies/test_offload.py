"""What backward needs goes to host memory and comes back as it was; parameters stay where they are."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import GRADIENT_TOLERANCE, LOSS_TOLERANCE, Case, differences, outcome, reference
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from stepladder.strategies import offload
from stepladder.strategies.ac import ActivationCheckpointing
from stepladder.strategies.base import Program, Run
from stepladder.strategies.offload import offloading

TOKENS = torch.arange(64).view(2, 32) % 32
EVERYTHING = {"offload_min_kib": 0}


def storages_of_blocks(program: Program) -> list[StorageWeakRef]:
    """Of the outputs of every linear layer in the blocks, in a forward pass that will follow."""
    seen: list[StorageWeakRef] = []
    for name, module in program.model.named_modules():
        if isinstance(module, nn.Linear) and "layers." in name:
            module.register_forward_hook(lambda module, inputs, out: seen.append(StorageWeakRef(out.untyped_storage())))
    return seen


@pytest.fixture
def made(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> Callable[..., Program]:
    def make(**keys: Any) -> Program:
        program = make_program()
        return ActivationCheckpointing(**keys).apply(program, make_run()) if keys else program

    return make


def gradients(program: Program) -> list[torch.Tensor | None]:
    program.model(TOKENS).square().sum().backward()
    return [parameter.grad for parameter in program.model.parameters()]


@pytest.mark.parametrize(
    "keys", [{"mode": "offload"} | EVERYTHING, {"offload": True} | EVERYTHING, {"mode": "offload", "every": 3}]
)
def test_the_gradients_stay_what_they_were(keys: dict[str, Any], made: Callable[..., Program]) -> None:
    for found, expected in zip(gradients(made(**keys)), gradients(made()), strict=True):
        assert expected is not None
        assert found is not None
        assert torch.equal(found, expected)


def test_between_forward_and_backward_no_activation_of_a_block_is_alive(made: Callable[..., Program]) -> None:
    alive: dict[str, int] = {}
    for name, keys in {
        "plain": {},
        "offload": {"mode": "offload"} | EVERYTHING,
        "every other": {"mode": "offload", "every": 2} | EVERYTHING,
        "too small": {"mode": "offload", "offload_min_kib": 64},
    }.items():
        program = made(**keys)
        storages = storages_of_blocks(program)
        output = program.model(TOKENS)
        gc.collect()
        alive[name] = sum(not each.expired() for each in storages)
        assert output.requires_grad
    assert alive["plain"] > 0
    assert alive["offload"] == 0
    assert alive["every other"] == alive["plain"] / 2
    assert alive["too small"] == alive["plain"]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Shapes of what has gone to the host."""
    sent: list[Any] = []
    make = offload._OnHost.__init__

    def counted(self: Any, **values: Any) -> None:
        sent.append(tuple(values["copy"].shape))
        make(self, **values)

    monkeypatch.setattr(offload._OnHost, "__init__", counted)
    return sent


def changed_in_place(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    first = y.square()  # keeps y
    y.add_(1)
    return first.detach() + y.square()  # keeps what y is now


def used_thrice(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.square() + x.cos() + x.sin()


def multiplied(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module(x)


@pytest.mark.parametrize(
    ("function", "min_bytes", "expected"),
    [
        (
            multiplied,
            0,
            [(4, 8)],
        ),  # the input, for the gradient of the weight, and not the weight, for that of the input
        (used_thrice, 0, [(4, 8)]),
        (changed_in_place, 0, [(4, 8), (4, 8)]),
        (changed_in_place, 4 * 8 * 4, [(4, 8), (4, 8)]),
        (changed_in_place, 4 * 8 * 4 + 1, []),
    ],
)
def test_a_tensor_goes_once_its_next_version_again_and_a_parameter_never(
    function: Callable[..., torch.Tensor], min_bytes: int, expected: list[Any], copies: list[Any]
) -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(4, 8, requires_grad=True), nn.Linear(8, 8)
    out = offloading(min_bytes=min_bytes, pin=False, inner=function)(layer, x)
    (found,) = torch.autograd.grad(out.sum(), x)
    assert copies == expected
    (truth,) = torch.autograd.grad(function(layer, x).sum(), x)
    assert torch.equal(found, truth)


CASES = [{"mode": "offload", "offload_min_kib": 0}, {"offload": True, "offload_min_kib": 0}]


def sharded(cases: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """FSDP2 frees and refills the parameters between forward and backward; the CPU's refusal is lifted to see that."""
    ActivationCheckpointing.conflicts = ()
    found: list[tuple[float, float]] = []
    for keys in cases:
        case = Case(num_ranks=2, mesh={"dp_shard": 2}, strategies={"fsdp2": {}, "ac": keys})
        found.append(differences(outcome(case), reference(case)))
    return found


def test_sharded_blocks_take_the_steps_of_one_process(run_ranks: Any) -> None:
    for keys, (loss, gradient) in zip(CASES, run_ranks(sharded, 2, CASES), strict=True):
        assert loss <= LOSS_TOLERANCE, keys
        assert gradient <= GRADIENT_TOLERANCE, keys
