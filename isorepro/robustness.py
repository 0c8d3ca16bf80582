"""Accuracy of trained networks under every attack protocol, as tidy tables, and what the book reads off them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from isorepro import attacks, data, hierarchy, stats
from isorepro.errors import InputError
from isorepro.training import TrainedModel, dataset_of, resolve_device

CLEAN, FGSM, PGD, ONE_GRADIENT_PGD = "no attack", "FGSM", "PGD", "one-gradient PGD"
"""Names of the attacks."""

RELEASED, CORRECTED = "as released", "corrected"
"""Names of the two protocols."""

ATTACK_LIMIT = 0.5
"""From this L∞ radius on every image in [0, 1] can become uniform grey, so that no classifier can beat chance
(Carlini et al. 2019); accuracy above chance there shows that the attack failed."""


def curves(
    trained: TrainedModel,
    *,
    epsilons: Sequence[float],
    pgd_steps: int = 40,
    test_size: int | None = None,
    only: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Measure the classification rate against ε under four attacks.

    "as released": FGSM and the one-gradient PGD ascend the training loss, isometry term included, in batches
    of 100. "corrected": FGSM and PGD ascend the cross-entropy alone; for PGD an image fooled in a smaller ball
    counts as fooled in the larger ones. A level of a stack is attacked by itself, as released on the sum of its
    training loss and those of the coarser levels.

    Args:
        trained: the network.
        epsilons: L∞ radii on pixels in [0, 1], strictly increasing.
        pgd_steps: steps of PGD.
        test_size: size of the stratified test subset; None takes all.
        only: names of the attacks to run; None runs all.

    Returns:
        One row per level (1 for a flat network), protocol, attack and radius: level, protocol, attack, epsilon,
        accuracy in [0, 1], and images (how many). The clean accuracy is a row of each protocol at ε = 0.
    """
    device = resolve_device(trained.config.device)
    dataset = dataset_of(trained.config, test_size=test_size, test_seed=0).to(device)
    stack, images, config = trained.model.to(device), dataset.test_inputs, trained.config
    labels = hierarchy.level_labels(config.hierarchy, dataset.test_labels, len(dataset.classes))
    released_fgsm, released_pgd = (
        partial(attack, beta=config.beta, K=config.K, form=config.form)
        for attack in (attacks.released_fgsm, attacks.released_pgd)
    )
    rows: list[tuple[int, str, str, float, float]] = []
    for level, own in enumerate(labels, start=1):
        model, so_far = stack.up_to(level - 1), labels[:level]
        released, corrected = (model, images, so_far, epsilons), (model, images, own, epsilons)
        every = {
            (RELEASED, FGSM): partial(attacks.accuracy_curve, released_fgsm, *released),
            (RELEASED, ONE_GRADIENT_PGD): partial(attacks.accuracy_curve, released_pgd, *released),
            (CORRECTED, FGSM): partial(attacks.accuracy_curve, attacks.fgsm, *corrected),
            (CORRECTED, PGD): partial(attacks.pgd_curve, *corrected, steps=pgd_steps),
        }
        correct = {names: attack() for names, attack in every.items() if only is None or names[1] in only}
        clean = float(attacks.correct_predictions(model, images, own).double().mean())
        rows += [(level, protocol, CLEAN, 0.0, clean) for protocol in (RELEASED, CORRECTED)]
        for (protocol, attack), table in correct.items():
            accuracies = table.double().mean(1).tolist()
            rows += [(level, protocol, attack, *pair) for pair in zip(epsilons, accuracies, strict=True)]
    # Back to where every other measurement expects it.
    stack.cpu()
    columns = ["level", "protocol", "attack", "epsilon", "accuracy"]
    return pd.DataFrame(rows, columns=columns).assign(images=len(images))


def examples(trained: TrainedModel, *, epsilon: float, pgd_steps: int = 40) -> pd.DataFrame:
    """Attack the first test image of each class by FGSM on the cross-entropy and by PGD.

    Args:
        trained: the network.
        epsilon: L∞ radius.
        pgd_steps: steps of PGD.

    Returns:
        One row per attack ("no attack", "FGSM", "PGD") and image: attack, epsilon, index (in the test set),
        label and predicted (names of classes), pixels (:func:`pixel_rows`).
    """
    dataset, model = dataset_of(trained.config), trained.model.cpu()
    indices = first_of_each_class(dataset)
    images, labels = dataset.test_inputs[indices], dataset.test_labels[indices]
    attacked = {
        CLEAN: images,
        FGSM: attacks.fgsm(model, images, labels, epsilon=epsilon),
        PGD: attacks.pgd(model, images, labels, epsilon=epsilon, steps=pgd_steps),
    }
    rows = []
    for attack, batch in attacked.items():
        with torch.no_grad():
            predicted = model(batch).argmax(1).tolist()
        radius = 0.0 if attack == CLEAN else epsilon
        for index, label, guess, image in zip(indices, labels.tolist(), predicted, batch, strict=True):
            names = dataset.classes[label], dataset.classes[guess]
            rows.append((attack, radius, index, *names, pixel_rows(image)))
    return pd.DataFrame(rows, columns=["attack", "epsilon", "index", "label", "predicted", "pixels"])


def ladder(trained: TrainedModel, *, epsilons: Sequence[float], pgd_steps: int = 40) -> pd.DataFrame:
    """Attack the first test image of each class by PGD on the cross-entropy in growing balls, each attacked anew.

    Args:
        trained: the network.
        epsilons: L∞ radii above 0; the images without attack, at ε = 0, are added.
        pgd_steps: steps of PGD.

    Returns:
        One row per radius and image: epsilon, index (in the test set), label and predicted (names of classes),
        classes (their names), probabilities (of each class, summing to 1) and pixels (:func:`pixel_rows`).
    """
    dataset, model = dataset_of(trained.config), trained.model.cpu()
    indices = first_of_each_class(dataset)
    images, labels = dataset.test_inputs[indices], dataset.test_labels[indices]
    rows = []
    for epsilon in [0.0, *epsilons]:
        attacked = attacks.pgd(model, images, labels, epsilon=epsilon, steps=pgd_steps) if epsilon else images
        with torch.no_grad():
            probabilities = model(attacked).softmax(1)
        for index, label, shares, image in zip(indices, labels, probabilities, attacked, strict=True):
            names = dataset.classes[label], dataset.classes[shares.argmax()]
            pixels = pixel_rows(image)
            rows.append((epsilon, index, *names, list(dataset.classes), shares.tolist(), pixels))
    columns = ["epsilon", "index", "label", "predicted", "classes", "probabilities", "pixels"]
    return pd.DataFrame(rows, columns=columns)


def pixel_rows(image: Tensor) -> list[Any]:
    """Return an image as a list of rows of values in [0, 1].

    Args:
        image: (1, H, W), grey; or (3, H, W), in colour: a pixel is then a list of red, green and blue.

    Raises:
        InputError: something else.
    """
    if image.dim() != 3:
        raise InputError(
            f"pixels: those of an image are needed, (channels, height, width), not {tuple(image.shape)}"
        )
    rows: list[Any] = (image[0] if len(image) == 1 else image.permute(1, 2, 0)).tolist()
    return rows


def first_of_each_class(dataset: data.Dataset) -> list[int]:
    """Return the index of the first test example of each class."""
    return [int((dataset.test_labels == label).nonzero()[0]) for label in range(len(dataset.classes))]


def chance(dataset: str, test_size: int | None = None, *, seeds: Sequence[int] = (0,)) -> float:
    """Return the accuracy of always naming the commonest class of the test set, the most that guessing gives.

    Args:
        dataset: its name.
        test_size: size of the stratified test subset; None takes all.
        seeds: of the networks, where the test set is drawn from the seed; that with the commonest class counts.
    """
    drawn = [data.load(dataset, test_size=test_size, seed=seed, test_seed=0).test_labels for seed in seeds]
    return max(float(labels.bincount().max()) / len(labels) for labels in drawn)


def nearest_radius(table: pd.DataFrame, epsilon: float) -> float:
    """Return the measured radius nearest to ``epsilon`` (by ratio) in a table of :func:`curves`.

    Raises:
        InputError: the table has no radius above 0.
    """
    radii = [radius for radius in table["epsilon"].unique() if radius > 0]
    if not radii:
        raise InputError("epsilons: at least one radius above 0 is needed")
    return float(min(radii, key=lambda radius: max(radius / epsilon, epsilon / radius)))


def _one_level(table: pd.DataFrame) -> None:
    # Rows of several levels would be averaged as if they were one.
    levels = table["level"].unique().tolist() if "level" in table else []
    if len(levels) > 1:
        raise InputError(f"curves: must be those of one level of a stack, not of the levels {levels}")


def readings(table: pd.DataFrame, epsilon: float) -> pd.DataFrame:
    """Read the curves at one radius and compare each β with β = 0, seed by seed.

    Args:
        table: rows of :func:`curves` with their ``beta`` and ``seed``; β = 0 must be among them.
        epsilon: the nearest measured radius is read; the clean accuracy is read as well.

    Returns:
        One row per protocol, attack and β: their columns, epsilon, mean, low and high (accuracy over seeds and
        its 95 % interval), seeds, gain, gain_low and gain_high (paired difference to β = 0; NaN for β = 0).

    Raises:
        InputError: curves of several levels of a stack.
    """
    _one_level(table)
    by = ["protocol", "attack", "epsilon", "beta"]
    at = table[table["epsilon"].isin([0.0, nearest_radius(table, epsilon)])]
    level = stats.over_seeds(at, "accuracy", by, bounds=(0, 1))
    gain = stats.paired_differences(at, "accuracy", by[:-1], "beta", 0.0).drop(columns="seeds")
    gain = gain.rename(columns={"mean": "gain", "low": "gain_low", "high": "gain_high"})
    return level.merge(gain, how="left", on=by)


def attack_failures(table: pd.DataFrame, guessing: float) -> pd.DataFrame:
    """Find the curves that stay above chance where no classifier can.

    Args:
        table: rows of :func:`curves` with their ``beta`` and ``seed``.
        guessing: accuracy of guessing (:func:`chance`), in (0, 1).

    Returns:
        One row per protocol and attack: networks (their number) and failed (how many of them keep more than
        chance at the largest radius from :data:`ATTACK_LIMIT` on); empty if no radius is that large.

    Raises:
        InputError: curves of several levels of a stack.
    """
    _one_level(table)
    reached = table[table["epsilon"] >= ATTACK_LIMIT]
    reached = reached[reached["epsilon"] == reached["epsilon"].max()]
    groups = reached.assign(failed=reached["accuracy"] > guessing).groupby(["protocol", "attack"], sort=False)
    counted: pd.DataFrame = groups.agg(networks=("failed", "size"), failed=("failed", "sum"))
    return counted.reset_index()


def key_numbers(table: pd.DataFrame, *, epsilon: float, epsilon_broken: float) -> dict[str, float]:
    """Return the numbers that the pages' prose quotes.

    Args:
        table: rows of :func:`curves` with their ``beta`` and ``seed``.
        epsilon: radius at which networks are compared.
        epsilon_broken: radius from which PGD is expected to fool every network.

    Returns:
        ``epsilon`` and ``epsilon_broken`` (the measured radii used); for each of ``clean``, ``released_fgsm``,
        ``released_pgd``, ``fgsm`` and ``pgd``: ``…_ce`` (mean accuracy at β = 0), ``…_best`` and ``…_beta``
        (highest mean of the other β, and that β), ``…_gain``, ``…_gain_low`` and ``…_gain_high`` (its paired
        difference to β = 0 with a 95 % interval); ``pgd_best_clean`` (mean accuracy without attack of the β best
        under PGD); ``pgd_broken`` (highest accuracy of any one network under
        PGD from ``epsilon_broken`` on).

    Raises:
        InputError: the table has no β = 0, or no other β.
    """
    read = readings(table, epsilon)
    numbers = {
        "epsilon": nearest_radius(table, epsilon),
        "epsilon_broken": nearest_radius(table, epsilon_broken),
    }
    curves_read = {
        "clean": (CORRECTED, CLEAN),
        "released_fgsm": (RELEASED, FGSM),
        "released_pgd": (RELEASED, ONE_GRADIENT_PGD),
        "fgsm": (CORRECTED, FGSM),
        "pgd": (CORRECTED, PGD),
    }
    for name, (protocol, attack) in curves_read.items():
        rows = read[(read["protocol"] == protocol) & (read["attack"] == attack)]
        others = rows[rows["beta"] > 0]
        if others.empty or len(others) == len(rows):
            raise InputError("betas: must hold 0 and at least one weight above 0 to be compared with it")
        best = others.iloc[int(others["mean"].argmax())]
        numbers[f"{name}_ce"] = float(rows.loc[rows["beta"] == 0, "mean"].item())
        numbers[f"{name}_best"] = float(best["mean"])
        for column in ("beta", "gain", "gain_low", "gain_high"):
            numbers[f"{name}_{column}"] = float(best[column])
    clean = read[(read["attack"] == CLEAN) & (read["beta"] == numbers["pgd_beta"])]
    numbers["pgd_best_clean"] = float(clean["mean"].iloc[0])
    broken = table[(table["attack"] == PGD) & (table["epsilon"] >= numbers["epsilon_broken"])]
    numbers["pgd_broken"] = float(broken["accuracy"].max())
    return numbers
