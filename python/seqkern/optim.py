"""Optimisers, gradient clipping and learning-rate schedules.

An optimiser takes parameters, or (name, parameter) pairs such as `model.named_parameters()`;
`step()` updates each parameter that has a gradient, in place, by torch's formulas. `lr` is a
plain attribute: set it before a step, for instance from a schedule,

    optimizer.lr = base_lr * cosine(step, total_steps=10_000, warmup_steps=200)

`state_dict()` is a flat mapping from names to NumPy arrays, ready for a safetensors file, and
loading it back continues bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from . import ops
from .nn._arrays import Array, array_module, like, refuse_frozen, shape_text, to_numpy
from .nn.module import Parameter

Parameters: TypeAlias = Iterable[Parameter] | Iterable[tuple[str, Parameter]]


class Optimizer:
    """What the optimisers share: named parameters, step counts, named buffers, state."""

    _buffers: tuple[str, ...] = ()  # the arrays kept per parameter, of its shape

    def __init__(self, params: Parameters, lr: float) -> None:
        self.params = _named(params)
        self.lr = _non_negative(lr, "lr")
        self._steps = dict.fromkeys(self.params, 0)
        self._state: dict[str, dict[str, Array]] = {name: {} for name in self.params}

    def step(self) -> None:
        """Update every parameter that has a gradient; ValueError, and nothing changes, if one is frozen."""
        refuse_frozen("step", ((n, p.data) for n, p in self.params.items() if p.grad is not None))
        for name, parameter in self.params.items():
            if parameter.grad is None:
                continue
            state = self._state[name]
            for key in self._buffers:  # they follow a parameter that has moved
                kept = state[key] if key in state else self._new_buffer(parameter.data)
                state[key] = like(kept, parameter.data)
            self._steps[name] += 1
            self._update(parameter, state, self._steps[name])

    def _new_buffer(self, data: Array) -> Array:
        return array_module(data).zeros(data.shape, dtype=_state_dtype(data))

    def _update(self, parameter: Parameter, state: dict[str, Array], step: int) -> None:
        """One update of one parameter; `step` counts its updates from 1."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Set every gradient to None, which stands for zero."""
        for parameter in self.params.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """lr, `step.<name>` and `<buffer>.<name>` as NumPy arrays (copies)."""
        result = {"lr": np.array(self.lr, np.float64)}
        for name, steps in self._steps.items():
            result[f"step.{name}"] = np.array(steps, np.int64)
            for key, value in self._state[name].items():
                result[f"{key}.{name}"] = to_numpy(value, key).copy()
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; ValueError names a missing, unknown or misshapen key."""
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict: state must be a mapping, got {type(state).__name__}")
        left = dict(state)
        lr = float(np.asarray(_take(left, "lr")).item())
        steps = {name: int(np.asarray(_take(left, f"step.{name}")).item()) for name in self.params}
        buffers: dict[str, dict[str, Array]] = {name: {} for name in self.params}
        for name, parameter in self.params.items():
            for key in self._buffers:
                if steps[name] or f"{key}.{name}" in left:
                    value = to_numpy(_take(left, f"{key}.{name}"), f"'{key}.{name}'")
                    buffers[name][key] = _buffer_like(value, parameter.data, f"{key}.{name}")
        if left:
            raise ValueError(f"load_state_dict: unexpected key '{next(iter(left))}'")
        self.lr, self._steps, self._state = lr, steps, buffers


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as torch.optim.SGD.

    g = grad + weight_decay * p;  v = momentum * v + (1 - dampening) * g (at first v = g);
    p -= lr * v, or lr * (g + momentum * v) with nesterov.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr)
        self.momentum = _non_negative(momentum, "momentum")
        self.dampening = float(dampening)
        self.weight_decay = _non_negative(weight_decay, "weight_decay")
        self.nesterov = bool(nesterov)
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError("nesterov needs momentum > 0 and dampening = 0")
        self._buffers = ("momentum_buffer",) if momentum else ()

    def _update(self, parameter: Parameter, state: dict[str, Array], step: int) -> None:
        ops.sgd_update(
            parameter.data,
            parameter.grad,
            state.get("momentum_buffer"),
            lr=self.lr,
            momentum=self.momentum,
            # The first gradient enters the buffer whole: 0 * momentum + g.
            dampening=self.dampening if step > 1 else 0.0,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


class Adagrad(Optimizer):
    """Adagrad (Duchi, Hazan & Singer 2011), as torch.optim.Adagrad.

    g = grad + weight_decay * p;  s += g^2;
    p -= lr / (1 + (step - 1) * lr_decay) * g / (sqrt(s) + eps).
    """

    _buffers = ("sum",)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(params, lr)
        self.lr_decay = _non_negative(lr_decay, "lr_decay")
        self.weight_decay = _non_negative(weight_decay, "weight_decay")
        self.initial_accumulator_value = _non_negative(
            initial_accumulator_value, "initial_accumulator_value"
        )
        self.eps = _non_negative(eps, "eps")

    def _new_buffer(self, data: Array) -> Array:
        buffer = super()._new_buffer(data)
        buffer[...] = self.initial_accumulator_value
        return buffer

    def _update(self, parameter: Parameter, state: dict[str, Array], step: int) -> None:
        ops.adagrad_update(
            parameter.data,
            parameter.grad,
            state["sum"],
            lr=self.lr / (1 + (step - 1) * self.lr_decay),
            eps=self.eps,
            weight_decay=self.weight_decay,
        )


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as torch.optim.AdamW.

    m = b1 * m + (1 - b1) * g;  v = b2 * v + (1 - b2) * g^2;  p *= 1 - lr * weight_decay;
    p -= lr * (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + eps).
    """

    _buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
        self.betas = (float(betas[0]), float(betas[1]))
        self.eps = _non_negative(eps, "eps")
        self.weight_decay = _non_negative(weight_decay, "weight_decay")

    def _update(self, parameter: Parameter, state: dict[str, Array], step: int) -> None:
        ops.adamw_update(
            parameter.data,
            parameter.grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            step=step,
            lr=self.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay,
        )


# --- gradient clipping ------------------------------------------------------------------------


def clip_grad_value_(params: Parameters, clip_value: float) -> None:
    """Clamp every gradient element to [-clip_value, clip_value], in place."""
    bound = _non_negative(clip_value, "clip_value")
    for parameter in _named(params).values():
        if parameter.grad is not None:
            array_module(parameter.grad).clip(parameter.grad, -bound, bound, out=parameter.grad)


def clip_grad_norm_(
    params: Parameters,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale all gradients, in place, so that their joint norm is at most `max_norm`.

    Returns the norm before scaling. The factor is min(1, max_norm / (norm + 1e-6)), as in
    torch.nn.utils.clip_grad_norm_. norm_type may be math.inf. RuntimeError if the norm is
    not finite and error_if_nonfinite.
    """
    limit = _non_negative(max_norm, "max_norm")
    grads = [p.grad for p in _named(params).values() if p.grad is not None]
    norm = _joint_norm(grads, float(norm_type))
    if not math.isfinite(norm) and error_if_nonfinite:
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {norm}")
    factor = limit / (norm + 1e-6)
    if not factor >= 1:  # also when NaN, which torch lets through to the gradients
        for grad in grads:
            grad *= factor
    return norm


def _joint_norm(grads: list[Array], norm_type: float) -> float:
    if norm_type == 2:
        return math.sqrt(sum(_sum_of_squares(grad) for grad in grads))
    if norm_type == math.inf:
        largest = [float(abs(grad).max()) for grad in grads if grad.size]
        return float(np.max(largest, initial=0.0))  # unlike max(), keeps a NaN
    if not norm_type > 0:
        raise ValueError(f"norm_type must be positive, got {norm_type}")
    total = sum(float((abs(grad) ** norm_type).sum(dtype="float64")) for grad in grads)
    return float(total ** (1 / norm_type))


def _sum_of_squares(grad: Array) -> float:
    """In float64, by blocks that stay in cache; einsum neither copies nor starts BLAS threads."""
    xp, flat, block = array_module(grad), grad.reshape(-1), 4096
    whole = flat.size - flat.size % block
    rows = flat[:whole].reshape(-1, block)
    total = float(xp.einsum("ij,ij->i", rows, rows).sum(dtype="float64"))
    return total + float(xp.einsum("i,i->", flat[whole:], flat[whole:]))


# --- learning-rate schedules: step (from 0) -> multiplier -------------------------------------


def constant(step: int) -> float:
    """1 at every step."""
    return 1.0


def linear_warmup(step: int, *, warmup_steps: int) -> float:
    """(step + 1) / warmup_steps up to 1, then 1."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def cosine(step: int, *, total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> float:
    """Linear warm-up, then half a cosine from 1 down to `final` at total_steps
    (Loshchilov & Hutter 2017, without restarts)."""
    if step < warmup_steps:
        return linear_warmup(step, warmup_steps=warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def noam(step: int, *, d_model: int, warmup_steps: int) -> float:
    """d_model^-0.5 * min(s^-0.5, s * warmup_steps^-1.5) with s = step + 1 (Vaswani et al. 2017)."""
    s = step + 1
    return float(d_model**-0.5 * min(s**-0.5, s * max(1, warmup_steps) ** -1.5))


def step_decay(step: int, *, step_size: int, gamma: float = 0.1) -> float:
    """gamma^(step // step_size)."""
    return float(gamma ** (step // step_size))


# --- helpers ----------------------------------------------------------------------------------


def _named(params: Parameters) -> dict[str, Parameter]:
    """Names to parameters, each parameter once; without names they are numbered."""
    named: dict[str, Parameter] = {}
    seen: set[int] = set()
    for k, item in enumerate(params):
        name, parameter = item if isinstance(item, tuple) else (str(k), item)
        if not isinstance(parameter, Parameter):
            raise TypeError(
                "params must hold Parameters or (name, Parameter) pairs, got "
                f"{type(parameter).__name__}"
            )
        if id(parameter) in seen:
            continue
        if name in named:
            raise ValueError(f"params: the name '{name}' comes twice")
        seen.add(id(parameter))
        named[name] = parameter
    return named


def _non_negative(value: float, name: str) -> float:
    if not value >= 0:
        raise ValueError(f"{name} must be >= 0, got {value}")
    return float(value)


def _state_dtype(data: Array) -> str:
    """Optimiser state is float64 for float64 parameters, else float32."""
    return "float64" if data.dtype.itemsize == 8 else "float32"


def _take(state: dict[str, Any], key: str) -> Any:
    if key not in state:
        raise ValueError(f"load_state_dict: missing key '{key}'")
    return state.pop(key)


def _buffer_like(value: np.ndarray, data: Array, key: str) -> Array:
    """A copy of a loaded buffer beside the parameter it belongs to."""
    if value.shape != tuple(data.shape) or value.dtype != _state_dtype(data):
        raise ValueError(
            f"load_state_dict: '{key}' must be {shape_text(data.shape)} {_state_dtype(data)}, "
            f"got {shape_text(value.shape)} {value.dtype}"
        )
    return array_module(data).array(value)
