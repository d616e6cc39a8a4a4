"""Swin (Liu et al. 2021): a Transformer within windows of an image, in stages of ever coarser grids.

    x = LN(Conv(images));  per stage: x = layers(x), then x = LN([2 x 2 tokens]) W but for the last stage
    layer:  x = x + Attention(windows of LN(x));  x = x + W2 act(W1 LN(x));  every second one shifts the windows
    logits = mean over the tokens of LN(x) · W + b

The attention adds a learned bias for every offset between two tokens of a window, one per head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np

from .. import _random
from ..nn import Conv2d, Dropout, LayerNorm, Linear, Module, ModuleList
from ..nn._arrays import Array, array_module, shape_text
from ..nn._init import Initializer, check_size
from ..nn.module import Pullback
from ._files import blank
from ._images import ImageTransformer, Pair, as_pairs, checked_images, pair, resize_vjp, wide_sum
from ._pretrained import known_fields
from ._swin_layers import SwinStage
from ._transformer import ModelOutput, as_output_gradient, plus

_STAGE, _BLOCK = "encoder.layers.#.", "encoder.layers.#.blocks.#."
NAMES = {
    "embeddings.positions": "embeddings.position_embeddings", "embeddings.norm": "embeddings.norm",
    "embeddings.projection": "embeddings.patch_embeddings.projection", "norm": "layernorm",
    "stages.#.norm": f"{_STAGE}downsample.norm", "stages.#.reduction": f"{_STAGE}downsample.reduction",
    "stages.#.blocks.#.norm1": f"{_BLOCK}layernorm_before", "stages.#.blocks.#.norm2": f"{_BLOCK}layernorm_after",
    "stages.#.blocks.#.query": f"{_BLOCK}attention.self.query", "stages.#.blocks.#.key": f"{_BLOCK}attention.self.key",
    "stages.#.blocks.#.value": f"{_BLOCK}attention.self.value", "stages.#.blocks.#.bias": f"{_BLOCK}attention.self",
    "stages.#.blocks.#.out": f"{_BLOCK}attention.output.dense", "stages.#.blocks.#.fc2": f"{_BLOCK}output.dense",
    "stages.#.blocks.#.fc1": f"{_BLOCK}intermediate.dense",
}  # fmt: skip
IN_MEMORY = {
    "attention.q_proj": "attention.self.query", "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value", "attention.relative_position_bias": "attention.self",
    "attention.o_proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip


@dataclass
class SwinConfig:
    """Sizes of a Swin (tiny, 7 x 7 windows), under Hugging Face's names; num_labels 0: no head.

    image_size, patch_size: one number, or (height, width). image_size only sets the table of
    use_absolute_embeddings. drop_path_rate: of the last layer; it falls to 0 in the first.
    """

    image_size: int | Pair = 224
    patch_size: int | Pair = 4
    num_channels: int = 3
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1
    hidden_act: str = "gelu"
    use_absolute_embeddings: bool = False
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    num_labels: int = 1000

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths and num_heads must be of one length, got {self.depths} and {self.num_heads}")

    @property
    def grid(self) -> Pair:
        """Rows and columns of patches in an image of image_size."""
        (height, width), (rows, columns) = pair(self.image_size, "image_size"), pair(self.patch_size, "patch_size")
        return height // rows, width // columns

    def count_parameters(self) -> int:
        (rows, columns), dim, table = pair(self.patch_size, "patch_size"), self.embed_dim, 2 * self.window_size - 1
        total = (self.num_channels * rows * columns + 3) * dim
        total += self.use_absolute_embeddings * self.grid[0] * self.grid[1] * dim
        for k, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            inner = int(self.mlp_ratio * dim)
            layer = (4 * dim + 2 * inner) * dim + (3 * self.qkv_bias + 1) * dim + inner + dim + 4 * dim
            total += depth * (layer + table * table * heads)
            if k + 1 < len(self.depths):
                total += 8 * dim * dim + 8 * dim
                dim *= 2
        return total + 2 * dim + self.num_labels * (dim + 1)

    @classmethod
    def from_hf(cls, values: dict[str, Any]) -> SwinConfig:
        return cls(**known_fields(cls, as_pairs(values, "image_size", "patch_size", "depths", "num_heads")))

    def to_hf(self) -> dict[str, Any]:
        kind = "SwinForImageClassification" if self.num_labels else "SwinModel"
        return {**asdict(self), "model_type": "swin", "architectures": [kind]}


class SwinEmbeddings(Module):
    """images `[B, C, H, W]`, zeros added up to multiples of the patch -> `[B, patches, E]` and the grid."""

    def __init__(self, c: SwinConfig, dtype: Any) -> None:
        self.grid, self.channels, self.patch = c.grid, c.num_channels, pair(c.patch_size, "patch_size")
        self.projection = Conv2d(c.num_channels, c.embed_dim, self.patch, self.patch, dtype=dtype, rng=blank())
        self.norm, self.dropout = LayerNorm(c.embed_dim, dtype=dtype), Dropout(c.hidden_dropout_prob)
        shape = (1, self.grid[0] * self.grid[1], c.embed_dim)
        self.positions = Initializer(blank(), dtype).constant(0, *shape) if c.use_absolute_embeddings else None

    def run(self, images: Array) -> tuple[Array, Pair, Any]:
        """x, its rows and columns, and the gradient function dx -> (dimages,)."""
        given = getattr(images, "dtype", None)
        images = checked_images(images, self.channels, self.projection.weight.dtype)
        height, width = images.shape[2:]
        if not height or not width:
            raise ValueError(f"images must have a height and width of at least 1, got {shape_text(images.shape)}")
        zeros = [(0, 0), (0, 0), *((0, -n % p) for n, p in zip((height, width), self.patch, strict=True))]
        patches, pull_patches = self.projection.vjp(array_module(images).pad(images, zeros))
        shape, positions = patches.shape, self.positions
        x, pull_norm = self.norm.vjp(patches.reshape(*shape[:2], -1).swapaxes(1, 2))
        if positions is not None:
            places, pull_places = resize_vjp(positions.data[0], self.grid, shape[2:])
            x = x + places
        x, pull_dropout = self.dropout.vjp(x)

        def pull(dx: Array) -> tuple[Array]:
            (dx,) = pull_dropout(dx)
            if positions is not None:
                positions.add_grad(pull_places(wide_sum(dx, 0))[None])
            (dimages,) = pull_patches(pull_norm(dx)[0].swapaxes(1, 2).reshape(shape))
            return (dimages[:, :, :height, :width].astype(given, copy=False),)

        return x, shape[2:], pull


class Swin(ImageTransformer):
    """`model(images [B, C, H, W])` -> ModelOutput(logits [B, num_labels], last_hidden_state, pooler_output, ...).

    Any height and width: zeros are added to images, windows and squares where needed, as in Hugging Face's.
    hidden_states: what enters each stage, and last what enters the final norm; attentions: of the last layer of
    each stage, `[B * windows, heads, L, L]`; pooler_output: the mean over the tokens. The pullback takes dlogits
    (dpooler_output without a head), or a ModelOutput of gradients, and returns (dimages,).
    """

    Config = SwinConfig
    model_types: ClassVar[tuple[str, ...]] = ("swin",)
    in_memory: ClassVar[dict[str, str]] = IN_MEMORY
    prefix = "swin."
    ignored: ClassVar[str] = r"relative_position_index$|embeddings\.mask_token$"

    def __init__(self, config: SwinConfig, *, dtype: Any = np.float32, rng: Any = None) -> None:
        c = self.config = config
        self.embeddings = SwinEmbeddings(c, dtype)
        self.stages = ModuleList(SwinStage(c, k, dtype=dtype) for k in range(len(c.depths)))
        width = c.embed_dim * 2 ** (len(c.depths) - 1)
        self.norm = LayerNorm(width, c.layer_norm_eps, dtype=dtype)
        labels = check_size(c.num_labels, "num_labels", 0)
        self.classifier = Linear(width, labels, dtype=dtype, rng=blank()) if labels else None
        self.initialise(c.initializer_range, _random.default_rng() if rng is None else rng)

    def _names(self) -> dict[str, str]:
        return {ours: self.prefix + theirs for ours, theirs in NAMES.items()} | {"classifier": "classifier"}

    @classmethod
    def _fitted(cls, config: SwinConfig, weights: Mapping[str, Any]) -> SwinConfig:
        bias = weights.get("classifier.bias")
        return replace(config, num_labels=0 if bias is None else bias.size)

    def _run(self, images: Array, states: bool, weights: bool, *, gradients: bool) -> tuple[ModelOutput, Pullback]:
        x, grid, pull_embeddings = self.embeddings.run(images)
        entered, probs, pulls = [x], [], []
        stage: Any
        for stage in self.stages:
            x, grid, seen, pull_stage = stage.run(x, grid, weights, gradients)
            entered.append(x)
            probs.append(seen)
            pulls.append(pull_stage)
        y, pull_norm = self.norm.vjp(x)
        output = ModelOutput(last_hidden_state=y, hidden_states=tuple(entered) if states else None)
        output.attentions = tuple(probs) if weights else None
        output.pooler_output = (wide_sum(y, 1) / y.shape[1]).astype(y.dtype, copy=False)
        if self.classifier is not None:
            output.logits, pull_head = self.classifier.vjp(output.pooler_output)

        def pull(grad: Any) -> tuple[Array]:
            given = as_output_gradient(grad, "pooler_output" if self.classifier is None else "logits")
            if given.logits is not None and self.classifier is None:
                raise ValueError("gradient: the model gives no logits, so there is none to take, pass None")
            dy, dmean = given.last_hidden_state, given.pooler_output
            if given.logits is not None:
                dmean = plus(dmean, pull_head(given.logits)[0])
            if dmean is not None:
                dy = plus(dy, array_module(y).broadcast_to(dmean[:, None] / y.shape[1], y.shape))
            dstates = [None] * len(entered) if given.hidden_states is None else list(given.hidden_states)
            dx = plus(pull_norm(dy)[0], dstates[-1])
            for pull_stage, dstate in zip(reversed(pulls), reversed(dstates[:-1]), strict=True):
                dx = plus(pull_stage(dx), dstate)
            return pull_embeddings(dx)

        return output, Pullback(pull)
