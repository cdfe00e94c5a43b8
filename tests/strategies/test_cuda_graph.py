"""The buffers around a CUDA graph, with a recorder that needs no GPU; and where a capture is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity import Case, differences, outcome
from torch import nn

from stepladder.profiling.record import no_span
from stepladder.strategies.base import Batch, Owns, Program, Run
from stepladder.strategies.compile import Compile
from stepladder.strategies.cuda_graph import CudaGraph, capturing
from stepladder.strategies.errors import StrategyError
from stepladder.strategies.facts import Experts, Facts
from stepladder.strategies.mesh import Axis

WARMUP = 2


class Rehearsal:
    """Behaves as a CUDA graph does: recording gives addresses but no values; a replay reads and writes these."""

    def __init__(self, model: nn.Module, *, works: bool = True) -> None:
        self.model, self.works = model, works
        self.calls: list[str] = []

    def warm(self, work: Callable[[], Any]) -> Any:
        self.calls.append("warm")
        return work()

    def record(self, work: Callable[[], Any]) -> Any:
        self.calls.append("record")
        result = work()
        held = [(each, each.grad) for each in self.model.parameters() if each.grad is not None]
        for tensor in (result, *(gradient for _, gradient in held)):
            tensor.fill_(float("nan"))

        def replay() -> None:
            self.calls.append("replay")
            for parameter, _ in held:
                parameter.grad = None
            again = work()
            for parameter, gradient in held:
                assert parameter.grad is not None
                gradient.copy_(parameter.grad)
                parameter.grad = None
            result.copy_(again)

        def idle() -> None:
            for tensor in (result, *(gradient for _, gradient in held)):
                tensor.nan_to_num_(nan=1e-3)

        return result, replay if self.works else idle


def captured(program: Program, **settings: Any) -> Program:
    recorder = Rehearsal(program.model, **settings)
    return replace(
        program, forward_backward=capturing(program.forward_backward, recorder=recorder, warmup_steps=WARMUP)
    )


@pytest.mark.parametrize("strategies", [{}, {"accumulation": {"num_microbatches": 2}, "amp": {}}])
def test_replayed_steps_are_the_same_steps(strategies: dict[str, Any]) -> None:
    case = Case(strategies=strategies)
    assert differences(outcome(case, captured), outcome(case)) == (0.0, 0.0)


def test_a_replay_that_computes_nothing_would_be_noticed() -> None:
    def broken(program: Program) -> Program:
        return captured(program, works=False)

    loss, _ = differences(outcome(Case(), broken), outcome(Case()))
    assert loss > 0.1


def batch(seed: int, length: int = 8, size: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 32, (size, length + 1), generator=generator)
    return Batch(tokens[:, :-1], tokens[:, 1:])


def step(program: Program, *microbatches: Batch, scale: Any = 0.1) -> torch.Tensor:
    """One step as the loop takes it; its gradients stay until the next."""
    program.model.zero_grad(set_to_none=True)
    return program.forward_backward(program, microbatches, scale, no_span)


def test_it_warms_up_records_once_and_then_replays(make_program: Callable[..., Program]) -> None:
    program = make_program()
    recorder = Rehearsal(program.model)
    program = replace(
        program, forward_backward=capturing(program.forward_backward, recorder=recorder, warmup_steps=WARMUP)
    )
    for seed in range(4):
        step(program, batch(seed))
    assert recorder.calls == ["warm", "warm", "record", "replay", "replay"]


def test_gradients_stay_at_their_addresses_and_losses_are_not_overwritten(make_program: Callable[..., Program]) -> None:
    program = captured(make_program())
    losses: list[torch.Tensor] = []
    addresses: list[list[int]] = []
    for seed in range(WARMUP + 3):
        losses.append(step(program, batch(seed)))
        addresses.append([each.grad.data_ptr() for each in program.model.parameters() if each.grad is not None])
    assert addresses[WARMUP] == addresses[WARMUP + 1] == addresses[WARMUP + 2]
    plain = make_program()
    assert [float(each) for each in losses] == [float(step(plain, batch(seed))) for seed in range(WARMUP + 3)]


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_the_scale_of_each_step_reaches_the_gradients(
    kind: Callable[[float], Any], make_program: Callable[..., Program]
) -> None:
    """The number of tokens may be another one in every step, on the host or on the device."""
    program, plain = captured(make_program()), make_program()
    for seed, scale in enumerate((0.1, 0.2, 0.3, 0.4, 0.5)):
        step(program, batch(seed), scale=kind(scale))
        step(plain, batch(seed), scale=kind(scale))
        for name, parameter in plain.model.named_parameters():
            torch.testing.assert_close(program.model.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ((batch(9, length=4),), r"\[2, 4\] where it has \[2, 8\]"),
        ((batch(9), batch(10)), r"\(4 of them\) where there are 2"),
    ],
)
def test_another_shape_is_one_clear_sentence(
    other: tuple[Batch, ...], said: str, make_program: Callable[..., Program]
) -> None:
    program = captured(make_program())
    for seed in range(WARMUP + 2):
        step(program, batch(seed))
    with pytest.raises(StrategyError, match=said):
        step(program, *other)


def complaints(strategy: Any, run: Run) -> str:
    refused = [each.sentence() for each in strategy.conflicts if each.applies(strategy, run)]
    return " | ".join([*refused, *strategy.check(run)])


@pytest.mark.parametrize("name", ["ac", "ddp", "fsdp2", "optimizer_in_backward", "device cpu", *map(str, Axis)])
def test_a_capture_is_refused_where_it_was_not_made_safe(name: str, make_run: Callable[..., Run]) -> None:
    run = make_run(device_type="cuda")
    assert complaints(CudaGraph(), run) == ""
    axis = name in set(map(str, Axis))
    if axis:
        run = replace(run, degrees=dict(run.degrees) | {Axis(name): 2})
    elif name == "device cpu":
        run = replace(run, device_type="cpu")
    else:
        run = replace(run, active=frozenset({name}))
    other = f"mesh.{name}" if axis else name if name == "device cpu" else f"strategies.{name}"
    if name == "pp":
        assert Owns.FORWARD_BACKWARD in CudaGraph().owns  # which a pipeline owns, and two owners are refused
    else:
        assert f"cannot work beside {other}" in complaints(CudaGraph(), run)


def test_a_loss_scale_experts_in_float32_and_a_late_capture_are_refused(make_run: Callable[..., Run]) -> None:
    run = make_run(device_type="cuda")
    scaled = replace(run, active=frozenset({"amp"}), owners={Owns.GRADIENT_SCALE: "amp"})
    assert "the loss scale changes" in complaints(CudaGraph(), scaled)
    assert complaints(CudaGraph(), replace(scaled, owners={Owns.COMPUTE_DTYPE: "amp"})) == ""
    experts = replace(run, facts=Facts(blocks=("layers.0",), experts=Experts(modules=("layers.0",), num_experts=4)))
    assert "how many rows each expert gets" in complaints(CudaGraph(), experts)
    assert complaints(CudaGraph(), replace(experts, owners={Owns.COMPUTE_DTYPE: "amp"})) == ""
    narrow = Experts(modules=("layers.0",), num_experts=4, dim=32, ffn_dim=20, grouped_multiple=8)
    for sizes, said in ((narrow, "make both widths multiples of 8"), (replace(narrow, ffn_dim=24), "")):
        facts = replace(experts.facts, experts=sizes)
        found = complaints(CudaGraph(), replace(experts, facts=facts, owners={Owns.COMPUTE_DTYPE: "amp"}))
        assert (said in found) if said else not found
    assert "warmup_steps = 100: the run ends after 100 steps" in complaints(CudaGraph(warmup_steps=100), run)


def test_the_compilers_own_graphs_are_refused_inside_a_capture(make_run: Callable[..., Run]) -> None:
    run = make_run(device_type="cuda", active={"cuda_graph"})
    assert "a capture cannot hold another one" in complaints(Compile(mode="reduce-overhead"), run)
    assert complaints(Compile(mode="max-autotune-no-cudagraphs"), run) == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_a_captured_step_leaves_the_gradients_of_a_plain_one(
    dtype: torch.dtype, make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    device = torch.device("cuda")
    plain, program = make_program(), make_program()
    for each in (plain, program):
        each.model.to(device, dtype)
    graphed = CudaGraph(warmup_steps=2).apply(program, make_run(device_type="cuda", device=device))
    for seed in range(5):
        given = Batch(*(each.to(device) for each in batch(seed) if each is not None))
        losses = [float(step(each, given)) for each in (graphed, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for name, parameter in plain.model.named_parameters():
            torch.testing.assert_close(graphed.model.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-5)
