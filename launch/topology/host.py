"""The topology of this machine, from the best source that it has.

NVML through `nvidia-ml-py` if that is installed, else `nvidia-smi topo -m` with `nvidia-smi -L`, else `rocm-smi`.
Without a GPU, and where the driver does not answer, one sentence says so. NUMA nodes and cores are the kernel's own.
"""

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import sysfs
from .errors import TopologyError, shown
from .matrix import read_topology
from .nvml import load_nvml, read_nvml
from .value import Topology

_PATIENCE_S = 20.0
_MIG = re.compile(r"\s+MIG \S+ +Device +\d+")
_LINK = re.compile(r"\s*Link (\d{1,2}): <?(inactive|[\d.]+ GB/s)>?")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command said."""

    code: int
    text: str
    """Its output; its errors if there was none."""


Runner = Callable[[Sequence[str]], Answer | None]
"""Runs a command; None if there is no such command or it does not end."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine that we are on."""

    topology: Topology
    cpus: sysfs.Cpus
    environment: Mapping[str, str]
    """What matters of the environment: the variables that begin with CUDA_, HIP_, ROCR_ or NCCL_."""


def run_command(command: Sequence[str]) -> Answer | None:
    """Run a command of the driver's, with an end to patience."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Answer(code=done.returncode, text=done.stdout if done.stdout.strip() else done.stderr)


def read_host(
    environment: Mapping[str, str], *, run: Runner = run_command, root: Path = sysfs.ROOT, nvml: Any = "installed"
) -> Host:
    """The machine that we are on. Raises: TopologyError if it shows no GPU, one sentence."""
    own = {key: value for key, value in environment.items() if key.startswith(("CUDA_", "HIP_", "ROCR_", "NCCL_"))}
    library = load_nvml() if nvml == "installed" else nvml
    topology = _from_nvml(library, run, root) if library is not None else _with_kernel(_from_tools(run), root)
    hidden = hidden_gpus(topology, own)
    if len(hidden) == len(topology.gpus):
        raise TopologyError(
            f"CUDA_VISIBLE_DEVICES = {shown(own.get('CUDA_VISIBLE_DEVICES', ''))}: it hides all of the "
            f"{len(hidden)} GPUs of this machine; unset it, or name some of them"
        )
    return Host(topology=topology, cpus=sysfs.cpus(root), environment=own)


def _from_nvml(library: Any, run: Runner, root: Path) -> Topology:
    """From NVML, or if that fails from the tools; if those fail too, NVML's reason is the better one."""
    try:
        return read_nvml(library, root)
    except TopologyError as error:
        try:
            return _with_kernel(_from_tools(run), root)
        except TopologyError:
            raise error from None


def _from_tools(run: Runner) -> Topology:
    answer = run(["nvidia-smi", "topo", "-m"])
    if answer is not None:
        names = run(["nvidia-smi", "-L"])
        listed = names.text if names is not None and names.code == 0 else ""
        topology = read_topology(answer.text or "nvidia-smi has failed", "nvidia-smi topo -m")
        topology = _with_models(topology, answer.text, listed)
        notes = [*topology.notes, *_mig_notes(listed), *_dead_links(run, topology)]
        return replace(topology, notes=tuple(notes))
    answer = run(["rocm-smi", "--showtopo"])
    if answer is not None:
        return read_topology(answer.text, "rocm-smi --showtopo")
    raise TopologyError(
        "this machine: neither nvidia-smi nor rocm-smi answers, so there is no GPU to see; "
        "give a file: `stepladder topo FILE`, made with `nvidia-smi topo -m` on the machine with the GPUs"
    )


def _with_models(topology: Topology, matrix: str, listed: str) -> Topology:
    """The same machine read again with the models' names, on which the estimates depend."""
    return read_topology(f"{listed}\n{matrix}", topology.source) if listed else topology


def _mig_notes(listed: str) -> list[str]:
    gpu, divided = "", list[str]()
    for line in listed.splitlines():
        match = re.match(r"GPU (\d{1,3}):", line)
        gpu = match[1] if match else gpu
        if _MIG.match(line) and gpu not in divided:
            divided.append(gpu)
    return [
        f"GPU{gpu} is divided by MIG: its parts reach no other GPU by NVLink or peer to peer; "
        f"switch MIG off (`nvidia-smi -i {gpu} -mig 0`) for more than one rank"
        for gpu in divided
    ]


def _dead_links(run: Runner, topology: Topology) -> list[str]:
    """GPUs of which some NVLinks are down."""
    if not any(link.num_nvlinks for row in topology.links for link in row):
        return []
    answer = run(["nvidia-smi", "nvlink", "-s"])
    return inactive_nvlinks(answer.text) if answer is not None and answer.code == 0 else []


def inactive_nvlinks(text: str) -> list[str]:
    """A sentence for each GPU with NVLinks that are down, from `nvidia-smi nvlink -s`, if others of it are up."""
    states: dict[str, list[bool]] = {}
    gpu = "?"
    for line in text.splitlines()[:20_000]:
        if match := re.match(r"GPU (\d{1,3}):", line):
            gpu = match[1]
        elif match := _LINK.match(line):
            states.setdefault(gpu, []).append(match[2] != "inactive")
    return [
        f"GPU{gpu}: {up.count(False)} of {len(up)} NVLinks are down; look at `nvidia-smi nvlink -e` and the bridges"
        for gpu, up in states.items()
        if any(up) and not all(up)
    ]


def _with_kernel(topology: Topology, root: Path) -> Topology:
    """The machine's NUMA nodes, and the adapters' own, put to what the tools said."""
    nodes = tuple(node for node in sysfs.numa_nodes(root) if node.cpus)
    known = {nic.device: nic for nic in sysfs.nics(root)}
    nics = tuple(
        replace(nic, numa_node=known[nic.device].numa_node, bus_id=known[nic.device].bus_id)
        if nic.device in known
        else nic
        for nic in topology.nics
    )
    return replace(topology, numa_nodes=nodes, nics=nics)


def hidden_gpus(topology: Topology, environment: Mapping[str, str]) -> list[int]:
    """Positions of the GPUs that CUDA_VISIBLE_DEVICES hides from this process."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None or "MIG-" in visible:  # parts of GPUs: which, only CUDA knows
        return []
    shown_gpus: set[int] = set()
    for each in (part.strip() for part in visible.split(",")):
        found = [
            i
            for i, gpu in enumerate(topology.gpus)
            if each == str(i) or (each.startswith("GPU-") and (gpu.uuid or "").startswith(each))
        ]
        if not found and not (each.startswith("GPU-") and not any(gpu.uuid for gpu in topology.gpus)):
            break  # CUDA reads the list up to the first entry that is no device
        shown_gpus.update(found or range(len(topology.gpus)))
    return [i for i in range(len(topology.gpus)) if i not in shown_gpus]
