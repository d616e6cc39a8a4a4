"""How far a gradient reaches: RNN against LSTM and GRU.

    python examples/gradients_over_distance.py

A loss on the last output is sent back through --length steps of untrained networks, and the norm of its
gradient is drawn for every step it reaches. An RNN multiplies by nearly the same matrix at every step: with
small weights the gradient vanishes, with large ones it explodes (Hochreiter 1991; Bengio et al. 1994). An
LSTM whose forget gates stand open, or a GRU whose update gates keep the old state, hands it on.
"""

from __future__ import annotations

import argparse

import numpy as np
from seqkern import nn, plot


def gradient_norms(core: nn.RNN | nn.LSTM | nn.GRU, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """|dL/dx_t| for t = 0 ... T - 1, relative to the last, of a random loss on the last output."""
    (y, _), pullback = core.vjp(x)
    dy = np.zeros_like(y)
    dy[-1] = rng.standard_normal(y[-1].shape)
    dx, _ = pullback(dy)
    norms = np.sqrt((dx**2).sum(axis=(1, 2)))
    return np.asarray(norms / norms[-1])


def make(kind: str, hidden: int, gain: float, keep: float, rng: np.random.Generator) -> nn.RNN | nn.LSTM | nn.GRU:
    """A core in float64. gain: largest stretch of the RNN's recurrent matrix; keep: bias of the gate that keeps."""
    core = getattr(nn, kind)(hidden, hidden, dtype=np.float64, rng=rng)
    if kind == "RNN":
        core.weight_hh_l0.data[...] = gain * np.linalg.qr(rng.standard_normal((hidden, hidden)))[0]
        core.weight_ih_l0.data *= 0.1  # small inputs: tanh stays near its steepest
    elif keep:
        gate = slice(hidden, 2 * hidden)  # LSTM: the forget gate f; GRU: the update gate z
        core.bias_ih_l0.data[gate] = keep
    return core


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--length", type=int, default=150)
    options.add_argument("--hidden", type=int, default=64)
    options.add_argument("--keep", type=float, default=4.0, help="bias of the gates that keep the state")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--plot", metavar="FILE", default="gradients_over_distance.png")
    args = options.parse_args()
    rows = [("RNN, weights 0.9", "RNN", 0.9, 0.0), ("RNN, weights 2", "RNN", 2.0, 0.0),
            ("LSTM, as drawn", "LSTM", 0, 0.0), ("GRU, as drawn", "GRU", 0, 0.0),
            ("LSTM, forget gates open", "LSTM", 0, args.keep),
            ("GRU, update gates keep", "GRU", 0, args.keep)]  # fmt: skip
    rng = np.random.default_rng(args.seed)
    x = 0.1 * rng.standard_normal((args.length, 16, args.hidden))
    distance, curves = np.arange(args.length), {}
    for label, kind, gain, keep in rows:
        norms = gradient_norms(make(kind, args.hidden, gain, keep, rng), x, rng)
        curves[label] = (distance, norms[::-1])
        halves = np.log(norms[0]) / np.log(2) / max(1, args.length - 1)
        print(f"{label:>24}: {norms[0]:.1e} of it is left after {args.length - 1} steps ({2**halves:.3f} per step)")
    if args.plot:
        plot.loss_curves(curves, args.plot, title="how far a gradient reaches", xlabel="steps back",
                         ylabel="norm of the gradient, relative", log_scale=True)  # fmt: skip
        print(f"gradients: {args.plot}")


if __name__ == "__main__":
    main()
