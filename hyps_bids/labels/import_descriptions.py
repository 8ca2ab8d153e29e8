"""The files that describe an imported dataset as a whole, and the check that they still fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hyps_bids import __version__
from hyps_bids.errors import CannotCreateOutput
from hyps_bids.labels.import_table import Row
from hyps_bids.labels.presets import Preset
from hyps_bids.outputs.columns import described
from hyps_bids.outputs.dataset import BIDS_VERSION
from hyps_bids.outputs.labels import LABEL_COLUMNS
from hyps_bids.outputs.names import SEG_PREFIX, sidecar_path
from hyps_bids.outputs.reading import read_json_object, read_table
from hyps_bids.outputs.writing import write_json, write_table, write_template

#: The derivatives dataset with the labels, below the raw dataset.
LABELS = Path("derivatives", "manual")
_LABEL_TABLE = LABELS / f"{SEG_PREFIX}_dseg.tsv"
_README = "import_readme.md.jinja"
#: Differs between versions of this program, but not between datasets.
_NOT_COMPARED = "GeneratedBy"
_PARTICIPANT_COLUMNS = {
    "source_id": "Name of the participant in the source.",
    "split": "Part of the dataset that the participant belongs to.",
}


@dataclass(frozen=True)
class ImportedDataset:
    """An imported dataset with its labels, as a whole."""

    output: Path
    about: Preset
    #: The table of labels, as from :func:`hyps_bids.outputs.labels.label_table`
    label_table: pd.DataFrame
    #: The images are crops around one hippocampus each.
    crops: bool

    def check(self) -> None:
        """Refuse an output folder that holds anything but an import of the same dataset."""
        output = self.output
        try:
            occupied = output.exists() and any(output.iterdir())
        except OSError as error:
            raise CannotCreateOutput(
                f"{output}: the folder cannot be used ({error.strerror}).",
                code="output-folder-unusable",
            ) from error
        if not occupied:
            return
        for path, content in self._descriptions().items():
            before = read_earlier(path)
            if before is None and path.parent == output:
                raise CannotCreateOutput(
                    f"{output}: the folder is not empty and not a dataset. Choose another folder.",
                    code="output-not-a-dataset",
                )
            if before is not None and _compared(before) != _compared(content):
                raise CannotCreateOutput(
                    f"{path}: describes another dataset. Choose another folder.",
                    code="output-of-other-dataset",
                )
        table = output / _LABEL_TABLE
        names = self.label_table["name"].tolist()
        if table.is_file() and read_table(table)["name"].tolist() != names:
            raise CannotCreateOutput(
                f"{table}: names other labels. Choose another folder.",
                code="other-labels-in-output",
            )

    def write(self) -> None:
        """Write descriptions, table of labels and README files of both datasets."""
        for path, content in self._descriptions().items():
            write_json(path, content)
        table = self.output / _LABEL_TABLE
        write_table(table, self.label_table)
        write_json(sidecar_path(table), described(LABEL_COLUMNS))
        values = {
            "about": self.about,
            "labels": LABELS.as_posix(),
            "label_table": _LABEL_TABLE.name,
            "crops": self.crops,
        }
        for folder, of_labels in ((self.output, False), (self.output / LABELS, True)):
            values["of_labels"] = of_labels
            write_template(folder / "README.md", "hyps_bids.labels", _README, values)

    def write_participants(self, rows: Sequence[Row]) -> None:
        """Write participants.tsv, including participants of earlier imports."""
        path = self.output / "participants.tsv"
        people: dict[str, dict[str, Any]] = {}
        if path.is_file():
            people = {p["participant_id"]: p for p in read_table(path).to_dict("records")}
        for row in rows:
            people[row.subject] = {
                "participant_id": row.subject,
                "source_id": row.participant,
                "split": row.split,
            }
        frame = pd.DataFrame([people[name] for name in sorted(people)]).dropna(axis=1, how="all")
        write_table(path, frame)
        columns = {k: text for k, text in _PARTICIPANT_COLUMNS.items() if k in frame}
        write_json(sidecar_path(path), described(columns))

    def _descriptions(self) -> dict[Path, dict[str, Any]]:
        """Make the description of the raw dataset and that of the labels."""
        about = self.about
        generated = {
            "Name": "hyps-tools import",
            "Version": __version__,
            "Description": "Images and labels imported; nothing was resampled.",
        }
        raw: dict[str, Any] = {
            "Name": about.name,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "raw",
            "License": about.license,
        }
        if about.authors:
            raw["Authors"] = list(about.authors)
        if about.citation:
            raw["HowToAcknowledge"] = f"Cite {about.citation}"
        if about.links:
            raw["ReferencesAndLinks"] = list(about.links)
            raw["SourceDatasets"] = [{"URL": about.links[0]}]
        labels = raw | {
            "Name": f"Manual hippocampus labels of {about.name}",
            "DatasetType": "derivative",
            "SourceDatasets": [{"URL": "../.."}],
            "DatasetLinks": {"raw": "../.."},
            _NOT_COMPARED: [{"Name": "Manual segmentation"}, generated],
        }
        raw[_NOT_COMPARED] = [generated]
        if self.crops:
            raw["CropAroundHippocampus"] = labels["CropAroundHippocampus"] = True
        return {
            self.output / "dataset_description.json": raw,
            self.output / LABELS / "dataset_description.json": labels,
        }


def read_earlier(path: Path) -> dict[str, Any] | None:
    """Read a JSON file of an earlier import; None if there is none."""
    if not path.is_file():
        return None
    return read_json_object(path, error=CannotCreateOutput, hint="choose another folder")


def _compared(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != _NOT_COMPARED}
