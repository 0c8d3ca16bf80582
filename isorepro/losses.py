"""The paper's isometry term, in the two forms its code has had, and the penalties of other methods."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

Form = Literal["raw", "normalised"]
"""Forms of the isometry term."""


def pairwise_distances(points: Tensor, squared_norms: Tensor | None = None) -> Tensor:
    """Return the Euclidean distances between the points of one batch: (B, …) → (B, B).

    Args:
        points: (B, …), any finite values.
        squared_norms: (B,), from :func:`squared_norms` of the points, where they are known: a third less time. For
            points that need no gradient: at distance 0 the root has none.
    """
    flat = points.flatten(1)
    if squared_norms is None:
        return torch.cdist(flat, flat)
    return _distances(flat[None], squared_norms[None])[0]


def _distances(points: Tensor, norms: Tensor) -> Tensor:
    """Return the distances in blocks of points with known squared norms: (c, n, d), (c, n) → (c, n, n)."""
    # What cdist does with more than 25 points, less the norms.
    squares = norms[:, :, None] + norms[:, None]
    distances = squares.baddbmm_(points, points.mT, alpha=-2).clamp_min_(0).sqrt_()
    # Rounding makes something else of the distance of a point to itself.
    distances.diagonal(0, 1, 2).zero_()
    return distances


def squared_norms(points: Tensor) -> Tensor:
    """Return the squared Euclidean norm of every point: (N, …) → (N,)."""
    return points.flatten(1).square().sum(1)


def isometry(
    representation: Tensor,
    input_distances: Tensor,
    labels: Tensor,
    *,
    beta: float,
    K: float = 1.0,
    form: Form = "raw",
) -> Tensor:
    """Return the penalty on distances that change inside a class (the paper's loss).

    With D_h the distances between representations, D_x those between inputs, and
    E_ij = 1 where y_i = y_j, else 0:

    * raw:        β · mean_ij (K·E·D_h − E·D_x)²
    * normalised: β · [mean_ij (E·D_h / (K·max E·D_h) − E·D_x / max E·D_x)²]²

    The mean runs over all B² pairs, those of different classes included as zeros.
    In the normalised form, distances that are all zero stay zero. The raw form has
    a gradient, but no gradient of the gradient.

    Args:
        representation: (B, …), any finite values.
        input_distances: (B, B), from :func:`pairwise_distances` of the inputs.
        labels: (B,), int64.
        beta: weight of the term, ≥ 0.
        K: factor on the representation distances, > 0 ("lambda2" in the release).
        form: "raw" (released code from November 2022 on) or "normalised"
            (September 2022; the figures of arXiv v1).

    Returns:
        A scalar ≥ 0.
    """
    same_class = (labels[:, None] == labels[None, :]).to(representation.dtype)
    return _term(representation, None, input_distances[None], same_class[None], len(labels), beta, K, form)


def _term(
    representation: Tensor,
    members: Tensor | None,
    d_x: Tensor,
    same_class: Tensor | None,
    size: int,
    beta: float,
    K: float,
    form: Form,
) -> Tensor:
    """Return the term of a representation (B, …) from D_x and E of blocks of its points, (blocks, n, n).

    The blocks are those of members, (blocks, n), or one of all points. Without E all pairs of a block are of one
    class; of the size² pairs those of different classes may be missing.
    """
    if form == "raw":
        term: Tensor = _DistanceError.apply(representation, members, d_x, same_class, K, beta / size**2)
        return term
    points = representation.flatten(1)[None] if members is None else _gathered(representation, members)
    d_h = torch.cdist(points, points)
    if same_class is not None:
        d_h, d_x = d_h * same_class, d_x * same_class
    tiny = torch.finfo(d_h.dtype).tiny
    d_h = d_h / (K * d_h.max().clamp_min(tiny))
    d_x = d_x / d_x.max().clamp_min(tiny)
    return beta * (mse_loss(d_h, d_x, reduction="sum") / size**2).square()


class _DistanceError(torch.autograd.Function):
    """The raw form's sum over the blocks of a batch, differentiable once, in the representation alone.

    The gradient is worked out beside the value, pairs in pieces that stay in the processor's cache: autograd would
    keep several arrays of all pairs, and fetch each from memory several times.
    """

    PAIRS = 1 << 18
    """Pairs of a piece: a megabyte of distances in single precision."""

    @staticmethod
    def forward(
        ctx: Any,
        representation: Tensor,
        members: Tensor | None,
        d_x: Tensor,
        same_class: Tensor | None,
        K: float,
        factor: float,
    ) -> Tensor:
        """Return factor · Σ (E·(K·D_h − D_x))².

        Args:
            representation: (B, …).
            members: (blocks, n), the points of each block; None for one block of all.
            d_x: (blocks, n, n).
            same_class: E, (blocks, n, n) in the type of the distances; None where all pairs count.
            K, factor: numbers.
        """
        flat = representation.flatten(1)
        # K times the points is cheaper than K times all their distances.
        points = K * (flat[None] if members is None else _gathered(flat, members))
        count, size, _ = points.shape
        norms = points.square().sum(2)
        total, pulls = points.new_zeros(()), torch.empty_like(points)
        many = max(1, _DistanceError.PAIRS // size**2)
        long = size if many > 1 else max(1, _DistanceError.PAIRS // size)
        for block, start in itertools.product(range(0, count, many), range(0, size, long)):
            blocks, part = slice(block, block + many), slice(start, start + long)
            others, own = points[blocks], points[blocks, part]
            squares = norms[blocks, part, None] + norms[blocks, None]
            squares = squares.baddbmm_(own, others.mT, alpha=-2).clamp_min_(0)
            # The gradient of a distance of 0 is taken as 0, its smallest subgradient.
            inverse = squares.rsqrt().nan_to_num_(posinf=0.0)
            difference = squares.mul_(inverse).sub_(d_x[blocks, part])
            # The distance of a point to itself, which rounding makes another.
            difference.diagonal(start, 1, 2).zero_()
            if same_class is not None:
                difference.mul_(same_class[blocks, part])
            along = difference.view(-1)
            total += torch.dot(along, along)
            # Of point i it is 4K Σ_j (K·D_h − D_x)_ij / (K·D_h)_ij · K(h_i − h_j), each pair being there twice.
            weights = difference.mul_(inverse)
            pulls[blocks, part] = (own * weights.sum(2, keepdim=True)).baddbmm_(weights, others, alpha=-1)
        if ctx.needs_input_grad[0]:
            pulls = pulls.mul_(4 * K * factor).flatten(0, 1)
            gradient = pulls
            if members is not None:
                gradient = torch.zeros_like(flat).index_add_(0, members.flatten(), pulls)
            ctx.save_for_backward(gradient.view_as(representation))
        return total.mul_(factor)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """Return the gradient of the representation.

        Raises:
            RuntimeError: a gradient of the gradient was asked for.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("the raw isometry term can be differentiated only once")
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None, None


def class_members(labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield which points of each batch are of one class.

    All at once for all batches, since that takes less time than the step of one.

    Args:
        labels: (N,), int64 from 0 on; each ``batch_size`` in succession are a batch, the last maybe shorter.
        batch_size: at least 1.

    Yields:
        For each batch, members (classes, n), int64: the place in the batch of each class's points, shorter classes
        filled up with place 0; and (classes, n) bool: where there is a point and no filler, None for everywhere.
    """
    device, classes = labels.device, int(labels.max()) + 1
    places = torch.arange(len(labels), device=device)
    groups = places // batch_size * classes + labels
    order = groups.argsort(stable=True)
    counts = groups.bincount(minlength=-(-len(labels) // batch_size) * classes)
    ranks = torch.arange(int(counts.max()), device=device)
    members = torch.zeros(len(counts), len(ranks), dtype=torch.int64, device=device)
    members[groups[order], places - (counts.cumsum(0) - counts)[groups[order]]] = order % batch_size
    there = ranks < counts[:, None]
    by_batch = counts.view(-1, classes)
    least, most = by_batch.amin(1).tolist(), by_batch.amax(1).tolist()
    for batch, (fewest, longest) in enumerate(zip(least, most, strict=True)):
        part = slice(batch * classes, (batch + 1) * classes), slice(longest)
        yield members[part], None if fewest == longest else there[part]


@dataclass(frozen=True)
class ClassBlocks:
    """The pairs of one class in a batch, ready for the isometry term.

    Equal to :func:`isometry`, but only the blocks of one class are computed. Of a set that every step sees whole,
    those of the inputs are computed once.

    Attributes:
        members: (classes, n), int64: the points of each class; shorter classes are filled up with point 0.
        same_class: (classes, n, n): 1 for pairs of points that are there, 0 for fillers; None without fillers.
        distances: (classes, n, n): distances between the inputs, fillers among them.
        size: number of points.
    """

    members: Tensor
    same_class: Tensor | None
    distances: Tensor
    size: int

    @classmethod
    def of(cls, inputs: Tensor, labels: Tensor) -> "ClassBlocks":
        """Return the blocks of a batch of inputs (B, …) with labels (B,), int64 from 0 on."""
        ((members, there),) = class_members(labels, len(labels))
        return cls.among(inputs, squared_norms(inputs), members, there)

    @classmethod
    def among(
        cls,
        inputs: Tensor,
        norms: Tensor,
        members: Tensor,
        there: Tensor | None,
        known: Tensor | None = None,
    ) -> "ClassBlocks":
        """Return the blocks of a batch whose :func:`squared_norms` and :func:`class_members` are known.

        Args:
            inputs: (B, …).
            norms: (B,).
            members, there: what :func:`class_members` yielded for the batch.
            known: all distances between the inputs, (B, B), where they are known: with several levels of classes
                to find them once takes less time.
        """
        if known is None:
            distances = _distances(_gathered(inputs, members), norms[members])
        else:
            distances = known[members[:, :, None], members[:, None]]
        same_class = None
        if there is not None:
            present = there.to(inputs.dtype)
            same_class = present[:, :, None] * present[:, None]
        return cls(members, same_class, distances, len(inputs))

    def isometry(self, representation: Tensor, *, beta: float, K: float = 1.0, form: Form = "raw") -> Tensor:
        """Return the penalty for the representation (N, …) of all points; arguments as of :func:`isometry`."""
        return _term(representation, self.members, self.distances, self.same_class, self.size, beta, K, form)


def _gathered(points: Tensor, members: Tensor) -> Tensor:
    """Return the points of each class: (B, …), (classes, n) → (classes, n, d)."""
    # Its gradient takes less time than that of an index.
    chosen = points.flatten(1).index_select(0, members.flatten())
    return chosen.view(*members.shape, -1)


def sign_ascent(
    objective: Callable[[Tensor], Tensor],
    inputs: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    start: float,
    bounds: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Return a point in the L∞ ball around each input, found by steps along the sign of a gradient.

    Only the gradient with respect to the points is taken, and nothing can be back-propagated through them.

    Args:
        objective: what to ascend: points (B, …) → a scalar, a sum over examples.
        inputs: (B, …) within the bounds.
        epsilon: radius of the ball, ≥ 0.
        steps: number of steps, ≥ 0; with none, the random start is returned.
        step_size: length of a step in units of ε / steps; 1 just reaches from the centre to the border.
        start: radius of the cube in which the starts are drawn uniformly, in units of ε, in [0, 1].
        bounds: least and largest value that an input can have.
        generator: of the starts, on the CPU.

    Returns:
        Points within the bounds and within ε of the inputs, same shape.
    """
    inputs = inputs.detach()
    lower, upper = ((inputs + way * epsilon).clamp_(*bounds) for way in (-1, 1))
    points = inputs
    if start:
        reach = start * epsilon
        offset = torch.empty(inputs.shape, dtype=inputs.dtype).uniform_(-reach, reach, generator=generator)
        points = torch.clamp(inputs + offset.to(inputs.device), lower, upper)
    for _ in range(steps):
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(points), points)
        points = torch.clamp(
            points.detach().add(gradient.sign_(), alpha=step_size * epsilon / steps), lower, upper
        )
    return points


def local_isometry(representation: Tensor, moved: Tensor, delta: Tensor, *, beta: float, K: float = 1.0) -> Tensor:
    """Return the penalty on the length of a small step that changes on its way through the network.

    β · mean (K·‖h(x + δ) − h(x)‖ − ‖δ‖)², the mean over the examples. Where h does not move, the norm's gradient
    is taken as 0, its smallest subgradient.

    Args:
        representation: h(x), (B, …).
        moved: h(x + δ), (B, …).
        delta: δ, (B, …).
        beta: weight of the penalty, ≥ 0.
        K: factor on the representation's distances, > 0.

    Returns:
        A scalar ≥ 0.
    """
    after = torch.linalg.vector_norm((moved - representation).flatten(1), dim=1)
    before = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    penalty: Tensor = beta * (K * after - before).square().mean()
    return penalty


def jacobian_norm(outputs: Tensor, inputs: Tensor, *, projections: int, generator: torch.Generator) -> Tensor:
    """Return the squared Frobenius norm of the Jacobian, averaged over the examples, with its graph.

    Estimated without bias from products with random unit vectors (Hoffman et al. 2019), or exact.

    Args:
        outputs: (B, C), each row a function of the same row of the inputs alone.
        inputs: (B, …), which require a gradient.
        projections: number of random vectors for each example; 0 takes all C axes instead, which is exact.
        generator: of the vectors, on the CPU.

    Returns:
        A scalar ≥ 0.
    """
    size, count = outputs.shape
    if projections:
        drawn = torch.randn(projections, size, count, dtype=outputs.dtype, generator=generator)
        vectors = torch.nn.functional.normalize(drawn, dim=2).to(outputs.device)
        scale = count / projections
    else:
        axes = torch.eye(count, dtype=outputs.dtype, device=outputs.device)
        vectors, scale = axes[:, None].expand(count, size, count), 1.0
    total = torch.zeros((), dtype=outputs.dtype, device=outputs.device)
    for vector in vectors:
        (product,) = torch.autograd.grad(outputs, inputs, vector, create_graph=True)
        total = total + product.square().sum()
    return scale / size * total
