"""Which positions of a sequence each rank holds, and which of their pairs it computes.

[Note: head and tail]
With a causal mask a query sees all keys before it, so late positions are more work than early ones. The sequence is cut
into 2 C chunks for C ranks, and rank r holds chunks r and 2C-1-r. Against its own keys a rank computes a causal
triangle; against those of an earlier rank all its queries see the first chunk and none sees the second; against those
of a later rank only the second half of its queries sees anything, and that sees all. Half the pairs either way: every
rank does equal work in every step of the ring.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

BalanceKind: TypeAlias = Literal["head_tail", "none"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Pairs of one rank's queries with one rank's keys: queries from `queries_from` on, keys before `keys_to`."""

    queries_from: int
    keys_to: int
    causal: bool
    """Query i sees keys 0 .. i; otherwise each query of the block sees each of its keys."""

    def num_pairs(self, length: int) -> int:
        """Pairs (query, key) that are computed if each rank holds `length` positions."""
        return length * (length + 1) // 2 if self.causal else (length - self.queries_from) * self.keys_to


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How sequences are dealt out to `num_ranks` ranks."""

    kind: BalanceKind
    num_ranks: int

    @property
    def num_chunks(self) -> int:
        """Equal pieces into which a sequence is cut."""
        return self.num_ranks * (2 if self.kind == "head_tail" else 1)

    def chunks(self, rank: int) -> tuple[int, ...]:
        """The pieces that a rank holds, in rising order."""
        return (rank, self.num_chunks - 1 - rank) if self.kind == "head_tail" else (rank,)

    def positions(self, length: int, rank: int) -> "Tensor":
        """Positions that a rank holds of a sequence of `length`: int64, rising."""
        import torch

        size, rest = divmod(length, self.num_chunks)
        assert rest == 0, f"a sequence of {length} cannot be cut into {self.num_chunks} equal chunks"
        return torch.cat([torch.arange(chunk * size, (chunk + 1) * size) for chunk in self.chunks(rank)])

    def block(self, rank: int, source: int, length: int) -> Block | None:
        """What a rank computes with the keys of rank `source`, each holding `length` positions; None for nothing."""
        if source == rank:
            return Block(queries_from=0, keys_to=length, causal=True)
        if self.kind == "none":
            return Block(queries_from=0, keys_to=length, causal=False) if source < rank else None
        if source < rank:
            return Block(queries_from=0, keys_to=length // 2, causal=False)
        return Block(queries_from=length // 2, keys_to=length, causal=False)
