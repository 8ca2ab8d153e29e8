"""What the values of a label image mean, written in one line: ``165:L,166:R,*:-``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from nibabel.affines import apply_affine

from hyps_bids.errors import BadData, UsageError

__all__ = ["LabelMap", "Structure"]

#: hemisphere L or R, and part of the hippocampus
Structure = tuple[str, str]

_WHOLE = "hippocampus"
_SYNTAX = (
    "write VALUE:HEMISPHERE[:PART] with commas between, such as 1:L:anterior,2:L:posterior; VALUE "
    "is a whole number, 'mask' (the higher of two values) or '*' (all others), HEMISPHERE is L, R, "
    "LR (both, told apart by position) or - (not hippocampus)"
)


@dataclass(frozen=True)
class LabelMap:
    """Meaning of the values of a label image. Zero is always background.

    Attributes
    ----------
    text : str
        As written by the user.
    values : tuple of (int, str, str)
        Value, hemisphere (L, R or LR) and part.
    ignored : tuple of int
        Values that are there but are not hippocampus.
    others_ignored : bool
        All values that are not named are ignored; otherwise they are an error.
    mask : tuple of (str, str) or None
        Hemisphere and part of the higher of the two values that a mask has.
    """

    text: str
    values: tuple[tuple[int, str, str], ...] = ()
    ignored: tuple[int, ...] = ()
    others_ignored: bool = False
    mask: Structure | None = None

    @classmethod
    def parse(cls, text: str) -> LabelMap:
        """Read a map.

        Raises
        ------
        UsageError
            If it is not written as it should be.

        Examples
        --------
        >>> LabelMap.parse("165:L,166:R,*:-").values
        ((165, 'L', 'hippocampus'), (166, 'R', 'hippocampus'))
        >>> LabelMap.parse("mask:LR").mask
        ('LR', 'hippocampus')
        """
        values: list[tuple[int, str, str]] = []
        ignored: list[int] = []
        others, mask = False, None
        for item in text.split(","):
            value, _, meaning = item.strip().partition(":")
            hemi, _, part = meaning.partition(":")
            part = part or _WHOLE
            if hemi not in ("L", "R", "LR", "-") or not part.replace("-", "").isalnum():
                raise UsageError(
                    f"label map {text!r}: {item.strip()!r} is not understood; {_SYNTAX}"
                )
            if value == "*" and hemi == "-":
                others = True
            elif value == "mask" and hemi != "-":
                mask = (hemi, part)
            elif value.isdigit() and int(value) > 0:
                if hemi == "-":
                    ignored.append(int(value))
                else:
                    values.append((int(value), hemi, part))
            else:
                raise UsageError(
                    f"label map {text!r}: {item.strip()!r} is not understood; {_SYNTAX}"
                )
        named = [value for value, _, _ in values] + ignored
        if len(set(named)) < len(named) or not (values or mask) or (mask and (named or others)):
            raise UsageError(
                f"label map {text!r}: each value once, a hippocampus among them, and a mask alone"
            )
        return cls(text, tuple(values), tuple(ignored), others, mask)

    @property
    def structures(self) -> tuple[Structure, ...]:
        """Every hemisphere and part that the map can give, in order."""
        pairs = [(hemi, part) for _, hemi, part in self.values] + ([self.mask] if self.mask else [])
        return tuple(dict.fromkeys((side, part) for sides, part in pairs for side in sides))

    def apply(self, data: np.ndarray, affine: np.ndarray) -> dict[Structure, np.ndarray]:
        """Find the structures in a label image.

        Parameters
        ----------
        data : numpy.ndarray
            Values, shape ``(x, y, z)``.
        affine : numpy.ndarray
            Voxel to world, shape (4, 4); tells left from right where the map says LR.

        Returns
        -------
        dict of (str, str) to numpy.ndarray
            Hemisphere and part → boolean voxels; none that is empty.

        Raises
        ------
        BadData
            If there are values that the map does not name, or the sides cannot be told apart. The
            message does not name the file.

        Examples
        --------
        >>> found = LabelMap.parse("1:L,2:R").apply(np.array([[[0, 1, 2, 2]]]), np.eye(4))
        >>> {structure: int(voxels.sum()) for structure, voxels in found.items()}
        {('L', 'hippocampus'): 1, ('R', 'hippocampus'): 2}
        """
        present = np.unique(data)
        if not np.isfinite(present).all():
            raise BadData("has values that are not finite")
        found: dict[Structure, np.ndarray] = {}
        for voxels, sides, part in self._regions(data, present):
            parted = _by_side(voxels, affine) if sides == "LR" else {sides: voxels}
            for side, there in parted.items():
                if there.any():
                    found[side, part] = found.get((side, part), False) | there
        if not found:
            raise BadData(f"has no voxel of a hippocampus under the label map {self.text}")
        return found

    def _regions(self, data: np.ndarray, present: np.ndarray) -> list[tuple[np.ndarray, str, str]]:
        """Voxels, sides and part of every item of the map."""
        if self.mask:
            # some releases store masks with an offset: 26896.988 and 26897.988, for example
            if len(present) != 2:
                raise BadData(f"has {len(present)} values ({_some(present)}), which is not a mask")
            return [(data == present[1], *self.mask)]
        whole = np.rint(present)
        if np.abs(present - whole).max() > 1e-3:
            raise BadData(f"has values that are not whole numbers ({_some(present)})")
        known = {0, *self.ignored, *(value for value, _, _ in self.values)}
        unknown = [value for value in whole if value not in known]
        if unknown and not self.others_ignored:
            raise BadData(
                f"has the values {_some(unknown)}, which the label map {self.text} does not name; "
                "add them, or ',*:-' for what is not hippocampus"
            )
        rounded = np.rint(data)
        return [(rounded == value, sides, part) for value, sides, part in self.values]


def _by_side(voxels: np.ndarray, affine: np.ndarray) -> dict[str, np.ndarray]:
    """Part a mask of both hippocampi in left and right by the world position of its pieces."""
    if not voxels.any():
        return {}
    pieces, count = scipy.ndimage.label(voxels, structure=np.ones((3, 3, 3)))
    x = [apply_affine(affine, np.argwhere(pieces == i + 1))[:, 0] for i in range(count)]
    middle = (min(side.min() for side in x) + max(side.max() for side in x)) / 2
    left = [i + 1 for i in range(count) if x[i].mean() < middle]
    sides = {"L": np.isin(pieces, left), "R": voxels & ~np.isin(pieces, left)}
    sizes = sorted(int(side.sum()) for side in sides.values())
    if sizes[0] * 4 < sizes[1]:
        raise BadData(
            f"has {sizes[0]} and {sizes[1]} voxels left and right of its middle: the two "
            "hippocampi cannot be told apart; use a label image with a value for each"
        )
    return sides


def _some(values: np.ndarray | list[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:6])
    return shown + (", …" if len(values) > 6 else "")
