"""Cases of scaled dot-product attention, padded and packed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ._check import Case, Cases, label

# B, Hq, Hkv, Lq, Lk, D, Dv: row tiles and tails, grouped heads, one and a few rows to decode, nothing at all.
SHAPES = (
    (1, 2, 2, 5, 7, 3, 4),
    (2, 4, 2, 49, 130, 16, 24),
    (1, 2, 1, 1, 600, 33, 17),
    (1, 1, 1, 97, 150, 64, 64),
    (0, 1, 1, 3, 3, 4, 4),
)
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"is_causal": True},
    {"causal": "bottom_right", "window": (20, None)},
    {"softcap": 2.0, "scale": 0.3},
    {"dropout_p": 0.3, "dropout_seed": 7},
)


def _padded(_: str, quick: bool) -> Iterator[Case]:
    # Two stored steps: the backward pass reads the rounded output.
    for number, shape in enumerate(SHAPES[:2] if quick else SHAPES):
        batch, heads, kv_heads, queries, keys, dim, value_dim = shape
        rng = np.random.default_rng(number)
        query = rng.standard_normal((batch, heads, queries, dim))
        key = rng.standard_normal((batch, kv_heads, keys, dim))
        value = rng.standard_normal((batch, kv_heads, keys, value_dim))
        terms = 8 * (dim + keys + queries * heads)
        for form in FORMS:
            yield Case(label(shape, form), (query, key, value), terms, 2, form | {"enable_gqa": heads != kv_heads})
        masks = {"bool": rng.random((heads, queries, keys)) < 0.7, "added": rng.standard_normal((heads, 1, keys))}
        for name, mask in masks.items():
            # The gradient of a mask that is broadcast sums over everything it was broadcast to.
            wide = terms * max(batch * queries, 1)
            options = {"enable_gqa": heads != kv_heads}
            yield Case(f"{label(shape, {})} {name} mask", (query, key, value, mask), wide, 2, options)


def _packed(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    cu_q, cu_kv = np.array([0, 3, 3, 40]), np.array([0, 7, 9, 60])
    arrays = (rng.standard_normal((40, 4, 8)), rng.standard_normal((60, 2, 8)), rng.standard_normal((60, 2, 12)))
    for form in FORMS[:2] if quick else FORMS:
        yield Case(label((40, 60), form), (*arrays, cu_q, cu_kv), 8 * (8 + 60 + 40 * 4), 2, form)


CASES: dict[str, Cases] = {"scaled_dot_product_attention": _padded, "attention_varlen": _packed}
