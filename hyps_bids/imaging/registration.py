"""Affine registration of a head with a template, by what the localizer found and by intensities.

The middles of the intracranial space and of the hippocampi give rigid guesses. Masks of both,
compared at a coarse scale, give an affine that knows nothing of contrasts. Mutual information
inside the head refines it. World coordinates are RAS, mm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hyps_bids.imaging.resample import covered, resample, world_grid
from hyps_bids.imaging.roi import bounding_box, shifted
from hyps_bids.outputs.transforms import RAS_TO_LPS

#: Voxel sizes at which masks and intensities are compared, mm.
_MASKS, _INTENSITIES = 5.0, 2.5
#: Mm around the intracranial space that are compared, and that the template's space lies in.
_SCALP, _AROUND = 5.0, 20.0
#: All voxels this close to a hippocampus (mm) count in the refinement; of others, one in
#: ``_SPARSE ** 3``. Without this, the cortex decides, and the hippocampi fit worse.
_NEAR, _SPARSE = 25.0, 2
_BINS = 32
#: Percentiles in the head to which intensities are clipped.
_CLIP = 0.5, 99.5
#: Largest step at first and smallest step at last, in mm of the points that move most.
_FIRST_STEP, _LAST_STEP = 2.0, 1e-4
_ITERATIONS = 60
#: What ITK says where the images have too little in common; anything else is a failure.
_NO_OVERLAP = re.compile(
    "samples map outside|No valid points|PDF summed to zero|must have 1 or more points"
    # The joint histogram of no points.
    "|spacing is not supported"
)


class NotRegistered(Exception):
    """The optimizer found no overlap of the images."""


@dataclass(frozen=True)
class Head:
    """What the registration needs of an image of a head.

    Attributes
    ----------
    image, affine : numpy.ndarray
        Intensities, shape ``(x, y, z)``, and their voxel-to-world transform.
    inside : numpy.ndarray
        Intracranial probability or mask, shape ``(i, j, k)``.
    hippocampi : numpy.ndarray
        Probability or mask of the left and the right hippocampus, shape ``(2, i, j, k)``.
    grid : numpy.ndarray
        Voxel-to-world transform of these two.
    """

    image: np.ndarray
    affine: np.ndarray
    inside: np.ndarray
    hippocampi: np.ndarray
    grid: np.ndarray


@dataclass(frozen=True)
class Level:
    """A head on a world-aligned grid around its intracranial space, arrays of one shape.

    Attributes
    ----------
    image, inside : numpy.ndarray
        Intensities and intracranial probability, float32, shape ``(x, y, z)``.
    hippocampi : numpy.ndarray
        Probability of the left and the right hippocampus, float32, shape ``(2, x, y, z)``.
    covered : numpy.ndarray
        Where the field of view has voxels, boolean.
    affine : numpy.ndarray
        Voxel-to-world transform.
    """

    image: np.ndarray
    inside: np.ndarray
    hippocampi: np.ndarray
    covered: np.ndarray
    affine: np.ndarray


def rigid_between(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Find the rigid transform that brings points closest to others.

    Two points are turned by the smallest angle that brings their directions together; one is
    shifted.

    Parameters
    ----------
    places, others : numpy.ndarray
        Corresponding points, shape ``(n, 3)``.

    Examples
    --------
    >>> turned = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> (np.round(rigid_between(np.eye(3), turned)[:3, :3], 6) + 0.0).tolist()
    [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    move = np.eye(4)
    middle, other = places.mean(axis=0), others.mean(axis=0)
    if len(places) > 2:
        move[:3, :3] = Rotation.align_vectors(others - other, places - middle)[0].as_matrix()
    elif len(places) == 2:
        turn = Rotation.align_vectors(others[1] - others[0], places[1] - places[0])[0]
        move[:3, :3] = turn.as_matrix()
    move[:3, 3] = other - move[:3, :3] @ middle
    return move


def rigid_guesses(template: Head, head: Head) -> list[np.ndarray]:
    """Guess how a head lies, by the middles of what both heads have.

    The intracranial space and the hippocampi together tell how a head is turned. Where the field of
    view cuts the head, the middle of the rest of it misleads, so another guess rests on the
    hippocampi alone and turns the head as little as possible.

    Parameters
    ----------
    template, head : Head
        Both with an intracranial space, and with at least one hippocampus that both have.

    Returns
    -------
    list of numpy.ndarray
        From the world of the template to that of the head, shape (4, 4) each.
    """
    places, others = _landmarks(template, head)
    return [rigid_between(places, others), rigid_between(places[1:], others[1:])]


def register(template: Head, head: Head, guess: np.ndarray) -> np.ndarray:
    """Register a head with a template.

    One thread computes it, without random numbers: the same images give the same transform.

    Parameters
    ----------
    template, head : Head
        What to register.
    guess : numpy.ndarray
        One of :func:`rigid_guesses`.

    Returns
    -------
    numpy.ndarray
        From the world of the template to that of the head, affine, shape (4, 4).

    Raises
    ------
    NotRegistered
        If the optimizer found no overlap.
    """
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    # Sums over several threads would differ in their last digits. The setting of the method itself
    # does not reach its metric.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        return _compare_intensities(template, head, _compare_masks(template, head, guess))
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def sample(head: Head, spacing: float, margin: float) -> Level:
    """Sample a head on a grid that holds its intracranial space and a margin, mm."""
    box = bounding_box(head.inside > 0.5)
    if box is None:
        raise ValueError("the intracranial space is empty")
    shape, grid = world_grid(
        [part.stop - part.start for part in box],
        shifted(head.grid, [part.start for part in box]),
        spacing,
    )
    more = int(np.ceil(margin / spacing))
    return sample_on(head, tuple(side + 2 * more for side in shape), shifted(grid, [-more] * 3))


def sample_on(head: Head, shape: tuple[int, ...], grid: np.ndarray) -> Level:
    """Sample a head on a grid with cubic voxels, which may be one of another world."""
    spacing = float(np.abs(np.linalg.det(grid[:3, :3]))) ** (1 / 3)
    air = float(head.image.min())
    image = resample(head.image, head.affine, shape, grid, outside=air, smooth=spacing)
    masks = [
        resample(_near(each, head.grid)[0], _near(each, head.grid)[1], shape, grid, smooth=spacing)
        for each in (head.inside, *head.hippocampi)
    ]
    seen = covered(head.image.shape, head.affine, shape, grid)
    return Level(_clip(image, masks[0], spacing), masks[0], np.stack(masks[1:]), seen, grid)


def _clip(image: np.ndarray, inside: np.ndarray, spacing: float) -> np.ndarray:
    """Clip intensities to those of nearly all of the head, as few extreme ones would decide."""
    used = ndimage.binary_dilation(inside > 0.5, iterations=int(_SCALP / spacing))
    return np.clip(image, *np.percentile(image[used], _CLIP)) if used.any() else image


def _near(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut a mask to its content: most of a whole image is outside."""
    box = bounding_box(mask > 0, margin=2)
    if box is None:
        return np.zeros((2, 2, 2), np.float32), affine
    return mask[box].astype(np.float32), shifted(affine, [part.start for part in box])


def _landmarks(template: Head, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Find the middles of what both heads have: intracranial space and hippocampi."""
    places = []
    for one, other in zip(
        (template.inside, *template.hippocampi), (head.inside, *head.hippocampi), strict=True
    ):
        if one.any() and other.any():
            places.append((_middle(one, template.grid), _middle(other, head.grid)))
    a, b = np.array(places).transpose(1, 0, 2)
    return a, b


def _middle(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    near, there = _near(mask, affine)
    point: np.ndarray = apply_affine(there, np.array(ndimage.center_of_mass(near)))
    return point


def _compare_masks(template: Head, head: Head, move: np.ndarray) -> np.ndarray:
    """Fit the intracranial spaces and, within them, the hippocampi."""
    fixed, moving = sample(template, _MASKS, _SCALP), sample(head, _MASKS, _AROUND)
    images = [each.inside + each.hippocampi.sum(axis=0) for each in (fixed, moving)]
    middle = _middle(template.inside, template.grid)
    method = _method(*_masks(np.ones_like(fixed.covered), fixed, moving), _FIRST_STEP)
    method.SetMetricAsMeanSquares()
    return _optimize(method, _itk(images[0], fixed), _itk(images[1], moving), move, middle)


def _compare_intensities(template: Head, head: Head, move: np.ndarray) -> np.ndarray:
    """Maximize the mutual information inside the head, above all near the hippocampi."""
    fixed, moving = sample(template, _INTENSITIES, _SCALP), sample(head, _INTENSITIES, _AROUND)
    inside = ndimage.binary_dilation(fixed.inside > 0.5, iterations=int(_SCALP / _INTENSITIES))
    found = fixed.hippocampi.max(axis=0) > 0.3
    near = ndimage.distance_transform_edt(~found) * _INTENSITIES < _NEAR
    near[::_SPARSE, ::_SPARSE, ::_SPARSE] = True
    middle = _middle(template.inside, template.grid)
    method = _method(*_masks(inside & near, fixed, moving), _FIRST_STEP / 4)
    method.SetMetricAsMattesMutualInformation(_BINS)
    return _optimize(method, _itk(fixed.image, fixed), _itk(moving.image, moving), move, middle)


def _masks(used: np.ndarray, fixed: Level, moving: Level) -> tuple[Any, Any]:
    """Make ITK's masks: what counts in the template, and where the head has voxels."""
    return (
        _itk((used & fixed.covered).astype(np.uint8), fixed),
        _itk(moving.covered.astype(np.uint8), moving),
    )


def _method(fixed_mask: Any, moving_mask: Any, first_step: float) -> Any:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetMetricFixedMask(fixed_mask)
    method.SetMetricMovingMask(moving_mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        first_step, _LAST_STEP, _ITERATIONS, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    return method


def _optimize(
    method: Any, fixed: Any, moving: Any, move: np.ndarray, middle: np.ndarray
) -> np.ndarray:
    """Improve a transform from the template's world to the head's."""
    import SimpleITK as sitk

    center = RAS_TO_LPS[:3, :3] @ middle
    there = RAS_TO_LPS @ move @ RAS_TO_LPS
    linear = there[:3, :3]
    transform = sitk.AffineTransform(3)
    transform.SetCenter(center.tolist())
    transform.SetMatrix(linear.ravel().tolist())
    transform.SetTranslation((there[:3, 3] + linear @ center - center).tolist())
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:
        if not _NO_OVERLAP.search(str(error)):
            raise
        raise NotRegistered(str(error).strip().splitlines()[-1]) from error
    found = np.eye(4)
    found[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    found[:3, 3] = np.array(transform.GetTranslation()) + center - found[:3, :3] @ center
    result: np.ndarray = RAS_TO_LPS @ found @ RAS_TO_LPS
    return result


def _itk(data: np.ndarray, level: Level) -> Any:
    """Turn an array on a world-aligned grid into an image of ITK."""
    import SimpleITK as sitk

    # ITK counts axes in reverse.
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(np.diag(level.affine)[:3].tolist())
    image.SetOrigin((RAS_TO_LPS @ level.affine)[:3, 3].tolist())
    image.SetDirection(RAS_TO_LPS[:3, :3].ravel().tolist())
    return image
