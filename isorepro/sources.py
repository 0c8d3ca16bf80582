"""What a kept result follows: the code of our modules and of yours as it was loaded, and the files that they read.

Python forgets the source of a module once it has loaded it, and the file may be edited while a notebook's kernel
lives on. From the first import of this package on, the source of each module outside the installed packages is
kept in mind as it is loaded. A walk from module to module, over all imports, finds what a function can reach.
"""

import ast
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import SOURCE_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from isorepro import paths
from isorepro.errors import DataError, InputError

FOLLOWED = {__name__.partition(".")[0]}
"""Packages that are followed wherever they lie; of all others those outside the folders of installed packages."""

NOT_NUMERICAL = {f"{__package__}.{name}" for name in ("cluster", "errors", "paths", "progress", "sources")}
"""Modules that numerical ones import but that change no number."""

LOADED: dict[str, bytes] = {}
"""Module → its source as it was last loaded in this process."""

RELOADED: list[str] = []
"""Modules that were loaded once more, in order."""

READ: dict[tuple[str, str], str] = {}
"""(module of yours, file that its code opened to read) → digest of the file when it was last opened."""

_KINDS = ("stdlib", "platstdlib", "purelib", "platlib")
_INSTALLED = tuple(f"{sysconfig.get_path(kind)}{os.sep}" for kind in _KINDS)
_OF_THE_SYSTEM = (
    *(*_INSTALLED, "/proc/", "/sys/", "/dev/", "/etc/", "/usr/share/", "/usr/lib/", "/System/", "/Library/"),
    *(f"{sys.prefix}{os.sep}{folder}{os.sep}" for folder in ("etc", "lib", "share")),
)
_HIDDEN = f"{os.environ.get('HOME', os.sep).rstrip(os.sep)}{os.sep}."


class _Loader(SourceFileLoader):
    def path_stats(self, path: str) -> dict[str, Any]:
        # By the second, Python would take old bytecode for that of a file edited at once to the same size.
        found = super().path_stats(path)
        return {**found, "mtime": int(found["mtime"] * 1e6)}

    def exec_module(self, module: ModuleType) -> None:
        again = module.__name__ in LOADED
        if again:
            RELOADED.append(module.__name__)
            for seen in [seen for seen in READ if seen[0] == module.__name__]:
                del READ[seen]
        _remember(module.__name__, self.get_data(self.path))
        try:
            super().exec_module(module)
        except BaseException:
            if again:
                LOADED[module.__name__] = b""  # part of it, and of what was there before
            else:
                del LOADED[module.__name__]
            raise
        finally:
            _since[module.__name__] = len(RELOADED)


class _Finder:
    """Finds what the other finders do, and lets :class:`_Loader` load modules that are followed."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find and finder is not cls else None
            if spec:
                if type(spec.loader) is SourceFileLoader and _is_followed(name, spec):
                    spec.loader = _Loader(name, spec.loader.path)
                return spec
        return None


def watch() -> None:
    """Keep in mind from now on what is loaded; modules that are loaded already count as their files are now."""
    if _Finder in sys.meta_path:
        return
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if name != "__main__" and spec and _is_followed(name, spec) and _is_source(spec.origin):
            with suppress(OSError):
                _remember(name, Path(spec.origin).read_bytes())
    sys.meta_path.insert(0, _Finder)


def _remember(name: str, source: bytes) -> None:
    LOADED[name] = source
    if not (is_ours(name) or _notices):
        # Python calls it for every file opened in this process: not without a module of yours.
        _notices.append(_notice)
        sys.addaudithook(_notice)


_since: dict[str, int] = {}
"""Module → how many of :data:`RELOADED` were so by the time that it was loaded last."""

_notices: list[Any] = []
_busy = threading.local()


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    """Note which file a module of yours opens to read, and what is in it."""
    if event != "open" or not isinstance(arguments[0], str) or getattr(_busy, "looking", False):
        return
    path, flags = arguments[0], arguments[2] or 0
    if path.startswith(_OF_THE_SYSTEM) or "__pycache__" in path:
        return
    if flags & (os.O_WRONLY | os.O_CREAT):
        return
    # Of the modules kept in mind the one whose code is nearest. What the library opens, it verifies itself.
    frame: FrameType | None = sys._getframe(1)
    name = ""
    while frame and ((name := frame.f_globals.get("__name__", "")) not in LOADED or name == __name__):
        # To show a line of source, not to compute.
        frame = None if name == "linecache" else frame.f_back
    if not frame or is_ours(name):
        return
    _busy.looking = True
    try:
        found = Path(path).absolute()
        own = [place for package in FOLLOWED for place in getattr(sys.modules.get(package), "__path__", [])]
        own += [os.environ[name] for name in paths.CACHES if os.environ.get(name)]
        # A setting of a library, unless the module itself lies among them.
        if str(found).startswith(_HIDDEN) and not frame.f_globals.get("__file__", "").startswith(_HIDDEN):
            own.append(found.anchor)
        if found.is_file() and not _is_installed(str(found)) and not any(map(found.is_relative_to, own)):
            READ[name, str(found)] = _content(found)
    except OSError:
        pass  # whoever opens it is told
    finally:
        _busy.looking = False


def is_ours(name: str) -> bool:
    """Return whether a module is one of :data:`FOLLOWED`."""
    return name.partition(".")[0] in FOLLOWED


def _is_source(origin: str | None) -> bool:
    return bool(origin) and str(origin).endswith(tuple(SOURCE_SUFFIXES))


def _is_installed(place: str) -> bool:
    return place.startswith(_INSTALLED) or not {"site-packages", "dist-packages"}.isdisjoint(Path(place).parts)


def _is_followed(name: str, spec: ModuleSpec) -> bool:
    if is_ours(name):
        return True
    places = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.has_location else [])]
    return any(not _is_installed(str(place)) for place in places)


def modules() -> list[str]:
    """Return the names of all modules of :data:`FOLLOWED`, however nested."""
    names = []
    for package in sorted(FOLLOWED):
        spec = _spec(package)
        for place in map(Path, (spec and spec.submodule_search_locations) or []):
            for path in sorted(place.rglob("*.py")):
                parts = (package, *path.relative_to(place).with_suffix("").parts)
                if all(map(str.isidentifier, parts)):  # else a copy that an editor made
                    names.append(".".join(parts).removesuffix(".__init__"))
    return names


@dataclass(frozen=True)
class Reach:
    """What a result follows.

    Attributes:
        code: module → digests of its source and of its code, which comments, docstrings and layout do not change.
        files: (module, file that it says it reads, from its folder) → digest of the content.
        doubts: why no key tells a changed result from the old one; empty if one does.
    """

    code: dict[str, tuple[str, str]]
    files: dict[tuple[str, str], str]
    doubts: tuple[str, ...]

    @property
    def fingerprint(self) -> list[Any]:
        """What stands for all of it in a key, as plain data."""
        return [{name: code for name, (_, code) in self.code.items()}, [[*at, d] for at, d in self.files.items()]]

    def stale(self) -> list[str]:
        """Return the modules that this process has loaded with other code."""
        return [
            name
            for name, (source, code) in self.code.items()
            if name in LOADED and _digest(LOADED[name]) != source and _code_of(LOADED[name]) != code
        ]

    def faults(self) -> list[str]:
        """Return why a result that was computed in this process must not be kept; nothing if it may be."""
        told = [f"{name} was changed while it was computed" for name in self.stale()]
        places = {name: str(spec.origin) for name in self.code if (spec := _spec(name))}
        known = {
            _path(places[name], file): digest for (name, file), digest in self.files.items() if name in places
        }
        for (name, path), digest in READ.items():
            if name not in self.code or path in places.values():
                continue
            if path not in known:
                told.append(f"{name} reads {path} and does not say so, by data.reads, above what reads it")
            elif known[path] != digest:
                told.append(f"{path} was changed after {name} had read it: restart the kernel")
        return told


def reach(roots: Iterable[str], *, disk: bool = False, script: str = "", beside: Path | None = None) -> Reach:
    """Walk over the imports of modules and of all they import, but not of installed packages and of Python itself.

    Imports inside functions and for type checkers count. What is not loaded yet counts as it is on disk.

    Args:
        roots: names of modules; their packages are followed wherever they lie.
        disk: whether the code is that on disk, whatever is loaded.
        script: code whose imports are followed too.
        beside: a folder in which modules are looked for first.

    Raises:
        InputError: an import of ours that leads nowhere, or source that is no Python.
        DataError: a file that a module says it reads is missing.
    """
    _spec.cache_clear()
    roots = sorted(roots)
    named = FOLLOWED | {root.partition(".")[0] for root in roots}
    texts: dict[str, _Text] = {}
    code: dict[str, tuple[str, str]] = {}
    files: dict[tuple[str, str], str] = {}
    doubts: list[str] = []
    todo = [("", root, root.count(".") + 1) for root in roots]
    todo += [("the notebook", *wanted) for wanted in _parsed(script.encode(), "the notebook", "").imports]
    while todo:
        importer, dotted, least = todo.pop()
        found = list(_modules(dotted, named, str(beside) if beside else None))
        for name, spec in found:
            if name in NOT_NUMERICAL:
                continue
            if not disk and importer in LOADED and name in RELOADED[_since.get(importer, 0) :]:
                doubts.append(f"{importer} may hold what {name} was before it was reloaded: reload {importer} too")
            if name in texts:
                continue
            if not _is_source(spec.origin):
                if spec.has_location:
                    doubts.append(f"{name} is compiled ({spec.origin}), and no key tells its code")
                continue
            origin, package = str(spec.origin), spec.submodule_search_locations is not None
            source = _source(name, origin, disk, doubts)
            texts[name] = text = _parsed(source, name, name if package else name.rpartition(".")[0])
            code[name] = _digest(source), text.code
            todo += [(name, *wanted) for wanted in text.imports]
            doubts += [] if is_ours(name) else text.doubts
            for file in text.reads:
                files |= _contents(name, _path(origin, file), file)
        if not importer or found:
            todo += _checked(importer, dotted, least, found, texts, doubts)
    return Reach(dict(sorted(code.items())), dict(sorted(files.items())), tuple(dict.fromkeys(doubts)))


def _checked(
    importer: str,
    dotted: str,
    least: int,
    found: Sequence[tuple[str, ModuleSpec]],
    texts: dict[str, "_Text"],
    doubts: list[str],
) -> list[tuple[str, str, int]]:
    """Check that an import leads somewhere; return what ``import *`` of a package may import besides."""
    parts = dotted.split(".")
    name, spec = found[-1] if found else ("", None)
    inner = parts[least] if spec and len(found) == least < len(parts) else ""
    inside = spec.submodule_search_locations if spec and inner else None
    if inside and inner == "*":
        return [(importer, f"{name}.{each.name}", 0) for each in pkgutil.iter_modules([*inside])]
    # Of a package, what is imported from it is a module or one of its names.
    missing = inside is not None and name in texts and not texts[name].bound & {inner, "*"}
    if len(found) < least or missing:
        fault = (
            f"{importer or 'what is to be kept'} needs {dotted}, which is not found: no key would tell its code"
        )
        if not importer or is_ours(importer):
            raise InputError(fault)
        doubts.append(fault)
    return []


def _source(name: str, origin: str, disk: bool, doubts: list[str]) -> bytes:
    """Return the source of a module as it is loaded, else as it is on disk; add a doubt where the two differ."""
    try:
        there = Path(origin).read_bytes()
    except OSError:
        there = b""
    if disk or name not in sys.modules:
        return there
    if name not in LOADED:
        if not _is_installed(origin):
            doubts.append(f"{name} was loaded in a way that does not tell its source")
        return there
    loaded = LOADED[name]
    try:
        same = there == loaded or _code_of(there) == _code_of(loaded)
    except SyntaxError:
        same = False  # half of an edit
    if not same:
        doubts.append(f"{origin} is not what was loaded: reload {name} or restart the kernel")
    return loaded


def _modules(dotted: str, named: set[str], beside: str | None) -> Iterator[tuple[str, ModuleSpec]]:
    """Yield the modules that a dotted name passes through, the outermost first, if they are to be followed."""
    parts = dotted.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        spec = _spec(name, beside)
        if not spec or not (parts[0] in named or _is_followed(name, spec)):
            return
        yield name, spec


@cache
def _spec(name: str, beside: str | None = None) -> ModuleSpec | None:
    """Find a module without importing anything."""
    if name in sys.stdlib_module_names:
        return None
    if not beside and (known := getattr(sys.modules.get(name), "__spec__", None)):
        return known  # type: ignore[no-any-return]
    above = name.rpartition(".")[0]
    if above:
        spec = _spec(above, beside)
        places = spec.submodule_search_locations if spec else None
        return PathFinder.find_spec(name, [*places]) if places is not None else None
    own = PathFinder.find_spec(name, [beside]) if beside else None
    try:
        return own or importlib.util.find_spec(name)
    except ValueError:
        return None  # __main__ of a notebook


@dataclass(frozen=True)
class _Text:
    """What is read from the source of a module.

    Attributes:
        code: digest of its code.
        imports: dotted names, and how many parts of each must be modules.
        bound: names that it binds.
        reads: files that it says it reads.
        doubts: calls that may reach what no import tells.
    """

    code: str
    imports: tuple[tuple[str, int], ...]
    bound: frozenset[str]
    reads: tuple[str, ...]
    doubts: tuple[str, ...]


@lru_cache(maxsize=1000)
def _parsed(source: bytes, name: str, package: str) -> _Text:
    """Read the source of a module; kept by the source itself, since to parse all of ours takes a second."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{name}: its source is no Python: {error}") from None
    imports: list[tuple[str, int]] = []
    known: dict[str, str] = {}
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(alias.name, alias.name.count(".") + 1) for alias in node.names]
            for alias in node.names:
                first = alias.name.partition(".")[0]
                known |= {alias.asname: alias.name} if alias.asname else {first: first}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                try:
                    base = importlib.util.resolve_name("." * node.level + base, package)
                except ImportError as error:
                    if is_ours(name):
                        raise InputError(f"{name}, line {node.lineno}: {error}") from None
                    continue  # nor does Python find it: what is reached is the import that stands in for it
            imports += [(f"{base}.{alias.name}", base.count(".") + 1) for alias in node.names]
            known |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    reads: list[str] = []
    doubts: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (dotted := _dotted(node, known)):
            # A module that somebody else imported: isorepro.attacks after import isorepro.
            imports.append((dotted, 0))
        elif isinstance(node, ast.Call):
            called = _dotted(node.func, known) or (node.func.id if isinstance(node.func, ast.Name) else "")
            if called.endswith(".reads") and is_ours(called):
                reads += _texts(node, name)
            elif called in _DYNAMIC - bound:
                doubts.append(f"{name} calls {called} (line {node.lineno}): no key tells what that reaches")
    names = frozenset(bound | known.keys())
    return _Text(_code(tree), tuple(dict.fromkeys(imports)), names, tuple(reads), tuple(doubts))


_DYNAMIC = {"__import__", "exec", "eval", "importlib.import_module", "importlib.__import__", "runpy.run_path"}


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    """Return what an expression such as ``a.b.c`` stands for in full if ``a`` is imported; else nothing."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return ".".join([known[node.id], *parts]) if isinstance(node, ast.Name) and node.id in known else ""


def _texts(call: ast.Call, name: str) -> list[str]:
    given = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    if not given or len(given) < len(call.args) or not all(isinstance(text, str) for text in given):
        raise InputError(f"{name}, line {call.lineno}: reads must be given files as text, such as 'mine.csv'")
    return [str(text) for text in given]


@lru_cache(maxsize=1000)
def _code_of(source: bytes) -> str:
    return _code(ast.parse(source))


def _code(tree: ast.Module) -> str:
    """Return a digest of code without comments, docstrings, layout and the package's version."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    version = [ast.dump(ast.Name("__version__", ast.Store()))]
    tree.body = [
        node for node in tree.body if not isinstance(node, ast.Assign) or [*map(ast.dump, node.targets)] != version
    ]
    return _digest(ast.dump(tree).encode())


def _path(origin: str, file: str) -> str:
    """Return the path of a file that the module of a source file names."""
    return os.path.normpath(Path(origin).absolute().parent / file)


def _contents(name: str, path: str, file: str) -> dict[tuple[str, str], str]:
    """Return the digest of a file that a module says it reads, or those of all files of a folder."""
    found = sorted(each for each in Path(path).rglob("*") if each.is_file()) or [Path(path)]
    try:
        return {(name, os.path.normpath(Path(file, each.relative_to(path)))): _content(each) for each in found}
    except OSError as error:
        fault = f"{error.filename}: {error.strerror}, and {name} says that it reads it"
    raise DataError(fault)


def _content(path: Path) -> str:
    found = path.stat()
    return _content_then(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=10_000)
def _content_then(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:16]
