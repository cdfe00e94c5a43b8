"""Whole runs of the command on meshes: what is displayed, held out and saved is that of one process."""

import json
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
extends = "demo"
profiler = false
[run]
num_steps = 6
log_every = 1
[model.decoder]
dim = 32
num_layers = 4
num_heads = 4
num_kv_heads = 2
ffn_dim = 64
[batch]
microbatch_size = {microbatch}
sequence_length = 32
[mesh]
{mesh}
[strategies]
ddp = false
schedule = false
{strategies}
[evaluation]
every = 3
num_microbatches = {held_out}
[checkpoint]
every = 3
"""
EXPERTS = '[model.decoder.moe]\nnum_experts = 4\ntop_k = 2\nffn_dim = 16\nbalance = "bias"\n'
MESHES: dict[str, tuple[str, str, int, int, str]] = {
    "pipeline of slices": ("pp = 2\ntp = 2", "tp = {}\npp = {}\naccumulation = {}", 4, 4, ""),
    "experts of parts of sequences": ("ep = 2\ncp = 2", "ep = {}\ncp = {}\nfsdp2 = {}", 4, 2, EXPERTS),
    "replicated shards of stages": (
        "pp = 2\ndp_replicate = 2\ndp_shard = 1",
        'fsdp2 = {}\npp = {schedule = "zbv"}\naccumulation = {num_microbatches = 4}',
        1,
        8,
        "",
    ),
}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [each.get("loss", each.get("held_out_loss")) for each in lines(folder)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MESHES)
def test_a_run_on_a_mesh_displays_evaluates_and_resumes_like_one_process(
    name: str, tmp_path: Path, stepladder: Any
) -> None:
    mesh, strategies, microbatch, held_out, model = MESHES[name]
    on_mesh, alone = tmp_path / "mesh.toml", tmp_path / "alone.toml"
    on_mesh.write_text(
        RECIPE.format(mesh=mesh, strategies=strategies, microbatch=microbatch, held_out=held_out) + model
    )
    alone.write_text(RECIPE.format(mesh="", strategies="", microbatch=8, held_out=2) + model)

    answers = [
        stepladder("run", str(alone), "--ranks", "1", "--out", str(tmp_path / "alone")),
        stepladder("run", str(on_mesh), "--ranks", "4", "--out", str(tmp_path / "whole")),
        stepladder("run", str(on_mesh), "--ranks", "4", "--out", str(tmp_path / "halves"), "--set", "run.num_steps=3"),
        stepladder("run", str(on_mesh), "--ranks", "4", "--out", str(tmp_path / "halves"), "--resume"),
    ]

    for answer in answers:
        assert answer.returncode == 0, answer.stderr
    truth, whole = losses(tmp_path / "alone"), losses(tmp_path / "whole")
    assert len(truth) == 6 + 3
    assert whole == pytest.approx(truth, rel=1e-5)
    assert [each["num_tokens"] for each in lines(tmp_path / "whole") if "num_tokens" in each] == [16 * 32] * 3
    norms = [each["grad_norm"] for each in lines(tmp_path / "whole") if "grad_norm" in each]
    true_norms = [each["grad_norm"] for each in lines(tmp_path / "alone") if "grad_norm" in each]
    assert norms == pytest.approx(true_norms, rel=1e-4)
    assert losses(tmp_path / "halves")[-4:] == whole[-4:], "a resumed run takes other steps"
