"""A page in a real browser: Chromium without a window, driven over the DevTools protocol on a pair of pipes."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One open page; see `browse`."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._held, self._number = send, receive, b"", 0
        self.session = ""
        self.errors: list[str] = []  # exceptions that the page's script did not catch

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"])[:500])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def run(self, script: str) -> Any:
        """Evaluate an expression, wait for it if it is a promise, and return its value."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: str = "") -> None:
        """Press and release a key, where the focus is."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=code or key, **(text if kind == "keyDown" else {})
            )

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until an expression is true."""
        script = f"""new Promise((done, fail) => {{
            const end = Date.now() + {1000 * seconds};
            (function look() {{ if ({condition}) done(true); else if (Date.now() > end)
                fail("never: " + {json.dumps(condition)}); else setTimeout(look, 20); }})(); }})"""
        self.run(script)

    def reload(self, seconds: float = 20) -> None:
        """Load the page again. Whether it is there is asked again and again: a promise would end with the old page."""
        self.run("window.isOld = true")
        self.call("Page.reload")
        end = time.monotonic() + seconds
        while not self.run("!window.isOld && document.readyState === 'complete'"):
            assert time.monotonic() < end, "never loaded again"
            time.sleep(0.02)

    def picture(self, path: Path, *, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Save what a screen of this size shows."""
        self.resize(width, height, dark=dark, scale=scale)
        import base64

        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def resize(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Take a screen of another size, in CSS pixels, and prefer light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            part = os.read(self._receive, 1 << 20)
            assert part, "Chromium has ended"
            self._held += part
        message, _, self._held = self._held.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def browse(path: Path, profile: Path) -> Iterator[Page]:
    """Open a file without any network, in a new profile."""
    with browse_address(path.absolute().as_uri(), profile) as page:
        yield page


@contextmanager
def browse_address(address: str, profile: Path, *more_flags: str) -> Iterator[Page]:
    """Open a file or a page of this machine, in a new profile; other hosts cannot be reached."""
    assert CHROMIUM, "look for CHROMIUM first"
    to_browser, send = os.pipe()
    receive, from_browser = os.pipe()

    def take_pipes() -> None:  # Chromium reads commands from 3 and answers on 4
        low, high = os.dup(to_browser), os.dup(from_browser)
        os.dup2(low, 3)
        os.dup2(high, 4)

    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    flags += ["--mute-audio", "--autoplay-policy=no-user-gesture-required", "--proxy-server=127.0.0.1:9", *more_flags]
    process = subprocess.Popen(
        [CHROMIUM, *flags, "about:blank"], preexec_fn=take_pipes, close_fds=False, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.close(to_browser), os.close(from_browser)
    page = Page(send, receive)
    try:
        target = page.call("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            page.call(f"{domain}.enable")
        page.call("Page.navigate", url=address)
        page.wait("document.readyState === 'complete' && location.protocol !== 'about:'", 60)
        yield page
    finally:
        process.kill()
        process.wait()
        os.close(send), os.close(receive)
