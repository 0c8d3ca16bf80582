import math
from typing import Any

import pytest
import torch
from conftest import NumpyTanh
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from isorepro import data, hierarchy, training
from isorepro.errors import InputError
from isorepro.losses import Form, class_members, pairwise_distances, squared_norms
from isorepro.models import Stack
from isorepro.training import TrainedModel, TrainingConfig, build, clean_accuracy, step, train

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


@pytest.mark.parametrize(
    "fields",
    [{}, {"batch_size": 500}, {"beta": 0.0}, {"hierarchy": [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]], "adam": "anew"}],
    ids=["batches", "full batch", "cross-entropy", "stack"],
)
def test_watching_sees_every_epoch_and_changes_no_bit(fields: dict[str, object]) -> None:
    config = changed(**fields)
    seen: list[tuple[int, list[torch.Tensor]]] = []

    def watch(epoch: int, model: Stack) -> None:
        torch.rand(epoch + 1)
        model(torch.rand(3, 1, 28, 28))
        seen.append((epoch, [weight.clone() for weight in model.state_dict().values()]))

    unwatched, watched = train(config), train(config, watch=watch)
    assert all(torch.equal(a, b) for a, b in zip(weights(unwatched), weights(watched), strict=True))
    assert watched.history.equals(unwatched.history)
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    untrained = build(config, data.load("mnist").train_inputs, 10).state_dict().values()
    halfway = weights(train(changed(**fields, epochs=1)))
    for (_, found), expected in zip(seen, (untrained, halfway, weights(watched)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


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


TREE = [[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1], [2, 3], [4, 5], [6, 7]]]
TORUS = TrainingConfig(
    dataset="torus", hierarchy=TREE, width=12, depth=2, epochs=2, beta=0.1, K=2.0, learning_rate=3e-3, device="cpu"
)


def of_torus(**fields: object) -> TrainingConfig:
    return TrainingConfig(**TORUS.model_dump() | fields)


def by_hand(x: Tensor, y: Tensor, h: Tensor, logits: Tensor, config: TrainingConfig) -> Tensor:
    """A level's loss from the package's term (tested by itself) on the batch's classes."""
    blocks = training.ClassBlocks.of(x, y)
    return cross_entropy(logits, y) + blocks.isometry(h, beta=config.beta, K=config.K, form=config.form)


@pytest.mark.parametrize("form", ["raw", "normalised"])
def test_a_stack_of_one_level_has_the_bits_of_a_plain_chain_of_layers(form: Form) -> None:
    config = changed(form=form)
    dataset = data.load("mnist", train_size=500)
    drawn = [*build(config, dataset.train_inputs, 10).parameters()]
    chain = [nn.Linear(784, 100), *(nn.Linear(100, 100) for _ in range(4)), nn.Linear(100, 10)]
    with torch.no_grad():
        for ours, other in zip(drawn, (p for layer in chain for p in layer.parameters()), strict=True):
            other.copy_(ours)
    hidden = nn.Sequential(nn.Flatten(), *(part for layer in chain[:-1] for part in (layer, NumpyTanh())))
    plain = nn.Sequential(hidden, chain[-1])
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, fused=True)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(2):
        for batch in torch.randperm(500, generator=shuffle).split(100):
            x, y = dataset.train_inputs[batch], dataset.train_labels[batch]
            h = hidden(x)
            optimizer.zero_grad()
            by_hand(x, y, h, chain[-1](h), config).backward()
            optimizer.step()
    for ours, other in zip(weights(train(config)), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("adam", ["kept", "anew"])
@pytest.mark.parametrize("batch_size", [100, 1600])
def test_the_coarsest_block_is_trained_as_if_it_were_alone(adam: str, batch_size: int) -> None:
    config = of_torus(adam=adam, batch_size=batch_size)
    dataset = data.load("torus")
    alone = Stack(3, (2,), width=12, depth=2)
    whole = build(config, dataset.train_inputs, 8).state_dict()
    alone.load_state_dict({name: whole[name] for name in alone.state_dict()})
    flat = of_torus(adam=adam, hierarchy=())
    optimizer = torch.optim.Adam(alone.parameters(), lr=3e-3, fused=True)
    coarse = (dataset.train_labels > 3).long()[None]
    shuffle = torch.Generator().manual_seed(0)
    blocks = [training.ClassBlocks.of(dataset.train_inputs, coarse[0])] if batch_size == 1600 else None
    for _ in range(2):
        order = torch.arange(1600) if blocks else torch.randperm(1600, generator=shuffle)
        for batch in order.split(batch_size):
            x, y = dataset.train_inputs[batch], coarse[:, batch]
            # The distances of the tree's three levels are found at once.
            known = pairwise_distances(x, squared_norms(x))
            members = next(class_members(y[0], len(x)))
            own = blocks or [training.ClassBlocks.among(x, squared_norms(x), *members, known)]
            step(alone, optimizer, x, y, flat, own)
    found = train(config).model.state_dict()
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, found[name]), name
        assert not torch.equal(weight, whole[name]), name


@pytest.mark.parametrize("gradients", ["own block", "all earlier blocks"])
def test_adam_begun_anew_steps_by_the_sign_of_the_gradient_coarse_to_fine(gradients: str) -> None:
    config = of_torus(adam="anew", gradients=gradients)
    dataset = data.load("torus")
    x, labels = dataset.train_inputs[::16], hierarchy.level_labels(TREE, dataset.train_labels[::16], 8)
    model = build(config, x, 8)
    expected = build(config, x, 8)
    # Moments of other gradients, which a step must forget.
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 3e-3
    measured = step(model, optimizer, x, labels, config)
    large = {name: torch.ones_like(p, dtype=torch.bool) for name, p in expected.named_parameters()}
    for level in range(3):
        h, logits = expected.levels(x)[level]
        assert measured[level][0].item() == pytest.approx(cross_entropy(logits, labels[level]).item(), rel=1e-5)
        trained = {
            name: p
            for name, p in expected.named_parameters()
            if name.startswith((f"heads.{level}.", f"blocks.{level}."))
            or (name.startswith("input_layer") and (level == 0 or gradients == "all earlier blocks"))
            or (name.startswith("blocks") and int(name[7]) < level and gradients == "all earlier blocks")
        }
        loss = by_hand(x, labels[level], h, logits, config)
        for (name, p), g in zip(trained.items(), torch.autograd.grad(loss, [*trained.values()]), strict=True):
            # g / (|g| + 1e-8) is a sign where |g| is far above 1e-8.
            large[name] &= g.abs() > 1e-5
            with torch.no_grad():
                p -= 3e-3 * g.sign()
    assert torch.cat([kept.flatten() for kept in large.values()]).double().mean() > 0.95
    for (name, ours), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours[large[name]], other[large[name]], rtol=0, atol=1e-5)


def test_levels_in_turn_take_steps_of_optimizers_of_their_own() -> None:
    """Each level sees what the step of the level before has made of the network, and moments are kept."""
    config = of_torus(adam="in turn")
    dataset = data.load("torus")
    x, labels = dataset.train_inputs[::16], hierarchy.level_labels(TREE, dataset.train_labels[::16], 8)
    model, expected = (build(config, x, 8) for _ in range(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    own = [
        [*expected.heads[level].parameters(), *expected.blocks[level].parameters()]
        + ([*expected.input_layer.parameters()] if level == 0 else [])
        for level in range(3)
    ]
    optimizers = [torch.optim.Adam(parameters, lr=3e-3) for parameters in own]
    for _ in range(3):
        measured = step(model, optimizer, x, labels, config)
        for level in range(3):
            h, logits = expected.levels(x)[level]
            assert measured[level][0].item() == pytest.approx(
                cross_entropy(logits, labels[level]).item(), rel=1e-5
            )
            loss = by_hand(x, labels[level], h, logits, config)
            for parameter, gradient in zip(own[level], torch.autograd.grad(loss, own[level]), strict=True):
                parameter.grad = gradient
            optimizers[level].step()
    for ours, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("adam", ["kept", "anew"])
def test_full_batch_training_is_mini_batch_training_on_one_batch_of_everything(adam: str) -> None:
    config = of_torus(batch_size=1600, epochs=3, adam=adam)
    dataset = data.load("torus")
    labels = hierarchy.level_labels(TREE, dataset.train_labels, 8)
    model = build(config, dataset.train_inputs, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rows, shuffle = [], torch.Generator().manual_seed(1)
    for _ in range(3):
        order = torch.randperm(1600, generator=shuffle)
        measured = step(model, optimizer, dataset.train_inputs[order], labels[:, order], config)
        for row, (entropy, penalty, logits) in zip(labels[:, order], measured, strict=True):
            correct = (logits.argmax(1) == row).double().mean()
            rows.append(torch.stack([entropy.double(), penalty.double(), correct]))
    trained, larger = train(config), train(of_torus(batch_size=5000, epochs=3, adam=adam))
    for ours, other, same in zip(weights(trained), model.state_dict().values(), weights(larger), strict=True):
        # Adam divides by the gradient's size: where a gradient is near zero its rounding shows.
        assert (ours - other).abs().quantile(0.95) < 1e-5
        assert torch.equal(ours, same)
    found = trained.history[["cross_entropy", "isometry", "train_accuracy"]].to_numpy()
    torch.testing.assert_close(
        torch.tensor(found.tolist(), dtype=torch.float64), torch.stack(rows), rtol=1e-2, atol=2e-3
    )


def test_batches_of_everything_are_in_the_sets_order_and_smaller_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = data.load("torus")
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(model: Stack, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, *rest: Any) -> Any:
        seen.append((x, y))
        return step(model, optimizer, x, y, *rest)

    monkeypatch.setattr(training, "step", watched)
    train(of_torus(batch_size=1600, epochs=2))
    assert len(seen) == 2
    for x, y in seen:
        assert torch.equal(x, dataset.train_inputs)
        assert torch.equal(y[-1], dataset.train_labels)
    seen.clear()
    train(of_torus(batch_size=1599, epochs=1))
    assert [len(x) for x, _ in seen] == [1599, 1]
    assert not torch.equal(seen[0][0], dataset.train_inputs[:1599])
    together = torch.cat([x for x, _ in seen])
    assert torch.equal(together.sort(0).values, dataset.train_inputs.sort(0).values)


@pytest.mark.parametrize("fields", [{}, {"readout": "reversed", "shared_head": True}])
def test_the_history_has_a_row_per_epoch_and_level_with_the_levels_accuracy(fields: dict[str, object]) -> None:
    config = of_torus(epochs=4, log_every=2, **fields)
    trained = train(config)
    assert trained.history[["epoch", "level"]].to_numpy().tolist() == [[e, k] for e in (2, 4) for k in (1, 2, 3)]
    dataset = data.load("torus")
    groups = [{c: place for place, group in enumerate(level) for c in group} for level in TREE]
    last = trained.history[trained.history["epoch"] == 4]
    accuracies = []
    for level, row in enumerate(last.itertuples()):
        representation, logits = trained.model.levels(dataset.test_inputs)[level]
        truth = [groups[level][c] if level < 2 else c for c in dataset.test_labels.tolist()]
        hits = [guess == label for guess, label in zip(logits.argmax(1).tolist(), truth, strict=True)]
        accuracies.append(row.test_accuracy)
        assert row.test_accuracy == pytest.approx(sum(hits) / len(hits), abs=1e-9)
        h = trained.model.levels(dataset.train_inputs[::2])[level][0].detach().double()
        known = [groups[level][c] if level < 2 else c for c in dataset.train_labels[::2].tolist()]
        same = torch.tensor(known)[:, None] == torch.tensor(known)[None, :]
        x = dataset.train_inputs[::2].double()
        d_h, d_x = ((p[:, None] - p[None]).norm(dim=-1) for p in (h, x))
        assert row.distance_error == pytest.approx(((2 * d_h - d_x) * same).square().mean().item(), rel=1e-3)
        assert row.lipschitz_ratio == pytest.approx((d_h.max() / d_x.max()).item(), rel=1e-4)
        assert representation.shape == (1600, 12)
    assert len(set(accuracies)) == 3


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("01", r"hierarchy: must be a list of levels, not '01'"),
        (None, "hierarchy: must be a list of levels, not None"),
        ([3], "hierarchy: level 1 must be a list of lists of class numbers, not 3"),
        ([[[0, True]]], "hierarchy: level 1 names class True; a class is a whole number"),
        ([[[0, 0.0]]], r"hierarchy: level 1 names class 0\.0; a class is a whole number"),
        ([[[0, 1]], [[0], [1], [0]]], "hierarchy: level 2 names class 0 2 times"),
        ([[[0, 2]]], "hierarchy: level 1 lacks class 1"),
        ([[[0, 1], []]], "hierarchy: level 1 has an empty group"),
        ([[[0], [1]], [[0, 1]]], "hierarchy: level 2 joins classes 0 and 1, which level 1 parts"),
    ],
)
def test_a_broken_hierarchy_is_refused_in_one_line(levels: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        TrainingConfig(hierarchy=levels)
    assert "\n" not in str(caught.value)


def test_lists_and_tuples_of_a_hierarchy_are_one_config() -> None:
    config = TrainingConfig(hierarchy=tuple(tuple(map(tuple, level)) for level in TREE))
    assert config == TrainingConfig(hierarchy=TREE)
    assert config == TrainingConfig(**config.model_dump())
    crossed = TrainingConfig(hierarchy=[[[0], [1]], [[0, 1]]], nested=False)
    assert crossed.hierarchy == (((0,), (1,)), ((0, 1),))


@pytest.mark.parametrize("dataset", ["mnist", "two_moons"])
def test_a_hierarchy_of_other_classes_than_the_datasets_is_refused(dataset: str) -> None:
    # Eight pieces: two digits are not held, six are too many for the moons.
    message = "level 1 lacks class 8" if dataset == "mnist" else "level 1 names class 2; classes are 0 to 1"
    with pytest.raises(InputError, match=f"^hierarchy: {message}"):
        train(of_torus(dataset=dataset, train_size=100))
    with pytest.raises(InputError, match=f"^hierarchy: {message}"):
        build(TORUS, torch.zeros(1, 3), 10 if dataset == "mnist" else 2)
