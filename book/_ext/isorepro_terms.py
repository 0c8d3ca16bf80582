"""Sphinx extension of the book: its symbols and terms as a table, and the first mention of each explained.

Both are made from ``notation.yml``. Without JavaScript a mention is a link to the row of the table.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SOURCE = "notation.yml"
PAGE = "notation"

PROSE_TABLES = {"isorepro-cards", "isorepro-differences"}
"""Classes of tables whose cells are sentences; all others hold numbers."""

NUMBERS = {"isorepro-glance", "isorepro-notation"}
"""Classes of those among them that are left alone all the same."""

_LEFT_ALONE = (
    *(nodes.title, nodes.rubric, nodes.term, nodes.thead, nodes.citation, nodes.reference, nodes.raw),
    *(nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.image, nodes.comment),
    *(addnodes.desc, addnodes.toctree, addnodes.pending_xref, addnodes.download_reference),
)


@dataclass(frozen=True)
class Term:
    """A symbol or term: its id, how the table shows it, the words it is found by, and what it means.

    ``meaning`` is plain text; ``name``, ``more`` and ``where`` are MyST.
    """

    id: str
    name: str
    marks: tuple[str, ...]
    meaning: str
    where: str
    more: str = ""

    @property
    def anchor(self) -> str:
        """The id of its row."""
        return f"term-{self.id}"


def load(path: Path) -> list[Term]:
    """Return the terms of a file.

    Raises:
        ValueError: an id or a mark that two of them have.
    """
    terms = [Term(**{**row, "marks": tuple(row["marks"])}) for row in yaml.safe_load(path.read_text())]
    for names in ([term.id for term in terms], [mark for term in terms for mark in term.marks]):
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{path.name}: twice: {', '.join(sorted(twice))}")
    return terms


class Notation(SphinxDirective):
    """``{notation}``: the table of all symbols and terms, a row with an id for each."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        path = Path(self.env.srcdir) / SOURCE
        self.env.note_dependency(str(path))
        terms = load(path)
        rows = [["Term", "Meaning", "Defined in"]]
        rows += [[f"**{term.name}**", f"{term.meaning} {term.more}".strip(), term.where] for term in terms]
        cells = "\n".join(f"* - {name}\n  - {meaning}\n  - {where}" for name, meaning, where in rows)
        text = f"```{{list-table}}\n:header-rows: 1\n:class: isorepro-cards isorepro-notation\n\n{cells}\n```"
        made = self.parse_text_to_nodes(text)
        found = [row for body in made[0].findall(nodes.tbody) for row in body.findall(nodes.row)]
        for row, term in zip(found, terms, strict=True):
            row["ids"].append(term.anchor)
        return made


def explain(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Turn the first mention of each term in the sentences of a page into a link that tells its meaning."""
    if app.builder.format != "html" or page == PAGE:
        return
    target = app.builder.get_relative_uri(page, PAGE)
    left = {mark: term for term in load(Path(app.srcdir) / SOURCE) for mark in term.marks}
    for element in list(doctree.findall(nodes.TextElement)):
        _join_lines(element)
    for node in list(doctree.findall(nodes.Text)):
        if left and not any(map(_is_left_alone, _ancestors(node))):
            parts = list(_parts(str(node), left, target))
            if any(isinstance(part, nodes.raw) for part in parts):
                node.parent.replace(node, parts)


def _join_lines(element: nodes.TextElement) -> None:
    """Make one text of those that follow each other, as the lines of a paragraph do, so that a term may break."""
    joined: list[nodes.Node] = []
    for child in element.children:
        if joined and isinstance(child, nodes.Text) and isinstance(joined[-1], nodes.Text):
            joined[-1] = nodes.Text(str(joined[-1]) + str(child))
        else:
            joined.append(child)
    if len(joined) < len(element.children):
        element.children = []
        element += joined


def _ancestors(node: nodes.Node) -> Iterator[nodes.Element]:
    parent = node.parent
    while parent is not None:
        yield parent
        parent = parent.parent


def _is_left_alone(node: nodes.Element) -> bool:
    classes = set(node.get("classes", []))
    if isinstance(node, nodes.table):
        return not classes & PROSE_TABLES or bool(classes & NUMBERS)
    # What is folded shows no first mention.
    return isinstance(node, _LEFT_ALONE) or "sd-dropdown" in classes


def _parts(text: str, left: dict[str, Term], target: str) -> Iterator[nodes.Node]:
    """Yield a text in parts, each mention of a term that is ``left`` as a link; that term is left no more."""
    while left and (found := _pattern(left).search(text)):
        term = left[next(mark for mark in left if _as_pattern(mark, whole=True).fullmatch(found[0]))]
        for mark in term.marks:
            del left[mark]
        if found.start():
            yield nodes.Text(text[: found.start()])
        meaning = html.escape(term.meaning)
        link = f'<a class="isorepro-term" href="{target}#{term.anchor}" data-meaning="{meaning}">{found[0]}</a>'
        yield nodes.raw("", link, format="html")
        text = text[found.end() :]
    if text:
        yield nodes.Text(text)


def _pattern(marks: dict[str, Term]) -> re.Pattern[str]:
    """Return what finds any of the marks as words of their own, longer ones first."""
    longest = sorted(marks, key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(_as_pattern(mark).pattern for mark in longest)})(?!\w)")


def _as_pattern(mark: str, whole: bool = False) -> re.Pattern[str]:
    first = mark[0]
    start = f"[{first}{first.upper()}]" if len(mark) > 1 and first.islower() else re.escape(first)
    return re.compile(start + re.escape(mark[1:]).replace("\\ ", r"\s").replace("’", "['’]"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_directive(PAGE, Notation)
    app.connect("doctree-resolved", explain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
