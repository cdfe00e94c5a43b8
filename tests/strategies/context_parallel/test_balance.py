"""Who holds which positions and computes which pairs, compared with the causal mask written out."""

import itertools

import pytest
import torch

from stepladder.strategies.context_parallel.balance import Balance, BalanceKind

KINDS: tuple[BalanceKind, ...] = ("head_tail", "none")
SIZES = [(num_ranks, per_chunk) for num_ranks in (1, 2, 3, 4, 8) for per_chunk in (1, 3)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_ranks", "per_chunk"), SIZES)
def test_every_position_lies_on_exactly_one_rank_in_rising_order(
    kind: BalanceKind, num_ranks: int, per_chunk: int
) -> None:
    balance = Balance(kind=kind, num_ranks=num_ranks)
    length = balance.num_chunks * per_chunk

    held = [balance.positions(length, rank) for rank in range(num_ranks)]

    assert sorted(torch.cat(held).tolist()) == list(range(length))
    for own in held:
        assert own.dtype == torch.int64
        assert len(own) == length // num_ranks
        assert bool((own.diff() > 0).all())


def test_head_and_tail_go_together() -> None:
    balance = Balance(kind="head_tail", num_ranks=2)

    assert balance.positions(8, 0).tolist() == [0, 1, 6, 7]
    assert balance.positions(8, 1).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_ranks", "per_chunk"), SIZES)
def test_blocks_are_the_causal_mask(kind: BalanceKind, num_ranks: int, per_chunk: int) -> None:
    balance = Balance(kind=kind, num_ranks=num_ranks)
    length = balance.num_chunks * per_chunk
    for rank, source in itertools.product(range(num_ranks), repeat=2):
        queries, keys = balance.positions(length, rank), balance.positions(length, source)
        truth = queries[:, None] >= keys[None, :]

        block = balance.block(rank, source, len(queries))

        found = torch.zeros_like(truth)
        if block:
            found[block.queries_from :, : block.keys_to] = True
            found = found.tril() if block.causal else found
            assert block.num_pairs(len(queries)) == int(truth.sum())
        assert torch.equal(found, truth), (rank, source)


@pytest.mark.parametrize(("num_ranks", "per_chunk"), [each for each in SIZES if each[0] > 1])
def test_head_and_tail_are_equal_work_in_every_step_and_contiguous_pieces_are_not(
    num_ranks: int, per_chunk: int
) -> None:
    def pairs(kind: BalanceKind) -> list[list[int]]:
        """Pairs of each rank in each step of the ring."""
        balance = Balance(kind=kind, num_ranks=num_ranks)
        own = 2 * per_chunk
        ranks = range(num_ranks)
        blocks = [[balance.block(rank, (rank - step) % num_ranks, own) for step in ranks] for rank in ranks]
        return [[block.num_pairs(own) if block else 0 for block in steps] for steps in blocks]

    balanced, contiguous = pairs("head_tail"), pairs("none")

    assert all(steps == balanced[0] for steps in balanced)
    totals = [sum(steps) for steps in contiguous]
    assert totals == sorted(totals)
    assert totals[-1] > num_ranks / 2 * totals[0]
    assert sum(totals) == sum(map(sum, balanced)) == 2 * per_chunk * num_ranks * (2 * per_chunk * num_ranks + 1) // 2
