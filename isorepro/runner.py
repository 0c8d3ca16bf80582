"""Run the notebooks of a plan: results put in place whole, finished work not done twice, and a manifest."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import yaml

from isorepro import paths, profiles
from isorepro.errors import NotebookError
from isorepro.profiles import Plan, digest
from isorepro.progress import CHANNEL, clock, say, show


def run(planned: Plan, jobs: int | None = None) -> bool:
    """Run the notebooks of a plan that are not up to date; return whether any ran.

    Args:
        planned: from :func:`plan`.
        jobs: worker processes of the sweeps; None for the default of :mod:`isorepro.sweep`.

    Raises:
        NotebookError: a cell failed; what was finished before is kept, also of the same notebook.
    """
    ran, untold, told = False, False, _keys_told(planned.folder)
    for number, (notebook, values) in enumerate(planned.notebooks.items(), start=1):
        place = f"[{number}/{len(planned.notebooks)}] {notebook}"
        key = notebook_key(notebook, values)
        if _is_current(planned.folder, notebook, key):
            say(f"{place}: up to date")
            # A run that was interrupted has results that its manifest does not tell of yet.
            untold |= told.get(notebook) != key
            continue
        say(f"{place}: running")
        record = _execute(planned.folder, notebook, values, jobs)
        paths.write_atomically(
            _record_path(planned.folder, notebook),
            json.dumps({"key": key, "files": _file_digests(planned.folder, notebook), **record}, indent=1),
        )
        say(f"{place}: done in {clock(record['wall_seconds'])}")
        ran = True
    if ran or untold:
        _write_manifest(planned)
    return ran


def outdated(planned: Plan) -> list[str]:
    """Return the notebooks of a plan that :func:`run` has to run, or to tell of in the manifest."""
    told = _keys_told(planned.folder)
    keys = {notebook: notebook_key(notebook, values) for notebook, values in planned.notebooks.items()}
    return [
        notebook
        for notebook, key in keys.items()
        if told.get(notebook) != key or not _is_current(planned.folder, notebook, key)
    ]


def notebook_key(notebook: str, values: Mapping[str, Any]) -> str:
    """Return a digest of all that decides a notebook's results: its cells, parameters, our code, versions."""
    from isorepro.sweep import NUMERICAL_LIBRARIES, PACKAGE, source_fingerprint

    cells = nbformat.read(profiles.NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    sources = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in cells]
    code = {path.stem: source_fingerprint(f"isorepro.{path.stem}") for path in sorted(PACKAGE.glob("*.py"))}
    for about_running in ("profiles", "runner", "reference", "claims", "claim_pages", "book", "cli", "__init__"):
        code.pop(about_running, None)
    versions = {name: version(name) for name in (*NUMERICAL_LIBRARIES, "matplotlib", "pandas")}
    return digest([sources, dict(values), code, versions])


def _execute(folder: Path, notebook: str, values: Mapping[str, Any], jobs: int | None) -> dict[str, Any]:
    """Execute a notebook in a scratch folder and move what it made into place when all went well."""
    scratch = folder / ".running" / notebook
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "notebooks").mkdir(parents=True)
    executed, channel, log = (
        scratch / "notebooks" / f"{notebook}.ipynb",
        scratch / "progress",
        scratch / "log",
    )
    given = paths.write_atomically(scratch / "parameters.yml", yaml.safe_dump(dict(values)))
    channel.touch()
    environment = os.environ | {
        "ISOREPRO_RUN": str(scratch),
        "ISOREPRO_OUTPUT": str(paths.output()),
        CHANNEL: str(channel),
        "MPLBACKEND": "agg",
        # The threads of a small sum would wait for each other on processors that workers keep busy.
        "OMP_NUM_THREADS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **({"ISOREPRO_JOBS": str(jobs)} if jobs else {}),
    }
    command = [sys.executable, "-m", "papermill", str(profiles.NOTEBOOKS / f"{notebook}.ipynb"), str(executed)]
    command += ["-f", str(given), "-k", "python3", "--no-progress-bar", "--cwd", str(profiles.NOTEBOOKS)]
    started = time.monotonic()
    with log.open("wb") as output, channel.open() as lines:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            while True:
                # wait4 also tells the processor time and memory of the kernel and its workers.
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                for line in lines:
                    show(f"    {line.rstrip()}")
                if pid:
                    break
                time.sleep(0.1)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise NotebookError(_failure(notebook, executed, log))
    for product, target in {
        scratch / "results" / notebook: folder / "results" / notebook,
        executed: folder / "notebooks" / f"{notebook}.ipynb",
    }.items():
        _replace(product, target)
    shutil.rmtree(scratch)
    return {
        "parameters": dict(values),
        "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mib": round(usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)),
    }


def _failure(notebook: str, executed: Path, log: Path) -> str:
    if executed.is_file():
        # Cells are counted as in the source, without the one papermill puts in for the parameters.
        code = [
            cell
            for cell in nbformat.read(executed, as_version=4).cells
            if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])
        ]
        for number, cell in enumerate(code, start=1):
            for found in cell.get("outputs", []):
                if found.output_type == "error":
                    last = f"{found.ename}: {found.evalue}".strip().splitlines()[-1]
                    return f"notebook '{notebook}', code cell {number}: {last} (kept at {executed})"
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    return f"notebook '{notebook}': {lines[-1]} (log at {log})"


def _replace(product: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    if product.exists():
        product.replace(target)


def _is_current(folder: Path, notebook: str, key: str) -> bool:
    try:
        record = json.loads(_record_path(folder, notebook).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return bool(record["key"] == key and record["files"] == _file_digests(folder, notebook))


def _keys_told(folder: Path) -> dict[str, str]:
    """Return the notebooks of a run's manifest with their keys; none without a manifest."""
    try:
        records = json.loads((folder / "manifest.json").read_text())["notebooks"]
        return {notebook: record["key"] for notebook, record in records.items()}
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def _record_path(folder: Path, notebook: str) -> Path:
    return folder / "records" / f"{notebook}.json"


def _file_digests(folder: Path, notebook: str) -> dict[str, str]:
    made = [folder / "notebooks" / f"{notebook}.ipynb", *sorted((folder / "results" / notebook).rglob("*"))]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in made
        if path.is_file()
    }


def _write_manifest(planned: Plan) -> None:
    """Write what was run, with what and where, as JSON and as the tables the book shows."""
    import torch

    from isorepro.results import Results
    from isorepro.sweep import NUMERICAL_LIBRARIES

    records = {
        path.stem: json.loads(path.read_text()) for path in sorted((planned.folder / "records").glob("*.json"))
    }
    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name in (*NUMERICAL_LIBRARIES, "matplotlib", "pandas", "papermill")}
    manifest = {
        "profile": planned.profile,
        "overrides": planned.overrides,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") or "not a git checkout",
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "processors": os.cpu_count(),
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.platform(),
        "versions": versions,
        "notebooks": {name: {k: v for k, v in record.items() if k != "files"} for name, record in records.items()},
    }
    paths.write_atomically(planned.folder / "manifest.json", json.dumps(manifest, indent=1))
    shown = Results("run", planned.folder)
    shown.numbers(**{k: str(v) for k, v in manifest.items() if not isinstance(v, dict)})
    # Of the largest process of any notebook, in 10⁹ bytes.
    peak = max((record["peak_memory_mib"] for record in records.values()), default=0)
    shown.numbers(peak_memory_gb=peak * 2**20 / 1e9)
    shown.table("versions", pd.DataFrame(versions.items(), columns=["package", "version"]))
    rows = [
        (name, record["wall_seconds"], record["cpu_seconds"], record["peak_memory_mib"])
        for name, record in records.items()
    ]
    columns = ["notebook", "wall time (s)", "processor time (s)", "memory (MiB)"]
    shown.table("notebooks", pd.DataFrame(rows, columns=columns))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(paths.ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
