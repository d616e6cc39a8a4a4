"""Messages of programs, translated word by word: the dictionary is learnt by all, the order at length is not.

    python examples/word_translation.py                                   # Django's French, if it is installed
    python examples/word_translation.py --mo fr/LC_MESSAGES/*.mo          # any compiled message catalogs

A source is one to --messages short messages from the catalogs one after the other, such as "remove ; database
error ; algerian arabic"; the target is their translations, "supprimer ; erreur de base de données ; arabe algérien".
Every message is trained on, and no test's sequence of them: what is measured is how far a model can carry what it
has read. The models and pictures are those of date_rewriting.py.
"""

from __future__ import annotations

import gettext
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from _rewriting import Task, Tokens, compare, rewriting_parser

END = ";"
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*['’]?")
HELP = """no message catalogs found: name some with --mo FILE..., or install a package that has them:
    pip install django                                     # found by itself from then on
    pip download --no-deps django && unzip -q django*.whl 'django/*.mo' -d catalogs
    python examples/word_translation.py --mo catalogs/django/conf/locale/fr/LC_MESSAGES/django.mo"""


def find_catalogs(language: str) -> list[Path]:
    """Django's, or those that the system's own programs have."""
    spec = find_spec("django")
    folders = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    found = [file for folder in folders for file in folder.glob(f"**/locale/{language}/LC_MESSAGES/*.mo")]
    for base in dict.fromkeys((sys.prefix, sys.base_prefix, "/usr", "/usr/local")) if not found else ():
        found += Path(base, "share", "locale", language, "LC_MESSAGES").glob("*.mo")
    return sorted(found)


def read_messages(files: list[Path], longest: int) -> list[tuple[Tokens, Tokens]]:
    """Messages of up to `longest` words and nothing but words, with their translations, each once."""
    found: dict[tuple[str, ...], Tokens] = {}
    for file in files:
        try:
            with file.open("rb") as opened:
                catalog: dict[object, str] = gettext.GNUTranslations(opened)._catalog  # type: ignore[attr-defined]
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"--mo: '{file}' is no message catalog: {error}") from error
        for key, translation in catalog.items():
            text = key.rpartition("\4")[2] if isinstance(key, str) else ""  # a context, \4, the message
            source, target = ([word.lower() for word in WORD.findall(t)] for t in (text, translation))
            plain = not re.search(r"[%{}<>()\d_/&=:;]", text + translation)
            if plain and 0 < len(source) <= longest and 0 < len(target) <= 2 * longest:
                found.setdefault(tuple(source), target)
    return [(list(source), target) for source, target in sorted(found.items())]


def main() -> None:
    options = rewriting_parser(__doc__, "messages", 10, steps=1500, plot="word_translation.png")
    options.add_argument("--mo", nargs="+", type=Path, metavar="FILE", help="compiled catalogs (default: Django's)")
    options.add_argument("--language", default="fr", help="of the catalogs to find without --mo")
    options.add_argument("--longest", type=int, default=3, help="most words in a message")
    args = options.parse_args()
    files = args.mo or find_catalogs(args.language)
    pairs = read_messages(files, args.longest)
    if len(pairs) < 2:
        raise SystemExit(HELP if not files else f"the catalogs hold {len(pairs)} messages of 1 to {args.longest} words")
    words = [sorted({END, *(word for pair in pairs for word in pair[side])}) for side in (0, 1)]
    print(f"{len(pairs)} messages of {len(files)} catalogs, {len(words[0])} words into {len(words[1])}")

    def draw(rng: np.random.Generator, count: int, messages: int | None) -> tuple[list[Tokens], list[Tokens]]:
        sources, targets = [], []
        for _ in range(count):
            drawn = rng.integers(0, len(pairs), messages or int(rng.integers(1, args.parts + 1)))
            source, target = ([word for k in drawn for word in [END, *pairs[k][side]]][1:] for side in (0, 1))
            sources.append(source)
            targets.append(target)
        return sources, targets

    compare(Task("messages", "word", *words, END, draw), args)


if __name__ == "__main__":
    main()
