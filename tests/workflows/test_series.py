"""Participants over time, end to end: real pybids, nipype, networks and registration."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hyps_bids.cli import main
from hyps_bids.longitudinal import deformation, pipeline
from hyps_bids.outputs.names import scan_paths, sidecar_path
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series, time_point_paths
from hyps_bids.outputs.series_state import read_series_record
from hyps_bids.reports import section
from tests.remembering import remembered

pytestmark = pytest.mark.slow
#: Moves an image; two seeds give two rescans.
Rescan = Callable[[int], nib.Nifti1Image]


@pytest.fixture(scope="module", autouse=True)
def _quick(networks_once: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Follow the same scans once, in few steps, and draw no more of scans than an overview.

    How exact changes are, and what reports show, is tested in other rooms.
    """

    def scans(points: object, network: object, threads: int) -> object:
        return points

    once = remembered(pipeline._follow, tmp_path_factory.mktemp("followed"), scans)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_follow", once)
        patch.setattr(deformation, "_STEPS", 1)
        patch.setattr(deformation, "_INNER", 5)
        patch.setattr(section, "_OVERVIEW_ONLY", math.inf)
        yield


@pytest.fixture(scope="module")
def rescan(coarse_head: nib.Nifti1Image) -> Rescan:
    """Make scans of one head, cropped to be quick, that lies elsewhere in each."""
    brain = nib.as_closest_canonical(coarse_head)
    data, affine = np.asarray(brain.dataobj, np.float32), brain.affine

    def make(seed: int) -> nib.Nifti1Image:
        rng = np.random.default_rng(seed)
        middle = affine @ [*(np.array(data.shape) - 1) / 2, 1]
        move = np.eye(4)
        turn = Rotation.from_euler("xyz", rng.uniform(-4, 4, 3), degrees=True)
        move[:3, :3] = turn.as_matrix()
        move[:3, 3] = middle[:3] - move[:3, :3] @ middle[:3] + rng.uniform(-4, 4, 3)
        voxels = np.linalg.inv(affine) @ move @ affine
        moved = ndimage.affine_transform(data, voxels[:3, :3], voxels[:3, 3], order=3)
        moved = np.maximum(moved + rng.normal(0, 0.01 * data.max(), data.shape), 0)
        return nib.Nifti1Image(moved.astype(np.int16), affine)

    return make


class Dataset:
    """A dataset to which scans are added, and what the app makes of it."""

    def __init__(self, folder: Path) -> None:
        self.raw, self.out = folder / "raw", folder / "out"
        self.raw.mkdir()
        text = '{"Name": "test", "BIDSVersion": "1.9.0"}'
        (self.raw / "dataset_description.json").write_text(text)

    def add(self, image: nib.Nifti1Image, name: str) -> Path:
        path = self.raw / Scan.from_path(Path(name)).folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    def run(self, *options: str) -> int:
        return main([str(self.raw), str(self.out), "participant", "--nprocs", "1", *options])

    def table(self, kind: str, contrast: str = "T1w", subject: str = "1") -> pd.DataFrame:
        return read_table(Series(subject, contrast).paths(self.out)[kind])

    def times(self, pattern: str = "sub-*/**/*.*") -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.out.glob(pattern) if path.is_file()}

    def over_time(self) -> set[Path]:
        """All files that no scan has by itself."""
        marks = ("longitudinal", "annualchange", "midway")
        return {p for p in self.out.glob("sub-*/**/*.*") if any(m in p.name for m in marks)}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, rescan: Rescan) -> Dataset:
    """Two sessions with dates, and another participant with two scans of one session."""
    made = Dataset(tmp_path_factory.mktemp("two"))
    for session in (1, 2):
        made.add(rescan(session), f"sub-1_ses-{session}_T1w")
        made.add(rescan(session), f"sub-2_run-{session}_T1w")
        row = f"anat/sub-1_ses-{session}_T1w.nii.gz\t{2000 + 2 * session}-01-01"
        table = made.raw / f"sub-1/ses-{session}/sub-1_ses-{session}_scans.tsv"
        table.write_text(f"filename\tacq_time\n{row}\n")
    assert made.run("--no-longitudinal") == 0
    return made


@pytest.fixture(scope="module")
def followed(two: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A copy of it whose series is done."""
    copy = copied(two, tmp_path_factory.mktemp("followed"))
    assert copy.run() == 0
    return copy


def copied(dataset: Dataset, folder: Path) -> Dataset:
    copy = Dataset(folder)
    shutil.copytree(dataset.raw, copy.raw, dirs_exist_ok=True)
    shutil.copytree(dataset.out, copy.out)
    return copy


@pytest.fixture
def done(followed: Dataset, tmp_path: Path) -> Dataset:
    """A copy that a test may change."""
    return copied(followed, tmp_path)


def test_two_sessions(two: Dataset, done: Dataset) -> None:
    """Scans keep their own outputs, and a scan that has not changed has hardly any change."""
    for path in two.out.glob("sub-*/**/anat/*"):
        assert (done.out / path.relative_to(two.out)).read_bytes() == path.read_bytes()
    assert {path.parts[len(done.out.parts)] for path in done.over_time()} == {"sub-1"}
    annual = done.table("annual")
    whole = annual[(annual["part"] == "whole") & (annual["method"] == "volume")]
    assert whole["change_percent"].abs().max() < 2
    assert whole["span_years"].tolist() == pytest.approx([2, 2], abs=0.01)
    assert whole["percent_per_year"].tolist() == pytest.approx(
        (whole["change_percent"] / whole["span_years"]).tolist(), rel=0.001
    )
    # 2 mm is beyond what the error model was measured with.
    assert whole["percent_per_year_se"].isna().all()
    assert whole["remarks"].str.contains("mm").all()
    for session in (1, 2):
        scan = Scan.from_stem(f"sub-1_ses-{session}")
        paths = time_point_paths(scan, done.out)
        own, mine = (nib.load(path) for path in (paths["dseg"], scan_paths(scan, done.out)["dseg"]))
        np.testing.assert_array_equal(own.affine, mine.affine)
        labels, expected = (np.asarray(image.dataobj) for image in (own, mine))
        for label in (1, 2, 3, 4):
            a, b = labels == label, expected == label
            assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85
    midway = [
        nib.load(time_point_paths(Scan.from_stem(f"sub-1_ses-{i}"), done.out)["midway_dseg"])
        for i in (1, 2)
    ]
    np.testing.assert_array_equal(midway[0].affine, midway[1].affine)
    a, b = (np.asarray(image.dataobj) > 0 for image in midway)
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95
    assert "midway" in (done.out / "logs/CITATION.md").read_text()


def test_a_second_run_changes_nothing(done: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    before = done.times("**/*.*")
    assert done.run() == 0
    after = done.times("**/*.*")
    assert {path: after[path] for path in before} == before
    assert "Change over time" not in capsys.readouterr().err


def test_a_later_session_updates_its_participant_only(done: Dataset, rescan: Rescan) -> None:
    assert done.run("--longitudinal") == 0
    assert len(done.table("qc", subject="2")) == 2
    before = done.times()
    done.add(rescan(3), "sub-1_ses-3_T1w")
    # The selection of this run decides what is segmented, not what belongs to a series.
    assert done.run("--session-label", "3") == 0
    after = done.times()
    changed = {path for path, time in before.items() if after.get(path) != time}
    assert changed <= done.over_time()
    assert all("sub-1" in path.name for path in changed)
    assert done.table("qc")["scan"].tolist() == [f"sub-1_ses-{i}" for i in (1, 2, 3)]
    # Without a date of the third scan, there is none of the series.
    assert done.table("annual")["time_source"].unique().tolist() == ["name"]
    table = done.raw / "sub-1/ses-3/sub-1_ses-3_scans.tsv"
    table.write_text("filename\tacq_time\nanat/sub-1_ses-3_T1w.nii.gz\t1999-01-01\n")
    assert done.run() == 0
    assert done.table("qc")["scan"].tolist() == [f"sub-1_ses-{i}" for i in (3, 1, 2)]
    assert done.table("annual")["span_years"].max() == pytest.approx(5, abs=0.01)


def test_a_scan_that_fails_or_disappears_leaves_the_series(done: Dataset, rescan: Rescan) -> None:
    path = done.add(rescan(3), "sub-1_ses-3_T1w")
    assert done.run("--participant-label", "1") == 0
    content = path.read_bytes()
    path.write_bytes(content[:5000])
    assert done.run("--participant-label", "1") == 1
    assert done.table("qc")["status"].tolist() == ["used", "used", "failed"]
    assert done.table("qc")["scan"].iloc[-1] == "sub-1_ses-3"
    assert "sub-1_ses-3" in (done.out / "sub-1.html").read_text()
    assert not any("ses-3" in each.name for each in done.over_time())
    path.write_bytes(content)
    assert done.run("--participant-label", "1") == 0
    # Somebody removes what the scan has by itself, and the image.
    own = set((done.out / "sub-1/ses-3/anat").iterdir()) - done.over_time()
    assert own
    for each in own:
        each.unlink()
    shutil.rmtree(path.parent)
    assert done.run("--participant-label", "1") == 0
    assert not any("ses-3" in each.name for each in done.over_time())
    (done.raw / "sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz").unlink()
    assert done.run("--participant-label", "1") == 0
    assert done.over_time() == set()


def test_a_series_that_fails_is_recorded_and_stops_no_other(
    done: Dataset, rescan: Rescan, capsys: pytest.CaptureFixture[str]
) -> None:
    done.add(rescan(1), "sub-3_ses-1_T1w")
    done.add(rescan(2), "sub-3_ses-2_T1w")
    assert done.run("--no-longitudinal") == 0
    mark = sidecar_path(Series("1", "T1w").paths(done.out)["qc"])
    mark.unlink()
    mask = scan_paths(Scan.from_stem("sub-1_ses-2"), done.out)["mask"]
    content = mask.read_bytes()
    mask.write_bytes(content[:200])
    capsys.readouterr()
    assert done.run() == 1
    log = capsys.readouterr().err
    assert "sub-1 over time: failed: " in log
    assert mask.parent.name in log
    table = done.table("qc")
    assert table["status"].tolist() == ["failed"] * 2
    assert "sub-1_ses-2" in table["reason"][0]
    assert done.table("qc", subject="3")["status"].tolist() == ["used"] * 2
    assert (done.out / "sub-1.html").is_file()
    mask.write_bytes(content)
    assert done.run() == 0
    assert done.table("qc")["status"].tolist() == ["used"] * 2


def test_an_image_that_changed_unseen_or_was_dropped(done: Dataset, rescan: Rescan) -> None:
    done.add(rescan(3), "sub-1_ses-2_T1w")
    done.add(rescan(2), "sub-1_ses-3_T1w")
    assert done.run("--session-label", "3") == 1
    assert "sub-1_ses-2_T1w.nii.gz" in done.table("qc")["reason"][0]
    assert done.run() == 0
    before = {path: path.read_bytes() for path in done.over_time()}
    path = done.raw / "sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz"
    path.unlink()
    path.symlink_to("../.git/annex/objects/MD5E-s1--0.nii.gz")
    # Nothing else has changed, so that its content is not needed.
    assert done.run("--session-label", "1", "3") == 0
    done.add(rescan(4), "sub-1_ses-4_T1w")
    assert done.run("--session-label", "4") == 1
    assert {p: p.read_bytes() for p in before if p.is_file()} == before


def test_heads_that_do_not_belong_together(
    dataset: Dataset, rescan: Rescan, capsys: pytest.CaptureFixture[str], demo_bids: Path
) -> None:
    """Swapped persons and swapped sides are refused, as results and not as failures."""
    other = nib.load(demo_bids / "sub-55/anat/sub-55_T1w.nii.gz")
    first = rescan(1)
    for session, image in ((1, first), (2, rescan(2)), (3, other)):
        dataset.add(image, f"sub-1_ses-{session}_T1w")
    mirrored = nib.Nifti1Image(np.asarray(first.dataobj)[::-1], first.affine)
    dataset.add(first, "sub-2_ses-1_T1w")
    dataset.add(mirrored, "sub-2_ses-2_T1w")
    assert dataset.run() == 0
    log = capsys.readouterr().err
    table = dataset.table("qc")
    assert table["status"].tolist() == ["used", "used", "refused"]
    assert "different-head" in table["flags"][2]
    assert dataset.table("morph")["scan"].nunique() == 2
    assert dataset.table("qc", subject="2")["flags"].tolist() == ["sides-swapped"] * 2
    assert not Series("2", "T1w").paths(dataset.out)["annual"].exists()
    for fact in ("sub-1_ses-3", "do not look like the same head", "sub-2_ses-1, sub-2_ses-2"):
        assert fact in log
    record = read_series_record(Series("2", "T1w"), dataset.out)
    assert record is not None
    assert record.used == ()


def test_contrasts_are_series_of_their_own(dataset: Dataset, rescan: Rescan) -> None:
    dataset.add(rescan(3), "sub-1_ses-1_T1w")
    dataset.add(rescan(1), "sub-1_ses-2_T2w")
    dataset.add(rescan(3), "sub-1_ses-2_ce-gd_T1w")
    assert dataset.run("--suffix", "T1w", "T2w") == 0
    assert dataset.over_time() == set()
    dataset.add(rescan(2), "sub-1_ses-3_T2w")
    assert dataset.run("--suffix", "T2w") == 0
    assert len(dataset.table("morph", "T2w")) == 12
    names = {path.name.partition("_desc-")[0] for path in dataset.over_time()}
    assert "sub-1_ses-3_space-midwayT2w_seg-hippocampus" in names
    assert not any("T1w" in name for name in names)
    # The second run was about T2w images only, and the outputs are about both.
    assert "T1-weighted or T2-weighted" in (dataset.out / "logs/CITATION.md").read_text()


def test_a_side_that_is_missing_at_one_time(dataset: Dataset, rescan: Rescan) -> None:
    """The signal around the left hippocampus is lost in the second of three sessions."""
    for session in (1, 3):
        dataset.add(rescan(session), f"sub-1_ses-{session}_T1w")
    assert dataset.run("--no-longitudinal") == 0
    mark = sidecar_path(scan_paths(Scan.from_stem("sub-1_ses-1"), dataset.out)["qc"])
    image = rescan(1)
    data = np.asarray(image.dataobj)
    place = np.array([*json.loads(mark.read_text())["BoxCentres"]["L"], 1])
    middle = np.round(np.linalg.inv(image.affine) @ place).astype(int)[:3]
    data[tuple(slice(index - 13, index + 14) for index in middle)] = 0
    dataset.add(nib.Nifti1Image(data, image.affine), "sub-1_ses-2_T1w")
    assert dataset.run() == 0
    table = dataset.table("qc")
    assert table["status"].tolist() == ["used"] * 3
    assert "missing_L" in table["flags"][1].split()
    annual = dataset.table("annual")
    whole = annual[(annual["part"] == "whole") & (annual["method"] == "volume")]
    assert whole.set_index("hemi")["n_scans"].to_dict() == {"L": 2, "R": 3}
    morph = dataset.table("morph")
    gone = morph[(morph["scan"] == "sub-1_ses-2") & (morph["hemi"] == "L")]
    assert gone["volume_mm3"].isna().all()


def test_other_engines_and_stops(done: Dataset, tmp_path: Path, rescan: Rescan) -> None:
    plugin = tmp_path / "plugin.toml"
    plugin.write_text('plugin = "Linear"\n')
    done.add(rescan(3), "sub-1_ses-3_T1w")
    assert done.run("--use-plugin", str(plugin), "--stop-on-first-crash") == 0
    assert len(done.table("qc")) == 3
    before = done.times()
    assert done.run("--reports-only") == 0
    assert done.run("--dry-run") == 0
    assert done.times() == before
    bad = done.raw / "sub-0/ses-1/anat/sub-0_ses-1_T1w.nii.gz"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"no image")
    done.add(rescan(4), "sub-1_ses-4_T1w")
    assert done.run("--stop-on-first-crash") == 1
    # The run had ended before the new scan was reached.
    assert len(done.table("qc")) == 3
    assert done.run("--no-longitudinal", "--participant-label", "1") == 0


def test_results_that_are_left_behind_are_named(
    done: Dataset, rescan: Rescan, capsys: pytest.CaptureFixture[str]
) -> None:
    done.add(rescan(5), "sub-1_ses-2_T1w")
    capsys.readouterr()
    assert done.run("--no-longitudinal") == 0
    log = capsys.readouterr().err
    assert "out of date" in log
    assert "sub-1 over time" in log
    assert done.over_time()
