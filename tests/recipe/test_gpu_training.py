"""The pack for a GPU: what goes there, trains there and comes back."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from hyps_bids.outputs.reading import read_json_object

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_training.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parts_hold_results_first_and_join_again(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "base/checkpoint.pt": 50_000,
        "adapter-1/checkpoint.pt": 20_000,
        "adapter-1/log.csv": 10,
        "soup/adapter.safetensors": 30_000,
        "before/base.safetensors": 30_000,
    }
    for name, size in files.items():
        path = tmp_path / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([len(name)]) * size)
    count = script.write_parts(tmp_path / "results", tmp_path / "parts", 25_000, 80_000)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "parts").iterdir())]
    assert len(sizes) == count == 3
    assert max(sizes) <= 25_000
    assert sum(sizes) <= 80_000
    # There is no room for the larger checkpoint, and what was there before need not come back.
    assert "base/checkpoint.pt is left out" in capsys.readouterr().out
    script.join(SimpleNamespace(parts=tmp_path / "parts", results=tmp_path / "joined"))
    joined = tmp_path / "joined"
    found = {str(path.relative_to(joined)) for path in joined.rglob("*") if path.is_file()}
    assert found == {"adapter-1/checkpoint.pt", "adapter-1/log.csv", "soup/adapter.safetensors"}
    for name in found:
        assert (joined / name).read_bytes() == (tmp_path / "results" / name).read_bytes()


@pytest.mark.slow
def test_packed_training_gives_the_same_adapters(
    data: Path, small_base: Path, tmp_path: Path
) -> None:
    def call(*words: object) -> int:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=SCRIPT.parents[1], check=False).returncode

    pack, parts, joined = tmp_path / "pack.tar.xz", tmp_path / "parts", tmp_path / "joined"
    stages = ["--stages", "adapter", "soup"]
    recipe = ["--recipe", data / "recipe.toml"]
    weights = ["--weights", small_base.parent]
    assert call(SCRIPT, "pack", data, pack, *recipe, *weights, *stages, "--preset", 0) == 0
    with tarfile.open(pack) as archive:
        names = archive.getnames()
    assert "data/imagesTr/hippocampus_006.nii.gz" in names
    assert not [name for name in names if "labelmaps" in name or "adapter-anterior" in name]
    moved = shutil.copy(SCRIPT, tmp_path)
    run = [moved, "run", pack, parts, "--device", "cpu", "--part", 1, *stages]
    # There is time for nothing, and then for everything.
    assert call(*run, "--minutes", 0.1) == 75
    assert call(*run, "--minutes", 60, "--options", "--threads", 1) == 0
    assert call(SCRIPT, "join", parts, joined) == 0
    here = ["-m", "hyps_bids.tools", "train", data, joined, *recipe, *weights]
    adapter = joined / "adapter-1" / "adapter.safetensors"
    before = adapter.read_bytes()
    # What was trained there is done here.
    assert call(*here, "--stages", "adapter", "--device", "cpu") == 0
    assert adapter.read_bytes() == before
    assert read_json_object(joined / "soup" / "result.json")["better"]
