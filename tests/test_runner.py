import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from rocrate.rocrate import ROCrate

from isorepro import book, paths, profiles, provenance, runner
from isorepro.errors import InputError, NotebookError

PARAMETERS = """
count: int = 2  # how many
rate: float = 0.5  # how fast
names: list[str] = ["a"]  # who
form: Literal["raw", "normalised"] = "raw"  # which
size: int | None = None  # how big
fail: bool = False  # whether to fail
"""
BODY = """
from pathlib import Path
from isorepro.results import Results
from isorepro.progress import track
with (Path("{folder}") / "executions").open("a") as file:
    file.write("x")
for _ in track(range(3), total=3, what="things"):
    pass
Results("tiny").numbers(product=count * rate)
"""
CHECK = 'if fail:\n    raise ValueError("first line\\nthe last line")'


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Notebooks, profiles and an output folder of the test's own."""
    notebooks = tmp_path / "notebooks"
    (notebooks / "profiles").mkdir(parents=True)
    write_notebook(notebooks / "tiny.ipynb", BODY.format(folder=tmp_path))
    (notebooks / "profiles" / "quick.yml").write_text("# Cost: none\ntiny:\n  count: 3\n")
    (notebooks / "profiles" / "wrong.yml").write_text("tiny:\n  rate: 1e-3\n")
    (notebooks / "profiles" / "unknown.yml").write_text("tiny:\n  cuont: 3\n")
    monkeypatch.setattr(profiles, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(profiles, "PROFILES", notebooks / "profiles")
    monkeypatch.setenv("ISOREPRO_OUTPUT", str(tmp_path / "output"))
    shutil.copy(paths.ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def write_notebook(path: Path, body: str) -> None:
    cells = [
        nbformat.v4.new_code_cell(text.strip()) for text in ("from typing import Literal", PARAMETERS, body, CHECK)
    ]
    cells[1].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def executions(workspace: Path) -> int:
    path = workspace / "executions"
    return len(path.read_text()) if path.exists() else 0


@pytest.mark.usefixtures("workspace")
def test_parameters_are_read_with_type_default_and_meaning() -> None:
    found = profiles.parameters("tiny")
    assert list(found) == ["count", "rate", "names", "form", "size", "fail"]
    assert found["names"] == profiles.Parameter("names", "list[str]", ["a"], "who")
    assert found["size"].default is None


@pytest.mark.usefixtures("workspace")
def test_a_plan_holds_every_parameter_and_overrides_get_a_folder_of_their_own() -> None:
    plain, changed = profiles.plan("quick"), profiles.plan("quick", overrides={"rate": 2, "form": "normalised"})
    assert plain.notebooks["tiny"] == {
        "count": 3, "rate": 0.5, "names": ["a"], "form": "raw", "size": None, "fail": False,
    }  # fmt: skip
    assert changed.notebooks["tiny"] | {"rate": 0.5, "form": "raw"} == plain.notebooks["tiny"]
    assert changed.folder != plain.folder
    assert changed.folder != profiles.plan("quick", overrides={"rate": 3}).folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--profile", "qick"],
            "unknown profile 'qick': allowed are quick, unknown, wrong; did you mean 'quick'?",
        ),
        (["--only", "tny"], "unknown notebook 'tny': allowed are tiny; did you mean 'tiny'?"),
        (["-p", "cuont=3"], "unknown parameter 'cuont': allowed are count, .*; did you mean 'count'?"),
        (["-p", "count=1.5"], r"notebook 'tiny': count \(int\): must be a valid integer, not 1.5"),
        (["-p", "count=true"], r"count \(int\): must be a valid integer, not True"),
        (["-p", "rate=1e-3"], r"rate \(float\): must be a valid number, not '1e-3' \(in YAML write 1.0e-3"),
        (["-p", "names=[a, 2]"], r"names \(list\[str\]\): \[1\]: must be a valid string, not 2"),
        (["-p", "form=squared"], "must be 'raw' or 'normalised', not 'squared'"),
        (["-p", "count"], "-p count: must be name=value"),
        (["-p", "count=[1"], r"-p count=\[1: the value must be YAML"),
        (["--profile", "wrong"], r"rate \(float\): must be a valid number, not '1e-3'"),
        (["--profile", "unknown"], "unknown parameter of notebook 'tiny' in profile 'unknown' 'cuont'"),
    ],
)
def test_mistakes_are_refused_in_one_line_before_anything_runs(
    workspace: Path, command: Callable[..., tuple[int, str]], arguments: list[str], message: str
) -> None:
    status, printed = command("reproduce", *arguments)
    assert status == 2
    assert len(printed.strip().splitlines()) == 1
    assert printed.startswith("error: ")
    assert not (workspace / "output").exists()
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(printed)


def test_jobs_below_one_and_unknown_options_are_refused(command: Callable[..., tuple[int, str]]) -> None:
    for arguments in (["--jobs", "0"], ["--profil", "quick"]):
        status, printed = command("reproduce", *arguments)
        assert status == 2
        assert "Traceback" not in printed


def test_a_notebook_is_run_once_and_again_when_something_changed(workspace: Path) -> None:
    planned = profiles.plan("quick")
    assert runner.run(planned)
    assert json.loads((planned.folder / "results/tiny/numbers.json").read_text()) == {"product": 1.5}
    executed = nbformat.read(planned.folder / "notebooks/tiny.ipynb", as_version=4)
    assert all(cell.execution_count for cell in executed.cells)
    assert not runner.run(planned)
    assert executions(workspace) == 1
    (planned.folder / "results/tiny/numbers.json").write_text("{}")  # damaged
    assert runner.run(planned)
    assert json.loads((planned.folder / "results/tiny/numbers.json").read_text()) == {"product": 1.5}
    write_notebook(profiles.NOTEBOOKS / "tiny.ipynb", BODY.format(folder=workspace) + "\nprint(1)")
    assert runner.run(planned)
    assert executions(workspace) == 3
    manifest = json.loads((planned.folder / "manifest.json").read_text())
    assert manifest["profile"] == "quick"
    assert manifest["notebooks"]["tiny"]["parameters"]["count"] == 3
    assert manifest["versions"].keys() >= {"python", "torch", "torchvision", "numpy"}
    assert manifest["notebooks"]["tiny"]["cpu_seconds"] > 0
    shown = json.loads((planned.folder / "results/run/numbers.json").read_text())
    assert shown["peak_memory_gb"] == pytest.approx(manifest["notebooks"]["tiny"]["peak_memory_mib"] * 0.001048576)


def test_a_module_beside_the_notebook_counts_and_if_it_is_edited_meanwhile_the_run_is_not_current(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = profiles.NOTEBOOKS / "mine.py"
    edit = f"\n%pwd\nimport mine\nPath({str(mine)!r}).write_text('added = 3')"
    write_notebook(profiles.NOTEBOOKS / "tiny.ipynb", BODY.format(folder=workspace) + edit)
    planned = profiles.plan("quick")
    keys = []
    for text in ("added = 1", "added = 2  # so", "added = 2"):
        mine.write_text(text)
        keys.append(runner.notebook_key("tiny", planned.notebooks["tiny"]))
    assert keys[0] != keys[1] == keys[2]
    assert runner.run(planned)
    assert "tiny: its code was changed while it ran: the next run does it again" in capsys.readouterr().err
    assert runner.outdated(planned) == ["tiny"]
    assert runner.run(planned)
    assert runner.outdated(planned) == []
    assert executions(workspace) == 2


def test_names_of_folders_and_text_values_are_no_format_strings(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOREPRO_OUTPUT", str(workspace / "{1} {names} {{0}} %s"))
    planned = profiles.plan("quick", overrides={"names": ["{1}", "%s"]})
    assert runner.run(planned)
    assert (planned.folder / "results/tiny/numbers.json").is_file()
    assert 'names = ["{1}", "%s"]' in (planned.folder / "notebooks/tiny.ipynb").read_text().replace('\\"', '"')


def test_a_run_tells_how_it_was_made(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        BODY.format(folder=workspace) + "import pandas as pd\nResults('tiny').table('t', pd.DataFrame({'a': [1]}))"
    )
    body += "\nimport os\nPath(os.environ['ISOREPRO_KEPT']).write_text('4 2 7.5 0\\n3 1 0.5 0\\n')"
    write_notebook(profiles.NOTEBOOKS / "tiny.ipynb", body)
    planned = profiles.plan("quick")
    runner.run(planned, 2)
    manifest = json.loads((planned.folder / "manifest.json").read_text())
    told = manifest["notebooks"]["tiny"]
    assert told["id"] == runner.notebook_key("tiny", planned.notebooks["tiny"])[:12]
    assert (told["jobs"], told["results"], told["kept"]) == (2, 7, 3)
    assert told["cold_seconds"] == pytest.approx(told["cpu_seconds"] + 8, abs=0.2)
    assert pd.read_csv(planned.folder / "results/tiny/t.csv")["run"].item() == told["id"]
    assert {
        "commit",
        "uncommitted_changes",
        "seeds",
        "processors",
        "threads",
        "gpu",
        "versions",
    } <= manifest.keys()
    page = pd.read_csv(planned.folder / "results/run/notebooks.csv").iloc[0]
    assert (page["run"], page["wall time (s)"]) == (told["id"], told["wall_seconds"])

    crate = ROCrate(planned.folder)  # refuses metadata that is no crate
    (action,) = crate.root_dataset["mentions"]
    assert (action.type, action["name"]) == ("CreateAction", "notebook tiny")
    assert {found["name"]: json.loads(found["value"]) for found in action["object"]} == planned.notebooks["tiny"]
    made = {found.id: found["sha256"] for found in action["result"]}
    assert set(made) == {"notebooks/tiny.ipynb", "results/tiny/numbers.json", "results/tiny/t.csv"}
    for name, digest in made.items():
        assert hashlib.sha256((planned.folder / name).read_bytes()).hexdigest() == digest
    began, ended = (datetime.fromisoformat(action[name]) for name in ("startTime", "endTime"))
    assert (ended - began).total_seconds() == pytest.approx(told["wall_seconds"], abs=0.01)
    assert action["instrument"]["version"].startswith(manifest["commit"])

    monkeypatch.setattr(provenance, "_git", lambda *arguments: None)
    provenance.write(planned)
    (action,) = ROCrate(planned.folder).root_dataset["mentions"]
    assert action["instrument"]["version"] == "unknown, changes unknown"
    assert json.loads((planned.folder / "results/run/numbers.json").read_text())["commit"] == "unknown"
    assert book._launch_buttons("unknown") == {}


@pytest.mark.parametrize(
    ("spoil", "known", "changed"),
    [
        ("true", True, False),
        ("echo 2 > isorepro/losses.py", True, True),
        ("git config status.showUntrackedFiles no && touch isorepro/new.py", True, True),
        ("echo no index > .git/index", True, "unknown"),
        ("rm -r .git", False, "unknown"),  # within another repository
        ("cp -r isorepro ../running && echo 2 > ../running/losses.py", False, "unknown"),  # ISOREPRO_ROOT
    ],
)
def test_a_commit_is_that_of_the_code_that_runs_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str, known: bool, changed: bool | str
) -> None:
    ours = tmp_path / "ours"
    (ours / "isorepro").mkdir(parents=True)
    (ours / "isorepro/losses.py").write_text("1")
    commit = "git init -q && git add . && git -c user.name=a -c user.email=a@b commit -qm a && git rev-parse HEAD"
    heads = [subprocess.check_output(commit, shell=True, cwd=folder, text=True) for folder in (ours, tmp_path)]
    subprocess.run(spoil, shell=True, cwd=ours, check=True)
    running = tmp_path / "running"
    monkeypatch.setattr(provenance, "__file__", str((running if running.exists() else ours / "isorepro") / "a.py"))
    monkeypatch.setattr(paths, "ROOT", ours)
    for name, value in {"GIT_DIR": tmp_path / ".git", "GIT_WORK_TREE": tmp_path}.items():
        assert provenance.commit() == (heads[0].strip() if known else "unknown")
        assert provenance.uncommitted_changes() == changed
        monkeypatch.setenv(name, str(value))


SIDE = """
import time
from pathlib import Path
from isorepro.store import _allowed
share, folder, patience = _allowed(None), Path("{folder}"), time.time() + {patience}
from ipykernel.connect import get_connection_info
known = get_connection_info(unpack=True)
(folder / "{name}.kernel").write_text(f"{{known['transport']}} {{known['ip']}}")
# Kernels take longer to start on a busy machine: each waits for the other, as long as it may take.
while not (folder / "{other}.kernel").exists() and time.time() < patience:
    time.sleep(0.02)
met = (folder / "{other}.kernel").exists() and not (folder / "{other}.spent").exists()
(folder / "{name}.spent").write_text(f"{{int(met)}} {{share}}")
"""


@pytest.mark.parametrize(
    ("jobs", "together", "shares"), [(1, False, [1, 1]), (2, True, [1, 1]), (5, True, [2, 3])]
)
def test_notebooks_run_side_by_side_on_the_processors_given(
    workspace: Path, jobs: int, together: bool, shares: list[int]
) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        body = SIDE.format(folder=workspace, name=name, other=other, patience=60 if together else 1)
        write_notebook(profiles.NOTEBOOKS / f"{name}.ipynb", body)
    (profiles.PROFILES / "quick.yml").write_text("one:\ntwo:\n")
    assert runner.run(profiles.plan("quick"), jobs)
    spent = [(workspace / f"{name}.spent").read_text().split() for name in ("one", "two")]
    assert any(int(met) for met, _ in spent) == together
    # Each is alone before the other has begun, so that it may have been given all.
    assert all(int(share) in {*shares, jobs} for _, share in spent)
    assert (workspace / "output/quick/records/two.json").is_file()
    assert not list((workspace / "output/quick/.running").glob("*-*"))
    if sys.platform == "linux":
        # Ports are chosen before they are taken: two kernels that begin at once may choose the same.
        kernels = [(workspace / f"{name}.kernel").read_text().split() for name in ("one", "two")]
        assert [transport for transport, _ in kernels] == ["ipc", "ipc"]
        assert len({name for _, name in kernels}) == 2


def driver(workspace: Path, before: str = "exec ", **surroundings: str) -> "subprocess.Popen[str]":
    """A run of the tiny notebook, one of two in the profile so that no book is built, in a process of its own."""
    (workspace / "notebooks/profiles/quick.yml").write_text("tiny:\n  count: 3\nanother:\n")
    environment = os.environ | {"ISOREPRO_ROOT": str(workspace), "ISOREPRO_OUTPUT": str(workspace / "output")}
    command = ["bash", "-c", f"{before}{sys.executable} -m isorepro.cli reproduce --only tiny"]
    environment |= {"PYTHONPATH": str(paths.PACKAGE.parent)} | surroundings
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, seconds: float = 40) -> str:
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
    return path.read_text()


@pytest.mark.parametrize("limit", [200, 1])
def test_a_full_disk_is_told_in_one_line_and_nothing_is_lost(workspace: Path, limit: int) -> None:
    """A limit on the size of files, which a table or even the executed notebook exceeds, stands for the disk."""
    kept = driver(workspace)
    _, said = kept.communicate(timeout=60)
    assert kept.returncode == 0, said
    results = workspace / "output/quick/results/tiny"
    before = {path: path.read_bytes() for path in results.iterdir()}
    body = BODY.format(folder=workspace) + "print('much' * 5000)\nResults('tiny').numbers(text='x' * 300_000)"
    write_notebook(profiles.NOTEBOOKS / "tiny.ipynb", body)
    limited = driver(workspace, f"ulimit -f {limit}; exec ")
    out, said = limited.communicate(timeout=60)
    assert limited.returncode == 1, said
    assert "Traceback" not in out + said
    (told,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert told.startswith("error: notebook 'tiny'")
    assert ("File too large" in told) == (limit == 200)  # else the log itself ends before that is said
    assert {path: path.read_bytes() for path in results.iterdir()} == before


def test_two_runs_at_once_share_the_work(workspace: Path) -> None:
    go = workspace / "go"
    body = f"import time\nwhile not Path('{go}').exists():\n    time.sleep(0.1)"
    write_notebook(profiles.NOTEBOOKS / "tiny.ipynb", BODY.format(folder=workspace) + body)
    first = driver(workspace)
    wait_for(workspace / "executions")
    second = driver(workspace)
    assert second.stderr is not None
    said = [second.stderr.readline() for _ in range(2)]
    assert said[1] == "tiny: another run is at it; waiting\n", said
    go.touch()
    ended = [run.communicate(timeout=60)[1] for run in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], ended
    assert executions(workspace) == 1
    assert "tiny: up to date, by another run (1 of 1)" in ended[1]
    assert json.loads((workspace / "output/quick/results/tiny/numbers.json").read_text()) == {"product": 1.5}


def test_a_killed_run_takes_its_kernel_with_it_and_the_next_one_does_the_work(
    workspace: Path, gone: Callable[..., bool]
) -> None:
    body = BODY.format(folder=workspace) + (
        "import os, time\nfrom pathlib import Path\n"
        f"mark = Path('{workspace}') / 'kernel'\n"
        "if not mark.exists():\n    mark.write_text(str(os.getpid()))\n    time.sleep(60)"
    )
    write_notebook(profiles.NOTEBOOKS / "tiny.ipynb", body)
    killed = driver(workspace)
    kernel = int(wait_for(workspace / "kernel"))
    killed.kill()
    killed.communicate()
    assert gone(kernel)
    assert not (workspace / "output/quick/results").exists()
    again = driver(workspace)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert not list((workspace / "output/quick/.running").glob("tiny-*"))
    assert (workspace / "output/quick/records/tiny.json").is_file()


def test_a_failing_cell_is_named_and_earlier_results_stay(
    workspace: Path, command: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run(profiles.plan("quick"))
    before = {path: path.read_bytes() for path in (workspace / "output").rglob("*") if path.is_file()}
    capsys.readouterr()
    (profiles.PROFILES / "quick.yml").write_text("tiny:\n  fail: true\n")
    status, printed = command("reproduce")
    assert status == 1
    assert "notebook 'tiny', code cell 4: the last line (kept at " in printed
    assert "    tiny: things: 3/3" in printed
    assert "Traceback" not in printed
    assert all(path.read_bytes() == content for path, content in before.items())


HOSTILE = {
    "home/.config/matplotlib/matplotlibrc": "text.usetex: True\n",
    "home/.ipython/profile_default/startup/00.py": "import torch\ntorch.set_default_dtype(torch.float64)\n",
    "home/.ipython/profile_default/ipython_config.py": "c.InteractiveShellApp.exec_lines = ['raise_here']\n",
    "home/.local/share/jupyter/kernels/python3/kernel.json": '{"argv": ["/bin/false"], "language": "python"}',
    "jupyter/kernels/python3/kernel.json": '{"argv": ["/bin/false"], "language": "python"}',
    "other/isorepro/__init__.py": "raise ImportError('another copy')\n",
    "other/matplotlibrc": "text.usetex: True\n",
    "startup.py": "import numpy\nnumpy.float64 = numpy.float32\n",
}
"""What a user may have lying about: settings of libraries, and another kernel and package of the same names."""

LEAKS = """
import os, sys, matplotlib, numpy, pandas, torch
from pathlib import Path
from isorepro.results import Results
from matplotlib import pyplot
assert torch.get_default_dtype() == torch.float32
assert numpy.dtype(numpy.float64).itemsize == 8
assert not any(name in globals() for name in ("c", "raise_here"))
assert not matplotlib.rcParams["text.usetex"]
matplotlib.rcParams["text.usetex"] = True  # as from a file where the kernel starts
def draw(narrow):
    figure, axes = pyplot.subplots()
    axes.set_title("50 % of $\\\\alpha_1$")
    return figure
Results("tiny").figure("drawn", draw, caption="c", alt="a", data=pandas.DataFrame({{"a": [1]}}))
assert matplotlib.get_cachedir().startswith("{folder}/output/cache")
"""


def test_what_a_user_has_lying_about_is_ignored(workspace: Path) -> None:
    for name, content in HOSTILE.items():
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(content)
    write_notebook(profiles.NOTEBOOKS / "tiny.ipynb", LEAKS.format(folder=workspace))
    done = driver(
        workspace,
        f"cd {paths.PACKAGE.parent}; exec ",
        HOME=str(workspace / "home"),
        JUPYTER_PATH=str(workspace / "jupyter"),
        PYTHONPATH=str(workspace / "other"),
        PYTHONSTARTUP=str(workspace / "startup.py"),
        MATPLOTLIBRC=str(workspace / "other"),
        OPENBLAS_NUM_THREADS="2",
    )
    _, said = done.communicate(timeout=60)
    assert done.returncode == 0, said
    assert {str(path.relative_to(workspace)) for path in (workspace / "home").rglob("*") if path.is_file()} == {
        name for name in HOSTILE if name.startswith("home")
    }
    told = nbformat.read(workspace / "output/quick/notebooks/tiny.ipynb", as_version=4).metadata["isorepro"]
    assert (told["python"], told["package"]) == (sys.executable, str(paths.PACKAGE))


def test_a_notebook_that_imported_another_copy_is_an_error(workspace: Path) -> None:
    (workspace / "isorepro").mkdir()
    (workspace / "isorepro/__init__.py").touch()
    body = f"import sys\nsys.path.insert(0, '{workspace}')\nimport isorepro"
    write_notebook(profiles.NOTEBOOKS / "tiny.ipynb", body)
    with pytest.raises(NotebookError, match=f"it imported the package of {workspace}/isorepro, not of ") as caught:
        runner.run(profiles.plan("quick"))
    assert "\n" not in str(caught.value)
    assert not (workspace / "output/quick/notebooks").exists()


@pytest.mark.parametrize(
    ("seconds", "status", "message"),
    [
        (None, 0, "tiny: done in "),
        ("1", 1, "error: notebook 'tiny': .*didn't respond in 1 seconds: ISOREPRO_START_TIMEOUT allows it more"),
        ("0", 2, "error: ISOREPRO_START_TIMEOUT: must be a whole number of seconds above 0, not '0'"),
        ("1.5", 2, "not '1.5'"),
    ],
)
def test_a_kernel_that_starts_slowly_is_waited_for(
    workspace: Path, seconds: str | None, status: int, message: str
) -> None:
    """A kernel kept busy as it starts: what takes this one 4 s takes others 75."""
    slow = "import sys, time\nif any('ipykernel' in name for name in sys.orig_argv):\n    time.sleep(4)"
    (workspace / "sitecustomize.py").write_text(slow)
    given = {} if seconds is None else {runner.START_TIMEOUT: seconds}
    path = f"{paths.PACKAGE.parent}:{workspace}"
    done = driver(workspace, PYTHONPATH=path, **given)
    _, said = done.communicate(timeout=60)
    assert done.returncode == status, said
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert runner.start_timeout() >= 2 * 75


@pytest.mark.parametrize(
    ("death", "told"),
    [
        ("os._exit(3)", "exit status 3"),
        ("os.kill(os.getpid(), 9)", "signal 9"),
        ("os.kill(os.getppid(), 9)", "signal 9"),
    ],
)
def test_a_kernel_that_dies_is_an_error(workspace: Path, death: str, told: str) -> None:
    write_notebook(profiles.NOTEBOOKS / "tiny.ipynb", f"import os\n{death}")
    with pytest.raises(
        NotebookError, match=rf"notebook 'tiny': its process ended with {told}.* \(log at"
    ) as caught:
        runner.run(profiles.plan("quick"))
    assert ("--jobs 1" in str(caught.value)) == ("9" in told)
    assert not (workspace / "output/quick/notebooks").exists()


def test_an_output_folder_that_cannot_be_written_is_told_in_one_line(
    workspace: Path, command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "file").write_text("")
    monkeypatch.setenv("ISOREPRO_OUTPUT", str(workspace / "file" / "below"))
    status, printed = command("reproduce")
    assert status == 1
    assert f"error: Not a directory: {workspace}/file" in printed
    assert "Traceback" not in printed


def test_list_names_profiles_notebooks_and_parameters(
    workspace: Path, command: Callable[..., tuple[int, str]]
) -> None:
    status, printed = command("list")
    assert status == 0
    assert "profile quick\n  Cost: none\n" in printed
    assert "  rate: float = 0.5  how fast\n" in printed


def entries(folder: Path) -> dict[Path, bytes | None]:
    """All that lies in a folder, with its content."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_second_run_and_clean_leave_all_that_no_run_made(
    workspace: Path, command: Callable[..., tuple[int, str]]
) -> None:
    output, elsewhere = workspace / "output", workspace / "elsewhere"
    run, planned = output / "quick", profiles.plan("quick")
    runner.run(planned)
    shutil.copytree(run, output / "before")
    kept = paths.write_atomically(output / f"cache/tables/{'a1' * 32}.json", "{}")
    kept.with_name(f".{kept.name}.12-34.part").touch()
    (run / "results/tiny/.numbers.json.12-34.part").touch()  # by a killed process
    paths.scratch(run / ".running", "tiny")
    # Moved away, as for want of space, and now a link: another's.
    shutil.move(run / "results/run", elsewhere / "run")
    (run / "results/run").symlink_to(elsewhere / "run")
    mine = {
        *("notes.txt", "thesis/", "quick/thesis/", "quick/notebooks/mine.ipynb", "quick/records/mine.json"),
        *("quick/results/tiny/notes.txt", "quick/results/tiny/figures/", "quick/.running/tiny-thesis/a.txt"),
        *("quick/.running/book-1/a.txt", "cache/tables/mine.json"),
    }
    for name in mine:
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("mine")
    assert runner.outdated(planned) == []
    left = entries(elsewhere) | entries(output / "before") | {run / "results/run": None}
    write_notebook(profiles.NOTEBOOKS / "tiny.ipynb", BODY.format(folder=workspace).replace("tiny", "other"))
    with pytest.raises(InputError, match=r"results/run is in the way, and isorepro did not make it"):
        runner.run(planned)
    assert not (run / "results/tiny/numbers.json").exists()
    status, printed = command("clean")
    assert status == 0
    assert kept.exists()
    assert command("clean", "--all")[0] == 0
    left |= {output / name: None if name.endswith("/") else b"mine" for name in mine}
    marks = {output / "quick/.isorepro"}
    folders = {parent for path in left for parent in path.parents if {output, elsewhere} & {*parent.parents}}
    found = entries(output) | entries(elsewhere)
    assert {*found} == {*left, *marks, *folders}
    assert found.items() >= left.items()
    for name in ("thesis", "quick/thesis", "quick/results/tiny/notes.txt", "quick/results/run"):
        assert f"isorepro did not make it: {output / name}\n" in printed
    assert "a.txt" not in printed  # of a folder of theirs the folder


def test_clean_waits_for_no_run_and_takes_nothing_from_one(
    workspace: Path, command: Callable[..., tuple[int, str]]
) -> None:
    with runner.alone(profiles.plan("quick").folder, "tiny"):
        before = entries(workspace)
        status, printed = command("clean", "--all")
    assert (status, len(printed.splitlines())) == (2, 1)
    assert printed.startswith("error: a run is at work in ")
    assert entries(workspace) == before
    assert command("clean")[0] == 0
    assert not list((workspace / "output").iterdir())


@pytest.mark.parametrize(
    ("there", "link"),
    [
        ("quick/thesis.txt", None),
        (".isorepro quick/results/tiny/numbers.json", None),
        (".isorepro elsewhere/tiny/numbers.json", "quick/results"),
        (".isorepro elsewhere", "quick/records/tiny.json"),
    ],
)
def test_a_run_neither_writes_to_a_folder_of_others_nor_over_their_files(
    workspace: Path, command: Callable[..., tuple[int, str]], there: str, link: str | None
) -> None:
    output = workspace / "output"
    if there.startswith(".isorepro "):
        paths.claim(output / "quick")
    path = output / there.removeprefix(".isorepro ")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    if link:
        (output / link).parent.mkdir(exist_ok=True)
        (output / link).symlink_to(output / "elsewhere")
    status, printed = command("reproduce")
    assert status == 2
    (told,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert str(output / link if link else path if path.parent.name == "tiny" else path.parent) in told
    assert path.read_text() == "mine"
    assert not link or (output / link).is_symlink()
    assert not (output / "elsewhere/run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(["ISOREPRO_OUTPUT", "ISOREPRO_ROOT"], ["", "d", "~/d"]),
        *product(["ISOREPRO_OUTPUT"], ["/", "/me", "/me/..", "/link", "/ours", "/theirs"]),
    ],
)
def test_no_command_takes_a_folder_that_is_not_for_products_alone(
    workspace: Path,
    command: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
) -> None:
    for folder in ("me", "ours", "theirs/.git"):
        (workspace / folder).mkdir(parents=True)
    (workspace / "link").symlink_to(workspace / "me")
    monkeypatch.setenv("HOME", str(workspace / "me"))
    monkeypatch.setattr(paths, "ROOT", workspace / "ours")
    monkeypatch.chdir(workspace)
    monkeypatch.setenv(name, f"{workspace}{value}" if value[1:] and value[0] == "/" else value)
    before = entries(workspace)
    for arguments in (["clean"], ["reproduce"], ["list"], ["verify"], ["publish", "--profile", "quick"]):
        status, printed = command(*arguments)
        assert (status, len(printed.splitlines())) == (2, 1)
        assert printed.startswith(f"error: {name}: must be ")
        assert f"'{os.environ[name]}'" in printed
        assert entries(workspace) == before


def test_a_notebook_without_parameters_is_refused(workspace: Path) -> None:
    nbformat.write(nbformat.v4.new_notebook(), profiles.NOTEBOOKS / "tiny.ipynb")
    with pytest.raises(InputError, match="notebook 'tiny' has no cell tagged 'parameters'"):
        profiles.plan("quick")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "count: int = 2",
            "count = 2",
            "parameters cell: line 1 must have the form 'name: type = value  # meaning'",
        ),
        ("count: int = 2", "count: int = (2", "parameters cell: .*never closed"),
        ("count: int = 2", "count: int = 1 + one()", "parameters cell: malformed node"),
        (
            "count: int",
            "count: Integer",
            r"count: the type 'Integer' is not known: use built-in types, Literal and those of isorepro\.param",
        ),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_a_parameters_cell_that_cannot_be_read_is_refused_in_one_line(old: str, new: str, message: str) -> None:
    path = profiles.NOTEBOOKS / "tiny.ipynb"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        profiles.plan("quick")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tiny: [", "profile 'quick' is not valid YAML"),
        ("- tiny", "must map notebooks to their parameters"),
        ("tiny: 3", "must map notebooks to their parameters"),
        ("", "must map notebooks to their parameters"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_a_profile_that_cannot_be_read_is_refused_in_one_line(content: str, message: str) -> None:
    (profiles.PROFILES / "quick.yml").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        profiles.plan("quick")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_notebook_is_refused(workspace: Path) -> None:
    (workspace / "notebooks" / "tiny.ipynb").write_text("not a notebook")
    with pytest.raises(InputError, match="notebook 'tiny' is not a readable notebook file"):
        profiles.plan("quick")


# A run of profile paper from nothing on another processor than the one whose costs are shipped, in its seconds.
EPYC = {
    **{"torus": 1432.7, "beyond_methods": 1152, "mnist_hierarchy": 1272.9, "evaluation_health": 981.1},
    **{"beyond_search": 856.6, "mnist_structure": 635.5, "beyond_data": 406.1, "decision_boundary": 251.5},
    **{"mnist_robustness": 221.9, "beyond_corruptions": 206, "rings": 41.9, "mnist_explorer": 23.8},
}
COSTS = {
    profile: runner._expected_seconds(profiles.Plan(profile, Path(), {}), profiles.plan(profile).notebooks)
    for profile in ("smoke", "quick")
}
KEPT = {"torus": 23.9, "beyond_methods": 20, "mnist_hierarchy": 20.1, "evaluation_health": 20, "beyond_search": 18}
"""What notebooks of a paper run took that had all their results kept."""


def uneven(costs: dict[str, float], speed: float) -> dict[str, float]:
    """Costs on a machine that takes ``speed`` times as long, one notebook a tenth longer, the next one shorter."""
    return {name: seconds * speed * (1.1, 0.9)[place % 2] for place, (name, seconds) in enumerate(costs.items())}


@pytest.mark.parametrize("jobs", [2, 4])
@pytest.mark.parametrize(
    ("profile", "truth", "saved"),
    [
        ("paper", EPYC, {}),
        ("paper", {name: 2.1 * seconds for name, seconds in EPYC.items() if name != "beyond_search"}, {}),
        ("quick", uneven(COSTS["quick"], 1.7), {}),
        ("quick", uneven(COSTS["quick"], 0.6), {}),
        ("smoke", uneven(COSTS["smoke"], 2), {}),
        ("paper", {name: KEPT.get(name, 17.0) for name in EPYC}, EPYC),
        ("paper", EPYC | {"torus": 700.0, "mnist_hierarchy": 600.0}, {"torus": 730.0, "mnist_hierarchy": 670.0}),
        ("own", {"a": 500.0, "b": 200.0, "c": 60.0, "d": 40.0, "e": 300.0, "f": 100.0}, {}),
    ],
)
def test_the_time_left_is_told_within_a_third(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    profile: str,
    truth: dict[str, float],
    saved: dict[str, float],
    jobs: int,
) -> None:
    """A run on a clock of the test's own, its notebooks side by side, from a quarter of its time on."""
    now = 0.0
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: now, time_ns=lambda: 0))
    folder = tmp_path / profile
    folder.mkdir()
    recorded = {name: {"cold_seconds": seconds / 3} for name, seconds in truth.items()}
    (folder / "manifest.json").write_text(json.dumps({"notebooks": recorded}))
    for name in saved.keys() if len(saved) < len(truth) else ():  # a run that was interrupted was at these
        (folder / ".running" / f"{name}-1").mkdir(parents=True)
    desk = runner._Desk(profiles.Plan(profile, folder, {}), dict.fromkeys(truth, "key"), jobs)
    waiting, left, told = list(desk.order), dict(truth), []
    running: list[str] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(waiting.pop(0))
            scratch = tmp_path / running[-1]
            scratch.mkdir()
            (scratch / "kept").write_text(f"3 1 {saved.get(running[-1], 0)} 0\n")
            desk.begin(running[-1], scratch)
        speed = {name: int((tmp_path / name / "share").read_text()) for name in running}
        first = min(running, key=lambda name: left[name] / speed[name])
        step = left[first] / speed[first]
        now += step
        for name in running:
            left[name] -= speed[name] * step
        running.remove(first)
        desk.leave(first)
        capsys.readouterr()
        desk.end(first, "done")
        if found := re.search(r"(\d+):(\d+) gone, about (\d+):(\d+) left", capsys.readouterr().err):
            minutes, seconds = map(int, found.groups()[2:])
            told.append((now, 60 * minutes + seconds))
    now += runner.BOOK
    late = [(then, estimate / (now - then)) for then, estimate in told if now / 4 <= then]
    assert late
    assert all(0.7 < ratio < 1.3 for _, ratio in late), late


@pytest.mark.slow
def test_interrupted_half_way_it_resumes_with_the_same_numbers(output: Path, tmp_path: Path) -> None:
    """A real run, stopped by Ctrl-C between two networks; compared with one that was left alone."""
    arguments = [sys.executable, "-m", "isorepro.cli", "reproduce", "--profile", "smoke", "--jobs", "1"]
    arguments += ["--only", "mnist_robustness", "-p", "epochs=2", "-p", "train_size=6000"]
    tables, again = [], ""
    for name, stop in (("stopped", True), ("whole", False)):
        environment = os.environ | {"ISOREPRO_OUTPUT": str(tmp_path / name)}
        if stop:
            # In the background, a shell has these tests ignore Ctrl-C, and a process hands that on.
            process = subprocess.Popen(
                arguments,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            models = tmp_path / name / "cache" / "models"
            deadline = time.monotonic() + 90
            while not (models.exists() and list(models.glob("*.safetensors"))):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
            assert process.returncode == 130, said
            assert "finished work is kept" in said
            assert "Traceback" not in said
            assert 1 <= len(list(models.glob("*.safetensors"))) < 4
        again = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stderr
        (folder,) = (tmp_path / name).glob("smoke-*")
        tables.append((folder / "results/mnist_robustness/curves_by_seed.csv").read_bytes())
        assert ("kept from before" in again) == stop
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_damaged_archive_ends_a_run_in_one_line(tmp_path: Path) -> None:
    for folder in ("data", "notebooks"):
        (tmp_path / folder).mkdir()
        subprocess.run(["cp", "-r", str(paths.ROOT / folder), str(tmp_path)], check=True)
    shutil.copy(paths.ROOT / "pyproject.toml", tmp_path)
    archive = tmp_path / "data/mnist/train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-1000])
    environment = os.environ | {"ISOREPRO_ROOT": str(tmp_path), "ISOREPRO_OUTPUT": str(tmp_path / "output")}
    done = subprocess.run(
        [sys.executable, "-m", "isorepro.cli", "reproduce", "--profile", "smoke"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    # Of those side by side, any may be the first to read it.
    assert re.match(r"error: notebook '\w+', code cell \d+: DataError: ", last), last
    assert f"{archive} is damaged or altered: SHA-256 expected 0b367032" in last
    assert "Traceback" not in done.stderr


def test_a_book_is_built_beside_what_a_killed_build_left(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = profiles.plan("quick")
    paths.claim(planned.folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        left = paths.scratch(planned.folder / ".running", "book") / "_build"
    left.mkdir()
    drafts: list[Path] = []

    def assemble(_: object, draft: Path) -> None:
        drafts.append(draft)
        assert not left.exists()
        draft.mkdir()  # fails if it is there
        raise OSError("disk full")

    monkeypatch.setattr(book, "assemble", assemble)
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            book.build(planned)
    assert drafts[0] != left.parent
