"""Sphinx extension of the book: numbers and figures of the run, and scripts that lie on disk."""

import json
import re
from collections.abc import Callable
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc_parameter, desc_parameterlist
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.fileutil import copy_asset_file

from isorepro.claim_pages import badge


class Number(SphinxRole):
    """``{number}`notebook:name:format` ``: a number a notebook left in its ``numbers.json``.

    One that is not defined, such as an interval over a single seed, is a dash. A missing notebook or name, or a
    format that does not fit, is a warning, which stops a strict build.
    """

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the formatted number as text."""
        notebook, _, rest = self.text.partition(":")
        name, _, form = rest.partition(":")
        path = Path(self.env.srcdir) / "results" / notebook / "numbers.json"
        self.env.note_dependency(str(path))
        try:
            number = json.loads(path.read_text())[name]
            text = "–" if number is None else format(number, form)
        except (OSError, KeyError, ValueError) as error:
            message = f"no number '{self.text}' among the results: {error!r}"
            return [], [self.inliner.reporter.warning(message, line=self.lineno)]
        return [nodes.Text(text)], []


class Verdict(SphinxRole):
    """``{verdict}`holds` ``: a verdict on a claim, with its symbol and colour; any other word is a warning."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the verdict's HTML."""
        try:
            return [nodes.raw("", badge(self.text), format="html")], []
        except KeyError:
            return [], [self.inliner.reporter.warning(f"no verdict is called '{self.text}'", line=self.lineno)]


class RunFigure(SphinxDirective):
    """``{run-figure} notebook/name``: a figure or a table that a notebook made, with caption, links and data."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the figure's HTML, its links made relative to this page."""
        path = Path(self.env.srcdir) / "results" / f"{self.arguments[0]}.html"
        self.env.note_dependency(str(path))
        try:
            markup = path.read_text()
        except OSError:
            return [
                self.state_machine.reporter.warning(f"no figure {path.name} among the results", line=self.lineno)
            ]
        up = "../" * self.env.docname.count("/")
        return [nodes.raw("", markup.replace('href="../', f'href="{up}'), format="html")]


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy MathJax's one script and its fonts beside the static files."""
    if error or app.builder.format != "html":
        return
    for file in distribution("sphinx-mathjax-offline").files or []:
        _, found, inner = file.as_posix().partition("static/mathjax/")
        if found and (inner == "tex-chtml.js" or inner.endswith(".woff")):
            target = Path(app.outdir) / "_static" / "mathjax" / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_asset_file(str(file.locate()), str(target))


def copy_scripts(app: Sphinx, error: Exception | None) -> None:
    """Copy the scripts of figures to touch beside the static files."""
    if error or app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "figures"
    target.mkdir(parents=True, exist_ok=True)
    own = [files("isorepro") / f"{name}.js" for name in ("rotatable", "explorable")]
    for source in (files("plotly") / "package_data" / "plotly.min.js", *own):
        (target / source.name).write_bytes(source.read_bytes())


def load_scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load each of these scripts on the pages that hold a figure it is for, and only there."""
    for kind, scripts in {"rotatable": ("plotly.min", "rotatable"), "explorable": ("explorable",)}.items():
        # With its bracket, which is escaped in a listing of source code.
        if f'<div class="isorepro-{kind}"' in context.get("body", ""):
            for script in scripts:
                app.add_js_file(f"figures/{script}.js", loading_method="defer")


# What Sphinx writes for a node and screen readers do not take: a role that is no more, and a list of definitions
# without any word defined.
REWRITTEN = {
    nodes.citation: {'role="doc-biblioentry"': 'role="listitem"'},
    desc_parameterlist: {"<dl": "<ul", "</dl": "</ul"},
    desc_parameter: {"<dd": "<li", "</dd": "</li"},
}


def rewriting(method: str, marks: dict[str, str]) -> Callable[[Any, nodes.Element], None]:
    """Return a translator's method that writes what its own one does, with some marks replaced."""

    def write(translator: Any, node: nodes.Element) -> None:
        before = len(translator.body)
        getattr(type(translator), method)(translator, node)
        for place in range(before, len(translator.body)):
            for mark, other in marks.items():
                translator.body[place] = translator.body[place].replace(mark, other)

    return write


# Shows the text once its formulas are set, in three seconds at the latest.
TYPESETTING = """
document.documentElement.classList.add("isorepro-typesetting");
addEventListener("DOMContentLoaded", () => {
  const show = () => document.documentElement.classList.remove("isorepro-typesetting");
  setTimeout(show, 3000);
  Promise.resolve(window.MathJax?.startup?.promise).then(show, show);
});
"""


def wait_for_formulas(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Have the pages with formulas wait for them, so that their text does not move under the reader's eyes."""
    if doctree and any(isinstance(node, nodes.math | nodes.math_block) for node in doctree.findall()):
        app.add_js_file(None, body=TYPESETTING)


# Code, drawings, data and formulas, which stay as they are; other tags.
LEFT = re.compile(
    r'(<(pre|code|script|style|svg)\b.*?</\2>|<(?:span|div) class="math[^>]*>.*?</(?:span|div)>|<[^>]*>)',
    re.DOTALL,
)
TIED = {
    re.compile(r"(?<=\d)[ \u00a0]?%"): "\u00a0%",
    re.compile(r"(?<=\d) (?=(?:ms|s|min|h|MB|GB|points|steps)\b)|(?<=[≥≤]) (?=\d)"): "\u00a0",
    re.compile(r"(?<=\w)[ \u00a0]=[ \u00a0](?=[\d−-])"): "\u00a0=\u00a0",
}
# At its first mention a term is a link.
TERM = re.compile(r"(?<=[Kβε]</a>) = (?=[\d−])")


def tied(html: str) -> str:
    """Return a page in which no line ends between a number and its unit, or in "steps = 2" or "≥ 2".

    Notebooks and captions write "5%" and "5 %"; the page has one of them.
    """
    parts = LEFT.split(html)
    # Text stands at every third place, between a tag and the name that the second group found in it.
    for place in range(0, len(parts), 3):
        for mark, other in TIED.items():
            parts[place] = mark.sub(other, parts[place])
    return TERM.sub("\u00a0=\u00a0", "".join(part for place, part in enumerate(parts) if place % 3 != 2))


def break_lines(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Have the lines of each page end where they may: :func:`tied`, :func:`breakable`."""
    if "body" in context:
        context["body"] = breakable(tied(context["body"]))


# A name in the text long enough to be broken in a narrow column, and where it may be.
LONG_NAME = re.compile(r'(?<=<span class="pre">)[\w.]{20,}(?=</span>)')
JOINT = re.compile(r"(?<=[._])(?=[^._])")
# The same of an address that is the text of its link, such as a DOI.
ADDRESS = re.compile(r"(?<=>)(?:doi:|https://)[^<\s]+(?=</a>)")
PART = re.compile(r"(?<=\w[/-])(?=[\w~])")


def breakable(html: str) -> str:
    """Return a page whose long names of code, and addresses, are broken, if they must be, between their parts."""
    named = LONG_NAME.sub(lambda name: JOINT.sub("<wbr>", name[0]), html)
    return ADDRESS.sub(lambda address: PART.sub("<wbr>", address[0]), named)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    # The Jupyter Book extension sets these two values, which their own extensions, left out here, declare.
    app.add_config_value("thebe_config", {}, "html")
    app.add_config_value("comments_config", {}, "html")
    app.add_role("number", Number())
    app.add_role("verdict", Verdict())
    app.add_directive("run-figure", RunFigure)
    for node, marks in REWRITTEN.items():
        visit, depart = (rewriting(f"{step}_{node.__name__}", marks) for step in ("visit", "depart"))
        app.add_node(node, override=True, html=(visit, depart))
    app.connect("html-page-context", load_scripts)
    app.connect("html-page-context", wait_for_formulas)
    app.connect("html-page-context", break_lines)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", copy_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
