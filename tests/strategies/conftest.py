"""A small decoder as a program, and the run that it is part of, for tests of one strategy at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stepladder.strategies.base import Facts, Program, Run
from stepladder.strategies.clip import measure_norm
from stepladder.strategies.mesh import Axis
from stepladder.trainer.models.config import DecoderConfig
from stepladder.trainer.models.decoder import next_token_loss
from stepladder.trainer.step import accumulate

TINY = {"dim": 16, "num_layers": 4, "num_heads": 2, "ffn_dim": 32, "vocab_size": 32}


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """`make_run(active={"ac"}, num_blocks=4)`: what strategies are told, without mesh or device unless given."""

    def make(*, num_blocks: int = 4, active: Any = (), **changes: Any) -> Run:
        values: dict[str, Any] = {
            "device_type": "cpu",
            "degrees": dict.fromkeys(Axis, 1),
            "facts": Facts(blocks=tuple(f"layers.{i}" for i in range(num_blocks))),
            "num_steps": 100,
            "tokens_per_step": 1000,
            "seed": 0,
            "active": frozenset(active),
            "device": torch.device("cpu"),
        }
        return Run(**values | changes)

    return make


@pytest.fixture
def make_program() -> Callable[..., Program]:
    """`make_program(num_layers=2)`: a decoder with weights from a fixed seed; `device="meta"` for none at all."""

    def make(*, device: str = "cpu", model: Any = None, facts: Facts | None = None, **dimensions: Any) -> Program:
        config = DecoderConfig(**TINY | dimensions)
        if model is None:
            torch.manual_seed(0)
            with torch.device(device):
                model = config.build()
        return Program(
            model=model,
            facts=facts or config.facts(8),
            loss=next_token_loss,
            forward_backward=accumulate,
            clip_gradients=measure_norm,
        )

    return make
