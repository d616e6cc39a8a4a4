"""Optimiser updates and clipping: first steps by hand, and a quadratic that must shrink."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference


def test_sgd_by_hand() -> None:
    param, grad = np.array([1.0, -2.0]), np.array([0.5, 1.0])
    assert reference.sgd_update(param, grad, None, lr=0.1) is None
    np.testing.assert_allclose(param, [0.95, -2.1], rtol=1e-15)
    buffer = reference.sgd_update(param, grad, None, lr=0.1, momentum=0.9, dampening=0.5)
    assert buffer is not None
    np.testing.assert_array_equal(buffer, grad)
    assert not np.shares_memory(buffer, grad)
    same = reference.sgd_update(param, grad, buffer, lr=0.1, momentum=0.9, dampening=0.5)
    assert same is buffer
    np.testing.assert_allclose(buffer, 1.4 * grad, rtol=1e-15)
    np.testing.assert_allclose(param, [0.95 - 0.12, -2.1 - 0.24], rtol=1e-15)


def test_adagrad_by_hand() -> None:
    param, grad, total = np.array([1.0]), np.array([3.0]), np.array([16.0])
    reference.adagrad_update(param, grad, total, lr=0.5, eps=0.0)
    np.testing.assert_allclose(total, [25.0])
    np.testing.assert_allclose(param, [1 - 0.5 * 3 / 5], rtol=1e-15)


def test_adamw_first_step_moves_by_lr() -> None:
    param, grad = np.array([2.0, 2.0]), np.array([1e-3, -7.0])
    moments = np.zeros(2), np.zeros(2)
    reference.adamw_update(
        param, grad, *moments, step=1, lr=0.1, beta1=0.9, beta2=0.99, eps=0.0, weight_decay=0.5
    )
    np.testing.assert_allclose(param, [2 * 0.95 - 0.1, 2 * 0.95 + 0.1], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_updates_happen_in_place_and_keep_the_dtype(dtype: Any, rng: Any) -> None:
    param, grad = rng.standard_normal((2, 3)).astype(dtype), np.ones((2, 3), dtype)
    before, kept = param.copy(), grad.copy()
    states = [np.zeros_like(param) for _ in range(4)]
    reference.sgd_update(param, grad, states[0], lr=0.1, momentum=0.9, nesterov=True)
    reference.adagrad_update(param, grad, states[1], lr=0.1)
    reference.adamw_update(
        param, grad, *states[2:], step=1, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0
    )
    assert (param < before).all()
    assert param.dtype == dtype
    assert all(state.any() and state.dtype == dtype for state in states)
    np.testing.assert_array_equal(grad, kept)


def test_clip_by_value() -> None:
    gradients = [np.array([-7.0, 3.0]), None, np.array([[5.5]])]
    reference.clip_grad_value_(gradients, 5.0)
    np.testing.assert_array_equal(gradients[0], [-5, 3])
    np.testing.assert_array_equal(gradients[2], [[5]])


def test_clip_by_norm() -> None:
    gradients = [np.array([3.0, 0.0]), None, np.array([[4.0]])]
    assert reference.clip_grad_norm_(gradients, 10.0) == pytest.approx(5.0)
    np.testing.assert_array_equal(gradients[0], [3, 0])
    assert reference.clip_grad_norm_(gradients, 1.0) == pytest.approx(5.0)
    np.testing.assert_allclose(gradients[0], [3 / (5 + 1e-6), 0], rtol=1e-12)
    assert reference.clip_grad_norm_(gradients, 1.0, float("inf")) == pytest.approx(0.8)
    assert reference.clip_grad_norm_([None], 1.0) == 0.0
    huge = [np.full(4, 1e30, np.float32)]  # the squares overflow float32, the norm does not
    assert reference.clip_grad_norm_(huge, 1.0) == pytest.approx(2e30)
    np.testing.assert_allclose(huge[0], 0.5, rtol=1e-6)
