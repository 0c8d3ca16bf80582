"""Compute many results in parallel, each once, and keep them.

A result is kept under a key, which its caller makes of what decides it: the code, as it is loaded
(:mod:`isorepro.sources`), and what that code was asked. What no key would tell apart is computed and not kept.
What is finished is written at once; an interrupted sweep goes on from there. Sweeps of several processes share the
work: what one of them computes, another waits for, and nothing is computed twice. With ISOREPRO_CLUSTER the
workers of a dask scheduler compute; results are kept here all the same.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import platform
import re
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import filelock
import joblib
import pandas as pd
from joblib.externals.loky.process_executor import TerminatedWorkerError

from isorepro import cluster, paths, project, sources
from isorepro.errors import InputError, ended
from isorepro.progress import say, tell, track

JOBS = "ISOREPRO_JOBS"
"""Environment variable: default number of worker processes."""

SHARE = "ISOREPRO_SHARE"
"""Environment variable naming a file that holds that number, which may change while a sweep runs."""

START_UP = 5.0
"""Seconds that worker processes take to start and import what they need, about."""

Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function with its positional and named arguments."""

KEPT = "ISOREPRO_KEPT"
"""Environment variable naming a file to which each sweep adds a line: how many results it has, how many of them
were kept, the processor seconds that those older than :data:`BEGAN` once took, and how many it does not keep."""

BEGAN = "ISOREPRO_BEGAN"
"""Environment variable: when the run began, in nanoseconds since 1970."""

SECONDS = "seconds"
"""Where a table and its file note the processor seconds it took."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Store(Generic[Result]):
    """Where results of a kind are kept in the cache, and how.

    Attributes:
        folder: of the cache.
        suffix: of a file.
        read: returns what a file holds; None if there is no such file, or a damaged one.
        write: writes a result, if it is given a file, and returns it as it will be read.
        seconds: returns the processor seconds that a result took; 0.0 if it does not tell.
    """

    folder: str
    suffix: str
    read: Callable[[Path], Result | None]
    write: Callable[[Path | None, Result], Result]
    seconds: Callable[[Result], float]

    def path(self, key: str) -> Path:
        """Return the file of a result."""
        return paths.output() / "cache" / self.folder / f"{key}.{self.suffix}"

    def lock(self, key: str) -> filelock.FileLock:
        """Return what the process that computes a result holds; the system frees it if that process dies."""
        path = paths.output() / "cache" / "locks" / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        # joblib asks for tasks in a thread of its own.
        return filelock.FileLock(path, blocking=False, thread_local=False)


def results(
    tasks: Mapping[str, Task],
    store: Store[Result],
    reached: Mapping[str, sources.Reach],
    jobs: int | None,
    *,
    what: str,
    least: Callable[[Sequence[str]], float] = lambda left: 0.0,
) -> dict[str, Result]:
    """Return the result of each task, kept or computed.

    Args:
        tasks: by key.
        store: of the results.
        reached: key → what the result follows.
        jobs: processes to compute in; None for what the runner gives this notebook, else :func:`default_jobs`.
        what: what is done, for a line of progress.
        least: keys → seconds that each takes at least.

    Raises:
        InputError: ``jobs`` below 1, or other code is loaded where a task is computed.
        RuntimeError: a worker was killed; what is finished is kept.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs: must be at least 1, not {jobs}")
    # Looked at before they are read: what another process writes from now on is told by its time.
    seen = {key: _changed(store.path(key)) for key in tasks}
    unkept = {key: reached[key].doubts for key in tasks if reached[key].doubts}
    _say_why(unkept, "will not be kept")
    paths_of = {key: store.path(key) for key in tasks if key not in unkept}
    found = {key: kept for key, path in paths_of.items() if (kept := store.read(path)) is not None}
    before = f", {len(found)} kept from before" if found else ""
    todo: dict[str, Task] = {
        key: (partial(as_asked, reached[key], function), args, given)
        for key, (function, args, given) in tasks.items()
        if key not in found
    }
    # In this process, which alone has the code that was asked for.
    here = {key: todo.pop(key) for key in unkept}
    saved = sum(store.seconds(found[key]) for key in found if seen[key] < int(os.environ.get(BEGAN, 0)))
    _tell_the_runner(len(tasks), len(found), saved, len(unkept))
    faults: dict[str, Sequence[str]] = {}
    computed = itertools.chain(
        ((key, store.write(None, _one_thread(key, *task)[1][0])) for key, task in here.items()),
        _shared(todo, store, seen, jobs, least(list(todo)) if todo else 0.0, faults),
    )
    if here or todo:
        try:
            for key, result in track(computed, total=len(here) + len(todo), what=f"{what}{before}"):
                found[key] = result
        except TerminatedWorkerError as error:
            codes = [int(code) for code in re.findall(r"\((-?\d+)\)", str(error))] or [-signal.SIGKILL]
            raise RuntimeError(f"{what}: {ended('a worker', min(codes))}") from None
    if faults:
        _say_why(faults, "are not kept")
        _tell_the_runner(0, 0, 0.0, len(faults))
    return found


def _tell_the_runner(results: int, kept: int, saved: float, unkept: int) -> None:
    if KEPT in os.environ:
        with Path(os.environ[KEPT]).open("a") as file:
            file.write(f"{results} {kept} {saved:.3f} {unkept}\n")


def _say_why(unkept: Mapping[str, Sequence[str]], what: str) -> None:
    for reason in dict.fromkeys(reason for reasons in unkept.values() for reason in reasons):
        count = sum(reason in reasons for reasons in unkept.values())
        tell(f"{count} result(s) {what}: {reason}")


def _shared(
    tasks: dict[str, Task],
    store: Store[Result],
    seen: Mapping[str, int],
    jobs: int | None,
    least: float,
    unkept: dict[str, Sequence[str]],
) -> Iterator[tuple[str, Result]]:
    """Yield (key, result) of each task, computed here or by another process, which holds its lock meanwhile.

    Args:
        tasks: of :func:`as_asked`, whose results were not there, or damaged, when their files were changed as in
            ``seen``.
        store: of the results.
        seen: key → as from :func:`_changed`.
        jobs, least: as for :func:`_finished`.
        unkept: key → why its result must not be kept; added to.
    """
    locks: dict[str, filelock.FileLock] = {}
    by_others: deque[tuple[str, Result]] = deque()
    waiting = tasks
    while waiting:
        elsewhere: dict[str, Task] = {}

        def claimed(
            waiting: dict[str, Task] = waiting, elsewhere: dict[str, Task] = elsewhere
        ) -> Iterator[tuple[str, Task]]:
            for key, task in waiting.items():
                lock, path = store.lock(key), store.path(key)
                try:
                    lock.acquire()
                except filelock.Timeout:
                    elsewhere[key] = task
                    continue
                # A damaged file is not read, and told of, again.
                kept = store.read(path) if _changed(path) != seen[key] else None
                if kept is not None:
                    lock.release()
                    by_others.append((key, kept))
                else:
                    locks[key] = lock
                    yield key, task

        try:
            for key, (result, faults) in _finished(claimed(), len(waiting), jobs, least):
                kept = store.write(None if faults else store.path(key), result)
                unkept |= {key: faults} if faults else {}
                locks.pop(key).release()
                yield key, kept
                while by_others:
                    yield by_others.popleft()
            while by_others:
                yield by_others.popleft()
        finally:
            for lock in list(locks.values()):
                lock.release()
        if len(elsewhere) == len(waiting):
            time.sleep(0.2)
        waiting = elsewhere


def _changed(path: Path) -> int:
    """Return when a file was last changed, in nanoseconds; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def as_asked(
    reached: sources.Reach, function: Callable[..., Any], /, *args: Any, **parameters: Any
) -> tuple[Any, list[str]]:
    """Call a function in a process that may have other code than the one that asks.

    Returns:
        The result, and why it must not be kept; nothing if it may be.

    Raises:
        InputError: this process has other code.
    """
    if stale := reached.stale():
        raise InputError(
            f"{', '.join(stale)}: other code is loaded where this is computed than where it was asked for; what "
            "is finished is kept: start again from one state of the code"
        )
    started = time.process_time()
    result = function(*args, **parameters)
    if isinstance(result, pd.DataFrame):
        result.attrs[SECONDS] = time.process_time() - started
    return result, reached.faults()


def default_jobs() -> int:
    """Return how many processes compute unless told: ISOREPRO_JOBS, else one a processor (one on a GPU).

    Raises:
        InputError: ISOREPRO_JOBS is no whole number above 0.
    """
    given = os.environ.get(JOBS, str(1 if project.computing().gpu() else joblib.cpu_count()))
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"{JOBS}: must be a whole number above 0, not {given!r}")
    return int(given)


def _allowed(jobs: int | None) -> int:
    """Return how many processes may compute now: as given, else as the runner shares them out, else by default."""
    if jobs is None and SHARE in os.environ:
        return int(Path(os.environ[SHARE]).read_text())
    return default_jobs() if jobs is None else jobs


def _finished(
    tasks: Iterator[tuple[str, Task]], total: int, jobs: int | None = None, least: float = 0.0
) -> Iterator[tuple[str, Any]]:
    """Yield (key, result) as they come: from this process while that is faster than starting workers.

    With a cluster, all come from there.

    Args:
        tasks: keys with tasks, asked for one by one.
        total: how many these are at most.
        jobs: as for :func:`results`.
        least: seconds that each takes at least, if known.
    """
    if address := os.environ.get(cluster.ADDRESS):
        yield from _from_cluster(tasks, address)
        return
    done, each = 0, least

    def few(allowed: int) -> bool:
        # The first task may have loaded a library, which the next ones need not.
        first_was_short = done == 1 and each < START_UP
        return first_was_short or (total - done) * each * (allowed - 1) <= START_UP * allowed

    while (allowed := _allowed(jobs)) == 1 or (not _workers_run and few(allowed)):
        key, task = next(tasks, (None, None))
        if key is None or task is None:
            return
        started = time.monotonic()
        yield _one_thread(key, *task)
        done, each = done + 1, max(least, time.monotonic() - started)
    if _workers_run and _workers_run[-1] != len(sources.RELOADED):
        # What is loaded anew here, they have loaded as it was.
        joblib.externals.loky.get_reusable_executor().shutdown()
    _workers_run.append(len(sources.RELOADED))
    # A worker whose memory grew, by a dataset or a library, is replaced by a new one: nothing is lost.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
    parallel = joblib.Parallel(n_jobs=max(1, min(allowed, total - done)), return_as="generator_unordered")
    yield from parallel(joblib.delayed(_one_thread)(key, *task) for key, task in tasks)


def _from_cluster(tasks: Iterator[tuple[str, Task]], address: str) -> Iterator[tuple[str, Any]]:
    parallel = joblib.Parallel(
        backend=cluster.backend(_client(address)),
        return_as="generator_unordered",
        # To the scheduler at once, so that workers that come later find work; each keeps a lock's file open.
        pre_dispatch=256,
        batch_size=1,
    )
    wanted = numerics() | cluster.ONE_THREAD
    yield from parallel(
        joblib.delayed(cluster.call)(cluster.pack(_away, wanted, key, *task)) for key, task in tasks
    )


_client = lru_cache(maxsize=1)(cluster.client_of)


def _away(
    wanted: Mapping[str, str],
    key: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    parameters: dict[str, Any],
) -> tuple[str, Any]:
    """:func:`_one_thread` on a worker, which may have come after :func:`check_cluster`."""
    _compare(wanted, _conditions(), f"the worker on {platform.node()}")
    # What a library would share out among processes here, joblib would send to the cluster once more.
    with joblib.parallel_config(backend="sequential"):
        return _one_thread(key, function, args, parameters)


_workers_run: list[int] = []
"""Not empty once this process has started workers, which then stay: how much code had been loaded anew by then."""


def _one_thread(
    key: str, function: Callable[..., Any], args: tuple[Any, ...], parameters: dict[str, Any]
) -> tuple[str, Any]:
    _end_with_parent()
    settings = project.computing().SETTINGS
    before = [get() for get, *_ in settings]
    try:
        for _, use, value in settings:
            use(value)
        return key, function(*args, **parameters)
    finally:
        for (_, use, _), value in zip(settings, before, strict=True):
            use(value)


def _end_with_parent() -> None:
    """See to it that a worker ends when the process that started it is killed; else it would wait for ever."""
    if not multiprocessing.current_process().name.startswith("LokyProcess") or _watched:
        return

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    _watched.append(True)
    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


_watched: list[bool] = []
"""Not empty once this worker watches its parent."""


@cache
def library_versions() -> dict[str, str]:
    """Return the version of each library that decides numbers: name → version."""
    return {name: version(name) for name in project.computing().LIBRARIES}


@lru_cache(maxsize=1)
def numerics() -> dict[str, str]:
    """Return what decides the bits of all results but their configurations, in this process: name → value.

    As it was when first asked for: a worker goes on with the code that it has loaded, whatever the files say now.
    """
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **library_versions(),
        "device": "cuda" if project.computing().gpu() else "cpu",
        f"code of {project.project().package}": digest(sources.reach(sources.modules()).fingerprint)[:12],
    }


def check_cluster(address: str) -> None:
    """Wait until a cluster has a worker, and see that all it has would compute the bits of this process.

    Raises:
        InputError: no scheduler answers, a worker has other code, versions or threads, or the scheduler no code.
    """
    with cluster.client_of(address) as client:
        found = client.run(_conditions, on_error="return")
        try:
            client.run_on_scheduler(cluster.call, cluster.pack(str))
        except Exception as error:
            found["the scheduler"] = error
    for place, conditions in found.items():
        _compare(numerics() | cluster.ONE_THREAD, conditions, place)


def _conditions(dask_worker: Any = None) -> dict[str, str]:
    """Return under which conditions a worker computes; outside a task, distributed says which worker this is."""
    return numerics() | cluster.threads(dask_worker)


def _compare(wanted: Mapping[str, str], found: Mapping[str, str] | Exception, place: str) -> None:
    if isinstance(found, Exception):
        fault = " ".join((str(found) or repr(found)).split())
    else:
        fault = "; ".join(
            f"{name}: {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value
        )
    if fault:
        raise InputError(
            f"cluster: {place} would not compute what this machine does ({fault}): start it anew from this state "
            "of the code, with the versions of requirements.lock; workers with --nthreads 1 and OMP_NUM_THREADS=1"
        )


def digest(*parts: Any) -> str:
    """Return a digest of plain data, from which the keys of results are made."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write_table(path: Path | None, table: pd.DataFrame) -> pd.DataFrame:
    """Write a table, if it is to be kept, and return it as it will be read: fresh as well as kept."""
    columns = json.dumps(table.to_dict("list"))
    envelope = {
        "sha256": hashlib.sha256(columns.encode()).hexdigest(),
        "columns": columns,
        SECONDS: _seconds(table),
    }
    if path:
        paths.write_atomically(path, json.dumps(envelope))
    return pd.DataFrame(json.loads(columns))


def _read_table(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        envelope = json.loads(path.read_text())
        if hashlib.sha256(envelope["columns"].encode()).hexdigest() != envelope["sha256"]:
            raise ValueError("its digest does not match its content")
        table = pd.DataFrame(json.loads(envelope["columns"]))
        table.attrs[SECONDS] = float(envelope.get(SECONDS, 0.0))
        return table
    except (ValueError, KeyError, TypeError) as error:
        say(f"the kept table {path} is damaged and is measured again ({error})")
        return None


def _seconds(table: pd.DataFrame) -> float:
    """Return the processor seconds that a table took; 0.0 for one kept before they were noted."""
    return float(table.attrs.get(SECONDS, 0.0))


TABLES = Store("tables", "json", _read_table, _write_table, _seconds)
"""Tidy tables, in JSON."""
