"""Time and memory of the trace analysis beside Meta's HTA: real traces, large ones, many ranks, the second look.

    python benchmarks/trace.py --hta ENVIRONMENT/bin/python [--quick] [--rounds N]

Every figure is of a whole process, from its start to its end, the one after the other on the same files. Ours is
`stepladder trace FOLDER --quick --no-cache`: steps and phases, what HTA makes of times by exact definitions,
collectives, stragglers, what-if and advice; beside it stands the whole look (operators, sequences, memory, roofline,
paths). HTA loads with its `ijson` backend and makes six analyses (`trace_peer.py`). Large traces are real ones
repeated (`trace_scale.py`); folders of many ranks hold one of 50 MB again and again. STEPLADDER_TRACES names a folder
with more real traces, each in a folder of its own.

Takes about 12 minutes on 2 cores and 3 GB of memory, for HTA; with `--quick`, on traces a tenth as large, 2. Writes
`results/trace.json` beside this file; the last line is the verdict.
"""

import argparse
import datetime
import gzip
import json
import multiprocessing
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trace_report import Row, table, verdict
from trace_runs import Run, run
from trace_scale import scale

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "trace.json"
OURS = Path(sys.executable).with_name("stepladder")
NEEDED = ("stepladder", "polars", "pyarrow", "numpy")
MIB = 1 << 20
_RANK = re.compile(rb'"rank":\s*\d+')


@dataclass(frozen=True, kw_only=True)
class Case:
    """A folder of traces."""

    name: str
    folder: Path
    large: bool = False
    times_faster: float = 0.0
    """Than HTA, at least; 0 if nothing is asked."""
    anchor_s: float = 0.0
    """What HTA took for such a trace where the limits in seconds were set: its best backend, 1 GiB, two cores."""


def real(work: Path) -> Iterator[Case]:
    """The traces of the tree, and those that the environment names."""
    files = {path.name.removesuffix(".json.gz"): [path] for path in sorted((HERE / "traces").glob("*.json.gz"))}
    more = os.environ.get("STEPLADDER_TRACES")
    for folder in sorted(Path(more).iterdir()) if more else ():
        if ranks := sorted(folder.glob("rank-*.json.gz")):
            files[folder.name] = ranks
    for name, paths in files.items():
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        for rank, path in enumerate(paths):
            link = folder / f"rank-{rank}.json.gz"
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
        yield Case(name=name, folder=folder)


def large(work: Path, num_mib: int) -> Iterator[Case]:
    """Real traces, repeated; made once."""
    variants = (("v100_ddp2", True, 10.0, 44.0), ("v100_ddp2", False, 20.0, 96.1), ("mi300_ddp8", False, 20.0, 101.5))
    for name, long_steps, times_faster, anchor_s in variants:
        said = f"{name} x{num_mib} MiB" + (", long steps" if long_steps else "")
        file = work / re.sub(r"\W+", "_", said) / "rank-0.json.gz"
        if not file.exists():
            print(f"making {said}", file=sys.stderr, flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            _apart(scale, HERE / "traces" / f"{name}.json.gz", file, num_mib * MIB, long_steps=long_steps)
        yield Case(
            name=said, folder=file.parent, large=True, times_faster=times_faster, anchor_s=anchor_s * num_mib / 1024
        )


def many_ranks(work: Path, num_ranks: int, num_mib: int) -> Case:
    """Ranks of a job, each with a trace of its own."""
    case = Case(name=f"{num_ranks} ranks x{num_mib} MiB", folder=work / f"{num_ranks}_ranks_{num_mib}_MiB")
    if len(list(case.folder.glob("rank-*.json.gz"))) < num_ranks:
        print(f"making {case.name}", file=sys.stderr, flush=True)
        case.folder.mkdir(parents=True, exist_ok=True)
        _apart(_write_ranks, case.folder, num_ranks, num_mib)
    return case


def _write_ranks(folder: Path, num_ranks: int, num_mib: int) -> None:
    """One trace with one rank after the other in its header; the rest is packed once."""
    whole = folder / "whole.gz"
    scale(HERE / "traces" / "v100_ddp2.json.gz", whole, num_mib * MIB)
    with gzip.open(whole) as file:
        head, begin, rest = file.read().partition(b'"traceEvents"')
    whole.unlink()
    packed = gzip.compress(begin + rest, 6)  # a gzip file may have several members
    for rank in range(num_ranks):
        mine = _RANK.sub(b'"rank": %d' % rank, head).replace(b'"world_size": 2', b'"world_size": %d' % num_ranks)
        (folder / f"rank-{rank}.json.gz").write_bytes(gzip.compress(mine) + packed)


def _apart(make: Callable[..., None], *args: object, **more: object) -> None:
    """Call it in a process of its own: what this one has ever held would count for all that it starts."""
    process = multiprocessing.get_context("spawn").Process(target=make, args=args, kwargs=more)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"error: {make.__name__} ended with {process.exitcode}")


def best(command: list[str | Path], rounds: int) -> Run:
    """The shortest of some runs, with the most memory that any of them needed."""
    runs: list[Run] = []
    for _ in range(rounds):
        runs.append(run(command))
        if runs[-1].code:
            raise SystemExit(f"error: {' '.join(map(str, command))}: ended with {runs[-1].code}\n{runs[-1].errors}")
    fastest = min(runs, key=lambda each: each.wall_s)
    return Run(**(asdict(fastest) | {"peak_mb": max(each.peak_mb for each in runs)}))


def measure(case: Case, hta: Path | None, rounds: int) -> Row:
    """One trace, or one job's, by us, by us again from the tables that were kept, and by HTA."""
    print(case.name, file=sys.stderr, flush=True)
    ours = best([OURS, "trace", case.folder, "--quick", "--no-cache"], rounds)
    best([OURS, "trace", case.folder, "--quick"], 1)
    second = best([OURS, "trace", case.folder, "--quick"], rounds)
    whole = best([OURS, "trace", case.folder, "--no-cache"], 1)
    found: dict[str, Any] = {}
    if hta:
        peer = best([hta, "-P", HERE / "trace_peer.py", case.folder], 1 if case.large else rounds)
        found = json.loads(peer.output.splitlines()[-1])
        found |= {"wall_s": peer.wall_s, "peak_mb": peer.peak_mb}
    return Row(
        name=case.name,
        packed_mb=sum(file.stat().st_size for file in case.folder.glob("*.json.gz")) / 1e6,
        large=case.large,
        times_faster=case.times_faster,
        anchor_s=case.anchor_s,
        wall_s=ours.wall_s,
        peak_mb=ours.peak_mb,
        second_s=second.wall_s,
        second_mb=second.peak_mb,
        whole_s=whole.wall_s,
        whole_mb=whole.peak_mb,
        hta=found,
    )


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "processor": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""),
        "cores": os.cpu_count() or 1,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def main() -> int:
    """Measure, say what was found, write it down; 0 if all limits are kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hta", metavar="PYTHON", type=Path, help="the Python of an environment that has traceinsight")
    parser.add_argument("--work", metavar="FOLDER", type=Path, default=Path("build/bench-trace"), help="for the traces")
    parser.add_argument("--mib", type=int, help="text of a large trace (1024; 100 with --quick)")
    parser.add_argument(
        "--rounds", type=int, help="the shortest of so many runs counts (2; 1 with --quick; of HTA on a large trace 1)"
    )
    parser.add_argument("--quick", action="store_true", help="smaller traces, fewer ranks")
    options = parser.parse_args()
    num_mib, rounds = options.mib or (100 if options.quick else 1024), options.rounds or (1 if options.quick else 2)
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, load {about['load_average_before']}")
    rows = [measure(case, options.hta, rounds) for case in [*real(options.work), *large(options.work, num_mib)]]
    few, many, each_mib = (2, 8, 10) if options.quick else (8, 64, 50)
    jobs = [measure(many_ranks(options.work, ranks, each_mib), None, 1) for ranks in (few, many)]
    said, kept = verdict(rows, jobs, whole=num_mib >= 1000)
    content = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": about,
        "versions": {name: version(name) for name in NEEDED},
        "rounds": rounds,
        "rows": [asdict(row) for row in rows],
        "jobs": [asdict(row) for row in jobs],
        "verdict": said,
    }
    if not options.quick:
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(table([*rows, *jobs]))
    print(said)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
