"""A model of Hugging Face's beside ours: random weights through a folder, and the two compared.

The truth is theirs in float64. In float64 ours must agree to rounding. In float32 the rule for naive math of the
same precision holds, array by array, in root mean square: at most 2 times (gradients: 3 times) the error of
theirs, plus twice what rounding the truth beside 0.3 costs. Theirs sums in short blocks, which is better than
naive, so the error of plain sums is allowed too: a sum of K terms one after the other rounds K partial sums, which
grow like a random walk, so that its error is u·sqrt(K/6) of the result; over P products in a row the errors, of
either sign, add up to u·sqrt(P·K/6), P being twice as long for gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from support.cases import Array

FORWARD, GRADIENT = 2.0, 3.0
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
FIELDS = ("logits", "last_hidden_state", "pooler_output")


def randomised(model: Any, scale: float, seed: int = 0) -> Any:
    """The torch model in eval mode with noise in every parameter: zero tokens and biases would hide errors."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def their_results(model: Any, inputs: Array, seed: Array | None, **options: Any) -> dict[str, Array]:
    """Outputs by name; with `seed`, the gradient of the main one, also all gradients, as "d" and their name.

    inputs: images, or ids, which have no gradient. options: of the call, arrays among them.
    """
    import torch

    tensor, options = torch.from_numpy(inputs), {k: _tensor(v) for k, v in options.items()}
    if tensor.is_floating_point():
        tensor = tensor.to(next(model.parameters()).dtype).requires_grad_()
    model.zero_grad()
    output = model(tensor, output_hidden_states=True, **options)
    found = {f"hidden_states.{k}": h.detach().numpy() for k, h in enumerate(output.hidden_states)}
    if hasattr(output, "start_logits"):
        output["logits"] = torch.stack([output.start_logits, output.end_logits], -1)
    for name in FIELDS:
        if getattr(output, name, None) is not None:
            found[name] = getattr(output, name).detach().numpy()
    if seed is not None:
        main = output.logits if "logits" in found else output.last_hidden_state
        (main * torch.from_numpy(seed)).sum().backward()
        found |= {f"d{n}": p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
        if tensor.requires_grad:
            found["dimages"] = tensor.grad.numpy()
    return found


def _tensor(value: Any) -> Any:
    import torch

    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def our_results(model: Any, inputs: Array, seed: Array | None, **options: Any) -> dict[str, Array]:
    """The same of ours."""
    model.zero_grad()
    output, pull = model.vjp(inputs, output_hidden_states=True, **options)
    found = {f"hidden_states.{k}": h for k, h in enumerate(output.hidden_states)}
    found |= {name: getattr(output, name) for name in FIELDS if getattr(output, name) is not None}
    if seed is not None:
        (dinputs,) = pull(seed.astype(output.last_hidden_state.dtype))
        if dinputs is not None:
            found["dimages"] = dinputs
        found |= {f"d{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found


def own_names(model: Any, found: dict[str, Array]) -> dict[str, Array]:
    """Their results with our names for the parameters' gradients."""
    grads = {name[1:]: value for name, value in found.items() if name[0] == "d" and name != "dimages"}
    others = {name: value for name, value in found.items() if name[1:] not in grads or name[0] != "d"}
    return others | {f"d{name}": value for name, value in model._accepted(grads).items()}


def compare(
    found: dict[str, Array], exact: dict[str, Array], naive: dict[str, Array] | None = None, *, products: int = 0,
    terms: int = 0,
) -> None:  # fmt: skip
    """Everything they have must be in `found`, equal to rounding or, where `naive` is given, as accurate as said above.

    products: in a row, forwards, of at most `terms` terms each.
    """
    # Theirs gives no last_hidden_state beside logits.
    missing = set(found) ^ set(exact)
    assert missing <= {"last_hidden_state", "pooler_output"}, missing
    for name in sorted(set(found) & set(exact)):
        if naive is None:
            np.testing.assert_allclose(found[name], exact[name], **CLOSE, err_msg=name)
            continue
        ours, theirs = (_rms(a[name] - exact[name]) for a in (found, naive))
        # A key's bias shifts all scores of a query alike: its gradient is 0, a sum like the query's that cancels.
        size = _rms(exact[name.replace("key.bias", "query.bias")])
        gradient = name[0] == "d"
        walk = 2.0**-24 * np.sqrt((1 + gradient) * products * terms / 6)
        bound = max((GRADIENT if gradient else FORWARD) * theirs, walk * size) + _floor(exact[name])
        assert ours <= bound, (name, ours, theirs, size, bound)


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _floor(truth: Array) -> float:
    """Twice what rounding to float32 costs it beside 0.3."""
    single = truth.astype(np.float32)
    return 2 * _rms(((single + np.float32(0.3)) - np.float32(0.3)).astype(np.float64) - single)
