"""Hosts in network namespaces of this machine: each has a name, an address and a link to one switch, which is a bridge
in a namespace of its own. Nothing leaves them; everything is taken down at the end.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NETWORK = "10.77.0"
CARD = "eth0"


def why_not() -> str:
    """Why this machine cannot do it; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces want root"
    missing = [name for name in ("ip", "tc", "unshare") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found; install iproute2 and util-linux"
    probe = f"sl{os.getpid()}p"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return ""


def _etc(namespace: str) -> Path:
    return Path("/etc/netns") / namespace


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Host:
    name: str
    namespace: str
    addresses: tuple[str, ...]

    def command(self, words: Sequence[str], *, nice: int = 0) -> list[str]:
        """The words, run on this host under its name."""
        renamed = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, "nice", "-n", str(nice), *renamed, *words]

    def shape(self, device: str, bits_s: float) -> None:
        """Let so much through a device, one way."""
        rate = ["rate", f"{bits_s:.0f}bit", "burst", f"{max(131_072, int(bits_s / 8 * 0.002))}", "latency", "2s"]
        words = ["ip", "netns", "exec", self.namespace, "tc", "qdisc", "replace", "dev", device, "root", "tbf", *rate]
        subprocess.run(words, check=True, capture_output=True, text=True)

    def sent_bytes(self, device: str = CARD) -> int:
        """Through a device, since it exists."""
        words = ["ip", "netns", "exec", self.namespace, "cat", "/proc/net/dev"]
        table = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        line = next(line for line in table.splitlines() if line.strip().startswith(f"{device}:"))
        return int(line.split(":")[1].split()[8])


@contextlib.contextmanager
def hosts(addresses: Mapping[str, Sequence[int]]) -> Generator[dict[str, Host]]:
    """Hosts by name, each with addresses in 10.77.0.0/24."""
    base = f"sl{os.getpid()}"
    switch = f"{base}s"
    made: list[str] = []
    try:
        for namespace in (switch, *(f"{base}h{i}" for i in range(len(addresses)))):
            _ip("netns", "add", namespace)
            made.append(namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        found: dict[str, Host] = {}
        for i, (name, numbers) in enumerate(addresses.items()):
            own, port = f"{base}h{i}", f"p{i}"
            _ip("-n", own, "link", "add", CARD, "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "br0", "up")
            for number in numbers:
                _ip("-n", own, "addr", "add", f"{NETWORK}.{number}/24", "dev", CARD)
            _ip("-n", own, "link", "set", CARD, "up")
            names = [f"{NETWORK}.{numbers[0]} {name}" for name, numbers in addresses.items()]
            etc = _etc(own)  # `ip netns exec` puts what lies there in the place of /etc
            etc.mkdir(parents=True)
            (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
            found[name] = Host(name, own, tuple(f"{NETWORK}.{number}" for number in numbers))
        yield found
    finally:
        for namespace in reversed(made):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
            shutil.rmtree(_etc(namespace), ignore_errors=True)


@dataclass
class Agents:
    """torchruns of one job, one process group each."""

    nice: int = 0
    running: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, host: Host, address: str, job: Sequence[str], *, endpoint: str, num_agents: int,
              ranks: int = 1, environment: Mapping[str, str] | None = None, **options: str) -> None:  # fmt: skip
        """One torchrun; it counts among the others by its address."""
        words = [sys.executable, "-P", "-m", "torch.distributed.run",
                 f"--nnodes={num_agents}", f"--nproc-per-node={ranks}",
                 "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=job", f"--local-addr={address}",
                 *(f"--{key.replace('_', '-')}={value}" for key, value in options.items()),
                 "-m", "stepladder", *job]  # fmt: skip
        given = os.environ | {"GLOO_SOCKET_IFNAME": CARD, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.running.append(
            subprocess.Popen(
                host.command(words, nice=self.nice),
                env=given | dict(environment or {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )

    def wait(self, timeout_s: float) -> list[tuple[int, str]]:
        """Exit code and output of each."""
        try:
            return [(process.returncode, out) for process in self.running
                    for out in [process.communicate(timeout=timeout_s)[0]]]  # fmt: skip
        finally:
            self.kill()

    def kill(self) -> None:
        """End every agent and its workers at once."""
        for process in self.running:
            for pid in (*descendants(process.pid), process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.running:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.running.clear()


def descendants(pid: int) -> list[int]:
    """All processes below one, children first."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found
