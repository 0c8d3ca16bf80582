import ast
import gzip
import importlib
import inspect
import math
import pkgutil
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.spatial
import scipy.stats
import torch
from torch import Tensor

import isorepro
from isorepro import comparison, corruptions, data, ensemble, hierarchy, paths, robustness, stacks, structure
from isorepro.errors import DataError, InputError
from isorepro.training import TrainedModel, TrainingConfig, dataset_of, train

ARCHIVES = paths.DATA / "mnist"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ARCHIVES, tmp_path / "mnist"))


def test_mnist_equals_its_files_read_by_hand() -> None:
    dataset = data.load("mnist")
    for part, images, labels in (
        ("train", dataset.train_inputs, dataset.train_labels),
        ("t10k", dataset.test_inputs, dataset.test_labels),
    ):
        raw = gzip.decompress((ARCHIVES / f"{part}-images-idx3-ubyte.gz").read_bytes())
        magic, count, rows, columns = struct.unpack(">4i", raw[:16])
        assert (magic, count, rows, columns) == (2051, len(images), 28, 28)
        pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(count, 1, 28, 28)
        np.testing.assert_allclose(images.numpy(), pixels / 255, rtol=0, atol=1e-7)
        raw = gzip.decompress((ARCHIVES / f"{part}-labels-idx1-ubyte.gz").read_bytes())
        np.testing.assert_array_equal(labels.numpy(), np.frombuffer(raw, np.uint8, offset=8))
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64


def test_the_validation_split_parts_the_training_images_and_takes_none_of_the_test_images() -> None:
    whole, split = data.load("mnist"), data.load("mnist_validation", seed=7)
    assert split.train_inputs.shape == (50_000, 1, 28, 28)
    assert split.test_inputs.shape == (10_000, 1, 28, 28)
    parts = [(split.train_inputs, split.train_labels), (split.test_inputs, split.test_labels)]
    found = Counter(
        (image.numpy().tobytes(), int(label)) for part in parts for image, label in zip(*part, strict=True)
    )
    known = zip(whole.train_inputs, whole.train_labels, strict=True)
    assert found == Counter((image.numpy().tobytes(), int(label)) for image, label in known)
    shares = [torch.bincount(labels) / len(labels) for labels in (whole.train_labels, split.test_labels)]
    torch.testing.assert_close(*shares, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [10, 123, 5000])
def test_subsets_are_stratified_seeded_and_in_order(size: int) -> None:
    labels = data.load("mnist").train_labels
    chosen = data.stratified_indices(labels, size, seed=3)
    assert len(chosen) == len(set(chosen.tolist())) == size
    assert torch.equal(chosen, chosen.sort().values)
    shares = labels.bincount().double() / len(labels) * size
    assert ((labels[chosen].bincount(minlength=10) - shares).abs() < 1).all()
    assert torch.equal(chosen, data.stratified_indices(labels, size, seed=3))
    assert not torch.equal(chosen, data.stratified_indices(labels, size, seed=4))


@pytest.mark.parametrize("size", [0, 9, 10_001])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"test_size of mnist: must be .* not {size}"):
        data.load("mnist", test_size=size)


def test_the_whole_set_may_be_named_by_its_size() -> None:
    assert len(data.load("mnist", test_size=10_000).test_labels) == 10_000


def test_missing_archive_is_named_with_its_digest_and_cure(copy: Path, tmp_path: Path) -> None:
    (copy / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(
        DataError, match=r"t10k-images-idx3-ubyte.gz is missing .*1a1a05ea.*: copy it from"
    ) as caught:
        data.unpack_verified(copy, tmp_path / "raw")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("harm", ["truncated", "altered"])
def test_damaged_archive_is_named_with_both_digests(copy: Path, tmp_path: Path, harm: str) -> None:
    path = copy / "train-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-100] if harm == "truncated" else content[:500] + b"\0" + content[501:])
    with pytest.raises(
        DataError, match=r"train-labels.*damaged or altered: SHA-256 expected 1787548b\w+, found \w{64}"
    ):
        data.unpack_verified(copy, tmp_path / "raw")


def test_the_cure_inside_the_repository_is_a_git_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    copy = Path(shutil.copytree(ARCHIVES, tmp_path / "data" / "mnist"))
    (copy / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(DataError, match=r"git checkout -- data/mnist/t10k-labels-idx1-ubyte.gz"):
        data.unpack_verified(copy, tmp_path / "raw")


def test_unpacked_once_and_again_only_when_altered(copy: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    data.unpack_verified(copy, raw)
    path = raw / "t10k-labels-idx1-ubyte"
    first, content = path.stat().st_mtime_ns, path.read_bytes()
    data.unpack_verified(copy, raw)
    assert path.stat().st_mtime_ns == first
    path.write_bytes(content[:100])
    data.unpack_verified(copy, raw)
    assert path.read_bytes() == content


TOYS = ("linked_rings", "torus", "two_moons")


def tensors(dataset: data.Dataset) -> dict[str, Tensor]:
    return {name: value for name, value in vars(dataset).items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("name", TOYS)
def test_a_seed_gives_the_same_toy_set_and_another_does_not(name: str) -> None:
    first, again, other = (tensors(data.load(name, seed=seed)) for seed in (3, 3, 4))
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["train_inputs"], other["train_inputs"])
    assert not torch.equal(first["test_inputs"], other["test_inputs"])


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [("linked_rings", 200, 400, 2), ("torus", 1600, 1600, 8), ("two_moons", 200, 400, 2)],
)
def test_toy_sets_are_balanced_and_their_parts_disjoint(name: str, train: int, test: int, classes: int) -> None:
    dataset = data.load(name, seed=1)
    assert len(dataset.classes) == classes
    assert dataset.train_labels.bincount().tolist() == [train // classes] * classes
    counts = dataset.test_labels.bincount(minlength=classes)
    if name == "torus":  # of random angles
        assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
    else:
        assert counts.tolist() == [test // classes] * classes
    both = torch.cat([dataset.train_inputs, dataset.test_inputs])
    assert len(both.unique(dim=0)) == train + test
    assert both.dtype == torch.float32
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == torch.int64


def ring(label: int, angles: Tensor) -> Tensor:
    zero = torch.zeros_like(angles)
    if label == 0:
        return torch.stack([angles.cos(), angles.sin(), zero], 1)
    return torch.stack([1 + angles.cos(), zero, angles.sin()], 1)


def test_every_point_of_a_ring_lies_on_it_and_one_from_the_other() -> None:
    dataset = data.load("linked_rings", seed=2)
    whole = 2 * math.pi * torch.arange(20_000) / 20_000
    for inputs, labels in (
        (dataset.train_inputs, dataset.train_labels),
        (dataset.test_inputs, dataset.test_labels),
    ):
        for label in (0, 1):
            own = inputs[labels == label].double()
            centre, flat = torch.tensor([float(label), 0, 0]), 2 - label
            torch.testing.assert_close(
                (own - centre).norm(dim=1), torch.ones(len(own)).double(), rtol=1e-6, atol=0
            )
            assert (own[:, flat] == 0).all()
            distances, _ = scipy.spatial.cKDTree(ring(1 - label, whole).numpy()).query(own.numpy())
            assert distances == pytest.approx(np.ones(len(own)), abs=1e-6)


def test_the_rings_are_linked_once() -> None:
    """Gauss's linking integral, which is ±1 for rings that cannot be pulled apart and 0 for others."""
    angles = 2 * math.pi * torch.arange(400, dtype=torch.float64) / 400
    first, second = (ring(label, angles)[:, None] for label in (0, 1))
    along = [(points.roll(-1, 0) - points.roll(1, 0)) / 2 for points in (first, second)]
    between = first - second.mT.reshape(1, 400, 3)
    crossed = torch.linalg.cross(along[0].expand(-1, 400, -1), along[1].reshape(1, 400, 3).expand(400, -1, -1))
    linking = ((between * crossed).sum(2) / between.norm(dim=2) ** 3).sum() / (4 * math.pi)
    assert abs(linking.item()) == pytest.approx(1, abs=1e-3)


def test_a_rings_coordinate_and_tangent_are_those_of_its_points() -> None:
    dataset = data.load("linked_rings", seed=2)
    assert dataset.test_coordinates is not None
    assert dataset.test_tangents is not None
    assert dataset.test_coordinates.shape == (400, 1)
    assert dataset.test_tangents.shape == (400, 3, 1)
    assert ((dataset.test_coordinates >= 0) & (dataset.test_coordinates < 2 * math.pi)).all()
    for label in (0, 1):
        chosen = dataset.test_labels == label
        angles = dataset.test_coordinates[chosen, 0].double()
        points, tangents = dataset.test_inputs[chosen], dataset.test_tangents[chosen, :, 0]
        torch.testing.assert_close(ring(label, angles), points.double(), rtol=0, atol=1e-6)
        numeric = (ring(label, angles + 1e-5) - ring(label, angles - 1e-5)) / 2e-5
        torch.testing.assert_close(numeric, tangents.double(), rtol=0, atol=1e-6)
        assert tangents.norm(dim=1).tolist() == pytest.approx([1.0] * 200, abs=1e-6)


def off_the_torus(points: Tensor, major: float = 0.67, minor: float = 0.33) -> Tensor:
    """Distance from the surface (√(x² + y²) − R)² + z² = r²."""
    x, y, z = points.double().T
    return ((x.hypot(y) - major).hypot(z) - minor).abs()


def test_points_lie_on_the_torus_and_training_points_within_their_noise() -> None:
    dataset = data.load("torus", seed=1)
    assert off_the_torus(dataset.test_inputs).max() < 1e-6
    distances = off_the_torus(dataset.train_inputs)
    assert 1e-3 < distances.max() < 6e-3
    assert distances.square().mean().sqrt().item() == pytest.approx(1e-3, rel=0.1)
    exact = data.torus(1, major=2.0, minor=0.5, noise=0.0)
    for points in (exact.train_inputs, exact.test_inputs):
        assert off_the_torus(points, 2.0, 0.5).max() < 1e-6


@pytest.mark.parametrize("pieces", [1, 2, 8, 40])
def test_the_torus_is_a_grid_in_equal_runs(pieces: int) -> None:
    dataset = data.torus(0, pieces=pieces)
    run = 1600 // pieces
    assert dataset.train_labels.tolist() == [number // run for number in range(1600)]
    assert len(dataset.classes) == pieces
    for number in range(1600):
        u, v = 2 * math.pi * (number // 40) / 40, 2 * math.pi * (number % 40) / 40
        around = 0.67 + 0.33 * math.cos(v)
        expected = [around * math.cos(u), around * math.sin(u), 0.33 * math.sin(v)]
        assert dataset.train_inputs[number].tolist() == pytest.approx(expected, abs=6e-3)


@pytest.mark.parametrize("pieces", [2, 8])
def test_a_test_point_of_the_torus_has_the_class_of_the_nearest_row(pieces: int) -> None:
    dataset = data.torus(5, pieces=pieces)
    rows = 2 * math.pi * torch.arange(40) / 40
    for (x, y, _), label in zip(dataset.test_inputs.tolist(), dataset.test_labels.tolist(), strict=True):
        away = [math.hypot(x / math.hypot(x, y) - row.cos(), y / math.hypot(x, y) - row.sin()) for row in rows]
        assert label == int(np.argmin(away)) // (40 // pieces)


def test_the_tangents_of_the_torus_are_orthonormal_and_along_its_angles() -> None:
    dataset = data.load("torus", seed=1)
    assert dataset.test_coordinates is not None
    assert dataset.test_tangents is not None
    tangents = dataset.test_tangents.double()
    identity = torch.eye(2, dtype=torch.float64).expand(1600, -1, -1)
    torch.testing.assert_close(tangents.mT @ tangents, identity, rtol=0, atol=1e-6)
    points = dataset.test_inputs.double().requires_grad_()
    x, y, z = points.T
    (gradient,) = torch.autograd.grad((((x.hypot(y) - 0.67) ** 2) + z**2).sum(), points)
    along = (gradient[:, :, None] * tangents).sum(1) / gradient.norm(dim=1)[:, None]
    assert along.abs().max() < 1e-5
    u, v = dataset.test_coordinates.double().T
    around = 0.67 + 0.33 * v.cos()
    expected = torch.stack([around * u.cos(), around * u.sin(), 0.33 * v.sin()], 1)
    torch.testing.assert_close(expected, dataset.test_inputs.double(), rtol=0, atol=1e-6)
    # Moving along the first tangent turns the point around the axis, along the second around the tube.
    turned = torch.atan2(*(dataset.test_inputs.double() + 1e-4 * tangents[:, :, 0])[:, :2].flip(1).T) - u
    assert torch.remainder(turned, 2 * math.pi).max() < 1e-3
    lifted = dataset.test_inputs.double()[:, 2] + 1e-4 * tangents[:, 2, 1]
    torch.testing.assert_close(lifted, 0.33 * (v + 1e-4 / 0.33).sin(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "rows", "major", "minor"), [("paper_torus", 40, 0.67, 0.33), ("paper_torus_16", 16, 1.0, 0.66)]
)
def test_the_papers_torus_is_parted_top_from_bottom_and_rescaled(
    name: str, rows: int, major: float, minor: float
) -> None:
    """The angle around the axis varies fastest, and runs of the flat grid are pieces."""
    dataset = data.load(name, seed=2)
    points, labels = [], []
    for number in range(rows**2):
        v, u = 2 * math.pi * (number // rows) / rows, 2 * math.pi * (number % rows) / rows
        around = major + minor * math.cos(v)
        points.append([around * math.cos(u), around * math.sin(u), minor * math.sin(v)])
        labels.append(number // (rows**2 // 8))
    grid = np.array(points)
    grid = (grid - grid.min()) / (grid - grid.min()).max()
    away = np.linalg.norm(dataset.train_inputs.numpy()[:, None] - grid, axis=2)
    assert away.min(1).max() < 6e-3
    np.testing.assert_array_equal(dataset.train_labels, np.array(labels)[away.argmin(1)])
    for inputs, known in (
        (dataset.train_inputs, dataset.train_labels),
        (dataset.test_inputs, dataset.test_labels),
    ):
        # Away from the cuts, which lie at half a row before the angle 0 and π.
        heights = (inputs[:, 2] - 0.5).abs() > 0.6 * minor / (major + minor) * math.sin(math.pi / rows)
        assert torch.equal((inputs[:, 2] > 0.5)[heights], (known < 4)[heights])
    assert dataset.train_inputs.min() == 0
    assert dataset.train_inputs.max() == 1


@pytest.mark.parametrize("rows", [16, 40])
def test_the_tori_between_the_papers_and_ours_differ_in_one_thing_each(rows: int) -> None:
    ours, cut, rescaled = (data.torus(3, rows=rows, **how) for how in ({}, {"cut": "tube"}, {"rescaled": True}))
    assert len(ours.test_labels) == rows**2
    assert torch.equal(cut.train_inputs, ours.train_inputs)
    assert torch.equal(cut.train_labels.view(rows, rows), ours.train_labels.view(rows, rows).T)
    assert torch.equal(rescaled.train_labels, ours.train_labels)
    assert torch.equal(rescaled.test_labels, ours.test_labels)
    for name in ("train_inputs", "test_inputs"):
        # Distances shrink alike.
        shrunk, whole = (torch.pdist(getattr(found, name)[:200].double()) for found in (rescaled, ours))
        torch.testing.assert_close(shrunk / whole, (shrunk / whole).mean().expand(len(whole)), rtol=1e-3, atol=0)
        assert (shrunk / whole).mean().item() == pytest.approx(0.5, abs=0.01)


def test_a_torus_that_cannot_be_cut_is_refused() -> None:
    for pieces in (7, 0, -8, 80):
        with pytest.raises(InputError, match=f"pieces must divide 40, not {pieces}"):
            data.torus(0, pieces=pieces)


def test_the_moons_are_noisy_half_circles() -> None:
    dataset = data.load("two_moons", seed=0)
    for inputs, labels in (
        (dataset.train_inputs, dataset.train_labels),
        (dataset.test_inputs, dataset.test_labels),
    ):
        centres = torch.tensor([[0.0, 0.0], [1.0, 0.5]])[labels]
        offset = inputs - centres
        assert (offset.norm(dim=1) - 1).square().mean().sqrt().item() == pytest.approx(0.1, rel=0.2)
        # The first moon is the upper half, the second the lower.
        assert (offset[:, 1] * (1 - 2 * labels) > -0.35).all()
        assert (offset[:, 1] * (1 - 2 * labels)).mean() > 0.5


@pytest.mark.parametrize("name", TOYS)
def test_a_subset_of_a_toy_set_keeps_what_belongs_to_its_points(name: str) -> None:
    whole, part = data.load(name, seed=3), data.load(name, train_size=50, test_size=60, seed=3)
    for kept, size in (("train", 50), ("test", 60)):
        inputs = getattr(part, f"{kept}_inputs")
        same = (inputs[:, None] == getattr(whole, f"{kept}_inputs")).all(2)
        assert same.sum(1).tolist() == [1] * size
        places = same.int().argmax(1)
        assert (places.diff() > 0).all()
        for field, value in tensors(whole).items():
            if field.startswith(kept):
                assert torch.equal(tensors(part)[field], value[places])
    assert tensors(part).keys() == tensors(whole).keys()


@pytest.mark.parametrize("name", TOYS)
def test_a_moved_dataset_moves_all_its_tensors_and_keeps_the_rest(name: str) -> None:
    dataset = data.load(name)
    moved = dataset.to(torch.device("meta"))
    assert {value.device.type for value in tensors(moved).values()} == {"meta"}
    assert {key: value.shape for key, value in tensors(moved).items()} == {
        key: value.shape for key, value in tensors(dataset).items()
    }
    assert (moved.name, moved.classes) == (dataset.name, dataset.classes)
    assert (moved.test_tangents is None) == (name == "two_moons")


def own(seed: int, *, classes: int = 2, count: int = 120) -> data.Dataset:
    """Images whose class nothing tells, so that only those trained on are known; the split is the seed's."""
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % classes
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = order[: count // 2], order[count // 2 :]
    (train_inputs, test_inputs), (known, wanted) = (
        [values[part] for part in parts] for values in (images, labels)
    )
    names = tuple(f"class {number}" for number in range(classes))
    return data.Dataset("own", train_inputs, known, test_inputs, wanted, names)


def own_points(seed: int) -> data.Dataset:
    """The same as points in the plane, with coordinates and tangents that fit them."""
    whole = own(seed, classes=3)
    train_inputs, test_inputs = whole.train_inputs[:, 0, 0, :2], whole.test_inputs[:, 0, 0, :2]
    tangents = torch.eye(2).expand(len(test_inputs), 2, 2)
    given = {"test_coordinates": 6 * test_inputs, "test_tangents": tangents}
    return replace(whole, train_inputs=train_inputs, test_inputs=test_inputs, **given)


def changed(field: str, change: Callable[[Any], Any], make: Callable[[int], data.Dataset] = own) -> data.Dataset:
    whole = make(0)
    return replace(whole, **{field: change(getattr(whole, field))})


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    return lambda inputs: inputs.index_fill(0, torch.tensor([5]), value)


SHAPES = "must have the shape (N, 1 or 3, height, width), images, or (N, D), points, with N at least 1, not"
COORDINATES, TANGENTS = ("test_coordinates", "test_tangents")
BREACHES: list[tuple[Any, str]] = [
    (
        changed("train_labels", lambda y: 2 * y - 1),
        "train_labels must be from 0 to 1, as classes, not from -1 to 1",
    ),
    (changed("test_labels", lambda y: 2 * y), "test_labels must be from 0 to 1, as classes, not from 0 to 2"),
    (
        changed("train_labels", lambda y: y[:, None]),
        "train_labels must have the shape (60,), as inputs, not (60, 1)",
    ),
    (changed("test_labels", lambda y: y[:-1]), "test_labels must have the shape (60,), as inputs, not (59,)"),
    (changed("train_labels", Tensor.float), "train_labels must be a tensor of torch.int64, not torch.float32"),
    (changed("train_labels", Tensor.int), "train_labels must be a tensor of torch.int64, not torch.int32"),
    (changed("test_labels", Tensor.tolist), "test_labels must be a tensor of torch.int64, not list"),
    (changed("train_labels", torch.zeros_like), "train_labels must hold every class, and lack 1 ('class 1')"),
    (changed("test_labels", torch.ones_like), "test_labels must hold every class, and lack 0 ('class 0')"),
    (
        changed("classes", lambda names: (*names, "more")),
        "train_labels must hold every class, and lack 2 ('more')",
    ),
    (changed("classes", lambda names: ()), "classes must be a tuple of at least two names, no two alike, not ()"),
    (
        changed("classes", lambda names: ("a", "a")),
        "classes must be a tuple of at least two names, no two alike, not ('a', 'a')",
    ),
    (
        changed("classes", list),
        f"classes must be a tuple of at least two names, no two alike, not {[*own(0).classes]}",
    ),
    (changed("train_inputs", lambda x: x[:, 0]), f"train_inputs {SHAPES} (60, 8, 8)"),
    (changed("train_inputs", lambda x: x.mT.permute(0, 2, 3, 1)), f"train_inputs {SHAPES} (60, 8, 8, 1)"),
    (changed("test_inputs", lambda x: x[:0]), f"test_inputs {SHAPES} (0, 1, 8, 8)"),
    (
        changed("test_inputs", lambda x: x[:, :, 1:]),
        "test_inputs must have the shape of train_inputs, (1, 8, 8) each, not (1, 7, 8)",
    ),
    (changed("train_inputs", with_value(-1)), "train_inputs must be in [0, 1], as images, not from -1 to "),
    (changed("test_inputs", with_value(255)), "test_inputs must be in [0, 1], as images, not from "),
    (
        changed("test_inputs", with_value(math.nan)),
        "test_inputs must be in [0, 1], as images, not from nan to nan",
    ),
    (changed("train_inputs", with_value(math.inf), own_points), "train_inputs must be finite, not from "),
    (changed("train_inputs", Tensor.byte), "train_inputs must be a tensor of torch.float32, not torch.uint8"),
    (changed("test_inputs", Tensor.double), "test_inputs must be a tensor of torch.float32, not torch.float64"),
    (
        changed("test_inputs", lambda x: x.clone().requires_grad_()),
        "test_inputs must be dense, on the CPU and without requires_grad",
    ),
    (
        changed(COORDINATES, lambda angles: angles[1:], own_points),
        "test_coordinates must have the shape (60, d), as test_inputs, not (59, 2)",
    ),
    (changed(COORDINATES, lambda angles: -angles, own_points), "test_coordinates must be angles in [0, 2π)"),
    (
        changed(TANGENTS, lambda tangents: tangents[:, :1], own_points),
        "test_tangents must have the shape (60, 2, d), as test_inputs, not (60, 1, 2)",
    ),
    (
        changed(TANGENTS, lambda tangents: 2 * tangents, own_points),
        "test_tangents must be orthonormal at each point",
    ),
    ((1, 2), "its function must return a Dataset, not tuple"),
]


@pytest.mark.parametrize(("dataset", "told"), BREACHES, ids=[told for _, told in BREACHES])
def test_a_dataset_that_is_not_as_it_must_be_is_refused_in_a_line(
    dataset: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(data.DATASETS, "own", lambda seed: dataset)
    with pytest.raises(InputError) as caught:
        train(TrainingConfig(dataset="own", device="cpu"))
    assert str(caught.value).startswith(f"dataset 'own': {told}")
    assert "\n" not in str(caught.value)


def test_points_may_lie_anywhere_and_a_dataset_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[data.Dataset] = []
    look = data._breach
    monkeypatch.setattr(data, "_breach", lambda dataset: looked_at.append(dataset) or look(dataset))
    far, near = own_points(0), own(0)
    far = replace(far, train_inputs=1e4 * far.train_inputs, test_inputs=-1e4 * far.test_inputs)
    for dataset in (far, near):
        monkeypatch.setitem(data.DATASETS, "own", lambda seed, dataset=dataset: dataset)
        for size in (None, 20):
            assert len(data.load("own", test_size=size, seed=3).test_labels) == (size or 60)
    assert looked_at == [far, near]


@pytest.mark.parametrize(
    ("counts", "size", "told"),
    [
        ([30, 1], 10, "must be all 31, since class 1 has one example"),
        ([300, 2], 20, "must be larger than 20, which leaves class 1 without an example"),
    ],
)
def test_a_subset_holds_every_class_or_is_refused(counts: list[int], size: int, told: str) -> None:
    labels = torch.arange(2).repeat_interleave(torch.tensor(counts))
    with pytest.raises(InputError, match=f"test_size of own: {told}"):
        data.stratified_indices(labels, size, seed=0, what="test_size of own")


def measurements() -> Iterator[Callable[..., pd.DataFrame]]:
    """Every function of the library that makes a table of a trained network."""
    for found in pkgutil.iter_modules(isorepro.__path__):
        module = importlib.import_module(f"isorepro.{found.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            signature = inspect.signature(function)
            first = next(iter(signature.parameters.values()), None)
            public = function.__module__ == module.__name__ and not name.startswith("_")
            if (
                public
                and first
                and first.annotation is TrainedModel
                and signature.return_annotation is pd.DataFrame
            ):
                yield function


MEASUREMENTS = list(measurements())
TREE: hierarchy.Hierarchy = (((0,), (1, 2)),)
GIVEN: dict[str, Any] = {
    "epsilon": 0.1, "epsilons": [0.05, 0.5], "l2_epsilons": [0.5, 1.0], "images": 20, "l2_images": 20,
    "pgd_steps": 2, "iterations": 2, "queries": 3, "test_size": 40, "neighbours": 5, "points": 12, "count": 3,
    "prototype": "class 1", "extent": 1.0, "resolution": 5, "margin": 0.1, "reach": 2.0, "nearest": 1, "every": 2,
    "tree": TREE, "source": None,
}  # fmt: skip
KINDS: dict[str, tuple[Callable[[int], data.Dataset], hierarchy.Hierarchy]] = {
    "two classes": (own, ()),
    "a stack of three": (partial(own, classes=3), TREE),
    "points": (own_points, ()),
}


@pytest.fixture(scope="module")
def own_networks() -> Iterator[dict[str, TrainedModel]]:
    """A network of each kind that knows its training set by heart, and datasets under names of their own.

    Of "<kind>" the split is that of the seed, of "<kind> 3" and "<kind> 0" always that of seed 3 or 0.
    """
    with pytest.MonkeyPatch.context() as patch:
        networks = {}
        for kind, (make, tree) in KINDS.items():
            patch.setitem(data.DATASETS, kind, make)
            for seed in (0, 3):
                patch.setitem(data.DATASETS, f"{kind} {seed}", lambda _, make=make, seed=seed: make(seed))
            settings = {
                "epochs": 30,
                "learning_rate": 3e-3,
                "batch_size": 20,
                "width": 30,
                "depth": 2,
                "device": "cpu",
                "beta": 0.01,
            }
            networks[kind] = train(TrainingConfig(dataset=kind, seed=3, hierarchy=tree, **settings))
        yield networks


def table(measure: Callable[..., pd.DataFrame], trained: TrainedModel, dataset: str) -> pd.DataFrame | str:
    """What a network is measured to do on a dataset, or what is said if it cannot be."""
    config = TrainingConfig(**trained.config.model_dump() | {"dataset": dataset})
    needed = list(inspect.signature(measure).parameters.values())[1:]
    given = {p.name: GIVEN[p.name] for p in needed if p.name in GIVEN or p.default is p.empty}
    try:
        return measure(replace(trained, config=config), **given)
    except InputError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("measure", MEASUREMENTS, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_every_measurement_takes_the_networks_own_test_set(
    measure: Callable[..., pd.DataFrame], own_networks: dict[str, TrainedModel]
) -> None:
    differ = []
    for kind, trained in own_networks.items():
        own_set, same, other = (table(measure, trained, f"{kind}{which}") for which in ("", " 3", " 0"))
        if isinstance(own_set, pd.DataFrame):
            assert own_set.equals(same)
            differ.append(not own_set.equals(other))
    # A share of sixty images may be the same by chance.
    assert any(differ)


def test_accuracies_on_a_split_of_the_seed_are_those_counted_by_hand(
    own_networks: dict[str, TrainedModel],
) -> None:
    trained = own_networks["two classes"]
    clean = {}
    for part in ("train", "test"):
        pairs = zip(*(getattr(own(3), f"{part}_{what}") for what in ("inputs", "labels")), strict=True)
        right = [int(trained.model(image[None]).argmax()) == int(label) for image, label in pairs]
        clean[part] = sum(right) / len(right)
    assert clean["train"] > clean["test"] + 0.2
    tables: dict[str, pd.DataFrame] = {}
    settings = {"epsilons": [0.1], "images": 60, "pgd_steps": 1, "iterations": 1, "queries": 1}
    tables["curves"] = robustness.curves(trained, epsilons=[0.1], pgd_steps=1)
    tables["ensemble"] = ensemble.curves(trained, None, **settings)
    tables["compared"] = comparison.robustness(trained, **settings, l2_epsilons=[0.1], l2_images=60)
    tables = {name: rows[rows["epsilon"] == 0] for name, rows in tables.items()}
    tables["corruptions"] = corruptions.accuracies(trained, names=[])
    tables["another set"] = corruptions.accuracies(
        replace(trained, config=TrainingConfig(dataset="linked_rings", seed=3)), dataset="two classes", names=[]
    )
    tables["validated"] = comparison.validate(trained, epsilon=0.1, images=60, pgd_steps=1).rename(
        columns={"clean": "accuracy"}
    )
    tables["structure"] = (
        structure.measures(trained).query("measure == 'accuracy'").rename(columns={"value": "accuracy"})
    )
    tables["history"] = trained.history.tail(1).rename(columns={"test_accuracy": "accuracy"})
    for name, rows in tables.items():
        assert len(rows) > 0
        assert rows["accuracy"].to_numpy() == pytest.approx(clean["test"]), name


def test_what_is_known_of_a_dataset_by_name_is_known_for_each_seed(own_networks: dict[str, TrainedModel]) -> None:
    kind, seeds = "a stack of three", range(8)
    labels = [own(seed, classes=3).test_labels.tolist() for seed in seeds]
    counted = [max(Counter(row).values()) / 60 for row in labels]
    assert len(set(counted)) > 1
    assert robustness.chance(kind, seeds=seeds) == pytest.approx(max(counted))
    assert robustness.chance(kind) == pytest.approx(counted[0])
    coarse = [max(Counter(label > 0 for label in row).values()) / 60 for row in labels]
    assert stacks.chances(TREE, dataset=kind, seeds=seeds) == pytest.approx([max(coarse), max(counted)])


def test_a_test_subset_may_be_drawn_by_another_seed_than_the_split(own_networks: dict[str, TrainedModel]) -> None:
    config = own_networks["two classes"].config
    part = dataset_of(config, test_size=20, test_seed=0)
    whole = own(3)
    assert torch.equal(part.train_inputs, whole.train_inputs)
    assert torch.equal(part.test_inputs, whole.test_inputs[data.stratified_indices(whole.test_labels, 20, seed=0)])


def test_no_module_loads_the_dataset_of_a_network_by_hand() -> None:
    for path in Path(str(isorepro.__file__)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("data.load"):
                assert path.stem == "training" or "config" not in ast.unparse(node), (
                    f"{path.stem}: dataset_of is there for it"
                )
