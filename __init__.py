"""stepladder: a PyTorch training framework in which every optimization is a measured rung.

Four floors, imports run down only: `launch` starts and compares runs, `trainer` is the run itself, `strategies`
changes a program one optimization at a time, `profiling` names, records and reads what a step does.
`recipes` is data. Importing this package loads no torch.

Who keeps a loop of their own has the same pieces as functions: `apply`, `span`, `profile`, `analyze`, `compare`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .launch.library import Applied, Comparison, analyze, apply, compare, profile, span

__all__ = ["Applied", "Comparison", "__version__", "analyze", "apply", "compare", "profile", "span"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The library's functions, loaded when the first of them is asked for."""
    if name in __all__:
        from .launch import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What an editor offers."""
    return sorted(__all__)
