"""Models of Hugging Face's library: the losses of plain PyTorch under FSDP2, AC, compile and tensor parallelism."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_loop import by_hand, by_trainer, largest_difference, recipe_tree
from torch import Tensor, nn

from stepladder.launch.errors import UsageError
from stepladder.launch.plan import make_plan
from stepladder.launch.recipe import parse
from stepladder.strategies.facts import Slicing
from stepladder.strategies.materialise import build_on_meta, seed_of
from stepladder.trainer.models import TransformersConfig
from stepladder.trainer.models.errors import ModelError

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"model_type": "llama"},
    "qwen2": SIZES | {"model_type": "qwen2"},
    "qwen3": SIZES | {"model_type": "qwen3", "head_dim": 8},
    "gemma2": SIZES | {"model_type": "gemma2", "head_dim": 8, "sliding_window": 8},
    "gemma3": SIZES | {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 8},
    "tied": SIZES | {"model_type": "llama", "tie_word_embeddings": True},
}
DATA: dict[str, Any] = {"synthetic": {}}
TOLERANCE = 1e-5  # float32: only the order of sums differs


def recipe(name: str, strategies: dict[str, Any], mesh: dict[str, int], num_ranks: int) -> dict[str, Any]:
    return recipe_tree({"transformers": {"config": CONFIGS[name]}}, DATA, strategies, mesh, num_ranks=num_ranks)


def plain(config: dict[str, Any], **options: Any) -> nn.Module:
    """The library's own model, made by the library alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    made = AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoModelForCausalLM.from_config(made, dtype=torch.float32, **options)


def with_our_weights(config: dict[str, Any]) -> nn.Module:
    """Drawn for each name as a run draws them."""
    model = plain(config)
    initialise = TransformersConfig(config=config).facts(16).initialise
    assert initialise is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialise(f"inner.{name}", parameter, torch.Generator().manual_seed(seed_of(3, f"inner.{name}")))
    return model


def mean_loss(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """By the library's forward pass and torch's cross entropy; our labels are shifted already."""
    return F.cross_entropy(model(input_ids=ids, use_cache=False).logits.flatten(0, 1), labels.flatten())


def truth(name: str) -> list[float]:
    return by_hand(recipe(name, {}, {}, 1), with_our_weights(CONFIGS[name]), mean_loss)


def differences_of(cases: list[tuple[str, dict[str, Any], dict[str, int]]], num_ranks: int) -> list[float]:
    known: dict[str, list[float]] = {}
    found: list[float] = []
    for name, strategies, mesh in cases:
        known.setdefault(name, truth(name))
        found.append(largest_difference(by_trainer(recipe(name, strategies, mesh, num_ranks), num_ranks), known[name]))
    return found


SLICED: dict[str, Any] = {"tp": {"sequence_parallel": False}}
SHARDED: dict[str, Any] = {"fsdp2": {}, "ac": {}}
FAMILIES = ["llama", "qwen3", "gemma3"]
FAST: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    *((name, SLICED, {"tp": 2}) for name in FAMILIES),
    *((name, SHARDED, {}) for name in [*FAMILIES, "tied"]),
]
COMPILED = SHARDED | {"compile": {}}
TRACED: dict[str, Any] = {"compile": {"backend": "aot_eager"}}
SLOW: dict[str, list[tuple[str, dict[str, Any], dict[str, int]]]] = {
    **{f"{name}, compiled": [(name, COMPILED, {})] for name in FAMILIES},
    **{f"{name}, sliced and traced": [(name, SLICED | TRACED, {"tp": 2})] for name in FAMILIES},
    "qwen2": [("qwen2", SHARDED, {}), ("qwen2", SLICED, {"tp": 2})],
    "gemma2": [("gemma2", SHARDED, {}), ("gemma2", SLICED, {"tp": 2})],
    "others": [
        ("llama", {"ddp": {}}, {}),
        ("llama", SLICED | {"chunked_loss": {"num_chunks": 2}}, {"tp": 2}),
        ("llama", {"tp": {"sequence_parallel": False, "loss_parallel": False}, "ac": {}}, {"tp": 2}),
    ],
}
"""Inductor takes a minute or two for each family where cores are scarce, so each has a start of its own."""


def test_it_takes_the_steps_of_plain_pytorch_on_two_ranks(run_ranks: Any) -> None:
    for case, difference in zip(FAST, run_ranks(differences_of, 2, FAST, 2), strict=True):
        assert difference <= TOLERANCE, case


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SLOW)
def test_so_it_does_compiled_and_for_more_families(name: str, run_ranks: Any) -> None:
    assert max(run_ranks(differences_of, 2, SLOW[name], 2, timeout_s=800)) <= TOLERANCE


@pytest.mark.slow
def test_so_it_does_sharded_and_sliced_on_four_ranks(run_ranks: Any) -> None:
    cases = [(name, SHARDED | SLICED, {"dp_shard": 2, "tp": 2}) for name in FAMILIES]
    for case, difference in zip(cases, run_ranks(differences_of, 4, cases, 4), strict=True):
        assert difference <= TOLERANCE, case


@pytest.mark.parametrize("name", CONFIGS)
def test_its_facts_are_those_of_the_librarys_model(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = CONFIGS[name]
    facts = TransformersConfig(config=config).facts(16)
    model = plain(config)

    assert facts.num_parameters == sum(p.numel() for p in model.parameters())
    assert facts.blocks == ("inner.model.layers.0", "inner.model.layers.1")
    assert facts.tied == (name == "tied") == (not facts.slicing) == (facts.units == ())
    assert facts.has_modes
    ids = torch.zeros(1, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(input_ids=ids, use_cache=False)
    assert counter.get_total_flops() / 16 * 3 == pytest.approx(facts.flops_per_token, rel=0.01)


def test_the_plan_is_the_librarys_in_our_words() -> None:
    slicing = TransformersConfig(config=CONFIGS["qwen3"]).facts(16).slicing
    block = {name.removeprefix("inner.model.layers.0."): how for name, how in slicing.items() if ".0." in name}
    assert block == {
        "self_attn": Slicing.REGION,
        "self_attn.q_proj": Slicing.COLUMN,
        "self_attn.k_proj": Slicing.COLUMN,
        "self_attn.v_proj": Slicing.COLUMN,
        "self_attn.q_norm": Slicing.HEADWISE,
        "self_attn.k_norm": Slicing.HEADWISE,
        "self_attn.o_proj": Slicing.ROW,
        "mlp": Slicing.REGION,
        "mlp.gate_proj": Slicing.COLUMN,
        "mlp.up_proj": Slicing.COLUMN,
        "mlp.down_proj": Slicing.ROW,
        "input_layernorm": Slicing.POSITIONWISE,
        "post_attention_layernorm": Slicing.POSITIONWISE,
    }


def test_a_logit_that_is_changed_afterwards_is_left_to_the_model() -> None:
    assert TransformersConfig(config=CONFIGS["gemma2"]).facts(16).head == ""
    assert TransformersConfig(config=CONFIGS["gemma3"]).facts(16).head == "inner.lm_head"


def test_first_values_are_distributed_as_the_librarys() -> None:
    ours, theirs = with_our_weights(CONFIGS["gemma3"]), plain(CONFIGS["gemma3"])
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert float(a.detach().std()) == pytest.approx(float(b.detach().std()), rel=0.15), name
        assert float(a.detach().mean()) == pytest.approx(float(b.detach().mean()), abs=0.01), name


def test_buffers_are_the_librarys() -> None:
    config = TransformersConfig(config=CONFIGS["gemma3"])
    facts, model = config.facts(16), build_on_meta(config.build)
    fill = facts.fill_buffer
    assert fill is not None
    expected = dict(plain(CONFIGS["gemma3"]).named_buffers())
    assert len(expected) >= 3
    for name, buffer in expected.items():
        found = torch.empty_like(buffer)
        fill(f"inner.{name}", found)
        assert torch.equal(found, buffer), name
        assert model.get_buffer(f"inner.{name}").is_meta


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_document_has_the_logits_of_the_document_alone(attention: Any) -> None:
    config = TransformersConfig(config=CONFIGS["qwen3"], attention=attention)
    assert config.takes_documents
    assert not TransformersConfig(config=CONFIGS["gemma3"]).takes_documents
    torch.manual_seed(0)
    model = config.build()
    ids = torch.randint(64, (1, 12))
    documents = torch.tensor([[0] * 5 + [1] * 7])
    positions = torch.tensor([[*range(5), *range(7)]])

    packed = model(ids, positions, documents)

    torch.testing.assert_close(packed[:, :5], model(ids[:, :5]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[:, 5:], model(ids[:, 5:]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(packed[:, 5:], model(ids)[:, 5:], atol=1e-3)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    torch.manual_seed(1)
    plain(CONFIGS["llama"]).save_pretrained(folder, max_shard_size="20KB")  # type: ignore[operator]
    return folder


def test_weights_are_those_of_the_files(saved: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert (saved / "model.safetensors.index.json").is_file()
    facts = TransformersConfig(weights=str(saved)).facts(16)
    assert facts.initialise is not None
    expected = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    for name, parameter in expected.named_parameters():
        found = torch.empty_like(parameter)
        facts.initialise(f"inner.{name}", found, torch.Generator())
        assert torch.equal(found, parameter), name


def damaged_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"] = dict.fromkeys(told["weight_map"], "../outside.safetensors")
    index.write_text(json.dumps(told))


def cut_a_file(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:100])


def ask_for_more(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 65}))


def ask_for_layers(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))


def ask_for_code(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    told = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged_index, "names '../outside.safetensors', which is no"),
        (cut_a_file, "cannot be read"),
        (ask_for_more, "is (64, 32), but its config.json asks for (65, 32)"),
        (ask_for_layers, "no file has model.layers.2"),
        (ask_for_code, "model.transformers: "),
    ],
)
def test_damaged_or_foreign_weights_are_one_sentence(damage: Any, said: str, saved: Path) -> None:
    damage(saved)
    with pytest.raises(ModelError) as refused:
        TransformersConfig(weights=str(saved)).facts(16)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            {"config": CONFIGS["llama"] | {"hiden_size": 3}},
            "config.hiden_size: unknown key; did you mean 'hidden_size'",
        ),
        ({"config": {"model_type": "lama"}}, "model.transformers"),
        ({"config": {"hidden_size": 3}}, "has no model_type"),
        ({}, "none of config, folder and weights given"),
        ({"weights": "nowhere"}, "holds no config.json"),
    ],
)
def test_what_is_no_model_is_one_sentence(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        make_plan(parse(recipe_tree({"transformers": table}, DATA), {}), num_gpus=0, num_ranks=1)
    assert said in str(refused.value)


def test_tensor_parallelism_says_what_it_cannot() -> None:
    with pytest.raises(UsageError) as refused:
        make_plan(parse(recipe("llama", {"tp": {}}, {"tp": 2}, 2), {}), num_gpus=0, num_ranks=2)
    assert "asks its hidden states for their length" in str(refused.value)
    with pytest.raises(UsageError) as refused:
        make_plan(parse(recipe("tied", SLICED, {"tp": 2}, 2), {}), num_gpus=0, num_ranks=2)
    assert "untie" in str(refused.value)
