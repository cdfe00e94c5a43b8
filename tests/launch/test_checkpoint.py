"""A checkpoint is whole or absent, gives back what it was given, and is never trusted."""

import json
import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from stepladder.launch.build import build_program
from stepladder.launch.plan import make_plan
from stepladder.launch.ranks import Ranks
from stepladder.launch.recipe import parse
from stepladder.trainer.checkpoint.config import CheckpointConfig
from stepladder.trainer.checkpoint.errors import CheckpointError
from stepladder.trainer.checkpoint.manager import Checkpoints, complete, last_checkpoint
from stepladder.trainer.checkpoint.safe_dcp import SafePlanner, SafeReader

MODEL = {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 64, "vocab_size": 64}
KEEP = CheckpointConfig(keep=2)


def checkpoints_in(folder: Path, *, seed: int = 0, identity: dict[str, Any] | None = None, **table: Any) -> Checkpoints:
    """A fresh model and optimizer on one rank, one step taken, so that the optimizer has a state."""
    recipe = parse(
        {
            "run": {"seed": seed, "device": "cpu"},
            "model": {"decoder": MODEL},
            "data": {"synthetic": {}},
            "strategies": {"adamw": {}} | table,
        },
        {},
    )
    device = torch.device("cpu")
    plan = make_plan(recipe, num_gpus=0)
    program = build_program(plan, Ranks(rank=0, local_rank=0, num_ranks=1), device)
    assert program.make_optimizer is not None
    optimizer = program.make_optimizer(program.model)
    program.model(torch.arange(64).reshape(2, 32) % 60 + seed).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return Checkpoints(
        folder=folder,
        program=program,
        optimizer=optimizer,
        device=device,
        rank=0,
        num_ranks=1,
        agree=lambda problem: problem,
        identity=identity or {"seed": 0, "data": "d", "tokens_per_step": 64},
    )


def contents(checkpoints: Checkpoints) -> dict[str, torch.Tensor]:
    """Every tensor of the model and of the optimizer, by name."""
    found = {f"model.{name}": p.detach().clone() for name, p in checkpoints.program.model.named_parameters()}
    for i, state in enumerate(checkpoints.optimizer.state.values()):
        found |= {f"optimizer.{i}.{key}": torch.as_tensor(value).clone() for key, value in state.items()}
    return found


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Checkpoints, Path]:
    made = checkpoints_in(tmp_path / "checkpoints")
    path = made.save(7, KEEP)
    assert path is not None
    return made, path


def refusal(path: Path, *, may_change: bool = False) -> str:
    """What is said about a checkpoint that is refused, after making sure that nothing has been loaded from it."""
    other = checkpoints_in(path.parent, seed=1)
    before = contents(other)
    with pytest.raises(CheckpointError) as caught:
        other.load(path)
    assert may_change or equal(contents(other), before), "a refused checkpoint changed the run"
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    return said


def test_what_is_saved_is_what_is_loaded(saved: tuple[Checkpoints, Path]) -> None:
    made, path = saved
    other = checkpoints_in(path.parent, seed=1)
    assert not equal(contents(other), contents(made))
    assert len(contents(made)) > 50

    made.save(8, KEEP)
    drawn = torch.rand(3), random.random()
    step = other.load(path.parent / "step-000008")

    assert step == 8
    assert equal(contents(other), contents(made))
    again = torch.rand(3), random.random()
    assert torch.equal(again[0], drawn[0])
    assert again[1] == drawn[1]
    assert random.random() != drawn[1]


def test_hyperparameters_come_from_the_recipe_and_not_from_the_checkpoint(saved: tuple[Checkpoints, Path]) -> None:
    _, path = saved
    other = checkpoints_in(path.parent, adamw={"learning_rate": 0.5})

    other.load(path)

    assert {group["lr"] for group in other.optimizer.param_groups} == {0.5}


def test_loss_scaling_comes_back(tmp_path: Path) -> None:
    fp16 = {"amp": {"dtype": "fp16", "init_scale": 8.0}}
    made = checkpoints_in(tmp_path, **fp16)
    state = made.program.loss_scaling.state() | {"scale": 2.0, "_growth_tracker": 5}
    made.program.loss_scaling.restore(state)
    made.save(1, KEEP)
    other = checkpoints_in(tmp_path, **fp16)

    other.load(tmp_path / "step-000001")

    assert other.program.loss_scaling.state() == state


def test_a_run_may_go_on_in_another_format(saved: tuple[Checkpoints, Path]) -> None:
    """Loss scaling then begins with what its recipe says."""
    made, path = saved
    other = checkpoints_in(path.parent, amp={"dtype": "fp16", "init_scale": 8.0})

    assert other.load(path) == 7

    assert equal(contents(other), contents(made))
    assert other.program.loss_scaling.state()["scale"] == 8.0


def test_a_step_is_saved_once(saved: tuple[Checkpoints, Path]) -> None:
    made, path = saved
    times = {file: file.stat().st_mtime_ns for file in path.iterdir()}

    assert made.save(7, KEEP) is None
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == times


def test_the_newest_are_kept(tmp_path: Path) -> None:
    made = checkpoints_in(tmp_path)

    for step in (999_999, 1_000_000, 2, 1_000_001):  # by number, not by name
        made.save(step, KEEP)

    assert list(complete(tmp_path)) == [1_000_000, 1_000_001]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-1000001"]
    assert last_checkpoint(tmp_path).name == "step-1000001"


def test_half_a_checkpoint_is_never_taken_for_one(tmp_path: Path) -> None:
    for name in (".partial-step-000009", "step-000008", "step-x", "step-000007.old"):
        (tmp_path / name).mkdir()
    (tmp_path / ".partial-step-000009" / "state.json").write_text("{}")
    (tmp_path / "step-000007.old" / "state.json").write_text("{}")

    assert complete(tmp_path) == {}
    with pytest.raises(CheckpointError, match="holds no complete checkpoint; start a new run"):
        last_checkpoint(tmp_path)


def test_what_an_interrupted_save_has_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".partial-step-000001").mkdir()
    (tmp_path / ".partial-step-000001" / "__9_0.distcp").write_text("old")

    path = checkpoints_in(tmp_path).save(1, KEEP)

    assert path is not None
    assert not (path / "__9_0.distcp").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["step-000001"]


def test_a_save_that_fails_leaves_the_earlier_ones_and_no_half(saved: tuple[Checkpoints, Path]) -> None:
    """A file may not grow beyond 10 kB: what a full disk looks like from here."""
    made, path = saved
    before = {file: file.read_bytes() for file in path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # Python ignores SIGXFSZ, so writing fails
    try:
        with pytest.raises(CheckpointError) as caught:
            made.save(8, CheckpointConfig(keep=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert "step-000008: cannot be written (" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    made.load(path)


class _Creates:
    """Unpickling this creates a file: stands for any code at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


@dataclass
class _Hides:
    """A harmless-looking object that carries one that is not."""

    inside: Any


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"a": [evil]}, _Hides], ids=["bare", "nested", "own"])
def test_metadata_that_brings_code_is_refused_and_runs_nothing(
    wrap: Callable[[Any], Any], saved: tuple[Checkpoints, Path], tmp_path: Path
) -> None:
    _, path = saved
    bait = tmp_path / "bait"
    (path / ".metadata").write_bytes(pickle.dumps(wrap(_Creates(bait))))
    pickle.loads(pickle.dumps(_Creates(tmp_path / "control")))
    assert (tmp_path / "control").exists(), "the attack itself does not work, so this test would prove nothing"

    said = refusal(path)

    assert not bait.exists()
    assert "which no checkpoint needs; the file is damaged or hostile" in said


def test_an_item_that_brings_code_is_refused_and_runs_nothing(saved: tuple[Checkpoints, Path], tmp_path: Path) -> None:
    """An item that ought to be a tensor is stored as a pickle instead."""
    made, path = saved
    bait = tmp_path / "bait"
    tensors = made._tensors()
    tensors["model"][next(iter(tensors["model"]))] = _Creates(bait)
    state = (path / "state.json").read_text()
    shutil.rmtree(path)
    dcp.save(tensors, checkpoint_id=path, no_dist=True)
    (path / "state.json").write_text(state)
    dcp.load({"model": dict(tensors["model"])}, checkpoint_id=path, no_dist=True)
    assert bait.exists(), "plain torch does not run it, so this test would prove nothing"
    bait.unlink()

    refusal(path)

    assert not bait.exists()


def test_a_non_tensor_item_is_read_without_running_it(tmp_path: Path) -> None:
    """The same through the planner itself, whose caller does expect something else than a tensor."""
    bait, good, evil = tmp_path / "bait", tmp_path / "good", tmp_path / "evil"
    dcp.save({"a": {"item": [1, "two"]}}, checkpoint_id=good, no_dist=True)
    dcp.save({"a": {"item": _Creates(bait)}}, checkpoint_id=evil, no_dist=True)

    loaded: dict[str, Any] = {"a": {"item": [0, ""]}}
    dcp.load(loaded, storage_reader=SafeReader(good), planner=SafePlanner(), no_dist=True)
    with pytest.raises(BaseException, match="holds more than plain values; refused"):
        dcp.load({"a": {"item": None}}, storage_reader=SafeReader(evil), planner=SafePlanner(), no_dist=True)

    assert loaded == {"a": {"item": [1, "two"]}}
    assert not bait.exists()


def point_elsewhere(path: Path, target: str) -> None:
    """Let the metadata name another file for every tensor."""
    metadata = pickle.loads((path / ".metadata").read_bytes())
    metadata.storage_data = {
        index: replace(info, relative_path=target) for index, info in metadata.storage_data.items()
    }
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("where", ["parent", "absolute", "below", "symlink", "hidden parent", "folder"])
def test_a_path_out_of_the_folder_is_refused(where: str, saved: tuple[Checkpoints, Path]) -> None:
    """The file exists and holds the very tensors: only where it lies is wrong."""
    _, path = saved
    data = path / "__0_0.distcp"
    outside = path.parent / "outside.distcp"
    shutil.copy(data, outside)
    (path / "sub").mkdir()
    shutil.copy(data, path / "sub" / "x.distcp")
    (path / "link.distcp").symlink_to(outside)
    targets = {
        "parent": "../outside.distcp",
        "absolute": str(outside),
        "below": "sub/x.distcp",
        "symlink": "link.distcp",
        "hidden parent": f"sub/../../{outside.name}",
        "folder": "sub",
    }
    point_elsewhere(path, targets[where])

    assert "which is not a plain file of its own" in refusal(path)


def test_another_name_inside_the_folder_is_fine(saved: tuple[Checkpoints, Path]) -> None:
    """The control of the test above: what it does to the metadata is not itself refused."""
    made, path = saved
    (path / "__0_0.distcp").rename(path / "other.distcp")
    point_elsewhere(path, "other.distcp")
    other = checkpoints_in(path.parent, seed=1)

    other.load(path)

    assert equal(contents(other), contents(made))


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "noise"])
def test_a_damaged_file_is_one_sentence_with_the_folder(
    name: str, damage: str, saved: tuple[Checkpoints, Path]
) -> None:
    _, path = saved
    raw = (path / name).read_bytes()
    if damage == "missing":
        (path / name).unlink()
    else:
        noise = bytes(b ^ 0xA5 for b in raw)
        (path / name).write_bytes({"empty": b"", "half": raw[: len(raw) // 2], "noise": noise}[damage])

    refusal(path, may_change=name == "__0_0.distcp")  # the undamaged half has been read by then; the run ends here


FOREIGN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another seed": (lambda s: s["identity"].update(seed=3), "was trained with seed = 3, but the recipe says 0"),
    "other data": (lambda s: s["identity"].update(data="e"), "was trained with data = e, but the recipe says d"),
    "another batch": (lambda s: s["identity"].update(tokens_per_step=1), "was trained with tokens_per_step = 1,"),
    "no identity": (lambda s: s["identity"].clear(), "was trained with seed = None"),
    "a later format": (lambda s: s.update(format=2), "format 2, but this version reads 1; upgrade"),
    "no step": (lambda s: s.pop("step"), "state.json: cannot be read ('step')"),
    "a step in words": (lambda s: s.update(step="seven"), "step = 'seven' is not the folder's"),
    "a negative step": (lambda s: s.update(step=-5), "step = -5 is not the folder's"),
    "a true step": (lambda s: s.update(step=True), "step = True is not the folder's"),
    "half a step": (lambda s: s.update(step=7.5), "step = 7.5 is not the folder's"),
    "an endless step": (lambda s: s.update(step=float("inf")), "step = inf is not the folder's"),
    "an identity that is no table": (lambda s: s.update(identity=3), "state.json: cannot be read"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_checkpoint_of_another_run_is_refused(case: str, saved: tuple[Checkpoints, Path]) -> None:
    _, path = saved
    change, expected = FOREIGN[case]
    state = json.loads((path / "state.json").read_text())
    change(state)
    (path / "state.json").write_text(json.dumps(state))

    assert expected in refusal(path)


def test_state_that_is_no_table_is_refused(saved: tuple[Checkpoints, Path]) -> None:
    _, path = saved
    (path / "state.json").write_text("[1]")

    assert "state.json: cannot be read" in refusal(path)


def test_a_model_of_another_shape_is_refused(saved: tuple[Checkpoints, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = saved
    monkeypatch.setitem(MODEL, "ffn_dim", 96)

    refusal(path)
