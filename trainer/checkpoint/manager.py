"""Writes and reads the checkpoints of a run: `checkpoints/step-000500/` with tensors (DCP) and `state.json`.

[Note: a checkpoint is complete or absent]
All ranks write into a temporary folder; when every rank is done, rank 0 adds `state.json` and renames the folder. A
folder named `step-*` is therefore whole. Hyperparameters are not in it: they come from the recipe, so a resumed run
does what its recipe says.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...strategies.base import Program
from ...strategies.names import canonical
from .config import CheckpointConfig
from .errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

    from .safe_dcp import SafeReader

_STEP = re.compile(r"step-(\d+)")
_MISSING_KEY = re.compile(r"Missing key in checkpoint state_dict: (.+?)\.?$")
FORMAT = 1


def complete(folder: Path) -> dict[int, Path]:
    """Complete checkpoints in a folder by step, oldest first."""
    found = {int(match[1]): path for path in folder.glob("step-*") if (match := _STEP.fullmatch(path.name))}
    return dict(sorted((step, path) for step, path in found.items() if (path / "state.json").is_file()))


def last_checkpoint(folder: Path) -> Path:
    """The newest complete checkpoint in a folder. Raises: CheckpointError if there is none."""
    found = complete(folder)
    if not found:
        raise CheckpointError(f"--resume: {folder} holds no complete checkpoint; start a new run")
    return found[max(found)]


def folder_name(step: int) -> str:
    """Name of the checkpoint after so many steps."""
    return f"step-{step:06d}"


def _nowhere(step: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class _State:
    """What `state.json` says that is needed."""

    step: int
    num_ranks: int
    loss_scaling: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one run. Every rank calls every method."""

    folder: Path
    program: Program
    optimizer: "Optimizer"
    device: "torch.device"
    rank: int
    num_ranks: int
    agree: Callable[[str], str]
    """Takes this rank's problem, or an empty string; waits for all ranks and gives each the first problem of any."""
    identity: dict[str, Any]
    """JSON values that must be equal when the run continues: seed, data, tokens per step."""
    position: Callable[[int], dict[str, Any]] = _nowhere
    """JSON values of how far in the data a run is after so many steps: epoch, samples of all ranks, fingerprint."""

    def save(self, step: int, config: CheckpointConfig) -> Path | None:
        """Write the checkpoint of `step` and remove those beyond `keep`; None if that step is saved already.

        Raises: CheckpointError if it cannot be written.
        """
        final = self.folder / folder_name(step)
        # One rank looks: on a network file system two may see different things, and one would wait for the other.
        if self.agree("saved already" if self.rank == 0 and final.is_dir() else ""):
            return None
        partial = self.folder / f".partial-{final.name}"
        try:
            self._on_first_rank(lambda: _make_empty(partial))
            self._write(partial)
            self._on_first_rank(lambda: self._commit(step, partial, final))
            self._on_first_rank(lambda: self._forget(config.keep))
        except OSError as error:
            if self.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"{final}: cannot be written ({error}); free space or change --out") from error
        return final

    def _on_first_rank(self, action: Callable[[], None]) -> None:
        """Rank 0 acts. Raises: OSError on every rank if that fails, so that none waits for another."""
        problem = ""
        if self.rank == 0:
            try:
                action()
            except OSError as error:
                problem = error.strerror or str(error)
        if said := self.agree(problem):
            raise OSError(said)

    def _write(self, partial: Path) -> None:
        """Each rank writes its tensors. Raises: OSError on every rank if one of them cannot."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            with _quiet():
                dcp.save(self._tensors(), checkpoint_id=partial, no_dist=self.num_ranks == 1)
        except CheckpointException as error:
            raise OSError(_first_cause(error)) from error

    def _forget(self, keep: int) -> None:
        """Remove all but the newest checkpoints, each out of sight first: half a checkpoint is never named `step-*`."""
        for old in list(complete(self.folder).values())[:-keep]:
            hidden = old.rename(old.with_name(f".partial-{old.name}"))
            shutil.rmtree(hidden)

    def _commit(self, step: int, partial: Path, final: Path) -> None:
        state = {
            "format": FORMAT,
            "step": step,
            "num_ranks": self.num_ranks,
            "position": self.position(step),
            "loss_scaling": self.program.loss_scaling.state(),
            "identity": self.identity,
        }
        (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n")
        partial.rename(final)

    def load(self, path: Path) -> int:
        """Restore everything from a checkpoint; return the number of steps done.

        Ranks of another number share the same tensors out anew, and begin with random states of their own.
        Raises: CheckpointError if it is damaged, hostile, or of another run. Tensors are read into their places, so
        after damage found among them the run cannot go on.
        """
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

        from . import rng
        from .safe_dcp import SafePlanner, SafeReader

        reader = SafeReader(path)
        state = self._agreed_state(path, reader)
        tensors = self._tensors()
        if state.num_ranks != self.num_ranks:
            del tensors["rng"]
        try:
            with _quiet():
                dcp.load(tensors, storage_reader=reader, planner=SafePlanner(), no_dist=self.num_ranks == 1)
        except CheckpointError:
            raise
        except CheckpointException as error:
            raise CheckpointError(f"{path}: {_first_cause(error)}; use another checkpoint") from error
        except Exception as error:  # a damaged file fails deep inside torch, in many kinds
            raise CheckpointError(f"{path}: cannot be loaded ({error}); use another checkpoint") from error
        paths, own = self._paths(), self._replica
        set_model_state_dict(self.program.model, {paths[name]: each for name, each in tensors[f"model{own}"].items()})
        optimizer_state = self._optimizer_state()
        optimizer_state["state"] = {paths[name]: each for name, each in tensors[f"optimizer{own}"].items()}
        set_optimizer_state_dict(self.program.model, self.optimizer, optimizer_state)
        if "rng" in tensors:
            rng.restore(tensors["rng"][f"rank-{self.rank}"], self.device)
        scaling = state.loss_scaling
        if scaling.keys() == self.program.loss_scaling.state().keys():  # else the format has changed: it starts anew
            self.program.loss_scaling.restore(scaling)
        return state.step

    def _agreed_state(self, path: Path, reader: "SafeReader") -> _State:
        """Step, ranks and loss scaling. Raises: CheckpointError on every rank if one of them finds a problem."""
        state, problem = _State(step=0, num_ranks=0, loss_scaling={}), ""
        try:
            state = self._read_state(path)
            reader.read_metadata()  # here rather than first by torch, which prints a traceback for each thing it tries
        except CheckpointError as error:
            problem = str(error)
        if said := self.agree(problem):
            raise CheckpointError(said)
        return state

    def _read_state(self, path: Path) -> _State:
        """What the file says, after the checks that need no tensors."""
        try:
            state = json.loads((path / "state.json").read_text())
            step, num_ranks, identity = state["step"], state["num_ranks"], dict(state["identity"])
            scaling = {str(key): float(value) for key, value in dict(state["loss_scaling"]).items()}
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{path}/state.json: cannot be read ({error}); use another checkpoint") from error
        if type(step) is not int or path.name != folder_name(step):
            raise CheckpointError(f"{path}/state.json: step = {step!r} is not the folder's; use another checkpoint")
        if state.get("format") != FORMAT:
            raise CheckpointError(f"{path}: format {state.get('format')}, but this version reads {FORMAT}; upgrade")
        if num_ranks != self.num_ranks and self.program.replica is not None:
            raise CheckpointError(
                f"{path}: saved by {num_ranks} ranks, of which each replica trains apart, but {self.num_ranks} are "
                f"running; start {num_ranks}"
            )
        for key, now in self.identity.items():
            if identity.get(key) != now:
                raise CheckpointError(
                    f"{path}: was trained with {key} = {identity.get(key)}, but the recipe says {now}; "
                    f"set it back or start a new run"
                )
        return _State(step=step, num_ranks=num_ranks, loss_scaling=scaling)

    def _tensors(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        from . import rng

        model, optimizer = get_model_state_dict(self.program.model), self._optimizer_state()["state"]
        kept, own = self.program.kept_tensors(), self._replica
        return {
            f"model{own}": {canonical(path): each for path, each in model.items()},
            f"optimizer{own}": {canonical(path): each for path, each in optimizer.items()},
            "rng": {f"rank-{self.rank}": rng.capture(self.device)},
        } | ({"kept": kept} if kept else {})

    @property
    def _replica(self) -> str:
        """Put behind the names of what replicas that train apart do not share: what is called the same is kept once."""
        return "" if self.program.replica is None else f"-{self.program.replica}"

    def _paths(self) -> dict[str, str]:
        """Where this rank keeps what a checkpoint calls by its canonical name: a pipeline puts its stages in front."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return {canonical(path): path for path in get_model_state_dict(self.program.model)}

    def _optimizer_state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return dict(get_optimizer_state_dict(self.program.model, self.optimizer))


@contextmanager
def _quiet() -> Generator[None]:
    """Without torch's warning that a single rank has no process group: that is as intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _make_empty(folder: Path) -> None:
    """A new folder in the place of whatever an interrupted save has left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _first_cause(error: Any) -> str:
    """What went wrong on the first rank of torch's CheckpointException, in one line."""
    cause = next(iter(error.failures.values()))[0]
    if "weights_only" in str(cause):  # torch goes on to recommend loading it without
        return "its tensors are damaged or hostile"
    if match := _MISSING_KEY.match(str(cause)):
        return f"it has no {match[1]!r}, which this recipe keeps; resume with the strategies that saved it, or"
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return text.splitlines()[0]
