"""Attention with its weights, as the modules use it, and the storage of decoded keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import ops
from ._arrays import Array, array_module

Pull = Callable[[Any, Any], tuple[Any, Any, Any, Any]]


def attend_vjp(
    query: Array, key: Array, value: Array, mask: Array | None, *, need_weights: bool, **options: Any
) -> tuple[Array, Array | None, Pull]:
    """out `[N, H, L, Dv]`, weights `[N, H, L, S]` after dropout or None, and the gradient function.

    The pullback takes the gradients of out and of the weights (None = zero) and returns those of
    query, key, value and a float mask.
    """
    out, saved = ops.scaled_dot_product_attention_forward(query, key, value, mask, **options)
    weights = _weights(query, key, value, mask, options) if need_weights else None

    def pull(dout: Any, dweights: Any = None) -> tuple[Any, Any, Any, Any]:
        dq, dk, dv, dmask = ops.scaled_dot_product_attention_backward(dout, saved)[:4]
        if dweights is not None:
            more = _through_weights(dweights, query, key, mask, options)
            dq, dk = dq + more[0], dk + more[1]
            dmask = None if dmask is None else dmask + more[3]
        return dq, dk, dv, dmask

    return out, weights, pull


def _weights(query: Array, key: Array, value: Array, mask: Array | None, options: dict[str, Any]) -> Array:
    kept = {k: v for k, v in options.items() if not k.startswith("dropout")}
    probs = ops.scaled_dot_product_attention(query, key, value, mask, return_probs=True, **kept)[1]
    p = options.get("dropout_p", 0.0)
    return ops.dropout(probs, p, seed=options["dropout_seed"]) if p else probs


def _through_weights(dweights: Array, query: Array, key: Array, mask: Array | None, options: dict[str, Any]) -> Any:
    """Gradients through the weights themselves: they are the output for the identity as value."""
    keys, module = key.shape[-2], array_module(query)
    identity = module.broadcast_to(module.eye(keys, dtype=query.dtype), (*key.shape[:2], keys, keys))
    _, saved = ops.scaled_dot_product_attention_forward(query, key, identity, mask, **options)
    return ops.scaled_dot_product_attention_backward(dweights, saved)


class KVCache:
    """Keys and values of what was decoded so far, `[N, heads, length, head_dim]`; storage doubles.

    Hand one to `MultiheadAttention(..., cache=cache)` at every step: the step's keys and values are
    appended, and its queries attend to all of them. For attention to a memory that stays the same,
    fill it in the first call and pass key=None, value=None from then on.
    """

    def __init__(self) -> None:
        self.length = 0
        self._key: Array | None = None
        self._value: Array | None = None

    @property
    def key(self) -> Array:
        return None if self._key is None else self._key[:, :, : self.length]

    @property
    def value(self) -> Array:
        return None if self._value is None else self._value[:, :, : self.length]

    def append(self, key: Array, value: Array) -> tuple[Array, Array]:
        """Add `[N, heads, steps, head_dim]`; returns all keys and values, views of the storage."""
        end = self.length + key.shape[2]
        self._key = self._stored(self._key, key, end)
        self._value = self._stored(self._value, value, end)
        self.length = end
        return self.key, self.value

    def reorder(self, rows: Array) -> None:
        """Row n goes on from where row rows[n] was, as a beam search needs."""
        if self._key is not None and self._value is not None:
            rows = array_module(self._key).asarray(rows)
            self._key, self._value = self._key[rows], self._value[rows]

    def _stored(self, storage: Array | None, new: Array, end: int) -> Array:
        if storage is not None and (storage.shape[:2], storage.shape[3]) != (new.shape[:2], new.shape[3]):
            raise ValueError(
                f"cache must hold [batch, heads, length, head_dim] = {list(storage.shape)}, "
                f"got a step of {list(new.shape)}"
            )
        if storage is None or end > storage.shape[2]:
            capacity = max(end, 2 * (0 if storage is None else storage.shape[2]))
            grown = array_module(new).empty((*new.shape[:2], capacity, new.shape[3]), dtype=new.dtype)
            if storage is not None:
                grown[:, :, : self.length] = storage[:, :, : self.length]
            storage = grown
        storage[:, :, self.length : end] = new
        return storage

    def __repr__(self) -> str:
        return f"KVCache(length={self.length})"
