"""The decoder against a plain implementation, and its formulas against counting."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stepladder.strategies.base import Batch
from stepladder.trainer.models.config import DecoderConfig
from stepladder.trainer.models.decoder import next_token_loss

SHAPES = [
    {"num_heads": 4},
    {"num_heads": 4, "num_kv_heads": 2},
    {"num_heads": 4, "num_kv_heads": 1, "tie_embeddings": True},
    {"num_heads": 1, "rope_theta": 500_000.0, "norm_eps": 1e-2},
]


def decoder(**keys: Any) -> Any:
    torch.manual_seed(0)
    model = DecoderConfig(**{"dim": 32, "num_layers": 2, "ffn_dim": 48, "vocab_size": 40} | keys).build()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)  # ones would hide a forgotten weight
    return model


def tokens() -> Tensor:
    return torch.randint(40, (3, 11), generator=torch.Generator().manual_seed(1))


def plain(model: Any, tokens_BT: Tensor) -> Tensor:
    """The same network from the papers: complex rotations, explicit softmax, one head at a time, in float64."""
    config, weights = model.config, {name: p.detach().double() for name, p in model.named_parameters()}
    width, length = config.dim // config.num_heads, tokens_BT.shape[1]
    frequencies = torch.tensor([config.rope_theta ** (-2 * i / width) for i in range(width // 2)], dtype=torch.float64)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weights[f"{name}.weight"]

    def turned(x_BTK: Tensor) -> Tensor:
        half = width // 2
        pairs = torch.complex(x_BTK[..., :half], x_BTK[..., half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((pairs.real, pairs.imag), -1)

    x = weights["embedding.weight"][tokens_BT]
    for layer in range(config.num_layers):
        at = f"layers.{layer}"
        normed = norm(x, f"{at}.attention_norm")
        q, k, v = (normed @ weights[f"{at}.attention.{each}.weight"].T for each in ("query", "key", "value"))
        heads = []
        for head in range(config.num_heads):
            shared = head // (config.num_heads // config.kv_heads)
            q_h = turned(q[..., head * width : (head + 1) * width])
            k_h, v_h = (
                turned(k[..., shared * width : (shared + 1) * width]),
                v[..., shared * width : (shared + 1) * width],
            )
            scores = q_h @ k_h.transpose(1, 2) / width**0.5
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
            heads.append(scores.softmax(-1) @ v_h)
        x = x + torch.cat(heads, -1) @ weights[f"{at}.attention.out.weight"].T
        normed = norm(x, f"{at}.ffn_norm")
        gate, up = normed @ weights[f"{at}.ffn.gate.weight"].T, normed @ weights[f"{at}.ffn.up.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ weights[f"{at}.ffn.down.weight"].T
    head = "embedding.weight" if config.tie_embeddings else "head.weight"
    return norm(x, "norm") @ weights[head].T


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_are_those_of_a_plain_implementation(shape: dict[str, Any]) -> None:
    model = decoder(**shape)
    logits = model(tokens())
    truth = plain(model, tokens())
    torch.testing.assert_close(logits.double(), truth, rtol=1e-4, atol=1e-5)


def test_a_later_token_changes_no_earlier_logits() -> None:
    model = decoder(num_heads=4, num_kv_heads=2)
    before = model(tokens())
    for position in (3, 10):
        changed = tokens()
        changed[:, position] = (changed[:, position] + 1) % 40
        after = model(changed)
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.allclose(after[:, position], before[:, position])


def test_only_the_distance_of_positions_counts() -> None:
    model = decoder(num_heads=4)
    shifted = model(tokens(), torch.arange(11) + 5)
    torch.testing.assert_close(shifted, model(tokens()), rtol=1e-4, atol=1e-5)
    spread = model(tokens(), torch.arange(11) * 3)
    assert not torch.allclose(spread, model(tokens()), atol=1e-3)


CONFIGS = [
    DecoderConfig(
        **dict(zip(("num_kv_heads", "tie_embeddings", "num_layers"), values, strict=True)), dim=32, num_heads=4
    )  # type: ignore
    for values in itertools.product((None, 1, 2), (False, True), (1, 3))
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_parameters_and_flops_are_what_counting_gives(config: DecoderConfig) -> None:
    with torch.device("meta"):
        model = config.build()
        assert config.num_parameters() == sum(p.numel() for p in model.parameters())
        length, batch = 16, 2
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(batch, length, dtype=torch.long))
    # Forward once, backward twice; attention in full, which is how the counter sees SDPA too.
    assert 3 * counter.get_total_flops() == pytest.approx(config.flops_per_token(length) * batch * length)


def test_facts_name_modules_that_exist_and_cover_every_parameter() -> None:
    for tied in (False, True):
        config = DecoderConfig(dim=32, num_heads=4, tie_embeddings=tied)
        with torch.device("meta"):
            model = config.build()
        facts = config.facts(16)
        assert facts.num_parameters == config.num_parameters()
        assert len(facts.blocks) == config.num_layers
        named = [
            model.get_submodule(name) for name in (*facts.blocks, *(each for unit in facts.units for each in unit))
        ]
        covered = {id(p) for module in named for p in module.parameters()}
        left = {name for name, p in model.named_parameters() if id(p) not in covered}
        assert left == ({"embedding.weight", "norm.weight"} if tied else set())


def test_impossible_dimensions_are_sentences() -> None:
    assert "not divisible by num_heads = 3" in next(iter(DecoderConfig(dim=32, num_heads=3).problems()))
    assert "are odd" in next(iter(DecoderConfig(dim=12, num_heads=4).problems()))
    assert "num_kv_heads = 3: does not divide" in next(
        iter(DecoderConfig(dim=32, num_heads=4, num_kv_heads=3).problems())
    )
    assert not list(DecoderConfig().problems())


def test_weights_start_with_the_published_deviations() -> None:
    config = DecoderConfig(dim=256, num_layers=2)
    initialise = config.facts(16).initialise
    assert initialise is not None
    for name, deviation in [
        ("head.weight", 0.02),
        ("layers.1.attention.out.weight", 0.01),
        ("layers.0.ffn.down.weight", 0.01),
    ]:
        weight = torch.empty(256, 256)
        initialise(name, weight, torch.Generator().manual_seed(0))
        assert float(weight.std()) == pytest.approx(deviation, rel=0.02)
        assert abs(float(weight.mean())) < deviation / 50


def test_the_loss_is_a_sum_over_the_labels_that_count() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, -100, 4], [-100, -100, 0]])
    truth = sum(float(logits[b, t].logsumexp(0) - logits[b, t, labels[b, t]]) for b, t in [(0, 0), (0, 2), (1, 2)])
    assert float(next_token_loss(logits, Batch(labels, labels))) == pytest.approx(truth, rel=1e-6)
    none = torch.full((2, 3), -100)
    assert float(next_token_loss(logits, Batch(none, none))) == 0.0
