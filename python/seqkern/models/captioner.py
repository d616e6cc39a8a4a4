"""Captioner: a picture's features, and an LSTM that attends to them while it writes (Xu et al. 2015).

    a = encoder(image), P places of F features;   h_0 = tanh(W_h mean(a) + b), c_0 likewise
    every word reads the places by soft attention: see `_decoder.py`
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ..nn import Conv2d, CrossEntropyLoss, Linear, MaxPool2d, ReLU, Sequential, Tanh
from ..nn._arrays import Array, array_module, check_array, shape_text
from ..nn._residual import chain_vjp
from ..nn.module import Module, Pullback
from ._beam import Generated, shift_right
from ._decoder import RecurrentDecoder, decoder_parameters
from ._files import load_model, restore_model, save_model
from ._pairs import check_ids
from ._sampling import evaluating
from ._transformer import ModelOutput
from .seq2seq import Seq2SeqOutput


@dataclass
class CaptionerConfig:
    """Sizes of a Captioner.

    channels: of the default encoder's convolutions, each 3 x 3, relu and 2 x 2 max-pooling.
    feature_size: F of another encoder's features, or of those given in place of images; 0: the default.
    attention: "bahdanau", "luong" or "none", with the score and cell of a Seq2SeqConfig.
    """

    vocab_size: int
    in_channels: int = 3
    channels: tuple[int, ...] = (32, 64)
    feature_size: int = 0
    embedding_size: int = 64
    hidden_size: int = 128
    num_layers: int = 1
    cell: str = "lstm"
    attention: str = "bahdanau"
    score: str = "general"
    dropout: float = 0.0
    bos_token_id: int = 1
    eos_token_id: int = 2

    def __post_init__(self) -> None:
        self.channels = tuple(self.channels)  # JSON has lists

    @property
    def features(self) -> int:
        return self.feature_size or self.channels[-1]

    def count_parameters(self) -> int:
        """Without those of an encoder that is given."""
        widths = () if self.feature_size else (self.in_channels, *self.channels)
        convolutions = sum(9 * a * b + b for a, b in pairwise(widths))
        states = (2 if self.cell == "lstm" else 1) * self.num_layers * self.hidden_size * (self.features + 1)
        return convolutions + states + decoder_parameters(self.vocab_size, self.features, self)


class Captioner(Module):
    """`model(images [N, C, H, W], tgt [N, T])` -> Seq2SeqOutput(logits [N, T, V], attentions [N, T, P]).

    encoder: a module or function whose call gives maps [N, F, H', W'], features [N, P, F] or a
        ModelOutput with such a last_hidden_state (ViT, Swin). A module is trained with the rest, a function is
        not. None: a small stack of convolutions, or, with config.feature_size, none: images are features.
    tgt is what the decoder reads, BoS first. The pullback takes dlogits and returns (dimages, None),
    dimages None where a function encodes.
    """

    Config = CaptionerConfig

    def __init__(
        self, config: CaptionerConfig, encoder: Any = None, *, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        c = self.config = config
        options: dict[str, Any] = {"dtype": dtype, "rng": rng}
        if encoder is not None and not c.feature_size:
            raise ValueError("feature_size must say how many features the given encoder has")
        if encoder is None and not c.feature_size:
            encoder, inputs = Sequential(), c.in_channels
            for size in c.channels:
                for module in (Conv2d(inputs, size, 3, padding=1, **options), ReLU(), MaxPool2d(2)):
                    encoder.append(module)
                inputs = size
        self.encoder: Any = encoder
        size = c.num_layers * c.hidden_size
        self.init_h = Linear(c.features, size, **options)
        self.init_c = Linear(c.features, size, **options) if c.cell == "lstm" else None
        self.decoder = RecurrentDecoder(c.vocab_size, c.features, c, **options)

    # --- calls ------------------------------------------------------------------------------

    def __call__(self, images: Array, tgt: Array) -> Seq2SeqOutput:
        return self.vjp(images, tgt)[0]

    def vjp(self, images: Array, tgt: Array) -> tuple[Seq2SeqOutput, Pullback]:
        check_ids(tgt, "tgt", self.config.vocab_size)
        features, pull_features = self._encode(images)
        if len(tgt) != len(features):
            raise ValueError(f"tgt must have a row for each of {len(features)} images, got {len(tgt)}")
        hx, pull_start = self._start(features)
        logits, weights, _, pull_decoder = self.decoder.vjp(tgt, hx, features)

        def pull(dlogits: Any) -> tuple[Array | None, None]:
            if isinstance(dlogits, Seq2SeqOutput):
                dlogits = dlogits.logits
            dhx, dfeatures = pull_decoder(dlogits)
            start = pull_start(dhx)
            return pull_features(start if dfeatures is None else dfeatures + start), None

        return Seq2SeqOutput(logits, weights), Pullback(pull)

    def loss_and_grads(self, images: Array, targets: Array) -> float:
        """Mean cross-entropy in nats per target `[N, T]`, which ends in EoS; -100 does not count.

        Parameter gradients are added to p.grad.
        """
        tgt = shift_right(targets, self.config.bos_token_id, self.config.eos_token_id)
        output, pull = self.vjp(images, tgt)
        loss, pull_loss = CrossEntropyLoss().vjp(output.logits, targets)
        pull(*pull_loss())
        return float(loss)

    def _encode(self, images: Array) -> tuple[Array, Any]:
        """features [N, P, F], and their gradient function to the images."""
        check_array(images, "images")
        y, pull = images, None
        if isinstance(self.encoder, Module):
            y, pull = self.encoder.vjp(images)
        elif self.encoder is not None:
            y = self.encoder(images)
        states = isinstance(y, ModelOutput)
        a = y.last_hidden_state if states else y
        maps, size = a.ndim == 4, self.config.features
        found = a.reshape(*a.shape[:2], -1).swapaxes(1, 2) if maps else a
        if found.ndim != 3 or found.shape[2] != size:
            expected = "[N, P, F]" if self.encoder is None else "what the encoder gives, [N, F, H, W] or [N, P, F],"
            raise ValueError(f"images: {expected} must have F = {size}, got {shape_text(a.shape)}")

        def back(dfeatures: Array) -> Array | None:
            da = dfeatures.swapaxes(1, 2).reshape(a.shape) if maps else dfeatures
            if pull is None:
                return da if self.encoder is None else None
            found = pull(ModelOutput(last_hidden_state=da) if states else da)
            return found[0] if isinstance(found, tuple) else found

        return found, back

    def _start(self, features: Array) -> tuple[Any, Any]:
        """The decoder's first state, and (dhx) -> dfeatures."""
        mean, pulls, states = features.mean(axis=1), [], []
        for linear in (self.init_h, self.init_c):
            if linear is not None:
                y, pull = chain_vjp(mean, linear, Tanh())
                pulls.append(pull)
                states.append(y.reshape(len(y), self.config.num_layers, -1).swapaxes(0, 1))
        if len(states) == 2 and states[1].dtype.itemsize < 4:  # the cell state is kept in float32
            states[1] = states[1].astype(np.float32)

        def back(dhx: Any) -> Array:
            grads = dhx if isinstance(dhx, tuple) else (dhx,)
            rows = [g.swapaxes(0, 1).reshape(len(mean), -1).astype(mean.dtype, copy=False) for g in grads]
            dmean = sum(pull(row)[0] for pull, row in zip(pulls, rows, strict=True))
            places = features.shape[1]
            return array_module(features).broadcast_to((dmean / places)[:, None], features.shape)

        return tuple(states) if len(states) == 2 else states[0], back

    # --- generation -------------------------------------------------------------------------

    def generate(
        self, images: Array, max_new_tokens: int, *, beams: int = 1, length_penalty: float = 0.0,
        temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None,
        seed: int | None = None, output_attentions: bool = False,
    ) -> Generated:  # fmt: skip
        """Write a caption for every image, as `Seq2Seq.generate` does."""
        with evaluating(self):
            features, _ = self._encode(images)
            return self.decoder.write(
                self._start(features)[0], features, None, max_new_tokens, output_attentions, beams=beams,
                length_penalty=length_penalty, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
            )  # fmt: skip

    # --- files ------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, an encoder module's parameters among them."""
        save_model(self, folder)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], config: CaptionerConfig | None = None, *, encoder: Any = None
    ) -> Captioner:
        """A model in eval mode from a folder, or from one .safetensors file plus `config`.

        encoder: the one the model was made with, if any; a module of the same shape receives its weights.
        """
        known, weights = load_model(path, CaptionerConfig, config)
        return restore_model(partial(cls, encoder=encoder), known, weights, like="decoder.head.weight")
