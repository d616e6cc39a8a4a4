"""Attention's reference: central differences, torch, the lecture's example, dead rows and NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference

B, HQ, HKV, LQ, LK, D, DV = 2, 4, 2, 3, 5, 3, 2


def inputs(rng: Any, heads: int = HKV) -> tuple[Any, Any, Any]:
    return (
        rng.standard_normal((B, HQ, LQ, D)),
        rng.standard_normal((B, heads, LK, D)),
        rng.standard_normal((B, heads, LK, DV)),
    )


def bool_mask(rng: Any, *shape: int) -> Any:
    return rng.random(shape) > 0.3


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "bottom_right": {"causal": "bottom_right"},
    "window": {"window": (1, 0)},
    "window_top_left": {"window": (1, -1), "causal": "top_left"},
    "softcap": {"softcap": 0.7},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.1, 0.0])},
    "alibi_per_row": {"alibi_slopes": np.linspace(0, 1, B * HQ).reshape(B, HQ)},
    "sinks": {"sinks": np.array([0.0, 1.0, -2.0, -np.inf])},
    "lengths": {"q_lengths": np.array([2, 3]), "kv_lengths": np.array([5, 0])},
    "dropout": {"dropout_p": 0.4, "dropout_seed": 2**40 + 3},
    "everything": {
        "softcap": 1.5,
        "alibi_slopes": np.array([0.5, 0.25, 0.1, 0.0]),
        "sinks": np.array([0.0, 1.0, -2.0, 0.5]),
        "causal": "bottom_right",
        "window": (2, None),
        "q_lengths": np.array([2, 3]),
        "kv_lengths": np.array([4, 3]),
        "dropout_p": 0.2,
        "dropout_seed": 7,
    },
}


@pytest.mark.parametrize("mask", ["none", "bool", "float", "float_per_head"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradients(options: dict[str, Any], mask: str, rng: Any, assert_gradients: Any) -> None:
    q, k, v = inputs(rng)
    masks = {
        "none": None,
        "bool": bool_mask(rng, LQ, LK),
        "float": rng.standard_normal((B, 1, 1, LK)),
        "float_per_head": np.where(bool_mask(rng, HQ, LQ, LK), 1, -np.inf) * rng.random((HQ, LQ, LK)),
    }
    options = {**options, "attn_mask": masks[mask], "enable_gqa": True}
    out, saved = reference.scaled_dot_product_attention_forward(q, k, v, **options)
    dout = rng.standard_normal(out.shape)
    found = reference.scaled_dot_product_attention_backward(dout, saved)
    pairs = {"q": (q, found.dquery), "k": (k, found.dkey), "v": (v, found.dvalue)}
    if mask.startswith("float"):
        assert not found.dattn_mask[~np.isfinite(options["attn_mask"])].any()
        finite = np.isfinite(options["attn_mask"]).all()
        if finite:
            pairs["mask"] = (options["attn_mask"], found.dattn_mask)
    else:
        assert found.dattn_mask is None
    if "sinks" in options and np.isfinite(options["sinks"]).all():
        pairs["sinks"] = (options["sinks"], found.dsinks)
    assert len(found) == 4
    assert_gradients(lambda: (dout * reference.scaled_dot_product_attention(q, k, v, **options)).sum(), pairs)
    zero = reference.scaled_dot_product_attention_backward(None, saved)
    assert not any(array.any() for array in zero[:3])


def naive(q: Any, k: Any, v: Any, mask: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """One pair at a time, in plain Python: out and lse, without dropout or soft cap."""
    out, lse = np.zeros((*q.shape[:3], v.shape[-1])), np.full(q.shape[:3], -np.inf)
    for b, h, i in np.ndindex(*q.shape[:3]):
        q_len = options.get("q_lengths", [LQ] * B)[b]
        kv_len = options.get("kv_lengths", [LK] * B)[b]
        causal = options.get("causal", "top_left" if options.get("is_causal") else None)
        place = i + kv_len - q_len if causal == "bottom_right" else i
        left, right = (n if n is not None and n >= 0 else LK for n in options.get("window", (None, None)))
        slopes = np.broadcast_to(options.get("alibi_slopes", 0.0), (B, HQ))
        g = h * k.shape[1] // HQ
        weights = {}
        for j in range(LK):
            if i >= q_len or j >= kv_len or (causal and j > place):
                continue
            if not (place - left <= j <= place + right) or not mask[b, h, i, j]:
                continue
            weights[j] = np.exp(q[b, h, i] @ k[b, g, j] / np.sqrt(D) - slopes[b, h] * abs(place - j))
        sink = np.exp(options["sinks"][h]) if "sinks" in options and i < q_len else 0
        total = sum(weights.values()) + sink
        if total:
            out[b, h, i] = sum(w * v[b, g, j] for j, w in weights.items()) / total
            lse[b, h, i] = np.log(total)
    return out, lse


@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if not {"scale", "softcap", "dropout_p"} & set(o)])
def test_each_option_against_its_definition(name: str, rng: Any) -> None:
    q, k, v = inputs(rng)
    mask = bool_mask(rng, B, HQ, LQ, LK)
    options = OPTIONS[name]
    out, lse, probs = reference.scaled_dot_product_attention(
        q, k, v, mask, enable_gqa=True, return_lse=True, return_probs=True, **options
    )
    expected = naive(q, k, v, mask, options)
    np.testing.assert_allclose(out, expected[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(probs @ np.repeat(v, 2, axis=1), out, rtol=1e-12, atol=1e-14)


def test_the_lectures_worked_example() -> None:
    """Weights and values of the decks; the scores log(weights) give those weights exactly."""
    weights = np.array([[0.50, 0.20, 0.30], [0.12, 0.45, 0.43], [0.15, 0.42, 0.43]])
    value = np.array([[0.50, -0.87], [-0.70, 0.70], [0.81, 0.59]])
    out, probs = reference.scaled_dot_product_attention(np.log(weights), np.eye(3), value, scale=1.0, return_probs=True)
    np.testing.assert_allclose(probs, weights, rtol=1e-14)
    expected = [[0.35, -0.12], [0.10, 0.46], [0.13, 0.42]]
    np.testing.assert_allclose(out, expected, rtol=0, atol=0.01)  # the weights are rounded too


def test_dropout_is_the_documented_stream(rng: Any) -> None:
    q, k, v = inputs(rng, HQ)
    options = {"dropout_p": 0.4, "dropout_seed": 11, "return_probs": True}
    out, probs = reference.scaled_dot_product_attention(q, k, v, **options)
    _, whole = reference.scaled_dot_product_attention(q, k, v, return_probs=True)
    np.testing.assert_array_equal(probs, whole)
    np.testing.assert_allclose(out, reference.dropout(whole, 0.4, seed=11) @ v, rtol=1e-13)
    out = reference.scaled_dot_product_attention(q, k, v, dropout_p=1.0, dropout_seed=1)
    assert not out.any()
    with pytest.raises(ValueError, match="dropout_seed"):
        reference.scaled_dot_product_attention(q, k, v, dropout_p=0.5)


@pytest.mark.parametrize("sinks", [None, np.ones(HQ)], ids=["bare", "sinks"])
def test_dead_rows_are_zero(sinks: Any, rng: Any) -> None:
    q, k, v = inputs(rng)
    mask = bool_mask(rng, B, HQ, LQ, LK) | True
    mask[0, 1, 2] = False
    q_lengths, kv_lengths = np.array([3, 1]), np.array([5, 4])
    q[0, 1, 2], q[1, :, 1:] = np.nan, np.inf  # dead rows
    k[1, :, 4], v[1, :, 4] = np.nan, -np.inf  # dead keys
    options = {"sinks": sinks, "q_lengths": q_lengths, "kv_lengths": kv_lengths}
    arguments: Any = (q, k, v, mask)
    out, saved = reference.scaled_dot_product_attention_forward(*arguments, enable_gqa=True, **options)
    dout = rng.standard_normal(out.shape)
    dout[0, 1, 2] = dout[1, :, 1:] = np.nan
    found = reference.scaled_dot_product_attention_backward(dout, saved)
    dead = np.zeros(out.shape[:3], bool)
    dead[0, 1, 2] = dead[1, :, 1:] = True
    lse = np.full(dead.shape, -np.inf)
    lse[0, 1, 2] = -np.inf if sinks is None else sinks[1]
    np.testing.assert_array_equal(saved.lse[dead], lse[dead])
    assert np.isfinite(saved.lse[~dead]).all()
    for array in (out, found.dquery):
        assert np.isfinite(array).all()
        assert not array[dead].any()
        assert array[~dead].all()
    for array in (found.dkey, found.dvalue):
        assert np.isfinite(array).all()
        assert not array[1, :, 4].any()
    if sinks is not None:
        assert np.isfinite(found.dsinks).all()


def test_nan_stays_in_its_pairs(rng: Any) -> None:
    """Causal: a NaN in key 1 and value 1 reaches the queries from 1 on, and only those."""
    q, k, v = (rng.standard_normal((1, 1, 4, 3)) for _ in range(3))
    for poisoned in (k, v):
        clean = poisoned[0, 0, 1].copy()
        poisoned[0, 0, 1, 0] = np.nan
        out, saved = reference.scaled_dot_product_attention_forward(q, k, v, is_causal=True)
        dout = np.ones_like(out)
        found = reference.scaled_dot_product_attention_backward(dout, saved)
        assert np.isfinite(out[0, 0, 0]).all()
        assert np.isnan(out[0, 0, 1:]).any(axis=-1).all()
        assert np.isfinite(found.dquery[0, 0, 0]).all()
        assert np.isnan(found.dquery[0, 0, 1:]).any(axis=-1).all()
        poisoned[0, 0, 1] = clean
    q[0, 0, 1, 2] = np.nan  # sees keys 0 and 1 only
    _, saved = reference.scaled_dot_product_attention_forward(q, k, v, is_causal=True)
    found = reference.scaled_dot_product_attention_backward(dout, saved)
    probs = reference.scaled_dot_product_attention(q, k, v, is_causal=True, return_probs=True)[1]
    assert np.isnan(probs[0, 0, 1, :2]).all() and not probs[0, 0, 1, 2:].any()
    for array in found[1:3]:
        assert np.isnan(array[0, 0, :2]).any(axis=-1).all()
        assert np.isfinite(array[0, 0, 2:]).all()
    q[0, 0, 1, 2] = 0.5
    dout[0, 0, 0] = np.nan  # sees key 0 only
    _, saved = reference.scaled_dot_product_attention_forward(q, k, v, is_causal=True)
    found = reference.scaled_dot_product_attention_backward(dout, saved)
    for array in found[1:3]:
        assert np.isnan(array[0, 0, 0]).all()
        assert np.isfinite(array[0, 0, 1:]).all()


def test_large_scores_and_zero_sizes() -> None:
    q = np.full((1, 1, 2, 4), 1e4)
    out, lse = reference.scaled_dot_product_attention(q, q, q, return_lse=True)
    np.testing.assert_array_equal(out, q)
    np.testing.assert_allclose(lse, 2e8 + np.log(2), rtol=1e-14)
    for lq, lk, heads in ((0, 3, 2), (3, 0, 2), (2, 2, 0)):
        q, k = np.zeros((2, heads, lq, 4)), np.zeros((2, heads, lk, 4))
        out, saved = reference.scaled_dot_product_attention_forward(q, k, k)
        assert out.shape == q.shape
        assert not out.any()
        found = reference.scaled_dot_product_attention_backward(out, saved)
        assert [g.shape for g in found[:3]] == [q.shape, k.shape, k.shape]


def test_fewer_dims_and_dtypes(rng: Any) -> None:
    q, k, v = inputs(rng, HQ)
    whole = reference.scaled_dot_product_attention(q, k, v)
    one = reference.scaled_dot_product_attention(q[1], k[1], v[1])
    np.testing.assert_allclose(one, whole[1], rtol=1e-13)
    np.testing.assert_allclose(
        reference.scaled_dot_product_attention(q[1, 2], k[1, 2], v[1, 2]), whole[1, 2], rtol=1e-13
    )
    five = reference.scaled_dot_product_attention(q[None], k[None], v[None])
    np.testing.assert_array_equal(five, whole[None])
    out = np.empty(whole.shape)
    assert reference.scaled_dot_product_attention(q, k, v, out=out) is out
    np.testing.assert_array_equal(out, whole)
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    narrow = [array.astype(bfloat16) for array in (q, k, v)]
    y, saved = reference.scaled_dot_product_attention_forward(
        *narrow, np.zeros((LQ, LK), bfloat16), sinks=np.zeros(HQ, np.float32)
    )
    found = reference.scaled_dot_product_attention_backward(y, saved)
    assert y.dtype == found.dquery.dtype == found.dvalue.dtype == bfloat16
    assert saved.lse.dtype == found.dattn_mask.dtype == found.dsinks.dtype == np.float32


CU_Q, CU_KV = np.array([0, 2, 2, 5], np.int32), np.array([0, 3, 4, 8], np.int32)
VARLEN = ["plain", "causal", "bottom_right", "window", "softcap", "alibi", "sinks", "dropout"]


@pytest.mark.parametrize("name", VARLEN)
def test_varlen(name: str, rng: Any, assert_gradients: Any) -> None:
    q = rng.standard_normal((5, HQ, D))
    k, v = rng.standard_normal((8, HKV, D)), rng.standard_normal((8, HKV, DV))
    options = {**OPTIONS[name], "enable_gqa": True}
    out, saved = reference.attention_varlen_forward(q, k, v, CU_Q, CU_KV, **options)
    dout = rng.standard_normal(out.shape)
    found = reference.attention_varlen_backward(dout, saved)
    assert_gradients(
        lambda: (dout * reference.attention_varlen(q, k, v, CU_Q, CU_KV, **options)).sum(),
        {"q": (q, found.dquery), "k": (k, found.dkey), "v": (v, found.dvalue)},
    )
    _, lse, probs = reference.attention_varlen(q, k, v, CU_Q, CU_KV, return_lse=True, return_probs=True, **options)
    np.testing.assert_array_equal(lse, saved.lse)
    assert (lse.shape, probs.shape) == ((HQ, 5), (3, HQ, 3, 4))
    if name == "dropout":
        return  # its stream belongs to the padded shape
    for b in range(3):
        rows, columns = slice(*CU_Q[b : b + 2]), slice(*CU_KV[b : b + 2])
        own = [np.swapaxes(x, 0, 1) for x in (q[rows], k[columns], v[columns])]
        alone, alone_lse = reference.scaled_dot_product_attention(*own, return_lse=True, **options)
        np.testing.assert_allclose(out[rows], np.swapaxes(alone, 0, 1), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(lse[:, rows], alone_lse, rtol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
def test_against_torch(mask: str, rng: Any) -> None:
    torch = pytest.importorskip("torch")
    q, k, v = inputs(rng)
    masks = {"bool": bool_mask(rng, B, 1, LQ, LK), "float": rng.standard_normal((HQ, 1, LK))}
    attn_mask = masks.get(mask)
    if mask == "bool":
        attn_mask[0, 0, 1] = False
    tensors = [torch.tensor(x, requires_grad=x.dtype != bool) for x in (q, k, v)]
    tmask = None
    if attn_mask is not None:
        tmask = torch.tensor(attn_mask, requires_grad=mask == "float")
    expected = torch.nn.functional.scaled_dot_product_attention(
        *tensors, tmask, is_causal=mask == "causal", enable_gqa=True
    )
    out, saved = reference.scaled_dot_product_attention_forward(
        q, k, v, attn_mask, is_causal=mask == "causal", enable_gqa=True
    )
    dout = rng.standard_normal(out.shape)
    expected.backward(torch.from_numpy(dout))
    found = reference.scaled_dot_product_attention_backward(dout, saved)
    close = {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(out, expected.detach().numpy(), **close)
    for gradient, leaf in zip(found[:3], tensors, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), **close)
    if mask == "float":
        np.testing.assert_allclose(found.dattn_mask, tmask.grad.numpy(), **close)
