"""Dates as people write them, rewritten as 1987-05-03: what attention is for.

    python examples/date_rewriting.py                       # all three models, one after the other
    python examples/date_rewriting.py --models none bahdanau

A source holds one to --dates dates in mixed spellings, up to a hundred characters; the target is
the same dates in ISO form. The models are an encoder-decoder whose decoder sees the source through
one vector only ("none"), the same with attention ("luong", "bahdanau") and a Transformer. Two pictures
beside the loss curves (*-MODEL): accuracy against length, and where a trained attention looks (*-attention).
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import seqkern
from _training import Training, parser
from seqkern import models, optim, plot

KINDS = ("none", "luong", "bahdanau", "transformer")
PAD, BOS, EOS = 0, 1, 2
CHARACTERS = "\0\1\2" + "abcdefghijklmnopqrstuvwxyz0123456789 ,./-;"
NUMBER = {character: k for k, character in enumerate(CHARACTERS)}
SEPARATORS = ("; ", " and ", ", then ", " / ")


def spelled(rng: np.random.Generator) -> tuple[str, str]:
    """A date in one of eight spellings, and in ISO form."""
    date = datetime.date(1900, 1, 1) + datetime.timedelta(days=int(rng.integers(0, 73_000)))
    day, year, month = date.day, date.year, date.strftime("%B").lower()
    suffix = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}.get(day, "th")
    forms = (
        f"{day} {month} {year}", f"{month} {day}, {year}", f"{day}.{date.month}.{year}",
        f"the {day}{suffix} of {month} {year}", f"{date:%a}, {day} {month[:3]} {year}".lower(),
        f"{date:%A} {month} {day}{suffix} {year}".lower(), f"{day}-{month[:3]}-{year}", f"{year}/{date.month}/{day}",
    )  # fmt: skip
    return forms[rng.integers(len(forms))], date.isoformat()


def draw(rng: np.random.Generator, count: int, dates: int | None, most: int) -> tuple[list[str], list[str]]:
    """`count` sources and targets of `dates` dates each, or of 1 to `most`."""
    sources, targets = [], []
    for _ in range(count):
        pairs = [spelled(rng) for _ in range(dates or int(rng.integers(1, most + 1)))]
        sources.append("".join(s + SEPARATORS[rng.integers(4)] for s, _ in pairs[:-1]) + pairs[-1][0])
        targets.append(" ".join(t for _, t in pairs))
    return sources, targets


def encoded(texts: list[str], pad: int, end: bool) -> tuple[np.ndarray, np.ndarray]:
    """ids [N, longest] and lengths [N]."""
    rows = [[NUMBER[c] for c in text] + [EOS] * end for text in texts]
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), lengths.max()), pad)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = row
    return ids, lengths


def make_model(kind: str, args: Any) -> Any:
    seqkern.manual_seed(args.seed)
    vocab = len(CHARACTERS)
    if kind == "transformer":
        return models.TransformerMT(models.TransformerMTConfig.base(
            vocab, d_model=args.hidden, num_heads=4, num_encoder_layers=2, num_decoder_layers=2,
            dim_feedforward=2 * args.hidden, dropout=0.0, norm_first=True, label_smoothing=0.0))  # fmt: skip
    return models.Seq2Seq(models.Seq2SeqConfig(
        vocab, vocab, 32, args.hidden, args.layers, args.cell, bidirectional=True, attention=kind))  # fmt: skip


def accuracy(model: Any, sources: list[str], targets: list[str]) -> float:
    """Share of the dates that come out right, each in its place."""
    ids, lengths = encoded(sources, PAD, False)
    found = model.generate(ids, max(map(len, targets)) + 1, src_lengths=lengths)
    texts = ["".join(CHARACTERS[k] for k in row[:n]) for row, n in zip(found.ids, found.lengths, strict=True)]
    right = total = 0
    for text, target in zip(texts, targets, strict=True):
        wanted, written = target.split(), text.rstrip(CHARACTERS[EOS]).split(" ")
        right += sum(a == b for a, b in zip(wanted, written, strict=False))
        total += len(wanted)
    return right / total


def train(kind: str, args: Any) -> Any:
    model = make_model(kind, args)
    settings = {"config": vars(model.config)} | {k: getattr(args, k) for k in ("batch", "lr", "seed", "dates")}
    path = args.checkpoint and args.checkpoint.with_stem(f"{args.checkpoint.stem}-{kind}")
    training = Training(model, optim.AdamW(model.named_parameters(), weight_decay=0.0), settings, path)
    held_out = draw(np.random.default_rng([args.seed, 0, 0]), 2 * args.tests, None, args.dates)

    def loss_of(texts: tuple[list[str], list[str]], compute: Any) -> float:
        ids, lengths = encoded(texts[0], PAD, False)
        return float(compute(ids, encoded(texts[1], -100, True)[0], src_lengths=lengths))

    def evaluate() -> float:
        return 1 - accuracy(model, *held_out)

    def compute(step: int) -> float:
        return loss_of(draw(np.random.default_rng([args.seed, 1, step]), args.batch, None, args.dates),
                       model.loss_and_grads)  # fmt: skip

    training.run(args, compute, evaluate)
    if training.interrupted:
        raise SystemExit(f"stopped in step {training.step} of {kind}" + ", --resume goes on" * bool(path))
    picture = str(Path(args.plot).with_stem(f"{Path(args.plot).stem}-{kind}")) if args.plot else ""
    training.plot(picture, title=f"dates, {kind}; held out: share of wrong dates", ylabel="nats per character")
    print(f"{kind}: {models.count_parameters(model.config):,} parameters, {training.seconds:.0f} s")
    return model


def main() -> None:
    options = parser(__doc__, cell="gru", hidden=128, steps=2000, every=250, batch=32, plot="date_rewriting.png")
    options.add_argument("--models", nargs="+", choices=KINDS, default=["none", "luong", "transformer"])
    options.add_argument("--dates", type=int, default=4, help="most dates in a source")
    options.add_argument("--tests", type=int, default=100, help="sources per length in the test")
    args = options.parse_args()
    rng, resume = np.random.default_rng([args.seed, 2]), args.resume
    curves: dict[str, tuple[list[float], list[float]]] = {}
    tests = [draw(rng, args.tests, k, args.dates) for k in range(1, args.dates + 1)]
    lengths = [float(np.mean([len(s) for s in sources])) for sources, _ in tests]
    for kind in args.models:
        name = args.checkpoint and args.checkpoint.with_stem(f"{args.checkpoint.stem}-{kind}")
        args.resume = bool(resume and name and name.exists())
        model = train(kind, args)
        shares = [accuracy(model, *pair) for pair in tests]
        curves[kind] = (lengths, shares)
        text = ", ".join(f"{n:.0f}: {100 * share:.0f} %" for n, share in zip(lengths, shares, strict=True))
        print(f"dates right by source length (characters): {text}")
        if args.plot and kind in ("luong", "bahdanau"):
            show = tests[min(1, len(tests) - 1)][0][0]
            found = model.generate(encoded([show], PAD, False)[0], 60, output_attentions=True)
            written = ["end" if k == EOS else CHARACTERS[k] for k in found.ids[0]]
            path = Path(args.plot).with_stem(f"{Path(args.plot).stem}-attention")
            title = f"{kind}: what each character looked at"
            plot.attention_map(found.attentions[0], path, rows=written, columns=list(show), title=title)
    if args.plot:
        plot.loss_curves(curves, args.plot, title="dates rewritten", xlabel="characters in the source",
                         ylabel="share of dates right")  # fmt: skip
        print(f"accuracy against length: {args.plot}")


if __name__ == "__main__":
    main()
