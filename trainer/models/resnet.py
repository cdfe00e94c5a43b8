"""A residual network. Shapes: B batch, C channels, H and W pixels."""

import torch.nn.functional as F
from torch import Tensor, nn

from .batch_norm import BatchNorm, SyncBatchNorm, take_statistics
from .resnet_config import ResNetConfig

__all__ = ["ResNet", "take_statistics"]


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _norm(config: ResNetConfig, channels: int) -> BatchNorm:
    return {"batch": BatchNorm, "sync_batch": SyncBatchNorm}[config.norm](channels, config.norm_eps)


class Skip(nn.Module):
    """Brings what skips a block to its shape."""

    def __init__(self, config: ResNetConfig, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convolution = _convolution(inputs, outputs, 1, stride)
        self.norm = _norm(config, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, outputs, H / stride, W / stride]."""
        return self.norm(self.convolution(x))


class Block(nn.Module):
    """Two 3 x 3 convolutions, added to what they are given."""

    def __init__(self, config: ResNetConfig, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        self.first, self.first_norm = _convolution(inputs, middle, 3, stride), _norm(config, middle)
        self.last, self.last_norm = _convolution(middle, middle, 3), _norm(config, middle)
        changes = stride != 1 or inputs != middle
        self.skip = Skip(config, inputs, middle, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, middle, H / stride, W / stride]."""
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.last_norm(self.last(y)) + self.skip(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride) and 1 x 1 convolutions, added to what they are given."""

    def __init__(self, config: ResNetConfig, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        outputs = config.outputs(middle)
        self.first, self.first_norm = _convolution(inputs, middle, 1), _norm(config, middle)
        self.middle, self.middle_norm = _convolution(middle, middle, 3, stride), _norm(config, middle)
        self.last, self.last_norm = _convolution(middle, outputs, 1), _norm(config, outputs)
        changes = stride != 1 or inputs != outputs
        self.skip = Skip(config, inputs, outputs, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y = F.relu(self.first_norm(self.first(x)))
        y = F.relu(self.middle_norm(self.middle(y)))
        return F.relu(self.last_norm(self.last(y)) + self.skip(x))


class Stem(nn.Module):
    """From pixels to the width of the first stage."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.shrinks = config.stem == "imagenet"
        kernel, stride = (7, 2) if self.shrinks else (3, 1)
        self.convolution = _convolution(config.channels, config.width, kernel, stride)
        self.norm = _norm(config, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, c, H, W] -> [B, width, H / 4, W / 4], or as large as before."""
        x = F.relu(self.norm(self.convolution(x)))
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.shrinks else x


class ResNet(nn.Module):
    """Images to logits of their classes."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        kind = Bottleneck if config.bottleneck else Block
        stages: list[list[nn.Module]] = [[] for _ in config.stages]
        for name, inputs, middle, stride, _ in config.blocks():
            stages[int(name.split(".")[1])].append(kind(config, inputs, middle, stride))
        self.stem = Stem(config)
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        self.head = nn.Linear(config.features, config.num_classes)

    def forward(self, images_BcHW: Tensor, positions: Tensor | None = None) -> Tensor:
        """[B, c, H, W] -> [B, classes]. There are no positions."""
        x = self.stem(images_BcHW)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))
