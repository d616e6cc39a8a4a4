"""torch as a second, independent oracle of the recurrent layers, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.cases import Array, Arrays, Recurrent


def supports(case: Recurrent) -> bool:
    """torch has neither peepholes nor a GRU that resets before the product."""
    return not case.peephole and case.reset_after


def torch_results(case: Recurrent, arrays: Arrays, grads: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs and gradients from torch.nn, for float64 arrays; lengths go in as a PackedSequence.

    A reverse layer is the second direction of a bidirectional one, so that torch itself decides
    where a packed row starts. Both biases must be given, or none; lengths must be at least 1.
    """
    import torch

    directions = 2 if case.reverse else 1
    module = _module(case, directions)
    suffix = "_l0_reverse" if case.reverse else "_l0"
    leaves = {name: torch.from_numpy(a.copy()) for name, a in arrays.items() if name != "lengths"}
    leaves.setdefault("h0", torch.zeros(case.N, case.out_size, dtype=torch.float64))
    if case.op == "lstm":
        leaves.setdefault("c0", torch.zeros(case.N, case.H, dtype=torch.float64))
    states = [
        torch.stack([torch.zeros_like(leaf), leaf][-directions:])
        for leaf in (leaves[name].requires_grad_() for name in ("h0", "c0") if name in leaves)
    ]
    with torch.no_grad():
        for name, leaf in leaves.items():
            if name.startswith(("weight", "bias")):
                getattr(module, name + suffix).copy_(leaf)
    x = leaves["x"].requires_grad_()
    y, last = _run(module, x, states, arrays.get("lengths"), case)
    y = y[..., -case.out_size :]
    ends = [state[-1] for state in (last if case.op == "lstm" else (last,))]
    outputs = dict(zip(case.outputs, (y, *ends), strict=True))
    loss = sum(torch.sum(out * torch.from_numpy(grads[f"d{k}"])) for k, out in outputs.items())
    assert isinstance(loss, torch.Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    found: dict[str, Any] = {f"d{k}": leaves[k].grad for k in ("x", "h0", "c0") if k in leaves}
    for name in arrays:
        if name.startswith(("weight", "bias")):
            found[f"d{name}"] = getattr(module, name + suffix).grad
    return _numpy(outputs), _numpy(found)


def _module(case: Recurrent, directions: int) -> Any:
    import torch

    options: dict[str, Any] = {"bias": bool(case.biases), "bidirectional": directions == 2}
    if case.op == "rnn":
        options["nonlinearity"] = case.nonlinearity
    if case.P:
        options["proj_size"] = case.P
    kind = getattr(torch.nn, case.op.upper())
    return kind(case.I, case.H, dtype=torch.float64, **options)


def _run(module: Any, x: Any, states: list[Any], lengths: Array | None, case: Recurrent) -> Any:
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    hx = tuple(states) if case.op == "lstm" else states[0]
    if lengths is None:
        return module(x, hx)
    packed = pack_padded_sequence(x, lengths.tolist(), enforce_sorted=False)
    y, last = module(packed, hx)
    return pad_packed_sequence(y, total_length=case.T)[0], last


def _numpy(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}
