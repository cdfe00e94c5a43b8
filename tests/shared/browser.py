"""A headless Chromium by its DevTools protocol over a pipe: no package, no port, no network."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
DEADLINE_S = 90


def find_browser() -> str | None:
    """Where a Chromium is installed; None if it is not."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One open page, and everything that the browser has told about it."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        """Addresses that the page asked for, its own included."""
        self.complaints: list[str] = []
        """Exceptions, errors of the console, violations of the policy."""

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer of the browser. Raises: RuntimeError if it refuses, TimeoutError if it is silent."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser says nothing")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("the browser has gone")
            self._rest += part
        text, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(text)
        self._hear(message.get("method", ""), message.get("params", {}))
        return message

    def _hear(self, event: str, told: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.complaints.append(str(details.get("exception", details).get("description", details)))
        elif event == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(told["entry"]["text"])
        elif event == "Audits.issueAdded":
            self.complaints.append(json.dumps(told["issue"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.complaints.append(str(told["args"]))

    def open(self, path: Path, *, width: int = 1366, height: int = 768) -> None:
        """Show a file and wait until its script is through."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.until(f"location.href === {json.dumps(path.resolve().as_uri())} && document.readyState === 'complete'")

    def run(self, code: str) -> Any:
        """Value of an expression in the page; a promise is waited for. Raises: RuntimeError if it throws."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait for an expression to be true. Raises: TimeoutError."""
        deadline = time.monotonic() + DEADLINE_S
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise TimeoutError(condition)
            time.sleep(0.02)

    def frame(self) -> None:
        """Wait until what was asked for is painted."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")

    def box(self, selector: str) -> dict[str, float]:
        """Place of an element in the window, scrolled to if need be."""
        return self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); "
            "const b = e.getBoundingClientRect(); return {x: b.x, y: b.y, width: b.width, height: b.height}; })()"
        )

    def press(self, key: str) -> None:
        """A key that is one character or has a name such as `ArrowRight`."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """`mouseMoved`, `mousePressed`, `mouseReleased` or `mouseWheel` at a place in the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def picture(self, path: Path, selector: str | None = None) -> None:
        """A PNG of the window, or of one element."""
        clip = {"clip": {**self.box(selector), "scale": 1}} if selector else {}
        if clip:
            clip["clip"]["y"] += self.run("scrollY")
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=bool(clip), **clip)
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def open_browser(program: str) -> Generator[Page]:
    """A browser with one page, its settings in a folder that goes away."""
    ours_read, theirs_write = _pipe()
    theirs_read, ours_write = _pipe()
    # The browser reads from descriptor 3 and writes to 4, whatever ours are called.
    start = (
        f"import os, sys; os.dup2({theirs_read}, 3); os.dup2({theirs_write}, 4); os.execv(sys.argv[1], sys.argv[1:])"
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", start, program, *FLAGS, f"--user-data-dir={folder}"],
            pass_fds=(theirs_read, theirs_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_read)
        os.close(theirs_write)
        page = Page(ours_write, ours_read)
        try:
            page.attach()
            yield page
        finally:
            process.terminate()
            process.wait()
            os.close(ours_read)
            os.close(ours_write)


def _pipe() -> tuple[int, int]:
    """Two ends with numbers that 3 and 4 cannot be taken from."""
    made = os.pipe()
    high = tuple(fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in made)
    for each in made:
        os.close(each)
    return high[0], high[1]
