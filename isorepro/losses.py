"""The paper's isometry term, in the two forms its code has had."""

from typing import Literal

import torch
from torch import Tensor

Form = Literal["raw", "normalised"]


def pairwise_distances(points: Tensor) -> Tensor:
    """Return the Euclidean distances between the points of one batch: (B, …) → (B, B)."""
    flat = points.flatten(1)
    return torch.cdist(flat, flat)


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
    d_h = pairwise_distances(representation) * same_class
    d_x = input_distances * same_class
    if form == "raw":
        return beta * (K * d_h - d_x).square().mean()
    tiny = torch.finfo(d_h.dtype).tiny
    d_h = d_h / (K * d_h.max().clamp_min(tiny))
    d_x = d_x / d_x.max().clamp_min(tiny)
    return beta * (d_h - d_x).square().mean().square()
