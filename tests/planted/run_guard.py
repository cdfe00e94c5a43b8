"""How small an error in the mathematics of an arm the guard finds: planted ones of decreasing size, tier by tier.

Started by `make test-guard`; takes some minutes on two cores. A small decoder, one rank, 20 steps; the bias test with
4 seeds of 40 steps, and as many again if these do not decide.
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "shared"))

from guard_plants import (
    InProcess,
    Tamper,
    dropped_gradient,
    faster_learning,
    none,
    stale_weight_once,
    without_causal_mask,
    wrong_loss_scale,
)

from stepladder.launch.compare.guard import Effort, GuardResult, check_parity
from stepladder.launch.plan import make_plan
from stepladder.launch.recipe import parse
from stepladder.launch.schema import Recipe

EFFORT = Effort(num_steps=20, bias_steps=40, seeds=4)
ARMS: dict[str, dict[str, Any]] = {"bitwise": {"ac": {}}, "float32": {"chunked_loss": {}}, "bf16": {"amp": {}}}
SIZES = (2e-2, 2e-3, 2e-4, 2e-5, 2e-6)
ROW = "{:<44} {:<9} {:<7} {}"


def recipe(num_microbatches: int = 2, **strategies: Any) -> Recipe:
    decoder = {"dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_dim": 32, "vocab_size": 32}
    tree = {
        "run": {"num_steps": 40, "device": "cpu"},
        "model": {"decoder": decoder},
        "data": {"synthetic": {"num_samples": 64}},
        "batch": {"microbatch_size": 2, "sequence_length": 16},
        "strategies": {
            "adamw": {"learning_rate": 3e-3},
            "clip": {},
            "accumulation": {"num_microbatches": num_microbatches},
            **strategies,
        },
    }
    return parse(tree, {})


def cases() -> list[tuple[str, Tamper, int]]:
    """What is planted, and in steps of how many microbatches."""
    found: list[tuple[str, Tamper, int]] = [("nothing", none, 2)]
    for size in SIZES:
        found.append((f"learning rate larger by {100 * size:g} %", faster_learning(1 + size), 2))
        found.append((f"loss scale larger by {100 * size:g} %", wrong_loss_scale(1 + size), 2))
    found += [(f"gradient of 1 of {n} microbatches dropped", dropped_gradient, n) for n in (2, 8, 32)]
    found += [("no causal mask", without_causal_mask, 2), ("one weight stale for one step", stale_weight_once, 2)]
    return found


def result(tier: str, tamper: Tamper, num_microbatches: int) -> GuardResult:
    baseline, arm = recipe(num_microbatches), recipe(num_microbatches, **ARMS[tier])
    plan = partial(make_plan, num_gpus=0, num_ranks=1, started=True)
    return check_parity(baseline, arm, run=InProcess(tamper), effort=EFFORT, plan=plan)


def main() -> int:
    start_s, wrong, caught, planted = time.monotonic(), 0, 0, 0
    print(ROW.format("planted", "tier", "found", "what the guard says"))
    for name, tamper, num_microbatches in cases():
        large = name == "nothing" or " by " not in name or " 2 %" in name
        for tier in ARMS:
            told = result(tier, tamper, num_microbatches)
            caught += not told.passed and name != "nothing"
            planted += name != "nothing"
            wrong += large and told.passed != (name == "nothing")
            print(ROW.format(name, tier, "no" if told.passed else "yes", told.sentence), flush=True)
    word = "FAIL" if wrong else "PASS"
    print(
        f"{word} guard: {caught} of {planted} planted errors found, those of 2 % and more all but {wrong}; "
        f"{time.monotonic() - start_s:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
