"""An sbatch script: one torchrun a node, a checkpoint before the time is up, and the queue again if there is more.

[Note: signals]
Two minutes before the end of its time, or when the cluster wants its nodes, Slurm sends USR1 to the batch shell, which
sends TERM to the job's steps; torchrun hands TERM on, and the workers stop after a whole step with a checkpoint. Then
the shell puts the job back into the queue. On scancel Slurm sends TERM to everybody by itself, and kills what is left
after its KillWait; such a job stays ended.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ...profiling.capture import publish
from ..errors import UsageError
from .job import Job

_NOTICE_S = 120
_OPTION = re.compile(r"(--[\w-]+|-\w)(=|[ \t]+)?([^\x00-\x1f\x7f-\x9f]*)", re.ASCII)  # --partition=long, -p long, -N2
_PLAIN = re.compile(r"[\w./%:@,+=-]+", re.ASCII)
_SCRIPT = """\
#!/bin/bash
{directives}

# Written by stepladder; sbatch {path} submits it again.
export PYTHONSAFEPATH=1
folder={folder}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
why=

stop() {{
    why=${{why:-$1}}
    scancel --signal=TERM "$SLURM_JOB_ID"  # the steps; this shell is spared
}}
trap 'stop requeue' USR1
trap 'stop end' TERM

srun --kill-on-bad-exit=0 --cpu-bind=none --cpus-per-task="$SLURM_CPUS_ON_NODE" \\
    {python} -m torch.distributed.run \\
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node={ranks} \\
    --rdzv-backend=c10d --rdzv-endpoint="$head:$port" --rdzv-id="$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}" \\
    -m stepladder {arguments} &
step=$!
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done  # a signal ends wait, and not srun

if [ "$why" = requeue ] && ! grep -qs '"code": 0' "$folder/exit.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def script(job: Job, more: Sequence[str] = ()) -> str:
    """The text; `more` are options of sbatch, which count more than ours."""
    options = [
        f"--job-name={job.name}",
        f"--nodes={job.num_nodes}",
        "--ntasks-per-node=1",
        "--exclusive",
        *([f"--gpus-per-node={job.ranks_per_node}"] if job.on_gpus else []),
        f"--output={_log(job)}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{_NOTICE_S}",
        *more,
    ]
    wrong = next((each for each in more if not each.startswith("-")), None)
    if wrong is not None:
        raise UsageError(f"--sbatch {wrong!r}: no option of sbatch; write --sbatch=--partition=long")
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {_directive(each)}" for each in options),
        path=shlex.quote(str(_path(job))),
        folder=shlex.quote(str(job.folder)),
        python=shlex.quote(sys.executable),
        ranks=job.ranks_per_node,
        arguments=shlex.join(job.arguments),
    )


def _directive(option: str) -> str:
    """An option as sbatch reads it in a script: in quotes a blank is no end and # no comment.

    Source: Slurm's src/sbatch/opt.c, `get_argument`: a backslash in quotes, of either kind, spares what follows.
    """
    match = _OPTION.fullmatch(option)
    if match is None:
        raise UsageError(f"#SBATCH {option!r}: is no line of a script; look at the characters of --out and --sbatch")
    name, between, value = match.groups(default="")
    plain = _PLAIN.fullmatch(value) or not (between or value)
    return name + between + (value if plain else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"')


def _path(job: Job) -> str:
    return f"{job.folder}.sbatch"


def _log(job: Job) -> str:
    """The log's name for sbatch, which puts the number of the job in place of %j."""
    return f"{job.folder}.slurm-".replace("%", "%%") + "%j.log"


def submit(job: Job, text: str) -> list[str]:
    """Keep the script beside the run folder and submit it; what to tell the user. Raises: UsageError."""
    if shutil.which("sbatch") is None:
        raise UsageError("--slurm: there is no sbatch on this machine; use a login node, or --dry-run for the script")
    try:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        publish(Path(_path(job)), lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--out {job.folder}: cannot be written ({error.strerror}); choose another folder") from error
    done = subprocess.run(["sbatch", "--parsable", _path(job)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"code {done.returncode}"
        raise UsageError(f"--slurm: sbatch has refused the job ({said}); the script is {_path(job)}")
    number = done.stdout.strip().split(";")[0]
    return [
        f"job {number}  {job.num_nodes} nodes x {job.ranks_per_node} ranks; script {_path(job)}",
        f"log {job.folder}.slurm-{number}.log; folder {job.folder}",
    ]
