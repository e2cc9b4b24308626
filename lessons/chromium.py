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
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37,
        "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
# Of the page that is open: texts of too little contrast, boxes that Tab does not reach, its width,
# and the colour behind the text.
MEASURE = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
  };
  const weak = new Set(), seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.data.trim() || e.closest(".drawing, script")) continue;
    if (e.closest("pre.code") && seen.has(e.className)) continue;      // one token of each kind
    if (e.closest("pre.code")) seen.add(e.className);
    const style = getComputedStyle(e);
    const colour = rgb(e.closest("svg") ? style.fill : style.color);
    const [low, high] = [light(colour), light(ground(e))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) weak.add(`${e.className} ${node.data.slice(0, 30)}`);
  }
  const stuck = [...document.querySelectorAll("main *")].filter((e) => e.tabIndex < 0 &&
    e.scrollWidth > e.clientWidth && /auto|scroll/.test(getComputedStyle(e).overflowX));
  const page = document.documentElement;
  return {weak: [...weak], stuck: stuck.map((e) => e.className || e.tagName),
          wide: Math.max(page.scrollWidth, document.body.scrollWidth),
          ground: getComputedStyle(document.body).backgroundColor};
})()"""


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

    def open(self, url, width=1280, height=900, scheme="light", motion="no-preference"):
        """Load a page and wait until all of it is there."""
        self.look(width, height, scheme, motion)
        self.send("Page.navigate", url=url)
        self.wait("Page.loadEventFired")

    def look(self, width=1280, height=900, scheme="light", motion="no-preference"):
        """Set the size of the screen, and the colours and motion that the system prefers."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme},
                            {"name": "prefers-reduced-motion", "value": motion}])

    def run(self, script):
        """Evaluate JavaScript in the page -> its value."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True,
                           awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description"))
        return result["result"].get("value")

    def keys(self, *names):
        """Press keys: those of KEYS, or the letters of a text."""
        for name in names:
            key = {"key": name, "windowsVirtualKeyCode": KEYS.get(name, 0)}
            text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
            self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **key)
            self.send("Input.dispatchKeyEvent", type="keyUp", **key)

    def focus(self, selector):
        """Press Tab until an element has the focus."""
        for _ in range(80):
            self.keys("Tab")
            if self.run(f"document.activeElement.matches({selector!r})"):
                return
        raise AssertionError(f"the Tab key does not reach {selector}")

    def press(self, selector, part=0.5, touch=False):
        """Press an element with the mouse or a finger, at this part of its width."""
        box = self.run(f"""(() => {{
          const element = document.querySelector({selector!r});
          element.scrollIntoView({{block: "center"}});
          return element.getBoundingClientRect().toJSON();
        }})()""")
        place = {"x": box["x"] + part * box["width"], "y": box["y"] + box["height"] / 2}
        if touch:
            self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[place])
            self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        else:
            for kind in ("mousePressed", "mouseReleased"):
                self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1,
                          **place)

    def measure(self):
        return self.run(MEASURE)

    def screenshot(self, path, height=None):
        """Save the page as PNG: all of it, or its first `height` pixels."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "scale": 1,
                "height": min(size["height"], height or size["height"])}
        data = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))
