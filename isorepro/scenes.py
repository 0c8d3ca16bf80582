"""Clouds of points in boxes, drawn, and as data for the script that lets a reader rotate and play them."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LinearLocator
from mpl_toolkits.mplot3d import Axes3D
from numpy.typing import NDArray

from isorepro.style import CATEGORIES, CYCLE, DARK_PAGES, GRID, NARROW, WIDE, fix_panels, plotly_template

IntArray = NDArray[np.int_]
"""An array of integers."""

ELEVATION, AZIMUTH = 24, -62
"""Degrees from which boxes are seen: neither of two linked rings hides the other."""


def spaces(points: pd.DataFrame, *, colour: Sequence[str], narrow: bool = False) -> Figure:
    """Draw clouds of points in boxes, one box per space and colouring.

    The three axes of a box have one scale; boxes of different spaces do not share theirs. More than four spaces
    are drawn in rows of three, in the first colouring alone.

    Args:
        points: one row per point: ``space`` (the title of its box; spaces in order of appearance), ``x``, ``y``,
            ``z``, and the columns that ``colour`` names.
        colour: columns to colour by: one of floats is an angle in radians, any other a class; classes get their
            colours in sorted order.
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
    fix_panels(figure)
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
    fix_panels(figure)
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
    # Sorted: figures whose points come in another order give a class the same colour.
    indices, labels = pd.factorize(values, sort=True)
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
