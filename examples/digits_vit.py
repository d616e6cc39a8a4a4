"""A vision Transformer from scratch: handwritten digits, and where it looks.

    python examples/digits_vit.py

scikit-learn's 1,797 digits of 8 x 8 pixels, cut into 16 patches of 2 x 2. A fifth of the images is
held out. Beside the loss curve, a picture of some of them shows the attention roll-out: which patches
reach the class token.
"""

from __future__ import annotations

import argparse

import numpy as np
import seqkern
from _training import Training, parser
from digits_rows import held_out, load, train
from seqkern import models, optim, plot


def vit(args: argparse.Namespace) -> Training:
    """A small ViT and AdamW, with weights that start wider than those of large models."""
    seqkern.manual_seed(args.seed)
    config = models.ViTConfig(
        hidden_size=args.hidden, num_hidden_layers=args.layers, num_attention_heads=args.heads,
        intermediate_size=2 * args.hidden, hidden_dropout_prob=args.dropout, initializer_range=0.1,
        image_size=8, patch_size=2, num_channels=1, num_labels=10,
    )  # fmt: skip
    model = models.ViT(config)
    settings = {"config": vars(config), "batch": args.batch, "lr": args.lr, "seed": args.seed}
    return Training(model, optim.AdamW(model.named_parameters(), weight_decay=0.05), settings, args.checkpoint)


def draw_rollout(model: models.ViT, images: np.ndarray, digits: np.ndarray, path: str) -> None:
    """Save the picture of the roll-outs, if matplotlib is there."""
    output = model(images, output_attentions=True)
    titles = [f"{d}, seen as {s}" for d, s in zip(digits, output.logits.argmax(-1), strict=True)]
    try:
        plot.attention_rollout(images, output.attentions, path, grid=(4, 4), titles=titles)
    except ImportError as error:
        print(f"no picture: {error}")
        return
    print(f"attention roll-out: {path}")


def main() -> None:
    options = parser(__doc__, steps=600, layers=3, batch=64, lr=2e-3, plot="digits_vit.png")
    options.add_argument("--heads", type=int, default=4)
    options.add_argument("--dropout", type=float, default=0.1)
    options.add_argument("--rollout", metavar="FILE", default="digits_vit_rollout.png", help="picture; '': none")
    args = options.parse_args()
    images, digits = load()
    images, training = images[:, None], vit(args)
    accuracy, model = train(args, training, images, digits), training.model
    count = models.count_parameters(model.config)
    print(f"held-out accuracy: {100 * accuracy:.1f} %, {count:,} parameters, {training.seconds:.0f} s")
    training.plot(args.plot, title="a ViT on digits", ylabel="cross-entropy")
    if args.rollout:
        first = held_out(digits)
        draw_rollout(model, images[first : first + 12], digits[first : first + 12], args.rollout)


if __name__ == "__main__":
    main()
