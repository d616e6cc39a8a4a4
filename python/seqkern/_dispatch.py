"""From the caller's array type to a backend and back.

NumPy arrays go to the CPU kernels as they are, CuPy arrays to the GPU's. torch tensors are handed over without a copy,
as NumPy or CuPy arrays, and come back as tensors; libraries are recognised by name, never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

import numpy as np
from numpy import ndarray

P = ParamSpec("P")
R = TypeVar("R")


def public(op: Callable[P, R]) -> Callable[P, R]:
    """A function over NumPy arrays that also takes CuPy arrays and torch tensors.

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


_SCALARS = frozenset((type(None), bool, int, float, str))


def _survey(values: Any, library: str | None = None, host: bool = False) -> tuple[str | None, bool]:
    """The one foreign array library used anywhere in nested arguments, and whether there is a NumPy array."""
    for value in values:
        if type(value) in _SCALARS:
            continue
        if isinstance(value, (tuple, list)):
            library, host = _survey(value, library, host)
        elif isinstance(value, dict):
            library, host = _survey(value.values(), library, host)
        elif isinstance(value, ndarray):
            host = True
        else:
            library = library or library_of(value)
    return library, host


def run(op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``op`` for arguments that are not all NumPy arrays."""
    library, host = _survey((args, kwargs))
    if library is None:
        return op(*args, **kwargs)
    if library == "cupy":
        if host:
            _refuse_host(op, "CuPy arrays")
        from ._gpu import on_gpu

        return on_gpu(op)(*args, **kwargs)
    if _on_cuda((args, kwargs)):
        if host:
            _refuse_host(op, "torch tensors")
        return _run_cuda_tensors(op, args, kwargs)
    as_numpy = _Conversion(op.__name__)
    result = op(*as_numpy.tree(args), **as_numpy.tree(kwargs))
    return _to_torch(result)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _refuse_host(op: Callable[..., Any], others: str) -> NoReturn:
    """For an array of the host among arrays of a device: nothing is copied unasked."""
    raise TypeError(f"{op.__name__}: got a NumPy array while other arguments are {others}")


def _on_cuda(values: Any) -> bool:
    return any(library_of(v) == "torch" and v.device.type == "cuda" for v in _leaves(values) if hasattr(v, "device"))


def _run_cuda_tensors(op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """torch tensors on a GPU: as CuPy arrays, on torch's device and current stream, without a copy."""
    import cupy
    import torch

    from ._gpu import on_gpu

    conversion = _Conversion(op.__name__, cupy)
    device = next(v.device for v in _leaves((args, kwargs)) if library_of(v) == "torch" and v.device.type == "cuda")
    stream = torch.cuda.current_stream(device)
    with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream.cuda_stream, device.index):
        result = on_gpu(op)(*conversion.tree(args), **conversion.tree(kwargs))
        return _each_array(result, cupy.ndarray, torch.utils.dlpack.from_dlpack)


class _Conversion:
    """torch tensors as NumPy arrays, or with `cupy` as its arrays."""

    def __init__(self, op: str, cupy: Any = None) -> None:
        self.op, self.cupy = op, cupy

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
        if tensor.device.type != ("cuda" if self.cupy else "cpu"):
            others = "on the GPU" if self.cupy else "on the CPU"
            raise TypeError(f"{self.op}: {name} is on device {tensor.device}, while other arguments are {others}")
        if self.cupy:
            return self.cupy.from_dlpack(tensor)
        if str(tensor.dtype) == "torch.bfloat16":
            import ml_dtypes
            import torch

            return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


def _each_array(value: Any, kind: Any, convert: Callable[[Any], Any]) -> Any:
    """`convert` applied to every array of `kind` in a result; named tuples stay what they are."""
    if isinstance(value, tuple):
        items = [_each_array(item, kind, convert) for item in value]
        result = type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        for name, item in getattr(value, "__dict__", {}).items():  # dsinks, beside the tuple of gradients
            setattr(result, name, _each_array(item, kind, convert))
        return result
    return convert(value) if isinstance(value, kind) else value


def _to_torch(result: Any) -> Any:
    import torch

    def tensor(value: Any) -> Any:
        array = np.asarray(value)
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    return _each_array(result, (ndarray, np.generic), tensor)
