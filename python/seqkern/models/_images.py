"""What the vision models share: calls, checks of images, and position tables for grids of any size."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ..nn._arrays import Array, array_module, check_array, shape_text
from ..nn.module import Pullback
from ..ops.conv import each
from ._pretrained import PretrainedModel
from ._transformer import ModelOutput

Pair = tuple[int, int]


def pair(value: Any, name: str) -> Pair:
    """(height, width) from one number for both, or from two."""
    height, width = each("config", name, value, 2, 1)
    return height, width


def as_pairs(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """The values with JSON's lists under these names as tuples."""
    return values | {n: tuple(values[n]) for n in names if isinstance(values.get(n), list)}


class ImageTransformer(PretrainedModel):
    """The calls of a Transformer over images; a subclass gives `_run`, and `in_memory`: what transformers 5 calls
    parts in memory -> their names in files."""

    in_memory: ClassVar[dict[str, str]] = {}
    _run: Callable[..., tuple[ModelOutput, Pullback]]

    def _alias(self, key: str) -> str:
        for part, name in self.in_memory.items():
            key = key.replace(f".{part}.", f".{name}.")
        return key

    def __call__(
        self, images: Array, *, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> ModelOutput:
        return self._run(images, output_hidden_states, output_attentions, gradients=False)[0]

    def vjp(
        self, images: Array, *, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> tuple[ModelOutput, Pullback]:
        return self._run(images, output_hidden_states, output_attentions, gradients=True)


def checked_images(images: Any, channels: int, dtype: np.dtype[Any]) -> Array:
    """images in the model's dtype; they must be `[B, channels, H, W]`, in float32 or that dtype."""
    check_array(images, "images")
    if images.ndim != 4:
        raise ValueError(f"images must be [B, C, H, W], got {shape_text(images.shape)}")
    if images.shape[1] != channels:
        raise ValueError(f"images must have {channels} channels, got [B, C, H, W] = {shape_text(images.shape)}")
    if np.dtype(images.dtype) not in (np.dtype(np.float32), dtype):
        raise TypeError(f"images must be float32, normalised, for a model in {dtype}, got {images.dtype}")
    return images.astype(dtype, copy=False)


def wide_sum(x: Array, axis: Any) -> Array:
    """The sum over an axis, as gradients of parameters are: in float32 at least."""
    return x.sum(axis, dtype=np.float64 if x.dtype == np.float64 else np.float32)


def resize_vjp(table: Array, old: Pair, new: Pair) -> tuple[Array, Callable[[Array], Array]]:
    """A table `[old height * width, E]` for another grid, and the gradient function.

    Bicubic as torch's interpolate(mode="bicubic", align_corners=False): what lies outside repeats the edge.
    """
    if old == new:
        return table, lambda dy: dy
    dtype = np.float64 if table.dtype == np.float64 else np.float32
    rows, columns = (array_module(table).asarray(_bicubic(n, o), dtype) for n, o in zip(new, old, strict=True))
    y = _resampled(table.astype(dtype, copy=False), old, rows, columns).astype(table.dtype, copy=False)
    return y, lambda dy: _resampled(dy.astype(dtype, copy=False), new, rows.T, columns.T)


def _resampled(table: Array, grid: Pair, rows: Array, columns: Array) -> Array:
    height, width = grid
    tall = (rows @ table.reshape(height, -1)).reshape(len(rows), width, -1)
    return (columns @ tall).reshape(-1, table.shape[1])


@lru_cache(maxsize=64)
def _bicubic(new: int, old: int) -> np.ndarray:
    """`[new, old]`: how much of each old sample a new one takes (Keys 1981, a = -0.75)."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    first, a = np.floor(place), -0.75
    weights = np.zeros((new, old))
    for tap in (-1, 0, 1, 2):
        d = np.abs(place - first - tap)
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, (((d - 5) * d + 8) * d - 4) * a
        source = np.clip(first + tap, 0, old - 1).astype(int)
        np.add.at(weights, (np.arange(new), source), np.where(d <= 1, near, far))
    return weights
