"""`stepladder data`: text into packed tokens, once, and what is in what a recipe trains on."""

import argparse
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..trainer.data.pack.documents import Format
from . import shards_command
from .errors import ExitCode, UsageError

if TYPE_CHECKING:
    from ..trainer.data.pack.folder import Index
    from ..trainer.data.pack.job import Look, Progress

_REDRAW_S = 0.1
_MB = 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    pack = actions.add_parser("pack", help="tokenise sources into a folder that [data.tokens] maps into memory")
    _pack_arguments(pack)
    pack.set_defaults(action=_pack)
    inspect = actions.add_parser("inspect", help="show counts, lengths and samples, and check the files' hashes")
    inspect.add_argument("what", metavar="FOLDER|RECIPE", help="a packed folder, or a recipe, for what it trains on")
    inspect.add_argument("--samples", type=int, default=2, metavar="N", help="samples to show (2)")
    inspect.add_argument("--no-hashes", action="store_true", help="do not read all of the files to check them")
    inspect.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE", help="change a recipe's key"
    )
    inspect.set_defaults(action=_inspect)
    shards_command.add_arguments(actions)
    _bench_arguments(
        actions.add_parser("bench", help="measure loaders of several settings against what the step uses up")
    )


def _pack_arguments(pack: argparse.ArgumentParser) -> None:
    pack.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="files, folders or glob patterns; stdlib; hub:NAME or a folder of Hugging Face's save_to_disk",
    )
    pack.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to; a killed packing goes on")
    pack.add_argument(
        "--tokenizer", default="bytes", metavar="HOW", help="a tokenizer.json, train:VOCAB, or bytes (default)"
    )
    pack.add_argument("--end-token", metavar="TOKEN", help="what ends a document (default: the usual names)")
    pack.add_argument("--format", choices=get_args(Format), help="what the files are (default: by their names)")
    pack.add_argument("--column", metavar="NAME", help="where the text is (text; messages of chats)")
    pack.add_argument("--config", default="", metavar="NAME", help="of a hub's dataset")
    pack.add_argument("--split", default="train", metavar="NAME", help="of a hub's dataset (train)")
    pack.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    pack.add_argument("--held-out", type=float, default=0.05, metavar="PART", help="only evaluated on (0.05)")
    pack.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="at a document that is damaged")
    pack.add_argument("--error-budget", type=int, default=100, metavar="N", help="skip no more than these (100)")


def _bench_arguments(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe")
    bench.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE", help="change a key")
    bench.add_argument("--ranks", type=int, metavar="N", help="ranks on this machine (default: as `run` starts)")
    bench.add_argument("--workers", metavar="0,1,2", help="numbers of workers to try (default: up to enough)")
    bench.add_argument("--seconds", type=float, default=2.0, metavar="S", help="time of each measurement (2)")
    bench.add_argument("--out", type=Path, metavar="FILE", help="write a recipe that extends this one by what is best")
    bench.add_argument("--json", type=Path, metavar="FILE", help="leave the numbers")
    bench.set_defaults(action=_bench)


def _bench(options: argparse.Namespace) -> int:
    from . import data_bench

    return data_bench.run(options)


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Do what is asked. Raises: UsageError with what is wrong with the data."""
    from ..trainer.data.errors import DataError

    try:
        return options.action(options)
    except DataError as error:
        raise UsageError(str(error)) from error


def _pack(options: argparse.Namespace) -> int:
    from ..trainer.data.pack.documents import Reading
    from ..trainer.data.pack.job import default_workers, pack
    from ..trainer.data.pack.parts import Packing

    if not 0 <= options.held_out < 1:
        raise UsageError(f"--held-out {options.held_out}: is a part of the documents; use 0 to less than 1")
    workers = default_workers() if options.workers is None else options.workers
    if workers < 1 or options.error_budget < 0:
        raise UsageError(f"--workers {workers}, --error-budget {options.error_budget}: must be at least 1, and 0")
    column = options.column or ("messages" if options.format == "chat" else "text")
    packing = Packing(
        sources=tuple(options.sources),
        tokenizer=options.tokenizer,
        end_token=options.end_token,
        format=options.format,
        reading=Reading(column=column, config=options.config, split=options.split),
        held_out=options.held_out,
        on_error=options.on_error,
        error_budget=options.error_budget,
    )
    began_s = time.monotonic()
    with _bar() as look:
        index = pack(packing, options.out, workers=workers, look=look)
    took_s = time.monotonic() - began_s
    print(*counts(options.out, index), f"took        {took_s:.1f} s", sep="\n")
    return ExitCode.DONE


def counts(folder: Path, index: "Index") -> list[str]:
    """What is in a folder, in a few lines."""
    lines = [
        f"folder      {folder}: {index.num_ids:,} ids of {index.width} bytes each, fingerprint {index.fingerprint}",
    ]
    for name, split in index.splits.items():
        learnt = "" if split.num_counted == split.num_tokens else f", {split.num_counted:,} of them to be learnt"
        lines.append(f"{name:<11} {split.num_documents:,} documents, {split.num_tokens:,} tokens{learnt}")
    if index.num_empty:
        lines.append(f"empty       {index.num_empty:,} documents without text were left out")
    if index.num_skipped:
        lines.append(f"skipped     {index.num_skipped:,} documents could not be read, the first of them:")
        lines += [f"            {said}" for said in index.first_skipped[:5]]
    return lines


def _inspect(options: argparse.Namespace) -> int:
    from ..trainer.data.pack.folder import INDEX
    from . import data_inspect

    folder = Path(options.what)
    if folder.is_dir() or (folder / INDEX).exists():
        lines = data_inspect.of_folder(folder, options.samples, with_hashes=not options.no_hashes)
    else:
        lines = data_inspect.of_recipe(options.what, options.overrides, options.samples)
    for line in lines:
        print(line, flush=True)
    return ExitCode.DONE


@contextmanager
def _bar() -> "Generator[Look]":
    """What a packing tells its progress: a bar on a terminal, else a line every ten seconds."""
    draws = sys.stderr.isatty()
    told_s = time.monotonic() - (_REDRAW_S if draws else 0.0)

    def look(progress: "Progress") -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s - told_s < (_REDRAW_S if draws else 10.0):
            return
        told_s = now_s
        sys.stderr.write(f"\r\x1b[K{progress_line(progress)}" if draws else f"{progress_line(progress)}\n")
        sys.stderr.flush()

    try:
        yield look
    finally:
        if draws:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def progress_line(progress: "Progress") -> str:
    """Share, rates, and the time that is left."""
    share = progress.done_bytes / max(1, progress.of_bytes)
    filled = round(30 * share)
    rate = progress.made_bytes / max(1e-9, progress.seconds)
    return (
        f"[{'#' * filled}{'.' * (30 - filled)}] {progress.done_bytes / _MB:,.1f} of {progress.of_bytes / _MB:,.1f} MB, "
        f"{rate / _MB:.1f} MB/s, {progress.num_tokens / max(1e-9, progress.seconds) / 1e6:.2f} M tokens/s, "
        f"{(progress.of_bytes - progress.done_bytes) / max(1.0, rate):.0f} s left"
    )
