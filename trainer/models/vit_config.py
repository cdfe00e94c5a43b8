"""The vision transformer's dimensions and what follows from them, without torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...strategies.facts import Facts, Slicing
from ...strategies.limits import PositiveFloat, PositiveInt
from ..data.wanted import Gives

if TYPE_CHECKING:
    import torch

    from ...strategies.base import Batch
    from .vit import VisionTransformer


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig:
    """A vision transformer: patches, learned positions, pre-norm blocks, the mean of the patches classified.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929 (Table 1: the default is ViT-S/16 of Touvron et al. 2021,
    arXiv:2012.12877); the mean in the place of a class token: Beyer et al. 2022, arXiv:2205.01580.
    """

    image_size: PositiveInt = 224
    """Height and width of the images."""
    patch_size: PositiveInt = 16
    """Height and width of a patch."""
    channels: PositiveInt = 3
    """Numbers of a pixel."""
    num_classes: PositiveInt = 1000
    """Classes to tell apart."""
    dim: PositiveInt = 384
    """Width of the residual stream."""
    num_layers: PositiveInt = 12
    """Number of blocks."""
    num_heads: PositiveInt = 6
    """Heads of each attention."""
    ffn_dim: PositiveInt = 1536
    """Width of the feed-forward."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the variance in LayerNorm."""

    takes: ClassVar[Gives] = "images"
    vocab_size: ClassVar[int] = 0

    def problems(self) -> Iterator[str]:
        """Dimensions that do not divide."""
        if self.image_size % self.patch_size:
            patch = f"patch_size = {self.patch_size}"
            yield f"image_size = {self.image_size}: not divisible by {patch}; change one of the two"
        if self.dim % self.num_heads:
            yield f"dim = {self.dim}: not divisible by num_heads = {self.num_heads}; change one of the two"

    @property
    def num_patches(self) -> int:
        """T: positions of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_features(self) -> int:
        """Numbers of a patch."""
        return self.channels * self.patch_size**2

    def _block_products(self) -> int:
        """Weights of a block that each position is multiplied with."""
        return 4 * self.dim**2 + 2 * self.dim * self.ffn_dim

    def num_parameters(self) -> int:
        """All parameters."""
        block = self._block_products() + 4 * self.dim + (self.ffn_dim + self.dim) + 4 * self.dim  # biases, two norms
        embedding = (self.patch_features + 1 + self.num_patches) * self.dim
        return embedding + self.num_layers * block + 2 * self.dim + (self.dim + 1) * self.num_classes

    def flops_per_image(self) -> float:
        """Model FLOPs for each image, forward and backward: 6 for each weight and position it multiplies, + attention.

        Convention, as for the decoder: no norms, no biases, no recomputation; the attention, 12 L D T for each of T
        patches, in full. The classifier multiplies once an image.
        """
        products = self.patch_features * self.dim + self.num_layers * self._block_products()
        attention = 12.0 * self.num_layers * self.dim * self.num_patches
        return (6.0 * products + attention) * self.num_patches + 6.0 * self.dim * self.num_classes

    def facts(self, sequence_length: int) -> Facts:
        """What strategies may know about this model; positions are its patches, whatever a recipe says of sequences."""
        blocks = tuple(f"layers.{i}" for i in range(self.num_layers))
        return Facts(
            blocks=blocks,
            units=(("embedding",), ("norm", "head")),
            num_parameters=self.num_parameters(),
            flops_per_token=self.flops_per_image(),
            unit="image",
            sequence_length=self.num_patches,
            initialise=_initialise,
            slicing=_slicing(blocks),
            sliced_sizes={
                f"model.vit.{key}": getattr(self, key) for key in ("num_heads", "ffn_dim", "num_classes", "dim")
            },
            linears=self._linears(blocks),
            precise=("embedding", "head"),
        )

    def _linears(self, blocks: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        of_block = {f"attention.{name}": (self.dim, self.dim) for name in ("query", "key", "value", "out")}
        of_block |= {"ffn.up": (self.dim, self.ffn_dim), "ffn.down": (self.ffn_dim, self.dim)}
        found = {f"{block}.{name}": size for block in blocks for name, size in of_block.items()}
        outside = {"embedding": (self.patch_features, self.dim), "head": (self.dim, self.num_classes)}
        return found | outside

    def build(self) -> "VisionTransformer":
        """The module, with weights as `torch.nn` makes them; build it on the meta device."""
        from .vit import VisionTransformer

        return VisionTransformer(self)

    def loss(self) -> "Callable[[torch.Tensor, Batch], torch.Tensor]":
        """Cross entropy of the class."""
        from .classes import class_loss

        return class_loss


def _slicing(blocks: tuple[str, ...]) -> dict[str, Slicing]:
    """Attention by heads, feed-forward by its width, the patches' projection by its features, the head by classes."""
    of_block = {
        "attention_norm": Slicing.POSITIONWISE,
        "attention": Slicing.REGION,
        "attention.query": Slicing.COLUMN,
        "attention.key": Slicing.COLUMN,
        "attention.value": Slicing.COLUMN,
        "attention.out": Slicing.ROW,
        "ffn_norm": Slicing.POSITIONWISE,
        "ffn": Slicing.REGION,
        "ffn.up": Slicing.COLUMN,
        "ffn.down": Slicing.ROW,
    }
    outside = {"embedding": Slicing.EMBEDDING, "norm": Slicing.POSITIONWISE, "head": Slicing.HEAD}
    return outside | {f"{block}.{name}": how for block in blocks for name, how in of_block.items()}


def _initialise(name: str, weight: "torch.Tensor", generator: "torch.Generator") -> None:
    """Norms to one, biases and the classifier to zero, positions and the rest normal with deviation 0.02.

    A classifier of zeros begins with every class equally likely. Source: Dosovitskiy et al. 2021 and their code.
    """
    if name.endswith("norm.weight"):
        weight.fill_(1.0)
    elif name.endswith("bias") or name == "head.weight":
        weight.zero_()
    else:
        weight.normal_(0.0, 0.02, generator=generator)
