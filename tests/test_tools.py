"""Tests of :mod:`hyps_bids.tools`: the command line, from arguments to files."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR
from safetensors import safe_open

from hyps_bids import tools
from hyps_bids.networks.cards import read_card
from hyps_bids.networks.checkpoints import load_adapted, save_network
from hyps_bids.networks.swin_unetr import HippocampusSwinUNETR
from hyps_bids.outputs.digests import sha256

LABELMAP = Path(__file__).parent / "data" / "labelmap_2mm.nii.gz"


def save(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)


@pytest.mark.parametrize(
    "command",
    ["", "train", "pretrain", "distill", "adapt", "synthesize", "demo", "import", "import-base"]
    + [f"evaluate{kind}" for kind in ("", " crops", " contrasts", " rescans")],
)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        tools.main([*command.split(), "--help"])
    assert end.value.code == 0
    assert "usage: hyps-tools" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "nonsense",
        "pretrain atlas maps out",
        "train data",
        "train data out --stages soap",
        "evaluate crops images labels --split training",
        "pretrain base maps out --steps 0",
        "distill maps out --features 4 16 64",
        "distill maps out --batch-size 2",
        "adapt images labels out",
        "adapt images labels out --classes anterior,,posterior",
        "import msd-task04 source",
        "import msd-task04 source out --first 0",
    ],
)
def test_wrong_usage_ends_with_64(argv: str) -> None:
    with pytest.raises(SystemExit) as end:
        tools.main(argv.split())
    assert end.value.code == 64


def test_errors_become_messages_and_exit_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    common = ["pretrain", "base", str(tmp_path / "missing"), out]
    assert tools.main([*common, "--device", "cpu"]) == 66
    assert "missing" in capsys.readouterr().err
    assert tools.main([*common, "--device", "abacus"]) == 64
    (tmp_path / "file").touch()
    assert tools.main([*common[:3], str(tmp_path / "file" / "out"), "--device", "cpu"]) == 73


def test_demo_runs_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    fake = SimpleNamespace(run_demo=lambda output: seen.append(output) or 3)
    monkeypatch.setitem(sys.modules, "hyps_bids.demo", fake)
    assert tools.main(["demo", str(tmp_path)]) == 3
    assert seen == [tmp_path]


@pytest.mark.parametrize("kind", ["head", "box"])
def test_synthesize_draws_a_picture(tmp_path: Path, kind: str) -> None:
    shutil.copy(LABELMAP, tmp_path / "01.nii.gz")
    out = tmp_path / "samples.png"
    argv = ["synthesize", str(tmp_path), str(out), "--kind", kind, "-n", "1", "--device", "cpu"]
    assert tools.main(argv) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert tools.main([*argv[:2], str(tmp_path / "no" / "a.png"), *argv[3:]]) == 73


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of a real label map that stand for images, and a small base."""
    folder = tmp_path_factory.mktemp("dataset")
    values = np.asarray(nib.load(LABELMAP).dataobj)
    i, j, k = np.argwhere(values == 17).mean(axis=0).astype(int)
    crop = values[i - 9 : i + 9, j - 14 : j + 14, k - 9 : k + 9].astype(np.float32)
    labels = np.where(crop == 17, 1, 0).astype(np.uint8)
    labels[:, 14:][labels[:, 14:] == 1] = 2
    for n in range(1, 4):
        save(folder / "images" / f"crop_{n}.nii.gz", crop * n)
        save(folder / "labels" / f"crop_{n}.nii.gz", labels)
    kwargs = {"in_channels": 1, "out_channels": 2, "feature_size": 12}
    architecture = {"name": "HippocampusSwinUNETR", "kwargs": kwargs}
    card = {"architecture": architecture, "labels": ["background", "hippocampus"]}
    torch.manual_seed(0)
    save_network(folder / "base.safetensors", HippocampusSwinUNETR(**kwargs), card)
    return folder


def adapt_argv(dataset: Path, out: Path) -> list[str]:
    argv = ["adapt", str(dataset / "images"), str(dataset / "labels"), str(out), "--device", "cpu"]
    return [*argv, "--base", str(dataset / "base.safetensors"), "--classes", "anterior,posterior"]


@pytest.mark.slow
def test_adapt_writes_an_adapter_that_loads(dataset: Path, tmp_path: Path) -> None:
    table = tmp_path / "subjects.tsv"
    table.write_text("crop\tsubject\ncrop_1\ta\ncrop_2\ta\ncrop_3\tb\n", encoding="utf-8")
    out = tmp_path / "out"
    options = ["--steps", "1", "--batch-size", "1", "--rank", "2", "--bottleneck", "2", "--fp16"]
    options += ["--subjects", str(table), "--validation", "2"]
    assert tools.main(adapt_argv(dataset, out) + options) == 0
    path = out / "adapter.safetensors"
    _, card = load_adapted(path, dataset / "base.safetensors")
    assert card["labels"] == ["anterior", "posterior"]
    assert card["training"]["crops"] == 2
    assert read_card(path)["adapter"]["rank"] == 2
    assert "dice_whole" in (out / "adapter.md").read_text(encoding="utf-8")
    with safe_open(path, "pt") as weights:
        assert {weights.get_tensor(n).dtype for n in weights.keys()} == {torch.float16}  # noqa: SIM118
    # The same command again goes on, here with nothing to do
    before = path.read_bytes()
    assert tools.main(adapt_argv(dataset, out) + options) == 0
    assert path.read_bytes() == before
    assert (out / "log.csv").read_text().count("dice_whole") == 1
    # From this adapter, in its settings
    start = ["--from", str(path), "--rank", "4"]
    more = tmp_path / "more"
    assert tools.main(adapt_argv(dataset, more) + options + start) == 0
    _, card = load_adapted(more / "adapter.safetensors", dataset / "base.safetensors")
    assert card["adapter"]["rank"] == 2
    assert card["training"]["started from"].startswith(f"{path.name}, sha256 {sha256(path)}")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("--start-from amygdala", 64),
        ("--method magic", 64),
        ("--classes whole", 64),
        ("--subjects nowhere.tsv", 66),
        ("--base nowhere.safetensors", 66),
        # The base of the test has two classes only.
        ("--contrasts", 64),
    ],
)
def test_adapt_refuses(dataset: Path, tmp_path: Path, options: str, code: int) -> None:
    assert tools.main(adapt_argv(dataset, tmp_path) + options.split()) == code


def test_import_base_prints_what_was_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = SwinUNETR(in_channels=4, out_channels=3, feature_size=12)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "fold.pt")
    out = tmp_path / "new" / "base.safetensors"
    argv = ["import-base", str(tmp_path / "fold.pt"), str(out), "--channels"]
    assert tools.main([*argv, "mean"]) == 0
    assert "from 4 input channels to 1 (mean)" in capsys.readouterr().out
    assert read_card(out)["labels"] == ["background"]
    assert tools.main([*argv, "7"]) == 64
    assert tools.main(["import-base", str(tmp_path / "none.pt"), str(out)]) == 66


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    """Two made images of one hippocampus, named as MSD Task04; one more without labels."""
    folder = tmp_path / "source"
    data = np.arange(512, dtype=np.int16).reshape(8, 8, 8)
    for n in (1, 2, 3):
        name = f"hippocampus_{n:03d}.nii.gz"
        save(folder / "imagesTr" / name, data)
        if n < 3:
            save(folder / "labelsTr" / name, (data % 3).astype(np.uint8))
    return folder


def test_import_of_a_preset_reports_what_is_missing(
    labeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bids"
    assert tools.main(["import", "msd-task04", str(labeled), str(out)]) == 1
    captured = capsys.readouterr()
    assert "2 images imported, 0 were there, 0 left out, 1 problems" in captured.out
    assert "hippocampus_003.nii.gz: no label image named labelsTr/" in captured.err
    assert (out / "sub-001/anat/sub-001_acq-right_T1w.nii.gz").is_file()
    assert len(list((out / "derivatives/manual").rglob("*_dseg.nii.gz"))) == 2


def test_import_of_an_edited_table(
    labeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(labeled), str(out := tmp_path / "bids")]
    (labeled / "imagesTr/hippocampus_003.nii.gz").unlink()
    assert tools.main(["import", "msd-task04", *argv, "--first", "1", "--dry-run"]) == 0
    assert not out.exists()
    table = tmp_path / "mine.tsv"
    table.write_text(capsys.readouterr().out.replace("001\t", "ann\t"), encoding="utf-8")
    names = ["--name", "Mine", "--license", "CC0"]
    assert tools.main(["import", str(table), *argv, *names, "--label-map", "1:L,2:L"]) == 0
    assert (out / "sub-ann/anat/sub-ann_acq-left_T1w.nii.gz").is_file()
    assert '"Name": "Mine"' in (out / "dataset_description.json").read_text()


@pytest.mark.parametrize(
    ("what", "options", "code"),
    [
        ("msd", [], 64),
        ("msd-task04", ["--orientation", "XYZ"], 64),
        ("msd-task04", ["--label-map", "left"], 64),
        ("msd-task04", ["--split", "validation"], 1),
        ("none.tsv", [], 66),
        ("none.toml", [], 66),
        ("hfh", [], 66),
    ],
)
def test_import_refuses(labeled: Path, tmp_path: Path, what: str, options: list, code: int) -> None:
    assert tools.main(["import", what, str(labeled), str(tmp_path / "bids"), *options]) == code
    assert not (tmp_path / "bids").exists()


@pytest.mark.parametrize(
    ("argv", "file"),
    [
        (["demo", "OUT"], "bids/participants.tsv"),
        (["demo", "OUT"], "derivatives/README.md"),
        (["pretrain", "base", "IN", "OUT"], "log.csv"),
        (["pretrain", "base", "IN", "OUT"], "base.md"),
        (["distill", "IN", "OUT"], "localizer.safetensors"),
        (["adapt", "IN", "IN", "OUT", "--classes", "a"], "adapter.safetensors"),
        (["synthesize", "IN", "OUT/x.png"], "x.png"),
        (["import-base", "IN", "OUT/x.safetensors"], "x.safetensors"),
        (["evaluate", "speed", "IN", "--output", "OUT/participants.tsv"], "participants.tsv"),
    ],
)
def test_files_of_others_are_not_replaced(
    tmp_path: Path, argv: list[str], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / file
    path.parent.mkdir(parents=True)
    path.write_text("theirs")
    words = [
        word.replace("OUT", str(path.parent if "/" in word else tmp_path / "out")) for word in argv
    ]
    words = [str(tmp_path / "in") if word == "IN" else word for word in words]
    before = sorted(tmp_path.rglob("*"))
    assert tools.main(words) == 64
    assert re.search(r"\[(file-not-ours|demo-folder-occupied)\]$", capsys.readouterr().err)
    assert path.read_text() == "theirs"
    assert sorted(tmp_path.rglob("*")) == before


def test_home_is_expanded_in_all_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert tools.main(["import", "~/table.tsv", "~/source", "~/out"]) != 0
    assert str(tmp_path / "table.tsv") in capsys.readouterr().err
    assert tools.main(["pretrain", "base", "~/missing", "~/out", "--device", "cpu"]) == 66
    assert str(tmp_path / "missing") in capsys.readouterr().err
    assert not (tmp_path / "~").exists()
