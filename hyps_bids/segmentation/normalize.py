"""Intensities as the segmentation network wants them, in training and at inference alike."""

from __future__ import annotations

import torch

__all__ = ["standardize"]


def standardize(x: torch.Tensor, inside: torch.Tensor, clip: float = 5.0) -> torch.Tensor:
    """Scale to zero mean and unit variance inside a mask, clip, and set the rest to zero.

    Parameters
    ----------
    x : torch.Tensor
        Volumes, shape ``(batch, 1, x, y, z)``.
    inside : torch.Tensor
        Boolean mask of the same shape.
    clip : float
        Largest absolute value of the result.

    Returns
    -------
    torch.Tensor
        Same shape as `x`.
    """
    weight = inside.to(x.dtype)
    count = weight.sum(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1)
    mean = (x * weight).sum(dim=(1, 2, 3, 4), keepdim=True) / count
    centerd = (x - mean) * weight
    sd = (centerd.square().sum(dim=(1, 2, 3, 4), keepdim=True) / count).sqrt()
    return (centerd / sd.clamp(min=1e-6)).clamp(-clip, clip)
