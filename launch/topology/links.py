"""What a link is worth before anybody has measured it: bytes per second one way, and seconds for a hop.

The figures are NCCL 2.30's own (`src/graph/topo.h`, `topo.cc`, `tuning.cc`), which are what reaches a kernel and not
what the wire signals; XGMI's are RCCL's (`topo.h`). Latencies are those of `Simple`, the protocol of large messages.

| link | bytes/s one way | s |
| --- | --- | --- |
| NVLink, each | Pascal 18e9, Volta and A100 20e9, GA10x 12e9, Hopper 20.6e9, Blackwell 40.1e9 | 3.4e-6 |
| XGMI | MI200 36e9, MI300 48e9 | 3.4e-6 |
| PCIe x16 | gen 3 12e9, gen 4 24e9, gen 5 48e9, gen 6 96e9 | 5.7e-6 |
| through a CPU (PHB, NODE) | 5/6 of PCIe: 64-byte packets of Intel's root ports | 5.7e-6 |
| between sockets (SYS) | gen 3 10e9 (UPI), gen 4 16e9 (AMD), gen 5 22e9 (UPI) | 5.7e-6 |
| network | 400 Gb/s 50e9 | 14e-6 |
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .value import FAST, Link, LinkKind

NETWORK_BYTES_S = 50e9
NETWORK_LATENCY_S = 14e-6
_NVLINK_LATENCY_S = 3.4e-6
_PCIE_LATENCY_S = 5.7e-6
_PCIE_BYTES_S = {3: 12e9, 4: 24e9, 5: 48e9, 6: 96e9}
_BETWEEN_SOCKETS_BYTES_S = {3: 10e9, 4: 16e9, 5: 22e9, 6: 40e9}
_THROUGH_CPU = 5 / 6


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a generation of GPUs has for links."""

    nvlink_bytes_s: float
    nvlinks: int
    """Most NVLinks of one GPU: more in a row of the matrix, and they go through a switch."""
    pcie: int


_PASCAL = Family(nvlink_bytes_s=18e9, nvlinks=4, pcie=3)
_VOLTA = Family(nvlink_bytes_s=20e9, nvlinks=6, pcie=3)
_A100 = Family(nvlink_bytes_s=20e9, nvlinks=12, pcie=4)
_GA10X = Family(nvlink_bytes_s=12e9, nvlinks=4, pcie=4)
_HOPPER = Family(nvlink_bytes_s=20.6e9, nvlinks=18, pcie=5)
_BLACKWELL = Family(nvlink_bytes_s=40.1e9, nvlinks=18, pcie=5)
_MI200 = Family(nvlink_bytes_s=36e9, nvlinks=8, pcie=4)
_MI300 = Family(nvlink_bytes_s=48e9, nvlinks=7, pcie=5)
_MODELS = (
    (r"B[123]00|GB[123]00|RTX PRO", _BLACKWELL),
    (r"RTX 50\d\d", Family(nvlink_bytes_s=40.1e9, nvlinks=0, pcie=5)),
    (r"H[128]00|H20\b|GH200", _HOPPER),
    (r"A100|A800|A30\b|PG509", _A100),
    (r"A40\b|A10\b|A16\b|A[2456]\d00|A[24]\b|30[5-9]0|40[5-9]0|\bL4\b|L40|L20\b|Ada", _GA10X),
    (r"V100|TITAN V|GV100|T4\b|20[678]0|RTX [568]000|TITAN RTX", _VOLTA),
    (r"P100|P40|P4\b|K80|M40|M60|10[678]0", _PASCAL),
    (r"MI2\d\d", _MI200),
    (r"MI3\d\d", _MI300),
)


def family_of(model: str | None, nvlinks: Sequence[Sequence[int]], *, xgmi: bool = False) -> Family:
    """The generation, from a model's name, or else from how many NVLinks there are between which GPUs.

    Without a name NV18 is taken for Hopper, NV4 to one neighbour alone for a bridge of GA10x, and nothing for PCIe 4.
    """
    for pattern, family in _MODELS:
        if model is not None and re.search(pattern, model):
            return family
    if xgmi:
        return _MI300
    most = max((number for row in nvlinks for number in row), default=0)
    if most > 12:
        return _HOPPER
    if most > 6:
        return _A100
    partners = max((sum(number > 0 for number in row) for row in nvlinks), default=0)
    if most == 4:
        return _GA10X if partners == 1 else _A100
    return _VOLTA if most else _A100


def is_switched(family: Family, nvlinks: Sequence[Sequence[int]]) -> bool:
    """Whether the NVLinks go through a switch: a GPU would otherwise have more of them than its generation has."""
    return any(sum(row) > family.nvlinks for row in nvlinks)


def estimate(kind: LinkKind, family: Family, *, num_nvlinks: int = 0, same_numa: bool = False) -> Link:
    """A link of a kind; `same_numa`: the NUMA nodes of the two are known and equal, whatever the label says."""
    if kind in FAST:
        lanes = num_nvlinks or 1
        return Link(
            kind=kind,
            num_nvlinks=num_nvlinks,
            bandwidth_bytes_s=lanes * family.nvlink_bytes_s,
            latency_s=_NVLINK_LATENCY_S,
        )
    pcie = _PCIE_BYTES_S[family.pcie]
    if kind is LinkKind.SELF:
        return Link(kind=kind, bandwidth_bytes_s=float("inf"), latency_s=0.0)
    if kind in (LinkKind.PHB, LinkKind.NODE) or same_numa:
        bandwidth = pcie * _THROUGH_CPU
    elif kind in (LinkKind.SYS, LinkKind.UNKNOWN):
        bandwidth = min(pcie * _THROUGH_CPU, _BETWEEN_SOCKETS_BYTES_S[family.pcie])
    else:
        bandwidth = pcie
    return Link(kind=kind, bandwidth_bytes_s=bandwidth, latency_s=_PCIE_LATENCY_S)
