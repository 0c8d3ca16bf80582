"""Every page of the book of the smoke profile, opened in a browser."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import VIEWS, pages
from playwright.sync_api import Browser, BrowserContext, Page
from test_book import FIGURES

from isorepro import style

pytestmark = pytest.mark.slow

Watch = Callable[[Page, str], list[str]]

SHIFTS = """() => new Promise(done => {
    let sum = 0;
    const add = list => list.getEntries().forEach(shift => { if (!shift.hadRecentInput) sum += shift.value; });
    new PerformanceObserver(add).observe({type: 'layout-shift', buffered: true});
    setTimeout(() => done(sum), 100);
})"""
"""What moved so far without anyone touching the page: the sum of the scores of its shifts."""

LEVELS = """() => [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')]
    .filter(heading => heading.checkVisibility()).map(heading => +heading.tagName[1])"""


WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
AXE = {
    "desktop": {"runOnly": {"type": "tag", "values": WCAG}},
    "phone": {"runOnly": {"type": "tag", "values": WCAG}, "rules": {"color-contrast": {"enabled": False}}},
    "dark": {"runOnly": {"type": "rule", "values": ["color-contrast"]}},
}
"""What axe looks for: on a desktop everything; colours, which take most of its time, again where they differ."""


@dataclass(frozen=True)
class Look:
    """What was found on a page that was opened once.

    Attributes:
        faults: what is wrong with it.
        violations: what axe found, by rule: the first elements.
        figures: whether each figure rotates, has a slider, and shows its wide and its narrow drawing; how many
            letters its caption and its alternative text have.
        inks: colours of the letters in drawings.
        links: where the page's links lead.
        made: what each figure says of how it was made: the figure's id, the text once unfolded, its links.
    """

    faults: list[str]
    violations: dict[str, list[str]]
    figures: list[dict[str, Any]]
    inks: list[str]
    links: list[str]
    made: list[dict[str, Any]]


def opened(
    context: BrowserContext, addresses: Iterable[str], own: str, watched: Watch
) -> Iterator[tuple[Page, list[str]]]:
    """Open pages one after the other, each while the one before is looked at; yield what goes wrong on it, too."""
    waiting: list[tuple[Page, list[str]]] = []
    for address in addresses:
        page = context.new_page()
        waiting.append((page, watched(page, own)))
        page.goto(address, wait_until="commit")
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def look_at(page: Page, faults: list[str], axe: dict[str, Any]) -> Look:
    page.wait_for_load_state("load")
    # Half a second in which it asks for nothing more.
    page.wait_for_load_state("networkidle")
    for turns in page.locator("figure:has(.isorepro-rotatable)").all():
        turns.scroll_into_view_if_needed()
        page.locator(f"#{turns.get_attribute('id')}.isorepro-turns").wait_for()
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
    faults += page.evaluate(
        """() => [...document.querySelectorAll('.isorepro-plot')].map(plot => {
            const [place, canvas] = [plot, plot.querySelector('canvas')].map(one => one.getBoundingClientRect());
            return [canvas.width - place.width, canvas.height - place.height];
        }).filter(over => over.some(by => Math.abs(by) > 2)).map(over => `plot larger than its place: ${over}`)"""
    )
    figures = page.evaluate(
        """() => [...document.querySelectorAll('figure.isorepro-figure')].map(figure => {
            const shows = selector =>
                !!figure.querySelector(selector)?.checkVisibility({visibilityProperty: true});
            return {
                rotates: !!figure.querySelector('.isorepro-rotatable'),
                slider: shows('input[type=range]'),
                wide: shows('.isorepro-wide'),
                narrow: shows('.isorepro-narrow'),
                caption: figure.querySelector('figcaption').innerText.length,
                alternative: figure.querySelector('[role=img]').getAttribute('aria-label').length,
            };
        })"""
    )
    inks = page.evaluate(
        """() => [...document.querySelectorAll('.isorepro-figure svg text')].map(t => getComputedStyle(t).fill)"""
    )
    links = page.evaluate("[...document.querySelectorAll('a[href]')].map(link => link.href)")
    # What axe does afterwards, such as asking for style sheets, is not the page's doing.
    faults = list(faults)
    # Also what is folded, of tables the first, and colours as they are once nothing fades in.
    page.add_style_tag(content="* { animation: none !important; transition: none !important; }")
    page.evaluate(
        """() => [...document.querySelectorAll('details:not(.isorepro-data)'),
                  ...[...document.querySelectorAll('details.isorepro-data')].slice(0, 1)]
               .forEach(details => { details.open = true; })"""
    )
    made = page.evaluate(
        """() => [...document.querySelectorAll('figure.isorepro-figure')].map(figure => ({
            id: figure.id,
            text: [...figure.querySelectorAll('details.isorepro-made')].map(told => told.innerText).join(),
            links: [...figure.querySelectorAll('details.isorepro-made a')].map(link => link.href),
        }))"""
    )
    found = violations(page, axe)
    return Look(faults, found, figures, inks, links, made)


THIN = """() => {
    document.querySelectorAll('[role=img] > svg').forEach(drawing => drawing.replaceChildren());
    document.querySelectorAll('.isorepro-scroll tbody').forEach(body => {
        [...body.rows].slice(4).filter(row => !row.querySelector('td > *')).forEach(row => row.remove());
    });
    [...document.querySelectorAll('pre')].slice(4).forEach(listing => listing.replaceChildren());
}"""
"""Takes from a page what axe spends most of its time on: the inside of drawings, which is nothing to those who do
not see them; rows of plain cells and listings of code that are like those which stay."""


def violations(page: Page, axe: dict[str, Any]) -> dict[str, list[str]]:
    """Return what axe finds, by rule the first elements."""
    drawings = "[role=img] > svg"
    assert not page.locator(f"{drawings} a, {drawings} [tabindex]").count()
    page.evaluate(THIN)
    found = Axe().run(page, options={**axe, "resultTypes": ["violations"]}).response
    assert found["passes"]
    return {rule["id"]: [node["html"] for node in rule["nodes"][:3]] for rule in found["violations"]}


@pytest.fixture(scope="module", params=[("http", "desktop"), ("http", "dark"), ("file", "phone")], ids="-".join)
def seen(
    request: pytest.FixtureRequest, run: Path, browser: Browser, site: str, watched: Watch
) -> tuple[str, dict[str, Look]]:
    """A view, and what was seen in it on every page, over http or from disk."""
    scheme, view = request.param
    root = site if scheme == "http" else (run / "book").as_uri()
    looks, names = {}, pages(run)
    with browser.new_context(**VIEWS[view]) as context:
        shown = opened(context, [f"{root}/{name}" for name in names], root, watched)
        for name, (page, faults) in zip(names, shown, strict=True):
            assert page.url == f"{root}/{name}"
            looks[name] = look_at(page, faults, AXE[view])
            page.close()
    return view, looks


def test_every_page_opens_clean(seen: tuple[str, dict[str, Look]]) -> None:
    _, looks = seen
    assert len(looks) >= 8
    assert {name: look.faults for name, look in looks.items() if look.faults} == {}


def test_every_page_is_accessible(seen: tuple[str, dict[str, Look]]) -> None:
    _, looks = seen
    assert {name: look.violations for name, look in looks.items() if look.violations} == {}


def test_no_link_is_broken(seen: tuple[str, dict[str, Look]], run: Path, site: str) -> None:
    _, looks = seen
    broken = []
    ids: dict[Path, set[str]] = {}
    for name, look in looks.items():
        for link in look.links:
            path, _, fragment = link.replace(site, (run / "book").as_uri()).partition("#")
            if not path.startswith("file:"):
                continue
            target = Path(path.removeprefix("file://").partition("?")[0])
            if not target.is_file():
                broken.append(f"{name}: {link}")
            elif fragment and target.suffix == ".html":
                if target not in ids:
                    ids[target] = set(re.findall(r'\bid="([^"]+)"', target.read_text()))
                if fragment not in ids[target]:
                    broken.append(f"{name}: {link}")
    assert len(ids) > 20
    assert not broken


def test_every_figure_tells_how_it_was_made(seen: tuple[str, dict[str, Look]]) -> None:
    _, looks = seen
    drawn = re.compile(r"/_modules/isorepro/((structure_|stack_|method_)?plots|scenes|explorables)\.html#")
    # What has a single seed of its own in this profile.
    single = {"torus-phase", "beyond-search-tried", "beyond-corruptions-corruptions"}
    for name, look in looks.items():
        for made in look.made:
            links = made["links"]
            # That each of them leads somewhere is another test's business.
            assert any(drawn.search(link) for link in links), name
            if name != "speed.html":
                assert any(re.search(rf"/notebooks/\w+\.html#{made['id']}$", link) for link in links), name
                assert any(re.search(r"/_sources/notebooks/\w+\.ipynb$", link) for link in links), name
                seeds = "0" if made["id"] in single else r"0, 1( \(seeds\); 0 \(\w+_seed\))?"
                # The page keeps a unit on the line of its number.
                took = r"(\d+\s+s|less than 1\s+s|\d+:\d\d\s+min)"
                told = rf"Seeds\n+{seeds}\n+Time\n+{took} in these cells"
                assert re.search(told, made["text"]), made["text"]
    assert len(looks["index.html"].made) == len(looks["speed.html"].made) == 2


def test_figures_show_one_drawing_in_the_colours_of_the_page(seen: tuple[str, dict[str, Look]]) -> None:
    view, looks = seen
    for notebook, count in FIGURES.items():
        found = looks[f"notebooks/{notebook}.html"]
        assert len(found.figures) == count
        for number, figure in enumerate(found.figures):
            rotates = (notebook, number) in {("rings", 0), ("rings", 2), ("torus", 0), ("torus", 2)}
            plays = (notebook, number) in {("rings", 2), ("torus", 2)}
            slides = notebook == "mnist_explorer"
            drawn = not rotates and not slides
            assert figure["rotates"] == rotates
            assert figure["slider"] == (slides or plays)
            shown = (figure["wide"], figure["narrow"])
            assert shown == ((drawn and view != "phone"), (drawn and view == "phone")), (notebook, number)
            assert figure["caption"] > 100
            assert figure["alternative"] > 50
        brightness = [sum(map(int, re.findall(r"\d+", ink)[:3])) for ink in found.inks]
        # Muted letters are darker than ink on a dark page and lighter on a light one; letters on pictures keep
        # theirs.
        most = sorted(brightness)[len(brightness) // 2]
        assert most > 450 if view == "dark" else most < 300


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
            page.locator(f"#{notebook}-spaces").scroll_into_view_if_needed()
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
