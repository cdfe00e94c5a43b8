"""Two runs that should be the same: equal bits, or equal within what rounding elsewhere is seen to do.

[Note: what rounding may do]
How far the order of sums moves a training depends on the model, so it is measured: the baseline is run once more with
the samples of each step in the opposite order, which is the same mathematics. An arm may be `FACTOR` times as far from
the baseline as that run is, since a compiler or a split over ranks rounds in more places. Where that run says less
than the least tolerances below, which teams use for reordered float32, those hold. None grows beyond the largest: what
the opposite order alone moves as far cannot be shown to be the same.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...strategies.changes import Changes
from ..testimony import Fingerprints, Testimony

FACTOR = 10.0
_NEGLIGIBLE = 1e-6
"""Share of the whole gradient's length below which that of one tensor is rounding itself."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One number that was looked at."""

    what: str
    found: float
    allowed: float
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is within; what is no number is not."""
        return self.found <= self.allowed

    @property
    def sentence(self) -> str:
        """The check in words and figures."""
        where = f" ({self.where})" if self.where else ""
        return f"{self.what}{where}: {self.found:.2g}, allowed {self.allowed:.2g}"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Relative differences that are always allowed (`least`), and that are never (`most`)."""

    first_loss: float
    losses: float
    gradient: float
    """Distance of two gradients over the length of one: of each tensor, and of all together."""
    grad_norms: float
    update: float
    """Length of the way from the first weights to the last."""


LEAST = Tolerance(first_loss=1e-6, losses=1e-5, gradient=1e-5, grad_norms=1e-4, update=1e-4)
MOST = Tolerance(first_loss=1e-4, losses=1e-3, gradient=1e-3, grad_norms=1e-2, update=5e-3)
NARROW = {
    Changes.PRECISION: Tolerance(first_loss=1e-3, losses=1e-3, gradient=0.05, grad_norms=0.02, update=0.005),
    Changes.LOW_PRECISION: Tolerance(first_loss=5e-3, losses=1e-2, gradient=0.2, grad_norms=0.1, update=0.01),
}
"""Between runs of which one computes with 16 bits, or with fewer: ten times what a small decoder showed."""


def exact(baseline: Testimony, arm: Testimony) -> Iterator[Check]:
    """Numbers of differing bits, of which none is allowed."""
    yield from same_beginning(baseline, arm)
    for what, pairs in (
        ("losses that differ", list(zip(baseline.losses, arm.losses, strict=True))),
        ("gradient norms that differ", _known(baseline.grad_norms, arm.grad_norms)),
    ):
        # NaN differs from itself, as it should: nothing was shown.
        steps = [i + 1 for i, (a, b) in enumerate(pairs) if a != b]
        yield Check(what=what, found=len(steps), allowed=0, where=f"step {steps[0]} on" if steps else "")
    before, after = baseline.gradients.digests, arm.gradients.digests
    for what, sides in (
        ("gradients that differ", (before, after) if before and after else ({}, {})),
        ("weights that differ", (baseline.final.digests, arm.final.digests)),
    ):
        names = _differing(*sides)
        yield Check(what=what, found=len(names), allowed=0, where=_shortly(names))


def same_beginning(baseline: Testimony, arm: Testimony) -> Iterator[Check]:
    """That both begin with the same weights, and that the ranks of the arm agree about theirs."""
    names = _differing(baseline.initial.digests, arm.initial.digests)
    yield Check(what="first weights that differ", found=len(names), allowed=0, where=_shortly(names))
    yield Check(
        what="weights that differ between ranks", found=len(arm.drifted), allowed=0, where=_shortly(arm.drifted)
    )


def near(baseline: Testimony, arm: Testimony, again: Testimony) -> Iterator[Check]:
    """Distances of the arm from the baseline, beside those of the baseline run `again` in another order."""
    yield from same_beginning(baseline, arm)
    seen, other = distances(baseline, arm), distances(baseline, again)
    for what, key in _NAMES.items():
        allowed = min(max(getattr(LEAST, key), FACTOR * other[what]), getattr(MOST, key))
        yield Check(what=what, found=seen[what], allowed=allowed)
    yield _worst_gradient(baseline, arm, again)


def narrow(baseline: Testimony, arm: Testimony, changes: Changes) -> Iterator[Check]:
    """Distances at precisions of their own, after steps so few that rounding has not yet been amplified."""
    yield from same_beginning(baseline, arm)
    seen = distances(baseline, arm)
    for what, key in _NAMES.items():
        yield Check(what=f"{what} at its own precision", found=seen[what], allowed=getattr(NARROW[changes], key))


_NAMES = {
    "loss of step 1": "first_loss",
    "losses": "losses",
    "gradient": "gradient",
    "gradient norms": "grad_norms",
    "length of the update": "update",
}


def distances(baseline: Testimony, arm: Testimony) -> dict[str, float]:
    """Relative differences by name; infinite where something is not finite or missing."""
    losses = [_apart(a, b) for a, b in zip(baseline.losses, arm.losses, strict=True)]
    norms = [_apart(a, b) for a, b in _known(baseline.grad_norms, arm.grad_norms)]
    return {
        "loss of step 1": losses[0],
        "losses": max(losses),
        "gradient": _gradient_distance(baseline, arm),
        "gradient norms": max(norms, default=0.0),
        "length of the update": _apart(update_length(baseline), update_length(arm)),
    }


def _known(before: Sequence[float | None], after: Sequence[float | None]) -> list[tuple[float, float]]:
    """Pairs of gradient norms; where an optimizer uses gradients up in backward, nobody knows them."""
    return [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]


def _gradient_distance(baseline: Testimony, arm: Testimony) -> float:
    """Distance of the whole gradients over the length of one. Where either is gone, nothing can be told of both."""
    before, after = baseline.gradients.sketches, arm.gradients.sketches
    if not before or not after:
        return 0.0
    if before.keys() != after.keys():
        return math.inf
    apart = math.hypot(*(math.dist(before[name], after[name]) for name in before))
    return _finite(_over(apart, _length(baseline.gradients)))


def _worst_gradient(baseline: Testimony, arm: Testimony, again: Testimony) -> Check:
    """The tensor whose gradient is furthest beyond what it may be."""
    sketches = [each.gradients.sketches for each in (baseline, arm, again)]
    if not all(sketches) or any(each.keys() != sketches[0].keys() for each in sketches):
        return Check(what="gradient of a tensor", found=_gradient_distance(baseline, arm), allowed=0.0)
    least = _NEGLIGIBLE * _length(baseline.gradients)
    checks = [
        Check(
            what="gradient",
            found=_finite(_over(math.dist(before, sketches[1][name]), max(math.hypot(*before), least))),
            allowed=max(LEAST.gradient, FACTOR * _over(math.dist(before, sketches[2][name]), math.hypot(*before))),
            where=name,
        )
        for name, before in sketches[0].items()
    ]
    return max(checks, key=lambda check: check.found / check.allowed)


def update_length(testimony: Testimony) -> float:
    """Length of the way from the first weights to the last."""
    begin, end = testimony.initial.sketches, testimony.final.sketches
    return math.hypot(*(math.dist(begin[name], end[name]) for name in begin if name in end))


def _length(prints: Fingerprints) -> float:
    return math.hypot(*(each for sketch in prints.sketches.values() for each in sketch))


def _apart(a: float, b: float) -> float:
    """Relative difference."""
    return 0.0 if a == b else _finite(_over(abs(b - a), abs(a)))


def _over(value: float, by: float) -> float:
    return value / by if by else (0.0 if value == 0 else math.inf)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {**before, **after} if before.get(name) != after.get(name))


def _shortly(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}" if names else ""
