"""A headless Chromium for tests, driven by its DevTools protocol over a pipe: nothing to install but Chromium itself.

The protocol is JSON messages that end in a zero byte; Chromium reads them from file descriptor 3 and answers on 4.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time

FLAGS = [
    "--headless",
    "--no-sandbox",  # a container's root user has no other way
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


class Chromium:
    """One browser with one page.

    with Chromium() as browser: browser.open(path); browser.evaluate("1 + 1"). `errors` collects what the page throws or
    prints as an error, `requests` every address that it asks for.
    """

    def __init__(self, timeout=30):
        self.timeout = timeout
        self.errors, self.requests, self.replies = [], [], {}
        self.number, self.session, self.loaded, self.buffer = 0, None, False, b""

    def __enter__(self):
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        theirs_in, self.to = (_above(fd) for fd in os.pipe())
        self.back, theirs_out = (_above(fd) for fd in os.pipe())
        quiet = os.open(os.devnull, os.O_WRONLY)
        self.pid = os.posix_spawn(
            shutil.which("chromium"),
            ["chromium", *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            {**os.environ, "HOME": self.profile},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs_in, 3),
                (os.POSIX_SPAWN_DUP2, theirs_out, 4),
                (os.POSIX_SPAWN_DUP2, quiet, 1),
                (os.POSIX_SPAWN_DUP2, quiet, 2),
            ],
            setsid=True,  # a process group of its own, so that no child outlives the test
        )
        for fd in (theirs_in, theirs_out, quiet):
            os.close(fd)
        try:
            targets = self.send("Target.getTargets")["targetInfos"]
            page = next(t["targetId"] for t in targets if t["type"] == "page")
            self.session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
            self.send("Network.setCacheDisabled", cacheDisabled=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.to)
        os.close(self.back)
        shutil.rmtree(self.profile, ignore_errors=True)

    # --- the protocol -------------------------------------------------------------------------------------------------

    def send(self, method, **params):
        """Call a method of the protocol and wait for its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data) :]
        self.wait(lambda: self.number in self.replies, method)
        reply = self.replies.pop(self.number)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def wait(self, done, what):
        """Read messages until done(); TimeoutError after the browser's timeout."""
        end = time.monotonic() + self.timeout
        while not done():
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.back], [], [], left)[0]:
                raise TimeoutError(f"chromium did not answer {what} within {self.timeout} s")
            chunk = os.read(self.back, 1 << 16)
            if not chunk:
                raise RuntimeError(f"chromium ended while {what} was waited for")
            *messages, self.buffer = (self.buffer + chunk).split(b"\0")
            for message in messages:
                self.receive(json.loads(message))

    def receive(self, message):
        if "id" in message:
            self.replies[message["id"]] = message
            return
        params = message.get("params", {})
        match message["method"]:
            case "Page.loadEventFired":
                self.loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.errors.append(str([a.get("value") for a in params["args"]]))

    # --- what a user does ---------------------------------------------------------------------------------------------

    def open(self, path, width=1000, height=900, dark=False):
        """Load a file and wait for its load event; returns the seconds that took."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.errors.clear()
        self.requests.clear()
        self.loaded = False
        start = time.monotonic()
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait(lambda: self.loaded, f"the load of {path.name}")
        return time.monotonic() - start

    def evaluate(self, script):
        """The value of a JavaScript expression (a promise is awaited)."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"].get("exception", {}).get("description", "exception"))
        return done["result"].get("value")

    def mouse(self, kind, x, y, shift=False):
        """kind: 'move' or 'click', at x, y in CSS pixels of the window."""
        common = {"x": x, "y": y, "modifiers": 8 if shift else 0}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **common)
        if kind == "click":
            for event in ("mousePressed", "mouseReleased"):
                self.send("Input.dispatchMouseEvent", type=event, button="left", clickCount=1, **common)

    def key(self, key):
        """Press and release one key, by its name in JavaScript ('ArrowUp', 'm')."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}.get(key, 0)
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path, whole=True):
        """Write a PNG of the window, or of the whole page."""
        done = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(done["data"]))


def _above(fd):
    """The descriptor moved out of the way of 0-4, closed for every other child."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved
