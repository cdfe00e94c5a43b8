"""Tar shards in the layout of WebDataset: an index of what lies where, and images read from it by sample number."""

from .config import ShardsConfig

__all__ = ["ShardsConfig"]
