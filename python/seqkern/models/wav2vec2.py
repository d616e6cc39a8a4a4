"""Wav2Vec2 (Baevski et al. 2020): a waveform through strided convolutions and a Transformer encoder.

    x = W LN(convs(sound)) + b;   x = x + gelu(long grouped convolution of x);   y = layers(LN(x))

With `do_stable_layer_norm` (the large models) the layers are pre-norm and the norm comes last. In training
only dropout acts: no layer drop, no dropout inside the MLP, no masked stretches of features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from .. import _random
from ..nn import Dropout, LayerNorm, Linear, ModuleList
from ..nn._arrays import Array, array_module, check_array, check_shape, shape_text
from ..nn._init import check_choice
from ..nn._residual import chain_vjp
from ..nn.module import Pullback
from ._files import blank
from ._pretrained import PretrainedModel, known_fields, refuse
from ._transformer import Layer, ModelOutput, as_output_gradient, plus, run_layers
from ._wav2vec_layers import ConvLayer, PositionalConv

POSITIONS = "encoder.pos_conv_embed.conv."
NAMES = {
    "convs.#.conv": "feature_extractor.conv_layers.#.conv",
    "convs.#.norm": "feature_extractor.conv_layers.#.layer_norm",
    "features_norm": "feature_projection.layer_norm", "projection": "feature_projection.projection",
    "positions.gain": f"{POSITIONS}parametrizations.weight.original0",
    "positions.direction": f"{POSITIONS}parametrizations.weight.original1",
    "positions.bias": f"{POSITIONS}bias", "norm": "encoder.layer_norm",
    "layers.#.query": "encoder.layers.#.attention.q_proj", "layers.#.key": "encoder.layers.#.attention.k_proj",
    "layers.#.value": "encoder.layers.#.attention.v_proj", "layers.#.out": "encoder.layers.#.attention.out_proj",
    "layers.#.norm1": "encoder.layers.#.layer_norm", "layers.#.norm2": "encoder.layers.#.final_layer_norm",
    "layers.#.fc1": "encoder.layers.#.feed_forward.intermediate_dense",
    "layers.#.fc2": "encoder.layers.#.feed_forward.output_dense",
}  # fmt: skip
HEADS = ("none", "ctc", "classification")


@dataclass
class Wav2Vec2Config:
    """Sizes of a Wav2Vec2, under Hugging Face's names; the defaults are the base model.

    head: "none", "ctc" (vocab_size logits per frame) or "classification" (num_labels per row).
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    final_dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    feat_extract_norm: str = "group"
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    head: str = "none"
    vocab_size: int = 32
    num_labels: int = 2
    classifier_proj_size: int = 256

    def __post_init__(self) -> None:
        for name in ("conv_dim", "conv_stride", "conv_kernel"):  # JSON has lists
            setattr(self, name, tuple(getattr(self, name)))
        if not len(self.conv_dim) == len(self.conv_stride) == len(self.conv_kernel) > 0:
            raise ValueError("conv_dim, conv_stride and conv_kernel must have one entry per convolution")

    def count_parameters(self) -> int:
        e, inner, dims = self.hidden_size, self.intermediate_size, self.conv_dim
        convolutions = sum(a * b * k for (a, b), k in zip(pairwise((1, *dims)), self.conv_kernel, strict=True))
        convolutions += sum(dims) if self.conv_bias else 0
        convolutions += 2 * (dims[0] if self.feat_extract_norm == "group" else sum(dims))
        k = self.num_conv_pos_embeddings
        before = 2 * dims[-1] + (dims[-1] + 1) * e + e * e // self.num_conv_pos_embedding_groups * k + k + e + 2 * e
        layer = 4 * (e + 1) * e + 2 * e * inner + inner + e + 4 * e
        c = self.classifier_proj_size
        head = {"none": 0, "ctc": (e + 1) * self.vocab_size, "classification": (e + 1) * c + (c + 1) * self.num_labels}
        return convolutions + before + self.num_hidden_layers * layer + head[self.head]

    def frames(self, samples: Any) -> Any:
        """Frames from so many samples, an integer or an array of them."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    @classmethod
    def from_hf(cls, values: dict[str, Any]) -> Wav2Vec2Config:
        refuse(values, {"feat_extract_activation": "gelu", "add_adapter": False, "use_weighted_layer_sum": False,
                        "adapter_attn_dim": None})  # fmt: skip
        return cls(**known_fields(cls, {k: v for k, v in values.items() if k != "head"}))

    def to_hf(self) -> dict[str, Any]:
        values = asdict(self)
        kind = {"none": "Model", "ctc": "ForCTC", "classification": "ForSequenceClassification"}[values.pop("head")]
        labels = {str(k): f"LABEL_{k}" for k in range(values.pop("num_labels"))}
        return {**values, "id2label": labels, "model_type": "wav2vec2", "architectures": [f"Wav2Vec2{kind}"]}


class Wav2Vec2(PretrainedModel):
    """`model(sound [B, samples])` -> ModelOutput(logits, last_hidden_state [B, frames, E], ...).

    attention_mask [B, samples], 1 = keep, pads on the right. logits: [B, frames, vocab_size] with the CTC
    head, [B, num_labels] with the classification head, else None. The pullback takes dlogits (without a head:
    the gradient of last_hidden_state), or a ModelOutput of gradients, and returns (dsound,).
    """

    Config = Wav2Vec2Config
    model_types: ClassVar[tuple[str, ...]] = ("wav2vec2",)
    prefix = "wav2vec2."
    ignored: ClassVar[str] = r"masked_spec_embed$|^quantizer\.|^project_(hid|q)\."  # for pre-training

    def __init__(self, config: Wav2Vec2Config, *, dtype: Any = np.float32, rng: Any = None) -> None:
        c = self.config = config
        check_choice(c.head, "head", HEADS)
        check_choice(c.feat_extract_norm, "feat_extract_norm", ("group", "layer"))
        options: dict[str, Any] = {"dtype": dtype, "rng": blank()}
        drawn = _random.default_rng() if rng is None else rng
        norms = ["group"] + [None] * (len(c.conv_dim) - 1) if c.feat_extract_norm == "group" else ["layer"] * 99
        sizes = zip(pairwise((1, *c.conv_dim)), c.conv_kernel, c.conv_stride, norms, strict=False)
        self.convs = ModuleList(
            ConvLayer(a, b, kernel, stride, c.conv_bias, norm, **options) for (a, b), kernel, stride, norm in sizes
        )
        self.features_norm = LayerNorm(c.conv_dim[-1], c.layer_norm_eps, dtype=dtype)
        self.projection = Linear(c.conv_dim[-1], c.hidden_size, **options)
        self.projection_dropout, self.dropout = Dropout(c.feat_proj_dropout), Dropout(c.hidden_dropout)
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps, dtype=dtype)
        self.layers = ModuleList(
            Layer(c.hidden_size, c.num_attention_heads, c.intermediate_size, activation=c.hidden_act,
                  eps=c.layer_norm_eps, norm_first=c.do_stable_layer_norm, dropout=c.hidden_dropout,
                  attention_dropout=c.attention_dropout, **options)
            for _ in range(c.num_hidden_layers)
        )  # fmt: skip
        self.final_dropout = Dropout(c.final_dropout)
        self.lm_head = Linear(c.hidden_size, c.vocab_size, **options) if c.head == "ctc" else None
        self.projector: Any = None
        if c.head == "classification":
            self.projector = Linear(c.hidden_size, c.classifier_proj_size, **options)
            self.classifier = Linear(c.classifier_proj_size, c.num_labels, **options)
        self.initialise(c.initializer_range, drawn)
        for conv in self.convs:  # Kaiming's, as in the paper's code: the sound must survive seven of them
            weight = conv.conv.weight.data  # type: ignore[attr-defined]
            weight[...] = drawn.standard_normal(weight.shape) * (2 / weight[0].size) ** 0.5
        self.positions = PositionalConv(
            c.hidden_size, c.num_conv_pos_embeddings, c.num_conv_pos_embedding_groups, dtype=dtype, rng=drawn
        )

    def _names(self) -> dict[str, str]:
        heads = {name: name for name in ("lm_head", "projector", "classifier")}
        return {ours: self.prefix + theirs for ours, theirs in NAMES.items()} | heads

    def _alias(self, key: str) -> str:
        old = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
        stem, _, kind = key.rpartition(".")
        return f"{stem}.{old[kind]}" if kind in old else key

    @classmethod
    def _fitted(cls, config: Any, weights: Mapping[str, Any]) -> Any:
        if "lm_head.weight" in weights:
            return replace(config, head="ctc", vocab_size=len(weights["lm_head.weight"]))
        if "projector.weight" in weights and "classifier.weight" in weights:
            return replace(config, head="classification", num_labels=len(weights["classifier.weight"]))
        return replace(config, head="none")

    # --- calls ------------------------------------------------------------------------------

    def __call__(self, sound: Array, attention_mask: Array | None = None, **flags: bool) -> ModelOutput:
        return self.vjp(sound, attention_mask, **flags)[0]

    def vjp(
        self, sound: Array, attention_mask: Array | None = None, *, output_hidden_states: bool = False
    ) -> tuple[ModelOutput, Pullback]:
        keep = self._check(sound, attention_mask)
        x, pull_before = self._before(sound, keep)
        mask = None if keep is None else keep[:, None, None]
        y, entered, _, pull_layers = run_layers(
            self.layers, x, mask, states=output_hidden_states, weights=False, gradients=True
        )
        pull_norm: Any = None
        if self.config.do_stable_layer_norm:
            y, pull_norm = self.norm.vjp(y)
        logits, pull_head = self._head(y, keep)
        output = ModelOutput(logits=logits, last_hidden_state=y)
        output.hidden_states = (*entered, y) if output_hidden_states else None

        def pull(grad: Any) -> tuple[Array]:
            given = as_output_gradient(grad, "last_hidden_state" if logits is None else "logits")
            dstates = [None] * (len(self.layers) + 1) if given.hidden_states is None else list(given.hidden_states)
            dy = plus(given.last_hidden_state, dstates[-1])
            if given.logits is not None:
                dy = plus(dy, pull_head(given.logits))
            if pull_norm is not None:
                (dy,) = pull_norm(dy)
            assert dy is not None
            return (pull_before(pull_layers(dy, dstates)),)

        return output, Pullback(pull)

    def _check(self, sound: Array, attention_mask: Array | None) -> Array | None:
        """Which frames to keep, bool [B, frames], or None for all."""
        check_array(sound, "sound")
        if sound.ndim != 2:
            raise ValueError(f"sound must be [B, samples], got {shape_text(sound.shape)}")
        frames = self.config.frames(sound.shape[1])
        if frames < 1:
            raise ValueError(f"sound: {sound.shape[1]} samples are too few for one frame")
        if attention_mask is None:
            return None
        check_shape(attention_mask, sound.shape, "attention_mask", "[B, samples]")
        lengths = self.config.frames((attention_mask != 0).sum(axis=1))
        if len(lengths) and lengths.min() < 1:
            raise ValueError("attention_mask must keep enough samples of every row for one frame")
        return array_module(sound).arange(frames) < lengths[:, None]

    def _before(self, sound: Array, keep: Array | None) -> tuple[Array, Any]:
        """What enters the layers, [B, frames, E], and its gradient function to the sound."""
        z, pull_convs = chain_vjp(sound[:, None], *self.convs)
        x, pull_project = chain_vjp(z.swapaxes(1, 2), self.features_norm, self.projection, self.projection_dropout)
        x = x if keep is None else x * keep[..., None]
        places, pull_places = self.positions.vjp(x)
        norms = () if self.config.do_stable_layer_norm else (self.norm,)
        y, pull_norm = chain_vjp(x + places, *norms, self.dropout)

        def pull(dy: Array) -> Array:
            (dsum,) = pull_norm(dy)
            dx = dsum + pull_places(dsum)[0]
            dx = dx if keep is None else dx * keep[..., None]
            return pull_convs(pull_project(dx)[0].swapaxes(1, 2))[0][:, 0]

        return y, pull

    def _head(self, y: Array, keep: Array | None) -> tuple[Array | None, Any]:
        if self.lm_head is not None:
            logits, pull_ctc = chain_vjp(y, self.final_dropout, self.lm_head)
            return logits, lambda dlogits: pull_ctc(dlogits)[0]
        if self.projector is None:
            return None, None
        z, pull_projector = self.projector.vjp(y)
        share = array_module(y).ones(y.shape[:2], dtype=y.dtype) if keep is None else keep.astype(y.dtype)
        share = (share / share.sum(axis=1, keepdims=True))[..., None]
        logits, pull_classifier = self.classifier.vjp((z * share).sum(axis=1))

        def pull(dlogits: Array) -> Array:
            (dmean,) = pull_classifier(dlogits)
            return pull_projector(dmean[:, None] * share)[0]

        return logits, pull
