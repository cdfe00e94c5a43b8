"""Thousands of damaged topologies: read, or refused in one sentence. Started by `make test-fuzz-topo`."""

import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "shared"))

from topology_cases import mutants, survives


def main() -> int:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    start_s, found = time.monotonic(), Counter[str]()
    for text in mutants(number, seed):
        try:
            found["read" if survives(text) else "refused"] += 1
        except Exception as error:
            found["failed"] += 1
            print(f"FAILED {text!r}", flush=True)
            traceback.print_exception(error, limit=-3)
    word = "FAIL" if found["failed"] or not found["read"] or not found["refused"] else "PASS"
    print(
        f"fuzz: {word} {number} damaged topologies: {found['read']} read, {found['refused']} refused, "
        f"{found['failed']} failed; {time.monotonic() - start_s:.0f} s"
    )
    return 0 if word == "PASS" else 1


if __name__ == "__main__":
    sys.exit(main())
