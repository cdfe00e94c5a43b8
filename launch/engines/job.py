"""What is to run on how many machines, whatever starts it there."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..topology.errors import shown

if TYPE_CHECKING:
    from ..plan import Plan

_MOST = 1_000_000
_TORN = re.compile("[\ud800-\udfff]")
_SLURM, _KUBERNETES = "--slurm", "--kubernetes"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run on several machines."""

    name: str
    num_nodes: int
    ranks_per_node: int
    on_gpus: bool
    arguments: tuple[str, ...]
    """Of `stepladder`, on every rank; they name everything by its whole path."""
    folder: Path
    """The run's, on a file system that all machines share."""
    plan: "Plan"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `stepladder run` takes for other machines."""
    engine = parser.add_argument_group("on other machines")
    engine.add_argument(_SLURM, action="store_true", help="submit an sbatch script: one torchrun a node, --ranks each")
    engine.add_argument(
        _KUBERNETES, action="store_true", help="print a TrainJob of Kubeflow Trainer, for kubectl apply"
    )
    engine.add_argument("--nodes", type=int, metavar="N", help="so many machines (default: 1)")
    engine.add_argument("--dry-run", action="store_true", help="show the sbatch script, and submit nothing")
    engine.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="of sbatch: --sbatch=--partition=long"
    )
    engine.add_argument("--image", metavar="NAME", help="the container image (default: the training runtime's)")
    engine.add_argument("--runtime", metavar="NAME", help="the training runtime (default: torch-distributed)")


def check_options(options: argparse.Namespace) -> bool:
    """Whether the run is for other machines. Raises: UsageError for options without effect."""
    if options.slurm and options.kubernetes:
        raise UsageError("--slurm --kubernetes: a job has one scheduler; keep one")
    for given, said, wants in (
        (options.nodes is not None, "--nodes", options.slurm or options.kubernetes),
        (options.dry_run, "--dry-run", options.slurm),
        (bool(options.sbatch), "--sbatch", options.slurm),
        (options.image is not None, "--image", options.kubernetes),
        (options.runtime is not None, "--runtime", options.kubernetes),
    ):
        if given and not wants:
            other = _KUBERNETES if said in ("--image", "--runtime") else _SLURM
            raise UsageError(f"{said}: has no effect without {other}; add it, or remove {said}")
    for said in ("step_times", "stop_after", "resume"):
        if getattr(options, said) and (options.slurm or options.kubernetes):
            raise UsageError(f"--{said.replace('_', '-')}: a job goes on by itself where it ended; remove it")
    return bool(options.slurm or options.kubernetes)


def job_of(options: argparse.Namespace) -> Job:
    """The job of the options. Raises: UsageError with every problem of the recipe there."""
    from ...strategies.check import owned_axes
    from .. import recipe as recipes
    from ..placement.apply import read_plan
    from ..plan import make_plan
    from ..run_folder import default_name

    recipe = recipes.read(options.recipe, options.overrides)
    nodes = 1 if options.nodes is None else options.nodes
    if nodes < 1:
        raise UsageError(f"--nodes {nodes}: a job needs at least 1 node")
    if options.ranks is not None and options.ranks < 1:
        raise UsageError(f"--ranks {options.ranks}: a node needs at least 1 rank; give one for each GPU of a node")
    if max(nodes, options.ranks or 1) > _MOST:
        raise UsageError(f"--nodes {nodes} --ranks {options.ranks}: more than {_MOST:,} are no cluster; give its own")
    on_gpus = recipe.run.device != "cpu"
    required = recipe.mesh.required_ranks(owned_axes(recipe.strategies))
    ranks = options.ranks or (required // nodes if required and required % nodes == 0 else None)
    ranks = ranks or (None if on_gpus else recipe.run.cpu_ranks)
    if ranks is None:
        raise UsageError(
            "--ranks: how many GPUs has a node? the mesh does not say it; give --ranks N, one for each GPU of a node"
        )
    plan = make_plan(recipe, num_gpus=ranks if on_gpus else 0, num_ranks=ranks * nodes, started=True)
    read_plan(options.placement)  # a bad file is found before the job waits in a queue
    folder = (options.out or default_name(recipe)).resolve()
    path = Path(options.recipe)
    arguments = ["run", str(path.resolve()) if path.is_file() else options.recipe]
    arguments += [word for each in options.overrides for word in ("--set", each)]
    arguments += ["--out", str(folder), "--requeue"]
    if options.placement != "auto":
        keywords = ("none", "rank-order")
        mode = options.placement if options.placement in keywords else str(Path(options.placement).resolve())
        arguments += ["--placement", mode]
    if options.no_affinity:
        arguments += ["--no-affinity"]
    torn = next((word for word in arguments if _TORN.search(word)), None)
    if torn is not None:
        raise UsageError(
            f"{shown(torn)}: is not in UTF-8, which what is written for others is in; give it another name"
        )
    return Job(
        name=recipe.name,
        num_nodes=nodes,
        ranks_per_node=ranks,
        on_gpus=on_gpus,
        arguments=tuple(arguments),
        folder=folder,
        plan=plan,
    )
