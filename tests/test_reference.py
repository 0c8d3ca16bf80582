import itertools
import json
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from isorepro import paths, profiles, reference, runner
from isorepro.errors import DataError, InputError
from isorepro.results import Results

SEEDS = range(5)


def curves(spread: float = 0.02, seeds: range = SEEDS, draw: int = 0) -> pd.DataFrame:
    """A table as of robust accuracies, every setting drawn with its own spread."""
    rng = np.random.default_rng(draw)
    rows = [
        (beta, seed, attack, epsilon, 0.9 - epsilon + spread * (1 + 9 * beta) * rng.standard_normal(), 10_000)
        for beta, seed, attack, epsilon in itertools.product(
            np.linspace(0, 1, 8).tolist(), seeds, ["FGSM", "PGD"], [0.0774, 0.2154, 0.5]
        )
    ]
    return pd.DataFrame(rows, columns=["beta", "seed", "attack", "epsilon", "accuracy", "images"])


def one(values: list[float], **columns: float | str) -> pd.DataFrame:
    """A table of one measure."""
    return pd.DataFrame({"seed": range(len(values)), **columns, "value": [float(value) for value in values]})


def verdicts(known: pd.DataFrame, run: pd.DataFrame) -> list[str]:
    found: list[str] = reference.compare_tables(known, run)["verdict"].tolist()
    return found


@pytest.mark.parametrize(
    ("table", "measured"),
    [
        ("mnist_robustness/curves", ["accuracy"]),
        ("mnist_hierarchy/curves", ["accuracy"]),
        ("mnist_hierarchy/measures", ["value"]),
        ("mnist_hierarchy/tree_distances", ["value"]),
        ("mnist_structure/measures", ["value", "error"]),
        ("rings/measures", ["value", "error"]),
        ("rings/topology", ["value"]),
        ("torus/measures", ["value"]),
        ("torus/phase", ["value"]),
        ("torus/readouts", ["value"]),
        (
            "decision_boundary/comparison",
            ["near", "far", "near_distance", "far_distance", "delta", "spearman"],
        ),
    ],
)
def test_settings_and_measured_columns_of_the_real_tables_are_told_apart(table: str, measured: list[str]) -> None:
    data = pd.read_csv(reference.REFERENCE / "smoke" / f"{table}_by_seed.csv")
    keys = reference.settings(data)
    assert [name for name in data if name not in keys] == measured
    assert "seed" in keys
    # Together they name every row.
    assert not data[keys].duplicated().any()


def test_published_numbers_are_those_of_their_manifest_and_small() -> None:
    assert "smoke" in reference.published()
    for profile in reference.published():
        folder = reference.REFERENCE / profile
        told = reference.manifest(folder)
        assert told["profile"] == profile
        assert not told["uncommitted_changes"]
        assert not told["overrides"]
        compared = reference.compare(reference_as_run(folder), folder)
        assert (compared["verdict"] == reference.IDENTICAL).all()
        size = sum(path.stat().st_size for path in folder.rglob("*"))
        assert size < (400_000 if profile == "smoke" else 3_000_000)
        tables = {path.relative_to(folder).as_posix() for path in folder.glob("*/*.csv")}
        assert tables == set(told["tables"])


def reference_as_run(folder: Path) -> Path:
    """A run that gives the numbers of a reference again, as links."""
    run = paths.output() / f"again-{folder.name}"
    run.mkdir(exist_ok=True)
    (run / "results").unlink(missing_ok=True)
    (run / "results").symlink_to(folder)
    return run


def test_means_and_tolerances_equal_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "NEIGHBOURS", 3)
    known, run = curves(), curves(seeds=range(3), draw=1)
    compared = reference.compare_tables(known, run).set_index("measure")
    groups: dict[tuple[str, float], dict[float, list[float]]] = {}
    for row in known.to_dict("records"):
        betas = groups.setdefault((row["attack"], row["epsilon"]), {})
        betas.setdefault(row["beta"], []).append(row["accuracy"])
    for (attack, epsilon), betas in groups.items():
        order = sorted(betas, key=lambda beta: statistics.mean(betas[beta]))
        for place, beta in enumerate(order):
            near = [statistics.variance(betas[other]) for other in order[max(place - 1, 0) : place + 2]]
            own = statistics.stdev(betas[beta])
            most = own * math.sqrt(4 / stats.chi2(4).ppf(0.01))
            expected = 4 * min(max(own, math.sqrt(statistics.mean(near))), most)
            row = compared.loc[f"beta {beta:.9g}, {attack}, epsilon {epsilon:.9g}: accuracy"]
            assert row["tolerance"] == pytest.approx(expected)
            mine = run[(run["attack"] == attack) & (run["epsilon"] == epsilon) & (run["beta"] == beta)]
            assert row["reference"] == pytest.approx(statistics.mean(betas[beta]))
            assert row["run"] == pytest.approx(statistics.mean(mine["accuracy"]))
            assert row["difference"] == pytest.approx(row["run"] - row["reference"])
    assert len(compared) == sum(len(betas) for betas in groups.values()) == 48


def test_other_seeds_stay_within_and_a_shift_by_a_few_deviations_is_caught() -> None:
    known = curves()
    honest = [verdicts(known, curves(draw=draw)) for draw in range(1, 11)]
    assert sum(found.count(reference.MOVED) for found in honest) <= 1  # of 480
    hit = (known["attack"] == "PGD") & (known["epsilon"] == 0.0774) & (known["beta"] == 1.0)
    deviation = known.loc[hit, "accuracy"].std()
    for shift in (-5 * deviation, 5 * deviation):
        wrong = known.assign(accuracy=known["accuracy"] + shift * hit)
        compared = reference.compare_tables(known, wrong)
        moved = compared[compared["verdict"] == reference.MOVED]
        assert moved["measure"].tolist() == ["beta 1, PGD, epsilon 0.0774: accuracy"]
        assert moved["difference"].item() == pytest.approx(shift)
    # One wrong number of one seed does not widen the tolerance that it is held against.
    wrong = known.assign(accuracy=known["accuracy"] + 25 * deviation * (hit & (known["seed"] == 3)))
    assert verdicts(known, wrong).count(reference.MOVED) == 1


def test_a_measure_that_hardly_spreads_is_not_judged_by_what_spreads_much() -> None:
    tight = one([0.999, 0.9991, 0.9990, 0.9989, 0.9990], beta=1.0)
    wide = pd.concat([one([0.3, 0.9, 0.5, 0.1, 0.7], beta=beta) for beta in (0.0, 2.0, 3.0)])
    known = pd.concat([tight, wide])
    moved = known.assign(value=known["value"] - 0.01 * (known["beta"] == 1.0))
    assert verdicts(known, moved) == [reference.MOVED, *[reference.IDENTICAL] * 3]


PHASE = ["form", "beta", "K", "attack"]
ALIKE = ("raw", 19.306977, 1.930698, "FGSM")


def paper(table: str) -> pd.DataFrame:
    return pd.read_csv(reference.REFERENCE / f"paper/{table}_by_seed.csv")


@pytest.mark.parametrize("run", [0.9128, 0.8])
def test_two_seeds_that_are_alike_by_luck_are_judged_by_comparable_networks(run: float) -> None:
    table = paper("torus/phase")
    alike = (table[PHASE] == ALIKE).all(axis=1)
    assert alike.sum() == 2
    known, again = (table.assign(value=table["value"].mask(alike, value)) for value in (0.9075, run))
    compared = reference.compare_tables(known, again).query("verdict != 'identical'")
    assert compared["verdict"].tolist() == [reference.WITHIN if run > 0.9 else reference.MOVED]


@pytest.mark.parametrize(("level", "verdict"), [(0.9, reference.MOVED), (0.4, reference.WITHIN)])
def test_networks_that_all_train_are_not_judged_by_those_at_an_unstable_edge(level: float, verdict: str) -> None:
    # Two seeds of each network; those of low accuracy spread ten times as much. Two of one are alike by luck.
    levels = np.linspace(0.3, 0.95, 60)
    spreads = np.where(levels > 0.65, 0.01, 0.1)
    measures = [one([a - s, a + s], beta=float(n)) for n, (a, s) in enumerate(zip(levels, spreads, strict=True))]
    number = int(np.abs(levels - level).argmin())
    measures[number]["value"] = level
    known = pd.concat(measures)
    run = known.assign(value=known["value"] + 0.2 * (known["beta"] == number))
    expected = [reference.IDENTICAL] * 60
    expected[number] = verdict
    assert verdicts(known, run) == expected


def phase_map(draw: int) -> pd.DataFrame:
    """Accuracies on 1,600 images of two seeds of 64 networks; the worse, the more they spread."""
    levels = np.linspace(0.2, 0.95, 64)
    drawn = np.random.default_rng(draw).normal(levels, 0.005 + 0.1 * (1 - levels), (2, 64)).T
    rounded = np.round(drawn * 1600) / 1600
    return pd.concat([one(seeds.tolist(), beta=float(n), attack="PGD") for n, seeds in enumerate(rounded)])


def test_hardly_any_network_of_an_honest_run_moves_even_if_none_is_the_same_again() -> None:
    found = [verdict for draw in range(0, 80, 2) for verdict in verdicts(phase_map(draw), phase_map(draw + 1))]
    assert 300 * found.count(reference.MOVED) < len(found) == 2560


def next_of(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A mistake that takes each value of a setting for the one after it."""

    def mistake(table: pd.DataFrame) -> pd.DataFrame:
        values = sorted(set(table[name]))
        return table.assign(**{name: table[name].map(dict(itertools.pairwise(values)))}).dropna(subset=name)

    return mistake


def attack_nothing(table: pd.DataFrame) -> pd.DataFrame:
    """The mildest mistake in the sign of an attack: no image is lost."""
    network = ["form", "beta", "K", "seed", "level"]
    clean = table[table["attack"] == "no attack"].groupby(network)["accuracy"].mean().rename("clean")
    return table.assign(accuracy=table.join(clean, on=network)["clean"])


def two_points_less(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(accuracy=table["accuracy"] - 0.02)


@pytest.mark.parametrize(
    ("table", "mistake", "least"),
    [
        ("mnist_robustness/curves", attack_nothing, 250),
        ("mnist_robustness/curves", next_of("epsilon"), 100),
        ("mnist_robustness/curves", next_of("beta"), 38),
        ("mnist_robustness/curves", two_points_less, 65),
        ("beyond_corruptions/accuracies", two_points_less, 100),
        ("mnist_structure/measures", next_of("beta"), 80),
        ("torus/phase", next_of("beta"), 20),
        ("torus/phase", next_of("K"), 45),
        ("torus/measures", next_of("beta"), 40),
    ],
)
def test_numbers_that_are_really_wrong_are_caught(
    table: str, mistake: Callable[[pd.DataFrame], pd.DataFrame], least: int
) -> None:
    known = paper(table)
    assert verdicts(known, mistake(known)).count(reference.MOVED) >= least


@pytest.mark.parametrize(
    ("known", "run", "verdict"),
    [
        ([math.nan] * 3, [math.nan] * 3, reference.IDENTICAL),
        ([math.nan] * 3, [0.5] * 3, reference.MOVED),
        ([0.5] * 3, [math.nan] * 3, reference.MOVED),
        # Seeds without spread: the last digits may differ, and no more.
        ([1.0] * 3, [1.0, 1.0, 0.9999], reference.WITHIN),
        ([1.0] * 3, [1.0, 1.0, 0.98], reference.MOVED),
        ([0.0] * 3, [0.0, 0.0, 1e-7], reference.WITHIN),
        ([0.0] * 3, [0.0, 0.0, 1e-2], reference.MOVED),
        # One seed: its spread is not known.
        ([0.5], [0.52], reference.WITHIN),
        ([0.5], [0.55], reference.MOVED),
        # Other seeds, fewer or more of them.
        ([0.4, 0.5, 0.6], [0.89], reference.WITHIN),
        ([0.4, 0.5, 0.6], [0.91], reference.MOVED),
        ([0.4, 0.5, 0.6], [0.9, 0.9, 0.9, 0.92], reference.MOVED),
    ],
)
def test_each_case_has_its_verdict(known: list[float], run: list[float], verdict: str) -> None:
    assert verdicts(one(known, measure="stress"), one(run, measure="stress")) == [verdict]


@pytest.mark.parametrize(("flipped", "verdict"), [(1, reference.WITHIN), (2, reference.MOVED)])
def test_an_accuracy_may_differ_by_one_image(flipped: int, verdict: str) -> None:
    known, run = (one([0.0, 0.0], images=200, epsilon=0.5) for _ in range(2))
    assert verdicts(known, run.assign(value=flipped / 200)) == [verdict]


def searched(seed: int) -> pd.DataFrame:
    """Accuracies of one seed of published networks, as of a search, and how many images they are of."""
    clean = paper("beyond_methods/accuracy").rename(columns={"clean": "value"})
    clean = clean.assign(measure="clean", images=10_000)
    curves = paper("beyond_methods/curves").query("epsilon > 0").rename(columns={"accuracy": "value"})
    robust = curves.assign(measure=curves["norm"], images=curves["norm"].map({"L∞": 100, "L2": 500}))
    table = pd.concat([clean, robust])
    return table[table["seed"] == seed].assign(seed=0)


def test_single_networks_trained_otherwise_stay_within_and_one_that_is_really_wrong_is_caught() -> None:
    drawn = [searched(seed) for seed in SEEDS]
    for known, run in itertools.permutations(drawn, 2):
        assert reference.MOVED not in verdicts(known, run)
    known = drawn[0].reset_index(drop=True)
    for measure, setting, shift in (("clean", "CE", -0.02), ("clean", "noise", 0.02), ("L2", "TRADES", -0.2)):
        hit = (known["measure"] == measure) & (known["setting"] == setting) & ~(known["epsilon"] > 1)
        wrong = known.assign(value=known["value"] + shift * hit)
        assert verdicts(known, wrong).count(reference.MOVED) == hit.sum() >= 1
    # None of them right, and one of them is.
    nothing = one([0.0], images=1000)
    assert verdicts(nothing, nothing.assign(value=0.001)) == [reference.WITHIN]


def times(seconds: list[float], *factors: float) -> pd.DataFrame:
    """Processor seconds of single trainings, each times its factor."""
    taken = [a * b for a, b in zip(seconds, factors or [1.0] * len(seconds), strict=True)]
    names = [f"method {number}" for number, _ in enumerate(seconds)]
    return pd.DataFrame({"setting": names, "seed": 0, reference.TIME: taken})


@pytest.mark.parametrize("speed", [0.4, 1.0, 2.1])
def test_of_times_what_one_training_costs_more_than_others_is_compared_and_no_machines_speed(speed: float) -> None:
    seconds = [5.0, 14.0, 20.0, 30.0, 48.0]
    known, slower = times(seconds), [speed * taken for taken in seconds]
    assert reference.MOVED not in verdicts(known, times(slower))
    assert reference.MOVED not in verdicts(known, times(slower, 1.25, 0.8, 1, 0.8, 1.25))
    for number in range(5):
        doubled = [1.0 + (place == number) for place in range(5)]
        # It moves the mean, and with it the others, by less than they may.
        expected = [reference.MOVED if factor > 1 else reference.WITHIN for factor in doubled]
        assert verdicts(known, times(slower, *doubled)) == expected
    # Of trainings that take less than a second a clock tells little.
    assert reference.MOVED not in verdicts(times([0.1, 0.2, 0.3]), times([0.3, 0.2, 0.1]))


def test_measures_of_one_table_only_are_named() -> None:
    known = curves()
    run = known.replace({"beta": {1.0: 2.0}})
    compared = reference.compare_tables(known, run).groupby("verdict")["measure"].apply(set)
    assert "beta 1, PGD, epsilon 0.5: accuracy" in compared[reference.MISSING]
    assert "beta 2, PGD, epsilon 0.5: accuracy" in compared[reference.NEW]
    assert len(compared[reference.MISSING]) == len(compared[reference.NEW]) == 6
    other = reference.compare_tables(known, run.rename(columns={"images": "points"}))
    assert other.to_dict("records") == [
        {"measure": "columns images, points", "verdict": reference.OTHER_COLUMNS},
    ]


def execute(folder: Path, notebook: str, values: dict[str, Any], desk: object, run_id: str) -> dict[str, Any]:
    """What executing the notebook below leaves behind, without papermill."""
    rows = [(seed, beta, 0.5 + 0.01 * seed + 0.1 * beta) for seed in values["seeds"] for beta in (0.0, 1.0)]
    results = Results(notebook, folder)
    results.table("curves_by_seed", pd.DataFrame(rows, columns=["seed", "beta", "accuracy"]))
    results.table("curves", pd.DataFrame({"mean": [0.5]}))
    took = {"wall_seconds": 0.1, "cpu_seconds": 0.1, "peak_memory_mib": 1, "results": 0, "kept": 0, "unkept": 0}
    return {"parameters": values, "started": "2026-11-24T00:00:00+00:00", "jobs": 1, **took}


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(profiles, "NOTEBOOKS", folder / "notebooks")
    patch.setattr(profiles, "PROFILES", folder / "notebooks/profiles")
    patch.setattr(reference, "REFERENCE", folder / "reference")
    patch.setattr(runner, "notebook_key", lambda notebook, values: profiles.digest([notebook, values]))
    patch.setattr(runner, "_execute", execute)
    patch.setenv("ISOREPRO_OUTPUT", str(folder / "output"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small notebook, run once and published as of an unchanged checkout."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "notebooks/profiles").mkdir(parents=True)
    cell = nbformat.v4.new_code_cell("seeds: list[int] = [0, 1, 2, 3, 4]  # one network for each")
    cell.metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "notebooks/tiny.ipynb")
    for name in ("quick", "paper"):
        (folder / f"notebooks/profiles/{name}.yml").write_text("tiny:\n")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        runner.run(profiles.plan("quick"))
        spoil(folder, uncommitted_changes=False, commit="c" * 40)
        reference.publish(profiles.plan("quick"))
    return folder


def spoil(workspace: Path, **changes: object) -> None:
    path = workspace / "output/quick/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    enter(tmp_path, monkeypatch)
    return tmp_path


def table(workspace: Path) -> Path:
    return workspace / "output/quick/results/tiny/curves_by_seed.csv"


def test_what_is_published_verifies_until_a_number_changes(
    workspace: Path, command: Callable[..., tuple[int, str]]
) -> None:
    published = workspace / "reference/quick"
    assert sorted(path.name for path in published.rglob("*.*")) == ["curves_by_seed.csv", "manifest.json"]
    before = {path: path.read_bytes() for path in published.rglob("*.*")}
    assert command("publish", "--profile", "quick")[0] == 0
    assert {path: path.read_bytes() for path in published.rglob("*.*")} == before
    status, printed = command("verify", "--profile", "quick")
    assert status == 0
    assert "no number moved: 2 compared" in printed
    assert reference.manifest(published)["commit"][:10] in printed

    pd.read_csv(table(workspace)).assign(accuracy=lambda rows: rows["accuracy"] + 0.2 * rows["beta"]).to_csv(
        table(workspace), index=False
    )
    status, printed = command("verify", "--profile", "quick", "--only", "tiny")
    assert status == 1
    assert "moved: tiny/curves_by_seed: beta 1: accuracy\n    reference 0.62, run 0.82, tolerance 0.063" in printed
    assert "beta 0" not in printed
    assert "1 of 2 moved or could not be compared" in printed


def test_tables_that_are_missing_or_new_fail(workspace: Path, command: Callable[..., tuple[int, str]]) -> None:
    results = workspace / "output/quick/results"
    shutil.copytree(results / "tiny", results / "second")
    status, printed = command("verify", "--profile", "quick")
    assert status == 1
    assert "new: second/curves_by_seed\n" in printed
    assert command("verify", "--profile", "quick", "--only", "tiny")[0] == 0
    shutil.rmtree(results / "second")
    table(workspace).unlink()
    status, printed = command("verify", "--profile", "quick")
    assert status == 1
    assert "missing: tiny/curves_by_seed\n" in printed
    shutil.rmtree(results / "tiny")
    status, printed = command("verify", "--profile", "quick")
    assert status == 1
    assert "not run: tiny/curves_by_seed\n" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "qick"], "unknown profile 'qick': allowed are paper, quick; did you mean 'quick'?"),
        ([], "profile 'paper' has no published numbers: there are some for quick"),
        (
            ["--profile", "quick", "--only", "tny"],
            "unknown notebook of the reference 'tny': allowed are tiny; did",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(
    workspace: Path, command: Callable[..., tuple[int, str]], arguments: list[str], message: str
) -> None:
    status, printed = command("verify", *arguments)
    assert status == 2
    assert printed.startswith(f"error: {message}")
    assert len(printed.splitlines()) == 1


def test_without_a_run_the_command_that_makes_it_is_told(
    workspace: Path, command: Callable[..., tuple[int, str]]
) -> None:
    shutil.rmtree(workspace / "output/quick")
    status, printed = command("verify", "--profile", "quick")
    assert status == 2
    assert printed.strip().endswith("has no run yet: make one with 'isorepro reproduce --profile quick'")
    status, printed = command("publish", "--profile", "quick")
    assert status == 2
    assert "not run, or not up to date: tiny; run 'isorepro reproduce --profile quick'" in printed


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", "{", "is damaged"),
        ("manifest.json", "{}", "is damaged: it has not all of profile, commit, "),
        ("manifest.json", "[]", "is damaged: it has not all of profile, commit, "),
        ("manifest.json", None, "is missing"),
        ("tiny/curves_by_seed.csv", "seed,beta,accuracy\n0,0.0,0.5\n", "is damaged or altered: not the SHA-256"),
        ("tiny/curves_by_seed.csv", None, "is missing"),
    ],
)
def test_a_damaged_reference_is_named_with_the_way_to_restore_it(
    workspace: Path, file: str, content: str | None, message: str
) -> None:
    path = workspace / "reference/quick" / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        reference.compare(workspace / "output/quick", workspace / "reference/quick")
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith("restore it with 'git checkout -- data/reference/quick'")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged: No columns to parse from file"),
        ("seed,beta,accuracy\n0,0.0,0.5x\n", "column 'accuracy' holds what is no number"),
        ("seed,beta,accuracy\n0,0.0,0.5\n1,0.0,0.5\n0,0.0,0.6\n", "line 4 repeats the settings of an earlier one"),
        ("network,accuracy\nstack,0.5\n", "no column 'seed'"),
    ],
)
def test_a_damaged_table_of_the_run_is_named(
    workspace: Path, command: Callable[..., tuple[int, str]], content: str, message: str
) -> None:
    table(workspace).write_text(content)
    status, printed = command("verify", "--profile", "quick")
    assert status == 1
    assert printed.startswith(f"error: {table(workspace)}")
    assert message in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (
            lambda workspace: spoil(workspace, uncommitted_changes=True),
            "run with uncommitted changes; commit them",
        ),
        (lambda workspace: spoil(workspace, uncommitted_changes="unknown"), "run by an unknown commit"),
        (lambda workspace: spoil(workspace, commit="unknown"), "run by an unknown commit"),
        (lambda workspace: spoil(workspace, notebooks={}), "not up to date: tiny; run"),
        (lambda workspace: table(workspace).write_text("seed,accuracy\n0,1.0\n"), "not up to date: tiny; run"),
    ],
    ids=["uncommitted", "unknown changes", "unknown commit", "old manifest", "altered"],
)
def test_only_what_a_commit_made_is_published(
    workspace: Path,
    command: Callable[..., tuple[int, str]],
    spoiled: Callable[[Path], object],
    message: str,
) -> None:
    published = workspace / "reference/quick"
    before = {path: path.read_bytes() for path in published.rglob("*.*")}
    spoiled(workspace)
    status, printed = command("publish", "--profile", "quick")
    assert status == 2
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert {path: path.read_bytes() for path in published.rglob("*.*")} == before


def test_publishing_takes_and_replaces_only_what_runs_and_publications_made(
    workspace: Path, command: Callable[..., tuple[int, str]]
) -> None:
    published = workspace / "reference/quick"
    mine = [
        published / "notes.txt",
        published / "tiny/mine_by_seed.csv",
        workspace / "reference/.quick-1/thesis.txt",
    ]
    for path in [*mine, table(workspace).with_name("mine_by_seed.csv")]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (published / "tiny/old_by_seed.csv").write_text("published before")
    told = reference.manifest(published)
    told["tables"]["tiny/old_by_seed.csv"] = "its digest"
    (published / "manifest.json").write_text(json.dumps(told))
    status, printed = command("publish", "--profile", "quick")
    assert status == 0
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert f"isorepro did not make it: {mine[0]}\n" in printed
    assert not (published / "tiny/old_by_seed.csv").exists()
    assert list(reference.manifest(published)["tables"]) == ["tiny/curves_by_seed.csv"]
    # A table by hand where one is to be published.
    told["tables"] = {}
    (published / "manifest.json").write_text(json.dumps(told))
    (published / "tiny/curves_by_seed.csv").write_text("mine")
    status, printed = command("publish", "--profile", "quick")
    assert status == 2
    assert f"{published}/tiny/curves_by_seed.csv is in the way" in printed
    assert (published / "tiny/curves_by_seed.csv").read_text() == "mine"
    assert reference.manifest(published) == told


def test_results_that_the_manifest_does_not_tell_of_are_told_by_the_next_run(workspace: Path) -> None:
    spoil(workspace, notebooks={})
    assert runner.outdated(profiles.plan("quick")) == ["tiny"]
    assert not runner.run(profiles.plan("quick"))
    assert runner.outdated(profiles.plan("quick")) == []


def test_a_run_without_tables_of_single_seeds_is_not_published(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "BY_SEED", "*_by_class.csv")
    with pytest.raises(InputError, match="no notebook left a table of single seeds"):
        reference.publish(profiles.plan("quick"))
    assert reference.published() == ["quick"]


@pytest.mark.usefixtures("workspace")
def test_a_run_with_other_parameters_is_not_published() -> None:
    with pytest.raises(InputError, match="only a run of all its notebooks with its own parameters"):
        reference.publish(profiles.plan("quick", overrides={"seeds": [7]}))
