"""How a figure was made, on small notebooks whose slices are plain to see."""

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

from isorepro import lineage, paths, profiles
from isorepro.errors import NotebookError

IMPORTS = """
import pandas as pd
from isorepro import plots, stats, sweep
from isorepro import hierarchy as hierarchies
from isorepro.results import Results
from isorepro.training import TrainingConfig
"""
PARAMETERS = "seeds = [0, 1]\nother_seeds = [7]\nbeta = 0.5\nK = 1.0"


def of(*cells: str, figure: str = "one") -> lineage.Slice:
    return lineage.slices([IMPORTS, PARAMETERS, 'results = Results("mine")', *cells], parameters=1)[figure]


DRAW = 'results.figure("one", plots.gap, {})'


@pytest.mark.parametrize(
    ("cells", "taken", "parameters"),
    [
        (["a = beta", "b = K", DRAW.format("a")], {3, 5}, ("beta",)),
        (["a = seeds", "b = a", "a = other_seeds", DRAW.format("b")], {3, 4, 6}, ("seeds",)),
        (["a = K", "a = beta", DRAW.format("a")], {4, 5}, ("beta",)),
        (["a = beta", "a = a + K", DRAW.format("a")], {3, 4, 5}, ("beta", "K")),
        (["a, b = beta, K", DRAW.format("b")], {3, 4}, ("beta", "K")),
        (["a = {}", "a['x'] = beta", DRAW.format("a")], {3, 4, 5}, ("beta",)),
        (["a = []", "a.append(K)", "a.x.y = beta", DRAW.format("a")], {3, 4, 5, 6}, ("beta", "K")),
        (["a = 1", "a += K", DRAW.format("a")], {3, 4, 5}, ("K",)),
        (["a = K", "if beta:\n    a = 2", DRAW.format("a")], {3, 4, 5}, ("beta", "K")),
        (["a = K", "for b in seeds:\n    c = b", DRAW.format("c")], {4, 5}, ("seeds",)),
        (["beta = beta or K", DRAW.format("beta")], {3, 4}, ("beta", "K")),
        (["x = seeds", DRAW.format("[x for x in other_seeds]")], {4}, ("other_seeds",)),
        (["x = seeds", DRAW.format("[y for y in x]")], {3, 4}, ("seeds",)),
        (["x = seeds", DRAW.format("lambda x: x + K")], {4}, ("K",)),
        (["def f():\n    return beta", DRAW.format("f()")], {3, 4}, ("beta",)),
        (["a = 1", DRAW.format("1, caption=f'{a:.2f} of {beta}'")], {3, 4}, ("beta",)),
        (['results.table("t", seeds)', 'results.figure("two", K)', DRAW.format("beta")], {5}, ("beta",)),
        (["a = beta", DRAW.format("1"), "b = a"], {4}, ()),
        (["a = beta\nb = K", "c = a; d = b\n" + DRAW.format("c")], {3, 4}, ("beta",)),
        (["a = beta", DRAW.format("'a'")], {4}, ()),
    ],
)
def test_a_figure_takes_the_cells_that_its_data_come_from(
    cells: list[str], taken: set[int], parameters: tuple[str, ...]
) -> None:
    found = of(*cells)
    # Its own cell is the last that draws; imports and the results' folder belong to every figure.
    assert set(found.cells) == taken | {0, 2}
    assert found.parameters == parameters


def test_two_figures_of_a_notebook_have_slices_of_their_own() -> None:
    cells = ["a = beta", "b = K", 'results.figure("two", b)', DRAW.format("a")]
    assert of(*cells).cells == (0, 2, 3, 6)
    assert of(*cells, figure="two").cells == (2 - 2, 2, 4, 5)
    assert of(*cells, figure="two").parameters == ("K",)


def test_functions_are_those_of_the_library_in_the_cells_of_the_figure() -> None:
    found = of(
        "models = sweep.train_all(sweep.grid(TrainingConfig(beta=beta), seed=seeds))",
        "unused = stats.over_seeds(models, 'value')",
        "text = pd.concat([hierarchies.from_text(a) for a in models]).groupby(stats.NO_SUCH_CONSTANT)",
        DRAW.format("text"),
    )
    assert found.functions == (
        *("isorepro.results.Results", "isorepro.sweep.train_all", "isorepro.sweep.grid"),
        *("isorepro.training.TrainingConfig", "isorepro.hierarchy.from_text", "isorepro.plots.gap"),
    )


def test_a_name_stands_for_what_it_was_bound_to_last() -> None:
    assert "isorepro.stats.seed_interval" not in of("stats = beta", DRAW.format("stats.seed_interval")).functions
    assert "isorepro.stats.seed_interval" in of(DRAW.format("stats.seed_interval")).functions


def test_functions_of_a_module_are_traced_as_the_cells_of_a_notebook_are() -> None:
    found = lineage.of_function("speed", "write")
    assert set(found) == {"evening", "scaling"}
    assert {"isorepro.speed.evening", "isorepro.plots.evening"} <= set(found["evening"].functions)
    assert not {"isorepro.speed.scaling", "isorepro.speed.ratios"} & set(found["evening"].functions)


@pytest.mark.parametrize("notebook", profiles.notebook_names())
def test_what_a_slice_leaves_out_is_not_needed(notebook: str) -> None:
    """Cut down to its slice, a notebook still binds every name before it is used."""
    cells = nbformat.read(profiles.NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    given = next(place for place, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", []))
    found = lineage.slices([cell.source for cell in code], parameters=given)
    assert found
    for name, taken in found.items():
        parameters = {node.target.id: node for node in ast.parse(code[given].source).body}  # type: ignore[attr-defined]
        bound = {*taken.parameters, *dir(__builtins__), *__builtins__}
        assert set(taken.parameters) <= set(parameters)
        for place in taken.cells:
            tree = ast.parse(code[place].source)
            local = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            local |= {
                a.asname or a.name
                for n in ast.walk(tree)
                if isinstance(n, ast.Import | ast.ImportFrom)
                for a in n.names
            }
            bound |= local
        drawn = next(
            node
            for place in taken.cells
            for node in ast.walk(ast.parse(code[place].source))
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) == "results.figure"
            and node.args[0].value == name  # type: ignore[attr-defined]
        )
        assert {n.id for n in ast.walk(drawn) if isinstance(n, ast.Name)} <= bound


FIGURE = '<figure class="isorepro-figure" id="mine-one"><svg></svg></figure>'


def executed(*, drawn: str = "one") -> nbformat.NotebookNode:
    cells: list[Any] = [nbformat.v4.new_markdown_cell("# Mine < all\n\ntext")]
    sources = [IMPORTS, PARAMETERS, "seeds = [3]", 'results = Results("mine")', "a = seeds", "b = 1"]
    for source in [*sources, f'results.figure("{drawn}", plots.gap, a, other_seeds)']:
        cells.append(nbformat.v4.new_code_cell(source, metadata={"papermill": {"duration": 2.0}, "tags": []}))
    cells[2].metadata["tags"] = ["parameters"]
    cells[3].metadata["tags"] = ["injected-parameters"]
    cells[-1].outputs = [nbformat.v4.new_output("display_data", {"text/html": FIGURE})]
    return nbformat.v4.new_notebook(cells=cells)


RECORD = {"parameters": {"seeds": [3], "other_seeds": [1, 2]}, "results": 9, "kept": 4}


def test_the_footer_says_cells_functions_seeds_and_time(tmp_path: Path) -> None:
    paths.write_atomically(tmp_path / "one.html", FIGURE)
    paths.write_atomically(tmp_path / "table.html", "<div>a table</div>")
    page = executed()
    lineage.tell("mine", page, RECORD, tmp_path)
    told = (tmp_path / "one.html").read_text()
    assert page.cells[-1].outputs[0].data["text/html"] == told
    assert (tmp_path / "table.html").read_text() == "<div>a table</div>"
    assert told.startswith('<figure class="isorepro-figure" id="mine-one"><svg></svg><details')
    assert told.endswith("</details></figure>")
    # The injected cell is not the author's: cells are counted as in the repository.
    assert "Mine &lt; all</a>, code cells 1, 3, 4 and 6 of 6" in told
    assert 'href="../notebooks/mine.html#mine-one"' in told
    assert 'href="../_sources/notebooks/mine.ipynb"' in told
    assert 'href="../_modules/isorepro/plots.html#gap"><code>plots.gap</code>' in told
    assert "3 (<code>seeds</code>); 1, 2 (<code>other_seeds</code>)" in told
    assert "8 s in these cells. Of this notebook’s 9 networks and measurements, 4 were kept" in told
    (tmp_path / "one.html").write_text(FIGURE)
    lineage.tell("mine", executed(), RECORD | {"kept": 0}, tmp_path)
    assert "9 networks and measurements, none was kept." in (tmp_path / "one.html").read_text()


def test_a_figure_whose_call_cannot_be_found_is_refused(tmp_path: Path) -> None:
    paths.write_atomically(tmp_path / "one.html", FIGURE)
    with pytest.raises(
        NotebookError, match=r"notebook 'mine': figure 'one': its call must have this name as text"
    ):
        lineage.tell("mine", executed(drawn="another"), RECORD, tmp_path)
    page = executed()
    page.cells[-1].source = "%matplotlib"
    with pytest.raises(NotebookError, match="notebook 'mine', code cell 6: not plain Python: invalid syntax"):
        lineage.tell("mine", page, RECORD, tmp_path)
