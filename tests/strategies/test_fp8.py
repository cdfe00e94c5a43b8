"""FP8: what is converted, how exact it is, what it does not go with; Transformer Engine as a recorded interface."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from parity import Case, Outcome, differences, outcome, reference
from ranks import run_ranks
from torch import nn

from stepladder.strategies.base import Owns, Program, Run
from stepladder.strategies.errors import StrategyError
from stepladder.strategies.fp8 import FP8
from stepladder.strategies.low_precision import chosen_layers, linear_layers, planned_layers
from stepladder.strategies.mesh import Axis
from stepladder.strategies.names import canonical_names
from stepladder.trainer.models.config import DecoderConfig
from stepladder.trainer.models.moe_config import MoEConfig

RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp", "mxfp8")
LOSS_TOLERANCE = 1e-2  # a product is wrong by 3 % or so, in random directions, and the loss is a mean over many
GRADIENT_TOLERANCE = 0.2  # 3 bits of mantissa (gradients: 2) are 6 % (12 %) at worst, a few products one after another
FACTS = DecoderConfig(dim=32, num_layers=2, num_heads=4, ffn_dim=64, vocab_size=64).facts(32)


def with_fp8(recipe: str = "tensorwise", **settings: Any) -> dict[str, Any]:
    return {"fp8": {"recipe": recipe, "emulate": True} | settings}


def complaints(strategy: FP8, run: Run) -> str:
    refused = [each.sentence() for each in strategy.conflicts if each.applies(strategy, run)]
    return " | ".join([*refused, *strategy.check(run)])


@pytest.fixture
def on_gpu(make_run: Callable[..., Run]) -> Callable[..., Run]:
    """A run on GPUs that can do everything, in BF16."""

    def make(**changes: Any) -> Run:
        owners = {Owns.COMPUTE_DTYPE: "fsdp2"}
        return make_run(**{"device_type": "cuda", "capability": (10, 0), "owners": owners, "facts": FACTS} | changes)

    return make


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_of_torchao_is_allowed_on_hardware_that_has_it(recipe: Any, on_gpu: Callable[..., Run]) -> None:
    assert complaints(FP8(recipe=recipe), on_gpu()) == ""
    assert complaints(FP8(recipe=recipe), on_gpu(capability=None)) == ""  # a laptop that checks for another machine


@pytest.mark.parametrize(
    ("strategy", "changes", "said"),
    [
        (FP8(recipe="delayed"), {}, "recipe = 'delayed': backend = 'torchao' does not have it"),
        (FP8(recipe="rowwise"), {"capability": (8, 0)}, "needs GPUs of compute capability 8.9, and these have 8.0"),
        (FP8(recipe="mxfp8"), {"capability": (9, 0)}, "needs GPUs of compute capability 10.0, and these have 9.0"),
        (FP8(), {"owners": {}}, "activations stay in float32"),
        (FP8(), {"device_type": "cpu"}, "emulate = false: cannot work beside device cpu"),
        (FP8(backend="te", recipe="current"), {"device_type": "cpu"}, "Transformer Engine computes on GPUs only"),
        (FP8(recipe="mxfp8"), {"active": {"amp"}}, "recipe = 'mxfp8': cannot work beside strategies.amp"),
        (FP8(fsdp_all_gather=True), {}, "fsdp_all_gather = true: has no effect without strategies.fsdp2"),
        (
            FP8(fsdp_all_gather=True, recipe="rowwise"),
            {"active": {"fsdp2"}},
            "a shard can only be rounded with a scale of the whole tensor",
        ),
        (FP8(), {"facts": replace(FACTS, sequence_length=24)}, "has 24 tokens on a rank"),
        (FP8(skip=("layer.0.*",)), {}, "skip = 'layer.0.*': no linear layer of the model has such a name"),
        (
            FP8(skip=("layers.0.ffn_norm",)),
            {},
            "skip = 'layers.0.ffn_norm': no linear layer of the model has such a name",
        ),
        (FP8(skip=("head",)), {}, "skip = 'head': what it names stays as it is anyway"),
        (FP8(min_features=4096), {}, "none of the 15 linear layers can be converted"),
        (FP8(skip=("layers.*",)), {}, "none of the 15 linear layers can be converted"),
    ],
)
def test_what_cannot_work_is_refused(
    strategy: FP8, changes: dict[str, Any], said: str, on_gpu: Callable[..., Run]
) -> None:
    assert said in complaints(strategy, on_gpu(**changes))


def test_hardware_does_not_matter_to_an_emulation(make_run: Callable[..., Run]) -> None:
    run = make_run(device_type="cuda", capability=(7, 0), facts=FACTS)
    assert complaints(FP8(emulate=True), run) == ""
    assert complaints(FP8(emulate=True), replace(run, device_type="cpu")) == ""


@pytest.mark.parametrize(
    ("strategy", "package"), [(FP8(), "torchao"), (FP8(backend="te", recipe="delayed"), "transformer_engine")]
)
def test_a_missing_library_is_one_sentence(
    strategy: FP8, package: str, on_gpu: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    said = complaints(strategy, on_gpu())
    assert said.startswith(f"backend = {strategy.backend!r}: ")
    assert "is not installed; pip install" in said
    assert "|" not in said


@pytest.mark.parametrize("other", ["ac", "cuda_graph"])
def test_transformer_engine_refuses_what_calls_its_layers_at_another_time(
    other: str, on_gpu: Callable[..., Run]
) -> None:
    strategy, run = FP8(backend="te", recipe="current"), on_gpu(active={other})
    assert f"backend = 'te': cannot work beside strategies.{other}" in complaints(strategy, run)
    assert "cannot work" not in complaints(FP8(), run)


def test_the_head_and_what_is_skipped_stay_and_names_do_too(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program = make_program(device="meta", num_layers=2, dim=32, ffn_dim=64)
    names = canonical_names(program.model)
    made = FP8(emulate=True, skip=("layers.0.attention.*",)).apply(program, make_run())
    kinds = {name: type(m).__name__ for name, m in made.model.named_modules() if isinstance(m, nn.Linear)}
    assert canonical_names(made.model) == names
    assert all(parameter.is_meta for parameter in made.model.parameters())
    assert {name for name, kind in kinds.items() if kind == "Linear"} == {
        "head",
        *(f"layers.0.attention.{name}" for name in ("query", "key", "value", "out")),
    }
    said = made.reports[-1]()
    assert said[0] == "fp8: 10 linear layers in FP8 (torchao, tensorwise), 5 as they were"


def test_speed_is_only_promised_with_compile(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    def lines(**changes: Any) -> str:
        made = FP8().apply(make_program(device="meta", dim=32), make_run(device_type="cuda", **changes))
        return " ".join(made.reports[-1]())

    assert "without strategies.compile FP8 is slower" in lines()
    assert "slower" not in lines(active={"compile"})


@pytest.mark.parametrize(("tp_degree", "converted"), [(1, 7), (2, 7), (4, 3)])
def test_sizes_count_as_a_rank_will_hold_them(tp_degree: int, converted: int) -> None:
    """Of dim 32 a fourth is 8, which no FP8 product takes; of ffn_dim 64 it is 16."""
    config = DecoderConfig(dim=32, num_layers=1, num_heads=4, ffn_dim=64, vocab_size=64)
    with torch.device("meta"):
        model = config.build()
    layers = linear_layers(model, config.facts(32), tp_degree)
    assert layers == planned_layers(config.facts(32), tp_degree)  # so a recipe is judged before there is a model
    settings: dict[str, Any] = {"multiple_of": 16, "min_features": 16, "skip": ()}
    chosen = chosen_layers(layers, config.facts(32), tp_degree=tp_degree, **settings)
    assert (len(chosen), len(layers) - len(chosen)) == (converted, 8 - converted)


@pytest.mark.parametrize(("tp_degree", "converted"), [(1, 7), (2, 4)])
def test_sliced_shared_experts_stay_for_nobody_calls_their_layers(tp_degree: int, converted: int) -> None:
    experts = MoEConfig(num_experts=4, ffn_dim=64, num_shared_experts=1)
    config = DecoderConfig(dim=32, num_layers=1, num_heads=4, vocab_size=64, moe=experts)
    with torch.device("meta"):
        model = config.build()
    layers = linear_layers(model, config.facts(32), tp_degree)
    assert layers == planned_layers(config.facts(32), tp_degree)  # so a recipe is judged before there is a model
    settings: dict[str, Any] = {"multiple_of": 16, "min_features": 16, "skip": ()}
    chosen = chosen_layers(layers, config.facts(32), tp_degree=tp_degree, **settings)
    assert (len(chosen), len(layers) - len(chosen)) == (
        converted,
        9 - converted,
    )  # the router and the head stay in any case
    assert any("shared" in layer.path for layer in chosen) is (tp_degree == 1)


def test_a_model_without_layers_to_convert_is_refused(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    with pytest.raises(StrategyError, match=r"none of the .* linear layers can be converted"):
        FP8(emulate=True, min_features=4096).apply(make_program(device="meta"), make_run())


def one_layer(recipe: str, make_program: Callable[..., Program], make_run: Callable[..., Run]) -> nn.Linear:
    model = nn.Sequential(nn.Linear(32, 64, bias=False))
    program = make_program(model=model)
    program = replace(program, facts=replace(program.facts, slicing={}, precise=()))
    FP8(emulate=True, recipe=recipe).apply(program, make_run())  # pyright: ignore[reportArgumentType]
    layer = model[0]
    assert type(layer) is not nn.Linear
    return layer


def test_a_tensorwise_product_is_the_product_of_rounded_matrices(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    layer, x = one_layer("tensorwise", make_program, make_run), torch.randn(16, 32)

    def rounded(t: torch.Tensor) -> torch.Tensor:
        scale = 448.0 / t.abs().max()  # 448 is the largest value of float8_e4m3fn
        return (t * scale).to(torch.float8_e4m3fn).float() / scale

    expected = rounded(x) @ rounded(layer.weight.detach()).T
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
    assert (layer(x) - x @ layer.weight.T).norm() > 0.01 * expected.norm()


def test_a_row_scale_saves_small_rows_beside_a_huge_one(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    x = torch.randn(16, 32)
    x[0] *= 1e6  # under one scale for all, everything else falls below the smallest number of FP8

    def error(recipe: str) -> float:
        layer = one_layer(recipe, make_program, make_run)
        exact = nn.functional.linear(x, layer.weight)[1:]
        return float(((layer(x)[1:] - exact).norm() / exact.norm()).detach())

    assert error("tensorwise") > 0.9
    assert error("rowwise") < 0.06
    assert error("mxfp8") < 0.06


@pytest.fixture(scope="module")
def alone() -> dict[str, Outcome]:
    """Ten steps in one process, without FP8 and with each recipe."""
    return {"float32": reference(Case())} | {each: outcome(Case(strategies=with_fp8(each))) for each in RECIPES}


def test_ten_steps_stay_near_float32_and_differ_from_it(alone: dict[str, Outcome]) -> None:
    for recipe in RECIPES:
        loss, gradient = differences(alone[recipe], alone["float32"])
        assert 1e-5 < loss < LOSS_TOLERANCE, recipe
        assert 1e-2 < gradient < GRADIENT_TOLERANCE, recipe


def test_the_recipes_are_not_the_same_thing(alone: dict[str, Outcome]) -> None:
    assert len({tuple(losses) for losses, _ in alone.values()}) == len(RECIPES) + 1


def test_bf16_between_the_products_stays_near_too(alone: dict[str, Outcome]) -> None:
    found = outcome(Case(strategies=with_fp8("rowwise_with_gw_hp") | {"amp": {}}))
    loss, gradient = differences(found, alone["float32"])
    assert loss < LOSS_TOLERANCE
    assert gradient < GRADIENT_TOLERANCE


def test_compiled_and_recomputed_blocks_take_the_same_steps(alone: dict[str, Outcome]) -> None:
    wrapped = with_fp8("rowwise") | {"ac": {}, "compile": {"backend": "aot_eager"}}
    assert differences(outcome(Case(strategies=wrapped)), alone["rowwise"]) == (0.0, 0.0)


def outcomes(cases: dict[str, Case]) -> dict[str, Outcome]:
    """On each rank."""
    return {name: outcome(case) for name, case in cases.items()}


@pytest.mark.slow
def test_four_ranks_take_the_steps_of_one(alone: dict[str, Outcome]) -> None:
    """Row scales of tokens and weights are the same wherever a token lies. Those of a weight gradient's operands are
    not, but they are powers of two: they move no bit of a number unless it is among the smallest ones of FP8. One scale
    for all of a rank's tokens is another on each rank, and a slice of a layer may be too thin to be converted.
    """
    replicas, slices, stages = ({axis: 2, "dp_shard": 2} for axis in ("dp_replicate", "tp", "pp"))
    in_stages = {"pp": {}, "accumulation": {"num_microbatches": 2}}
    made = {
        name: Case(num_ranks=4, mesh=mesh, strategies=with_fp8(recipe, **settings) | {"fsdp2": {}} | more)
        for name, mesh, recipe, settings, more in (
            ("replicas", replicas, "tensorwise", {}, {}),
            ("replicas, gathered", replicas, "tensorwise", {"fsdp_all_gather": True}, {}),
            ("slices", slices, "tensorwise", {}, {"tp": {}}),
            ("slices, gathered", slices, "tensorwise", {"fsdp_all_gather": True}, {"tp": {}}),
            ("stages", stages, "rowwise", {}, in_stages),
            ("rowwise", replicas, "rowwise", {}, {}),
        )
    }
    found = run_ranks(outcomes, 4, made)
    for mesh in ("replicas", "slices"):
        assert differences(found[f"{mesh}, gathered"], found[mesh]) == (0.0, 0.0)
        loss, gradient = differences(found[mesh], alone["float32"])
        assert 1e-5 < loss < LOSS_TOLERANCE
        assert 1e-2 < gradient < GRADIENT_TOLERANCE
    for name in ("rowwise", "stages"):
        loss, gradient = differences(found[name], alone["rowwise"])
        assert gradient < 1e-3, name
        assert loss < 1e-3, name  # a rounding that falls the other way once is then in all later steps


@pytest.mark.slow
def test_weights_that_are_gathered_in_fp8_survive_a_checkpoint(stepladder: Callable[..., Any], tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        "[run]\nnum_steps = 6\nlog_every = 1\ndevice = 'cpu'\n[model.decoder]\ndim = 32\nnum_layers = 2\nffn_dim = 64\n"
        "[data.synthetic]\n[batch]\nmicrobatch_size = 1\nsequence_length = 32\n[checkpoint]\nevery = 3\n"
        "[strategies.fsdp2]\nprefetch = 1\n[strategies.adamw]\n"
        "[strategies.fp8]\nemulate = true\nfsdp_all_gather = true\n"
    )

    def losses(name: str) -> dict[int, float]:
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return {each["step"]: each["loss"] for each in lines if each["kind"] == "train"}

    for name, *more in (("whole",), ("parts", "--set", "run.num_steps=3"), ("parts", "--resume")):
        done = stepladder("run", recipe, "--out", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
    assert losses("parts") == losses("whole")
    assert len(losses("whole")) == 6


class RecordedLinear(nn.Module):
    """What Transformer Engine's Linear takes, and its extra state."""

    made: list[dict[str, Any]]

    def __init__(self, in_features: int, out_features: int, *, bias: bool, params_dtype: Any, device: str) -> None:
        super().__init__()
        self.made.append({"bias": bias, "params_dtype": params_dtype, "device": device})
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))

    def get_extra_state(self) -> Any:
        return torch.zeros(3)

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("there is none")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Transformer Engine in name; the list fills with the contexts that are entered."""
    found: list[dict[str, Any]] = []

    @contextmanager
    def autocast(**settings: Any) -> Iterator[None]:
        found.append(settings)
        yield

    names = ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.common")
    package, pytorch, common = (ModuleType(name) for name in names)
    package.__spec__ = ModuleSpec("transformer_engine", None)
    RecordedLinear.made = []
    kinds = ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling")
    vars(package).update(pytorch=pytorch, common=common)
    vars(pytorch).update(Linear=RecordedLinear, autocast=autocast)
    vars(common).update(recipe=ModuleType("recipe"))
    vars(common.recipe).update({kind: type(kind, (), {}) for kind in kinds})
    for module in (package, pytorch, common):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


def test_transformer_engine_takes_the_layers_and_their_weights(
    entered: list[dict[str, Any]],
    make_program: Callable[..., Program],
    make_run: Callable[..., Run],
    on_gpu: Callable[..., Run],
) -> None:
    strategy = FP8(backend="te", recipe="block")
    assert complaints(strategy, on_gpu(capability=(9, 0))) == ""
    assert "needs GPUs of compute capability 9.0" in complaints(strategy, on_gpu(capability=(8, 9)))
    program = make_program(dim=32, ffn_dim=64, num_layers=2)
    names, weights = canonical_names(program.model), [id(each) for each in program.model.parameters()]
    tokens = torch.arange(16).reshape(1, 16)
    expected = program.model(tokens)
    made = strategy.apply(program, make_run())
    assert canonical_names(made.model) == names
    assert [id(each) for each in made.model.parameters()] == weights
    assert list(made.model.state_dict()) == names
    assert RecordedLinear.made == [{"bias": False, "params_dtype": torch.float32, "device": "meta"}] * 14
    assert isinstance(made.model.get_submodule("head"), nn.Linear)
    torch.testing.assert_close(made.model(tokens), expected)
    assert [type(each["recipe"]).__name__ for each in entered] == ["Float8BlockScaling"]
    assert entered[0]["enabled"] is True


def test_transformer_engine_before_its_autocast_had_that_name(
    entered: list[dict[str, Any]], make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    pytorch = vars(sys.modules["transformer_engine.pytorch"])
    pytorch["fp8_autocast"] = pytorch.pop("autocast")
    made = FP8(backend="te", recipe="delayed").apply(make_program(dim=32), make_run())
    made.model(torch.arange(16).reshape(1, 16))
    assert {type(each["fp8_recipe"]).__name__ for each in entered} == {"DelayedScaling"}


def test_a_mesh_axis_counts_in_the_tokens_of_a_rank(on_gpu: Callable[..., Run]) -> None:
    degrees = dict.fromkeys(Axis, 1) | {Axis.CP: 4}
    assert "has 8 tokens on a rank" in complaints(FP8(), on_gpu(degrees=degrees))
