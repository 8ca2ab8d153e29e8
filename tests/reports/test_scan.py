from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.outputs.scan import Scan
from hyps_bids.reports.scan import (
    facts_files,
    find_scans_of,
    read_facts,
    read_images,
    read_raw,
)
from hyps_bids.reports.viewer import region_around
from tests.reports.conftest import FAILED, GOOD, HALF, REASON, TURNED, Study


def named(stem: str) -> Scan:
    return Scan.from_path(Path(f"{stem}_T1w.nii.gz"))


def change(path: Path, **cells: str) -> None:
    """Set cells of a table with one row."""
    header, row = (line.split("\t") for line in path.read_text().splitlines())
    values = dict(zip(header, row, strict=True)) | cells
    path.write_text("\t".join(values) + "\n" + "\t".join(values.values()) + "\n")


def test_scans_of_a_subject_are_found_in_all_sessions(processed: Study) -> None:
    assert [s.stem for s in find_scans_of(processed.output, "001A")] == [GOOD, HALF, FAILED]
    assert [s.stem for s in find_scans_of(processed.output, "02")] == [TURNED]
    assert find_scans_of(processed.output, "001") == []


def test_a_file_that_is_being_written_is_no_scan(study: Study) -> None:
    anat = study.output / "sub-02/anat"
    (anat / ".0123abcd.sub-02_run-9_seg-hippocampus_qc.tsv").touch()
    assert [s.stem for s in find_scans_of(study.output, "02")] == [TURNED]


def test_facts_of_a_good_scan(processed: Study) -> None:
    facts = read_facts(processed.output, named(GOOD))
    assert (facts.status, facts.flags, facts.problems, facts.missing) == ("done", (), (), ())
    assert [s.part for s in facts.structures] == ["anterior", "posterior", "whole"] * 2
    assert facts.structures[0].color == "#D55E00"
    left = facts.wholes["L"]
    assert left.volume_mm3 is not None
    assert facts.icv_mm3 is not None
    assert left.icv_percent == pytest.approx(100 * left.volume_mm3 / facts.icv_mm3)
    assert facts.provenance is not None
    assert facts.provenance["Models"]["Adapter"]["Name"] == "adapter-anteriorposterior"
    assert len(facts.figures) == 16
    # where the localizer found them, in the world's left and right
    assert facts.box_centers["L"][0] < 0 < facts.box_centers["R"][0]


def test_facts_of_half_a_head(processed: Study) -> None:
    facts = read_facts(processed.output, named(HALF))
    assert facts.missing == ("R",)
    assert facts.wholes["R"].volume_mm3 is None
    assert facts.wholes["R"].icv_percent is None
    assert facts.icv_percent is None
    assert facts.asymmetry is None
    assert "No right hippocampus was found" in facts.flags[0].text
    assert facts.flags[1].text.startswith("Intracranial volume is 829 ml, below 900 ml: ")


def test_facts_of_a_failed_scan(processed: Study) -> None:
    facts = read_facts(processed.output, named(FAILED))
    assert (facts.status, facts.reason, facts.structures) == ("failed", REASON, ())


def test_flags_are_said_with_figure_and_bound(study: Study) -> None:
    qc = facts_files(study.output, named(GOOD))["qc"]
    change(
        qc,
        flags="low_agreement_L high_asymmetry low_confidence_R low_news",
        agreement_L="0.52",
        asymmetry="0.31",
    )
    texts = [flag.text for flag in read_facts(study.output, named(GOOD)).flags]
    assert texts[0] == (
        "Agreement with the localizer, left, is 0.52, below 0.65: two independent networks see "
        "different structures; one of them is wrong"
    )
    assert texts[1].startswith("Asymmetry is 31.0 %, above 25.0 %: right is much smaller")
    # flagged by a version with other bounds: its figure is fine by ours
    assert "below the bound of its version" in texts[2]
    assert texts[3] == "low_news: a flag that this version of the report does not know"


def test_a_figure_and_its_bound_are_never_said_to_be_the_same(study: Study) -> None:
    qc = facts_files(study.output, named(GOOD))["qc"]
    change(qc, flags="low_icv_mm3 low_component_fraction_L", icv_mm3="899999.0")
    change(qc, component_fraction_L="0.9499996")
    facts = read_facts(study.output, named(GOOD))
    assert "899.999 ml, below 900 ml" in facts.flags[0].text
    assert "0.9499996, below 0.95" in facts.flags[1].text
    shown = {figure.name: (figure.value, figure.bounds) for figure in facts.figures}
    assert shown["component_fraction_L"] == ("0.9499996", "at least 0.95")


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
        assert facts.problems[0].endswith("run the participant level again")


@pytest.mark.parametrize(
    "wrong",
    [
        {"Models": None},
        {"Models": {"Adapter": "x"}},
        {"Devices": "cpu"},
        {"BoxCentres": {"L": [1, 2]}},
    ],
)
def test_a_sidecar_that_does_not_say_what_was_run(study: Study, wrong: dict[str, object]) -> None:
    path = facts_files(study.output, named(GOOD))["sidecar"]
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    facts = read_facts(study.output, named(GOOD))
    assert facts.provenance is None
    assert "does not say what was run" in facts.problems[0]


def test_colors_are_colors(study: Study) -> None:
    path = study.output / "seg-hippocampus_dseg.tsv"
    path.write_text(path.read_text().replace("#D55E00", "red;x:y"))
    assert read_facts(study.output, named(GOOD)).structures[0].color == "#888888"


@pytest.mark.parametrize("stem", [GOOD, TURNED])
def test_images_keep_their_place_in_the_world(processed: Study, stem: str) -> None:
    scan = named(stem)
    images = read_images(processed.output, scan, read_raw(processed.raw, scan))
    for label, sign in ((1, -1), (2, -1), (3, 1), (4, 1)):
        where = apply_affine(images.affine, np.argwhere(images.labels == label).mean(axis=0))
        assert np.sign(where[0]) == sign
    raw = nib.load(processed.raw / scan.folder / scan.path)
    assert np.allclose(images.affine, raw.affine)
    assert np.array_equal(images.t1w, raw.get_fdata(dtype=np.float32))


@pytest.mark.parametrize("stem", [GOOD, TURNED])
def test_probabilities_of_a_region(processed: Study, stem: str) -> None:
    scan = named(stem)
    images = read_images(processed.output, scan, read_raw(processed.raw, scan))
    region = region_around(images.labels, images.affine)
    assert region is not None
    whole = np.moveaxis(images.probseg.get_fdata(dtype=np.float32), -1, 0)
    assert whole[(slice(None), *region)].max() > 0.9
    assert np.allclose(images.probabilities(region), whole[(slice(None), *region)], atol=1e-6)


@pytest.mark.parametrize("kind", ["dseg", "probseg", "mask"])
def test_damaged_images(study: Study, kind: str) -> None:
    scan = named(TURNED)
    raw = read_raw(study.raw, scan)
    (path,) = (study.output / "sub-02/anat").glob(f"*_{kind}.nii.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    everything = (slice(None), slice(None), slice(None))
    with pytest.raises(BadData, match=r"damaged .* run the participant level again"):
        read_images(study.output, scan, raw).probabilities(everything)
    path.write_bytes(b"no image")
    with pytest.raises(BadData, match=path.name):
        read_images(study.output, scan, raw)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)
    with pytest.raises(BadData, match="is not that of the T1w image"):
        read_images(study.output, scan, raw)
    path.unlink()
    with pytest.raises(MissingInput, match=path.name):
        read_images(study.output, scan, raw)


def test_a_raw_image_without_compression(study: Study) -> None:
    path = study.raw / "sub-02/anat/sub-02_T1w.nii.gz"
    nib.save(nib.load(path), path.with_suffix(""))
    path.unlink()
    assert read_raw(study.raw, named(TURNED)).data.max() > 0
