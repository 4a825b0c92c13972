"""A page in headless Chromium, for tests: its pictures, and what a script in it says."""

import base64
import contextlib
import io
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_START_S = 120
_MODEL = np.s_[200:, :600]  # of a picture: no controls, and no message of the browser


class Browser:
    """One page."""

    def __init__(self, connection: Any):
        self._connection = connection
        self._number = 0

    def _call(self, method: str, **parameters: Any) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(timeout=_START_S))
            if answer.get("id") == self._number:
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get(
            "value"
        )

    def click_label(self, text: str) -> None:
        """Clicks the control beside a label."""
        script = """(() => {
          const label = [...document.querySelectorAll('label')].find(
            (each) => each.textContent.trim() === TEXT);
          document.getElementById(label.htmlFor).click();
        })()"""
        self.evaluate(script.replace("TEXT", json.dumps(text)))

    def resize(self, width: int, height: int) -> None:
        """Makes it the page of a telephone of that size, in pixels of the page."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2,
            mobile=True,
        )

    def wait_for_file(self) -> None:
        """Waits until the page, a file, is there as a whole."""
        end = time.monotonic() + _START_S
        script = "location.protocol == 'file:' && document.readyState == 'complete'"
        while not self.evaluate(script):
            assert time.monotonic() < end, "the page does not load"
            time.sleep(0.02)

    def next_model(self, before: np.ndarray | None = None) -> np.ndarray:
        """The part of the picture with the model, as soon as it is not blank, other than before,
        and stays for a moment.
        """
        last = before
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            picture = self.picture()[_MODEL]
            is_new = picture.std() > 10 and (before is None or (picture != before).any())
            if is_new and last is not None and (picture == last).all():
                return picture
            last = picture
            time.sleep(0.2)
        raise AssertionError("the page stays as it is")

    def picture(self) -> np.ndarray:
        """What is seen now, u8[H,W,3]."""
        data = self._call("Page.captureScreenshot")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def free_port() -> int:
    """One of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def watch(page: Any, port: int, folder: Path) -> Iterator[Browser]:
    """A browser that looks at a page of `view`, which draws meanwhile.

    Args:
        page: a `viewer.server.Page`.
        port: that its server listens at.
        folder: empty, for the browser's own files.
    """
    is_over = threading.Event()
    loop = threading.Thread(target=page.run, args=(is_over.is_set,))
    loop.start()
    try:
        with open_page(f"http://127.0.0.1:{port}", folder, free_port()) as browser:
            yield browser
    finally:
        is_over.set()
        loop.join()


@contextlib.contextmanager
def open_page(url: str, folder: Path, port: int) -> Iterator[Browser]:
    """A page of 1000 x 600 pixels.

    Args:
        url: of the page.
        folder: empty, for the browser's own files.
        port: a free one.
    """
    from websockets.sync.client import connect

    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--window-size=1000,600",
        f"--user-data-dir={folder}",
        f"--remote-debugging-port={port}",
        url,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + _START_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                    pages = [row for row in json.load(answer) if row["type"] == "page"]
                if pages:
                    break
            except OSError:
                assert time.monotonic() < end, "the browser does not start"
            time.sleep(0.2)
        with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as connection:
            yield Browser(connection)
    finally:
        process.kill()
        process.wait()
