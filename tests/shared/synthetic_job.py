"""A small machine that runs programs on ranks with streams and records what Kineto would.

It keeps what a trace does not say: what each piece of work waited for. So it knows the critical path, the cause of each
idle time, and how long each rank waited for the last one in a collective. All times are whole nanoseconds.
"""

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthetic_trace import HOST_PID, MAIN, Recording


@dataclass(frozen=True)
class Begin:
    """A mark opens; or, with another category, a Python function."""

    name: str
    category: str = "user_annotation"


@dataclass(frozen=True)
class End:
    """The innermost open range closes."""


@dataclass(frozen=True)
class Work:
    """The host is busy, in an operator if it is named."""

    ns: int
    operator: str = ""


@dataclass(frozen=True)
class Launch:
    """A kernel, in order on its stream, and not before what the streams in `after` have been given so far."""

    ns: int
    name: str = "gemm"
    stream: int = 7
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Collective:
    """An exchange: the kernel begins on each rank as soon as it can, and takes `ns` from when the last has begun."""

    ns: int
    group: tuple[int, ...]
    num_elements: int = 1024
    stream: int = 20
    after: tuple[int, ...] = (7,)
    name: str = "allreduce"


@dataclass(frozen=True)
class Wait:
    """The host waits until a stream is empty."""

    stream: int = 7
    call: str = "cudaStreamSynchronize"
    operator: str = ""


Program = Sequence[Begin | End | Work | Launch | Collective | Wait]


@dataclass(frozen=True)
class Node:
    """A piece of time on the host or a stream, and what it had to wait for (-1: the beginning)."""

    rank: int
    where: str
    name: str
    start: int
    end: int
    before: int


@dataclass(frozen=True)
class Exchange:
    """One collective."""

    group: tuple[int, ...]
    sequence: int
    began: dict[int, int]
    """By rank."""
    end: int
    ns: int

    @property
    def waited(self) -> dict[int, int]:
        """How long each rank waited for the last."""
        last = max(self.began.values())
        return {rank: last - began for rank, began in self.began.items()}


@dataclass
class Job:
    """What the machine did."""

    recordings: list[Recording]
    nodes: list[Node] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    idle_ns: list[dict[str, int]] = field(default_factory=list)
    """By rank: time between two pieces of work of a stream; `host` if the second was launched after the first had
    ended, `device` otherwise; summed over streams."""

    @property
    def makespan_ns(self) -> int:
        return max(node.end for node in self.nodes) - min(node.start for node in self.nodes)

    def critical_path(self) -> list[Node]:
        """What the end had to wait for, from the beginning on; lengths add up to `makespan_ns`."""
        at = max(range(len(self.nodes)), key=lambda index: self.nodes[index].end)
        path: list[Node] = []
        while at >= 0:
            path.append(self.nodes[at])
            at = self.nodes[at].before
        return path[::-1]

    def write(self, folder: Path, suffix: str = ".json.gz") -> list[Path]:
        return [each.write(folder / f"rank-{each.rank}{suffix}") for each in self.recordings]


class _Rank:
    """One host and its streams."""

    def __init__(self, job: Job, rank: int, launch_ns: int, latency_ns: int, clock_ns: int) -> None:
        self.job, self.rank, self.launch_ns, self.latency_ns, self.clock_ns = job, rank, launch_ns, latency_ns, clock_ns
        self.now, self.last = 0, -1  # of the host: the time, and the node that ends there
        self.streams: dict[int, tuple[int, int]] = defaultdict(lambda: (0, -1))
        self.open: list[tuple[Begin, int, int]] = []
        self.record = job.recordings[rank]

    def node(self, where: str, name: str, start: int, end: int, before: int) -> int:
        self.job.nodes.append(Node(self.rank, where, name, start, end, before))
        return len(self.job.nodes) - 1

    def busy(self, name: str, ns: int) -> int:
        """The host does something. Returns: when it began, by the rank's clock."""
        self.last = self.node("host", name, self.now, self.now + ns, self.last)
        self.now += ns
        return self.now - ns + self.clock_ns

    def run(self, program: Program) -> Generator[tuple[Collective, int, int], tuple[int, int, int], None]:
        for each in program:
            match each:
                case Begin():
                    self.open.append((each, self.now, len(self.record.events)))
                case End():
                    begun, start, place = self.open.pop()
                    ts = start + self.clock_ns
                    self.record.add(begun.category, begun.name, ts, self.now - start, HOST_PID, MAIN)
                    self.record.events.insert(place, self.record.events.pop())  # a range stands before what is in it
                case Work():
                    ts = self.busy(each.operator or "work", each.ns)
                    if each.operator:
                        self.record.operator(each.operator, ts, each.ns)
                case Wait():
                    self.wait(each)
                case Launch() | Collective():
                    yield from self.launch(each)

    def wait(self, each: Wait) -> None:
        free, before = self.streams[each.stream]
        start = self.now
        if free > self.now:
            self.now, self.last = free, before
        if each.operator:
            self.record.operator(each.operator, start + self.clock_ns, self.now - start)
        self.record.call(each.call, start + self.clock_ns, self.now - start)

    def launch(self, each: Launch | Collective) -> Generator[tuple[Collective, int, int], tuple[int, int, int], None]:
        called = self.busy("launch", self.launch_ns)
        correlation = self.record.call("cudaLaunchKernel", called, self.launch_ns)
        arrives = self.node("launch", "latency", self.now, self.now + self.latency_ns, self.last)
        free, before = self.streams[each.stream]
        ready = [(self.now + self.latency_ns, arrives), (free, before), *(self.streams[s] for s in each.after)]
        start, before = max(ready, key=lambda item: item[0])
        if self.streams[each.stream][1] >= 0 and start > free:
            cause = "host" if called - self.clock_ns > free else "device"
            self.job.idle_ns[self.rank][cause] += start - free
        args: dict[str, Any] = {}
        name = each.name
        if isinstance(each, Collective):
            end, node, sequence = yield each, start, before
            name = f"ncclDevKernel_{each.name}(ncclDevKernelArgsStorage<4096ul>)"
            args = {
                "Collective name": each.name, "dtype": "Float", "In msg nelems": each.num_elements,
                "Out msg nelems": each.num_elements, "Group size": len(each.group), "Seq": sequence,
                "Process Group Name": str(each.group), "Process Group Ranks": str(list(each.group)),
            }  # fmt: skip
        else:
            end = start + each.ns
            node = self.node(f"stream {each.stream}", each.name, start, end, before)
        self.streams[each.stream] = (end, node)
        self.record.work(name, start + self.clock_ns, end - start, correlation, stream=each.stream, **args)


def simulate(
    programs: Sequence[Program], *, launch_ns: int = 5000, latency_ns: int = 2000, clock_ns: Sequence[int] = ()
) -> Job:
    """Run one program a rank; collectives of one group meet in the order in which they are launched.

    `clock_ns` is added to all that a rank records, as if its clock were wrong.
    """
    size = len(programs)
    job = Job([Recording(rank, size) for rank in range(size)], idle_ns=[{"host": 0, "device": 0} for _ in programs])
    ranks = [_Rank(job, rank, launch_ns, latency_ns, (clock_ns or [0] * size)[rank]) for rank in range(size)]
    running = {rank: each.run(program) for rank, (each, program) in enumerate(zip(ranks, programs, strict=True))}
    meeting: dict[tuple[int, ...], dict[int, tuple[Collective, int, int]]] = defaultdict(dict)
    sequences: dict[tuple[int, ...], int] = defaultdict(int)
    answers: dict[int, Any] = dict.fromkeys(running)
    while answers:
        rank, answer = answers.popitem()
        try:
            asked = running[rank].send(answer)
        except StopIteration:
            continue
        group = asked[0].group
        meeting[group][rank] = asked
        if len(meeting[group]) < len(group):
            continue
        here = meeting.pop(group)
        last = max(here, key=lambda member: here[member][1])
        each, start, before = here[last]
        end = start + each.ns
        node = ranks[last].node(f"stream {each.stream}", each.name, start, end, before)
        began = {member: item[1] for member, item in sorted(here.items())}
        job.exchanges.append(Exchange(group, sequences[group], began, end, each.ns))
        answers |= dict.fromkeys(here, (end, node, sequences[group]))
        sequences[group] += 1
    if meeting:
        raise ValueError(f"{sorted(meeting)}: not every rank of the group takes part")
    return job
