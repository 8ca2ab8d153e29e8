"""MONAI's SwinUNETR with memory-efficient window attention, for boxes with sides divisible by 8.

The parameters have MONAI's names and shapes, so that checkpoints fit both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetrUpBlock
from monai.networks.nets.swin_unetr import SwinUNETR, WindowAttention
from torch import nn


class FusedWindowAttention(nn.Module):
    """Window attention that never materializes the attention matrices.

    It equals :class:`monai.networks.nets.swin_unetr.WindowAttention` (without dropout) numerically
    and, unlike MONAI's own flash option, also serves in training. Windows that share a shift mask
    share one bias of shape ``(1, num_heads, n, n)``, so that memory does not grow with the volume.
    The parameters of MONAI's module are taken over under the same names.

    See Liu et al. 2021, Swin Transformer, https://arxiv.org/abs/2103.14030.
    """

    relative_position_index: torch.Tensor

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.scale = attention.scale
        self.qkv = attention.qkv
        self.proj = attention.proj
        self.relative_position_bias_table = attention.relative_position_bias_table
        # The index follows from the window size alone, so it is not saved.
        index = attention.get_buffer("relative_position_index")
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend within windows: tokens ``(batch * windows, n, channels)`` to the same shape.

        The shift mask is additive, of shape ``(windows, n, n)``.
        """
        b, n, c = x.shape
        q, k, v = (
            self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        )
        index = self.relative_position_index[:n, :n]
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)[None].to(q.dtype)
        if mask is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        else:
            # The first row of a window's mask determines the others, so comparing it is enough.
            kinds, kind = torch.unique(mask[:, 0], dim=0, return_inverse=True)
            kind = kind.repeat(b // len(mask))
            parts, order = [], []
            for i in range(len(kinds)):
                windows = torch.nonzero(kind == i)[:, 0]
                shared = bias + mask[windows[0] % len(mask)].to(bias.dtype)
                parts.append(
                    F.scaled_dot_product_attention(
                        q[windows], k[windows], v[windows], attn_mask=shared, scale=self.scale
                    )
                )
                order.append(windows)
            out = torch.cat(parts)[torch.argsort(torch.cat(order))]
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class HippocampusSwinUNETR(SwinUNETR):
    """SwinUNETR for boxes whose sides are multiples of 8 voxels.

    MONAI's network requires multiples of 32, but a hippocampus with its surroundings fits in
    40 × 56 × 40 mm, a third of the 64³ voxels that it would then cost. The patch merging already
    pads odd token grids, so it is enough to crop each up-sampled map to its skip connection.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 2, feature_size: int = 24) -> None:
        super().__init__(in_channels, out_channels, feature_size=feature_size, spatial_dims=3)
        for module in list(self.modules()):
            attention = getattr(module, "attn", None)
            if isinstance(attention, WindowAttention):
                module.attn = FusedWindowAttention(attention)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute class logits, shape ``(batch, out_channels, x, y, z)``."""
        if any(side % 8 for side in x.shape[2:]):
            raise ValueError(f"each side must be a multiple of 8 voxels, got {tuple(x.shape[2:])}")
        hidden = self.swinViT(x, self.normalize)
        out = self.encoder10(hidden[4])
        out = _up(self.decoder5, out, hidden[3])
        out = _up(self.decoder4, out, self.encoder4(hidden[2]))
        out = _up(self.decoder3, out, self.encoder3(hidden[1]))
        out = _up(self.decoder2, out, self.encoder2(hidden[0]))
        out = _up(self.decoder1, out, self.encoder1(x))
        return self.out(out)


def _up(block: UnetrUpBlock, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """Apply MONAI's up-sampling block, cropping the up-sampled map to the skip connection."""
    x = block.transp_conv(x)[(..., *map(slice, skip.shape[2:]))]
    return block.conv_block(torch.cat((x, skip), dim=1))
