"""Every page of the book of the smoke profile, opened in a browser."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import VIEWS, pages
from playwright.sync_api import Browser, Page
from test_book import FIGURES

from isorepro import style

pytestmark = pytest.mark.slow

SHIFTS = """() => new Promise(done => {
    let sum = 0;
    const add = list => list.getEntries().forEach(shift => { if (!shift.hadRecentInput) sum += shift.value; });
    new PerformanceObserver(add).observe({type: 'layout-shift', buffered: true});
    setTimeout(() => done(sum), 100);
})"""

LEVELS = """() => [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')]
    .filter(heading => heading.checkVisibility()).map(heading => +heading.tagName[1])"""


def visit(page: Page, address: str, own: str, watched: Callable[[Page, str], list[str]]) -> list[str]:
    """Open a page and return what is wrong with it."""
    faults = watched(page, own)
    page.goto(address)
    page.wait_for_load_state("networkidle")
    if page.locator(".isorepro-rotatable").count():
        page.wait_for_selector(".isorepro-turns")
    shifted = page.evaluate(SHIFTS)
    if shifted >= 0.02:
        faults.append(f"shifts by {shifted:.3f}")
    levels: list[int] = page.evaluate(LEVELS)
    if levels.count(1) != 1 or any(lower > upper + 1 for upper, lower in itertools.pairwise([0, *levels])):
        faults.append(f"headings: {levels}")
    faults += page.evaluate(
        """() => [...document.images].filter(i => i.offsetParent && !(i.complete && i.naturalWidth))
               .map(i => 'image: ' + i.src)"""
    )
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    if width[0] > width[1]:
        faults.append(f"scrolls sideways: {width}")
    return faults


@pytest.mark.parametrize(("scheme", "view"), [("http", "desktop"), ("http", "dark"), ("file", "phone")])
def test_every_page_opens_clean(
    run: Path, browser: Browser, site: str, watched: Callable[[Page, str], list[str]], view: str, scheme: str
) -> None:
    root = site if scheme == "http" else (run / "book").as_uri()
    assert len(pages(run)) >= 8
    faults = {}
    context = browser.new_context(**VIEWS[view])
    for name in pages(run):
        page = context.new_page()
        found = visit(page, f"{root}/{name}", root, watched)
        if found:
            faults[name] = found
        page.close()
    context.close()
    assert not faults


WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
RULES = {
    "desktop": {"runOnly": {"type": "tag", "values": WCAG}, "rules": {"color-contrast": {"enabled": False}}},
    "light": {"runOnly": {"type": "rule", "values": ["color-contrast"]}},
    "phone": {
        "runOnly": {"type": "rule", "values": ["target-size", "scrollable-region-focusable", "meta-viewport"]}
    },
    "dark": {"runOnly": {"type": "rule", "values": ["color-contrast"]}},
}
"""What axe looks for: on a desktop all but colours, which take most of its time; else what may differ."""

OF_EACH_KIND = [
    *("index.html", "claims.html", "method.html", "notation.html", "speed.html"),
    *(f"notebooks/{name}.html" for name in ("rings", "mnist_explorer", "mnist_structure", "beyond_corruptions")),
]
"""Pages that have every kind of element between them; for colours and phones they stand for all."""


@pytest.mark.parametrize("view", RULES)
def test_every_page_is_accessible(run: Path, browser: Browser, view: str) -> None:
    axe = Axe()
    faults = {}
    context = browser.new_context(**VIEWS.get(view, VIEWS["desktop"]))
    for name in pages(run) if view == "desktop" else OF_EACH_KIND:
        page = context.new_page()
        page.goto((run / "book" / name).as_uri())
        page.wait_for_load_state("networkidle")
        # Also what is folded, of tables the first, and colours as they are once nothing fades in.
        page.add_style_tag(content="* { animation: none !important; transition: none !important; }")
        page.evaluate(
            """() => [...document.querySelectorAll('details:not(.isorepro-data)'),
                      ...[...document.querySelectorAll('details.isorepro-data')].slice(0, 1)]
                   .forEach(details => { details.open = true; })"""
        )
        found = axe.run(page, options={**RULES[view], "resultTypes": ["violations"]}).response
        assert found["passes"]
        for violation in found["violations"]:
            faults[name, violation["id"]] = [node["html"] for node in violation["nodes"][:3]]
        page.close()
    context.close()
    assert not faults


@pytest.mark.parametrize("view", ["desktop", "phone"])
@pytest.mark.parametrize("notebook", ["rings", "torus"])
def test_plots_to_rotate_take_the_place_that_was_kept_for_them(
    run: Path, browser: Browser, notebook: str, view: str
) -> None:
    heights = {}
    for plotly in ("loads", "hangs"):
        context = browser.new_context(**VIEWS[view])
        page = context.new_page()
        if plotly == "hangs":
            page.route("**/plotly.min.js*", lambda route: None)
            page.goto((run / f"book/notebooks/{notebook}.html").as_uri(), wait_until="commit")
            page.wait_for_selector(f"#{notebook}-spaces", state="attached")
        else:
            page.goto((run / f"book/notebooks/{notebook}.html").as_uri())
            page.wait_for_selector(".isorepro-turns")
        drawing = page.locator(f"#{notebook}-spaces .isorepro-{'narrow' if view == 'phone' else 'wide'}")
        assert drawing.is_visible() == (plotly == "hangs")
        figure = page.locator(f"#{notebook}-spaces")
        plots = figure.locator(".isorepro-rotatable").bounding_box()
        caption = figure.locator("figcaption").bounding_box()
        assert plots
        assert caption
        assert plots["y"] + plots["height"] <= caption["y"]
        heights[plotly] = (figure.bounding_box() or {})["height"]
        context.close()
    assert heights["loads"] == pytest.approx(heights["hangs"], abs=1)


def test_the_focus_is_seen_and_goes_from_the_link_that_skips_to_the_text(run: Path, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((run / "book/notebooks/rings.html").as_uri())
    page.wait_for_selector(".isorepro-turns")
    page.add_style_tag(content="* { animation: none !important; transition: none !important; }")
    focused = """() => {
        const element = document.activeElement;
        const all = [...document.querySelectorAll('*')];
        const style = getComputedStyle(element);
        const box = element.getBoundingClientRect();
        return {
            place: all.indexOf(element),
            name: element.innerText || element.getAttribute('aria-label'),
            ring: Math.max(
                style.outlineStyle === 'none' ? 0 : parseFloat(style.outlineWidth),
                ...[...style.boxShadow.matchAll(/0px 0px 0px (\\d+)px/g)].map(shadow => +shadow[1]),
            ),
            shown: element.checkVisibility() && box.bottom > 0 && box.top < innerHeight && box.width > 0,
            end: element === document.body,
        };
    }"""
    stops = []
    for _ in range(200):
        page.keyboard.press("Tab")
        stop = page.evaluate(focused)
        if stop["end"]:
            break
        stops.append(stop)
    assert stop["end"]
    assert stops[0]["name"] == "Skip to main content"
    assert {"class", "angle"} <= {stop["name"] for stop in stops}
    assert [stop for stop in stops if stop["ring"] < 2 or not stop["shown"]] == []
    places = [stop["place"] for stop in stops]
    assert places == sorted(places)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.url.endswith("#main-content")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('#main-content').contains(document.activeElement)")
    page.close()


@pytest.mark.parametrize("view", ["desktop", "dark"])
def test_pages_and_figures_have_the_colours_and_letters_of_the_style_and_paper_is_light(
    run: Path, browser: Browser, view: str
) -> None:
    context = browser.new_context(**VIEWS[view])
    page = context.new_page()
    page.goto((run / "book/notebooks/rings.html").as_uri())
    page.wait_for_selector(".isorepro-turns")

    def computed(selector: str, name: str) -> str:
        return str(page.locator(selector).first.evaluate("(e, name) => getComputedStyle(e)[name]", name))

    def rgb(colour: str) -> str:
        return f"rgb({', '.join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))})"

    def check(dark: bool) -> None:
        ink, paper, held = (style.DARK[c] if dark else c for c in (style.INK, style.PAPER, style.HELD))
        assert computed("body", "backgroundColor") == rgb(paper)
        assert computed("article p", "color") == rgb(ink)
        assert computed("article .isorepro-links a", "color") == rgb(held)
        assert computed("article #rings-shepard svg text", "fill") == rgb(ink)

    check(dark=view == "dark")
    plotted = "document.querySelector('.isorepro-plot')._fullLayout.font.family"
    faces = [computed(selector, "fontFamily") for selector in ("body", "h1", "article svg text")]
    assert [*faces, page.evaluate(plotted)] == [style.FONT] * 4
    page.emulate_media(media="print")
    check(dark=False)
    for selector in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article", ".copybtn"):
        assert not any(found.is_visible() for found in page.locator(selector).all()), selector
    context.close()


@pytest.mark.parametrize("view", ["phone", "dark"])
@pytest.mark.parametrize("notebook", FIGURES)
def test_figures_show_one_drawing_in_the_colours_of_the_page(
    browser: Browser, site: str, notebook: str, view: str
) -> None:
    context = browser.new_context(**VIEWS[view])
    page = context.new_page()
    page.goto(f"{site}/notebooks/{notebook}.html")
    page.wait_for_load_state("networkidle")
    figures = page.locator("figure.isorepro-figure")
    assert figures.count() == FIGURES[notebook]
    for number in range(figures.count()):
        figure = figures.nth(number)
        shown, hidden = ("narrow", "wide") if view == "phone" else ("wide", "narrow")
        rotates = figure.locator(".isorepro-rotatable").count() > 0
        assert rotates == ((notebook, number) in {("rings", 0), ("rings", 2), ("torus", 0), ("torus", 2)})
        if rotates:
            figure.locator(".isorepro-plot canvas").first.wait_for()
        slides = notebook == "mnist_explorer"
        plays = (notebook, number) in {("rings", 2), ("torus", 2)}
        assert figure.locator("input[type=range]").first.is_visible() == (slides or plays)
        assert figure.locator(f".isorepro-{shown}").is_visible() == (not rotates and not slides)
        assert not figure.locator(f".isorepro-{hidden}").is_visible()
        assert len(figure.locator("figcaption").inner_text()) > 100
        assert len(figure.locator("[role=img]").first.get_attribute("aria-label") or "") > 50
    inks = page.evaluate(
        """() => [...document.querySelectorAll('.isorepro-figure svg text')].map(t => getComputedStyle(t).fill)"""
    )
    brightness = [sum(map(int, re.findall(r"\d+", ink)[:3])) for ink in inks]
    # Muted letters are darker than ink on a dark page and lighter on a light one; letters on pictures keep theirs.
    most = sorted(brightness)[len(brightness) // 2]
    assert most > 450 if view == "dark" else most < 300
    context.close()
