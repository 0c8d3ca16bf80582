"""Figures with a slider: their data, as plain values for ``explorable.js``, and what is drawn without it."""

import base64
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from isorepro.errors import InputError
from isorepro.robustness import ATTACK_LIMIT, nearest_radius
from isorepro.style import CATEGORIES, FOOLED, GRID, HELD, MUTED, NARROW, WIDE
from isorepro.tables import beta_name

DASHES = "-", (0, (4, 1.5))
"""Lines of the attacks of a protocol, in their order."""

CHANGE = mpl.colors.LinearSegmentedColormap.from_list("change", [FOOLED, "#ffffff", HELD])
"""Colours of a pixel's change: darker, none, lighter."""


def by_weight(
    curves: pd.DataFrame,
    maps: pd.DataFrame | None = None,
    examples: pd.DataFrame | None = None,
    *,
    chance: float,
    at: float,
    start: float = 0.1,
    overview: str = "",
) -> dict[str, Any]:
    """Return curves, maps and images of every weight as plain data, for a slider over the weights.

    Args:
        curves: rows of :func:`isorepro.stats.over_seeds` by protocol, attack, beta and epsilon, with ``mean``,
            ``low`` and ``high`` in [0, 1], cross-entropy (β = 0) and at least one weight among them; two attacks
            for each protocol.
        maps: rows of :func:`isorepro.structure.aligned`, one network for each β: beta, class, x, y, the points of
            all networks in the same order; each map gets a scale of its own.
        examples: rows of one attack of :func:`isorepro.robustness.examples`, one network for each β, the images of
            all networks in the same order.
        chance: the accuracy of guessing.
        at: the radius at which the text under the slider compares.
        start: the weight to begin with; the nearest (by ratio) is taken.
        overview: name of the button that brings the drawing back; without it the drawing is hidden at once.

    Returns:
        ``weights`` (names), ``start`` (the place of the weight shown first), ``protocols`` (name and attacks),
        ``radii``, ``at`` (place of the radius), ``curves`` (for each protocol, attack, weight and radius: mean,
        low, high; without an interval both ends are the mean), and, where given, ``map`` (16-bit coordinates) and
        ``images`` (8-bit pixels, the digits and what they are taken for).

    Raises:
        ValueError: β = 0 is missing, or there is nothing beside it.
        InputError: examples in colour.
    """
    betas = _weights(curves, "curves")
    drawn = curves[curves["epsilon"] > 0]
    radii = sorted(drawn["epsilon"].unique())
    names = {
        protocol: list(group["attack"].drop_duplicates())
        for protocol, group in drawn.groupby("protocol", sort=False)
    }
    cells = {
        key: rows.set_index("epsilon")
        .loc[radii, ["mean", "low", "high"]]
        .ffill(axis=1)
        .round(4)
        .to_numpy()
        .tolist()
        for key, rows in drawn.groupby(["protocol", "attack", "beta"])
    }
    found: dict[str, Any] = {
        "kind": "weight",
        "weights": [beta_name(beta) for beta in betas],
        "start": betas.index(min(betas[1:], key=lambda beta: max(beta / start, start / beta))),
        "protocols": [{"name": name, "attacks": attacks} for name, attacks in names.items()],
        "radii": radii,
        "at": radii.index(nearest_radius(drawn, at)),
        "curves": [
            [[cells[name, attack, beta] for beta in betas] for attack in attacks]
            for name, attacks in names.items()
        ],
        "chance": round(chance, 4),
        "limit": ATTACK_LIMIT,
        "overview": overview,
    }
    if maps is not None:
        classes = sorted(maps["class"].unique())
        found["map"] = {
            "classes": classes,
            "palette": list(CATEGORIES[: len(classes)]),
            "of": pd.Categorical(maps.loc[maps["beta"] == 0, "class"], categories=classes).codes.tolist(),
            "points": [
                _packed(_in_square(maps.loc[maps["beta"] == beta, ["x", "y"]].to_numpy()), "<u2") for beta in betas
            ],
        }
    if examples is not None:
        groups = [examples[examples["beta"] == beta] for beta in betas]
        found["images"] = {
            "side": len(groups[0]["pixels"].iloc[0]),
            "epsilon": f"{groups[0]['epsilon'].iloc[0]:g}",
            "labels": groups[0]["label"].tolist(),
            "taken": [group["predicted"].tolist() for group in groups],
            "pixels": [_packed(_grey(group), "u1") for group in groups],
        }
    return found


def by_radius(attacked: pd.DataFrame) -> dict[str, Any]:
    """Return attacked images and what networks take them for as plain data, for a slider over the radius.

    Args:
        attacked: rows of :func:`isorepro.robustness.ladder` with their ``beta``, one network for each β.

    Returns:
        ``radii`` (numbers), ``labels`` (of the images), ``classes``, ``side`` (pixels), and ``networks``:
        ``name``, ``images`` (8-bit pixels by radius and image) and ``probabilities`` (by radius, image and class).

    Raises:
        ValueError: β = 0 is missing, or there is nothing beside it.
        InputError: images in colour.
    """
    betas = _weights(attacked, "attacked")
    first = attacked[attacked["beta"] == 0]
    radii = sorted(first["epsilon"].unique())
    networks = []
    for beta in betas:
        rows = attacked[attacked["beta"] == beta].sort_values("epsilon", kind="stable")
        probabilities = np.array(rows["probabilities"].tolist()).reshape(
            len(radii), -1, len(rows["classes"].iloc[0])
        )
        networks.append(
            {
                "name": beta_name(beta),
                "images": _packed(_grey(rows), "u1"),
                "probabilities": probabilities.round(3).tolist(),
            }
        )
    return {
        "kind": "radius",
        "radii": radii,
        "labels": first.loc[first["epsilon"] == radii[0], "label"].tolist(),
        "classes": list(first["classes"].iloc[0]),
        "side": len(first["pixels"].iloc[0]),
        "networks": networks,
        "colours": {"darker": FOOLED, "lighter": HELD},
    }


def _grey(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return the images of rows with ``pixels``, (N, side, side); the figures with a slider draw no others."""
    images = np.array(rows["pixels"].tolist())
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise InputError(f"images: a figure with a slider needs square grey ones, not {images.shape[1:]}")
    return images


def _weights(rows: pd.DataFrame, argument: str) -> list[float]:
    betas = sorted(rows["beta"].unique())
    if len(betas) < 2 or betas[0]:
        raise ValueError(f"{argument}: need β = 0 and at least one weight above it")
    return betas


def _in_square(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points (N, 2) moved and scaled into the middle of the unit square, with one scale for both axes."""
    low, high = points.min(0), points.max(0)
    inside: NDArray[np.float64] = (points - (low + high) / 2) / (high - low).max() + 0.5
    return inside


def _packed(values: NDArray[np.float64], kind: str) -> str:
    """Return numbers in [0, 1] as integers of a kind, in base 64."""
    integers = np.rint(values * np.iinfo(kind).max).astype(kind)
    return base64.b64encode(integers.tobytes()).decode()


def weights(
    curves: pd.DataFrame,
    maps: pd.DataFrame,
    examples: pd.DataFrame,
    *,
    chance: float,
    at: float,
    narrow: bool = False,
) -> Figure:
    """Draw what :func:`by_weight` returns, a row for each weight: curves of each protocol, map, images.

    Args:
        curves, maps, examples, chance, at: as for :func:`by_weight`.
        narrow: the map and the images below the curves.
    """
    betas = sorted(curves["beta"].unique())
    protocols = list(curves.loc[curves["epsilon"] > 0, "protocol"].drop_duplicates())
    height = 3.1 if narrow else 1.75
    figure = Figure(figsize=(NARROW if narrow else WIDE, height * len(betas) + 0.4))
    rows = figure.subfigures(len(betas), 1, squeeze=False)[:, 0]
    for row, beta in zip(rows, betas, strict=True):
        row.suptitle(beta_name(beta), x=0.01, ha="left", fontweight="bold", fontsize=10)
        if narrow:
            *panels, chart, pictures = row.subplots(2, 2).flat
        else:
            *panels, chart, pictures = row.subplots(1, 4, width_ratios=[1.2, 1.2, 1, 1.9])
        for axes, protocol in zip(panels, protocols, strict=True):
            _curve(axes, curves[curves["protocol"] == protocol], beta, chance=chance)
            axes.set_title(protocol, fontsize=8, fontweight="normal")
            axes.tick_params(labelsize=7)
            axes.set_xlabel("ε", fontsize=8, labelpad=0)
        panels[0].set_ylabel("classification rate", fontsize=7)
        of_map = maps[maps["beta"] == beta]
        codes = pd.Categorical(of_map["class"], categories=sorted(maps["class"].unique())).codes
        colours = [CATEGORIES[code] for code in codes]
        chart.scatter(of_map["x"], of_map["y"], s=1.2 if narrow else 2, c=colours, lw=0, rasterized=True)
        chart.set(xticks=[], yticks=[])
        chart.set_aspect("equal", adjustable="datalim")
        chart.grid(False)
        chart.spines[:].set(visible=True, color=GRID)
        _strip(pictures, examples[examples["beta"] == beta])
    return figure


def _curve(axes: Axes, curves: pd.DataFrame, beta: float, *, chance: float) -> None:
    """Draw the attacks of one protocol on one weight's networks and, for comparison, on cross-entropy's."""
    drawn = curves[curves["epsilon"] > 0]
    for attack, dash in zip(drawn["attack"].drop_duplicates(), DASHES, strict=False):
        for weight, colour in {0.0: FOOLED, beta: HELD if beta else FOOLED}.items():
            line = drawn[(drawn["attack"] == attack) & (drawn["beta"] == weight)].sort_values("epsilon")
            axes.fill_between(line["epsilon"], line["low"], line["high"], color=colour, alpha=0.16, lw=0)
            axes.plot(line["epsilon"], line["mean"], color=colour, linestyle=dash, lw=1.4)
    axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    axes.axvspan(ATTACK_LIMIT, 1.12, color=GRID, alpha=0.55, lw=0)
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlim=(0.009, 1.12))
    axes.set_xticks([0.01, 0.1, 1], labels=["0.01", "0.1", "1"])
    axes.minorticks_off()


def _strip(axes: Axes, examples: pd.DataFrame) -> None:
    """Draw images in two rows, framed in orange where they are taken for another class."""
    half = -(-len(examples) // 2)
    side = len(examples["pixels"].iloc[0])
    gap = side // 4
    axes.set(xlim=(0, half * (side + gap)), ylim=(2 * (side + 2 * gap), 0), xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for place, row in enumerate(examples.itertuples()):
        left, top = place % half * (side + gap), place // half * (side + 2 * gap) + gap
        axes.imshow(
            np.asarray(row.pixels), cmap="gray", vmin=0, vmax=1, extent=(left, left + side, top + side, top)
        )
        kept = str(row.label) == str(row.predicted)
        words = str(row.label) if kept else f"{row.label} → {row.predicted}"
        axes.text(left + side / 2, top - 2, words, color=HELD if kept else FOOLED, fontsize=6.5, ha="center")
    axes.set(xlim=(0, half * (side + gap)), ylim=(2 * (side + 2 * gap), 0))


def radii(attacked: pd.DataFrame, *, shown: Sequence[float], narrow: bool = False) -> Figure:
    """Draw what :func:`by_radius` returns for the first image: a row for each of some radii.

    Args:
        attacked: as for :func:`by_radius`; cross-entropy and the smallest weight above it are drawn.
        shown: the radii drawn, each measured.
        narrow: for a phone.
    """
    betas = sorted(attacked["beta"].unique())[:2]
    first = attacked[attacked["index"] == attacked["index"].iloc[0]]
    clean = np.asarray(first.loc[first["epsilon"] == 0, "pixels"].iloc[0])
    width = NARROW if narrow else WIDE
    cell = width / (5.4 if narrow else 7.5)
    figure = Figure(figsize=(width, (cell + (0.28 if narrow else 0.2)) * len(shown) + 0.5))
    grid = figure.subplots(len(shown), 6, squeeze=False, width_ratios=[1, 1, 1.3] * 2)
    small = 6 if narrow else 8
    for row, epsilon in zip(grid, shown, strict=True):
        for beta, (picture, change, bars) in zip(betas, row.reshape(2, 3), strict=True):
            found = first[(first["beta"] == beta) & (first["epsilon"] == epsilon)].iloc[0]
            pixels, probabilities = np.asarray(found["pixels"]), np.asarray(found["probabilities"])
            kept = str(found["predicted"]) == str(found["label"])
            picture.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            reach = epsilon or 1.0
            change.imshow(pixels - clean, cmap=CHANGE, vmin=-reach, vmax=reach)
            for axes in (picture, change):
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set(visible=True, color=GRID)
                axes.grid(False)
            colours = [HELD if name == found["label"] else FOOLED for name in found["classes"]]
            places = np.arange(len(probabilities))
            bars.bar(places, probabilities, color=colours, width=0.8)
            bars.set(ylim=(0, 1), yticks=[])
            bars.set_xticks(places, labels=found["classes"], fontsize=small - 1)
            bars.grid(False)
            bars.tick_params(length=0, pad=1)
            bars.set_title(
                f"{found['predicted']}: {probabilities.max():.0%}", fontsize=small, color=HELD if kept else FOOLED
            )
            if axes.get_subplotspec().is_first_row():
                picture.set_title(beta_name(beta), fontsize=small + 1)
                change.set_title("change", fontsize=small, fontweight="normal")
        row[0].set_ylabel(f"ε = {epsilon:g}", fontsize=small)
    return figure
