"""torch.compile: fuse pointwise work and take Python out of the step.

Problem: many small kernels; the device waits for the host to launch them, and memory traffic for each pointwise step.
Mechanism: Dynamo traces the module, Inductor writes fused kernels; per block, one graph serves all the equal layers.
Saves: launches and memory traffic; typically 1.1-1.3x on a decoder in BF16.
Costs: a cold start of seconds (per block) to minutes (whole model); recompilation when shapes change.
When: fixed shapes, steps in the hundreds or more, many pointwise operators.
When not: shapes change with every batch; runs so short that compilation is most of them.
Measure: ms/step after the first; kernels a step; graph breaks and recompiles, which this strategy reports.
Source: Ansel et al. 2024 (ASPLOS), PyTorch 2; torch.compile.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .refusal import Refusal
from .wins import WAITING, Part, Try, Wins

_WITH_GRAPHS = ("reduce-overhead", "max-autotune")


@dataclass(frozen=True, kw_only=True)
class Compile:
    """Compiles each block, or the whole model, and the loss."""

    scope: Literal["block", "model"] = "block"
    """`block`: one graph for all the equal blocks, fast to compile. `model`: one graph of everything."""
    loss: bool = True
    """Compile the loss too: the float32 copy of the logits is then never written out."""
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """Inductor's preset."""
    dynamic: bool | None = None
    """Shapes: true symbolic from the start, false always fixed, left out: fixed until they change."""
    fullgraph: bool = False
    """Make a graph break an error."""
    backend: Literal["inductor", "aot_eager", "eager"] = "inductor"
    """`aot_eager` and `eager` trace without generating code: to tell a tracing problem from a code problem."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.REDUCTION_ORDER, keys={"fullgraph": Changes.NOTHING})
    wins: ClassVar[Wins] = Wins(
        on=WAITING | {Part.POINTWISE, Part.ATTENTION, Part.COPIES, Part.OTHER},
        keys={
            "scope": Try(values=("model",), parts=WAITING | {Part.POINTWISE, Part.OTHER}),
            "mode": Try(values=("max-autotune-no-cudagraphs",), parts=frozenset({Part.MATRICES, Part.POINTWISE})),
        },
    )
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="fsdp2",
            setting="scope = 'model'",
            holds=lambda compile, run: compile.scope == "model",
            why="FSDP2's hooks break the graph at every block, so nothing is won",
            instead="use scope = 'block'",
        ),
        Refusal(
            beside="mesh.pp",
            setting="scope = 'model'",
            holds=lambda compile, run: compile.scope == "model",
            why="a stage is called in pieces",
            instead="use scope = 'block'",
        ),
        Refusal(
            beside="mesh.ep",
            setting="fullgraph = true",
            holds=lambda compile, run: compile.fullgraph,
            why="the host must know how many tokens go to each rank, which breaks each block's graph",
            instead="remove fullgraph",
        ),
        Refusal(
            beside="model experts",
            setting="fullgraph = true",
            holds=lambda compile, run: compile.fullgraph and run.degrees["ep"] == 1 and not run.groups_experts,
            why="only on a GPU, in BF16, and of widths that are multiples of 8 are all experts of a layer computed "
            "together; one by one the host must know how many rows each gets, which breaks each block's graph",
            instead="remove fullgraph",
        ),
        Refusal(
            beside="device cpu",
            setting="mode = 'reduce-overhead'",
            holds=lambda compile, run: compile.mode == "reduce-overhead",
            why="it means CUDA graphs, so it has no effect without a GPU",
            instead="use 'default'",
        ),
        *(
            Refusal(
                beside=name,
                setting="mode = 'reduce-overhead' or 'max-autotune'",
                holds=lambda compile, run: compile.mode in _WITH_GRAPHS and run.device_type == "cuda",
                why=why,
                instead="use mode = 'max-autotune-no-cudagraphs'",
            )
            for name, why in (
                ("ac", "its CUDA graphs collide with a recomputation, which replays inside a graph"),
                ("accumulation", "its CUDA graphs overwrite outputs that the next microbatch still needs"),
                ("fsdp2", "its CUDA graphs need parameters that stay where they are"),
                ("cuda_graph", "a capture cannot hold another one"),
            )
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing: the same mathematics in other kernels."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Refuse combinations that break at every block, and options that do nothing."""
        if self.scope == "block" and not run.facts.blocks:
            yield "scope = 'block': the model names no blocks; use scope = 'model'"
        if self.backend != "inductor" and self.mode != "default":
            yield f"mode = {self.mode!r}: has no effect with backend = {self.backend!r}; remove one of the two"

    def apply(self, program: Program, run: Run) -> Program:
        """Mark modules for compilation at their first call; nothing is traced yet."""
        import torch
        import torch._dynamo  # pyright: ignore[reportMissingImports]

        # DDP's graph splitter overlaps communication for a graph of the whole model, but cannot split a graph with a
        # checkpointed region; compiled blocks overlap by themselves, since each block's gradients arrive on their own.
        dynamo_config: Any = torch._dynamo.config
        dynamo_config.optimize_ddp = self.scope == "model" and "ac" not in run.active
        options: dict[str, Any] = {"dynamic": self.dynamic, "fullgraph": self.fullgraph, "backend": self.backend}
        if self.backend == "inductor":
            options |= _inductor(self.mode, program.compiler_options)
        names = program.facts.blocks if self.scope == "block" else program.facts.parts
        for name in names:
            program.model.get_submodule(name).compile(**options)
        loss = torch.compile(program.loss, **options) if self.loss else program.loss
        return replace(program, loss=loss, reports=(*program.reports, graph_report))


def _inductor(mode: str, needed: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for Inductor, which takes a preset or options, but not both."""
    if not needed:
        return {"mode": mode}
    from torch._inductor import list_mode_options

    return {"options": {**list_mode_options(mode), **needed}}


def graph_report() -> list[str]:
    """What Dynamo did in this process: graphs, breaks with their reasons, functions it gave up recompiling."""
    from torch._dynamo.utils import counters

    graphs = counters["stats"].get("unique_graphs", 0)
    breaks = counters["graph_break"]
    lines = [f"compile: {graphs} graphs, {sum(breaks.values())} graph breaks"]
    for reason, count in breaks.most_common(5):
        first_line = str(reason).strip().splitlines()[0][:200]
        lines.append(f"compile: graph break x{count}: {first_line}")
    if limits := sum(count for why, count in counters["unimplemented"].items() if "recompile limit" in str(why)):
        lines.append(f"compile: {limits} recompile limits hit; are shapes changing? see dynamic")
    return lines
