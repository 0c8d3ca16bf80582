"""Training methods: what each does to its batch, and that each is trained, kept and named as the default is."""

import importlib
import json
import math
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import NumpyTanh
from scipy.stats import entropy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from isorepro import attacks, data, ensemble, methods, store, structure, sweep
from isorepro.errors import InputError
from isorepro.methods import METHODS, Batch, Clean, Course, Method
from isorepro.models import Stack
from isorepro.training import TrainedModel, TrainingConfig, build, train

SMALL = TrainingConfig(epochs=2, train_size=400, log_every=2, device="cpu")
HALVES = [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]]
IN_A_BALL: dict[str, dict[str, Any]] = {
    "local_isometry": {"steps": 3, "step_size": 2.0},
    "adversarial": {},
    "logit_pairing": {},
    "trades": {},
    "score": {},
}


def changed(**fields: Any) -> TrainingConfig:
    return TrainingConfig(**SMALL.model_dump() | fields)


def weights(trained: TrainedModel) -> list[Tensor]:
    return list(trained.model.state_dict().values())


def same(a: TrainedModel, b: TrainedModel) -> bool:
    states = a.model.state_dict(), b.model.state_dict()
    return a.history.equals(b.history) and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


LEARNS = {"train_size": 800, "epochs": 3, "log_every": 3}


@cache
def entropy_network() -> TrainedModel:
    return train(changed(**LEARNS))


class Recorder(Stack):
    """A network that remembers what it was asked about."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.asked: list[Tensor] = []

    def hidden(self, inputs: Tensor, level: int, *, back: int = 0) -> Tensor:
        self.asked.append(inputs.detach().clone())
        return super().hidden(inputs, level, back=back)


def batch_of(
    method: str, inputs: Tensor, labels: Tensor | None = None, *, progress: float = 0.5, seed: int = 0
) -> tuple[Batch, Recorder]:
    """A batch of a small recording network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Recorder(inputs[0].numel(), (4,), width=8, depth=2)
    labels = torch.arange(len(inputs)) % 4 if labels is None else labels
    course = Course.begin(Method.of(method), inputs, seed)
    batch = course.batch(0, model, inputs, labels, Clean(model, inputs))
    return Batch(**vars(batch) | {"progress": progress}), model


def images(count: int = 40) -> Tensor:
    """Images with many pixels at the ends of the range, as digits have."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 1, 6, 6, generator=generator).add(0.5).clamp(0, 1)


@pytest.mark.parametrize("method", IN_A_BALL)
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.4])
def test_what_is_looked_for_stays_in_its_ball_and_images_in_their_range(method: str, epsilon: float) -> None:
    x = images()
    batch, model = batch_of(method, x)
    METHODS[method](batch, epsilon=epsilon, **IN_A_BALL[method])
    assert len(model.asked) == (4 if method == "local_isometry" else 8)
    for points in model.asked:
        assert points.min() >= 0
        assert points.max() <= 1
        assert (points - x).abs().max() <= epsilon + 1e-6
    # Nearly all of the ball is used where the range allows it.
    inside = (x > epsilon) & (x < 1 - epsilon)
    assert (model.asked[-1] - x).abs()[inside].mean() >= 0.8 * epsilon
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("method", IN_A_BALL)
def test_points_in_space_have_no_range(method: str) -> None:
    x = images().flatten(1)
    batch, model = batch_of(method, x)
    METHODS[method](batch, epsilon=0.3, **IN_A_BALL[method])
    found = model.asked[-1]
    assert found.min() < -0.25
    assert found.max() > 1.25
    assert (found - x).abs().max() <= 0.3 + 1e-6


@pytest.mark.parametrize("method", IN_A_BALL)
@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.9, 1.0)])
def test_the_ball_grows_in_the_share_of_the_training_that_is_asked_for(
    method: str, progress: float, share: float
) -> None:
    x = images().flatten(1)
    batch, model = batch_of(method, x, progress=progress)
    loss = METHODS[method](batch, epsilon=0.3, warmup=0.4, **IN_A_BALL[method])
    assert (model.asked[-1] - x).abs().max().item() == pytest.approx(0.3 * share, abs=1e-6)
    assert loss.isfinite()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_no_label_is_used_to_find_where_distances_change() -> None:
    x, asked = images(), []
    for labels in (torch.zeros(40, dtype=torch.long), torch.arange(40) % 4):
        batch, model = batch_of("local_isometry", x, labels)
        methods.local_isometry(batch, steps=3)
        asked.append(torch.stack(model.asked))
    assert torch.equal(*asked)
    batch, model = batch_of("adversarial", x, torch.zeros(40, dtype=torch.long))
    methods.adversarial(batch, steps=3)
    other, other_model = batch_of("adversarial", x)
    methods.adversarial(other, steps=3)
    assert not torch.equal(model.asked[-1], other_model.asked[-1])


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("back", [-1, 0, 1, 2])
def test_local_isometry_is_its_formula_on_any_layer(back: int, target: int) -> None:
    x = images().double()
    batch, model = batch_of("local_isometry", x)
    model.double()
    found = methods.local_isometry(batch, beta=0.7, K=2.0, steps=2, epsilon=0.2, layer=back, target=target)
    start, moved = model.asked[-3], model.asked[-1]

    @torch.no_grad()
    def h(points: Tensor) -> Tensor:
        # The input layer and two hidden layers.
        return model(points) if back == -1 else model.activations(points)[2 - back]

    def changes(points: Tensor) -> list[float]:
        return [math.dist(*pair) for pair in zip(h(points).tolist(), h(x).tolist(), strict=True)]

    lengths = [math.dist(*pair) for pair in zip(moved.flatten(1).tolist(), x.flatten(1).tolist(), strict=True)]
    terms = [(2.0 * after - target * before) ** 2 for after, before in zip(changes(moved), lengths, strict=True)]
    plain = cross_entropy(model(x), batch.labels).item()
    assert found.item() == pytest.approx(plain + 0.7 * np.mean(terms), rel=1e-9)
    assert np.mean(changes(moved)) > 1.2 * np.mean(changes(start))


def test_target_0_is_the_limit_of_large_factors_whose_square_times_the_weight_is_held() -> None:
    x = images().double()

    def loss_and_gradients(K: float, target: int) -> tuple[float, Tensor]:
        batch, model = batch_of("local_isometry", x)
        model.double()
        loss = methods.local_isometry(batch, beta=0.7 / K**2, K=K, steps=2, epsilon=0.2, target=target)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])

    limit, slopes = loss_and_gradients(1.0, 0)
    assert loss_and_gradients(50.0, 0)[0] == pytest.approx(limit, rel=1e-12)
    # With a = ‖h(x + δ) − h(x)‖ and b = ‖δ‖ what is missing is c·(b²/K² − 2ab/K), of the order of 1/K.
    missing = []
    for K in (1e4, 1e5):
        loss, gradients = loss_and_gradients(K, 1)
        missing.append([loss - limit, (gradients - slopes).norm().item() / slopes.norm().item()])
    assert missing[0][0] < 0 < missing[0][1] < 1e-2
    np.testing.assert_allclose(np.divide(*missing), 10, rtol=0.01)


def test_a_layer_that_is_not_there_is_named() -> None:
    batch, _ = batch_of("local_isometry", images())
    with pytest.raises(InputError, match=r"^back: must be from 0 to 2, the input layer, not 3$"):
        methods.local_isometry(batch, layer=3)


def test_hidden_layers_of_a_level_are_those_of_the_whole_stack() -> None:
    stack, x = Stack(36, (2, 4, 4), width=8, depth=3), images()
    every = stack.activations(x)
    for level in range(3):
        for back in range(3 * (level + 1) + 1):
            assert torch.equal(stack.hidden(x, level, back=back), every[3 * (level + 1) - back])
        batch = Course.begin(Method.of("noise"), x, 0).batch(level, stack, x, torch.zeros(40), Clean(stack, x))
        representation, logits = stack.levels(x)[level]
        assert torch.equal(batch.representation, representation)
        assert torch.equal(batch.logits, logits)
        assert torch.equal(batch.classify(x), logits)
        assert torch.equal(batch.layer(x, -1), logits)


def test_adversarial_examples_raise_the_loss_as_far_as_the_attack_of_the_book() -> None:
    dataset, trained = data.load("mnist", test_size=300), entropy_network()
    x, y = dataset.test_inputs, dataset.test_labels
    course = Course.begin(Method.of("adversarial"), x, 0)
    batch = course.batch(0, trained.model, x, y, Clean(trained.model, x))
    with torch.no_grad():
        found = [methods.adversarial(batch, epsilon=0.1, steps=steps).item() for steps in (0, 1, 7)]
        clean = cross_entropy(trained.model(x), y).item()
        by_attack = attacks.pgd(trained.model, x, y, epsilon=0.1, steps=7, stop_when_fooled=False)
        expected = cross_entropy(trained.model(by_attack), y).item()
    assert 2 * clean < found[1] < found[2]
    assert found[0] < found[1]
    assert found[2] == pytest.approx(expected, rel=0.05)


def test_trades_is_cross_entropy_and_a_divergence_that_its_steps_raise() -> None:
    x = images().double()
    batch, model = batch_of("trades", x)
    model.double()
    found = methods.trades(batch, beta=3.0, epsilon=0.2).item()
    p, start, end = (torch.softmax(model(z), 1).detach().numpy() for z in (x, model.asked[0], model.asked[-1]))
    assert found == pytest.approx(
        cross_entropy(model(x), batch.labels).item() + 3.0 * entropy(p, end, axis=1).mean()
    )
    assert entropy(p, end, axis=1).mean() > 1.5 * entropy(p, start, axis=1).mean()


def test_trades_without_its_divergence_is_cross_entropy() -> None:
    plain, without = train(SMALL), train(changed(method="trades", options={"beta": 0.0, "steps": 2}))
    assert same(plain, without)
    assert not same(plain, train(changed(method="trades", options={"beta": 1.0, "steps": 2})))


@pytest.mark.parametrize("clean", [0.0, 0.3])
def test_logit_pairing_is_two_cross_entropies_and_the_mean_squared_difference(clean: float) -> None:
    x = images().double()
    batch, model = batch_of("logit_pairing", x)
    model.double()
    found = methods.logit_pairing(batch, beta=0.7, clean=clean, epsilon=0.2).item()
    moved = model.asked[-1]
    other, other_model = batch_of("adversarial", x)
    other_model.double()
    methods.adversarial(other, epsilon=0.2)
    assert torch.equal(moved, other_model.asked[-1])
    pairs = list(zip(model(x).tolist(), model(moved).tolist(), batch.labels.tolist(), strict=True))
    expected = 0.0
    for before, after, label in pairs:
        entropies = [math.log(sum(map(math.exp, z))) - z[label] for z in (before, after)]
        apart = sum((a - b) ** 2 for a, b in zip(before, after, strict=True)) / 4
        expected += (clean * entropies[0] + (1 - clean) * entropies[1] + 0.7 * apart) / len(pairs)
    assert found == pytest.approx(expected)


def test_logit_pairing_without_pairing_and_clean_images_is_adversarial_training() -> None:
    without = train(changed(method="logit_pairing", options={"beta": 0.0, "clean": 0.0, "steps": 2}))
    adversarial = train(changed(method="adversarial", options={"steps": 2}))
    assert same(without, adversarial)
    assert not same(adversarial, train(changed(method="logit_pairing", options={"clean": 0.0, "steps": 2})))


def test_score_is_squared_distances_that_its_steps_raise() -> None:
    x = images().double()
    batch, model = batch_of("score", x)
    model.double()
    found = methods.score(batch, beta=3.0, epsilon=0.2).item()
    p, start, end = (torch.softmax(model(z), 1).tolist() for z in (x, model.asked[0], model.asked[-1]))
    wrong = [math.dist(row, np.eye(4)[label]) ** 2 for row, label in zip(p, batch.labels.tolist(), strict=True)]
    apart, at_start = ([math.dist(*pair) ** 2 for pair in zip(p, other, strict=True)] for other in (end, start))
    assert found == pytest.approx(np.mean(wrong) + 3.0 * np.mean(apart))
    assert np.mean(apart) > 1.5 * np.mean(at_start)


@pytest.mark.parametrize("method", ["score", "virtual_adversarial", "trades"])
def test_a_network_that_says_the_same_everywhere_is_not_charged_for_moves(method: str) -> None:
    batch, model = batch_of(method, images())
    nn.init.zeros_(model.heads[0].get_parameter("weight"))
    losses = [METHODS[method](batch, beta=beta).item() for beta in (0.0, 5.0)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


class Softmax(Recorder):
    """A linear map and a softmax."""

    def hidden(self, inputs: Tensor, level: int, *, back: int = 0) -> Tensor:
        self.asked.append(inputs.detach().clone())
        return inputs.flatten(1)

    def levels(self, inputs: Tensor, *, apart: bool = False) -> list[tuple[Tensor, Tensor]]:
        return [(inputs.flatten(1), self.heads[0](inputs.flatten(1)))]


def softmax_batch(x: Tensor) -> tuple[Batch, Softmax]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Softmax(36, (4,), width=36, depth=1).double()
    course = Course.begin(Method.of("virtual_adversarial"), x, 0)
    return course.batch(0, model, x, torch.arange(len(x)) % 4, Clean(model, x)), model


def test_virtual_adversarial_moves_go_along_the_first_eigenvector_of_the_fisher_matrix() -> None:
    x = images(10).flatten(1).double()
    batch, model = softmax_batch(x)
    found = methods.virtual_adversarial(batch, beta=0.7, epsilon=0.002, steps=200, xi=1e-3).item()
    assert len(model.asked) == 201
    W, p = model.heads[0].get_parameter("weight"), torch.softmax(model(x), 1)
    moves, largest = model.asked[-1] - x, []
    for probabilities, move in zip(p, moves, strict=True):
        fisher = W.T @ (probabilities.diag() - probabilities.outer(probabilities)) @ W
        values, vectors = torch.linalg.eigh(fisher)
        largest.append(values[-1].item())
        assert abs(move @ vectors[:, -1]).item() == pytest.approx(move.norm().item(), rel=1e-4)
    np.testing.assert_allclose(moves.norm(dim=1), 0.002 * 6, rtol=1e-9)
    # To second order the divergence is half the quadratic form of the Fisher matrix.
    divergence = entropy(p.detach().numpy(), torch.softmax(model(model.asked[-1]), 1).detach().numpy(), axis=1)
    np.testing.assert_allclose(divergence, 0.5 * 0.012**2 * np.array(largest), rtol=0.01)
    plain = cross_entropy(model(x), batch.labels).item()
    assert found == pytest.approx(plain + 0.7 * divergence.mean(), rel=1e-9)


def test_virtual_adversarial_training_holds_the_prediction_and_uses_no_label() -> None:
    x = images(10).flatten(1).double()
    batch, model = softmax_batch(x)
    methods.virtual_adversarial(batch, epsilon=0.3).backward()
    moved, known = model.asked[-1], torch.softmax(model(x), 1).detach()
    weight = model.heads[0].get_parameter("weight")
    found = weight.grad
    by_hand = cross_entropy(model(x), batch.labels) - (known * model(moved).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, torch.autograd.grad(by_hand, weight)[0])
    other, other_model = softmax_batch(x)
    other = Batch(**vars(other) | {"labels": torch.zeros(10, dtype=torch.int64)})
    methods.virtual_adversarial(other, epsilon=0.3)
    assert torch.equal(moved, other_model.asked[-1])


def test_virtual_adversarial_moves_by_signs_reach_the_corner_and_images_stay_in_their_range() -> None:
    for x in (images(), images().flatten(1)):
        moves = []
        for signs in (0, 1):
            batch, model = batch_of("virtual_adversarial", x)
            methods.virtual_adversarial(batch, epsilon=0.2, signs=signs)
            moves.append(model.asked[-1] - x)
            assert x.dim() == 2 or 0 <= model.asked[-1].min() <= model.asked[-1].max() <= 1
        assert moves[1].abs().max() <= 0.2 + 1e-6
    # Points in space are not cut off.
    assert torch.equal(moves[0].sign(), moves[1].sign())
    torch.testing.assert_close(moves[0].square().mean(1).sqrt(), torch.full((40,), 0.2))
    torch.testing.assert_close(moves[1].abs(), torch.full((40, 36), 0.2))


def frobenius(model: nn.Module, x: Tensor) -> Tensor:
    """The mean squared norm of the Jacobian, one example at a time, by torch's own function."""
    each = [torch.autograd.functional.jacobian(model, point[None], create_graph=True) for point in x]
    return torch.stack([found.square().sum() for found in each]).mean()


def test_the_jacobian_penalty_is_the_exact_norm_and_so_is_its_gradient() -> None:
    x = images(6).double()
    batch, model = batch_of("jacobian", x)
    model.double()
    found = methods.jacobian(batch, beta=0.3, projections=0)
    expected = cross_entropy(model(x), batch.labels) + 0.15 * frobenius(model, x)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    parameters = list(model.parameters())
    for ours, other in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-14)


def test_random_projections_of_the_jacobian_are_right_on_average() -> None:
    x = images(6).double()
    batch, model = batch_of("jacobian", x)
    model.double()
    exact = frobenius(model, x).item()
    plain = cross_entropy(model(x), batch.labels).item()
    single = [(methods.jacobian(batch, beta=2.0).item() - plain) / exact for _ in range(200)]
    assert np.std(single) > 0.05
    assert np.mean(single) == pytest.approx(1, abs=4 * np.std(single) / math.sqrt(200))
    many = (methods.jacobian(batch, beta=2.0, projections=2000).item() - plain) / exact
    assert many == pytest.approx(1, abs=0.05)


def test_noise_has_its_standard_deviation_and_images_stay_in_their_range() -> None:
    gray = torch.full((2000, 1, 6, 6), 0.5)
    for x, sigma in ((gray, 0.1), (torch.rand(2000, 3), 0.7)):
        batch, model = batch_of("noise", x)
        loss = methods.noise(batch, sigma=sigma)
        (noisy,) = model.asked
        added = noisy - x
        assert added.std().item() == pytest.approx(sigma, rel=0.02)
        assert added.mean().item() == pytest.approx(0, abs=4 * sigma / math.sqrt(x.numel()))
        assert loss.item() == pytest.approx(cross_entropy(model(noisy), batch.labels).item())
    batch, model = batch_of("noise", gray)
    methods.noise(batch, sigma=3.0)
    assert (model.asked[0].min().item(), model.asked[0].max().item()) == (0, 1)
    batch, model = batch_of("noise", gray)
    methods.noise(batch, sigma=0.0)
    assert torch.equal(model.asked[0], gray)


def test_orthogonal_weights_stay_orthogonal_in_every_block_and_the_network_is_a_plain_one() -> None:
    kept = train(changed(method="orthogonal", hierarchy=HALVES, epochs=3, learning_rate=1e-2))
    free = train(changed(hierarchy=HALVES, epochs=3, learning_rate=1e-2))
    assert len(list(kept.model.blocks)) == 2

    def apart(layer: nn.Module) -> float:
        weight = layer.get_parameter("weight")
        return (weight @ weight.T - torch.eye(100)).abs().max().item()

    layers = [layer for block in kept.model.blocks for layer in block if isinstance(layer, nn.Linear)]
    assert len(layers) == 8
    assert max(map(apart, layers)) < 1e-5
    assert (
        min(apart(layer) for block in free.model.blocks for layer in block if isinstance(layer, nn.Linear)) > 0.1
    )
    start = build(changed(hierarchy=HALVES), torch.zeros(1, 784), 10)
    for name, weight in kept.model.state_dict().items():
        assert (weight - start.state_dict()[name]).abs().max() > 1e-3, name
    assert pickle.loads(pickle.dumps(kept.model)).state_dict().keys() == free.model.state_dict().keys()


def plain_chain() -> tuple[nn.Sequential, nn.Sequential]:
    """The layers of the flat network by themselves, with the weights it begins with: hidden part, whole."""
    layers = [nn.Linear(784, 100), *(nn.Linear(100, 100) for _ in range(4)), nn.Linear(100, 10)]
    drawn = build(SMALL, torch.zeros(1, 784), 10).parameters()
    with torch.no_grad():
        for ours, other in zip(drawn, (p for layer in layers for p in layer.parameters()), strict=True):
            other.copy_(ours)
    hidden = nn.Sequential(nn.Flatten(), *(part for layer in layers[:-1] for part in (layer, NumpyTanh())))
    return hidden, nn.Sequential(hidden, layers[-1])


def by_bare_loop(
    loss: Callable[..., Tensor], optimizer: type[torch.optim.Optimizer], **given: Any
) -> list[Tensor]:
    """Train the plain chain on a loss of (hidden part, whole, x, y), and return its weights."""
    dataset = data.load("mnist", train_size=400)
    hidden, whole = plain_chain()
    stepper = optimizer(whole.parameters(), lr=1e-3, fused=True, **given)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(2):
        for batch in torch.randperm(400, generator=shuffle).split(100):
            stepper.zero_grad()
            loss(hidden, whole, dataset.train_inputs[batch], dataset.train_labels[batch]).backward()
            stepper.step()
    return list(whole.state_dict().values())


def entropy_alone(hidden: nn.Module, whole: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(whole(x), y)


@pytest.mark.parametrize("fields", [{}, {"method": "isometry"}, {"method": methods.isometry, "K": 3.0}])
def test_the_default_has_the_bits_of_a_bare_loop(fields: dict[str, Any]) -> None:
    trained = train(changed(**fields))
    expected = by_bare_loop(entropy_alone, torch.optim.Adam)
    assert all(torch.equal(a, b) for a, b in zip(weights(trained), expected, strict=True))


def test_weight_decay_has_the_bits_of_torchs_own() -> None:
    trained = train(changed(method="weight_decay", options={"decay": 0.7}))
    expected = by_bare_loop(entropy_alone, torch.optim.AdamW, weight_decay=0.7)
    assert all(torch.equal(a, b) for a, b in zip(weights(trained), expected, strict=True))
    without = train(changed(method="weight_decay", options={"decay": 0}))
    assert all(torch.equal(a, b) for a, b in zip(weights(without), weights(train(SMALL)), strict=True))


def test_local_isometry_trains_as_a_bare_loop_does() -> None:
    """Written out: starts from the method's random numbers, one step, norms by sums of squares."""
    (seed,) = np.random.SeedSequence((0, 1)).generate_state(1)
    generator = torch.Generator().manual_seed(int(seed))

    def loss(hidden: nn.Module, whole: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        delta = torch.empty(x.shape).uniform_(-0.1, 0.1, generator=generator)
        moved = (x + delta).clamp(0, 1).requires_grad_()
        (hidden(moved) - hidden(x)).square().sum().backward()
        assert moved.grad is not None
        moved = (x + (moved + 0.2 * moved.grad.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1).detach()
        for p in whole.parameters():
            p.grad = None
        after = (hidden(moved) - hidden(x)).square().sum(1).sqrt()
        before = (moved - x).square().sum((1, 2, 3)).sqrt()
        return cross_entropy(whole(x), y) + 0.5 * (2.0 * after - before).square().mean()

    options = {"beta": 0.5, "K": 2.0, "epsilon": 0.1, "steps": 1, "step_size": 2.0}
    trained = train(changed(method="local_isometry", options=options))
    plain, expected = train(SMALL), by_bare_loop(loss, torch.optim.Adam)
    for ours, bare, other in zip(weights(trained), expected, weights(plain), strict=True):
        # Adam divides by the gradient's size: where a gradient is near zero its rounding shows.
        assert (ours - bare).abs().quantile(0.95) < 1e-4
        assert (ours - other).abs().quantile(0.95) > 3e-4


@pytest.mark.parametrize(("steps", "start", "step_size"), [(2, 0, 1.2), (1, 1, 1.25), (3, 0.5, 2.5), (7, 1, 2.5)])
def test_adversarial_training_is_as_a_bare_loop_does_it(steps: int, start: float, step_size: float) -> None:
    """Written out; one step from a random start is FGSM as Wong et al. (2020) train by it."""
    (seed,) = np.random.SeedSequence((0, 1)).generate_state(1)
    generator = torch.Generator().manual_seed(int(seed))

    def loss(hidden: nn.Module, whole: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        moved = x
        if start:
            reach = 0.1 * start
            moved = (x + torch.empty(x.shape).uniform_(-reach, reach, generator=generator)).clamp(0, 1)
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(whole(moved), y), moved)
            stepped = moved + 0.1 * step_size / steps * gradient.sign()
            moved = (x + (stepped - x).clamp(-0.1, 0.1)).clamp(0, 1)
        return cross_entropy(whole(moved.detach()), y)

    options = {"epsilon": 0.1, "steps": steps, "step_size": step_size, "start": start}
    trained = train(changed(method="adversarial", options=options))
    plain, expected = train(SMALL), by_bare_loop(loss, torch.optim.Adam)
    for ours, bare, other in zip(weights(trained), expected, weights(plain), strict=True):
        assert (ours - bare).abs().quantile(0.95) < 1e-4
        assert (ours - other).abs().quantile(0.95) > 3e-4


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_from_its_seed_alone(name: str) -> None:
    before = torch.get_rng_state()
    config = changed(**LEARNS, method=name)
    first = train(config)
    assert torch.equal(before, torch.get_rng_state())
    assert first.history["test_accuracy"].item() > 0.3
    assert 0 < first.processor_seconds < first.seconds + 1
    torch.rand(3)
    assert same(first, train(config))
    other = train(changed(**LEARNS | {"epochs": 1}, method=name, seed=1))
    assert not torch.equal(weights(first)[0], weights(other)[0])
    assert same(entropy_network(), first) == (name == "isometry")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_with_the_term_with_stacks_and_with_points(name: str) -> None:
    tree = [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    for fields in ({}, {"batch_size": 1600, "adam": "anew"}, {"readout": "reversed", "shared_head": True}):
        config = changed(
            method=name,
            dataset="torus",
            train_size=None,
            hierarchy=tree,
            beta=0.1,
            K=2.0,
            width=12,
            depth=2,
            **fields,
        )
        found = train(config).history
        assert found["level"].tolist() == [1, 2]
        assert found["isometry"].gt(0).all()
        assert found[["cross_entropy", "distance_error"]].notna().all(axis=None)


def test_what_is_random_is_not_the_order_of_the_examples() -> None:
    orders = [Course.begin(Method.of("noise"), torch.zeros(1, 2), seed).generator for seed in (0, 1)]
    drawn = [torch.rand(5, generator=generator) for generator in [*orders, torch.Generator().manual_seed(0)]]
    assert not torch.allclose(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


def test_of_a_method_with_its_own_scale_the_representation_has_that_scale() -> None:
    local = {"method": "local_isometry", "options": {"K": 4}}
    assert changed(**local).representation_scale == 4.0
    assert changed(**local, beta=1.0, K=2.0).representation_scale == 2.0
    assert changed(**local, beta=1.0, K=2.0, form="normalised").representation_scale == 1.0
    assert changed(method="noise", K=2.0).representation_scale == 1.0


def test_options_are_part_of_the_identity_and_defaults_are_not_told_twice() -> None:
    noise = changed(method="noise")
    assert noise.identity() == changed(method="noise", options={"sigma": 0.2}).identity()
    assert noise.identity() != changed(method="noise", options={"sigma": 0.3}).identity()
    assert noise.identity() != SMALL.identity()
    assert SMALL.identity() == changed(method="isometry", options={}).identity()
    assert not {"method", "options"} & SMALL.identity().keys()
    whole, fraction = ({"method": "local_isometry", "options": {"K": number}} for number in (3, 3.0))
    assert json.dumps(changed(**whole).identity()) == json.dumps(changed(**fraction).identity())
    assert changed(**whole).every_option.keys() >= {
        "beta",
        "K",
        "epsilon",
        "steps",
        "step_size",
        "start",
        "warmup",
    }


def test_options_are_a_dict_or_pairs_and_go_with_every_way_to_write_a_config() -> None:
    config = changed(method="trades", options={"steps": 3, "beta": 2.0})
    assert config.options == (("beta", 2.0), ("steps", 3))
    assert config == changed(method=methods.trades, options=[["steps", 3], ["beta", 2.0]])
    assert config == TrainingConfig(**config.model_dump())
    assert config == TrainingConfig(**json.loads(json.dumps(config.model_dump())))
    assert hash(config) == hash(TrainingConfig(**config.model_dump()))
    assert methods.to_text(config.options) == "beta=2, steps=3"
    assert methods.to_text(()) == ""
    grid = sweep.grid(config, options=[{}, {"steps": 2}], seed=[0, 1])
    assert [(c.options, c.seed) for c in grid] == [((), 0), ((), 1), ((("steps", 2),), 0), ((("steps", 2),), 1)]
    with pytest.raises(InputError, match="options: must not hold a value twice"):
        sweep.grid(config, options=[{"steps": 2}, [("steps", 2)]])
    assert [c.method for c in sweep.grid(SMALL, method=["noise", methods.trades])] == ["noise", "trades"]


def inner() -> Callable[..., Tensor]:
    def loss(batch: Batch) -> Tensor:
        return batch.logits.sum()

    return loss


BAD = """
import torch

def wrong_first(model_, *, a=1.0): ...
def no_default(batch, a): ...
def text(batch, a="b"): ...
def whole(batch): return batch.logits
def nothing(optimizer): ...
def unreadable(batch: "Bunch"): ...
out_of_range = 3
"""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"method": "trade"},
            r"unknown method 'trade': allowed are isometry, .*module:function; did you mean 'trades'\?",
        ),
        ({"method": 3}, r"method: 3 can be called only where it is defined: write it as a function of a file"),
        (
            {"method": "isometry", "options": {"steps": 3}},
            r"unknown field of isometry 'steps': allowed are \(none\)",
        ),
        (
            {"method": "trades", "options": {"stepps": 3}},
            r"unknown field of trades 'stepps': .*did you mean 'steps'",
        ),
        (
            {"method": "trades", "options": {"steps": -1}},
            r"trades.steps: must be greater than or equal to 0, not -1",
        ),
        ({"method": "trades", "options": {"steps": 1.5}}, r"trades.steps: must be a valid integer, .*not 1.5"),
        ({"method": "trades", "options": {"beta": "6"}}, r"trades.beta: must be a valid number, not '6'"),
        ({"method": "trades", "options": {"start": 0.0}}, r"trades.start: must be greater than 0, not 0.0"),
        ({"method": "noise", "options": {"sigma": math.nan}}, r"noise.sigma: must be a finite number, not nan"),
        ({"method": "noise", "options": 3}, r"options: must be numbers by name, not 3"),
        (
            {"method": "no_such_file:f"},
            r"method: no_such_file:f cannot be imported \(No module named 'no_such_file'\)",
        ),
        (
            {"method": "bad_methods:absent"},
            r"method: bad_methods:absent cannot be imported \(.*no attribute 'absent'\)",
        ),
        (
            {"method": "bad_methods:wrong_first"},
            r"first parameter must be called batch, model or optimizer, not 'model_'",
        ),
        ({"method": "bad_methods:no_default"}, r"its option a must have a number as its default, not none"),
        ({"method": "bad_methods:text"}, r"its option a must have a number as its default, not 'b'"),
        ({"method": "bad_methods:out_of_range"}, r"bad_methods:out_of_range must be a function, not 3"),
        ({"method": "bad_methods:unreadable"}, r"its annotations cannot be read: name 'Bunch' is not defined"),
        ({"method": inner()}, r"method: inner.<locals>.loss can be called only where it is defined"),
        ({"method": lambda batch: batch.logits.sum()}, r"method: <lambda> can be called only where it is defined"),
    ],
)
def test_what_is_no_method_or_no_option_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str
) -> None:
    (tmp_path / "bad_methods.py").write_text(BAD)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        TrainingConfig(**fields)
    assert "\n" not in str(caught.value)


def test_what_a_method_must_not_return_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_methods.py").write_text(BAD)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InputError, match=r"^method bad_methods:whole: must return a scalar tensor, not .*\(100, 10\)$"
    ):
        train(changed(method="bad_methods:whole"))
    with pytest.raises(InputError, match=r"^method bad_methods:nothing: must return an optimizer, not None$"):
        train(changed(method="bad_methods:nothing"))


def test_a_function_of_a_notebook_cell_is_told_to_move_to_a_file() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("def mine(batch): return batch.logits.sum()", space)
    with pytest.raises(InputError, match=r"^method: mine can be called only where .*import mine, and pass mine"):
        TrainingConfig(method=space["mine"])


MINE = """
import torch
from torch.nn.functional import cross_entropy

seen = []


def smoothed(batch, *, share=0.1):
    seen.append((batch.epoch, batch.progress, batch.level, tuple(batch.inputs.shape), batch.bounds))
    return cross_entropy(batch.logits, batch.labels, label_smoothing=share)


def doubled(model):
    with torch.no_grad():
        model.heads[0].weight.mul_(2.0)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Path) -> Any:
    """A module of one's own, and a cache of its own."""
    folder = tmp_path / "output"
    folder.mkdir()
    (output / "data").mkdir(exist_ok=True)
    (folder / "data").symlink_to(output / "data")
    monkeypatch.setenv("ISOREPRO_OUTPUT", str(folder))
    (tmp_path / "methods_outside.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("methods_outside")
    importlib.reload(module)
    return module


def test_a_method_of_ones_own_is_given_its_batches_and_does_what_it_says(mine: Any) -> None:
    config = changed(method=mine.smoothed, options={"share": 0.3})
    assert config.method == "methods_outside:smoothed"
    trained = train(config)
    assert [row[0] for row in mine.seen] == [1] * 4 + [2] * 4
    assert [row[1] for row in mine.seen] == pytest.approx(np.arange(8) / 8)
    assert {row[2:] for row in mine.seen} == {(0, (100, 1, 28, 28), (0.0, 1.0))}

    def by_hand(hidden: nn.Module, whole: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        targets = 0.7 * one_hot(y, 10) + 0.03
        return -(targets * whole(x).log_softmax(1)).sum(1).mean()

    for ours, bare in zip(weights(trained), by_bare_loop(by_hand, torch.optim.Adam), strict=True):
        assert (ours - bare).abs().quantile(0.95) < 1e-5
    # The loss of the loop by hand is that of the options given, not of the default.
    assert not same(trained, train(changed(method=mine.smoothed)))
    stack = changed(method="methods_outside:doubled", hierarchy=HALVES, learning_rate=1e-9)
    head = build(stack, torch.zeros(1, 784), 10).heads[0].get_parameter("weight")
    torch.testing.assert_close(train(stack).model.heads[0].get_parameter("weight"), 2 * head, rtol=0, atol=1e-6)


def test_a_sweep_of_methods_is_trained_in_workers_kept_and_told_apart(
    mine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"method": "orthogonal"},
        {"method": "noise", "options": {"sigma": 0.1}},
        {"method": mine.smoothed},
    ]
    configs = [c for fields in settings for c in sweep.grid(changed(epochs=1, **fields), seed=[0, 1])]
    here = [train(config) for config in configs]
    # New workers, as if every task took longer than they take to start.
    joblib.externals.loky.get_reusable_executor().shutdown()
    monkeypatch.setattr(store, "_workers_run", [])
    monkeypatch.setattr(store, "START_UP", -1.0)
    models = sweep.train_all(configs, jobs=2)
    assert all(map(same, models, here))
    kept = sweep.train_all(configs, jobs=2)
    assert all(map(same, kept, here))
    assert [m.processor_seconds for m in kept] == [m.processor_seconds for m in models]
    assert min(m.processor_seconds for m in kept) > 0
    table = sweep.measure(models, structure.measures, jobs=1, test_size=100, neighbours=5)
    assert list(table.columns[:2]) == ["method", "options"]
    labels = list(dict.fromkeys(table[["method", "options"]].itertuples(index=False, name=None)))
    assert labels == [
        ("isometry", ""),
        ("orthogonal", ""),
        ("noise", "sigma=0.1"),
        ("methods_outside:smoothed", ""),
    ]
    # Transferred attacks come from the other seed's network of cross-entropy alone.
    sources = ensemble.sources(models)
    assert sources[0] is models[1]
    assert [source is models[1] for source in sources[::2]] == [True] * 4
    assert [source is models[0] for source in sources[1::2]] == [True] * 4
    keys = [sweep.model_key(config) for config in configs]
    assert len(set(keys)) == len(keys)
    path = tmp_path / "methods_outside.py"
    path.write_text(MINE.replace("share=0.1", "share=0.2"))
    importlib.reload(mine)
    assert [sweep.model_key(config) == key for config, key in zip(configs, keys, strict=True)] == [True] * 6 + [
        False
    ] * 2
    assert isinstance(table, pd.DataFrame)
