"""Foreign models that packed documents are given to see each as if it were alone; the others are refused beforehand."""

from typing import Any

import pytest
import torch

from stepladder.trainer.models import TransformersConfig
from stepladder.trainer.models.transformers_facts import TAKE_DOCUMENTS

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}
WITHOUT_GROUPS = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
OLD: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 64}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
SPECIAL: dict[str, dict[str, Any]] = {
    "codegen": OLD | {"rotary_dim": 8},
    "gpt2": OLD,
    "gpt_bigcode": OLD,
    "gptj": OLD | {"rotary_dim": 8},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 64},
    "opt": {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")}
    | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": WITHOUT_GROUPS,
    "persimmon": WITHOUT_GROUPS,
    "gemma": SIZES | {"head_dim": 8},
    "qwen3": SIZES | {"head_dim": 8},
    "mistral": SIZES | {"sliding_window": None},
    "mixtral": SIZES | {"num_local_experts": 4},
    "granitemoe": SIZES | {"num_local_experts": 4},
    "olmoe": SIZES | EXPERTS,
    "qwen2_moe": SIZES | EXPERTS | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": SIZES | EXPERTS | {"moe_intermediate_size": 16},
    "deepseek_v3": SIZES
    | dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8)
    | dict.fromkeys(("q_lora_rank", "kv_lora_rank", "moe_intermediate_size"), 16)
    | {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    | {"first_k_dense_replace": 1},
}
OFTEN = ["llama", "mistral", "gpt2", "mpt", "qwen3_moe", "deepseek_v3"]


def table(name: str) -> dict[str, Any]:
    return {"model_type": name} | SPECIAL.get(name, SIZES)


@pytest.mark.parametrize(
    "name", [*OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(TAKE_DOCUMENTS - {*OFTEN}))]
)
def test_a_packed_document_has_the_logits_of_the_document_alone(name: str) -> None:
    for attention in ("auto", "eager"):
        config = TransformersConfig(config=table(name), attention=attention)
        assert config.takes_documents
        torch.manual_seed(0)
        model = config.build().eval()
        with torch.no_grad():
            for parameter in model.parameters():  # the first values of some are so small that any mask would do
                parameter += 0.1 * torch.randn_like(parameter)
            ids = torch.randint(3, 64, (1, 24))
            positions = torch.tensor([[*range(14), *range(10)]])
            packed = model(ids, positions, torch.tensor([[0] * 14 + [1] * 10]))
            torch.testing.assert_close(packed[:, :14], model(ids[:, :14]), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(packed[:, 14:], model(ids[:, 14:]), rtol=1e-5, atol=1e-5)
            assert not torch.allclose(packed[:, 14:], model(ids)[:, 14:], atol=1e-3)


STATES: dict[str, Any] = {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
REFUSED: dict[str, dict[str, Any]] = {
    "a window": SIZES | {"model_type": "mistral", "sliding_window": 8},
    "windows in some layers": SIZES
    | {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
    "linear attention": SIZES | STATES | {"model_type": "qwen3_next", "head_dim": 16},
    "linear attention, dense": SIZES | STATES | {"model_type": "qwen3_5_text", "head_dim": 16},
    "convolutions": SIZES | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
    "a state beside attention": SIZES | {"model_type": "falcon_h1"},
    "a state alone": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64},
    "a state of old": {"model_type": "rwkv", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64},
    "a mask of another shape": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_sees_past_a_mask_does_not_take_documents(case: str) -> None:
    assert not TransformersConfig(config=REFUSED[case]).takes_documents
