"""What the book says of speed: the measurements that ``make bench`` recorded, as ratios, tables and figures."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isorepro import lineage, paths, plots, stats
from isorepro.errors import DataError
from isorepro.progress import clock
from isorepro.results import Results

RECORD = paths.ROOT / "benchmarks" / "speed.json"
"""What ``make bench`` measured last."""

OURS, RELEASED = "this book", "released design"
"""The two designs of a training loop that are compared."""

WITH_TERM, WITHOUT_TERM = "with the isometry term", "cross-entropy alone"
"""The two trainings that are compared."""

STEP, BY_IMAGES, BY_BATCH = "training step", "training step by images", "training step by batch"
"""Measurements of a training step."""

FGSM_CURVE, PGD_CURVE, AUTOATTACK_CURVE = "FGSM curve", "PGD curve", "AutoAttack curve"
"""Measurements of an attack's curve."""

METHOD_STEP, ADVERSARIAL = "training step by method", "adversarial training"
"""The measurement of other training methods, and one of them."""

TORUS_STEP, BY_PROCESSORS, SMOKE = "torus step", "network by processors", "profile smoke"
"""Measurements of a step on the torus, of trainings in parallel, and of a whole run."""

HOURS = 4
"""Length of an evening."""


@dataclass(frozen=True)
class Comparison:
    """Two ways to do one thing, of which one is this book's.

    Attributes:
        measure: the name it is recorded under.
        thing: what is done, in words.
        other: the other way, as recorded.
        goal: how many times as fast this book should be, at least; None for no goal.
        size: number of images, where several are measured.
        units: how many of the recorded units make one of the things that an evening's figure counts.
        counted: what the evening's figure calls such a thing; none for not counted.
    """

    measure: str
    thing: str
    other: str
    goal: float | None = None
    size: int = 0
    units: int = 1
    counted: str = ""


COMPARISONS = (
    Comparison(STEP, "training step", "bare loop", 1 / 1.1),
    Comparison(
        BY_IMAGES,
        "training step, 10,000 images",
        RELEASED,
        2.5,
        size=10_000,
        units=500,
        counted="networks trained\n(5 epochs of 10,000 images)",
    ),
    Comparison(METHOD_STEP, "training step, local isometry", ADVERSARIAL, 1 / 0.6),
    Comparison(TORUS_STEP, "step of the torus stack", "all distances"),
    Comparison(
        FGSM_CURVE,
        "FGSM curve",
        "foolbox",
        counted="FGSM curves\n(ten radii, 2,000 images)",
    ),
    Comparison(
        PGD_CURVE,
        "PGD curve, 40 steps",
        "foolbox",
        5.0,
        counted="PGD curves\n(ten radii, 2,000 images)",
    ),
    Comparison(
        AUTOATTACK_CURVE,
        "AutoAttack curve",
        "pyautoattack",
        3.0,
        counted="AutoAttack curves\n(seven radii, 50 images)",
    ),
    Comparison(SMOKE, "profile smoke", "one processor"),
)
"""Everything that is compared."""


def load(path: Path = RECORD) -> dict[str, Any]:
    """Return a record of ``benchmarks/speed.py``.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        missing = {"written", "commit", "processor", "processors", "system", "torch", "minutes", "measured"} - {
            *record
        }
        if missing:
            raise ValueError(f"without {', '.join(sorted(missing))}")
    except (OSError, ValueError) as error:
        raise DataError(f"no record of speeds in '{path}' ({error}); make one: make bench") from None
    return record


def as_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return the measurements of a record: measure, way, size, round, seconds (of one unit), and others.

    Others are ``epsilon`` and ``accuracy`` of attacks, ``bytes`` of memory, and ``processor_seconds``; NaN where a
    row has none.
    """
    columns = [
        *("measure", "way", "size", "round", "seconds"),
        *("epsilon", "accuracy", "bytes", "processor_seconds"),
    ]
    return pd.DataFrame(record["measured"]).reindex(columns=columns)


def ratios(measured: pd.DataFrame) -> pd.DataFrame:
    """Compare this book with the other way of each comparison, round by round.

    Args:
        measured: from :func:`as_table`.

    Returns:
        One row per comparison that was measured: thing, other, ours and others (mean seconds), ratio (how many
        times as fast this book is, geometric mean over the rounds), low and high (its 95 % interval; NaN for a
        single round), rounds, goal (NaN for none), and higher (by how much this book's accuracy is above that of
        the other way, at the radius where it is most, in points; NaN for what has none).
    """
    rows = []
    for found in COMPARISONS:
        chosen = measured[(measured["measure"] == found.measure) & measured["way"].isin([OURS, found.other])]
        timed = chosen[chosen["seconds"].notna()]
        if found.size:
            timed = timed[timed["size"] == found.size]
        by_way = timed.pivot_table(index="round", columns="way", values="seconds")
        if OURS not in by_way or found.other not in by_way:
            continue
        mean, low, high = np.exp(stats.seed_interval(np.log(by_way[found.other] / by_way[OURS]).tolist()))
        accuracy = chosen.pivot_table(index="epsilon", columns="way", values="accuracy")
        higher = 100 * (accuracy[OURS] - accuracy[found.other]).max() if len(accuracy) else np.nan
        seconds = by_way[OURS].mean(), by_way[found.other].mean()
        goal = np.nan if found.goal is None else found.goal
        rows.append((found.thing, found.other, *seconds, mean, low, high, len(by_way), goal, higher))
    columns = [
        *("thing", "other", "ours", "others", "ratio", "low", "high", "rounds", "goal", "higher"),
    ]
    return pd.DataFrame(rows, columns=columns)


def ratio_table(compared: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of :func:`ratios` as a table to read."""

    def times(mean: float, low: float, high: float) -> str:
        return f"{mean:.2f}" + ("" if np.isnan(low) else f" ({low:.2f} to {high:.2f})")

    rows = []
    for row in compared.to_dict("records"):
        goal, ratio, higher = row["goal"], row["ratio"], row["higher"]
        met = "" if np.isnan(goal) else f"{'✓' if ratio >= goal else '✗'} ≥ {goal:.2g}"
        accuracy = "" if np.isnan(higher) else f"{higher:+.1f}".replace("-", "−")
        ours, others = (_duration(row[way]) for way in ("ours", "others"))
        beside = f"{row['other']}: {others}"
        rows.append((row["thing"], ours, beside, times(ratio, row["low"], row["high"]), met, accuracy))
    columns = ["what", "time here", "beside", "times as fast", "goal", "points left"]
    return pd.DataFrame(rows, columns=columns)


def _duration(seconds: float) -> str:
    if seconds >= 60:
        return f"{clock(seconds)} min"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def evening(measured: pd.DataFrame, processors: int) -> pd.DataFrame:
    """Count what all processors do in an evening, each thing by one processor.

    Args:
        measured: from :func:`as_table`.
        processors: of the machine.

    Returns:
        One row per counted thing and way: counted, way, mean (how many in :data:`HOURS` hours), low and high (its
        95 % interval over the rounds; NaN for a single one).
    """
    rows = []
    for found in COMPARISONS:
        timed = measured[(measured["measure"] == found.measure) & measured["seconds"].notna()]
        if found.size:
            timed = timed[timed["size"] == found.size]
        if not found.counted or timed.empty:
            continue
        for way in (OURS, found.other):
            counts = processors * HOURS * 3600 / (found.units * timed.loc[timed["way"] == way, "seconds"])
            rows.append((found.counted, way, *np.exp(stats.seed_interval(np.log(counts)))))
    return pd.DataFrame(rows, columns=["counted", "way", "mean", "low", "high"])


def scaling(measured: pd.DataFrame) -> pd.DataFrame:
    """Summarise how times grow: with images and batch for a step, with processors for a network.

    Returns:
        One row per measure, way and size: their columns, mean (seconds), low and high (its 95 % interval over the
        rounds), rounds.
    """
    grown = measured[measured["measure"].isin([BY_IMAGES, BY_BATCH, BY_PROCESSORS])]
    summary = stats.over_seeds(grown.rename(columns={"round": "seed"}), "seconds", ["measure", "way", "size"])
    return summary.rename(columns={"seeds": "rounds"})


def write(draft: Path, record: Path = RECORD) -> None:
    """Write the figures, tables and numbers of the book's page "Speed" to ``results/speed`` of a folder.

    Raises:
        DataError: the record is missing or damaged.
    """
    known = load(record)
    measured = as_table(known)
    shown = Results("speed", draft, hashlib.sha256(record.read_bytes()).hexdigest()[:12])
    compared = ratios(measured)
    grown = scaling(measured)
    bought = evening(measured, known["processors"])
    shown.table("measured", measured)
    shown.table("ratios", compared, ratio_table(compared))
    whole = measured[measured["measure"].str.startswith("profile ")]
    shown.table("profiles", whole, profile_table(whole))
    used = measured[measured["measure"] == "peak memory"]
    shown.table("memory", used, memory_table(used))
    machine = f"{known['processors']} processors ({known['processor']})"
    shown.figure(
        "evening",
        plots.evening,
        bought,
        ours=OURS,
        hours=HOURS,
        data=bought,
        shown=counted_table(bought),
        caption=f"What {HOURS} hours on {machine} buy, each processor at work on one thing at a time. "
        "Filled: the code of this book. Hollow: the way named beside it. The number between them: how many times "
        "as many. Bars: 95 % intervals over repeated measurements, mostly narrower than the points.",
        alt="Rows of two points on a logarithmic axis, one row for each kind of work; the filled point is to the "
        "right of the hollow one in every row where this book does more.",
    )
    shown.figure(
        "scaling",
        plots.scaling,
        grown,
        panels={BY_IMAGES: (OURS, RELEASED), BY_BATCH: (WITH_TERM, WITHOUT_TERM), BY_PROCESSORS: (OURS,)},
        data=grown,
        shown=scaling_table(grown),
        caption="How times grow. Left: a training step (batch of 100) against the number of training images; the "
        "released design looks distances up among those of all pairs. Middle: a step of this book against the "
        "batch, with and without the isometry term, which compares all pairs of a class in it (dotted: growth "
        "with the square). Right: time per network against the processors used (dotted: in proportion). Lines: "
        f"means; bands: 95 % intervals over repeated measurements. One thread in each process; {machine}.",
        alt="Three panels, the first two with logarithmic axes. The released design's step grows with the number "
        "of images; this book's stays level. With the batch both lines grow, the one with the term faster for "
        "large batches. With more processors the time per network falls.",
    )
    steps = grown[(grown["measure"] == BY_IMAGES) & (grown["way"] == OURS)].set_index("size")["mean"]
    numbers: dict[str, float | int | str] = {
        name: known[name] for name in ("commit", "processor", "processors", "system", "torch", "minutes")
    }
    numbers["written"] = known["written"][:10]
    shown.numbers(**numbers, hours=HOURS, flat=float(steps[60_000] / steps[10_000]))
    for name, found in lineage.of_function("speed", "write").items():
        path = shown.folder / f"{name}.html"
        made = lineage.footer(
            {
                "Data": f'<a href="{shown.link}/measured.csv" download>every measurement</a>, written '
                f"{known['written']} by <code>benchmarks/speed.py</code> (<code>make bench</code>)",
                "Library": lineage.library(found.functions),
                "Rounds": f"up to {measured['round'].nunique()}, over which the intervals are",
                "Time": f"{known['minutes']} min for the whole benchmark; a build of the book draws what it left",
            }
        )
        paths.write_atomically(path, lineage.beneath(path.read_text(), made))


def counted_table(bought: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of :func:`evening` as a table to read."""
    return pd.DataFrame(
        {
            "what": bought["counted"].str.replace("\n", " "),
            "way": bought["way"],
            "how many": [f"{mean:,.0f}" for mean in bought["mean"]],
            "95 % interval": [f"{low:,.0f} to {high:,.0f}" for low, high in bought[["low", "high"]].to_numpy()],
        }
    )


def scaling_table(grown: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of :func:`scaling` as a table to read."""
    ends = grown[["low", "high"]].to_numpy()
    return grown[["measure", "way", "size"]].assign(
        **{
            "mean": [_duration(mean) for mean in grown["mean"]],
            "95 % interval": [f"{_duration(low)} to {_duration(high)}" for low, high in ends],
        }
    )


def profile_table(whole: pd.DataFrame) -> pd.DataFrame:
    """Return the whole runs of a record as a table to read: time, processor time and memory of each."""
    again = whole["way"] == "again"
    return pd.DataFrame(
        {
            "profile": whole["measure"].str.removeprefix("profile ") + np.where(again, ", run again", ""),
            "processors": whole["size"].astype(int),
            "time (min:s)": [clock(seconds) for seconds in whole["seconds"]],
            "processor time (min:s)": [
                "–" if repeated else clock(seconds)
                for seconds, repeated in zip(whole["processor_seconds"], again, strict=True)
            ],
            "memory (GB)": [f"{used / 1e9:.2f}" for used in whole["bytes"]],
        }
    )


def memory_table(used: pd.DataFrame) -> pd.DataFrame:
    """Return the peak memory of trainings as a table to read."""
    return pd.DataFrame(
        {
            "way": used["way"],
            "images": [f"{size:,.0f}" for size in used["size"]],
            "peak memory (GB)": [f"{count / 1e9:.2f}" for count in used["bytes"]],
        }
    )
