"""Links and buttons of the site can be seen: contrast of the colours in the style sheet, without a browser."""

from __future__ import annotations

import re
from pathlib import Path

STYLE = Path(__file__).resolve().parents[2] / "docs" / "stylesheets" / "extra.css"
ENOUGH = 4.5


def rules() -> dict[str, dict[str, str]]:
    """Selector -> its declarations; a later rule adds to an earlier one."""
    found: dict[str, dict[str, str]] = {}
    for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"(?s)/\*.*?\*/|\"", "", STYLE.read_text())):
        for selector in selectors.split(","):
            found.setdefault(selector.strip(), {}).update(re.findall(r"([\w-]+):\s*([^;]+);", body))
    return found


def contrast(one: str, other: str) -> float:
    """The contrast of WCAG 2 between two colours, ``#rrggbb``."""
    lights = []
    for colour in (one, other):
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        lights.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_links_and_buttons_stand_out_in_both_schemes() -> None:
    own, light, dark = rules(), "[data-md-color-scheme=default]", "[data-md-color-scheme=slate]"
    button = own[f"{dark} .md-button"]  # in the dark scheme it takes the colour of links
    assert button["--md-primary-fg-color"] == "var(--md-typeset-a-color)"
    link = own[dark]["--md-typeset-a-color"]
    for text, ground in (
        (own[light]["--md-typeset-a-color"], "#ffffff"),
        (own[":root"]["--md-primary-bg-color"], own[":root"]["--md-primary-fg-color"]),
        (link, button["--md-primary-bg-color"]),
        (own[dark]["--md-accent-fg-color"], button["--md-accent-bg-color"]),
    ):
        assert contrast(text, ground) >= ENOUGH, (text, ground)
