"""The best of all seatings there are, where they are few enough to price every one."""

import math
from collections.abc import Sequence
from itertools import chain, islice, permutations

import numpy as np

from .machine import Integers
from .price import Pricer

_MOST = 45_000
"""Seatings: those of eight ranks on eight devices are 40,320."""
_AT_ONCE = 1 << 13


def are_few(num_devices: int, num_ranks: int) -> bool:
    """Whether all seatings can be priced."""
    return num_ranks <= num_devices and math.perm(num_devices, num_ranks) <= _MOST


def best_of_all(pricer: Pricer, usable: Sequence[int], num_ranks: int) -> Integers:
    """Devices of all ranks: the fastest, of equals the one with the least spread, of these the first."""
    seatings = permutations(usable, num_ranks)
    best: tuple[tuple[float, float], Integers] | None = None
    while some := list(islice(seatings, _AT_ONCE)):
        flat = np.fromiter(chain.from_iterable(some), dtype=np.int64, count=len(some) * num_ranks)
        devices = flat.reshape(len(some), num_ranks)
        seconds, spread = pricer.prices(devices)
        # Sums in another order differ in the last digits; they are equals.
        at = int(np.lexsort((np.round(spread, 15), np.round(seconds, 15)))[0])
        found = (round(float(seconds[at]), 15), round(float(spread[at]), 15))
        if best is None or found < best[0]:
            best = (found, devices[at])
    assert best is not None
    return best[1]
