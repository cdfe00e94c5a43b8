"""The climber: does by itself what a performance engineer does, and writes it down.

Profile, name the bottleneck, propose what can win most, try one change, measure it as a comparison does, hold it
against the guard, keep or revert, and profile again; until nothing is worth its cost, or the time is spent.
"""
