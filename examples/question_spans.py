"""BERT's heads from scratch: answers as spans of a text, or the sentences of its summary.

    python examples/question_spans.py
    python examples/question_spans.py --task summary

The stories are made, on three people, with one fact of each kind. A question asks for a fact, and its answer is a
run of words of the story (span head). A summary is of one person: every sentence that names that person, also as the
second of two who met (token head, at the first word of each sentence). Token types number the sentences.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import seqkern
from _training import Training, parser
from seqkern import models, nn, optim

NAMES = ["anna", "boris", "chen", "dora", "emil", "fatima", "goran", "hana", "ivan", "jun", "karl", "lena"]
CITIES = ["lima", "oslo", "quito", "cairo", "delhi", "tunis"]
JOBS = ["baker", "pilot", "nurse", "miner", "judge", "actor"]
DAYS = ["monday", "tuesday", "friday", "sunday"]
COUNTS, COLOURS = ["two", "three", "four", "five"], ["red", "grey", "black", "white"]
ANIMALS = ["cats", "owls", "mice", "fish"]
AFTERWARDS = ["slept", "cooked", "danced", "read"]
# Question and the words of the answer's sentence before the answer; what is drawn for the answer.
FACTS: dict[str, tuple[str, list[list[str]]]] = {
    "where does {} live ?": ("lives in", [CITIES]),
    "what does {} do ?": ("works as", [["a"], JOBS]),
    "when does {} arrive ?": ("arrives on", [DAYS, ["at"], ["noon", "six", "ten"]]),
    "what does {} own ?": ("owns", [COUNTS, COLOURS, ANIMALS]),
}
LENGTH, SENTENCES = 80, 14
CLS, SEP = "[cls]", "[sep]"
_TEXT = " ".join([*FACTS, *(before for before, _ in FACTS.values()), "tell about met .", CLS, SEP])
_DRAWN = [word for _, drawn in FACTS.values() for words in drawn for word in words]
WORDS = ["[pad]", *sorted({*_TEXT.replace("{}", "").split(), *_DRAWN, *NAMES, *AFTERWARDS})]
IDS = {word: k for k, word in enumerate(WORDS)}


class Story:
    """sentences: lists of words; people: whom each names."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.sentences: list[list[str]] = []
        self.people: list[tuple[str, ...]] = []
        self.facts: dict[int, tuple[str, int, int]] = {}  # sentence -> question, first and last word of the answer
        people = rng.choice(NAMES, 3, replace=False)
        for fact in rng.permutation([*FACTS, "", "", ""]):
            name = str(rng.choice(people))
            before, drawn = FACTS.get(fact, ("", [AFTERWARDS]))
            words, answer = [name, *before.split()], [str(rng.choice(choice)) for choice in drawn]
            if fact:
                self.facts[len(self.sentences)] = (fact.format(name), len(words), len(words) + len(answer) - 1)
            self._add([*words, *answer, "."], name)
            if rng.random() < 1 / 3:
                one, other = map(str, rng.choice(people, 2, replace=False))
                self._add([one, "met", other, "."], one, other)

    def _add(self, words: list[str], *names: str) -> None:
        self.people.append(names)
        self.sentences.append(words)

    def coded(self, request: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """ids, token types [LENGTH], 0 for the request and then the sentence's number, and where each starts."""
        head = [CLS, *request.split(), SEP]
        starts = np.cumsum([len(head)] + [len(s) for s in self.sentences[:-1]])
        words = [*head, *(word for s in self.sentences for word in s), SEP]
        ids, types = np.zeros(LENGTH, np.int64), np.zeros(LENGTH, np.int64)
        ids[: len(words)] = [IDS[word] for word in words]
        for number, start in enumerate(starts):
            types[start : len(words)] = number + 1
        return ids, types, list(starts)


def question(story: Story, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, types, and the answer's first and last place [2]."""
    sentence = int(rng.choice(list(story.facts)))
    text, first, last = story.facts[sentence]
    ids, types, starts = story.coded(text)
    return ids, types, starts[sentence] + np.array([first, last])


def summary(story: Story, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, types, and per place [LENGTH] whether the sentence that starts there belongs, -100 elsewhere."""
    person = str(rng.choice([name for names in story.people for name in names]))
    ids, types, starts = story.coded(f"tell about {person}")
    wanted = np.full(LENGTH, -100, np.int64)
    wanted[starts] = [person in names for names in story.people]
    return ids, types, wanted


def main() -> None:
    options = parser(__doc__, steps=400, hidden=64, layers=3, batch=32, lr=1e-3, plot="question_spans.png")
    options.add_argument("--task", choices=["question", "summary"], default="question")
    if options.parse_args().task == "summary":  # for long it only knows who comes first in a sentence
        options.set_defaults(default_steps=1200, lr=2e-3)
    args = options.parse_args()
    training = bert(args)
    model, cross_entropy = training.model, nn.CrossEntropyLoss()
    make: Callable[..., tuple[np.ndarray, ...]] = question if args.task == "question" else summary

    def draw(seed: list[int], count: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(seed)
        return tuple(np.stack(arrays) for arrays in zip(*(make(Story(rng), rng) for _ in range(count)), strict=True))

    def scores(logits: np.ndarray) -> np.ndarray:
        """[rows, classes]: over the places for start and end, or over no and yes for every place."""
        return np.ascontiguousarray(logits.swapaxes(1, 2) if args.task == "question" else logits)

    def compute(step: int) -> float:
        ids, types, wanted = draw([args.seed, 0, step], args.batch)
        output, pullback = model.vjp(ids, ids != 0, types)
        rows = scores(output.logits)
        loss, pull_loss = cross_entropy.vjp(rows.reshape(-1, rows.shape[-1]), wanted.reshape(-1))
        drows = pull_loss()[0].reshape(rows.shape)
        pullback(scores(drows))
        return float(loss)

    held_ids, held_types, held = draw([args.seed, 1], 500)

    def held_out() -> np.ndarray:
        return scores(model(held_ids, held_ids != 0, held_types).logits)

    def evaluate() -> float:
        rows = held_out()
        return float(cross_entropy(rows.reshape(-1, rows.shape[-1]), held.reshape(-1)))

    training.run(args, compute, evaluate)
    right = ((held_out().argmax(-1) == held) | (held == -100)).all(-1).mean()
    print(f"held-out {'answers' if args.task == 'question' else 'summaries'} exactly right: {100 * right:.1f} %")
    training.plot(args.plot, title=f"BERT, {args.task}", ylabel="cross-entropy")


def bert(args: argparse.Namespace) -> Training:
    """A small BERT with the task's head, and AdamW."""
    seqkern.manual_seed(args.seed)
    config = models.BERTConfig(
        vocab_size=len(WORDS), hidden_size=args.hidden, num_hidden_layers=args.layers, num_attention_heads=4,
        intermediate_size=4 * args.hidden, max_position_embeddings=LENGTH, initializer_range=0.1,
        type_vocab_size=1 + SENTENCES,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, head="span" if args.task == "question" else "token",
    )  # fmt: skip
    settings = {"config": vars(config), "batch": args.batch, "lr": args.lr, "seed": args.seed}
    model = models.BERT(config)
    return Training(model, optim.AdamW(model.named_parameters(), weight_decay=0.01), settings, args.checkpoint)


if __name__ == "__main__":
    main()
