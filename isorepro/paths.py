"""Where things lie: the repository, its data, and the folder of products, in which files are noted as ours.

Nothing is deleted or replaced but what this program made. Each folder in the output folder says in a file
(:data:`MARK`) which files in it are ours; a scratch folder says that all of it is; what is kept in ``cache`` has a
digest for a name. Every removal in this package goes through this module.
"""

import os
import re
import shutil
import threading
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from pathlib import Path

from isorepro.errors import InputError

ROOT = Path(os.environ.get("ISOREPRO_ROOT", Path(__file__).resolve().parents[1]))
"""The repository, or the folder that ``ISOREPRO_ROOT`` names."""

DATA = ROOT / "data"
"""Archives, and the published tables."""

PACKAGE = Path(__file__).resolve().parent
"""The folder of this package."""

MARK = ".isorepro"
"""The file in which a folder says what in it is ours."""

LIBRARIES = "libraries"
"""The folder of the cache in which libraries keep theirs."""

_LISTED = "# Made by isorepro, which deletes and replaces the files listed here, and no others. Folder: "
_SCRATCH = "# Scratch of isorepro, which deletes this folder with all that is in it. Folder: "


def output() -> Path:
    """Return the folder of all products (``_output``, or the environment variable ISOREPRO_OUTPUT).

    Raises:
        InputError: ISOREPRO_OUTPUT or ISOREPRO_ROOT is empty or relative, or ISOREPRO_OUTPUT is a repository, or
            is or holds this one or the home folder, as a root does.
    """
    given(ROOT, "ISOREPRO_ROOT")
    folder = given(ROOT / "_output", "ISOREPRO_OUTPUT").absolute()
    resolved = folder.resolve()
    faults = {
        "is or holds your home folder": Path.home().resolve().is_relative_to(resolved),
        "is or holds this repository": ROOT.resolve().is_relative_to(resolved),
        "is a repository": os.path.lexists(folder / ".git"),
    }
    for fault, found in faults.items():
        if found:
            raise InputError(f"ISOREPRO_OUTPUT: must be a folder for products alone, '{folder}' {fault}")
    return folder


def given(default: Path, variable: str) -> Path:
    """Return the folder that an environment variable names, ``default`` if it is not set.

    Raises:
        InputError: it is empty or relative.
    """
    value = os.environ.get(variable, str(default.absolute()))
    if not Path(value).is_absolute():
        raise InputError(f"{variable}: must be an absolute path (or not be set), not '{value}'")
    return Path(value)


def claim(folder: Path) -> None:
    """Make a folder of the output folder ours, unless it is.

    Raises:
        InputError: it holds something and does not say that it is ours.
    """
    if _says(folder, _LISTED):
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Looked at in this order: another process may claim and fill it meanwhile.
    if any(folder.iterdir()) and not _says(folder, _LISTED):
        raise InputError(
            f"{folder} is not empty, and no isorepro of this version made it: move it elsewhere, or set "
            "ISOREPRO_OUTPUT to another folder"
        )
    with suppress(FileExistsError):
        (folder / MARK).touch(exist_ok=False)
        _say(folder, _LISTED)


def made(folder: Path) -> set[Path]:
    """Return the files of a folder of the output folder that are ours; some may not be there any more."""
    if folder.name == "cache":
        named = {_intended(path) for path in folder.glob("*/*")}
        return {path for path in named if re.fullmatch(r"[0-9a-f]{64}\.\w+", path.name)}
    if not _says(folder, _LISTED):
        return set()
    lines = (folder / MARK).read_text().splitlines()
    return {folder / line for line in lines if line and not line.startswith("#")}


def note(*files: Path) -> None:
    """List files as ours before they are written, where they lie in the output folder but in no scratch folder.

    Raises:
        InputError: something that we did not make is in the way of one.
    """
    root = _listing(files[0]) if files else None
    if root is None:
        return
    # Looked at before the list is read: another process notes a file before it makes it.
    there = {file for file in files if os.path.lexists(file)}
    listed = (root / MARK).read_text()
    new = [file for file in files if f"\n{file.relative_to(root).as_posix()}\n" not in listed]
    _refuse([file for file in new if file in there] + _no_folders(files, root))
    if new:
        with (root / MARK).open("a") as list_:
            # The first line ends what a full disk may have left.
            list_.write("".join(f"\n{file.relative_to(root).as_posix()}\n" for file in new))


def _refuse(paths: Sequence[Path]) -> None:
    if paths:
        raise InputError(f"{paths[0]} is in the way, and isorepro did not make it: move it elsewhere")


def _no_folders(files: Iterable[Path], root: Path) -> list[Path]:
    """Return what is no folder, or a link to one, where the folders of files are to be, below a root."""
    folders = {folder for file in files for folder in file.parents if root in folder.parents}
    return sorted(folder for folder in folders if folder.is_symlink() or (folder.exists() and not folder.is_dir()))


def _listing(path: Path) -> Path | None:
    """Return the folder of the output folder that lists a file as ours; None if none is to."""
    base = output()
    inside = [folder for folder in path.parents if base in folder.parents]
    if not inside or inside[-1].name == "cache" or any(_is_scratch(folder) for folder in inside[:-1]):
        return None
    claim(inside[-1])
    return inside[-1]


def _intended(path: Path) -> Path:
    """Return what file a draft of :func:`write_atomically` was to be; any other file is itself."""
    return path.with_name(re.sub(r"^\.(.+)\.\d+-\d+\.part$", r"\1", path.name))


def _say(folder: Path, what: str) -> None:
    """Let a folder say that it is ours, by its name: a copy of it is another's."""
    with (folder / MARK).open("a") as list_:
        list_.write(f"{what}{folder.name}\n")


def _says(folder: Path, what: str) -> bool:
    try:
        text = (folder / MARK).read_text()
    except OSError:
        return False
    # Empty for a moment, when another process claims it.
    return text.startswith(f"{what}{folder.name}\n") or (not text and what == _LISTED)


def _is_scratch(folder: Path) -> bool:
    return _says(folder, _SCRATCH)


def scratch(parent: Path, name: str) -> Path:
    """Return a new, empty folder to work in, and delete those that killed processes left under this name."""
    for left in parent.glob(f"{name}-*"):
        if left.name.removeprefix(f"{name}-").isdecimal():
            discard(left)
    # Of this process: one that was killed may take a second to die.
    folder = parent / f"{name}-{os.getpid()}"
    folder.mkdir(parents=True)
    _say(folder, _SCRATCH)
    return folder


def discard(folder: Path) -> None:
    """Delete a folder of :func:`scratch` with all that is in it; any other stays."""
    if _is_scratch(folder) and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
        if folder.is_dir():  # a process that dies wrote to it
            (folder / MARK).unlink(missing_ok=True)
            _say(folder, _SCRATCH)


def put(product: Path, target: Path, ours: Set[Path] | None = None) -> list[Path]:
    """Move a file or a folder made in scratch to where it belongs, in place of what we made there before.

    Args:
        product: the file or folder; if it is not there, what we made before goes all the same.
        target: its new place.
        ours: the files that we made there before; None for those that the output folder lists.

    Returns:
        What others put there, which stays.

    Raises:
        InputError: something that we did not make is in the way; all is then as it was.
    """
    files = [path for path in product.rglob("*") if path.is_file()] if product.is_dir() else [product]
    moves = {path: target / path.relative_to(product) for path in files if path.exists()}
    if ours is None:
        note(*moves.values())
        root = _listing(target)
        ours = made(root) if root else set()
    _refuse([place for place in moves.values() if os.path.lexists(place) and place not in ours])
    _refuse(_no_folders(moves.values(), target.parent))
    others = _clear(target, ours, keep=set(moves.values()))
    for path, place in moves.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
    return others


def remove(folder: Path) -> list[Path]:
    """Delete what we made in a folder of the output folder, and the folder if nothing else is in it.

    Returns:
        What is left: what others put there, or the folder itself if it is not ours.
    """
    ours, listed = made(folder), _says(folder, _LISTED)
    if folder.is_symlink() or not (ours or listed or _is_scratch(folder / LIBRARIES)):
        return [folder]
    others = _clear(folder, ours)
    if listed:
        (folder / MARK).unlink()
        try:
            folder.rmdir()
        except OSError:  # others, or a process has made something meanwhile
            _say(folder, _LISTED)
    return others


def _clear(folder: Path, ours: Set[Path], keep: Set[Path] = frozenset()) -> list[Path]:
    """Delete our files in a folder but some to keep, its scratch, and folders empty then; links are not followed.

    Returns:
        The topmost of all else.
    """
    within = {folder, *(parent for path in ours for parent in path.parents)}
    folders: list[Path] = []
    others: list[Path] = []
    todo = [folder] if os.path.lexists(folder) else []
    while todo:
        path = todo.pop()
        if path.is_dir() and not path.is_symlink():
            if path in within:
                folders.append(path)
                todo += path.iterdir()
            elif _is_scratch(path):
                discard(path)
            else:
                others.append(path)
        elif _intended(path) in ours:
            if path not in keep:
                path.unlink(missing_ok=True)
        elif path != folder / MARK:
            others.append(path)
    for path in reversed(folders):
        with suppress(OSError):  # not empty
            path.rmdir()
    return sorted(others)


_IGNORED = {
    *("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR"),
    *("PYTHONINSPECT", "PYTHONOPTIMIZE", "PYTHONSTARTUP", "PYTHONWARNINGS"),
}
CACHES = {
    *("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"),
}
"""Environment variables that name a library's cache or settings."""


def surroundings() -> dict[str, str]:
    """Return the environment of what a run starts: this package first, none of the user's settings of libraries.

    Their caches and settings lie in ``cache/libraries`` of the output folder, and stay between runs. What is
    installed is found as ever, by the user's PYTHONPATH as well.
    """
    own, path = output() / "cache" / LIBRARIES, os.environ.get("PYTHONPATH")
    if not own.exists():
        own.mkdir(parents=True, exist_ok=True)
        _say(own, _SCRATCH)
    return {name: value for name, value in os.environ.items() if name not in _IGNORED} | {
        **{name: str(own / name.lower()) for name in CACHES},
        "MATPLOTLIBRC": os.devnull,
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *([path] if path else [])]),
        "PYTHONUTF8": "1",
    }


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write ``content`` to ``path`` so that a reader sees the whole of it or the old file, never a half.

    Raises:
        InputError: as :func:`note`.
        OSError: if the folder is read-only or the disk is full; ``path`` is then as it was.
    """
    note(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this thread: two of a process may write the same file at once.
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
