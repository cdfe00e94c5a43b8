"""Mixed precision: which format computes, and how FP16 survives its narrow range."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from stepladder.strategies.adamw import AdamW
from stepladder.strategies.amp import Amp
from stepladder.strategies.base import LossScaling, Program, Run

TOKENS = torch.arange(16).view(2, 8)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_narrow_and_norms_and_weights_are_not(
    dtype: Any, make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program = Amp(dtype=dtype).apply(make_program(num_layers=1), make_run())
    seen: dict[str, torch.dtype] = {}
    for name, module in program.model.named_modules():
        module.register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out.dtype))
    with program.forward_context():
        logits = program.model(TOKENS)
    assert seen["layers.0.attention.query"] == seen["layers.0.ffn.down"] == logits.dtype == DTYPES[dtype]
    assert seen["embedding"] == torch.float32
    assert all(p.dtype == torch.float32 for p in program.model.parameters())

    program.model(TOKENS)
    assert seen["layers.0.attention.query"] == torch.float32  # outside the context nothing has changed


def scaled(parameter: nn.Parameter, run: Run, program: Program, **keys: Any) -> tuple[LossScaling, torch.optim.SGD]:
    scaling = Amp(dtype="fp16", **keys).apply(program, run).loss_scaling
    return scaling, torch.optim.SGD([parameter], lr=1.0)


def take_step(scaling: LossScaling, optimizer: torch.optim.Optimizer, weight: nn.Parameter, grad: float) -> None:
    """A step in which the loss is `grad * weight`, through scaling as the loop does it."""
    scaling.scale(weight.sum() * grad).backward()
    scaling.unscale(optimizer)
    scaling.step(optimizer)
    optimizer.zero_grad(set_to_none=True)


def test_an_overflow_skips_the_step_and_halves_the_scale(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    weight = nn.Parameter(torch.zeros(1))
    scaling, optimizer = scaled(weight, make_run(), make_program(device="meta"), init_scale=1024.0, growth_interval=2)
    assert scaling.state()["scale"] == 1024.0
    assert float(scaling.scale(torch.tensor(3.0))) == 3072.0

    take_step(scaling, optimizer, weight, 1.0)
    assert float(weight.detach()) == -1.0  # the scale has no part in the step
    take_step(scaling, optimizer, weight, float("inf"))
    assert float(weight.detach()) == -1.0
    assert scaling.state()["scale"] == 512.0
    take_step(scaling, optimizer, weight, float("nan"))
    assert scaling.state()["scale"] == 256.0
    take_step(scaling, optimizer, weight, 2.0)
    take_step(scaling, optimizer, weight, 2.0)
    assert float(weight.detach()) == -5.0
    assert scaling.state()["scale"] == 512.0  # two good steps in a row


def test_factors_are_those_of_the_recipe(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> None:
    weight = nn.Parameter(torch.zeros(1))
    keys = {"init_scale": 100.0, "growth_factor": 3.0, "backoff_factor": 0.1, "growth_interval": 1}
    scaling, optimizer = scaled(weight, make_run(), make_program(device="meta"), **keys)
    scaling.scale(weight.sum())
    take_step(scaling, optimizer, weight, 1.0)
    assert scaling.state()["scale"] == pytest.approx(300.0)
    take_step(scaling, optimizer, weight, float("inf"))
    assert scaling.state()["scale"] == pytest.approx(30.0)


def test_the_scale_survives_a_restart(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> None:
    import json

    weight = nn.Parameter(torch.zeros(1))
    program, run = make_program(device="meta"), make_run()
    keys = {"init_scale": 8.0, "growth_interval": 2}
    scaling, optimizer = scaled(weight, run, program, **keys)
    take_step(scaling, optimizer, weight, float("inf"))
    take_step(scaling, optimizer, weight, 1.0)
    kept = json.loads(json.dumps(scaling.state()))  # what a checkpoint does with it

    other, other_optimizer = scaled(weight, run, program, **keys)
    other.restore(kept)
    assert other.state() == scaling.state()
    take_step(other, other_optimizer, weight, 1.0)  # the second good step in a row
    assert other.state()["scale"] == 8.0


def test_bf16_needs_no_scaling(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> None:
    scaling = Amp().apply(make_program(device="meta"), make_run()).loss_scaling
    assert float(scaling.scale(torch.tensor(3.0))) == 3.0
    assert scaling.state() == {}


def sharded_overflow() -> list[tuple[float, bool]]:
    """FSDP2 and FP16: an overflow in the shard of one rank only; scale and 'weights moved' on each rank."""
    import torch.distributed as dist

    from stepladder.strategies.base import Facts
    from stepladder.strategies.fsdp2 import FSDP2
    from stepladder.strategies.mesh import Axis, build_mesh

    degrees = dict.fromkeys(Axis, 1) | {Axis.DP_SHARD: 2}
    facts = Facts(blocks=("0",))
    run = Run(
        device_type="cpu", degrees=degrees, facts=facts, num_steps=1, tokens_per_step=1, seed=0, active=frozenset(),
        mesh=build_mesh("cpu", degrees), device=torch.device("cpu"),
    )  # fmt: skip
    torch.manual_seed(0)
    program: Any = Program(
        model=nn.Sequential(nn.Linear(4, 4)),
        facts=facts,
        loss=None,
        forward_backward=None,
        clip_gradients=None,  # type: ignore
    )
    for strategy in (FSDP2(prefetch=0), AdamW(), Amp(dtype="fp16", init_scale=64.0)):
        program = strategy.apply(program, run)
    optimizer = program.make_optimizer(program.model)
    weight = next(iter(program.model.parameters()))
    before = weight.to_local().detach().clone()
    program.loss_scaling.scale(program.model(torch.ones(2, 4)).sum()).backward()
    if dist.get_rank() == 1:
        weight.grad.to_local()[0, 0] = float("inf")
    program.loss_scaling.unscale(optimizer)
    program.loss_scaling.step(optimizer)
    mine = (program.loss_scaling.state()["scale"], not torch.equal(before, weight.to_local()))
    everybody: list[Any] = [None, None]
    dist.all_gather_object(everybody, mine)
    return everybody


def test_an_overflow_in_one_shard_skips_the_step_on_every_rank(run_ranks: Callable[..., Any]) -> None:
    assert run_ranks(sharded_overflow, 2) == [(32.0, False), (32.0, False)]


def overflow_elsewhere() -> dict[str, Any]:
    """Two stages with parameters of their own, on several meshes; only the last rank sees an overflow, or nothing."""
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from stepladder.strategies.base import Facts
    from stepladder.strategies.mesh import Axis, build_mesh, side_by_side

    degrees = dict.fromkeys(Axis, 1) | {Axis.PP: 2}
    mesh = build_mesh("cpu", degrees)
    run = Run(
        device_type="cpu", degrees=degrees, facts=Facts(), num_steps=1, tokens_per_step=1, seed=0, active=frozenset(),
        mesh=mesh, device=torch.device("cpu"),
    )  # fmt: skip
    two = side_by_side(mesh, "dp_replicate", "shard")
    program: Any = Program(
        model=nn.Identity(),
        facts=Facts(),
        loss=None,
        forward_backward=None,
        clip_gradients=None,  # type: ignore
    )
    rank = dist.get_rank()
    found: dict[str, Any] = {}
    for case, gradients in {"fine": [1.0, 1.0], "overflow": [1.0, float("inf")], "no gradient": [1.0, None]}.items():
        weights = [
            nn.Parameter(torch.zeros(2)),
            nn.Parameter(distribute_tensor(torch.zeros(2), mesh["shard"], [Shard(0)])),
            nn.Parameter(distribute_tensor(torch.zeros(2), two, [Replicate(), Shard(0)])),
        ]
        scaling = Amp(dtype="fp16", init_scale=64.0).apply(program, run).loss_scaling
        optimizer = torch.optim.SGD(weights, lr=1.0)
        if (gradient := gradients[rank]) is not None:
            for i, weight in enumerate(weights):
                weight.grad = torch.full_like(weight.detach(), 64.0 * (gradient if i == 2 else 1.0))
        scaling.unscale(optimizer)
        scaling.step(optimizer)
        values = [float((w.full_tensor() if hasattr(w, "full_tensor") else w).detach()[0]) for w in weights]
        everybody: list[Any] = [None, None]
        dist.all_gather_object(everybody, (scaling.state()["scale"], values))
        found[case] = everybody
    return found


def test_an_overflow_in_one_stage_skips_the_step_on_every_rank(run_ranks: Callable[..., Any]) -> None:
    found = run_ranks(overflow_elsewhere, 2)
    assert found["fine"] == [(64.0, [-1.0] * 3)] * 2
    assert found["overflow"] == [(32.0, [0.0] * 3)] * 2
    assert found["no gradient"] == [(64.0, [-1.0] * 3), (64.0, [0.0] * 3)]
