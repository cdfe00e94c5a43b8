"""Thousands of damaged traces: no traceback, no hang, bounded memory. Started by `make test-fuzz`.

Every other one goes through all analyses and the page; the rest by turns through the other ways of looking: in many
pieces, from the cache, as HTA, for Perfetto, against another run, as one of several ranks.
"""

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "shared"))

from trace_fuzz import limit_memory, mutants, survives, texts
from trace_ways import WAYS, everything

SHARE = 250
"""Traces that a process tries before it reports."""


def main() -> int:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS"):  # a process for each core, and small traces
        os.environ.setdefault(name, "1")
    start_s, found = time.monotonic(), Counter[str]()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=limit_memory) as pool:
        shares = {
            pool.submit(try_share, seed, begin, min(SHARE, number - begin)): begin for begin in range(0, number, SHARE)
        }
        for future in as_completed(shares):
            try:
                found += future.result()
            except BrokenProcessPool:
                found["failed"] += SHARE
                print(f"FAILED a process died of a trace among {SHARE} from number {shares[future]} on", flush=True)
            tried = found.total()
            print(f"{tried} of {number}: {dict(found)}, {time.monotonic() - start_s:.0f} s", flush=True)
    word = "FAIL" if found["failed"] or not found["analysed"] or not found["refused"] else "PASS"
    print(
        f"fuzz: {word} {number} damaged traces: {found['analysed']} analysed, {found['refused']} refused, "
        f"{found['failed']} failed; {time.monotonic() - start_s:.0f} s"
    )
    return 0 if word == "PASS" else 1


def try_share(seed: int, begin: int, number: int) -> Counter[str]:
    """How some of the traces fared; each share has a generator of its own, so that one can be tried again alone."""
    found = Counter[str]()
    with tempfile.TemporaryDirectory() as made:
        for i, text in enumerate(mutants(texts(), number, f"{seed}/{begin}")):
            way = everything if i % 2 else WAYS[i // 2 % len(WAYS)]
            try:
                found["analysed" if survives(text, Path(made), way) else "refused"] += 1
            except Exception as error:
                found["failed"] += 1
                kept = Path(tempfile.gettempdir()) / f"trace-fuzz-{seed}-{begin + i}.json"
                kept.write_bytes(text)
                print(f"FAILED {way.__name__} {kept}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                traceback.print_exception(error, limit=-3)
    return found


if __name__ == "__main__":
    sys.exit(main())
