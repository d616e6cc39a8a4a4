"""VGG (Simonyan and Zisserman 2015): blocks of 3 x 3 convolutions and ReLU, each block ending in 2 x 2 max pooling.

    x = blocks(images);  logits = W3 relu(W2 relu(W1 mean_7x7(x)))

Names are torchvision's: `features.#` counts convolutions, norms, activations and pools, `classifier.#` linears,
activations and dropouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from .. import _random
from ..nn import BatchNorm2d, Conv2d, Dropout, Linear, MaxPool2d, Module, ReLU, Sequential
from ..nn._arrays import Array, array_module, shape_text
from ..nn._init import check_size
from ..nn.module import Pullback
from ._files import Blank, blank
from ._images import checked_images
from ._pretrained import PretrainedModel, known_fields
from ._transformer import ModelOutput, as_output_gradient, plus

_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@dataclass
class VGGConfig:
    """Sizes of a VGG-16. channels, convolutions: of each block; num_labels 0: no classifier."""

    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    convolutions: tuple[int, ...] = _DEPTHS[16]
    batch_norm: bool = False
    num_channels: int = 3
    pooled_size: int = 7
    classifier_size: int = 4096
    dropout: float = 0.5
    num_labels: int = 1000

    @classmethod
    def of_depth(cls, depth: int, **changes: Any) -> VGGConfig:
        """VGG-11, 13, 16 or 19."""
        if depth not in _DEPTHS:
            raise ValueError(f"depth must be one of {tuple(_DEPTHS)}, got {depth!r}")
        return cls(convolutions=_DEPTHS[depth], **changes)

    def count_parameters(self) -> int:
        total, width = 0, self.num_channels
        for channels, count in zip(self.channels, self.convolutions, strict=True):
            total += 9 * (width + (count - 1) * channels) * channels + (1 + 2 * self.batch_norm) * count * channels
            width = channels
        if self.num_labels:
            sizes = (width * self.pooled_size**2, self.classifier_size, self.classifier_size, self.num_labels)
            total += sum((a + 1) * b for a, b in pairwise(sizes))
        return total

    @classmethod
    def from_hf(cls, values: dict[str, Any]) -> VGGConfig:
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**known_fields(cls, values | lists))

    def to_hf(self) -> dict[str, Any]:
        return {**asdict(self), "model_type": "vgg"}


class VGG(PretrainedModel):
    """`model(images [B, C, H, W])` -> ModelOutput(logits [B, num_labels], last_hidden_state [B, 512, H', W'], ...).

    Any size that leaves a pixel after the last block. last_hidden_state: the features; hidden_states: what leaves
    each block. `model.features` alone is a Sequential from images to features. The pullback takes dlogits
    (dfeatures without a classifier), or a ModelOutput of gradients, and returns (dimages,).
    """

    Config = VGGConfig
    model_types: ClassVar[tuple[str, ...]] = ("vgg",)

    def __init__(self, config: VGGConfig, *, dtype: Any = np.float32, rng: Any = None) -> None:
        c = self.config = config
        if not c.channels or len(c.channels) != len(c.convolutions):
            raise ValueError(f"channels and convolutions must be of one length, got {c.channels} and {c.convolutions}")
        blanks: dict[str, Any] = {"dtype": dtype, "rng": blank()}
        parts: list[Module] = []
        width = c.num_channels
        for channels, count in zip(c.channels, c.convolutions, strict=True):
            for _ in range(check_size(count, "convolutions")):
                parts.append(Conv2d(width, channels, 3, padding=1, **blanks))
                parts += [BatchNorm2d(channels, dtype=dtype)] if c.batch_norm else []
                parts.append(ReLU())
                width = channels
            parts.append(MaxPool2d(2))
        self.features = Sequential(*parts)
        self.classifier = None
        if check_size(c.num_labels, "num_labels", 0):
            inner = c.classifier_size
            self.classifier = Sequential(
                Linear(width * c.pooled_size**2, inner, **blanks), ReLU(), Dropout(c.dropout),
                Linear(inner, inner, **blanks), ReLU(), Dropout(c.dropout), Linear(inner, c.num_labels, **blanks),
            )  # fmt: skip
        self._initialise(_random.default_rng() if rng is None else rng)

    def _initialise(self, rng: np.random.Generator) -> None:
        """Convolutions N(0, 2 / (9 out_channels)) (He et al. 2015), linears N(0, 0.01²), as torchvision."""
        if isinstance(rng, Blank):
            return
        for parameter in self.parameters():
            if len(parameter.shape) > 1:
                std = 0.01 if len(parameter.shape) == 2 else (2 / (9 * parameter.shape[0])) ** 0.5
                parameter.data[...] = std * rng.standard_normal(parameter.shape)

    def _names(self) -> dict[str, str]:
        return {"features.#": "features.#", "classifier.#": "classifier.#"}

    @classmethod
    def _fitted(cls, config: VGGConfig, weights: Mapping[str, Any]) -> VGGConfig:
        bias = weights.get("classifier.6.bias")
        return replace(config, num_labels=0 if bias is None else bias.size)

    def __call__(self, images: Array, *, output_hidden_states: bool = False) -> ModelOutput:
        return self._run(images, output_hidden_states, gradients=False)[0]

    def vjp(self, images: Array, *, output_hidden_states: bool = False) -> tuple[ModelOutput, Pullback]:
        return self._run(images, output_hidden_states, gradients=True)

    def _run(self, images: Array, states: bool, *, gradients: bool) -> tuple[ModelOutput, Pullback]:
        given, smallest = getattr(images, "dtype", None), 2 ** len(self.config.channels)
        first: Any = self.features[0]
        x = checked_images(images, self.config.num_channels, first.weight.dtype)
        if min(x.shape[2:]) < smallest:
            raise ValueError(
                f"images must have a height and width of at least {smallest}, got [B, C, H, W] = {shape_text(x.shape)}"
            )
        pulls: list[Any] = []
        blocks: list[Array] = []
        for part in self.features:
            if gradients:
                x, pull_part = part.vjp(x)
                pulls.append(pull_part)
            else:
                x = part(x)
            if isinstance(part, MaxPool2d):
                blocks.append(x)
        output = ModelOutput(last_hidden_state=x, hidden_states=tuple(blocks) if states else None)
        if self.classifier is not None:
            pooled, pull_pooled = _average_vjp(x, self.config.pooled_size)
            output.logits, pull_head = self.classifier.vjp(pooled.reshape(len(x), -1))

        def pull(grad: Any) -> tuple[Array]:
            given_grad = as_output_gradient(grad, "last_hidden_state" if self.classifier is None else "logits")
            dx: Array = given_grad.last_hidden_state
            if given_grad.logits is not None:
                if self.classifier is None:
                    raise ValueError("gradient: the model gives no logits, so there is none to take, pass None")
                dx = plus(dx, pull_pooled(pull_head(given_grad.logits)[0].reshape(pooled.shape)))
            dstates = list(given_grad.hidden_states or [None] * len(blocks))
            for part, pull_part in zip(reversed(list(self.features)), reversed(pulls), strict=True):
                if isinstance(part, MaxPool2d):
                    dx = plus(dx, dstates.pop())
                (dx,) = pull_part(dx)
            return (dx.astype(given, copy=False),)

        return output, Pullback(pull)


def _average_vjp(x: Array, size: int) -> tuple[Array, Any]:
    """x `[B, C, H, W]` averaged to size x size (torch's AdaptiveAvgPool2d), and the gradient function."""
    if x.shape[2:] == (size, size):
        return x, lambda dy: dy
    wide = np.float64 if x.dtype == np.float64 else np.float32
    rows, columns = (array_module(x).asarray(_shares(size, n), dtype=wide) for n in x.shape[2:])

    def between(a: Array, image: Array, b: Array) -> Array:
        return (a @ image.astype(wide, copy=False) @ b).astype(image.dtype, copy=False)

    return between(rows, x, columns.T), lambda dy: between(rows.T, dy, columns)


@lru_cache(maxsize=64)
def _shares(new: int, old: int) -> np.ndarray:
    """`[new, old]`: cell i is the mean of old cells floor(i old / new) to ceil((i + 1) old / new)."""
    shares = np.zeros((new, old))
    for i in range(new):
        start, end = i * old // new, -(-(i + 1) * old // new)
        shares[i, start:end] = 1 / (end - start)
    return shares
