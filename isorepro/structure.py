"""What trained networks do to the structure of the data (claim C2), as tidy tables."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from isorepro import geometry, stats
from isorepro.data import Dataset
from isorepro.errors import InputError, unknown
from isorepro.training import TrainedModel, clean_accuracy, dataset_of

RANGES = {
    "spearman": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    **dict.fromkeys(("accuracy", "probe_accuracy", "trustworthiness", "continuity", "cka"), (0.0, 1.0)),
}
"""Measures with a range other than from 0 up; intervals are clipped to it."""

CLOUD = "all points"
"""The relation of a measure that concerns the whole cloud, not pairs within or between classes."""


@torch.no_grad()
def held_out(trained: TrainedModel, test_size: int | None = None) -> tuple[Dataset, Tensor]:
    """Return the dataset of a network's seed and the representation (N, width) of its test points.

    Args:
        trained: the network.
        test_size: size of the stratified test subset; None takes all.
    """
    dataset = dataset_of(trained.config, test_size=test_size)
    return dataset, torch.cat([trained.model.representation(x) for x in dataset.test_inputs.split(1000)])


def measures(
    trained: TrainedModel, *, test_size: int | None = None, neighbours: int = 10, pair_cap: int = 100_000
) -> pd.DataFrame:
    """Measure how a network keeps the structure of held-out points.

    Args:
        trained: the network.
        test_size: size of the stratified test subset; None takes all. Trustworthiness and continuity need the
            square of it in memory.
        neighbours: size of a neighbourhood, of trustworthiness and continuity.
        pair_cap: most pairs of points, within and between classes each.

    Returns:
        One row per measure: measure, relation ("within", "between" or :data:`CLOUD`), value, and error, the
        standard error of drawing pairs instead of taking all. Measures: accuracy, those of
        :func:`isorepro.geometry.distance_preservation` (stress with the config's representation_scale),
        trustworthiness, continuity, cka (linear, with the inputs) and dimension (participation ratio).
    """
    dataset, representation = held_out(trained, test_size)
    inputs, labels = dataset.test_inputs, dataset.test_labels
    rows: list[tuple[str, str, float, float]] = []
    for relation in ("within", "between"):
        found = geometry.distance_preservation(
            inputs,
            representation,
            labels,
            relation,
            K=trained.config.representation_scale,
            cap=pair_cap,
            seed=trained.config.seed,
        )
        rows += [(name, relation, *value) for name, value in found.items()]
    of_cloud = {
        "accuracy": clean_accuracy(trained.model, inputs, labels),
        "trustworthiness": geometry.trustworthiness(inputs, representation, neighbours=neighbours),
        "continuity": geometry.continuity(inputs, representation, neighbours=neighbours),
        "cka": geometry.linear_cka(inputs, representation),
        "dimension": geometry.participation_ratio(representation),
    }
    rows += [(name, CLOUD, value, 0.0) for name, value in of_cloud.items()]
    return pd.DataFrame(rows, columns=["measure", "relation", "value", "error"])


def topology(trained: TrainedModel, *, cap: int = 150) -> pd.DataFrame:
    """Compare the shape of each class before and after a network, on held-out points.

    Args:
        trained: the network, of a dataset with at most 1000 test points a class.
        cap: most points of a class used for the persistence.

    Returns:
        Rows of class, measure and value: gromov_wasserstein (with the config's representation_scale), loops
        and data_loops (lasting H1 classes of the representation and of the inputs), and loop_persistence
        (lifetime of the longest-lived loop of the representation, scaled, relative to that of the inputs; NaN
        if the inputs have none).
    """
    dataset, representation = held_out(trained)
    representation = trained.config.representation_scale * representation
    rows: list[tuple[str, str, float]] = []
    for label, name in enumerate(dataset.classes):
        clouds = [
            points[dataset.test_labels == label].flatten(1) for points in (dataset.test_inputs, representation)
        ]
        intervals = [geometry.loop_intervals(points, cap=cap, seed=trained.config.seed) for points in clouds]
        data_loops, loops = (
            geometry.lasting_loops(found, float(torch.pdist(points).max()))
            for found, points in zip(intervals, clouds, strict=True)
        )
        data_longest, longest = (float((found[:1, 1] - found[:1, 0]).sum()) for found in intervals)
        rows += [
            (name, "gromov_wasserstein", geometry.gromov_wasserstein(*clouds)),
            (name, "data_loops", float(data_loops)),
            (name, "loops", float(loops)),
            (name, "loop_persistence", longest / data_longest if data_longest else float("nan")),
        ]
    return pd.DataFrame(rows, columns=["class", "measure", "value"])


def class_distances(trained: TrainedModel, *, pairs: int = 2000) -> pd.DataFrame:
    """Return distances of pairs of held-out points of each class, before and after a network.

    Args:
        trained: the network.
        pairs: most pairs of a class, drawn with the network's seed.

    Returns:
        One row per pair: class, input_distance, and representation_distance times the config's
        representation_scale.
    """
    dataset, representation = held_out(trained)
    tables = []
    for label, name in enumerate(dataset.classes):
        members = dataset.test_labels == label
        drawn, _ = geometry.sample_pairs(
            dataset.test_labels[members], "within", cap=pairs, seed=trained.config.seed
        )
        before = geometry.pair_distances(dataset.test_inputs[members], drawn)
        after = trained.config.representation_scale * geometry.pair_distances(representation[members], drawn)
        columns = {"input_distance": before.tolist(), "representation_distance": after.tolist()}
        tables.append(pd.DataFrame({"class": name, **columns}))
    return pd.concat(tables, ignore_index=True)


def input_space(trained: TrainedModel) -> pd.DataFrame:
    """Return the held-out points of a network's seed in the first three principal axes of the inputs.

    As :func:`representation_space`; points of three dimensions or fewer are only turned.
    """
    dataset, _ = held_out(trained)
    return _space(dataset, dataset.test_inputs)


def representation_space(trained: TrainedModel) -> pd.DataFrame:
    """Return the representations of held-out points in their first three principal axes.

    Args:
        trained: the network, of a dataset whose coordinates are known.

    Returns:
        One row per point: x, y, z (times the config's representation_scale), class, angle (the first of the
        point's coordinates, in radians) and share (of the variance that the three axes hold, in [0, 1]).

    Raises:
        InputError: the dataset has no coordinates.
    """
    dataset, representation = held_out(trained)
    return _space(dataset, trained.config.representation_scale * representation)


def input_planes(trained: TrainedModel) -> pd.DataFrame:
    """Return each class of held-out points in the first two principal axes of the inputs.

    As :func:`representation_planes`.
    """
    dataset, _ = held_out(trained)
    return _planes(dataset, dataset.test_inputs)


def representation_planes(trained: TrainedModel) -> pd.DataFrame:
    """Return each class of held-out points by itself, in the first two principal axes of its representations.

    Args:
        trained: the network, of a dataset whose coordinates are known.

    Returns:
        One row per point: class, x, y (times the config's representation_scale) and angle (the first of the
        point's coordinates, in radians).

    Raises:
        InputError: the dataset has no coordinates.
    """
    dataset, representation = held_out(trained)
    return _planes(dataset, trained.config.representation_scale * representation)


def _planes(dataset: Dataset, points: Tensor) -> pd.DataFrame:
    whole = _space(dataset, points)
    for name in dataset.classes:
        members = (whole["class"] == name).to_numpy()
        coordinates, _ = geometry.principal_coordinates(points[torch.tensor(members)], 2)
        whole.loc[members, ["x", "y"]] = coordinates.numpy()
    return whole[["class", "x", "y", "angle"]]


def _space(dataset: Dataset, points: Tensor) -> pd.DataFrame:
    if dataset.test_coordinates is None:
        raise InputError(f"dataset '{dataset.name}' has no known coordinates to colour its points by")
    coordinates, shares = geometry.principal_coordinates(points, 3)
    table = pd.DataFrame(coordinates.numpy(), columns=["x", "y", "z"])
    classes = [dataset.classes[label] for label in dataset.test_labels.tolist()]
    angle = dataset.test_coordinates[:, 0].double().numpy()
    return table.assign(angle=angle, share=float(shares.sum()), **{"class": classes})


def input_map(trained: TrainedModel, *, test_size: int, neighbours: int = 15, seed: int = 0) -> pd.DataFrame:
    """Return a UMAP map of the inputs that :func:`representation_map` maps; same arguments and columns."""
    dataset, _ = held_out(trained, test_size)
    return _map(dataset, dataset.test_inputs, neighbours, seed)


def representation_map(
    trained: TrainedModel, *, test_size: int, neighbours: int = 15, seed: int = 0
) -> pd.DataFrame:
    """Return a UMAP map of the representations of held-out points.

    Args:
        trained: the network.
        test_size: size of the stratified test subset.
        neighbours, seed: of UMAP.

    Returns:
        One row per point: x, y (arbitrary units) and class.
    """
    dataset, representation = held_out(trained, test_size)
    return _map(dataset, representation, neighbours, seed)


def _map(dataset: Dataset, points: Tensor, neighbours: int, seed: int) -> pd.DataFrame:
    coordinates = geometry.umap_coordinates(points, neighbours=neighbours, seed=seed)
    classes = [dataset.classes[label] for label in dataset.test_labels.tolist()]
    return pd.DataFrame(coordinates.numpy(), columns=["x", "y"]).assign(**{"class": classes})


def aligned(maps: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Return the maps of several networks, each shifted, turned and scaled to lie nearest to a reference map.

    Args:
        maps: rows of :func:`representation_map` with the networks' columns, the points in the same order.
        reference: rows of :func:`input_map` for the same points.

    Returns:
        ``maps`` with its x and y replaced.
    """
    by = [name for name in maps if name not in ("x", "y", "class")]
    target = torch.from_numpy(reference[["x", "y"]].to_numpy(copy=True))
    points = torch.from_numpy(maps[["x", "y"]].to_numpy(copy=True))
    network = torch.from_numpy(maps.groupby(by, sort=False, dropna=False).ngroup().to_numpy(copy=True))
    for number in network.unique():
        points[network == number] = geometry.align(target, points[network == number])
    return maps.assign(x=points[:, 0].numpy(), y=points[:, 1].numpy())


@torch.no_grad()
def cross_section(
    trained: TrainedModel, *, prototype: str, extent: float, resolution: int, pair_cap: int = 100_000
) -> pd.DataFrame:
    """Cut through input space by the plane of the first two principal axes that holds a prototype.

    The prototype is the training image nearest to the mean of its class; the axes are those of the first ten
    thousand training images. Points of the plane are not clipped to [0, 1]: most are no images.

    Args:
        trained: the network.
        prototype: name of the prototype's class.
        extent: half of the side of the square, in units of input distance.
        resolution: points along each side.
        pair_cap: pairs from which the scale of a network that fixes none is fitted.

    Returns:
        One row per point, row by row from below: first, second (coordinates along the axes), predicted (name of
        the class), input_distance and representation_distance to the prototype, and error, their difference
        ``|D_x − K·D_h|``. For K a network of the raw form has its own; others have the least-squares one of the
        distances within classes of the test points.

    Raises:
        InputError: an unknown class, or points on a line.
    """
    dataset = dataset_of(trained.config)
    if prototype not in dataset.classes:
        raise unknown("class", prototype, dataset.classes)
    images = dataset.train_inputs.flatten(1)
    if images.shape[1] < 2:
        raise InputError(f"cross_section: needs inputs of at least two values, not {tuple(images.shape)}")
    members = images[dataset.train_labels == dataset.classes.index(prototype)]
    centre = members[(members - members.mean(0)).norm(dim=1).argmin()]
    # The leading eigenvectors of the covariance, signed so that they are the same on every machine.
    axes = torch.linalg.eigh(torch.cov(images[:10_000].T.double())).eigenvectors[:, -2:].flip(1).T.float()
    axes = axes * torch.where(axes.gather(1, axes.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)
    corner = torch.full((2,), extent)
    offsets = geometry.plane_grid(-corner, corner, resolution)
    # As images again, which convolutional features need.
    points = (centre + offsets @ axes).view(-1, *dataset.train_inputs.shape[1:])
    origin, representation = (trained.model.representation(x) for x in (centre.view_as(points[:1]), points))
    predicted = trained.model(points).argmax(1).tolist()
    scale = trained.config.representation_scale
    if not trained.config.beta or trained.config.form == "normalised":
        test, mapped = held_out(trained)
        pairs, _ = geometry.sample_pairs(test.test_labels, "within", cap=pair_cap, seed=trained.config.seed)
        scale = geometry.best_scale(*(geometry.pair_distances(x, pairs) for x in (test.test_inputs, mapped)))
    before, after = offsets.norm(dim=1).double(), scale * (representation - origin).norm(dim=1).double()
    return pd.DataFrame(
        {
            "first": offsets[:, 0].double().numpy(),
            "second": offsets[:, 1].double().numpy(),
            "predicted": [dataset.classes[label] for label in predicted],
            "input_distance": before.numpy(),
            "representation_distance": after.numpy(),
            "error": (before - after).abs().numpy(),
        }
    )


def summary(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Summarise rows of measure and value over seeds.

    Args:
        table: rows of measure, value, seed and the columns in ``by``.
        by: columns that tell the values of one measure and seed apart.

    Returns:
        :func:`isorepro.stats.over_seeds` by measure and ``by``, intervals clipped to the measure's range.
    """
    found = stats.over_seeds(table, "value", ["measure", *by])
    ends = found["measure"].map(lambda measure: RANGES.get(measure, (0.0, math.inf)))
    return found.assign(
        **{end: found[end].clip(ends.str[0].astype(float), ends.str[1].astype(float)) for end in ("low", "high")}
    )


def preservation_verdict(
    table: pd.DataFrame,
    *,
    kept_spearman: float,
    kept_stress: float,
    broken_spearman: float,
    broken_stress: float,
) -> dict[str, float | int | str]:
    """Judge whether cross-entropy breaks the structure within classes and the isometry term keeps it (claim C2).

    Args:
        table: rows of :func:`measures` of networks with β = 0 and with one β > 0, as many seeds of each.
        kept_spearman, kept_stress: least Spearman correlation and largest stress of a structure that is kept.
        broken_spearman, broken_stress: largest Spearman correlation and least stress of one that is broken.

    Returns:
        ``spearman_ce``, ``spearman_isometric``, ``stress_ce`` and ``stress_isometric`` (means over seeds, within
        classes), each with ``…_low`` and ``…_high``; ``kept`` and ``broken`` (how many isometric and
        cross-entropy networks), ``networks`` (of each); and ``verdict``, in words, on the means.

    Raises:
        InputError: networks of one kind are missing.
    """
    within = table[(table["relation"] == "within") & table["measure"].isin(["spearman", "stress"])]
    means = summary(within, ["beta"])
    by_network = within.pivot(index=["beta", "seed"], columns="measure", values="value").reset_index()
    kinds = {"ce": by_network[by_network["beta"] == 0], "isometric": by_network[by_network["beta"] > 0]}
    numbers: dict[str, float] = {}
    for kind, rows in kinds.items():
        if rows.empty:
            raise InputError(f"measures: networks with β {'= 0' if kind == 'ce' else '> 0'} are needed")
        for row in means[means["beta"].isin(rows["beta"])].to_dict("records"):
            name = f"{row['measure']}_{kind}"
            numbers |= {name: row["mean"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    isometric, plain = kinds["isometric"], kinds["ce"]
    keeps = (isometric["spearman"] >= kept_spearman) & (isometric["stress"] <= kept_stress)
    breaks = (plain["spearman"] <= broken_spearman) & (plain["stress"] >= broken_stress)
    mean_keeps = isometric["spearman"].mean() >= kept_spearman and isometric["stress"].mean() <= kept_stress
    mean_breaks = plain["spearman"].mean() <= broken_spearman and plain["stress"].mean() >= broken_stress
    verdict = {
        (True, True): "holds",
        (True, False): "holds in part: the isometry term keeps the structure, cross-entropy does not break it",
        (False, True): "holds in part: cross-entropy breaks the structure, the isometry term does not keep it",
        (False, False): "does not hold",
    }[bool(mean_keeps), bool(mean_breaks)]
    counts = {"kept": int(keeps.sum()), "broken": int(breaks.sum()), "networks": len(keeps)}
    return {**numbers, **counts, "verdict": verdict}


def loop_numbers(table: pd.DataFrame) -> dict[str, float]:
    """Count the classes that keep their loops, from rows of :func:`topology` with the networks' columns.

    Returns:
        For ``ce`` (β = 0) and ``isometric``: ``loops_…`` (how many classes of all networks have as many lasting
        loops in the representation as in the data), ``loops_of_…`` (out of how many) and ``persistence_…``
        (mean lifetime of the longest-lived loop, relative to that of the data).
    """
    wide = table.pivot(index=["beta", "seed", "class"], columns="measure", values="value").reset_index()
    numbers: dict[str, float] = {}
    for kind, rows in (("ce", wide[wide["beta"] == 0]), ("isometric", wide[wide["beta"] > 0])):
        numbers[f"loops_{kind}"] = int((rows["loops"] == rows["data_loops"]).sum())
        numbers[f"loops_of_{kind}"] = len(rows)
        numbers[f"persistence_{kind}"] = float(rows["loop_persistence"].mean())
    return numbers


def class_names(trained: TrainedModel) -> tuple[str, ...]:
    """Return the names of all classes of a network's dataset, in order."""
    return held_out(trained)[0].classes


def held_out_points(trained: TrainedModel) -> pd.DataFrame:
    """Return the held-out points in the plane of a network's seed: one row per point with x, y and class.

    Raises:
        InputError: a dataset of other inputs.
    """
    dataset, _ = held_out(trained)
    if dataset.test_inputs.shape[1:] != (2,):
        raise InputError(f"points: must be in the plane, (N, 2), not {tuple(dataset.test_inputs.shape)}")
    table = pd.DataFrame(dataset.test_inputs.double().numpy(), columns=["x", "y"])
    return table.assign(**{"class": [dataset.classes[label] for label in dataset.test_labels.tolist()]})


def key_numbers(table: pd.DataFrame, *, affordable: float = 0.01) -> dict[str, float | str]:
    """Return the numbers that the prose on MNIST quotes.

    Args:
        table: rows of :func:`measures` of networks of either form, β = 0 among them.
        affordable: loss of accuracy, as a share, up to which a setting counts as affordable.

    Returns:
        ``spearman_ce``, ``between_ce``, ``accuracy_ce``, ``cka_ce`` and ``dimension_ce``: means over seeds of the
        cross-entropy networks (Spearman correlation of distances within and between classes, …);
        ``sampling_error``: the largest one of a correlation or stress. For each form, and for its setting with
        the highest Spearman correlation within classes of all (``…_strongest_…``) and of those that are
        affordable (``…_affordable_…``; left out if none is): ``beta``, ``K``, ``spearman``, ``between``,
        ``accuracy``, ``cka`` and ``dimension`` (means), ``gain`` and ``cost`` (paired difference of that Spearman
        correlation, and of the accuracy, to cross-entropy), each with ``_low`` and ``_high``.
        ``verdict``, in words: whether some affordable setting, or else some other, has a gain whose 95 %
        interval lies above 0.

    Raises:
        InputError: no network with β = 0, or one that is said to be of the normalised form.
    """
    if ((table["beta"] == 0) & (table["form"] == "normalised")).any():
        raise InputError("normalised_betas: must be above 0; cross-entropy alone is β = 0 of the raw form")
    names = {
        ("spearman", "within"): "spearman",
        ("spearman", "between"): "between",
        ("accuracy", CLOUD): "accuracy",
        ("cka", CLOUD): "cka",
        ("dimension", CLOUD): "dimension",
    }
    keys = ["form", "K", "beta"]
    picked = table.assign(name=[names.get(p, "") for p in zip(table["measure"], table["relation"], strict=True)])
    wide = picked[picked["name"] != ""].pivot(index=[*keys, "seed"], columns="name", values="value").reset_index()
    baseline = wide[wide["beta"] == 0]
    if baseline.empty:
        raise InputError("betas: must hold 0, cross-entropy alone, to be compared with")
    means = wide.groupby(keys, as_index=False)[list(names.values())].mean()
    numbers = {f"{name}_ce": float(baseline[name].mean()) for name in names.values()}
    numbers["sampling_error"] = float(table.loc[table["measure"] != "scale", "error"].max())
    for form, settings in means[means["beta"] > 0].groupby("form", sort=False):
        afforded = settings[settings["accuracy"] >= numbers["accuracy_ce"] - affordable]
        for kind, rows in (("strongest", settings), ("affordable", afforded)):
            if rows.empty:
                continue
            best = rows.iloc[int(rows["spearman"].argmax())]
            of_best = wide[(wide[keys] == best[keys]).all(axis=1)]
            values = {name: float(best[name]) for name in ("beta", "K", *names.values())}
            for name, column in (("gain", "spearman"), ("cost", "accuracy")):
                paired = of_best.set_index("seed")[column] - baseline.set_index("seed")[column]
                ends = stats.seed_interval(paired.dropna())
                values |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
            numbers |= {f"{form}_{kind}_{name}": value for name, value in values.items()}
    lows = {name: value for name, value in numbers.items() if name.endswith("_gain_low")}
    if len(baseline) < 2:
        return {**numbers, "verdict": "undecided with a single seed"}
    if any(value > 0 for name, value in lows.items() if "_affordable_" in name):
        return {**numbers, "verdict": "holds, at an affordable cost in accuracy"}
    holds = any(value > 0 for value in lows.values())
    return {**numbers, "verdict": "holds, but only at a larger cost in accuracy" if holds else "does not hold"}
