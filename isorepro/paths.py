"""Where things lie: the repository, its vendored data, and the folder that git ignores."""

import os
import threading
from pathlib import Path

ROOT = Path(os.environ.get("ISOREPRO_ROOT", Path(__file__).resolve().parents[1]))
DATA = ROOT / "data"


def output() -> Path:
    """Return the folder of all products (``_output``, or the environment variable ISOREPRO_OUTPUT)."""
    return Path(os.environ.get("ISOREPRO_OUTPUT", ROOT / "_output")).absolute()


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
