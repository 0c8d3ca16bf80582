import copy
import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pytest
import torch

from isorepro import data, ensemble, health, paths, robustness, sources, stacks, store, sweep
from isorepro.errors import DataError, InputError
from isorepro.training import TrainedModel, TrainingConfig, train

BASE = TrainingConfig(epochs=1, train_size=300, K=10.0, device="cpu")
CONFIGS = sweep.grid(BASE, beta=[0.0, 1.0], seed=[0, 1])
EPSILONS = [0.05, 0.1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; the unpacked data is shared."""
    folder = tmp_path / "output"
    folder.mkdir()
    (output / "data").mkdir(exist_ok=True)
    (folder / "data").symlink_to(output / "data")
    monkeypatch.setenv("ISOREPRO_OUTPUT", str(folder))
    return folder / "cache"


def same(a: TrainedModel, b: TrainedModel) -> bool:
    states = a.model.state_dict(), b.model.state_dict()
    return a.history.equals(b.history) and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def files(cache: Path) -> dict[str, int]:
    kept = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.name: path.stat().st_mtime_ns for path in kept}


def test_grid_is_the_product_last_field_fastest() -> None:
    assert [(c.beta, c.seed) for c in CONFIGS] == [(0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)]
    with pytest.raises(InputError, match="unknown field of TrainingConfig 'betas'"):
        sweep.grid(BASE, betas=[1.0])
    with pytest.raises(InputError, match="seed: must not hold a value twice"):
        sweep.grid(BASE, seed=[0, 1, 0])
    with pytest.raises(InputError, match=r"beta: must not hold a value twice, not \[1, 2.0, 1.0\]"):
        sweep.grid(BASE, beta=[1, 2.0, 1.0])
    assert sweep.grid(BASE, beta=[1.0], seed=[]) == []


def test_a_grid_of_hierarchies_takes_lists_and_refuses_one_twice() -> None:
    pairs, halves = [[[0, 1], [2, 3], [4, 5], [6, 7]]], [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    configs = sweep.grid(BASE, hierarchy=[[], halves, pairs], seed=[0, 1])
    assert [len(config.hierarchy[0]) if config.hierarchy else 0 for config in configs] == [0, 0, 2, 2, 4, 4]
    with pytest.raises(InputError, match=r"hierarchy: must not hold a value twice, not \[\[\[\[0"):
        sweep.grid(BASE, hierarchy=[pairs, halves, pairs])
    with pytest.raises(InputError, match="hierarchy: must not hold a value twice"):
        sweep.grid(BASE, hierarchy=[pairs, [tuple(map(tuple, pairs[0]))]])


STACKED = TrainingConfig(
    dataset="torus",
    hierarchy=[[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1], [2, 3], [4, 5], [6, 7]]],
    width=8,
    depth=2,
    epochs=1,
    beta=0.1,
    device="cpu",
)


@pytest.mark.parametrize(
    "fields",
    [{}, {"shared_head": True, "readout": "reversed"}, {"adam": "anew", "gradients": "shifted by a layer"}],
)
def test_a_kept_stack_is_the_stack_at_every_level(cache: Path, fields: dict[str, object]) -> None:
    config = TrainingConfig(**STACKED.model_dump() | fields)
    (fresh,) = sweep.train_all([config], jobs=1)
    written = files(cache)
    (kept,) = sweep.train_all([config], jobs=1)
    assert files(cache) == written
    assert len(written) == 1
    assert kept.model is not fresh.model
    read_again = sweep._read_model(next((cache / "models").iterdir()))
    assert read_again is not None
    assert read_again.config == kept.config == config
    assert same(fresh, kept)
    inputs = torch.randn(5, 3)
    for one, other in zip(fresh.model.levels(inputs), kept.model.levels(inputs), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert len({id(head) for head in kept.model.heads}) == (1 if "shared_head" in fields else 3)
    assert kept.model.architecture == fresh.model.architecture


def test_hierarchies_that_differ_are_a_column_of_text() -> None:
    configs = sweep.grid(STACKED, hierarchy=[[], STACKED.hierarchy[:1]])
    models = sweep.train_all(configs, jobs=1)
    table = sweep.histories(models)
    halves = "[[[0,1,2,3],[4,5,6,7]]]"
    assert list(table["hierarchy"]) == ["", halves, halves]
    assert list(table["level"]) == [1, 1, 2]
    measured = sweep.measure(models, stacks.measures, jobs=1, test_size=100)
    assert set(measured["hierarchy"]) == {"", halves}
    assert measured.groupby("hierarchy")["level"].max().to_dict() == {"": 1, halves: 2}
    assert "hierarchy" not in sweep.histories(models[1:]).columns


def in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sweeps with several jobs start workers at once, as if every task took longer than that."""
    monkeypatch.setattr(store, "_workers_run", [])
    monkeypatch.setattr(store, "START_UP", -1.0)


def test_parallel_serial_and_kept_networks_have_the_same_bits(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_workers(monkeypatch)
    parallel = sweep.train_all(CONFIGS, jobs=2)
    written = files(cache)
    kept = sweep.train_all(CONFIGS, jobs=2)
    assert files(cache) == written
    assert len(written) == 4
    shutil.rmtree(cache)
    serial = sweep.train_all(CONFIGS, jobs=1)
    torch.set_num_threads(1)
    for config, one, two, three in zip(CONFIGS, parallel, kept, serial, strict=True):
        assert one.config == two.config == config
        assert same(one, two)
        assert same(one, three)
        assert same(one, train(config))


def test_attacks_and_their_tables_have_the_same_bits_whatever_the_number_of_processes(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = sweep.train_all(CONFIGS, jobs=1)
    in_workers(monkeypatch)
    made: list[tuple[dict[str, str], bytes]] = []
    for jobs in (1, 2, 3):
        curves = sweep.measure(models, robustness.curves, jobs=jobs, epsilons=EPSILONS, pgd_steps=4, test_size=100)
        options = {"epsilons": EPSILONS, "images": 12, "pgd_steps": 4, "iterations": 5, "queries": 30}
        beside = ensemble.sources(models)
        attacked = sweep.measure(models, ensemble.curves, beside=beside, jobs=jobs, **options)
        kept = {path.name: json.loads(path.read_text())["columns"] for path in (cache / "tables").glob("[!.]*")}
        made.append((kept, (curves.to_csv() + attacked.to_csv()).encode()))
        shutil.rmtree(cache / "tables")
    assert len(made[0][0]) == 8
    assert made[0] == made[1] == made[2]


def test_equal_networks_are_trained_once_and_returned_under_the_config_asked_for(cache: Path) -> None:
    asked = [TrainingConfig(**BASE.model_dump() | {"beta": 0.0, "K": K}) for K in (1.0, 10.0)]
    first, second = sweep.train_all(asked, jobs=1)
    assert len(files(cache)) == 1
    assert (first.config.K, second.config.K) == (1.0, 10.0)
    assert same(first, second)


def test_measurements_are_kept_by_function_and_parameters(cache: Path) -> None:
    models = sweep.train_all(CONFIGS, jobs=1)
    fresh = sweep.measure(models, robustness.curves, jobs=2, epsilons=EPSILONS, pgd_steps=2, test_size=100)
    written = files(cache)
    kept = sweep.measure(models, robustness.curves, jobs=2, epsilons=EPSILONS, pgd_steps=2, test_size=100)
    pd.testing.assert_frame_equal(fresh, kept, check_exact=True)
    assert files(cache) == written
    assert list(fresh.columns[:4]) == ["form", "beta", "K", "seed"]
    alone = robustness.curves(models[2], epsilons=EPSILONS, pgd_steps=2, test_size=100)
    of_third = fresh.query("beta == 1 and seed == 0").iloc[:, 4:].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_third, alone, check_exact=True)
    sweep.measure(models, robustness.curves, jobs=1, epsilons=EPSILONS, pgd_steps=3, test_size=100)
    assert len(files(cache)) == len(written) + 4


def test_a_network_beside_is_handed_over_and_is_part_of_the_key(cache: Path) -> None:
    models = sweep.train_all(CONFIGS[:2], jobs=1)
    options = {"epsilon": 0.1, "epsilons": [0.1], "images": 20, "pgd_steps": 2, "queries": 0}
    each = [models[1], None]
    found = sweep.measure(models, health.attack_checks, beside=each, jobs=2, **options)
    written = len(files(cache))
    alone = [health.attack_checks(model, other, **options) for model, other in zip(models, each, strict=True)]
    assert found["measured"].tolist() == pd.concat(alone)["measured"].tolist()
    assert found["check"].eq("no transfer is better").sum() == 2  # of the first network, both protocols
    sweep.measure(models, health.attack_checks, beside=[models[0], None], jobs=1, **options)
    assert len(files(cache)) == written + 1
    with pytest.raises(InputError, match="needs as many networks beside as networks, 2, not 1"):
        sweep.measure(models, health.attack_checks, beside=[None], **options)


def test_an_interrupted_sweep_keeps_what_was_finished(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def dies_at_the_third(config: TrainingConfig) -> TrainedModel:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(config.seed)
        return train(config)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            sweep.train_all(CONFIGS, jobs=1)
    written = files(cache)
    assert len(written) == 2
    sweep.train_all(CONFIGS, jobs=1)
    assert len(files(cache)) == 4
    assert written.items() <= files(cache).items()


TIMED = """
import os
import time

import pandas as pd


def takes_long(model):
    ended = time.process_time() + 0.3
    while time.process_time() < ended:
        pass
    return pd.DataFrame({"a": [1.0]})


def is_killed(model, how):
    if model.config.seed == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), how)
    return pd.DataFrame({"a": [1.0]})
"""


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of a user's own with measurements whose end is known."""
    (tmp_path / "timed_of_mine.py").write_text(TIMED)
    monkeypatch.syspath_prepend(tmp_path)
    # Workers that are there already would not find it.
    joblib.externals.loky.get_reusable_executor().shutdown()
    yield importlib.import_module("timed_of_mine")
    del sys.modules["timed_of_mine"]


def test_a_sweep_says_how_many_results_were_kept(
    cache: Path, timed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").touch()
    monkeypatch.setenv(store.KEPT, str(tmp_path / "kept"))
    monkeypatch.setenv(store.BEGAN, "0")
    first = sweep.train_all(CONFIGS[:1], jobs=1)
    sweep.train_all(CONFIGS, jobs=1)
    monkeypatch.setenv(store.BEGAN, str(time.time_ns()))
    measure = functools.partial(sweep.measure, first, timed.takes_long, jobs=1)
    for _ in range(2):
        sweep.train_all(CONFIGS[:1], jobs=1)
        measure()
        monkeypatch.setenv(store.BEGAN, str(time.time_ns()))
    told = [line.split() for line in (tmp_path / "kept").read_text().splitlines()]
    assert [line[:2] for line in told] == [["1", "0"], ["4", "1"], ["1", "1"], ["1", "0"], ["1", "1"], ["1", "1"]]
    # What this run made itself, for another notebook, was not saved; what was there before was.
    took = pytest.approx(first[0].processor_seconds, abs=1e-3)
    assert [float(line[2]) for line in told] == [0, 0, took, 0, took, pytest.approx(0.3, rel=0.3)]


def test_what_a_session_has_set_moves_no_number(cache: Path) -> None:
    """Trained, measured and read back with another default dtype and precision, all is the same bit for bit."""
    options = {"jobs": 1, "epsilons": EPSILONS, "pgd_steps": 2, "test_size": 50}
    found = []
    for dtype, precision in ((torch.float32, "highest"), (torch.float64, "medium")):
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        try:
            models = sweep.train_all(CONFIGS[:2], jobs=1)
            found.append((models, sweep.measure(models, robustness.curves, **options)))
            assert same(models[0], sweep.train_all(CONFIGS[:1], jobs=1)[0])
            assert (torch.get_default_dtype(), torch.get_float32_matmul_precision()) == (dtype, precision)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_float32_matmul_precision("highest")
        shutil.rmtree(cache)
    assert all(map(same, *(models for models, _ in found)))
    pd.testing.assert_frame_equal(found[0][1], found[1][1], check_exact=True)


def test_a_worker_that_is_killed_is_told_with_what_to_try(
    cache: Path, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_workers_run", [0])
    models = sweep.train_all(CONFIGS[:2], jobs=1)
    for how, said in ((9, r"signal 9 \(Killed\); .*memory.*--jobs 1.*smaller sizes"), (6, r"signal 6 \(\w+\)")):
        message = rf"^networks measured \(is_killed\): a worker ended with {said}; finished work is kept$"
        with pytest.raises(RuntimeError, match=message):
            sweep.measure(models, timed.is_killed, how=how, jobs=2)
    assert len(list((cache / "tables").iterdir())) == 2


def test_two_sweeps_at_once_compute_nothing_twice(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained_here: list[tuple[str, TrainingConfig]] = []
    both_at_work = threading.Barrier(2, timeout=30)

    def counted(config: TrainingConfig) -> TrainedModel:
        thread = threading.current_thread().name
        if thread not in [name for name, _ in trained_here]:
            both_at_work.wait()
        trained_here.append((thread, config))
        return train(config)

    monkeypatch.setattr(sweep, "train", counted)
    sweep.model_key(CONFIGS[0])  # Python 3.11 cannot parse source in two threads at once
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: sweep.train_all(CONFIGS, jobs=1), range(2))
    assert sorted(map(repr, (config for _, config in trained_here))) == sorted(map(repr, CONFIGS))
    assert len({thread for thread, _ in trained_here}) == 2
    assert [model.config for model in second] == CONFIGS
    for one, other in zip(first, second, strict=True):
        assert same(one, other)


def test_what_a_killed_process_was_at_is_free_again(cache: Path) -> None:
    key = sweep.model_key(CONFIGS[0])
    program = (
        "import sys, time; from isorepro import store\n"
        "lock = store.Store('models', 'safetensors', None, None, None).lock(sys.argv[1]); lock.acquire()\n"
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, key], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sweep.train_all, CONFIGS[:1], jobs=1)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)
        holder.kill()
        assert waiting.result(timeout=30)[0].config == CONFIGS[0]
    holder.wait()
    holder.stdout.close()


WORKERS = """
import os, time
from isorepro import store
store.START_UP = -1.0  # as if every task took longer than workers take to start
tasks = {str(number): (os.getpid, (), {}) for number in range(4)}
print(*{pid for _, pid in store._finished(iter(tasks.items()), 4, jobs=2)}, flush=True)
time.sleep(60)
"""


def test_workers_end_when_the_process_that_started_them_is_killed(gone: Callable[..., bool]) -> None:
    parent = subprocess.Popen([sys.executable, "-c", WORKERS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers
    assert parent.pid not in workers
    for pid in workers:
        os.kill(pid, 0)  # raises if it has ended
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(*workers)


def test_a_sweep_uses_the_processors_it_is_given_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "share"
    monkeypatch.setenv(store.SHARE, str(share))
    in_workers(monkeypatch)
    share.write_text("1")
    tasks: dict[str, store.Task] = {str(number): (os.getpid, (), {}) for number in range(5)}
    finished = store._finished(iter(tasks.items()), 5)
    assert [next(finished)[1] for _ in range(2)] == [os.getpid()] * 2
    share.write_text("2")
    assert os.getpid() not in {pid for _, pid in finished}


@pytest.mark.parametrize("harm", ["truncated", "bit flipped", "history changed"])
def test_a_damaged_network_is_said_and_trained_again(
    cache: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    (before,) = sweep.train_all(CONFIGS[:1], jobs=1)
    (path,) = (cache / "models").iterdir()
    content = path.read_bytes()
    if harm == "truncated":
        path.write_bytes(content[:-10])
    elif harm == "bit flipped":
        path.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
    else:
        path.write_bytes(content.replace(b"cross_entropy", b"cross_entr0py"))
    (after,) = sweep.train_all(CONFIGS[:1], jobs=1)
    assert same(before, after)
    assert f"the kept network {path} is damaged and is trained again" in capsys.readouterr().err
    sweep.train_all(CONFIGS[:1], jobs=1)
    assert capsys.readouterr().err == ""


def test_a_damaged_table_is_said_and_measured_again(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = sweep.train_all(CONFIGS[:1], jobs=1)
    options = {"jobs": 1, "epsilons": EPSILONS, "pgd_steps": 1, "test_size": 50}
    before = sweep.measure(models, robustness.curves, **options)
    (path,) = (cache / "tables").iterdir()
    envelope = json.loads(path.read_text())
    path.write_text(json.dumps(envelope | {"columns": envelope["columns"].replace("0.", "1.", 1)}))
    after = sweep.measure(models, robustness.curves, **options)
    pd.testing.assert_frame_equal(before, after, check_exact=True)
    assert f"the kept table {path} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "old", "new", "trains_again", "measures_again"),
    [
        ("losses.py", "mse_loss(d_h, d_x", "mse_loss(d_h, 1 * d_x", True, True),
        ("models.py", "nn.Tanh()", "nn.ReLU()", True, True),
        ("data.py", "255", "256", True, True),
        ("attacks.py", "gradient.sign()", "gradient", False, True),
        ("losses.py", "# ", "# another word ", False, False),
        ("attacks.py", "Fast gradient sign method", "The fast gradient sign method", False, False),
        ("style.py", "WIDE, NARROW = 8.2", "WIDE, NARROW = 9.9", False, False),
        ("errors.py", "allowed are", "allowed:", False, False),
        ("results.py", "Download", "Get", False, False),
    ],
)
def test_what_invalidates(
    monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, trains_again: bool, measures_again: bool
) -> None:
    name = importlib.import_module(f"isorepro.{file.removesuffix('.py')}").__name__
    before = [sources.reach([f"isorepro.{m}"]).fingerprint for m in ("training", "robustness")]
    text = sources.LOADED[name].decode()
    # A text without such a place would let the test pass for nothing.
    text = text + "# " if old == "# " and old not in text else text
    assert old in text
    monkeypatch.setitem(sources.LOADED, name, text.replace(old, new).encode())
    after = [sources.reach([f"isorepro.{m}"]).fingerprint for m in ("training", "robustness")]
    assert [a != b for a, b in zip(before, after, strict=True)] == [trains_again, measures_again]


NESTED = {
    "__init__.py": "from nested.named import value",
    "named.py": "value = 1",
    "start.py": "",
    "deep/__init__.py": "from .again import shown",
    "deep/again.py": "shown = 1",
    "deep/far.py": "from ..beside import thing\ndef far(): from . import inner",
    "deep/inner.py": "",
    "deep/other.py": "",
    "beside.py": "thing = 1",
    "stars.py": "from nested.deep import *",
    "types.py": "",
}


@pytest.mark.parametrize(
    ("code", "reached"),
    [
        ("", ""),
        ("import nested.deep.other", "deep deep.again deep.other"),
        ("import nested.deep.other as o", "deep deep.again deep.other"),
        ("from nested import beside", "beside"),
        ("from nested.beside import thing", "beside"),
        ("from .beside import *", "beside"),
        ("from nested import value", ""),
        ("from nested.deep import shown", "deep deep.again"),
        ("from .deep import other as o, shown", "deep deep.again deep.other"),
        ("def f():\n    import nested.deep.far", "deep deep.again deep.far deep.inner beside"),
        ("if TYPE_CHECKING:\n    from .types import Some", "types"),
        ("import nested\nnested.deep.other.f()", "deep deep.again deep.other"),
        ("from nested import deep as d\nx = [d.other.f]", "deep deep.again deep.other"),
        ("from .stars import *", "stars deep deep.again deep.far deep.inner deep.other beside"),
        ("try:\n    import absent, torch\nexcept ImportError:\n    pass", ""),
    ],
)
def test_a_changed_line_in_any_module_that_is_reached_changes_the_key_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reached: str
) -> None:
    folder = tmp_path / "nested"
    for file, text in {**NESTED, "start.py": code}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = sources.reach(["nested.start"])
    assert before.doubts == ()
    expected = {"nested", "nested.named", "nested.start", *(f"nested.{name}" for name in reached.split())}
    assert before.code.keys() == expected
    for file in NESTED:
        path = folder / file
        text = path.read_text()
        path.write_text(f'"""A docstring."""\n\n{text}  # and a comment')
        assert sources.reach(["nested.start"]).fingerprint == before.fingerprint
        path.write_text(f"{text}\nadded = 1")
        name = ".".join(("nested", *Path(file).with_suffix("").parts)).removesuffix(".__init__")
        assert (sources.reach(["nested.start"]).fingerprint != before.fingerprint) == (name in expected), name
        path.write_text(text)
    assert "nested" not in sys.modules


@pytest.mark.parametrize(
    "code", ["import nested.absent", "from nested import absent", "from .absent import x", "from ... import x"]
)
def test_an_import_that_leads_nowhere_is_refused_in_ours_and_a_doubt_in_yours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "__init__.py").write_text("present = 1")
    (tmp_path / "nested" / "start.py").write_text(code)
    # What an editor leaves is no module.
    (tmp_path / "nested" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "nested" / ".ipynb_checkpoints" / "start-checkpoint.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    doubts = sources.reach(["nested.start"]).doubts
    assert [doubt for doubt in doubts if "is not found" in doubt] or "..." in code  # as where an import stands in
    monkeypatch.setattr(sources, "FOLLOWED", {"nested"})
    sources._parsed.cache_clear()
    assert sources.modules() == ["nested", "nested.start"]
    with pytest.raises(
        InputError, match=r"nested.start needs .*, which is not found|nested.start, line 1: .*beyond"
    ):
        sources.reach(["nested.start"])


REALLY_IMPORTED = """
import importlib, json, sys
from isorepro import sources
found = {}
for name in sys.argv[1:]:
    for loaded in [loaded for loaded in sys.modules if sources.is_ours(loaded) and loaded != "isorepro.sources"]:
        del sys.modules[loaded]
    module = importlib.import_module(name)
    if name.endswith(".training"):
        module.train(module.TrainingConfig(dataset="torus", width=4, epochs=1, beta=1.0))
    reach = sources.reach([name])
    found[name] = [[loaded for loaded in sys.modules if sources.is_ours(loaded)], [*reach.code], reach.doubts]
print(json.dumps(found))
"""


def test_a_key_tells_every_module_of_ours_that_is_imported() -> None:
    computing = sorted({*sources.modules()} - sources.NOT_NUMERICAL, key=lambda name: name != "isorepro.training")
    told = subprocess.run(
        [sys.executable, "-c", REALLY_IMPORTED, *computing], check=True, capture_output=True, text=True
    )
    found = json.loads(told.stdout)
    assert found.keys() == set(computing)
    for name, (imported, reached, _) in found.items():
        assert set(imported) - sources.NOT_NUMERICAL <= set(reached), name
    # Of the first alone: what was loaded once more may differ.
    assert found["isorepro.training"][2] == []
    assert len(found["isorepro.training"][0]) > 6


def test_every_field_and_every_version_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainingConfig(beta=1.0, device="cpu")
    other = {
        "train_size": 10,
        "method": "noise",
        "form": "normalised",
        "beta": 2.0,
        "K": 2.0,
        "features": "convolutional",
        "width": 50,
        "depth": 2,
        "epochs": 1,
        "batch_size": 10,
        "learning_rate": 0.1,
        "hierarchy": [[[0], [1]]],
        "nested": False,
        "gradients": "all earlier blocks",
        "shared_head": True,
        "readout": "reversed",
        "adam": "anew",
        "log_every": 2,
        "seed": 1,
    }
    assert other.keys() == TrainingConfig.model_fields.keys() - {"dataset", "options", "device"}
    keys = {sweep.model_key(TrainingConfig(**config.model_dump() | {k: v})) for k, v in other.items()}
    assert len(keys | {sweep.model_key(config)}) == len(other) + 1
    before = sweep.model_key(config)
    monkeypatch.setattr(store, "version", lambda name: "another")
    store.library_versions.cache_clear()
    assert sweep.model_key(config) != before
    store.library_versions.cache_clear()


def test_a_default_number_of_workers_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(store.JOBS, "many")
    with pytest.raises(InputError, match="ISOREPRO_JOBS: must be a whole number above 0, not 'many'"):
        sweep.train_all(CONFIGS[:1])


def test_what_cannot_be_kept_is_refused(trained: TrainedModel) -> None:
    with pytest.raises(InputError, match="at least one network"):
        sweep.measure([], robustness.curves)
    with pytest.raises(InputError, match="must be a function of a module"):
        sweep.measure([trained], lambda model: pd.DataFrame())
    with pytest.raises(InputError, match="must be plain data"):
        sweep.measure([trained], robustness.curves, epsilons=torch.ones(2))
    with pytest.raises(InputError, match="jobs: must be at least 1, not 0"):
        sweep.train_all(CONFIGS[:1], jobs=0)


SPOTS = """
import torch

from isorepro import data


def spots(seed):
    points = torch.rand(60, 2, generator=torch.Generator().manual_seed(seed))
    labels = (points[:, 0] > 0.5).long()
    return data.Dataset("spots", points, labels, points, labels, ("left", "right"))
"""


def test_a_dataset_added_from_outside_is_known_to_workers_and_a_changed_one_is_not_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sweep.model_key(BASE)
    monkeypatch.setattr(data, "DATASETS", dict(data.DATASETS))
    path = tmp_path / "spots_outside.py"
    path.write_text(SPOTS)
    monkeypatch.syspath_prepend(tmp_path)
    data.DATASETS["spots"] = importlib.import_module("spots_outside").spots
    assert sweep.model_key(BASE) == before
    configs = sweep.grid(TrainingConfig(dataset="spots", width=5, epochs=2, device="cpu"), seed=[0, 1])
    here = [train(config) for config in configs]
    # New workers, as if every task took longer than they take to start.
    joblib.externals.loky.get_reusable_executor().shutdown()
    monkeypatch.setattr(store, "_workers_run", [])
    monkeypatch.setattr(store, "START_UP", -1.0)
    models = sweep.train_all(configs, jobs=2)
    assert store._workers_run
    assert all(map(same, models, here))
    assert len(sweep.measure(models, robustness.curves, epsilons=EPSILONS, pgd_steps=1, jobs=2)) > 0


MINE = """
from functools import lru_cache, partial, wraps
from pathlib import Path

import pandas as pd
import torch

import helper_of_mine
from isorepro import data

HERE = Path(__file__).parent
MORE = 0


def wrapped(function):
    @wraps(function)
    def call(seed):
        return function(seed)

    return call


def bare(function):
    return lambda seed: function(seed)


@data.reads("points.csv")
@lru_cache
def spots(seed):
    points = torch.tensor(pd.read_csv(HERE / "points.csv").to_numpy()).float()
    labels = (points[:, 0] > helper_of_mine.EDGE + MORE).long()
    return data.Dataset("spots", points, labels, points, labels, ("left", "right"))


class Set:
    def spots(self, seed):
        return spots(seed)


named = wrapped(spots)
another = wrapped(spots)
unnamed = bare(spots)
partly = partial(spots)
bound = Set().spots
data.DATASETS["spots"] = spots


def counts(model, name="spots"):
    return pd.DataFrame({"right": [int(data.load(name).train_labels.sum())]})
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of a user's own with a dataset that reads a file and a helper."""
    monkeypatch.setattr(data, "DATASETS", dict(data.DATASETS))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "points_of_mine.py").write_text(MINE)
    (tmp_path / "helper_of_mine.py").write_text("EDGE = 0.5")
    (tmp_path / "points.csv").write_text("x,y\n" + "".join(f"{x / 20},{x % 3}\n" for x in range(20)))
    yield importlib.import_module("points_of_mine")
    for name in ("points_of_mine", "helper_of_mine"):
        sys.modules.pop(name, None)
    for read in [read for read in sources.READ if read[0] == "points_of_mine"]:
        del sources.READ[read]


def rights(model: TrainedModel, jobs: int = 1) -> int:
    """How many points are right of the edge, measured by the user's module."""
    function = sys.modules["points_of_mine"].counts
    return int(sweep.measure([model], function, jobs=jobs)["right"].item())


SPOTTED = TrainingConfig(dataset="spots", width=2, depth=1, epochs=1, device="cpu")


@pytest.mark.parametrize("file", ["points_of_mine.py", "helper_of_mine.py"])
def test_code_edited_while_it_is_loaded_is_told_and_nothing_is_kept_until_it_is_reloaded(
    mine: Any,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
) -> None:
    in_workers(monkeypatch)
    (model,) = sweep.train_all([SPOTTED], jobs=2)
    assert (rights(model, jobs=2), len(files(cache))) == (9, 2)
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(f"{text}  # a comment")
    assert (rights(model), len(files(cache))) == (9, 2)
    assert "not" not in capsys.readouterr().err
    # As long as before, in the same second: bytecode of the old text is not taken for that of the new one.
    (tmp_path / file).write_text(text.replace("MORE = 0", "MORE = .25").replace("EDGE = 0.5", "EDGE = 0.7"))
    sweep.train_all([SPOTTED], jobs=2)
    assert (rights(model, jobs=2), len(files(cache))) == (9, 2)
    told = capsys.readouterr().err
    assert told.count(f"1 result(s) will not be kept: {tmp_path / file} is not what was loaded: reload ") == 2
    importlib.reload(sys.modules[Path(file).stem])
    if file == "helper_of_mine.py":
        assert (rights(model), len(files(cache))) == (9, 2)
        assert "points_of_mine may hold what helper_of_mine was before" in capsys.readouterr().err
        importlib.reload(mine)
    # By workers too, which had loaded what was there before.
    (anew,) = sweep.train_all([SPOTTED], jobs=2)
    assert (rights(anew, jobs=2), len(files(cache))) == (5 - (file == "points_of_mine.py") * 1, 4)
    assert "not" not in capsys.readouterr().err


def test_a_file_that_is_read_is_part_of_the_key_if_it_is_declared_and_else_nothing_is_kept(
    mine: Any, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, key = tmp_path / "points.csv", sweep.model_key(SPOTTED)
    (model,) = sweep.train_all([SPOTTED], jobs=1)
    points = path.read_text()
    path.write_text(points.replace("0.45", "0.95"))
    # The function remembers what it has read.
    assert (rights(model), len(files(cache))) == (9, 1)
    assert (
        f"1 result(s) are not kept: {path} was changed after points_of_mine had read it" in capsys.readouterr().err
    )
    mine.spots.cache_clear()
    assert (rights(model), len(files(cache))) == (10, 2)
    assert sweep.model_key(SPOTTED) != key
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}: No such file .*points_of_mine says that it reads it"):
        sweep.train_all([SPOTTED])
    path.write_text(points)
    (tmp_path / "points_of_mine.py").write_text(MINE.replace('@data.reads("points.csv")\n', ""))
    importlib.reload(mine)
    sweep.train_all([SPOTTED], jobs=1)
    assert len(files(cache)) == 2
    assert f"points_of_mine reads {path} and does not say so, by data.reads" in capsys.readouterr().err
    (tmp_path / "points_of_mine.py").write_text(MINE.replace('reads("points.csv")', "reads(HERE)"))
    importlib.reload(mine)
    with pytest.raises(InputError, match="reads must be given files as text"):
        sweep.train_all([SPOTTED])


@pytest.mark.parametrize(
    "more",
    [
        # Beside the module, and not to be had here.
        "try:\n    import optional_of_mine\nexcept ImportError:\n    pass",
        "try:\n    from .helper_of_mine import EDGE\nexcept ImportError:\n    from helper_of_mine import EDGE",
        # As matplotlib reads its list of fonts.
        "import os\n(Path(os.environ['MPLCONFIGDIR']) / 'fonts.json').read_text()",
    ],
)
def test_what_is_optional_and_the_caches_of_libraries_keep_no_result_from_being_kept(
    mine: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    (tmp_path / "optional_of_mine.py").write_text("import a_library_that_is_not_installed")
    (tmp_path / "fonts.json").touch()
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    (tmp_path / "points_of_mine.py").write_text(MINE + more)
    importlib.reload(mine)
    sweep.train_all([SPOTTED], jobs=1)
    assert len(files(cache)) == 1


def test_a_folder_that_is_read_counts_with_all_its_files(mine: Any, tmp_path: Path) -> None:
    (tmp_path / "points_of_mine.py").write_text(MINE.replace('"points.csv")\n', '"points.csv", "more")\n'))
    importlib.reload(mine)
    (tmp_path / "more" / "inner").mkdir(parents=True)
    keys = []
    for name, text in (("a", "1"), ("inner/b", "1"), ("inner/b", "2")):
        (tmp_path / "more" / name).write_text(text)
        keys.append(sweep.model_key(SPOTTED))
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("named", "is another function than the one given"),
        ("unnamed", "bare.<locals>.<lambda> must be a function of a module"),
        ("partly", "must be a function of a module"),
        ("bound", "points_of_mine.Set.spots is another function than the one given"),
    ],
)
def test_a_function_that_its_module_does_not_hold_by_its_name_is_refused(mine: Any, name: str, fault: str) -> None:
    data.DATASETS["spots"] = getattr(mine, name)
    with pytest.raises(InputError, match=f"^dataset: .*{re.escape(fault)}"):
        sweep.train_all([SPOTTED])
    with pytest.raises(InputError, match=f"^measure: .*{re.escape(fault)}"):
        sweep._measure_key([], getattr(mine, name), {})


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("importlib.import_module('helper_of_mine')", "points_of_mine calls importlib.import_module"),
        ("exec('MORE = 0')", "points_of_mine calls exec"),
        ("from isorepro_compiled import x", "isorepro_compiled is compiled"),
    ],
)
def test_what_cannot_be_followed_is_computed_and_not_kept(
    mine: Any, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, fault: str
) -> None:
    shutil.copy(sys.modules["_json"].__file__, tmp_path / f"isorepro_compiled{EXTENSION_SUFFIXES[0]}")
    text = f"{MINE}\nimport importlib\ndef never():\n    {code}\n"
    (tmp_path / "points_of_mine.py").write_text(text)
    importlib.reload(mine)
    (model,) = sweep.train_all([SPOTTED], jobs=1)
    assert (rights(model), len(files(cache))) == (9, 0)
    assert capsys.readouterr().err.count(f"1 result(s) will not be kept: {fault}") == 2


def test_what_is_measured_counts_with_its_weights(trained: TrainedModel) -> None:
    key = sweep._measure_key([trained], robustness.curves, {})
    changed = replace(trained, model=copy.deepcopy(trained.model))
    assert sweep._measure_key([changed], robustness.curves, {}) == key
    with torch.no_grad():
        next(changed.model.parameters())[0] += 1
    assert sweep._measure_key([changed], robustness.curves, {}) != key


def test_a_dataset_that_a_measurement_is_told_by_name_is_part_of_its_key(mine: Any, trained: TrainedModel) -> None:
    told, other = (sweep._modules_measured([trained], robustness.curves, {"x": [n]}) for n in ("spots", "spot"))
    assert told - other == {mine.__name__}


def test_a_worker_with_other_code_does_not_compute_and_one_with_other_datasets_forgets_them(mine: Any) -> None:
    reach = sources.reach(["points_of_mine"])
    data.DATASETS["torus"] = mine.spots
    (dataset, faults) = store.as_asked(reach, sweep._with_datasets, {}, data.load, "torus")
    assert (dataset.name, faults) == ("torus", [])
    other = {**reach.code, "helper_of_mine": ("another", "code")}
    with pytest.raises(InputError, match=r"^helper_of_mine: other code is loaded"):
        store.as_asked(replace(reach, code=other), len, "ab")


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "file"
    paths.write_atomically(path, "old")

    def fails_half_way(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fails_half_way)
    with pytest.raises(OSError, match="No space left"):
        paths.write_atomically(path, "newer")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_threads_that_write_a_file_at_once_do_not_take_each_others_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, write = threading.Barrier(2), Path.write_bytes

    def meet(self: Path, content: bytes) -> int:
        written = write(self, content)
        both.wait(timeout=10)  # both drafts are there before either is put in place
        return written

    monkeypatch.setattr(Path, "write_bytes", meet)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda text: paths.write_atomically(tmp_path / "folder/file", text), ["one", "two"]))
    assert (tmp_path / "folder/file").read_text() in ("one", "two")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def test_short_tasks_stay_in_this_process_and_long_ones_go_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: dict[str, store.Task] = {str(number): (os.getpid, (), {}) for number in range(4)}
    monkeypatch.setattr(store, "_workers_run", [])
    assert {pid for _, pid in store._finished(iter(tasks.items()), 4, jobs=2)} == {os.getpid()}
    monkeypatch.setattr(store, "START_UP", -1.0)  # as if every task took longer than workers take to start
    assert os.getpid() not in {pid for _, pid in store._finished(iter(tasks.items()), 4, jobs=2)}
    assert store._workers_run


def test_histories_carry_the_columns_of_their_networks() -> None:
    models = sweep.train_all(CONFIGS[:2], jobs=1)
    table = sweep.histories(models)
    assert len(table) == sum(len(model.history) for model in models)
    for model in models:
        rows = table[(table["beta"] == model.config.beta) & (table["seed"] == model.config.seed)]
        assert rows["cross_entropy"].tolist() == model.history["cross_entropy"].tolist()
