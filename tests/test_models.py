import pytest
import torch

from isorepro.models import Stack


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
