"""Norms after a residual, batch norm and the rotary embedding against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "bare"])
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_add_norms(op: str, affine: bool, rng: Any, assert_gradients: Any) -> None:
    x, residual = rng.standard_normal((2, 2, 3, 4)) + 1
    names = ["weight", "bias"] if op == "layer_norm" else ["weight"]
    parameters = {name: rng.standard_normal(4) for name in names if affine}
    function = getattr(reference, f"add_{op}")
    y, summed, saved = getattr(reference, f"add_{op}_forward")(x, residual, (4,), **parameters, eps=1e-3)
    np.testing.assert_array_equal(summed, x + residual)
    np.testing.assert_array_equal(y, getattr(reference, op)(summed, (4,), **parameters, eps=1e-3))
    dy, dsummed = rng.standard_normal((2, *y.shape))
    backward = getattr(reference, f"add_{op}_backward")
    gradients = backward(dy, dsummed, saved)._asdict()

    def loss() -> Any:
        y, summed = function(x, residual, (4,), **parameters, eps=1e-3)
        return (dy * y).sum() + (dsummed * summed).sum()

    arrays = {"x": x, "residual": residual} | parameters
    assert_gradients(loss, {name: (array, gradients[f"d{name}"]) for name, array in arrays.items()})
    np.testing.assert_array_equal(backward(None, dsummed, saved).dx, dsummed)
    np.testing.assert_allclose(backward(dy, None, saved).dx + dsummed, gradients["dx"], rtol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "bare"])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (2, 3, 2, 2)], ids=str)
def test_batch_norm(
    shape: tuple[int, ...], affine: bool, training: bool, rng: Any, assert_gradients: Any
) -> None:
    x = rng.standard_normal(shape) * 2 + 1
    parameters = {name: rng.standard_normal(3) for name in ("weight", "bias") if affine}
    statistics = (None, None) if training else (rng.standard_normal(3), rng.uniform(1, 2, 3))
    _, saved = reference.batch_norm_forward(x, *statistics, **parameters, training=training)
    dy = rng.standard_normal(shape)
    gradients = reference.batch_norm_backward(dy, saved)._asdict()

    def loss() -> Any:
        return (dy * reference.batch_norm(x, *statistics, **parameters, training=training)).sum()

    arrays = {"x": x} | parameters
    assert_gradients(loss, {name: (array, gradients[f"d{name}"]) for name, array in arrays.items()})
    assert {n for n, g in gradients.items() if g is not None} == {f"d{n}" for n in arrays}
    assert not reference.batch_norm_backward(None, saved).dx.any()


def test_running_statistics(rng: Any) -> None:
    """One step of momentum 1/4 towards the batch's mean and unbiased variance."""
    x = rng.standard_normal((6, 2, 3))
    mean, var = np.array([1.0, -1.0]), np.array([2.0, 3.0])
    reference.batch_norm(x, mean, var, training=True, momentum=0.25)
    by_channel = np.moveaxis(x, 1, 0).reshape(2, -1)
    np.testing.assert_allclose(mean, 0.75 * np.array([1, -1]) + by_channel.mean(1) / 4, rtol=1e-14)
    np.testing.assert_allclose(var, 0.75 * np.array([2, 3]) + by_channel.var(1, ddof=1) / 4, rtol=1e-14)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [None, 4, 0])
@pytest.mark.parametrize("with_positions", [False, True])
def test_rope(
    interleaved: bool, rotary_dim: int | None, with_positions: bool, rng: Any, assert_gradients: Any
) -> None:
    x = rng.standard_normal((2, 3, 6))
    positions = np.array([7, 0, 2]) if with_positions else None
    options: Any = {"base": 50.0, "interleaved": interleaved, "rotary_dim": rotary_dim}
    y, saved = reference.rope_forward(x, positions, **options)
    dy = rng.standard_normal(x.shape)
    dx = reference.rope_backward(dy, saved).dx
    assert_gradients(lambda: (dy * reference.rope(x, positions, **options)).sum(), {"x": (x, dx)})
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-14)
    assert not reference.rope_backward(None, saved).dx.any()


def test_rope_by_complex_numbers(rng: Any) -> None:
    """Interleaved pairs are complex numbers times e^(i position θ)."""
    x = rng.standard_normal((3, 4))
    theta = np.array([1.0, 0.1])
    turned = x.view(np.complex128) * np.exp(1j * np.arange(3)[:, None] * theta)
    np.testing.assert_allclose(
        reference.rope(x, base=100.0, interleaved=True), turned.view(np.float64), rtol=1e-13
    )
