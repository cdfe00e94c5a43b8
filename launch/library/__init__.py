"""The same pieces for people who keep their own loop: strategies, spans, profiles, analysis, comparisons."""

from .apply import Applied, apply
from .around import analyze, profile, span
from .compare import Comparison, compare

__all__ = ["Applied", "Comparison", "analyze", "apply", "compare", "profile", "span"]
