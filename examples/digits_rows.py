"""Many to one: handwritten digits read row by row.

    python examples/digits_rows.py

scikit-learn's 1,797 digits of 8 x 8 pixels become sequences of 8 rows of 8 values; a bidirectional
LSTM reads them, and the class is read off its final states. A fifth of the images is held out.
"""

from __future__ import annotations

import argparse

import numpy as np
from _training import Training, draw_rows, parser, sequence_training
from seqkern import nn


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 8, 8] in [-1, 1], in a fixed random order, and their digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit(
            "this example needs scikit-learn: pip install 'seqkern[examples]'"
        ) from None
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return (digits.images[order] / 8 - 1).astype(np.float32), digits.target[order]


def held_out(digits: np.ndarray) -> int:
    """Where the last fifth begins."""
    return len(digits) * 4 // 5


def train(args: argparse.Namespace, training: Training, images: np.ndarray, digits: np.ndarray) -> float:
    """Train a classifier of the images on all but the last fifth; its accuracy there."""
    model, cross_entropy, split = training.model, nn.CrossEntropyLoss(), held_out(digits)

    def compute(step: int) -> float:
        rows = draw_rows(args, step, split)
        output, pullback = model.vjp(images[rows])
        loss, pull_loss = cross_entropy.vjp(output.logits, digits[rows])
        (dlogits,) = pull_loss()
        pullback(dlogits)
        return float(loss)

    def evaluate() -> float:
        return float(cross_entropy(model(images[split:]).logits, digits[split:]))

    training.run(args, compute, evaluate)
    return float((model(images[split:]).logits.argmax(-1) == digits[split:]).mean())


def main() -> None:
    options = parser(__doc__, steps=600, batch=64, plot="digits_rows.png")
    options.add_argument("--bidirectional", action=argparse.BooleanOptionalAction, default=True)
    args = options.parse_args()
    images, digits = load()
    training = sequence_training(args, input_size=8, output_size=10, bidirectional=args.bidirectional)
    accuracy = train(args, training, images, digits)
    print(f"held-out accuracy: {100 * accuracy:.1f} %")
    training.plot(args.plot, title="digits, row by row", ylabel="cross-entropy")


if __name__ == "__main__":
    main()
