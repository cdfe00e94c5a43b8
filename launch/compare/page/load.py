"""What a folder of results holds, read back; nothing in it is believed to be what it should be."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from ...errors import UsageError
from ..calibration import Calibration
from ..judge import Kind, Verdict
from ..results import ArmResult
from ..segment import Measured
from ..sequential import Protocol
from ..store import EXPERIMENT, RESULTS, Place, read_json
from ..why import Why

KINDS = ("comparison", "ladder", "ablation", "grid", "climb")
_INNER = {"ladder": "final", "climb": "final", "ablation": "comparison", "grid": "comparison"}
"""Of which comparison the page shows pairs, losses and segments."""
_ROWS = ("rungs", "steps", "rows", "leave_one_out")
_SEGMENT = re.compile(r"(pilot|calibration|pair)-(\d+)-(.+)")

NOT_OURS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, OSError)
"""What values come to that no comparison has written."""

Told = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class KeptSameness:
    """What the guard had found out about an arm."""

    tier: str
    passed: bool
    sentence: str
    checked: bool
    told: Told

    def json(self) -> dict[str, Any]:
        """All of it."""
        return dict(self.told)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One comparison: its arms, and what was measured of them."""

    path: Path
    results: Told
    arms: tuple[ArmResult, ...]
    experiment: Told
    """What was declared, and the environment; empty if the file is not there."""
    segments: Mapping[Place, Measured]
    recipes: Mapping[str, str]
    """TOML by arm."""
    protocol: Protocol
    calibration: Calibration


@dataclass(frozen=True, kw_only=True)
class Found:
    """A folder of results."""

    path: Path
    kind: str
    results: Told
    compared: Compared | None
    """The comparison itself; of a ladder or a climb that of the finished stack with the base; None if it has none."""
    inner: Mapping[str, Compared] = field(default_factory=dict[str, Compared])
    """Comparisons of single rows, by their folder."""


def load(path: Path) -> Found:
    """Read a folder. Raises: UsageError, one sentence, if it holds no results or none that can be understood."""
    file = path / RESULTS
    if not path.is_dir():
        raise UsageError(f"--report {path}: is no folder; give the one that a comparison has left")
    results = _read(file)
    kind = str(results.get("kind", "comparison"))
    if kind not in KINDS:
        raise UsageError(f"{file}: kind = {kind!r}: is none of {', '.join(KINDS)}; compare again")
    try:
        return _found(path, kind, results)
    except NOT_OURS as error:
        raise not_understood(file, error) from error


def not_understood(file: Path, error: Exception) -> UsageError:
    """The refusal of a file that is JSON, but not what a comparison writes."""
    said = f"lacks {error}" if isinstance(error, KeyError) else str(error)
    return UsageError(f"{file}: is not what a comparison leaves ({said[:200]}); compare again")


def _read(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        ended = "has not ended yet; add --resume to its command" if (file.parent / EXPERIMENT).exists() else "left none"
        raise UsageError(f"{file}: is not there: the comparison {ended}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: cannot be read ({error}); compare again") from error
    if not isinstance(told, dict):
        raise UsageError(f"{file}: is not what a comparison leaves (it is no table); compare again")
    return cast(dict[str, Any], told)


def _found(path: Path, kind: str, results: Told) -> Found:
    if kind == "comparison":
        return Found(path=path, kind=kind, results=results, compared=compared(path, results))
    rows = [row for key in _ROWS for row in results.get(key) or ()]
    inner = {folder: found for row in rows if (folder := row.get("folder")) and (found := _inner(path, str(folder)))}
    return Found(path=path, kind=kind, results=results, compared=_inner(path, _INNER[kind]), inner=inner)


def _inner(path: Path, folder: str) -> Compared | None:
    """The comparison of a row; None where it has not come to results."""
    place = (path / folder).resolve()
    if not place.is_relative_to(path.resolve()):
        raise ValueError(f"folder = {folder!r} lies outside")
    results = read_json(place / RESULTS)
    return compared(place, results) if results and results.get("arms") else None


def compared(path: Path, results: Told) -> Compared:
    """A comparison, from its results and what lies beside them. Raises: KeyError, TypeError, ValueError."""
    experiment = read_json(path / EXPERIMENT) or {}
    calibration: dict[str, Any] = {key: results["calibration"][key] for key in ("pair_sd", "num_pairs", "source")}
    arms = tuple(map(_arm, results["arms"]))
    if not arms:
        raise ValueError("it has no arms")
    return Compared(
        path=path,
        results=results,
        arms=arms,
        experiment=experiment,
        segments=dict(_segments(path / "segments")),
        recipes={arm.name: text for arm in arms if (text := _text(path / "recipes", arm.name)) is not None},
        protocol=Protocol(**experiment.get("declared", {}).get("protocol", {})),
        calibration=Calibration(**calibration),
    )


def _arm(told: Told) -> ArmResult:
    values: dict[str, Any] = {each.name: told[each.name] for each in fields(ArmResult) if each.name in told}
    parity, why, verdict = (told.get(key) for key in ("parity", "why", "verdict"))
    keys = {each.name for each in fields(Verdict)}
    values["name"] = str(told["name"])
    values["changes"] = tuple(map(str, told["changes"]))
    values["verdict"] = _verdict({key: value for key, value in verdict.items() if key in keys}) if verdict else None
    values["parity"] = _sameness(parity) if parity else None
    values["why"] = Why.from_json(why) if why else None
    return ArmResult(**values)


def _verdict(told: dict[str, Any]) -> Verdict:
    bootstrap = told.get("bootstrap")
    values: dict[str, Any] = {**told, "kind": Kind(told["kind"]), "bootstrap": tuple(bootstrap) if bootstrap else None}
    return Verdict(**values)


def _sameness(told: Told) -> KeptSameness:
    return KeptSameness(
        tier=str(told["tier"]),
        passed=told["passed"] is True,
        sentence=str(told["sentence"]),
        checked=told.get("checked", True) is True,
        told=told,
    )


def _segments(folder: Path) -> list[tuple[Place, Measured]]:
    """All that ended, in the order of phases and rounds; a file that cannot be read is as one that is not there."""
    found: list[tuple[Place, Measured]] = []
    for file in sorted(folder.glob("*.json")):
        name, told = _SEGMENT.fullmatch(file.stem), read_json(file)
        if name and told:
            phase: Any = name[1]
            found.append((Place(phase=phase, round=int(name[2]), arm=name[3]), Measured.from_json(told)))
    return found


def _text(folder: Path, name: str) -> str | None:
    """The recipe of an arm, whose name may be anything by now."""
    try:
        return (folder / f"{Path(name).name}.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
