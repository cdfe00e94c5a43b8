"""From labels to a topology: the same last step for every source."""

from collections.abc import Sequence
from dataclasses import dataclass

from .links import estimate, family_of, is_switched
from .value import FAST, Gpu, LinkKind, Nic, NumaNode, Topology


@dataclass(frozen=True, kw_only=True)
class Label:
    """What one cell of a matrix says."""

    kind: LinkKind
    num_nvlinks: int = 0

    def __str__(self) -> str:
        return f"NV{self.num_nvlinks}" if self.kind is LinkKind.NVLINK else str(self.kind)


SELF = Label(kind=LinkKind.SELF)
UNKNOWN = Label(kind=LinkKind.UNKNOWN)


def assemble(
    *,
    source: str,
    gpus: Sequence[Gpu],
    nics: Sequence[Nic],
    labels: Sequence[Sequence[Label]],
    numa_nodes: Sequence[NumaNode] = (),
    pci_only: bool = False,
    notes: Sequence[str] = (),
) -> Topology:
    """A topology with estimated figures; `labels` is square, GPUs first."""
    num_gpus = len(gpus)
    nvlinks = [
        [label.num_nvlinks if label.kind in FAST else 0 for label in row[:num_gpus]] for row in labels[:num_gpus]
    ]
    xgmi = any(label.kind is LinkKind.XGMI for row in labels for label in row)
    families = [family_of(gpu.model, nvlinks, xgmi=xgmi) for gpu in gpus]
    numa = [*(gpu.numa_node for gpu in gpus), *(nic.numa_node for nic in nics)]

    def slower(a: int, b: int) -> int:
        ours = [families[i] for i in (a, b) if i < num_gpus]
        return families.index(min(ours, key=lambda family: (family.nvlink_bytes_s, family.pcie))) if ours else 0

    links = tuple(
        tuple(
            estimate(
                label.kind,
                families[slower(i, j)],
                num_nvlinks=label.num_nvlinks,
                same_numa=numa[i] is not None and numa[i] == numa[j],
            )
            for j, label in enumerate(row)
        )
        for i, row in enumerate(labels)
    )
    return Topology(
        source=source,
        gpus=tuple(gpus),
        nics=tuple(nics),
        numa_nodes=tuple(numa_nodes),
        links=links,
        switched=not xgmi and is_switched(families[0], nvlinks),
        pci_only=pci_only,
        notes=tuple(notes),
    )
