import itertools
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import gudhi
import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import sklearn.decomposition
import sklearn.manifold
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isorepro import geometry
from isorepro.errors import InputError
from isorepro.geometry import Relation
from isorepro.models import Stack

RELATIONS: tuple[Relation, ...] = ("within", "between")


def cloud(seed: int, size: int = 40, dimensions: int = 3) -> Tensor:
    return torch.randn(size, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, dimensions: int) -> Tensor:
    turned, _ = torch.linalg.qr(cloud(seed, dimensions, dimensions))
    return turned


def isometric_copy(points: Tensor, seed: int = 0, dimensions: int = 7) -> Tensor:
    """The points turned into a space of more dimensions, and shifted."""
    return points @ rotation(seed, dimensions)[: points.shape[1]] + torch.arange(dimensions) - 2.5


def circle(count: int, centre: float = 0.0) -> Tensor:
    angles = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    return torch.stack([centre + angles.cos(), angles.sin()], 1)


# Pairs


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(-2, 4), max_size=25),
    relation=st.sampled_from(RELATIONS),
    cap=st.integers(1, 400),
    seed=st.integers(0, 2**31),
)
def test_pairs_are_drawn_without_replacement_from_all_that_are_eligible(
    labels: list[int], relation: Relation, cap: int, seed: int
) -> None:
    eligible = {
        frozenset((i, j))
        for i, j in itertools.combinations(range(len(labels)), 2)
        if (labels[i] == labels[j]) == (relation == "within")
    }
    if not eligible:
        with pytest.raises(InputError, match=f"no pair {relation} classes"):
            geometry.sample_pairs(torch.tensor(labels, dtype=torch.int64), relation, cap=cap, seed=seed)
        return
    pairs, count = geometry.sample_pairs(torch.tensor(labels), relation, cap=cap, seed=seed)
    found = [frozenset(pair) for pair in pairs.tolist()]
    assert count == len(eligible)
    assert len(found) == len(set(found)) == min(cap, count)
    assert set(found) <= eligible
    again, _ = geometry.sample_pairs(torch.tensor(labels), relation, cap=cap, seed=seed)
    assert torch.equal(pairs, again)


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_eligible_pair_is_drawn_equally_often_and_seeds_differ(relation: Relation) -> None:
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 2, 2, 0])
    draws = [geometry.sample_pairs(labels, relation, cap=3, seed=seed) for seed in range(3000)]
    times = Counter(frozenset(pair) for pairs, _ in draws for pair in pairs.tolist())
    assert len(times) == draws[0][1]
    assert scipy.stats.chisquare(list(times.values())).pvalue > 1e-3
    assert len({tuple(pairs.flatten().tolist()) for pairs, _ in draws[:10]}) > 5


def test_pairs_of_a_large_class_are_found_from_their_numbers_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 60_000
    rows = [1, 2, 3, 4, 31_415, 59_998, 59_999]
    # The first and the last pair of some points with all before them, where rounding would show.
    numbers = [row * (row - 1) // 2 + place for row in rows for place in (0, row - 1)]

    class Draw:
        def choice(self, eligible: int, size: int, replace: bool) -> np.ndarray:
            assert (eligible, replace) == (60_000 * 59_999 // 2, False)
            return np.array(numbers)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Draw())
    pairs, eligible = geometry.sample_pairs(torch.zeros(size, dtype=torch.int64), "within", cap=len(numbers))
    assert eligible == size * (size - 1) // 2
    assert pairs.tolist() == [[row, place] for row in rows for place in (0, row - 1)]


def test_many_pairs_of_a_large_set_keep_their_classes() -> None:
    labels = torch.arange(10).repeat_interleave(6000)[torch.randperm(60_000)]
    for relation in RELATIONS:
        pairs, eligible = geometry.sample_pairs(labels, relation, cap=200_000)
        same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        assert bool((same == (relation == "within")).all())
        assert (pairs[:, 0] != pairs[:, 1]).all()
        assert len({tuple(sorted(pair)) for pair in pairs.tolist()}) == 200_000
        assert eligible == (10 * 6000 * 5999 // 2 if relation == "within" else 45 * 6000**2)


@pytest.mark.parametrize(
    ("labels", "relation", "cap", "message"),
    [
        ([0, 0, 0], "between", 10, r"3 points in 1 class\(es\) have no pair between"),
        ([0, 1, 2], "within", 10, r"3 points in 3 class\(es\) have no pair within"),
        ([0, 0, 1], "within", 0, "cap: must be at least 1, not 0"),
    ],
)
def test_impossible_draws_are_refused(labels: list[int], relation: Relation, cap: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        geometry.sample_pairs(torch.tensor(labels), relation, cap=cap)


def test_distances_of_pairs_equal_scipys() -> None:
    points = cloud(0, 250, 6).reshape(250, 2, 3)
    pairs = torch.tensor(list(itertools.combinations(range(250), 2)))  # more than one part
    expected = scipy.spatial.distance.pdist(points.flatten(1).numpy())
    np.testing.assert_allclose(geometry.pair_distances(points, pairs).numpy(), expected, rtol=1e-12)
    with pytest.raises(InputError, match="at least one pair"):
        geometry.pair_distances(points, pairs[:0])


# Measures of pairs


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(3, 60), ties=st.booleans())
def test_correlations_equal_scipys(seed: int, size: int, ties: bool) -> None:
    one, other = cloud(seed, size, 2).T
    other = other + one
    if ties:
        one, other = (2 * one).round(), other.round()
    if one.unique().numel() == 1 or other.unique().numel() == 1:
        return
    assert geometry.spearman(one, other) == pytest.approx(scipy.stats.spearmanr(one, other).statistic, abs=1e-12)
    assert geometry.pearson(one, other) == pytest.approx(scipy.stats.pearsonr(one, other).statistic, abs=1e-12)


def test_best_scale_is_the_least_squares_one_and_stress_is_its_formula() -> None:
    distances, mapped = cloud(1, 30, 2).abs().T
    scale = np.linalg.lstsq(mapped.numpy()[:, None], distances.numpy(), rcond=None)[0][0]
    assert geometry.best_scale(distances, mapped) == pytest.approx(scale, rel=1e-12)
    for factor, expected in ((1.0, 1.0), (0.3, 0.3), (None, scale)):
        above = sum((expected * m - d) ** 2 for d, m in zip(distances.tolist(), mapped.tolist(), strict=True))
        below = sum(d**2 for d in distances.tolist())
        assert geometry.stress(distances, mapped, factor) == pytest.approx(math.sqrt(above / below), rel=1e-12)
    assert geometry.stress(distances, mapped, None) <= 1


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("scale", [1.0, 0.1, 3.0])
def test_a_scaled_isometry_has_perfect_scores(relation: Relation, scale: float) -> None:
    inputs, labels = cloud(0), torch.arange(40) % 3
    mapped = scale * isometric_copy(inputs)
    found = geometry.distance_preservation(inputs, mapped, labels, relation)
    expected = {"spearman": 1, "pearson": 1, "stress": abs(scale - 1), "scaled_stress": 0, "scale": 1 / scale}
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(expected, abs=1e-9)
    corrected = geometry.distance_preservation(inputs, mapped, labels, relation, K=1 / scale)
    assert corrected["stress"][0] == pytest.approx(0, abs=1e-9)


def test_a_collapse_keeps_no_order_and_has_stress_one() -> None:
    found = geometry.distance_preservation(cloud(0), torch.full((40, 9), 0.1), torch.arange(40) % 2, "within")
    assert found == {
        "spearman": (0, 0),
        "pearson": (0, 0),
        "stress": (1, 0),
        "scaled_stress": (1, 0),
        "scale": (0, 0),
    }


def test_shuffled_points_lose_their_distances_but_not_their_shape() -> None:
    inputs = cloud(3, 12)
    shuffled = isometric_copy(inputs)[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    found = geometry.distance_preservation(inputs, shuffled, torch.zeros(12), "within")
    assert found["spearman"][0] < 0.5
    assert found["scaled_stress"][0] > 0.2
    # A local search finds the matching in some starts only; in this one it does.
    assert geometry.gromov_wasserstein(inputs, shuffled) == pytest.approx(0, abs=1e-6)


def test_the_sampling_error_is_the_spread_over_draws() -> None:
    inputs = cloud(0, 120)
    mapped, labels = torch.tanh(inputs) @ cloud(1, 3, 3), torch.arange(120) % 2
    whole = geometry.distance_preservation(inputs, mapped, labels, "within")
    for cap in (400, 2500):  # of 3540
        draws = [
            geometry.distance_preservation(inputs, mapped, labels, "within", cap=cap, seed=seed)
            for seed in range(80)
        ]
        for name, (value, error) in whole.items():
            assert error == 0
            values, stated = np.array([draw[name] for draw in draws]).T
            assert 0.6 < values.std(ddof=1) / np.sqrt((stated**2).mean()) < 1.6
            assert abs(values.mean() - value) < 0.5 * values.std(ddof=1)


def test_the_groups_of_the_sampling_error_are_twenty_of_nearly_equal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def count(one: Tensor, other: Tensor) -> float:
        sizes.append(len(one))
        return 0.0

    monkeypatch.setattr(geometry, "spearman", count)
    geometry.distance_preservation(cloud(0), cloud(1), torch.zeros(40), "within", cap=201)
    assert sorted(sizes) == [10] * 19 + [11, 201]


def test_too_few_drawn_pairs_have_an_unknown_sampling_error() -> None:
    inputs, labels = cloud(0), torch.zeros(40)
    found = geometry.distance_preservation(inputs, inputs.tanh(), labels, "within", cap=199)
    assert all(math.isnan(error) and math.isfinite(value) for value, error in found.values())
    found = geometry.distance_preservation(inputs, inputs.tanh(), labels, "within", cap=200)
    assert all(error > 0 for _, error in found.values())


def test_pairs_of_coinciding_inputs_have_no_stress() -> None:
    with pytest.raises(InputError, match="all inputs coincide"):
        geometry.distance_preservation(torch.ones(5, 2), cloud(0, 5), torch.zeros(5), "within")


# Neighbourhoods


def published_trustworthiness(inputs: Tensor, mapped: Tensor, k: int) -> float:
    """Venna and Kaski's formula: ranks of the false neighbours beyond k, normalised."""
    n = len(inputs)

    def order(points: Tensor, i: int) -> list[int]:
        others = [j for j in range(n) if j != i]
        return sorted(others, key=lambda j: math.dist(points[i].tolist(), points[j].tolist()))

    loss = 0
    for i in range(n):
        before, after = order(inputs, i), order(mapped, i)
        loss += sum(before.index(j) + 1 - k for j in after[:k] if j not in before[:k])
    return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * loss


@pytest.mark.parametrize("neighbours", [1, 5, 12])
def test_trustworthiness_equals_the_published_formula_and_scikit_learns(neighbours: int) -> None:
    inputs, mapped = cloud(0, 25), cloud(0, 25)[:, :1] + 0.3 * cloud(1, 25, 2)
    found = geometry.trustworthiness(inputs, mapped, neighbours=neighbours)
    assert found == pytest.approx(published_trustworthiness(inputs, mapped, neighbours), rel=1e-12)
    assert found == sklearn.manifold.trustworthiness(inputs.numpy(), mapped.numpy(), n_neighbors=neighbours)
    continuity = geometry.continuity(inputs, mapped, neighbours=neighbours)
    assert continuity == pytest.approx(published_trustworthiness(mapped, inputs, neighbours), rel=1e-12)
    assert found < 0.95
    assert abs(found - continuity) > 1e-3


def test_a_projection_is_untrustworthy_and_a_cut_is_discontinuous() -> None:
    angles = torch.linspace(0.01, 2 * math.pi - 0.01, 80, dtype=torch.float64)
    ring = torch.stack([angles.cos(), angles.sin()], 1)
    flattened, unrolled = ring[:, :1] + 1e-4 * ring[:, 1:], angles[:, None]
    assert geometry.continuity(ring, flattened) > 0.9 > geometry.trustworthiness(ring, flattened)
    assert geometry.trustworthiness(ring, unrolled) > 0.99
    assert geometry.continuity(ring, unrolled) < geometry.trustworthiness(ring, unrolled)


def test_an_isometry_keeps_all_neighbours_and_a_collapse_about_half() -> None:
    inputs = cloud(0, 400)
    assert geometry.trustworthiness(inputs, 3 * isometric_copy(inputs)) == 1
    assert geometry.continuity(inputs, 3 * isometric_copy(inputs)) == 1
    assert geometry.trustworthiness(inputs, torch.zeros(400, 2)) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("neighbours", [0, 10, 11])
def test_neighbourhoods_of_half_the_points_are_refused(neighbours: int) -> None:
    with pytest.raises(InputError, match=f"less than half of the 20 points, not {neighbours}"):
        geometry.trustworthiness(cloud(0, 20), cloud(1, 20), neighbours=neighbours)


@pytest.mark.parametrize("neighbours", [1, 4, 24])
def test_local_distortion_equals_the_loop(neighbours: int) -> None:
    inputs, mapped, K = cloud(0, 25), cloud(1, 25, 5), 1.7
    x, h = inputs.tolist(), mapped.tolist()
    expected = []
    for i in range(25):
        near = sorted((math.dist(x[i], x[j]), j) for j in range(25) if j != i)[:neighbours]
        changes = [abs(K * math.dist(h[i], h[j]) - distance) / distance for distance, j in near]
        expected.append(sum(changes) / neighbours)
    found = geometry.local_distortion(inputs, mapped, neighbours=neighbours, K=K)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 4.0])
def test_local_distortion_of_a_scaling_is_its_distance_from_one(scale: float) -> None:
    found = geometry.local_distortion(cloud(0), scale * isometric_copy(cloud(0)))
    assert found.tolist() == pytest.approx([abs(scale - 1)] * 40, abs=1e-9)


def test_local_distortion_passes_over_twins() -> None:
    inputs = torch.cat([torch.zeros(4, 2), torch.tensor([[1.0, 0], [2, 0], [4, 0]])])
    mapped = 2 * inputs + torch.arange(7)[:, None] * 0.0
    found = geometry.local_distortion(inputs, mapped, neighbours=3)
    assert found[:4].isnan().all()  # three twins each
    assert found[4:].tolist() == pytest.approx([1, 1, 1])
    with pytest.raises(InputError, match="neighbours: must be from 1 to 6, not 7"):
        geometry.local_distortion(inputs, mapped, neighbours=7)


# Shape


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.5])
def test_gromov_wasserstein_of_a_scaled_isometry_is_the_scales_distance_from_one(scale: float) -> None:
    # By the Cauchy-Schwarz inequality no matching is better than the true one, whose stress is |scale − 1|.
    inputs = cloud(0, 30)
    found = geometry.gromov_wasserstein(inputs, scale * isometric_copy(inputs))
    assert found == pytest.approx(abs(scale - 1), abs=1e-6)
    if scale:
        assert geometry.gromov_wasserstein(inputs, scale * inputs, K=1 / scale) == pytest.approx(0, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 25), scale=st.floats(0.01, 3))
def test_gromov_wasserstein_is_at_most_the_stress_and_at_least_the_difference_in_size(
    seed: int, size: int, scale: float
) -> None:
    inputs, mapped = cloud(seed, size), scale * cloud(seed + 1, size, 4)
    d_x, d_h = (torch.from_numpy(scipy.spatial.distance.pdist(points.numpy())) for points in (inputs, mapped))
    found = geometry.gromov_wasserstein(inputs, mapped)
    assert found <= geometry.stress(d_x, d_h) + 1e-9
    assert found >= abs(1 - float(d_h.norm() / d_x.norm())) - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_gromov_wasserstein_of_a_noisy_copy_is_at_most_its_stress(seed: int) -> None:
    # Without the matching by order the search ends far above it.
    inputs = cloud(seed, 30, 5)
    mapped = inputs + 0.1 * cloud(seed + 99, 30, 5)
    stress = geometry.stress(torch.pdist(inputs), torch.pdist(mapped))
    assert 0.03 < stress < 0.06
    assert geometry.gromov_wasserstein(inputs, mapped) <= stress + 1e-9


def test_gromov_wasserstein_of_three_points_is_at_most_that_of_the_best_order() -> None:
    inputs = torch.tensor([[0.0, 0], [3, 0], [0, 4]])
    mapped = torch.tensor([[0.0, 0], [0, 5], [3.1, 0]])
    d_x, d_h = torch.cdist(inputs, inputs), torch.cdist(mapped, mapped)
    matchings = [d_h[list(order)][:, list(order)] for order in itertools.permutations(range(3))]
    best = min(float((found - d_x).square().sum() / d_x.square().sum()) for found in matchings)
    assert geometry.gromov_wasserstein(inputs, mapped) <= math.sqrt(best) + 1e-9


def test_gromov_wasserstein_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(InputError, match=r"2 to 1000, .* not 1001 and 1001"):
        geometry.gromov_wasserstein(torch.zeros(1001, 2), torch.zeros(1001, 2))
    with pytest.raises(InputError, match="not 4 and 5"):
        geometry.gromov_wasserstein(cloud(0, 4), cloud(0, 5))
    with pytest.raises(InputError, match="all inputs coincide"):
        geometry.gromov_wasserstein(torch.ones(5, 2), cloud(0, 5))


@pytest.mark.parametrize("count", [4, 5, 7, 12, 31, 60])
def test_a_polygons_loop_is_born_at_its_side_and_dies_at_a_third_of_the_way_around(count: int) -> None:
    # Adamaszek and Adams 2017: the complex is a circle until a step spans a third of all corners.
    found = geometry.loop_intervals(circle(count))
    longest = [2 * math.sin(math.pi / count), 2 * math.sin(math.pi * math.ceil(count / 3) / count)]
    assert found[0].tolist() == pytest.approx(longest, rel=1e-9)
    assert len(found) == 1
    assert geometry.lasting_loops(found, 2.0) == 1


def plain_loops(points: Tensor) -> np.ndarray:
    tree = gudhi.RipsComplex(points=points.numpy()).create_simplex_tree(max_dimension=2)
    tree.compute_persistence()
    found = np.asarray(tree.persistence_intervals_in_dimension(1)).reshape(-1, 2)
    return found[np.lexsort((found[:, 0], found[:, 0] - found[:, 1]))]


@pytest.mark.parametrize("seed", range(3))
def test_loops_equal_those_of_the_complex_with_all_its_edges(seed: int) -> None:
    points = torch.cat([circle(20), circle(15, 1.5)]) + 0.05 * cloud(seed, 35, 2)
    found, expected = geometry.loop_intervals(points).numpy(), plain_loops(points)
    assert len(expected) > 2
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert (np.diff(found[:, 1] - found[:, 0]) <= 0).all()


@pytest.mark.parametrize(
    ("points", "loops"),
    [
        (circle(40), 1),
        (torch.cat([circle(30), circle(30, 5.0)]), 2),
        (torch.cat([circle(40), circle(40, 2.0)[:20], circle(40, 2.0)[21:]]), 2),
        (cloud(0, 100), 0),
        (cloud(0, 50, 1) * torch.ones(3), 0),
        (torch.zeros(10, 3), 0),
        (cloud(0, 3), 0),
    ],
    ids=["circle", "two circles", "figure of eight", "blob", "line", "one place", "three points"],
)
def test_lasting_loops_are_counted(points: Tensor, loops: int) -> None:
    extent = float(torch.pdist(points).max())
    share = 0.15 if extent > 3 else 0.25  # of circles whose union is larger than each
    assert geometry.lasting_loops(geometry.loop_intervals(points), extent, share=share) == loops


def test_a_large_cloud_is_thinned_by_its_seed() -> None:
    points = circle(300)
    first, again, other = (geometry.loop_intervals(points, cap=60, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    subset = points[torch.randperm(300, generator=torch.Generator().manual_seed(1))[:60]]
    np.testing.assert_allclose(other.numpy(), plain_loops(subset), rtol=1e-9)


# Similarity and dimension


def test_cka_equals_its_formula_in_kernels() -> None:
    inputs, mapped = cloud(0, 30, 5), torch.tanh(cloud(0, 30, 5) @ cloud(1, 5, 8))
    centring = torch.eye(30).double() - 1 / 30

    def hsic(one: Tensor, other: Tensor) -> float:
        return float(torch.trace(one @ one.T @ centring @ other @ other.T @ centring))

    expected = hsic(inputs, mapped) / math.sqrt(hsic(inputs, inputs) * hsic(mapped, mapped))
    assert geometry.linear_cka(inputs, mapped) == pytest.approx(expected, rel=1e-10)
    assert geometry.linear_cka(mapped, inputs) == pytest.approx(expected, rel=1e-10)
    assert expected < 0.95


def test_cka_does_not_see_scaled_motions_and_is_zero_for_the_unrelated() -> None:
    inputs, mapped = cloud(0, 30, 5), cloud(1, 30, 4)
    moved = geometry.linear_cka(3 * inputs @ rotation(2, 5) + 7, mapped)
    assert moved == pytest.approx(geometry.linear_cka(inputs, mapped), rel=1e-10)
    assert geometry.linear_cka(inputs, 0.1 * isometric_copy(inputs)) == pytest.approx(1, abs=1e-12)
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert geometry.linear_cka(corners[:, :1], corners[:, 1:]) == 0
    assert geometry.linear_cka(inputs, torch.full((30, 2), 0.3)) == 0


def test_participation_ratio_counts_dimensions() -> None:
    for dimensions in (1, 2, 5):
        cross = torch.cat([torch.eye(dimensions), -torch.eye(dimensions)])
        assert geometry.participation_ratio(2 * cross + 1) == pytest.approx(dimensions)
        embedded = isometric_copy(cross.double(), dimensions=9)
        assert geometry.participation_ratio(embedded) == pytest.approx(dimensions)
    assert geometry.participation_ratio(cloud(0, 9, 1) * torch.tensor([1.0, 2, 3])) == pytest.approx(1)
    assert geometry.participation_ratio(torch.full((9, 4), 0.7)) == 0
    points = cloud(0, 30, 6) * torch.arange(1, 7)
    values = np.linalg.eigvalsh(np.cov(points.numpy().T))
    expected = sum(values) ** 2 / sum(value**2 for value in values)
    assert geometry.participation_ratio(points) == pytest.approx(expected, rel=1e-10)


def test_principal_coordinates_equal_scikit_learns_up_to_sign() -> None:
    points = cloud(0, 30, 6) * torch.arange(1, 7) + 3
    found, shares = geometry.principal_coordinates(points, 4)
    fitted = sklearn.decomposition.PCA(4).fit(points.numpy())
    np.testing.assert_allclose(found.abs().numpy(), np.abs(fitted.transform(points.numpy())), atol=1e-10)
    np.testing.assert_allclose(shares.numpy(), fitted.explained_variance_ratio_, rtol=1e-10)
    assert (found.amax(0) == found.abs().amax(0)).all()
    mirrored, _ = geometry.principal_coordinates(-points, 4)
    torch.testing.assert_close(mirrored.abs(), found.abs())


def test_missing_principal_axes_are_zero_and_distances_stay() -> None:
    points = cloud(0, 12, 2)
    found, shares = geometry.principal_coordinates(points, 5)
    assert found.shape == (12, 5)
    assert (found[:, 2:] == 0).all()
    assert (shares[2:] == 0).all()
    assert float(shares.sum()) == pytest.approx(1)
    torch.testing.assert_close(torch.pdist(found), torch.pdist(points))
    collapsed, none = geometry.principal_coordinates(torch.ones(4, 3), 3)
    assert not collapsed.any()
    assert not none.any()


# Maps


@pytest.mark.parametrize("mirrored", [False, True])
def test_align_undoes_a_turn_a_mirror_a_scale_and_a_shift(mirrored: bool) -> None:
    reference = cloud(0, 20, 2)
    turn = rotation(1, 2)
    if (torch.det(turn) < 0) != mirrored:
        turn = turn * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(geometry.align(reference, 0.2 * reference @ turn - 9), reference)


def test_align_leaves_scipys_disparity() -> None:
    reference, points = cloud(0, 20, 3), cloud(0, 20, 3) + 0.8 * cloud(1, 20, 3)
    _, _, disparity = scipy.spatial.procrustes(reference.numpy(), points.numpy())
    left = (geometry.align(reference, points) - reference).square().sum()
    assert float(left / (reference - reference.mean(0)).square().sum()) == pytest.approx(disparity, rel=1e-10)
    collapsed = geometry.align(reference, torch.full((20, 3), 0.1))
    torch.testing.assert_close(collapsed, reference.mean(0).expand(20, 3))


def test_a_grid_runs_row_by_row_from_below() -> None:
    found = geometry.plane_grid(torch.tensor([-1.0, 10.0]), torch.tensor([1.0, 14.0]), 3)
    assert found.tolist() == [[x, y] for y in (10.0, 12.0, 14.0) for x in (-1.0, 0.0, 1.0)]


@pytest.mark.slow
def test_umap_is_deterministic_and_keeps_clusters_apart() -> None:
    points = torch.cat([cloud(0, 30, 5), cloud(1, 30, 5) + 40])
    found = geometry.umap_coordinates(points, neighbours=8, seed=3)
    assert torch.equal(found, geometry.umap_coordinates(points, neighbours=8, seed=3))
    assert not torch.equal(found, geometry.umap_coordinates(points, neighbours=8, seed=4))
    distances = torch.cdist(found, found)
    nearest = (distances + 1e9 * torch.eye(60)).argmin(1)
    assert torch.equal(nearest < 30, torch.arange(60) < 30)
    with pytest.raises(InputError, match="neighbours: must be from 2 to 59, not 60"):
        geometry.umap_coordinates(points, neighbours=60)


def test_torch_has_as_many_threads_after_umap_as_before() -> None:
    # In a process of its own: the threads are started once.
    program = (
        "import torch; from isorepro import geometry; torch.set_num_threads(1); torch.get_num_threads();"
        "geometry.umap_coordinates(torch.rand(60, 5), neighbours=8);"
        "raise SystemExit(torch.get_num_threads() != 1)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Jacobians


def test_singular_values_of_a_network_equal_those_of_each_points_jacobian() -> None:
    torch.manual_seed(0)
    network = Stack(3, (2,), width=6, depth=2).double()
    points = cloud(0, 7)
    tangents = torch.linalg.qr(cloud(1, 21, 2).reshape(7, 3, 2)).Q
    found = geometry.jacobian_singular_values(network.representation, points)
    along = geometry.jacobian_singular_values(network.representation, points, tangents)
    assert found.shape == (7, 3)
    assert along.shape == (7, 2)
    for number, point in enumerate(points):
        jacobian = torch.autograd.functional.jacobian(lambda x: network.representation(x[None])[0], point)
        expected = np.linalg.svd(jacobian.numpy(), compute_uv=False)
        np.testing.assert_allclose(found[number].numpy(), expected, rtol=1e-9)
        expected = np.linalg.svd((jacobian @ tangents[number]).numpy(), compute_uv=False)
        np.testing.assert_allclose(along[number].numpy(), expected, rtol=1e-9)
    assert not found.requires_grad


def test_singular_values_of_a_linear_map_are_its_own_everywhere() -> None:
    linear = nn.Linear(4, 3).double()
    found = geometry.jacobian_singular_values(linear, cloud(0, 5, 4))
    expected = np.linalg.svd(linear.weight.detach().numpy(), compute_uv=False)
    np.testing.assert_allclose(found.numpy(), np.tile(expected, (5, 1)), rtol=1e-10)
    turn = rotation(0, 7)[:4]
    ones = geometry.jacobian_singular_values(lambda x: x @ turn, cloud(0, 5, 4))
    torch.testing.assert_close(ones, torch.ones(5, 4, dtype=torch.float64))


def test_stretches_are_finite_differences_along_the_directions() -> None:
    points, direction = cloud(0, 6), torch.nn.functional.normalize(cloud(1, 6), dim=1)
    (found,) = geometry.jacobian_singular_values(torch.tanh, points, direction[:, :, None]).T
    step = 1e-6 * direction
    expected = (torch.tanh(points + step) - torch.tanh(points - step)).norm(dim=1) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_tangents_that_are_not_orthonormal_are_refused() -> None:
    oblique = torch.tensor([[1.0, 0.6], [0.0, 0.8]]).expand(3, 2, 2)
    for tangents in (oblique, 1.01 * torch.eye(2).expand(3, 2, 2)):
        with pytest.raises(InputError, match="must be orthonormal"):
            geometry.jacobian_singular_values(torch.tanh, torch.zeros(3, 2), tangents)


# What no measure takes

LABELS = torch.arange(30) % 2
MEASURES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "distance_preservation": lambda x, h: geometry.distance_preservation(x, h, LABELS[: len(x)], "within"),
    "pair_distances": lambda x, h: geometry.pair_distances(h, torch.tensor([[0, 1]])[: len(x) - 1]),
    "trustworthiness": lambda x, h: geometry.trustworthiness(x, h, neighbours=3),
    "continuity": lambda x, h: geometry.continuity(x, h, neighbours=3),
    "local_distortion": lambda x, h: geometry.local_distortion(x, h, neighbours=3),
    "gromov_wasserstein": geometry.gromov_wasserstein,
    "loop_intervals": lambda x, h: geometry.loop_intervals(h),
    "linear_cka": geometry.linear_cka,
    "participation_ratio": lambda x, h: geometry.participation_ratio(h),
    "principal_coordinates": lambda x, h: geometry.principal_coordinates(h, 2),
    "align": geometry.align,
    "umap_coordinates": lambda x, h: geometry.umap_coordinates(h),
}


@pytest.mark.parametrize("name", MEASURES)
def test_points_that_are_not_finite_or_too_few_are_refused(name: str) -> None:
    broken = cloud(0, 30)
    broken[3, 1], broken[7, 0], broken[7, 2] = math.nan, math.inf, -math.inf
    with pytest.raises(InputError, match="2 of 30 hold NaN or infinity"):
        MEASURES[name](cloud(1, 30), broken)
    with pytest.raises(InputError):
        MEASURES[name](cloud(1, 1), cloud(0, 1))


def test_singular_values_refuse_points_that_are_not_finite() -> None:
    with pytest.raises(InputError, match="1 of 3 hold NaN or infinity"):
        geometry.jacobian_singular_values(torch.tanh, torch.tensor([[0.0], [math.nan], [1.0]]))
