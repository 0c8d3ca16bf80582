"""Many configurations in parallel: each network trained once, each measurement made once, both kept.

A result is kept under a key made of its configuration and of the code that computes it, as it is loaded
(:mod:`isorepro.sources`): a changed configuration or a changed line of numerical code is computed anew, an edit to
a plot, a comment or a docstring is not. What no key would tell apart is computed and not kept. What is finished is
written at once; an interrupted sweep goes on from there. Sweeps of several processes share the work: what one of
them computes, another waits for, and nothing is computed twice. With ISOREPRO_CLUSTER the workers of a dask
scheduler compute; results are kept here all the same.
"""

import hashlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import filelock
import joblib
import pandas as pd
import safetensors
import safetensors.torch
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from isorepro import cluster, data, hierarchy, methods, paths, sources
from isorepro.errors import InputError, ended, unknown
from isorepro.models import Stack
from isorepro.progress import say, tell, track
from isorepro.training import TrainedModel, TrainingConfig, dataset_of, resolve_device, train

JOBS = "ISOREPRO_JOBS"
"""Environment variable: default number of worker processes."""

SHARE = "ISOREPRO_SHARE"
"""Environment variable naming a file that holds that number, which may change while a sweep runs."""

START_UP = 5.0
"""Seconds that worker processes take to start and import torch, about."""

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

_TRAINING = train.__module__

NUMERICAL_LIBRARIES = (
    *("gudhi", "numpy", "POT", "pyautoattack", "scikit-learn", "scipy", "torch", "torchvision", "umap-learn"),
)
"""Libraries whose version can change a result: part of every key."""


def grid(base: TrainingConfig, **values: Sequence[Any]) -> list[TrainingConfig]:
    """Return ``base`` with every combination of the given fields, the last field varying fastest.

    Raises:
        InputError: an unknown field, a value it does not allow, or the same value twice.
    """
    for name in values:
        if name not in TrainingConfig.model_fields:
            raise unknown("field of TrainingConfig", name, TrainingConfig.model_fields)
    configs = [
        TrainingConfig(**base.model_dump() | dict(zip(values, combination, strict=True)))
        for combination in itertools.product(*values.values())
    ]
    for name in values:
        # A seed counted twice would make an interval look narrower than it is. As checked: 1 is 1.0 here.
        if configs and len({getattr(config, name) for config in configs}) < len(values[name]):
            raise InputError(f"{name}: must not hold a value twice, not {list(values[name])}")
    return configs


def train_all(configs: Sequence[TrainingConfig], *, jobs: int | None = None) -> list[TrainedModel]:
    """Return the trained network of each config, in order; those not yet kept are trained in parallel.

    Args:
        configs: any number; equal ones are trained once.
        jobs: processes to compute in; None for what the runner gives this notebook, else :func:`default_jobs`.
    """
    _reach.cache_clear()
    keys = [_model_key(config) for config in configs]
    wanted = dict(zip(keys, configs, strict=True))
    tasks: dict[str, Task] = {key: (train, (config,), {}) for key, config in wanted.items()}
    models = _results(
        tasks,
        _Store("models", "safetensors", _read_model, _write_model),
        {key: _reach(_modules_of(config)) for key, config in wanted.items()},
        jobs,
        what="networks trained",
        least=lambda left: min(_least_seconds(wanted[key]) for key in left),
    )
    # Configs of one identity share a network; each gets it back under the config that was asked for.
    return [replace(models[key], config=config) for key, config in zip(keys, configs, strict=True)]


def _least_seconds(config: TrainingConfig) -> float:
    """Return about how long a training takes at least: half a millisecond a step."""
    size = config.train_size or len(dataset_of(config).train_labels)
    return 5e-4 * config.epochs * math.ceil(size / config.batch_size)


def measure(
    models: Sequence[TrainedModel],
    function: Callable[..., pd.DataFrame],
    *,
    beside: Sequence[TrainedModel | None] | None = None,
    jobs: int | None = None,
    **parameters: Any,
) -> pd.DataFrame:
    """Apply a measurement to every network, in parallel where not yet kept, and stack the tidy tables.

    Args:
        models: at least one network.
        function: a function of a module, called as ``function(model, **parameters)``.
        beside: a second network for each, or None in its place, such as the source of a transferred attack; the
            function is then called as ``function(model, second, **parameters)``.
        jobs: as in :func:`train_all`.
        parameters: its keyword arguments: numbers, strings, lists and dicts of them, None.

    Returns:
        The tables in order of the models, with the config's form, K, beta, seed and whichever other fields
        differ between the models as first columns.

    Raises:
        InputError: no networks, another number of them beside, a function that no module holds, or a parameter
            that is not plain data.
    """
    if not models:
        raise InputError("measure: needs at least one network, not an empty list")
    if beside is not None and len(beside) != len(models):
        raise InputError(f"measure: needs as many networks beside as networks, {len(models)}, not {len(beside)}")
    given = [(model,) if beside is None else (model, beside[place]) for place, model in enumerate(models)]
    _reach.cache_clear()
    keys = [_measure_key(each, function, parameters) for each in given]
    modules = [_modules_measured(each, function, parameters) for each in given]
    reached = {key: _reach(each) for key, each in zip(keys, modules, strict=True)}
    tasks: dict[str, Task] = {key: (function, each, parameters) for key, each in zip(keys, given, strict=True)}
    store = _Store("tables", "json", _read_table, _write_table)
    tables = _results(tasks, store, reached, jobs, what=f"networks measured ({function.__name__})")
    return _stacked(models, [tables[key] for key in keys])


def histories(models: Sequence[TrainedModel]) -> pd.DataFrame:
    """Return the training histories of at least one network, with the first columns of :func:`measure`."""
    return _stacked(models, [model.history for model in models])


def _stacked(models: Sequence[TrainedModel], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    configs = pd.DataFrame([_in_text(model.config) for model in models])
    always = {"form", "K", "beta", "seed"}
    named = configs[[name for name in configs if name in always or configs[name].nunique(dropna=False) > 1]]
    stacked = pd.concat(tables, keys=range(len(tables)), names=["model", None])
    position = stacked.index.get_level_values("model")
    return pd.concat([named.loc[position].reset_index(drop=True), stacked.reset_index(drop=True)], axis=1)


def _in_text(config: TrainingConfig) -> dict[str, Any]:
    """Return the fields of a config as the columns of a table show them."""
    told = {"hierarchy": hierarchy.to_text(config.hierarchy), "options": methods.to_text(config.options)}
    return config.model_dump() | told


def model_key(config: TrainingConfig) -> str:
    """Return the key under which the trained network of a config is kept.

    Raises:
        InputError: its dataset was added by a function that no module holds, or its code cannot be followed.
        DataError: a file that its dataset or method says it reads is missing.
    """
    _reach.cache_clear()
    return _model_key(config)


def _model_key(config: TrainingConfig) -> str:
    return _digest(config.identity(), _reach(_modules_of(config)).fingerprint, library_versions())


def _modules_of(config: TrainingConfig) -> frozenset[str]:
    """Return the modules from which all code of a training is reached."""
    modules = {_TRAINING}
    if make := _added_datasets().get(config.dataset):
        _name_of(make, "dataset")
        modules.add(make.__module__)
    own, colon, _ = config.method.partition(":")
    return frozenset(modules | ({own} if colon else set()))


def _modules_measured(
    models: Sequence[TrainedModel | None], function: Callable[..., Any], parameters: Mapping[str, Any]
) -> frozenset[str]:
    """Return the modules from which all code of a measurement is reached, and of the datasets it is told."""
    text = json.dumps(parameters)
    told = [make.__module__ for name, make in _added_datasets().items() if json.dumps(name) in text]
    return frozenset({function.__module__, *told}).union(*[_modules_of(model.config) for model in models if model])


_reach = lru_cache(maxsize=100)(sources.reach)
"""Of the same modules for each of many networks; cleared when a sweep begins, since code may be loaded anew."""


def _added_datasets() -> dict[str, Callable[[int], data.Dataset]]:
    """Return the datasets that came to :data:`isorepro.data.DATASETS` from outside the package."""
    return {name: make for name, make in data.DATASETS.items() if not sources.is_ours(make.__module__)}


_SHIPPED = {name: make for name, make in data.DATASETS.items() if sources.is_ours(make.__module__)}


def _name_of(function: Callable[..., Any], what: str) -> str:
    """Return the full name of a function that a module holds: what wraps it, or is bound in it, comes of its code.

    Raises:
        InputError: no module holds it, or another under its name.
    """
    module = str(getattr(function, "__module__", None))
    path = str(getattr(function, "__qualname__", "<no name>"))
    held: Any = sys.modules.get(module)
    for part in path.split("."):
        held = getattr(held, part, None)
    if module == "__main__" or held is None:
        raise InputError(
            f"{what}: {module}.{path} must be a function of a module, so that its results can be kept; "
            "a function that wraps another has its name by functools.wraps"
        )
    if held is not function:
        raise InputError(f"{what}: {module}.{path} is another function than the one given: import its module anew")
    return f"{module}.{path}"


def _as_asked(
    reached: sources.Reach,
    added: Mapping[str, Callable[[int], data.Dataset]],
    function: Callable[..., Any],
    /,
    *args: Any,
    **parameters: Any,
) -> tuple[Any, list[str]]:
    """Call a function in a process that may know other datasets than the one that asks, or have other code.

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
    # A worker may also know, in the place of one of ours, what an earlier sweep had added.
    data.DATASETS.update({**_SHIPPED, **added})
    started = time.process_time()
    result = function(*args, **parameters)
    if isinstance(result, pd.DataFrame):
        result.attrs[SECONDS] = time.process_time() - started
    return result, reached.faults()


@cache
def library_versions() -> dict[str, str]:
    """Return the version of each library that decides numbers: name → version."""
    return {name: version(name) for name in NUMERICAL_LIBRARIES}


def _measure_key(
    models: Sequence[TrainedModel | None], function: Callable[..., Any], parameters: dict[str, Any]
) -> str:
    name = _name_of(function, "measure")
    # Of the weights too: what is measured may have been trained before its code was loaded anew, or changed since.
    made = [(_model_key(model.config), _weights(model)) if model else None for model in models]
    try:
        code = _reach(_modules_measured(models, function, parameters)).fingerprint
        return _digest(*made, name, parameters, code, library_versions())
    except TypeError as error:
        raise InputError(f"measure: the parameters of {name} must be plain data: {error}") from None


@lru_cache(maxsize=1)
def numerics() -> dict[str, str]:
    """Return what decides the bits of all results but their configurations, in this process: name → value.

    As it was when first asked for: a worker goes on with the code that it has loaded, whatever the files say now.
    """
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **library_versions(),
        "device": resolve_device("auto").type,
        "code of isorepro": _digest(sources.reach(sources.modules()).fingerprint)[:12],
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


def _weights(trained: TrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in trained.model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Store(Generic[Result]):
    """Where results of a kind are kept in the cache, and how one is read (None if damaged) and written."""

    folder: str
    suffix: str
    read: Callable[[Path], Result | None]
    write: Callable[[Path | None, Result], Result]

    def path(self, key: str) -> Path:
        return paths.output() / "cache" / self.folder / f"{key}.{self.suffix}"

    def lock(self, key: str) -> filelock.FileLock:
        """Return what the process that computes a result holds; the system frees it if that process dies."""
        path = paths.output() / "cache" / "locks" / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        # joblib asks for tasks in a thread of its own.
        return filelock.FileLock(path, blocking=False, thread_local=False)


def _results(
    tasks: Mapping[str, Task],
    store: _Store[Result],
    reached: Mapping[str, sources.Reach],
    jobs: int | None,
    *,
    what: str,
    least: Callable[[Sequence[str]], float] = lambda left: 0.0,
) -> dict[str, Result]:
    """Return the result of each task, kept or computed.

    Args:
        tasks, store, jobs: as for :func:`_shared`.
        reached: key → what the result follows.
        what: what is done, for a line of progress.
        least: keys → seconds that each takes at least.
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
    added = _added_datasets()
    todo: dict[str, Task] = {
        key: (partial(_as_asked, reached[key], added, function), args, given)
        for key, (function, args, given) in tasks.items()
        if key not in found
    }
    # In this process, which alone has the code that was asked for.
    here = {key: todo.pop(key) for key in unkept}
    saved = sum(_cost(found[key]) for key in found if seen[key] < int(os.environ.get(BEGAN, 0)))
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
    store: _Store[Result],
    seen: Mapping[str, int],
    jobs: int | None,
    least: float,
    unkept: dict[str, Sequence[str]],
) -> Iterator[tuple[str, Result]]:
    """Yield (key, result) of each task, computed here or by another process, which holds its lock meanwhile.

    Args:
        tasks: of :func:`_as_asked`, whose results were not there, or damaged, when their files were changed as in
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


def _cost(result: Any) -> float:
    """Return the processor seconds that a network or a table took; 0.0 for a table kept before they were noted."""
    return result.processor_seconds if isinstance(result, TrainedModel) else result.attrs.get(SECONDS, 0.0)


def _changed(path: Path) -> int:
    """Return when a file was last changed, in nanoseconds; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def default_jobs() -> int:
    """Return how many processes compute unless told: ISOREPRO_JOBS, else one a processor (one on a GPU).

    Raises:
        InputError: ISOREPRO_JOBS is no whole number above 0.
    """
    given = os.environ.get(JOBS, str(1 if torch.cuda.is_available() else joblib.cpu_count()))
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
        jobs: as for :func:`train_all`.
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
    before = [get() for get, *_ in _AS_PUBLISHED]
    try:
        for _, use, value in _AS_PUBLISHED:
            use(value)
        return key, function(*args, **parameters)
    finally:
        for (_, use, _), value in zip(_AS_PUBLISHED, before, strict=True):
            use(value)


# One thread whatever the number of workers: sums are split by thread, so the bits depend on it. The others are for
# those who have set them in their session, of which the key of a result knows nothing.
_AS_PUBLISHED: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (
    (torch.get_num_threads, torch.set_num_threads, 1),
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
)


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


def _write_model(path: Path | None, trained: TrainedModel) -> TrainedModel:
    if path is None:
        return trained
    # Clones, since safetensors takes no tensor twice and a shared head is in the state once for each level.
    state = {name: tensor.clone().contiguous() for name, tensor in trained.model.state_dict().items()}
    about = json.dumps(
        {
            "config": trained.config.model_dump(),
            "architecture": trained.model.architecture,
            "history": trained.history.to_dict("list"),
            "seconds": trained.seconds,
            "processor_seconds": trained.processor_seconds,
        }
    )
    metadata = {"about": about, "sha256": _state_digest(state, about)}
    paths.write_atomically(path, safetensors.torch.save(state, metadata))
    return trained


def _read_model(path: Path) -> TrainedModel | None:
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        if metadata["sha256"] != _state_digest(state, metadata["about"]):
            raise ValueError("its digest does not match its content")
        about = json.loads(metadata["about"])
        with torch.random.fork_rng(devices=[]):
            model = Stack(**about["architecture"]).float()
        model.load_state_dict(state)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        say(f"the kept network {path} is damaged and is trained again ({error})")
        return None
    config = TrainingConfig(**about["config"])
    times = about["seconds"], about["processor_seconds"]
    return TrainedModel(config, model.eval(), pd.DataFrame(about["history"]), *times)


def _state_digest(state: dict[str, torch.Tensor], about: str) -> str:
    return hashlib.sha256(safetensors.torch.save(state) + about.encode()).hexdigest()


def _write_table(path: Path | None, table: pd.DataFrame) -> pd.DataFrame:
    """Write a table, if it is to be kept, and return it as it will be read: fresh as well as kept."""
    columns = json.dumps(table.to_dict("list"))
    envelope = {"sha256": hashlib.sha256(columns.encode()).hexdigest(), "columns": columns, SECONDS: _cost(table)}
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
