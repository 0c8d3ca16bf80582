"""What each difference between the paper's released code and this book changes, measured, as tidy tables.

An *effect* is a paired difference over seeds: a row of name, mean, low, high (95 % interval) and seeds.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from isorepro import attacks, data, hierarchy, losses, stats
from isorepro.errors import InputError
from isorepro.hierarchy import Nested
from isorepro.robustness import CLEAN, CORRECTED, FGSM, ONE_GRADIENT_PGD, PGD, RELEASED, nearest_radius
from isorepro.stacks import HELD_OUT, TRAINING
from isorepro.training import TrainedModel, dataset_of, resolve_device

FIRST, ALL = "first images", "all images"
"""The part of the test set over which the released code averages, and the whole of it."""

OUTCOMES = {"clean": (CORRECTED, CLEAN), "released": (RELEASED, FGSM), "pgd": (CORRECTED, PGD)}
"""Short names of the attacks under which variants of the code are compared: protocol and attack."""

RELEASED_K = 0.1
"""Factor K of the normalised form in the code of September 2022."""

BATCH = 100
"""Images of a batch, in the release's training and in its attacks."""


def _effects(named: Mapping[str, pd.Series]) -> pd.DataFrame:
    rows = [(name, *stats.seed_interval(values), len(values)) for name, values in named.items()]
    return pd.DataFrame(rows, columns=["name", "mean", "low", "high", "seeds"])


def _at(table: pd.DataFrame, epsilon: float, betas: Sequence[float]) -> pd.DataFrame:
    """Return accuracies at a radius and without attack: a row a seed, columns (protocol, attack, β)."""
    found = table[table["epsilon"].isin([0.0, nearest_radius(table, epsilon)]) & table["beta"].isin(betas)]
    missing = set(betas) - set(found["beta"])
    if missing:
        raise InputError(f"betas: the curves have no β = {min(missing):g}")
    return found.pivot(index="seed", columns=["protocol", "attack", "beta"], values="accuracy")


def attack_effects(table: pd.DataFrame, *, beta: float, epsilon: float) -> pd.DataFrame:
    """Go from the released attack to the corrected one, a step at a time, at one radius.

    Args:
        table: rows of :func:`isorepro.robustness.curves` with the networks' ``beta`` and ``seed``, one level.
        beta: the isometric networks looked at, > 0.
        epsilon: the nearest measured radius is read.

    Returns:
        Effects. ``gain_…``: accuracy of the isometric network − that of cross-entropy, same seed, without attack
        (``clean``) and under ``released_fgsm``, ``released_pgd``, ``fgsm`` and ``pgd``. Changes of the isometric
        network's accuracy, one thing changed at a time: ``objective`` (released FGSM − FGSM on the cross-entropy
        alone), ``gradient_point`` (FGSM − PGD, both on the cross-entropy) and ``reach`` (released FGSM −
        one-gradient PGD, which moves min(10 ε, 0.5)); and ``…_gain``, the change of its gain.

    Raises:
        InputError: no network with that β, or with β = 0.
    """
    at = _at(table, epsilon, [0.0, beta])
    names = {
        "clean": (CORRECTED, CLEAN),
        "released_fgsm": (RELEASED, FGSM),
        "released_pgd": (RELEASED, ONE_GRADIENT_PGD),
        "fgsm": (CORRECTED, FGSM),
        "pgd": (CORRECTED, PGD),
    }
    own = {name: at[(*key, beta)] for name, key in names.items()}
    gain = {name: own[name] - at[(*key, 0.0)] for name, key in names.items()}
    steps = {
        "objective": ("released_fgsm", "fgsm"),
        "gradient_point": ("fgsm", "pgd"),
        "reach": ("released_fgsm", "released_pgd"),
    }
    return _effects(
        {f"gain_{name}": values for name, values in gain.items()}
        | {step: own[weak] - own[strong] for step, (weak, strong) in steps.items()}
        | {f"{step}_gain": gain[weak] - gain[strong] for step, (weak, strong) in steps.items()}
    )


def seed_ranges(table: pd.DataFrame, *, beta: float, epsilon: float) -> dict[str, float]:
    """Return what a single run of each kind could have shown: extremes over seeds under the released FGSM.

    Args:
        table, beta, epsilon: as for :func:`attack_effects`.

    Returns:
        ``ce_least``, ``ce_most``, ``isometric_least`` and ``isometric_most`` (accuracies), ``gain_least`` and
        ``gain_most`` (isometric − cross-entropy, over all pairs of seeds).

    Raises:
        InputError: no network with that β, or with β = 0.
    """
    at = _at(table, epsilon, [0.0, beta])
    plain, isometric = at[(RELEASED, FGSM, 0.0)], at[(RELEASED, FGSM, beta)]
    return {
        "ce_least": float(plain.min()),
        "ce_most": float(plain.max()),
        "isometric_least": float(isometric.min()),
        "isometric_most": float(isometric.max()),
        "gain_least": float(isometric.min() - plain.max()),
        "gain_most": float(isometric.max() - plain.min()),
    }


def gradient_shares(trained: TrainedModel, *, test_size: int | None = None) -> pd.DataFrame:
    """Compare what the released attacks follow with the cross-entropy's gradient, at the clean test images.

    Args:
        trained: the network; of a stack the finest level alone is looked at.
        test_size: size of the stratified test subset; None takes all.

    Returns:
        One row per measure: measure and value: agreement (share of the pixels to which both gradients give a sign
        where the signs are equal) and ratio (mean absolute gradient of the isometry term over that of the
        cross-entropy).
    """
    config = trained.config
    dataset = dataset_of(config, test_size=test_size, test_seed=0)
    sums = torch.zeros(4, dtype=torch.float64)
    for x, y in zip(dataset.test_inputs.split(BATCH), dataset.test_labels.split(BATCH), strict=True):
        whole, plain = (
            attacks.input_gradient(
                attacks.released_objective(x, beta=beta, K=config.K, form=config.form), trained.model.cpu(), x, y
            )[0]
            for beta in (config.beta, 0.0)
        )
        both = (whole != 0) & (plain != 0)
        equal = (whole.sign() == plain.sign()) & both
        sums += torch.stack([equal.sum(), both.sum(), (whole - plain).abs().sum(), plain.abs().sum()])
    equal_signs, signed, isometry, entropy = sums.tolist()
    values = {"agreement": equal_signs / max(signed, 1.0), "ratio": isometry / entropy}
    return pd.DataFrame(values.items(), columns=["measure", "value"])


def batch_orders(
    trained: TrainedModel, *, epsilon: float, shuffles: int = 5, test_size: int | None = None
) -> pd.DataFrame:
    """Run the released FGSM, whose result depends on the batch, with the test images in several orders.

    Args:
        trained: the network; of a stack all levels are attacked together, as in the release.
        epsilon: L∞ radius on pixels in [0, 1].
        shuffles: random orders, the same for every network.
        test_size: size of the stratified test subset; None takes all.

    Returns:
        One row per order: order (0: the set's own, then the shuffles) and accuracy in [0, 1].
    """
    config, device = trained.config, resolve_device(trained.config.device)
    dataset = dataset_of(config, test_size=test_size, test_seed=0).to(device)
    model, images = trained.model.to(device), dataset.test_inputs
    labels = hierarchy.level_labels(config.hierarchy, dataset.test_labels, len(dataset.classes))
    attack = partial(attacks.released_fgsm, beta=config.beta, K=config.K, form=config.form)
    rows = []
    for order in range(shuffles + 1):
        places = torch.randperm(len(images), generator=torch.Generator().manual_seed(order))
        places = (places if order else torch.arange(len(images))).to(device)
        correct = attacks.accuracy_curve(attack, model, images[places], labels[:, places], [epsilon])
        rows.append((order, float(correct.double().mean())))
    # Back to where every other measurement expects it.
    model.cpu()
    return pd.DataFrame(rows, columns=["order", "accuracy"])


def order_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Compare shuffled test images with the set's own order.

    Args:
        table: rows of :func:`batch_orders` of networks of one β, with their ``seed``.

    Returns:
        Effects: ``shuffled`` (mean accuracy over the shuffles − that in the set's order) and ``between_shuffles``
        (highest − lowest accuracy of one network over the shuffles).
    """
    own = table[table["order"] == 0].set_index("seed")["accuracy"]
    mixed = table[table["order"] > 0].groupby("seed")["accuracy"]
    return _effects({"shuffled": mixed.mean() - own, "between_shuffles": mixed.max() - mixed.min()})


@torch.no_grad()
def first_images(trained: TrainedModel, *, epsilon: float, first: int = 100) -> pd.DataFrame:
    """Take the mean tree distance of the predictions over the first test images, as released, and over all.

    Args:
        trained: a stack whose levels nest; the tree is its own, with a root.
        epsilon: L∞ radius of the released FGSM on all levels' training losses.
        first: how many images count as the first.

    Returns:
        One row per attack (none, FGSM as released) and part (:data:`FIRST`, :data:`ALL`): attack, part, images,
        distance (mean over all predictions, in edges) and error (standard error of the mean of that many images
        drawn at random, in edges).

    Raises:
        InputError: levels that do not nest.
    """
    config = trained.config
    dataset, model = dataset_of(config), trained.model.cpu()
    classes = len(dataset.classes)
    labels = hierarchy.level_labels(config.hierarchy, dataset.test_labels, classes)
    edges = torch.from_numpy(hierarchy.tree_distances(config.hierarchy, classes)).double()
    released = partial(attacks.released_fgsm, beta=config.beta, K=config.K, form=config.form, epsilon=epsilon)
    found: dict[str, list[Tensor]] = {CLEAN: [], FGSM: []}
    for x, y in zip(dataset.test_inputs.split(BATCH), labels.split(BATCH, dim=1), strict=True):
        for attack, images in ((CLEAN, x), (FGSM, released(model, x, y))):
            found[attack].append(edges[y[-1], model(images).argmax(1)])
    rows = []
    for attack, batches in found.items():
        distances = torch.cat(batches)
        for part, count in ((FIRST, first), (ALL, len(distances))):
            error = float(distances.std() / count**0.5)
            rows.append((attack, part, count, float(distances[:count].mean()), error))
    return pd.DataFrame(rows, columns=["attack", "part", "images", "distance", "error"])


def first_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Compare the first test images with all of them: rows of :func:`first_images` of networks of one β.

    Returns:
        Effects: ``first_clean`` and ``first_released``: mean tree distance of the first images − that of all.
    """
    wide = table.pivot(index="seed", columns=["attack", "part"], values="distance")
    names = {"first_clean": CLEAN, "first_released": FGSM}
    return _effects({name: wide[(attack, FIRST)] - wide[(attack, ALL)] for name, attack in names.items()})


def variant_effects(table: pd.DataFrame, *, baseline: str) -> pd.DataFrame:
    """Compare each variant of the released code with this book's stack of the same seed, at the finest level.

    Args:
        table: rows of :func:`isorepro.robustness.curves` at one radius, with ``variant`` and ``seed``.
        baseline: the variant compared with.

    Returns:
        Effects, variant − baseline, with columns variant and outcome (key of :data:`OUTCOMES`) in place of name.

    Raises:
        InputError: a seed without the baseline.
    """
    finest = table[table["level"] == table.groupby("variant")["level"].transform("max")]
    found = []
    for outcome, (protocol, attack) in OUTCOMES.items():
        rows = finest[(finest["protocol"] == protocol) & (finest["attack"] == attack)]
        effects = stats.paired_differences(rows, "accuracy", ["attack"], "variant", baseline)
        found.append(effects.assign(outcome=outcome))
    return pd.concat(found, ignore_index=True)[["variant", "outcome", "mean", "low", "high", "seeds"]]


def sum_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Compare the gradient summed over the levels with the finest level's own.

    Args:
        table: rows of :func:`isorepro.stacks.gradient_sums` of networks of one β, with their ``seed``.

    Returns:
        Effects: ``summed`` (accuracy of the finest level under the sum − that under its own gradient).
    """
    finest = table[table["level"] == table["level"].max()]
    wide = finest.pivot(index="seed", columns="measure", values="value")
    return _effects({"summed": wide["summed"] - wide["single"]})


def training_point_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Compare training points with held-out ones at the finest level.

    Args:
        table: rows of :func:`isorepro.stacks.measures` of networks of one β, with their ``seed``.

    Returns:
        Effects: training − held out, ``training_<measure>`` for accuracy, spearman and stress.
    """
    finest = table[table["level"] == table["level"].max()]
    wide = finest.pivot(index="seed", columns=["measure", "points"], values="value")
    names = ("accuracy", "spearman", "stress")
    return _effects({f"training_{name}": wide[(name, TRAINING)] - wide[(name, HELD_OUT)] for name in names})


def term_costs(dataset: str, *, K: float, batches: int = 100) -> dict[str, float]:
    """Return what the normalised form with β = 1 charges for two extreme representations of the inputs.

    Args:
        dataset: name of a dataset; one that is drawn from the seed is that of seed 0.
        K: factor of the form, > 0.
        batches: number of batches of 100 training examples, from the first on, whose mean is taken.

    Returns:
        ``isometry`` (the representation is the input itself) and ``collapse`` (all examples of a batch at one
        point but the first one; with no distance at all the form would divide by zero).
    """
    whole = data.load(dataset)
    costs = []
    inputs, labels = (part[: BATCH * batches].split(BATCH) for part in (whole.train_inputs, whole.train_labels))
    for x, y in zip(inputs, labels, strict=True):
        distances = losses.pairwise_distances(x)
        alone = torch.zeros(len(x), 1)
        alone[0] = 1.0
        found = (
            losses.isometry(points, distances, y, beta=1.0, K=K, form="normalised")
            for points in (x.flatten(1), alone)
        )
        costs.append([float(cost) for cost in found])
    isometry, collapse = np.mean(costs, axis=0)
    return {"isometry": float(isometry), "collapse": float(collapse)}


def rootless_distances(levels: Nested, classes: int) -> NDArray[np.float64]:
    """Return the number of edges between two classes in a hierarchy without a root: (classes, classes).

    Every group is a node, joined to the groups of the next level with which it shares a class; where levels do
    not nest, a group has several parents. Classes that no path joins are at distance infinity.

    Raises:
        InputError: a level that does not hold every class once.
    """
    from scipy.sparse.csgraph import shortest_path

    rows = hierarchy.lookup(levels, classes).numpy()
    offsets = np.cumsum([0, *hierarchy.sizes(levels, classes)])
    nodes = rows + offsets[:-1, None]
    joined = np.zeros((offsets[-1], offsets[-1]))
    for above, below in itertools.pairwise(nodes):
        joined[above, below] = 1.0
    found: NDArray[np.float64] = shortest_path(joined, directed=False, unweighted=True)
    leaves = slice(offsets[-2], None)
    return found[leaves, leaves]


def unreachable(levels: Nested, *, dataset: str) -> dict[str, int]:
    """Count the pairs of a dataset's classes that no path of :func:`rootless_distances` joins.

    Returns:
        ``unreachable`` of ``pairs``.
    """
    classes = len(data.load(dataset).classes)
    apart = rootless_distances(levels, classes)[np.triu_indices(classes, 1)]
    return {"unreachable": int(np.isinf(apart).sum()), "pairs": len(apart)}


def full_matrix(dataset: str) -> dict[str, float]:
    """Return the size of the matrix of all distances between training inputs, in double precision.

    Returns:
        ``matrix_inputs`` (their number) and ``matrix_gb`` (10⁹ bytes).
    """
    count = len(data.load(dataset).train_labels)
    return {"matrix_inputs": count, "matrix_gb": 8 * count**2 / 1e9}
