"""Recipe tables of the trackers."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ...strategies.limits import PositiveInt


def _missing(library: str) -> Iterator[str]:
    """The sentence for a library that is not installed; a folder that has its name is none."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        yield f"the `{library}` library is not installed; pip install 'stepladder[trackers]', or remove this table"


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases. Without a key, or without a network, the run is kept in its folder for `wandb sync`."""

    project: str = "stepladder"
    """Where the run is listed."""
    entity: str | None = None
    """User or team; wandb's own default if left out."""
    name: str | None = None
    """How the run is called; left out, as its folder."""
    group: str | None = None
    """Runs that are shown together."""
    tags: tuple[str, ...] = ()
    """Words by which runs are found."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """`auto` is online where there is a key (WANDB_API_KEY, or netrc), and offline elsewhere."""
    base_url: str | None = None
    """Address of a server of one's own."""
    attach: tuple[Literal["report", "traces"], ...] = ()
    """What else is handed in at the end: the report of the profiled steps, their traces."""
    finish_timeout_s: PositiveInt = 60
    """How long the end of the run waits for what is still to be sent; the rest stays in the folder."""

    def problems(self) -> Iterator[str]:
        """A library that is not there, an address that is none."""
        yield from _missing("wandb")
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            yield f"base_url = {self.base_url!r}: no address; write it as https://wandb.example.org"
        if self.base_url is not None and self.mode == "offline":
            yield "base_url: has no effect with mode = 'offline'; remove one of the two"
        for key in ("project", "name"):
            if getattr(self, key) == "":
                yield f"{key} = '': is empty; name it, or leave it out"


@dataclass(frozen=True, kw_only=True)
class TensorBoardConfig:
    """Event files in the run folder, below `tensorboard`: `tensorboard --logdir runs`."""

    flush_s: PositiveInt = 10
    """At most so long after it was measured a number is in the file."""

    def problems(self) -> Iterator[str]:
        """A library that is not there."""
        yield from _missing("tensorboard")


@dataclass(frozen=True, kw_only=True)
class TrackersConfig:
    """Who is shown the records of `metrics.jsonl`, which is written always."""

    wandb: WandbConfig | None = None
    """Weights & Biases."""
    tensorboard: TensorBoardConfig | None = None
    """TensorBoard."""

    def problems(self) -> Iterator[str]:
        """A table that does nothing."""
        if self.wandb is None and self.tensorboard is None:
            yield "wandb: none is on; add wandb = {} or tensorboard = {}, or remove trackers"

    def run_problems(self, *, traces: bool) -> Iterator[str]:
        """What is to be attached, but will not be there."""
        for each in self.wandb.attach if self.wandb else ():
            if not traces:
                yield f"trackers.wandb.attach: there will be no {each}; add profiler = {{}} or remove it"
