"""Models of other runs: what a strategy opens by name, because it knows neither recipes nor models."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..strategies.base import OpenedModel, Program
from ..strategies.clip import measure_norm
from ..strategies.materialise import build_on_meta
from ..trainer.checkpoint.errors import CheckpointError
from ..trainer.checkpoint.manager import last_checkpoint
from ..trainer.step import accumulate
from .errors import UsageError
from .recipe import read
from .schema import Recipe

if TYPE_CHECKING:
    from torch import nn

_RESOLVED = "recipe.resolved.toml"


def open_model(name: str) -> OpenedModel:
    """The model of a run folder, with the weights of its last checkpoint, or of a recipe, with those it begins with.

    Raises: UsageError, CheckpointError.
    """
    recipe, weights = _find(name)

    def load(model: "nn.Module") -> None:
        from ..trainer.checkpoint.weights import load_weights

        if weights is not None:
            load_weights(model, weights)

    chosen = recipe.model.chosen
    program = Program(
        model=build_on_meta(chosen.build),
        facts=chosen.facts(recipe.batch.sequence_length),
        loss=chosen.loss(),
        forward_backward=accumulate,
        clip_gradients=measure_norm,
    )
    return OpenedModel(program=program, seed=recipe.run.seed, load=load)


def _find(name: str) -> tuple[Recipe, Path | None]:
    """Recipe and checkpoint of what is called so. Raises: UsageError, CheckpointError."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / _RESOLVED).is_file():
            raise UsageError(f"{name}: holds no run; give a run folder or a recipe")
        return read(str(folder / _RESOLVED)), last_checkpoint(folder / "checkpoints")
    return read(name), None


def teacher_problems(recipe: Recipe) -> Iterator[str]:
    """A teacher that cannot be opened, or speaks another language than the student."""
    distill = recipe.strategies.distill
    if distill is None or not distill.teacher:
        return
    where = f"strategies.distill.teacher = {distill.teacher!r}"
    try:
        teacher, _ = _find(distill.teacher)
    except CheckpointError:
        yield f"{where}: has no complete checkpoint; let it train until it has one"
        return
    except UsageError as error:
        yield f"{where}: {error.problems[0]}"
        return
    theirs, ours = teacher.model.chosen, recipe.model.chosen
    if theirs.takes != ours.takes:
        yield f"{where}: takes {theirs.takes}, the student {ours.takes}; use a teacher for the same data"
    elif theirs.vocab_size != ours.vocab_size:
        yield (
            f"{where}: knows {theirs.vocab_size:,} ids, the student {ours.vocab_size:,}; "
            f"use a teacher of the same vocabulary"
        )
    elif getattr(recipe.data.chosen, "documents", False) and not getattr(theirs, "takes_documents", False):
        yield (
            f"{where}: cannot keep the documents of a sample apart, as data.{recipe.data.name}.packing asks for; "
            f"use 'split' there, or another teacher"
        )
