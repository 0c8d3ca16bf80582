"""The terms of the book: which mentions are explained, on a small site of their own, and how, in a browser."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page

from isorepro import book

pytestmark = pytest.mark.slow

CONFIGURATION = f"""
import sys
sys.path.insert(0, {str(book.SOURCES / "_ext")!r})
extensions = ["myst_parser", "isorepro_terms"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
html_theme = "basic"
html_static_path = [{str(book.SOURCES / "_static")!r}]
html_js_files = ["terms.js"]
html_css_files = ["book.css"]
mathjax_path = "none.js"
"""

TERMS = """
- {id: beta, name: β, marks: [β], meaning: 'A weight; "quoted" & <b>plain</b>.', where: "[One](one.md)"}
- {id: stress, name: stress, marks: [scaled stress, stress], meaning: Error., more: $x^2$, where: "[One](one.md)"}
- {id: K, name: K, marks: [K], meaning: A factor., where: "[One](one.md)"}
- {id: E, name: $E$, marks: [], meaning: A mask., where: "[One](one.md)"}
- {id: delta, name: Cliff’s δ, marks: [Cliff’s δ], meaning: A long one. %s, where: "[One](one.md)"}
""" % ("It goes on. " * 20)  # fmt: skip

ONE = """
# β and K in a heading

`β` in code, $β$ in a formula, [K in a link](two.md), prestress, KK, β_x.

```python
β = K
```

| β | K |
|---|---|
| β | 1 |

Stress
: Scaled
  stress, β and then stress, scaled stress, β, all again.

:::{list-table}
:class: isorepro-cards
:header-rows: 1

* - K in a head
* - *K* in a cell
:::

K and β once more.

Far to the right, after a line of many words that fills much of the width of it: Cliff's δ.
"""

TWO = "# Two\n\nNothing, [K](one.md).\n\n```{toctree}\none\nnotation\n```\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small site as Sphinx builds it, each warning an error."""
    folder = tmp_path_factory.mktemp("terms")
    files = {"conf.py": CONFIGURATION, "notation.yml": TERMS, "one.md": ONE, "two.md": TWO}
    files |= {"notation.md": "# Notation\n\nβ, stress.\n\n```{notation}\n```\n"}
    for name, text in files.items():
        (folder / name).write_text(text)
    options = ["-q", "-W", "-n", "-D", "root_doc=two"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(folder), str(folder / "site")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "site"


def explained(page: Path) -> list[tuple[str, str]]:
    found = re.findall(r'<a class="isorepro-term" href="([^"]*)"[^>]*>([^<]*)</a>', page.read_text())
    return [(link, " ".join(text.split())) for link, text in found]


def test_the_first_mention_in_a_sentence_is_explained_and_no_other(folder: Path) -> None:
    assert explained(folder / "one.html") == [
        ("notation.html#term-stress", "Scaled stress"),
        ("notation.html#term-beta", "β"),
        ("notation.html#term-K", "K"),
        ("notation.html#term-delta", "Cliff’s δ"),
    ]
    # K of the cell, the first outside headings, links, code, formulas, tables of numbers and heads of tables.
    assert re.search(r"<em><a [^>]*>K</a></em> in a cell", (folder / "one.html").read_text())
    assert explained(folder / "two.html") == explained(folder / "notation.html") == []


def test_the_table_has_a_row_to_link_to_for_each_term(folder: Path) -> None:
    rows = re.findall(r'<tr[^>]* id="([^"]+)">(.*?)</tr>', (folder / "notation.html").read_text(), flags=re.S)
    assert [name for name, _ in rows] == ["term-beta", "term-stress", "term-K", "term-E", "term-delta"]
    assert "x^2" in rows[1][1]
    assert all('href="one.html"' in row for _, row in rows)


def test_a_term_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    sys.path.insert(0, str(book.SOURCES / "_ext"))
    try:
        import isorepro_terms
    finally:
        sys.path.pop(0)
    path = tmp_path / "notation.yml"
    path.write_text(TERMS + '- {id: L, name: L, marks: [K], meaning: Another., where: ""}\n')
    with pytest.raises(ValueError, match=r"notation\.yml: twice: K"):
        isorepro_terms.load(path)
    assert isorepro_terms.load(book.SOURCES / "notation.yml")


@pytest.fixture(params=[1200, 360])
def page(browser: Browser, folder: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": request.param, "height": 700}, has_touch=True)
    page = context.new_page()
    page.goto((folder / "one.html").as_uri())
    yield page
    context.close()


def mention(page: Page, term: str) -> tuple[Locator, Locator]:
    """The link of a term, and what its description names."""
    link = page.locator(f"a[href='notation.html#term-{term}']")
    return link, page.locator(f"[id='{link.get_attribute('aria-describedby')}']")


def by_pointer(page: Page, link: Locator) -> None:
    link.hover()


def by_keyboard(page: Page, link: Locator) -> None:
    for _ in range(30):
        page.keyboard.press("Tab")
        if link.evaluate("link => link === document.activeElement"):
            return
    pytest.fail("the term cannot be reached by the keyboard")


def by_tap(page: Page, link: Locator) -> None:
    link.tap()


WAYS = [by_pointer, by_keyboard, by_tap]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("term", ["beta", "delta"])
def test_a_meaning_opens_inside_the_window_and_escape_closes_it(
    page: Page, way: Callable[[Page, Locator], None], term: str
) -> None:
    link, meaning = mention(page, term)
    assert meaning.get_attribute("role") == "tooltip"
    assert not meaning.is_visible()
    way(page, link)
    assert meaning.is_visible()
    assert page.locator("[role=tooltip]:visible").count() == 1
    if term == "beta":
        assert meaning.inner_text() == 'A weight; "quoted" & <b>plain</b>.'
    box, window = meaning.bounding_box(), page.viewport_size
    assert box is not None
    assert window is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= window["width"]
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= window["height"]
    assert page.url.endswith("one.html")
    page.keyboard.press("Escape")
    assert not meaning.is_visible()


def test_the_pointer_may_rest_on_a_meaning_and_leaving_closes_it(page: Page) -> None:
    link, meaning = mention(page, "beta")
    link.hover()
    meaning.hover()
    page.wait_for_timeout(500)
    assert meaning.is_visible()
    page.mouse.move(5, 690)
    meaning.wait_for(state="hidden")


def test_focus_that_moves_on_takes_the_meaning_along(page: Page) -> None:
    link, meaning = mention(page, "beta")
    next_link, next_meaning = mention(page, "K")
    link.focus()
    assert meaning.is_visible()
    next_link.focus()
    assert not meaning.is_visible()
    assert next_meaning.is_visible()


def test_a_tap_elsewhere_closes_and_a_second_tap_follows_the_link(page: Page) -> None:
    link, meaning = mention(page, "beta")
    link.tap()
    page.locator("h1").tap()
    assert not meaning.is_visible()
    link.tap()
    assert meaning.is_visible()
    link.tap()
    page.wait_for_url("**/notation.html#term-beta")


@pytest.mark.parametrize("way", ["click", "Enter"])
def test_a_click_and_the_enter_key_follow_the_link_at_once(page: Page, way: str) -> None:
    link, _ = mention(page, "K")
    if way == "click":
        link.click()
    else:
        link.focus()
        page.keyboard.press("Enter")
    page.wait_for_url("**/notation.html#term-K")


def test_without_javascript_a_term_is_a_link_to_the_table(browser: Browser, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "one.html").as_uri())
    page.locator("a.isorepro-term").first.click()
    page.wait_for_url("**/notation.html#term-stress")
    assert page.locator("#term-stress").is_visible()
    context.close()
