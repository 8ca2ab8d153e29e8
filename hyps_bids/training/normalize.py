"""Scale batches of training images as :func:`hyps_bids.segmentation.segment.standardize` does."""

from __future__ import annotations

import torch

from hyps_bids.segmentation.segment import LARGEST_VALUE, SMALLEST_SD


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
    least = (SMALLEST_SD * largest).clamp(min=torch.finfo(x.dtype).tiny)
    return (centered / torch.maximum(sd, least)).clamp(-LARGEST_VALUE, LARGEST_VALUE)
