import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn
from torch.nn import functional

from isorepro import attacks, saliency
from isorepro.errors import InputError
from isorepro.training import TrainedModel, TrainingConfig, train


def test_the_laplacian_and_the_roughness_are_scipys() -> None:
    values = torch.randn(5, 9, 13, generator=torch.Generator().manual_seed(1)).double()
    by_scipy = np.stack([scipy.ndimage.laplace(image) for image in values.numpy()])
    np.testing.assert_allclose(saliency.laplacian(values).numpy(), by_scipy, rtol=1e-12, atol=1e-12)
    expected = np.abs(by_scipy).mean((1, 2)) / np.abs(values.numpy()).mean((1, 2))
    assert saliency.roughness(values.float()).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_roughness_of_maps_whose_own_is_known() -> None:
    places = torch.arange(200)
    checks = (-1.0) ** (places[:, None] + places)
    ramp = places.double().expand(200, 200) - 99.5
    noise = torch.randn(200, 200, generator=torch.Generator().manual_seed(2))
    constant, zero = torch.full((200, 200), -3.0), torch.zeros(200, 200)
    maps = torch.stack([part.double() for part in (checks, ramp, noise, constant, zero)])
    found = saliency.roughness(maps).tolist()
    # Inside a checkerboard 8, on its edges 6 and in its corners 4.
    assert found[0] == pytest.approx((198**2 * 8 + 4 * 198 * 6 + 4 * 4) / 200**2)
    # A ramp bends only where it is cut off, by 1 on both sides; its mean absolute value is 50.
    assert found[1] == pytest.approx(2 / 200 / 50)
    assert found[2] == pytest.approx(saliency.NOISE, rel=0.02)
    assert found[3] == 0
    assert math.isnan(found[4])
    assert saliency.roughness(1e-6 * maps[2:3]).item() == pytest.approx(found[2])


class Linear(nn.Module):
    """Logits that are sums of the pixels of both channels by known weights."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("ncyx,kcyx->nk", images, self.weights)


def test_maps_of_a_linear_network_are_its_weights() -> None:
    generator = torch.Generator().manual_seed(3)
    weights, images = (torch.randn(count, 2, 4, 5, generator=generator).double() for count in (3, 7))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    model = Linear(weights)
    of_logit = saliency.maps(model, images, labels)
    torch.testing.assert_close(of_logit, weights.sum(1)[labels])
    of_loss = saliency.maps(model, images, labels, of="loss")
    shares = model(images).softmax(1) - functional.one_hot(labels, 3)
    torch.testing.assert_close(of_loss, torch.einsum("nk,kyx->nyx", shares, weights.sum(1)))


def test_a_maps_sign_and_place_are_those_of_finite_differences(trained: TrainedModel) -> None:
    table = saliency.examples(trained, epsilon=0.2, pgd_steps=10)
    assert table["label"].tolist() == 2 * list("0123456789")
    assert np.array(table["saliency"].tolist()).shape == (20, 28, 28)
    model = copy.deepcopy(trained.model).double()
    for place in (7, 17):
        image = torch.tensor(table["pixels"].iloc[place])[None].double()
        (found,) = saliency.maps(model, image[None], torch.tensor([7]))
        row, column = divmod(int(found.abs().argmax()), 28)
        moved = torch.zeros_like(image)
        moved[0, row, column] = 1e-6
        change = (model((image + moved)[None]) - model((image - moved)[None]))[0, 7].item() / 2e-6
        assert found[row, column].item() == pytest.approx(change, rel=1e-5)
        shown = table["saliency"].iloc[place][row][column]
        assert shown == pytest.approx(np.sign(change), abs=1e-3)
    clean, attacked = (np.array(table["pixels"].tolist())[part] for part in (slice(10), slice(10, 20)))
    assert 0 < np.abs(attacked - clean).max() <= 0.2 + 1e-6
    right = table["predicted"] == table["label"]
    assert right[10:].sum() < right[:10].sum()


def test_measures_are_means_over_the_test_images_and_leave_vanished_maps_out(
    trained: TrainedModel, images_and_labels: tuple[Tensor, Tensor]
) -> None:
    images, labels = images_and_labels
    attack = {"epsilon": 0.1, "pgd_steps": 5}
    keys = ["attack", "epsilon", "of", "measure"]
    both = saliency.measures(trained, **attack, test_size=600).set_index(keys)["value"].sort_index()
    inputs = {
        ("no attack", 0.0): images,
        ("PGD", 0.1): attacks.pgd(trained.model, images, labels, epsilon=0.1, steps=5),
    }
    for case, of in itertools.product(inputs, ("loss", "logit")):
        table = both[case]
        maps = saliency.maps(trained.model, inputs[case], labels, of=of)
        by_scipy = [
            np.abs(scipy.ndimage.laplace(map)).mean() / np.abs(map).mean()
            for map in maps.double().numpy()
            if map.any()
        ]
        assert table[of, "roughness"] == pytest.approx(np.mean(by_scipy), rel=1e-6)
        assert table[of, "vanished"] == pytest.approx(1 - len(by_scipy) / 600)
    # A network that is very sure has no gradient of the loss left.
    model = copy.deepcopy(trained.model)
    with torch.no_grad():
        for part in model.heads.parameters():
            part.mul_(1e4)
    very_sure = replace(trained, model=model)
    of_sure = saliency.measures(very_sure, **attack, test_size=600).set_index(keys)["value"].sort_index()
    sure, table = of_sure["no attack", 0.0], both["no attack", 0.0]
    assert sure["loss", "vanished"] > 0.5
    assert sure["logit", "vanished"] == 0
    assert sure["logit", "roughness"] == pytest.approx(table["logit", "roughness"], rel=1e-3)


def test_points_that_are_no_images_are_refused() -> None:
    rings = train(TrainingConfig(dataset="linked_rings", epochs=1, width=5, depth=1, device="cpu"))
    with pytest.raises(InputError, match=r"saliency: needs images, .* not \(400, 3\)"):
        saliency.measures(rings, epsilon=0.1)
