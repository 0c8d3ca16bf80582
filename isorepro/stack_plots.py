"""Figures of stacks: level by level, and of the hierarchy that they follow. As :mod:`isorepro.plots`."""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from isorepro.panels import (
    BLACK,
    LIGHT,
    line_styles,
    lines_of,
    panel_grid,
    shade_beyond_attack_limit,
    shared_legend,
    square_grid,
)
from isorepro.style import CATEGORIES, GRID, INK, MARKERS, MUTED, PAPER, SEQUENCE
from isorepro.tables import beta_name


def network_names(table: pd.DataFrame) -> list[tuple[str, float]]:
    """Return the (network, beta) pairs of a table: stacks before flat networks, β ascending."""
    pairs = table[["network", "beta"]].drop_duplicates().itertuples(index=False, name=None)
    return sorted(pairs, key=lambda pair: (pair[0] == "flat", pair[1]))


def _network_style(network: str, beta: float, betas: Sequence[float]) -> dict[str, object]:
    """Return the look of a line: the colour says how the network is built, dashes and marker its β."""
    colour = SEQUENCE[9] if network == "flat" else SEQUENCE[1]
    style: dict[str, object] = {"color": colour, "label": f"{network}, {beta_name(beta)}"}
    if not beta:
        return style | {"linestyle": (0, (4, 1.5)), "marker": "o", "markerfacecolor": PAPER}
    weights = sorted(weight for weight in betas if weight)
    return style | {"marker": MARKERS[(weights.index(beta) + 1) % len(MARKERS)]}


def level_measures(
    summary: pd.DataFrame,
    *,
    labels: Mapping[str, str],
    limits: Mapping[str, float],
    by: str = "beta",
    narrow: bool = False,
) -> Figure:
    """Draw measures of a stack against its levels: a row per measure, a column per kind of points, a line per β.

    Args:
        summary: rows of :func:`isorepro.structure.summary` by points, beta (or ``by``) and level.
        labels: measure → label of its axis, in the order of the rows.
        limits: measure → the criterion, drawn as a line.
        by: the column that has a line for each value: weights β, or names.
        narrow: a phone's width.
    """
    kinds = list(summary["points"].drop_duplicates())
    levels = sorted(summary["level"].unique())
    height = 1.6 if narrow else 1.9
    figure, grid = panel_grid(
        len(labels) * len(kinds), columns=len(kinds), height=height, narrow=narrow, share="row"
    )
    cells = [(measure, kind) for measure in labels for kind in kinds]
    for axes, (measure, kind) in zip(grid.flat, cells, strict=True):
        panel = summary[(summary["measure"] == measure) & (summary["points"] == kind)]
        if measure in limits:
            axes.axhline(limits[measure], color=MUTED, lw=1, linestyle=(0, (1, 2)))
        for value, style in lines_of(summary, by).items():
            line = panel[panel[by] == value].sort_values("level")
            axes.fill_between(line["level"], line["low"], line["high"], color=style["color"], alpha=0.16, lw=0)
            axes.plot(line["level"], line["mean"], **style)
        axes.set_xticks(levels)
        axes.set_xlim(min(levels) - 0.25, max(levels) + 0.25)
        if measure == next(iter(labels)):
            axes.set_title(kind.replace(", ", ",\n"), fontsize=8 if narrow else 10)
        if kind == kinds[0]:
            axes.set_ylabel(labels[measure], fontsize=8 if narrow else 9.5)
    figure.supxlabel("level, coarse to fine", fontsize=10)
    shared_legend(figure, None)
    return figure


def readouts(summary: pd.DataFrame, *, labels: Mapping[str, str], narrow: bool = False) -> Figure:
    """Draw what can be read at each depth: a row per measure, a column per level, a line per network.

    Args:
        summary: rows of :func:`isorepro.structure.summary` by network, beta, layers and level.
        labels: measure → label of its axis, in the order of the rows.
        narrow: a phone's width.
    """
    levels = sorted(summary["level"].unique())
    betas = sorted(summary["beta"].unique())
    cells = [(measure, level) for measure in labels for level in levels]
    height = 1.7 if narrow else 2.1
    figure, grid = panel_grid(len(cells), columns=len(levels), height=height, narrow=narrow, share="row")
    for axes, (measure, level) in zip(grid.flat, cells, strict=True):
        panel = summary[(summary["measure"] == measure) & (summary["level"] == level)]
        for network, beta in network_names(summary):
            line = panel[(panel["network"] == network) & (panel["beta"] == beta)].sort_values("layers")
            style = _network_style(network, beta, betas)
            axes.fill_between(line["layers"], line["low"], line["high"], color=style["color"], alpha=0.14, lw=0)
            axes.plot(line["layers"], line["mean"], **style)
        axes.set_xticks(sorted(summary["layers"].unique()))
        if measure == next(iter(labels)):
            axes.set_title(f"level {level}", fontsize=9 if narrow else 10.5)
        if level == levels[0]:
            axes.set_ylabel(labels[measure], fontsize=8 if narrow else 9.5)
    figure.supxlabel("hidden layers passed", fontsize=10)
    shared_legend(figure, 2 if narrow else None)
    return figure


def distance_matrices(matrices: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Draw matrices of distances between the same points in order, a row per network and a column per level.

    Args:
        matrices: rows of :func:`isorepro.stacks.distance_matrices` with ``beta``, one seed.
        narrow: a phone's width.
    """
    betas, levels = sorted(matrices["beta"].unique()), sorted(matrices["level"].unique())
    cells = [(beta, level) for beta in betas for level in levels]
    figure, grid = square_grid(len(cells), columns=len(levels), narrow=narrow)
    for axes, (beta, level) in zip(grid.flat, cells, strict=True):
        rows = matrices[(matrices["beta"] == beta) & (matrices["level"] == level)]
        side = int(rows["row"].max()) + 1
        field = rows["distance"].to_numpy().reshape(side, side)
        axes.imshow(field, cmap="cividis", vmin=0, interpolation="none")
        piece = rows["piece"].to_numpy().reshape(side, side)[:, 0]
        for cut in np.flatnonzero(np.diff(piece)) + 0.5:
            axes.axhline(cut, color=LIGHT, lw=0.4 if narrow else 0.8)
            axes.axvline(cut, color=LIGHT, lw=0.4 if narrow else 0.8)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.set_xlabel(f"largest: {field.max():.2g}", fontsize=7 if narrow else 9)
        if beta == betas[0]:
            axes.set_title(f"level {level}" if level else "data", fontsize=8.5 if narrow else 10.5)
        if level == levels[0]:
            axes.set_ylabel(beta_name(beta), fontsize=9)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), "cividis")
    bar = figure.colorbar(scale, ax=grid, location="bottom", shrink=0.5, aspect=30, pad=0.03)
    bar.set_ticks([0, 1], labels=["0", "largest of the matrix"])
    bar.set_label("distance between two points", fontsize=9)
    bar.outline.set_edgecolor(MUTED)
    return figure


def phase_maps(summary: pd.DataFrame, *, titles: Mapping[tuple[str, str], str], narrow: bool = False) -> Figure:
    """Draw accuracies over β and K as heat maps: a row per form of the term, a column per attack.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by form, protocol, attack, beta and K.
        titles: (protocol, attack) → title of the column, in their order.
        narrow: panels below each other.
    """
    forms = list(summary["form"].drop_duplicates())
    cells = [(form, key) for form in forms for key in titles]
    columns = 1 if narrow else len(titles)
    figure, grid = panel_grid(len(cells), columns=columns, height=3.0 if narrow else 2.6, narrow=narrow)
    colours = mpl.colormaps["cividis"]
    for number, (axes, (form, (protocol, attack))) in enumerate(zip(grid.flat, cells, strict=True)):
        panel = summary[
            (summary["form"] == form) & (summary["protocol"] == protocol) & (summary["attack"] == attack)
        ]
        field = panel.pivot(index="beta", columns="K", values="mean").sort_index().sort_index(axis=1)
        axes.imshow(field, origin="lower", cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="none")
        for (row, column), value in np.ndenumerate(field.to_numpy()):
            colour = LIGHT if value < 0.55 else BLACK
            size = min(8.0, 56 / max(field.shape))
            axes.text(column, row, f"{100 * value:.0f}", color=colour, fontsize=size, ha="center", va="center")
        axes.set_xticks(range(len(field.columns)), labels=[_power(K) for K in field.columns], fontsize=7.5)
        axes.set_yticks(range(len(field.index)), labels=[_power(beta) for beta in field.index], fontsize=7.5)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_title(f"{form}: {titles[protocol, attack]}", fontsize=9)
        if narrow or number % columns == 0:
            axes.set_ylabel("β")
        if narrow or number >= len(cells) - columns:
            axes.set_xlabel("K")
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 100), colours)
    bar = figure.colorbar(scale, ax=grid, location="bottom", shrink=0.6, aspect=40, pad=0.02)
    bar.set_label("held-out points named correctly at the finest level, %", fontsize=9)
    bar.outline.set_edgecolor(MUTED)
    return figure


def _power(value: float) -> str:
    """Return a positive number in few letters: 0.1, 14, 2·10⁵."""
    rounded = float(f"{value:.2g}")
    if 0.01 <= rounded < 1000:
        return f"{rounded:g}"
    leading, exponent = f"{rounded:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if leading == "1" else f"{leading}·{power}"


def level_curves(
    summary: pd.DataFrame,
    *,
    attacks: Mapping[tuple[str, str], str],
    chances: Sequence[float],
    narrow: bool = False,
) -> Figure:
    """Draw the classification rate against ε: a row per attack, a column per level, a line per network.

    The colour says how a network is built; where all are built alike, it says their β.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by network, level, protocol, attack, beta and epsilon;
            clean rows (ε = 0) are not drawn.
        attacks: (protocol, attack) → title of the row, in their order.
        chances: accuracy of guessing at each level.
        narrow: columns and rows exchanged.
    """
    levels = sorted(summary["level"].unique())
    betas = sorted(summary["beta"].unique())
    styles = {(network, beta): _network_style(network, beta, betas) for network, beta in network_names(summary)}
    if summary["network"].nunique() == 1:
        looks = zip(styles, line_styles(betas), strict=True)
        styles = {pair: look | {"label": beta_name(pair[1]), "markersize": 3.5} for pair, look in looks}
    cells = [(key, level) for key in attacks for level in levels]
    columns = len(attacks) if narrow else len(levels)
    if narrow:
        cells = [(key, level) for level in levels for key in attacks]
    figure, grid = panel_grid(
        len(cells), columns=columns, height=1.9 if narrow else 2.3, narrow=narrow, share=True
    )
    for axes, ((protocol, attack), level) in zip(grid.flat, cells, strict=True):
        panel = summary[
            (summary["protocol"] == protocol) & (summary["attack"] == attack) & (summary["level"] == level)
        ]
        shade_beyond_attack_limit(axes)
        axes.axhline(chances[level - 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for network, beta in network_names(panel):
            line = panel[(panel["network"] == network) & (panel["beta"] == beta)]
            style = styles[network, beta]
            axes.fill_between(line["epsilon"], line["low"], line["high"], color=style["color"], alpha=0.14, lw=0)
            axes.plot(line["epsilon"], line["mean"], **style)
        axes.set(xscale="log", ylim=(-0.02, 1.02))
        axes.set_xticks([0.01, 0.1, 1], labels=["0.01", "0.1", "1"])
        axes.minorticks_off()
        row, column = attacks[protocol, attack], f"level {level}"
        if narrow:
            axes.set_title(f"{row}\n{column}", fontsize=8)
        elif axes.get_subplotspec().is_first_row():
            axes.set_title(column)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("classification rate" if narrow else f"{row}\nclassification rate", fontsize=8.5)
    figure.supxlabel("ε, L∞ radius on pixels in [0, 1]", fontsize=10)
    # The finest level has the lines of all networks.
    last = figure.axes[cells.index((next(iter(attacks)), levels[-1]))]
    shared_legend(figure, 2 if narrow else None, last)
    return figure


def tree_distances(
    summary: pd.DataFrame,
    *,
    measure: str,
    attacks: Mapping[tuple[str, str], str],
    titles: Mapping[str, str],
    label: str,
    uniform: bool,
    narrow: bool = False,
) -> Figure:
    """Draw a mean tree distance against ε: a row per attack, a column per tree, a line per network.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by measure, tree, network, beta, protocol, attack and
            epsilon; clean rows (ε = 0) are drawn at the left edge.
        measure: the one drawn.
        attacks: (protocol, attack) → title of the row, in their order.
        titles: tree → title of its column.
        label: of the vertical axes.
        uniform: whether "uniform_distance" is drawn as well, dotted, its mean over all networks.
        narrow: columns and rows exchanged.
    """
    betas = sorted(summary["beta"].unique())
    cells = [(key, tree) for key in attacks for tree in titles]
    columns = len(attacks) if narrow else len(titles)
    if narrow:
        cells = [(key, tree) for tree in titles for key in attacks]
    figure, grid = panel_grid(
        len(cells), columns=columns, height=1.9 if narrow else 2.3, narrow=narrow, share=True
    )
    radii = summary.loc[summary["epsilon"] > 0, "epsilon"]
    left = radii.min() / 3
    # None near the left edge, where "none" stands.
    ticks = [tick for tick in (0.03, 0.1, 0.3) if radii.min() <= tick <= radii.max()]
    for axes, ((protocol, attack), tree) in zip(grid.flat, cells, strict=True):
        shown = summary["attack"].isin([attack, "no attack"]) & (summary["protocol"] == protocol)
        panel = summary[shown & (summary["tree"] == tree)].sort_values("epsilon")
        panel = panel.assign(epsilon=panel["epsilon"].clip(lower=left))
        if uniform:
            level = panel[panel["measure"] == "uniform_distance"].groupby("epsilon")["mean"].mean()
            axes.plot(level.index, level, color=MUTED, lw=1.2, linestyle=(0, (1, 2)), label="drawn uniformly")
        drawn = panel[panel["measure"] == measure]
        for network, beta in network_names(drawn):
            line = drawn[(drawn["network"] == network) & (drawn["beta"] == beta)]
            style = _network_style(network, beta, betas)
            axes.fill_between(line["epsilon"], line["low"], line["high"], color=style["color"], alpha=0.14, lw=0)
            axes.plot(line["epsilon"], line["mean"], **style)
        axes.set(xscale="log")
        axes.set_xticks([left, *ticks], labels=["none", *(f"{tick:g}" for tick in ticks)])
        axes.set_xlim(left / 1.3, 1.3 * radii.max())
        axes.minorticks_off()
        if narrow:
            axes.set_title(f"{attacks[protocol, attack]}\n{titles[tree]}", fontsize=8)
        elif axes.get_subplotspec().is_first_row():
            axes.set_title(titles[tree])
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(label if narrow else f"{attacks[protocol, attack]}\n{label}", fontsize=8.5)
    figure.supxlabel("ε, L∞ radius on pixels in [0, 1]", fontsize=10)
    shared_legend(figure, 2 if narrow else None)
    return figure


def label_trees(trees: Mapping[str, Sequence[Sequence[Sequence[int]]]], *, narrow: bool = False) -> Figure:
    """Draw hierarchies of classes as trees, the root on top, each node with its classes.

    Args:
        trees: title → hierarchy (:mod:`isorepro.hierarchy`) of at most ten classes.
        narrow: trees below each other.
    """
    figure, grid = panel_grid(
        len(trees), columns=1 if narrow else len(trees), height=2.0 if narrow else 2.5, narrow=narrow
    )
    for axes, (title, levels) in zip(grid.flat, trees.items(), strict=True):
        order = [c for group in levels[0] for c in group]
        for level in levels[1:]:
            order = [c for parent in _parents(order, level) for c in parent]
        place = {c: number for number, c in enumerate(order)}
        everything = [[order], *levels, [[c] for c in order]]
        top = len(everything) - 1
        for depth, (above, below) in enumerate(itertools.pairwise(everything)):
            for group in below:
                (parent,) = (other for other in above if group[0] in other)
                ends = [float(np.mean([place[c] for c in members])) for members in (parent, group)]
                axes.plot(ends, [top - depth, top - depth - 1], color=MUTED, lw=1.2, zorder=1)
        for depth, level in enumerate(everything):
            for group in level:
                x = float(np.mean([place[c] for c in group]))
                name = "".join(map(str, sorted(group)))
                colour = CATEGORIES[group[0]] if len(group) == 1 and depth == top else INK
                box = {"boxstyle": "round,pad=0.25", "facecolor": PAPER, "edgecolor": GRID}
                axes.text(
                    x, top - depth, name, ha="center", va="center", fontsize=7.5, color=colour, bbox=box, zorder=2
                )
        axes.set(xlim=(-0.7, len(order) - 0.3), ylim=(-0.35, top + 0.35), xticks=[], yticks=[], title=title)
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure


def _parents(order: Sequence[int], level: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the groups of a level in the order of their first member."""
    return sorted((sorted(group, key=list(order).index) for group in level), key=lambda g: list(order).index(g[0]))
