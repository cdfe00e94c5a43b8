"""Sets of times against sets of whole nanoseconds, and ranges inside each other against a look at each moment."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.profiling.trace.intervals import Intervals, common, join, measure, union, without
from stepladder.profiling.trace.nesting import NONE, innermost_at, outermost_at

Ranges = list[tuple[int, int]]
EVENTS = st.lists(st.tuples(st.integers(-5, 40), st.integers(-3, 15)), max_size=12)
MANY = settings(max_examples=150, deadline=None)


def arrays(events: Ranges) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array(events, dtype=np.int64).reshape(-1, 2).T)  # type: ignore[return-value]


def instants(events: Ranges) -> set[int]:
    return {moment for start, dur in events for moment in range(start, start + dur)}


def said(times: Intervals) -> set[int]:
    """The nanoseconds of a set, which must be in its normal form."""
    assert (times.end > times.start).all()
    assert (times.start[1:] > times.end[:-1]).all()
    return instants([(int(start), int(end - start)) for start, end in zip(*times, strict=True)])


def check_sets(first: Ranges, second: Ranges) -> None:
    a, b = union(*arrays(first)), union(*arrays(second))
    assert said(a) == instants(first)
    assert a.length == len(instants(first))
    assert said(join(a, b)) == instants(first) | instants(second)
    assert said(common(a, b)) == instants(first) & instants(second)
    assert said(without(a, b)) == instants(first) - instants(second)
    start, dur = arrays(second)
    found = measure(a, start, start + dur)
    assert found.tolist() == [len(instants(first) & instants([window])) for window in second]


def check_nesting(events: Ranges, moments: list[int]) -> None:
    events = sorted(events, key=lambda event: event[0])
    start, dur = arrays(events)
    at = np.array(moments, dtype=np.int64)
    open_ = [
        [index for index, (begin, length) in enumerate(events) if begin <= moment < begin + length]
        for moment in moments
    ]
    assert innermost_at(start, start + dur, at).tolist() == [max(each, default=NONE) for each in open_]
    assert outermost_at(start, start + dur, at).tolist() == [min(each, default=NONE) for each in open_]


@MANY
@given(EVENTS, EVENTS)
def test_sets_of_intervals_and_windows_on_them_behave_like_sets_of_nanoseconds(first: Ranges, second: Ranges) -> None:
    check_sets(first, second)


@MANY
@given(EVENTS, st.lists(st.integers(-8, 60), max_size=30))
def test_the_innermost_range_is_the_one_that_began_last_and_the_outermost_the_first(
    events: Ranges, moments: list[int]
) -> None:
    check_nesting(events, moments)


def test_thousands_of_random_sets_are_right_too() -> None:
    random = np.random.default_rng(11)
    for _ in range(2000):
        first, second = (
            list(zip(random.integers(-5, 60, size).tolist(), random.integers(-3, 20, size).tolist(), strict=True))
            for size in random.integers(0, 20, 2)
        )
        check_sets(first, second)
        check_nesting(first, random.integers(-8, 80, 10).tolist())


def test_ranges_of_very_different_lengths_nest_at_any_depth() -> None:
    depth = 3000
    start = np.arange(depth, dtype=np.int64)
    end = 10**15 - start
    moments = np.concatenate([start, end - 1, end])
    inner = innermost_at(start, end, moments)
    assert inner.tolist() == [*range(depth), *range(depth), NONE, *range(depth - 1)]
    assert outermost_at(start, end, moments[:-depth]).tolist() == [0] * (2 * depth)
