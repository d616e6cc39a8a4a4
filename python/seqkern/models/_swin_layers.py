"""Swin's layers: attention within windows with a bias for every offset, and the stages they stand in."""

from __future__ import annotations

from typing import Any

from .. import _random, ops
from ..nn import Dropout, LayerNorm, Linear, Module, ModuleList
from ..nn._arrays import Array, array_module
from ..nn._attend import attend_vjp
from ..nn._init import Initializer, check_size
from ..nn._residual import chain_vjp, plus_dropout
from ..nn.module import Pullback
from ._files import blank
from ._images import Pair
from ._transformer import Layer, _join, _split, run_layers
from ._windows import merge_order, relative_index, shift_mask, window_order


class RelativeBias(Module):
    """`bias(window)` `[1, heads, L, L]`: a number per head for every offset between two tokens of a window."""

    def __init__(self, window: int, heads: int, dtype: Any) -> None:
        self.window = check_size(window, "window_size")
        self.relative_position_bias_table = Initializer(blank(), dtype).constant(0, (2 * window - 1) ** 2, heads)

    def run(self, window: int) -> tuple[Array, Any]:
        """The bias and its gradient function; a window smaller than the table's has the offsets it needs."""
        table = self.relative_position_bias_table
        index = array_module(table.data).asarray(relative_index(self.window, window))
        rows, saved = ops.embedding_forward(index, table.data)

        def pull(dbias: Array) -> None:
            drows = array_module(dbias).ascontiguousarray(dbias.transpose(1, 2, 0))
            table.add_grad(ops.embedding_backward(drows.astype(rows.dtype, copy=False), saved).dweight)

        return rows.transpose(2, 0, 1)[None], pull


class DropPath(Module):
    """Dropout, and in training each sample of `[B, ...]` is 0 with probability `path` (Huang et al. 2016)."""

    def __init__(self, p: float, path: float) -> None:
        self.dropout, self.path = Dropout(p), Dropout(path)

    @property
    def active(self) -> bool:
        return self.dropout.active or self.path.active

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        y, pull = self.dropout.vjp(x)
        if not self.path.active:
            return y, pull
        keep = self.path(array_module(x).ones((len(x),) + (1,) * (x.ndim - 1), dtype=x.dtype))
        return y * keep, Pullback(lambda dy: pull(dy * keep))


class SwinLayer(Layer):
    """One layer over x `[B, rows * columns, C]`; what `run` takes for a mask is the grid (rows, columns)."""

    def __init__(self, c: Any, dim: int, heads: int, shifted: bool, *, path: float, dtype: Any) -> None:
        super().__init__(
            dim, heads, int(c.mlp_ratio * dim), activation=c.hidden_act, eps=c.layer_norm_eps, norm_first=True,
            qkv_bias=c.qkv_bias, attention_dropout=c.attention_probs_dropout_prob, dtype=dtype, rng=blank(),
        )  # fmt: skip
        self.bias, self.shift = RelativeBias(c.window_size, heads, dtype), c.window_size // 2 if shifted else 0
        self.dropout: Any = DropPath(c.hidden_dropout_prob, path)

    def _attend(
        self, x: Array, residual: Array, grid: Any, cache: Any, need_weights: bool
    ) -> tuple[Array, Array | None, Any]:
        whole = min(grid) <= self.bias.window  # one window spans the grid: nothing to shift
        window, shift = (min(grid), 0) if whole else (self.bias.window, self.shift)
        order, area = window_order(grid, window, shift), window * window
        (query, key, value), pull_in = self._project(order.arrange(x).reshape(-1, area, x.shape[2]))
        bias, pull_bias = self.bias.run(window)
        if shift:
            xp, (wrapped, far) = array_module(x), shift_mask(grid, window, shift)
            bias = xp.tile(bias, (len(query), 1, 1, 1))
            each = bias.reshape(len(x), -1, *bias.shape[1:])  # the windows of each picture
            each[:, xp.asarray(wrapped)] += xp.asarray(far, dtype=bias.dtype)[:, None]
        options: dict[str, Any] = {}
        if self.training and self.attention_dropout:
            options = {"dropout_p": self.attention_dropout, "dropout_seed": _random.draw_seed()}
        out, weights, pull_heads = attend_vjp(query, key, value, bias, need_weights=need_weights, **options)
        fused = not self.dropout.active  # the sum is taken in the product
        added = order.arrange(residual).reshape(len(query), area, -1) if fused else None
        y, pull_out = self.out.vjp(_join(out), residual=added)

        def pull(dy: Array) -> tuple[Array]:
            (dout,) = pull_out(order.arrange(dy).reshape(y.shape))
            *dheads, dbias = pull_heads(_split(dout, self.heads), None)
            pull_bias(dbias.sum(0))
            return (order.restore(pull_in(dheads).reshape(len(x), -1, x.shape[2])),)

        restored = order.restore(y.reshape(len(x), -1, x.shape[2]))
        if fused:
            return restored, weights, pull
        total, pull_total = plus_dropout(residual, (restored, pull), self.dropout)
        return total, weights, pull_total


class SwinStage(Module):
    """The layers of one grid and, but for the last stage, the merging of 2 x 2 tokens into one of twice the size."""

    def __init__(self, c: Any, k: int, *, dtype: Any) -> None:
        dim, before, total = c.embed_dim * 2**k, sum(c.depths[:k]), max(sum(c.depths) - 1, 1)
        self.blocks = ModuleList(
            SwinLayer(c, dim, c.num_heads[k], i % 2 == 1, path=c.drop_path_rate * (before + i) / total, dtype=dtype)
            for i in range(c.depths[k])
        )
        last = k + 1 == len(c.depths)
        self.norm = None if last else LayerNorm(4 * dim, dtype=dtype)
        self.reduction = None if last else Linear(4 * dim, 2 * dim, False, dtype=dtype, rng=blank())

    def run(self, x: Array, grid: Pair, weights: bool, gradients: bool) -> tuple[Array, Pair, Array | None, Any]:
        """y, its grid, the probabilities of the last layer, and the gradient function dy -> dx."""
        y, _, probs, back = run_layers(self.blocks, x, grid, states=False, weights=weights, gradients=gradients)
        seen = probs[-1] if probs else None
        if self.norm is None or self.reduction is None:
            return y, grid, seen, back
        order, channels = merge_order(grid), y.shape[2]
        squares = order.arrange(y).reshape(len(y), -1, 4 * channels)
        y, pull = chain_vjp(squares, self.norm, self.reduction)

        def pull_merging(dy: Array) -> Array:
            return back(order.restore(pull(dy)[0].reshape(len(dy), -1, channels)))

        return y, ((grid[0] + 1) // 2, (grid[1] + 1) // 2), seen, pull_merging
