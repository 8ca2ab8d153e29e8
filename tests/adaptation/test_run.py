"""The whole path from labeled scans to an adapter, on made participants and a made base."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from hyps_bids.adaptation import fit, plan, publish
from hyps_bids.adaptation.labeled_crops import labeled_crops
from hyps_bids.adaptation.plan import make_plan, model_folder
from hyps_bids.adaptation.run import train_adapter
from hyps_bids.errors import BadData, HypsError, MissingInput, UsageError, WriteFailed
from hyps_bids.networks.cards import LOCALIZER, shipped_weights
from hyps_bids.networks.checkpoints import load_adapted
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.writing import write_json
from hyps_bids.settings import Settings
from tests.adaptation.regions import around
from tests.raising import raises
from tests.torchrun import launch

#: Scans of three participants.
SCANS = ["sub-01_ses-A", "sub-01_ses-B", "sub-02_ses-A", "sub-03_ses-A"]


class Killed(BaseException):
    """Stands for whatever ends a job at once."""


@pytest.fixture(scope="session")
def study(head: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Made participants: the left hippocampus of a real head, with other noise in each scan.

    The images are too small for the localizer, which makes all this quick. The labels are
    FreeSurfer's, called manual here.
    """
    folder = tmp_path_factory.mktemp("study")
    whole, aseg = (nib.load(path) for path in head)
    left = (np.asarray(aseg.dataobj) == 1).astype(np.uint8)
    region = around(left, 8)
    image, label = whole.slicer[region], nib.Nifti1Image(left, aseg.affine).slicer[region]
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    raw, manual = folder / "raw", folder / "manual"
    rng = np.random.default_rng(0)
    for stem in SCANS:
        noisy = voxels + rng.normal(0, 0.02 * voxels.std(), voxels.shape)
        made = nib.Nifti1Image(noisy.astype(np.float32), image.affine)
        place = Path(*stem.split("_"), "anat")
        for parent, name, content in ((raw, "T1w", made), (manual, "dseg", label)):
            (parent / place).mkdir(parents=True)
            nib.save(content, parent / place / f"{stem}_{name}.nii.gz")
    version = {"BIDSVersion": "1.10.0"}
    write_json(raw / "dataset_description.json", {"Name": "Made study", "License": "CC0"} | version)
    about = {"Name": "Made labels", "DatasetType": "derivative", "License": "CC-BY-4.0"}
    about |= {"GeneratedBy": [{"Name": "nobody"}]}
    write_json(manual / "dataset_description.json", about | version)
    (raw / "participants.tsv").write_text(
        "participant_id\tgroup\nsub-01\tpatient\nsub-02\tcontrol\nsub-03\tcontrol\n"
    )
    return raw, manual


def make_settings(study: tuple[Path, Path], small_base: Path, folder: Path) -> Settings:
    raw, manual = study
    return Settings(
        bids_dir=raw,
        output_dir=folder / "out",
        analysis_level="group",
        device="cpu",
        omp_nthreads=1,
        base_model=small_base,
        train_adapter="made",
        labels=(manual,),
        label_map="whole",
        rank=2,
        bottleneck=2,
        steps=2,
        batch_size=1,
        folds=3,
    )


@pytest.fixture
def settings(study: tuple[Path, Path], small_base: Path, tmp_path: Path) -> Settings:
    return make_settings(study, small_base, tmp_path)


@pytest.fixture(scope="module")
def trained(
    study: tuple[Path, Path], small_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an adapter of two folds, with two crops in each batch."""
    settings = make_settings(study, small_base, tmp_path_factory.mktemp("trained"))
    return train_adapter(replace(settings, folds=2, batch_size=2))


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int) -> Callable[[], int]:
    """End the run at the n-th batch, as a batch system does; return a counter of batches."""
    original = fit.augmented_batch
    calls = 0

    def count_calls(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args, **options)

    monkeypatch.setattr(fit, "augmented_batch", count_calls)
    return lambda: calls


@pytest.mark.slow
def test_whole_path(
    settings: Settings, small_base: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO")
    # One of the images is of another contrast.
    raw = Path(shutil.copytree(settings.bids_dir, tmp_path / "raw"))
    image = raw / "sub-03/ses-A/anat/sub-03_ses-A_T1w.nii.gz"
    image.rename(image.with_name("sub-03_ses-A_T2w.nii.gz"))
    settings = replace(settings, bids_dir=raw, suffix=("T1w", "T2w"))
    folder = train_adapter(settings)
    assert folder == settings.output_dir / "models/adapter-made"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = "adapter.md adapter.safetensors config.json figures/bland_altman.png "
    expected += "figures/dice.png figures/learning_curves.png logs/final.csv logs/fold-1.csv "
    expected += "logs/fold-2.csv logs/fold-3.csv scans.json scans.tsv splits.json splits.tsv "
    assert files == {*expected.split(), "summary.json"}
    # Nothing is left of the work
    assert sorted(path.name for path in settings.output_dir.iterdir()) == ["models"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter-made"]

    _, card = load_adapted(folder / "adapter.safetensors", small_base)
    assert card["labels"] == ["hippocampus"]
    assert card["name"] == "made"
    assert card["contrasts"] == {"T1w": 3, "T2w": 1}
    # Where the participant level looks for it
    assert card["license"].endswith("labels CC-BY-4.0; images CC0; base CC0-1.0")
    assert f"--adapter {folder} --base-model {small_base}" in caplog.text

    # Every scan is assessed once, by the fold that did not train on its participant
    table = read_table(folder / "scans.tsv")
    assert sorted(table["scan"]) == [*SCANS[:3], f"{SCANS[3]}_space-T2w"]
    splits = read_table(folder / "splits.tsv")
    tested = splits[splits["part"] == "test"].set_index("participant_id")["fold"]
    assert (table["fold"].to_numpy() == tested[table["participant_id"]].to_numpy()).all()
    assert set(table["part"]) == {"whole"}
    assert set(table["space"]) == {"crop"}
    assert table["dice"].between(0, 1).all()
    described = json.loads((folder / "scans.json").read_text())
    assert list(described) == list(table.columns)

    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["whole"]["participants"], summary["whole"]["scans"]) == (3, 4)
    assert summary["whole"]["dice"]["mean"] == pytest.approx(table["dice"].mean(), abs=1e-4)
    assert list(summary["whole"]["dice_by_fold"]) == ["1", "2", "3"]

    text = (folder / "adapter.md").read_text()
    for fact in (
        "4 manually labeled hippocampi in 3 T1w images, 1 T2w image of 3 participants of 'Made ",
        "The images are of 2 contrasts",
        "'Made labels'",
        "labels CC-BY-4.0; images CC0; base CC0-1.0",
        "3-fold cross-validation by participant, on scans",
        "4 of 4 hippocampi are in images that are no whole heads",
        "base-made, sha256",
        "| steps | 2 |",
        "| best steps of the folds, whose median the last fit took | 2, 2, 2 |",
    ):
        assert fact in text

    # The same command again does nothing, another one is refused
    before = (folder / "adapter.safetensors").stat().st_mtime_ns
    train_adapter(settings)
    with raises(UsageError, "model-differs", folder, "adapter (rank)"):
        train_adapter(replace(settings, rank=1))
    assert (folder / "adapter.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_killed_run_goes_on_where_it_was(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    # Two folds of two steps; killed in the second step of the second fold
    settings = replace(settings, folds=2, batch_size=2)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            train_adapter(settings)
    assert not (settings.output_dir / "models").exists()
    with monkeypatch.context() as patch:
        count = kill_at(patch, -1)
        folder = train_adapter(settings)
        # One or two steps of the second fold (two if its first checkpoint was not written) and two
        # of the final fit
        assert count() in (3, 4)
    for name in ("adapter.safetensors", "scans.tsv"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()


@pytest.mark.slow
def test_work_of_other_settings_is_started_anew(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    settings = replace(settings, folds=2, steps=1, work_dir=tmp_path / "work")
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(Killed):
            train_adapter(settings)
    assert (tmp_path / "work/adapter-made/fits/fold-1/result.json").is_file()
    with monkeypatch.context() as patch:
        count = kill_at(patch, -1)
        train_adapter(replace(settings, seed=1))
        assert count() == 3
    assert any("(seed)" in r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    # A work folder of the user's own stays
    assert (tmp_path / "work/adapter-made/crops").is_dir()


def test_diverged_run_leaves_no_model(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    original = fit.augmented_batch

    def spoilt(*args: Any, **options: Any) -> Any:
        inputs, targets = original(*args, **options)
        return inputs * float("nan"), targets

    monkeypatch.setattr(fit, "augmented_batch", spoilt)
    with raises(HypsError, "training-diverged", "nan", "step 0"):
        train_adapter(settings)
    assert not (settings.output_dir / "models").exists()


def test_paper_preset_and_stratification(settings: Settings) -> None:
    paper = replace(settings, preset="paper", rank=None, bottleneck=None, folds=2, stratify="group")
    recipe = make_plan(paper, model_folder(paper)).recipe
    assert (recipe.loss, recipe.config.rank, recipe.config.bottleneck) == ("dice", 2, 2)
    assert (recipe.loop.optimizer, recipe.loop.learning_rate) == ("adam", 1e-3)


@pytest.mark.parametrize(
    ("name", "code"),
    [(name, "adapter-name-invalid") for name in ("", "../x", "a b", ".hidden")]
    + [("anteriorposterior", "adapter-name-taken")],
)
def test_names_that_cannot_be(settings: Settings, name: str, code: str) -> None:
    with raises(UsageError, code, name):
        train_adapter(replace(settings, train_adapter=name))


def test_options_that_cannot_be(settings: Settings, tmp_path: Path) -> None:
    """They are refused before anything is computed."""
    with raises(UsageError, "adapter-settings-invalid", "'x'"):
        train_adapter(replace(settings, peft="x"))
    with raises(UsageError, "stratify-column-unknown", "site", "participant_id, group"):
        train_adapter(replace(settings, stratify="site"))
    with raises(MissingInput, "weights-missing", "none.safetensors"):
        train_adapter(replace(settings, base_model=tmp_path / "none.safetensors"))
    with raises(UsageError, "one-subject", "01"):
        train_adapter(replace(settings, participant_label=("01",)))
    assert not (settings.output_dir / "work").exists()


def test_tables_to_stratify_by(
    settings: Settings, study: tuple[Path, Path], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(study[0], raw)
    settings = replace(settings, bids_dir=raw, stratify="group")
    table = raw / "participants.tsv"
    table.write_text(table.read_text() + "sub-03\tpatient\n")
    with raises(BadData, "participant-repeated", table, "03"):
        train_adapter(settings)
    table.unlink()
    with raises(MissingInput, "no-participants-table", table):
        train_adapter(settings)


def test_strata_are_found_by_labels_as_people_write_them(
    settings: Settings,
    study: tuple[Path, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(study[0], raw)
    settings = replace(settings, bids_dir=raw, stratify="group")
    (raw / "participants.tsv").write_text("participant_id\tgroup\n1\ta\nsub-O2\tb\n")
    given: dict[str, str] = {}
    split = plan.split_by_subject

    def record(*args: Any, **options: Any) -> Any:
        given.update(options["strata"])
        return split(*args, **options)

    monkeypatch.setattr(plan, "split_by_subject", record)
    make_plan(settings, settings.output_dir / "models/adapter-made")
    assert given["01"] == "a"
    assert given["02"] == "n/a"
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    for facts in (("sub-1 for sub-01",), ("sub-O2", "nearest: sub-02"), ("n/a", "sub-02")):
        assert any(all(fact in text for fact in facts) for text in messages)


def test_something_else_has_the_name(settings: Settings) -> None:
    folder = settings.output_dir / "models/adapter-made"
    folder.mkdir(parents=True)
    (folder / "mine.txt").touch()
    with raises(UsageError, "model-unknown", folder):
        train_adapter(settings)
    assert (folder / "mine.txt").is_file()


def test_model_of_version_0_1_is_recognized(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored identity has the names that 0.1 wrote, so that nothing is trained again."""
    plan = make_plan(settings, model_folder(settings))
    parts = plan.classes, shipped_weights(LOCALIZER), "cpu"
    identity = plan.identity(labeled_crops(plan.labeled, *parts))
    names = "crops participants folds classes base localiser adapter training"
    assert list(identity) == names.split()
    assert list(identity["folds"][0]) == ["training", "validation", "test"]
    names = "method rank bottleneck scale alpha dropout layers trainable"
    assert list(identity["adapter"]) == names.split()
    names = "steps learning_rate head_learning_rate warmup power weight_decay ema evaluate_every "
    names += "checkpoint_every seed optimizer patience stop_at batch_size loss preset n4"
    assert list(identity["training"]) == names.split()
    write_json(plan.target / "config.json", {"identity": identity})
    kill_at(monkeypatch, 1)
    assert train_adapter(settings) == plan.target


@pytest.mark.slow
def test_model_that_cannot_be_written_is_kept_in_the_work_folder(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, folds=2, steps=1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "save_chart", full)
        work = settings.output_dir / "work/adapter-made"
        with raises(WriteFailed, "disk-failure", "No space left on device", work):
            train_adapter(settings)
    assert not (settings.output_dir / "models/adapter-made").exists()
    with monkeypatch.context() as patch:
        count = kill_at(patch, -1)
        train_adapter(settings)
        assert count() == 0


def test_dry_run_lists_the_scans(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    train_adapter(replace(settings, dry_run=True))
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 4
    assert listed[0].endswith("sub-01_ses-A_T1w.nii.gz")
    assert not settings.output_dir.exists()


TORCHRUN = """
import pickle, sys
from pathlib import Path
from hyps_bids.adaptation.run import train_adapter

train_adapter(pickle.loads(Path(sys.argv[1]).read_bytes()))
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    settings: Settings, tmp_path: Path, trained: Path
) -> None:
    settings = replace(settings, folds=2, batch_size=2)
    given = tmp_path / "settings.pickle"
    given.write_bytes(pickle.dumps(settings))
    launch(TORCHRUN, given, folder=tmp_path, count=2)
    two = settings.output_dir / "models/adapter-made"
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in trained.iterdir())
    assert sorted(p.name for p in settings.output_dir.iterdir()) == ["models"]
    tables = [read_table(folder / "scans.tsv") for folder in (trained, two)]
    assert tables[0]["dice"].to_numpy() == pytest.approx(tables[1]["dice"].to_numpy(), abs=0.01)
    logs = [pd.read_csv(folder / "logs/final.csv") for folder in (trained, two)]
    assert logs[0]["loss"].to_numpy() == pytest.approx(logs[1]["loss"].to_numpy(), abs=1e-3)
