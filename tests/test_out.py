"""`out=`: the same bits, written where the caller says; anything unfit is refused and left alone."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.compare import assert_bitwise_equal

Array = np.ndarray
W = np.linspace(0.5, 2, 6, dtype=np.float32)
FORWARD: dict[str, Callable[..., Any]] = {
    "relu": lambda ops, x, **o: ops.relu(x, **o),
    "sigmoid": lambda ops, x, **o: ops.sigmoid(x, **o),
    "tanh": lambda ops, x, **o: ops.tanh(x, **o),
    "silu": lambda ops, x, **o: ops.silu(x, **o),
    "gelu": lambda ops, x, **o: ops.gelu(x, **o),
    "layer_norm": lambda ops, x, **o: ops.layer_norm(x, 6, W, W, **o),
    "rms_norm": lambda ops, x, **o: ops.rms_norm(x, 6, W, **o),
    "batch_norm": lambda ops, x, **o: ops.batch_norm(x, None, None, W, W, True, **o),
    "rope": lambda ops, x, **o: ops.rope(x, **o),
}
EVERY = pytest.mark.parametrize("name", list(FORWARD))


def make() -> Array:
    return np.random.default_rng(5).standard_normal((4, 6)).astype(np.float32)


@EVERY
def test_forward_and_backward(ops: ModuleType, name: str) -> None:
    x, out = make(), np.full((4, 6), np.nan, np.float32)
    assert FORWARD[name](ops, x, out=out) is out
    assert_bitwise_equal(out, FORWARD[name](ops, x), name)
    arguments: tuple[Any, ...] = {
        "layer_norm": (x, 6, W, W), "rms_norm": (x, 6, W), "batch_norm": (x, None, None, W, W, True),
    }.get(name, (x,))  # fmt: skip
    _, saved = getattr(ops, f"{name}_forward")(*arguments)
    backward = getattr(ops, f"{name}_backward")
    dx = np.full((4, 6), np.nan, np.float32)
    assert backward(x[::-1], saved, out=dx).dx is dx
    assert_bitwise_equal(dx, backward(x[::-1], saved).dx, name)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(ops: ModuleType, name: str) -> None:
    op, x, out = getattr(ops, name), make(), np.full((4, 6), np.nan, np.float32)
    assert op(x, out=out) is out
    assert_bitwise_equal(out, op(x), name)
    for bad in (x, out[:, ::-1], out[:3], out.astype(np.float64)):
        with pytest.raises((TypeError, ValueError), match=f"{name}: out must"):
            op(x, out=bad)
    with pytest.raises(ValueError, match="out must be None unless dim is the last axis"):
        op(x, 0, out=out)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_two_outputs(ops: ModuleType, name: str) -> None:
    x, residual = make(), make()[::-1].copy()
    op = getattr(ops, f"add_{name}")
    out = (np.empty_like(x), np.empty_like(x))
    y, summed = op(x, residual, 6, W, out=out)
    assert y is out[0] and summed is out[1]
    assert_bitwise_equal(out, op(x, residual, 6, W), name)
    with pytest.raises(TypeError, match="out must be a tuple of two arrays"):
        op(x, residual, 6, W, out=out[0])
    with pytest.raises(ValueError, match="overlap"):
        op(x, residual, 6, W, out=(out[0], out[0]))


@EVERY
def test_refused(ops: ModuleType, name: str) -> None:
    x = make()
    locked = np.zeros_like(x)
    locked.flags.writeable = False
    buffer = np.zeros(48, np.float32)
    shared = buffer[:24].reshape(4, 6)
    shared[...] = x
    bad: list[tuple[Any, Any, type[Exception]]] = [
        (x, x, ValueError),
        (shared, buffer[12:36].reshape(4, 6), ValueError),
        (shared[::-1], buffer[20:44].reshape(4, 6), ValueError),
        (x, locked, ValueError),
        (x, np.zeros((4, 12), np.float32)[:, ::2], ValueError),
        (x, np.zeros((6, 4), np.float32), ValueError),
        (x, np.zeros(24, np.float32), ValueError),
        (x, np.zeros((4, 6)), TypeError),
        (x, x.tolist(), TypeError),
        (x, np.zeros((4, 6), ">f4"), TypeError),
    ]
    before = x.copy()
    for given, out, error in bad:
        kept = np.array(out)
        with pytest.raises(error, match=rf"{name}: out "):
            FORWARD[name](ops, given, out=out)
        assert np.array_equal(kept, out)
    assert np.array_equal(x, before)
