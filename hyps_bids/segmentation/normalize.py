"""Scale intensities as the segmentation network expects them, in training and at inference."""

from __future__ import annotations

import torch

#: Largest absolute value of the result.
_LARGEST = 5.0
#: Smallest standard deviation, as a share of the largest absolute value; less is rounding error.
_SMALLEST = 1e-6


def standardize(x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Scale volumes to zero mean and unit variance inside a mask, and set the rest to zero.

    Parameters
    ----------
    x : torch.Tensor
        Volumes, shape ``(batch, 1, x, y, z)``.
    inside : torch.Tensor
        Boolean mask of the same shape.
    """
    weight = inside.to(x.dtype)
    count = weight.sum(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1)
    mean = (x * weight).sum(dim=(1, 2, 3, 4), keepdim=True) / count
    centered = (x - mean) * weight
    sd = (centered.square().sum(dim=(1, 2, 3, 4), keepdim=True) / count).sqrt()
    largest = (x * weight).abs().amax(dim=(1, 2, 3, 4), keepdim=True)
    least = (_SMALLEST * largest).clamp(min=torch.finfo(x.dtype).tiny)
    return (centered / torch.maximum(sd, least)).clamp(-_LARGEST, _LARGEST)
