"""Replicas that train apart and meet: compared with as many models in one process, averaged by hand."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stepladder.profiling.record import no_span
from stepladder.strategies import Strategies, active
from stepladder.strategies.adamw import AdamW
from stepladder.strategies.assemble import assemble
from stepladder.strategies.base import Batch, Program, Run
from stepladder.strategies.check import owners, problems
from stepladder.strategies.clip import Clip, measure_norm
from stepladder.strategies.ddp import DDP
from stepladder.strategies.fsdp2 import FSDP2
from stepladder.strategies.local_sgd import LocalSGD
from stepladder.strategies.materialise import build_on_meta, seed_of
from stepladder.strategies.mesh import Axis, build_mesh, coordinates, data_rank
from stepladder.trainer.checkpoint.config import CheckpointConfig
from stepladder.trainer.checkpoint.manager import Checkpoints
from stepladder.trainer.loop import StepData, StepResult, Watcher, train
from stepladder.trainer.models.config import DecoderConfig
from stepladder.trainer.models.decoder import next_token_loss
from stepladder.trainer.step import accumulate

RANKS, STEPS, LENGTH, SEED, RATE, MAX_NORM = 4, 6, 8, 7, 1e-2, 1.5
CONFIG = DecoderConfig(dim=16, num_layers=1, num_heads=2, ffn_dim=32, vocab_size=33)  # 33: uneven shards
Weights = dict[str, torch.Tensor]


def batch_of(share: int, step: int) -> Batch:
    """What one of the four data ranks sees in a step, [1, 8]."""
    tokens = torch.randint(0, 33, (1, LENGTH + 1), generator=torch.Generator().manual_seed(100 * step + share))
    return Batch(tokens[:, :-1], tokens[:, 1:])


class Feed:
    """The batches of one rank, from a step on."""

    def __init__(self, share: int, step: int) -> None:
        self.share, self.step = share, step

    def wait(self) -> Sequence[Batch]:
        self.step += 1
        return [batch_of(self.share, self.step - 1)]

    def to_device(self, microbatches: Sequence[Batch]) -> StepData:
        return StepData(microbatches, float(RANKS * LENGTH))

    def run_ahead(self, mark: Any) -> None:
        pass


def build(keys: dict[str, Any], replicas: int) -> tuple[Program, Run]:
    degrees = dict.fromkeys(Axis, 1) | {Axis.DP_REPLICATE: replicas, Axis.DP_SHARD: RANKS // replicas}
    sharded = {"fsdp2": FSDP2(prefetch=0)} if replicas < RANKS else {}
    strategies = Strategies(
        adamw=AdamW(learning_rate=RATE), clip=Clip(max_norm=MAX_NORM), local_sgd=LocalSGD(**keys), **sharded
    )
    run = Run(
        device_type="cpu",
        degrees=degrees,
        facts=CONFIG.facts(LENGTH),
        num_steps=STEPS,
        tokens_per_step=RANKS * LENGTH,
        seed=SEED,
        active=frozenset(name for name, _ in active(strategies)),
        owners=owners(strategies),
        mesh=build_mesh("cpu", degrees),
        device=torch.device("cpu"),
    )
    program = Program(
        model=build_on_meta(CONFIG.build),
        facts=CONFIG.facts(LENGTH),
        loss=next_token_loss,
        forward_backward=accumulate,
        clip_gradients=measure_norm,
    )
    return assemble(program, strategies, run), run


def whole_weights(parameters: dict[str, Any]) -> Weights:
    return {name: getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for name, p in parameters.items()}


def trained(keys: dict[str, Any], replicas: int, folder: str, stop_after: int = STEPS) -> dict[str, Any]:
    """Weights after each step and norms on this rank; from the checkpoint of step `stop_after` on, if there is one."""
    rank = torch.distributed.get_rank()
    program, run = build(keys, replicas)
    assert program.make_optimizer is not None
    optimizer = program.make_optimizer(program.model)
    checkpoints = Checkpoints(
        folder=Path(folder), program=program, optimizer=optimizer, device=torch.device("cpu"), rank=rank,
        num_ranks=RANKS, agree=agree, identity={},
    )  # fmt: skip
    saved = Path(folder) / f"step-{stop_after:06d}"
    first_step = checkpoints.load(saved) if agree("there" if saved.is_dir() else "") else 0
    parameters = dict(program.model.named_parameters())
    weights: list[Weights] = []
    norms: list[float] = []

    def look(result: StepResult) -> bool:
        weights.append(whole_weights(parameters))
        norms.append(float(result.grad_norm))  # type: ignore[arg-type]
        return result.step == stop_after and not first_step

    done = train(
        program,
        optimizer,
        Feed(data_rank(rank, run.degrees), first_step),
        num_steps=STEPS,
        first_step=first_step,
        base_rates=[RATE] * len(optimizer.param_groups),
        watchers=[Watcher(every=1, look=look)],
        wants_norm=lambda step: True,
        mark=no_span,
    )
    if done < STEPS:
        checkpoints.save(done, CheckpointConfig())
    return {"weights": weights, "norms": norms, "replica": coordinates(rank, run.degrees)[Axis.DP_REPLICATE]}


def agree(problem: str) -> str:
    said: list[Any] = [None] * RANKS
    torch.distributed.all_gather_object(said, problem)
    return next((each for each in said if each), "")


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "average": ({"every": 3}, 4),
    "average of shards": ({"every": 2}, 2),
    "post-local": ({"every": 3, "warmup_steps": 2}, 2),
    "diloco": ({"every": 2, "outer": "nesterov"}, 2),
    "diloco, warm": (
        {"every": 2, "warmup_steps": 1, "outer": "nesterov", "outer_learning_rate": 0.5, "outer_momentum": 0.8},
        4,
    ),
}


def all_trained(folder: str) -> dict[str, list[dict[str, Any]]]:
    """Each case on every rank; and two of them interrupted between meetings and resumed."""
    found: dict[str, Any] = {name: trained(*case, folder=f"{folder}/none") for name, case in CASES.items()}
    for name in ("average", "diloco, warm", "diloco"):
        for part in ("before", "after"):
            found[f"{name} {part}"] = trained(*CASES[name], folder=f"{folder}/{name}", stop_after=5)
    everybody: list[Any] = [None] * RANKS
    torch.distributed.all_gather_object(everybody, found)
    return {name: [each[name] for each in everybody] for name in found}


@pytest.fixture(scope="module")
def found(run_ranks: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return run_ranks(all_trained, RANKS, str(tmp_path_factory.mktemp("checkpoints")))


def by_hand(config: LocalSGD, replicas: int) -> tuple[list[list[Weights]], list[list[float]]]:
    """Weights by step and replica, and norms before clipping, from as many models in one process."""
    first, initialise = CONFIG.build(), CONFIG.facts(LENGTH).initialise
    assert initialise is not None
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            initialise(name, parameter, torch.Generator().manual_seed(seed_of(SEED, name)))
    models = [copy.deepcopy(first) for _ in range(replicas)]
    optimizers = [
        torch.optim.AdamW(AdamW(learning_rate=RATE).groups(model), lr=RATE, betas=(0.9, 0.95), foreach=False)
        for model in models
    ]
    met = [p.detach().clone() for p in first.parameters()]
    direction = [torch.zeros_like(p) for p in met]
    rate = 0.7 if config.outer_learning_rate is None else config.outer_learning_rate
    momentum = 0.9 if config.outer_momentum is None else config.outer_momentum
    shards = RANKS // replicas
    weights, norms = [], []
    for step in range(STEPS):
        norms.append([])
        for replica, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            for shard in range(shards):
                batch = batch_of(replica * shards + shard, step)
                (next_token_loss(model(batch.inputs), batch) / (shards * LENGTH)).backward()
            norms[-1].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)))
            optimizer.step()
            optimizer.zero_grad()
        warm = step + 1 <= config.warmup_steps
        if warm or (step + 1) % config.every == 0:
            with torch.no_grad():
                for i, same in enumerate(zip(*(model.parameters() for model in models), strict=True)):
                    mean = torch.stack([p.detach() for p in same]).mean(dim=0)
                    if config.outer == "nesterov" and not warm:
                        gradient = met[i] - mean
                        direction[i] = momentum * direction[i] + gradient
                        mean = met[i] - rate * (gradient + momentum * direction[i])
                    met[i] = mean.clone()
                    for p in same:
                        p.copy_(mean)
        weights.append([{name: p.detach().clone() for name, p in model.named_parameters()} for model in models])
    return weights, norms


def apart(found: Weights, truth: Weights) -> float:
    assert found.keys() == truth.keys()
    return max(float((found[name] - truth[name]).norm() / truth[name].norm()) for name in truth)


@pytest.mark.parametrize("name", CASES)
def test_every_replica_goes_the_way_of_a_model_of_its_own(name: str, found: dict[str, list[dict[str, Any]]]) -> None:
    keys, replicas = CASES[name]
    weights, norms = by_hand(LocalSGD(**keys), replicas)
    for rank, each in enumerate(found[name]):
        for step in range(STEPS):
            assert apart(each["weights"][step], weights[step][each["replica"]]) < 1e-4, (rank, step)
            assert each["norms"][step] == pytest.approx(norms[step][each["replica"]], rel=1e-4), (rank, step)
    assert {each["replica"] for each in found[name]} == set(range(replicas))
    assert max(max(each) for each in norms) > MAX_NORM  # so that the bound holds of each replica's own norm


@pytest.mark.parametrize("name", CASES)
def test_replicas_are_equal_after_a_meeting_and_only_then(name: str, found: dict[str, list[dict[str, Any]]]) -> None:
    keys, _ = CASES[name]
    for step in range(STEPS):
        met = step + 1 <= keys.get("warmup_steps", 0) or (step + 1) % keys["every"] == 0
        distance = apart(found[name][0]["weights"][step], found[name][-1]["weights"][step])
        assert distance == 0 if met else distance > 1e-4, step


@pytest.mark.parametrize("name", ["average", "diloco", "diloco, warm"])
def test_a_run_resumed_between_two_meetings_is_the_one_without_a_break(
    name: str, found: dict[str, list[dict[str, Any]]]
) -> None:
    for rank in range(RANKS):
        whole, before, after = (found[each][rank]["weights"] for each in (name, f"{name} before", f"{name} after"))
        assert len(before) == 5
        assert len(after) == 1
        for one, other in zip(whole, [*before, *after], strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one), rank


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({}, 1, "has no effect with mesh.dp_replicate = 1"),
    ({"every": 30}, 2, "every = 30: no divisor of run.num_steps = 100"),
    ({"warmup_steps": 100}, 2, "warmup_steps = 100: the run has 100 steps"),
    ({"every": 1, "warmup_steps": 5}, 2, "warmup_steps = 5: has no effect with every = 1"),
    ({"outer_momentum": 0.5}, 2, "outer_momentum: has no effect with outer = 'average'"),
    ({"outer_learning_rate": 0.5}, 2, "outer_learning_rate: has no effect with outer = 'average'"),
]


@pytest.mark.parametrize(("keys", "replicas", "sentence"), REFUSED, ids=[sentence for *_, sentence in REFUSED])
def test_what_would_have_no_effect_is_refused(
    keys: dict[str, Any], replicas: int, sentence: str, make_run: Callable[..., Run]
) -> None:
    degrees = dict.fromkeys(Axis, 1) | {Axis.DP_REPLICATE: replicas}
    (said,) = LocalSGD(**keys).check(make_run(degrees=degrees))
    assert sentence in said


def test_only_one_strategy_keeps_the_replicas_together(make_run: Callable[..., Run]) -> None:
    degrees = dict.fromkeys(Axis, 1) | {Axis.DP_REPLICATE: 2}
    two: Any = Strategies(adamw=AdamW(), local_sgd=LocalSGD(), ddp=DDP())
    (said,) = problems(two, make_run(degrees=degrees, active=[name for name, _ in active(two)]))
    assert "strategies.ddp and strategies.local_sgd: each wants to own the dp_replicate axis" in said
    beside: Any = Strategies(adamw=AdamW(), local_sgd=LocalSGD(), fsdp2=FSDP2())
    assert not list(problems(beside, make_run(degrees=degrees, active=[name for name, _ in active(beside)])))
