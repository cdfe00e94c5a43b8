"""Checkpointed blocks save less and compute again, exactly as much as the recipe says."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils._python_dispatch import TorchDispatchMode

from stepladder.strategies.ac import ActivationCheckpointing, _copies_to_host
from stepladder.strategies.base import Facts, Program, Run
from stepladder.strategies.compile import Compile
from stepladder.strategies.errors import StrategyError

NUM_LAYERS = 4
TOKENS = torch.arange(64).view(2, 32) % 32


class CountOperators(TorchDispatchMode):
    """How often each operator really ran."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **kwargs or {})


def step(program: Program) -> Counter[str]:
    """Operators of one forward and backward pass."""
    with CountOperators() as mode:
        program.model(TOKENS).square().sum().backward()
    return mode.counts


def saved_bytes(program: Program) -> int:
    """Bytes of the distinct tensors that autograd keeps of a forward pass, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in program.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = program.model(TOKENS)
    assert output.requires_grad
    return sum(kept.values())


@pytest.fixture
def checkpointed(make_program: Callable[..., Program], make_run: Callable[..., Run]) -> Callable[..., Program]:
    def make(**keys: Any) -> Program:
        return ActivationCheckpointing(**keys).apply(make_program(num_layers=NUM_LAYERS), make_run())

    return make


def test_every_nth_block_is_computed_twice(
    checkpointed: Callable[..., Program], make_program: Callable[..., Program]
) -> None:
    for every, expected in [(1, [2, 2, 2, 2]), (2, [1, 2, 1, 2]), (3, [1, 1, 2, 1]), (4, [1, 1, 1, 2])]:
        program = checkpointed(every=every)
        calls = [0] * NUM_LAYERS
        for name, module in program.model.named_modules():
            if name.endswith("ffn.gate"):
                index = int(name.split(".")[1])
                module.register_forward_hook(
                    lambda *_, calls=calls, index=index: calls.__setitem__(index, calls[index] + 1)
                )
        step(program)
        assert calls == expected, f"every = {every}"


def test_blocks_are_counted_over_the_whole_model_of_which_a_rank_may_hold_a_part(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program = make_program(num_layers=NUM_LAYERS)
    mine = replace(program, facts=replace(program.facts, blocks=program.facts.blocks[2:]))
    ActivationCheckpointing(every=3).apply(mine, make_run())
    wrapped = [name for name, module in mine.model.named_modules() if "CheckpointWrapper" in type(module).__name__]
    assert wrapped == ["layers.2"]


def test_full_repeats_every_operator_and_selective_only_those_it_did_not_save(
    checkpointed: Callable[..., Program], make_program: Callable[..., Program]
) -> None:
    plain, full, selective = step(make_program()), step(checkpointed()), step(checkpointed(mode="selective"))
    products_in_block, attention = 7, "aten._scaled_dot_product_flash_attention_for_cpu.default"
    assert plain["aten.silu.default"] == NUM_LAYERS
    assert plain[attention] == NUM_LAYERS

    assert full["aten.mm.default"] == plain["aten.mm.default"] + products_in_block * NUM_LAYERS
    assert full["aten.silu.default"] == 2 * NUM_LAYERS
    assert full[attention] == 2 * NUM_LAYERS

    assert selective["aten.mm.default"] == plain["aten.mm.default"]
    assert selective[attention] == NUM_LAYERS
    assert selective["aten.silu.default"] == 2 * NUM_LAYERS


@pytest.mark.parametrize("name", ["aten.silu", "aten.silu.default"])
def test_selective_saves_the_operators_it_is_given_and_no_others(
    name: str, checkpointed: Callable[..., Program]
) -> None:
    full, silu = step(checkpointed()), step(checkpointed(mode="selective", save=(name,)))
    assert silu["aten.silu.default"] == NUM_LAYERS
    assert silu["aten.mm.default"] == full["aten.mm.default"]


def test_full_keeps_only_the_inputs_of_its_blocks(
    checkpointed: Callable[..., Program], make_program: Callable[..., Program]
) -> None:
    plain, full, half = saved_bytes(make_program()), saved_bytes(checkpointed()), saved_bytes(checkpointed(every=2))
    one_block = (plain - full) / NUM_LAYERS
    assert full < 0.3 * plain
    assert half == pytest.approx(plain - NUM_LAYERS / 2 * one_block, rel=0.02)


def test_the_gradients_stay_what_they_were(
    checkpointed: Callable[..., Program], make_program: Callable[..., Program]
) -> None:
    plain = make_program()
    step(plain)
    truth = [p.grad for p in plain.model.parameters()]
    for keys in ({}, {"every": 2}, {"mode": "selective"}):
        program = checkpointed(**keys)
        step(program)
        for found, expected in zip([p.grad for p in program.model.parameters()], truth, strict=True):
            assert torch.equal(found, expected), keys


class Forgetful(nn.Module):
    """One block with dropout, the operator for which random numbers must be replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


def test_dropout_is_replayed_if_and_only_if_the_random_state_is_preserved(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    def gradient(strategy: ActivationCheckpointing | None) -> torch.Tensor:
        torch.manual_seed(0)
        model = Forgetful()
        program = make_program(model=model, facts=Facts(blocks=("block",)))
        if strategy:
            program = strategy.apply(program, make_run(facts=program.facts))
        torch.manual_seed(1)
        program.model(torch.ones(4, 64)).square().sum().backward()
        (weight, _) = program.model.parameters()
        assert weight.grad is not None
        return weight.grad

    truth = gradient(None)
    assert torch.equal(gradient(ActivationCheckpointing()), truth)
    assert not torch.equal(gradient(ActivationCheckpointing(preserve_rng_state=False)), truth)


@pytest.mark.parametrize("name", ["aten.no_such_operator", "nowhere.mm", "aten.mm.no_such_overload"])
def test_an_operator_that_torch_lacks_is_named(name: str, checkpointed: Callable[..., Program]) -> None:
    with pytest.raises(StrategyError, match=rf"strategies\.ac\.save = '{name}': torch .* has no such operator"):
        checkpointed(mode="selective", save=(name,))


class Routed(nn.Module):
    """One block that chooses by its largest inputs, and asks the host how many they are."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"all": nn.Linear(8, 8)})
        self.block.forward = self.choose  # pyright: ignore[reportAttributeAccessIssue]

    def choose(self, x: torch.Tensor) -> torch.Tensor:
        values, _ = self.block["all"](x).topk(2)
        count = int((values.detach() > -1e9).sum().item())
        return values * count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


def test_selective_neither_routes_anew_nor_asks_the_host_again(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    counted: dict[str, Counter[str]] = {}
    for mode in ("full", "selective"):
        program = make_program(model=Routed(), facts=Facts(blocks=("block",)))
        program = ActivationCheckpointing(mode=mode).apply(program, make_run(facts=program.facts))
        with CountOperators() as operators:
            program.model(torch.randn(4, 8)).sum().backward()
        counted[mode] = operators.counts
    for operator in ("aten.topk.default", "aten._local_scalar_dense.default"):
        assert (counted["full"][operator], counted["selective"][operator]) == (2, 1), operator
    assert counted["selective"]["aten.mul.Tensor"] >= 2  # the cheap rest is computed again


def test_only_copies_from_the_device_to_the_host_are_kept() -> None:
    copy, on_device, on_host = torch.ops.aten._to_copy.default, torch.empty(1, device="meta"), torch.empty(1)
    assert _copies_to_host(copy, (on_device,), {"device": "cpu"})
    assert not _copies_to_host(copy, (on_device,), {"dtype": torch.bfloat16})
    assert not _copies_to_host(copy, (on_host,), {"device": "cpu"})
    assert not _copies_to_host(torch.ops.aten.clone.default, (on_device,), {"device": "cpu"})


def compute_with_collectives(mode: Any) -> Counter[str]:
    """Operators of forward and backward through a block that exchanges tokens."""
    from torch.distributed._functional_collectives import all_to_all_single_autograd, wait_tensor
    from torch.distributed.distributed_c10d import _get_default_group

    class Exchange(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return wait_tensor(all_to_all_single_autograd(x.square(), None, None, _get_default_group())).square()

    block = checkpoint_wrapper(Exchange(), **ActivationCheckpointing(mode=mode)._wrapper_options(pin=False))
    x = torch.arange(4.0).requires_grad_()
    with CountOperators() as operators:
        block(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 4 * x.detach() ** 3)
    return operators.counts


def collectives() -> list[tuple[int, int]]:
    exchange, square = "_c10d_functional.all_to_all_single.default", "aten.pow.Tensor_Scalar"
    return [(c[exchange], c[square]) for c in (compute_with_collectives("full"), compute_with_collectives("selective"))]


def test_selective_does_not_send_tokens_twice(run_ranks: Any) -> None:
    (full, squares), (selective, squares_again) = run_ranks(collectives, 2)
    assert (full, selective) == (3, 2)  # there, there again, and back
    assert squares == squares_again


def test_a_budget_makes_the_compiler_keep_less(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    def kept(strategy: ActivationCheckpointing | None) -> int:
        torch._dynamo.reset()
        with torch._functorch.config.patch(activation_memory_budget=1.0):  # the setting is the process's: put it back
            program = make_program(num_layers=NUM_LAYERS)
            if strategy:
                program = strategy.apply(program, make_run(active={"ac", "compile"}))
            program = Compile(backend="aot_eager", loss=False).apply(program, make_run(active={"ac", "compile"}))
            return saved_bytes(program)

    whole, half, none = (
        kept(None),
        kept(ActivationCheckpointing(mode="budget")),
        kept(ActivationCheckpointing(mode="budget", budget=0.0)),
    )
    assert none < half < whole


CHECKED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"mode": "budget"}, {}, "mode = 'budget': the compiler spends it; add strategies.compile = {}"),
    ({"mode": "budget", "every": 2}, {"active": {"compile"}}, "every = 2: a budget holds for every compiled graph"),
    ({"budget": 0.5}, {}, "budget: has no effect with mode = 'full'"),
    ({"mode": "offload", "offload": True}, {}, "offload = true: goes with mode = 'full', not 'offload'"),
    ({"offload_min_kib": 4}, {}, "offload_min_kib: has no effect while nothing is offloaded"),
    ({"mode": "offload", "preserve_rng_state": False}, {}, "preserve_rng_state = false: has no effect"),
    ({"mode": "offload", "save": ("aten.mm",)}, {}, "save: has no effect with mode = 'offload'"),
]


@pytest.mark.parametrize(("keys", "run", "sentence"), CHECKED)
def test_settings_of_another_mode_are_refused(
    keys: dict[str, Any], run: dict[str, Any], sentence: str, make_run: Callable[..., Run]
) -> None:
    (found,) = ActivationCheckpointing(**keys).check(make_run(**run))
    assert found.startswith(sentence)


def test_offloading_is_refused_where_there_is_nothing_to_win_or_it_cannot_be_seen(make_run: Callable[..., Run]) -> None:
    for keys in ({"mode": "offload"}, {"offload": True}):
        strategy = ActivationCheckpointing(**keys)
        refused = lambda **run: [r.beside for r in strategy.conflicts if r.applies(strategy, make_run(**run))]  # noqa: B023, E731
        assert refused(device_type="cuda") == []
        assert refused() == ["device cpu"]
        assert refused(device_type="cuda", active={"compile"}) == ["compile"]
    plain = ActivationCheckpointing()
    assert not [r for r in plain.conflicts if r.applies(plain, make_run(active={"compile"}))]
