"""A plan does the arithmetic of a run, or says everything that keeps it from running on this machine."""

import subprocess
import sys
from typing import Any

import pytest

from stepladder.launch.errors import UsageError
from stepladder.launch.plan import Plan, make_plan
from stepladder.launch.recipe import parse
from stepladder.strategies.mesh import Axis

MODEL = {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 64, "vocab_size": 64}


def plan_of(num_gpus: int = 0, *, num_ranks: int | None = None, started: bool = False, **tables: Any) -> Plan:
    tree: dict[str, Any] = {
        "model": {"decoder": MODEL},
        "data": {"synthetic": {}},
        "batch": {"microbatch_size": 4, "sequence_length": 32},
        "strategies": {"adamw": {}, "ddp": {}},
    }
    return make_plan(parse(tree | tables, {}), num_gpus=num_gpus, num_ranks=num_ranks, started=started)


def problems_of(num_gpus: int = 0, **arguments: Any) -> list[str]:
    with pytest.raises(UsageError) as caught:
        plan_of(num_gpus, **arguments)
    return list(caught.value.problems)


@pytest.mark.parametrize("micro", [2, 3])
@pytest.mark.parametrize("ranks", [1, 4])
def test_tokens_per_step_are_the_product_of_everything(micro: int, ranks: int) -> None:
    strategies = {"adamw": {}, "ddp": {}, "accumulation": {"num_microbatches": micro}}
    plan = plan_of(num_ranks=ranks, strategies=strategies)

    assert plan.tokens_per_step == 4 * 32 * micro * ranks
    assert plan.run().tokens_per_step == plan.tokens_per_step
    assert (
        f"microbatch 4 x accumulation {micro} x data ranks {ranks} = {4 * micro * ranks} sequences; x 32"
        in (plan.summary()[-1])
    )


def test_gpus_decide_how_many_ranks_there_are_and_cpu_ranks_where_there_are_none() -> None:
    run = {"cpu_ranks": 3}

    assert (plan_of(8, run=run).num_ranks, plan_of(8, run=run).device_type) == (8, "cuda")
    assert (plan_of(0, run=run).num_ranks, plan_of(0, run=run).device_type) == (3, "cpu")
    assert plan_of(8, num_ranks=2).num_ranks == 2
    assert plan_of(8, mesh={"dp_replicate": 4}).num_ranks == 4
    assert plan_of(8, run={"device": "cpu"}).num_ranks == 1


@pytest.mark.parametrize(
    ("strategy", "mesh", "degrees"),
    [
        ("ddp", {}, (4, 1)),
        ("fsdp2", {}, (1, 4)),
        ("ddp", {"dp_replicate": 4}, (4, 1)),
        ("fsdp2", {"dp_shard": 4}, (1, 4)),
        ("fsdp2", {"dp_shard": 4, "dp_replicate": 1}, (1, 4)),
    ],
)
def test_the_axis_that_is_left_out_takes_the_ranks(strategy: str, mesh: Any, degrees: tuple[int, int]) -> None:
    plan = plan_of(num_ranks=4, strategies={"adamw": {}, strategy: {}}, mesh=mesh)

    assert (plan.degrees[Axis.DP_REPLICATE], plan.degrees[Axis.DP_SHARD]) == degrees
    assert plan.num_data_ranks == 4


@pytest.mark.parametrize(
    ("num_gpus", "mesh", "degrees"),
    [
        (8, {"dp_shard": 4}, (2, 4)),
        (8, {"dp_shard": 8}, (1, 8)),
        (8, {"dp_replicate": 2}, (2, 4)),
        (0, {"dp_shard": 4}, (1, 4)),  # on a laptop: the fewest ranks that the recipe can mean
    ],
)
def test_fsdp2_replicates_over_the_ranks_that_remain(num_gpus: int, mesh: Any, degrees: tuple[int, int]) -> None:
    plan = plan_of(num_gpus, strategies={"adamw": {}, "fsdp2": {}}, mesh=mesh)

    assert (plan.degrees[Axis.DP_REPLICATE], plan.degrees[Axis.DP_SHARD]) == degrees
    assert plan.num_data_ranks == plan.num_ranks


PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "more ranks than GPUs": ({"num_gpus": 2, "num_ranks": 4}, "ranks: 4 are wanted, but this machine has 2 GPUs"),
    "a mesh larger than the machine": ({"num_gpus": 2, "mesh": {"dp_replicate": 4}}, "4 are wanted"),
    "no GPU": ({"run": {"device": "cuda"}, "num_ranks": 2}, "run.device = 'cuda': there is no GPU on this machine"),
    "ranks that do not divide": (
        {"num_ranks": 3, "mesh": {"dp_replicate": 2}, "strategies": {"adamw": {}, "fsdp2": {}}},
        "mesh.dp_replicate = 2: 3 ranks cannot be divided by 2; start a multiple of 2 ranks",
    ),
    "degrees of another size": (
        {"num_ranks": 4, "mesh": {"dp_replicate": 2}},
        "mesh.dp_replicate = 2: needs 2 ranks, but 4 are started",
    ),
    "an axis without owner": (
        {"num_ranks": 2, "mesh": {"dp_shard": 2, "dp_replicate": 1}},
        "mesh.dp_shard = 2: no active strategy owns this axis",
    ),
    "ranks without any owner": (
        {"num_ranks": 2, "strategies": {"adamw": {}}},
        "mesh: 2 ranks are started, but no active strategy owns a data-parallel axis; add strategies.ddp = {}",
    ),
    "no optimizer": (
        {"strategies": {"ddp": {}}},
        "strategies: no active strategy owns the optimizer; add strategies.adamw = {}",
    ),
    "two owners": (
        {"strategies": {"adamw": {}, "ddp": {}, "fsdp2": {}}},
        "strategies.ddp and strategies.fsdp2: each wants to own the gradient reduction; keep one",
    ),
    "two owners of the dtype": (
        {"strategies": {"adamw": {}, "fsdp2": {"param_dtype": "bf16"}, "amp": {}}},
        "strategies.fsdp2 and strategies.amp: each wants to own the compute dtype; keep one",
    ),
    "a batch that accumulation can give": (
        {"num_ranks": 2, "batch": {"microbatch_size": 4, "sequence_length": 32, "tokens_per_step": 768}},
        "= 256; set strategies.accumulation.num_microbatches = 3",
    ),
    "a batch that nothing can give": (
        {"num_ranks": 2, "batch": {"microbatch_size": 4, "sequence_length": 32, "tokens_per_step": 700}},
        "= 256; use a multiple of 256",
    ),
    "bytes for a small vocabulary": ({"data": {"stdlib": {}}}, "model.decoder.vocab_size = 64: the data are bytes"),
    "a profiler beyond the end": (
        {"run": {"num_steps": 12}, "profiler": {}},
        "profiler: the last window ends with step 14, but run.num_steps = 12",
    ),
    "a profiler on a rank that is not there": (
        {"profiler": {"ranks": [0, 2]}, "num_ranks": 2},
        "profiler.ranks = [0, 2]: there is no rank 2 of 2",
    ),
    "NVTX without a GPU": ({"profiler": {"nvtx": True}}, "profiler.nvtx = true: has no effect without a GPU"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_every_reason_why_a_recipe_cannot_run_here_is_one_sentence(case: str) -> None:
    arguments, expected = PROBLEMS[case]

    found = problems_of(**arguments)

    assert len(found) == 1, found
    assert expected in found[0]


def test_the_advice_on_the_batch_is_right() -> None:
    """Following the sentence leads to a plan with the stated number of tokens."""
    batch = {"microbatch_size": 4, "sequence_length": 32, "tokens_per_step": 768}
    (found,) = problems_of(num_ranks=2, batch=batch)
    advised = int(found.rpartition("num_microbatches = ")[2])

    plan = plan_of(
        num_ranks=2, batch=batch, strategies={"adamw": {}, "ddp": {}, "accumulation": {"num_microbatches": advised}}
    )

    assert plan.tokens_per_step == 768


def test_ranks_that_are_already_started_are_not_compared_with_this_machine() -> None:
    assert plan_of(2, num_ranks=16, started=True).num_ranks == 16


def test_problems_of_every_kind_come_together() -> None:
    found = problems_of(
        2,
        num_ranks=4,
        strategies={"ddp": {}},
        batch={"microbatch_size": 4, "sequence_length": 32, "tokens_per_step": 1},
    )

    assert len(found) == 3


def test_planning_loads_no_torch() -> None:
    script = (
        "import sys, stepladder.launch.recipe as r, stepladder.launch.plan as p\n"
        "p.make_plan(r.read('demo'), num_gpus=0).summary()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False).returncode == 0
