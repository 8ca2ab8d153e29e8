"""The networks as OpenVINO graphs, built from their weights for inputs of one shape.

OpenVINO computes them on a CPU in half the time of PyTorch, and a run that uses it imports neither
PyTorch nor MONAI. The layers and their names are those of MONAI's
:class:`~monai.networks.nets.BasicUNet` and :class:`~monai.networks.nets.SwinUNETR`; tests hold the
graphs to the same outputs. What depends on the shape alone, such as which voxels form a window, is
computed here with NumPy and becomes a constant of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hyps_bids.networks.openvino import ops, ov

#: Settings that MONAI's SwinUNETR has by default.
_HEADS, _DEPTH, _WINDOW, _MLP_RATIO = (3, 6, 12, 24), 2, 7, 4
#: Neighbors that are merged into one token, in the order of MONAI's ``PatchMerging``, which repeats
#: two of the eight and leaves out two.
_MERGED = (
    *((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
    *((1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
)
#: Added to the attention between tokens that the shift has made neighbors.
_APART = np.float32(-100)
_EPSILON = 1e-5
#: Largest side of the blocks of voxels that are averaged first.
_BLOCK = 8


def build_graph(
    architecture: str,
    arguments: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    shape: Sequence[int],
) -> ov.Model:
    """Build a network that computes class probabilities.

    Parameters
    ----------
    architecture : str
        ``BasicUNet`` or ``HippocampusSwinUNETR``.
    arguments : mapping of str to object
        The arguments that its PyTorch module is built with.
    state : mapping of str to numpy.ndarray
        All weights by name, float32, from :mod:`hyps_bids.networks.states`.
    shape : sequence of int
        Shape of the inputs, ``(batch, 1, x, y, z)``.

    Returns
    -------
    openvino.Model
        From float32 volumes to float32 probabilities, shape ``(batch, classes, x, y, z)``, sum 1.

    Raises
    ------
    ValueError
        If a tensor is missing, left over or of another shape.
    """
    x = ops.parameter(list(shape), np.float32)
    layers = _Layers(state)
    logits = _NETWORKS[architecture](layers, x, arguments)
    layers.finish()
    return ov.Model([ops.softmax(logits, axis=1)], [x], architecture)


class _Layers:
    """Layers whose weights are found by the names of PyTorch's modules."""

    def __init__(self, state: Mapping[str, np.ndarray]) -> None:
        self._state, self._unused = state, set(state)

    def finish(self) -> None:
        """Raise a ValueError if there are weights that no layer has used."""
        if self._unused:
            raise ValueError(
                f"{len(self._unused)} tensors are left over, first {min(self._unused)}"
            )

    def tensor(self, name: str, *shape: int) -> np.ndarray:
        """Return a tensor of a known shape; a ValueError names what is missing or does not fit."""
        found = self._state.get(name)
        if found is None or found.shape != shape:
            problem = "is missing" if found is None else f"has the shape {found.shape}"
            raise ValueError(f"{name} {problem}; its shape must be {shape}")
        self._unused.discard(name)
        return found

    def apply(self, x: Any, name: str, *shape: int, bias: bool = True, stride: int = 1) -> Any:
        """Apply a linear layer or a convolution, by the shape of its weight, and its adapter.

        The input of a convolution may be a list of maps, which count as one map with the channels
        of all. Each is convolved on its own, because the joined map would take much memory.
        """
        h = self._weigh(x, name, *shape, bias=bias, stride=stride)
        y = h
        for suffix, source, (outputs, *kernel), step in (
            ("_parallel", x, shape, stride),
            ("", h, (shape[0], shape[0], *[1] * len(shape[2:])), 1),
        ):
            down, up = f"{name}.down{suffix}", f"{name}.up{suffix}"
            if f"{down}.weight" in self._state:
                width = len(self._state[f"{down}.weight"])
                narrow = ops.relu(self._weigh(source, down, width, *kernel, stride=step))
                ones = [1] * len(shape[2:])
                y = ops.add(y, self._weigh(narrow, up, outputs, width, *ones))
        return y

    def _weigh(self, x: Any, name: str, *shape: int, bias: bool = True, stride: int = 1) -> Any:
        weight = self.tensor(f"{name}.weight", *shape)
        if len(shape) == 2:
            y = ops.matmul(x, _constant(weight), False, True)
        else:
            maps = x if isinstance(x, list) else [x]
            padding = [shape[-1] // 2 if stride == 1 else 0] * 3
            each = np.split(weight, np.cumsum([_channels(one) for one in maps])[:-1], axis=1)
            y, *others = (
                ops.convolution(one, _constant(part), [stride] * 3, padding, padding, [1] * 3)
                for one, part in zip(maps, each, strict=True)
            )
            for other in others:
                y = ops.add(y, other)
        if not bias:
            return y
        vector = self.tensor(f"{name}.bias", shape[0])
        return ops.add(y, vector if len(shape) == 2 else _per_channel(vector))

    def upsample(self, x: Any, name: str, outputs: int, *, bias: bool = False) -> Any:
        """Double the size by a transposed convolution."""
        weight = _constant(self.tensor(f"{name}.weight", _shape(x)[1], outputs, 2, 2, 2))
        zeros = [0] * 3
        y = ops.convolution_backprop_data(
            x, weight, [2] * 3, pads_begin=zeros, pads_end=zeros, dilations=[1] * 3
        )
        return ops.add(y, _per_channel(self.tensor(f"{name}.bias", outputs))) if bias else y

    def layer_norm(self, x: Any, name: str) -> Any:
        """Normalize the last axis, with trained scale and shift."""
        width = _shape(x)[-1]
        scale, shift = (self.tensor(f"{name}.{kind}", width) for kind in ("weight", "bias"))
        return ops.add(ops.multiply(_normalize_tokens(x), scale), shift)


def _basic_unet(layers: _Layers, x: Any, arguments: Mapping[str, Any]) -> Any:
    """Build MONAI's BasicUNet with instance norm, LeakyReLU(0.1) and transposed convolutions."""
    *features, last = arguments["features"]

    def two_convs(x: Any, name: str, outputs: int) -> Any:
        for i in range(2):
            block = f"{name}.conv_{i}"
            x = layers.apply(x, f"{block}.conv", outputs, _channels(x), 3, 3, 3)
            scale, shift = (
                _per_channel(layers.tensor(f"{block}.adn.N.{kind}", outputs))
                for kind in ("weight", "bias")
            )
            x = ops.add(ops.multiply(_normalize_map(x), scale), shift)
            x = ops.prelu(x, np.float32(0.1))
        return x

    skips = [two_convs(x, "conv_0", features[0])]
    for i in range(1, 5):
        pairs, zeros = [2] * 3, [0] * 3
        x = ops.max_pool(skips[-1], pairs, [1] * 3, zeros, zeros, pairs).output(0)
        skips.append(two_convs(x, f"down_{i}.convs", features[i]))
    x = skips.pop()
    for i in range(4, 0, -1):
        skip = skips.pop()
        halves = _shape(x)[1] // (2 if i > 1 else 1)
        x = layers.upsample(x, f"upcat_{i}.upsample.deconv", halves, bias=True)
        # MONAI repeats the last plane where pooling has dropped one.
        ends = [a - b for a, b in zip(_shape(skip), _shape(x), strict=True)]
        ends[1] = 0
        if any(ends):
            x = ops.pad(x, [0] * 5, ends, "edge")
        x = two_convs([skip, x], f"upcat_{i}.convs", features[i - 1] if i > 1 else last)
    return layers.apply(x, "final_conv", arguments["out_channels"], last, 1, 1, 1)


def _swin_unetr(layers: _Layers, x: Any, arguments: Mapping[str, Any]) -> Any:
    """Build :class:`~hyps_bids.networks.swin_unetr.HippocampusSwinUNETR`."""
    size = arguments["feature_size"]

    def residual(x: Any, name: str, outputs: int) -> Any:
        inputs = _channels(x)
        y = layers.apply(x, f"{name}.conv1.conv", outputs, inputs, 3, 3, 3, bias=False)
        y = ops.prelu(_normalize_map(y), np.float32(0.01))
        y = layers.apply(y, f"{name}.conv2.conv", outputs, outputs, 3, 3, 3, bias=False)
        y = _normalize_map(y)
        if inputs != outputs:
            x = layers.apply(x, f"{name}.conv3.conv", outputs, inputs, 1, 1, 1, bias=False)
            x = _normalize_map(x)
        return ops.prelu(ops.add(y, x), np.float32(0.01))

    hidden = _swin_transformer(layers, x, size)
    out = residual(hidden[4], "encoder10.layer", 16 * size)
    skips = {
        5: hidden[3],
        4: residual(hidden[2], "encoder4.layer", 4 * size),
        3: residual(hidden[1], "encoder3.layer", 2 * size),
        2: residual(hidden[0], "encoder2.layer", size),
        1: residual(x, "encoder1.layer", size),
    }
    for i, skip in skips.items():
        out = layers.upsample(out, f"decoder{i}.transp_conv.conv", _shape(skip)[1])
        out = [_crop(out, _shape(skip)[2:]), skip]
        out = residual(out, f"decoder{i}.conv_block", _shape(skip)[1])
    return layers.apply(out, "out.conv.conv", arguments["out_channels"], size, 1, 1, 1)


def _swin_transformer(layers: _Layers, x: Any, size: int) -> list[Any]:
    """Build MONAI's SwinTransformer; return the normalized maps of its five levels."""
    x = layers.apply(x, "swinViT.patch_embed.proj", size, _shape(x)[1], 2, 2, 2, stride=2)
    grid = tuple(_shape(x)[2:])
    tokens = _to_tokens(x)
    maps = [_to_map(_normalize_tokens(tokens), grid)]
    for level, heads in enumerate(_HEADS):
        name = f"swinViT.layers{level + 1}.0"
        for i in range(_DEPTH):
            tokens = _block(layers, tokens, grid, f"{name}.blocks.{i}", heads, shifted=i % 2 == 1)
        tokens, grid = _merge_tokens(layers, tokens, grid, f"{name}.downsample")
        maps.append(_to_map(_normalize_tokens(tokens), grid))
    return maps


def _block(
    layers: _Layers, x: Any, grid: Sequence[int], name: str, heads: int, *, shifted: bool
) -> Any:
    """Build a Swin transformer block on tokens, shape ``(batch, tokens, channels)``."""
    channels = _shape(x)[-1]
    window = [min(side, _WINDOW) for side in grid]
    shift = [_WINDOW // 2 if shifted and side > _WINDOW else 0 for side in grid]
    order = _window_order(grid, window, shift)
    # Windows that reach beyond the grid are filled with zeros, which are the last token.
    y = _append_zero(layers.layer_norm(x, f"{name}.norm1"))
    y = _take(y, order)
    y = _attend(layers, y, f"{name}.attn", heads, _separation(grid, window, shift))
    back = np.empty(order.max() + 1, np.int64)
    back[order.ravel()] = np.arange(order.size)
    y = ops.reshape(y, [-1, order.size, channels], False)
    x = ops.add(x, ops.gather(y, _constant(back[: int(np.prod(grid))]), 1))
    y = layers.layer_norm(x, f"{name}.norm2")
    y = layers.apply(y, f"{name}.mlp.linear1", _MLP_RATIO * channels, channels)
    y = layers.apply(ops.gelu(y, "erf"), f"{name}.mlp.linear2", channels, _MLP_RATIO * channels)
    return ops.add(x, y)


def _attend(layers: _Layers, x: Any, name: str, heads: int, separation: np.ndarray | None) -> Any:
    """Build window attention, from ``(batch, windows, n, channels)`` to the same shape."""
    batch, windows, n, channels = _shape(x)
    x = layers.apply(x, f"{name}.qkv", 3 * channels, channels)
    x = ops.reshape(x, [batch, windows, n, 3, heads, channels // heads], False)
    x = ops.transpose(x, [3, 0, 1, 4, 2, 5])
    q, k, v = (ops.gather(x, np.int64(i), np.int64(0)) for i in range(3))
    table = layers.tensor(f"{name}.relative_position_bias_table", (2 * _WINDOW - 1) ** 3, heads)
    bias = table[_relative_positions()[:n, :n]].transpose(2, 0, 1)
    scale = np.float32((channels // heads) ** -0.5)
    scores = ops.matmul(ops.multiply(q, scale), k, False, True)
    scores = ops.add(scores, _constant(bias))
    if separation is not None:
        scores = ops.add(scores, _constant(separation[:, None]))
    x = ops.matmul(ops.softmax(scores, axis=-1), v, False, False)
    x = ops.reshape(ops.transpose(x, [0, 1, 3, 2, 4]), [batch, windows, n, channels], False)
    return layers.apply(x, f"{name}.proj", channels, channels)


def _merge_tokens(
    layers: _Layers, x: Any, grid: Sequence[int], name: str
) -> tuple[Any, tuple[int, ...]]:
    """Build MONAI's ``PatchMerging``, which halves the grid and doubles the channels."""
    channels = _shape(x)[-1]
    pairs = _window_order(grid, [2, 2, 2], [0, 0, 0])
    order = pairs.reshape(-1, 2, 2, 2)[(slice(None), *np.transpose(_MERGED))]
    x = ops.reshape(_take(_append_zero(x), order), [-1, len(order), 8 * channels], False)
    x = layers.apply(
        layers.layer_norm(x, f"{name}.norm"),
        f"{name}.reduction",
        2 * channels,
        8 * channels,
        bias=False,
    )
    return x, tuple(-(-side // 2) for side in grid)


def _window_order(grid: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> np.ndarray:
    """List the tokens of each window, shape ``(windows, n)``; the first free index is a filler."""
    count = int(np.prod(grid))
    index = _padded(np.arange(count).reshape(grid), window, count)
    return _windows(np.roll(index, [-s for s in shift], (0, 1, 2)), window)


def _separation(
    grid: Sequence[int], window: Sequence[int], shift: Sequence[int]
) -> np.ndarray | None:
    """Return what keeps tokens apart that were not neighbors before the shift.

    The shape is ``(windows, n, n)``. See Liu et al. 2021, https://arxiv.org/abs/2103.14030,
    section 3.2, "Efficient batch computation for shifted configuration".
    """
    if not any(shift):
        return None
    sides = [-(-side // size) * size for side, size in zip(grid, window, strict=True)]
    regions = np.zeros(sides, np.int64)
    for axis, (side, size, step) in enumerate(zip(sides, window, shift, strict=True)):
        part = np.searchsorted([side - size, side - step], np.arange(side), side="right")
        regions = 3 * regions + np.expand_dims(part, [k for k in range(3) if k != axis])
    kinds = _windows(regions, window)
    return np.where(kinds[:, None] == kinds[:, :, None], np.float32(0), _APART)


def _relative_positions() -> np.ndarray:
    """Return the index of the offset between any two tokens of a window, shape ``(n, n)``."""
    where = np.indices([_WINDOW] * 3).reshape(3, -1)
    offset = where[:, :, None] - where[:, None] + _WINDOW - 1
    return np.ravel_multi_index(tuple(offset), [2 * _WINDOW - 1] * 3)


def _padded(index: np.ndarray, window: Sequence[int], filler: int) -> np.ndarray:
    ends = [(0, -side % size) for side, size in zip(index.shape, window, strict=True)]
    return np.pad(index, ends, constant_values=filler)


def _windows(values: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """Cut a grid into windows, shape ``(windows, n)``."""
    steps = tuple(slice(None, None, size) for size in window)
    return sliding_window_view(values, window)[steps].reshape(-1, int(np.prod(window)))


def _take(x: Any, order: np.ndarray) -> Any:
    """Gather tokens, from ``(batch, tokens, channels)`` to ``(batch, *order, channels)``."""
    return ops.gather(x, _constant(order), np.int64(1))


def _append_zero(x: Any) -> Any:
    return ops.pad(x, [0, 0, 0], [0, 1, 0], "constant", np.float32(0))


def _to_tokens(x: Any) -> Any:
    batch, channels, *grid = _shape(x)
    x = ops.reshape(x, [batch, channels, int(np.prod(grid))], False)
    return ops.transpose(x, [0, 2, 1])


def _to_map(tokens: Any, grid: Sequence[int]) -> Any:
    batch, _, channels = _shape(tokens)
    return ops.reshape(ops.transpose(tokens, [0, 2, 1]), [batch, channels, *grid], False)


def _crop(x: Any, sides: Sequence[int]) -> Any:
    if tuple(_shape(x)[2:]) == tuple(sides):
        return x
    return ops.slice(x, [0, 0, 0], list(sides), [1, 1, 1], [2, 3, 4])


def _normalize_tokens(x: Any) -> Any:
    """Scale the channels of each token to zero mean and unit variance."""
    return ops.mvn(x, np.array([-1]), True, _EPSILON, "inside_sqrt")


def _normalize_map(x: Any) -> Any:
    """Scale each channel to zero mean and unit variance.

    OpenVINO's own operation adds up all voxels one after the other in single precision, which costs
    three digits of the result. Here blocks are averaged first.
    """
    centered = ops.subtract(x, _spatial_mean(x))
    variance = _spatial_mean(ops.multiply(centered, centered))
    return ops.divide(centered, ops.sqrt(ops.add(variance, np.float32(_EPSILON))))


def _spatial_mean(x: Any) -> Any:
    block = [max(n for n in range(1, _BLOCK + 1) if side % n == 0) for side in _shape(x)[2:]]
    blocks = ops.avg_pool(x, block, [0] * 3, [0] * 3, block, exclude_pad=True)
    return ops.reduce_mean(blocks, np.array([2, 3, 4]), keep_dims=True)


def _per_channel(vector: np.ndarray) -> np.ndarray:
    return vector.reshape(1, -1, 1, 1, 1)


def _constant(array: np.ndarray) -> Any:
    # Arrays that are given to operations as they are would be turned into lists.
    return ops.constant(np.require(array, requirements=["C", "W"]), shared_memory=True)


def _channels(x: Any) -> int:
    """Count the channels of a map, or of several maps together."""
    return sum(_channels(one) for one in x) if isinstance(x, list) else _shape(x)[1]


def _shape(x: Any) -> list[int]:
    return list(x.shape) if isinstance(x, ov.Output) else list(x.output(0).shape)


_NETWORKS: dict[str, Callable[[_Layers, Any, Mapping[str, Any]], Any]] = {
    "BasicUNet": _basic_unet,
    "HippocampusSwinUNETR": _swin_unetr,
}
