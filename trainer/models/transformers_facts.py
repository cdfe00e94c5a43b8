"""What strategies may know about a model of `transformers`, told by its module, its configuration and its own plan."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...strategies.facts import Facts, Slicing
from .detect import find_blocks
from .errors import ModelError

if TYPE_CHECKING:
    from torch import Generator

_PREFIX = "inner."
_SLICED_KEYS = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
_WORDS = {
    "colwise": Slicing.COLUMN,
    "rowwise": Slicing.ROW,
    "colwise_gather_output": Slicing.HEAD,
    "colwise_rep": Slicing.HEAD,
    "embedding_rowwise": Slicing.EMBEDDING,
    "replicated_with_grad_allreduce": Slicing.HEADWISE,
}
"""What its plan's words are called here; a plan with another word is not used."""
TAKE_DOCUMENTS = frozenset(
    (
        "apertus",
        "arcee",
        "codegen",
        "cohere",
        "deepseek_v3",
        "ernie4_5",
        "gemma",
        "glm",
        "glm4",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "granite",
        "granitemoe",
        "llama",
        "mistral",
        "mixtral",
        "mpt",
        "nemotron",
        "olmo",
        "olmo2",
        "olmoe",
        "opt",
        "persimmon",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
    )
)
"""Types of which a packed document has the logits of the document alone; a test computes both for each of them."""


def takes_documents(config: Any) -> bool:
    """Whether its attention sees exactly what a mask and positions say, in every layer.

    Windows, chunks, convolutions and recurrent states look past both, and a model that ignores a mask does so without a
    word; so what is not known to be right is not.
    """
    kinds = getattr(config, "layer_types", None) or ()
    window = None if kinds else getattr(config, "sliding_window", None)
    return config.model_type in TAKE_DOCUMENTS and not window and all(kind == "full_attention" for kind in kinds)


def facts_of(model: Any, sequence_length: int, *, fill: "Callable[[str, Tensor], None] | None" = None) -> Facts:
    """Facts of a `CausalLM` on the meta device; `fill` reads a weight, by the name that the library gives it."""
    inner, config = model.inner, model.inner.config
    blocks = find_blocks(model)
    names = {id(module): name for name, module in model.named_modules()}
    embedding = names.get(id(inner.get_input_embeddings()), "")
    head = names.get(id(inner.get_output_embeddings()), "")
    tied = bool(head) and model.get_submodule(head).weight is model.get_submodule(embedding).weight
    first = FirstValues(model=model)
    linears = {n: (m.in_features, m.out_features) for n, m in model.named_modules() if isinstance(m, nn.Linear)}

    def initialise(name: str, weight: Tensor, generator: "Generator") -> None:
        if fill is None:
            first.of_parameter(name, weight, generator)
        else:
            fill(name.removeprefix(_PREFIX), weight)

    if fill is not None:
        for name, parameter in model.named_parameters():  # on the meta device only the shape is looked at
            fill(name.removeprefix(_PREFIX), parameter)
    slicing = {} if tied else _slicing(model, blocks, embedding=embedding, head=head)
    return Facts(
        blocks=blocks,
        units=() if tied or not head else ((embedding,), (head,)),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_token=_flops_per_token(model, config, embedding, sequence_length),
        sequence_length=sequence_length,
        initialise=initialise,
        fill_buffer=first.of_buffer,
        has_modes=True,
        slicing=slicing,
        sliced_sizes={
            f"model.transformers.config.{key}": size
            for key in _SLICED_KEYS
            if slicing and isinstance(size := getattr(config, key, None), int)
        },
        splits_positions=False,
        head="" if tied or _changes_logits(config) else head,
        linears={name: size for name, size in linears.items() if not (tied and name == head)},
        precise=(head,) if head and not tied else (),
        tied=tied,
    )


def _changes_logits(config: Any) -> bool:
    """Whether something is done to the logits after the output projection, so that nobody else may do its work."""
    return any(
        getattr(config, key, None) not in (None, 1.0)
        for key in ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
    )


def _flops_per_token(model: nn.Module, config: Any, embedding: str, sequence_length: int) -> float:
    """6 N + 12 L H Q T, as for the decoder: of experts, which are kept together, those that a token goes through."""
    share = (getattr(config, "num_experts_per_tok", None) or 1) / (
        getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    )
    multiplying = 0.0
    for name, module in model.named_modules():
        if name != embedding and not isinstance(module, nn.Embedding):
            for weight in module.parameters(recurse=False):
                multiplying += weight.numel() * (share if weight.ndim == 3 else 1.0) * (weight.ndim >= 2)
    heads = getattr(config, "num_attention_heads", 0)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    return 6.0 * multiplying + 12.0 * config.num_hidden_layers * heads * head_dim * sequence_length


def _slicing(model: Any, blocks: tuple[str, ...], *, embedding: str, head: str) -> dict[str, Slicing]:
    """The library's own tensor-parallel plan in our words; empty if it has none, or one with words unknown here."""
    plan: Mapping[str, str] = getattr(model.inner, "tp_plan", None) or {}
    if not plan or any(word not in _WORDS for word in plan.values()) or not blocks:
        return {}
    found: dict[str, Slicing] = {embedding: Slicing.EMBEDDING, head: Slicing.HEAD}
    for name, module in model.named_modules():
        if name in found or next(module.parameters(recurse=False), None) is None:
            continue
        pattern = next((each for each in plan if fnmatchcase(name, _PREFIX + each)), None)
        found[name] = Slicing.POSITIONWISE if pattern is None else _WORDS[plan[pattern]]
    # What contains a split of features begins with a whole input: attention, feed-forward.
    regions = {name.rpartition(".")[0] for name, how in found.items() if how is Slicing.ROW}
    inside = [name for name, how in found.items() if how is Slicing.COLUMN]
    if any(name.rpartition(".")[0] not in regions for name in inside):
        return {}
    return found | dict.fromkeys(regions, Slicing.REGION)


@dataclass(frozen=True, kw_only=True)
class FirstValues:
    """First values of single tensors, by the library's own initialisation of the module that each belongs to.

    Modules are on the meta device, so a copy of one with a single real tensor in it initialises that tensor only.
    """

    model: nn.Module

    def of_parameter(self, name: str, weight: Tensor, generator: "Generator") -> None:
        """Fill a whole parameter. Raises: ModelError if the library leaves it as it is."""
        devices = [weight.device] if weight.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(generator.initial_seed())
            self._fill(name, weight, "_parameters")

    def of_buffer(self, name: str, buffer: Tensor) -> None:
        """Fill a buffer. Raises: ModelError if the library leaves it as it is."""
        self._fill(name, buffer, "_buffers")

    def _fill(self, name: str, tensor: Tensor, kind: str) -> None:
        where, _, leaf = name.rpartition(".")
        shell = copy.copy(self.model.get_submodule(where))
        shell.__dict__[kind] = {**shell.__dict__[kind], leaf: tensor}
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
        self._initialiser(where)(shell)
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ModelError(f"model.transformers: {name}: the library does not say what it begins with; use weights")

    def _initialiser(self, where: str) -> Callable[[nn.Module], None]:
        """That of the nearest model around a module: models are made of models."""
        parts = where.split(".")
        for end in range(len(parts), 0, -1):
            module: Any = self.model.get_submodule(".".join(parts[:end]))
            if hasattr(module, "_init_weights"):
                return module._init_weights
        raise ModelError(f"model.transformers: {where}: no model around it says how it begins")
