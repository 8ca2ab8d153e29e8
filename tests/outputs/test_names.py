"""Names of outputs tell all images apart, and lead back to their image."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hyps_bids.outputs.names import parse_output, scan_names
from hyps_bids.outputs.scan import Scan
from hyps_bids.settings import SUFFIXES

#: Labels that look like contrasts are the ones that might be confused.
LABELS = st.lists(st.sampled_from([*SUFFIXES, "x", "orig"]), min_size=1, max_size=3).map("".join)
#: In the order of BIDS.
ENTITIES = ("ses", "acq", "ce", "rec", "run", "part", "space", "chunk", "res", "desc")


@st.composite
def image_names(draw: st.DrawFn) -> str:
    values = {key: draw(LABELS) for key in ENTITIES if draw(st.booleans())}
    entities = [f"{key}-{value}" for key, value in values.items()]
    return "_".join(["sub-01", *entities, draw(st.sampled_from(SUFFIXES))]) + ".nii.gz"


@given(st.lists(image_names(), unique=True, min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_names_of_outputs_lead_back_to_their_image(names: list[str]) -> None:
    scans = [Scan.from_path(Path(name)) for name in names]
    for name, scan in zip(names, scans, strict=True):
        assert scan.suffix == name.removesuffix(".nii.gz").rpartition("_")[2]
        assert scan.image_names == (name, name.removesuffix(".gz"))
        assert Scan.from_stem(scan.stem).entities == scan.entities
        for kind, output in scan_names(scan).items():
            if kind != "mask":
                stem, _ = parse_output(output) or ("", "")
                assert Scan.from_stem(stem).path.name == name
    outputs = [output for scan in scans for output in scan_names(scan).values()]
    assert len(set(outputs)) == len(outputs)
    assert len({scan.workflow_name for scan in scans}) == len(names)


def test_names_of_t1w_outputs_are_those_of_earlier_versions() -> None:
    for stem in ("sub-01_ses-1_run-2", "sub-01_space-T1w_desc-x", "sub-01_space-MNI_res-1"):
        assert Scan.from_path(Path(f"{stem}_T1w.nii")).stem == stem
