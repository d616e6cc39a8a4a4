"""What date_rewriting and word_translation share: a sequence of parts in, the same parts rewritten out.

Trains an encoder-decoder whose decoder sees the source through one vector only ("none"), the same with attention
("luong", "bahdanau") and a Transformer, on one task, and draws accuracy against the length of the source.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import seqkern
from _training import Training, parser
from seqkern import models, optim, plot

KINDS = ("none", "luong", "bahdanau", "transformer")
SPECIAL = ["pad", "start", "end"]
PAD, EOS = 0, 2
Tokens = list[str]


@dataclass
class Task:
    """name: of the parts; unit: of a token; sources, targets: the tokens there are; between: that between two parts.

    draw(rng, count, parts): sources and targets, of so many parts each or, with None, of 1 to --NAME.
    """

    name: str
    unit: str
    sources: Tokens
    targets: Tokens
    between: str
    draw: Callable[[np.random.Generator, int, int | None], tuple[list[Tokens], list[Tokens]]]

    def __post_init__(self) -> None:
        self.sources, self.targets = [*SPECIAL, *self.sources], [*SPECIAL, *self.targets]


def rewriting_parser(doc: str | None, name: str, most: int, **defaults: Any) -> argparse.ArgumentParser:
    options = parser(doc, cell="gru", hidden=128, every=250, batch=32, **defaults)
    options.add_argument("--models", nargs="+", choices=KINDS, default=["none", "luong", "transformer"])
    options.add_argument(f"--{name}", dest="parts", type=int, default=most, help=f"most {name} in a source")
    options.add_argument("--tests", type=int, default=100, help="sources per length in the test")
    return options


def encoded(rows: list[Tokens], tokens: Tokens, pad: int, end: bool) -> tuple[np.ndarray, np.ndarray]:
    """ids [N, longest] and lengths [N]."""
    number = {token: k for k, token in enumerate(tokens)}
    numbers = [[number[token] for token in row] + [EOS] * end for row in rows]
    lengths = np.array([len(row) for row in numbers])
    ids = np.full((len(rows), lengths.max()), pad)
    for k, row in enumerate(numbers):
        ids[k, : len(row)] = row
    return ids, lengths


def make_model(kind: str, task: Task, args: Any) -> Any:
    seqkern.manual_seed(args.seed)
    sizes = (len(task.sources), len(task.targets))
    if kind == "transformer":
        return models.TransformerMT(models.TransformerMTConfig(
            *sizes, d_model=args.hidden, num_heads=4, num_encoder_layers=2, num_decoder_layers=2,
            dim_feedforward=2 * args.hidden, dropout=0.0, norm_first=True, label_smoothing=0.0,
            share_embeddings=task.sources == task.targets))  # fmt: skip
    return models.Seq2Seq(models.Seq2SeqConfig(
        *sizes, 32, args.hidden, args.layers, args.cell, bidirectional=True, attention=kind))  # fmt: skip


def accuracy(task: Task, model: Any, sources: list[Tokens], targets: list[Tokens]) -> float:
    """Share of the parts that come out right, each in its place."""
    ids, lengths = encoded(sources, task.sources, PAD, False)
    found = model.generate(ids, max(map(len, targets)) + 1, src_lengths=lengths)

    def parts(tokens: Tokens) -> list[Tokens]:
        groups = groupby(tokens, lambda token: token == task.between)
        return [list(group) for between, group in groups if not between]

    right = total = 0
    for row, target in zip(found.ids, targets, strict=True):
        wanted, written = parts(target), parts([task.targets[k] for k in row if k != EOS])
        right += sum(a == b for a, b in zip(wanted, written, strict=False))
        total += len(wanted)
    return right / total


def named(path: Path, kind: str) -> Path:
    return path.with_stem(f"{path.stem}-{kind}")


def train(kind: str, task: Task, args: Any) -> Any:
    model = make_model(kind, task, args)
    settings = {"config": vars(model.config)} | {k: getattr(args, k) for k in ("batch", "lr", "seed", "parts")}
    path = args.checkpoint and named(args.checkpoint, kind)
    training = Training(model, optim.AdamW(model.named_parameters(), weight_decay=0.0), settings, path)
    held_out = task.draw(np.random.default_rng([args.seed, 0, 0]), 2 * args.tests, None)

    def compute(step: int) -> float:
        sources, targets = task.draw(np.random.default_rng([args.seed, 1, step]), args.batch, None)
        ids, lengths = encoded(sources, task.sources, PAD, False)
        wanted, _ = encoded(targets, task.targets, -100, True)
        return float(model.loss_and_grads(ids, wanted, src_lengths=lengths))

    training.run(args, compute, lambda: 1 - accuracy(task, model, *held_out))
    if training.interrupted:
        raise SystemExit(f"stopped in step {training.step} of {kind}" + ", --resume goes on" * bool(path))
    picture = str(named(Path(args.plot), kind)) if args.plot else ""
    title = f"{task.name}, {kind}; held out: share of wrong {task.name}"
    training.plot(picture, title=title, ylabel=f"nats per {task.unit}")
    print(f"{kind}: {models.count_parameters(model.config):,} parameters, {training.seconds:.0f} s")
    return model


def draw_attention(kind: str, task: Task, model: Any, source: Tokens, path: str) -> None:
    ids, _ = encoded([source], task.sources, PAD, False)
    found = model.generate(ids, 60, output_attentions=True)
    rows = [task.targets[k] for k in found.ids[0]]
    title = f"{kind}: what each {task.unit} looked at"
    plot.attention_map(found.attentions[0], named(Path(path), "attention"), rows=rows, columns=source, title=title)


def compare(task: Task, args: Any) -> None:
    """Train the --models one after the other, test them on sources of every number of parts, draw."""
    rng, resume = np.random.default_rng([args.seed, 2]), args.resume
    curves: dict[str, tuple[list[float], list[float]]] = {}
    tests = [task.draw(rng, args.tests, k) for k in range(1, args.parts + 1)]
    lengths = [float(np.mean([len(s) for s in sources])) for sources, _ in tests]
    for kind in args.models:
        args.resume = bool(resume and args.checkpoint and named(args.checkpoint, kind).exists())
        model = train(kind, task, args)
        shares = [accuracy(task, model, *pair) for pair in tests]
        curves[kind] = (lengths, shares)
        text = ", ".join(f"{n:.0f}: {100 * share:.0f} %" for n, share in zip(lengths, shares, strict=True))
        print(f"{task.name} right by source length ({task.unit}s): {text}")
        if args.plot and kind in ("luong", "bahdanau"):
            draw_attention(kind, task, model, tests[(len(tests) - 1) // 2][0][0], args.plot)
    if args.plot:
        plot.loss_curves(curves, args.plot, title=f"{task.name} rewritten", xlabel=f"{task.unit}s in the source",
                         ylabel=f"share of {task.name} right")  # fmt: skip
        print(f"accuracy against length: {args.plot}")
