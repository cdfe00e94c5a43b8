"""Weights & Biases: online where there is a key and a network, and kept in the run folder where one is missing."""

import netrc
import os
import secrets
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from .sink import Beginning, Values, numbers

PUBLIC = "https://api.wandb.ai"
_REACH_S = 5.0
"""How long an address may take to accept a connection."""
_INIT_S = 30.0
"""How long the server may take to know the run."""
_LEAVE_S = 10.0
"""How long wandb's own process may take to end."""


class WeightsAndBiases:
    """One run of wandb for one run folder, however often it was resumed."""

    def __init__(self, beginning: Beginning, say: Callable[[str], None]) -> None:
        self._beginning, self._say, self._table = beginning, say, beginning.table
        self._address = str(self._table.get("base_url") or os.environ.get("WANDB_BASE_URL") or PUBLIC)
        self._id = _run_id(beginning)
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        for name in ("DATA", "CACHE"):  # attachments of a run that is kept are kept with it, and not in a home folder
            os.environ.setdefault(f"WANDB_{name}_DIR", str(beginning.run_folder / "wandb" / name.lower()))
        os.environ.setdefault("GOMAXPROCS", "1")  # of wandb's own process: the other cores train
        why = self._why_offline()
        if why is None:
            try:
                self._run = self._start("online")
            except Exception as error:  # wandb raises its own kinds, and others
                why = " ".join(str(error).split())[:200]
                _leave_service()
        if why is not None:
            self._run = self._start("offline")
            self._say(f"wandb: {why}; the run is kept offline, send it with: wandb sync {self._kept}")
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")  # a resumed run may measure some steps again

    def log(self, record: Values, at_s: float) -> None:
        """One line of history."""
        self._run.log({"step": int(record["step"]), **numbers(record), "_timestamp": at_s})

    def finish(self, summary: Values, code: int) -> None:
        """Set the summary, hand in what was asked for, and wait for it to be sent."""
        self._run.summary.update(dict(summary))
        for each in self._table.get("attach") or ():
            self._attach(str(each))
        try:
            self._run.finish(exit_code=code)
        except TimeoutError:
            self._say(
                f"wandb: not everything was sent in time; the rest is kept, send it with: wandb sync {self._kept}"
            )

    @property
    def _kept(self) -> str:
        path = Path(str(self._run.settings.sync_dir))
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

    def _why_offline(self) -> str | None:
        """Why the run cannot be online, in words; None if nothing speaks against it."""
        mode = self._table["mode"]
        asked = os.environ.get("WANDB_MODE", "") if mode == "auto" else ""
        if mode == "offline" or asked in ("offline", "dryrun", "disabled"):
            return "offline, as asked for"
        if not _has_key(self._address):
            return f"no key for {self._address} (WANDB_API_KEY, or wandb login)"
        return _unreachable(self._address)

    def _start(self, mode: str) -> Any:
        wandb: Any = import_module("wandb")
        known = wandb.Settings.model_fields
        settings: dict[str, Any] = {
            "silent": True,
            "console": "off",
            "disable_git": True,
            "disable_code": True,
            "save_code": False,
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_disable_stats": True,
            "x_save_requirements": False,
            "symlink": False,
            "init_timeout": _INIT_S,
            "finish_timeout": max(1.0, self._beginning.patience_s - 2),
            "finish_timeout_raises": True,
        }
        if mode == "online":
            settings["base_url"] = self._address
        table = self._table
        return wandb.init(
            project=table["project"],
            entity=table.get("entity"),
            name=table.get("name") or self._beginning.run_folder.name,
            group=table.get("group"),
            tags=list(table.get("tags") or ()) or None,
            dir=self._beginning.folder,
            id=self._id,
            resume="allow" if mode == "online" else None,
            mode=mode,
            config=dict(self._beginning.config),
            settings=wandb.Settings(**{key: value for key, value in settings.items() if key in known}),
        )

    def _attach(self, what: str) -> None:
        """Hand in the report or the traces as an artifact; says so if they are not there."""
        wandb: Any = import_module("wandb")
        folder = self._beginning.run_folder
        files = [folder / "report.html"] if what == "report" else sorted((folder / "traces").glob("*.json*"))
        files = [path for path in files if path.is_file()]
        if not files:
            self._say(f"wandb: there is no {what} to attach in {folder}")
            return
        artifact = wandb.Artifact(f"{what}-{self._id}", type=what)
        for path in files:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)


def _leave_service() -> None:
    """End wandb's own process, which holds the id of a run that could not begin; not waiting for it for long."""
    wandb: Any = import_module("wandb")
    leaving = threading.Thread(target=wandb.teardown, args=(1,), daemon=True)
    leaving.start()
    leaving.join(_LEAVE_S)


def _run_id(beginning: Beginning) -> str:
    """The id under which wandb knows the run: a new one for a run that begins, the kept one for one that goes on."""
    path = beginning.run_folder / "trackers" / "wandb.id"
    if beginning.first_step and path.is_file() and (kept := path.read_text().strip()):
        return kept
    made = secrets.token_hex(4)
    path.parent.mkdir(exist_ok=True)
    path.write_text(made + "\n")
    return made


def _has_key(address: str) -> bool:
    """Whether wandb will find a key for this server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    places = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for path in (Path(place).expanduser() for place in places):
        try:
            if netrc.netrc(str(path)).hosts.get(urllib.parse.urlsplit(address).hostname or ""):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _unreachable(address: str) -> str | None:
    """Why no connection can be had, in words, found in seconds where wandb itself tries for minutes."""
    parts = urllib.parse.urlsplit(address)
    if urllib.request.getproxies().get(parts.scheme):
        return None  # only the proxy can tell
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=_REACH_S):
            return None
    except (OSError, ValueError) as error:
        return f"{address} cannot be reached ({getattr(error, 'strerror', None) or error})"
