"""A headless Chromium driven through a pipe by its DevTools protocol: real keys, any screen, paper, pictures."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38}


class Page:
    """One page of the browser. *asked*: the addresses that it requested; *said*: errors and its console."""

    def __init__(self, out: int, into: int) -> None:
        self.out, self.into, self.numbers, self.rest = out, into, itertools.count(1), b""
        self.session = ""
        self.asked: list[str] = []
        self.said: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Performance.enable", timeDomain="threadTicks")

    def call(self, method: str, **parameters: Any) -> Any:
        """What the browser answers; events that come before it are noted."""
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.into, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self, seconds: float) -> Any:
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.out], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self.out, 1 << 20) if ready else b""
            assert piece, f"the browser was silent for {seconds:.0f} s, or ended"
            self.rest += piece
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, told: Any) -> None:
        if event == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.said.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
        elif event in ("Runtime.consoleAPICalled", "Log.entryAdded"):
            self.said.append(json.dumps(told)[:500])
        elif event == "Page.loadEventFired":
            self.loaded = True

    def screen(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])

    def open(self, path: Path) -> float:
        """The seconds until the page was loaded, its scripts run and two frames of it drawn."""
        self.loaded, begin = False, time.perf_counter()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self._next(120)
        self.eval("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        return time.perf_counter() - begin

    def busy_s(self) -> float:
        """The seconds of the processor that the page's main thread has used since it was opened."""
        told = {one["name"]: one["value"] for one in self.call("Performance.getMetrics")["metrics"]}
        return float(told["TaskDuration"])

    def eval(self, code: str) -> Any:
        """The value of an expression; of a promise, what it becomes."""
        told = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        for _ in range(times):
            for kind in ("rawKeyDown", "char", "keyUp"):
                text = {"text": "\r"} if key == "Enter" and kind == "char" else {}
                if kind != "char" or text:
                    self.call(
                        "Input.dispatchKeyEvent",
                        type=kind,
                        key=key,
                        code=key,
                        windowsVirtualKeyCode=KEYS[key],
                        **text,
                    )

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Write a PNG of the page."""
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def printed(self) -> bytes:
        """The page as a PDF on A4."""
        told = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)
        return base64.b64decode(told["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a browser whose profile stands in *folder*; the browser ends with the block."""
    assert CHROMIUM
    command = [CHROMIUM, *SWITCHES.split(), f"--user-data-dir={folder / 'user'}"]
    ends = [*os.pipe(), *os.pipe()]
    # Chromium reads commands from descriptor 3 and answers on 4: ours must be none of these.
    reads, writes, gets, gives = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    started = ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{gives}', "bash", *command]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(started, pass_fds=(reads, gives), stdout=log, stderr=log)
    os.close(reads)
    os.close(gives)
    try:
        page = Page(gets, writes)
        yield page
        page.session = ""
        page.call("Browser.close")
    finally:
        os.close(writes)
        os.close(gets)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
