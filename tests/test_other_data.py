"""FashionMNIST and CIFAR-10 on small files in their real formats, and what is said where they are missing."""

import gzip
import hashlib
import io
import itertools
import os
import pickle
import re
import shutil
import socket
import struct
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn
from torchvision.datasets import CIFAR10, FashionMNIST

from isorepro import (
    data,
    ensemble,
    explorables,
    geometry,
    health,
    hierarchy,
    paths,
    plots,
    profiles,
    robustness,
    saliency,
    stacks,
    stats,
    structure,
    structure_plots,
    style,
    sweep,
)
from isorepro.errors import DataError, InputError
from isorepro.training import TrainedModel, TrainingConfig, build, train

Bytes = NDArray[np.uint8]

COUNTS = {"train": 200, "t10k": 100}
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def pictures(count: int, shape: tuple[int, ...], seed: int) -> tuple[Bytes, Bytes]:
    """Images and labels, each class with a bright patch of its own on noise; shape (channels, height, width)."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % 10).astype(np.uint8)
    images = generator.integers(0, 60, (count, *shape), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[int(label) % len(image), 8 * row : 8 * row + 7, 7 * column : 7 * column + 6] = 220
    return images, labels


def idx(values: Bytes) -> bytes:
    """An array in the format of MNIST and FashionMNIST."""
    return struct.pack(f">2x2B{values.ndim}i", 8, values.ndim, *values.shape) + values.tobytes()


class Python2(pickle._Pickler):
    """Pickles as Python 2 and the numpy of its time wrote them: the format of the real batches of CIFAR-10."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)

    def string(self, text: str | bytes) -> None:
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    def array(self, values: Bytes) -> None:
        self.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(K\x00t")
        self.string("b")
        # The arguments: (ndarray, (0,), "b"), then the state: version, shape, dtype, order, content.
        self.write(b"\x87R(K\x01")
        self.save(values.shape)
        self.write(b"cnumpy\ndtype\n(")
        self.string("u1")
        self.write(b"K\x00K\x01tR(K\x03")
        self.string("|")
        self.write(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
        self.string(values.tobytes())
        self.write(b"tb")

    dispatch[str] = string
    dispatch[bytes] = string
    dispatch[np.ndarray] = array


def pickled(content: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    Python2(file).dump(content)
    return file.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def write_fashion(folder: Path) -> dict[str, tuple[Bytes, Bytes]]:
    """Write the four archives of FashionMNIST and their digests; return images and labels of each part."""
    folder.mkdir(parents=True)
    written, sums = {}, []
    for seed, (part, count) in enumerate(COUNTS.items()):
        images, labels = written[part] = pictures(count, (1, 28, 28), seed)
        for kind, values in {"images-idx3": images[:, 0], "labels-idx1": labels}.items():
            archive = folder / f"{part}-{kind}-ubyte.gz"
            archive.write_bytes(gzip.compress(idx(values)))
            for name, content in {archive.name: archive.read_bytes(), archive.stem: idx(values)}.items():
                sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    (folder / "SHA256SUMS").write_text("".join(sums))
    return written


def write_cifar(folder: Path) -> tuple[dict[str, tuple[Bytes, Bytes]], dict[str, str]]:
    """Write the archive of CIFAR-10 and its digest; return images and labels of each part, and batch → MD5."""
    folder.mkdir(parents=True)
    written = {part: pictures(count, (3, 32, 32), seed) for seed, (part, count) in enumerate(COUNTS.items())}
    files = {"batches.meta": pickled({"num_cases_per_batch": 40, "label_names": CLASSES, "num_vis": 3072})}
    batches = {f"data_batch_{number}": ("train", slice(40 * number - 40, 40 * number)) for number in range(1, 6)}
    for name, (part, which) in (batches | {"test_batch": ("t10k", slice(None))}).items():
        images, labels = (values[which] for values in written[part])
        pixels = images.reshape(len(images), -1)
        content = {"batch_label": name, "labels": labels.tolist(), "data": pixels, "filenames": ["a.png"]}
        files[name] = pickled(content)
    with tarfile.open(folder / CIFAR10.filename, "w:gz") as archive:
        for name, content in (files | {"readme.html": b"nothing"}).items():
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = hashlib.sha256((folder / CIFAR10.filename).read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  {CIFAR10.filename}\n")
    return written, {name: md5(content) for name, content in files.items()}


def patch_batches(patch: pytest.MonkeyPatch, digests: dict[str, str]) -> None:
    for name in ("train_list", "test_list"):
        patch.setattr(CIFAR10, name, [[batch, digests[batch]] for batch, _ in getattr(CIFAR10, name)])
    patch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": digests["batches.meta"]})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, tuple[Bytes, Bytes]]]]:
    """Small files of both sets, which the library finds; dataset → part → images and labels."""
    folder = tmp_path_factory.mktemp("other")
    with pytest.MonkeyPatch.context() as patch:
        cifar, digests = write_cifar(folder / "data/cifar10")
        written = {"fashion_mnist": write_fashion(folder / "data/fashion_mnist"), "cifar10": cifar}
        patch_batches(patch, digests)
        patch.setattr(paths, "DATA", folder / "data")
        patch.setenv("ISOREPRO_OUTPUT", str(folder / "output"))
        patch.setattr(urllib.request, "urlopen", no_network)
        forget()
        yield written
    forget()


def no_network(*args: object, **options: object) -> None:
    raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))


def forget() -> None:
    data.fashion_mnist.cache_clear()
    data.cifar10.cache_clear()


OTHER = ("fashion_mnist", "cifar10")


@pytest.mark.parametrize("name", OTHER)
def test_images_and_labels_are_those_written(name: str, written: dict[str, Any]) -> None:
    dataset = data.load(name)
    for part, images, labels in (
        ("train", dataset.train_inputs, dataset.train_labels),
        ("t10k", dataset.test_inputs, dataset.test_labels),
    ):
        pixels, known = written[name][part]
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        np.testing.assert_allclose(images.numpy(), pixels / 255, rtol=0, atol=1e-7)
        np.testing.assert_array_equal(labels.numpy(), known)
    names = FashionMNIST.classes if name == "fashion_mnist" else CLASSES
    assert dataset.classes == tuple(names)
    part = data.load(name, train_size=50, test_size=20, seed=1)
    assert part.train_labels.bincount().tolist() == [5] * 10


@pytest.mark.usefixtures("written")
def test_the_first_level_of_the_page_parts_clothing_from_shoes_and_bags() -> None:
    (level,) = hierarchy.checked(profiles.parameters("fashion_mnist")["hierarchy"].default, 10)
    found = [{data.load("fashion_mnist").classes[c] for c in group} for group in level]
    assert found == [
        {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Shirt"},
        {"Sandal", "Sneaker", "Bag", "Ankle boot"},
    ]


def test_the_digests_in_the_repository_are_of_the_archives_that_torchvision_knows() -> None:
    wanted = {"fashion_mnist": {name for name, _ in FashionMNIST.resources}, "cifar10": {CIFAR10.filename}}
    for name, archives in wanted.items():
        lines = (paths.ROOT / "data" / name / "SHA256SUMS").read_text().splitlines()
        assert {line.split()[1] for line in lines if line.endswith("gz")} == archives
        assert all(re.fullmatch(r"[0-9a-f]{64}  \S+", line) for line in lines)


def load_anew(patch: pytest.MonkeyPatch, folder: Path) -> Callable[[str], data.Dataset]:
    """Both sets, written to a folder of the test's own; return what loads them as a new process would."""
    write_fashion(folder / "data/fashion_mnist")
    patch_batches(patch, write_cifar(folder / "data/cifar10")[1])
    patch.setattr(paths, "DATA", folder / "data")
    patch.setenv("ISOREPRO_OUTPUT", str(folder / "output"))
    patch.setattr(urllib.request, "urlopen", no_network)

    def load(name: str) -> data.Dataset:
        forget()
        try:
            return data.load(name)
        finally:
            forget()

    return load


ARCHIVE = "cifar-10-python.tar.gz"


def test_what_is_missing_is_told_in_a_line_and_used_once_it_is_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = load_anew(monkeypatch, tmp_path)
    path = tmp_path / "data/cifar10" / ARCHIVE
    content = path.read_bytes()
    path.unlink()
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(DataError) as caught:
        load("cifar10")
    assert str(caught.value) == (
        f"{path} is missing and could not be downloaded (<urlopen error [Errno -2] Name or service not known>): "
        f"put it there by hand; it is used if its SHA-256 is {digest}"
    )
    assert not path.exists()
    assert not list(path.parent.glob(".download*"))
    path.write_bytes(content)
    assert len(load("cifar10").test_labels) == 100


@pytest.mark.parametrize(
    ("name", "archive", "told"),
    [
        ("fashion_mnist", "t10k-images-idx3-ubyte.gz", "is damaged or altered"),
        ("cifar10", ARCHIVE, "is damaged or altered and is not used"),
    ],
)
@pytest.mark.parametrize("harm", ["truncated", "altered"])
def test_a_damaged_archive_is_named_and_not_used(
    name: str, archive: str, told: str, harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = load_anew(monkeypatch, tmp_path)
    path = tmp_path / "data" / name / archive
    content = path.read_bytes()
    path.write_bytes(content[:-100] if harm == "truncated" else content[:500] + b"\0\1" + content[502:])
    opened: list[object] = []
    monkeypatch.setattr(pickle, "load", lambda *args, **options: opened.append(args))
    with pytest.raises(DataError, match=rf"{archive} {told}: SHA-256 expected \w{{64}}"):
        load(name)
    assert not opened
    assert not (tmp_path / "output/data/cifar-10-batches-py").exists()
    assert not (tmp_path / "output/data/FashionMNIST/raw" / archive.removesuffix(".gz")).exists()


def test_an_unpacked_file_that_was_altered_is_unpacked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = load_anew(monkeypatch, tmp_path)
    raw = tmp_path / "output/data"
    for name, file in (
        ("fashion_mnist", raw / "FashionMNIST/raw/t10k-labels-idx1-ubyte"),
        ("cifar10", raw / "cifar-10-batches-py/test_batch"),
    ):
        first = load(name).test_labels
        content, changed = file.read_bytes(), file.stat().st_mtime_ns
        load(name)
        assert file.stat().st_mtime_ns == changed
        # A pickle that would run code if it were read.
        file.write_bytes(b"cos\nabort\n(tR.")
        assert torch.equal(load(name).test_labels, first)
        assert file.read_bytes() == content


class Answer(io.BytesIO):
    """What a server sends: ``length`` bytes, of which all or a part arrive."""

    def __init__(self, content: bytes, url: str) -> None:
        super().__init__(content)
        self.length, self.url = len(content), url


def test_a_download_counts_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    load = load_anew(monkeypatch, tmp_path)
    path = tmp_path / "data/cifar10" / ARCHIVE
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))
    asked: list[str] = []

    def answer(request: urllib.request.Request, sent: bytes) -> Answer:
        asked.append(request.full_url)
        return Answer(sent if request.get_method() != "HEAD" else b"", request.full_url)

    # What a killed process may have left is no download either.
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        left = paths.scratch(path.parent, ".download") / ARCHIVE
    left.write_bytes(content[:10])
    mine = path.parent / ".download" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    monkeypatch.setattr(urllib.request, "urlopen", partial(answer, sent=content[:-1]))
    with pytest.raises(DataError, match="is missing and could not be downloaded"):
        load("cifar10")
    assert not path.exists()
    assert not left.exists()
    monkeypatch.setattr(urllib.request, "urlopen", partial(answer, sent=content))
    before = socket.getdefaulttimeout()
    assert len(load("cifar10").test_labels) == 100
    assert path.read_bytes() == content
    assert mine.read_text() == "mine"
    assert not list(path.parent.glob(".download-*"))
    assert socket.getdefaulttimeout() == before
    assert asked
    assert all(url.endswith(ARCHIVE) for url in asked)
    said = capfd.readouterr().err.splitlines()
    assert {line for line in said if line} == {f"downloading {ARCHIVE}"}
    count = len(asked)
    load("cifar10")
    assert len(asked) == count


CONFIG = {"epochs": 2, "batch_size": 20, "width": 20, "depth": 2, "device": "cpu", "K": 5.0}


@pytest.fixture(scope="module")
def networks(written: dict[str, Any]) -> dict[str, list[TrainedModel]]:
    """Two networks of each set: cross-entropy and isometric; on CIFAR-10 with convolutional features."""
    return {
        name: [train(TrainingConfig(dataset=name, features=features, beta=beta, **CONFIG)) for beta in (0.0, 0.1)]
        for name, features in (("fashion_mnist", "none"), ("cifar10", "convolutional"))
    }


def test_the_networks_learn_and_are_kept_with_their_features(
    networks: dict[str, list[TrainedModel]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OTHER:
        plain = networks[name][0]
        assert plain.history["test_accuracy"].iloc[-1] > 0.3
        assert any(isinstance(part, nn.Conv2d) for part in plain.model.modules()) == (name == "cifar10")
    monkeypatch.setenv("ISOREPRO_OUTPUT", str(tmp_path))
    (tmp_path / "data").symlink_to(paths.DATA.parent / "output/data")
    config = networks["cifar10"][1].config
    (fresh,), (kept,) = (sweep.train_all([config], jobs=1) for _ in range(2))
    images = data.load("cifar10").test_inputs
    for other in (fresh, kept):
        assert torch.equal(other.model(images), networks["cifar10"][1].model(images))


def test_the_first_blocks_loss_trains_the_features_by_the_distances_of_the_pixels(written: dict[str, Any]) -> None:
    from isorepro.losses import isometry
    from isorepro.training import step

    tree = [[[2, 3, 4, 5, 6, 7], [0, 1, 8, 9]]]
    config = TrainingConfig(
        dataset="cifar10", features="convolutional", hierarchy=tree, beta=2.0, **CONFIG | {"K": 3.0}
    )
    dataset = data.load("cifar10", train_size=30)
    model = build(config, dataset.train_inputs, 10)
    features = {name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}
    assert len(features) == 2
    names = {id(parameter): name.rpartition(".")[0] for name, parameter in model.named_parameters()}
    trained = [{names[id(p)] for p in model.trained_by(level, "own block")} for level in (0, 1)]
    assert features <= trained[0]
    assert not features & trained[1]
    labels = hierarchy.level_labels(tree, dataset.train_labels, 10)
    outputs = [representation.detach() for representation, _ in model.levels(dataset.train_inputs)]
    pixels = torch.from_numpy(np.linalg.norm(
        dataset.train_inputs.flatten(1).numpy()[:, None] - dataset.train_inputs.flatten(1).numpy()[None], axis=2
    ))  # fmt: skip
    before = {name: p.clone() for name, p in model.named_parameters() if name.rpartition(".")[0] in features}
    found = step(model, torch.optim.Adam(model.parameters()), dataset.train_inputs, labels, config)
    for (_, penalty, _), representation, own in zip(found, outputs, labels, strict=True):
        expected = isometry(representation, pixels, own, beta=2.0, K=3.0)
        torch.testing.assert_close(penalty, expected, rtol=1e-3, atol=1e-3)
    after = dict(model.named_parameters())
    assert all((after[name] != value).any() for name, value in before.items())


def test_convolutional_features_are_the_papers() -> None:
    config = TrainingConfig(features="convolutional", width=7, depth=1)
    model = build(config, torch.zeros(1, 3, 32, 32), 10)
    shapes = [tuple(w.shape) for w in model.parameters() if w.dim() > 1]
    assert shapes[:3] == [(128, 3, 3, 3), (256, 128, 3, 3), (7, 256 * 8 * 8)]
    images = torch.rand(2, 3, 32, 32)
    state = model.state_dict()
    hidden = images
    for place, channels, side in ((0, 128, 16), (3, 256, 8)):
        weight, bias = (state[f"input_layer.{place}.{name}"] for name in ("weight", "bias"))
        windows = torch.nn.functional.pad(hidden, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        hidden = (torch.einsum("ncyxij,ocij->noyx", windows, weight) + bias.view(-1, 1, 1)).clamp_min(0)
        hidden = hidden.unflatten(3, (-1, 2)).amax(4).unflatten(2, (-1, 2)).amax(3)
        assert hidden.shape == (2, channels, side, side)
    hidden = torch.tanh(hidden.flatten(1) @ state["input_layer.7.weight"].T + state["input_layer.7.bias"])
    torch.testing.assert_close(model.activations(images)[0], hidden, rtol=1e-4, atol=1e-5)
    # The whole of it: three hidden layers of 1000 units behind the features.
    chosen = {name: found.default for name, found in profiles.parameters("cifar10").items()}
    whole = build(
        TrainingConfig(features="convolutional", width=chosen["width"], depth=chosen["depth"]),
        torch.zeros(1, 3, 32, 32),
        10,
    )
    weights = [tuple(w.shape) for w in whole.parameters() if w.dim() > 1]
    assert weights[2:] == [(1000, 16_384), (1000, 1000), (1000, 1000), (10, 1000)]
    # Odd sides and other channels have a place too.
    assert build(config, torch.zeros(1, 1, 5, 9), 3)(torch.rand(4, 1, 5, 9)).shape == (4, 3)
    for shape in ((1, 784), (1, 3, 3, 32)):
        with pytest.raises(InputError, match="features: convolutional ones need images"):
            build(config, torch.zeros(shape), 10)


def test_defaults_draw_the_same_weights_as_without_features() -> None:
    from isorepro.models import Stack

    with torch.random.fork_rng():
        torch.manual_seed(3)
        bare = Stack(12, (4,), width=5, depth=2)
    built = build(TrainingConfig(width=5, depth=2, seed=3), torch.zeros(1, 3, 2, 2), 4)
    assert bare.state_dict().keys() == built.state_dict().keys()
    assert all(torch.equal(value, bare.state_dict()[name]) for name, value in built.state_dict().items())


def drawn(figure: Figure) -> list[NDArray[Any]]:
    """Draw a figure; return the arrays of its pictures."""
    FigureCanvasAgg(figure).draw()
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.get_images()]


@pytest.mark.parametrize("name", OTHER)
def test_every_measure_and_figure_takes_the_images(name: str, networks: dict[str, list[TrainedModel]]) -> None:
    models, dataset = networks[name], data.load(name)
    curves = sweep.measure(models, robustness.curves, epsilons=[0.05, 0.3], pgd_steps=2, test_size=20, jobs=1)
    assert curves["accuracy"].between(0, 1).all()
    assert robustness.chance(name, 50) == pytest.approx(0.1)
    rates = stats.over_seeds(curves, "accuracy", ["protocol", "attack", "beta", "epsilon"])
    kept = sweep.measure(models, structure.measures, test_size=60, neighbours=5, jobs=1)
    assert set(kept["measure"]) >= {"spearman", "trustworthiness", "cka", "dimension"}
    assert kept["value"].notna().all()
    images, labels = dataset.test_inputs[:5], dataset.test_labels[:5]
    settings = {"epsilon": 0.1, "epsilons": [0.1, 0.5], "images": 10, "pgd_steps": 2, "queries": 2}
    assert len(health.attack_checks(models[0], None, **settings)) > 5
    moved = ensemble.autoattack(models[0].model, images, labels, epsilon=0.2, iterations=2, queries=3)
    assert 0 < (moved - images).abs().max() <= 0.2 + 1e-6
    with torch.no_grad():
        places, _ = geometry.principal_coordinates(models[0].model.representation(dataset.test_inputs), 2)
    points = pd.DataFrame(places.numpy(), columns=["x", "y"]).assign(space="map")
    points["class"] = [dataset.classes[label] for label in dataset.test_labels]
    for narrow in (False, True):
        drawn(plots.robustness_curves(rates, chance=0.1, narrow=narrow))
        drawn(structure_plots.maps(points, classes=dataset.classes, narrow=narrow))


def test_a_cross_section_is_one_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    (train_images, train_labels), (images, labels) = (
        [torch.from_numpy(values) for values in pictures(count, (3, 8, 8), seed)]
        for seed, count in enumerate((60, 30))
    )
    small = data.Dataset(
        "small", train_images / 255, train_labels.long(), images / 255, labels.long(), tuple(CLASSES)
    )
    monkeypatch.setitem(data.DATASETS, "small", lambda seed: small)
    model = train(TrainingConfig(dataset="small", features="convolutional", **CONFIG))
    section = structure.cross_section(model, prototype="cat", extent=2, resolution=5)
    assert len(section) == 25
    # The prototype lies in the middle.
    flat = small.train_inputs[small.train_labels == 3].flatten(1)
    prototype = small.train_inputs[small.train_labels == 3][(flat - flat.mean(0)).norm(dim=1).argmin()]
    assert section["predicted"].iloc[12] == CLASSES[model.model(prototype[None]).argmax()]
    for narrow in (False, True):
        drawn(structure_plots.cross_sections(section.assign(network="CE"), classes=CLASSES, narrow=narrow))


@pytest.mark.parametrize("name", OTHER)
def test_attacked_images_are_drawn_as_they_are(name: str, networks: dict[str, list[TrainedModel]]) -> None:
    models, dataset = networks[name], data.load(name)
    shown = sweep.measure(models, robustness.examples, epsilon=0.1, pgd_steps=3, jobs=1)
    with style.house_style():
        figure = plots.image_grid(shown, attack=robustness.PGD)
        images = drawn(figure)
    assert len(images) == 30
    shape = (28, 28) if name == "fashion_mnist" else (32, 32, 3)
    for label, image in enumerate(images[:10]):
        original = dataset.test_inputs[dataset.test_labels == label][0].numpy()
        np.testing.assert_allclose(image, original.transpose(1, 2, 0).reshape(shape), atol=1e-6)
        for attacked in (images[10 + label], images[20 + label]):
            assert 0 < np.abs(attacked - image).max() <= 0.1 + 1e-6
    assert figure.axes[1].get_title().split("\n")[0] == dataset.classes[1]
    assert len(drawn(plots.image_grid(shown, attack=robustness.PGD, narrow=True))) == 15
    # Names stay apart, even if all images are taken for the class of the longest name.
    longest = shown.assign(predicted=max(dataset.classes, key=len))
    with style.house_style():
        for narrow in (False, True):
            figure = plots.image_grid(longest, attack=robustness.PGD, narrow=narrow)
            drawn(figure)
            for left, right in itertools.pairwise(axes.title.get_window_extent() for axes in figure.axes):
                assert left.x1 < right.x0 or right.x1 < left.x0


@pytest.mark.parametrize("name", OTHER)
def test_saliency_is_mapped_and_drawn(name: str, networks: dict[str, list[TrainedModel]]) -> None:
    models, dataset = networks[name], data.load(name)
    attack = {"epsilon": 0.1, "pgd_steps": 2}
    mapped = sweep.measure(models, saliency.examples, **attack, jobs=1)
    side = 28 if name == "fashion_mnist" else 32
    maps = np.array(mapped["saliency"].tolist())
    assert maps.shape == (40, side, side)
    assert np.abs(maps).max(axis=(1, 2)) == pytest.approx(np.ones(40))
    # A brighter pixel, in all channels at once, moves the logit as the map says.
    image, label = dataset.test_inputs[dataset.test_labels == 4][0].double(), 4
    model = build(models[0].config, dataset.train_inputs, 10).double()
    model.load_state_dict(models[0].model.state_dict())
    (found,) = saliency.maps(model, image[None], torch.tensor([label]))
    for row, column in ((3, 5), (20, 9)):
        step = torch.zeros_like(image)
        step[:, row, column] = 1e-6
        change = (model((image + step)[None]) - model((image - step)[None]))[0, label] / 2e-6
        assert found[row, column].item() == pytest.approx(change.item(), rel=1e-4, abs=1e-9)
    images = drawn(plots.saliency_maps(mapped))
    # The images, and clean and attacked maps of either network.
    assert len(images) == 50
    assert images[0].shape == ((28, 28) if name == "fashion_mnist" else (32, 32, 3))
    np.testing.assert_allclose(images[10:], maps)
    drawn(plots.saliency_maps(mapped, narrow=True))
    smooth = saliency.measures(models[0], **attack, test_size=50)
    assert smooth.groupby(["attack", "of", "measure"]).ngroups == len(smooth) == 8
    assert smooth.loc[smooth["measure"] == "roughness", "value"].between(0, 8).all()


@pytest.mark.parametrize("name", OTHER)
def test_a_stack_cuts_by_the_first_level(name: str, written: dict[str, Any]) -> None:
    features = "convolutional" if name == "cifar10" else "none"
    tree = [[[2, 3, 4, 5, 6, 7], [0, 1, 8, 9]]]
    stack = train(TrainingConfig(dataset=name, features=features, hierarchy=tree, beta=0.01, **CONFIG))
    measured = stacks.measures(stack, test_size=50)
    assert set(measured["level"]) == {1, 2}
    accuracy = measured[(measured["measure"] == "accuracy") & (measured["points"] == stacks.TRAINING)]
    assert accuracy["value"].iloc[0] > 0.55
    curves = robustness.curves(stack, epsilons=[0.1], pgd_steps=2, test_size=20)
    assert set(curves["level"]) == {1, 2}


def test_sliders_refuse_images_in_colour(networks: dict[str, list[TrainedModel]]) -> None:
    rows = sweep.measure(networks["cifar10"], robustness.ladder, epsilons=[0.1], pgd_steps=2, jobs=1)
    with pytest.raises(InputError, match=r"slider needs square grey ones, not \(32, 32, 3\)"):
        explorables.by_radius(rows)
    grey = sweep.measure(networks["fashion_mnist"], robustness.ladder, epsilons=[0.1], pgd_steps=2, jobs=1)
    assert explorables.by_radius(grey)["side"] == 28


@pytest.fixture
def reproduce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str]]
) -> Callable[..., tuple[int, str]]:
    """Run the page on CIFAR-10 by the command line; its kernel finds the data in a folder of the test's own."""
    shutil.copy(paths.ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setenv("ISOREPRO_ROOT", str(tmp_path))
    monkeypatch.setenv("ISOREPRO_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{paths.ROOT}")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")

    def run(**values: object) -> tuple[int, str]:
        given = [f"-p{name}={value}" for name, value in values.items()]
        return command("reproduce", "--profile", "smoke", "--only", "cifar10", "--jobs", "1", *given)

    return run


@pytest.mark.slow
def test_the_page_without_the_files_and_a_network_says_so_in_one_line(
    tmp_path: Path, reproduce: Callable[..., tuple[int, str]]
) -> None:
    folder = tmp_path / "data/cifar10"
    folder.mkdir(parents=True)
    (folder / "SHA256SUMS").write_text((paths.ROOT / "data/cifar10/SHA256SUMS").read_text())
    status, said = reproduce()
    assert status == 1
    assert "Traceback" not in said
    (told,) = [line for line in said.splitlines() if line.startswith("error: ")]
    missing = folder / ARCHIVE
    assert f"notebook 'cifar10', code cell 3: DataError: {missing} is missing and could not be dow" in told
    assert "put it there by hand; it is used if its SHA-256 is 6d958be0" in told
    assert not missing.exists()


@pytest.mark.slow
def test_the_page_runs_on_photographs_in_colour(tmp_path: Path, reproduce: Callable[..., tuple[int, str]]) -> None:
    _, digests = write_cifar(tmp_path / "data/cifar10")
    # In the processes that read the batches, their digests are those of the small ones.
    lists = {name: [[b, digests[b]] for b, _ in getattr(CIFAR10, name)] for name in ("train_list", "test_list")}
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'ipykernel_launcher' in ' '.join(sys.orig_argv):\n"
        "    from torchvision.datasets import CIFAR10\n"
        f"    CIFAR10.train_list, CIFAR10.test_list = {lists['train_list']!r}, {lists['test_list']!r}\n"
        f"    CIFAR10.meta = CIFAR10.meta | {{'md5': {digests['batches.meta']!r}}}\n"
    )
    sizes = {"train_size": 50, "test_size": 20, "check_images": 10, "saliency_size": 20, "width": 20, "epochs": 1}
    attacks = {"epsilons": [0.0774, 0.2154], "check_epsilons": [0.0774], "check_queries": 2, "pgd_steps": 2}
    status, said = reproduce(seeds=[0, 1], **sizes, **attacks)
    assert status == 0, said
    (results,) = (tmp_path / "output").glob("smoke-cifar10-*/results/cifar10")
    for name in ("robustness", "examples", "saliency", "roughness"):
        assert (results / f"{name}.png").stat().st_size > 0
    assert "CIFAR-10 test images" in (results / "robustness.html").read_text()
    curves = pd.read_csv(results / "curves_by_seed.csv")
    assert set(curves["images"]) == {20}
    assert set(zip(curves["beta"], curves["seed"], strict=True)) == set(itertools.product((0.0, 0.1), (0, 1)))
