import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.spatial
import torch
from torch import Tensor, nn

from isorepro import boundary, data, geometry
from isorepro.errors import InputError
from isorepro.models import Stack
from isorepro.training import TrainedModel, TrainingConfig, build, train

BETA, K = 0.5, 2.0
TOYS = ("linked_rings", "torus", "two_moons")


@pytest.fixture(scope="module")
def toys() -> dict[str, TrainedModel]:
    """One small network of each toy set, trained just enough to have a boundary."""
    return {
        name: train(
            TrainingConfig(
                dataset=name,
                beta=BETA,
                K=K,
                width=20,
                depth=2,
                epochs=60 if name != "torus" else 15,
                batch_size=50,
                learning_rate=5e-3,
                log_every=100,
                device="cpu",
            )
        )
        for name in TOYS
    }


class Function(nn.Module):
    """A classifier from a function of points to logits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, points: Tensor) -> Tensor:
        return self.function(points)


def circle(radius: float) -> Function:
    def logits(points: Tensor) -> Tensor:
        inside = radius**2 - points.square().sum(1)
        return torch.stack([inside, torch.zeros_like(inside)], 1)

    return Function(logits)


def linear(classes: int, dimensions: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(dimensions, classes).double()


def tanh_net(seed: int) -> nn.Sequential:
    """A random network of the plane with a curved boundary between three classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
        for layer in (net[0], net[2], net[4]):
            nn.init.normal_(layer.weight, std=0.8)
    return net


def points_of(seed: int, size: int, dimensions: int) -> Tensor:
    return torch.randn(size, dimensions, generator=torch.Generator().manual_seed(seed))


# Distance by lines


@pytest.mark.parametrize("dimensions", [2, 3, 10])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("seed", range(2))
def test_the_distance_of_a_linear_classifier_is_exact(classes: int, dimensions: int, seed: int) -> None:
    model, points = linear(classes, dimensions, seed), points_of(seed, 60, dimensions).double()
    expected = []
    for z in model(points).tolist():
        own = int(np.argmax(z))
        expected.append(
            min(
                (z[own] - z[k]) / (model.weight[own] - model.weight[k]).norm().item()
                for k in range(classes)
                if k != own
            )
        )
    found = boundary.boundary_distance(model, points, reach=1.01 * max(expected))
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_boundary_out_of_reach_is_infinitely_far() -> None:
    model = Function(lambda x: torch.stack([x[:, 0], -x[:, 0]], 1))
    points = torch.tensor([[0.5, 0.0], [1.9, 3.0], [2.1, 0.0], [-7.0, 1.0]])
    found = boundary.boundary_distance(model, points, reach=2.0)
    assert found.tolist() == pytest.approx([0.5, 1.9, math.inf, math.inf], rel=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_constant_classifier_has_no_boundary(classes: int) -> None:
    model = nn.Linear(4, classes)
    nn.init.zeros_(model.weight)
    found = boundary.boundary_distance(model, points_of(0, 9, 4), reach=10.0)
    assert found.tolist() == [math.inf] * 9


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_the_distance_to_a_circle_is_exact(radius: float) -> None:
    points = points_of(0, 100, 2) * 1.5
    expected = (points.norm(dim=1) - radius).abs()
    found = boundary.boundary_distance(circle(radius), points, reach=8.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_line_that_starts_askew_slides_to_the_nearest_part_of_the_boundary() -> None:
    # The gradient of x + sin y does not point to where this boundary is nearest.
    model = Function(lambda x: torch.stack([x[:, 0] + x[:, 1].sin(), torch.zeros(len(x))], 1))
    points = points_of(1, 60, 2) + torch.tensor([2.5, 0.0])
    heights = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    curve = torch.stack([-heights.sin(), heights], 1).numpy()
    expected = torch.from_numpy(scipy.spatial.distance.cdist(points.double().numpy(), curve).min(1))
    found, unrefined = (
        boundary.boundary_distance(model, points, reach=6.0, refinements=count) / expected - 1 for count in (12, 0)
    )
    assert found.min() > -1e-5
    assert (found < 2e-4).double().mean() > 0.9
    assert (unrefined < 2e-4).double().mean() < 0.3
    assert (found <= unrefined).all()


@pytest.mark.parametrize("seed", range(3))
def test_at_a_finite_distance_another_class_is_found(seed: int) -> None:
    """Whatever the line search returns is an upper bound: a point of another class lies there."""
    model, points = tanh_net(seed), points_of(seed, 80, 2)
    found = boundary.boundary_distance(model, points, reach=4.0)
    angles = 2 * math.pi * torch.arange(4000) / 4000
    ring = torch.stack([angles.cos(), angles.sin()], 1)
    reached = found.isfinite()
    assert reached.double().mean() > 0.5
    with torch.no_grad():
        for point, distance in zip(points[reached], found[reached], strict=True):
            around = model(point + (distance * 1.001 + 1e-5) * ring).argmax(1)
            assert bool((around != model(point[None]).argmax()).any())


@pytest.mark.parametrize(
    "arguments", [{"reach": 0.0}, {"reach": -1.0}, {"reach": math.nan}, {"steps": 0}, {"refinements": -1}]
)
def test_lines_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match="reach must be above 0, steps at least 1 and refinements at least 0"):
        boundary.boundary_distance(circle(1.0), torch.ones(3, 2), **{"reach": 1.0} | arguments)  # type: ignore[arg-type]


# Distance by a grid


def test_the_grids_distance_equals_brute_force() -> None:
    model, points = tanh_net(0), points_of(0, 50, 2)
    low, high = torch.tensor([-3.0, -4.0]), torch.tensor([3.0, 2.0])
    found = boundary.grid_boundary_distance(model, points, low=low, high=high, resolution=41)
    nodes = torch.tensor(list(itertools.product(np.linspace(-3, 3, 41), np.linspace(-4, 2, 41)))).float()
    with torch.no_grad():
        differ = model(points).argmax(1)[:, None] != model(nodes).argmax(1)
    expected = torch.where(differ, torch.cdist(points.double(), nodes.double()), math.inf).min(1).values
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.isfinite().any()


def test_the_grids_distance_to_a_circle_is_too_long_by_a_cell_at_most() -> None:
    points = points_of(0, 300, 2)
    corner = torch.tensor([4.0, 4.0])
    found = boundary.grid_boundary_distance(circle(1.3), points, low=-corner, high=corner, resolution=161)
    excess = found - (points.double().norm(dim=1) - 1.3).abs()
    cell = math.sqrt(2) * 8 / 160
    assert excess.min() > -1e-6
    assert cell / 4 < excess.max() < cell


def test_the_grids_distance_may_be_too_long_by_more_than_half_a_cell() -> None:
    # The boundary runs just beyond a row of nodes, so that the next row is the first of another class.
    model = Function(lambda x: torch.stack([x[:, 0] - 0.01, torch.zeros(len(x))], 1))
    corner = torch.tensor([5.0, 5.0])
    point = torch.tensor([[0.0, 0.5]])
    (found,) = boundary.grid_boundary_distance(model, point, low=-corner, high=corner, resolution=11).tolist()
    assert found == pytest.approx(math.hypot(1, 0.5))
    half_cell = math.sqrt(2) / 2
    assert half_cell < found - 0.01 < 2 * half_cell


def test_a_grid_without_another_class_is_infinitely_far_and_bad_grids_are_refused() -> None:
    corner = torch.ones(2)
    found = boundary.grid_boundary_distance(circle(9.0), torch.zeros(3, 2), low=-corner, high=corner)
    assert found.tolist() == [math.inf] * 3
    for points, resolution in ((torch.zeros(3, 3), 10), (torch.zeros(2), 10), (torch.zeros(3, 2), 1)):
        with pytest.raises(InputError, match=r"needs points \(N, 2\) and a resolution of at least 2"):
            boundary.grid_boundary_distance(circle(1.0), points, low=-corner, high=corner, resolution=resolution)


def test_both_searches_agree_on_a_trained_network(toys: dict[str, TrainedModel]) -> None:
    check = boundary.search_check(toys["two_moons"], reach=5.0, margin=1.5, resolution=301)
    dataset = data.load("two_moons")
    extent = (dataset.test_inputs.amax(0) - dataset.test_inputs.amin(0) + 3.0).norm().item()
    assert check["cell"].to_numpy() == pytest.approx(extent / 300)
    assert len(check) == 400
    assert np.isfinite(check).all(axis=None)
    assert (check["grid"] > 0).all()
    excess = check["line_search"] - check["grid"]
    assert (excess < check["cell"] / 2).mean() > 0.95
    assert (excess > -check["cell"]).all()
    assert np.corrcoef(check["line_search"], check["grid"])[0, 1] > 0.99
    agreement = boundary.agreement(check)
    assert agreement["agree"] == pytest.approx((excess.abs() <= check["cell"]).mean())
    assert (agreement["longest"], agreement["cell"]) == (excess.max(), check["cell"].max())
    assert agreement["spearman"] == pytest.approx(check["line_search"].corr(check["grid"], method="spearman"))


# Profiles


@pytest.mark.parametrize("name", TOYS)
def test_a_profiles_columns_are_the_measures_of_its_points(toys: dict[str, TrainedModel], name: str) -> None:
    trained = toys[name]
    table = boundary.profile(trained, reach=1.0, neighbours=6, test_size=100)
    dataset = data.load(name, test_size=100)
    assert len(table) == 100
    expected = boundary.boundary_distance(trained.model, dataset.test_inputs, reach=1.0)
    assert table["boundary_distance"].tolist() == expected.tolist()
    assert (table["boundary_distance"] > 0).all()
    assert (table["stretch_low"] >= 0).all()
    assert (table["stretch_low"] <= table["stretch_high"]).all()
    larger = np.maximum((table["stretch_low"] - 1).abs(), (table["stretch_high"] - 1).abs())
    np.testing.assert_allclose(table["jacobian_error"], larger, rtol=1e-5, atol=1e-6)
    # The stretch of the first points, by finite differences in double precision.
    model, tangents = trained.model.double(), dataset.test_tangents
    for row in range(5):
        point = dataset.test_inputs[row].double()
        basis = torch.eye(len(point)) if tangents is None else tangents[row]
        basis = basis.double().T
        columns = [
            (model.representation((point + 1e-5 * e)[None]) - model.representation((point - 1e-5 * e)[None]))
            / 2e-5
            for e in basis
        ]
        stretch = K * torch.linalg.svdvals(torch.cat(columns).detach())
        assert table["stretch_high"][row] == pytest.approx(stretch[0].item(), rel=1e-3)
        assert table["stretch_low"][row] == pytest.approx(stretch[-1].item(), rel=1e-3, abs=1e-4)
    trained.model.float()
    with torch.no_grad():
        mapped = trained.model.representation(dataset.test_inputs)
    local = geometry.local_distortion(dataset.test_inputs, mapped, neighbours=6, K=K)
    np.testing.assert_allclose(table["local_distortion"], local.numpy(), rtol=1e-5)


def test_a_plane_maps_every_node_of_its_grid(toys: dict[str, TrainedModel]) -> None:
    trained = toys["two_moons"]
    table = boundary.plane(trained, margin=0.5, resolution=12)
    dataset = data.load("two_moons")
    assert len(table) == 144
    for name, column in (("x", 0), ("y", 1)):
        values = dataset.test_inputs[:, column]
        low, high = values.min().item() - 0.5, values.max().item() + 0.5
        assert table[name].agg(["min", "max"]).tolist() == pytest.approx([low, high], rel=1e-5)
    assert table["y"].is_monotonic_increasing
    assert (table["stretch_low"] <= table["stretch_high"]).all()
    nodes = torch.tensor(table[["x", "y"]].to_numpy()).float()
    first = trained.model(nodes).argmax(1) == 0
    assert (table["margin"] > 0).tolist() == first.tolist()
    assert 0 < first.sum() < len(first)
    full = K * geometry.jacobian_singular_values(trained.model.representation, nodes)
    np.testing.assert_allclose(table[["stretch_high", "stretch_low"]], full.numpy(), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"a map of the plane needs points \(N, 2\), not \(400, 3\)"):
        boundary.plane(toys["linked_rings"], margin=0.5, resolution=12)


def test_without_the_term_its_factor_scales_nothing() -> None:
    inputs = data.load("two_moons").train_inputs
    profiles = {}
    for beta, factor in ((0.0, 1.0), (0.0, 7.0), (1.0, 1.0), (1.0, 7.0)):
        config = TrainingConfig(dataset="two_moons", beta=beta, K=factor, width=8, depth=1, device="cpu")
        untrained = TrainedModel(config, build(config, inputs, 2).eval(), pd.DataFrame(), 0.0)
        profiles[beta, factor] = boundary.profile(untrained, reach=0.5, test_size=50)
    pd.testing.assert_frame_equal(profiles[0.0, 1.0], profiles[0.0, 7.0])
    pd.testing.assert_frame_equal(profiles[0.0, 1.0], profiles[1.0, 1.0])
    np.testing.assert_allclose(
        profiles[1.0, 7.0]["stretch_high"], 7 * profiles[0.0, 7.0]["stretch_high"], rtol=1e-5
    )


class Isometric(Stack):
    """A network whose representation is the input, turned into a space of more dimensions."""

    TURN = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0))).Q

    def representation(self, inputs: Tensor) -> Tensor:
        return inputs @ self.TURN[: inputs.shape[1]] + 1.0


@pytest.mark.parametrize("name", TOYS)
def test_an_isometric_representation_has_perfect_profiles(name: str) -> None:
    config = TrainingConfig(dataset=name, width=20, depth=1, device="cpu")
    inputs = data.load(name).train_inputs
    model = Isometric(inputs.shape[1], (8,), width=20, depth=1).eval()
    table = boundary.profile(TrainedModel(config, model, pd.DataFrame(), 0.0), reach=0.5, test_size=60)
    ones = [1.0] * 60
    assert table["stretch_low"].tolist() == pytest.approx(ones, abs=1e-5)
    assert table["stretch_high"].tolist() == pytest.approx(ones, abs=1e-5)
    assert table["jacobian_error"].max() < 1e-5
    assert table["local_distortion"].max() < 1e-4


# Tables


def profiles(size: int = 60) -> pd.DataFrame:
    random = np.random.default_rng(0)
    tables = [
        pd.DataFrame(
            {
                "dataset": dataset,
                "beta": beta,
                "seed": seed,
                "boundary_distance": np.where(random.random(size) < 0.1, np.inf, random.exponential(size=size)),
                "jacobian_error": random.random(size),
                "local_distortion": random.random(size),
            }
        )
        for dataset, beta, seed in itertools.product(("torus", "rings"), (0.0, 1.0), range(3))
    ]
    return pd.concat(tables)  # with an index that repeats


def test_bins_equal_the_loop() -> None:
    table = profiles()
    found = boundary.binned(table, ["jacobian_error", "local_distortion"], bins=4)
    rows: list[tuple[object, ...]] = []
    bins: dict[tuple[str, float, int], dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for dataset, beta in itertools.product(("torus", "rings"), (0.0, 1.0)):
        group = [
            row
            for row in table.itertuples()
            if (row.dataset, row.beta) == (dataset, beta) and row.boundary_distance < math.inf
        ]
        for seed in range(3):
            own = sorted((row for row in group if row.seed == seed), key=lambda row: row.boundary_distance)
            for number, row in enumerate(own):
                place = next(p for p in range(4) if number < (p + 1) * len(own) / 4)
                bins[dataset, beta, place][seed].append(row)
    for (dataset, beta, place), members in bins.items():
        centre = np.median([row.boundary_distance for own in members.values() for row in own])
        for seed, own in members.items():
            for measure in ("jacobian_error", "local_distortion"):
                mean = np.mean([getattr(row, measure) for row in own])
                rows.append((dataset, beta, seed, place, centre, len(own), measure, mean))
    expected = pd.DataFrame(rows, columns=list(found))
    keys = ["dataset", "beta", "seed", "bin", "measure"]
    pd.testing.assert_frame_equal(
        found.sort_values(keys, ignore_index=True),
        expected.sort_values(keys, ignore_index=True),
        check_dtype=False,
    )
    with pytest.raises(InputError, match="bins: must be at least 1, not 0"):
        boundary.binned(table, ["jacobian_error"], bins=0)
    points = found[found["measure"] == "jacobian_error"]["points"].sum()
    assert points == (table["boundary_distance"] < math.inf).sum() < len(table)


def test_near_and_far_points_are_compared() -> None:
    distance = [5.0, 1.0, math.inf, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0]
    # Near: 1 and 2. Far: 7, 8, 9 and infinity.
    table = pd.DataFrame(
        {
            "dataset": "torus",
            "beta": 1.0,
            "seed": 3,
            "boundary_distance": distance,
            "jacobian_error": [0.5, 0.9, 0.1, 0.7, 0.65, 0.6, 0.45, 0.4, 0.3, 0.2],
            "local_distortion": [0.0, 0.1, 0.9, 0.3, 0.0, 0.0, 0.0, 0.2, 0.5, 0.6],
        }
    )
    found = boundary.near_and_far(table, near=0.2, far=0.4).set_index("measure")
    assert found.loc["jacobian_error", ["near", "far", "delta", "spearman"]].tolist() == pytest.approx(
        [0.8, 0.25, 1.0, -1.0]
    )
    # Of the 8 comparisons of 0.1 and 0.3 with 0.2, 0.5, 0.6 and 0.9 one is won.
    assert found.loc["local_distortion", ["near", "far", "delta"]].tolist() == pytest.approx([0.2, 0.55, -0.75])
    table["local_distortion"] = -table["jacobian_error"]
    assert boundary.near_and_far(table, near=0.2, far=0.4)["delta"].tolist() == [1.0, -1.0]
    assert found[["dataset", "beta", "seed"]].drop_duplicates().to_numpy().tolist() == [["torus", 1.0, 3]]


def test_each_network_is_compared_by_itself() -> None:
    table = profiles()
    found = boundary.near_and_far(table, near=0.25, far=0.25)
    assert len(found) == 2 * 2 * 3 * 2
    one = table.query("dataset == 'rings' and beta == 1 and seed == 2").sort_values("boundary_distance")
    row = found.query("dataset == 'rings' and beta == 1 and seed == 2 and measure == 'local_distortion'").iloc[0]
    near, far = one["local_distortion"].iloc[:15], one["local_distortion"].iloc[-15:]
    assert row["near"] == np.median(near)
    wins = sum(np.sign(a - b) for a in near for b in far)
    assert row["delta"] <= 1
    if np.isfinite(one["boundary_distance"].iloc[-15]):
        assert (row["far"], row["delta"]) == (np.median(far), pytest.approx(wins / 225))


def test_points_out_of_reach_are_all_equally_far_whatever_their_order() -> None:
    table = pd.DataFrame(
        {
            "dataset": "torus",
            "beta": 1.0,
            "seed": 0,
            "boundary_distance": [1.0, 2.0, math.inf, math.inf, math.inf, math.inf],
            "jacobian_error": [0.5, 0.6, 0.1, 0.2, 0.8, 0.9],
            "local_distortion": 0.5,
        }
    )
    orders = [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]
    there, back = (boundary.near_and_far(table.iloc[rows], near=0.2, far=0.5)["spearman"][0] for rows in orders)
    assert there == pytest.approx(back)
    assert there == pytest.approx(table["boundary_distance"].rank().corr(table["jacobian_error"].rank()))


@pytest.mark.parametrize(("near", "far"), [(0.0, 0.5), (0.5, 0.0), (0.6, 0.5), (math.nan, 0.1)])
def test_shares_out_of_range_are_refused(near: float, far: float) -> None:
    with pytest.raises(InputError, match="must be above 0 and at most 1 together"):
        boundary.near_and_far(profiles(), near=near, far=far)


@pytest.mark.parametrize(
    ("near", "far", "delta", "expected"),
    [
        (0.8, 0.05, 0.9, boundary.HOLDS),
        (0.05, 0.04, 0.9, boundary.EVERYWHERE),
        (0.8, 0.5, 0.9, boundary.PARTLY),
        (0.8, 0.5, 0.0, boundary.NOWHERE),
        (0.8, 0.5, -0.9, boundary.NOWHERE),
        (0.8, 0.1, 0.9, boundary.OPEN),
        (0.1, 0.05, 0.9, boundary.GRADED),
        (0.1, 0.05, 0.0, boundary.OPEN),
    ],
)
def test_each_verdict_is_reached(near: float, far: float, delta: float, expected: str) -> None:
    """Three seeds with a spread of ±0.01 about the means, whose 95 % interval is ±0.025; the tolerance is 0.1."""
    comparison = pd.DataFrame(
        {
            "dataset": "torus",
            "beta": 1.0,
            "measure": "jacobian_error",
            "seed": range(3),
            "near": [near - 0.01, near, near + 0.01],
            "far": [far - 0.01, far, far + 0.01],
            "delta": [delta - 0.01, delta, delta + 0.01],
            "near_distance": [0.1, 0.3, 0.2],
            "far_distance": [1.0, 3.0, 2.0],
        }
    )
    (row,) = boundary.verdicts(comparison, tolerance=0.1).to_dict("records")
    assert row["verdict"] == expected
    assert (row["near"], row["far"], row["delta"], row["seeds"]) == pytest.approx((near, far, delta, 3))
    assert (row["near_distance"], row["far_distance"]) == (0.2, 2.0)
    assert boundary.key_numbers(pd.DataFrame([row]))["torus_jacobian_error_verdict"] == expected
    assert boundary.key_numbers(pd.DataFrame([row | {"beta": 0.0}])) == {}
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert (row["far_low"], row["far_high"]) == pytest.approx((far - half, far + half), abs=1e-6)
    single = boundary.verdicts(comparison[:1], tolerance=0.1)
    assert single["verdict"].tolist() == [boundary.OPEN]


def test_verdicts_are_given_for_each_set_weight_and_measure() -> None:
    comparison = boundary.near_and_far(profiles(), near=0.25, far=0.25)
    found = boundary.verdicts(comparison, tolerance=0.1)
    assert len(found) == 8
    assert (found["seeds"] == 3).all()
    for row in found.itertuples():
        chosen = comparison.query("dataset == @row.dataset and beta == @row.beta and measure == @row.measure")
        assert (row.near, row.far) == pytest.approx((chosen["near"].mean(), chosen["far"].mean()))
        expected = boundary.OPEN
        if row.far_low > 0.1:
            expected = boundary.PARTLY if row.delta_low > 0 else boundary.NOWHERE
        assert row.verdict == expected
