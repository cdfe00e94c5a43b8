"""The report of a run's traces: one HTML file that needs nothing but a browser, and no network."""

from .content import Content
from .timeline import timeline_of
from .write import write_report

__all__ = ["Content", "timeline_of", "write_report"]
