"""Saliency: how much each pixel moves a network's answer, as maps, and how smooth these are, as tidy tables."""

from collections.abc import Iterator
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from isorepro import attacks
from isorepro.errors import InputError
from isorepro.models import class_logits
from isorepro.robustness import CLEAN, PGD, first_of_each_class, pixel_rows
from isorepro.training import TrainedModel, dataset_of, resolve_device

Of = Literal["loss", "logit"]
"""What the gradient is taken of: the cross-entropy, or the logit of the true class (Simonyan et al. 2014)."""

NOISE = 20**0.5
"""Roughness of a map of independent Gaussian values, away from its border: the Laplacian adds the variances of
four neighbours to 16 times that of the pixel."""


def maps(model: nn.Module, images: Tensor, labels: Tensor, *, of: Of = "logit") -> Tensor:
    """Return the saliency map of each image: the derivative with respect to the brightness of each pixel.

    In a colour image all channels of a pixel get brighter together, so that their derivatives add up.

    Args:
        model: images (B, channels, height, width) → logits (B, classes).
        images: (N, channels, height, width).
        labels: (N,), int64: the true classes.
        of: what the derivative is taken of.

    Returns:
        (N, height, width), signed.

    Raises:
        InputError: inputs that are no images, or a gradient that is not finite.
    """
    if images.dim() != 4:
        raise InputError(f"saliency: needs images, (N, channels, height, width), not {tuple(images.shape)}")
    objective = attacks.cross_entropy if of == "loss" else _true_logit
    pairs = zip(images.split(500), labels.split(500), strict=True)
    return torch.cat([attacks.input_gradient(objective, model, x, y)[0].sum(1) for x, y in pairs])


def _true_logit(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = class_logits(model, images)
    return logits.gather(1, labels[:, None]).sum(), logits


def laplacian(values: Tensor) -> Tensor:
    """Return the discrete Laplacian of maps (N, height, width): the four neighbours less four times the pixel.

    Beyond the border the map goes on with the values of the border (scipy's "reflect").
    """
    padded = functional.pad(values, (1, 1, 1, 1), mode="replicate")
    rows = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1]
    columns = padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return rows + columns - 4 * values


def roughness(values: Tensor) -> Tensor:
    """Return the mean absolute Laplacian of each map, of unit mean absolute value: 0 is smooth, below 8.

    A constant map has 0, independent Gaussian values about :data:`NOISE` (4.47), a checkerboard nearly 8. A map
    that is zero everywhere has no roughness: NaN.

    Args:
        values: (N, height, width), in any units.

    Returns:
        (N,), double precision.
    """
    exact = values.double()
    return laplacian(exact).abs().mean((1, 2)) / exact.abs().mean((1, 2))


def _clean_and_attacked(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, pgd_steps: int
) -> Iterator[tuple[str, float, Tensor]]:
    yield CLEAN, 0.0, images
    yield PGD, epsilon, attacks.pgd(model, images, labels, epsilon=epsilon, steps=pgd_steps)


def measures(
    trained: TrainedModel, *, epsilon: float, pgd_steps: int = 40, test_size: int | None = None
) -> pd.DataFrame:
    """Measure how smooth a network's saliency maps of held-out images are, and of the same images attacked by PGD.

    Args:
        trained: the network, of a dataset of images.
        epsilon: L∞ radius of the attack, which ascends the cross-entropy.
        pgd_steps: its steps.
        test_size: size of the stratified test subset; None takes all.

    Returns:
        One row per attack ("no attack", "PGD"), gradient (of: "loss", "logit") and measure with its value; epsilon
        is 0 without attack. Measures: roughness (mean over the images whose map is not zero everywhere, as that of
        the loss may be once a network is very sure; NaN without one) and vanished (share of those whose map is).

    Raises:
        InputError: a dataset of other inputs.
    """
    device = resolve_device(trained.config.device)
    dataset, model = dataset_of(trained.config, test_size=test_size).to(device), trained.model.to(device)
    images, labels = dataset.test_inputs, dataset.test_labels
    kinds: tuple[Of, ...] = ("loss", "logit")
    found = [
        (attack, radius, of, roughness(maps(model, batch, labels, of=of)))
        for attack, radius, batch in _clean_and_attacked(model, images, labels, epsilon, pgd_steps)
        for of in kinds
    ]
    model.cpu()
    rows = [(*of, "roughness", float(rough.nanmean())) for *of, rough in found]
    rows += [(*of, "vanished", float(rough.isnan().double().mean())) for *of, rough in found]
    return pd.DataFrame(rows, columns=["attack", "epsilon", "of", "measure", "value"])


def examples(trained: TrainedModel, *, epsilon: float, pgd_steps: int = 40, of: Of = "logit") -> pd.DataFrame:
    """Return the saliency maps of the first test image of each class, and of that image attacked by PGD.

    Args:
        trained: the network, of a dataset of images.
        epsilon, pgd_steps: as for :func:`measures`.
        of: what the derivative is taken of.

    Returns:
        One row per attack ("no attack", "PGD") and image: attack, epsilon (0 without attack), index (in the test
        set), label and predicted (names of classes), pixels (:func:`isorepro.robustness.pixel_rows`), saliency
        (the map as a list of rows, over its largest absolute value, so in [−1, 1]; zeros where it vanishes) and
        roughness.

    Raises:
        InputError: a dataset of other inputs.
    """
    dataset, model = dataset_of(trained.config), trained.model
    indices = first_of_each_class(dataset)
    images, labels = dataset.test_inputs[indices], dataset.test_labels[indices]
    tables = []
    for attack, radius, batch in _clean_and_attacked(model, images, labels, epsilon, pgd_steps):
        found = maps(model, batch, labels, of=of)
        shown = found / found.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(found.dtype).tiny)
        with torch.no_grad():
            predicted = model(batch).argmax(1)
        names = [[dataset.classes[label] for label in row.tolist()] for row in (labels, predicted)]
        columns = {
            "attack": attack,
            "epsilon": radius,
            "index": indices,
            "label": names[0],
            "predicted": names[1],
            "pixels": [pixel_rows(image) for image in batch],
            "saliency": shown.tolist(),
            "roughness": roughness(found).tolist(),
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)
