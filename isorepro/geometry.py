"""What a map does to geometry: to distances, neighbourhoods, shape and volume.

Measures take points as tensors, one row each, and compute in double precision. A representation that has
collapsed to one point keeps no order, so its correlations and its similarity to anything are 0, its stress is
1 and its dimension 0. Points that hold NaN or infinity, or are too few, are refused.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from scipy import linalg, spatial, stats
from torch import Tensor

from isorepro.errors import InputError

Relation = Literal["within", "between"]
"""Pairs of points of the same class, or of different classes."""

GROUPS = 20
"""Random groups of the sampled pairs, from whose spread a sampling error is estimated."""


def sample_pairs(labels: Tensor, relation: Relation, *, cap: int = 100_000, seed: int = 0) -> tuple[Tensor, int]:
    """Draw pairs of points of the same or of different classes, without replacement.

    Args:
        labels: (N,), int64.
        relation: which pairs are eligible.
        cap: most pairs drawn, ≥ 1; with fewer eligible ones all are taken.
        seed: seed of the draw.

    Returns:
        Pairs (P, 2) of indices, in random order, and the number of eligible pairs.

    Raises:
        InputError: no pair is eligible, or a cap below 1.
    """
    if cap < 1:
        raise InputError(f"cap: must be at least 1, not {cap}")
    members = [(labels == label).nonzero().squeeze(1).numpy() for label in labels.unique()]
    if relation == "within":
        blocks = [(group, group) for group in members]
        sizes = [len(group) * (len(group) - 1) // 2 for group in members]
    else:
        blocks = [(first, second) for place, first in enumerate(members) for second in members[place + 1 :]]
        sizes = [len(first) * len(second) for first, second in blocks]
    ends = np.cumsum(sizes)
    eligible = int(ends[-1]) if len(ends) else 0
    if not eligible:
        raise InputError(
            f"labels: {len(labels)} points in {len(members)} class(es) have no pair {relation} classes"
        )
    # Pairs are numbered block by block, so that a draw of numbers needs no list of all pairs.
    ranks = np.random.default_rng(seed).choice(eligible, size=min(cap, eligible), replace=False)
    of_block = np.searchsorted(ends, ranks, side="right")
    ranks = ranks - np.concatenate([[0], ends])[of_block]
    pairs = np.empty((len(ranks), 2), dtype=np.int64)
    for number, (first, second) in enumerate(blocks):
        chosen = of_block == number
        if relation == "within":
            # Number r is the pair (i, j), j < i, with r = i (i − 1) / 2 + j.
            larger = ((1 + np.sqrt(1 + 8 * ranks[chosen])) / 2).astype(np.int64)
            larger -= larger * (larger - 1) // 2 > ranks[chosen]
            smaller = ranks[chosen] - larger * (larger - 1) // 2
        else:
            larger, smaller = np.divmod(ranks[chosen], len(second))
        pairs[chosen, 0], pairs[chosen, 1] = first[larger], second[smaller]
    return torch.from_numpy(pairs), eligible


def pair_distances(points: Tensor, pairs: Tensor) -> Tensor:
    """Return the Euclidean distances of pairs of points: (N, …), (P, 2) → (P,), double precision.

    Raises:
        InputError: points that are not finite, or no pair.
    """
    flat = _flat(points)
    if not len(pairs):
        raise InputError("pairs: at least one pair of points is needed")
    parts = [(flat[part[:, 0]] - flat[part[:, 1]]).norm(dim=1) for part in pairs.split(500)]
    return torch.cat(parts)


def spearman(one: Tensor, other: Tensor) -> float:
    """Return Spearman's rank correlation of two samples (P,), in [−1, 1]; 0 if either is constant."""
    return pearson(*(torch.from_numpy(stats.rankdata(sample.numpy())) for sample in (one, other)))


def pearson(one: Tensor, other: Tensor) -> float:
    """Return Pearson's correlation of two samples (P,), in [−1, 1]; 0 if either is constant."""
    if len(one) < 2 or _all_coincide(one) or _all_coincide(other):
        return 0.0
    return float(np.clip(np.corrcoef(one.numpy(), other.numpy())[0, 1], -1, 1))


def best_scale(distances: Tensor, mapped: Tensor) -> float:
    """Return the factor on ``mapped`` that brings it nearest to ``distances`` in least squares, ≥ 0.

    Args:
        distances: (P,), of the inputs.
        mapped: (P,), of the representation.
    """
    power = mapped.square().sum()
    return float(distances @ mapped / power) if power > 0 else 0.0


def stress(distances: Tensor, mapped: Tensor, scale: float | None = 1.0) -> float:
    """Return the normalised stress √(Σ (scale·mapped − distances)² / Σ distances²) (Kruskal 1964), ≥ 0.

    0 is an isometry up to the scale; a collapse to one point gives 1.

    Args:
        distances: (P,), of the inputs, not all zero.
        mapped: (P,), of the representation.
        scale: factor on ``mapped``; None for the best one, with which the stress is at most 1.

    Raises:
        InputError: all input distances are zero.
    """
    power = distances.square().sum()
    if power == 0:
        raise InputError("distances: all inputs coincide, so that no stress is defined")
    scale = best_scale(distances, mapped) if scale is None else scale
    return float(((scale * mapped - distances).square().sum() / power).sqrt())


PRESERVED = ("spearman", "pearson", "stress", "scaled_stress", "scale")
"""Names of the measures of :func:`distance_preservation`."""


def distance_preservation(
    inputs: Tensor,
    representation: Tensor,
    labels: Tensor,
    relation: Relation,
    *,
    K: float = 1.0,
    cap: int = 100_000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Compare the distances of pairs of points before and after a map.

    Args:
        inputs, representation: (N, …).
        labels: (N,), int64.
        relation: pairs within or between classes.
        K: factor on the representation's distances in the stress (the paper's K).
        cap, seed: of :func:`sample_pairs`.

    Returns:
        Measure → (value, sampling error): spearman, pearson, stress (with K), scaled_stress (with the best
        scale) and scale (that scale; 1 is the inputs' own). The error is a standard error, from the spread
        over :data:`GROUPS` groups of the drawn pairs, of drawing pairs instead of taking all of them: 0 where
        all were taken, NaN where too few were drawn to tell.

    Raises:
        InputError: no eligible pair, or points that are not finite or coincide.
    """
    pairs, eligible = sample_pairs(labels, relation, cap=cap, seed=seed)
    distances, mapped = pair_distances(inputs, pairs), pair_distances(representation, pairs)
    measures: dict[str, Callable[[Tensor, Tensor], float]] = {
        "spearman": spearman,
        "pearson": pearson,
        "stress": lambda d, m: stress(d, m, K),
        "scaled_stress": lambda d, m: stress(d, m, None),
        "scale": best_scale,
    }
    groups = list(zip(distances.tensor_split(GROUPS), mapped.tensor_split(GROUPS), strict=True))
    result = {}
    for name, measure in measures.items():
        error = 0.0
        if len(pairs) < eligible:
            few = len(pairs) < 10 * GROUPS
            spread = math.nan if few else float(np.std([measure(*group) for group in groups], ddof=1))
            error = spread / math.sqrt(GROUPS) * math.sqrt(1 - len(pairs) / eligible)
        result[name] = measure(distances, mapped), error
    return result


def trustworthiness(inputs: Tensor, representation: Tensor, *, neighbours: int = 10) -> float:
    """Return how far neighbours in the representation are neighbours in the inputs (Venna and Kaski 2001).

    scikit-learn's, in [0, 1]; 1: every neighbour in the representation is one in the inputs. In a collapsed
    representation neighbours are arbitrary, and about half of the possible loss is seen.

    Args:
        inputs, representation: (N, …).
        neighbours: size of a neighbourhood, below N / 2.

    Raises:
        InputError: too few points, or points that are not finite.
    """
    from sklearn import manifold

    if not 1 <= neighbours < len(inputs) / 2:
        raise InputError(
            f"neighbours: must be from 1 to less than half of the {len(inputs)} points, not {neighbours}"
        )
    x, h = _flat(inputs).numpy(), _flat(representation).numpy()
    return float(manifold.trustworthiness(x, h, n_neighbors=neighbours))


def continuity(inputs: Tensor, representation: Tensor, *, neighbours: int = 10) -> float:
    """Return how far neighbours in the inputs stay neighbours in the representation, in [0, 1].

    :func:`trustworthiness` with the two exchanged; same arguments and errors. 1: nothing is torn.
    """
    return trustworthiness(representation, inputs, neighbours=neighbours)


def local_distortion(inputs: Tensor, representation: Tensor, *, neighbours: int = 10, K: float = 1.0) -> Tensor:
    """Return each point's mean relative change of the distances to its nearest neighbours.

    That is the mean over the ``neighbours`` nearest other inputs, of whichever class, of ``|K·d_h − d_x| / d_x``;
    0 for an isometry, 1 for a collapse, above 1 for a stretch of more than 2.

    Args:
        inputs, representation: (N, …).
        neighbours: from 1 to N − 1.
        K: factor on the representation's distances.

    Returns:
        (N,), double precision; NaN for a point that coincides with all its neighbours.

    Raises:
        InputError: too few points, or points that are not finite.
    """
    from sklearn.neighbors import NearestNeighbors

    x, h = _flat(inputs), _flat(representation)
    if not 1 <= neighbours < len(x):
        raise InputError(f"neighbours: must be from 1 to {len(x) - 1}, not {neighbours}")
    found = NearestNeighbors(n_neighbors=neighbours).fit(x.numpy()).kneighbors(return_distance=False)
    nearest = torch.from_numpy(found)
    before = (x[nearest] - x[:, None]).norm(dim=2)
    after = (h[nearest] - h[:, None]).norm(dim=2)
    change = (K * after - before).abs() / before
    return torch.where(before > 0, change, torch.nan).nanmean(1)


def gromov_wasserstein(inputs: Tensor, representation: Tensor, *, K: float = 1.0) -> float:
    """Return the relative Gromov-Wasserstein distance of two clouds of N points (Mémoli 2011), ≥ 0.

    The least √(Σ (K·d_h − d_x)²) over all ways of matching the two clouds, softly and without regard to which
    point came from which, divided by the root mean square of d_x: 0 for equal shapes, 1 for a collapse. POT's
    conditional gradient finds a local minimum, from the matching by order and from the uniform one; the smaller
    is returned, which is never above the :func:`stress` of all pairs.

    Args:
        inputs, representation: (N, …), N from 2 to 1000.
        K: factor on the representation's distances.

    Raises:
        InputError: too few or too many points, or points that are not finite or all coincide.
    """
    import ot

    x, h = _flat(inputs).numpy(), _flat(representation).numpy()
    if not 2 <= len(x) == len(h) <= 1000:
        raise InputError(f"points: 2 to 1000, as many on both sides, are needed, not {len(x)} and {len(h)}")
    d_x, d_h = (spatial.distance.squareform(spatial.distance.pdist(points)) for points in (x, h))
    power = np.square(d_x).mean()
    if power == 0:
        raise InputError("points: all inputs coincide, so that no distance is defined")
    weights = np.full(len(x), 1 / len(x))
    costs = [
        ot.gromov.gromov_wasserstein2(d_x, K * d_h, weights, weights, "square_loss", G0=start)
        for start in (np.diag(weights), np.outer(weights, weights))
    ]
    return math.sqrt(max(0.0, float(min(costs))) / power)


def loop_intervals(points: Tensor, *, cap: int = 150, seed: int = 0) -> Tensor:
    """Return the persistence intervals of the loops (H1) of a cloud's Vietoris-Rips filtration, longest first.

    Args:
        points: (N, …), N ≥ 3.
        cap: most points used, a seeded subset above it: the cost grows with its cube.
        seed: of the subset.

    Returns:
        (M, 2), double precision: the scales at which a loop appears and at which it is filled.

    Raises:
        InputError: fewer than three points, or points that are not finite.
    """
    import gudhi

    flat = _flat(points, least=3)
    if len(flat) > cap:
        flat = flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[:cap]]
    edges = gudhi.RipsComplex(points=flat.numpy()).create_simplex_tree(max_dimension=1)
    edges.collapse_edges()
    edges.expansion(2)
    edges.compute_persistence()
    intervals = np.asarray(edges.persistence_intervals_in_dimension(1)).reshape(-1, 2)
    return torch.from_numpy(intervals[np.argsort(intervals[:, 0] - intervals[:, 1], kind="stable")])


def lasting_loops(intervals: Tensor, extent: float, *, share: float = 0.25) -> int:
    """Return how many loops last for at least a share of the cloud's extent.

    Args:
        intervals: from :func:`loop_intervals`.
        extent: largest distance of the cloud, > 0. A dense circle's loop lasts for 0.87 of it.
        share: in (0, 1).
    """
    return int(((intervals[:, 1] - intervals[:, 0]) >= share * extent).sum()) if extent > 0 else 0


def linear_cka(inputs: Tensor, representation: Tensor) -> float:
    """Return the linear centred kernel alignment of two sets of features (Kornblith et al. 2019), in [0, 1].

    1 if one is the other turned, shifted and scaled; 0 if they are uncorrelated or one is constant.

    Args:
        inputs, representation: (N, …), the same N points.

    Raises:
        InputError: fewer than two points, or points that are not finite.
    """
    x, h = (_flat(points) for points in (inputs, representation))
    if _all_coincide(x) or _all_coincide(h):
        return 0.0
    x, h = x - x.mean(0), h - h.mean(0)
    return float((x.T @ h).square().sum() / ((x.T @ x).norm() * (h.T @ h).norm()))


def participation_ratio(points: Tensor) -> float:
    """Return the effective dimension (Σ λ)² / Σ λ² of the covariance's eigenvalues λ: 1 to D, 0 for a collapse.

    Args:
        points: (N, …).

    Raises:
        InputError: fewer than two points, or points that are not finite.
    """
    flat = _flat(points)
    if _all_coincide(flat):
        return 0.0
    covariance = torch.cov(flat.T).reshape(flat.shape[1], flat.shape[1])
    return float(covariance.trace().square() / covariance.square().sum())


def principal_coordinates(points: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Return the points in their first principal axes, and the share of the variance along each.

    Args:
        points: (N, …).
        dimensions: number of axes.

    Returns:
        (N, dimensions), in the points' units, each axis signed so that its largest coordinate is positive and
        zero where the points have fewer dimensions; and (dimensions,), in [0, 1].

    Raises:
        InputError: fewer than two points, or points that are not finite.
    """
    flat = _flat(points)
    centred = flat - flat.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    coordinates, shares = torch.zeros(len(flat), dimensions).double(), torch.zeros(dimensions).double()
    found = min(dimensions, len(s))
    coordinates[:, :found] = u[:, :found] * s[:found]
    shares[:found] = s[:found].square() / s.square().sum().clamp_min(torch.finfo(s.dtype).tiny)
    largest = coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True))
    return coordinates * torch.where(largest < 0, -1.0, 1.0), shares


def principal_axes(points: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Return the centre and the axes that :func:`principal_coordinates` are taken in, to see other points there.

    Args:
        points: (N, …).
        dimensions: number of axes.

    Returns:
        (D,) and (D, dimensions), double precision: (points − centre) @ axes are the principal coordinates. An axis
        along which the points have no extent is zero.

    Raises:
        InputError: fewer than two points, or points that are not finite.
    """
    flat = _flat(points)
    centre = flat.mean(0)
    coordinates, _ = principal_coordinates(points, dimensions)
    # With X = U S Vᵀ the coordinates are U S (signed), and Xᵀ U S = V S².
    power = coordinates.square().sum(0).clamp_min(torch.finfo(flat.dtype).tiny)
    return centre, (flat - centre).T @ coordinates / power


def align(reference: Tensor, points: Tensor) -> Tensor:
    """Return the points shifted, turned or mirrored, and scaled to lie nearest to a reference (Procrustes).

    Args:
        reference, points: (N, D), row by row the same things.

    Returns:
        (N, D), double precision; a collapsed cloud lies at the reference's centre.

    Raises:
        InputError: fewer than two points, or points that are not finite.
    """
    target, moved = _flat(reference), _flat(points)
    centre = target.mean(0)
    target, moved = target - centre, moved - moved.mean(0)
    rotation, scale = linalg.orthogonal_procrustes(moved.numpy(), target.numpy())
    power = moved.square().sum()
    return centre + moved @ torch.from_numpy(rotation) * (scale / power if power > 0 else 0.0)


def plane_grid(low: Tensor, high: Tensor, resolution: int) -> Tensor:
    """Return the nodes of a grid in the plane, row by row from below: (resolution², 2) for corners (2,)."""
    x, y = (torch.linspace(float(start), float(end), resolution) for start, end in zip(low, high, strict=True))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], 1)


def umap_coordinates(points: Tensor, *, neighbours: int = 15, seed: int = 0) -> Tensor:
    """Return a UMAP map of the points in the plane (McInnes et al. 2018), with exact nearest neighbours.

    Args:
        points: (N, …).
        neighbours: size of a neighbourhood, the point itself included, from 2 to N − 1.
        seed: seed of the map; the same seed gives the same map.

    Returns:
        (N, 2), double precision, in arbitrary units.

    Raises:
        InputError: too few points, or points that are not finite.
    """
    from sklearn.neighbors import NearestNeighbors

    flat = _flat(points)
    if not 2 <= neighbours < len(flat):
        raise InputError(f"neighbours: must be from 2 to {len(flat) - 1}, not {neighbours}")
    x = flat.numpy().astype(np.float32)
    distances, indices = NearestNeighbors(n_neighbors=neighbours).fit(x).kneighbors(x)
    with _threads_kept(), warnings.catch_warnings():
        # That new points could not be added to the map without a search index, and that there are no widgets for
        # a progress bar: neither is wanted.
        warnings.filterwarnings("ignore", message="precomputed_knn")
        warnings.filterwarnings("ignore", message="IProgress not found")
        # And, on its import, that a part of it that is not used needs another package.
        warnings.filterwarnings("ignore", category=ImportWarning)
        import umap

        mapper = umap.UMAP(
            n_neighbors=neighbours, random_state=seed, n_jobs=1, precomputed_knn=(indices, distances, None)
        )
        return torch.from_numpy(mapper.fit_transform(x)).double()


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Give torch its number of threads back: numba, whose threads are the same library's, sets it for all."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def jacobian_singular_values(
    function: Callable[[Tensor], Tensor], points: Tensor, tangents: Tensor | None = None
) -> Tensor:
    """Return the singular values of a map's Jacobian at each point: how it stretches each direction.

    Args:
        function: (B, D) → (B, F), row by row.
        points: (N, D).
        tangents: orthonormal directions (N, D, d) to which the Jacobian is restricted; None for all.

    Returns:
        (N, min(d, F)), or (N, min(D, F)) without ``tangents``, largest first, in the points' precision.

    Raises:
        InputError: points that are not finite, or tangents that are not orthonormal.
    """
    _flat(points, least=1)
    if tangents is not None:
        identity = torch.eye(tangents.shape[2], dtype=tangents.dtype)
        if not torch.allclose(tangents.mT @ tangents, identity.expand(len(tangents), -1, -1), atol=1e-4):
            raise InputError("tangents: the directions at a point must be orthonormal")

    moved = points.detach().requires_grad_()
    with torch.enable_grad():
        outputs = function(moved)
        slopes = [torch.autograd.grad(row.sum(), moved, retain_graph=True)[0] for row in outputs.unbind(1)]
    jacobian = torch.stack(slopes, 1)
    values: Tensor = torch.linalg.svdvals(jacobian if tangents is None else jacobian @ tangents.to(jacobian))
    return values


def _flat(points: Tensor, *, least: int = 2) -> Tensor:
    """Return the points as finite rows of double precision."""
    if len(points) < least:
        raise InputError(f"points: at least {least} are needed, not {len(points)}")
    flat = points.detach().flatten(1).double()
    bad = int((~flat.isfinite().all(1)).sum())
    if bad:
        raise InputError(f"points: {bad} of {len(flat)} hold NaN or infinity")
    return flat


def _all_coincide(points: Tensor) -> bool:
    return bool((points == points[0]).all())
