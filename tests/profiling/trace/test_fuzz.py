"""A slice of the damaged traces that `make test-fuzz` looks at."""

from collections import Counter
from pathlib import Path

from trace_fuzz import analyse_all, mutants, survives, texts


def test_a_damaged_trace_is_analysed_or_refused_in_one_sentence(tmp_path: Path) -> None:
    found = Counter(survives(text, tmp_path, analyse_all) for text in mutants(texts(), 24, seed=7))
    assert found[True] > 4
    assert found[False] > 0  # few: what is damaged before the events no longer costs the events
