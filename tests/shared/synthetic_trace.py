"""A writer of Kineto events, for traces whose answer is known because they were made up. Times are nanoseconds."""

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepladder.profiling.trace.assemble import Assembly
from stepladder.profiling.trace.parse import Parser
from stepladder.profiling.trace.source import Source
from stepladder.profiling.trace.tables import Trace

MAIN, BACKWARD = 1, 2
"""Threads."""
HOST_PID = 100


def microseconds(ns: int) -> str:
    """As Kineto writes it; a float would lose digits of a real date."""
    sign, ns = "-" if ns < 0 else "", abs(ns)
    return f"{sign}{ns // 1000}.{ns % 1000:03d}"


@dataclass
class Recording:
    """The events of one rank, in the order in which they are added."""

    rank: int = 0
    world_size: int = 1
    events: list[str] = field(default_factory=list)
    num_calls: int = 0

    def add(self, category: str, name: str, ts: int, dur: int, pid: int, tid: int, **args: Any) -> None:
        head = {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid, "args": args}
        times = f'"ts": {microseconds(ts)}, "dur": {microseconds(dur)}'
        self.events.append(f"{json.dumps(head)[:-1]}, {times}}}")

    def mark(self, name: str, ts: int, dur: int, thread: int = MAIN) -> None:
        self.add("user_annotation", name, ts, dur, HOST_PID, thread)

    def operator(self, name: str, ts: int, dur: int, thread: int = MAIN, **args: Any) -> None:
        self.add("cpu_op", name, ts, dur, HOST_PID, thread, **args)

    def python(self, name: str, ts: int, dur: int, thread: int = MAIN) -> None:
        self.add("python_function", name, ts, dur, HOST_PID, thread)

    def call(self, name: str, ts: int, dur: int, thread: int = MAIN) -> int:
        """A call of the runtime. Returns: its correlation."""
        self.num_calls += 1
        self.add("cuda_runtime", name, ts, dur, HOST_PID, thread, correlation=self.num_calls)
        return self.num_calls

    def work(
        self, name: str, ts: int, dur: int, correlation: int, *, stream: int = 7, device: int = 0, **args: Any
    ) -> None:
        """A kernel, copy or fill."""
        category = {"Memcpy": "gpu_memcpy", "Memset": "gpu_memset"}.get(name[:6], "kernel")
        ids = {"device": device, "stream": stream} | ({"correlation": correlation} if correlation > 0 else {})
        self.add(category, name, ts, dur, device, stream, **ids, **args)

    def text(self) -> str:
        info = {"backend": "nccl", "rank": self.rank, "world_size": self.world_size}
        head = {"schemaVersion": 1, "distributedInfo": info, "displayTimeUnit": "ms"}
        return json.dumps(head)[:-1] + ', "traceEvents": [\n' + ",\n".join(self.events) + "\n]}"

    def write(self, path: Path) -> Path:
        data = self.text().encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return path

    def trace(self, *, detail: bool = False) -> Trace:
        """What the reader makes of it, without a file."""
        parser, assembly = Parser(detail=detail), Assembly()
        assembly.add(parser.parse(", ".join(self.events).encode()))
        return assembly.trace(Source(path=Path("synthetic.json")), words={}, detail=detail)
