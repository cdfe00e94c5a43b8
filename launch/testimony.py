"""What a run leaves of its numbers, exactly: for whoever asks whether two runs were the same training."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..profiling.capture import publish
from ..strategies.base import Program
from .plan import Plan
from .ranks import Ranks, Voice, gather, sum_over_ranks

if TYPE_CHECKING:
    from ..trainer.witness import Fingerprint, Witness


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """Hash and sketch of each of several tensors, by name."""

    digests: dict[str, str]
    sketches: dict[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Testimony:
    """The numbers of one run. A file of it keeps every bit of them: floats are written as `float.hex` does."""

    losses: tuple[float, ...]
    """Nats a token in each step, over all ranks."""
    grad_norms: tuple[float | None, ...]
    """Before clipping; None where the gradients are used up before they could be measured."""
    initial: Fingerprints
    """Weights before the first step."""
    gradients: Fingerprints
    """Of the first step, before clipping."""
    final: Fingerprints
    """Weights after the last step."""
    drifted: tuple[str, ...]
    """Weights that are not the same on all ranks which hold them."""

    def write(self, path: Path) -> None:
        """Leave it as a file that is whole or absent."""
        told: dict[str, Any] = {
            "losses": [each.hex() for each in self.losses],
            "grad_norms": [None if each is None else each.hex() for each in self.grad_norms],
            "drifted": list(self.drifted),
        }
        for name in ("initial", "gradients", "final"):
            prints: Fingerprints = getattr(self, name)
            hexed = {key: [each.hex() for each in sketch] for key, sketch in prints.sketches.items()}
            told[name] = {key: [digest, hexed[key]] for key, digest in prints.digests.items()}
        publish(path, lambda partial: partial.write_text(json.dumps(told) + "\n"))

    @staticmethod
    def read(path: Path) -> "Testimony":
        """What a run has left. Raises: OSError, ValueError, KeyError, TypeError."""
        told: dict[str, Any] = json.loads(path.read_text())
        return Testimony(
            losses=tuple(map(float.fromhex, told["losses"])),
            grad_norms=tuple(None if each is None else float.fromhex(each) for each in told["grad_norms"]),
            initial=_fingerprints(told["initial"]),
            gradients=_fingerprints(told["gradients"]),
            final=_fingerprints(told["final"]),
            drifted=tuple(told["drifted"]),
        )


def _fingerprints(told: dict[str, Any]) -> Fingerprints:
    return Fingerprints(
        digests={name: str(digest) for name, (digest, _) in told.items()},
        sketches={name: tuple(map(float.fromhex, sketch)) for name, (_, sketch) in told.items()},
    )


def with_witness(
    program: Program,
    plan: Plan,
    ranks: Ranks,
    *,
    num_steps: int,
    backwards: bool,
    leave: Callable[[Testimony], None],
) -> Program:
    """The program with a witness in it, whose testimony rank 0 leaves after so many steps."""
    from ..trainer.witness import witnessed

    def testify(witness: "Witness") -> None:
        told = testimony(witness, plan, ranks)
        if ranks.rank == 0:
            leave(told)

    return witnessed(program, num_steps=num_steps, backwards=backwards, testify=testify)


def testimony(witness: "Witness", plan: Plan, ranks: Ranks) -> Testimony:
    """What all ranks have seen, put together, on every rank alike."""
    import torch

    sums = torch.stack([each.double().reshape(()) for each in witness.loss_sums])
    totals: list[float] = sum_over_ranks(ranks)(sums * Voice.of(ranks.rank, plan.degrees).loss).tolist()
    seen = gather(ranks, (witness.initial, witness.gradients, witness.final))
    initial, gradients, final = (_together([each[i] for each in seen]) for i in range(3))
    return Testimony(
        losses=tuple(total / tokens for total, tokens in zip(totals, witness.num_tokens, strict=True)),
        grad_norms=tuple(None if each is None else float(each) for each in witness.grad_norms),
        initial=initial,
        gradients=gradients,
        final=final,
        drifted=tuple(sorted({name for i in (0, 2) for name in _different([each[i] for each in seen])})),
    )


def _together(parts: "list[dict[str, Fingerprint]]") -> Fingerprints:
    """Of all ranks; the stages of a pipeline hold different parameters."""
    whole = {name: each for part in reversed(parts) for name, each in part.items()}
    return Fingerprints(
        digests={name: digest for name, (digest, _) in sorted(whole.items())},
        sketches={name: tuple(sketch) for name, (_, sketch) in sorted(whole.items())},
    )


def _different(parts: "list[dict[str, Fingerprint]]") -> set[str]:
    """Names under which two ranks hold something else."""
    first: dict[str, str] = {}
    return {name for part in parts for name, (digest, _) in part.items() if first.setdefault(name, digest) != digest}
