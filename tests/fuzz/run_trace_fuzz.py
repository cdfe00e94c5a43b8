"""Thousands of damaged traces: no traceback, no hang, bounded memory. Started by `make test-fuzz`."""

import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "shared"))

from trace_fuzz import analyse_all, limit_memory, mutants, survives, texts


def main() -> int:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    start_s, found = time.monotonic(), Counter[str]()
    limit_memory()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for i, text in enumerate(mutants(texts(), number, seed)):
            try:
                found["analysed" if survives(text, folder, analyse_all) else "refused"] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                found["failed"] += 1
                kept = Path(tempfile.gettempdir()) / f"trace-fuzz-{seed}-{i}.json"
                kept.write_bytes(text)
                print(f"FAILED {kept}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                traceback.print_exception(error, limit=-3)
            if i % 1000 == 999:
                print(f"{i + 1} of {number}: {dict(found)}, {time.monotonic() - start_s:.0f} s", flush=True)
    word = "FAIL" if found["failed"] or not found["analysed"] or not found["refused"] else "PASS"
    print(
        f"fuzz: {word} {number} damaged traces: {found['analysed']} analysed, {found['refused']} refused, "
        f"{found['failed']} failed; {time.monotonic() - start_s:.0f} s"
    )
    return 0 if word == "PASS" else 1


if __name__ == "__main__":
    sys.exit(main())
