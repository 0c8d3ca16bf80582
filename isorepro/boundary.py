"""Where a network decides, and how its map stretches near there and far from it (claim C4)."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from scipy import spatial
from torch import Tensor, nn

from isorepro import attacks, geometry, stats
from isorepro.errors import InputError
from isorepro.models import class_logits, evaluated
from isorepro.structure import held_out
from isorepro.training import TrainedModel


@evaluated
def boundary_distance(
    model: nn.Module, points: Tensor, *, reach: float, steps: int = 64, refinements: int = 12
) -> Tensor:
    """Measure how far each point is from where the predicted class changes, by searching along lines.

    From each point a line runs along the input gradient of every other class's logit minus the predicted one's,
    and one to the nearest of the points that is predicted otherwise. Bisection places the first change of the
    prediction on each. From the nearest one, the crossing then slides along the boundary, by the gradient there,
    towards the point, as long as that makes the line shorter. Exact for a linear classifier; else an upper bound,
    met where the slide ends at the nearest part of the boundary.

    Args:
        model: points (B, D) → logits (B, classes).
        points: (N, D).
        reach: length of the lines, > 0.
        steps: points of a line at which the prediction is looked at, ≥ 1; a thinner region can be missed.
        refinements: slides, ≥ 0.

    Returns:
        (N,), in the points' units; infinite where no line within reach meets another class.

    Raises:
        InputError: reach, steps or refinements out of range.
    """
    if not (reach > 0 and steps >= 1 and refinements >= 0):
        raise InputError(
            f"boundary_distance: reach must be above 0, steps at least 1 and refinements at least 0, "
            f"not {reach}, {steps} and {refinements}"
        )
    with torch.no_grad():
        logits = class_logits(model, points)
    own = logits.argmax(1)
    directions = [_towards(model, points, own, torch.full_like(own, label)) for label in range(logits.shape[1])]
    directions.append(_to_nearest_other(points, own))
    limit = torch.full((len(points),), reach)
    distances = torch.stack([_first_change(model, points, own, d, limit, steps) for d in directions])
    shortest, chosen = distances.min(0)
    direction = torch.stack(directions)[chosen, torch.arange(len(points))]
    rate = torch.ones(len(points))
    for _ in range(refinements):
        found = shortest.isfinite()
        limit = torch.where(found, shortest, 0.0)
        crossing = points + direction * limit[:, None]
        with torch.no_grad():
            beyond = class_logits(model, crossing).argmax(1)
        normal = _towards(model, crossing, own, beyond)
        back = points - crossing
        slide = back - (back * normal).sum(1, keepdim=True) * normal
        turned = _unit(crossing + rate[:, None] * slide - points)
        distance = _first_change(model, points, own, turned, limit, steps)
        nearer = distance < shortest
        shortest = torch.where(nearer, distance, shortest)
        direction = torch.where(nearer[:, None], turned, direction)
        rate = torch.where(nearer, rate, rate / 2)
    return shortest


def _unit(vectors: Tensor) -> Tensor:
    unit: Tensor = nn.functional.normalize(vectors, dim=1, eps=torch.finfo(vectors.dtype).tiny)
    return unit


def _towards(model: nn.Module, points: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Return unit vectors (N, D) along which the other class's logit gains most on the own one's, or zeros."""

    def ahead(model: nn.Module, points: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        logits = class_logits(model, points)
        return (logits.gather(1, other[:, None]) - logits.gather(1, own[:, None])).sum(), logits

    return _unit(attacks.input_gradient(ahead, model, points, other)[0])


def _to_nearest_other(points: Tensor, own: Tensor) -> Tensor:
    """Return unit vectors (N, D) to each point's nearest one of another prediction, zeros if there is none."""
    vectors = torch.zeros_like(points)
    for label in own.unique():
        mine, others = own == label, points[own != label]
        if len(others):
            _, nearest = spatial.cKDTree(others.numpy()).query(points[mine].numpy())
            vectors[mine] = others[torch.from_numpy(nearest)] - points[mine]
    return _unit(vectors)


@torch.no_grad()
def _first_change(
    model: nn.Module, points: Tensor, own: Tensor, direction: Tensor, reach: Tensor, steps: int
) -> Tensor:
    """Return the distance (N,) along unit directions to the first point of another class, or infinity."""

    def changed(distance: Tensor) -> Tensor:
        return class_logits(model, points + direction * distance[:, None]).argmax(1) != own

    far = torch.full((len(points),), math.inf)
    for step in range(1, steps + 1):
        here = reach * (step / steps)
        far = torch.where(far.isinf() & changed(here), here, far)
    near = far - reach / steps
    for _ in range(24):
        middle = (near + far) / 2
        beyond = changed(middle.nan_to_num(posinf=0.0))
        near, far = torch.where(beyond, near, middle), torch.where(beyond, middle, far)
    return far


@evaluated
@torch.no_grad()
def grid_boundary_distance(
    model: nn.Module, points: Tensor, *, low: Tensor, high: Tensor, resolution: int = 400
) -> Tensor:
    """Measure the distance to the decision boundary in the plane by looking everywhere: an independent check.

    The prediction is taken at the nodes of a grid; a point's distance is that to the nearest node of another
    class. It exceeds the true distance by at most a cell's diagonal where the other region has room for a cell's
    circumcircle at the nearest part of the boundary.

    Args:
        model: points (B, 2) → logits (B, classes).
        points: (N, 2).
        low, high: corners (2,) of the grid.
        resolution: nodes along each side, ≥ 2.

    Returns:
        (N,), double precision; infinite where the grid holds no other class.

    Raises:
        InputError: points that are not in the plane, or a resolution below 2.
    """
    if points.dim() != 2 or points.shape[1] != 2 or resolution < 2:
        raise InputError(
            f"grid_boundary_distance: needs points (N, 2) and a resolution of at least 2, "
            f"not {tuple(points.shape)} and {resolution}"
        )
    nodes = geometry.plane_grid(low, high, resolution)
    predicted, own = (
        torch.cat([class_logits(model, part).argmax(1) for part in all_.split(10_000)]) for all_ in (nodes, points)
    )
    distance = torch.full((len(points),), math.inf, dtype=torch.float64)
    for label in own.unique():
        others = nodes[predicted != label].numpy()
        if len(others):
            found, _ = spatial.cKDTree(others).query(points[own == label].numpy())
            distance[own == label] = torch.from_numpy(found)
    return distance


def profile(
    trained: TrainedModel, *, reach: float, neighbours: int = 10, test_size: int | None = None
) -> pd.DataFrame:
    """Measure at each held-out point how the map stretches, and how far the decision boundary is.

    Args:
        trained: the network, of inputs (N, D).
        reach: length of the lines along which the boundary is searched.
        neighbours: size of a neighbourhood, of the local distortion.
        test_size: size of the stratified test subset; None takes all.

    Returns:
        One row per point: boundary_distance (infinite where no boundary is within reach), stretch_low and
        stretch_high (smallest and largest singular value of the Jacobian of input → representation, restricted
        to the data's tangent space where it is known, times the config's representation_scale; 1 is an
        isometry), jacobian_error (the larger ``|stretch − 1|`` of the two) and local_distortion.

    Raises:
        InputError: a dataset of images, or a number out of range.
    """
    dataset, representation = held_out(trained, test_size)
    scale, inputs = trained.config.representation_scale, dataset.test_inputs
    if inputs.dim() != 2:
        raise InputError(f"points: a profile needs points (N, D), not {tuple(inputs.shape)}")
    stretch = scale * geometry.jacobian_singular_values(
        trained.model.representation, inputs, dataset.test_tangents
    )
    distortion = geometry.local_distortion(inputs, representation, neighbours=neighbours, K=scale)
    return pd.DataFrame(
        {
            "boundary_distance": boundary_distance(trained.model, inputs, reach=reach).tolist(),
            "stretch_low": stretch[:, -1].tolist(),
            "stretch_high": stretch[:, 0].tolist(),
            "jacobian_error": (stretch - 1).abs().amax(1).tolist(),
            "local_distortion": distortion.tolist(),
        }
    )


def plane(trained: TrainedModel, *, margin: float, resolution: int) -> pd.DataFrame:
    """Map how a network of points in the plane stretches around its data.

    Args:
        trained: the network, of inputs (N, 2).
        margin: how far the map reaches beyond the held-out points.
        resolution: points along each side.

    Returns:
        One row per point of the grid, row by row from below: x, y, margin (logit of the first class minus the
        largest other; 0 on its boundary), and stretch_low and stretch_high as in :func:`profile`, in full.
    """
    dataset, _ = held_out(trained)
    low, high = _corners(dataset.test_inputs, margin)
    nodes = geometry.plane_grid(low, high, resolution)
    stretch = trained.config.representation_scale * geometry.jacobian_singular_values(
        trained.model.representation, nodes
    )
    with torch.no_grad():
        logits = trained.model(nodes)
    return pd.DataFrame(
        {
            "x": nodes[:, 0].tolist(),
            "y": nodes[:, 1].tolist(),
            "margin": (logits[:, 0] - logits[:, 1:].amax(1)).tolist(),
            "stretch_low": stretch[:, -1].tolist(),
            "stretch_high": stretch[:, 0].tolist(),
        }
    )


def search_check(trained: TrainedModel, *, reach: float, margin: float, resolution: int) -> pd.DataFrame:
    """Measure the boundary distance of held-out points of the plane in both ways.

    Args:
        trained: the network, of inputs (N, 2).
        reach: of :func:`boundary_distance`.
        margin: how far the grid reaches beyond the held-out points.
        resolution: nodes along each side of the grid.

    Returns:
        One row per point: line_search, grid, and cell, the length of a cell's diagonal, by which the grid's
        distance may be too long.
    """
    dataset, _ = held_out(trained)
    low, high = _corners(dataset.test_inputs, margin)
    grid = grid_boundary_distance(trained.model, dataset.test_inputs, low=low, high=high, resolution=resolution)
    line = boundary_distance(trained.model, dataset.test_inputs, reach=reach)
    cell = float((high - low).norm()) / (resolution - 1)
    return pd.DataFrame({"line_search": line.tolist(), "grid": grid.tolist(), "cell": cell})


def _corners(points: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    if points.dim() != 2 or points.shape[1] != 2:
        raise InputError(f"points: a map of the plane needs points (N, 2), not {tuple(points.shape)}")
    return points.amin(0) - margin, points.amax(0) + margin


def binned(profiles: pd.DataFrame, values: Sequence[str], *, bins: int) -> pd.DataFrame:
    """Average a measure over the points at about the same distance from the boundary.

    Args:
        profiles: rows of :func:`profile` with the networks' columns, dataset among them.
        values: columns to average.
        bins: number of bins into which each network's points are cut by distance, equally many in each.

    Returns:
        One row per dataset, β, seed, bin and measure: the columns, distance (median over the points of the bin
        of all seeds), points (their number for this seed) and value (mean over them). Points whose boundary is
        out of reach are in no bin.

    Raises:
        InputError: fewer bins than one.
    """
    if bins < 1:
        raise InputError(f"bins: must be at least 1, not {bins}")
    reached = profiles[profiles["boundary_distance"] < math.inf]
    networks = reached.groupby(["dataset", "beta", "seed"], sort=False)["boundary_distance"]
    place = (networks.rank(method="first") - 1) * bins // networks.transform("size")
    table = reached.assign(bin=place.astype(int))
    by = ["dataset", "beta", "bin"]
    table = table.assign(distance=table.groupby(by)["boundary_distance"].transform("median"))
    by = ["dataset", "beta", "seed", "bin", "distance"]
    counted = table.assign(points=table.groupby(by)["boundary_distance"].transform("size"))
    means = counted.groupby([*by, "points"], sort=False, as_index=False)[list(values)].mean()
    means = means.sort_values("bin", kind="stable")
    return means.melt(id_vars=[*by, "points"], value_vars=list(values), var_name="measure")


def near_and_far(profiles: pd.DataFrame, *, near: float, far: float) -> pd.DataFrame:
    """Compare, for each network, the points nearest to the boundary with those farthest from it.

    Args:
        profiles: rows of :func:`profile` with the networks' columns, dataset among them.
        near, far: shares of the points that count as near and as far, in (0, 1), together at most 1. A point
            whose boundary is out of reach is far.

    Returns:
        One row per dataset, β, seed and measure ("jacobian_error", "local_distortion"): the columns, near and
        far (medians of the measure), near_distance and far_distance (median distances to the boundary), delta
        (Cliff's δ of near against far: 1 if every near point has the larger error) and spearman (correlation
        of the error with the distance over all points, those out of reach as tied).

    Raises:
        InputError: shares out of range, or so small that they hold no point.
    """
    if not (near > 0 and far > 0 and near + far <= 1):
        raise InputError(f"near and far: must be above 0 and at most 1 together, not {near} and {far}")
    rows = []
    for (dataset, beta, seed), group in profiles.groupby(["dataset", "beta", "seed"], sort=False):
        # Shuffled before it is sorted, so that points out of reach are not taken in the order of their classes.
        ordered = group.sample(frac=1, random_state=0).sort_values("boundary_distance", kind="stable")
        distance = torch.tensor(ordered["boundary_distance"].to_numpy())
        close, away = ordered.head(round(near * len(ordered))), ordered.tail(round(far * len(ordered)))
        for measure in ("jacobian_error", "local_distortion"):
            errors = close[measure].median(), away[measure].median()
            distances = close["boundary_distance"].median(), away["boundary_distance"].median()
            delta = stats.cliffs_delta(close[measure].dropna(), away[measure].dropna())
            correlation = geometry.spearman(distance, torch.tensor(ordered[measure].to_numpy()))
            rows.append((dataset, beta, seed, measure, *errors, *distances, delta, correlation))
    columns = ["dataset", "beta", "seed", "measure", "near", "far", "near_distance", "far_distance"]
    columns += ["delta", "spearman"]
    return pd.DataFrame(rows, columns=columns)


HOLDS, GRADED, EVERYWHERE, PARTLY, NOWHERE, OPEN = (
    "holds",
    "isometric far and clearly less so near, perhaps still within the tolerance",
    "isometric near as well",
    "less isometric near, yet not isometric far either",
    "not isometric far, no clear difference near",
    "undecided",
)
"""What the comparison of near and far points says of the claim."""


def verdicts(comparison: pd.DataFrame, *, tolerance: float) -> pd.DataFrame:
    """Judge "isometric everywhere except near decision boundaries" on each set and for each β.

    A set of points counts as isometric when the 95 % interval over seeds of its median error lies below the
    tolerance, and as not isometric when it lies above; else, or with a single seed, it is undecided.

    Args:
        comparison: rows of :func:`near_and_far`.
        tolerance: error below which a map counts as isometric, > 0.

    Returns:
        One row per dataset, β and measure: the columns; near, far and delta, each with _low and _high (mean over
        seeds and its 95 % interval); near_distance and far_distance (medians over seeds); seeds; and verdict,
        one of :data:`HOLDS` (isometric far, not near), :data:`EVERYWHERE` (isometric near and far),
        :data:`GRADED` (isometric far, undecided near, and the interval of δ lies above 0),
        :data:`PARTLY` (not isometric far, and the interval of δ lies above 0), :data:`NOWHERE` (not isometric
        far, and it does not) and :data:`OPEN`.
    """
    by = ["dataset", "beta", "measure"]
    table: pd.DataFrame | None = None
    for column in ("near", "far", "delta"):
        bounds = (-1.0, 1.0) if column == "delta" else (0.0, math.inf)
        found = stats.over_seeds(comparison, column, by, bounds=bounds)
        found = found.rename(columns={"mean": column, "low": f"{column}_low", "high": f"{column}_high"})
        table = found if table is None else table.merge(found.drop(columns="seeds"), on=by)
    assert table is not None
    distances = comparison.groupby(by, as_index=False)[["near_distance", "far_distance"]].median()
    table = table.merge(distances, on=by)

    def judged(row: pd.Series) -> str:
        if row["far_low"] > tolerance:
            return PARTLY if row["delta_low"] > 0 else NOWHERE
        if row["far_high"] <= tolerance and row["near_low"] > tolerance:
            return HOLDS
        if row["far_high"] <= tolerance and row["near_high"] <= tolerance:
            return EVERYWHERE
        if row["far_high"] <= tolerance and row["delta_low"] > 0:
            return GRADED
        return OPEN

    return table.assign(verdict=[judged(row) for _, row in table.iterrows()])


def key_numbers(table: pd.DataFrame) -> dict[str, float | str]:
    """Return what the prose quotes of :func:`verdicts`, of the isometric networks.

    Returns:
        For each dataset and measure, ``<dataset>_<measure>_`` followed by near, far, delta and verdict.
    """
    numbers: dict[str, float | str] = {}
    for row in table[table["beta"] > 0].to_dict("records"):
        for name in ("near", "far", "delta", "verdict"):
            numbers[f"{row['dataset']}_{row['measure']}_{name}"] = row[name]
    return numbers


def agreement(check: pd.DataFrame) -> dict[str, float]:
    """Compare the two boundary distances of :func:`search_check`.

    Returns:
        ``agree`` (share of the points where they differ by at most a cell's diagonal), ``longest`` (the
        most by which the search is longer), ``spearman`` and ``cell``.
    """
    difference = check["line_search"] - check["grid"]
    sides = (torch.tensor(check[name].to_numpy()) for name in ("line_search", "grid"))
    return {
        "agree": float((difference.abs() <= check["cell"]).mean()),
        "longest": float(difference.max()),
        "spearman": geometry.spearman(*sides),
        "cell": float(check["cell"].max()),
    }
