import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from isorepro import data
from isorepro.errors import InputError
from isorepro.training import TrainedModel, TrainingConfig, clean_accuracy, train

SMALL = TrainingConfig(epochs=2, train_size=500, beta=0.5, K=10.0, device="cpu")


def changed(**fields: object) -> TrainingConfig:
    return TrainingConfig(**SMALL.model_dump() | fields)


def weights(trained: TrainedModel) -> list[torch.Tensor]:
    return list(trained.model.state_dict().values())


def test_one_seed_gives_the_same_bits_and_another_does_not() -> None:
    first, second, other = train(SMALL), train(SMALL), train(changed(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert first.history.equals(second.history)
    assert not torch.equal(weights(first)[0], weights(other)[0])


def test_training_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    train(changed(epochs=1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("beta", "form"), [(0.0, "raw"), (0.5, "raw"), (0.5, "normalised")])
def test_equals_a_bare_loop(beta: float, form: str) -> None:
    """The same mathematics written out: plain layers, distances by broadcasting, Adam by its formulas."""
    trained = train(changed(beta=beta, form=form, epochs=1, train_size=300))
    dataset = data.load("mnist", train_size=300, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(784, 100)]
        for _ in range(4):
            layers.append(nn.Linear(100, 100))
            nn.init.orthogonal_(layers[-1].weight)
        layers.append(nn.Linear(100, 10))
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    first, second = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    for t, batch in enumerate(order.split(100), start=1):
        x, y = dataset.train_inputs[batch].reshape(100, 784), dataset.train_labels[batch]
        h = x
        for layer in layers[:-1]:
            h = torch.tanh(layer(h))
        same = y[:, None] == y[None, :]
        d_x = (x[:, None] - x[None]).square().sum(-1).sqrt() * same
        # The root's derivative is infinite at zero; the distance of a point to itself is left out.
        squares = (h[:, None] - h[None]).square().sum(-1)
        d_h = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0) * same
        if form == "raw":
            penalty = (10 * d_h - d_x).square().mean()
        else:
            penalty = (d_h / (10 * d_h.max()) - d_x / d_x.max()).square().mean() ** 2
        loss = cross_entropy(layers[-1](h), y) + beta * penalty
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p -= 1e-3 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    for ours, bare in zip(weights(trained), parameters, strict=True):
        # Adam divides by the gradient's size: where a gradient is near zero its rounding shows.
        assert (ours - bare).abs().quantile(0.99) < 2e-5


def test_history_has_a_row_per_epoch_and_its_last_accuracy_is_the_networks() -> None:
    trained = train(SMALL)
    dataset = data.load("mnist")
    assert list(trained.history["epoch"]) == [1, 2]
    correct = trained.model(dataset.test_inputs).argmax(1) == dataset.test_labels
    assert trained.history["test_accuracy"].iloc[-1] == pytest.approx(correct.double().mean().item(), abs=1e-9)
    assert clean_accuracy(trained.model, dataset.test_inputs, dataset.test_labels) == pytest.approx(
        correct.double().mean().item(), abs=1e-9
    )


def test_the_term_is_zero_in_the_history_without_it_and_falls_with_it() -> None:
    assert (train(changed(beta=0.0)).history["isometry"] == 0).all()
    penalty = train(changed(epochs=4)).history["isometry"]
    assert penalty.iloc[-1] < penalty.iloc[0] / 2


def test_a_loss_that_explodes_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train(changed(beta=1e38, train_size=200))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": -1.0}, "TrainingConfig.beta: must be greater than or equal to 0, not -1.0"),
        ({"beta": "1e-3"}, "write 1.0e-3"),
        ({"beta": float("nan")}, "TrainingConfig.beta: must be a finite number, not nan"),
        ({"K": 0.0}, "TrainingConfig.K: must be greater than 0"),
        ({"form": "squared"}, "TrainingConfig.form: must be 'raw' or 'normalised', not 'squared'"),
        ({"betas": 1.0}, "unknown field of TrainingConfig 'betas'.*did you mean 'beta'"),
        ({"epochs": 1.5}, "TrainingConfig.epochs: must be a valid integer"),
        ({"device": "tpu"}, "TrainingConfig.device: must be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_bad_fields_are_refused_in_one_line(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        TrainingConfig(**fields)
    assert "\n" not in str(caught.value)


def test_unknown_dataset_and_missing_gpu_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown dataset 'mnits': allowed are mnist, .*; did you mean 'mnist'"):
        train(changed(dataset="mnits"))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no GPU"):
            train(changed(device="cuda"))


def test_without_the_term_its_form_and_factor_are_no_part_of_the_identity() -> None:
    plain = changed(beta=0.0)
    assert plain.identity() == changed(beta=0.0, K=2.0, form="normalised").identity()
    assert SMALL.identity() != changed(K=2.0).identity()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_network_within_tolerance() -> None:
    cpu, gpu = train(SMALL), train(changed(device="cuda"))
    for a, b in zip(weights(cpu), weights(gpu), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("epochs", "every", "rows"),
    [(7, 3, [3, 6, 7]), (6, 3, [3, 6]), (2, 5, [2]), (3, 1, [1, 2, 3])],
)
def test_the_history_has_a_row_of_every_nth_epoch_and_of_the_last(
    epochs: int, every: int, rows: list[int]
) -> None:
    fields = {"dataset": "two_moons", "train_size": None, "width": 10, "depth": 1, "epochs": epochs}
    often, seldom = (train(changed(**fields, log_every=log_every)) for log_every in (1, every))
    assert seldom.history["epoch"].tolist() == rows
    kept = often.history[often.history["epoch"].isin(rows)].reset_index(drop=True)
    assert seldom.history.equals(kept)
    assert all(torch.equal(a, b) for a, b in zip(weights(often), weights(seldom), strict=True))


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"beta": 0.5, "K": 2.0}, 2.0),
        ({"beta": 0.0, "K": 2.0}, 1.0),
        ({"beta": 0.5, "K": 2.0, "form": "normalised"}, 1.0),
    ],
)
@pytest.mark.parametrize("dataset", ["two_moons", "torus"])
def test_the_history_ends_with_the_distances_of_the_network(
    dataset: str, fields: dict[str, object], scale: float
) -> None:
    trained = train(changed(dataset=dataset, train_size=None, width=10, depth=1, **fields))
    assert trained.config.representation_scale == scale
    known = data.load(dataset)
    stride = 2 if dataset == "torus" else 1
    inputs, labels = known.train_inputs[::stride], known.train_labels[::stride]
    with torch.no_grad():
        mapped = trained.model.representation(inputs)
    x, h, y = inputs.tolist(), mapped.tolist(), labels.tolist()
    d_x, d_h = (torch.pdist(torch.tensor(points, dtype=torch.float64)) for points in (x, h))
    same = torch.tensor([a == b for i, a in enumerate(y) for b in y[i + 1 :]])
    # Every pair counts twice among the squares of the number of points.
    error = 2 * float((scale * d_h - d_x)[same].square().sum()) / len(y) ** 2
    last = trained.history.iloc[-1]
    assert math.isclose(last["distance_error"], error, rel_tol=1e-3)
    assert math.isclose(last["lipschitz_ratio"], float(d_h.max() / d_x.max()), rel_tol=1e-4)
