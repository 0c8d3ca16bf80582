"""What the parameters of the paper's notebooks may be: the types that annotate them, beside those of any paper."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from isorepro.errors import Count as Count
from isorepro.errors import InputError, NotNegative, unknown
from isorepro.errors import Positive as Positive
from isorepro.profiles import DIFFERENT, NOT_EMPTY, RISING, accepted, rule
from isorepro.profiles import Correlation as Correlation
from isorepro.profiles import Positives as Positives
from isorepro.profiles import Radii as Radii
from isorepro.profiles import Radius as Radius
from isorepro.profiles import Seed as Seed
from isorepro.profiles import Seeds as Seeds
from isorepro.profiles import Several as Several
from isorepro.profiles import Share as Share
from isorepro.profiles import Values as Values
from isorepro.profiles import Whole as Whole
from isorepro.profiles import among as among
from isorepro.profiles import where as where

SIZES = {
    "mnist": {"classes": 10, "train": 60_000, "test": 10_000},
    "mnist_validation": {"classes": 10, "train": 50_000, "test": 10_000},
    "fashion_mnist": {"classes": 10, "train": 60_000, "test": 10_000},
    "cifar10": {"classes": 10, "train": 50_000, "test": 10_000},
    "linked_rings": {"classes": 2, "train": 200, "test": 400},
    "torus": {"classes": 8, "train": 1600, "test": 1600},
    "paper_torus": {"classes": 8, "train": 1600, "test": 1600},
    "paper_torus_16": {"classes": 8, "train": 256, "test": 256},
    "two_moons": {"classes": 2, "train": 200, "test": 400},
}
"""Of each dataset a notebook takes the number of classes and of examples, so that it need not be loaded."""


def subset(dataset: str, part: Literal["train", "test"]) -> AfterValidator:
    """Return what demands the size of a stratified subset (:func:`isorepro.data.stratified_indices`).

    Args:
        dataset: name of a dataset, or of the parameter above that holds it.
        part: of its examples.
    """

    def check(size: int, info: ValidationInfo) -> int:
        _fits(size, (info.context or {}).get(dataset, dataset), part)
        return size

    return AfterValidator(check)


def _fits(size: int, dataset: str, part: str) -> None:
    known = SIZES[dataset.partition(" + ")[0]]  # a perturbed dataset has the size of the plain one
    classes, whole = known["classes"], known[part]
    if not (classes <= size <= whole - classes or size == whole):
        raise ValueError(f"must be from {classes}, one for each class, to {whole - classes}, or all {whole}")


def _settings(given: dict[str, dict[str, Any]]) -> None:
    from isorepro import comparison
    from isorepro.training import TrainingConfig

    if given:
        _flat(comparison.grid(TrainingConfig(), given, [0])[1])


def _families(given: list[dict[str, Any]]) -> None:
    from isorepro import comparison
    from isorepro.training import TrainingConfig

    for family in given:
        if [] in family.values() or (isinstance(family.get("options"), dict) and [] in family["options"].values()):
            raise InputError(f"must not hold an empty list, as in {family}")
    configs = comparison.expanded(TrainingConfig(), given)
    _flat(configs)
    if not any(config.plain for config in configs):
        raise InputError("must hold {}, cross-entropy, which the others are compared with")


def _flat(configs: Sequence[Any]) -> None:
    from isorepro import corruptions, data

    for config in configs:
        known = {**data.DATASETS, **corruptions.PERTURBED}
        if config.dataset not in known:
            raise unknown("dataset", config.dataset, known)
        if config.hierarchy:
            raise InputError("must be flat networks, without a hierarchy")
        if config.train_size and config.dataset.partition(" + ")[0] in SIZES:
            try:
                _fits(config.train_size, config.dataset, "train")
            except ValueError as error:
                raise InputError(f"train_size: {error}, not {config.train_size}") from None


def _corruptions(given: list[str]) -> None:
    from isorepro.corruptions import PERTURBED

    known = [name.removeprefix("mnist + ") for name in PERTURBED]
    for name in given:
        if name not in known:
            raise unknown("corruption to train on", name, known)


def _partition(classes: int) -> AfterValidator:
    def check(levels: Any) -> None:
        from isorepro import hierarchy

        hierarchy.checked(levels, classes)

    return accepted(check)


L2Radii = Annotated[
    list[Positive], NOT_EMPTY, RISING, Field(description="L2 radii, each larger than the one before")
]
IsometricWeights = Annotated[
    list[NotNegative], DIFFERENT, rule(any, "hold a weight above 0"), Field(description="weights β, one above 0")
]
Weights = Annotated[
    list[NotNegative],
    DIFFERENT,
    rule(lambda betas: 0 in betas and len(betas) > 1, "hold 0 and at least one weight above 0"),
    Field(description="different weights β: 0, which is cross-entropy, and at least one above 0"),
]
TrainImages = Annotated[int, subset("mnist", "train"), Field(description="how many of MNIST’s training images")]
TestImages = Annotated[int, subset("mnist", "test"), Field(description="how many of MNIST’s test images")]
TorusPoints = Annotated[int, subset("torus", "test"), Field(description="how many of the torus’s 1,600 points")]
Forms = Annotated[
    list[Literal["raw", "normalised"]], NOT_EMPTY, DIFFERENT, Field(description="raw, normalised or both")
]
Digits = Annotated[
    list[list[list[int]]], NOT_EMPTY, _partition(10), Field(description="levels of groups of the classes 0 to 9")
]
Pieces = Annotated[
    list[list[list[int]]], NOT_EMPTY, _partition(8), Field(description="levels of groups of the pieces 0 to 7")
]
Settings = Annotated[
    dict[str, dict[str, Any]], accepted(_settings), Field(description="name → fields of a TrainingConfig")
]
Families = Annotated[
    list[dict[str, Any]],
    accepted(_families),
    Field(description="fields of TrainingConfigs, a list for several values; one of them {}"),
]
Corruptions = Annotated[list[str], DIFFERENT, accepted(_corruptions), Field(description="names of corruptions")]
Severities = Annotated[
    list[Annotated[int, Field(ge=1, le=5)]], NOT_EMPTY, RISING, Field(description="whole numbers from 1 to 5")
]
