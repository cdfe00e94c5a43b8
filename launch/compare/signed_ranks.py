"""The signed ranks of pairs: where there is no difference, every pattern of signs is as likely as any other.

That needs no shape of the noise, so it holds where pairs fall into heaps. Source: Wilcoxon, Biometrics Bulletin 1945.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@cache
def lower_tails(num_pairs: int) -> Array:
    """Probability of each sum of positive ranks or a smaller one, from 0 to n (n + 1) / 2."""
    ways = np.ones(1)
    for rank in range(1, num_pairs + 1):
        padding = np.zeros(rank)
        ways = np.concatenate([ways, padding]) + np.concatenate([padding, ways])
    return np.cumsum(ways) / 2.0**num_pairs


def rank_p_values(differences: Array) -> Array:
    """Two-sided probability of signed ranks as uneven as these, (experiments,). differences: (experiments, pairs)."""
    num_pairs = differences.shape[-1]
    ranks = np.abs(differences).argsort(axis=-1).argsort(axis=-1) + 1.0
    positive = (ranks * ((differences > 0) + 0.5 * (differences == 0))).sum(axis=-1)
    rarer = np.minimum(positive, num_pairs * (num_pairs + 1) / 2 - positive)
    return np.minimum(2 * lower_tails(num_pairs)[np.ceil(rarer).astype(np.int64)], 1.0)
