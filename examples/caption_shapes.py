"""Captions for pictures: coloured shapes that the script draws itself, described in a sentence.

    python examples/caption_shapes.py

Every picture holds one or two shapes: "a red circle left of a blue square", what is farther left or up
comes first. A Captioner (convolutions, then an LSTM that attends to 8 x 8 places of the picture) learns
from pictures and captions alone, and is measured on pictures it has not seen. Beside the loss curve,
*-attention shows where it looks, word by word.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import seqkern
from _training import Training, parser
from seqkern import models, optim

COLOURS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.2, 0.3, 1.0), "yellow": (1.0, 0.9, 0.1)}
SHAPES = ("circle", "square", "triangle")
WORDS = ["", "<start>", "<end>", "a", "left", "of", "above", *COLOURS, *SHAPES]
NUMBER = {word: k for k, word in enumerate(WORDS)}
SIZE, LENGTH = 32, 9
KINDS = [(colour, shape) for colour in COLOURS for shape in SHAPES]


def mask(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """Where the shape covers the picture, bool [SIZE, SIZE]."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    dx, dy = np.abs(columns - x), rows - y
    if shape == "circle":
        return dx**2 + dy**2 < radius**2
    if shape == "square":
        return np.maximum(dx, np.abs(dy)) < 0.85 * radius
    return (np.abs(dy) < radius) & (dx < 0.55 * (dy + radius))


def draw_one(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A picture [3, SIZE, SIZE] and its caption."""
    kinds = [KINDS[rng.integers(len(KINDS))] for _ in range(rng.integers(1, 3))]
    picture = np.full((3, SIZE, SIZE), 0.95) + 0.04 * rng.standard_normal((3, SIZE, SIZE))
    places, relation = [rng.uniform(8, SIZE - 8, 2)], ""
    if len(kinds) == 2:
        axis, first, other = int(rng.integers(2)), rng.uniform(6, 10), rng.uniform(12, SIZE - 12)
        places = [np.full(2, other) + rng.uniform(-2, 2, 2) for _ in kinds]  # nearly level, or nearly upright
        places[0][axis], places[1][axis] = first, SIZE - first
        relation = (" left of ", " above ")[axis]
    for (colour, shape), (x, y) in zip(kinds, places, strict=True):
        covered = mask(shape, x, y, rng.uniform(4, 6.5))
        picture[:, covered] = np.array(COLOURS[colour])[:, None]
    return picture, relation.join(f"a {colour} {shape}" for colour, shape in kinds)


def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures, targets [count, LENGTH] that end in <end> and -100, and the captions."""
    pairs = [draw_one(rng) for _ in range(count)]
    targets = np.full((count, LENGTH), -100)
    for row, (_, caption) in zip(targets, pairs, strict=True):
        ids = [NUMBER[word] for word in caption.split()] + [2]
        row[: len(ids)] = ids
    return np.stack([p for p, _ in pairs]).astype(np.float32) - 0.5, targets, [caption for _, caption in pairs]


def captions(model: models.Captioner, pictures: np.ndarray) -> list[str]:
    found = model.generate(pictures, LENGTH, beams=3)
    return [" ".join(WORDS[k] for k in row[:n] if k != 2) for row, n in zip(found.ids, found.lengths, strict=True)]


def share_right(model: models.Captioner, pictures: np.ndarray, wanted: list[str]) -> float:
    return float(np.mean([a == b for a, b in zip(captions(model, pictures), wanted, strict=True)]))


def save_attention(model: models.Captioner, picture: np.ndarray, path: Path) -> None:
    """The picture once for every word written, bright where the word looked."""
    from matplotlib.figure import Figure

    found = model.generate(picture[None], LENGTH, output_attentions=True)
    figure = Figure(figsize=(1.6 * found.lengths[0], 1.9), layout="constrained")
    for t, axes in enumerate(figure.subplots(1, int(found.lengths[0]), squeeze=False)[0]):
        side = round(found.attentions.shape[2] ** 0.5)
        light = np.kron(found.attentions[0, t].reshape(side, side), np.ones((SIZE // side, SIZE // side)))
        shown = np.clip(picture.transpose(1, 2, 0) + 0.5, 0, 1)
        axes.imshow(shown * (0.25 + 0.75 * light / light.max())[..., None])
        axes.set_title(WORDS[found.ids[0, t]], fontsize=9)
        axes.set_axis_off()
    figure.savefig(path)
    print(f"attention: {path}")


def main() -> None:
    options = parser(__doc__, hidden=96, steps=1500, every=250, batch=32, plot="caption_shapes.png")
    options.add_argument("--pictures", type=int, default=500, help="pictures in the test")
    args = options.parse_args()
    seqkern.manual_seed(args.seed)
    config = models.CaptionerConfig(
        len(WORDS), channels=(16, 32), embedding_size=32, hidden_size=args.hidden, cell=args.cell,
        num_layers=args.layers,
    )  # fmt: skip
    model = models.Captioner(config)
    settings = {"hidden": args.hidden, "batch": args.batch, "lr": args.lr, "seed": args.seed}
    training = Training(model, optim.AdamW(model.named_parameters()), settings, args.checkpoint)
    pictures, _, wanted = draw(np.random.default_rng([args.seed, 1]), min(256, args.pictures))

    def compute(step: int) -> float:
        return model.loss_and_grads(*draw(np.random.default_rng([args.seed, 0, step]), args.batch)[:2])

    training.run(args, compute, lambda: 1 - share_right(model, pictures, wanted))
    if training.interrupted:
        raise SystemExit(f"stopped in step {training.step}")
    images, _, truth = draw(np.random.default_rng([args.seed, 2]), args.pictures)
    print(f"held-out pictures: {100 * share_right(model, images, truth):.1f} % of captions right")
    for made, right in zip(captions(model, images[:5]), truth, strict=False):
        print(f"    {made}" + ("" if made == right else f"   (should be: {right})"))
    if training.plot(args.plot, title="captions; held out: share of wrong ones", ylabel="nats per word"):
        path = Path(args.plot)
        two = next(k for k, text in enumerate(wanted) if len(text.split()) > 4)
        save_attention(model, pictures[two], path.with_stem(f"{path.stem}-attention"))


if __name__ == "__main__":
    main()
