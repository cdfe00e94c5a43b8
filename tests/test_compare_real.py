"""What the benchmark of real comparisons keeps outlives a kill at any time, and damage is told."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "compare_real.py"
TOLD = {"kind": "equal", "index": 0, "verdict": "same", "num_pairs": 4, "step_s": 0.1, "spent_s": 1.0}
KEPT = {"recipe": "x", "pairs": 4, "experiments": [TOLD]}


@pytest.fixture
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("compare_real", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_kept_is_whole_or_the_one_before(benchmark: Any, tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    benchmark.write_kept(file, KEPT)
    assert benchmark.read_kept(file) == KEPT
    with pytest.raises(TypeError):
        benchmark.write_kept(file, {**KEPT, "odd": object()})
    assert benchmark.read_kept(file) == KEPT
    assert [each.name for each in tmp_path.iterdir()] == ["kept.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"recipe": "x", "pairs": 4, "experiments": [{"kind": 1}]}'])
def test_damaged_results_are_one_sentence(benchmark: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "kept.json").write_text(text)
    with pytest.raises(SystemExit, match="is damaged; put back what was there, or begin anew with --again"):
        benchmark.read_kept(tmp_path / "kept.json")
