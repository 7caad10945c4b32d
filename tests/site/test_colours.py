"""The buttons of the site can be seen: contrast computed from the style sheets, without a browser."""

from __future__ import annotations

import colorsys
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

OWN = Path(__file__).resolve().parents[2] / "docs" / "stylesheets" / "extra.css"
ENOUGH = 4.5
Rules = list[tuple[str, dict[str, str]]]
Colour = tuple[float, float, float, float]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="material not installed: pip install 'dinoneck[docs]'"
)


def rules_of(sheets: list[str]) -> Rules:
    """Selector and declarations of every rule, in order; the conditions of @media are left out."""
    text = re.sub(r"(?s)/\*.*?\*/", "", "\n".join(sheets)).replace('"', "").replace("'", "")
    found = []
    for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", text):
        pairs = (entry.split(":", 1) for entry in body.split(";") if ":" in entry)
        declared = {name.strip(): value.strip() for name, value in pairs}
        found += [(selector.strip(), declared) for selector in selectors.split(",")]
    return found


def theme() -> list[str]:
    [place] = importlib.util.find_spec("material").submodule_search_locations  # type: ignore[union-attr,misc]
    folder = Path(place) / "templates" / "assets" / "stylesheets"
    return [next(folder.glob(f"{name}.*.css")).read_text() for name in ("main", "palette")]


def applied(rules: Rules, present: set[str]) -> dict[str, str]:
    """The declarations of the rules whose selector has nothing but these simple selectors, the stronger ones last."""
    chosen = []
    for place, (selector, declared) in enumerate(rules):
        simple = re.findall(r"\[[^\]]*\]|[.:][\w-]+|[\w*>+~-]+", selector)
        if simple and set(simple) <= present:
            chosen.append((len(simple), place, declared))
    return {
        name: value for _, _, declared in sorted(chosen, key=lambda one: one[:2]) for name, value in declared.items()
    }


def resolved(value: str, own: Mapping[str, str], inherited: Mapping[str, str]) -> str:
    """A value without variables, which mean those of the same element, else inherited ones."""

    def look_up(match: re.Match[str]) -> str:
        name = match[1]
        return resolved(own[name], own, inherited) if name in own else inherited[name]

    return re.sub(r"var\((--[\w-]+)\)", look_up, value)


def colour(text: str) -> Colour:
    if text.startswith("#"):
        digits = text[1:] if len(text) > 5 else "".join(2 * letter for letter in text[1:])
        channels = [int(digits[i : i + 2], 16) / 255 for i in range(0, len(digits), 2)]
        return (*channels[:3], channels[3] if len(channels) == 4 else 1.0)  # type: ignore[return-value]
    hue, saturation, lightness, alpha = (
        float(part.removesuffix("deg").removesuffix("%")) for part in text[5:-1].split(",")
    )
    return (*colorsys.hls_to_rgb(hue % 360 / 360, lightness / 100, saturation / 100), alpha)


def contrast(one: Colour, other: Colour) -> float:
    """The contrast of WCAG 2 between opaque colours."""
    lights = []
    for red, green, blue, alpha in (one, other):
        assert alpha == 1.0
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def button(scheme: str, kind: set[str], own_sheet: str) -> tuple[Colour, Colour, Colour, Colour]:
    """Text, ground and border of a button, and the page around it."""
    rules = rules_of([*theme(), own_sheet])
    body = {f"[data-md-color-scheme={scheme}]", "[data-md-color-primary=custom]", "[data-md-color-accent=custom]"}
    values: dict[str, str] = {}
    for present in ({":root"}, body):
        own = applied(rules, present)
        values |= {name: resolved(value, own, values) for name, value in own.items() if name.startswith("--")}
    on_buttons = [(selector, declared) for selector, declared in rules if "md-button" in selector]
    own = applied(on_buttons, {".md-typeset", ".md-button", *body, *kind})
    values |= {name: resolved(value, {}, values) for name, value in own.items() if name.startswith("--")}
    text, page = own["color"], "var(--md-default-bg-color)"
    found = (text, own.get("background-color", page), own.get("border-color", text), page)
    return tuple(colour(resolved(value, {}, values)) for value in found)  # type: ignore[return-value]


@pytest.mark.parametrize("state", [set(), {":hover"}])
@pytest.mark.parametrize("kind", [set(), {".md-button--primary"}])
@pytest.mark.parametrize("scheme", ["default", "slate"])
def test_text_and_border_of_buttons_stand_out(scheme: str, kind: set[str], state: set[str]) -> None:
    text, ground, border, page = button(scheme, kind | state, OWN.read_text())
    assert contrast(text, ground) >= ENOUGH
    assert contrast(border, page) >= ENOUGH


def test_the_computed_contrast_is_that_of_the_standard() -> None:
    assert contrast(colour("#000"), colour("#ffffff")) == pytest.approx(21.0)
    assert contrast(colour("#777777"), colour("#fff")) == pytest.approx(4.48, abs=0.005)
    assert colour("hsla(170,15%,14%,1)")[:3] == pytest.approx((0x1E / 255, 0x29 / 255, 0x27 / 255), abs=0.004)
