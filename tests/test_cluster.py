"""Sweeps on real clusters of processes on this machine; Slurm itself is played by two small scripts."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import joblib
import nbformat
import pandas as pd
import psutil
import pytest
import torch

from isorepro import cluster, paths, profiles, runner, store, structure, sweep
from isorepro.errors import InputError
from isorepro.training import TrainedModel, TrainingConfig

CONFIGS = sweep.grid(
    TrainingConfig(dataset="torus", epochs=10, width=32, device="cpu"), beta=[0.0, 0.1, 1.0], seed=[0, 1]
)


class Machines:
    """A scheduler and workers, each a process with an output folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(folder / "address"))
        self.address = wait_for(self._told)

    def _told(self) -> str:
        try:
            return json.loads((self.folder / "address").read_text())["address"]
        except (FileNotFoundError, ValueError):
            return ""

    def _start(self, role: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{role}", *arguments]
        command += ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        environment = {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"} | environment
        environment["DASK_TEMPORARY_DIRECTORY"] = str(self.folder)
        with (self.folder / f"{role}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder, env=os.environ | environment, stdout=log, stderr=log)

    def add_worker(self, *arguments: str, **environment: str) -> int:
        """Start a worker and return its process id."""
        output = self.folder / f"worker-{len(self.workers)}"
        output.mkdir()
        process = self._start(
            "worker", self.address, "--no-nanny", *arguments, **{"ISOREPRO_OUTPUT": str(output)} | environment
        )
        self.workers[process.pid] = process
        return process.pid

    def kill(self, pid: int) -> None:
        self.workers[pid].kill()
        self.workers[pid].wait(10)

    def end(self) -> None:
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait(10)


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Return what a condition gives once it is true, within some seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A scheduler with two workers."""
    made = Machines(tmp_path_factory.mktemp("machines"))
    try:
        made.add_worker("--nthreads", "1")
        made.add_worker("--nthreads", "1")
        store._client(made.address).wait_for_workers(2, timeout=30)
        yield made
    finally:
        if store._client.cache_info().currsize:
            store._client(made.address).close()
        store._client.cache_clear()
        made.end()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder of the test's own."""
    monkeypatch.setenv("ISOREPRO_OUTPUT", str(tmp_path / "output"))
    monkeypatch.delenv(cluster.ADDRESS, raising=False)
    return tmp_path / "output"


def same(a: TrainedModel, b: TrainedModel) -> bool:
    states = a.model.state_dict(), b.model.state_dict()
    return a.history.equals(b.history) and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def in_time(call: Callable[[], Any], seconds: float = 30) -> Any:
    """Return or raise what a call does, which must end within some seconds."""
    ended: list[tuple[Any, BaseException | None]] = []

    def make() -> None:
        try:
            ended.append((call(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(seconds)
    assert ended, f"has not ended in {seconds} s"
    if ended[0][1]:
        raise ended[0][1]
    return ended[0][0]


def compute(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what a function gives as a sweep of so many equal tasks."""
    tasks: dict[str, store.Task] = {str(number): (function, arguments, {}) for number in range(count)}
    return [result for _, result in store._finished(iter(tasks.items()), count)]


@pytest.mark.slow
def test_with_a_worker_killed_the_tables_have_the_bits_of_a_run_without_cluster(
    machines: Machines, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("ISOREPRO_OUTPUT", str(tmp_path / "alone"))
        alone = sweep.train_all(CONFIGS, jobs=1)
        table_alone = sweep.measure(alone, structure.measures, jobs=1, test_size=100)
    monkeypatch.setenv(cluster.ADDRESS, machines.address)
    store.check_cluster(machines.address)
    client = store._client(machines.address)
    pids = wait_for(lambda: found if len(found := client.run(os.getpid)) == 2 else None)
    assert set(pids.values()) == set(machines.workers)
    # What a library would share out among processes stays in one.
    assert compute(1, joblib.effective_n_jobs, None) == [1]
    written: list[Path] = []
    killed: list[int] = []
    write = sweep._MODELS.write

    def kills_a_worker_at_work(path: Path, trained: TrainedModel) -> TrainedModel:
        if not written:
            busy = wait_for(lambda: [address for address, keys in client.processing().items() if keys])
            killed.append(pids[busy[0]])
            machines.kill(killed[0])
        written.append(path)
        return write(path, trained)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_MODELS", replace(sweep._MODELS, write=kills_a_worker_at_work))
        models = in_time(lambda: sweep.train_all(CONFIGS))
    assert killed
    assert len(written) == len(CONFIGS)
    for config, one, other in zip(CONFIGS, models, alone, strict=True):
        assert one.config == config
        assert same(one, other)
    # With one worker left, too, it is the worker that computes.
    assert set(compute(3, os.getpid)) == set(machines.workers) - set(killed)
    table = in_time(lambda: sweep.measure(models, structure.measures, test_size=100))
    pd.testing.assert_frame_equal(table, table_alone, check_exact=True)
    assert {path.parent for path in (folder / "cache").rglob("*.*") if path.suffix != ".lock"} == {
        folder / "cache" / "models",
        folder / "cache" / "tables",
    }
    assert sorted(path.name for path in (folder / "cache" / "models").iterdir()) == sorted(p.name for p in written)
    assert not list(machines.folder.rglob("cache"))


def start_odd_worker(machines: Machines, package: Path, **environment: str) -> tuple[int, str]:
    """Start a worker with another package; return its process id and its address."""
    client = store._client(machines.address)
    before = client.scheduler_info()["workers"].keys()
    pid = machines.add_worker("--nthreads", "2", PYTHONPATH=str(package.parent), **environment)
    (address,) = wait_for(lambda: client.scheduler_info()["workers"].keys() - before)
    return pid, address


@pytest.mark.usefixtures("folder")
def test_a_worker_that_would_compute_something_else_is_refused_before_and_in_a_sweep(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = Path(shutil.copytree(paths.ROOT / "isorepro", tmp_path / "isorepro"))
    shutil.copy(paths.ROOT / "pyproject.toml", tmp_path)
    text = (package / "losses.py").read_text()
    assert "mse_loss(d_h, d_x" in text
    (package / "losses.py").write_text(text.replace("mse_loss(d_h, d_x", "mse_loss(d_h, 1 * d_x"))
    pid, address = start_odd_worker(machines, package, OMP_NUM_THREADS="3")
    faults = (
        r"would not compute what this machine does \(code of isorepro: [0-9a-f]{12}, not [0-9a-f]{12}; "
        r"OMP_NUM_THREADS: 3, not 1; threads of the worker: 2, not 1\): start it anew .*--nthreads 1.*$"
    )
    try:
        with pytest.raises(InputError, match=f"^cluster: {address} {faults}"):
            store.check_cluster(machines.address)
        monkeypatch.setenv(cluster.ADDRESS, machines.address)
        with pytest.raises(InputError, match=f"^cluster: the worker on .* {faults}"):
            in_time(lambda: compute(20, time.sleep, 0.05))
    finally:
        machines.kill(pid)


@pytest.mark.usefixtures("folder")
def test_a_worker_without_the_code_is_refused_and_does_no_harm_if_it_comes_later(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "isorepro").mkdir()
    (tmp_path / "isorepro" / "__init__.py").touch()
    # An editable installation would find the modules all the same.
    for name in ("store", "cluster"):
        missing = f"No module named 'isorepro.{name}'"
        (tmp_path / "isorepro" / f"{name}.py").write_text(f"raise ModuleNotFoundError({missing!r})")
    pid, address = start_odd_worker(machines, tmp_path / "isorepro")
    try:
        with pytest.raises(
            InputError, match=rf"{address} would not .* \(.*No module named 'isorepro.store'.*\): "
        ):
            store.check_cluster(machines.address)
        monkeypatch.setenv(cluster.ADDRESS, machines.address)
        assert len(in_time(lambda: compute(20, time.sleep, 0.05))) == 20
    finally:
        machines.kill(pid)


class Unreadable:
    """What can be sent and not be received."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_a_task_that_fails_fails_the_sweep(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cluster.ADDRESS, machines.address)
    with pytest.raises(ValueError, match="no number"):
        in_time(lambda: compute(1, int, "no number"))
    # The others are not computed for nothing.
    tasks: dict[str, store.Task] = {str(number): (time.sleep, (0.3,), {}) for number in range(30)}
    client = store._client(machines.address)
    with pytest.raises(ValueError, match="no number"):
        in_time(lambda: list(store._finished(iter({"first": (int, ("no number",), {}), **tasks}.items()), 31)))
    wait_for(lambda: not any(client.processing().values()), seconds=3)
    # For what fails outside the task joblib alone would wait for ever.
    parallel = joblib.Parallel(backend=cluster.backend(client))
    with pytest.raises(Exception, match="deserialization"):
        in_time(lambda: parallel([joblib.delayed(len)(Unreadable())]))


def test_a_notebook_computes_on_the_cluster_of_its_run(
    machines: Machines, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(profiles, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(paths.ROOT))
    (tmp_path / "quick.yml").write_text("tiny: {}\n")
    body = """
import os
from isorepro import store
from isorepro.results import Results
tasks = {"one": (os.getpid, (), {}), "other": (os.getpid, (), {})}
Results("tiny").numbers(**dict(store._finished(iter(tasks.items()), 2)))
"""
    cells = [nbformat.v4.new_code_cell(metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(body)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "tiny.ipynb")
    planned = profiles.plan("quick")
    in_time(lambda: runner.run(planned, place=machines.address))
    numbers = json.loads((planned.folder / "results" / "tiny" / "numbers.json").read_text())
    assert numbers.keys() == {"one", "other"}
    assert set(numbers.values()) <= set(machines.workers)
    assert json.loads((planned.folder / "manifest.json").read_text())["notebooks"]["tiny"]["cluster"]


def test_a_cluster_without_workers_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machines = Machines(tmp_path)
    told = []

    def sends_for_a_worker(line: str) -> None:
        told.append(line)
        machines.add_worker("--nthreads", "1")

    monkeypatch.setattr(cluster, "tell", sends_for_a_worker)
    try:
        with in_time(lambda: cluster.client_of(machines.address)) as client:
            assert set(client.run(os.getpid).values()) == set(machines.workers)
    finally:
        machines.end()
    assert told == [f"the cluster at {machines.address} has no worker yet: waiting for one"]


SBATCH = """#!/usr/bin/env bash
# Plays Slurm: a job is a process group, its number that of the group.
if [ "$1" = --test-only ]; then
    cat > {folder}/tried.sh
    if grep -q -- "-p closed" {folder}/tried.sh; then
        echo "sbatch: error: invalid partition specified: closed" >&2
        echo "allocation failure: Invalid partition name specified" >&2
        exit 1
    fi
    exit
fi
cp "$1" {folder}/job-$$.sh
setsid bash {folder}/job-$$.sh >> {folder}/job.log 2>&1 &
echo $! >> {folder}/jobs
echo "Submitted batch job $!"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what was done by commands like those of Slurm, which start jobs here."""
    programs = {"sbatch": SBATCH.format(folder=tmp_path), "scancel": '#!/usr/bin/env bash\nkill -- "-$1"\n'}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(paths.ROOT))
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path))
    yield tmp_path
    for job in slurm_jobs(tmp_path):
        os.killpg(job, signal.SIGKILL)


def slurm_jobs(folder: Path) -> list[int]:
    """Return the jobs that go on."""
    told = (folder / "jobs").read_text().split() if (folder / "jobs").exists() else []
    alive = [
        found.pid for found in psutil.process_iter(["status"]) if found.info["status"] != psutil.STATUS_ZOMBIE
    ]
    groups = set()
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    return [int(job) for job in told if int(job) in groups]


LOOPBACK = socket.if_nameindex()[0][1]


def test_slurm_jobs_compute_are_replaced_and_end_with_the_run(
    slurm: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slurm / "own.yml").write_text(
        f"workers: 2\nmemory: 3\nminutes: 90\nqueue: short\naccount: ours\ninterface: {LOOPBACK}\n"
        "prologue: [export IS=there]\ndirectives: [--nice=10]\n"
    )
    place = cluster.where("slurm", slurm / "own.yml")
    seen: list[dict[str, dict[str, str]]] = []

    def is_interrupted() -> None:
        with cluster.scheduler(place) as address, cluster.client_of(str(address)) as client:
            client.wait_for_workers(2, timeout=30)
            (first, _) = slurm_jobs(slurm)
            os.killpg(first, signal.SIGKILL)
            wait_for(lambda: len(set(slurm_jobs(slurm)) - {first}) == 2)
            wait_for(lambda: len(client.run(os.getpid)) == 2)
            seen.append(client.run(lambda dask_worker: cluster.threads(dask_worker) | {"is": os.environ["IS"]}))
            raise KeyboardInterrupt

    with dask.config.set({"distributed.deploy.lost-worker-timeout": "100 ms"}), pytest.raises(KeyboardInterrupt):
        is_interrupted()
    assert list(seen[0].values()) == 2 * [cluster.ONE_THREAD | {"is": "there"}]
    wait_for(lambda: not slurm_jobs(slurm))
    script = next(slurm.glob("job-*.sh")).read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert [line for line in script.splitlines() if line.startswith("#")] == [
        "#!/usr/bin/env bash",
        "#SBATCH -J isorepro",
        "#SBATCH -p short",
        "#SBATCH -A ours",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --mem=3G",
        "#SBATCH -t 90",
        "#SBATCH --nice=10",
    ]
    assert "\nexport IS=there\nexport OMP_NUM_THREADS=1\n" in script
    worker = script.strip().splitlines()[-1]
    assert re.match(rf"{sys.executable} -m distributed.cli.dask_worker tcp://127.0.0.1:\d+ ", worker)
    assert " --nthreads 1 --memory-limit 3.00GiB --nanny " in worker
    # What was tried is what was submitted, but for the name of the worker.
    name = re.compile(r"--name \S+")
    assert name.sub("", (slurm / "tried.sh").read_text()) == name.sub("", script)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": "closed"}, "sbatch refuses the jobs: allocation failure: Invalid partition name specified"),
        ({"interface": "nowhere"}, "'nowhere' is not a valid network interface"),
    ],
)
def test_jobs_that_cannot_start_are_told_in_one_line(slurm: Path, options: dict[str, str], message: str) -> None:
    jobs = cluster.scheduler(cluster.Slurm(**{"interface": LOOPBACK} | options))
    with pytest.raises(InputError, match=f"^--cluster slurm: .*{message}") as refused, jobs:
        pass
    assert "\n" not in str(refused.value)
    assert not (slurm / "jobs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("wokers: 2", "unknown field of Slurm 'wokers': allowed are workers, .*; did you mean 'workers'?"),
        ("workers: 0", "Slurm.workers: must be greater than or equal to 1, not 0"),
        ("workers: two", "Slurm.workers: must be a valid integer, not 'two'"),
        ("queue: two words", r"Slurm.queue: String should match pattern .*, not 'two words'"),
        ("directives: [nice=10]", r"Slurm.directives: \[0\]: String should match pattern '\^-.+', not 'nice=10'"),
        ("prologue: module load python", "Slurm.prologue: must be a valid list, not 'module load python'"),
        ("workers: [", "is not valid YAML"),
        ("- workers", r"must map options of Slurm jobs to values, not be \['workers'\]"),
        (None, "No such file or directory"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    slurm: Path,
    command: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    message: str,
) -> None:
    path = slurm / "own.yml"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(runner, "run", lambda *arguments: pytest.fail("not refused"))
    status, printed = command("reproduce", "--cluster", "slurm", "--cluster-options", str(path))
    assert status == 2
    assert len(printed.strip().splitlines()) == 1
    assert re.match(f"error: {path}.*{message}", printed)


def test_the_options_in_the_repository_are_the_defaults_each_explained() -> None:
    assert cluster.read_options(cluster.OPTIONS) == cluster.Slurm()
    lines = [line for line in cluster.OPTIONS.read_text().splitlines() if line and not line.startswith("#")]
    assert [line.partition(":")[0] for line in lines] == list(cluster.Slurm.model_fields)
    assert all(len(line.partition("# ")[2]) > 10 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["127.0.0.1:8786"], "must be slurm or the address of a scheduler, .*, not '127.0.0.1:8786'"),
        (["tcp://127.0.0.1"], "must be slurm or the address of a scheduler, .*, not 'tcp://127.0.0.1'"),
        (["slrum"], "must be slurm or the address of a scheduler, .*, not 'slrum'"),
        (["tcp://127.0.0.1:1", "--cluster-options", "x"], "are for --cluster slurm, not for tcp://127.0.0.1:1"),
        (["slurm"], "there is no sbatch here"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_in_one_line(
    command: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(runner, "run", lambda *arguments: pytest.fail("not refused"))
    status, printed = command("reproduce", "--cluster", *arguments)
    assert status == 2
    assert len(printed.strip().splitlines()) == 1
    assert re.match(f"error: --cluster.*{message}", printed)


@pytest.mark.parametrize(("given", "missing"), [("slurm", "dask_jobqueue"), ("tcp://127.0.0.1:1", "distributed")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, given: str, missing: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(InputError, match=rf"^--cluster {given}: {missing} is not installed: .*requirements\.lock"):
        cluster.where(given)


@pytest.mark.parametrize("listens", [False, True], ids=["nobody", "something else"])
@pytest.mark.usefixtures("folder")
def test_an_address_where_no_scheduler_answers_is_told_in_one_line(
    command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listens:
            other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        status, printed = in_time(
            lambda: command("reproduce", "--profile", "smoke", "--only", "rings", "--cluster", address)
        )
    assert status == 2
    assert printed.splitlines()[-1] == (
        f"error: --cluster {address}: no scheduler answers within 0.5 s: start one with 'dask scheduler'"
    )
    assert "Traceback" not in printed


def test_the_environment_may_name_the_cluster(
    command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cluster.ADDRESS, "slrum")
    assert command("reproduce") == (2, command("reproduce", "--cluster", "slrum")[1])
