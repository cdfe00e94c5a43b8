"""Records reach the trackers; nothing that a tracker does reaches the training."""

import json
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from stepladder.launch.console import Console
from stepladder.launch.errors import ExitCode, UsageError
from stepladder.launch.failures import written_down
from stepladder.launch.plan import make_plan
from stepladder.launch.recipe import read
from stepladder.launch.trackers import follow
from stepladder.launch.trackers.feed import Tracker, beginning_of
from stepladder.launch.trackers.redact import HIDDEN
from stepladder.launch.trackers.sweep import summary
from stepladder.trainer.checkpoint.errors import CheckpointError

KEY = "0123456789" * 4
REFUSED = "http://127.0.0.1:9"
WANDB = {"project": "p", "mode": "auto", "tags": [], "attach": [], "base_url": REFUSED, "finish_timeout_s": 20}
RECORDS = [
    {"step": 1, "loss": 4.5, "grad_norm": None, "step_ms": 90.0, "memory_gib": 1.0, "kind": "train"},
    {"step": 2, "loss": "nan", "grad_norm": 2.0, "step_ms": 10.0, "memory_gib": 3.0, "kind": "train"},
    {"step": 2, "held_out_loss": 4.0, "num_tokens": 8, "kind": "evaluation"},
    {"step": 4, "loss": 3.5, "grad_norm": 1.0, "step_ms": 12.0, "memory_gib": 2.0, "kind": "train"},
    {"step": 4, "held_out_loss": 4.25, "num_tokens": 8, "kind": "evaluation"},
]


@pytest.fixture(autouse=True)
def _nobody_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of whoever runs the tests is used, and nothing is sent anywhere."""
    for name in [each for each in os.environ if each.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def begin(
    folder: Path, name: str, table: dict[str, Any], *, first_step: int = 0, config: Any = None, **how: Any
) -> Any:
    return Tracker(beginning_of(name, table, folder=folder, first_step=first_step, config=config or {}), **how)


def run_through(folder: Path, name: str, table: dict[str, Any], reason: str = "done", **more: Any) -> list[str]:
    """What a tracker has to say of a run with these records."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in RECORDS))
    (folder / "exit.json").write_text(json.dumps({"code": 0, "steps": 4, "reason": reason}))
    tracker = begin(folder, name, table, **more)
    for record in RECORDS:
        tracker.tell(record)
    return tracker.close(0)


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_tensorboard_shows_every_number_of_every_record(tmp_path: Path) -> None:
    assert run_through(tmp_path, "tensorboard", {"flush_s": 10}, config={"recipe": {"name": "demo"}}) == []

    found = events(tmp_path)
    losses = [(each.step, each.value) for each in found.Scalars("train/loss")]
    assert [step for step, _ in losses] == [1, 2, 4]
    assert losses[0][1] == 4.5
    assert math.isnan(losses[1][1])
    assert [(each.step, each.value) for each in found.Scalars("train/grad_norm")] == [(2, 2.0), (4, 1.0)]
    assert [(each.step, each.value) for each in found.Scalars("evaluation/held_out_loss")] == [(2, 4.0), (4, 4.25)]
    assert b"demo" in found.Tensors("recipe")[0].tensor_proto.string_val[0]


def test_tensorboard_forgets_what_a_resumed_run_measures_again(tmp_path: Path) -> None:
    run_through(tmp_path, "tensorboard", {"flush_s": 10})
    time.sleep(1.1)  # event files are named by the second
    resumed = begin(tmp_path, "tensorboard", {"flush_s": 10}, first_step=2)
    resumed.tell(RECORDS[3] | {"loss": 3.25})
    assert resumed.close(0) == []

    losses = [(each.step, each.value) for each in events(tmp_path).Scalars("train/loss")]
    assert [losses[0], losses[-1]] == [(1, 4.5), (4, 3.25)]
    assert len(losses) == 3


def kept(folder: Path) -> Iterator[Any]:
    """The records of wandb's own log, which `wandb sync` reads: LevelDB's format in blocks of 32 KiB, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, begun = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        begun += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(begun)
            begun = b""


def run_id(folder: Path) -> str:
    return (folder / "trackers" / "wandb.id").read_text().strip()


def name_of(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def test_wandb_that_is_refused_keeps_the_run_offline_and_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (tmp_path / "report.html").write_text("<html></html>")
    table = WANDB | {"mode": "online", "attach": ["report", "traces"]}
    line, missing = run_through(tmp_path, "wandb", table, config={"recipe": {"seed": 7}})

    assert "there is no traces to attach" in missing
    assert f"{REFUSED} cannot be reached (Connection refused); the run is kept offline" in line
    records = list(kept(tmp_path))
    history = [{name_of(each): each.value_json for each in r.history.item} for r in records]
    history = [each for each in history if each]
    assert [json.loads(each["step"]) for each in history] == [each["step"] for each in RECORDS]
    assert [each["train/loss"] for each in history if "train/loss" in each] == ["4.5", "NaN", "3.5"]
    found = {name_of(each): each.value_json for r in records for each in r.summary.update}
    assert json.loads(found["best_held_out_loss"]) == 4.0
    assert KEY not in (tmp_path / "trackers" / "wandb.log").read_text()
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert [r.artifact.name for r in records if r.HasField("artifact")] == [f"report-{run_id(tmp_path)}"]
    run = next(r.run for r in records if r.HasField("run"))
    assert run.run_id == run_id(tmp_path)
    assert run.display_name == tmp_path.name
    assert {each.key: json.loads(each.value_json) for each in run.config.update}["recipe"] == {"seed": 7}


def test_wandb_without_a_key_is_offline_and_a_resumed_run_has_the_same_id(tmp_path: Path) -> None:
    from stepladder.launch.trackers.weights_and_biases import (
        _has_key,  # pyright: ignore[reportPrivateUsage]
        _run_id,  # pyright: ignore[reportPrivateUsage]
    )

    def of(first_step: int) -> str:
        return _run_id(beginning_of("wandb", WANDB, folder=tmp_path, first_step=first_step, config={}))

    first = of(0)
    assert of(4) == first
    assert of(0) != first
    assert not _has_key(REFUSED)
    (tmp_path / "no-netrc").write_text("machine 127.0.0.1 login user password hidden\n")
    assert _has_key(REFUSED)
    assert not _has_key("https://api.wandb.ai")


READS = "import sys; sys.stdin.readline(); "


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import time; time.sleep(60)", "did not finish in time"),
        ("import sys; sys.exit(3)", None),
        (READS + "print('gone', flush=True); import os; os.kill(os.getpid(), 9)", "gone"),
    ],
    ids=["hangs", "refuses", "is killed"],
)
def test_a_tracker_that_fails_costs_microseconds_a_record_and_a_bounded_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str | None
) -> None:
    monkeypatch.setattr("stepladder.launch.trackers.feed._GRACE_S", 0.5)
    tracker = begin(tmp_path, "wandb", WANDB | {"finish_timeout_s": 1}, command=[sys.executable, "-c", code], room=50)

    for step in range(3000):  # far more than pipe and queue have room for
        tracker.tell({"step": step, "loss": 1.0, "text": "x" * 200})

    lines = tracker.close(0)
    assert (said is None) or any(said in line for line in lines)
    assert any("was too slow for" in line for line in lines)


def test_a_tracker_whose_run_was_killed_keeps_what_it_has_and_leaves(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(RECORDS[0]) + "\n")
    first = asdict(beginning_of("tensorboard", {"flush_s": 10}, folder=tmp_path, first_step=0, config={}))
    told = "".join(json.dumps(each) + "\n" for each in (first, {"record": RECORDS[0], "at_s": 1.0}))
    command = [sys.executable, "-P", "-m", "stepladder.launch.trackers.process"]
    done = subprocess.run(command, input=told + '{"reco', capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    found = events(tmp_path)
    assert [each.value for each in found.Scalars("train/loss")] == [4.5]
    assert b"never came to say how it ended" in found.Tensors("summary")[0].tensor_proto.string_val[0]


def test_a_tracker_that_cannot_be_started_says_one_line(tmp_path: Path) -> None:
    tracker = begin(tmp_path, "wandb", WANDB, command=[str(tmp_path / "no-such-program")])
    tracker.tell(RECORDS[0])
    (line,) = tracker.close(0)
    assert "cannot be started" in line


def test_a_library_that_raises_says_one_line_and_takes_the_rest(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    (line,) = run_through(tmp_path, "tensorboard", {"flush_s": 10})
    assert line.startswith("tensorboard: gave up (")
    assert "metrics.jsonl has every record" in line


def test_the_summary_is_swept_from_what_the_run_left(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, RECORDS)) + '\n{"step": 5, "lo')
    found = summary(tmp_path)
    assert found["step"] == 4
    assert found["loss"] == 3.5
    assert found["median_step_ms"] == 11.0  # without the first, which compiles
    assert found["peak_memory_gib"] == 3.0
    assert (found["best_held_out_loss"], found["best_held_out_step"], found["held_out_loss"]) == (4.0, 2, 4.25)
    assert found["exit_code"] is None


def test_trackers_of_a_run_that_fails_see_how_it_ended(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []

    class Shown:
        def __init__(self, beginning: Any) -> None:
            pass

        def close(self, code: int, *, hurry: bool) -> list[str]:
            shown.append((code, hurry, summary(tmp_path)))
            return []

    monkeypatch.setattr(follow, "Tracker", Shown)
    recipe, console = read(str(tiny), ["trackers.tensorboard={}"]), Console(active=True, num_steps=4, first_step=0)

    def fail(error: Exception) -> None:
        with ExitStack() as stack:
            follow.metrics_file(stack, recipe, tmp_path, console, 0)
            with written_down(tmp_path, 0):
                raise error

    for error, code, reason in (
        (RuntimeError("torn"), 1, "rank 0: RuntimeError('torn')"),
        (CheckpointError("no room"), ExitCode.CHECKPOINT, "no room"),
    ):
        with pytest.raises(type(error)):
            fail(error)
        assert shown.pop() == (code, True, {"exit_code": code, "reason": reason})


def test_no_secret_of_an_error_is_in_the_summary(tmp_path: Path) -> None:
    reason = "cannot fetch https://bob:hunter2pw@store.example/x?token=SEEN123 with hf_ABCDEFGHIJKLMNOPQRSTUV"
    assert run_through(tmp_path, "tensorboard", {"flush_s": 10}, reason=reason) == []
    told = events(tmp_path).Tensors("summary")[0].tensor_proto.string_val[0].decode()
    assert f"cannot fetch https://{HIDDEN}@store.example/x?token={HIDDEN} with {HIDDEN}" in told


def test_a_library_that_is_not_installed_is_said_when_the_recipe_is_checked(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="`wandb` library is not installed; pip install 'stepladder\\[trackers\\]'"):
        read(str(tiny), ["trackers.wandb={}"])


def test_attachments_need_a_profiler_and_a_tracker_something_to_do(tiny: Path) -> None:
    with pytest.raises(UsageError, match="there will be no traces; add profiler"):
        make_plan(read(str(tiny), ["trackers.wandb.attach=['traces']"]), num_gpus=0)
    with pytest.raises(UsageError, match="none is on"):
        read(str(tiny), ["trackers={}"])
    with pytest.raises(UsageError, match="no address"):
        read(str(tiny), ["trackers.wandb.base_url=example.org"])


@pytest.mark.slow
def test_a_run_with_a_refused_wandb_trains_as_one_without(
    tiny: Path, tmp_path: Path, stepladder: Callable[..., Any]
) -> None:
    more = ["--set", "checkpoint.every=4", "--set", "run.num_steps=8"]
    tracked = ["--set", f"trackers.wandb.base_url={REFUSED}", "--set", "trackers.tensorboard={}"]
    plain = stepladder("run", str(tiny), *more, "--out", str(tmp_path / "plain"))
    done = stepladder("run", str(tiny), *more, *tracked, "--out", str(tmp_path / "tracked"), WANDB_API_KEY=KEY)
    assert (plain.returncode, done.returncode) == (0, 0), done.stderr
    assert done.stderr == ""
    assert done.stdout.count("wandb: ") == 1
    assert "Connection refused" in done.stdout

    def losses(name: str) -> list[tuple[int, float]]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [(each["step"], each["loss"]) for each in map(json.loads, lines)]

    assert losses("tracked") == losses("plain")
    shown = [(each.step, each.value) for each in events(tmp_path / "tracked").Scalars("train/loss")]
    assert [step for step, _ in shown] == [step for step, _ in losses("plain")]
    assert [value for _, value in shown] == pytest.approx([loss for _, loss in losses("plain")], rel=1e-6)
    assert len(list(kept(tmp_path / "tracked"))) > 8
