"""Real processes take their seats: through a real store, with real CPUs, in a real run."""

import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stepladder.launch.errors import UsageError
from stepladder.launch.placement.apply import bind_cpus, read_plan
from stepladder.launch.placement.meeting import Met, meet
from stepladder.launch.placement.reports import Report, report_here
from stepladder.launch.ranks import Ranks
from stepladder.profiling.trace.spelling import printable


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


@pytest.mark.parametrize(
    ("keys", "value", "sentence"),
    [
        (("seats", 0, "gpu"), math.inf, "the placement is damaged (gpu = inf)"),
        (("seats", 0, "gpu"), 10**4000, "the placement is damaged ("),
        (("seats", 0, "gpu"), 0.9, "the placement is damaged (gpu = 0.9)"),
        (("seats", 0, "gpu"), -3, "the placement is damaged (gpu = -3)"),
        (("seats", 0, "rank"), False, "the placement is damaged (rank = False)"),
        (("seats", 0, "host"), 7, "the placement is damaged (host = 7)"),
        (("seats", 0, "cpus"), "foo", "the placement is damaged (cpus = foo)"),
        (("seats", 0, "cpus"), "0-99999999999", "the placement is damaged (cpus = 0-99999999999)"),
        (("seats", 0, "uuid"), ["\x1b[31m"], "the placement is damaged (uuid = ["),
        (("seconds",), 10**400, "the placement is damaged ("),
        (("seconds",), math.nan, "the placement is damaged (seconds = nan)"),
        (("bound_s",), -1, "the placement is damaged (bound_s = -1)"),
        (("exact",), "no", "the placement is damaged (exact = no)"),
        (("costs",), [{"name": 1}], "the placement is damaged (name = 1)"),
        (("costs",), [{"name": "x", "weight": None}], "the placement is damaged (weight = None)"),
        (("mesh", "dp_shard"), 10**9, "2 seats are not those of ranks 0 to 999999999"),
        (("mesh", "dp_shard"), 0, "the placement is damaged (mesh.dp_shard = 0)"),
        (("mesh",), {f"a{i}": 10**9 for i in range(5000)}, "the placement is damaged (a mesh of 5000 axes)"),
    ],
)
def test_a_plan_edited_by_hand_is_one_sentence(tmp_path: Path, keys: Sequence[Any], value: Any, sentence: str) -> None:
    seats = [{"rank": i, "host": "a", "gpu": i, "uuid": None, "numa_node": None, "cpus": "", "nic": None}
             for i in range(2)]  # fmt: skip
    whole: Any = {"format": 1, "mesh": {"dp_shard": 2}, "seconds": 1, "rank_order_s": 1, "bound_s": 1, "exact": True,
                  "costs": [], "seats": seats}  # fmt: skip
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(whole))
    assert read_plan(str(path)) is not None
    at = whole
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    path.write_text(json.dumps(whole))
    with pytest.raises(UsageError) as caught:
        read_plan(str(path))
    assert len(caught.value.problems) == 1
    assert sentence in caught.value.problems[0]
    assert printable(caught.value.problems[0]) == caught.value.problems[0]


_LOADER = """
import os, sys
import torch
from stepladder.launch.placement.apply import bind_cpus
from stepladder.strategies.base import Batch
from stepladder.trainer.data.config import LoaderConfig
from stepladder.trainer.data.feed import host_batches
from stepladder.trainer.data.order import Share

class WhereAmI:
    def __len__(self):
        return 64
    def __getitems__(self, indices):
        told = open("/proc/self/status").read().split("Cpus_allowed_list:")[1].split()[0]
        return Batch(torch.tensor([int(told), os.getpid()]), torch.zeros(1))

bind_cpus((int(sys.argv[1]),))
share = Share(num_samples=64, microbatch_size=1, num_microbatches=1, rank=0, num_ranks=1, seed=0)
batches = host_batches(WhereAmI(), share, LoaderConfig(num_workers=2), first_step=0, pin=False)
found = [next(batches).inputs.tolist() for _ in range(4)]
assert len({pid for _, pid in found}) == 2 and os.getpid() not in {pid for _, pid in found}
print(*{cpu for cpu, _ in found}, flush=True)
os._exit(0)
"""


def test_loader_workers_run_on_the_cpus_of_their_rank() -> None:
    cpu = max(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LOADER, str(cpu)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.split() == [str(cpu)], done.stderr


@pytest.mark.slow
def test_a_run_follows_a_plan_that_turns_its_ranks_round_and_learns_the_same(
    recipe_file: Callable[..., Path], tmp_path: Path, stepladder: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    recipe = recipe_file("\n[strategies.ddp]\n")
    cpus = sorted(os.sched_getaffinity(0))
    seats = [{"rank": rank, "host": "here", "gpu": 1 - rank, "uuid": None, "numa_node": None, "nic": None,
              "cpus": str(cpus[-1 - rank % len(cpus)])} for rank in range(2)]  # fmt: skip
    figures = {"seconds": 1.0, "rank_order_s": 1.0, "bound_s": 1.0, "exact": True, "costs": []}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"format": 1, "mesh": {"dp_replicate": 2}, "seats": seats, **figures}))
    losses: list[list[float]] = []
    for out, more in (("plain", []), ("planned", ["--placement", plan])):
        folder = tmp_path / out
        done = stepladder("run", recipe, "--ranks", 2, "--out", folder, *more, STEPLADDER_HOST="here")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines])
    assert losses[0] == losses[1]
    assert f"placement   as planned in {plan}" in done.stdout
    assert "checked: 2 ranks on their hosts and devices; CPUs of 2 of them bound" in done.stdout
    left = json.loads((tmp_path / "planned" / "placement.json").read_text())["seats"]
    assert [(seat["rank"], seat["gpu"], seat["cpus"]) for seat in left] == [
        (rank, 1 - rank, seats[rank]["cpus"]) for rank in range(2)
    ]


@pytest.mark.parametrize("under_torchrun", [True, False])
def test_sigterm_from_the_scheduler_and_from_torchrun_is_one_request(under_torchrun: bool) -> None:
    script = """
import os, signal
from stepladder.launch.ranks import StopRequest
stop = StopRequest()
stop.listen()
os.kill(os.getpid(), signal.SIGTERM)
assert stop.requested()
os.kill(os.getpid(), signal.SIGTERM)
print("still here", int(stop.exit_code))
"""
    given = dict(os.environ) | ({"TORCHELASTIC_RUN_ID": "12"} if under_torchrun else {})
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=given, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.returncode) == (("still here 143\n", 0) if under_torchrun else ("", -15))
