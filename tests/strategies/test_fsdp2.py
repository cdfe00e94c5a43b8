"""What FSDP2 shards, gathers, keeps and computes in: looked at on two ranks."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stepladder.profiling.record import no_span
from stepladder.strategies.assemble import assemble
from stepladder.strategies.base import Batch, Program, Run
from stepladder.strategies.clip import Clip, measure_norm
from stepladder.strategies.fsdp2 import FSDP2
from stepladder.strategies.materialise import build_on_meta
from stepladder.strategies.mesh import Axis, build_mesh
from stepladder.strategies.names import canonical_names
from stepladder.trainer.models.config import DecoderConfig
from stepladder.trainer.models.decoder import next_token_loss
from stepladder.trainer.step import accumulate

LAYERS = 4
CONFIG = DecoderConfig(dim=32, num_layers=LAYERS, num_heads=2, ffn_dim=64, vocab_size=32)
UNITS = LAYERS + 2  # blocks, the embedding, and norm with head
Report = dict[str, Any]


def build(config: DecoderConfig, **strategies: Any) -> Any:
    from stepladder.strategies import Strategies

    degrees = dict.fromkeys(Axis, 1) | {Axis.DP_SHARD: torch.distributed.get_world_size()}
    run = Run(
        device_type="cpu",
        degrees=degrees,
        facts=config.facts(8),
        num_steps=1,
        tokens_per_step=1,
        seed=7,
        active=frozenset(strategies),
        mesh=build_mesh("cpu", degrees),
        device=torch.device("cpu"),
    )
    program = Program(
        model=build_on_meta(config.build),
        facts=config.facts(8),
        loss=next_token_loss,
        forward_backward=accumulate,
        clip_gradients=measure_norm,
    )
    return assemble(program, Strategies(**strategies), run)


def microbatches(number: int, rank: int) -> list[Batch]:
    """Different tokens for each rank and microbatch, [1, 8] each."""
    made = [torch.arange(9) * (3 + rank + 2 * i) % 32 for i in range(number)]
    return [Batch(tokens[None, :-1], tokens[None, 1:]) for tokens in made]


def report(keys: dict[str, Any], num_microbatches: int = 1) -> Report:
    """State of a sharded decoder before, within and after a step."""
    from torch.distributed.tensor import DTensor
    from torch.profiler import ProfilerActivity, profile

    names = canonical_names(build_on_meta(CONFIG.build))
    program = build(CONFIG, fsdp2=FSDP2(**keys))
    model, rank = program.model, torch.distributed.get_rank()
    parameters = dict(model.named_parameters())
    found: Report = {
        "names kept": canonical_names(model) == names,
        "placements": {str(p.placements) for p in parameters.values()},
        "local part": {p.to_local().numel() / p.numel() for p in parameters.values()},
        "shard dtypes": {p.to_local().dtype for p in parameters.values()},
        "weights": {name: p.full_tensor().detach().clone() for name, p in parameters.items()},
        "prefetch": [
            (len(s._states_to_forward_prefetch), len(s._states_to_backward_prefetch))
            for s in (block._get_fsdp_state() for block in model.layers)
        ],
    }
    seen: dict[str, Any] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            seen[name] = (module.weight.dtype, inputs[0].dtype, output.dtype)

        return hook

    model.layers[0].attention.query.register_forward_hook(watch("query"))
    model.layers[0].register_forward_pre_hook(lambda m, inputs: seen.__setitem__("cos", inputs[1].dtype))
    batches = microbatches(num_microbatches, rank)
    accumulate(program, batches, 1.0, no_span)  # the first step settles FSDP2's order
    model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        loss = accumulate(program, batches, 1.0, no_span)
    events = Counter({event.key: event.count for event in profiler.key_averages()})
    found["all-gathers"] = events["c10d::_allgather_base_"]
    found["reduce-scatters"] = events["c10d::_reduce_scatter_base_"]
    found["gradients"] = {name: p.grad.full_tensor().clone() for name, p in parameters.items()}
    found["gradient dtypes"] = {p.grad.dtype for p in parameters.values()}
    found["seen"] = seen
    found["loss"] = float(loss)
    with torch.no_grad():
        model(batches[0].inputs)
    found["kept"] = [
        name for name, p in model.named_parameters() if not isinstance(p, DTensor)
    ]  # unsharded between forward and backward
    return found


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({}, 1),
    "zero-2": ({"reshard_after_forward": False}, 1),
    "bf16": ({"param_dtype": "bf16"}, 1),
    "reduced in bf16": ({"reduce_dtype": "bf16"}, 1),
    "no prefetch": ({"prefetch": 0}, 1),
    "deep prefetch": ({"prefetch": 2}, 1),
    "every microbatch": ({}, 2),
    "reduce once": ({"reduce_every_microbatch": False}, 2),
}


def clipped(norm_type: float) -> tuple[float, float, float]:
    """Norm told by clip on sharded gradients; the same by hand; and the norm that is left after clipping to half."""
    program = build(CONFIG, fsdp2=FSDP2())
    accumulate(program, microbatches(1, torch.distributed.get_rank()), 1.0, no_span)
    parameters = list(program.model.parameters())

    def norm() -> float:
        values = torch.cat([p.grad.full_tensor().flatten() for p in parameters]).double()
        return float(torch.linalg.vector_norm(values, norm_type))

    before = norm()
    alone: Any = SimpleNamespace(device=torch.device("cpu"))
    clip = Clip(max_norm=before / 2, norm_type=norm_type).apply(program, alone)
    told = clip.clip_gradients(clip, parameters, want_norm=False)
    return float(told.full_tensor() if hasattr(told, "full_tensor") else told), before, norm()  # type: ignore[union-attr]


def all_reports() -> tuple[dict[str, Report], list[tuple[float, float, float]], Report]:
    reports = {name: report(*case) for name, case in CASES.items()}
    clips = [clipped(norm_type) for norm_type in (2.0, float("inf"))]
    tied_config = DecoderConfig(dim=32, num_layers=1, num_heads=2, ffn_dim=64, vocab_size=32, tie_embeddings=True)
    tied = build(tied_config, fsdp2=FSDP2(prefetch=0)).model
    return reports, clips, {name: p.full_tensor().detach() for name, p in tied.named_parameters()}


@pytest.fixture(scope="module")
def everything(run_ranks: Callable[..., Any]) -> Any:
    return run_ranks(all_reports, 2)


@pytest.fixture(scope="module")
def reports(everything: Any) -> dict[str, Report]:
    return everything[0]


def whole(config: DecoderConfig = CONFIG) -> Any:
    """The same decoder in one process, from the same seed."""
    from stepladder.strategies.materialise import seed_of

    model, initialise = config.build(), config.facts(8).initialise
    assert initialise is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialise(name, parameter, torch.Generator().manual_seed(seed_of(7, name)))
    return model


def whole_gradients(num_microbatches: int) -> dict[str, torch.Tensor]:
    model = whole()
    for rank in range(2):
        for batch in microbatches(num_microbatches, rank):
            next_token_loss(model(batch.inputs), batch).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def distance(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    assert found.keys() == truth.keys()
    return max(float((found[name] - truth[name]).norm() / truth[name].norm()) for name in truth)


def test_every_parameter_is_split_in_two_and_keeps_its_name_and_value(everything: Any) -> None:
    reports, _, tied = everything
    truth = dict(whole().named_parameters())
    for name, each in reports.items():
        assert each["names kept"], name
        assert each["placements"] == {"(Shard(dim=0),)"}, name
        assert each["local part"] == {0.5}, name
        assert each["shard dtypes"] == {torch.float32}, name
        assert all(torch.equal(each["weights"][key], truth[key]) for key in truth), name
    tied_config = DecoderConfig(dim=32, num_layers=1, num_heads=2, ffn_dim=64, vocab_size=32, tie_embeddings=True)
    tied_truth = dict(whole(tied_config).named_parameters())
    assert tied.keys() == tied_truth.keys()
    assert all(torch.equal(tied[key], tied_truth[key]) for key in tied_truth)


def test_gradients_are_the_sum_over_ranks_and_microbatches(reports: dict[str, Report]) -> None:
    for name, (keys, number) in CASES.items():
        apart = distance(reports[name]["gradients"], whole_gradients(number))
        if "bf16" in keys.values():
            assert 1e-4 < apart < 3e-2, name
        else:
            assert apart < 1e-5, name
        assert reports[name]["gradient dtypes"] == {torch.float32}, name


def test_resharding_costs_a_second_gather_of_each_block(reports: dict[str, Report]) -> None:
    assert reports["zero-2"]["all-gathers"] == UNITS
    assert reports["default"]["all-gathers"] == UNITS + LAYERS + 1  # blocks and embedding again, norm and head not
    assert reports["default"]["kept"] == ["norm.weight", "head.weight"]
    assert set(reports["zero-2"]["kept"]) == set(dict(whole().named_parameters()))


def test_gradients_are_reduced_as_often_as_the_recipe_says(reports: dict[str, Report]) -> None:
    assert reports["default"]["reduce-scatters"] == UNITS
    assert reports["every microbatch"]["reduce-scatters"] == 2 * UNITS
    assert reports["reduce once"]["reduce-scatters"] == UNITS


def test_bf16_computes_narrow_and_leaves_rotary_angles_alone(reports: dict[str, Report]) -> None:
    assert reports["default"]["seen"]["query"] == (torch.float32,) * 3
    assert reports["bf16"]["seen"]["query"] == (torch.bfloat16,) * 3
    assert reports["bf16"]["seen"]["cos"] == torch.float32
    assert reports["bf16"]["loss"] == pytest.approx(reports["default"]["loss"], rel=2e-2)
    assert reports["bf16"]["loss"] != reports["default"]["loss"]
    assert reports["reduced in bf16"]["loss"] == reports["default"]["loss"]  # only the reduction is narrow


def test_prefetch_lists_reach_as_far_as_the_recipe_says(reports: dict[str, Report]) -> None:
    assert reports["no prefetch"]["prefetch"] == [(0, 0)] * LAYERS
    assert reports["default"]["prefetch"] == [(1, 0), (1, 1), (1, 1), (0, 1)]
    assert reports["deep prefetch"]["prefetch"] == [(2, 0), (2, 1), (1, 2), (0, 2)]


def test_clipping_sees_the_norm_of_the_whole_gradient(everything: Any) -> None:
    for told, before, after in everything[1]:
        assert told == pytest.approx(before, rel=1e-5)
        assert after == pytest.approx(before / 2, rel=1e-4)
