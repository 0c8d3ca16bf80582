"""Kill a run at random moments, go on, and compare with a run left alone: ``python benchmarks/kills.py``.

Each time the driver gets SIGKILL, which no program can answer, and the same command is given again. At the end

* every table is, byte for byte, that of the run left alone;
* no trained network and no measurement that was finished has been made again;
* no file that was read was half written: the program tells of a damaged file, and must not have told of any.

Then two runs at once share one folder, and both must come to the same tables.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(output: Path, profile: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "isorepro.cli", "reproduce", "--profile", profile]
    environment = os.environ | {"ISOREPRO_OUTPUT": str(output)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(run: "subprocess.Popen[str]") -> str:
    said, _ = run.communicate()
    if run.returncode:
        sys.exit(f"error: a run that was not killed failed:\n{said}")
    return said


def kept(output: Path) -> dict[Path, int]:
    """Return the kept results with the time each was written."""
    found = [path for folder in ("models", "tables") for path in (output / "cache" / folder).glob("[!.]*")]
    return {path: path.stat().st_mtime_ns for path in found}


def tables(output: Path, profile: str) -> dict[str, bytes]:
    results = output / profile / "results"
    # How long a notebook took is not the same twice.
    return {
        path.relative_to(results).as_posix(): path.read_bytes()
        for path in sorted(results.rglob("*.csv"))
        if path.parent.name != "run"
    }


def differing(one: Path, other: Path, profile: str) -> list[str]:
    """Return the names of tables that are not the same bytes, or not there, in both."""
    first, second = tables(one, profile), tables(other, profile)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how often a run is killed")
    parser.add_argument("--profile", default="smoke", help="what is run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    moments = random.Random(given.seed)
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        alone, twice = Path(folder, "alone"), Path(folder, "twice")
        started = time.monotonic()
        finish(start(alone, given.profile))
        whole = time.monotonic() - started
        print(f"left alone: {whole:.0f} s, {len(kept(alone))} results kept", flush=True)
        kills, finished, again, said, done = 0, 0, 0, "", False
        # The last run that was killed is brought to its end, too.
        while kills < given.kills or not done:
            # A run that came to its end is compared, and the next ones begin from nothing.
            killed = Path(folder, f"killed-{finished}")
            before = kept(killed)
            run = start(killed, given.profile)
            moment = moments.uniform(1, whole / 3)
            try:
                run.wait(moment if kills < given.kills else None)
            except subprocess.TimeoutExpired:
                done = False
                run.kill()
                kills += 1
                said += run.communicate()[0]
            else:
                said += finish(run)
                done = True
                finished += 1
                moment = float("nan")
                faults += differing(alone, killed, given.profile)
            now = kept(killed)
            again += sum(now.get(path) != written for path, written in before.items())
            told = f"kill {kills:2}: after {moment:4.1f} s" if moment == moment else "came to its end"
            print(f"{told}, {len(now)} results kept", flush=True)
        runs = [start(twice, given.profile) for _ in range(2)]
        for run in runs:
            said += finish(run)
        apart = differing(alone, twice, given.profile)
        count = len(tables(alone, given.profile))
    print(f"killed {kills} times, came to an end {finished} times")
    print(f"tables that differ after kills: {', '.join(faults) or 'none'}, of {count}")
    print(f"tables that differ of two runs at once on one cache: {', '.join(apart) or 'none'}, of {count}")
    print(f"finished results made again: {again}")
    print(f"damaged files told of: {said.count('is damaged')}")
    if faults or apart or again or "is damaged" in said:
        sys.exit(1)


if __name__ == "__main__":
    main()
