"""A chart of the ratios: one panel per mode, one bar per row and peer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .harness import A_A
from .ours import NAME
from .records import Record

PALETTE = [
    "#4477aa",
    "#ee9944",
    "#66aa77",
    "#aa5588",
    "#888888",
    "#cc6677",
    "#88ccee",
    "#999933",
    "#332288",
]
ROW_INCHES = 0.5


class PlotError(Exception):
    """The chart cannot be drawn; the text says why."""


def require_matplotlib() -> None:
    """Fail before hours of measuring, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PlotError(
            "--plot needs matplotlib: pip install matplotlib, or 'seqkern[bench]'"
        ) from None


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw how many times longer the others take than ours, on a logarithmic axis."""
    require_matplotlib()
    from matplotlib.figure import Figure

    shown = [record for record in records if record.contender not in (NAME, A_A)]
    if not shown:
        raise PlotError("nothing to draw: no contender but our own was measured")
    panels = list(dict.fromkeys((record.family, record.mode) for record in shown))
    names = list(dict.fromkeys(record.contender for record in shown))
    colours = {name: PALETTE[n % len(PALETTE)] for n, name in enumerate(names)}
    members = {p: [r for r in shown if (r.family, r.mode) == p] for p in panels}
    columns = min(len(panels), 2)
    lengths = [len({record.row for record in members[panel]}) + 1.5 for panel in panels]
    heights = [max(lengths[n : n + columns]) for n in range(0, len(panels), columns)]
    size = (8 * columns, 1.2 + ROW_INCHES * sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights).flat)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        _panel(axis, members[panel], colours)
        axis.set_title(" · ".join(panel), loc="left", fontsize=10, fontweight="bold")
    _legend(figure, colours)
    first = shown[0]
    figure.suptitle(
        f"time of others / time of seqkern (right of 1: seqkern is faster)\n"
        f"{first.cpu}, {first.isa}, {first.threads} threads, {first.commit}",
        fontsize=10,
    )
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise PlotError(f"cannot write {path}: {error}") from error


def _panel(axis: Any, records: Sequence[Record], colours: dict[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    rows = list(dict.fromkeys(record.row for record in records))
    names = [name for name in colours if any(record.contender == name for record in records)]
    height = 0.8 / len(names)
    for record in records:
        place = rows.index(record.row) + (names.index(record.contender) + 0.5) * height - 0.4
        axis.barh(place, record.ratio - 1, height * 0.92, left=1, color=colours[record.contender])
        axis.text(
            max(record.ratio, 1) * 1.02, place, f"{record.ratio:.2f}", va="center", fontsize=6.5
        )
    ratios = [record.ratio for record in records]
    axis.set_xscale("log", base=2)
    axis.set_xlim(min(0.8, min(ratios) / 1.1), max(2.2, max(ratios) * 1.25))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=8)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
