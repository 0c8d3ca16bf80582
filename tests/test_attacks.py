import itertools
from collections.abc import Callable
from functools import partial

import foolbox
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isorepro import attacks, hierarchy
from isorepro.errors import InputError
from isorepro.losses import isometry, pairwise_distances
from isorepro.models import Stack
from isorepro.training import TrainedModel

Images = tuple[Tensor, Tensor]
EPSILONS = [0.01, 0.03, 0.08, 0.2, 0.5]
RELEASED = {"beta": 0.1, "K": 10.0, "form": "raw"}


def foolbox_model(trained: TrainedModel) -> foolbox.PyTorchModel:
    return foolbox.PyTorchModel(trained.model, bounds=(0, 1), device="cpu")


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model(images).argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_fgsm_equals_foolbox(trained: TrainedModel, images_and_labels: Images, epsilon: float) -> None:
    images, labels = images_and_labels
    expected, _, _ = foolbox.attacks.FGSM(random_start=False)(
        foolbox_model(trained), images, labels, epsilons=epsilon
    )
    found = attacks.fgsm(trained.model, images, labels, epsilon=epsilon)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.03, 0.06, 0.1])
def test_pgd_is_within_half_a_point_of_foolbox(
    trained: TrainedModel, images_and_labels: Images, epsilon: float
) -> None:
    images, labels = images_and_labels
    torch.manual_seed(0)
    attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / 40, steps=40)
    _, _, fooled = attack(foolbox_model(trained), images, labels, epsilons=epsilon)
    expected = 1 - fooled.double().mean().item()
    found = accuracy(trained.model, attacks.pgd(trained.model, images, labels, epsilon=epsilon), labels)
    assert 0.02 < expected < 0.98
    assert found == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("epsilon", [0.3, 0.8, 1.5])
def test_l2_pgd_is_within_half_a_point_of_foolbox(
    trained: TrainedModel, images_and_labels: Images, epsilon: float
) -> None:
    images, labels = images_and_labels
    torch.manual_seed(0)
    attack = foolbox.attacks.L2PGD(rel_stepsize=2.5 / 40, steps=40)
    _, _, fooled = attack(foolbox_model(trained), images, labels, epsilons=epsilon)
    expected = 1 - fooled.double().mean().item()
    found = accuracy(trained.model, attacks.l2_pgd(trained.model, images, labels, epsilon=epsilon), labels)
    assert 0.02 < expected < 0.98
    assert found == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0, 100.0])
def test_l2_pgd_stays_in_its_ball_and_in_the_pixels(
    trained: TrainedModel, images_and_labels: Images, epsilon: float
) -> None:
    images, labels = images_and_labels
    found = attacks.l2_pgd(trained.model, images, labels, epsilon=epsilon, steps=5)
    assert (found - images).flatten(1).norm(dim=1).max() <= epsilon * (1 + 1e-5)
    assert found.min() >= 0
    assert found.max() <= 1
    if epsilon == 0:
        assert torch.equal(found, images)


def test_l2_pgd_on_a_linear_model_goes_along_its_weights() -> None:
    torch.manual_seed(0)
    model, images = nn.Linear(6, 2), torch.full((5, 6), 0.5)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([10.0, 0.0]))  # never fooled
    labels = torch.zeros(5, dtype=torch.int64)
    found = attacks.l2_pgd(model, images, labels, epsilon=0.2, steps=400, step_size=0.02)
    direction = (model.weight[1] - model.weight[0]).detach()
    torch.testing.assert_close(
        found - images, 0.2 * (direction / direction.norm()).expand(5, 6), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1.0}, "epsilon: must be at least 0"),
        ({"epsilon": 1.0, "steps": 0}, "l2_pgd: steps must be at least 1, not 0"),
        ({"epsilon": 1.0, "step_size": 0.0}, "l2_pgd: step_size must be above 0"),
    ],
)
def test_an_impossible_l2_pgd_is_refused(
    trained: TrainedModel, images_and_labels: Images, options: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        attacks.l2_pgd(trained.model, *images_and_labels, **options)


def test_pgd_takes_its_gradients_at_the_moved_point(trained: TrainedModel, images_and_labels: Images) -> None:
    images, labels = images_and_labels[0][:50], images_and_labels[1][:50]
    seen: list[Tensor] = []

    def objective(model: nn.Module, points: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(points.detach().clone())
        value, _logits = attacks.cross_entropy(model, points, targets)
        return value, nn.functional.one_hot(targets, 10).float()  # never fooled, so that all are carried along

    attacks.pgd(trained.model, images, labels, epsilon=0.1, steps=4, objective=objective)
    assert len(seen) == 4
    assert all((a - b).abs().mean() > 1e-3 for a, b in itertools.pairwise(seen))


def test_pgd_without_random_start_equals_its_steps_written_out(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    images, labels = images_and_labels
    epsilon, steps = 0.02, 6
    moved = images.clone()
    fooled = torch.zeros(len(images), dtype=torch.bool)
    for _ in range(steps):
        moved.requires_grad_()
        logits = trained.model(moved)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), moved)
        fooled |= logits.argmax(1) != labels
        stepped = (moved + 2.5 * epsilon / steps * gradient.sign()).clamp(images - epsilon, images + epsilon)
        moved = torch.where(fooled[:, None, None, None], moved, stepped.clamp(0, 1)).detach()
    found = attacks.pgd(trained.model, images, labels, epsilon=epsilon, steps=steps, random_start=False)
    # Where a gradient is nearly zero its sign depends on rounding.
    assert ((found - moved).abs() > 1e-6).double().mean() < 1e-3


@pytest.mark.parametrize(("layer", "target"), [(0, 1), (-1, 1), (1, 0)])
def test_pgd_on_local_isometry_equals_its_steps_on_single_images_written_out(
    trained: TrainedModel, images_and_labels: Images, layer: int, target: int
) -> None:
    images, labels = images_and_labels[0][:30], images_and_labels[1][:30]
    epsilon, steps = 0.1, 4
    options = {"beta": 0.3, "K": 2.0, "layer": layer, "target": target}
    found = attacks.local_isometry_pgd(
        trained.model, images, labels, epsilon=epsilon, steps=steps, seed=3, **options
    )

    def h(points: Tensor) -> Tensor:
        # The network's four hidden layers come after its input layer.
        return trained.model(points) if layer == -1 else trained.model.activations(points)[4 - layer]

    drawn = torch.empty(images.shape).uniform_(-epsilon, epsilon, generator=torch.Generator().manual_seed(3))
    differ = []
    for image, label, offset, reached in zip(images.split(1), labels.split(1), drawn, found, strict=True):
        point = (image + offset).clamp(0, 1)
        for _ in range(steps):
            moving = point.clone().requires_grad_()
            lengths = (h(moving) - h(image)).norm(), (moving - image).norm()
            loss = nn.functional.cross_entropy(trained.model(moving), label)
            (loss + 0.3 * (2.0 * lengths[0] - target * lengths[1]) ** 2).backward()
            point = point + 2.5 * epsilon / steps * moving.grad.sign()
            point = point.clamp(image - epsilon, image + epsilon).clamp(0, 1)
        differ.append(((point - reached).abs() > 1e-6).double().mean().item())
    # Where a gradient is nearly zero its sign depends on rounding.
    assert sum(differ) / len(differ) < 1e-3


def test_pgd_on_local_isometry_is_pgd_without_the_penalty_and_stretches_with_it_alone(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    target, model = (trained.model, *images_and_labels), trained.model
    attack = partial(attacks.local_isometry_pgd, *target, epsilon=0.1, K=3.0, steps=10)
    plain = attacks.pgd(*target, epsilon=0.1, steps=10, stop_when_fooled=False)
    torch.testing.assert_close(attack(beta=0.0), plain, rtol=0, atol=1e-6)
    images, labels = images_and_labels
    stretched = attack(beta=1e6, target=0)

    def change(points: Tensor) -> float:
        return (model.representation(points) - model.representation(images)).norm(dim=1).mean().item()

    assert change(stretched) > change(plain)
    assert accuracy(model, stretched, labels) < accuracy(model, images, labels) - 0.3
    for found in (stretched, attack(beta=0.1, layer=-1)):
        assert (found - images).abs().max() <= 0.1 + 1e-6
        assert 0 <= found.min() <= found.max() <= 1
    with pytest.raises(InputError, match="needs a Stack's hidden layers, not Linear"):
        attacks.local_isometry_pgd(nn.Linear(4, 2), images, labels, epsilon=0.1, beta=1.0, K=1.0)


def test_more_starts_fool_no_fewer(trained: TrainedModel, images_and_labels: Images) -> None:
    images, labels = images_and_labels
    rates = [
        accuracy(
            trained.model, attacks.pgd(trained.model, images, labels, epsilon=0.05, steps=5, restarts=n), labels
        )
        for n in (1, 4)
    ]
    assert rates[1] <= rates[0]


@settings(max_examples=20, deadline=None)
@given(epsilon=st.floats(0, 1.5), seed=st.integers(0, 100))
def test_attacks_stay_in_the_ball_and_in_range(
    trained: TrainedModel, images_and_labels: Images, epsilon: float, seed: int
) -> None:
    images, labels = images_and_labels[0][:40], images_and_labels[1][:40]
    target = trained.model, images, labels
    results = {
        "fgsm": (attacks.fgsm(*target, epsilon=epsilon), epsilon),
        "pgd": (attacks.pgd(*target, epsilon=epsilon, steps=3, restarts=2, seed=seed), epsilon),
        "released fgsm": (attacks.released_fgsm(*target, epsilon=epsilon, **RELEASED), epsilon),
        "released pgd": (attacks.released_pgd(*target, epsilon=epsilon, **RELEASED), min(10 * epsilon, 0.5)),
        "released pgd 2022-09": (attacks.released_pgd(*target, epsilon=epsilon, ball=None, **RELEASED), epsilon),
    }
    for name, (attacked, radius) in results.items():
        assert attacked.shape == images.shape, name
        assert attacked.min() >= 0, name
        assert attacked.max() <= 1, name
        assert (attacked - images).abs().max() <= radius + 1e-6, name


@pytest.mark.parametrize("epsilon", [0.01, 0.04, 0.08, 0.5])
@pytest.mark.parametrize("ball", [0.5, None])
def test_released_pgd_is_one_fgsm_step(
    trained: TrainedModel, images_and_labels: Images, epsilon: float, ball: float | None
) -> None:
    images, labels = images_and_labels[0][:100], images_and_labels[1][:100]
    radius = epsilon if ball is None else min(10 * epsilon, ball)
    stepped = attacks.released_fgsm(trained.model, images, labels, epsilon=radius, **RELEASED)
    found = attacks.released_pgd(trained.model, images, labels, epsilon=epsilon, ball=ball, **RELEASED)
    inside = (stepped > 0) & (stepped < 1)
    assert inside.any()
    torch.testing.assert_close(found[inside], stepped[inside], rtol=0, atol=1e-6)


def test_the_released_objective_is_the_training_loss_with_the_clean_distances(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    clean, labels = images_and_labels[0][:100], images_and_labels[1][:100]
    moved = (clean + 0.05).clamp(0, 1)
    value, _ = attacks.released_objective(clean, **RELEASED)(trained.model, moved, labels)
    penalty = isometry(
        trained.model.representation(moved), pairwise_distances(clean), labels, beta=0.1, K=10.0, form="raw"
    )
    expected = nn.functional.cross_entropy(trained.model(moved), labels) + penalty
    torch.testing.assert_close(value, expected)
    assert penalty > 0.01


def test_without_the_term_released_fgsm_is_fgsm(trained: TrainedModel, images_and_labels: Images) -> None:
    images, labels = images_and_labels
    ours = attacks.fgsm(trained.model, images, labels, epsilon=0.1)
    released = attacks.released_fgsm(trained.model, images, labels, epsilon=0.1, beta=0.0, K=1.0, form="raw")
    assert ((ours - released).abs() > 1e-6).double().mean() < 1e-3


def test_several_radii_for_one_gradient_equal_one_at_a_time(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    images, labels = images_and_labels[0][:100], images_and_labels[1][:100]
    for attack in (
        attacks.fgsm,
        partial(attacks.released_fgsm, **RELEASED),
        partial(attacks.released_pgd, **RELEASED),
        partial(attacks.released_pgd, **RELEASED, ball=None),
    ):
        together = attack(trained.model, images, labels, epsilon=torch.tensor(EPSILONS))
        for row, epsilon in zip(together, EPSILONS, strict=True):
            assert torch.equal(row, attack(trained.model, images, labels, epsilon=epsilon))


def test_accuracy_curve_equals_attacking_each_batch_and_radius(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    images, labels = images_and_labels[0][:250], images_and_labels[1][:250]
    attack = partial(attacks.released_fgsm, **RELEASED)
    curve = attacks.accuracy_curve(attack, trained.model, images, labels, EPSILONS)
    for row, epsilon in zip(curve, EPSILONS, strict=True):
        parts = [
            trained.model(attack(trained.model, x, y, epsilon=epsilon)).argmax(1) == y
            for x, y in zip(images.split(100), labels.split(100), strict=True)
        ]
        assert torch.equal(row, torch.cat(parts))


def test_nested_curve_falls_and_is_no_higher_than_separate_attacks(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    images, labels = images_and_labels
    attack = partial(attacks.pgd, steps=20)
    curve = attacks.nested_accuracy_curve(attack, trained.model, images, labels, EPSILONS)
    clean = trained.model(images).argmax(1) == labels
    assert not (curve[0] & ~clean).any()
    assert not (curve[1:] & ~curve[:-1]).any()
    for row, epsilon in zip(curve, EPSILONS, strict=True):
        separate = accuracy(trained.model, attack(trained.model, images, labels, epsilon=epsilon), labels)
        assert row.double().mean().item() <= separate + 0.005


def test_nested_curve_attacks_no_fooled_image_again(trained: TrainedModel, images_and_labels: Images) -> None:
    images, labels = images_and_labels
    attacked: list[int] = []

    def counted(model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float) -> Tensor:
        attacked.append(len(x))
        return attacks.fgsm(model, x, y, epsilon=epsilon)

    curve = attacks.nested_accuracy_curve(counted, trained.model, images, labels, EPSILONS)
    clean = int((trained.model(images).argmax(1) == labels).sum())
    standing = [clean, *curve.sum(1).tolist()]
    assert attacked == [count for count in standing[: len(EPSILONS)] if count]


def test_the_pgd_curve_equals_a_slow_loop_over_single_images(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    images, labels = images_and_labels[0][:80], images_and_labels[1][:80]
    radii = [0.01, 0.03, 0.05, 0.07, 0.1, 0.3]
    curve = attacks.pgd_curve(trained.model, images, labels, radii, steps=8)
    expected = torch.zeros_like(curve)
    # Random starts are drawn for the images still standing, in their order.
    left = [place for place in range(80) if trained.model(images[place, None]).argmax() == labels[place]]
    ends: dict[int, Tensor] = {}
    attacked, last_tries = len(left), 0
    for row, epsilon in enumerate(radii):
        for steps, warm in ((2, True), (2, False), (8, False)) if row else ((8, False),):
            if row and steps == 8:
                if not 0 < len(left) <= attacked / 10:
                    continue
                last_tries += 1
            generator, standing = torch.Generator().manual_seed(0), []
            noise = torch.empty(len(left), *images.shape[1:]).uniform_(-epsilon, epsilon, generator=generator)
            for place, offset in zip(left, noise, strict=True):
                image = images[place]
                point = image + offset
                if warm:
                    point = image + (ends[place] - image) * (epsilon / radii[row - 1])
                ends[place], fooled = climbed(trained.model, image, labels[place], point, epsilon, steps)
                if not fooled:
                    standing.append(place)
            left = standing
        expected[row, left] = True
    assert 0.1 < expected.double().mean() < 0.9
    assert last_tries
    assert torch.equal(curve, expected)


def climbed(
    model: nn.Module, image: Tensor, label: Tensor, point: Tensor, epsilon: float, steps: int
) -> tuple[Tensor, bool]:
    """Projected gradient ascent on one image: where it ends, and whether it fooled the model on the way."""
    point = point.clamp(image - epsilon, image + epsilon).clamp(0, 1)
    for _ in range(steps):
        moving = point.clone().requires_grad_()
        logits = model(moving[None])
        if logits.argmax() != label:
            return point, True
        nn.functional.cross_entropy(logits, label[None]).backward()
        point = point + 2.5 * epsilon / steps * moving.grad.sign()
        point = point.clamp(image - epsilon, image + epsilon).clamp(0, 1)
    return point, bool(model(point[None]).argmax() != label)


def test_the_pgd_curve_is_no_higher_than_all_steps_at_every_radius(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    radii = [0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2]
    target = trained.model, *images_and_labels
    curve = attacks.pgd_curve(*target, radii)
    assert not (curve[1:] & ~curve[:-1]).any()
    assert not (curve[0] & ~attacks.correct_predictions(*target)).any()
    for row, epsilon in zip(curve, radii, strict=True):
        moved = attacks.pgd(*target, epsilon=epsilon)
        assert row.double().mean().item() <= accuracy(trained.model, moved, images_and_labels[1]) + 0.0025


def test_the_pgd_curve_spends_less_than_half_of_the_gradients(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    images, labels = images_and_labels
    spent: list[int] = []

    def counting(model: nn.Module, points: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        spent.append(len(points))
        return attacks.cross_entropy(model, points, targets)

    def gradients(curve: Callable[[], Tensor]) -> int:
        spent.clear()
        curve()
        return sum(spent)

    radii, target = [0.01, 0.02, 0.03, 0.05, 0.08], (trained.model, images, labels)
    few = gradients(lambda: attacks.pgd_curve(*target, radii, objective=counting))
    attack = partial(attacks.pgd, objective=counting, stop_when_fooled=False)
    assert few < 0.5 * gradients(lambda: torch.stack([attack(*target, epsilon=radius) for radius in radii]))
    nested = partial(attacks.pgd, objective=counting)
    assert few < gradients(lambda: attacks.nested_accuracy_curve(nested, *target, radii))


def test_one_radius_or_a_first_one_of_zero_gets_all_steps(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    target = trained.model, images_and_labels[0][:100], images_and_labels[1][:100]
    alone = attacks.pgd_curve(*target, [0.05], steps=6)
    expected = attacks.nested_accuracy_curve(partial(attacks.pgd, steps=6), *target, [0.05])
    assert torch.equal(alone, expected)
    after_zero = attacks.pgd_curve(*target, [0.0, 0.05], steps=6)
    assert torch.equal(after_zero[0], attacks.correct_predictions(*target))
    assert torch.equal(after_zero[1], expected[0])
    # A quarter of one step is one step.
    one = attacks.pgd_curve(*target, [0.02, 0.05], steps=1).double().mean(1)
    assert one[1] < one[0]
    with pytest.raises(InputError, match="must increase strictly"):
        attacks.pgd_curve(*target, [0.1, 0.1])


def test_a_path_starts_at_the_point_given(trained: TrainedModel, images_and_labels: Images) -> None:
    images, labels = images_and_labels[0][:30], images_and_labels[1][:30]
    seen: list[Tensor] = []

    def objective(model: nn.Module, points: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(points.detach().clone())
        return attacks.cross_entropy(model, points, targets)

    attacks.pgd(trained.model, images, labels, epsilon=0.1, steps=1, start=images + 0.3, objective=objective)
    torch.testing.assert_close(seen[0], (images + 0.1).clamp(0, 1))


def test_curves_do_not_depend_on_their_batches(trained: TrainedModel, images_and_labels: Images) -> None:
    images, labels = images_and_labels
    curves = [
        attacks.nested_accuracy_curve(
            partial(attacks.pgd, steps=10, random_start=False, batch_size=size),
            trained.model,
            images,
            labels,
            EPSILONS,
            batch_size=outer,
        )
        for size, outer in ((500, 2000), (64, 150))
    ]
    assert (curves[0] != curves[1]).double().mean() < 0.005


def test_an_empty_set_is_attacked_to_an_empty_set(trained: TrainedModel) -> None:
    none, no_labels = torch.empty(0, 1, 28, 28), torch.empty(0, dtype=torch.int64)
    assert attacks.pgd(trained.model, none, no_labels, epsilon=0.1).shape == none.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -0.1}, "epsilon: must be at least 0, not -0.1"),
        ({"epsilon": float("nan")}, "epsilon: must be at least 0, not nan"),
        ({"epsilon": 0.1, "steps": 0}, "steps and restarts must be at least 1, not 0 and 1"),
        ({"epsilon": 0.1, "step_size": 0.0}, "step_size must be above 0, not 0.0"),
    ],
)
def test_bad_options_are_refused(
    trained: TrainedModel, images_and_labels: Images, options: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        attacks.pgd(trained.model, *images_and_labels, **options)


def test_images_out_of_range_and_radii_that_do_not_grow_are_refused(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    images, labels = images_and_labels
    with pytest.raises(InputError, match=r"images: values must lie in \[0, 1\], not in \[-1, 1\]"):
        attacks.fgsm(trained.model, 2 * images - 1, labels, epsilon=0.1)
    with pytest.raises(InputError, match="must increase strictly"):
        attacks.nested_accuracy_curve(attacks.pgd, trained.model, images, labels, [0.1, 0.1])
    with pytest.raises(InputError, match="need a Stack's representation, not Linear"):
        attacks.released_fgsm(nn.Linear(3, 2), torch.rand(4, 3), torch.zeros(4).long(), epsilon=0.1, **RELEASED)


TREE = [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]]


def points() -> tuple[Stack, Tensor, Tensor]:
    """A network on points of space, most of them outside [0, 1], and labels that it often misses."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Stack(3, (4,), width=20, depth=2)
    generator = torch.Generator().manual_seed(1)
    return model, 2 * torch.randn(60, 3, generator=generator), torch.randint(4, (60,), generator=generator)


def gradient_of_cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    inputs = inputs.clone().requires_grad_()
    log_odds = model(inputs).log_softmax(1)[torch.arange(len(labels)), labels]
    (gradient,) = torch.autograd.grad(-log_odds.sum(), inputs)
    return gradient


def test_without_bounds_attacks_move_points_anywhere() -> None:
    model, inputs, labels = points()
    expected = inputs + 0.3 * gradient_of_cross_entropy(model, inputs, labels).sign()
    assert expected.min() < -1
    assert expected.max() > 2
    found = attacks.fgsm(model, inputs, labels, epsilon=0.3, bounds=attacks.UNBOUNDED)
    released = attacks.released_fgsm(
        model, inputs, labels, epsilon=0.3, beta=0.0, K=1.0, form="raw", bounds=attacks.UNBOUNDED
    )
    assert torch.equal(found, expected)
    assert torch.equal(released, expected)
    one_step = attacks.pgd(
        model,
        inputs,
        labels,
        epsilon=0.3,
        steps=1,
        step_size=0.3,
        random_start=False,
        stop_when_fooled=False,
        bounds=attacks.UNBOUNDED,
    )
    torch.testing.assert_close(one_step, expected, rtol=0, atol=1e-6)


def test_other_bounds_hold_and_are_named_where_inputs_break_them() -> None:
    model, inputs, labels = points()
    inside = inputs.clamp(-1, 1)
    for attack in (attacks.fgsm, partial(attacks.pgd, steps=3), partial(attacks.released_fgsm, **RELEASED)):
        found = attack(model, inside, labels, epsilon=0.3, bounds=(-1, 1))
        assert found.min() == -1
        assert found.max() == 1
        assert (found != inside).any()
        with pytest.raises(InputError, match=r"images: values must lie in \[-1, 1\], not in \[-\d"):
            attack(model, inputs, labels, epsilon=0.3, bounds=(-1, 1))
        with pytest.raises(InputError, match=r"images: values must lie in \[0, 1\], not in \[-1, 1\]"):
            attack(model, inside, labels, epsilon=0.3)
        with pytest.raises(InputError, match=r"not in \[nan, nan\]"):
            attack(model, inputs * float("nan"), labels, epsilon=0.3, bounds=attacks.UNBOUNDED)
    with pytest.raises(InputError, match=r"images: values must lie in \[0, 1\]"):
        attacks.released_pgd(model, inside, labels, epsilon=0.3, **RELEASED)


def test_a_path_that_does_not_stop_ends_at_the_last_iterate() -> None:
    model, inputs, labels = points()
    epsilon, steps = 0.5, 7
    moved, fooled_on_the_way = inputs.clone(), torch.zeros(len(inputs), dtype=torch.bool)
    for _ in range(steps):
        fooled_on_the_way |= model(moved).argmax(1) != labels
        stepped = moved + 2.5 * epsilon / steps * gradient_of_cross_entropy(model, moved, labels).sign()
        moved = torch.maximum(torch.minimum(stepped, inputs + epsilon), inputs - epsilon)
    options = {"epsilon": epsilon, "steps": steps, "random_start": False, "bounds": attacks.UNBOUNDED}
    found = attacks.pgd(model, inputs, labels, stop_when_fooled=False, **options)
    torch.testing.assert_close(found, moved, rtol=0, atol=1e-5)
    stopped = attacks.pgd(model, inputs, labels, **options)
    assert fooled_on_the_way.any()
    assert not fooled_on_the_way.all()
    apart = (found - stopped).abs().amax(1) > 1e-5
    # A path may come back to the corner of the ball where it first fooled the network.
    assert not (apart & ~fooled_on_the_way).any()
    assert (apart & fooled_on_the_way).sum() > 10


def test_paths_that_do_not_stop_stay_in_ball_and_range_and_keep_what_fools_between_starts(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    images, labels = images_and_labels[0][:150], images_and_labels[1][:150]
    options = {"epsilon": 0.06, "steps": 5, "stop_when_fooled": False}
    once, twice = (attacks.pgd(trained.model, images, labels, restarts=n, **options) for n in (1, 2))
    for found in (once, twice):
        assert found.min() >= 0
        assert found.max() <= 1
        assert (found - images).abs().max() <= 0.06 + 1e-6
    fooled = trained.model(once).argmax(1) != labels
    assert 0 < fooled.sum() < len(labels)
    assert torch.equal(twice[fooled], once[fooled])
    assert (twice != once).any()


@pytest.mark.parametrize("readout", ["in order", "reversed"])
@pytest.mark.parametrize("form", ["raw", "normalised"])
def test_the_released_gradient_of_several_levels_is_the_sum_of_theirs(
    images_and_labels: Images, readout: str, form: str
) -> None:
    clean, finest = images_and_labels[0][:60], images_and_labels[1][:60]
    labels = hierarchy.level_labels(TREE, finest, 10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Stack(784, (2, 4, 10), width=30, depth=1, readout=readout)
    moved = (clean + 0.05).clamp(0, 1)
    options = {"beta": 2.0, "K": 5.0, "form": form}

    def gradient(target: nn.Module, rows: Tensor) -> Tensor:
        objective = attacks.released_objective(clean, **options)
        found, logits = attacks.input_gradient(objective, target, moved, rows)
        assert torch.equal(logits, target(moved))
        return found

    one_by_one = [gradient(model.up_to(level), row) for level, row in enumerate(labels)]
    assert all(found.abs().max() > 1e-5 for found in one_by_one)
    torch.testing.assert_close(gradient(model, labels), torch.stack(one_by_one).sum(0), rtol=1e-4, atol=1e-7)
    coarser = torch.stack(one_by_one[:2]).sum(0)
    torch.testing.assert_close(gradient(model.up_to(1), labels[:2]), coarser, rtol=1e-4, atol=1e-7)
    # One row of labels is as good as labels of one level.
    assert torch.equal(gradient(model, finest[None]), gradient(model, finest))
    # Two rows for three levels are of the two finest.
    torch.testing.assert_close(
        gradient(model, labels[1:]), torch.stack(one_by_one[1:]).sum(0), rtol=1e-4, atol=1e-7
    )


def test_accuracy_curve_of_several_levels_is_that_of_the_finest_attacked_through_all(
    images_and_labels: Images,
) -> None:
    images, finest = images_and_labels[0][:250], images_and_labels[1][:250]
    labels = hierarchy.level_labels(TREE, finest, 10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Stack(784, (2, 4, 10), width=30, depth=1)
    attack = partial(attacks.released_fgsm, **RELEASED)
    curve = attacks.accuracy_curve(attack, model, images, labels, [0.02, 0.1])
    for row, epsilon in zip(curve, [0.02, 0.1], strict=True):
        parts = [
            model(attack(model, images[part], labels[:, part], epsilon=epsilon)).argmax(1) == finest[part]
            for part in torch.arange(250).split(100)
        ]
        assert torch.equal(row, torch.cat(parts))
    assert curve.any()
    assert not torch.equal(curve, attacks.accuracy_curve(attack, model, images, finest, [0.02, 0.1]))
