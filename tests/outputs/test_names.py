"""Names of outputs tell all images apart, and lead back to their image."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hyps_bids.outputs.names import parse_output, scan_names
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series, find_series_of, time_point_paths
from hyps_bids.settings import SUFFIXES

#: Labels that look like contrasts are the ones that might be confused.
LABELS = st.lists(st.sampled_from([*SUFFIXES, "x", "orig"]), min_size=1, max_size=3).map("".join)
#: And labels that look like those of results over several scans.
DESCRIPTIONS = st.lists(
    st.sampled_from(["longitudinal", "annualchange", "x", "0"]), min_size=1, max_size=3
).map("".join)
#: In the order of BIDS.
ENTITIES = ("ses", "acq", "ce", "rec", "run", "part", "space", "chunk", "res", "desc")


@st.composite
def image_names(draw: st.DrawFn) -> str:
    values = {key: draw(LABELS) for key in ENTITIES if draw(st.booleans())}
    if "desc" in values:
        values["desc"] = draw(DESCRIPTIONS)
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
    over_time = [time_point_paths(scan, Path()) for scan in scans]
    over_time += [series.paths(Path()) for series in {Series.of(scan) for scan in scans}]
    outputs += [path.name for paths in over_time for path in paths.values()]
    assert len(set(outputs)) == len(outputs)
    assert len({scan.workflow_name for scan in scans}) == len(names)


def test_names_of_t1w_outputs_are_those_of_earlier_versions() -> None:
    for stem in ("sub-01_ses-1_run-2", "sub-01_space-T1w_desc-x", "sub-01_space-MNI_res-1"):
        assert Scan.from_path(Path(f"{stem}_T1w.nii")).stem == stem


def test_results_over_time_are_no_scans(tmp_path: Path) -> None:
    """Whatever reads the outputs of scans asks for their names here."""
    scans = [Scan.from_path(Path(f"sub-01_{name}.nii")) for name in ("T1w", "ce-gd_desc-x_T2w")]
    folder = tmp_path / "sub-01/anat"
    folder.mkdir(parents=True)
    for scan in scans:
        tables = Series.of(scan).paths(tmp_path)
        for path in (*tables.values(), *time_point_paths(scan, tmp_path).values()):
            path.touch()
            assert parse_output(path.name) is None
    (folder / "sub-01_desc-x_seg-hippocampus_desc-longitudinal_qc.tsv").touch()
    expected = [Series("01", "T1w"), Series("01", "ce-gd_T2w")]
    assert find_series_of(tmp_path, "01") == expected
    assert find_series_of(tmp_path, "02") == []
