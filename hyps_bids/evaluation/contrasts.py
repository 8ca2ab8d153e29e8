"""Agreement of the segmentations of several contrasts of one head with that of its T1w image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans

from hyps_bids.errors import MissingInput
from hyps_bids.evaluation.tables import head_name
from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.imaging.resample import resample
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.pipeline import Pipeline

_IMAGE = re.compile(r"(sub-[^_]+(?:_ses-[^_]+)?)_((?:.*_)?[A-Za-z0-9]+)\.nii(?:\.gz)?")

#: Brightness of fluid, gray and white matter of the contrasts that are made from T1w images.
SIMULATED: Mapping[str, tuple[float, float, float]] = {
    "T2w": (1.0, 0.6, 0.4),
    "FLAIR": (0.1, 0.7, 0.5),
    "PDw": (0.8, 0.75, 0.55),
    "inverted": (0.9, 0.6, 0.3),
}


class Session(NamedTuple):
    """The images of one session: its T1w image, and the others by contrast."""

    t1w: Path
    others: dict[str, Path]


def find_sessions(dataset: Path) -> list[Session]:
    """Find the sessions of a BIDS dataset that have a T1w image.

    A contrast is named by its suffix and by the entities besides participant and session. The T1w
    image is the one with the shortest name.

    Raises
    ------
    MissingInput
        If there is none.
    """
    sessions = []
    for folder in sorted({path.parent for path in dataset.glob("sub-*/**/anat/*.nii*")}):
        matches = [_IMAGE.fullmatch(path.name) for path in sorted(folder.iterdir())]
        found = {m[2]: folder / m[0] for m in matches if m}
        t1w = sorted((name for name in found if name.split("_")[-1] == "T1w"), key=len)
        if t1w:
            sessions.append(Session(found.pop(t1w[0]), found))
    if not sessions:
        raise MissingInput(
            f"{dataset}: there is no T1w image in sub-*/anat or sub-*/ses-*/anat", code="no-t1w"
        )
    return sessions


def evaluate_contrasts(
    pipeline: Pipeline, sessions: Iterable[Session], *, simulate: bool = False
) -> pd.DataFrame:
    """Compare the segmentation of each contrast with that of the T1w image of the same session.

    Images of a session must be aligned; their grids may differ, and results are compared on that of
    the T1w image.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    sessions : iterable of Session
        The images.
    simulate : bool
        Make the other contrasts from the T1w images with :func:`simulate_contrasts`.

    Returns
    -------
    pandas.DataFrame
        One row per image and side: id, contrast, hemi, dice, volume_mm3, reference_mm3 (that of the
        T1w image).
    """
    rows = []
    for session in sessions:
        t1w = conform(session.t1w)
        reference, voxel = pipeline.segment(t1w), float(abs(np.linalg.det(t1w.affine[:3, :3])))
        for contrast, image in _images(pipeline, session, t1w, simulate):
            labels = _segment_on(pipeline, image, t1w)
            for value, hemi in enumerate(HEMISPHERES, start=1):
                ours, theirs = labels == value, reference == value
                row = {"id": head_name(session.t1w), "contrast": contrast, "hemi": hemi}
                volumes = {"volume_mm3": ours.sum() * voxel, "reference_mm3": theirs.sum() * voxel}
                rows.append(row | {"dice": dice(ours, theirs)} | volumes)
    if not rows:
        raise MissingInput(
            "There is no other contrast than T1w in these sessions; --simulate makes some",
            code="no-other-contrast",
        )
    return pd.DataFrame(rows)


def simulate_contrasts(
    image: ConformedImage, brain: np.ndarray
) -> Iterator[tuple[str, ConformedImage]]:
    """Make images of other contrasts from a T1w image.

    Intensities are mapped so that fluid, gray and white matter take the brightness of
    :data:`SIMULATED`; air stays dark.

    Parameters
    ----------
    image : ConformedImage
        T1w image.
    brain : numpy.ndarray
        Boolean mask of the intracranial space, same shape.

    Yields
    ------
    (str, ConformedImage)
        Name of the contrast and image.
    """
    lowest = float(image.data.min())
    seen = image.data[brain & (image.data > lowest)]
    levels = np.sort(
        KMeans(3, random_state=0, n_init=4).fit(seen[::50, None]).cluster_centers_[:, 0]
    )
    for name, brightness in SIMULATED.items():
        mapped = 1000 * np.interp(image.data, [lowest, *levels], [0.0, *brightness])
        yield name, replace(image, data=mapped.astype(np.float32))


def _images(
    pipeline: Pipeline, session: Session, t1w: ConformedImage, simulate: bool
) -> Iterator[tuple[str, ConformedImage]]:
    if not simulate:
        for contrast, path in session.others.items():
            yield contrast, conform(path)
        return
    found = pipeline.run(t1w).localization
    inside = resample(found.intracranial, found.affine, t1w.data.shape, t1w.affine)
    yield from simulate_contrasts(t1w, inside > 0.5)


def _segment_on(pipeline: Pipeline, image: ConformedImage, grid: ConformedImage) -> np.ndarray:
    """Label the hippocampi of an image on the grid of another: 1 left, 2 right."""
    where = (grid.data.shape, grid.affine)
    labels = np.zeros(grid.data.shape, dtype=np.uint8)
    sides = pipeline.segment_sides(image, dict.fromkeys(HEMISPHERES, where))
    for hemi, side in sides.items():
        labels[side.region][side.labels > 0] = HEMISPHERES.index(hemi) + 1
    return labels
