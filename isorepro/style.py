"""The house style, light and dark: colours and letters of figures and pages; how a figure becomes part of one."""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

INK, MUTED, GRID, PAPER = "#1d2733", "#56616d", "#d9dee4", "#ffffff"
"""Colours of text, of lesser text, of grid lines and of the page."""

HELD, FOOLED = "#0063a6", "#c0430a"
"""Colours of an image that is still classified correctly and of one that fools the network."""

BETWEEN, SURFACE = "#7a3fa0", "#f2f4f7"
"""Colours of what holds in part, and of the ground of code and of every other row of a table."""

FONT = '-apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", "Liberation Sans", Arial, sans-serif'
"""Typefaces of text."""

CODE_FONT = 'ui-monospace, "Cascadia Mono", Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace'
"""Typefaces of code. Like those of text, they are what the reader's own system is written in.

Not ``system-ui``, which in some languages is a face without Greek letters of its own.
"""

SIZES = {"fine": 0.8125, "small": 0.875, "caption": 0.9375, "h4": 1.125, "h3": 1.3125, "h2": 1.625, "h1": 2.125}
"""Sizes of letters on a page, relative to those of its text."""

# A sequence whose steps differ in lightness as well as hue, so that it survives colour blindness and grey;
# its dark end shows on a light page, its light end on a dark one.
_PLASMA = mpl.colormaps["plasma"]
SEQUENCE = [mpl.colors.to_hex(_PLASMA(position)) for position in np.linspace(0.02, 0.6, 12)]
"""Colours of an ordered quantity, from low to high."""

DARK = {
    INK: "#e4e8ec",
    MUTED: "#a3aeb9",
    GRID: "#39424c",
    PAPER: "#14181e",
    HELD: "#56b4e9",
    FOOLED: "#ff9257",
    BETWEEN: "#c9a3f0",
    SURFACE: "#20272f",
    **{
        light: mpl.colors.to_hex(_PLASMA(position))
        for light, position in zip(SEQUENCE, np.linspace(0.40, 0.97, 12), strict=True)
    },
}
"""The colour that stands for each colour on a dark page."""

DARK_PAGES = ('html[data-theme="dark"]', 'body[data-jp-theme-light="false"]')
"""Selectors of a dark page: of the book, and of Jupyter."""

CATEGORIES = (
    "#8028ff",
    "#c08810",
    "#0898c8",
    "#c80060",
    "#20a870",
    "#b000c0",
    "#b05000",
    "#8080ff",
    "#ff40b8",
    "#506880",
)
"""Colours of classes in pictures that cannot follow the theme.

Each has a contrast of 3:1 on a light and on a dark page; found by search for the ten whose nearest two are
farthest apart for deuteranopes and protanopes. They differ in lightness as well as in hue.
"""

# An ellipse in OKLab, cut at 24 angles: the lightness goes with the cosine and the blue-yellow axis with the sine,
# which colour-blind people see; the red-green axis adds the vividness that the others see.
CYCLE = (
    "#2ba396", "#3aa380", "#50a068", "#659a4f", "#799137", "#8a861e", "#977a09", "#a26c0c",
    "#aa5e1f", "#af5133", "#b24546", "#b33c59", "#b2366d", "#af3581", "#ab3994", "#a541a6",
    "#9d4cb6", "#9359c2", "#8667cb", "#7775cf", "#6683cd", "#528fc6", "#3d98ba", "#2d9faa",
)  # fmt: skip
"""Colours of an angle from 0 to 2π, on light and dark pages alike."""

MARKERS = "osD^vP*Xph"
"""Markers of matplotlib, in the order in which lines take them."""

STRETCH = "PuOr_r"
"""Colour map of a stretch: white for none, the same lightness for as much more and as much less."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.hashsalt": "isorepro",
}
"""Settings of matplotlib for every figure."""

WIDE, NARROW = 8.2, 4.0
"""Widths in inches of a figure in the text column and on a phone."""


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style inside the context, whatever the user's matplotlibrc or session says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def fix_panels(figure: Figure) -> None:
    """Have the panels of a figure stay where they are from now on."""
    # With the engine called "none" matplotlib would draw once in vain for each file.
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)


def inline_svg(figure: Figure, identity: str) -> str:
    """Return the figure as an SVG element for a page, its colours variables that the page's theme can set.

    Args:
        figure: one drawn with the colours of this module.
        identity: a prefix for every id in it, unique on the page.
    """
    # Twice as fine as the screen's usual pixels, for what is drawn as a picture inside.
    with mpl.rc_context({"svg.fonttype": "none", "savefig.dpi": 200}):
        svg = _rendered(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(?<=base64,)\s*([^\"]+)", lambda found: _with_a_palette(found[1]), svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{identity}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{identity}-", svg)
    # Where the typeface stands, in "font" or in "font-family", depends on the version of matplotlib.
    svg = re.sub(r"(font(?:-family)?: [^;\"]*?)'[^;\"]*", r"\1var(--isorepro-font, sans-serif)", svg)
    for colour in DARK:
        svg = svg.replace(colour, variable(colour))
    return svg


def _with_a_palette(picture: str) -> str:
    """Return a PNG, in base64, with numbers of colours instead of colours where that is the same and shorter."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
        # A number for each pixel: rows of four would take ten times as long to sort.
        pixels = np.asarray(opened.convert("RGBA")).view(">u4")[..., 0]
    colours = np.unique(pixels)
    if len(colours) > 256:
        return picture
    numbered = Image.fromarray(np.searchsorted(colours, pixels).astype(np.uint8), "P")
    numbered.putpalette(colours.astype(">u4").tobytes(), "RGBA")
    buffer = io.BytesIO()
    numbered.save(buffer, "PNG", optimize=True)
    return min(picture, base64.b64encode(buffer.getvalue()).decode(), key=len)


def variable(colour: str) -> str:
    """Return the CSS variable for a colour, which is the colour itself on a page that does not set it.

    Args:
        colour: one of the light theme.

    Raises:
        ValueError: the colour has none that stands for it on a dark page.
    """
    if colour not in DARK:
        raise ValueError(f"colour: '{colour}' has no dark one")
    return f"var(--isorepro-{colour[1:]}, {colour})"


def dark_theme(selector: str) -> str:
    """Return the CSS that gives the figures below ``selector`` their dark colours on a dark page, not on paper."""
    values = ";".join(f"--isorepro-{light[1:]}:{dark}" for light, dark in DARK.items())
    pages = ",".join(f"{page} {selector}" for page in DARK_PAGES)
    return f"@media screen{{{pages}{{{values}}}}}"


ROLES = {
    **{"isorepro-holds": HELD, "isorepro-partly": BETWEEN, "isorepro-fails": FOOLED, "isorepro-open": MUTED},
    **{"pst-color-text-base": INK, "pst-color-muted": INK, "pst-color-table": INK, "pst-color-on-surface": INK},
    **{"pst-color-inline-code": INK, "pst-color-text-muted": MUTED, "pst-color-blockquote-notch": MUTED},
    **{"pst-color-background": PAPER, "pst-color-on-background": PAPER, "pst-color-surface": SURFACE},
    **{"pst-color-border": GRID, "pst-color-border-muted": GRID, "pst-color-table-inner-border": GRID},
    **{"pst-color-table-row-hover-bg": SURFACE, "sbt-color-announcement": MUTED},
    **{"pst-color-primary": HELD, "pst-color-primary-text": PAPER, "pst-color-link-higher-contrast": HELD},
    **{"pst-color-primary-highlight": INK, "pst-color-primary-highlight-text": PAPER},
    **{"pst-color-secondary": FOOLED, "pst-color-secondary-text": PAPER, "pst-color-accent": BETWEEN},
    **{"pst-color-info": HELD, "pst-color-info-text": PAPER},
    **{"pst-color-warning": FOOLED, "pst-color-warning-text": PAPER},
}
"""Variables of the book's pages, its own and its theme's, and the colour of the light theme that each has.

The theme shows links in its primary colour, under the pointer in its secondary one, the focus in its accent, a bar
beside folded code in its colour of information, and the link that skips to the text on its colour of warning.
"""


def stylesheet() -> str:
    """Return the CSS that gives the book's pages the colours, typefaces and sizes of this module."""

    def colours(theme: str) -> str:
        shown = {name: DARK[light] if theme == "dark" else light for name, light in ROLES.items()}
        return f"{{ color-scheme: {theme}; {_declarations(shown)} }}"

    letters = {
        "isorepro-font": FONT,
        **{f"pst-font-family-{use}": "var(--isorepro-font)" for use in ("base", "heading")},
        "pst-font-family-monospace": CODE_FONT,
        **{f"isorepro-{name}": f"{size}rem" for name, size in SIZES.items()},
        **{f"pst-font-size-{name}": f"var(--isorepro-{name})" for name in SIZES if name.startswith("h")},
    }
    # On paper every page is light. "auto" is the theme before its script has run.
    rules = [
        f"html[data-theme] {{ {_declarations(letters)} }}",
        f"html[data-theme] {colours('light')}",
        f"@media screen {{ html[data-theme=dark] {colours('dark')} }}",
        f"@media screen and (prefers-color-scheme: dark) {{ html[data-theme=auto] {colours('dark')} }}",
    ]
    return "\n".join(["/* Made by isorepro.style. */", *rules, ""])


def _declarations(values: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in values.items())


def plotly_template(*, dark: bool = False) -> dict[str, Any]:
    """Return the house style as plotly takes it in ``layout.template``, in Python and in JavaScript.

    Args:
        dark: for a dark page.
    """

    def shown(colour: str) -> str:
        return DARK[colour] if dark else colour

    letters, clear = {"family": FONT, "color": shown(INK)}, "rgba(0,0,0,0)"
    lines = {"gridcolor": shown(GRID), "linecolor": shown(MUTED), "zerolinecolor": shown(GRID)}
    axis = {"color": shown(MUTED), **lines}
    steps = np.linspace(0, 1, len(SEQUENCE)).tolist()
    return {
        "layout": {
            "font": letters,
            "paper_bgcolor": clear,
            "plot_bgcolor": clear,
            "colorway": list(CATEGORIES),
            "colorscale": {"sequential": [list(pair) for pair in zip(steps, map(shown, SEQUENCE), strict=True)]},
            "hoverlabel": {"bgcolor": shown(PAPER), "bordercolor": shown(MUTED), "font": letters},
            "xaxis": axis,
            "yaxis": axis,
            "scene": {f"{name}axis": {**axis, "showbackground": False} for name in "xyz"},
        }
    }


def standalone(figure: Figure, kind: str, source: str) -> bytes:
    """Return the figure as the bytes of a file of its own ("svg" or "png"), on white, with its source in it."""
    with mpl.rc_context({"svg.fonttype": "path", "savefig.facecolor": PAPER, "savefig.dpi": 200}):
        return _rendered(figure, kind, source)


def _rendered(figure: Figure, kind: str, source: str = "") -> bytes:
    buffer = io.BytesIO()
    # No date in the file: the same figure is the same bytes.
    metadata = {"Date": None, "Source": source} if kind == "svg" else {"Source": source}
    # When it is done, matplotlib gives a figure without a layout engine the default one.
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
