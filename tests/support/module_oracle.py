"""A seqkern module beside torch's of the same name: the same weights, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

CLOSE = {"rtol": 1e-9, "atol": 1e-10}  # float64 through up to six layers of products of order 1


def randomise(module: Any, rng: np.random.Generator) -> Any:
    """Random values in every parameter: zeros and ones could hide a mistake. In training mode."""
    for _, parameter in module.named_parameters():
        parameter.data = rng.standard_normal(parameter.shape) * 0.5
    return module


def torch_module(name: str, *args: Any, **options: Any) -> Any:
    import torch

    return getattr(torch.nn, name)(*args, **options, dtype=torch.float64)


def _tensors(values: Any) -> Any:
    import torch

    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}


def assert_same_module(
    module: Any, theirs: Any, inputs: tuple[Any, ...], call: dict[str, Any], rng: np.random.Generator
) -> None:
    """Outputs, and gradients of inputs and parameters, for random gradients of every output."""
    import torch

    theirs.load_state_dict(_tensors(module.state_dict()))
    theirs.zero_grad()
    module.zero_grad()
    leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
    if all(x is inputs[0] for x in inputs):  # torch returns one sum for one array: ask for parts
        leaves = [leaf.clone().detach().requires_grad_() for leaf in leaves]
    expected = theirs(*leaves, **_tensors(call))
    found, pull = module.vjp(*inputs, **call)
    pairs = list(zip(found, expected, strict=True)) if isinstance(found, tuple) else [(found, expected)]
    grads, total = [], torch.zeros((), dtype=torch.float64)
    for ours, tensor in pairs:
        if ours is None:
            assert tensor is None
            grads.append(None)
            continue
        np.testing.assert_allclose(ours, tensor.detach().numpy(), **CLOSE)
        grads.append(rng.standard_normal(ours.shape))
        total = total + (tensor * torch.from_numpy(grads[-1])).sum()
    total.backward()  # type: ignore[no-untyped-call]
    gradients = pull(tuple(grads) if isinstance(found, tuple) else grads[0])
    for ours, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(ours, leaf.grad.numpy(), **CLOSE)
    named = dict(module.named_parameters())
    assert set(named) == {name for name, _ in theirs.named_parameters()}
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(named[name].grad, parameter.grad.numpy(), err_msg=name, **CLOSE)


def central_difference(loss: Callable[[], float], argument: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """dloss/dargument by element; `argument` is changed in place and restored."""
    gradient = np.zeros_like(argument)
    for index in np.ndindex(argument.shape):
        value = argument[index]
        argument[index] = value + step
        above = loss()
        argument[index] = value - step
        gradient[index] = (above - loss()) / (2 * step)
        argument[index] = value
    return gradient
