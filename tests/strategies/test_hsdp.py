"""HSDP: shards within a group, equal copies between groups. What is sent, and what comes of it, on 2 x 2 ranks."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from stepladder.profiling.record import no_span
from stepladder.strategies import Strategies
from stepladder.strategies.assemble import assemble
from stepladder.strategies.base import Batch, Owns, Program, Run
from stepladder.strategies.clip import measure_norm
from stepladder.strategies.fsdp2 import FSDP2
from stepladder.strategies.materialise import build_on_meta, seed_of
from stepladder.strategies.mesh import Axis, build_mesh
from stepladder.trainer.models.config import DecoderConfig
from stepladder.trainer.models.decoder import next_token_loss
from stepladder.trainer.step import accumulate

RANKS, LAYERS, MICROBATCHES, SEED = 4, 2, 3, 7
CONFIG = DecoderConfig(dim=32, num_layers=LAYERS, num_heads=2, ffn_dim=64, vocab_size=32)
UNITS = LAYERS + 2  # blocks, the embedding, and norm with head
Report = dict[str, Any]


def microbatches(rank: int) -> list[Batch]:
    """Different tokens for each rank and microbatch, [1, 8] each."""
    made = [torch.arange(9) * (3 + rank + 5 * i) % 32 for i in range(MICROBATCHES)]
    return [Batch(tokens[None, :-1], tokens[None, 1:]) for tokens in made]


def report(keys: dict[str, Any], replicas: int, owner: str = "fsdp2", pipeline: bool = False) -> Report:
    """Gradients of a step, and the collectives that it took."""
    from torch.profiler import ProfilerActivity, profile

    degrees = dict.fromkeys(Axis, 1) | {Axis.DP_REPLICATE: replicas, Axis.DP_SHARD: RANKS // replicas}
    run = Run(
        device_type="cpu",
        degrees=degrees | ({Axis.PP: 2} if pipeline else {}),  # only said: the stage is the whole model
        facts=CONFIG.facts(8),
        num_steps=1,
        tokens_per_step=1,
        seed=SEED,
        active=frozenset({"fsdp2"}),
        owners={Owns.DP_REPLICATE: owner},
        mesh=build_mesh("cpu", degrees),
        device=torch.device("cpu"),
    )
    program = Program(
        model=build_on_meta(CONFIG.build),
        facts=CONFIG.facts(8),
        loss=next_token_loss,
        forward_backward=accumulate,
        clip_gradients=measure_norm,
    )
    program = assemble(program, Strategies(fsdp2=FSDP2(**keys)), run)
    batches = microbatches(torch.distributed.get_rank())
    parameters: dict[str, Any] = dict(program.model.named_parameters())
    accumulate(program, batches, 1.0, no_span)  # the first step settles FSDP2's order
    for parameter in parameters.values():
        parameter.grad = None
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        accumulate(program, batches, 1.0, no_span)
    events = Counter({event.key: event.count for event in profiler.key_averages()})
    return {
        "all-gathers": events["c10d::_allgather_base_"],
        "reduce-scatters": events["c10d::_reduce_scatter_base_"],
        "all-reduces": events["c10d::allreduce_"],
        "gradients": {name: p.grad.full_tensor().clone() for name, p in parameters.items()},
        "placements": {str(p.placements) for p in parameters.values()},
        "local part": {p.to_local().numel() / p.numel() for p in parameters.values()},
        "norm": float(measure_norm(program, list(parameters.values()), want_norm=True) or 0.0),
    }


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({}, 2),
    "each": ({"defer_all_reduce": False}, 2),
    "reduce once": ({"reduce_every_microbatch": False}, 2),
    "kept": ({"reshard_after_forward": False}, 2),
    "resharded": ({"reshard_after_forward": True}, 2),
    "offloaded": ({"cpu_offload": True}, 2),
    "one after the other": ({"overlap": False}, 2),
    "reduced in bf16": ({"reduce_dtype": "bf16"}, 2),
    "replicas only": ({}, 4),
    "shards only": ({}, 1),
}


def all_reports() -> dict[str, Report]:
    found = {name: report(*case) for name, case in CASES.items()}
    found["stages"] = report({}, 2, pipeline=True)
    found["left alone"] = report({}, 2, owner="local_sgd")
    return found


@pytest.fixture(scope="module")
def reports(run_ranks: Callable[..., Any]) -> dict[str, Report]:
    return run_ranks(all_reports, RANKS)


def whole_gradients(ranks: range = range(RANKS)) -> dict[str, torch.Tensor]:
    """The sum over the microbatches of some ranks, in one process."""
    model, initialise = CONFIG.build(), CONFIG.facts(8).initialise
    assert initialise is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialise(name, parameter, torch.Generator().manual_seed(seed_of(SEED, name)))
    for rank in ranks:
        for batch in microbatches(rank):
            next_token_loss(model(batch.inputs), batch).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def apart(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    assert found.keys() == truth.keys()
    return max(float((found[name] - truth[name]).norm() / truth[name].norm()) for name in truth)


def test_gradients_are_the_sum_over_shards_and_replicas(reports: dict[str, Report]) -> None:
    truth = whole_gradients()
    norm = float(torch.stack([g.square().sum() for g in truth.values()]).sum().sqrt())
    for name in (*CASES, "stages"):
        limit = 3e-2 if name == "reduced in bf16" else 1e-5
        assert apart(reports[name]["gradients"], truth) < limit, name
        assert reports[name]["norm"] == pytest.approx(norm, rel=limit), name  # replicas count once
    assert apart(reports["reduced in bf16"]["gradients"], truth) > 1e-4


def test_each_group_holds_one_copy(reports: dict[str, Report]) -> None:
    assert reports["default"]["placements"] == {"(Replicate(), Shard(dim=0))"}
    assert reports["default"]["local part"] == {0.5}
    assert reports["replicas only"]["local part"] == {1.0}
    assert reports["shards only"]["local part"] == {0.25}


def test_replicas_meet_with_the_last_microbatch_or_with_each(reports: dict[str, Report]) -> None:
    counts = {name: (each["reduce-scatters"], each["all-reduces"]) for name, each in reports.items()}
    every = MICROBATCHES * UNITS
    assert counts["default"] == counts["offloaded"] == counts["one after the other"] == (every, UNITS)
    assert counts["each"] == (every, every)
    assert counts["reduce once"] == (UNITS, UNITS)
    assert counts["replicas only"] == (0, UNITS)
    assert counts["shards only"] == (every, 0)


def test_what_is_kept_between_forward_and_backward_is_not_gathered_again(reports: dict[str, Report]) -> None:
    again = LAYERS + 1  # blocks and embedding; norm and head are needed at once
    assert reports["kept"]["all-gathers"] == reports["stages"]["all-gathers"] == MICROBATCHES * UNITS
    assert reports["resharded"]["all-gathers"] == reports["default"]["all-gathers"] == MICROBATCHES * (UNITS + again)
    assert reports["replicas only"]["all-gathers"] == 0


def test_replicas_of_another_owner_are_left_alone(reports: dict[str, Report]) -> None:
    """Rank 0's group is ranks 0 and 1: it sees nothing of the others."""
    alone = reports["left alone"]
    assert apart(alone["gradients"], whole_gradients(range(2))) < 1e-5
    assert (alone["reduce-scatters"], alone["all-reduces"]) == (MICROBATCHES * UNITS, 0)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "has no effect with mesh.dp_replicate = 1"),
    ({}, {"owners": {Owns.DP_REPLICATE: "local_sgd"}}, "has no effect beside strategies.local_sgd"),
    ({"reduce_every_microbatch": False}, {"owners": {}}, "no effect with reduce_every_microbatch = false"),
]


@pytest.mark.parametrize(("keys", "run", "sentence"), REFUSED, ids=[sentence for *_, sentence in REFUSED])
def test_deferring_where_nothing_can_be_deferred_is_refused(
    keys: dict[str, Any], run: dict[str, Any], sentence: str, make_run: Callable[..., Run]
) -> None:
    degrees = dict.fromkeys(Axis, 1) | ({Axis.DP_REPLICATE: 2} if run else {})
    fsdp = FSDP2(defer_all_reduce=False, **keys)
    (said,) = fsdp.check(make_run(active={"fsdp2", "accumulation"}, degrees=degrees, **run))
    assert said.startswith("defer_all_reduce = false: ")
    assert sentence in said


def test_overlap_cannot_be_switched_off_where_there_is_none(make_run: Callable[..., Run]) -> None:
    (refusal,) = (r for r in FSDP2.conflicts if r.applies(FSDP2(overlap=False), make_run()))
    assert refusal.sentence().startswith("overlap = false: cannot work beside device cpu")
    assert not any(r.applies(FSDP2(overlap=False), make_run(device_type="cuda")) for r in FSDP2.conflicts)
