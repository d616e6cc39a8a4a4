"""Attention of any number of dimensions and masks of any shape, against the reference in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import seqkern
from seqkern import reference

CLOSE = {"rtol": 1e-9, "atol": 1e-11}  # float64: sums of at most 200 terms of order 1
LEADING = [(), (3,), (2, 3), (2, 2, 3), (2, 1, 2, 3)]


def same(ours: Any, theirs: Any) -> None:
    assert (ours is None) == (theirs is None)
    if ours is not None:
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def compare(arrays: Any, dout: Any, **options: Any) -> Any:
    out, saved = seqkern.scaled_dot_product_attention_forward(*arrays, **options)
    expected, kept = reference.scaled_dot_product_attention_forward(*arrays, **options)
    same(out, expected)
    same(saved.lse, kept.lse)
    gradients = seqkern.scaled_dot_product_attention_backward(dout, saved)
    wanted = reference.scaled_dot_product_attention_backward(dout, kept)
    for ours, theirs in zip(gradients, wanted, strict=True):
        same(ours, theirs)
    same(gradients.dsinks, wanted.dsinks)
    return gradients


@pytest.mark.parametrize("leading", LEADING, ids=len)
def test_a_mask_of_every_shape(leading: tuple[int, ...], rng: Any) -> None:
    q, k, v = (rng.standard_normal((*leading, n, 4)) for n in (5, 9, 9))
    full = (*leading, 5, 9)
    dout = rng.standard_normal(q.shape)
    for rank in range(len(full) + 1):
        for kept in np.ndindex(*(2,) * rank):
            shape = tuple(n if keep else 1 for n, keep in zip(full[len(full) - rank :], kept, strict=True))
            mask = np.asarray(rng.standard_normal(shape))
            compare((q, k, v), dout, attn_mask=mask)
            compare((q, k, v), dout, attn_mask=np.asarray(mask > -1))


def test_three_dimensions_are_heads_of_one_batch(rng: Any) -> None:
    q, k, v = rng.standard_normal((6, 5, 4)), rng.standard_normal((2, 9, 4)), rng.standard_normal((2, 9, 3))
    options: dict[str, Any] = {
        "enable_gqa": True,
        "causal": "bottom_right",
        "sinks": rng.standard_normal(6),
        "alibi_slopes": rng.random(6),
        "q_lengths": np.array([4]),
        "kv_lengths": np.array([7]),
    }
    compare((q, k, v), rng.standard_normal((6, 5, 3)), **options)
    with pytest.raises(ValueError, match="q_lengths"):
        seqkern.scaled_dot_product_attention(q, k, v, **{**options, "q_lengths": np.array([4] * 6)})


@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 2), (2, 0, 3)])
def test_empty(leading: tuple[int, ...]) -> None:
    x = np.zeros((*leading, 3, 4))
    gradients = compare((x, x, x), x, attn_mask=np.zeros((3, 3)))
    assert not gradients.dattn_mask.any()
