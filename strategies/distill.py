"""Distillation: a small model learns from what a large one thinks possible, not from the one right answer alone.

Problem: a label says which token came next; what else could have come, a small model must find out from many samples.
Mechanism: a teacher with frozen weights sees the same samples; the loss is (1 - alpha) of the cross entropy and alpha
of T^2 KL(teacher || student), both distributions softened by a temperature T, over the positions whose labels count.
Saves: steps to the same held-out loss; a student that is served is a fraction of its teacher.
Costs: the teacher's forward pass in each microbatch, its weights (sharded as the student's under fsdp2, else whole on
every rank), and two more float32 copies of the logits.
When: a teacher with the same vocabulary or classes is there, and many times smaller is wanted.
When not: the teacher is hardly better than the student would be; the logits do not fit beside each other.
Measure: held-out loss, which stays the cross entropy alone, against the same run without at equal time.
Source: Hinton et al. 2015, arXiv:1503.02531.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from .base import Batch, Owns, Program, Run
from .changes import Changes, MayChange
from .errors import StrategyError
from .limits import AtLeast, AtMost, PositiveFloat
from .materialise import materialise
from .refusal import Refusal

if TYPE_CHECKING:
    from torch import Tensor

_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Adds what a teacher says of the same samples to the loss."""

    teacher: str = ""
    """A run folder, for the weights of its last checkpoint; or a recipe, for those that its model begins with."""
    temperature: PositiveFloat = 2.0
    """T: above 1 the unlikely counts more."""
    alpha: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    """The teacher's part of the loss."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.ALGORITHM)
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="chunked_loss",
            why="the logits, which are compared with the teacher's, never exist",
            instead="remove one of the two",
        ),
        *(
            Refusal(beside=f"mesh.{axis}", why=why, instead="use strategies.fsdp2, which shards the teacher as well")
            for axis, why in (
                ("pp", "the last stage, which has the loss, has not the samples that the teacher needs"),
                ("tp", "each rank has a part of the student's vocabulary only"),
                ("cp", "the teacher would see a part of each sequence and take it for a whole"),
                ("ep", "the teacher's experts would have to be spread as well"),
            )
        ),
        Refusal(
            beside="cuda_graph",
            why="what is captured is the student's pass; the teacher gathers and frees its weights beside it",
            instead="remove one of the two",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing: the loss belongs to the model, and a part of it stays."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Refuse a missing teacher and settings without effect."""
        if not self.teacher:
            yield "teacher: missing; give a run folder or a recipe"
        if self.alpha == 0:
            yield "alpha = 0.0: the teacher has no part in the loss; raise it or remove the strategy"

    def apply(self, program: Program, run: Run) -> Program:
        """Bring the teacher in, and mix its word into the loss of training."""
        import torch

        assert run.open_model is not None, "distillation needs somebody who opens the teacher"
        opened = run.open_model(self.teacher)
        teacher = _frozen(opened.program, run)
        materialise(teacher, replace(run, seed=opened.seed))
        opened.load(teacher.model)
        own_loss, alpha = program.loss, self.alpha

        def loss(output: "Tensor", batch: Batch) -> "Tensor":
            if not torch.is_grad_enabled():  # an evaluation is of the student alone
                return own_loss(output, batch)
            with torch.no_grad():
                taught: Any = teacher.model(*batch.arguments)
            teacher.after_evaluation()
            soft = soft_loss(output, taught, batch.labels, self.temperature)
            return alpha * soft if alpha == 1 else (1 - alpha) * own_loss(output, batch) + alpha * soft

        return replace(program, loss=loss, reports=(*program.reports, lambda: [self._report(opened.program)]))

    def _report(self, teacher: Program) -> str:
        millions = teacher.facts.num_parameters / 1e6
        return (
            f"distill: teacher {self.teacher}, {millions:,.1f} M parameters; the loss of training is "
            f"{1 - self.alpha:g} cross entropy + {self.alpha:g} T^2 KL at T = {self.temperature:g}; "
            f"held-out losses are cross entropy alone"
        )


def _frozen(teacher: Program, run: Run) -> Program:
    """The teacher as it is asked: no gradients, no dropout, its weights where the student's strategy puts them."""
    teacher.model.requires_grad_(False)
    teacher.model.eval()
    sharding = getattr(run.strategies, "fsdp2", None)
    return sharding.apply(teacher, run) if sharding is not None and teacher.facts.blocks else teacher


def soft_loss(student: "Tensor", teacher: "Tensor", labels: "Tensor", temperature: float) -> "Tensor":
    """T^2 KL(teacher || student), summed over the positions whose label counts.

    student, teacher: [..., V] logits; labels: [...]. Raises: StrategyError if the two do not fit each other.
    """
    import torch.nn.functional as F

    if getattr(student, "shape", None) != getattr(teacher, "shape", None) or not hasattr(student, "log_softmax"):
        given, wanted = (tuple(getattr(each, "shape", ())) for each in (teacher, student))
        raise StrategyError(
            f"strategies.distill.teacher: answers with {given or 'no tensor'}, the student with "
            f"{wanted or 'no tensor'}; take a teacher of the same vocabulary or classes, and models that return logits"
        )
    log_student = F.log_softmax(student.float() / temperature, -1)
    log_teacher = F.log_softmax(teacher.float() / temperature, -1)
    apart = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(-1)
    return temperature**2 * (apart * (labels != _IGNORED)).sum()
