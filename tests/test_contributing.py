"""The examples of CONTRIBUTING.md, run as they stand on a copy of the library."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from isorepro import paths

pytestmark = pytest.mark.slow

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (paths.ROOT / "CONTRIBUTING.md").read_text(), flags=re.M | re.S)

# What the tests ask of the script's names when it has come to its end.
TOLD = """
import json, torch
from isorepro import losses, training

h, x, y = (torch.rand(3, 6, 2, dtype=torch.float64) * 3).unbind()
y = torch.tensor([0, 1, 0, 0, 1, 2])
term = losses.isometry(h, losses.pairwise_distances(x), y, beta=2.0, K=3.0, form="absolute")
attacked = mine.random_corners(trained.model, images, labels, epsilon=0.1)

def mixed(mixup):
    from isorepro.methods import Clean, Course, Method

    method, points = Method.of(mixup, {"share": 0.8}), torch.rand(20, 1, 4, 4)
    model, labels = training.Stack(16, (3,), width=5, depth=1), torch.arange(20) % 3
    batch = Course.begin(method, points, 7).batch(0, model, points, labels, Clean(model, points))
    state = batch.generator.get_state()
    loss = method.loss(batch).item()
    batch.generator.set_state(state)
    other, part = torch.randperm(20, generator=batch.generator), 0.8 * torch.rand((), generator=batch.generator)
    logits = model((1 - part) * points + part * points[other])
    return [loss, logits.tolist(), labels.tolist(), other.tolist(), part.item()]


print(json.dumps({
    "datasets": [model.config.dataset for model in models],
    "test_accuracy": [model.history["test_accuracy"].iloc[-1] for model in models],
    "same_points": bool((mine.two_spirals(3).train_inputs == mine.two_spirals(3).train_inputs).all()),
    "h": h.tolist(), "x": x.tolist(), "y": y.tolist(), "term": float(term),
    "isometry": absolute.history["isometry"].tolist(),
    "moved": [float((attacked - images).abs().max()), float(attacked.min()), float(attacked.max())],
    "corners": corners.double().mean(1).tolist(), "pgd": pgd.double().mean(1).tolist(),
    "clean": float(attacks.correct_predictions(trained.model, images, labels).double().mean()),
    "checks": {check.name: check.passed for check in checks},
    "figure": str(results.folder),
    "measures": measures.to_csv(index=False),
    "mixup": mixed(mine.mixup),
    "methods": [[model.config.method, model.config.options] for model in compared],
    "told_apart": [sorted(set(table["method"])) for table in (curves, kept, badges)],
    "learnt": [model.history["test_accuracy"].iloc[-1] for model in compared],
    "judged": judged.fillna("").to_dict("records"),
}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script of all examples ends with, run on a copy of the library with its changes."""
    folder = tmp_path_factory.mktemp("contributing")
    shutil.copytree(paths.ROOT / "isorepro", folder / "isorepro", ignore=shutil.ignore_patterns("__pycache__"))
    mine, script = [], []
    for kind, text in BLOCKS:
        if kind == "diff":
            subprocess.run(["git", "apply", "--recount", "-"], cwd=folder, input=text, text=True, check=True)
        elif kind == "python":
            (mine if text.startswith("# mine.py\n") else script).append(text)
    (folder / "mine.py").write_text("\n".join(mine))
    (folder / "script.py").write_text("\n".join(script) + TOLD)
    places = {"ISOREPRO_ROOT": paths.ROOT, "ISOREPRO_OUTPUT": folder / "output", "PYTHONPATH": folder}
    environment = os.environ | {name: str(place) for name, place in places.items()}
    environment.pop("GIT_DIR", None)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_dataset_of_ones_own_is_trained_on_and_measured(told: dict[str, Any]) -> None:
    assert told["datasets"] == ["two_spirals"] * 4
    assert told["same_points"]
    assert min(told["test_accuracy"]) > 0.5


def test_a_form_of_ones_own_computes_its_formula(told: dict[str, Any]) -> None:
    d_h, d_x, y = cdist(told["h"], told["h"]), cdist(told["x"], told["x"]), told["y"]
    pairs = [
        abs(3.0 * d_h[i, j] - d_x[i, j]) if y[i] == y[j] else 0.0 for i in range(len(y)) for j in range(len(y))
    ]
    assert told["term"] == pytest.approx(2.0 * np.mean(pairs))
    assert told["isometry"][-1] < told["isometry"][0]


def test_a_method_of_ones_own_computes_its_formula_and_is_swept_and_measured(told: dict[str, Any]) -> None:
    loss, logits, labels, other, part = told["mixup"]
    log_shares = np.array(logits) - logsumexp(logits, axis=1, keepdims=True)
    targets = (1 - part) * np.eye(3)[labels] + part * np.eye(3)[labels][other]
    assert loss == pytest.approx(-(targets * log_shares).sum(1).mean(), rel=1e-5)
    assert told["methods"] == [["isometry", []]] * 2 + [["mine:mixup", [["share", 0.8]]]] * 2
    assert told["told_apart"] == [["isometry", "mine:mixup"]] * 3
    assert min(told["learnt"]) > 0.5


def test_an_attack_of_ones_own_stays_in_the_ball_and_is_checked(told: dict[str, Any]) -> None:
    moved, low, high = told["moved"]
    assert moved == pytest.approx(0.1)
    assert (low, high) == (0, 1)
    assert told["clean"] >= told["corners"][0] >= told["corners"][1] >= told["corners"][2]
    # Random corners are weaker than PGD, and the checks compare the two.
    assert np.mean(told["corners"]) > np.mean(told["pgd"])
    assert told["checks"]["PGD at most FGSM"]
    assert told["checks"]["inside the ball"]


def test_a_figure_of_ones_own_is_written_with_its_data(told: dict[str, Any]) -> None:
    folder = Path(told["figure"])
    for kind in ("svg", "png", "html", "csv"):
        assert (folder / f"kept.{kind}").stat().st_size > 0
    assert len(pd.read_csv(folder / "kept.csv")) == 4
    assert "Rank correlation of distances within a spiral" in (folder / "kept.html").read_text()


def test_a_claim_of_ones_own_is_judged_by_its_table(told: dict[str, Any]) -> None:
    (row,) = told["judged"]
    measures = pd.read_csv(Path(told["figure"]) / "measures_by_seed.csv")
    within = measures.query("relation == 'within' and measure == 'spearman'").set_index(["beta", "seed"])["value"]
    assert row["effect"] == pytest.approx((within[10.0] - within[0.0]).mean())
    assert (row["statement"], row["seeds"]) == ("C9.1", 2)
    assert row["verdict"] in ("holds", "does not hold", "undecided")
