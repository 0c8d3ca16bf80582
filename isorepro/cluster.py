"""A cluster that computes sweeps: the workers of a running dask scheduler, or Slurm jobs that are such workers.

Networks to measure and results travel over the wire: workers need this code and its data, but no common disk.
"""

import asyncio
import importlib.util
import os
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import Field

from isorepro import paths
from isorepro.errors import Config, InputError
from isorepro.progress import say, tell

if TYPE_CHECKING:
    from distributed import Client

ADDRESS = "ISOREPRO_CLUSTER"
"""Environment variable: the address of the scheduler whose workers compute the sweeps of this process."""

OPTIONS = paths.ROOT / "cluster" / "slurm.yml"
"""The file of the options for Slurm."""

PATIENCE = 10.0
"""Seconds within which a scheduler must answer."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "threads of the worker": "1"}
"""What :func:`threads` must be on a worker: sums are split by thread, and a process has one random generator."""

Word = Annotated[str, Field(pattern=r"^[^\s'\"]+$")]
Positive = Annotated[int, Field(ge=1)]


class Slurm(Config):
    """The Slurm jobs that compute, one worker process on one processor each.

    Attributes:
        workers: jobs at a time.
        memory: of a job, in GiB.
        minutes: time limit of a job. One that ends is replaced, and its network computed again by another.
        queue: partition; None for Slurm's default.
        account: to be charged; None for the user's default.
        interface: network interface by which the jobs reach this machine; None for the one to the outside.
        python: of the jobs; None for the one that runs here.
        prologue: shell commands of a job before its worker starts.
        directives: further options of sbatch.
    """

    workers: Positive = 4
    memory: Positive = 4
    minutes: Positive = 60
    queue: Word | None = None
    account: Word | None = None
    interface: Word | None = None
    python: Word | None = None
    prologue: list[str] = Field(default_factory=list)
    directives: list[Annotated[str, Field(pattern=r"^-.+$")]] = Field(default_factory=list)


def read_options(path: Path) -> Slurm:
    """Return the options of a YAML file, those it does not name at their defaults.

    Raises:
        InputError: no such file, no YAML, an unknown name, or a value that is not allowed.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; cluster/{OPTIONS.name} is such a file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None):
        raise InputError(f"{path} must map options of Slurm jobs to values, not be {content!r}")
    try:
        return Slurm(**{str(name): value for name, value in (content or {}).items()})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def where(given: str, options: Path | None = None) -> str | Slurm:
    """Check what is to compute, before anything runs.

    Args:
        given: "slurm" or the address of a scheduler, such as tcp://127.0.0.1:8786.
        options: of Slurm; None for :data:`OPTIONS`.

    Returns:
        The address, or the options of Slurm.

    Raises:
        InputError: neither of the two; wrong options, or options for an address; or something is not installed.
    """
    slurm = given == "slurm"
    if not slurm and not re.fullmatch(r"tcp://\S+:\d+", given):
        raise InputError(
            f"--cluster: must be slurm or the address of a scheduler, such as tcp://127.0.0.1:8786, not {given!r}"
        )
    if options and not slurm:
        raise InputError(f"--cluster-options {options}: are for --cluster slurm, not for {given}")
    needed = ["distributed", "dask_jobqueue"] if slurm else ["distributed"]
    for name in needed:
        if importlib.util.find_spec(name) is None:
            wanted = "pip install -r requirements.lock"
            raise InputError(f"--cluster {given}: {name} is not installed: install it with {wanted}")
    if not slurm:
        return given
    found = read_options(options or OPTIONS)
    if shutil.which("sbatch") is None:
        raise InputError("--cluster slurm: there is no sbatch here: run it on a machine where jobs are submitted")
    return found


@contextmanager
def scheduler(place: str | Slurm | None) -> Iterator[str | None]:
    """Yield the address of a scheduler: the one given, None for none, or that of Slurm jobs, which end with it.

    Raises:
        InputError: the scheduler of the jobs cannot start, or Slurm refuses them.
    """
    if not isinstance(place, Slurm):
        yield place
        return
    from dask_jobqueue.slurm import SLURMCluster

    try:
        jobs = SLURMCluster(
            job_name="isorepro",
            cores=1,
            processes=1,
            memory=f"{place.memory} GiB",
            walltime=str(place.minutes),
            queue=place.queue,
            account=place.account,
            interface=place.interface,
            python=place.python,
            # Last, so that no command before undoes it.
            job_script_prologue=[*place.prologue, "export OMP_NUM_THREADS=1"],
            job_extra_directives=place.directives,
            worker_extra_args=["--no-dashboard"],
            scheduler_options={"dashboard": False, "dashboard_address": ":0"},
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"--cluster slurm: {' '.join(str(error).split())}") from None
    with jobs:
        _try(jobs.job_script())
        # A job that reaches its time limit is replaced.
        jobs.adapt(minimum_jobs=place.workers, maximum_jobs=place.workers)
        say(f"Slurm: {place.workers} job(s) asked for, scheduler at {jobs.scheduler_address}")
        yield str(jobs.scheduler_address)


def _try(script: str) -> None:
    """Ask Slurm whether it would take a job, so that a refusal is one line and not a job that never comes."""
    done = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise InputError(f"--cluster slurm: sbatch refuses the jobs: {said[-1]}")


def client_of(address: str) -> "Client":
    """Return a client of a scheduler that has a worker; wait for one, and say so.

    Raises:
        InputError: no scheduler answers.
    """
    from distributed import Client
    from distributed.comm.core import connect

    async def greet() -> None:
        # A client would wait for ever for the greeting of a server of another kind.
        (await asyncio.wait_for(connect(address, timeout=PATIENCE), PATIENCE)).abort()

    try:
        # In a thread of its own: that of a notebook has an event loop already.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, greet()).result()
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError):
        raise InputError(
            f"--cluster {address}: no scheduler answers within {PATIENCE:g} s: start one with 'dask scheduler'"
        ) from None
    if not client.scheduler_info()["workers"]:
        tell(f"the cluster at {address} has no worker yet: waiting for one")
        client.wait_for_workers(1)
    return client


def threads(worker: Any = None) -> dict[str, str]:
    """Return how many threads compute here: what numerical libraries are told, and tasks of a worker at once.

    Args:
        worker: None for the one whose task this is.
    """
    from distributed import get_worker

    count = (worker or get_worker()).state.nthreads
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"), "threads of the worker": str(count)}


def pack(function: Callable[..., Any], *arguments: Any) -> bytes:
    """Return a call for :func:`call`: the scheduler hands it on unread, so that it needs no torch."""
    return pickle.dumps((function, arguments))


def call(packed: bytes) -> Any:
    """Make a call of :func:`pack`."""
    function, arguments = pickle.loads(packed)
    return function(*arguments)


def backend(client: "Client") -> Any:
    """Return joblib's dask backend for one :class:`joblib.Parallel`, made fit for workers that come and go."""
    # Not above: joblib imports distributed with it.
    from joblib._dask import DaskDistributedBackend

    class Workers(DaskDistributedBackend):  # type: ignore[misc]
        def effective_n_jobs(self, n_jobs: int) -> int:
            # However many there are now: with none joblib would fail, with one it would compute in this process.
            return 2

        def submit(self, func: Callable[..., Any], callback: Callable[..., Any]) -> Any:
            # joblib is not told of a task that fails outside its function, and would wait for it for ever.
            def tell_of_failure(done: Any) -> None:
                if done.exception():
                    callback(done.exception())

            future = super().submit(func, callback)
            future.add_done_callback(tell_of_failure)
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            # Also of a lost scheduler joblib makes a result.
            if isinstance(out, BaseException):
                raise out
            return super().retrieve_result_callback(out)

        def abort_everything(self, ensure_ready: bool = True) -> None:
            # joblib forgets the tasks, which would keep the workers busy.
            super().abort_everything(ensure_ready)
            self.client.cancel(list(self._results))

    return Workers(client=client)
