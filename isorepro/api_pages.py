"""The book's page on this library: every public name with its signature and docstring, read without importing it.

Sphinx resolves the names, so that pages and docstrings can link to them and a name that is not there is a warning.
"""

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isorepro import paths

PACKAGE = Path(__file__).parent

GROUPS: dict[str, tuple[str, ...]] = {
    "Foundations": ("errors", "paths", "sources", "progress", "stats", "claims"),
    "Data, networks and training": ("hierarchy", "data", "losses", "models", "methods", "training"),
    "Attacks and measures": (
        *(
            "attacks",
            "robustness",
            "saliency",
            "geometry",
            "structure",
            "dynamics",
            "boundary",
            "stacks",
            "released",
            "ensemble",
            "comparison",
            "health",
            "corruptions",
        ),
    ),
    "Many networks": ("project", "cluster", "store", "computing", "sweep"),
    "Figures and tables": (
        *("style", "tables", "panels", "plots", "structure_plots", "stack_plots", "method_plots", "scenes"),
        *("explorables", "results"),
    ),
    "Runs, the book and the command line": (
        *(
            "profiles",
            "parameters",
            "provenance",
            "runner",
            "reference",
            "claim_pages",
            "api_pages",
            "lineage",
            "speed",
            "book",
            "cli",
        ),
    ),
}
"""The modules of the package, in the order in which they build on each other."""

LONGEST_VALUE = 60
"""Letters up to which the value of a constant is shown; a longer one is in the source."""


def write(draft: Path) -> None:
    """Write what the page includes, ``_api/modules.md``, in the folder that a book is laid out in."""
    parts = []
    for title, modules in GROUPS.items():
        parts += [f"## {title}", *(section(name, (PACKAGE / f"{name}.py").read_text()) for name in modules)]
    paths.write_atomically(draft / "_api" / "modules.md", "\n\n".join(parts) + "\n")


def section(module: str, source: str) -> str:
    """Return the section on a module as MyST: its docstring, and an entry for each public name.

    Args:
        module: its name in the package, such as "attacks".
        source: its source code.
    """
    tree = ast.parse(source)
    names = _Names(module, tree)
    lines = [f".. py:module:: isorepro.{module}", "", *names.told(ast.get_docstring(tree) or "")]
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            lines += _class(node, names) if isinstance(node, ast.ClassDef) else _function(node, names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            lines += _constants(node, after, names)
    return f"(api-{module})=\n### {module}\n\n````{{eval-rst}}\n" + "\n".join(lines) + "\n````"


class _Names:
    """What the names in a module stand for, such as ``torch.Tensor`` for ``Tensor``."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.module = f"isorepro.{module}"
        self.known: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.known |= {(a.asname or a.name).split(".")[0]: a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                self.known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for top in tree.body:
            if isinstance(top, ast.FunctionDef | ast.ClassDef):
                self.known[top.name] = f"{self.module}.{top.name}"
            self.known |= {
                name: f"{self.module}.{name}"
                for name, value in _assigned(top)
                if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "TypeVar")
            }

    def whole(self, name: str) -> str:
        """Return the full name of a dotted name."""
        first, dot, rest = name.partition(".")
        return self.known.get(first, first) + dot + rest

    def annotation(self, node: ast.expr) -> ast.expr:
        """Return an annotation in full names, without what ``Annotated`` adds to a type."""
        return _InFull(self).visit(copy.deepcopy(node))  # type: ignore[no-any-return]

    def told(self, docstring: str, indent: int = 0) -> list[str]:
        """Return a docstring as lines of reStructuredText, its links in full names."""
        from sphinx.ext.napoleon import Config  # which only a build needs
        from sphinx.ext.napoleon.docstring import GoogleDocstring

        class Docstring(GoogleDocstring):
            # The text before a colon is no type here, but part of a sentence.
            def _parse_returns_section(self, section: str) -> list[str]:
                told = self._dedent(self._consume_to_next_section())
                return [*self._format_block(":returns: ", told), ""]

        config: Any = Config(napoleon_use_param=False, napoleon_custom_sections=[("Attributes", "params_style")])
        text = "\n".join(Docstring(docstring, config, what="function").lines())
        text = re.sub(
            r"^:raises (\w+):", lambda found: f":raises {self.whole(found[1])}:", text, flags=re.MULTILINE
        )
        # Bars are absolute values here, not the substitutions of reStructuredText.
        text = re.sub(r"(``.*?``)|\|", lambda found: found[1] or r"\|", text)
        text = re.sub(r":(func|class|data|meth):`([\w.]+)`", self._link, text)
        return [" " * indent + line if line else "" for line in [*text.splitlines(), ""]]

    def _link(self, found: re.Match[str]) -> str:
        role, name = found.groups()
        if name.startswith("isorepro."):
            return found.group()
        whole = self.whole(name)
        # A name that this module lacks would be a warning of the build.
        return f":py:{role}:`~{f'{self.module}.{name}' if '.' not in whole else whole}`"


class _InFull(ast.NodeTransformer):
    def __init__(self, names: _Names) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.parse(self.names.whole(node.id), mode="eval").body

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        # An annotation in quotes; the strings of a Literal are left alone below.
        if not isinstance(node.value, str):
            return node
        return self.visit(ast.parse(node.value, mode="eval").body)  # type: ignore[no-any-return]

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        kind = ast.unparse(node.value)
        if kind == "Annotated" and isinstance(node.slice, ast.Tuple):
            return self.visit(node.slice.elts[0])  # type: ignore[no-any-return]
        if kind != "Literal":
            node.slice = self.visit(node.slice)
        node.value = self.visit(node.value)
        return node


def _function(node: ast.FunctionDef, names: _Names, owner: str = "") -> list[str]:
    """Return the entry of a function, or of a method of the class ``owner``."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    kind = "method" if owner else "function"
    indent, options = 3 * bool(owner), []
    if "property" in decorators:
        kind, signature = "property", node.name
        options += [f":type: {ast.unparse(names.annotation(node.returns))}"] if node.returns else []
    else:
        signature = node.name + _signature(node, names, bound=bool(owner) and "staticmethod" not in decorators)
        options += [f":{name}:" for name in ("classmethod", "staticmethod") if name in decorators]
    head = [f".. py:{kind}:: {signature}", *(f"   {option}" for option in options), ""]
    return [" " * indent + line if line else "" for line in head] + names.told(_doc(node), indent + 3)


def _signature(node: ast.FunctionDef, names: _Names, *, bound: bool) -> str:
    arguments = copy.deepcopy(node.args)
    if bound:
        del arguments.args[0]
    for found in [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]:
        if found is not None and found.annotation is not None:
            found.annotation = names.annotation(found.annotation)
    returns = f" -> {ast.unparse(names.annotation(node.returns))}" if node.returns else ""
    return f"({ast.unparse(arguments)}){returns}"


def _class(node: ast.ClassDef, names: _Names) -> list[str]:
    """Return the entry of a class with its public methods; its fields, if it has some, as arguments."""
    bases = {names.whole(ast.unparse(base)) for base in node.bases}
    kind = "exception" if any(base.endswith(("Error", "Exception")) for base in bases) else "class"
    methods = [found for found in node.body if isinstance(found, ast.FunctionDef)]
    fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and not ast.unparse(f.target).startswith("_")]
    signature = ""
    if fields:
        texts = [
            f"{ast.unparse(field.target)}: {ast.unparse(names.annotation(field.annotation))}"
            + (f" = {value}" if (value := _default(field)) else "")
            for field in fields
        ]
        signature = f"({', '.join(['*', *texts])})"
    elif "typing.Protocol" not in bases:
        for method in methods:
            if method.name == "__init__":
                signature = _signature(method, names, bound=True).removesuffix(" -> None")
    lines = [f".. py:{kind}:: {node.name}{signature}", "", *names.told(_doc(node), 3)]
    for method in methods:
        if method.name == "__call__" or not method.name.startswith("_"):
            lines += _function(method, names, node.name)
    return lines


def _default(field: ast.AnnAssign) -> str:
    """Return the default of a field as text, what a call such as ``Field(…)`` sets as "…"; empty without one."""
    if not isinstance(field.value, ast.Call):
        return ast.unparse(field.value) if field.value else ""
    given = {keyword.arg: keyword.value for keyword in field.value.keywords}
    return ast.unparse(given["default"]) if "default" in given else "..." if "default_factory" in given else ""


def _constants(node: ast.Assign | ast.AnnAssign, after: ast.stmt | None, names: _Names) -> Iterator[str]:
    """Yield the entries of constants and aliases of types, with the string that may follow them."""
    said = after.value if isinstance(after, ast.Expr) else None
    documented = isinstance(said, ast.Constant) and isinstance(said.value, str)
    # What pydantic checks as well is shown as it is written, any other alias as the type that it stands for.
    alias = isinstance(node.value, ast.Subscript)
    plain = isinstance(node.value, ast.Subscript) and ast.unparse(node.value.value) != "Annotated"
    shown = [(n, v) for n, v in _assigned(node) if n.isupper() or ((documented or alias) and n[0] != "_")]
    for place, (name, value) in enumerate(shown):
        text = ast.unparse(value) if value else ""
        yield f".. py:{'type' if plain else 'data'}:: {name}"
        if plain and value:
            yield f"   :canonical: {ast.unparse(names.annotation(value))}"
        elif isinstance(node, ast.AnnAssign):
            yield f"   :type: {ast.unparse(names.annotation(node.annotation))}"
        if text and not plain and len(text) <= LONGEST_VALUE:
            yield f"   :value: {text}"
        yield ""
        if documented and place == len(shown) - 1:
            yield from names.told(str(said.value), 3)  # type: ignore[union-attr]


def _assigned(node: ast.stmt) -> list[tuple[str, ast.expr | None]]:
    """Return the names that an assignment binds, each with its value where that is known."""
    if isinstance(node, ast.AnnAssign):
        return [(node.target.id, node.value)] if isinstance(node.target, ast.Name) else []
    found: list[tuple[str, ast.expr | None]] = []
    for target in node.targets if isinstance(node, ast.Assign) else []:
        value = node.value  # type: ignore[attr-defined]
        if isinstance(target, ast.Name):
            found.append((target.id, value))
        elif isinstance(target, ast.Tuple):
            several = value.elts if isinstance(value, ast.Tuple) else [None] * len(target.elts)
            found += [(e.id, v) for e, v in zip(target.elts, several, strict=True) if isinstance(e, ast.Name)]
    return [(name, value) for name, value in found if not name.startswith("_")]


def _doc(node: ast.FunctionDef | ast.ClassDef) -> str:
    return ast.get_docstring(node) or ""
