"""Did the attack do its job? Checks of robustness evaluations.

A robustness curve bounds robustness from above: a weak attack makes any network look robust. The checks follow
Athalye et al. (2018) and Carlini et al. (2019). Each is one number that must not exceed a threshold, computed
from a network and a pair of attacks, so that other attacks can be checked as well.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from isorepro import attacks, robustness, stats
from isorepro.attacks import PIXELS, UNBOUNDED, Attack, Objective
from isorepro.ensemble import AUTOATTACK, NOISE, WORST_CASE, attacked_images, finest_labels, square
from isorepro.errors import InputError
from isorepro.models import evaluated
from isorepro.robustness import ATTACK_LIMIT, CLEAN, CORRECTED, FGSM, PGD, RELEASED
from isorepro.training import TrainedModel, TrainingConfig

SLACK, STEPS_SLACK = 0.002, 0.005
"""Differences of accuracy that count as none: between attacks, and between numbers of steps."""


class IteratedAttack(Protocol):
    """An attack of several steps, everything fixed but its target, its radius and the number of steps."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
        """Return adversarial images of the shape of ``images``."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """A way to evaluate robustness: a one-step attack and an iterated one that should be stronger.

    Attributes:
        one_step, iterated: the attacks; they are given the labels that :func:`checks` is given.
        steps: steps of the iterated attack.
        step_size: (ε, steps) → length of one of its steps.
        objective: the clean batch (B, …) → what both attacks ascend from it.
        batch_size: images that the objective takes together; matters where it is no sum over images.
        bounds: least and largest value that an input can have.
    """

    one_step: Attack
    iterated: IteratedAttack
    steps: int
    step_size: Callable[[float, int], float]
    objective: Callable[[Tensor], Objective]
    batch_size: int = 100
    bounds: tuple[float, float] = PIXELS


@dataclass(frozen=True)
class Check:
    """One finding on an evaluation.

    Attributes:
        name: what must be so.
        measured: the number found, in the unit of the threshold; NaN never passes.
        threshold: the largest number that passes.
        source: where the threshold comes from.
    """

    name: str
    measured: float
    threshold: float
    source: str

    @property
    def passed(self) -> bool:
        """Whether the evaluation is as it must be."""
        # One image of a hundred is a hundredth, whatever the rounding.
        return self.measured <= self.threshold + 1e-9


def corrected(steps: int, bounds: tuple[float, float] = PIXELS) -> Evaluation:
    """Return the evaluation by FGSM and PGD on the cross-entropy of the finest level.

    Args:
        steps: steps of PGD.
        bounds: least and largest value that an input can have.
    """

    def iterated(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
        return attacks.pgd(model, images, finest_labels(labels), epsilon=epsilon, steps=steps, bounds=bounds)

    def one_step(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
        return attacks.fgsm(model, images, finest_labels(labels), epsilon=epsilon, bounds=bounds)

    def objective(clean: Tensor) -> Objective:
        return lambda model, images, labels: attacks.cross_entropy(model, images, finest_labels(labels))

    return Evaluation(
        one_step, iterated, steps, lambda epsilon, steps: 2.5 * epsilon / steps, objective, bounds=bounds
    )


def released(config: TrainingConfig) -> Evaluation:
    """Return the evaluation as released: FGSM and one-gradient PGD on the training loss, in batches of 100."""
    loss: dict[str, Any] = {"beta": config.beta, "K": config.K, "form": config.form}

    def batched(attack: Callable[..., Tensor], images: Tensor, labels: Tensor) -> Tensor:
        pairs = zip(images.split(100), labels.split(100, dim=-1), strict=True)
        return torch.cat([attack(batch, own) for batch, own in pairs])

    def one_step(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
        attack = partial(attacks.released_fgsm, model, epsilon=epsilon, **loss)
        return batched(attack, images, labels)

    def iterated(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
        attack = partial(attacks.released_pgd, model, epsilon=epsilon, steps=steps, **loss)
        return batched(attack, images, labels)

    return Evaluation(
        one_step, iterated, 10, lambda epsilon, steps: epsilon, partial(attacks.released_objective, **loss)
    )


def _checked_radii(epsilon: float, epsilons: Sequence[float], bounds: tuple[float, float]) -> list[float]:
    return sorted({*epsilons, epsilon, *([ATTACK_LIMIT] if bounds != UNBOUNDED else [])})


Rivals = dict[str, list[dict[float, Tensor]]]
"""Name of a check → for each attack that must not win in it, its images (N, …) by radius."""


def rivals(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    bounds: tuple[float, float],
    epsilon: float,
    epsilons: Sequence[float],
    source: nn.Module | None = None,
    queries: int = 1000,
    seed: int = 0,
) -> Rivals:
    """Run the attacks that no evaluation of a network may lose to: those without its gradients.

    Args:
        model, images, labels, epsilon, epsilons, source, queries, seed: as for :func:`checks`.
        bounds: least and largest value that an input can have.

    Returns:
        What they found, by check: noise and Square (of images, at ε alone), and attacks on the source.
    """
    radii, finest = _checked_radii(epsilon, epsilons, bounds), finest_labels(labels)
    black = [
        {radius: noisy(images, radius, bounds=bounds, seed=seed) for radius in radii} for noisy in NOISE.values()
    ]
    if bounds != UNBOUNDED and images.dim() == 4 and queries:
        black.append({epsilon: square(model, images, finest, epsilon=epsilon, queries=queries, seed=seed)})
    found = {"no black box is better": black}
    if source is not None:
        pgd = partial(attacks.pgd, source, images, finest, stop_when_fooled=False, bounds=bounds)
        found["no transfer is better"] = [{radius: pgd(epsilon=radius) for radius in radii}]
    return found


@evaluated
def checks(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    evaluation: Evaluation,
    *,
    epsilon: float,
    epsilons: Sequence[float],
    source: nn.Module | None = None,
    queries: int = 1000,
    seed: int = 0,
    known: Rivals | None = None,
) -> list[Check]:
    """Check an evaluation on one network.

    Differences of accuracy count from 0.2 points on, or from one image on where that is more. Where a gradient is
    not finite an attack goes on as if it were zero, which the check of zero gradients tells.

    Args:
        model: images (B, …) → logits (B, classes).
        images: (N, …) within the evaluation's bounds.
        labels: (N,), or (levels, N) with the finest, which is predicted, last.
        evaluation: the attacks.
        epsilon: radius of the checks that take only one.
        epsilons: radii of the others, at least one. Where inputs have bounds, 0.5 is attacked as well.
        source: another network, whose adversarial images are tried on this one; None leaves this check out.
        queries: of the Square attack, the black box besides noise; left out for inputs that are no images.
        seed: of noise and of Square.
        known: :func:`rivals` of the same arguments and bounds, where they are known; else they are found here.

    Returns:
        The findings, those of accuracy as shares in [0, 1].
    """
    bounded, images = evaluation.bounds != UNBOUNDED, images.detach()
    radii = _checked_radii(epsilon, epsilons, evaluation.bounds)
    finest, steps = finest_labels(labels), evaluation.steps
    if known is None:
        known = rivals(
            model,
            images,
            labels,
            bounds=evaluation.bounds,
            epsilon=epsilon,
            epsilons=epsilons,
            source=source,
            queries=queries,
            seed=seed,
        )
    one_image = 1 / len(images)
    slack = max(SLACK, one_image)
    broken: list[int] = []

    def accuracy(attacked: Tensor) -> float:
        if attacked.isnan().any():
            return math.nan
        return float(attacks.correct_predictions(model, attacked, finest).double().mean())

    def iterated(radius: float, steps: int) -> Tensor:
        with attacks.broken_gradients_counted(broken):
            return evaluation.iterated(model, images, labels, epsilon=radius, steps=steps)

    def one_step(radius: float) -> Tensor:
        with attacks.broken_gradients_counted(broken):
            return evaluation.one_step(model, images, labels, epsilon=radius)

    attacked = {radius: iterated(radius, steps) for radius in radii}
    reached = {radius: accuracy(points) for radius, points in attacked.items()}

    def above(others: dict[float, Tensor]) -> float:
        return _largest(reached[radius] - accuracy(points) for radius, points in others.items())

    found = {
        "PGD at most FGSM": (above({radius: one_step(radius) for radius in radii}), slack),
        "falls as ε grows": (
            _largest(
                after - before for before, after in itertools.pairwise([accuracy(images), *reached.values()])
            ),
            slack,
        ),
    }
    if bounded:
        found["chance at ε = 0.5"] = reached[ATTACK_LIMIT], float(finest.bincount().max()) / len(finest)
    for name, others in known.items():
        found[name] = _largest(above(attacked) for attacked in others), slack
    more = accuracy(iterated(epsilon, 2 * steps))
    shares = zero_gradients(model, images, labels, evaluation)
    # Those at moved points as well; of one gradient, so that no image counts twice.
    shares["no zero gradients"] = max(shares["no zero gradients"], max(broken, default=0) / len(images))
    for name, share in shares.items():
        found[name] = share, 0.0
    found["twice the steps change nothing"] = abs(reached[epsilon] - more), max(STEPS_SLACK, one_image)
    # An attack that moves takes its last gradient one step from where it ends, but for rounding.
    apart = steps_from_gradient(model, images[:20], labels[..., :20], evaluation, epsilon=epsilon)
    found["gradients at the moved point"] = apart, 1.01
    excess = _largest(float((points - images).abs().max()) - radius for radius, points in attacked.items())
    found["inside the ball"] = excess, 1e-6
    if bounded:
        low, high = evaluation.bounds
        points = torch.cat(list(attacked.values()))
        found["inside the range"] = _largest([low - float(points.min()), float(points.max()) - high]), 0.0
    return [Check(name, *numbers, SOURCES[name]) for name, numbers in found.items()]


def _largest(numbers: Iterable[float]) -> float:
    """Return the largest number, or NaN if one is: the built-in max may pass over it."""
    return float(torch.tensor([*numbers], dtype=torch.float64).max())


_ZERO = (
    "Athalye et al. 2018, Carlini et al. 2019: where the gradient is zero or not finite, an attack that follows "
    "it stands still"
)
SOURCES = {
    "PGD at most FGSM": "Carlini et al. 2019: an iterated attack is at least as strong as one step; 0.2 points",
    "falls as ε grows": "Carlini et al. 2019: a larger ball holds the smaller one; 0.2 points",
    "chance at ε = 0.5": "Carlini et al. 2019: there every image can become uniform grey; the commonest class",
    "no black box is better": "Athalye et al. 2018: what sees no gradient must not win; 0.2 points",
    "no transfer is better": "Athalye et al. 2018: what was made for another network must not win; 0.2 points",
    "no zero gradients": _ZERO,
    "no zero gradients, float64": _ZERO,
    "no zero gradients, logits scaled": _ZERO,
    "twice the steps change nothing": "Carlini et al. 2019: an attack must have converged; 0.5 points",
    "gradients at the moved point": "Madry et al. 2018: a step follows the gradient at the point reached; 1 step",
    "inside the ball": "the threat model: no pixel changes by more than ε; rounding",
    "inside the range": "the threat model: pixels lie in [0, 1]",
}
"""What each check's threshold rests on, and what it allows (accuracies: or one image, where that is more)."""


def zero_gradients(model: nn.Module, images: Tensor, labels: Tensor, evaluation: Evaluation) -> dict[str, float]:
    """Return the share of images at which the objective's gradient is exactly zero in every pixel, or not finite.

    As it is; in float64, since a sure network's gradient can be too small for float32; and in float64 for the
    cross-entropy of logits scaled to at most 1, since a saturated output hides the gradients of what leads to it.
    The sign of NaN is 0, and no gradient at all counts as one of NaN.

    Returns:
        Name of the check → share in [0, 1].
    """
    precise = copy.deepcopy(model).double()

    def scaled(clean: Tensor) -> Objective:
        def objective(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = model(images)
            size = logits.detach().abs().amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)
            return functional.cross_entropy(logits / size, finest_labels(labels), reduction="sum"), logits

        return objective

    cases = {
        "no zero gradients": (model, images, evaluation.objective),
        "no zero gradients, float64": (precise, images.double(), evaluation.objective),
        "no zero gradients, logits scaled": (precise, images.double(), scaled),
    }
    shares = {}
    for name, (network, inputs, objective) in cases.items():
        zero = 0
        size = evaluation.batch_size
        for x, y in zip(inputs.split(size), labels.split(size, dim=-1), strict=True):
            with attacks.broken_gradients_counted([]):
                gradient, _ = attacks.input_gradient(objective(x), network, x, y)
            zero += int((gradient.flatten(1) == 0).all(1).sum())
        shares[name] = zero / len(images)
    return shares


@evaluated
def steps_from_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, evaluation: Evaluation, *, epsilon: float
) -> float:
    """Return how far the iterated attack ends from the nearest point at which it took a gradient, in its steps.

    Returns:
        The largest of these L∞ distances over the images, over the length of a step: at most 1 if the last
        gradient was taken at the point that the step before had reached; infinite if none was taken.
    """
    with _gradient_points(model) as (whole, first), attacks.broken_gradients_counted([]):
        attacked = evaluation.iterated(model, images, labels, epsilon=epsilon, steps=evaluation.steps)
    if not (whole or first):
        return math.inf
    taken = torch.cat(whole or first)
    nearest = [float((taken - point).abs().amax(1).min()) for point in attacked.flatten(1)]
    return _largest(nearest) / evaluation.step_size(epsilon, evaluation.steps)


@contextmanager
def _gradient_points(model: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Collect the inputs (B, values) for which the model is run with gradients, whoever runs it.

    A stack's levels are run without the stack itself: then those of its first module without parts, which sees the
    input as it is.
    """
    whole: list[Tensor] = []
    first: list[Tensor] = []

    # A function of its own for each list, which a copy of the model shares.
    def into(points: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].requires_grad:
                points.append(inputs[0].detach().flatten(1).clone())

        return record

    leaf = next(module for module in model.modules() if not list(module.children()))
    handles = [part.register_forward_pre_hook(into(points)) for part, points in ((model, whole), (leaf, first))]
    try:
        yield whole, first
    finally:
        for handle in handles:
            handle.remove()


def attack_checks(
    trained: TrainedModel,
    source: TrainedModel | None,
    *,
    epsilon: float,
    epsilons: Sequence[float],
    images: int = 100,
    pgd_steps: int = 40,
    queries: int = 1000,
) -> pd.DataFrame:
    """Check both protocols on one network, of images, or the corrected one alone, of points without bounds.

    Args:
        trained: the network; of a stack the finest level is attacked.
        source: as for :func:`checks`.
        epsilon, epsilons, queries: as for :func:`checks`.
        images: size of the stratified test subset.
        pgd_steps: steps of PGD.

    Returns:
        One row per protocol and check: protocol, check, measured, threshold, source, passed and images.
    """
    config, (inputs, labels), device = trained.config, *attacked_images(trained, images)
    evaluations = {RELEASED: released(config), CORRECTED: corrected(pgd_steps)}
    if inputs.dim() < 4:
        evaluations = {CORRECTED: corrected(pgd_steps, UNBOUNDED)}
    model = trained.model.to(device)
    other = source.model.to(device) if source else None
    shared: dict[str, Any] = {"epsilon": epsilon, "epsilons": epsilons, "source": other, "queries": queries}
    bounds = evaluations[CORRECTED].bounds
    known = rivals(model, inputs, labels, bounds=bounds, **shared)
    rows = [
        (protocol, check.name, check.measured, check.threshold, check.source, check.passed)
        for protocol, evaluation in evaluations.items()
        for check in checks(model, inputs, labels, evaluation, known=known, **shared)
    ]
    model.cpu()
    columns = ["protocol", "check", "measured", "threshold", "source", "passed"]
    return pd.DataFrame(rows, columns=columns).assign(images=len(inputs))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Count over networks which checks passed.

    Args:
        table: rows of :func:`attack_checks` of at least one network.

    Returns:
        One row per protocol and check, in order: protocol, check, networks, passed (how many), worst (the largest
        measured number), threshold (the smallest) and source.
    """
    groups = table.groupby(["protocol", "check"], sort=False)
    counted = groups.agg(
        networks=("passed", "size"),
        passed=("passed", "sum"),
        worst=("measured", "max"),
        threshold=("threshold", "min"),
        source=("source", "first"),
    )
    return counted.reset_index()


def stages(table: pd.DataFrame, epsilon: float) -> pd.DataFrame:
    """Read, at one radius, how accuracy falls from the attack as released to the strongest.

    Args:
        table: rows of :func:`isorepro.ensemble.curves`.
        epsilon: the nearest measured radius is read.

    Returns:
        The rows of the four :data:`STAGES`, in order, with the column ``stage``.
    """
    rows = table[table["epsilon"] == robustness.nearest_radius(table, epsilon)]
    names = rows[["protocol", "attack"]].itertuples(index=False, name=None)
    named = rows.assign(stage=[STAGES.get(name, "") for name in names])
    order = list(STAGES.values())
    staged: pd.DataFrame = named[named["stage"] != ""].sort_values(
        "stage", key=lambda stage: stage.map(order.index), kind="stable"
    )
    return staged


STAGES = {
    (RELEASED, FGSM): "as released, one step",
    (CORRECTED, FGSM): "cross-entropy, one step",
    (CORRECTED, PGD): "PGD",
    (CORRECTED, AUTOATTACK): "AutoAttack",
}
"""From the paper's curve to the strongest attack: protocol and attack → what figures call them."""


def gap(summary: pd.DataFrame, beta: float) -> pd.DataFrame:
    """Return what a weak and a strong evaluation make of cross-entropy and of one network in the raw form.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by protocol, attack, form, beta and epsilon.
        beta: weight of the network wanted; the nearest (by ratio) above 0 is taken.

    Returns:
        The rows of FGSM as released and of the worst case, of these two networks.
    """
    raw = summary[(summary["form"] == "raw") | (summary["beta"] == 0)]
    weights = raw.loc[raw["beta"] > 0, "beta"].unique()
    nearest = min(weights, key=lambda weight: abs(math.log(weight / beta)))
    weak = (raw["protocol"] == RELEASED) & (raw["attack"] == FGSM)
    return raw[raw["beta"].isin([0.0, nearest]) & (weak | (raw["attack"] == WORST_CASE))]


def key_numbers(table: pd.DataFrame, epsilon: float) -> dict[str, float | str]:
    """Return the numbers that the pages' prose quotes.

    Args:
        table: rows of :func:`isorepro.ensemble.curves` with their beta, seed and network (a name, "CE" for β = 0).
        epsilon: the nearest measured radius is read.

    Returns:
        ``epsilon`` (the radius read); for ``released``, ``pgd``, ``autoattack`` and ``worst`` (case): ``…_ce``
        (mean accuracy at β = 0); of the network that gains most over it, ``…_network`` (its name), ``…_best``
        (its accuracy), ``…_clean`` (without attack), ``…_gain``, ``…_gain_low`` and ``…_gain_high``
        (difference to β = 0, paired by seed, with its 95 % interval); ``pgd_missed``: the most that the worst case
        is below PGD, of any network's mean over seeds.

    Raises:
        InputError: the table has no β = 0, or no other β.
    """
    if not (table["beta"] == 0).any() or not (table["beta"] > 0).any():
        raise InputError("betas: must hold 0 and at least one weight above 0 to be compared with it")
    radius = robustness.nearest_radius(table, epsilon)
    numbers: dict[str, float | str] = {"epsilon": radius}
    names = {
        "released": (RELEASED, FGSM),
        "pgd": (CORRECTED, PGD),
        "autoattack": (CORRECTED, AUTOATTACK),
        "worst": (CORRECTED, WORST_CASE),
    }
    means = {}
    for name, (protocol, attack) in names.items():
        chosen = (table["protocol"] == protocol) & (table["attack"] == attack)
        rows = table[chosen & (table["epsilon"] == radius)]
        means[name] = rows.groupby("network")["accuracy"].mean()
        gains = stats.paired_differences(rows, "accuracy", ["epsilon"], "network", "CE")
        best = gains.iloc[int(gains["mean"].argmax())]
        clean = table[(table["attack"] == CLEAN) & (table["network"] == best["network"])]["accuracy"]
        numbers |= {
            f"{name}_ce": float(means[name]["CE"]),
            f"{name}_network": str(best["network"]),
            f"{name}_best": float(means[name][best["network"]]),
            f"{name}_clean": float(clean.mean()),
            f"{name}_gain": float(best["mean"]),
            f"{name}_gain_low": float(best["low"]),
            f"{name}_gain_high": float(best["high"]),
        }
    return numbers | {"pgd_missed": float((means["pgd"] - means["worst"]).max())}
