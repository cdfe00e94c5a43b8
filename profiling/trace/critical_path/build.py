"""A window of one rank's trace -> the graph of its dependencies."""

import dataclasses

import numpy as np
import polars as pl

from ..kinds import Kind
from ..tables import Trace
from . import backend, device, host, sync
from .collectives import identities
from .graph import CATEGORIES, Category, Graph, Points, join, join_edges, settle, words


def dependencies(trace: Trace, *, step: int | None = None) -> Graph:
    """The graph of a step by its number, or of all of them, or of the whole trace if no step is marked.

    A step begins where the host enters it and ends when the host has left it and every kernel launched in it is done.
    Kernels of earlier steps that still run are in it too, from its beginning: they hold their streams. Threads are
    kept that drive the steps, run the backward pass, or launch something.
    Raises: ValueError if the trace has no such step.
    """
    window, num_steps = _window(trace, step)
    tasks = device.tasks(trace, window)
    main = host.main_track(trace)
    backward = host.backward_tracks(trace, main)
    others = sorted({*backward, *_launching(trace, tasks)} - {main})
    threads = host.threads(trace, main=main, others=others, window=window)
    handed, waits = host.handoffs(threads, backward)
    base = len(threads.points.time)
    returned, returns = sync.returns(trace, tasks, threads, base)
    ranges = backend.ranges(trace, window)
    behind = base + 2 * len(tasks.start)
    exchanged, exchanges = backend.dependencies(trace, ranges, threads, behind)
    began, ended = (threads.at(tasks.call, points) for points in (threads.start, threads.end))
    recorded = sync.recorded_waits(trace, tasks, base)
    inferred = () if trace.of(Kind.SYNC).height else (device.waits_for_other_streams(tasks, base),)
    found = join_edges(
        handed,
        returned,
        exchanged,
        device.launches(tasks, began, ended, base),
        device.order_on_streams(tasks, base),
        recorded,
        *inferred,
    )
    least = threads.points.least
    least[waits] = 0
    least[returns] = 0
    least[exchanges] = 0
    points = join(
        beginning(window[0], trace.rank), threads.points, device.chains(trace, tasks), backend.chains(trace, ranges)
    )
    del threads  # what is not needed any more would count to the most memory that a look takes
    used = np.unique(points.label)
    said = words(trace.events["name"])
    names = [host.NOTHING if code < 0 else said[code] for code in used.tolist()]
    points = dataclasses.replace(points, label=np.searchsorted(used, points.label).astype(np.int32))
    found = dataclasses.replace(found, source=found.source + 1, target=found.target + 1)
    return settle(
        points,
        found,
        names=tuple(names),
        collectives=identities(trace, tasks, base + 1) | backend.identities(ranges, behind + 1),
        host_ns=window[1] - window[0],
        num_steps=num_steps,
    )


def _window(trace: Trace, step: int | None) -> tuple[tuple[int, int], int]:
    """When the host was in it, and how many steps it holds."""
    steps = trace.steps
    if step is not None:
        steps = steps.filter(pl.col("step") == step)
        if not steps.height:
            raise ValueError(
                f"step = {step}: not in this trace; it has {trace.steps['step'].unique().sort().to_list()}"
            )
    if steps.height:
        end = (steps["ts"] + steps["dur"]).to_numpy()
        return (int(steps["ts"].to_numpy().min()), int(end.max())), steps["step"].n_unique()
    kinds = [kind.value for kind in (*host.HOST_KINDS, Kind.COMPUTE, Kind.COMMUNICATION, Kind.MEMORY)]
    every = trace.events.filter(pl.col("kind").is_in(kinds))
    if not every.height:
        return (0, 0), 0
    return (int(every["ts"].to_numpy().min()), int((every["ts"] + every["dur"]).to_numpy().max())), 0


def _launching(trace: Trace, tasks: device.Tasks) -> list[int]:
    """Threads that launched what the window ran."""
    rows = tasks.call[tasks.own & (tasks.call >= 0)]
    return np.unique(trace.events["track"].to_numpy()[rows]).tolist()


def beginning(time: int, rank: int | None) -> Points:
    """The point that every other comes after."""
    one = np.zeros(1, dtype=np.int64)
    return Points(
        time=one + time,
        first=one == 0,
        least=one,
        tier=one.astype(np.uint8),
        label=(one - 1).astype(np.int32),
        category=(one + CATEGORIES.index(Category.IDLE)).astype(np.uint8),
        row=(one - 1).astype(np.int32),
        track=(one - 1).astype(np.int32),
        rank=(one + (-1 if rank is None else rank)).astype(np.int32),
        ends=one == 1,
    )
