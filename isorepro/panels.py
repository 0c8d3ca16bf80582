"""What figures share: grids of panels, a legend above them, the look of a line for each β."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from isorepro.style import CATEGORIES, GRID, INK, MARKERS, NARROW, PAPER, SEQUENCE, WIDE
from isorepro.tables import beta_name

BLACK, LIGHT = "#111111", "#fefefe"
"""Colours of lines and letters upon pictures, which keep theirs on a dark page."""


def line_styles(betas: Sequence[float]) -> list[dict[str, object]]:
    """Return how the line of each weight β looks, as arguments of ``plot``: cross-entropy's in ink, dashed.

    Args:
        betas: weights in ascending order; 0 is cross-entropy.
    """
    weights = [beta for beta in betas if beta]
    steps = np.linspace(0, len(SEQUENCE) - 1, max(len(weights), 2)).round().astype(int)
    styles: list[dict[str, object]] = []
    for beta in betas:
        if not beta:
            styles.append({"color": INK, "linestyle": (0, (4, 1.5)), "marker": "o", "markerfacecolor": PAPER})
            continue
        place = weights.index(beta)
        styles.append({"color": SEQUENCE[steps[place]], "marker": MARKERS[(place + 1) % len(MARKERS)]})
    return styles


def named_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker for each name, the first, what the others are compared with, in ink."""
    markers = itertools.cycle(MARKERS)
    first: dict[str, Any] = {"color": INK, "marker": next(markers), "markerfacecolor": PAPER}
    others = zip(names[1:], itertools.cycle(CATEGORIES), markers, strict=False)
    return {names[0]: first, **{name: {"color": colour, "marker": mark} for name, colour, mark in others}}


def lines_of(table: pd.DataFrame, by: str) -> dict[Any, dict[str, Any]]:
    """Return the look and the label of the line of each value of a column: of weights ``beta``, or of names."""
    if by != "beta":
        looks = named_styles(list(table[by].drop_duplicates()))
        return {name: look | {"label": name} for name, look in looks.items()}
    betas = sorted(table[by].unique())
    styles = zip(betas, line_styles(betas), strict=True)
    return {beta: style | {"label": beta_name(beta)} for beta, style in styles}


def shade_beyond_attack_limit(axes: Axes) -> None:
    """Shade the radii of an ε axis at which no classifier can beat chance, and set the axis's limits.

    In L∞ distance 0.5 every image can become uniform grey (Carlini et al. 2019).
    """
    axes.axvspan(0.5, 1.12, color=GRID, alpha=0.55, lw=0)
    axes.set_xlim(0.009, 1.12)


def panel_grid(
    count: int, *, columns: int, height: float, narrow: bool, share: bool | Literal["row"] = False
) -> tuple[Figure, np.ndarray]:
    """Return a figure of panels and their grid, an array (rows, columns) of axes; spare ones are hidden.

    Args:
        count: at least 1.
        columns: panels in a row.
        height: of each panel, in inches.
        narrow: a phone's width.
        share: whether all panels share both axes; with "row" those of a row share the vertical one.
    """
    rows = -(-count // columns)
    figure = Figure(figsize=(NARROW if narrow else WIDE, height * rows + 0.45))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=bool(share), sharey=share)
    for spare in grid.flat[count:]:
        spare.set_visible(False)
    return figure, grid


def square_grid(count: int, *, columns: int, narrow: bool) -> tuple[Figure, np.ndarray]:
    """Return a figure of panels that will be squares, and their grid, as :func:`panel_grid`."""
    height = ((NARROW if narrow else WIDE) - 0.3) / columns + 0.35
    figure, grid = panel_grid(count, columns=columns, height=height, narrow=narrow)
    # The usual layout does not know of squares and may cut titles off.
    figure.set_layout_engine("compressed")
    return figure, grid


def shared_legend(figure: Figure, columns: int | None, axes: Axes | None = None) -> Legend:
    """Put the names of a panel's lines above all panels, in one row or in as many columns as fit.

    Args:
        figure: one with panels.
        columns: at most so many; None for as many as there are lines.
        axes: the panel whose lines are named; None for the first.
    """
    handles, names = (axes or figure.axes[0]).get_legend_handles_labels()
    for count in range(columns or len(names), 0, -1):
        legend = figure.legend(handles, names, loc="outside upper left", ncols=count, fontsize=9)
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    return legend
