"""The promises of the repository itself: its files agree with each other, and nothing private is in them."""

import ast
import itertools
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from isorepro import book, claims, cli, paths, profiles

ROOT = paths.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LEAST = PROJECT["requires-python"].removeprefix(">=")
ITSELF = "--no-deps --no-build-isolation -e ."
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_environment_has_the_locked_versions() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert [entry for entry in environment if isinstance(entry, dict)] == [{"pip": ["-r requirements.lock"]}]
    assert f"python={LEAST}" in environment
    # With hashes, pip installs nothing that has none, such as this repository: that comes after.
    assert (ROOT / "postBuild").read_text().endswith(f"python -m pip install {ITSELF}\n")


def read_lock(name: str) -> dict[str, Requirement]:
    """The requirements of a lock by their names; a line that is neither one of them nor its hash fails."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    entry = r"(\S+==[^\n]+?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
    assert not re.sub(entry, "", text)
    locked = [Requirement(found) for found, _ in re.findall(entry, text)]
    by_name = {canonicalize_name(found.name): found for found in locked}
    assert len(by_name) == len(locked)  # one version for all systems and Pythons
    return by_name


def exact(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    assert "*" not in specifier.version
    return specifier.version


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-uv.lock"])
def test_a_lock_has_hashes_and_names_no_host_and_no_path(name: str) -> None:
    assert read_lock(name)
    assert not re.search(r"[/@]|--(?!hash=)", (ROOT / name).read_text())


def test_lock_names_an_exact_version_inside_the_range_of_every_dependency() -> None:
    assert list(read_lock("requirements-uv.lock")) == ["uv"]
    locked = read_lock("requirements.lock")
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    for text in itertools.chain(build, PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        requirement = Requirement(text)
        found = locked[canonicalize_name(requirement.name)]
        assert exact(found) in requirement.specifier
        assert found.marker is None  # needed everywhere


def test_locked_versions_install_on_every_python_that_the_project_allows() -> None:
    locked = read_lock("requirements.lock")
    for found in distributions():
        if canonicalize_name(found.metadata["Name"]) in locked:
            wanted = found.metadata.get("Requires-Python") or ""
            assert SpecifierSet(wanted).contains(f"{LEAST}.0"), f"{found.metadata['Name']} needs {wanted}"
    assert f"--python-version {LEAST} --all-extras" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("fails", ["", "getting uv", "uv", "uv and pip"])
def test_make_installs_by_uv_and_says_so_where_it_must_take_pip(tmp_path: Path, fails: str) -> None:
    for name in ("pyproject.toml", "requirements.lock", "requirements-uv.lock", ".venv/.isorepro"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    # Programs that write down how they are called.
    (tmp_path / ".venv/bin").mkdir()
    for name, bad in {
        "python": {"getting uv": "*requirements-uv.lock", "uv and pip": "*requirements.lock"}.get(fails, "-"),
        "uv": "*" if fails.startswith("uv") else "-",
    }.items():
        (tmp_path / ".venv/bin" / name).write_text(
            f"#!/bin/sh\necho {name} $UV_DEFAULT_INDEX $* >> calls\n"
            f"case $* in *config*) echo \"global.index-url='a mirror'\";; {bad}) exit 1;; esac\n"
        )
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    environment = {name: text for name, text in os.environ.items() if name != "UV_DEFAULT_INDEX"}
    done = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), "install", f"PYTHON={sys.executable}"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    calls = (tmp_path / "calls").read_text().splitlines()
    locked = "--require-hashes -r requirements.lock"
    by_uv = [call for call in calls if call.startswith("uv ")]
    assert len(by_uv) == (fails != "getting uv")
    uv = rf"uv a mirror pip install --python \.venv/bin/python .*{locked}"
    assert all(re.fullmatch(uv, call) for call in by_uv)
    by_pip = [call for call in calls if call.startswith("python ") and call.endswith(locked)]
    assert len(by_pip) == done.stdout.count("installing with pip") == bool(fails)
    # isorepro itself comes last, and only then is the installation done.
    assert calls[-1].endswith(ITSELF) == (done.returncode == 0) == (fails != "uv and pip")
    assert (tmp_path / ".venv/.run").exists() == (fails != "uv and pip")


def test_readme_and_makefile_name_the_same_commands_and_profiles() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"^make ([a-z]+)", readme, flags=re.MULTILINE))
    assert {"reproduce", "test"} <= named <= targets
    for profile in profiles.profile_names():
        assert profile in readme
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_readme_says_what_the_published_tables_say_of_the_claims() -> None:
    readme = (ROOT / "README.md").read_text()
    table = claims.readme_table(claims.load(), claims.PUBLISHED)
    assert claims.with_table(readme, table) == readme, "write it anew: python -m isorepro.claims"


def test_every_statement_names_a_notebook_and_is_tested_by_the_published_run() -> None:
    ledger = claims.load()
    tests = {found.id: found.test for claim in ledger.claims for found in claim.statements if found.test}
    assert {test.notebook for test in tests.values()} <= set(profiles.notebook_names())
    judged = claims.verdicts(ledger, claims.PUBLISHED).set_index("statement", drop=False)
    assert judged["seeds"][list(tests)].gt(0).all()
    # Which of them a rule keeps from a verdict.
    kept = judged[judged["why"] != ""].groupby("why")["statement"].agg(list).to_dict()
    assert kept == {
        "not tested at this radius: both sides are below 1 %": ["C1.7", "C1.11"],
        "too few points within 0.25: mean near distance 0.420": ["C4.4", "C4.5"],
        "too few points beyond 0.25: mean far distance 0.036": ["C4.7", "C4.8"],
    }
    # Nothing is said twice: what is the same in other words, such as another protocol without an attack, is a test
    # with the same numbers.
    numbers = judged[judged["p"].notna() & (judged["p"] > 0)][["table", "effect", "low", "high"]]
    assert numbers[numbers.duplicated(keep=False)].empty


def test_the_ledger_judges_every_training_on_a_corruption_by_what_it_saw_and_by_all_else() -> None:
    means = pd.read_csv(claims.PUBLISHED / "beyond_corruptions/means_by_seed.csv")
    seen = {name.removeprefix("all but ") for name in means["corruption"] if name.startswith("all but ")}
    asked = {
        (test.select["corruption"], test.wanted.partition("higher")[0], test.setting["network"])
        for test in (statement.test for statement in claims.load().claims[5].statements)
        if test and test.table == "beyond_corruptions/means_by_seed" and test.select["corruption"] != "mean of all"
    }
    networks = {name: "noise" if name == "Gaussian noise" else f"CE + {name}" for name in seen}
    assert len(seen) == 5
    assert asked == {(name, "", networks[name]) for name in seen} | {
        (f"all but {name}", "not ", networks[name]) for name in seen
    }


def test_every_profile_is_valid_and_says_what_it_costs() -> None:
    for profile in profiles.profile_names():
        planned = profiles.plan(profile)
        # Its data is not in the repository.
        assert {*planned.notebooks, "cifar10"} == set(profiles.notebook_names())
        head = (profiles.PROFILES / f"{profile}.yml").read_text().split("\n")[:2]
        assert all(line.startswith("# ") for line in head)
        assert head[1].startswith("# Cost: ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_prose_parameters_calls_and_figures(path: Path) -> None:
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    for cell in code:
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While | ast.Lambda)
    for found in profiles.parameters(path.stem).values():
        assert len(found.meaning) > 10, found.name


def test_no_registry_and_no_path_of_a_machine_is_named() -> None:
    named = ["find" + "-links", "pypi" + r"\.org", "/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/"]
    # pip's own setting (global.…) may be asked for, not set.
    forbidden = re.compile("|".join([r"(?<!\.)index" + "-url", *named]))
    for path in tracked():
        if path.suffix in (".gz", ".png"):
            continue
        found = forbidden.search(path.read_text())
        assert not found, f"{path}: {found and found.group()}"


def test_modules_import_only_what_lies_below_them() -> None:
    order = ["errors", "paths", "sources", "progress", "stats", "claims", "hierarchy", "data", "losses"]
    order += ["models", "methods"]
    order += ["training", "attacks", "robustness", "saliency", "geometry", "structure", "dynamics", "boundary"]
    order += ["stacks", "released", "ensemble", "comparison", "health", "corruptions"]
    order += ["project", "cluster", "store", "computing", "sweep", "style", "tables", "panels", "plots"]
    order += ["structure_plots", "stack_plots"]
    order += ["method_plots", "scenes", "explorables", "results", "profiles", "parameters", "provenance", "runner"]
    order += ["reference", "claim_pages", "lineage", "speed", "book", "cli"]
    modules = {path.stem: path for path in (ROOT / "isorepro").glob("*.py") if path.stem != "__init__"}
    assert set(order) == set(modules)
    assert order == re.findall(r"^   ~isorepro\.(\w+)$", (book.SOURCES / "api.md").read_text(), flags=re.MULTILINE)
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isorepro"):
                dotted = [node.module.removeprefix("isorepro").strip("."), *(alias.name for alias in node.names)]
                for other in set(dotted) & set(modules):
                    assert order.index(other) < order.index(name), f"{name} imports {other}"


def test_only_one_module_deletes() -> None:
    for path in [*(ROOT / "isorepro").glob("*.py"), *(ROOT / "book/_ext").glob("*.py")]:
        found = re.findall(r"\b(rmtree|unlink|rmdir|removedirs|os\.remove|shutil\.move)\b", path.read_text())
        assert not found or path.name == "paths.py", path


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("target", ["distclean", "lock", "reproduce"])
def test_make_deletes_no_environment_that_it_did_not_make(tmp_path: Path, target: str, own: bool) -> None:
    locks = ["requirements.lock", "requirements-uv.lock"]
    there = [".venv/lib.py", "_output/thesis.txt", "pyproject.toml", *locks]
    for name in (*there, *([] if own else [".venv/.isorepro"])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    command = ["make", "-f", str(ROOT / "Makefile"), target, "PYTHON=false"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (target == "distclean")
    assert (tmp_path / ".venv/lib.py").exists() == (own or target != "distclean")
    assert bool(re.search(r"make did not make (it: )?\.venv[\n,]", done.stdout)) == own
    assert (tmp_path / "_output/thesis.txt").read_text() == (tmp_path / "requirements.lock").read_text() == "mine"


def test_the_command_line_starts_without_loading_torch() -> None:
    program = "import sys, isorepro.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert {command.callback.__name__ for command in cli.app.registered_commands} == {
        "reproduce",
        "verify",
        "publish",
        "list_",
        "clean",
    }


@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_lint(tool: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
