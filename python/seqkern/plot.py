"""Pictures, with matplotlib (an optional dependency, in the extra `examples`)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def loss_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    xlabel: str = "step",
    ylabel: str = "loss",
    log_scale: bool = False,
    gradient_norms: tuple[Sequence[float], Sequence[float]] | None = None,
) -> None:
    """Draw one line per entry of `curves`, label -> (x, y), and save the picture as `path`.

    gradient_norms: (x, norm of the gradients), drawn below on a logarithmic scale. The file type follows
    the ending (.png, .svg, .pdf). No window is opened. ImportError says what to install when matplotlib
    is missing.
    """
    if not curves:
        raise ValueError("curves must hold at least one label -> (x, y), got none")
    given = {f"curves['{label}']": pair for label, pair in curves.items()}
    if gradient_norms is not None:
        given["gradient_norms"] = gradient_norms
    for name, (x, y) in given.items():
        if len(x) != len(y):
            raise ValueError(f"{name} must hold x and y of one length, got {len(x)} and {len(y)}")
    figure = _figure()
    if gradient_norms is None:
        axes = below = figure.subplots()
    else:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        below.plot(*gradient_norms, color="gray", linewidth=0.8)
        below.set(ylabel="gradient norm", yscale="log")
        below.grid(alpha=0.3)
    for label, (x, y) in curves.items():
        axes.plot(x, y, label=label, linewidth=1.2, marker="o" if len(x) == 1 else None)
    axes.set(title=title, ylabel=ylabel)
    below.set_xlabel(xlabel)
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
    """Draw attention weights as a heat map, dark where a row looks, and save it as `path`.

    weights: `[T, S]`, or `[heads, T, S]`, a map per head. rows: the T tokens that look, columns: the S looked at.
    """
    maps = np.asarray(weights, np.float32)
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or not len(maps) or maps.shape[1:] != (len(rows), len(columns)):
        sizes = f"[{len(rows)}, {len(columns)}]"
        raise ValueError(f"weights must be {sizes} for these tokens, heads first if any, got {list(weights.shape)}")
    figure, across = _figure(), math.ceil(math.sqrt(len(maps)))
    down = math.ceil(len(maps) / across)
    width, height = 1.5 + 0.16 * across * (len(columns) + 3), 1.2 + 0.16 * down * (len(rows) + 4)
    figure.set_size_inches(width, height)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for k, panel in enumerate(panels):
        if k >= len(maps):
            panel.set_axis_off()
            continue
        panel.imshow(maps[k], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        panel.set_xticks(range(len(columns)), columns, fontsize=7, rotation=90 if max(map(len, columns)) > 1 else 0)
        panel.set_yticks(range(len(rows)), rows, fontsize=7)
        panel.tick_params(length=0)
        if len(maps) > 1:
            panel.set_title(f"head {k + 1}", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)


def attention_rollout(
    images: np.ndarray,
    attentions: Sequence[np.ndarray],
    path: str | os.PathLike[str],
    *,
    grid: tuple[int, int],
    titles: Sequence[str] | None = None,
    columns: int = 6,
) -> None:
    """Draw images `[B, C, H, W]` (C 1 or 3) of a ViT, each above itself under its attention roll-out.

    attentions: `output.attentions`, per layer `[B, heads, tokens, tokens]`; grid: rows and columns of patches, the
    last tokens. Each picture and each roll-out is scaled to its own range. Files as in `loss_curves`.
    """
    shares = rollout(attentions)[:, -grid[0] * grid[1] :].reshape(-1, *grid)
    if images.ndim != 4 or len(images) != len(shares) or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be [{len(shares)}, 1 or 3, H, W], got {list(images.shape)}")
    columns = min(columns, len(images))
    figure = _figure()
    figure.set_size_inches(1.4 * columns, 3.0 * -(-len(images) // columns))
    axes = figure.subplots(2 * -(-len(images) // columns), columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for k, (image, share) in enumerate(zip(images, shares, strict=True)):
        row, column = divmod(k, columns)
        low, high = image.min(), image.max()
        picture = np.moveaxis((image - low) / max(high - low, 1e-12), 0, -1).squeeze()
        extent = (0, images.shape[3], images.shape[2], 0)
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        for panel in (above, below):
            panel.imshow(picture, cmap="gray", extent=extent)
        below.imshow(share, cmap="inferno", alpha=0.6, extent=extent)
        if titles is not None:
            above.set_title(titles[k], fontsize=9)
    figure.savefig(path)


def rollout(attentions: Sequence[np.ndarray]) -> np.ndarray:
    """`[B, tokens]`: how much of each token reaches the first one (Abnar and Zuidema 2020).

    The product over the layers of (A + I) / 2, A being the mean over the heads and I the residual connection.
    """
    if not attentions:
        raise ValueError("attentions must hold at least one layer, got none")
    first = np.asarray(attentions[0], np.float64)
    own = np.eye(first.shape[-1])
    flow = np.broadcast_to(own, (len(first), *own.shape))
    for layer in attentions:
        flow = (np.asarray(layer, np.float64).mean(1) + own) / 2 @ flow
    return np.asarray(flow[:, 0])


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
