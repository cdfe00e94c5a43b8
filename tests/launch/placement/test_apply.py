"""Real processes take their seats: through a real store, with real CPUs, in a real run."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stepladder.launch.errors import UsageError
from stepladder.launch.placement.apply import bind_cpus, read_plan
from stepladder.launch.placement.meeting import Met, meet
from stepladder.launch.placement.reports import Report, report_here
from stepladder.launch.ranks import Ranks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_everybody_gets_the_answer_for_the_process_that_is_there_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store still holds a report, and a seat, of a worker that was killed in an earlier round."""
    from torch.distributed import TCPStore

    port = free_port()
    server = TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)
    stale = Report(token="dead", host="gone", boot_id="", group=0, local_rank=0, visible=None, allowed=())
    server.set("stepladder/placement/at/1", stale.to_text())
    server.set("stepladder/placement/seat/dead", json.dumps({"rank": 7}))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    found: dict[int, Met] = {}

    def come(rank: int) -> None:
        report = report_here(on_gpus=False, local_rank=rank, environment={"STEPLADDER_HOST": f"host{rank}"})
        ranks = Ranks(rank=rank, local_rank=rank, num_ranks=3)
        found[rank] = meet(ranks, report, lambda all_: [{"host": each.host} for each in all_])

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(3)]
    for thread in (threads[0], threads[2], threads[1]):
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {rank: met.answer for rank, met in found.items()} == {rank: {"host": f"host{rank}"} for rank in range(3)}


def test_a_report_survives_the_store() -> None:
    report = report_here(on_gpus=False, local_rank=0, environment={})
    assert Report.of_text(report.to_text()) == report
    assert set(report.allowed) == os.sched_getaffinity(0)


_BIND = """
import multiprocessing, os, sys, threading
from stepladder.launch.placement.apply import bind_cpus
waiting = threading.Event()
other = threading.Thread(target=waiting.wait, daemon=True)
other.start()
bound = bind_cpus((int(sys.argv[1]),))
child = os.popen("grep Cpus_allowed_list /proc/self/status").read().split()[1]
threads = [open(f"/proc/self/task/{each}/status").read().split("Cpus_allowed_list:")[1].split()[0]
           for each in os.listdir("/proc/self/task")]
print(bound[0], child, *threads)
"""


def test_all_threads_and_children_are_bound_to_the_cpus_of_the_seat() -> None:
    cpu = max(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-P", "-c", _BIND, str(cpu)], capture_output=True, text=True, check=True, timeout=60
    )
    said = done.stdout.split()
    assert len(said) >= 4
    assert set(said) == {str(cpu)}


def test_cpus_that_may_not_be_used_are_not_insisted_on() -> None:
    before = os.sched_getaffinity(0)
    assert bind_cpus(()) == ()
    assert bind_cpus((max(before) + 1000,)) == ()
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("", "the placement is damaged"),
        ("[]", "this is no placement of format 1"),
        ('{"format": 1}', "the placement is damaged ('seats')"),
    ],
)
def test_a_bad_plan_is_one_sentence_before_anything_starts(
    tiny: Path,
    tmp_path: Path,
    text: str | None,
    sentence: str,
    stepladder: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_plan(str(path))
    assert len(caught.value.problems) == 1
    assert sentence in caught.value.problems[0]
    if text is None:
        done = stepladder("run", tiny, "--placement", path, "--out", tmp_path / "run")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert not (tmp_path / "run").exists()
