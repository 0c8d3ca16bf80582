"""What publishes the book: the workflows for GitHub, their own scripts run here, and how to cite."""

import json
import os
import re
import subprocess
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from isorepro import cli, paths, profiles, provenance

WORKFLOWS = {path.stem: path for path in (paths.ROOT / ".github" / "workflows").glob("*.yml")}


def workflow(name: str) -> dict[str, Any]:
    # YAML 1.1 reads the key "on" as true.
    return {
        "on" if key is True else key: value for key, value in yaml.safe_load(WORKFLOWS[name].read_text()).items()
    }


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


def scripts(name: str) -> str:
    return "\n".join(step["run"] for step in steps(name) if "run" in step)


def named(name: str, beginning: str) -> dict[str, Any]:
    (found,) = (step for step in steps(name) if step.get("name", "").startswith(beginning))
    return found


def test_the_tests_run_on_every_push_and_pull_request() -> None:
    found = workflow("tests")
    assert found["on"] == {"push": {"branches": ["**"]}, "pull_request": None}
    assert "make test" in scripts("tests").splitlines()
    (job,) = found["jobs"].values()
    assert job["steps"][-1]["env"] == {"ISOREPRO_REQUIRE_BROWSER": "1"}


def test_the_book_is_made_for_a_tag_weekly_and_by_hand() -> None:
    found = workflow("book")
    assert set(found["on"]) == {"push", "schedule", "workflow_dispatch"}
    assert found["on"]["push"] == {"tags": ["v*"]}
    ((minute, hour, day, month, weekday),) = (line["cron"].split() for line in found["on"]["schedule"])
    assert (day, month) == ("*", "*")
    assert all(part.isdecimal() for part in (minute, hour, weekday))
    run = scripts("book")
    assert run.index("make reproduce PROFILE=paper") < run.index("isorepro verify --profile paper")
    # Nothing is shown or archived before the numbers were compared.
    order = [step.get("run", step.get("uses", "")) for step in found["jobs"]["build"]["steps"]]
    compared = order.index(".venv/bin/isorepro verify --profile paper")
    assert all(compared < place for place, step in enumerate(order) if "upload" in step or "tar " in step)
    for job in ("deploy", "release"):
        assert found["jobs"][job]["needs"] == "build"
    assert found["jobs"]["release"]["if"] == "github.ref_type == 'tag'"


@pytest.mark.parametrize("name", ["book", "tests"])
def test_a_workflow_may_do_no_more_than_it_needs(name: str) -> None:
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    assert found["concurrency"]["group"].startswith(f"{name}-")
    more = {job: given["permissions"] for job, given in found["jobs"].items() if "permissions" in given}
    assert (
        more
        == {
            "tests": {},
            "book": {"deploy": {"pages": "write", "id-token": "write"}, "release": {"contents": "write"}},
        }[name]
    )
    for job in found["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 360
    for step in steps(name):
        assert re.fullmatch(r"actions/[a-z-]+(/restore|/save)?@v[0-9]+", step.get("uses", "actions/none@v1"))
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}
        # A script that holds an expression would run what a branch or a tag is called.
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("name", ["book", "tests"])
def test_a_workflow_calls_what_there_is(name: str) -> None:
    run = scripts(name)
    makefile = (paths.ROOT / "Makefile").read_text()
    commands = {found.name or getattr(found.callback, "__name__", "") for found in cli.app.registered_commands}
    for target, profile in re.findall(r"\bmake ([a-z]+)(?: PROFILE=([a-z]+))?$", run, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
        assert not profile or profile in profiles.profile_names()
    for command, profile in re.findall(r"isorepro ([a-z]+) --profile ([a-z]+)", run):
        assert command in commands
        assert profile in profiles.profile_names()
    versions = {step["with"]["python-version"] for step in steps(name) if "setup-python" in step.get("uses", "")}
    assert versions == {"3.11"}
    for step in steps(name):
        for key in re.findall(r"hashFiles\(([^)]*)\)", json.dumps(step.get("with", {}))):
            assert all(list(paths.ROOT.glob(pattern.strip(" '"))) for pattern in key.split(","))
        for path in step.get("with", {}).get("cache-dependency-path", "").split():
            assert (paths.ROOT / path).is_file()
    subprocess.run(["bash", "-n"], input=run, text=True, check=True)


def test_networks_are_kept_where_sweeps_keep_them_under_a_key_of_source_and_lock() -> None:
    restore, save = (named("book", start) for start in ("Take over", "Keep trained"))
    for step in (restore, save):
        assert paths.ROOT / step["with"]["path"] == paths.ROOT / "_output" / "cache"
    assert "hashFiles('requirements.lock')" in restore["with"]["key"]
    assert "hashFiles('isorepro/*.py'" in restore["with"]["key"]
    assert restore["with"]["key"].startswith(restore["with"]["restore-keys"])
    assert f"steps.{restore['id']}.outputs.cache-primary-key" in save["with"]["key"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The folder that the book's workflow archives a run in, made by its own script from a run of empty files."""
    for name in ("book/index.html", "notebooks/rings.ipynb", "results/rings/measures.csv", "manifest.json"):
        path = tmp_path / "_output" / "paper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "_output" / "paper" / provenance.CRATE).touch()
    run(tmp_path, named("book", "Archive the book")["run"])
    return tmp_path / "archive"


def run(folder: Path, script: str, **environment: str) -> None:
    environment = {**os.environ, "GITHUB_REF_NAME": "v1.2.3", **environment}
    # As on a runner.
    subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script], cwd=folder, env=environment, check=True)


def test_a_tag_archives_the_executed_book_with_its_tables_and_how_they_were_made(archive: Path) -> None:
    name = "isorepro-v1.2.3-paper"
    assert {path.name for path in archive.iterdir()} == {f"{name}.tar.gz", f"{name}.tar.gz.sha256"}
    subprocess.run(["sha256sum", "-c", f"{name}.tar.gz.sha256"], cwd=archive, check=True, capture_output=True)
    with tarfile.open(archive / f"{name}.tar.gz") as packed:
        files = {found.name for found in packed if found.isfile()}
    assert files == {
        f"{name}/{inner}"
        for inner in (
            *("book/index.html", "notebooks/rings.ipynb", "results/rings/measures.csv"),
            *("manifest.json", "ro-crate-metadata.json"),
        )
    }


@pytest.mark.parametrize("exists", [False, True])
def test_the_archive_becomes_an_asset_of_the_tags_release(archive: Path, exists: bool) -> None:
    program = archive.parent / "bin" / "gh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> calls\ntest "$2" != view || exit {0 if exists else 1}\n')
    program.chmod(0o755)
    folder = archive.parent
    run(folder, named("book", "Add the archive")["run"], PATH=f"{program.parent}:{os.environ['PATH']}")
    view, *create, upload = (folder / "calls").read_text().splitlines()
    assert view == "release view v1.2.3"
    assert [call.startswith("release create v1.2.3 --verify-tag ") for call in create] == [True] * (not exists)
    assert upload == (
        "release upload v1.2.3 archive/isorepro-v1.2.3-paper.tar.gz "
        "archive/isorepro-v1.2.3-paper.tar.gz.sha256 --clobber"
    )


def test_the_citation_names_this_software_and_the_paper_as_the_other_files_do() -> None:
    cited = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    # What the format asks of every file, and of every work that one refers to.
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(cited)
    assert (cited["version"], cited["license"], cited["type"]) == (
        project["version"],
        project["license"],
        "software",
    )
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= set(paper)
    readme = " ".join((paths.ROOT / "README.md").read_text().split())
    authors = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert f"by {', '.join(authors[:-1])} and {authors[-1]}" in readme
    assert f"doi.org/{paper['doi']}" in readme
    (first,) = paper["identifiers"]
    assert first["value"].replace(":", " ") in readme
    entry = (paths.ROOT / "book/references.bib").read_text().partition("{beshkov2025,")[2].partition("\n}")[0]
    assert f"doi = {{{paper['doi']}}}" in entry
    assert f"title = {{{paper['title']}}}" in entry
    assert f"year = {{{paper['year']}}}" in entry
