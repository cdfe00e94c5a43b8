"""A loop of one's own leaves traces that the analysis understands."""

from pathlib import Path

import pytest
import torch

import stepladder
from stepladder.launch.errors import UsageError
from stepladder.profiling.errors import TraceError
from stepladder.profiling.spans import Span


def test_phases_of_ones_own_loop_are_in_the_tables(tmp_path: Path) -> None:
    model = torch.nn.Linear(32, 32)
    with stepladder.profile(tmp_path / "traces", skip_first=1, active=2) as step:
        for _ in range(5):
            with stepladder.span("forward"):
                loss = model(torch.randn(16, 32)).square().mean()
            with stepladder.span("backward"):
                loss.backward()
            step()

    assert [path.name for path in (tmp_path / "traces").iterdir()] == ["rank-0.step-4.pt.trace.json.gz"]
    found = stepladder.analyze(tmp_path / "traces", detail=False)
    assert len(found.tables["steps"]) == 2
    phases = found.tables["phases"]
    names = set(phases["phase"].to_list())
    assert {Span.FORWARD, Span.BACKWARD} <= names


def test_a_span_that_nobody_records_is_nothing() -> None:
    assert stepladder.span("forward") is stepladder.span("optimizer")


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="use one of data_wait"):
        stepladder.span("lunch")
    with pytest.raises(UsageError, match="active = 0"), stepladder.profile(tmp_path, active=0):
        pass
    with pytest.raises(UsageError, match="nothing to read"):
        stepladder.analyze()
    with pytest.raises(TraceError):
        stepladder.analyze(tmp_path)


def test_importing_the_package_loads_neither_torch_nor_its_own_floors() -> None:
    import subprocess
    import sys

    code = (
        "import sys, stepladder; dir(stepladder); assert 'torch' not in sys.modules; "
        "assert not [each for each in sys.modules if each.startswith('stepladder.')]; "
        "assert callable(stepladder.compare); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
