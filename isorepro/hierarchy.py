"""Label hierarchies: groups of classes at each level, coarse to fine, and the tree they span.

A hierarchy lists the levels *above* the classes, each a list of groups, each a list of class numbers, as in
``[[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]]`` for ten digits. The finest level,
every class by itself, is always there and is not listed; an empty hierarchy is the flat classification.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isorepro.errors import InputError

Hierarchy = tuple[tuple[tuple[int, ...], ...], ...]
"""Levels of groups of class numbers."""

Nested = Sequence[Sequence[Sequence[int]]]
"""A hierarchy as plain nested lists."""


def checked(levels: Nested, classes: int | None = None, *, nested: bool = True) -> Hierarchy:
    """Return a hierarchy as tuples after checking that each level partitions the classes.

    Args:
        levels: plain nested lists, coarse to fine, without the finest level.
        classes: number of classes; None takes one more than the largest number named.
        nested: whether every level must refine the one above; the released code's pairs of digits do not.

    Raises:
        InputError: naming the level (from 1) and the class at fault: a class that is missing, named twice, out of
            range or no whole number, an empty group, or a group with two parents; or that there is no list.
    """
    if not _is_list(levels):
        raise InputError(f"hierarchy: must be a list of levels, not {levels!r}")
    tree: list[tuple[tuple[int, ...], ...]] = []
    for number, level in enumerate(levels, start=1):
        groups = _groups(level, number)
        if not groups or not all(groups):
            raise InputError(f"hierarchy: level {number} has an empty group; leave it out")
        tree.append(groups)
    if classes is None:
        classes = 1 + max((c for level in tree for group in level for c in group), default=-1)
    for number, level in enumerate(tree, start=1):
        counts = Counter(c for group in level for c in group)
        for c, count in counts.items():
            if not 0 <= c < classes:
                raise InputError(f"hierarchy: level {number} names class {c}; classes are 0 to {classes - 1}")
            if count > 1:
                raise InputError(f"hierarchy: level {number} names class {c} {count} times; once is needed")
        for c in range(classes):
            if c not in counts:
                raise InputError(f"hierarchy: level {number} lacks class {c}; every level must hold every class")
    for number, (coarse, fine) in enumerate(itertools.pairwise(tree), start=1):
        parent = {c: place for place, group in enumerate(coarse) for c in group}
        for group in fine if nested else ():
            for c in group:
                if parent[c] != parent[group[0]]:
                    raise InputError(
                        f"hierarchy: level {number + 1} joins classes {group[0]} and {c}, which level {number} "
                        "parts; it must refine that level, or nested be False"
                    )
    return tuple(tree)


def _groups(level: Any, number: int) -> tuple[tuple[int, ...], ...]:
    if not _is_list(level) or not all(_is_list(group) for group in level):
        raise InputError(f"hierarchy: level {number} must be a list of lists of class numbers, not {level!r}")
    for c in (c for group in level for c in group):
        if not isinstance(c, int) or isinstance(c, bool):
            raise InputError(f"hierarchy: level {number} names class {c!r}; a class is a whole number")
    return tuple(tuple(group) for group in level)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def sizes(levels: Nested, classes: int) -> tuple[int, ...]:
    """Return the number of classes of each level, the finest included."""
    return (*(len(level) for level in levels), classes)


def lookup(levels: Nested, classes: int) -> Tensor:
    """Return the group of each class at each level, the finest included: (levels, classes), int64.

    Raises:
        InputError: a level that does not hold every class once.
    """
    levels = checked(levels, classes, nested=False)
    table = torch.empty(len(levels) + 1, classes, dtype=torch.int64)
    for row, level in zip(table, levels, strict=False):
        for place, group in enumerate(level):
            row[list(group)] = place
    table[-1] = torch.arange(classes)
    return table


def level_labels(levels: Nested, labels: Tensor, classes: int) -> Tensor:
    """Return the labels at every level, coarse to fine: (N,) → (levels, N), int64.

    Args:
        levels: a hierarchy.
        labels: classes, int64, shape (N,).
        classes: number of classes.

    Raises:
        InputError: a level that does not hold every class once.
    """
    return lookup(levels, classes).to(labels.device)[:, labels]


def tree_distances(levels: Nested, classes: int) -> NDArray[np.int64]:
    """Return the number of edges between two classes in the tree of a hierarchy: (classes, classes).

    The classes are the leaves, every group is a node and a root joins the groups of the coarsest level (the
    released tree has no root, so that its halves are infinitely far apart). Classes that part at the finest
    level only are 2 apart, those that part at the coarsest 2 · levels, the finest counted.

    Raises:
        InputError: a level does not refine the one above, so that there is no tree.
    """
    checked(levels, classes)
    rows = lookup(levels, classes)
    apart: NDArray[np.int64] = (rows[:, :, None] != rows[:, None, :]).sum(0).numpy()
    return 2 * apart


def shuffled(levels: Nested, seed: int | Sequence[int]) -> Hierarchy:
    """Return a tree of the same shape with its classes in random places.

    Args:
        levels: a hierarchy of at least one level.
        seed: one or several numbers, ≥ 0, that decide the shuffle.

    Raises:
        InputError: no level, or one that does not hold every class once.
    """
    tree = checked(levels, nested=False)
    if not tree:
        raise InputError("hierarchy: needs at least one level to be shuffled")
    order = np.random.default_rng(seed).permutation(sum(map(len, tree[0]))).tolist()
    return tuple(tuple(tuple(sorted(order[c] for c in group)) for group in level) for level in tree)


def learnt(means: Tensor, groups: Sequence[int]) -> Hierarchy:
    """Return the hierarchy that agglomerative clustering finds among classes.

    Ward's method (scipy's) on the Euclidean distances between the class means, cut at the wanted numbers of
    groups.

    Args:
        means: mean of the inputs of each class, (classes, …).
        groups: number of groups of each level, coarse to fine, from 1 to the number of classes.

    Raises:
        InputError: a number of groups that cannot be had.
    """
    from scipy.cluster.hierarchy import cut_tree, linkage

    points = means.flatten(1).double().numpy()
    if not all(1 <= count <= len(points) for count in groups):
        raise InputError(
            f"groups: each must be from 1 to {len(points)}, the number of classes, not {list(groups)}"
        )
    merged = linkage(points, method="ward")
    levels = []
    for count in groups:
        of_class = cut_tree(merged, n_clusters=[count])[:, 0]
        # In the order of each group's first class.
        levels.append([np.flatnonzero(of_class == group).tolist() for group in dict.fromkeys(of_class.tolist())])
    return checked(levels, len(points))


def to_text(levels: Nested) -> str:
    """Return a hierarchy as one line that names it in tables; "" for the flat classification."""
    return json.dumps(levels, separators=(",", ":")) if levels else ""


def from_text(text: str) -> Hierarchy:
    """Return the hierarchy that :func:`to_text` wrote."""
    return checked(json.loads(text), nested=False) if text else ()


def group_names(levels: Nested, classes: Sequence[str]) -> list[list[str]]:
    """Return the names of the groups of each level, the finest included: the names of their classes, joined.

    One-letter names are written together ("234"), longer ones with commas.
    """
    joint = "" if all(len(name) == 1 for name in classes) else ", "
    named = [[joint.join(classes[c] for c in group) for group in level] for level in levels]
    return [*named, list(classes)]
