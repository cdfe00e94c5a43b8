"""Traces that somebody has damaged, by accident or on purpose, and what must be true of reading them."""

import gzip
import random
import re
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stepladder.profiling.errors import TraceError

Mutation = Callable[[random.Random, bytes], bytes]

_TOKENS = (
    *(b"NaN", b"-inf", b"1e999", b"-1", b"0", b"99999999999999999999999", b"1.23456789", b"null", b"true", b'"7"'),
    *(b'"', b"\\", b"\\u0000", b"\\ud800", b"\x00", b"\xff\xfe", b"\n", b"{", b"}", b"[", b"]", b",", b":"),
    *(
        b'"ph": "X"',
        b'"ph": "B"',
        b'"cat": "kernel"',
        b'"dur": -5',
        b'"args": []',
        b'"ts": "x"',
        b"[[[[[[[[",
        b'{"a":' * 50,
    ),
    *(b'"name": "</script>"', b'"name": "ProfilerStep#-1"', b'"name": "ProfilerStep#99999999999999999999"'),
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_STRING = re.compile(rb'"[^"\\]*"')
CPU_SECONDS = 20
"""For one trace of some kilobytes: anything near it is a hang; of the processor, for the machine may be busy."""
SECONDS = 300
"""The same by the clock, for what hangs without working."""
EXTRA_BYTES = 3 << 30
"""Address space that the whole run may gain."""


def _flip(generator: random.Random, text: bytes) -> bytes:
    made = bytearray(text)
    for _ in range(generator.choice((1, 3, 20))):
        made[generator.randrange(len(made))] = generator.randrange(256)
    return bytes(made)


def _delete(generator: random.Random, text: bytes) -> bytes:
    begin = generator.randrange(len(text))
    return text[:begin] + text[begin + generator.choice((1, 10, 200, 5000)) :]


def _repeat(generator: random.Random, text: bytes) -> bytes:
    begin = generator.randrange(len(text))
    piece = text[begin : begin + generator.choice((1, 30, 400))]
    return text[:begin] + piece * generator.choice((2, 5, 60)) + text[begin:]


def _insert(generator: random.Random, text: bytes) -> bytes:
    at = generator.randrange(len(text))
    return text[:at] + generator.choice(_TOKENS) + text[at:]


def _cut(generator: random.Random, text: bytes) -> bytes:
    return text[: generator.randrange(len(text))]


def _replace(pattern: "re.Pattern[bytes]") -> Mutation:
    def replace(generator: random.Random, text: bytes) -> bytes:
        found = list(pattern.finditer(text))
        if not found:
            return text
        match = generator.choice(found)
        return text[: match.start()] + generator.choice(_TOKENS) + text[match.end() :]

    return replace


def _swap(generator: random.Random, text: bytes) -> bytes:
    """Two values change places: times become names, names ids."""
    found = list(_NUMBER.finditer(text)) + list(_STRING.finditer(text))
    if len(found) < 2:
        return text
    first, second = sorted(generator.sample(found, 2), key=lambda match: match.start())
    if second.start() < first.end():
        return text
    return text[: first.start()] + second[0] + text[first.end() : second.start()] + first[0] + text[second.end() :]


_MUTATIONS: Sequence[Mutation] = (_flip, _delete, _repeat, _insert, _cut, _swap, _replace(_NUMBER), _replace(_STRING))


def mutants(texts: Sequence[bytes], number: int, seed: int | str = 0) -> Iterator[bytes]:
    """So many files: one to four mutations of a trace, some packed, some damaged after packing."""
    generator = random.Random(seed)
    for _ in range(number):
        text = generator.choice(texts)
        for _ in range(generator.choice((1, 1, 2, 4))):
            text = generator.choice(_MUTATIONS)(generator, text) or b"{"
        if generator.random() < 0.2:
            text = gzip.compress(text, 1)
            if generator.random() < 0.5:
                text = generator.choice((_flip, _delete, _cut))(generator, text)
        yield text


def survives(text: bytes, folder: Path, look: Callable[[Path], object]) -> bool:
    """Look at a file: True if it could be read, False for one clear sentence. Anything else is raised."""
    path = folder / "rank-0.json"
    path.write_bytes(text)
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _too_long)
    signal.alarm(SECONDS)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        look(path)
    except TraceError as error:
        if "\n" in str(error) or str(path) not in str(error):
            raise AssertionError(f"not one sentence that names the file: {error}") from error
        return False
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    return True


def _too_long(*_: object) -> None:
    raise TimeoutError(f"longer than {CPU_SECONDS} s of work, or {SECONDS} s")


def limit_memory() -> None:
    """From now on this process may gain so much address space, and no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, resource.RLIM_INFINITY))


def texts() -> list[bytes]:
    """Small real traces, of a device and of a CPU."""
    data = Path(__file__).parent.parent / "profiling" / "trace" / "data"
    return [
        gzip.decompress((data / name / "rank-0.json.gz").read_bytes()) for name in ("cpu_only", "amd_mi250_minitoy")
    ]
