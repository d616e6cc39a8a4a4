"""BatchNorm1d and BatchNorm2d (torch.nn's)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ._arrays import Array, OutputForm, check_array
from ._init import Initializer, check_size
from .module import Buffer, Module, Pullback


class _BatchNorm(Module):
    """x [N, C, ...] normalised per channel; see `seqkern.batch_norm`.

    In training the batch's own statistics are used, and the running ones move towards them by
    `momentum` (None: they are the mean over all batches so far), in the call and in `vjp` alike. In
    eval mode the running ones are used. weight and bias [C] start from 1 and 0. The buffers
    running_mean, running_var [C] and num_batches_tracked are part of the state dict; they stay
    float32 (float64 for float64 modules).
    """

    _ranks: tuple[int, ...] = ()

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        self.num_features = check_size(num_features, "num_features")
        self.eps = eps
        self.momentum = momentum
        init = Initializer(None, dtype)
        self.weight = init.constant(1, num_features) if affine else None
        self.bias = init.constant(0, num_features) if affine else None
        wide = np.float64 if init.dtype == np.float64 else np.float32
        kept = track_running_stats
        self.running_mean = Buffer(np.zeros(num_features, wide)) if kept else None
        self.running_var = Buffer(np.ones(num_features, wide)) if kept else None
        self.num_batches_tracked = Buffer(np.zeros((), np.int64)) if kept else None

    def __call__(self, x: Array) -> Array:
        return self._forward(x)[0]

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        weight, bias = self.weight, self.bias
        y, saved = self._forward(x)
        form = OutputForm.of(y)

        def pull(dy: Array | None) -> tuple[Array]:
            grads = ops.batch_norm_backward(form.gradient(dy), saved)
            if weight is not None and bias is not None:
                weight.add_grad(grads.dweight)
                bias.add_grad(grads.dbias)
            return (grads.dx,)

        return y, Pullback(pull)

    def _forward(self, x: Array) -> tuple[Array, Any]:
        check_array(x, "input")
        if x.ndim not in self._ranks:
            raise ValueError(
                f"{type(self).__name__}: input must have {' or '.join(map(str, self._ranks))} "
                f"dimensions, got shape {list(x.shape)}"
            )
        training = self.training or self.running_mean is None
        momentum = self.momentum
        if momentum is None and self.num_batches_tracked is not None:
            momentum = 1 / (int(self.num_batches_tracked.data) + 1)
        mean, var, weight, bias = (
            None if entry is None else entry.data
            for entry in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        result = ops.batch_norm_forward(
            x, mean, var, weight, bias, training, momentum or 0.0, self.eps
        )
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.data += 1
        return result

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_features}, eps={self.eps}, momentum={self.momentum})"


class BatchNorm1d(_BatchNorm):
    """Batch norm of x [N, C] or [N, C, L]: `_BatchNorm` says how."""

    _ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch norm of x [N, C, H, W]: `_BatchNorm` says how."""

    _ranks = (4,)
