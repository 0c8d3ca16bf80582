"""Measure speed, each thing beside what it is compared with, in turn and in one run: ``make bench``.

Prints the table of ratios and records every round in ``benchmarks/speed.json``, which the book's page "Speed"
shows. It takes about 20 minutes on a machine that has nothing else to do. What is compared:

* a training step with a bare loop of the same mathematics;
* a training step with one of the released design, in our own words: numbers of 64 bits, the distances of all pairs
  of images computed beforehand, those of a batch taken from them, Adam as torch has it by default. At 10,000
  images, since 60,000 need 28.8 GB;
* a training step with local isometry and one with adversarial training, as on the page that compares methods;
* curves of FGSM, PGD and AutoAttack over several radii with foolbox and pyautoattack called for each radius;
* a full-batch step of the paper's three-level torus stack, with distances within pieces and with all distances;
* how a step grows with the batch and with the number of images, how many networks more processes train, the memory
  of either design, and whole profiles.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import foolbox
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from isorepro import attacks, data, ensemble, hierarchy, paths, provenance, speed, store, sweep
from isorepro import profiles as runs
from isorepro.losses import (
    ClassBlocks,
    Form,
    class_members,
    isometry,
    pairwise_distances,
    squared_norms,
)
from isorepro.methods import Course, Method
from isorepro.progress import say
from isorepro.speed import OURS
from isorepro.training import TrainingConfig, build, epoch_means, step, train

CONFIG = TrainingConfig(beta=0.1, K=10.0, device="cpu")
TEN_RADII = [0.01, 0.0167, 0.0278, 0.0464, 0.0774, 0.1292, 0.2154, 0.3594, 0.5995, 1.0]
SEVEN_RADII = [0.0167, 0.0278, 0.0464, 0.0774, 0.1292, 0.2154, 0.5]

Rows = list[dict[str, Any]]


def in_turn(
    measure: str,
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    units: int = 1,
    size: int = 0,
    warm: bool = True,
) -> Rows:
    """Run every way once in each round, after a round that is not counted, and return the seconds of a unit."""
    rows: Rows = []
    for number in range(-warm, rounds):
        for way, function in ways.items():
            started = time.perf_counter()
            function()
            seconds = (time.perf_counter() - started) / units
            if number >= 0:
                rows.append({"measure": measure, "way": way, "size": size, "round": number, "seconds": seconds})
    return rows


def images(count: int) -> tuple[Tensor, Tensor]:
    dataset = data.load("mnist", train_size=count if count < 60_000 else None)
    return dataset.train_inputs, dataset.train_labels


def our_steps(count: int, steps: int, batch_size: int = 100, **changed: Any) -> Callable[[], None]:
    config = TrainingConfig(**CONFIG.model_dump() | changed)
    inputs, labels = images(count)
    model = build(config, inputs, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    batches = torch.randint(count, (steps, batch_size))
    trained = [model.trained_by(0, config.gradients)]
    norms = squared_norms(inputs)
    now = Course.begin(Method.of(config.method, config.options), inputs, config.seed)

    def run() -> None:
        # As in an epoch of train.
        measured, drawn = [], labels[None, batches.flatten()]
        within = [class_members(row, batch_size) for row in drawn] if config.beta else []
        for batch in batches:
            part = inputs.index_select(0, batch), labels[None].index_select(1, batch)
            own = [ClassBlocks.among(part[0], norms[batch], *next(members)) for members in within]
            measured.append(step(model, optimizer, *part, config, own, trained, now))
        epoch_means(measured, drawn)

    return run


def bare_network() -> tuple[nn.Module, nn.Module]:
    """Return the paper's network of torch's own layers: up to the representation, and the head."""
    widths = [784, *[100] * 5]
    layers = [layer for sizes in itertools.pairwise(widths) for layer in (nn.Linear(*sizes), nn.Tanh())]
    return nn.Sequential(*layers), nn.Linear(100, 10)


def released_steps(count: int, steps: int) -> Callable[[], None]:
    inputs, labels = images(count)
    flat = inputs.double().flatten(1)
    distances = torch.cdist(flat, flat)
    body, head = (part.double() for part in bare_network())
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3)
    batches = torch.randint(count, (steps, 100))

    def run() -> None:
        for batch in batches:
            x, y = flat[batch], labels[batch]
            d_x = distances[batch][:, batch]
            h = body(x)
            same = (y[:, None] == y[None, :]).double()
            penalty = 0.1 * (10.0 * torch.cdist(h, h) * same - d_x * same).square().mean()
            loss = cross_entropy(head(h), y) + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def training_step() -> Iterator[Rows]:
    steps = 300
    inputs, labels = images(10_000)
    flat = inputs.flatten(1)
    bare, head = bare_network()
    optimizer = torch.optim.Adam([*bare.parameters(), *head.parameters()], lr=1e-3, fused=True)
    batches = torch.randint(len(inputs), (steps, 100))

    def bare_loop() -> None:
        for batch in batches:
            x, y = flat[batch], labels[batch]
            h = bare(x)
            same = y[:, None] == y[None, :]
            penalty = 0.1 * (10.0 * torch.cdist(h, h) * same - torch.cdist(x, x) * same).square().mean()
            loss = cross_entropy(head(h), y) + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    yield in_turn(speed.STEP, {OURS: our_steps(10_000, steps), "bare loop": bare_loop}, 9, units=steps)


def against_released() -> Iterator[Rows]:
    steps = 100
    for count in (2_500, 5_000, 10_000):
        started = time.perf_counter()
        released = released_steps(count, steps)
        seconds = time.perf_counter() - started
        yield [{"measure": "preparation", "way": speed.RELEASED, "size": count, "round": 0, "seconds": seconds}]
        ways = {OURS: our_steps(count, steps), speed.RELEASED: released}
        yield in_turn(speed.BY_IMAGES, ways, 7, units=steps, size=count)
    for count in (30_000, 60_000):
        yield in_turn(speed.BY_IMAGES, {OURS: our_steps(count, steps)}, 7, units=steps, size=count)


def method_step() -> Iterator[Rows]:
    steps = 100
    settings = runs.parameters("beyond_methods")["settings"].default
    ways = {OURS: settings["local isometry"], speed.ADVERSARIAL: settings["adversarial training"]}
    timed = {way: our_steps(10_000, steps, **{"beta": 0.0, **fields}) for way, fields in ways.items()}
    yield in_turn(speed.METHOD_STEP, timed, 9, units=steps)


def by_batch() -> Iterator[Rows]:
    for size in (25, 50, 100, 200, 400, 800, 1600):
        steps = max(10, 5000 // size)
        ways = {
            speed.WITH_TERM: our_steps(10_000, steps, size),
            speed.WITHOUT_TERM: our_steps(10_000, steps, size, beta=0.0),
        }
        yield in_turn(speed.BY_BATCH, ways, 7, units=steps, size=size)


def memory() -> Iterator[Rows]:
    for way, count in ((speed.RELEASED, 2_500), (speed.RELEASED, 5_000), (speed.RELEASED, 10_000)):
        yield [_memory(way, count)]
    for count in (10_000, 60_000):
        yield [_memory(OURS, count)]


def _memory(way: str, count: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--memory", way, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"measure": "peak memory", "way": way, "size": count, "round": 0, "bytes": int(done.stdout)}


def _peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    if sys.platform == "linux":
        # What getrusage tells of a new process may be that of the one that started it.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fgsm_curve() -> Iterator[Rows]:
    model, x, y = _target(2000)
    target = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    found: dict[str, list[float]] = {}

    def ours() -> None:
        curve = attacks.accuracy_curve(attacks.fgsm, model, x, y, TEN_RADII, batch_size=500)
        found[OURS] = curve.double().mean(1).tolist()

    def separate() -> None:
        attack = foolbox.attacks.FGSM(random_start=False)
        found["foolbox"] = _by_foolbox(attack, target, x, y)

    rows = in_turn(speed.FGSM_CURVE, {OURS: ours, "foolbox": separate}, 7)
    yield rows + _accuracies(speed.FGSM_CURVE, TEN_RADII, found)


def pgd_curve() -> Iterator[Rows]:
    model, x, y = _target(2000)
    target = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    found: dict[str, list[float]] = {}

    def ours() -> None:
        found[OURS] = attacks.pgd_curve(model, x, y, TEN_RADII, steps=40).double().mean(1).tolist()

    def separate() -> None:
        attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / 40, steps=40)
        found["foolbox"] = _by_foolbox(attack, target, x, y)

    rows = in_turn(speed.PGD_CURVE, {OURS: ours, "foolbox": separate}, 5)
    yield rows + _accuracies(speed.PGD_CURVE, TEN_RADII, found)


def autoattack_curve() -> Iterator[Rows]:
    model, x, y = _target(50)
    found: dict[str, list[float]] = {}

    def ours() -> None:
        found[OURS] = ensemble.autoattack_curve(model, x, y, SEVEN_RADII).double().mean(1).tolist()

    def separate() -> None:
        rows = []
        for epsilon in SEVEN_RADII:
            attack = AutoAttack(model, eps=epsilon, seed=0, device=torch.device("cpu"), version="standard")
            attacked, _ = attack.run_standard_evaluation(x, y)
            rows.append(float(attacks.correct_predictions(model, attacked, y).double().mean()))
        found["pyautoattack"] = rows

    rows = in_turn(speed.AUTOATTACK_CURVE, {OURS: ours, "pyautoattack": separate}, 3, warm=False)
    yield rows + _accuracies(speed.AUTOATTACK_CURVE, SEVEN_RADII, found)


def _target(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    model = train(TrainingConfig(beta=0.1, K=10.0, epochs=3, device="cpu")).model
    dataset = data.load("mnist", test_size=count)
    return model, dataset.test_inputs, dataset.test_labels


def _by_foolbox(attack: Any, target: Any, x: Tensor, y: Tensor) -> list[float]:
    pairs = list(zip(x.split(500), y.split(500), strict=True))
    fooled = [torch.cat([attack(target, *pair, epsilons=epsilon)[2] for pair in pairs]) for epsilon in TEN_RADII]
    return [1 - row.double().mean().item() for row in fooled]


def _accuracies(measure: str, radii: list[float], found: Mapping[str, list[float]]) -> Rows:
    return [
        {"measure": measure, "way": way, "epsilon": epsilon, "accuracy": accuracy}
        for way, accuracies in found.items()
        for epsilon, accuracy in zip(radii, accuracies, strict=True)
    ]


def torus_step() -> Iterator[Rows]:
    steps = 20
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

    class AllPairs(ClassBlocks):
        """Pairs of different classes computed as well, and made zero."""

        def isometry(self, representation: Tensor, *, beta: float, K: float = 1.0, form: Form = "raw") -> Tensor:
            return isometry(representation, self.distances, self.members, beta=beta, K=K, form=form)

    def all_pairs() -> list[ClassBlocks]:
        distances = pairwise_distances(inputs)
        return [AllPairs(row, None, distances, len(row)) for row in labels]

    model = build(config, inputs, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    now = Course.begin(Method.of(config.method), inputs, config.seed)

    def run(known: Callable[[], list[ClassBlocks]]) -> None:
        for _ in range(steps):
            step(model, optimizer, inputs, labels, config, known(), None, now)

    ways = {OURS: lambda: run(lambda: blocks), "all distances": lambda: run(all_pairs)}
    yield in_turn(speed.TORUS_STEP, ways, 7, units=steps)


def by_processors() -> Iterator[Rows]:
    seeds = iter(range(10**6))
    networks = 8

    def training(jobs: int) -> Callable[[], object]:
        def run() -> None:
            # Networks that were trained before would be kept: each round has its own.
            config = TrainingConfig(beta=0.1, K=10.0, train_size=20_000, device="cpu")
            sweep.train_all(sweep.grid(config, seed=[next(seeds) for _ in range(networks)]), jobs=jobs)

        return run

    counts = [2**power for power in range(store.default_jobs().bit_length())]
    with tempfile.TemporaryDirectory() as folder, _output_in(folder):
        for jobs in counts:
            yield in_turn(speed.BY_PROCESSORS, {OURS: training(jobs)}, 3, units=networks, size=jobs)


def profiles() -> Iterator[Rows]:
    jobs = store.default_jobs()
    for profile, ways in (
        ("smoke", {"one processor": 1, OURS: jobs, "again": jobs}),
        ("quick", {OURS: jobs, "again": jobs}),
    ):
        folders: dict[int, Any] = {count: tempfile.TemporaryDirectory() for count in ways.values()}
        for way, count in ways.items():
            command = [sys.executable, "-m", "isorepro.cli", "reproduce", "--profile", profile]
            with _output_in(folders[count].name):
                started = time.perf_counter()
                done = subprocess.run([*command, "--jobs", str(count)], capture_output=True, text=True)
                seconds = time.perf_counter() - started
            if done.returncode:
                sys.exit(f"error: the profile {profile} failed:\n{done.stderr}")
            manifest = json.loads(Path(folders[count].name, profile, "manifest.json").read_text())
            records = manifest["notebooks"].values()
            yield [
                {
                    "measure": f"profile {profile}",
                    "way": way,
                    "size": count,
                    "round": 0,
                    "seconds": seconds,
                    "processor_seconds": sum(record["cpu_seconds"] for record in records),
                    "bytes": max(record["peak_memory_mib"] for record in records) * 2**20,
                }
            ]
        for folder in folders.values():
            folder.cleanup()


class _output_in:
    """Let all products go to another folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        self.before = os.environ.get("ISOREPRO_OUTPUT")
        os.environ["ISOREPRO_OUTPUT"] = self.folder

    def __exit__(self, *_: object) -> None:
        os.environ.pop("ISOREPRO_OUTPUT")
        if self.before is not None:
            os.environ["ISOREPRO_OUTPUT"] = self.before


PARTS: dict[str, Callable[[], Iterator[Rows]]] = {
    part.__name__: part
    for part in (
        *(training_step, against_released, method_step, by_batch, memory, torus_step),
        *(fgsm_curve, pgd_curve, autoattack_curve, by_processors, profiles),
    )
}


def write(record: dict[str, Any]) -> None:
    """Write the record, a measurement on each line."""
    rows = ",\n  ".join(json.dumps(row) for row in record["measured"])
    head = json.dumps({name: value for name, value in record.items() if name != "measured"}, indent=1)
    paths.write_atomically(speed.RECORD, f'{head[:-2]},\n "measured": [\n  {rows}\n ]\n}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts; print, record nothing")
    parser.add_argument("--memory", nargs=2, metavar=("WAY", "IMAGES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if given.memory:
        way, count = given.memory
        (our_steps if way == OURS else released_steps)(int(count), 20)()
        print(_peak())
        return
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"other work is going on (load {load:.1f}): the ratios hold, the seconds are too long")
    started, measured = time.perf_counter(), Rows()
    record = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": provenance.version_of(provenance.commit(), provenance.uncommitted_changes()),
        "processor": provenance.processor(),
        "processors": store.default_jobs(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "load_before": round(load, 2),
    }
    for name in given.only or PARTS:
        say(f"{name} ({time.perf_counter() - started:.0f} s gone)")
        for rows in PARTS[name]():
            measured += rows
            record |= {"minutes": round((time.perf_counter() - started) / 60, 1), "measured": measured}
            # Whole profiles take longest; a run that is ended among them leaves what it has. Not between a profile
            # and the same again: the book shows the record, and would be built anew.
            if not given.only and rows[0]["way"] == "again":
                write(record)
    if not given.only:
        say(f"recorded in {speed.RECORD}")
    print(speed.ratio_table(speed.ratios(speed.as_table(record))).to_string(index=False))


if __name__ == "__main__":
    main()
