"""A slice of the matrix of meshes and strategies, and faults that it must catch; `make test-parallel` has the whole."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from matrix import AXES, Degrees, Entry, all_degrees, case_of, judge, line, pairwise, said
from parity import GRADIENT_TOLERANCE, LOSS_TOLERANCE, Case, differences, outcome, reference

from stepladder.strategies.base import Batch, Program

SLICE: tuple[tuple[Degrees, dict[str, Any]], ...] = (
    ((1, 2, 2, 1, 1, 1), {"accumulation": {"num_microbatches": 2}}),
    ((1, 1, 2, 1, 1, 2), {"ac": {}}),
    ((1, 1, 1, 2, 1, 2), {"ac": {"mode": "selective"}}),
    ((1, 1, 2, 1, 2, 1), {}),
    ((2, 1, 1, 2, 1, 1), {"cp": {"method": "all_gather"}}),
    ((2, 1, 1, 1, 2, 1), {"pp": {"schedule": "gpipe"}}),
    ((2, 1, 2, 1, 1, 2), {"chunked_loss": {"num_chunks": 2}}),
)


def test_a_slice_of_the_matrix_takes_the_steps_of_one_process() -> None:
    entries = [Entry(said(degrees), case_of(degrees, strategies)) for degrees, strategies in SLICE]

    verdicts = judge(entries)

    assert len(verdicts) == len(SLICE)
    assert not [line(each) for each in verdicts if each.failed or each.refused]


@pytest.mark.slow  # the matrix itself runs in the slow suite
def test_the_matrix_has_every_degree_once_and_every_pair() -> None:
    """The generator itself, against a count: d6(n), the ways to write n as an ordered product of six factors."""
    assert [len(list(all_degrees(n))) for n in range(2, 9)] == [6, 6, 21, 6, 36, 6, 56]
    rows = pairwise()
    assert len({each.name for each in rows}) == len(rows) > 100
    assert any("cp" in each.name and "chunked" in each.name for each in rows)


def scaled(factor: int) -> Callable[[Program], Program]:
    return lambda program: replace(program, gradient_divisor=factor * program.gradient_divisor)


def positions_from_zero(program: Program) -> Program:
    """Every rank takes its part of the sequence for the beginning."""
    inner = program.shard_batch

    def shard(batch: Batch) -> Batch:
        part = inner(batch)
        return part._replace(positions=torch.arange(part.inputs.shape[1]))

    return replace(program, shard_batch=shard)


def stale_weight(program: Program) -> Program:
    """Once, one weight is what it was before the optimizer's step."""
    weight = dict(program.model.named_parameters())
    name = next(each for each in weight if each.endswith("ffn.down.weight"))
    before: list[torch.Tensor] = []

    def follow() -> None:
        local: Any = dict(program.model.named_parameters())[name].detach()
        local = local.to_local() if hasattr(local, "to_local") else local
        if len(before) == 2:
            local.copy_(before[1])
        before.append(local.clone())

    return replace(program, after_step=(*program.after_step, follow))


def backward_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stage computes no gradients of its own weights for one microbatch; its input's gradient is sent on."""
    from torch.distributed.pipelining import _backward, stage

    real, calls = stage.stage_backward, itertools.count()

    def forget(output: Any, output_gradients: Any, inputs: Any, *rest: Any) -> Any:
        weights = [each for each in _weights_behind(output) if each.grad is not None]
        before = [each.grad.clone() for each in weights]
        found = real(output, output_gradients, inputs, *rest)
        if next(calls) % 2:
            for weight, gradient in zip(weights, before, strict=True):
                weight.grad = gradient
        return found

    monkeypatch.setattr(stage, "stage_backward", forget)
    monkeypatch.setattr(_backward, "stage_backward", forget)


def _weights_behind(output: Any) -> list[Any]:
    """Leaves of the graph of a stage's output that are parameters."""
    found, seen = [], set()
    waiting = [each.grad_fn for each in (output if isinstance(output, tuple | list) else [output]) if each.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(getattr(node, "variable", None), torch.nn.Parameter):
            found.append(node.variable)
        waiting += [each for each, _ in node.next_functions if each is not None]
    return found


def identity(program: Program) -> Program:
    return program


def no_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replicas are forgotten when the parameters are laid out."""
    from stepladder.strategies import fsdp2

    real = fsdp2.side_by_side
    monkeypatch.setattr(fsdp2, "side_by_side", lambda mesh, *names: real(mesh, names[-1]))


def one_layer_unreduced(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.parallel import DistributedDataParallel

    made = DistributedDataParallel.__init__

    def init(self: Any, module: Any, **options: Any) -> None:
        module._ddp_params_and_buffers_to_ignore = [n for n, _ in module.named_parameters() if "layers.0.ffn" in n]
        made(self, module, **options)

    monkeypatch.setattr(DistributedDataParallel, "__init__", init)


def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that lies in the program only."""


Fault = tuple[Case, Callable[[Program], Program], Callable[[pytest.MonkeyPatch], None]]
FAULTS: dict[str, Fault] = {
    "loss scale wrong by cp": (case_of((1, 1, 1, 2, 1, 1)), scaled(2), nothing),
    "loss scale wrong by dp": (case_of((1, 1, 2, 1, 1, 1)), scaled(2), nothing),
    "one layer's all-reduce skipped": (case_of((1, 2, 1, 1, 1, 1), {"ddp": {}}), identity, one_layer_unreduced),
    "positions wrong under cp": (case_of((1, 1, 1, 2, 1, 1)), positions_from_zero, nothing),
    "a stale weight after a step": (case_of((1, 1, 2, 1, 1, 1)), stale_weight, nothing),
    "a microbatch dropped in the pipeline": (case_of((2, 1, 1, 1, 1, 1)), identity, backward_forgotten),
    "replicas not synchronised": (case_of((1, 2, 1, 1, 1, 1)), identity, no_replicas),
}
ONLY_IN_GRADIENTS = ("loss scale wrong by cp", "loss scale wrong by dp")
"""Clipping and AdamW undo a common factor, so that the losses cannot tell."""
ONLY_IN_LOSSES = ("a stale weight after a step",)
"""The gradients are those of the first step."""


def faulty(names: list[str]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for name in names:
        case, tamper, before = FAULTS[name]
        with pytest.MonkeyPatch.context() as monkeypatch:
            before(monkeypatch)
            result = outcome(case, tamper=tamper)
        found.append(differences(result, reference(case)))
    return found


def test_the_comparison_catches_every_fault(run_ranks: Any) -> None:
    found = dict(zip(FAULTS, run_ranks(faulty, 2, list(FAULTS)), strict=True))

    for name, (loss, gradient) in found.items():
        if name not in ONLY_IN_LOSSES:
            assert gradient > 100 * GRADIENT_TOLERANCE, f"{name} went unnoticed in the gradients ({gradient:.1e})"
        if name not in ONLY_IN_GRADIENTS:
            assert loss > 10 * LOSS_TOLERANCE, f"{name} went unnoticed in the losses ({loss:.1e})"


@pytest.mark.parametrize("at", ["loss", "gradient"])
def test_what_is_not_finite_differs(at: str) -> None:
    good = ([1.0, 2.0], {"a": torch.ones(2), "b": torch.ones(2)})
    bad = ([1.0, float("nan")], good[1]) if at == "loss" else (good[0], good[1] | {"b": torch.full((2,), torch.nan)})

    assert differences(good, good) == (0.0, 0.0)
    assert max(differences(bad, good)) == float("inf")


def test_the_axes_of_the_matrix_are_those_of_the_mesh() -> None:
    from stepladder.strategies.mesh import Axis

    assert tuple(Axis) == AXES
