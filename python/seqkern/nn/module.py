"""Parameters, buffers, modules and pullbacks: the small frame every layer and model stands in.

A module holds parameters and settings, never the state of a computation. `m(x)` computes;
`y, pullback = m.vjp(x)` computes the same and returns a closure over what backward needs.
`pullback(dy)` adds to the parameters' gradients and returns the gradients of the inputs. So a
module can be used many times before its pullbacks run, in any order, and models chain pullbacks
in plain sight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .. import _cpu
from ._arrays import (
    Array,
    array_module,
    freeze,
    is_frozen,
    like,
    refuse_frozen,
    shape_text,
    to_numpy,
    unfreeze,
)

M = TypeVar("M", bound="Module")


class Parameter:
    """An array that is trained.

    data: the value, a NumPy or CuPy array; update it in place (unless `Module.freeze` made it
        read-only) or assign a new array.
    grad: the gradient collected so far, or None.
    """

    __slots__ = ("data", "grad")

    def __init__(self, data: Array) -> None:
        self.data: Array = data
        self.grad: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self.data.dtype)
        return dtype

    def add_grad(self, grad: Array | None) -> None:
        """Add `grad` to `.grad`. A first gradient is kept, not copied: pass a fresh array."""
        if grad is None:
            return
        grad = like(grad, self.data)
        if self.grad is None:
            self.grad = grad
        else:
            self.grad += grad

    def __repr__(self) -> str:
        return f"Parameter({shape_text(self.shape)}, {self.dtype})"


class Buffer:
    """An array that belongs to a module's state but is not trained: running statistics, counters."""

    __slots__ = ("data",)

    def __init__(self, data: Array) -> None:
        self.data: Array = data

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self.data.dtype)
        return dtype

    def __repr__(self) -> str:
        return f"Buffer({shape_text(self.shape)}, {self.dtype})"


class Pullback:
    """Gradient function of one use of a module: `pullback(dy)` -> gradients of the inputs.

    It runs once (it adds to parameter gradients, and frees what it kept); a second call raises
    RuntimeError. A call refused for a bad argument does not count.
    """

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run: Callable[..., Any] | None = run

    def __call__(self, *grads: Any) -> Any:
        if self._run is None:
            raise RuntimeError(
                "pullback: already called. A pullback runs once, because it adds to the "
                "parameters' gradients; call vjp again to get another"
            )
        result = self._run(*grads)
        self._run = None
        return result


class LoadResult(NamedTuple):
    """Keys that `load_state_dict(strict=False)` passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base class of layers and models.

    Parameters, buffers and sub-modules are the attributes that hold a `Parameter`, a `Buffer` or a
    `Module`; their names are the attribute paths, joined by dots, as in torch.
    """

    training: bool = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")

    def vjp(self, *args: Any, **kwargs: Any) -> tuple[Any, Pullback]:
        """`y, pullback`: the same `y` as the call gives, and its gradient function."""
        raise NotImplementedError(f"{type(self).__name__} defines no vjp")

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(self.__dict__.get(name), Parameter) and not (
            value is None or isinstance(value, Parameter)
        ):
            raise TypeError(
                f"{type(self).__name__}.{name} must be a Parameter or None, got "
                f"{type(value).__name__}; assign to .{name}.data to change its value"
            )
        object.__setattr__(self, name, value)

    # --- walking the tree -------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Direct sub-modules with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def replace_child(self, name: str, module: Module) -> None:
        """Put another module in the place of the direct sub-module `name`."""
        setattr(self, name, module)

    def modules(self) -> Iterator[Module]:
        """This module and everything below it."""
        yield self
        for _, child in self.named_children():
            yield from child.modules()

    def _state(self, prefix: str = "") -> Iterator[tuple[str, Parameter | Buffer]]:
        """Every name, so a shared parameter comes once per name; buffers after parameters."""
        for kind in (Parameter, Buffer):
            for name, value in vars(self).items():
                if isinstance(value, kind):
                    yield prefix + name, value
        for name, child in self.named_children():
            yield from child._state(f"{prefix}{name}.")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """`(name, Parameter)` pairs; a shared parameter comes once, under its first name."""
        seen: set[int] = set()
        for name, parameter in self._state():
            if isinstance(parameter, Parameter) and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """The parameters, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """`(name, Buffer)` pairs."""
        return ((name, entry) for name, entry in self._state() if isinstance(entry, Buffer))

    # --- modes and gradients ----------------------------------------------------------------

    def train(self: M, mode: bool = True) -> M:
        """Set `training` here and below; only dropout and batch norm care. Returns self."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self: M) -> M:
        """`train(False)`."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Set every parameter's gradient to None, which stands for zero."""
        for module in self.modules():  # without the names, which take as long as a small layer
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    value.grad = None

    # --- values -----------------------------------------------------------------------------

    def freeze(self: M) -> M:
        """Make the parameters read-only here and below; results stay the same bit for bit. Returns self.

        Every NumPy array is replaced by a copy that nothing can write to, and recurrent layers and
        cells keep the packed form of their weights with it from call to call, one for each way in
        which batch and precision have them packed. CuPy arrays are left as they are.

        Until `unfreeze()`, `load_state_dict`, an optimiser's step and NumPy's own writes raise
        ValueError and change nothing. `to` keeps arrays frozen. What is assigned to `.data` is
        used as it is, and packed in each call until the next `freeze()`. Parameters that share an
        array go on sharing one. Copies and pickles of a frozen module are not frozen.
        """
        self._change_data(freeze)
        return self

    def unfreeze(self: M) -> M:
        """Replace read-only arrays by writable copies, and drop what was packed. Returns self."""
        self._change_data(unfreeze)
        return self

    def _change_data(self, change: Callable[[Array], Array]) -> None:
        """`change(array)` for every parameter's array; those that share one share the new one."""
        sharing: dict[int, list[Parameter]] = {}
        for parameter in self.parameters():
            sharing.setdefault(id(parameter.data), []).append(parameter)
        for parameters in sharing.values():
            data = change(parameters[0].data)
            for parameter in parameters:
                parameter.data = data

    def state_dict(self) -> dict[str, Array]:
        """Name -> array. The arrays are those of the parameters and buffers, not copies, as in torch."""
        return {name: entry.data for name, entry in self._state()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy values into the parameters and buffers, cast to their dtype.

        state: name -> NumPy, CuPy or torch array. Everything is checked before anything is
            written. ValueError names a key that is missing, unexpected (both only when `strict`),
            of the wrong shape or frozen; TypeError one whose value is no floating-point array.
        """
        result, values = self._checked_state(state, strict)
        refuse_frozen("load_state_dict", ((name, entry.data) for name, (entry, _) in values.items()))
        for entry, value in values.values():
            data = entry.data
            data[...] = value if isinstance(data, np.ndarray) else array_module(data).asarray(value)
        return result

    def _checked_state(
        self, state: Mapping[str, Any], strict: bool
    ) -> tuple[LoadResult, dict[str, tuple[Parameter | Buffer, np.ndarray]]]:
        """What of the state is for whom, nothing written yet."""
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict: state must be a mapping, got {type(state).__name__}")
        own = dict(self._state())
        result = LoadResult(
            missing_keys=[name for name in own if name not in state],
            unexpected_keys=[name for name in state if name not in own],
        )
        if strict:
            _refuse_wrong_keys(result, own)
        values = {
            name: (entry, _checked_value(name, state[name], entry))
            for name, entry in own.items()
            if name in state
        }
        return result, values

    def to(self: M, target: Any) -> M:
        """Move parameters and buffers to "cpu" or "cuda", or cast them to a floating dtype. Returns self.

        Floating buffers keep the precision of the arithmetic: float64 for float64, else float32.
        """
        convert = _converter(target)
        self._change_data(lambda data: freeze(convert(data)) if is_frozen(data) else convert(data))
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad = convert(parameter.grad)
        for _, buffer in self.named_buffers():
            buffer.data = _converted_buffer(buffer.data, convert)
        _cpu.give_back_memory()  # the old arrays lay between the new ones
        return self


def _converted_buffer(data: Array, convert: Callable[[Array], Array]) -> Array:
    moved = convert(data)
    if not is_floating(data.dtype):
        return moved.astype(data.dtype, copy=False)
    return moved.astype(np.float64 if moved.dtype == np.float64 else np.float32, copy=False)


def _refuse_wrong_keys(result: LoadResult, own: Mapping[str, Parameter | Buffer]) -> None:
    problems = [
        f"missing key '{name}' (expected {shape_text(own[name].shape)})"
        for name in result.missing_keys
    ]
    problems += [f"unexpected key '{name}'" for name in result.unexpected_keys]
    if problems:
        raise ValueError("load_state_dict: " + "; ".join(problems))


def is_floating(dtype: Any) -> bool:
    """Whether NumPy's or ml_dtypes' dtype holds real floating-point numbers."""
    # ml_dtypes' own types report kind 'V', like plain bytes; their scalar type casts to float.
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def _checked_value(name: str, value: Any, parameter: Parameter | Buffer) -> np.ndarray:
    array = to_numpy(value, f"load_state_dict: '{name}'")
    if is_floating(parameter.dtype) and not is_floating(array.dtype):
        raise TypeError(f"load_state_dict: '{name}' must be floating point, got {array.dtype}")
    if parameter.dtype.kind == "i" and array.dtype.kind not in "iu":
        raise TypeError(f"load_state_dict: '{name}' must be an integer, got {array.dtype}")
    if array.shape != parameter.shape:
        raise ValueError(
            f"load_state_dict: '{name}' must be {shape_text(parameter.shape)}, "
            f"got {shape_text(array.shape)}"
        )
    return array


def _converter(target: Any) -> Callable[[Array], Array]:
    """The function that `Module.to(target)` applies to every array."""
    if isinstance(target, str) and target == "cpu":
        return lambda array: to_numpy(array, "to")
    if isinstance(target, str) and target == "cuda":
        return _to_cuda
    dtype = _floating_dtype(target)
    return lambda array: array.astype(dtype, copy=False)


def _to_cuda(array: Array) -> Array:
    try:
        cupy = import_module("cupy")
    except ImportError:
        raise RuntimeError(
            "to('cuda') needs CuPy: pip install 'seqkern[cuda12]' or 'seqkern[cuda13]'"
        ) from None
    return cupy.asarray(array)


def _floating_dtype(target: Any) -> np.dtype[Any]:
    message = f"to: target must be 'cpu', 'cuda' or a floating dtype, got {target!r}"
    if isinstance(target, str) and target == "bfloat16":
        from ml_dtypes import bfloat16

        target = bfloat16
    if target is None:  # NumPy reads None as float64
        raise TypeError(message)
    try:
        dtype: np.dtype[Any] = np.dtype(target)
    except TypeError:
        raise TypeError(message) from None
    if not is_floating(dtype):
        raise ValueError(message)
    return dtype
