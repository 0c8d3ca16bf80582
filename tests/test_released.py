"""What the page on the released code measures, against slow loops and numbers worked out by hand."""

import itertools
import math
from collections import deque

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from isorepro import data, hierarchy, released, stacks, tables
from isorepro.errors import InputError
from isorepro.robustness import CLEAN, CORRECTED, FGSM, ONE_GRADIENT_PGD, PGD, RELEASED
from isorepro.training import TrainedModel, TrainingConfig, build

TREE = [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]]


def untrained(**fields: object) -> TrainedModel:
    """A network with the weights it starts from, which no measurement here needs to be better."""
    config = TrainingConfig(K=10.0, width=20, depth=1, device="cpu", **fields)
    dataset = data.load("mnist")
    model = build(config, dataset.test_inputs, len(dataset.classes)).eval()
    return TrainedModel(config, model, pd.DataFrame(), 0.0)


def curves() -> pd.DataFrame:
    """Three seeds, two weights, at one radius and another that must not be read."""
    levels = {
        (CORRECTED, CLEAN, 0.0): (0.95, 0.90),
        (RELEASED, FGSM, 0.1): (0.30, 0.80),
        (RELEASED, ONE_GRADIENT_PGD, 0.1): (0.05, 0.20),
        (CORRECTED, FGSM, 0.1): (0.30, 0.35),
        (CORRECTED, PGD, 0.1): (0.10, 0.25),
        (RELEASED, FGSM, 1.0): (0.0, 0.5),
    }
    rows = [
        (seed, beta, *key, values[int(beta > 0)] + 0.01 * seed * (1 + (beta > 0)) * (key[1] != PGD))
        for (key, values), beta, seed in itertools.product(levels.items(), (0.0, 5.0), range(3))
    ]
    return pd.DataFrame(rows, columns=["seed", "beta", "protocol", "attack", "epsilon", "accuracy"])


def test_attack_effects_of_known_curves() -> None:
    effects = released.attack_effects(curves(), beta=5.0, epsilon=0.08).set_index("name")
    expected = {
        "gain_clean": -0.04,  # −0.05 + 0.01 · mean seed
        "gain_released_fgsm": 0.51,
        "gain_released_pgd": 0.16,
        "gain_fgsm": 0.06,
        "gain_pgd": 0.15,
        "objective": 0.45,
        "gradient_point": 0.12,
        "reach": 0.60,
        "objective_gain": 0.45,
        "gradient_point_gain": -0.09,
        "reach_gain": 0.35,
    }
    assert effects["mean"].to_dict() == pytest.approx(expected)
    # Gains grow by 0.01 a seed: sd 0.01, t(0.975; 2) = 4.3027, over √3; those of PGD are all the same.
    half = 4.3027 * 0.01 / math.sqrt(3)
    assert effects.loc["gain_fgsm", ["low", "high"]].tolist() == pytest.approx(
        [0.06 - half, 0.06 + half], abs=1e-5
    )
    assert effects.loc["gain_pgd", ["low", "high"]].tolist() == pytest.approx([0.15, 0.15])
    assert (effects["seeds"] == 3).all()
    with pytest.raises(InputError, match="no β = 2"):
        released.attack_effects(curves(), beta=2.0, epsilon=0.08)
    with pytest.raises(InputError, match="no β = 0"):
        released.attack_effects(curves().query("beta > 0"), beta=5.0, epsilon=0.08)


def test_one_seed_has_effects_without_an_interval() -> None:
    effects = released.attack_effects(curves().query("seed == 1"), beta=5.0, epsilon=0.1)
    assert effects[["low", "high"]].isna().all(axis=None)
    assert "one seed: no interval" in tables.effect_texts(effects, "name")["objective"]


def test_seed_ranges_are_the_extremes_over_all_pairs_of_seeds() -> None:
    found = released.seed_ranges(curves(), beta=5.0, epsilon=0.1)
    plain, isometric = [0.30, 0.31, 0.32], [0.80, 0.82, 0.84]
    gains = [after - before for after, before in itertools.product(isometric, plain)]
    expected = [min(plain), max(plain), min(isometric), max(isometric), min(gains), max(gains)]
    assert list(found.values()) == pytest.approx(expected)


@pytest.mark.parametrize("form", ["raw", "normalised"])
def test_gradient_shares_equal_those_of_the_formula(form: str) -> None:
    trained = untrained(beta=0.5, form=form)
    found = released.gradient_shares(trained, test_size=150).set_index("measure")["value"]
    dataset = data.load("mnist", test_size=150)
    gradients: list[tuple[Tensor, Tensor]] = []
    for part in (slice(0, 100), slice(100, 150)):
        x, y = dataset.test_inputs[part].clone().requires_grad_(), dataset.test_labels[part]
        h, z = trained.model.representation(x), x.detach().flatten(1)
        # Distances by norms of differences, not by the library's; the diagonal has no gradient.
        pairs = [(i, j) for i, j in itertools.permutations(range(len(y)), 2) if y[i] == y[j]]
        i, j = torch.tensor(pairs).T
        before, after = (z[i] - z[j]).norm(dim=1), (h[i] - h[j]).norm(dim=1)
        if form == "raw":
            term = 0.5 * (10 * after - before).square().sum() / len(y) ** 2
        else:
            error = after / (10 * after.max()) - before / before.max()
            term = 0.5 * (error.square().sum() / len(y) ** 2).square()
        entropy = functional.cross_entropy(trained.model(x), y)
        gradients.append(tuple(torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (entropy, term)))
    plain, isometry = (torch.cat(parts).double() for parts in zip(*gradients, strict=True))
    assert found["ratio"] == pytest.approx(float(isometry.abs().sum() / plain.abs().sum()), rel=1e-3)
    agreement = ((plain + isometry) * plain > 0).sum() / (plain * (plain + isometry) != 0).sum()
    assert found["agreement"] == pytest.approx(float(agreement), abs=1e-3)
    assert found["agreement"] < 1


def test_without_the_term_both_gradients_and_all_orders_are_the_same() -> None:
    trained = untrained(beta=0.0)
    shares = released.gradient_shares(trained, test_size=150)
    assert dict(shares.itertuples(index=False, name=None)) == {"agreement": 1.0, "ratio": 0.0}
    orders = released.batch_orders(trained, epsilon=0.05, shuffles=2, test_size=250)
    assert orders["order"].tolist() == [0, 1, 2]
    assert orders["accuracy"].nunique() == 1


def test_with_the_term_the_released_attack_depends_on_the_order(trained: TrainedModel) -> None:
    orders = released.batch_orders(trained, epsilon=0.0774, shuffles=3, test_size=600)
    assert orders["accuracy"].nunique() > 1
    dataset = data.load("mnist", test_size=600)
    right = 0
    for x, y in zip(dataset.test_inputs.split(100), dataset.test_labels.split(100), strict=True):
        x = x.clone().requires_grad_()
        same = y[:, None] == y
        before, h = torch.cdist(x.detach().flatten(1), x.detach().flatten(1)), trained.model.representation(x)
        term = 0.1 * (10 * torch.cdist(h, h) * same - before * same).square().mean()
        (functional.cross_entropy(trained.model(x), y) + term).backward()
        assert x.grad is not None
        right += int((trained.model((x + 0.0774 * x.grad.sign()).clamp(0, 1)).argmax(1) == y).sum())
    assert orders["accuracy"][0] == pytest.approx(right / 600, abs=0.004)


def test_order_effects_pair_each_network_with_itself() -> None:
    rows = [(0, 0, 0.5), (0, 1, 0.4), (0, 2, 0.44), (1, 0, 0.6), (1, 1, 0.58), (1, 2, 0.6)]
    effects = released.order_effects(pd.DataFrame(rows, columns=["seed", "order", "accuracy"])).set_index("name")
    assert effects["mean"].tolist() == pytest.approx([(-0.08 - 0.01) / 2, (0.04 + 0.02) / 2])
    assert effects["seeds"].tolist() == [2, 2]


def test_the_first_images_tree_distances_are_those_counted_one_by_one() -> None:
    trained = untrained(beta=0.1, hierarchy=TREE)
    table = released.first_images(trained, epsilon=0.1, first=30).set_index(["attack", "part"])
    dataset = data.load("mnist")
    named = trained.model(dataset.test_inputs[:30]).argmax(1).tolist()
    edges = []
    for guess, label in zip(named, dataset.test_labels[:30].tolist(), strict=True):
        together = sum(any(guess in group and label in group for group in level) for level in TREE)
        edges.append(0 if guess == label else 2 * (3 - together))
    assert table.loc[(CLEAN, released.FIRST), "distance"] == pytest.approx(np.mean(edges))
    assert table["images"].tolist() == [30, 10000, 30, 10000]
    # The mean of all, predicted with a spread of edges, lies where its own errors say: √(10000 / 30) apart.
    ratio = table.loc[(FGSM, released.FIRST), "error"] / table.loc[(FGSM, released.ALL), "error"]
    assert ratio == pytest.approx(math.sqrt(10000 / 30))
    assert 0 < table.loc[(CLEAN, released.ALL), "error"] < 6 / math.sqrt(10000)
    attacked = table.loc[(FGSM, released.ALL), "distance"]
    assert attacked != table.loc[(CLEAN, released.ALL), "distance"]


def test_first_effects_are_first_minus_all() -> None:
    rows = [
        (seed, attack, part, value + 0.1 * seed * (part == released.FIRST))
        for (attack, part), value in {
            (CLEAN, released.FIRST): 0.2,
            (CLEAN, released.ALL): 0.5,
            (FGSM, released.FIRST): 2.0,
            (FGSM, released.ALL): 1.0,
        }.items()
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=["seed", "attack", "part", "distance"])
    effects = released.first_effects(table).set_index("name")
    assert effects["mean"].to_dict() == pytest.approx({"first_clean": -0.25, "first_released": 1.05})


def test_variants_are_compared_at_their_own_finest_level_with_the_stack_of_the_same_seed() -> None:
    rows = [
        (variant, seed, level, *key, value + 0.1 * level + 0.01 * seed)
        for variant, levels, value in (("this book", 3, 0.2), ("Adam anew", 3, 0.15), ("May 2023", 2, 0.2))
        for level in range(1, levels + 1)
        for key in [(CORRECTED, CLEAN), (RELEASED, CLEAN), (RELEASED, FGSM), (CORRECTED, FGSM), (CORRECTED, PGD)]
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=["variant", "seed", "level", "protocol", "attack", "accuracy"])
    effects = released.variant_effects(table, baseline="this book")
    found = effects.set_index(["variant", "outcome"])["mean"].to_dict()
    expected = {("Adam anew", outcome): -0.05 for outcome in released.OUTCOMES}
    assert found == pytest.approx(expected | {("May 2023", outcome): -0.1 for outcome in released.OUTCOMES})
    texts = tables.effect_texts(effects, "variant", "outcome")
    assert texts["adam_anew_pgd"].startswith("−5.0 points (95 % interval −5.0 to")
    shown = tables.effects_table(effects, "variant", "outcome")
    assert shown.columns.tolist() == ["variant", *released.OUTCOMES]
    assert shown["variant"].tolist() == ["Adam anew", "May 2023"]
    assert shown["pgd"][0].startswith("−5.0 (−5.0 to ")
    one = released.variant_effects(table[table["seed"] == 1], baseline="this book")
    assert tables.effects_table(one, "variant", "outcome")["pgd"].tolist() == ["−5.0", "−10.0"]
    with pytest.raises(InputError, match="every seed needs the baseline 'other'"):
        released.variant_effects(table, baseline="other")


def test_sums_and_training_points_are_compared_at_the_finest_level() -> None:
    names = {"summed": 0.7, "single": 0.3, "clean": 0.9, "agreement": 0.6}
    rows = [
        (seed, level, name, value * level / 2 + 0.1 * seed * (name == "summed"))
        for level, (name, value), seed in itertools.product((1, 2), names.items(), (0, 1))
    ]
    sums = released.sum_effects(pd.DataFrame(rows, columns=["seed", "level", "measure", "value"]))
    assert sums["mean"].tolist() == pytest.approx([0.45])
    measured = {"accuracy": (1.0, 0.9), "spearman": (0.99, 0.95), "stress": (0.01, 0.05), "scale": (1.0, 1.0)}
    cells = [
        (seed, level, name, points, value - 0.1 * (level == 1))
        for level, (name, values), seed in itertools.product((1, 2), measured.items(), (0, 1))
        for points, value in zip((stacks.TRAINING, stacks.HELD_OUT), values, strict=True)
    ]
    table = pd.DataFrame(cells, columns=["seed", "level", "measure", "points", "value"])
    effects = released.training_point_effects(table).set_index("name")["mean"].to_dict()
    expected = {"training_accuracy": 0.1, "training_spearman": 0.04, "training_stress": -0.04}
    assert effects == pytest.approx(expected)


def test_the_costs_of_two_extremes_equal_those_of_a_loop_over_pairs() -> None:
    whole = data.load("mnist")
    x, y = whole.train_inputs[:100].flatten(1).double().numpy(), whole.train_labels[:100].tolist()
    pairs = [(i, j) for i, j in itertools.product(range(100), repeat=2) if y[i] == y[j]]
    before = np.array([np.linalg.norm(x[i] - x[j]) for i, j in pairs])
    after = np.array([float((i == 0) != (j == 0)) for i, j in pairs])
    for K in (0.1, 1.0):
        errors = {"isometry": (1 / K - 1) * before / before.max(), "collapse": after / K - before / before.max()}
        expected = {name: (np.sum(error**2) / 100**2) ** 2 for name, error in errors.items()}
        assert released.term_costs("mnist", K=K, batches=1) == pytest.approx(expected, rel=1e-4)
    assert released.term_costs("mnist", K=0.1, batches=2) != released.term_costs("mnist", K=0.1, batches=1)


def walk(levels: list[list[list[int]]], start: int) -> dict[int, int]:
    """Edges from a class to every class that can be reached, breadth first; nodes are (level, group)."""
    groups = {
        (place, tuple(group)) for place, level in enumerate([*levels, [[c] for c in range(10)]]) for group in level
    }
    seen = {(len(levels), (start,)): 0}
    queue = deque(seen)
    while queue:
        level, group = queue.popleft()
        for other in groups - seen.keys():
            if abs(other[0] - level) == 1 and set(other[1]) & set(group):
                seen[other] = seen[level, group] + 1
                queue.append(other)
    return {group[0]: edges for (level, group), edges in seen.items() if level == len(levels)}


@pytest.mark.parametrize("levels", [TREE, [[list(g) for g in level] for level in stacks.PAIRS], []])
def test_distances_without_a_root_are_those_of_a_walk(levels: list[list[list[int]]]) -> None:
    found = released.rootless_distances(levels, 10)
    expected = [[walk(levels, start).get(end, math.inf) for end in range(10)] for start in range(10)]
    assert found.tolist() == expected
    apart = sum(math.isinf(expected[i][j]) for i, j in itertools.combinations(range(10), 2))
    assert released.unreachable(levels, dataset="mnist") == {"unreachable": apart, "pairs": 45}


def test_a_tree_under_one_group_has_the_distances_of_a_tree_with_a_root() -> None:
    for seed in range(5):
        tree = hierarchy.shuffled(TREE, seed)
        found = released.rootless_distances([[list(range(10))], *tree], 10)
        assert (found == hierarchy.tree_distances(tree, 10)).all()
    # Without that group the halves do not meet: 5 · 5 of the pairs.
    assert released.unreachable(TREE, dataset="mnist")["unreachable"] == 25


def test_the_full_matrix_is_what_numpy_would_take() -> None:
    found = released.full_matrix("mnist")
    assert found["matrix_inputs"] == 60_000
    row = np.zeros(60_000)
    assert found["matrix_gb"] == pytest.approx(row.nbytes * 60_000 / 1e9)


def test_texts_of_shares_and_failures() -> None:
    assert tables.share(0.614, 0.6, 0.628) == "61 % (95 % interval 60 to 63)"
    assert tables.share(0.614, math.nan, math.nan) == "61 %"
    rows = [(RELEASED, FGSM, 9, 2), (RELEASED, ONE_GRADIENT_PGD, 9, 0), (CORRECTED, FGSM, 9, 5)]
    failures = pd.DataFrame(rows, columns=["protocol", "attack", "networks", "failed"])
    texts = tables.failure_texts(failures)
    assert texts["above_chance_fgsm"].startswith("At the largest radius 2 of 9 networks are")
    assert texts["above_chance_pgd"].startswith("At the largest radius 0 of 9 networks are")
    assert set(tables.failure_texts(failures[:0]).values()) == {
        "No radius of this run is so large that no classifier can beat chance."
    }
