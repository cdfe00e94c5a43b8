"""Causal language models of Hugging Face's `transformers`, by configuration or with their weights."""

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...strategies.facts import Facts
from ..data.wanted import Gives
from .errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...strategies.base import Batch

_WAYS = ("config", "folder", "weights")


@dataclass(frozen=True, kw_only=True)
class TransformersConfig:
    """Any causal language model that the installed `transformers` knows; no code from a hub is ever run.

    Exactly one of config, folder and weights says which.
    """

    config: Mapping[str, Any] | None = None
    """Its configuration as a table: `model_type = "llama"`, and what differs from that type's defaults."""
    folder: str | None = None
    """A local folder with a config.json; the weights are random."""
    weights: str | None = None
    """A local folder with a config.json and *.safetensors; pickled weights are refused."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Kernels: torch's fused ones, plain products, or fused ones where the library has them for the model."""

    takes: ClassVar[Gives] = "tokens"

    def problems(self) -> Iterator[str]:
        """None or several ways to say which model, folders without what they must hold, a missing library."""
        given = [way for way in _WAYS if getattr(self, way) is not None]
        if len(given) != 1:
            yield f"config: {' and '.join(given) or 'none of config, folder and weights'} given; give one of the three"
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            yield "config: has no model_type; add one, such as 'llama'"
        for way in ("folder", "weights"):
            place = getattr(self, way)
            if place is not None and not (Path(place) / "config.json").is_file():
                yield f"{way} = {place!r}: holds no config.json; it is looked for from {Path.cwd()}"
        if self.weights is not None and not any(Path(self.weights).glob("*.safetensors")):
            yield f"weights = {self.weights!r}: holds no *.safetensors; convert pickled weights first"
        if importlib.util.find_spec("transformers") is None:
            yield "config: `transformers` is not installed; pip install 'stepladder[transformers]'"

    def its_config(self) -> Any:
        """The configuration as `transformers` has it. Raises: ModelError."""
        AutoConfig = library().AutoConfig
        try:
            if self.config is not None:
                given = dict(self.config)
                made = AutoConfig.for_model(given.pop("model_type"), **given)
                self._refuse_unknown(made, given)
            else:
                place = self.folder or self.weights or ""
                made = AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=True)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"model.transformers: {_first_line(error)}") from error
        return made.get_text_config(decoder=True)

    def _refuse_unknown(self, made: Any, given: Mapping[str, Any]) -> None:
        """A key that the type does not have would be kept and never read."""
        known = type(made)().to_dict() | {key: None for key in getattr(made, "attribute_map", {})}
        for key in given:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"{made.model_type} has {', '.join(sorted(known))}"
                raise ModelError(f"model.transformers.config.{key}: unknown key; {hint}")

    @property
    def vocab_size(self) -> int:
        """Token ids that it knows."""
        return int(self.its_config().vocab_size)

    @property
    def takes_documents(self) -> bool:
        """Those that are known to keep documents apart; a window or a state of the past cannot be told of them."""
        from .transformers_facts import takes_documents

        return takes_documents(self.its_config())

    def facts(self, sequence_length: int) -> Facts:
        """What the module and its own plan show. Raises: ModelError."""
        from .transformers_facts import facts_of
        from .transformers_weights import from_files

        fill = from_files(Path(self.weights)) if self.weights else None
        return facts_of(self._outline(), sequence_length, fill=fill)

    def _outline(self) -> Any:
        import torch

        with torch.device("meta"):
            return self.build()

    def build(self) -> "nn.Module":
        """The module in float32; build it on the meta device."""
        from .transformers_model import CausalLM, make

        return CausalLM(make(self.its_config(), self.attention))

    def loss(self) -> "Callable[[Tensor, Batch], Tensor]":
        """Cross entropy of the next token."""
        from .decoder import next_token_loss

        return next_token_loss


def library() -> Any:
    """The library, imported without what its own imports have to say: optional kernels that do not fit."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        importlib.import_module("transformers.modeling_utils")
        return importlib.import_module("transformers")
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
