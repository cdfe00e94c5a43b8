"""The process of one tracker: reads lines of JSON from its parent, and hands them to the tracker's library.

The first line is a `Beginning`, each further one a record, the last one the end. A parent that is gone without a word
is an end as well. What the libraries print goes to a log file; what the user should read goes to standard output.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO, cast

from .event_files import EventFiles
from .redact import redacted
from .sink import Beginning, Sink
from .sweep import summary
from .weights_and_biases import WeightsAndBiases

SINKS: dict[str, Callable[[Beginning, Callable[[str], None]], Sink]] = {
    "wandb": WeightsAndBiases,
    "tensorboard": EventFiles,
}
_NICENESS = 19  # a core is wanted by the training, always
_DIED = 1


def main() -> None:
    """Serve one run, and leave when it is over, or a little later than the parent is ready to wait."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the run decides when it is over, and says so
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    beginning = Beginning(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_listen, args=(sys.stdin, told, beginning.patience_s), daemon=True).start()
    _serve(beginning, told, lambda line: print(line, file=answers, flush=True))
    sys.stderr.flush()
    os._exit(0)  # libraries that were given up on do not get a say in when to leave


def _listen(stream: TextIO, told: "queue.SimpleQueue[dict[str, Any]]", patience_s: float) -> None:
    """Take lines as they come, so that the parent need not wait; when there are no more, nobody waits for long."""
    with contextlib.suppress(ValueError):  # cut off in the middle, by the death of the parent
        for line in stream:
            told.put(json.loads(line))
    told.put({"end": {"code": _DIED}})
    timer = threading.Timer(patience_s, os._exit, args=(_DIED,))
    timer.daemon = True
    timer.start()


def _serve(beginning: Beginning, told: "queue.SimpleQueue[dict[str, Any]]", say: Callable[[str], None]) -> None:
    """Give everything to the sink; after its first failure take what comes and throw it away."""
    sink: Sink | None = None
    try:
        sink = SINKS[beginning.tracker](beginning, say)
        while "end" not in (message := told.get()):
            sink.log(message["record"], message["at_s"])
        sink.finish(redacted(summary(beginning.run_folder)), int(cast(int, message["end"]["code"])))
    except Exception as error:  # a library may raise anything, a disk be full
        import traceback

        traceback.print_exc()
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        say(f"{beginning.tracker}: gave up ({said}); the training goes on, metrics.jsonl has every record")
        while "end" not in told.get():
            pass


if __name__ == "__main__":
    main()
