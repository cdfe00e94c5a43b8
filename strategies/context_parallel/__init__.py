"""Causal attention over ranks that hold parts of the same sequences: who holds what, what travels, and the kernels."""
