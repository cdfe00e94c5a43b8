"""What arms must have in common to be compared: the same model, trained on the same tokens by the same devices."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from .. import recipe as recipes
from ..plan import Plan
from ..schema import Recipe

_FIXED = ("model", "data", "evaluation", "batch.sequence_length", "run.seed", "run.num_steps")
"""Tables and keys that say what is trained."""
_BEHIND_TOKENS = (
    "batch.microbatch_size",
    "strategies.accumulation",
    "batch.sequence_length",
    "mesh",
    "run.cpu_ranks",
    "run.device",
    "strategies",
)
_BEHIND_RANKS = ("mesh", "run.cpu_ranks", "run.device", "strategies")


def measured_part(recipe: Recipe) -> Recipe:
    """The recipe without what the measured steps leave out: its name, checkpoints, profiles, trackers, evaluation."""
    return replace(recipe, name="segment", evaluation=None, checkpoint=None, profiler=None, trackers=None)


def problems(name: str, baseline: Plan, arm: Plan, declared: Sequence[str], used: set[str]) -> Iterator[str]:
    """Each way in which an arm trains something else without having said so.

    declared: keys, or tables of keys, that may change the workload. used: those that were needed are added to it.
    """
    changed = {
        line.split(": ")[0]: line
        for line in recipes.diff(replace(baseline.recipe, name=""), replace(arm.recipe, name=""))
    }

    def may(key: str) -> bool:
        allowing = [each for each in declared if key == each or key.startswith(f"{each}.")]
        used.update(allowing)
        return bool(allowing)

    for key, line in changed.items():
        if any(key == each or key.startswith(f"{each}.") for each in _FIXED) and not may(key):
            yield (
                f"arm {name}: {line} changes what is trained, so that times say nothing of speed; leave it, or declare "
                f"--changes-workload {key}"
            )
    if arm.tokens_per_step != baseline.tokens_per_step:
        behind = [key for key in changed if _is_behind(key, _BEHIND_TOKENS)]
        if not [key for key in behind if may(key)]:
            yield (
                f"arm {name}: {arm.tokens_per_step:,} tokens per step, the baseline has "
                f"{baseline.tokens_per_step:,}; {_way_out(baseline, arm)}or declare "
                f"--changes-workload {behind[0] if behind else 'batch'}"
            )
    here, there = (f"{plan.num_ranks} x {plan.device_type}" for plan in (arm, baseline))
    if here != there:
        behind = [key for key in changed if _is_behind(key, _BEHIND_RANKS)]
        if not [key for key in behind if may(key)]:
            yield (
                f"arm {name}: runs on {here}, the baseline on {there}; give both the same ranks, or declare "
                f"--changes-workload {behind[0] if behind else 'mesh'}"
            )


def _is_behind(key: str, causes: Sequence[str]) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in causes)


def _way_out(baseline: Plan, arm: Plan) -> str:
    """How many microbatches would give the baseline's tokens, if any number does."""
    one = arm.tokens_per_step // arm.recipe.num_microbatches
    if baseline.tokens_per_step % one:
        return ""
    return f"set strategies.accumulation.num_microbatches = {baseline.tokens_per_step // one}, "
