import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.spatial
import scipy.stats
import sklearn.decomposition
import torch

from isorepro import data, dynamics, stacks, structure, sweep, training
from isorepro.errors import InputError
from isorepro.models import Stack
from isorepro.training import TrainedModel, TrainingConfig, build, train

LEVELS = (((0, 1, 2, 3), (4, 5, 6, 7)),)
SHORT = TrainingConfig(width=20, depth=2, log_every=7, device="cpu")
CONFIGS = {
    "rings": {"dataset": "linked_rings", "epochs": 40, "batch_size": 200, "beta": 1.0, "K": 0.5, "seed": 3},
    "rings, cross-entropy in batches": {"dataset": "linked_rings", "epochs": 15, "batch_size": 40},
    "torus": {"dataset": "torus", "epochs": 12, "train_size": 160, "batch_size": 160, "beta": 10.0}
    | {"hierarchy": LEVELS},
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def network(request: pytest.FixtureRequest) -> TrainedModel:
    return train(TrainingConfig(**SHORT.model_dump() | CONFIGS[request.param]))


def stopped(config: TrainingConfig, epoch: int) -> Stack:
    """The network of a training that ends at an epoch."""
    if epoch:
        with torch.enable_grad():
            return train(TrainingConfig(**config.model_dump() | {"epochs": epoch})).model
    dataset = data.load(config.dataset, seed=config.seed)
    return build(config, dataset.train_inputs, len(dataset.classes)).eval()


@torch.no_grad()
def test_frames_are_those_of_networks_that_were_trained_so_long_only(network: TrainedModel) -> None:
    config, scale = network.config, network.config.representation_scale
    with torch.enable_grad():
        found = dynamics.frames(network, points=30, count=5)
    whole = data.load(config.dataset, seed=config.seed)
    part = data.load(config.dataset, test_size=30, seed=config.seed)
    labels = whole.test_labels.numpy()
    end = (scale * network.model.representation(whole.test_inputs)).double().numpy()
    axes = sklearn.decomposition.PCA(3, svd_solver="full").fit(end)
    assert found["epoch"].drop_duplicates().tolist() == dynamics.spaced_epochs(config.epochs, 5)
    signs = None
    for epoch, rows in list(found.groupby("epoch"))[::-1]:
        model = stopped(config, int(epoch))
        expected = axes.transform((scale * model.representation(part.test_inputs)).double().numpy())
        places = rows[["x", "y", "z"]].to_numpy()
        if signs is None:  # an axis has no sign of its own; it has the same at all epochs
            signs = np.sign((expected * places).sum(0))
        np.testing.assert_allclose(places, expected * signs, atol=2e-4 * np.ptp(end, axis=0).max())
        assert rows["point"].tolist() == list(range(30))
        assert rows["class"].tolist() == [whole.classes[label] for label in part.test_labels]
        assert part.test_coordinates is not None
        np.testing.assert_allclose(rows["angle"], part.test_coordinates[:, 0], atol=1e-4)
        assert ("angle_2" in rows) == (config.dataset == "torus")

        state = rows[["accuracy", "spearman", "stress", "share"]].drop_duplicates()
        assert len(state) == 1
        mapped = model.representation(whole.test_inputs).double().numpy()
        within = scipy.spatial.distance.pdist(labels[:, None], "chebyshev") == 0
        if within.sum() <= 100_000:  # else pairs are drawn
            before, after = (scipy.spatial.distance.pdist(cloud)[within] for cloud in (whole.test_inputs, mapped))
            rank = scipy.stats.spearmanr(before, after).statistic
            assert state["spearman"].item() == pytest.approx(rank, abs=1e-5)
            stress = np.sqrt(((scale * after - before) ** 2).sum() / (before**2).sum())
            assert state["stress"].item() == pytest.approx(stress, rel=1e-4)
        right = model(whole.test_inputs).argmax(1).numpy() == labels
        assert state["accuracy"].item() == pytest.approx(right.mean(), abs=1e-6)
        held = axes.transform(scale * mapped).var(0).sum() / (scale * mapped).var(0).sum()
        assert state["share"].item() == pytest.approx(held, abs=1e-4)


def test_the_last_frame_is_what_the_pages_show_of_the_network(network: TrainedModel) -> None:
    config = network.config
    found = dynamics.frames(network, points=30, count=3, pair_cap=5000)
    last = found[found["epoch"] == config.epochs]
    if config.hierarchy:
        table = stacks.measures(network, pair_cap=5000)
        table = table[(table["points"] == stacks.HELD_OUT) & (table["level"] == 2)]
    else:
        table = structure.measures(network, pair_cap=5000).query("relation != 'between'")
        space = structure.representation_space(network)
        chosen = data.stratified_indices(data.linked_rings(config.seed).test_labels, 30, seed=config.seed)
        expected = space[["x", "y", "z"]].to_numpy()[chosen]
        np.testing.assert_allclose(last[["x", "y", "z"]], expected, atol=1e-4 * np.ptp(expected))
        assert last["share"].iloc[0] == pytest.approx(space["share"].iloc[0], abs=1e-6)
    for measure in ("accuracy", "spearman", "stress"):
        assert last[measure].iloc[0] == pytest.approx(
            table.loc[table["measure"] == measure, "value"].item(), abs=1e-6
        )


def test_a_network_that_the_training_does_not_end_at_is_refused() -> None:
    network = train(TrainingConfig(**SHORT.model_dump() | CONFIGS["rings"]))
    other = build(network.config, torch.zeros(1, 3), 2)
    state = network.model.state_dict()
    for change, refused in ((1e-5, False), (0.2, True)):
        other.load_state_dict({name: (1 + change) * value for name, value in state.items()})
        changed = replace(network, model=other.eval())
        if refused:
            with pytest.raises(InputError, match=r"frames: .* trained on another kind of processor"):
                dynamics.frames(changed, points=30, count=2)
        else:
            assert len(dynamics.frames(changed, points=30, count=2)) == 60


def test_sizes_that_are_impossible_are_refused() -> None:
    network = train(TrainingConfig(**SHORT.model_dump() | CONFIGS["rings"] | {"epochs": 1}))
    with pytest.raises(InputError, match="points of linked_rings: must be from 2"):
        dynamics.frames(network, points=1)
    with pytest.raises(InputError, match="epochs: at least 2"):
        dynamics.frames(network, count=1)


def test_frames_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    (network,) = sweep.train_all([TrainingConfig(**SHORT.model_dump() | CONFIGS["rings"])], jobs=1)

    def found() -> pd.DataFrame:
        return sweep.measure([network], dynamics.frames, jobs=1, points=30, count=4)

    before = found()
    pd.testing.assert_frame_equal(
        before[["epoch", "x"]], dynamics.frames(network, points=30, count=4)[["epoch", "x"]]
    )
    monkeypatch.setattr(dynamics, "train", None)
    pd.testing.assert_frame_equal(found(), before)


@pytest.mark.parametrize("last", [1, 2, 5, 39, 40, 100, 1000, 10_000])
@pytest.mark.parametrize("count", [2, 3, 8, 40])
def test_epochs_run_from_the_untrained_network_to_the_end_and_lie_ever_wider(last: int, count: int) -> None:
    epochs = dynamics.spaced_epochs(last, count)
    assert epochs[0] == 0
    assert epochs[-1] == last
    assert len(epochs) == min(count, last + 1)
    steps = np.diff(epochs)
    assert (steps > 0).all()
    assert (np.diff(steps) >= -1).all()  # by rounding


@torch.no_grad()
def test_largest_distances_are_those_of_the_untrained_network_and_of_the_history(network: TrainedModel) -> None:
    config, dataset = network.config, training.dataset_of(network.config)
    found = dynamics.distance_ratios(network).set_index(["epoch", "level", "measure"])["value"]
    inputs, labels = dataset.train_inputs.double().numpy(), dataset.train_labels.numpy()
    whole = scipy.spatial.distance.pdist(inputs)
    for epoch, model in ((0, stopped(config, 0)), (config.epochs, network.model)):
        model = copy.deepcopy(model).double()
        for level, groups in enumerate((*config.hierarchy, [[label] for label in range(len(dataset.classes))])):
            mapped = model.up_to(level).representation(torch.from_numpy(inputs)).numpy()
            ratio = scipy.spatial.distance.pdist(mapped).max() / whole.max()
            straight = scipy.spatial.distance.pdist(np.arctanh(mapped)).max() / whole.max()
            pieces = [np.isin(labels, group) for group in groups]
            ends = [
                max(scipy.spatial.distance.pdist(x[piece]).max() for piece in pieces) for x in (mapped, inputs)
            ]
            wanted = {"lipschitz_ratio": ratio, "before_tanh_ratio": straight, "within_ratio": ends[0] / ends[1]}
            for measure, value in wanted.items():
                assert found[epoch, level + 1, measure] == pytest.approx(value, rel=2e-3)
    last = network.history[network.history["epoch"] == config.epochs].set_index("level")["lipschitz_ratio"]
    for level, value in last.items():
        assert found[config.epochs, level, "lipschitz_ratio"] == pytest.approx(value, rel=1e-3)
