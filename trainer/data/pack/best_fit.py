"""Which documents share a sample: best-fit decreasing, over lengths that few hold in common or millions.

Source: Ding et al. 2024, arXiv:2404.10830 (documents that fit are never cut, longer ones first cut to the length).
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Pieces of documents, in the order of the samples that they share.

    A piece of n positions predicts n tokens from the n before them, so it reaches one token further: a document of m
    tokens has m - 1 positions, and no position predicts the beginning of another document.
    """

    starts: "Numbers"
    """[pieces] first token of each."""
    lengths: "Numbers"
    """[pieces] positions of each."""
    samples: "Numbers"
    """[samples + 1] first piece of each sample, and the end of the last."""
    capacity: int
    num_left_out: int = 0
    """Pieces in which nothing is to be learnt."""

    @property
    def num_samples(self) -> int:
        """Samples that are not empty."""
        return len(self.samples) - 1

    @property
    def waste(self) -> float:
        """Part of all positions that hold no token."""
        return 1 - float(self.lengths.sum()) / max(1, self.num_samples * self.capacity)


def best_fit(offsets: "NDArray[Any]", capacity: int, counts: "NDArray[np.uint8] | None" = None) -> Plan:
    """Documents that lie at `offsets`, those longer than a sample cut to its length, together in few samples.

    `counts` are 1 for each token that is to be learnt; pieces without one are left out.
    """
    import numpy as np

    starts, lengths, num_left_out = _with_something_to_learn(*cut(offsets, capacity), counts)
    sample_of = fill(lengths, capacity)
    order = np.argsort(sample_of, kind="stable")
    samples = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(sample_of), dtype=np.int64)])
    return Plan(
        starts=starts[order], lengths=lengths[order], samples=samples, capacity=capacity, num_left_out=num_left_out
    )


def truncated(offsets: "NDArray[Any]", capacity: int, counts: "NDArray[np.uint8] | None" = None) -> Plan:
    """A sample for each document, cut where it does not fit; one in which nothing is to be learnt is left out."""
    import numpy as np

    begin = offsets[:-1].astype(np.int64)
    lengths = np.minimum(np.diff(offsets.astype(np.int64)) - 1, capacity)
    some = lengths > 0
    starts, lengths, num_left_out = _with_something_to_learn(begin[some], lengths[some], counts)
    samples = np.arange(len(starts) + 1, dtype=np.int64)
    return Plan(starts=starts, lengths=lengths, samples=samples, capacity=capacity, num_left_out=num_left_out)


def _with_something_to_learn(
    starts: "Numbers", lengths: "Numbers", counts: "NDArray[np.uint8] | None"
) -> "tuple[Numbers, Numbers, int]":
    """Pieces of which some prediction counts, and how many others there were."""
    import numpy as np

    if counts is None or len(starts) == 0:
        return starts, lengths, 0
    # Largest count of the tokens that each piece predicts, and in between of what lies behind it.
    bounds = np.stack([starts + 1, starts + 1 + lengths], axis=1).reshape(-1)
    inside = bounds[:-1] if bounds[-1] >= len(counts) else bounds
    some = np.maximum.reduceat(counts, inside)[::2] > 0
    return starts[some], lengths[some], int((~some).sum())


def cut(offsets: "NDArray[Any]", capacity: int) -> "tuple[Numbers, Numbers]":
    """Starts and positions of the pieces: each prediction of each document once."""
    import numpy as np

    offsets = offsets.astype(np.int64)
    positions = np.maximum(np.diff(offsets) - 1, 0)
    num_pieces = -(-positions // capacity)
    document = np.repeat(np.arange(len(positions)), num_pieces)
    within = (np.arange(len(document)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)) * capacity
    return offsets[:-1][document] + within, np.minimum(capacity, positions[document] - within)


def fill(lengths: "Numbers", capacity: int) -> "Numbers":
    """The bin of each item: the longest first, each into the fullest bin that has room, else into a new one.

    Items of a length and bins of equal room are placed together, so the time grows with the number of lengths there
    are and with one sort, not with the number of bins for each item.
    """
    import numpy as np

    order = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    bin_of = np.empty(len(lengths), dtype=np.int64)
    room: dict[int, list[Any]] = {}  # bins by what is left in them
    rooms: list[int] = []
    num_bins = at = 0

    def put(left: int, bins: "Numbers") -> None:
        if left and len(bins):
            if left not in room:
                insort(rooms, left)
            room.setdefault(left, []).append(bins)

    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        items = order[at : at + count]
        at += count
        while len(items):
            fullest = bisect_left(rooms, size)
            if fullest < len(rooms):
                left = rooms.pop(fullest)
                bins = np.concatenate(room.pop(left))
            else:
                left = capacity
                bins = np.arange(num_bins, num_bins + -(-len(items) // (capacity // size)))
                num_bins += len(bins)
            each = left // size
            placed = min(len(items), len(bins) * each)
            whole, rest = divmod(placed, each)
            bin_of[items[:placed]] = np.repeat(bins[: whole + (rest > 0)], each)[:placed]
            put(left - each * size, bins[:whole])
            put(left - rest * size, bins[whole : whole + 1] if rest else bins[:0])
            put(left, bins[whole + (rest > 0) :])
            items = items[placed:]
    return bin_of
