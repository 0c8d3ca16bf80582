"""Figures with sliders: their data, their drawings, and what they do in a browser."""

import base64
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Browser, Locator, Page

from isorepro import explorables, plots, style
from isorepro.results import Results

BETAS = [0.0, 0.1, 100.0]
RADII = [0.01, 0.1, 1.0]
ATTACKS = {"as released": ["FGSM", "one-gradient PGD"], "corrected": ["FGSM", "PGD"]}
DIGITS = ["0", "1", "2", "3"]
SIDE = 4


def curves() -> pd.DataFrame:
    random = np.random.default_rng(0)
    rows = []
    for protocol, attacks in ATTACKS.items():
        for attack in ["no attack", *attacks]:
            for beta in BETAS:
                for epsilon in [0.0] if attack == "no attack" else RADII:
                    mean = random.uniform(0.1, 0.9)
                    rows.append((protocol, attack, beta, epsilon, mean, mean - 0.05, mean + 0.05))
    return pd.DataFrame(rows, columns=["protocol", "attack", "beta", "epsilon", "mean", "low", "high"])


def maps() -> pd.DataFrame:
    random = np.random.default_rng(1)
    rows = [
        (beta, digit, *random.normal(size=2) * (3, 1) + beta)
        for beta in BETAS
        for digit in DIGITS
        for _ in range(5)
    ]
    return pd.DataFrame(rows, columns=["beta", "class", "x", "y"])


def pixels(*seeds: int) -> list[list[float]]:
    found: list[list[float]] = np.random.default_rng(seeds).random((SIDE, SIDE)).tolist()
    return found


def examples() -> pd.DataFrame:
    rows = [
        (beta, 0.1, number, digit, DIGITS[(number + place) % 4], pixels(place, number))
        for place, beta in enumerate(BETAS)
        for number, digit in enumerate(DIGITS)
    ]
    return pd.DataFrame(rows, columns=["beta", "epsilon", "index", "label", "predicted", "pixels"])


def ladder() -> pd.DataFrame:
    rows = []
    for place, beta in enumerate(BETAS):
        for step, epsilon in enumerate([0.0, 0.05, 0.3]):
            for number, digit in enumerate(DIGITS):
                shares = np.random.default_rng([place, step, number]).dirichlet([1.0] * 4)
                clean = np.array(pixels(number))
                moved = (clean + epsilon * np.sign(np.array(pixels(place, number)) - 0.5)).clip(0, 1).tolist()
                predicted = DIGITS[shares.argmax()]
                rows.append((beta, epsilon, number, digit, predicted, DIGITS, shares.tolist(), moved))
    columns = ["beta", "epsilon", "index", "label", "predicted", "classes", "probabilities", "pixels"]
    return pd.DataFrame(rows, columns=columns)


def by_weight(**options: Any) -> dict[str, Any]:
    return explorables.by_weight(curves(), maps(), examples(), chance=0.25, at=0.08, **options)


def unpacked(text: str, kind: str) -> np.ndarray:
    integers = np.frombuffer(base64.b64decode(text), kind)
    return integers / np.iinfo(kind).max


def test_the_slider_over_weights_has_every_number_of_the_curves() -> None:
    found = by_weight(start=1.0)
    assert found["weights"] == ["CE", "β\u00a0=\u00a00.1", "β\u00a0=\u00a0100"]
    assert found["start"] == 1
    assert by_weight(start=50.0)["start"] == 2
    assert by_weight(start=1e-9)["start"] == 1  # never cross-entropy, which is there for comparison
    assert found["radii"] == RADII
    assert found["radii"][found["at"]] == 0.1
    assert {one["name"]: one["attacks"] for one in found["protocols"]} == ATTACKS
    count = 0
    for row in curves().query("epsilon > 0").itertuples():
        protocol = list(ATTACKS).index(row.protocol)
        attack = ATTACKS[row.protocol].index(row.attack)
        place = found["curves"][protocol][attack][BETAS.index(row.beta)][RADII.index(row.epsilon)]
        assert place == pytest.approx([row.mean, row.low, row.high], abs=5e-5)
        count += 1
    assert count == sum(len(weight) for p in found["curves"] for attack in p for weight in attack)


def test_maps_keep_their_shape_and_images_their_pixels() -> None:
    found = by_weight()
    assert [found["map"]["classes"][place] for place in found["map"]["of"]] == list(np.repeat(DIGITS, 5))
    for beta, text in zip(BETAS, found["map"]["points"], strict=True):
        shown = unpacked(text, "<u2").reshape(-1, 2)
        original = maps().loc[maps()["beta"] == beta, ["x", "y"]].to_numpy()
        # One scale for both axes, the whole in the middle of the square.
        scale = np.ptp(original, axis=0).max()
        assert np.diff(shown, axis=0) == pytest.approx(np.diff(original, axis=0) / scale, abs=4e-5)
        assert shown.min(0) + shown.max(0) == pytest.approx([1, 1], abs=4e-5)
    for beta, text, taken in zip(BETAS, found["images"]["pixels"], found["images"]["taken"], strict=True):
        rows = examples()[examples()["beta"] == beta]
        assert unpacked(text, "u1") == pytest.approx(
            np.array(rows["pixels"].tolist()).ravel(), abs=0.5 / 255 + 1e-9
        )
        assert taken == rows["predicted"].tolist()


def test_the_slider_over_radii_has_every_image_and_probability() -> None:
    found = explorables.by_radius(ladder().sample(frac=1, random_state=0).sort_values(["epsilon", "index"]))
    assert found["radii"] == [0.0, 0.05, 0.3]
    assert found["labels"] == found["classes"] == DIGITS
    for row in ladder().itertuples():
        network = found["networks"][BETAS.index(row.beta)]
        step = found["radii"].index(row.epsilon)
        assert network["probabilities"][step][row.index] == pytest.approx(row.probabilities, abs=5e-4)
        images = unpacked(network["images"], "u1").reshape(3, 4, SIDE, SIDE)
        assert images[step, row.index] == pytest.approx(np.array(row.pixels), abs=0.5 / 255 + 1e-9)


@pytest.mark.parametrize("betas", [[0.1, 100.0], [0.0]])
def test_there_must_be_cross_entropy_and_something_beside_it(betas: list[float]) -> None:
    with pytest.raises(ValueError, match="need β = 0 and at least one weight above it"):
        explorables.by_weight(curves().query("beta in @betas"), chance=0.1, at=0.1)
    with pytest.raises(ValueError, match="need β = 0 and at least one weight above it"):
        explorables.by_radius(ladder().query("beta in @betas"))


@pytest.mark.parametrize("narrow", [False, True])
def test_the_drawings_show_every_weight_and_every_radius_asked_for(narrow: bool) -> None:
    with style.house_style():
        figure = explorables.weights(curves(), maps(), examples(), chance=0.25, at=0.1, narrow=narrow)
        assert [part.get_suptitle() for part in figure.subfigs] == ["CE", "β\u00a0=\u00a00.1", "β\u00a0=\u00a0100"]
        last = figure.subfigs[2]
        drawn = last.axes[1].lines[1]  # corrected, FGSM, after cross-entropy's line
        expected = curves().query("protocol == 'corrected' and attack == 'FGSM' and beta == 100")
        assert drawn.get_ydata() == pytest.approx(expected["mean"].to_numpy())
        words = [text.get_text() for text in last.axes[3].texts]
        assert words == ["0 → 2", "1 → 3", "2 → 0", "3 → 1"]
        figure = explorables.radii(ladder(), shown=[0.0, 0.3], narrow=narrow)
        assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["ε = 0", "ε = 0.3"]
        heights = [bar.get_height() for bar in figure.axes[-1].patches]
        (row,) = ladder().query("beta == 0.1 and epsilon == 0.3 and index == 0").itertuples()
        assert heights == pytest.approx(row.probabilities)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page that has the three figures with sliders, and the script deferred."""
    folder = tmp_path_factory.mktemp("site")
    results = Results("n", folder)
    told = {"caption": "A caption.", "alt": "What one sees"}
    options = {"chance": 0.25, "at": 0.08}
    panels = results.figure(
        "panels",
        partial(plots.robustness_curves, chance=0.25),
        curves(),
        data=curves(),
        explorable=partial(explorables.by_weight, **options, overview="side by side"),
        **told,
    )
    weights = results.figure(
        "weights",
        explorables.weights,
        curves(),
        maps(),
        examples(),
        data=curves(),
        explorable=explorables.by_weight,
        **options,
        **told,
    )
    shown = {"draw": partial(explorables.radii, shown=[0.0, 0.3]), "explorable": explorables.by_radius}
    radii = results.figure("radii", shown["draw"], ladder(), data=curves(), explorable=shown["explorable"], **told)
    (folder / "explorable.js").write_bytes((files("isorepro") / "explorable.js").read_bytes())
    (folder / "index.html").write_text(
        '<!doctype html><html data-theme="light"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><style>body{max-width:800px}'
        'html[data-theme="dark"]{background:#14181e}</style>'
        '<link rel="icon" href="data:,"><script defer src="explorable.js"></script><body>'
        f"{panels.markup}{weights.markup}{radii.markup}</body></html>"
    )
    return folder


Open = Callable[..., Page]


@pytest.fixture
def opened(folder: Path, browser: Browser, watched: Callable[[Page, str], list[str]]) -> Iterator[Open]:
    """A function that opens the page without motion; in the end nothing may have gone wrong on it."""
    contexts, faults = [], []

    def visit(**options: Any) -> Page:
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        contexts.append(context)
        page = context.new_page()
        faults.append(watched(page, folder.as_uri()))
        page.goto((folder / "index.html").as_uri())
        page.wait_for_load_state("networkidle")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == [[]] * len(faults)


def rates(chart: Locator, line: int) -> list[float]:
    """Return the classification rates that a line of the chart shows, from where its grid lines lie."""
    path = chart.locator("path[fill=none]").nth(line).get_attribute("d") or ""
    heights = [float(height) for height in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
    grid = chart.locator("line").evaluate_all(
        "lines => lines.slice(0, 6).map(line => Number(line.getAttribute('y1')))"
    )
    return [(grid[0] - height) / (grid[0] - grid[5]) for height in heights]


def means(protocol: str, attack: str, beta: float) -> list[float]:
    rows = curves().query("protocol == @protocol and attack == @attack and beta == @beta")
    found: list[float] = rows["mean"].tolist()
    return found


@pytest.mark.slow
def test_a_weight_moves_curves_map_and_images_together(opened: Open) -> None:
    figure = opened(viewport={"width": 1000, "height": 900}).locator("#n-weights")
    chart, places = figure.locator("svg[role=img]").nth(0), figure.locator("svg[role=img]").nth(1)
    slider = figure.get_by_label("Weight β of the isometry term")
    assert slider.get_attribute("aria-valuetext") == "β\u00a0=\u00a00.1"
    assert not figure.locator(".isorepro-wide").is_visible()
    for key, beta, name in (("ArrowRight", 100.0, "β\u00a0=\u00a0100"), ("Home", 0.0, "CE")):
        slider.press(key)
        assert slider.get_attribute("aria-valuetext") == name
        for place, attack in enumerate(ATTACKS["corrected"]):
            assert rates(chart, 2 * place) == pytest.approx(means("corrected", attack, 0.0), abs=3e-3)
            assert rates(chart, 2 * place + 1) == pytest.approx(means("corrected", attack, beta), abs=3e-3)
        spots = places.locator("circle").evaluate_all(
            "dots => dots.map(dot => [Number(dot.getAttribute('cx')), -Number(dot.getAttribute('cy'))])"
        )
        own = maps().query("beta == @beta")[["x", "y"]].to_numpy()
        extent = np.ptp(own, axis=0).max()
        assert np.diff(spots, axis=0) / 276 == pytest.approx(np.diff(own, axis=0) / extent, abs=1e-3)
        rows = examples().query("beta == @beta")
        expected = [a if a == b else f"{a} → {b}" for a, b in zip(rows["label"], rows["predicted"], strict=True)]
        assert figure.locator(".isorepro-images div").all_inner_texts() == expected
    said = figure.locator(".isorepro-said").inner_text()
    assert f"FGSM leaves {100 * means('corrected', 'FGSM', 0.0)[1]:.1f} %" in said
    figure.get_by_role("button", name="as released").click()
    assert rates(chart, 2) == pytest.approx(means("as released", "one-gradient PGD", 0.0), abs=3e-3)
    assert "one-gradient PGD" in figure.locator(".isorepro-lines").inner_text()


@pytest.mark.slow
def test_protocols_can_be_seen_side_by_side_or_one_at_a_time(opened: Open) -> None:
    figure = opened(viewport={"width": 1000, "height": 900}).locator("#n-panels")
    drawing, slider = figure.locator(".isorepro-wide"), figure.get_by_label("Weight β of the isometry term")
    assert drawing.is_visible()
    assert not slider.is_visible()
    figure.get_by_role("button", name="as released").press("Enter")
    assert not drawing.is_visible()
    assert slider.is_visible()
    assert figure.get_by_role("button", name="as released").get_attribute("aria-pressed") == "true"
    chart = figure.locator("svg[role=img]").last
    assert rates(chart, 1) == pytest.approx(means("as released", "FGSM", 0.1), abs=3e-3)
    figure.get_by_role("button", name="side by side").click()
    assert drawing.is_visible()
    assert not slider.is_visible()


@pytest.mark.slow
def test_a_radius_moves_images_changes_and_probabilities(opened: Open) -> None:
    figure = opened(viewport={"width": 1000, "height": 900}).locator("#n-radii")
    slider = figure.get_by_label("Radius ε of the attack")
    figure.get_by_role("group", name="Image").get_by_role("button", name="1").click()
    figure.get_by_role("button", name="β\u00a0=\u00a0100").click()
    for key, epsilon in (("End", 0.3), ("ArrowLeft", 0.05), ("Home", 0.0)):
        slider.press(key)
        assert slider.get_attribute("aria-valuetext") == f"{epsilon:g}"
        for place, beta in enumerate([0.0, 100.0]):  # noqa: B007, the query names it
            (row,) = ladder().query("beta == @beta and epsilon == @epsilon and index == 1").itertuples()
            look = figure.locator(".isorepro-pair > div").nth(place)
            assert f"takes it for {row.predicted}" in look.inner_text()
            image, change = (
                np.array(look.locator("canvas").nth(number).evaluate(READ)).reshape(SIDE, SIDE, 4)
                for number in (0, 1)
            )
            assert image[..., 0] == pytest.approx(255 * np.array(row.pixels), abs=0.51)
            moved = np.array(row.pixels) - np.array(pixels(1))
            # Blue where a pixel became lighter, orange where it became darker, white where it stayed.
            blueness = change[..., 2] - change[..., 0]
            assert (np.sign(blueness) == np.sign(moved.round(2))).all()
            numbers = look.locator(".isorepro-bars").inner_text().split("\n")
            expected = [f"{int(100 * round(share, 3) + 0.5)} %" for share in row.probabilities]
            assert [text for text in numbers if "%" in text] == expected


READ = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"


@pytest.mark.slow
def test_curves_glide_unless_motion_is_unwelcome(opened: Open) -> None:
    page = opened(viewport={"width": 1000, "height": 900}, reduced_motion="no-preference")
    figure = page.locator("#n-weights")
    chart = figure.locator("svg[role=img]").nth(0)
    before, after = means("corrected", "FGSM", 0.1), means("corrected", "FGSM", 100.0)
    figure.get_by_label("Weight β of the isometry term").press("End")
    for _ in range(50):
        page.wait_for_timeout(200)
        if rates(chart, 1) == pytest.approx(after, abs=3e-3):
            break
    assert rates(chart, 1) == pytest.approx(after, abs=3e-3)
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_sliders_fit_a_phone_and_follow_the_theme(opened: Open, theme: str) -> None:
    page = opened(viewport={"width": 360, "height": 780}, has_touch=True, is_mobile=True)
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    page.locator("#n-panels").get_by_role("button", name="corrected").tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ink = page.locator("#n-radii .isorepro-said").evaluate("text => getComputedStyle(text).color")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 450) == (theme == "dark")
    for slider in page.locator("input[type=range]").all():
        box = slider.bounding_box()
        assert box
        assert box["width"] > 150
        assert box["height"] >= 24


@pytest.mark.slow
def test_without_scripts_the_drawings_are_there(opened: Open) -> None:
    page = opened(java_script_enabled=False, viewport={"width": 1000, "height": 900})
    for name in ("panels", "weights", "radii"):
        assert page.locator(f"#n-{name} .isorepro-wide").is_visible()
        assert page.locator(f"#n-{name} input").count() == 0
