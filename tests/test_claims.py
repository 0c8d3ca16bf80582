import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats as scipy_stats

from isorepro import claim_pages, claims
from isorepro.claims import DESCRIBED, FAILS, HOLDS, PARTLY, UNDECIDED, UNTESTED
from isorepro.errors import InputError

CE = [0.30, 0.34, 0.32, 0.31, 0.35]
GAINS = [0.20, 0.26, 0.23, 0.24, 0.22]

DIFFERENCE: dict[str, Any] = {
    "table": "page/curves",
    "select": {"attack": "FGSM", "epsilon": 0.0774},
    "setting": {"beta": 0.1},
    "baseline": {"beta": 0.0},
    "measure": "accuracy",
    "wanted": "higher by more than",
    "bound": 0.02,
    "reason": "It would not be seen.",
    "effect": "accuracy, β = 0.1 − CE",
    "unit": "points",
}
LEVEL = {name: value for name, value in DIFFERENCE.items() if name != "baseline"} | {
    "wanted": "at least",
    "bound": 0.5,
    "effect": "accuracy, β = 0.1",
    "unit": "percent",
}


def content(
    *tests: dict[str, Any] | None,
    protocols: tuple[str, ...] = ("as released",),
    name: str = "C1",
    second: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """A ledger of a claim with these statements, each a test, its fields or None for no test, and a second one."""
    names = itertools.cycle(protocols)
    statements = []
    for number, test in enumerate(tests, start=1):
        fields = test if test and not {"test", "all_of"}.isdisjoint(test) else {"test": test}
        if test := fields.get("test"):
            # No test may occur twice, so each names its radius in digits of its own.
            radius = {key: value + number * 1e-6 for key, value in test["select"].items() if key == "epsilon"}
            fields = fields | {"test": test | {"select": test["select"] | radius}}
        elif "all_of" not in fields:
            fields = {"untested": "No notebook does."}
        statements.append({"id": f"{name}.{number}", "text": "It does.", "protocol": next(names)} | fields)
    claim = {"id": name, "title": "A claim", "text": "It is so.", "where": "abstract", "headline": [f"{name}.1"]}
    claim |= {"glance": {"as seen": f"{name}.1"}, "statements": statements}
    return {"claims": [claim, *(content(*second, protocols=protocols, name="C2")["claims"] if second else [])]}


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    """A function from tests of statements to the ledger of them, through a file."""

    def load(*tests: dict[str, Any] | None, **options: Any) -> claims.Ledger:
        path = tmp_path / "claims.yml"
        path.write_text(yaml.safe_dump(content(*tests, **options)))
        return claims.load(path)

    return load


def curves(gains: list[float] = GAINS, ce: list[float] = CE, near: float = 0.3) -> pd.DataFrame:
    """Accuracies with decoys: other radii, attacks and weights, which must not be selected.

    The networks of weight 0.1 have a mean ``near_distance`` of ``near``, the others one of 1 − ``near``.
    """
    rows = [
        (beta, seed, attack, epsilon, value)
        for seed, (base, gain) in enumerate(zip(ce, gains, strict=True))
        for beta, accuracy in ((0.0, base), (0.1, base + gain), (0.11, 0.9))
        for attack, epsilon, value in (
            ("FGSM", 0.07742636826811271, accuracy),
            ("FGSM", 0.08, 0.7),
            ("PGD", 0.07742636826811271, 0.1),
        )
    ]
    table = pd.DataFrame(rows, columns=["beta", "seed", "attack", "epsilon", "accuracy"])
    return table.assign(near_distance=np.where(table["beta"] == 0.1, near, 1 - near) + (table["seed"] - 2) / 10)


def write(folder: Path, table: pd.DataFrame | str) -> Path:
    """Results with this table as page/curves."""
    (folder / "page").mkdir(exist_ok=True)
    text = table if isinstance(table, str) else table.to_csv(index=False)
    (folder / "page/curves.csv").write_text(text)
    return folder


def one(ledger: claims.Ledger, folder: Path) -> dict[Any, Any]:
    (row,) = claims.verdicts(ledger, folder).to_dict("records")
    return row


def test_a_difference_is_that_of_a_paired_t_test(ledger: Any, tmp_path: Path) -> None:
    row = one(ledger(DIFFERENCE), write(tmp_path, curves().sample(frac=1, random_state=0)))
    expected = scipy_stats.ttest_rel(np.add(CE, GAINS), CE).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert row["effect"] == pytest.approx(0.23)
    assert (row["verdict"], row["seeds"], row["unit"], row["table"]) == (HOLDS, 5, "points", "page/curves")
    assert (row["claim"], row["statement"], row["protocol"]) == ("C1", "C1.1", "as released")


def test_a_level_is_that_of_a_t_interval_and_a_share_ends_at_one(ledger: Any, tmp_path: Path) -> None:
    row = one(ledger(LEVEL), write(tmp_path, curves()))
    expected = scipy_stats.ttest_1samp(np.add(CE, GAINS), 0).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    row = one(ledger(LEVEL), write(tmp_path, curves(gains=[0.4, 0.7], ce=[0.3, 0.29])))
    assert row["low"] == 0
    assert row["high"] == 1
    correlation = LEVEL | {"unit": "correlation", "bound": -0.9}
    row = one(ledger(correlation), write(tmp_path, curves(gains=[1.2, 0.6], ce=[-0.3, -0.4])))
    assert (row["low"], row["high"]) == (-1, 1)
    test = ledger(correlation).statement("C1.1").test
    assert test.limit() == "at least -0.9"
    assert test.shown(row["effect"], row["low"], row["high"]) == "0.550 (−1.000 to 1.000)"


@pytest.mark.parametrize(
    ("wanted", "bound", "verdict"),
    [
        # The interval of GAINS reaches from 0.202 to 0.258, that of the level from 0.509 to 0.599.
        ("higher by more than", 0.20, HOLDS),
        ("higher by more than", 0.23, UNDECIDED),
        ("higher by more than", 0.26, FAILS),
        ("lower by more than", 0.0, FAILS),
        ("not higher by more than", 0.26, HOLDS),
        ("not higher by more than", 0.23, UNDECIDED),
        ("not higher by more than", 0.20, FAILS),
        ("not lower by more than", 0.0, HOLDS),
        ("at least", 0.50, HOLDS),
        ("at least", 0.55, UNDECIDED),
        ("at least", 0.61, FAILS),
        ("at most", 0.61, HOLDS),
        ("at most", 0.55, UNDECIDED),
        ("at most", 0.50, FAILS),
    ],
)
def test_a_verdict_says_on_which_side_of_the_bound_the_interval_lies(
    ledger: Any, tmp_path: Path, wanted: str, bound: float, verdict: str
) -> None:
    kind = LEVEL if wanted.startswith("at ") else DIFFERENCE
    assert one(ledger(kind | {"wanted": wanted, "bound": bound}), write(tmp_path, curves()))["verdict"] == verdict


@pytest.mark.parametrize(
    ("wanted", "bound", "verdict"),
    [
        ("lower by more than", 0.20, HOLDS),
        ("lower by more than", 0.23, UNDECIDED),
        ("lower by more than", 0.26, FAILS),
        ("not lower by more than", 0.26, HOLDS),
        ("not lower by more than", 0.23, UNDECIDED),
        ("not lower by more than", 0.20, FAILS),
        ("higher by more than", 0.0, FAILS),
        ("not higher by more than", 0.0, HOLDS),
    ],
)
def test_a_loss_is_judged_as_a_gain_mirrored(
    ledger: Any, tmp_path: Path, wanted: str, bound: float, verdict: str
) -> None:
    folder = write(tmp_path, curves(gains=[-gain for gain in GAINS]))
    assert one(ledger(DIFFERENCE | {"wanted": wanted, "bound": bound}), folder)["verdict"] == verdict


def test_networks_that_are_alike_in_every_seed_are_not_higher_but_not_lower_either(
    ledger: Any, tmp_path: Path
) -> None:
    folder = write(tmp_path, curves(gains=[0.0] * 5))
    wanted = ("higher by more than", "lower by more than", "not higher by more than", "not lower by more than")
    found = [one(ledger(DIFFERENCE | {"wanted": side, "bound": 0.0}), folder)["verdict"] for side in wanted]
    assert found == [FAILS, FAILS, HOLDS, HOLDS]


def test_one_seed_has_an_effect_and_no_verdict(ledger: Any, tmp_path: Path) -> None:
    row = one(ledger(DIFFERENCE), write(tmp_path, curves(gains=[0.2], ce=[0.3])))
    assert (row["verdict"], row["seeds"]) == (UNDECIDED, 1)
    assert row["effect"] == pytest.approx(0.2)
    assert np.isnan([row["low"], row["high"]]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_measure_not_defined_for_a_seed_decides_nothing(ledger: Any, tmp_path: Path, value: float) -> None:
    row = one(ledger(DIFFERENCE), write(tmp_path, curves(ce=[*CE[:4], value])))
    assert row["verdict"] == UNDECIDED
    assert np.isnan([row["effect"], row["low"], row["high"]]).all()


@pytest.mark.parametrize(
    "change", [{"table": "page/others"}, {"table": "elsewhere/curves"}, {"setting": {"beta": 5.0}},
               {"baseline": {"beta": 5.0}}, {"select": {"attack": "FGSM", "epsilon": 0.3}},
               {"select": {"attack": "DLR", "epsilon": 0.0774}}],
    ids=["table", "notebook", "setting", "baseline", "radius", "attack"],
)  # fmt: skip
def test_what_a_run_does_not_have_is_not_tested(ledger: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    row = one(ledger(DIFFERENCE | change), write(tmp_path, curves()))
    assert (row["verdict"], row["seeds"]) == (UNTESTED, 0)


def damaged(table: pd.DataFrame) -> dict[str, tuple[pd.DataFrame | str, str]]:
    chosen = table["attack"].eq("FGSM") & table["epsilon"].lt(0.078)
    last = table[chosen & table["beta"].eq(0.1) & table["seed"].eq(4)]
    broken = table.astype({"accuracy": object})
    broken.loc[last.index, "accuracy"] = "n/k"
    return {
        "empty": ("", "not a readable CSV table"),
        "ragged": ("a,b\n1,2\n1,2,3\n", "not a readable CSV table"),
        "column": (
            table.drop(columns="epsilon"),
            "no column 'epsilon': it has beta, seed, attack, accuracy, near",
        ),
        "no seed": (table.drop(columns="seed"), "no column 'seed'"),
        "no measure": (table.drop(columns="accuracy"), "no column 'accuracy'"),
        "text": (broken, "column 'accuracy': must hold numbers"),
        "twice": (pd.concat([table, last]), r"seed 4 has several rows with .*'beta': 0.1.*: select more closely"),
        "pair": (
            table.drop(last.index),
            r"the setting has seeds \[0, 1, 2, 3\] and the baseline \[0, 1, 2, 3, 4\]",
        ),
    }


@pytest.mark.parametrize("kind", damaged(curves()))
def test_a_table_that_cannot_decide_is_refused_in_one_line(ledger: Any, tmp_path: Path, kind: str) -> None:
    table, message = damaged(curves())[kind]
    with pytest.raises(InputError, match=rf"^statement C1\.1, page/curves: {message}") as caught:
        claims.verdicts(ledger(DIFFERENCE), write(tmp_path, table))
    assert "\n" not in str(caught.value)


def test_results_that_are_not_there_are_refused(ledger: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no folder of results"):
        claims.verdicts(ledger(DIFFERENCE), tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("ce", "gain", "why"),
    [
        (0.002, 0.007, "not tested at this radius: both sides are below 1 %"),
        (0.0, 0.0, "not tested at this radius: both sides are below 1 %"),
        (0.012, -0.01, ""), (0.002, 0.01, ""), (0.01, -0.01, ""), (0.0, 0.01, ""),
    ],
)  # fmt: skip
def test_two_shares_below_a_hundredth_are_not_compared(
    ledger: Any, tmp_path: Path, ce: float, gain: float, why: str
) -> None:
    folder = write(tmp_path, curves(ce=[ce] * 5, gains=[gain] * 5))
    row = one(ledger(DIFFERENCE), folder)
    assert (row["verdict"], row["holm"], row["why"]) == ((UNTESTED if why else FAILS,) * 2 + (why,))
    assert (row["effect"], row["seeds"], row["fragile"]) == (pytest.approx(gain), 5, False)
    # What is no share has no floor, and a level nothing to be compared with.
    assert one(ledger(DIFFERENCE | {"unit": "plain"}), folder)["verdict"] == FAILS
    assert one(ledger(LEVEL), folder)["verdict"] == FAILS


@pytest.mark.parametrize(
    ("near", "tested"), [(0.2, True), (0.25, True), (0.26, False), (np.inf, False), (0.8, False)]
)
def test_a_set_with_too_few_points_within_the_distance_is_not_tested(
    ledger: Any, tmp_path: Path, near: float, tested: bool
) -> None:
    folder = write(tmp_path, curves(near=near))
    for test in (SHAKY, LEVEL):
        row = one(ledger(test | {"within": FAR["within"]}), folder)
        assert (row["verdict"], row["fragile"], row["seeds"]) == (HOLDS if tested else UNTESTED, tested, 5)
        assert row["why"] == ("" if tested else f"too few points within 0.25: mean near distance {near:.3f}")
    # The other side of the same distance; a mean that is not defined is on neither.
    row = one(ledger(SHAKY | {"beyond": FAR["within"]}), folder)
    assert row["why"] == ("" if near >= 0.25 else f"too few points beyond 0.25: mean near distance {near:.3f}")
    undefined = one(ledger(SHAKY | {"beyond": FAR["within"]}), write(tmp_path, curves(near=np.nan)))
    assert undefined["verdict"] == UNTESTED
    with pytest.raises(InputError, match=r"^statement C1\.1, page/curves: no column 'far_distance'"):
        claims.verdicts(ledger(DIFFERENCE | {"within": {"far_distance": 0.25}}), folder)


@pytest.mark.parametrize(
    ("bound", "verdict", "fragile"),
    [
        # The interval of GAINS reaches from 0.2022 to 0.2578, a third of its half-width is 0.0093.
        (0.1925, HOLDS, False), (0.1935, HOLDS, True), (0.2110, UNDECIDED, True), (0.2120, UNDECIDED, False),
        (0.2480, UNDECIDED, False), (0.2490, UNDECIDED, True), (0.2665, FAILS, True), (0.2675, FAILS, False),
    ],
)  # fmt: skip
def test_a_verdict_is_fragile_if_its_interval_ends_near_the_bound(
    ledger: Any, tmp_path: Path, bound: float, verdict: str, fragile: bool
) -> None:
    for sign, wanted in ((1, "higher by more than"), (-1, "lower by more than")):
        folder = write(tmp_path, curves(gains=[sign * gain for gain in GAINS]))
        row = one(ledger(DIFFERENCE | {"wanted": wanted, "bound": bound}), folder)
        assert (row["verdict"], row["fragile"]) == (verdict, fragile)


def test_what_rounding_leaves_of_a_difference_decides_nothing(ledger: Any, tmp_path: Path) -> None:
    # 0.52 − 0.5 is a little above 0.02.
    folder = write(tmp_path, curves(ce=[0.5] * 5, gains=[0.52 - 0.5] * 5))
    row = one(ledger(DIFFERENCE | {"bound": 0.02}), folder)
    assert (row["verdict"], row["fragile"]) == (FAILS, True)


def test_a_share_that_is_not_defined_for_a_seed_is_not_below_the_floor(ledger: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, curves(ce=[0.001] * 5, gains=[0.0, 0.001, np.nan, 0.0, 0.001]))
    assert one(ledger(DIFFERENCE), folder)["verdict"] == UNDECIDED


def test_verdicts_are_corrected_for_the_number_of_tests_of_their_claim(ledger: Any, tmp_path: Path) -> None:
    bounds = [0.02, 0.19, 0.2, 0.201, 0.23, 0.26, 0.28, 0.5]
    # Were they tests, these would have the largest p values.
    others = [None, MISSING, OPEN | {"within": FAR["within"]}, {"test": OPEN, "description": "A look."}]
    others += [{"all_of": ["C1.1", "C1.2"]}, {"all_of": ["C1.1"]}]
    alone = DIFFERENCE | {"wanted": "not higher by more than", "bound": 0.26}
    given = ledger(*(DIFFERENCE | {"bound": bound} for bound in bounds), *others, second=[alone])
    judged = claims.verdicts(given, write(tmp_path, curves()))
    assert judged["verdict"][:8].tolist() == [HOLDS] * 4 + [UNDECIDED] + [FAILS] * 3
    # Holm's method in his own words: from the smallest p value on, as long as it is small enough for those left.
    p_values = [scipy_stats.ttest_1samp(GAINS, bound).pvalue for bound in bounds]
    decided: set[int] = set()
    for left, place in zip(range(8, 0, -1), np.argsort(p_values), strict=True):
        if p_values[place] >= 0.05 / left:
            break
        decided.add(int(place))
    expected = [old if place in decided else UNDECIDED for place, old in enumerate(judged["verdict"][:8])]
    assert judged["holm"][:8].tolist() == expected == [HOLDS, *[UNDECIDED] * 5, FAILS, FAILS]
    assert judged["holm"][8:].tolist() == [UNTESTED] * 3 + [DESCRIBED, UNDECIDED, HOLDS, HOLDS]
    assert judged["p"][:8].tolist() == pytest.approx(p_values)
    told = claims.overall(given, judged)[["told", "holm"]].to_numpy().tolist()
    assert told == [["holds in part – in part: as released"] * 2, ["holds"] * 2]
    short = ledger(DIFFERENCE | {"bound": 0.201}, DIFFERENCE | {"bound": 0.26}, protocols=("A", "B"))
    (row,) = claims.overall(short, claims.verdicts(short, tmp_path)).to_dict("records")
    told = "holds in part – in full: A; does not hold: B"
    assert (row["verdict"], row["told"], row["holm"]) == (PARTLY, told, "undecided")
    assert claims.told_twice(row, "; ") == f"{told}; With Holm’s correction: undecided"


@pytest.mark.parametrize(
    ("parts", "verdict", "fragile"),
    [
        ("good good", HOLDS, False), ("good shaky", HOLDS, True), ("good open", UNDECIDED, False),
        ("good edge", UNDECIDED, True), ("open edge", UNDECIDED, True), ("open missing", UNTESTED, False),
        ("far good", UNTESTED, False), ("bad missing", FAILS, False), ("open bad good", FAILS, False),
        ("bad near", FAILS, False), ("near shaky", FAILS, True),
    ],
)  # fmt: skip
def test_a_statement_that_needs_others_counts_once_for_all_of_them(
    ledger: Any, tmp_path: Path, parts: str, verdict: str, fragile: bool
) -> None:
    kinds = {"good": GOOD, "bad": BAD, "open": OPEN, "missing": MISSING, "far": FAR, "shaky": SHAKY}
    kinds |= {"edge": DIFFERENCE | {"bound": 0.211}, "near": DIFFERENCE | {"bound": 0.26}}
    tests = [kinds[part] for part in parts.split()]
    given = ledger({"all_of": [f"C1.{place + 2}" for place in range(len(tests))]}, *tests)
    judged = claims.verdicts(given, write(tmp_path, curves()))
    assert tuple(judged.loc[0, ["verdict", "fragile"]]) == (verdict, fragile)
    assert judged["counted"].tolist() == [True] + [False] * len(tests)
    (row,) = claims.overall(given, judged).to_dict("records")
    assert row["told"] == verdict


def test_what_another_claim_tests_is_cited_and_what_is_described_does_not_count(
    ledger: Any, tmp_path: Path
) -> None:
    described = {"test": BAD, "description": "A look."}
    both = {"all_of": ["C2.1", "C1.1"]}
    accurate = DIFFERENCE | {"wanted": "not lower by more than"}
    given = ledger(GOOD, BAD, described, second=[accurate, both, {"all_of": ["C1.2"]}], protocols=("A", "B"))
    judged = claims.verdicts(given, write(tmp_path, curves()))
    assert judged["verdict"].tolist() == [HOLDS, FAILS, DESCRIBED, HOLDS, HOLDS, FAILS]
    assert judged["counted"].tolist() == [True, True, False, False, True, True]
    assert judged.loc[2, "effect"] == pytest.approx(0.23)
    tally = claims.overall(given, judged)["tally"].tolist()
    assert tally == ["A: 1 of 1 hold; B: 0 of 1 hold", "B: 1 of 1 hold; A: 0 of 1 hold"]
    claim = given.claims[1].model_copy(update={"headline": ("C1.1", "C1.3"), "glance": {"it": "C1.1"}})
    assert list(claims.evidence(given, claim, judged)) == ["C1.1", "C1.3"]
    assert claims.glance(given, claim, judged) == {"it": "+23.0 points (+20.2 to +25.8)"}
    # The same rows, measure and side are the same test, whatever the bound and wherever a value stands.
    again = DIFFERENCE | {"select": {"attack": "FGSM"}, "bound": 0.1}
    again |= {"setting": {"beta": 0.1, "epsilon": 0.077401}, "baseline": {"epsilon": 0.077401, "beta": 0.0}}
    with pytest.raises(InputError, match=r"C2\.1 must not repeat the test of C1\.1: cite it"):
        ledger(GOOD, second=[again])
    for change in ({"measure": "near_distance"}, {"baseline": {"beta": 0.11}}, {"wanted": "lower by more than"}):
        assert ledger(GOOD, second=[GOOD | change]).statement("C2.1")
    assert ledger(GOOD, second=[described | {"test": GOOD}, accurate]).statement("C2.1")
    with pytest.raises(InputError, match=r"C2\.2, all_of: must name statements with a test, found 'C2\.1'"):
        ledger(GOOD, second=[described, {"all_of": ["C2.1"]}])


GOOD, BAD = DIFFERENCE, DIFFERENCE | {"bound": 0.5}
OPEN, MISSING = DIFFERENCE | {"bound": 0.23}, DIFFERENCE | {"table": "page/others"}
FAR = DIFFERENCE | {"within": {"near_distance": 0.25}}
SHAKY = DIFFERENCE | {"bound": 0.2}


@pytest.mark.parametrize(
    ("tests", "verdict", "told"),
    [
        ([GOOD, GOOD], HOLDS, "holds"),
        ([GOOD, None], HOLDS, "holds"),
        ([GOOD, MISSING], HOLDS, "holds"),
        ([GOOD, BAD], PARTLY, "holds in part – in full: A; does not hold: B"),
        ([GOOD, OPEN, GOOD], PARTLY, "holds in part – in full: A; undecided: B"),
        ([GOOD, BAD, BAD, BAD, GOOD], PARTLY, "holds in part – in part: A; does not hold: B"),
        ([GOOD, GOOD, BAD, GOOD], PARTLY, "holds in part – in full: B; in part: A"),
        ([GOOD, BAD, None, GOOD], PARTLY, "holds in part – in part: A, B"),
        ([GOOD, BAD, GOOD, MISSING], PARTLY, "holds in part – in full: A; does not hold: B"),
        ([BAD, GOOD, MISSING, GOOD, BAD], PARTLY, "holds in part – in full: B; does not hold: A"),
        ([BAD, GOOD, GOOD, FAR], PARTLY, "holds in part – in part: A, B"),
        ([GOOD, MISSING, BAD], PARTLY, "holds in part – in part: A; not tested here: B"),
        ([BAD, BAD], FAILS, "does not hold"),
        ([BAD, OPEN], FAILS, "does not hold"),
        ([BAD, None], FAILS, "does not hold"),
        ([OPEN, OPEN], UNDECIDED, "undecided"),
        ([OPEN, MISSING], UNDECIDED, "undecided"),
        ([None, MISSING], UNTESTED, "not tested here"),
    ],
)
def test_a_claim_is_judged_by_its_tested_statements(
    ledger: Any, tmp_path: Path, tests: list[dict[str, Any] | None], verdict: str, told: str
) -> None:
    given = ledger(*tests, protocols=("A", "B"))
    (row,) = claims.overall(given, claims.verdicts(given, write(tmp_path, curves()))).to_dict("records")
    assert (row["claim"], row["title"], row["verdict"], row["told"]) == ("C1", "A claim", verdict, told)


def test_the_tally_counts_the_statements_of_each_protocol(ledger: Any, tmp_path: Path) -> None:
    given = ledger(GOOD, None, BAD, None, OPEN, MISSING, MISSING, protocols=("A", "B"))
    (tally,) = claims.overall(given, claims.verdicts(given, write(tmp_path, curves())))["tally"]
    assert tally == "A: 1 of 3 hold, 1 undecided, 1 not tested here; B: not tested here"


@pytest.mark.parametrize(
    ("test", "shown", "limit"),
    [
        (DIFFERENCE, "+28.1 points (−1.0 to +31.2)", "higher by more than 2 points"),
        (DIFFERENCE | {"bound": 0.01}, "+28.1 points (−1.0 to +31.2)", "higher by more than 1 point"),
        (DIFFERENCE | {"unit": "plain"}, "+0.281 (−0.010 to +0.312)", "higher by more than 0.02"),
        (LEVEL, "28.1 % (−1.0 to 31.2)", "at least 50 %"),
        (LEVEL | {"unit": "plain", "wanted": "at most"}, "0.281 (−0.010 to 0.312)", "at most 0.5"),
    ],
)
def test_effects_and_limits_in_words(test: dict[str, Any], shown: str, limit: str) -> None:
    measured = claims.Measured(**test)
    assert measured.shown(0.2812, -0.0101, 0.3117) == shown
    assert measured.limit() == limit
    assert "one seed: no interval" in measured.shown(0.1, np.nan, np.nan)
    assert measured.shown(np.nan, np.nan, np.nan) == "not defined for every seed"
    assert "−0.0" not in measured.shown(-1e-9, -1e-9, -1e-9)


def edited(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A ledger of one statement with the value at this place; None removes it."""
    given = yaml.safe_load(yaml.safe_dump(content(DIFFERENCE)))
    place = given
    for part in path[:-1]:
        place = place[part]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return given


ALL = {"id": "C1.1", "text": "It does.", "protocol": "as released", "all_of": ["C1.1"]}
CLAIM: tuple[Any, ...] = ("claims", 0)
STATEMENT = (*CLAIM, "statements", 0)
TEST = (*STATEMENT, "test")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((*CLAIM, "verdict"), "holds", "claim C1: unknown field of Claim 'verdict'"),
        ((*STATEMENT, "verdict"), "holds", "statement C1.1: unknown field of Statement 'verdict'"),
        ((*TEST, "verdict"), "holds", "statement C1.1, test: unknown field of Measured 'verdict'"),
        (("verdicts",), "holds", "claims.yml: unknown field of Ledger 'verdicts'"),
        ((*TEST, "reason"), None, "statement C1.1, test: Measured.reason: Field required"),
        ((*TEST, "reason"), "", "statement C1.1, test: Measured.reason"),
        ((*TEST, "bound"), "2e-2", "statement C1.1, test: Measured.bound: .*number, not '2e-2'"),
        ((*TEST, "bound"), float("nan"), "statement C1.1, test: Measured.bound"),
        ((*TEST, "bound"), -0.1, "bound must be 0 or more for 'higher by more than'"),
        ((*TEST, "wanted"), "better", "Measured.wanted: must be 'higher by more than', .*, not 'better'"),
        ((*TEST, "wanted"), "at least", "'at least' must not have a baseline"),
        ((*TEST, "baseline"), None, "'higher by more than' must have a baseline"),
        ((*TEST, "unit"), "percent", "unit must be points or plain for 'higher by more than'"),
        ((*TEST, "table"), "../curves", "statement C1.1, test: Measured.table"),
        ((*TEST, "setting"), {}, "statement C1.1, test: Measured.setting"),
        ((*STATEMENT, "test"), None, "statement C1.1: .*must have either 'test', 'all_of' or 'unt"),
        ((*STATEMENT, "untested"), "Too dear.", "statement C1.1: .*must have either 'test', 'all_of' or 'unt"),
        ((*STATEMENT, "all_of"), ["C1.1"], "statement C1.1: .*must have either 'test', 'all_of' or 'unt"),
        ((*STATEMENT,), ALL | {"description": "A look."}, "statement C1.1: .*must have a 'test', which measures"),
        ((*STATEMENT,), ALL | {"all_of": "C1.2"}, "statement C1.1, all_of: must be a list, not 'C1.2'"),
        ((*STATEMENT,), ALL, "C1.1, all_of: must name statements with a test, found 'C1.1'"),
        ((*STATEMENT,), ALL | {"all_of": ["C1.2"]}, "all_of: must name statements with a test, found 'C1.2'"),
        ((*TEST, "within"), {"near": "0.1"}, "statement C1.1, test: Measured.within"),
        ((*STATEMENT, "test"), "FGSM", "statement C1.1, test: must map names to values, not be 'FGSM'"),
        ((*STATEMENT, "id"), "C1.2", "claim C1: .*numbered C1.1 to C1.1, found C1.2"),
        ((*CLAIM, "headline"), ["C2.1"], "claim C1: .*headline must name statements of the claim, found 'C2.1'"),
        ((*CLAIM, "glance"), {"x": "C2.1"}, "claim C1: .*glance must name statements of the claim, found 'C2.1'"),
        ((*CLAIM, "headline"), None, "claim C1, headline: must be a list, not None"),
        ((*CLAIM, "statements"), [], "claim C1: Claim.statements"),
        (("claims",), "none", "claims.yml, claims: must be a list, not 'none'"),
        (("claims",), content(None)["claims"] * 2, "claims.yml: .*every claim must occur once, found C1, C1"),
    ],
)  # fmt: skip
def test_a_ledger_with_a_fault_is_refused_in_one_line(
    tmp_path: Path, path: tuple[Any, ...], value: Any, message: str
) -> None:
    file = tmp_path / "claims.yml"
    file.write_text(yaml.safe_dump(edited(path, value)))
    with pytest.raises(InputError, match=message) as caught:
        claims.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("claims: [", "not valid YAML"), ("- C1", "must map names to values"), (None, "cannot be read")],
)
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "claims.yml").write_text(text)
    with pytest.raises(InputError, match=rf"^claims\.yml.*{message}"):
        claims.load(tmp_path / "claims.yml")


def test_the_readme_table_has_a_row_for_each_claim(ledger: Any, tmp_path: Path) -> None:
    given = ledger(GOOD, BAD, protocols=("as released", "corrected"))
    head, rule, row = claims.readme_table(given, write(tmp_path, curves())).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|") == 4
    assert row == (
        "| **C1** A claim | ◐ holds in part – in full: as released; does not hold: corrected "
        "| accuracy, β = 0.1 − CE: +23.0 points (+20.2 to +25.8) |"
    )
    readme = "before\n<!-- claims -->\nold | table\n<!-- /claims -->\nafter\n"
    written = claims.with_table(readme, row)
    assert written == f"before\n<!-- claims -->\n{row}\n<!-- /claims -->\nafter\n"
    assert claims.with_table(written, row) == written
    with pytest.raises(InputError, match=r"README\.md: must hold the lines"):
        claims.with_table("no markers", row)


def test_the_pages_say_every_statement_its_effect_its_limit_and_its_reason(ledger: Any, tmp_path: Path) -> None:
    described = {"test": OPEN, "description": "Only a look."}
    given = ledger(
        GOOD, BAD, described, None, {"all_of": ["C1.1", "C1.6"]}, SHAKY, GOOD, MISSING, GOOD, FAR, GOOD, OPEN,
        protocols=("as released", "corrected"),
    )  # fmt: skip
    judged = claims.verdicts(given, write(tmp_path, curves()))
    summed = claims.overall(given, judged)
    text = claim_pages.every_claim(given, judged, summed)
    for part in (
        "(claim-c1)=\n## C1. A claim", "{verdict}`holds in part` – in full: as released; does not hold: ",
        "corrected\n\nWith Holm’s correction: ",
        "* corrected: 0 of 2 hold, 1 undecided, 3 not tested here\n* as released: 4 of 4 hold",
        "<span class='isorepro-protocol'>as released; part of C1.5</span>", "`C1.6 <claim-c1>` holds (fragile).",
        "  - {verdict}`holds` fragile\n  - {verdict}`undecided`\n* - **C1.7**",
        "Only a look.\n  - {verdict}`description`\n  - {verdict}`description`",
        "Too few points within 0.25: mean near distance 0.300.",
        "**C1.2** It does.", "**+23.0\u00a0points (+20.2 to +25.8)**", "5 seeds",
        "Wanted: higher by more than 50\u00a0points", "{doc}`page <notebooks/page>`",
        'href="results/page/curves.csv"', "No notebook does.", "This run has no such",
        "* *higher by more than 2 points*; *higher by more than 50 points*; *higher by more than 20 points*; *hi",
    ):  # fmt: skip
        assert part in text, part
    shown = claim_pages.overview(given, judged, summed)
    assert "{ref}`C1.\u00a0A claim <claim-c1>`" in shown
    assert "+23.0\u00a0points (+20.2 to +25.8)" in shown
    assert "not hold: corrected\n    \n    With Holm’s correction: holds in part – in part: as released" in shown
    short = claim_pages.glance(given, judged, summed)
    assert "{ref}`A claim <claim-c1>`" in short
    assert "as seen **+23.0\u00a0points** <span class='isorepro-interval'>(+20.2 to +25.8)</span>" in short
    assert "as released" not in short


def test_a_badge_tells_its_verdict_by_words_and_symbol_too() -> None:
    badges = {verdict: claim_pages.badge(verdict) for verdict in claims.SYMBOLS}
    assert len(set(claims.SYMBOLS.values())) == len(badges) == 6
    for verdict, markup in badges.items():
        assert verdict in markup
        assert claims.SYMBOLS[verdict] in markup
    with pytest.raises(KeyError):
        claim_pages.badge("refuted")


def test_the_ledger_of_the_paper_is_valid_and_has_its_six_claims() -> None:
    ledger = claims.load()
    assert [claim.id for claim in ledger.claims] == [*(f"C{number}" for number in range(1, 7)), "O1"]
    (ours,) = [claim for claim in ledger.claims if claim.id.startswith("O")]
    assert all("ours" in text for text in (ours.title, ours.where))
    statements = [statement for claim in ledger.claims if claim != ours for statement in claim.statements]
    # The words name the settings that the tests select.
    for test in (statement.test for statement in statements if statement.test):
        if network := test.setting.get("network"):
            assert test.baseline["network"] in ("CE", "flat")
            assert f"{network} − {test.baseline['network']}" in test.effect
            assert f"β = {test.select.get('beta', 0):g}" in test.effect or test.baseline == {"network": "CE"}
            continue
        epsilon, beta = test.select.get("epsilon"), test.setting["beta"]
        assert not epsilon or f"ε = {epsilon:g}" in test.effect
        assert (f"β = {beta:g}" if beta else "CE") in test.effect or "normalised form" in test.effect
        assert test.baseline is None or (test.effect.endswith("− CE") and test.baseline["beta"] == 0)
    assert {statement.id for statement in statements if statement.untested} == {"C1.14", "C3.28"}
    # C4 needs both measures of the same points, C5 the accuracy of a network and what C1 says of it.
    for whole in (statement for statement in statements if statement.all_of):
        parts = [ledger.statement(name) for name in whole.all_of]
        first, *others = [part.test for part in parts if part.test]
        if whole.id.startswith("C4"):
            assert [test.select["measure"] for test in (first, *others)] == ["local_distortion", "jacobian_error"]
            assert {(test.measure, test.select["dataset"]) for test in others} == {
                (first.measure, first.select["dataset"])
            }
        else:
            assert (parts[0].id[:3], first.select["attack"]) == ("C5.", "no attack")
            assert {(part.id[:3], part.protocol) for part in parts[1:]} == {("C1.", whole.protocol)}
            assert all(test.setting == first.setting for test in others)


def test_the_command_writes_the_readme_or_says_in_one_line_why_not(
    ledger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\n<!-- claims -->\n\n<!-- /claims -->\n")
    monkeypatch.setattr("isorepro.paths.ROOT", tmp_path)
    monkeypatch.setattr(claims, "PUBLISHED", tmp_path / "published")
    with pytest.raises(SystemExit, match=r"^error: .*published: no folder of results"):
        claims.main()
    (tmp_path / "published").mkdir()
    claims.main()
    table = claims.readme_table(claims.load(), tmp_path / "published")
    assert readme.read_text() == f"# Title\n\n<!-- claims -->\n{table}\n<!-- /claims -->\n"
    assert table.count(UNTESTED) == len(claims.load().claims)
