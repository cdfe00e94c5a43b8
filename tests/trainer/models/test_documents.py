"""A document among others is the document alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stepladder.launch.build import build_program
from stepladder.launch.plan import make_plan
from stepladder.launch.ranks import Ranks
from stepladder.launch.recipe import parse
from stepladder.profiling.record import no_span
from stepladder.strategies.base import Batch
from stepladder.trainer.data.pack.best_fit import best_fit
from stepladder.trainer.data.pack.job import pack
from stepladder.trainer.data.pack.parts import Packing
from stepladder.trainer.data.token_source import TokenDocuments
from stepladder.trainer.models.config import DecoderConfig
from stepladder.trainer.models.decoder import Decoder, next_token_loss

CONFIG = DecoderConfig(dim=64, num_layers=3, num_heads=4, num_kv_heads=2, ffn_dim=96, vocab_size=97)
LENGTH = 48


def packed(sizes: list[int]) -> tuple[np.ndarray, np.ndarray, Batch]:
    """Tokens, offsets, and all samples of them in one batch."""
    tokens = np.random.default_rng(0).integers(1, 97, sum(sizes)).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)
    plan = best_fit(offsets, LENGTH)
    source = TokenDocuments(tokens, None, plan, alone=False, end_id=0, fingerprint="x")
    return tokens, offsets, source.__getitems__(list(range(len(source))))


def test_logits_and_loss_of_packed_documents_are_those_of_each_alone() -> None:
    torch.manual_seed(0)
    model = Decoder(CONFIG)
    tokens, offsets, batch = packed([5, 49, 17, 30, 2, 1, 44, 11, 23])
    assert batch.documents is not None
    with torch.no_grad():
        logits = model(*batch.arguments)
        whole = float(next_token_loss(logits, batch))
        alone = 0.0
        found = 0
        for begin, end in zip(offsets.tolist(), offsets.tolist()[1:], strict=False):
            if end - begin < 2:
                continue
            document = torch.from_numpy(tokens[begin:end].astype(np.int64))[None]
            single = model(document[:, :-1])
            alone += float(next_token_loss(single, Batch(document[:, :-1], document[:, 1:])))
            for row in range(len(batch.inputs)):
                for number in batch.documents[row].unique().tolist():
                    here = (batch.documents[row] == number) & (batch.labels[row] != -100)
                    if batch.inputs[row][here].tolist() == document[0, :-1].tolist():
                        torch.testing.assert_close(logits[row][here], single[0], rtol=0, atol=1e-5)
                        found += 1
    assert found == 8
    assert abs(whole - alone) < 1e-3


def test_a_window_without_the_mask_does_look_into_the_document_before() -> None:
    torch.manual_seed(0)
    model = Decoder(CONFIG)
    _, _, batch = packed([20, 20])
    with torch.no_grad():
        apart, together = model(*batch.arguments), model(batch.inputs, batch.positions)
    torch.testing.assert_close(apart[0, :19], together[0, :19], rtol=0, atol=1e-5)
    assert float((apart[0, 19:38] - together[0, 19:38]).abs().max()) > 1e-3


def gradients(folder: Path, batch: Batch, **strategies: Any) -> list[torch.Tensor]:
    """Loss and gradients of a step of the recipe on the batch."""
    model = {"dim": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 96, "vocab_size": 256}
    recipe = parse(
        {
            "run": {"device": "cpu"},
            "model": {"decoder": model},
            "data": {"tokens": {"folder": str(folder), "packing": "best_fit"}},
            "batch": {"sequence_length": LENGTH, "microbatch_size": len(batch.inputs)},
            "strategies": {"adamw": {}, **strategies},
        },
        {},
    )
    plan = make_plan(recipe, num_gpus=0)
    program = build_program(plan, Ranks(rank=0, local_rank=0, num_ranks=1), torch.device("cpu"))
    loss = program.forward_backward(program, [batch], 1.0, no_span)
    return [loss, *(parameter.grad for parameter in program.model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_compiled_and_recomputed_blocks_keep_documents_apart(mode: str, tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"a text {i}")
    pack(Packing(sources=(str(tmp_path / "*.txt"),)), tmp_path / "packed")
    _, _, batch = packed([5, 49, 17, 30, 2, 1, 44, 11, 23])
    plain = gradients(tmp_path / "packed", batch)
    fancy = gradients(
        tmp_path / "packed", batch, ac={"mode": mode}, compile={"backend": "aot_eager", "fullgraph": True}
    )
    assert len(plain) == len(fancy) > 10
    for one, other in zip(plain, fancy, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
