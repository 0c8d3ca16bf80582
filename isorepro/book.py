"""Build the book of a run: the prose, the executed notebooks and their results, as pages that need no network."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import yaml

from isorepro import api_pages, claim_pages, lineage, paths
from isorepro.errors import InputError, NotebookError, ended
from isorepro.profiles import Plan, parameters
from isorepro.progress import say
from isorepro.runner import alone

SOURCES = paths.ROOT / "book"

REPOSITORY = "ISOREPRO_REPOSITORY"
"""Environment variable: the address of the repository on GitHub, to which the buttons for Binder and Colab lead;
without it pages have no such buttons."""


def build(planned: Plan) -> Path:
    """Build the book of a finished run, if anything in it changed; return its front page.

    Args:
        planned: the plan of the run, all its notebooks executed.

    Raises:
        NotebookError: Sphinx warned or failed; the book built before stays.
    """
    with alone(planned.folder, "book"):
        return _build(planned)


# Ended when the process that started it is killed.
_JUPYTER_BOOK = """
import ctypes, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
from jupyter_book.cli.main import main
main()
"""


def _build(planned: Plan) -> Path:
    # What a killed run has left; its name tells the process, which may have started one that has not ended yet.
    for left in (planned.folder / ".running").glob("book-*"):
        shutil.rmtree(left, ignore_errors=True)
    draft = planned.folder / ".running" / f"book-{os.getpid()}"
    assemble(planned, draft)
    digest = _tree_digest(draft)
    target, stamp = planned.folder / "book", planned.folder / "records" / "book.digest"
    index = target / "index.html"
    if index.is_file() and stamp.is_file() and stamp.read_text() == digest:
        say("book: up to date")
        shutil.rmtree(draft)
        return index
    say("book: building (about half a minute)")
    log = planned.folder / "book.log"
    command = [sys.executable, "-c", _JUPYTER_BOOK, "build", str(draft)]
    command += ["-W", "-n", "--keep-going"]
    with log.open("wb") as output:
        done = subprocess.run(command, stdout=output, stderr=output, env=paths.surroundings(), check=False)
    html = draft / "_build" / "html"
    if done.returncode or not (html / "index.html").is_file():
        lines = log.read_text(errors="replace").splitlines()
        faults = [line for line in lines if any(word in line for word in ("WARNING", "ERROR", "CRITICAL"))]
        first = next(iter([*faults, *lines[-1:]]), "")
        if done.returncode < 0:
            first = ended("its process", done.returncode)
        raise NotebookError(f"the book did not build: {first.strip()} (whole log: {log})")
    shutil.rmtree(target, ignore_errors=True)
    html.replace(target)
    paths.write_atomically(stamp, digest)
    shutil.rmtree(draft)
    return index


def assemble(planned: Plan, folder: Path) -> None:
    """Lay out the sources of a run's book in a folder: pages, executed notebooks, library source, results.

    Raises:
        InputError: :data:`REPOSITORY` is no address on GitHub.
        NotebookError: as :func:`isorepro.lineage.tell`.
    """
    from isorepro import speed, style  # with matplotlib, which only a build needs

    shutil.copytree(SOURCES, folder)
    shutil.copytree(paths.ROOT / "isorepro", folder / "isorepro", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(planned.folder / "results", folder / "results")
    (folder / "notebooks").mkdir()
    for notebook in planned.notebooks:
        page = nbformat.read(planned.folder / "notebooks" / f"{notebook}.ipynb", as_version=4)
        record = json.loads((planned.folder / "records" / f"{notebook}.json").read_text())
        lineage.tell(notebook, page, record, folder / "results" / notebook)
        nbformat.write(_as_page(page, notebook, planned, record), folder / "notebooks" / f"{notebook}.ipynb")
    claim_pages.write(planned.folder / "results", folder)
    api_pages.write(folder)
    speed.write(folder)
    paths.write_atomically(folder / "_static" / "isorepro-theme.css", style.stylesheet())
    # The results are linked from the pages as files of the site as well.
    shutil.copytree(folder / "results", folder / "_extra" / "results")
    config = yaml.safe_load((folder / "_config.yml").read_text())
    banner = _banner(planned)
    if banner:
        config["sphinx"]["config"]["html_theme_options"]["announcement"] = banner
    commit = json.loads((planned.folder / "manifest.json").read_text())["commit"]
    config["sphinx"]["config"]["html_theme_options"] |= _launch_buttons(commit)
    (folder / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))


def _launch_buttons(commit: str) -> dict[str, Any]:
    """Return the theme's options for buttons on the pages of notebooks, which lead to the commit of the run."""
    address = os.environ.get(REPOSITORY, "")
    if not address:
        return {}
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise InputError(f"{REPOSITORY}: must be of the form https://github.com/<owner>/<name>, not {address!r}")
    return {
        "repository_url": address,
        "repository_branch": commit,
        # Notebooks lie at the same place in the book's sources as in the repository.
        "path_to_docs": "",
        "launch_buttons": {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        },
    }


def _banner(planned: Plan) -> str:
    if planned.overrides:
        changed = ", ".join(f"{name} = {value}" for name, value in planned.overrides.items())
        return f"A run with changed parameters ({changed}), profile “{planned.profile}”: not the published book."
    return {
        "paper": "",
        "quick": "Profile “quick”: few seeds and a short grid. The published book is built with profile “paper”.",
        "smoke": "Profile “smoke”: tiny data, to test the machinery. Its numbers mean nothing.",
    }.get(planned.profile, f"Profile “{planned.profile}”")


def _as_page(
    notebook: nbformat.NotebookNode, name: str, planned: Plan, record: dict[str, Any]
) -> nbformat.NotebookNode:
    """Return the executed notebook as a page: code folded, parameters as a table, and where it came from."""
    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            shown = "remove-cell" if {"parameters", "injected-parameters"} & set(tags) else "hide-input"
            cell.metadata["tags"] = [*tags, shown]
        cells.append(cell)
        if "parameters" in tags:
            cells.append(nbformat.v4.new_markdown_cell(_parameter_table(name, record["parameters"])))
    cells.append(nbformat.v4.new_markdown_cell(_provenance(name, planned, record)))
    notebook.cells = cells
    for cell in cells:
        cell.pop("id", None)
    notebook.nbformat_minor = 4
    return notebook


def _parameter_table(notebook: str, values: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| `{found.name}` | `{json.dumps(values[found.name])}` | {found.meaning} |"
        for found in parameters(notebook).values()
    )
    return f":::{{dropdown}} Parameters of this run\n| name | value | meaning |\n|---|---|---|\n{rows}\n:::"


def _provenance(notebook: str, planned: Plan, record: dict[str, Any]) -> str:
    flags = "".join(f" -p {name}={json.dumps(value)}" for name, value in planned.overrides.items())
    command = f"isorepro reproduce --profile {planned.profile} --only {notebook}{flags}"
    address = os.environ.get(REPOSITORY)
    clone = f"!git clone -q {address} isorepro-clone\n%cd isorepro-clone\n%pip install -q -e ."
    colab = f"\n\n:::{{dropdown}} To run it in Colab, put this cell first\n```none\n{clone}\n```\n:::"
    return (
        f"---\n\n{{download}}`This page as a notebook <{notebook}.ipynb>` · run `{record['id']}` with profile "
        f"`{planned.profile}` in {record['wall_seconds']:.0f} s (processor time {record['cpu_seconds']:.0f} s; "
        f"networks and measurements kept from an earlier run cost nothing) · again: `{command}`"
    ) + (colab if address else "")


def _tree_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()
