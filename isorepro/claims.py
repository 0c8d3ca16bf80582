"""The ledger of the paper's claims: measurable statements, and their verdicts, computed from a run's tables.

A *statement* says on which side of a bound an effect lies. The effect is the difference between a setting and a
baseline of the same seed, or the level of one setting; it is a mean over seeds with its 95 % Student t interval. A
statement

* **holds** if its whole interval lies on the wanted side of the bound;
* **does not hold** if no part of the interval does; an effect of the right sign that is surely smaller than the
  bound asks for does not hold either;
* is **undecided** if the interval reaches across the bound, or if there is none: a single seed, or a measure that
  is not defined for one of them;
* is **not tested here** if the run has no such table, or no rows of the setting or of the baseline in it; if too
  few of its points lie near enough to what it speaks of (``within``), or far enough from it (``beyond``); or, *not
  tested at this radius*, if it compares two shares whose means are both below :data:`FLOOR`.

A verdict is **fragile** if its interval ends within a third of its half-width of the bound. Each verdict is given
a second time with Holm's correction for the number of tests of the claim: what the interval decides is undecided
there unless the adjusted p value is below 0.05. The p value is that of a t test of the effect against the bound,
paired for a difference and two-sided like the interval, since a verdict can fall on either side.

A statement may have no test and need **all of** some others instead, of its own claim or cited from another. It
does not hold if one of them does not; else it is not tested if one is not; else it is undecided if one is; else it
holds. It is fragile if what decides it is. A **description** has an effect and an interval, and no verdict. No two
statements of the ledger may have the same test: what is tested once is cited elsewhere.

A *claim* is judged by its counted statements: all but descriptions and those that another one of the claim needs,
which count once, as part of it. It **holds** if all that were tested do. It **holds in part** if some do, and is
then told protocol by protocol: in full under one all of whose statements hold, in part under one some of whose
do, be the others tested or not. It **does not hold** if none holds and at least one does not. Else it is
**undecided**, or **not tested here** if no statement was.

The ledger holds no verdicts: what it does not know, such as a verdict, it refuses.
"""

import re
import sys
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import pandas as pd
import yaml
from pydantic import Field, model_validator

from isorepro import paths, stats
from isorepro.errors import Config, InputError

LEDGER = paths.DATA / "reference" / "claims.yml"
"""The file of the claims."""

PUBLISHED = paths.DATA / "reference" / "paper"
"""The tables of the published run, laid out as a run's results are."""

HOLDS, PARTLY, FAILS, UNDECIDED, UNTESTED, DESCRIBED = (
    "holds",
    "holds in part",
    "does not hold",
    "undecided",
    "not tested here",
    "description",
)
"""The verdicts, and what a statement is that has none."""

SYMBOLS = {HOLDS: "✓", PARTLY: "◐", FAILS: "✕", UNDECIDED: "?", UNTESTED: "○", DESCRIBED: "·"}
"""Verdict → the symbol shown with it."""

FLOOR = 0.01
"""Share below which two means are too low to be compared."""

Made = TypeVar("Made", bound=Config)

_UNITS = {"points": " points", "percent": " %"}
_RANGES = {"percent": (0.0, 1.0), "correlation": (-1.0, 1.0)}

_SAME = 1e-3
"""Relative difference up to which a number of a table is the one selected."""

_LEVEL = 0.05
_FRAGILE = 1 / 3
"""Share of the half-width within which an end of an interval is near the bound."""


class Measured(Config):
    """How a statement is tested: which rows of which table, and what is wanted of them.

    Attributes:
        table: ``<notebook>/<table>`` of a run's results, a tidy table with a column ``seed``.
        select: column → value, of the setting and of the baseline alike; numbers match to a thousandth.
        setting: column → value, what tells the setting from the baseline.
        baseline: the same for the baseline; None if the level of the setting is judged.
        measure: the column of the values.
        wanted: the side of the bound on which the effect has to lie, the bound included for "not higher by more
            than", "not lower by more than", "at least" and "at most". The last two take a level, the others a
            difference.
        bound: the bound, in units of the measure; not negative for a difference.
        within: column → distance: where the mean of the setting's column is larger, too few points lie within the
            distance and the statement is not tested.
        beyond: the same where it is smaller, for a statement on points that have to lie beyond the distance.
        reason: why this bound.
        effect: what the effect is, to be read before its value.
        unit: "points" shows a difference of shares in points, "percent" a share, "plain" a number as it is,
            "correlation" a number from −1 to 1.
    """

    table: str = Field(pattern=r"^[a-z0-9_]+/[a-z0-9_]+$")
    select: dict[str, float | str]
    setting: dict[str, float | str] = Field(min_length=1)
    baseline: dict[str, float | str] | None = Field(default=None, min_length=1)
    measure: str
    wanted: Literal[
        "higher by more than",
        "lower by more than",
        "not higher by more than",
        "not lower by more than",
        "at least",
        "at most",
    ]
    bound: float = Field(allow_inf_nan=False)
    within: dict[str, float] = Field(default_factory=dict)
    beyond: dict[str, float] = Field(default_factory=dict)
    reason: str = Field(min_length=1)
    effect: str = Field(min_length=1)
    unit: Literal["points", "percent", "plain", "correlation"]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        level = self.wanted.startswith("at ")
        allowed: tuple[str, ...] = ("percent", "plain", "correlation")
        if level == (self.baseline is not None):
            raise ValueError(f"'{self.wanted}' must {'not ' * level}have a baseline")
        if not level:
            allowed = ("points", "plain")
            if self.bound < 0:
                raise ValueError(f"bound must be 0 or more for '{self.wanted}'")
        if self.unit not in allowed:
            raise ValueError(f"unit must be {' or '.join(allowed)} for '{self.wanted}'")
        return self

    @property
    def notebook(self) -> str:
        """The notebook whose page shows the table."""
        return self.table.partition("/")[0]

    @property
    def edge(self) -> float:
        """The effect at which the verdict turns: the bound with its sign."""
        return -self.bound if "lower" in self.wanted else self.bound

    @property
    def asked(self) -> tuple[Any, ...]:
        """What makes two tests the same: rows, measure and side; not the bound, nor the words that tell of it."""
        rows = [tuple(sorted((self.select | side).items())) for side in (self.setting, self.baseline or {})]
        return self.table, *rows, self.measure, self.wanted

    def judge(self, low: float, high: float) -> str:
        """Return the verdict on an interval of the effect; its ends are NaN where there is none."""
        if np.isnan(low) or np.isnan(high):
            return UNDECIDED
        # What is wanted is a half-line, so the two ends decide for all that lies between them.
        ends = {self._wants(low), self._wants(high)}
        return UNDECIDED if len(ends) == 2 else HOLDS if ends == {True} else FAILS

    def _wants(self, effect: float) -> bool:
        match self.wanted:
            case "higher by more than":
                return effect > self.edge
            case "lower by more than":
                return effect < self.edge
            case "not lower by more than" | "at least":
                return effect >= self.edge
            case "not higher by more than" | "at most":
                return effect <= self.edge

    def limit(self) -> str:
        """Return what is wanted as text, such as "higher by more than 2 points"."""
        scale = 100 if self.unit in _UNITS else 1
        amount = f"{scale * self.bound:g}"
        ending = " point" if self.unit == "points" and amount == "1" else _UNITS.get(self.unit, "")
        return f"{self.wanted} {amount}{ending}"

    def shown(self, effect: float, low: float, high: float) -> str:
        """Return an effect and its interval as text: "+28.1 points (+25.0 to +31.1)"."""
        scale, digits = (100, 1) if self.unit in _UNITS else (1, 3)
        sign = "" if self.baseline is None else "+"
        # Adding 0 takes the sign from a zero that a small negative number was rounded to.
        texts = [f"{round(scale * value, digits) + 0:{sign}.{digits}f}" for value in (effect, low, high)]
        if np.isnan(effect):
            return "not defined for every seed"
        ends = "one seed: no interval" if np.isnan(low) else f"{texts[1]} to {texts[2]}"
        return f"{texts[0]}{_UNITS.get(self.unit, '')} ({ends})".replace("-", "−")


class Statement(Config):
    """A statement: its text, the protocol it speaks of, and how it is tested or why it is not.

    ``all_of`` names the statements it needs in place of a test. ``description`` tells why an effect that a test
    measures is not judged.
    """

    id: str
    text: str = Field(min_length=1)
    protocol: str = Field(min_length=1)
    test: Measured | None = None
    all_of: tuple[str, ...] = ()
    untested: str | None = Field(default=None, min_length=1)
    description: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _either(self) -> Self:
        if [bool(self.test), bool(self.all_of), bool(self.untested)].count(True) != 1:
            raise ValueError("must have either 'test', 'all_of' or 'untested', the reason why there is none")
        if self.description and not self.test:
            raise ValueError("must have a 'test', which measures what a 'description' shows")
        return self


class Claim(Config):
    """A claim in our words: where it stands, its statements, and the ones shown in short tables.

    Those of the paper are numbered C1, C2 …, those of this book, which say so, O1, O2 …

    ``headline`` names those of the table with all the evidence, ``glance`` those of the front page, each under the
    few words that tell what it is; both may name what a statement of the claim cites.
    """

    id: str = Field(pattern=r"^[CO][1-9]$")
    title: str = Field(min_length=1)
    text: str = Field(min_length=1)
    where: str = Field(min_length=1)
    headline: tuple[str, ...] = Field(min_length=1)
    glance: dict[str, str] = Field(min_length=1)
    statements: tuple[Statement, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _numbered(self) -> Self:
        wanted = [f"{self.id}.{number}" for number in range(1, len(self.statements) + 1)]
        found = [statement.id for statement in self.statements]
        if found != wanted:
            raise ValueError(f"statements must be numbered {wanted[0]} to {wanted[-1]}, found {', '.join(found)}")
        shown = {*found, *(name for statement in self.statements for name in statement.all_of)}
        for field, names in {"headline": self.headline, "glance": self.glance.values()}.items():
            for name in names:
                if name not in shown:
                    raise ValueError(f"{field} must name statements of the claim, found '{name}'")
        return self

    def needing(self, name: str) -> list[str]:
        """Return the statements of the claim that need another one."""
        return [statement.id for statement in self.statements if name in statement.all_of]


class Ledger(Config):
    """The claims in order."""

    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _once(self) -> Self:
        names = [claim.id for claim in self.claims]
        if len(set(names)) < len(names):
            raise ValueError(f"every claim must occur once, found {', '.join(names)}")
        tests = {found.id: found.test for found in self.statements if found.test and not found.description}
        first: dict[tuple[Any, ...], str] = {}
        for name, test in tests.items():
            if (other := first.setdefault(test.asked, name)) != name:
                raise ValueError(f"{name} must not repeat the test of {other}: cite it")
        for statement in self.statements:
            if strange := sorted({*statement.all_of} - {*tests}):
                raise ValueError(f"{statement.id}, all_of: must name statements with a test, found '{strange[0]}'")
        return self

    @property
    def statements(self) -> list[Statement]:
        """The statements of all claims in order."""
        return [statement for claim in self.claims for statement in claim.statements]

    def statement(self, name: str) -> Statement:
        """Return the statement with an id that the ledger has."""
        return next(found for found in self.statements if found.id == name)


def load(path: Path = LEDGER) -> Ledger:
    """Read and check a ledger.

    Raises:
        InputError: a missing or unreadable file, an unknown or missing field or a wrong value; the line names the
            claim or statement, the field and what is allowed.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    listed = _mapping(content, path.name)
    return _made(Ledger, listed | {"claims": tuple(map(_claim, _entries(listed, "claims", path.name)))}, path.name)


def _claim(given: Any) -> Claim:
    name = f"claim {_mapping(given, 'claim').get('id', '?')}"
    statements = tuple(map(_statement, _entries(given, "statements", name)))
    headline = tuple(_entries(given, "headline", name))
    return _made(Claim, given | {"statements": statements, "headline": headline}, name)


def _statement(given: Any) -> Statement:
    name = f"statement {_mapping(given, 'statement').get('id', '?')}"
    if "test" in given:
        given = given | {"test": _made(Measured, _mapping(given["test"], f"{name}, test"), f"{name}, test")}
    if "all_of" in given:
        given = given | {"all_of": tuple(_entries(given, "all_of", name))}
    return _made(Statement, given, name)


def _mapping(given: Any, name: str) -> dict[str, Any]:
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise InputError(f"{name}: must map names to values, not be {given!r}")
    return given


def _entries(given: Mapping[str, Any], field: str, name: str) -> list[Any]:
    found = given.get(field)
    if not isinstance(found, list):
        raise InputError(f"{name}, {field}: must be a list, not {found!r}")
    return found


def _made(kind: type[Made], values: dict[str, Any], name: str) -> Made:
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def verdicts(ledger: Ledger, folder: Path) -> pd.DataFrame:
    """Judge every statement of a ledger by the tables of a run.

    Args:
        ledger: from :func:`load`.
        folder: a run's results, or published ones: tables ``<folder>/<notebook>/<table>.csv``.

    Returns:
        One row per statement, in order: claim, statement, protocol, counted (whether the claim is judged by it),
        verdict (:data:`HOLDS`, :data:`FAILS`, :data:`UNDECIDED`, :data:`UNTESTED` or :data:`DESCRIBED`), fragile,
        holm (the verdict with Holm's correction), why (the rule by which rows at hand do not test it), effect, low
        and high (its 95 % interval; NaN where there is none), p and p_holm (of the t test against the bound, as it
        is and adjusted), seeds, unit and table (empty for a statement that has no test).

    Raises:
        InputError: no such folder; a table that cannot be read or lacks a column; a selection with several rows
            of a seed, or whose seeds are not those of the baseline; values that are no numbers.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder of results to judge the claims by")
    read: dict[str, pd.DataFrame] = {}
    rows: list[dict[str, Any]] = []
    for claim in ledger.claims:
        for statement in claim.statements:
            row: dict[str, Any] = {"claim": claim.id, "statement": statement.id, "protocol": statement.protocol}
            row["counted"] = not (statement.description or claim.needing(statement.id))
            row |= {"verdict": UNTESTED, "fragile": False, "holm": UNTESTED, "why": ""}
            row |= dict.fromkeys(("effect", "low", "high", "p", "p_holm"), np.nan) | {"seeds": 0}
            test = statement.test
            rows.append(row | {"unit": test.unit if test else "", "table": test.table if test else ""})
            path = folder / f"{test.table}.csv" if test else None
            if test is None or path is None or not path.is_file():
                continue
            try:
                if test.table not in read:
                    read[test.table] = _read(path)
                rows[-1] |= _judged(read[test.table], test)
            except InputError as error:
                raise InputError(f"statement {statement.id}, {test.table}: {error}") from None
            if statement.description and rows[-1]["seeds"]:
                rows[-1] |= {"verdict": DESCRIBED, "fragile": False, "p": np.nan}
    return _combined(ledger, pd.DataFrame(rows))


def _combined(ledger: Ledger, judged: pd.DataFrame) -> pd.DataFrame:
    """Correct the verdicts on tests by Holm's method and give those on statements that need others."""
    judged = judged.set_index("statement", drop=False).rename_axis(None)
    judged["p_holm"] = judged.groupby("claim")["p"].transform(stats.holm)
    lost = judged["verdict"].isin((HOLDS, FAILS)) & ~(judged["p_holm"] < _LEVEL)
    judged["holm"] = judged["verdict"].mask(lost, UNDECIDED)
    for statement in ledger.statements:
        if statement.all_of:
            needed = judged.loc[list(statement.all_of)]
            for column in ("holm", "verdict"):
                judged.loc[statement.id, column] = verdict = _all_of(set(needed[column]))
            deciding = needed.loc[needed["verdict"] == verdict, "fragile"]
            # One that does not hold is enough: of several all would have to change.
            judged.loc[statement.id, "fragile"] = bool(deciding.all() if verdict == FAILS else deciding.any())
    return judged.reset_index(drop=True)


def _all_of(found: set[str]) -> str:
    return next(verdict for verdict in (FAILS, UNTESTED, UNDECIDED, HOLDS) if verdict in found)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise InputError("not a readable CSV table; run its notebook again") from None


def _judged(table: pd.DataFrame, test: Measured) -> dict[str, Any]:
    """Return what a table says of a test; nothing if it has no rows of the setting or of the baseline."""
    sides = [_by_seed(table, test.select | test.setting, test.measure)]
    if test.baseline is not None:
        sides.append(_by_seed(table, test.select | test.baseline, test.measure))
    if not all(map(len, sides)):
        return {}
    seeds = [sorted(side.index) for side in sides]
    if seeds[0] != seeds[-1]:
        raise InputError(f"the setting has seeds {seeds[0]} and the baseline {seeds[1]}: they must be the same")
    # What rounding leaves of a difference decides nothing.
    sample = (sides[0] if test.baseline is None else sides[0] - sides[1]).round(12)
    found: dict[str, Any] = {"verdict": UNDECIDED, "seeds": len(sample)}
    if np.isfinite(sample).all():
        found["effect"], *ends = stats.seed_interval(sample)
        # An interval does not reach beyond what the measure can be.
        found["low"], found["high"] = np.clip(ends, *_RANGES.get(test.unit, (-np.inf, np.inf))).tolist()
        near = min(abs(end - test.edge) for end in ends)
        found |= {"verdict": test.judge(found["low"], found["high"]), "p": stats.p_value(sample, test.edge)}
        found["fragile"] = bool(near <= (ends[1] - ends[0]) / 2 * _FRAGILE + 1e-12)
    if why := _too_little(table, test, sides):
        found |= {"verdict": UNTESTED, "fragile": False, "p": np.nan, "why": why}
    return found


def _too_little(table: pd.DataFrame, test: Measured, sides: list[pd.Series]) -> str:
    """Return why the rows at hand do not test a statement, or an empty text."""
    for side, distances in {"within": test.within, "beyond": test.beyond}.items():
        for column, distance in distances.items():
            mean = _by_seed(table, test.select | test.setting, column).mean(skipna=False)
            if not (mean <= distance if side == "within" else mean >= distance):
                return f"too few points {side} {distance:g}: mean {column.replace('_', ' ')} {mean:.3f}"
    if test.unit == "points" and all(side.mean(skipna=False) < FLOOR for side in sides):
        return f"not tested at this radius: both sides are below {FLOOR:.0%}".replace("%", " %")
    return ""


def _by_seed(table: pd.DataFrame, where: Mapping[str, float | str], measure: str) -> pd.Series:
    for column in (*where, "seed", measure):
        if column not in table:
            raise InputError(f"no column '{column}': it has {', '.join(map(str, table.columns))}")
    keep = np.ones(len(table), dtype=bool)
    for column, value in where.items():
        if isinstance(value, str):
            keep &= (table[column] == value).to_numpy()
        else:
            keep &= np.isclose(pd.to_numeric(table[column], errors="coerce"), value, rtol=_SAME, atol=0)
    found = table[keep]
    if not pd.api.types.is_numeric_dtype(found[measure]):
        raise InputError(f"column '{measure}': must hold numbers")
    if found["seed"].duplicated().any():
        seed, chosen = found.loc[found["seed"].duplicated(), "seed"].iloc[0], dict(where)
        raise InputError(f"seed {seed} has several rows with {chosen}: select more closely")
    return found.set_index("seed")[measure].astype(float)


def overall(ledger: Ledger, judged: pd.DataFrame) -> pd.DataFrame:
    """Sum up the verdicts claim by claim.

    Args:
        ledger: from :func:`load`.
        judged: from :func:`verdicts`.

    Returns:
        One row per claim, in order: claim, title, verdict (one of the five of a claim), told (the same in words,
        with each protocol if it holds in part), holm (told, with Holm's correction) and tally (for each protocol,
        how many of its tested statements hold); all of counted statements.
    """
    rows = []
    for claim in ledger.claims:
        own = judged[(judged["claim"] == claim.id) & judged["counted"]]
        verdict, told = _summed(_groups(own, "verdict"))
        _, holm = _summed(_groups(own, "holm"))
        tally = "; ".join(map(_tally, _groups(own, "verdict")))
        rows.append((claim.id, claim.title, verdict, told, holm, tally))
    return pd.DataFrame(rows, columns=["claim", "title", "verdict", "told", "holm", "tally"])


def _groups(own: pd.DataFrame, column: str) -> list[tuple[str, list[str]]]:
    groups = own.groupby("protocol", sort=False)[column]
    return [(str(protocol), verdicts.tolist()) for protocol, verdicts in groups]


def _summed(groups: list[tuple[str, list[str]]]) -> tuple[str, str]:
    found = {verdict for _, of in groups for verdict in of} - {UNTESTED}
    if found == {HOLDS}:
        return HOLDS, HOLDS
    if HOLDS in found:
        fares: dict[str, list[str]] = {name: [] for name in ("in full", "in part", FAILS, UNDECIDED, UNTESTED)}
        for protocol, of in groups:
            whole = "in full" if set(of) == {HOLDS} else "in part"
            fares[whole if HOLDS in of else _none_holds(set(of))].append(protocol)
        told = "; ".join(f"{name}: {', '.join(protocols)}" for name, protocols in fares.items() if protocols)
        return PARTLY, f"{PARTLY} – {told}"
    verdict = _none_holds(found)
    return verdict, verdict


def _none_holds(found: set[str]) -> str:
    return next((verdict for verdict in (FAILS, UNDECIDED) if verdict in found), UNTESTED)


def _tally(group: tuple[str, list[str]]) -> str:
    protocol, found = group
    tested = [verdict for verdict in found if verdict != UNTESTED]
    if not tested:
        return f"{protocol}: {UNTESTED}"
    counts = [f"{tested.count(HOLDS)} of {len(tested)} hold"]
    counts += [f"{tested.count(UNDECIDED)} undecided"] * (UNDECIDED in tested)
    counts += [f"{len(found) - len(tested)} {UNTESTED}"] * (len(tested) < len(found))
    return f"{protocol}: {', '.join(counts)}"


def evidence(ledger: Ledger, claim: Claim, judged: pd.DataFrame) -> dict[str, str]:
    """Return the effects of a claim's headline statements in words, by statement; tested ones only."""
    texts = {}
    for name in claim.headline:
        if shown := _effect(ledger, name, judged):
            texts[name] = f"{shown[0].effect}: {shown[1]}"
    return texts


def glance(ledger: Ledger, claim: Claim, judged: pd.DataFrame) -> dict[str, str]:
    """Return the few effects that the front page shows of a claim, by what they are; tested ones only."""
    found = {label: _effect(ledger, name, judged) for label, name in claim.glance.items()}
    return {label: shown[1] for label, shown in found.items() if shown}


def _effect(ledger: Ledger, name: str, judged: pd.DataFrame) -> tuple[Measured, str] | None:
    test = ledger.statement(name).test
    (row,) = judged[judged["statement"] == name].to_dict("records")
    if test is None or row["verdict"] == UNTESTED:
        return None
    return test, test.shown(row["effect"], row["low"], row["high"])


def told_twice(row: Mapping[Hashable, Any], between: str) -> str:
    """Return what :func:`overall` tells of a claim and, where Holm's correction changes it, what it then tells."""
    changed = f"{between}With Holm’s correction: {row['holm']}" if row["holm"] != row["told"] else ""
    return f"{row['told']}{changed}"


def readme_table(ledger: Ledger, folder: Path) -> str:
    """Return the claims table of the README, as Markdown, from the tables in a folder.

    Raises:
        InputError: as :func:`verdicts`.
    """
    judged = verdicts(ledger, folder)
    lines = ["| claim | verdict | evidence: effect with its 95 % interval over seeds |", "|---|---|---|"]
    for claim, row in zip(ledger.claims, overall(ledger, judged).to_dict("records"), strict=True):
        shown = "<br>".join(evidence(ledger, claim, judged).values()) or "–"
        told = f"{SYMBOLS[row['verdict']]} {told_twice(row, '<br>')}"
        lines.append(f"| **{claim.id}** {claim.title} | {told} | {shown} |")
    return "\n".join(lines)


_BLOCK = re.compile(r"(<!-- claims -->\n).*?(\n<!-- /claims -->)", flags=re.DOTALL)


def with_table(readme: str, table: str) -> str:
    """Return the README's text with a table between its two markers.

    Raises:
        InputError: the markers are not there exactly once.
    """
    text, count = _BLOCK.subn(lambda found: f"{found[1]}{table}{found[2]}", readme)
    if count != 1:
        raise InputError("README.md: must hold the lines '<!-- claims -->' and '<!-- /claims -->' once")
    return text


def main() -> None:
    """Write the README's claims table anew from the published tables (``python -m isorepro.claims``)."""
    path = paths.ROOT / "README.md"
    try:
        paths.write_atomically(path, with_table(path.read_text(), readme_table(load(), PUBLISHED)))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
