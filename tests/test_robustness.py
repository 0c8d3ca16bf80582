import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from isorepro import attacks, data, robustness
from isorepro.errors import InputError
from isorepro.robustness import CLEAN, CORRECTED, FGSM, ONE_GRADIENT_PGD, PGD, RELEASED
from isorepro.training import TrainedModel, TrainingConfig, train


def test_curves_have_every_protocol_attack_and_radius(
    trained: TrainedModel, images_and_labels: tuple[Tensor, Tensor]
) -> None:
    epsilons = [0.02, 0.05, 0.6]
    table = robustness.curves(trained, epsilons=epsilons, pgd_steps=3, test_size=600)
    attacks = [(RELEASED, FGSM), (RELEASED, ONE_GRADIENT_PGD), (CORRECTED, FGSM), (CORRECTED, PGD)]
    expected = {(p, a, e) for p, a in attacks for e in epsilons} | {(p, CLEAN, 0.0) for p in (RELEASED, CORRECTED)}
    assert set(table[["protocol", "attack", "epsilon"]].itertuples(index=False, name=None)) == expected
    assert len(table) == len(expected)
    assert (table["level"] == 1).all()
    assert table["accuracy"].between(0, 1).all()
    images, labels = images_and_labels
    clean = (trained.model(images).argmax(1) == labels).double().mean().item()
    assert table.loc[table["attack"] == CLEAN, "accuracy"].tolist() == pytest.approx([clean, clean])
    pgd = table.loc[table["attack"] == PGD, "accuracy"]
    assert (pgd.diff().dropna() <= 0).all()
    alone = robustness.curves(trained, epsilons=epsilons, pgd_steps=3, test_size=600, only=[FGSM])
    whole = table[table["attack"].isin([CLEAN, FGSM])].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, whole)


def test_examples_are_the_first_of_each_class_and_inside_their_ball(trained: TrainedModel) -> None:
    table = robustness.examples(trained, epsilon=0.1, pgd_steps=5)
    dataset = data.load("mnist")
    clean = table[table["attack"] == CLEAN].set_index("index")
    assert sorted(clean["label"]) == list("0123456789")
    for index, row in clean.iterrows():
        assert not (dataset.test_labels[:index] == int(row["label"])).any()
    for row in table.itertuples():
        pixels, original = torch.tensor(row.pixels), dataset.test_inputs[row.index][0]
        assert (pixels - original).abs().max() <= row.epsilon + 1e-6
        assert trained.model(pixels[None]).argmax().item() == int(row.predicted)


def test_a_ladder_attacks_the_same_images_at_every_radius(trained: TrainedModel) -> None:
    table = robustness.ladder(trained, epsilons=[0.05, 0.2], pgd_steps=5)
    dataset = data.load("mnist")
    assert table.groupby("epsilon").size().to_dict() == {0.0: 10, 0.05: 10, 0.2: 10}
    for epsilon, rows in table.groupby("epsilon"):
        indices = rows["index"].tolist()
        assert [dataset.test_labels[index].item() for index in indices] == list(range(10))
        images = dataset.test_inputs[indices]
        if epsilon:
            images = attacks.pgd(trained.model, images, torch.arange(10), epsilon=epsilon, steps=5)
        assert torch.equal(torch.tensor(rows["pixels"].tolist()), images[:, 0])
        shares = torch.tensor(rows["probabilities"].tolist())
        torch.testing.assert_close(
            shares.log(), trained.model(images).log_softmax(1).detach(), atol=1e-5, rtol=1e-5
        )
        assert rows["predicted"].tolist() == [rows["classes"].iloc[0][row.argmax()] for row in shares]


def made_up(released: float = 0.6) -> pd.DataFrame:
    """Two seeds and two β, every accuracy known."""
    levels = {
        (RELEASED, CLEAN): {0.0: (0.9, 0.9)},
        (CORRECTED, CLEAN): {0.0: (0.9, 0.9)},
        (RELEASED, FGSM): {0.1: (0.3, released), 1.0: (0.05, 0.2)},
        (RELEASED, ONE_GRADIENT_PGD): {0.1: (0.1, 0.3), 1.0: (0.0, 0.05)},
        (CORRECTED, FGSM): {0.1: (0.3, 0.25), 1.0: (0.0, 0.0)},
        (CORRECTED, PGD): {0.1: (0.1, 0.12), 1.0: (0.0, 0.01)},
    }
    rows = [
        (seed, beta, protocol, attack, epsilon, values[int(beta > 0)] + 0.01 * seed * (1 + (beta > 0)))
        for (protocol, attack), radii in levels.items()
        for epsilon, values in radii.items()
        for beta in (0.0, 5.0)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["seed", "beta", "protocol", "attack", "epsilon", "accuracy"])


def test_key_numbers_of_known_curves() -> None:
    numbers = robustness.key_numbers(made_up(), epsilon=0.0774, epsilon_broken=0.9)
    assert (numbers["epsilon"], numbers["epsilon_broken"]) == (0.1, 1.0)
    assert numbers["released_fgsm_ce"] == pytest.approx(0.305)
    assert numbers["released_fgsm_best"] == pytest.approx(0.61)
    assert numbers["released_fgsm_beta"] == 5.0
    assert numbers["released_fgsm_gain"] == pytest.approx(0.305)
    # Paired differences 0.30 and 0.31: mean ± t(0.975; 1) · sd / √2 = 0.305 ± 12.706 · 0.005.
    assert numbers["released_fgsm_gain_low"] == pytest.approx(0.305 - 12.7062 * 0.005, abs=1e-5)
    assert numbers["pgd_gain"] == pytest.approx(0.025)
    assert numbers["pgd_best_clean"] == pytest.approx(0.91)
    assert numbers["pgd_broken"] == pytest.approx(0.03)


def test_key_numbers_need_cross_entropy_and_another_weight() -> None:
    for beta in (0.0, 5.0):
        with pytest.raises(InputError, match="beta"):
            robustness.key_numbers(made_up().query(f"beta == {beta}"), epsilon=0.1, epsilon_broken=1.0)


def test_attack_failures_are_networks_above_chance_at_the_largest_radius() -> None:
    failures = robustness.attack_failures(made_up(), guessing=0.1).set_index(["protocol", "attack"])
    assert failures["networks"].tolist() == [4, 4, 4, 4]
    assert failures.loc[(RELEASED, FGSM), "failed"] == 2
    assert failures["failed"].sum() == 2
    assert robustness.attack_failures(made_up().query("epsilon < 0.5"), guessing=0.1).empty


def test_chance_is_the_share_of_the_commonest_class() -> None:
    # 1,135 of the 10,000 test images are ones.
    assert robustness.chance("mnist") == pytest.approx(0.1135)
    assert robustness.chance("mnist", 200) == pytest.approx(0.115, abs=0.005)


def test_nearest_radius_is_nearest_by_ratio() -> None:
    table = pd.DataFrame({"epsilon": [0.0, 0.01, 0.1, 1.0]})
    assert [robustness.nearest_radius(table, e) for e in (0.001, 0.03, 0.04, 0.5)] == [0.01, 0.01, 0.1, 1.0]
    with pytest.raises(InputError, match="at least one radius above 0"):
        robustness.nearest_radius(table[:1], 0.1)


def test_readings_leave_the_baselines_own_gain_open() -> None:
    readings = robustness.readings(made_up(), 0.1)
    assert readings.loc[readings["beta"] == 0, "gain"].isna().all()
    assert not readings.loc[readings["beta"] > 0, "gain"].isna().any()
    assert np.allclose(readings["seeds"], 2)


def test_the_curves_of_a_stack_attack_each_level_by_itself() -> None:
    tree = [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]]
    config = TrainingConfig(
        hierarchy=tree, beta=0.1, K=10.0, width=30, depth=1, epochs=2, train_size=2000, device="cpu"
    )
    trained, epsilons = train(config), [0.02, 0.05]
    table = robustness.curves(trained, epsilons=epsilons, pgd_steps=3, test_size=200)
    assert table.groupby("level").size().to_dict() == {1: 10, 2: 10, 3: 10}
    assert (table["images"] == 200).all()
    dataset = data.load("mnist", test_size=200)
    images = dataset.test_inputs
    group = [{c: place for place, members in enumerate(level) for c in members} for level in tree]
    rows = [torch.tensor([g[c] for c in dataset.test_labels.tolist()]) for g in group] + [dataset.test_labels]
    for level, labels in enumerate(rows, start=1):
        part = trained.model.up_to(level - 1)

        def accuracy(attacked: Tensor, labels: Tensor = labels, level: int = level) -> float:
            logits = trained.model.levels(attacked)[level - 1][1]
            return (logits.argmax(1) == labels).double().mean().item()

        found = table[table["level"] == level].set_index(["protocol", "attack", "epsilon"])["accuracy"]
        for protocol in (RELEASED, CORRECTED):
            assert found[protocol, CLEAN, 0.0] == pytest.approx(accuracy(images))
        climbed = attacks.pgd_curve(part, images, labels, epsilons, steps=3).double().mean(1).tolist()
        for epsilon, left in zip(epsilons, climbed, strict=True):
            stepped = attacks.fgsm(part, images, labels, epsilon=epsilon)
            assert found[CORRECTED, FGSM, epsilon] == pytest.approx(accuracy(stepped))
            assert found[CORRECTED, PGD, epsilon] == pytest.approx(left)
            halves = [
                attacks.released_fgsm(
                    part,
                    images[start : start + 100],
                    torch.stack(rows[:level])[:, start : start + 100],
                    epsilon=epsilon,
                    beta=0.1,
                    K=10.0,
                    form="raw",
                )
                for start in (0, 100)
            ]
            assert found[RELEASED, FGSM, epsilon] == pytest.approx(accuracy(torch.cat(halves)))
    assert table[table["attack"] != CLEAN].groupby("level")["accuracy"].mean().nunique() == 3


def test_curves_of_several_levels_are_not_read_as_if_they_were_one() -> None:
    rows = [
        (level, beta, seed, "corrected", attack, epsilon, 0.5)
        for level in (1, 2)
        for beta in (0.0, 1.0)
        for seed in (0, 1)
        for attack, epsilon in (("no attack", 0.0), ("PGD", 1.0))
    ]
    table = pd.DataFrame(rows, columns=["level", "beta", "seed", "protocol", "attack", "epsilon", "accuracy"])
    one = table[table["level"] == 2]
    assert len(robustness.readings(one, 1.0)) == 4
    assert robustness.attack_failures(one, 0.1)["networks"].tolist() == [4]
    for read in (robustness.readings, robustness.attack_failures):
        with pytest.raises(InputError, match=r"must be those of one level of a stack, not of the levels \[1, 2\]"):
            read(table, 0.1)
