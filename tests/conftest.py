"""What several test files share: an output folder of the tests' own, the command line, a network, a browser."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright

from isorepro import cli, data
from isorepro.training import TrainedModel, TrainingConfig, train


@pytest.fixture(scope="session", autouse=True)
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh output folder, so that nothing kept from another run is used."""
    folder = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOREPRO_OUTPUT", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command line in this process; return its exit status and all it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["isorepro", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out + printed.err

    return run


@pytest.fixture(scope="session")
def gone() -> Callable[..., bool]:
    """A function that waits a quarter of a minute for processes to end and returns whether they have."""

    def ended(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    def wait(*pids: int) -> bool:
        deadline = time.monotonic() + 15
        while not all(map(ended, pids)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    return wait


@pytest.fixture(scope="session")
def trained() -> TrainedModel:
    """An isometric network good enough for attacks to be told apart."""
    return train(TrainingConfig(beta=0.1, K=10.0, epochs=3, train_size=6000, device="cpu"))


@pytest.fixture(scope="session")
def images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """A stratified subset of the test images."""
    dataset = data.load("mnist", test_size=600)
    return dataset.test_inputs, dataset.test_labels


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The chromium of this machine."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        if os.environ.get("ISOREPRO_REQUIRE_BROWSER"):
            pytest.fail("no chromium on this machine")
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                # WebGL without a graphics card.
                "--use-gl=angle",
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
                "--disable-background-networking",
                "--disable-component-update",
            ],
        )
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def watched() -> Callable[[Page, str], list[str]]:
    """A function that returns a list to which everything will be added that goes wrong on a page.

    It takes the page and the beginning of the addresses the page may ask for.
    """
    # What chromium says of plotly's speed on a machine without a graphics card.
    slow = ("Canvas2D: Multiple readback operations using getImageData", "GPU stall due to ReadPixels")

    def watch(page: Page, own: str) -> list[str]:
        faults: list[str] = []

        def said(kind: str, text: str) -> None:
            if kind == "error" or (kind == "warning" and not any(known in text for known in slow)):
                faults.append(f"console: {text}")

        page.on("console", lambda message: said(message.type, message.text))
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on(
            "request",
            lambda r: None if r.url.startswith((own, "data:", "blob:")) else faults.append(f"foreign: {r.url}"),
        )
        page.on("requestfailed", lambda r: faults.append(f"failed: {r.url}"))
        page.on("response", lambda r: faults.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        return faults

    return watch
