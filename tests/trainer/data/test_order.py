"""Which samples whom: against a brute force that lists every step of every rank."""

import itertools
from collections import Counter

import pytest

from stepladder.trainer.data.order import Share, permutation


def steps(num_steps: int, first_step: int = 0, **keys: int) -> list[list[list[int]]]:
    """Microbatches of one rank, step by step."""
    share = Share(**{"seed": 0} | keys)
    batches = (indices.tolist() for indices in share.microbatches(first_step))
    return [list(itertools.islice(batches, share.num_microbatches)) for _ in range(num_steps)]


def global_order(num_samples: int, microbatch: int, accumulation: int, ranks: int, num_steps: int) -> list[int]:
    """Samples of all ranks in the order of the docstring: step, then rank, then microbatch."""
    shape = {"num_samples": num_samples, "microbatch_size": microbatch, "num_microbatches": accumulation}
    by_rank = [steps(num_steps, **shape, rank=rank, num_ranks=ranks) for rank in range(ranks)]
    return [sample for step in range(num_steps) for rank in by_rank for batch in rank[step] for sample in batch]


SHAPES = [(1, 1, 1), (4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (3, 2, 2), (1, 1, 7), (16, 1, 1), (5, 3, 4)]


@pytest.mark.parametrize("num_samples", [1, 5, 12, 13])
def test_all_ranks_together_pass_through_every_epoch_exactly_once(num_samples: int) -> None:
    for microbatch, accumulation, ranks in SHAPES:
        num_steps = 3 * num_samples // (microbatch * accumulation * ranks) + 1
        seen = global_order(num_samples, microbatch, accumulation, ranks, num_steps)
        assert len(seen) == num_steps * microbatch * accumulation * ranks
        for epoch in range(len(seen) // num_samples):
            own = seen[epoch * num_samples : (epoch + 1) * num_samples]
            assert Counter(own) == Counter(range(num_samples)), (microbatch, accumulation, ranks, epoch)
            assert own == permutation(num_samples, 0, epoch).tolist()


def test_the_order_is_the_same_for_every_split_of_a_global_batch() -> None:
    splits = [(12, 1, 1), (6, 2, 1), (6, 1, 2), (1, 12, 1), (1, 1, 12), (2, 3, 2), (3, 2, 2), (4, 1, 3)]
    orders = [global_order(17, *split, 6) for split in splits]
    assert all(order == orders[0] for order in orders)


def test_a_run_can_start_at_any_step() -> None:
    keys = {"num_samples": 7, "microbatch_size": 2, "num_microbatches": 2, "rank": 1, "num_ranks": 3}
    whole = steps(12, **keys)
    for first in range(12):
        assert steps(12 - first, first, **keys) == whole[first:]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(permutation(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_seed_that_a_recipe_can_hold_gives_an_order() -> None:
    orders = {tuple(permutation(50, seed, 3).tolist()) for seed in (0, 2**44, 2**44 + 1, 2**63 - 1)}
    assert len(orders) == 4
