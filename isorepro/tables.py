"""What figures, tables and sentences call things, and the tables that pages show."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd


def beta_name(beta: float) -> str:
    """Return how figures and tables name a weight: "CE" for β = 0, as in the paper's figures."""
    return f"β\u00a0=\u00a0{short_number(beta)}" if beta else "CE"


def dashed(text: str) -> str:
    """Return text in which numbers that are not defined, which Python formats as "nan", are dashes."""
    return re.sub(r"(?<!\w)[+−-]?(?:nan|<NA>)(?:\s?%)?(?!\w)", "–", text)


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


def points(gain: float, low: float, high: float, *, percent: bool = True) -> str:
    """Return a difference with its 95 % interval: one of shares in points, or of other numbers as it is.

    Without an interval (NaN ends, a single seed) it says so; a difference that is not defined is a dash.
    """
    if np.isnan(gain):
        return "–"
    scale, digits, unit = (100, 1, " points") if percent else (1, 2, "")
    shown = [f"{scale * value:+.{digits}f}" for value in (gain, low, high)]
    interval = "one seed: no interval" if np.isnan(low) else f"95 % interval {shown[1]} to {shown[2]}"
    return f"{shown[0]}{unit} ({interval})".replace("-", "−")


def change(mean: float, low: float, high: float, *, percent: bool = False) -> str:
    """Return a difference in words: "higher by …", "lower by …" or "not measurably different (…)".

    Args:
        mean, low, high: the difference and its 95 % interval; that of a measurable one does not hold 0. Without
            an interval (NaN ends), or a difference (all NaN), the text says so.
        percent: whether the difference is one of shares, told in points.
    """
    scale, digits, unit = (100, 1, " points") if percent else (1, 2, "")
    # Adding 0 takes the sign from a zero that a small negative number was rounded to.
    sizes = [f"{round(scale * value, digits) + 0:.{digits}f}" for value in (abs(mean), low, high)]
    if np.isnan(mean):
        return "not defined for every seed"
    if np.isnan(low):
        return (
            f"{'higher' if mean > 0 else 'lower'} by {sizes[0]}{unit} with a single seed, so without an interval"
        )
    ends = f"95 % interval {sizes[1]} to {sizes[2]}".replace("-", "−")
    if low <= 0 <= high:
        return f"not measurably different ({ends}{unit})"
    return f"{'higher' if mean > 0 else 'lower'} by {sizes[0]}{unit} ({ends})"


def share(mean: float, low: float, high: float) -> str:
    """Return a share in whole percent with its 95 % interval; without the interval for a single seed."""
    text = f"{100 * mean:.0f} %"
    return text if np.isnan(low) else f"{text} (95 % interval {100 * low:.0f} to {100 * high:.0f})"


def effect_texts(effects: pd.DataFrame, *name: str) -> dict[str, str]:
    """Return differences of accuracies as text (:func:`points`), under names for the pages' prose.

    Args:
        effects: rows of mean, low and high, shares in [−1, 1], and the columns in ``name``.
        name: columns whose values, joined by underscores, in lower case, are a difference's name.
    """
    keys = ["_".join(map(str, key)).lower().replace(" ", "_") for key in effects[list(name)].to_numpy()]
    texts = [points(*ends) for ends in effects[["mean", "low", "high"]].to_numpy()]
    return dict(zip(keys, texts, strict=True))


def effects_table(effects: pd.DataFrame, row: str, column: str) -> pd.DataFrame:
    """Return differences of accuracies as a table to read, in points with their 95 % intervals, if they have one.

    Args:
        effects: rows of mean, low and high, shares in [−1, 1], and the columns named next.
        row, column: columns of which each value has a row, or a column, in order of appearance.
    """
    texts = [_signed_points(*row) for row in effects[["mean", "low", "high"]].to_numpy()]
    wide = effects.assign(text=texts).pivot(index=row, columns=column, values="text")
    wide = wide.loc[list(effects[row].drop_duplicates()), list(effects[column].drop_duplicates())]
    return wide.rename_axis(columns=None).reset_index()


def _signed_points(mean: float, low: float, high: float) -> str:
    """Return a difference of shares in points, without the unit, with its 95 % interval if it has one."""
    ends = "" if np.isnan(low) else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * mean:+.1f}{ends}".replace("-", "−")


def share_table(summary: pd.DataFrame, row: str, column: str) -> pd.DataFrame:
    """Return shares over seeds as a table to read, in percent with their 95 % intervals, if they have one.

    Args:
        summary: rows of mean, low and high, in [0, 1], and the columns named next.
        row, column: as for :func:`effects_table`.
    """
    texts = [percent(*ends) for ends in summary[["mean", "low", "high"]].to_numpy()]
    wide = summary.assign(text=texts).pivot(index=row, columns=column, values="text")
    wide = wide.loc[list(summary[row].drop_duplicates()), list(summary[column].drop_duplicates())]
    return wide.rename_axis(columns=None).reset_index()


def failure_texts(failures: pd.DataFrame) -> dict[str, str]:
    """Return, as a sentence each, how many networks the released attacks leave above chance where nothing can be.

    Args:
        failures: rows of :func:`isorepro.robustness.attack_failures`.

    Returns:
        ``above_chance_fgsm`` and ``above_chance_pgd``; the sentence says so where no radius was large enough.
    """
    columns = ["protocol", "attack", "networks", "failed"]
    told = {
        attack: f"At the largest radius {failed} of {networks} networks are right more often than by chance, "
        "which no classifier can be there."
        for protocol, attack, networks, failed in failures[columns].itertuples(index=False, name=None)
        if protocol == "as released"
    }
    names = {"above_chance_fgsm": "FGSM", "above_chance_pgd": "one-gradient PGD"}
    small = "No radius of this run is so large that no classifier can beat chance."
    return {name: told.get(attack, small) for name, attack in names.items()}


def level_spaces(table: pd.DataFrame) -> pd.DataFrame:
    """Return the points of :func:`isorepro.stacks.level_spaces`, the inputs once, with the title of their space.

    Args:
        table: rows with the networks' ``beta`` and ``seed``, one seed.

    Returns:
        Rows of space ("data" or the network, and the level), piece (as text, in order), the two angles, x, y, z,
        beta and level.
    """
    inputs = table[(table["level"] == 0) & (table["beta"] == table["beta"].min())]
    levels = table[table["level"] > 0].sort_values(["beta", "level"], kind="stable")
    points = pd.concat([inputs, levels], ignore_index=True)
    owner = [beta_name(beta) if level else "Data" for beta, level in points[["beta", "level"]].to_numpy()]
    points = points.assign(space=[f"{name}, level {of}" for name, of in zip(owner, points["of"], strict=True)])
    order = dict.fromkeys(points["space"])
    place = points["space"].map(list(order).index)
    points = points.assign(place=place).sort_values(["place", "piece"], kind="stable", ignore_index=True)
    names = {"angle": "angle around the axis", "angle_2": "angle around the tube"}
    titled: pd.DataFrame = points.drop(columns="place").rename(columns=names)
    return titled.assign(piece=titled["piece"].astype(str))


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


def measure_table(summary: pd.DataFrame, by: str | Sequence[str]) -> pd.DataFrame:
    """Return measures over seeds as a table to read: a row per measure and value of ``by``, a column per network.

    Args:
        summary: rows of :func:`isorepro.structure.summary` by ``by``, form, K and beta.
        by: the column or columns that tell the rows of a measure apart, such as "relation".
    """
    by = [by] if isinstance(by, str) else list(by)
    rows = summary.assign(
        network=network_names(summary),
        text=[interval(*row) for row in summary[["mean", "low", "high"]].to_numpy()],
        measure=summary["measure"].map(lambda measure: MEASURES.get(measure, measure.replace("_", " "))),
    )
    order = rows[["measure", *by]].drop_duplicates()
    wide = rows.pivot(index=["measure", *by], columns="network", values="text")
    wide = wide.loc[pd.MultiIndex.from_frame(order), list(rows["network"].drop_duplicates())]
    return wide.reset_index().rename_axis(columns=None)


def piece_planes(table: pd.DataFrame) -> pd.DataFrame:
    """Return rows of :func:`isorepro.stacks.piece_planes`, the inputs once, with ``space`` and ``class`` to draw.

    Args:
        table: rows with the networks' ``beta`` and ``seed``, one seed.
    """
    kept = table[table["mapped"] | (table["beta"] == table["beta"].min())]
    kept = kept.sort_values(["mapped", "beta", "level"], kind="stable", ignore_index=True)
    titled: pd.DataFrame = kept.assign(
        space=[beta_name(beta) if mapped else "data" for beta, mapped in kept[["beta", "mapped"]].to_numpy()]
    )
    return titled.assign(**{"class": [f"level {level}, piece 1" for level in titled["level"]]})


def training_frames(table: pd.DataFrame) -> pd.DataFrame:
    """Return the points of :func:`isorepro.dynamics.frames` with the title of their space and its state in words.

    Args:
        table: rows with the networks' ``form``, ``K``, ``beta`` and ``seed``, one seed.

    Returns:
        The rows, those of one network after the other, with space and state.
    """
    numbers = zip(table["accuracy"], table["spearman"], table["stress"], strict=True)
    states = [f"accuracy {a:.1%}, correlation {s:.2f}, stress {t:.2f}" for a, s, t in numbers]
    states = [dashed(state.replace("-", "−").replace("%", "\u00a0%")) for state in states]
    return table.assign(space=network_names(table), state=states)


def training_states(table: pd.DataFrame) -> pd.DataFrame:
    """Return the states in rows of :func:`training_frames` as a table to read: a row per epoch and network."""
    rows = table.drop_duplicates(["epoch", "space"]).sort_values("epoch", kind="stable")
    return pd.DataFrame(
        {
            "epoch": [f"{epoch:,}" for epoch in rows["epoch"]],
            "network": rows["space"],
            "accuracy": [f"{value:.1%}" for value in rows["accuracy"]],
            "Spearman correlation": [f"{value:.3f}".replace("-", "−") for value in rows["spearman"]],
            "stress": [f"{value:.3f}" for value in rows["stress"]],
            "variance shown": [f"{value:.0%}" for value in rows["share"]],
        }
    )


def levels_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Return measures of stacks as a table to read: a row per points, measure and level, a column per network.

    Args:
        summary: rows of :func:`isorepro.structure.summary` by points, form, K, beta and level.
    """
    wanted = ("accuracy", "spearman", "stress", "scaled_stress", "scale")
    table = measure_table(summary[summary["measure"].isin(wanted)], ["points", "level"])
    return table[["points", "measure", "level", *table.columns.drop(["points", "measure", "level"])]]


def verdict_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return rows of :func:`isorepro.stacks.cut_verdicts` as a table to read."""
    return pd.DataFrame(
        {
            "points": verdicts["points"],
            "network": verdicts["beta"].map(beta_name),
            "levels cut": [f"{cut} of {levels}" for cut, levels in verdicts[["cut", "levels"]].to_numpy()],
            "cut and kept": [f"{kept} of {levels}" for kept, levels in verdicts[["kept", "levels"]].to_numpy()],
            "claim C3": verdicts["verdict"],
        }
    )


def readout_effect_table(effects: pd.DataFrame) -> pd.DataFrame:
    """Return rows of :func:`isorepro.stacks.readout_effects` as a table to read: a column per network."""
    rows = effects.assign(
        network="stack − flat, " + effects["beta"].map(beta_name),
        text=[interval(*row) for row in effects[["mean", "low", "high"]].to_numpy()],
        measure=effects["measure"].map(lambda measure: MEASURES.get(measure, measure.replace("_", " "))),
    )
    order = rows[["measure", "level"]].drop_duplicates()
    wide = rows.pivot(index=["measure", "level"], columns="network", values="text")
    wide = wide.loc[pd.MultiIndex.from_frame(order), list(rows["network"].drop_duplicates())]
    return wide.reset_index().rename_axis(columns=None)


def tree_effect_table(effects: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return rows of :func:`isorepro.stacks.tree_effects` as a table to read: a row per attack and tree.

    Args:
        effects: the effects of one β.
        titles: measure → the name of its column, in their order.
    """
    rows = effects[effects["measure"].isin(titles)]
    rows = rows.assign(
        attack=[
            f"{attack}, {protocol}" if epsilon else attack
            for attack, protocol, epsilon in rows[["attack", "protocol", "epsilon"]].to_numpy()
        ],
        title=rows["measure"].map(titles),
        text=[
            f"{mean:.2f} ({low:.2f} to {high:.2f})".replace("-", "−").replace(" (nan to nan)", "")
            for mean, low, high in rows[["mean", "low", "high"]].to_numpy()
        ],
    )
    rows = rows.sort_values(["epsilon", "protocol"], kind="stable").drop_duplicates(["attack", "measure", "tree"])
    names = rows["attack"].drop_duplicates().tolist()
    order = pd.MultiIndex.from_product([names, ["given", "learnt", "random"]], names=["attack", "tree"])
    wide = rows.pivot(index=["attack", "tree"], columns="title", values="text").loc[order]
    return wide[list(titles.values())].rename_axis(columns=None).reset_index()


def variant_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracies of variants as a table to read, in percent: a row each.

    Args:
        summary: rows of :func:`isorepro.stats.over_seeds` by variant, level, protocol, attack and epsilon.
    """
    finest = summary["level"].max()
    columns: dict[str, pd.Series] = {}
    clean = summary[(summary["epsilon"] == 0) & (summary["protocol"] == "corrected")]
    for level, rows in clean.groupby("level"):
        columns[f"level {level}"] = rows.set_index("variant")["mean"]
    named = summary[["protocol", "attack"]].apply(tuple, axis=1)
    shown = named.isin([("as released", "FGSM"), ("corrected", "PGD")])
    attacked = summary[shown & (summary["level"] == finest)]
    for (protocol, attack), rows in attacked.groupby(["protocol", "attack"], sort=False):
        texts = [percent(*row) for row in rows[["mean", "low", "high"]].to_numpy()]
        columns[f"{attack}, {protocol}"] = pd.Series(texts, index=rows["variant"], dtype=object)
    table = pd.DataFrame(columns)
    table = table.map(lambda value: value if isinstance(value, str) else f"{100 * value:.1f}")
    return table.loc[list(summary["variant"].drop_duplicates())].rename_axis("variant").reset_index()


def percent(mean: float, low: float, high: float) -> str:
    """Return a share in percent, without the sign, and its 95 % interval in whole ones, if it has one."""
    text = f"{100 * mean:.1f}"
    return text if np.isnan(low) else f"{text} ({100 * low:.0f} to {100 * high:.0f})"


def gradient_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Return rows of :func:`isorepro.stacks.gradient_sums` over seeds as a table to read, in percent.

    Args:
        summary: rows of :func:`isorepro.structure.summary` by beta and level.
    """
    titles = {
        "clean": "no attack",
        "summed": "gradients summed",
        "single": "the level's own",
        "agreement": "equal signs",
    }
    rows = summary.assign(
        text=[percent(*row) for row in summary[["mean", "low", "high"]].to_numpy()],
        network=summary["beta"].map(beta_name),
    )
    order = rows[["network", "level"]].drop_duplicates()
    wide = rows.pivot(index=["network", "level"], columns="measure", values="text")
    wide = wide.loc[pd.MultiIndex.from_frame(order), list(titles)].rename(columns=titles)
    return wide.rename_axis(columns=None).reset_index()


def check_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Return checks of attacks as a table to read: a row per check, a column per protocol, and what is allowed.

    Args:
        summary: rows of :func:`isorepro.health.summary`.
    """
    counts = [f"{passed} of {all_}" for passed, all_ in summary[["passed", "networks"]].to_numpy()]
    texts = [
        f"✓ {count}" if passed == networks else f"✗ {count} ({_measured(check, worst)})"
        for count, passed, networks, check, worst in zip(
            counts, summary["passed"], summary["networks"], summary["check"], summary["worst"], strict=True
        )
    ]
    wide = summary.assign(text=texts).pivot(index="check", columns="protocol", values="text")
    wide = wide.loc[list(dict.fromkeys(summary["check"])), list(dict.fromkeys(summary["protocol"]))]
    least = summary.groupby("check", sort=False)["threshold"].min()
    allowed = pd.Series(
        {check: f"≤ {_measured(check, value)}" if value > 0 else "none" for check, value in least.items()}
    )
    return wide.assign(allowed=allowed).rename_axis(columns=None).reset_index()


def check_counts(summary: pd.DataFrame) -> dict[str, int]:
    """Count the checks and, for each protocol, those that some network fails, under names for the pages' prose.

    Args:
        summary: rows of :func:`isorepro.health.summary`.

    Returns:
        ``checks``, ``failed_released`` and ``failed_corrected``.
    """
    failed = summary[summary["passed"] < summary["networks"]].groupby("protocol").size()
    names = {"failed_released": "as released", "failed_corrected": "corrected"}
    return {"checks": summary["check"].nunique()} | {
        name: int(failed.get(protocol, 0)) for name, protocol in names.items()
    }


def _measured(check: object, value: float) -> str:
    """Return what a check measured, or allows, with its unit."""
    if check == "gradients at the moved point":
        return f"{value:.1f} steps"
    if check in ("inside the ball", "inside the range"):
        return f"{value:.1g}" if value < 1e-3 else f"{value:.2f}"
    if str(check).startswith("no zero gradients"):
        return f"{value:.0%} of images"
    return f"{100 * value:.1f} points" if check != "chance at ε = 0.5" else f"{value:.1%}"


def stage_table(stages: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies under attacks of growing strength as a table to read: a row per network and attack.

    Args:
        stages: rows of network and stage with mean, low, high (shares) and difference, difference_low,
            difference_high (to cross-entropy, NaN for itself).
    """
    gains = stages[["difference", "difference_low", "difference_high"]].to_numpy()
    return pd.DataFrame(
        {
            "network": stages["network"],
            "attack": stages["stage"],
            "rate, %": [percent(*row) for row in stages[["mean", "low", "high"]].to_numpy()],
            "points above CE": ["–" if np.isnan(row[0]) else _signed_points(*row) for row in gains],
        }
    )


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


def tried_table(tried: pd.DataFrame) -> pd.DataFrame:
    """Return the settings of :func:`isorepro.comparison.choose` as a table, the most robust family first."""
    best = tried.groupby("family")["robust"].transform("max")
    rows = tried.assign(best=best).sort_values(
        ["best", "family", "robust"], ascending=[False, True, False], kind="stable"
    )
    outcome = np.select([rows["chosen"], ~rows["eligible"]], ["chosen", "costs too much accuracy"], "less robust")
    return pd.DataFrame(
        {
            "setting": rows["setting"],
            "without attack": [f"{value:.2%}" for value in rows["clean"]],
            "under PGD": [f"{value:.1%}" for value in rows["robust"]],
            "processor time": [f"{value:.1f} s" for value in rows["processor_seconds"]],
            "outcome": outcome,
        }
    )


def overview_table(spread: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return an overview of methods as a table: a row per setting, a column per measure, with 95 % intervals.

    Args:
        spread: rows of :func:`isorepro.stats.over_seeds` by setting and measure.
        titles: the measures shown → the titles of their columns.
    """
    shown = spread[spread["measure"].isin(list(titles))]
    texts = [
        percent(*ends) if measure in ("clean", "robust") else interval(*ends)
        for measure, *ends in shown[["measure", "mean", "low", "high"]].to_numpy()
    ]
    wide = shown.assign(text=texts).pivot(index="setting", columns="measure", values="text")
    wide = wide.loc[list(shown["setting"].drop_duplicates()), list(titles)].rename(columns=titles)
    return wide.rename_axis(columns=None, index="method").reset_index()
