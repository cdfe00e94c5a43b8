"""AdamW does what its paper says, decays what it should, and runs in the kernels it is told to."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, outcome, source
from torch.profiler import ProfilerActivity, profile

from stepladder.launch.build import build_program
from stepladder.launch.ranks import Ranks, agree
from stepladder.profiling.record import no_span
from stepladder.strategies.adamw import AdamW
from stepladder.strategies.base import Batch, Program, Run
from stepladder.trainer.checkpoint.config import CheckpointConfig
from stepladder.trainer.checkpoint.manager import Checkpoints, last_checkpoint


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


BLOCK = {"8bit": 256, "4bit": 128, "fp8": 256}
BYTES = {"8bit": 1.0, "4bit": 0.5, "fp8": 1.0}
TABLE_BYTES = {"8bit": 256 * 4, "4bit": 16 * 4, "fp8": 0}  # the values that the codes stand for, one table a tensor
WIDE = {"dim": 64, "ffn_dim": 128, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "vocab_size": 64}


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the moments on this rank, down to the last plain tensor in them."""

    def of(tensor: Any) -> int:
        local = getattr(tensor, "_local_tensor", tensor)
        inner = [getattr(local, name) for name in getattr(local, "tensor_attrs", ())]
        return sum(map(of, inner)) if inner else local.numel() * local.element_size()

    return sum(of(state[key]) for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))


def closed_form_bytes(kind: str, numels: list[int]) -> float:
    """Two moments: codes, a float32 scale a block and a table; small or odd tensors in float32."""
    total = 0.0
    for numel in numels:
        narrow = numel >= 4096 and numel % BLOCK[kind] == 0
        total += 2 * (numel * BYTES[kind] + numel / BLOCK[kind] * 4 + TABLE_BYTES[kind] if narrow else numel * 4)
    return total


def ten_steps(state: str, num_ranks: int = 1, mesh: dict[str, int] | None = None, **strategies: Any) -> dict[str, Any]:
    """Losses of ten steps, and how much the optimizer then holds; eagerly, for compiling takes half a minute."""
    kept: list[torch.optim.Optimizer] = []

    def keep(program: Program) -> Program:
        make = program.make_optimizer
        assert make is not None
        return replace(program, make_optimizer=lambda model: kept.append(make(model)) or kept[0])

    adamw = {"learning_rate": 1e-2, "state": state}
    case = Case(num_ranks=num_ranks, mesh=mesh or {}, model=WIDE, strategies=strategies | {"adamw": adamw})
    with torch.compiler.set_stance("force_eager"):
        losses, _ = outcome(case, keep)
    numels = [getattr(p, "_local_tensor", p).numel() for group in kept[0].param_groups for p in group["params"]]
    return {"losses": losses, "bytes": state_bytes(kept[0]), "numels": numels}


NARROW_TOLERANCE = {"8bit": 0.01, "4bit": 0.25, "fp8": 0.01}  # of the loss after ten steep steps


@pytest.mark.parametrize("state", BLOCK)
def test_a_narrow_state_learns_like_float32_in_the_bytes_of_the_closed_form(state: Any) -> None:
    truth, found = ten_steps("float32"), ten_steps(state)
    assert truth["losses"][-1] < 0.8 * truth["losses"][0]
    assert truth["bytes"] == 8 * sum(truth["numels"])
    assert found["losses"][0] == truth["losses"][0]
    assert found["losses"] != truth["losses"]  # the moments are rounded
    assert found["losses"][-1] == pytest.approx(truth["losses"][-1], rel=NARROW_TOLERANCE[state])
    assert found["bytes"] == closed_form_bytes(state, found["numels"])
    assert found["bytes"] < 0.4 * truth["bytes"]


SHARDED: dict[str, tuple[dict[str, int], dict[str, Any], tuple[str, ...]]] = {
    "fsdp2": ({"dp_shard": 2}, {"fsdp2": {}}, tuple(BLOCK)),
    "tp": ({"tp": 2}, {"tp": {}}, ("8bit",)),
}


def on_shards(folder: str) -> dict[str, Any]:
    """For each layout and state what it learns, and how it goes on from a checkpoint; in one set of processes."""
    return {
        f"{layout}, {state}": (
            ten_steps(state, 2, mesh, **strategies),
            resumed(Case(num_ranks=2, mesh=mesh, strategies=strategies), f"{folder}/{layout}", state),
        )
        for layout, (mesh, strategies, states) in SHARDED.items()
        for state in states
    }


@pytest.mark.slow
def test_shards_of_a_narrow_state_learn_like_float32_and_go_on_from_a_checkpoint(
    run_ranks: Any, tmp_path: Path
) -> None:
    truth = ten_steps("float32")
    found = run_ranks(on_shards, 2, str(tmp_path))
    assert len(found) == 4
    for name, (learnt, (on, again)) in found.items():
        state = name.split()[-1]
        assert learnt["losses"][-1] == pytest.approx(truth["losses"][-1], rel=NARROW_TOLERANCE[state]), name
        assert learnt["bytes"] == closed_form_bytes(state, learnt["numels"]), name
        assert learnt["bytes"] < 0.8 * 8 * sum(learnt["numels"]), name
        assert on[0] > on[-1], name
        assert on == again, name


def test_a_narrow_state_follows_the_learning_rate(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program = make_program(**WIDE)
    optimizer = optimizer_of(AdamW(state="8bit", weight_decay=0.0), program, make_run())
    assert [float(group["lr"]) for group in optimizer.param_groups] == [pytest.approx(3e-4)] * 2
    moved: list[float] = []
    with torch.compiler.set_stance("force_eager"):
        for rate in (1e-2, 1e-2, 0.0, 1e-3):
            before = [p.detach().clone() for p in program.model.parameters()]
            for group in optimizer.param_groups:
                group["lr"] = rate  # a number, as the loop sets it
            for parameter in program.model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            moved.append(
                max(
                    float((p.detach() - b).abs().max()) for p, b in zip(program.model.parameters(), before, strict=True)
                )
            )
    assert moved == [pytest.approx(rate, rel=0.05) for rate in (1e-2, 1e-2, 0.0, 1e-3)]


def test_what_a_narrow_state_needs_is_said(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    said = lambda strategy, **run: list(strategy.check(make_run(**run)))  # noqa: E731
    assert said(AdamW(state="8bit")) == []
    assert said(AdamW(implementation="foreach")) == []
    (sentence,) = said(AdamW(state="8bit", implementation="foreach"))
    assert sentence.startswith("implementation = 'foreach': has no effect with state = '8bit'")
    (sentence,) = said(AdamW(state="fp8"), capability=(8, 0))
    assert "needs compute capability 8.9, but the GPUs have 8.0" in sentence
    assert said(AdamW(state="fp8"), capability=(9, 0)) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (sentence,) = said(AdamW(state="4bit"))
    assert sentence.startswith("state = '4bit': torchao is not installed; pip install torchao")


def resumed(case: Case, folder: str, state: str) -> tuple[list[float], list[float]]:
    """Losses of three steps after a checkpoint: going on, and beginning again from it as the trainer would."""
    adamw = {"adamw": {"learning_rate": 1e-2, "state": state}}
    narrow = replace(case, model=WIDE, strategies=case.strategies | adamw)
    with torch.compiler.set_stance("force_eager"):
        first, again = Trained(narrow, f"{folder}/{state}"), Trained(narrow, f"{folder}/{state}")
        first.steps(2)
        first.checkpoints.save(2, CheckpointConfig())
        assert again.checkpoints.load(last_checkpoint(first.checkpoints.folder)) == 2
        return first.steps(3), again.steps(3)


class Trained:
    """A program with its optimizer and checkpoints, and batches that do not depend on the step."""

    def __init__(self, case: Case, folder: str) -> None:
        rank = torch.distributed.get_rank() if case.num_ranks > 1 else 0
        ranks = Ranks(rank=rank, local_rank=rank, num_ranks=case.num_ranks)
        self.program = build_program(case.plan(), ranks, torch.device("cpu"))
        assert self.program.make_optimizer is not None
        self.optimizer = self.program.make_optimizer(self.program.model)
        self.checkpoints = Checkpoints(
            folder=Path(folder),
            program=self.program,
            optimizer=self.optimizer,
            device=torch.device("cpu"),
            rank=rank,
            num_ranks=case.num_ranks,
            agree=lambda problem: agree(ranks, problem),
            identity={},
        )
        self.batch = Batch(*source(case).__getitems__(list(range(4)))[:2])

    def steps(self, number: int) -> list[float]:
        losses: list[float] = []
        for _ in range(number):
            losses.append(float(self.program.forward_backward(self.program, [self.batch], 1e-3, no_span)))
            self.optimizer.step()
            self.optimizer.zero_grad()
        return losses


@pytest.mark.parametrize("state", BLOCK)
def test_one_rank_goes_on_from_a_checkpoint_of_a_narrow_state(state: str, tmp_path: Path) -> None:
    on, again = resumed(Case(), str(tmp_path), state)
    assert on[0] > on[-1]
    assert on == again
