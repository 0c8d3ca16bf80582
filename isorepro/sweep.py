"""Many configurations in parallel: each network trained once, each measurement made once, both kept.

A result is kept under a key made of its configuration and of the code that computes it, as it is loaded
(:mod:`isorepro.sources`): a changed configuration or a changed line of numerical code is computed anew, an edit to
a plot, a comment or a docstring is not. How results are computed and kept is told in :mod:`isorepro.store`.
"""

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import safetensors.torch
import torch

from isorepro import data, hierarchy, methods, paths, sources, store
from isorepro.errors import InputError, unknown
from isorepro.models import Stack
from isorepro.progress import say
from isorepro.training import TrainedModel, TrainingConfig, dataset_of, train

_TRAINING = train.__module__


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
        jobs: processes to compute in; None for what the runner gives this notebook, else
            :func:`isorepro.store.default_jobs`.
    """
    _reach.cache_clear()
    keys = [_model_key(config) for config in configs]
    wanted = dict(zip(keys, configs, strict=True))
    tasks: dict[str, store.Task] = {key: (train, (config,), {}) for key, config in wanted.items()}
    models = store.results(
        _knowing(tasks),
        _MODELS,
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
    tasks: dict[str, store.Task] = {
        key: (function, each, parameters) for key, each in zip(keys, given, strict=True)
    }
    tables = store.results(
        _knowing(tasks), store.TABLES, reached, jobs, what=f"networks measured ({function.__name__})"
    )
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
    return store.digest(config.identity(), _reach(_modules_of(config)).fingerprint, store.library_versions())


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


def _knowing(tasks: Mapping[str, store.Task]) -> dict[str, store.Task]:
    """Return tasks for processes that may know other datasets than this one."""
    added = _added_datasets()
    return {
        key: (partial(_with_datasets, added, function), args, given)
        for key, (function, args, given) in tasks.items()
    }


def _with_datasets(
    added: Mapping[str, Callable[[int], data.Dataset]], function: Callable[..., Any], *args: Any, **parameters: Any
) -> Any:
    # A worker may also know, in the place of one of ours, what an earlier sweep had added.
    data.DATASETS.update({**_SHIPPED, **added})
    return function(*args, **parameters)


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


def _measure_key(
    models: Sequence[TrainedModel | None], function: Callable[..., Any], parameters: dict[str, Any]
) -> str:
    name = _name_of(function, "measure")
    # Of the weights too: what is measured may have been trained before its code was loaded anew, or changed since.
    made = [(_model_key(model.config), _weights(model)) if model else None for model in models]
    try:
        code = _reach(_modules_measured(models, function, parameters)).fingerprint
        return store.digest(*made, name, parameters, code, store.library_versions())
    except TypeError as error:
        raise InputError(f"measure: the parameters of {name} must be plain data: {error}") from None


def _weights(trained: TrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in trained.model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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


_MODELS = store.Store(
    "models", "safetensors", _read_model, _write_model, lambda trained: trained.processor_seconds
)
