"""The command line: ``isorepro reproduce | verify | publish | list | clean``."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from isorepro import paths
from isorepro.errors import DataError, InputError, NotebookError
from isorepro.progress import clock, say, say_left

app = typer.Typer(
    help="Reproduce 'Isometric Representations in Neural Networks Improve Robustness', figure by figure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="How much to run: smoke, quick or paper.")] = "quick",
    only: Annotated[list[str] | None, typer.Option(help="Run this notebook only; may be repeated.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processors to use (default: all; on a GPU one process).")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="name=value (YAML), in place of the profile's."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            envvar="ISOREPRO_CLUSTER",
            help="Compute on a cluster: slurm, or the address of a dask scheduler, such as tcp://127.0.0.1:8786.",
        ),
    ] = None,
    cluster_options: Annotated[
        Path | None, typer.Option(help="Options of Slurm jobs (default: cluster/slurm.yml).")
    ] = None,
) -> None:
    """Run the notebooks of a profile and build the book; what is up to date is not done again."""
    from isorepro import cluster, profiles

    started = time.monotonic()
    planned = profiles.plan(profile, _names(only or []), _assignments(parameter or []))
    place = cluster.where(on, cluster_options) if on else None
    # Before matplotlib is imported, here for the book, which reads them then.
    os.environ.update({name: paths.surroundings()[name] for name in ("MATPLOTLIBRC", "MPLCONFIGDIR")})
    from isorepro import book, runner

    say(f"profile '{profile}': {len(planned.notebooks)} notebook(s), results in {_shown(planned.folder)}")
    try:
        runner.run(planned, jobs, place)
    except KeyboardInterrupt:
        say("interrupted: finished work is kept, the same command goes on from there")
        raise typer.Exit(130) from None
    if not planned.whole:
        for notebook in planned.notebooks:
            print(f"notebook: {_shown(planned.folder / 'notebooks' / notebook)}.ipynb")
            print(f"results:  {_shown(planned.folder / 'results' / notebook)}")
        return
    index = book.build(planned)
    print(f"done in {clock(time.monotonic() - started)}")
    print(f"book:     {_shown(index)}")
    print(f"tables and figures: {_shown(planned.folder / 'results')}")
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    print(f"open it:  {opener} {_shown(index)}   (or: make serve PROFILE={planned.folder.name})")


@app.command()
def verify(
    profile: Annotated[str, typer.Option(help="Whose run: smoke, quick or paper.")] = "paper",
    only: Annotated[list[str] | None, typer.Option(help="Compare this notebook only; may be repeated.")] = None,
) -> None:
    """Compare a finished run with the published numbers; exit 1 if one moved beyond what seeds explain."""
    from isorepro import profiles, reference

    planned = profiles.plan(profile)
    if profile not in reference.published():
        known = ", ".join(reference.published()) or "(none)"
        raise InputError(f"profile '{profile}' has no published numbers: there are some for {known}")
    if not (planned.folder / "results").is_dir():
        raise InputError(
            f"profile '{profile}' has no run yet: make one with 'isorepro reproduce --profile {profile}'"
        )
    published = reference.REFERENCE / profile
    told = reference.manifest(published)
    compared = reference.compare(planned.folder, published, _names(only or []))
    made = f"commit {told['commit'][:10]}, {told['written'][:10]}, {told['processor']}"
    print(f"run:       {_shown(planned.folder)}")
    print(f"reference: {_shown(published)} ({made})")
    print(f"{'table':<44}{'measures':>9}{'identical':>11}{'within':>8}{'moved':>7}")
    for row in reference.counts(compared).to_dict("records"):
        numbers = f"{row['measures']:>9}{row['identical']:>11}{row['within']:>8}{row['moved']:>7}"
        print(f"{row['notebook'] + '/' + row['table']:<44}{numbers}")
    moved = compared[compared["moved"]]
    for row in moved.to_dict("records"):
        place = ": ".join(filter(None, [f"{row['notebook']}/{row['table']}", row["measure"]]))
        print(f"{row['verdict']}: {place}")
        if row["verdict"] == reference.MOVED:
            values = (f"{name} {row[name]:.6g}" for name in ("reference", "run", "tolerance"))
            print(f"    {', '.join(values)}")
    if len(moved):
        print(f"{len(moved)} of {len(compared)} moved or could not be compared")
        raise typer.Exit(1)
    print(f"no number moved: {len(compared)} compared")


@app.command()
def publish(profile: Annotated[str, typer.Option(help="Whose run: smoke, quick or paper.")]) -> None:
    """Make the finished run of a profile the published numbers that verify compares with."""
    from isorepro import profiles, reference

    folder = reference.publish(profiles.plan(profile))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"published: {_shown(folder)} ({size / 1000:.0f} kB); to be committed")


@app.command("list")
def list_() -> None:
    """List the profiles, and the notebooks with their parameters."""
    from isorepro import profiles

    for name in profiles.profile_names():
        text = (profiles.PROFILES / f"{name}.yml").read_text().splitlines()
        print(f"profile {name}")
        for line in text:
            if not line.startswith("#"):
                break
            print(f"  {line.lstrip('# ')}")
    for name in profiles.notebook_names():
        print(f"notebook {name}")
        for found in profiles.parameters(name).values():
            print(f"  {found.name}: {found.annotation} = {found.default!r}  {found.meaning}")
    print("types of parameters")
    for name, allowed in profiles.kinds().items():
        print(f"  {name}: {allowed}")


@app.command()
def clean(
    everything: Annotated[
        bool, typer.Option("--all", help="Also the kept networks, measurements and unpacked data.")
    ] = False,
) -> None:
    """Delete the runs' products; trained networks and measurements stay unless --all is given.

    What isorepro did not make stays in any case, and is named.
    """
    import filelock

    kept = set() if everything else {"cache", "data"}
    folders = [path for path in sorted(paths.output().glob("*")) if path.name not in kept]
    for path in folders:
        for lock in paths.made(path):
            if lock.parent.name == ".running" and lock.is_file():
                try:
                    with filelock.FileLock(lock, blocking=False):
                        pass
                except filelock.Timeout:
                    raise InputError(f"a run is at work in {path}: stop it first; nothing was deleted") from None
    for path in folders:
        left = paths.remove(path)
        if left != [path]:
            print(f"deleted {'what runs made in ' if left else ''}{_shown(path)}")
        say_left(left)


def main() -> None:
    """Run the command line; a mistake of the user's ends in one line and a non-zero exit status."""
    try:
        paths.output()  # refused before anything else is done
        app(standalone_mode=True)
    except InputError as error:
        sys.exit(_told(error, 2))
    except (DataError, NotebookError) as error:
        sys.exit(_told(error, 1))
    except OSError as error:
        # A full disk or a read-only folder: files are written whole or not at all, so nothing is lost.
        place = f": {error.filename}" if error.filename else ""
        sys.exit(_told(f"{error.strerror or error}{place} (finished work is kept)", 1))


def _told(message: object, status: int) -> int:
    say(f"error: {message}")
    return status


def _names(given: list[str]) -> list[str]:
    return [name.removesuffix(".ipynb") for text in given for name in text.split(",")]


def _assignments(given: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"-p {text}: must be name=value")
        try:
            values[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"-p {text}: the value must be YAML, such as 0.1, [0, 1] or raw") from None
    return values


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
