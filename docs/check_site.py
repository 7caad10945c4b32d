"""Look at the built site in headless chromium: colours that cannot be read, cut code, pages wider than the window.

python docs/check_site.py [SITE]

SITE is the folder that ``mkdocs build`` wrote (default: site). Every page is opened at
1280 and 390 px, in the light and the dark scheme. The exit code is 1 if something is
found, and 0 without chromium, which is stated.
"""

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from html import unescape
from pathlib import Path

WIDTHS = (1280, 390)
SCHEMES = ("default", "slate")
TEXT, LARGE = (
    4.5,
    3.0,
)  # contrast that WCAG 2 asks for; large is 24 px, or 18.66 px in bold
HARNESS = "check-site.html"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
LOOK = """<!doctype html><title>check</title><body style="margin:0"><pre id="found"></pre><script>
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgba = colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
};
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
const ground = (view, element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(rgba(view.getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
};
const shown = (view, element) => {
  const style = view.getComputedStyle(element), box = element.getBoundingClientRect();
  return style.visibility === "visible" && +style.opacity > 0 && box.width > 0 && box.height > 0;
};
const where = element => element.outerHTML.slice(0, 90).replace(/\\s+/g, " ");
function look(view, page, phone) {
  const found = [], seen = new Set(), root = view.document.documentElement;
  const add = (kind, element, more) => {
    const line = `${kind} ${more}: ${where(element)}`;
    if (!seen.has(line)) found.push({page, line});
    seen.add(line);
  };
  const excess = Math.max(root.scrollWidth, view.document.body.scrollWidth) - root.clientWidth;
  if (excess > 1) add("wider than the window by", view.document.body, `${excess} px`);
  for (const link of view.document.querySelectorAll("a, button, .md-button, .md-typeset p, .md-typeset td")) {
    if (!shown(view, link) || !link.textContent.trim() || link.closest("[hidden], .md-skip, .headerlink")) continue;
    const style = view.getComputedStyle(link), below = ground(view, link);
    const text = light(over(rgba(style.color), below)), back = light(below);
    const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05), size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700) ? LARGE : TEXT;
    if (!link.matches(".headerlink, .md-top") && ratio < least) add("contrast", link, `${ratio.toFixed(2)} to 1`);
  }
  if (!phone) for (const code of view.document.querySelectorAll(".md-typeset .highlight:not(.doc-signature) code")) {
    const cut = code.scrollWidth - code.clientWidth;
    if (cut > 1) add("code is cut by", code, `${cut} px of "${code.textContent.trim().slice(0, 40)}"`);
  }
  return found;
}
async function run(pages, width, scheme) {
  const found = [];
  for (const page of pages) {
    const frame = document.createElement("iframe");
    Object.assign(frame.style, {width: `${width}px`, height: "900px", border: 0});
    frame.src = page;
    await new Promise(done => { frame.onload = done; document.body.append(frame); });
    const own = frame.contentDocument, still = own.createElement("style");
    still.textContent = "* {transition: none !important}";  // colours change slowly
    own.head.append(still);
    own.body.setAttribute("data-md-color-scheme", scheme);
    await new Promise(done => setTimeout(done, 50));
    found.push(...look(frame.contentWindow, page, width < 600));
    frame.remove();
  }
  document.getElementById("found").textContent = JSON.stringify({pages: pages.length, found}) + "|end";
}
const TEXT = %s, LARGE = %s;
run(%s, %s, %s);
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, without a line per request."""

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def look(
    site: Path, width: int, scheme: str, address: str, pages: list[str]
) -> list[str]:
    """Open every page in one frame of this width, and return what is wrong with them."""
    values = map(json.dumps, (TEXT, LARGE, pages, width, scheme))
    (site / HARNESS).write_text(LOOK % tuple(values), "utf-8")
    try:
        with tempfile.TemporaryDirectory() as profile:
            options = [
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--dump-dom",
                f"--user-data-dir={profile}",
            ]
            options += [
                f"--window-size={max(width, 800)},1000",
                f"--virtual-time-budget={4000 * len(pages)}",
            ]
            call = [str(CHROMIUM), *options, f"{address}/{HARNESS}"]
            dom = subprocess.run(
                call, capture_output=True, text=True, timeout=900, check=True
            ).stdout
    finally:
        (site / HARNESS).unlink()
    found = re.search(r'<pre id="found">(.*?)\|end</pre>', dom, re.DOTALL)
    if found is None:
        raise RuntimeError(
            f"chromium did not come to the last of {len(pages)} pages: {dom[-500:]}"
        )
    rows = json.loads(unescape(found.group(1)))["found"]
    return [f"{row['page']} ({width} px, {scheme}): {row['line']}" for row in rows]


def main(site: Path) -> int:
    """Print what is wrong with a site."""
    if CHROMIUM is None:
        print("chromium is not installed; nothing was checked")
        return 0
    pages = sorted(
        f"/{path.relative_to(site).as_posix()}" for path in site.rglob("index.html")
    )
    if not pages:
        print(f"{site} holds no pages; mkdocs build --strict -d {site} writes them")
        return 1
    serve = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        wrong = [
            line
            for width in WIDTHS
            for scheme in SCHEMES
            for line in look(site, width, scheme, address, pages)
        ]
        server.shutdown()
    print("\n".join(wrong) or f"{len(pages)} pages: nothing is wrong at {WIDTHS} px")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "site")))
