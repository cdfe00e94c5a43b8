"""`stepladder trace`: tables, files, and one sentence for what cannot be read."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from stepladder.launch.cli import main
from stepladder.profiling.trace import analysis

EVENTS = [
    {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#3", "pid": 1, "tid": 1, "ts": 0, "dur": 9},
    {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": 1, "dur": 5, "args": {"stream": 7}},
]
DATA = Path(__file__).parent.parent / "profiling" / "trace" / "data"


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """Two ranks of a job, where a cache may be left."""
    folder = tmp_path / "traces"
    folder.mkdir()
    for rank in (0, 1):
        (folder / f"rank-{rank}.json.gz").write_bytes((DATA / "sampled_2rank" / f"rank-{rank}.json.gz").read_bytes())
    return folder


def test_the_tables_say_where_the_step_went(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(traces)]) == 0
    said = capsys.readouterr().out
    for section in (
        "a step, mean",
        "its phases",
        "kernels: 2358",
        "collectives",
        "the host waits",
        "would gain at most",
    ):
        assert section in said
    (row,) = [line.split() for line in said.splitlines() if line.startswith("0     ")][:1]
    parts = [float(cell) for cell in row[4::2]]
    assert sum(parts) == pytest.approx(100, abs=0.3)


def test_a_second_look_says_the_same(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(traces), "--processes", "1"]) == 0
    first = capsys.readouterr().out
    assert (traces / ".stepladder-cache").is_dir()
    assert main(["trace", str(traces), "--processes", "1"]) == 0
    assert capsys.readouterr().out == first


def test_json_has_every_table_of_every_rank(traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    assert main(["trace", str(traces), "--no-cache", "--quick", "--json", str(file), "--processes", "1"]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["ranks"] == [0, 1]
    assert {row["rank"] for row in found["tables"]["steps"]} == {0, 1}
    parts = ("compute_ns", "overlapped_communication_ns", "exposed_communication_ns", "copy_ns", "idle_ns")
    assert all(sum(row[part] for part in parts) == row["window_ns"] for row in found["tables"]["steps"])
    assert not {"roofline", "operators", "path", "timeline"} & set(found["tables"])
    assert not (traces / ".stepladder-cache").exists()
    capsys.readouterr()
    assert main(["trace", str(traces), "--quick", "--json", "-", "--processes", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"] == [0, 1]


def test_the_report_and_the_annotated_trace_are_written(traces: Path, tmp_path: Path) -> None:
    page, again = tmp_path / "report.html", tmp_path / "again.json.gz"
    assert main(["trace", str(traces), "--html", str(page), "--perfetto", str(again), "--processes", "1"]) == 0
    assert "Content-Security-Policy" in page.read_text()
    assert '"operators":' in page.read_text()
    assert main(["trace", str(again), "--no-cache"]) == 0


def test_the_annotated_trace_is_the_first_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    (folder / "rank-0.json").write_text("")
    for rank in (1, 2):
        event = EVENTS[1] | {"name": f"gemm of rank {rank}"}
        (folder / f"rank-{rank}.json").write_text(json.dumps({"traceEvents": [EVENTS[0], event]}))
    again = tmp_path / "again.json"
    assert main(["trace", str(folder), "--no-cache", "--processes", "1", "--perfetto", str(again)]) == 0
    assert "rank-0.json: empty" in capsys.readouterr().out
    assert "gemm of rank 1" in again.read_text()


def test_an_interrupt_is_one_line(
    traces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(analysis, "analyse", interrupted)
    assert main(["trace", str(traces)]) == 130
    assert capsys.readouterr() == ("", "interrupted: the analysis is not complete\n")


def test_two_runs_are_compared(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (str(traces / f"rank-{rank}.json.gz") for rank in (0, 1))
    assert main(["trace", one, "--against", one]) == 0
    assert ": +0.000 ms" in capsys.readouterr().out
    assert main(["trace", other, "--against", one]) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()[3:]]
    parts = rows[: next(i for i, row in enumerate(rows) if row[0] == "all") + 1]
    assert sum(float(row[-1]) for row in parts[:-1]) == pytest.approx(float(parts[-1][-1]), abs=0.01)


def test_runs_that_are_unlike_are_said_to_be_and_a_host_has_no_kernels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, event: dict[str, Any], device: str = "", ranks: int = 1) -> list[str]:
        properties = [{"id": 0, "name": device}] if device else []
        for rank in range(ranks):
            job = {"deviceProperties": properties, "distributedInfo": {"rank": rank, "world_size": ranks}}
            (tmp_path / f"{name}-rank-{rank}.json").write_text(json.dumps(job | {"traceEvents": [EVENTS[0], event]}))
        return [str(tmp_path / f"{name}-rank-{rank}.json") for rank in range(ranks)]

    kernel = EVENTS[1] | {"name": "ncclDevKernel_AllReduce"}
    gloo = {"ph": "X", "cat": "user_annotation", "name": "gloo:all_reduce", "pid": 1, "tid": 3, "ts": 1, "dur": 5}
    fast, slow, two = run("fast", kernel, "NVIDIA H100"), run("slow", kernel, "NVIDIA A100"), run("two", kernel, "", 2)
    options = ["--no-cache", "--processes", "1"]
    assert main(["trace", *fast, "--against", *fast, *options]) == 0
    assert "note" not in capsys.readouterr().out
    assert main(["trace", *fast, "--against", *slow, *options]) == 0
    assert "the devices differ (NVIDIA A100 before, NVIDIA H100 after)" in capsys.readouterr().out
    assert main(["trace", *fast, "--against", *two, *options]) == 0
    assert "2 ranks were read before, 1 after" in capsys.readouterr().out
    assert main(["trace", *fast, "--against", *run("host", gloo), *options, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "after has a device, before has the host alone" in found["notes"][0]
    verdicts = {row["verdict"] for row in found["tables"]["difference"] if row["part"] == "communication"}
    assert verdicts == {"added", "removed"}


def test_the_definitions_of_hta_are_a_switch(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(traces), "--compat", "hta", "--processes", "1"]) == 0
    assert "temporal" in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--compat", "hta"]], ids=["ours", "hta"])
def test_names_cannot_speak_to_the_terminal(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2J\u202e\rgemm"
    events = [
        {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": 1, "dur": 5, "args": {"stream": 7}},
        {"ph": "X", "cat": "user_annotation", "name": name, "pid": 1, "tid": 1, "ts": 0, "dur": 9},
    ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"traceEvents": events}))
    assert main(["trace", str(path), *options]) == 0
    said = capsys.readouterr().out
    assert "gemm" in said
    assert not {"\x1b", "\u202e", "\r"} & set(said)


def test_nor_can_names_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c\x1b[31m\x1b]0;own\x07\nerror: a.json"
    path.write_text("hello")
    assert main(["trace", str(path), "--no-cache"]) == 2
    said = capsys.readouterr().err
    assert "not JSON" in said
    assert said.count("\n") == 1
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: None, "no trace in this folder"),
        (lambda folder: (folder / "a.json").write_text("hello"), "not JSON"),
        (lambda folder: (folder / "a.json").write_text(""), "empty"),
        (lambda folder: (folder / "a.json").write_text('{"traceEvents": []}'), "no event with a time and a length"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    make: Any, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    assert main(["trace", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert expected in said


def test_a_target_that_cannot_be_written_is_said_before_anything_is_read(
    traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", str(traces), "--html", str(traces / "no" / "where.html")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--html", "--perfetto"])
def test_no_target_takes_the_place_of_a_trace(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    files = [folder / f"rank-0.step-{step}.pt.trace.json" for step in (3, 9)]
    for file in files:
        file.write_text(json.dumps({"traceEvents": EVENTS}))
    link, other = tmp_path / "link.html", tmp_path / "other.json"
    link.symlink_to(files[0])
    other.write_text(files[0].read_text())
    text = other.read_text()
    cases = [
        ([files[0]], files[0]),
        ([files[0]], link),
        ([folder], files[0]),
        ([folder], link),
        ([folder], folder / "new.json"),  # it would be a trace of the folder the next time
        ([folder], other),
    ]
    for given, target in cases:
        against = ["--against", str(other)] if target == other and option == "--json" else []
        given = given if target != other or against else [other]
        assert main(["trace", *map(str, given), option, str(target), *against, "--no-cache"]) == 2
        said = capsys.readouterr().err
        assert "lies among the traces" in said
        assert said.count("\n") == 1
    assert [file.read_text() for file in (*files, other)] == [text] * 3
    assert not (folder / "new.json").exists()


@pytest.mark.parametrize("option", [["--html", "page"], ["--perfetto", "page"], ["--compat", "hta"]])
def test_what_a_comparison_does_not_write_is_refused(
    option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps({"traceEvents": EVENTS}))
    assert main(["trace", "a.json", "--against", "a.json", "--no-cache", *option]) == 2
    assert f"{option[0]}: is not for two runs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_was_left_out_is_said_whatever_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    whole.write_text(json.dumps({"traceEvents": EVENTS}))
    cut.write_text(json.dumps({"traceEvents": [*EVENTS, EVENTS[1]]})[:-40])
    for options in ([], ["--compat", "hta"]):
        assert main(["trace", str(cut), "--no-cache", *options]) == 0
        assert "note: rank 0: the file ends in the middle of an event" in capsys.readouterr().out
    compared = ["trace", str(whole), "--against", str(cut), "--no-cache"]
    assert main(compared) == 0
    said = capsys.readouterr().out
    assert "note: before: rank 0: the file ends in the middle of an event" in said
    assert "note: after" not in said
    assert main([*compared, "--json", "-"]) == 0
    assert "in the middle" in json.loads(capsys.readouterr().out)["notes"][0]


def test_what_cannot_be_opened_is_said_not_to_be_read_and_a_full_disk_not_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, pipe, full_disk = (tmp_path / name for name in ("a.json", "pipe", "full"))
    path.write_text(json.dumps({"traceEvents": EVENTS}))
    os.mkfifo(pipe)
    full_disk.symlink_to("/dev/full")

    def forbidden(folder: Path) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", forbidden)
        assert main(["trace", str(tmp_path)]) == 2
        assert capsys.readouterr().err == f"error: {tmp_path}: cannot be read: Permission denied\n"
    assert main(["trace", str(tmp_path / ("x" * 300))]) == 2
    assert "cannot be read: File name too long" in capsys.readouterr().err
    assert main(["trace", str(pipe)]) == 2
    assert "keep the trace in a file" in capsys.readouterr().err
    assert main(["trace", str(path), "--json", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: is a folder; name a file in it\n"
    for target in ("--json", "--html", "--perfetto"):
        assert main(["trace", str(path), "--no-cache", target, str(full_disk)]) == 2
        assert capsys.readouterr().err == f"error: {full_disk}: cannot be written: No space left on device\n"
    with monkeypatch.context() as patched, Path("/dev/full").open("w") as full:
        patched.setattr(sys, "stdout", full)
        assert main(["trace", str(path), "--no-cache"]) == 2
    assert capsys.readouterr().err == "error: standard output: cannot be written: No space left on device\n"
