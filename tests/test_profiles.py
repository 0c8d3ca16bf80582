"""What parameters may be: every notebook's, read from the notebook, so that a new one is held to it as well."""

import re
import shlex
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter

from isorepro import cli, data, parameters, paths, profiles
from isorepro.errors import InputError

EVERY = [(notebook, name) for notebook in profiles.notebook_names() for name in profiles.parameters(notebook)]
FROM_ZERO = ("seed", "check_queries", "shown_digit")
SIGNED = ("spearman",)


def never(name: str, default: Any) -> list[Any]:
    """Values that make no sense, told from a parameter's name and default alone."""
    nan, inf = float("nan"), float("inf")
    match default:
        case bool() | str():
            return ["{1}", "", 1]
        case int():
            least = [] if name.endswith(FROM_ZERO) else [0]
            most = [2**70] if name.endswith(("seed", "size", "digit")) else []
            return [-1, True, 1.5, *least, *most]
        case float():
            return [nan, -1.5 if name.endswith(SIGNED) else -0.1, "0.1"]
        case [float(), *_]:
            rising = [[0.3, 0.1], [0.1, 0.1]] if name.endswith("epsilons") and name != "drawn_epsilons" else []
            rising += [[default[0]] * 2] if name != "shown_normalised_betas" else []
            return [[-1.0], [nan], [inf], 0.1, *rising]
        case [int(), *_]:
            return [[], [-1], [2**70], [default[0], default[0]], default[0]]
        case [str(), *_]:
            return [["{1}"], [default[0], default[0]], default[0]]
        case [list(), *_]:
            return [[], [[[0, 1], [3]]], [[[0, 0]]], [[0]], [[[-1]]]]
        case [dict(), *_]:
            return [
                [],
                [{"nonsense": 1}],
                [{}, {}],
                [{"beta": 1.0}],
                [{}, {"options": 3}],
                [{}, {"epochs": 0}],
                [{}, {"beta": []}],
            ]
        case dict():
            fields: list[Any] = [
                {"nonsense": 1},
                {"beta": -1.0},
                {"method": "{1}"},
                {"train_size": 10**9},
                {"options": {"x": 1}},
                {1: 2},
            ]
            return [default | {"mine": each} for each in [*fields, {"dataset": "none"}]]
    return [-1, "{1}"]


@pytest.mark.parametrize(("notebook", "name"), EVERY)
def test_what_makes_no_sense_is_refused_by_the_annotation_alone(notebook: str, name: str) -> None:
    found = profiles.parameters(notebook)
    above = {key: found[key].default for key in list(found)[: list(found).index(name)]}
    assert found[name].check(found[name].default, "here", above) == found[name].default
    values = never(name, found[name].default)
    assert values
    for value in values:
        with pytest.raises(InputError) as caught:
            found[name].check(value, f"notebook '{notebook}'", above)
        told = str(caught.value)
        assert re.match(rf"notebook '{notebook}': {name} \(", told), told
        assert "\n" not in told


@pytest.mark.parametrize(
    "name", ["mnist", "mnist_validation", "linked_rings", "torus", "paper_torus", "paper_torus_16", "two_moons"]
)
def test_sizes_that_are_allowed_are_those_of_the_data(name: str) -> None:
    dataset = data.load(name)
    parts: dict[Any, Any] = {"train": dataset.train_labels, "test": dataset.test_labels}
    for part, labels in parts.items():
        rule: TypeAdapter[Any] = TypeAdapter(Annotated[int, parameters.subset(name, part)])
        few, all_ = len(dataset.classes), len(labels)
        for size in (0, few - 1, few, all_ - few, all_ - few + 1, all_ - 1, all_, all_ + 1):
            refused = []
            for ask in (rule.validate_python, partial(data.stratified_indices, labels, seed=0)):
                try:
                    ask(size)
                except ValueError:
                    refused.append(ask)
            assert len(refused) in (0, 2), (part, size)


ACROSS = [
    ("mnist_hierarchy", {"beta": 0.3}, r"beta \(Positive \| None\): must be among betas, \[0.0, 0.1\], not 0.3"),
    ("mnist_structure", {"raw_betas": [0.0, 0.3]}, r"shown_raw_betas .*must be among raw_betas, \[0.0, 0.3\]"),
    ("mnist_explorer", {"ladder_epsilons": [0.3]}, r"drawn_epsilons .*among ladder_epsilons, \[0.0, 0.3\]"),
    ("mnist_structure", {"test_size": 20}, r"neighbours < test_size / 2 \(test_size = 20\), not 10"),
    (
        "decision_boundary",
        {"near": 0.6},
        r"far \(Share\): must be such that near \+ far <= 1 \(near = 0.6\), not 0.5",
    ),
    ("cifar10", {"train_size": 55_000}, r"train_size .*or all 50000, not 55000"),
    ("beyond_methods", {"settings": {"CE": {}}}, r"settings .*'local isometry'"),
    ("beyond_corruptions", {"trained_on": ["shear"]}, "unknown corruption to train on 'shear': allowed are Gauss"),
    ("torus", {"nearest": 160}, r"nearest < \(train_size or 1600\) \(train_size = 160\)"),
]


@pytest.mark.parametrize(("notebook", "given", "message"), ACROSS)
def test_what_parameters_ask_of_each_other_is_refused_before_anything_runs(
    notebook: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"^notebook '{notebook}': .*{message}"):
        profiles.plan("smoke", [notebook], given)


@pytest.mark.parametrize("profile", profiles.profile_names())
def test_cifar10_runs_when_it_is_named_alone_as_the_paper_trains_it(profile: str) -> None:
    assert "cifar10" not in profiles.plan(profile).notebooks
    planned = profiles.plan(profile, ["cifar10"])
    # No table of it lies among those of the profile, which verify compares.
    assert planned.folder.name == f"{profile}-cifar10"
    assert not planned.whole
    paper = {"K": 1, "epochs": 10, "width": 1000, "depth": 2, "betas": [0.0, 0.1], "train_size": None}
    assert paper.items() <= planned.notebooks["cifar10"].items()
    every = [*profiles.plan(profile).notebooks]
    assert profiles.plan(profile, every).whole
    assert not profiles.plan(profile, [*every, "cifar10"]).whole


def test_the_commands_of_the_readme_are_allowed() -> None:
    lines = re.findall(
        r"^\.venv/bin/isorepro reproduce .*-p.*$", (paths.ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line, comments=True)
        only = [name for option, name in pairwise(words) if option == "--only"]
        given = [value for option, value in pairwise(words) if option == "-p"]
        assert profiles.plan("quick", only, cli._assignments(given)).overrides


def test_list_tells_what_each_type_allows(command: Callable[..., tuple[int, str]]) -> None:
    status, printed = command("list")
    assert status == 0
    used = {
        word for nb, name in EVERY for word in re.findall(r"[A-Z]\w+", profiles.parameters(nb)[name].annotation)
    }
    for kind in used - {"None", "Literal", "Annotated", "CE"}:
        assert re.search(rf"^  {kind}: \w", printed, re.MULTILINE), kind
