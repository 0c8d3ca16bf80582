import re
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from isorepro import plots
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
        return colour if ground == "light" else plots.DARK[colour]

    paper = shown(plots.PAPER)
    assert all(
        contrast(shown(colour), paper) >= text for colour in (plots.INK, plots.MUTED, plots.HELD, plots.FOOLED)
    )
    assert all(contrast(shown(colour), paper) >= lines for colour in plots.SEQUENCE)


def test_the_sequence_grows_lighter_so_that_it_survives_grey() -> None:
    for colours in (plots.SEQUENCE, [plots.DARK[colour] for colour in plots.SEQUENCE]):
        values = [luminance(colour) for colour in colours]
        assert values == sorted(values)


@pytest.mark.parametrize("narrow", [False, True])
def test_robustness_curves_draw_the_table(narrow: bool) -> None:
    table = summary([0.0, 0.1, 10.0])
    with plots.house_style():
        figure = plots.robustness_curves(table, chance=0.1, narrow=narrow)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["As released: FGSM", "Corrected: PGD"]
    panels = [("as released", "FGSM"), ("corrected", "PGD")]
    for axes, (protocol, attack) in zip(figure.axes, panels, strict=True):
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert list(lines) == [plots.beta_name(beta) for beta in (0.0, 0.1, 10.0)]
        for beta in (0.0, 0.1, 10.0):
            drawn = table[(table["protocol"] == protocol) & (table["attack"] == attack) & (table["epsilon"] > 0)]
            drawn = drawn[drawn["beta"] == beta]
            np.testing.assert_allclose(lines[plots.beta_name(beta)].get_xydata(), drawn[["epsilon", "mean"]])
        assert axes.get_xscale() == "log"
    assert figure.axes[-1].get_xlabel().startswith("ε")
    assert figure.axes[0].get_ylabel() == "classification rate"
    assert figure.get_size_inches()[0] == (plots.NARROW if narrow else plots.WIDE)


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_any_number_of_weights_can_be_drawn(count: int) -> None:
    with plots.house_style():
        figure = plots.robustness_curves(summary([float(b) for b in range(count)]), chance=0.1)
    assert len([line for line in figure.axes[0].lines if not line.get_label().startswith("_")]) == count


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
    with plots.house_style():
        figure = plots.image_grid(examples(), attack="PGD", narrow=narrow)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:columns] == [str(index) for index in range(columns)]
    assert titles[columns:] == [f"{index} → 9" for index in range(columns)] * 2
    assert [axes.get_ylabel() for axes in figure.axes[::columns]] == ["original", "CE", plots.beta_name(1.0)]


def test_inline_figures_follow_the_theme_and_have_ids_of_their_own() -> None:
    with plots.house_style():
        svg = plots.inline_svg(plots.robustness_curves(summary([0.0, 1.0]), chance=0.1), "one")
    colours = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
    # Black only in definitions that a use overrides, which matplotlib writes for its tick marks.
    assert colours <= {"#000000"}
    assert "var(--isorepro-" in svg
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
    pd.testing.assert_frame_equal(pd.read_csv(folder / "curves.csv", float_precision="round_trip"), table)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    markup = shown._repr_html_()
    assert markup == (folder / "curves.html").read_text()
    assert "<figcaption>Rate &lt; 1 &amp; falling</figcaption>" in markup
    assert markup.count('aria-label="A &quot;falling&quot; line"') == 2
    for kind in ("svg", "png", "csv"):
        assert f'href="../results/a_notebook/curves.{kind}"' in markup


def test_the_same_figure_is_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        results = Results("n", tmp_path / name)
        draw = partial(plots.robustness_curves, chance=0.1)
        results.figure("f", draw, summary([0.0, 1.0]), caption="c", alt="a", data=summary([0.0]))
        made.append({path.name: path.read_bytes() for path in results.folder.iterdir()})
    assert made[0] == made[1]


def test_points_say_when_there_is_no_interval() -> None:
    assert plots.points(-0.012, -0.02, 0.004) == "−1.2 points (95 % interval −2.0 to +0.4)"
    assert plots.points(0.5, np.nan, np.nan) == "+50.0 points (one seed: no interval)"


def test_reading_table_has_differences_in_points_and_each_network_once() -> None:
    rows = [
        ("as released", "no attack", 0.0, 0.0, 0.97, np.nan, np.nan, np.nan),
        ("as released", "no attack", 0.0, 5.0, 0.95, -0.02, -0.03, -0.01),
        ("as released", "FGSM", 0.1, 5.0, 0.6, 0.3, np.nan, np.nan),
        ("corrected", "no attack", 0.0, 0.0, 0.97, np.nan, np.nan, np.nan),
    ]
    columns = ["protocol", "attack", "epsilon", "beta", "mean", "gain", "gain_low", "gain_high"]
    table = plots.reading_table(pd.DataFrame(rows, columns=columns))
    assert table.to_numpy().tolist() == [
        ["no attack", "CE", "97.0%", "", ""],
        ["no attack", plots.beta_name(5.0), "95.0%", "−2.0", "−3.0 to −1.0"],
        ["FGSM, as released", plots.beta_name(5.0), "60.0%", "+30.0", ""],
    ]


def test_a_wide_text_is_shown_whole(tmp_path: Path) -> None:
    text = "word " * 40 + "end"
    assert text in Results("n", tmp_path).table("t", pd.DataFrame({"a": [text]})).markup


def test_numbers_keep_their_value_and_add_up(tmp_path: Path) -> None:
    results = Results("n", tmp_path)
    results.numbers(a=np.float64(0.1), b=np.int64(3))
    results.numbers(c="text")
    assert pd.read_json(tmp_path / "results/n/numbers.json", typ="series").to_dict() == {
        "a": 0.1,
        "b": 3,
        "c": "text",
    }
