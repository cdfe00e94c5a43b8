"""What a log line says, computed by hand with a clock that is told."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stepladder.trainer.loop import StepResult
from stepladder.trainer.metrics import Meter, MetricsFile, Record, duration, host_memory_gib, log_line, peak_flops

PEAKS = {
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA GH200 480GB": 989.4e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA A10G": 70e12,
    "AMD Instinct MI300X": 1307e12,
    "NVIDIA L40": None,
    "NVIDIA GB200": None,
    "NVIDIA A10": None,
    "NVIDIA H20": None,
    "NVIDIA GeForce RTX 4090": None,
    "": None,
}


def test_peaks_belong_to_the_whole_name_of_a_device() -> None:
    assert {name: peak_flops(name) for name in PEAKS} == PEAKS


def test_durations() -> None:
    cases = {0: "0:00", 59.4: "0:59", 59.6: "1:00", 61: "1:01", 3599.6: "1:00:00", 3661: "1:01:01", 360000: "100:00:00"}
    assert {seconds: duration(seconds) for seconds in cases} == cases


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "step": 20,
        "loss": 3.14159,
        "grad_norm": 1.5,
        "learning_rate": 3e-4,
        "tokens_seen": 1000,
        "tokens_per_s": 12345.6,
        "step_ms": 8.25,
        "data_wait_percent": 0.5,
        "memory_gib": 1.25,
        "mfu_percent": None,
        "elapsed_s": 10.0,
        "eta_s": 61.0,
    }
    return Record(**values | changes)


def test_a_record_is_one_line() -> None:
    assert log_line(record(), 200) == (
        "step  20/200  loss  3.1416  norm   1.500  lr 3.00e-04     12,346 tok/s      8.25 ms/step  "
        "data  0.5%  mem  1.25 GiB  eta 1:01"
    )
    line = log_line(record(grad_norm=None, mfu_percent=41.26), 200)
    assert "norm       -  " in line
    assert "GiB  mfu 41.3%  eta" in line


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr("time.perf_counter", moved)
    return moved


@pytest.fixture
def meter() -> Callable[..., Meter]:
    def make(**changes: Any) -> Meter:
        values: dict[str, Any] = {
            "num_steps": 100,
            "first_step": 0,
            "tokens_per_step": 500,
            "flops_per_token": 6e6,
            "peak": 1e9,
            "num_ranks": 2,
            "device": torch.device("cpu"),
            "reduce": lambda told: told * 2,  # as if both ranks had the same
            "waited_s": lambda: 0.0,
            "stop_requested": lambda: False,
            "write": lambda record: None,
        }
        return Meter(**values | changes)

    return make


def result(step: int, loss_sum: float = 750.0, grad_norm: float | None = 2.0) -> StepResult:
    norm = None if grad_norm is None else torch.tensor(grad_norm)
    return StepResult(step, torch.tensor(loss_sum), 500.0, norm, 1e-3)


def test_rates_are_those_of_the_interval_and_pauses_do_not_count(clock: Clock, meter: Callable[..., Meter]) -> None:
    written: list[Record] = []
    waited = [0.0]
    measured = meter(write=written.append, waited_s=lambda: waited[0])
    measured.start()
    clock.now, waited[0] = 110.0, 1.0
    assert not measured.look(result(5))
    paused_at = clock.now
    clock.now += 1000.0  # an evaluation
    measured.skip_pause(paused_at)
    clock.now, waited[0] = clock.now + 4.0, 4.0
    measured.look(result(7, loss_sum=500.0, grad_norm=None))

    first, second = written
    assert first.loss == 3.0
    assert first.grad_norm == 2.0
    assert (first.tokens_per_s, first.step_ms, first.data_wait_percent) == pytest.approx((250.0, 2000.0, 10.0))
    assert first.mfu_percent == pytest.approx(100 * (250 / 2) * 6e6 / 1e9)
    assert (first.elapsed_s, first.eta_s, first.tokens_seen) == pytest.approx((10.0, 95 * 2.0, 2500))
    assert second.loss == 2.0
    assert second.grad_norm is None
    assert (second.tokens_per_s, second.step_ms, second.data_wait_percent) == pytest.approx((250.0, 2000.0, 75.0))
    assert (second.elapsed_s, second.eta_s, second.tokens_seen) == pytest.approx((1014.0, 93 * 2.0, 3500))


def test_a_resumed_run_counts_its_own_steps(clock: Clock, meter: Callable[..., Meter]) -> None:
    written: list[Record] = []
    measured = meter(write=written.append, first_step=40, peak=None)
    measured.start()
    clock.now += 10
    measured.look(result(50))
    assert (written[0].step_ms, written[0].tokens_seen, written[0].mfu_percent) == (1000.0, 25_000, None)


def ranks_that_stop() -> list[bool]:
    """Rank 1 alone is asked to stop; what each rank answers."""
    from stepladder.launch.ranks import Ranks, sum_over_ranks

    rank = torch.distributed.get_rank()
    answers = []
    for asked in (False, True):
        measured = Meter(
            num_steps=9, first_step=0, tokens_per_step=1, flops_per_token=1, peak=None, num_ranks=2,
            device=torch.device("cpu"), reduce=sum_over_ranks(Ranks(rank=rank, local_rank=rank, num_ranks=2)),
            waited_s=lambda: 0.0, stop_requested=lambda asked=asked: asked and rank == 1, write=lambda record: None,
        )  # fmt: skip
        measured.start()
        answers.append(measured.look(StepResult(1, torch.tensor(1.0), 1.0, None, 1e-3)))
    everybody: list[Any] = [None, None]
    torch.distributed.all_gather_object(everybody, answers)
    return everybody


def test_a_wish_to_stop_reaches_all_ranks(run_ranks: Callable[..., Any]) -> None:
    assert run_ranks(ranks_that_stop, 2) == [[False, True], [False, True]]


def test_the_metrics_file_is_json_line_by_line_also_for_infinite_numbers(tmp_path: Path) -> None:
    metrics = MetricsFile(path=tmp_path / "metrics.jsonl")
    metrics.write(record())
    metrics.write(record(loss=float("nan"), grad_norm=float("inf"), eta_s=float("-inf")))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # before the file is closed

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    first, second = (json.loads(line, parse_constant=refuse) for line in lines)
    assert (first["kind"], first["step"], first["loss"]) == ("train", 20, 3.14159)
    assert (second["loss"], second["grad_norm"], second["eta_s"]) == ("nan", "inf", "-inf")
    MetricsFile(path=tmp_path / "metrics.jsonl").write(record(step=21))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3  # a resumed run appends


def test_host_memory_is_that_of_this_process() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    kib = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert host_memory_gib() == pytest.approx(kib / 2**20, rel=0.05)


def test_a_step_without_a_label_that_counts_has_no_loss(clock: Clock, meter: Callable[..., Meter]) -> None:
    written: list[Record] = []
    measured = meter(write=written.append)
    measured.start()
    clock.now = 110.0
    measured.look(StepResult(1, torch.tensor(0.0), torch.tensor(0.0), None, 1e-3))
    assert math.isnan(written[0].loss)
