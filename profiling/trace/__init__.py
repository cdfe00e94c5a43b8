"""Reads traces of torch.profiler and says where the time of a step went. Imports no torch."""
