import itertools
import math
from collections.abc import Callable
from functools import partial

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import cross_entropy

from isorepro import attacks, data, hierarchy, stacks, sweep
from isorepro.errors import InputError
from isorepro.losses import isometry, pairwise_distances
from isorepro.robustness import CLEAN, CORRECTED, FGSM, PGD, RELEASED
from isorepro.training import TrainedModel, TrainingConfig, train

HALVES, QUARTERS = [[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1], [2, 3], [4, 5], [6, 7]]
DIGITS = [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]]


@pytest.fixture(scope="module")
def torus() -> TrainedModel:
    """A stack of three levels on the torus, of a seed and a factor that a mistake would leave out."""
    return train(
        TrainingConfig(
            dataset="torus",
            hierarchy=[HALVES, QUARTERS],
            train_size=400,
            width=20,
            depth=2,
            epochs=15,
            batch_size=40,
            beta=1.0,
            K=3.0,
            learning_rate=3e-3,
            seed=2,
            device="cpu",
        )
    )


@pytest.fixture(scope="module", params=[("torus", 0), ("paper_torus", 1)], ids=["axis", "tube"])
def cut_surface(request: pytest.FixtureRequest, torus: TrainedModel) -> tuple[TrainedModel, int]:
    """A stack on each torus, and the place of the angle along which its pieces follow each other."""
    name, cut = request.param
    known = torus.config.model_dump()
    return (torus if name == known["dataset"] else train(TrainingConfig(**known | {"dataset": name}))), cut


@pytest.fixture(scope="module")
def digits() -> TrainedModel:
    """A stack of three levels on digits, good enough for attacks to be told apart."""
    return train(
        TrainingConfig(
            hierarchy=DIGITS, train_size=2000, width=30, depth=1, epochs=2, beta=0.1, K=10.0, device="cpu"
        )
    )


def group_of(levels: list[list[list[int]]], labels: Tensor) -> list[list[int]]:
    """The labels of every level, found by looking through the groups."""
    rows = [[next(k for k, group in enumerate(level) if c in group) for c in labels.tolist()] for level in levels]
    return [*rows, labels.tolist()]


def by_hand(inputs: Tensor, mapped: Tensor, labels: list[int], K: float) -> dict[str, float]:
    """The measures of distances within groups, from all pairs one by one."""
    x, h = inputs.flatten(1).double().numpy(), mapped.detach().double().numpy()
    pairs = [(i, j) for i, j in itertools.combinations(range(len(labels)), 2) if labels[i] == labels[j]]
    d = np.array([math.dist(x[i], x[j]) for i, j in pairs])
    m = np.array([math.dist(h[i], h[j]) for i, j in pairs])
    scale = (d * m).sum() / (m * m).sum()
    return {
        "spearman": spearmanr(d, m).statistic,
        "pearson": pearsonr(d, m).statistic,
        "stress": math.sqrt(((K * m - d) ** 2).sum() / (d**2).sum()),
        "scaled_stress": math.sqrt(((scale * m - d) ** 2).sum() / (d**2).sum()),
        "scale": scale,
    }


def test_measures_of_a_stack_equal_those_from_all_pairs(torus: TrainedModel) -> None:
    size, nearest = 150, 4
    table = stacks.measures(torus, test_size=size, nearest=nearest)
    assert set(table["points"]) == {stacks.TRAINING, stacks.HELD_OUT, stacks.INNER}
    found = table.set_index(["points", "level", "measure"])["value"].sort_index()
    assert found.index.is_unique
    dataset = data.load("torus", train_size=400, test_size=size, seed=2)
    x, labels = dataset.test_inputs, group_of([HALVES, QUARTERS], dataset.test_labels)
    known = group_of([HALVES, QUARTERS], dataset.train_labels)
    near = NearestNeighbors(n_neighbors=nearest).fit(dataset.train_inputs.numpy())
    around = near.kneighbors(x.numpy(), return_distance=False)
    for level, (mapped, logits) in enumerate(torus.model.levels(x)):
        own = labels[level]
        hits = [guess == label for guess, label in zip(logits.argmax(1).tolist(), own, strict=True)]
        rows = found[stacks.HELD_OUT, level + 1]
        expected = by_hand(x, mapped, own, 3.0) | {"accuracy": np.mean(hits), "points_share": 1.0}
        assert rows.to_dict() == pytest.approx(expected, rel=1e-5)
        inner = [i for i, others in enumerate(around) if all(known[level][k] == own[i] for k in others)]
        assert len(inner) < size
        expected = by_hand(x[inner], mapped[inner], [own[i] for i in inner], 3.0)
        expected |= {"accuracy": np.mean([hits[i] for i in inner]), "points_share": len(inner) / size}
        assert found[stacks.INNER, level + 1].to_dict() == pytest.approx(expected, rel=1e-5)
    # The training points are a subset of those of the training, of the size of the test subset.
    part = data.stratified_indices(dataset.train_labels, size, seed=2)
    seen = dataset.train_inputs[part]
    for level, (mapped, _) in enumerate(torus.model.levels(seen)):
        own = [known[level][k] for k in part.tolist()]
        values = found[stacks.TRAINING, level + 1].drop(["accuracy", "points_share"]).to_dict()
        assert values == pytest.approx(by_hand(seen, mapped, own, 3.0), rel=1e-5)
    whole = stacks.measures(torus, pair_cap=500).set_index(["points", "level", "measure"])["value"]
    for level, (_, logits) in enumerate(torus.model.levels(dataset.train_inputs)):
        accuracy = np.mean([a == b for a, b in zip(logits.argmax(1).tolist(), known[level], strict=True)])
        assert whole[stacks.TRAINING, level + 1, "accuracy"] == pytest.approx(accuracy)
    assert stacks.INNER not in whole.index.get_level_values("points")


def regression(x: Tensor, y: Tensor, held_out: Tensor) -> Tensor:
    """The classes that a logistic regression names: sum of cross-entropies + |w|² / 200 by LBFGS."""
    mean, spread = x.mean(0), x.std(0, unbiased=False)
    x, held_out = (x - mean) / spread, (held_out - mean) / spread
    weights = torch.zeros(x.shape[1] + 1, int(y.max()) + 1, dtype=x.dtype, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = cross_entropy(x @ weights[1:] + weights[0], y, reduction="sum") + weights[1:].square().sum() / 200
        loss.backward()
        return loss

    search.step(closure)
    return (held_out @ weights[1:] + weights[0]).argmax(1)


def test_readouts_at_the_end_of_a_block_measure_what_the_stack_trains_there(torus: TrainedModel) -> None:
    table = stacks.readouts(torus, tree=[HALVES, QUARTERS], every=2, test_size=150)
    measured = stacks.measures(torus, test_size=150).query(f"points == '{stacks.HELD_OUT}'")
    assert table.groupby("layers").size().to_dict() == {2: 12, 4: 12, 6: 12}
    found = table.set_index(["layers", "level", "measure"])["value"]
    for level in (1, 2, 3):
        own = measured[measured["level"] == level].set_index("measure")["value"]
        for name in ("spearman", "stress", "scaled_stress"):
            assert found[2 * level, level, name] == pytest.approx(own[name], rel=1e-5)
    dataset = data.load("torus", train_size=400, test_size=150, seed=2)
    labels, known = (
        torch.tensor(group_of([HALVES, QUARTERS], y)) for y in (dataset.test_labels, dataset.train_labels)
    )
    with torch.no_grad():
        seen, new = (torus.model.levels(x) for x in (dataset.train_inputs, dataset.test_inputs))
    for block, level in itertools.product(range(3), range(3)):
        named = regression(seen[block][0].double(), known[level], new[block][0].double())
        accuracy = (named == labels[level]).double().mean().item()
        assert found[2 * (block + 1), level + 1, "probe_accuracy"] == pytest.approx(accuracy, abs=0.021)
    every_layer = stacks.readouts(torus, tree=[], every=1, test_size=150)
    assert sorted(every_layer["layers"].unique()) == [1, 2, 3, 4, 5, 6]
    assert set(every_layer["level"]) == {1}


def test_distance_matrices_are_of_points_in_order_of_the_angle_that_is_cut(
    cut_surface: tuple[TrainedModel, int],
) -> None:
    trained, cut = cut_surface
    table = stacks.distance_matrices(trained, points=16)
    dataset = data.load(trained.config.dataset, seed=2)
    angles = dataset.test_coordinates
    assert angles is not None
    step = 2 * math.pi / 40
    order = sorted(
        range(1600), key=lambda i: (round(angles[i, cut].item() / step) % 40, angles[i, 1 - cut].item())
    )
    chosen = [order[round(k * 1599 / 15)] for k in range(16)]
    x = dataset.test_inputs[chosen]
    clouds = [x, *(3.0 * mapped.detach() for mapped, _ in trained.model.levels(x))]
    pieces = group_of([HALVES, QUARTERS], dataset.test_labels[chosen])
    assert len(table) == 4 * 16**2
    # Each piece is one run, so that the cuts of a level are one fewer than its pieces.
    for level, count in enumerate((8, 2, 4, 8)):
        of_row = table[table["level"] == level].drop_duplicates("row")["piece"].tolist()
        assert [piece for piece, _ in itertools.groupby(of_row)] == list(range(1, count + 1))
    for row in table.itertuples():
        cloud = clouds[row.level].double()
        distance = math.dist(cloud[row.row].tolist(), cloud[row.column].tolist())
        assert row.distance == pytest.approx(distance, rel=1e-4, abs=1e-6)
        assert row.piece == pieces[row.level - 1 if row.level else 2][row.row] + 1
    with pytest.raises(InputError, match="points: must be from 2 to 1600, not 1601"):
        stacks.distance_matrices(trained, points=1601)


def test_surfaces_only_have_distance_matrices(digits: TrainedModel) -> None:
    with pytest.raises(InputError, match="dataset 'mnist' is not a surface with two known coordinates"):
        stacks.distance_matrices(digits, points=5)


def test_the_phase_is_the_finest_levels_accuracy_without_bounds(torus: TrainedModel) -> None:
    table = stacks.phase(torus, epsilon=0.1, pgd_steps=4).set_index(["protocol", "attack"])["value"]
    dataset = data.load("torus", seed=2)
    x, labels = dataset.test_inputs, torch.tensor(group_of([HALVES, QUARTERS], dataset.test_labels))

    def accuracy(attacked: Tensor) -> float:
        return (torus.model(attacked).argmax(1) == labels[-1]).double().mean().item()

    moved = []
    for points, rows in zip(x.split(100), labels.split(100, dim=1), strict=True):
        start = points.clone().requires_grad_()
        loss = torch.zeros(())
        for (mapped, logits), row in zip(torus.model.levels(start), rows, strict=True):
            loss = loss + cross_entropy(logits, row)
            loss = loss + isometry(mapped, pairwise_distances(points), row, beta=1.0, K=3.0)
        (gradient,) = torch.autograd.grad(loss, start)
        moved.append(points + 0.1 * gradient.sign())
    assert torch.cat(moved).min() < -1
    assert table[CORRECTED, CLEAN] == pytest.approx(accuracy(x))
    # Where a gradient is nearly zero its sign depends on rounding.
    assert table[RELEASED, FGSM] == pytest.approx(accuracy(torch.cat(moved)), abs=2e-3)
    standing = torus.model(x).argmax(1) == labels[-1]
    ascended = attacks.pgd(
        torus.model, x[standing], labels[-1][standing], epsilon=0.1, steps=4, bounds=attacks.UNBOUNDED
    )
    left = (torus.model(ascended).argmax(1) == labels[-1][standing]).sum().item() / len(x)
    assert table[CORRECTED, PGD] == pytest.approx(left, abs=2e-3)
    assert table[CORRECTED, PGD] < table[CORRECTED, CLEAN]


def measured(values: dict[tuple[float, int, str], float]) -> pd.DataFrame:
    """Rows of measures: value − 0.01, and + 0.01 for the second seed, of training points."""
    rows = [
        (seed, beta, stacks.TRAINING, level, name, value + 0.02 * (seed - 0.5))
        for (beta, level, name), value in values.items()
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["seed", "beta", "points", "level", "measure", "value"])


ISOMETRIC = {
    **{(0.0, level, "accuracy"): value for level, value in ((1, 0.99), (2, 0.7), (3, 0.98))},
    **{(1.0, level, "accuracy"): value for level, value in ((1, 0.99), (2, 0.98), (3, 0.97))},
    **{(beta, level, "spearman"): 0.95 for beta in (0.0, 1.0) for level in (1, 2, 3)},
    **{(beta, level, "stress"): 0.1 for beta in (0.0, 1.0) for level in (1, 2, 3)},
}


@pytest.mark.parametrize(
    ("changes", "cut", "kept", "verdict"),
    [
        ({}, 3, 3, "holds at all 3 levels"),
        ({(1.0, 3, "stress"): 0.4}, 3, 2, "holds down to level 2 of 3"),
        ({(1.0, 2, "spearman"): 0.5}, 3, 1, "holds down to level 1 of 3"),
        ({(1.0, 1, "spearman"): 0.5}, 3, 0, "does not hold"),
        ({(1.0, 2, "accuracy"): 0.5}, 1, 1, "holds down to level 1 of 3"),
    ],
)
def test_a_claim_holds_down_to_the_level_before_the_first_that_fails(
    changes: dict[tuple[float, int, str], float], cut: int, kept: int, verdict: str
) -> None:
    table = measured(ISOMETRIC | changes)
    judged = stacks.cut_verdicts(table, least_accuracy=0.9, kept_spearman=0.9, kept_stress=0.2)
    rows = {row["beta"]: row for row in judged.to_dict("records")}
    assert (rows[1.0]["cut"], rows[1.0]["kept"], rows[1.0]["verdict"]) == (cut, kept, verdict)
    # Without the term the second level is not cut, so that the third does not count.
    assert (rows[0.0]["levels"], rows[0.0]["cut"], rows[0.0]["kept"]) == (3, 1, 1)
    numbers = stacks.key_numbers(table, judged)
    assert numbers["verdict_training_isometric"] == verdict
    assert numbers["accuracy_training_ce_2"] == pytest.approx(0.7)
    assert numbers["stress_training_isometric_2"] == pytest.approx(0.1)


def test_key_numbers_need_one_network_without_and_one_with_the_term() -> None:
    table = measured(ISOMETRIC)
    verdicts = stacks.cut_verdicts(table, least_accuracy=0.9, kept_spearman=0.9, kept_stress=0.2)
    for wrong in (table.query("beta == 0"), table.query("beta == 1"), table.assign(beta=table["beta"] + 1)):
        with pytest.raises(InputError, match="betas: must hold 0 and the weight above 0"):
            stacks.key_numbers(wrong, verdicts)


def test_readout_effects_compare_each_level_where_it_is_trained() -> None:
    rows = [
        # At other depths the two are far apart, which must not be read.
        (text, 0.0, seed, layers, level, "stress", 0.5 + bool(text) * (0.1 + 0.02 * seed if right else 9.0))
        for text in ("", "[[[0],[1]]]")
        for seed in (0, 1)
        for layers, level in itertools.product((2, 4), (1, 2))
        for right in (layers == 2 * level,)
    ]
    columns = ["hierarchy", "beta", "seed", "layers", "level", "measure", "value"]
    named = stacks.named(pd.DataFrame(rows, columns=columns))
    assert set(named["network"]) == {stacks.STACK, stacks.FLAT}
    effects = stacks.readout_effects(named, every=2)
    assert effects["level"].tolist() == [1, 2]
    assert effects["mean"].tolist() == pytest.approx([0.11, 0.11])


def test_the_given_tree_the_learnt_one_and_new_random_ones_for_every_seed() -> None:
    table = stacks.trees([HALVES], dataset="torus", seeds=[0, 1, 5], shuffles=4)
    assert table.groupby(["tree", "seed"]).size().to_dict() == {
        (tree, seed): count
        for tree, count in ((stacks.GIVEN, 1), (stacks.LEARNT, 1), (stacks.RANDOM, 4))
        for seed in (0, 1, 5)
    }
    texts = table.set_index("tree")["hierarchy"]
    assert set(texts[stacks.GIVEN]) == {"[[[0,1,2,3],[4,5,6,7]]]"}
    # Neighbouring pieces of a ring: the learnt halves are runs of it.
    (learnt,) = set(texts[stacks.LEARNT])
    for half in hierarchy.from_text(learnt)[0]:
        assert nx.is_connected(nx.cycle_graph(8).subgraph(half))
    assert texts[stacks.RANDOM].nunique() > 9
    for text in texts[stacks.RANDOM]:
        assert [len(half) for half in hierarchy.from_text(text)[0]] == [4, 4]
    with pytest.raises(InputError, match="hierarchy: level 1 lacks class 4"):
        stacks.trees([HALVES[:1]], dataset="torus", seeds=[0], shuffles=1)


def test_every_tree_of_a_seed_is_a_network_of_that_seed_once() -> None:
    given, other = "[[[0,1],[2,3]]]", "[[[0,2],[1,3]]]"
    rows = [
        (stacks.GIVEN, 0, given),
        (stacks.LEARNT, 0, given),
        (stacks.RANDOM, 0, other),
        (stacks.GIVEN, 7, given),
    ]
    table = pd.DataFrame(rows, columns=["tree", "seed", "hierarchy"])
    configs = stacks.stacked_configs(TrainingConfig(epochs=3, width=9), table, [0.0, 2.0])
    found = [(c.beta, c.seed, hierarchy.to_text(c.hierarchy)) for c in configs]
    assert found == [(b, s, t) for b in (0.0, 2.0) for s, t in ((0, given), (0, other), (7, given))]
    assert {(c.epochs, c.width) for c in configs} == {(3, 9)}


def test_variants_differ_as_they_say_and_are_known_again() -> None:
    base = TrainingConfig(hierarchy=DIGITS, beta=0.5, K=2.0, seed=3, train_size=300, device="cpu")
    configs = stacks.variants(base, beta_2022=1e4)
    changed = {
        name: {field for field, value in base if getattr(config, field) != value}
        for name, config in configs.items()
    }
    assert changed.pop("this book") == set()
    everything = changed.pop("September 2022")
    together = changed.pop("May 2023")
    single = list(changed.values())
    assert sorted(map(sorted, single)) == sorted(
        [["shared_head"], ["gradients"], ["gradients"], ["readout"], ["adam"], ["hierarchy", "nested"]]
    )
    assert everything == set().union(*single) | {"form", "K", "beta"}
    assert together == {"shared_head", "gradients", "hierarchy", "nested"}
    assert configs["September 2022"].beta == 1e4
    # The text is what a table of measurements has.
    rows = [
        config.model_dump() | {"hierarchy": hierarchy.to_text(config.hierarchy), "seed": seed, "value": 1.0}
        for config in configs.values()
        for seed in (3, 4)
    ]
    table = pd.DataFrame(rows)
    assert stacks.named_variants(table, configs)["variant"].tolist() == [n for n in configs for _ in (3, 4)]
    with pytest.raises(InputError, match="is none of this book, "):
        stacks.named_variants(table.assign(adam="kept", readout="reversed"), configs)


def test_summed_gradients_are_compared_with_those_of_a_level_by_itself(digits: TrainedModel) -> None:
    table = stacks.gradient_sums(digits, epsilon=0.03, test_size=150).set_index(["level", "measure"])["value"]
    dataset = data.load("mnist", test_size=150)
    images, labels = dataset.test_inputs, torch.tensor(group_of(DIGITS, dataset.test_labels))
    for level in range(3):

        def accuracy(attacked: Tensor, level: int = level) -> float:
            named = digits.model.levels(attacked)[level][1].argmax(1)
            return (named == labels[level]).double().mean().item()

        moved: dict[str, list[Tensor]] = {"summed": [], "single": []}
        signs: dict[str, list[Tensor]] = {"summed": [], "single": []}
        for start in (0, 100):
            x, rows = images[start : start + 100], labels[:, start : start + 100]
            for name, used in (("summed", range(level + 1)), ("single", [level])):
                point = x.clone().requires_grad_()
                outputs = digits.model.levels(point)
                loss = torch.zeros(())
                for k in used:
                    loss = loss + cross_entropy(outputs[k][1], rows[k])
                    loss = loss + isometry(outputs[k][0], pairwise_distances(x), rows[k], beta=0.1, K=10.0)
                (gradient,) = torch.autograd.grad(loss, point)
                signs[name].append(gradient.sign().flatten())
                moved[name].append((x + 0.03 * gradient.sign()).clamp(0, 1))
        summed, single = torch.cat(signs["summed"]), torch.cat(signs["single"])
        there = (summed * single) != 0
        agreement = (summed == single)[there].double().mean().item()
        assert table[level + 1, "agreement"] == pytest.approx(agreement, abs=1e-3)
        assert table[level + 1, "clean"] == pytest.approx(accuracy(images))
        for name, parts in moved.items():
            assert table[level + 1, name] == pytest.approx(accuracy(torch.cat(parts)), abs=0.01)
    assert table[1, "agreement"] == 1
    assert 0.5 < table[3, "agreement"] < 0.99


def test_confusions_count_every_image_once_and_their_diagonal_is_the_accuracy(digits: TrainedModel) -> None:
    epsilons = [0.02, 0.06]
    table = stacks.confusions(digits, epsilons=epsilons, pgd_steps=3, test_size=150)
    dataset = data.load("mnist", test_size=150)
    images, finest = dataset.test_inputs, dataset.test_labels
    labels = torch.tensor(group_of(DIGITS, finest))
    expected = {(protocol, CLEAN, 0.0): images for protocol in (RELEASED, CORRECTED)}
    for epsilon in epsilons:
        halves = [
            attacks.released_fgsm(
                digits.model, images[part], labels[:, part], epsilon=epsilon, beta=0.1, K=10.0, form="raw"
            )
            for part in torch.arange(150).split(100)
        ]
        expected[RELEASED, FGSM, epsilon] = torch.cat(halves)
        expected[CORRECTED, PGD, epsilon] = attacks.pgd(
            digits.model, images, finest, epsilon=epsilon, steps=3, stop_when_fooled=False
        )
    groups = dict(list(table.groupby(["protocol", "attack", "epsilon"])))
    assert groups.keys() == expected.keys()
    for key, attacked in expected.items():
        predicted = digits.model(attacked).argmax(1).tolist()
        counts: dict[tuple[int, int], int] = {}
        for pair in zip(finest.tolist(), predicted, strict=True):
            counts[pair] = counts.get(pair, 0) + 1
        found = groups[key].set_index(["label", "predicted"])["images"].to_dict()
        assert found == counts
        assert sum(found.values()) == 150


def test_errors_along_trees_are_those_counted_one_by_one() -> None:
    given, random_one, random_two = "[[[0,1],[2,3]]]", "[[[0,2],[1,3]]]", "[[[0,3],[1,2]]]"
    kinds = [(stacks.GIVEN, given), (stacks.RANDOM, random_one), (stacks.RANDOM, random_two)]
    compared = pd.DataFrame(
        [(kind, seed, text) for seed in (0, 1) for kind, text in kinds], columns=["tree", "seed", "hierarchy"]
    )
    generator = np.random.default_rng(0)
    rows = [
        (text, 0.5, seed, RELEASED, FGSM, 0.1, label, predicted, int(generator.integers(1, 20)))
        for text in ("", given, random_one, random_two)
        for seed in (0, 1)
        for label in range(4)
        for predicted in range(4)
        # A network of one seed without any error.
        if label == predicted or (text, seed) != (given, 1)
    ]
    columns = ["hierarchy", "beta", "seed", "protocol", "attack", "epsilon", "label", "predicted", "images"]
    table = pd.DataFrame(rows, columns=columns)
    found = (
        stacks.on_trees(table, compared, classes=4)
        .set_index(["tree", "network", "seed", "measure"])["value"]
        .sort_index()
    )
    assert found.index.is_unique

    def distance(text: str, one: int, other: int) -> int:
        tree = nx.Graph(("root", place) for place in ("left", "right"))
        tree.add_edges_from(
            (place, c)
            for place, group in zip(("left", "right"), hierarchy.from_text(text)[0], strict=True)
            for c in group
        )
        return int(nx.shortest_path_length(tree, one, other))

    for kind, network, seed in itertools.product(
        (stacks.GIVEN, stacks.RANDOM), (stacks.STACK, stacks.FLAT), (0, 1)
    ):
        per_tree: list[dict[str, float]] = []
        for text in (text for tree, text in kinds if tree == kind):
            own = text if network == stacks.STACK else ""
            singles = [
                (label, predicted)
                for other, _, number, *_, label, predicted, count in rows
                if (other, number) == (own, seed)
                for _ in range(count)
            ]
            wrong = [(a, b) for a, b in singles if a != b]
            path = [distance(text, a, b) for a, b in wrong]
            uniform = [np.mean([distance(text, a, c) for c in range(4) if c != a]) for a, _ in wrong]
            means = {
                "error": len(wrong) / len(singles),
                "all_distance": sum(path) / len(singles),
                "error_distance": np.mean(path) if wrong else math.nan,
                "uniform_distance": np.mean(uniform) if wrong else math.nan,
            }
            per_tree.append(means | {"relative_distance": means["error_distance"] / means["uniform_distance"]})
        expected = {name: np.mean([means[name] for means in per_tree]) for name in per_tree[0]}
        assert found[kind, network, seed].to_dict() == pytest.approx(expected, nan_ok=True)
    assert math.isnan(found[stacks.GIVEN, stacks.STACK, 1, "error_distance"])


def test_tree_effects_are_stack_minus_flat_and_what_random_trees_leave_of_it() -> None:
    # Stack − flat by tree and seed; the random trees are worse by 0.3 ± 0.1.
    gains = {stacks.GIVEN: (0.5, 0.7), stacks.RANDOM: (0.1, 0.5)}
    rows = [
        (tree, network, beta, seed, RELEASED, FGSM, 0.1, "error", 0.2 + (gain if network == stacks.STACK else 0.0))
        for tree, both in gains.items()
        for seed, gain in enumerate(both)
        for network in (stacks.STACK, stacks.FLAT)
        for beta in (0.0, 1.0)
    ]
    keys = ["tree", "network", "beta", "seed", "protocol", "attack", "epsilon"]
    found = stacks.tree_effects(pd.DataFrame(rows, columns=[*keys, "measure", "value"]))
    assert len(found) == 4
    for row in found.to_dict("records"):
        assert row["mean"] == pytest.approx(0.6 if row["tree"] == stacks.GIVEN else 0.3)
        assert row["seeds"] == 2
        if row["tree"] == stacks.GIVEN:
            # Paired by seed: 0.4 and 0.2, so 0.3 ± t(0.975; 1) · 0.1.
            assert row["beyond"] == pytest.approx(0.3)
            assert row["beyond_low"] == pytest.approx(0.3 - 12.7062 * 0.1, abs=1e-4)
        else:
            assert math.isnan(row["beyond"])


def test_the_chance_of_a_level_is_the_share_of_its_commonest_group() -> None:
    labels = group_of(DIGITS, data.load("mnist").test_labels)
    expected = [max(row.count(k) for k in set(row)) / 10_000 for row in labels]
    assert stacks.chances(DIGITS, dataset="mnist") == pytest.approx(expected)
    assert expected[-1] == 0.1135


def test_confusions_of_stacks_and_flat_networks_go_along_the_trees_together() -> None:
    compared = stacks.trees([HALVES], dataset="torus", seeds=[0], shuffles=2)
    base = TrainingConfig(dataset="torus", train_size=160, width=8, depth=1, epochs=1, device="cpu")
    configs = [base, *stacks.stacked_configs(base, compared, [0.0])]
    labelled = sweep.histories([train(config) for config in configs])
    # What a table of counts would have: every image is taken for the next class.
    networks = labelled[["hierarchy", "beta", "seed"]].drop_duplicates()
    counts = pd.DataFrame({"label": range(8), "predicted": [*range(1, 8), 0], "images": 1})
    table = networks.merge(counts, how="cross").assign(protocol=RELEASED, attack=FGSM, epsilon=0.1)
    found = stacks.on_trees(table, compared, classes=8).set_index(["tree", "network", "measure"])["value"]
    assert set(found.index.get_level_values("tree")) == {stacks.GIVEN, stacks.LEARNT, stacks.RANDOM}
    # Six of the eight steps stay in their half, 2 edges away; two cross, 4 edges away.
    for network in (stacks.STACK, stacks.FLAT):
        assert found[stacks.GIVEN, network, "all_distance"] == pytest.approx((6 * 2 + 2 * 4) / 8)
        assert found[stacks.GIVEN, network, "uniform_distance"] == pytest.approx((3 * 2 + 4 * 4) / 7)


def test_criteria_hold_at_their_limits_for_means_over_seeds_and_each_kind_of_points_by_itself() -> None:
    values = {(1.0, 1, "accuracy"): 0.875, (1.0, 1, "spearman"): 0.75, (1.0, 1, "stress"): 0.25}
    rows = [
        # Each seed is on another side of the limits; their mean lies on them.
        (seed, beta, points, level, name, value + 0.125 * (2 * seed - 1))
        for (beta, level, name), value in values.items()
        for seed in (0, 1)
        for points in (stacks.HELD_OUT, stacks.INNER)
    ]
    table = pd.DataFrame(rows, columns=["seed", "beta", "points", "level", "measure", "value"])
    limits = {"least_accuracy": 0.875, "kept_spearman": 0.75, "kept_stress": 0.25}

    def verdicts(table: pd.DataFrame, **changes: float) -> dict[str, tuple[int, int, str]]:
        judged = stacks.cut_verdicts(table, **limits | changes)
        assert judged["beta"].tolist() == [1.0, 1.0]
        assert judged["levels"].tolist() == [1, 1]
        return {row.points: (row.cut, row.kept, row.verdict) for row in judged.itertuples()}

    both = dict.fromkeys([stacks.HELD_OUT, stacks.INNER], (1, 1, "holds"))
    assert verdicts(table) == both
    assert set(verdicts(table, least_accuracy=0.876).values()) == {(0, 0, "does not hold")}
    assert set(verdicts(table, kept_spearman=0.751).values()) == {(1, 0, "does not hold")}
    assert set(verdicts(table, kept_stress=0.249).values()) == {(1, 0, "does not hold")}
    worse = table["value"].where((table["points"] != stacks.INNER) | (table["measure"] != "accuracy"), 0.5)
    assert verdicts(table.assign(value=worse)) == both | {stacks.INNER: (0, 0, "does not hold")}


def test_key_numbers_are_named_after_points_network_and_level() -> None:
    short = {stacks.TRAINING: "training", stacks.HELD_OUT: "held_out", stacks.INNER: "inner"}
    names = ("accuracy", "spearman", "stress", "pearson", "points_share")
    rows = [
        (seed, beta, points, level, name, 100 * place + 10 * level + number + 0.1 * bool(beta) + 0.02 * seed)
        for place, points in enumerate(short)
        for beta in (0.0, 7.0)
        for level in (1, 2)
        for number, name in enumerate(names)
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=["seed", "beta", "points", "level", "measure", "value"])
    verdicts = pd.DataFrame(
        [(points, beta, f"{name}, {beta:g}") for points, name in short.items() for beta in (0.0, 7.0)],
        columns=["points", "beta", "verdict"],
    )
    numbers = stacks.key_numbers(table, verdicts)
    expected: dict[str, object] = {}
    for place, points in enumerate(short.values()):
        for kind, beta in (("ce", 0), ("isometric", 7)):
            expected[f"verdict_{points}_{kind}"] = f"{points}, {beta}"
            for (number, name), level in itertools.product(enumerate(names[:3]), (1, 2)):
                mean = 100 * place + 10 * level + number + 0.1 * bool(beta) + 0.01
                expected[f"{name}_{points}_{kind}_{level}"] = pytest.approx(mean)
    assert numbers == expected
    fewer = stacks.key_numbers(table[table["points"] != stacks.INNER], verdicts[:4])
    assert fewer == {name: value for name, value in expected.items() if "inner" not in name}


def test_readout_effects_pair_the_seeds_of_each_measure_and_weight() -> None:
    # Flat networks differ much between seeds, stacks go along with them.
    rows = [
        (text, beta, seed, 3, 1, name, 10 * seed + bool(text) * gain)
        for (name, beta), gains in {
            ("stress", 0.0): (0.5, 0.7), ("stress", 2.0): (-1.0, -3.0), ("spearman", 2.0): (0.25, 0.25),
        }.items()
        for seed, gain in enumerate(gains)
        for text in ("", "[[[0],[1]]]")
    ]  # fmt: skip
    columns = ["hierarchy", "beta", "seed", "layers", "level", "measure", "value"]
    found = stacks.readout_effects(stacks.named(pd.DataFrame(rows, columns=columns)), every=3)
    assert "network" not in found
    effects = found.set_index(["measure", "beta", "level"])
    assert len(effects) == 3
    assert set(effects["seeds"]) == {2}
    # Mean ± t(0.975; 1) · half the difference of the two seeds.
    for key, mean, half in ((("stress", 0.0, 1), 0.6, 0.1), (("stress", 2.0, 1), -2.0, 1.0)):
        row = effects.loc[key]
        assert row["mean"] == pytest.approx(mean)
        assert row["low"] == pytest.approx(mean - 12.7062 * half, abs=1e-4)
        assert row["high"] == pytest.approx(mean + 12.7062 * half, abs=1e-4)
    assert effects.loc[("spearman", 2.0, 1), ["mean", "low", "high"]].tolist() == pytest.approx([0.25] * 3)


def test_a_seed_without_a_value_is_left_out_of_tree_effects() -> None:
    values = {
        (stacks.GIVEN, stacks.STACK): (0.5, 0.9, math.nan),
        (stacks.GIVEN, stacks.FLAT): (0.25, 0.25, 0.25),
        (stacks.RANDOM, stacks.STACK): (0.5, math.nan, 0.5),
        (stacks.RANDOM, stacks.FLAT): (0.5, 0.5, 0.75),
    }
    rows = [
        (tree, network, 1.0, seed, CORRECTED, PGD, 0.1, "error_distance", value)
        for (tree, network), both in values.items()
        for seed, value in enumerate(both)
    ]
    keys = ["tree", "network", "beta", "seed", "protocol", "attack", "epsilon"]
    found = stacks.tree_effects(pd.DataFrame(rows, columns=[*keys, "measure", "value"])).set_index("tree")
    assert found["seeds"].to_dict() == {stacks.GIVEN: 2, stacks.RANDOM: 2}
    # Given: 0.25 and 0.65 of seeds 0 and 1; random: 0 and −0.25 of seeds 0 and 2; together only seed 0.
    assert found.loc[stacks.GIVEN, "mean"] == pytest.approx(0.45)
    assert found.loc[stacks.GIVEN, "high"] == pytest.approx(0.45 + 12.7062 * 0.2, abs=1e-4)
    assert found.loc[stacks.RANDOM, "mean"] == pytest.approx(-0.125)
    assert found.loc[stacks.GIVEN, "beyond"] == pytest.approx(0.25)
    assert math.isnan(found.loc[stacks.GIVEN, "beyond_low"])


def test_spaces_of_levels_keep_distances_of_three_dimensions_and_name_points_by_their_pieces(
    torus: TrainedModel,
) -> None:
    table = stacks.level_spaces(torus, test_size=120)
    dataset = data.load("torus", test_size=120, seed=2)
    pieces = group_of([HALVES, QUARTERS], dataset.test_labels)
    angles = dataset.test_coordinates
    assert angles is not None
    mapped = [3.0 * cloud.detach() for cloud, _ in torus.model.levels(dataset.test_inputs)]
    groups = dict(list(table.groupby(["level", "of"])))
    assert groups.keys() == {(0, 1), (0, 2), (0, 3), (1, 1), (2, 2), (3, 3)}
    for (level, of), rows in groups.items():
        cloud = (mapped[level - 1] if level else dataset.test_inputs).double()
        assert rows["piece"].tolist() == [label + 1 for label in pieces[of - 1]]
        np.testing.assert_allclose(rows[["angle", "angle_2"]], angles, rtol=1e-6)
        # Principal axes: the points' largest spreads, and for the data, of three dimensions, all distances.
        spreads = np.linalg.svd((cloud - cloud.mean(0)).numpy(), compute_uv=False)[:3]
        xyz = rows[["x", "y", "z"]].to_numpy()
        np.testing.assert_allclose(np.linalg.norm(xyz - xyz.mean(0), axis=0), spreads, rtol=1e-3)
        if level == 0:
            found = torch.cdist(torch.tensor(xyz), torch.tensor(xyz))
            torch.testing.assert_close(found.double(), torch.cdist(cloud, cloud), rtol=0, atol=1e-3)


def test_planes_of_pieces_are_of_the_first_piece_away_from_cuts(cut_surface: tuple[TrainedModel, int]) -> None:
    (trained, cut), nearest = cut_surface, 4
    table = stacks.piece_planes(trained, nearest=nearest)
    dataset = data.load(trained.config.dataset, train_size=400, seed=2)
    labels, known = (group_of([HALVES, QUARTERS], y) for y in (dataset.test_labels, dataset.train_labels))
    near = NearestNeighbors(n_neighbors=nearest).fit(dataset.train_inputs.numpy())
    around = near.kneighbors(dataset.test_inputs.numpy(), return_distance=False)
    angles = dataset.test_coordinates
    assert angles is not None
    for level, (mapped, _) in enumerate(trained.model.levels(dataset.test_inputs)):
        members = [
            i for i, others in enumerate(around)
            if labels[level][i] == 0 and all(known[level][k] == 0 for k in others)
        ]  # fmt: skip
        clouds = {False: dataset.test_inputs, True: 3.0 * mapped.detach()}
        for is_mapped, cloud in clouds.items():
            rows = table[(table["level"] == level + 1) & (table["mapped"] == is_mapped)]
            np.testing.assert_allclose(rows["angle"], angles[members, 1 - cut], rtol=1e-6)
            own = cloud[members].double().numpy()
            spreads = np.linalg.svd(own - own.mean(0), compute_uv=False)[:2]
            xy = rows[["x", "y"]].to_numpy()
            np.testing.assert_allclose(np.linalg.norm(xy - xy.mean(0), axis=0), spreads, rtol=1e-3)
        before, after = (
            table[(table["level"] == level + 1) & (table["mapped"] == is_mapped)][["x", "y"]].to_numpy()
            for is_mapped in (False, True)
        )
        assert ((before * after).sum(0) >= 0).all()


@pytest.mark.parametrize("measurement", [stacks.level_spaces, partial(stacks.piece_planes, nearest=2)])
def test_surfaces_only_have_spaces_of_levels(
    measurement: Callable[[TrainedModel], pd.DataFrame], digits: TrainedModel
) -> None:
    with pytest.raises(InputError, match="dataset 'mnist' is not a surface with two known coordinates"):
        measurement(digits)
