import contextlib
import copy
import itertools
from collections.abc import Callable, Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from isorepro import data, hierarchy
from isorepro.errors import InputError
from isorepro.models import Gradients, Readout, Stack, frozen, tanh_layers
from isorepro.training import TrainingConfig, build, step, train

GRADIENTS: tuple[Gradients, ...] = get_args(Gradients)
READOUTS: tuple[Readout, ...] = get_args(Readout)


def test_flat_network_is_the_papers() -> None:
    model = Stack(784, (10,))
    weights = [tuple(w.shape) for name, w in model.named_parameters() if name.endswith("weight")]
    assert weights == [(100, 784), *[(100, 100)] * 4, (10, 100)]
    for layer in (0, 2, 4, 6):
        weight = model.blocks[0][layer].weight
        torch.testing.assert_close(weight @ weight.T, torch.eye(100), rtol=0, atol=1e-5)


def test_forward_equals_the_layers_written_out() -> None:
    model = Stack(12, (3,), width=5, depth=2).double()
    inputs = torch.rand(4, 3, 4, dtype=torch.float64)
    state = model.state_dict()
    hidden = inputs.reshape(4, 12)
    for name in ("input_layer.1", "blocks.0.0", "blocks.0.2"):
        hidden = torch.tanh(hidden @ state[f"{name}.weight"].T + state[f"{name}.bias"])
    logits = hidden @ state["heads.0.weight"].T + state["heads.0.bias"]
    torch.testing.assert_close(model.representation(inputs), hidden)
    torch.testing.assert_close(model(inputs), logits)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_levels_loss_reaches_its_own_block_and_head_only(level: int) -> None:
    model = Stack(6, (2, 4, 8), width=5, depth=2)
    loss = model.levels(torch.rand(3, 6))[level][1].square().sum()
    loss.backward(inputs=model.trained_by(level, "own block"))
    reached = {name.rsplit(".", 2)[0] for name, w in model.named_parameters() if w.grad is not None}
    own = {f"blocks.{level}", "heads"} | ({"input_layer"} if level == 0 else set())
    assert reached == own
    assert [head.weight.grad is not None for head in model.heads] == [k == level for k in range(3)]


def test_an_attack_on_the_finest_level_passes_through_the_whole_stack() -> None:
    model = Stack(6, (2, 4), width=5, depth=2)
    inputs = torch.rand(3, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(inputs).sum(), inputs)
    assert gradient.abs().min() > 0


def chain(*widths: int) -> list[nn.Linear]:
    return [nn.Linear(*pair).double() for pair in itertools.pairwise(widths)]


def test_tanh_layers_have_the_gradients_of_torchs_own_layers_to_the_second_order() -> None:
    """The sum asks for the output of two layers, so that gradients meet on the way."""
    layers, inputs = chain(4, 5, 3, 5), torch.randn(6, 4, dtype=torch.float64)
    free = [p for layer in layers for p in layer.parameters()]

    def by_torch(x: Tensor) -> list[Tensor]:
        found = [x]
        for layer in layers:
            found.append(torch.tanh(layer(found[-1])))
        return found[1:]

    def derivatives(run: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        x = inputs.clone().requires_grad_()
        outputs = run(x)
        value = outputs[0].square().sum() + (2.0 * outputs[-1]).sin().sum()
        first = torch.autograd.grad(value, [x, *free], create_graph=True)
        second = torch.autograd.grad(sum(g.pow(3).sum() for g in first), [x, *free])
        return [*outputs, *first, *second]

    for ours, theirs in zip(derivatives(lambda x: tanh_layers(x, layers)), derivatives(by_torch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        for ours, theirs in zip(tanh_layers(inputs, layers), by_torch(inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_tanh_layers_are_those_of_a_finite_difference() -> None:
    layers, inputs = chain(3, 4, 2), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    free = [p for layer in layers for p in layer.parameters()]

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        return tanh_layers(inputs, layers)

    assert torch.autograd.gradcheck(run, [inputs, *free])
    assert torch.autograd.gradgradcheck(run, [inputs, *free])


def test_tanh_layers_compute_only_the_gradients_that_are_needed() -> None:
    layers, inputs = chain(3, 4, 2), torch.randn(5, 3, dtype=torch.float64)
    layers[0].requires_grad_(False)
    tanh_layers(inputs, layers)[-1].sum().backward()
    assert [layer.weight.grad is not None for layer in layers] == [False, True]
    # Of the first output alone the second layer gets none.
    for layer in layers:
        layer.requires_grad_(True)
        layer.zero_grad()
    tanh_layers(inputs, layers)[0].sum().backward()
    assert [layer.bias.grad is not None for layer in layers] == [True, False]


def test_a_frozen_model_gives_the_gradient_of_the_inputs_alone_and_is_free_afterwards() -> None:
    model = Stack(6, (2, 4), width=5, depth=2)
    held = next(iter(model.heads[0].parameters())).requires_grad_(False)
    inputs = torch.rand(3, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(model(inputs).sum(), inputs)
    with frozen(model):
        model(inputs).sum().backward()
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, expected)
    assert all(p.grad is None for p in model.parameters())
    assert [id(p) for p in model.parameters() if not p.requires_grad] == [id(held)]
    with contextlib.suppress(ZeroDivisionError), frozen(model):
        _ = 1 / 0
    assert [id(p) for p in model.parameters() if not p.requires_grad] == [id(held)]


@pytest.mark.parametrize("readout", READOUTS)
def test_levels_apart_have_the_same_outputs_and_train_their_own_blocks_alone(readout: Readout) -> None:
    model, inputs = Stack(6, (2, 4, 8), width=5, depth=2, readout=readout), torch.rand(7, 6)
    apart, whole = model.levels(inputs, apart=True), model.levels(inputs)
    for level in range(3):
        for ours, theirs in zip(apart[level], whole[level], strict=True):
            assert torch.equal(ours, theirs)
        own = model.trained_by(level, "own block")
        for p in model.parameters():
            p.grad = None
        apart[level][1].square().sum().backward(retain_graph=True)
        assert {id(p) for p in model.parameters() if p.grad is not None} == {id(p) for p in own}
        expected = torch.autograd.grad(whole[level][1].square().sum(), own, retain_graph=True)
        for p, gradient in zip(own, expected, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad, gradient)


def hidden_by_hand(model: Stack, inputs: Tensor) -> list[Tensor]:
    """The output of every tanh, the layers written out."""
    found = [torch.tanh(functional.linear(inputs.flatten(1), *model.input_layer[1].parameters()))]
    for block in model.blocks:
        for linear in (layer for layer in block if isinstance(layer, nn.Linear)):
            found.append(torch.tanh(functional.linear(found[-1], linear.weight, linear.bias)))
    return found


def read_after(readout: Readout, levels: int, depth: int) -> list[int]:
    """Hidden layers before each level's head, coarse to fine."""
    blocks = range(1, levels + 1) if readout == "in order" else range(levels - 1, -1, -1)
    return [depth * count for count in blocks]


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("shared_head", [False, True])
def test_levels_are_read_where_the_readout_says(readout: Readout, shared_head: bool) -> None:
    model = Stack(6, (2, 4, 8), width=5, depth=2, readout=readout, shared_head=shared_head).double()
    inputs = torch.rand(3, 2, 3, dtype=torch.float64)
    hidden = hidden_by_hand(model, inputs)
    assert len(model.activations(inputs)) == len(hidden) == 1 + 3 * 2
    for ours, by_hand in zip(model.activations(inputs), hidden, strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-12, atol=0)
    places = read_after(readout, 3, 2)
    assert places == ([2, 4, 6] if readout == "in order" else [4, 2, 0])
    for (representation, logits), place, head in zip(model.levels(inputs), places, model.heads, strict=True):
        torch.testing.assert_close(representation, hidden[place], rtol=1e-12, atol=0)
        torch.testing.assert_close(logits, hidden[place] @ head.weight.T + head.bias, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.representation(inputs), hidden[places[-1]], rtol=1e-12, atol=0)
    assert torch.equal(model(inputs), model.levels(inputs)[-1][1])


def test_a_shared_head_is_one_module_with_outputs_for_the_largest_level() -> None:
    model = Stack(6, (2, 8, 4), width=5, depth=1, shared_head=True)
    assert len({id(head) for head in model.heads}) == 1
    own = Stack(6, (2, 8, 4), width=5, depth=1)
    assert len({id(head) for head in own.heads}) == 3
    assert [logits.shape for _, logits in model.levels(torch.rand(3, 6))] == [(3, 8)] * 3
    assert [logits.shape for _, logits in own.levels(torch.rand(3, 6))] == [(3, 2), (3, 8), (3, 4)]
    # Heads of 6 × (2 + 8 + 4) parameters against one of 6 × 8.
    counts = [sum(p.numel() for p in stack.parameters()) for stack in (own, model)]
    assert counts[0] - counts[1] == 6 * (2 + 8 + 4) - 6 * 8


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("shared_head", [False, True])
def test_the_part_up_to_a_level_is_the_stack_at_that_level(readout: Readout, shared_head: bool) -> None:
    model = Stack(6, (2, 4, 8), width=5, depth=2, readout=readout, shared_head=shared_head).eval()
    inputs = torch.rand(3, 6)
    for level, (representation, logits) in enumerate(model.levels(inputs)):
        part = model.up_to(level)
        assert torch.equal(part(inputs), logits)
        assert torch.equal(part.representation(inputs), representation)
        assert not part.training
        assert {id(p) for p in part.parameters()} <= {id(p) for p in model.parameters()}
    with torch.no_grad():
        next(iter(model.input_layer.parameters())).add_(1.0)
    assert torch.equal(model.up_to(1)(inputs), model.levels(inputs)[1][1])
    for level in (-1, 3):
        with pytest.raises(InputError, match=f"level: must be from 0 to 2, not {level}"):
            model.up_to(level)


def named(model: Stack, parameters: list[nn.Parameter]) -> set[str]:
    """The modules whose parameters these are, all of them."""
    kept = {id(p) for p in parameters}
    names = {name for name, p in model.named_parameters() if id(p) in kept}
    modules = {name.rpartition(".")[0] for name in names}
    assert names == {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert len(parameters) == len(names)
    return modules


FIRST = {"input_layer.1"}
TABLE: dict[tuple[Readout, Gradients], list[set[str]]] = {
    ("in order", "own block"): [
        FIRST | {"blocks.0.0", "blocks.0.2"},
        {"blocks.1.0", "blocks.1.2"},
        {"blocks.2.0", "blocks.2.2"},
    ],
    ("in order", "all earlier blocks"): [
        FIRST | {"blocks.0.0", "blocks.0.2"},
        FIRST | {"blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"},
        FIRST | {"blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2", "blocks.2.0", "blocks.2.2"},
    ],
    ("in order", "shifted by a layer"): [FIRST | {"blocks.0.2"}, FIRST | {"blocks.1.2"}, FIRST | {"blocks.2.2"}],
    ("reversed", "own block"): [{"blocks.1.0", "blocks.1.2"}, {"blocks.0.0", "blocks.0.2"}, FIRST],
    ("reversed", "all earlier blocks"): [
        FIRST | {"blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"},
        FIRST | {"blocks.0.0", "blocks.0.2"},
        FIRST,
    ],
    ("reversed", "shifted by a layer"): [FIRST | {"blocks.1.2"}, FIRST | {"blocks.0.2"}, FIRST],
}
"""The layers that each of three levels trains besides its head, with two layers a block."""


@pytest.mark.parametrize(("readout", "gradients"), TABLE)
def test_each_level_trains_exactly_these_layers(readout: Readout, gradients: Gradients) -> None:
    model = Stack(6, (2, 4, 8), width=5, depth=2, readout=readout)
    for level, layers in enumerate(TABLE[readout, gradients]):
        assert named(model, model.trained_by(level, gradients)) == layers | {f"heads.{level}"}


def level_labels() -> Tensor:
    return hierarchy.level_labels(LEVELS, torch.arange(8).repeat(3), 8)


LEVELS = [[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1], [2, 3], [4, 5], [6, 7]]]


def step_gradients(
    readout: Readout, gradients: Gradients, weighted: int | None = None, *, shared_head: bool = False
) -> tuple[Stack, Tensor, dict[str, Tensor | None]]:
    """Take one training step of a rate of 0; return the network, the inputs and every parameter's gradient.

    With ``weighted`` the loss is that of this level alone.
    """
    config = TrainingConfig(
        beta=0.3,
        K=2.0,
        hierarchy=LEVELS,
        readout=readout,
        gradients=gradients,
        shared_head=shared_head,
        width=5,
        depth=2,
        device="cpu",
    )
    inputs = torch.rand(24, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = build(config, inputs, 8).double()
    before = copy.deepcopy(model.state_dict())
    if weighted is None:
        step(model, torch.optim.SGD(model.parameters(), lr=0.0), inputs, level_labels(), config)
    else:
        representation, logits = model.levels(inputs)[weighted]
        loss = level_loss(representation, logits, inputs, level_labels()[weighted])
        loss.backward(inputs=model.trained_by(weighted, gradients))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    found = {name: p.grad for name, p in model.named_parameters(remove_duplicate=False)}
    return model, inputs, found


def level_loss(representation: Tensor, logits: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy + 0.3 · mean (2 E D_h − E D_x)², from broadcast differences."""
    same = labels[:, None] == labels[None, :]
    squares = (representation[:, None] - representation[None]).square().sum(-1)
    # The root's derivative is infinite at zero; the distance of a point to itself is left out.
    d_h = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
    d_x = (inputs[:, None] - inputs[None]).square().sum(-1).sqrt()
    entropy = -(logits.log_softmax(1)[torch.arange(len(labels)), labels]).mean()
    return entropy + 0.3 * ((2 * d_h - d_x) * same).square().mean()


def losses_by_hand(model: Stack, readout: Readout, inputs: Tensor) -> list[Tensor]:
    hidden = hidden_by_hand(model, inputs)
    return [
        level_loss(hidden[place], functional.linear(hidden[place], head.weight, head.bias), inputs, labels)
        for place, head, labels in zip(read_after(readout, 3, 2), model.heads, level_labels(), strict=True)
    ]


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("shared_head", [False, True])
def test_with_all_earlier_blocks_the_gradient_is_that_of_the_sum_of_all_losses(
    readout: Readout, shared_head: bool
) -> None:
    model, inputs, found = step_gradients(readout, "all earlier blocks", shared_head=shared_head)
    parameters = dict(model.named_parameters())
    total = torch.stack(losses_by_hand(model, readout, inputs)).sum()
    expected = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, expected, strict=True):
        if gradient is None:
            assert name.startswith("blocks.2.")
            assert readout == "reversed"
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("readout", "gradients"), TABLE)
def test_a_parameter_gets_the_gradients_of_the_levels_that_train_it_and_no_others(
    readout: Readout, gradients: Gradients
) -> None:
    model, inputs, found = step_gradients(readout, gradients)
    losses = losses_by_hand(model, readout, inputs)
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0]
        levels = [
            level for level, layers in enumerate(TABLE[readout, gradients]) if layer in layers | {f"heads.{level}"}
        ]
        if not levels:
            assert found[name] is None
            continue
        total = torch.stack([losses[level] for level in levels]).sum()
        (expected,) = torch.autograd.grad(total, parameter, retain_graph=True)
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_with_own_blocks_no_other_level_reaches_a_block(readout: Readout, level: int) -> None:
    _, _, alone = step_gradients(readout, "own block", level)
    _, _, together = step_gradients(readout, "own block")
    for name, gradient in alone.items():
        layer = name.rpartition(".")[0]
        if layer in TABLE[readout, "own block"][level] | {f"heads.{level}"}:
            # The other levels' losses were summed in as well and changed nothing.
            torch.testing.assert_close(gradient, together[name], rtol=1e-9, atol=1e-12)
        else:
            assert gradient is None


def test_reversed_levels_leave_the_last_block_as_it_was_drawn() -> None:
    fields = {"dataset": "torus", "width": 6, "depth": 2, "epochs": 2, "device": "cpu", "hierarchy": LEVELS}
    for gradients in GRADIENTS:
        config = TrainingConfig(**fields, readout="reversed", gradients=gradients, beta=0.1)
        drawn = build(config, torch.zeros(1, 3), 8).state_dict()
        trained = train(config).model.state_dict()
        kept = {name for name in drawn if torch.equal(drawn[name], trained[name])}
        never = {f"blocks.2.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
        if gradients == "shifted by a layer":
            never |= {f"blocks.{block}.0.{kind}" for block in (0, 1) for kind in ("weight", "bias")}
        assert kept == never


@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("adam", ["kept", "anew"])
def test_the_order_of_a_levels_groups_only_permutes_its_outputs(gradients: Gradients, adam: str) -> None:
    fields = {"dataset": "torus", "width": 8, "depth": 2, "device": "cpu", "beta": 0.1, "K": 2.0}
    order = [2, 0, 3, 1]
    one, other = (
        TrainingConfig(**fields, hierarchy=[LEVELS[0], level], gradients=gradients, adam=adam)
        for level in (LEVELS[1], [LEVELS[1][place] for place in order])
    )
    dataset = data.load("torus")
    models = []
    for config in (one, other):
        model = build(config, dataset.train_inputs, 8)
        if config is other:
            head = model.heads[1]
            with torch.no_grad():
                head.weight.copy_(head.weight[order])
                head.bias.copy_(head.bias[order])
        # In double precision, so that rounding, which Adam magnifies where a gradient is near zero, stays small.
        model = model.double()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        labels = hierarchy.level_labels(config.hierarchy, dataset.train_labels, 8)
        for batch in torch.arange(1600).view(40, 40).T.split(4):
            chosen = batch.flatten()
            step(model, optimizer, dataset.train_inputs[chosen].double(), labels[:, chosen], config)
        models.append(model)
    inputs = dataset.test_inputs.double()
    (_, _), (_, plain), (_, finest) = models[0].levels(inputs)
    (_, _), (_, permuted), (_, finest_too) = models[1].levels(inputs)
    assert (plain.std(0) > 1e-3).all()
    torch.testing.assert_close(permuted, plain[:, order], rtol=0, atol=1e-6)
    torch.testing.assert_close(finest, finest_too, rtol=0, atol=1e-6)
    for (name, a), (_, b) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        torch.testing.assert_close(b, a[order] if name.startswith("heads.1") else a, rtol=0, atol=1e-6)
