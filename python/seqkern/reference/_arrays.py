"""Dtypes and optional arrays, shared by every reference function."""

from __future__ import annotations

from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def compute_dtype(x: Array) -> np.dtype[Any]:
    """float64 for float64 input, float32 for everything narrower (float32, bfloat16, float16)."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


@overload
def widen(array: Array, dtype: np.dtype[Any]) -> Array: ...
@overload
def widen(array: None, dtype: np.dtype[Any]) -> None: ...
@overload
def widen(array: Array | None, dtype: np.dtype[Any]) -> Array | None: ...
def widen(array: Array | None, dtype: np.dtype[Any]) -> Array | None:
    """`array` in the dtype that is computed in; None stays None."""
    return None if array is None else np.asarray(array, dtype)


def widen_all(dtype: np.dtype[Any], *arrays: Array | None) -> list[Any]:
    """`widen` for several arrays at once."""
    return [widen(array, dtype) for array in arrays]


def narrow(array: Array, like: Array) -> Array:
    """`array` rounded to the dtype of `like`."""
    return array.astype(like.dtype, copy=False)


def or_zeros(array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A fresh copy of `array`, or zeros where it is None: initial states, incoming gradients."""
    return np.zeros(shape, dtype) if array is None else np.array(array, dtype)


def affine(x: Array, weight: Array, bias: Array | None) -> Array:
    """x Wᵀ + b, the bias being optional."""
    product = x @ weight.T
    return product if bias is None else product + bias


def bias_gradient(dy: Array, bias: Array | None) -> Array | None:
    """Σ dy over the rows of `[N, O]`; None for a bias that was not given."""
    return None if bias is None else dy.sum(axis=0)


def sigmoid(x: Array) -> Array:
    """sigmoid(x) = 1 / (1 + e⁻ˣ), in the form whose exponential cannot overflow."""
    decay = np.exp(-np.abs(x))
    sigma: Array = np.where(x >= 0, 1, decay) / (1 + decay)
    return sigma
