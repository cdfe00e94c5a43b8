"""A module of one's own: trained without Facts, its blocks detected, its mistakes told by file and line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_loop import by_hand, by_trainer, largest_difference, recipe_tree
from torch import Tensor, nn

from stepladder.launch.recipe import parse
from stepladder.strategies.base import Batch
from stepladder.strategies.materialise import build_whole
from stepladder.trainer.data.errors import DataError
from stepladder.trainer.data.module_config import ModuleData
from stepladder.trainer.data.module_source import ModuleSource
from stepladder.trainer.data.wanted import Need, silent
from stepladder.trainer.models import ModuleConfig
from stepladder.trainer.models.detect import find_blocks
from stepladder.trainer.own_file import OwnFileError

FILE = """
import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 2 * width)
        self.back = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.back(F.relu(self.wide(self.norm(x))))


def build():
    return nn.Sequential(nn.Linear(8, 16), Residual(16), Residual(16), nn.Linear(16, 1))


def loss(output, batch):
    return F.mse_loss(output.squeeze(-1), batch.labels, reduction="sum")


class Sums(torch.utils.data.Dataset):
    def __init__(self, size, seed):
        self.x = torch.randn(size, 8, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.x[i].abs().sum()


def data(split):
    return Sums(64, 0) if split == "train" else Sums(16, 1)
"""
TOLERANCE = 1e-5


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(FILE)
    return str(path)


def tree(file: str, strategies: dict[str, Any] | None = None, num_ranks: int = 1, **keys: Any) -> dict[str, Any]:
    return recipe_tree({"module": {"file": file} | keys}, {"module": {"file": file}}, strategies, num_ranks=num_ranks)


def squares(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(model(inputs).squeeze(-1), labels)


def truth(file: str) -> list[float]:
    whole = tree(file)
    return by_hand(whole, build_whole(parse(whole, {}).model.chosen.build, 3), squares)


SETTINGS: list[dict[str, Any]] = [
    {"ddp": {}},
    {"fsdp2": {}, "ac": {}},
    {"fsdp2": {}, "compile": {"backend": "eager"}, "accumulation": {"num_microbatches": 2}},
]


def differences(file: str) -> list[float]:
    expected = truth(file)
    return [largest_difference(by_trainer(tree(file, each, 2), 2), expected) for each in SETTINGS]


def test_it_takes_the_steps_of_a_plain_loop_on_two_ranks(file: str, run_ranks: Any) -> None:
    losses = truth(file)
    assert losses[-1] < 0.95 * losses[0]

    for setting, difference in zip(SETTINGS, run_ranks(differences, 2, file), strict=True):
        assert difference <= TOLERANCE, setting


def test_a_mean_is_taken_for_a_mean_and_a_model_may_return_its_loss(tmp_path: Path, file: str) -> None:
    mean = tmp_path / "mean.py"
    mean.write_text(FILE.replace('reduction="sum"', 'reduction="mean"'))
    own = tmp_path / "own.py"
    own.write_text(
        FILE.replace("def loss(output, batch):", "def unused(output, batch):").replace(
            "def build():",
            "class WithLoss(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.inner = inner()\n\n"
            "    def forward(self, x):\n"
            "        return F.mse_loss(self.inner(x['x']).squeeze(-1), x['y'])\n\n\n"
            "def collate(samples):\n"
            "    return {'x': torch.stack([x for x, _ in samples]), 'y': torch.stack([y for _, y in samples])}\n\n\n"
            "def build():\n    return WithLoss()\n\n\n"
            "def inner():",
        )
    )
    expected = truth(file)

    for path in (mean, own):
        assert largest_difference(by_trainer(tree(str(path), reduction="mean"), 1), expected) <= TOLERANCE


class Two(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)


class Other(Two):
    pass


def lists(*sizes: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(*(Two() for _ in range(size))) for size in sizes)


class Tied(nn.Module):
    """Two blocks share a weight, which neither can gather alone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Two() for _ in range(4))
        self.blocks[0].a = self.blocks[3].a


DETECTED = {
    "a list": (lambda: nn.ModuleDict({"layers": nn.ModuleList([Two(), Two()]), "end": Two()}), "layers.0 layers.1"),
    "stages": (lambda: lists(1, 2), "0.0 1.0 1.1"),
    "two lists": (
        lambda: nn.ModuleDict({"up": nn.Sequential(Two(), Two()), "down": nn.Sequential(Other(), Other())}),
        "up.0 up.1 down.0 down.1",
    ),
    "mixed layers": (lambda: nn.ModuleList([Two(), Other(), Two(), Other()]), "0 1 2 3"),
    "among others": (lambda: nn.Sequential(nn.Linear(4, 4), Two(), nn.ReLU(), Two(), nn.Linear(4, 4)), "1 3"),
    "torch's": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False),
        "layers.0 layers.1",
    ),
    "shared": (Tied, "blocks.1 blocks.2"),
    "by size": (
        lambda: nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Sequential(Two(32), nn.LayerNorm(32))),
        "0 2.0.a 2.0.b 2.1",
    ),
}


@pytest.mark.parametrize("name", DETECTED)
def test_blocks_are_found(name: str) -> None:
    make, expected = DETECTED[name]
    assert " ".join(find_blocks(make())) == expected


BROKEN = {
    "no build": ("def build():", "def bild():", "has no function build(); define it there"),
    "a build that fails": ("return nn.Seq", "1 / 0\n    return nn.Seq", "line 19, in build: ZeroDivisionError"),
    "a build that leaves": (
        "return nn.Seq",
        "raise SystemExit(0)\n    return nn.Seq",
        "line 19, in build: ends the program",
    ),
    "a file that leaves": ("import torch\n", "import sys\nsys.exit()\n", "line 3, in module: ends the program"),
    "an import": ("import torch\n", "import torch, nowhere_to_be_found\n", "line 2, in module: ModuleNotFoundError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_in_the_file_is_told_by_its_line(name: str, tmp_path: Path) -> None:
    before, after, expected = BROKEN[name]
    path = tmp_path / f"{name.replace(' ', '_')}.py"
    path.write_text(FILE.replace(before, after, 1))

    with pytest.raises(OwnFileError) as refused:
        ModuleConfig(file=str(path)).facts(1)

    assert expected in str(refused.value)
    assert str(path) in str(refused.value)


def test_what_is_no_file_or_no_python_is_found_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("raise SystemExit\nclass class")
    assert "line 2" in next(ModuleConfig(file=str(path)).problems())
    assert "cannot be read" in next(ModuleData(file=str(tmp_path / "absent.py")).problems())
    assert "cannot be read" in next(ModuleData(file=str(tmp_path)).problems())


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("return self.x[i],", "return self.y[i],", "in __getitem__: AttributeError"),
        ("return Sums(64, 0)", "return iter(Sums(64, 0))", "which has no length"),
        ("Sums(16, 1)", "Sums(0, 1)", "has 0 samples, not the 4 that are needed"),
        ("def data(", "def dada(", "has no function data()"),
        ("return self.x[i],", "exit(0), self.x[i],", "in __getitem__: ends the program, with exit code 0"),
        ("return len(self.x)", "return -1", "which has no usable length (__len__() should return >= 0)"),
        ("return len(self.x)", "return 1 / 0", "line 31, in __len__: ZeroDivisionError"),
        ("return len(self.x)", "exit(0)", "in __len__: ends the program, with exit code 0"),
    ],
)
def test_data_that_cannot_be_had_are_told_with_file_and_sample(
    before: str, after: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.py"
    path.write_text(FILE.replace(before, after))

    def use() -> None:
        ModuleData(file=str(path)).prepare(Need(sequence_length=1, held_out_samples=4), silent)
        ModuleSource(str(path), "train").__getitems__([3, 5])

    with pytest.raises(DataError) as refused:
        use()

    assert expected in str(refused.value)
    assert "__getitem__" not in expected or "(samples 3, 5)" in str(refused.value)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [("output.sum().detach()", "a number without gradients"), ("output", "no single number"), ("3.0", "no single")],
)
def test_a_loss_that_nothing_can_be_learnt_from_is_one_sentence(returned: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(FILE.replace("return F.mse_loss(", f"return {returned}\n    return F.mse_loss("))
    config = ModuleConfig(file=str(path))
    output, batch = config.build()(torch.ones(2, 8)), Batch(torch.ones(2, 8), torch.ones(2))

    with pytest.raises(OwnFileError, match=rf"net.py: loss\(\) returns {expected}"):
        config.loss()(output, batch)


def test_a_loss_without_gradients_is_fine_where_nothing_is_learnt(file: str) -> None:
    config = ModuleConfig(file=file)
    with torch.no_grad():
        value = config.loss()(config.build()(torch.ones(2, 8)), Batch(torch.ones(2, 8), torch.ones(2)))
    assert value.ndim == 0


def test_a_loss_that_leaves_with_code_0_is_a_run_that_failed(tmp_path: Path, stepladder: Any) -> None:
    (tmp_path / "net.py").write_text(FILE.replace("return F.mse_loss(", "raise SystemExit(0)\n    return F.mse_loss("))
    (tmp_path / "r.toml").write_text(
        "[run]\nnum_steps = 2\n[model.module]\nfile = 'net.py'\n[data.module]\nfile = 'net.py'\n[strategies.adamw]\n"
    )
    done = stepladder("run", "r.toml", "--out", "o", cwd=tmp_path)
    left = json.loads((tmp_path / "o" / "exit.json").read_text())

    assert done.returncode == left["code"] == 1
    assert "net.py, line 23, in loss: ends the program, with exit code 0" in done.stderr
    assert "net.py, line 23, in loss: ends the program" in left["reason"]


def test_a_forward_pass_that_fails_is_one_sentence(tmp_path: Path, stepladder: Any) -> None:
    (tmp_path / "net.py").write_text(FILE.replace("self.wide(self.norm(x))", "self.wyde(self.norm(x))"))
    (tmp_path / "r.toml").write_text(
        "[run]\nnum_steps = 2\n[model.module]\nfile = 'net.py'\n[data.module]\nfile = 'net.py'\n[strategies.adamw]\n"
    )
    done = stepladder("run", "r.toml", "--out", "o", cwd=tmp_path)

    assert done.returncode == 1
    assert "net.py, line 15, in forward: AttributeError: 'Residual' object has no attribute 'wyde'" in done.stderr
    assert "Traceback" not in done.stderr
