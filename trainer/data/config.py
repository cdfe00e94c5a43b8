"""Recipe tables of the data: where samples come from, how many make a batch, how they reach the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from ...strategies.limits import Above, Below, Count, PositiveInt
from .module_config import ModuleData
from .shards.config import ShardsConfig
from .synthetic_images import SyntheticImages
from .token_tables import ChatFiles, HubDataset, TokensFolder
from .wanted import DataTable, Gives, Need, Say, Wanted

if TYPE_CHECKING:
    from .source import Source


class _Corpus:
    """What tables of text have in common that is read as bytes, and kept in a cache."""

    gives: ClassVar[Gives] = "tokens"
    num_ids: ClassVar[int] = 256

    def prepare(self, need: Need, say: Say) -> None:
        """Build the corpus if the cache lacks it, and see that each split holds enough."""
        from .check import check_corpus

        check_corpus(_as_table(self), need, say)

    def open(self, split: str, wanted: Wanted) -> "Source":
        """Windows of bytes."""
        from .source import packed_bytes

        return packed_bytes(_as_table(self), split, wanted)


def _as_table(corpus: _Corpus) -> "StdlibCorpus | FilesCorpus":
    return cast("StdlibCorpus | FilesCorpus", corpus)


@dataclass(frozen=True, kw_only=True)
class StdlibCorpus(_Corpus):
    """The source code of Python's standard library, read as bytes: about 30 MB that every machine has."""

    held_out: Annotated[float, Above(0), Below(1)] = 0.05
    """Part of the files that is only evaluated on, chosen by a hash of the file's name."""


@dataclass(frozen=True, kw_only=True)
class FilesCorpus(_Corpus):
    """Local text, JSONL or Parquet files, read through Hugging Face `datasets` as bytes."""

    paths: tuple[str, ...]
    """Files or glob patterns, relative to the working directory."""
    format: Literal["text", "jsonl", "parquet"] = "text"
    """How to read them; `text` takes each file as one document."""
    column: str = "text"
    """The column that holds the text (jsonl, parquet)."""
    held_out: Annotated[float, Above(0), Below(1)] = 0.05
    """Part of the documents that is only evaluated on, chosen by a hash of their text; of a lone file its end."""

    def problems(self) -> Iterator[str]:
        """Paths that match nothing, and a library that is not there."""
        import importlib.util

        yield from path_problems(self.paths)
        if self.column != "text" and self.format == "text":
            yield f"column = {self.column!r}: has no effect with format = 'text'; remove it"
        if importlib.util.find_spec("datasets") is None:
            yield "the `datasets` library is not installed; pip install 'stepladder[data]'"


def path_problems(paths: tuple[str, ...]) -> Iterator[str]:
    """A key `paths` that names nothing."""
    if not paths:
        yield "paths = []: no data; name at least one file"
    for pattern in paths:
        if not matching(pattern):
            yield f"paths = {pattern!r}: no such file; check the path (it is relative to {Path.cwd()})"


def matching(pattern: str) -> list[Path]:
    """Files that a path or glob pattern names, sorted."""
    import glob

    return sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())


@dataclass(frozen=True, kw_only=True)
class SyntheticTokens:
    """Random tokens that stay on the device: no loading at all, for pure speed."""

    num_samples: PositiveInt = 64
    """Distinct samples, used again and again in a new order."""

    gives: ClassVar[Gives] = "tokens"
    num_ids: ClassVar[int] = 0

    def prepare(self, need: Need, say: Say) -> None:
        """Nothing has to be there."""

    def open(self, split: str, wanted: Wanted) -> "Source":
        """Tokens drawn on the device."""
        from .source import synthetic

        return synthetic(self, split, wanted)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The source of a recipe's samples: exactly one of these tables."""

    stdlib: StdlibCorpus | None = None
    """Python's standard library."""
    files: FilesCorpus | None = None
    """Local files."""
    tokens: TokensFolder | None = None
    """Text that `stepladder data pack` has tokenised."""
    hub: HubDataset | None = None
    """A dataset of Hugging Face."""
    chat: ChatFiles | None = None
    """Conversations, for supervised fine-tuning."""
    synthetic: SyntheticTokens | None = None
    """Random tokens."""
    synthetic_images: SyntheticImages | None = None
    """Random images."""
    module: ModuleData | None = None
    """A dataset of your own."""
    shards: ShardsConfig | None = None
    """Images in tar shards (WebDataset)."""

    @property
    def name(self) -> str:
        """Of the source's table."""
        return next((key for key, each in vars(self).items() if each is not None), "")

    @property
    def chosen(self) -> DataTable:
        """The one source that the recipe names; the reader has made sure that there is one."""
        return cast(DataTable, next((each for each in vars(self).values() if each is not None), None))


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many tokens make a step: microbatch x accumulation x data ranks."""

    microbatch_size: PositiveInt = 8
    """Sequences in one forward pass of one rank."""
    sequence_length: PositiveInt = 256
    """Tokens in a sequence."""
    tokens_per_step: PositiveInt | None = None
    """What the product must be; a recipe that states it cannot silently train with another batch."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How samples reach the device."""

    num_workers: Count = 0
    """Loader workers; packed bytes need none, since a batch then costs less than its way through a pipe."""
    worker_kind: Literal["process", "thread"] = "process"
    """Processes beside the rank, or threads in it: these share its memory, and Python's lock where that is held."""
    prefetch_factor: PositiveInt | None = None
    """Microbatches that each worker keeps ready (2)."""
    persistent_workers: bool | None = None
    """Keep the workers between passes (true with workers)."""
    pin_memory: bool | None = None
    """Page-locked host memory, which asynchronous copies need (true on CUDA)."""
    non_blocking: bool | None = None
    """Copies do not wait for the device (true; CUDA)."""
    device_prefetch: bool | None = None
    """Copy the next step's batch on a stream of its own while this one computes (true; CUDA)."""

    def run_problems(self, *, device_type: str, synthetic: bool) -> Iterator[str]:
        """What has nothing to act on in this run."""
        if synthetic and self.num_workers:
            yield f"loader.num_workers = {self.num_workers}: data.synthetic has nothing to load; remove it"
        for key in ("pin_memory", "non_blocking", "device_prefetch"):
            if getattr(self, key) is not None and (synthetic or device_type == "cpu"):
                why = "data.synthetic is on the device already" if synthetic else "there is no GPU"
                yield f"loader.{key}: has no effect, for {why}; remove it"

    def problems(self) -> Iterator[str]:
        """Worker settings without workers."""
        if self.num_workers == 0:
            for key in ("prefetch_factor", "persistent_workers"):
                if getattr(self, key) is not None:
                    yield f"{key}: has no effect with num_workers = 0; remove it or use workers"
            if self.worker_kind != "process":
                yield "worker_kind: has no effect with num_workers = 0; remove it or use workers"
        elif self.worker_kind == "thread" and self.persistent_workers is not None:
            yield "persistent_workers: has no effect on threads; remove it"
