"""ViT (Dosovitskiy et al. 2021) and DeiT (Touvron et al. 2021): a pre-norm encoder over image patches.

    x = [class; distillation (DeiT); Conv(images)] + positions;  y = LN(layers(x));  logits = y_class W + b

A DeiT with two heads gives the mean of that of the class token and that of the distillation token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np

from .. import _random
from ..nn import Conv2d, Dropout, LayerNorm, Linear, Module, ModuleList, Tanh
from ..nn._arrays import Array, array_module, shape_text
from ..nn._init import Initializer, check_choice, check_size
from ..nn._residual import chain_vjp
from ..nn.module import Pullback
from ._files import blank
from ._images import ImageTransformer, Pair, as_pairs, checked_images, pair, resize_vjp, wide_sum
from ._pretrained import known_fields
from ._transformer import ACTIVATIONS, Layer, ModelOutput, as_output_gradient, plus, run_layers

_LAYER = "encoder.layer.#."
NAMES = {
    "embeddings.cls_token": "embeddings.cls_token",
    "embeddings.distillation_token": "embeddings.distillation_token",
    "embeddings.positions": "embeddings.position_embeddings",
    "embeddings.projection": "embeddings.patch_embeddings.projection",
    "layers.#.norm1": f"{_LAYER}layernorm_before", "layers.#.norm2": f"{_LAYER}layernorm_after",
    "layers.#.query": f"{_LAYER}attention.attention.query", "layers.#.key": f"{_LAYER}attention.attention.key",
    "layers.#.value": f"{_LAYER}attention.attention.value", "layers.#.out": f"{_LAYER}attention.output.dense",
    "layers.#.fc1": f"{_LAYER}intermediate.dense", "layers.#.fc2": f"{_LAYER}output.dense",
    "norm": "layernorm", "pooler": "pooler.dense",
}  # fmt: skip
HEADS = ("classifier", "cls_classifier", "distillation_classifier")
IN_MEMORY = {
    "attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip
POOLER_ACTIVATIONS: dict[str, Any] = {"tanh": Tanh, **ACTIVATIONS}


@dataclass
class ViTConfig:
    """Sizes of a ViT (base, 16 x 16 patches), under Hugging Face's names.

    image_size, patch_size: one number, or (height, width). num_labels 0: no head. model_type "deit": with a
    distillation token; distilled: with its head too. pooler: a dense layer on the class token; its size is
    pooler_output_size, or hidden_size. `from_pretrained` sees heads and pooler in the weights.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | Pair = 224
    patch_size: int | Pair = 16
    num_channels: int = 3
    qkv_bias: bool = True
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    num_labels: int = 1000
    model_type: str = "vit"
    distilled: bool = False
    pooler: bool = False

    @property
    def grid(self) -> Pair:
        """Rows and columns of patches in an image of image_size."""
        (height, width), (rows, columns) = pair(self.image_size, "image_size"), pair(self.patch_size, "patch_size")
        return height // rows, width // columns

    @property
    def tokens(self) -> int:
        """Tokens before the patches."""
        return 2 if self.model_type == "deit" else 1

    @property
    def pooler_size(self) -> int:
        return self.pooler_output_size or self.hidden_size

    def count_parameters(self) -> int:
        e, inner = self.hidden_size, self.intermediate_size
        rows, columns = pair(self.patch_size, "patch_size")
        patches = self.num_channels * rows * columns * e + e
        positions = (self.tokens + self.grid[0] * self.grid[1]) * e
        layer = (4 * e + 2 * inner) * e + (3 * self.qkv_bias + 1) * e + inner + e + 4 * e
        heads = (1 + self.distilled) * self.num_labels * (e + 1)
        pooler = self.pooler * self.pooler_size * (e + 1)
        return patches + self.tokens * e + positions + self.num_hidden_layers * layer + 2 * e + heads + pooler

    @classmethod
    def from_hf(cls, values: dict[str, Any]) -> ViTConfig:
        return cls(**known_fields(cls, as_pairs(values, "image_size", "patch_size")))

    def to_hf(self) -> dict[str, Any]:
        family = {"vit": "ViT", "deit": "DeiT"}[self.model_type]
        kind = "ForImageClassification" + "WithTeacher" * self.distilled if self.num_labels else "Model"
        values = asdict(self) | {"pooler_output_size": self.pooler_size, "architectures": [family + kind]}
        return {name: value for name, value in values.items() if name not in ("distilled", "pooler")}


class ViTEmbeddings(Module):
    """images `[B, C, H, W]` -> `[B, tokens + patches, E]`; a grid unlike the table's gets it resampled."""

    def __init__(self, c: ViTConfig, dtype: Any) -> None:
        init, e = Initializer(blank(), dtype), c.hidden_size
        self.grid, self.channels, self.patch = c.grid, c.num_channels, pair(c.patch_size, "patch_size")
        if 0 in self.grid:
            raise ValueError(f"image_size must be at least patch_size, got {c.image_size} and {c.patch_size}")
        self.cls_token = init.constant(0, 1, 1, e)
        self.distillation_token = init.constant(0, 1, 1, e) if c.tokens == 2 else None
        self.positions = init.constant(0, 1, c.tokens + self.grid[0] * self.grid[1], e)
        self.projection = Conv2d(c.num_channels, e, self.patch, self.patch, dtype=dtype, rng=blank())

    def vjp(self, images: Array) -> tuple[Array, Any]:
        given, table = images.dtype if hasattr(images, "dtype") else None, self.positions
        images = checked_images(images, self.channels, table.dtype)
        if any(size < p or size % p for size, p in zip(images.shape[2:], self.patch, strict=True)):
            raise ValueError(
                f"images must have a height and width that are multiples of the patch's {shape_text(self.patch)}, "
                f"got [B, C, H, W] = {shape_text(images.shape)}"
            )
        patches, pull_patches = self.projection.vjp(images)
        tokens = [t for t in (self.cls_token, self.distillation_token) if t is not None]
        n, shape = len(tokens), patches.shape
        places, pull_places = resize_vjp(table.data[0, n:], self.grid, shape[2:])
        x = array_module(patches).empty((shape[0], n + len(places), shape[1]), dtype=patches.dtype)
        for k, token in enumerate(tokens):
            x[:, k] = token.data[0, 0] + table.data[0, k]
        x[:, n:] = patches.reshape(*shape[:2], -1).swapaxes(1, 2) + places

        def pull(dx: Array) -> tuple[Array]:
            total = wide_sum(dx, 0)
            for k, token in enumerate(tokens):
                token.add_grad(total[None, None, k].copy())
            dplaces = pull_places(total[n:])
            table.add_grad(array_module(dx).concatenate([total[:n], dplaces])[None])
            (dimages,) = pull_patches(dx[:, n:].swapaxes(1, 2).reshape(shape))
            return (dimages.astype(given, copy=False),)

        return x, pull


class ViT(ImageTransformer):
    """`model(images [B, C, H, W])` -> ModelOutput(logits [B, num_labels], last_hidden_state, ...).

    Height and width may be any multiples of the patch's: the positions are resampled, the table stays as it is.
    The last of hidden_states is what enters the final norm, as in Hugging Face's. The pullback takes dlogits
    (dlast_hidden_state without a head), or a ModelOutput of gradients, and returns (dimages,).
    """

    Config = ViTConfig
    model_types: ClassVar[tuple[str, ...]] = ("vit", "deit")
    in_memory: ClassVar[dict[str, str]] = IN_MEMORY
    ignored: ClassVar[str] = r"embeddings\.mask_token$"

    def __init__(self, config: ViTConfig, *, dtype: Any = np.float32, rng: Any = None) -> None:
        c = self.config = config
        self.prefix = check_choice(c.model_type, "model_type", self.model_types) + "."
        if c.distilled and c.tokens == 1:
            raise ValueError("distilled must be False for model_type 'vit', which has no distillation token")
        blanks: dict[str, Any] = {"dtype": dtype, "rng": blank()}
        self.embeddings, self.dropout = ViTEmbeddings(c, dtype), Dropout(c.hidden_dropout_prob)
        self.layers = ModuleList(
            Layer(c.hidden_size, c.num_attention_heads, c.intermediate_size, activation=c.hidden_act,
                  eps=c.layer_norm_eps, norm_first=True, qkv_bias=c.qkv_bias, dropout=c.hidden_dropout_prob,
                  attention_dropout=c.attention_probs_dropout_prob, **blanks)
            for _ in range(c.num_hidden_layers)
        )  # fmt: skip
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps, dtype=dtype)
        self.pooler = Linear(c.hidden_size, c.pooler_size, **blanks) if c.pooler else None
        self.pooler_act = POOLER_ACTIVATIONS[check_choice(c.pooler_act, "pooler_act", tuple(POOLER_ACTIVATIONS))]()
        count = (1 + c.distilled) * bool(check_size(c.num_labels, "num_labels", 0))
        self.heads = ModuleList(Linear(c.hidden_size, c.num_labels, **blanks) for _ in range(count))
        self.initialise(c.initializer_range, _random.default_rng() if rng is None else rng)

    def _names(self) -> dict[str, str]:
        names = {ours: self.prefix + theirs for ours, theirs in NAMES.items()}
        for k, head in enumerate(HEADS[1:] if self.config.distilled else HEADS[:1]):
            names |= {f"heads.{k}.{kind}": f"{head}.{kind}" for kind in ("weight", "bias")}
        return names

    def _alias(self, key: str) -> str:
        return super()._alias(key.replace("layers.", "encoder.layer.", 1))

    @classmethod
    def _fitted(cls, config: ViTConfig, weights: Mapping[str, Any]) -> ViTConfig:
        labels = [len(weights[n]) for n in (f"{head}.bias" for head in HEADS) if n in weights and weights[n].ndim]
        distilled = f"{HEADS[2]}.weight" in weights
        pooler = any(key.endswith("pooler.dense.weight") for key in weights)
        return replace(config, num_labels=labels[0] if labels else 0, distilled=distilled, pooler=pooler)

    def _run(self, images: Array, states: bool, weights: bool, *, gradients: bool) -> tuple[ModelOutput, Pullback]:
        x, pull_embeddings = self.embeddings.vjp(images)
        x, pull_dropout = self.dropout.vjp(x)
        x, entered, probs, pull_layers = run_layers(
            self.layers, x, None, states=states, weights=weights, gradients=gradients
        )
        y, pull_norm = self.norm.vjp(x)
        output = ModelOutput(last_hidden_state=y, hidden_states=(*entered, x) if states else None)
        output.attentions = tuple(probs) if weights else None
        heads = [head.vjp(y[:, k]) for k, head in enumerate(self.heads)]
        if heads:
            output.logits = heads[0][0] if len(heads) == 1 else (heads[0][0] + heads[1][0]) / 2
        if self.pooler is not None:
            output.pooler_output, pull_pooler = chain_vjp(y[:, 0], self.pooler, self.pooler_act)

        def pull(grad: Any) -> tuple[Array]:
            given = as_output_gradient(grad, "logits" if heads else "last_hidden_state")
            self._check_gradient(given)
            dy = array_module(y).zeros(y.shape, dtype=y.dtype)
            if given.last_hidden_state is not None:
                dy += given.last_hidden_state
            if given.logits is not None:
                for k, (_, pull_head) in enumerate(heads):
                    dy[:, k] += pull_head(given.logits / len(heads))[0]
            if given.pooler_output is not None:
                dy[:, 0] += pull_pooler(given.pooler_output)[0]
            dstates = [None] * (len(self.layers) + 1) if given.hidden_states is None else list(given.hidden_states)
            dx = plus(pull_norm(dy)[0], dstates[-1])
            return pull_embeddings(*pull_dropout(pull_layers(dx, dstates)))

        return output, Pullback(pull)

    def _check_gradient(self, given: ModelOutput) -> None:
        for name, part in (("logits", len(self.heads)), ("pooler_output", self.pooler)):
            if getattr(given, name) is not None and not part:
                raise ValueError(f"gradient: the model gives no {name}, so there is none to take, pass None")
