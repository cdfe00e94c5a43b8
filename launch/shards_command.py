"""`stepladder data shards` and `data index`: image shards written, and what is in them."""

import argparse
from pathlib import Path
from typing import Any

from .errors import ExitCode, UsageError


def add_arguments(actions: Any) -> None:
    """Two actions of `stepladder data`."""
    shards = actions.add_parser("shards", help="write image shards from a folder of class folders")
    shards.add_argument("folder", metavar="FOLDER", type=Path, help="FOLDER/<class>/<image>.jpg")
    shards.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to")
    shards.add_argument("--shard-mib", type=float, default=256.0, metavar="MIB", help="size of a shard (256)")
    shards.set_defaults(action=_shards)
    index = actions.add_parser("index", help="index shards now, count their samples, and keep their hashes")
    index.add_argument(
        "paths", metavar="SHARD", nargs="+", help="files, globs, shard-{000..127}.tar, http(s) addresses"
    )
    index.add_argument("--out", type=Path, metavar="FILE", help="leave a manifest, for data.shards.manifest")
    index.set_defaults(action=_index)


def _shards(options: argparse.Namespace) -> int:
    from ..trainer.data.shards.write import write_shards

    if not options.shard_mib > 0:
        raise UsageError(f"--shard-mib {options.shard_mib}: must be greater than 0")
    write_shards(options.folder, options.out, shard_mib=options.shard_mib, say=print)
    return ExitCode.DONE


def _index(options: argparse.Namespace) -> int:
    from ..trainer.data.shards.index import write_manifest
    from ..trainer.data.shards.prepare import index_all

    indexes = index_all(options.paths, print)
    samples, num_bytes = sum(map(len, indexes)), sum(int(index.size.sum()) for index in indexes)
    print(f"shards      {len(indexes):,}, {samples:,} samples, {num_bytes / 1e6:,.1f} MB of content")
    endings = sorted({ending for index in indexes for ending in index.endings})
    print(f"members     {', '.join('.' + ending for ending in endings) or 'none'}")
    damaged = [index for index in indexes if index.damage]
    for index in damaged:
        print(f"damaged     {index.path}: {index.damage}; {len(index):,} samples before that")
    if options.out is not None:
        if damaged:
            raise UsageError(f"--out {options.out}: {len(damaged)} shards are damaged; a manifest would hide it")
        try:
            write_manifest(indexes, options.out)
        except OSError as error:
            raise UsageError(f"--out {options.out}: cannot be written ({error.strerror})") from error
        print(f"manifest    {options.out}")
    return ExitCode.FAILED if damaged else ExitCode.DONE
