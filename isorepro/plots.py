"""One function per kind of figure.

Every figure function takes tidy data and ``narrow`` (a phone's width, panels below each other), draws in the
colours of the light theme and returns a matplotlib figure; :func:`isorepro.style.inline_svg` gives it to a page
in a form that follows the page's theme.
"""

import base64
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.patches
import matplotlib.patheffects
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import LinearLocator
from mpl_toolkits.mplot3d import Axes3D
from numpy.typing import NDArray

from isorepro.style import (
    CATEGORIES,
    CYCLE,
    DARK_PAGES,
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
    plotly_template,
)
from isorepro.tables import beta_name, short_number

IntArray = NDArray[np.int_]

BLACK, LIGHT = "#111111", "#fefefe"
"""Colours of lines and letters upon pictures, which keep theirs on a dark page."""

ELEVATION, AZIMUTH = 24, -62
"""Degrees from which boxes are seen: neither of two linked rings hides the other."""


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
        _beyond_attack_limit(axes)
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for beta, style in zip(betas, _line_styles(betas), strict=True):
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
    _legend(figure, 3 if narrow else None)
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
    _beyond_attack_limit(axes)
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
    _legend(figure, 2)
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
        for beta, style in zip(betas, _line_styles(betas), strict=True):
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
    _legend(figure, None)
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


def spaces(points: pd.DataFrame, *, colour: Sequence[str], narrow: bool = False) -> Figure:
    """Draw clouds of points in boxes, one box per space and colouring.

    The three axes of a box have one scale; boxes of different spaces do not share theirs. More than four spaces
    are drawn in rows of three, in the first colouring alone.

    Args:
        points: one row per point: ``space`` (the title of its box; spaces in order of appearance), ``x``, ``y``,
            ``z``, and the columns that ``colour`` names.
        colour: columns to colour by: one of floats is an angle in radians, any other a class.
        narrow: spaces below each other and colourings beside each other, instead of the other way round.

    Raises:
        ValueError: a column has more classes than there are colours, or a number that is not finite.
    """
    names = list(points["space"].drop_duplicates())
    wrapped = len(names) > 4
    colourings = [_colouring(points, column) for column in (colour[:1] if wrapped else colour)]
    width = NARROW if narrow else WIDE
    # Rows of cells: the colouring and the space of each.
    if wrapped:
        cells = [[(colourings[0], name) for name in names[start : start + 3]] for start in range(0, len(names), 3)]
    elif narrow:
        cells = [[(one, name) for one in colourings] for name in names]
    else:
        cells = [[(one, name) for name in names] for one in colourings]
    cell = width / len(cells[0])
    keys = [_key_height(one, cell if narrow and not wrapped else width) for one in colourings]
    title = 0.24
    box = min(cell, 3.2)
    beside = narrow or wrapped
    height = (max(keys) if beside else sum(keys)) + (box + title) * len(cells)
    figure = Figure(figsize=(width, height))
    # Boxes touch: a layout engine would leave room for tick labels that there are none of.
    figure.set_layout_engine("none")
    top = height
    if beside:
        for place, one in enumerate(colourings):
            _key(figure, one, place * cell, width if wrapped else (place + 1) * cell, top)
        top -= max(keys)
    for row, in_row in enumerate(cells):
        if not beside:
            _key(figure, colourings[row], 0.0, width, top)
            top -= keys[row]
        for place, (one, name) in enumerate(in_row):
            shown = (points["space"] == name).to_numpy()
            middle, bottom = (place + 0.5) * cell, top - title - box
            rectangle = ((middle - box / 2) / width, bottom / height, box / width, box / height)
            axes = figure.add_axes(rectangle, projection="3d")
            _box(axes, points[shown], [one.palette[index] for index in one.indices[shown]], size=box)
            size = 8 if wrapped and narrow else 10
            figure.text(
                middle / width, (bottom + box) / height, name, ha="center", va="bottom", weight="bold", size=size
            )
        top -= box + title
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
    figure, grid = _squares(len(cells), columns=len(titles), narrow=narrow)
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


def rotatable(points: pd.DataFrame, *, colour: Sequence[str]) -> dict[str, Any]:
    """Return what :func:`spaces` draws as plain data, for the script that lets a reader rotate it.

    Args:
        points, colour: as for :func:`spaces`.

    Returns:
        ``colourings``: ``name``, ``kind`` ("class" or "angle"), ``palette`` and, of classes, their ``labels``.
        ``spaces``: ``title``, the coordinates ``x``, ``y`` and ``z`` to four significant digits, ``cube`` (three
        ranges of one length) and ``colours`` (for each colouring the points' places in its palette).
        ``eye``: the direction from which one looks. ``theme``: the templates of plotly for a ``light`` and
        a ``dark`` page, and a selector of dark ``pages``.

    Raises:
        ValueError: as :func:`spaces`.
    """
    colourings = [_colouring(points, column) for column in colour]
    drawn = []
    for name in points["space"].drop_duplicates():
        shown = (points["space"] == name).to_numpy()
        rows = points[shown]
        drawn.append(
            {
                "title": str(name),
                **{axis: [float(f"{value:.4g}") for value in rows[axis]] for axis in "xyz"},
                "cube": [[float(f"{end:.4g}") for end in ends] for ends in _cube(rows)],
                "colours": [one.indices[shown].tolist() for one in colourings],
            }
        )
    return _to_rotate(colourings, drawn)


def _to_rotate(colourings: Sequence["_Colouring"], drawn: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what :func:`rotatable` does for spaces drawn in some colourings."""
    elevation, azimuth = np.deg2rad([ELEVATION, AZIMUTH])
    eye = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
    return {
        "colourings": [
            {"name": one.name, "kind": one.kind, "palette": list(one.palette), "labels": one.labels}
            for one in colourings
        ],
        "spaces": drawn,
        "eye": [round(float(part), 4) for part in eye],
        "theme": {"light": plotly_template(), "dark": plotly_template(dark=True), "pages": ",".join(DARK_PAGES)},
    }


WATCHED = {False: 5, True: 3}
"""Epochs of a training that a drawing shows, evenly spaced among those that are known: wide, and narrow."""


def training_frames(frames: pd.DataFrame, *, colour: Sequence[str], narrow: bool = False) -> Figure:
    """Draw clouds of points at some epochs of a training in boxes: a row per space, a column per epoch.

    The boxes of a space have one scale, which holds all of its epochs.

    Args:
        frames: one row per space, epoch and point: ``space`` (the title of its row; in order of appearance),
            ``epoch``, ``x``, ``y``, ``z``, and the columns that ``colour`` names.
        colour: as for :func:`spaces`; the first one is drawn.
        narrow: fewer epochs, for a phone's width.

    Raises:
        ValueError: as :func:`spaces`.
    """
    one = _colouring(frames, colour[0])
    names, epochs = list(frames["space"].drop_duplicates()), sorted(frames["epoch"].unique())
    columns = min(WATCHED[narrow], len(epochs))
    shown = [epochs[place] for place in np.linspace(0, len(epochs) - 1, columns).round().astype(int)]
    width, left, title = (NARROW if narrow else WIDE), 0.26, 0.24
    box = (width - left) / columns
    key = _key_height(one, width)
    height = key + title + box * len(names)
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")
    _key(figure, one, 0.0, width, height)
    size = 8 if narrow else 10
    for row, name in enumerate(names):
        of_space = (frames["space"] == name).to_numpy()
        cube = _cube(frames[of_space])
        bottom = height - key - title - (row + 1) * box
        figure.text(
            0.13 / width, (bottom + box / 2) / height, name, rotation=90, ha="center", va="center", weight="bold",
            size=size,
        )  # fmt: skip
        for place, epoch in enumerate(shown):
            chosen = of_space & (frames["epoch"] == epoch).to_numpy()
            x = left + place * box
            axes = figure.add_axes((x / width, bottom / height, box / width, box / height), projection="3d")
            _box(axes, frames[chosen], [one.palette[index] for index in one.indices[chosen]], size=box, cube=cube)
            if not row:
                figure.text(
                    (x + box / 2) / width, (bottom + box) / height, f"epoch {epoch:,}", ha="center", va="bottom",
                    size=size,
                )  # fmt: skip
    return figure


def rotatable_frames(frames: pd.DataFrame, *, colour: Sequence[str]) -> dict[str, Any]:
    """Return the whole training of which :func:`training_frames` draws some epochs, to rotate and to play.

    Args:
        frames: as for :func:`training_frames`, with ``state``, the same for all points of a space and epoch: what
            is told of them, as text. Each space has the same epochs, and each epoch the same points in order.
        colour: columns to colour by.

    Returns:
        As :func:`rotatable`, but instead of ``x``, ``y`` and ``z`` each space has ``frames``, base64 of unsigned
        little-endian 16-bit integers (epochs, 3, points) that count along the edges of ``cube`` from 0 at the one
        end to 65535 at the other, and ``states`` (epochs,). ``epochs``: their numbers.

    Raises:
        ValueError: as :func:`spaces`, or spaces with other epochs, or epochs with other points.
    """
    colourings = [_colouring(frames, column) for column in colour]
    epochs = sorted(frames["epoch"].unique().tolist())
    drawn = []
    for name in frames["space"].drop_duplicates():
        shown = (frames["space"] == name).to_numpy()
        rows, cube = frames[shown], np.array(_cube(frames[shown]))
        count, rest = divmod(len(rows), len(epochs))
        in_order = not rest and (rows["epoch"].to_numpy() == np.repeat(epochs, count)).all()
        colours = [one.indices[shown].reshape(len(epochs), count) for one in colourings] if in_order else []
        if not in_order or any((found != found[0]).any() for found in colours):
            raise ValueError(
                f"frames: '{name}' must have the epochs of the others in order, each with the same points"
            )
        places = rows[["x", "y", "z"]].to_numpy().reshape(len(epochs), -1, 3).transpose(0, 2, 1)
        low, high = cube[:, :1], cube[:, 1:]
        counted = ((places - low) / (high - low) * 65535).round().astype("<u2")
        drawn.append(
            {
                "title": str(name),
                "frames": base64.b64encode(counted.tobytes()).decode(),
                "states": rows.drop_duplicates("epoch")["state"].tolist(),
                "cube": cube.tolist(),
                "colours": [found[0].tolist() for found in colours],
            }
        )
    return {**_to_rotate(colourings, drawn), "epochs": epochs}


@dataclass(frozen=True)
class _Colouring:
    """How points are coloured by a column: ``indices``, an integer array (points,), are places in ``palette``."""

    name: str
    kind: str
    palette: tuple[str, ...]
    labels: list[str]
    indices: IntArray


def _colouring(points: pd.DataFrame, column: str) -> _Colouring:
    values = points[column]
    if not np.isfinite(points[["x", "y", "z"]].to_numpy()).all():
        raise ValueError("points: coordinates must be finite")
    if pd.api.types.is_float_dtype(values):
        if not np.isfinite(values).all():
            raise ValueError(f"points: angles of '{column}' must be finite")
        turns = (values.to_numpy() / (2 * np.pi)) % 1
        # A tiny negative angle is a whole turn after rounding: that is angle 0 again.
        return _Colouring(column, "angle", CYCLE, [], (turns * len(CYCLE)).astype(int) % len(CYCLE))
    indices, labels = pd.factorize(values)
    if len(labels) > len(CATEGORIES):
        raise ValueError(f"points: '{column}' has {len(labels)} classes, there are {len(CATEGORIES)} colours")
    return _Colouring(column, "class", CATEGORIES[: len(labels)], [str(label) for label in labels], indices)


def _cube(points: pd.DataFrame) -> list[tuple[float, float]]:
    low, high = points[["x", "y", "z"]].min().to_numpy(), points[["x", "y", "z"]].max().to_numpy()
    # A little more than the points need; a space that collapsed to one point has a box all the same.
    half = 0.53 * float((high - low).max()) or 1.0
    return [(float(middle) - half, float(middle) + half) for middle in (low + high) / 2]


def _box(
    axes: Axes3D,
    points: pd.DataFrame,
    colours: list[str],
    *,
    size: float,
    cube: list[tuple[float, float]] | None = None,
) -> None:
    axes.patch.set_visible(False)
    axes.scatter(
        points["x"], points["y"], points["z"], c=colours, s=2.4 * size**2, lw=0, depthshade=False, rasterized=True
    )
    for axis, ends in zip((axes.xaxis, axes.yaxis, axes.zaxis), cube or _cube(points), strict=True):
        axis.set_major_locator(LinearLocator(5))
        axis.set_tick_params(length=0, labelleft=False, labelbottom=False, labelright=False, labeltop=False)
        axis.set_ticklabels([])
        axis.set_pane_color((1, 1, 1, 0))
        axis.pane.set_edgecolor(GRID)
        axis.line.set(color=GRID, linewidth=0.8)
        axis._axinfo["tick"].update(inward_factor=0, outward_factor=0)
        getattr(axes, f"set_{axis.axis_name}lim")(*ends)
    axes.set_box_aspect((1, 1, 1), zoom=1.08)
    axes.view_init(ELEVATION, AZIMUTH)


_LINE, _LETTER = 0.2, 0.085
"""Height of a line of a key and width of a letter in it, in inches."""


def _key_columns(colouring: _Colouring, width: float) -> int:
    widest = 0.3 + _LETTER * max(map(len, colouring.labels), default=0)
    fitting = max(1, int((width - 0.1) / widest))
    lines = -(-len(colouring.labels) // fitting) or 1
    return -(-len(colouring.labels) // lines) or 1  # lines of even length


def _key_height(colouring: _Colouring, width: float) -> float:
    lines = -(-len(colouring.labels) // _key_columns(colouring, width)) or 2
    return 0.32 + _LINE * lines


def _key(figure: Figure, colouring: _Colouring, left: float, right: float, top: float) -> None:
    """Draw the name of a colouring and what its colours mean between ``left`` and ``right`` (inches)."""
    width, height = figure.get_size_inches()
    figure.text((left + 0.05) / width, (top - 0.05) / height, f"Colour: {colouring.name}", va="top", fontsize=9.5)
    if colouring.kind == "class":
        dots = [Line2D([], [], ls="", marker="o", markersize=6, color=hue) for hue in colouring.palette]
        figure.legend(
            dots, colouring.labels, loc="upper left", bbox_to_anchor=(left / width, (top - 0.22) / height),
            ncols=_key_columns(colouring, right - left), fontsize=9, borderpad=0.2, borderaxespad=0,
            handlelength=0.8, handletextpad=0.4, columnspacing=1.0, labelspacing=0.3,
        )  # fmt: skip
        return
    long = min(2.2, right - left - 0.3)
    axes = figure.add_axes(((left + 0.1) / width, (top - 0.38) / height, long / width, 0.11 / height))
    # Each a little too wide: no seams between them.
    axes.bar(np.arange(len(CYCLE)), 1, width=1.06, color=CYCLE, align="edge", lw=0)
    axes.set(xlim=(0, len(CYCLE)), ylim=(0, 1), yticks=[])
    axes.set_xticks([0, 12, 24], labels=["0", "π", "2π"], fontsize=9)
    axes.tick_params(length=0, pad=3)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _line_styles(betas: Sequence[float]) -> list[dict[str, object]]:
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


def _beyond_attack_limit(axes: Axes) -> None:
    # In L∞ distance 0.5 every image can become uniform grey (Carlini et al. 2019).
    axes.axvspan(0.5, 1.12, color=GRID, alpha=0.55, lw=0)
    axes.set_xlim(0.009, 1.12)


def distance_histograms(distances: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Draw how the distances within each class are distributed, before and after each network.

    Args:
        distances: rows of :func:`isorepro.structure.class_distances` with ``beta``, one seed: ``class``,
            ``input_distance`` and ``representation_distance``.
        narrow: panels below each other.
    """
    classes = list(distances["class"].drop_duplicates())
    betas = sorted(distances["beta"].unique())
    figure, grid = _panels(len(classes), columns=1 if narrow else 2, height=2.6, narrow=narrow)
    top = distances[["input_distance", "representation_distance"]].quantile(0.999).max()
    bins = np.linspace(0, top, 61)
    for axes, name in zip(grid.flat, classes, strict=False):
        panel = distances[distances["class"] == name]
        axes.set_title(str(name).capitalize())
        truth = panel.loc[panel["beta"] == betas[0], "input_distance"]
        axes.hist(truth, bins, density=True, color=MUTED, alpha=0.35, lw=0, label="truth")
        for beta, style in zip(betas, _line_styles(betas), strict=True):
            values = panel.loc[panel["beta"] == beta, "representation_distance"]
            line = {key: style[key] for key in ("color", "linestyle") if key in style}
            axes.hist(values, bins, density=True, histtype="step", lw=1.8, label=beta_name(beta), **line)
        axes.set(xlabel="distance between two points of the ring", ylabel="density", xlim=(0, top))
    _legend(figure, None)
    return figure


def shepard_diagram(distances: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Draw the distance of pairs in the representation against that of the inputs, one panel per network.

    Args:
        distances: as for :func:`distance_histograms`.
        narrow: panels below each other.
    """
    classes = list(distances["class"].drop_duplicates())
    betas = sorted(distances["beta"].unique())
    figure, grid = _panels(len(betas), columns=1 if narrow else len(betas), height=3.4, narrow=narrow)
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
    legend = _legend(figure, 2 if narrow else 3)
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
    figure, grid = _panels(len(labels), columns=1 if narrow else len(labels), height=2.7, narrow=narrow)
    for axes, (measure, label) in zip(grid.flat, labels.items(), strict=False):
        panel = summary[summary["measure"] == measure]
        for beta, style in zip(betas, _line_styles(betas), strict=True):
            line = panel[panel["beta"] == beta]
            style = style | {"marker": "", "label": beta_name(beta)}
            axes.fill_between(line["epoch"], line["low"], line["high"], color=style["color"], alpha=0.16, lw=0)
            axes.plot(line["epoch"], line["mean"], **style)
        # An interval's end can reach 0, which a log axis has no place for.
        axes.set(yscale="log", xlabel="training steps", ylim=_positive_range(panel))
        axes.set_title(label, fontsize=9.5)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    _legend(figure, None)
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
    figure, grid = _panels(len(cells), columns=columns, height=1.75 if narrow else 2.9, narrow=narrow, share=True)
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
    figure, grid = _panels(len(cells), columns=1 if narrow else len(titles), height=2.5, narrow=narrow)
    for axes, (name, measures) in zip(grid.flat, cells, strict=True):
        panel = summary[(summary["dataset"] == name) & summary["measure"].isin(measures)]
        betas = sorted(panel["beta"].unique())
        for beta, style in zip(betas, _line_styles(betas), strict=True):
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
    figure, grid = _panels(len(titles), columns=columns, height=2.1 if narrow else 2.8, narrow=narrow)
    halo = [mpl.patheffects.withStroke(linewidth=2.5, foreground=PAPER)]
    for axes, title in zip(grid.flat, titles, strict=False):
        panel = points[points["space"] == title]
        for name, colour in zip(classes, CATEGORIES, strict=False):
            of_class = panel[panel["class"] == name]
            axes.scatter(of_class["x"], of_class["y"], s=3.5, color=colour, alpha=0.75, lw=0, rasterized=True)
        for name, (x, y) in panel.groupby("class")[["x", "y"]].median().iterrows():
            size = 10 if len(name) <= 2 else 6.5
            axes.text(x, y, name, ha="center", va="center", fontweight="bold", fontsize=size, path_effects=halo)
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
    figure, grid = _panels(len(labels), columns=columns, height=2.25, narrow=narrow)
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
    _legend(figure, 2 if narrow else None)
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
    figure, grid = _panels(len(labels), columns=1 if narrow else 3, height=2.7, narrow=narrow)
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
    _legend(figure, 2 if narrow else None)
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
    figure, grid = _panels(len(cells), columns=columns, height=2.05 if narrow else 2.7, narrow=narrow, share=True)
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
    narrow: bool = False,
) -> Figure:
    """Draw measures of a stack against its levels: a row per measure, a column per kind of points, a line per β.

    Args:
        summary: rows of :func:`isorepro.structure.summary` by points, beta and level.
        labels: measure → label of its axis, in the order of the rows.
        limits: measure → the criterion, drawn as a line.
        narrow: a phone's width.
    """
    kinds = list(summary["points"].drop_duplicates())
    betas = sorted(summary["beta"].unique())
    levels = sorted(summary["level"].unique())
    height = 1.6 if narrow else 1.9
    figure, grid = _panels(len(labels) * len(kinds), columns=len(kinds), height=height, narrow=narrow, share="row")
    cells = [(measure, kind) for measure in labels for kind in kinds]
    for axes, (measure, kind) in zip(grid.flat, cells, strict=True):
        panel = summary[(summary["measure"] == measure) & (summary["points"] == kind)]
        if measure in limits:
            axes.axhline(limits[measure], color=MUTED, lw=1, linestyle=(0, (1, 2)))
        for beta, style in zip(betas, _line_styles(betas), strict=True):
            line = panel[panel["beta"] == beta].sort_values("level")
            axes.fill_between(line["level"], line["low"], line["high"], color=style["color"], alpha=0.16, lw=0)
            axes.plot(line["level"], line["mean"], **style, label=beta_name(beta))
        axes.set_xticks(levels)
        axes.set_xlim(min(levels) - 0.25, max(levels) + 0.25)
        if measure == next(iter(labels)):
            axes.set_title(kind.replace(", ", ",\n"), fontsize=8 if narrow else 10)
        if kind == kinds[0]:
            axes.set_ylabel(labels[measure], fontsize=8 if narrow else 9.5)
    figure.supxlabel("level, coarse to fine", fontsize=10)
    _legend(figure, None)
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
    figure, grid = _panels(len(cells), columns=len(levels), height=height, narrow=narrow, share="row")
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
    _legend(figure, 2 if narrow else None)
    return figure


def distance_matrices(matrices: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Draw matrices of distances between the same points in order, a row per network and a column per level.

    Args:
        matrices: rows of :func:`isorepro.stacks.distance_matrices` with ``beta``, one seed.
        narrow: a phone's width.
    """
    betas, levels = sorted(matrices["beta"].unique()), sorted(matrices["level"].unique())
    cells = [(beta, level) for beta in betas for level in levels]
    figure, grid = _squares(len(cells), columns=len(levels), narrow=narrow)
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
    figure, grid = _panels(len(cells), columns=columns, height=3.0 if narrow else 2.6, narrow=narrow)
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

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by network, level, protocol, attack, beta and epsilon;
            clean rows (ε = 0) are not drawn.
        attacks: (protocol, attack) → title of the row, in their order.
        chances: accuracy of guessing at each level.
        narrow: columns and rows exchanged.
    """
    levels = sorted(summary["level"].unique())
    betas = sorted(summary["beta"].unique())
    cells = [(key, level) for key in attacks for level in levels]
    columns = len(attacks) if narrow else len(levels)
    if narrow:
        cells = [(key, level) for level in levels for key in attacks]
    figure, grid = _panels(len(cells), columns=columns, height=1.9 if narrow else 2.3, narrow=narrow, share=True)
    for axes, ((protocol, attack), level) in zip(grid.flat, cells, strict=True):
        panel = summary[
            (summary["protocol"] == protocol) & (summary["attack"] == attack) & (summary["level"] == level)
        ]
        _beyond_attack_limit(axes)
        axes.axhline(chances[level - 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for network, beta in network_names(panel):
            line = panel[(panel["network"] == network) & (panel["beta"] == beta)]
            style = _network_style(network, beta, betas)
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
    _legend(figure, 2 if narrow else None, last)
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
    figure, grid = _panels(len(cells), columns=columns, height=1.9 if narrow else 2.3, narrow=narrow, share=True)
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
    _legend(figure, 2 if narrow else None)
    return figure


def label_trees(trees: Mapping[str, Sequence[Sequence[Sequence[int]]]], *, narrow: bool = False) -> Figure:
    """Draw hierarchies of classes as trees, the root on top, each node with its classes.

    Args:
        trees: title → hierarchy (:mod:`isorepro.hierarchy`) of at most ten classes.
        narrow: trees below each other.
    """
    figure, grid = _panels(
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
    figure, grid = _panels(3, columns=1 if narrow else 3, height=2.6, narrow=narrow)
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


def _method_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker for each name, the first, what the others are compared with, in ink."""
    markers = itertools.cycle(MARKERS)
    first: dict[str, Any] = {"color": INK, "marker": next(markers), "markerfacecolor": PAPER}
    others = zip(names[1:], itertools.cycle(CATEGORIES), markers, strict=False)
    return {names[0]: first, **{name: {"color": colour, "marker": mark} for name, colour, mark in others}}


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
    for name, look in _method_styles(list(points["method"].drop_duplicates())).items():
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
    _legend(figure, 2 if narrow else 4)
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
    figure, grid = _panels(len(titles), columns=1 if narrow else 2, height=3.4, narrow=narrow)
    looks = _method_styles(list(summary["setting"].drop_duplicates()))
    for axes, (norm, title) in zip(grid.flat, titles.items(), strict=True):
        panel = summary[summary["norm"] == norm]
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for name, look in looks.items():
            line = panel[panel["setting"] == name]
            axes.fill_between(line["epsilon"], line["low"], line["high"], color=look["color"], alpha=0.14, lw=0)
            axes.plot(line["epsilon"], line["mean"], **look, markersize=5, label=name)
        axes.set(ylim=(-0.02, 1.02), xlabel=labels[norm], ylabel="classification rate", title=title)
    grid.flat[0].annotate("chance", (0.0, chance + 0.015), color=MUTED, fontsize=8.5)
    _legend(figure, 2 if narrow else 4)
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
    _legend(figure, 2 if narrow else 5)
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
    _legend(figure, 2 if narrow else None)
    return figure


def _parents(order: Sequence[int], level: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the groups of a level in the order of their first member."""
    return sorted((sorted(group, key=list(order).index) for group in level), key=lambda g: list(order).index(g[0]))


def _inside(region: np.ndarray) -> tuple[int, int] | None:
    """Return the cell of a region farthest from its edge, or None if the region is too small for a label."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    if depth.max() < len(region) / 40:
        return None
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(row), int(column)


def _panels(
    count: int, *, columns: int, height: float, narrow: bool, share: bool | Literal["row"] = False
) -> tuple[Figure, np.ndarray]:
    """Return a figure of ``count`` panels, ``height`` inches each, and their grid; spare ones are hidden.

    ``share``: whether all panels share both axes; with "row" those of a row share the vertical one.
    """
    rows = -(-count // columns)
    figure = Figure(figsize=(NARROW if narrow else WIDE, height * rows + 0.45))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=bool(share), sharey=share)
    for spare in grid.flat[count:]:
        spare.set_visible(False)
    return figure, grid


def _squares(count: int, *, columns: int, narrow: bool) -> tuple[Figure, np.ndarray]:
    """Return a figure of ``count`` panels that will be squares, and their grid, as :func:`_panels`."""
    height = ((NARROW if narrow else WIDE) - 0.3) / columns + 0.35
    figure, grid = _panels(count, columns=columns, height=height, narrow=narrow)
    # The usual layout does not know of squares and may cut titles off.
    figure.set_layout_engine("compressed")
    return figure, grid


def _legend(figure: Figure, columns: int | None, axes: Axes | None = None) -> Legend:
    """Put the names of a panel's lines (the first's) above all panels, in one row or in as many columns as fit."""
    handles, names = (axes or figure.axes[0]).get_legend_handles_labels()
    for count in range(columns or len(names), 0, -1):
        legend = figure.legend(handles, names, loc="outside upper left", ncols=count, fontsize=9)
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    return legend


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
