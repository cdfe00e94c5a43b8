"""Samples a second of our loader beside Hugging Face datasets, WebDataset and a plain DataLoader, in one run.

Each arm is a process with its loader open. They take turns of a second or so, in an order that rotates; what a loader
has in store from the pause is drawn first and not counted. The best setting of each library (workers, kinds) is
compared with our best: ratios within a turn, their median over the turns. Then the packing of text is timed beside
`tokenizers` alone on the same documents, in turns as well.

    python benchmarks/loader.py [--quick] [--turns N] [--seconds S]

Takes about 8 minutes on 2 cores, 2 with `--quick`. Writes `results/loader.json` beside this file; the last line is the
verdict.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loader_arms import TEXT_LENGTH

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "loader.json"
OURS = "stepladder"
GOAL_PACKING = 0.9
IMAGES = 600


@dataclass(frozen=True)
class Arm:
    """A library in one setting."""

    workload: str
    name: str
    workers: int
    kind: str = "-"

    @property
    def label(self) -> str:
        """Its line of the table."""
        kind = "" if self.kind == "-" else f", {self.kind}"
        return f"{self.name}, {self.workers} workers{kind}"


def arms(*, quick: bool) -> list[Arm]:
    """Every library without and with workers, in its usual and its fastest ways."""
    counts = (0, 2) if quick else (0, 1, 2)
    text = [Arm("text", OURS, 0), Arm("text", OURS, 0, "packed folder"), Arm("text", OURS, 1, "thread")]
    text += [Arm("text", "DataLoader", n, kind) for n in counts[: 1 if quick else 3] for kind in ("batched", "usual")]
    text += [Arm("text", "datasets", n, kind) for n in counts[: 1 if quick else 3] for kind in ("numpy", "torch")]
    text += [Arm("text", "WebDataset", n) for n in counts]
    images = [Arm("images", OURS, 0)]
    images += [Arm("images", OURS, n, kind) for n in counts[1:] for kind in ("process", "thread")]
    images += [Arm("images", "DataLoader", n, kind) for n in counts for kind in ("usual", "our decoder")]
    images += [Arm("images", name, n) for n in counts for name in ("datasets", "WebDataset")]
    return text + images


def make_data(folder: Path) -> None:
    """The same samples in the layout of each library."""
    import datasets
    import numpy as np
    import webdataset
    from PIL import Image

    from stepladder.trainer.data.shards.write import write_shards
    from stepladder.trainer.data.tokens import stdlib_documents

    raw = np.frombuffer(b"\0".join(document.text for document in stdlib_documents()), dtype=np.uint8)
    raw = raw[: 16 << 20]
    raw.tofile(folder / "text.u8")
    count = (len(raw) - 1) // TEXT_LENGTH
    windows = [raw[i * TEXT_LENGTH : (i + 1) * TEXT_LENGTH + 1] for i in range(count)]
    datasets.disable_progress_bars()
    kind = datasets.Features({"window": datasets.List(datasets.Value("uint8"), length=TEXT_LENGTH + 1)})
    datasets.Dataset.from_dict({"window": windows}, features=kind).save_to_disk(str(folder / "hf-text"))
    (folder / "wds-text").mkdir()
    for shard in range(4):
        with webdataset.TarWriter(str(folder / "wds-text" / f"{shard}.tar")) as writer:
            for number in range(shard, count, 4 * 4):  # a quarter is enough: it is read again and again
                writer.write({"__key__": f"{number:08d}", "bin": windows[number].tobytes()})

    random = np.random.default_rng(0)
    for number in range(IMAGES):
        small = random.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        path = folder / "images" / f"class-{number % 10}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    write_shards(folder / "images", folder / "shards", shard_mib=8)
    paths = sorted((folder / "images").rglob("*.jpg"))
    rows = {"image": [{"bytes": path.read_bytes(), "path": None} for path in paths], "label": [0] * len(paths)}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "hf-images"))


def measure(chosen: list[Arm], folder: Path, *, turns: int, seconds: float) -> dict[Arm, list[float]]:
    """Samples a second of each arm in each turn. An arm that fails is out; its reason goes to stderr."""
    running: dict[Arm, subprocess.Popen[str]] = {}
    rates: dict[Arm, list[float]] = {}
    try:
        for arm in chosen:
            command = [sys.executable, str(HERE / "loader_arms.py"), arm.workload, str(folder), arm.name]
            process = subprocess.Popen(
                [*command, str(arm.workers), arm.kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            running[arm] = process
            if process.stdout is None or '"ready"' not in process.stdout.readline():
                print(f"{arm.workload}: {arm.label} did not start", file=sys.stderr)
                stop(running.pop(arm))
            else:
                rates[arm] = []
        for turn in range(turns):
            print(f"{chosen[0].workload}: turn {turn + 1} of {turns}", file=sys.stderr)
            order = list(running)
            for arm in order[turn % len(order) :] + order[: turn % len(order)]:
                process = running[arm]
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{seconds}\n")
                process.stdin.flush()
                rates[arm].append(float(json.loads(process.stdout.readline())))
    finally:
        for process in running.values():
            stop(process)
    return rates


def stop(process: "subprocess.Popen[str]") -> None:
    """End an arm and the workers that it has started, all of the group that is its own."""
    import contextlib
    import signal

    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def best(rates: dict[Arm, list[float]], name: str, kind: str | None = None) -> Arm | None:
    """The setting of a library with the highest median."""
    own = [arm for arm in rates if arm.name == name and kind in (None, arm.kind)]
    return max(own, key=lambda arm: statistics.median(rates[arm]), default=None)


def ratio(rates: dict[Arm, list[float]], ours: Arm, theirs: Arm) -> tuple[float, float, float]:
    """Median, lowest and highest over the turns of ours / theirs."""
    each = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
    return statistics.median(each), min(each), max(each)


def compared(rates: dict[Arm, list[float]]) -> list[dict[str, Any]]:
    """Our best beside the best of each library."""
    ours = best(rates, OURS)
    assert ours is not None, "our own arm did not start"
    rows: list[dict[str, Any]] = []
    for arm in sorted(rates, key=lambda arm: -statistics.median(rates[arm])):
        print(f"  {arm.label:<42} {statistics.median(rates[arm]):>12,.0f} samples/s")
    for name in ("DataLoader", "datasets", "WebDataset"):
        theirs = best(rates, name)
        if theirs is None:
            continue
        median, low, high = ratio(rates, ours, theirs)
        print(f"  {ours.label} is {median:.2f}x ({low:.2f}..{high:.2f}) {theirs.label}")
        rows.append({"ours": ours.label, "theirs": theirs.label, "ratio": median, "low": low, "high": high})
    return rows


def sources_of_python() -> Iterator[Path]:
    """Python files that are installed here: the standard library, then packages."""
    for key in ("stdlib", "platlib"):
        yield from sorted(Path(sysconfig.get_path(key)).rglob("*.py"))


def packing(folder: Path, *, turns: int, megabytes: int) -> dict[str, Any]:
    """Bytes a second of `stepladder data pack` beside `tokenizers` with as many threads, on the same documents."""
    from tokenizers import Tokenizer

    from stepladder.trainer.data.pack.job import default_workers
    from stepladder.trainer.data.pack.tokenizer import train

    (folder / "texts").mkdir()
    texts, num_bytes = list[str](), 0
    for path in sources_of_python():
        texts.append(path.read_text("utf-8", "replace"))
        num_bytes += (folder / "texts" / f"{len(texts)}.txt").write_bytes(texts[-1].encode())
        if num_bytes > megabytes << 20:
            break
    model = folder / "tokenizer.json"
    train(texts[::16], 4096, model)
    tokenizer, cores = Tokenizer.from_file(str(model)), default_workers()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    own, alone = list[float](), list[float]()
    for turn in range(turns):
        print(f"packing: turn {turn + 1} of {turns}", file=sys.stderr)
        start = time.perf_counter()
        # The command, as users start it: processes of this program would begin by loading all that is compared here.
        command = [Path(sys.executable).with_name(OURS), "data", "pack", folder / "texts"]
        command += ["--out", folder / f"packed-{turn}", "--tokenizer", model, "--workers", str(cores)]
        subprocess.run(command, check=True, capture_output=True)
        own.append(num_bytes / (time.perf_counter() - start))
        start = time.perf_counter()
        for first in range(0, len(texts), 64):
            tokenizer.encode_batch_fast(texts[first : first + 64], add_special_tokens=False)
        alone.append(num_bytes / (time.perf_counter() - start))
    median = statistics.median(a / b for a, b in zip(own, alone, strict=True))
    print(f"packing of {num_bytes / 1e6:.1f} MB, {cores} processes")
    print(f"  stepladder data pack {statistics.median(own) / 1e6:>8.2f} MB/s, starting, reading and writing included")
    print(f"  tokenizers alone     {statistics.median(alone) / 1e6:>8.2f} MB/s; ratio {median:.2f}")
    return {"pack_bytes_per_s": own, "tokenizers_bytes_per_s": alone, "ratio": median, "goal": GOAL_PACKING}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer settings, shorter turns; leaves no results")
    parser.add_argument("--turns", type=int, help="turns of every arm (9; quick 3)")
    parser.add_argument(
        "--only", choices=("text", "images", "packing"), help="one of the three anew, beside the results of the others"
    )
    parser.add_argument("--seconds", type=float, help="length of a turn (1; quick 0.3)")
    options = parser.parse_args()
    turns = options.turns or (3 if options.quick else 9)
    seconds = options.seconds or (0.3 if options.quick else 1.0)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    result: dict[str, Any] = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "datasets", "webdataset", "pillow", "tokenizers")},
        "turns": turns,
        "seconds": seconds,
    }
    if options.only and not options.quick and RESULTS.exists():
        result = json.loads(RESULTS.read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["STEPLADDER_CACHE"] = str(folder / "cache")
        make_data(folder)
        for workload in ("text", "images") if options.only is None else {options.only} & {"text", "images"}:
            chosen = [arm for arm in arms(quick=options.quick) if arm.workload == workload]
            print(workload)
            rates = measure(chosen, folder, turns=turns, seconds=seconds)
            rows = compared(rates)
            result[workload] = {"rates": {arm.label: rates[arm] for arm in rates}, "compared": rows}
        if options.only in (None, "packing"):
            result["packing"] = packing(folder, turns=min(turns, 5), megabytes=2 if options.quick else 96)
    failed = [
        f"{workload}: {row['ratio']:.2f}x {row['theirs']}"
        for workload in ("text", "images")
        for row in result.get(workload, {"compared": []})["compared"]
        if row["ratio"] < 1
    ]
    if result.get("packing", {"ratio": 1})["ratio"] < GOAL_PACKING:
        failed.append(f"packing at {result['packing']['ratio']:.2f} of tokenizers")
    verdict = f"NOT MET: {'; '.join(failed)}" if failed else "met: not slower than the best of them, packing included"
    result["verdict"] = verdict
    if not options.quick:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"verdict: {verdict}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
