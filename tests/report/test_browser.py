"""The page in a real browser: it renders, its pictures decode, the console is silent, nothing asks the network."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nettrim.report import Report, Section, render_page

pytestmark = pytest.mark.browser

# Chromium speaks on file descriptors 3 and 4; a launcher puts the pipes there, whatever numbers they have here
_LAUNCHER = """
import fcntl, os, sys
reading, writing = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(reading, 3)
os.dup2(writing, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--no-default-browser-check", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """A headless Chromium driven by the DevTools protocol over a pipe."""

    def __init__(self, binary: str, profile: Path) -> None:
        child_reads, self._writes = os.pipe()
        self._reads, child_writes = os.pipe()
        fcntl.fcntl(self._reads, fcntl.F_SETFL, os.O_NONBLOCK)
        command = [sys.executable, "-c", _LAUNCHER, str(child_reads), str(child_writes)]
        command += [binary, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=(child_reads, child_writes), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(child_reads)
        os.close(child_writes)
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    def open(self, url: str, width: int = 1200, dark: bool = False) -> None:
        """Load a page and wait for it, collecting every event on the way."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)
        self._wait(lambda message: message.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command and its answer."""
        self._last += 1
        number = self._last
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        answer = self._wait(lambda reply: reply.get("id") == number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def close(self) -> None:
        """End the browser: closing its pipe is its signal to leave."""
        os.close(self._writes)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._reads)

    def _wait(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 60.0) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            while b"\0" in self._buffer:
                raw, self._buffer = self._buffer.split(b"\0", 1)
                message = json.loads(raw)
                if "method" in message:
                    self.events.append(message)
                if wanted(message):
                    return message
            try:
                chunk = os.read(self._reads, 1 << 20)
                assert chunk, f"the browser went away, code {self.process.poll()}"
                self._buffer += chunk
            except BlockingIOError:
                time.sleep(0.01)
        raise TimeoutError("the browser did not answer")


@pytest.fixture
def browser(chromium: str, tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(chromium, tmp_path / "profile")
    yield browser
    browser.close()


def complaints(browser: Browser) -> list[str]:
    """Everything that went to the console: messages, exceptions, and the browser's own log."""
    methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    return [json.dumps(event["params"]) for event in browser.events if event["method"] in methods]


def requests(browser: Browser) -> list[str]:
    """Every address asked for that is not inside the page itself."""
    urls = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]


def test_the_page_renders_in_light_and_dark(browser: Browser, full: Report, tmp_path: Path) -> None:
    sections = [Section("Parallel", full, "A first trim.\n\nIn two paragraphs."), Section("Cascade <&>", full)]
    url = render_page("Digits <script>alert(2)</script>", sections, tmp_path / "page.html").as_uri()
    backgrounds = []
    for dark in (False, True):
        browser.events.clear()
        browser._session = None
        browser.open(url, dark=dark)
        assert complaints(browser) == []
        assert requests(browser) == [url]
        assert browser.evaluate("document.scripts.length") == 0
        assert browser.evaluate("document.querySelectorAll('h2').length") >= 4
        # one trade-off for the page; bars, dots, network and two a matrix for each section
        assert browser.evaluate("document.querySelectorAll('svg.nt-figure').length") == 1 + 2 * (3 + 2 * 4)
        assert browser.evaluate(
            "[...document.querySelectorAll('svg.nt-figure')].every(s => s.getBoundingClientRect().height > 60)"
        )
        assert browser.evaluate(
            """Promise.all([...document.querySelectorAll('svg image')].map(async node => {
                const picture = new Image();
                picture.src = node.href.baseVal;
                await picture.decode();
                return picture.naturalWidth;
            })).then(widths => widths.length == 16 && widths.every(width => width > 0))"""
        )
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        backgrounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        ink = browser.evaluate("getComputedStyle(document.querySelector('svg.nt-figure text')).fill")
        assert ink == browser.evaluate(
            "(() => { const p = document.createElement('p'); p.style.color = 'var(--nt-ink)'; document.body.append(p);"
            " return getComputedStyle(p).color; })()"
        ) or ink == browser.evaluate("getComputedStyle(document.querySelector('figcaption')).color")
    assert backgrounds[0] != backgrounds[1]


def test_the_page_fits_a_telephone(browser: Browser, full: Report, tmp_path: Path) -> None:
    url = full.to_html(tmp_path / "page.html").as_uri()
    browser.open(url, width=380)
    assert complaints(browser) == []
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_checks_notice_a_bad_page(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('no'); missing()</script><img src='http://127.0.0.1:9/x.png'>")
    browser.open(page.as_uri())
    assert len(complaints(browser)) >= 2
    assert len(requests(browser)) == 2
