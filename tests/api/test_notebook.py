"""The notebook among the examples runs."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import pytest


@pytest.mark.slow
def test_notebook_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((root / "examples" / "segment.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    matplotlib.use("agg")
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    report = names["report"]
    assert isinstance(report, Path)
    assert report.is_file()
