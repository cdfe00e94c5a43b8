"""A recipe small enough that starting Python is the expensive part of running it."""

from collections.abc import Callable
from pathlib import Path

import pytest

TINY = """
name = "tiny"

[run]
num_steps = 8
log_every = 1
device = "cpu"

[model.decoder]
dim = 32
num_layers = 2
num_heads = 4
num_kv_heads = 2
ffn_dim = 64
vocab_size = 64

[data.synthetic]

[batch]
microbatch_size = 4
sequence_length = 32

[strategies.adamw]
[strategies.clip]
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[..., Path]:
    """`recipe_file(text, name=...)`: a recipe of that text, after the tiny one unless `alone`."""

    def write(text: str = "", *, name: str = "tiny.toml", alone: bool = False) -> Path:
        path = tmp_path / name
        path.write_text(text if alone else TINY + text)
        return path

    return write


@pytest.fixture
def tiny(recipe_file: Callable[..., Path]) -> Path:
    return recipe_file()


@pytest.fixture
def made_up_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comparisons on a `Landscape` need around them."""
    from landscape import on_made_up_machines  # only here: most tests of the launcher compare nothing

    on_made_up_machines(tmp_path, monkeypatch)
