"""The precision of matrix products: a process-wide default and the `precision=` of every operation.

`highest` stays within the float32 bound γ_K·Σ|a||b|, `high` within (3·2⁻¹⁸ + γ_K)·Σ|a||b|, `medium` within
(2⁻⁸ + γ_K)·Σ|a||b|. A mode without a faster way on this machine runs as the more accurate one.
"""

from __future__ import annotations

PRECISIONS = ("highest", "high", "medium")
_default = "highest"


def set_matmul_precision(precision: str) -> None:
    """Set the default: "highest" (initially), "high" or "medium"."""
    global _default
    if precision is None:
        raise ValueError(f"set_matmul_precision: precision must be one of {PRECISIONS}, got None")
    _default = check_precision("set_matmul_precision", precision)


def get_matmul_precision() -> str:
    """The default precision of operations that are not given one."""
    return _default


def check_precision(op: str, precision: str | None) -> str:
    """`precision`, or the default for None; ValueError for anything else."""
    if precision is None:
        return _default
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision must be one of {PRECISIONS}, got {precision!r}")
    return precision
