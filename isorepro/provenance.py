"""How a run was made, for people and programs: a manifest, an RO-Crate, and the tables of the book's page."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime, timedelta
from filecmp import cmpfiles
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from isorepro import paths
from isorepro.profiles import Plan
from isorepro.project import computing
from isorepro.results import Results

CRATE = "ro-crate-metadata.json"
"""Name of the file that describes a run."""

UNKNOWN = "unknown"
"""What is told where the system or git, when asked, gives no answer."""

PROCESS_RUN = "https://w3id.org/ro/wfrun/process/0.5"
"""The profile of RO-Crate for what programs made: Process Run Crate (Leo et al. 2024)."""


def write(planned: Plan) -> None:
    """Write what was run, with what and where, for all notebooks that have a record in the run's folder.

    Writes ``manifest.json`` (commit and whether it was changed, profile, parameters, seeds, versions, processor,
    threads; and for each notebook its id, parameters, times in s, memory in MiB, whether a cluster computed, and
    how many results were kept from before), the same as an RO-Crate of the run's folder, and ``results/run`` for
    the book.
    """
    made = paths.made(planned.folder)
    found = [path for path in sorted((planned.folder / "records").glob("*.json")) if path in made]
    records: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in found}
    # What an older version of this program left has no id; it is not of this run.
    records = {name: record for name, record in records.items() if "id" in record}
    manifest = _manifest(planned, records)
    paths.write_atomically(planned.folder / "manifest.json", json.dumps(manifest, indent=1))
    paths.write_atomically(planned.folder / CRATE, json.dumps(_crate(planned, manifest, records), indent=1))
    _tell_the_book(planned, manifest)


def _manifest(planned: Plan, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    from isorepro.store import library_versions

    versions = {"python": platform.python_version(), **library_versions()}
    versions |= {name: version(name) for name in ("matplotlib", "pandas", "papermill")}
    seeds = {seed for record in records.values() for seed in record["parameters"].get("seeds", [])}
    return {
        "profile": planned.profile,
        "overrides": planned.overrides,
        "seeds": sorted(seeds),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "uncommitted_changes": uncommitted_changes(),
        "processors": os.cpu_count() or UNKNOWN,
        "processor": processor(),
        "threads": 1,  # of every process that computes
        "gpu": computing().gpu() or "none",
        "system": platform.platform(),
        "versions": versions,
        "notebooks": {name: {k: v for k, v in record.items() if k != "files"} for name, record in records.items()},
    }


def _crate(planned: Plan, manifest: dict[str, Any], records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the metadata of an RO-Crate: an action for each notebook, with parameters and the files it made."""
    from rocrate.model.contextentity import ContextEntity
    from rocrate.rocrate import ROCrate

    crate = ROCrate()
    crate.name = f"isorepro, profile {planned.profile}"
    crate.description = (
        "Tables and figures of a reproduction of 'Isometric Representations in Neural Networks Improve Robustness'"
    )
    crate.datePublished = datetime.fromisoformat(manifest["written"])
    crate.license = "https://spdx.org/licenses/MIT"
    crate.root_dataset["conformsTo"] = crate.add(
        ContextEntity(crate, PROCESS_RUN, {"@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"})
    )
    software = crate.add(
        ContextEntity(
            crate,
            "#isorepro",
            {
                "@type": "SoftwareApplication",
                "name": "isorepro",
                "version": version_of(manifest["commit"], manifest["uncommitted_changes"]),
                "softwareRequirements": [f"{name} {text}" for name, text in manifest["versions"].items()],
                "operatingSystem": manifest["system"],
                "processorRequirements": manifest["processor"],
            },
        )
    )
    actions = []
    for notebook, record in records.items():
        made = [
            crate.add_file(planned.folder / name, dest_path=name, properties={"sha256": digest})
            for name, digest in record["files"].items()
        ]
        given = [
            crate.add(
                ContextEntity(
                    crate,
                    f"#{notebook}-{name}",
                    {"@type": "PropertyValue", "name": name, "value": json.dumps(value)},
                )
            )
            for name, value in record["parameters"].items()
        ]
        began = datetime.fromisoformat(record["started"])
        action = crate.add(
            ContextEntity(
                crate,
                f"#{record['id']}",
                {
                    "@type": "CreateAction",
                    "name": f"notebook {notebook}",
                    "startTime": began.isoformat(),
                    "endTime": (began + timedelta(seconds=record["wall_seconds"])).isoformat(),
                },
            )
        )
        action["instrument"], action["object"], action["result"] = software, given, made
        actions.append(action)
    crate.root_dataset["mentions"] = actions
    content: dict[str, Any] = crate.metadata.generate()
    return content


def _tell_the_book(planned: Plan, manifest: dict[str, Any]) -> None:
    """Write the numbers and tables of the page "Reproduce it yourself"."""
    records = manifest["notebooks"]
    shown = Results("run", planned.folder)
    # Of the largest process of any notebook, in 10⁹ bytes.
    peak = max((record["peak_memory_mib"] for record in records.values()), default=0)
    texts = {name: str(value) for name, value in manifest.items() if not isinstance(value, dict | list)}
    shown.numbers(**texts, seeds=", ".join(map(str, manifest["seeds"])), peak_memory_gb=peak * 2**20 / 1e9)
    columns = {
        "run": "id",
        "wall time (s)": "wall_seconds",
        "processor time (s)": "cpu_seconds",
        "memory (MiB)": "peak_memory_mib",
        "results": "results",
        "kept from before": "kept",
    }
    rows = [[name, *[record[key] for key in columns.values()]] for name, record in records.items()]
    tables = {
        "notebooks": pd.DataFrame(rows, columns=["notebook", *columns]),
        "versions": pd.DataFrame(manifest["versions"].items(), columns=["package", "version"]),
    }
    for name, table in tables.items():
        paths.write_atomically(shown.folder / f"{name}.csv", table.to_csv(index=False))


def _git(*arguments: str) -> str | None:
    """Return what git says of the repository of the code that runs; None if it does not say, or there is none."""
    ours = Path(__file__).parent
    names = [path.name for path in ours.iterdir() if path.is_file()]
    # With ISOREPRO_ROOT the code may be another than that of the repository.
    _, *other = cmpfiles(ours, paths.ROOT / ours.name, names, shallow=False)
    if any(other):
        return None
    # Git's own variables may name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    answers = []
    for asked in (("rev-parse", "--show-toplevel"), arguments):
        try:
            done = subprocess.run(
                ["git", "-C", str(paths.ROOT), *asked], env=environment, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        answers.append(done.stdout.strip())
    # A copy that lies in another repository has that one's top level.
    return answers[1] if Path(answers[0]).resolve() == paths.ROOT.resolve() else None


def version_of(commit: str, changes: bool | str) -> str:
    """Return in words which state of the code something was made with."""
    return commit + {False: "", True: " with changes", UNKNOWN: ", changes unknown"}[changes]


def commit() -> str:
    """Return the commit of the repository, or that it is unknown, as outside a git checkout of its own."""
    return _git("rev-parse", "--verify", "HEAD") or UNKNOWN


def uncommitted_changes() -> bool | str:
    """Return whether files of the repository differ from its commit or are new, or that it is unknown."""
    # Settings of a user's may hide new files and changes in submodules.
    changed = _git("status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=none")
    return UNKNOWN if changed is None or commit() == UNKNOWN else changed != ""


def processor() -> str:
    """Return the name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or UNKNOWN
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "") or UNKNOWN
