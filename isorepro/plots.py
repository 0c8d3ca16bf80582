"""One function per kind of figure.

Every figure function takes tidy data and ``narrow`` (a phone's width, panels below each other), draws in the
colours of the light theme and returns a matplotlib figure; :func:`isorepro.style.inline_svg` gives it to a page
in a form that follows the page's theme.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.patheffects
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from isorepro.panels import (
    BLACK,
    LIGHT,
    line_styles,
    panel_grid,
    shade_beyond_attack_limit,
    shared_legend,
    square_grid,
)
from isorepro.style import (
    CATEGORIES,
    CYCLE,
    FOOLED,
    GRID,
    HELD,
    INK,
    MARKERS,
    MUTED,
    NARROW,
    PAPER,
    SEQUENCE,
    STRETCH,
    WIDE,
)
from isorepro.tables import beta_name, short_number


def robustness_curves(summary: pd.DataFrame, *, chance: float, narrow: bool = False) -> Figure:
    """Draw the classification rate against ε, one panel per protocol and attack, one line per β.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by protocol, attack, beta and epsilon, with
            ``mean``, ``low`` and ``high`` in [0, 1]; clean rows (ε = 0) are not drawn.
        chance: the accuracy of guessing.
        narrow: panels below each other.
    """
    drawn = summary[summary["epsilon"] > 0]
    panels = list(drawn[["protocol", "attack"]].drop_duplicates().itertuples(index=False, name=None))
    betas = sorted(drawn["beta"].unique())
    many = len(panels) > 4
    columns = (2 if many else 1) if narrow else (3 if many else 2)
    rows = -(-len(panels) // columns)
    height = (1.7 if narrow else 2.0) if many else (2.5 if narrow else 2.75)
    figure = Figure(figsize=(NARROW, height * rows + 1.0) if narrow else (WIDE, height * rows + 0.5))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for spare in grid.flat[len(panels) :]:
        spare.set_visible(False)
    for axes, (protocol, attack) in zip(grid.flat, panels, strict=False):
        panel = drawn[(drawn["protocol"] == protocol) & (drawn["attack"] == attack)]
        title = f"{protocol.capitalize()}: {attack}"
        if many:
            title = f"{attack[0].upper()}{attack[1:]}" + f",\n{protocol}" * (protocol == "as released")
        axes.set_title(title, fontsize=(7.5 if narrow else 9) if many else None)
        shade_beyond_attack_limit(axes)
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for beta, style in zip(betas, line_styles(betas), strict=True):
            line = panel[panel["beta"] == beta]
            axes.fill_between(line["epsilon"], line["low"], line["high"], color=style["color"], alpha=0.16, lw=0)
            axes.plot(line["epsilon"], line["mean"], **style, label=beta_name(beta))
        axes.set(xscale="log", ylim=(-0.02, 1.02))
        ticks = [0.01, 0.1, 1] if many else [0.01, 0.03, 0.1, 0.3, 1]
        axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    first = grid.flat[0]
    first.annotate("chance", (0.0105, chance + 0.015), color=MUTED, fontsize=7 if many else 8.5)
    if many:
        figure.supylabel("classification rate", fontsize=10)
        figure.supxlabel("ε, L∞ radius on pixels in [0, 1]", fontsize=10)
    else:
        for axes in grid[:, 0]:
            axes.set_ylabel("classification rate")
        for axes in grid[-1]:
            axes.set_xlabel("ε, L∞ radius on pixels in [0, 1]")
        first.annotate(
            "no classifier beats chance", (0.72, 0.98), color=MUTED, fontsize=8, rotation=90, ha="center", va="top"
        )
    shared_legend(figure, 3 if narrow else None)
    return figure


def gap(summary: pd.DataFrame, *, protocols: Mapping[str, str], chance: float, narrow: bool = False) -> Figure:
    """Draw the classification rate against ε under a weak and a strong evaluation, and shade what lies between.

    Args:
        summary: rows by attack, beta and epsilon, with ``mean``, ``low`` and ``high`` in [0, 1], of cross-entropy
            and one other weight.
        protocols: the weak attack's name and then the strong one's, each with the words that its lines get.
        chance: the accuracy of guessing.
        narrow: for a phone.
    """
    figure = Figure(figsize=(NARROW, 3.7) if narrow else (5.4, 4.3))
    axes = figure.subplots()
    drawn = summary[summary["epsilon"] > 0]
    plain, isometric = sorted(drawn["beta"].unique())
    axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    shade_beyond_attack_limit(axes)
    weak, strong = (
        drawn[(drawn["attack"] == attack) & (drawn["beta"] == isometric)].sort_values("epsilon")
        for attack in protocols
    )
    axes.fill_between(weak["epsilon"], strong["mean"], weak["mean"], color=HELD, alpha=0.13, lw=0)
    dashes = ((0, (4, 1.5)), "-")
    for (attack, words), dash in zip(protocols.items(), dashes, strict=True):
        for beta, colour in ((plain, FOOLED), (isometric, HELD)):
            line = drawn[(drawn["attack"] == attack) & (drawn["beta"] == beta)].sort_values("epsilon")
            axes.fill_between(line["epsilon"], line["low"], line["high"], color=colour, alpha=0.16, lw=0)
            label = f"{beta_name(beta)}, {words}"
            axes.plot(line["epsilon"], line["mean"], color=colour, linestyle=dash, marker="o", ms=3.5, label=label)
    axes.set(
        xscale="log", ylim=(-0.02, 1.02), ylabel="classification rate", xlabel="ε, L∞ radius on pixels in [0, 1]"
    )
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5]
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.annotate("chance", (drawn["epsilon"].min(), chance + 0.015), color=MUTED, fontsize=8.5)
    shared_legend(figure, 2)
    return figure


def attack_stages(summary: pd.DataFrame, differences: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Draw accuracy under attacks of growing strength, and its difference to cross-entropy: a row for each attack.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by stage, network, form and beta, stages and networks
            in order; accuracies in [0, 1].
        differences: rows of :func:`isorepro.stats.paired_differences` to β = 0, by stage and network.
        narrow: panels below each other.
    """
    stages = list(summary["stage"].drop_duplicates())
    networks = summary[["network", "form", "beta"]].drop_duplicates("network")
    styles: dict[str, dict[str, Any]] = {}
    for form, group in networks.groupby("form", sort=False):
        betas = sorted(group["beta"])
        for beta, style in zip(betas, line_styles(betas), strict=True):
            name = group.loc[group["beta"] == beta, "network"].item()
            # The form tells itself by an empty marker, as cross-entropy does.
            styles[name] = {"markerfacecolor": PAPER if form == "normalised" else style["color"], **style}
    height = 0.55 + (0.09 * len(networks) + 0.3) * len(stages)
    figure = Figure(figsize=(NARROW, 2 * height + 0.8) if narrow else (WIDE, height + 0.6))
    first, second = figure.subplots(*((2, 1) if narrow else (1, 2)), sharey=not narrow)
    offsets = dict(zip(styles, np.linspace(-0.36, 0.36, len(styles)), strict=True))
    panels = {
        "classification rate": (first, summary, 1),
        "difference to CE, same seed (points)": (second, differences, 100),
    }
    for label, (axes, table, scale) in panels.items():
        for name, style in styles.items():
            rows = table[table["network"] == name]
            means = scale * rows["mean"]
            reach = np.abs(scale * rows[["low", "high"]].to_numpy().T - means.to_numpy())
            places = rows["stage"].map(stages.index) + offsets[name]
            axes.errorbar(means, places, xerr=reach, elinewidth=1, label=name, **style | {"linestyle": ""})
        axes.set(xlabel=label, ylim=(len(stages) - 0.5, -0.5))
        axes.set_yticks(range(len(stages)), labels=[stage.replace(", ", ",\n") for stage in stages])
        for between in np.arange(0.5, len(stages) - 1):
            axes.axhline(between, color=GRID, lw=0.8)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    first.set_xlim(-0.02, 1.02)
    second.axvline(0, color=INK, linestyle=(0, (4, 1.5)), lw=1)
    shared_legend(figure, None)
    return figure


def image_grid(examples: pd.DataFrame, *, attack: str, narrow: bool = False) -> Figure:
    """Draw images attacked on each network, one row per network, with what each is taken for.

    Args:
        examples: rows of :func:`isorepro.robustness.examples` with their ``beta``, one seed each: ``attack``,
            ``index``, ``label``, ``predicted`` and ``pixels``.
        attack: the attack drawn; the first row is the images without one.
        narrow: a phone's width, where half of the images are drawn.
    """
    attacked = examples[examples["attack"] == attack]
    clean = examples[(examples["epsilon"] == 0) & (examples["beta"] == examples["beta"].min())]
    rows = {"original": clean}
    rows |= {beta_name(beta): attacked[attacked["beta"] == beta] for beta in sorted(attacked["beta"].unique())}
    return _pictures(rows, "pixels", narrow=narrow)


def saliency_maps(examples: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Draw images and, below, their saliency maps on each network, with what each image is taken for.

    Args:
        examples: rows of :func:`isorepro.saliency.examples` with their ``beta``, one seed each.
        narrow: a phone's width, where half of the images are drawn.
    """
    betas = sorted(examples["beta"].unique())
    of_network = {beta_name(beta): examples[examples["beta"] == beta] for beta in betas}
    first = next(iter(of_network.values()))
    rows = {"image": first.assign(predicted=first["label"])} | of_network
    return _pictures(rows, "saliency", narrow=narrow)


def _pictures(rows: Mapping[str, pd.DataFrame], column: str, *, narrow: bool) -> Figure:
    """Draw a row of pictures for each name: the first of ``pixels``, the others of ``column``.

    Above each its label and, framed in orange, what it is taken for when that is another class.
    """
    everything = pd.concat(rows.values())
    indices = list(everything["index"].drop_duplicates())
    indices = indices[: -(-len(indices) // 2)] if narrow else indices
    # Names of several words have a line each.
    digits = everything[["label", "predicted"]].map(len).to_numpy().max() <= 2
    arrow, above = (" → ", 0.27) if digits else ("\n→ ", 0.36)
    letters: dict[str, Any] = {"fontsize": 9.5} if digits else {"fontsize": 6.5, "fontweight": "normal"}
    width = NARROW if narrow else WIDE
    cell = (width - 0.95) / len(indices)
    figure = Figure(figsize=(width, (cell + above) * len(rows)))
    grid = figure.subplots(len(rows), len(indices), squeeze=False)
    for number, (axes_row, (name, of_network)) in enumerate(zip(grid, rows.items(), strict=True)):
        by_index = of_network.set_index("index")
        for axes, index in zip(axes_row, indices, strict=True):
            label, predicted = by_index.loc[index, ["label", "predicted"]]
            colour = HELD if predicted == label else FOOLED
            if number and column == "saliency":
                axes.imshow(
                    np.asarray(by_index.loc[index, "saliency"]),
                    cmap=STRETCH,
                    vmin=-1,
                    vmax=1,
                    interpolation="none",
                )
            else:
                # The colours of a grey image; an image in colour has its own.
                axes.imshow(
                    np.asarray(by_index.loc[index, "pixels"]), cmap="gray", vmin=0, vmax=1, interpolation="none"
                )
            title = label if predicted == label else f"{label}{arrow}{predicted}"
            axes.set_title(title, color=colour, loc="center", pad=3, **letters)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=colour, linewidth=0.8 if predicted == label else 1.6)
        axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9.5, labelpad=8)
    return figure


def class_planes(points: pd.DataFrame, *, angle: str = "angle along the ring", narrow: bool = False) -> Figure:
    """Draw each class by itself in each space, in a plane, coloured by an angle.

    Args:
        points: ``space`` (title of the column), ``class``, ``x``, ``y`` and ``angle`` (in radians).
        angle: what the angle is.
        narrow: a phone's width.
    """
    titles, classes = list(points["space"].drop_duplicates()), list(points["class"].drop_duplicates())
    cells = [(name, title) for name in classes for title in titles]
    figure, grid = square_grid(len(cells), columns=len(titles), narrow=narrow)
    for axes, (name, title) in zip(grid.flat, cells, strict=True):
        panel = points[(points["class"] == name) & (points["space"] == title)]
        place = (panel["angle"] / (2 * np.pi) * len(CYCLE)).astype(int) % len(CYCLE)
        size = 4 if narrow else 9
        axes.scatter(panel["x"], panel["y"], s=size, color=[CYCLE[p] for p in place], lw=0, rasterized=True)
        middle = (panel[["x", "y"]].max() + panel[["x", "y"]].min()) / 2
        extent = float((panel[["x", "y"]].max() - panel[["x", "y"]].min()).max())
        half = 0.56 * extent or 1.0
        axes.set(xlim=(middle["x"] - half, middle["x"] + half), ylim=(middle["y"] - half, middle["y"] + half))
        axes.set(aspect="equal", xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set(visible=True, color=GRID)
        axes.set_xlabel(f"width {extent:.2g}", fontsize=8 if narrow else 9)
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


def training_curves(summary: pd.DataFrame, *, labels: Mapping[str, str], narrow: bool = False) -> Figure:
    """Draw quantities of the training against its steps, one panel each, one line per β.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by measure, beta and epoch.
        labels: measure → label of its axis, in the order of the panels.
        narrow: panels below each other.
    """
    betas = sorted(summary["beta"].unique())
    figure, grid = panel_grid(len(labels), columns=1 if narrow else len(labels), height=2.7, narrow=narrow)
    for axes, (measure, label) in zip(grid.flat, labels.items(), strict=False):
        panel = summary[summary["measure"] == measure]
        for beta, style in zip(betas, line_styles(betas), strict=True):
            line = panel[panel["beta"] == beta]
            style = style | {"marker": "", "label": beta_name(beta)}
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
    columns = 1 if narrow else min(3, len(labels))
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


def evening(bought: pd.DataFrame, *, ours: str, hours: float, narrow: bool = False) -> Figure:
    """Draw how many things two ways do in some hours: a row for each thing, two points on a log axis.

    Args:
        bought: rows of :func:`isorepro.speed.evening`.
        ours: the way drawn filled; the other way of each thing is named.
        hours: their number, for the axis.
        narrow: for a phone.
    """
    things = list(bought["counted"].drop_duplicates())
    figure = Figure(figsize=(NARROW if narrow else WIDE, (0.95 if narrow else 0.8) * len(things) + 0.7))
    axes = figure.subplots()
    small = 8 if narrow else 9
    for place, thing in enumerate(things):
        rows = bought[bought["counted"] == thing].set_index("way")
        (other,) = set(rows.index) - {ours}
        here, there = rows.loc[ours], rows.loc[other]
        axes.plot(
            [there["mean"], here["mean"]], [place, place], color=GRID, lw=5, solid_capstyle="round", zorder=1
        )
        for row, face in ((here, HELD), (there, PAPER)):
            axes.plot([row["low"], row["high"]], [place, place], color=HELD, lw=1.2)
            axes.plot(row["mean"], place, "o", color=HELD, markerfacecolor=face, markersize=7)
        middle = float(np.sqrt(here["mean"] * there["mean"]))
        above: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": small}
        axes.annotate(f"{here['mean'] / there['mean']:.1f} ×", (middle, place), (0, 10), ha="center", **above)
        axes.annotate(other, (there["mean"], place), (-8, 0), ha="right", color=MUTED, **above)
        axes.annotate(f"{here['mean']:,.0f}", (here["mean"], place), (8, 0), ha="left", weight="bold", **above)
        if narrow:
            title = thing.replace("\n", " ")
            axes.annotate(
                title, (0, place), (0, 22), xycoords=("axes fraction", "data"), ha="left", weight="bold", **above
            )
    low, high = bought["mean"].min(), bought["mean"].max()
    axes.set(xscale="log", xlim=(low / (12 if narrow else 5), high * (6 if narrow else 3)))
    axes.set_xlabel(f"how many in {hours:g} hours")
    axes.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    axes.set_ylim(len(things) - 0.5, -0.75 if narrow else -0.5)
    axes.set_yticks([] if narrow else range(len(things)), labels=[] if narrow else things)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.minorticks_off()
    return figure


def scaling(grown: pd.DataFrame, *, panels: Mapping[str, Sequence[str]], narrow: bool = False) -> Figure:
    """Draw how the time of a step or a network grows with images, batch and processors.

    Args:
        grown: rows of :func:`isorepro.speed.scaling`.
        panels: the three measures, in the order images, batch, processors, with their ways; the first way of each
            is this book's.
        narrow: panels below each other.
    """
    figure, grid = panel_grid(3, columns=1 if narrow else 3, height=2.6, narrow=narrow)
    labels = ("training images", "images of a batch", "processors")
    for axes, label, (measure, ways) in zip(grid.flat, labels, panels.items(), strict=True):
        per_network = label == "processors"
        for way, colour, marker, face in zip(ways, (HELD, FOOLED), "os", (PAPER, FOOLED), strict=False):
            line = grown[(grown["measure"] == measure) & (grown["way"] == way)].sort_values("size")
            low, mean, high = ((1 if per_network else 1e3) * line[name] for name in ("low", "mean", "high"))
            axes.fill_between(line["size"], low, high, color=colour, alpha=0.16, lw=0)
            axes.plot(line["size"], mean, marker=marker, color=colour, markerfacecolor=face, label=way)
            if way == ways[0] and label != "training images":
                fixed, power = (0, -1) if per_network else (-1, 2)
                x = np.geomspace(line["size"].min(), line["size"].max(), 50)
                guide = mean.iloc[fixed] * (x / line["size"].iloc[fixed]) ** power
                seen = guide > mean.min() / 3
                axes.plot(x[seen], guide[seen], color=MUTED, linestyle=(0, (1, 2)), lw=1.2)
        sizes = sorted(grown.loc[grown["measure"] == measure, "size"].unique())
        # As many as have room.
        sizes = sizes[:: -(-len(sizes) // 5)]
        axes.set_xlabel(label)
        if per_network:
            axes.set(ylabel="seconds per network", ylim=(0, None))
        else:
            axes.set(ylabel="milliseconds per step", xscale="log", yscale="log")
            axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5), numticks=8))
            axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
            axes.margins(y=0.15)
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8.5, ncols=1)
        axes.set_xticks(sizes, labels=[f"{size / 1000:g}k" if size >= 2000 else f"{size:g}" for size in sizes])
        axes.minorticks_off()
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
