"""Models a recipe can name. A config knows its facts without torch; `build()` makes the module."""

from dataclasses import dataclass
from typing import Any

from .config import DecoderConfig

__all__ = ["DecoderConfig", "ModelConfig"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model of a recipe: exactly one of these tables."""

    decoder: DecoderConfig | None = None
    """A Llama-style decoder."""

    @property
    def chosen(self) -> Any:
        """The one model that the recipe names; the reader has made sure that there is one."""
        return self.decoder
