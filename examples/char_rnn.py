"""A character-level language model, trained by truncated back-propagation through time.

    python examples/char_rnn.py                                    # Python's own help texts
    python examples/char_rnn.py --text FILE --cell gru --minutes 10
    python examples/char_rnn.py --resume                           # go on after Ctrl-C
    python examples/char_rnn.py --sample 1000 --temperature 0.7    # write, no training

The text is cut into --batch streams read side by side, --seq-len characters at a time; the state
carries over from window to window, the gradient does not. The last tenth is held out: training
sees none of its paragraphs, not even where the text repeats them. Losses are in nats per character.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import seqkern
from _training import Training, parser, read_checkpoint
from seqkern import models, optim


def parse() -> argparse.Namespace:
    result = parser(
        __doc__,
        hidden=512,
        steps=3000,
        every=250,
        checkpoint=Path("char_rnn.safetensors"),
        plot="char_rnn.png",
    )
    add = result.add_argument
    add("--text", type=Path, help="any UTF-8 text (default: pydoc's topics, 465,000 characters)")
    add("--seq-len", type=int, default=50, help="characters per window")
    add("--embedding", type=int, default=64, help="size of a character's vector; 0: one-hot")
    add("--dropout", type=float, default=0.4)
    add("--sample", type=int, metavar="N", help="write N characters; given alone, do only that")
    add("--temperature", type=float, default=0.8, help="below 1: more careful; 0: no chance")
    return result.parse_args()


def read_text(path: Path | None) -> str:
    if path is not None:
        return path.read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def split_text(text: str) -> tuple[str, str]:
    """The last tenth, held out, and before it the nine tenths without paragraphs it repeats."""
    cut = len(text) * 9 // 10
    held_out = set(text[cut:].split("\n\n"))
    kept = "\n\n".join(part for part in text[:cut].split("\n\n") if part not in held_out)
    return kept, text[cut:]


def make_model(settings: dict[str, Any]) -> models.RNNLM:
    seqkern.manual_seed(settings["seed"])
    return models.RNNLM(models.RNNLMConfig(len(settings["vocab"]), **settings["model"]))


def write(model: models.RNNLM, vocab: str, length: int, temperature: float, seed: int) -> str:
    """`length` characters from the model, starting on a new line."""
    start = np.array([[max(vocab.find("\n"), 0)]])
    ids = model.generate(start, length, temperature=temperature, seed=seed)
    return "".join(vocab[i] for i in ids[0, 1:])


def as_streams(ids: np.ndarray, batch: int) -> np.ndarray:
    """[batch, S]: contiguous pieces of the text, one per row."""
    length = len(ids) // batch
    return ids[: batch * length].reshape(batch, length)


def training_step(training: Training, streams: np.ndarray, seq_len: int) -> Callable[[int], float]:
    """Truncated BPTT: window after window, from the top again at the end of the streams."""
    windows = (streams.shape[1] - 1) // seq_len
    if windows < 1:
        raise SystemExit("the text is too short for this --batch and --seq-len")

    def compute(step: int) -> float:
        t = (step % windows) * seq_len
        state = tuple(training.carry[key] for key in sorted(training.carry)) if t else ()
        hx = None if not state else state if len(state) == 2 else state[0]
        ids, targets = streams[:, t : t + seq_len], streams[:, t + 1 : t + seq_len + 1]
        loss, hx = training.model.loss_and_grads(ids, targets, hx)
        states = hx if isinstance(hx, tuple) else (hx,)
        training.carry = {f"state{k}": h for k, h in enumerate(states)}
        return float(loss)

    return compute


def held_out_loss(model: models.RNNLM, streams: np.ndarray, window: int = 100) -> float:
    """Nats per character, the state carried along each stream."""
    loss, hx, total = seqkern.nn.CrossEntropyLoss(reduction="sum"), None, 0.0
    for t in range(0, streams.shape[1] - 1, window):
        targets = streams[:, t + 1 : t + window + 1]
        logits, hx = model(streams[:, t : t + targets.shape[1]], hx)
        total += float(loss(logits, targets))
    return total / streams[:, 1:].size


def train(args: argparse.Namespace) -> None:
    text = read_text(args.text)
    vocab = "".join(sorted(set(text)))
    sizes = {"embedding_size": args.embedding, "hidden_size": args.hidden}
    sizes |= {"num_layers": args.layers, "cell": args.cell, "dropout": args.dropout}
    names = ("seq_len", "batch", "lr", "clip", "seed")
    settings = {"vocab": vocab, "model": sizes} | {name: getattr(args, name) for name in names}
    model = make_model(settings)
    optimizer = optim.AdamW(model.named_parameters(), betas=(0.9, 0.98))
    training = Training(model, optimizer, settings, args.checkpoint)

    number = {character: k for k, character in enumerate(vocab)}
    ids, held_out_ids = (np.array([number[c] for c in part]) for part in split_text(text))
    held_out = as_streams(held_out_ids, min(32, max(1, len(held_out_ids) // 100)))
    training.run(
        args,
        training_step(training, as_streams(ids, args.batch), args.seq_len),
        evaluate=lambda: held_out_loss(model, held_out),
        report=lambda: f"\n{write(model, vocab, 200, args.temperature, args.seed)}\n",
    )
    seen = training.step * args.batch * args.seq_len
    print(f"{training.step} steps, {seen:,} characters, {training.seconds:.0f} s")
    print(f"held out: {training.held_out:.4f} nats per character")
    training.plot(args.plot, title=f"char_rnn, {args.cell} {args.hidden}", ylabel="nats/character")


def main() -> None:
    args = parse()
    if not args.sample or args.resume or args.text or args.minutes or args.steps is not None:
        train(args)
    if args.sample:
        progress, groups = read_checkpoint(args.checkpoint)
        settings = progress["settings"]
        model = make_model(settings).eval()
        model.load_state_dict(groups["model"])
        print(write(model, settings["vocab"], args.sample, args.temperature, args.seed))


if __name__ == "__main__":
    main()
