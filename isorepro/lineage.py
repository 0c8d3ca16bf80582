"""How each figure was made: the cells it takes, what they call of the library, their seeds and their time.

Nothing of it is written by hand. A figure's cells are the backward slice (Weiser 1981) of the call that draws it,
over the variables of the notebook, read from the source without running it. What assignments and an object's own
methods change is followed; what a function changes in place in its arguments is not.
"""

import ast
import html
import re
import symtable
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nbformat

from isorepro import paths
from isorepro.errors import NotebookError
from isorepro.progress import clock

PACKAGE = Path(__file__).parent
"""The folder of the modules that are read."""

_FIGURE = re.compile(r'<figure class="isorepro-figure" id="([^"]+)">')


@dataclass(frozen=True)
class Slice:
    """What a figure takes.

    Attributes:
        cells: the code cells, counted from 0, without that of the parameters.
        parameters: the notebook's parameters that these cells use, in the order of their definition.
        functions: functions and classes of this package in them, by full name, in the order of their use.
    """

    cells: tuple[int, ...]
    parameters: tuple[str, ...]
    functions: tuple[str, ...]


def slices(
    cells: Sequence[str], *, parameters: int | None = None, known: Mapping[str, str] | None = None
) -> dict[str, Slice]:
    """Return what each figure of a notebook takes, by the figure's name.

    A figure is a call such as ``results.figure("name", …)``, with the name as text.

    Args:
        cells: the source of its code cells.
        parameters: the place of the parameters cell among them; None without one.
        known: full names of what the first cell already knows, such as ``{"plots": "isorepro.plots"}``.

    Raises:
        NotebookError: a cell is not plain Python.
    """
    parsed = []
    for place, source in enumerate(cells):
        try:
            parsed += [
                (place, node, ast.get_source_segment(source, node) or "") for node in ast.parse(source).body
            ]
        except SyntaxError as error:
            raise NotebookError(f"code cell {place + 1}: not plain Python: {error.msg}") from None
    # What figures are handed to: its methods write files, and no figure depends on another's.
    recorders = {recorder for _, node, _ in parsed for _, recorder in _figure_calls(node)}
    names, statements = dict(known or {}), []
    for place, node, source in parsed:
        found = _Statement(node, source, place, names, recorders)
        names = {name: whole for name, whole in names.items() if name not in found.binds} | _imports(node)
        statements.append(found)
    return {
        name: _backwards(statements, last, parameters)
        for last, found in enumerate(statements)
        for name in found.figures
    }


class _Statement:
    """A statement: names it binds for good, names it may change and names it uses; what it calls and draws."""

    def __init__(
        self, node: ast.stmt, source: str, cell: int, names: Mapping[str, str], recorders: set[str]
    ) -> None:
        self.cell = cell
        scope = symtable.symtable(source, "cell", "exec")
        bound = {found.get_name() for found in scope.get_symbols() if found.is_assigned() or found.is_imported()}
        self.changes = set(_changed(node)) - recorders - {*names}
        if isinstance(node, ast.If | ast.For | ast.While | ast.Try | ast.Match):
            # Where its branch is not taken, the old value stays.
            bound, self.changes = set(), bound | self.changes
        self.binds = bound
        self.uses = set(_read(scope)) | self.changes
        self.functions = [name for name in _references(node, names) if _is_public(name)]
        self.figures = [name for name, _ in _figure_calls(node)]


def _backwards(statements: Sequence[_Statement], last: int, parameters: int | None) -> Slice:
    wanted, taken = set(statements[last].uses), [statements[last]]
    given: list[str] = []
    for found in reversed(statements[:last]):
        met = wanted & (found.binds | found.changes)
        if found.cell == parameters:
            given[:0] = sorted(met)
            wanted -= met
        elif met:
            taken.insert(0, found)
            wanted = (wanted - found.binds) | found.uses
    functions = dict.fromkeys(name for found in taken for name in found.functions)
    return Slice(tuple(sorted({found.cell for found in taken})), tuple(given), tuple(functions))


def _figure_calls(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """Yield for each call such as ``results.figure("name", …)`` the figure's name and that of ``results``."""
    for call in ast.walk(node):
        match call:
            case ast.Call(func=ast.Attribute(attr="figure") as method, args=[ast.Constant(value=str(name)), *_]):
                yield name, _root(method)


def _imports(node: ast.stmt) -> dict[str, str]:
    """Return what an import makes known: each name with what it stands for."""
    if isinstance(node, ast.Import):
        names = [(alias.name, alias.asname or alias.name.partition(".")[0], alias.asname) for alias in node.names]
        return {short: whole if given else short for whole, short, given in names}
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {}


def _read(scope: symtable.SymbolTable) -> Iterator[str]:
    """Yield the names of the notebook that a statement reads, also inside its comprehensions."""
    outermost = scope.get_type() == "module"
    for found in scope.get_symbols():
        if found.is_referenced() and (outermost or found.is_global()):
            yield found.get_name()
    for inner in scope.get_children():
        yield from _read(inner)


def _changed(node: ast.stmt) -> Iterator[str]:
    """Yield names whose object a statement may change: ``x[…] = …``, ``x.a = …``, ``x += …``, ``x.append(…)``."""
    for found in ast.walk(node):
        if isinstance(found, ast.Subscript | ast.Attribute) and isinstance(found.ctx, ast.Store):
            yield _root(found)
        elif isinstance(found, ast.AugAssign):
            yield _root(found.target)
        elif isinstance(found, ast.Expr) and isinstance(found.value, ast.Call):
            yield _root(found.value) if isinstance(found.value.func, ast.Attribute) else ""


def _root(node: ast.expr) -> str:
    """Return the name that an expression such as ``x.a[0].b()`` begins with; empty without one."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _references(node: ast.stmt, names: Mapping[str, str]) -> list[str]:
    """Return what a statement names of the package, such as "isorepro.plots.gap", in the order of the source."""
    found = []
    for part in ast.walk(node):
        if isinstance(part, ast.Name | ast.Attribute):
            first, dot, rest = ast.unparse(part).partition(".")
            if first in names:
                whole = ".".join((names[first] + dot + rest).split(".")[:3])
                found.append((part.lineno, part.col_offset, whole))
    return [whole for *_, whole in sorted(found)]


def _is_public(name: str) -> bool:
    package, _, rest = name.partition(".")
    module, _, short = rest.partition(".")
    return package == "isorepro" and not short.startswith("_") and short in definitions(module)


@cache
def definitions(module: str) -> frozenset[str]:
    """Return the names of the functions and classes that a module of this package defines; none for no module."""
    path = PACKAGE / f"{module}.py"
    nodes = ast.parse(path.read_text()).body if path.is_file() else []
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef))


def tell(notebook: str, page: nbformat.NotebookNode, record: Mapping[str, Any], folder: Path) -> None:
    """Put under each figure of a notebook how it was made, on its page and in the files that other pages show.

    Args:
        notebook: its name.
        page: the notebook as the runner executed it; changed.
        record: what the runner recorded of it.
        folder: its results, of which ``<name>.html`` is changed for each figure.

    Raises:
        NotebookError: a cell is not plain Python, or a figure is drawn under a name that its call does not tell.
    """
    cells = [cell for cell in page.cells if cell.cell_type == "code" and not _has_tag(cell, "injected-parameters")]
    given = next((place for place, cell in enumerate(cells) if _has_tag(cell, "parameters")), None)
    try:
        found = slices([cell.source for cell in cells], parameters=given)
    except NotebookError as error:
        raise NotebookError(f"notebook '{notebook}', {error}") from None
    for path in sorted(folder.glob("*.html")):
        markup = path.read_text()
        figure = _FIGURE.match(markup)
        if not figure:
            continue  # a table
        if path.stem not in found:
            raise NotebookError(
                f"notebook '{notebook}': figure '{path.stem}': its call must have this name as text"
            )
        taken = found[path.stem]
        seconds = sum(cells[place].metadata["papermill"]["duration"] for place in taken.cells)
        seeds = {name: record["parameters"][name] for name in taken.parameters if name.endswith(("seed", "seeds"))}
        made = footer(
            {
                "Notebook": _notebook(notebook, page, figure[1], taken.cells, len(cells)),
                "Library": library(taken.functions),
                "Seeds": _seeds(seeds),
                "Time": _time(seconds, record),
            }
        )
        paths.write_atomically(path, beneath(markup, made))
        for output in (output for cell in cells for output in cell.outputs):
            shown = output.get("data", {}).get("text/html", "")
            if figure[0] in shown:
                output["data"]["text/html"] = beneath(shown, made)


def of_function(module: str, name: str) -> dict[str, Slice]:
    """Return what each figure takes that a function of a module of this package draws, as :func:`slices` does."""
    source = (PACKAGE / f"{module}.py").read_text()
    tree = ast.parse(source)
    known = {short: f"isorepro.{module}.{short}" for short in definitions(module)}
    for node in tree.body:
        known |= _imports(node)
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    lines = source.splitlines()[function.body[0].lineno - 1 : function.end_lineno]
    return slices([textwrap.dedent("\n".join(lines))], known=known)


def footer(rows: Mapping[str, str]) -> str:
    """Return what is told under a figure as HTML: a heading to unfold, and rows of a label and its HTML."""
    told = "".join(f"<div><dt>{label}</dt><dd>{text}</dd></div>" for label, text in rows.items())
    return f'<details class="isorepro-made"><summary>How this figure was made</summary><dl>{told}</dl></details>'


def beneath(markup: str, made: str) -> str:
    """Return the HTML of a figure with a footer at its end."""
    before, end, after = markup.rpartition("</figure>")
    return before + made + end + after


def library(functions: Sequence[str]) -> str:
    """Return links to the source of functions, from a page one folder deep, such as those of notebooks."""
    links = []
    for whole in functions:
        _, module, name = whole.split(".")
        links.append(f'<a href="../_modules/isorepro/{module}.html#{name}"><code>{module}.{name}</code></a>')
    return ", ".join(links)


def _has_tag(cell: nbformat.NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def _notebook(notebook: str, page: nbformat.NotebookNode, figure: str, cells: Sequence[int], count: int) -> str:
    headings = (line for cell in page.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    title = next((line.removeprefix("# ") for line in headings if line.startswith("# ")), notebook)
    numbers = [str(place + 1) for place in cells]
    told = (
        f"code cell {numbers[0]}"
        if len(numbers) == 1
        else f"code cells {', '.join(numbers[:-1])} and {numbers[-1]}"
    )
    return (
        f'<a href="../notebooks/{notebook}.html#{figure}">{html.escape(title)}</a>, {told} of {count} '
        f'(<a href="../_sources/notebooks/{notebook}.ipynb" download>IPYNB</a>)'
    )


def _seeds(seeds: Mapping[str, list[int] | int]) -> str:
    if not seeds:
        return "no parameter of these cells is a seed"
    listed = {name: value if isinstance(value, list) else [value] for name, value in seeds.items()}
    told = {name: ", ".join(map(str, values)) for name, values in listed.items()}
    if len(told) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{values} (<code>{name}</code>)" for name, values in told.items())


def _time(seconds: float, record: Mapping[str, Any]) -> str:
    took = "less than 1 s" if seconds < 1 else f"{seconds:.0f} s" if seconds < 100 else f"{clock(seconds)} min"
    kept, results = record["kept"], record["results"]
    share = (
        f"{kept} were kept from an earlier run or another notebook and cost nothing" if kept else "none was kept"
    )
    return f"{took} in these cells. Of this notebook’s {results} networks and measurements, {share}."
