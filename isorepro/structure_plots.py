"""Figures of structure: maps, distances, and how a network stretches space. As :mod:`isorepro.plots`."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.patheffects
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from isorepro.panels import BLACK, LIGHT, line_styles, lines_of, panel_grid, shared_legend, square_grid
from isorepro.style import CATEGORIES, CYCLE, GRID, INK, MARKERS, MUTED, PAPER, SEQUENCE, STRETCH
from isorepro.tables import beta_name, short_number


def class_planes(points: pd.DataFrame, *, angle: str = "angle along the ring", narrow: bool = False) -> Figure:
    """Draw each class by itself in each space, in a plane, coloured by an angle.

    Args:
        points: ``space`` (title of the column), ``class``, ``x``, ``y`` and ``angle`` (in radians); a class
            without points in a space has a row of NaN there, and an empty panel.
        angle: what the angle is.
        narrow: a phone's width.
    """
    titles, classes = list(points["space"].drop_duplicates()), list(points["class"].drop_duplicates())
    cells = [(name, title) for name in classes for title in titles]
    figure, grid = square_grid(len(cells), columns=len(titles), narrow=narrow)
    for axes, (name, title) in zip(grid.flat, cells, strict=True):
        panel = points[(points["class"] == name) & (points["space"] == title)].dropna(subset=["x", "y"])
        place = (panel["angle"] / (2 * np.pi) * len(CYCLE)).astype(int) % len(CYCLE)
        size = 4 if narrow else 9
        axes.scatter(panel["x"], panel["y"], s=size, color=[CYCLE[p] for p in place], lw=0, rasterized=True)
        low, high = panel[["x", "y"]].min().fillna(0), panel[["x", "y"]].max().fillna(0)
        middle, extent = (low + high) / 2, float((high - low).max())
        half = 0.56 * extent or 1.0
        axes.set(xlim=(middle["x"] - half, middle["x"] + half), ylim=(middle["y"] - half, middle["y"] + half))
        axes.set(aspect="equal", xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set(visible=True, color=GRID)
        axes.set_xlabel(f"width {extent:.2g}" if len(panel) else "no points", fontsize=8 if narrow else 9)
        if name == classes[0]:
            axes.set_title(title, fontsize=8 if narrow else 10, loc="center")
        if title == titles[0]:
            axes.set_ylabel(str(name), fontsize=8 if narrow else 10)
    cycle = mpl.colors.ListedColormap(CYCLE)
    turn = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 2 * np.pi), cycle)
    bar = figure.colorbar(turn, ax=grid, location="bottom", shrink=0.5, aspect=30, pad=0.03)
    bar.set_ticks([0, np.pi, 2 * np.pi], labels=["0", "π", "2π"])
    bar.set_label(angle, fontsize=9)
    bar.outline.set_visible(False)
    return figure


def distance_histograms(distances: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Draw how the distances within each class are distributed, before and after each network.

    Args:
        distances: rows of :func:`isorepro.structure.class_distances` with ``beta``, one seed: ``class``,
            ``input_distance`` and ``representation_distance``.
        narrow: panels below each other.
    """
    classes = list(distances["class"].drop_duplicates())
    betas = sorted(distances["beta"].unique())
    figure, grid = panel_grid(len(classes), columns=1 if narrow else 2, height=2.6, narrow=narrow)
    top = distances[["input_distance", "representation_distance"]].quantile(0.999).max()
    bins = np.linspace(0, top, 61)
    for axes, name in zip(grid.flat, classes, strict=False):
        panel = distances[distances["class"] == name]
        axes.set_title(str(name).capitalize())
        truth = panel.loc[panel["beta"] == betas[0], "input_distance"]
        axes.hist(truth, bins, density=True, color=MUTED, alpha=0.35, lw=0, label="truth")
        for beta, style in zip(betas, line_styles(betas), strict=True):
            values = panel.loc[panel["beta"] == beta, "representation_distance"]
            line = {key: style[key] for key in ("color", "linestyle") if key in style}
            axes.hist(values, bins, density=True, histtype="step", lw=1.8, label=beta_name(beta), **line)
        axes.set(xlabel="distance between two points of the ring", ylabel="density", xlim=(0, top))
    shared_legend(figure, None)
    return figure


def shepard_diagram(distances: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Draw the distance of pairs in the representation against that of the inputs, one panel per network.

    Args:
        distances: as for :func:`distance_histograms`.
        narrow: panels below each other.
    """
    classes = list(distances["class"].drop_duplicates())
    betas = sorted(distances["beta"].unique())
    figure, grid = panel_grid(len(betas), columns=1 if narrow else len(betas), height=3.4, narrow=narrow)
    for axes, beta in zip(grid.flat, betas, strict=False):
        panel = distances[distances["beta"] == beta]
        for name, colour in zip(classes, CATEGORIES, strict=False):
            pairs = panel[panel["class"] == name]
            x, y = pairs["input_distance"], pairs["representation_distance"]
            axes.scatter(x, y, s=5, color=colour, alpha=0.35, lw=0, label=str(name), rasterized=True)
        longest = panel["input_distance"].max()
        axes.plot([0, longest], [0, longest], color=INK, lw=1.2, linestyle=(0, (4, 2)), label="equal distances")
        axes.set_title(beta_name(beta))
        axes.set(xlabel="distance of the inputs", ylabel="distance of the representations", xlim=0, ylim=0)
    legend = shared_legend(figure, 2 if narrow else 3)
    for handle in legend.legend_handles[:-1]:
        assert isinstance(handle, PathCollection)
        handle.set(alpha=1, sizes=[30])
    return figure


def training_curves(
    summary: pd.DataFrame,
    *,
    labels: Mapping[str, str],
    by: str = "beta",
    references: Mapping[str, float] | None = None,
    narrow: bool = False,
) -> Figure:
    """Draw quantities of the training against its steps, one panel each, one line per β.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by measure, beta (or ``by``) and epoch.
        labels: measure → label of its axis, in the order of the panels.
        by: the column that has a line for each value: weights β, or names.
        references: measure → a value it is compared with, drawn as a dotted line.
        narrow: panels below each other.
    """
    figure, grid = panel_grid(len(labels), columns=1 if narrow else len(labels), height=2.7, narrow=narrow)
    for axes, (measure, label) in zip(grid.flat, labels.items(), strict=False):
        panel = summary[summary["measure"] == measure]
        if references and measure in references:
            axes.axhline(references[measure], color=MUTED, lw=1, linestyle=(0, (1, 2)))
        for value, style in lines_of(summary, by).items():
            line = panel[panel[by] == value]
            style = style | {"marker": ""}
            axes.fill_between(line["epoch"], line["low"], line["high"], color=style["color"], alpha=0.16, lw=0)
            axes.plot(line["epoch"], line["mean"], **style)
        # An interval's end can reach 0, which a log axis has no place for.
        axes.set(yscale="log", xlabel="training steps", ylim=_positive_range(panel))
        axes.set_title(label, fontsize=9.5)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    shared_legend(figure, None)
    return figure


def stretch_maps(planes: pd.DataFrame, points: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Draw the largest and the smallest stretch over the plane, with decision boundary and data, per network.

    Args:
        planes: rows of :func:`isorepro.boundary.plane` with ``beta``, one seed.
        points: the data: ``x``, ``y`` and ``class``.
        narrow: one column per stretch instead of one row.
    """
    betas = sorted(planes["beta"].unique())
    kinds = {"stretch_high": "largest stretch", "stretch_low": "smallest stretch"}
    cells = (
        [(beta, kind) for beta in betas for kind in kinds]
        if narrow
        else [(beta, kind) for kind in kinds for beta in betas]
    )
    columns = len(kinds) if narrow else len(betas)
    figure, grid = panel_grid(
        len(cells), columns=columns, height=1.75 if narrow else 2.9, narrow=narrow, share=True
    )
    norm = mpl.colors.Normalize(-3, 3)
    cased = [mpl.patheffects.withStroke(linewidth=3.2, foreground=LIGHT)]
    for axes, (beta, kind) in zip(grid.flat, cells, strict=True):
        plane = planes[planes["beta"] == beta]
        x, y = plane["x"].unique(), plane["y"].unique()
        field = np.log2(plane[kind].to_numpy().clip(2.0**-6)).reshape(len(y), len(x))
        extent = (x[0], x[-1], y[0], y[-1])
        axes.imshow(field, origin="lower", extent=extent, cmap=STRETCH, norm=norm, interpolation="bilinear")
        margin = plane["margin"].to_numpy().reshape(len(y), len(x))
        axes.contour(x, y, margin, levels=[0], colors=BLACK, linewidths=1.6, path_effects=cased)
        for name, marker in zip(points["class"].drop_duplicates(), "o^", strict=False):
            of_class = points[points["class"] == name]
            axes.scatter(
                of_class["x"], of_class["y"], s=4, marker=marker, color=BLACK, alpha=0.5, lw=0, rasterized=True
            )
        axes.set_title(f"{beta_name(beta)}: {kinds[kind]}", fontsize=8 if narrow else 10)
        axes.set(aspect="equal", xticks=[], yticks=[])
        axes.grid(False)
    colours = mpl.cm.ScalarMappable(norm, STRETCH)
    bar = figure.colorbar(colours, ax=grid, location="bottom", shrink=0.7, aspect=40, extend="both", pad=0.03)
    bar.set_ticks([-3, -2, -1, 0, 1, 2, 3], labels=["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.set_label("distance in the representation per distance in the input", fontsize=9)
    bar.outline.set_edgecolor(MUTED)
    return figure


def against_boundary_distance(summary: pd.DataFrame, *, titles: Mapping[str, str], narrow: bool = False) -> Figure:
    """Draw stretch and local distortion against the distance to the decision boundary, one column per dataset.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by dataset, beta, measure, bin and distance.
        titles: dataset → its name in the figure.
        narrow: panels below each other.
    """
    rows = {
        ("stretch_high", "stretch_low"): "stretch, largest and smallest",
        ("local_distortion",): "local distortion",
    }
    cells = [(name, measures) for measures in rows for name in titles]
    if narrow:
        cells = [(name, measures) for name in titles for measures in rows]
    figure, grid = panel_grid(len(cells), columns=1 if narrow else len(titles), height=2.5, narrow=narrow)
    for axes, (name, measures) in zip(grid.flat, cells, strict=True):
        panel = summary[(summary["dataset"] == name) & summary["measure"].isin(measures)]
        betas = sorted(panel["beta"].unique())
        for beta, style in zip(betas, line_styles(betas), strict=True):
            for measure in measures:
                line = panel[(panel["beta"] == beta) & (panel["measure"] == measure)]
                style["markerfacecolor"] = PAPER if measure == "stretch_low" or not beta else style["color"]
                label = beta_name(beta) if measure == measures[0] else None
                axes.fill_between(
                    line["distance"], line["low"], line["high"], color=style["color"], alpha=0.16, lw=0
                )
                axes.plot(line["distance"], line["mean"], **style, label=label)
        if "stretch_high" in measures:
            axes.axhline(1, color=MUTED, lw=1, linestyle=(0, (1, 2)))
        axes.set_title(titles[name])
        axes.set(yscale="log", ylim=_positive_range(panel))
        axes.legend(fontsize=8.5)
        if narrow or name == next(iter(titles)):
            axes.set_ylabel(rows[measures])
    figure.supxlabel("distance to the decision boundary, in units of the data", fontsize=10)
    return figure


def maps(points: pd.DataFrame, *, classes: Sequence[str], narrow: bool = False) -> Figure:
    """Draw maps of the same points, one panel per space, coloured and labelled by class.

    Args:
        points: ``space`` (title of the panel), ``x``, ``y`` and ``class``.
        classes: names of all classes, in the order of their colours.
        narrow: two panels beside each other instead of three.
    """
    titles = list(points["space"].drop_duplicates())
    columns = 2 if narrow else 3
    figure, grid = panel_grid(len(titles), columns=columns, height=2.1 if narrow else 2.8, narrow=narrow)
    halo = [mpl.patheffects.withStroke(linewidth=2.5, foreground=PAPER)]
    for axes, title in zip(grid.flat, titles, strict=False):
        panel = points[points["space"] == title]
        for name, colour in zip(classes, CATEGORIES, strict=False):
            of_class = panel[panel["class"] == name]
            axes.scatter(of_class["x"], of_class["y"], s=3.5, color=colour, alpha=0.75, lw=0, rasterized=True)
        for name, (x, y) in panel.groupby("class")[["x", "y"]].median().iterrows():
            size = 10 if len(name) <= 2 else 6.5
            # Above the middle, so that it hides no small cluster.
            axes.annotate(
                name,
                (x, y),
                xytext=(0, 2.5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontweight="bold",
                fontsize=size,
                path_effects=halo,
            )
        axes.set_title(title, fontsize=8.5 if narrow else 10)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set(visible=True, color=GRID)
    return figure


def measures_against_beta(
    summary: pd.DataFrame, *, labels: Mapping[tuple[str, str], str], narrow: bool = False
) -> Figure:
    """Draw measures of structure against β, one panel each, one line per form and K, cross-entropy as a level.

    Args:
        summary: rows of :func:`isorepro.structure.summary` by relation, form, K and beta.
        labels: (measure, relation) → title of its panel, in their order.
        narrow: panels below each other.
    """
    # As few rows of at most three as there can be, evenly filled.
    columns = 1 if narrow else -(-len(labels) // -(-len(labels) // 3))
    figure, grid = panel_grid(len(labels), columns=columns, height=2.25, narrow=narrow)
    for axes, ((measure, relation), title) in zip(grid.flat, labels.items(), strict=False):
        panel = summary[(summary["measure"] == measure) & (summary["relation"] == relation)]
        level = panel[panel["beta"] == 0].iloc[0]
        axes.axhspan(level["low"], level["high"], color=INK, alpha=0.12, lw=0)
        axes.axhline(level["mean"], color=INK, linestyle=(0, (4, 1.5)), label=beta_name(0))
        for (name, line), style in zip(_series(panel).items(), _series_styles(), strict=False):
            axes.fill_between(line["beta"], line["low"], line["high"], color=style["color"], alpha=0.16, lw=0)
            axes.plot(line["beta"], line["mean"], **style, label=name)
            if len(line) == 1:
                # A band of one weight has no width.
                axes.vlines(line["beta"], line["low"], line["high"], color=style["color"], lw=1.2)
        axes.set_title(title, fontsize=9.5)
        axes.set(xscale="log")
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(numticks=6))
        axes.minorticks_off()
    figure.supxlabel("β, weight of the isometry term", fontsize=10)
    shared_legend(figure, 2 if narrow else None)
    return figure


def trade_off(
    summary: pd.DataFrame, *, labels: Mapping[tuple[str, str], str], least: float = 0.0, narrow: bool = False
) -> Figure:
    """Draw measures of structure against the clean accuracy, one panel each, one point per network setting.

    Args:
        summary: as for :func:`measures_against_beta`, with the measure "accuracy".
        labels: (measure, relation) → label of its axis, in the order of the panels.
        least: accuracy below which a setting is not drawn.
        narrow: panels below each other.
    """
    keys = ["form", "K", "beta"]
    accuracy = summary[summary["measure"] == "accuracy"].set_index(keys)[["mean", "low", "high"]]
    figure, grid = panel_grid(len(labels), columns=1 if narrow else 3, height=2.7, narrow=narrow)
    for axes, ((measure, relation), label) in zip(grid.flat, labels.items(), strict=False):
        panel = summary[(summary["measure"] == measure) & (summary["relation"] == relation)]
        panel = panel.join(accuracy.add_prefix("accuracy_"), on=keys)
        panel = panel[panel["accuracy_mean"] >= least]
        plain: dict[str, object] = {"color": INK, "marker": "o", "markerfacecolor": PAPER, "linestyle": ""}
        series = {beta_name(0): (panel[panel["beta"] == 0], plain)}
        series |= {
            name: (line, style)
            for (name, line), style in zip(_series(panel).items(), _series_styles(), strict=False)
        }
        for number, (name, (line, style)) in enumerate(series.items()):
            sideways, upwards = (
                np.abs(line[[f"{prefix}low", f"{prefix}high"]].to_numpy().T - line[f"{prefix}mean"].to_numpy())
                for prefix in ("accuracy_", "")
            )
            axes.errorbar(
                line["accuracy_mean"], line["mean"], upwards, sideways, elinewidth=1, label=name, **style
            )
            # The weights of the first form to the right of its points, those of the others to the left.
            side = "left" if number == 1 else "right"
            for beta, *place in line.loc[line["beta"] > 0, ["beta", "accuracy_mean", "mean"]].to_numpy():
                axes.annotate(
                    short_number(beta),
                    place,
                    xytext=(-5 if side == "right" else 5, 2),
                    ha=side,
                    fontsize=7.5,
                    textcoords="offset points",
                    color=MUTED,
                )
        axes.set(xlabel="accuracy without attack", ylabel=label)
        axes.margins(x=0.15)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
    shared_legend(figure, 2 if narrow else None)
    return figure


def cross_sections(sections: pd.DataFrame, *, classes: Sequence[str], narrow: bool = False) -> Figure:
    """Draw decision regions and the error of the distances on a plane through a prototype, per network.

    Args:
        sections: rows of :func:`isorepro.structure.cross_section` with ``network`` (its name), one seed.
        classes: names of all classes, in the order of their colours.
        narrow: one row per network instead of one column.
    """
    networks = list(sections["network"].drop_duplicates())
    colours = mpl.colors.ListedColormap(CATEGORIES[: len(classes)])
    headings = {
        "regions": "class named" if max(map(len, classes)) > 2 else "digit named",
        "error": "error of the distance",
    }
    kinds = tuple(headings)
    cells = (
        [(name, kind) for name in networks for kind in kinds]
        if narrow
        else [(name, kind) for kind in kinds for name in networks]
    )
    columns = len(kinds) if narrow else len(networks)
    figure, grid = panel_grid(
        len(cells), columns=columns, height=2.05 if narrow else 2.7, narrow=narrow, share=True
    )
    norm = mpl.colors.LogNorm(0.1, 100)
    halo = [mpl.patheffects.withStroke(linewidth=2.5, foreground=LIGHT)]
    for axes, (name, kind) in zip(grid.flat, cells, strict=True):
        plane = sections[sections["network"] == name]
        x, y = plane["first"].unique(), plane["second"].unique()
        shape, extent = (len(y), len(x)), (x[0], x[-1], y[0], y[-1])
        if kind == "error":
            field = plane["error"].to_numpy().clip(0.1).reshape(shape)
            axes.imshow(field, origin="lower", extent=extent, cmap="cividis", norm=norm, interpolation="none")
        else:
            predicted = plane["predicted"].map(list(classes).index).to_numpy().reshape(shape)
            axes.imshow(
                predicted,
                origin="lower",
                extent=extent,
                cmap=colours,
                vmin=-0.5,
                vmax=len(classes) - 0.5,
                interpolation="none",
            )
            for place, label in enumerate(classes):
                at = _inside(predicted == place)
                if at:
                    axes.text(
                        x[at[1]],
                        y[at[0]],
                        label,
                        ha="center",
                        va="center",
                        color=BLACK,
                        fontweight="bold",
                        fontsize=10 if len(label) <= 2 else 6.5,
                        path_effects=halo,
                    )
        axes.plot(0, 0, marker="+", color=LIGHT, markersize=9, markeredgewidth=2)
        row, column = (name, headings[kind]) if narrow else (headings[kind], name)
        if axes.get_subplotspec().is_first_row():
            axes.set_title(column, fontsize=8 if narrow else 10)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(row, fontsize=8 if narrow else 10)
        axes.set(aspect="equal")
        axes.tick_params(labelsize=8)
        axes.grid(False)
    errors = mpl.cm.ScalarMappable(norm, "cividis")
    bar = figure.colorbar(errors, ax=grid, location="bottom", shrink=0.7, aspect=40, extend="both", pad=0.02)
    bar.set_label("|Dₓ − K·Dₕ|, in units of input distance", fontsize=9)
    bar.outline.set_edgecolor(MUTED)
    return figure


def _inside(region: np.ndarray) -> tuple[int, int] | None:
    """Return the cell of a region farthest from its edge, or None if the region is too small for a label."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    if depth.max() < len(region) / 40:
        return None
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(row), int(column)


def _positive_range(panel: pd.DataFrame) -> tuple[float, float]:
    """Return a range for a log axis: every mean, and of the intervals what is no more than a decade below."""
    if panel["mean"].isna().all():
        return 0.1, 10.0  # nothing is drawn
    lowest = float(panel["mean"].min())
    low = max(float(np.nanmin([panel["low"].min(), lowest])), lowest / 10)
    return low / 1.3, 1.3 * float(np.nanmax([panel["high"].max(), panel["mean"].max()]))


def _series(panel: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each form and K with β > 0, sorted by β, under a name."""
    groups = panel[panel["beta"] > 0].groupby(["form", "K"], sort=False)
    return {f"{form}, K\u00a0=\u00a0{K:g}": group.sort_values("beta") for (form, K), group in groups}


def _series_styles() -> list[dict[str, object]]:
    steps = (0, 6, 11)
    return [{"color": SEQUENCE[step], "marker": MARKERS[place + 1]} for place, step in enumerate(steps)]
