"""Applies the active strategies in order and holds each to the name contract."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import active
from .base import Owns, Program, Run
from .materialise import materialise
from .mesh import Joint
from .names import canonical_names

if TYPE_CHECKING:
    from torch import Tensor


class ContractError(Exception):
    """A strategy changed what it must leave alone: a fault in the strategy, not in a recipe."""


def assemble(program: Program, strategies: Any, run: Run) -> Program:
    """The program with every active strategy applied, and its weights in place. Raises: ContractError."""
    program = apply_all(program, strategies, run)
    materialise(program, run)
    return _with_upkeep(program, run)


def _with_upkeep(program: Program, run: Run) -> Program:
    """Lets the model do what it wants to do once a step, and say what it has to say at the end."""
    model, facts = program.model, program.facts

    def sum_over_ranks(tensor: "Tensor") -> None:
        if run.mesh is not None and run.mesh[Joint.REDUCE].size() > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor, group=run.mesh[Joint.REDUCE].get_group())

    after_step, report = facts.after_step, facts.report
    if after_step is not None:
        program = replace(program, after_step=(*program.after_step, lambda: after_step(model, sum_over_ranks)))
    if report is not None:
        program = replace(program, reports=(*program.reports, lambda: report(model, sum_over_ranks)))
    return program


def apply_all(program: Program, strategies: Any, run: Run) -> Program:
    """The program with every active strategy applied; the weights may still be on the meta device.

    Raises: ContractError if a strategy adds, drops, renames or reorders parameters; only a pipeline may drop some.
    """
    names = canonical_names(program.model)
    for name, strategy in active(strategies):
        program = strategy.apply(program, run)
        after = canonical_names(program.model)
        if Owns.PP in strategy.owns:  # a pipeline leaves a rank its own stages only
            names = [each for each in names if each in set(after)] if set(after) < set(names) else names
            after = names if sorted(after) == sorted(names) else after
        if after != names:
            gone, new = sorted(set(names) - set(after)), sorted(set(after) - set(names))
            raise ContractError(
                f"strategies.{name} changed the parameter names: gone {gone[:5]}, new {new[:5]}"
                + ("" if gone or new else " (none, but their order)")
            )
    return program
