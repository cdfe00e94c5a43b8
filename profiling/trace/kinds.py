"""What an event of a trace is: decided once from its category and its name."""

import re
from enum import StrEnum


class Kind(StrEnum):
    """What an event is."""

    COMPUTE = "compute"
    """A kernel that computes."""
    COMMUNICATION = "communication"
    """A kernel that exchanges data with other ranks."""
    MEMORY = "memory"
    """A copy, or a fill, by or of a device."""
    SYNC = "sync"
    """A record that something waited for a device (`cuda_sync`); nothing runs in it."""
    LAUNCH = "launch"
    """A call of the device's runtime or driver on the host."""
    OPERATOR = "operator"
    """An operator of PyTorch on the host."""
    ANNOTATION = "annotation"
    """A range that a program marked, on the host."""
    DEVICE_ANNOTATION = "device annotation"
    """The same range on a device's timeline: from its first kernel to its last."""
    PYTHON = "python"
    """A call of a Python function."""
    COUNTERS = "counters"
    """A range in which hardware counters were read."""
    OTHER = "other"
    """Anything else, the range of the whole trace among it."""


ON_DEVICE = (Kind.COMPUTE, Kind.COMMUNICATION, Kind.MEMORY)
"""What occupies a device."""

COMMUNICATION_KERNEL = re.compile(
    r"nccl|rccl|hccl|oneccl|nvshmem|symm_mem|multimem_|cross_device_reduce|deep_?ep|(one|two)_shot_(all_?)?reduce",
    re.IGNORECASE,
)

_BY_CATEGORY = {
    "gpu_memcpy": Kind.MEMORY,
    "gpu_memset": Kind.MEMORY,
    "memcpy": Kind.MEMORY,
    "memset": Kind.MEMORY,
    "cuda_sync": Kind.SYNC,
    "xpu_sync": Kind.SYNC,
    "cuda_runtime": Kind.LAUNCH,
    "cuda_driver": Kind.LAUNCH,
    "runtime": Kind.LAUNCH,
    "driver": Kind.LAUNCH,
    "xpu_runtime": Kind.LAUNCH,
    "xpu_driver": Kind.LAUNCH,
    "mtia_runtime": Kind.LAUNCH,
    "privateuse1_runtime": Kind.LAUNCH,
    "privateuse1_driver": Kind.LAUNCH,
    "glow_runtime": Kind.LAUNCH,
    "cpu_op": Kind.OPERATOR,
    "operator": Kind.OPERATOR,
    "user_annotation": Kind.ANNOTATION,
    "gpu_user_annotation": Kind.DEVICE_ANNOTATION,
    "python_function": Kind.PYTHON,
    "python_func": Kind.PYTHON,
    "cuda_profiler_range": Kind.COUNTERS,
}
_MTIA = "mtia_ccp_events"
_KERNELS = ("kernel", _MTIA, "gpu_op")


def kind_of(category: str | None, name: str | None) -> Kind:
    """What an event of this category and name is."""
    lower = (category or "").lower()
    if lower in _KERNELS:
        if name and COMMUNICATION_KERNEL.search(name):
            return Kind.COMMUNICATION
        if lower == _MTIA and name and name.startswith(("dma", "event_")):
            # Of everything that this device's processor does: `dma_request`, and waiting for and recording of events.
            return Kind.MEMORY if name.startswith("dma") else Kind.SYNC
        return Kind.MEMORY if name and name.lower().startswith(("memcpy", "memset")) else Kind.COMPUTE
    return _BY_CATEGORY.get(lower, Kind.OTHER)
