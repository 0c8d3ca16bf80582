"""Run the notebooks of a plan, side by side: results put in place whole, nothing done twice, and a manifest.

Several runs may go on in one output folder at once: what one of them is at, the others wait for.
"""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import nbformat
import yaml

from isorepro import cluster, paths, profiles, provenance, sources
from isorepro.cluster import Slurm
from isorepro.errors import InputError, NotebookError, ended
from isorepro.profiles import Plan, digest
from isorepro.progress import CHANNEL, clock, say, say_left, show

ID = 12
"""Digits of a notebook's key that are its run's id, which every figure and table of it carries."""


def run(planned: Plan, jobs: int | None = None, place: str | Slurm | None = None) -> bool:
    """Run the notebooks of a plan that are not up to date; return whether any ran.

    Args:
        planned: from :func:`isorepro.profiles.plan`.
        jobs: processors to use, by notebooks side by side and by the sweeps of each; None for
            :func:`isorepro.store.default_jobs`.
        place: the cluster that computes the sweeps, from :func:`isorepro.cluster.where`; None for this machine.

    Raises:
        InputError: the cluster cannot be reached, or computes other numbers than this machine; or the run's folder
            holds what is not ours.
        NotebookError: a cell failed; what was finished before is kept, also of the same notebook.
    """
    paths.claim(planned.folder)
    told = _keys_told(planned.folder)
    keys = {notebook: notebook_key(notebook, values) for notebook, values in planned.notebooks.items()}
    todo = []
    for notebook, key in keys.items():
        if _is_current(planned.folder, notebook, key):
            say(f"{notebook}: up to date")
        else:
            todo.append(notebook)
    ran = bool(todo) and _run_side_by_side(planned, {notebook: keys[notebook] for notebook in todo}, jobs, place)
    # A run that was interrupted has results that its manifest does not tell of yet.
    if ran or any(told.get(notebook) != key for notebook, key in keys.items()):
        with alone(planned.folder, "manifest"):
            provenance.write(planned)
    return ran


def _run_side_by_side(planned: Plan, keys: Mapping[str, str], jobs: int | None, place: str | Slurm | None) -> bool:
    """Run notebooks, those that take longest first; return whether any had to be run by this process."""
    from isorepro.store import check_cluster, default_jobs

    desk = _Desk(planned, keys, jobs or default_jobs())
    with cluster.scheduler(place) as desk.scheduler, ThreadPoolExecutor(desk.jobs) as pool:
        if desk.scheduler:
            check_cluster(desk.scheduler)
        # A thread starts a process, listens to it and waits for its end.
        futures = [pool.submit(_run_one, planned, notebook, keys[notebook], desk) for notebook in desk.order]
        try:
            return sum(future.result() for future in as_completed(futures)) > 0
        except BaseException:
            desk.stopping.set()
            for future in futures:
                future.cancel()
            raise


OWN = 15.0
"""Processor seconds of a notebook that finds all its results kept, about: it starts, reads and draws."""


BOOK = 30.0
"""Seconds that the book takes once the notebooks of a profile are done, about."""


class _Desk:
    """What the notebooks of a run share: processors, a cluster, the place where progress is shown, and the clock.

    Args:
        planned: the plan.
        keys: the notebooks to run, with their keys.
        jobs: processors to use.
    """

    def __init__(self, planned: Plan, keys: Mapping[str, str], jobs: int) -> None:
        self.jobs = jobs
        self.start_timeout = start_timeout()
        self.scheduler: str | None = None
        self.stopping = threading.Event()
        self.began = time.time_ns()
        self._expected = _expected_seconds(planned, keys)
        self.order = sorted(keys, key=lambda notebook: -self._expected[notebook])
        self._book = BOOK if planned.whole else 0.0
        self._interrupted = {name for name in keys if [*(planned.folder / ".running").glob(f"{name}-*")]}
        self._lock = threading.Lock()
        self._running: dict[str, tuple[Path, int]] = {}
        self._news: dict[str, str] = {}
        self._done: list[str] = []
        self._spent = dict.fromkeys(keys, 0.0)
        self._saved = dict.fromkeys(keys, 0.0)
        self._started = self._last = time.monotonic()

    def begin(self, notebook: str, scratch: Path) -> None:
        """Give a notebook its share of the processors, which a file in its folder ``scratch`` will hold."""
        with self._lock:
            self._count()
            self._running[notebook] = (scratch, 0)
            self._share_out()
        say(f"{notebook}: running")

    def _share_out(self) -> None:
        each, more = divmod(self.jobs, max(1, len(self._running)))
        for place, (notebook, (scratch, _)) in enumerate(self._running.items()):
            self._running[notebook] = (scratch, max(1, each + (place < more)))
            paths.write_atomically(scratch / "share", str(self._running[notebook][1]))

    def _count(self) -> None:
        """Note what each notebook has had of the processors since the last time, and what was kept for it."""
        now = time.monotonic()
        for notebook, (scratch, share) in self._running.items():
            self._spent[notebook] += share * (now - self._last)
            self._saved[notebook] = _kept(scratch)[2]
        self._last = now

    def tell(self, notebook: str, line: str) -> None:
        """Show a line of progress of a notebook, on a terminal beside those of the others."""
        with self._lock:
            self._news[notebook] = line
            together = sys.stderr.isatty() and len(self._news) > 1
            told = self._news if together else {notebook: line}
            show("    " + " · ".join(f"{name}: {news}" for name, news in told.items()))

    def leave(self, notebook: str) -> None:
        """Take a notebook off; its share, which is no longer written, goes to the others."""
        with self._lock:
            self._news.pop(notebook, None)
            self._count()
            if self._running.pop(notebook, None):
                self._share_out()

    def end(self, notebook: str, done: str) -> None:
        """Say that and how a notebook was done, and how long the others may take."""
        with self._lock:
            self._count()
            self._done.append(notebook)
            if not self._spent[notebook]:
                self._expected[notebook] = 0.0  # another run did it: that tells nothing of this one
            left, gone = self._seconds_left(), clock(self._last - self._started)
            rest = f", {gone} gone, about {clock(left + self._book)} left" if left else ""
            say(f"{notebook}: {done} ({len(self._done)} of {len(self._expected)}{rest})")

    def _seconds_left(self) -> float:
        """Return about how long the notebooks not done yet may take; 0.0 if all are."""
        cost = {notebook: spent + self._saved[notebook] for notebook, spent in self._spent.items()}

        def pace(notebooks: Iterable[str]) -> float:
            """Return what they cost here for a second expected."""
            chosen = list(notebooks)
            return sum(cost[name] for name in chosen) / max(1e-9, sum(self._expected[name] for name in chosen))

        begun = [*self._done, *self._running]
        # Those that run have cost that much at least.
        here = max(pace(self._done), pace(begun))
        own = {notebook: here * min(OWN, seconds) for notebook, seconds in self._expected.items()}
        computed = {notebook: max(0.0, spent - own[notebook]) for notebook, spent in self._spent.items()}
        # As much of the others is kept as was of these, but for what an interrupted run was at.
        telling = [notebook for notebook in begun if notebook not in self._interrupted]
        saved = sum(self._saved[notebook] for notebook in telling)
        fresh = 1 - saved / max(1e-9, saved + sum(computed[notebook] for notebook in telling))
        left = 0.0
        for notebook in self._expected.keys() - self._done:
            begins = notebook not in self._running
            rest = self._expected[notebook] * here - own[notebook] - self._saved[notebook] - computed[notebook]
            left += max(0.0, own[notebook] - self._spent[notebook])
            left += max(0.0, rest) * (fresh if begins or self._saved[notebook] else 1)
        return left / self.jobs


def _expected_seconds(planned: Plan, notebooks: Iterable[str]) -> dict[str, float]:
    """Return about how many processor seconds each notebook takes if nothing is kept: as here, or as published."""
    reference = paths.DATA / "reference"
    table = reference / "seconds.yml"
    shipped = yaml.safe_load(table.read_text()).get(planned.profile, {}) if table.is_file() else {}
    told = _cold(planned.folder) | shipped | _cold(reference / planned.profile)
    usual = sum(told.values()) / max(1, len(told)) or 1.0
    return {notebook: told.get(notebook, usual) for notebook in notebooks}


def _cold(folder: Path) -> dict[str, float]:
    """Return the seconds from nothing that a folder's manifest tells; those of older versions tell none."""
    try:
        records = json.loads((folder / "manifest.json").read_text())["notebooks"]
    except (OSError, ValueError, KeyError):
        return {}
    return {name: record["cold_seconds"] for name, record in records.items() if record.get("cold_seconds")}


def _run_one(planned: Plan, notebook: str, key: str, desk: _Desk) -> bool:
    """Run a notebook and record it, unless another run does so meanwhile; return whether it was run here."""
    with alone(planned.folder, notebook, desk.stopping):
        if desk.stopping.is_set():
            return False
        if _is_current(planned.folder, notebook, key):
            desk.end(notebook, "up to date, by another run")
            return False
        values = planned.notebooks[notebook]
        record = _execute(planned.folder, notebook, values, desk, key[:ID])
        # Its kernel began later than the key was made, and may have loaded other code.
        changed = notebook_key(notebook, values) != key
        if changed or record["unkept"]:
            why = "its code was changed while it ran" if changed else f"{record['unkept']} result(s) were not kept"
            say(f"{notebook}: {why}: the next run does it again")
        known = {"key": "" if changed or record["unkept"] else key, "id": key[:ID]}
        paths.write_atomically(
            _record_path(planned.folder, notebook),
            json.dumps({**known, "files": _file_digests(planned.folder, notebook), **record}, indent=1),
        )
        desk.end(notebook, f"done in {clock(record['wall_seconds'])}")
        return True


@contextmanager
def alone(folder: Path, name: str, stopping: threading.Event | None = None) -> Iterator[None]:
    """Do something in a run's folder while no other run does the same; wait for it if one does, and say so.

    The system ends the claim of a process that dies.

    Args:
        folder: the run's folder.
        name: what is done, such as a notebook.
        stopping: once it is set, waiting ends without the claim.
    """
    lock = folder / ".running" / f"{name}.lock"
    paths.note(lock)
    lock.parent.mkdir(parents=True, exist_ok=True)
    claim = filelock.FileLock(lock, thread_local=False)
    stopping, waited = stopping or threading.Event(), False
    while not claim.is_locked and not stopping.is_set():
        try:
            claim.acquire(blocking=False)
        except filelock.Timeout:
            if not waited:
                say(f"{name}: another run is at it; waiting")
            waited = True
            stopping.wait(0.2)
    try:
        yield
    finally:
        claim.release()


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
    from isorepro.store import library_versions

    cells = nbformat.read(profiles.NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    texts = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in cells]
    ours = [name for name in sources.modules() if not _is_about_running(name)]
    script = "\n".join(_plain(cell.source) for cell in cells if cell.cell_type == "code")
    reached = sources.reach(ours, disk=True, script=script, beside=profiles.NOTEBOOKS)
    # Notebooks import the types of their parameters from a module that changes no result.
    code = {name: text for name, (_, text) in reached.code.items() if not _is_about_running(name)}
    files = [[*at, digest] for at, digest in reached.files.items()]
    beside = sorted(path for kind in ("css", "js") for path in Path(__file__).parent.rglob(f"*.{kind}"))
    looks = [(path.name, path.read_text()) for path in beside]
    versions = library_versions() | {name: version(name) for name in ("matplotlib", "pandas")}
    # Figures show what a parameter names in its order: {"b": 1, "a": 2} is not {"a": 2, "b": 1}.
    parameters = {name: json.dumps(value) for name, value in values.items()}
    return digest([texts, parameters, code, files, looks, versions])


ABOUT_RUNNING = (
    *("parameters", "profiles", "provenance", "runner", "reference", "claims", "claim_pages", "lineage", "speed"),
    *("book", "cli"),
)
"""Modules that change no result of a notebook."""


def _is_about_running(module: str) -> bool:
    return module.removeprefix("isorepro.") in ("isorepro", *ABOUT_RUNNING)


def _plain(cell: str) -> str:
    """Return a code cell as plain Python; nothing of one that cannot run."""
    try:
        ast.parse(cell)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager  # as the kernel reads %magic and !command

        cell = TransformerManager().transform_cell(cell)
        try:
            ast.parse(cell)
        except SyntaxError:
            return ""
    return cell


# Papermill, ended when the process that started it is killed; its kernel looks after itself, and workers too. The
# kernel is this Python, whatever "python3" is on the Jupyter path, and says at the end which package it imported.
# Two kernels that start at once may choose the same port, and one waits in vain; a name of its own each has.
_PAPERMILL = """
import ast, ctypes, os, sys, uuid
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(os.environ["ISOREPRO_DRIVER"]):
    sys.exit("the run was killed")
import yaml
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from papermill import engines, execute_notebook
from papermill.clientwrap import PapermillNotebookClient

given, executed, parameters, folder, package, commit, timeout = sys.argv[1:]
# Papermill takes the names of files for format strings.
given, executed = (name.replace("{", "{{").replace("}", "}}") for name in (given, executed))

class Kernel(AsyncKernelManager):
    kernel_spec = KernelSpec(**get_kernel_dict())

    def __init__(self, **given):
        own = {"transport": "ipc", "ip": "@isorepro-" + uuid.uuid4().hex} if sys.platform == "linux" else {}
        super().__init__(**given, **own)

class Client(PapermillNotebookClient):
    def papermill_execute_cells(self):
        try:
            super().papermill_execute_cells()
        except DeadKernelError:
            sys.exit(f"the kernel ended with status {self.km.provisioner.process.returncode}")
        wanted = "getattr(__import__('sys').modules.get('isorepro'), '__path__', [None])[0]"
        asked = self.kc.execute("", silent=True, user_expressions={"package": wanted})
        told = self.wait_for_reply(asked)["content"]["user_expressions"]["package"]
        imported = ast.literal_eval(told["data"]["text/plain"])
        if imported and os.path.realpath(imported) != os.path.realpath(package):
            sys.exit(f"it imported the package of {imported}, not of {package}")
        self.nb.metadata["isorepro"] = {"python": sys.executable, "package": imported, "commit": commit}

class Engine(engines.Engine):
    @classmethod
    def execute_managed_notebook(cls, notebook, kernel_name, **_):
        own = {"kernel_manager_class": Kernel, "kernel_name": kernel_name}
        Client(notebook, startup_timeout=int(timeout), **own).execute()

engines.papermill_engines.register("isorepro", Engine)
with open(parameters) as file:
    values = yaml.safe_load(file)
execute_notebook(given, executed, values, "isorepro", kernel_name="python3", progress_bar=False, cwd=folder)
"""

START_TIMEOUT = "ISOREPRO_START_TIMEOUT"
"""Environment variable: seconds that a kernel may take to start; 300 without it."""


def start_timeout() -> int:
    """Return how many seconds a kernel may take to start: the environment variable :data:`START_TIMEOUT`, or 300.

    Raises:
        InputError: it is no whole number above 0.
    """
    given = os.environ.get(START_TIMEOUT, "300")
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"{START_TIMEOUT}: must be a whole number of seconds above 0, not {given!r}")
    return int(given)


def _execute(folder: Path, notebook: str, values: Mapping[str, Any], desk: _Desk, run_id: str) -> dict[str, Any]:
    """Execute a notebook in a scratch folder and move what it made into place when all went well."""
    scratch = paths.scratch(folder / ".running", notebook)
    (scratch / "notebooks").mkdir()
    executed, channel, log = (
        scratch / "notebooks" / f"{notebook}.ipynb",
        scratch / "progress",
        scratch / "log",
    )
    given = paths.write_atomically(scratch / "parameters.yml", yaml.safe_dump(dict(values), sort_keys=False))
    channel.touch()
    (scratch / "kept").touch()
    environment = paths.surroundings() | {
        "ISOREPRO_RUN": str(scratch),
        "ISOREPRO_OUTPUT": str(paths.output()),
        "ISOREPRO_DRIVER": str(os.getpid()),
        "ISOREPRO_SHARE": str(scratch / "share"),
        "ISOREPRO_KEPT": str(scratch / "kept"),
        "ISOREPRO_BEGAN": str(desk.began),
        "ISOREPRO_RUN_ID": run_id,
        CHANNEL: str(channel),
        "MPLBACKEND": "agg",
        # The threads of a small sum would wait for each other on processors that workers keep busy.
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        # Empty where there is none, whatever the run itself was told.
        cluster.ADDRESS: desk.scheduler or "",
    }
    # -P: nothing in the folder that the run was started in is imported.
    command = [sys.executable, "-P", "-c", _PAPERMILL]
    command += [
        str(profiles.NOTEBOOKS / f"{notebook}.ipynb"),
        str(executed),
        str(given),
        str(profiles.NOTEBOOKS),
        str(paths.PACKAGE),
        provenance.commit(),
        str(desk.start_timeout),
    ]
    desk.begin(notebook, scratch)
    began, started = datetime.now(UTC), time.monotonic()
    with log.open("wb") as output, channel.open() as lines:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            while True:
                # wait4 also tells the processor time and memory of the kernel and its workers.
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                for line in lines:
                    desk.tell(notebook, line.rstrip())
                if pid:
                    break
                if desk.stopping.wait(0.1):
                    raise NotebookError(f"notebook '{notebook}': stopped with the run")
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            # Before the scratch folder goes: a share written later would bring it back.
            desk.leave(notebook)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise NotebookError(_failure(notebook, executed, log, process.returncode))
    for product, target in {
        scratch / "results" / notebook: folder / "results" / notebook,
        executed: folder / "notebooks" / f"{notebook}.ipynb",
    }.items():
        say_left(paths.put(product, target))
    results, kept, saved, unkept = _kept(scratch)
    processor_seconds = usage.ru_utime + usage.ru_stime
    paths.discard(scratch)
    return {
        "parameters": dict(values),
        "started": began.isoformat(timespec="seconds"),
        "jobs": desk.jobs,
        "cluster": desk.scheduler is not None,
        "results": int(results),
        "kept": int(kept),
        "unkept": int(unkept),
        "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(processor_seconds, 1),
        # What a run from nothing takes; unknown where a cluster computed.
        "cold_seconds": None if desk.scheduler else round(processor_seconds + saved, 1),
        "peak_memory_mib": round(usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)),
    }


def _kept(scratch: Path) -> tuple[float, float, float, float]:
    """Return of a notebook so far: results, how many of them kept, processor seconds saved, and results not kept.

    Only what is older than the run has saved any: of what its notebooks share, the first one bears the cost.
    """
    sweeps = [[float(number) for number in line.split()] for line in (scratch / "kept").read_text().splitlines()]
    results, kept, saved, unkept = map(sum, zip((0.0, 0.0, 0.0, 0.0), *sweeps, strict=True))
    return results, kept, saved, unkept


def _failure(notebook: str, executed: Path, log: Path, status: int) -> str:
    # Cells are counted as in the source, without the one papermill puts in for the parameters.
    code = [
        cell
        for cell in _cells(executed)
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    for number, cell in enumerate(code, start=1):
        for found in cell.get("outputs", []):
            if found.output_type == "error":
                last = f"{found.ename}: {found.evalue}".strip().splitlines()[-1]
                return f"notebook '{notebook}', code cell {number}: {last} (kept at {executed})"
    last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
    died = re.fullmatch(r"the kernel ended with status (-?\d+)", last)
    if died or status < 0:
        last = ended("its process", int(died[1]) if died else status)
    if "Kernel didn't respond" in last:
        last += f": {START_TIMEOUT} allows it more seconds than {start_timeout()}"
    return f"notebook '{notebook}': {last} (log at {log})"


def _cells(executed: Path) -> list[Any]:
    """Return the cells of an executed notebook; none if it is not there or, on a full disk, half there."""
    try:
        return list(nbformat.read(executed, as_version=4).cells)
    except (FileNotFoundError, nbformat.reader.NotJSONError, nbformat.ValidationError):
        return []


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
    places = {folder / "notebooks" / f"{notebook}.ipynb", folder / "results" / notebook}
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths.made(folder))
        if places & {path, *path.parents} and path.is_file()
    }
