"""What a notebook leaves behind: figures with caption and data, tidy tables, and the numbers of the prose."""

import html
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from isorepro import paths, style
from isorepro.tables import dashed

RUN = "ISOREPRO_RUN"
"""Environment variable: the folder of the run that executes the notebook; ``_output/interactive`` without it."""

RUN_ID = "ISOREPRO_RUN_ID"
"""Environment variable: what tells, in every file of a notebook, which run made it; "interactive" without it."""

ID_COLUMN = "run"
"""Last column of every table: the run's id."""


@dataclass(frozen=True)
class Shown:
    """Something a notebook shows: its HTML."""

    markup: str

    def _repr_html_(self) -> str:
        return self.markup


class Results:
    """The results of one notebook, written to ``results/<notebook>`` of the run's folder.

    Args:
        notebook: the notebook's name without suffix.
        run: the run's folder; None for the one that executes the notebook.
        run_id: what tells in every file where its numbers come from; None for the run that executes the notebook.
    """

    def __init__(self, notebook: str, run: Path | None = None, run_id: str | None = None) -> None:
        self._executed = run is not None or RUN in os.environ
        self._library_shown = False
        self._id = run_id or os.environ.get(RUN_ID, "interactive")
        run = run or paths.given(paths.output() / "interactive", RUN)
        self.notebook = notebook
        self.folder = run / "results" / notebook
        # Executed notebooks, and the pages made of them, lie beside the run's results.
        beside = run / "notebooks" if self._executed else Path.cwd()
        self.link = Path(os.path.relpath(self.folder, beside)).as_posix()
        self._numbers: dict[str, float | int | str | None] = {}

    def table(self, name: str, data: pd.DataFrame, shown: pd.DataFrame | None = None) -> Shown:
        """Write a tidy table and the run's id as ``<name>.csv``, floats in full precision; return it for display.

        Args:
            name: name of its files.
            data: the tidy table.
            shown: the table to show, ready formatted, also written for other pages as ``<name>.html``; ``data``
                without it.
        """
        written = data.assign(**{ID_COLUMN: self._id}).to_csv(index=False)
        paths.write_atomically(self.folder / f"{name}.csv", written)
        body = _html_table(data if shown is None else shown, f"Table {name}")
        markup = f'{body}<p class="isorepro-links">Download: {self._link(name, "csv")}</p>'
        if shown is not None:
            paths.write_atomically(self.folder / f"{name}.html", markup)
        return Shown(markup)

    def numbers(self, **values: float | int | str) -> None:
        """Add named numbers to ``numbers.json``, from which the pages' prose takes them.

        One that is not finite, such as the end of an interval over a single seed, is written as null.

        Raises:
            TypeError: a value that is not a number or text.
        """
        plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
        plain = {name: dashed(value) if isinstance(value, str) else value for name, value in plain.items()}
        for name, value in plain.items():
            if not isinstance(value, float | int | str):
                raise TypeError(f"number '{name}': must be a number or text, not {type(value).__name__}")
        # JSON has no NaN and no infinity.
        undefined = {
            name: None for name, value in plain.items() if isinstance(value, float) and not math.isfinite(value)
        }
        self._numbers |= plain | undefined
        paths.write_atomically(self.folder / "numbers.json", json.dumps(self._numbers, indent=1, allow_nan=False))

    def figure(
        self,
        name: str,
        draw: Callable[..., Figure],
        *args: Any,
        caption: str,
        alt: str,
        data: pd.DataFrame,
        shown: pd.DataFrame | None = None,
        rotatable: Callable[..., dict[str, Any]] | None = None,
        explorable: Callable[..., dict[str, Any]] | None = None,
        **options: Any,
    ) -> Shown:
        """Draw a figure twice (wide and for a phone), write it with its data, and return it for display.

        Args:
            name: name of its files: ``<name>.svg``, ``.png``, ``.csv`` and, for other pages, ``.html``.
            draw: a function such as those of :mod:`isorepro.plots`.
            args, options: its arguments, without ``narrow``.
            caption: what it shows, complete without the text around it; plain text. A number that is not
                defined, formatted as "nan", is shown as a dash, here and in ``alt``.
            alt: what one sees, for those who do not see it.
            data: the tidy table behind it, written as CSV.
            shown: the table shown under the figure, ready formatted; ``data`` without it.
            rotatable: a function such as :func:`isorepro.scenes.rotatable` that returns the figure as data to
                rotate, or to play; called as ``draw`` is. The drawings stay, for paper and for browsers without
                JavaScript or WebGL.
            explorable: a function of :mod:`isorepro.explorables` that returns the figure as data for a slider;
                called as ``draw`` is, and the drawings stay as well.

        Raises:
            ValueError: ``rotatable`` or ``explorable`` returned a number that is not finite.
        """
        identity = f"{self.notebook}-{name}".replace("_", "-")
        with style.house_style():
            wide, narrow = (draw(*args, **options, narrow=narrow) for narrow in (False, True))
            drawings = {
                "wide": style.inline_svg(wide, f"{identity}-wide"),
                "narrow": style.inline_svg(narrow, f"{identity}-narrow"),
            }
            # They have found their places; to look for them again would cost half of the time.
            style.fix_panels(wide)
            for kind in ("svg", "png"):
                file = style.standalone(wide, kind, f"isorepro run {self._id}")
                paths.write_atomically(self.folder / f"{name}.{kind}", file)
        self.table(name, data)
        caption, alt = html.escape(dashed(caption)), html.escape(dashed(alt), quote=True)
        images = "".join(
            f'<div class="isorepro-{width}" role="img" aria-label="{alt}">{svg}</div>'
            for width, svg in drawings.items()
        )
        turning = rotatable and _turning(rotatable(*args, **options))
        sliding = explorable and _container("explorable", _beside("explorable.css"), explorable(*args, **options))
        links = " · ".join(self._link(name, kind) for kind in ("svg", "png", "csv"))
        body = _html_table(data if shown is None else shown, "The numbers behind the figure")
        markup = (
            f'<figure class="isorepro-figure" id="{identity}">'
            f"<style>{_LAYOUT}{style.dark_theme(f'#{identity}')}</style>"
            f"{images}{turning or ''}{sliding or ''}<figcaption>{caption}</figcaption>"
            f'<p class="isorepro-links">Download: {links}</p>'
            '<details class="isorepro-data"><summary>The numbers behind the figure</summary>'
            f"{body}</details></figure>"
        )
        paths.write_atomically(self.folder / f"{name}.html", markup)
        if self._executed:
            return Shown(markup)
        # The pages of the book load these themselves.
        if turning:
            markup += self._plotly() + _script("rotatable")
        return Shown(markup + (_script("explorable") if sliding else ""))

    def _plotly(self) -> str:
        """Return what a notebook in Jupyter needs before the first figure that rotates."""
        library = ""
        if not self._library_shown:
            from plotly.offline import get_plotlyjs  # 5 MB that only a reader at work in Jupyter needs

            library = f"<script>{get_plotlyjs()}</script>"
            self._library_shown = True
        return library

    def _link(self, name: str, kind: str) -> str:
        return f'<a href="{self.link}/{name}.{kind}" download>{kind.upper()}</a>'


_LAYOUT = (
    ".isorepro-figure svg{width:100%;height:auto;display:block}"
    ".isorepro-narrow{display:none}.isorepro-scroll{overflow-x:auto}"
    "@media(max-width:600px){.isorepro-wide{display:none}.isorepro-narrow{display:block}}"
)

_CHOOSING = (
    ".isorepro-choice{display:flex;flex-wrap:wrap;gap:.4rem .5rem;align-items:center;margin:0 0 .5rem}"
    ":is(.isorepro-choice,.isorepro-clock) button{font:inherit;font-size:.9rem;padding:.3rem .8rem;"
    "border-radius:1rem;cursor:pointer;color:inherit;background:none;"
    "border:1px solid var(--isorepro-56616d,#56616d)}"
    ".isorepro-choice button[aria-pressed=true]{color:var(--isorepro-ffffff,#ffffff);"
    "background:var(--isorepro-1d2733,#1d2733)}"
    ".isorepro-choice button:focus-visible{outline:2px solid var(--isorepro-0063a6,#0063a6);outline-offset:2px}"
)

_TURNING = (
    ".isorepro-rotatable :is(button,input):focus-visible{outline:2px solid var(--isorepro-0063a6,#0063a6);"
    "outline-offset:2px}"
    ".isorepro-rotatable{color:var(--isorepro-1d2733,#1d2733)}.isorepro-rotatable[hidden]{display:none}"
    ".isorepro-key{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.87rem;line-height:1.5;min-height:1.6rem;"
    "align-items:center;margin-bottom:.6rem}.isorepro-key>span{display:inline-flex;align-items:center;gap:.4rem}"
    ".isorepro-key i{width:.75rem;height:.75rem;border-radius:50%}"
    ".isorepro-key i.isorepro-turn{width:10rem;border-radius:.4rem}"
    ".isorepro-spaces{display:grid;grid-template-columns:repeat(var(--columns),minmax(0,1fr));gap:.5rem}"
    ".isorepro-space{text-align:center;font-weight:700}.isorepro-plot{aspect-ratio:1}"
    ".isorepro-clock{display:flex;flex-wrap:wrap;gap:.3rem .8rem;align-items:center;margin:0 0 .6rem}"
    ".isorepro-clock input{flex:1 1 9rem;min-width:0;height:2rem;margin:0;"
    "accent-color:var(--isorepro-0063a6,#0063a6)}.isorepro-clock button{min-width:4.6rem}"
    ".isorepro-epoch,.isorepro-state{font-variant-numeric:tabular-nums}"
    ".isorepro-epoch{min-width:10.5rem;text-align:right}"
    ".isorepro-state{font-size:.82rem;font-weight:400;line-height:1.4;margin:0}"
    ".isorepro-hint{font-size:.82rem;margin:.2rem 0 0;color:var(--isorepro-56616d,#56616d)}"
    "@media(max-width:600px){.isorepro-spaces{grid-template-columns:minmax(0,1fr)}"
    ".isorepro-plot{aspect-ratio:auto;height:300px}.isorepro-watched .isorepro-plot{height:230px}}"
    "@media screen{.isorepro-turns>.isorepro-wide,.isorepro-turns>.isorepro-narrow{display:none}}"
    "@media print{.isorepro-rotatable{display:none}}"
)


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


def _script(name: str) -> str:
    return f"<script>{_beside(f'{name}.js')}</script>"


def _place(data: dict[str, Any]) -> str:
    """Return as CSS how many boxes and clocks a figure to rotate has: a page keeps their place."""
    spaces = len(data["spaces"])
    columns = 2 if spaces == 4 else min(spaces, 3)
    clocks = int("epochs" in data)
    return f"--spaces:{spaces};--columns:{columns};--rows:{-(-spaces // columns)};--clocks:{clocks}"


def _container(kind: str, look: str, data: dict[str, Any], place: str = "") -> str:
    """Return the container that ``<kind>.js`` fills; hidden until it has."""
    # "<" only as an escape: no text in the data can end the script or open a comment in it.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")
    script = f'<script type="application/json">{text}</script>'
    place = place and f' style="{place}"'
    return f'<style>{_CHOOSING}{look}</style><div class="isorepro-{kind}"{place} hidden>{script}</div>'


def _turning(data: dict[str, Any]) -> str:
    return _container("rotatable", _TURNING, data, _place(data))


LONGEST = 300
"""Rows up to which a page shows a table whole; of a longer one it shows the first twenty."""


def _html_table(frame: pd.DataFrame, label: str) -> str:
    note = ""
    if len(frame) > LONGEST:
        note = f'<p class="isorepro-links">The first 20 of {len(frame):,} rows; the CSV file has them all.</p>'
        frame = frame.head(20)
    with pd.option_context("display.max_colwidth", None):
        table = dashed(frame.to_html(index=False, border=0, na_rep="–", justify="left"))
    for symbol, (kind, said) in {"✓": ("holds", "passed"), "✗": ("fails", "failed")}.items():
        mark = f'<span class="isorepro-{kind}" role="img" aria-label="{said}">{symbol}</span>'
        table = table.replace(f"<td>{symbol}", f"<td>{mark}")
    # A row may break between words, not within an interval.
    table = re.sub(r"\([−+]?\d[^()<]*\)(?=[^<]*</td>)", r'<span class="isorepro-whole">\g<0></span>', table)
    table = re.sub(r"<td>(?=[^<]{50,}</td>)", '<td class="isorepro-sentence">', table)
    # Focusable, so that a wide table can be scrolled by the keyboard.
    return f'{note}<div class="isorepro-scroll" tabindex="0" role="region" aria-label="{label}">{table}</div>'
