"""Word vectors from Python's own help texts: which words keep the same company?

    python examples/word2vec_topics.py
    python examples/word2vec_topics.py --loss negative --text FILE

Prints the nearest neighbours of a few words and scores over pairs of words that belong together: the mean
reciprocal rank of one among the neighbours of the other (1: always the nearest), of the words' vectors and of their
sum with what the output layer has for them. Beside them stand count-based baselines from the same windows: the
words' rows of co-occurrence counts; those rows weighted by positive pointwise mutual information (PPMI), which are as
long as the vocabulary; and both cut by singular values to the length of the vectors, which is the fair comparison.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import seqkern
from _training import Training, parser
from seqkern import models, optim

PAIRS = """list tuple; string bytes; try except; if else; for while; integer float; class instance; module package;
    function method; global nonlocal; true false; yield generator; async await; raise exception; key value;
    dictionary mapping; sequence mutable; left right; first last; break continue; less greater; string literal;
    argument parameter; iterator iterable; complex imaginary; error exception; call arguments; old new; before after;
    public private; positional keyword; bitwise shift; start stop; finally except; and or; base derived;
    local global"""


def read_words(path: Path | None) -> list[str]:
    """Lower-case words of a text, paragraphs that repeat once only, and phrases joined."""
    if path is not None:
        text = path.read_text(encoding="utf-8")
    else:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))
    paragraphs = dict.fromkeys(text.lower().split("\n\n"))
    words = re.findall(r"[a-z_]{2,}", "\n".join(paragraphs))
    return models.join_phrases(words, threshold=50.0)


def reciprocal_rank(vectors: np.ndarray, pairs: list[tuple[int, int]]) -> float:
    """Mean of 1 / rank of b among the neighbours of a by cosine, both ways round."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    ranks = []
    for a, b in [*pairs, *((b, a) for a, b in pairs)]:
        cosines = unit @ unit[a]
        cosines[a] = -np.inf
        ranks.append(1 + int((cosines > cosines[b]).sum()))
    return float(np.mean(1 / np.array(ranks)))


def count_baselines(ids: np.ndarray, words: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Co-occurrence counts within the window, [words, words], and their positive PMI."""
    counts = np.zeros((words, words))
    for distance in range(1, window + 1):
        np.add.at(counts, (ids[distance:], ids[:-distance]), 1)
    counts += counts.T
    row = counts.sum(1, keepdims=True)
    return counts, np.log(np.maximum(counts * row.sum() / np.maximum(row * row.T, 1e-12), 1))


def shortened(rows: np.ndarray, size: int) -> np.ndarray:
    """The best approximation of the rows by so many numbers each."""
    left, values, _ = np.linalg.svd(rows)
    return left[:, :size] * values[:size]


def main() -> None:
    options = parser(__doc__, hidden=64, steps=3600, every=300, batch=2048, lr=5e-3, plot="word2vec_topics.png")
    options.add_argument("--text", type=Path, help="any UTF-8 text (default: pydoc's topics)")
    options.add_argument("--loss", choices=["softmax", "negative"], default="softmax")
    options.add_argument("--window", type=int, default=5)
    options.add_argument("--min-count", type=int, default=5)
    args = options.parse_args()
    seqkern.manual_seed(args.seed)
    tokens = read_words(args.text)
    config = models.Word2VecConfig.of(tokens, args.min_count, dim=args.hidden, window=args.window, loss=args.loss)
    model = models.Word2Vec(config)
    settings = {name: getattr(args, name) for name in ("batch", "lr", "seed", "loss", "window", "hidden")}
    settings["words"] = len(config.words)
    optimizer = optim.AdamW(model.named_parameters(), weight_decay=0.0)
    training = Training(model, optimizer, settings, args.checkpoint)
    ids = model.ids(tokens)
    kept, held_out = ids[: len(ids) * 19 // 20], ids[len(ids) * 19 // 20 :]
    per_pass = max(1, len(model.pairs(kept, np.random.default_rng(args.seed))[0]) // args.batch)
    current: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def noise(rng: np.random.Generator) -> np.ndarray | None:
        return model.draw_negatives(64, rng) if args.loss == "negative" else None

    def compute(step: int) -> float:
        number, at = divmod(step, per_pass)
        if number not in current:
            current.clear()
            current[number] = model.pairs(kept, np.random.default_rng([args.seed, number]))
        places = np.arange(at * args.batch, (at + 1) * args.batch)  # not all passes have as many pairs
        centres, contexts = (side.take(places, mode="wrap") for side in current[number])
        return model.loss_and_grads(centres, contexts, noise(np.random.default_rng([args.seed, 1, step])))

    def evaluate() -> float:
        rng = np.random.default_rng(args.seed)
        return float(model(*model.pairs(held_out, rng), noise(rng)))

    began, done = time.perf_counter(), training.step
    training.run(args, compute, evaluate)
    if training.interrupted:
        raise SystemExit(f"stopped in step {training.step}")
    seconds, passes = time.perf_counter() - began, (training.step - done) / per_pass
    print(f"{len(kept):,} words, {len(config.words):,} different; {passes * len(kept) / seconds:,.0f} words/s")
    for word in ("list", "except", "string", "integer", "class"):
        if word in config.words:
            print(f"{word:>8}: " + ", ".join(f"{w} {cosine:.2f}" for w, cosine in model.most_similar(word, 8)))
    number = {word: k for k, word in enumerate(config.words)}
    named = [pair.split() for pair in PAIRS.split(";")]
    pairs = [(number[a], number[b]) for a, b in named if a in number and b in number]
    if pairs:
        counts, pmi = count_baselines(ids, len(config.words), args.window)
        vectors, size = model.embedding.weight.data, args.hidden
        scores = {"word2vec": vectors, "with the output layer's": vectors + model.output.weight.data,
                  f"counts cut to {size}": shortened(counts, size), f"PPMI cut to {size}": shortened(pmi, size),
                  f"counts, {len(counts)} long": counts, f"PPMI, {len(counts)} long": pmi}  # fmt: skip
        text = ", ".join(f"{name} {reciprocal_rank(v, pairs):.3f}" for name, v in scores.items())
        print(f"mean reciprocal rank over {len(pairs)} pairs: {text}")
    training.plot(args.plot, title=f"skip-gram, {args.loss}", ylabel="loss per pair")


if __name__ == "__main__":
    main()
