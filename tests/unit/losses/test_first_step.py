"""Terms of one loss begin on one scale, so that none of them drowns another."""

from __future__ import annotations

from dinoneck import Composition

IMAGES, AREA = 48, 0.21
PARTS, SUMS = ("clover", "dead", "green"), {"GDM": ("clover", "green"), "all": ("clover", "dead", "green")}
BIOMASS = Composition(PARTS, SUMS, "biomass", "total", "shares")  # type: ignore[arg-type]
