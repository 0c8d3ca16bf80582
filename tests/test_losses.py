import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import Tensor

from isorepro.losses import (
    ClassBlocks,
    Form,
    class_members,
    isometry,
    jacobian_norm,
    local_isometry,
    pairwise_distances,
    sign_ascent,
    squared_norms,
)

FORMS: tuple[Form, ...] = ("raw", "normalised")


def batch(seed: int, size: int = 12, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(size, 7, generator=generator, dtype=torch.float64)
    representation = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (size,), generator=generator)
    return inputs, representation, labels


def by_loops(inputs: Tensor, representation: Tensor, labels: Tensor, beta: float, K: float, form: Form) -> float:
    """The formulas of the paper, entry by entry."""
    pairs = list(itertools.product(range(len(labels)), repeat=2))
    same = {(i, j): bool(labels[i] == labels[j]) for i, j in pairs}
    d_x = {(i, j): math.dist(inputs[i].tolist(), inputs[j].tolist()) if same[i, j] else 0.0 for i, j in pairs}
    d_h = {
        (i, j): math.dist(representation[i].tolist(), representation[j].tolist()) if same[i, j] else 0.0
        for i, j in pairs
    }
    if form == "raw":
        return beta * sum((K * d_h[p] - d_x[p]) ** 2 for p in pairs) / len(pairs)
    largest_h, largest_x = max(d_h.values()), max(d_x.values())
    mean = sum((d_h[p] / (K * largest_h) - d_x[p] / largest_x) ** 2 for p in pairs) / len(pairs)
    return beta * mean**2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("beta", "K"), [(1.0, 1.0), (0.1, 10.0), (100.0, 0.1)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_double_loop(form: Form, beta: float, K: float, seed: int) -> None:
    inputs, representation, labels = batch(seed)
    found = isometry(representation, pairwise_distances(inputs), labels, beta=beta, K=K, form=form)
    assert found.item() == pytest.approx(by_loops(inputs, representation, labels, beta, K, form), rel=1e-12)


@pytest.mark.parametrize("count", [2, 10, 100])
def test_distances_by_known_norms_are_those_of_scipy(count: int) -> None:
    points = torch.rand(count, 28, 28, generator=torch.Generator().manual_seed(0))
    found = pairwise_distances(points, squared_norms(points))
    assert found.dtype == torch.float32
    expected = cdist(*[points.flatten(1).double()] * 2)
    apart = ~torch.eye(count, dtype=torch.bool)
    assert found[apart].numpy() == pytest.approx(expected[apart.numpy()], rel=1e-5)
    # The root makes 0.03 of a rounding of 0.001 in squares of 784 / 3.
    assert found.diagonal().numpy() == pytest.approx(0, abs=0.03)
    assert pairwise_distances(points.double(), squared_norms(points.double())).numpy() == pytest.approx(
        expected, rel=1e-12, abs=1e-5
    )


@pytest.mark.parametrize("form", FORMS)
def test_gradient_equals_finite_differences(form: Form) -> None:
    inputs, representation, labels = batch(0)
    distances = pairwise_distances(inputs)

    def loss(h: Tensor) -> Tensor:
        return isometry(h, distances, labels, beta=0.7, K=3.0, form=form)

    (gradient,) = torch.autograd.grad(loss(representation.requires_grad_()), representation)
    numeric = torch.zeros_like(representation)
    for place in itertools.product(*map(range, representation.shape)):
        change = torch.zeros_like(representation)
        change[place] = 1e-6
        numeric[place] = (loss(representation + change) - loss(representation - change)).item() / 2e-6
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), form=st.sampled_from(FORMS), size=st.integers(2, 40))
def test_does_not_see_the_order_of_the_batch_or_a_rigid_motion(seed: int, form: Form, size: int) -> None:
    inputs, representation, labels = batch(seed, size)
    generator = torch.Generator().manual_seed(seed)
    expected = isometry(representation, pairwise_distances(inputs), labels, beta=1.0, K=2.0, form=form)
    order = torch.randperm(size, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    rotation_x, _ = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64))
    moved = isometry(
        (representation @ rotation + 3.0)[order],
        pairwise_distances((inputs @ rotation_x - 1.0)[order]),
        labels[order],
        beta=1.0,
        K=2.0,
        form=form,
    )
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-12)


def test_a_scaled_copy_is_a_perfect_raw_isometry_when_K_undoes_the_scale() -> None:
    inputs, _, labels = batch(1)
    assert isometry(inputs / 10, pairwise_distances(inputs), labels, beta=5.0, K=10.0).item() < 1e-28


def test_a_perfect_isometry_is_charged_by_the_normalised_form_unless_K_is_one() -> None:
    # With d = E D_x / max, each entry differs by d (1/K − 1): β [(1/K − 1)² mean d²]².
    inputs, _, labels = batch(2)
    distances = pairwise_distances(inputs)
    d = distances * (labels[:, None] == labels)
    mean_square = (d / d.max()).square().mean()
    found = isometry(3 * inputs, distances, labels, beta=2.0, K=0.1, form="normalised")
    torch.testing.assert_close(found, 2.0 * (81 * mean_square) ** 2)
    assert isometry(3 * inputs, distances, labels, beta=2.0, K=1.0, form="normalised").item() < 1e-28


@pytest.mark.parametrize("form", FORMS)
def test_pairs_of_different_classes_do_not_count(form: Form) -> None:
    inputs, representation, _ = batch(3)
    labels = torch.arange(len(inputs))
    found = isometry(representation.requires_grad_(), pairwise_distances(inputs), labels, beta=1.0, form=form)
    assert found.item() == 0
    (gradient,) = torch.autograd.grad(found, representation)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("form", FORMS)
def test_a_collapsed_class_has_a_finite_gradient(form: Form) -> None:
    inputs, representation, labels = batch(4)
    collapsed = torch.zeros_like(representation).requires_grad_()
    loss = isometry(collapsed, pairwise_distances(inputs), labels, beta=1.0, form=form)
    (gradient,) = torch.autograd.grad(loss, collapsed)
    assert loss.item() > 0
    assert gradient.isfinite().all()


def test_single_precision_agrees_with_double_on_a_training_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(100, 1, 28, 28, generator=generator)
    representation = torch.tanh(torch.randn(100, 100, generator=generator))
    labels = torch.randint(10, (100,), generator=generator)
    single = isometry(representation, pairwise_distances(inputs), labels, beta=1.0, K=10.0)
    double = isometry(representation.double(), pairwise_distances(inputs.double()), labels, beta=1.0, K=10.0)
    assert single.item() == pytest.approx(double.item(), rel=1e-4)


@st.composite
def labelled(draw: st.DrawFn) -> Tensor:
    """Labels of classes of one to thirty points, in any order, some class numbers left out."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    names = draw(st.permutations(range(2 * len(sizes))))
    labels = [name for name, size in zip(names, sizes, strict=False) for _ in range(size)]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    return torch.tensor(labels)[order]


@settings(max_examples=60, deadline=None)
@given(labels=labelled(), form=st.sampled_from(FORMS), K=st.sampled_from([0.1, 1.0, 10.0]))
def test_blocks_of_one_class_give_the_value_and_the_gradient_of_the_whole_set(
    labels: Tensor, form: Form, K: float
) -> None:
    inputs, representation, _ = batch(len(labels), len(labels))
    points = inputs.view(-1, 7, 1)
    blocks = ClassBlocks.of(points, labels)
    found, expected = representation.clone().requires_grad_(), representation.clone().requires_grad_()
    ours = blocks.isometry(found, beta=0.7, K=K, form=form)
    whole = isometry(expected, pairwise_distances(inputs), labels, beta=0.7, K=K, form=form)
    torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, h)[0] for value, h in ((ours, found), (whole, expected))),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [(4, 4, 4), (9, 2, 1), (12,), (1,) * 12])
def test_blocks_equal_the_double_loop(form: Form, sizes: tuple[int, ...]) -> None:
    inputs, representation, _ = batch(5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[order]
    blocks = ClassBlocks.of(inputs, labels)
    assert (blocks.same_class is None) == (len(set(sizes)) == 1)
    found = blocks.isometry(representation, beta=2.0, K=3.0, form=form).item()
    if max(sizes) == 1:
        # No pair of two points, so nothing to keep; the loop would divide by its largest distance, 0.
        assert found == 0
    else:
        assert found == pytest.approx(by_loops(inputs, representation, labels, 2.0, 3.0, form), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_blocks_of_a_collapsed_class_have_the_finite_gradient_of_the_whole_set(form: Form) -> None:
    inputs, representation, _ = batch(6)
    labels = torch.tensor([0] * 5 + [1] * 6 + [2])
    with torch.no_grad():
        representation[:5] = representation[0]
    gradients = []
    for term in (
        partial(ClassBlocks.of(inputs, labels).isometry, beta=1.0, form=form),
        lambda h: isometry(h, pairwise_distances(inputs), labels, beta=1.0, form=form),
    ):
        h = representation.clone().requires_grad_()
        gradients.append(torch.autograd.grad(term(h), h)[0])
    assert gradients[0].isfinite().all()
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_blocks_in_single_precision_agree_with_double_on_a_full_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(400, 3, generator=generator)
    representation = torch.tanh(torch.randn(400, 20, generator=generator))
    labels = torch.randint(5, (400,), generator=generator)
    values = [
        ClassBlocks.of(x, labels).isometry(h, beta=1.0, K=2.0).item()
        for x, h in ((inputs, representation), (inputs.double(), representation.double()))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def directions(count: int, size: int, seed: int = 0) -> Tensor:
    """Orthonormal columns, (size, count), in double precision."""
    drawn = torch.randn(size, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def by_map(W: Tensor, delta: Tensor, K: float) -> float:
    x = torch.rand(len(delta), W.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return local_isometry(x @ W.T, (x + delta) @ W.T, delta, beta=2.0, K=K).item()


@pytest.mark.parametrize("K", [0.5, 1.0, 3.0])
def test_on_a_linear_map_the_local_term_is_zero_exactly_when_all_singular_values_seen_are_one_over_k(
    K: float,
) -> None:
    left, right = directions(5, 9), directions(5, 6, seed=1)
    coordinates = torch.randn(40, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    equal = left / K @ right.T
    assert by_map(equal, coordinates @ right.T, K) < 1e-28
    # One value is another: charged as soon as a step has a part along it, and not before.
    values = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.2], dtype=torch.float64) / K
    unequal = left * values @ right.T
    unseen = coordinates.clone()
    unseen[:, 4] = 0
    assert by_map(unequal, unseen @ right.T, K) < 1e-28
    rest, along = coordinates[:, :4].square().sum(1), coordinates[:, 4].square()
    expected = 2.0 * ((rest + 1.44 * along).sqrt() - (rest + along).sqrt()).square().mean().item()
    assert by_map(unequal, coordinates @ right.T, K) == pytest.approx(expected, rel=1e-9)
    assert expected > 1e-3
    # The sixth dimension of the inputs is lost altogether.
    lost = torch.linalg.svd(right.T)[2][-1:].expand(40, 6)
    assert by_map(equal, lost, K) == pytest.approx(2.0)


def test_the_local_term_has_a_finite_gradient_where_nothing_moves() -> None:
    h = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    moved = torch.cat([h[:2], h[2:] + 0.1])
    delta = torch.zeros(5, 7).index_fill(0, torch.tensor([0, 3]), 0.2)
    gradients = torch.autograd.grad(local_isometry(h, moved, delta, beta=1.0), [h, moved])
    assert all(found.isfinite().all() for found in gradients)
    assert not gradients[1][:2].any()
    assert gradients[1][2:].abs().min() > 1e-3


@pytest.mark.parametrize("start", [0.2, 1.0])
def test_the_ascent_of_a_linear_map_ends_in_the_corner_that_it_stretches_most(start: float) -> None:
    generator = torch.Generator().manual_seed(3)
    # One direction is stretched much more than the others, so that every start leads to it.
    W = directions(3, 3) * torch.tensor([5.0, 0.2, 0.1], dtype=torch.float64) @ directions(3, 3, seed=4).T
    corners = 0.3 * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
    largest = (corners @ W.T).norm(dim=1).max().item()
    x = torch.rand(20, 3, generator=generator, dtype=torch.float64)
    found = sign_ascent(
        lambda points: ((points - x) @ W.T).square().sum(),
        x,
        epsilon=0.3,
        steps=3,
        step_size=3.0,
        start=start,
        bounds=(-math.inf, math.inf),
        generator=generator,
    )
    assert ((found - x) @ W.T).norm(dim=1).tolist() == pytest.approx([largest] * 20)
    assert not found.requires_grad


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    epsilon=st.floats(0, 1),
    steps=st.integers(0, 4),
    step_size=st.floats(0.1, 9),
    start=st.floats(0, 1),
)
def test_the_ascent_never_leaves_the_ball_and_the_bounds(
    seed: int, epsilon: float, steps: int, step_size: float, start: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(6, 1, 3, 3, generator=generator).mul(2).sub(0.5).clamp(0, 1)
    w = torch.randn(9, generator=generator)
    before = x.clone()
    found = sign_ascent(
        lambda points: (points.flatten(1) @ w).sin().sum(),
        x,
        epsilon=epsilon,
        steps=steps,
        step_size=step_size,
        start=start,
        bounds=(0.0, 1.0),
        generator=generator,
    )
    assert torch.equal(x, before)
    assert found.shape == x.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - x).abs().max() <= epsilon + 1e-6


def test_the_jacobian_of_a_linear_map_has_the_norm_of_its_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(10, 2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    exact = jacobian_norm(x.flatten(1) @ W.T, x, projections=0, generator=generator)
    assert exact.item() == pytest.approx(W.square().sum().item(), rel=1e-12)
    # A random unit vector sees a mean of the singular values, never more than the largest.
    largest = 4 * torch.linalg.svdvals(W)[0].item() ** 2
    for _ in range(20):
        assert 0 < jacobian_norm(x.flatten(1) @ W.T, x, projections=1, generator=generator).item() < largest


@pytest.mark.parametrize("pairs", [1, 40, 300, 10**6])
@pytest.mark.parametrize("sizes", [(30,), (12, 12, 12), (20, 3, 1)])
def test_pairs_in_pieces_give_the_value_and_the_gradient_of_plain_autograd(
    pairs: int, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isorepro.losses._DistanceError.PAIRS", pairs)
    inputs, representation, _ = batch(7, sum(sizes))
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[order]
    bare, ours = (representation.clone().requires_grad_() for _ in range(2))
    apart = ~torch.eye(len(labels), dtype=torch.bool)
    same = (labels[:, None] == labels) & apart
    d_h = (bare[:, None] - bare[None])[same].square().sum(1).sqrt()
    expected = 0.7 * (3.0 * d_h - pairwise_distances(inputs)[same]).square().sum() / len(labels) ** 2
    found = ClassBlocks.of(inputs, labels).isometry(ours, beta=0.7, K=3.0)
    torch.testing.assert_close(found, expected)
    # Another factor before the gradient goes on, as where terms are added.
    torch.testing.assert_close(
        torch.autograd.grad(2 * found, ours)[0], torch.autograd.grad(2 * expected, bare)[0], rtol=1e-9, atol=1e-12
    )


def test_the_gradient_of_the_gradient_is_refused() -> None:
    inputs, representation, labels = batch(8)
    h = representation.requires_grad_()
    term = isometry(h, pairwise_distances(inputs), labels, beta=1.0)
    with pytest.raises(RuntimeError, match="only once"):
        torch.autograd.grad(term, h, create_graph=True)


@settings(max_examples=60, deadline=None)
@given(labels=labelled(), size=st.integers(1, 40))
def test_members_of_all_batches_are_those_of_a_loop(labels: Tensor, size: int) -> None:
    found = list(class_members(labels, size))
    batches = labels.split(size)
    assert len(found) == len(batches)
    for (members, there), own in zip(found, batches, strict=True):
        assert len(members) == labels.max() + 1
        assert members.shape[1] == own.bincount().max()
        for label, (places, present) in enumerate(
            zip(members, torch.ones_like(members, dtype=torch.bool) if there is None else there, strict=True)
        ):
            assert places[present].tolist() == (own == label).nonzero().squeeze(1).tolist()
            assert not places[~present].any()


def test_blocks_of_known_distances_are_those_of_their_own() -> None:
    inputs, _, labels = batch(9, 40)
    ((members, there),) = class_members(labels, 40)
    norms = squared_norms(inputs)
    own = ClassBlocks.among(inputs, norms, members, there)
    known = ClassBlocks.among(inputs, norms, members, there, pairwise_distances(inputs))
    present = own.same_class.bool() if own.same_class is not None else slice(None)
    torch.testing.assert_close(own.distances[present], known.distances[present], rtol=1e-9, atol=1e-7)
