"""A small GPT and an LSTM learn the same text in the same time: which one writes it better?

    python examples/gpt_vs_lstm.py                       # Python's own help texts, 2 minutes each
    python examples/gpt_vs_lstm.py --text FILE --minutes 10

Both are character-level and nearly of one size. The LSTM is trained as in char_rnn.py; the GPT reads windows of
--seq-len characters drawn anywhere. Held-out losses are in nats per character: the LSTM's state runs through, the GPT
is asked only for characters that have at least half a window before them. Two pictures: both curves over time, and
(*-attention) where the heads of the GPT's last layer look.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import seqkern
from _training import Training, parser
from char_rnn import as_streams, held_out_loss, read_text, split_text, training_step
from seqkern import models, nn, optim, plot


def make_lstm(vocab: int, args: argparse.Namespace) -> models.RNNLM:
    return models.RNNLM(models.RNNLMConfig(vocab, 64, args.hidden, args.layers, args.cell, dropout=args.dropout))


def make_gpt(vocab: int, args: argparse.Namespace) -> models.GPT2:
    """Of the GPT's layers 12 width^2, of the LSTM's 4 hidden^2 and more: about the same count by default."""
    return models.GPT2(models.GPT2Config(
        vocab, args.seq_len, args.width, n_layer=args.gpt_layers, n_head=4, eos_token_id=None,
        embd_pdrop=args.dropout / 4, resid_pdrop=args.dropout / 4, attn_pdrop=0.0))  # fmt: skip


def gpt_step(model: models.GPT2, ids: np.ndarray, args: argparse.Namespace) -> Any:
    """Windows that depend on the seed and the step alone."""
    if len(ids) <= args.seq_len:
        raise SystemExit("the text is too short for this --seq-len")
    cross_entropy = nn.CrossEntropyLoss()

    def compute(step: int) -> float:
        starts = np.random.default_rng([args.seed, step]).integers(0, len(ids) - args.seq_len, args.batch)
        windows = ids[starts[:, None] + np.arange(args.seq_len + 1)]
        output, pullback = model.vjp(windows[:, :-1])
        loss, pull_loss = cross_entropy.vjp(output.logits, windows[:, 1:])
        pullback(*pull_loss())
        return float(loss)

    return compute


def gpt_loss(model: models.GPT2, ids: np.ndarray, length: int) -> float:
    """Nats per character, over the second halves of windows that overlap by half."""
    half = length // 2
    starts = np.arange(0, len(ids) - length, half)
    cross_entropy, total = nn.CrossEntropyLoss(reduction="sum"), 0.0
    for part in np.split(starts, range(64, len(starts), 64)):
        windows = ids[part[:, None] + np.arange(length + 1)]
        logits = np.ascontiguousarray(model(windows[:, :-1]).logits[:, half:])
        total += float(cross_entropy(logits, windows[:, half + 1 :]))
    return total / (len(starts) * (length - half))


def train(kind: str, args: argparse.Namespace, vocab: str, kept: np.ndarray, held_out: np.ndarray) -> Training:
    seqkern.manual_seed(args.seed)
    model: Any = (make_gpt if kind == "gpt" else make_lstm)(len(vocab), args)
    names = ("seq_len", "batch", "seed", "lr", "gpt_lr")
    settings = {"vocab": vocab, "config": vars(model.config)} | {name: getattr(args, name) for name in names}
    path = args.checkpoint and args.checkpoint.with_stem(f"{args.checkpoint.stem}-{kind}")
    training = Training(model, optim.AdamW(model.named_parameters(), betas=(0.9, 0.98)), settings, path)
    options = argparse.Namespace(**vars(args))
    options.resume = bool(args.resume and path and path.exists())
    if kind == "gpt":
        options.lr = args.gpt_lr
        training.run(options, gpt_step(model, kept, args), lambda: gpt_loss(model, held_out, args.seq_len))
    else:
        streams = as_streams(held_out, min(32, max(1, len(held_out) // 100)))
        step = training_step(training, as_streams(kept, args.batch), args.seq_len // 2)
        training.run(options, step, lambda: held_out_loss(model, streams))
    if training.interrupted:
        raise SystemExit(f"stopped in step {training.step} of {kind}" + ", --resume goes on" * bool(path))
    count = models.count_parameters(model.config)
    print(f"{kind}: {count:,} parameters, {training.step} steps, {training.seconds:.0f} s, "
          f"held out {training.held_out:.4f} nats per character")  # fmt: skip
    return training


def most_letters(text: str, length: int) -> str:
    """The piece of the text that is most of all made of words."""
    pieces = [text[k : k + length] for k in range(0, len(text) - length + 1, length)]
    return max(pieces, key=lambda piece: sum(map(str.isalpha, piece)), default=text)


def main() -> None:
    options = parser(__doc__, hidden=512, minutes=2.0, steps=10**9, every=50, lr=3e-3, plot="gpt_vs_lstm.png")
    add = options.add_argument
    add("--text", type=Path, help="any UTF-8 text (default: pydoc's topics)")
    add("--seq-len", type=int, default=96, help="characters the GPT sees at once; the LSTM's windows have half")
    add("--width", type=int, default=128, help="of the GPT")
    add("--gpt-layers", type=int, default=4)
    add("--gpt-lr", type=float, default=3e-3)
    add("--dropout", type=float, default=0.4, help="the LSTM's; the GPT has a quarter of it")
    args = options.parse_args()
    text = read_text(args.text)
    vocab = "".join(sorted(set(text)))
    number = {character: k for k, character in enumerate(vocab)}
    kept, held_out = (np.array([number[c] for c in part]) for part in split_text(text))
    curves = {}
    for kind in ("lstm", "gpt"):
        training = train(kind, args, vocab, kept, held_out)
        steps, losses = np.array(training.history["held out"]).T
        curves[kind] = (steps * training.seconds / training.step, losses)
    if args.plot:
        plot.loss_curves(curves, args.plot, title="held-out loss", xlabel="seconds", ylabel="nats per character")
        shown = most_letters(" ".join(text[-len(held_out) :].split()), min(32, args.seq_len))
        output = training.model(np.array([[number[c] for c in shown]]), output_attentions=True)
        path = Path(args.plot).with_stem(f"{Path(args.plot).stem}-attention")
        tokens = shown.replace(" ", "·")
        plot.attention_map(output.attentions[-1][0], path, rows=tokens, columns=tokens, title="the GPT's last layer")
        print(f"curves: {args.plot}; attention: {path}")


if __name__ == "__main__":
    main()
