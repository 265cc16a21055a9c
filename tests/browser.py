"""A headless Chromium driven through its DevTools pipe, with nothing but the standard library.

Owns one browser process with an empty profile and one page in it. Input: a file on disk. Output: what scripts return, console messages, requests, pictures.
Refuses to install a browser: `chromium()` is None where there is none.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
FLAGS += ("--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage")


def chromium() -> str | None:
    """The browser on this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """A context manager: `with Browser() as browser: browser.open(path)`."""

    def __init__(self, width: int = 1060, height: int = 1400, timeout_s: float = 60.0):
        program = chromium()
        if program is None:
            raise RuntimeError("no chromium found; install one (Debian: apt-get install chromium)")
        self._timeout_s, self._numbers, self._buffer, self.events = timeout_s, itertools.count(1), b"", []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        from_us, self._to = os.pipe()
        self._from, to_us = os.pipe()
        # the browser reads commands from descriptor 3 and writes to 4; the copies above 9 are those that pass_fds keeps open
        read_end, write_end = (os.dup(end) for end in (from_us, to_us))
        command = [program, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{read_end} 4>&{write_end}', "bash", *command],
            pass_fds=(read_end, write_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (from_us, to_us, read_end, write_end):
            os.close(end)
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One DevTools command. Raises RuntimeError with the browser's message."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": self._session} if self._session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next(time.monotonic() + self._timeout_s)
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                return reply["result"]
            self.events.append(reply)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._from, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError(f"the browser said nothing for {self._timeout_s:.0f} s or ended (exit code {self._process.poll()})")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file anew and wait until its load event is over."""
        for url in ("about:blank", path.absolute().as_uri() + fragment):  # from the file itself, another fragment would load nothing
            self._load(url)

    def _load(self, url: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + self._timeout_s
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next(deadline))

    def run(self, script: str) -> Any:
        """The value of a script's last expression. Raises RuntimeError when it throws."""
        reply = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(reply["exceptionDetails"]["exception"].get("description", "the script threw"))
        return reply["result"].get("value")

    def problems(self) -> list[str]:
        """Console errors and warnings, exceptions, and what the page's policy refused, since `open`."""
        self.call("Page.getLayoutMetrics")
        while b"\0" in self._buffer or select.select([self._from], [], [], 0.3)[0]:
            self.events.append(self._next(time.monotonic() + self._timeout_s))
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"]["text"])
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(str(params["args"]))
        return found

    def requests(self) -> list[str]:
        """Addresses asked for since `open`, those inside the page (data:) left out."""
        sent = [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def look(self, *, dark: bool = False, width: int = 1060, height: int = 1400, phone: bool = False, scripts: bool = True) -> None:
        """How the next pages are seen."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)

    def key(self, name: str, code: int, text: str = "") -> None:
        """Press and release one key."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **typed)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]))
