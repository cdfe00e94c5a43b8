"""Every snippet of the library's page runs, one after the other, as a reader would type them."""

import re
from pathlib import Path

import pytest
import torch.distributed as dist

PAGE = Path(__file__).parents[3] / "docs" / "library.md"


@pytest.mark.slow
def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "typed"}
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(snippets) >= 4
    try:
        for text in snippets:
            exec(compile(text, "docs/library.md", "exec"), names)
        assert not dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    said = capsys.readouterr().out
    assert "the second is" in said
    assert "shape: (3, " in said  # three steps were recorded
    assert list((tmp_path / "traces").glob("rank-0.*"))
