"""What several test files share: an output folder of the tests' own and one small trained network."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from isorepro import data
from isorepro.training import TrainedModel, TrainingConfig, train


@pytest.fixture(scope="session", autouse=True)
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh output folder, so that nothing kept from another run is used."""
    folder = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOREPRO_OUTPUT", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained() -> TrainedModel:
    """An isometric network good enough for attacks to be told apart."""
    return train(TrainingConfig(beta=0.1, K=10.0, epochs=3, train_size=6000, device="cpu"))


@pytest.fixture(scope="session")
def images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """A stratified subset of the test images."""
    dataset = data.load("mnist", test_size=600)
    return dataset.test_inputs, dataset.test_labels
