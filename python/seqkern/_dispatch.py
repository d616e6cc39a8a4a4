"""From the caller's array type to a backend and back.

NumPy arrays go to the CPU kernels as they are. torch tensors are handed over without a copy and come back as
tensors; libraries are recognised by name, never imported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy import ndarray

P = ParamSpec("P")
R = TypeVar("R")


def public(op: Callable[P, R]) -> Callable[P, R]:
    """A function over NumPy arrays that also takes torch tensors.

    NumPy in the first place goes straight to the kernel, which refuses anything else among the rest.
    """

    @wraps(op)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if args and type(args[0]) is ndarray:
            return op(*args, **kwargs)
        return run(op, args, kwargs)  # type: ignore[no-any-return]

    return call


def library_of(value: Any) -> str | None:
    """"torch" or "cupy" for an array of that library, None for anything else."""
    root = type(value).__module__.partition(".")[0]
    return root if root in ("torch", "cupy") and hasattr(value, "dtype") else None


def find_library(values: Any) -> str | None:
    """The one foreign array library used anywhere in nested arguments."""
    found = None
    for value in values:
        if isinstance(value, (tuple, list)):
            found = found or find_library(value)
        elif isinstance(value, dict):
            found = found or find_library(value.values())
        else:
            found = found or library_of(value)
    return found


def run(op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``op`` for arguments that are not all NumPy arrays."""
    library = find_library((args, kwargs))
    if library is None:
        return op(*args, **kwargs)
    if library == "cupy":
        raise TypeError(
            f"{op.__name__}: got a CuPy array, but this build of seqkern has no CUDA kernels; "
            "pass a NumPy array"
        )
    as_numpy = _Conversion(op.__name__)
    result = op(*as_numpy.tree(args), **as_numpy.tree(kwargs))
    return _to_torch(result)


class _Conversion:
    def __init__(self, op: str) -> None:
        self.op = op

    def tree(self, value: Any, name: str = "argument") -> Any:
        if isinstance(value, dict):
            return {key: self.tree(item, key) for key, item in value.items()}
        if isinstance(value, tuple):
            fields = getattr(value, "_fields", None) or [name] * len(value)
            items = [self.tree(item, key) for item, key in zip(value, fields, strict=True)]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if library_of(value) == "torch":
            return self.tensor(value, name)
        if isinstance(value, ndarray):
            raise TypeError(f"{self.op}: {name} is a NumPy array while other arguments are torch tensors")
        return value

    def tensor(self, tensor: Any, name: str) -> Any:
        if tensor.requires_grad:
            raise TypeError(
                f"{self.op}: {name} is a torch tensor that requires grad; seqkern's functions are not "
                "recorded by torch's autograd: pass tensor.detach() and use the _forward and "
                "_backward forms"
            )
        if tensor.device.type != "cpu":
            raise TypeError(
                f"{self.op}: {name} is on device {tensor.device}, but this build of seqkern has no "
                "CUDA kernels; pass a CPU tensor"
            )
        if str(tensor.dtype) == "torch.bfloat16":
            import ml_dtypes
            import torch

            return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


def _to_torch(value: Any) -> Any:
    if isinstance(value, tuple):
        items = [_to_torch(item) for item in value]
        result = type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        for name, item in getattr(value, "__dict__", {}).items():  # dsinks, beside the tuple of gradients
            setattr(result, name, _to_torch(item))
        return result
    if not isinstance(value, (ndarray, np.generic)):
        return value
    import torch

    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
