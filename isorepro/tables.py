"""What figures, tables and sentences call things, and the tables that pages show."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd


def beta_name(beta: float) -> str:
    """Return how figures and tables name a weight: "CE" for β = 0, as in the paper's figures."""
    return f"β\u00a0=\u00a0{short_number(beta)}" if beta else "CE"


def curve_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the curves as a table to read: one row per protocol, attack and ε, one column per β.

    Args:
        summary: as for :func:`isorepro.plots.robustness_curves`.
    """
    text = summary.assign(text=[interval(*row) for row in summary[["mean", "low", "high"]].to_numpy()])
    keys = ["protocol", "attack", "epsilon"]
    order = text[keys].drop_duplicates()
    wide = text.pivot(index=keys, columns="beta", values="text").rename(columns=beta_name)
    wide = wide.loc[pd.MultiIndex.from_frame(order)].reset_index()
    return wide.rename(columns={"epsilon": "ε"})


def reading_table(readings: pd.DataFrame) -> pd.DataFrame:
    """Return the readings of :func:`isorepro.robustness.readings` as a table to read.

    One row per attack and network: accuracy in percent and, in points, the difference to the cross-entropy
    network of the same seed with its 95 % interval.
    """

    def signed(column: str) -> list[str]:
        return ["" if np.isnan(gain) else f"{100 * gain:+.1f}".replace("-", "−") for gain in readings[column]]

    ends = zip(signed("gain_low"), signed("gain_high"), strict=True)
    table = pd.DataFrame(
        {
            "attack": [
                attack if epsilon == 0 else f"{attack}, {protocol}"
                for attack, protocol, epsilon in readings[["attack", "protocol", "epsilon"]].to_numpy()
            ],
            "network": [beta_name(beta) for beta in readings["beta"]],
            "accuracy": [f"{mean:.1%}" for mean in readings["mean"]],
            "difference": signed("gain"),
            "95 % interval": [f"{low} to {high}" if low else "" for low, high in ends],
        }
    ).drop_duplicates()
    order = table["attack"].drop_duplicates().tolist()
    return table.sort_values("attack", key=lambda names: names.map(order.index), kind="stable")


def points(gain: float, low: float, high: float) -> str:
    """Return a difference of accuracies, given as shares, in points with its 95 % interval.

    Without an interval (NaN ends, a single seed) it says so.
    """
    interval = "one seed: no interval" if np.isnan(low) else f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    return f"{100 * gain:+.1f} points ({interval})".replace("-", "−")


def interval(mean: float, low: float, high: float, *, digits: int | None = None) -> str:
    """Return a mean and its 95 % interval, of any unit, as text; without the interval for a single seed.

    With three decimals, or with ``digits`` significant ones.
    """
    shown = [f"{end:.3f}" if digits is None else f"{end:.{digits}g}" for end in (mean, low, high)]
    text = shown[0] if np.isnan(low) else f"{shown[0]} ({shown[1]} to {shown[2]})"
    return text.replace("-", "−")


def network_names(table: pd.DataFrame) -> pd.Series:
    """Return how figures and tables name the network of each row of a table with form, K and β.

    "CE" for β = 0; else β, after the form where several occur, and K where several occur in one form.
    """
    isometric = table[table["beta"] > 0]
    several_forms = isometric["form"].nunique() > 1
    several_K = {form: group["K"].nunique() > 1 for form, group in isometric.groupby("form")}

    def name(form: str, K: float, beta: float) -> str:
        parts = [form] * several_forms + [f"K\u00a0=\u00a0{K:g}"] * several_K.get(form, False)
        return ", ".join([*parts, beta_name(beta)]) if beta else beta_name(beta)

    names = [name(*row) for row in table[["form", "K", "beta"]].itertuples(index=False, name=None)]
    return pd.Series(names, index=table.index, dtype=object)


def short_number(value: float) -> str:
    """Return a positive number in short: 0.1, 100, 10⁶."""
    exponent = round(math.log10(value))
    if abs(exponent) < 4 or not math.isclose(value, 10.0**exponent):
        return f"{value:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


MEASURES = {
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "scale": "best scale",
    "cka": "linear CKA",
    "jacobian_error": "Jacobian error",
    "local_distortion": "local distortion",
    "gromov_wasserstein": "Gromov-Wasserstein",
    "data_loops": "loops in the data",
    "loops": "lasting loops",
    "loop_persistence": "longest loop lasts",
}
"""What tables call a measure whose own name does not say it."""


def measure_table(summary: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return measures over seeds as a table to read: a row per measure and value of ``by``, a column per network.

    Args:
        summary: rows of :func:`isorepro.structure.summary` by ``by``, form, K and beta.
        by: the column that tells the rows of a measure apart, such as "relation".
    """
    rows = summary.assign(
        network=network_names(summary),
        text=[interval(*row) for row in summary[["mean", "low", "high"]].to_numpy()],
        measure=summary["measure"].map(lambda measure: MEASURES.get(measure, measure.replace("_", " "))),
    )
    order = rows[["measure", by]].drop_duplicates()
    wide = rows.pivot(index=["measure", by], columns="network", values="text")
    wide = wide.loc[pd.MultiIndex.from_frame(order), list(rows["network"].drop_duplicates())]
    return wide.reset_index().rename_axis(columns=None)


def effect_table(verdicts: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return the errors and effects of :func:`isorepro.boundary.verdicts` as a table to read.

    Args:
        verdicts: the verdicts.
        titles: dataset → its name in the table.
    """
    texts = {
        name: [interval(*row, digits=2) for row in verdicts[[name, f"{name}_low", f"{name}_high"]].to_numpy()]
        for name in ("near", "far", "delta")
    }
    return pd.DataFrame(
        {
            "network": verdicts["dataset"].map(titles) + ", " + verdicts["beta"].map(beta_name),
            "measure": verdicts["measure"].map(MEASURES),
            "near": texts["near"],
            "far": texts["far"],
            "Cliff's δ": texts["delta"],
        }
    )
