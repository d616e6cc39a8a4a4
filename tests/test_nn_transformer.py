"""The Transformer's layers and stacks against torch and against the NumPy assembly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import seqkern
from seqkern import nn, reference
from support.module_oracle import (
    CLOSE,
    assert_same_module,
    central_difference,
    randomise,
    torch_module,
)

D, HEADS, FF, T, S, N = 8, 2, 12, 4, 5, 3
FORMS = [
    {},
    {"norm_first": True, "activation": "gelu", "batch_first": True},
    {"bias": False, "layer_norm_eps": 1e-3},
]


def shaped(rng: Any, options: dict[str, Any], length: int) -> Any:
    return rng.standard_normal((N, length, D) if options.get("batch_first") else (length, N, D))


def padding(length: int) -> Any:
    mask = np.zeros((N, length), bool)
    mask[1, -2:] = True
    return mask


@pytest.mark.torch
@pytest.mark.parametrize("options", FORMS, ids=["post", "pre", "no_bias"])
def test_encoder_layer_against_torch(options: dict[str, Any], rng: Any) -> None:
    arguments: Any = (D, HEADS, FF, 0.0)
    ours = randomise(nn.TransformerEncoderLayer(*arguments, **options, dtype=np.float64), rng)
    theirs = torch_module("TransformerEncoderLayer", *arguments, **options)
    call = {"src_mask": ~np.tri(S, dtype=bool), "src_key_padding_mask": padding(S)}
    assert_same_module(ours, theirs, (shaped(rng, options, S),), call, rng)
    assert_same_module(ours, theirs, (rng.standard_normal((S, D)),), {}, rng)


@pytest.mark.torch
@pytest.mark.parametrize("options", FORMS, ids=["post", "pre", "no_bias"])
def test_decoder_layer_against_torch(options: dict[str, Any], rng: Any) -> None:
    arguments: Any = (D, HEADS, FF, 0.0)
    ours = randomise(nn.TransformerDecoderLayer(*arguments, **options, dtype=np.float64), rng)
    theirs = torch_module("TransformerDecoderLayer", *arguments, **options)
    call = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(T, np.float64),
        "memory_mask": rng.standard_normal((T, S)),
        "memory_key_padding_mask": padding(S) * -1e9,
    }
    inputs = (shaped(rng, options, T), shaped(rng, options, S))
    assert_same_module(ours, theirs, inputs, call, rng)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # torch of its own defaults
@pytest.mark.parametrize("options", FORMS, ids=["post", "pre", "no_bias"])
def test_transformer_against_torch(options: dict[str, Any], rng: Any) -> None:
    arguments: Any = (D, HEADS, 2, 3, FF, 0.0)
    ours = randomise(nn.Transformer(*arguments, **options, dtype=np.float64), rng)
    theirs = torch_module("Transformer", *arguments, **options)
    call = {
        "tgt_mask": ~np.tri(T, dtype=bool),
        "src_key_padding_mask": padding(S),
        "memory_key_padding_mask": padding(S),
    }
    inputs = (shaped(rng, options, S), shaped(rng, options, T))
    assert_same_module(ours, theirs, inputs, call, rng)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("decoder", [True, False])
def test_layers_against_the_numpy_assembly(decoder: bool, activation: str, norm_first: bool, rng: Any) -> None:
    kind = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    form: Any = {"activation": activation, "norm_first": norm_first}
    module = randomise(kind(D, HEADS, FF, 0.0, **form, batch_first=True, dtype=np.float64), rng)
    inputs = [rng.standard_normal((N, T, D))] + [rng.standard_normal((N, S, D))] * decoder
    call = {"tgt_is_causal" if decoder else "is_causal": True}
    expected_grads: dict[str, Any] = {}
    expected, pull_expected = reference.transformer_layer(
        inputs[0],
        module.state_dict(),
        expected_grads,
        num_heads=HEADS,
        memory=inputs[1] if decoder else None,
        options={"is_causal": True},
        **form,
    )
    y, pull = module.vjp(*inputs, **call)
    np.testing.assert_array_equal(y, module(*inputs, **call))
    np.testing.assert_allclose(y, expected, **CLOSE)
    dy = rng.standard_normal(y.shape)
    for found, want in zip(pull(dy), pull_expected(dy), strict=True):
        np.testing.assert_allclose(found, want, **CLOSE)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(parameter.grad, expected_grads[name], err_msg=name, **CLOSE)


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoding_step_by_step_equals_the_whole(norm_first: bool, rng: Any) -> None:
    layer = nn.TransformerDecoderLayer(D, HEADS, FF, norm_first=norm_first, batch_first=True, dtype=np.float64)
    decoder = randomise(nn.TransformerDecoder(layer, 2, nn.LayerNorm(D, dtype=np.float64)), rng).eval()
    tgt, memory = rng.standard_normal((N, T, D)), rng.standard_normal((N, S, D))
    mask = {"memory_key_padding_mask": padding(S)}
    whole = decoder(tgt, memory, tgt_is_causal=True, **mask)
    cache = decoder.new_cache()
    parts = [decoder(tgt[:, :2], memory, tgt_is_causal=True, cache=cache, **mask)]
    parts += [decoder(tgt[:, t : t + 1], memory, cache=cache, **mask) for t in range(2, T)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, **CLOSE)


def test_dropout_in_training_is_seeded_and_differentiated(rng: Any) -> None:
    module = randomise(nn.Transformer(4, 2, 1, 1, 6, 0.3, "gelu", batch_first=True, dtype=np.float64), rng)
    src, tgt = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 2, 4))

    def run() -> Any:
        seqkern.manual_seed(9)
        return module.vjp(src, tgt, tgt_is_causal=True)

    y, pull = run()
    dy = rng.standard_normal(y.shape)
    dsrc, dtgt = pull(dy)
    assert not np.allclose(y, module.eval()(src, tgt, tgt_is_causal=True))
    module.train()
    for array, grad in ((src, dsrc), (tgt, dtgt)):
        expected = central_difference(lambda: float((dy * run()[0]).sum()), array)
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(RuntimeError, match="already called"):
        pull(dy)


def test_stacks_start_from_copies_and_transformer_from_xavier(rng: Any) -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, HEADS, FF, rng=rng), 2)
    first, second = encoder.layers
    np.testing.assert_array_equal(first.linear1.weight.data, second.linear1.weight.data)
    assert first.linear1.weight.data is not second.linear1.weight.data
    weight = nn.Transformer(D, HEADS, 1, 1, 200, rng=rng).encoder.layers[0].linear1.weight.data
    bound = (6 / (200 + D)) ** 0.5
    assert 0.9 * bound < abs(weight).max() <= bound


def test_sinusoidal_positions(rng: Any) -> None:
    x = rng.standard_normal((N, T, D))
    table = reference.sinusoidal_positions(10, D)
    y, pull = nn.SinusoidalPositions(D, 10).vjp(x, 3)
    np.testing.assert_allclose(y, x + table[3 : 3 + T], rtol=1e-15)
    (dx,) = pull(y)
    np.testing.assert_array_equal(dx, y)
    swapped = nn.SinusoidalPositions(D, 10, batch_first=False)(x.swapaxes(0, 1), 3)
    np.testing.assert_array_equal(swapped.swapaxes(0, 1), y)
    with pytest.raises(ValueError, match="at most 10"):
        nn.SinusoidalPositions(D, 10)(x, 7)
