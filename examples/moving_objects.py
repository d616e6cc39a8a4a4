"""Frames in, number out: how many of the dots in a film move?

    python examples/moving_objects.py

Twelve frames of 24 x 24 pixels show up to five dots among noise; some move, bouncing off the edges, some
stand still, and no single frame tells which. Convolutions read every frame and what changed since the one
before, an LSTM reads what they found (`SequenceModel` with a front), and the number of moving dots is a class
from its last state. Beside the loss curve, *-confusion shows what was taken for what in held-out films.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _training import parser, sequence_training
from seqkern import nn

FRAMES, SIZE, MOST = 12, 24, 4


def make_films(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Films [count, FRAMES, 2, SIZE, SIZE], frames and changes, and their numbers of moving dots, 0 to MOST."""
    moving = rng.integers(0, MOST + 1, count)
    standing = rng.integers(0, MOST + 2 - moving)
    start = rng.uniform(2, SIZE - 2, (count, MOST + 1, 1, 2))
    angle = rng.uniform(0, 2 * np.pi, (count, MOST + 1, 1))
    speed = rng.uniform(0.8, 1.6, (count, MOST + 1, 1, 1)) * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    speed *= (np.arange(MOST + 1) < moving[:, None])[..., None, None]
    free = start + speed * np.arange(FRAMES)[:, None]
    inside = SIZE - 4
    places = 2 + np.abs((free - 2 + inside) % (2 * inside) - inside)  # as if the edges were mirrors
    shown = np.arange(MOST + 1) < (moving + standing)[:, None]
    axis = np.arange(SIZE) + 0.5
    rows, columns = (np.exp(-((axis - places[..., k : k + 1]) ** 2) / 1.5) for k in range(2))
    films = np.einsum("ndtr,ndtc,nd->ntrc", rows, columns, shown.astype(float))
    films += 0.05 * rng.standard_normal(films.shape)
    changes = np.diff(films, axis=1, prepend=films[:, :1])
    return np.stack([films, changes], axis=2).astype(np.float32), moving


def front() -> nn.Sequential:
    """Convolutions over one frame, to 16 maps of 6 x 6."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2),
    )  # fmt: skip


def save_confusion(path: Path, labels: np.ndarray, found: np.ndarray) -> None:
    from matplotlib.figure import Figure

    counts = np.zeros((MOST + 1, MOST + 1), int)
    np.add.at(counts, (labels, found), 1)
    figure = Figure(figsize=(3.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues")
    for (row, column), n in np.ndenumerate(counts):
        axes.text(column, row, n, ha="center", va="center", color="white" if n > counts.max() / 2 else "black")
    axes.set(xlabel="dots the model saw moving", ylabel="dots that moved")
    figure.savefig(path)
    print(f"confusion: {path}")


def main() -> None:
    options = parser(__doc__, hidden=96, steps=800, every=200, batch=32, plot="moving_objects.png")
    args = options.parse_args()
    training = sequence_training(args, front=front, input_size=16 * 6 * 6, output_size=MOST + 1)
    model, cross_entropy = training.model, nn.CrossEntropyLoss()
    films, labels = make_films(np.random.default_rng([args.seed, 1]), 500)

    def compute(step: int) -> float:
        drawn, numbers = make_films(np.random.default_rng([args.seed, 0, step]), args.batch)
        output, pullback = model.vjp(drawn)
        loss, pull_loss = cross_entropy.vjp(output.logits, numbers)
        pullback(*pull_loss())
        return float(loss)

    training.run(args, compute, lambda: float(cross_entropy(model(films).logits, labels)))
    found = model(films).logits.argmax(-1)
    print(f"held-out films: {100 * (found == labels).mean():.1f} % counted right, "
          f"{100 * (abs(found - labels) <= 1).mean():.1f} % within one")  # fmt: skip
    if training.plot(args.plot, title="how many dots move", ylabel="cross-entropy"):
        save_confusion(Path(args.plot).with_stem(f"{Path(args.plot).stem}-confusion"), labels, found)


if __name__ == "__main__":
    main()
