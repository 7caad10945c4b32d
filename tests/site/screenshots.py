"""``python -m tests.site.screenshots SITE OUT``: every built page in a browser, at the widths of a phone and a screen.

Needs ``DINONECK_CHROMIUM=PATH`` of a Chromium or Chrome. Prints what does not fit and leaves one PNG per page and
width in OUT.
"""

from __future__ import annotations

import base64
import functools
import http.server
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.site.browser import VARIABLE, Chromium, is_there
from tests.site.built_pages import read_pages

WIDTHS = (390, 1280)
SMALLEST_FONT_PX = 12.0
MEASURE = """
(async () => {
  for (const image of document.images) { image.loading = 'eager'; }
  await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
  const wide = document.documentElement.clientWidth;
  const boxed = node => {
    for (let up = node.parentElement; up; up = up.parentElement) {
      const how = getComputedStyle(up).overflowX;
      if (how === 'auto' || how === 'scroll') return true;
    }
    return false;
  };
  const shown = node => node.getClientRects().length && getComputedStyle(node).visibility !== 'hidden';
  const out = [], small = {};
  let smallest = 99;
  const main = document.querySelector('.md-content') || document.body;
  for (const node of main.querySelectorAll('*')) {
    if (!shown(node)) continue;
    const box = node.getBoundingClientRect();
    const name = node.tagName + '.' + node.className;
    if (box.right > wide + 1 && !boxed(node)) out.push(name + ' ' + Math.round(box.right));
    const words = [...node.childNodes].some(part => part.nodeType === 3 && part.textContent.trim());
    if (words) {
      const size = parseFloat(getComputedStyle(node).fontSize);
      smallest = Math.min(smallest, size);
      if (size < 12) small[name] = size;
    }
  }
  return {
    overflow: document.documentElement.scrollWidth - wide,
    height: document.documentElement.scrollHeight,
    out: out.slice(0, 8), smallest, small,
    images: [...main.querySelectorAll('img')].filter(shown).filter(
      image => !image.naturalWidth || image.getBoundingClientRect().right > wide + 1).map(image => image.src),
  };
})()
"""


@dataclass
class Look:
    """What one page looked like at one width."""

    url: str
    width: int
    overflow_px: int
    smallest_font_px: float
    beyond: list[str] = field(default_factory=list)
    small: dict[str, float] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Everything that must not be."""
        return [
            *([f"scrolls sideways by {self.overflow_px} px"] if self.overflow_px > 0 else []),
            *(f"beyond the edge: {line}" for line in self.beyond),
            *(
                [f"font of {self.smallest_font_px} px: {self.small}"]
                if self.smallest_font_px < SMALLEST_FONT_PX
                else []
            ),
            *(f"image: {line}" for line in self.images),
            *(f"console: {line}" for line in self.console),
            *(f"request: {line}" for line in self.requests),
        ]


def look_at(browser: Chromium, site: Path, urls: Sequence[str], out: Path | None = None) -> list[Look]:
    """Open every page at every width; screenshots go to ``out``."""
    seen = []
    with served(site) as address:
        for width in WIDTHS:
            browser.send(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
            )
            for url in urls:
                seen.append(_look(browser, address, url, width))
                if out is not None:
                    _shoot(browser, out / f"{width}{url.replace('/', '_').rstrip('_') or '_index'}.png")
    return seen


def _look(browser: Chromium, address: str, url: str, width: int) -> Look:
    browser.events.clear()
    browser.send("Page.navigate", url=address + url)
    browser.wait("Page.loadEventFired")
    told: dict[str, Any] = browser.evaluate(MEASURE)
    look = Look(url, width, told["overflow"], told["smallest"], told["out"], told["small"], told["images"])
    for event in browser.events:
        params, method = event.get("params", {}), event.get("method", "")
        if method == "Log.entryAdded" and params["entry"]["level"] == "error":
            look.console.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            look.console.append(str(params["exceptionDetails"].get("text")))
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            look.console.append(str(params["args"]))
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            look.requests.append(str(params.get("errorText")))
        elif method == "Network.responseReceived" and params["response"]["status"] >= 400:
            look.requests.append(f"{params['response']['status']} {params['response']['url']}")
        elif method == "Network.requestWillBeSent":
            asked = params["request"]["url"]
            if not asked.startswith((address, "data:", "blob:")):
                look.requests.append(f"beyond this site: {asked}")
    if url == "/404.html":  # asked for by its own name, it is there
        look.console = [line for line in look.console if "404" not in line]
    return look


def _shoot(browser: Chromium, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(browser.send("Page.captureScreenshot", format="png")["data"]))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing: the browser's own account is what counts."""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve the folder on loopback and give its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main(site: Path, out: Path) -> int:
    """Print what does not fit."""
    if not is_there():
        print(f"set {VARIABLE} to a Chromium or Chrome")
        return 2
    with Chromium() as browser:
        seen = look_at(browser, site, sorted(read_pages(site)), out)
    for look in seen:
        for line in look.faults():
            print(f"{look.url} at {look.width} px: {line}")
    fonts = min(look.smallest_font_px for look in seen)
    print(
        f"{len(seen)} looks, {sum(bool(look.faults()) for look in seen)} with faults, smallest font {fonts} px; {out}"
    )
    return int(any(look.faults() for look in seen))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
