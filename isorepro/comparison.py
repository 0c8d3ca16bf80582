"""Training methods compared: what they withstand in two norms, and how their settings are chosen."""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch

from isorepro import attacks, ensemble, methods, stats
from isorepro.errors import InputError
from isorepro.structure import CLOUD
from isorepro.training import TrainedModel, TrainingConfig, clean_accuracy, dataset_of

# Methods whose name in words is not their key with spaces.
_TITLES = {
    "adversarial": "adversarial training",
    "trades": "TRADES",
    "score": "SCORE",
    "logit_pairing": "adversarial logit pairing",
    "virtual_adversarial": "virtual adversarial training",
    "jacobian": "Jacobian",
}

LINF, L2 = "L∞", "L2"
"""The norms of the attacks."""


def grid(
    base: TrainingConfig, settings: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]
) -> tuple[list[str], list[TrainingConfig]]:
    """Return the configs of named settings, each with every seed, and the name of each.

    Seed by seed, so that networks whose times are compared are trained one after the other, under about the same
    load. One setting after the other, a machine that slows down would make the later ones look dearer.

    Args:
        base: what all of them share.
        settings: the name of each → the fields in which it differs, such as ``{"method": "adversarial"}``.
        seeds: at least one.

    Raises:
        InputError: no settings or seeds, or a field that there is not, named with its setting.
    """
    if not settings or not seeds:
        raise InputError("settings: at least one setting and one seed are needed")
    names, configs = [], []
    for seed, (name, fields) in itertools.product(seeds, settings.items()):
        try:
            configs.append(TrainingConfig(**base.model_dump() | dict(fields) | {"seed": seed}))
        except InputError as error:
            raise InputError(f"settings: '{name}': {error}") from None
        names.append(name)
    return names, configs


def expanded(base: TrainingConfig, families: Sequence[Mapping[str, Any]]) -> list[TrainingConfig]:
    """Return every setting of families that are written down in short.

    Args:
        base: what all of them share, the seed among it.
        families: fields of a config, whose value, and those of its ``options``, may be lists of values to try; all
            combinations are taken, in order.

    Raises:
        InputError: a field that there is not, or a setting that is there twice.
    """
    configs = []
    for family in families:
        options = family.get("options", {})
        if not isinstance(options, Mapping):
            raise InputError(f"tried: options must be numbers by name, not {options!r}")
        own = {name: value for name, value in family.items() if name != "options"}
        listed = [
            value if isinstance(value, list | tuple) else [value] for value in (*own.values(), *options.values())
        ]
        for values in itertools.product(*listed):
            fields = dict(zip(own, values, strict=False))
            given = dict(zip(options, values[len(own) :], strict=True))
            configs.append(TrainingConfig(**base.model_dump() | fields | {"options": given}))
    told = [describe(config) for config in configs]
    if twice := next((name for name in told if told.count(name) > 1), None):
        raise InputError(f"tried: '{twice}' is there twice")
    return configs


def family(config: TrainingConfig) -> str:
    """Return what kind of training a config is: its method in words, and the paper's term where it is added."""
    if config.plain:
        return "cross-entropy"
    name = _TITLES.get(config.method, config.method.replace("_", " "))
    return f"{name} + isometry" if config.beta and config.method != methods.DEFAULT else name


def describe(config: TrainingConfig) -> str:
    """Return a config's family, options, and weight and factor of the paper's term, in words."""
    told = [family(config), *(f"{name} = {value:g}" for name, value in config.options)]
    if config.beta:
        term = f"β = {config.beta:g}, K = {config.K:g}" + ("" if config.form == "raw" else f", {config.form}")
        told.append(term if config.method == methods.DEFAULT else f"with {term}")
    return ", ".join(told)


def named(models: Sequence[TrainedModel], names: Sequence[str], table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of :func:`isorepro.sweep.measure` with the setting of each network in its first column.

    Args:
        models: the networks that were measured.
        names: of their settings, (models,).
        table: as many rows of each network, one network after the other.

    Raises:
        InputError: another number of rows.
    """
    count, rest = divmod(len(table), len(models))
    if rest or len(names) != len(models):
        raise InputError(
            f"named: {len(names)} names and {len(table)} rows do not belong to {len(models)} networks"
        )
    table = table.copy()
    table.insert(0, "setting", [name for name in names for _ in range(count)])
    return table


def trainings(models: Sequence[TrainedModel], names: Sequence[str]) -> pd.DataFrame:
    """Return what trainings took and came to.

    Args:
        models: flat networks.
        names: of their settings, (models,).

    Returns:
        One row per network: setting, seed, processor_seconds (of a network that is kept from an earlier run, those
        of that run) and clean, the accuracy on all test examples, in [0, 1].
    """
    rows = [
        (name, model.config.seed, model.processor_seconds, model.history["test_accuracy"].iloc[-1])
        for name, model in zip(names, models, strict=True)
    ]
    return pd.DataFrame(rows, columns=["setting", "seed", "processor_seconds", "clean"])


def robustness(
    trained: TrainedModel,
    *,
    epsilons: Sequence[float],
    l2_epsilons: Sequence[float],
    images: int,
    l2_images: int,
    pgd_steps: int = 40,
    iterations: int = 100,
    queries: int = 5000,
) -> pd.DataFrame:
    """Measure the classification rate of a flat network under AutoAttack in L∞ balls and under PGD in L2 balls.

    Args:
        trained: the network.
        epsilons: L∞ radii above 0, strictly increasing.
        l2_epsilons: L2 radii, strictly increasing.
        images, l2_images: sizes of the stratified test subsets.
        pgd_steps: steps of PGD in L2 balls, on the cross-entropy and again on the margin.
        iterations, queries: of AutoAttack.

    Returns:
        One row per norm and radius: norm, epsilon, accuracy in [0, 1] (at radius 0 without attack) and images.

    Raises:
        InputError: a stack of several levels, or radii that do not increase.
    """
    rows: list[tuple[str, float, float, int]] = []
    for norm, radii, size in ((LINF, epsilons, images), (L2, l2_epsilons, l2_images)):
        (inputs, labels), device = ensemble.attacked_images(trained, size)
        if labels.dim() > 1:
            raise InputError(f"comparison: needs a flat network, not a stack of {len(labels)} levels")
        model = trained.model.to(device)
        target = model, inputs, labels
        if norm == LINF:
            standing = ensemble.autoattack_curve(*target, radii, iterations=iterations, queries=queries)
        else:
            curves = [
                attacks.nested_accuracy_curve(
                    partial(attacks.l2_pgd, steps=pgd_steps, objective=objective), *target, radii
                )
                for objective in (attacks.cross_entropy, attacks.margin)
            ]
            standing = ensemble.worst_case(torch.stack(curves))
        clean = float(attacks.correct_predictions(*target).double().mean())
        found = [(0.0, clean), *zip(radii, standing.double().mean(1).tolist(), strict=True)]
        rows += [(norm, *pair, len(inputs)) for pair in found]
        model.cpu()
    return pd.DataFrame(rows, columns=["norm", "epsilon", "accuracy", "images"])


def validate(trained: TrainedModel, *, epsilon: float, images: int, pgd_steps: int = 40) -> pd.DataFrame:
    """Measure what a setting is chosen by, on the test part of its dataset.

    That is of :func:`isorepro.data.mnist_validation` the images held out of the training set.

    Args:
        trained: a flat network.
        epsilon: L∞ radius.
        images: size of the stratified subset that is attacked; the accuracy without attack is taken over all.
        pgd_steps: steps of PGD, on the cross-entropy and again on the margin; an image stands if both fail.

    Returns:
        One row: clean and robust, accuracies in [0, 1].

    Raises:
        InputError: a stack of several levels.
    """
    (inputs, labels), device = ensemble.attacked_images(trained, images)
    if labels.dim() > 1:
        raise InputError(f"comparison: needs a flat network, not a stack of {len(labels)} levels")
    model = trained.model.to(device)
    whole = dataset_of(trained.config).to(device)
    clean = clean_accuracy(model, whole.test_inputs, whole.test_labels)
    curves = [
        attacks.nested_accuracy_curve(
            partial(attacks.pgd, steps=pgd_steps, objective=objective), model, inputs, labels, [epsilon]
        )
        for objective in (attacks.cross_entropy, attacks.margin)
    ]
    model.cpu()
    robust = float(ensemble.worst_case(torch.stack(curves)).double().mean())
    return pd.DataFrame({"clean": [clean], "robust": [robust]})


def choose(tried: pd.DataFrame, *, plain: str, loss: float, tie: float = 0.0) -> pd.DataFrame:
    """Say of every setting tried whether it would be chosen: of its family the most robust that costs no accuracy.

    Args:
        tried: one row per setting: setting, family, clean and robust (:func:`validate`).
        plain: the setting that the others' accuracy is compared with.
        loss: how much less accurate without attack a setting may be, in [0, 1].
        tie: settings that are less robust than the most robust one by no more than this count as robust; of
            them the most accurate is taken.

    Returns:
        The rows with eligible (accurate enough) and chosen (one eligible setting of each family; of equal ones the
        first).

    Raises:
        InputError: ``plain`` is not among the settings.
    """
    if plain not in set(tried["setting"]):
        raise InputError(f"settings: '{plain}', with which the others are compared, is not among them")
    least = tried.loc[tried["setting"] == plain, "clean"].mean() - loss
    eligible = tried["clean"] >= least
    kept = tried[eligible]
    most = kept.groupby("family")["robust"].transform("max")
    # Shares of a thousand images differ by whole images, and their differences by rounding.
    best = kept[kept["robust"] >= most - tie - 1e-9].groupby("family", sort=False)["clean"].idxmax()
    return tried.assign(eligible=eligible, chosen=tried.index.isin(best))


OVERVIEW = {
    "spearman": ("spearman", "within"),
    "trustworthiness": ("trustworthiness", CLOUD),
}
"""Measures of an overview that are one of :func:`isorepro.structure.measures`: its name and its relation."""


def overview(curves: pd.DataFrame, kept: pd.DataFrame, trained: pd.DataFrame, *, epsilon: float) -> pd.DataFrame:
    """Return what methods are compared by in one table.

    Args:
        curves: of :func:`robustness`, with setting and seed.
        kept: of :func:`isorepro.structure.measures`, likewise.
        trained: of :func:`trainings`.
        epsilon: one of the L∞ radii.

    Returns:
        One row per setting, seed and measure: setting, seed, measure and value. Measures: those of
        :data:`OVERVIEW`; robust, the accuracy under AutoAttack at that radius; clean, that without attack; and
        seconds, processor time.
    """
    columns = ["setting", "seed", "value"]
    at = (curves["norm"] == LINF) & (curves["epsilon"] == epsilon)
    parts = {
        "robust": curves[at].rename(columns={"accuracy": "value"}),
        "clean": trained.rename(columns={"clean": "value"}),
        "seconds": trained.rename(columns={"processor_seconds": "value"}),
    }
    for name, (measure, relation) in OVERVIEW.items():
        parts[name] = kept[(kept["measure"] == measure) & (kept["relation"] == relation)]
    tables = [part[columns].assign(measure=name) for name, part in parts.items()]
    return pd.concat(tables, ignore_index=True)[["setting", "seed", "measure", "value"]]


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Return an overview over the seeds: setting, measure, mean, low, high (within what is possible) and seeds."""
    ends = {"spearman": (-1.0, 1.0), "seconds": (0.0, math.inf)}
    parts = [
        stats.over_seeds(rows, "value", ["setting", "measure"], bounds=ends.get(str(measure), (0.0, 1.0)))
        for measure, rows in table.groupby("measure", sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def differences(table: pd.DataFrame, other: str) -> pd.DataFrame:
    """Return an overview's measures of each setting minus those of another, paired by seed.

    Returns:
        As :func:`isorepro.stats.paired_differences`: measure, setting, mean, low, high and seeds.

    Raises:
        InputError: ``other`` is missing for some seed.
    """
    return stats.paired_differences(table, "value", ["measure"], "setting", other)


def cost_ratio(trained: pd.DataFrame, setting: str, other: str) -> tuple[float, float, float]:
    """Return the processor time of a setting over that of another of the same seed: mean and its interval."""
    seconds = trained.pivot(index="seed", columns="setting", values="processor_seconds")
    return stats.seed_interval(seconds[setting] / seconds[other])


def plane(spread: pd.DataFrame, *, x: str, y: str) -> pd.DataFrame:
    """Return two measures as points for :func:`isorepro.method_plots.method_points`.

    Args:
        spread: an overview over the seeds: setting, measure, mean, low and high.
        x, y: names of measures.

    Returns:
        One row per setting: method, x, x_low, x_high, y, y_low and y_high.
    """
    ends = {"mean": "", "low": "_low", "high": "_high"}
    parts = [
        spread[spread["measure"] == measure]
        .set_index("setting")[list(ends)]
        .rename(columns={name: f"{way}{end}" for name, end in ends.items()})
        for way, measure in (("x", x), ("y", y))
    ]
    return parts[0].join(parts[1]).rename_axis("method").reset_index()
