"""The picture of a scan in the space of a template: its outlines on the template."""

from __future__ import annotations

import numpy as np
from nibabel.affines import apply_affine

from hyps_bids.outputs.labels import HEMISPHERES, label_table
from hyps_bids.reports import pictures
from hyps_bids.reports.page import data_uri
from hyps_bids.reports.scan_images import Voxels
from hyps_bids.spaces.place import Outlines

#: Bytes of the picture of the template.
_LIMIT = 40_000
_STYLE = (
    "path{fill:none;stroke-width:1.5px;vector-effect:non-scaling-stroke}"
    ".bar{stroke:#fff;stroke-width:3px}"
    "text{fill:#fff;stroke:#000;stroke-width:.2em;paint-order:stroke;font-family:Arial,sans-serif}"
)


def draw_outlines(outlines: Outlines) -> str:
    """Draw slices of the template with the outlines of a scan's hippocampi and intracranial space.

    Parameters
    ----------
    outlines : Outlines
        Labels 1, 2, …, first those of the left hippocampus, then as many of the right one.

    Returns
    -------
    str
        A file in SVG that needs no other.
    """
    labels, affine = outlines.labels, outlines.affine
    parts = -(-int(labels.max()) // len(HEMISPHERES))
    table = label_table(tuple(map(str, range(parts))))
    centers = [
        apply_affine(affine, np.argwhere((labels > i * parts) & (labels <= (i + 1) * parts)))
        for i in range(len(HEMISPHERES))
    ]
    picture = pictures.overview(
        Voxels(outlines.template, affine),
        intracranial=Voxels(outlines.inside, affine),
        labels=Voxels(labels, affine),
        colors=dict(zip(table["index"], table["color"], strict=True)),
        centers=[points.mean(axis=0).tolist() for points in centers if len(points)],
    )
    image = data_uri(pictures.compress(picture.pixels, _LIMIT), "image/webp")
    height = picture.pixels.shape[0] * picture.width / picture.pixels.shape[1]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {picture.width} {picture.height}">'
        f"<style>{_STYLE}</style>"
        f'<image href="{image}" width="{picture.width}" height="{height:.0f}"/>'
        f"{picture.outline}{picture.marks}</svg>\n"
    )
