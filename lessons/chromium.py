"""A small client of headless Chromium: the DevTools protocol over two pipes, standard library only.

    with Browser(find_chromium()) as browser:
        browser.open("file:///tmp/site/index.html", width=360)
        browser.run("document.title")
        browser.keys("Tab", "Enter")
        browser.screenshot("page.png")

Used by the tests of the site. Messages are JSON, each ends with a zero byte.
"""
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-extensions", "--hide-scrollbars",
         "--remote-debugging-pipe", "--force-color-profile=srgb")
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}


def find_chromium():
    """The path of Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One page of one browser. errors: what its console and its loader complained about."""

    def __init__(self, program, limit=60):
        self.limit, self.number, self.errors, self.buffer = limit, 0, [], b""
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (theirs, self.write), (self.read, answers) = os.pipe(), os.pipe()
        command = f'exec "$0" "$@" 3<&{theirs} 4>&{answers}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, program, *FLAGS, f"--user-data-dir={self.profile.name}"],
            pass_fds=(theirs, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(answers)
        self.session = None
        page = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(self.limit)
        os.close(self.write)
        os.close(self.read)
        self.profile.cleanup()

    def message(self):
        """The next message that the browser sends."""
        end = time.monotonic() + self.limit
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self.read, 1 << 20)
            if not data:
                raise ConnectionError("Chromium has ended")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        self.note(message.get("method"), message.get("params", {}))
        return message

    def note(self, method, params):
        """Keep what went wrong in the page."""
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"].get("text", "exception"))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.errors.append(f"asks the network for {url}")

    def send(self, method, **params):
        """Call a method of the protocol -> its result."""
        self.number += 1
        call = {"id": self.number, "method": method, "params": params}
        if self.session:
            call["sessionId"] = self.session
        os.write(self.write, json.dumps(call).encode() + b"\0")
        while (message := self.message()).get("id") != self.number:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def wait(self, event):
        while self.message().get("method") != event:
            pass

    def open(self, url, width=1280, height=900, scheme="light"):
        """Load a page and wait until all of it is there."""
        self.look(width, height, scheme)
        self.send("Page.navigate", url=url)
        self.wait("Page.loadEventFired")

    def look(self, width=1280, height=900, scheme="light"):
        """Set the size of the screen, and the colours that the system prefers."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run(self, script):
        """Evaluate JavaScript in the page -> its value."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True,
                           awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description"))
        return result["result"].get("value")

    def keys(self, *names):
        """Press keys: Tab, Enter, Escape, a space, or the letters of a text."""
        for name in names:
            key = {"key": name, "windowsVirtualKeyCode": KEYS.get(name, 0)}
            text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
            self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **key)
            self.send("Input.dispatchKeyEvent", type="keyUp", **key)

    def screenshot(self, path, height=None):
        """Save the page as PNG: all of it, or its first `height` pixels."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "scale": 1,
                "height": min(size["height"], height or size["height"])}
        data = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))
