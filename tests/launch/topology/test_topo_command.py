"""`stepladder topo` shows a file or the machine, in colour on a terminal only, or as JSON."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from topology_cases import cube_mesh, pairs, render

from stepladder.launch.cli import main
from stepladder.launch.topology import read_topology


def test_a_file_is_shown_with_islands_and_what_is_odd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "topo.txt"
    path.write_text(render(pairs([(0, 2), (1, 3)])))
    assert main(["topo", str(path)]) == 0
    out = capsys.readouterr().out
    assert "4 GPUs, 0 adapters, 2 NUMA nodes" in out
    assert "GPU0     X NODE  NV4  SYS  0     0-3" in out
    assert "island    GPU0, GPU2: NV4, 48 GB/s one way" in out
    assert "slowest   SYS" in out
    assert "rank order splits" in out
    assert "\x1b" not in out


def test_json_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "topo.txt"
    path.write_text(render(cube_mesh()))
    assert main(["topo", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labels"] == cube_mesh().labels
    assert found["bandwidth_bytes_s"][0][3] == 40e9
    assert found["gpus"][5]["cpus"] == "20-39"
    assert [nic["device"] for nic in found["nics"]] == cube_mesh().nics
    assert found["islands"][0]["gpus"] == list(range(8))
    assert any("not all pairs" in each for each in found["oddities"])


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(render(pairs([(0, 1)])).encode())))
    assert main(["topo", "-"]) == 0
    assert "standard input: 4 GPUs" in capsys.readouterr().out


def test_what_cannot_be_read_is_one_sentence_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topo", str(tmp_path / "none.txt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "bytes").write_bytes(bytes(range(256)) * 10)
    assert main(["topo", str(tmp_path / "bytes")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert main(["topo"]) == 2
    assert "neither nvidia-smi nor rocm-smi answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "colours"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_there_is_colour_on_a_terminal_unless_its_user_wants_none(
    tmp_path: Path, environment: dict[str, str], colours: bool
) -> None:
    path = tmp_path / "topo.txt"
    path.write_text(render(pairs([(0, 1)])))
    ours, theirs = pty.openpty()
    without = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    command = [sys.executable, "-P", "-m", "stepladder", "topo", str(path)]
    done = subprocess.run(command, stdout=theirs, env=without | {"TERM": "xterm"} | environment, check=True, timeout=60)
    os.close(theirs)
    assert done.returncode == 0
    text = os.read(ours, 65_536).decode()
    os.close(ours)
    assert ("\x1b[32m" in text) is colours


@pytest.mark.parametrize("colour", [True, False])
def test_names_from_a_file_paint_and_forge_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, colour: bool
) -> None:
    evil = "\x1b[2J\x1b]0;title\x07\nerror: run"
    value = read_topology(render(cube_mesh()), "topo.txt").to_json()
    value["gpus"][0]["model"] = value["nics"][0]["device"] = evil
    path = tmp_path / "topo.json"
    path.write_text(json.dumps(value))
    monkeypatch.setattr("stepladder.launch.topo_command._has_colours", lambda: colour)
    assert main(["topo", str(path)]) == 0
    out = capsys.readouterr().out
    assert ("\x1b[32m" in out) is colour
    assert not {"\x1b", "\x07"} & set(re.sub(r"\x1b\[\d{1,2}m", "", out))
    assert not [line for line in out.splitlines() if line.startswith("error")]


def test_reading_a_topology_loads_neither_torch_nor_numpy(tmp_path: Path) -> None:
    path = tmp_path / "topo.txt"
    path.write_text(render(pairs([(0, 1)])))
    code = (
        "import sys; from stepladder.launch.cli import main; assert main(['topo', sys.argv[1]]) == 0; "
        "assert not {'torch', 'numpy', 'polars'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
