"""MONAI's SwinUNETR with faster attention, for boxes with sides divisible by 8.

The parameters have MONAI's names and shapes, so that checkpoints fit both.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetrUpBlock
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    SwinTransformerBlock,
    SwinUNETR,
    get_window_size,
)
from torch import nn

#: Axes of a batch of volumes that are places.
_SPACE = (2, 3, 4)


class Blocks(NamedTuple):
    """Blocks of tokens that attend to each other, all cut out of their windows in the same way."""

    #: Number of blocks in the volume.
    number: int
    #: Indices in the window of the tokens that are there, and of those that are padding.
    inside: torch.Tensor
    padding: torch.Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # What is remembered must also serve in training.
def cut_into_blocks(
    shape: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, list[Blocks]]:
    """Cut a volume along the borders of shifted windows and of the volume itself.

    Returns the indices of all tokens, block by block, and the blocks in the same order.
    """
    axes = [_segments(*axis) for axis in zip(shape, window, shift, strict=True)]
    alike: dict[tuple[tuple[int, int, int], ...], list[np.ndarray]] = {}
    for segments in product(*axes):
        index = _indices([(first, there) for first, _, there, _ in segments], shape)
        alike.setdefault(tuple(segment[1:] for segment in segments), []).append(index)
    blocks = []
    for kind, indices in alike.items():
        inside = _indices([(start, there) for start, there, _ in kind], window)
        whole = _indices([(start, length) for start, _, length in kind], window)
        there, padding = (
            torch.as_tensor(index, device=device) for index in (inside, np.setdiff1d(whole, inside))
        )
        blocks.append(Blocks(len(indices), there, padding))
    order = np.concatenate([index for indices in alike.values() for index in indices])
    return torch.as_tensor(order, device=device), blocks


def _indices(ranges: Iterable[tuple[int, int]], shape: tuple[int, ...]) -> np.ndarray:
    """Return the flat indices of a block, given by its start and length on each axis."""
    places = np.ix_(*(start + np.arange(length) for start, length in ranges))
    return np.ravel_multi_index(places, shape).ravel()


def _segments(side: int, window: int, shift: int) -> list[tuple[int, int, int, int]]:
    """Cut an axis: first place, first place in the window, tokens that are there, length."""
    padded = -(-side // window) * window
    segments = []
    for begin in range(0, padded, window):
        # The last window of a shifted axis joins its two ends, which do not see each other.
        is_joined = shift > 0 and begin + window == padded
        for start, end in pairwise((0, window - shift, window) if is_joined else (0, window)):
            first = (begin + start + shift) % padded
            there = min(first + end - start, side) - first
            if there > 0:
                segments.append((first, start, there, end - start))
    return segments


class BlockAttention(nn.Module):
    """Attention within shifted windows that computes nothing for masked or padded tokens.

    It takes the place of the attention of MONAI's block, with its padding, shifting and cutting
    into windows, and equals it numerically (without dropout). Where MONAI masks a part of a window,
    the parts attend separately. All tokens of the padding have the same key and value, so that one
    token stands for them; its bias is the logarithm of the sum of their exponentials. Attention
    matrices are never materialized. The parameters are taken over under the same names.

    See Liu et al. 2021, Swin Transformer, https://arxiv.org/abs/2103.14030.
    """

    relative_position_index: torch.Tensor

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        attention = block.attn
        self.window_size, self.shift_size = tuple(block.window_size), tuple(block.shift_size)
        self.num_heads = attention.num_heads
        self.scale = attention.scale
        self.qkv = attention.qkv
        self.proj = attention.proj
        self.relative_position_bias_table = attention.relative_position_bias_table
        # The index follows from the window size alone, so it is not saved.
        index = attention.get_buffer("relative_position_index")
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens of shape ``(batch, x, y, z, channels)`` to the same shape."""
        n, *shape, channels = x.shape
        window, shift = get_window_size(shape, self.window_size, self.shift_size)
        order, blocks = cut_into_blocks(tuple(shape), window, shift, x.device)
        tokens = self._heads(x.flatten(1, 3).index_select(1, order))
        nothing = self._heads(x.new_zeros(1, 1, channels))
        parts = tokens.split([b.number * len(b.inside) for b in blocks], dim=3)
        out = [self._attend(*pair, nothing) for pair in zip(blocks, parts, strict=True)]
        together = self.proj(torch.cat(out, dim=1))
        return together.index_select(1, order.argsort()).view(n, *shape, channels)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """Compute queries, keys and values, shape ``(3, batch, heads, tokens, channels)``."""
        n, count, _ = x.shape
        return self.qkv(x).view(n, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)

    def _attend(self, blocks: Blocks, part: torch.Tensor, nothing: torch.Tensor) -> torch.Tensor:
        """Attend within each block; return ``(batch, tokens, channels)``."""
        _, n, heads, count, width = part.shape
        size = len(blocks.inside)
        # Several batches of blocks are one batch.
        q, k, v = part.unflatten(3, (blocks.number, size)).transpose(2, 3).flatten(1, 2)
        bias = self._bias(blocks.inside, blocks.inside)
        if len(blocks.padding):
            rest = self._bias(blocks.inside, blocks.padding).logsumexp(-1, keepdim=True)
            bias = torch.cat((bias, rest), dim=-1)
            shape = (len(k), heads, 1, width)
            k, v = (
                torch.cat((own, one.expand(shape)), dim=2)
                for own, one in zip((k, v), nothing[1:], strict=True)
            )
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias[None].to(q.dtype), scale=self.scale
        )
        return out.transpose(1, 2).reshape(n, count, heads * width)

    def _bias(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Look the bias up of each pair of tokens, shape ``(heads, queries, keys)``."""
        index = self.relative_position_index[queries[:, None], keys]
        return self.relative_position_bias_table[index].permute(2, 0, 1)


class _Block(SwinTransformerBlock):
    """A block whose attention cuts the volume by itself."""

    def forward_part1(self, x: torch.Tensor, mask_matrix: None) -> torch.Tensor:
        return self.attn(self.norm1(x))


class _Stage(BasicLayer):
    """A stage that computes no masks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.movedim(1, -1)
        for block in self.blocks:
            x = block(x, None)
        assert self.downsample is not None
        return self.downsample(x).movedim(-1, 1)


class _Standardize(torch.autograd.Function):
    """Instance normalization without a change of the order of axes in memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> torch.Tensor:
        mean = x.mean(_SPACE, keepdim=True)
        y = x - mean
        scale = (y.square().mean(_SPACE, keepdim=True) + eps).rsqrt()
        # The result is not saved, because the activation after it works in place.
        ctx.save_for_backward(x, mean, scale)
        return y.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, mean, scale = ctx.saved_tensors
        y = (x - mean).mul_(scale)
        slope = (gradient * y).mean(_SPACE, keepdim=True)
        constant = gradient.mean(_SPACE, keepdim=True)
        return (gradient - constant).addcmul_(y, slope, value=-1).mul_(scale), None


class _InstanceNorm(nn.InstanceNorm3d):
    """PyTorch's normalization copies volumes whose channels come last, on the CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Standardize.apply(x, self.eps) if x.is_cpu else super().forward(x)


class _UpBlock(UnetrUpBlock):
    """An up-sampling block that crops the up-sampled map to the skip connection.

    On the CPU, a map that needs no cropping is never made: the transposed convolution and the
    convolution after it are one transposed convolution, with a third of the operations. The skip
    connection has a convolution of its own, so that no gradient is computed for a frozen one.
    """

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        block = self.conv_block
        is_double = [2 * side for side in x.shape[2:]] == [*skip.shape[2:]]
        # Joining the weights of deep, small maps costs more than it saves.
        if not (x.is_cpu and is_double and x[0, 0].numel() > 10 * x.shape[1]):
            x = self.transp_conv(x)[(..., *map(slice, skip.shape[2:]))]
            return block(torch.cat((x, skip), dim=1))
        out = block.lrelu(block.norm1(self._convolve(block.conv1.conv.weight, x, skip)))
        out = block.norm2(block.conv2(out))
        residual = block.norm3(self._convolve(block.conv3.conv.weight, x, skip))
        return block.lrelu(out + residual)

    def _convolve(self, weight: torch.Tensor, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Convolve the up-sampled map and the skip connection."""
        up = self.transp_conv.conv.weight
        radius = weight.shape[-1] // 2
        on_map, on_skip = weight.tensor_split([up.shape[1]], dim=1)
        both = F.conv3d(up, on_map, padding=2 * radius)
        convolve = partial(F.conv3d, padding=radius) if radius else _mix_channels
        return F.conv_transpose3d(x, both, stride=2, padding=radius) + convolve(skip, on_skip)


class _Pointwise(nn.Conv3d):
    """A convolution with a kernel of one voxel, for which the CPU has no fast code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _mix_channels(x, self.weight, self.bias) if x.is_cpu else super().forward(x)


def _mix_channels(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


#: MONAI's and PyTorch's classes, and ours that take their place.
_OURS: dict[type[nn.Module], type[nn.Module]] = {
    BasicLayer: _Stage,
    SwinTransformerBlock: _Block,
    UnetrUpBlock: _UpBlock,
    nn.InstanceNorm3d: _InstanceNorm,
}


class HippocampusSwinUNETR(SwinUNETR):
    """SwinUNETR for boxes whose sides are multiples of 8 voxels.

    MONAI's network requires multiples of 32, but a hippocampus with its surroundings fits in
    40 × 56 × 40 mm, a third of the 64³ voxels that it would then cost. The patch merging already
    pads odd token grids, so it is enough to crop each up-sampled map to its skip connection.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 2, feature_size: int = 24) -> None:
        super().__init__(in_channels, out_channels, feature_size=feature_size, spatial_dims=3)
        for module in list(self.modules()):
            # The modules keep their parameters and names, and compute in another way.
            module.__class__ = _OURS.get(type(module), type(module))
            if isinstance(module, nn.Conv3d) and set(module.kernel_size) == {1}:
                module.__class__ = _Pointwise
            if isinstance(module, SwinTransformerBlock):
                module.add_module("attn", BlockAttention(module))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute class logits, shape ``(batch, out_channels, x, y, z)``."""
        if any(side % 8 for side in x.shape[2:]):
            raise ValueError(f"each side must be a multiple of 8 voxels, got {tuple(x.shape[2:])}")
        hidden = self.swinViT(x, self.normalize)
        out = self.encoder10(hidden[4])
        out = self.decoder5(out, hidden[3])
        out = self.decoder4(out, self.encoder4(hidden[2]))
        out = self.decoder3(out, self.encoder3(hidden[1]))
        out = self.decoder2(out, self.encoder2(hidden[0]))
        out = self.decoder1(out, self.encoder1(x))
        return self.out(out)
