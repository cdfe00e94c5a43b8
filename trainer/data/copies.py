"""How long copies to the device take, and whether the step waited for them; asked of the device when they are over."""

from collections import deque
from dataclasses import dataclass, field

import torch


@dataclass(kw_only=True)
class CopyClock:
    """Times copies by events on their stream, and reads them when they have passed."""

    copy_s: float = 0.0
    """From the first byte to the last, as the device saw it; also behind other copies."""
    copies: int = 0
    """Steps whose copies were timed."""
    overlapped: int = 0
    """Steps whose copies had ended before the step asked for them."""
    _pending: "deque[tuple[torch.cuda.Event, torch.cuda.Event]]" = field(
        default_factory=lambda: deque[tuple[torch.cuda.Event, torch.cuda.Event]](), init=False
    )

    def start(self) -> "torch.cuda.Event":
        """Copies are about to be queued on the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self, start: "torch.cuda.Event") -> "torch.cuda.Event":
        """They are queued; the answer is the event to wait for."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._pending.append((start, event))
        return event

    def used(self, ready: "torch.cuda.Event", *, ahead: bool) -> None:
        """The step asks for what was copied, `ahead` of it or only now."""
        self.overlapped += ahead and ready.query()
        while self._pending and self._pending[0][1].query():
            start, end = self._pending.popleft()
            self.copy_s += start.elapsed_time(end) / 1000
            self.copies += 1
