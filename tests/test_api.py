"""The page on the library, compared with what Python itself finds in the modules."""

import importlib
import inspect
import re
from types import ModuleType

import pytest

from isorepro import api_pages

MODULES = [name for group in api_pages.GROUPS.values() for name in group]

SOURCE = '''
"""A module: see :func:`half` and :data:`LIMITS`."""

from collections.abc import Sequence
from typing import Annotated, Literal

from torch import Tensor

from isorepro.errors import InputError

Kind = Literal["raw", "cooked"]
LIMITS, _HIDDEN = (0, 1), 2
"""Ends of the range."""


def half(points: Tensor, *, kind: "Kind" = "raw", count: Annotated[int, "above 0"] = 3) -> Sequence[Tensor]:
    """Return |points| / 2.

    Args:
        points, kind: what is halved, and how: (N,).

    Returns:
        Shape: (N,).

    Raises:
        InputError: more than :class:`isorepro.data.Dataset` holds.
    """


def _private() -> None:
    """Not shown."""


class Box:
    """A box."""

    def __init__(self, width: int) -> None: ...

    @property
    def area(self) -> float:
        """The area."""

    @classmethod
    def unit(cls) -> "Box":
        """Return the box of width 1, as :meth:`Box.unit` does."""
'''

EXPECTED = r"""(api-sample)=
### sample

````{eval-rst}
.. py:module:: isorepro.sample

A module: see :py:func:`~isorepro.sample.half` and :py:data:`~isorepro.sample.LIMITS`.

.. py:type:: Kind
   :canonical: typing.Literal['raw', 'cooked']

.. py:data:: LIMITS
   :value: (0, 1)

   Ends of the range.

.. py:function:: half(points: torch.Tensor, *, kind: isorepro.sample.Kind='raw', count: int=3) -> collections.abc.Sequence[torch.Tensor]

   Return \|points\| / 2.

   :Parameters: **points, kind** -- what is halved, and how: (N,).

   :returns: Shape: (N,).


   :raises isorepro.errors.InputError: more than :class:`isorepro.data.Dataset` holds.

.. py:class:: Box(width: int)

   A box.

   .. py:property:: area
      :type: float

      The area.

   .. py:method:: unit() -> isorepro.sample.Box
      :classmethod:

      Return the box of width 1, as :py:meth:`~isorepro.sample.Box.unit` does.

````"""  # noqa: E501


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("draft")
    api_pages.write(folder)
    return (folder / "_api" / "modules.md").read_text()


def test_a_module_is_told_name_by_name_in_full_names() -> None:
    assert api_pages.section("sample", SOURCE) == EXPECTED


def test_every_module_has_its_section_in_order(page: str) -> None:
    assert re.findall(r"^\(api-(\w+)\)=$", page, flags=re.MULTILINE) == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_and_class_is_there_with_its_arguments(page: str, name: str) -> None:
    module = importlib.import_module(f"isorepro.{name}")
    section = page.partition(f"(api-{name})=\n")[2].partition("\n````\n")[0]
    for found, thing in own(module).items():
        kind = "function"
        if inspect.isclass(thing):
            kind = "exception" if issubclass(thing, Exception) else "class"
        (line,) = re.findall(rf"^\.\. py:{kind}:: {found}(?=[( \n])(.*)$", section, flags=re.MULTILINE)
        # The command line's functions are made of strings that typer reads; classes have several ways to be made.
        if kind == "function":
            for argument in inspect.signature(thing).parameters.values():
                assert re.search(rf"[(, *]{argument.name}[:,=)]", line), f"{found}{line}: {argument.name}"
        first = inspect.cleandoc(thing.__doc__ or "").splitlines()[0]
        assert first.split(":")[0].replace("|", r"\|").split("`")[0] in section
    listed = set(re.findall(r"^\.\. py:(?:function|class|exception):: (\w+)", section, flags=re.MULTILINE))
    assert listed == set(own(module))


def own(module: ModuleType) -> dict[str, object]:
    """The public functions and classes that a module defines itself."""
    return {
        name: thing
        for name, thing in vars(module).items()
        # What is kept from being computed twice is no function any more.
        if (inspect.isclass(thing) or inspect.isfunction(thing) or hasattr(thing, "__wrapped__"))
        and thing.__module__ == module.__name__
        and not name.startswith("_")
    }
