"""A pipeline takes the steps of one process, whatever its schedule; what it cannot do is said before anything runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_world import as_rank
from parity import GRADIENT_TOLERANCE, LOSS_TOLERANCE, MODEL, Case, differences, outcome, reference, source

from stepladder.profiling.record import no_span
from stepladder.profiling.spans import Span
from stepladder.strategies import Strategies, active
from stepladder.strategies.ac import ActivationCheckpointing
from stepladder.strategies.accumulation import Accumulation
from stepladder.strategies.adamw import AdamW
from stepladder.strategies.base import Batch, Owns, Program, Run
from stepladder.strategies.check import owners, problems
from stepladder.strategies.compile import Compile
from stepladder.strategies.errors import StrategyError
from stepladder.strategies.fsdp2 import FSDP2
from stepladder.strategies.mesh import Axis, build_mesh
from stepladder.strategies.names import canonical_names
from stepladder.strategies.pp import PipelineParallel
from stepladder.trainer.evaluation import evaluate
from stepladder.trainer.models.config import DecoderConfig

SCHEDULES = ("gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv", "dualpipev")
FOUR_LAYERS = MODEL | {"num_layers": 4}
# Stages 0 and 1 on one rank, 2 and 3 on the other, which none of torch's schedules does; one backward in two halves.
CUSTOM = [
    "0F0,1F0,0F1,1F1,1B0,0B0,0F2,1F2,0F3,1F3,1B1,0B1,1B2,0B2,1B3,0B3",
    "2F0,3F0,3I0,2B0,3W0,2F1,3F1,3B1,2B1,2F2,3F2,3B2,2B2,2F3,3F3,3B3,2B3",
]


def case(schedule: str, microbatches: int = 4, *, pp: Any = (), mesh: Any = (), **strategies: Any) -> Case:
    """A pipeline on two ranks, or as many as the mesh has."""
    degrees = {"pp": 2} | dict(mesh)
    return Case(
        num_ranks=2 * degrees.get("dp_shard", 1) * degrees.get("dp_replicate", 1),
        mesh=degrees,
        model=FOUR_LAYERS,
        strategies={
            "pp": {"schedule": schedule} | dict(pp),
            "accumulation": {"num_microbatches": microbatches},
            **strategies,
        },
    )


def silent_last_microbatch(program: Program) -> Program:
    inner = program.forward_backward

    def drop(program: Program, microbatches: Sequence[Batch], scale: Any, mark: Any) -> Any:
        *others, last = microbatches
        return inner(program, [*others, last._replace(labels=torch.full_like(last.labels, -100))], scale, mark)

    return replace(program, forward_backward=drop)


def doubled_scale(program: Program) -> Program:
    return replace(program, gradient_divisor=2 * program.gradient_divisor)


def evaluated_first(program: Program) -> Program:
    """Fewer microbatches than a step has, and more."""
    sampled = source(case("1f1b"))
    for number in (1, 5):
        evaluate(program, [sampled.__getitems__([i, i + 1]) for i in range(number)], lambda loss, tokens: [1.0, 1.0])
    return program


def evaluated_in_between(program: Program) -> Program:
    inner = program.forward_backward

    def evaluate_after(program: Program, *arguments: Any) -> Any:
        loss = inner(program, *arguments)
        evaluated_first(program)
        return loss

    return replace(program, forward_backward=evaluate_after)


TAMPER: dict[str, Callable[[Program], Program]] = {
    "": lambda program: program,
    "dropped": silent_last_microbatch,
    "doubled": doubled_scale,
    "evaluated first": evaluated_first,
    "evaluated in between": evaluated_in_between,
}


def distances(jobs: list[tuple[Case, str]]) -> list[tuple[float, float]]:
    """Of each case, tampered with in some way, from one process."""
    true = reference(jobs[0][0])
    assert len({job.same_training for job, _ in jobs}) == 1
    return [differences(outcome(job, TAMPER[tamper]), true) for job, tamper in jobs]


def two_rank_jobs(table: Path) -> dict[str, tuple[Case, str]]:
    jobs = {schedule: (case(schedule), "") for schedule in SCHEDULES}
    jobs |= {
        "a table of one's own": (case("csv", pp={"csv": str(table)}), ""),
        "eight microbatches": (case("interleaved_zero_bubble", 8), ""),
        "uneven cuts": (case("gpipe", pp={"cuts": [3]}), ""),
        "checkpointed": (case("1f1b", ac={}), ""),
        "checkpointed, backward in halves": (case("zbv", ac={}), ""),
        "selective": (case("interleaved_1f1b", ac={"mode": "selective"}), ""),
        "compiled": (case("1f1b", compile={"backend": "aot_eager"}), ""),
        "evaluated first": (case("1f1b"), "evaluated first"),
        "evaluated in between, a V": (case("dualpipev"), "evaluated in between"),
    }
    return jobs


FAULTS = {"dropped": (case("1f1b"), "dropped"), "doubled": (case("zbv"), "doubled")}


def found_on_two_ranks(jobs: dict[str, tuple[Case, str]]) -> dict[str, Any]:
    """All that the tests below want to know, in one set of processes."""
    found: dict[str, Any] = dict(zip(jobs, distances(list(jobs.values())), strict=True))
    return found | {"held out": held_out_losses(SCHEDULES), "spans": spans_and_report("interleaved_1f1b")}


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory, run_ranks: Any) -> dict[str, Any]:
    table = tmp_path_factory.mktemp("pp") / "table.csv"
    table.write_text("\n".join(CUSTOM))
    return run_ranks(found_on_two_ranks, 2, two_rank_jobs(table) | FAULTS)


@pytest.mark.parametrize("name", two_rank_jobs(Path()))
def test_two_ranks_take_the_steps_of_one_process(name: str, on_two_ranks: dict[str, Any]) -> None:
    loss, gradient = on_two_ranks[name]
    assert loss <= LOSS_TOLERANCE
    assert gradient <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(name: str, on_two_ranks: dict[str, Any]) -> None:
    _, gradient = on_two_ranks[name]
    assert gradient > 100 * GRADIENT_TOLERANCE


FOUR_RANKS = {
    "1f1b": case("1f1b", mesh={"dp_shard": 2}, fsdp2={"prefetch": 1}),
    "zbv": case("zbv", mesh={"dp_shard": 2}, fsdp2={"prefetch": 1}),
    "replicas": case("interleaved_zero_bubble", mesh={"dp_replicate": 2}, fsdp2={"prefetch": 1}),
}


@pytest.mark.slow
def test_stages_that_are_sharded_or_replicated_take_the_steps_of_one_process(run_ranks: Any) -> None:
    jobs = [(each, "evaluated in between" if name == "1f1b" else "") for name, each in FOUR_RANKS.items()]
    for name, (loss, gradient) in zip(FOUR_RANKS, run_ranks(distances, 4, jobs), strict=True):
        assert loss <= LOSS_TOLERANCE, name
        assert gradient <= GRADIENT_TOLERANCE, name


def held_out_losses(schedules: Sequence[str]) -> list[tuple[float, float]]:
    """Sum of losses of three microbatches, by pipelines of two ranks, and by one process."""
    sums: list[float] = []

    def keep(program: Program) -> Program:
        batches = [source(case("1f1b")).__getitems__([2 * i, 2 * i + 1]) for i in range(3)]
        with torch.no_grad():
            sums.append(float(program.forward_only(program, batches)))
        raise InterruptedError

    for job in [case(schedule) for schedule in schedules] + [Case(model=FOUR_LAYERS)]:
        with pytest.raises(InterruptedError):
            outcome(job, keep)
    *found, expected = sums
    ranks = torch.tensor(found, dtype=torch.float64)
    torch.distributed.all_reduce(ranks)
    return [(float(each), expected) for each in ranks]


def test_an_evaluation_gives_the_loss_of_one_process(on_two_ranks: dict[str, Any]) -> None:
    for schedule, (found, expected) in zip(SCHEDULES, on_two_ranks["held out"], strict=True):
        assert expected > 100  # a sum over 192 tokens
        assert found == pytest.approx(expected, rel=1e-6), schedule


def spans_and_report(schedule: str) -> tuple[list[list[str]], list[str]]:
    """Which spans each rank opens in a step, and inside which; what the run says at its end."""
    steps: list[list[str]] = []
    programs: list[Program] = []

    def listen(program: Program) -> Program:
        inner = program.forward_backward
        programs.append(program)

        def listened(program: Program, microbatches: Any, scale: Any, mark: Any) -> Any:
            seen: list[str] = []
            inside: list[str] = []

            @contextmanager
            def noting(span: Span) -> Iterator[None]:
                inside.append(span.label)
                seen.append(">".join(inside))
                yield
                inside.pop()

            loss = inner(program, microbatches, scale, noting)
            steps.append(seen)
            return loss

        return replace(program, forward_backward=listened)

    outcome(case(schedule), listen)
    (lines,) = [report() for report in programs[0].reports]
    ranks: list[Any] = [None, None]
    torch.distributed.all_gather_object(ranks, steps[-1])
    return ranks, lines


def test_a_trace_tells_work_from_waiting_and_the_report_has_the_bubble(on_two_ranks: dict[str, Any]) -> None:
    ranks, (line,) = on_two_ranks["spans"]
    for rank, seen in enumerate(ranks):
        assert seen.count("pipeline") == 1
        assert seen.count("pipeline>forward") == 4 * 2 + (4 if rank == 1 else 0)  # the last stage has a loss as well
        assert seen.count("pipeline>backward") == 4 * 2
        assert seen.count("pipeline>gradient_sync") == 2
        assert len(seen) == sum(seen.count(each) for each in set(seen) if each.count(">") <= 1)
    assert line.startswith(
        "pipeline: interleaved_1f1b, 4 stages on 2 ranks, 4 microbatches; blocks 1 + 1 + 1 + 1, cost "
    )
    assert "11.1 % for equal stages" in line
    assert "measured over 8 steps" in line


# What is said before anything runs ------------------------------------------------------------------------------------


def said(
    make_run: Callable[..., Run], degree: int = 2, microbatches: int = 4, layers: int = 8, **keys: Any
) -> list[str]:
    others: dict[str, Any] = {name: keys.pop(name) for name in ("ac", "compile", "fsdp2") if name in keys}
    tied = keys.pop("tied", False)
    strategies = Strategies(
        pp=PipelineParallel(**keys),
        adamw=AdamW(),
        accumulation=Accumulation(num_microbatches=microbatches) if microbatches > 1 else None,
        **others,
    )
    run = make_run(
        active=[name for name, _ in active(strategies)],
        degrees=dict.fromkeys(Axis, 1) | {Axis.PP: degree},
        facts=DecoderConfig(num_layers=layers, tie_embeddings=tied).facts(8),
        num_microbatches=microbatches,
        owners=owners(strategies),
    )
    return list(problems(strategies, run))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_is_fine_with_enough_of_everything(schedule: str, make_run: Callable[..., Run]) -> None:
    assert said(make_run, schedule=schedule) == []


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one rank": ({"degree": 1}, "strategies.pp: has no effect with mesh.pp = 1"),
    "tied": ({"tied": True}, "the output projection is the embedding"),
    "microbatches": ({"degree": 4, "microbatches": 3}, "needs at least 4 microbatches with mesh.pp = 4"),
    "none": ({"microbatches": 1}, "set strategies.accumulation.num_microbatches = 2 or more"),
    "dualpipev": ({"schedule": "dualpipev", "microbatches": 3}, "needs at least 4 microbatches with mesh.pp = 2"),
    "rounds": ({"schedule": "interleaved_1f1b", "microbatches": 5}, "num_microbatches = 4 or 6"),
    "stages": (
        {"schedule": "zbv", "layers": 3},
        "strategies.pp.schedule = 'zbv': 4 stages, but the model has 3 blocks",
    ),
    "many stages": (
        {"schedule": "interleaved_1f1b", "stages_per_rank": 5},
        "strategies.pp.stages_per_rank = 5: 10 stages, but the model has 8 blocks",
    ),
    "v": ({"schedule": "zbv", "stages_per_rank": 3}, "strategies.pp.stages_per_rank = 3: zbv is a V with two stages"),
    "1f1b": ({"stages_per_rank": 2}, "1f1b has one stage on each rank; use schedule = 'interleaved_1f1b'"),
    "interleaved": ({"schedule": "interleaved_1f1b", "stages_per_rank": 1}, "nothing is interleaved"),
    "number of cuts": ({"cuts": (2, 4)}, "strategies.pp.cuts = [2, 4]: 2 stages have 1 cuts between them"),
    "order of cuts": ({"degree": 4, "cuts": (2, 2, 4)}, "strategies.pp.cuts = [2, 2, 4]: must increase"),
    "cut at 0": ({"cuts": (0,)}, "lie between 1 and 7"),
    "cut at the end": ({"cuts": (8,)}, "lie between 1 and 7"),
    "csv without schedule": ({"csv": "x.csv"}, "strategies.pp.csv: has no effect with schedule = '1f1b'"),
    "schedule without csv": ({"schedule": "csv"}, "names no file; set csv"),
    "missing csv": ({"schedule": "csv", "csv": "/nowhere/x.csv"}, "csv = '/nowhere/x.csv': cannot be read"),
    "compile": ({"schedule": "zbv", "compile": Compile()}, "cannot work beside strategies.compile"),
    "selective": (
        {"schedule": "zbv", "ac": ActivationCheckpointing(mode="selective")},
        "strategies.ac.mode = 'selective': cannot work beside strategies.pp",
    ),
    "freed parameters": (
        {"schedule": "zbv", "fsdp2": FSDP2(reshard_after_forward=True)},
        "strategies.fsdp2.reshard_after_forward = true: cannot work beside strategies.pp",
    ),
    "reductions": ({"fsdp2": FSDP2(reduce_every_microbatch=False)}, "a pipeline reduces once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_one_sentence(name: str, make_run: Callable[..., Run]) -> None:
    keys, expected = REFUSED[name]
    (sentence,) = said(make_run, **keys)
    assert expected in sentence
    assert sentence.startswith("strategies.")


@pytest.mark.parametrize(
    "keys", [{"schedule": "1f1b", "compile": Compile()}, {"ac": ActivationCheckpointing()}, {"fsdp2": FSDP2()}]
)
def test_what_a_whole_backward_allows_is_not_refused(keys: dict[str, Any], make_run: Callable[..., Run]) -> None:
    assert said(make_run, **keys) == []


def test_a_table_is_checked_against_mesh_and_microbatches(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    path = tmp_path / "table.csv"
    path.write_text("\n".join(CUSTOM))
    keys: dict[str, Any] = {"schedule": "csv", "csv": str(path)}

    assert said(make_run, **keys) == []
    assert PipelineParallel(**keys).owns >= {Owns.SPLIT_BACKWARD}
    (split,) = said(make_run, compile=Compile(), **keys)
    assert "or a csv with I and W: cannot work beside strategies.compile" in split
    assert any("has 2 lines, but mesh.pp = 4" in each for each in said(make_run, degree=4, **keys))
    assert any("0F2 is beyond the 2 microbatches" in each for each in said(make_run, microbatches=2, **keys))
    assert any("4 stages, but the model has 3 blocks" in each for each in said(make_run, layers=3, **keys))
    assert any("stages_per_rank: has no effect" in each for each in said(make_run, stages_per_rank=2, **keys))
    path.write_text("0F0,0B0,0F1,0B1\n1F0,1F1,1B1,1B0")
    (stuck,) = said(make_run, microbatches=2, **keys)
    assert "would wait for ever" in stuck


# What a rank is left with ---------------------------------------------------------------------------------------------


def stages_of(rank: int, schedule: str, dimensions: dict[str, Any]) -> tuple[list[str], Any]:
    """Canonical parameter names and facts of one rank of two, on a fake process group."""
    degrees = dict.fromkeys(Axis, 1) | {Axis.PP: 2}
    config = DecoderConfig(**FOUR_LAYERS | dimensions)
    with torch.device("meta"):
        model = config.build()
    from stepladder.strategies.clip import measure_norm
    from stepladder.trainer.models.decoder import next_token_loss
    from stepladder.trainer.step import accumulate

    program = Program(
        model=model,
        facts=config.facts(8),
        loss=next_token_loss,
        forward_backward=accumulate,
        clip_gradients=measure_norm,
    )
    run = Run(
        device_type="cpu",
        degrees=degrees,
        facts=program.facts,
        num_steps=1,
        tokens_per_step=1,
        seed=0,
        active=frozenset({"pp"}),
        num_microbatches=4,
        mesh=build_mesh("cpu", degrees),
        device=torch.device("cpu"),
    )
    after = PipelineParallel(schedule=schedule).apply(program, run)  # pyright: ignore[reportArgumentType]
    for name in (*after.facts.blocks, *after.facts.attentions, *after.facts.slicing, *after.facts.parts):
        after.model.get_submodule(name)
    for name in (*after.facts.precise, *(name for unit in after.facts.units for name in unit)):
        after.model.get_submodule(name)
    return canonical_names(after.model), replace(after.facts, initialise=None)


def test_the_ranks_share_the_parameters_out_and_the_facts_are_about_what_they_have() -> None:
    for schedule in ("1f1b", "interleaved_1f1b", "zbv"):
        (names, facts), (others, other_facts) = (as_rank(rank, 2, stages_of, rank, schedule, {}) for rank in (0, 1))
        whole = canonical_names(DecoderConfig(**FOUR_LAYERS).build())
        assert sorted(names + others) == sorted(whole)
        assert len(facts.blocks) == len(other_facts.blocks) == 2
        assert facts.num_parameters == other_facts.num_parameters == DecoderConfig(**FOUR_LAYERS).num_parameters()
        last, before = (facts, other_facts) if schedule == "zbv" else (other_facts, facts)
        assert last.head.endswith(".head")
        assert before.head == ""
        assert last.precise == (last.head,)
        assert facts.cuts.before == ("_pipeline_stage_0.embedding",)
        assert other_facts.cuts.before == ()
        assert len(facts.cuts.block_costs) == 2
    assert facts.blocks == ("_pipeline_stage_0.layers.0", "_pipeline_stage_3.layers.3")
    assert facts.parts == ("_pipeline_stage_0", "_pipeline_stage_3")


def step_in_a_fake_world(schedule: str, num_microbatches: int) -> tuple[float, int, str]:
    """One step of the last rank with partners that do not exist: its loss, its gradients, and a wrong fact's error."""
    from fake_world import on_meta, plan_of

    from stepladder.strategies.materialise import materialise

    job = case(schedule, num_microbatches)
    plan = plan_of(job.recipe_tree() | {"mesh": {"pp": 2}}, 2)
    program = on_meta(plan)
    materialise(program, replace(plan.run(), device=torch.device("cpu")))
    microbatches = [source(job).__getitems__([2 * i, 2 * i + 1]) for i in range(num_microbatches)]
    loss = program.forward_backward(program, microbatches, 1.0, no_span)
    gradients = sum(parameter.grad is not None for parameter in program.model.parameters())
    try:
        # As if something had cut the sequence without saying so.
        program = replace(program, sequence_split=2, shard_batch=lambda batch: batch)
        program.forward_backward(program, [Batch(*(t[:1] for t in b[:2])) for b in microbatches], 1.0, no_span)
    except (RuntimeError, StrategyError) as error:
        return float(loss), gradients, repr(error.__cause__ or error)
    return float(loss), gradients, ""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_runs_without_partners_on_the_fake_process_group(schedule: str) -> None:
    for rank in (0, 1):
        loss, gradients, problem = as_rank(rank, 2, step_in_a_fake_world, schedule, 4)
        has_loss = rank == (0 if schedule in ("zbv", "dualpipev") else 1)
        assert (loss != 0) == has_loss  # of numbers that nobody has sent
        assert gradients >= 2 * 9
        if rank == 0:
            assert "returned [1, 32, 32], but the facts" in problem
