"""What `strategies.fp8` does with a library: which layers are swapped, for what, and what else the library needs.

One file a library. `strategies/fp8.py` holds the recipe's keys and knows no library.
"""

from .layers import Layer, chosen_layers, linear_layers, planned_layers
from .torchao import gather_in_float8, swap_for_torchao
from .transformer_engine import swap_for_transformer_engine

__all__ = [
    "Layer",
    "chosen_layers",
    "gather_in_float8",
    "linear_layers",
    "planned_layers",
    "swap_for_torchao",
    "swap_for_transformer_engine",
]
