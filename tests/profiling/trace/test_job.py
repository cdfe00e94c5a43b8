"""Processes that read the traces of a job: an interrupt ends them all, and none of them says where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_SCRIPT = """
import os, sys, time
from pathlib import Path
from stepladder.profiling.trace.job import Reading, for_each

def work(trace):
    Path(f"{trace.path}.{os.getpid()}").touch()
    time.sleep(300)

if __name__ == "__main__":
    try:
        for_each(sorted(Path(sys.argv[1]).glob("*.json")), work, Reading(cache=False, num_processes=2))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_an_interrupt_of_all_processes_ends_them_without_a_word(tmp_path: Path) -> None:
    event = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1, "ts": 1, "dur": 5}
    for rank in range(4):
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps({"traceEvents": [event]}))
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    command = [sys.executable, str(script), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(begun := sorted(tmp_path.glob("*.json.*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)  # the work takes longer
    finally:
        process.kill()
    assert (process.returncode, said) == (130, "")
    assert [path.name[:11] for path in begun] == ["rank-0.json", "rank-1.json"]
    assert sorted(tmp_path.glob("*.json.*")) == begun  # what waited was not begun
    assert not [path for path in begun if Path("/proc", path.suffix[1:]).exists()]
