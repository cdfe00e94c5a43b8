"""The all-to-alls of expert parallelism. Shapes: M rows of width D, E experts, R ranks along ep, L = E/R experts."""

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.tensor import Shard, distribute_tensor

from ..mesh import Axis

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from ..facts import ComputeExperts


def spread(experts: nn.Module, mesh: "DeviceMesh", *, sliced: bool) -> None:
    """Give each rank along ep its experts; if tp slices matrices, a slice of the width of each; in place.

    The weights may be on the meta device; else every rank must hold the same ones.
    """
    over = mesh[Axis.EP, Axis.TP] if sliced else mesh[Axis.EP]
    for name, width_dim in (("gate", 1), ("up", 1), ("down", 2)):
        placements = [Shard(0), Shard(width_dim)] if sliced else [Shard(0)]
        whole = cast(nn.Parameter, getattr(experts, name))
        part = distribute_tensor(whole.detach(), over, placements, src_data_rank=None)
        setattr(experts, name, nn.Parameter(part, requires_grad=whole.requires_grad))


class Exchange(nn.Module):
    """Sends rows to the ranks of their experts and returns what those make of them."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group

    @torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]
    def forward(self, x_MD: Tensor, counts_E: Tensor, compute: "ComputeExperts") -> Tensor:
        """Rows sorted by expert [M, D], of all experts -> their results in the same order.

        The host waits once for the counts, because an all-to-all must know how much goes where.
        """
        sent_RL = counts_E.view(self.group.size(), -1)
        received_RL = torch.empty_like(sent_RL)
        dist.all_to_all_single(received_RL, sent_RL.contiguous(), group=self.group)
        sent, received = torch.stack([sent_RL.sum(1), received_RL.sum(1)]).tolist()

        rows_MD = self._swap(x_MD, received, sent)
        # They come sorted by rank, and by expert within each; products want all rows of an expert together.
        num_local = received_RL.shape[1]
        expert_L = torch.arange(num_local, device=x_MD.device).repeat(self.group.size())
        expert_M = expert_L.repeat_interleave(received_RL.flatten(), output_size=sum(received))
        order_M = expert_M.argsort(stable=True)
        place_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
        out_MD = compute(rows_MD[order_M], received_RL.sum(0))
        return self._swap(out_MD[place_M], sent, received)

    def _swap(self, x_MD: Tensor, to_get: list[int], to_send: list[int]) -> Tensor:
        """Rows in the order of the ranks they go to -> rows in the order of the ranks they come from."""
        swap: Any = all_to_all_single_autograd
        return swap(x_MD.contiguous(), to_get, to_send, self.group)
