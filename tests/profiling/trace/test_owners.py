"""Of the events that run at an instant, exactly one owns it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.profiling.trace.owners import first_of


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 40), st.integers(-2, 30)), max_size=25))
def test_the_owner_is_the_first_in_rank_that_runs(events: list[tuple[int, int]]) -> None:
    start = np.array([begin for begin, _ in events], dtype=np.int64)
    end = start + np.array([dur for _, dur in events], dtype=np.int64)
    times = np.arange(-10, 80)
    expected = [
        next((place for place in range(len(events)) if start[place] <= time < end[place]), -1) for time in times
    ]
    assert first_of(start, end).when(times).tolist() == expected


def test_many_events_of_very_different_lengths_have_the_owner_that_a_scan_finds() -> None:
    random = np.random.default_rng(3)
    start = random.integers(0, 10**12, 3000)
    end = start + (10 ** random.uniform(0, 12, 3000)).astype(np.int64)
    times = random.integers(0, 2 * 10**12, 500)
    found = first_of(start, end).when(times)
    runs = (start[None] <= times[:, None]) & (times[:, None] < end[None])
    assert found.tolist() == np.where(runs.any(axis=1), runs.argmax(axis=1), -1).tolist()
