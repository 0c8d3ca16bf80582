import math

import numpy as np
import pandas as pd
import pytest
import sklearn.decomposition
import torch
from torch import Tensor

from isorepro import data, geometry, stats, structure
from isorepro.errors import InputError
from isorepro.models import Stack
from isorepro.training import TrainedModel, TrainingConfig, clean_accuracy

TOYS = ("linked_rings", "torus", "two_moons")


class Copy(Stack):
    """A network whose representation is the input, turned into more dimensions, shifted and scaled."""

    TURN = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0))).Q
    scale = 1.0

    def representation(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        return self.scale * flat @ self.TURN[: flat.shape[1]] + 1.0


def copying(name: str, scale: float = 1.0, seed: int = 0, **fields: object) -> TrainedModel:
    config = TrainingConfig(dataset=name, width=20, depth=1, seed=seed, device="cpu", **fields)
    dataset = data.load(name, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Copy(dataset.train_inputs.shape[1], (len(dataset.classes),), width=20, depth=1)
    model.scale = scale
    return TrainedModel(config, model.eval(), pd.DataFrame(), 0.0)


def value(table: pd.DataFrame, measure: str, relation: str) -> float:
    (found,) = table.query("measure == @measure and relation == @relation")["value"]
    return float(found)


# Measures


@pytest.mark.parametrize("scale", [1.0, 0.2])
@pytest.mark.parametrize("name", TOYS)
def test_a_copy_of_the_data_has_perfect_measures(name: str, scale: float) -> None:
    trained = copying(name, scale, beta=1.0, K=1 / scale)
    table = structure.measures(trained, test_size=150)
    for relation in ("within", "between"):
        assert value(table, "spearman", relation) == pytest.approx(1, abs=1e-6)
        assert value(table, "pearson", relation) == pytest.approx(1, abs=1e-6)
        assert value(table, "stress", relation) == pytest.approx(0, abs=1e-5)
        assert value(table, "scaled_stress", relation) == pytest.approx(0, abs=1e-5)
        assert value(table, "scale", relation) == pytest.approx(1 / scale, rel=1e-5)
    whole = structure.CLOUD
    assert value(table, "trustworthiness", whole) == pytest.approx(1, abs=1e-3)
    assert value(table, "continuity", whole) == pytest.approx(1, abs=1e-3)
    assert value(table, "cka", whole) == pytest.approx(1, abs=1e-6)
    inputs = data.load(name, test_size=150).test_inputs
    assert value(table, "dimension", whole) == pytest.approx(geometry.participation_ratio(inputs), rel=1e-4)
    assert (table["error"] == 0).all()


def test_a_scale_that_the_config_does_not_aim_at_is_stress() -> None:
    for fields in ({"beta": 0.0, "K": 5.0}, {"beta": 1.0, "K": 5.0, "form": "normalised"}, {"beta": 1.0}):
        table = structure.measures(copying("torus", 0.2, **fields), test_size=100)
        assert value(table, "stress", "within") == pytest.approx(0.8, abs=1e-5)
        assert value(table, "scaled_stress", "within") == pytest.approx(0, abs=1e-5)


def test_measures_of_a_network_are_those_of_its_held_out_points(trained: TrainedModel) -> None:
    table = structure.measures(trained, test_size=300, neighbours=7, pair_cap=2000)
    dataset = data.load("mnist", test_size=300)
    inputs, labels = dataset.test_inputs, dataset.test_labels
    with torch.no_grad():
        mapped = trained.model.representation(inputs)
    for relation in ("within", "between"):
        expected = geometry.distance_preservation(inputs, mapped, labels, relation, K=10.0, cap=2000)
        rows = table[table["relation"] == relation].set_index("measure")
        for measure, pair in expected.items():
            assert tuple(rows.loc[measure, ["value", "error"]]) == pytest.approx(pair, rel=1e-4, abs=1e-6)
        assert (rows["error"] > 0).all()
    whole = structure.CLOUD
    assert value(table, "accuracy", whole) == clean_accuracy(trained.model, inputs, labels)
    expected_trust = geometry.trustworthiness(inputs, mapped, neighbours=7)
    assert value(table, "trustworthiness", whole) == pytest.approx(expected_trust, abs=1e-4)
    expected_continuity = geometry.continuity(inputs, mapped, neighbours=7)
    assert value(table, "continuity", whole) == pytest.approx(expected_continuity, abs=1e-4)
    assert value(table, "cka", whole) == pytest.approx(geometry.linear_cka(inputs, mapped), rel=1e-4)
    assert value(table, "dimension", whole) == pytest.approx(geometry.participation_ratio(mapped), rel=1e-4)
    # A network trained for distances within classes keeps them better.
    assert value(table, "scaled_stress", "within") < 0.5


# Topology


def topology_of(trained: TrainedModel, **arguments: int) -> pd.DataFrame:
    return structure.topology(trained, **arguments).pivot(index="class", columns="measure", values="value")


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_a_copied_ring_keeps_its_loop_and_a_shorter_one_lives_shorter(scale: float) -> None:
    found = topology_of(copying("linked_rings", scale, beta=1.0, K=1 / scale), cap=100)
    assert found.index.tolist() == ["first ring", "second ring"]
    assert (found["data_loops"] == 1).all()
    assert (found["loops"] == 1).all()
    assert found["loop_persistence"].tolist() == pytest.approx([1, 1], abs=1e-4)
    assert found["gromov_wasserstein"].tolist() == pytest.approx([0, 0], abs=1e-3)
    half = topology_of(copying("linked_rings", scale / 2, beta=1.0, K=1 / scale), cap=100)
    assert (half["loops"] == 1).all()
    assert half["loop_persistence"].tolist() == pytest.approx([0.5, 0.5], abs=1e-4)
    assert half["gromov_wasserstein"].tolist() == pytest.approx([0.5, 0.5], abs=1e-3)


def test_a_collapsed_ring_has_no_loop() -> None:
    found = topology_of(copying("linked_rings", 0.0), cap=60)
    assert (found["data_loops"] == 1).all()
    assert (found[["loops", "loop_persistence"]] == 0).all(axis=None)
    assert found["gromov_wasserstein"].tolist() == pytest.approx([1, 1])


# Distances and spaces


def test_class_distances_are_those_of_the_points_of_each_class() -> None:
    trained = copying("linked_rings", 0.5, seed=4, beta=1.0, K=3.0)
    table = structure.class_distances(trained, pairs=300)
    assert table["class"].value_counts().to_dict() == {"first ring": 300, "second ring": 300}
    np.testing.assert_allclose(table["representation_distance"], 1.5 * table["input_distance"], rtol=1e-4)
    assert 1.9 < table["input_distance"].max() <= 2 + 1e-6
    whole = structure.class_distances(trained, pairs=10**6)
    inputs = data.load("linked_rings", seed=4).test_inputs
    for place, name in enumerate(("first ring", "second ring")):
        expected = torch.pdist(inputs[200 * place : 200 * (place + 1)].double()).sort().values
        found = np.sort(whole[whole["class"] == name]["input_distance"])
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["linked_rings", "torus"])
def test_the_space_of_a_copy_is_the_inputs_turned(name: str) -> None:
    trained = copying(name, 0.2, seed=2, beta=1.0, K=5.0)
    before, after = structure.input_space(trained), structure.representation_space(trained)
    dataset = data.load(name, seed=2)
    assert dataset.test_coordinates is not None
    for table in (before, after):
        assert list(table) == ["x", "y", "z", "angle", "share", "class"]
        points = torch.tensor(table[["x", "y", "z"]].to_numpy())
        expected = torch.pdist(dataset.test_inputs.double())
        torch.testing.assert_close(torch.pdist(points), expected, rtol=1e-4, atol=1e-5)
        assert table["share"].tolist() == pytest.approx([1.0] * len(table))
        assert table["angle"].tolist() == dataset.test_coordinates[:, 0].tolist()
        assert table["class"].tolist() == [dataset.classes[label] for label in dataset.test_labels]
        # Of each axis the largest coordinate is positive, and the axes are in order of variance.
        assert (table[["x", "y", "z"]].max() == table[["x", "y", "z"]].abs().max()).all()
        assert table[["x", "y", "z"]].var().is_monotonic_decreasing


def test_a_set_without_coordinates_has_no_space() -> None:
    for space in (structure.input_space, structure.representation_space):
        with pytest.raises(InputError, match="'two_moons' has no known coordinates"):
            space(copying("two_moons"))


# Maps


def test_maps_are_those_of_the_held_out_points(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, int, int]] = []

    def first_columns(points: Tensor, *, neighbours: int, seed: int) -> Tensor:
        seen.append((points, neighbours, seed))
        return points.flatten(1)[:, :2].double()

    monkeypatch.setattr(geometry, "umap_coordinates", first_columns)
    trained = copying("torus", seed=1)
    before = structure.input_map(trained, test_size=80, neighbours=9, seed=5)
    after = structure.representation_map(trained, test_size=80, neighbours=9, seed=5)
    dataset = data.load("torus", test_size=80, seed=1)
    for table, points in (
        (before, dataset.test_inputs),
        (after, trained.model.representation(dataset.test_inputs)),
    ):
        np.testing.assert_allclose(table[["x", "y"]], points[:, :2].numpy(), rtol=1e-5)
        assert table["class"].tolist() == [dataset.classes[label] for label in dataset.test_labels]
    assert [(neighbours, seed) for _, neighbours, seed in seen] == [(9, 5), (9, 5)]


@pytest.mark.parametrize("ignore_index", [True, False])
def test_aligned_maps_lie_on_their_reference(ignore_index: bool) -> None:
    random = np.random.default_rng(0)
    reference = pd.DataFrame(random.normal(size=(30, 2)), columns=["x", "y"]).assign(**{"class": "any"})
    maps = []
    for seed, beta, size, angle in ((0, 0.0, 100.0, 0.3), (1, 0.0, 100.0, 2.0), (0, 1.0, math.nan, -1.0)):
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        moved = (1 + seed) * reference[["x", "y"]].to_numpy() @ turn * [1, -1 if seed else 1] + 5 * angle
        maps.append(reference.assign(x=moved[:, 0], y=moved[:, 1], seed=seed, beta=beta, train_size=size))
    table = pd.concat(maps, ignore_index=ignore_index)
    before = table.copy()
    found = structure.aligned(table, reference)
    assert len(found) == 90
    for part in np.split(found[["x", "y"]].to_numpy(), 3):
        np.testing.assert_allclose(part, reference[["x", "y"]].to_numpy(), atol=1e-12)
    others = ["class", "seed", "beta", "train_size"]
    pd.testing.assert_frame_equal(found[others], before[others])
    pd.testing.assert_frame_equal(table, before)


# Cross-section


def test_a_cross_section_is_a_plane_through_the_prototype(trained: TrainedModel) -> None:
    table = structure.cross_section(trained, prototype="3", extent=6.0, resolution=9)
    assert len(table) == 81
    steps = np.linspace(-6, 6, 9)
    np.testing.assert_allclose(table["second"], np.repeat(steps, 9), atol=1e-6)
    np.testing.assert_allclose(table["first"], np.tile(steps, 9), atol=1e-6)
    np.testing.assert_allclose(table["input_distance"], np.hypot(table["first"], table["second"]), rtol=1e-6)
    centre = table.iloc[40]
    assert tuple(centre[["first", "second", "input_distance"]]) == (0, 0, 0)
    assert centre["representation_distance"] == pytest.approx(0, abs=1e-4)
    assert centre["error"] == pytest.approx(0, abs=1e-4)
    assert centre["predicted"] == "3"
    difference = (table["input_distance"] - table["representation_distance"]).abs()
    np.testing.assert_allclose(table["error"], difference, rtol=1e-12)


def test_a_cross_sections_points_are_those_of_the_principal_plane(trained: TrainedModel) -> None:
    """With the prototype and the axes found anew, the network gives the same distances."""
    table = structure.cross_section(trained, prototype="8", extent=4.0, resolution=5)
    dataset = data.load("mnist", train_size=6000)
    images = dataset.train_inputs.flatten(1).double().numpy()
    eights = images[dataset.train_labels.numpy() == 8]
    prototype = eights[np.square(eights - eights.mean(0)).sum(1).argmin()]
    axes = sklearn.decomposition.PCA(2, svd_solver="arpack", random_state=0).fit(images).components_
    signs = [np.sign(axis[np.abs(axis).argmax()]) for axis in axes]
    points = prototype + table[["first", "second"]].to_numpy() @ (axes * np.array(signs)[:, None])
    with torch.no_grad():
        mapped = trained.model.representation(torch.from_numpy(points).float()).double()
        predicted = trained.model(torch.from_numpy(points).float()).argmax(1)
    expected = 10 * (mapped - mapped[12]).norm(dim=1).numpy()
    np.testing.assert_allclose(table["representation_distance"], expected, rtol=1e-3, atol=1e-3)
    assert table["predicted"].tolist() == [str(label) for label in predicted.tolist()]


@pytest.mark.parametrize(
    ("fields", "factor"),
    [({"beta": 1.0, "K": 3.0}, 1.5), ({"beta": 0.0, "K": 3.0}, 1.0), ({"beta": 1.0, "form": "normalised"}, 1.0)],
)
def test_a_network_that_fixes_no_scale_is_given_the_fitted_one(fields: dict[str, object], factor: float) -> None:
    trained = copying("two_moons", 0.5, **fields)
    table = structure.cross_section(trained, prototype="lower moon", extent=2.0, resolution=4)
    np.testing.assert_allclose(table["representation_distance"], factor * table["input_distance"], rtol=1e-4)
    np.testing.assert_allclose(table["error"], (factor - 1) * table["input_distance"], atol=1e-4)


def test_an_unknown_prototype_is_refused(trained: TrainedModel) -> None:
    with pytest.raises(InputError, match="unknown class 'three': allowed are 0, 1, 2"):
        structure.cross_section(trained, prototype="three", extent=1.0, resolution=3)


# Summary


def test_a_summary_is_the_interval_over_seeds_of_each_measure() -> None:
    rows = [
        (measure, relation, seed, 0.1 * seed**2 + place)
        for place, (measure, relation) in enumerate((("stress", "within"), ("stress", "between"), ("cka", "all")))
        for seed in range(4)
    ]
    table = pd.DataFrame(rows, columns=["measure", "relation", "seed", "value"])
    found = structure.summary(table, ["relation"])
    assert found[["measure", "relation"]].to_numpy().tolist() == [
        ["stress", "within"],
        ["stress", "between"],
        ["cka", "all"],
    ]
    for place, row in enumerate(found.itertuples()):
        mean, low, high = stats.seed_interval([0.1 * seed**2 + place for seed in range(4)])
        largest = 1.0 if row.measure == "cka" else math.inf
        expected = (mean, *np.clip([low, high], 0.0, largest))
        assert (row.mean, row.low, row.high, row.seeds) == pytest.approx((*expected, 4))


def preserved(isometric: list[tuple[float, float]], plain: list[tuple[float, float]]) -> pd.DataFrame:
    """Measures of networks given by their Spearman correlation and stress within classes, and decoys."""
    rows = [
        (beta, seed, measure, "within", value)
        for beta, networks in ((1.0, isometric), (0.0, plain))
        for seed, pair in enumerate(networks)
        for measure, value in zip(("spearman", "stress"), pair, strict=True)
    ]
    decoys = [(beta, seed, measure, "between", 0.5) for beta, seed, measure, _, _ in rows]
    return pd.DataFrame([*rows, *decoys], columns=["beta", "seed", "measure", "relation", "value"])


GOOD, BAD = (0.999, 0.01), (0.5, 0.6)


@pytest.mark.parametrize(
    ("isometric", "plain", "verdict", "kept", "broken"),
    [
        ([GOOD, GOOD], [BAD, BAD], "holds", 2, 2),
        ([GOOD, GOOD], [GOOD, GOOD], "holds in part: the isometry term keeps", 2, 0),
        ([BAD, GOOD], [BAD, BAD], "holds in part: cross-entropy breaks", 1, 2),
        ([BAD, BAD], [GOOD, (0.5, 0.1)], "does not hold", 0, 0),
    ],
)
def test_the_verdict_on_preservation_is_on_the_means(
    isometric: list[tuple[float, float]], plain: list[tuple[float, float]], verdict: str, kept: int, broken: int
) -> None:
    limits = {"kept_spearman": 0.99, "kept_stress": 0.03, "broken_spearman": 0.8, "broken_stress": 0.4}
    found = structure.preservation_verdict(preserved(isometric, plain), **limits)
    assert str(found["verdict"]).startswith(verdict)
    assert (found["kept"], found["broken"], found["networks"]) == (kept, broken, 2)
    assert found["spearman_ce"] == pytest.approx(np.mean([pair[0] for pair in plain]))
    assert found["stress_isometric"] == pytest.approx(np.mean([pair[1] for pair in isometric]))
    assert found["spearman_isometric_high"] <= 1
    with pytest.raises(InputError, match="networks with β = 0 are needed"):
        structure.preservation_verdict(preserved(isometric, []), **limits)


def test_loops_are_counted_where_the_data_have_as_many() -> None:
    rows = [
        (beta, 0, ring, measure, value)
        for beta, ring, loops, lasts in (
            (0.0, "a", 0, 0.2),
            (0.0, "b", 1, 0.4),
            (1.0, "a", 1, 1.0),
            (1.0, "b", 1, 0.8),
        )
        for measure, value in (("loops", loops), ("data_loops", 1), ("loop_persistence", lasts))
    ]
    table = pd.DataFrame(rows, columns=["beta", "seed", "class", "measure", "value"])
    assert structure.loop_numbers(table) == pytest.approx(
        {"loops_ce": 1, "loops_of_ce": 2, "persistence_ce": 0.3}
        | {"loops_isometric": 2, "loops_of_isometric": 2, "persistence_isometric": 0.9}
    )


def mnist_measures() -> pd.DataFrame:
    """Three settings and two seeds: (form, K, β) with Spearman correlation and accuracy."""
    settings = {
        ("raw", 10.0, 0.0): (0.3, 0.97),
        ("raw", 10.0, 0.1): (0.7, 0.965),
        ("raw", 10.0, 100.0): (0.9, 0.88),
        ("normalised", 1.0, 1e6): (0.8, 0.90),
    }
    rows = [
        (*setting, seed, measure, relation, value + 0.01 * seed, 0.001)
        for setting, (spearman, accuracy) in settings.items()
        for seed in (0, 1)
        for measure, relation, value in (
            ("spearman", "within", spearman),
            ("spearman", "between", spearman / 2),
            ("scale", "within", 9.0),
            ("accuracy", structure.CLOUD, accuracy),
            ("cka", structure.CLOUD, 0.5),
            ("dimension", structure.CLOUD, 10.0),
        )
    ]
    columns = ["form", "K", "beta", "seed", "measure", "relation", "value", "error"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(error=table["error"].where(table["measure"] != "scale", 5.0))


def test_key_numbers_pick_the_strongest_and_the_affordable_setting_of_each_form() -> None:
    numbers = structure.key_numbers(mnist_measures(), affordable=0.01)
    assert numbers["raw_strongest_beta"] == 100.0
    assert numbers["raw_affordable_beta"] == 0.1
    assert numbers["normalised_strongest_spearman"] == pytest.approx(0.805)
    assert "normalised_affordable_beta" not in numbers
    costs = [numbers[f"raw_strongest_{end}"] for end in ("cost", "cost_low", "cost_high")]
    assert costs == pytest.approx([-0.09] * 3)  # the same in both seeds
    gains = [numbers[f"raw_affordable_{end}"] for end in ("gain", "gain_low", "gain_high")]
    assert gains == pytest.approx([0.4] * 3)
    assert numbers["spearman_ce"] == pytest.approx(0.305)
    assert numbers["sampling_error"] == 0.001


def test_key_numbers_need_cross_entropy_once() -> None:
    table = mnist_measures()
    with pytest.raises(InputError, match="betas: must hold 0"):
        structure.key_numbers(table[table["beta"] > 0])
    with pytest.raises(InputError, match="normalised_betas: must be above 0"):
        structure.key_numbers(table.assign(form="normalised"))


@pytest.mark.parametrize(
    ("spearman", "accuracy", "verdict"),
    [
        ((0.7, 0.72), 0.965, "holds, at an affordable cost in accuracy"),
        ((0.7, 0.72), 0.9, "holds, but only at a larger cost in accuracy"),
        ((0.2, 0.5), 0.965, "does not hold"),
        ((0.7,), 0.965, "undecided with a single seed"),
    ],
)
def test_the_verdict_on_mnist_weighs_the_gain_against_its_cost(
    spearman: tuple[float, ...], accuracy: float, verdict: str
) -> None:
    rows = [
        ("raw", 10.0, beta, seed, measure, relation, value, 0.0)
        for beta, correlation, right in ((0.0, (0.3, 0.31), 0.97), (1.0, spearman, accuracy))
        for seed, within in enumerate(correlation[: len(spearman)])
        for measure, relation, value in (
            ("spearman", "within", within),
            ("spearman", "between", 0.2),
            ("accuracy", structure.CLOUD, right),
            ("cka", structure.CLOUD, 0.5),
            ("dimension", structure.CLOUD, 9.0),
        )
    ]
    columns = ["form", "K", "beta", "seed", "measure", "relation", "value", "error"]
    assert structure.key_numbers(pd.DataFrame(rows, columns=columns))["verdict"] == verdict
