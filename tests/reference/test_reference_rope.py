"""Rotary embedding and sinusoidal positions against central differences and their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference


@pytest.mark.parametrize("rotary_dim", [None, 4, 0])
@pytest.mark.parametrize("interleaved", [True, False], ids=["gpt-j", "neox"])
@pytest.mark.parametrize("given", [True, False], ids=["positions", "default"])
def test_rope(
    given: bool, interleaved: bool, rotary_dim: int | None, rng: Any, assert_gradients: Any
) -> None:
    x = rng.standard_normal((2, 2, 3, 6))
    positions = np.array([[[4, 0, 9]], [[1, 1, 2]]]) if given else None
    options: Any = {"base": 100.0, "interleaved": interleaved, "rotary_dim": rotary_dim}
    y, saved = reference.rope_forward(x, positions, **options)
    r = 6 if rotary_dim is None else rotary_dim
    expected = x.copy()
    where = np.broadcast_to(np.arange(3) if positions is None else positions, (2, 2, 3))
    for b, h, t in np.ndindex(2, 2, 3):
        for i in range(r // 2):
            pair = [2 * i, 2 * i + 1] if interleaved else [i, i + r // 2]
            turned = complex(*x[b, h, t, pair]) * np.exp(
                1j * where[b, h, t] * 100.0 ** (-2 * i / r)
            )
            expected[b, h, t, pair] = turned.real, turned.imag
    np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-15)
    dy = rng.standard_normal(x.shape)
    dx = reference.rope_backward(dy, saved).dx
    assert_gradients(lambda: (dy * reference.rope(x, positions, **options)).sum(), {"x": (x, dx)})
    assert not reference.rope_backward(None, saved).dx.any()


def test_rope_makes_scores_depend_on_distance_alone(rng: Any) -> None:
    q, k = rng.standard_normal((2, 1, 8))
    pairs = [
        (reference.rope(q, np.array([p + 5])), reference.rope(k, np.array([p])))
        for p in (0, 7, 900)
    ]
    scores = [(a @ b.T).item() for a, b in pairs]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-11)


def test_rope_keeps_the_dtype(rng: Any) -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    y, saved = reference.rope_forward(rng.standard_normal((3, 4)).astype(bfloat16))
    assert y.dtype == reference.rope_backward(y, saved).dx.dtype == bfloat16


@pytest.mark.parametrize("dim", [1, 4, 5])
def test_sinusoidal_positions(dim: int) -> None:
    table = reference.sinusoidal_positions(7, dim)
    assert table.shape == (7, dim)
    for position, d in np.ndindex(7, dim):
        angle = position / 10000 ** (2 * (d // 2) / dim)
        assert table[position, d] == pytest.approx([np.sin, np.cos][d % 2](angle), abs=1e-14)
    assert table.dtype == np.float64
