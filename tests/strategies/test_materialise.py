"""Weights are a function of seed and name: not of ranks, order, device history or wrappers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stepladder.strategies.ac import ActivationCheckpointing
from stepladder.strategies.base import Facts, Program, Run
from stepladder.strategies.materialise import build_on_meta, materialise, seed_of
from stepladder.strategies.names import canonical


def weights(program: Program) -> dict[str, torch.Tensor]:
    return {canonical(name): p.detach().clone() for name, p in program.model.named_parameters()}


def test_weights_follow_the_seed_and_nothing_else(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    made: list[dict[str, torch.Tensor]] = []
    for noise, seed in [(1, 0), (2, 0), (1, 5)]:
        torch.manual_seed(noise)
        program = make_program(device="meta")
        materialise(program, make_run(seed=seed))
        made.append(weights(program))
    one, same, other = made
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if not name.endswith("norm.weight"))
    blocks = [one[f"layers.{i}.ffn.up.weight"] for i in range(4)]
    assert not any(torch.equal(blocks[0], block) for block in blocks[1:])


def test_each_weight_is_what_its_own_generator_gives(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program = make_program(device="meta")
    materialise(program, make_run(seed=3))
    for name, found in weights(program).items():
        expected = torch.empty(found.shape)
        assert program.facts.initialise is not None
        program.facts.initialise(name, expected, torch.Generator().manual_seed(seed_of(3, name)))
        assert torch.equal(found, expected), name


def test_the_order_of_modules_and_wrappers_do_not_matter(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    plain, turned = make_program(device="meta"), make_program(device="meta")
    embedding = turned.model.embedding
    del turned.model.embedding
    turned.model.embedding = embedding
    assert list(weights(plain)) != list(weights(turned))
    wrapped = ActivationCheckpointing().apply(make_program(device="meta"), make_run())
    for program in (plain, turned, wrapped):
        materialise(program, make_run())
    for name, expected in weights(plain).items():
        assert torch.equal(weights(turned)[name], expected)
        assert torch.equal(weights(wrapped)[name], expected)


def test_a_model_made_whole_keeps_its_weights(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program = make_program()
    before = weights(program)
    materialise(program, make_run())
    assert all(torch.equal(before[name], after) for name, after in weights(program).items())


class Buffered(nn.Module):
    """Has a table that nobody would fill."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("table", torch.arange(4.0, device=device))


def initialise(name: str, weight: torch.Tensor, generator: torch.Generator) -> None:
    weight.fill_(1.0)


def test_buffers_that_nobody_would_fill_are_an_error(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    facts = Facts(initialise=initialise)
    with pytest.raises(ValueError, match="buffers on the meta device"):
        materialise(make_program(model=build_on_meta(Buffered), facts=facts), make_run())

    program = make_program(model=build_on_meta(lambda: Buffered(device="cpu")), facts=facts)
    materialise(program, make_run())
    assert torch.equal(program.model.table, torch.arange(4.0))  # a buffer that has a value keeps it
    assert torch.equal(program.model.linear.bias, torch.ones(2))


def test_a_meta_model_without_an_initialiser_is_an_error(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program = make_program(device="meta")
    with pytest.raises(ValueError, match="no initialiser"):
        materialise(replace(program, facts=Facts()), make_run())


def test_a_tied_tensor_stays_one(make_run: Callable[..., Run], make_program: Callable[..., Program]) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inlet, self.outlet = nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)
            self.outlet.weight = self.inlet.weight

    program: Any = make_program(model=build_on_meta(Tied), facts=Facts(initialise=initialise))
    materialise(program, make_run())
    assert program.model.inlet.weight is program.model.outlet.weight
    assert torch.equal(program.model.outlet.weight, torch.ones(4, 2))
