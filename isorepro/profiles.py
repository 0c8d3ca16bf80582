"""What a run is asked for: profiles, notebooks and their parameters, checked before anything runs."""

import ast
import hashlib
import importlib
import json
import re
import sys
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypeVar

import nbformat
import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, ValidationInfo
from pydantic.errors import PydanticSchemaGenerationError

from isorepro import paths
from isorepro.errors import Count as Count
from isorepro.errors import InputError, Positive, first_fault, unknown
from isorepro.project import project

NOTEBOOKS = paths.ROOT / "notebooks"
"""The folder of the notebooks."""

PROFILES = NOTEBOOKS / "profiles"
"""The folder of the profiles."""

Value = TypeVar("Value")


def where(rule: str) -> AfterValidator:
    """Return what demands that an expression be true, of the parameter's name and of those that stand above it."""

    def check(value: Value, info: ValidationInfo) -> Value:
        *above, _ = known = info.context or {}
        if not eval(rule, {}, known):
            others = [f"{name} = {known[name]!r}" for name in above if re.search(rf"\b{name}\b", rule)]
            raise ValueError(f"must be such that {rule}" + f" ({', '.join(others)})" * bool(others))
        return value

    return AfterValidator(check)


def among(name: str, *others: float) -> AfterValidator:
    """Return what demands that a value, or each of a list, be one of those of a parameter above, or of others."""

    def check(value: Value, info: ValidationInfo) -> Value:
        allowed = [*others, *(info.context or {})[name]]
        if not {*(value if isinstance(value, list) else [value])} <= {*allowed}:
            raise ValueError(f"must be among {name}, {allowed}")
        return value

    return AfterValidator(check)


def rule(fulfilled: Callable[[Any], bool], wanted: str) -> AfterValidator:
    """Return what demands that a value fulfil a rule, told as "must ``wanted``"."""

    def check(value: Value) -> Value:
        if not fulfilled(value):
            raise ValueError(f"must {wanted}")
        return value

    return AfterValidator(check)


def accepted(ask: Callable[[Any], object]) -> AfterValidator:
    """Return what asks a function, which refuses a value by an InputError."""

    def check(value: Value) -> Value:
        if str(NOTEBOOKS) not in sys.path:
            sys.path.append(str(NOTEBOOKS))  # as in the kernel: where a method of the reader's own may lie
        ask(value)
        return value

    return AfterValidator(check)


NOT_EMPTY = rule(bool, "not be empty")
"""Demands that a list hold something."""
DIFFERENT = rule(lambda values: len({*values}) == len(values), "not hold a value twice")
"""Demands that no two values of a list be equal."""
RISING = rule(lambda values: values == sorted({*values}), "increase from each to the next")
"""Demands that each value of a list be larger than the one before."""

Whole = Annotated[int, Field(ge=0, description="a whole number from 0 on")]
Several = Annotated[int, Field(ge=2, description="a whole number from 2 on")]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="a whole number from 0 to 2³² − 1")]
Seeds = Annotated[list[Seed], NOT_EMPTY, DIFFERENT, Field(description="different seeds, at least one")]
Share = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
Correlation = Annotated[float, Field(ge=-1, le=1, description="a number from −1 to 1")]
Radius = Annotated[float, Field(gt=0, le=1, description="a number above 0, up to 1")]
Radii = Annotated[list[Radius], NOT_EMPTY, RISING, Field(description="radii, each larger than the one before")]
Positives = Annotated[
    list[Positive], NOT_EMPTY, DIFFERENT, Field(description="different numbers above 0, at least one")
]
Values = Annotated[list[float], NOT_EMPTY, DIFFERENT, Field(description="different numbers, at least one")]


def _known() -> dict[str, Any]:
    """Return what an annotation may name: the content of the module that the project names."""
    return vars(importlib.import_module(project().parameters))


def kinds() -> dict[str, str]:
    """Return the types that annotate parameters, with what each allows."""
    told = {name: getattr(kind, "__metadata__", ()) for name, kind in _known().items()}
    return {
        name: part.description
        for name, parts in told.items()
        for part in parts
        if getattr(part, "description", "")
    }


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook: its name, annotated type, default and one-line meaning."""

    name: str
    annotation: str
    default: Any
    meaning: str

    def check(self, value: Any, place: str, above: Mapping[str, Any] | None = None) -> Any:
        """Return the value if it is what the annotation allows.

        Args:
            value: the value.
            place: where it was given, for the message.
            above: the values of the parameters above it.

        Raises:
            InputError: naming the parameter, the value and what is allowed.
        """
        try:
            wanted: TypeAdapter[Any] = TypeAdapter(eval(self.annotation, dict(_known())))
        except (NameError, TypeError, PydanticSchemaGenerationError):
            known = f"built-in types, Literal and those of {project().parameters} ({', '.join(kinds())})"
            raise InputError(
                f"{place}: {self.name}: the type '{self.annotation}' is not known: use {known}"
            ) from None
        try:
            return wanted.validate_python(value, strict=True, context={**(above or {}), self.name: value})
        except (NameError, KeyError) as error:
            name = getattr(error, "name", None) or error.args[0]
            raise InputError(f"{place}: {self.name}: its rule names '{name}', no parameter above it") from None
        except ValidationError as error:
            # Without the rules that stand in the annotation: the fault tells the one that was broken.
            kind = re.sub(r"Annotated\[(.+?), .*\)\]", r"\1", self.annotation)
            raise InputError(f"{place}: {self.name} ({kind}): {first_fault(error)}") from None


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
        only: notebooks to run; empty for all of the profile. One that the profile does not have, since its data is
            not in the repository, runs with its defaults in a folder of its own.
        overrides: parameter values in place of the profile's, for every chosen notebook that has them. The
            run then has a folder of its own, so that the profile's results stay as they are.

    Raises:
        InputError: unknown profile, notebook or parameter, or a value that is not allowed.
    """
    if profile not in profile_names():
        raise unknown("profile", profile, profile_names())
    listed = _read_profile(profile)
    apart = [name for name in dict.fromkeys(only) if name not in listed]
    given = listed | {name: {} for name in apart}
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
        checked[notebook] = {}
        for name, found in described.items():
            value = values.get(name, found.default)
            checked[notebook][name] = found.check(value, f"notebook '{notebook}'", checked[notebook])
    folder = "-".join([profile, *apart, *([digest(overrides)[:8]] if overrides else [])])
    return Plan(profile, paths.output() / folder, checked, chosen == list(listed), overrides)


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
