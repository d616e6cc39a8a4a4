"""What a recurrent call must return: float64 reference values and their derived bounds."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from seqkern import reference
from support.bounds import recurrent_estimates
from support.cases import Array, Arrays, DTypes, Recurrent, make_arrays, make_gradients
from support.tolerance import finish


class Expected(NamedTuple):
    """Inputs as given, the reference's answers in float64, and bounds, all by argument name."""

    arrays: Arrays
    grad_outputs: Arrays
    outputs: Arrays
    gradients: dict[str, Array | None]
    output_bounds: Arrays
    gradient_bounds: Arrays


def call_forward(module: ModuleType, case: Recurrent, arrays: Arrays) -> tuple[Arrays, Any]:
    """`<op>_forward` on a case: outputs by name, and saved."""
    y, state, saved = getattr(module, f"{case.op}_forward")(**arrays, **case.options())
    states = state if case.op == "lstm" else (state,)
    return dict(zip(case.outputs, (y, *states), strict=True)), saved


def call(module: ModuleType, case: Recurrent, arrays: Arrays) -> Arrays:
    """`<op>` on a case: outputs by name."""
    y, state = getattr(module, case.op)(**arrays, **case.options())
    states = state if case.op == "lstm" else (state,)
    return dict(zip(case.outputs, (y, *states), strict=True))


def call_backward(
    module: ModuleType, case: Recurrent, grads: dict[str, Array | None], saved: Any
) -> dict[str, Array | None]:
    """`<op>_backward`: gradients by name. A missing incoming gradient is passed as None."""
    last: Any = grads.get("dh_n")
    if case.op == "lstm":
        last = (grads.get("dh_n"), grads.get("dc_n"))
    backward = getattr(module, f"{case.op}_backward")
    return dict(backward(grads.get("dy"), last, saved)._asdict())


def run(module: ModuleType, case: Recurrent, arrays: Arrays, grads: Arrays) -> tuple[Any, ...]:
    """Outputs, then gradients, as one tuple: for comparing runs bit for bit."""
    outputs, saved = call_forward(module, case, arrays)
    gradients = call_backward(module, case, {**grads}, saved)
    return (*outputs.values(), *gradients.values())


def as_float64(arrays: Arrays) -> Arrays:
    """Floating arrays in float64; integer arrays (lengths) as they are."""
    return {name: array if array.dtype.kind in "iu" else array.astype(np.float64) for name, array in arrays.items()}


@lru_cache(maxsize=32)
def expected(case: Recurrent, dtypes: DTypes) -> Expected:
    """The oracle of one case. Treat the arrays as read-only: they are shared."""
    arrays, grads = make_arrays(case, dtypes), make_gradients(case, dtypes)
    for array in (*arrays.values(), *grads.values()):
        array.flags.writeable = False
    wide, wide_grads = as_float64(arrays), as_float64(grads)
    outputs, saved = call_forward(reference, case, wide)
    gradients = call_backward(reference, case, {**wide_grads}, saved)
    estimates = recurrent_estimates(case, dtypes, wide, wide_grads)
    bounds = [{name: running_bound(pair, dtypes, name) for name, pair in group.items()} for group in estimates]
    return Expected(arrays, grads, outputs, gradients, *bounds)


def running_bound(estimate: tuple[Array, Array], dtypes: DTypes, name: str) -> Array:
    """The bound of an output or gradient from its running error; outputs are rounded already."""
    value, error = estimate
    out = dtypes.of_gradient(name) if name.startswith("d") else dtypes.cell
    return finish(np.abs(value), error, dtypes, out)
