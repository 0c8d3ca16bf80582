"""Progress with a time estimate: a bar on a terminal, plain lines elsewhere, a file for a runner that listens."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

CHANNEL = "ISOREPRO_PROGRESS"
"""Environment variable naming the file to which a notebook's kernel appends lines for the runner to show."""

LINE_EVERY = 5.0
"""Least seconds between two plain lines."""


def track(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """Yield the items as they come, telling how many of ``total`` are done and how long the rest may take."""
    if CHANNEL not in os.environ and sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what)
    else:
        yield from _in_lines(items, total, what)


def tell(line: str) -> None:
    """Hand a line to the runner that listens; without one, print it as :func:`say` does."""
    if CHANNEL in os.environ:
        with Path(os.environ[CHANNEL]).open("a") as file:
            file.write(line + "\n")
    else:
        say(line)


def say(line: str) -> None:
    """Print one line on standard error at once."""
    start = "\r\x1b[2K" if sys.stderr.isatty() else ""
    print(f"{start}{line}", file=sys.stderr, flush=True)


def say_left(paths: Iterable[Path]) -> None:
    """Say what stays where something was deleted or replaced."""
    for path in paths:
        say(f"left as it is, since isorepro did not make it: {path}")


def show(line: str) -> None:
    """Print a line of progress: on a terminal in place of the one before, else below it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
    else:
        say(line)


def clock(seconds: float) -> str:
    """Return a duration as ``minutes:seconds``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _in_lines(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    started = last = time.monotonic()
    tell(f"{what}: 0/{total}")
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if done == total or now - last >= LINE_EVERY:
            last, gone = now, now - started
            rest = f", about {clock(gone / done * (total - done))} left" if done < total else ""
            tell(f"{what}: {done}/{total}, {clock(gone)} gone{rest}")
