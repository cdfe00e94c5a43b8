"""A Slurm of two nodes on this machine: a slurmd in each of two network namespaces, slurmctld beside the first."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import netns

NODES = ("node1", "node2")
_CONFIG = """
ClusterName=stepladder
SlurmctldHost=node1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MailProg=/bin/true
PropagateResourceLimits=NONE
SchedulerParameters=sched_interval=5,batch_sched_delay=0
NodeName=node1 NodeAddr={first} CPUs=2 State=UNKNOWN
NodeName=node2 NodeAddr={second} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why there can be none; empty if there can."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found; tests/slurm/install.sh installs them on Debian"
    return netns.why_not()


@dataclass(frozen=True)
class Slurm:
    folder: Path
    login: netns.Host

    @property
    def environment(self) -> dict[str, str]:
        given = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "GLOO_SOCKET_IFNAME": netns.CARD,
            "OMP_NUM_THREADS": "1",
        }
        return os.environ | given | {"PYTHONWARNINGS": "ignore"}

    def call(self, *words: object) -> "subprocess.CompletedProcess[str]":
        """A command on the first node."""
        return subprocess.run(
            self.login.command([str(each) for each in words]),
            env=self.environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def ask(self, *words: object) -> str:
        done = self.call(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        said = self.ask("scontrol", "show", "job", job)
        return said.split("JobState=")[1].split()[0]

    def wait(self, job: str, timeout_s: float = 240) -> str:
        """Until the job has ended: in which state."""
        deadline = time.monotonic() + timeout_s
        while (state := self.state(job)) in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"):
            assert time.monotonic() < deadline, f"job {job} is still {state}\n{self.ask('squeue')}"
            time.sleep(0.5)
        return state


@contextlib.contextmanager
def slurm(folder: Path) -> Generator[Slurm]:
    """The cluster, up and idle."""
    with netns.hosts({"node1": (1,), "node2": (2,)}) as hosts:
        first, second = (hosts[name] for name in NODES)
        made = Slurm(folder, first)
        (folder / "state").mkdir(parents=True)
        text = _CONFIG.format(folder=folder, first=first.addresses[0], second=second.addresses[0])
        (folder / "slurm.conf").write_text(text)
        # Nothing is confined by cgroups, which a namespace does not see; `autodetect` would insist on them.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for name in NODES:
            (folder / f"spool.{name}").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
        munge += [
            f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file", "seed-file")
        ]
        running: list[subprocess.Popen[bytes]] = []

        def start(words: list[str]) -> None:
            log = (folder / "daemons.log").open("ab")
            running.append(
                subprocess.Popen(words, env=made.environment, stdout=log, stderr=log, start_new_session=True)
            )

        try:
            start(munge)
            time.sleep(1)
            start(first.command(["slurmctld", "-D"]))
            for name, host in zip(NODES, (first, second), strict=True):
                start(host.command(["slurmd", "-D", "-N", name]))
            deadline = time.monotonic() + 60
            while made.call("sinfo", "-h", "-o", "%T").stdout.split() != ["idle"]:
                assert time.monotonic() < deadline, (
                    f"{made.call('sinfo').stdout}\n{(folder / 'daemons.log').read_text()}"
                )
                time.sleep(0.5)
            yield made
        finally:
            for process in reversed(running):
                for pid in (*netns.descendants(process.pid), process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)
            _end_steps(folder)
            for process in running:
                process.wait()


def _end_steps(folder: Path) -> None:
    """Steps live on when their slurmd ends."""
    mark = f"SLURM_CONF={folder}/slurm.conf".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            pid = int(environment.parent.name)
            if pid != os.getpid() and mark in environment.read_bytes():
                os.kill(pid, 9)
