"""The pages on the library, compared with what Python itself finds in the modules."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from isorepro import book

PACKAGE = Path(book.__file__).parent
MODULES = re.findall(r"^   ~isorepro\.(\w+)$", (book.SOURCES / "api.md").read_text(), flags=re.MULTILINE)


def test_every_module_is_listed() -> None:
    assert sorted(MODULES) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_on_the_page_of_its_module(run: Path, name: str) -> None:
    page = run / f"book/api/isorepro.{name}.html"
    assert page.stat().st_size < 1.5e6
    text = page.read_text()
    assert str(PACKAGE.parent) not in text, "a folder of this machine"
    for found in public(importlib.import_module(f"isorepro.{name}")):
        assert f'id="isorepro.{name}.{found}"' in text


def public(module: ModuleType) -> set[str]:
    """The public functions and classes that a module defines itself, and its constants."""
    constants = re.findall(r"^([A-Z][A-Z\d_, ]+)(?:: .*)? = ", inspect.getsource(module), flags=re.MULTILINE)
    return {name for line in constants for name in line.split(", ")} | {
        name
        for name, thing in vars(module).items()
        # What is kept from being computed twice is no function any more.
        if (inspect.isclass(thing) or inspect.isfunction(thing) or hasattr(thing, "__wrapped__"))
        and thing.__module__ == module.__name__
        and not name.startswith("_")
    }
