"""Text of events -> typed columns: by the compiled scanner, else by Arrow, mended, else one event at a time.

See [Note: dialects].
"""

from dataclasses import dataclass, field
from typing import Any, cast

from .dialect import Mend, as_type, digits, mend_for, microseconds, one_by_one, quote_lists
from .piece import ARGS_WHOLE, DETAIL, SPARSE, TEXTS, WHOLE, Piece, Sort
from .scanner import scan

_LISTS = ("Input Dims", "Input type", "Concrete Inputs")


@dataclass(kw_only=True)
class Parser:
    """What is known about the dialect of a file; several threads may parse pieces of it."""

    detail: bool = False
    """Read the keys of `DETAIL` too."""
    compiled: bool = True
    """Try the compiled scanner first."""
    words: dict[str, int] = field(default_factory=dict[str, int])
    """Numbers given to processes and threads that have a name instead, counted downwards from -2."""
    num_unreadable: int = 0
    """Events that could not be read."""
    _mends: dict[str, Mend] = field(default_factory=dict[str, Mend])

    def parse(self, piece: bytes) -> Piece:
        """Columns of a text `{...}, {...}`; never raises for what stands in it."""
        scanned = scan(piece, self._keys(), self._word) if self.compiled else None
        if scanned is not None:
            return scanned
        from . import arrow  # only here: most traces need it not at all

        try:
            return arrow.columns(self._mended(piece), self._keys())
        except arrow.UNREADABLE:
            pass
        found = list(one_by_one(piece))
        self.num_unreadable += found.count(None)
        events = [self._tidy(event) for event in found if event is not None]
        return arrow.columns(arrow.of_events(events, self._keys()), self._keys())

    def _keys(self) -> dict[str, Sort]:
        return SPARSE | DETAIL if self.detail else SPARSE

    def _mended(self, piece: bytes) -> Any:
        """The events as Arrow has them, once the text is mended. Raises: one of `arrow.UNREADABLE` if it cannot be."""
        from . import arrow

        if self.detail:
            for key in _LISTS:
                piece = quote_lists(key)(piece)
        mended = dict(self._mends)
        for mend in mended.values():
            piece = mend(piece)
        while True:
            try:
                return arrow.read(piece, self._keys())
            except arrow.UNREADABLE as error:
                is_number_of_track = any(f"/{key})" in str(error) for key in WHOLE)
                mend = mend_for(str(error), self._number_of_word if is_number_of_track else digits)
                if mend is None or mend[0] in mended:
                    raise
                mended[mend[0]] = self._mends[mend[0]] = mend[1]
                piece = mend[1](piece)

    def _number_of_word(self, text: str) -> str:
        return str(self._word(text))

    def _word(self, text: str) -> int:
        """Number of a process or thread that a file names by a word."""
        number = as_type(text, "whole")
        return number if number is not None else self.words.setdefault(text, -2 - len(self.words))

    def _tidy(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event with what is asked for, of the types that are asked for."""
        args = event.get("args")
        args = cast(dict[str, Any], args) if isinstance(args, dict) else {}
        kept = {key: as_type(args.get(key), "whole") for key in ARGS_WHOLE}
        kept |= {key: as_type(args.get(key), sort) for key, sort in self._keys().items()}
        made: dict[str, Any] = {key: as_type(event.get(key), "text") for key in TEXTS}
        for key in WHOLE:
            value = event.get(key)
            made[key] = self._word(value) if isinstance(value, str) else as_type(value, "whole")
        return made | {key: microseconds(event.get(key)) for key in ("ts", "dur")} | {"args": kept}
