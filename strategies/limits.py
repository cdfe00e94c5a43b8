"""Types of recipe values that say what they allow: `bucket_mib: Annotated[int, AtLeast(1)]`.

The recipe reader checks them for every table alike, so that no config repeats the sentences.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class AtLeast:
    """A number not below `bound`."""

    bound: float

    def problems(self, value: float) -> Iterator[str]:
        """The sentence for a value below the bound."""
        if not value >= self.bound:  # `not >=`, so that NaN is refused too
            yield f"must be at least {self.bound:g}"


@dataclass(frozen=True)
class AtMost:
    """A number not above `bound`."""

    bound: float

    def problems(self, value: float) -> Iterator[str]:
        """The sentence for a value above the bound."""
        if not value <= self.bound:
            yield f"must be at most {self.bound:g}"


@dataclass(frozen=True)
class Above:
    """A number greater than `bound`."""

    bound: float

    def problems(self, value: float) -> Iterator[str]:
        """The sentence for a value at or below the bound."""
        if not value > self.bound:
            yield f"must be greater than {self.bound:g}"


@dataclass(frozen=True)
class Below:
    """A number less than `bound`."""

    bound: float

    def problems(self, value: float) -> Iterator[str]:
        """The sentence for a value at or above the bound."""
        if not value < self.bound:
            yield f"must be less than {self.bound:g}"


Count = Annotated[int, AtLeast(0)]
"""0, 1, 2, ..."""
PositiveInt = Annotated[int, AtLeast(1)]
"""1, 2, 3, ..."""
PositiveFloat = Annotated[float, Above(0)]
"""Greater than 0."""
Fraction = Annotated[float, AtLeast(0), Below(1)]
"""0 <= value < 1."""
