"""Plot the rows of an ablation: error and time against the sampling ratio, error by class, alignment."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter, ScalarFormatter, StrMethodFormatter

from roialign_cli.ablation.grid import alignment
from roialign_cli.ablation.summary import Row, setting_label
from roialign_cli.figures.style import STYLE

# Okabe and Ito's colours, which most colour-blind people distinguish, as far as they show on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a6761d")
MAX_SERIES = len(COLOURS)


def draw(rows: Sequence[Row], layer: str, best: Collection[str | None]) -> dict[str, Figure]:
    """Return the plots of a layer by file name; plots without measured or varied values are left out.

    If there are more settings than colours, those in `best` come first.
    """
    rows = [row for row in rows if row["layer"] == layer and row["alignment_px_mean"] is not None]
    moving = [row for row in rows if row["class"] == "all"]
    rows = sorted((row for row in rows if row["error_mean"] is not None), key=lambda row: row["setting"] not in best)
    everything = [row for row in rows if row["class"] == "all"]
    figures: dict[str, Figure] = {}
    with rc_context(STYLE):
        if len({row["sampling_ratio"] for row in everything if row["sampling_ratio"]}) > 1:
            figures["error_by_ratio"] = _against_ratio(everything, "error_mean", "mean relative error")
            figures["time_by_ratio"] = _against_ratio(everything, "ms_per_1000", "ms per 1000 boxes")
        if everything:
            figures["error_by_class"] = _by_class(rows)
        if moving:
            figures["alignment"] = _bars(moving, "alignment_px_mean", "alignment error, pixels")
    return figures


def picture(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a PNG or SVG file."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _axes(height: float = 2.9) -> tuple[Figure, Axes]:
    """Return a figure of a height in inches, and its axes."""
    figure = Figure(figsize=(4.6, height), layout="constrained")
    return figure, figure.subplots()


def _against_ratio(rows: Sequence[Row], column: str, title: str) -> Figure:
    """Draw a line over the fixed ratios per series, and a horizontal line for each setting without a ratio."""
    figure, axes = _axes()
    series: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row[column] is not None:
            kind = "fixed" if row["sampling_ratio"] else row["setting"]
            where = alignment(aligned=row["aligned"], centers=row["centers"])
            series.setdefault((row["op"], row["output_size"], where, row["mode"], kind), []).append(row)
    for (key, of_series), colour in zip(list(series.items())[:MAX_SERIES], COLOURS, strict=False):
        if key[-1] == "fixed":
            of_series = sorted(of_series, key=lambda row: row["sampling_ratio"])
            name = f"{key[1]}, {key[2]}, {key[3]}, fixed ratio"
            ratios = [row["sampling_ratio"] for row in of_series]
            axes.plot(ratios, [row[column] for row in of_series], "o-", color=colour, label=name)
        else:
            axes.axhline(of_series[0][column], color=colour, linestyle="--", label=setting_label(of_series[0]))
    axes.set_xscale("log", base=2)
    if any(row[column] for row in rows):
        axes.set_yscale("log")
    axes.set_xticks(sorted({row["sampling_ratio"] for row in rows if row["sampling_ratio"]}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    percent = column.startswith("error")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None) if percent else StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("sampling ratio")
    axes.set_ylabel(title)
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return figure


def _by_class(rows: Sequence[Row]) -> Figure:
    """Draw a group of bars per class, with a bar per setting."""
    classes = list(dict.fromkeys(row["class"] for row in rows))
    settings = list(dict.fromkeys(row["setting"] for row in rows if row["error_mean"]))[:MAX_SERIES]
    figure, axes = _axes()
    width = 0.8 / max(len(settings), 1)
    for i, (setting, colour) in enumerate(zip(settings, COLOURS, strict=False)):
        of_setting = {row["class"]: row for row in rows if row["setting"] == setting}
        at = [k for k, name in enumerate(classes) if name in of_setting]
        heights = [of_setting[classes[k]]["error_mean"] for k in at]
        positions = [k + (i - (len(settings) - 1) / 2) * width for k in at]
        axes.bar(positions, heights, width, color=colour, label=setting_label(next(iter(of_setting.values()))))
    axes.set_xticks(range(len(classes)), classes, fontsize=7)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_ylabel("mean relative error")
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return figure


def _bars(rows: Sequence[Row], column: str, title: str) -> Figure:
    """Draw one bar per setting."""
    rows = [row for row in rows if row[column] is not None]
    figure, axes = _axes(0.9 + 0.24 * len(rows))
    drawn = axes.barh([setting_label(row) for row in rows][::-1], [row[column] for row in rows][::-1], color=COLOURS[0])
    axes.bar_label(drawn, fmt="%.3g", padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel(title)
    return figure
