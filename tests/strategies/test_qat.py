"""Layers compute with rounded numbers, as rounding by hand does; gradients pass as if nothing were rounded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepladder.strategies import Strategies
from stepladder.strategies.base import Batch, Facts, Program, Run
from stepladder.strategies.check import problems
from stepladder.strategies.errors import StrategyError
from stepladder.strategies.mesh import Axis
from stepladder.strategies.qat import QuantizationAware

pytest.importorskip("torchao")


def steps_of(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Nearest integers before they are limited, [out, groups, group_size], and the scales of the groups."""
    groups = weight.reshape(weight.shape[0], -1, group_size)
    # The largest magnitude lies at half the range, 7.5 of 15 steps, so that it is a matter of the last bit where it
    # goes; multiplied by the inverse, as torchao does it, the bits are the same.
    scale = groups.abs().amax(-1, keepdim=True) / ((2**bits - 1) / 2)
    return torch.round(groups * (1.0 / scale)), scale


def rounded_weight(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Symmetric, a scale a group; integers from -2^(b-1) to 2^(b-1) - 1."""
    steps, scale = steps_of(weight, bits, group_size)
    return (torch.clamp(steps, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale).reshape(weight.shape)


def rounded_input(inputs: Tensor) -> Tensor:
    """Asymmetric, a scale and a zero point a token; integers from -128 to 127."""
    least = inputs.amin(-1, keepdim=True).clamp(max=0.0)
    most = inputs.amax(-1, keepdim=True).clamp(min=0.0)
    scale = (most - least) / 255
    zero = torch.clamp(-128 - torch.round(least / scale), -128, 127)
    return (torch.clamp(torch.round(inputs * (1.0 / scale)) + zero, -128, 127) - zero) * scale


def one_layer(make_program: Callable[..., Program]) -> tuple[Program, Any]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 48, bias=True))
    return make_program(model=model, facts=Facts()), model[0]


@pytest.mark.parametrize("weight", ["int4", "int8"])
@pytest.mark.parametrize("activations", ["int8", "none"])
def test_a_layer_computes_with_numbers_rounded_by_hand(
    make_program: Callable[..., Program], make_run: Callable[..., Run], weight: Any, activations: Any
) -> None:
    program, plain = one_layer(make_program)
    inputs = torch.randn(5, 7, 64)
    program = QuantizationAware(weight=weight, activations=activations, group_size=16).apply(program, make_run())

    answer = program.model(inputs)

    bits = {"int4": 4, "int8": 8}[weight]
    seen = inputs if activations == "none" else rounded_input(inputs)
    expected = torch.nn.functional.linear(seen, rounded_weight(plain.weight, bits, 16), plain.bias)
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(answer, plain(inputs), atol=1e-4)


def test_gradients_pass_through_the_rounding_but_not_through_its_limits(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program, plain = one_layer(make_program)
    inputs, upstream = torch.randn(6, 64), torch.randn(6, 48)
    program = QuantizationAware(activations="none", weight="int8").apply(program, make_run())

    program.model(inputs).backward(upstream)

    steps, _ = steps_of(plain.weight.detach(), 8, 32)
    within = ((steps >= -128) & (steps <= 127)).reshape(plain.weight.shape)
    assert 0 < int((~within).sum()) <= 48 * 2  # at most the largest of each group
    torch.testing.assert_close(plain.weight.grad, (upstream.T @ inputs) * within)
    torch.testing.assert_close(plain.bias.grad, upstream.sum(0))


def test_weights_names_and_precise_layers_are_left_alone(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program = make_program(dim=32, num_heads=2, ffn_dim=64)
    names, weights = zip(*program.model.named_parameters(), strict=True)
    inputs = torch.randint(0, 32, (2, 8))
    whole = program.model(inputs)

    changed = QuantizationAware(skip=("layers.0.*",)).apply(program, make_run(facts=program.facts))

    assert [name for name, _ in changed.model.named_parameters()] == list(names)
    assert all(a is b for a, b in zip(changed.model.parameters(), weights, strict=True))
    swapped = {name for name, each in changed.model.named_modules() if type(each).__name__ == "FakeQuantizedLinear"}
    assert swapped
    assert all(name.startswith(("layers.1.", "layers.2.", "layers.3.")) for name in swapped)
    assert "head" not in swapped
    assert changed.reports[0]() == [
        f"qat: {len(swapped)} linear layers rounded (weights int4 in groups of 32, inputs int8 a token), "
        f"{29 - len(swapped)} as they were"
    ]
    assert 0 < float((changed.model(inputs) - whole).detach().abs().max()) < 1.0


def test_weights_may_come_into_being_later(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> None:
    from stepladder.strategies.materialise import materialise

    run = make_run()
    programs = [make_program(device="meta", dim=32, num_heads=2, ffn_dim=64) for _ in range(2)]
    changed = QuantizationAware().apply(programs[0], run)
    for program in (changed, programs[1]):
        materialise(program, run)
    for a, b in zip(changed.model.parameters(), programs[1].model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_be_is_said(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> None:
    facts = make_program().facts  # 16 and 32 features
    run = make_run(facts=facts)
    assert any("none of the 29 linear layers" in each for each in QuantizationAware(group_size=64).check(run))
    assert any("no linear layer of the model" in each for each in QuantizationAware(skip=("x",)).check(run))
    assert not list(QuantizationAware(group_size=16).check(run))
    program = make_program(model=nn.Sequential(nn.Linear(10, 10)), facts=Facts())
    with pytest.raises(StrategyError, match="none of the 1 linear layers"):
        QuantizationAware().apply(program, run)
    run = make_run(facts=facts, degrees={**dict.fromkeys(Axis, 1), Axis.TP: 2}, active={"qat"})
    found = list(problems(Strategies(qat=QuantizationAware(group_size=16)), run))
    assert any("cannot work beside mesh.tp" in each for each in found)


def test_a_tiny_decoder_trains_with_it(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> None:
    program = QuantizationAware(group_size=16).apply(make_program(num_layers=1), make_run())
    optimizer = torch.optim.AdamW(program.model.parameters(), lr=1e-2)
    inputs = torch.randint(0, 32, (4, 9))
    batch = Batch(inputs[:, :-1], inputs[:, 1:].contiguous())
    losses: list[float] = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = program.loss(program.model(*batch.arguments), batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.slow
def test_shards_copies_and_a_compiled_model_train_alike(stepladder: Callable[..., Any], tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        "[run]\nnum_steps = 6\nlog_every = 1\ndevice = 'cpu'\n[model.decoder]\ndim = 32\nnum_layers = 2\nffn_dim = 64\n"
        "[data.synthetic]\n[batch]\nmicrobatch_size = 2\nsequence_length = 32\n[strategies.adamw]\n[strategies.qat]\n"
    )
    arms = {
        "whole": ("batch.microbatch_size=4",),
        "compiled": ("batch.microbatch_size=4", "strategies.compile={}"),
        "copies": ("strategies.ddp={}", "run.cpu_ranks=2"),
        "shards": ("strategies.fsdp2={}", "run.cpu_ranks=2"),
    }
    losses: dict[str, list[float]] = {}
    for name, changes in arms.items():
        done = stepladder(
            "run", recipe, "--out", tmp_path / name, *(word for each in changes for word in ("--set", each))
        )
        assert done.returncode == 0, done.stderr
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses[name] = [each["loss"] for each in lines if each["kind"] == "train"]
    assert len(losses["whole"]) == 6
    for name in arms:
        assert losses[name] == pytest.approx(losses["whole"], rel=2e-3), name  # a number may round the other way
