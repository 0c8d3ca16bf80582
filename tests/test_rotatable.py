"""Figures to rotate, on a page of their own in a browser."""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from isorepro import book, scenes, style
from isorepro.results import Results

pytestmark = pytest.mark.slow

NAMES = ["Data", "CE", "β = 1"]


def rings(count: int = 60) -> pd.DataFrame:
    """Two linked rings in three spaces."""
    t = np.arange(count) * 2 * np.pi / count
    x, y, z = np.c_[np.r_[np.cos(t), 1 + np.cos(t)], np.r_[np.sin(t), 0 * t], np.r_[0 * t, np.sin(t)]].T
    points = pd.DataFrame(
        {"x": x, "y": y, "z": z, "ring": ["<i>one"] * count + ["two"] * count, "angle": np.r_[t, t]}
    )
    return pd.concat([points.assign(space=name) for name in NAMES])


EPOCHS = [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 1000]


def training() -> pd.DataFrame:
    """The rings in two spaces, which grow and move from epoch to epoch."""
    return pd.concat(
        rings(20)
        .query(f"space == '{name}'")
        .assign(
            x=lambda points: points["x"] * (1 + number) + speed * number,  # noqa: B023
            epoch=epoch,
            state=f"{name} after {epoch}",
        )
        for name, speed in (("CE", 0.5), ("β = 1", -2.0))
        for number, epoch in enumerate(EPOCHS)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pages as the book makes them: a figure on each, and the two scripts deferred."""
    folder = tmp_path_factory.mktemp("site")
    results = Results("n", folder)
    pages = {
        "index": results.figure(
            "rings",
            scenes.spaces,
            rings(),
            colour=["ring", "angle"],
            caption="Two rings.",
            alt="Two linked rings",
            data=rings(),
            rotatable=scenes.rotatable,
        ),
        "training": results.figure(
            "training",
            scenes.training_frames,
            training(),
            colour=["ring", "angle"],
            caption="Two rings in training.",
            alt="Two linked rings at some epochs",
            data=training(),
            rotatable=scenes.rotatable_frames,
        ),
    }
    (folder / "plotly.min.js").write_bytes((files("plotly") / "package_data" / "plotly.min.js").read_bytes())
    (folder / "rotatable.js").write_bytes((files("isorepro") / "rotatable.js").read_bytes())
    for name, shown in pages.items():
        (folder / f"{name}.html").write_text(
            '<!doctype html><html data-theme="light"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            "<style>body{max-width:800px}</style>"
            '<link rel="icon" href="data:,"><script defer src="plotly.min.js"></script>'
            '<script defer src="rotatable.js"></script><body>'
            f'{shown.markup}<p style="height:2000px">After</p></body></html>'
        )
    return folder


Open = Callable[..., Page]


@pytest.fixture
def opened(folder: Path, browser: Browser, watched: Callable[[Page, str], list[str]]) -> Iterator[Open]:
    """A function that opens one of the pages; in the end nothing may have gone wrong on it."""
    contexts, faults = [], []

    def visit(name: str = "index", *, patch: str = "", turns: bool = True, **options: object) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(patch)
        faults.append(watched(page, folder.as_uri()))
        page.goto((folder / f"{name}.html").as_uri())
        page.wait_for_load_state("networkidle")
        if turns:
            page.wait_for_selector(".isorepro-turns")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == [[]] * len(faults)


def marker_colours(page: Page) -> list[list[str]]:
    found: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('.isorepro-plot')].map(p => p._fullData[0].marker.color)"
    )
    return found


def picture(plot: Locator, eye: tuple[float, float, float] | None = None) -> np.ndarray:
    """What a plot shows, from its own eye or from another: an array (height, width, red-green-blue-alpha)."""
    address: str = plot.evaluate(
        """(plot, eye) => {
            const scene = {...plot.layout.scene};
            if (eye) scene.camera = {...scene.camera, eye: {x: eye[0], y: eye[1], z: eye[2]}};
            const {width, height} = plot.getBoundingClientRect();
            const figure = {data: plot.data, layout: {...plot.layout, scene}};
            return Plotly.toImage(figure, {format: 'png', width: Math.round(width), height: Math.round(height)});
        }""",
        eye,
    )
    return np.array(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGBA"))


def brightness(css: str) -> int:
    return sum(map(int, re.findall(r"\d+", css)[:3]))


def test_every_space_is_drawn_and_its_drawing_hidden(opened: Open) -> None:
    page = opened(viewport={"width": 1000, "height": 900})
    plots_shown = page.locator(".isorepro-plot")
    assert page.locator(".isorepro-space").all_inner_texts() == NAMES
    for number, name in enumerate(NAMES):
        assert plots_shown.nth(number).get_attribute("role") == "img"
        label = plots_shown.nth(number).get_attribute("aria-label") or ""
        assert label.startswith(name)
        assert "120 points" in label
        drawn = {f"#{bytes(pixel[:3]).hex()}" for pixel in picture(plots_shown.nth(number)).reshape(-1, 4)}
        assert set(style.CATEGORIES[:2]) <= drawn
    assert not page.locator(".isorepro-wide").is_visible()
    assert not page.locator(".isorepro-narrow").is_visible()
    assert page.locator("figcaption").is_visible()
    tops = {box["y"] for box in (plots_shown.nth(number).bounding_box() for number in range(3)) if box}
    assert len(tops) == 1


def test_buttons_choose_the_colouring_by_mouse_and_keyboard(opened: Open) -> None:
    page = opened(viewport={"width": 1000, "height": 900})
    buttons = page.locator(".isorepro-choice button")
    assert buttons.all_inner_texts() == ["ring", "angle"]
    assert page.locator(".isorepro-key").inner_text().split() == ["<i>one", "two"]
    assert {colour for plot in marker_colours(page) for colour in plot} == set(style.CATEGORIES[:2])
    buttons.nth(1).click()
    assert {colour for plot in marker_colours(page) for colour in plot} == set(style.CYCLE)
    assert [buttons.nth(number).get_attribute("aria-pressed") for number in (0, 1)] == ["false", "true"]
    assert page.locator(".isorepro-key").inner_text().split() == ["0", "2π"]
    assert "angle" in (page.locator(".isorepro-plot").first.get_attribute("aria-label") or "")
    buttons.nth(0).focus()
    page.keyboard.press("Enter")
    assert {colour for plot in marker_colours(page) for colour in plot} == set(style.CATEGORIES[:2])


def test_dragging_rotates_and_the_theme_changes_colours_only(opened: Open) -> None:
    page = opened(viewport={"width": 1000, "height": 900})
    camera = "JSON.stringify(document.querySelector('.isorepro-plot')._fullLayout.scene._scene.getCamera().eye)"
    grid = "document.querySelector('.isorepro-plot')._fullLayout.scene.xaxis.gridcolor"
    text = "getComputedStyle(document.querySelector('.isorepro-space')).color"
    before = page.evaluate(camera)
    box = page.locator(".isorepro-plot").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 130, steps=6)
    page.mouse.up()
    turned = page.evaluate(camera)
    assert turned != before
    assert page.evaluate(grid) == style.GRID
    assert brightness(page.evaluate(text)) < 200
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_function(f"{grid} === '{style.DARK[style.GRID]}'")
    assert brightness(page.evaluate(text)) > 600
    was, now = (re.findall(r"-?[\d.]+", text) for text in (turned, page.evaluate(camera)))
    np.testing.assert_allclose(np.array(now, float), np.array(was, float), atol=1e-3)


def test_a_figure_far_below_is_a_drawing_until_the_reader_comes_near(opened: Open) -> None:
    move = """addEventListener('DOMContentLoaded', () => {
        document.body.prepend(document.querySelector('p[style]'));
        document.querySelector('p').style.height = '4000px';
    })"""
    page = opened(patch=move, turns=False, viewport={"width": 1000, "height": 900})
    page.wait_for_timeout(500)
    assert not page.locator(".isorepro-turns").count()
    assert not page.locator(".isorepro-plot").count()
    assert page.locator(".isorepro-wide").evaluate("drawing => drawing.checkVisibility()")
    page.evaluate("window.scrollTo(0, 3000)")
    page.wait_for_selector(".isorepro-turns")
    assert page.locator(".isorepro-plot canvas").count() >= 3


def test_the_wheel_scrolls_the_page(opened: Open) -> None:
    page = opened(viewport={"width": 1000, "height": 500})
    page.locator(".isorepro-plot").first.hover()
    page.mouse.wheel(0, 400)
    page.wait_for_function("window.scrollY > 100")


def test_on_a_phone_plots_are_below_each_other_and_a_finger_scrolls_past(opened: Open) -> None:
    page = opened(viewport={"width": 360, "height": 780}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tops = [page.locator(".isorepro-plot").nth(number).bounding_box() for number in range(3)]
    heights = [box["y"] for box in tops if box]
    assert heights == sorted(heights)
    assert len(set(heights)) == 3
    camera = "JSON.stringify(document.querySelector('.isorepro-plot')._fullLayout.scene._scene.getCamera().eye)"
    touches = page.context.new_cdp_session(page)

    def swipe(across: int, down: int) -> None:
        box = page.locator(".isorepro-plot").first.bounding_box()
        assert box
        x, y = box["x"] + 150, box["y"] + 150
        touches.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for step in range(1, 9):
            point = {"x": x + across * step / 8, "y": y + down * step / 8}
            touches.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
        touches.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.wait_for_timeout(300)

    before = page.evaluate(camera)
    swipe(-100, 10)
    turned = page.evaluate(camera)
    assert turned != before
    assert page.evaluate("window.scrollY") == 0
    swipe(5, -200)
    assert page.evaluate(camera) == turned
    assert page.evaluate("window.scrollY") > 50


NO_WEBGL = """
const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
    return kind.includes('webgl') ? null : get.call(this, kind, ...rest);
};
"""


@pytest.mark.parametrize(
    "options",
    [{"patch": NO_WEBGL}, {"java_script_enabled": False}],
    ids=["no WebGL", "no JavaScript"],
)
def test_without_webgl_or_javascript_the_drawing_stays(opened: Open, options: dict[str, object]) -> None:
    page = opened(turns=False, viewport={"width": 1000, "height": 900}, **options)
    page.wait_for_timeout(500)
    assert page.locator(".isorepro-wide").is_visible()
    assert not page.locator(".isorepro-rotatable").is_visible()


PLAYED = """() => ({
    number: +document.querySelector('input[type=range]').value,
    told: document.querySelector('.isorepro-epoch').innerText,
    states: [...document.querySelectorAll('.isorepro-state')].map(state => state.innerText),
    labels: [...document.querySelectorAll('.isorepro-plot')].map(plot => plot.getAttribute('aria-label')),
    points: [...document.querySelectorAll('.isorepro-plot')].map(plot => 'xyz'.split('').map(axis =>
        [...plot._fullData[0][axis]])),
    button: document.querySelector('.isorepro-clock button').innerText,
})"""


def check_epoch(page: Page, number: int) -> None:
    """See to it that both spaces show an epoch, in words and in points."""
    shown = page.evaluate(PLAYED)
    epoch, table = EPOCHS[number], training()
    assert shown["number"] == number
    assert shown["told"] == f"epoch {epoch:,} of 1,000"
    assert page.locator("input[type=range]").get_attribute("aria-valuetext") == shown["told"]
    for place, name in enumerate(("CE", "β = 1")):
        assert shown["states"][place] == f"{name} after {epoch}"
        assert shown["labels"][place].endswith(f"epoch {epoch}: {name} after {epoch}")
        of_space = table[table["space"] == name]
        width = np.ptp(of_space["x"]) * 1.06
        expected = of_space.loc[of_space["epoch"] == epoch, ["x", "y", "z"]].to_numpy().T
        np.testing.assert_allclose(shown["points"][place], expected, atol=width / 65535)


def test_a_training_shows_its_end_and_plays_once_from_its_beginning(opened: Open) -> None:
    page = opened("training", viewport={"width": 1000, "height": 900})
    check_epoch(page, len(EPOCHS) - 1)
    button = page.get_by_role("button", name="Play")
    page.evaluate(
        """() => {
            const told = document.querySelector('.isorepro-epoch');
            window.seen = [];
            new MutationObserver(() => window.seen.push(told.innerText)).observe(told, {childList: true});
        }"""
    )
    button.click()
    assert page.evaluate(PLAYED)["button"] == "Pause"
    button.wait_for()
    assert page.evaluate("window.seen") == [f"epoch {epoch:,} of 1,000" for epoch in EPOCHS]
    check_epoch(page, len(EPOCHS) - 1)


def test_a_training_is_stopped_and_scrubbed_by_keyboard(opened: Open) -> None:
    page = opened("training", viewport={"width": 360, "height": 780})
    page.locator(".isorepro-clock button").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("+document.querySelector('input[type=range]').value >= 2")
    page.keyboard.press("Enter")
    page.wait_for_timeout(600)
    stopped = page.evaluate(PLAYED)
    assert stopped["button"] == "Play"
    assert 2 <= stopped["number"] < len(EPOCHS) - 1
    page.wait_for_timeout(600)
    assert page.evaluate(PLAYED)["number"] == stopped["number"]
    check_epoch(page, stopped["number"])
    page.locator("input[type=range]").focus()
    for key, number in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("End", len(EPOCHS) - 1)):
        page.keyboard.press(key)
        page.wait_for_timeout(300)
        check_epoch(page, number)


def test_a_colouring_stays_while_a_training_goes_on(opened: Open) -> None:
    page = opened("training", viewport={"width": 1000, "height": 900})
    page.get_by_role("button", name="angle").click()
    page.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    assert {colour for plot in marker_colours(page) for colour in plot} <= set(style.CYCLE)


def test_where_the_library_fails_the_drawing_comes_back(folder: Path, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.route(
        "**/plotly.min.js", lambda route: route.fulfill(body="Plotly = {newPlot() { throw 'broken' }, purge() {}}")
    )
    page.goto((folder / "index.html").as_uri())
    page.wait_for_load_state("networkidle")
    assert page.locator(".isorepro-wide").is_visible()
    assert not page.locator(".isorepro-rotatable").is_visible()
    page.close()


def test_on_paper_the_drawing_stays(opened: Open) -> None:
    page = opened(viewport={"width": 1000, "height": 900})
    page.emulate_media(media="print")
    assert page.locator(".isorepro-wide").is_visible()
    assert not page.locator(".isorepro-rotatable").is_visible()


def test_a_lost_context_brings_the_drawing_back(opened: Open) -> None:
    page = opened(viewport={"width": 1000, "height": 900})
    page.evaluate("document.querySelector('.isorepro-plot').emit('plotly_webglcontextlost')")
    assert page.locator(".isorepro-wide").is_visible()
    assert not page.locator(".isorepro-rotatable").is_visible()


def test_no_corner_of_the_box_is_cut_off_on_a_phone(opened: Open) -> None:
    page = opened(viewport={"width": 360, "height": 780})
    far = page.evaluate(
        "Math.hypot(...Object.values(document.querySelector('.isorepro-plot').layout.scene.camera.eye))"
    )
    for eye in (None, (0.3, -0.6, 0.74), (1, 1, 1), (0, 1, 1), (-0.9, 0.4, -0.2)):
        place = eye and tuple(np.array(eye) / np.linalg.norm(eye) * far)
        seen = picture(page.locator(".isorepro-plot").first, place and tuple(map(float, place)))[:, :, 3] > 0
        assert seen.any(), eye
        for edge in (seen[0], seen[-1], seen[:, 0], seen[:, -1]):
            assert not edge.any(), eye
        assert np.ptp(np.flatnonzero(seen.any(axis=1))) > 0.6 * len(seen), eye


def test_in_jupyter_figures_bring_what_they_need(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: Callable[[Page, str], list[str]]
) -> None:
    monkeypatch.delenv("ISOREPRO_RUN", raising=False)
    monkeypatch.setenv("ISOREPRO_OUTPUT", str(tmp_path))
    results = Results("n")
    outputs = [
        results.figure(
            name, scenes.spaces, rings(), colour=["ring"], caption="c", alt="a", data=rings(),
            rotatable=scenes.rotatable,
        ).markup
        for name in ("first", "second")
    ]  # fmt: skip
    page = browser.new_page()
    faults = watched(page, "about:")
    page.set_content("<!doctype html><body>" + "".join(outputs) + "</body>")
    page.wait_for_function("document.querySelectorAll('.isorepro-turns').length === 2")
    assert page.locator(".isorepro-plot canvas").count() >= 6
    page.close()
    assert not faults


def test_only_the_pages_with_such_a_figure_load_the_scripts(folder: Path, tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    shutil.copytree(folder / "results", source / "results")
    (source / "conf.py").write_text("extensions = ['isorepro_book']\nhtml_theme = 'basic'\n")
    (source / "index.rst").write_text(
        "Front\n=====\n\n.. toctree::\n\n   deep/one\n   two\n\n.. code::\n\n"
        "   '<div class=\"isorepro-rotatable\" hidden>'\n"
    )
    (source / "deep").mkdir()
    (source / "deep" / "one.rst").write_text("One\n===\n\n.. run-figure:: n/rings\n")
    (source / "two.rst").write_text(
        "Two\n===\n\nNothing to rotate: 5% or 50 % in 5 s at β = 0.1 (b = -1), :math:`K = 1`, ``7% left``,\n"
        "``geometry.spearman``, ``geometry.jacobian_singular_values``.\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", str(source), str(made)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(book.SOURCES / "_ext"), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(made).as_posix(): path.read_text() for path in made.rglob("*.html")}
    assert [name for name, page in pages.items() if "plotly.min.js" in page] == ["deep/one.html"]
    # Numbers are tied to what belongs to them, but in formulas and code.
    assert "5\u00a0% or 50\u00a0% in 5\u00a0s at β\u00a0=\u00a00.1 (b\u00a0=\u00a0-1)" in pages["two.html"]
    assert "K = 1" in pages["two.html"]
    assert '<span class="pre">7%</span>' in pages["two.html"]
    # Only long names may be broken.
    assert ">geometry.spearman<" in pages["two.html"]
    assert ">geometry.<wbr>jacobian_<wbr>singular_<wbr>values<" in pages["two.html"]
    scripts = re.findall(r'<script defer="defer" src="\.\./(_static/figures/[^"?]+)', pages["deep/one.html"])
    assert scripts == ["_static/figures/plotly.min.js", "_static/figures/rotatable.js"]
    for script in scripts:
        assert (made / script).read_bytes() == (folder / Path(script).name).read_bytes()
