"""The Transformer's NumPy assembly against central differences, parameter by parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference

N, L, S, E, HEADS, FF = 2, 3, 4, 4, 2, 5


def parameters(shapes: dict[str, tuple[int, ...]], bias: bool, rng: Any) -> dict[str, Any]:
    kept = {k: s for k, s in shapes.items() if bias or not k.endswith("bias")}
    return {name: 0.5 * rng.standard_normal(shape) for name, shape in kept.items()}


def attention_shapes(prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}in_proj_weight": (3 * E, E),
        f"{prefix}in_proj_bias": (3 * E,),
        f"{prefix}out_proj.weight": (E, E),
        f"{prefix}out_proj.bias": (E,),
    }


def layer_shapes(prefix: str, decoder: bool) -> dict[str, tuple[int, ...]]:
    shapes = attention_shapes(f"{prefix}self_attn.")
    if decoder:
        shapes |= attention_shapes(f"{prefix}multihead_attn.")
    shapes |= {f"{prefix}linear1.weight": (FF, E), f"{prefix}linear1.bias": (FF,)}
    shapes |= {f"{prefix}linear2.weight": (E, FF), f"{prefix}linear2.bias": (E,)}
    for k in range(1, 4 if decoder else 3):
        shapes |= {f"{prefix}norm{k}.weight": (E,), f"{prefix}norm{k}.bias": (E,)}
    return shapes


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_multihead_attention(bias: bool, rng: Any, assert_gradients: Any) -> None:
    query, key, value = (rng.standard_normal((N, n, E)) for n in (L, S, S))
    params = parameters(attention_shapes(), bias, rng)
    options = {"num_heads": HEADS, "kv_lengths": np.array([S, 2])}
    grads: dict[str, Any] = {}
    y, pull = reference.multihead_attention(query, key, value, params, grads, **options)
    dy = rng.standard_normal(y.shape)
    dquery, dkey, dvalue = pull(dy)
    assert set(grads) == set(params)
    pairs = {name: (params[name], grads[name]) for name in params}
    pairs |= {"query": (query, dquery), "key": (key, dkey), "value": (value, dvalue)}
    assert_gradients(
        lambda: (dy * reference.multihead_attention(query, key, value, params, {}, **options)[0]).sum(),
        pairs,
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("decoder", [True, False], ids=["decoder", "encoder"])
def test_layer(decoder: bool, activation: str, norm_first: bool, bias: bool, rng: Any, assert_gradients: Any) -> None:
    params = parameters(layer_shapes("layers.0.", decoder), bias, rng)
    x, memory = rng.standard_normal((N, L, E)), rng.standard_normal((N, S, E)) if decoder else None
    form: Any = {
        "num_heads": HEADS,
        "memory": memory,
        "activation": activation,
        "norm_first": norm_first,
        "options": {"is_causal": True},
        "memory_options": {"kv_lengths": np.array([2, S])},
    }

    def run(grads: dict[str, Any]) -> Any:
        return reference.transformer_layer(x, params, grads, "layers.0.", **form)

    grads: dict[str, Any] = {}
    y, pull = run(grads)
    dy = rng.standard_normal(y.shape)
    found = pull(dy)
    assert set(grads) == set(params)
    assert len(found) == 1 + decoder
    pairs = {name: (params[name], grads[name]) for name in params}
    pairs |= dict(zip(("x", "memory"), zip((x, memory), found, strict=False), strict=False))
    assert_gradients(lambda: (dy * run({})[0]).sum(), pairs)


def test_gradients_add_up_over_calls(rng: Any) -> None:
    params = parameters(layer_shapes("", False), True, rng)
    x, grads, once = rng.standard_normal((N, L, E)), {}, {}
    reference.transformer_layer(x, params, once, num_heads=HEADS)[1](np.ones_like(x))
    for _ in range(2):
        reference.transformer_layer(x, params, grads, num_heads=HEADS)[1](np.ones_like(x))
    for name in params:
        np.testing.assert_allclose(grads[name], 2 * once[name], rtol=1e-12)
