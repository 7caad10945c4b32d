"""How a report looks, and the little that runs in it: constants, whose digests are all that the page allows."""

from __future__ import annotations

import base64
import hashlib

from dinoneck.viz.report.markup import Markup, element, raw

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--soft:#59636f;--line:#d5dbe1;--wash:#f4f6f8;--link:#1f5c99;
--known:#a8480f;--over:.6}
@media screen and (prefers-color-scheme:dark){
:root{--paper:#14171a;--ink:#e8ebee;--soft:#a6b0bb;--line:#39424b;--wash:#1d2226;
--link:#8fbdea;--known:#f0a36b}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:1.25rem clamp(.9rem,3vw,2.5rem) 3rem;max-width:84rem;background:var(--paper);
color:var(--ink);font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:.4rem 0}
h2{font-size:1.25rem;margin:2.4rem 0 .6rem;padding-top:.7rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .5rem}
p{margin:.5rem 0;max-width:46rem}
a{color:var(--link)}
.soft,figcaption{color:var(--soft);font-size:.875rem}
.skip{position:absolute;left:-99rem}
.skip:focus{position:static}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;list-style:none;margin:.8rem 0 0;padding:0}
.wide{overflow-x:auto;max-width:100%;position:relative;margin:.5rem 0 1rem}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:end;vertical-align:top;white-space:nowrap}
thead th{background:var(--wash);white-space:nowrap;position:sticky;top:0}
th:first-child,td.text{text-align:start;font-weight:400}
tbody th,td.text{min-width:11rem;max-width:28rem;white-space:normal}
th button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer}
th button::after{content:" \\2195";color:var(--soft)}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.25rem 1rem;margin:.6rem 0;font-size:.875rem}
dt{color:var(--soft)}
dd{margin:0;min-width:0}
.pairs,.charts,.figures{display:grid;gap:1rem 1.2rem;align-items:start}
.charts{grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))}
.pairs .charts{grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr))}
.figures{grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr))}
.charts figure{max-width:27rem}
.figures figure{max-width:30rem}
figure{margin:0;min-width:0}
figcaption{margin-top:.3rem}
figcaption b{color:var(--ink)}
svg{display:block;width:100%;height:auto}
.picture{background:var(--wash)}
.picture+.picture{margin-top:4px}
.cells{image-rendering:pixelated}
.under{filter:grayscale(1)}
.over{opacity:var(--over)}
.range{display:flex;flex-wrap:wrap;gap:0 .5rem;align-items:center;margin-top:.15rem}
.range span{max-width:100%;overflow-wrap:break-word}
.scale{flex:1;min-width:3rem;height:.6rem;width:auto}
.chart text{font-size:12px;fill:var(--soft)}
.axis{stroke:var(--soft)}
.grid{stroke:var(--line);stroke-width:.6}
.bar{fill:var(--link)}
.known{fill:none;stroke:var(--known);stroke-width:2}
.ideal{stroke:var(--known);stroke-width:1.4;stroke-dasharray:5 4}
.dot{fill:var(--link);fill-opacity:.75}
.dot:hover{fill-opacity:1;stroke:var(--ink)}
article{border-bottom:1px solid var(--line);padding-bottom:1.2rem;scroll-margin-top:.5rem}
.key::before{content:"";display:inline-block;width:1.1em;height:.65em;margin-inline-end:.35em;background:var(--link)}
.key.line::before{height:0;border-top:2px solid var(--known);background:none;vertical-align:.25em}
label{display:flex;gap:.6rem;align-items:center;flex-wrap:wrap}
input[type=range]{width:12rem;accent-color:var(--link)}
[hidden]{display:none}
@media (max-width:34rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}h1{font-size:1.4rem}
tbody th,td.text{min-width:9rem}}
@media print{nav,.skip,.tools,th button::after{display:none}body{max-width:none;padding:0}figure,tr{break-inside:avoid}
.wide{overflow:visible}thead th{position:static}h2,h3{break-after:avoid}.figures{grid-template-columns:repeat(3,1fr)}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const told = row => row.cells[place].textContent;
      const order = (a, b) => {
        const x = parseFloat(told(a)), y = parseFloat(told(b));
        if (place === 0) return told(a).localeCompare(told(b), undefined, {numeric: true});
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return x - y;
      };
      const rows = [...body.rows].sort((a, b) => up ? order(a, b) : order(b, a));
      body.append(...rows);
    });
  });
}
for (const tool of document.querySelectorAll(".tools")) {
  const slider = tool.querySelector("input");
  tool.hidden = false;
  slider.addEventListener("input", () =>
    document.documentElement.style.setProperty("--over", slider.value / 100));
}
"""


def policy() -> str:
    """Return what the page may load and run: pictures inside it, and exactly the style and the script above."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(STYLE)}'; script-src '{_digest(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def style() -> Markup:
    """Return the ``style`` element."""
    return raw("style", STYLE)


def script() -> Markup:
    """Return the ``script`` element; the page can be read without it."""
    return raw("script", SCRIPT)


def slider() -> Markup:
    """Return the control of how strongly maps cover their photos; hidden where no script runs."""
    control = element("input", type="range", min=0, max=100, value=60)
    return element("p", element("label", "Maps over photos: ", control), class_="tools", hidden=True)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
