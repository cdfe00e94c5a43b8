"""Experts against a loop over tokens, balancing against its formula, and the formulas against counting."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.flop_counter import FlopCounterMode

from stepladder.launch.errors import UsageError
from stepladder.launch.recipe import parse
from stepladder.strategies.facts import Slicing
from stepladder.trainer.models import moe
from stepladder.trainer.models.config import DecoderConfig
from stepladder.trainer.models.moe_config import MoEConfig

DIM = 16


def layer(**keys: Any) -> moe.MixtureOfExperts:
    """Four experts, and biases that change some of the choices."""
    torch.manual_seed(0)
    made = moe.MixtureOfExperts(MoEConfig(**{"num_experts": 4, "top_k": 2, "ffn_dim": 24} | keys), DIM)
    made.bias.copy_(torch.tensor([0.05, -0.05, 0.0, 0.02]))
    return made


def tokens(length: int = 11) -> Tensor:
    return torch.randn(3, length, DIM, generator=torch.Generator().manual_seed(1))


def by_token(layer: moe.MixtureOfExperts, x_BTD: Tensor) -> Tensor:
    """The same layer from the papers, one token and one expert at a time."""
    config, out = layer.config, []
    for x in x_BTD.flatten(0, 1):
        logits = layer.router.weight @ x
        scores = logits.exp() / logits.exp().sum() if config.router == "softmax" else 1 / (1 + (-logits).exp())
        chosen = sorted(range(len(scores)), key=lambda e: scores.tolist()[e] + layer.bias.tolist()[e])[-config.top_k :]
        total = sum(scores[e] for e in chosen) if config.normalise_weights else 1.0
        y = torch.zeros(DIM)
        for e in chosen:
            gate, up = layer.experts.gate[e] @ x, layer.experts.up[e] @ x
            y = y + scores[e] / total * (layer.experts.down[e] @ (gate * gate.sigmoid() * up))
        if layer.shared is not None:
            gate, up = layer.shared.gate.weight @ x, layer.shared.up.weight @ x
            y = y + layer.shared.down.weight @ (gate * gate.sigmoid() * up)
        out.append(y)
    return torch.stack(out).view_as(x_BTD)


def gradients(layer: nn.Module, x_BTD: Tensor, function: Any) -> tuple[Tensor, dict[str, Tensor]]:
    layer.zero_grad()
    x = x_BTD.clone().requires_grad_()
    out = function(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    assert x.grad is not None
    return out.detach(), {"x": x.grad} | {
        name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None
    }


KINDS: list[dict[str, Any]] = [
    {},
    {"router": "sigmoid", "num_shared_experts": 2},
    {"top_k": 1, "normalise_weights": False},
    {"top_k": 3, "router": "sigmoid", "normalise_weights": False},
]


@pytest.mark.parametrize("keys", KINDS, ids=str)
def test_a_layer_is_a_loop_over_tokens(keys: dict[str, Any]) -> None:
    made = layer(**keys)

    out, found = gradients(made, tokens(), made)
    expected_out, expected = gradients(made, tokens(), lambda x: by_token(made, x))

    torch.testing.assert_close(out, expected_out, rtol=1e-4, atol=1e-5)
    assert found.keys() == expected.keys() == {"x"} | {name for name, _ in made.named_parameters()}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_comparison_catches_rows_that_go_to_the_wrong_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    made = layer()
    expected = by_token(made, tokens())
    monkeypatch.setattr(made.experts.dispatch, "forward", lambda x, counts, compute: compute(x, counts.roll(1)))
    assert not torch.allclose(made(tokens()), expected, rtol=1e-2, atol=1e-2)


def test_grouped_products_are_those_of_one_expert_after_the_other() -> None:
    made = layer()
    weights = (made.experts.gate, made.experts.up, made.experts.down)
    counts = torch.tensor([5, 0, 2, 4])  # one expert without rows
    outs = {}
    for name, product in (("by expert", moe._swiglu_by_expert), ("grouped", moe._grouped_swiglu)):
        ends = counts.cumsum(0, dtype=torch.int32) if name == "grouped" else counts
        outs[name] = gradients(made.experts, tokens()[0], lambda x, p=product, e=ends: p(x, weights, e))
    torch.testing.assert_close(outs["grouped"], outs["by expert"])
    assert not outs["grouped"][1]["gate"][1].any()


def test_an_expert_without_tokens_has_a_gradient_of_zero() -> None:
    """And not none, which would leave ranks with different collectives."""
    made = layer()
    made.bias.copy_(torch.tensor([1.0, 1.0, -1.0, -1.0]))
    _, found = gradients(made, tokens(), made)
    assert found["experts.up"][:2].any()
    assert not found["experts.up"][2:].any()


def test_a_bias_chooses_but_does_not_weigh() -> None:
    made = layer(top_k=1, normalise_weights=False)
    made.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
    x_ND = tokens().flatten(0, 1)
    chosen, weights = made.route(x_ND)
    assert chosen.unique().tolist() == [2]
    torch.testing.assert_close(weights[:, 0], (x_ND @ made.router.weight.T).softmax(-1)[:, 2])


def test_half_precision_does_not_reach_the_choice() -> None:
    made = layer()
    x_ND = tokens(200).flatten(0, 1)
    expected = made.route(x_ND)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x_ND @ made.router.weight.T).dtype == torch.bfloat16  # what the router would compute in
        found = made.route(x_ND)
        assert made(tokens()).dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def nothing(counts: Tensor) -> None:
    """One rank has nothing to add."""


def test_the_load_is_what_was_chosen_and_an_evaluation_does_not_count() -> None:
    made = layer()
    expected = torch.zeros(4, dtype=torch.int64)
    for length in (5, 9):
        made(tokens(length))
        expected += made.route(tokens(length).flatten(0, 1))[0].flatten().bincount(minlength=4)
    with torch.no_grad():
        made(tokens(7))
    assert torch.equal(made.load, expected)
    assert int(made.load.sum()) == 3 * (5 + 9) * 2


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_bias_moves_by_the_sign_of_what_is_missing(recomputed: bool) -> None:
    """That is b += rate sign(mean - load), with the counts of all ranks; what is recomputed counts twice."""
    made = layer(bias_rate=0.25)
    made.bias.zero_()
    x = tokens().requires_grad_()
    (checkpoint_wrapper(made) if recomputed else made)(x).sum().backward()
    load = made.route(tokens().flatten(0, 1))[0].flatten().bincount(minlength=4)
    others = torch.tensor([[100, 0, 30, 40]])

    def add_others(counts: Tensor) -> None:
        counts += (1 + recomputed) * others

    moe.balance(made, add_others)

    total = load + others[0]
    mean = float(total.sum()) / 4
    expected = [0.25 * (1 if each < mean else -1 if each > mean else 0) for each in total.tolist()]
    assert made.bias.tolist() == expected
    assert expected.count(0.25) > 0
    assert expected.count(-0.25) > 0
    assert made.load.tolist() == [0, 0, 0, 0]
    assert torch.equal(made.total, (1 + recomputed) * total)


def spread(made: moe.MixtureOfExperts, x: Tensor) -> float:
    """Tokens of the busiest expert against the mean."""
    counts = made.route(x.flatten(0, 1))[0].flatten().bincount(minlength=4)
    return float(counts.max() / counts.double().mean())


def test_biases_even_out_what_a_router_prefers() -> None:
    made = layer(bias_rate=0.01)
    made.bias.zero_()
    x = tokens(200) + 3 * made.router.weight[0].detach() / made.router.weight[0].norm()
    before = spread(made, x)
    for _ in range(200):
        made(x)
        moe.balance(made, nothing)
    assert before > 1.5
    assert spread(made, x) < 1.1


def test_the_report_has_the_busiest_and_the_idle() -> None:
    model = nn.ModuleDict({"first": layer(), "second": layer(), "unused": layer()})
    model["first"].total.copy_(torch.tensor([10, 0, 6, 0]))
    model["first"].load.copy_(torch.tensor([2, 0, 2, 0]))
    model["second"].load.copy_(torch.tensor([5, 5, 5, 5]))

    def of_two_ranks(counts: Tensor) -> None:
        counts *= 2

    assert moe.load_report(model, of_two_ranks) == [
        "experts: first: the busiest got 2.33x the mean, 2 of 4 got no token",  # 14 of 24 in four
        "experts: second: the busiest got 1.00x the mean, none went without tokens",
    ]
    assert moe.load_report(nn.Linear(2, 2), nothing) == []


MODEL = {"dim": 32, "num_layers": 3, "num_heads": 4, "ffn_dim": 48, "vocab_size": 40}
PLACED: list[dict[str, Any]] = [{}, {"first_dense_layers": 1, "num_shared_experts": 2}, {"every": 2, "top_k": 3}]


@pytest.mark.parametrize(("keys", "layers"), list(zip(PLACED, [(0, 1, 2), (1, 2), (1,)], strict=True)), ids=str)
def test_parameters_and_active_flops_are_what_counting_gives(keys: dict[str, Any], layers: tuple[int, ...]) -> None:
    config = DecoderConfig(**MODEL, moe=MoEConfig(**{"num_experts": 4, "ffn_dim": 24} | keys))
    model, facts, length = config.build(), config.facts(16), 16
    assert tuple(i for i, block in enumerate(model.layers) if hasattr(block.ffn, "experts")) == layers
    assert facts.num_parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, length, dtype=torch.long))
    attention = 4 * 3 * 32 * length  # a token, forward; the counter does not see the CPU's kernel
    counted = counter.get_total_flops() / (2 * length) + attention
    assert facts.flops_per_token == pytest.approx(3 * counted)
    assert facts.cuts is not None
    assert sum(facts.cuts.block_costs) + facts.cuts.after_cost == pytest.approx(counted)


@pytest.mark.parametrize("keys", PLACED, ids=str)
def test_facts_of_experts_name_modules_that_exist(keys: dict[str, Any]) -> None:
    config = DecoderConfig(**MODEL, moe=MoEConfig(**keys))
    model, facts = config.build(), config.facts(16)
    assert facts.experts is not None
    assert all(isinstance(model.get_submodule(name), moe.Experts) for name in facts.experts.modules)
    assert len(facts.experts.modules) == len(config.expert_layers)
    assert {name for name, how in facts.slicing.items() if how is Slicing.EXPERTS} == set(facts.experts.modules)
    assert {name for name, how in facts.slicing.items() if how is Slicing.ROUTER} == set(facts.precise) - {"head"}
    assert all(model.get_submodule(name) for name in facts.slicing)
    leaves = [how for how in facts.slicing if facts.slicing[how] is not Slicing.REGION]
    assert all(any(name.startswith(f"{leaf}.") for leaf in leaves) for name, _ in model.named_parameters())
    assert ("model.decoder.ffn_dim" in facts.sliced_sizes) == (len(config.expert_layers) < 3)
    assert facts.sliced_sizes["model.decoder.moe.ffn_dim"] == 352


def test_experts_start_with_the_deviations_of_the_dense_layers() -> None:
    config = DecoderConfig(dim=256, num_layers=2, moe=MoEConfig())
    initialise = config.facts(16).initialise
    assert initialise is not None
    for name, deviation in [("gate", 0.02), ("up", 0.02), ("down", 0.01)]:
        weight = torch.empty(4, 64, 256)
        initialise(f"layers.0.ffn.experts.{name}", weight, torch.Generator().manual_seed(0))
        assert float(weight.std()) == pytest.approx(deviation, rel=0.02)


def test_a_checkpoint_keeps_the_biases_and_no_counts() -> None:
    state = layer().state_dict()
    assert torch.equal(state["bias"], layer().bias)
    assert not {"load", "total"} & set(state)


def test_a_compiled_block_routes_and_counts_alike() -> None:
    config = DecoderConfig(**MODEL | {"num_layers": 1}, moe=MoEConfig(num_experts=4, ffn_dim=24))
    torch.manual_seed(0)
    plain, compiled = config.build(), config.build()
    compiled.load_state_dict(plain.state_dict())
    x = torch.randint(40, (2, 8), generator=torch.Generator().manual_seed(0))
    for block in compiled.layers:
        block.compile(backend="aot_eager")
    for model in (plain, compiled):
        F.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
    for (name, p), q in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    for p, q in zip(moe.layers_of(plain).values(), moe.layers_of(compiled).values(), strict=True):
        assert torch.equal(p.load, q.load)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_where_products_are_grouped_a_block_is_one_graph(checkpointed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU in BF16: nothing waits for the counts, and fullgraph makes a break an error."""
    monkeypatch.setattr(moe, "_grouped_dtype", lambda x: torch.bfloat16)
    config = DecoderConfig(**MODEL | {"num_layers": 1}, moe=MoEConfig(num_experts=4, ffn_dim=24, num_shared_experts=1))
    torch.manual_seed(0)
    plain, compiled = config.build(), config.build()
    compiled.load_state_dict(plain.state_dict())
    if checkpointed:
        compiled.layers[0] = checkpoint_wrapper(compiled.layers[0], early_stop=False)
    compiled.layers[0].compile(backend="aot_eager", fullgraph=True)
    x = torch.randint(40, (2, 8), generator=torch.Generator().manual_seed(0))
    for model in (plain, compiled):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x).flatten(0, 1).float(), x.flatten())
        loss.backward()
    for (name, p), q in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=2e-2, atol=2e-4, msg=name)
    for p, q in zip(moe.layers_of(plain).values(), moe.layers_of(compiled).values(), strict=True):
        assert torch.equal(p.load, q.load)


def problems_of(table: dict[str, Any], **decoder: Any) -> str:
    tree = {"model": {"decoder": decoder | {"moe": table}}, "data": {"synthetic": {}}, "strategies": {"adamw": {}}}
    try:
        parse(tree, {})
    except UsageError as error:
        return "\n".join(error.problems)
    return ""


def test_the_table_is_read_and_its_problems_are_sentences() -> None:
    assert problems_of({}) == ""
    assert parse({"model": {"decoder": {}}, "data": {"synthetic": {}}}, {}).model.chosen.moe is None
    for table, said in [
        ({"num_expert": 4}, "model.decoder.moe.num_expert: unknown key; did you mean 'num_experts'?"),
        ({"top_k": 9}, "model.decoder.moe.top_k = 9: there are num_experts = 8"),
        ({"top_k": 8}, "model.decoder.moe.balance = 'bias': has no effect if all 8 experts are chosen"),
        ({"top_k": 1}, "model.decoder.moe.normalise_weights = true: makes the one weight 1"),
        ({"balance": "none", "bias_rate": 0.1}, "model.decoder.moe.bias_rate = 0.1: has no effect"),
        ({"first_dense_layers": 4}, "model.decoder.moe.first_dense_layers = 4: leaves none of 4 layers"),
        ({"first_dense_layers": 2, "every": 3}, "model.decoder.moe.every = 3: only 2 layers may have experts"),
        ({"balance": "loss"}, "model.decoder.moe.balance = 'loss': must be one of 'none', 'bias'"),
    ]:
        assert said in problems_of(table), table
