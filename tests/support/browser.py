"""A page in headless Chromium, for tests: its pictures, and what a script in it says."""

import base64
import contextlib
import io
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_START_S = 60


class Browser:
    """One page."""

    def __init__(self, socket: Any):
        self._socket = socket
        self._number = 0

    def _call(self, method: str, **parameters: Any) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=_START_S))
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

    def picture(self) -> np.ndarray:
        """What is seen now, u8[H,W,3]."""
        data = self._call("Page.captureScreenshot")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


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
        with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Browser(socket)
    finally:
        process.kill()
        process.wait()
