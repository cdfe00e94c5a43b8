"""Documents share samples as the textbook's loop would have it, and none of them loses a token."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.trainer.data.pack.best_fit import best_fit, fill, truncated


def plain_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """What is left in each bin, one item after the other."""
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [room for room in left if room >= length]
        if fits:
            left.remove(min(fits))
            left.append(min(fits) - length)
        else:
            left.append(capacity - length)
    return sorted(left)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 24).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), min_size=1, max_size=60)))
)
def test_bins_are_filled_as_one_item_after_the_other_would_fill_them(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    bins = fill(np.array(lengths, dtype=np.int64), capacity)
    filled = np.bincount(bins, weights=lengths)
    assert sorted(capacity - filled) == plain_best_fit(lengths, capacity)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 17))
def test_every_token_of_every_document_is_predicted_once_from_its_own_document(sizes: list[int], capacity: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)
    plan = best_fit(offsets, capacity)
    predicted = sorted(
        at + 1 for start, n in zip(plan.starts, plan.lengths, strict=True) for at in range(start, start + n)
    )
    expected = [at for begin, end in pairwise(offsets) for at in range(int(begin) + 1, int(end))]
    assert predicted == expected
    for first, last in pairwise(plan.samples):
        assert 0 < plan.lengths[first:last].sum() <= capacity


def test_truncated_documents_have_a_sample_each_and_lose_their_end() -> None:
    plan = truncated(np.array([0, 5, 6, 20], dtype=np.uint64), 8)
    assert plan.starts.tolist() == [0, 6]  # one of a single token predicts nothing
    assert plan.lengths.tolist() == [4, 8]
    assert plan.num_samples == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=12), st.integers(1, 9), st.randoms(use_true_random=False), st.booleans())
def test_pieces_with_nothing_to_learn_are_left_out(
    sizes: list[int], capacity: int, chance: random.Random, cuts: bool
) -> None:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)
    counts = np.array([chance.random() < 0.2 for _ in range(sum(sizes))], dtype=np.uint8)
    lay_out = truncated if cuts else best_fit
    pieces = lay_out(offsets, capacity)
    expected = sorted(
        (int(start), int(n))
        for start, n in zip(pieces.starts, pieces.lengths, strict=True)
        if any(counts[start + 1 : start + n + 1])
    )
    plan = lay_out(offsets, capacity, counts)
    assert sorted(zip(plan.starts.tolist(), plan.lengths.tolist(), strict=True)) == expected
    assert plan.num_left_out == len(pieces.starts) - len(expected)
    assert plan.num_samples == len(expected) or not cuts


@pytest.mark.parametrize("capacity", [512, 2048])
def test_many_documents_leave_little_of_the_samples_empty(capacity: int) -> None:
    generator = random.Random(0)
    sizes = [1 + int(generator.lognormvariate(6.5, 1.5)) for _ in range(4000)]
    plan = best_fit(np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64), capacity)
    assert plan.waste < 0.01
