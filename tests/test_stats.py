import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from isorepro import stats
from isorepro.errors import InputError


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_seed_interval_equals_scipys(count: int) -> None:
    sample = np.random.default_rng(count).normal(0.7, 0.1, count)
    expected = scipy_stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert stats.seed_interval(sample) == pytest.approx((sample.mean(), expected.low, expected.high))


def test_one_seed_has_no_interval() -> None:
    mean, low, high = stats.seed_interval([0.4])
    assert mean == 0.4
    assert np.isnan([low, high, stats.p_value([0.4], 0.3)]).all()


@pytest.mark.parametrize("limit", [-0.2, 0.6, 0.7, 0.71, 0.9])
def test_a_p_value_is_scipys_and_that_of_a_certain_mean_is_0(limit: float) -> None:
    sample = np.random.default_rng(0).normal(0.7, 0.1, 5)
    assert stats.p_value(sample, limit) == pytest.approx(scipy_stats.ttest_1samp(sample, limit).pvalue)
    assert stats.p_value([0.75] * 4, limit) == 0


def test_holms_adjusted_p_values_are_those_of_a_worked_example() -> None:
    # Those of R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm").
    p_values = pd.Series({"a": 0.01, "none": np.nan, "b": 0.04, "c": 0.03, "d": 0.005})
    adjusted = stats.holm(p_values)
    assert adjusted.to_dict() == pytest.approx(
        {"a": 0.03, "none": np.nan, "b": 0.06, "c": 0.06, "d": 0.02}, nan_ok=True
    )
    assert stats.holm(pd.Series([0.4, 0.9])).tolist() == pytest.approx([0.8, 0.9])
    assert stats.holm(pd.Series([0.6, 0.9])).tolist() == [1, 1]


def table() -> pd.DataFrame:
    rows = [
        (seed, beta, epsilon, 0.9 - 0.1 * epsilon + 0.05 * beta + 0.01 * seed * (1 + beta))
        for seed in range(4)
        for beta in (0.0, 1.0)
        for epsilon in (0.1, 0.2)
    ]
    return pd.DataFrame(rows, columns=["seed", "beta", "epsilon", "accuracy"])


def test_over_seeds_has_one_row_per_setting_in_order_and_clips_its_interval() -> None:
    summary = stats.over_seeds(table(), "accuracy", ["beta", "epsilon"], bounds=(0, 0.95))
    assert summary[["beta", "epsilon"]].to_numpy().tolist() == [[0, 0.1], [0, 0.2], [1, 0.1], [1, 0.2]]
    assert (summary["seeds"] == 4).all()
    assert summary["high"].max() == 0.95
    group = table().query("beta == 1 and epsilon == 0.2")["accuracy"]
    assert tuple(summary.iloc[3][["mean", "low"]]) == pytest.approx(stats.seed_interval(group)[:2])


def test_a_seed_is_not_counted_twice() -> None:
    twice = pd.concat([table().assign(K=10.0), table().query("beta == 1").assign(K=1.0)])
    assert (stats.over_seeds(twice, "accuracy", ["beta", "K", "epsilon"])["seeds"] == 4).all()
    with pytest.raises(
        InputError, match=r"accuracy: a seed has several rows with beta = 1.0, epsilon = 0.1: tell"
    ):
        stats.over_seeds(twice, "accuracy", ["beta", "epsilon"])


def test_paired_differences_equal_scipys_paired_test() -> None:
    differences = stats.paired_differences(table(), "accuracy", ["epsilon"], "beta", 0.0)
    wide = table().query("epsilon == 0.1").pivot(index="seed", columns="beta", values="accuracy")
    expected = scipy_stats.ttest_rel(wide[1.0], wide[0.0]).confidence_interval(0.95)
    assert differences["beta"].tolist() == [1.0, 1.0]
    assert tuple(differences.iloc[0][["mean", "low", "high"]]) == pytest.approx(
        ((wide[1.0] - wide[0.0]).mean(), expected.low, expected.high)
    )


def test_a_seed_without_its_baseline_is_refused() -> None:
    broken = table().query("not (seed == 2 and beta == 0)")
    with pytest.raises(InputError, match="every seed needs the baseline 0"):
        stats.paired_differences(broken, "accuracy", ["epsilon"], "beta", 0.0)


SAMPLES = st.lists(st.integers(-5, 5) | st.floats(-5, 5), min_size=1, max_size=12)


@given(sample=SAMPLES, other=SAMPLES)
def test_cliffs_delta_equals_the_double_loop(sample: list[float], other: list[float]) -> None:
    above = sum(a > b for a in sample for b in other)
    below = sum(a < b for a in sample for b in other)
    expected = (above - below) / (len(sample) * len(other))
    assert stats.cliffs_delta(sample, other) == pytest.approx(expected, abs=1e-12)
    assert stats.cliffs_delta(pd.Series(other), pd.Series(sample)) == pytest.approx(-expected, abs=1e-12)


@pytest.mark.parametrize(("sample", "other"), [([], [1.0]), ([1.0, 2.0], []), ([], [])])
def test_cliffs_delta_of_nothing_is_refused(sample: list[float], other: list[float]) -> None:
    with pytest.raises(InputError, match=f"not of {len(sample)} and {len(other)} values"):
        stats.cliffs_delta(sample, other)
