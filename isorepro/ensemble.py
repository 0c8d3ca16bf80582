"""AutoAttack, attacks without gradients, and curves under every attack with the worst case of them all.

AutoAttack's parts are those of the package pyautoattack, or give its images. It is slow, so that a part of the
test images must do: another draw for each seed, one for all networks of a seed, so that intervals over seeds hold
the variation of the images as well.
"""

import bisect
import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from isorepro import attacks, hierarchy, methods
from isorepro.attacks import PIXELS, Objective
from isorepro.errors import InputError
from isorepro.models import class_logits, evaluated
from isorepro.robustness import CLEAN, CORRECTED, FGSM, ONE_GRADIENT_PGD, PGD, RELEASED
from isorepro.training import TrainedModel, TrainingConfig, dataset_of, resolve_device

MARGIN_PGD, DLR_PGD, TRAINING_LOSS_PGD = "PGD on the margin", "PGD on DLR", "PGD on the training loss"
"""Names of PGD on other objectives than the cross-entropy."""

AUTOATTACK, TRANSFER, WORST_CASE = "AutoAttack", "transfer", "worst case"
"""Names of the ensemble, of examples made on another network, and of the strongest attack on each image."""

UNIFORM_NOISE, GAUSSIAN_NOISE = "uniform noise", "Gaussian noise"
"""Names of random perturbations."""

ROUNDING = 1e-6
"""What the distance of two images may exceed a radius by, in float32."""

# The package warns of zero gradients, which have a check of their own.
_SILENT = logging.Logger("pyautoattack")
_SILENT.addHandler(logging.NullHandler())


def uniform_noise(
    images: Tensor, epsilon: float, *, bounds: tuple[float, float] = PIXELS, seed: int = 0
) -> Tensor:
    """Return images (N, …) with noise drawn uniformly from the ball of radius ε."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(images.shape).uniform_(-1, 1, generator=generator).to(images)
    return (images + epsilon * noise).clamp(*bounds)


def gaussian_noise(
    images: Tensor, epsilon: float, *, bounds: tuple[float, float] = PIXELS, seed: int = 0
) -> Tensor:
    """Return images (N, …) with Gaussian noise of standard deviation ε, cut at ±ε so that it stays in the ball."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(images.shape).normal_(generator=generator).clamp(-1, 1).to(images)
    return (images + epsilon * noise).clamp(*bounds)


NOISE: dict[str, Callable[..., Tensor]] = {UNIFORM_NOISE: uniform_noise, GAUSSIAN_NOISE: gaussian_noise}
"""Name → random perturbation of images."""


@evaluated
def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    queries: int = 5000,
    seed: int = 0,
) -> Tensor:
    """Attack by random squares, without gradients (Andriushchenko et al. 2020).

    Each query moves one square, the same for all images, to the upper or lower end of the ball, and stays where
    this lowers the margin. Draws are those of the package pyautoattack, so that the images are its images; the
    package takes one radius for all of them.

    Args:
        model: images (B, channels, height, width) in [0, 1] → logits (B, classes).
        images: (N, channels, height, width) in [0, 1].
        labels: (N,), int64.
        epsilon: L∞ radius > 0, or one for each image, (N,).
        queries: forward passes for each image, ≥ 1.
        seed: seed of the squares.

    Returns:
        Images of the same shape; those that were not fooled are unchanged.
    """
    generator = torch.Generator().manual_seed(seed)
    result, (channels, height, width) = images.clone(), images.shape[1:]
    standing = attacks.correct_predictions(model, images, labels).nonzero().squeeze(1)
    label, radii = labels[standing, None], _radii(epsilon, images)[standing]
    lower, upper = ((images[standing] + way * radii).clamp(*PIXELS) for way in (-1, 1))

    def margins(points: Tensor) -> Tensor:
        logits = class_logits(model, points)
        return logits.gather(1, label).squeeze(1) - logits.scatter(1, label, -math.inf).amax(1)

    with torch.no_grad():
        ends = torch.rand(len(standing), channels, 1, width, generator=generator).to(images) > 0.5
        point = torch.where(ends, upper, lower)
        least = margins(point)
        # For each query the place of its square and the end that each channel moves to.
        for query, draw in enumerate(torch.rand(queries, 2 + channels, generator=generator)):
            fooled = least <= 0
            if fooled.any():
                result[standing[fooled]] = point[fooled]
                packed = (t[~fooled] for t in (standing, label, lower, upper, point, least))
                standing, label, lower, upper, point, least = packed
            if not len(standing):
                break
            side = _square_side(query, height, width)
            top, left = int((height - side) * draw[0]), int((width - side) * draw[1])
            window = (..., slice(top, top + side), slice(left, left + side))
            ends = (draw[2:] > 0.5).view(channels, 1, 1).to(images.device)
            moved = point.clone()
            moved[window] = torch.where(ends, upper[window], lower[window])
            margin = margins(moved)
            point = torch.where((margin < least).view(-1, 1, 1, 1), moved, point)
            least = torch.minimum(margin, least)
        fooled = least <= 0
        result[standing[fooled]] = point[fooled]
    return result


def _square_side(query: int, height: int, width: int) -> int:
    """Return the side of a query's square: ever fewer pixels, from 80 % on, as published for 10,000 queries."""
    halvings = bisect.bisect_left((10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), query)
    side = round(math.sqrt(0.8 / 2**halvings * height * width))
    return min(max(side, 1), height, width)


@evaluated
@torch.no_grad()
def fab(model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor, *, iterations: int = 100) -> Tensor:
    """Look for the nearest image that is taken for another class, without any radius (FAB, Croce & Hein 2020).

    Each iteration takes the boundary between the true class and the target for a plane and goes a little beyond it
    from the point reached, drawn towards the image; from what fools it goes a part of the way back. Steps and
    settings are those of the package pyautoattack, and the distances reached differ by rounding. The package sorts
    pixels to find a step, which takes longer.

    Args:
        model: images (B, …) in [0, 1] → logits (B, classes).
        images: (N, …) in [0, 1], all classified correctly.
        labels: (N,), int64.
        targets: (N,), int64, none the label: the class to which the boundary is approached.
        iterations: two forward passes and one backward each, ≥ 1.

    Returns:
        Images of the same shape; those that were not fooled are unchanged.
    """
    overshoot, most_drawn, back = 1.05, 0.1, 0.9
    ends, origin = torch.stack([labels, targets], 1), images.flatten(1)
    result, point = images.clone(), images

    def ahead(model: nn.Module, points: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        own, other = class_logits(model, points).gather(1, ends).unbind(1)
        return (own - other).sum(), own - other

    nearest = torch.full((len(images),), math.inf, dtype=images.dtype, device=images.device)
    for _ in range(iterations):
        slopes, lead = attacks.input_gradient(ahead, model, point, ends)
        slopes, at = slopes.flatten(1), point.flatten(1)
        lead_at_origin = lead + (slopes * (origin - at)).sum(1)
        moves = _to_plane(torch.cat([at, origin]), torch.cat([slopes, slopes]), torch.cat([lead, lead_at_origin]))
        lengths = moves.abs().amax(1, keepdim=True).clamp_min_(1e-8)
        (move, from_origin), (length, length_from_origin) = moves.chunk(2), lengths.chunk(2)
        drawn = (length / (length + length_from_origin)).clamp_max_(most_drawn)
        at = torch.lerp(at + overshoot * move, origin + overshoot * from_origin, drawn).clamp_(*PIXELS)
        fooled = (class_logits(model, at.view_as(images)).argmax(1) != labels).nonzero().squeeze(1)
        moved = at[fooled] - origin[fooled]
        distance = moved.abs().amax(1)
        nearer = distance < nearest[fooled]
        nearest[fooled[nearer]] = distance[nearer]
        result[fooled[nearer]] = at[fooled[nearer]].view_as(result[fooled[nearer]])
        at[fooled] = origin[fooled] + back * moved
        point = at.view_as(images)
    return result


def _to_plane(points: Tensor, slopes: Tensor, values: Tensor) -> Tensor:
    """Return the moves, shortest in L∞, that stay in [0, 1] and bring linear functions to 0, or as near as can be.

    All pixels that can move by λ do; the others go to their end. How much the function changes is concave in λ and
    linear between the ends, so that Newton's method from below reaches the λ wanted in a few steps, and exactly.

    Args:
        points: (N, D) in [0, 1].
        slopes: of the function at each point, (N, D).
        values: of the function there, (N,).

    Returns:
        (N, D).
    """
    slopes, values = slopes * values.sign()[:, None], values.abs()
    weights, room = slopes.abs(), torch.where(slopes > 0, points, 1 - points)
    length, before = values.new_zeros(len(values), 1), None
    moves, free = torch.zeros_like(room), torch.empty_like(room)
    while True:
        torch.gt(room, length, out=free)
        count = free.sum(1)
        if before is not None and torch.equal(count, before):
            return moves.mul_(slopes.sign_().neg_())
        missing, rate = values - torch.linalg.vecdot(weights, moves), torch.linalg.vecdot(weights, free)
        # Where no pixel is left that changes anything, all go to their ends. Rounding must not turn back.
        length += (missing / rate).clamp_min_(0).masked_fill_(rate == 0, math.inf)[:, None]
        before = count
        torch.minimum(room, length, out=moves)


def _require_images(images: Tensor) -> None:
    if images.dim() != 4:
        raise InputError(f"AutoAttack: needs images, (N, channels, height, width), not {tuple(images.shape)}")


def _radii(epsilon: float | Tensor, images: Tensor) -> Tensor:
    """Return a radius for each image, as (N, 1, …)."""
    radii = torch.as_tensor(epsilon, dtype=images.dtype, device=images.device).expand(len(images))
    return radii.reshape(-1, *[1] * (images.dim() - 1))


@evaluated
@torch.random.fork_rng()
@torch.no_grad()
def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    iterations: int = 100,
    queries: int = 5000,
    seed: int = 0,
) -> Tensor:
    """Attack by the standard AutoAttack ensemble (Croce & Hein 2020).

    APGD on the cross-entropy, APGD on the targeted difference-of-logits ratio (single runs of these are the
    package pyautoattack's), targeted FAB and Square, each on the images that withstood the ones before; nine
    targets, or as many as there are other classes. It goes by that name from four classes on;
    :func:`autoattack_curve` takes fewer.

    Args:
        model: images (B, channels, height, width) in [0, 1] → logits (B, classes).
        images: (N, channels, height, width) in [0, 1], all classified correctly.
        labels: (N,), int64.
        epsilon: L∞ radius > 0, or one for each image, (N,).
        iterations: of APGD and FAB, for each target; the standard is 100.
        queries: of Square; the standard is 5,000.
        seed: seed of the starts and squares.

    Returns:
        Images of the same shape; those that were not fooled are unchanged.

    Raises:
        InputError: inputs that are no images, or fewer than four classes.
    """
    _require_images(images)
    attacks.require_four_classes(class_logits(model, images[:1]).shape[1], "AutoAttack (targeted APGD)")
    radii = _radii(epsilon, images)
    result, standing = images.clone(), torch.arange(len(images), device=images.device)
    for run in _ensemble(model, images, labels, iterations=iterations, queries=queries, seed=seed):
        if len(standing):
            found = run(standing, radii[standing])
            fooled = _distances(images[standing], found) <= radii[standing].flatten() + ROUNDING
            fooled &= ~attacks.correct_predictions(model, found, labels[standing])
            result[standing[fooled]] = found[fooled]
            standing = standing[~fooled]
    return result


def _ensemble(
    model: nn.Module, images: Tensor, labels: Tensor, *, iterations: int, queries: int, seed: int
) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """Yield the runs of the ensemble in turn: (indices of n images, their radii (n, 1, …)) → images (n, …).

    What a run returns need not fool, nor lie in the ball. Of fewer than four classes there is no targeted APGD,
    whose ratio compares four logits.

    Raises:
        InputError: inputs that are no images.
    """
    _require_images(images)
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    model, images = copy.deepcopy(model).eval().requires_grad_(False), images.contiguous()
    with torch.no_grad():
        clean = class_logits(model, images)

    def watched(points: Tensor) -> Tensor:
        if points.requires_grad:
            points.register_hook(attacks.finite_gradient)
        return class_logits(model, points)

    classes = clean.shape[1]
    shared: dict[str, Any] = {"n_iter": iterations, "eps": 0.0, "seed": seed, "device": images.device}
    apgd = APGDAttack(watched, **shared, logger=_SILENT)
    targeted = APGDAttack_targeted(watched, **shared, logger=_SILENT)

    # The package's own loops take one radius for all images; a single run of APGD takes one for each.
    def by_apgd(attack: APGDAttack, rank: int | None, chosen: Tensor, radii: Tensor) -> Tensor:
        attack.init_hyperparam(images)
        attack.eps = radii
        attack.y_target = None if rank is None else clean[chosen].argsort(1)[:, -rank]
        found: Tensor = attack.attack_single_run(images[chosen], labels[chosen])[-1]
        return found

    # It looks for the nearest image that fools, whatever the radius.
    def by_fab(rank: int, chosen: Tensor, radii: Tensor) -> Tensor:
        targets = clean[chosen].argsort(1)[:, -rank]
        return fab(model, images[chosen], labels[chosen], targets, iterations=iterations)

    def by_square(chosen: Tensor, radii: Tensor) -> Tensor:
        return square(model, images[chosen], labels[chosen], epsilon=radii.flatten(), queries=queries, seed=seed)

    ranks = range(2, min(9, classes - 1) + 2)
    for runs in (
        [partial(by_apgd, apgd, None)],
        [partial(by_apgd, targeted, rank) for rank in ranks if classes >= 4],
        [partial(by_fab, rank) for rank in ranks],
        [by_square],
    ):
        torch.manual_seed(seed)
        yield from runs


def _distances(images: Tensor, moved: Tensor) -> Tensor:
    """Return the L∞ distance of each image from its moved one: (n, …), (n, …) → (n,)."""
    return (moved - images).abs().flatten(1).amax(1)


@torch.random.fork_rng()
@torch.no_grad()
def autoattack_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    *,
    iterations: int = 100,
    queries: int = 5000,
    seed: int = 0,
) -> Tensor:
    """Run AutoAttack at several radii, each image through the ensemble once.

    PGD tells for each image the smallest ball in which it is fooled; the ensemble attacks it in the next smaller
    one, all images at once, each in its own ball. An attack that cannot fool an image there is not tried on it in
    smaller balls; where it does, the image goes on in the largest ball that does not hold what was found, the same
    attack first. The curve falls by construction. An image that is misclassified without attack counts as fooled
    at every radius. Of fewer than four classes the ensemble lacks the targeted APGD, which is not defined there.

    Args:
        model, images, labels, iterations, queries, seed: as for :func:`autoattack`, images of any prediction.
        epsilons: E radii above 0, strictly increasing.

    Returns:
        (E, N) bool: which images stand.

    Raises:
        InputError: inputs that are no images, or radii that do not increase from above 0.
    """
    if any(larger <= smaller for smaller, larger in itertools.pairwise([0.0, *epsilons])):
        raise InputError(f"epsilons: must increase strictly from above 0, not {list(epsilons)}")
    radii = torch.tensor(epsilons, dtype=images.dtype, device=images.device)
    # How many of the balls, from the smallest on, an image may withstand.
    balls = torch.full((len(images),), len(radii), device=images.device)
    for objective in (attacks.cross_entropy, attacks.margin):
        curve = attacks.pgd_curve(model, images, labels, epsilons, objective=objective, seed=seed)
        balls = torch.minimum(balls, curve.sum(0))
    for run in _ensemble(model, images, labels, iterations=iterations, queries=queries, seed=seed):
        tried = balls.nonzero().squeeze(1)
        while len(tried):
            found = run(tried, _radii(radii[balls[tried] - 1], images[tried]))
            held = torch.searchsorted(radii + ROUNDING, _distances(images[tried], found))
            fooled = ~attacks.correct_predictions(model, found, labels[tried]) & (held < balls[tried])
            tried = tried[fooled]
            balls[tried] = held[fooled]
            tried = tried[balls[tried] > 0]
    return torch.arange(len(radii), device=images.device)[:, None] < balls


def curves(
    trained: TrainedModel,
    source: TrainedModel | None,
    *,
    epsilons: Sequence[float],
    images: int,
    pgd_steps: int = 40,
    iterations: int = 100,
    queries: int = 5000,
) -> pd.DataFrame:
    """Measure the classification rate of a flat network against ε under every attack, on the same images.

    Args:
        trained: the network.
        source: a cross-entropy network of another seed, whose adversarial images are tried on this one; None
            leaves the transferred attack out.
        epsilons: L∞ radii on pixels in [0, 1] above 0, strictly increasing.
        images: size of the stratified test subset.
        pgd_steps: steps of each PGD.
        iterations, queries: of AutoAttack.

    Returns:
        One row per protocol, attack and radius: protocol, attack, epsilon, accuracy in [0, 1] and images. "worst
        case": the images that stand under every attack but the released PGD, whose steps leave the ball, at this
        and all smaller radii. The clean accuracy is a row at ε = 0. Of fewer than four classes "PGD on DLR" is not
        defined and left out, and AutoAttack is what :func:`autoattack_curve` says.

    Raises:
        InputError: a stack of several levels, or inputs that are no images.
    """
    config, (inputs, labels), device = trained.config, *attacked_images(trained, images)
    if labels.dim() > 1:
        raise InputError(f"evaluation health: needs a flat network, not a stack of {len(labels)} levels")
    model = trained.model.to(device)
    target, classes = (model, inputs, labels), model.architecture["classes"][-1]
    loss: dict[str, Any] = {"beta": config.beta, "K": config.K, "form": config.form}

    def each(attack: Callable[[float], Tensor]) -> Tensor:
        return torch.stack([attacks.correct_predictions(model, attack(radius), labels) for radius in epsilons])

    def pgd(objective: Objective) -> Tensor:
        return attacks.pgd_curve(*target, epsilons, steps=pgd_steps, objective=objective)

    def on_training_loss(radius: float) -> Tensor:
        return torch.cat(
            [
                attacks.pgd(
                    model,
                    x,
                    y,
                    epsilon=radius,
                    steps=pgd_steps,
                    objective=attacks.released_objective(x, **loss),
                    # The batch stays together, since the isometry term compares its images.
                    stop_when_fooled=False,
                )
                for x, y in zip(inputs.split(100), labels.split(100), strict=True)
            ]
        )

    standing: dict[tuple[str, str], Tensor] = {
        (RELEASED, FGSM): attacks.accuracy_curve(partial(attacks.released_fgsm, **loss), *target, epsilons),
        (RELEASED, ONE_GRADIENT_PGD): attacks.accuracy_curve(
            partial(attacks.released_pgd, **loss), *target, epsilons
        ),
        (CORRECTED, TRAINING_LOSS_PGD): each(on_training_loss),
        (CORRECTED, FGSM): attacks.accuracy_curve(attacks.fgsm, *target, epsilons),
        (CORRECTED, PGD): pgd(attacks.cross_entropy),
        (CORRECTED, MARGIN_PGD): pgd(attacks.margin),
        **({(CORRECTED, DLR_PGD): pgd(attacks.dlr)} if classes >= 4 else {}),
        (CORRECTED, AUTOATTACK): autoattack_curve(*target, epsilons, iterations=iterations, queries=queries),
        **{(CORRECTED, name): each(partial(noisy, inputs)) for name, noisy in NOISE.items()},
    }
    if source is not None:
        other = source.model.to(device)
        standing[CORRECTED, TRANSFER] = each(
            lambda radius: attacks.pgd(
                other, inputs, labels, epsilon=radius, steps=pgd_steps, stop_when_fooled=False
            )
        )
        other.cpu()
    clean = attacks.correct_predictions(*target)
    inside = [found for names, found in standing.items() if names != (RELEASED, ONE_GRADIENT_PGD)]
    standing[CORRECTED, WORST_CASE] = worst_case(torch.stack([clean.expand_as(inside[0]), *inside]))
    model.cpu()
    rows = [(CORRECTED, CLEAN, 0.0, float(clean.double().mean()))]
    for names, found in standing.items():
        accuracies = found.double().mean(1).tolist()
        rows += [(*names, *pair) for pair in zip(epsilons, accuracies, strict=True)]
    return pd.DataFrame(rows, columns=["protocol", "attack", "epsilon", "accuracy"]).assign(images=len(inputs))


def finest_autoattack(
    trained: TrainedModel,
    *,
    epsilons: Sequence[float],
    images: int,
    iterations: int = 100,
    queries: int = 5000,
) -> pd.DataFrame:
    """Measure the classification rate of a network, of a stack's finest level, against ε under AutoAttack.

    Args:
        trained: the network, of images.
        epsilons: L∞ radii on pixels in [0, 1] above 0, strictly increasing.
        images: size of the stratified test subset.
        iterations, queries: of AutoAttack.

    Returns:
        One row per radius: level (the finest, from 1), protocol, attack, epsilon, accuracy in [0, 1] and images.

    Raises:
        InputError: inputs that are no images.
    """
    (inputs, labels), device = attacked_images(trained, images)
    model, finest = trained.model.to(device), finest_labels(labels)
    standing = autoattack_curve(model, inputs, finest, epsilons, iterations=iterations, queries=queries)
    model.cpu()
    return pd.DataFrame(
        {
            "level": len(model.architecture["classes"]),
            "protocol": CORRECTED,
            "attack": AUTOATTACK,
            "epsilon": list(epsilons),
            "accuracy": standing.double().mean(1).tolist(),
            "images": len(inputs),
        }
    )


def worst_case(standing: Tensor) -> Tensor:
    """Return which images stand under every attack at this and every smaller radius: (A, E, N) → (E, N) bool."""
    return standing.all(0).int().cummin(0).values.bool()


def sources(models: Sequence[TrainedModel]) -> list[TrainedModel | None]:
    """Return for each network the cross-entropy network that attacks are transferred from.

    It is equal but for the isometry term and the method, and has the next seed, after the last the first; with a
    single seed the cross-entropy networks have none.

    Args:
        models: networks among which there is one with β = 0 and the default method for every kind and seed.

    Raises:
        InputError: there is not.
    """
    seeds = sorted({model.config.seed for model in models})
    by_kind = {_kind(model.config): model for model in models if model.config.plain}
    found: list[TrainedModel | None] = []
    for model in models:
        seed = seeds[(seeds.index(model.config.seed) + 1) % len(seeds)]
        other = by_kind.get(_kind(model.config, seed))
        if other is None:
            raise InputError(f"betas: must hold 0 for every seed, which has no network with β = 0 for seed {seed}")
        found.append(None if other.config == model.config else other)
    return found


def _kind(config: TrainingConfig, seed: int | None = None) -> str:
    """Return what two networks share that differ in the isometry term and the method alone."""
    kept = config.model_dump() | {
        "method": methods.DEFAULT,
        "options": (),
        "form": "raw",
        "K": 1.0,
        "beta": 0.0,
        "seed": config.seed if seed is None else seed,
    }
    return repr(kept)


def attacked_images(trained: TrainedModel, images: int) -> tuple[tuple[Tensor, Tensor], torch.device]:
    """Return a stratified test subset with its labels, (N,) or (levels, N), and the device they are on."""
    config, device = trained.config, resolve_device(trained.config.device)
    dataset = dataset_of(config, test_size=images).to(device)
    labels = hierarchy.level_labels(config.hierarchy, dataset.test_labels, len(dataset.classes))
    return (dataset.test_inputs, labels if len(labels) > 1 else labels[0]), device


def finest_labels(labels: Tensor) -> Tensor:
    """Return the labels of the finest level: (N,) or (levels, N) → (N,)."""
    return labels.view(-1, labels.shape[-1])[-1]
