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

import numpy as np
from _rewriting import Task, Tokens, compare, rewriting_parser

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 ,./-;"
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


def draw(rng: np.random.Generator, count: int, dates: int | None, most: int) -> tuple[list[Tokens], list[Tokens]]:
    """`count` sources and targets of `dates` dates each, or of 1 to `most`, character by character."""
    sources, targets = [], []
    for _ in range(count):
        pairs = [spelled(rng) for _ in range(dates or int(rng.integers(1, most + 1)))]
        sources.append(list("".join(s + SEPARATORS[rng.integers(4)] for s, _ in pairs[:-1]) + pairs[-1][0]))
        targets.append(list(" ".join(t for _, t in pairs)))
    return sources, targets


def main() -> None:
    args = rewriting_parser(__doc__, "dates", 4, steps=2000, plot="date_rewriting.png").parse_args()
    tokens = list(CHARACTERS)
    compare(Task("dates", "character", tokens, tokens, " ", lambda r, n, k: draw(r, n, k, args.parts)), args)


if __name__ == "__main__":
    main()
