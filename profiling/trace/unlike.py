"""Whether two runs can be compared: on what they ran, on how many ranks, and whether their traces have a device."""

from collections.abc import Mapping
from typing import Any, cast

from .analysis import Analysis
from .kinds import ON_DEVICE

_MAX_LETTERS = 60


def have_device(found: Analysis) -> bool:
    """Whether any trace has events of a device; of an analysis with the table `events`."""
    return bool(found.tables["events"]["kind"].is_in([kind.value for kind in ON_DEVICE]).any())


def differences(before: Analysis, after: Analysis) -> list[str]:
    """Why the difference of two runs may not be that of their programs, a sentence each."""
    notes: list[str] = []
    devices = [have_device(before), have_device(after)]
    if devices[0] != devices[1]:
        which = "before has a device, after" if devices[0] else "after has a device, before"
        notes.append(
            f"{which} has the host alone: work of a device and of a host is not matched; "
            "compare traces that both have a device, or neither"
        )
    names = [_devices(each.header) for each in (before, after)]
    if all(names) and names[0] != names[1]:
        notes.append(
            f"the devices differ ({names[0]} before, {names[1]} after), so what changed need not be the program"
        )
    sizes = [len(each.ranks) for each in (before, after)]
    worlds = [each.header.get("distributedInfo") for each in (before, after)]
    said = [cast(dict[str, Any], each).get("world_size") if isinstance(each, dict) else None for each in worlds]
    if sizes[0] != sizes[1]:
        notes.append(f"{sizes[0]} ranks were read before, {sizes[1]} after; times are means over ranks")
    elif all(isinstance(each, int) for each in said) and said[0] != said[1]:
        notes.append(f"the jobs differ in size: {said[0]} ranks before, {said[1]} after")
    return notes


def _devices(header: Mapping[str, Any]) -> str:
    """Names of the devices, each once; empty if the trace does not say."""
    said = header.get("deviceProperties")
    listed = cast(list[Any], said) if isinstance(said, list) else []
    names = {
        str(cast(dict[str, Any], each).get("name", ""))[:_MAX_LETTERS] for each in listed if isinstance(each, dict)
    }
    return ", ".join(sorted(names - {""}))
