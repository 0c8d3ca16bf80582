"""The paper's network: a stack of locally isometric blocks, one per level of a label hierarchy."""

from collections.abc import Sequence

from torch import Tensor, nn


class Stack(nn.Module):
    """Fully connected tanh blocks, coarse level first, each read out by a linear head of its own.

    An input layer (in_features → width, tanh) leads into the first block; every block has ``depth``
    orthogonally initialised hidden layers of ``width`` tanh units (the paper's network). With one level this
    is the paper's flat network.

    Args:
        in_features: number of input values of an example.
        classes: number of classes at each level, coarse to fine; ``(10,)`` for flat MNIST.
        width: units of a hidden layer.
        depth: hidden layers of a block.
    """

    def __init__(self, in_features: int, classes: Sequence[int], *, width: int = 100, depth: int = 4) -> None:
        super().__init__()
        self.architecture = {
            "in_features": in_features,
            "classes": list(classes),
            "width": width,
            "depth": depth,
        }
        self.input_layer = nn.Sequential(nn.Flatten(), nn.Linear(in_features, width), nn.Tanh())
        self.blocks = nn.ModuleList(self._block(width, depth) for _ in classes)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in classes)

    @staticmethod
    def _block(width: int, depth: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(depth):
            linear = nn.Linear(width, width)
            nn.init.orthogonal_(linear.weight)
            layers += [linear, nn.Tanh()]
        return nn.Sequential(*layers)

    def levels(self, inputs: Tensor, *, cut: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Return (representation, logits) of every level, coarse to fine: shapes (B, width), (B, classes).

        With ``cut`` the gradient of a level stops at the start of its block, so that a level's loss trains
        its own block and head only (the paper's restricted back-propagation).
        """
        outputs = []
        hidden = self.input_layer(inputs)
        for block, head in zip(self.blocks, self.heads, strict=True):
            hidden = block(hidden)
            outputs.append((hidden, head(hidden)))
            if cut:
                hidden = hidden.detach()
        return outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of the finest level: (B, …) → (B, classes)."""
        return self.levels(inputs)[-1][1]

    def representation(self, inputs: Tensor) -> Tensor:
        """Return the representation of the finest level, where the isometry term acts: (B, …) → (B, width)."""
        return self.levels(inputs)[-1][0]
