"""Pictures, with matplotlib (an optional dependency, in the extra `examples`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any


def loss_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    xlabel: str = "step",
    ylabel: str = "loss",
    log_scale: bool = False,
) -> None:
    """Draw one line per entry of `curves`, label -> (x, y), and save the picture as `path`.

    The file type follows the ending (.png, .svg, .pdf). No window is opened. ImportError says
    what to install when matplotlib is missing.
    """
    if not curves:
        raise ValueError("curves must hold at least one label -> (x, y), got none")
    for label, (x, y) in curves.items():
        if len(x) != len(y):
            raise ValueError(
                f"curves['{label}'] must hold x and y of one length, got {len(x)} and {len(y)}"
            )
    figure = _figure()
    axes = figure.subplots()
    for label, (x, y) in curves.items():
        axes.plot(x, y, label=label, linewidth=1.2, marker="o" if len(x) == 1 else None)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if log_scale:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def attention_map(
    weights: Any,
    path: str | os.PathLike[str],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
) -> None:
    """Draw attention weights [T, S] as a heat map, dark where a row looks, and save it as `path`.

    rows: the T tokens that look, columns: the S tokens looked at.
    """
    if tuple(weights.shape) != (len(rows), len(columns)):
        raise ValueError(
            f"weights must be [{len(rows)}, {len(columns)}] for these tokens, got {list(weights.shape)}"
        )
    figure = _figure()
    figure.set_size_inches(1.5 + 0.16 * len(columns), 1.2 + 0.16 * len(rows))
    axes = figure.subplots()
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=9)
    figure.savefig(path)


def _figure() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "seqkern.plot needs matplotlib: pip install 'seqkern[examples]'"
        ) from error
    # A Figure of its own, without pyplot, leaves the caller's matplotlib state alone.
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
