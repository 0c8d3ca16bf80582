"""Where things lie: the repository, its vendored data, and the folder that git ignores."""

import os
import threading
from pathlib import Path

ROOT = Path(os.environ.get("ISOREPRO_ROOT", Path(__file__).resolve().parents[1]))
DATA = ROOT / "data"
PACKAGE = Path(__file__).resolve().parent


def output() -> Path:
    """Return the folder of all products (``_output``, or the environment variable ISOREPRO_OUTPUT)."""
    return Path(os.environ.get("ISOREPRO_OUTPUT", ROOT / "_output")).absolute()


_IGNORED = {
    *("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR"),
    *("PYTHONINSPECT", "PYTHONOPTIMIZE", "PYTHONSTARTUP", "PYTHONWARNINGS"),
}
_FOLDERS = {
    *("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"),
}


def surroundings() -> dict[str, str]:
    """Return the environment of what a run starts: this package first, none of the user's settings of libraries.

    Their caches and settings lie in ``cache/libraries`` of the output folder, and stay between runs. What is
    installed is found as ever, by the user's PYTHONPATH as well.
    """
    own, path = output() / "cache" / "libraries", os.environ.get("PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in _IGNORED} | {
        **{name: str(own / name.lower()) for name in _FOLDERS},
        "MATPLOTLIBRC": os.devnull,
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *([path] if path else [])]),
        "PYTHONUTF8": "1",
    }


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write ``content`` to ``path`` so that a reader sees the whole of it or the old file, never a half.

    Raises:
        OSError: if the folder is read-only or the disk is full; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this thread: two of a process may write the same file at once.
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
