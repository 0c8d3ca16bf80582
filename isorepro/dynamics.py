"""How a representation comes about: where held-out points lie after some epochs of the training."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from isorepro import data, geometry, hierarchy, structure
from isorepro.errors import InputError
from isorepro.losses import pairwise_distances
from isorepro.models import Stack
from isorepro.training import (
    TrainedModel,
    TrainingConfig,
    build,
    clean_accuracy,
    dataset_of,
    logging_stride,
    train,
)

TOLERANCE = 0.01
"""How far a point may end from where the given network has it, as a share of the representation's radius.

On the machine that trained the network it is the same bits. Another processor rounds otherwise, and of what that
does to a training, this much no eye sees.
"""


def spaced_epochs(last: int, count: int) -> list[int]:
    """Return epochs from 0 to ``last`` that grow as a cube does: most happens at the beginning.

    Args:
        last: the last epoch, ≥ 1.
        count: number of epochs, ≥ 2; all of them if there are fewer.

    Raises:
        InputError: a number that is too small.
    """
    if last < 1 or count < 2:
        raise InputError(f"epochs: at least 2 from 0 to at least 1 are needed, not {count} from 0 to {last}")
    end = min(count - 1, last)
    return [max(place, int(last * (place / end) ** 3 + 0.5)) for place in range(end + 1)]


def frames(trained: TrainedModel, *, points: int = 300, count: int = 40, pair_cap: int = 100_000) -> pd.DataFrame:
    """Train a network once more, and return where held-out points lie on the way, at its finest level.

    All epochs are seen in the same three axes, the principal ones at the end, so that only the points move.

    Args:
        trained: the network.
        points: size of the stratified subset of the test points that is returned, the same at each epoch.
        count: number of epochs, :func:`spaced_epochs`.
        pair_cap: most pairs of points a correlation or stress is taken over.

    Returns:
        One row per epoch and point: epoch, point (from 0), x, y, z (times the config's representation_scale),
        class, where the dataset has coordinates angle (and angle_2: the point's, in radians), and of all test
        points at that epoch accuracy, spearman and stress (within classes, as of
        :func:`isorepro.structure.measures`), and share (of their variance that the three axes hold, in [0, 1]).
        As many rows are rounded, to what no picture shows: coordinates to less than a ten-thousandth of their
        extent, angles to four decimals, the others to six.

    Raises:
        InputError: sizes that are impossible, or a training that ends elsewhere than the given network: it was
            trained on a processor of another kind.
    """
    config = trained.config
    dataset, given = structure.held_out(trained)
    inputs, labels = dataset.test_inputs, dataset.test_labels
    chosen = data.stratified_indices(labels, points, seed=config.seed, what=f"points of {config.dataset}")
    epochs = spaced_epochs(config.epochs, count)
    wanted = set(epochs)
    seen: dict[int, tuple[Tensor, float]] = {}

    @torch.no_grad()
    def watch(epoch: int, model: Stack) -> None:
        if epoch in wanted:
            device = next(model.parameters()).device
            mapped = torch.cat([model.representation(x.to(device)) for x in inputs.split(1000)])
            seen[epoch] = mapped.cpu(), clean_accuracy(model, inputs.to(device), labels.to(device))

    # What is logged changes no weight, and takes time.
    train(TrainingConfig(**config.model_dump() | {"log_every": config.epochs}), watch=watch)
    _check(seen[config.epochs][0], given)

    scale = config.representation_scale
    centre, axes = geometry.principal_axes(given, 3)
    pairs, _ = geometry.sample_pairs(labels, "within", cap=pair_cap, seed=config.seed)
    distances = geometry.pair_distances(inputs, pairs)
    known: dict[str, Any] = {"class": [dataset.classes[label] for label in labels[chosen].tolist()]}
    if dataset.test_coordinates is not None:
        angles = dataset.test_coordinates[chosen].double().numpy().round(4)
        known |= {name: angles[:, axis] for axis, name in enumerate(("angle", "angle_2")[: angles.shape[1]])}
    tables = []
    for epoch in epochs:
        mapped, accuracy = seen[epoch]
        flat = mapped.double()
        after = geometry.pair_distances(mapped, pairs)
        variance = float((flat - flat.mean(0)).square().sum())
        held = float(((flat - flat.mean(0)) @ axes).square().sum())
        state = {
            "accuracy": accuracy,
            "spearman": geometry.spearman(distances, after),
            "stress": geometry.stress(distances, after, scale),
            "share": held / variance if variance else 0.0,
        }
        places = (scale * (flat[chosen] - centre) @ axes).numpy()
        table = pd.DataFrame(places, columns=["x", "y", "z"]).assign(**known)
        table = table.assign(**{name: round(value, 6) for name, value in state.items()})
        table.insert(0, "epoch", epoch)
        table.insert(1, "point", np.arange(len(table)))
        tables.append(table)
    whole = pd.concat(tables, ignore_index=True)
    places = whole[["x", "y", "z"]].to_numpy()
    extent = float((places.max(0) - places.min(0)).max())
    digits = 4 - int(np.floor(np.log10(extent))) if extent else 0
    # Zero has no sign.
    whole[["x", "y", "z"]] = places.round(digits) + 0.0
    return whole


@torch.no_grad()
def distance_ratios(trained: TrainedModel) -> pd.DataFrame:
    """Take the largest distance at each level of a stack over that of the inputs, before training and after it.

    Args:
        trained: the network.

    Returns:
        One row per epoch (0, of the untrained network, and the last), level (from 1, coarse to fine) and measure,
        with its value, over the training points that the history takes it over: lipschitz_ratio (of any two
        points, as in the history), within_ratio (of two points of one group) and before_tanh_ratio (of any two
        points, where the level's last layer has not been through tanh).
    """
    config = trained.config
    dataset = dataset_of(config)
    classes = len(dataset.classes)
    part = slice(None, None, logging_stride(dataset.train_inputs))
    inputs = dataset.train_inputs[part]
    labels = hierarchy.level_labels(config.hierarchy, dataset.train_labels[part], classes)
    before = pairwise_distances(inputs)
    rows: list[tuple[int, int, str, float]] = []
    for epoch, model in ((0, build(config, inputs, classes)), (config.epochs, trained.model)):
        for level, (read, own) in enumerate(zip(model.reads, labels, strict=True), start=1):
            layers = [layer for part in (model.input_layer, *model.blocks[:read]) for layer in part.children()]
            straight = torch.nn.Sequential(*layers[:-1])(inputs)
            after, within = pairwise_distances(straight.tanh()), own[:, None] == own
            ratios = {
                "lipschitz_ratio": after.max() / before.max(),
                "within_ratio": after[within].max() / before[within].max(),
                "before_tanh_ratio": pairwise_distances(straight).max() / before.max(),
            }
            rows += [(epoch, level, name, float(value)) for name, value in ratios.items()]
    return pd.DataFrame(rows, columns=["epoch", "level", "measure", "value"])


def _check(found: Tensor, given: Tensor) -> None:
    """Raise InputError if a representation (N, width) is not the given one, up to :data:`TOLERANCE`."""
    apart = float((found - given).norm(dim=1).max())
    radius = float((given - given.mean(0)).norm(dim=1).max())
    if not apart <= TOLERANCE * radius:
        raise InputError(
            f"frames: trained once more, points end up to {apart:.3g} away from where the given network has them "
            f"(radius {radius:.3g}): that one was trained on another kind of processor; train it anew on this one"
        )
