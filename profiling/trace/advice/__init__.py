"""Advice: what a trace gives evidence for, with its cause, a remedy, what to measure next, and a bound of what it wins.

    found = analyse(paths, [*STANDARD, of_advice])
    for finding in advise(found): ...

Each rule is a function of the tables of an analysis; a table that was not made silences the rules that need it.

| what the trace shows | rule | threshold (`thresholds`) |
| --- | --- | --- |
| idle between batches, in data_wait | loader | 5 % of a step |
| host waits after which the device is idle | synchronisations; without a device, reads_on_host | 2 %; in every step |
| pageable copies; copies that nothing hides | pageable; exposed_copies | 2 %; 5 % |
| collections of garbage | garbage | 2 % |
| compilations | recompilation | 2 %, in two steps at least |
| kernels shorter than their launch | launch_bound | half of 50 launches or more, what-if gain 5 % |
| chains of kernels that move memory | fusion | ten a step, what-if gain 10 % |
| operators below 10 us of their own (no device) | tiny_operators | 100 a step, 30 % of it |
| an optimizer without a fused operator | optimizer | 20 operators, 2 % |
| float32 products where 16 bits are twice as fast | float32 | 10 % |
| sides that are no multiple of 16 bytes | odd_sides | 5 % |
| stages of a pipeline | pipeline | the busiest 1.15 times the mean, 5 %; even ones that wait 25 % |
| one rank comes last | straggler | 5 %, in so many steps that chance is below 1/8 |
| reductions before the last microbatch | every_microbatch | 2 % |
| many all-reduces below 4 MiB | small_buckets | eight a microbatch, 2 % |
| large messages far below the link's peak | slow_link | 30 % of it (unknown: 1.25 GB/s), 10 % of a step |
| exchanges beside nothing | not_overlapped | 80 % exposed, 10 % of a step |
| exchanges at all | dominating | 10 % of a step |
"""

from .finding import Fault, Finding
from .marks import of_advice
from .rules import advise, nothing_found

__all__ = ["Fault", "Finding", "advise", "nothing_found", "of_advice"]
