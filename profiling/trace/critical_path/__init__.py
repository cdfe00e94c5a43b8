"""What a step waited for, and what it would gain: a graph of dependencies, its longest path, and simulations of it.

    graph = dependencies(trace, step=3)
    critical_path(graph)      # segments of the timeline that, end to end, are the step
    by_category(graph)        # how much of it was host, launches, kernels, communication, ...
    what_if(graph)            # the new length if something cost nothing, and the gain, which is a bound

`across` joins the graphs of several ranks at their collectives; the same functions then speak of the whole job.
"""

from .across import across
from .build import dependencies
from .graph import Category, Graph, Relation
from .longest import by_category, by_name, critical_path
from .simulate import simulate
from .whatif import what_if

__all__ = [
    "Category",
    "Graph",
    "Relation",
    "across",
    "by_category",
    "by_name",
    "critical_path",
    "dependencies",
    "simulate",
    "what_if",
]
