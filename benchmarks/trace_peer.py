"""HTA's own analyses of a folder of traces; runs in HTA's environment, and says in JSON how long each part took.

The analyses are those that have a counterpart in ours: temporal breakdown, idle time, kernels, overlap, launches,
queue lengths. Nothing is drawn. Traces are read by its `ijson` backend, which is its fastest, though not its default.
"""

import json
import sys
import time
import warnings
from importlib.metadata import version


def main() -> None:
    """Load, analyse, report; what fails is said, and the rest goes on."""
    warnings.simplefilter("ignore")
    begin = time.perf_counter()
    from hta.common.trace_parser import set_default_trace_parsing_backend
    from hta.configs.parser_config import ParserBackend
    from hta.trace_analysis import TraceAnalysis

    set_default_trace_parsing_backend(ParserBackend.IJSON_BATCH_AND_COMPRESS)
    seconds, failed = {"import": time.perf_counter() - begin}, {}

    def timed(name, call):
        start = time.perf_counter()
        try:
            return call()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:200]
        finally:
            seconds[name] = time.perf_counter() - start

    analyzer = timed("load", lambda: TraceAnalysis(trace_dir=sys.argv[1]))
    ranks = list(analyzer.t.traces) if analyzer else []  # rank 0 alone, unless it is told
    analyses = {
        "temporal": lambda: analyzer.get_temporal_breakdown(visualize=False),
        "idle": lambda: analyzer.get_idle_time_breakdown(ranks=ranks, visualize=False, show_idle_interval_stats=True),
        "kernels": lambda: analyzer.get_gpu_kernel_breakdown(visualize=False),
        "overlap": lambda: analyzer.get_comm_comp_overlap(visualize=False),
        "launches": lambda: analyzer.get_cuda_kernel_launch_stats(ranks=ranks, visualize=False),
        "queue": lambda: analyzer.get_queue_length_summary(ranks=ranks),
    }
    for name, call in analyses.items() if analyzer else ():
        timed(name, call)
    versions = {name: version(name) for name in ("traceinsight", "pandas", "ijson", "numpy")}
    print(json.dumps({"seconds": seconds, "failed": failed, "versions": versions}))


if __name__ == "__main__":
    main()
