"""What the book says of the claims: parts of its pages, written as MyST from the ledger and a run's tables."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from isorepro import claims, paths
from isorepro.claims import Claim, Ledger, Statement

Row = dict[str, Any]
"""A row of a table, by column."""

_CLASSES = {
    claims.HOLDS: "holds",
    claims.PARTLY: "partly",
    claims.FAILS: "fails",
    claims.UNDECIDED: "undecided",
    claims.UNTESTED: "untested",
    claims.DESCRIBED: "untested",
}

_STATEMENTS = ["Statement", "Effect, with its 95 % interval", "Verdict", "With Holm’s correction"]


def write(results: Path, draft: Path) -> None:
    """Judge the claims by a run's tables and write what the book's pages include.

    Args:
        results: the run's ``results``.
        draft: the folder the book is laid out in: it gets ``glance.md``, ``overview.md`` and ``claims.md`` in
            ``_claims``, and the verdicts as tables, ``verdicts.csv`` and ``overall.csv`` in ``results/claims``.

    Raises:
        InputError: as :func:`isorepro.claims.load` and :func:`isorepro.claims.verdicts`.
    """
    ledger = claims.load()
    judged = claims.verdicts(ledger, results)
    summed = claims.overall(ledger, judged)
    for name, table in {"verdicts": judged, "overall": summed}.items():
        paths.write_atomically(draft / "results" / "claims" / f"{name}.csv", table.to_csv(index=False))
    paths.write_atomically(draft / "_claims" / "glance.md", glance(ledger, judged, summed))
    paths.write_atomically(draft / "_claims" / "overview.md", overview(ledger, judged, summed))
    paths.write_atomically(draft / "_claims" / "claims.md", every_claim(ledger, judged, summed))


def badge(verdict: str) -> str:
    """Return a verdict as HTML: its symbol and its words, in its colour.

    Raises:
        KeyError: no verdict of a statement or claim.
    """
    symbol = f'<span aria-hidden="true">{claims.SYMBOLS[verdict]}</span>'
    return f'<span class="isorepro-verdict isorepro-{_CLASSES[verdict]}">{symbol} {verdict}</span>'


def glance(ledger: Ledger, judged: pd.DataFrame, summed: pd.DataFrame) -> str:
    """Return the table of the front page: claim, verdict and the numbers behind it, a short row each."""
    rows = []
    for claim, row in zip(ledger.claims, summed.to_dict("records"), strict=True):
        link = f"{{ref}}`{claim.title} <claim-{claim.id.lower()}>`"
        numbers = []
        for label, text in claims.glance(ledger, claim, judged).items():
            effect, _, interval = text.partition(" (")
            told = f" <span class='isorepro-interval'>({interval}</span>" if interval else ""
            numbers.append(_unbroken(f"{label} **{effect}**{told}"))
        rows.append([link, _badge(row["verdict"]), "\n\n".join(numbers) or "–"])
    return _table("isorepro-glance", ["Claim", "Verdict", "The number behind it"], rows)


def overview(ledger: Ledger, judged: pd.DataFrame, summed: pd.DataFrame) -> str:
    """Return the table with the strongest evidence: claim, verdict and evidence, a row each."""
    rows = []
    for claim, row in zip(ledger.claims, summed.to_dict("records"), strict=True):
        link = f"{{ref}}`{claim.id}.\u00a0{claim.title} <claim-{claim.id.lower()}>`"
        verdict = _badge(row["verdict"]) + claims.told_twice(row, "\n\n").removeprefix(row["verdict"])
        found = [
            f"{_unbroken(text)} ({_page(ledger.statement(name))})"
            for name, text in claims.evidence(ledger, claim, judged).items()
        ]
        rows.append([f"**{link}**", _unbroken(verdict), "\n\n".join(found) or "–"])
    return _table("isorepro-overview", ["Claim", "Verdict", "Evidence, with 95 % intervals over seeds"], rows)


def every_claim(ledger: Ledger, judged: pd.DataFrame, summed: pd.DataFrame) -> str:
    """Return a section for each claim: text, verdict, and every statement with its effect, limit and verdict."""
    rows: list[Row] = [{str(name): value for name, value in row.items()} for row in judged.to_dict("records")]
    by_name = {row["statement"]: row for row in rows}
    sections = []
    for claim, total in zip(ledger.claims, summed.to_dict("records"), strict=True):
        tally = "\n".join(f"* {line}" for line in total["tally"].split("; "))
        table = [_statement(claim, statement, by_name) for statement in claim.statements]
        sections += [
            f"(claim-{claim.id.lower()})=\n## {claim.id}. {claim.title}",
            f"{claim.text} *Where: {claim.where}.*",
            _badge(total["verdict"]) + claims.told_twice(total, "\n\n").removeprefix(total["verdict"]),
            tally,
            _table("isorepro-statements", _STATEMENTS, table),
            _reasons(claim),
        ]
    return "\n\n".join(sections) + "\n"


def _badge(verdict: str) -> str:
    # A role of the book's extension, which shows what badge() returns.
    return f"{{verdict}}`{verdict}`"


def _statement(claim: Claim, statement: Statement, rows: dict[str, Row]) -> list[str]:
    row, test = rows[statement.id], statement.test
    whole = ", ".join(claim.needing(statement.id))
    place = statement.protocol + f"; part of {whole}" * bool(whole)
    text = f"**{statement.id}** {statement.text} <span class='isorepro-protocol'>{place}</span>"
    wanted = statement.description or (f"Wanted: {test.limit()}." if test else "")
    if statement.all_of:
        effect = f"All of these: {'; '.join(_needed(rows[name]) for name in statement.all_of)}."
    elif test is None:
        effect = statement.untested or ""
    elif not row["seeds"]:
        effect = f"This run has no such networks, attacks or radii.\n\n{wanted}"
    else:
        value = test.shown(row["effect"], row["low"], row["high"])
        table = f'<a href="results/{test.table}.csv" download>CSV</a>'
        effect = (
            f"**{value}**\n\n{test.effect}, {row['seeds']} seed{'s' * (row['seeds'] != 1)} "
            f"({_page(statement)}, {table})\n\n{wanted}"
        )
        effect += f"\n\n{row['why'].capitalize()}." if row["why"] else ""
    verdict = _badge(row["verdict"]) + " fragile" * row["fragile"]
    return [_unbroken(text), _unbroken(effect), verdict, _badge(row["holm"])]


def _needed(row: Row) -> str:
    link = f"{{ref}}`{row['statement']} <claim-{row['claim'].lower()}>`"
    return f"{link} {row['verdict']}{' (fragile)' * row['fragile']}"


def _page(statement: Statement) -> str:
    """Return a link to the page with the table that decides a statement."""
    assert statement.test is not None
    return f"{{doc}}`page <notebooks/{statement.test.notebook}>`"


def _unbroken(text: str) -> str:
    """Keep a symbol and its value, a number and its unit on one line."""
    return re.sub(r"(?<=[βεK]) = (?=[\d.])|(?<=\d) (?=points?\b|%)|(?<= −) (?=CE)", _no_break, text)


def _no_break(found: re.Match[str]) -> str:
    return found.group().replace(" ", "\u00a0")


def _reasons(claim: Claim) -> str:
    """Return why each limit of a claim is what it is, limits with the same reason together."""
    limits: dict[str, list[str]] = {}
    for test in (statement.test for statement in claim.statements if not statement.description):
        if test and test.limit() not in limits.setdefault(test.reason, []):
            limits[test.reason].append(test.limit())
    told = "\n".join(f"* *{'*; *'.join(wanted)}*: {reason}" for reason, wanted in limits.items())
    return f"Why these limits:\n\n{told}"


def _table(name: str, head: list[str], rows: list[list[str]]) -> str:
    cells = [
        "\n".join(
            f"{'* - ' if not column else '  - '}{cell.replace(chr(10), chr(10) + ' ' * 4)}"
            for column, cell in enumerate(row)
        )
        for row in [head, *rows]
    ]
    return f"```{{list-table}}\n:header-rows: 1\n:class: isorepro-cards {name}\n\n" + "\n".join(cells) + "\n```"
