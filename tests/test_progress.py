import sys
from pathlib import Path

import pytest

from isorepro import progress


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", made.monotonic)
    monkeypatch.delenv(progress.CHANNEL, raising=False)
    return made


def test_plain_lines_estimate_the_rest_and_are_not_too_many(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in progress.track(range(30), total=30, what="networks"):
        clock.now += 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "networks: 0/30"
    assert lines[1] == "networks: 3/30, 0:06 gone, about 0:54 left"
    assert lines[-1] == "networks: 30/30, 1:00 gone"
    assert len(lines) == 11


def test_a_listening_runner_gets_the_lines_instead(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(progress.CHANNEL, str(tmp_path / "channel"))
    assert list(progress.track(iter("ab"), total=2, what="x")) == ["a", "b"]
    assert (tmp_path / "channel").read_text().splitlines() == ["x: 0/2", "x: 2/2, 0:00 gone"]
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_is_drawn_and_lines_replace_each_other(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.track(range(4), total=4, what="networks")) == [0, 1, 2, 3]
    assert "100%" in capsys.readouterr().err
    progress.show("one")
    progress.show("two")
    progress.say("done")
    assert capsys.readouterr().err.split("\r\x1b[2K") == ["", "one", "two", "done\n"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "60:00")])
def test_clock(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text
