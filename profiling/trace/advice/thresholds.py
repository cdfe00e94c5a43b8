"""Below which a loss is no finding, each with its reason; the docs list them."""

MIN_SHARE = 0.02
"""Of a step, that a finding with a plain sign (a call, a pattern) can win. Less is within the noise between runs."""
MIN_SHARE_OF_TIMES = 0.05
"""Of a step, that a finding can win whose only sign is that something took long; steps differ by as much by chance."""
MIN_COMMUNICATION_SHARE = 0.10
"""Of a step, that exchanges cost before they are called the bottleneck: some of it is left in any parallel run."""
MIN_STEPS = 2
"""In which compilations recur: one is the first, and belongs there."""
SHORT_KERNELS_SHARE = 0.5
"""Of the launches, that start less work than they take: from here on the device waits for the host."""
MIN_LAUNCHES = 50
"""In a step, to call it many; one of a few CUDA graphs has fewer."""
SHORT_OPERATOR_NS = 10_000
"""An operator with less time of its own is mostly dispatch, which costs 1 to 10 microseconds."""
NEARLY_ALL = 0.95
"""Of an operator's calls: if so many are short, the long ones count as well. The same work takes long where the system
has interrupted it, which on a busy host stretches the step, and a few calls by most of it."""
SHORT_OPERATORS_SHARE = 0.30
"""Of a step without a device, in such operators and between them."""
MIN_SHORT_OPERATORS = 100
"""In a step, to call it many."""
MIN_FUSIBLE_KERNELS = 10
"""Kernels of a step that mostly move memory, to gain from being fewer."""
FUSION_SHARE = 0.10
"""Of a step, that fusion can win at most: it reaches about half of that."""
MIN_OPTIMIZER_CALLS = 20
"""Operators or kernels of an optimizer's step: a fused one needs a handful, and one for each million of parameters."""
MIN_SMALL_EXCHANGES = 8
"""All-reduces of gradients in a step and microbatch, to call them many."""
SMALL_MESSAGE_BYTES = 4 << 20
"""An exchange with less is latency for the most part, on links of 10 to 400 GB/s. DDP's own buckets have 25 MiB."""
LARGE_MESSAGE_BYTES = 1 << 20
"""From here on bandwidth can be told from latency on a slow link."""
MIN_LINK_SHARE = 0.3
"""Of the link's peak that large messages reach; half to four fifths is usual."""
SLOW_LINK_GB_S = 1.25
"""Where no peak is known: 10 Gbit Ethernet."""
SHORT_EXCHANGE_NS = SMALL_MESSAGE_BYTES / SLOW_LINK_GB_S
"""What a trace without sizes calls small has at least to be this short: less than a small message on a slow link."""
LATE_BY_CHANCE = 0.125
"""How likely a rank that is as often early as late may be late in so many steps. Three of three say it, 5 of 5, 8 of
10; a mean over steps says nothing, for what else runs on a host slows one rank for some steps."""
IMBALANCE = 1.15
"""What the busiest stage of a pipeline computes over the mean of them."""
BUBBLE_SHARE = 0.25
"""Of a step, that even stages wait; 1F1B with four microbatches a stage has 0.2."""
FLOAT32_SHARE = 0.10
"""Of a step, in matrix products of float32, for a narrower type to matter."""
