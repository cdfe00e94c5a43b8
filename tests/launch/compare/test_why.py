import json
from dataclasses import asdict
from pathlib import Path

import pytest
from synthetic_trace import Recording

from stepladder.launch.compare.why import Group, Why, explain
from stepladder.profiling.errors import TraceError

MS = 1_000_000


def traces(folder: Path, kernels: list[tuple[str, int]], *, step: int, num_steps: int = 2) -> Path:
    """Steps in which these kernels run one after the other, launched at the very beginning; the rest is idle."""
    recording = Recording()
    for number in range(num_steps):
        begin = number * step
        recording.mark(f"ProfilerStep#{number}", begin, step)
        at = begin + 1000
        for i, (name, duration) in enumerate(kernels):
            call = recording.call("cudaLaunchKernel", begin + 10 * i, 5)
            recording.work(name, at, duration, call)
            at += duration
    folder.mkdir()
    return recording.write(folder / "rank-0.step-9.pt.trace.json").parent


def test_words_and_figures_are_those_of_the_traces(tmp_path: Path) -> None:
    pointwise = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>"
    matrix = "ampere_sgemm_128x64_tn"
    before = traces(tmp_path / "a", [(pointwise, 2 * MS), (matrix, 10 * MS), (pointwise, 3 * MS)], step=20 * MS)
    after = traces(tmp_path / "b", [("triton_poi_fused_add_0", MS), (matrix, 10 * MS)], step=13 * MS)
    found = explain(before, after)
    assert (found.before_ms, found.after_ms) == (20.0, 13.0)
    assert (found.kernels_before, found.kernels_after) == (3.0, 2.0)
    groups = {each.name: (each.before_ms, each.after_ms) for each in found.groups}
    assert groups["pointwise"] == (5.0, 1.0)
    assert groups["matrix products"] == (10.0, 10.0)
    assert sum(before for before, _ in groups.values()) == pytest.approx(20.0, abs=1e-5)
    assert sum(after for _, after in groups.values()) == pytest.approx(13.0, abs=1e-5)
    assert found.sentence == "Kernels per step 3 -> 2, pointwise 5.0 -> 1.0 ms, idle 5.0 -> 2.0 ms"


def test_equal_traces_have_nothing_to_say(tmp_path: Path) -> None:
    one = traces(tmp_path / "a", [("ampere_sgemm_128x64_tn", MS)], step=2 * MS)
    found = explain(one, one)
    assert found.sentence == "No part of a step changed by more than 1 %"
    assert all(each.change_ms == 0 for each in found.groups)


def test_without_a_device_operators_are_counted(tmp_path: Path) -> None:
    folders: list[Path] = []
    for name, num_operators in (("a", 4), ("b", 2)):
        recording = Recording()
        recording.mark("ProfilerStep#0", 0, 10 * MS)
        for i in range(num_operators):
            recording.operator("aten::add", i * MS, MS)
        (tmp_path / name).mkdir()
        folders.append(recording.write(tmp_path / name / "rank-0.step-9.pt.trace.json").parent)
    found = explain(*folders)
    assert found.sentence == "Operators per step 4 -> 2, idle 6.0 -> 8.0 ms, pointwise 4.0 -> 2.0 ms"


def test_folders_without_traces_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError):
        explain(tmp_path, tmp_path)


def test_reasons_survive_json() -> None:
    groups = (Group(name="idle", before_ms=2.0, after_ms=1.0),)
    why = Why(sentence="so", before_ms=2.0, after_ms=1.0, kernels_before=3, kernels_after=2, groups=groups)
    assert Why.from_json(json.loads(json.dumps(asdict(why)))) == why
