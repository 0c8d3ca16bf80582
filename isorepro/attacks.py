"""L∞ attacks on images in [0, 1], true and as the paper's released code runs them, and accuracy against ε.

Every attack is called as ``attack(model, images, labels, epsilon=…)`` and returns adversarial images. The
attacks that take one gradient (:func:`fgsm`, :func:`released_fgsm`, :func:`released_pgd`) also take several
radii at once, a tensor of shape (E,), and return a leading axis of that length for one gradient's cost.

The model, which may be any, runs in evaluation mode and is left as it was found. A gradient that is not finite is
refused: its sign would be 0 where it is NaN, and the model would look robust.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from isorepro.errors import InputError
from isorepro.losses import Form, isometry, local_isometry, pairwise_distances
from isorepro.models import Stack, class_logits, evaluated, frozen

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""What an attack ascends: (model, images (B, …), labels (B,)) → (scalar, logits (B, classes))."""

PIXELS = (0.0, 1.0)
"""Bounds of the values of an image."""

UNBOUNDED = (-math.inf, math.inf)
"""Bounds of inputs that may take any value, such as points in space."""


class Attack(Protocol):
    """An attack with everything fixed but its target and its radius."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
        """Return adversarial images of the shape of ``images``."""
        ...


class OneGradientAttack(Protocol):
    """An attack that moves along one direction, so that several radii cost one gradient."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: Tensor) -> Tensor:
        """Return adversarial images (E, B, …) for radii (E,)."""
        ...


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Ascend the cross-entropy, summed so that the examples of a batch do not scale each other's gradient."""
    logits = class_logits(model, images)
    return functional.cross_entropy(logits, labels, reduction="sum"), logits


def margin(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Ascend the largest wrong logit less the right one (Carlini & Wagner 2017), summed over the examples.

    Unlike the cross-entropy, its gradient does not vanish where the network is very sure.
    """
    logits = class_logits(model, images)
    right = functional.one_hot(labels, logits.shape[1]).bool()
    wrong = logits.masked_fill(right, -math.inf).amax(1)
    return (wrong - logits[right]).sum(), logits


def dlr(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Ascend the difference-of-logits ratio (Croce & Hein 2020), summed over the examples.

    That is the margin over the difference of the largest and the third largest logit, so that no scale of the
    logits changes it.

    Raises:
        InputError: fewer than four classes.
    """
    logits = class_logits(model, images)
    require_four_classes(logits.shape[1], "the difference-of-logits ratio")
    top = logits.topk(3).values
    right = functional.one_hot(labels, logits.shape[1]).bool()
    wrong = logits.masked_fill(right, -math.inf).amax(1)
    # As in the reference: a tie of the three is not divided by zero.
    return ((wrong - logits[right]) / (top[:, 0] - top[:, 2] + 1e-12)).sum(), logits


def require_four_classes(classes: int, what: str) -> None:
    """Refuse a method that compares logits of four classes.

    Raises:
        InputError: fewer than four classes.
    """
    if classes < 4:
        raise InputError(f"{what} needs at least 4 classes, not {classes}")


def released_objective(clean: Tensor, *, beta: float, K: float, form: Form) -> Objective:
    """Return the objective of the released attacks: the training loss itself, isometry term included.

    That is the mean cross-entropy of the batch plus the isometry term between the attacked images'
    representations and the distances of the clean batch, which stay fixed. With the labels of several levels,
    (levels, B), the losses of these levels, the model's finest, are summed: the release does not zero the gradient
    of the images between the levels of a hierarchy.

    Args:
        clean: the batch before the attack, (B, …).
        beta, K, form: of the attacked network's training; β = 0 leaves the cross-entropy.

    Raises:
        InputError: when it is called, if the model is not a :class:`isorepro.models.Stack`.
    """
    distances = pairwise_distances(clean)

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(model, Stack):
            raise InputError(f"the released attacks need a Stack's representation, not {type(model).__name__}")
        rows = labels.view(-1, len(images))
        outputs = model.levels(images)[-len(rows) :]
        loss = torch.zeros((), device=images.device)
        for (representation, logits), row in zip(outputs, rows, strict=True):
            loss = loss + functional.cross_entropy(logits, row)
            if beta:
                loss = loss + isometry(representation, distances, row, beta=beta, K=K, form=form)
        return loss, outputs[-1][1]

    return objective


_BROKEN: ContextVar[list[int] | None] = ContextVar("_BROKEN", default=None)


@contextmanager
def broken_gradients_counted(counts: list[int]) -> Iterator[None]:
    """Let attacks go on where a gradient is not finite, as if it were zero, and add how many images that were.

    Once for each gradient; for checks, which tell of it. Anywhere else :func:`finite_gradient` refuses it.
    """
    token = _BROKEN.set(counts)
    try:
        yield
    finally:
        _BROKEN.reset(token)


def finite_gradient(gradient: Tensor) -> Tensor:
    """Return the gradient of some images, (B, …), which has to be finite.

    Raises:
        InputError: it is not, and this is not inside :func:`broken_gradients_counted`.
    """
    # The sum is finite only if all of it is, and fast; it may overflow where all of it is.
    if gradient.sum().isfinite():
        return gradient
    broken = ~gradient.flatten(1).isfinite().all(1)
    count, counts = int(broken.sum()), _BROKEN.get()
    if count and counts is None:
        raise InputError(
            f"gradient: NaN, infinite or missing at {count} of {len(broken)} images, where an attack cannot follow"
            " it and the model would look robust (a root has none at 0, nor has what is detached)"
        )
    if counts is not None:
        counts.append(count)
    return gradient.masked_fill(broken.view(-1, *[1] * (gradient.dim() - 1)), 0)


@evaluated
def input_gradient(
    objective: Objective, model: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the objective's gradient with respect to the images, and the logits there: (B, …), (B, classes).

    Raises:
        InputError: a gradient that is not finite, or none.
    """
    with torch.enable_grad(), frozen(model):
        images = images.detach().requires_grad_()
        value, logits = objective(model, images, labels)
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, images, allow_unused=True)
    return finite_gradient(torch.full_like(images, torch.nan) if gradient is None else gradient), logits.detach()


@torch.no_grad()
def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    objective: Objective = cross_entropy,
    bounds: tuple[float, float] = PIXELS,
) -> Tensor:
    """Fast gradient sign method: one step of length ε along the sign of the gradient (Goodfellow et al. 2015).

    Args:
        model: images (B, …) → logits (B, classes).
        images: (B, …) within the bounds.
        labels: (B,), int64.
        epsilon: L∞ radius ≥ 0, or radii of shape (E,).
        objective: what to ascend.
        bounds: least and largest value that an input can have.

    Returns:
        Adversarial images within the bounds, shape (B, …), or (E, B, …) for several radii.

    Raises:
        InputError: images out of bounds or a negative radius.
    """
    radii = _checked_radii(epsilon, images, bounds)
    gradient, _ = input_gradient(objective, model, images, labels)
    return (images + radii * gradient.sign()).clamp(*bounds)


def released_fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    beta: float,
    K: float,
    form: Form,
    bounds: tuple[float, float] = PIXELS,
) -> Tensor:
    """FGSM as the released code runs it: it ascends cross-entropy + β · isometry of the batch it is given.

    Its result depends on the batch; the release takes batches of 100. Arguments as in :func:`fgsm` and
    :func:`released_objective`.
    """
    objective = released_objective(images, beta=beta, K=K, form=form)
    return fgsm(model, images, labels, epsilon=epsilon, objective=objective, bounds=bounds)


@torch.no_grad()
def released_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    beta: float,
    K: float,
    form: Form,
    steps: int = 10,
    ball: float | None = 0.5,
) -> Tensor:
    """The released "PGD": each of its steps re-uses the gradient at the clean images.

    From November 2022 on it takes ten steps of length ε in a ball of radius 0.5 whatever ε is, and so moves
    as far as FGSM with radius min(10 ε, 0.5). In September 2022 the ball was ε itself (``ball=None``), which
    is FGSM. Other arguments as in :func:`released_fgsm`.

    Args:
        steps: number of steps of length ε.
        ball: radius of the ball projected on; None for ε.
    """
    radii = _checked_radii(epsilon, images)
    objective = released_objective(images, beta=beta, K=K, form=form)
    direction = input_gradient(objective, model, images, labels)[0].sign()
    limit = radii if ball is None else torch.full_like(radii, ball)
    moved = images
    for _ in range(steps):
        offset = torch.clamp(moved + radii * direction - images, -limit, limit)
        moved = (images + offset).clamp(0, 1)
    return moved


@torch.no_grad()
def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    start: Tensor | None = None,
    seed: int = 0,
    objective: Objective = cross_entropy,
    batch_size: int = 500,
    stop_when_fooled: bool = True,
    bounds: tuple[float, float] = PIXELS,
) -> Tensor:
    """Projected gradient ascent by signs (Madry et al. 2018), each gradient taken at the moved point.

    An image that fools the network stays where it is and costs no further step, so the result is at least as
    strong as the last iterate of the same path.

    Args:
        model: images (B, …) → logits (B, classes).
        images: (N, …) in [0, 1], any number.
        labels: (N,), int64.
        epsilon: L∞ radius ≥ 0.
        steps: gradient steps from each start, ≥ 1.
        step_size: length of a step, > 0; None for 2.5 ε / steps, enough to cross the ball.
        restarts: number of starts, ≥ 1, each for the images that withstood the ones before.
        random_start: start at a uniform point of the ball, else at the image.
        start: points (N, …) to start at instead, each first moved to the nearest point of its ball.
        seed: seed of the starts.
        objective: what to ascend; a sum over examples.
        batch_size: images per gradient; changes the cost and, but for rounding, not the result.
        stop_when_fooled: whether an image that fools the network stays; else each path goes on to its end (of
            one start: with restarts the images that the last iterate fools stay all the same).
        bounds: least and largest value that an input can have.

    Returns:
        Adversarial images within the bounds and within ε of ``images``, same shape.

    Raises:
        InputError: images out of bounds, or a radius, step or count out of range.
    """
    _checked_radii(epsilon, images, bounds)
    if steps < 1 or restarts < 1:
        raise InputError(f"pgd: steps and restarts must be at least 1, not {steps} and {restarts}")
    if step_size is not None and step_size <= 0:
        raise InputError(f"pgd: step_size must be above 0, not {step_size}")
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    generator = torch.Generator().manual_seed(seed)
    result = images.clone()
    standing = torch.arange(len(images), device=images.device)
    for left in reversed(range(restarts)):
        # Only images still standing are carried along, packed, so that a step touches nothing else.
        lower, upper = ((images[standing] + way * epsilon).clamp_(*bounds) for way in (-1, 1))
        point, label = images[standing], labels[standing]
        if start is not None:
            point = torch.clamp(start[standing], lower, upper)
        elif random_start:
            offset = torch.empty(images.shape).uniform_(-epsilon, epsilon, generator=generator).to(images)
            point = torch.clamp(point + offset[standing], lower, upper)
        for _ in range(steps):
            batches = zip(point.split(batch_size), label.split(batch_size), strict=True)
            found = [input_gradient(objective, model, *batch) for batch in batches]
            gradient = torch.cat([gradient for gradient, _ in found])
            correct = torch.cat([logits for _, logits in found]).argmax(1) == label
            if stop_when_fooled and not correct.all():
                result[standing[~correct]] = point[~correct]
                packed = (t[correct] for t in (standing, point, label, lower, upper, gradient))
                standing, point, label, lower, upper, gradient = packed
                if not len(standing):
                    return result
            point = torch.clamp(point.add_(gradient.sign_(), alpha=step_size), lower, upper, out=point)
        result[standing] = point
        if left:
            standing = standing[correct_predictions(model, point, label)]
    return result


@evaluated
@torch.no_grad()
def local_isometry_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    beta: float,
    K: float,
    layer: int = 0,
    target: int = 1,
    steps: int = 40,
    seed: int = 0,
    bounds: tuple[float, float] = PIXELS,
) -> Tensor:
    """:func:`pgd` on what training by :func:`isorepro.methods.local_isometry` minimises.

    It ascends cross-entropy + β·(K·‖h(x + δ) − h(x)‖ − target·‖δ‖)² of each image. An image that was fooled on the
    way goes on, so that only the last point counts.

    Args:
        model, images, labels, epsilon, steps, seed, bounds: as for :func:`pgd`.
        beta, K, layer, target: of the training. Since steps are signs, a large β leaves the penalty alone; with
            target 0 that is ‖h(x + δ) − h(x)‖, which the training's own steps ascend.

    Returns:
        Adversarial images within the bounds and within ε of ``images``, same shape.

    Raises:
        InputError: as for :func:`pgd`; a hidden layer of a model that is no :class:`isorepro.models.Stack`, or
            one that it does not have.
    """

    def h(points: Tensor) -> Tensor:
        if layer == -1:
            return class_logits(model, points)
        if not isinstance(model, Stack):
            raise InputError(f"local_isometry_pgd: needs a Stack's hidden layers, not {type(model).__name__}")
        return model.hidden(points, len(model.reads) - 1, back=layer)

    fixed = h(images)

    def objective(model: nn.Module, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        entropy, logits = cross_entropy(model, points, labels)
        # The penalty is a mean over the images, the objective a sum.
        weight = beta * len(points)
        return entropy + local_isometry(fixed, h(points), target * (points - images), beta=weight, K=K), logits

    return pgd(
        *(model, images, labels),
        epsilon=epsilon,
        steps=steps,
        seed=seed,
        objective=objective,
        # All images at once and to the end, since each is compared with where it started.
        batch_size=max(1, len(images)),
        stop_when_fooled=False,
        bounds=bounds,
    )


@torch.no_grad()
def l2_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int = 40,
    step_size: float | None = None,
    seed: int = 0,
    objective: Objective = cross_entropy,
    batch_size: int = 500,
    bounds: tuple[float, float] = PIXELS,
) -> Tensor:
    """Projected gradient ascent in the Euclidean ball (Madry et al. 2018), along the gradient, not its signs.

    An image that fools the network stays where it is, as in :func:`pgd`.

    Args:
        model, images, labels, objective, batch_size, bounds: as for :func:`pgd`.
        epsilon: L2 radius ≥ 0.
        steps: gradient steps from a random point of the ball, ≥ 1.
        step_size: length of a step, > 0; None for 2.5 ε / steps.
        seed: seed of the starts.

    Returns:
        Adversarial images within the bounds and within ε of ``images``, same shape.

    Raises:
        InputError: images out of bounds, or a radius, step or count out of range.
    """
    _checked_radii(epsilon, images, bounds)
    if steps < 1:
        raise InputError(f"l2_pgd: steps must be at least 1, not {steps}")
    if step_size is not None and step_size <= 0:
        raise InputError(f"l2_pgd: step_size must be above 0, not {step_size}")
    step_size = 2.5 * epsilon / steps if step_size is None else step_size

    def lengths(moves: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(moves.flatten(1), dim=1).clamp_min(torch.finfo(moves.dtype).tiny)
        return norms.view(-1, *[1] * (moves.dim() - 1))

    def into_ball(moves: Tensor, origin: Tensor) -> Tensor:
        # Clamping moves a point no further from its image, which is within the bounds.
        return (origin + moves * (epsilon / lengths(moves)).clamp_max(1)).clamp_(*bounds)

    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(images.shape, generator=generator).to(images)
    shares = torch.rand(len(images), generator=generator).to(images) ** (1 / max(1, images[:1].numel()))
    radii = epsilon * shares.view(-1, *[1] * (images.dim() - 1))
    result = images.clone()
    standing = torch.arange(len(images), device=images.device)
    origin, label = images, labels
    point = into_ball(offset * (radii / lengths(offset)), origin)
    for _ in range(steps):
        batches = zip(point.split(batch_size), label.split(batch_size), strict=True)
        found = [input_gradient(objective, model, *batch) for batch in batches]
        gradient = torch.cat([gradient for gradient, _ in found])
        correct = torch.cat([logits for _, logits in found]).argmax(1) == label
        if not correct.all():
            result[standing[~correct]] = point[~correct]
            packed = (t[correct] for t in (standing, point, label, origin, gradient))
            standing, point, label, origin, gradient = packed
            if not len(standing):
                return result
        point = into_ball(point + step_size * gradient / lengths(gradient) - origin, origin)
    result[standing] = point
    return result


@evaluated
@torch.no_grad()
def correct_predictions(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 1000) -> Tensor:
    """Return which images the model classifies correctly: (N, …), (N,) → (N,) bool.

    Raises:
        InputError: a label of a class that the model does not have.
    """
    found = []
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits = class_logits(model, x)
        if len(y) and int(y.max()) >= logits.shape[1]:
            raise InputError(f"labels: must be below {logits.shape[1]}, the model's classes, not {int(y.max())}")
        found.append(logits.argmax(1) == y)
    return torch.cat(found)


@evaluated
def accuracy_curve(
    attack: OneGradientAttack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    *,
    batch_size: int = 100,
) -> Tensor:
    """Attack each image at each radius by an attack that takes one gradient for all radii.

    Args:
        attack: called on batches of ``batch_size`` with all radii at once.
        model: images (B, …) → logits (B, classes).
        images: (N, …) in [0, 1].
        labels: (N,), int64; or those of all levels of a :class:`isorepro.models.Stack`, (levels, N), for an attack
            on them all. The prediction is compared with the finest.
        epsilons: E radii in any order.
        batch_size: images of a batch; the released attacks depend on it and take 100.

    Returns:
        (E, N) bool: which attacked images are classified correctly.
    """
    radii = torch.tensor(epsilons, dtype=images.dtype, device=images.device)
    columns = []
    for x, y in zip(images.split(batch_size), labels.split(batch_size, dim=-1), strict=True):
        attacked = attack(model, x, y, epsilon=radii)
        finest = y.view(-1, len(x))[-1]
        rows = correct_predictions(model, attacked.flatten(0, 1), finest.repeat(len(radii)))
        columns.append(rows.view(len(radii), len(x)))
    return torch.cat(columns, dim=1)


@evaluated
def nested_accuracy_curve(
    attack: Attack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    *,
    batch_size: int = 2000,
) -> Tensor:
    """Attack at growing radii, each time only the images that no smaller ball has fooled.

    The balls of one image are nested, so an adversarial image of a smaller ball counts in every larger one:
    the curve falls by construction, and a radius costs only the images still standing. An image that is
    misclassified without attack counts as fooled at every radius.

    Args:
        attack: called once for each batch and radius with the images still standing.
        model: images (B, …) → logits (B, classes).
        images: (N, …) in [0, 1].
        labels: (N,), int64.
        epsilons: E radii, strictly increasing.
        batch_size: images taken through all radii at once; bounds the memory.

    Returns:
        (E, N) bool: which images no ball up to that radius has fooled.

    Raises:
        InputError: radii that do not increase.
    """
    _require_nested(epsilons)
    curve = torch.zeros(len(epsilons), len(images), dtype=torch.bool, device=images.device)
    correct = correct_predictions(model, images, labels)
    for standing in correct.nonzero().squeeze(1).split(batch_size):
        for row, epsilon in zip(curve, epsilons, strict=True):
            attacked = attack(model, images[standing], labels[standing], epsilon=epsilon)
            standing = standing[correct_predictions(model, attacked, labels[standing])]
            if not len(standing):
                break
            row[standing] = True
    return curve


def pgd_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    *,
    steps: int = 40,
    objective: Objective = cross_entropy,
    seed: int = 0,
    batch_size: int = 500,
    bounds: tuple[float, float] = PIXELS,
) -> Tensor:
    """Attack by :func:`pgd` at growing radii, each ball attacked from where the path in the smaller one ended.

    The smallest ball gets all steps from a random start. In each larger one the images still standing get a
    quarter of the steps from the end of the last path, moved outwards in proportion to the radius; those that
    withstand, another quarter from a random start; and once no more than a tenth of a batch is left, all steps
    from a random start. On the paper's networks this leaves as many images standing as all steps from a random
    start at each radius, or a few less, for less than half the gradients.

    Args:
        model, images, labels, objective, bounds: as for :func:`pgd`.
        epsilons: E radii ≥ 0, strictly increasing.
        steps: gradient steps in the smallest ball, ≥ 1.
        seed: seed of the random starts.
        batch_size: images taken through all radii at once; more of them fall out of the processor's caches.

    Returns:
        (E, N) bool: which images no ball up to that radius has fooled, as of :func:`nested_accuracy_curve`.

    Raises:
        InputError: as for :func:`pgd`, or radii that do not increase.
    """
    _require_nested(epsilons)
    curve = torch.zeros(len(epsilons), len(images), dtype=torch.bool, device=images.device)
    attack = partial(pgd, model, objective=objective, seed=seed, bounds=bounds)
    for standing in correct_predictions(model, images, labels).nonzero().squeeze(1).split(batch_size):
        end, last, attacked = images[standing], 0.0, len(standing)
        for row, epsilon in zip(curve, epsilons, strict=True):
            # Steps, where they start, and the share of the batch up to which they are taken.
            tries: list[tuple[int, Tensor | None, float]] = [(steps, None, 1.0)]
            if last:
                x, few = images[standing], math.ceil(steps / 4)
                tries = [(few, x + (end - x) * (epsilon / last), 1.0), (few, None, 1.0), (steps, None, 0.1)]
            for count, start, share in tries:
                if 0 < len(standing) <= share * attacked:
                    x, y = images[standing], labels[standing]
                    end, last = attack(x, y, epsilon=epsilon, steps=count, start=start), epsilon
                    stands = correct_predictions(model, end, y)
                    standing, end = standing[stands], end[stands]
            row[standing] = True
    return curve


def _require_nested(epsilons: Sequence[float]) -> None:
    if any(larger <= smaller for smaller, larger in itertools.pairwise(epsilons)):
        raise InputError(f"epsilons: must increase strictly for balls that nest, not {list(epsilons)}")


def _checked_radii(epsilon: float | Tensor, images: Tensor, bounds: tuple[float, float] = PIXELS) -> Tensor:
    """Return the radii shaped to broadcast over the images: () or (E, 1, …)."""
    if len(images) and not (float(images.min()) >= bounds[0] and float(images.max()) <= bounds[1]):
        low, high = float(images.min()), float(images.max())
        raise InputError(f"images: values must lie in [{bounds[0]:g}, {bounds[1]:g}], not in [{low:g}, {high:g}]")
    radii = torch.as_tensor(epsilon, dtype=images.dtype, device=images.device)
    if not bool((radii >= 0).all()):
        raise InputError(f"epsilon: must be at least 0, not {float(radii.min()):g}")
    return radii.view(-1, *[1] * images.dim()) if radii.dim() else radii
