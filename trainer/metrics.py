"""What a log line says: loss, gradient norm, throughput, data wait, memory, MFU, time to go.

[Note: MFU]
Model FLOPs utilisation = tokens/s on a device x model FLOPs a token / peak of the device. The FLOPs follow the model's
stated convention; the peak is always the dense BF16 one, whatever the precision of the run. A device that is not in the
table has no MFU: a guess would be worse than nothing.
"""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..profiling.capture import publish
from ..strategies.norms import whole_norm
from .loop import StepResult

if TYPE_CHECKING:
    import torch

# Dense BF16 peak in FLOP/s by the device's name, most specific first. Source: NVIDIA and AMD data sheets.
_PEAKS = (
    ("B200", 2250e12),
    ("H200 NVL", 835e12),
    ("H200", 989.4e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("GH200", 989.4e12),
    ("H100", 989.4e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("MI300X", 1307e12),
    ("MI250X", 191.5e12),  # of one of its two dies, which is what torch sees
)


STOP_WITHIN_S = 5.0
"""About how long a run of several ranks takes to agree that it was asked to stop, when steps are short."""


def peak_flops(device_name: str) -> float | None:
    """Dense BF16 peak of a device, FLOP/s; None if it is not known."""
    # Whole words: an L4 is no L40, and a B200 alone is not a GB200.
    return next((peak for name, peak in _PEAKS if re.search(rf"\b{name}\b", device_name, re.IGNORECASE)), None)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of `metrics.jsonl`. Times are of the interval since the line before; rates are of all ranks together."""

    step: int
    loss: float
    """Nats a token in this step, over all ranks; NaN if none of its labels counts."""
    grad_norm: float | None
    learning_rate: float
    tokens_seen: int
    tokens_per_s: float
    step_ms: float
    data_wait_percent: float
    """Part of the time in which rank 0 waited for data."""
    memory_gib: float
    """Peak memory of rank 0: reserved by the allocator on CUDA, resident set of the process on CPU."""
    mfu_percent: float | None
    elapsed_s: float
    eta_s: float
    kind: str = "train"


def log_line(record: Record, num_steps: int, unit: str = "token") -> str:
    """A record as one readable line."""
    norm = "      -" if record.grad_norm is None else f"{record.grad_norm:7.3f}"
    mfu = "" if record.mfu_percent is None else f"  mfu {record.mfu_percent:4.1f}%"
    return (
        f"step {record.step:>{len(str(num_steps))}}/{num_steps}  loss {record.loss:7.4f}  norm {norm}  "
        f"lr {record.learning_rate:.2e}  {record.tokens_per_s:>9,.0f} {unit[:3]}/s  {record.step_ms:8.2f} ms/step  "
        f"data {record.data_wait_percent:4.1f}%  mem {record.memory_gib:5.2f} GiB{mfu}  eta {duration(record.eta_s)}"
    )


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def host_memory_gib() -> float:
    """Peak resident set of this process."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def device_memory_gib(device: "torch.device") -> float:
    """Peak memory of this rank: reserved by the allocator on CUDA, resident set of the process on CPU."""
    if device.type != "cuda":
        return host_memory_gib()
    import torch

    return torch.cuda.max_memory_reserved(device) / 2**30


@dataclass(kw_only=True)
class Meter:
    """Turns step results into records, at the interval of the log. All ranks call it; rank 0 writes."""

    num_steps: int
    first_step: int
    tokens_per_step: int
    flops_per_token: float
    peak: float | None
    num_ranks: int
    device: "torch.device"
    reduce: Callable[["torch.Tensor"], "torch.Tensor"]
    """Sum over all ranks."""
    waited_s: Callable[[], float]
    """Time blocked in the loader since the beginning."""
    stop_requested: Callable[[], bool]
    write: Callable[[Record], None]
    loss_counts: float = 1.0
    """0 if another rank adds the very same sum of losses."""
    paused_s: float = field(default=0.0, init=False)
    """Time left out of all intervals."""
    _start_s: float = field(default=0.0, init=False)
    _last_s: float = field(default=0.0, init=False)
    _last_step: int = field(default=0, init=False)
    _last_wait_s: float = field(default=0.0, init=False)
    _asked_s: float = field(default=0.0, init=False)
    _asked_step: int = field(default=0, init=False)
    _ask_every: int = field(default=1 << 62, init=False)
    """Steps between questions; follows from a sum over the ranks, so it is the same on all of them."""

    def start(self) -> None:
        """Begin to measure; called right before the first step."""
        self._start_s = self._last_s = time.perf_counter()
        self._last_step = self.first_step

    def skip_pause(self, started_s: float) -> None:
        """Leave a pause since `started_s` (evaluation, checkpoint) out of the interval."""
        paused_s = time.perf_counter() - started_s
        self._last_s += paused_s
        self.paused_s += paused_s

    def look(self, result: StepResult) -> bool:
        """Write one record; true when some rank was asked to stop, on all ranks alike.

        The wish to stop rides on the reduction of the loss, so that asking costs no collective of its own.
        """
        steps = max(1, result.step - self._last_step)
        loss_sum = self.loss_counts * float(result.loss_sum)  # the one place where the host waits for the device
        step_s = (time.perf_counter() - self._last_s) / steps
        total, stops, step_s = self._sum(loss_sum, float(self.stop_requested()), step_s)
        self._ask_again(result.step, step_s)
        now = time.perf_counter()
        interval = max(now - self._last_s, 1e-9)
        waited = self.waited_s()
        rate = steps * self.tokens_per_step / interval
        flops = rate * self.flops_per_token / self.num_ranks
        self.write(
            Record(
                step=result.step,
                loss=total / num_tokens if (num_tokens := float(result.num_tokens)) else math.nan,
                grad_norm=None if result.grad_norm is None else float(whole_norm(result.grad_norm)),
                learning_rate=result.learning_rate,
                tokens_seen=result.step * self.tokens_per_step,
                tokens_per_s=rate,
                step_ms=1000 * interval / steps,
                data_wait_percent=min(100.0, 100 * (waited - self._last_wait_s) / interval),
                memory_gib=device_memory_gib(self.device),
                mfu_percent=100 * flops / self.peak if self.peak else None,
                elapsed_s=now - self._start_s,
                eta_s=(self.num_steps - result.step) * interval / steps,
            )
        )
        self._last_s, self._last_step, self._last_wait_s = now, result.step, waited
        return stops > 0

    def ask(self, result: StepResult) -> bool:
        """Whether some rank was asked to stop; for the steps between the logged ones, every few seconds of them."""
        if self.num_ranks == 1:
            return self.stop_requested()
        if result.step % self._ask_every or result.step == self._asked_step:  # `look` has asked in this very step
            return False
        step_s = (time.perf_counter() - self._asked_s) / max(1, result.step - self._asked_step)
        stops, step_s = self._sum(float(self.stop_requested()), step_s)
        self._ask_again(result.step, step_s)
        return stops > 0

    def _ask_again(self, step: int, step_s: float) -> None:
        """Choose when to ask next: a first step that compiles tells little. step_s: of one step, summed over ranks."""
        self._ask_every = max(1, round(STOP_WITHIN_S * self.num_ranks / max(step_s, 1e-9)))
        self._asked_s, self._asked_step = time.perf_counter(), step

    def _sum(self, *values: float) -> list[float]:
        """Sums over all ranks."""
        if self.num_ranks == 1:
            return list(values)
        import torch

        return self.reduce(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()


@dataclass(kw_only=True)
class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, appended and flushed at once."""

    path: Path
    followers: Sequence[Callable[[Mapping[str, object]], None]] = ()
    """Who is told of each line as well."""
    _file: IO[str] | None = field(default=None, init=False)

    def rewind(self, step: int) -> None:
        """Drop the lines beyond `step`: the run continues from there and will write them again."""
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        publish(self.path, lambda partial: partial.write_text("".join(kept)))

    def write(self, record: object) -> None:
        """Append a dataclass as one line; non-finite numbers become strings, for JSON has none."""
        if self._file is None:
            self._file = self.path.open("a")
        values = {key: _json_value(value) for key, value in vars(record).items()}
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        for follow in self.followers:
            follow(values)


def _json_value(value: object) -> object:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value
