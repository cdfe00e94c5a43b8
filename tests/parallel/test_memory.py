"""Parameters, gradients and optimizer state of each rank take the bytes of the closed form, to the byte.

The closed form is written out here from the dimensions and the degrees, and knows nothing of DTensor or FSDP2.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from fake_world import as_rank, num_bytes, on_meta, on_ranks, plan_of

from stepladder.strategies.mesh import Axis, coordinates

pytestmark = pytest.mark.timeout(900)  # several fake ranks, each of which builds a large model
FLOAT32 = 4
STEP_BYTES = 4  # AdamW counts the steps of each parameter, in a float32 of its own


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """Of Llama 3. Source: Grattafiori et al. 2024, arXiv:2407.21783, Table 3; 128,256 ids."""

    dim: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    num_kv_heads: int = 8
    vocab_size: int = 128_256

    def block(self) -> list[tuple[int, int, str]]:
        """Matrices of a block as (outputs, inputs, which of them tensor parallelism cuts); a vector has one input."""
        d, f = self.dim, self.ffn_dim
        kv = self.num_kv_heads * (d // self.num_heads)
        attention = [(d, d, "outputs"), (kv, d, "outputs"), (kv, d, "outputs"), (d, d, "inputs")]
        ffn = [(f, d, "outputs"), (f, d, "outputs"), (d, f, "inputs")]
        return [*attention, *ffn, (d, 1, "no"), (d, 1, "no")]

    def embedding(self) -> list[tuple[int, int, str]]:
        return [(self.vocab_size, self.dim, "outputs")]

    def head(self) -> list[tuple[int, int, str]]:
        return [(self.dim, 1, "no"), (self.vocab_size, self.dim, "outputs")]


SIZES = {
    "8B": Dimensions(dim=4096, num_layers=32, num_heads=32, ffn_dim=14336),
    "70B": Dimensions(dim=8192, num_layers=80, num_heads=64, ffn_dim=28672),
    "405B": Dimensions(dim=16384, num_layers=126, num_heads=128, ffn_dim=53248),
    "sliver": Dimensions(dim=20, num_layers=2, num_heads=2, num_kv_heads=2, ffn_dim=44, vocab_size=130),
}
NUM_PARAMETERS = {"8B": 8_030_261_248, "70B": 70_553_706_496, "405B": 405_853_388_800}  # as released


@dataclass(frozen=True, kw_only=True)
class Layout:
    model: str
    degrees: dict[str, int]
    blocks_of_stages: tuple[range, ...] = ()
    """Which blocks each pipeline stage holds; one stage if empty."""
    sequence_length: int = 8192
    ranks: tuple[int, ...] = ()
    """Ranks to look at, besides the first, the last and one in the middle."""
    strategies: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def world(self) -> int:
        product = 1
        for degree in self.degrees.values():
            product *= degree
        return product

    def looked_at(self) -> list[int]:
        stages = len(self.blocks_of_stages)
        of_each_stage = [stage * self.world // stages for stage in range(stages)] if stages <= 8 else []
        return [0, self.world // 2 + 1, self.world - 1, *of_each_stage, *self.ranks]

    def recipe(self) -> dict[str, Any]:
        size = SIZES[self.model]
        model = {key: getattr(size, key) for key in Dimensions.__dataclass_fields__}
        strategies: dict[str, Any] = {"fsdp2": {}, "adamw": {"implementation": "for-loop"}}
        strategies |= {axis: {} for axis in ("tp", "cp", "pp") if self.degrees.get(axis, 1) > 1}
        if self.blocks_of_stages:
            strategies["pp"] = {"cuts": [blocks.start for blocks in self.blocks_of_stages[1:]]}
            strategies["accumulation"] = {"num_microbatches": 2 * len(self.blocks_of_stages)}
        return {
            "run": {"device": "cuda"},
            "model": {"decoder": model},
            "data": {"synthetic": {}},
            "batch": {"sequence_length": self.sequence_length},
            "mesh": self.degrees,
            "strategies": strategies | self.strategies,
        }


def rows_of(outputs: int, num_ranks: int, rank: int) -> int:
    """Rows that a rank holds of a matrix dealt out in equal pieces, the last ones smaller or empty."""
    piece = -(-outputs // num_ranks)
    return min(piece, max(0, outputs - rank * piece))


def closed_form(layout: Layout, rank: int) -> dict[str, int]:
    """Bytes on one rank: tp cuts outputs or inputs evenly, then dp_shard x cp ranks deal out what is left by rows."""
    size, degrees = SIZES[layout.model], layout.degrees
    tp, cp = degrees.get("tp", 1), degrees.get("cp", 1)
    num_shards = degrees.get("dp_shard", 1) * cp
    at = coordinates(rank, {axis: degrees.get(axis, 1) for axis in Axis})
    shard = at[Axis.DP_SHARD] * cp + at[Axis.CP]
    stages = layout.blocks_of_stages or (range(size.num_layers),)
    stage = at[Axis.PP]
    matrices = [matrix for _ in stages[stage] for matrix in size.block()]
    matrices += (size.embedding() if stage == 0 else []) + (size.head() if stage == len(stages) - 1 else [])
    elements = 0
    for outputs, inputs, cut in matrices:
        rows = rows_of(outputs // tp if cut == "outputs" else outputs, num_shards, shard)
        elements += rows * (inputs // tp if cut == "inputs" else inputs)
    return {
        "parameters": FLOAT32 * elements,
        "gradients": FLOAT32 * elements,
        "moments": 2 * FLOAT32 * elements,
        "steps": STEP_BYTES * len(matrices),
    }


def counted(layout: Layout) -> dict[str, int]:
    """The same, asked of the tensors themselves: what the program of this rank holds after an optimizer step."""
    program = on_meta(plan_of(layout.recipe(), layout.world))
    parameters = list(program.model.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    assert program.make_optimizer is not None
    optimizer = program.make_optimizer(program.model)
    optimizer.step()
    states = list(optimizer.state.values())
    assert len(states) == len(parameters)
    return {
        "parameters": sum(num_bytes(parameter) for parameter in parameters),
        "gradients": sum(num_bytes(parameter.grad) for parameter in parameters),
        "moments": sum(num_bytes(state[key]) for state in states for key in ("exp_avg", "exp_avg_sq")),
        "steps": sum(num_bytes(state["step"]) for state in states),
    }


def even(num_layers: int, num_stages: int) -> tuple[range, ...]:
    bounds = [round(i * num_layers / num_stages) for i in range(num_stages + 1)]
    return tuple(range(a, b) for a, b in itertools.pairwise(bounds))


STAGES_OF_16 = (range(7), *(range(7 + 8 * i, 15 + 8 * i) for i in range(14)), range(119, 126))
"""126 blocks: the first and the last stage have one less."""

LAYOUTS = [
    Layout(model="sliver", degrees={"dp_shard": 64}, ranks=(19, 20, 43)),  # more ranks than rows
    Layout(model="8B", degrees={"dp_shard": 8}),
    Layout(model="8B", degrees={"dp_shard": 2, "tp": 4}),
    Layout(model="8B", degrees={"dp_shard": 2, "cp": 4}),
    Layout(model="8B", degrees={"dp_replicate": 8, "dp_shard": 8}),
    Layout(model="8B", degrees={"dp_shard": 7, "cp": 3, "tp": 2}, sequence_length=8196),  # nothing divides
    Layout(model="8B", degrees={"dp_replicate": 8, "dp_shard": 8, "tp": 8}),
    Layout(model="8B", degrees={"dp_replicate": 128, "dp_shard": 128}),
    Layout(model="70B", degrees={"dp_shard": 8}),
    Layout(model="70B", degrees={"dp_shard": 8, "tp": 8}),
    Layout(model="70B", degrees={"pp": 4, "dp_shard": 2, "tp": 8}, blocks_of_stages=even(80, 4)),
    Layout(model="70B", degrees={"dp_replicate": 8, "dp_shard": 8, "tp": 8}),
    Layout(model="70B", degrees={"dp_replicate": 256, "dp_shard": 8, "tp": 8}),
    Layout(model="405B", degrees={"dp_shard": 8}),
    Layout(model="405B", degrees={"dp_shard": 8, "tp": 8}),
    Layout(model="405B", degrees={"pp": 8, "dp_shard": 8, "tp": 8}, blocks_of_stages=even(126, 8)),
    Layout(model="405B", degrees={"pp": 16, "dp_shard": 128, "tp": 8}, blocks_of_stages=STAGES_OF_16),
    Layout(
        model="405B",
        degrees={"pp": 16, "dp_shard": 8, "cp": 16, "tp": 8},
        blocks_of_stages=STAGES_OF_16,
        sequence_length=131_072,
    ),
]


def said(layout: Layout) -> str:
    return f"{layout.model} on {layout.world}: " + " x ".join(f"{k} {v}" for k, v in layout.degrees.items())


@pytest.mark.parametrize("layout", LAYOUTS, ids=said)
def test_every_byte_is_where_the_closed_form_says(layout: Layout) -> None:
    found = on_ranks(layout.looked_at(), layout.world, counted, layout)
    assert found == {rank: closed_form(layout, rank) for rank in found}


def test_the_closed_form_of_all_ranks_is_the_model() -> None:
    """So that both cannot be wrong by the same factor; norms are counted once for each slice of tensor parallelism."""
    for layout in LAYOUTS:
        tp, replicas = layout.degrees.get("tp", 1), layout.degrees.get("dp_replicate", 1)
        if layout.world > 1024 or layout.model not in NUM_PARAMETERS:
            continue
        held = sum(closed_form(layout, rank)["parameters"] for rank in range(layout.world)) // FLOAT32
        size = SIZES[layout.model]
        norms = size.dim * (2 * size.num_layers + 1)
        assert held == replicas * (NUM_PARAMETERS[layout.model] + (tp - 1) * norms), said(layout)


def test_the_worlds_are_those_of_the_issue() -> None:
    assert {layout.world for layout in LAYOUTS} >= {8, 64, 512, 16384}
    assert {layout.model for layout in LAYOUTS if layout.world == 16384} >= {"8B", "70B", "405B"}


def test_a_wrong_layout_is_noticed() -> None:
    """Half the shards, or a block too few, is other bytes."""
    right = Layout(model="8B", degrees={"dp_shard": 8})
    wrong = Layout(model="8B", degrees={"dp_shard": 4})
    found = as_rank(0, right.world, counted, right)
    assert found != closed_form(wrong, 0)
    assert found["parameters"] * 2 == closed_form(wrong, 0)["parameters"]
