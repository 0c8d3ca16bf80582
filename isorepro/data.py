"""Datasets as tensors: pixels in [0, 1], integer labels, verified files, seeded stratified subsets.

MNIST and FashionMNIST are read from the vendored files; CIFAR-10 from an archive that torchvision downloads when
it is first asked for, or that was put in place by hand; the toy sets are drawn from a seed.
"""

import gzip
import hashlib
import io
import math
import socket
import tarfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakSet

import filelock
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isorepro import paths
from isorepro.errors import DataError, InputError, unknown
from isorepro.progress import tell

Function = TypeVar("Function", bound=Callable[..., Any])

SILENCE = 30.0
"""Seconds without an answer after which a download is given up."""


# Equal are only a dataset and itself: tensors have no single answer to whether they are.
@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test set. :func:`load` refuses one that breaks what is said here.

    Attributes:
        name: its name in :data:`DATASETS`.
        train_inputs, test_inputs: images, shape (N, 1 or 3 channels, height, width), values in [0, 1]; or points,
            shape (N, D), any finite values. float32, at least one, of the same shape in both parts.
        train_labels, test_labels: int64, shape (N,), values in 0 … len(classes) − 1, each of them in both parts.
        classes: the name of each class, at least two, no two alike.
        test_coordinates: angles in [0, 2π) of the test points on the curve or surface they were drawn from,
            float32, shape (N, d); None where no such surface is known.
        test_tangents: orthonormal tangent vectors of it there, float32, shape (N, D, d); None likewise.
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


def load(
    name: str,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    test_seed: int | None = None,
) -> Dataset:
    """Load a dataset by name, whole or as stratified subsets.

    That of a network, of its own seed, comes from :func:`isorepro.training.dataset_of`.

    Args:
        name: a key of :data:`DATASETS`.
        train_size, test_size: number of examples kept, in the original order; None keeps all.
        seed: seed of the draws, and of the points or the split of a set that is drawn from it; the same seed and
            size give the same examples.
        test_seed: seed of the test subset's draw alone; None for ``seed``.

    Raises:
        InputError: unknown name, a size that is impossible for the set, or a set that is not as :class:`Dataset`
            says.
        DataError: files missing, damaged or altered.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    whole = DATASETS[name](seed)
    if whole not in _sound:
        if breach := _breach(whole):
            raise InputError(f"dataset '{name}': {breach}")
        _sound.add(whole)
    draw = seed if test_seed is None else test_seed
    train = stratified_indices(whole.train_labels, train_size, seed=seed, what=f"train_size of {name}")
    test = stratified_indices(whole.test_labels, test_size, seed=draw, what=f"test_size of {name}")
    kept = {"train_inputs": train, "train_labels": train}
    kept |= {name: test for name, value in vars(whole).items() if name.startswith("test_") and value is not None}
    return replace(whole, **{name: getattr(whole, name)[indices] for name, indices in kept.items()})


_sound: WeakSet[Dataset] = WeakSet()
"""The datasets that have been found to be as :class:`Dataset` says; those of images are the same at each load."""


def _breach(dataset: Any) -> str | None:
    """Return the first thing in which a dataset is not as :class:`Dataset` says; None if there is none."""
    if not isinstance(dataset, Dataset):
        return f"its function must return a Dataset, not {type(dataset).__name__}"
    classes = dataset.classes
    named = isinstance(classes, tuple) and all(isinstance(name, str) for name in classes)
    if not named or not 2 <= len(set(classes)) == len(classes):
        found = " ".join(repr(classes).split())[:80]
        return f"classes must be a tuple of at least two names, no two alike, not {found}"
    tensors = {name: value for name, value in vars(dataset).items() if name not in ("name", "classes")}
    for name, value in tensors.items():
        dtype = torch.int64 if name.endswith("labels") else torch.float32
        if value is None and name in ("test_coordinates", "test_tangents"):
            continue
        if not isinstance(value, Tensor) or value.dtype != dtype:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            return f"{name} must be a tensor of {dtype}, not {kind}"
        if value.device.type != "cpu" or value.layout != torch.strided or value.requires_grad:
            return f"{name} must be dense, on the CPU and without requires_grad"
    for part in ("train", "test"):
        inputs, labels = tensors[f"{part}_inputs"], tensors[f"{part}_labels"]
        shape = tuple(inputs.shape)
        if len(shape) not in (2, 4) or 0 in shape or (len(shape) == 4 and shape[1] not in (1, 3)):
            allowed = "(N, 1 or 3, height, width), images, or (N, D), points"
            return f"{part}_inputs must have the shape {allowed}, with N at least 1, not {shape}"
        if shape[1:] != dataset.train_inputs.shape[1:]:
            known = tuple(dataset.train_inputs.shape[1:])
            return f"{part}_inputs must have the shape of train_inputs, {known} each, not {shape[1:]}"
        low, high = (float(end) for end in inputs.aminmax())
        if not (0 <= low <= high <= 1 if len(shape) == 4 else math.isfinite(low + high)):
            allowed = "in [0, 1], as images" if len(shape) == 4 else "finite"
            return f"{part}_inputs must be {allowed}, not from {low:g} to {high:g}"
        if labels.shape != shape[:1]:
            return f"{part}_labels must have the shape {shape[:1]}, as inputs, not {tuple(labels.shape)}"
        least, most = (int(end) for end in labels.aminmax())
        if least < 0 or most >= len(classes):
            return f"{part}_labels must be from 0 to {len(classes) - 1}, as classes, not from {least} to {most}"
        if lacking := set(range(len(classes))) - set(labels.unique().tolist()):
            return f"{part}_labels must hold every class, and lack {min(lacking)} ({classes[min(lacking)]!r})"
    count, coordinates, tangents = len(dataset.test_labels), dataset.test_coordinates, dataset.test_tangents
    if coordinates is not None:
        shape = tuple(coordinates.shape)
        if len(shape) != 2 or shape[0] != count or not shape[1]:
            return f"test_coordinates must have the shape ({count}, d), as test_inputs, not {shape}"
        # Just below 2π, float32 has no number.
        if not bool(((coordinates >= 0) & (coordinates <= 2 * math.pi)).all()):
            return "test_coordinates must be angles in [0, 2π)"
    if tangents is not None:
        shape, inner = tuple(tangents.shape), dataset.test_inputs[0].numel()
        if len(shape) != 3 or shape[:2] != (count, inner) or not 1 <= shape[2] <= inner:
            return f"test_tangents must have the shape ({count}, {inner}, d), as test_inputs, not {shape}"
        if not torch.allclose(tangents.mT @ tangents, torch.eye(shape[2]), atol=1e-4):
            return "test_tangents must be orthonormal at each point"
    return None


def stratified_indices(labels: Tensor, size: int | None, *, seed: int, what: str = "size") -> Tensor | slice:
    """Return sorted indices of a random subset that keeps the class shares (to within one example a class).

    Args:
        labels: int64, shape (N,).
        size: number of examples; None or N stands for all of them.
        seed: seed of the draw.
        what: how an error names the size.

    Raises:
        InputError: ``size`` is below the number of classes or above N, or a class would be left out.
    """
    if size is None or size == len(labels):
        return slice(None)
    present, counts = labels.unique(return_counts=True)
    classes = len(present)
    if not classes <= size < len(labels):
        raise InputError(f"{what}: must be from {classes} (one per class) to {len(labels)}, not {size}")
    from sklearn.model_selection import StratifiedShuffleSplit

    rest = len(labels) - size
    # scikit-learn wants both parts of the split to hold every class; of a rest that is too small, take
    # away more than needed and the class shares stay as near as they can be.
    if rest < classes:
        raise InputError(f"{what}: must be at most {len(labels) - classes} or all {len(labels)}, not {size}")
    if counts.min() < 2:
        raise InputError(
            f"{what}: must be all {len(labels)}, since class {int(present[counts.argmin()])} has one example"
        )
    split = StratifiedShuffleSplit(n_splits=1, train_size=size, test_size=rest, random_state=seed)
    chosen, _ = next(split.split(np.zeros(len(labels)), labels.numpy()))
    if lost := set(present.tolist()) - set(labels[chosen].tolist()):
        raise InputError(f"{what}: must be larger than {size}, which leaves class {min(lost)} without an example")
    return torch.from_numpy(np.sort(chosen))


@lru_cache(maxsize=1)
def mnist() -> Dataset:
    """MNIST (LeCun, Cortes, Burges): 60,000 training and 10,000 test images, shape (1, 28, 28), in [0, 1].

    The vendored archives are verified by SHA-256, unpacked once into the output folder, and read by
    ``torchvision.datasets.MNIST``.

    Raises:
        DataError: an archive is missing, truncated or altered.
    """
    return _vendored("mnist", "MNIST", tuple(str(digit) for digit in range(10)))


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


@lru_cache(maxsize=1)
def fashion_mnist() -> Dataset:
    """FashionMNIST (Xiao, Rasul, Vollgraf 2017): 60,000 training and 10,000 test images, (1, 28, 28), in [0, 1].

    Vendored, verified and read as :func:`mnist` is.

    Raises:
        DataError: an archive is missing, truncated or altered.
    """
    from torchvision.datasets import FashionMNIST

    return _vendored("fashion_mnist", "FashionMNIST", tuple(FashionMNIST.classes))


def _vendored(name: str, kind: str, classes: tuple[str, ...]) -> Dataset:
    """Return a set that lies in ``data/<name>`` and that ``torchvision.datasets.<kind>`` reads."""
    import torchvision

    folder, read = paths.output() / "data", getattr(torchvision.datasets, kind)
    unpack_verified(paths.DATA / name, folder / kind / "raw")
    parts = (read(str(folder), train=train, download=False) for train in (True, False))
    (train, train_labels), (test, test_labels) = (
        (part.data.unsqueeze(1).float().div_(255), part.targets) for part in parts
    )
    return Dataset(name, train, train_labels, test, test_labels, classes)


@lru_cache(maxsize=1)
def cifar10() -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images in colour, (3, 32, 32), in [0, 1].

    Its archive lies in ``data/cifar10`` (:func:`fetch_verified`) and is read, unpacked into the output folder, by
    ``torchvision.datasets.CIFAR10``. Its batches are pickles, which can run code: only those of the verified
    archive are unpacked, and each is compared with its own MD5 before it is read.

    Raises:
        DataError: the archive is damaged or altered, or missing and not to be had.
    """
    from torchvision.datasets import CIFAR10

    archived = paths.DATA / "cifar10" / CIFAR10.filename
    content = fetch_verified(archived, CIFAR10.tgz_md5, CIFAR10.url)
    folder = paths.output() / "data"
    digests = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
    batches = {f"{CIFAR10.base_folder}/{name}": md5 for name, md5 in digests.items()}
    if not all(_has_md5(folder / name, md5) for name, md5 in batches.items()):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for name in batches:
                # By name, so that nothing else in the archive lands anywhere.
                member = archive.extractfile(name)
                if member is None:
                    raise DataError(f"{archived} has no file {name}")
                paths.write_atomically(folder / name, member.read())
    train, test = (CIFAR10(str(folder), train=part, download=False) for part in (True, False))
    return Dataset(
        name="cifar10",
        train_inputs=_channels_first(train.data),
        train_labels=torch.tensor(train.targets),
        test_inputs=_channels_first(test.data),
        test_labels=torch.tensor(test.targets),
        classes=tuple(train.classes),
    )


def _has_md5(path: Path, md5: str) -> bool:
    from torchvision.datasets.utils import check_integrity

    return bool(check_integrity(str(path), md5))


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """Return images (N, height, width, channels) of bytes as float32 (N, channels, height, width) in [0, 1]."""
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float().div_(255)


def unpack_verified(archives: Path, target: Path) -> None:
    """Verify the ``.gz`` files of a folder against its ``SHA256SUMS`` and unpack them, once, into ``target``.

    ``SHA256SUMS`` lists each archive and its unpacked file. An unpacked file that has been altered since
    is unpacked again.

    Raises:
        DataError: naming the first file at fault, its expected and found digest, and how to restore it.
    """
    expected = _listed(archives)
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


def fetch_verified(path: Path, md5: str, address: str) -> bytes:
    """Return the content of an archive, verified by the ``SHA256SUMS`` beside it before it is used.

    An archive that is there, whoever put it there, is used if its digest is the listed one. One that is missing is
    downloaded by torchvision, and lies in the folder only once it is whole. Processes that want the same wait for
    each other.

    Args:
        path: where the archive lies.
        md5: its MD5, as torchvision knows it.
        address: where torchvision finds it.

    Raises:
        DataError: the archive is damaged or altered, or missing and not to be had, and where to put it.
    """
    expected = _listed(path.parent)[path.name]
    if not path.is_file():
        _download(path, md5, address, expected)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise DataError(
            f"{path} is damaged or altered and is not used: SHA-256 expected {expected}, found {digest}"
            ": put the whole archive in its place, or delete it to have it downloaded"
        )
    return content


def _download(path: Path, md5: str, address: str, sha256: str) -> None:
    from torchvision.datasets.utils import download_url

    patience = socket.getdefaulttimeout()
    try:
        with filelock.FileLock(path.parent / ".lock"):
            if path.is_file():
                return
            tell(f"downloading {path.name}")
            socket.setdefaulttimeout(SILENCE)
            draft = paths.scratch(path.parent, ".download")
            try:
                # Its bar would end up in the notebook.
                with redirect_stderr(io.StringIO()):
                    download_url(address, str(draft), path.name, md5)
                paths.put(draft / path.name, path)
            finally:
                paths.discard(draft)
    except (OSError, RuntimeError, HTTPException) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} is missing and could not be downloaded ({told}): put it there by hand; it is used if its "
            f"SHA-256 is {sha256}"
        ) from None
    finally:
        socket.setdefaulttimeout(patience)


def _listed(folder: Path) -> dict[str, str]:
    """Return the digests in the ``SHA256SUMS`` of a folder: file → SHA-256."""
    try:
        lines = (folder / "SHA256SUMS").read_text().split("\n")
    except FileNotFoundError:
        raise DataError(f"{folder / 'SHA256SUMS'} is missing: {_restore(folder)}") from None
    return {name: digest for digest, name in (line.split() for line in lines if line)}


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


def torus(
    seed: int,
    *,
    cut: Literal["axis", "tube"] = "axis",
    rescaled: bool = False,
    rows: int = 40,
    pieces: int = 8,
    major: float = 0.67,
    minor: float = 0.33,
    noise: float = 1e-3,
    name: str = "torus",
) -> Dataset:
    """A torus in R³: a grid of rows × rows angles, cut into equal runs along one of its angles.

    The paper's, the one of this book, is cut around the tube, into the upper and the lower half first, and
    rescaled, which halves all distances ("paper_torus"; for its phase map a thicker one of 16 × 16 points,
    "paper_torus_16"). A second one is cut around the axis and not rescaled ("torus").

    Training points are the grid with Gaussian noise. As many test points have uniform random angles and no noise
    (the release evaluates on the training points); their class is that of the nearest row of the grid. The
    coordinates of a point are its angles around the axis and around the tube.

    Args:
        seed: seed of the noise and of the test angles.
        cut: around what the pieces follow each other.
        rescaled: whether the least coordinate of the training points is subtracted from all coordinates, which are
            then divided by the largest.
        rows: angles of the grid around the axis, and around the tube.
        pieces: number of classes, a divisor of ``rows``.
        major, minor: radii of the axis and of the tube.
        noise: standard deviation of each coordinate of a training point.
        name: of the dataset.

    Raises:
        InputError: an unknown cut, or ``pieces`` does not divide ``rows``.
    """
    if cut not in ("axis", "tube"):
        raise unknown("cut of a torus", cut, ("axis", "tube"))
    if pieces < 1 or rows % pieces:
        raise InputError(f"torus: pieces must divide {rows}, not {pieces}")
    generator = torch.Generator().manual_seed(seed)
    step = 2 * math.pi / rows
    grid = torch.cartesian_prod(*2 * [torch.arange(rows, dtype=torch.float64) * step])
    train, _ = _torus_points(grid, major, minor)
    train = train + noise * torch.randn(train.shape, generator=generator, dtype=torch.float64)
    angles = _angles((rows**2, 2), generator)
    test, tangents = _torus_points(angles, major, minor)
    if rescaled:
        least, size = train.min(), train.max() - train.min()
        train, test = ((points - least) / size for points in (train, test))
    train_labels, test_labels = (
        (uv[:, int(cut == "tube")] / step).round().long().remainder(rows) // (rows // pieces)
        for uv in (grid, angles)
    )
    classes = tuple(f"piece {number}" for number in range(1, pieces + 1))
    return Dataset(
        name, train.float(), train_labels, test.float(), test_labels, classes, angles.float(), tangents.float()
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


def reads(*files: str) -> Callable[[Function], Function]:
    """Say which files a function of yours reads, so that a result is computed anew once one of them has changed.

    As ``@reads("points.csv")`` above a dataset's function, a measurement, a training method or what these call;
    other decorators may stand above it and below.

    Args:
        files: files or folders as text, from the folder of the function's module. They are read off the source.
    """
    return lambda function: function


DATASETS: dict[str, Callable[[int], Dataset]] = {
    "mnist": lambda seed: mnist(),
    "mnist_validation": lambda seed: mnist_validation(),
    "fashion_mnist": lambda seed: fashion_mnist(),
    "cifar10": lambda seed: cifar10(),
    "linked_rings": linked_rings,
    "torus": torus,
    "paper_torus": lambda seed: torus(seed, cut="tube", rescaled=True, name="paper_torus"),
    "paper_torus_16": lambda seed: torus(
        seed, cut="tube", rescaled=True, rows=16, major=1.0, minor=0.66, name="paper_torus_16"
    ),
    # One difference of the two at a time.
    "torus_around_tube": lambda seed: torus(seed, cut="tube", name="torus_around_tube"),
    "torus_rescaled": lambda seed: torus(seed, rescaled=True, name="torus_rescaled"),
    "two_moons": two_moons,
}
"""Name → a function of the seed. Images are the same for every seed."""
