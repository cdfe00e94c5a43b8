"""What is compiled, how often, and what the report says about it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from stepladder.strategies.base import Batch, Facts, Owns, Program, Run
from stepladder.strategies.compile import Compile, graph_report
from stepladder.strategies.facts import Experts
from stepladder.strategies.mesh import Axis


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    optimize_ddp = torch._dynamo.config.optimize_ddp
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.config.optimize_ddp = optimize_ddp
    torch._dynamo.reset()


def tokens(length: int = 8) -> torch.Tensor:
    return torch.arange(2 * length).view(2, length) % 32


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture
def compiled(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> Callable[..., Program]:
    """A decoder compiled without code generation; the tests of parity run Inductor."""

    def make(num_layers: int = 2, **keys: Any) -> Program:
        strategy = Compile(**{"backend": "eager", "loss": False} | keys)
        return strategy.apply(make_program(num_layers=num_layers), make_run())

    return make


def test_one_graph_serves_all_equal_blocks(compiled: Callable[..., Program]) -> None:
    found: dict[int, int] = {}
    for num_layers in (1, 2, 6):
        torch._dynamo.reset()
        counters.clear()
        program = compiled(num_layers)
        assert graphs() == 0  # nothing is traced before the first call
        for _ in range(2):
            program.model(tokens()).sum().backward()
        found[num_layers] = graphs()
    assert found == {1: 1, 2: 1, 6: 1}


def test_the_loss_is_a_graph_of_its_own(compiled: Callable[..., Program]) -> None:
    program = compiled(loss=True)
    logits = program.model(tokens())
    before = graphs()
    eager = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens().flatten(), reduction="sum")
    loss = program.loss(logits, Batch(tokens(), tokens()))
    assert graphs() == before + 1
    torch.testing.assert_close(loss, eager)


def test_the_whole_model_is_one_graph(compiled: Callable[..., Program]) -> None:
    program = compiled(num_layers=3, scope="model")
    calls: list[int] = []
    program.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    program.model(tokens())
    assert graphs() == 1
    assert graph_report()[0] == "compile: 1 graphs, 0 graph breaks"


@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
def test_what_a_strategy_needs_of_inductor_holds_for_its_graphs_and_for_no_others(
    make_program: Callable[..., Program], make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    from torch._inductor import compile_fx, config

    seen: list[dict[str, Any]] = []

    def without_code(graph: torch.fx.GraphModule, inputs: Any, config_patches: dict[str, Any], **_: Any) -> Any:
        seen.append(config_patches)
        return graph.forward

    monkeypatch.setattr(compile_fx, "compile_fx", without_code)
    strategy = Compile(mode=mode, loss=False)
    strategy.apply(replace(make_program(), compiler_options={"emulate_precision_casts": True}), make_run()).model(
        tokens()
    )
    strategy.apply(make_program(), make_run()).model(tokens())
    with_it, without_it = seen
    assert with_it == without_it | {"emulate_precision_casts": True}
    assert with_it.get("max_autotune", False) is (mode != "default")
    assert not config.emulate_precision_casts


@pytest.mark.parametrize(("dynamic", "expected"), [(True, [1, 1, 1]), (False, [1, 2, 3]), (None, [1, 2, 2])])
def test_dynamic_says_what_a_new_shape_costs(
    dynamic: bool | None, expected: list[int], compiled: Callable[..., Program]
) -> None:
    program = compiled(1, dynamic=dynamic)
    found: list[int] = []
    for length in (8, 12, 16):
        program.model(tokens(length))
        found.append(graphs())
    assert found == expected


class Breaking(nn.Module):
    """A block that Dynamo cannot trace in one piece."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_graph_break_is_reported_or_an_error(
    fullgraph: bool, make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    model = nn.Sequential(Breaking())
    program = make_program(model=model, facts=Facts(blocks=("0",)))
    program = Compile(backend="eager", fullgraph=fullgraph).apply(program, make_run())
    if fullgraph:
        with pytest.raises(torch._dynamo.exc.Unsupported):
            program.model(torch.ones(2))
        return
    assert torch.equal(program.model(torch.ones(2)), torch.full((2,), 4.0))
    (report,) = program.reports
    head, reason, *_ = report()
    assert head == "compile: 2 graphs, 1 graph breaks"
    assert reason.startswith("compile: graph break x1: ")
    assert "graph_break" in reason


def test_too_many_shapes_are_reported(compiled: Callable[..., Program]) -> None:
    program = compiled(1, dynamic=False)
    for length in range(2, 2 + torch._dynamo.config.recompile_limit + 2):
        program.model(tokens(length))
    assert any("recompile limits hit" in line for line in graph_report())


def test_backend_and_mode_reach_the_compiler(
    make_program: Callable[..., Program], make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: given.append(options))
    for strategy in (Compile(mode="max-autotune-no-cudagraphs", loss=False), Compile(backend="aot_eager", loss=False)):
        strategy.apply(make_program(num_layers=1), make_run())
    assert given == [
        {"backend": "inductor", "mode": "max-autotune-no-cudagraphs", "dynamic": None, "fullgraph": False},
        {"backend": "aot_eager", "dynamic": None, "fullgraph": False},
    ]


def test_a_full_graph_is_refused_where_the_host_must_know_the_rows_of_each_expert(make_run: Callable[..., Run]) -> None:
    experts = Experts(modules=("layers.0.ffn",), num_experts=4, dim=32, ffn_dim=48, grouped_multiple=8)
    bf16 = {Owns.COMPUTE_DTYPE: "amp"}

    def refused(*, fullgraph: bool = True, tp: int = 1, sizes: Experts | None = experts, **changes: Any) -> bool:
        facts, degrees = Facts(blocks=("layers.0",), experts=sizes), dict.fromkeys(Axis, 1) | {Axis.TP: tp}
        run = make_run(**{"facts": facts, "degrees": degrees, "device_type": "cuda", "owners": bf16} | changes)
        strategy = Compile(fullgraph=fullgraph)
        return any(each.beside == "model experts" and each.applies(strategy, run) for each in strategy.conflicts)

    assert not refused()
    assert refused(owners={})  # float32
    assert refused(owners={**bf16, Owns.GRADIENT_SCALE: "amp"})  # fp16
    assert refused(device_type="cpu")
    assert not refused(tp=2)
    assert refused(tp=4)  # 12 of 48
    assert refused(sizes=replace(experts, dim=36))
    assert not refused(fullgraph=False, device_type="cpu")
    assert not refused(sizes=None, device_type="cpu")
    (sentence,) = (each.sentence() for each in Compile.conflicts if each.beside == "model experts")
    assert sentence.startswith("fullgraph = true: cannot work beside model experts: only on a GPU, in BF16")


def test_ddps_graph_splitter_is_on_only_for_a_whole_model_without_checkpoints(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    for scope, active, expected in [("block", [], False), ("model", [], True), ("model", ["ac"], False)]:
        Compile(scope=scope, loss=False).apply(make_program(num_layers=1), make_run(active=active))
        assert torch._dynamo.config.optimize_ddp is expected
