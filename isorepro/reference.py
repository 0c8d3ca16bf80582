"""The published numbers of a profile, and whether a run gives them again.

``data/reference/<profile>/<notebook>/<table>.csv`` holds the tables of single seeds of a run, as they lie in its
``results``, with floats of nine significant digits; ``manifest.json`` tells how that run was made and holds the
SHA-256 of each table.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from isorepro import paths, runner
from isorepro.errors import DataError, InputError, unknown
from isorepro.profiles import Plan
from isorepro.progress import say_left
from isorepro.results import ID_COLUMN

REFERENCE = paths.DATA / "reference"
"""The folder of the published tables and of the ledger."""

BY_SEED = "*_by_seed.csv"
"""How the tables of single seeds are called, the only ones compared: the others are made from them."""

SETTINGS = ("beta", "K", "epsilon")
"""The columns of floating-point numbers that are set; all others are measured."""

OF_A_KIND = ("form", "measure", "attack", "epsilon")
"""Measures of a table are of one kind if they agree in these columns, where it has them, and in what is measured:
those of other weights, levels and the like, whose seeds spread alike."""

DIGITS = 9
"""Significant digits of a published number, more than another processor leaves the same."""

TOLD = ("profile", "commit", "written", "processor", "notebooks")
"""What a manifest must tell at least."""

IDENTICAL, WITHIN = "identical", "within tolerance"
"""What ``verify`` says of a number that did not move."""

MOVED, MISSING, NEW, NOT_RUN, OTHER_COLUMNS = "moved", "missing", "new", "not run", "other columns"
"""What ``verify`` says of any other number, of a table that only one side has, and of a notebook left out."""

DEVIATIONS = 4.0
"""Standard deviations over the seeds that a mean may differ by. For five seeds and five others that is 6.3
standard errors of the difference: with two or three, some of thousands of measures, whose spread few seeds tell
badly, would have moved in every honest run."""

NEIGHBOURS = 21
"""Measures of a kind that a spread is pooled over: a measure and the ten of either side in the order of means."""

CONFIDENCE = 0.99
"""How surely the seeds of a measure must tell that it spreads less than its neighbours do before that counts."""

FLOOR = 1e-3
"""Least tolerance, as a share of the largest mean of its kind, for measures whose seeds all give the same."""

NOISE = 1e-6
"""Least tolerance of a kind whose means are all 0, in its own unit: what single precision leaves of a zero."""

UNKNOWN = 0.05
"""Least tolerance, as such a share, where no measure of the kind has two seeds: nothing is known of its spread."""

SINGLE = 2.0
"""Standard deviations of a binomial draw of its images that an accuracy of one seed is taken to spread, where no
measure of the kind has two. Two networks are compared, and trainings differ, too, not images alone: of published
networks two seeds lie up to 6.4 such deviations apart, so that four times one of them would move honest ones."""

TIME = "processor_seconds"
"""The column of times. They are the machine's: each is compared as a multiple of its table's geometric mean, the
same on a machine that is slower at all of it."""

SLOWER = 0.5
"""Share of such a multiple that it may differ by: processors differ in what they are good at, and other work slows
what shares a processor with it. Two runs of a search on a machine full of other work differed by up to 0.13."""

CLOCK = 0.5
"""Seconds that it may differ by besides, for start and clock: all that trainings of the profile for tests take."""


def published() -> list[str]:
    """Return the names of the profiles with a reference."""
    return sorted(path.parent.name for path in REFERENCE.glob("[!.]*/manifest.json"))


def publish(planned: Plan) -> Path:
    """Make the finished run of a plan the reference of its profile; return the reference's folder.

    Raises:
        InputError: a run with other parameters or of some notebooks only, one that is not finished or not up to
            date, one not known to be made by a commit without changes, one without a table of single seeds; or a
            file that no publication made is in the way.
        DataError: a damaged manifest, or a table whose rows its settings and seed do not tell apart.
    """
    name, again = planned.profile, f"run 'isorepro reproduce --profile {planned.profile}'"
    if planned.overrides or not planned.whole:
        raise InputError(f"profile '{name}': only a run of all its notebooks with its own parameters is published")
    outdated = runner.outdated(planned)
    if outdated:
        raise InputError(f"profile '{name}': not run, or not up to date: {', '.join(outdated)}; {again}")
    path = planned.folder / "manifest.json"
    told = _read_manifest(path, f"delete it and {again}", "uncommitted_changes")
    if told["uncommitted_changes"] is True:
        raise InputError(f"profile '{name}': run with uncommitted changes; commit them, delete {path} and {again}")
    if told["uncommitted_changes"] is not False or not re.fullmatch("[0-9a-f]{40,64}", str(told["commit"])):
        raise InputError(f"profile '{name}': run by an unknown commit; in a clone, delete {path} and {again}")
    made = paths.made(planned.folder)
    contents = {
        f"{notebook}/{source.name}": _read_table(source, f"delete it and {again}").to_csv(index=False)
        for notebook in planned.notebooks
        for source in sorted((planned.folder / "results" / notebook).glob(BY_SEED))
        if source in made
    }
    if not contents:
        raise InputError(f"profile '{name}': no notebook left a table of single seeds, {BY_SEED}")
    digests = {table: hashlib.sha256(content.encode()).hexdigest() for table, content in contents.items()}
    records = {notebook: told["notebooks"][notebook] for notebook in planned.notebooks}
    contents["manifest.json"] = json.dumps(told | {"notebooks": records, "tables": digests}, indent=1) + "\n"
    with runner.alone(planned.folder, "publish"):
        return _replace(REFERENCE / name, contents)


def _replace(folder: Path, contents: Mapping[str, str]) -> Path:
    """Write a reference in place of the one before, of which all is ours that its manifest tells of."""
    ours = {folder / name for name in [*manifest(folder)["tables"], "manifest.json"]} if folder.exists() else set()
    draft = paths.scratch(folder.parent, f".{folder.name}")
    for name, content in contents.items():
        paths.write_atomically(draft / "reference" / name, content)
    say_left(paths.put(draft / "reference", folder, ours))
    paths.discard(draft)
    return folder


def manifest(folder: Path) -> dict[str, Any]:
    """Return how the run behind a reference was made: commit, written, processor, notebooks, tables and more.

    Raises:
        DataError: a manifest that is missing or damaged.
    """
    return _read_manifest(folder / "manifest.json", _restore(folder), "tables")


def compare(run: Path, reference: Path, only: Sequence[str] = ()) -> pd.DataFrame:
    """Compare a run with a reference, measure by measure: the means over the seeds of each.

    The spread over the seeds of the reference sets the tolerance (:func:`tolerances`), as if those of the run were
    others. They are mostly the same, yet not paired, for two reasons. Another processor rounds the last digit
    otherwise; most measures hardly feel it, but what a long training leaves of a loss that it brings to almost
    nothing then differs as much as between seeds. And paired, one wrong number would widen the spread of the
    differences, and so the tolerance that it is held against.

    Args:
        run: folder of the run, with its ``results``.
        reference: folder of the reference.
        only: notebooks to compare; empty for all.

    Returns:
        One row per measure: notebook, table, measure (its settings, the column and, unless it is "value", the
        measured one), reference and run (means over seeds), difference (run − reference), tolerance, verdict and
        moved (whether the verdict is neither :data:`IDENTICAL` nor :data:`WITHIN`). Not a number equals not a
        number. A measure of one of the two only is :data:`MISSING` or :data:`NEW`; a table that is, or a notebook
        that was :data:`NOT_RUN`, is one row without measure.

    Raises:
        InputError: a notebook that the reference does not hold.
        DataError: a damaged table or manifest.
    """
    told = manifest(reference)
    notebooks = list(dict.fromkeys(name.partition("/")[0] for name in told["tables"]))
    for name in only:
        if name not in notebooks:
            raise unknown("notebook of the reference", name, notebooks)
    results = run / "results"
    made = {path.relative_to(results).as_posix(): path for path in sorted(results.glob(f"*/{BY_SEED}"))}
    parts = []
    for name in dict.fromkeys([*told["tables"], *made]):
        notebook, _, table = name.partition("/")
        if only and notebook not in only:
            continue
        rows = pd.DataFrame({"measure": [""], "verdict": [NEW]})
        if name in told["tables"]:
            known = _read_published(reference, name, told["tables"][name])
            if name in made:
                again = f"run 'isorepro reproduce --profile {told['profile']}'"
                rows = compare_tables(known, _read_table(made[name], f"delete it and {again}", like=known))
            else:
                rows["verdict"] = MISSING if (results / notebook).is_dir() else NOT_RUN
        parts.append(rows.assign(notebook=notebook, table=table.removesuffix(".csv")))
    columns = ["notebook", "table", "measure", "reference", "run", "difference", "tolerance", "verdict"]
    joined = pd.concat(parts, ignore_index=True).reindex(columns=columns)
    return joined.assign(moved=~joined["verdict"].isin([IDENTICAL, WITHIN]))


def counts(comparison: pd.DataFrame) -> pd.DataFrame:
    """Count the rows of :func:`compare` of each table: notebook, table, measures, identical, within and moved."""
    groups = comparison.assign(
        measures=1, identical=comparison["verdict"] == IDENTICAL, within=comparison["verdict"] == WITHIN
    ).groupby(["notebook", "table"], sort=False)
    return groups[["measures", "identical", "within", "moved"]].sum().reset_index()


def settings(table: pd.DataFrame) -> list[str]:
    """Return the columns of a table that tell its rows apart: text, whole numbers, truth values, and SETTINGS.

    The other columns hold floating-point numbers: what was measured.
    """
    return [str(name) for name in table if name in SETTINGS or not pd.api.types.is_float_dtype(table[name])]


def compare_tables(reference: pd.DataFrame, run: pd.DataFrame) -> pd.DataFrame:
    """Compare two tables of single seeds, as :func:`compare` does.

    Args:
        reference: columns of :func:`settings`, ``seed`` among them, and measured ones.
        run: a table with the same columns.

    Returns:
        The rows of :func:`compare` without notebook, table and moved; one of verdict :data:`OTHER_COLUMNS`, which
        names them, if the columns are not the same.
    """
    other = set(reference.columns) ^ set(run.columns)
    if other:
        return pd.DataFrame({"measure": [f"columns {', '.join(sorted(other))}"], "verdict": [OTHER_COLUMNS]})
    keys = settings(reference)
    both = pd.concat([reference[keys], run[keys]])
    told = [name for name in keys if name != "seed" and both[name].nunique(dropna=False) > 1]
    known, found = (_over_seeds(table, keys, told) for table in (reference, run))
    order = known.index.append(found.index.difference(known.index, sort=False))
    known, found = known.reindex(order), found.reindex(order)
    rows = pd.DataFrame({"reference": known["mean"], "run": found["mean"]})
    rows["difference"] = rows["run"] - rows["reference"]
    rows["tolerance"] = tolerances(known)
    same = (rows["run"] == rows["reference"]) | (rows["run"].isna() & rows["reference"].isna())
    close = rows["difference"].abs() <= rows["tolerance"]
    absent = [~order.isin(known["kind"].dropna().index), ~order.isin(found["kind"].dropna().index)]
    rows["verdict"] = np.select([*absent, same, close], [NEW, MISSING, IDENTICAL, WITHIN], MOVED)
    return rows.rename_axis("measure").reset_index()


def tolerances(measures: pd.DataFrame) -> pd.Series:
    """Return how far from each measure of a reference the mean of a run may lie: :data:`DEVIATIONS` · s.

    Two seeds can be alike by luck, so what a few seeds tell of a spread is weighed against what those of
    comparable measures tell, as is usual for many measures of few samples each (Smyth 2004,
    doi:10.2202/1544-6115.1027). Comparable are the :data:`NEIGHBOURS` of a kind (:data:`OF_A_KIND`) whose means
    lie nearest, as spread goes with level (Law et al. 2014, doi:10.1186/gb-2014-15-2-r29): at the edge of a map,
    where training fails, networks spread far more than where all train well. So s² is the pooled variance of
    these, but at least the measure's own, and at most the upper limit of confidence of its own
    (:data:`CONFIDENCE`, by the χ² of the normal distribution); two seeds set no such limit. The tolerance is never
    less than one image, where the table tells their number, nor than :data:`FLOOR`. A kind of single seeds has no
    spread: that of an accuracy is then made from its images (:data:`SINGLE`). Times have a rule of their own
    (:data:`SLOWER`, :data:`CLOCK`).

    Args:
        measures: one row per measure: mean, deviation (standard deviation over its seeds; NaN for one), seeds
            (their number), kind (text), images (their number; NaN where there are none), and clock (of a time,
            :data:`CLOCK` in the unit of its mean; NaN of all else).
    """
    kinds, own = measures["kind"], measures["deviation"] ** 2
    ordered = own[measures["mean"].sort_values(kind="stable").index].groupby(kinds)
    pooled = ordered.rolling(NEIGHBOURS, center=True, min_periods=1).mean().droplevel(0).reindex(own.index)
    freedom = (measures["seeds"] - 1).where(measures["seeds"] > 2)
    most = own * freedom / stats.chi2.ppf(1 - CONFIDENCE, freedom)
    spread: pd.Series = np.sqrt(pooled.clip(lower=own.fillna(0), upper=most.fillna(np.inf)))
    # By Laplace's rule of succession, as none of the images right does not mean that none ever will be.
    right = ((measures["mean"] * measures["images"] + 1) / (measures["images"] + 2)).clip(0, 1)
    spread = spread.fillna(SINGLE * (right * (1 - right) / measures["images"]) ** 0.5)
    share = pd.Series(np.where(spread.isna(), UNKNOWN, FLOOR), index=measures.index)
    least = (share * measures["mean"].abs().groupby(kinds).transform("max")).clip(lower=NOISE)
    usual = pd.concat([DEVIATIONS * spread, least, 1 / measures["images"]], axis=1).max(axis=1)
    return (SLOWER * measures["mean"] + measures["clock"]).fillna(usual)


def _over_seeds(table: pd.DataFrame, keys: list[str], told: list[str]) -> pd.DataFrame:
    """Return mean, deviation, seeds, kind, images and clock of each measure, named by its settings and column."""
    table = table.reset_index(drop=True)
    rows = pd.DataFrame({"name": _names(table[told]), "images": table.get("images", np.nan)})
    kinds = _names(table[[name for name in OF_A_KIND if name in table]])
    parts = []
    for column in table.columns.difference(keys, sort=False):
        name = rows["name"] + ("" if column == "value" else f": {column}")
        kind = [f"{kind}: {column}" for kind in kinds]
        unit, clock = (np.exp(np.log(table[column]).mean()), CLOCK) if column == TIME else (1.0, np.nan)
        parts.append(rows.assign(name=name, kind=kind, number=table[column] / unit, clock=clock / unit))
    groups = pd.concat(parts).groupby("name", sort=False)
    return groups.agg(
        mean=("number", "mean"),
        deviation=("number", "std"),
        seeds=("number", "count"),
        kind=("kind", "first"),
        images=("images", "first"),
        clock=("clock", "first"),
    )


def _names(settings: pd.DataFrame) -> list[str]:
    """Return the settings of each row in words: text as it is, numbers after their name."""

    def word(name: object, value: Any) -> str:
        if isinstance(value, str):
            return value
        return f"no {name}" if pd.isna(value) else f"{name} {value:.{DIGITS}g}"

    rows = settings.to_numpy(dtype=object)
    return [", ".join(word(*pair) for pair in zip(settings, row, strict=True)) for row in rows]


def _read_published(folder: Path, name: str, digest: str) -> pd.DataFrame:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path} is missing; {_restore(folder)}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise DataError(f"{path} is damaged or altered: not the SHA-256 of manifest.json; {_restore(folder)}")
    return _read_table(path, _restore(folder))


def _read_table(path: Path, remedy: str, like: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return a table of single seeds, floats of DIGITS digits; its measured columns are those of ``like``."""
    try:
        # Which run it was made by is no number to compare.
        table = pd.read_csv(path).drop(columns=ID_COLUMN, errors="ignore")
    except ValueError as error:
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}; {remedy}") from None
    known = table if like is None else like
    measured = [name for name in known.columns.difference(settings(known), sort=False) if name in table]
    if "seed" not in table or not measured:
        raise DataError(f"{path} is damaged: it has no column 'seed', or none of measured numbers; {remedy}")
    for name in measured:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise DataError(f"{path} is damaged: column '{name}' holds what is no number; {remedy}")
    twice = table.duplicated(table.columns.difference(measured))
    if twice.any():
        raise DataError(f"{path}: line {int(twice.argmax()) + 2} repeats the settings of an earlier one; {remedy}")
    for name in measured:
        table[name] = [float(f"{value:.{DIGITS}g}") for value in table[name]]
    return table


def _read_manifest(path: Path, remedy: str, needed: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {remedy}") from None
    except ValueError:
        raise DataError(f"{path} is damaged; {remedy}") from None
    if not isinstance(content, dict) or not {*TOLD, needed} <= content.keys():
        raise DataError(f"{path} is damaged: it has not all of {', '.join([*TOLD, needed])}; {remedy}")
    return content


def _restore(folder: Path) -> str:
    return f"restore it with 'git checkout -- data/reference/{folder.name}'"
