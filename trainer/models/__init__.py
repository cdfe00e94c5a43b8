"""Models a recipe can name. A config knows its facts without torch; `build()` makes the module."""

from dataclasses import dataclass
from typing import cast

from .config import DecoderConfig
from .module_config import ModuleConfig
from .resnet_config import ResNetConfig
from .table import ModelTable
from .transformers_config import TransformersConfig
from .vit_config import VisionTransformerConfig

__all__ = [
    "DecoderConfig",
    "ModelConfig",
    "ModelTable",
    "ModuleConfig",
    "ResNetConfig",
    "TransformersConfig",
    "VisionTransformerConfig",
]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model of a recipe: exactly one of these tables."""

    decoder: DecoderConfig | None = None
    """A Llama-style decoder."""
    vit: VisionTransformerConfig | None = None
    """A vision transformer."""
    resnet: ResNetConfig | None = None
    """A residual network."""
    transformers: TransformersConfig | None = None
    """A causal language model of Hugging Face."""
    module: ModuleConfig | None = None
    """A module of your own."""

    @property
    def name(self) -> str:
        """Of the model's table."""
        return next((key for key, each in vars(self).items() if each is not None), "")

    @property
    def chosen(self) -> ModelTable:
        """The one model that the recipe names; the reader has made sure that there is one."""
        return cast(ModelTable, next((each for each in vars(self).values() if each is not None), None))
