"""What a run trains on: sources of samples, their order, and the way to the device."""

from .config import BatchConfig, DataConfig, LoaderConfig

__all__ = ["BatchConfig", "DataConfig", "LoaderConfig"]
