"""Comparing arms of one workload so that the answer can be believed: design, estimate, sequential test, power.

Pure functions of numbers; what starts processes and reads clocks hands its finished segments in. Needs numpy.
"""
