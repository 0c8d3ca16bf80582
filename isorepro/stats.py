"""Seeds are the unit of uncertainty: means over seeds with 95 % intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from isorepro.errors import InputError


def seed_interval(values: Sequence[float] | pd.Series, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean over seeds and the ends of its Student t interval.

    Args:
        values: one finite number per seed, at least one.
        confidence: coverage in (0, 1).

    Returns:
        (mean, low, high); with a single seed the ends are NaN, since one value has no spread.
    """
    sample = np.asarray(values, dtype=float)
    mean = float(sample.mean())
    if len(sample) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))
    return mean, mean - half, mean + half


def p_value(values: Sequence[float] | pd.Series, limit: float) -> float:
    """Return the two-sided p value of a Student t test of the mean over seeds against a limit.

    It is below 0.05 where the limit lies outside the interval of :func:`seed_interval`, 0 where all values are the
    same and NaN with a single seed.
    """
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return float("nan")
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    return float(2 * stats.t.sf(abs(sample.mean() - limit) / error, len(sample) - 1)) if error else 0.0


def holm(p_values: pd.Series) -> pd.Series:
    """Return p values adjusted for their number by the step-down method of Holm (1979); NaN is no test."""
    ordered = p_values.dropna().sort_values()
    adjusted = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1)
    return adjusted.reindex(p_values.index)


def over_seeds(
    table: pd.DataFrame, value: str, by: Sequence[str], bounds: tuple[float, float] = (-np.inf, np.inf)
) -> pd.DataFrame:
    """Summarise a tidy table over its ``seed`` column.

    Args:
        table: one row per measurement, with columns ``seed``, ``value`` and those in ``by``.
        value: name of the measured column.
        by: columns that tell the measurements of one seed apart, in the order wanted.
        bounds: range of the measure; the interval's ends are clipped to it, e.g. (0, 1) for an accuracy.

    Returns:
        One row per combination of ``by``, in order of appearance: its columns, ``mean``, ``low``, ``high``
        (95 % interval) and ``seeds`` (their number).

    Raises:
        InputError: a seed has several rows of a combination, such as those of networks with another K.
    """
    rows = []
    for key, group in table.groupby(list(by), sort=False, observed=True):
        # A seed counted twice would make an interval look narrower than it is.
        if group["seed"].duplicated().any():
            told = ", ".join(f"{name} = {setting}" for name, setting in zip(by, key, strict=True))
            raise InputError(f"{value}: a seed has several rows with {told}: tell them apart")
        mean, low, high = seed_interval(group[value])
        ends = np.clip([low, high], *bounds)
        rows.append((*key, mean, *ends, len(group)))
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "seeds"])


def paired_differences(
    table: pd.DataFrame, value: str, by: Sequence[str], column: str, baseline: float | str
) -> pd.DataFrame:
    """Compare each setting with a baseline seed by seed.

    Args:
        table: one row per measurement, with columns ``seed``, ``value``, ``column`` and those in ``by``.
        value: name of the measured column.
        by: columns whose values must agree between the two rows compared.
        column: the column that tells setting from baseline, such as "beta".
        baseline: its value for the baseline; each seed and combination of ``by`` must have it once.

    Returns:
        As :func:`over_seeds` by ``by`` and ``column``: the mean over seeds of setting − baseline and its 95 %
        interval; the baseline itself is left out.

    Raises:
        InputError: the table has no row of the baseline for some seed.
    """
    keys = ["seed", *by]
    reference = table[table[column] == baseline].set_index(keys)[value]
    others = table[table[column] != baseline]
    wanted = pd.MultiIndex.from_frame(others[keys])
    if not wanted.isin(reference.index).all():
        raise InputError(f"{column}: every seed needs the baseline {baseline!r} to be compared with")
    differences = others.assign(difference=others[value].to_numpy() - reference.loc[wanted].to_numpy())
    return over_seeds(differences, "difference", [*by, column])


def cliffs_delta(sample: Sequence[float] | pd.Series, other: Sequence[float] | pd.Series) -> float:
    """Return P(a > b) − P(a < b) for a drawn from one sample and b from the other (Cliff 1993), in [−1, 1].

    0: neither tends to be larger; ±1: the samples do not overlap.

    Raises:
        InputError: an empty sample.
    """
    if not len(sample) or not len(other):
        raise InputError(f"cliffs_delta: needs two samples, not of {len(sample)} and {len(other)} values")
    above = stats.mannwhitneyu(sample, other).statistic
    return float(2 * above / (len(sample) * len(other)) - 1)
