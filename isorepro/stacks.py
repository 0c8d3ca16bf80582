"""What stacked blocks do with a hierarchy of labels, level by level (claim C3), as tidy tables."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from isorepro import attacks, data, geometry, hierarchy, stats
from isorepro.data import Dataset
from isorepro.errors import InputError
from isorepro.hierarchy import Nested
from isorepro.robustness import CLEAN, CORRECTED, FGSM, PGD, RELEASED
from isorepro.training import TrainedModel, TrainingConfig, clean_accuracy, dataset_of, resolve_device

GIVEN, LEARNT, RANDOM = "given", "learnt", "random"
"""The tree of the notebook, the one clustered from the data, and shuffles of the given one."""

STACK, FLAT = "stack", "flat"
"""Names of a network with a hierarchy and of one without."""

TRAINING, HELD_OUT, INNER = "training points", "held-out points", "held-out, away from cuts"
"""On which points a stack is measured: as the release does, on new ones, and on new ones whose nearest training
points are all of their own group."""

PAIRS = (((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)), ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)))
"""The released levels of MNIST above the digits; the pair 4, 5 has two parents."""


def _held_out(trained: TrainedModel, tree: Nested | None, test_size: int | None) -> tuple[Dataset, Tensor]:
    """Return the dataset of a network's seed and the test labels at every level, (levels, N)."""
    config = trained.config
    dataset = dataset_of(config, test_size=test_size)
    levels = config.hierarchy if tree is None else tree
    return dataset, hierarchy.level_labels(levels, dataset.test_labels, len(dataset.classes))


def _preservation(
    config: TrainingConfig, inputs: Tensor, representation: Tensor, labels: Tensor, pair_cap: int
) -> dict[str, tuple[float, float]]:
    if not len(labels) or int(labels.bincount().max()) < 2:
        # No two points of a group, so that nothing of this is defined.
        return dict.fromkeys(geometry.PRESERVED, (math.nan, math.nan))
    return geometry.distance_preservation(
        inputs,
        representation,
        labels,
        "within",
        K=config.representation_scale,
        cap=pair_cap,
        seed=config.seed,
    )


@torch.no_grad()
def measures(
    trained: TrainedModel, *, test_size: int | None = None, pair_cap: int = 100_000, nearest: int = 0
) -> pd.DataFrame:
    """Measure, at every level of a stack, how well points are told apart and how their groups are kept.

    Args:
        trained: the network; a flat one has one level.
        test_size: size of the stratified test subset, and of the training subset; None takes all.
        pair_cap: most pairs of points within the groups of a level.
        nearest: training points around a held-out point that must be of its group for it to lie away from cuts;
            0 leaves these measures out.

    Returns:
        One row per points (:data:`TRAINING`, :data:`HELD_OUT`, :data:`INNER`), level (from 1, coarse to fine) and
        measure, with its value: the accuracy of the level's own head, within its groups the measures of
        :func:`isorepro.geometry.distance_preservation` between the inputs and the level's representation (stress
        with the config's representation_scale), and points_share (share of all points that were used). NaN is what
        is not defined for lack of points.
    """
    config = trained.config
    whole, labels = _held_out(trained, None, test_size)
    known_labels = hierarchy.level_labels(config.hierarchy, whole.train_labels, len(whole.classes))
    # As many training points as held-out ones, if there are that many.
    size = test_size if test_size and test_size < len(whole.train_labels) - len(whole.classes) else None
    part = data.stratified_indices(whole.train_labels, size, seed=config.seed)
    inner = labels.new_zeros(labels.shape, dtype=torch.bool)
    if nearest:
        inner = _away_from_cuts(whole.test_inputs, labels, whole.train_inputs, known_labels, nearest)
    rows: list[tuple[str, int, str, float]] = []
    for level in range(len(labels)):
        clouds = {
            TRAINING: (whole.train_inputs[part], known_labels[level, part], 1.0),
            HELD_OUT: (whole.test_inputs, labels[level], 1.0),
        }
        if nearest:
            share = float(inner[level].double().mean())
            clouds[INNER] = (whole.test_inputs[inner[level]], labels[level, inner[level]], share)
        model = trained.model.up_to(level)
        for kind, (inputs, own, share) in clouds.items():
            representation = torch.cat([model.representation(x) for x in inputs.split(1000)])
            found = _preservation(config, inputs, representation, own, pair_cap)
            values = {name: value for name, (value, _) in found.items()}
            values |= {
                "accuracy": clean_accuracy(model, inputs, own) if len(own) else math.nan,
                "points_share": share,
            }
            rows += [(kind, level + 1, name, value) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["points", "level", "measure", "value"])


def _away_from_cuts(
    inputs: Tensor, labels: Tensor, known_inputs: Tensor, known_labels: Tensor, nearest: int
) -> Tensor:
    """Return which points (N, …) have nearest known points all of their own group, at each level: (levels, N)."""
    distances = torch.cdist(inputs.flatten(1), known_inputs.flatten(1))
    neighbours = distances.topk(nearest, largest=False).indices
    return (known_labels[:, neighbours] == labels[:, :, None]).all(2)


@torch.no_grad()
def piece_planes(trained: TrainedModel, *, nearest: int) -> pd.DataFrame:
    """Return the first group of each level by itself, in its first two principal axes, before and after the level.

    Args:
        trained: the stack, of a dataset with two known coordinates.
        nearest: as for :func:`measures`; only held-out points away from cuts are taken.

    Returns:
        One row per level and point, of the inputs and of the level's representation: level, mapped (whether it is
        the representation), x, y (times the config's representation_scale) and angle (in radians, the one that
        goes all the way around within a group). A group with fewer than two such points has one row, of NaN.

    Raises:
        InputError: the dataset has no two coordinates.
    """
    config = trained.config
    whole, labels = _held_out(trained, None, None)
    angles = _angles(whole)[:, _along_first(whole)]
    known_labels = hierarchy.level_labels(config.hierarchy, whole.train_labels, len(whole.classes))
    inner = _away_from_cuts(whole.test_inputs, labels, whole.train_inputs, known_labels, nearest)
    tables = []
    for level, (representation, _) in enumerate(trained.model.levels(whole.test_inputs)):
        members = inner[level] & (labels[level] == 0)
        if members.sum() < 2:
            nothing = pd.DataFrame({"x": [math.nan], "y": [math.nan], "level": [level + 1]})
            tables += [nothing.assign(mapped=mapped, angle=math.nan) for mapped in (False, True)]
            continue
        before: Tensor | None = None
        for mapped, points in ((False, whole.test_inputs), (True, config.representation_scale * representation)):
            coordinates, _ = geometry.principal_coordinates(points[members], 2)
            # The sign of an axis is arbitrary: that of the inputs' where the two go together.
            before = coordinates if before is None else before
            coordinates = torch.where((coordinates * before).sum(0) < 0, -coordinates, coordinates)
            table = pd.DataFrame(coordinates.numpy(), columns=["x", "y"])
            tables.append(table.assign(level=level + 1, mapped=mapped, angle=angles[members.numpy(), 1]))
    return pd.concat(tables, ignore_index=True)


@torch.no_grad()
def readouts(
    trained: TrainedModel,
    *,
    tree: Nested,
    every: int,
    test_size: int | None = None,
    pair_cap: int = 100_000,
) -> pd.DataFrame:
    """Read every level of a hierarchy at several depths of a network, whatever it was trained for.

    Args:
        trained: the network, stacked or flat.
        tree: the hierarchy whose levels are read.
        every: hidden layers from one depth to the next.
        test_size, pair_cap: as for :func:`measures`.

    Returns:
        One row per depth, level (from 1) and measure: layers (hidden layers passed), level, measure and value:
        probe_accuracy (held-out accuracy of a logistic regression, fitted by scikit-learn to the standardised
        training representations with little regularisation, C = 100), spearman, stress and scaled_stress (within
        the level's groups).

    Raises:
        InputError: a level that is a single group.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    config = trained.config
    if any(len(level) < 2 for level in tree):
        raise InputError(f"tree: every level must have at least two groups to be told apart, not {tree}")
    dataset, labels = _held_out(trained, tree, test_size)
    train_labels = hierarchy.level_labels(tree, dataset.train_labels, len(dataset.classes))
    held_out, trained_on = (trained.model.activations(x) for x in (dataset.test_inputs, dataset.train_inputs))
    rows: list[tuple[int, int, str, float]] = []
    for layers in range(every, len(held_out), every):
        for level, (own, known) in enumerate(zip(labels, train_labels, strict=True), start=1):
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=100.0, max_iter=1000, tol=1e-3))
            probe.fit(trained_on[layers].double().numpy(), known.numpy())
            accuracy = float(probe.score(held_out[layers].double().numpy(), own.numpy()))
            found = _preservation(config, dataset.test_inputs, held_out[layers], own, pair_cap)
            values = {"probe_accuracy": accuracy, **{name: value for name, (value, _) in found.items()}}
            kept = ("probe_accuracy", "spearman", "stress", "scaled_stress")
            rows += [(layers, level, name, values[name]) for name in kept]
    return pd.DataFrame(rows, columns=["layers", "level", "measure", "value"])


@torch.no_grad()
def level_spaces(trained: TrainedModel, *, test_size: int | None = None) -> pd.DataFrame:
    """Return held-out points at every level of a stack, in the first three principal axes of its representation.

    Args:
        trained: the network, of a dataset whose coordinates are known.
        test_size: size of the stratified test subset; None takes all.

    Returns:
        One row per level (from 1; level 0 is the inputs once more for each level, in ``of``) and point: level, of
        (the level whose labels the row has), x, y, z (times the config's representation_scale), piece (the
        point's group at that level, from 1), angle and angle_2 (its coordinates, in radians).

    Raises:
        InputError: the dataset has no two coordinates.
    """
    dataset, labels = _held_out(trained, None, test_size)
    angles = _angles(dataset)
    clouds = [(0, of, dataset.test_inputs) for of in range(1, len(labels) + 1)]
    clouds += [
        (level, level, trained.config.representation_scale * representation)
        for level, (representation, _) in enumerate(trained.model.levels(dataset.test_inputs), start=1)
    ]
    tables = []
    for level, of, points in clouds:
        coordinates, _ = geometry.principal_coordinates(points, 3)
        table = pd.DataFrame(coordinates.numpy(), columns=["x", "y", "z"])
        piece = (labels[of - 1] + 1).tolist()
        tables.append(table.assign(level=level, of=of, piece=piece, angle=angles[:, 0], angle_2=angles[:, 1]))
    return pd.concat(tables, ignore_index=True)


def _angles(dataset: Dataset) -> np.ndarray:
    coordinates = dataset.test_coordinates
    if coordinates is None or coordinates.shape[1] != 2:
        raise InputError(f"dataset '{dataset.name}' is not a surface with two known coordinates")
    angles: np.ndarray = coordinates.double().numpy()
    return angles


def _along_first(dataset: Dataset) -> list[int]:
    """Return the places of a surface's coordinates, the one along which the classes follow each other first.

    That is where each class takes up the smaller part of the turn: its directions have the longer mean.
    """
    directions = np.exp(1j * _angles(dataset))
    classes = dataset.test_labels.unique().tolist()
    means = [np.abs(directions[dataset.test_labels.numpy() == number].mean(0)) for number in classes]
    places: list[int] = np.argsort(-np.mean(means, axis=0)).tolist()
    return places


@torch.no_grad()
def distance_matrices(trained: TrainedModel, *, points: int) -> pd.DataFrame:
    """Return the distances between held-out points in order along the surface, before and after each level.

    Args:
        trained: the network, of a dataset with two known coordinates.
        points: number of points, evenly spaced in the order of 40 steps of the angle along which the pieces follow
            each other and, within a step, of the other angle.

    Returns:
        One row per level (0 for the inputs, from 1 for the levels) and pair: level, row, column, distance (times
        the config's representation_scale), piece (group of the row's point at that level, of the inputs at the
        finest, from 1).

    Raises:
        InputError: more points than there are, or no coordinates.
    """
    dataset, labels = _held_out(trained, None, None)
    angles = _angles(dataset)[:, _along_first(dataset)]
    if not 2 <= points <= len(angles):
        raise InputError(f"points: must be from 2 to {len(angles)}, not {points}")
    steps = np.round(angles[:, 0] / (2 * np.pi) * 40) % 40
    order = np.lexsort((angles[:, 1], steps))[np.linspace(0, len(angles) - 1, points).round().astype(int)]
    inputs = dataset.test_inputs[torch.tensor(order)]
    clouds = [inputs]
    clouds += [trained.config.representation_scale * mapped for mapped, _ in trained.model.levels(inputs)]
    row, column = np.divmod(np.arange(points**2), points)
    tables = []
    for level, cloud in enumerate(clouds):
        flat = cloud.flatten(1).double()
        distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").flatten().numpy()
        piece = labels[level - 1, torch.tensor(order)[row]] + 1
        columns = {"level": level, "row": row, "column": column, "distance": distance, "piece": piece.numpy()}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def phase(trained: TrainedModel, *, epsilon: float, pgd_steps: int = 20) -> pd.DataFrame:
    """Measure accuracy and robustness of the finest level of a stack on held-out points of space, without bounds.

    Args:
        trained: the network, of a dataset of points that may take any value.
        epsilon: L∞ radius.
        pgd_steps: steps of PGD.

    Returns:
        One row per protocol and attack: protocol, attack and value (accuracy): without attack, FGSM as released
        (on the sum of all levels' training losses, in batches of 100) and PGD on the finest cross-entropy.
    """
    config = trained.config
    dataset, labels = _held_out(trained, None, None)
    model, inputs, finest = trained.model.cpu(), dataset.test_inputs, labels[-1]
    released = partial(
        attacks.released_fgsm, beta=config.beta, K=config.K, form=config.form, bounds=attacks.UNBOUNDED
    )
    pgd = partial(attacks.pgd, steps=pgd_steps, bounds=attacks.UNBOUNDED)
    correct = {
        (CORRECTED, CLEAN): attacks.correct_predictions(model, inputs, finest),
        (RELEASED, FGSM): attacks.accuracy_curve(released, model, inputs, labels, [epsilon]),
        (CORRECTED, PGD): attacks.nested_accuracy_curve(pgd, model, inputs, finest, [epsilon]),
    }
    rows = [(*names, float(found.double().mean())) for names, found in correct.items()]
    return pd.DataFrame(rows, columns=["protocol", "attack", "value"])


def cut_verdicts(
    table: pd.DataFrame, *, least_accuracy: float, kept_spearman: float, kept_stress: float
) -> pd.DataFrame:
    """Judge whether each kind of stack cuts the data at every level while the groups stay isometric (claim C3).

    Args:
        table: rows of :func:`measures` with the networks' columns.
        least_accuracy: least mean accuracy of a level that is cut.
        kept_spearman, kept_stress: least mean Spearman correlation and largest mean stress, within groups, of a
            level that is kept.

    Returns:
        One row per points and β: points, beta, levels, cut and kept (how many levels from the coarsest on are
        cut, and cut and kept) and verdict, in words: "not defined" where no network has such points.
    """
    means = table.groupby(["points", "beta", "level", "measure"], sort=False)["value"].mean().unstack("measure")
    rows = []
    for (points, beta), levels in means.groupby(level=["points", "beta"], sort=False):
        cut = levels["accuracy"] >= least_accuracy
        kept = cut & (levels["spearman"] >= kept_spearman) & (levels["stress"] <= kept_stress)
        count, cuts, keeps = len(levels), int(cut.cumprod().sum()), int(kept.cumprod().sum())
        if levels[["accuracy", "spearman", "stress"]].isna().any(axis=None):
            verdict = "not defined"
        elif keeps == count:
            verdict = f"holds at all {count} levels" if count > 1 else "holds"
        elif keeps:
            verdict = f"holds down to level {keeps} of {count}"
        else:
            verdict = "does not hold"
        rows.append((points, beta, count, cuts, keeps, verdict))
    return pd.DataFrame(rows, columns=["points", "beta", "levels", "cut", "kept", "verdict"])


def key_numbers(table: pd.DataFrame, verdicts: pd.DataFrame) -> dict[str, float | str]:
    """Return the numbers that the pages' prose quotes.

    Args:
        table: rows of :func:`measures` of stacks with β = 0 and with one β > 0.
        verdicts: of :func:`cut_verdicts` for them.

    Returns:
        For ``training``, ``held_out`` and ``inner`` points, as far as they were measured, and for ``ce`` (β = 0)
        and ``isometric``: ``verdict_<points>_<kind>`` and, for each level, ``<measure>_<points>_<kind>_<level>``
        (accuracy, spearman, stress; means over seeds).

    Raises:
        InputError: networks of one kind are missing, or several β > 0.
    """
    if set(table["beta"] > 0) != {False, True} or table["beta"].nunique() != 2:
        found = ", ".join(f"{beta:g}" for beta in sorted(table["beta"].unique()))
        raise InputError(f"betas: must hold 0 and the weight above 0 compared with it, not only {found or 'none'}")
    short = {TRAINING: "training", HELD_OUT: "held_out", INNER: "inner"}
    numbers: dict[str, float | str] = {}
    for row in verdicts.to_dict("records"):
        kind = "isometric" if row["beta"] else "ce"
        numbers[f"verdict_{short[row['points']]}_{kind}"] = row["verdict"]
    quoted = table[table["measure"].isin(["accuracy", "spearman", "stress"])]
    keys = ["points", "beta", "level", "measure"]
    means = quoted.groupby(keys, sort=False)["value"].mean().reset_index()
    for points, beta, level, measure, value in means.itertuples(index=False, name=None):
        numbers[f"{measure}_{short[points]}_{'isometric' if beta else 'ce'}_{level}"] = value
    return numbers


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the networks' ``hierarchy`` and the column network: :data:`STACK` or :data:`FLAT`."""
    return table.assign(network=table["hierarchy"].map(lambda text: STACK if text else FLAT))


def readout_effects(table: pd.DataFrame, *, every: int) -> pd.DataFrame:
    """Compare stacks with flat networks of the same seed and β, each level read where the stack trains it.

    Args:
        table: rows of :func:`readouts` with ``network`` (:func:`named`), ``beta`` and ``seed``.
        every: hidden layers of a level.

    Returns:
        Rows of :func:`isorepro.stats.paired_differences` by measure, beta and level: stack − flat.
    """
    there = table[table["layers"] == every * table["level"]]
    by = ["measure", "beta", "level"]
    return stats.paired_differences(there, "value", by, "network", FLAT).drop(columns="network")


def trees(given: Nested, *, dataset: str, seeds: Sequence[int], shuffles: int) -> pd.DataFrame:
    """Return the hierarchies to compare: the given one, the learnt one, and random ones, new for each seed.

    Args:
        given: a hierarchy of the dataset's classes.
        dataset: its name; the class means that are clustered are those of its training inputs, of seed 0 where
            they are drawn from the seed: all networks are compared on one learnt tree.
        seeds: seeds of the networks.
        shuffles: random trees for each seed.

    Returns:
        One row per tree and seed: tree (:data:`GIVEN`, :data:`LEARNT`, :data:`RANDOM`), seed and hierarchy (text).

    Raises:
        InputError: a hierarchy that is no tree of the classes.
    """
    whole = data.load(dataset)
    classes = len(whole.classes)
    given = hierarchy.checked(given, classes)
    means = torch.stack([whole.train_inputs[whole.train_labels == label].mean(0) for label in range(classes)])
    learnt = hierarchy.learnt(means, [len(level) for level in given])
    rows = []
    for seed in seeds:
        rows += [(GIVEN, seed, given), (LEARNT, seed, learnt)]
        rows += [(RANDOM, seed, hierarchy.shuffled(given, (seed, number))) for number in range(shuffles)]
    table = pd.DataFrame(rows, columns=["tree", "seed", "hierarchy"])
    return table.assign(hierarchy=table["hierarchy"].map(hierarchy.to_text))


def chances(
    levels: Nested, *, dataset: str, test_size: int | None = None, seeds: Sequence[int] = (0,)
) -> list[float]:
    """Return, for each level of a hierarchy, the accuracy of always naming the commonest group of the test set.

    Where that set is drawn from the seed, the largest of those of the networks' ``seeds``.
    """
    found = []
    for seed in seeds:
        loaded = data.load(dataset, test_size=test_size, seed=seed, test_seed=0)
        labels = hierarchy.level_labels(levels, loaded.test_labels, len(loaded.classes))
        found.append([float(row.bincount().max()) / len(row) for row in labels])
    return [max(level) for level in zip(*found, strict=True)]


def stacked_configs(base: TrainingConfig, table: pd.DataFrame, betas: Sequence[float]) -> list[TrainingConfig]:
    """Return the config of a stack for each β and each row of :func:`trees`."""
    return [
        TrainingConfig(**base.model_dump() | {"hierarchy": hierarchy.from_text(text), "seed": seed, "beta": beta})
        for beta in betas
        for seed, text in table[["seed", "hierarchy"]].drop_duplicates().itertuples(index=False, name=None)
    ]


def variants(base: TrainingConfig, *, beta_2022: float) -> dict[str, TrainingConfig]:
    """Return configs that differ from ``base`` as the released code does, each in one thing, and all together.

    Args:
        base: the config of a stack on MNIST.
        beta_2022: β of the normalised form, with K = 0.1, for the code of September 2022.

    Returns:
        Name of the variant → config.
    """
    pairs = {"hierarchy": PAIRS, "nested": False}
    changes: dict[str, dict[str, object]] = {
        "this book": {},
        "one shared head": {"shared_head": True},
        "trains all earlier blocks": {"gradients": "all earlier blocks"},
        "trained layers shifted by one": {"gradients": "shifted by a layer"},
        "levels read in reverse": {"readout": "reversed"},
        "Adam anew each step": {"adam": "anew"},
        "levels that do not nest": pairs,
        "September 2022": {
            "shared_head": True,
            "gradients": "all earlier blocks",
            "readout": "reversed",
            "adam": "anew",
            "form": "normalised",
            "K": 0.1,
            "beta": beta_2022,
            **pairs,
        },
        "May 2023": {"shared_head": True, "gradients": "shifted by a layer", **pairs},
    }
    return {name: TrainingConfig(**base.model_dump() | change) for name, change in changes.items()}


def named_variants(table: pd.DataFrame, configs: dict[str, TrainingConfig]) -> pd.DataFrame:
    """Return measurements of :func:`variants` with the column ``variant``.

    Args:
        table: rows with the networks' columns, of networks with the configs' fields and any seed.
        configs: the variants.

    Raises:
        InputError: rows of a network that is none of the variants.
    """
    fields = ["form", "K", "beta", "hierarchy", "gradients", "shared_head", "readout", "adam"]
    names = {}
    for name, config in configs.items():
        values = config.model_dump() | {"hierarchy": hierarchy.to_text(config.hierarchy)}
        names[tuple(values[field] for field in fields)] = name
    keys = list(table[fields].itertuples(index=False, name=None))
    strange = [key for key in keys if key not in names]
    if strange:
        raise InputError(f"variants: {strange[0]} is none of {', '.join(configs)}")
    return table.assign(variant=[names[key] for key in keys])


def gradient_sums(trained: TrainedModel, *, epsilon: float, test_size: int | None = None) -> pd.DataFrame:
    """Compare the released attack, whose gradient adds up over the levels, with one of each level by itself.

    Both are FGSM on the training loss, in batches of 100.

    Args:
        trained: the stack.
        epsilon: L∞ radius on pixels in [0, 1].
        test_size: size of the stratified test subset; None takes all.

    Returns:
        One row per level and measure: level, measure and value: clean, summed and single (accuracy without attack
        and under the two) and agreement (share of the pixels to which both give a sign where the signs agree).
    """
    config = trained.config
    dataset, labels = _held_out(trained, None, test_size)
    images = dataset.test_inputs
    loss: dict[str, Any] = {"beta": config.beta, "K": config.K, "form": config.form}
    attack = partial(attacks.released_fgsm, **loss)
    rows: list[tuple[int, str, float]] = []
    for level in range(len(labels)):
        model, own, so_far = trained.model.up_to(level), labels[level], labels[: level + 1]
        agree, signed = 0, 0
        for x, y in zip(images.split(100), so_far.split(100, dim=1), strict=True):
            objective = attacks.released_objective(x, **loss)
            summed, single = (attacks.input_gradient(objective, model, x, rows)[0].sign() for rows in (y, y[-1]))
            both = (summed != 0) & (single != 0)
            agree, signed = agree + int((summed == single)[both].sum()), signed + int(both.sum())
        rows += [
            (level + 1, "clean", clean_accuracy(model, images, own)),
            (level + 1, "summed", _accuracy(attack, model, images, so_far, epsilon)),
            (level + 1, "single", _accuracy(attack, model, images, own, epsilon)),
            (level + 1, "agreement", agree / max(signed, 1)),
        ]
    return pd.DataFrame(rows, columns=["level", "measure", "value"])


def _accuracy(
    attack: attacks.OneGradientAttack, model: torch.nn.Module, images: Tensor, labels: Tensor, epsilon: float
) -> float:
    return float(attacks.accuracy_curve(attack, model, images, labels, [epsilon]).double().mean())


def confusions(
    trained: TrainedModel, *, epsilons: Sequence[float], pgd_steps: int = 20, test_size: int | None = None
) -> pd.DataFrame:
    """Count which class is taken for which at the finest level, without attack and under attacks on that level.

    As released: FGSM on the training loss of all levels together, in batches of 100. Corrected: PGD on the finest
    cross-entropy, every path to its end, so that the error is the attack's choice and not the first one met.

    Args:
        trained: the network.
        epsilons: L∞ radii on pixels in [0, 1].
        pgd_steps: steps of PGD.
        test_size: size of the stratified test subset; None takes all.

    Returns:
        One row per protocol, attack, radius and pair that occurs: protocol, attack, epsilon, label, predicted
        (class numbers) and images; without attack at ε = 0 for both protocols.
    """
    config, device = trained.config, resolve_device(trained.config.device)
    dataset = dataset_of(config, test_size=test_size, test_seed=0).to(device)
    model, images, classes = trained.model.to(device), dataset.test_inputs, len(dataset.classes)
    labels = hierarchy.level_labels(config.hierarchy, dataset.test_labels, classes)
    released = partial(attacks.released_fgsm, beta=config.beta, K=config.K, form=config.form)
    counted: dict[tuple[str, str, float], Tensor] = {}

    def count(key: tuple[str, str, float], attacked: Tensor, label: Tensor) -> None:
        with torch.no_grad():
            pairs = label * classes + model(attacked).argmax(1)
        counted[key] = counted.get(key, 0) + pairs.bincount(minlength=classes**2)

    batches = zip(images.split(100), labels.split(100, dim=1), strict=True)
    radii = torch.tensor(epsilons, dtype=images.dtype, device=device)
    for x, y in batches:
        for protocol in (RELEASED, CORRECTED):
            count((protocol, CLEAN, 0.0), x, y[-1])
        for epsilon, attacked in zip(epsilons, released(model, x, y, epsilon=radii), strict=True):
            count((RELEASED, FGSM, epsilon), attacked, y[-1])
    for epsilon in epsilons:
        attacked = attacks.pgd(model, images, labels[-1], epsilon=epsilon, steps=pgd_steps, stop_when_fooled=False)
        count((CORRECTED, PGD, epsilon), attacked, labels[-1])
    # Back to where every other measurement expects it.
    model.cpu()
    rows = [
        (*key, pair // classes, pair % classes, int(counts[pair]))
        for key, counts in counted.items()
        for pair in counts.nonzero().squeeze(1).tolist()
    ]
    return pd.DataFrame(rows, columns=["protocol", "attack", "epsilon", "label", "predicted", "images"])


def on_trees(table: pd.DataFrame, compared: pd.DataFrame, *, classes: int) -> pd.DataFrame:
    """Measure errors along trees: those of each stack on its own tree, those of the flat networks on every tree.

    Args:
        table: rows of :func:`confusions` with the networks' ``hierarchy``, ``beta`` and ``seed``.
        compared: rows of :func:`trees`.
        classes: number of classes.

    Returns:
        One row per tree, network (:data:`STACK` or :data:`FLAT`), beta, seed, protocol, attack, epsilon and
        measure, with its value, averaged over the shuffles of one seed: error (share of errors, in [0, 1]),
        all_distance (mean tree distance between prediction and label, in edges), error_distance (of the errors
        alone; NaN without errors), uniform_distance (what it would be if the wrong class were drawn uniformly
        from the others) and relative_distance (the ratio of the two).
    """
    rows = []
    networks = ["hierarchy", "beta", "seed"]
    for own, beta, seed in table[networks].drop_duplicates().itertuples(index=False, name=None):
        group = table[(table[networks] == (own, beta, seed)).all(axis=1)]
        for kind, text in compared.loc[compared["seed"] == seed, ["tree", "hierarchy"]].itertuples(
            index=False, name=None
        ):
            if own not in ("", text):
                continue
            distances = hierarchy.tree_distances(hierarchy.from_text(text), classes)
            uniform = distances.sum(1) / (classes - 1)
            found = group.assign(
                distance=distances[group["label"], group["predicted"]] * group["images"],
                wrong=group["images"].where(group["label"] != group["predicted"], 0),
            )
            found = found.assign(uniform=uniform[found["label"]] * found["wrong"])
            sums = found.groupby(["protocol", "attack", "epsilon"], sort=False)[
                ["images", "wrong", "distance", "uniform"]
            ].sum()
            named = sums.reset_index().assign(tree=kind, network=STACK if own else FLAT, beta=beta, seed=seed)
            rows.append(named)
    summed = pd.concat(rows, ignore_index=True)
    measured = {
        "error": summed["wrong"] / summed["images"],
        "all_distance": summed["distance"] / summed["images"],
        "error_distance": summed["distance"] / summed["wrong"].where(summed["wrong"] > 0),
        "uniform_distance": summed["uniform"] / summed["wrong"].where(summed["wrong"] > 0),
    }
    measured["relative_distance"] = measured["error_distance"] / measured["uniform_distance"]
    keys = ["tree", "network", "beta", "seed", "protocol", "attack", "epsilon"]
    wide = summed[keys].assign(**measured)
    tidy = wide.melt(keys, var_name="measure")
    averaged: pd.DataFrame = tidy.groupby([*keys, "measure"], sort=False)["value"].mean().reset_index()
    return averaged


def tree_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Compare stacks with flat networks of the same seed and β on each tree, and the trees with random ones.

    Args:
        table: rows of :func:`on_trees`.

    Returns:
        One row per tree, beta, protocol, attack, epsilon and measure: mean, low and high (stack − flat over seeds
        and its 95 % interval), seeds, and beyond, beyond_low and beyond_high: by how much that difference exceeds
        the one on random trees (NaN for these), the effect of the tree itself.
    """
    by = ["tree", "beta", "protocol", "attack", "epsilon", "measure"]
    wide = table.pivot(index=[*by, "seed"], columns="network", values="value")
    difference = (wide[STACK] - wide[FLAT]).dropna().rename("value").reset_index()
    # Where no seed has an error, its distance is not defined, which is told as NaN.
    every = wide.index.to_frame(index=False)[by].drop_duplicates()
    effects = every.merge(stats.over_seeds(difference, "value", by), how="left", on=by)
    others = difference[difference["tree"] != RANDOM]
    random = difference[difference["tree"] == RANDOM]
    paired = others.merge(random, on=[*by[1:], "seed"], suffixes=("", "_random"))
    paired = paired.assign(value=paired["value"] - paired["value_random"])
    beyond = stats.over_seeds(paired, "value", by).drop(columns="seeds")
    beyond = beyond.rename(columns={"mean": "beyond", "low": "beyond_low", "high": "beyond_high"})
    return effects.merge(beyond, how="left", on=by)
