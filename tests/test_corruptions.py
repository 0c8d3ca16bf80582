"""Corruptions against known transforms, slow loops and their distributions; accuracies and transfer by hand."""

import itertools
import math
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from isorepro import corruptions, data, method_plots, stats, sweep, tables
from isorepro.errors import InputError
from isorepro.training import TrainedModel, TrainingConfig

NAMES = list(corruptions.CORRUPTIONS)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return data.load("mnist", test_size=100).test_inputs


def grey(value: float, count: int = 200) -> Tensor:
    return torch.full((count, 1, 28, 28), value)


def test_the_suite_has_the_sixteen_corruptions_in_five_severities() -> None:
    assert len(NAMES) == 16
    assert corruptions.SEVERITIES == (1, 2, 3, 4, 5)
    for one in corruptions.CORRUPTIONS.values():
        assert len(one.__doc__ or "") > 40


@pytest.mark.parametrize("name", NAMES)
def test_corruptions_keep_shape_and_range_and_grow_with_severity(name: str, images: Tensor) -> None:
    before = images.clone()
    distances = []
    for severity in corruptions.SEVERITIES:
        corrupted = corruptions.corrupt(name, images, severity)
        assert corrupted.shape == images.shape
        assert corrupted.dtype == torch.float32
        assert 0 <= corrupted.min() <= corrupted.max() <= 1
        distances.append(np.linalg.norm((corrupted - images).numpy().reshape(100, -1), axis=1).mean())
    assert torch.equal(images, before)
    # From the first a corruption that one sees, and each severity at least an eightieth stronger than the last.
    assert distances[0] > 1
    assert all(np.diff(distances) > distances[0] / 80)


@pytest.mark.parametrize("name", NAMES)
def test_corruptions_are_the_same_for_the_same_seed_alone(name: str, images: Tensor) -> None:
    first, again, other = (corruptions.corrupt(name, images, 3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    without_chance = {"scale", "brightness", "Canny edges"}
    assert torch.equal(first, other) == (name in without_chance)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    corruptions.corrupt(name, images, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_corruption_draws_numbers_of_its_own() -> None:
    noise = corruptions.corrupt("Gaussian noise", grey(0.5), 1) - 0.5
    impulses = (corruptions.corrupt("impulse noise", grey(0.5), 5) - 0.5).flatten()
    assert abs(np.corrcoef(noise.flatten(), impulses)[0, 1]) < 0.02


@pytest.mark.parametrize("severity", [0, 6, -1, 2.0, "3", None])
@pytest.mark.parametrize("name", NAMES)
def test_another_severity_is_refused(name: str, severity: int, images: Tensor) -> None:
    with pytest.raises(InputError, match=r"^severity: must be a whole number from 1 to 5, not ") as told:
        corruptions.corrupt(name, images, severity)
    assert "\n" not in str(told.value)


def test_other_names_and_images_are_refused(images: Tensor, trained: TrainedModel) -> None:
    with pytest.raises(InputError, match=r"unknown corruption 'shotnoise'.*did you mean 'shot noise'\?$"):
        corruptions.corrupt("shotnoise", images, 1)
    with pytest.raises(InputError, match=r"^images: must have the shape \(N, 1, S, S\), not \(100, 28, 28\)$"):
        corruptions.corrupt("fog", images[:, 0], 1)
    for wrong in (images.double(), images + 0.5, images - 0.5, images * float("nan")):
        with pytest.raises(InputError, match=r"^images: must be float32 with values in \[0, 1\]$"):
            corruptions.corrupt("fog", wrong, 1)
    with pytest.raises(InputError, match="unknown corruption 'rain'"):
        corruptions.accuracies(trained, images=50, names=["rain"])
    for severities in ([1, 0], [6]):
        with pytest.raises(InputError, match="severity"):
            corruptions.accuracies(trained, images=50, severities=severities)


def test_gaussian_noise_has_its_mean_and_deviation() -> None:
    # Five deviations from the bounds, so that nothing is cut.
    noisy = corruptions.corrupt("Gaussian noise", grey(0.5), 1).double()
    assert noisy.mean() == pytest.approx(0.5, abs=4 * 0.1 / math.sqrt(noisy.numel()))
    assert noisy.std() == pytest.approx(0.1, rel=0.01)


def test_shot_noise_has_the_mean_and_variance_of_a_poisson_distribution() -> None:
    shot = corruptions.corrupt("shot noise", grey(0.4), 1).double()
    assert shot.mean() == pytest.approx(0.4, abs=0.002)
    assert shot.var() == pytest.approx(0.4 / 40, rel=0.03)
    assert torch.equal((shot * 40).round() / 40, (shot.float() * 40).round().double() / 40)
    assert (shot * 40 - (shot * 40).round()).abs().max() < 1e-5
    assert corruptions.corrupt("shot noise", grey(0.0), 5).max() == 0


def test_impulses_are_half_black_half_white_and_leave_the_rest() -> None:
    hit = corruptions.corrupt("impulse noise", grey(0.5), 4)
    shares = [float((hit == value).double().mean()) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.125, 0.75, 0.125], abs=0.005)


def test_rotation_is_that_of_torchvision_to_either_side(images: Tensor) -> None:
    turned = corruptions.corrupt("rotation", images, 2)
    sides = [transforms.rotate(images, angle, InterpolationMode.BILINEAR) for angle in (24.0, -24.0)]
    errors = torch.stack([(turned - side).abs().amax((1, 2, 3)) for side in sides])
    assert errors.amin(0).max() < 1e-4
    assert set(errors.argmin(0).tolist()) == {0, 1}


def test_scale_is_that_of_torchvision(images: Tensor) -> None:
    wanted = transforms.affine(images, 0.0, [0, 0], 0.65, [0.0, 0.0], InterpolationMode.BILINEAR)
    assert (corruptions.corrupt("scale", images, 3) - wanted).abs().max() < 1e-4


def test_shear_shifts_each_row_by_its_height(images: Tensor) -> None:
    sheared = corruptions.corrupt("shear", images[:20], 1)[:, 0].numpy()
    columns, sides = np.arange(28.0), set()
    for image, found in zip(images[:20, 0].numpy(), sheared, strict=True):
        errors = []
        for slope in (0.2, -0.2):
            # Black around the image: np.interp needs a pixel of it on either side.
            rows = [
                np.interp(columns + slope * (y - 13.5), np.arange(-1, 29), np.pad(row, 1), left=0, right=0)
                for y, row in enumerate(image)
            ]
            errors.append(np.abs(np.stack(rows) - found).max())
        assert min(errors) < 1e-4
        sides.add(int(np.argmin(errors)))
    assert sides == {0, 1}


def test_translation_shifts_by_whole_pixels_in_all_eight_directions(images: Tensor) -> None:
    shifted = corruptions.corrupt("translation", images, 3)[:, 0]
    seen = set()
    for image, found in zip(images[:, 0], shifted, strict=True):
        matching = set()
        for down in (-3, 0, 3):
            for right in (-3, 0, 3):
                wanted = torch.zeros_like(image)
                for y in range(28):
                    for x in range(28):
                        if 0 <= y - down < 28 and 0 <= x - right < 28:
                            wanted[y, x] = image[y - down, x - right]
                if torch.equal(wanted, found):
                    matching.add((down, right))
        assert len(matching) == 1
        seen |= matching
    assert len(seen) == 8
    assert (0, 0) not in seen


def test_brightness_raises_every_pixel_by_as_much_and_is_cut_at_white() -> None:
    assert corruptions.corrupt("brightness", grey(0.3), 2).mean() == pytest.approx(0.54, abs=1e-6)
    assert corruptions.corrupt("brightness", grey(0.9), 2).unique().tolist() == [1.0]


def test_motion_blur_spreads_a_point_along_a_line_of_its_length() -> None:
    point = torch.zeros(50, 1, 29, 29)
    point[:, :, 14, 14] = 1
    blurred = corruptions.corrupt("motion blur", point, 3)[:, 0].double().numpy()
    assert blurred.sum((1, 2)) == pytest.approx(1, abs=1e-4)
    y, x = np.mgrid[-14:15, -14:15]
    for image in blurred:
        covariance = [[(image * one * other).sum() for one in (y, x)] for other in (y, x)]
        small, large = np.linalg.eigvalsh(covariance)
        # Nine points in a row one pixel apart have this variance; to take them from between pixels adds a little.
        assert large == pytest.approx((9**2 - 1) / 12, abs=0.3)
        assert 0 <= small < 0.3 + 1e-6
    assert len(np.unique(blurred.reshape(50, -1).argsort(1)[:, -9:], axis=0)) > 10


def test_glass_blur_takes_pixels_from_nearby_and_keeps_the_brightness() -> None:
    point = torch.zeros(200, 1, 29, 29)
    point[:, :, 14, 14] = 1
    scattered = corruptions.corrupt("glass blur", point, 3)[:, 0]
    y, x = np.mgrid[-14:15, -14:15]
    # Up to 2.5 pixels, rounded, and 2 of the blur.
    near = torch.from_numpy(np.maximum(abs(y), abs(x)) <= 2 + 2)
    assert scattered[:, ~near].max() == 0
    assert scattered[:, near].amax(0).min() > 0
    assert scattered.sum((1, 2)).mean() == pytest.approx(1, abs=0.2)


def test_fog_mixes_with_a_haze_from_black_to_white() -> None:
    black, white = (corruptions.corrupt("fog", grey(value), 3) for value in (0.0, 1.0))
    assert black.amin((1, 2, 3)).tolist() == pytest.approx([0.0] * 200, abs=1e-6)
    assert black.amax((1, 2, 3)).tolist() == pytest.approx([0.5] * 200, abs=1e-6)
    assert torch.allclose(white - black, grey(0.5), atol=1e-6)
    # Smooth, unlike noise: neighbours differ by much less than the whole range.
    assert (black[..., 1:] - black[..., :-1]).abs().mean() < 0.05


def test_a_stripe_inverts_whole_columns(images: Tensor) -> None:
    for severity, width in zip(corruptions.SEVERITIES, (1, 3, 5, 7, 9), strict=True):
        striped = corruptions.corrupt("stripe", images, severity)
        for image, found in zip(images[:, 0], striped[:, 0], strict=True):
            (inverted,) = np.nonzero((found != image).any(0).numpy())
            assert inverted.tolist() == list(range(inverted[0], inverted[0] + width))
            assert torch.equal(found[:, inverted], 1 - image[:, inverted])


def test_spatter_covers_its_share_and_leaves_the_rest() -> None:
    drops = corruptions.corrupt("spatter", grey(0.0), 4)
    assert (drops > 0.5).double().mean() == pytest.approx(0.14, abs=0.002)
    # Drops, not single pixels: most white pixels have white neighbours on both sides.
    white = (drops > 0.5)[..., 1:-1]
    beside = (drops > 0.5)[..., 2:] & (drops > 0.5)[..., :-2]
    assert (white & beside).sum() > 0.4 * white.sum()


@pytest.mark.parametrize("name", ["dotted line", "zigzag", "spatter", "stripe"])
def test_what_is_drawn_over_an_image_grows(name: str) -> None:
    drawn = [corruptions.corrupt(name, grey(0.0), severity) for severity in corruptions.SEVERITIES]
    for weaker, stronger in itertools.pairwise(drawn):
        assert bool((stronger >= weaker).all())
    assert bool((corruptions.corrupt(name, grey(0.0), 1).amax((1, 2, 3)) > 0).all())


def test_a_dotted_line_is_dots_four_pixels_apart_on_a_line() -> None:
    for image in corruptions.corrupt("dotted line", grey(0.0, 60), 1)[:, 0].numpy():
        labels, count = ndimage.label(image > 0)
        inside = [
            number
            for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1)
            if min(rows.start, columns.start) > 0 and max(rows.stop, columns.stop) < 28
        ]
        centres = np.array(ndimage.center_of_mass(image, labels, inside))
        assert len(centres) >= 2
        assert count <= 12
        _, spread, axes = np.linalg.svd(centres - centres.mean(0), full_matrices=False)
        assert spread[-1] / math.sqrt(len(centres)) < 0.25
        along = np.sort(centres @ axes[0])
        assert np.diff(along) == pytest.approx(4, abs=0.5)


def test_a_zigzag_runs_across_in_one_piece_to_either_side_of_a_line() -> None:
    for image in corruptions.corrupt("zigzag", grey(0.0, 60), 1)[:, 0].numpy():
        _, count = ndimage.label(image > 0, np.ones((3, 3)))
        assert count == 1
        places = np.argwhere(image > 0.6) - 13.5
        assert len(places) > 15
        _, _, axes = np.linalg.svd(places - places.mean(0), full_matrices=False)
        across = (places - places.mean(0)) @ axes[1]
        assert 0.9 < across.std() < 2.2


def canny(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Edges of a smoothed image, pixel by pixel."""
    padded = np.pad(image, 1)
    steep, towards = np.zeros((28, 28)), np.zeros((28, 28))
    for y in range(28):
        for x in range(28):
            window = padded[y : y + 3, x : x + 3]
            right = (window[:, 2] - window[:, 0]) @ [1, 2, 1]
            down = (window[2] - window[0]) @ [1, 2, 1]
            steep[y, x], towards[y, x] = math.hypot(down, right), math.degrees(math.atan2(down, right)) % 180
    around = np.pad(steep, 1)
    ridge = np.zeros((28, 28), dtype=bool)
    for y in range(28):
        for x in range(28):
            sector = int((towards[y, x] + 22.5) // 45) % 4
            dy, dx = ((0, 1), (1, 1), (1, 0), (1, -1))[sector]
            ahead, behind = around[y + 1 + dy, x + 1 + dx], around[y + 1 - dy, x + 1 - dx]
            ridge[y, x] = steep[y, x] >= ahead and steep[y, x] > behind and steep[y, x] >= low
    todo = [tuple(place) for place in np.argwhere(ridge & (steep >= high))]
    found = np.zeros((28, 28), dtype=bool)
    while todo:
        y, x = todo.pop()
        if 0 <= y < 28 and 0 <= x < 28 and ridge[y, x] and not found[y, x]:
            found[y, x] = True
            todo += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return found


def test_edges_are_those_of_a_slow_canny(images: Tensor) -> None:
    some = images[:15]
    found = corruptions.edges(some)[:, 0].bool().numpy()
    smooth = [ndimage.gaussian_filter(image, 1.0, mode="constant") for image in some[:, 0].numpy()]
    wanted = np.stack([canny(image, 0.8, 1.6) for image in smooth])
    # Where two neighbours are equally steep, the last digit decides which is the ridge.
    assert (found != wanted).mean() < 2e-3
    assert 0.05 < found.mean() < 0.3
    assert torch.equal(corruptions.corrupt("Canny edges", some, 5), corruptions.edges(some))


def test_edges_of_a_square_are_its_outline_and_of_grey_none() -> None:
    square = torch.zeros(1, 1, 28, 28)
    square[..., 8:20, 8:20] = 1
    found = corruptions.edges(square)[0, 0].bool().numpy()
    y, x = np.mgrid[:28, :28] - 13.5
    away = np.maximum(abs(y), abs(x))
    assert np.all(abs(away[found] - 6) <= 0.5)
    assert found[14].sum() == found[:, 14].sum() == 2
    # Closed: what lies inside cannot be reached from outside.
    labels, _ = ndimage.label(~found)
    assert labels[14, 14] != labels[0, 0]
    # Constant images have no edge but where black begins around them.
    assert not corruptions.edges(grey(0.7, 1))[..., 4:-4, 4:-4].any()


def test_accuracies_are_those_of_the_images_one_by_one(trained: TrainedModel) -> None:
    dataset = data.load("mnist", test_size=80)
    names, severities = ["fog", "rotation"], [2, 5]
    table = corruptions.accuracies(trained, images=80, names=names, severities=severities, seed=4)
    cases = [(corruptions.CLEAN, 0), *((name, severity) for name in names for severity in severities)]
    assert list(table[["corruption", "severity"]].itertuples(index=False, name=None)) == cases
    assert set(table["images"]) == {80}
    for (name, severity), accuracy in zip(cases, table["accuracy"], strict=True):
        inputs = dataset.test_inputs
        if severity:
            inputs = (corruptions.corrupt(name, inputs, severity, seed=4) * 255).round() / 255
        with torch.no_grad():
            right = [
                int(trained.model(image[None]).argmax()) == int(label)
                for image, label in zip(inputs, dataset.test_labels, strict=True)
            ]
        assert accuracy == pytest.approx(sum(right) / 80)


def test_corrupted_sets_are_made_once_for_all_networks(
    trained: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []
    real = corruptions.corrupt

    def counting(name: str, images: Tensor, severity: int, *, seed: int = 0) -> Tensor:
        made.append((name, severity))
        return real(name, images, severity, seed=seed)

    monkeypatch.setattr(corruptions, "corrupt", counting)
    options = {"names": ["fog", "shear"], "severities": [1, 2]}
    first = corruptions.accuracies(trained, images=70, **options)
    again = corruptions.accuracies(trained, images=70, **options)
    pd.testing.assert_frame_equal(first, again)
    assert sorted(made) == [("fog", 1), ("fog", 2), ("shear", 1), ("shear", 2)]
    corruptions.accuracies(trained, images=60, **options)
    corruptions.accuracies(trained, images=60, seed=1, **options)
    assert len(made) == 12
    # Only one set of clean images is remembered.
    assert len(corruptions._kept) == 8


def test_examples_show_an_image_of_the_digit_and_the_mean_distance() -> None:
    shown = corruptions.examples("mnist", label=7, names=["stripe", "fog"], severities=[1, 4], images=60)
    dataset = data.load("mnist", test_size=60)
    place = dataset.test_labels.tolist().index(7)
    assert len(shown) == 2 * 3
    assert shown.loc[0, "distance"] == 0
    assert torch.tensor(shown.loc[0, "pixels"]).equal(dataset.test_inputs[place, 0])
    fog = corruptions.corrupt("fog", dataset.test_inputs, 4)
    row = shown[(shown["corruption"] == "fog") & (shown["severity"] == 4)].iloc[0]
    away = (fog - dataset.test_inputs).flatten(1).norm(dim=1).mean().item()
    assert row["distance"] == pytest.approx(away, rel=1e-3)
    assert np.abs(np.array(row["pixels"]) - fog[place, 0].numpy()).max() <= 0.5 / 255 + 1e-6


def test_half_of_the_training_images_are_perturbed_and_no_test_image(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = data.load("mnist", train_size=5000)
    monkeypatch.setattr(data, "load", lambda name: clean)
    rotated, other = (corruptions.PERTURBED["mnist + rotation"](seed) for seed in (0, 1))
    changed = (rotated.train_inputs != clean.train_inputs).flatten(1).any(1)
    assert changed.double().mean() == pytest.approx(0.5, abs=1e-3)
    assert torch.equal(rotated.test_inputs, clean.test_inputs)
    assert torch.equal(rotated.train_labels, clean.train_labels)
    assert not torch.equal(changed, (other.train_inputs != clean.train_inputs).flatten(1).any(1))
    for name, make in corruptions.PERTURBED.items():
        assert make(0).name == name
        assert name.removeprefix("mnist + ") in NAMES
    corruptions._half_perturbed.cache_clear()


def test_training_on_noise_helps_under_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, make in corruptions.PERTURBED.items():
        monkeypatch.setitem(data.DATASETS, name, make)
    base = TrainingConfig(train_size=4000, epochs=3, device="cpu")
    models = sweep.train_all(sweep.grid(base, dataset=["mnist", "mnist + Gaussian noise"]), jobs=1)
    options = {"dataset": "mnist", "images": 300, "names": ["Gaussian noise"], "severities": [4, 5]}
    table = sweep.measure(models, corruptions.accuracies, jobs=1, **options)
    noisy = table[table["severity"] > 0].groupby("dataset")["accuracy"].mean()
    assert noisy["mnist + Gaussian noise"] > noisy["mnist"] + 0.05


def measured() -> pd.DataFrame:
    """Two networks, two seeds, three corruptions of two severities: the second is .1 better on fog."""
    rows = [
        (network, seed, name, severity, 0.5 + 0.01 * seed + extra * (name == "fog") + 0.02 * severity)
        for network, extra in (("CE", 0.0), ("CE + fog", 0.1))
        for seed in (0, 1)
        for name, severities in (
            (corruptions.CLEAN, [0]),
            ("fog", [1, 2]),
            ("brightness", [1, 2]),
            ("shear", [1, 2]),
        )
        for severity in severities
    ]
    return pd.DataFrame(rows, columns=["network", "seed", "corruption", "severity", "accuracy"])


def test_means_over_severities_and_over_corruptions() -> None:
    means = corruptions.by_corruption(measured()).set_index(["network", "seed", "corruption"])["accuracy"]
    assert means["CE", 0, corruptions.CLEAN] == pytest.approx(0.5)
    assert means["CE + fog", 1, "fog"] == pytest.approx(0.5 + 0.01 + 0.1 + 0.03)
    assert means["CE + fog", 0, corruptions.MEAN] == pytest.approx(0.5 + 0.1 / 3 + 0.03)
    left = corruptions.all_but(measured(), ["fog", "shear"]).set_index(["network", "seed", "corruption"])[
        "accuracy"
    ]
    assert left["CE + fog", 0, "all but fog"] == pytest.approx(0.53)
    assert left["CE + fog", 1, "all but shear"] == pytest.approx(0.5 + 0.01 + 0.1 / 2 + 0.03)
    assert len(left) == 8
    by_severity = corruptions.by_severity(measured()).set_index(["network", "seed", "severity"])["accuracy"]
    assert by_severity["CE + fog", 0, 2] == pytest.approx(0.5 + 0.1 / 3 + 0.04)


def test_transfer_is_the_gain_on_each_group_of_corruptions() -> None:
    table = corruptions.transfer(measured(), {"CE + fog": "fog"}, "CE")
    gains = table[table["seed"] == 1].set_index("tested")["gain"]
    wanted = {
        corruptions.ALL: 0.1 / 3,
        corruptions.OWN: 0.1,
        corruptions.ALIKE: 0.0,
        corruptions.OTHER: 0.0,
        corruptions.OTHERS: 0.0,
    }
    assert gains.to_dict() == pytest.approx(wanted, abs=1e-9)
    without = corruptions.transfer(measured(), {}, "CE")
    assert set(without["tested"]) == {corruptions.ALL}
    with pytest.raises(InputError, match=r"^trained_on: 'CE \+ fog' was trained on 'zigzag', which is not among"):
        corruptions.transfer(measured(), {"CE + fog": "zigzag"}, "CE")
    with pytest.raises(InputError, match="unknown network 'plain'"):
        corruptions.transfer(measured(), {}, "plain")
    one = measured()
    with pytest.raises(InputError, match=r"^network: 'CE' is needed for every seed, not for \[1\]$"):
        corruptions.transfer(one[~((one["network"] == "CE") & (one["seed"] == 1))], {}, "CE")


def test_better_and_worse_corruptions_are_those_whose_interval_excludes_zero() -> None:
    rows = [
        ("fog", "β", 0.1, 0.2),
        ("shear", "β", -0.1, 0.2),
        ("scale", "β", -0.3, -0.1),
        ("zigzag", "β", -0.2, -0.1),
        (corruptions.MEAN, "β", 0.3, 0.4),
        (corruptions.CLEAN, "β", -0.3, -0.1),
    ]
    differences = pd.DataFrame(rows, columns=["corruption", "network", "low", "high"])
    assert corruptions.changed(differences).iloc[0].tolist() == ["β", 1, 2, 4]


def test_every_corruption_has_one_kind() -> None:
    assert sum(map(len, corruptions.KINDS.values())) == len(NAMES)
    assert corruptions.kind_of("glass blur") == "blur"
    with pytest.raises(InputError, match="unknown corruption 'glas blur'"):
        corruptions.kind_of("glas blur")


@pytest.mark.parametrize("narrow", [False, True])
def test_the_heat_map_has_every_difference_in_points_and_a_frame_for_what_was_trained_on(narrow: bool) -> None:
    means = corruptions.by_corruption(measured())
    level = stats.over_seeds(means, "accuracy", ["corruption", "network"])
    differences = stats.paired_differences(means, "accuracy", ["corruption"], "network", "CE")
    figure = method_plots.corruption_differences(level, differences, trained_on={"CE + fog": "fog"}, narrow=narrow)
    axes = figure.axes[0]
    texts = {(round(text.get_position()[0]), round(text.get_position()[1])): text for text in axes.texts}
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == [corruptions.CLEAN, "fog", "brightness", "shear", corruptions.MEAN]
    assert [texts[0, row].get_text() for row in range(5)] == ["50", "54", "54", "54", "54"]
    assert [texts[1, row].get_text() for row in range(5)] == ["0", "+10", "0", "0", "+3"]
    assert min(text.get_fontsize() for text in axes.texts) >= 7.5
    (frame,) = (patch for patch in axes.patches if isinstance(patch, mpl.patches.Rectangle))
    assert round(frame.get_y() + 0.46) == rows.index("fog")


@pytest.mark.parametrize("narrow", [False, True])
def test_the_sheet_shows_every_picture_in_its_place(narrow: bool) -> None:
    names = ["fog", "stripe", "scale", "shear"]
    shown = corruptions.examples("mnist", label=3, names=names, severities=[1, 5], images=30)
    figure = method_plots.corruption_sheet(shown, narrow=narrow)
    blocks = [names] if narrow else [names[:2], names[2:]]
    for axes, block in zip(figure.axes, blocks, strict=True):
        assert [label.get_text() for label in axes.get_yticklabels()] == block
        sheet = np.asarray(axes.images[0].get_array())
        for row, name in enumerate(block):
            for column, severity in enumerate((0, 1, 5)):
                of = shown[(shown["corruption"] == name) & (shown["severity"] == severity)]["pixels"].item()
                part = sheet[30 * row : 30 * row + 28, 30 * column : 30 * column + 28]
                assert np.abs(part - np.array(of)).max() < 1e-6


def test_lines_and_dots_are_drawn_where_the_numbers_are() -> None:
    by_severity = stats.over_seeds(corruptions.by_severity(measured()), "accuracy", ["network", "severity"])
    axes = method_plots.accuracy_by_severity(by_severity).axes[0]
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert drawn["CE + fog"] == pytest.approx(by_severity[by_severity["network"] == "CE + fog"]["mean"].to_numpy())
    gains = stats.over_seeds(
        corruptions.transfer(measured(), {"CE + fog": "fog"}, "CE"), "gain", ["network", "tested"]
    )
    groups = {corruptions.OWN: "trained on", corruptions.OTHER: "other kinds"}
    axes = method_plots.corruption_transfer(gains, groups=groups).axes[0]
    places = {bars.get_label(): float(bars[0].get_xdata()[0]) for bars in axes.containers}
    assert places == pytest.approx({"trained on": 10.0, "other kinds": 0.0}, abs=1e-9)


def test_shares_are_shown_in_percent_with_their_interval() -> None:
    summary = pd.DataFrame(
        [("CE", 0, 0.5, 0.45, 0.55), ("CE", 1, 0.4, np.nan, np.nan)],
        columns=["network", "severity", "mean", "low", "high"],
    )
    table = tables.share_table(summary, "severity", "network")
    assert table.to_numpy().tolist() == [[0, "50.0 (45 to 55)"], [1, "40.0"]]


def test_no_text_of_the_module_claims_numbers_of_the_benchmark() -> None:
    said = " ".join((corruptions.__doc__ or "").split())
    assert re.search(r"the functions and severities are ours, and no number here is one of that benchmark", said)
    assert "MNIST-C itself" in Path("notebooks/beyond_corruptions.ipynb").read_text()
