"""Cuts a model into stages, and the facts about it with it."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

from torch import Tensor, nn

from ..facts import Cuts, Facts
from ..names import STAGE


class HandOn(nn.Module):
    """Stands where a module was that another stage has: returns its first input."""

    def forward(self, x: Tensor, *rest: object) -> Tensor:
        """Any shape -> the same tensor."""
        return x


class Stages(nn.Module):
    """The stages of one rank, each a child by its name; it is never called itself."""


def stage_name(index: int) -> str:
    """Name of a stage's module in `Stages`."""
    return f"{STAGE}{index}"


def pieces_of_stages(facts: Facts, blocks_of_stages: Sequence[range]) -> list[tuple[str, ...]]:
    """The names of the modules that each stage has for itself: blocks, and what lies before and after them."""
    assert facts.cuts is not None
    pieces = [tuple(facts.blocks[i] for i in blocks) for blocks in blocks_of_stages]
    pieces[0] = (*facts.cuts.before, *pieces[0])
    pieces[-1] = (*pieces[-1], *facts.cuts.after)
    return pieces


def split_model(model: nn.Module, pieces: Sequence[Sequence[str]], held: Sequence[int]) -> Stages:
    """A copy of the model for each stage that this rank holds, without the modules of the other stages."""
    stages = Stages()
    for index in held:
        part = deepcopy(model)
        for name in (name for other, names in enumerate(pieces) if other != index for name in names):
            part.set_submodule(name, HandOn())
        stages.add_module(stage_name(index), part)
    return stages


def split_facts(facts: Facts, pieces: Sequence[Sequence[str]], held: Sequence[int]) -> Facts:
    """What is true of this rank's stages; sizes of the whole model stay as they are."""
    owner = {name: stage for stage, names in enumerate(pieces) for name in names}

    def places(name: str) -> list[str]:
        """The new names of a module: one, none if another rank has it; one in each stage if it belongs to no stage."""
        above = name.split(".")
        owners = [owner[path] for i in range(len(above), 0, -1) if (path := ".".join(above[:i])) in owner]
        stages = [owners[0]] if owners else list(held)
        return [f"{stage_name(stage)}.{name}" for stage in stages if stage in held]

    def kept(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(new for name in names for new in places(name))

    def in_order(names: Sequence[str]) -> tuple[str, ...]:
        """Stage by stage, as the forward pass meets them."""
        return tuple(sorted(kept(names), key=lambda name: held.index(_stage_of(name))))

    return replace(
        facts,
        parts=tuple(stage_name(stage) for stage in held),
        blocks=in_order(facts.blocks),
        units=tuple(unit for names in facts.units if (unit := kept(names))),
        slicing={new: how for name, how in facts.slicing.items() for new in places(name)},
        attentions=in_order(facts.attentions),
        head=next(iter(kept([facts.head])), "") if facts.head else "",
        precise=kept(facts.precise),
        cuts=_own_cuts(facts, pieces, held),
        experts=replace(facts.experts, modules=in_order(facts.experts.modules)) if facts.experts else None,
    )


def _stage_of(name: str) -> int:
    return int(name.split(".")[0].removeprefix(STAGE))


def _own_cuts(facts: Facts, pieces: Sequence[Sequence[str]], held: Sequence[int]) -> Cuts:
    """The part of the cuts that concerns the blocks which are left."""
    assert facts.cuts is not None
    cuts, cost = facts.cuts, dict(zip(facts.blocks, facts.cuts.block_costs, strict=True))
    first, last = 0 in held, len(pieces) - 1 in held
    return replace(
        cuts,
        before=tuple(f"{stage_name(0)}.{name}" for name in cuts.before) if first else (),
        after=tuple(f"{stage_name(len(pieces) - 1)}.{name}" for name in cuts.after) if last else (),
        block_costs=tuple(cost[name] for stage in held for name in pieces[stage] if name in cost),
        before_cost=cuts.before_cost if first else 0.0,
        after_cost=cuts.after_cost if last else 0.0,
    )
