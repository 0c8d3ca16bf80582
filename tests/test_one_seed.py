"""One seed has no spread: what takes rows over seeds shows no interval then, and nothing that is not a number.

The rows are those of one seed, and to compare of two, of the published run.
"""

import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import isorepro
from markdown_it import MarkdownIt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_explorables import examples, maps

from isorepro import (
    book,
    boundary,
    claim_pages,
    claims,
    cli,
    comparison,
    corruptions,
    explorables,
    health,
    method_plots,
    paths,
    plots,
    profiles,
    robustness,
    stack_plots,
    stacks,
    stats,
    structure,
    structure_plots,
    style,
    tables,
)
from isorepro.results import Results

Made = dict[str, Callable[..., Any]]


def rows(table: str, seeds: int) -> pd.DataFrame:
    found = pd.read_csv(claims.PUBLISHED / f"{table}.csv")
    found = found[found["seed"] < seeds].copy()
    if table.startswith("mnist_robustness"):
        found = found[found["K"] == 10]
    if table.startswith("evaluation_health"):
        found["network"] = tables.network_names(found)
    return found


def made(seeds: int) -> tuple[Made, Made]:
    """Every figure and every table of the pages that has intervals, of so many seeds."""
    curves, digits = (
        rows("mnist_robustness/curves_by_seed", seeds),
        rows("mnist_structure/measures_by_seed", seeds),
    )
    by = ["protocol", "attack", "beta", "epsilon"]
    rates = stats.over_seeds(curves, "accuracy", by, bounds=(0, 1))
    attacked = rows("evaluation_health/curves_by_seed", seeds)
    attacked = stats.over_seeds(attacked, "accuracy", [*by, "network", "form", "K"], bounds=(0, 1))
    staged = rows("evaluation_health/stages_by_seed", seeds)
    kept = stats.over_seeds(staged, "accuracy", ["stage", "network", "form", "K", "beta"], bounds=(0, 1))
    gains = stats.paired_differences(staged, "accuracy", ["stage"], "network", "CE")
    ends = {"mean": "difference", "low": "difference_low", "high": "difference_high"}
    stages = kept.merge(gains.rename(columns=ends).drop(columns="seeds"), how="left", on=["stage", "network"])
    of_methods = rows("beyond_methods/curves_by_seed", seeds)
    trained = rows("beyond_methods/accuracy_by_seed", seeds).assign(processor_seconds=1.0)
    spread = comparison.spread(
        comparison.overview(of_methods, rows("beyond_methods/structure_by_seed", seeds), trained, epsilon=0.1)
    )
    by_norm = stats.over_seeds(of_methods, "accuracy", ["norm", "setting", "epsilon"], bounds=(0, 1))
    corrupted = rows("beyond_corruptions/accuracies_by_seed", seeds)
    severity = stats.over_seeds(corruptions.by_severity(corrupted), "accuracy", ["network", "severity"])
    means = corruptions.by_corruption(corrupted)
    differences = stats.paired_differences(means, "accuracy", ["corruption"], "network", "CE")
    moved = stats.over_seeds(corruptions.transfer(corrupted, {}, "CE"), "gain", ["network", "tested"])
    torus = structure.summary(rows("torus/measures_by_seed", seeds), ["points", "form", "K", "beta", "level"])
    readouts = rows("torus/readouts_by_seed", seeds)
    read = structure.summary(readouts, ["network", "beta", "layers", "level"])
    stacked = ["network", "level", "protocol", "attack", "beta", "epsilon"]
    levels = stats.over_seeds(rows("mnist_hierarchy/curves_by_seed", seeds), "accuracy", stacked, bounds=(0, 1))
    placed = rows("mnist_hierarchy/tree_distances_by_seed", seeds)
    # As on images of which no network takes one for another.
    placed.loc[placed["attack"].eq("no attack") & placed["measure"].eq("relative_distance"), "value"] = np.nan
    trees = stats.over_seeds(
        placed.dropna(subset="value"), "value", ["measure", "tree", "network", *by], bounds=(0, 6)
    )
    near = robustness.nearest_radius(placed, 0.0774)
    effects = stacks.tree_effects(placed[placed["epsilon"].isin([0.0, near])])
    summary = structure.summary(digits, ["relation", "form", "K", "beta"])
    distances = pd.concat(
        rows("decision_boundary/comparison_by_seed", seeds)
        .query("measure == 'jacobian_error'")
        .assign(measure=measure, value=lambda found: found["near"], bin=0, distance=0.1)
        for measure in ("stretch_low", "stretch_high", "local_distortion")
    )
    distances = stats.over_seeds(distances, "value", ["dataset", "beta", "measure", "bin", "distance"])
    history = pd.concat(torus.assign(epoch=epoch) for epoch in (1, 100))
    history = history[(history["points"] == stacks.HELD_OUT) & (history["level"] == 1)]
    names = {name: name for name in distances["dataset"].unique()}
    attacks = {("as released", "FGSM"): "FGSM", ("corrected", "PGD"): "PGD"}
    limits = {"accuracy": 0.9, "spearman": 0.9, "stress": 0.3}
    panels = {("spearman", "within"): "correlation", ("accuracy", structure.CLOUD): "accuracy"}
    weak, labels = {"FGSM": "weak", "worst case": "worst"}, {name: name for name in limits}
    few, plane = rates[rates["beta"].isin([0.0, 0.1, 100.0])], comparison.plane(spread, x="spearman", y="robust")
    norms = {name: name for name in by_norm["norm"].unique()}
    figures: Made = {
        "robustness_curves": partial(plots.robustness_curves, rates, chance=0.1),
        "gap": partial(plots.gap, health.gap(attacked[attacked["K"] == 10], 0.1), protocols=weak, chance=0.1),
        "attack_stages": partial(plots.attack_stages, kept, gains),
        "weights": partial(explorables.weights, few, maps(), examples(), chance=0.1, at=0.1),
        "method_points": partial(method_plots.method_points, plane, x_label="x", y_label="y"),
        "method_curves": partial(method_plots.method_curves, by_norm, titles=norms, labels=norms, chance=0.1),
        "accuracy_by_severity": partial(method_plots.accuracy_by_severity, severity),
        "corruption_transfer": partial(method_plots.corruption_transfer, moved, groups={corruptions.ALL: "all"}),
        "level_measures": partial(stack_plots.level_measures, torus, labels=labels, limits=limits),
        "readouts": partial(stack_plots.readouts, read, labels={"spearman": "correlation"}),
        "level_curves": partial(stack_plots.level_curves, levels, attacks=attacks, chances=[0.5, 0.3, 0.1]),
        "tree_distances": partial(
            stack_plots.tree_distances,
            trees,
            measure="error_distance",
            attacks=attacks,
            titles={"given": "given", "random": "random"},
            label="edges",
            uniform=True,
        ),
        "training_curves": partial(structure_plots.training_curves, history, labels={"stress": "stress"}),
        "against_boundary_distance": partial(structure_plots.against_boundary_distance, distances, titles=names),
        "measures_against_beta": partial(structure_plots.measures_against_beta, summary, labels=panels),
        "trade_off": partial(structure_plots.trade_off, summary, labels=panels),
        "trade_off, nothing drawn": partial(structure_plots.trade_off, summary, labels=panels, least=1.0),
    }
    verdicts = boundary.verdicts(rows("decision_boundary/comparison_by_seed", seeds), tolerance=0.1)
    titles = {"error": "errors", "error_distance": "edges", "relative_distance": "relative"}
    shown: Made = {
        "curve_table": partial(tables.curve_table, rates),
        "reading_table": partial(tables.reading_table, robustness.readings(curves, 0.0774)),
        "effects_table": partial(tables.effects_table, differences, "corruption", "network"),
        "share_table": partial(tables.share_table, severity, "severity", "network"),
        "measure_table": partial(tables.measure_table, summary, "relation"),
        "levels_table": partial(tables.levels_table, torus),
        "readout_effect_table": partial(tables.readout_effect_table, stacks.readout_effects(readouts, every=4)),
        "tree_effect_table": partial(tables.tree_effect_table, effects[effects["beta"] == 0.1], titles),
        "stage_table": partial(tables.stage_table, stages),
        "effect_table": partial(tables.effect_table, verdicts, names),
        "overview_table": partial(tables.overview_table, spread, {"clean": "clean", "spearman": "correlation"}),
    }
    return figures, shown


ONE, TWO = made(1), made(2)


def spreads(figure: Figure) -> int:
    """How many bands and bars a figure has, and whatever else is filled or a stroke in its panels."""
    found = [
        path.vertices
        for axes in figure.findobj(Axes)
        for part in axes.collections
        if isinstance(part, PolyCollection | LineCollection)
        for path in part.get_paths()
    ]
    return sum(len(ends) > 0 and bool(np.isfinite(ends).all()) and np.ptp(ends, axis=0).any() for ends in found)


@pytest.mark.parametrize("name", ONE[0])
def test_figures_have_lines_without_bands_and_points_without_bars(name: str) -> None:
    with style.house_style():
        one, two = (figures[name]() for figures, _ in (ONE, TWO))
        ONE[0][name](narrow=True)
    # Of the gap between two attacks, the filled part is its own.
    assert spreads(one) == (name == "gap")
    assert spreads(two) > spreads(one) or name == "trade_off, nothing drawn"
    assert not [text for text in one.findobj(Text) if "nan" in text.get_text()]


@pytest.mark.parametrize("name", ONE[1])
def test_tables_have_numbers_without_intervals(tmp_path: Path, name: str) -> None:
    one, two = (
        re.sub("<[^>]*>", " ", Results("n", tmp_path).table("t", shown[name]()).markup) for _, shown in (ONE, TWO)
    )
    assert re.search(r"\d to [−+]?\d", two)
    assert not re.search(r"\d to [−+]?\d|(?<!\w)nan(?!\w)", one)
    assert "–" in one or name != "tree_effect_table"


def test_a_slider_has_curves_whose_bands_have_no_width() -> None:
    curves = stats.over_seeds(
        rows("mnist_robustness/curves_by_seed", 1), "accuracy", ["protocol", "attack", "beta", "epsilon"]
    )
    found = explorables.by_weight(curves, chance=0.1, at=0.1)
    numbers = np.array(found["curves"])
    assert (numbers == numbers[..., :1]).all()
    json.dumps(found, allow_nan=False)


def test_claims_are_undecided_and_their_pages_show_no_interval(tmp_path: Path) -> None:
    for path in claims.PUBLISHED.rglob("*_by_seed.csv"):
        target = tmp_path / path.relative_to(claims.PUBLISHED)
        target.parent.mkdir(exist_ok=True)
        table = pd.read_csv(path)
        table[table["seed"] == 0].to_csv(target, index=False)
    ledger = claims.load()
    judged = claims.verdicts(ledger, tmp_path)
    assert set(judged["verdict"]) == {claims.UNDECIDED, claims.UNTESTED, claims.DESCRIBED}
    summed = claims.overall(ledger, judged)
    for text in (claim_pages.glance(ledger, judged, summed), claim_pages.every_claim(ledger, judged, summed)):
        assert "one seed: no interval" in text
        assert not re.search(r"(?<!\w)nan(?!\w)", text)


def test_numbers_that_are_not_defined_are_null_in_json_and_a_dash_on_a_page(tmp_path: Path) -> None:
    numbers = robustness.key_numbers(rows("mnist_robustness/curves_by_seed", 1), epsilon=0.1, epsilon_broken=0.2)
    results = Results("n", tmp_path)
    results.numbers(**numbers, longest=float("inf"), told=f"{float('nan'):+.1f} points")
    written = json.loads((results.folder / "numbers.json").read_text(), parse_constant=pytest.fail)
    told = numbers | {"pgd_gain_low": None, "longest": None, "told": "– points"}
    assert {
        name: written[name] for name in ("pgd_gain", "pgd_gain_low", "longest", "told")
    }.items() <= told.items()
    spec = importlib.util.spec_from_file_location("book_extension", paths.ROOT / "book/_ext/isorepro_book.py")
    extension: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(extension)  # type: ignore[union-attr]
    role = extension.Number()
    environment = SimpleNamespace(srcdir=tmp_path, note_dependency=lambda path: None)
    role.inliner = SimpleNamespace(document=SimpleNamespace(settings=SimpleNamespace(env=environment)))
    for name, shown in {"pgd_gain_low:.2f": "–", "epsilon:.2f": "0.08"}.items():
        role.text = f"n:{name}"
        ((node,), messages) = role.run()
        assert (node.astext(), messages) == (shown, [])


def test_captions_alternatives_and_words_say_what_is_not_defined(tmp_path: Path) -> None:
    nan = float("nan")
    caption = f"a nana, {nan:.2f} and {nan:.0%}"
    words = {"caption": caption, "alt": f"{nan:+.1f} points"}
    shown = Results("n", tmp_path).figure("f", ONE[0]["gap"], **words, data=pd.DataFrame({"a": [nan]})).markup
    assert "<figcaption>a nana, – and –</figcaption>" in shown
    assert 'aria-label="– points"' in shown
    assert tables.points(nan, nan, nan) == "–"
    assert tables.points(0.25, 0.2, 0.3, percent=False) == "+0.25 (95 % interval +0.20 to +0.30)"
    assert tables.change(nan, nan, nan) == "not defined for every seed"
    means = corruptions.by_corruption(rows("beyond_corruptions/accuracies_by_seed", 1))
    counted = corruptions.changed(stats.paired_differences(means, "accuracy", ["corruption"], "network", "CE"))
    assert counted[["better", "worse"]].isna().all(axis=None)
    assert tables.dashed(f"{counted['better'].iloc[0]} of {counted['corruptions'].iloc[0]}") == "– of 16"


def test_every_page_of_a_run_with_one_seed_says_so_and_shows_text_as_it_is() -> None:
    text = "{1} {{2}} | `x` <b>"
    planned = profiles.plan("smoke", overrides={"seeds": [3], "methods": {text: {}}})
    assert book.NO_INTERVALS in book._banner(planned)
    assert "{1} {{2}} | `x` &lt;b&gt;" in book._banner(planned)
    assert book.NO_INTERVALS not in book._banner(profiles.plan("smoke"))
    output = nbformat.v4.new_output("display_data", {"text/markdown": "correlation nan"})
    cells = [
        nbformat.v4.new_code_cell(metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(outputs=[output]),
    ]
    values = planned.notebooks["beyond_corruptions"]
    record = {"parameters": values, "id": "0", "wall_seconds": 1.0, "cpu_seconds": 1.0}
    page = book._as_page(nbformat.v4.new_notebook(cells=cells), "beyond_corruptions", planned, record)
    _, table, note, code, provenance = page.cells
    assert book.NO_INTERVALS in note.source
    assert "`phase_seeds`, a single seed, has no intervals" in book._note(["phase_seeds"])
    assert book.NO_INTERVALS not in book._note(["phase_seeds"])
    assert code.outputs[0].data["text/markdown"] == "correlation –"
    shown = MarkdownIt().enable("table").parse(table.source)
    codes = [part.content for token in shown for part in token.children or [] if part.type == "code_inline"]
    assert codes[codes.index("methods") + 1] == json.dumps(values["methods"])
    (again,) = re.findall("again: (`+) ?(.*?) ?\\1", provenance.source)
    words = shlex.split(again[1])
    given = cli._assignments([value for option, value in pairwise(words) if option == "-p"])
    assert given == {"seeds": [3], "methods": {text: {}}}


@pytest.mark.slow
def test_a_page_whose_figures_have_sliders_is_made_with_one_seed(tmp_path: Path) -> None:
    done = isorepro(tmp_path, "reproduce", "--only", "mnist_explorer", "-p", "seeds=[3]")
    assert done.returncode == 0, done.stderr
    (figure,) = tmp_path.rglob("weights.html")
    assert "isorepro-explorable" in figure.read_text()
