"""Figures that compare training methods, under attack and under corruptions. As :mod:`isorepro.plots`."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import matplotlib.patches
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from isorepro.panels import BLACK, LIGHT, named_styles, panel_grid, shared_legend
from isorepro.style import CATEGORIES, FOOLED, GRID, HELD, INK, MARKERS, MUTED, NARROW, PAPER, SEQUENCE, WIDE


def method_points(
    points: pd.DataFrame,
    *,
    x_label: str,
    y_label: str,
    x_log: bool = False,
    box: tuple[float, float] | None = None,
    narrow: bool = False,
) -> Figure:
    """Draw training methods as points in a plane, with intervals in both directions where they are known.

    Args:
        points: ``method`` (of which each has a colour and a marker, the first one ink), ``x`` and ``y``; for the
            intervals ``x_low``, ``x_high``, ``y_low`` and ``y_high``; for several points of a method
            ``highlighted``, which ones are drawn whole.
        x_label, y_label: of the axes.
        x_log: whether the horizontal axis is a logarithmic one.
        box: least x and least y of a region that is wanted, which is shaded.
        narrow: for a phone.
    """
    figure = Figure(figsize=(NARROW, 5.6) if narrow else (WIDE, 4.6))
    axes = figure.subplots()
    for name, look in named_styles(list(points["method"].drop_duplicates())).items():
        own = points[points["method"] == name]
        bars: dict[str, Any] = {}
        for way in ("x", "y") if "x_low" in own else ():
            ends = np.abs(own[[f"{way}_low", f"{way}_high"]].to_numpy().T - own[way].to_numpy())
            # A single seed has no interval.
            bars[f"{way}err"] = np.nan_to_num(ends)
        chosen = own["highlighted"] if "highlighted" in own else own["x"].notna()
        if not chosen.all():
            axes.plot(own["x"][~chosen], own["y"][~chosen], **look, ls="", markersize=4.5, alpha=0.55)
        whole = {"ls": "", "markersize": 9, "elinewidth": 1.2, "capsize": 0, "zorder": 3, "label": name}
        axes.errorbar(
            own["x"][chosen],
            own["y"][chosen],
            **{way: ends[:, chosen.to_numpy()] for way, ends in bars.items()},
            **{**whole, **look},
        )
    if x_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axes.margins(0.06)
    if box:
        right, top = axes.get_xlim()[1], axes.get_ylim()[1]
        corner = mpl.patches.Rectangle(box, right - box[0], top - box[1], color=GRID, alpha=0.6, lw=0, zorder=0)
        axes.add_patch(corner)
        axes.set(xlim=(axes.get_xlim()[0], right), ylim=(axes.get_ylim()[0], top))
    axes.set(xlabel=x_label, ylabel=y_label)
    shared_legend(figure, 2 if narrow else 4)
    return figure


def method_curves(
    summary: pd.DataFrame,
    *,
    titles: Mapping[str, str],
    labels: Mapping[str, str],
    chance: float,
    narrow: bool = False,
) -> Figure:
    """Draw the classification rate against the radius, one panel per norm, one line per training method.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by norm, setting and epsilon; the first setting is the
            one that the others are compared with.
        titles, labels: norm → title of its panel, in their order, and label of its horizontal axis.
        chance: the accuracy of guessing.
        narrow: panels below each other.
    """
    figure, grid = panel_grid(len(titles), columns=1 if narrow else 2, height=3.4, narrow=narrow)
    looks = named_styles(list(summary["setting"].drop_duplicates()))
    for axes, (norm, title) in zip(grid.flat, titles.items(), strict=True):
        panel = summary[summary["norm"] == norm]
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for name, look in looks.items():
            line = panel[panel["setting"] == name]
            axes.fill_between(line["epsilon"], line["low"], line["high"], color=look["color"], alpha=0.14, lw=0)
            axes.plot(line["epsilon"], line["mean"], **look, markersize=5, label=name)
        axes.set(ylim=(-0.02, 1.02), xlabel=labels[norm], ylabel="classification rate", title=title)
    grid.flat[0].annotate("chance", (0.0, chance + 0.015), color=MUTED, fontsize=8.5)
    shared_legend(figure, 2 if narrow else 4)
    return figure


def corruption_sheet(examples: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Draw one image under every corruption: a row for each, a column for each severity.

    Args:
        examples: rows of :func:`isorepro.corruptions.examples`: corruption, severity and pixels.
        narrow: one block of rows instead of two beside each other.
    """
    names = list(examples["corruption"].drop_duplicates())
    severities = sorted(examples["severity"].unique())
    size = len(examples["pixels"].iloc[0])
    cell = size + 2
    blocks = [names] if narrow else [names[: -(-len(names) // 2)], names[-(-len(names) // 2) :]]
    width = NARROW if narrow else WIDE
    # Beside the pictures there is room for the longest name.
    side = (width / len(blocks) - 1.15) / len(severities)
    figure = Figure(figsize=(width, side * len(blocks[0]) + 0.3))
    pixels = examples.set_index(["corruption", "severity"])["pixels"]
    for axes, block in zip(figure.subplots(1, len(blocks), squeeze=False).flat, blocks, strict=True):
        # One picture for all: between its images it has no pixels.
        sheet = np.full((cell * len(blocks[0]), cell * len(severities)), np.nan)
        for row, column in np.ndindex(len(block), len(severities)):
            top, left = row * cell, column * cell
            sheet[top : top + size, left : left + size] = pixels[block[row], severities[column]]
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="none")
        axes.set_xticks(
            size / 2 + cell * np.arange(len(severities)), labels=[str(s) if s else "none" for s in severities]
        )
        axes.set_yticks(size / 2 + cell * np.arange(len(block)), labels=block, fontsize=8)
        axes.tick_params(length=0, pad=2, top=True, labeltop=True, bottom=False, labelbottom=False, labelcolor=INK)
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure


def accuracy_by_severity(summary: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Draw the mean corruption accuracy against the severity, one line per network.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by network and severity, the baseline first; mean, low
            and high in [0, 1].
        narrow: a phone's width.
    """
    figure = Figure(figsize=(NARROW, 4.6) if narrow else (WIDE, 4.2))
    axes = figure.subplots()
    for place, (network, line) in enumerate(summary.groupby("network", sort=False)):
        style: dict[str, Any] = {"color": CATEGORIES[(place - 1) % len(CATEGORIES)], "marker": MARKERS[place]}
        if place == 0:
            style = {"color": INK, "linestyle": (0, (4, 1.5)), "marker": "o", "markerfacecolor": PAPER}
        axes.fill_between(line["severity"], line["low"], line["high"], color=style["color"], alpha=0.14, lw=0)
        axes.plot(line["severity"], line["mean"], **style, label=str(network))
    axes.set(xlabel="severity", ylabel="accuracy, mean of all corruptions")
    severities = sorted(summary["severity"].unique())
    axes.set_xticks(severities, labels=[f"{s:g}" if s else "none" for s in severities])
    shared_legend(figure, 2 if narrow else 5)
    return figure


def corruption_differences(
    summary: pd.DataFrame,
    differences: pd.DataFrame,
    *,
    trained_on: Mapping[str, str],
    narrow: bool = False,
) -> Figure:
    """Draw, for each corruption and network, the difference to the baseline as a heat map.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by corruption and network, the baseline first; means
            in [0, 1]. The baseline's own accuracy is the first column.
        differences: rows of :func:`isorepro.stats.paired_differences` by corruption and network.
        trained_on: network → the corruption that it was trained on, which gets a frame.
        narrow: a phone's width.
    """
    baseline = summary["network"].iloc[0]
    rows = list(summary["corruption"].drop_duplicates())
    networks = [name for name in summary["network"].drop_duplicates() if name != baseline]
    level = summary[summary["network"] == baseline].set_index("corruption")["mean"].loc[rows]
    field = 100 * differences.pivot(index="corruption", columns="network", values="mean").loc[rows, networks]
    wide, cell = (NARROW, 0.25) if narrow else (min(WIDE, 2.2 + 0.72 * (len(networks) + 1)), 0.27)
    figure = Figure(figsize=(wide, cell * len(rows) + (1.75 if narrow else 1.85)))
    axes = figure.subplots()
    colours = mpl.colors.LinearSegmentedColormap.from_list("difference", [FOOLED, LIGHT, HELD])
    most = max(float(np.abs(field.to_numpy()).max()), 1.0)
    shown = np.column_stack([np.full(len(rows), np.nan), field.to_numpy()])
    axes.imshow(shown, cmap=colours, vmin=-most, vmax=most, aspect="auto", interpolation="none")
    letters = 7.5 if narrow else 9.0
    for row, name in enumerate(rows):
        axes.text(0, row, f"{100 * level[name]:.0f}", color=INK, fontsize=letters, ha="center", va="center")
    for (row, column), value in np.ndenumerate(field.to_numpy()):
        red, green, blue, _ = colours((value / most + 1) / 2)
        # The letters that contrast more with a cell of this lightness.
        colour = BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else LIGHT
        # Adding 0 takes the sign from a zero that a small negative number was rounded to.
        text = f"{round(value) + 0:+d}".replace("-", "−") if round(value) else "0"
        axes.text(column + 1, row, text, color=colour, fontsize=letters, ha="center", va="center")
        if trained_on.get(networks[column]) == rows[row]:
            frame = mpl.patches.Rectangle((column + 0.54, row - 0.46), 0.92, 0.92, fill=False, ec=BLACK, lw=1.8)
            axes.add_patch(frame)
    # Without corruption, and the mean of all, are not corruptions.
    for between in (0.5, len(rows) - 1.5):
        axes.axhline(between, color=PAPER, lw=2.5)
    axes.set_xticks(
        range(len(networks) + 1), labels=[f"{baseline}, %", *networks], rotation=55, ha="left", va="bottom"
    )
    axes.set_yticks(range(len(rows)), labels=rows)
    axes.tick_params(length=0, labelsize=letters, pad=2, labelcolor=INK)
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    for label in axes.get_xticklabels():
        label.set_rotation_mode("anchor")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(-most, most), colours)
    bar = figure.colorbar(scale, ax=axes, location="bottom", shrink=0.7, aspect=35, pad=0.02)
    bar.set_label(f"difference to {baseline}, same seed, in points", fontsize=9)
    bar.outline.set_edgecolor(MUTED)
    return figure


def corruption_transfer(gains: pd.DataFrame, *, groups: Mapping[str, str], narrow: bool = False) -> Figure:
    """Draw what networks gain over the baseline on the corruption they were trained on and on others: a row each.

    Args:
        gains: rows of :func:`isorepro.stats.over_seeds` by network and tested, from
            :func:`isorepro.corruptions.transfer`; mean, low and high in shares.
        groups: what is tested → the words that its dots get, in their order.
        narrow: a phone's width.
    """
    networks = list(gains["network"].drop_duplicates())
    figure = Figure(figsize=(NARROW if narrow else WIDE, 0.42 * len(networks) + 1.5))
    axes = figure.subplots()
    colours = (HELD, SEQUENCE[6], FOOLED, INK)
    for place, (tested, words) in enumerate(groups.items()):
        rows = gains[gains["tested"] == tested]
        means = 100 * rows["mean"]
        reach = np.abs(100 * rows[["low", "high"]].to_numpy().T - means.to_numpy())
        # Networks of one group have their dot in the middle of the row.
        alone = rows["network"].map(gains["network"].value_counts()) == 1
        offset = np.where(alone, 0, 0.22 * (place - 1))
        style: dict[str, Any] = {
            "color": colours[place],
            "marker": MARKERS[place],
            "linestyle": "",
            "elinewidth": 1.2,
        }
        axes.errorbar(means, rows["network"].map(networks.index) + offset, xerr=reach, label=words, **style)
    axes.axvline(0, color=INK, linestyle=(0, (4, 1.5)), lw=1)
    axes.set(xlabel="difference to CE, same seed, in points", ylim=(len(networks) - 0.5, -0.5))
    axes.set_yticks(range(len(networks)), labels=networks)
    for between in np.arange(0.5, len(networks) - 1):
        axes.axhline(between, color=GRID, lw=0.8)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    shared_legend(figure, 2 if narrow else None)
    return figure
