"""Labels are paired with their images, and every doubt is reported."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyps_bids.errors import BadData, InvalidBids, MissingInput, NothingMatches, UsageError
from hyps_bids.labels.find import LabeledScan, find_labeled
from hyps_bids.labels.meanings import Structure
from hyps_bids.outputs.labels import label_table
from hyps_bids.settings import Settings
from tests.raising import raises

SCANS = (
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz",
    "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz",
    "sub-03/anat/sub-03_run-1_T1w.nii.gz",
    "sub-03/anat/sub-03_run-2_T1w.nii.gz",
    "sub-04/anat/sub-04_T1w.nii.gz",
    "sub-04/anat/sub-04_acq-hires_T1w.nii.gz",
)
WHOLE = (Structure(1, "L", "hippocampus"), Structure(2, "R", "hippocampus"))
ASEG = (Structure(17, "L", "hippocampus"), Structure(53, "R", "hippocampus"))


def add(root: Path, *names: str) -> None:
    """Add empty files, because finding does not read them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def describe(root: Path, **content: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"Name": "made", "BIDSVersion": "1.10.0"} | content)
    (root / "dataset_description.json").write_text(text)
    return root


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    add(tmp_path / "raw", *SCANS)
    return describe(tmp_path / "raw")


@pytest.fixture
def derivatives(raw: Path) -> Path:
    generated = [{"Name": "manual"}]
    return describe(raw / "derivatives" / "manual", DatasetType="derivative", GeneratedBy=generated)


Find = Callable[..., list[LabeledScan]]


@pytest.fixture
def find(raw: Path, derivatives: Path) -> Find:
    def run(*datasets: Path, **options: Any) -> list[LabeledScan]:
        options |= {"labels": datasets or (derivatives,), "output_dir": raw.parent / "out"}
        return find_labeled(Settings(bids_dir=raw, analysis_level="group", **options))

    return run


@pytest.mark.parametrize(
    ("label", "stem"),
    [
        ("sub-01/anat/sub-01_seg-hippocampus_desc-manual_dseg.nii", "sub-01"),
        ("sub-01/anat/sub-01_space-T1w_dseg.nii.gz", "sub-01"),
        ("sub-01/anat/sub-01_space-orig_dseg.nii.gz", "sub-01"),
        ("sub-02/ses-2/anat/sub-02_ses-2_dseg.nii.gz", "sub-02_ses-2"),
        ("sub-03/anat/sub-03_run-2_dseg.nii.gz", "sub-03_run-2"),
        # Runs are numbers.
        ("sub-03/anat/sub-03_run-02_dseg.nii.gz", "sub-03_run-2"),
        # The closest name is taken where several fit.
        ("sub-04/anat/sub-04_dseg.nii.gz", "sub-04"),
        ("sub-04/anat/sub-04_acq-hires_dseg.nii.gz", "sub-04_acq-hires"),
    ],
)
def test_labels_find_their_image(derivatives: Path, find: Find, label: str, stem: str) -> None:
    add(derivatives, label)
    (item,) = find(label_map="whole")
    assert (item.scan.stem, item.dataset) == (stem, derivatives)
    assert [image.path for image in item.labels] == [derivatives / label]
    assert item.structures == WHOLE


@pytest.mark.parametrize(
    ("label", "sources", "suffixes", "image"),
    [
        # The name states the contrast, as that of our outputs does.
        ("sub-01_space-T2w_dseg", (), ("T1w", "T2w"), "sub-01_T2w"),
        ("sub-01_space-T1w_dseg", (), ("T1w", "T2w"), "sub-01_T1w"),
        ("sub-05_space-T1wT2w_dseg", (), ("T2w",), "sub-05_space-T1w_T2w"),
        ("sub-05_space-T1w_dseg", (), ("T2w",), "sub-05_space-T1w_T2w"),
        ("sub-05_space-T1w_dseg", (), ("T1w", "T2w"), "sub-05_T1w"),
        ("sub-05_space-T2w_dseg", (), ("T2w",), None),
        ("sub-01_space-T2w_dseg", (), ("T1w",), None),
        ("sub-01_space-MNI152_dseg", (), ("T2w",), None),
        # The sidecar states it.
        ("sub-01_dseg", ("T2w",), ("T1w", "T2w"), "sub-01_T2w"),
        ("sub-01_dseg", ("T1w",), ("T2w",), None),
        # Nothing states it, but there is one contrast only.
        ("sub-01_dseg", (), ("T2w",), "sub-01_T2w"),
        ("sub-01_space-orig_dseg", (), ("T1w",), "sub-01_T1w"),
        # The T2w image has fewer entities, which says nothing about the contrast.
        ("sub-06_dseg", (), ("T1w", "T2w"), UsageError),
        ("sub-01_dseg", (), ("T1w", "T2w"), UsageError),
    ],
)
def test_labels_find_the_image_of_their_contrast(
    raw: Path, derivatives: Path, find: Find, label: str, sources: Any, suffixes: Any, image: Any
) -> None:
    add(raw, "sub-01/anat/sub-01_T2w.nii.gz", "sub-06/anat/sub-06_T2w.nii.gz")
    add(raw, "sub-06/anat/sub-06_acq-x_T1w.nii.gz")
    add(raw, "sub-05/anat/sub-05_T1w.nii.gz", "sub-05/anat/sub-05_space-T1w_T2w.nii.gz")
    path = derivatives / label[:6] / "anat" / f"{label}.nii.gz"
    add(derivatives, str(path.relative_to(derivatives)))
    named = [f"bids:raw:{label[:6]}/anat/{label[:6]}_{suffix}.nii.gz" for suffix in sources]
    path.with_name(f"{label}.json").write_text(json.dumps({"Sources": named}))
    options: dict[str, Any] = {"label_map": "whole", "suffix": suffixes}
    if image is UsageError:
        with raises(UsageError, "label-image-ambiguous", "_T1w.nii.gz", "_T2w.nii.gz", "--suffix"):
            find(**options)
    elif image is None:
        with raises(NothingMatches, "no-labels-found", suffixes[0]):
            find(**options)
    else:
        (item,) = find(**options)
        assert item.scan.path.name == f"{image}.nii.gz"


def test_label_images_with_misspelled_names_are_named(
    derivatives: Path, find: Find, caplog: pytest.LogCaptureFixture
) -> None:
    nearly = [
        "sub-01/anat/sub-01_DSEG.nii.gz",
        "sub-01/anat/sub-01_acq-0.8mm_dseg.nii.gz",
        "sub-01/anat/sub-01_label-Lhippocampus_mask.NII",
    ]
    add(derivatives, *nearly)
    with raises(NothingMatches, "no-labels-found"):
        find(label_map="whole")
    assert all(name in caplog.text for name in nearly)


def test_labels_that_may_not_be_read(
    derivatives: Path, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(derivatives, "sub-01/anat/sub-01_dseg.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_dseg.nii.gz")
    locked = derivatives / "sub-01" / "anat"
    listdir = os.listdir

    def fail(folder: str) -> list[str]:
        if Path(folder) == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", fail)
    # What a training set holds must not depend on who starts the run.
    with raises(MissingInput, "folder-locked", locked):
        find(label_map="whole")


@pytest.mark.parametrize(
    "label",
    [
        "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_dseg.nii.gz",
        "sub-01/anat/sub-01_acq-other_dseg.nii.gz",
        "sub-02/ses-3/anat/sub-02_ses-3_dseg.nii.gz",
        "sub-09/anat/sub-09_dseg.nii.gz",
        "sub-01/anat/sub-01_label-brain_mask.nii.gz",
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_label-head_mask.nii.gz",
        "sub-01/anat/sub-01_hemi-L_label-GM_mask.nii.gz",
        "sub-01/func/sub-01_dseg.nii.gz",
        "sub-01/anat/sub-01_seg-hippocampus_probseg.nii.gz",
    ],
)
def test_labels_of_no_image(derivatives: Path, find: Find, label: str) -> None:
    add(derivatives, label)
    with raises(NothingMatches, "no-labels-found", derivatives, "7 T1w"):
        find(label_map="whole")


def test_what_was_found_is_said(
    derivatives: Path, find: Find, caplog: pytest.LogCaptureFixture
) -> None:
    add(derivatives, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in ("dseg", "space-MNI_dseg")))
    add(derivatives, "sub-02/ses-3/anat/sub-02_ses-3_dseg.nii.gz")
    with caplog.at_level("INFO", "hyps_bids"):
        find(label_map="whole")
    lines = "\n".join(record.message for record in caplog.records)
    for fact in ("1 of 7 images", "sub-01_space-MNI_dseg", "sub-02_ses-3_dseg", "template"):
        assert fact in lines


def test_selection_resolves_ambiguity(derivatives: Path, find: Find, tmp_path: Path) -> None:
    add(derivatives, "sub-03/anat/sub-03_dseg.nii.gz")
    names = ("sub-03_dseg.nii.gz", "sub-03_run-1_T1w.nii.gz", "sub-03_run-2_T1w.nii.gz")
    with raises(UsageError, "label-image-ambiguous", *names):
        find(label_map="whole")
    filters = tmp_path / "filter.json"
    filters.write_text('{"t1w": {"run": 2}}')
    (item,) = find(label_map="whole", bids_filter_file=filters)
    assert item.scan.stem == "sub-03_run-2"


def test_selection_is_respected(derivatives: Path, find: Find) -> None:
    sessions = [f"sub-02/ses-{i}/anat/sub-02_ses-{i}_dseg.nii.gz" for i in "12"]
    add(derivatives, *sessions, "sub-01/anat/sub-01_dseg.nii.gz")
    stems = [item.scan.stem for item in find(label_map="whole")]
    assert stems == ["sub-01", "sub-02_ses-1", "sub-02_ses-2"]
    assert len(find(label_map="whole", session_label=("2",))) == 1
    assert len(find(label_map="whole", exclude_participant_label=("02",))) == 1


@pytest.mark.parametrize("written", ["17:L,53:R,9:-,*:-", "map.tsv"])
def test_given_label_map(
    derivatives: Path, find: Find, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    add(derivatives, "sub-01/anat/sub-01_dseg.nii.gz")
    (derivatives / "map.tsv").write_text("index\themi\n17\tL\n53\tR\n9\tn/a\n")
    monkeypatch.chdir(derivatives)
    (image,) = find(label_map=written)[0].labels
    assert (image.structures, image.listed) == (ASEG, None)


@pytest.mark.parametrize("written", ["mask:L", "1:LR"])
def test_label_map_that_needs_voxels(find: Find, written: str) -> None:
    with raises(UsageError, "label-map-needs-voxels", written):
        find(label_map=written)


def test_freesurfer_as_fmriprep_stores_it(derivatives: Path, find: Find) -> None:
    names = ("desc-aseg_dseg", "desc-aparcaseg_dseg", "dseg")
    add(derivatives, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in names))
    add(derivatives, "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    table = (
        "index\tname\n2\tLeft-Cerebral-White-Matter\n17\tLeft-Hippocampus\n53\tRight-Hippocampus\n"
        "193\tLeft-hippocampal_fissure\n1016\tctx-lh-parahippocampal\n"
    )
    for name in names[:2]:
        (derivatives / f"{name}.tsv").write_text(table)
    (derivatives / "dseg.tsv").write_text("index\tname\n1\tGray Matter\n")
    with raises(UsageError, "several-label-images", "desc-aseg_dseg", "desc-aparcaseg_dseg"):
        find()
    (item,) = find(label_map="aseg")
    assert [image.path.name for image in item.labels] == ["sub-01_desc-aseg_dseg.nii.gz"]
    assert item.structures == ASEG
    assert item.labels[0].listed is None
    # The tables are enough for a single image that shows a hippocampus.
    (derivatives / "sub-01/anat/sub-01_desc-aparcaseg_dseg.nii.gz").unlink()
    (own,) = find()
    assert own.structures == ASEG
    assert own.labels[0].listed == {2, 17, 53, 193, 1016}


def test_table_by_inheritance(derivatives: Path, find: Find) -> None:
    label = "sub-02/ses-1/anat/sub-02_ses-1_seg-hippocampus_dseg.nii.gz"
    add(derivatives, label)

    def write(name: str, left: int) -> None:
        rows = f"index\tname\n{left}\tL hippocampus\n{left + 1}\tR hippocampus\n"
        (derivatives / name).write_text(rows)

    write("seg-amygdala_dseg.tsv", 90)
    with raises(BadData, "label-meaning-unknown", label, "dseg.tsv", "--label-map"):
        find()
    (derivatives / "dseg.tsv").write_text("index\tname\n1\tGray Matter\n")
    with raises(BadData, "label-meaning-unknown", derivatives / "dseg.tsv", "--label-map"):
        find()
    # Each table is nearer or more specific than the tables before.
    tables = ("dseg.tsv", "seg-hippocampus_dseg.tsv", "sub-02/sub-02_dseg.tsv")
    near = ("sub-02_dseg.tsv", "anat/sub-02_ses-1_seg-hippocampus_dseg.tsv")
    for i, name in enumerate((*tables, *(f"sub-02/ses-1/{name}" for name in near))):
        write(name, 10 + i)
        assert find()[0].structures[0].index == 10 + i
    # The option takes precedence over the tables.
    assert find(label_map="whole")[0].structures == WHOLE


def test_own_segmentation_is_understood(derivatives: Path, find: Find) -> None:
    add(derivatives, "sub-01/anat/sub-01_seg-hippocampus_dseg.nii.gz")
    add(derivatives, "sub-01/anat/sub-01_label-ICV_mask.nii.gz")
    for parts in (["anterior", "posterior"], ["hippocampus"], ["CA1", "subiculum"]):
        table = label_table(parts)
        table.to_csv(derivatives / "seg-hippocampus_dseg.tsv", sep="\t", index=False)
        expected = [tuple(row) for row in table[["index", "hemi", "part"]].itertuples(index=False)]
        (item,) = find()
        assert [(s.index, s.hemi, s.part) for s in item.structures] == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["label-Lhippocampus", "label-Rhippocampus"], ["L hippocampus", "R hippocampus"]),
        (["hemi-L_label-hippocampus"], ["L hippocampus"]),
        (["hemi-L", "hemi-R"], ["L hippocampus", "R hippocampus"]),
        (["label-L", "label-R_desc-manual"], ["L hippocampus", "R hippocampus"]),
        (["label-LhippocampusAnterior", "label-LhippocampusTail"], ["L anterior", "L tail"]),
        (["seg-RightHippocampus"], ["R hippocampus"]),
    ],
)
def test_masks(derivatives: Path, find: Find, names: list[str], expected: list[str]) -> None:
    add(derivatives, *(f"sub-01/anat/sub-01_{name}_mask.nii.gz" for name in names))
    add(derivatives, "sub-01/anat/sub-01_label-brain_mask.nii.gz")
    (item,) = find()
    assert [f"{s.hemi} {s.part}" for s in item.structures] == expected
    assert all(image.is_mask and image.structures[0].index == 1 for image in item.labels)


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["sub-01_label-hippocampus_mask"], "mask-side-unclear"),
        (["sub-01_hemi-R_label-Lhippocampus_mask"], "mask-side-unclear"),
        (["sub-01_label-L_mask", "sub-01_label-Lhippocampus_mask"], "structure-labeled-twice"),
        (["sub-01_label-L_mask", "sub-01_label-Lanterior_mask"], "whole-beside-parts"),
        (["sub-01_desc-rater1_dseg", "sub-01_desc-rater2_dseg"], "several-label-images"),
        (["sub-01_dseg", "sub-01_label-Lhippocampus_mask"], "several-label-images"),
        (["sub-04_dseg"], "name-contradicts-folder"),
    ],
)
def test_label_images_in_doubt(derivatives: Path, find: Find, names: list[str], code: str) -> None:
    add(derivatives, *(f"sub-01/anat/{name}.nii.gz" for name in names))
    kinds = {"mask-side-unclear": BadData, "name-contradicts-folder": InvalidBids}
    with raises(kinds.get(code, UsageError), code, *names):
        find(label_map="whole")


def test_several_datasets(derivatives: Path, find: Find, tmp_path: Path) -> None:
    # pybids would take this folder name for an entity.
    other = describe(tmp_path / "run-02" / "func")
    add(derivatives, "sub-01/anat/sub-01_dseg.nii.gz")
    add(other, "sub-02/ses-1/anat/sub-02_ses-1_dseg.nii.gz")
    found = find(derivatives, other, label_map="whole")
    assert [item.dataset for item in found] == [derivatives, other]
    # The same dataset given twice is used once.
    assert len(find(other, other / ".." / "func", label_map="whole")) == 1
    add(other, "sub-01/anat/sub-01_dseg.nii.gz")
    with raises(UsageError, "labels-in-two-datasets", "sub-01", derivatives, other):
        find(derivatives, other, label_map="whole")


def test_datasets_that_cannot_be_used(raw: Path, find: Find, tmp_path: Path) -> None:
    with raises(MissingInput, "folder-missing", tmp_path / "nowhere"):
        find(tmp_path / "nowhere", label_map="whole")
    (tmp_path / "plain").mkdir()
    with raises(InvalidBids, "json-unreadable", tmp_path / "plain/dataset_description.json"):
        find(tmp_path / "plain", label_map="whole")
    with raises(NothingMatches, "no-labels-found", tmp_path / "plain"):
        find(tmp_path / "plain", label_map="whole", skip_bids_validation=True)
    with raises(UsageError, "labels-not-given"):
        find_labeled(Settings(bids_dir=raw, output_dir=tmp_path, analysis_level="group"))


def test_dangling_links(raw: Path, derivatives: Path, find: Find) -> None:
    add(derivatives, "sub-01/anat/sub-01_dseg.nii.gz")
    # An image without labels may be absent.
    absent = raw / SCANS[-1]
    absent.unlink()
    absent.symlink_to("../../.git/annex/objects/x")
    assert len(find(label_map="whole")) == 1
    label = derivatives / "sub-01/anat/sub-01_dseg.nii.gz"
    label.unlink()
    label.symlink_to("../../.git/annex/objects/y")
    with raises(MissingInput, "content-not-fetched", f"datalad get {label}"):
        find(label_map="whole")
