"""Linear, embedding, softmax, cross-entropy, norms and activations against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (3,)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "bare"])
def test_linear(shape: tuple[int, ...], with_bias: bool, rng: Any, assert_gradients: Any) -> None:
    x, weight = rng.standard_normal(shape), rng.standard_normal((4, 3))
    bias = rng.standard_normal(4) if with_bias else None
    y, saved = reference.linear_forward(x, weight, bias, precision="high")
    dy = rng.standard_normal(y.shape)
    gradients = reference.linear_backward(dy, saved)
    pairs = {"x": (x, gradients.dx), "weight": (weight, gradients.dweight)}
    if bias is None:
        assert gradients.dbias is None
    else:
        pairs["bias"] = (bias, gradients.dbias)
    assert_gradients(lambda: (dy * reference.linear(x, weight, bias)).sum(), pairs)
    assert not reference.linear_backward(None, saved).dweight.any()


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "bare"])
def test_fused_linear(activation: str | None, with_residual: bool, rng: Any, assert_gradients: Any) -> None:
    x, weight, bias = (rng.standard_normal(shape) for shape in ((2, 4, 3), (5, 3), (5,)))
    residual = rng.standard_normal((2, 4, 5)) if with_residual else None
    options: dict[str, Any] = {"activation": activation, "residual": residual}
    y, saved = reference.linear_forward(x, weight, bias, **options)
    dy = rng.standard_normal(y.shape)
    gradients = reference.linear_backward(dy, saved)
    pairs = {"x": (x, gradients.dx), "weight": (weight, gradients.dweight), "bias": (bias, gradients.dbias)}
    if residual is None:
        assert gradients.dresidual is None
    else:
        pairs["residual"] = (residual, gradients.dresidual)
    assert_gradients(lambda: (dy * reference.linear(x, weight, bias, **options)).sum(), pairs)


def test_int8(rng: Any) -> None:
    weight = rng.standard_normal((5, 9)) * 10.0 ** rng.integers(-3, 4, (5, 1))
    weight[2] = 0
    q, scale = reference.quantize_int8(weight)
    assert q.dtype == np.int8 and np.abs(q).max(axis=1).tolist() == [127, 127, 0, 127, 127]
    assert (np.abs(weight - q * scale[:, None].astype(np.float64)) <= scale[:, None] * (0.5 + 127 * 2**-24)).all()
    x, bias, residual = rng.standard_normal((3, 9)), rng.standard_normal(5), rng.standard_normal((3, 5))
    y = reference.linear_int8(x, q, scale, bias, activation="silu", residual=residual)
    z = x @ (q * scale[:, None].astype(np.float64)).T + bias
    np.testing.assert_allclose(y, z / (1 + np.exp(-z)) + residual, rtol=1e-12)


@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_embedding(padding_idx: int | None, rng: Any, assert_gradients: Any) -> None:
    weight = rng.standard_normal((5, 3))
    ids = np.array([[0, 2, 2], [4, 0, 2]])
    y, saved = reference.embedding_forward(ids, weight, padding_idx=padding_idx)
    np.testing.assert_array_equal(y[1, 0], weight[4])
    dy = rng.standard_normal(y.shape)
    dweight = reference.embedding_backward(dy, saved).dweight
    if padding_idx is not None:
        assert not dweight[padding_idx].any()
        dy[ids == padding_idx % 5] = 0  # the row is read, but treated as a constant
    assert_gradients(lambda: (dy * reference.embedding(ids, weight)).sum(), {"weight": (weight, dweight)})


@pytest.mark.parametrize("dim", [-1, 0, 1])
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_softmax(op: str, dim: int, rng: Any, assert_gradients: Any) -> None:
    function = getattr(reference, op)
    x = rng.standard_normal((3, 4, 2)) * 3
    y, saved = getattr(reference, f"{op}_forward")(x, dim)
    probabilities = y if op == "softmax" else np.exp(y)
    np.testing.assert_allclose(probabilities.sum(axis=dim), 1, rtol=1e-14)
    dy = rng.standard_normal(x.shape)
    dx = getattr(reference, f"{op}_backward")(dy, saved).dx
    assert_gradients(lambda: (dy * function(x, dim)).sum(), {"x": (x, dx)})
    assert not getattr(reference, f"{op}_backward")(None, saved).dx.any()


def test_softmax_extremes() -> None:
    x = np.array([[1e4, 0.0, -1e4], [-np.inf, 0.0, 0.0], [1e308, -1e308, 1e308]])
    expected = [[1, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]]
    np.testing.assert_array_equal(reference.softmax(x), expected)
    np.testing.assert_array_equal(reference.log_softmax(x)[0], [0, -1e4, -2e4])
    for hopeless in ([-np.inf, -np.inf], [np.inf, 0.0], [np.nan, 0.0]):
        assert np.isnan(reference.softmax(np.array(hopeless))).all()
    assert reference.softmax(np.zeros((2, 0))).shape == (2, 0)
    assert reference.log_softmax(np.zeros((2, 0))).shape == (2, 0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(6,), (2, 3), ()], ids=str)
def test_cross_entropy(
    shape: tuple[int, ...], label_smoothing: float, reduction: str, rng: Any, assert_gradients: Any
) -> None:
    logits = rng.standard_normal((*shape, 5))
    target = np.asarray(rng.integers(0, 5, shape))
    if shape:
        target.ravel()[1] = 3
        target.ravel()[2] = -100
    options: Any = {"label_smoothing": label_smoothing, "reduction": reduction}
    loss, saved = reference.cross_entropy_forward(logits, target, **options)
    assert loss.shape == (shape if reduction == "none" else ())
    dloss = np.asarray(rng.standard_normal(loss.shape))
    dlogits = reference.cross_entropy_backward(dloss, saved).dlogits
    assert_gradients(
        lambda: (dloss * reference.cross_entropy(logits, target, **options)).sum(),
        {"logits": (logits, dlogits)},
    )
    assert not dlogits[target == -100].any()
    assert not reference.cross_entropy_backward(None, saved).dlogits.any()


def test_cross_entropy_gradient_is_softmax_minus_target(rng: Any) -> None:
    logits, target = rng.standard_normal((4, 3)), np.array([0, 2, 1, 2])
    _, saved = reference.cross_entropy_forward(logits, target, reduction="sum")
    dlogits = reference.cross_entropy_backward(1.0, saved).dlogits
    np.testing.assert_allclose(dlogits, reference.softmax(logits) - np.eye(3)[target], rtol=1e-12)


def test_cross_entropy_edges() -> None:
    logits = np.array([[0.0, -np.inf, 0.0], [np.nan, 1.0, 2.0]])
    target = np.array([0, 7])
    loss, saved = reference.cross_entropy_forward(logits, target, ignore_index=7)
    assert loss == pytest.approx(np.log(2), rel=1e-15)
    dlogits = reference.cross_entropy_backward(1.0, saved).dlogits
    np.testing.assert_allclose(dlogits, [[-0.5, 0, 0.5], [0, 0, 0]])
    nobody, saved = reference.cross_entropy_forward(logits, np.array([7, 7]), ignore_index=7)
    assert np.isnan(nobody)
    assert not reference.cross_entropy_backward(1.0, saved).dlogits.any()


@pytest.mark.parametrize(
    ("op", "options"),
    [
        *((op, {}) for op in ("relu", "sigmoid", "tanh", "silu", "gelu")),
        ("gelu", {"approximate": "tanh"}),
    ],
)
def test_activations(op: str, options: Any, rng: Any, assert_gradients: Any) -> None:
    x = rng.standard_normal((3, 4)) * 3
    y, saved = getattr(reference, f"{op}_forward")(x, **options)
    dy = rng.standard_normal(x.shape)
    dx = getattr(reference, f"{op}_backward")(dy, saved).dx
    function = getattr(reference, op)
    np.testing.assert_array_equal(y, function(x, **options))
    assert_gradients(lambda: (dy * function(x, **options)).sum(), {"x": (x, dx)})
    at_ends = {"sigmoid": [0.5, 1], "tanh": [0, 1]}.get(op, [0, 40])
    np.testing.assert_allclose(function(np.array([0.0, 40.0]), **options), at_ends, rtol=1e-15)


def test_gelu_keeps_its_tail() -> None:
    """At -10 the naive (1 + erf) / 2 is 0; Φ(-10) = 7.619853024160527e-24."""
    assert reference.gelu(np.array([-10.0]))[0] == pytest.approx(-7.619853024160527e-23, rel=1e-12)


@pytest.mark.parametrize("normalized_shape", [(4,), (3, 4)], ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "bare"])
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_norms(op: str, affine: bool, normalized_shape: tuple[int, ...], rng: Any, assert_gradients: Any) -> None:
    x = rng.standard_normal((2, 3, 4)) * 2 + 1
    names = ["weight", "bias"] if op == "layer_norm" else ["weight"]
    parameters = {name: rng.standard_normal(normalized_shape) for name in names if affine}
    y, saved = getattr(reference, f"{op}_forward")(x, normalized_shape, **parameters, eps=1e-3)
    dy = rng.standard_normal(y.shape)
    gradients = getattr(reference, f"{op}_backward")(dy, saved)._asdict()
    function = getattr(reference, op)
    arrays = {"x": x} | parameters
    assert_gradients(
        lambda: (dy * function(x, normalized_shape, **parameters, eps=1e-3)).sum(),
        {name: (array, gradients[f"d{name}"]) for name, array in arrays.items()},
    )
    assert {n for n, g in gradients.items() if g is not None} == {f"d{n}" for n in arrays}


def test_dtypes_follow_the_input(rng: Any) -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    for dtype in (np.dtype(np.float32), bfloat16):
        x, weight = rng.standard_normal((4, 3)).astype(dtype), rng.standard_normal((3, 3))
        y, linear_saved = reference.linear_forward(x, weight.astype(dtype))
        assert y.dtype == dtype
        assert [g.dtype for g in reference.linear_backward(y, linear_saved)[:2]] == [
            dtype,
            np.float32,
        ]
        for op in ("softmax", "log_softmax", "relu", "silu", "gelu"):
            y, saved = getattr(reference, f"{op}_forward")(x)
            assert y.dtype == getattr(reference, f"{op}_backward")(y, saved).dx.dtype == dtype
        y, drop_saved = reference.dropout_forward(x, 0.5, seed=1)
        assert y.dtype == reference.dropout_backward(y, drop_saved).dx.dtype == dtype
        y, table_saved = reference.embedding_forward(np.array([1, 1]), x)
        assert y.dtype == dtype
        assert reference.embedding_backward(y, table_saved).dweight.dtype == np.float32
        loss, loss_saved = reference.cross_entropy_forward(x, np.array([0, 1, 2, 0]))
        assert loss.dtype == np.float32
        assert reference.cross_entropy_backward(loss, loss_saved).dlogits.dtype == dtype
        for norm in ("layer_norm", "rms_norm"):
            y, saved = getattr(reference, f"{norm}_forward")(x, (3,), np.ones(3, dtype))
            gradients = getattr(reference, f"{norm}_backward")(y, saved)
            assert (y.dtype, *(g.dtype for g in gradients[:2])) == (dtype, dtype, np.float32)
