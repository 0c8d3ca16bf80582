"""Accuracy of trained networks under every attack protocol, as tidy tables."""

from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch

from isorepro import attacks, data
from isorepro.training import TrainedModel, resolve_device

PROTOCOLS = ("as released", "corrected")


def curves(
    trained: TrainedModel, *, epsilons: Sequence[float], pgd_steps: int = 40, test_size: int | None = None
) -> pd.DataFrame:
    """Measure the classification rate against ε under four attacks.

    "as released": FGSM and "PGD" ascend the training loss, isometry term included, in batches of 100
    (:func:`isorepro.attacks.released_fgsm`, :func:`isorepro.attacks.released_pgd`). "corrected": FGSM and
    PGD ascend the cross-entropy alone; for PGD an image fooled in a smaller ball counts in the larger ones.

    Args:
        trained: the network.
        epsilons: L∞ radii on pixels in [0, 1], strictly increasing.
        pgd_steps: steps of the true PGD.
        test_size: size of the stratified test subset; None takes all.

    Returns:
        One row per protocol, attack and radius: protocol, attack ("clean", "FGSM", "PGD"), epsilon,
        accuracy in [0, 1], images (their number). The clean accuracy is a row of each protocol at ε = 0.
    """
    device = resolve_device(trained.config.device)
    dataset = data.load(trained.config.dataset, test_size=test_size).to(device)
    model, images, labels = trained.model.to(device), dataset.test_inputs, dataset.test_labels
    config = trained.config
    released = {"beta": config.beta, "K": config.K, "form": config.form}
    one_gradient = partial(attacks.accuracy_curve, model=model, images=images, labels=labels, epsilons=epsilons)
    correct = {
        ("as released", "FGSM"): one_gradient(partial(attacks.released_fgsm, **released)),
        ("as released", "PGD"): one_gradient(partial(attacks.released_pgd, **released)),
        ("corrected", "FGSM"): one_gradient(attacks.fgsm),
        ("corrected", "PGD"): attacks.nested_accuracy_curve(
            partial(attacks.pgd, steps=pgd_steps), model, images, labels, epsilons
        ),
    }
    clean = attacks.correct_predictions(model, images, labels)
    rows = [(protocol, "clean", 0.0, float(clean.float().mean())) for protocol in PROTOCOLS]
    for (protocol, attack), table in correct.items():
        accuracies = table.float().mean(1).tolist()
        rows += [(protocol, attack, epsilon, value) for epsilon, value in zip(epsilons, accuracies, strict=True)]
    columns = ["protocol", "attack", "epsilon", "accuracy"]
    return pd.DataFrame(rows, columns=columns).assign(images=len(images))


def examples(trained: TrainedModel, *, epsilon: float, indices: Sequence[int], pgd_steps: int = 40) -> pd.DataFrame:
    """Attack single test images by FGSM on the cross-entropy and by PGD.

    Args:
        trained: the network.
        epsilon: L∞ radius.
        indices: positions of the images in the whole test set.
        pgd_steps: steps of PGD.

    Returns:
        One row per image and attack ("clean", "FGSM", "PGD"): index, attack, epsilon, label, predicted
        (names of classes), and pixels (the image as a list of rows, values in [0, 1]).
    """
    dataset = data.load(trained.config.dataset)
    model = trained.model.cpu()
    images, labels = dataset.test_inputs[list(indices)], dataset.test_labels[list(indices)]
    attacked = {
        "clean": images,
        "FGSM": attacks.fgsm(model, images, labels, epsilon=epsilon),
        "PGD": attacks.pgd(model, images, labels, epsilon=epsilon, steps=pgd_steps),
    }
    rows = []
    for attack, batch in attacked.items():
        with torch.no_grad():
            predicted = model(batch).argmax(1).tolist()
        for index, label, guess, image in zip(indices, labels.tolist(), predicted, batch, strict=True):
            names = dataset.classes[label], dataset.classes[guess]
            rows.append((index, attack, epsilon if attack != "clean" else 0.0, *names, image.squeeze(0).tolist()))
    return pd.DataFrame(rows, columns=["index", "attack", "epsilon", "label", "predicted", "pixels"])
