"""Datasets as tensors: pixels in [0, 1], integer labels, verified files, seeded stratified subsets."""

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isorepro import paths
from isorepro.errors import DataError, InputError, unknown


@dataclass(frozen=True)
class Dataset:
    """A train and a test set.

    Attributes:
        name: its name in :data:`DATASETS`.
        train_inputs, test_inputs: float32, shape (N, …), values in [0, 1] for images.
        train_labels, test_labels: int64, shape (N,), values in 0 … len(classes) − 1.
        classes: the name of each class.
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]

    def to(self, device: torch.device) -> "Dataset":
        """Return the same dataset with its tensors on ``device``."""
        tensors = ("train_inputs", "train_labels", "test_inputs", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


def load(name: str, *, train_size: int | None = None, test_size: int | None = None, seed: int = 0) -> Dataset:
    """Load a dataset by name, whole or as a stratified subset drawn with ``seed``.

    Args:
        name: a key of :data:`DATASETS`.
        train_size, test_size: number of examples kept, in the original order; None keeps all.
        seed: seed of the draw; the same seed and size give the same subset.

    Raises:
        InputError: unknown name, or a size that is impossible for the set.
        DataError: files missing, damaged or altered.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    whole = DATASETS[name]()
    train = stratified_indices(whole.train_labels, train_size, seed=seed, what=f"train_size of {name}")
    test = stratified_indices(whole.test_labels, test_size, seed=seed, what=f"test_size of {name}")
    return replace(
        whole,
        train_inputs=whole.train_inputs[train],
        train_labels=whole.train_labels[train],
        test_inputs=whole.test_inputs[test],
        test_labels=whole.test_labels[test],
    )


def stratified_indices(labels: Tensor, size: int | None, *, seed: int, what: str = "size") -> Tensor | slice:
    """Return sorted indices of a random subset that keeps the class shares (to within one example a class).

    Args:
        labels: int64, shape (N,).
        size: number of examples; None or N stands for all of them.
        seed: seed of the draw.
        what: how an error names the size.

    Raises:
        InputError: ``size`` is below the number of classes or above N.
    """
    classes = len(labels.unique())
    if size is None or size == len(labels):
        return slice(None)
    if not classes <= size < len(labels):
        raise InputError(f"{what}: must be from {classes} (one per class) to {len(labels)}, not {size}")
    from sklearn.model_selection import StratifiedShuffleSplit

    rest = len(labels) - size
    # scikit-learn wants both parts of the split to hold every class; of a rest that is too small, take
    # away more than needed and the class shares stay as near as they can be.
    if rest < classes:
        raise InputError(f"{what}: must be at most {len(labels) - classes} or all {len(labels)}, not {size}")
    split = StratifiedShuffleSplit(n_splits=1, train_size=size, test_size=rest, random_state=seed)
    chosen, _ = next(split.split(np.zeros(len(labels)), labels.numpy()))
    return torch.from_numpy(np.sort(chosen))


@lru_cache(maxsize=1)
def mnist() -> Dataset:
    """MNIST (LeCun, Cortes, Burges): 60,000 training and 10,000 test images, shape (1, 28, 28), in [0, 1].

    The vendored archives are verified by SHA-256, unpacked once into the output folder, and read by
    ``torchvision.datasets.MNIST``.

    Raises:
        DataError: an archive is missing, truncated or altered.
    """
    folder = paths.output() / "data"
    unpack_verified(paths.DATA / "mnist", folder / "MNIST" / "raw")
    from torchvision.datasets import MNIST

    train, test = (MNIST(str(folder), train=part, download=False) for part in (True, False))
    return Dataset(
        name="mnist",
        train_inputs=train.data.unsqueeze(1).float().div_(255),
        train_labels=train.targets,
        test_inputs=test.data.unsqueeze(1).float().div_(255),
        test_labels=test.targets,
        classes=tuple(str(digit) for digit in range(10)),
    )


def unpack_verified(archives: Path, target: Path) -> None:
    """Verify the ``.gz`` files of a folder against its ``SHA256SUMS`` and unpack them, once, into ``target``.

    ``SHA256SUMS`` lists each archive and its unpacked file. An unpacked file that has been altered since
    is unpacked again.

    Raises:
        DataError: naming the first file at fault, its expected and found digest, and how to restore it.
    """
    try:
        lines = (archives / "SHA256SUMS").read_text().split("\n")
    except FileNotFoundError:
        raise DataError(f"{archives / 'SHA256SUMS'} is missing: {_restore(archives)}") from None
    expected = {name: digest for digest, name in (line.split() for line in lines if line)}
    for name in (name for name in expected if name.endswith(".gz")):
        path, unpacked = archives / name, target / name.removesuffix(".gz")
        if not path.is_file():
            raise DataError(f"{path} is missing (expected SHA-256 {expected[name]}): {_restore(path)}")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != expected[name]:
            raise DataError(
                f"{path} is damaged or altered: SHA-256 expected {expected[name]}, found {found}: {_restore(path)}"
            )
        if not (unpacked.is_file() and _sha256(unpacked) == expected[unpacked.name]):
            paths.write_atomically(unpacked, gzip.decompress(content))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _restore(path: Path) -> str:
    if (paths.ROOT / ".git").exists() and path.is_relative_to(paths.ROOT):
        return f"restore it with 'git checkout -- {path.relative_to(paths.ROOT)}'"
    return "copy it from a fresh clone of the repository, or set ISOREPRO_ROOT to one"


DATASETS: dict[str, Callable[[], Dataset]] = {"mnist": mnist}
