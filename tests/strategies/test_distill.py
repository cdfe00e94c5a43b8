"""The student's loss is what Hinton et al. wrote down, and its gradient; the teacher stays what it was."""

import io
import json
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepladder.launch import recipe as recipes
from stepladder.launch.errors import UsageError
from stepladder.launch.plan import make_plan
from stepladder.launch.ranks import Ranks, StopRequest
from stepladder.launch.session import Session
from stepladder.launch.teacher import open_model
from stepladder.profiling.record import no_span
from stepladder.strategies import Strategies
from stepladder.strategies.base import Batch, OpenedModel, Program, Run
from stepladder.strategies.check import problems
from stepladder.strategies.distill import Distillation, soft_loss
from stepladder.strategies.errors import StrategyError
from stepladder.trainer.checkpoint.errors import CheckpointError

TINY = (Path(__file__).parents[1] / "launch" / "conftest.py").read_text().split('"""')[3]


def batch_of(seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 32, (2, 9), generator=generator)
    labels = inputs[:, 1:].clone()
    labels[0, 2:5] = -100
    return Batch(inputs[:, :-1].contiguous(), labels)


def by_hand(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    """Position after position, from the definitions."""
    total = torch.zeros((), dtype=torch.float64)
    for s, t, label in zip(
        student.double().flatten(0, -2), teacher.double().flatten(0, -2), labels.flatten(), strict=True
    ):
        if label == -100:
            continue
        p, q = (torch.exp(each / temperature) for each in (t, s))
        p, q = p / p.sum(), q / q.sum()
        hard = -(s[label] - torch.logsumexp(s, 0))
        total = total + (1 - alpha) * hard + alpha * temperature**2 * (p * (p.log() - q.log())).sum()
    return total


def with_teacher(program: Program, teacher: nn.Module, run: Run, **keys: Any) -> Program:
    opened = OpenedModel(program=replace(program, model=teacher), seed=0, load=lambda model: None)
    return Distillation(teacher="there", **keys).apply(program, replace(run, open_model=lambda name: opened))


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.5), (4.0, 0.9), (2.0, 1.0)])
def test_loss_and_gradient_are_those_written_down(
    make_program: Callable[..., Program], make_run: Callable[..., Run], temperature: float, alpha: float
) -> None:
    program, batch = make_program(num_layers=1), batch_of()
    torch.manual_seed(5)
    teacher = make_program(num_layers=2).model
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    before = [each.clone() for each in teacher.parameters()]
    changed = with_teacher(program, teacher, make_run(), temperature=temperature, alpha=alpha)

    logits = changed.model(batch.inputs)
    loss = changed.loss(logits, batch)
    found = torch.autograd.grad(loss, list(changed.model.parameters()))

    logits = program.model(batch.inputs)
    expected = by_hand(logits, teacher(batch.inputs).detach(), batch.labels, temperature, alpha)
    wanted = torch.autograd.grad(expected, list(program.model.parameters()))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not teacher.training
    assert all(not each.requires_grad and each.grad is None for each in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    logits = torch.randn(3, 5, 7, requires_grad=True)
    loss = soft_loss(logits, logits.detach().clone(), torch.zeros(3, 5, dtype=torch.long), 3.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert abs(float(loss.detach())) < 1e-5
    assert float(gradient.abs().max()) < 1e-5


def test_an_evaluation_is_of_the_student_alone(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    program, batch = make_program(num_layers=1), batch_of()
    changed = with_teacher(program, make_program(num_layers=2).model, make_run())
    with torch.no_grad():
        assert torch.equal(changed.forward_only(changed, [batch]), program.forward_only(program, [batch]))


def test_images_with_classes_are_distilled_too() -> None:
    student, teacher, labels = torch.randn(6, 10), torch.randn(6, 10), torch.tensor([1, 2, -100, 4, 5, 6])
    expected = by_hand(student, teacher, labels, 2.0, 1.0)
    torch.testing.assert_close(soft_loss(student, teacher, labels, 2.0).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_teacher_of_other_classes_is_refused() -> None:
    with pytest.raises(StrategyError, match="same vocabulary or classes"):
        soft_loss(torch.randn(2, 3), torch.randn(2, 4), torch.zeros(2, dtype=torch.long), 1.0)


def test_what_cannot_work_beside_it_is_said(make_run: Callable[..., Run]) -> None:
    from stepladder.strategies.chunked_loss import ChunkedLoss

    run = make_run(active={"distill", "chunked_loss"})
    found = list(problems(Strategies(distill=Distillation(alpha=0.0), chunked_loss=ChunkedLoss()), run))
    assert any("cannot work beside strategies.chunked_loss" in each for each in found)
    assert any("teacher: missing" in each for each in found)
    assert any("alpha = 0.0" in each for each in found)


def train(recipe: Path, folder: Path, *overrides: str) -> tuple[list[float], str]:
    """Losses of each step, the first held-out loss among them, and what was said."""
    plan = make_plan(recipes.read(str(recipe), overrides), num_gpus=0)
    folder.mkdir()
    ranks = Ranks(rank=0, local_rank=0, num_ranks=1)
    (folder / "recipe.resolved.toml").write_text(recipes.to_toml(plan.recipe))
    session = Session(plan=plan, ranks=ranks, device=torch.device("cpu"), folder=folder, stop=StopRequest(), command=[])
    with redirect_stdout(io.StringIO()) as said:
        assert session.run(resume=False) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [each.get("loss", each.get("held_out_loss")) for each in lines], said.getvalue()


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A recipe, and the folder of a run of it that has a checkpoint."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TINY)
    train(recipe, tmp_path / "teacher", "checkpoint.every=4", "run.num_steps=4", "strategies.adamw.learning_rate=0.01")
    return recipe, tmp_path / "teacher"


def test_a_run_learns_from_the_checkpoint_of_another(runs: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, teacher = runs
    small = ("model.decoder.num_layers=1", "evaluation.every=100", "run.num_steps=3")
    alone, _ = train(recipe, tmp_path / "alone", *small)
    taught, said = train(recipe, tmp_path / "taught", *small, f"strategies.distill.teacher='{teacher}'")

    assert f"distill: teacher {teacher}, 0.0 M parameters" in said
    assert taught[0] == alone[0]  # the held-out loss before the first step: cross entropy alone
    assert taught[1] != alone[1]
    # The teacher that answers is the trained one: its weights are those of the checkpoint, bit by bit.
    opened = open_model(str(teacher))
    model = opened.program.model.to_empty(device="cpu")
    opened.load(model)
    import torch.distributed.checkpoint as dcp

    kept = {f"model.{name}": torch.zeros_like(each) for name, each in model.named_parameters()}
    dcp.load(kept, checkpoint_id=teacher / "checkpoints" / "step-000004", no_dist=True)
    for name, each in model.named_parameters():
        assert torch.equal(each, kept[f"model.{name}"]), name
        assert float(each.detach().abs().max()) > 0


def test_teachers_that_do_not_fit_are_found_before_anything_starts(runs: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, teacher = runs

    def said(*overrides: str) -> str:
        with pytest.raises(UsageError) as caught:
            make_plan(recipes.read(str(recipe), overrides), num_gpus=0)
        return str(caught.value)

    at = f"strategies.distill.teacher='{teacher}'"
    assert "knows 64 ids, the student 128; use a teacher of the same vocabulary" in said(
        at, "model.decoder.vocab_size=128"
    )
    assert "no such recipe" in said("strategies.distill.teacher='no-such'")
    (tmp_path / "empty").mkdir()
    assert "holds no run" in said(f"strategies.distill.teacher='{tmp_path / 'empty'}'")
    for path in (teacher / "checkpoints").iterdir():
        path.rename(path.with_name(f".{path.name}"))
    assert "has no complete checkpoint" in said(at)


@pytest.mark.parametrize("window", [8, None])
def test_a_teacher_that_mixes_documents_up_teaches_no_packed_ones(window: int | None, tmp_path: Path) -> None:
    from stepladder.trainer.data.pack.job import pack
    from stepladder.trainer.data.pack.parts import Packing

    (tmp_path / "texts.jsonl").write_text('{"text": "a document"}\n' * 9)
    pack(Packing(sources=(str(tmp_path / "texts.jsonl"),), held_out=0.0), tmp_path / "packed")
    student = (
        TINY.replace("[data.synthetic]", f'[data.tokens]\nfolder = "{tmp_path / "packed"}"\npacking = "best_fit"')
        .replace("vocab_size = 64", "vocab_size = 256")
        .replace("sequence_length = 32", "sequence_length = 8")
    )
    (tmp_path / "student.toml").write_text(student + f'[strategies.distill]\nteacher = "{tmp_path / "teacher.toml"}"\n')
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 256}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 32} | ({"sliding_window": window} if window else {})
    config = "\n".join(f"{key} = {value}" for key, value in sizes.items())
    config = f'model_type = "{"mistral" if window else "llama"}"\n{config}'
    decoder = TINY[TINY.index("[model.decoder]") : TINY.index("[data.synthetic]")]
    (tmp_path / "teacher.toml").write_text(TINY.replace(decoder, f"[model.transformers.config]\n{config}\n"))

    recipe = recipes.read(str(tmp_path / "student.toml"))
    if window is None:
        make_plan(recipe, num_gpus=0)
    else:
        with pytest.raises(UsageError, match=r"cannot keep the documents of a sample apart, as data\.tokens\.packing"):
            make_plan(recipe, num_gpus=0)


def test_a_checkpoint_of_another_model_is_refused(runs: tuple[Path, Path]) -> None:
    from stepladder.trainer.checkpoint.weights import load_weights

    with pytest.raises(CheckpointError, match="nothing of that name"):
        load_weights(nn.Linear(2, 2), runs[1] / "checkpoints" / "step-000004")


def sharded_and_whole() -> list[float]:
    """Losses and gradient norms of one student with a whole teacher under ddp, and a sharded one under fsdp2."""
    import torch.distributed as dist

    from stepladder.launch.build import build_program

    answers: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.toml"
        path.write_text(TINY)
        rank = dist.get_rank()
        for layout in ("ddp", "fsdp2"):
            keys = (f"strategies.{layout}={{}}", f"strategies.distill.teacher='{path}'")
            plan = make_plan(recipes.read(str(path), (*keys, "run.seed=3")), num_gpus=0, num_ranks=2, started=True)
            ranks = Ranks(rank=rank, local_rank=rank, num_ranks=2)
            program = build_program(plan, ranks, torch.device("cpu"))
            assert program.make_optimizer is not None
            optimizer = program.make_optimizer(program.model)
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            for step in range(2):
                loss = program.forward_backward(program, [batch_of(10 * step + rank)], 0.01, no_span)
                norm = program.clip_gradients(program, parameters, want_norm=True)
                assert norm is not None
                total = loss.detach().clone()
                dist.all_reduce(total)
                whole: Any = norm
                answers += [float(total), float(whole.full_tensor() if hasattr(whole, "full_tensor") else whole)]
                optimizer.zero_grad()
    return answers


@pytest.mark.slow
def test_a_sharded_teacher_says_what_a_whole_one_says(run_ranks: Callable[..., Any]) -> None:
    answers = run_ranks(sharded_and_whole, 2)
    half = len(answers) // 2
    losses = slice(0, None, 2)
    assert answers[:half][losses] == pytest.approx(answers[half:][losses], rel=1e-5)
    # ddp averages, so that the scale of its gradients is half of that of a sum
    assert [each * 2 for each in answers[:half][1::2]] == pytest.approx(answers[half:][1::2], rel=1e-4)
