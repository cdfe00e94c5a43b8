"""`stepladder data`, as its page shows it and as it refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.slow
def test_every_command_of_the_page_works_in_its_order(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 6
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, command in (("stepladder", "-P -m stepladder"), ("python", "")):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        (bin_folder / name).chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    known = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "STEPLADDER_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=place,
        env=known,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "files are as they were written" in done.stdout
    assert "b.jsonl: line 401: is no JSON" in done.stderr
    assert "skipped     1 documents could not be read" in done.stdout
    assert "the data have 500 ids; use at least 500" in done.stderr
    assert "done: 3 of 3 steps" in done.stdout


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A small packed folder."""
    from stepladder.trainer.data.pack.job import pack
    from stepladder.trainer.data.pack.parts import Packing

    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"text number {i} " * (i + 1))
    pack(Packing(sources=(str(tmp_path / "*.txt"),)), tmp_path / "packed")
    return tmp_path / "packed"


def problems(recipe_file: Any, packed: Path, *overrides: str, ranks: int = 1) -> str:
    """What a plan with packed documents says."""
    from stepladder.launch.errors import UsageError
    from stepladder.launch.plan import make_plan
    from stepladder.launch.recipe import read

    path = recipe_file(f'[data.tokens]\nfolder = "{packed}"\npacking = "best_fit"\n')
    given = ["data.synthetic=false", "model.decoder.vocab_size=256", "model.decoder.tie_embeddings=false", *overrides]
    try:
        make_plan(read(str(path), given), num_gpus=0, num_ranks=ranks)
    except UsageError as error:
        return "\n".join(error.problems)
    return ""


def test_documents_side_by_side_are_refused_where_attention_cannot_keep_them_apart(
    recipe_file: Any, packed: Path
) -> None:
    assert problems(recipe_file, packed) == ""
    beside = "cannot work beside data documents"
    cp = problems(recipe_file, packed, "mesh.cp=2", "strategies.cp={}", "strategies.fsdp2={}", ranks=2)
    pp = problems(recipe_file, packed, "mesh.pp=2", "strategies.pp={}", ranks=2)
    assert f"strategies.cp: {beside}" in cp
    assert f"strategies.pp: {beside}" in pp
    split = ("data.tokens.packing=split", "mesh.cp=2", "strategies.cp={}", "strategies.fsdp2={}")
    assert beside not in problems(recipe_file, packed, *split, ranks=2)


def test_a_tokenizer_that_the_model_does_not_know_is_refused(recipe_file: Any, packed: Path) -> None:
    assert "vocab_size = 64: the data are bytes" in problems(recipe_file, packed, "model.decoder.vocab_size=64")


def test_inspect_finds_a_changed_byte(packed: Path, stepladder: Any) -> None:
    raw = bytearray((packed / "train.tokens").read_bytes())
    raw[3] ^= 1
    (packed / "train.tokens").write_bytes(raw)
    answer = stepladder("data", "inspect", str(packed))
    assert answer.returncode == 2
    assert "train.tokens: its SHA-256 is not the index's; pack the folder again" in answer.stderr
