"""First-order error bounds of attention, element by element, from the float64 reference.

u is the unit roundoff of the arithmetic, u_out that of bfloat16 results, gamma_K = K·u / (1 - K·u).

- A score: e_s = gamma_{D+8}·scale·Σ|q||k| + 16u·|s|: the product, the scaling, cap, bias and change of base. The
  change of its row's maximum moves all scores alike, so a probability is off by e_p = P (2 max_j e_s + gamma_{Lk+16}).
- out = Σ P v: Σ e_p |v| + gamma_{Lk}·Σ P|v|, and u_out·|out| for storage. Where P is rounded to the storage type
  for that product, as tensor cores want it, another u_out·Σ P|v|.
- dP = Σ dout v: gamma_Dv·Σ|dout||v|; D = Σ dout·out: gamma_Dv·Σ|dout||out| + Σ|dout| e_out.
- ds = P (dP - D): e_p (|dP| + |D|) + P (e_dP + e_D) + 4u·P (|dP| + |D|).
- dq = scale Σ ds k: scale (Σ e_ds |k| + gamma_Lk·Σ|ds||k|), dk and dv likewise. Where P and ds are rounded to the
  storage type for these products, as tensor cores want them, another u_out of the sums of magnitudes.

A lower precision adds split·Σ|a||b| to the two products of the forward pass.

Dropout multiplies P and dP by at most 1 / (1 - p); a soft cap has a slope of at most 1. Twice that for the terms of
second order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from support.cases import Array, DTypes


def gamma(terms: float, unit: float) -> float:
    return terms * unit / (1 - terms * unit)


def attention_bounds(
    arrays: tuple[Array, ...], options: dict[str, Any], dout: Array, dtypes: DTypes, stores_probs: bool = False,
    split: float = 0.0,
) -> dict[str, Array]:
    """Bounds by name; arrays and options in float64, shapes [B, H, L, D]."""
    from seqkern import reference

    unit, keep = dtypes.unit, 1 / (1 - options.get("dropout_p", 0.0))
    groups = arrays[0].shape[1] // max(arrays[1].shape[1], 1)
    query, (key, value) = np.abs(arrays[0]), (np.repeat(np.abs(a), groups, 1) for a in arrays[1:])
    scale = options.get("scale") or query.shape[-1] ** -0.5
    asked = {"return_lse": True, "return_probs": True}
    out, _, probs = reference.scaled_dot_product_attention(*arrays, **options, **asked)
    mask = options.get("attn_mask")
    bias = 0.0 if mask is None or mask.dtype == bool else np.abs(mask)
    if options.get("alibi_slopes") is not None:
        bias = bias + options["alibi_slopes"].max(initial=0.0) * sum(probs.shape[-2:])
    size = scale * query @ key.swapaxes(-1, -2)
    score = (gamma(query.shape[-1] + 8, unit) + split) * size + 16 * unit * (size + bias)
    worst = score.max(-1, initial=0.0, keepdims=True)
    tiny = float(np.finfo(dtypes.cell).smallest_normal)  # what is below may come out as 0
    prob = probs * (2 * worst + gamma(probs.shape[-1] + 16, unit)) + tiny
    stored, rounding = dtypes.storage * np.abs(out), dtypes.storage if stores_probs else 0.0
    e_out = keep * (prob @ value + (gamma(probs.shape[-1], unit) + rounding + split) * (probs @ value)) + stored
    upstream = np.abs(dout)
    width, rows = value.shape[-1], probs.shape[-2]
    dp = keep * upstream @ value.swapaxes(-1, -2)
    total = (upstream * np.abs(out)).sum(-1, keepdims=True)
    e_total = gamma(width, unit) * total + (upstream * e_out).sum(-1, keepdims=True)
    both = dp + total
    ds = prob * both + probs * (gamma(width, unit) * dp + e_total) + 4 * unit * probs * both
    size_ds = probs * both
    down = probs.swapaxes(-1, -2), prob.swapaxes(-1, -2)
    long = gamma(probs.shape[-1], unit) + rounding

    def grouped(x: Array) -> Array:
        return x.reshape(x.shape[0], arrays[1].shape[1], groups, *x.shape[2:]).sum(2)

    tall = gamma(rows * groups + 4, unit) + rounding
    bounds = {
        "out": e_out,
        "lse": worst[..., 0] + gamma(probs.shape[-1] + 16, unit) + 8 * unit * (size + bias).max(-1, initial=1.0),
        "probs": prob + 16 * unit * probs,
        "dquery": scale * (ds @ key + long * (size_ds @ key)),
        "dkey": grouped(scale * (ds.swapaxes(-1, -2) @ query + tall * (size_ds.swapaxes(-1, -2) @ query))),
        "dvalue": grouped(keep * (down[1] @ upstream + tall * (down[0] @ upstream))),
        "dattn_mask": ds + gamma(probs.size, unit) * size_ds,
        "dsinks": (2 * worst[..., 0] + gamma(16 + rows * probs.shape[0], unit)) * total[..., 0] + e_total[..., 0],
    }
    return {name: 2 * bound for name, bound in bounds.items()}
