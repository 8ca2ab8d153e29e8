from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.outputs.flags import describe_flag
from hyps_bids.outputs.quality import GEOMETRY, quality_bounds
from hyps_bids.reports.scan_facts import facts_files, find_scans_of, read_facts
from hyps_bids.reports.scan_images import StoredImages, Voxels, read_images, read_raw
from hyps_bids.reports.viewer import region_around
from tests.raising import raises
from tests.reports.conftest import FAILED, GOOD, HALF, REASON, TURNED, Study, change_sidecar, named


def stored(study: Study, stem: str) -> StoredImages:
    scan = named(stem)
    return read_images(study.output, scan, read_raw(study.raw, scan))


def change(path: Path, **cells: str) -> None:
    """Set cells of a table with one row."""
    header, row = (line.split("\t") for line in path.read_text().splitlines())
    values = dict(zip(header, row, strict=True)) | cells
    path.write_text("\t".join(values) + "\n" + "\t".join(values.values()) + "\n")


def test_scans_of_a_subject_are_found_in_all_sessions(study: Study) -> None:
    # This file is being written, so it is no scan yet.
    (study.output / "sub-02/anat/.0123abcd.sub-02_run-9_seg-hippocampus_qc.tsv").touch()
    assert [s.stem for s in find_scans_of(study.output, "001A")] == [GOOD, HALF, FAILED]
    assert [s.stem for s in find_scans_of(study.output, "02")] == [TURNED]
    assert find_scans_of(study.output, "001") == []


def test_facts_of_a_good_scan(processed: Study) -> None:
    facts = read_facts(processed.output, named(GOOD))
    assert (facts.status, facts.flags, facts.problems, facts.missing) == ("done", (), (), ())
    assert [s.part for s in facts.structures] == ["anterior", "posterior", "whole"] * 2
    assert facts.structures[0].color == "#D55E00"
    left = facts.wholes["L"]
    assert left.volume_mm3 is not None
    assert facts.icv_mm3 is not None
    assert left.icv_percent == pytest.approx(100 * left.volume_mm3 / facts.icv_mm3)
    assert facts.record is not None
    assert facts.record["Models"]["Adapter"]["Name"] == "adapter-anteriorposterior"
    assert len(facts.measures) == 24
    # The localizer found them on the left and on the right of the world.
    assert facts.box_centers["L"][0] < 0 < facts.box_centers["R"][0]


def test_facts_of_half_a_head(processed: Study) -> None:
    facts = read_facts(processed.output, named(HALF))
    assert facts.missing == ("R",)
    assert facts.wholes["R"].volume_mm3 is None
    assert facts.wholes["R"].icv_percent is None
    assert facts.icv_percent is None
    assert facts.asymmetry is None
    assert [flag.name for flag in facts.flags] == ["missing_R", "low_icv_mm3", "high_icv_cut"]
    assert "829 ml" in facts.flags[1].words.finding
    assert "900 ml" in facts.flags[1].words.finding


def test_facts_of_a_failed_scan(processed: Study) -> None:
    facts = read_facts(processed.output, named(FAILED))
    assert (facts.status, facts.reason, facts.structures) == ("failed", REASON, ())


def test_a_value_and_its_bound_never_look_the_same(study: Study) -> None:
    qc = facts_files(study.output, named(GOOD))["qc"]
    change(qc, flags="low_icv_mm3 low_component_fraction_L", icv_mm3="899999.0")
    change(qc, component_fraction_L="0.9499996")
    facts = read_facts(study.output, named(GOOD))
    assert "899.999 ml, below the bound of 900 ml" in facts.flags[0].words.text
    assert "0.9499996, below the bound of 0.95" in facts.flags[1].words.text
    measures = {m.name: m for m in facts.measures}
    shown = measures["component_fraction_L"]
    assert (shown.value, shown.bounds, shown.flagged) == ("0.9499996", "at least 0.95", True)
    assert not measures["component_fraction_R"].flagged


@pytest.mark.parametrize("kind", ["qc", "morph", "sidecar"])
@pytest.mark.parametrize(
    "content", [None, b"", b"a\tb\n1\n", b"\xff\xfe", b"[]", b"{", b"index\tstatus\n1\tdone\n"]
)
def test_damaged_files_are_problems_not_errors(
    study: Study, kind: str, content: bytes | None
) -> None:
    path = facts_files(study.output, named(GOOD))[kind]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    facts = read_facts(study.output, named(GOOD))
    if kind == "qc" and content == b"index\tstatus\n1\tdone\n":
        assert facts.status == "done"
    else:
        assert facts.status == "incomplete"
        assert path.name in facts.problems[0]


@pytest.mark.parametrize(
    "wrong",
    [{"Models": None}, {"Models": {"A": "x"}}, {"Devices": "cpu"}, {"BoxCentres": {"L": [1, 2]}}],
)
def test_a_sidecar_that_does_not_say_what_was_run(study: Study, wrong: dict[str, object]) -> None:
    path = facts_files(study.output, named(GOOD))["sidecar"]
    change_sidecar(path, **wrong)
    facts = read_facts(study.output, named(GOOD))
    assert facts.record is None
    assert path.name in facts.problems[0]


def test_colors_are_colors(study: Study) -> None:
    path = study.output / "seg-hippocampus_dseg.tsv"
    path.write_text(path.read_text().replace("#D55E00", "red;x:y"))
    assert read_facts(study.output, named(GOOD)).structures[0].color == "#888888"


@pytest.mark.parametrize("stem", [GOOD, TURNED])
def test_images_keep_their_place_in_the_world(processed: Study, stem: str) -> None:
    images = stored(processed, stem)
    for label, sign in ((1, -1), (2, -1), (3, 1), (4, 1)):
        center = np.argwhere(images.labels.data == label).mean(axis=0)
        assert np.sign(apply_affine(images.labels.affine, center)[0]) == sign
    scan = named(stem)
    raw = nib.load(processed.raw / scan.folder / scan.path)
    assert np.allclose(images.anatomy.affine, raw.affine)
    assert np.array_equal(images.anatomy.data, raw.get_fdata(dtype=np.float32))
    region = region_around(images.labels)
    assert region is not None
    stored_probabilities = nib.load(images.probseg).get_fdata(dtype=np.float32)
    whole = np.moveaxis(stored_probabilities, -1, 0)[(slice(None), *region)]
    assert whole.max() > 0.9
    assert np.allclose(images.probabilities(region), whole, atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_content_is_the_smallest_part_whatever_the_order_in_memory(
    order: tuple[int, int, int],
) -> None:
    data = np.zeros((7, 8, 9), np.uint8)
    assert Voxels(data, np.eye(4)).content() is None
    data[2, 3, 1] = data[4, 3, 8] = data[3, 6, 5] = 3
    turned = np.ascontiguousarray(data.transpose(order))
    part = (slice(2, 5), slice(3, 7), slice(1, 9))
    for voxels in (turned, turned > 0, turned.astype(np.float32)):
        assert Voxels(voxels, np.eye(4)).content() == tuple(part[axis] for axis in order)
    back = turned.transpose(np.argsort(order))
    assert Voxels(back, np.eye(4)).content() == part
    mirrored = Voxels(back[::-1], np.eye(4)).content()
    assert mirrored == (slice(2, 5), *part[1:])


@pytest.mark.parametrize("kind", ["dseg", "probseg", "mask"])
def test_damaged_images(study: Study, kind: str) -> None:
    (path,) = (study.output / "sub-02/anat").glob(f"*_{kind}.nii.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with raises(BadData, "derivative-damaged", path.name):
        stored(study, TURNED).probabilities((slice(None), slice(None), slice(None)))
    path.write_bytes(b"no image")
    with raises(BadData, "derivative-damaged", path.name):
        stored(study, TURNED)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)
    with raises(BadData, "derivative-grid", path.name, (4, 4, 4)):
        stored(study, TURNED)
    path.unlink()
    with raises(MissingInput, "derivative-missing", path.name):
        stored(study, TURNED)


def test_a_raw_image_without_compression(study: Study) -> None:
    path = study.raw / "sub-02/anat/sub-02_T1w.nii.gz"
    nib.save(nib.load(path), path.with_suffix(""))
    path.unlink()
    assert read_raw(study.raw, named(TURNED)).data.max() > 0


def test_every_bound_has_advice() -> None:
    for known in quality_bounds().values():
        assert known["title"]
        for end in ("low", "high"):
            assert (end in known) == (f"{end}_advice" in known)


def test_missing_hippocampi_that_were_and_were_not_located() -> None:
    located = describe_flag("missing_L", {"localiser_confidence_L": 0.91})
    assert located.short == "no left hippocampus"
    assert "was located" in located.finding
    for values in ({}, {"localiser_confidence_L": float("nan")}):
        assert "was found in the field of view" in describe_flag("missing_L", values).finding


def test_contradictory_geometry_has_words_and_advice() -> None:
    note = describe_flag(GEOMETRY, {})
    assert note.short
    assert note.advice
    assert "header" in note.finding


@pytest.mark.parametrize(
    ("flag", "value", "short", "fact"),
    [
        ("low_agreement_R", 0.52, "low agreement, right", "0.52, below the bound of 0.65."),
        ("low_asymmetry", -0.3, "left much smaller than right", "−30.0 %, below the bound of −25"),
        # The value was rounded to its bound in the table.
        ("low_agreement_R", 0.65, "low agreement, right", "0.65, just below the bound."),
        # A version with other bounds flagged it.
        ("high_entropy_R", 0.4, "high entropy, right", "0.4, above the bound of the version"),
        ("high_entropy_R", None, "high entropy, right", "does not have its value"),
        # This version has no such bound, or no such measure.
        ("low_entropy_R", 0.4, "low_entropy_R", "does not know"),
        ("low_news", 0.4, "low_news", "does not know"),
    ],
)
def test_a_flag_in_words(flag: str, value: float | None, short: str, fact: str) -> None:
    words = describe_flag(flag, {flag.partition("_")[2]: value})
    assert words.short == short
    assert fact in words.finding
    assert words.text.startswith(words.finding)
    assert words.text.endswith(".")
