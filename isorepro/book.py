"""Build the book of a run: the prose, the executed notebooks and their results, as pages that need no network."""

import hashlib
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import yaml

from isorepro import claim_pages, lineage, paths, provenance
from isorepro.errors import InputError, NotebookError, ended
from isorepro.profiles import Plan, parameters
from isorepro.progress import say, say_left
from isorepro.runner import alone
from isorepro.tables import dashed

SOURCES = paths.ROOT / "book"
"""Pages, extensions and styles of the book."""

REPOSITORY = "ISOREPRO_REPOSITORY"
"""Environment variable: the address of the repository on GitHub, to which the buttons for Binder and Colab lead;
without it, and for a run whose commit is unknown, pages have no such buttons."""


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
    scratch = paths.scratch(planned.folder / ".running", "book")
    draft = scratch / "book"
    assemble(planned, draft)
    digest = _tree_digest(draft)
    target, stamp = planned.folder / "book", planned.folder / "records" / "book.digest"
    index = target / "index.html"
    if index.is_file() and stamp.is_file() and stamp.read_text() == digest:
        say("book: up to date")
        paths.discard(scratch)
        return index
    say("book: building (about half a minute)")
    log = planned.folder / "book.log"
    command = [sys.executable, "-P", "-c", _JUPYTER_BOOK, "build", str(draft)]
    command += ["-W", "-n", "--keep-going"]
    paths.note(log)
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
    paths.write_atomically(stamp, "")  # until all pages are those of the digest
    say_left(paths.put(html, target))
    paths.write_atomically(stamp, digest)
    paths.discard(scratch)
    return index


def assemble(planned: Plan, folder: Path) -> None:
    """Lay out the sources of a run's book in a folder: pages, executed notebooks, library source, results.

    Raises:
        InputError: :data:`REPOSITORY` is no address on GitHub.
        NotebookError: as :func:`isorepro.lineage.tell`.
    """
    from isorepro import speed, style  # with matplotlib, which only a build needs

    shutil.copytree(SOURCES, folder)
    # Sphinx imports the library; the copy makes the book new when a docstring changes.
    shutil.copytree(paths.ROOT / "isorepro", folder / "isorepro", ignore=shutil.ignore_patterns("__pycache__"))
    for path in sorted(paths.made(planned.folder)):
        if planned.folder / "results" in path.parents and path.is_file():
            place = folder / path.relative_to(planned.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    (folder / "notebooks").mkdir()
    for notebook in planned.notebooks:
        page = nbformat.read(planned.folder / "notebooks" / f"{notebook}.ipynb", as_version=4)
        record = json.loads((planned.folder / "records" / f"{notebook}.json").read_text())
        lineage.tell(notebook, page, record, folder / "results" / notebook)
        nbformat.write(_as_page(page, notebook, planned, record), folder / "notebooks" / f"{notebook}.ipynb")
    claim_pages.write(planned.folder / "results", folder)
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
    if commit == provenance.UNKNOWN:
        return {}
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
    """Return what every page says of its run, as HTML; empty for the published one."""
    told = {
        "paper": "",
        "quick": "Profile “quick”: few seeds and a short grid. The published book is built with profile “paper”.",
        "smoke": "Profile “smoke”: tiny data, to test the machinery. Its numbers mean nothing.",
    }.get(planned.profile, f"Profile “{planned.profile}”.")
    if planned.overrides:
        changed = ", ".join(f"{name} = {value}" for name, value in planned.overrides.items())
        told = f"A run with changed parameters ({changed}), profile “{planned.profile}”: not the published book."
    if any("seeds" in _single(values) for values in planned.notebooks.values()):
        told += f" {NO_INTERVALS}"
    return html.escape(told, quote=False)


NO_INTERVALS = "There is only one seed, and so there are no intervals."
"""What is said of a run with a single seed."""


def _single(values: Mapping[str, Any]) -> list[str]:
    """Return the parameters, by name, that hold a single seed where several would give intervals."""
    return [name for name, value in values.items() if name.endswith("seeds") and len(value) == 1]


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
            for found in cell.outputs:
                if text := found.get("data", {}).get("text/markdown"):
                    found.data["text/markdown"] = dashed(text)
        cells.append(cell)
        if "parameters" in tags:
            cells.append(nbformat.v4.new_markdown_cell(_parameter_table(name, record["parameters"])))
            if single := _single(record["parameters"]):
                cells.append(nbformat.v4.new_markdown_cell(_note(single)))
    cells.append(nbformat.v4.new_markdown_cell(_provenance(name, planned, record)))
    notebook.cells = cells
    for cell in cells:
        cell.pop("id", None)
    notebook.nbformat_minor = 4
    return notebook


def _note(single: list[str]) -> str:
    others = " and ".join(_code(name) for name in single if name != "seeds")
    told = NO_INTERVALS if "seeds" in single else f"What comes of {others}, a single seed, has no intervals."
    return (
        f":::{{note}}\n{told} A mean is then that network’s own number, lines have no bands, and whether a "
        "difference is measurable stays open.\n:::"
    )


def _code(text: str) -> str:
    """Return text as code in MyST, whatever it holds."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " * ("`" in text)
    return f"{fence}{space}{text}{space}{fence}"


def _parameter_table(notebook: str, values: dict[str, Any]) -> str:
    shown = {
        name: _code(json.dumps(value, ensure_ascii=False)).replace("|", "\\|") for name, value in values.items()
    }
    rows = "\n".join(
        f"| `{found.name}` | {shown[found.name]} | {found.meaning} |" for found in parameters(notebook).values()
    )
    return f":::{{dropdown}} Parameters of this run\n| name | value | meaning |\n|---|---|---|\n{rows}\n:::"


def _provenance(notebook: str, planned: Plan, record: dict[str, Any]) -> str:
    flags = "".join(
        f" -p {shlex.quote(f'{name}={json.dumps(value, ensure_ascii=False)}')}"
        for name, value in planned.overrides.items()
    )
    command = f"isorepro reproduce --profile {planned.profile} --only {notebook}{flags}"
    address = os.environ.get(REPOSITORY)
    clone = f"!git clone -q {address} isorepro-clone\n%cd isorepro-clone\n%pip install -q -e ."
    colab = f"\n\n:::{{dropdown}} To run it in Colab, put this cell first\n```none\n{clone}\n```\n:::"
    return (
        f"---\n\n{{download}}`This page as a notebook <{notebook}.ipynb>` · run `{record['id']}` with profile "
        f"`{planned.profile}` in {record['wall_seconds']:.0f} s (processor time {record['cpu_seconds']:.0f} s; "
        f"networks and measurements kept from an earlier run cost nothing) · again: {_code(command)}"
    ) + (colab if address else "")


def _tree_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()
