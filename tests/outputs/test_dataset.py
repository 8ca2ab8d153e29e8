"""The files that describe the derivatives, and where they may be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hyps_bids import __version__
from hyps_bids.errors import CannotCreateOutput, UsageError
from hyps_bids.outputs import dataset as description_module
from hyps_bids.outputs.dataset import check_output, write_dataset_files
from hyps_bids.outputs.labels import label_table
from hyps_bids.outputs.reading import read_table
from hyps_bids.settings import Settings


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
    write_dataset_files(settings(raw, output), labels=label_table(["anterior", "posterior"]))
    return json.loads((output / "dataset_description.json").read_text())


def test_checking_leaves_nothing(raw: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    check_output(settings(raw, tmp_path / "new" / "out"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("inside", ["derivatives", "derivatives/hyps", "sourcedata/x", "code/x"])
def test_safe_folders_of_the_input(raw: Path, inside: str) -> None:
    check_output(settings(raw, raw / inside))
    (raw / inside).mkdir(parents=True)
    check_output(settings(raw, raw / inside))
    assert list((raw / inside).iterdir()) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("raw", "is BIDS_DIR itself"),
        ("raw/../raw", "is BIDS_DIR itself"),
        ("link", "is BIDS_DIR itself"),
        (".", "contains BIDS_DIR"),
        ("raw/out", "taken for raw data"),
        ("raw/sub-01", "taken for raw data"),
        ("link/out", "taken for raw data"),
    ],
)
def test_unsafe_output(raw: Path, tmp_path: Path, output: str, message: str) -> None:
    (tmp_path / "link").symlink_to(raw)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=message):
        check_output(settings(raw, tmp_path / output))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_output_that_cannot_be_made(raw: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreateOutput, match="cannot be written"):
        check_output(settings(raw, tmp_path / output))


@pytest.mark.parametrize("work", ["raw", "out", "."])
def test_cleaning_never_removes_input_or_output(raw: Path, tmp_path: Path, work: str) -> None:
    with pytest.raises(UsageError, match=r"BIDS_DIR|would remove"):
        check_output(settings(raw, tmp_path / "out", work_dir=tmp_path / work, clean_workdir=True))


def test_work_folder_in_its_place(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    check_output(settings(raw, output, work_dir=output / "work", clean_workdir=True))
    check_output(settings(raw, output, work_dir=tmp_path))
    with pytest.raises(UsageError, match="is BIDS_DIR"):
        check_output(settings(raw, output, work_dir=raw))


@pytest.mark.parametrize(
    ("output", "work", "message"),
    [
        ("out", "raw/sub-01", "among the raw data"),
        ("out", "link", "among the raw data"),
        ("out", "raw/sourcedata", "inside BIDS_DIR, so it is not cleaned"),
        ("out", "out/sub-01", "may remove results"),
        ("raw/derivatives/hyps", "raw/derivatives/other", "inside BIDS_DIR, so it is not cleaned"),
    ],
)
def test_cleaning_never_removes_data_or_results(
    raw: Path, tmp_path: Path, output: str, work: str, message: str
) -> None:
    (tmp_path / "link").symlink_to(raw / "sub-01")
    with pytest.raises(UsageError, match=message):
        check_output(settings(raw, tmp_path / output, work_dir=tmp_path / work, clean_workdir=True))


def test_work_folder_below_derivatives_is_cleaned(raw: Path) -> None:
    output = raw / "derivatives/hyps"
    check_output(settings(raw, output, work_dir=output / "work/mine", clean_workdir=True))


def test_output_that_goes_with_its_container(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HYPS_BIDS_CONTAINER", "hyps-bids:1")
    for on_root, times in ((False, 0), (True, 1)):
        monkeypatch.setattr(description_module, "is_on_root", lambda path, told=on_root: told)
        check_output(settings(raw, tmp_path / "out"))
        assert caplog.text.count("is inside the container") == times


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
    # with a slash at its end the validator ignores less
    assert "figures" in ignored
    assert "*_morph.tsv" in ignored
    assert __version__ in (output / "README.md").read_text()


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


_CONTAINER_VARIABLES = (
    "APPTAINER_CONTAINER",
    "SINGULARITY_CONTAINER",
    "HYPS_BIDS_CONTAINER",
    "container",
)


def container(
    raw: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **variables: str
) -> dict[str, str] | None:
    for name in _CONTAINER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return description(raw, output)["GeneratedBy"][0].get("Container")


def test_without_container(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert container(raw, tmp_path / "out", monkeypatch) is None


@pytest.mark.parametrize("variable", ["APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"])
def test_singularity(
    raw: Path, tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the variable of the Docker image that the file was made of is there, too
    variables = {variable: "/images/hyps-bids_0.1.sif", "HYPS_BIDS_CONTAINER": "hyps-bids:0.1.0"}
    named = container(raw, tmp_path / "out", monkeypatch, **variables)
    assert named == {"Type": "singularity", "Tag": "hyps-bids_0.1.sif"}


@pytest.mark.parametrize("variables", [{}, {"container": "oci"}, {"container": "podman"}])
def test_image(
    raw: Path, tmp_path: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = variables | {"HYPS_BIDS_CONTAINER": "hyps-bids:0.1.0"}
    engine = (
        "podman"
        if variables.get(
            "container",
        )
        == "podman"
        else "docker"
    )
    named = container(raw, tmp_path / "out", monkeypatch, **variables)
    assert named == {"Type": engine, "Tag": "hyps-bids:0.1.0"}


def test_labels_that_mean_something_else_are_refused(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    description(raw, output)
    description(raw, output)
    before = (output / "seg-hippocampus_dseg.tsv").read_text()
    with pytest.raises(UsageError, match="Right posterior hippocampus; those of this adapter are"):
        write_dataset_files(settings(raw, output), labels=label_table(["hippocampus"]))
    assert (output / "seg-hippocampus_dseg.tsv").read_text() == before
    # the group level knows no adapter
    write_dataset_files(settings(raw, output))
    assert (output / "seg-hippocampus_dseg.tsv").read_text() == before
