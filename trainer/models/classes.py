"""The loss of models that name the class of an image."""

import torch.nn.functional as F
from torch import Tensor

from ...strategies.base import Batch


def class_loss(logits_BC: Tensor, batch: Batch) -> Tensor:
    """Sum of the cross entropies of the images [B], in float32; labels of -100 do not count."""
    return F.cross_entropy(logits_BC.float(), batch.labels, ignore_index=-100, reduction="sum")
