"""What a device can do at best: operations and bytes a second, and bytes a second over its links.

Dense rates without sparsity, of the vendors' data sheets (V100, A100, H100, H200, HGX B200, L40S, L4, T4, A10; CDNA 2,
3 and 4 white papers and data sheets of MI210, MI250, MI300X, MI325X, MI355X). They hold at the boost clock: a device
under a power limit stays below. An MI250 counts as two devices, each with half of it. A link is what one device sends
in one direction to all of its neighbours within the machine (NVLink, Infinity Fabric; else PCI Express): a group that
crosses machines is bound by its network card, which a trace does not tell.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from .dtypes import plain
from .tables import Trace

TERA = 1e12
GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The best that a device can do."""

    name: str
    flop_s: Mapping[str, float]
    """Operations a second by type of elements in matrix products; "vector" for float32 outside of them."""
    byte_s: float
    """Of its memory."""
    link_byte_s: float | None = None
    """Sent in one direction, all links within a machine together."""

    def of(self, dtype: str | None) -> float | None:
        """Operations a second with elements of a type, by any of its names; None if unknown."""
        if dtype is None:
            return None
        name = plain(dtype)
        if name.startswith("float8"):
            name = "float8"
        if name == "float32":
            name = "float"
        if name == "half" and "half" not in self.flop_s:
            name = "bfloat16"
        return self.flop_s.get(name)


def _peak(name: str, memory: float, link: float | None, **tera: float) -> Peak:
    """Rates given as 1e12 operations and 1e9 bytes a second."""
    tera.setdefault("vector", tera["float"])
    if "bfloat16" in tera:
        tera.setdefault("half", tera["bfloat16"])
    rates = {key: value * TERA for key, value in tera.items()}
    return Peak(name=name, flop_s=rates, byte_s=memory * GIGA, link_byte_s=link * GIGA if link else None)


_V100 = _peak("V100 SXM2", 900, 150, half=125, float=15.7, double=7.8)
_V100_PCIE = _peak("V100 PCIe", 900, 15.75, half=112, float=14, double=7)
_A100 = _peak("A100 SXM 40 GB", 1555, 300, bfloat16=312, tf32=156, float=19.5, double=19.5, int8=624)
_A100_80 = _peak("A100 SXM 80 GB", 2039, 300, bfloat16=312, tf32=156, float=19.5, double=19.5, int8=624)
_A100_PCIE = _peak("A100 PCIe", 1935, 31.5, bfloat16=312, tf32=156, float=19.5, double=19.5, int8=624)
_H100_RATES = {"bfloat16": 989.4, "tf32": 494.7, "float8": 1978.9, "int8": 1978.9, "float": 66.9, "double": 66.9}
_H100 = _peak("H100 SXM", 3352, 450, **_H100_RATES)
_H100_PCIE = _peak("H100 PCIe", 2039, 63, bfloat16=756, tf32=378, float8=1513, int8=1513, float=51.2, double=51.2)
_H100_NVL = _peak("H100 NVL", 3938, 300, bfloat16=835, tf32=417, float8=1671, int8=1671, float=60, double=60)
_H200 = _peak("H200", 4800, 450, **_H100_RATES)
_H800 = _peak("H800", 3352, 200, **_H100_RATES)
_B200 = _peak("B200", 8000, 900, bfloat16=2250, tf32=1125, float8=4500, int8=4500, float=75, double=37)
_L40S = _peak("L40S", 864, 31.5, bfloat16=362, tf32=183, float8=733, int8=733, float=91.6)
_L4 = _peak("L4", 300, 31.5, bfloat16=121, tf32=60, float8=242, int8=242, float=30.3)
_T4 = _peak("T4", 320, 15.75, half=65, int8=130, float=8.1)
_A10 = _peak("A10", 600, 31.5, bfloat16=125, tf32=62.5, int8=250, float=31.2)
_MI210 = _peak("MI210", 1638, 150, bfloat16=181, int8=181, float=45.3, vector=22.6, double=45.3)
_MI250 = _peak("MI250, one of two", 1638, 200, bfloat16=181, int8=181, float=45.3, vector=22.6, double=45.3)
_MI250X = _peak("MI250X, one of two", 1638, 200, bfloat16=191.5, int8=191.5, float=47.9, vector=23.9, double=47.9)
_MI300_RATES = {"bfloat16": 1307.4, "tf32": 653.7, "float8": 2614.9, "int8": 2614.9, "float": 163.4, "double": 163.4}
_MI300X = _peak("MI300X", 5300, 448, **_MI300_RATES)
_MI325X = _peak("MI325X", 6000, 448, **_MI300_RATES)
_MI355X = _peak("MI355X", 8000, 537.6, bfloat16=2516.6, float8=5033.2, int8=5033.2, float=157.3, double=78.6)

_BY_NAME: tuple[tuple[re.Pattern[str], Peak], ...] = tuple(
    (re.compile(pattern), peak)
    for pattern, peak in (
        (r"V100.*PCIE", _V100_PCIE),
        (r"V100", _V100),
        (r"A100.*PCIE", _A100_PCIE),
        (r"A100.*80GB", _A100_80),
        (r"A100", _A100),
        (r"H100.*NVL", _H100_NVL),
        (r"H100.*PCIE", _H100_PCIE),
        (r"H100|GH200", _H100),
        (r"H200", _H200),
        (r"H800", _H800),
        (r"G?B200", _B200),
        (r"L40S", _L40S),
        (r"\bL4\b", _L4),
        (r"\bT4\b", _T4),
        (r"\bA10G?\b", _A10),
        (r"MI210", _MI210),
        (r"MI250X", _MI250X),
        (r"MI250", _MI250),
        (r"MI300", _MI300X),
        (r"MI325", _MI325X),
        (r"MI35[05]", _MI355X),
    )
)


def peak_of(name: str) -> Peak | None:
    """By the name of a device; None if it is not in the table."""
    return next((peak for pattern, peak in _BY_NAME if pattern.search(name.upper())), None)


def device_peak(trace: Trace, peak: Peak | str | None = None) -> Peak | None:
    """What the traced device can do: as given, by its name, or, on AMD, by its generation and memory.

    `peak` overrides; as text it is the name of a device.
    """
    if isinstance(peak, Peak):
        return peak
    if isinstance(peak, str):
        return peak_of(peak)
    return peak_of_header(trace.header)


def peak_of_header(header: Mapping[str, Any]) -> Peak | None:
    """By the properties of the devices that a trace's header lists."""
    listed = header.get("deviceProperties")
    for device in cast(list[Any], listed) if isinstance(listed, list) else []:
        if isinstance(device, dict):
            found = _of_properties(cast(dict[str, Any], device))
            if found:
                return found
    return None


def _of_properties(device: dict[str, Any]) -> Peak | None:
    """Drivers of AMD often leave the name out; a wave of 64 threads tells their devices from others."""
    found = peak_of(str(device.get("name", "")))
    if found or device.get("warpSize") != 64:
        return found
    memory = device.get("totalGlobalMem")
    gib = memory / (1 << 30) if isinstance(memory, int) else 0
    match device.get("computeMajor"), device.get("computeMinor"):
        case 9, 0:
            return _MI250
        case 9, 4:
            return _MI325X if gib > 200 else _MI300X
        case 9, 5:
            return _MI355X
        case _:
            return None
