"""A column of numbers that grows piece by piece in one stretch of memory.

Thousands of small arrays would stay behind as holes in the heap after they are joined; one stretch is given back whole.
"""

import numpy as np

_FIRST_ROOM = 1 << 16


class Growing:
    """Numbers of whatever width the widest of them needs."""

    def __init__(self) -> None:
        self._held = np.empty(0, dtype=np.uint8)
        self._length = 0

    def append(self, values: np.ndarray) -> None:
        """Add values behind those that are there."""
        if not len(values):
            return
        dtype = np.promote_types(self._held.dtype, values.dtype) if self._length else values.dtype
        end = self._length + len(values)
        if end > len(self._held) or dtype != self._held.dtype:
            room = max(end, _FIRST_ROOM, len(self._held) * 3 // 2 if end > len(self._held) else len(self._held))
            grown = np.empty(room, dtype=dtype)  # pages that are not written to cost nothing
            grown[: self._length] = self._held[: self._length]
            self._held = grown
        self._held[self._length : end] = values
        self._length = end

    def values(self) -> np.ndarray:
        """All values so far, not a copy."""
        return self._held[: self._length]
