"""Problems of a set of strategies and of a mesh are found before anything runs, and said in sentences."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from stepladder.strategies import Strategies, active
from stepladder.strategies.ac import ActivationCheckpointing
from stepladder.strategies.accumulation import Accumulation
from stepladder.strategies.adamw import AdamW
from stepladder.strategies.amp import Amp
from stepladder.strategies.base import Owns, Run
from stepladder.strategies.check import environment, owned_axes, owners, problems
from stepladder.strategies.clip import Clip
from stepladder.strategies.compile import Compile
from stepladder.strategies.ddp import DDP
from stepladder.strategies.fp8 import FP8
from stepladder.strategies.fsdp2 import FSDP2
from stepladder.strategies.limits import Above, AtLeast, Below
from stepladder.strategies.mesh import Axis, MeshConfig, resolve_degrees
from stepladder.strategies.refusal import Refusal
from stepladder.strategies.schedule import Schedule
from stepladder.strategies.tp import TensorParallel


def said(strategies: Any, make_run: Callable[..., Run], **run: Any) -> list[str]:
    run = {"active": [name for name, _ in active(strategies)], "strategies": strategies} | run
    return list(problems(strategies, make_run(**run)))


def test_two_owners_of_one_thing_are_one_sentence_that_names_both(make_run: Callable[..., Run]) -> None:
    (sentence,) = said(Strategies(ddp=DDP(), fsdp2=FSDP2(), adamw=AdamW()), make_run)
    assert sentence == "strategies.ddp and strategies.fsdp2: each wants to own the gradient reduction; keep one"


def test_amp_and_fsdp2_contend_for_the_compute_dtype_only_if_both_set_it(make_run: Callable[..., Run]) -> None:
    (sentence,) = said(Strategies(amp=Amp(), fsdp2=FSDP2(param_dtype="bf16"), adamw=AdamW()), make_run)
    assert "strategies.fsdp2 and strategies.amp" in sentence
    assert "the compute dtype" in sentence
    assert said(Strategies(amp=Amp(), fsdp2=FSDP2(), adamw=AdamW()), make_run) == []


def test_a_run_without_an_optimizer_is_refused(make_run: Callable[..., Run]) -> None:
    (sentence,) = said(Strategies(clip=Clip()), make_run)
    assert "owns the optimizer" in sentence
    assert "strategies.adamw" in sentence


def test_every_strategy_at_its_defaults_is_fine_on_its_own(make_run: Callable[..., Run]) -> None:
    for kind in (ActivationCheckpointing, Compile, DDP, FSDP2, Amp, Accumulation, Clip, Schedule):
        name = next(key for key, value in Strategies.__annotations__.items() if kind.__name__ in str(value))
        assert said(Strategies(adamw=AdamW(), **{name: kind()}), make_run) == [], name


@dataclass(frozen=True, kw_only=True)
class Picky:
    """Works beside nobody called clip."""

    size: int = 1
    conflicts = (
        Refusal(beside="clip", why="both touch the gradients", instead="remove one"),
        Refusal(
            beside="mesh.tp",
            setting="size = 3",
            holds=lambda picky, run: picky.size == 3,
            why="three do not share",
            instead="use size = 2",
        ),
        Refusal(beside="device cuda", why="it is picky", instead="use the CPU"),
    )
    owns = frozenset()

    def check(self, run: Run) -> Iterator[str]:
        yield f"size = {self.size}: too small; use 2"
        yield "the model is not mine; choose another"


def test_declared_conflicts_hold_and_problems_carry_the_path_of_their_key(make_run: Callable[..., Run]) -> None:
    found = said(Strategies(adamw=AdamW(), clip=Clip(), ac=Picky()), make_run)  # pyright: ignore
    assert found == [
        "strategies.ac: cannot work beside strategies.clip: both touch the gradients; remove one",
        "strategies.ac.size = 1: too small; use 2",
        "strategies.ac: the model is not mine; choose another",
    ]
    assert len(said(Strategies(adamw=AdamW(), ac=Picky()), make_run)) == 2  # pyright: ignore


def test_a_refusal_holds_beside_a_strategy_an_axis_or_a_device_and_for_its_setting_only(
    make_run: Callable[..., Run],
) -> None:
    two = dict.fromkeys(Axis, 1) | {Axis.TP: 2}
    cases: list[tuple[int, dict[str, Any], list[str]]] = [
        (1, {}, []),
        (1, {"degrees": two}, []),
        (3, {}, []),
        (3, {"degrees": two}, ["size = 3: cannot work beside mesh.tp: three do not share; use size = 2"]),
        (1, {"device_type": "cuda"}, ["cannot work beside device cuda: it is picky; use the CPU"]),
        (1, {"active": {"clip"}}, ["cannot work beside strategies.clip: both touch the gradients; remove one"]),
        (1, {"active": {"clipper"}}, []),
    ]
    for size, run, sentences in cases:
        picky = Picky(size=size)
        assert [r.sentence() for r in Picky.conflicts if r.applies(picky, make_run(**run))] == sentences, (size, run)


def test_declared_combinations_are_refused(make_run: Callable[..., Run]) -> None:
    whole, graphs = Compile(scope="model"), Compile(mode="reduce-overhead")
    axis = lambda name: {"degrees": dict.fromkeys(Axis, 1) | {Axis(name): 2}}  # noqa: E731
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"compile": whole, "fsdp2": FSDP2()}, {}, "strategies.compile.scope = 'model': cannot work beside strategies"),
        ({"compile": graphs, "ac": ActivationCheckpointing()}, {"device_type": "cuda"}, "CUDA graphs collide"),
        ({"compile": graphs}, {}, "no effect without a GPU; use 'default'"),
        ({"ddp": DDP()}, axis("tp"), "strategies.ddp: cannot work beside mesh.tp"),
        ({"ddp": DDP()}, axis("pp"), "strategies.ddp: cannot work beside mesh.pp"),
        ({"ddp": DDP(static_graph=True), "accumulation": Accumulation()}, {}, "ddp.static_graph = true: cannot work"),
    ]
    for strategies, run, sentence in cases:
        (found,) = said(Strategies(adamw=AdamW(), **strategies), make_run, **run)
        assert sentence in found


def test_settings_of_two_strategies_that_cannot_work_together_are_refused(make_run: Callable[..., Run]) -> None:
    def refused(other: str, **strategies: Any) -> bool:
        found = said(Strategies(adamw=AdamW(), **strategies), make_run, device_type="cuda")
        return any(f"cannot work beside strategies.{other}" in each for each in found)

    for backend in ("inductor", "aot_eager", "eager"):
        compile = Compile(backend=backend)
        assert refused("compile", tp=TensorParallel(async_tp=True), compile=compile) is (backend != "inductor")
        assert not refused("compile", tp=TensorParallel(), compile=compile)
        budget = ActivationCheckpointing(mode="budget")
        assert refused("compile", ac=budget, compile=compile) is (backend == "eager")
        assert not refused("compile", ac=ActivationCheckpointing(), compile=compile)
    for gathers, offloads in itertools.product((False, True), repeat=2):
        fp8, fsdp2 = FP8(fsdp_all_gather=gathers), FSDP2(cpu_offload=offloads)
        assert refused("fsdp2", fp8=fp8, fsdp2=fsdp2) is (gathers and offloads)


def test_what_a_setting_of_another_strategy_says_is_known(make_run: Callable[..., Run]) -> None:
    run = make_run(strategies=Strategies(compile=Compile(backend="eager")))
    assert run.setting("compile", "backend") == "eager"
    assert run.setting("fsdp2", "cpu_offload") is None
    assert make_run().setting("compile", "backend") is None


@dataclass(frozen=True, kw_only=True)
class Servant:
    """Would keep replicas together, if nobody else did, and wants something of its environment."""

    conflicts = ()
    owns = frozenset({Owns.DP_SHARD})
    serves = frozenset({Owns.DP_REPLICATE})

    def check(self, run: Run) -> Iterator[str]:
        return iter(())

    def environment(self, run: Run) -> dict[str, str]:
        return {"LEVEL": str(run.seed)}


def test_who_serves_takes_over_what_nobody_owns(make_run: Callable[..., Run]) -> None:
    alone: Any = Strategies(adamw=AdamW(), fsdp2=Servant())  # pyright: ignore[reportArgumentType]
    assert owners(alone)[Owns.DP_REPLICATE] == "fsdp2"
    assert owned_axes(alone) == [Axis.DP_REPLICATE, Axis.DP_SHARD]
    beside: Any = Strategies(adamw=AdamW(), fsdp2=Servant(), ddp=DDP())  # pyright: ignore[reportArgumentType]
    assert owners(beside)[Owns.DP_REPLICATE] == "ddp"
    assert said(beside, make_run) == []  # to serve is no claim


def test_the_environment_is_known_with_who_wants_it(make_run: Callable[..., Run]) -> None:
    some: Any = Strategies(adamw=AdamW(), fsdp2=Servant())  # pyright: ignore[reportArgumentType]
    assert environment(some, make_run(seed=5)) == {"LEVEL": ("5", "fsdp2")}
    assert environment(Strategies(adamw=AdamW()), make_run()) == {}


REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    ("ac", ActivationCheckpointing(), {"num_blocks": 0}, "names no blocks"),
    ("ac", ActivationCheckpointing(every=5), {}, "every = 5"),
    ("ac", ActivationCheckpointing(save=("aten.mm",)), {}, "save: has no effect with mode = 'full'"),
    ("ac", ActivationCheckpointing(mode="selective", save=()), {}, "save = []"),
    ("ac", ActivationCheckpointing(mode="selective", save=("mm",)), {}, "'mm': not an operator"),
    ("compile", Compile(), {"num_blocks": 0}, "scope = 'block'"),
    ("compile", Compile(mode="max-autotune", backend="eager"), {}, "mode = 'max-autotune': has no effect"),
    ("ddp", DDP(static_graph=True, find_unused_parameters=True), {}, "find_unused_parameters = true: has no effect"),
    ("fsdp2", FSDP2(), {"num_blocks": 0}, "names no blocks"),
    ("fsdp2", FSDP2(prefetch=4), {}, "prefetch = 4"),
    ("amp", Amp(init_scale=8.0), {}, "init_scale: has no effect"),
    ("amp", Amp(growth_factor=3.0), {}, "growth_factor: has no effect"),
    ("amp", Amp(backoff_factor=0.1), {}, "backoff_factor: has no effect"),
    ("amp", Amp(growth_interval=5), {}, "growth_interval: has no effect"),
    ("accumulation", Accumulation(num_microbatches=1), {}, "num_microbatches = 1: has no effect"),
    ("schedule", Schedule(warmup_steps=100), {}, "warmup_steps = 100"),
    ("schedule", Schedule(decay_steps=3), {}, "decay_steps: has no effect"),
    ("schedule", Schedule(kind="warmup-stable-decay", warmup_steps=60, decay_steps=41), {}, "decay_steps = 41"),
    ("schedule", Schedule(final_fraction=1.5), {}, "final_fraction = 1.5"),
]


@pytest.mark.parametrize(("name", "strategy", "run", "sentence"), REFUSED, ids=[f"{r[0]}: {r[3]}" for r in REFUSED])
def test_a_setting_that_cannot_work_or_does_nothing_is_one_sentence(
    name: str, strategy: Any, run: dict[str, Any], sentence: str, make_run: Callable[..., Run]
) -> None:
    (found,) = strategy.check(make_run(**run))
    assert sentence in found


def test_limits_refuse_what_lies_outside_and_what_is_no_number() -> None:
    for value, allowed in [(0.0, [AtLeast]), (-1.0, [Below]), (1.0, [AtLeast, Above]), (math.nan, [])]:
        for limit in (AtLeast, Above, Below):
            assert (not list(limit(0).problems(value))) == (limit in allowed), (limit, value)


def solvable(given: dict[Axis, int], world_size: int, owned: tuple[Axis, ...]) -> bool:
    """Brute force: is there any choice of degrees that uses all ranks, and nobody's axis is longer than 1?

    Of the axes that are not stated, dp_shard may take any number, or else dp_replicate; the others have 1.
    """
    free = [axis for axis in (Axis.DP_SHARD, Axis.DP_REPLICATE) if axis in owned and axis not in given][:1]
    choices = [[given[axis]] if axis in given else range(1, world_size + 1) if axis in free else [1] for axis in Axis]
    return any(
        math.prod(degrees) == world_size and all(d == 1 or axis in owned for axis, d in zip(Axis, degrees, strict=True))
        for degrees in itertools.product(*choices)
    )


def test_degrees_are_found_exactly_where_they_exist() -> None:
    counts = {True: 0, False: 0}
    stated = itertools.product((None, 1, 2, 3), (None, 1, 2, 4), (None, 2), (None, 2), (1, 2, 3, 4, 6, 8))
    for replicate, shard, pp, tp, world_size in stated:
        for owned in ((), (Axis.DP_REPLICATE,), (Axis.DP_SHARD, Axis.TP), tuple(Axis)):
            mesh = MeshConfig(dp_replicate=replicate, dp_shard=shard, pp=pp, tp=tp)
            degrees, found = resolve_degrees(mesh, world_size, owned)
            possible = solvable(mesh.given(), world_size, owned)
            assert (not found) == possible, (mesh, world_size, owned, found)
            counts[possible] += 1
            if possible:
                assert math.prod(degrees.values()) == world_size
                assert all(degrees[axis] == degree for axis, degree in mesh.given().items())
                required = mesh.required_ranks(owned)
                assert required in (None, world_size), (mesh, world_size, owned)
    assert min(counts.values()) > 50


def test_an_axis_that_nobody_owns_is_refused_by_name() -> None:
    owned = owned_axes(Strategies(ddp=DDP(), adamw=AdamW()))
    assert owned == [Axis.DP_REPLICATE]
    _, (sentence,) = resolve_degrees(MeshConfig(dp_shard=2), 4, owned)
    assert sentence.startswith("mesh.dp_shard = 2: no active strategy owns this axis")
    assert "strategies.fsdp2" in sentence
    _, (sentence,) = resolve_degrees(MeshConfig(), 2, ())
    assert "no active strategy owns a data-parallel axis" in sentence
