"""Many configurations in parallel: each network trained once, each measurement made once, both kept.

A result is kept under a key made of its configuration and of the source that computes it: a changed
configuration or a changed line of numerical code is computed anew, an edit to a plot, a comment or a
docstring is not. What is finished is written at once; an interrupted sweep goes on from there.
"""

import ast
import hashlib
import inspect
import itertools
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import safetensors
import safetensors.torch
import torch

from isorepro import data, hierarchy, paths
from isorepro.errors import InputError, unknown
from isorepro.models import Stack
from isorepro.progress import say, track
from isorepro.training import TrainedModel, TrainingConfig, train

JOBS = "ISOREPRO_JOBS"
"""Environment variable: default number of worker processes."""

START_UP = 5.0
"""Seconds that worker processes take to start and import torch, about."""

Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function with its positional and named arguments."""

PACKAGE = Path(__file__).parent
NUMERICAL_LIBRARIES = (
    *("gudhi", "numpy", "POT", "pyautoattack", "scikit-learn", "scipy", "torch", "torchvision", "umap-learn"),
)
NOT_NUMERICAL = ("errors", "paths")
"""Modules that numerical ones import but that change no number."""


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
        jobs: worker processes; None takes ISOREPRO_JOBS, else every processor (one worker on a GPU).
    """
    keys = [model_key(config) for config in configs]
    models = {key: kept for key in dict.fromkeys(keys) if (kept := _read_model(_model_path(key)))}
    todo = {key: config for key, config in zip(keys, configs, strict=True) if key not in models}
    tasks: dict[str, Task] = {key: (train, (config,), {}) for key, config in todo.items()}
    least = min((_least_seconds(config) for config in todo.values()), default=0.0)
    for key, model in _run(tasks, jobs, kept=len(models), what="networks trained", least=least):
        _write_model(_model_path(key), model)
        models[key] = model
    # Configs of one identity share a network; each gets it back under the config that was asked for.
    return [
        TrainedModel(config, models[key].model, models[key].history, models[key].seconds)
        for key, config in zip(keys, configs, strict=True)
    ]


def _least_seconds(config: TrainingConfig) -> float:
    """Return about how long a training takes at least: half a millisecond a step."""
    size = config.train_size or len(data.load(config.dataset).train_labels)
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
    configs = [[model.config if model else None for model in each] for each in given]
    keys = [_measure_key(each, function, parameters) for each in configs]
    tables = {key: kept for key in dict.fromkeys(keys) if (kept := _read_table(_table_path(key))) is not None}
    tasks: dict[str, Task] = {
        key: (function, each, parameters) for key, each in zip(keys, given, strict=True) if key not in tables
    }
    for key, table in _run(tasks, jobs, kept=len(tables), what=f"networks measured ({function.__name__})"):
        tables[key] = _write_table(_table_path(key), table)
    return _stacked(models, [tables[key] for key in keys])


def histories(models: Sequence[TrainedModel]) -> pd.DataFrame:
    """Return the training histories of at least one network, with the first columns of :func:`measure`."""
    return _stacked(models, [model.history for model in models])


def _stacked(models: Sequence[TrainedModel], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    configs = pd.DataFrame(
        [model.config.model_dump() | {"hierarchy": hierarchy.to_text(model.config.hierarchy)} for model in models]
    )
    always = {"form", "K", "beta", "seed"}
    named = configs[[name for name in configs if name in always or configs[name].nunique(dropna=False) > 1]]
    stacked = pd.concat(tables, keys=range(len(tables)), names=["model", None])
    position = stacked.index.get_level_values("model")
    return pd.concat([named.loc[position].reset_index(drop=True), stacked.reset_index(drop=True)], axis=1)


def model_key(config: TrainingConfig) -> str:
    """Return the key under which the trained network of a config is kept."""
    return _digest(config.identity(), source_fingerprint("isorepro.training"))


def source_fingerprint(module: str, package: Path = PACKAGE) -> str:
    """Return a digest of the code of one module of the package and of all it imports from the package.

    Comments, docstrings and layout do not count; the versions of the numerical libraries do.

    Args:
        module: its dotted name, such as "isorepro.training".
        package: the folder of the package.
    """
    code: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop().partition(".")[2].partition(".")[0]
        path = package / f"{name}.py"
        if name in code or name in NOT_NUMERICAL or not path.is_file():
            continue
        tree = ast.parse(path.read_text())
        todo += _imports_from(tree, package.name)
        code[name] = _code_of(tree)
    versions = {name: version(name) for name in NUMERICAL_LIBRARIES}
    return _digest(dict(sorted(code.items())), versions)


def _imports_from(tree: ast.Module, package: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.startswith(f"{package}.")]


def _code_of(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def _measure_key(
    configs: Sequence[TrainingConfig | None], function: Callable[..., Any], parameters: dict[str, Any]
) -> str:
    name = f"{function.__module__}.{function.__qualname__}"
    if function.__module__ == "__main__" or "<" in function.__qualname__:
        raise InputError(f"measure: {name} must be a function of a module, so that its results can be kept")
    if function.__module__.startswith("isorepro."):
        source = source_fingerprint(function.__module__)
    else:
        everything = sorted(path.stem for path in PACKAGE.glob("*.py"))
        source = _digest(
            Path(inspect.getfile(function)).read_text(),
            [source_fingerprint(f"isorepro.{m}") for m in everything],
        )
    try:
        return _digest(*[model_key(config) if config else None for config in configs], name, parameters, source)
    except TypeError as error:
        raise InputError(f"measure: the parameters of {name} must be plain data: {error}") from None


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _run(
    tasks: dict[str, Task], jobs: int | None, *, kept: int, what: str, least: float = 0.0
) -> Iterator[tuple[str, Any]]:
    """Yield (key, result) of each task as it finishes; ``least``: seconds that each takes at least, if known."""
    if not tasks:
        return
    if jobs is None:
        given = os.environ.get(JOBS, str(1 if torch.cuda.is_available() else joblib.cpu_count()))
        if not given.isdecimal():
            raise InputError(f"{JOBS}: must be a whole number, not {given!r}")
        jobs = int(given)
    if jobs < 1:
        raise InputError(f"jobs: must be at least 1, not {jobs}")
    what = f"{what}, {kept} kept from before" if kept else what
    yield from track(_finished(tasks, jobs, least), total=len(tasks), what=what)


def _finished(tasks: dict[str, Task], jobs: int, least: float = 0.0) -> Iterator[tuple[str, Any]]:
    """Yield (key, result) as they come: from this process while that is faster than starting workers."""
    rest, each = list(tasks.items()), least

    def few() -> bool:
        # The first task may have loaded a library, which the next ones need not.
        first_was_short = len(tasks) - len(rest) == 1 and each < START_UP
        return first_was_short or len(rest) * each * (jobs - 1) <= START_UP * jobs

    while rest and not _workers_run and few():
        key, task = rest.pop(0)
        started = time.monotonic()
        yield _one_thread(key, *task)
        each = max(least, time.monotonic() - started)
    if rest:
        if jobs > 1:
            _workers_run.append(True)
        # A worker whose memory grew, by a dataset or a library, is replaced by a new one: nothing is lost.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        parallel = joblib.Parallel(n_jobs=min(jobs, len(rest)), return_as="generator_unordered")
        yield from parallel(joblib.delayed(_one_thread)(key, *task) for key, task in rest)


_workers_run: list[bool] = []
"""Not empty once this process has started workers, which then stay."""


def _one_thread(
    key: str, function: Callable[..., Any], args: tuple[Any, ...], parameters: dict[str, Any]
) -> tuple[str, Any]:
    # One thread whatever the number of workers: sums are split by thread, so the bits depend on it.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return key, function(*args, **parameters)
    finally:
        torch.set_num_threads(threads)


def _model_path(key: str) -> Path:
    return paths.output() / "cache" / "models" / f"{key}.safetensors"


def _table_path(key: str) -> Path:
    return paths.output() / "cache" / "tables" / f"{key}.json"


def _write_model(path: Path, trained: TrainedModel) -> None:
    # Clones, since safetensors takes no tensor twice and a shared head is in the state once for each level.
    state = {name: tensor.clone().contiguous() for name, tensor in trained.model.state_dict().items()}
    about = json.dumps(
        {
            "config": trained.config.model_dump(),
            "architecture": trained.model.architecture,
            "history": trained.history.to_dict("list"),
            "seconds": trained.seconds,
        }
    )
    metadata = {"about": about, "sha256": _state_digest(state, about)}
    paths.write_atomically(path, safetensors.torch.save(state, metadata))


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
            model = Stack(**about["architecture"])
        model.load_state_dict(state)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        say(f"the kept network {path} is damaged and is trained again ({error})")
        return None
    config = TrainingConfig(**about["config"])
    return TrainedModel(config, model.eval(), pd.DataFrame(about["history"]), about["seconds"])


def _state_digest(state: dict[str, torch.Tensor], about: str) -> str:
    return hashlib.sha256(safetensors.torch.save(state) + about.encode()).hexdigest()


def _write_table(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Write a table and return it as it will be read, so that kept and fresh results are the same."""
    columns = json.dumps(table.to_dict("list"))
    envelope = {"sha256": hashlib.sha256(columns.encode()).hexdigest(), "columns": columns}
    paths.write_atomically(path, json.dumps(envelope))
    return pd.DataFrame(json.loads(columns))


def _read_table(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        envelope = json.loads(path.read_text())
        if hashlib.sha256(envelope["columns"].encode()).hexdigest() != envelope["sha256"]:
            raise ValueError("its digest does not match its content")
        return pd.DataFrame(json.loads(envelope["columns"]))
    except (ValueError, KeyError, TypeError) as error:
        say(f"the kept table {path} is damaged and is measured again ({error})")
        return None
