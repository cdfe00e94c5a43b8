"""From a plan to a program on this rank: the model, and every strategy applied to it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from ..strategies.assemble import assemble
from ..strategies.base import Program, Run
from ..strategies.check import owned_axes
from ..strategies.clip import measure_norm
from ..strategies.materialise import build_on_meta, build_whole
from ..strategies.mesh import build_mesh
from ..trainer.step import accumulate
from .plan import Plan
from .ranks import Ranks
from .teacher import open_model

if TYPE_CHECKING:
    import torch
    from torch import nn


def build_program(plan: Plan, ranks: Ranks, device: "torch.device") -> Program:
    """The recipe's model, on the meta device until the strategies have had their say, with all of them applied.

    A model that cannot be initialised by name is made whole on the host: the same on every rank.
    """
    recipe = plan.recipe
    needs_mesh = ranks.num_ranks > 1 or owned_axes(recipe.strategies)
    mesh = build_mesh(plan.device_type, plan.degrees) if needs_mesh else None
    run: Run = replace(plan.run(), mesh=mesh, device=device, open_model=open_model)
    program = Program(
        model=_model(plan),
        facts=plan.facts,
        loss=recipe.model.chosen.loss(),
        forward_backward=accumulate,
        clip_gradients=measure_norm,
    )
    return assemble(program, recipe.strategies, run)


def _model(plan: Plan) -> "nn.Module":
    make = plan.recipe.model.chosen.build
    return build_whole(make, plan.recipe.run.seed) if plan.facts.initialise is None else build_on_meta(make)
