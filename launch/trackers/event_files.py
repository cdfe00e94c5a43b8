"""TensorBoard's event files, written by its own library; torch's writer would load torch beside the training."""

import json
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .sink import Beginning, Values, numbers


class EventFiles:
    """One event file for each time that the run was started."""

    def __init__(self, beginning: Beginning, say: Callable[[str], None]) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = _proto("event"), _proto("summary")
        self._flush_s = float(beginning.table["flush_s"])
        self._flushed_s = time.monotonic()
        folder = beginning.run_folder / "tensorboard"
        self._writer: Any = EventFileWriter(str(folder))
        if beginning.first_step:
            # What an earlier start has written beyond its last checkpoint is measured again.
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._add(time.time(), beginning.first_step + 1, session_log=start)
        self._add_text("recipe", beginning.config, beginning.first_step)

    def log(self, record: Values, at_s: float) -> None:
        """One event with all numbers of the record."""
        values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in numbers(record).items()]
        self._add(at_s, int(record["step"]), summary=self._summary.Summary(value=values))
        if time.monotonic() - self._flushed_s > self._flush_s:
            self._writer.flush()
            self._flushed_s = time.monotonic()

    def finish(self, summary: Values, code: int) -> None:
        """Leave the summary as text."""
        self._add_text("summary", summary, int(summary.get("step", 0)))
        self._writer.flush()
        self._writer.close()

    def _add(self, at_s: float, step: int, **content: Any) -> None:
        self._writer.add_event(self._event.Event(wall_time=at_s, step=step, **content))

    def _add_text(self, tag: str, values: Values, step: int) -> None:
        from tensorboard.plugins.text.metadata import create_summary_metadata

        lines = "\n".join(f"    {line}" for line in json.dumps(values, indent=2, default=str).splitlines())
        shapes = _proto("tensor_shape")
        tensor = _proto("tensor").TensorProto(
            dtype=_proto("types").DT_STRING,
            string_val=[lines.encode()],
            tensor_shape=shapes.TensorShapeProto(dim=[shapes.TensorShapeProto.Dim(size=1)]),
        )
        value = self._summary.Summary.Value(tag=tag, tensor=tensor, metadata=create_summary_metadata("", ""))
        self._add(time.time(), step, summary=self._summary.Summary(value=[value]))


def _proto(name: str) -> Any:
    """A module of messages; their names are made when it is imported, so that no type checker knows them."""
    return import_module(f"tensorboard.compat.proto.{name}_pb2")
