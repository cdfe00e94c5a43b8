"""Ranks on their seats: what a recipe communicates, the plan for a cluster, and how a run takes it up.

traffic_of(plan)                  bytes and collectives of a step along each axis (`traffic`)
place(plan, files, ...)           the placement of a recipe on machines that are known from files (`planning`)
take_seat(...)                    each worker tells where it is and is told who it is (`apply`)
"""
