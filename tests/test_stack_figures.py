"""The figures and tables of the pages on stacks draw and say what their tables hold."""

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from isorepro import scenes, stack_plots, structure_plots, style, tables

CE = tables.beta_name(0)
WIDTHS = pytest.mark.parametrize("narrow", [False, True])


def seeded_summary(rows: list[tuple[object, ...]], columns: list[str]) -> pd.DataFrame:
    """Give each row a mean of its own, none beside its like, with an interval that is not symmetrical."""
    mean = 0.1 + 0.8 * np.random.default_rng(0).permutation(len(rows)) / len(rows)
    table = pd.DataFrame(rows, columns=columns).assign(mean=mean, low=mean - 0.05, high=mean + 0.03, seeds=3)
    # No order of the rows may matter.
    return table.sample(frac=1, random_state=1)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def drawn(axes: Axes) -> dict[str, Line2D]:
    """Return the named lines of a panel."""
    return {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}


def bands(axes: Axes) -> list[list[tuple[float, float, float]]]:
    """Return x, low and high along each band of a panel, in the order drawn."""
    found = []
    for collection in axes.collections:
        x, y = collection.get_paths()[0].vertices.T
        found.append([(place, y[x == place].min(), y[x == place].max()) for place in np.unique(x)])
    return found


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def hue(colour: object) -> str:
    return mpl.colors.to_hex(colour)


def misplaced_texts(figure: Figure) -> list[str]:
    """Return the texts that the figure's edge cuts off and those that lie upon another one."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Axes keep labels for ticks outside their range, which they do not draw.
    unseen: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    unseen |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in texts if text not in unseen}
    width, height = figure.bbox.size
    faults = [
        f"cut off: {text.get_text()}"
        for text, box in boxes.items()
        if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > width + 0.5 or box.y1 > height + 0.5
    ]
    for (one, box), (other, around) in itertools.combinations(boxes.items(), 2):
        across = min(box.x1, around.x1) - max(box.x0, around.x0)
        if across > 1 and min(box.y1, around.y1) - max(box.y0, around.y0) > 1:
            faults.append(f"{one.get_text()} upon {other.get_text()}")
    return faults


def check_layout(figure: Figure, narrow: bool) -> None:
    assert figure.get_size_inches()[0] == (style.NARROW if narrow else style.WIDE)
    assert misplaced_texts(figure) == []


def test_texts_out_of_place_are_found() -> None:
    figure = Figure()
    for text, x in (("one", 0.5), ("two", 0.505), ("edge", 0.99)):
        figure.text(x, 0.5, text)
    assert misplaced_texts(figure) == ["cut off: edge", "one upon two"]


NETWORKS = [("stack", 0.0), ("stack", 0.1), ("stack", 5.0), ("flat", 0.0), ("flat", 0.1), ("flat", 5.0)]
NAMES = [f"{network}, {tables.beta_name(beta)}" for network, beta in NETWORKS]


def test_stacks_come_before_flat_networks_and_small_weights_before_large_ones() -> None:
    table = pd.DataFrame([*reversed(NETWORKS), *NETWORKS], columns=["network", "beta"])
    assert stack_plots.network_names(table) == NETWORKS
    assert stack_plots.network_names(table[table["network"] == "flat"]) == NETWORKS[3:]


def check_networks(lines: dict[str, Line2D]) -> None:
    """Check that the colour of lines says how a network is built, and dashes and marker its β."""
    colours = {name: hue(line.get_color()) for name, line in lines.items()}
    of_kind = {kind: {colours[name] for name in lines if name.startswith(kind)} for kind in ("stack", "flat")}
    assert [len(found) for found in of_kind.values()] == [1, 1]
    assert of_kind["stack"] != of_kind["flat"]
    assert set(colours.values()) <= set(style.SEQUENCE)
    for name, line in lines.items():
        plain = name.endswith(CE)
        assert line.is_dashed() == plain
        assert (hue(line.get_markerfacecolor()) == style.PAPER) == plain
    marks = {
        name: (line.get_marker(), lines[name.replace("stack", "flat")].get_marker())
        for name, line in lines.items()
        if name.startswith("stack")
    }
    assert all(one == other for one, other in marks.values())
    assert len(set(marks.values())) == len(marks)


KINDS = ["training points", "held-out points", "held-out, away from cuts"]
SHARES = {"accuracy": "accuracy", "spearman": "Spearman correlation", "stress": "stress"}


@WIDTHS
def test_measures_of_levels_have_a_row_per_measure_and_a_column_per_kind_of_points(narrow: bool) -> None:
    rows = list(itertools.product(SHARES, KINDS, (0.0, 0.1, 5.0), (1, 2, 3)))
    table = seeded_summary(rows, ["measure", "points", "beta", "level"])
    table = table.sort_values("points", key=lambda names: names.map(KINDS.index), kind="stable")
    with style.house_style():
        figure = stack_plots.level_measures(
            table, labels=SHARES, limits={"accuracy": 0.9, "stress": 0.2}, narrow=narrow
        )
        check_layout(figure, narrow)
    assert titles(figure) == ["training points", "held-out points", "held-out,\naway from cuts", *[""] * 6]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == list(SHARES.values())
    assert {axes.get_ylabel() for place, axes in enumerate(figure.axes) if place % 3} == {""}
    assert legend(figure) == [CE, tables.beta_name(0.1), tables.beta_name(5)]
    for axes, (measure, kind) in zip(figure.axes, itertools.product(SHARES, KINDS), strict=True):
        lines = drawn(axes)
        assert list(lines) == [CE, tables.beta_name(0.1), tables.beta_name(5)]
        for beta, band in zip((0.0, 0.1, 5.0), bands(axes), strict=True):
            of_line = table[(table["measure"] == measure) & (table["points"] == kind) & (table["beta"] == beta)]
            of_line = of_line.set_index("level").loc[[1, 2, 3]]
            line = lines[tables.beta_name(beta)]
            np.testing.assert_allclose(line.get_xydata(), np.c_[[1, 2, 3], of_line["mean"]])
            np.testing.assert_allclose(band, np.c_[[1, 2, 3], of_line[["low", "high"]]])
            assert line.is_dashed() == (beta == 0)
        limits = [line for line in axes.lines if str(line.get_label()).startswith("_")]
        heights = {"accuracy": [0.9], "stress": [0.2]}.get(measure, [])
        assert [set(line.get_ydata()) for line in limits] == [{height} for height in heights]
        assert list(axes.get_xticks()) == [1, 2, 3]
    # What lies beside each other has one vertical axis.
    for row in range(3):
        assert len({axes.get_ylim() for axes in figure.axes[3 * row : 3 * row + 3]}) == 1


def test_measures_of_levels_may_have_a_line_for_each_name() -> None:
    rows = list(itertools.product(["accuracy"], KINDS, ("paper", "other"), (1, 2)))
    table = seeded_summary(rows, ["measure", "points", "variant", "level"])
    with style.house_style():
        figure = stack_plots.level_measures(table, labels={"accuracy": "accuracy"}, limits={}, by="variant")
    assert legend(figure) == list(table["variant"].drop_duplicates())
    for axes, kind in zip(figure.axes, KINDS, strict=True):
        for name, line in drawn(axes).items():
            of_line = table[(table["points"] == kind) & (table["variant"] == name)].sort_values("level")
            np.testing.assert_allclose(line.get_xydata(), of_line[["level", "mean"]])


@WIDTHS
def test_readouts_have_a_row_per_measure_and_a_column_per_level(narrow: bool) -> None:
    labels = {"scaled_stress": "scaled stress", "probe_accuracy": "probe accuracy"}
    rows = [
        (measure, *network, layers, level)
        for measure, network, layers, level in itertools.product(labels, NETWORKS, (4, 8, 12), (1, 2, 3))
    ]
    table = seeded_summary(rows, ["measure", "network", "beta", "layers", "level"])
    with style.house_style():
        figure = stack_plots.readouts(table, labels=labels, narrow=narrow)
        check_layout(figure, narrow)
    assert titles(figure) == ["level 1", "level 2", "level 3", "", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["scaled stress", "", "", "probe accuracy", "", ""]
    assert legend(figure) == NAMES
    for axes, (measure, level) in zip(figure.axes, itertools.product(labels, (1, 2, 3)), strict=True):
        lines = drawn(axes)
        assert list(lines) == NAMES
        check_networks(lines)
        of_panel = table[(table["measure"] == measure) & (table["level"] == level)]
        for (network, beta), line, band in zip(NETWORKS, lines.values(), bands(axes), strict=True):
            of_line = of_panel[(of_panel["network"] == network) & (of_panel["beta"] == beta)]
            of_line = of_line.set_index("layers").loc[[4, 8, 12]]
            np.testing.assert_allclose(line.get_xydata(), np.c_[[4, 8, 12], of_line["mean"]])
            np.testing.assert_allclose(band, np.c_[[4, 8, 12], of_line[["low", "high"]]])
        assert list(axes.get_xticks()) == [4, 8, 12]


def test_a_weight_has_one_marker_with_and_without_flat_networks() -> None:
    rows = [("accuracy", "points", beta, 1) for beta in (0.0, 0.1, 5.0)]
    levels = seeded_summary(rows, ["measure", "points", "beta", "level"])
    read = seeded_summary([("accuracy", *network, 4, 1) for network in NETWORKS], [
        "measure", "network", "beta", "layers", "level",
    ])  # fmt: skip
    labels = {"accuracy": "accuracy"}
    with style.house_style():
        one = drawn(stack_plots.level_measures(levels, labels=labels, limits={}).axes[0])
        other = drawn(stack_plots.readouts(read, labels=labels).axes[0])
    for name, line in one.items():
        assert other[f"flat, {name}"].get_marker() == line.get_marker()


def matrices() -> pd.DataFrame:
    """Distances of six points on a line, ten times as far at level 1 and twice as far at level 2 with β = 2."""
    rows = [
        (beta, level, row, column, factor * abs(row - column), 1 + row // length)
        for beta, factors in ((2.0, (1, 10, 2)), (0.0, (1, 3, 4)))
        for level, (factor, length) in enumerate(zip(factors, (2, 3, 2), strict=True))
        for row, column in itertools.product(range(6), repeat=2)
    ]
    return pd.DataFrame(rows, columns=["beta", "level", "row", "column", "distance", "piece"])


@WIDTHS
def test_distance_matrices_have_a_row_per_network_a_column_per_level_and_lines_at_the_cuts(narrow: bool) -> None:
    with style.house_style():
        figure = stack_plots.distance_matrices(matrices(), narrow=narrow)
        check_layout(figure, narrow)
    *panels, bar = figure.axes
    assert titles(figure)[:6] == ["data", "level 1", "level 2", "", "", ""]
    assert [axes.get_ylabel() for axes in panels] == [CE, "", "", tables.beta_name(2), "", ""]
    assert [axes.get_xlabel() for axes in panels] == [f"largest: {5 * f}" for f in (1, 3, 4, 1, 10, 2)]
    apart = np.abs(np.subtract.outer(range(6), range(6)))
    cuts = [[1.5, 3.5], [2.5], [1.5, 3.5]]
    for axes, factor, places in zip(panels, (1, 3, 4, 1, 10, 2), cuts * 2, strict=True):
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), factor * apart)
        assert image.get_clim() == (0, 5 * factor)
        across = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
        down = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert (across, down) == (places, places)
    assert bar.get_xlabel() == "distance between two points"


@pytest.mark.parametrize("levels", [2, 4, 6])
def test_titles_of_any_number_of_distance_matrices_fit(levels: int) -> None:
    one = matrices().query("level == 1")
    table = pd.concat([one.assign(level=level) for level in range(levels)])
    for narrow in (False, True) if levels < 6 else (False,):
        with style.house_style():
            check_layout(stack_plots.distance_matrices(table, narrow=narrow), narrow)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"), (0.01, "0.01"), (0.72, "0.72"), (1, "1"), (13.894955, "14"), (268.26958, "270"),
        (100, "100"), (1e3, "10³"), (1e-3, "10⁻³"), (0.002, "2·10⁻³"), (3727.59372, "4·10³"), (9600, "10⁴"),
        (996, "10³"), (51794.746792, "5·10⁴"), (719685.673001, "7·10⁵"), (1e7, "10⁷"), (2e-6, "2·10⁻⁶"),
    ],
)  # fmt: skip
def test_numbers_of_any_size_have_a_short_name(value: float, text: str) -> None:
    assert stack_plots._power(value) == text


@WIDTHS
def test_phase_maps_show_each_accuracy_at_its_weight_and_factor(narrow: bool) -> None:
    keys = {("corrected", "PGD"): "PGD, corrected", ("as released", "FGSM"): "FGSM, as released"}
    betas, Ks = [0.1, 19.3, 4e3, 1e7], [0.1, 1.93, 100.0]
    rows = [
        (form, *key, beta, K)
        for form, key, beta, K in itertools.product(("raw", "normalised"), keys, betas, Ks)
    ]  # fmt: skip
    table = seeded_summary(rows, ["form", "protocol", "attack", "beta", "K"])
    with style.house_style():
        table = table.sort_values("form", ascending=False, kind="stable")
        figure = stack_plots.phase_maps(table, titles=keys, narrow=narrow)
        check_layout(figure, narrow)
    *panels, bar = figure.axes
    cells = list(itertools.product(("raw", "normalised"), keys))
    assert [axes.get_title(loc="left") for axes in panels] == [f"{form}: {keys[key]}" for form, key in cells]
    for axes, (form, key) in zip(panels, cells, strict=True):
        of_panel = table[(table["form"] == form) & (table["protocol"] == key[0]) & (table["attack"] == key[1])]
        mean = of_panel.set_index(["beta", "K"])["mean"]
        (image,) = axes.images
        assert image.origin == "lower"
        assert image.get_clim() == (0, 1)
        np.testing.assert_allclose(image.get_array(), [[mean[beta, K] for K in Ks] for beta in betas])
        written = {text.get_position(): text for text in axes.texts}
        assert len(written) == 12
        for (column, row), text in written.items():
            value = mean[betas[row], Ks[column]]
            assert abs(float(text.get_text()) - 100 * value) <= 0.5
            # Readable upon its cell.
            ground = image.cmap(image.norm(value))[:3]
            grey = [np.dot(mpl.colors.to_rgb(colour), [0.2, 0.7, 0.1]) for colour in (text.get_color(), ground)]
            assert abs(grey[0] - grey[1]) > 0.35
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "1.9", "100"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["0.1", "19", "4·10³", "10⁷"]
    assert [axes.get_ylabel() for axes in panels] == (["β"] * 4 if narrow else ["β", "", "β", ""])
    assert [axes.get_xlabel() for axes in panels] == (["K"] * 4 if narrow else ["", "", "K", "K"])
    assert bar.get_xlabel().endswith("%")


ATTACKS = {("as released", "FGSM"): "FGSM, as released", ("corrected", "PGD"): "PGD, corrected"}


def attacked(rows: list[tuple[object, ...]], columns: list[str], radii: list[float]) -> pd.DataFrame:
    """Give each row every attack at every radius, and both protocols without attack."""
    keys = [(*key, epsilon) for key in ATTACKS for epsilon in radii]
    keys += [(protocol, "no attack", 0.0) for protocol, _ in ATTACKS]
    everything = [(*row, *key) for row in rows for key in keys]
    return seeded_summary(everything, [*columns, "protocol", "attack", "epsilon"]).sort_values(
        "epsilon", kind="stable"
    )


@WIDTHS
def test_curves_of_levels_have_flat_networks_at_the_finest_level_only(narrow: bool) -> None:
    rows = [
        (*network, level) for network in NETWORKS for level in (1, 2, 3) if level == 3 or network[0] == "stack"
    ]
    radii, chances = [0.01, 0.05, 0.2, 1.0], [0.5, 0.3, 0.1]
    table = attacked(rows, ["network", "beta", "level"], radii)
    with style.house_style():
        figure = stack_plots.level_curves(table, attacks=ATTACKS, chances=chances, narrow=narrow)
        check_layout(figure, narrow)
    cells = list(itertools.product((1, 2, 3), ATTACKS) if narrow else itertools.product(ATTACKS, (1, 2, 3)))
    cells = [(key, level) for level, key in cells] if narrow else cells
    if narrow:
        assert titles(figure) == [f"{ATTACKS[key]}\nlevel {level}" for key, level in cells]
        assert [axes.get_ylabel() for axes in figure.axes] == ["classification rate", ""] * 3
    else:
        assert titles(figure) == ["level 1", "level 2", "level 3", "", "", ""]
        assert [axes.get_ylabel() for axes in figure.axes[::3]] == [
            f"{title}\nclassification rate" for title in ATTACKS.values()
        ]
    assert legend(figure) == NAMES
    for axes, (key, level) in zip(figure.axes, cells, strict=True):
        lines = drawn(axes)
        expected = NETWORKS if level == 3 else NETWORKS[:3]
        assert list(lines) == NAMES[: len(expected)]
        if level == 3:
            check_networks(lines)
        of_panel = table[(table["protocol"] == key[0]) & (table["attack"] == key[1]) & (table["level"] == level)]
        for (network, beta), line, band in zip(expected, lines.values(), bands(axes), strict=True):
            of_line = of_panel[(of_panel["network"] == network) & (of_panel["beta"] == beta)]
            of_line = of_line.set_index("epsilon").loc[radii]
            np.testing.assert_allclose(line.get_xydata(), np.c_[radii, of_line["mean"]])
            np.testing.assert_allclose(band, np.c_[radii, of_line[["low", "high"]]])
        (chance,) = (line for line in axes.lines if str(line.get_label()).startswith("_"))
        assert set(chance.get_ydata()) == {chances[level - 1]}
        assert axes.get_xscale() == "log"
        assert axes.get_ylim() == (-0.02, 1.02)


def test_curves_of_networks_built_alike_have_a_colour_for_each_weight() -> None:
    betas = [0.0, 1.0, 1e4, 1e8]
    table = attacked([("stack", beta, 1) for beta in betas], ["network", "beta", "level"], [0.01, 0.2])
    with style.house_style():
        figure = stack_plots.level_curves(table, attacks=ATTACKS, chances=[0.1])
    assert legend(figure) == ["CE", *(tables.beta_name(beta) for beta in betas[1:])]
    assert len({line.get_color() for line in drawn(figure.axes[0]).values()}) == len(betas)


TREES = {"given": "given tree", "learnt": "learnt tree", "random": "random tree"}


@WIDTHS
@pytest.mark.parametrize("uniform", [False, True])
def test_tree_distances_start_without_attack_at_the_left_edge(narrow: bool, uniform: bool) -> None:
    names = [NETWORKS[place] for place in (0, 1, 3, 4)]
    measures = ("error_distance", "uniform_distance", "error")
    rows = [(measure, tree, *network) for measure, tree, network in itertools.product(measures, TREES, names)]
    radii = [0.03, 0.12, 0.6]
    table = attacked(rows, ["measure", "tree", "network", "beta"], radii)
    # What another measure holds must not be drawn.
    table.loc[table["measure"] == "error", ["mean", "low", "high"]] += 100
    with style.house_style():
        figure = stack_plots.tree_distances(
            table, measure="error_distance", attacks=ATTACKS, titles=TREES, label="edges", uniform=uniform,
            narrow=narrow,
        )  # fmt: skip
        check_layout(figure, narrow)
    cells = [(key, tree) for tree in TREES for key in ATTACKS]
    if not narrow:
        cells = [(key, tree) for key in ATTACKS for tree in TREES]
        assert titles(figure) == [*TREES.values(), "", "", ""]
        assert [axes.get_ylabel() for axes in figure.axes[::3]] == [f"{name}\nedges" for name in ATTACKS.values()]
    else:
        assert titles(figure) == [f"{ATTACKS[key]}\n{TREES[tree]}" for key, tree in cells]
        assert [axes.get_ylabel() for axes in figure.axes] == ["edges", ""] * 3
    labels = ["drawn uniformly"] * uniform + [
        f"{network}, {tables.beta_name(beta)}" for network, beta in names
    ]  # fmt: skip
    assert legend(figure) == labels
    for axes, (key, tree) in zip(figure.axes, cells, strict=True):
        lines = drawn(axes)
        assert list(lines) == labels
        shown = (table["protocol"] == key[0]) & table["attack"].isin([key[1], "no attack"])
        of_tree = table[shown & (table["tree"] == tree)]
        if uniform:
            of_measure = of_tree[of_tree["measure"] == "uniform_distance"]
            level = [of_measure.loc[of_measure["epsilon"] == epsilon, "mean"] for epsilon in (0.0, *radii)]
            assert [len(four) for four in level] == [4] * 4
            dotted = lines.pop("drawn uniformly")
            np.testing.assert_allclose(
                dotted.get_xydata(), np.c_[[0.01, *radii], [sum(four) / 4 for four in level]]
            )
        check_networks(lines)
        of_measure = of_tree[of_tree["measure"] == "error_distance"]
        for (network, beta), line, band in zip(names, lines.values(), bands(axes), strict=True):
            of_line = of_measure[(of_measure["network"] == network) & (of_measure["beta"] == beta)]
            of_line = of_line.set_index("epsilon").loc[[0.0, *radii]]
            np.testing.assert_allclose(line.get_xydata(), np.c_[[0.01, *radii], of_line["mean"]])
            np.testing.assert_allclose(band, np.c_[[0.01, *radii], of_line[["low", "high"]]])
        assert axes.get_xticks() == pytest.approx([0.01, 0.03, 0.1, 0.3])
    # Panels share their axis, whose labels stand below the last row.
    ticks = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert ticks == ["none", "0.03", "0.1", "0.3"]


@pytest.mark.parametrize(
    ("radii", "ticks"),
    [([0.0774, 0.2154], ["none", "0.1"]), ([0.01, 0.4], ["none", "0.03", "0.1", "0.3"]), ([0.5], ["none"])],
)
def test_ticks_of_tree_distances_lie_between_the_radii(radii: list[float], ticks: list[str]) -> None:
    table = attacked([("error", "given", "stack", 0.0)], ["measure", "tree", "network", "beta"], radii)
    for narrow in (False, True):
        with style.house_style():
            figure = stack_plots.tree_distances(
                table, measure="error", attacks=ATTACKS, titles=TREES, label="edges", uniform=False, narrow=narrow
            )
            check_layout(figure, narrow)
        assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ticks


HIERARCHIES = {
    "given": [[[0, 1, 2], [3, 4, 5, 6]], [[0, 1], [2], [3, 4], [5, 6]]],
    # Its groups are not in the order of their classes, and those of one parent are not beside each other.
    "other": [[[5, 0, 3], [1, 4, 2, 6]], [[4, 6], [3], [1, 2], [0, 5]]],
    "deep": [[[0, 6], [1, 2, 3, 4, 5]], [[5, 2], [6], [1, 3, 4], [0]], [[1], [2, 5], [4, 3], [6], [0]]],
}


@WIDTHS
def test_trees_have_every_group_above_its_classes_and_no_edges_that_cross(narrow: bool) -> None:
    with style.house_style():
        figure = stack_plots.label_trees(HIERARCHIES, narrow=narrow)
        check_layout(figure, narrow)
    assert titles(figure) == list(HIERARCHIES)
    for axes, levels in zip(figure.axes, HIERARCHIES.values(), strict=True):
        everything = [[range(7)], *levels, [[c] for c in range(7)]]
        expected = sorted("".join(map(str, sorted(group))) for level in everything for group in level)
        nodes = {text.get_position(): text.get_text() for text in axes.texts}
        assert len(nodes) == len(axes.texts)
        assert sorted(nodes.values()) == expected
        # The root on top, one row for each level.
        heights = sorted({y for _, y in nodes}, reverse=True)
        for height, level in zip(heights, everything, strict=True):
            in_row = {name for (_, y), name in nodes.items() if y == height}
            assert in_row == {"".join(map(str, sorted(group))) for group in level}
        leaves = {name: x for (x, y), name in nodes.items() if y == heights[-1]}
        for (x, _), name in nodes.items():
            assert x == pytest.approx(sum(leaves[c] for c in name) / len(name))
        # Each node but the root hangs on the one group above it that holds its classes.
        edges = {tuple(line.get_xydata()[1]): tuple(line.get_xydata()[0]) for line in axes.lines}
        assert len(edges) == len(axes.lines)
        assert edges.keys() == nodes.keys() - {(3.0, heights[0])}
        for child, parent in edges.items():
            assert set(nodes[child]) <= set(nodes[parent])
            assert heights.index(child[1]) == heights.index(parent[1]) + 1
        for height in heights[1:]:
            row = sorted(child for child in edges if child[1] == height)
            above = [edges[child][0] for child in row]
            assert above == sorted(above)
        for text in axes.texts:
            leaf = text.get_position()[1] == heights[-1]
            assert text.get_color() == (style.CATEGORIES[int(text.get_text())] if leaf else style.INK)


@WIDTHS
def test_more_than_four_spaces_are_in_rows_of_three_in_the_first_colouring(narrow: bool) -> None:
    rng = np.random.default_rng(0)
    names = [f"space {number}" for number in range(5)]
    points = pd.DataFrame(rng.normal(size=(40, 3)), columns=["x", "y", "z"])
    points["space"] = np.repeat(names, 8)
    points["piece"] = np.repeat(list("12345"), 8)
    points["turn"] = rng.uniform(0, 6, 40)
    with style.house_style():
        figure = scenes.spaces(points, colour=["piece", "turn"], narrow=narrow)
        check_layout(figure, narrow)
    # All are boxes: the key of the angle would be an axis of its own.
    assert [axes.name for axes in figure.axes] == ["3d"] * 5
    bounds = [axes.get_position().bounds for axes in figure.axes]
    left, bottom, *_ = zip(*bounds, strict=True)
    assert left[:2] == pytest.approx(left[3:])
    assert left[0] < left[1] < left[2]
    assert [round(y, 6) for y in bottom] == [round(bottom[0], 6)] * 3 + [round(bottom[3], 6)] * 2
    assert bottom[3] < bottom[0]
    texts = {text.get_text(): text.get_position() for text in figure.texts}
    assert set(texts) == {*names, "Colour: piece"}
    boxes = zip(names, style.CATEGORIES[:5], bounds, figure.axes, strict=True)
    for name, colour, (x, y, width, height), axes in boxes:
        assert texts[name][0] == pytest.approx(x + width / 2)
        assert texts[name][1] == pytest.approx(y + height)
        (cloud,) = axes.collections
        shown = points[points["space"] == name]
        np.testing.assert_allclose(np.array(cloud._offsets3d).T, shown[["x", "y", "z"]])
        assert {hue(shade) for shade in cloud.get_facecolor()} == {colour}
    assert legend(figure) == list("12345")


@WIDTHS
def test_four_spaces_keep_every_colouring(narrow: bool) -> None:
    points = pd.DataFrame(
        {"space": list("abcd"), "x": 0.0, "y": 0.0, "z": 0.0, "piece": "1", "other": list("wxyz")}
    )
    with style.house_style():
        figure = scenes.spaces(points, colour=["piece", "other"], narrow=narrow)
    assert len(figure.axes) == 8


@WIDTHS
def test_planes_of_classes_say_what_their_angle_is(narrow: bool) -> None:
    rng = np.random.default_rng(0)
    cells = itertools.product(("data", CE, tables.beta_name(10)), ("level 1, piece 1", "level 2, piece 1"))
    points = pd.concat(
        pd.DataFrame(rng.uniform(0, 6, (5, 3)), columns=["x", "y", "angle"]).assign(
            **{"space": space, "class": name}
        )
        for space, name in cells
    )
    with style.house_style():
        figure = structure_plots.class_planes(points, angle="angle around the tube", narrow=narrow)
        check_layout(figure, narrow)
        usual = structure_plots.class_planes(points, narrow=narrow)
    assert figure.axes[-1].get_xlabel() == "angle around the tube"
    assert usual.axes[-1].get_xlabel() == "angle along the ring"
    assert [axes.get_title() for axes in figure.axes[:3]] == ["data", CE, tables.beta_name(10)]


def test_changes_are_told_in_words_and_only_measurable_ones_have_a_direction() -> None:
    told = tables.change
    assert told(0.123, 0.05, 0.2) == "higher by 0.12 (95 % interval 0.05 to 0.20)"
    assert told(-0.123, -0.2, -0.05) == "lower by 0.12 (95 % interval −0.20 to −0.05)"
    assert told(0.1, -0.05, 0.2) == "not measurably different (95 % interval −0.05 to 0.20)"
    assert told(0.1, 0.0, 0.2) == "not measurably different (95 % interval 0.00 to 0.20)"
    assert told(-0.1, -0.2, 0.0) == "not measurably different (95 % interval −0.20 to 0.00)"
    assert told(-0.123, -0.2, -0.05, percent=True) == "lower by 12.3 points (95 % interval −20.0 to −5.0)"
    assert told(0.01, -0.05, 0.2, percent=True) == "not measurably different (95 % interval −5.0 to 20.0 points)"
    nan = float("nan")
    assert told(0.3, nan, nan) == "higher by 0.30 with a single seed, so without an interval"
    assert told(-0.3, nan, nan, percent=True) == (
        "lower by 30.0 points with a single seed, so without an interval"
    )


def test_shares_are_in_percent() -> None:
    assert tables.percent(0.1234, 0.1, 0.15) == "12.3 (10 to 15)"
    assert tables.percent(1.0, float("nan"), float("nan")) == "100.0"


def test_spaces_of_levels_hold_the_data_once_for_each_level_and_then_each_network() -> None:
    rows = [
        (beta, 4, level, of, piece, 10 * beta + level, of, piece, 0.1 * (11 - piece), 0.2 * piece)
        for beta in (5.0, 0.0)
        for level, of in ((0, 1), (0, 2), (1, 1), (2, 2))
        for piece in (10, 9, 1)
    ]
    columns = ["beta", "seed", "level", "of", "piece", "x", "y", "z", "angle", "angle_2"]
    table = tables.level_spaces(pd.DataFrame(rows, columns=columns))
    spaces = [f"{name}, level {level}" for name in ("Data", CE, tables.beta_name(5)) for level in (1, 2)]
    assert table["space"].tolist() == [name for name in spaces for _ in range(3)]
    # Pieces are classes to colour, in the order of their numbers.
    assert table["piece"].tolist() == ["1", "9", "10"] * 6
    # Of the data those of the network without the term, which are the others' too.
    assert table["x"].tolist() == [x for x in (0, 0, 1, 2, 51, 52) for _ in range(3)]
    assert table["y"].tolist() == [of for of in (1, 2) * 3 for _ in range(3)]
    assert table["angle around the axis"].tolist() == pytest.approx([1.0, 0.2, 0.1] * 6)
    assert table["angle around the tube"].tolist() == pytest.approx([0.2, 1.8, 2.0] * 6)


def test_planes_of_pieces_hold_the_data_once() -> None:
    rows = [
        (beta, 4, level, mapped, 10 * beta + level + 0.5 * mapped, place, 0.1 * place)
        for beta in (5.0, 0.0)
        for level in (2, 1)
        for mapped in (True, False)
        for place in (3, 1, 2)
    ]
    columns = ["beta", "seed", "level", "mapped", "x", "y", "angle"]
    table = tables.piece_planes(pd.DataFrame(rows, columns=columns))
    found = list(table[["space", "class", "x"]].drop_duplicates().itertuples(index=False, name=None))
    assert found == [
        (space, f"level {level}, piece 1", x + level)
        for space, x in (("data", 0), (CE, 0.5), (tables.beta_name(5), 50.5))
        for level in (1, 2)
    ]
    assert table["y"].tolist() == [3, 1, 2] * 6
    assert table["angle"].tolist() == pytest.approx([0.3, 0.1, 0.2] * 6)


def levels_summary() -> pd.DataFrame:
    """Means that tell their row: 0.1 for the place of the measure, 0.01 for the level; 0.5 for training points."""
    rows = [
        (measure, points, "raw", 1.0, beta, level, start + 0.1 * place + 0.01 * level + 0.001 * beta)
        for points, start in (("training points", 0.5), ("held-out points", 0.0))
        for beta in (0.0, 5.0)
        for level in (1, 2)
        for place, measure in enumerate(("spearman", "pearson", "stress", "accuracy"))
    ]
    table = pd.DataFrame(rows, columns=["measure", "points", "form", "K", "beta", "level", "mean"])
    return table.assign(low=np.nan, high=np.nan)


def test_levels_table_has_a_row_per_points_measure_and_level() -> None:
    table = tables.levels_table(levels_summary())
    assert list(table.columns) == ["points", "measure", "level", CE, tables.beta_name(5)]
    found = {tuple(row[:3]): tuple(row[3:]) for row in table.to_numpy().tolist()}
    # Pearson's correlation is left to the file.
    assert found == {
        (points, name, level): (
            f"{base + 0.1 * place + 0.01 * level:.3f}",
            f"{base + 0.1 * place + 0.01 * level + 0.005:.3f}",
        )
        for points, base in (("training points", 0.5), ("held-out points", 0.0))
        for place, name in ((0, "Spearman correlation"), (2, "stress"), (3, "accuracy"))
        for level in (1, 2)
    }
    assert len(table) == 12


def test_a_measure_table_of_several_columns_keeps_their_order() -> None:
    summary = levels_summary()
    table = tables.measure_table(summary, ["level", "points"])
    assert list(table.columns) == ["measure", "level", "points", CE, tables.beta_name(5)]
    first = summary[summary["beta"] == 0]
    assert list(zip(table["level"], table["points"], strict=True)) == list(
        zip(first["level"], first["points"], strict=True)
    )
    one = table[
        (table["measure"] == "Pearson correlation")
        & (table["level"] == 2)
        & (table["points"] == "held-out points")
    ]
    assert one[[CE, tables.beta_name(5)]].to_numpy().tolist() == [["0.120", "0.125"]]


def test_verdict_table_counts_levels() -> None:
    verdicts = pd.DataFrame(
        [("training points", 0.0, 3, 2, 0, "does not hold"), ("held-out points", 5.0, 4, 4, 1, "holds down to …")],
        columns=["points", "beta", "levels", "cut", "kept", "verdict"],
    )
    assert tables.verdict_table(verdicts).to_dict("list") == {
        "points": ["training points", "held-out points"],
        "network": [CE, tables.beta_name(5)],
        "levels cut": ["2 of 3", "4 of 4"],
        "cut and kept": ["0 of 3", "1 of 4"],
        "claim C3": ["does not hold", "holds down to …"],
    }


def test_readout_effects_have_a_column_per_weight() -> None:
    rows = [
        ("spearman", 0.0, 1, -0.25, -0.5, 0.0),
        ("probe_accuracy", 0.0, 1, 0.5, np.nan, np.nan),
        ("spearman", 5.0, 1, 0.125, 0.1, 0.15),
        ("probe_accuracy", 5.0, 1, 0.0, -1.0, 1.0),
    ]
    effects = pd.DataFrame(rows, columns=["measure", "beta", "level", "mean", "low", "high"])
    assert tables.readout_effect_table(effects).to_dict("list") == {
        "measure": ["Spearman correlation", "probe accuracy"],
        "level": [1, 1],
        f"stack − flat, {CE}": ["−0.250 (−0.500 to 0.000)", "0.500"],
        f"stack − flat, {tables.beta_name(5)}": ["0.125 (0.100 to 0.150)", "0.000 (−1.000 to 1.000)"],
    }


def test_tree_effects_are_in_the_order_of_the_measures_and_the_trees() -> None:
    keys = [("corrected", "PGD", 0.1), ("as released", "FGSM", 0.1)]
    keys += [(protocol, "no attack", 0.0) for protocol in ("corrected", "as released")]
    rows = []
    for (protocol, attack, epsilon), (place, measure), (number, tree) in itertools.product(
        keys, enumerate(("error", "all_distance", "relative_distance")), enumerate(("random", "learnt", "given"))
    ):
        mean = 0.1 * place + 0.01 * number - (0.5 if attack == "PGD" else 0.0)
        beyond = (np.nan,) * 3 if tree == "random" else (mean - 1, mean - 2, np.nan if tree == "given" else mean)
        rows.append((tree, protocol, attack, epsilon, measure, mean, mean - 0.1, mean + 0.1, *beyond))
    columns = ["tree", "protocol", "attack", "epsilon", "measure", "mean", "low", "high"]
    effects = pd.DataFrame(rows, columns=[*columns, "beyond", "beyond_low", "beyond_high"])
    titles = {"relative_distance": "edges / uniform", "error": "share of errors"}
    table = tables.tree_effect_table(effects, titles)
    assert list(table.columns) == ["attack", "tree", "edges / uniform", "share of errors"]
    # Without attack the two protocols are one and the same.
    attacks = ("no attack", "FGSM, as released", "PGD, corrected")
    rows = table[["attack", "tree"]].itertuples(index=False, name=None)
    assert list(rows) == list(itertools.product(attacks, ("given", "learnt", "random")))
    texts = table.set_index(["attack", "tree"])
    assert texts.loc[("no attack", "random"), "edges / uniform"] == "0.20 (0.10 to 0.30)"
    assert texts.loc[("PGD, corrected", "learnt"), "share of errors"] == "−0.49 (−0.59 to −0.39)"


def test_variant_table_has_the_coarser_levels_in_short_and_attacks_on_the_finest() -> None:
    nan = float("nan")
    rows = []
    for place, name in enumerate(("second", "first")):
        for level in (1, 2):
            clean = 0.9 - 0.1 * level + 0.01 * place
            rows += [
                (name, level, "as released", "no attack", 0.0, 0.0, 0.0, 0.0),
                (name, level, "corrected", "no attack", 0.0, clean, clean - 0.02, clean + 0.03),
                (name, level, "corrected", "PGD", 0.1, 0.1 * level, 0.05, 0.3),
                (name, level, "as released", "FGSM", 0.1, 0.2 * level, nan, nan),
            ]
    columns = ["variant", "level", "protocol", "attack", "epsilon", "mean", "low", "high"]
    table = tables.variant_table(pd.DataFrame(rows, columns=columns))
    assert list(table.columns) == ["variant", "level 1", "level 2", "PGD, corrected", "FGSM, as released"]
    assert table.to_numpy().tolist() == [
        ["second", "80.0", "70.0", "20.0 (5 to 30)", "40.0"],
        ["first", "81.0", "71.0", "20.0 (5 to 30)", "40.0"],
    ]


def test_gradient_table_is_in_percent_with_a_row_per_network_and_level() -> None:
    values = {"agreement": 0.5, "single": 0.25, "clean": 0.9, "summed": 0.125}
    rows = [
        (measure, beta, level, value / level, value / level - 0.012, value / level + 0.022 + 0.001 * beta)
        for beta in (5.0, 0.0)
        for level in (1, 2)
        for measure, value in values.items()
    ]
    table = tables.gradient_table(pd.DataFrame(rows, columns=["measure", "beta", "level", "mean", "low", "high"]))
    assert list(table.columns) == [
        "network",
        "level",
        "no attack",
        "gradients summed",
        "the level's own",
        "equal signs",
    ]
    # The name of the columns would become one more of them on the page.
    assert table.columns.name is None
    five = tables.beta_name(5)
    assert table[["network", "level"]].to_numpy().tolist() == [[five, 1], [five, 2], [CE, 1], [CE, 2]]
    assert table.iloc[1, 2:].tolist() == [
        "45.0 (44 to 48)",
        "6.2 (5 to 9)",
        "12.5 (11 to 15)",
        "25.0 (24 to 28)",
    ]
    assert table.iloc[2, 4] == "25.0 (24 to 27)"
