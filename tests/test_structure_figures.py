"""The figures and tables of the pages on structure draw and say what their tables hold."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from isorepro import structure_plots, style, tables

CE = tables.beta_name(0)


def seeded_summary(rows: list[tuple[object, ...]], columns: list[str]) -> pd.DataFrame:
    """Give each row a mean of its own with an interval of ± 0.01."""
    mean = 0.1 + 0.05 * np.arange(len(rows))
    return pd.DataFrame(rows, columns=columns).assign(mean=mean, low=mean - 0.01, high=mean + 0.01, seeds=3)


def drawn(figure: Figure, place: int) -> dict[str, np.ndarray]:
    """Return the named lines of a panel."""
    lines = figure.axes[place].lines
    return {
        str(line.get_label()): line.get_xydata() for line in lines if not str(line.get_label()).startswith("_")
    }


def networks(*settings: tuple[str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(settings, columns=["form", "K", "beta"])


def test_networks_are_named_by_what_tells_them_apart() -> None:
    beta = tables.beta_name
    assert list(tables.network_names(networks(("raw", 10, 0.0), ("raw", 10, 0.1)))) == ["CE", beta(0.1)]
    forms = networks(("raw", 10, 0.0), ("raw", 10, 1.0), ("normalised", 1, 1e6))
    assert list(tables.network_names(forms)) == ["CE", f"raw, {beta(1)}", f"normalised, {beta(1e6)}"]
    scales = networks(("normalised", 0.1, 1.0), ("normalised", 1, 1.0))
    assert [name.split(",")[0] for name in tables.network_names(scales)] == [
        "K\u00a0=\u00a00.1",
        "K\u00a0=\u00a01",
    ]
    everything = pd.concat([forms, scales], ignore_index=True).drop_duplicates()
    assert tables.network_names(everything).is_unique


def test_large_and_small_weights_are_named_by_powers_of_ten() -> None:
    names = [tables.beta_name(beta).split("\u00a0")[-1] for beta in (0.001, 0.1, 100, 1e4, 1e8, 1e-5, 20000.0)]
    assert names == ["0.001", "0.1", "100", "10⁴", "10⁸", "10⁻⁵", "20000"]


def distances() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    tables = [
        pd.DataFrame(
            {
                "beta": beta,
                "class": name,
                "input_distance": x,
                "representation_distance": x * (0.2 if beta == 0 else 1),
            }
        )
        for beta, name in itertools.product((0.0, 1.0), ("first ring", "second ring"))
        for x in [rng.uniform(0, 2, 200)]
    ]
    return pd.concat(tables, ignore_index=True)


@pytest.mark.parametrize("narrow", [False, True])
def test_histograms_have_truth_and_every_network_for_each_class(narrow: bool) -> None:
    with style.house_style():
        figure = structure_plots.distance_histograms(distances(), narrow=narrow)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["First ring", "Second ring"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["truth", CE, tables.beta_name(1.0)]
    for axes in figure.axes:
        bars = np.array([patch.get_height() * patch.get_width() for patch in axes.patches[:60]])
        assert bars.sum() == pytest.approx(1)
        assert axes.get_xlabel()
        assert axes.get_ylabel() == "density"


@pytest.mark.parametrize("narrow", [False, True])
def test_shepard_diagrams_hold_every_pair_and_the_diagonal(narrow: bool) -> None:
    table = distances()
    with style.house_style():
        figure = structure_plots.shepard_diagram(table, narrow=narrow)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [CE, tables.beta_name(1.0)]
    for axes, beta in zip(figure.axes, (0.0, 1.0), strict=True):
        points = np.concatenate([np.asarray(found.get_offsets()) for found in axes.collections])
        expected = table.loc[table["beta"] == beta, ["input_distance", "representation_distance"]].to_numpy()
        np.testing.assert_allclose(np.sort(points, 0), np.sort(expected, 0))
        (diagonal,) = axes.lines
        assert (diagonal.get_xdata() == diagonal.get_ydata()).all()


@pytest.mark.parametrize("narrow", [False, True])
def test_training_curves_draw_each_measure_on_a_log_axis(narrow: bool) -> None:
    rows = list(itertools.product(("a", "b"), (0.0, 1.0), (100, 200, 300)))
    table = seeded_summary(rows, ["measure", "beta", "epoch"])
    table.loc[0, "low"] = -0.5  # an interval may reach below what a log axis has
    with style.house_style():
        figure = structure_plots.training_curves(table, labels={"b": "B", "a": "A"}, narrow=narrow)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["B", "A"]
    for axes, measure in zip(range(2), ("b", "a"), strict=True):
        for beta in (0.0, 1.0):
            expected = table[(table["measure"] == measure) & (table["beta"] == beta)]
            np.testing.assert_allclose(drawn(figure, axes)[tables.beta_name(beta)], expected[["epoch", "mean"]])
        assert figure.axes[axes].get_yscale() == "log"
        low, high = figure.axes[axes].get_ylim()
        of_measure = table.loc[table["measure"] == measure, "mean"]
        assert 0 < low < of_measure.min() <= of_measure.max() < high


def test_training_curves_of_names_have_a_line_for_each_and_a_reference() -> None:
    rows = list(itertools.product(("a", "b"), ("one", "other"), (0, 100)))
    table = seeded_summary(rows, ["measure", "variant", "epoch"])
    with style.house_style():
        figure = structure_plots.training_curves(
            table, labels={"a": "A", "b": "B"}, by="variant", references={"b": 0.3}
        )
    for axes, measure in enumerate(("a", "b")):
        for name in ("one", "other"):
            expected = table[(table["measure"] == measure) & (table["variant"] == name)]
            np.testing.assert_allclose(drawn(figure, axes)[name], expected[["epoch", "mean"]])
        unnamed = [line for line in figure.axes[axes].lines if str(line.get_label()).startswith("_")]
        assert [set(line.get_ydata()) for line in unnamed] == ([{0.3}] if measure == "b" else [])


@pytest.mark.parametrize("narrow", [False, True])
def test_stretch_maps_show_the_logarithm_of_the_stretch_and_the_boundary(narrow: bool) -> None:
    x, y = np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 2, 4))
    planes = pd.concat(
        [
            pd.DataFrame({"beta": beta, "x": x.ravel(), "y": y.ravel(), "margin": x.ravel() - 0.4,
                          "stretch_low": 0.5 * (1 + y.ravel()), "stretch_high": 4.0})
            for beta in (0.0, 1.0)
        ]
    )  # fmt: skip
    points = pd.DataFrame({"x": [0.1, 0.9], "y": [1.0, 1.0], "class": ["one", "other"]})
    with style.house_style():
        figure = structure_plots.stretch_maps(planes, points, narrow=narrow)
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 4
    for axes in maps:
        image = np.asarray(axes.images[0].get_array())
        wanted = 4.0 if "largest" in axes.get_title(loc="left") else 0.5 * (1 + y)
        np.testing.assert_allclose(image, np.broadcast_to(np.log2(wanted), image.shape))
        (boundary,) = [path for contour in axes.collections[:1] for path in contour.get_paths()]
        np.testing.assert_allclose(boundary.vertices[:, 0], 0.4)
    assert [f"{CE}: largest stretch", f"{CE}: smallest stretch"] == [
        maps[place].get_title(loc="left") for place in ((0, 1) if narrow else (0, 2))
    ]


@pytest.mark.parametrize("narrow", [False, True])
def test_curves_against_the_boundary_distance_draw_the_table(narrow: bool) -> None:
    measures = ("stretch_high", "stretch_low", "local_distortion")
    rows = [
        (dataset, beta, measure, place, 0.1 * (place + 1))
        for dataset, beta, measure, place in itertools.product(("one", "two"), (0.0, 5.0), measures, range(3))
    ]
    table = seeded_summary(rows, ["dataset", "beta", "measure", "bin", "distance"])
    with style.house_style():
        figure = structure_plots.against_boundary_distance(
            table, titles={"one": "One", "two": "Two"}, narrow=narrow
        )
    titles = ["One", "One", "Two", "Two"] if narrow else ["One", "Two", "One", "Two"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == titles
    first = table[(table["dataset"] == "one") & (table["beta"] == 5.0)]
    (high,) = [first.loc[first["measure"] == "stretch_high", ["distance", "mean"]].to_numpy()]
    np.testing.assert_allclose(drawn(figure, 0)[tables.beta_name(5.0)], high)
    lines = [line.get_ydata() for line in figure.axes[0].lines]
    low = first.loc[first["measure"] == "stretch_low", "mean"].to_numpy()
    assert any(len(line) == 3 and np.allclose(line, low) for line in lines)


@pytest.mark.parametrize("narrow", [False, True])
def test_maps_colour_a_class_alike_in_every_panel(narrow: bool) -> None:
    rng = np.random.default_rng(1)
    points = pd.DataFrame(
        {
            "space": np.repeat(["pixels", "CE"], 40),
            "class": np.tile(["0", "2"], 40),
            "x": rng.normal(size=80),
            "y": rng.normal(size=80),
        }
    )
    with style.house_style():
        figure = structure_plots.maps(points, classes=["0", "1", "2"], narrow=narrow)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == ["pixels", "CE"]
    for axes in shown:
        panel = points[points["space"] == axes.get_title(loc="left")]
        of_two = axes.collections[2]
        np.testing.assert_allclose(of_two.get_offsets(), panel.loc[panel["class"] == "2", ["x", "y"]])
        assert structure_plots.mpl.colors.to_hex(of_two.get_facecolor()[0]) == style.CATEGORIES[2]
        assert [text.get_text() for text in axes.texts] == ["0", "2"]


SETTINGS = [("raw", 10.0, 0.0), ("raw", 10.0, 0.1), ("raw", 10.0, 1.0), ("normalised", 1.0, 1e4)]
LABELS = {("spearman", "within"): "correlation", ("cka", "all points"): "similarity"}


def structure_summary() -> pd.DataFrame:
    measures = [*LABELS, ("accuracy", "all points")]
    rows = [(*measure, *setting) for measure in measures for setting in SETTINGS]
    return seeded_summary(rows, ["measure", "relation", "form", "K", "beta"])


@pytest.mark.parametrize("narrow", [False, True])
def test_measures_against_beta_have_a_line_for_each_form_and_a_level_for_cross_entropy(narrow: bool) -> None:
    table = structure_summary()
    with style.house_style():
        figure = structure_plots.measures_against_beta(table, labels=LABELS, narrow=narrow)
    for place, (measure, relation) in enumerate(LABELS):
        of_measure = table[(table["measure"] == measure) & (table["relation"] == relation)]
        lines = drawn(figure, place)
        assert list(lines) == [CE, "raw, K\u00a0=\u00a010", "normalised, K\u00a0=\u00a01"]
        np.testing.assert_allclose(lines[CE][:, 1], of_measure.iloc[0]["mean"])
        np.testing.assert_allclose(lines["raw, K\u00a0=\u00a010"], of_measure.iloc[1:3][["beta", "mean"]])
        assert figure.axes[place].get_xscale() == "log"


@pytest.mark.parametrize("narrow", [False, True])
def test_trade_off_puts_each_setting_at_its_accuracy(narrow: bool) -> None:
    table = structure_summary()
    with style.house_style():
        figure = structure_plots.trade_off(table, labels=LABELS, narrow=narrow)
    accuracy = table.loc[table["measure"] == "accuracy", "mean"].to_numpy()
    for axes, (measure, relation), label in zip(figure.axes, LABELS, LABELS.values(), strict=False):
        value = table.loc[(table["measure"] == measure) & (table["relation"] == relation), "mean"].to_numpy()
        points = np.concatenate([bars.lines[0].get_xydata() for bars in axes.containers])
        np.testing.assert_allclose(points, np.column_stack([accuracy, value]))
        assert axes.get_ylabel() == label
        assert [text.get_text() for text in axes.texts] == ["0.1", "1", "10⁴"]
    with style.house_style():
        figure = structure_plots.trade_off(table, labels=LABELS, least=float(np.sort(accuracy)[-2]), narrow=narrow)
    drawn_points = np.concatenate([bars.lines[0].get_xydata() for bars in figure.axes[0].containers])
    np.testing.assert_allclose(np.sort(drawn_points[:, 0]), np.sort(accuracy)[-2:])


@pytest.mark.parametrize("narrow", [False, True])
def test_cross_sections_label_regions_and_show_the_error(narrow: bool) -> None:
    first, second = (axis.ravel() for axis in np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21)))
    predicted = np.where(first < 0, "3", "7")
    sections = pd.DataFrame(
        {"network": "CE", "first": first, "second": second, "predicted": predicted, "error": 1 + first**2}
    )
    with style.house_style():
        figure = structure_plots.cross_sections(sections, classes=list("0123456789"), narrow=narrow)
    regions, errors = (axes for axes in figure.axes if axes.images)
    assert {text.get_text(): text.get_position()[0] < 0 for text in regions.texts} == {"3": True, "7": False}
    assert set(np.unique(np.asarray(regions.images[0].get_array()))) == {3, 7}
    np.testing.assert_allclose(np.asarray(errors.images[0].get_array()), (1 + first**2).reshape(21, 21))


def test_measure_table_has_a_row_per_measure_and_a_column_per_network() -> None:
    table = tables.measure_table(structure_summary(), "relation")
    assert list(table.columns)[:3] == ["measure", "relation", CE]
    assert len(table.columns) == 2 + len(SETTINGS)
    assert table["measure"].tolist() == ["Spearman correlation", "linear CKA", "accuracy"]
    assert table.loc[0, CE] == "0.100 (0.090 to 0.110)"


def test_effect_table_says_errors_and_effect() -> None:
    row = {"dataset": "torus", "beta": 10.0, "measure": "local_distortion", "near": 2.04, "near_low": 1.5,
           "near_high": 25.1, "far": 0.05, "far_low": -0.04, "far_high": 0.06, "delta": 0.9, "delta_low": np.nan,
           "delta_high": np.nan}  # fmt: skip
    (shown,) = tables.effect_table(pd.DataFrame([row]), {"torus": "Torus"}).to_numpy().tolist()
    assert shown == [
        f"Torus, {tables.beta_name(10.0)}", "local distortion", "2 (1.5 to 25)", "0.05 (−0.04 to 0.06)", "0.9",
    ]  # fmt: skip


@pytest.mark.parametrize("narrow", [False, True])
def test_class_planes_show_each_class_of_each_space_in_the_colours_of_its_angle(narrow: bool) -> None:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False) + 0.01
    points = pd.DataFrame(
        [
            (space, name, size * np.cos(a), size * np.sin(a), a)
            for space, name, size in (
                ("data", "one", 1),
                ("data", "two", 1),
                ("CE", "one", 0.1),
                ("CE", "two", 0.0),
            )
            for a in angle
        ],
        columns=["space", "class", "x", "y", "angle"],
    )
    with style.house_style():
        figure = structure_plots.class_planes(points, narrow=narrow)
    panels = figure.axes[:4]
    assert [axes.get_title() for axes in panels] == ["data", "CE", "", ""]
    assert [axes.get_ylabel() for axes in panels] == ["one", "", "two", ""]
    widths = [float(axes.get_xlabel().removeprefix("width ")) for axes in panels]
    assert widths == pytest.approx([2, 0.2, 2, 0], rel=0.02)
    colours = [structure_plots.mpl.colors.to_hex(colour) for colour in panels[0].collections[0].get_facecolor()]
    assert colours == list(style.CYCLE)
