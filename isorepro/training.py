"""One seeded training loop for every network of the book."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isorepro import data, hierarchy, methods
from isorepro.data import Dataset
from isorepro.errors import Config, Count, InputError, NotNegative, Positive
from isorepro.hierarchy import Hierarchy
from isorepro.losses import ClassBlocks, Form, class_members, isometry, pairwise_distances, squared_norms
from isorepro.methods import Clean, Course, Method, Options
from isorepro.models import Features, Gradients, Readout, Stack, class_logits, evaluated

Measured = tuple[Tensor, Tensor, Tensor]
"""A level's cross-entropy (of another method its loss) and isometry term, both scalars, and logits (B, classes).

All detached; the logits are those of the inputs as they are.
"""

Watch = Callable[[int, Stack], None]
"""A function of an epoch, 0 before the first, and of the network as it is then, which it must leave alone."""

Device = Literal["auto", "cpu", "cuda"]
"""Where networks are trained."""


class TrainingConfig(Config):
    """Everything that decides a trained network; two equal configs give the same bits on one machine.

    Attributes:
        dataset: name of the dataset (:data:`isorepro.data.DATASETS`).
        train_size: size of the stratified training subset; None takes all.
        method: what stands in for the cross-entropy, or acts on the network or its optimizer: a key of
            :data:`isorepro.methods.METHODS`, "module:function", or a function of a module. By default the paper's.
        options: of the method, numbers by name, a dict or pairs; kept as pairs in the order of the names.
        form: form of the isometry term (:func:`isorepro.losses.isometry`), which is added to any method's loss.
        beta: weight of the term, ≥ 0; 0 is without it, and with the default method plain cross-entropy.
        K: factor on the representation distances, > 0.
        hierarchy: levels of groups of classes above the classes (:mod:`isorepro.hierarchy`), one block of the
            stack each; empty for the flat network.
        nested: whether every level must refine the one above.
        gradients: what a level's loss trains (:meth:`isorepro.models.Stack.trained_by`).
        shared_head, readout: of the stack (:class:`isorepro.models.Stack`).
        adam: "kept" keeps Adam's moments over the training and steps on all levels at once; "in turn" keeps them
            too, but takes a forward pass, a backward pass and a step for each level, coarse to fine (released code
            from November 2022 on); "anew" does so and starts Adam anew each time, so that each step is
            learning_rate · sign(gradient) (released code of September 2022).
        features: "convolutional" puts two convolutional layers before the stack
            (:func:`isorepro.models.convolutional_features`); the isometry term compares with the distances of the
            raw pixels all the same.
        width, depth: units of a hidden layer, hidden layers of a block.
        epochs, batch_size, learning_rate: of Adam; the paper takes 5, 100 and 1e-3 on MNIST. A batch size
            from the size of the set on is full-batch training, one step an epoch.
        log_every: epochs from one row of the history to the next; the last epoch always has one.
        seed: of the weights, the order of the examples, the subset, what is random in the method, and the points
            or the split of a dataset that is drawn from it.
        device: "auto" takes a GPU when there is one.
    """

    dataset: str = "mnist"
    train_size: Count | None = None
    method: str = methods.DEFAULT
    options: Options = ()
    form: Form = "raw"
    beta: NotNegative = 0.0
    K: Positive = 1.0
    hierarchy: Hierarchy = ()
    nested: bool = True
    gradients: Gradients = "own block"
    shared_head: bool = False
    readout: Readout = "in order"
    adam: Literal["kept", "in turn", "anew"] = "kept"
    features: Features = "none"
    width: Count = 100
    depth: Count = 4
    epochs: Count = 5
    batch_size: Annotated[int, Field(ge=2)] = 100
    learning_rate: Positive = 1e-3
    log_every: Count = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Device = "auto"

    def __init__(self, **values: Any) -> None:
        # Before pydantic, which would ask for tuples where a list is as good.
        levels = hierarchy.checked(values.get("hierarchy", ()), nested=values.get("nested", True))
        method = Method.of(values.get("method", methods.DEFAULT), values.get("options", ()))
        super().__init__(**values | {"hierarchy": levels, "method": method.name, "options": method.given})

    def identity(self) -> dict[str, object]:
        """Return the fields that decide the result, so that equal networks are trained once.

        Without the isometry term its form and K change nothing; "auto" stands for what it resolves to. The method
        is named, with all its options, if it is not the default.
        """
        fields = self.model_dump() | {"device": resolve_device(self.device).type}
        del fields["method"], fields["options"]
        if self.method != methods.DEFAULT:
            fields |= {"method": self.method, "options": self.every_option}
        return fields if self.beta else fields | {"form": "raw", "K": 1.0}

    @property
    def every_option(self) -> dict[str, int | float]:
        """The method's options by name, those not given at their defaults."""
        return dict(Method.of(self.method, self.options).options)

    @property
    def plain(self) -> bool:
        """Whether this is training on the cross-entropy and nothing else."""
        return self.method == methods.DEFAULT and not self.beta

    @property
    def representation_scale(self) -> float:
        """The factor on the representation's distances that training aims at: K in the raw form, else 1.

        Without the isometry term it is the method's option K, if it has one. Cross-entropy and the normalised form
        fix no scale.
        """
        if self.beta:
            return self.K if self.form == "raw" else 1.0
        return float(self.every_option.get("K", 1.0))


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with what made it.

    Attributes:
        config: its configuration.
        model: the network, on the CPU, in evaluation mode.
        history: one row per logged epoch and level: epoch (1 …), level (1 … coarse to fine), cross_entropy (of
            another method the loss that stands in for it) and isometry (means over the epoch, in nats and in
            β-weighted units), train_accuracy (running, of the inputs as they are, in [0, 1]),
            test_accuracy (in [0, 1]); and, on up to a thousand training examples after the epoch,
            distance_error (the raw isometry term with β = 1 and the config's representation_scale for K) and
            lipschitz_ratio (max D_h / max D_x, as in the paper's figure).
        seconds: wall time of the training.
        processor_seconds: processor time of its steps alone, without loading data and logging; NaN if it was not
            trained here.
    """

    config: TrainingConfig
    model: Stack
    history: pd.DataFrame
    seconds: float
    processor_seconds: float = math.nan


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


def dataset_of(
    config: TrainingConfig,
    *,
    dataset: str | None = None,
    test_size: int | None = None,
    test_seed: int | None = None,
) -> Dataset:
    """Return what a network is trained and tested on: the dataset of its own seed, with its training subset.

    Everything that measures a network loads by this, since the points or the split may be drawn from the seed.

    Args:
        config: of the network.
        dataset: name of another dataset, taken with the network's seed and whole; None for the network's own.
        test_size: size of the stratified test subset; None takes all.
        test_seed: seed of that subset's draw, so that networks of all seeds get the same examples of a test set
            that they share; None for the network's seed.

    Raises:
        InputError, DataError: as :func:`isorepro.data.load`.
    """
    size = config.train_size if dataset is None else None
    return data.load(
        dataset or config.dataset, train_size=size, test_size=test_size, seed=config.seed, test_seed=test_seed
    )


def logging_stride(inputs: Tensor) -> int:
    """Return which of some examples (N, …) a history logs distances on: each so many, in all about a thousand.

    They are spread over the set, which may be sorted.
    """
    return -(-len(inputs) // 1000)


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

    The config's method takes the place of the cross-entropy, or changes the network or the optimizer first. The
    network that is returned has plain weights, whatever a method made them of.

    Distances are those within the classes of one mini-batch at a time: memory does not grow with the square of the
    set. In full-batch training those of the inputs are computed once.

    Args:
        config: the configuration.
        watch: called before the first epoch and after each, with the network on the device that it is trained on;
            the network comes out the same bits with it and without.

    Raises:
        InputError: unknown dataset, impossible size or device, a hierarchy of other classes, or a method that
            returns what it must not.
        DataError: the dataset's files are missing or damaged.
        FloatingPointError: the loss became NaN or infinite.
    """
    device = resolve_device(config.device)
    dataset = dataset_of(config).to(device)
    inputs, classes = dataset.train_inputs, len(dataset.classes)
    model = build(config, inputs, classes).to(device)
    labels, test_labels = (
        hierarchy.level_labels(config.hierarchy, known, classes)
        for known in (dataset.train_labels, dataset.test_labels)
    )
    method = Method.of(config.method, config.options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        method.prepare(model)
    optimizer = method.optimizer(torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True))
    course = Course.begin(method, inputs, config.seed)
    shuffle = torch.Generator().manual_seed(config.seed)
    full_batch = config.batch_size >= len(inputs)
    blocks = [ClassBlocks.of(inputs, row) for row in labels] if full_batch and config.beta else None
    norms = squared_norms(inputs) if config.beta and not full_batch else None
    trained = [model.trained_by(level, config.gradients) for level in range(len(labels))]
    stride = logging_stride(inputs)
    logged_on = inputs[::stride], labels[:, ::stride]
    between_inputs = pairwise_distances(logged_on[0])
    history, spent = [], 0.0
    started = time.perf_counter()
    if watch:
        watch(0, model)
    for epoch in range(1, config.epochs + 1):
        began = time.process_time()
        if full_batch:
            now = replace(course, epoch=epoch, progress=(epoch - 1) / config.epochs)
            drawn, measured = labels, [step(model, optimizer, inputs, labels, config, blocks, trained, now)]
        else:
            order, measured = torch.randperm(len(inputs), generator=shuffle).to(device), []
            batches, drawn = order.split(config.batch_size), labels[:, order]
            within = [class_members(row, config.batch_size) for row in drawn] if config.beta else []
            own: list[ClassBlocks] = []
            for number, batch in enumerate(batches):
                part = inputs.index_select(0, batch), labels.index_select(1, batch)
                if norms is not None:
                    near = norms[batch]
                    whole = pairwise_distances(part[0], near) if len(within) > 1 else None
                    own = [ClassBlocks.among(part[0], near, *next(members), whole) for members in within]
                now = replace(course, epoch=epoch, progress=(epoch - 1 + number / len(batches)) / config.epochs)
                measured.append(step(model, optimizer, *part, config, own, trained, now))
        loss = _total_loss(measured)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} in epoch {epoch} of {config!r}")
        logged = epoch % config.log_every == 0 or epoch == config.epochs
        # In full-batch training it takes a tenth of a small network's step.
        means = epoch_means(measured, drawn) if logged else None
        spent += time.process_time() - began
        if means is not None:
            columns = ("cross_entropy", "isometry", "train_accuracy")
            held_out = level_accuracies(model, dataset.test_inputs, test_labels)
            distances = distance_history(model, *logged_on, between_inputs, K=config.representation_scale)
            for level, row in enumerate(means.tolist()):
                known = {"epoch": epoch, "level": level + 1, **dict(zip(columns, row, strict=True))}
                history.append({**known, "test_accuracy": held_out[level], **distances[level]})
        if watch:
            watch(epoch, model)
    seconds = time.perf_counter() - started
    for layer in list(model.modules()):
        for name in list(getattr(layer, "parametrizations", ())):
            parametrize.remove_parametrizations(layer, name)
    return TrainedModel(config, model.cpu().eval(), pd.DataFrame(history), seconds, spent)


def step(
    model: Stack,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    config: TrainingConfig,
    blocks: Sequence[ClassBlocks] | None = None,
    trained: Sequence[Sequence[nn.Parameter]] | None = None,
    now: Course | None = None,
) -> list[Measured]:
    """Take one optimizer step on one batch (with ``adam="in turn"`` or "anew" one for each level, coarse to fine).

    Args:
        model: the stack.
        optimizer: of its parameters.
        inputs: (B, …).
        labels: of every level, (levels, B).
        config: what decides the loss and what it trains.
        blocks: of every level, where they are known; else they are found here. Without the isometry term none are
            needed.
        trained: of every level, the parameters that its loss trains (:meth:`isorepro.models.Stack.trained_by`);
            without them they are found anew, which takes time.
        now: how far the training is, with the config's method; without it the training begins, which takes time.

    Returns:
        What was measured at every level, before the step.
    """
    if config.beta and not blocks:
        blocks = [ClassBlocks.of(inputs, row) for row in labels]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    now = now or Course.begin(Method.of(config.method, config.options), inputs, config.seed)
    everything = range(len(labels))
    measured = []
    for together in [everything] if config.adam == "kept" else [[level] for level in everything]:
        if config.adam == "anew":
            optimizer.state.clear()
        # By hand: the optimizer's own way takes longer than some layers do.
        for parameter in parameters:
            parameter.grad = None
        clean = Clean(model, inputs, apart=config.gradients == "own block")
        losses = []
        for level in together:
            batch = now.batch(level, model, inputs, labels[level], clean)
            loss = now.method.loss(batch)
            if blocks:
                penalty = blocks[level].isometry(
                    batch.representation, beta=config.beta, K=config.K, form=config.form
                )
            else:
                penalty = torch.zeros_like(loss)
            own = trained[level] if trained else model.trained_by(level, config.gradients)
            # Naming all parameters gives the same gradients as naming none, and takes longer.
            only = own if len(own) < len(parameters) else None
            (loss + penalty).backward(inputs=only, retain_graph=level != together[-1])
            losses.append((loss.detach(), penalty.detach()))
        # A method may have had no need of them.
        with torch.no_grad():
            outputs = clean.outputs
        measured += [(*losses[at], outputs[level][1].detach()) for at, level in enumerate(together)]
        optimizer.step()
    return measured


def _total_loss(measured: Sequence[Sequence[Measured]]) -> float:
    """Return the sum of all that :func:`step` returned for each batch: finite if every loss and term is."""
    terms = [term for batch in measured for entropy, penalty, _ in batch for term in (entropy, penalty)]
    return float(torch.stack(terms).double().sum())


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
def distance_history(
    model: Stack, inputs: Tensor, labels: Tensor, before: Tensor, *, K: float
) -> list[dict[str, float]]:
    """Return distance_error and lipschitz_ratio of each level.

    Args:
        model: the stack.
        inputs: (N, …).
        labels: of every level, (levels, N).
        before: distances between the inputs, (N, N).
        K: factor on the representation's distances, > 0.
    """
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


@evaluated
@torch.no_grad()
def clean_accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the share of examples classified correctly, in [0, 1]: inputs (N, …), labels (N,)."""
    correct = [
        (class_logits(model, x).argmax(1) == y).sum()
        for x, y in zip(inputs.split(1000), labels.split(1000), strict=True)
    ]
    return float(sum(correct)) / len(labels)
