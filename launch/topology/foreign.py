"""Texts that are no matrix: which they are, in one sentence with what to do."""

import re
from collections.abc import Sequence

_TELLS = (
    (
        r"NVIDIA-SMI has failed because it couldn't communicate",
        "nvidia-smi cannot talk to the driver; load it (`modprobe nvidia`) or run on a machine with a GPU",
    ),
    (
        r"Driver/library version mismatch",
        "the loaded driver and its library have different versions; reboot, or reload the driver",
    ),
    (r"Failed to initialize NVML", "NVML does not start (is the driver loaded, may this container see it?); mend that"),
    (r"No devices were found", "the driver sees no GPU; check the container's devices and `lspci`"),
    (
        r"Unable to determine the device handle|GPU is lost|Unknown Error",
        "a GPU has fallen off the bus; reboot, or take it out of the machine, then read again",
    ),
    (r"Insufficient Permissions", "this user may not ask the driver; ask as another, or mend the device files' modes"),
    (
        r"nvidia-smi[^\n]*(?:command not found|not found|not recognized|No such file)",
        "there is no nvidia-smi here; install the driver's tools, or give a file made on the machine with the GPUs",
    ),
    (
        r"(?:Invalid|Unrecognized) (?:combination|option|argument|device|input)",
        "nvidia-smi did not understand its arguments; run `nvidia-smi topo -m`",
    ),
    (
        r"MarsLink|^\s*GPU\d+\b.*\b(?:HT|MX)\b|Node Affinity",
        "this is the matrix of mx-smi (MetaX), whose links stepladder does not know; give that of NVIDIA or AMD GPUs",
    ),
    (
        r"topo(?:logy)? +-p2p|^\s*GPU0.*\b(?:CNS|GNS|TNS|OK)\b",
        "this says which GPUs can reach each other's memory (`topo -p2p`), not how they are connected; "
        "give the output of `nvidia-smi topo -m`",
    ),
    (
        r"^\s*Link \d+: ",
        "this is the state of NVLinks (`nvidia-smi nvlink -s`), not the matrix; "
        "give the output of `nvidia-smi topo -m`",
    ),
    (
        r"slurmd: Gres|Links=-1",
        "this is slurmd's list of devices (`slurmd -G`); give the output of `nvidia-smi topo -m`",
    ),
    (
        r"NVSMI LOG",
        "this is the log of `nvidia-smi -q`, which does not say how GPUs are connected; "
        "give the output of `nvidia-smi topo -m`",
    ),
    (
        r"NUMA node0 CPU|^\s*Architecture: ",
        "this is the output of lscpu, which has no GPUs; give the output of `nvidia-smi topo -m`",
    ),
    (r"Driver Version: .*CUDA Version", "this is the overview of nvidia-smi; give the output of `nvidia-smi topo -m`"),
    (r"<graphs? ", "these are the rings that NCCL chose (NCCL_GRAPH_DUMP_FILE); give its NCCL_TOPO_DUMP_FILE instead"),
)


def what_it_is(lines: Sequence[str]) -> str | None:
    """The sentence for a text that is known but no matrix; None if it is not known."""
    text = "\n".join(lines[:400])
    return next((said for pattern, said in _TELLS if re.search(pattern, text, re.MULTILINE)), None)
