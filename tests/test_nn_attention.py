"""MultiheadAttention against torch and the NumPy assembly; additive and Luong attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import seqkern
from seqkern import nn, reference
from support.module_oracle import assert_same_module, central_difference, randomise, torch_module

E, HEADS, L, S, N = 8, 2, 4, 5, 3
CLOSE = {"rtol": 1e-10, "atol": 1e-11}  # float64: products of at most 100 terms of order 1

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True, "add_bias_kv": True},
    "kdim": {"kdim": 3, "vdim": 6},
}


def arrays(options: dict[str, Any], rng: Any, self_attention: bool = False) -> list[Any]:
    sizes = (E, options.get("kdim", E), options.get("vdim", E))
    found = []
    for size, length in zip(sizes, (L, S, S), strict=True):
        shape = (N, length, size) if options.get("batch_first") else (length, N, size)
        found.append(rng.standard_normal(shape))
    return [found[0]] * 3 if self_attention else found


def masks(kind: str, keys: int, rng: Any) -> dict[str, Any]:
    padding = np.zeros((N, keys), bool)
    padding[0, -2:] = True
    ignored = rng.random((L, keys)) < 0.3
    ignored[:, 0] = False
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "bool": {"attn_mask": ignored, "key_padding_mask": padding},
        "float": {"attn_mask": rng.standard_normal((N * HEADS, L, keys))},
        "float_padding": {"attn_mask": rng.standard_normal((L, keys)), "key_padding_mask": padding * -1.5},
    }[kind]


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["none", "padding", "bool", "float", "float_padding"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weights", ["none", "average", "each"])
def test_against_torch(variant: str, kind: str, weights: str, rng: Any) -> None:
    options = VARIANTS[variant]
    self_attention = variant == "batch_first"
    query, key, value = arrays(options, rng, self_attention)
    call = masks(kind, L if self_attention else S, rng)
    call |= {"need_weights": weights != "none", "average_attn_weights": weights == "average"}
    module = randomise(nn.MultiheadAttention(E, HEADS, **options, dtype=np.float64), rng)
    assert_same_module(
        module, torch_module("MultiheadAttention", E, HEADS, **options), (query, key, value), call, rng
    )


@pytest.mark.torch
def test_unbatched_and_causal_against_torch(rng: Any) -> None:
    module = randomise(nn.MultiheadAttention(E, HEADS, dtype=np.float64), rng)
    theirs = torch_module("MultiheadAttention", E, HEADS)
    q, k = rng.standard_normal((L, E)), rng.standard_normal((S, E))
    padding = np.array([False, True, False, False, True])
    assert_same_module(module, theirs, (q, k, k), {"key_padding_mask": padding}, rng)
    x = rng.standard_normal((L, N, E))
    mask = ~np.tri(L, dtype=bool)
    expected = module(x, x, x, attn_mask=mask)
    for found, want in zip(module(x, x, x, is_causal=True), expected, strict=True):
        np.testing.assert_allclose(found, want, **CLOSE)
    assert_same_module(module, theirs, (x, x, x), {"attn_mask": mask, "is_causal": True}, rng)


def test_against_the_numpy_assembly(rng: Any) -> None:
    module = randomise(nn.MultiheadAttention(E, HEADS, batch_first=True, dtype=np.float64), rng)
    q, k, v = arrays({"batch_first": True}, rng)
    params, expected_grads = module.state_dict(), {}
    expected, pull_expected = reference.multihead_attention(
        q, k, v, params, expected_grads, num_heads=HEADS, is_causal=True
    )
    (y, weights), pull = module.vjp(q, k, v, is_causal=True, need_weights=False)
    assert weights is None
    np.testing.assert_allclose(y, expected, **CLOSE)
    dy = rng.standard_normal(y.shape)
    for found, want in zip(pull(dy), pull_expected(dy), strict=True):
        np.testing.assert_allclose(found, want, **CLOSE)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(parameter.grad, expected_grads[name], err_msg=name, **CLOSE)


def test_dropout_is_seeded_and_differentiated(rng: Any) -> None:
    module = randomise(nn.MultiheadAttention(E, HEADS, dropout=0.4, dtype=np.float64), rng)
    x = rng.standard_normal((L, 2, E))

    def run() -> Any:
        seqkern.manual_seed(4)
        return module.vjp(x, x, x)

    (y, weights), pull = run()
    assert (weights == 0).any()
    dy, dweights = rng.standard_normal(y.shape), rng.standard_normal(weights.shape)
    dx = sum(pull((dy, dweights)))

    def loss() -> float:
        y, weights = run()[0]
        return float((dy * y).sum() + (dweights * weights).sum())

    np.testing.assert_allclose(dx, central_difference(loss, x), rtol=1e-5, atol=1e-7)
    module.eval()
    assert (module(x, x, x)[1] > 0).all()


def test_dead_rows_give_the_output_bias(rng: Any) -> None:
    module = randomise(nn.MultiheadAttention(E, HEADS, batch_first=True, dtype=np.float64), rng)
    x = rng.standard_normal((N, L, E))
    padding = np.zeros((N, L), bool)
    padding[1] = True
    (y, _), pull = module.vjp(x, x, x, key_padding_mask=padding)
    np.testing.assert_array_equal(y[1], np.broadcast_to(module.out_proj.bias.data, (L, E)))
    assert all(np.isfinite(g).all() and not g[1].any() for g in pull(np.ones_like(y)))


@pytest.mark.parametrize("steps", [(1, 1, 1, 1), (2, 1, 1), (4,)])
@pytest.mark.parametrize("batch_first", [True, False])
def test_cache_equals_the_whole(steps: tuple[int, ...], batch_first: bool, rng: Any) -> None:
    module = randomise(nn.MultiheadAttention(E, HEADS, batch_first=batch_first, dtype=np.float64), rng)
    x = rng.standard_normal((N, L, E) if batch_first else (L, N, E))
    axis = 1 if batch_first else 0
    whole, _ = module(x, x, x, is_causal=True)
    cache, parts = nn.KVCache(), []
    for part in np.split(x, np.cumsum(steps)[:-1], axis=axis):
        parts.append(module(part, part, part, is_causal=True, cache=cache)[0])
    assert cache.length == L
    np.testing.assert_allclose(np.concatenate(parts, axis=axis), whole, **CLOSE)


def test_wrong_arguments_are_named(rng: Any) -> None:
    module = nn.MultiheadAttention(E, HEADS)
    x = rng.standard_normal((L, N, E)).astype(np.float32)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        nn.MultiheadAttention(7, 2)
    for arguments, name in [
        ((x[..., :3], x, x), "query"),
        ((x, x[:, :2], x), "key"),
        ((x, x, x[:3]), "value"),
    ]:
        with pytest.raises(ValueError, match=name):
            module(*arguments)
    with pytest.raises(TypeError, match="key must be an array"):
        module(x, None, None)
    with pytest.raises(ValueError, match="attn_mask"):
        module(x, x, x, attn_mask=np.zeros((L, L + 1), bool))
    with pytest.raises(TypeError, match="key_padding_mask"):
        module(x, x, x, key_padding_mask=np.zeros((N, L), int))


def encoder_modules(rng: Any) -> dict[str, tuple[Any, str]]:
    options = {"dtype": np.float64, "rng": rng}
    return {
        "bahdanau": (nn.BahdanauAttention(4, 3, 5, **options), "additive"),
        "dot": (nn.LuongAttention(3, score="dot", **options), "dot"),
        "general": (nn.LuongAttention(4, 3, score="general", **options), "general"),
        "concat": (nn.LuongAttention(4, 3, score="concat", hidden_size=6, **options), "concat"),
    }


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("lengths", [None, np.array([5, 0, 2])], ids=["full", "ragged"])
@pytest.mark.parametrize("name", ["bahdanau", "dot", "general", "concat"])
def test_encoder_attention(name: str, lengths: Any, single: bool, rng: Any) -> None:
    module, score = encoder_modules(rng)[name]
    query, keys = rng.standard_normal((N, 1 if single else L, module.query_size)), rng.standard_normal((N, S, 3))
    parameters = [p for _, p in module.named_parameters()]
    if score == "additive":
        parameters = [module.query_proj.weight, module.key_proj.weight, module.v]
    context, weights, saved = reference.encoder_attention_forward(
        query, keys, score, tuple(p.data for p in parameters), lengths=lengths
    )
    dcontext, dweights = rng.standard_normal(context.shape), rng.standard_normal(weights.shape)
    expected = reference.encoder_attention_backward(dcontext, dweights, saved)

    def outer(x: Any) -> Any:
        return x[:, 0] if single else x

    found, pull = module.vjp(outer(query), keys, lengths=lengths)
    for ours, theirs in zip(found, (context, weights), strict=True):
        np.testing.assert_allclose(ours, outer(theirs), **CLOSE)
    dquery, dkeys = pull((outer(dcontext), outer(dweights)))
    np.testing.assert_allclose(dquery, outer(expected.dquery), **CLOSE)
    np.testing.assert_allclose(dkeys, expected.dkeys, **CLOSE)
    for parameter, grad in zip(parameters, expected.dparameters, strict=True):
        np.testing.assert_allclose(parameter.grad, grad, **CLOSE)
    if lengths is not None:
        assert not found[1][1].any() and not found[1][2, ..., 2:].any()
