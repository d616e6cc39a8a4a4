"""One to many: a vector of five numbers goes in, a drawing comes out, point by point.

    python examples/draw_from_vector.py

The numbers are two frequencies, the cosine and sine of a phase, and the decay of a harmonograph
(two pendulums moving one pen). The model sees only numbers and drawings, and learns to draw for
numbers it has not seen. One picture shows the loss; beside it, as `*-drawings`, are held-out
drawings, the true ones in grey.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _training import draw_rows, mean_square, parser, sequence_training


def make_drawings(rng: np.random.Generator, count: int, steps: int) -> tuple[np.ndarray, ...]:
    """Vectors [count, 5] in [-1, 1] and pen positions [count, steps, 2]."""
    a, b, decay, turn = rng.uniform(-1, 1, (4, count, 1))
    vectors = np.concatenate([a, b, np.cos(np.pi * turn), np.sin(np.pi * turn), decay], axis=1)
    t = np.linspace(0, 2 * np.pi, steps)
    fade = np.exp(-(1 + decay) * t / 6)
    x = fade * np.sin((2 + 0.5 * a) * t + np.pi * turn)
    y = fade * np.sin((3 + 0.5 * b) * t)
    return vectors.astype(np.float32), np.stack([x, y], axis=-1).astype(np.float32)


def save_drawings(path: Path, targets: np.ndarray, drawn: np.ndarray) -> None:
    """The first six targets (grey) under what the model drew."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, target, line in zip(figure.subplots(2, 3).flat, targets, drawn, strict=False):
        axes.plot(*target.T, color="0.75", linewidth=4)
        axes.plot(*line.T, linewidth=1.2)
        axes.set_axis_off()
    figure.savefig(path)
    print(f"drawings: {path}")


def main() -> None:
    options = parser(__doc__, hidden=128, steps=1000, batch=64, plot="draw_from_vector.png")
    options.add_argument("--points", type=int, default=60, help="points per drawing")
    args = options.parse_args()
    vectors, drawings = make_drawings(np.random.default_rng(args.seed), 4096 + 256, args.points)
    split = 4096
    training = sequence_training(args, "points", input_size=5, output_size=2, task="one_to_many")
    model = training.model

    def compute(step: int) -> float:
        rows = draw_rows(args, step, split)
        output, pullback = model.vjp(vectors[rows], steps=args.points)
        loss, dlogits = mean_square(output.logits - drawings[rows])
        pullback(dlogits)
        return loss

    def evaluate() -> float:
        return mean_square(model.generate(vectors[split:], args.points) - drawings[split:])[0]

    training.run(args, compute, evaluate)
    variance = float(drawings[split:].var())
    print(f"held-out error {evaluate():.5f}, of a variance of {variance:.3f}")
    if training.plot(args.plot, title="drawing from a vector", ylabel="mean square error"):
        path = Path(args.plot)
        drawn = model.generate(vectors[split:], args.points)
        save_drawings(path.with_stem(f"{path.stem}-drawings"), drawings[split:], drawn)


if __name__ == "__main__":
    main()
