"""The residual network's dimensions and what follows from them, without torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from ...strategies.facts import Facts
from ...strategies.limits import Above, AtMost, PositiveFloat, PositiveInt
from ..data.wanted import Gives

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...strategies.base import Batch
    from ...strategies.facts import SumOverRanks
    from .resnet import ResNet


EXPANSION = 4
"""By how much a bottleneck's output is wider than its middle."""


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """One convolution and the batch norm behind it, as much as counting asks for."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    output_size: int
    """Height and width of what comes out."""

    @property
    def weights(self) -> int:
        """Weights of the convolution; it has no bias."""
        return self.inputs * self.outputs * self.kernel**2


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A residual network: convolutions with batch norm, added to what they are given.

    The default is ResNet-50 with the stride in the 3 x 3 convolution ("v1.5"). Source: He et al. 2015,
    arXiv:1512.03385 (Table 1); Goyal et al. 2017, arXiv:1706.02677 (stride, zero gammas).
    """

    image_size: PositiveInt = 224
    """Height and width of the images; only the FLOPs depend on it."""
    channels: PositiveInt = 3
    """Numbers of a pixel."""
    num_classes: PositiveInt = 1000
    """Classes to tell apart."""
    stages: tuple[PositiveInt, ...] = (3, 4, 6, 3)
    """Blocks of each stage; a stage halves the image and doubles the width of the one before. (2, 2, 2, 2) with
    bottleneck = false is ResNet-18."""
    bottleneck: bool = True
    """Blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions rather than of two 3 x 3."""
    width: PositiveInt = 64
    """Channels of the first stage, in the middle of its blocks."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """`imagenet`: 7 x 7 with stride 2 and a pooling; `small`: 3 x 3 with stride 1, for images of some 32 pixels."""
    norm: Literal["batch", "sync_batch"] = "batch"
    """`batch`: each rank normalises with its own microbatch. `sync_batch`: with that of all ranks, which sends two
    numbers a channel around for each layer, forward and backward; for microbatches of a few images."""
    momentum: Annotated[float, Above(0), AtMost(1)] = 0.1
    """What a step counts in the running statistics that an evaluation normalises with."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance."""

    takes: ClassVar[Gives] = "images"
    vocab_size: ClassVar[int] = 0

    def problems(self) -> Iterator[str]:
        """A network without stages."""
        if not self.stages:
            yield "stages = []: a network needs a block; give the number of blocks of each stage"

    def blocks(self) -> list[tuple[str, int, int, int, int]]:
        """(name, input channels, middle channels, stride, output size) of each block, in order."""
        size = self.image_size if self.stem == "small" else _halved(_halved(self.image_size))
        inputs, found = self.width, list[tuple[str, int, int, int, int]]()
        for i, num_blocks in enumerate(self.stages):
            middle = self.width * 2**i
            for j in range(num_blocks):
                stride = 2 if i > 0 and j == 0 else 1
                size = _halved(size) if stride == 2 else size
                found.append((f"stages.{i}.{j}", inputs, middle, stride, size))
                inputs = self.outputs(middle)
        return found

    def outputs(self, middle: int) -> int:
        """Channels that leave a block."""
        return middle * (EXPANSION if self.bottleneck else 1)

    @property
    def features(self) -> int:
        """Channels that reach the classifier."""
        return self.outputs(self.width * 2 ** (len(self.stages) - 1))

    def convolutions(self) -> Iterator[Convolution]:
        """Every convolution of the network."""
        kernel, size = (7, _halved(self.image_size)) if self.stem == "imagenet" else (3, self.image_size)
        yield Convolution(name="stem", inputs=self.channels, outputs=self.width, kernel=kernel, output_size=size)
        for name, inputs, middle, stride, size in self.blocks():
            outputs, before = self.outputs(middle), size * stride  # half a pixel more, where the size was odd
            plan = [(inputs, middle, 1, before), (middle, middle, 3, size), (middle, outputs, 1, size)]
            for i, (given, made, kernel, at) in enumerate(
                plan if self.bottleneck else [(inputs, middle, 3, size), (middle, outputs, 3, size)]
            ):
                yield Convolution(name=f"{name}.{i}", inputs=given, outputs=made, kernel=kernel, output_size=at)
            if stride != 1 or inputs != outputs:
                yield Convolution(name=f"{name}.skip", inputs=inputs, outputs=outputs, kernel=1, output_size=size)

    def num_parameters(self) -> int:
        """All parameters; the running statistics are none."""
        convolutions = sum(each.weights + 2 * each.outputs for each in self.convolutions())
        return convolutions + (self.features + 1) * self.num_classes

    def flops_per_image(self) -> float:
        """Model FLOPs for each image, forward and backward: 6 for each weight and pixel that it multiplies.

        Convention: convolutions and the classifier; no norms, no recomputation, padding as if it were image.
        """
        products = sum(each.weights * each.output_size**2 for each in self.convolutions())
        return 6.0 * (products + self.features * self.num_classes)

    def facts(self, sequence_length: int) -> Facts:
        """What strategies may know about this model."""
        return Facts(
            blocks=tuple(name for name, *_ in self.blocks()),
            units=(("stem",), ("head",)),
            num_parameters=self.num_parameters(),
            flops_per_token=self.flops_per_image(),
            unit="image",
            sequence_length=1,
            initialise=_initialise,
            fill_buffer=_fill_buffer,
            has_modes=True,
            linears={"head": (self.features, self.num_classes)},
            precise=("head",),
            after_step=self._take_statistics,
        )

    def _take_statistics(self, model: "nn.Module", sum_over_ranks: "SumOverRanks") -> None:
        from .resnet import take_statistics

        take_statistics(model, sum_over_ranks, self.momentum)

    def build(self) -> "ResNet":
        """The module, with weights as `torch.nn` makes them; build it on the meta device."""
        from .resnet import ResNet

        return ResNet(self)

    def loss(self) -> "Callable[[torch.Tensor, Batch], torch.Tensor]":
        """Cross entropy of the class."""
        from .classes import class_loss

        return class_loss


def _halved(size: int) -> int:
    """Of a convolution with stride 2, padded by half its kernel."""
    return (size + 1) // 2


def _initialise(name: str, weight: "torch.Tensor", generator: "torch.Generator") -> None:
    """Convolutions as He et al. 2015 (arXiv:1502.01852) by their outputs; norms to one, a block's last one to zero.

    With that zero a block begins as what skips it (Goyal et al. 2017, section 5.1). The classifier: deviation 0.01.
    """
    if name.endswith("last_norm.weight") or name.endswith("bias"):
        weight.zero_()
    elif name.endswith("norm.weight"):
        weight.fill_(1.0)
    elif weight.ndim == 4:
        fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
        weight.normal_(0.0, (2.0 / fan_out) ** 0.5, generator=generator)
    else:
        weight.normal_(0.0, 0.01, generator=generator)


def _fill_buffer(name: str, buffer: "torch.Tensor") -> None:
    """Statistics of what has not been seen yet: mean 0, variance 1."""
    buffer.fill_(1.0 if name.endswith("variance") else 0.0)
