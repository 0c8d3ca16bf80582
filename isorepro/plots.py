"""One function per kind of figure.

Every figure function takes tidy data and ``narrow`` (a phone's width, panels below each other), draws in the
colours of the light theme and returns a matplotlib figure; :func:`isorepro.style.inline_svg` gives it to a page
in a form that follows the page's theme.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from isorepro.panels import line_styles, panel_grid, shade_beyond_attack_limit, shared_legend
from isorepro.style import FOOLED, GRID, HELD, INK, MUTED, NARROW, PAPER, STRETCH, WIDE
from isorepro.tables import beta_name


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
        summary: rows of :func:`isorepro.stats.over_seeds` by stage, network, form, K and beta, stages and
            networks in order; accuracies in [0, 1].
        differences: rows of :func:`isorepro.stats.paired_differences` to β = 0, by stage and network.
        narrow: panels below each other.
    """
    stages = list(summary["stage"].drop_duplicates())
    networks = summary[["network", "form", "K", "beta"]].drop_duplicates("network")
    styles: dict[str, dict[str, Any]] = {}
    main = networks["K"].iloc[0]
    for form, group in networks.groupby("form", sort=False):
        betas = sorted(group["beta"].unique())
        looks = dict(zip(betas, line_styles(betas), strict=True))
        for name, K, beta in group[["network", "K", "beta"]].itertuples(index=False, name=None):
            # The normalised form tells itself by an empty marker, as cross-entropy does, another K by half of one.
            empty = {"markerfacecolor": PAPER} if form == "normalised" else {}
            half = {"fillstyle": "left", "markerfacecoloralt": PAPER} if form == "raw" and main != K else {}
            styles[name] = {**empty, **half, **looks[beta]}
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
    """Draw images and each network's saliency maps of them, clean and attacked, with what each is taken for.

    Args:
        examples: rows of :func:`isorepro.saliency.examples` with their ``beta``, one seed each.
        narrow: a phone's width, where half of the images are drawn.
    """
    clean = examples[(examples["epsilon"] == 0) & (examples["beta"] == examples["beta"].min())]
    rows = {"image": clean.assign(predicted=clean["label"])}
    for _, maps in examples.groupby(["beta", "epsilon", "attack"]):
        beta, epsilon, attack = maps[["beta", "epsilon", "attack"]].iloc[0]
        rows[beta_name(beta) + f",\n{attack}" * bool(epsilon)] = maps
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
