"""What a run is asked for: profiles, notebooks and their parameters, checked before anything runs."""

import ast
import builtins
import hashlib
import json
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import nbformat
import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from isorepro import paths
from isorepro.errors import InputError, first_fault, unknown

NOTEBOOKS = paths.ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook: its name, annotated type, default and one-line meaning."""

    name: str
    annotation: str
    default: Any
    meaning: str

    def check(self, value: Any, where: str) -> Any:
        """Return the value if its type is the annotated one.

        Raises:
            InputError: naming the parameter, the value and the type wanted.
        """
        names = {"Literal": Literal, **vars(builtins)}
        try:
            wanted: TypeAdapter[Any] = TypeAdapter(eval(self.annotation, names))
        except (NameError, TypeError, PydanticSchemaGenerationError):
            raise InputError(
                f"{where}: {self.name}: the type '{self.annotation}' is not known: use built-in types and Literal"
            ) from None
        try:
            return wanted.validate_python(value, strict=True)
        except ValidationError as error:
            raise InputError(f"{where}: {self.name} ({self.annotation}): {first_fault(error)}") from None


@dataclass(frozen=True)
class Plan:
    """What a run will do: the profile, its folder, and each notebook with all its checked parameters."""

    profile: str
    folder: Path
    notebooks: dict[str, dict[str, Any]]
    whole: bool = True
    overrides: dict[str, Any] = field(default_factory=dict)


def notebook_names() -> list[str]:
    """Return the names of the repository's notebooks."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def profile_names() -> list[str]:
    """Return the names of the profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yml"))


def parameters(notebook: str) -> dict[str, Parameter]:
    """Return the parameters of a notebook, read from its cell tagged ``parameters`` without running it.

    Raises:
        InputError: unknown or unreadable notebook, one without such a cell, or a cell that holds anything but
            comments and lines of the form ``name: type = value  # meaning``.
    """
    if notebook not in notebook_names():
        raise unknown("notebook", notebook, notebook_names())
    try:
        cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    except (nbformat.reader.NotJSONError, nbformat.ValidationError):
        raise InputError(f"notebook '{notebook}' is not a readable notebook file") from None
    for cell in cells:
        if "parameters" in cell.metadata.get("tags", []):
            try:
                return {found.name: found for found in _parse_parameters(cell.source)}
            except (SyntaxError, ValueError) as error:
                fault = str(error).splitlines()[0]
                raise InputError(f"notebook '{notebook}', parameters cell: {fault}") from None
    raise InputError(f"notebook '{notebook}' has no cell tagged 'parameters'")


def _parse_parameters(source: str) -> list[Parameter]:
    tree = ast.parse(source)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = []
    for node in tree.body:
        if not (isinstance(node, ast.AnnAssign) and node.value is not None):
            raise ValueError(f"line {node.lineno} must have the form 'name: type = value  # meaning'")
        found.append(
            Parameter(
                name=ast.unparse(node.target),
                annotation=ast.unparse(node.annotation),
                default=ast.literal_eval(node.value),
                meaning=comments.get(node.end_lineno or node.lineno, ""),
            )
        )
    return found


def plan(profile: str, only: Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> Plan:
    """Check everything a run is asked for, before anything runs.

    Args:
        profile: name of a profile.
        only: notebooks to run; empty for all of the profile.
        overrides: parameter values in place of the profile's, for every chosen notebook that has them. The
            run then has a folder of its own, so that the profile's results stay as they are.

    Raises:
        InputError: unknown profile, notebook or parameter, or a value of the wrong type.
    """
    if profile not in profile_names():
        raise unknown("profile", profile, profile_names())
    given = _read_profile(profile)
    for name in only:
        if name not in given:
            raise unknown("notebook", name, given)
    overrides = dict(overrides or {})
    chosen = [name for name in given if name in only or not only]
    known = {name: parameters(name) for name in chosen}
    for name in overrides:
        if not any(name in described for described in known.values()):
            raise unknown("parameter", name, sorted({key for described in known.values() for key in described}))
    checked: dict[str, dict[str, Any]] = {}
    for notebook, described in known.items():
        values = given[notebook] | {k: v for k, v in overrides.items() if k in described}
        for name in values:
            if name not in described:
                raise unknown(f"parameter of notebook '{notebook}' in profile '{profile}'", name, described)
        checked[notebook] = {
            name: found.check(values.get(name, found.default), f"notebook '{notebook}'")
            for name, found in described.items()
        }
    suffix = f"-{digest(overrides)[:8]}" if overrides else ""
    return Plan(profile, paths.output() / f"{profile}{suffix}", checked, len(chosen) == len(given), overrides)


def _read_profile(profile: str) -> dict[str, dict[str, Any]]:
    """Return notebook → parameters as a profile's file has them."""
    try:
        content = yaml.safe_load((PROFILES / f"{profile}.yml").read_text())
    except yaml.YAMLError as error:
        raise InputError(f"profile '{profile}' is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(v, dict | None) for v in content.values()):
        raise InputError(f"profile '{profile}' must map notebooks to their parameters")
    return {str(notebook): values or {} for notebook, values in content.items()}


def digest(content: Any) -> str:
    """Return the SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
