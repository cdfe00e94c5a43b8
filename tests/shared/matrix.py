"""Combinations of mesh degrees and strategies, and whether each takes the steps of one process."""

import itertools
import json
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity import BF16_TOLERANCE, GRADIENT_TOLERANCE, LOSS_TOLERANCE, Case
from ranks import run_ranks

from stepladder.launch.errors import UsageError

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "ep", "tp")
Degrees = tuple[int, ...]
"""One for each of `AXES`."""

TOLERANCES = {
    "float32": (LOSS_TOLERANCE, GRADIENT_TOLERANCE),  # only the order of sums differs
    "bf16": (BF16_TOLERANCE, 5e-2),  # eight bits of mantissa, and gradients that pass through several layers
    # A token whose experts nearly tie goes to another one: 5.6e-2 with plain BF16 weights, no mesh and no trainer.
    "bf16 experts": (BF16_TOLERANCE, 1e-1),
    "fp8": (5e-2, 3e-1),  # three or two bits of mantissa; scales are of other tensors when these are cut elsewhere
}


_AT_A_TIME = 8
"""Combinations for one set of processes: a mesh makes a dozen groups, whose threads live as long as the process."""


@dataclass(frozen=True)
class Entry:
    """A combination: its name, what is trained, and how close it must come."""

    name: str
    case: Case
    precision: str = "float32"


@dataclass(frozen=True)
class Verdict:
    """What became of a combination."""

    entry: Entry
    refused: str = ""
    failed: str = ""
    loss: float = 0.0
    gradient: float = 0.0


def all_degrees(num_ranks: int) -> Iterator[Degrees]:
    """Every tuple of degrees whose product is the number of ranks."""
    divisors = [n for n in range(1, num_ranks + 1) if num_ranks % n == 0]
    return (each for each in itertools.product(divisors, repeat=len(AXES)) if math.prod(each) == num_ranks)


def said(degrees: Degrees) -> str:
    return " ".join(f"{axis}{n}" for axis, n in zip(AXES, degrees, strict=True) if n > 1) or "one rank"


def case_of(degrees: Degrees, strategies: dict[str, Any] | None = None, **model: Any) -> Case:
    """The smallest training that such degrees can cut: enough heads, layers, experts, positions and samples.

    `strategies` are those beyond what the axes need; a table given for one of those replaces it.
    """
    at = dict(zip(AXES, degrees, strict=True))
    extra = dict(strategies or {})
    needed: dict[str, Any] = {axis: {} for axis in ("pp", "cp", "ep", "tp") if at[axis] > 1}
    if "ddp" not in extra and "local_sgd" not in extra and any(n > 1 for n in degrees[1:5]):
        needed["fsdp2"] = {"prefetch": 1}
    stages = at["pp"] * (2 if extra.get("pp", {}).get("schedule", "1f1b") not in ("1f1b", "gpipe") else 1)
    microbatches = (extra.get("accumulation") or {}).get("num_microbatches", max(1, stages))
    if microbatches > 1:
        needed["accumulation"] = {"num_microbatches": microbatches}
    data_ranks = at["dp_replicate"] * at["dp_shard"] * at["ep"]
    one = data_ranks * microbatches
    tp = at["tp"]
    heads = tp if tp > 4 else 2 * tp if tp > 1 else 4
    dimensions: dict[str, Any] = {
        "dim": 8 * heads,
        "num_layers": max(2, stages),
        "num_heads": heads,
        "num_kv_heads": heads if tp > 2 else heads // 2,
        "ffn_dim": 16 * tp * (2 if tp < 3 else 1),
        "vocab_size": 16 * tp * (4 if tp < 3 else 1),
    }
    if at["ep"] > 1:
        # Two experts on a rank, which more shards than two must cut by rows; three shards cannot, and get one each.
        held = 3 if at["dp_shard"] * at["cp"] == 3 else 2
        dimensions["moe"] = {"num_experts": held * at["ep"], "top_k": 2, "ffn_dim": 16 * tp}
    step = 2 * at["cp"] * tp
    return Case(
        num_ranks=math.prod(degrees),
        strategies=needed | extra,
        mesh=dict(at),
        model=dimensions | model,
        global_batch=one * max(1, 8 // one),
        length=step * max(1, 32 // step),
    )


def plan_problem(case: Case) -> str:
    """Why a combination is refused; empty if it is not."""
    try:
        case.plan()
    except UsageError as error:
        return " | ".join(error.problems)
    return ""


def judge(entries: Sequence[Entry], *, timeout_s: float = 60, say: Any = None) -> list[Verdict]:
    """Refuse or train every combination, in one set of processes for each number of ranks.

    `timeout_s` is for each. A combination that raises or hangs costs its set of processes; the rest goes on in another.
    """
    verdicts: list[Verdict] = []
    allowed: list[Entry] = []
    for entry in entries:
        problem = plan_problem(entry.case)
        if "unknown key" in problem:  # a slip of this file, and no refusal
            verdicts.append(Verdict(entry, failed=problem))
        elif problem:
            verdicts.append(Verdict(entry, refused=problem))
        else:
            allowed.append(entry)
    for num_ranks, group in itertools.groupby(sorted(allowed, key=_num_ranks), key=_num_ranks):
        waiting = list(group)
        while waiting:
            done = _train(num_ranks, waiting[:_AT_A_TIME], 60 + timeout_s * _AT_A_TIME)
            verdicts += done
            waiting = waiting[len(done) :]
            for verdict in done:
                if say:
                    say(line(verdict))
    return verdicts


def _num_ranks(entry: Entry) -> int:
    return entry.case.num_ranks


def _train(num_ranks: int, entries: Sequence[Entry], timeout_s: float) -> list[Verdict]:
    """Verdicts of the first entries: all of them, or up to and with the first that raises."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        failure = ""
        try:
            run_ranks(write_differences, num_ranks, str(results), [each.case for each in entries], timeout_s=timeout_s)
        except Exception as error:
            failure = str(error)
        lines = [json.loads(text) for text in results.read_text().splitlines()] if results.exists() else []
    verdicts: list[Verdict] = []
    for entry, (loss, gradient) in zip(entries, lines, strict=False):
        most_loss, most_gradient = TOLERANCES[entry.precision]
        failed = "" if loss <= most_loss and gradient <= most_gradient else "other steps than one process"
        verdicts.append(Verdict(entry, failed=failed, loss=loss, gradient=gradient))
    if len(verdicts) < len(entries):
        verdicts.append(Verdict(entries[len(verdicts)], failed=failure[-3500:] or "no result"))
    return verdicts


def write_differences(path: str, cases: list[Case]) -> None:
    """On each rank: train every case; rank 0 notes the differences from one process as they come."""
    import torch.distributed as dist
    from parity import differences, outcome, reference

    references: dict[Any, Any] = {}
    for case in cases:
        found = outcome(case)
        if dist.get_rank() == 0:
            if case.same_training not in references:
                references[case.same_training] = reference(case)
            with Path(path).open("a") as file:
                file.write(json.dumps(differences(found, references[case.same_training])) + "\n")
        dist.barrier()


def line(verdict: Verdict) -> str:
    """One verdict as a line."""
    entry = verdict.entry
    if verdict.refused:
        return f"refused  {entry.name}: {verdict.refused}"
    if verdict.failed:
        figures = f" (loss {verdict.loss:.1e}, gradient {verdict.gradient:.1e})" if verdict.gradient else ""
        return f"FAILED   {entry.name}{figures}: {verdict.failed}"
    return f"ok       {entry.name}  loss {verdict.loss:.1e}  gradient {verdict.gradient:.1e}"


def every_degree(most_ranks: int = 8) -> list[Entry]:
    """All degrees that fit so many ranks, at the strategies' defaults."""
    return [
        Entry(said(degrees), case_of(degrees))
        for num_ranks in range(2, most_ranks + 1)
        for degrees in all_degrees(num_ranks)
    ]


LAYOUTS: tuple[Degrees, ...] = (
    (1, 1, 4, 1, 1, 1),
    (1, 2, 2, 1, 1, 1),
    (1, 1, 2, 2, 1, 1),
    (1, 1, 2, 1, 1, 2),
    (1, 1, 1, 2, 1, 2),
    (1, 1, 2, 1, 2, 1),
    (1, 1, 1, 1, 2, 2),
    (2, 1, 2, 1, 1, 1),
    (2, 1, 1, 1, 1, 2),
    (2, 1, 1, 2, 1, 1),
    (2, 1, 1, 1, 2, 1),
    (1, 4, 1, 1, 1, 1),
    (2, 1, 2, 1, 1, 2),
    (1, 1, 2, 2, 1, 2),
    (1, 1, 2, 1, 2, 2),
)
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "reduction": {
        "fsdp2": {},
        "ddp": {"ddp": {}},
        "zero-2": {"fsdp2": {"reshard_after_forward": False}},
        "zero-1": {
            "fsdp2": {"reshard_after_forward": False, "reduce_every_microbatch": False},
            "accumulation": {"num_microbatches": 2},
        },
        "offloaded": {"fsdp2": {"cpu_offload": True}},
    },
    "schedule": {
        name: {"pp": {"schedule": name}}
        for name in ("1f1b", "gpipe", "interleaved_1f1b", "interleaved_zero_bubble", "zbv", "dualpipev")
    },
    "slicing": {
        "sp": {},
        "no sp": {"tp": {"sequence_parallel": False}},
        "no lp": {"tp": {"loss_parallel": False}},
    },
    "ring": {
        "ring": {},
        "waiting ring": {"cp": {"overlap": False}},
        "gather": {"cp": {"method": "all_gather"}},
        "contiguous": {"cp": {"balance": "none"}},
    },
    "ac": {
        "no ac": {},
        "full": {"ac": {}},
        "selective": {"ac": {"mode": "selective"}},
    },
    "compile": {"eager": {}, "compiled": {"compile": {"backend": "aot_eager"}}},
    "precision": {
        "float32": {},
        "amp": {"amp": {}},
        "fp16": {"amp": {"dtype": "fp16", "init_scale": 1024.0}},
        "bf16": {"fsdp2": {"param_dtype": "bf16"}},
        "fp8": {"fp8": {"emulate": True, "recipe": "rowwise"}},
    },
    "loss": {"whole": {}, "chunked": {"chunked_loss": {"num_chunks": 2}}},
    "optimizer": {
        "fused": {},
        "foreach": {"adamw": {"learning_rate": 1e-2, "implementation": "foreach"}},
        "in backward": {"optimizer_in_backward": {}, "clip": False, "accumulation": False},
    },
    "microbatches": {"as few": {}, "more": {"accumulation": {"num_microbatches": 4}}},
}
_AXIS_OF = {"schedule": 0, "ring": 3, "slicing": 5}
"""Options that speak of one axis, and are left out where its degree is 1."""


Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairwise(seed: int = 0) -> list[Entry]:
    """Rows in which every pair of values (a layout, an option) occurs: refused by itself, or beside random others.

    A pair is refused if it is with everything else at its default; else it is put into a row that is allowed.
    """
    generator = random.Random(seed)
    factors: dict[str, list[Any]] = {"layout": list(LAYOUTS)} | {key: list(each) for key, each in OPTIONS.items()}
    pairs = [
        ((a, x), (b, y))
        for a, b in itertools.combinations(factors, 2)
        for x in factors[a]
        for y in factors[b]
        if a != "layout" or b not in _AXIS_OF or x[_AXIS_OF[b]] > 1
    ]
    entries: list[Entry] = []
    open_pairs: set[Pair] = set()
    for pair in pairs:
        entry = _entry(_row(pair, factors, None))
        if plan_problem(entry.case):
            entries.append(entry)
        else:
            open_pairs.add(pair)
    while open_pairs:
        first = min(open_pairs, key=str)
        rows = [_row(first, factors, generator) for _ in range(40)]
        allowed = [row for row in rows if not plan_problem(_entry(row).case)] or [_row(first, factors, None)]
        best = max(allowed, key=lambda row: len(_pairs_of(row) & open_pairs))
        open_pairs -= _pairs_of(best) | {first}
        entries.append(_entry(best))
    return list({each.name: each for each in entries}.values())


def _row(pair: Pair, factors: dict[str, list[Any]], generator: random.Random | None) -> dict[str, Any]:
    """A value for every factor, with the pair among them: the first of each, or a random one."""
    fixed = dict(pair)
    bound = [_AXIS_OF[key] for key in fixed if key in _AXIS_OF]
    layouts = [each for each in factors["layout"] if all(each[axis] > 1 for axis in bound)]
    pick = generator.choice if generator else lambda values: values[0]
    return {key: pick(layouts if key == "layout" else values) for key, values in factors.items()} | fixed


def _pairs_of(row: dict[str, Any]) -> set[Pair]:
    """Pairs that a row exercises: an option of an axis that is not there is not exercised."""
    used = [(key, x) for key, x in row.items() if key not in _AXIS_OF or row["layout"][_AXIS_OF[key]] > 1]
    return set(itertools.combinations(used, 2))


def _entry(row: dict[str, Any]) -> Entry:
    degrees: Degrees = row["layout"]
    strategies: dict[str, Any] = {}
    words = [said(degrees)]
    for factor, choices in OPTIONS.items():
        if factor in _AXIS_OF and degrees[_AXIS_OF[factor]] == 1:
            continue
        words.append(str(row[factor]))
        for name, table in choices[row[factor]].items():
            strategies[name] = (strategies.get(name) or {}) | table if isinstance(table, dict) else table
    if row["reduction"] == "ddp" and row["precision"] == "bf16":
        strategies["fsdp2"] = {"param_dtype": "bf16"}
    entry = Entry(", ".join(words), case_of(degrees, strategies))
    narrow = "bf16 experts" if degrees[AXES.index("ep")] > 1 and row["precision"] == "bf16" else "bf16"
    return replace(entry, precision={"float32": "float32", "fp8": "fp8"}.get(row["precision"], narrow))
