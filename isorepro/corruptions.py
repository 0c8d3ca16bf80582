"""Seeded corruptions of grey images in five severities, and the accuracy of networks on the images they leave.

A suite in the spirit of MNIST-C (Mu and Gilmer 2019) and of the corruptions of Hendrycks and Dietterich (2019):
the kinds are theirs, the functions and severities are ours, and no number here is one of that benchmark. The
severities are set so that the mean L2 distance to the clean images grows with each.

Every corruption is a function of images (N, 1, S, S), float32 with values in [0, 1], of a severity from 1 to 5 and
of a generator; it returns images of the same shape and range and leaves those that it was given alone. It draws
the same numbers at every severity, so that a stronger corruption is the same one further on, and raises an
:class:`isorepro.errors.InputError` on another severity.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Generator, Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

from isorepro import data
from isorepro.errors import InputError, unknown
from isorepro.training import TrainedModel, clean_accuracy, dataset_of, resolve_device

Corruption = Callable[[Tensor, int, Generator], Tensor]
"""A function of images (N, 1, S, S) in [0, 1], a severity from 1 to 5 and a generator, to images like them."""

SEVERITIES = (1, 2, 3, 4, 5)
"""From barely visible to severe."""

CLEAN = "no corruption"
"""Name of the test images as they are."""

MEAN = "mean of all"
"""Name of the mean over the corruptions."""


def _amount(severity: int, *amounts: float) -> float:
    if not isinstance(severity, int) or severity not in SEVERITIES:
        raise InputError(f"severity: must be a whole number from 1 to {len(SEVERITIES)}, not {severity!r}")
    return amounts[severity - 1]


def gaussian_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add Gaussian noise of standard deviation 0.1 to 0.5 to each pixel, and cut at 0 and 1."""
    deviation = _amount(severity, 0.1, 0.2, 0.3, 0.4, 0.5)
    return (images + deviation * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def shot_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Draw each pixel from a Poisson distribution about its value, 40 to 2 photons for white, and cut at 1."""
    photons = _amount(severity, 40, 15, 7, 4, 2)
    return (torch.poisson(images * photons, generator=generator) / photons).clamp(max=1)


def impulse_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Make a share of the pixels, 3 to 40 %, black or white with equal odds."""
    share = _amount(severity, 0.03, 0.08, 0.15, 0.25, 0.4)
    drawn = torch.rand(images.shape, generator=generator)
    return images.masked_fill(drawn < share / 2, 0.0).masked_fill(drawn >= 1 - share / 2, 1.0)


def glass_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Take each pixel from up to 1 to 4 pixels away, as frosted glass does, then blur a little (σ = 0.5)."""
    reach = _amount(severity, 1, 1.75, 2.5, 3.25, 4)
    size = images.shape[-1]
    moves = (reach * (2 * torch.rand((2, *images.shape), generator=generator) - 1)).round().long()
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    taken = (rows + moves[0]).clamp(0, size - 1) * size + (columns + moves[1]).clamp(0, size - 1)
    scattered = images.flatten(1).gather(1, taken.flatten(1)).view_as(images)
    blurred: Tensor = gaussian_blur(scattered, kernel_size=[5, 5], sigma=[0.5, 0.5])
    return blurred.clamp(0, 1)


def motion_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Average over a straight path of 3 to 15 pixels, in a direction of its own for each image."""
    length = int(_amount(severity, 3, 6, 9, 12, 15))
    angles = math.pi * torch.rand(len(images), generator=generator)
    steps = torch.linspace(-(length - 1) / 2, (length - 1) / 2, length)
    blurred = torch.zeros_like(images)
    for step in steps.tolist():
        blurred += _moved(images, step * angles.cos(), step * angles.sin())
    return (blurred / length).clamp(0, 1)


def shear(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Shift each row sideways, to either side, by 0.2 to 1 times its height above the middle."""
    slope = _amount(severity, 0.2, 0.4, 0.6, 0.8, 1.0) * _signs(len(images), generator)
    return _warped(images, torch.ones_like(slope), slope, torch.zeros_like(slope), torch.ones_like(slope))


def scale(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Shrink the image about its middle to 0.85 down to 0.45 of its size; the rest is black."""
    factor = torch.full((len(images),), _amount(severity, 0.85, 0.75, 0.65, 0.55, 0.45))
    return _warped(images, 1 / factor, torch.zeros_like(factor), torch.zeros_like(factor), 1 / factor)


def rotation(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Turn the image about its middle by 12 to 60 degrees, to either side."""
    angle = math.radians(_amount(severity, 12, 24, 36, 48, 60)) * _signs(len(images), generator)
    return _warped(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def translation(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Shift the image by 1 to 5 whole pixels in one of the eight directions; what comes in is black."""
    distance = int(_amount(severity, 1, 2, 3, 4, 5))
    directions = torch.tensor([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])
    down, right = (distance * directions[torch.randint(8, (len(images),), generator=generator)]).unbind(1)
    size = images.shape[-1]
    padded = functional.pad(images, [distance] * 4)
    rows = torch.arange(size) + distance - down[:, None]
    columns = torch.arange(size) + distance - right[:, None]
    return padded[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def brightness(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add 0.12 to 0.6 to each pixel, and cut at 1."""
    return (images + _amount(severity, 0.12, 0.24, 0.36, 0.48, 0.6)).clamp(max=1)


def fog(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Mix the image with 20 to 75 % of a haze: random clouds of three sizes, from black to white in each image."""
    share = _amount(severity, 0.2, 0.35, 0.5, 0.65, 0.75)
    haze = torch.zeros_like(images)
    for octave, cells in enumerate((3, 6, 12)):
        clouds = torch.rand((len(images), 1, cells, cells), generator=generator)
        haze += 0.5**octave * functional.interpolate(clouds, images.shape[-1], mode="bicubic", align_corners=True)
    lowest, highest = haze.amin((2, 3), keepdim=True), haze.amax((2, 3), keepdim=True)
    return ((1 - share) * images + share * (haze - lowest) / (highest - lowest)).clamp(0, 1)


def stripe(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Invert an upright stripe, 1 to 9 pixels wide, that runs through the middle half of the image."""
    width = int(_amount(severity, 1, 3, 5, 7, 9))
    size = images.shape[-1]
    middle = torch.randint(size // 4, size - size // 4, (len(images), 1), generator=generator)
    columns = torch.arange(size)
    inside = (columns >= middle - (width - 1) // 2) & (columns <= middle + width // 2)
    return torch.where(inside[:, None, None, :], 1 - images, images)


def spatter(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Splash white drops of random outline on 2 to 20 % of the image."""
    share = _amount(severity, 0.02, 0.05, 0.09, 0.14, 0.2)
    field = gaussian_blur(torch.randn(images.shape, generator=generator), kernel_size=[9, 9], sigma=[1.5, 1.5])
    level = field.flatten(1).quantile(1 - share, dim=1)[:, None, None, None]
    spread = field.std((1, 2, 3), keepdim=True)
    # The rim of a drop is grey, as that of the digits is.
    return torch.maximum(images, ((field - level) / spread * 3 + 0.5).clamp(0, 1))


def dotted_line(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Draw 1 to 5 dotted lines across the image, white dots every four pixels."""
    drawn = images
    for along, across in _lines(images, int(_amount(severity, 1, 2, 3, 4, 5)), generator):
        beside = along.remainder(4) - 2
        drawn = torch.maximum(drawn, (1.4 - torch.hypot(beside, across)).clamp(0, 1))
    return drawn


def zigzag(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Draw 1 to 5 white zigzag lines across the image, two pixels to either side over a length of eight."""
    drawn = images
    for along, across in _lines(images, int(_amount(severity, 1, 2, 3, 4, 5)), generator):
        wave = 2 - (along.remainder(8) - 4).abs()
        # The slope of the line is 1: its distance is smaller than that across by √2.
        drawn = torch.maximum(drawn, (1.1 - (across - wave).abs() / math.sqrt(2)).clamp(0, 1))
    return drawn


def canny_edges(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Mix the image with 20 to 100 % of its edges (:func:`edges`)."""
    share = _amount(severity, 0.2, 0.4, 0.6, 0.8, 1.0)
    return (1 - share) * images + share * edges(images)


def edges(images: Tensor, *, sigma: float = 1.0, low: float = 0.8, high: float = 1.6) -> Tensor:
    """Find edges as Canny (1986): smooth, keep the ridges of the gradient, and follow strong ones along weak ones.

    Args:
        images: (N, 1, S, S), values in [0, 1].
        sigma: width of the smoothing, in pixels.
        low, high: gradients (Sobel, where a ramp of 1 a pixel has 8) from which a ridge is weak, or strong.

    Returns:
        1 on edges and 0 elsewhere, of the same shape.
    """
    smooth = ndimage.gaussian_filter(images[:, 0].numpy(), sigma, axes=(1, 2), mode="constant")
    # Sobel's filters, written out: scipy's would smooth across images as well.
    down, right = (
        ndimage.correlate1d(
            ndimage.correlate1d(smooth, [-1, 0, 1], axis=axis, mode="constant"),
            [1, 2, 1],
            axis=3 - axis,
            mode="constant",
        )
        for axis in (1, 2)
    )
    steep = np.hypot(down, right)
    # The ridge is compared with the two neighbours that lie nearest to the direction of the gradient.
    towards = np.round(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    padded = np.pad(steep, ((0, 0), (1, 1), (1, 1)))
    size = steep.shape[-1]
    ridge = np.zeros(steep.shape, dtype=bool)
    for direction, (y, x) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        ahead = padded[:, 1 + y : 1 + y + size, 1 + x : 1 + x + size]
        behind = padded[:, 1 - y : 1 - y + size, 1 - x : 1 - x + size]
        ridge |= (towards == direction) & (steep >= ahead) & (steep > behind)
    weak = ridge & (steep >= low)
    neighbours = np.zeros((3, 3, 3), dtype=int)
    neighbours[1] = 1
    pieces, count = ndimage.label(weak, neighbours)
    strong = np.zeros(count + 1, dtype=bool)
    strong[pieces[weak & (steep >= high)]] = True
    return torch.from_numpy(strong[pieces]).float().unsqueeze(1)


def _signs(count: int, generator: Generator) -> Tensor:
    return 2.0 * torch.randint(2, (count,), generator=generator) - 1


def _warped(images: Tensor, xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor) -> Tensor:
    """Take pixel (x, y) of image n from (xx x + xy y, yx x + yy y), counted from the middle; outside is black."""
    zero = torch.zeros_like(xx)
    matrices = torch.stack([torch.stack([xx, xy, zero], 1), torch.stack([yx, yy, zero], 1)], 1)
    return _sampled(images, matrices)


def _moved(images: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Move image n by right[n] and down[n] pixels, which need not be whole."""
    one, zero, unit = torch.ones_like(right), torch.zeros_like(right), 2 / images.shape[-1]
    matrices = torch.stack(
        [torch.stack([one, zero, -unit * right], 1), torch.stack([zero, one, -unit * down], 1)], 1
    )
    return _sampled(images, matrices)


def _sampled(images: Tensor, matrices: Tensor) -> Tensor:
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def _lines(images: Tensor, count: int, generator: Generator) -> list[tuple[Tensor, Tensor]]:
    """Return, for ``count`` lines through each image, where each pixel is along and across the line, in pixels."""
    size = images.shape[-1]
    # All lines are drawn at every severity, so that the first ones are the same at each.
    drawn = torch.rand((3, len(SEVERITIES), len(images), 1, 1, 1), generator=generator)
    angles, offsets, phases = math.pi * drawn[0], size / 2 * (drawn[1] - 0.5), size * drawn[2]
    place = torch.arange(size) - (size - 1) / 2
    y, x = place[:, None], place[None, :]
    return [
        (x * angle.cos() + y * angle.sin() + phase, x * angle.sin() - y * angle.cos() + offset)
        for angle, offset, phase in zip(angles[:count], offsets, phases, strict=False)
    ]


KINDS: dict[str, dict[str, Corruption]] = {
    "noise": {"Gaussian noise": gaussian_noise, "shot noise": shot_noise, "impulse noise": impulse_noise},
    "blur": {"glass blur": glass_blur, "motion blur": motion_blur},
    "place and shape": {"shear": shear, "scale": scale, "rotation": rotation, "translation": translation},
    "light": {"brightness": brightness, "fog": fog},
    "drawn over": {"stripe": stripe, "spatter": spatter, "dotted line": dotted_line, "zigzag": zigzag},
    "outline": {"Canny edges": canny_edges},
}
"""Kind → name → corruption: those of a kind resemble each other."""

CORRUPTIONS: dict[str, Corruption] = {name: one for kind in KINDS.values() for name, one in kind.items()}
"""Name → corruption, in the order of figures and tables."""


def corrupt(name: str, images: Tensor, severity: int, *, seed: int = 0) -> Tensor:
    """Return corrupted images; the same name, images, severity and seed give the same bits on one machine.

    Args:
        name: a key of :data:`CORRUPTIONS`.
        images: (N, 1, S, S), S at least 5, float32 on the CPU, values in [0, 1].
        severity: from 1 to 5.
        seed: of all that is drawn at random, for each corruption another stream.

    Raises:
        InputError: unknown name or severity, or images of another shape, type or range.
    """
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
        raise InputError(f"images: must have the shape (N, 1, S, S), not {tuple(images.shape)}")
    # Splashes are drawn with a window of nine pixels.
    if images.shape[2] < 5:
        raise InputError(f"images: must be at least 5 pixels wide, not {images.shape[2]}")
    if images.dtype != torch.float32 or not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError("images: must be float32 with values in [0, 1]")
    stream = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = Generator().manual_seed(int.from_bytes(stream[:8], "big") >> 1)
    return CORRUPTIONS[name](images, severity, generator)


_kept: dict[tuple[str, str, int, int], Tensor] = {}
"""The corrupted sets of this process, as bytes: by digest of the clean images, name, severity and seed."""


def _corrupted(images: Tensor, cases: Iterable[tuple[str, int]], seed: int) -> Iterator[tuple[str, int, Tensor]]:
    """Yield name, severity and corrupted images, rounded to the 256 greys of an image file; made once a process.

    Severity 0 stands for the images as they are.
    """
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    # One set of clean images at a time, so that memory does not grow with their number.
    if any(kept[0] != digest for kept in _kept):
        _kept.clear()
    for name, severity in cases:
        key = digest, name, severity, seed
        if severity and key not in _kept:
            _kept[key] = (255 * corrupt(name, images, severity, seed=seed)).round().byte()
        yield name, severity, _kept[key].float() / 255 if severity else images


def accuracies(
    trained: TrainedModel,
    *,
    dataset: str | None = None,
    images: int | None = None,
    names: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the accuracy on corrupted test images; every network gets the same ones.

    Args:
        trained: the network; of a stack the finest level is asked.
        dataset: whose test images are corrupted; None for the dataset that the network was trained on.
        images: size of the stratified test subset; None takes all.
        names: keys of :data:`CORRUPTIONS`.
        severities: each from 1 to 5.
        seed: of the corruptions.

    Returns:
        One row per corruption and severity: corruption, severity, accuracy in [0, 1], and images (how many); the
        first row is :data:`CLEAN`, severity 0.

    Raises:
        InputError: as :func:`corrupt`.
    """
    loaded = dataset_of(trained.config, dataset=dataset, test_size=images, test_seed=0)
    device = resolve_device(trained.config.device)
    model, labels = trained.model.to(device), loaded.test_labels.to(device)
    cases = [(CLEAN, 0), *itertools.product(names, _checked(severities))]
    rows = [
        (name, severity, clean_accuracy(model, shown.to(device), labels))
        for name, severity, shown in _corrupted(loaded.test_inputs, cases, seed)
    ]
    # Back to where every other measurement expects it.
    trained.model.cpu()
    return pd.DataFrame(rows, columns=["corruption", "severity", "accuracy"]).assign(images=len(labels))


def _checked(severities: Sequence[int]) -> Sequence[int]:
    for severity in severities:
        _amount(severity, *SEVERITIES)
    return severities


def examples(
    dataset: str,
    *,
    label: int,
    names: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    images: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Corrupt one test image, and tell how far each corruption moves many.

    Args:
        dataset: name of a dataset of images (N, 1, S, S); one that is drawn from the seed is that of seed 0.
        label: class of the image, the first one of this class in the stratified subset.
        names, severities, seed: as for :func:`accuracies`.
        images: size of the stratified test subset over which distances are averaged.

    Returns:
        One row per corruption and severity, severity 0 for the clean image: corruption, severity, distance (mean
        L2 distance to the clean images, on pixels in [0, 1]) and pixels (the image as a list of rows).

    Raises:
        InputError: as :func:`corrupt`, or a label that is no class.
    """
    loaded = data.load(dataset, test_size=images)
    inputs = loaded.test_inputs
    if not 0 <= label < len(loaded.classes):
        raise InputError(f"label: must be from 0 to {len(loaded.classes) - 1}, not {label}")
    place = int((loaded.test_labels == label).nonzero()[0])
    cases = itertools.product(names, (0, *_checked(severities)))
    rows = [
        (name, severity, float((shown - inputs).flatten(1).norm(dim=1).mean()), shown[place, 0].tolist())
        for name, severity, shown in _corrupted(inputs, cases, seed)
    ]
    return pd.DataFrame(rows, columns=["corruption", "severity", "distance", "pixels"])


@lru_cache(maxsize=1)
def _half_perturbed(name: str, seed: int) -> data.Dataset:
    whole = data.load("mnist")
    chosen = np.random.default_rng(seed).permutation(len(whole.train_inputs))
    inputs = whole.train_inputs.clone()
    # Half stays clean, and each severity gets a fifth of the rest.
    parts = np.array_split(chosen[: len(chosen) // 2], len(SEVERITIES))
    for severity, part in zip(SEVERITIES, parts, strict=True):
        places = torch.from_numpy(np.sort(part))
        # A seed far from those of test images.
        inputs[places] = corrupt(name, inputs[places], severity, seed=1_000_000 + seed)
    return replace(whole, name=f"mnist + {name}", train_inputs=inputs)


def noisy_mnist(seed: int) -> data.Dataset:
    """MNIST, half of its training images with Gaussian noise of random severity; test images as they are."""
    return _half_perturbed("Gaussian noise", seed)


def blurred_mnist(seed: int) -> data.Dataset:
    """MNIST, half of its training images with motion blur of random severity; test images as they are."""
    return _half_perturbed("motion blur", seed)


def rotated_mnist(seed: int) -> data.Dataset:
    """MNIST, half of its training images rotated, with random severity; test images as they are."""
    return _half_perturbed("rotation", seed)


def foggy_mnist(seed: int) -> data.Dataset:
    """MNIST, half of its training images in fog of random severity; test images as they are."""
    return _half_perturbed("fog", seed)


def spattered_mnist(seed: int) -> data.Dataset:
    """MNIST, half of its training images with spatter of random severity; test images as they are."""
    return _half_perturbed("spatter", seed)


PERTURBED: dict[str, Callable[[int], data.Dataset]] = {
    "mnist + Gaussian noise": noisy_mnist,
    "mnist + motion blur": blurred_mnist,
    "mnist + rotation": rotated_mnist,
    "mnist + fog": foggy_mnist,
    "mnist + spatter": spattered_mnist,
}
"""Datasets with perturbed training images, one of each kind with several corruptions: name → function of a seed.

They are none of :data:`isorepro.data.DATASETS` before they are added there.
"""


def kind_of(name: str) -> str:
    """Return the kind of a corruption, a key of :data:`KINDS`.

    Raises:
        InputError: unknown corruption.
    """
    for kind, members in KINDS.items():
        if name in members:
            return kind
    raise unknown("corruption", name, CORRUPTIONS)


def by_corruption(table: pd.DataFrame) -> pd.DataFrame:
    """Average accuracies over severities.

    Args:
        table: rows of :func:`accuracies` with ``network`` and ``seed``.

    Returns:
        One row per network, seed and corruption, :data:`CLEAN` first and :data:`MEAN` (the mean corruption
        accuracy: over all corruptions and severities) last: network, seed, corruption, accuracy.
    """
    each = table.groupby(["network", "seed", "corruption"], sort=False)["accuracy"].mean().reset_index()
    corrupted = each[each["corruption"] != CLEAN]
    mean = corrupted.groupby(["network", "seed"], sort=False)["accuracy"].mean().reset_index()
    return pd.concat([each, mean.assign(corruption=MEAN)], ignore_index=True)


def all_but(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Average accuracies over all corruptions but one, and over severities.

    Args:
        table: rows of :func:`accuracies` with ``network`` and ``seed``.
        names: what is left out, one by one.

    Returns:
        One row per name, network and seed: network, seed, corruption ("all but" and the name) and accuracy.
    """
    means = by_corruption(table)
    rows = [
        means[~means["corruption"].isin([CLEAN, MEAN, name])]
        .groupby(["network", "seed"], sort=False)["accuracy"]
        .mean()
        .reset_index()
        .assign(corruption=f"all but {name}")
        for name in names
    ]
    return pd.concat(rows, ignore_index=True)[list(means)] if rows else means.iloc[:0]


def by_severity(table: pd.DataFrame) -> pd.DataFrame:
    """Average accuracies over corruptions: one row per network, seed and severity, 0 for no corruption.

    Args:
        table: rows of :func:`accuracies` with ``network`` and ``seed``.
    """
    return table.groupby(["network", "seed", "severity"], sort=False)["accuracy"].mean().reset_index()


OWN, ALIKE, OTHER, OTHERS, ALL = "its own", "same kind", "other kinds", "all but its own", "all"
"""What a network that was trained on perturbed images is tested on, and what every other network is."""


def transfer(table: pd.DataFrame, trained_on: Mapping[str, str], baseline: str) -> pd.DataFrame:
    """Compare networks with a baseline of the same seed, on the corruption they were trained on and on others.

    Args:
        table: rows of :func:`accuracies` with ``network`` and ``seed``.
        trained_on: network → the corruption of its training images, for networks that had one.
        baseline: the network compared with.

    Returns:
        One row per network (but the baseline), seed and what it is tested on: network, seed, trained_on ("" for
        none), tested (:data:`ALL`; for a network in ``trained_on`` also :data:`OWN`, :data:`ALIKE` if there are
        such, :data:`OTHER`, and :data:`OTHERS`, the two together), accuracy (mean over these corruptions and all
        severities) and gain (minus that of the baseline), in shares.

    Raises:
        InputError: no such baseline, or not for every seed; a network was trained on a corruption that is not
            tested.
    """
    means = by_corruption(table)
    means = means[~means["corruption"].isin([CLEAN, MEAN])]
    tested = list(means["corruption"].drop_duplicates())
    for name, own in trained_on.items():
        if own not in tested:
            raise InputError(f"trained_on: '{name}' was trained on '{own}', which is not among those tested")
    if baseline not in set(means["network"]):
        raise unknown("network", baseline, means["network"].unique())
    rows = []
    for network in means["network"].drop_duplicates():
        own = trained_on.get(network, "")
        groups = {ALL: tested}
        if own:
            alike = [name for name in tested if name != own and kind_of(name) == kind_of(own)]
            others = [name for name in tested if name != own]
            other = [name for name in others if name not in alike]
            groups |= {OWN: [own], ALIKE: alike, OTHER: other, OTHERS: others}
        for what, names in groups.items():
            if network == baseline or not names:
                continue
            part = means[means["corruption"].isin(names)]
            accuracy = part[part["network"] == network].groupby("seed", sort=False)["accuracy"].mean()
            reference = part[part["network"] == baseline].groupby("seed", sort=False)["accuracy"].mean()
            if missing := sorted(set(accuracy.index) - set(reference.index)):
                raise InputError(f"network: '{baseline}' is needed for every seed, not for {missing}")
            rows += [
                (network, seed, own, what, value, value - reference[seed]) for seed, value in accuracy.items()
            ]
    return pd.DataFrame(rows, columns=["network", "seed", "trained_on", "tested", "accuracy", "gain"])


def changed(differences: pd.DataFrame) -> pd.DataFrame:
    """Count on how many corruptions each network is measurably better and worse than the baseline.

    Args:
        differences: rows of :func:`isorepro.stats.paired_differences` by corruption and network, :data:`CLEAN` and
            :data:`MEAN` among them or not.

    Returns:
        One row per network: network, better and worse (corruptions whose 95 % interval lies above, or below, 0;
        NA where there are no intervals, with a single seed) and corruptions (how many were tested).
    """
    each = differences[~differences["corruption"].isin([CLEAN, MEAN])]
    known = each["low"].notna()
    better, worse = (found.astype("Int64").where(known) for found in (each["low"] > 0, each["high"] < 0))
    counts = each[["network"]].assign(better=better, worse=worse, corruptions=1)
    return counts.groupby("network", sort=False).sum(min_count=1).reset_index()
