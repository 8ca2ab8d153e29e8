"""The files that describe the derivatives dataset."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hyps_bids import __version__
from hyps_bids.errors import UsageError
from hyps_bids.outputs.dataset import write_dataset_files
from hyps_bids.outputs.reading import read_table
from hyps_bids.settings import Settings
from tests.raising import raises


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    describe(folder)
    return folder


def describe(folder: Path, **more: Any) -> None:
    content = {"Name": "My data", "BIDSVersion": "1.10.0", **more}
    (folder / "dataset_description.json").write_text(json.dumps(content))


def settings(raw: Path, output: Path, **options: Any) -> Settings:
    return Settings(bids_dir=raw, output_dir=output, analysis_level="participant", **options)


def description(raw: Path, output: Path) -> dict[str, Any]:
    write_dataset_files(settings(raw, output), labels=["anterior", "posterior"])
    return json.loads((output / "dataset_description.json").read_text())


def test_dataset_files(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    content = description(raw, output)
    assert content["Name"] == "HyPS-BIDS hippocampus segmentations of My data"
    assert content["DatasetType"] == "derivative"
    assert content["GeneratedBy"][0]["Name"] == "hyps-bids"
    assert content["GeneratedBy"][0]["Version"] == __version__
    assert content["SourceDatasets"] == [{"URL": "../raw"}]
    assert content["DatasetLinks"] == {"raw": "../raw"}
    table = read_table(output / "seg-hippocampus_dseg.tsv")
    assert table["index"].tolist() == [1, 2, 3, 4]
    assert table["hemi"].tolist() == ["L", "L", "R", "R"]
    columns = json.loads((output / "seg-hippocampus_dseg.json").read_text())
    assert set(columns) == set(table.columns)
    ignored = (output / ".bidsignore").read_text().split()
    # The validator ignores less if the name ends with a slash.
    assert "figures" in ignored
    assert "*_morph.tsv" in ignored
    assert __version__ in (output / "README.md").read_text()


def test_links_lead_to_the_input_from_behind_a_symbolic_link(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "disk/deep/results").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk/deep/results")
    (tmp_path / "input").symlink_to(raw)
    content = description(tmp_path / "input", tmp_path / "out")
    for link in (content["DatasetLinks"]["raw"], content["SourceDatasets"][0]["URL"]):
        assert os.path.samefile(os.path.join(tmp_path / "out", link), raw)


def test_any_name_of_the_input_can_be_written(tmp_path: Path) -> None:
    raw = tmp_path / os.fsdecode(b"K\xf6ln 50% [a]{b}")
    raw.mkdir()
    content = description(raw, tmp_path / "out")
    assert content["DatasetLinks"] == {"raw": f"../{raw.name}"}


def test_second_time_gives_the_same(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    description(raw, output)
    before = {path: path.read_bytes() for path in output.iterdir()}
    description(raw, output)
    assert {path: path.read_bytes() for path in output.iterdir()} == before


@pytest.mark.parametrize(
    "doi",
    [
        "10.18112/x.v1",
        "doi:10.18112/x.v1",
        "DOI: 10.18112/x.v1",
        "https://doi.org/10.18112/x.v1",
        " http://dx.doi.org/10.18112/x.v1",
    ],
)
def test_source_doi(raw: Path, tmp_path: Path, doi: str) -> None:
    describe(raw, DatasetDOI=doi)
    assert description(raw, tmp_path / "out")["SourceDatasets"] == [{"DOI": "doi:10.18112/x.v1"}]


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_source_without_description(
    raw: Path, tmp_path: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = raw / "dataset_description.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    monkeypatch.chdir(raw)
    assert description(Path("."), tmp_path / "out")["Name"].endswith("segmentations of raw")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"container": "podman"}, None),
        # Singularity images made of our Docker image also have the variable of the latter.
        (
            {"APPTAINER_CONTAINER": "/images/hyps_0.1.sif", "HYPS_BIDS_CONTAINER": "hyps:1"},
            ("singularity", "hyps_0.1.sif"),
        ),
        ({"SINGULARITY_CONTAINER": "/images/hyps_0.1.sif"}, ("singularity", "hyps_0.1.sif")),
        ({"HYPS_BIDS_CONTAINER": "hyps:1"}, ("docker", "hyps:1")),
        ({"HYPS_BIDS_CONTAINER": "hyps:1", "container": "oci"}, ("docker", "hyps:1")),
        ({"HYPS_BIDS_CONTAINER": "hyps:1", "container": "podman"}, ("podman", "hyps:1")),
    ],
)
def test_container(
    raw: Path,
    tmp_path: Path,
    variables: dict[str, str],
    expected: tuple[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        "APPTAINER_CONTAINER",
        "SINGULARITY_CONTAINER",
        "HYPS_BIDS_CONTAINER",
        "container",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    named = description(raw, tmp_path / "out")["GeneratedBy"][0].get("Container")
    assert named == (expected and {"Type": expected[0], "Tag": expected[1]})


def test_labels_that_mean_something_else_are_refused(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    description(raw, output)
    description(raw, output)
    before = (output / "seg-hippocampus_dseg.tsv").read_text()
    with raises(UsageError, "other-labels-in-output", output, "Right posterior hippocampus"):
        write_dataset_files(settings(raw, output), labels=["hippocampus"])
    assert (output / "seg-hippocampus_dseg.tsv").read_text() == before
    # The group level has no adapter, so the table stays.
    write_dataset_files(settings(raw, output))
    assert (output / "seg-hippocampus_dseg.tsv").read_text() == before
