"""Sphinx extension of the book: what autodoc needs to be told about the docstrings and types of the library."""

import inspect
from contextlib import suppress
from typing import Any, get_type_hints

from sphinx.addnodes import desc_annotation, desc_content
from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

LONGEST_VALUE = 60
"""Letters up to which the value of a constant is shown; a longer one is in the source."""


def plain_arguments(app: Sphinx, function: Any, bound: bool) -> None:
    """Take from the types of a function what ``Annotated`` adds for pydantic; docstrings say it in words."""
    with suppress(NameError):  # a type that is imported for type checkers only
        getattr(function, "__func__", function).__annotations__ = get_type_hints(function)


def plain_fields(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str, returns: str
) -> tuple[str, None] | None:
    """Return the signature of a pydantic model with the types of its fields alone."""
    if not hasattr(thing, "model_fields"):
        return None
    found, types = inspect.signature(thing), get_type_hints(thing)
    fields = [field.replace(annotation=types[field.name]) for field in found.parameters.values()]
    return stringify_signature(found.replace(parameters=fields), show_return_annotation=False), None


def as_sentences(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking the words before a colon, in the first line on a constant, for its type."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\")  # joins the next line without a trace


def short_value(app: Sphinx, domain: str, kind: str, content: desc_content) -> None:
    """Remove the value of a constant that is too long, or a folder of this machine."""
    for annotation in list(content.parent.findall(desc_annotation)) if kind == "data" else []:
        text = annotation.astext()
        if text.startswith(" = ") and (len(text) > LONGEST_VALUE or "Path(" in text):
            annotation.parent.remove(annotation)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-before-process-signature", plain_arguments)
    app.connect("autodoc-process-signature", plain_fields)
    app.connect("autodoc-process-docstring", as_sentences, priority=400)  # before napoleon
    app.connect("object-description-transform", short_value)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
