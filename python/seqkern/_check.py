"""Scalar arguments and saved tuples: errors that name the operation, the argument and what came."""

from __future__ import annotations

from operator import index
from typing import Any


def integer(op: str, name: str, value: Any) -> int:
    """`value` as an int; TypeError for anything that is not one."""
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}") from None


def number(op: str, name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float in [low, high]; TypeError or ValueError otherwise."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    result = float(value)
    if not low <= result <= high:
        raise ValueError(f"{op}: {name} must lie in [{low}, {high}], got {value!r}")
    return result


def saved_by(op: str, saved: Any, kind: type) -> None:
    """TypeError unless `saved` is what the forward pass returned."""
    if not isinstance(saved, kind):
        raise TypeError(
            f"{op}: saved must be the {kind.__name__} that {op}_forward returned, "
            f"got {type(saved).__name__}"
        )
