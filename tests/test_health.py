import math
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from isorepro import attacks, data, health, tables
from isorepro.attacks import UNBOUNDED
from isorepro.errors import InputError
from isorepro.health import Check, Evaluation
from isorepro.models import Stack
from isorepro.training import TrainedModel, TrainingConfig

STEPS = 10
GENERATOR = torch.Generator().manual_seed(0)
WEIGHTS = torch.rand(64, generator=GENERATOR) - 0.5
# Images at many distances from the boundary, where one step of length ε changes the margin by about 16 ε.
IMAGES = (0.5 + 0.3 * torch.empty(60, 1, 8, 8).uniform_(-1, 1, generator=GENERATOR)).contiguous()


class Linear(nn.Module):
    """Two classes, told apart by the sign of a weighted sum of the pixels: PGD is exact and equal to FGSM."""

    def __init__(self, weights: Tensor = WEIGHTS, scale: float = 1.0) -> None:
        super().__init__()
        self.weights, self.scale = nn.Parameter(weights.clone()), scale

    def margin(self, images: Tensor) -> Tensor:
        return self.scale * (images.flatten(1) - 0.5) @ self.weights.to(images.dtype)

    def forward(self, images: Tensor) -> Tensor:
        margin = self.margin(images)
        return torch.stack([-margin / 2, margin / 2], dim=1)


class Constant(nn.Module):
    """The same answer to everything."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2] * 0 + torch.tensor([0.0, 1.0], dtype=images.dtype)


class SureOfOne(Linear):
    """A linear network whose margin jumps by ``sure`` for the images whose first pixel is above 0.95."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.sure = sure

    def margin(self, images: Tensor) -> Tensor:
        margin = super().margin(images)
        # The sign is that of the image, whatever the attack does: the margin of this image grows, and stays.
        return margin + self.sure * (images.flatten(1)[:, 0] > 0.95)


class Rounding(Linear):
    """Gradients are zero everywhere, since pixels are rounded to eighths before they are summed."""

    def margin(self, images: Tensor) -> Tensor:
        return super().margin((8 * images).round() / 8)


class _Elsewhere(torch.autograd.Function):
    """The identity whose gradient points elsewhere: at right angles to the true one."""

    @staticmethod
    def forward(context: object, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        turned = torch.stack([flat[:, 1::2], -flat[:, ::2]], dim=2).flatten(1)
        return turned.sign().reshape(gradient.shape)


class Misleading(Linear):
    """A linear network with gradients that are not zero but useless."""

    def margin(self, images: Tensor) -> Tensor:
        return super().margin(_Elsewhere.apply(images))


class AfraidOfNoise(Linear):
    """A linear network that answers wrongly where neighbouring pixels differ from those of smooth images."""

    def margin(self, images: Tensor) -> Tensor:
        margin = super().margin(images)
        rough = images.flatten(1).diff(dim=1).abs().amax(1) > 0.01
        return torch.where(rough, -margin, margin)


def labels_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


def failed(found: list[Check]) -> set[str]:
    return {check.name for check in found if not check.passed}


def check(model: nn.Module, evaluation: Evaluation, images: Tensor = IMAGES, **options: object) -> list[Check]:
    given = {"epsilon": 0.05, "epsilons": [0.02, 0.1], "source": Linear(), "queries": 20} | options
    return health.checks(model, images, labels_of(model, images), evaluation, **given)


CORRECTED = health.corrected(STEPS)
ZERO = {"no zero gradients", "no zero gradients, float64", "no zero gradients, logits scaled"}


def test_a_healthy_evaluation_of_a_plain_network_passes_every_check() -> None:
    found = check(Linear(), CORRECTED)
    assert len(found) == len({one.name for one in found}) == len(health.SOURCES)
    assert failed(found) == set()
    measured = {one.name: one.measured for one in found}
    assert measured["gradients at the moved point"] <= 1
    assert measured["chance at ε = 0.5"] == 0


def test_a_healthy_evaluation_of_a_trained_network_passes_every_check(trained: TrainedModel) -> None:
    dataset = data.load("mnist", test_size=150)
    images, labels = dataset.test_inputs, dataset.test_labels
    found = health.checks(
        trained.model, images, labels, health.corrected(20), epsilon=0.06, epsilons=[0.1], queries=60
    )
    assert failed(found) == set()


def test_a_constant_network_has_no_gradients_and_is_else_in_order() -> None:
    assert failed(check(Constant(), CORRECTED)) == ZERO


@pytest.mark.parametrize(
    ("sure", "expected"),
    [
        (200.0, {"no zero gradients"}),  # e⁻²⁰⁰ is zero in float32 and not in float64
        (2000.0, {"no zero gradients", "no zero gradients, float64"}),  # zero in both until logits are scaled
    ],
)
def test_a_masked_gradient_shows_where_it_hides(sure: float, expected: set[str]) -> None:
    images = IMAGES.clone()
    images[:, 0, 0, 0].clamp_(max=0.4)
    images[7, 0, 0, 0] = 1.0
    # Small radii, so that its first pixel stays above the threshold: one image of sixty stands, as one may.
    assert failed(check(SureOfOne(sure), CORRECTED, images, epsilons=[0.02, 0.04], epsilon=0.04)) == expected


def test_gradients_that_are_zero_everywhere_trip_all_that_follows_from_it() -> None:
    # The attack stays at its random start: Square and images made for another network are better.
    expected = {*ZERO, "no transfer is better", "chance at ε = 0.5", "no black box is better"}
    assert failed(check(Rounding(), CORRECTED, queries=400)) == expected


def test_useless_gradients_are_told_by_images_made_for_another_network() -> None:
    found = check(Misleading(), CORRECTED, queries=0, epsilons=[0.02])
    assert failed(found) == {"no transfer is better"}


def test_a_network_that_fears_noise_alone_is_told_by_the_black_box() -> None:
    weights = torch.full((64,), 0.5)
    smooth = torch.linspace(0.4, 0.6, 60).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    from_the_image = replace(
        CORRECTED,
        iterated=lambda model, images, labels, *, epsilon, steps: attacks.pgd(
            model, images, labels, epsilon=epsilon, steps=steps, random_start=False
        ),
    )
    found = check(AfraidOfNoise(weights), from_the_image, smooth, source=None, epsilons=[0.02])
    assert failed(found) == {"no black box is better"}


def from_one_gradient(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
    gradient, _ = attacks.input_gradient(attacks.cross_entropy, model, images, labels)
    point = images
    for _ in range(steps):
        point = torch.clamp(point + 2.5 * epsilon / steps * gradient.sign(), images - epsilon, images + epsilon)
    return point.clamp(0, 1)


def beyond_the_ball(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
    step = 2.5 * epsilon / steps
    return attacks.pgd(model, images, labels, epsilon=1.2 * epsilon, steps=steps, step_size=step)


def beyond_the_range(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
    return attacks.pgd(model, images, labels, epsilon=epsilon, steps=steps, bounds=UNBOUNDED)


def not_converged(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
    step = 0.9 * epsilon / STEPS
    return attacks.pgd(model, images, labels, epsilon=epsilon, steps=steps, step_size=step, random_start=False)


def gives_up(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
    # At radii above 0.08 and below 0.5 it does no more than at 0.02.
    radius = 0.02 if 0.08 < epsilon < 0.5 else epsilon
    return attacks.pgd(model, images, labels, epsilon=radius, steps=steps, step_size=2.5 * epsilon / steps)


def takes_no_gradient(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
    with torch.no_grad():
        return attacks.fgsm(Linear(), images, labels, epsilon=epsilon)


BROKEN: dict[str, tuple[Callable[..., Tensor], set[str]]] = {
    "stuck": (from_one_gradient, {"gradients at the moved point"}),
    "no gradient": (takes_no_gradient, {"gradients at the moved point"}),
    "outside the ball": (beyond_the_ball, {"inside the ball"}),
    "outside the range": (beyond_the_range, {"inside the range"}),
    # It reaches nine tenths of the ball: one step and images made for another network reach all of it.
    "not converged": (
        not_converged,
        {"twice the steps change nothing", "PGD at most FGSM", "no transfer is better"},
    ),
    "gives up": (gives_up, {"falls as ε grows", "PGD at most FGSM", "no transfer is better"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_attack_trips_its_check_and_what_follows_from_it(name: str) -> None:
    iterated, expected = BROKEN[name]
    # Some images at the edge of the range, so that a step can leave it.
    images = IMAGES.clone()
    images[:30] = (images[:30] - 0.5) * 1.6 + 0.5
    evaluation = replace(CORRECTED, iterated=iterated)
    assert failed(check(Linear(), evaluation, images.clamp(0, 1), epsilon=0.03, epsilons=[0.07, 0.1])) == expected


def test_the_released_attacks_are_found_to_be_what_they_are(trained: TrainedModel) -> None:
    dataset = data.load("mnist", test_size=100)
    evaluation = health.released(trained.config)
    found = health.checks(
        trained.model,
        dataset.test_inputs,
        dataset.test_labels,
        evaluation,
        epsilon=0.03,
        epsilons=[0.1],
        queries=20,
    )
    measured = {one.name: one.measured for one in found}
    assert {"gradients at the moved point", "inside the ball"} <= failed(found)
    # Ten steps of 0.03 from the one gradient, and 0.5 at most, whatever the radius.
    assert measured["gradients at the moved point"] == pytest.approx(10, rel=1e-4)
    assert measured["inside the ball"] == pytest.approx(0.4, abs=1e-6)


def test_zero_gradients_are_counted_as_a_loop_counts_them(trained: TrainedModel) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[1].bias.fill_(-0.35)
    labels = labels_of(model, IMAGES)
    dead = 0
    for image, label in zip(IMAGES, labels, strict=True):
        point = image[None].clone().requires_grad_()
        nn.functional.cross_entropy(model(point), label[None]).backward()
        dead += int(point.grad.abs().sum() == 0)
    assert 0 < dead < len(IMAGES)
    found = health.zero_gradients(model, IMAGES, labels, replace(CORRECTED, batch_size=7))
    assert found["no zero gradients"] == pytest.approx(dead / len(IMAGES))


@pytest.mark.parametrize("measured", [math.nan, math.inf, 0.11])
def test_what_cannot_be_measured_does_not_pass(measured: float) -> None:
    assert not Check("", measured, 0.1, "").passed
    assert Check("", 0.1, 0.1, "").passed


def test_checks_of_a_stack_are_those_of_its_finest_level() -> None:
    torch.manual_seed(0)
    stack = Stack(784, (2, 10), width=20, depth=1)
    config = TrainingConfig(
        hierarchy=[[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]], beta=0.1, K=10.0, width=20, depth=1, device="cpu"
    )
    options = {"epsilon": 0.1, "epsilons": [0.1], "images": 60, "pgd_steps": 3, "queries": 10}
    found = health.attack_checks(TrainedModel(config, stack, pd.DataFrame(), 0.0), None, **options)
    assert set(found["protocol"]) == {"as released", "corrected"}
    dataset = data.load("mnist", test_size=60)
    expected = health.checks(
        stack,
        dataset.test_inputs,
        dataset.test_labels,
        health.corrected(3),
        epsilon=0.1,
        epsilons=[0.1],
        queries=10,
    )
    own = found[found["protocol"] == "corrected"].set_index("check")["measured"]
    assert own.to_dict() == pytest.approx({one.name: one.measured for one in expected})


def test_points_in_space_are_checked_without_bounds() -> None:
    config = TrainingConfig(dataset="linked_rings", width=10, depth=1, device="cpu")
    model = TrainedModel(config, Stack(3, (2,), width=10, depth=1), pd.DataFrame(), 0.0)
    found = health.attack_checks(model, None, epsilon=0.1, epsilons=[0.3], images=50, pgd_steps=5)
    assert set(found["protocol"]) == {"corrected"}
    assert set(found["check"]) == set(health.SOURCES) - {
        "chance at ε = 0.5",
        "inside the range",
        "no transfer is better",
    }
    assert found["passed"].all()


def seeds_table() -> pd.DataFrame:
    rows = []
    for seed in range(3):
        for network, beta, clean, accuracies in (
            ("CE", 0.0, 0.97, (0.30, 0.20, 0.12, 0.10)),
            ("β = 0.1", 0.1, 0.96, (0.60 + 0.01 * seed, 0.25, 0.13, 0.11)),
            ("β = 100", 100.0, 0.88, (0.80, 0.20, 0.10, 0.20)),
        ):
            rows.append((seed, network, beta, "corrected", "no attack", 0.0, clean))
            names = [*health.STAGES, ("corrected", "worst case")]
            for (protocol, attack), accuracy in zip(names, (*accuracies, accuracies[-1] - 0.02), strict=True):
                rows.append((seed, network, beta, protocol, attack, 0.0774, accuracy))
    columns = ["seed", "network", "beta", "protocol", "attack", "epsilon", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def test_key_numbers_are_those_worked_out_by_hand() -> None:
    numbers = health.key_numbers(seeds_table(), 0.08)
    assert numbers["epsilon"] == 0.0774
    assert numbers["released_network"] == "β = 100"
    assert numbers["released_gain"] == pytest.approx(0.5)
    assert numbers["worst_network"] == "β = 100"
    assert (numbers["worst_ce"], numbers["worst_best"], numbers["worst_clean"]) == pytest.approx(
        (0.08, 0.18, 0.88)
    )
    assert numbers["pgd_network"] == "β = 0.1"
    assert numbers["pgd_missed"] == pytest.approx(0.04)
    with pytest.raises(InputError, match="betas: must hold 0 and at least one weight above 0"):
        health.key_numbers(seeds_table().query("beta == 0"), 0.08)


def test_the_gap_takes_a_weak_and_the_strongest_attack_and_the_nearest_weight() -> None:
    raw = seeds_table().assign(form="raw")
    # Of the normalised form there is a weight that is nearer.
    table = pd.concat([raw, raw[raw["beta"] == 0.1].assign(form="normalised", beta=0.5)])
    found = health.gap(table, 0.5)
    assert set(found["beta"]) == {0.0, 0.1}
    assert set(health.gap(table, 5.0)["beta"]) == {0.0, 100.0}
    kinds = set(found[["protocol", "attack"]].itertuples(index=False, name=None))
    assert kinds == {("as released", "FGSM"), ("corrected", "worst case")}
    assert not ((found["form"] != "raw") & (found["beta"] > 0)).any()


def test_stages_go_from_the_released_attack_to_the_ensemble() -> None:
    staged = health.stages(seeds_table(), 0.08)
    assert list(staged["stage"].drop_duplicates()) == list(health.STAGES.values())
    assert len(staged) == 4 * 9


def test_the_table_of_checks_tells_passed_failed_and_worst() -> None:
    rows = [
        (protocol, name, measured, 0.01, "why", measured <= 0.01, 100)
        for protocol, worst in (("as released", 0.2), ("corrected", 0.01))
        for name, measured in (("PGD at most FGSM", worst), ("PGD at most FGSM", 0.0), ("inside the ball", worst))
    ]
    columns = ["protocol", "check", "measured", "threshold", "source", "passed", "images"]
    counted = health.summary(pd.DataFrame(rows, columns=columns))
    assert counted[["networks", "passed"]].to_numpy().tolist() == [[2, 1], [1, 0], [2, 2], [1, 1]]
    shown = tables.check_table(counted)
    assert shown["as released"].tolist() == ["✗ 1 of 2 (20.0 points)", "✗ 0 of 1 (0.20)"]
    assert shown["corrected"].tolist() == ["✓ 2 of 2", "✓ 1 of 1"]
    assert shown["allowed"].tolist() == ["≤ 1.0 points", "≤ 0.01"]
    assert tables.check_counts(counted) == {"checks": 2, "failed_released": 2, "failed_corrected": 0}
    assert tables.check_table(counted.assign(threshold=0.0))["allowed"].tolist() == ["none", "none"]
