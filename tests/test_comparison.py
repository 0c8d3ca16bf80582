import math
from typing import Any

import foolbox
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats

from isorepro import attacks, comparison, data, ensemble, method_plots, style, tables
from isorepro.errors import InputError
from isorepro.training import TrainedModel, TrainingConfig, train

BASE = TrainingConfig(train_size=500, epochs=1, width=20, depth=1, device="cpu")


def test_settings_get_every_seed_and_their_names() -> None:
    settings = {"CE": {}, "noisy": {"method": "noise", "options": {"sigma": 0.3}}}
    names, configs = comparison.grid(BASE, settings, [3, 4])
    # Seed by seed, so that times that are compared were taken one after the other.
    assert names == ["CE", "noisy", "CE", "noisy"]
    assert [config.seed for config in configs] == [3, 3, 4, 4]
    assert [config.method for config in configs] == ["isometry", "noise", "isometry", "noise"]
    assert all(config.train_size == 500 for config in configs)


@pytest.mark.parametrize(
    ("settings", "seeds", "message"),
    [
        ({}, [0], "settings: at least one setting and one seed"),
        ({"CE": {}}, [], "settings: at least one setting and one seed"),
        ({"odd": {"betta": 1.0}}, [0], "settings: 'odd': .*betta"),
        ({"odd": {"method": "noise", "options": {"sigma": -1.0}}}, [0], "settings: 'odd': .*sigma"),
        ({"odd": {"method": "prayer"}}, [0], "settings: 'odd': .*prayer"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: Any, seeds: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        comparison.grid(BASE, settings, seeds)
    assert "\n" not in str(refused.value)


def test_families_are_every_combination_of_what_is_listed() -> None:
    short = [
        {},
        {"beta": [0.1, 1], "K": 10.0},
        {
            "method": "local_isometry",
            "options": {"K": [1.0, 2.0], "steps": [1, 2, 3], "beta": 0.5},
            "beta": [0.0, 0.1],
        },
    ]
    found = comparison.expanded(BASE, short)
    expected = {("isometry", 0.0, ()), ("isometry", 0.1, ()), ("isometry", 1.0, ())}
    for own in (0.0, 0.1):
        for k in (1.0, 2.0):
            for steps in (1, 2, 3):
                expected.add(("local_isometry", own, (("K", k), ("beta", 0.5), ("steps", steps))))
    assert len(found) == len(expected) == 15
    assert {(config.method, config.beta, config.options) for config in found} == expected


@pytest.mark.parametrize(
    ("short", "message"),
    [
        ([{}, {"beta": 0.0}], "tried: 'cross-entropy' is there twice"),
        ([{"options": [1]}], "tried: options must be numbers by name"),
        ([{"bet": 1.0}], "bet"),
    ],
)
def test_families_that_cannot_be_are_refused(short: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        comparison.expanded(BASE, short)


@pytest.mark.parametrize(
    ("fields", "family", "told"),
    [
        ({}, "cross-entropy", "cross-entropy"),
        ({"beta": 0.1, "K": 10.0}, "isometry", "isometry, β = 0.1, K = 10"),
        ({"beta": 2.0, "form": "normalised"}, "isometry", "isometry, β = 2, K = 1, normalised"),
        ({"method": "noise", "options": {"sigma": 0.3}}, "noise", "noise, sigma = 0.3"),
        (
            {"method": "weight_decay", "beta": 1.0},
            "weight decay + isometry",
            "weight decay + isometry, with β = 1, K = 1",
        ),
        ({"method": "trades", "options": {"beta": 3.0}}, "TRADES", "TRADES, beta = 3"),
    ],
)
def test_settings_are_told_in_words(fields: dict[str, Any], family: str, told: str) -> None:
    config = TrainingConfig(**BASE.model_dump() | fields)
    assert comparison.family(config) == family
    assert comparison.describe(config) == told


def test_rows_get_the_name_of_their_network(trained: TrainedModel) -> None:
    table = pd.DataFrame({"value": range(6)})
    found = comparison.named([trained] * 3, ["a", "b", "a"], table)
    assert found["setting"].tolist() == ["a", "a", "b", "b", "a", "a"]
    assert list(table) == ["value"]
    for names, rows in ((["a"], 6), (["a", "b", "c"], 5)):
        with pytest.raises(InputError, match="do not belong to 3 networks"):
            comparison.named([trained] * 3, names, table.head(rows))


def test_robustness_is_that_of_autoattack_and_of_foolbox(trained: TrainedModel) -> None:
    found = comparison.robustness(
        trained,
        epsilons=[0.03, 0.08],
        l2_epsilons=[0.5, 1.0],
        images=30,
        l2_images=200,
        iterations=10,
        queries=100,
    )
    assert found[["norm", "epsilon"]].to_numpy().tolist() == [
        [norm, radius] for norm, radii in (("L∞", (0, 0.03, 0.08)), ("L2", (0, 0.5, 1.0))) for radius in radii
    ]
    linf, l2 = (found[found["norm"] == norm].set_index("epsilon") for norm in (comparison.LINF, comparison.L2))
    few = data.load("mnist", test_size=30, seed=trained.config.seed)
    curve = ensemble.autoattack_curve(
        trained.model, few.test_inputs, few.test_labels, [0.03, 0.08], iterations=9, queries=100
    )
    assert linf["accuracy"].tolist()[1:] == curve.double().mean(1).tolist()
    many = data.load("mnist", test_size=200, seed=trained.config.seed)
    inputs, labels = many.test_inputs, many.test_labels
    assert l2.loc[0, "accuracy"] == (trained.model(inputs).argmax(1) == labels).double().mean().item()
    torch.manual_seed(0)
    model = foolbox.PyTorchModel(trained.model, bounds=(0, 1), device="cpu")
    for radius in (0.5, 1.0):
        attack = foolbox.attacks.L2PGD(rel_stepsize=2.5 / 40, steps=40)
        _, _, fooled = attack(model, inputs, labels, epsilons=radius)
        # The worse of two objectives, so it may be lower by some points.
        assert -0.05 <= l2.loc[radius, "accuracy"] - (1 - fooled.double().mean().item()) <= 0.005
    assert set(linf["images"]) == {30}
    assert set(l2["images"]) == {200}


def test_validation_takes_the_worse_of_two_attacks_and_all_images_without(trained: TrainedModel) -> None:
    (row,) = comparison.validate(trained, epsilon=0.06, images=100, pgd_steps=5).to_dict("records")
    whole = data.load("mnist")
    expected = (trained.model(whole.test_inputs).argmax(1) == whole.test_labels).double().mean().item()
    assert row["clean"] == pytest.approx(expected, abs=1e-9)
    part = data.load("mnist", test_size=100, seed=trained.config.seed)
    stands = trained.model(part.test_inputs).argmax(1) == part.test_labels
    for objective in (attacks.cross_entropy, attacks.margin):
        # An image that is wrong without attack counts as fooled, and the right ones are attacked by themselves.
        inputs, labels = (
            part.test_inputs[correct := trained.model(part.test_inputs).argmax(1) == part.test_labels],
            None,
        )
        labels = part.test_labels[correct]
        moved = attacks.pgd(trained.model, inputs, labels, epsilon=0.06, steps=5, objective=objective)
        stands[correct.nonzero().squeeze(1)[trained.model(moved).argmax(1) != labels]] = False
    assert row["robust"] == stands.double().mean().item()


def test_stacks_are_refused() -> None:
    stack = train(TrainingConfig(**BASE.model_dump() | {"hierarchy": [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]]}))
    with pytest.raises(InputError, match="comparison: needs a flat network, not a stack of 2 levels"):
        comparison.validate(stack, epsilon=0.1, images=20)
    with pytest.raises(InputError, match="comparison: needs a flat network, not a stack of 2 levels"):
        comparison.robustness(stack, epsilons=[0.1], l2_epsilons=[1.0], images=20, l2_images=20)


def test_the_most_robust_of_a_family_is_chosen_unless_it_costs_too_much() -> None:
    rows = [
        ("CE", "plain", 0.970, 0.0),
        ("a1", "a", 0.964, 0.9),  # too inaccurate
        ("a2", "a", 0.966, 0.5),
        ("a3", "a", 0.980, 0.4),
        ("b1", "b", 0.900, 0.9),  # a family without one that is accurate enough
        ("c1", "c", 0.970, 0.3),
        ("c2", "c", 0.970, 0.3),  # as robust: the first is taken
    ]
    tried = pd.DataFrame(rows, columns=["setting", "family", "clean", "robust"])
    found = comparison.choose(tried, plain="CE", loss=0.005).set_index("setting")
    assert list(found.index[found["chosen"]]) == ["CE", "a2", "c1"]
    assert list(found.index[~found["eligible"]]) == ["a1", "b1"]
    tied = comparison.choose(tried, plain="CE", loss=0.005, tie=0.1).set_index("setting")
    assert list(tied.index[tied["chosen"]]) == ["CE", "a3", "c1"]
    with pytest.raises(InputError, match="'BCE', with which the others are compared, is not among them"):
        comparison.choose(tried, plain="BCE", loss=0.005)
    shown = tables.tried_table(found.reset_index().assign(processor_seconds=1.0))
    assert shown["outcome"].value_counts().to_dict() == {
        "chosen": 3, "less robust": 2, "costs too much accuracy": 2,
    }  # fmt: skip


@pytest.fixture
def measured() -> dict[str, pd.DataFrame]:
    random = np.random.default_rng(0)
    rows = [(setting, seed) for setting in ("CE", "ours") for seed in range(4)]
    keys = pd.DataFrame(rows, columns=["setting", "seed"])
    curves = [
        keys.assign(norm=norm, epsilon=epsilon, accuracy=random.random(len(keys)))
        for norm in (comparison.LINF, comparison.L2)
        for epsilon in (0.0, 0.1, 1.0)
    ]
    kept = [
        keys.assign(measure=measure, relation=relation, value=random.random(len(keys)))
        for measure, relation in (*comparison.OVERVIEW.values(), ("spearman", "between"))
    ]
    trained = keys.assign(processor_seconds=random.random(len(keys)) + 1, clean=random.random(len(keys)))
    return {"curves": pd.concat(curves), "kept": pd.concat(kept), "trained": trained}


def test_an_overview_takes_each_measure_from_its_table(measured: dict[str, pd.DataFrame]) -> None:
    found = comparison.overview(**measured, epsilon=0.1)
    assert found.groupby("measure").size().to_dict() == dict.fromkeys(
        [*comparison.OVERVIEW, "robust", "clean", "seconds"], 8
    )
    wide = found.pivot(index=["setting", "seed"], columns="measure", values="value")
    curves = measured["curves"].query("norm == 'L∞' and epsilon == 0.1").set_index(["setting", "seed"])["accuracy"]
    pd.testing.assert_series_equal(wide["robust"], curves, check_names=False)
    for name, column in {"clean": "clean", "seconds": "processor_seconds"}.items():
        of_training = measured["trained"].set_index(["setting", "seed"])[column]
        pd.testing.assert_series_equal(wide[name], of_training, check_names=False)
    within = measured["kept"].query("measure == 'spearman' and relation == 'within'")
    pd.testing.assert_series_equal(
        wide["spearman"], within.set_index(["setting", "seed"])["value"], check_names=False
    )


def test_spread_differences_and_costs_are_those_of_t_intervals(measured: dict[str, pd.DataFrame]) -> None:
    overview = comparison.overview(**measured, epsilon=0.1)
    wide = overview.pivot(index=["measure", "seed"], columns="setting", values="value")
    spread = comparison.spread(overview).set_index(["setting", "measure"])
    difference = comparison.differences(overview, "CE").set_index(["setting", "measure"])
    for measure in ("seconds", "spearman"):
        sample = wide.loc[measure]
        low, high = scipy_stats.t.interval(0.95, 3, sample["ours"].mean(), scipy_stats.sem(sample["ours"]))
        bounds = {"seconds": (0, math.inf), "spearman": (-1, 1)}[measure]
        expected = [sample["ours"].mean(), max(low, bounds[0]), min(high, bounds[1])]
        np.testing.assert_allclose(spread.loc[("ours", measure), ["mean", "low", "high"]].tolist(), expected)
        paired = scipy_stats.ttest_rel(sample["ours"], sample["CE"])
        interval = paired.confidence_interval(0.95)
        np.testing.assert_allclose(difference.loc[("ours", measure), ["low", "high"]].tolist(), list(interval))
    sample = wide.loc["seconds"]
    ratio = sample["ours"] / sample["CE"]
    found = comparison.cost_ratio(measured["trained"], "ours", "CE")
    expected_ends = scipy_stats.t.interval(0.95, 3, ratio.mean(), scipy_stats.sem(ratio))
    np.testing.assert_allclose(found, [ratio.mean(), *expected_ends])


@pytest.mark.parametrize("narrow", [False, True])
def test_figures_show_every_method_where_it_is(measured: dict[str, pd.DataFrame], narrow: bool) -> None:
    spread = comparison.spread(comparison.overview(**measured, epsilon=0.1))
    points = comparison.plane(spread, x="spearman", y="robust")
    with style.house_style():
        figure = method_plots.method_points(points, x_label="kept", y_label="stands", narrow=narrow)
        figure.canvas.draw()
    (axes,) = figure.axes
    drawn = [
        (*line.get_xdata(), *line.get_ydata())
        for line in axes.lines
        if line.get_marker() not in ("None", "|", "_")
    ]
    np.testing.assert_allclose(sorted(drawn), sorted(points[["x", "y"]].to_numpy().tolist()))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CE", "ours"]

    summary = measured["curves"].groupby(["norm", "setting", "epsilon"], sort=False)["accuracy"]
    summary = summary.agg(mean="mean", low="min", high="max").reset_index()
    names = {comparison.LINF: "a", comparison.L2: "b"}
    with style.house_style():
        figure = method_plots.method_curves(summary, titles=names, labels=names, chance=0.1, narrow=narrow)
        figure.canvas.draw()
    for axes, norm in zip(figure.axes, names, strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}
        for setting, heights in lines.items():
            rows = summary[(summary["norm"] == norm) & (summary["setting"] == setting)]
            np.testing.assert_array_equal(heights, rows["mean"])
        assert set(lines) == {"CE", "ours"}


def test_the_table_of_an_overview_has_a_row_for_each_method(measured: dict[str, pd.DataFrame]) -> None:
    spread = comparison.spread(comparison.overview(**measured, epsilon=0.1))
    shown = tables.overview_table(spread, {"robust": "stands", "seconds": "time"})
    assert list(shown) == ["method", "stands", "time"]
    assert shown["method"].tolist() == ["CE", "ours"]
    mean = 100 * spread.set_index(["setting", "measure"]).loc[("ours", "robust"), "mean"]
    assert shown.loc[1, "stands"].startswith(f"{mean:.1f}")
