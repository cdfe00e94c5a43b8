"""Advice on real runs with planted faults: the first one names the fault, and a clean run gets none.

Started by `make test-advice`; takes some minutes on two cores. With names of runs as arguments only those.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "shared"))

from planted import RUNS, Result, run

ROW = "{:<29} {:<17} {:<17} {:>9} {:>9} {:>6}  {:<4} {}"


def line(name: str, result: Result) -> tuple[bool, str]:
    """The verdict, and a row of the table."""
    wanted, first = RUNS[name].fault, next(iter(result.advice), None)
    right = (first["fault"] if first else None) == wanted
    bound = f"{first['wins_at_most_ns'] / 1e6:.1f} ms" if first else "-"
    share = f"{first['share']:.0%}" if first else "-"
    more = ", ".join(f"{each['fault']} {each['share']:.0%}" for each in result.advice[1:])
    said = first["fault"] if first else "no advice"
    step = f"{result.step_ms:.0f} ms"
    return right, ROW.format(name, wanted or "no advice", said, bound, step, share, "ok" if right else "WRONG", more)


def main() -> int:
    names = sys.argv[1:] or list(RUNS)
    unknown = [name for name in names if name not in RUNS]
    if unknown:
        print(f"{', '.join(unknown)}: no such run; there are {', '.join(RUNS)}", file=sys.stderr)
        return 2
    start_s, right, failed = time.monotonic(), 0, 0
    print(ROW.format("run", "expected", "first advice", "bound", "step", "share", "", "further advice"))
    for name in names:
        with tempfile.TemporaryDirectory(prefix="stepladder-planted-") as made:
            try:
                ok, said = line(name, run(name, Path(made)))
            except RuntimeError as error:
                ok, said, failed = False, f"{name}: {error}", failed + 1
        right += ok
        print(said, flush=True)
    faults = sum(RUNS[name].fault is not None for name in names)
    clean = len(names) - faults
    word = "PASS" if right == len(names) else "FAIL"
    print(
        f"{word} advice: {right} of {len(names)} runs right ({faults} with a planted fault, {clean} clean), {failed}"
        f" did not run; {time.monotonic() - start_s:.0f} s"
    )
    return 0 if word == "PASS" else 1


if __name__ == "__main__":
    sys.exit(main())
