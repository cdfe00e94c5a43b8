"""A large trace made of a real one: its events again and again, later each time, with ids of their own."""

import gzip
import re
from pathlib import Path

_STEP = re.compile(rb"ProfilerStep#(\d+)")
_TIME = re.compile(rb'"ts": (\d+)(?:\.(\d{3}))?')
_LENGTH = re.compile(rb'"dur": (\d+)')
_ID = re.compile(
    rb'"(correlation|External id|id|Ev Idx|Record function id|Sequence number|Python id|Python parent id)": (\d+)'
)
_FIELD = re.compile(rb"|".join(each.pattern for each in (_STEP, _TIME, _ID)))
_ONCE = re.compile(rb'"ph": "M"|"cat": "Trace"|"name": "(?:Iteration Start|Record Window End)')
SEPARATOR = b"\n  },\n  {"


def scale(source: Path, target: Path, num_bytes: int, *, long_steps: bool = False) -> None:
    """Write a gzip trace of about so many bytes of text; Kineto's own layout is kept.

    With `long_steps` there are no more steps than in the source; they last as many times longer.
    """
    with gzip.open(source) as file:
        text = file.read()
    begin = text.index(b"[", text.index(b'"traceEvents"')) + 1
    end = text.rindex(b"\n  }\n")
    events = text[begin:end].lstrip().removeprefix(b"{").split(SEPARATOR)
    once = [event for event in events if _ONCE.search(event)]
    marks = [event for event in events if long_steps and _STEP.search(event)]
    again = SEPARATOR.join(event for event in events if not _ONCE.search(event) and event not in marks)
    once += [_stretched(event, marks, -(-num_bytes // len(again))) for event in marks]
    steps = [int(each) for each in _STEP.findall(again)]
    num_steps = max(steps, default=0) - min(steps, default=0) + 1
    times = [int(each[0]) for each in _TIME.findall(again)]
    span = max(times) - min(times) + max((int(each) for each in _LENGTH.findall(again)), default=0)
    highest: dict[bytes, int] = {}
    for key, value in _ID.findall(again):
        highest[key] = max(highest.get(key, 0), int(value))
    parts, fields, at = [], [], 0
    for match in _FIELD.finditer(again):
        parts.append(again[at : match.start()])
        fields.append(match)
        at = match.end()
    rest = again[at:]
    partial = target.with_name(f".partial-{target.name}")
    with gzip.open(partial, "wb", compresslevel=6) as out:
        out.write(text[:begin] + b"\n  {" + SEPARATOR.join(once))
        written, copy = 0, 0
        while written < num_bytes:
            out.write(SEPARATOR)
            piece = _copy(parts, fields, rest, copy, num_steps, span, highest)
            out.write(piece)
            written += len(piece)
            copy += 1
        out.write(b"\n  }\n  ]\n}\n")
    partial.replace(target)


def _stretched(mark: bytes, marks: list[bytes], factor: int) -> bytes:
    """A step as many times longer, begun as many times later after the first one."""
    first = min(int(found[1]) for found in map(_TIME.search, marks) if found)
    mark = _TIME.sub(lambda found: b'"ts": %d' % (first + (int(found[1]) - first) * factor), mark)
    return _LENGTH.sub(lambda found: b'"dur": %d' % (int(found[1]) * factor), mark)


def _copy(
    parts: list[bytes],
    fields: list["re.Match[bytes]"],
    rest: bytes,
    copy: int,
    num_steps: int,
    span: int,
    highest: dict[bytes, int],
) -> bytes:
    made: list[bytes] = []
    for part, match in zip(parts, fields, strict=True):
        made.append(part)
        step, time, fraction, key, value = match.groups()
        if step is not None:
            made.append(b"ProfilerStep#%d" % (int(step) + copy * num_steps))
        elif time is not None:
            made.append(b'"ts": %d' % (int(time) + copy * span) + (b"." + fraction if fraction else b""))
        else:
            made.append(b'"%s": %d' % (key, int(value) + (copy * (highest[key] + 1) if int(value) else 0)))
    return b"".join(made) + rest
