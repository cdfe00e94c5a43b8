"""The whole matrix: every degree that fits 8 ranks, and every pair of options. Started by `make test-parallel`."""

import os
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "shared"))

from matrix import every_degree, judge, line, pairwise


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    chosen = sys.argv[1] if len(sys.argv) > 1 else ""
    entries = [each for each in every_degree() + pairwise() if chosen in each.name]
    start_s = time.monotonic()
    verdicts = judge(entries, timeout_s=240, say=lambda text: print(text, flush=True))
    for verdict in verdicts:
        if verdict.refused:
            print(line(verdict))
    degrees = {each.name for each in every_degree()}
    unjust = [each for each in verdicts if each.refused and each.entry.name in degrees]
    print(*(f"refused without need: {line(each)}" for each in unjust), sep="\n")
    kinds = Counter("failed" if each.failed else "refused" if each.refused else "passed" for each in verdicts)
    for verdict in verdicts:
        if verdict.failed:
            print(line(verdict))
    word = "FAIL" if kinds["failed"] or unjust or not kinds["passed"] else "PASS"
    print(
        f"parallel: {word} {len(verdicts)} combinations tried, {kinds['passed']} take the steps of one process, "
        f"{kinds['refused']} refused, {kinds['failed']} failed; {time.monotonic() - start_s:.0f} s"
    )
    return 0 if word == "PASS" else 1


if __name__ == "__main__":
    sys.exit(main())
