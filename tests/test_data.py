import gzip
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from isorepro import data, paths
from isorepro.errors import DataError, InputError

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
