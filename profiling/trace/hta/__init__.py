"""The analyses of Meta's Holistic Trace Analysis (HTA), by exact definitions, and with `compat` by HTA's own.

Each takes a trace, or the rows that were made of one, which saves the work of making them for each analysis.
"""

from .compat import compat_rows as compat_rows
from .counters import bandwidth_points as bandwidth_points
from .counters import blocked_on_full_queue as blocked_on_full_queue
from .counters import memory_bandwidth as memory_bandwidth
from .counters import queue_lengths as queue_lengths
from .counters import queue_points as queue_points
from .idle import idle_breakdown as idle_breakdown
from .kernels import annotation_names as annotation_names
from .kernels import kernel_names as kernel_names
from .launches import launch_distribution as launch_distribution
from .launches import launch_statistics as launch_statistics
from .launches import launches as launches
from .rows import Rows as Rows
from .rows import exact_rows as exact_rows
from .temporal import communication_overlap as communication_overlap
from .temporal import kernel_kinds as kernel_kinds
from .temporal import temporal_breakdown as temporal_breakdown
