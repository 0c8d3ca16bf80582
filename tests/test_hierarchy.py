import itertools
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering

from isorepro import hierarchy
from isorepro.errors import InputError

Lists = list[list[list[int]]]

RELEASED: Lists = [
    [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]],
    [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]],
]
"""The pairs of digits of the released code: the pair of 4 and 5 has no parent."""


@st.composite
def partitions(draw: st.DrawFn, *, nested: bool = True, least: int = 0) -> Lists:
    """Draw up to three levels of groups of two to nine classes, groups and classes in any order."""
    classes = draw(st.integers(2, 9))
    levels: Lists = []
    for _ in range(draw(st.integers(least, 3))):
        names = draw(st.lists(st.integers(0, 2), min_size=classes, max_size=classes))
        above = {c: place for place, group in enumerate(levels[-1]) for c in group} if nested and levels else {}
        groups: dict[tuple[int, int], list[int]] = {}
        for c in draw(st.permutations(range(classes))):
            groups.setdefault((above.get(c, 0), names[c]), []).append(c)
        levels.append(list(groups.values()))
    return levels


def count(levels: Lists) -> int:
    return sum(map(len, levels[0]))


def group_of(level: Lists | Any, c: int) -> int:
    """Find the group of a class by looking through all."""
    (found,) = (place for place, group in enumerate(level) if c in list(group))
    return int(found)


def is_nested(levels: Any) -> bool:
    return all(
        any(set(group) <= set(parent) for parent in coarse)
        for coarse, fine in itertools.pairwise(levels)
        for group in fine
    )


@given(levels=partitions())
def test_nested_partitions_are_accepted_and_come_back_as_tuples(levels: Lists) -> None:
    tree = hierarchy.checked(levels)
    assert tree == tuple(tuple(map(tuple, level)) for level in levels)
    assert hierarchy.checked(tree) == tree
    if levels:
        assert hierarchy.checked(levels, count(levels)) == tree


@given(levels=partitions(nested=False))
def test_levels_need_not_refine_each_other_only_when_told_so(levels: Lists) -> None:
    assert hierarchy.checked(levels, nested=False) == tuple(tuple(map(tuple, level)) for level in levels)
    if is_nested(levels):
        hierarchy.checked(levels)
    else:
        with pytest.raises(InputError, match=r"^hierarchy: level [23] joins classes \d and \d, which level [12]"):
            hierarchy.checked(levels)


@given(data=st.data(), levels=partitions(least=1))
def test_a_broken_level_is_refused_by_its_number_and_the_class(data: st.DataObject, levels: Lists) -> None:
    classes = count(levels)
    number = data.draw(st.integers(1, len(levels)), label="level")
    broken: list[Any] = [[list(group) for group in level] for level in levels]
    groups = broken[number - 1]
    place = data.draw(st.integers(0, len(groups) - 1), label="group")
    c = groups[place][0]
    at = rf"^hierarchy: level {number} "
    fault = data.draw(
        st.sampled_from(
            ["missing", "twice", "too large", "negative", "float", "bool", "text", "empty", "no groups", "no list"]
        ),
        label="fault",
    )
    if fault == "missing":
        groups[place] = groups[place][1:]
        # A group that is empty now is told first.
        message = f"lacks class {c}; every level must hold every class" if groups[place] else "has an empty group"
    elif fault == "twice":
        groups[data.draw(st.integers(0, len(groups) - 1), label="again")].append(c)
        message = f"names class {c} 2 times; once is needed"
    elif fault == "too large":
        groups[place].append(classes)
        message = rf"names class {classes}; classes are 0 to {classes - 1}$"
    elif fault == "negative":
        groups[place].append(-1)
        message = rf"names class -1; classes are 0 to {classes - 1}$"
    elif fault == "float":
        groups[place][0] = float(c)
        message = rf"names class {c}\.0; a class is a whole number"
    elif fault == "bool":
        groups[place][0] = True
        message = "names class True; a class is a whole number"
    elif fault == "text":
        groups[place][0] = str(c)
        message = f"names class '{c}'; a class is a whole number"
    elif fault == "empty":
        groups.insert(place, [])
        message = "has an empty group"
    elif fault == "no groups":
        broken[number - 1] = []
        message = "has an empty group"
    else:
        broken[number - 1] = data.draw(
            st.sampled_from([None, 3, "01", [0, 1], ["01"], [{0, 1}]]), label="level is"
        )
        message = "must be a list of lists of class numbers, not "
    with pytest.raises(InputError, match=at + message) as caught:
        hierarchy.checked(broken, classes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("levels", [None, 3, "01", {"a": 1}])
def test_what_is_no_list_of_levels_is_refused(levels: Any) -> None:
    with pytest.raises(InputError, match=r"^hierarchy: must be a list of levels, not "):
        hierarchy.checked(levels)


def test_a_hierarchy_of_other_classes_is_refused() -> None:
    with pytest.raises(InputError, match="level 1 lacks class 10; every level must hold every class"):
        hierarchy.checked(RELEASED[:1], 11)
    with pytest.raises(InputError, match="level 1 names class 8; classes are 0 to 7"):
        hierarchy.level_labels(RELEASED, torch.arange(8), 8)


def test_the_released_pairs_are_accepted_as_not_nested_and_span_no_tree() -> None:
    assert hierarchy.checked(RELEASED, 10, nested=False)[1] == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
    message = "level 2 joins classes 4 and 5, which level 1 parts"
    with pytest.raises(InputError, match=message):
        hierarchy.checked(RELEASED, 10)
    with pytest.raises(InputError, match=message):
        hierarchy.tree_distances(RELEASED, 10)


@given(data=st.data(), levels=partitions(nested=False, least=1))
def test_labels_of_every_level_are_those_found_by_looking_through_the_groups(
    data: st.DataObject, levels: Lists
) -> None:
    classes = count(levels)
    labels = data.draw(st.lists(st.integers(0, classes - 1), max_size=20))
    expected = [[group_of(level, c) for c in labels] for level in levels] + [labels]
    found = hierarchy.level_labels(levels, torch.tensor(labels, dtype=torch.int64), classes)
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    table = hierarchy.lookup(levels, classes)
    assert table.shape == (len(levels) + 1, classes)
    assert [len(row.unique()) for row in table] == list(hierarchy.sizes(levels, classes))


def test_without_levels_there_are_the_classes_alone() -> None:
    assert hierarchy.sizes((), 4) == (4,)
    assert hierarchy.lookup((), 4).tolist() == [[0, 1, 2, 3]]
    assert hierarchy.level_labels((), torch.tensor([3, 1]), 4).tolist() == [[3, 1]]
    assert hierarchy.tree_distances((), 3).tolist() == [[0, 2, 2], [2, 0, 2], [2, 2, 0]]


@given(levels=partitions(least=1))
def test_tree_distances_are_shortest_paths(levels: Lists) -> None:
    classes = count(levels)
    graph = nx.Graph()
    rows: Lists = [*levels, [[c] for c in range(classes)]]
    for place in range(len(rows[0])):
        graph.add_edge("root", (0, place))
    for depth, (coarse, fine) in enumerate(itertools.pairwise(rows)):
        for place, group in enumerate(fine):
            graph.add_edge((depth, group_of(coarse, group[0])), (depth + 1, place))
    assert nx.is_tree(graph)
    paths = dict(nx.all_pairs_shortest_path_length(graph))
    leaves = [(len(levels), c) for c in range(classes)]
    expected = [[paths[one][other] for other in leaves] for one in leaves]
    assert hierarchy.tree_distances(levels, classes).tolist() == expected


@given(levels=partitions())
def test_tree_distances_are_an_ultrametric(levels: Lists) -> None:
    classes = count(levels) if levels else 4
    d = hierarchy.tree_distances(levels, classes)
    assert (d == d.T).all()
    assert ((d == 0) == np.eye(classes, dtype=bool)).all()
    for one, other, third in itertools.product(range(classes), repeat=3):
        assert d[one, other] <= max(d[one, third], d[third, other])


@given(levels=partitions(nested=False, least=1), seed=st.integers(0, 2**32))
def test_a_shuffled_tree_is_the_tree_with_its_classes_renamed(levels: Lists, seed: int) -> None:
    found = hierarchy.shuffled(levels, seed)
    assert found == hierarchy.shuffled(levels, seed)
    assert hierarchy.checked(found, count(levels), nested=False) == found
    assert [[len(group) for group in level] for level in found] == [
        [len(group) for group in level] for level in levels
    ]
    # Two classes are together at the same levels as the two they stand for: the same columns, in another order.
    columns = sorted(map(tuple, hierarchy.lookup(levels, count(levels))[:-1].T.tolist()))
    assert sorted(map(tuple, hierarchy.lookup(found, count(levels))[:-1].T.tolist())) == columns
    assert is_nested(found) == is_nested(levels)


def test_shuffles_differ_by_every_part_of_their_seed_and_put_every_class_everywhere() -> None:
    level = [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]]
    shuffles = [hierarchy.shuffled(level, (seed, number)) for seed in range(30) for number in range(30)]
    # 126 ways to halve ten classes, each place in one of two orders: nearly all of the 252 are met in 900.
    assert 230 <= len(set(shuffles)) <= 252
    together = np.mean([[c in first for c in range(10)] for ((first, _),) in shuffles], axis=0)
    # Half of 900 with a standard deviation of 1/60: five of them.
    assert np.abs(together - 0.5).max() < 5 / 60
    with pytest.raises(InputError, match="needs at least one level"):
        hierarchy.shuffled((), 0)


@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_a_learnt_hierarchy_is_scikit_learns_and_nested(data: st.DataObject, seed: int) -> None:
    classes = data.draw(st.integers(2, 10))
    groups = sorted(data.draw(st.lists(st.integers(1, classes), max_size=4)))
    means = torch.randn(classes, 2, 3, generator=torch.Generator().manual_seed(seed))
    # With all pairs connected scikit-learn merges by itself, else by scipy.
    ward = AgglomerativeClustering(linkage="ward", connectivity=np.ones((classes, classes)))
    found = hierarchy.learnt(means, groups)
    assert [len(level) for level in found] == groups
    assert is_nested(found)
    for wanted, level in zip(groups, found, strict=True):
        clusters = ward.set_params(n_clusters=wanted).fit_predict(means.flatten(1).double().numpy())
        expected = {frozenset(np.flatnonzero(clusters == k).tolist()) for k in range(wanted)}
        assert set(map(frozenset, level)) == expected
        # Groups in the order of their first class, classes in order.
        assert list(level) == sorted(level)
        assert all(list(group) == sorted(group) for group in level)


@pytest.mark.parametrize("groups", [[0], [2, 5], [-1]])
def test_numbers_of_groups_that_cannot_be_had_are_refused(groups: list[int]) -> None:
    with pytest.raises(InputError, match=r"groups: each must be from 1 to 4, the number of classes, not \["):
        hierarchy.learnt(torch.rand(4, 2), groups)


@given(levels=partitions(nested=False))
def test_text_is_one_line_and_reads_back(levels: Lists) -> None:
    text = hierarchy.to_text(levels)
    assert text == str(levels).replace(" ", "") if levels else text == ""
    assert hierarchy.from_text(text) == hierarchy.checked(levels, nested=False)
    assert hierarchy.to_text(hierarchy.from_text(text)) == text


@pytest.mark.parametrize("text", ["5", "[5]", "[[[0,0]]]", "{}", '"[]"'])
def test_text_that_is_no_hierarchy_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^hierarchy: "):
        hierarchy.from_text(text)


def test_groups_are_named_by_their_classes() -> None:
    digits = [str(digit) for digit in range(5)]
    assert hierarchy.group_names([[[0, 1], [4, 2, 3]]], digits) == [["01", "423"], digits]
    pieces = ["piece 1", "piece 2", "piece 3"]
    assert hierarchy.group_names([[[0, 2], [1]]], pieces) == [["piece 1, piece 3", "piece 2"], pieces]
    assert hierarchy.group_names((), digits) == [digits]
