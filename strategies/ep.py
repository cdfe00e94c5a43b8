"""Expert parallelism: ranks hold different experts and send each other the tokens that belong to them.

Problem: experts are most of a model's parameters, yet a token goes through a few; every rank gathers all of them.
Mechanism: each of the E/ep experts of a layer lives on one rank of mesh.ep; an all-to-all brings every token to the
ranks of its experts, another one brings the results back. No token is dropped.
Saves: the experts' all-gathers and reduce-scatters over ep; their memory between them; larger matrix products, since
an expert sees the tokens of all ep ranks.
Costs: two all-to-alls of top_k activations a token in each layer, forward and backward, and a wait of the host for the
counts; the rank with the busiest experts sets the pace.
When: fast links between the ep ranks (inside a node), many experts, and gathers of experts that nothing hides.
When not: few or small experts, or slow links: fsdp2 alone shards experts as well.
Measure: all-to-all in the breakdown, the experts lines at the end of a run (busiest against mean), tokens/s.
Source: Lepikhin et al. 2020 (GShard), arXiv:2006.16668; DeepSeek-AI 2024 (DeepSeek-V3), arXiv:2412.19437 (section 3.2).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .facts import Experts
from .mesh import Axis
from .refusal import Refusal


def _shard_problems(experts: Experts, run: Run) -> Iterator[str]:
    """Experts that fsdp2 must cut by their rows, because a rank holds fewer than share them, and cannot evenly."""
    shards, cp = run.degrees[Axis.DP_SHARD], run.degrees[Axis.CP]
    held, rows = experts.num_experts // run.degrees[Axis.EP], experts.ffn_dim // run.degrees[Axis.TP]
    evenly = math.gcd(rows, experts.dim)

    def works(degree: int) -> bool:
        return held >= degree * cp or evenly % (degree * cp) == 0

    if works(shards):
        return
    below = next((degree for degree in range(shards - 1, 0, -1) if works(degree)), None)
    above = next((degree for degree in range(shards + 1, evenly // cp + 1) if works(degree)), None)
    choices = " or ".join(str(degree) for degree in (below, above) if degree is not None)
    instead = f"use mesh.dp_shard = {choices}" if choices else "use a lower mesh.cp"
    yield (
        f"mesh.dp_shard x mesh.cp = {shards * cp} ranks share {held} of the experts, so that each is cut by its rows, "
        f"and do not divide the expert's width {rows} on a rank and the model's {experts.dim}; {instead}"
    )


@dataclass(frozen=True, kw_only=True)
class ExpertParallel:
    """Spreads the experts of every layer over `mesh.ep`."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.REDUCTION_ORDER)
    conflicts: ClassVar[tuple[Refusal, ...]] = ()

    @property
    def owns(self) -> frozenset[Owns]:
        """The ep axis."""
        return frozenset({Owns.EP})

    def check(self, run: Run) -> Iterator[str]:
        """Refuse a model without experts, and experts that cannot be spread evenly."""
        experts, degree = run.facts.experts, run.degrees[Axis.EP]
        if experts is None or not experts.modules:
            yield "the model has no experts; remove strategies.ep and set mesh.ep = 1, or give the model some"
        elif experts.num_experts % degree:
            fitting = [str(n) for n in range(2, experts.num_experts + 1) if experts.num_experts % n == 0]
            instead = f"use one of {', '.join(fitting)}" if fitting else "raise num_experts or remove strategies.ep"
            yield f"mesh.ep = {degree} does not divide the {experts.num_experts} experts of a layer; {instead}"
        else:
            yield from _shard_problems(experts, run)

    def apply(self, program: Program, run: Run) -> Program:
        """Distribute the grouped weights, and let tokens travel instead."""
        from .expert_parallel.exchange import Exchange, spread

        assert run.mesh is not None, "ep needs the device mesh"
        assert program.facts.experts is not None, "check has made sure that there are experts"
        for name in program.facts.experts.modules:
            experts = program.model.get_submodule(name)
            spread(experts, run.mesh, sliced=run.degrees[Axis.TP] > 1)
            experts.set_submodule("dispatch", Exchange(run.mesh[Axis.EP].get_group()))
        return program
