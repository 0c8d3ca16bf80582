"""The paper's isometry term, in the two forms its code has had, and the penalties of other methods."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

Form = Literal["raw", "normalised"]


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
    # What cdist does with more than 25 points, less the norms.
    squared = torch.addmm(squared_norms[:, None] + squared_norms, flat, flat.T, alpha=-2)
    return squared.clamp_min_(0).sqrt_()


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
    In the normalised form, distances that are all zero stay zero.

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
    same_class = labels[:, None] == labels[None, :]
    d_h = pairwise_distances(_scaled(representation, K, form))
    return _term(d_h, input_distances, same_class, len(labels), beta, K, form)


def _scaled(representation: Tensor, K: float, form: Form) -> Tensor:
    # K times the points is cheaper than K times all their distances.
    return K * representation if form == "raw" else representation


def _term(
    d_h: Tensor,
    d_x: Tensor,
    same_class: Tensor | None,
    size: int,
    beta: float,
    K: float,
    form: Form,
) -> Tensor:
    """Return the term from D_h (K·D_h in the raw form), D_x and E.

    Without E all pairs given are of one class; of the size² pairs those of
    different classes may be missing.
    """

    def within(values: Tensor) -> Tensor:
        return values if same_class is None else values * same_class

    if form == "raw":
        difference = within(d_h - d_x)
        return beta / size**2 * (difference * difference).sum()
    d_h, d_x = within(d_h), within(d_x)
    tiny = torch.finfo(d_h.dtype).tiny
    d_h = d_h / (K * d_h.max().clamp_min(tiny))
    d_x = d_x / d_x.max().clamp_min(tiny)
    return beta * (mse_loss(d_h, d_x, reduction="sum") / size**2).square()


@dataclass(frozen=True)
class ClassBlocks:
    """The pairs of one class in a set of points that every step sees whole, ready for the isometry term.

    Equal to :func:`isometry`, but only the blocks of one class are computed, and those of the inputs once.

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
        """Return the blocks of a set of inputs (N, …) with labels (N,), int64."""
        classes = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
        members = torch.nn.utils.rnn.pad_sequence(classes, batch_first=True)
        counts = torch.tensor([len(found) for found in classes], device=labels.device)
        there = torch.arange(members.shape[1], device=labels.device) < counts[:, None]
        same_class = None if there.all() else (there[:, :, None] & there[:, None, :]).to(inputs.dtype)
        return cls(members, same_class, cls._within(inputs, members), len(labels))

    @staticmethod
    def _within(points: Tensor, members: Tensor) -> Tensor:
        blocks = points.flatten(1)[members]
        return torch.cdist(blocks, blocks)

    def isometry(self, representation: Tensor, *, beta: float, K: float = 1.0, form: Form = "raw") -> Tensor:
        """Return the penalty for the representation (N, …) of all points; arguments as of :func:`isometry`."""
        d_h = self._within(_scaled(representation, K, form), self.members)
        return _term(d_h, self.distances, self.same_class, self.size, beta, K, form)


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
