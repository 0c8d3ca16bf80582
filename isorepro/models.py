"""The paper's network: a stack of locally isometric blocks, one per level of a label hierarchy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from isorepro.errors import InputError

Gradients = Literal["own block", "all earlier blocks", "shifted by a layer"]
"""What a level's loss trains; :meth:`Stack.trained_by`."""

Readout = Literal["in order", "reversed"]
"""Where the levels are read; :class:`Stack`."""

Features = Literal["none", "convolutional"]
"""What the input layer is given: the pixels, or :func:`convolutional_features` of them."""

P = ParamSpec("P")
R = TypeVar("R")

CHANNELS = (128, 256)
"""Of the convolutional layers of the paper's network for CIFAR-10."""


def convolutional_features(image_shape: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Return the layers before a stack in the paper's network for CIFAR-10, and how many values they give.

    Two convolutions of 3 × 3 filters with padding, each followed by ReLU and 2 × 2 max-pooling (code of 2024).

    Args:
        image_shape: channels, height and width of an image, at least 4 pixels a side.

    Raises:
        InputError: another shape.
    """
    if len(image_shape) != 3 or min(image_shape[1:]) < 4:
        raise InputError(
            "features: convolutional ones need images of at least 4 × 4 pixels, (channels, height, width), not "
            f"inputs of the shape {tuple(image_shape)}"
        )
    channels, *sides = image_shape
    layers: list[nn.Module] = []
    for count in CHANNELS:
        layers += [nn.Conv2d(channels, count, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, sides = count, [side // 2 for side in sides]
    return nn.Sequential(*layers), channels * sides[0] * sides[1]


def tanh_layers(inputs: Tensor, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """Return the output of each of some linear layers in a row, tanh after each: (B, in_features) → (B, width)."""
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    if not torch.is_grad_enabled():
        return _TanhLayers.outputs(inputs, parameters)
    found: tuple[Tensor, ...] = _TanhLayers.apply(inputs, *parameters)
    return found


class _TanhLayers(torch.autograd.Function):
    """Linear layers in a row, tanh after each, as one node of the graph.

    At the paper's width a node for each takes as long as what it computes. And the library that torch calls for
    tanh is slow on other makers' processors: NumPy takes a sixth of the time there.
    """

    @staticmethod
    def outputs(inputs: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the output of every layer, from weight and bias of each in turn; no graph is kept."""
        found = [inputs]
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            after = linear(found[-1], weight, bias)
            if after.is_cuda:
                after.tanh_()
            else:
                values = after.numpy()
                np.tanh(values, out=values)
            found.append(after)
        return tuple(found[1:])

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Return the output of every layer."""
        ctx.set_materialize_grads(False)
        found = _TanhLayers.outputs(inputs, parameters)
        ctx.save_for_backward(*parameters[::2], inputs, *found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs and of the parameters that need one, which can be differentiated."""
        count, needed = len(gradients), ctx.needs_input_grad
        weights, outputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        found: list[Tensor | None] = [None] * len(needed)
        passed: Tensor | None = None
        for layer in reversed(range(count)):
            own = gradients[layer]
            if own is not None:
                passed = own if passed is None else passed + own
            if passed is None:
                continue
            before, after = outputs[layer : layer + 2]
            passed = torch.ops.aten.tanh_backward(passed, after)
            if needed[2 * layer + 1]:
                found[2 * layer + 1] = passed.t().mm(before)
            if needed[2 * layer + 2]:
                found[2 * layer + 2] = passed.sum(0)
            if layer or needed[0]:
                passed = passed.mm(weights[layer])
        if needed[0]:
            found[0] = passed
        return tuple(found)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter of a model ask for a gradient, so that none is computed: for gradients of the inputs."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in free:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)


def evaluated(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function run with the models among its arguments in evaluation mode; each part gets its mode back."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        models = [given for given in (*args, *kwargs.values()) if isinstance(given, nn.Module)]
        training = [part for model in models for part in model.modules() if part.training]
        # Not by eval(), which a model may have made to do more than train() undoes.
        for part in training:
            part.training = False
        try:
            return function(*args, **kwargs)
        finally:
            for part in training:
                part.training = True

    return run


def class_logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a model says of inputs, once it is sure that a prediction can be read off it.

    Args:
        model: inputs (B, …) → logits (B, classes).
        inputs: (B, …).

    Raises:
        InputError: an output of another kind, NaN in it, or inputs that the model has changed.
    """
    version = None if inputs.is_inference() else inputs._version
    logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(inputs):
        what = f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(f"model: must return logits, ({len(inputs)}, classes), not {what}")
    if version is not None and inputs._version != version:
        raise InputError("model: must leave its inputs as they are, not change them in place")
    missing = logits.isnan().any(1)
    if missing.any():
        raise InputError(f"model: its logits are NaN for {int(missing.sum())} of {len(inputs)} inputs")
    return logits


class Stack(nn.Module):
    """Fully connected tanh blocks, coarse level first, each read out by a linear head.

    An input layer (in_features → width, tanh) leads into the first block; every block has ``depth``
    orthogonally initialised hidden layers of ``width`` tanh units (the paper's network). With one level this
    is the paper's flat network.

    Args:
        in_features: number of input values of an example.
        classes: number of classes at each level, coarse to fine; ``(10,)`` for flat MNIST.
        width: units of a hidden layer.
        depth: hidden layers of a block.
        shared_head: one head for all levels, as in the released code; a coarse level then has outputs that no
            label names.
        readout: "in order": level ℓ is read after its block. "reversed": the coarsest level is read after all
            blocks but the last and each finer one a block earlier, the finest right after the input layer
            (released code of September 2022); no level reads the last block.
        image_shape: given, :func:`convolutional_features` of images of this shape come before the input layer, are
            part of it, and are trained where it is: by the loss of the first block.

    Raises:
        InputError: a shape that has no convolutional features.
    """

    def __init__(
        self,
        in_features: int,
        classes: Sequence[int],
        *,
        width: int = 100,
        depth: int = 4,
        shared_head: bool = False,
        readout: Readout = "in order",
        image_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "in_features": in_features,
            "classes": list(classes),
            "width": width,
            "depth": depth,
            "shared_head": shared_head,
            "readout": readout,
            "image_shape": image_shape and list(image_shape),
        }
        features: list[nn.Module] = []
        if image_shape:
            convolutions, in_features = convolutional_features(image_shape)
            features = [*convolutions]
        self.input_layer = nn.Sequential(*features, nn.Flatten(), nn.Linear(in_features, width), nn.Tanh())
        self.blocks = nn.ModuleList(self._block(width, depth) for _ in classes)
        if shared_head:
            self.heads = nn.ModuleList([nn.Linear(width, max(classes))] * len(classes))
        else:
            self.heads = nn.ModuleList(nn.Linear(width, count) for count in classes)
        # Looking for them at every step would take longer than some of them do. Tuples are not registered twice.
        self._first = tuple(self.input_layer.children())[:-2]
        parts = (self.input_layer, *self.blocks)
        self._linear = tuple(layer for part in parts for layer in part.children() if isinstance(layer, nn.Linear))
        self._depth = depth
        # Number of blocks before each level's head.
        self.reads = tuple(range(1, len(classes) + 1) if readout == "in order" else range(len(classes))[::-1])

    @staticmethod
    def _block(width: int, depth: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(depth):
            linear = nn.Linear(width, width)
            nn.init.orthogonal_(linear.weight)
            layers += [linear, nn.Tanh()]
        return nn.Sequential(*layers)

    def _features(self, inputs: Tensor) -> Tensor:
        """Return what comes before the first linear layer, flat: (B, …) → (B, values)."""
        for layer in self._first:
            inputs = layer(inputs)
        return inputs

    def levels(self, inputs: Tensor, *, apart: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Return (representation, logits) of every level, coarse to fine: shapes (B, width), (B, classes).

        Args:
            inputs: (B, …).
            apart: whether no gradient leads from a level to layers before the readout of the one above, so that
                each level's loss trains its own block and no other gradient is computed.
        """
        after, done = self._features(inputs), 0
        hidden: dict[int, Tensor] = {}
        for read in sorted(self.reads):
            end = 1 + read * self._depth
            after = tanh_layers(after.detach() if apart and done else after, self._linear[done:end])[-1]
            hidden[read], done = after, end
        return [(hidden[read], head(hidden[read])) for read, head in zip(self.reads, self.heads, strict=True)]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of the finest level: (B, …) → (B, classes)."""
        return self.levels(inputs)[-1][1]

    def representation(self, inputs: Tensor) -> Tensor:
        """Return the representation of the finest level, where the isometry term acts: (B, …) → (B, width)."""
        return self.levels(inputs)[-1][0]

    def hidden(self, inputs: Tensor, level: int, *, back: int = 0) -> Tensor:
        """Return a hidden layer of the network that classifies at a level, and compute no more.

        Args:
            inputs: (B, …).
            level: from 0, the coarsest.
            back: how many layers before the representation; 0 is the representation itself.

        Returns:
            Shape (B, width).

        Raises:
            InputError: there are fewer layers.
        """
        most = self.reads[level] * self._depth
        if not 0 <= back <= most:
            raise InputError(f"back: must be from 0 to {most}, the input layer, not {back}")
        return tanh_layers(self._features(inputs), self._linear[: 1 + most - back])[-1]

    def activations(self, inputs: Tensor) -> list[Tensor]:
        """Return the output of the input layer and of each hidden layer of all blocks, each (B, width)."""
        return [*tanh_layers(self._features(inputs), self._linear)]

    def trained_by(self, level: int, gradients: Gradients) -> list[nn.Parameter]:
        """Return the parameters that the loss of a level trains.

        Args:
            level: from 0, the coarsest.
            gradients: "own block": the head and the layers between this level's readout and the next shallower
                one, the input layer with the shallowest (the paper's restricted back-propagation). "all earlier
                blocks": everything before the readout (released code of September 2022). "shifted by a layer":
                the input layer, and the own block without its first layer (from May 2023 on).
        """
        read = self.reads[level]
        above = max((other for other in self.reads if other < read), default=0)
        shallowest = read == min(self.reads)
        modules: list[nn.Module] = [self.heads[level]]
        if gradients == "own block":
            modules += [*self.blocks[above:read], *[self.input_layer] * shallowest]
        elif gradients == "all earlier blocks":
            modules += [*self.blocks[:read], self.input_layer]
        else:
            layers = [layer for block in self.blocks[above:read] for layer in block.children()]
            modules += [*layers[1:], self.input_layer]
        return [parameter for module in modules for parameter in module.parameters()]

    def up_to(self, level: int) -> "Stack":
        """Return the network that classifies at one level, of the same parameters.

        Args:
            level: from 0, the coarsest; the finest gives the whole stack, read at the same places.

        Raises:
            InputError: there is no such level.
        """
        if not 0 <= level < len(self.reads):
            raise InputError(f"level: must be from 0 to {len(self.reads) - 1}, not {level}")
        part = Stack.__new__(Stack)
        nn.Module.__init__(part)
        part.architecture = self.architecture | {"classes": self.architecture["classes"][: level + 1]}
        part.input_layer, part.blocks, part.heads = self.input_layer, self.blocks, self.heads[: level + 1]
        part.reads = self.reads[: level + 1]
        part._first, part._linear, part._depth = self._first, self._linear, self._depth
        return part.train(self.training)
