"""Advice on real runs of one rank; `make test-advice` has all of them."""

from pathlib import Path

import pytest
from planted import RUNS, run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clean_alone", "gc_pauses"])
def test_the_first_advice_names_the_planted_fault(tmp_path: Path, name: str) -> None:
    advice = run(name, tmp_path).advice
    assert [each["fault"] for each in advice[:1]] == ([] if RUNS[name].fault is None else [RUNS[name].fault])


def test_there_are_twelve_faults_no_two_alike_and_a_clean_run() -> None:
    faults = [each.fault for each in RUNS.values() if each.fault is not None]
    assert len(faults) == len(set(faults)) == 12
    assert RUNS["clean"].fault is None
