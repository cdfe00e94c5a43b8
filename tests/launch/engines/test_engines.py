"""What is written for schedulers: a script that does what it says, a manifest of the right shape."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepladder.launch.cli import main

DDP = "\n[strategies.ddp]\n"


@pytest.fixture
def recipe(recipe_file: Callable[..., Path]) -> Path:
    return recipe_file(DDP)


def shown(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["run", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_script_starts_one_torchrun_a_node_and_can_be_begun_again(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "with space"
    text = shown(capsys, recipe, "--slurm", "--nodes", 2, "--ranks", 4, "--dry-run", "--out", out,
                 "--sbatch=--partition=long", "--set", "run.num_steps=9", "--placement", "none")  # fmt: skip
    directives = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert {"--nodes=2", "--ntasks-per-node=1", "--requeue", "--partition=long"} <= set(directives)
    assert directives[-1] == "--partition=long"  # the later one counts
    assert not [each for each in directives if "gpus" in each]
    assert f'#SBATCH --output="{out}.slurm-%j.log"' in text
    joined = text.replace("\\\n", " ")
    command = next(line for line in joined.splitlines() if line.startswith("srun"))
    assert "--nproc-per-node=4" in command
    wanted = f"-m stepladder run {recipe} --set run.num_steps=9 --out '{out}' --requeue --placement none"
    assert wanted in command
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert not out.exists()


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no sbatch here, which reads what is written for it")
def test_sbatch_reads_the_options_that_were_meant(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / """it's 100% "one" #\\ folder"""
    given = ["--comment=two words # and 'more' \\ \"", "-p two words", "--time 5", "-N2", "--exclusive", "--wckey="]
    text = shown(capsys, recipe, "--slurm", "--ranks", 1, "--dry-run", "--out", out, *(f"--sbatch={x}" for x in given))
    script, settings = tmp_path / "script", tmp_path / "slurm.conf"
    script.write_text(text)
    settings.write_text("ClusterName=x\nSlurmctldHost=localhost\nSlurmctldPort=1\nAuthType=auth/none\n"
                        "SlurmctldTimeout=1\nMessageTimeout=1\nNodeName=localhost\n")  # fmt: skip
    told = subprocess.run(["sbatch", "-vvv", script], env=os.environ | {"SLURM_CONF": str(settings)},
                          capture_output=True, text=True, check=False, timeout=60).stderr  # fmt: skip
    read = re.findall(r'Found in script, argument "(.*)"\n', told)
    assert "Invalid directive" not in told
    assert f"--output={out}.slurm-%j.log".replace("100%", "100%%") in read
    assert read[-8:] == [given[0], "-p", "two words", "--time", "5", "-N2", "--exclusive", "--wckey="]


@pytest.mark.parametrize("more", [("--out", "run\ntouch pwned"), ("--sbatch=--comment=a\ntouch pwned",),
                                  ("--set", 'name="a\\ntouch pwned"'), ("--sbatch=-\u2028",)])  # fmt: skip
def test_nothing_written_for_slurm_ends_its_line(
    recipe: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    assert main(["run", str(recipe), "--slurm", "--ranks", "1", "--dry-run", *more]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


def fake(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("number", "done", "requeues"),
    [(signal.SIGUSR1, False, True), (signal.SIGUSR1, True, False), (signal.SIGTERM, False, False)],
)
def test_the_script_hands_signals_on_and_queues_again_what_is_not_done(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, done: bool, requeues: bool
) -> None:
    """With stand-ins for Slurm's commands: srun works until scancel sends it TERM."""
    text = shown(capsys, recipe, "--slurm", "--ranks", 1, "--dry-run", "--out", tmp_path / "run")
    tools = tmp_path / "tools"
    tools.mkdir()
    fake(tools, "srun", f'echo $$ > {tmp_path}/srun\ntrap "exit 7" TERM\nwhile :; do sleep 0.05; done')
    fake(tools, "scancel", f'echo "$@" >> {tmp_path}/said\nkill -TERM $(cat {tmp_path}/srun)')
    fake(tools, "scontrol", f'echo "$@" >> {tmp_path}/said; echo node1')
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "exit.json").write_text(json.dumps({"code": 0 if done else 143, "steps": 3, "reason": ""}))
    given = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2",
             "SLURM_CPUS_ON_NODE": "2", "PATH": f"{tools}:{os.environ['PATH']}"}  # fmt: skip
    script = subprocess.Popen(["bash", "-c", text], env=os.environ | given)
    deadline = time.monotonic() + 30
    while not (tmp_path / "srun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    script.send_signal(number)
    assert script.wait(30) == 7
    said = (tmp_path / "said").read_text().splitlines()
    assert "--signal=TERM 12" in said
    assert ("requeue 12" in said) is requeues


TRAIN_JOB: dict[str, Any] = {
    # The part that is used of trainer.kubeflow.org/v1alpha1, kubeflow/trainer pkg/apis/trainer/v1alpha1.
    "apiVersion": re.compile(r"trainer\.kubeflow\.org/v1alpha1"),
    "kind": re.compile("TrainJob"),
    "metadata": {"name": re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")},
    "spec": {
        "runtimeRef": {"name": re.compile(r".{1,253}")},
        "trainer": {
            "image?": re.compile(r".{1,500}"),
            "command": [re.compile(r"(?s).{0,65536}")],
            "args": [re.compile(r"(?s).{0,65536}")],
            "env": [{"name": re.compile(r"\w+"), "value?": str, "valueFrom?": {"fieldRef": {"fieldPath": str}}}],
            "numNodes": int,
            "numProcPerNode": int,
            "resourcesPerNode?": {"limits": {"nvidia.com/gpu": int}},
        },
    },
}


def misfits(value: Any, schema: Any, at: str = "") -> list[str]:
    """Where a value is not of the schema; a key with ? may be missing, no other key may be there."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{at}: no object"]
        known = {key.removesuffix("?"): each for key, each in schema.items()}
        missing = [f"{at}.{key}: missing" for key in schema if not key.endswith("?") and key not in value]
        unknown = [f"{at}.{key}: unknown" for key in value if key not in known]
        return missing + unknown + [each for key in value if key in known
                                    for each in misfits(value[key], known[key], f"{at}.{key}")]  # fmt: skip
    if isinstance(schema, list):
        if not isinstance(value, list) or len(value) > 128:
            return [f"{at}: no list of up to 128"]
        return [each for i, one in enumerate(value) for each in misfits(one, schema[0], f"{at}[{i}]")]
    if isinstance(schema, re.Pattern):
        return [] if isinstance(value, str) and schema.fullmatch(value) else [f"{at} = {value!r}"]
    return [] if type(value) is schema else [f"{at} = {value!r}: no {schema.__name__}"]


def test_the_manifest_is_a_train_job(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = pytest.importorskip("yaml")
    more = ["--set", "name=My.Run_2", "--set", "run.device=auto", "--image", "me/train:2.0", "--runtime", "on"]
    text = shown(capsys, recipe, "--kubernetes", "--nodes", 2, "--ranks", 4, "--out", "/data/run 1", *more)
    value = yaml.safe_load(text)
    assert misfits(value, TRAIN_JOB) == []
    trainer = value["spec"]["trainer"]
    assert (value["metadata"]["name"], value["spec"]["runtimeRef"]["name"]) == ("my-run-2", "on")
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["resourcesPerNode"] == {"limits": {"nvidia.com/gpu": 4}}
    assert trainer["args"][:3] == ["-m", "stepladder", "run"]
    assert trainer["args"][-3:] == ["--out", "/data/run 1", "--requeue"]
    assert trainer["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    value["spec"]["trainer"]["numNodes"] = "2"
    value["spec"]["trainers"] = {}
    assert len(misfits(value, TRAIN_JOB)) == 2


def expanded(text: str, variables: dict[str, str]) -> str:
    """What a container is given: Kubernetes' third_party/forked/golang/expansion, in Python."""
    return re.sub(r"\$(\$|\(([^)]*)\))", lambda found: "$" if found[1] == "$" else variables[found[2]], text)


def test_the_manifest_says_paths_as_they_are(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = pytest.importorskip("yaml")
    out = '/data/\U0001f600 ü $(HOME) $$ a$b \x85\u2028\ufeff\x9f\x1b"\\/end$'
    text = shown(capsys, recipe, "--kubernetes", "--ranks", 1, "--out", out)
    told = yaml.safe_load(text)["spec"]["trainer"]["args"]
    assert expanded(told[told.index("--out") + 1], {"HOME": "/elsewhere"}) == out
    assert "\U0001f600 ü" in text
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--slurm", "--kubernetes"], "a job has one scheduler"),
        (["--nodes", "2"], "--nodes: has no effect without --slurm"),
        (["--image", "x"], "--image: has no effect without --kubernetes"),
        (["--slurm", "--nodes", "0"], "--nodes 0: a job needs at least 1 node"),
        (["--slurm", "--dry-run", "--sbatch=partition"], "--sbatch 'partition': no option of sbatch"),
        (["--slurm", "--dry-run", "--set", "run.device=cuda"], "--ranks: how many GPUs has a node?"),
        (["--slurm", "--step-times", "x"], "--step-times: a job goes on by itself"),
        (["--kubernetes", "--set", "name=1st"], "name = '1st': a TrainJob's begins with a letter"),
        (["--requeue"], "--requeue: continue which run?"),
        (["--kubernetes", "--image", ""], "--image '': is no name of one"),
        (["--kubernetes", "--image", "a b"], "--image 'a b': is no name of one"),
        (["--kubernetes", "--runtime", "My_Runtime"], "--runtime 'My_Runtime': is no name of one; write --runtime"),
        (["--kubernetes", *["--set", "run.num_steps=9"] * 64], "words are more than the 128 of a TrainJob"),
        (["--kubernetes", "--out", "/data/\udcff"], "/data/?: is not in UTF-8"),
        (["--slurm", "--dry-run", "--out", "/data/\udcff"], "/data/?: is not in UTF-8"),
        (["--slurm", "--dry-run", "--ranks", "0"], "--ranks 0: a node needs at least 1 rank"),
        (["--kubernetes", "--ranks", "-1"], "--ranks -1: a node needs at least 1 rank"),
        (["--kubernetes", "--nodes", "9999999999"], "--nodes 9999999999 --ranks None: more than 1,000,000 are no"),
        (["--slurm", "--dry-run", "--placement", "nosuch.json"], "--placement nosuch.json: cannot be read"),
        (["--kubernetes", "--placement", "nosuch.json"], "--placement nosuch.json: cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(
    recipe: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["run", str(recipe), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sentence in error


def test_a_machine_without_slurm_says_so(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["run", str(recipe), "--slurm", "--out", str(tmp_path / "run")]) == 2
    assert "there is no sbatch on this machine; use a login node, or --dry-run" in capsys.readouterr().err
