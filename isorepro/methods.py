"""Training methods: what stands in for the cross-entropy, or acts on the network or on its optimizer.

A method is a function, and the name of its first parameter says where it acts:

* ``batch``: a loss, which gets a :class:`Batch` and returns a scalar in place of the cross-entropy;
* ``model``: on the network, once it is built and before the first step, which it changes in place;
* ``optimizer``: on the optimizer of its parameters; it returns the one to train with.

Its further parameters are its options: numbers, each with a default and, where not any number will do, a range.
The paper's term with its β, K and form can be added to every method. Networks may be flat or stacks: a loss is
asked for at every level.
"""

import importlib
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, create_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, normalize, one_hot, softmax

from isorepro import losses
from isorepro.errors import Config, InputError, unknown
from isorepro.models import Stack, frozen

Options = tuple[tuple[str, int | float], ...]
"""Numbers by name, in the order of the names: what a method is given, such as (("epsilon", 0.1), ("steps", 3))."""

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Switch = Annotated[int, Field(ge=0, le=1)]

DEFAULT = "isometry"
"""The method of the paper."""


class Clean:
    """The network's outputs on a batch as it is, computed when they are first asked for."""

    def __init__(self, model: Stack, inputs: Tensor, *, apart: bool = False) -> None:
        self._model, self._inputs, self._apart = model, inputs, apart

    @cached_property
    def outputs(self) -> list[tuple[Tensor, Tensor]]:
        """Representation and logits of every level (:meth:`isorepro.models.Stack.levels`)."""
        return self._model.levels(self._inputs, apart=self._apart)


@dataclass(frozen=True)
class Batch:
    """What a loss is given: a mini-batch at one level of the network.

    Attributes:
        model: the network, on the device that it is trained on.
        level: from 0, the coarsest; always 0 in a flat network.
        inputs: (B, …).
        labels: of that level, (B,), int64.
        bounds: least and largest value that an input can have: 0 and 1 for images, infinite for points in space.
        epoch: from 1.
        progress: share of the training's steps that are done, in [0, 1): for schedules.
        generator: what is random is drawn from it, on the CPU; it begins with the config's seed.
        clean: the outputs of all levels.
    """

    model: Stack
    level: int
    inputs: Tensor
    labels: Tensor
    bounds: tuple[float, float]
    epoch: int
    progress: float
    generator: torch.Generator
    clean: Clean

    @property
    def representation(self) -> Tensor:
        """The level's representation of the inputs, (B, width), with its graph."""
        return self.clean.outputs[self.level][0]

    @property
    def logits(self) -> Tensor:
        """The level's logits, (B, classes), with their graph."""
        return self.clean.outputs[self.level][1]

    def layer(self, inputs: Tensor, back: int = 0) -> Tensor:
        """Return the level's representation of other inputs, or the hidden layer so many layers before it.

        Args:
            inputs: (B, …).
            back: 0 is the representation, 1 the hidden layer before it, and so on; -1 stands for the logits.

        Raises:
            InputError: there are fewer layers.
        """
        if back == -1:
            return self.classify(inputs)
        return self.model.hidden(inputs, self.level, back=back)

    def classify(self, inputs: Tensor) -> Tensor:
        """Return the level's logits of other inputs: (B, …) → (B, classes)."""
        logits: Tensor = self.model.heads[self.level](self.model.hidden(inputs, self.level))
        return logits

    def ascend(
        self,
        objective: Callable[[Tensor], Tensor],
        *,
        epsilon: float,
        steps: int,
        step_size: float,
        start: float,
        warmup: float,
    ) -> Tensor:
        """Return points near the inputs at which an objective is large (:func:`isorepro.losses.sign_ascent`).

        Args:
            objective: points (B, …) → a scalar, a sum over examples.
            epsilon, steps, step_size, start: as for :func:`isorepro.losses.sign_ascent`.
            warmup: share of the training in which the radius grows from 0 to ε; 0 for ε from the first step.
        """
        grown = min(1.0, self.progress / warmup) if warmup else 1.0
        with frozen(self.model):
            return losses.sign_ascent(
                objective,
                self.inputs,
                epsilon=grown * epsilon,
                steps=steps,
                step_size=step_size,
                start=start,
                bounds=self.bounds,
                generator=self.generator,
            )

    def adversarial(self, **options: Any) -> Tensor:
        """Return points near the inputs at which the cross-entropy is large; options of :meth:`ascend`."""

        def loss(points: Tensor) -> Tensor:
            return cross_entropy(self.classify(points), self.labels, reduction="sum")

        return self.ascend(loss, **options)


def isometry(batch: Batch) -> Tensor:
    """Cross-entropy: with the config's β, K and form the paper's loss, with β = 0 plain training."""
    return cross_entropy(batch.logits, batch.labels)


def local_isometry(
    batch: Batch,
    *,
    beta: NonNegative = 0.1,
    K: Positive = 3.0,
    epsilon: NonNegative = 0.1,
    steps: Count = 1,
    step_size: Positive = 2.5,
    start: Annotated[float, Field(gt=0, le=1)] = 1.0,
    warmup: Share = 0.0,
    layer: Annotated[int, Field(ge=-1)] = 0,
    target: Switch = 1,
) -> Tensor:
    """Cross-entropy + β · mean (K·‖h(x + δ) − h(x)‖ − target·‖δ‖)²: isometry where h changes most. Ours.

    δ is found by sign steps that ascend ‖h(x + δ) − h(x)‖² in the L∞ ball; no label is used to find it.

    With target 0 no isometry is asked for: β·K² · mean ‖h(x + δ) − h(x)‖², all of the ball to one point. That is
    what remains as K → ∞ with c = β·K² held, since β·(K·a − b)² = c·(a − b/K)² → c·a².

    Args:
        batch: the batch.
        beta: weight of the penalty.
        K: factor on the representation's distances.
        epsilon: radius of the ball.
        steps: steps of the ascent; 0 keeps distances along random directions.
        step_size: in units of ε / steps.
        start: radius of the random start, in units of ε; at 0 itself there is no gradient.
        warmup: share of the training in which ε grows from 0.
        layer: how many layers before the representation h is; -1 takes the logits.
        target: 1 for lengths that are kept, 0 for K = ∞.
    """
    known = {0: batch.representation, -1: batch.logits}
    h = known[layer] if layer in known else batch.layer(batch.inputs, layer)
    fixed = h.detach()

    def change(points: Tensor) -> Tensor:
        return (batch.layer(points, layer) - fixed).square().sum()

    points = batch.ascend(change, epsilon=epsilon, steps=steps, step_size=step_size, start=start, warmup=warmup)
    delta = points - batch.inputs
    penalty = losses.local_isometry(h, batch.layer(points, layer), target * delta, beta=beta, K=K)
    return cross_entropy(batch.logits, batch.labels) + penalty


def adversarial(
    batch: Batch,
    *,
    epsilon: NonNegative = 0.1,
    steps: Count = 7,
    step_size: Positive = 2.5,
    start: Share = 1.0,
    warmup: Share = 0.0,
) -> Tensor:
    """Cross-entropy on adversarial examples alone (Madry et al. 2018), by default of seven steps of PGD.

    Args:
        batch: the batch.
        epsilon: radius of the L∞ ball.
        steps: steps of PGD.
        step_size: in units of ε / steps.
        start: radius of the random start, in units of ε.
        warmup: share of the training in which ε grows from 0.
    """
    points = batch.adversarial(epsilon=epsilon, steps=steps, step_size=step_size, start=start, warmup=warmup)
    return cross_entropy(batch.classify(points), batch.labels)


def logit_pairing(
    batch: Batch,
    *,
    beta: NonNegative = 0.5,
    clean: Share = 0.5,
    epsilon: NonNegative = 0.1,
    steps: Count = 7,
    step_size: Positive = 2.5,
    start: Share = 1.0,
    warmup: Share = 0.0,
) -> Tensor:
    """Adversarial logit pairing (Kannan et al. 2018): adversarial training with near logits z of x and of x'.

    clean · CE(x) + (1 − clean) · CE(x') + β · mean (z(x) − z(x'))², the mean over examples and classes; x' is the
    adversarial example of :func:`adversarial`, which this is for clean = β = 0. Weight and share are those of
    their code for ImageNet.

    Args:
        batch: the batch.
        beta: weight of the pairing.
        clean: share of the cross-entropy that is taken on the inputs as they are.
        epsilon: radius of the L∞ ball.
        steps: steps of PGD.
        step_size: in units of ε / steps.
        start: radius of the random start, in units of ε.
        warmup: share of the training in which ε grows from 0.
    """
    points = batch.adversarial(epsilon=epsilon, steps=steps, step_size=step_size, start=start, warmup=warmup)
    logits = batch.classify(points)
    entropies = [cross_entropy(found, batch.labels) for found in (batch.logits, logits)]
    return clean * entropies[0] + (1 - clean) * entropies[1] + beta * mse_loss(logits, batch.logits)


def trades(
    batch: Batch,
    *,
    beta: NonNegative = 6.0,
    epsilon: NonNegative = 0.1,
    steps: Count = 7,
    step_size: Positive = 2.5,
    start: Annotated[float, Field(gt=0, le=1)] = 1.0,
    warmup: Share = 0.0,
) -> Tensor:
    """TRADES (Zhang et al. 2019): cross-entropy + β · the largest divergence of the predictions in the ball.

    The divergence is KL(p(x) ‖ p(x + δ)), averaged over the examples. Their code starts from a narrow Gaussian;
    here, as elsewhere in this module, the start is a uniform point of a cube.

    Args:
        batch: the batch.
        beta: weight of the divergence, 1/λ in their paper.
        epsilon: radius of the L∞ ball.
        steps: steps that ascend the divergence.
        step_size: in units of ε / steps.
        start: radius of the random start, in units of ε; at 0 itself there is no gradient.
        warmup: share of the training in which ε grows from 0.
    """
    known = log_softmax(batch.logits, 1)
    fixed = known.detach()

    def divergence(points: Tensor) -> Tensor:
        return kl_div(log_softmax(batch.classify(points), 1), fixed, reduction="sum", log_target=True)

    points = batch.ascend(
        divergence, epsilon=epsilon, steps=steps, step_size=step_size, start=start, warmup=warmup
    )
    moved = log_softmax(batch.classify(points), 1)
    apart = kl_div(moved, known, reduction="batchmean", log_target=True)
    return cross_entropy(batch.logits, batch.labels) + beta * apart


def score(
    batch: Batch,
    *,
    beta: NonNegative = 4.0,
    epsilon: NonNegative = 0.1,
    steps: Count = 7,
    step_size: Positive = 2.5,
    start: Annotated[float, Field(gt=0, le=1)] = 1.0,
    warmup: Share = 0.0,
) -> Tensor:
    """SCORE (Pang et al. 2022): TRADES with squared distances of the predicted probabilities p.

    mean ‖p(x) − y‖² + β · mean ‖p(x + δ) − p(x)‖², y the one-hot label. It stands for local equivariance, in which
    p(x + δ) may change as the true label does. Weight and start are those of their code.

    Args:
        batch: the batch.
        beta: weight of the second term.
        epsilon: radius of the L∞ ball.
        steps: steps that ascend the second term.
        step_size: in units of ε / steps.
        start: radius of the random start, in units of ε; at 0 itself there is no gradient.
        warmup: share of the training in which ε grows from 0.
    """
    known = softmax(batch.logits, 1)
    fixed = known.detach()

    def change(points: Tensor) -> Tensor:
        return (softmax(batch.classify(points), 1) - fixed).square().sum()

    points = batch.ascend(change, epsilon=epsilon, steps=steps, step_size=step_size, start=start, warmup=warmup)
    apart = (softmax(batch.classify(points), 1) - known).square().sum(1).mean()
    wrong = (known - one_hot(batch.labels, known.shape[1])).square().sum(1).mean()
    return wrong + beta * apart


def virtual_adversarial(
    batch: Batch,
    *,
    beta: NonNegative = 1.0,
    epsilon: NonNegative = 0.1,
    steps: Annotated[int, Field(ge=1)] = 1,
    xi: Positive = 0.1,
    signs: Switch = 0,
) -> Tensor:
    """Virtual adversarial training (Miyato et al. 2016): cross-entropy + β · mean KL(p(x) ‖ p(x + r)), p(x) fixed.

    r = ε·√D·d, d the unit vector along which the divergence grows fastest. Power iteration finds it from a random
    one: d ← ∇KL(p(x) ‖ p(x + ξ·d)) / ‖∇KL‖, which tends to the first eigenvector of the Fisher matrix
    Jᵀ(diag p − p·pᵀ)J, J = ∂ logits / ∂ x. No label is used to find r.

    Args:
        batch: the batch.
        beta: weight of the divergence, λ in their paper.
        epsilon: root mean square of the D values of r, so that r is as long as the way to a corner of the L∞
            ball; their 2.1 on MNIST is ε = 0.075.
        steps: of the power iteration.
        xi: length of the step ξ; their 10⁻⁶ drowns in the rounding of float32.
        signs: 1 for r = ε · sign d, a corner of the L∞ ball, as their code has it too.
    """
    known = log_softmax(batch.logits, 1).detach()

    def divergence(points: Tensor) -> Tensor:
        return kl_div(log_softmax(batch.classify(points), 1), known, reduction="sum", log_target=True)

    d = torch.randn(batch.inputs.shape, dtype=batch.inputs.dtype, generator=batch.generator)
    d = normalize(d.to(batch.inputs.device).flatten(1))
    with torch.enable_grad(), frozen(batch.model):
        for _ in range(steps):
            points = (batch.inputs + xi * d.view_as(batch.inputs)).requires_grad_()
            d = normalize(torch.autograd.grad(divergence(points), points)[0].flatten(1))
    r = epsilon * (d.sign() if signs else math.sqrt(d.shape[1]) * d)
    points = (batch.inputs + r.view_as(batch.inputs)).clamp_(*batch.bounds)
    return cross_entropy(batch.logits, batch.labels) + beta / len(points) * divergence(points)


def jacobian(batch: Batch, *, beta: NonNegative = 0.01, projections: Count = 1) -> Tensor:
    """Cross-entropy + β/2 · mean ‖∂ logits / ∂ x‖² (Frobenius), Jacobian regularisation (Hoffman et al. 2019).

    Args:
        batch: the batch.
        beta: weight of the penalty.
        projections: random projections by which the norm is estimated; 0 computes it exactly, one class at a time.
    """
    inputs = batch.inputs.detach().requires_grad_()
    logits = batch.classify(inputs)
    norm = losses.jacobian_norm(logits, inputs, projections=projections, generator=batch.generator)
    return cross_entropy(logits, batch.labels) + beta / 2 * norm


def noise(batch: Batch, *, sigma: NonNegative = 0.2) -> Tensor:
    """Cross-entropy on inputs with Gaussian noise, brought back into the bounds (Bishop 1995).

    Args:
        batch: the batch.
        sigma: standard deviation of the noise on every input value.
    """
    drawn = torch.randn(batch.inputs.shape, dtype=batch.inputs.dtype, generator=batch.generator)
    noisy = (batch.inputs + sigma * drawn.to(batch.inputs.device)).clamp_(*batch.bounds)
    return cross_entropy(batch.classify(noisy), batch.labels)


def orthogonal(model: Stack) -> None:
    """Keep the weights of the hidden layers orthogonal (Lezcano-Casado & Martínez-Rubio 2019).

    As they are initialised, so that the linear map of a hidden layer keeps all distances during training too. The
    input layer and the heads stay free: as wide as an image, the former would take a hundred times as long.
    """
    for block in model.blocks:
        for layer in block.children():
            if isinstance(layer, nn.Linear):
                # Of torch's maps the fastest at this size.
                nn.utils.parametrizations.orthogonal(layer, orthogonal_map="cayley")


def weight_decay(optimizer: torch.optim.Optimizer, *, decay: NonNegative = 0.1) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): a step multiplies weights by 1 − rate · decay.

    Args:
        optimizer: Adam.
        decay: of weights and biases alike.
    """
    (group,) = optimizer.param_groups
    return torch.optim.AdamW(group["params"], lr=group["lr"], weight_decay=decay, fused=True)


METHODS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            *(isometry, local_isometry, adversarial, trades, score, logit_pairing, virtual_adversarial),
            *(jacobian, orthogonal, noise, weight_decay),
        )
    }
)
"""The methods of the library by name. One's own is named "module:function", or passed as a function."""

ACTS_ON = ("batch", "model", "optimizer")
"""What the first parameter of a method may be called."""


@dataclass(frozen=True)
class Method:
    """A method with its options, checked.

    Attributes:
        name: a key of :data:`METHODS`, or "module:function".
        function: what the name stands for.
        acts_on: where it acts, "batch", "model" or "optimizer".
        given: the options that were given.
        options: all options, those not given at their defaults.
    """

    name: str
    function: Callable[..., Any]
    acts_on: str
    given: Options
    options: Mapping[str, int | float]

    @classmethod
    def of(cls, method: str | Callable[..., Any], given: Mapping[str, Any] | Iterable[Any] = ()) -> "Method":
        """Return a method by its name or as the function itself, with some of its options.

        Args:
            method: a key of :data:`METHODS`, "module:function", or a function of a module that can be imported.
            given: numbers by name, a dict or pairs.

        Raises:
            InputError: unknown name, a function that cannot be imported or is no method, or an option that the
                method does not have or whose value it does not allow.
        """
        name, function = _found(method) if isinstance(method, str) else _named(method)
        try:
            numbers = dict(given)
        except (TypeError, ValueError):
            raise InputError(f"options: must be numbers by name, not {given!r}") from None
        checked = _options_of(name, function)(**{str(key): value for key, value in numbers.items()})
        options = checked.model_dump()
        return cls(
            name, function, _first(function), tuple(sorted((key, options[key]) for key in numbers)), options
        )

    def prepare(self, model: Stack) -> None:
        """Let a method that acts on the network change it."""
        if self.acts_on == "model":
            self.function(model, **self.options)

    def optimizer(self, plain: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimizer to train with: the plain one, or what a method that acts on it makes of it.

        Raises:
            InputError: the method returned something else.
        """
        if self.acts_on != "optimizer":
            return plain
        found = self.function(plain, **self.options)
        if not isinstance(found, torch.optim.Optimizer):
            raise InputError(f"method {self.name}: must return an optimizer, not {found!r}")
        return found

    def loss(self, batch: Batch) -> Tensor:
        """Return what stands in for the cross-entropy, a scalar.

        Raises:
            InputError: the method returned something else.
        """
        if self.acts_on != "batch":
            return isometry(batch)
        found = self.function(batch, **self.options)
        if not isinstance(found, Tensor) or found.dim():
            shape = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
            raise InputError(f"method {self.name}: must return a scalar tensor, not {shape}")
        return found


def to_text(options: Options) -> str:
    """Return options as a table shows them, such as "epsilon=0.1, steps=3"; empty without any."""
    return ", ".join(f"{name}={value:g}" for name, value in options)


@dataclass(frozen=True)
class Course:
    """How far a training is, and what its method needs besides the batch.

    Attributes:
        method: with its options.
        generator: of what is random in the method.
        bounds: of the inputs.
        epoch, progress: as in :class:`Batch`.
    """

    method: Method
    generator: torch.Generator
    bounds: tuple[float, float]
    epoch: int = 1
    progress: float = 0.0

    @classmethod
    def begin(cls, method: Method, inputs: Tensor, seed: int) -> "Course":
        """Return the first moment of a training on inputs (N, …), images where they have four axes.

        Args:
            method: with its options.
            inputs: of which only the shape is used.
            seed: of the config; the method's random numbers are others than those of the weights and of the order.
        """
        import numpy as np

        (drawn,) = np.random.SeedSequence((seed, 1)).generate_state(1)
        bounds = (0.0, 1.0) if inputs.dim() == 4 else (-math.inf, math.inf)
        return cls(method, torch.Generator().manual_seed(int(drawn)), bounds)

    def batch(self, level: int, model: Stack, inputs: Tensor, labels: Tensor, clean: Clean) -> Batch:
        """Return the batch of a level as the method's loss is given it; arguments as in :class:`Batch`."""
        return Batch(model, level, inputs, labels, self.bounds, self.epoch, self.progress, self.generator, clean)


def _found(name: str) -> tuple[str, Callable[..., Any]]:
    """Return a method by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name in METHODS:
        return name, METHODS[name]
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        raise unknown("method", name, [*METHODS, "or your own as module:function"])
    module, _, inner = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), inner)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"method: {name} cannot be imported ({error}): put {module}.py beside the notebook or script, or on "
            "the Python path"
        ) from None
    return name, function


def _named(function: Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
    """Return a method by its function, with the name by which any process can import it.

    Raises:
        InputError: none can.
    """
    for name, own in METHODS.items():
        if own is function:
            return name, function
    module, inner = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not inspect.isfunction(function) or module == "__main__" or not str(inner).isidentifier():
        raise InputError(
            f"method: {inner or repr(function)} can be called only where it is defined: write it as a function of "
            "a file beside the notebook, such as mine.py, import mine, and pass mine.function"
        )
    name, found = _found(f"{module}:{inner}")
    if found is not function:
        raise InputError(f"method: {name} is another function than the one passed: import its module anew")
    return name, function


def _first(function: Callable[..., Any]) -> str:
    return next(iter(inspect.signature(function).parameters), "")


@lru_cache
def _options_of(name: str, function: Callable[..., Any]) -> type[Config]:
    """Return what checks the options of a method.

    Raises:
        InputError: the function is no method.
    """
    if not callable(function):
        raise InputError(f"method: {name} must be a function, not {function!r}")
    first = _first(function)
    if first not in ACTS_ON:
        raise InputError(
            f"method {name}: its first parameter must be called {', '.join(ACTS_ON[:-1])} or {ACTS_ON[-1]}, not "
            f"{first!r}"
        )
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InputError(f"method {name}: its annotations cannot be read: {error}") from None
    fields: dict[str, Any] = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        default = parameter.default
        if not isinstance(default, int | float):
            raise InputError(
                f"method {name}: its option {parameter.name} must have a number as its default, not "
                f"{'none' if default is parameter.empty else repr(default)}"
            )
        fields[parameter.name] = hints.get(parameter.name, type(default)), default
    return create_model(name, __base__=_Numbers, **fields)


class _Numbers(Config):
    """Options of some method."""

    model_config = ConfigDict(allow_inf_nan=False, validate_default=True)
