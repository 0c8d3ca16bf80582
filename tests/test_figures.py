import base64
import io
import json
import re
import struct
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from isorepro import paths, plots, scenes, style, tables
from isorepro.results import Results


def summary(betas: list[float]) -> pd.DataFrame:
    rows = [
        (protocol, attack, beta, epsilon, 0.9 - epsilon, 0.85 - epsilon, 0.95 - epsilon)
        for protocol, attack in (("as released", "FGSM"), ("corrected", "PGD"))
        for beta in betas
        for epsilon in (0.0, 0.01, 0.1, 0.8)
    ]
    return pd.DataFrame(rows, columns=["protocol", "attack", "beta", "epsilon", "mean", "low", "high"])


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance."""
    channels = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("ground", "text", "lines"), [("light", 4.5, 3.0), ("dark", 4.5, 3.0)])
def test_colours_have_the_contrast_that_wcag_asks(ground: str, text: float, lines: float) -> None:
    def shown(colour: str) -> str:
        return colour if ground == "light" else style.DARK[colour]

    paper = shown(style.PAPER)
    letters = (style.INK, style.MUTED, style.HELD, style.FOOLED, style.BETWEEN)
    for under in (paper, shown(style.SURFACE)):
        assert all(contrast(shown(colour), under) >= text for colour in letters)
    assert all(contrast(shown(colour), paper) >= lines for colour in style.SEQUENCE)


@pytest.mark.parametrize("dark", [False, True])
def test_the_template_of_plotly_is_valid_and_has_the_colours_of_the_style(dark: bool) -> None:
    template = style.plotly_template(dark=dark)
    assert json.loads(json.dumps(template)) == template
    figure = go.Figure(layout={"template": go.layout.Template(template)}).layout.template.layout

    def shown(colour: str) -> str:
        return style.DARK[colour] if dark else colour

    assert figure.colorway == style.CATEGORIES
    assert [colour for _, colour in figure.colorscale.sequential] == [shown(colour) for colour in style.SEQUENCE]
    assert (figure.font.color, figure.font.family) == (shown(style.INK), style.FONT)
    assert (figure.hoverlabel.bgcolor, figure.hoverlabel.font.color) == (shown(style.PAPER), shown(style.INK))
    for axis in (figure.xaxis, figure.yaxis, figure.scene.xaxis, figure.scene.yaxis, figure.scene.zaxis):
        assert (axis.gridcolor, axis.linecolor) == (shown(style.GRID), shown(style.MUTED))


def hexes(text: str) -> set[str]:
    return {found.lower() for found in re.findall(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b", text)}


def test_no_colour_is_written_but_in_the_style() -> None:
    known = {*style.DARK, *style.DARK.values(), *style.CATEGORIES, *style.CYCLE}
    package = paths.ROOT / "isorepro"
    files = [*package.glob("*.js"), *package.glob("*.css"), *(paths.ROOT / "book/_static").iterdir()]
    files += [package / f"{name}.py" for name in ("results", "claim_pages", "tables", "book")]
    assert {"rotatable.js", "book.css", "results.py"} <= {path.name for path in files}
    assert {path.name: hexes(path.read_text()) - known for path in files} == {path.name: set() for path in files}
    assert hexes(style.stylesheet()) <= known


def test_the_css_of_pages_has_the_variables_sizes_and_typefaces_of_the_style() -> None:
    css, theme = (paths.ROOT / "book/_static/book.css").read_text(), style.stylesheet()
    declared = set(re.findall(r"(--[a-z0-9-]+):", theme))
    assert {
        f"--isorepro-{name}" for name in (*style.SIZES, "font", "holds", "partly", "fails", "open")
    } <= declared
    assert set(re.findall(r"var\((--isorepro-[a-z0-9-]+)", css)) <= declared
    for size in re.findall(r"font-size: ([^;]+);", css):
        assert re.fullmatch(r"var\(--isorepro-[a-z0-9]+\)|[\d.]+em", size), size
    assert set(re.findall(r"font-family: ([^;]+);", css)) <= {"inherit"}
    # Light on paper, whatever the theme: what is dark is for screens.
    dark = {style.DARK[light] for light in style.ROLES.values()}
    on_paper = "".join(line for line in theme.splitlines() if not line.startswith("@media screen"))
    assert not hexes(on_paper) & (dark - set(style.ROLES.values()))
    assert f"--pst-color-text-base: {style.INK};" in on_paper
    assert f"--pst-color-text-base: {style.DARK[style.INK]};" in theme


def test_a_colour_without_a_dark_one_has_no_variable() -> None:
    assert style.variable(style.INK) == f"var(--isorepro-{style.INK[1:]}, {style.INK})"
    with pytest.raises(ValueError, match="has no dark one"):
        style.variable("#123456")


def test_the_sequence_grows_lighter_so_that_it_survives_grey() -> None:
    for colours in (style.SEQUENCE, [style.DARK[colour] for colour in style.SEQUENCE]):
        values = [luminance(colour) for colour in colours]
        assert values == sorted(values)


@pytest.mark.parametrize("narrow", [False, True])
def test_robustness_curves_draw_the_table(narrow: bool) -> None:
    table = summary([0.0, 0.1, 10.0])
    with style.house_style():
        figure = plots.robustness_curves(table, chance=0.1, narrow=narrow)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["As released: FGSM", "Corrected: PGD"]
    panels = [("as released", "FGSM"), ("corrected", "PGD")]
    for axes, (protocol, attack) in zip(figure.axes, panels, strict=True):
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert list(lines) == [tables.beta_name(beta) for beta in (0.0, 0.1, 10.0)]
        for beta in (0.0, 0.1, 10.0):
            drawn = table[(table["protocol"] == protocol) & (table["attack"] == attack) & (table["epsilon"] > 0)]
            drawn = drawn[drawn["beta"] == beta]
            np.testing.assert_allclose(lines[tables.beta_name(beta)].get_xydata(), drawn[["epsilon", "mean"]])
        assert axes.get_xscale() == "log"
    assert figure.axes[-1].get_xlabel().startswith("ε")
    assert figure.axes[0].get_ylabel() == "classification rate"
    assert figure.get_size_inches()[0] == (style.NARROW if narrow else style.WIDE)


@pytest.mark.parametrize("narrow", [False, True])
def test_the_gap_is_shaded_between_what_two_attacks_leave_of_one_network(narrow: bool) -> None:
    table = summary([0.0, 0.1])
    strong = table["attack"] == "PGD"
    table.loc[strong, ["mean", "low", "high"]] -= 0.05
    with style.house_style():
        figure = plots.gap(table, protocols={"FGSM": "weak", "PGD": "strong"}, chance=0.1, narrow=narrow)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines if line.get_label().startswith(("CE", "β"))}
    assert list(lines) == ["CE, weak", "β\u00a0=\u00a00.1, weak", "CE, strong", "β\u00a0=\u00a00.1, strong"]
    for label, line in lines.items():
        expected = table[(table["epsilon"] > 0) & (table["beta"] == (0.1 if "0.1" in label else 0))]
        expected = expected[expected["attack"] == ("FGSM" if "weak" in label else "PGD")]
        assert line.get_xdata().tolist() == expected["epsilon"].tolist()
        assert line.get_ydata().tolist() == pytest.approx(expected["mean"].tolist())
    # The first shaded area is the gap: its corners are the points of both lines of the isometric network.
    corners = {tuple(np.round(corner, 9)) for corner in axes.collections[0].get_paths()[0].vertices}
    for label in ("weak", "strong"):
        line = lines[f"β\u00a0=\u00a00.1, {label}"]
        assert {tuple(np.round(point, 9)) for point in line.get_xydata()} <= corners


@pytest.mark.parametrize("narrow", [False, True])
def test_many_attacks_have_small_panels_that_share_their_labels(narrow: bool) -> None:
    one = summary([0.0, 1.0]).query("protocol == 'corrected'")
    table = pd.concat([one.assign(attack=f"attack {number}") for number in range(7)])
    table.loc[table["attack"] == "attack 0", "protocol"] = "as released"
    with style.house_style():
        figure = plots.robustness_curves(table, chance=0.1, narrow=narrow)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title(loc="left") for axes in shown]
    assert titles == ["Attack 0,\nas released", *[f"Attack {number}" for number in range(1, 7)]]
    assert len({round(axes.get_position().x0, 2) for axes in shown}) == (2 if narrow else 3)
    assert (figure.get_supylabel(), figure.get_supxlabel()[:1]) == ("classification rate", "ε")


@pytest.mark.parametrize("narrow", [False, True])
def test_stages_of_attack_draw_accuracies_and_differences_with_their_intervals(narrow: bool) -> None:
    networks = {
        "CE": ("raw", 10.0, 0.0),
        "β = 1": ("raw", 10.0, 1.0),
        "K = 1, β = 1": ("raw", 1.0, 1.0),
        "normalised, β = 10⁴": ("normalised", 1.0, 1e4),
    }
    rows = [
        (stage, name, form, K, beta, 0.1 * place + 0.2, 0.1 * place + 0.15, 0.1 * place + 0.3)
        for stage in ("first, weak", "second")
        for place, (name, (form, K, beta)) in enumerate(networks.items())
    ]
    kept = pd.DataFrame(rows, columns=["stage", "network", "form", "K", "beta", "mean", "low", "high"])
    gains = kept[kept["beta"] > 0].assign(mean=-0.05, low=-0.1, high=0.02)
    with style.house_style():
        figure = plots.attack_stages(kept, gains, narrow=narrow)
    accuracy, difference = figure.axes
    for axes, table, scale in ((accuracy, kept, 1), (difference, gains, 100)):
        drawn = {bars.get_label(): bars for bars in axes.containers}
        for name, own in table.groupby("network"):
            points, _, (reach,) = drawn[name].lines
            np.testing.assert_allclose(np.asarray(points.get_xdata(), float), scale * own["mean"].to_numpy())
            ends = np.array([segment[:, 0] for segment in reach.get_segments()])
            np.testing.assert_allclose(ends, scale * own[["low", "high"]].to_numpy(), atol=1e-9)
    # Of one weight the two K differ in how much of the marker is filled, and in nothing else.
    first, second = (accuracy.containers[place].lines[0] for place in (1, 2))
    assert (first.get_fillstyle(), second.get_fillstyle()) == ("full", "left")
    assert (first.get_color(), first.get_marker()) == (second.get_color(), second.get_marker())
    assert [text.get_text() for text in accuracy.get_yticklabels()] == ["first,\nweak", "second"]
    assert accuracy.get_ylim() == (1.5, -0.5)  # the first attack above
    table = tables.stage_table(
        kept.assign(difference=[float("nan"), -0.05, 0.25, 0.0] * 2, difference_low=-0.1, difference_high=0.5)
    )
    assert table["points above CE"].tolist()[:3] == ["–", "−5.0 (−10.0 to +50.0)", "+25.0 (−10.0 to +50.0)"]
    assert table["rate, %"].tolist()[0] == "20.0 (15 to 30)"


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("count", [2, 4, 6, 11])
def test_the_names_of_any_number_of_networks_fit_above_the_panels(count: int, narrow: bool) -> None:
    names = ["CE", *[f"normalised, β = 10{power}" for power in "¹²³⁴⁵⁶⁷⁸⁹⁰"]][:count]
    rows = [("a", name, "raw", 10.0, float(place), 0.5, 0.4, 0.6) for place, name in enumerate(names)]
    kept = pd.DataFrame(rows, columns=["stage", "network", "form", "K", "beta", "mean", "low", "high"])
    with style.house_style():
        figure = plots.attack_stages(kept, kept[kept["beta"] > 0], narrow=narrow)
        FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    # Above the panels, not on them.
    assert box.y0 >= max(axes.get_window_extent().y1 for axes in figure.axes)


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_any_number_of_weights_can_be_drawn(count: int) -> None:
    with style.house_style():
        figure = plots.robustness_curves(summary([float(b) for b in range(count)]), chance=0.1)
    assert len([line for line in figure.axes[0].lines if not line.get_label().startswith("_")]) == count


def oklab(colour: str, seen: np.ndarray) -> np.ndarray:
    """Björn Ottosson's OKLab of a colour as someone sees it, whose vision is a matrix on linear RGB."""
    channels = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    cones = np.array([[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069955, 0.10739696]])
    cones = np.vstack([cones, [0.08830246, 0.28171884, 0.62997870]])
    lab = np.array([[0.21045426, 0.79361778, -0.00407205], [1.97799850, -2.42859220, 0.45059371]])
    lab = np.vstack([lab, [0.02590404, 0.78277177, -0.80867577]])
    return lab @ np.cbrt(cones @ np.clip(seen @ linear, 0, 1))


# Machado, Oliveira and Fernandes (2009), severity 1.
VISION = {
    "all cones": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


def distances(colours: tuple[str, ...], vision: str) -> np.ndarray:
    lab = np.array([oklab(colour, VISION[vision]) for colour in colours])
    return np.linalg.norm(lab[:, None] - lab[None], axis=2) + 9 * np.eye(len(colours))


def test_colours_of_pictures_show_on_light_and_dark_pages() -> None:
    for colour in (*style.CATEGORIES, *style.CYCLE):
        for paper in (style.PAPER, style.DARK[style.PAPER]):
            assert contrast(colour, paper) >= 3, (colour, paper)
    assert len(set(style.CATEGORIES)) == 10
    assert len(set(style.CYCLE)) == 24


@pytest.mark.parametrize("vision", VISION)
def test_classes_and_angles_are_told_apart_by_colour_blind_people(vision: str) -> None:
    assert distances(style.CATEGORIES, vision).min() > 0.08
    assert distances(style.CATEGORIES[:4], vision).min() > 0.14
    assert distances(style.CATEGORIES[:2], vision).min() > 0.2
    apart = np.abs(np.subtract.outer(np.arange(24), np.arange(24)))
    apart = np.minimum(apart, 24 - apart)
    between = distances(style.CYCLE, vision)
    assert between[apart >= 2].min() > 0.02  # the just noticeable difference
    assert between[apart >= 6].min() > 0.07


def test_the_cycle_has_the_angle_in_its_lightness_and_its_blue() -> None:
    light, _, yellow = np.array([oklab(colour, np.eye(3)) for colour in style.CYCLE]).T
    angle = np.arange(24) * 2 * np.pi / 24
    assert np.corrcoef(light, np.cos(angle))[0, 1] > 0.999
    assert np.corrcoef(yellow, np.sin(angle))[0, 1] > 0.999


def rings(count: int = 40) -> pd.DataFrame:
    """Two linked rings in three spaces."""
    t = np.arange(count) * 2 * np.pi / count
    one = np.c_[np.cos(t), np.sin(t), 0 * t]
    other = np.c_[1 + np.cos(t), 0 * t, np.sin(t)]
    x, y, z = np.r_[one, other].T
    points = pd.DataFrame({"x": x, "y": y, "z": z, "ring": ["</script>"] * count + ["<!--"] * count})
    points["angle"] = np.r_[t, t]
    return pd.concat([points.assign(space=name, x=x * size) for name, size in (("Data", 1), ("CE", 2), ("β", 3))])


@pytest.mark.parametrize("narrow", [False, True])
def test_spaces_have_boxes_of_equal_sides_and_a_key_for_each_colouring(narrow: bool) -> None:
    points = rings()
    with style.house_style():
        figure = scenes.spaces(points, colour=["ring", "angle"], narrow=narrow)
    boxes = [axes for axes in figure.axes if axes.name == "3d"]
    assert len(boxes) == 6
    named = [text.get_text() for text in figure.texts]
    assert [named.count(name) for name in ("Data", "CE", "β", "Colour: ring", "Colour: angle")] == [2, 2, 2, 1, 1]
    names = ["Data", "CE", "β"]
    for place, axes in enumerate(boxes):
        across, down = (place // 2, place % 2) if narrow else (place % 3, place // 3)
        space, colouring = names[across], ("ring", "angle")[down]
        sides = [np.ptp(limits) for limits in (axes.get_xlim(), axes.get_ylim(), axes.get_zlim())]
        np.testing.assert_allclose(sides, sides[0])
        (cloud,) = axes.collections
        assert cloud.get_rasterized()
        drawn = points[points["space"] == space]
        np.testing.assert_allclose(np.array(cloud._offsets3d).T, drawn[["x", "y", "z"]])
        palette = style.CATEGORIES[:2] if colouring == "ring" else style.CYCLE
        used = {mpl.colors.to_hex(hue) for hue in cloud.get_facecolor()}
        assert used == set(palette)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["<!--", "</script>"]
    (cycle,) = (axes for axes in figure.axes if axes.name != "3d")
    assert [label.get_text() for label in cycle.get_xticklabels()] == ["0", "π", "2π"]
    assert figure.get_size_inches()[0] == (style.NARROW if narrow else style.WIDE)


def test_spaces_follow_the_theme_and_are_the_same_bytes_twice() -> None:
    made = []
    for _ in range(2):
        with style.house_style():
            made.append(style.inline_svg(scenes.spaces(rings(), colour=["ring"]), "s"))
    assert made[0] == made[1]
    assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", made[0])) <= {*style.CATEGORIES[:2], "#000000"}
    pictures = re.findall(r'<image [^>]*?base64,\s*([^"]+)"[^>]* width="([\d.]+)"', made[0])
    assert len(pictures) == 3
    for picture, points in pictures:
        (pixels,) = struct.unpack(">I", base64.b64decode(picture)[16:20])
        assert pixels / float(points) == pytest.approx(200 / 72, rel=0.01)


@pytest.mark.parametrize(("colours", "alpha"), [(1, 255), (256, 255), (200, 90), (257, 255)])
def test_a_picture_of_few_colours_takes_less_room_and_has_the_same_pixels(colours: int, alpha: int) -> None:
    numbers = np.random.default_rng(0).permutation(64 * 64).reshape(64, 64) % colours
    pixels = np.stack([numbers % 256, numbers // 256, 255 - numbers % 256, np.full_like(numbers, alpha)], axis=2)
    with style.house_style():
        figure = Figure(figsize=(2, 2))
        axes = figure.subplots()
        axes.imshow(pixels.astype(np.uint8), interpolation="none")
        svg = style.inline_svg(figure, "s")
        plain = io.BytesIO()
        figure.savefig(plain, format="svg")
    (kept,) = re.findall(r'base64,\s*([^"]+)"', svg)
    (before,) = re.findall(r'base64,\s*([^"]+)"', plain.getvalue().decode())
    assert (len(kept) < len(before) / 1.5) == (colours <= 256)
    opened = [Image.open(io.BytesIO(base64.b64decode(png))) for png in (kept, before)]
    now, then = (np.asarray(picture.convert("RGBA")) for picture in opened)
    np.testing.assert_array_equal(now, then)


def test_an_angle_is_cut_into_the_colours_of_the_cycle() -> None:
    angles = np.array([0.0, 2 * np.pi - 1e-9, np.pi, -1e-20, 2 * np.pi, -np.pi / 2])
    points = pd.DataFrame({"space": "s", "x": angles, "y": 0.0, "z": 0.0, "angle": angles})
    (space,) = scenes.rotatable(points, colour=["angle"])["spaces"]
    assert space["colours"] == [[0, 23, 12, 0, 0, 18]]


@pytest.mark.parametrize(("column", "value"), [("x", np.nan), ("angle", np.inf)])
def test_points_that_are_nowhere_are_refused(column: str, value: float) -> None:
    points = rings()
    points[column] = value
    with pytest.raises(ValueError, match="finite"):
        scenes.rotatable(points, colour=["angle"])


def test_more_classes_than_colours_are_refused() -> None:
    points = rings().assign(many=[str(number % 11) for number in range(240)])
    with pytest.raises(ValueError, match="11 classes"):
        scenes.spaces(points, colour=["many"])


def test_a_space_that_collapsed_to_a_point_has_a_box() -> None:
    points = rings().assign(x=1.0, y=2.0, z=3.0)
    cube = scenes.rotatable(points, colour=["ring"])["spaces"][0]["cube"]
    assert cube == [[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]]


def test_a_class_has_the_same_colour_in_whatever_order_its_points_come() -> None:
    def colours(points: pd.DataFrame) -> dict[str, str]:
        data = scenes.rotatable(points, colour=["ring"])
        (one,) = data["colourings"]
        return dict(zip(one["labels"], one["palette"], strict=True))

    assert colours(rings()) == colours(rings()[::-1])


def training(epochs: list[int]) -> pd.DataFrame:
    """The rings, which grow and move from epoch to epoch."""
    return pd.concat(
        rings()
        .query(f"space == '{name}'")
        .assign(x=lambda p, by=by: p["x"] * (1 + by), epoch=epoch, state=f"{epoch}")
        for name in ("CE", "β")
        for by, epoch in enumerate(epochs)
    )


@pytest.mark.parametrize(("narrow", "shown"), [(False, [0, 20, 40, 60, 80]), (True, [0, 40, 80])])
def test_a_training_is_drawn_at_epochs_evenly_spaced_each_space_at_one_scale(
    narrow: bool, shown: list[int]
) -> None:
    frames = training([*range(0, 90, 10)])
    with style.house_style():
        figure = scenes.training_frames(frames, colour=["ring", "angle"], narrow=narrow)
    texts = [text.get_text() for text in figure.texts]
    assert [text for text in texts if text.startswith("epoch")] == [f"epoch {epoch}" for epoch in shown]
    boxes = [axes for axes in figure.axes if axes.name == "3d"]
    assert len(boxes) == 2 * len(shown)
    for place, axes in enumerate(boxes):
        name, epoch = ("CE", "β")[place // len(shown)], shown[place % len(shown)]
        points = frames[(frames["space"] == name) & (frames["epoch"] == epoch)]
        (cloud,) = axes.collections
        np.testing.assert_allclose(np.array(cloud._offsets3d).T, points[["x", "y", "z"]])
        assert axes.get_xlim() == boxes[place // len(shown) * len(shown)].get_xlim()
    assert figure.get_size_inches()[0] == (style.NARROW if narrow else style.WIDE)


def test_a_training_to_play_has_every_point_of_every_epoch_within_a_step_of_its_grid() -> None:
    epochs = [0, 3, 100]
    frames = training(epochs)
    data = scenes.rotatable_frames(frames, colour=["ring", "angle"])
    assert data["epochs"] == epochs
    assert [space["title"] for space in data["spaces"]] == ["CE", "β"]
    for space, (_, points) in zip(data["spaces"], frames.groupby("space", sort=False), strict=True):
        counted = np.frombuffer(base64.b64decode(space["frames"]), dtype="<u2").reshape(3, 3, -1)
        low, high = np.array(space["cube"]).T[:, None, :, None]
        expected = points[["x", "y", "z"]].to_numpy().reshape(3, -1, 3).transpose(0, 2, 1)
        np.testing.assert_allclose(low + (high - low) * counted / 65535, expected, atol=(high - low).max() / 65535)
        assert space["states"] == ["0", "3", "100"]
        classes = [data["colourings"][0]["labels"][place] for place in space["colours"][0]]
        assert classes == points.loc[points["epoch"] == 0, "ring"].tolist()


def test_a_training_whose_epochs_or_points_differ_is_refused() -> None:
    frames = training([0, 3])
    for wrong in (
        frames[~((frames["space"] == "β") & (frames["epoch"] == 3))],
        frames.iloc[1:],
        frames.assign(ring=np.where(frames["epoch"] == 3, frames["ring"].to_numpy()[::-1], frames["ring"])),
        frames.sort_values("epoch", ascending=False),
    ):
        with pytest.raises(ValueError, match=r"frames: '(CE|β)' must have the epochs of the others in order"):
            scenes.rotatable_frames(wrong, colour=["ring"])


def rotatable_figure(folder: Path, **options: object) -> tuple[Results, str]:
    results = Results("n", folder)
    shown = results.figure(
        "rings", scenes.spaces, rings(), colour=["ring", "angle"], caption="c", alt="a", data=rings(), **options
    )
    return results, shown._repr_html_()


def test_a_rotatable_figure_holds_its_points_and_keeps_its_drawings(tmp_path: Path) -> None:
    _, markup = rotatable_figure(tmp_path, rotatable=scenes.rotatable)
    (text,) = re.findall(r'<div class="isorepro-rotatable"[^>]* hidden><script[^>]*>(.*?)</script></div>', markup)
    assert "<" not in text
    data = json.loads(text)
    assert data == scenes.rotatable(rings(), colour=["ring", "angle"])
    assert data["colourings"][0]["labels"] == ["<!--", "</script>"]
    for space, (name, points) in zip(data["spaces"], rings().groupby("space", sort=False), strict=True):
        assert space["title"] == name
        np.testing.assert_allclose(np.array([space[axis] for axis in "xyz"]).T, points[["x", "y", "z"]], rtol=1e-3)
        rings_of_points = [data["colourings"][0]["labels"][place] for place in space["colours"][0]]
        assert rings_of_points == points["ring"].tolist()
    assert markup.count("<svg") == 2
    assert "plotly" not in markup.lower()
    assert "isorepro-rotatable" not in rotatable_figure(tmp_path)[1]


def test_a_rotatable_figure_is_the_same_bytes(tmp_path: Path) -> None:
    one, other = (rotatable_figure(tmp_path / name, rotatable=scenes.rotatable)[0].folder for name in ("a", "b"))
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in other.iterdir()
    }


def test_at_work_in_jupyter_the_first_rotatable_figure_brings_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ISOREPRO_RUN", raising=False)
    monkeypatch.setenv("ISOREPRO_OUTPUT", str(tmp_path))
    results = Results("n")
    first, second = (
        results.figure(
            name, scenes.spaces, rings(), colour=["ring"], caption="c", alt="a", data=rings(),
            rotatable=scenes.rotatable,
        )._repr_html_()
        for name in ("one", "two")
    )  # fmt: skip
    assert "plotly.js v" in first
    assert "plotly.js v" not in second
    assert "isorepro-rotatable:not" in first
    assert "isorepro-rotatable:not" in second
    assert "<script>" not in (results.folder / "one.html").read_text()


def examples() -> pd.DataFrame:
    rows = [
        (beta, attack, epsilon, index, str(index), str(index if attack == "no attack" else 9), np.eye(4).tolist())
        for beta in (0.0, 1.0)
        for attack, epsilon in (("no attack", 0.0), ("PGD", 0.1))
        for index in range(5)
    ]
    return pd.DataFrame(rows, columns=["beta", "attack", "epsilon", "index", "label", "predicted", "pixels"])


@pytest.mark.parametrize(("narrow", "columns"), [(False, 5), (True, 3)])
def test_image_grid_tells_what_each_image_is_taken_for(narrow: bool, columns: int) -> None:
    with style.house_style():
        figure = plots.image_grid(examples(), attack="PGD", narrow=narrow)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:columns] == [str(index) for index in range(columns)]
    assert titles[columns:] == [f"{index} → 9" for index in range(columns)] * 2
    assert [axes.get_ylabel() for axes in figure.axes[::columns]] == ["original", "CE", tables.beta_name(1.0)]


def test_inline_figures_follow_the_theme_and_have_ids_of_their_own() -> None:
    with style.house_style():
        svg = style.inline_svg(plots.robustness_curves(summary([0.0, 1.0]), chance=0.1), "one")
    colours = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
    # Black only in definitions that a use overrides, which matplotlib writes for its tick marks.
    assert colours <= {"#000000"}
    assert "var(--isorepro-" in svg
    texts = re.findall(r"<text style=\"([^\"]*)", svg)
    assert texts
    assert all("var(--isorepro-font, sans-serif)" in text for text in texts)
    assert "DejaVu" not in svg
    assert all(identity.startswith("one-") for identity in re.findall(r'\bid="([^"]+)"', svg))
    for target in re.findall(r'(?:href="|url\()#([^")]+)', svg):
        assert f'id="{target}"' in svg
    assert not re.search(r"https?://(?!www\.w3\.org)", svg)


def test_a_figure_leaves_its_files_and_shows_its_caption_alt_text_and_data(tmp_path: Path) -> None:
    results = Results("a_notebook", tmp_path)
    table = summary([0.0, 1.0])
    shown = results.figure(
        "curves",
        partial(plots.robustness_curves, chance=0.1),
        table,
        caption="Rate < 1 & falling",
        alt='A "falling" line',
        data=table,
    )
    folder = tmp_path / "results" / "a_notebook"
    assert sorted(path.name for path in folder.iterdir()) == [
        "curves.csv",
        "curves.html",
        "curves.png",
        "curves.svg",
    ]
    written = pd.read_csv(folder / "curves.csv", float_precision="round_trip")
    pd.testing.assert_frame_equal(written.drop(columns="run"), table)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    markup = shown._repr_html_()
    assert markup == (folder / "curves.html").read_text()
    assert "<figcaption>Rate &lt; 1 &amp; falling</figcaption>" in markup
    assert markup.count('aria-label="A &quot;falling&quot; line"') == 2
    for kind in ("svg", "png", "csv"):
        assert f'href="../results/a_notebook/curves.{kind}"' in markup


def test_every_file_of_a_figure_tells_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("0123456789ab", None):
        if run:
            monkeypatch.setenv("ISOREPRO_RUN_ID", run)
        else:
            monkeypatch.delenv("ISOREPRO_RUN_ID")
        results, table = Results("n", tmp_path), summary([0.0])
        shown = results.figure(
            "f", partial(plots.robustness_curves, chance=0.1), table, caption="c", alt="a", data=table
        )
        told = run or "interactive"
        svg = ElementTree.parse(results.folder / "f.svg")
        sources = svg.findall(".//{http://purl.org/dc/elements/1.1/}source")
        assert [source.text for source in sources] == [f"isorepro run {told}"]
        with Image.open(results.folder / "f.png") as picture:
            assert picture.info["Source"] == f"isorepro run {told}"
        written = pd.read_csv(results.folder / "f.csv")
        assert written.columns[-1] == "run"
        assert set(written["run"].astype(str)) == {told}
        # On the page it would only take room.
        assert told not in shown.markup


def test_the_same_figure_is_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        results = Results("n", tmp_path / name)
        draw = partial(plots.robustness_curves, chance=0.1)
        results.figure("f", draw, summary([0.0, 1.0]), caption="c", alt="a", data=summary([0.0]))
        made.append({path.name: path.read_bytes() for path in results.folder.iterdir()})
    assert made[0] == made[1]


def test_points_say_when_there_is_no_interval() -> None:
    assert tables.points(-0.012, -0.02, 0.004) == "−1.2 points (95 % interval −2.0 to +0.4)"
    assert tables.points(0.5, np.nan, np.nan) == "+50.0 points (one seed: no interval)"


def test_reading_table_has_differences_in_points_and_each_network_once() -> None:
    rows = [
        ("as released", "no attack", 0.0, 0.0, 0.97, np.nan, np.nan, np.nan),
        ("as released", "no attack", 0.0, 5.0, 0.95, -0.02, -0.03, -0.01),
        ("as released", "FGSM", 0.1, 5.0, 0.6, 0.3, np.nan, np.nan),
        ("corrected", "no attack", 0.0, 0.0, 0.97, np.nan, np.nan, np.nan),
    ]
    columns = ["protocol", "attack", "epsilon", "beta", "mean", "gain", "gain_low", "gain_high"]
    table = tables.reading_table(pd.DataFrame(rows, columns=columns))
    assert table.to_numpy().tolist() == [
        ["no attack", "CE", "97.0%", "", ""],
        ["no attack", tables.beta_name(5.0), "95.0%", "−2.0", "−3.0 to −1.0"],
        ["FGSM, as released", tables.beta_name(5.0), "60.0%", "+30.0", ""],
    ]


def test_a_wide_text_is_shown_whole(tmp_path: Path) -> None:
    text = "word " * 40 + "end"
    assert text in Results("n", tmp_path).table("t", pd.DataFrame({"a": [text]})).markup


def test_of_a_long_table_a_page_shows_the_start_and_the_file_holds_all(tmp_path: Path) -> None:
    markup = Results("n", tmp_path).table("t", pd.DataFrame({"a": range(1000)})).markup
    assert markup.count("<tr") == 1 + 20
    assert "The first 20 of 1,000 rows" in markup
    assert len(pd.read_csv(tmp_path / "results/n/t.csv")) == 1000


def test_a_table_made_to_be_read_is_left_for_other_pages(tmp_path: Path) -> None:
    results, plain = Results("n", tmp_path), pd.DataFrame({"share": [0.5]})
    results.table("plain", plain)
    markup = results.table("read", plain, shown=pd.DataFrame({"share": ["50 %"]})).markup
    assert [path.name for path in tmp_path.rglob("*.html")] == ["read.html"]
    assert (tmp_path / "results/n/read.html").read_text() == markup
    assert "50 %" in markup
    assert pd.read_csv(tmp_path / "results/n/read.csv")["share"].tolist() == [0.5]


def test_numbers_keep_their_value_and_add_up(tmp_path: Path) -> None:
    results = Results("n", tmp_path)
    results.numbers(a=np.float64(0.1), b=np.int64(3))
    results.numbers(c="text")
    assert pd.read_json(tmp_path / "results/n/numbers.json", typ="series").to_dict() == {
        "a": 0.1,
        "b": 3,
        "c": "text",
    }
