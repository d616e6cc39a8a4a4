"""The vision Transformer, assembled from the reference functions.

    x = [class; distillation?; conv(images)] + positions;  y = LN(layer_k(… layer_0(x)))
    layer:  x = x + MHA(LN(x));  x = x + W_2 gelu(W_1 LN(x))
    logits = the mean of head_k(y[:, k]) over the heads;  pooled = tanh(W y[:, 0])

`params` maps Hugging Face's names, without the model's prefix, to arrays: `embeddings.cls_token`,
`encoder.layer.{k}.attention.attention.query.weight`, …, `classifier.weight`. Heads, distillation token and
pooler are there if their parameters are. For an image of another size than `image_size` the positions of
the patches are resampled. No dropout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from .activations import gelu_backward, gelu_forward, tanh_backward, tanh_forward
from .attention import scaled_dot_product_attention_backward, scaled_dot_product_attention_forward
from .conv import conv2d_backward, conv2d_forward
from .transformer import Grads, Params, Pull, _add, _linear, _norm, _residual


class ViTOutput(NamedTuple):
    """logits `[B, classes]` and pooler_output are None without a head or pooler; hidden_states: what enters
    every layer, and last what leaves the last one."""

    logits: Array | None
    last_hidden_state: Array
    pooler_output: Array | None
    hidden_states: tuple[Array, ...]


def bicubic_weights(new: int, old: int) -> Array:
    """`[new, old]`: a sample at i + 0.5 of `new` is a cubic of four of the `old`, the edge repeated beyond it."""
    weights = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        below = int(np.floor(place))
        for source in range(below - 1, below + 3):
            d = abs(place - source)
            cubic = 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[i, min(max(source, 0), old - 1)] += cubic
    return weights


def _embed(images: Array, params: Params, grads: Grads, image_size: tuple[int, int]) -> tuple[Array, Pull]:
    name = "embeddings.patch_embeddings.projection"
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    patches, saved = conv2d_forward(images, weight, bias, weight.shape[2:])
    names = [n for n in ("embeddings.cls_token", "embeddings.distillation_token") if n in params]
    n, batch, (rows, columns) = len(names), len(images), patches.shape[2:]
    old = [size // p for size, p in zip(image_size, weight.shape[2:], strict=True)]
    up, across = bicubic_weights(rows, old[0]), bicubic_weights(columns, old[1])
    table = params["embeddings.position_embeddings"][0]
    grid = np.einsum("Ii,Jj,ije->IJe", up, across, table[n:].reshape(*old, -1))
    tokens = [np.broadcast_to(params[token], (batch, 1, table.shape[1])) for token in names]
    flat = patches.reshape(*patches.shape[:2], -1).swapaxes(1, 2)
    x = np.concatenate([*tokens, flat], 1) + np.concatenate([table[:n], grid.reshape(rows * columns, -1)])

    def pull(dx: Array) -> Array:
        total = dx.sum(0)
        for k, token in enumerate(names):
            _add(grads, token, total[None, None, k])
        dgrid = np.einsum("Ii,Jj,IJe->ije", up, across, total[n:].reshape(rows, columns, -1))
        dtable = np.concatenate([total[:n], dgrid.reshape(old[0] * old[1], -1)])
        _add(grads, "embeddings.position_embeddings", dtable[None])
        found = conv2d_backward(dx[:, n:].swapaxes(1, 2).reshape(patches.shape), saved)
        _add(grads, f"{name}.weight", found.dweight)
        _add(grads, f"{name}.bias", found.dbias)
        return found.dx

    return x, pull


def _attend(x: Array, params: Params, grads: Grads, prefix: str, num_heads: int) -> tuple[Array, Pull]:
    parts = [_linear(x, params, grads, f"{prefix}attention.{p}") for p in ("query", "key", "value")]

    def split(y: Array) -> Array:
        return y.reshape(*y.shape[:2], num_heads, -1).swapaxes(1, 2)

    def join(y: Array) -> Array:
        return y.swapaxes(1, 2).reshape(x.shape)

    query, key, value = (split(y) for y, _ in parts)
    out, saved = scaled_dot_product_attention_forward(query, key, value)
    y, pull_out = _linear(join(out), params, grads, f"{prefix}output.dense")

    def pull(dy: Array) -> tuple[Array]:
        dheads = scaled_dot_product_attention_backward(split(pull_out(dy)), saved)[:3]
        return (sum(pull_part(join(d)) for (_, pull_part), d in zip(parts, dheads, strict=True)),)

    return y, pull


def _layer(x: Array, params: Params, grads: Grads, prefix: str, num_heads: int, eps: float) -> tuple[Array, Pull]:
    def norm(name: str) -> Any:
        return lambda z: _norm(z, params, grads, f"{prefix}layernorm_{name}", eps)

    def mlp(z: Array) -> tuple[Array, Pull]:
        inner, pull_first = _linear(z, params, grads, f"{prefix}intermediate.dense")
        active, saved = gelu_forward(inner)
        y, pull_second = _linear(active, params, grads, f"{prefix}output.dense")
        return y, lambda dy: (pull_first(gelu_backward(pull_second(dy), saved).dx),)

    y, pull_attention = _residual(
        x, lambda z: _attend(z, params, grads, f"{prefix}attention.", num_heads), norm("before"), True
    )
    y, pull_mlp = _residual(y, mlp, norm("after"), True)
    return y, lambda dy: pull_attention(*pull_mlp(dy))[0]


def vit(
    images: Array, params: Params, grads: Grads, *, num_heads: int, image_size: tuple[int, int], eps: float = 1e-12
) -> tuple[ViTOutput, Pull]:
    """images `[B, C, H, W]` to a ViTOutput, and the gradient function.

    image_size: (height, width) of the position table. The pullback takes a ViTOutput of gradients, None for zero
    (hidden_states may hold None), adds the parameters' to `grads` under their names, and returns dimages.
    """
    x, pull_embed = _embed(images, params, grads, image_size)
    states: list[Array] = [x]
    pulls: list[Pull] = []
    while f"encoder.layer.{len(pulls)}.output.dense.weight" in params:
        x, pull_layer = _layer(x, params, grads, f"encoder.layer.{len(pulls)}.", num_heads, eps)
        states.append(x)
        pulls.append(pull_layer)
    y, pull_norm = _norm(x, params, grads, "layernorm", eps)
    names = [n for n in ("classifier", "cls_classifier", "distillation_classifier") if f"{n}.weight" in params]
    heads = [_linear(y[:, k], params, grads, name) for k, name in enumerate(names)]
    logits = np.mean([z for z, _ in heads], axis=0) if heads else None
    pooled = None
    if "pooler.dense.weight" in params:
        dense, pull_dense = _linear(y[:, 0], params, grads, "pooler.dense")
        pooled, saved_tanh = tanh_forward(dense)

    def pull(grad: ViTOutput) -> Array:
        dy = np.zeros_like(y) if grad.last_hidden_state is None else grad.last_hidden_state.copy()
        if grad.logits is not None:
            for k, (_, pull_head) in enumerate(heads):
                dy[:, k] += pull_head(grad.logits / len(heads))
        if grad.pooler_output is not None:
            dy[:, 0] += pull_dense(tanh_backward(grad.pooler_output, saved_tanh).dx)
        dx = pull_norm(dy)
        dstates = grad.hidden_states or (None,) * len(states)
        for k in reversed(range(len(states))):
            dx = dx if dstates[k] is None else dx + dstates[k]
            dx = pulls[k - 1](dx) if k else pull_embed(dx)
        return dx

    return ViTOutput(logits, y, pooled, tuple(states)), pull
