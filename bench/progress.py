"""A progress bar on stderr: tqdm's where it is installed, else a minimal one of our own."""

from __future__ import annotations

import importlib
import sys
import time
from types import TracebackType
from typing import Any, TextIO

WIDTH = 30
REDRAW_SECONDS = 0.1


class PlainBar:
    """`label  [#####.....]  3/10  note`, redrawn in place; on no terminal, a line per tenth."""

    def __init__(self, total: int, label: str, stream: TextIO | None = None) -> None:
        self.total, self.label, self.done = max(total, 1), label, 0
        self._note = ""
        self._stream = stream or sys.stderr
        self._in_place = self._stream.isatty()
        self._drawn_at, self._drawn_tenth, self._length = 0.0, 0, 0

    def update(self, steps: int = 1) -> None:
        """Advance by `steps`."""
        self.done = min(self.done + steps, self.total)
        now = time.monotonic()
        if self._in_place:
            if self.done == self.total or now - self._drawn_at > REDRAW_SECONDS:
                self._drawn_at = now
                self._redraw()
        elif self.done * 10 // self.total > self._drawn_tenth:
            self._drawn_tenth = self.done * 10 // self.total
            self._stream.write(f"{self._line()}\n")
            self._stream.flush()

    def set_note(self, note: str) -> None:
        """Show what is being worked on."""
        self._note = note

    def close(self) -> None:
        if self._in_place:
            self._stream.write("\n")
            self._stream.flush()

    def _line(self) -> str:
        filled = WIDTH * self.done // self.total
        bar = "#" * filled + "." * (WIDTH - filled)
        return f"{self.label}  [{bar}]  {self.done}/{self.total}  {self._note}"

    def _redraw(self) -> None:
        line = self._line()
        self._stream.write("\r" + line.ljust(self._length))
        self._stream.flush()
        self._length = len(line)


class Progress:
    """Context manager around one bar: `update(n)`, `set_note(text)`."""

    def __init__(self, total: int, label: str) -> None:
        self._bar: Any = _tqdm_bar(total, label) or PlainBar(total, label)

    def update(self, steps: int = 1) -> None:
        self._bar.update(steps)

    def set_note(self, note: str) -> None:
        """Show what is being worked on beside the bar."""
        if isinstance(self._bar, PlainBar):
            self._bar.set_note(note)
        else:
            self._bar.set_postfix_str(note, refresh=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()


def _tqdm_bar(total: int, label: str) -> Any:
    """A tqdm bar, or None when tqdm is missing or nobody watches: it redraws without end there."""
    if not sys.stderr.isatty():
        return None
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=label, leave=False)
