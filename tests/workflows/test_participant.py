"""The participant and group levels end to end: real pybids, nipype and networks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import save_file

from hyps_bids.app import _warn_of_unseen_contrasts
from hyps_bids.cli import main
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.workflows import execution

pytestmark = pytest.mark.usefixtures("networks_once")
#: Change over time has its own tests.
ALONE = "--no-longitudinal"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, coarse_head: nib.Nifti1Image) -> Path:
    """One good head in two sessions, the second stored in another orientation, and bad files."""
    root = tmp_path_factory.mktemp("data") / "raw"
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    (root / "README").write_text("test")

    def path(subject: str, session: str | None = None) -> Path:
        labels = [f"sub-{subject}"] + ([f"ses-{session}"] if session else [])
        folder = root.joinpath(*labels, "anat")
        folder.mkdir(parents=True)
        return folder / ("_".join([*labels, "T1w"]) + ".nii.gz")

    nib.save(coarse_head, path("good", "A"))
    turned = coarse_head.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(coarse_head.affine), nib.orientations.axcodes2ornt("PSL")
        )
    )
    nib.save(turned, path("good", "B"))
    truncated = path("truncated")
    nib.save(coarse_head, truncated)
    truncated.write_bytes(truncated.read_bytes()[:5000])
    nib.save(nib.Nifti1Image(np.ones((40, 40, 40)), np.diag([4, 4, 4, 1])), path("constant"))
    return root


@pytest.fixture(scope="module")
def derivatives(
    dataset: Path, networks_once: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Outputs of one participant run, in two batches, and one group run."""
    out = tmp_path_factory.mktemp("out") / "derivatives"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "_MAX_SCANS", 3)
        assert main([str(dataset), str(out), "participant", ALONE, "--nprocs", "2"]) == 1
    assert main([str(dataset), str(out), "group"]) == 0
    return out


def good(derivatives: Path, session: str) -> Path:
    """Prefix of the good scan's outputs."""
    return derivatives / f"sub-good/ses-{session}/anat/sub-good_ses-{session}_"


def test_good_scans_have_all_outputs_on_their_own_grid(dataset: Path, derivatives: Path) -> None:
    for session in "AB":
        prefix = good(derivatives, session)
        source = nib.load(next((dataset / f"sub-good/ses-{session}/anat").glob("*T1w.nii.gz")))
        for name in ("seg-hippocampus_dseg", "seg-hippocampus_probseg", "label-ICV_mask"):
            image = nib.load(f"{prefix}{name}.nii.gz")
            assert image.shape[:3] == source.shape
            np.testing.assert_array_equal(image.get_sform(), source.get_sform())
            np.testing.assert_array_equal(image.get_qform(), source.get_qform())
            sidecar = json.loads(Path(f"{prefix}{name}.json").read_text())
            assert sidecar["Sources"] == [
                f"bids:raw:sub-good/ses-{session}/anat/sub-good_ses-{session}_T1w.nii.gz"
            ]
            assert len(sidecar["Models"]["Adapter"]["SHA256"]) == 64
        probabilities = nib.load(f"{prefix}seg-hippocampus_probseg.nii.gz").get_fdata()
        assert probabilities.shape[3] == 4
        assert 0.9 < probabilities.max() <= 1


def test_left_is_left_and_anterior_is_anterior(derivatives: Path) -> None:
    """In a file of any orientation."""
    image, turned = (
        nib.as_closest_canonical(nib.load(f"{good(derivatives, s)}seg-hippocampus_dseg.nii.gz"))
        for s in "AB"
    )
    labels = np.asarray(image.dataobj)
    np.testing.assert_array_equal(labels, np.asarray(turned.dataobj))
    head_l, tail_l, head_r, tail_r = (
        nib.affines.apply_affine(image.affine, np.argwhere(labels == i)).mean(axis=0)
        for i in (1, 2, 3, 4)
    )
    assert max(head_l[0], tail_l[0]) < min(head_r[0], tail_r[0])
    assert head_l[1] > tail_l[1]
    assert head_r[1] > tail_r[1]


def test_volumes_agree_with_the_labels(derivatives: Path) -> None:
    prefix = good(derivatives, "A")
    labels = np.asarray(nib.load(f"{prefix}seg-hippocampus_dseg.nii.gz").dataobj)
    table = read_table(Path(f"{prefix}seg-hippocampus_morph.tsv"))
    for _, row in table[table["index"].notna()].iterrows():
        assert row["voxels"] == (labels == row["index"]).sum()
        assert row["volume_mm3"] == pytest.approx(row["voxels"] * 8, abs=0.01)
    whole = table[table["part"] == "whole"]
    assert whole["volume_mm3"].between(2500, 5000).all()
    assert (whole["volume_soft_mm3"] / whole["volume_mm3"]).between(0.9, 1.15).all()


def test_bad_scans_are_recorded_with_their_reason(derivatives: Path) -> None:
    for subject, fact in (("truncated", "traceback in logs/"), ("constant", "value 1,")):
        folder = derivatives / f"sub-{subject}/anat"
        assert [path.name for path in folder.iterdir()] == [f"sub-{subject}_seg-hippocampus_qc.tsv"]
        row = read_table(next(folder.iterdir())).iloc[0]
        assert row["status"] == "failed"
        assert fact in row["reason"]
        assert f"sub-{subject}_T1w.nii.gz" in row["reason"]


def test_group_tables_hold_every_scan(derivatives: Path) -> None:
    qc = read_table(derivatives / "group_seg-hippocampus_qc.tsv").set_index("scan")
    assert qc["status"].to_dict() == {
        "sub-constant": "failed",
        "sub-good_ses-A": "done",
        "sub-good_ses-B": "done",
        "sub-truncated": "failed",
    }
    morph = read_table(derivatives / "group_seg-hippocampus_morph.tsv")
    assert len(morph) == 2 * 6
    described = json.loads((derivatives / "group_seg-hippocampus_morph.json").read_text())
    assert set(described) == set(morph.columns)


def test_derivatives_are_valid_bids(derivatives: Path, validator: str) -> None:
    done = subprocess.run(
        [validator, str(derivatives), "--format", "json"], capture_output=True, text=True
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_image_without_content_fails_alone_and_keeps_its_outputs(
    dataset: Path, derivatives: Path, tmp_path: Path
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(dataset, raw)
    shutil.copytree(derivatives, out)
    dropped = raw / "sub-good/ses-A/anat/sub-good_ses-A_T1w.nii.gz"
    new = raw / "sub-new/anat/sub-new_T1w.nii.gz"
    dropped.unlink()
    new.parent.mkdir(parents=True)
    for path in (dropped, new):
        path.symlink_to("../.git/annex/objects/MD5E-s1--0.nii.gz")
    before = {path: path.read_bytes() for path in (out / "sub-good").rglob("*.*")}
    labels = [ALONE, "--participant-label", "good", "new"]
    assert main([str(raw), str(out), "participant", *labels]) == 1
    assert {path: path.read_bytes() for path in (out / "sub-good").rglob("*.*")} == before
    row = read_table(out / "sub-new/anat/sub-new_seg-hippocampus_qc.tsv").iloc[0]
    assert row["status"] == "failed"
    assert f"datalad get {new}" in row["reason"]
    assert (out / "sub-new.html").is_file()
    # There is nothing to do at all.
    assert main([str(raw), str(out), "participant", "--participant-label", "new"]) == 66


def test_nothing_is_left_behind(derivatives: Path) -> None:
    names = {path.name for path in derivatives.iterdir()}
    assert "work" not in names
    assert not [path for path in derivatives.rglob(".*") if path.name != ".bidsignore"]
    logs = [path.read_text() for path in sorted(derivatives.glob("logs/*/hyps-bids.log"))]
    assert "sub-constant: failed" in logs[0]


@pytest.mark.slow
def test_plugin_file_and_missing_side(tmp_path: Path, coarse_head: nib.Nifti1Image) -> None:
    """Without the left half of the field of view the left hippocampus is n/a, not zero."""
    canonical = nib.as_closest_canonical(coarse_head)
    middle = round(float(np.linalg.inv(canonical.affine)[0] @ [8, 0, 0, 1]))
    half = canonical.slicer[middle:]
    folder = tmp_path / "raw/sub-01/anat"
    folder.mkdir(parents=True)
    nib.save(half, folder / "sub-01_T1w.nii.gz")
    plugin = tmp_path / "plugin.toml"
    plugin.write_text('plugin = "Linear"\n')
    out = tmp_path / "out"
    arguments = ["--skip-bids-validation", "--use-plugin", str(plugin)]
    assert main([str(tmp_path / "raw"), str(out), "participant", *arguments]) == 0
    table = read_table(out / "sub-01/anat/sub-01_seg-hippocampus_morph.tsv")
    left, right = (table[table["hemi"] == side] for side in "LR")
    assert left[["voxels", "volume_mm3", "volume_soft_mm3"]].isna().all(axis=None)
    assert right["volume_mm3"].gt(500).all()
    qc = read_table(out / "sub-01/anat/sub-01_seg-hippocampus_qc.tsv").iloc[0]
    assert "missing_L" in qc["flags"].split()


def test_a_run_that_fails_at_once_leaves_no_folder(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    for options, code in (
        (["--adapter", "nosuch"], 64),
        (["--session-label", "C"], 18),
        (["--reports-only"], 66),
    ):
        assert main([str(dataset), str(out), "participant", *options]) == code
        assert not out.exists()
    assert "no outputs of participant constant, good, truncated" in capsys.readouterr().err


@pytest.mark.slow
def test_reports_are_built_again_from_the_outputs(
    dataset: Path, derivatives: Path, tmp_path: Path
) -> None:
    out = tmp_path / "derivatives"
    shutil.copytree(derivatives, out)
    report = out / "sub-good.html"
    before, scans = report.read_text(), sorted((out / "sub-good").rglob("*"))
    times = [path.stat().st_mtime_ns for path in scans]
    report.unlink()
    arguments = [str(dataset), str(out), "participant", ALONE, "--participant-label", "good"]
    assert main([*arguments, "--reports-only"]) == 0
    assert "logs/*/settings.toml" in report.read_text()
    # The settings are missing: a run adds them, and computes nothing again
    assert main(arguments) == 0
    assert report.read_text() == before
    assert [path.stat().st_mtime_ns for path in scans] == times


@pytest.mark.parametrize("size", [1, 10])
def test_a_run_that_stops_leaves_what_it_did_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    image = nib.Nifti1Image(np.ones((40, 40, 40)), np.diag([4, 4, 4, 1]))
    for subject in ("01", "02", "03"):
        folder = tmp_path / f"raw/sub-{subject}/anat"
        folder.mkdir(parents=True)
        nib.save(image, folder / f"sub-{subject}_T1w.nii.gz")
    old = tmp_path / "out/sub-02/anat/sub-02_seg-hippocampus_morph.tsv"
    old.parent.mkdir(parents=True)
    old.write_text("of other content")
    monkeypatch.setattr(execution, "_MAX_SCANS", size)
    options = ["--skip-bids-validation", "--stop-on-first-crash", "--nprocs", "1"]
    assert main([str(tmp_path / "raw"), str(tmp_path / "out"), "participant", *options]) == 1
    failed = sorted(path.name for path in (tmp_path / "out").glob("sub-*/anat/*_qc.tsv"))
    assert failed == ["sub-01_seg-hippocampus_qc.tsv"]
    assert old.exists()
    log = next((tmp_path / "out").glob("logs/*/hyps-bids.log")).read_text()
    assert "sub-01: failed: " in log
    assert "not reached: the run stopped at the first failure" in log
    assert "0 of 3 scans done now" in log


def test_scan_whose_failure_cannot_be_recorded_does_not_stop_the_others(tmp_path: Path) -> None:
    """Also in folders with names that configuration files, patterns and terminals misread."""
    raw, out = tmp_path / "50% [a]*?", tmp_path / os.fsdecode(b"K\xf6ln {b}$HOME#") / "out"
    image = nib.Nifti1Image(np.ones((40, 40, 40)), np.diag([4, 4, 4, 1]))
    for subject in ("01", "02", "03"):
        path = raw / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(image, path)
    out.mkdir(parents=True)
    (out / "sub-01").touch()
    (out / "sub-02.html").mkdir()
    options = ["--skip-bids-validation", "--nprocs", "1"]
    assert main([str(raw), str(out), "participant", *options]) == 1
    assert [path.name for path in sorted(out.glob("sub-*/anat/*_qc.tsv"))] == [
        "sub-02_seg-hippocampus_qc.tsv",
        "sub-03_seg-hippocampus_qc.tsv",
    ]
    assert (out / "sub-03.html").is_file()
    log = next(out.glob("logs/*/hyps-bids.log")).read_text()
    for fact in ("sub-01: failed: ", "sub-03: failed: ", "sub-02: no report: "):
        assert log.count(fact) == 1
    assert f"{out / 'sub-01'}" in os.fsdecode(log.encode()).replace("\\udcf6", "\udcf6")


@pytest.fixture
def changed(derivatives: Path, dataset: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A dataset whose image has changed since its outputs were made, and these."""
    raw, out = tmp_path / "raw", tmp_path / "derivatives"
    shutil.copytree(dataset / "sub-good/ses-A", raw / "sub-good/ses-A")
    shutil.copytree(derivatives / "sub-good/ses-A", out / "sub-good/ses-A")
    path = raw / "sub-good/ses-A/anat/sub-good_ses-A_T1w.nii.gz"
    image = nib.load(path)
    nib.save(image.__class__(np.asarray(image.dataobj) + 1, image.affine, image.header), path)
    return raw, out


@pytest.mark.parametrize(
    ("error", "code"),
    [(RuntimeError("Could not submit sbatch task"), 1), (OSError(28, os.strerror(28)), 74)],
)
def test_results_outlive_a_scheduler_or_disk_that_fails(
    changed: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: Exception,
    code: int,
) -> None:
    raw, out = changed
    before = {path: path.read_bytes() for path in (out / "sub-good").rglob("*.*")}
    monkeypatch.setattr(execution, "_run_workflow", lambda workflow, engine: error)
    arguments = [str(raw), str(out), "participant", "--skip-bids-validation"]
    assert main(arguments) == code
    assert "run the command again to continue" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (out / "sub-good").rglob("*.*")} == before


@pytest.mark.slow
def test_results_outlive_a_disk_that_fills_up_in_a_node(
    changed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A real crash of a real node: the network's result has no room."""
    raw, out = changed
    before = {path: path.read_bytes() for path in (out / "sub-good").rglob("*.*")}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("hyps_bids.workflows.interfaces.conform", full)
    arguments = [str(raw), str(out), "participant", "--skip-bids-validation"]
    assert main(arguments) == 74
    assert "No space left on device" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (out / "sub-good").rglob("*.*")} == before
    monkeypatch.undo()
    assert main(arguments) == 0
    assert {path: path.read_bytes() for path in (out / "sub-good").rglob("*.*")} != before


def test_wrong_plugin_touches_nothing(
    changed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    raw, out = changed
    before = sorted(out.rglob("*"))
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("plugin: Multiproc")
    options = ["--skip-bids-validation", "--use-plugin", str(plugin)]
    assert main([str(raw), str(out), "participant", *options]) == 64
    assert "plugin-unknown" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == before


@pytest.mark.slow
def test_contrasts_share_an_output_folder(
    tmp_path: Path, coarse_head: nib.Nifti1Image, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    folder = raw / "sub-1/anat"
    folder.mkdir(parents=True)
    (raw / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    for suffix in ("T1w", "T2w"):
        nib.save(coarse_head, folder / f"sub-1_{suffix}.nii.gz")
    (folder / "sub-1_FLAIR.nii.gz").write_bytes(b"no image")

    def run(*options: str) -> tuple[int, str]:
        code = main([str(raw), str(out), "participant", *options])
        return code, capsys.readouterr().err

    # The image that cannot be read fails alone.
    assert run("--suffix", "FLAIR", "T2w")[0] == 1
    made = {path: path.read_bytes() for path in out.glob("sub-1/anat/*")}
    assert {path.name.split("_")[1] for path in made} == {"space-T2w", "space-FLAIR"}
    code, log = run()
    assert code == 0
    assert "1 done before" not in log
    assert "other contrasts (T2w 1, FLAIR 1)" in log
    assert "--suffix T2w FLAIR" in log
    assert {path: path.read_bytes() for path in made} == made
    code, log = run("--suffix", "T1w", "T2w")
    assert code == 0
    assert "2 done before, 0 to do" in log
    tables = [
        out / f"sub-1/anat/sub-1{space}_seg-hippocampus_morph.tsv" for space in ("", "_space-T2w")
    ]
    t1w, t2w = (read_table(path) for path in tables)
    assert (t1w["suffix"].unique(), t2w["suffix"].unique()) == (["T1w"], ["T2w"])
    assert t1w["volume_mm3"].tolist() == t2w["volume_mm3"].tolist()


def test_contrasts_that_an_adapter_has_not_seen_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warn(card: dict[str, object], *suffixes: str) -> list[str]:
        caplog.clear()
        metadata = {"hyps": json.dumps({"kind": "adapter", "labels": []} | card)}
        save_file({"x": np.zeros(1)}, tmp_path / "adapter.safetensors", metadata)
        scans = [Scan.from_path(Path(f"sub-1_{suffix}.nii.gz")) for suffix in suffixes]
        _warn_of_unseen_contrasts(tmp_path / "adapter.safetensors", scans)
        return caplog.messages

    trained = {"contrasts": {"T1w": 5, "ce-gd_T1w": 5, "FLAIR": 2}}
    (text,) = warn(trained, "T1w", "T2w", "PDw", "T2w")
    for fact in ("adapter.safetensors was trained on FLAIR, T1w images", "PDw, T2w images"):
        assert fact in text
    assert warn(trained, "T1w", "FLAIR") == []
    # Adapters of earlier versions, and those that ship, do not count images.
    assert warn({}, "T1w", "T2w") == []
