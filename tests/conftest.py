"""What several test files share: a folder for output, the command line, a network, a browser, a book."""

import fcntl
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from torch import Tensor, nn

from isorepro import cli, data
from isorepro.training import TrainedModel, TrainingConfig, train


@pytest.fixture(scope="session", autouse=True)
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh output folder, so that nothing kept from another run is used."""
    folder = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        for name in {name for name in os.environ if name.startswith("ISOREPRO_")} - {"ISOREPRO_REQUIRE_BROWSER"}:
            patch.delenv(name)  # a setting of whoever started the tests
        patch.setenv("ISOREPRO_OUTPUT", str(folder))
        yield folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest, so that two processors end at about the same time.

    The second worker has something to do while the book is made, and the first one looks at it again at the end.
    """
    first = ["test_pages", "test_runner", "test_book"]
    items.sort(key=lambda item: first.index(item.path.stem) if item.path.stem in first else len(first))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _still_one_thread(_one_thread: None) -> Iterator[None]:
    """See to it that no test leaves more threads to the next: the bits of sums hang on them."""
    yield
    assert torch.get_num_threads() == 1


class NumpyTanh(nn.Module):
    """The tanh of NumPy as a layer, for chains of layers that are to have the library's bits."""

    class _Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            y = torch.from_numpy(np.tanh(x.numpy()))
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (y,) = ctx.saved_tensors
            slope: Tensor = torch.ops.aten.tanh_backward(gradient, y)
            return slope

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self._Function.apply(x)
        return found


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command line in this process; return its exit status and all it printed."""
    for name in ("MATPLOTLIBRC", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # so that what it sets ends with the test

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


VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 360, "height": 780}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}


"""How pages are looked at."""


def isorepro(output: Path, command: str = "reproduce", *options: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line on the smoke profile, with an output folder of its own."""
    return subprocess.run(
        [sys.executable, "-m", "isorepro.cli", command, "--profile", "smoke", *options],
        env=os.environ | {"ISOREPRO_OUTPUT": str(output)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def smoke_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished smoke run, to be copied; tests that run side by side share it."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    folder, failed = folder / "smoke_output", folder / "smoke_failed"
    with (folder.parent / "smoke_lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists() and not failed.exists():
            done = isorepro(folder)
            if done.returncode or f"book:     {folder}/smoke/book/index.html" not in done.stdout:
                failed.write_text(done.stdout + done.stderr)
    assert not failed.exists(), failed.read_text()
    return folder


@pytest.fixture(scope="module")
def run(smoke_output: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished smoke run, in an output folder of the file's own that the command line takes."""
    folder = tmp_path_factory.mktemp("book")
    shutil.copytree(smoke_output, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOREPRO_OUTPUT", str(folder))
        yield folder / "smoke"


@pytest.fixture(scope="module")
def site(run: Path) -> Iterator[str]:
    """The book served over http on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(run / "book"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pages(run: Path) -> list[str]:
    found = [path.relative_to(run / "book").as_posix() for path in (run / "book").rglob("*.html")]
    # Of the pages on modules, and of the listings of their source, one stands for all.
    left_out = ("_static", "results", "genindex", "_modules", "api/")
    examples = ("_modules/isorepro/losses.html", "api/isorepro.training.html")
    return sorted(name for name in found if not name.startswith(left_out) or name in examples)
