"""Speed as ratios, each pair measured in turn in one run: ``make bench``.

* a training step against a bare loop of the same mathematics (goal: at most 1.25 ×);
* the ten-radius PGD-40 curve against ten separate foolbox runs with the same steps (goal: at least 3 × faster,
  at equal or lower accuracy);
* a full-batch step of the paper's three-level torus stack with distances within pieces only, those of the inputs
  computed once, against all distances anew in each step.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import foolbox
import numpy as np
import torch
from pyautoattack import AutoAttack
from torch import nn
from torch.nn.functional import cross_entropy

from isorepro import attacks, data, ensemble, hierarchy
from isorepro.losses import ClassBlocks
from isorepro.training import TrainingConfig, build, step, train

CONFIG = TrainingConfig(beta=0.1, K=10.0, device="cpu")
EPSILONS = np.logspace(-2, 0, 10).tolist()


def in_turn(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Run two functions A B A B … and return the medians of their seconds and of the ratio A / B."""
    pairs = []
    for _ in range(rounds + 1):
        seconds = []
        for function in (first, second):
            started = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - started)
        pairs.append(seconds)
    pairs = pairs[1:]  # the first round warms up
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def training_step(batches: int = 300) -> dict[str, float]:
    dataset = data.load("mnist", train_size=10_000)
    inputs, labels = dataset.train_inputs, dataset.train_labels
    order = torch.randperm(len(inputs))[: batches * 100].split(100) * (batches // 100)

    model = build(CONFIG, inputs, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    bare = nn.Sequential(
        nn.Linear(784, 100), nn.Tanh(), *(nn.Sequential(nn.Linear(100, 100), nn.Tanh()) for _ in range(4))
    )
    head = nn.Linear(100, 10)
    bare_optimizer = torch.optim.Adam([*bare.parameters(), *head.parameters()], lr=1e-3, fused=True)
    flat = inputs.flatten(1)

    def ours() -> None:
        for batch in order:
            step(model, optimizer, inputs[batch], labels[None, batch], CONFIG)

    def bare_loop() -> None:
        for batch in order:
            x, y = flat[batch], labels[batch]
            h = bare(x)
            same = y[:, None] == y[None, :]
            penalty = 0.1 * (10.0 * torch.cdist(h, h) * same - torch.cdist(x, x) * same).square().mean()
            loss = cross_entropy(head(h), y) + penalty
            bare_optimizer.zero_grad()
            loss.backward()
            bare_optimizer.step()

    a, b, ratio = in_turn(ours, bare_loop, rounds=7)
    return {"ours_ms": 1000 * a / len(order), "bare_loop_ms": 1000 * b / len(order), "ratio": ratio}


def pgd_curve(images: int = 4000, steps: int = 40) -> dict[str, object]:
    model = train(TrainingConfig(beta=0.1, K=10.0, epochs=3, device="cpu")).model
    dataset = data.load("mnist", test_size=images)
    x, y = dataset.test_inputs, dataset.test_labels
    accuracy: dict[str, list[float]] = {}

    def ours() -> None:
        curve = attacks.nested_accuracy_curve(partial(attacks.pgd, steps=steps), model, x, y, EPSILONS)
        accuracy["ours"] = curve.double().mean(1).tolist()

    def separate() -> None:
        attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / steps, steps=steps)
        target = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        rows = []
        for epsilon in EPSILONS:
            fooled = torch.cat(
                [
                    attack(target, a, b, epsilons=epsilon)[2]
                    for a, b in zip(x.split(500), y.split(500), strict=True)
                ]
            )
            rows.append(1 - fooled.double().mean().item())
        accuracy["foolbox"] = rows

    a, b, ratio = in_turn(separate, ours, rounds=3)
    return {"foolbox_s": a, "ours_s": b, "ratio": ratio, "epsilon": EPSILONS, "accuracy": accuracy}


def class_blocks(steps: int = 20) -> dict[str, float]:
    config = TrainingConfig(
        dataset="torus",
        hierarchy=[[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1], [2, 3], [4, 5], [6, 7]]],
        beta=10.0,
        width=20,
        batch_size=1600,
        device="cpu",
    )
    dataset = data.load("torus")
    inputs = dataset.train_inputs
    labels = hierarchy.level_labels(config.hierarchy, dataset.train_labels, 8)
    blocks = [ClassBlocks.of(inputs, row) for row in labels]
    model = build(config, inputs, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def run(known: list[ClassBlocks] | None) -> None:
        for _ in range(steps):
            step(model, optimizer, inputs, labels, config, known)

    a, b, ratio = in_turn(partial(run, None), partial(run, blocks), rounds=5)
    return {"all_distances_ms": 1000 * a / steps, "class_blocks_ms": 1000 * b / steps, "ratio": ratio}


def autoattack_curve(images: int = 50) -> dict[str, object]:
    model = train(TrainingConfig(beta=0.1, K=10.0, epochs=3, device="cpu")).model
    dataset = data.load("mnist", test_size=images)
    x, y = dataset.test_inputs, dataset.test_labels
    radii = [0.0167, 0.0278, 0.0464, 0.0774, 0.1292, 0.2154, 0.5]
    accuracy: dict[str, list[float]] = {}

    def ours() -> None:
        accuracy["ours"] = ensemble.autoattack_curve(model, x, y, radii).double().mean(1).tolist()

    def separate() -> None:
        rows = []
        for epsilon in radii:
            evaluation = AutoAttack(model, eps=epsilon, seed=0, device=torch.device("cpu"), version="standard")
            found, _ = evaluation.run_standard_evaluation(x, y)
            rows.append(float(attacks.correct_predictions(model, found, y).double().mean()))
        accuracy["separate"] = rows

    a, b, ratio = in_turn(separate, ours, rounds=2)
    return {"separate_s": a, "ours_s": b, "ratio": ratio, "epsilon": radii, "accuracy": accuracy}


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    measured: dict[str, object] = {
        "machine": f"{platform.machine()}, {platform.system()}, torch {torch.__version__}, one thread",
        "training_step": training_step(),
        "pgd_curve": pgd_curve(),
        "class_blocks": class_blocks(),
        "autoattack_curve": autoattack_curve(),
    }
    text = json.dumps(measured, indent=2)
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n")


if __name__ == "__main__":
    main()
