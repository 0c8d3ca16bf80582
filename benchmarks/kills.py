"""Kill a run at random moments, go on, and compare with a run left alone: ``python benchmarks/kills.py``.

Each time the driver gets SIGKILL, which no program can answer, and the same command is given again. At the end

* every table is, byte for byte, that of the run left alone;
* no trained network and no measurement that was finished has been made again;
* no file that was read was half written: the program tells of a damaged file, and must not have told of any.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed")
    parser.add_argument("--profile", default="smoke", help="what is run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder, "alone"), Path(folder, "killed")
        started = time.monotonic()
        finish(start(alone, given.profile))
        whole = time.monotonic() - started
        print(f"left alone: {whole:.0f} s, {len(kept(alone))} results kept", flush=True)
        before: dict[Path, int] = {}
        said, again, ended = "", 0, 0
        for number in range(1, given.kills + 1):
            run = start(killed, given.profile)
            # Most kills fall into the work that is left; a few find the run at its end.
            moment = moments.uniform(1, whole / 3)
            try:
                run.wait(moment)
                ended += 1
            except subprocess.TimeoutExpired:
                run.kill()
            said += run.communicate()[0]
            now = kept(killed)
            again += sum(now.get(path) != written for path, written in before.items())
            before = now
            print(f"kill {number:2}: after {moment:4.1f} s, {len(now)} results kept", flush=True)
        said += finish(start(killed, given.profile))
        now = kept(killed)
        again += sum(now.get(path) != written for path, written in before.items())
        one, other = tables(alone, given.profile), tables(killed, given.profile)
        differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    print(f"runs that had ended before their kill: {ended} of {given.kills}")
    print(f"tables that differ: {', '.join(differing) or 'none'}, of {len(one)}")
    print(f"finished results made again: {again}")
    print(f"damaged files told of: {said.count('is damaged')}")
    if differing or again or "is damaged" in said:
        sys.exit(1)


if __name__ == "__main__":
    main()
