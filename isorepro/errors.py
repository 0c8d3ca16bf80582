"""The errors a user can cause, each told in one line, and the checked base of every configuration."""

import signal
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class InputError(ValueError):
    """A mistake in what was given: its message is one line that names the value and says what is allowed."""


class DataError(RuntimeError):
    """A data file that is missing, damaged or altered: one line that names it and how to restore it."""


class NotebookError(RuntimeError):
    """A notebook cell failed: one line that names the notebook, the cell and the error."""


def unknown(kind: str, name: str, allowed: Iterable[str]) -> InputError:
    """Return the error for an unknown ``name`` of some ``kind``, listing what is ``allowed``."""
    allowed = list(allowed)
    close = get_close_matches(name, allowed, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return InputError(f"unknown {kind} '{name}': allowed are {', '.join(allowed) or '(none)'}{hint}")


def ended(what: str, status: int) -> str:
    """Return in one line how a process ended before its time, and what to try if memory ran out.

    Args:
        what: the process.
        status: its exit status, negative for a signal.
    """
    how = f"signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"exit status {status}"
    hint = "; the system kills so when memory runs out: try --jobs 1 (ISOREPRO_JOBS=1) or smaller sizes"
    return f"{what} ended with {how}{hint if status == -signal.SIGKILL else ''}; finished work is kept"


def first_fault(error: ValidationError) -> str:
    """Return the first fault of a pydantic validation error as one line without a leading name."""
    fault = error.errors()[0]
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return str(cause)  # which has said it all
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    hint = ""
    if isinstance(fault["input"], str) and fault["type"] in ("float_type", "int_type"):
        hint = " (in YAML write 1.0e-3, not 1e-3, for a number)"
    place = "".join(f"[{part}]" for part in fault["loc"] if isinstance(part, int))
    return f"{place + ': ' if place else ''}{message}, not {fault['input']!r}{hint}"


Count = Annotated[int, Field(ge=1, description="a whole number above 0")]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number from 0 on")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]


class Config(BaseModel):
    """A frozen, validated configuration: unknown names, wrong types and values out of range are refused.

    Raises:
        InputError: naming the field, the value and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, **values: Any) -> None:
        name = type(self).__name__
        for key in values:
            if key not in type(self).model_fields:
                raise unknown(f"field of {name}", key, type(self).model_fields)
        try:
            super().__init__(**values)
        except ValidationError as error:
            field = ".".join(str(part) for part in error.errors()[0]["loc"][:1])
            raise InputError(f"{name}.{field}: {first_fault(error)}") from None
