import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as hypothesis
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_projections import projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from scipy import stats
from torch import Tensor, nn

from isorepro import attacks, data, ensemble, robustness
from isorepro.errors import InputError
from isorepro.models import Stack
from isorepro.training import TrainedModel, TrainingConfig, train

Images = tuple[Tensor, Tensor]
SHORT = {"iterations": 8, "queries": 60}


def separate(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Which images one run of the ensemble at one radius leaves standing."""
    standing = attacks.correct_predictions(model, images, labels)
    found = ensemble.autoattack(model, images[standing], labels[standing], epsilon=epsilon, **SHORT)
    result = standing.clone()
    result[standing] = attacks.correct_predictions(model, found, labels[standing])
    return result


def test_the_ensemble_is_the_standard_one(trained: TrainedModel, images_and_labels: Images) -> None:
    images, labels = images_and_labels[0][:8], images_and_labels[1][:8]
    right = attacks.correct_predictions(trained.model, images, labels)
    # A copy, since the package leaves gradients on the parameters.
    standard = AutoAttack(
        copy.deepcopy(trained.model), eps=0.06, seed=0, device=torch.device("cpu"), version="standard"
    )
    expected, _ = standard.run_standard_evaluation(images, labels)
    found = ensemble.autoattack(trained.model, images[right], labels[right], epsilon=0.06)
    changed = (found != images[right]).flatten(1).any(1)
    assert 0 < changed.sum() < len(changed)
    torch.testing.assert_close(found, expected[right], rtol=0, atol=1e-6)


def test_the_curve_equals_separate_runs(trained: TrainedModel, images_and_labels: Images) -> None:
    images, labels = images_and_labels[0][:30], images_and_labels[1][:30]
    radii = [0.01, 0.04, 0.08, 0.3]
    curve = ensemble.autoattack_curve(trained.model, images, labels, radii, **SHORT)
    expected = torch.stack([separate(trained.model, images, labels, radius) for radius in radii])
    assert 0.1 < expected[1:3].double().mean() < 0.9
    assert torch.equal(curve, expected)


def test_the_curve_falls_and_no_run_is_tried_in_a_smaller_ball_than_one_it_failed_in(
    trained: TrainedModel, images_and_labels: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = images_and_labels[0][:40], images_and_labels[1][:40]
    tried: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    original = ensemble._ensemble

    def watched(*given: object, **options: object) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
        for run in original(*given, **options):
            tried.append([])

            def told(chosen: Tensor, radii: Tensor, run: Callable[..., Tensor] = run) -> Tensor:
                found = run(chosen, radii)
                tried[-1].append((chosen, radii.flatten(), found))
                return found

            yield told

    monkeypatch.setattr(ensemble, "_ensemble", watched)
    curve = ensemble.autoattack_curve(trained.model, images, labels, [0.02, 0.06, 0.2], **SHORT)
    assert (curve[:-1] >= curve[1:]).all()
    assert len(tried) == 1 + 9 + 9 + 1
    for run in tried:
        # Most images meet each run once; again only where it fooled them, and then in a smaller ball.
        assert len(run[0][0]) >= 30
        for (chosen, radii, found), (again, smaller, _) in itertools.pairwise(run):
            fooled = trained.model(found).argmax(1) != labels[chosen]
            assert set(again.tolist()) <= set(chosen[fooled].tolist())
            before = dict(zip(chosen.tolist(), radii.tolist(), strict=True))
            assert all(now < before[image] for image, now in zip(again.tolist(), smaller.tolist(), strict=True))


def test_a_radius_for_each_image_gives_what_each_gets_alone(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    right = attacks.correct_predictions(trained.model, *images_and_labels).nonzero().squeeze(1)[:24]
    images, labels = images_and_labels[0][right], images_and_labels[1][right]
    radii = torch.tensor([0.02, 0.05, 0.1]).repeat(8)
    for attack in (partial(ensemble.autoattack, **SHORT), partial(ensemble.square, queries=200)):
        found = attack(trained.model, images, labels, epsilon=radii)
        distance = (found - images).abs().flatten(1).amax(1)
        assert (distance <= radii + 1e-6).all()
        fooled = trained.model(found).argmax(1) != labels
        # Images that were not fooled are as they were.
        assert torch.equal(distance > 0, fooled)
        for radius in radii.unique():
            chosen = radii == radius
            alone = attack(trained.model, images[chosen], labels[chosen], epsilon=float(radius))
            apart = (trained.model(alone).argmax(1) != labels[chosen]) != fooled[chosen]
            # The random starts are others.
            assert apart.sum() <= 1
        assert 0 < fooled.sum() < len(fooled)


@pytest.mark.parametrize("epsilon", [0.03, 0.08])
def test_square_is_the_packages(trained: TrainedModel, images_and_labels: Images, epsilon: float) -> None:
    images, labels = images_and_labels[0][:60], images_and_labels[1][:60]
    package = SquareAttack(
        trained.model, n_queries=2500, eps=epsilon, seed=3, device=images.device, resc_schedule=False
    )
    with torch.random.fork_rng():
        # The draws of its first image depend on how many images it takes: none that is fooled already.
        right = attacks.correct_predictions(trained.model, images, labels)
        expected = package.perturb(images[right], labels[right])
    found = ensemble.square(trained.model, images, labels, epsilon=epsilon, queries=2500, seed=3)
    fooled = (found != images).flatten(1).any(1)
    assert 0 < fooled.sum() < len(fooled)
    torch.testing.assert_close(found[right], expected, rtol=0, atol=1e-6)
    assert torch.equal(found[~right], images[~right])


@pytest.mark.parametrize("rank", [2, 7])
def test_fab_goes_as_far_as_the_package(trained: TrainedModel, images_and_labels: Images, rank: int) -> None:
    right = attacks.correct_predictions(trained.model, *images_and_labels)
    images, labels = images_and_labels[0][right][:60], images_and_labels[1][right][:60]
    # A copy, since the package leaves gradients on the parameters.
    package = FABAttack_PT(
        copy.deepcopy(trained.model), n_iter=30, eps=0.0, seed=0, device=images.device, targeted=True
    )
    package.target_class = rank
    expected = package.attack_single_run(images, labels, is_targeted=True)
    targets = trained.model(images).argsort(1)[:, -rank]
    found = ensemble.fab(trained.model, images, labels, targets, iterations=30)
    fooled = trained.model(found).argmax(1) != labels
    assert torch.equal(fooled, (found != images).flatten(1).any(1))
    assert fooled.any()
    far, wanted = ((moved - images).abs().flatten(1).amax(1) for moved in (found, expected))
    torch.testing.assert_close(far, wanted, rtol=1e-3, atol=1e-5)
    assert found.min() >= 0
    assert found.max() <= 1


@settings(max_examples=60, deadline=None)
@given(seed=hypothesis.integers(0, 2**31), reach=hypothesis.sampled_from([0.0, 0.1, 0.9, 1.5]))
def test_a_move_to_a_plane_is_the_packages_and_the_shortest(seed: int, reach: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(9, 12, generator=generator, dtype=torch.float64)
    points = torch.where(points < 0.2, 0.0, torch.where(points > 0.8, 1.0, points))
    slopes = torch.randn(9, 12, generator=generator, dtype=torch.float64)
    slopes[:, 0] = 0
    slopes[8] = 0
    # How much can be changed at most in either direction; from 1 on the plane is out of reach.
    signs = torch.tensor([1.0, -1.0, 0.0] * 3, dtype=torch.float64)
    room = torch.where(slopes * signs[:, None] > 0, points, 1 - points)
    values = reach * signs * (slopes.abs() * room).sum(1)
    found = ensemble._to_plane(points, slopes, values)
    assert ((points + found).clamp(0, 1) - (points + found)).abs().max() < 1e-12
    expected = projection_linf(points, slopes, (slopes * points).sum(1) - values).double()
    torch.testing.assert_close(found[:8], expected[:8], rtol=1e-5, atol=1e-6)
    assert not found[8].any()
    if reach < 1:
        torch.testing.assert_close((slopes * found).sum(1), -values, rtol=1e-9, atol=1e-9)


def test_attacks_stay_in_the_ball_and_change_nothing_around_them(
    trained: TrainedModel, images_and_labels: Images
) -> None:
    images, labels = images_and_labels[0][:10], images_and_labels[1][:10]
    state, before = torch.get_rng_state(), [copy.deepcopy(p.grad) for p in trained.model.parameters()]
    for found in (
        ensemble.autoattack(trained.model, images, labels, epsilon=0.07, **SHORT),
        ensemble.square(trained.model, images, labels, epsilon=0.07, queries=50),
    ):
        assert (found - images).abs().max() <= 0.07 + 1e-6
        assert found.min() >= 0
        assert found.max() <= 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in trained.model.parameters())
    for parameter, gradient in zip(trained.model.parameters(), before, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("radii", [[0.1, 0.1], [0.2, 0.1], [0.0, 0.1]])
def test_radii_that_do_not_grow_from_above_zero_are_refused(
    trained: TrainedModel, images_and_labels: Images, radii: list[float]
) -> None:
    with pytest.raises(InputError, match="epsilons: must increase strictly from above 0"):
        ensemble.autoattack_curve(trained.model, *images_and_labels, radii)


@pytest.mark.parametrize("classes", [2, 3])
def test_below_four_classes_the_ensemble_and_the_ratio_are_refused(classes: int) -> None:
    model, images, labels = Stack(784, (classes,)), torch.rand(2, 1, 28, 28), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match=rf"AutoAttack .*needs at least 4 classes, not {classes}"):
        ensemble.autoattack(model, images, labels, epsilon=0.1)
    with pytest.raises(InputError, match=rf"difference-of-logits ratio needs at least 4 classes, not {classes}"):
        attacks.dlr(model, images, labels)


@pytest.mark.parametrize("classes", [2, 3])
def test_of_fewer_than_four_classes_curves_take_the_attacks_that_are_defined(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(seed: int) -> data.Dataset:
        images = torch.rand(90, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
        labels = torch.arange(90) % classes
        images[:, 0, 0] = nn.functional.one_hot(labels, 6) * 0.3
        names = tuple(f"class {number}" for number in range(classes))
        return data.Dataset("few", images[:60], labels[:60], images[60:], labels[60:], names)

    def undefined(*args: object) -> None:
        raise AssertionError("the targeted ratio needs four logits")

    monkeypatch.setitem(data.DATASETS, "few", few)
    monkeypatch.setattr(APGDAttack_targeted, "attack_single_run", undefined)
    trained = train(TrainingConfig(dataset="few", epochs=40, batch_size=20, width=20, depth=1, device="cpu"))
    radii = {"epsilons": [0.01, 0.1, 0.4], "images": 30}
    table = ensemble.curves(trained, None, **radii, pgd_steps=5, **SHORT)
    assert ensemble.DLR_PGD not in set(table["attack"])
    wide = table[table["protocol"] == robustness.CORRECTED].pivot(
        index="epsilon", columns="attack", values="accuracy"
    )
    assert wide[ensemble.AUTOATTACK].max() > wide[ensemble.AUTOATTACK].min() == 0
    assert (wide[ensemble.AUTOATTACK].dropna() <= wide[robustness.PGD].dropna() + 1e-9).all()
    assert (wide[ensemble.WORST_CASE].dropna() <= wide[ensemble.AUTOATTACK].dropna() + 1e-9).all()


def test_four_classes_are_enough() -> None:
    torch.manual_seed(0)
    model, images = Stack(784, (4,)), torch.rand(6, 1, 28, 28)
    labels = model(images).argmax(1)
    found = ensemble.autoattack(model, images, labels, epsilon=0.4, **SHORT)
    assert (model(found).argmax(1) != labels).any()


def test_the_ratio_is_that_of_the_package_and_the_margin_its_numerator(trained: TrainedModel) -> None:
    images, labels = torch.rand(50, 1, 28, 28), torch.arange(50) % 10
    logits = trained.model(images)
    expected = APGDAttack(trained.model, eps=0.1).dlr_loss(logits, labels)
    torch.testing.assert_close(attacks.dlr(trained.model, images, labels)[0], expected.sum())
    rows = logits.tolist()
    margins = [
        max(z for place, z in enumerate(row) if place != label) - row[label]
        for row, label in zip(rows, labels.tolist(), strict=True)
    ]
    assert attacks.margin(trained.model, images, labels)[0].item() == pytest.approx(sum(margins), rel=1e-5)


def test_noise_has_its_distribution_and_stays_in_the_ball() -> None:
    grey = torch.full((40, 1, 28, 28), 0.5)
    uniform = (ensemble.uniform_noise(grey, 0.2) - 0.5).flatten().double() / 0.2
    assert stats.kstest(uniform.numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    gaussian = (ensemble.gaussian_noise(grey, 0.2) - 0.5).flatten().double() / 0.2
    assert gaussian.abs().max() <= 1 + 1e-6
    inner = gaussian[gaussian.abs() < 0.999].numpy()
    assert stats.kstest(inner, stats.truncnorm(-0.999, 0.999).cdf).pvalue > 0.01
    assert (gaussian.abs() > 0.999).double().mean().item() == pytest.approx(2 * stats.norm.sf(1), abs=0.01)
    for noisy in ensemble.NOISE.values():
        dark = noisy(torch.zeros(2, 1, 28, 28), 0.3)
        assert dark.min() >= 0
        assert torch.equal(noisy(grey, 0.1, seed=3), noisy(grey, 0.1, seed=3))
        assert not torch.equal(noisy(grey, 0.1, seed=3), noisy(grey, 0.1, seed=4))


def test_the_worst_case_is_the_mean_of_the_minimum_over_attacks_and_smaller_radii() -> None:
    standing = torch.rand(4, 5, 60, generator=torch.Generator().manual_seed(1)) < 0.9
    expected = torch.zeros(5, 60, dtype=torch.bool)
    for radius in range(5):
        for image in range(60):
            expected[radius, image] = all(
                bool(standing[attack, smaller, image]) for attack in range(4) for smaller in range(radius + 1)
            )
    found = ensemble.worst_case(standing)
    assert torch.equal(found, expected)
    # Not the minimum of the means, which is higher.
    assert (found.double().mean(1) < standing.double().mean(2).min(0).values).all()


@pytest.fixture(scope="module")
def table(trained: TrainedModel) -> pd.DataFrame:
    return ensemble.curves(trained, trained, epsilons=[0.03, 0.08, 0.5], images=40, pgd_steps=8, **SHORT)


def test_curves_hold_every_attack_and_the_worst_case_is_below_all_in_the_ball(table: pd.DataFrame) -> None:
    names = table.loc[table["epsilon"] > 0, ["protocol", "attack"]].drop_duplicates()
    assert len(names) == 12
    wide = table[table["epsilon"] > 0].pivot(index="epsilon", columns=["protocol", "attack"], values="accuracy")
    inside = wide.drop(columns=[("as released", "one-gradient PGD")])
    worst = wide["corrected", "worst case"]
    assert (inside.ge(worst, axis=0)).all().all()
    assert worst.is_monotonic_decreasing
    assert worst.loc[0.5] == 0
    assert wide["corrected", "uniform noise"].loc[0.03] > worst.loc[0.03]
    assert table["images"].eq(40).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_curves_within_two_images(trained: TrainedModel) -> None:
    options = {"epsilons": [0.03, 0.08], "pgd_steps": 8}
    config = TrainingConfig(**trained.config.model_dump() | {"device": "cuda"})
    there = TrainedModel(config, copy.deepcopy(trained.model), trained.history, trained.seconds)
    for measure in (
        partial(robustness.curves, test_size=400, **options),
        partial(lambda model, **more: ensemble.curves(model, model, **more), images=40, **options, **SHORT),
    ):
        here, found = measure(trained), measure(there)
        assert (here["images"] * (here["accuracy"] - found["accuracy"])).abs().max() <= 2.01


def test_curves_are_those_of_the_attacks_one_by_one(trained: TrainedModel, table: pd.DataFrame) -> None:
    dataset = data.load("mnist", test_size=40, seed=trained.config.seed)
    images, labels = dataset.test_inputs, dataset.test_labels
    found = table.set_index(["protocol", "attack", "epsilon"])["accuracy"]

    def accuracy(points: Tensor) -> float:
        return attacks.correct_predictions(trained.model, points, labels).double().mean().item()

    assert found["corrected", "no attack", 0.0] == accuracy(images)
    assert found["corrected", "FGSM", 0.08] == accuracy(attacks.fgsm(trained.model, images, labels, epsilon=0.08))
    on_loss = attacks.pgd(
        trained.model, images, labels, epsilon=0.08, steps=8, stop_when_fooled=False,
        objective=attacks.released_objective(images, beta=0.1, K=10.0, form="raw"),
    )  # fmt: skip
    assert found["corrected", "PGD on the training loss", 0.08] == accuracy(on_loss)
    # Transferred from itself, PGD is PGD that goes on to its end.
    direct = attacks.pgd(trained.model, images, labels, epsilon=0.08, steps=8, stop_when_fooled=False)
    assert found["corrected", "transfer", 0.08] == accuracy(direct)


def test_a_stack_is_refused() -> None:
    config = TrainingConfig(hierarchy=[[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]], device="cpu")
    stack = TrainedModel(config, Stack(784, (2, 10)), pd.DataFrame(), 0.0)
    with pytest.raises(InputError, match="needs a flat network, not a stack of 2 levels"):
        ensemble.curves(stack, None, epsilons=[0.1], images=20)


def test_of_a_stack_the_finest_level_is_attacked_where_it_is_read() -> None:
    config = TrainingConfig(epochs=1, train_size=2000, depth=2, hierarchy=(((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)),))
    config = TrainingConfig(**config.model_dump() | {"readout": "reversed", "shared_head": True})
    trained, radii = train(config), [0.02, 0.06]
    table = ensemble.finest_autoattack(trained, epsilons=radii, images=30, **SHORT)
    # Read in reverse, the finest level is the input layer and the head.
    alone = nn.Sequential(trained.model.input_layer, trained.model.heads[-1])
    drawn = data.load("mnist", test_size=30, seed=0)
    expected = [
        separate(alone, drawn.test_inputs, drawn.test_labels, radius).double().mean().item() for radius in radii
    ]
    assert table["accuracy"].tolist() == expected
    assert 0 < expected[1] < expected[0]
    assert set(table["level"]) == {2}
    assert set(table["images"]) == {30}


def test_sources_are_cross_entropy_networks_of_the_next_seed() -> None:
    def network(**fields: object) -> TrainedModel:
        return TrainedModel(TrainingConfig(**fields), Stack(2, (2,), width=2, depth=1), pd.DataFrame(), 0.0)

    models = [network(beta=beta, seed=seed, K=10.0) for beta in (0.0, 0.1) for seed in (3, 5, 8)]
    models += [network(beta=1e5, seed=3, form="normalised")]
    found = ensemble.sources(models)
    assert [(other.config.beta, other.config.seed) for other in found] == [
        (0.0, seed) for seed in (5, 8, 3, 5, 8, 3, 5)
    ]
    alone = ensemble.sources([network(beta=0.0), network(beta=0.5)])
    assert alone[0] is None
    assert alone[1].config.beta == 0
    with pytest.raises(InputError, match="betas: must hold 0 for every seed"):
        ensemble.sources([network(beta=0.5)])
    with pytest.raises(InputError, match="betas: must hold 0 for every seed"):
        ensemble.sources([network(beta=0.0), network(beta=0.0, seed=1), network(beta=0.1, depth=2)])
