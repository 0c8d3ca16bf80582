"""Ratios against a slow computation, figures, and records that are missing or damaged."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from isorepro import plots, speed
from isorepro.errors import DataError
from isorepro.speed import OURS, RELEASED, WITH_TERM, WITHOUT_TERM
from isorepro.style import house_style

SECONDS = {
    (speed.STEP, "bare loop"): 0.9,
    (speed.BY_IMAGES, RELEASED): 3.0,
    (speed.TORUS_STEP, "all distances"): 5.0,
    (speed.FGSM_CURVE, "foolbox"): 2.0,
    (speed.PGD_CURVE, "foolbox"): 6.0,
    (speed.AUTOATTACK_CURVE, "pyautoattack"): 2.5,
    (speed.METHOD_STEP, speed.ADVERSARIAL): 1.7,
}


def rows(measure: str, way: str, seconds: float, *, size: int = 0, rounds: int = 4) -> list[dict[str, Any]]:
    noise = random.Random(f"{measure} {way} {size}")
    return [
        {"measure": measure, "way": way, "size": size, "round": k, "seconds": seconds * noise.uniform(0.9, 1.1)}
        for k in range(rounds)
    ]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A record as the benchmark writes it, of made-up seconds."""
    measured = []
    for (measure, other), seconds in SECONDS.items():
        for size in (5_000, 10_000) if measure == speed.BY_IMAGES else (0,):
            measured += rows(measure, OURS, 1e-3, size=size) + rows(measure, other, 1e-3 * seconds, size=size)
    measured += rows(speed.BY_IMAGES, OURS, 1.5e-3, size=60_000)
    for size in (50, 100, 1600):
        measured += rows(speed.BY_BATCH, WITH_TERM, 1e-5 * size**1.5, size=size)
        measured += rows(speed.BY_BATCH, WITHOUT_TERM, 1e-5 * size, size=size)
    for jobs in (1, 2):
        measured += rows(speed.BY_PROCESSORS, OURS, 3.0 / jobs, size=jobs, rounds=2)
    for way, accuracies in {OURS: (0.91, 0.40), "foolbox": (0.90, 0.45)}.items():
        measured += [
            {"measure": speed.PGD_CURVE, "way": way, "epsilon": epsilon, "accuracy": accuracy}
            for epsilon, accuracy in zip((0.01, 0.1), accuracies, strict=True)
        ]
    for way, jobs, seconds in (("one processor", 1, 150.0), (OURS, 2, 95.0), ("again", 2, 2.5)):
        known = {"processor_seconds": 151.0, "bytes": 9e8}
        measured += [row | known for row in rows(speed.SMOKE, way, seconds, size=jobs, rounds=1)]
    measured.append({"measure": "peak memory", "way": OURS, "size": 60_000, "round": 0, "bytes": 2 * 10**9})
    path = tmp_path / "speed.json"
    names = ("written", "commit", "processor", "system", "torch")
    path.write_text(
        json.dumps(dict.fromkeys(names, "as told") | {"processors": 2, "minutes": 3.5, "measured": measured})
    )
    return path


def test_a_ratio_is_the_geometric_mean_over_rounds_in_turn(record: Path) -> None:
    measured = speed.as_table(speed.load(record))
    found = speed.ratios(measured).set_index("thing")
    assert len(found) == len(speed.COMPARISONS)
    for comparison in speed.COMPARISONS:
        logs = []
        for number in range(4):
            both = [
                row["seconds"]
                for way in (comparison.other, OURS)
                for row in measured.to_dict("records")
                if (row["measure"], row["way"], row["round"]) == (comparison.measure, way, number)
                and row["size"] in ((comparison.size,) if comparison.size else (0, 1, 2))
            ]
            logs += [math.log(both[0] / both[1])] if both else []
        row = found.loc[comparison.thing]
        assert row["ratio"] == pytest.approx(math.exp(sum(logs) / len(logs)))
        assert row["rounds"] == len(logs)
        if len(logs) == 1:
            assert np.isnan(row["low"])
            continue
        ends = stats.t.interval(0.95, len(logs) - 1, np.mean(logs), stats.sem(logs))
        assert (row["low"], row["high"]) == pytest.approx(tuple(np.exp(ends)))
    # Of the radii the one where most more images stand; the other way round does not make up for it.
    assert found.loc["PGD curve, 40 steps", "higher"] == pytest.approx(1.0)
    assert found["higher"].notna().sum() == 1


def test_goals_are_told_as_met_or_missed(record: Path) -> None:
    told = speed.ratio_table(speed.ratios(speed.as_table(speed.load(record)))).set_index("what")["goal"]
    assert told["PGD curve, 40 steps"] == "✓ ≥ 5"
    assert told["AutoAttack curve"] == "✗ ≥ 3"
    assert told["step of the torus stack"] == ""


def test_an_evening_counts_what_all_processors_do(record: Path) -> None:
    measured = speed.as_table(speed.load(record))
    tables = [speed.evening(measured, count).set_index(["counted", "way"])["mean"] for count in (1, 4)]
    assert (tables[1] / tables[0]).tolist() == pytest.approx([4.0] * len(tables[0]))
    one = tables[0].to_dict()
    seconds = measured[(measured["measure"] == speed.PGD_CURVE) & (measured["way"] == "foolbox")]["seconds"]
    assert one["PGD curves\n(ten radii, 2,000 images)", "foolbox"] == pytest.approx(
        speed.HOURS * 3600 / math.exp(np.log(seconds.dropna()).mean())
    )
    steps = measured[(measured["measure"] == speed.BY_IMAGES) & (measured["size"] == 10_000)]
    logs = np.log(steps.loc[steps["way"] == OURS, "seconds"]).mean()
    networks = one["networks trained\n(5 epochs of 10,000 images)", OURS]
    assert networks == pytest.approx(speed.HOURS * 3600 / (5 * 100 * math.exp(logs)))


def test_the_page_gets_figures_tables_and_numbers(record: Path, tmp_path: Path) -> None:
    speed.write(tmp_path, record)
    made = tmp_path / "results" / "speed"
    for figure in ("evening", "scaling"):
        assert {path.suffix for path in made.glob(f"{figure}.*")} == {".svg", ".png", ".csv", ".html"}
    for table in ("ratios", "memory", "profiles"):
        assert "<table" in (made / f"{table}.html").read_text()
    numbers = json.loads((made / "numbers.json").read_text())
    steps = speed.as_table(speed.load(record)).query("measure == @speed.BY_IMAGES and way == @OURS")
    means = [steps.loc[steps["size"] == size, "seconds"].mean() for size in (60_000, 10_000)]
    assert numbers["flat"] == pytest.approx(means[0] / means[1])
    # The record is known by its contents.
    (identity,) = set(pd.read_csv(made / "measured.csv")["run"].astype(str))
    assert f"isorepro run {identity}" in (made / "evening.svg").read_text()
    record.write_text(record.read_text().replace("3.5", "3.6"))
    speed.write(tmp_path / "other", record)
    assert identity not in (tmp_path / "other/results/speed/measured.csv").read_text()


@pytest.mark.parametrize("narrow", [False, True])
def test_the_figures_show_every_measurement(record: Path, narrow: bool) -> None:
    measured = speed.as_table(speed.load(record))
    bought, grown = speed.evening(measured, 2), speed.scaling(measured)
    with house_style():
        figure = plots.evening(bought, ours=OURS, hours=4, narrow=narrow)
        (axes,) = figure.axes
        drawn = {line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"}
        assert drawn == set(bought["mean"])
        texts = {text.get_text() for text in axes.texts}
        for _, rows_of_thing in bought.groupby("counted"):
            here, there = (rows_of_thing.set_index("way")["mean"][way] for way in rows_of_thing["way"])
            assert {f"{here / there:.1f} ×", f"{here:,.0f}"} <= texts
        assert {"foolbox", "pyautoattack", RELEASED} <= texts
        panels = {
            speed.BY_IMAGES: (OURS, RELEASED),
            speed.BY_BATCH: (WITH_TERM, WITHOUT_TERM),
            speed.BY_PROCESSORS: (OURS,),
        }
        figure = plots.scaling(grown, panels=panels, narrow=narrow)
        for axes, (measure, ways) in zip(figure.axes, panels.items(), strict=True):
            for way in ways:
                line = next(line for line in axes.lines if line.get_label() == way)
                expected = grown[(grown["measure"] == measure) & (grown["way"] == way)]
                assert line.get_xdata().tolist() == expected["size"].tolist()
                scale = 1 if measure == speed.BY_PROCESSORS else 1000
                assert line.get_ydata().tolist() == pytest.approx((scale * expected["mean"]).tolist())


@pytest.mark.parametrize(
    ("content", "fault"),
    [(None, "No such file"), ("{", "Expecting"), ('{"measured": []}', "without commit, minutes, processor")],
)
def test_a_missing_or_damaged_record_is_told_in_one_line(tmp_path: Path, content: str | None, fault: str) -> None:
    path = tmp_path / "speed.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=fault) as caught:
        speed.load(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("make one: make bench")
    assert "\n" not in str(caught.value)
