"""One seeded training loop for every network of the book."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from isorepro import data, hierarchy
from isorepro.errors import Config, InputError
from isorepro.hierarchy import Hierarchy
from isorepro.losses import ClassBlocks, Form, isometry, pairwise_distances, squared_norms
from isorepro.models import Features, Gradients, Readout, Stack

Measured = tuple[Tensor, Tensor, Tensor]
"""A level's cross-entropy and isometry term, both scalars, and logits (B, classes), all detached."""

Watch = Callable[[int, Stack], None]
"""A function of an epoch, 0 before the first, and of the network as it is then, which it must leave alone."""

Size = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]


class TrainingConfig(Config):
    """Everything that decides a trained network; two equal configs give the same bits on one machine.

    Attributes:
        dataset: name of the dataset (:data:`isorepro.data.DATASETS`).
        train_size: size of the stratified training subset; None takes all.
        form: form of the isometry term (:func:`isorepro.losses.isometry`).
        beta: weight of the term, ≥ 0; 0 is plain cross-entropy.
        K: factor on the representation distances, > 0.
        hierarchy: levels of groups of classes above the classes (:mod:`isorepro.hierarchy`), one block of the
            stack each; empty for the flat network.
        nested: whether every level must refine the one above.
        gradients: what a level's loss trains (:meth:`isorepro.models.Stack.trained_by`).
        shared_head, readout: of the stack (:class:`isorepro.models.Stack`).
        adam: "kept" keeps Adam's moments over the training and steps on all levels at once; "anew" starts Adam
            anew for each batch and level, so that each step is learning_rate · sign(gradient) (released code of
            September 2022).
        features: "convolutional" puts two convolutional layers before the stack
            (:func:`isorepro.models.convolutional_features`); the isometry term compares with the distances of the
            raw pixels all the same.
        width, depth: units of a hidden layer, hidden layers of a block.
        epochs, batch_size, learning_rate: of Adam; the paper takes 5, 100 and 1e-3 on MNIST. A batch size
            from the size of the set on is full-batch training, one step an epoch.
        log_every: epochs from one row of the history to the next; the last epoch always has one.
        seed: of the weights, the order of the examples and the subset.
        device: "auto" takes a GPU when there is one.
    """

    dataset: str = "mnist"
    train_size: Size | None = None
    form: Form = "raw"
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    K: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    hierarchy: Hierarchy = ()
    nested: bool = True
    gradients: Gradients = "own block"
    shared_head: bool = False
    readout: Readout = "in order"
    adam: Literal["kept", "anew"] = "kept"
    features: Features = "none"
    width: Size = 100
    depth: Size = 4
    epochs: Size = 5
    batch_size: Annotated[int, Field(ge=2)] = 100
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    log_every: Size = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Device = "auto"

    def __init__(self, **values: Any) -> None:
        # Before pydantic, which would ask for tuples where a list is as good.
        given = values.get("hierarchy", ())
        super().__init__(**values | {"hierarchy": hierarchy.checked(given, nested=values.get("nested", True))})

    def identity(self) -> dict[str, object]:
        """Return the fields that decide the result, so that equal networks are trained once.

        Without the isometry term its form and K change nothing; "auto" stands for what it resolves to.
        """
        fields = self.model_dump() | {"device": resolve_device(self.device).type}
        return fields if self.beta else fields | {"form": "raw", "K": 1.0}

    @property
    def representation_scale(self) -> float:
        """The factor on the representation's distances that training aims at: K in the raw form, else 1.

        Cross-entropy and the normalised form fix no scale.
        """
        return self.K if self.beta and self.form == "raw" else 1.0


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with what made it.

    Attributes:
        config: its configuration.
        model: the network, on the CPU, in evaluation mode.
        history: one row per logged epoch and level: epoch (1 …), level (1 … coarse to fine), cross_entropy and
            isometry (means over the epoch, in nats and in β-weighted units), train_accuracy (running, in [0, 1]),
            test_accuracy (in [0, 1]); and, on up to a thousand training examples after the epoch,
            distance_error (the raw isometry term with β = 1 and the config's representation_scale for K) and
            lipschitz_ratio (max D_h / max D_x, as in the paper's figure).
        seconds: wall time of the training.
    """

    config: TrainingConfig
    model: Stack
    history: pd.DataFrame
    seconds: float


def resolve_device(device: str) -> torch.device:
    """Return the torch device for "auto" (a GPU when present), "cpu" or "cuda".

    Raises:
        InputError: "cuda" was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' was asked for but this machine has no GPU; use 'auto' or 'cpu'")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def build(config: TrainingConfig, inputs: Tensor, classes: int) -> Stack:
    """Return the untrained network of a config, its weights drawn from ``config.seed`` on the CPU.

    Args:
        config: the configuration.
        inputs: examples, (N, …), of which only the shape is used.
        classes: number of classes.

    Raises:
        InputError: the config's hierarchy is one of other classes, or its features are not for such examples.
    """
    levels = hierarchy.checked(config.hierarchy, classes, nested=config.nested)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Stack(
            inputs[0].numel(),
            hierarchy.sizes(levels, classes),
            width=config.width,
            depth=config.depth,
            shared_head=config.shared_head,
            readout=config.readout,
            image_shape=tuple(inputs.shape[1:]) if config.features == "convolutional" else None,
        )


def train(config: TrainingConfig, *, watch: Watch | None = None) -> TrainedModel:
    """Train the network of a config by Adam on cross-entropy + isometry of every level (the paper's loss).

    Distances are those of one mini-batch at a time: memory does not grow with the square of the set. In full-batch
    training those of the inputs are computed once.

    Args:
        config: the configuration.
        watch: called before the first epoch and after each, with the network on the device that it is trained on;
            the network comes out the same bits with it and without.

    Raises:
        InputError: unknown dataset, impossible size or device, or a hierarchy of other classes.
        DataError: the dataset's files are missing or damaged.
        FloatingPointError: the loss became NaN or infinite.
    """
    device = resolve_device(config.device)
    dataset = data.load(config.dataset, train_size=config.train_size, seed=config.seed).to(device)
    inputs, classes = dataset.train_inputs, len(dataset.classes)
    model = build(config, inputs, classes).to(device)
    labels, test_labels = (
        hierarchy.level_labels(config.hierarchy, known, classes)
        for known in (dataset.train_labels, dataset.test_labels)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    shuffle = torch.Generator().manual_seed(config.seed)
    full_batch = config.batch_size >= len(inputs)
    blocks = [ClassBlocks.of(inputs, row) for row in labels] if full_batch and config.beta else None
    norms = squared_norms(inputs) if config.beta and not full_batch else None
    trained = [model.trained_by(level, config.gradients) for level in range(len(labels))]
    # About a thousand examples, spread over the set, which may be sorted.
    stride = -(-len(inputs) // 1000)
    history = []
    started = time.perf_counter()
    if watch:
        watch(0, model)
    for epoch in range(1, config.epochs + 1):
        if full_batch:
            means = epoch_means([step(model, optimizer, inputs, labels, config, blocks, trained)], labels)
        else:
            order, measured = torch.randperm(len(inputs), generator=shuffle).to(device), []
            for batch in order.split(config.batch_size):
                part = inputs.index_select(0, batch), labels.index_select(1, batch)
                own_norms = None if norms is None else norms[batch]
                measured.append(step(model, optimizer, *part, config, None, trained, own_norms))
            means = epoch_means(measured, labels[:, order])
        if not torch.isfinite(means).all():
            loss = means[:, :2].sum().item()
            raise FloatingPointError(f"the loss became {loss} in epoch {epoch} of {config!r}")
        if epoch % config.log_every == 0 or epoch == config.epochs:
            columns = ("cross_entropy", "isometry", "train_accuracy")
            held_out = level_accuracies(model, dataset.test_inputs, test_labels)
            distances = distance_history(
                model, inputs[::stride], labels[:, ::stride], K=config.representation_scale
            )
            for level, row in enumerate(means.tolist()):
                known = {"epoch": epoch, "level": level + 1, **dict(zip(columns, row, strict=True))}
                history.append({**known, "test_accuracy": held_out[level], **distances[level]})
        if watch:
            watch(epoch, model)
    seconds = time.perf_counter() - started
    return TrainedModel(config, model.cpu().eval(), pd.DataFrame(history), seconds)


def step(
    model: Stack,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    config: TrainingConfig,
    blocks: Sequence[ClassBlocks] | None = None,
    trained: Sequence[Sequence[nn.Parameter]] | None = None,
    norms: Tensor | None = None,
) -> list[Measured]:
    """Take one optimizer step on one batch (with ``adam="anew"`` one for each level, coarse to fine).

    Args:
        model: the stack.
        optimizer: of its parameters.
        inputs: (B, …).
        labels: of every level, (levels, B).
        config: what decides the loss and what it trains.
        blocks: of every level, where they are known; else the batch's distances are computed.
        trained: of every level, the parameters that its loss trains (:meth:`isorepro.models.Stack.trained_by`);
            without them they are found anew, which takes time.
        norms: the inputs' squared norms (B,), where they are known; saves time.

    Returns:
        What was measured at every level, before the step.
    """
    distances = pairwise_distances(inputs, norms) if config.beta and not blocks else None
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    everything = range(len(labels))
    measured = []
    for together in [everything] if config.adam == "kept" else [[level] for level in everything]:
        if config.adam == "anew":
            optimizer.state.clear()
        # By hand: the optimizer's own way takes longer than some layers do.
        for parameter in parameters:
            parameter.grad = None
        outputs = model.levels(inputs)
        for level in together:
            representation, logits = outputs[level]
            entropy = cross_entropy(logits, labels[level])
            weights: dict[str, Any] = {"beta": config.beta, "K": config.K, "form": config.form}
            if blocks:
                penalty = blocks[level].isometry(representation, **weights)
            elif distances is not None:
                penalty = isometry(representation, distances, labels[level], **weights)
            else:
                penalty = torch.zeros_like(entropy)
            own = trained[level] if trained else model.trained_by(level, config.gradients)
            # Naming all parameters gives the same gradients as naming none, and takes longer.
            only = own if len(own) < len(parameters) else None
            (entropy + penalty).backward(inputs=only, retain_graph=level != together[-1])
            measured.append((entropy.detach(), penalty.detach(), logits.detach()))
        optimizer.step()
    return measured


def epoch_means(measured: Sequence[Sequence[Measured]], labels: Tensor) -> Tensor:
    """Return cross-entropy, isometry term and accuracy of every level over an epoch, float64, (levels, 3).

    Args:
        measured: what :func:`step` returned for each batch.
        labels: of every level, in the order of the batches, (levels, N).
    """
    sizes = torch.tensor([len(batch[0][2]) for batch in measured], dtype=torch.float64, device=labels.device)
    means = []
    for level, known in zip(zip(*measured, strict=True), labels, strict=True):
        entropy, penalty, logits = zip(*level, strict=True)
        terms = torch.stack([torch.stack(entropy), torch.stack(penalty)]).double()
        accuracy = (torch.cat(logits).argmax(1) == known).double().mean()
        means.append(torch.cat([terms @ sizes / len(known), accuracy[None]]))
    return torch.stack(means)


@torch.no_grad()
def distance_history(model: Stack, inputs: Tensor, labels: Tensor, *, K: float) -> list[dict[str, float]]:
    """Return distance_error and lipschitz_ratio of each level: inputs (N, …), labels (levels, N)."""
    before = pairwise_distances(inputs)
    found = []
    for (representation, _), row in zip(model.levels(inputs), labels, strict=True):
        error = isometry(representation, before, row, beta=1.0, K=K)
        ratio = pairwise_distances(representation).max() / before.max()
        found.append({"distance_error": error.item(), "lipschitz_ratio": ratio.item()})
    return found


@torch.no_grad()
def level_accuracies(model: Stack, inputs: Tensor, labels: Tensor) -> list[float]:
    """Return the share of examples classified correctly at each level: inputs (N, …), labels (levels, N)."""
    correct = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
    for x, rows in zip(inputs.split(1000), labels.split(1000, dim=1), strict=True):
        named = torch.stack([logits.argmax(1) for _, logits in model.levels(x)])
        correct += (named == rows).sum(1)
    return (correct.double() / len(inputs)).tolist()


@torch.no_grad()
def clean_accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the share of examples classified correctly, in [0, 1]: inputs (N, …), labels (N,)."""
    correct = [
        (model(x).argmax(1) == y).sum() for x, y in zip(inputs.split(1000), labels.split(1000), strict=True)
    ]
    return float(sum(correct)) / len(labels)
