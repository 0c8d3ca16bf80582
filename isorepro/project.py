"""What the machinery is told of the paper it serves: the table ``[tool.paperpress]`` of ``pyproject.toml``."""

import importlib
import tomllib
from functools import cache
from types import ModuleType

from isorepro import paths
from isorepro.errors import Config, InputError


class Project(Config):
    """A paper's repository.

    Attributes:
        package: the package whose code decides results.
        parameters: the module of the types that may annotate parameters of notebooks.
        computing: the module that names LIBRARIES, the distributions whose versions decide numbers; SETTINGS, how
            each setting of theirs is read and set, and its value while a result is computed; and gpu(), the name
            of the GPU that computes or None.
    """

    package: str
    parameters: str
    computing: str


@cache
def project() -> Project:
    """Return what the repository tells of itself.

    Raises:
        InputError: the file or the table is missing or cannot be read; a name in it that is not known, or one that
            is missing.
    """
    path = paths.ROOT / "pyproject.toml"
    try:
        told = tomllib.loads(path.read_text())["tool"]["paperpress"]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: must be TOML with a table [tool.paperpress]: {error}") from None
    return Project(**told)


def computing() -> ModuleType:
    """Return the module that tells what decides the bits of a result beside its code."""
    return importlib.import_module(project().computing)
