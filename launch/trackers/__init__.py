"""Where a run is shown while it trains: Weights & Biases, TensorBoard. `metrics.jsonl` is always written besides.

Each tracker is a process of its own, fed through a bounded queue by a thread of rank 0: a network that is out, a
library that raises, hangs or takes ten seconds to be imported, a disk that is full: none of it reaches the training.
"""

from .config import TensorBoardConfig, TrackersConfig, WandbConfig

__all__ = ["TensorBoardConfig", "TrackersConfig", "WandbConfig"]
