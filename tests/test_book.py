"""The smoke profile, run as a user would: its tables, and what its book says."""

import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import VIEWS, isorepro, pages
from playwright.sync_api import Browser

from isorepro import book, claims, profiles
from isorepro.errors import InputError, NotebookError

pytestmark = pytest.mark.slow


FIGURES = {
    "mnist_robustness": 3,
    "first_version": 1,
    "mnist_explorer": 2,
    "rings": 6,
    "torus": 7,
    "torus_variants": 2,
    "decision_boundary": 2,
    "mnist_structure": 4,
    "mnist_hierarchy": 5,
    "fashion_mnist": 6,
    "evaluation_health": 6,
    "beyond_methods": 3,
    "beyond_search": 1,
    "beyond_corruptions": 4,
}


def test_formulas_are_typeset_and_search_finds_the_method(browser: Browser, site: str) -> None:
    page = browser.new_page()
    page.goto(f"{site}/method.html")
    page.wait_for_selector("mjx-container")
    assert page.locator("mjx-container").count() > 10
    assert page.locator("mjx-merror").count() == 0
    page.goto(f"{site}/search.html?q=isometry")
    # Results come one after the other.
    page.wait_for_selector("#search-results a[href*='method.html']")
    page.close()


def test_the_pages_on_the_library_lead_to_types_and_to_the_lines_that_compute(browser: Browser, site: str) -> None:
    page = browser.new_page()
    page.goto(f"{site}/api.html")
    page.get_by_role("table").get_by_role("link", name="attacks", exact=True).click()
    page.wait_for_url("**/api/isorepro.attacks.html#module-isorepro.attacks")
    entry = page.locator("dl.py", has=page.locator("dt[id='isorepro.attacks.released_objective']"))
    assert {"isorepro.models.html#isorepro.models.Stack", "isorepro.errors.html#isorepro.errors.InputError"} <= {
        link.rpartition("/")[2]
        for link in entry.locator("a.reference").evaluate_all("links => links.map(link => link.href)")
    }
    # Where the signature takes the whole line, the link has one of its own, inside the frame.
    hanging = page.evaluate(
        """() => [...document.querySelectorAll('dt.sig')].filter(entry => {
            const link = entry.querySelector('.viewcode-link');
            return link && link.getBoundingClientRect().bottom > entry.getBoundingClientRect().bottom + 1;
        }).map(entry => entry.id)"""
    )
    assert not hanging
    entry.get_by_text("[source]").click()
    page.wait_for_url("**/_modules/isorepro/attacks.html#released_objective")
    shown = page.locator("[id='released_objective']").inner_text()
    assert shown.partition("def ")[2].startswith("released_objective(clean: Tensor, *, beta: float")
    page.close()


def theme_options(draft: Path) -> dict[str, Any]:
    config = yaml.safe_load((draft / "_config.yml").read_text())
    options: dict[str, Any] = config["sphinx"]["config"]["html_theme_options"]
    return options


def test_pages_of_notebooks_have_buttons_only_where_the_repository_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = profiles.plan("smoke")
    monkeypatch.delenv(book.REPOSITORY, raising=False)
    book.assemble(planned, tmp_path / "without")
    assert not {"repository_url", "launch_buttons"} & set(theme_options(tmp_path / "without"))
    monkeypatch.setenv(book.REPOSITORY, "https://github.com/someone/isorepro")
    book.assemble(planned, tmp_path / "with")
    options = theme_options(tmp_path / "with")
    assert options["repository_url"] == "https://github.com/someone/isorepro"
    assert options["repository_branch"] == json.loads((run / "manifest.json").read_text())["commit"]
    assert {"binderhub_url", "colab_url"} <= set(options["launch_buttons"])
    page = (tmp_path / "with/notebooks/rings.ipynb").read_text()
    assert "git clone -q https://github.com/someone/isorepro" in page
    monkeypatch.setenv(book.REPOSITORY, "git@github.com:someone/isorepro")
    with pytest.raises(
        InputError, match=r"ISOREPRO_REPOSITORY: must be of the form https://github\.com/<owner>/<name>"
    ):
        book.assemble(planned, tmp_path / "wrong")


def test_the_first_mention_of_a_term_leads_to_its_row(run: Path) -> None:
    root = run / "book"
    terms = yaml.safe_load((book.SOURCES / "notation.yml").read_text())
    assert {"β", "K", "ε", "LIL", "robust accuracy", "classification rate"} <= {
        mark for term in terms for mark in term["marks"]
    }
    rows = re.findall(r'<tr[^>]* id="term-([^"]+)"', (root / "notation.html").read_text())
    assert rows == [term["id"] for term in terms]
    explained = {
        name: re.findall(
            r'<a class="isorepro-term" href="[./]*notation\.html#term-([^"]+)"', (root / name).read_text()
        )
        for name in pages(run)
    }
    for name, found in explained.items():
        assert len(found) == len(set(found)), name
    assert {term["id"] for term in terms if term["marks"]} == set().union(*explained.values())
    assert {"beta", "K", "epsilon", "LIL", "robust-accuracy"} <= set(explained["method.html"])
    for name in profiles.plan("smoke").notebooks:
        assert len(explained[f"notebooks/{name}.html"]) > 3, name


def test_only_a_page_with_something_to_rotate_loads_the_script_for_it(run: Path) -> None:
    loads = {name: "plotly.min.js" in (run / "book" / name).read_text() for name in pages(run)}
    assert [name for name, found in loads.items() if found] == [
        "method.html",
        "notebooks/rings.html",
        "notebooks/torus.html",
    ]


def test_only_a_page_with_a_slider_loads_the_script_for_it(run: Path) -> None:
    loads = {name: "figures/explorable.js" in (run / "book" / name).read_text() for name in pages(run)}
    found = [name for name, found in loads.items() if found]
    assert found == ["index.html", "notebooks/mnist_explorer.html", "notebooks/mnist_robustness.html"]


def test_no_notebook_leaves_a_warning_on_its_page(run: Path) -> None:
    for path in (run / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert outputs
        assert not [output for output in outputs if output["output_type"] in ("stream", "error")], path.stem
        # An output without markup, such as an empty sentence, would show as the name of its class.
        for output in outputs:
            markup = [text for kind, text in output["data"].items() if kind in ("text/html", "text/markdown")]
            assert "".join(itertools.chain.from_iterable(markup)).strip(), path.stem


class Prose(HTMLParser):
    """The text of a page's article, apart from code, signatures, drawings and formulas; and its names of code."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, bool]] = []
        self.text: list[str] = []
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kind = dict(attrs).get("class") or ""
        code = tag in ("dt", "pre", "code", "script", "style", "svg") or kind.startswith("math")
        if tag == "code":
            self.names.append("")
        if tag == "wbr" and any(code for _, code in self.open):
            self.names[-1] += "|"
        self.open.append((tag, code))

    def handle_endtag(self, tag: str) -> None:
        # Elements without content have no end.
        while self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "article" in tags and not any(code for _, code in self.open):
            self.text.append(data)
        elif tags and "code" in tags and "pre" not in tags:
            self.names[-1] += data


def test_lines_end_neither_before_a_unit_nor_inside_a_word_of_a_long_name(run: Path) -> None:
    names = []
    for name in pages(run):
        page = Prose()
        page.feed((run / "book" / name).read_text())
        text, names = "".join(page.text), [*names, *page.names]
        loosely = r"\d[ \n]?%|\d[ \n](?:ms|s|min|h|MB|GB|points|steps)\b|[≥≤][ \n]\d|\b[Kβε][ \n]=[ \n]\d|\w = \d"
        assert not re.findall(rf".{{0,20}}(?:{loosely}).{{0,20}}", text), name
    assert "geometry.|jacobian_|singular_|values" in names
    assert ">doi:10.1038/<wbr>s41598-<wbr>025-<wbr>20619-<wbr>0</a>" in (run / "book/references.html").read_text()
    assert "attacks.fgsm" in names


def loose(text: str) -> str:
    """A text as notebooks write it and not as pages tie it: percent signs close by, other units after a space."""
    return text.replace("\xa0", " ").replace(" %", "%")


def test_the_pages_say_the_numbers_of_the_run(run: Path, browser: Browser, site: str) -> None:
    numbers = json.loads((run / "results/mnist_robustness/numbers.json").read_text())
    page = browser.new_page()
    page.goto(f"{site}/index.html")
    text = loose(page.locator("article").inner_text())
    for name in ("released_fgsm_ce", "released_fgsm_best", "pgd_ce", "pgd_best"):
        assert loose(f"{numbers[name]:.0%}") in text
    structure = {
        name: json.loads((run / f"results/{name}/numbers.json").read_text())
        for name in ("rings", "decision_boundary", "mnist_structure", "torus", "mnist_hierarchy")
    }
    assert loose(f"{structure['rings']['spearman_isometric']:.3f}") in text
    assert loose(structure["rings"]["verdict"]) in text
    assert loose(structure["torus"]["verdict_held_out_isometric"]) in text
    assert loose(structure["mnist_hierarchy"]["error_given_pgd"]) in text
    assert loose(structure["decision_boundary"]["paper_torus_local_distortion_verdict"]) in text
    assert loose(f"{structure['mnist_structure']['raw_strongest_accuracy']:.1%}") in text
    assert "smoke" in page.locator(".bd-header-announcement").inner_text()
    page.goto(f"{site}/reproduce.html")
    manifest = json.loads((run / "manifest.json").read_text())
    text = loose(page.locator("article").inner_text())
    assert manifest["commit"] in text
    assert manifest["versions"]["torch"] in text
    page.goto(f"{site}/released_code.html")
    text = loose(page.locator("article").inner_text())
    assert loose(numbers["best_gain_released_fgsm"]) in text
    assert loose(structure["mnist_hierarchy"]["september_2022_pgd"]) in text
    assert loose(structure["torus"]["training_accuracy"]) in text
    page.close()


def test_the_tables_are_complete(run: Path) -> None:
    curves = pd.read_csv(run / "results/mnist_robustness/curves_by_seed.csv")
    # (CE and, for each K, β) × seeds × (clean of each protocol + attacks × radii)
    assert len(curves) == 3 * 2 * (2 + 4 * 4)
    assert curves.groupby(["beta", "K"])["seed"].nunique().to_dict() == {(0, 10): 2, (1, 1): 2, (1, 10): 2}
    closer = pd.read_csv(run / "results/mnist_robustness/more_seeds_by_seed.csv")
    assert len(closer) == 2 * 2 * (2 + 4)
    shared = curves[(curves["K"] == 10) & (curves["attack"] == "no attack")]
    pd.testing.assert_frame_equal(
        closer[closer["attack"] == "no attack"].reset_index(drop=True), shared.reset_index(drop=True)
    )
    assert curves["accuracy"].between(0, 1).all()
    pgd = curves[curves["attack"] == "PGD"].sort_values("epsilon").groupby(["beta", "K", "seed"])["accuracy"]
    assert pgd.apply(lambda accuracy: accuracy.is_monotonic_decreasing).all()


def test_settings_are_shown_in_the_order_in_which_they_are_given(run: Path) -> None:
    given = list(profiles.plan("smoke").notebooks["beyond_methods"]["settings"])
    assert given != sorted(given)
    curves = pd.read_csv(run / "results/beyond_methods/curves_by_seed.csv")
    assert curves["setting"].drop_duplicates().tolist() == given
    drawn = (run / "results/beyond_methods/curves.svg").read_text()
    assert sorted(given, key=lambda name: drawn.index(f"<!-- {name} -->")) == given


def test_the_tables_of_structure_are_complete(run: Path) -> None:
    results = run / "results"
    rings = pd.read_csv(results / "rings/measures_by_seed.csv")
    assert len(rings) == 2 * 2 * (2 * 5 + 5)  # β × seeds × (measures within and between + of the cloud)
    topology = pd.read_csv(results / "rings/topology_by_seed.csv")
    assert len(topology) == 2 * 2 * 2 * 4  # β × seeds × rings × measures
    profiles = pd.read_csv(results / "decision_boundary/profiles.csv")
    assert profiles.groupby(["dataset", "beta", "seed"]).size().tolist() == [80] * 12
    mnist = pd.read_csv(results / "mnist_structure/measures_by_seed.csv")
    assert len(mnist) == 3 * 2 * 15
    assert mnist.loc[mnist["measure"] == "trustworthiness", "value"].between(0, 1).all()


def test_the_tables_of_stacks_are_complete(run: Path) -> None:
    torus, digits = run / "results/torus", run / "results/mnist_hierarchy"
    measures = pd.read_csv(torus / "measures_by_seed.csv")
    # β × seeds × points × levels × (accuracy, share of the points, measures of distances)
    assert len(measures) == 2 * 2 * 3 * 3 * 7
    readouts = pd.read_csv(torus / "readouts_by_seed.csv")
    assert len(readouts) == 2 * 2 * 2 * 3 * 3 * 4  # networks × β × seeds × depths × levels × measures
    assert len(pd.read_csv(torus / "phase_by_seed.csv")) == 2 * 2 * 3  # β × K × attacks
    curves = pd.read_csv(digits / "curves_by_seed.csv")
    # β × seeds × (levels of the stack + the flat network's) × (clean of each protocol + attacks × radii)
    assert len(curves) == 2 * 2 * (3 + 1) * (2 + 4 * 2)
    first = pd.read_csv(run / "results/first_version/curves_by_seed.csv")
    # β × seeds × (levels × (clean of each protocol + FGSM of each and PGD × radii) + AutoAttack)
    assert len(first) == 2 * 2 * (3 * (2 + 3 * 2) + 1)
    confusions = pd.read_csv(digits / "confusions.csv")
    networks = confusions.fillna({"hierarchy": ""}).groupby(["hierarchy", "beta", "seed", "protocol", "epsilon"])
    # Stacks on the given and the learnt tree and on a random one for each seed, and flat networks.
    assert len(networks) == 2 * 2 * 4 * 2 * 3
    assert networks["images"].sum().eq(100).all()
    placed = pd.read_csv(digits / "tree_distances_by_seed.csv")
    assert len(placed) == 3 * 2 * 2 * 2 * 2 * 3 * 5  # trees × networks × β × seeds × protocols × radii × measures
    variants = pd.read_csv(digits / "variants.csv")
    assert variants["variant"].nunique() == 9
    assert variants.groupby("variant").size().eq(3 * (2 + 3)).all()
    effects = pd.read_csv(digits / "variant_effects.csv")
    assert (
        effects.groupby("variant").size().tolist() == [3] * 8
    )  # all but this book's, without attack and under two


def test_the_tables_of_the_evaluations_health_are_complete(run: Path) -> None:
    results = run / "results"
    curves = pd.read_csv(results / "evaluation_health/curves_by_seed.csv")
    assert len(curves) == 4 * 2 * (1 + 12 * 3)  # networks × seeds × (clean + attacks × radii)
    more = pd.read_csv(results / "evaluation_health/more_images_by_seed.csv")
    assert len(more) == 4 * 2 * (1 + 12 * 2)
    assert more["images"].eq(30).all()
    signs = pd.read_csv(results / "evaluation_health/signs_by_seed.csv").query("measure == 'agreement'")
    assert signs["value"].between(0, 1).all()
    for name, networks in {"evaluation_health": 8, "mnist_robustness": 6, "mnist_hierarchy": 8}.items():
        checks = pd.read_csv(results / name / "checks.csv")
        assert checks["networks"].eq(networks).all(), name
        assert len(checks) == 2 * 12
    assert len(pd.read_csv(results / "torus/checks.csv")) == 9


def test_the_run_gives_the_published_numbers(run: Path) -> None:
    done = isorepro(run.parent, "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no number moved: " in done.stdout
    compared = {path.parent.name for path in (run / "results").glob("*/*_by_seed.csv")}
    # What is shown on this page is measured on others.
    assert set(profiles.plan("smoke").notebooks) - compared <= {"mnist_explorer"}
    for name in compared:
        assert f"\n{name}/" in done.stdout


def test_a_wrong_number_is_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "results", tmp_path / "smoke/results")
    path = tmp_path / "smoke/results/mnist_robustness/curves_by_seed.csv"
    curves = pd.read_csv(path)
    (wrong,) = curves.query("attack == 'PGD' and beta == 1 and K == 10 and seed == 1 and epsilon == 0.0774").index
    curves.loc[wrong, "accuracy"] += 0.5
    curves.to_csv(path, index=False)
    done = isorepro(tmp_path, "verify")
    assert done.returncode == 1, done.stdout + done.stderr
    (moved,) = re.findall(r"^moved: (.*)$", done.stdout, flags=re.MULTILINE)
    assert moved == "mnist_robustness/curves_by_seed: beta 1, K 10, corrected, PGD, epsilon 0.0774: accuracy"


def test_the_tables_have_what_the_claims_ask_of_them(run: Path) -> None:
    tests = [statement.test for claim in claims.load().claims for statement in claim.statements if statement.test]
    tests = [test for test in tests if test.notebook in profiles.notebook_names()]
    for test in tests:
        table = pd.read_csv(run / f"results/{test.table}.csv")
        for where in (test.select, test.setting, test.baseline or {}):
            assert {*where, "seed", test.measure} <= set(table), test
            # Numbers are a profile's choice, and so is what networks of cross-entropy are trained on; other names,
            # such as those of attacks, are the same in all.
            absent = test.setting.get("network") not in {*table.get("network", ()), None}
            for column, name in where.items():
                assert absent or not isinstance(name, str) or name in set(table[column]), test
        assert not absent or test.table == "beyond_corruptions/means_by_seed"


def test_the_book_shows_the_verdicts_on_the_claims(run: Path, browser: Browser, site: str) -> None:
    ledger = claims.load()
    judged = claims.verdicts(ledger, run / "results")
    assert set(judged["verdict"]) - {claims.UNTESTED}
    written = pd.read_csv(run / "book/results/claims/verdicts.csv")
    assert written[["statement", "verdict", "seeds"]].equals(judged[["statement", "verdict", "seeds"]])
    context = browser.new_context(**VIEWS["phone"])
    page = context.new_page()
    page.goto(f"{site}/claims.html")
    rows = page.locator("table.isorepro-statements tbody tr").all_inner_texts()
    for row, text in zip(judged.to_dict("records"), rows, strict=True):
        assert text.startswith(f"{row['statement']} ")
        assert row["protocol"] in text.replace("\u00a0", " ")
        told = [f"{claims.SYMBOLS[row[column]]} {row[column]}" for column in ("verdict", "holm")]
        assert " ".join(text.split()).endswith(f"{told[0]}{' fragile' * row['fragile']} {told[1]}")
    rows = page.locator("table.isorepro-overview tbody tr").all_inner_texts()
    overall = claims.overall(ledger, judged).to_dict("records")
    for row, text in zip(overall, rows, strict=True):
        assert row["title"] in text
        assert f"{claims.SYMBOLS[row['verdict']]} {row['told']}" in text.replace("\u00a0", " ")
    page.goto(f"{site}/index.html")
    rows = page.locator("table.isorepro-glance tbody tr").all_inner_texts()
    for claim, row, text in zip(ledger.claims, overall, rows, strict=True):
        assert row["title"] in text
        assert f"{claims.SYMBOLS[row['verdict']]} {row['verdict']}" in text
        numbers = claims.glance(ledger, claim, judged)
        assert all(f"{label} {number}" in text.replace("\u00a0", " ") for label, number in numbers.items())
    context.close()


def test_the_front_page_shows_the_checks_of_the_attacks_beside_its_curves(
    run: Path, browser: Browser, site: str
) -> None:
    counted = pd.read_csv(run / "results/mnist_robustness/checks.csv")
    page = browser.new_page()
    page.goto(f"{site}/index.html")
    page.get_by_text("Check by check").click()
    table = page.get_by_role("region", name="Table checks")
    shown = table.locator("tbody tr").all_inner_texts()
    assert len(shown) == counted["check"].nunique() == 12
    for row, text in zip(counted["check"].drop_duplicates(), shown, strict=True):
        assert loose(text).startswith(row)
    failed = counted[counted["passed"] < counted["networks"]]
    assert table.get_by_role("img", name="failed").count() == len(failed)
    assert table.get_by_role("img", name="passed").count() == len(counted) - len(failed)
    page.close()


def test_a_second_call_does_nothing_again(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    done = isorepro(run.parent)
    assert "mnist_robustness: up to date" in done.stderr
    assert "book: up to date" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


HOLES = {
    "{number}`mnist_robustness:pgd_ce:.0%`": "{number}`mnist_robustness:no_such_number:.0%`",
    "{doc}`The method page <method>`": "{doc}`The method page <no_such_page>`",
    "{cite:p}`beshkov2025`": "{cite:p}`nobody2025`",
    "{run-figure} mnist_robustness/robustness": "{run-figure} mnist_robustness/no_such_figure",
}


def test_a_book_with_holes_does_not_build_each_is_warned_of_and_the_old_one_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = Path(shutil.copytree(book.SOURCES, tmp_path / "book"))
    text = (sources / "index.md").read_text()
    for old, new in HOLES.items():
        assert old in text
        text = text.replace(old, new)
    (sources / "index.md").write_text(text)
    monkeypatch.setattr(book, "SOURCES", sources)
    before = (run / "book/index.html").read_bytes()
    with pytest.raises(NotebookError, match=r"the book did not build: .*WARNING"):
        book.build(profiles.plan("smoke"))
    warnings = [line for line in (run / "book.log").read_text().splitlines() if "WARNING" in line]
    for missing in ("no_such_number", "no_such_page", "nobody2025", "no_such_figure"):
        assert any(missing in line for line in warnings), missing
    assert (run / "book/index.html").read_bytes() == before
