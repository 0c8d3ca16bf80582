"""Datasets as tensors: pixels in [0, 1], integer labels, verified files, seeded stratified subsets.

MNIST is read from the vendored files; the toy sets are drawn from a seed.
"""

import gzip
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

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
        test_coordinates: angles in [0, 2π) of the test points on the curve or surface they were drawn from,
            shape (N, d); None where no such surface is known.
        test_tangents: orthonormal tangent vectors of it there, shape (N, D, d); None likewise.
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    test_coordinates: Tensor | None = None
    test_tangents: Tensor | None = None

    def to(self, device: torch.device) -> "Dataset":
        """Return the same dataset with its tensors on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def load(name: str, *, train_size: int | None = None, test_size: int | None = None, seed: int = 0) -> Dataset:
    """Load a dataset by name, whole or as a stratified subset drawn with ``seed``.

    Args:
        name: a key of :data:`DATASETS`.
        train_size, test_size: number of examples kept, in the original order; None keeps all.
        seed: seed of the draw, and of the points of a toy set; the same seed and size give the same examples.

    Raises:
        InputError: unknown name, or a size that is impossible for the set.
        DataError: files missing, damaged or altered.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    whole = DATASETS[name](seed)
    train = stratified_indices(whole.train_labels, train_size, seed=seed, what=f"train_size of {name}")
    test = stratified_indices(whole.test_labels, test_size, seed=seed, what=f"test_size of {name}")
    kept = {"train_inputs": train, "train_labels": train}
    kept |= {name: test for name, value in vars(whole).items() if name.startswith("test_") and value is not None}
    return replace(whole, **{name: getattr(whole, name)[indices] for name, indices in kept.items()})


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


@lru_cache(maxsize=1)
def mnist_validation() -> Dataset:
    """MNIST's training images alone: 50,000 to train on, and 10,000 as a test set to choose settings by.

    A stratified split that is the same for every seed; the test images stay unseen.

    Raises:
        DataError: as :func:`mnist`.
    """
    whole = mnist()
    labels = whole.train_labels
    kept = torch.zeros(len(labels), dtype=torch.bool)
    kept[stratified_indices(labels, 50_000, seed=0)] = True
    inputs = whole.train_inputs
    return Dataset("mnist_validation", inputs[kept], labels[kept], inputs[~kept], labels[~kept], whole.classes)


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


def linked_rings(seed: int) -> Dataset:
    """Two linked circles of radius 1 in R³, each through the centre of the other; the class is the ring.

    The paper's file of "entangled rings" was never published; this is ours. Angles are uniform, without noise:
    100 training and 200 test points a ring. Every point of a ring has distance 1 from the other ring. The
    coordinate of a point is its angle.

    Args:
        seed: seed of the angles.
    """
    generator = torch.Generator().manual_seed(seed)
    train, _, _ = _ring_points(_angles((2, 100), generator))
    angles = _angles((2, 200), generator)
    test, tangents, coordinates = _ring_points(angles)
    train_labels, test_labels = (torch.arange(2).repeat_interleave(count) for count in (100, 200))
    classes = ("first ring", "second ring")
    return Dataset(
        "linked_rings", train, train_labels, test, test_labels, classes, coordinates[:, None], tangents[:, :, None]
    )


def _ring_points(angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return points (2 N, 3), unit tangents (2 N, 3) and angles (2 N,) for the rings' angles (2, N)."""
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles[0])
    first, second = (cos[0], sin[0], zero), (1 + cos[1], zero, sin[1])
    tangents = (-sin[0], cos[0], zero), (-sin[1], zero, cos[1])
    points, along = (torch.cat([torch.stack(ring, 1) for ring in pair]) for pair in ((first, second), tangents))
    return points.float(), along.float(), angles.flatten().float()


def torus(seed: int, *, pieces: int = 8, major: float = 0.67, minor: float = 0.33, noise: float = 1e-3) -> Dataset:
    """The paper's torus in R³: a 40 × 40 grid of angles, cut into equal runs along the first angle.

    Training points are the grid with Gaussian noise. The 1,600 test points have uniform random angles and no
    noise (the release evaluates on the training points); their class is that of the nearest row of the grid.
    The coordinates of a point are its angles around the axis and around the tube.

    Args:
        seed: seed of the noise and of the test angles.
        pieces: number of classes, a divisor of 40.
        major, minor: radii of the axis and of the tube.
        noise: standard deviation of each coordinate of a training point.

    Raises:
        InputError: ``pieces`` does not divide 40.
    """
    rows = 40
    if pieces < 1 or rows % pieces:
        raise InputError(f"torus: pieces must divide {rows}, not {pieces}")
    generator = torch.Generator().manual_seed(seed)
    step = 2 * math.pi / rows
    grid = torch.cartesian_prod(*2 * [torch.arange(rows, dtype=torch.float64) * step])
    train, _ = _torus_points(grid, major, minor)
    train = train + noise * torch.randn(train.shape, generator=generator, dtype=torch.float64)
    angles = _angles((rows**2, 2), generator)
    test, tangents = _torus_points(angles, major, minor)
    train_labels, test_labels = (
        (uv[:, 0] / step).round().long().remainder(rows) // (rows // pieces) for uv in (grid, angles)
    )
    classes = tuple(f"piece {number}" for number in range(1, pieces + 1))
    return Dataset(
        "torus", train.float(), train_labels, test.float(), test_labels, classes, angles.float(), tangents.float()
    )


def _torus_points(angles: Tensor, major: float, minor: float) -> tuple[Tensor, Tensor]:
    """Return points (N, 3) and orthonormal tangents (N, 3, 2) for angles (N, 2)."""
    (cos_u, cos_v), (sin_u, sin_v) = angles.cos().unbind(1), angles.sin().unbind(1)
    around = major + minor * cos_v
    points = torch.stack([around * cos_u, around * sin_u, minor * sin_v], 1)
    along_axis = torch.stack([-sin_u, cos_u, torch.zeros_like(sin_u)], 1)
    along_tube = torch.stack([-sin_v * cos_u, -sin_v * sin_u, cos_v], 1)
    return points, torch.stack([along_axis, along_tube], 2)


def two_moons(seed: int) -> Dataset:
    """Two interleaved half circles in the plane with noise 0.1 (scikit-learn's), 200 training and 400 test points.

    Args:
        seed: seed of the noise.
    """
    from sklearn.datasets import make_moons

    # One draw for both parts: scikit-learn's angles are evenly spaced, so neighbours would else be twins.
    points, labels = make_moons(n_samples=600, noise=0.1, random_state=seed)
    inputs, targets = torch.from_numpy(points).float(), torch.from_numpy(labels).long()
    part = stratified_indices(targets, 200, seed=seed)
    train = torch.zeros(len(targets), dtype=torch.bool)
    train[part] = True
    classes = ("upper moon", "lower moon")
    return Dataset("two_moons", inputs[train], targets[train], inputs[~train], targets[~train], classes)


def _angles(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2 * math.pi * torch.rand(shape, generator=generator, dtype=torch.float64)


DATASETS: dict[str, Callable[[int], Dataset]] = {
    "mnist": lambda seed: mnist(),
    "mnist_validation": lambda seed: mnist_validation(),
    "linked_rings": linked_rings,
    "torus": torus,
    "two_moons": two_moons,
}
"""Name → a function of the seed. MNIST is the same for every seed."""
