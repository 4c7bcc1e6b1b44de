"""A real Chromium, driven over its DevTools pipe: keys, sizes, dark mode, a broken network.

The pipe (https://chromedevtools.github.io/devtools-protocol) needs neither a port nor a library.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SKIP = "no Chromium: install chromium to look at pages"
TIMEOUT_S = 60.0
PHONE, DESKTOP = (390, 844), (1280, 860)
#: Keys that are no letters -> their virtual code.
KEYS = {
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "Escape": 27,
    "Enter": 13,
    "Tab": 9,
}
#: Of a browser for one test: no window, no calls of its own.
_SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-breakpad",
)
_CLOCK = """
window.skew = %f;
const Right = Date;
window.Date = class extends Right {
  constructor(...given) { given.length ? super(...given) : super(Right.now() + window.skew); }
  static now() { return Right.now() + window.skew; }
};
"""


class Navigated(AssertionError):
    """The page went away while it was asked."""


class Browser:
    """One page of a headless Chromium. `console` collects errors and what the page complains of."""

    def __init__(self, folder: Path) -> None:
        self.console: list[str] = []
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        self._log = open(folder / "chromium.log", "wb")  # noqa: SIM115 - closed in close()
        # Its two ends must be file descriptors 3 and 4 there, whatever they are here.
        moved = f'exec {CHROMIUM} "$@" 3<&{to_read} 4>&{to_write}'
        switches = (
            *(*_SWITCHES, "--disable-dev-shm-usage", "--remote-debugging-pipe"),
            f"--user-data-dir={folder / 'profile'}",
            "about:blank",
        )
        self._process = subprocess.Popen(
            ["bash", "-c", moved, "chromium", *switches],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._sent = 0
        self._session = ""
        targets = self._call("Target.getTargets")["targetInfos"]
        self._attach(next(target["targetId"] for target in targets if target["type"] == "page"))

    def _attach(self, page: str) -> None:
        attached = self._call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    @contextlib.contextmanager
    def tab(self) -> Iterator[None]:
        """Another tab in the block; the one before stays as it is."""
        before, self._session = self._session, ""
        page = self._call("Target.createTarget", url="about:blank")["targetId"]
        try:
            self._attach(page)
            yield
        finally:
            self._session = ""
            self._call("Target.closeTarget", targetId=page)
            self._session = before

    @contextlib.contextmanager
    def skewed(self, hours: float) -> Iterator[None]:
        """The clock of pages that are opened in the block is wrong, by `skew` milliseconds."""
        source = _CLOCK % (hours * 3_600_000)
        named = self._call("Page.addScriptToEvaluateOnNewDocument", source=source)["identifier"]
        try:
            yield
        finally:
            self._call("Page.removeScriptToEvaluateOnNewDocument", identifier=named)

    def open(self, url: str, *, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
        """Load a page as a screen of this size shows it."""
        width, height = size
        is_phone = size == PHONE
        self._call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "mobile": is_phone},
            deviceScaleFactor=2 if is_phone else 1,
        )
        self._call("Emulation.setTouchEmulationEnabled", enabled=is_phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)

    def reload(self) -> None:
        """As F5 does; returns once the new page is there."""
        self.value("window.isOld = true")
        self._call("Page.reload")
        self.wait("!window.isOld && document.readyState === 'complete'")

    def offline(self, is_offline: bool) -> None:
        """Take the network away, or give it back."""
        speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self._call("Network.emulateNetworkConditions", offline=is_offline, **speed)

    def key(self, key: str) -> None:
        """Press and release a key as a person does."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = KEYS.get(key) or ord(key.upper())
        common = {"key": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown" if text else "rawKeyDown", "text": text}
        self._call("Input.dispatchKeyEvent", **down, **common)
        self._call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self._call("Input.insertText", text=text)

    def choose(self, selector: str, file: Path) -> None:
        """Pick a file in a file input."""
        found = self._call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        node = found["result"]["objectId"]
        self._call("DOM.setFileInputFiles", files=[str(file)], objectId=node)

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        place = self.value(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            where = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", type=kind, **where)

    def drag(self, selector: str, begin: float, end: float) -> None:
        """Drag the mouse over an element, from one share of its width to another."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y, wide = self.value(f"(({{x, y, width, height}}) => [x, y + height / 2, width])({box})")
        for kind, share in (
            *(("mouseMoved", begin), ("mousePressed", begin)),
            *(("mouseMoved", (begin + end) / 2), ("mouseMoved", end), ("mouseReleased", end)),
        ):
            where = {"x": x + share * wide, "y": y, "button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", type=kind, buttons=1, **where)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is on the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, what: str = "", within_s: float = TIMEOUT_S) -> Any:
        """Wait until a JavaScript expression is true; returns it."""
        end = time.monotonic() + within_s
        while True:
            found = None
            with contextlib.suppress(Navigated):  # the page that was asked has gone: ask the next
                found = self.value(expression)
            if found:
                return found
            assert time.monotonic() < end, f"waited in vain for {what or expression}"
            time.sleep(0.02)

    def screenshot(self, path: Path) -> None:
        """What the screen shows, as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(AssertionError, OSError):
            self._session = ""
            self._call("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        for descriptor in (self._read, self._write):
            os.close(descriptor)
        self._log.close()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._sent += 1
        number = self._sent
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(method)
            if answer.get("id") == number:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise Navigated(method)
                assert "error" not in answer, (method, answer["error"])
                found: dict[str, Any] = answer["result"]
                return found
            self._note(answer)

    def _next(self, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], TIMEOUT_S)
            assert ready, f"no answer to {waiting_for}"
            piece = os.read(self._read, 1 << 20)
            assert piece, "Chromium has ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded":
            self.console.append(f"{parameters['entry']['level']}: {parameters['entry']['text']}")
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.console.append(str(parameters["args"]))


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in `folder`."""
    browser = Browser(folder)
    try:
        yield browser
    finally:
        browser.close()


def dom(page: Path, folder: Path, *, width: int = 1200, dark: bool = False) -> str:
    """The DOM of a page after its script has run, in a window `width` wide, with a profile in
    `folder`; fails on any message on the console."""
    command = [
        str(CHROMIUM),
        *_SWITCHES,
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={width},900",
        "--enable-logging=stderr",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    return done.stdout
