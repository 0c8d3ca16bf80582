"""Attacks and checks on models of one's own: of any class, in any mode, with gradients that are not there."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isorepro import attacks, boundary, ensemble, health, saliency, training
from isorepro.errors import InputError
from isorepro.models import Stack

IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
# The first two pixels of five images are equal.
IMAGES[:5, :, 0, 1] = IMAGES[:5, :, 0, 0]

# Every public function that is given a model, so that a new one is held too; an objective runs as it is called.
DOORS: dict[str, Callable[..., Any]] = {"clean_accuracy": training.clean_accuracy} | {
    name: function
    for module in (attacks, ensemble, health, saliency, boundary)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and "model" in inspect.signature(function).parameters
    if not name.startswith("_") and name not in ("cross_entropy", "margin", "dlr")
}


class Moody(Stack):
    """A stack whose answers hang on the mode of its parts."""

    def __init__(self, pixels: int = 64) -> None:
        super().__init__(pixels, (4,), width=20, depth=1)
        self.moody = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(pixels), nn.Dropout(0.3))

    def levels(self, inputs: Tensor, *, apart: bool = False) -> list[tuple[Tensor, Tensor]]:
        return super().levels(self.moody(inputs), apart=apart)


def plain(pixels: int = 64) -> nn.Module:
    """A network that is no stack, and normalises what it is given."""
    layers = nn.Flatten(), nn.BatchNorm1d(pixels), nn.Dropout(0.3), nn.Linear(pixels, 20), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(20, 4))


class Contrast(nn.Module):
    """Classes by the contrast of pairs of pixels: a root, whose gradient is NaN at 0, or its safe twin."""

    def __init__(self, pixels: int = 64, *, safe: bool) -> None:
        super().__init__()
        self.head, self.safe = nn.Linear(pixels // 2, 4), safe

    def forward(self, images: Tensor) -> Tensor:
        first, second = images.flatten(1).unflatten(1, (-1, 2)).unbind(2)
        squares = (first - second).square()
        if self.safe:
            return self.head(squares.where(squares > 0, 1).sqrt() * (squares > 0))
        return self.head(squares.sqrt())


def built(name: str, kind: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """A network for a function, in evaluation mode; the grid's is one of the plane."""
    torch.manual_seed(0)
    return kind(2 if name.startswith("grid") else 64, **options).eval()


def told(found: Any) -> Any:
    """What a function returned, as what can be compared bit by bit."""
    if isinstance(found, Tensor):
        return found.tolist()
    if isinstance(found, dict):
        return {key: told(value) for key, value in found.items()}
    return [told(value) for value in found] if isinstance(found, (list, tuple)) else found


def called(name: str, model: nn.Module, **options: Any) -> Any:
    parameters, images = inspect.signature(DOORS[name]).parameters, IMAGES
    if "points" in parameters:
        images = IMAGES.flatten(1)[:, : 2 if name.startswith("grid") else None]
    labels = torch.arange(12) % 4
    values = {
        "model": model, "images": images, "inputs": images, "points": images, "labels": labels,
        "targets": (labels + 1) % 4, "epsilon": 0.1, "epsilons": [0.05, 0.1], "beta": 0.1, "K": 2.0, "form": "raw",
        "attack": attacks.fgsm, "objective": attacks.cross_entropy, "evaluation": health.corrected(3),
        "bounds": attacks.PIXELS, "reach": 1.0, "low": torch.zeros(2), "high": torch.ones(2), "resolution": 9,
        "layer": -1, "steps": 3, "refinements": 2, "iterations": 3, "queries": 9,
    } | options  # fmt: skip
    chosen = {key: values[key] for key, one in parameters.items() if key in values or one.default is one.empty}
    return told(DOORS[name](**chosen))


def state(model: nn.Module) -> Any:
    """All of a model that an attack might change, and the global generator."""
    parts = [(part.training, len(part._forward_pre_hooks)) for part in model.modules()]
    parameters = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    return told((parts, parameters, dict(model.state_dict()), torch.get_rng_state()))


@pytest.mark.parametrize("name", DOORS)
def test_models_are_attacked_in_evaluation_mode_and_left_as_they_were(name: str) -> None:
    model = built(name, Moody if name.startswith("released") else plain)
    norm = next(part for part in model.modules() if isinstance(part, nn.BatchNorm1d))
    norm.running_mean.fill_(0.3)
    first, *_, last = model.parameters()
    first.requires_grad_(False)
    last.grad = torch.ones_like(last)

    def own(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: Any) -> Tensor:
        assert not any(part.training for part in model.modules())
        return attacks.fgsm(model, images, labels, epsilon=epsilon)

    options = {"attack": own, "evaluation": replace(health.corrected(3), one_step=own), "source": plain().train()}
    expected = called(name, model, **options)
    # All of it in the other mode, or all but one part, as where a layer is kept fixed in training.
    for fixed in (False, True):
        model.train()
        norm.train(not fixed)
        before = state(model)
        assert called(name, model, **options) == expected
        assert state(model) == before
    norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        called(name, model, **options)
    assert state(model) == before


# The checks go on, and a stack has no such gradient.
REFUSING = DOORS.keys() - {"checks", "zero_gradients", "steps_from_gradient", "released_fgsm", "released_pgd"}


@pytest.mark.parametrize("name", sorted(REFUSING))
def test_a_gradient_that_is_not_finite_is_refused_where_it_would_matter(name: str) -> None:
    broken, safe = (built(name, Contrast, safe=safe) for safe in (False, True))
    expected = called(name, safe)
    try:
        found = called(name, broken)
    except InputError as error:
        found = str(error)
    # Some are met at moved points alone, where two pixels of a pair end at 0.
    assert found == expected or found[:38] == "gradient: NaN, infinite or missing at "
    if name in ("fgsm", "input_gradient", "maps", "fab", "boundary_distance", "accuracy_curve"):
        assert found[38:].startswith("5 of 12 images, where an attack cannot follow")


def own_attack(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int = 1) -> Tensor:
    """One step along the gradient, which goes nowhere where it is NaN: an attack that asks the library nothing."""
    moving = images.clone().requires_grad_()
    nn.functional.cross_entropy(model(moving), labels).backward()
    assert moving.grad is not None
    return (images + epsilon * moving.grad / moving.grad.abs().amax((1, 2, 3), keepdim=True)).clamp(0, 1)


@pytest.mark.parametrize("own", [False, True])
def test_checks_tell_the_share_of_gradients_that_are_not_finite_and_go_on(own: bool) -> None:
    evaluation = health.corrected(3)
    if own:
        evaluation = replace(evaluation, one_step=own_attack, iterated=own_attack)
    zero = ["no zero gradients", "no zero gradients, float64", "no zero gradients, logits scaled"]
    for safe, share in ((True, 0.0), (False, 5 / 12)):
        model = built("checks", Contrast, safe=safe)
        found = {check.name: check for check in called("checks", model, evaluation=evaluation)}
        assert len(found) == len(health.SOURCES) - 1  # no other network
        # At moved points the library's own attacks meet others; of one's own no more is seen.
        assert found[zero[0]].measured == share if own or safe else found[zero[0]].measured > share
        assert [found[name].measured for name in zero[1:]] == [share] * 2
        assert all(found[name].passed == safe for name in zero)
        # What an attack returned that is NaN passes nowhere.
        if own:
            assert found["inside the ball"].passed == found["inside the range"].passed == safe
            assert found["PGD at most FGSM"].passed == safe


class Scaled(nn.Module):
    """Normalises before its first part."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - 0.13) / 0.31)


def from_one_gradient(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
    moved = images
    direction, _ = attacks.input_gradient(attacks.cross_entropy, model, images, labels)
    for _ in range(steps):
        moved = (moved + epsilon * direction.sign()).clamp(images - 0.5, images + 0.5).clamp(0, 1)
    return moved


@pytest.mark.parametrize("kind", [Scaled, lambda: nn.Sequential(nn.BatchNorm2d(1), Scaled()), plain, Moody])
def test_the_check_of_moved_gradients_sees_what_the_whole_model_is_given(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    labels = model(IMAGES).argmax(1)
    pgd = health.corrected(5)
    distance = health.steps_from_gradient(model, IMAGES, labels, pgd, epsilon=0.1)
    assert 0 <= distance <= 1.01
    one = replace(pgd, iterated=from_one_gradient)
    assert health.steps_from_gradient(model, IMAGES, labels, one, epsilon=0.1) > 1.01


class Answer(nn.Module):
    """A linear network with something done to its logits, of which it also knows the images."""

    def __init__(self, done: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.network, self.done = nn.Linear(64, 4), done

    def forward(self, images: Tensor) -> Any:
        return self.done(self.network(images.flatten(1)), images)


def of_no_contrast(logits: Tensor, images: Tensor) -> Tensor:
    contrast = (images[:, 0, 0, 0] - images[:, 0, 0, 1]).abs()[:, None]
    return logits * (contrast / contrast)


@torch.no_grad()
def halves_its_images(logits: Tensor, images: Tensor) -> Tensor:
    images.mul_(0.5)
    return logits


@pytest.mark.parametrize(
    ("done", "message", "doors"),
    [
        (lambda z, x: (z, x), r"model: must return logits, \(12, classes\), not a tuple", "both"),
        (lambda z, x: z[:, 0], r"model: must return logits, .* not a tensor \(12,\)", "both"),
        (lambda z, x: z[:, :1], "labels: must be below 1, the model's classes, not 3", "correct_predictions"),
        (of_no_contrast, "model: its logits are NaN for 5 of 12 inputs", "both"),
        (halves_its_images, "model: must leave its inputs as they are", "correct_predictions"),
        (lambda z, x: z / 0, "gradient: NaN, infinite or missing at 12 of 12 images", "fgsm"),
        (lambda z, x: z.detach(), "gradient: NaN, infinite or missing at 12 of 12 images", "fgsm"),
        (lambda z, x: z.detach() + nn.Parameter(torch.zeros(4)), "gradient: NaN, .* at 12 of 12 images", "fgsm"),
    ],
)
def test_what_no_prediction_or_gradient_can_be_read_off_is_refused(
    done: Callable[[Tensor, Tensor], Any], message: str, doors: str
) -> None:
    for name in ("fgsm", "correct_predictions"):
        if doors in (name, "both"):
            with pytest.raises(InputError, match=message):
                called(name, Answer(done), images=IMAGES.clone())


def test_a_network_without_a_gradient_counts_as_one_of_zero_gradients() -> None:
    evaluation = replace(health.corrected(3), iterated=own_attack)
    found = called("zero_gradients", Answer(lambda z, x: z.detach()), evaluation=evaluation)
    assert set(found.values()) == {1.0}


@pytest.mark.parametrize("name", ["fgsm", "pgd", "l2_pgd", "pgd_curve", "square", "fab", "autoattack", "checks"])
def test_images_may_be_of_another_precision_ask_for_gradients_and_lie_anyhow_in_memory(name: str) -> None:
    model = built(name, plain)
    expected = called(name, model)
    given = IMAGES.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    assert not given.is_contiguous()
    assert called(name, model, images=given) == expected
    called(name, model.double(), images=IMAGES.double())
