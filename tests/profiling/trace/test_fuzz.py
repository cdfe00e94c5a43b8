"""A slice of the damaged traces that `make test-fuzz` looks at."""

from collections import Counter
from pathlib import Path

import pytest
from trace_fuzz import mutants, survives, texts
from trace_ways import WAYS, Way, everything


def test_a_damaged_trace_is_analysed_or_refused_in_one_sentence(tmp_path: Path) -> None:
    found = Counter(survives(text, tmp_path, everything) for text in mutants(texts(), 24, seed=7))
    assert found[True] > 4
    assert found[False] > 0  # few: what is damaged before the events no longer costs the events


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_so_it_is_in_every_other_way_of_looking(way: Way, tmp_path: Path) -> None:
    found = Counter(survives(text, tmp_path, way) for text in mutants(texts(), 8, seed=8))
    assert found[True] > 1
    assert survives(texts()[0], tmp_path, way)
