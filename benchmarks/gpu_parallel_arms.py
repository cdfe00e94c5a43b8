"""What `gpu_parallel.py` compares: one model, and the strategies of each arm."""

from dataclasses import dataclass, field
from typing import Any

EAGER, COMPILED = "bf16", "bf16 compiled"
LOSS_TOLERANCE = 0.05
"""Relative difference of the last loss that another number format may make; reordered sums make far less."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run: the strategies beside AdamW, clipping and BF16, and what its time is compared with."""

    name: str
    strategies: dict[str, Any] = field(default_factory=dict[str, Any])
    versus: str = COMPILED


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is."""

    model: dict[str, Any]
    microbatch_size: int
    sequence_length: int
    num_steps: int
    log_every: int
    first_counted: int
    """Steps up to this one warm up: kernels are chosen and compiled, memory is allocated."""
    device: str

    @property
    def tokens_per_step(self) -> int:
        return self.microbatch_size * self.sequence_length


FULL = Size(
    model={
        "dim": 2048,
        "num_layers": 12,
        "num_heads": 16,
        "num_kv_heads": 8,
        "ffn_dim": 5632,
        "vocab_size": 32768,
    },
    microbatch_size=4,
    sequence_length=2048,
    num_steps=40,
    log_every=5,
    first_counted=15,
    device="cuda",
)
"""0.7 billion parameters and 8192 tokens a step: about 25 GB without any saving of memory."""
TINY = Size(
    model={"dim": 32, "num_layers": 1, "num_heads": 2, "ffn_dim": 64, "vocab_size": 64},
    microbatch_size=1,
    sequence_length=32,
    num_steps=4,
    log_every=1,
    first_counted=2,
    device="cpu",
)
"""Just enough to go through every line of the script."""


def arms() -> list[Arm]:
    """All arms, the ones that matter most first: time may run out."""
    compiled: dict[str, Any] = {"compile": {}}
    spare: dict[str, Any] = {"preserve_rng_state": False}
    return [
        Arm(name=EAGER, versus=EAGER),
        Arm(name=COMPILED, strategies=compiled, versus=EAGER),
        Arm(name="fp8 tensorwise", strategies=compiled | {"fp8": {"recipe": "tensorwise"}}),
        Arm(name="fp8 rowwise", strategies=compiled | {"fp8": {"recipe": "rowwise"}}),
        Arm(name="cuda graph", strategies={"cuda_graph": {}}, versus=EAGER),
        Arm(name="cuda graph compiled", strategies=compiled | {"cuda_graph": {}}),
        Arm(name="ac full", strategies=compiled | {"ac": {"mode": "full"} | spare}),
        Arm(name="ac selective", strategies=compiled | {"ac": {"mode": "selective"} | spare}),
        Arm(name="ac budget", strategies=compiled | {"ac": {"mode": "budget", "budget": 0.5}}),
        Arm(name="compile reduce-overhead", strategies={"compile": {"scope": "model", "mode": "reduce-overhead"}}),
        Arm(name="compile max-autotune", strategies={"compile": {"mode": "max-autotune-no-cudagraphs"}}),
        Arm(name="compile model", strategies={"compile": {"scope": "model"}}),
        Arm(name="fp8 rowwise_with_gw_hp", strategies=compiled | {"fp8": {"recipe": "rowwise_with_gw_hp"}}),
    ]


def core() -> set[str]:
    """The arms that get their second turn before the others get theirs."""
    return {EAGER, COMPILED, "fp8 tensorwise", "fp8 rowwise"}


def recipe_of(arm: Arm, size: Size) -> dict[str, Any]:
    """The recipe of an arm, as TOML tables. Few samples, so that the loss falls and a fault in it shows."""
    strategies: dict[str, Any] = {"adamw": {"learning_rate": 3e-4}, "amp": {}, "clip": {}} | arm.strategies
    if size.device == "cpu":  # the same roundings and the same graphs, without the hardware and without a C++ compiler
        if "fp8" in strategies:
            strategies["fp8"] = strategies["fp8"] | {"emulate": True}
        if "compile" in strategies:
            strategies["compile"] = {"backend": "aot_eager"} | strategies["compile"]
    return {
        "name": arm.name.replace(" ", "_"),
        "run": {"num_steps": size.num_steps, "log_every": size.log_every, "device": size.device},
        "model": {"decoder": size.model},
        "data": {"synthetic": {"num_samples": 4 * size.microbatch_size}},
        "batch": {"microbatch_size": size.microbatch_size, "sequence_length": size.sequence_length},
        "strategies": strategies,
    }
