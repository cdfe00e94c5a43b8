"""AdamW does what its paper says, decays what it should, and runs in the kernels it is told to."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from stepladder.strategies.adamw import AdamW
from stepladder.strategies.base import Program, Run


def optimizer_of(strategy: AdamW, program: Program, run: Run) -> torch.optim.Optimizer:
    applied = strategy.apply(program, run)
    assert applied.make_optimizer is not None
    return applied.make_optimizer(applied.model)


def names_in(program: Program, group: dict[str, Any]) -> set[str]:
    chosen = {id(p) for p in group["params"]}
    return {name for name, p in program.model.named_parameters() if id(p) in chosen}


def test_matrices_decay_and_norms_are_spared(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program = make_program(num_layers=1)
    decaying, spared = optimizer_of(AdamW(weight_decay=0.3), program, make_run()).param_groups
    assert (decaying["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert names_in(program, spared) == {"norm.weight", "layers.0.attention_norm.weight", "layers.0.ffn_norm.weight"}
    everything = {name for name, _ in program.model.named_parameters()}
    assert names_in(program, decaying) == everything - names_in(program, spared)

    (all_of_them,) = optimizer_of(AdamW(decay="all", weight_decay=0.3), program, make_run()).param_groups
    assert names_in(program, all_of_them) == everything
    assert all_of_them["weight_decay"] == 0.3


def test_a_tied_weight_is_updated_once(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> None:
    program = make_program(num_layers=1, tie_embeddings=True)
    groups = optimizer_of(AdamW(), program, make_run()).param_groups
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(program.model.parameters()))


IMPLEMENTATIONS = ("fused", "foreach", "for-loop")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_three_steps_equal_the_published_update(
    implementation: Any, make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    strategy = AdamW(learning_rate=0.1, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.5, implementation=implementation)
    program = make_program(num_layers=1)
    optimizer = optimizer_of(strategy, program, make_run())
    truth = {name: p.detach().double().clone() for name, p in program.model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in truth.items()}
    second = {name: torch.zeros_like(p) for name, p in truth.items()}
    for t in (1, 2, 3):
        for name, parameter in program.model.named_parameters():
            parameter.grad = torch.sin(torch.arange(parameter.numel()) * t + 1.0).view_as(parameter)
            grad = parameter.grad.double()
            decay = 0.5 if parameter.ndim == 2 else 0.0
            first[name] = 0.8 * first[name] + 0.2 * grad
            second[name] = 0.9 * second[name] + 0.1 * grad**2
            root = (second[name] / (1 - 0.9**t)).sqrt() + 1e-3
            truth[name] = truth[name] - 0.1 * decay * truth[name] - 0.1 * (first[name] / (1 - 0.8**t)) / root
        optimizer.step()
    for name, parameter in program.model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), truth[name], rtol=1e-5, atol=1e-5)


def test_each_implementation_runs_its_own_kernels(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    for implementation in IMPLEMENTATIONS:
        program = make_program(num_layers=1)
        optimizer = optimizer_of(AdamW(implementation=implementation), program, make_run())  # pyright: ignore
        for parameter in program.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            optimizer.step()
        ran = {event.key for event in profiler.key_averages()}
        assert ("aten::_fused_adamw_" in ran) == (implementation == "fused")
        assert ("aten::_foreach_addcdiv_" in ran) == (implementation == "foreach")


def test_the_keys_reach_the_optimizer(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> None:
    strategy = AdamW(learning_rate=0.25, beta1=0.5, beta2=0.75, eps=1e-2)
    group = optimizer_of(strategy, make_program(num_layers=1), make_run()).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.25, (0.5, 0.75), 1e-2)
    assert math.isclose(AdamW().learning_rate, 3e-4)
